"""A training on objects: stopped by a server that is gone, it resumes to the same bits; and it is refused on other objects."""

import hashlib
import itertools
import json
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
    uri = f"tar:{store.put('train.tar', archive({f'{i}.png': one for i, one in enumerate(PICTURES)}))}?cache=0"
    straight = train(rootstock, uri, tmp_path / "straight")
    assert straight.returncode == 0, straight.stderr
    requests = len(store.gets)
    number = itertools.count()

    def gone(method: str, path: str) -> None:
        if next(number) == requests - 20:
            store.stop_soon()

    store.fault = gone
    stopped = train(rootstock, uri, tmp_path / "stopped")
    assert stopped.returncode == 1, stopped.stderr  # a fault of the machine
    last = stopped.stderr.splitlines()[-1]
    assert "cannot be read now" in last and "run the same command again" in last
    saved = [one.name for one in (tmp_path / "stopped/checkpoints").iterdir()]
    assert saved and not (tmp_path / "stopped/result.json").exists()
    store.fault = lambda method, path: None
    store.start()
    resumed = train(rootstock, uri, tmp_path / "stopped")
    assert resumed.returncode == 0, resumed.stderr
    assert weights(tmp_path / "stopped") == weights(tmp_path / "straight")
    for file in tmp_path.glob("*/*.json*"):
        assert "secret-of-a-test" not in file.read_text() and "AKIDOFATEST" not in file.read_text()
    assert json.loads((tmp_path / "stopped/result.json").read_text())["metrics"] is not None


def test_other_objects_than_when_the_run_began_are_refused(
    store: ObjectStore, rootstock: Command, tmp_path: Path
) -> None:
    members = {f"{i}.png": one for i, one in enumerate(PICTURES)}
    uri = f"tar:{store.put('grown.tar', archive(members))}"
    assert train(rootstock, uri, tmp_path / "run").returncode == 0
    (tmp_path / "run/result.json").unlink()
    store.put("grown.tar", archive({**members, "new.png": PICTURES[0] + b"\0"}))
    refused = train(rootstock, uri, tmp_path / "run")
    assert refused.returncode == 2 and "run.changed_data" in refused.stderr, refused.stderr
