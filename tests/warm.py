"""What a run imports by and by, for programs of the tests that fork one run after another: imported once, before they fork."""

import atexit
import gc
import importlib

for name in (
    "rootstock.launch.verbs",
    "rootstock.ssl.registry",
    "rootstock.tests.ssl.cases",
    "sklearn.datasets",
    "sklearn.manifold",
):
    importlib.import_module(name)

gc.collect()
gc.freeze()  # all this is not looked through again, nor its memory copied
atexit.register(gc.unfreeze)  # or else extension modules complain at the interpreter's end
