"""A training on objects: stopped by a server that is gone, it resumes to the same bits; while the object is another one, it is refused."""

import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

from rootstock.tests.core.images.sources.test_ways import PICTURES
from rootstock.tests.objectstore import ObjectStore, archive

Command = Callable[..., CompletedProcess[str]]
TINY = [
    "data.size=8", "data.views=simclr", "backbone.name=smallconv", "backbone.args={widths: [4, 4, 4, 8]}", "method.projection=[8, 8]",
    "optim.batch_size=8", "optim.duration=8", "optim.warmup=0",
    "evaluate=null", "run.workers=0", "run.log_every=1", "run.checkpoint.every=2",
]  # fmt: skip


def train(rootstock: Command, uri: str, folder: Path) -> CompletedProcess[str]:
    return rootstock("pretrain", "digits_simclr", f"data.train={uri}", f"run.dir={folder}", *TINY)


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "backbone/backbone.safetensors").read_bytes()).hexdigest()


def test_a_training_that_lost_its_server_resumes_to_the_same_bits(
    store: ObjectStore, rootstock: Command, tmp_path: Path
) -> None:
    made = archive({f"{i}.png": one for i, one in enumerate(PICTURES)})
    uri = f"tar:{store.put('train.tar', made)}?cache=0"
    straight = train(rootstock, uri, tmp_path / "straight")
    assert straight.returncode == 0, straight.stderr
    requests, number = len(store.gets), itertools.count()

    def gone(method: str, path: str) -> None:
        if next(number) == requests - 20:
            store.stop_soon()

    store.fault = gone
    stopped = train(rootstock, uri, tmp_path / "stopped")
    assert stopped.returncode == 1, stopped.stderr  # a fault of the machine
    last = stopped.stderr.splitlines()[-1]
    assert "cannot be read now" in last and "run the same command again" in last
    assert list((tmp_path / "stopped/checkpoints").iterdir()) and not (tmp_path / "stopped/result.json").exists()
    store.fault = lambda method, path: None
    store.start()

    other = bytearray(made)
    other[made.index(PICTURES[3]) + len(PICTURES[3]) // 2] ^= 1  # of the same size
    for replaced, said in ((bytes(other), "another version"), (archive({"one.png": PICTURES[0]}), "changed since")):
        store.put("train.tar", replaced)
        refused = train(rootstock, uri, tmp_path / "stopped")
        assert refused.returncode == 2 and said in refused.stderr, refused.stderr
    store.put("train.tar", made)

    resumed = train(rootstock, uri, tmp_path / "stopped")
    assert resumed.returncode == 0, resumed.stderr
    assert weights(tmp_path / "stopped") == weights(tmp_path / "straight")
    for file in (one for one in tmp_path.glob("s*/*") if one.is_file()):
        assert b"secret-of-a-test" not in file.read_bytes() and b"AKIDOFATEST" not in file.read_bytes(), file
