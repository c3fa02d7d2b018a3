"""What a sweep imports by and by, with the page at its end: for programs that fork one sweep after another."""

import importlib

for name in (
    "alembic.command",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "optuna.storages._rdb.storage",
    "optuna.storages._rdb.models",
    "pygments.lexers.javascript",
    "rootstock.launch.sweep.worker",
):
    importlib.import_module(name)
