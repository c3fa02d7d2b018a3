"""What a run imports and computes by and by, for programs of the tests that fork one run after another: done once, before they fork."""

import atexit
import gc
import importlib

from PIL import Image

import rootstock.tests.cheaper  # noqa: F401 - for the runs
from rootstock.core.environment import environment
from rootstock.core.images.open import open_images

for name in (
    "PIL.PngImagePlugin",
    "alembic.command",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "ot",
    "optuna.storages._rdb.models",
    "optuna.storages._rdb.storage",
    "pydantic.types",
    "pygments.lexers.javascript",
    "rich._emoji_codes",
    "rootstock.launch.early",
    "rootstock.launch.sweep.worker",
    "rootstock.launch.verbs",
    "rootstock.ssl.registry",
    "rootstock.tests.ssl.cases",
    "sklearn.datasets",
    "sklearn.manifold",
    "typer._adapters",
    "typer._click.decorators",
):
    importlib.import_module(name)

Image.init()  # imports the readers and writers of forty formats
environment()  # asks git and each package's files, once for a process
open_images("sklearn:digits?size=16")  # enlarges the digits, which is cached
gc.collect()
gc.freeze()  # all this is not looked through again, nor its memory copied
atexit.register(gc.unfreeze)  # or else extension modules complain at the interpreter's end
