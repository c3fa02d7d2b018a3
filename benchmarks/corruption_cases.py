"""The folders that benchmarks/corruption.py damages: tiny runs of each verb, a pack, the cache, a pipeline and a sweep."""

from __future__ import annotations

import shutil
import signal
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rootstock.core.train import loop

NET = ("backbone.name=smallconv", "backbone.args={widths: [8, 8, 8, 8]}", "data.size=16")
HERE = ("run.device=cpu", "run.workers=0", "run.log_every=1")
TRAINING = ("optim.batch_size=16", "optim.duration=4", "optim.warmup=0", "run.checkpoint.every=2")
DIGITS = "sklearn:digits?size=16"
LABELLED = (f"data.train={DIGITS}#[:60]", f"data.test={DIGITS}#[60:90]")
KNN = ("evaluate.linear=null", "evaluate.knn={k: 3}", "evaluate.fewshot=null")

Command = Callable[..., Any]


@dataclass(frozen=True)
class Scenario:
    """A folder, and the commands that use it.

    beside: folders that the commands make, removed before each. may_be_missing: files whose absence is no damage, and why.
    said_as: by a file's name, the words by which a message means it.
    """

    name: str
    folder: Path
    commands: Sequence[Sequence[str]]
    beside: Sequence[Path] = ()
    may_be_missing: Mapping[str, str] = field(default_factory=dict)
    said_as: Mapping[str, str] = field(default_factory=dict)

    @property
    def shown(self) -> list[Sequence[str]]:
        place = next(parent for parent in self.folder.parents if parent.name not in ("cache", "rootstock"))
        return [[word.replace(f"{place}/", "") for word in line] for line in self.commands]


def make(command: Command, *arguments: str) -> Sequence[str]:
    ended = command(*arguments)
    if ended.code:
        raise RuntimeError(f"{' '.join(arguments)}: {ended.said}")
    return arguments


def stopped(command: Command, *arguments: str) -> Sequence[str]:
    """A run that is interrupted twice before its fourth step: it leaves the checkpoint of step 2."""
    straight = loop.Loop.step

    def stepping(self: Any, wrapped: Any, micro: Any, prepare: Any, step: int, asked: list[int]) -> Any:
        if step == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return straight(self, wrapped, micro, prepare, step, asked)

    loop.Loop.step = stepping
    try:
        if command(*arguments).code != 130:
            raise RuntimeError("it was not interrupted")
    finally:
        loop.Loop.step = straight
    return arguments


def pretrain(folder: Path) -> list[str]:
    views = ("data.views=digits", f"data.train={DIGITS}#[:60]", "evaluate.knn=null", "evaluate.watch=null")
    return ["pretrain", "digits_simclr", *NET, *HERE, *TRAINING, *views, f"run.dir={folder}"]


def probe(folder: Path, *more: str) -> list[str]:
    return ["probe", "probe/digits.yaml", *LABELLED, *HERE, "data.size=16", *KNN, *more, f"run.dir={folder}"]


def finetune(folder: Path) -> list[str]:
    return ["finetune", "finetune/digits.yaml", *NET, *HERE, *TRAINING, *LABELLED, f"run.dir={folder}"]


def adapt(folder: Path, *more: str) -> list[str]:
    data = (f"data.source={DIGITS}#[:60]", f"data.target={DIGITS}#[60:120]", f"data.test={DIGITS}#[120:150]")
    return ["adapt", "adapt/digits_dann.yaml", *HERE, *TRAINING, *data, "data.size=16", *more, f"run.dir={folder}"]


def looks(folder: Path) -> list[Sequence[str]]:
    """What looks at any run."""
    return [["runs", str(folder), "--json"], ["report", str(folder)]]


def scenarios(place: Path, command: Command) -> Iterator[Scenario]:
    """Each made when it is asked for. place: an empty folder. command: runs `rootstock`."""
    run, other = place / "stopped", place / "other"
    resume = stopped(command, *pretrain(run))
    yield Scenario("a pretraining that was stopped", run, [*looks(run), resume], may_be_missing=UNBEGUN)
    run = place / "pretrained"
    again = make(command, *pretrain(run))
    weights = [f"backbone.weights={run}", "backbone.name=null", "backbone.args={}"]
    use = probe(other, *weights)
    yield Scenario("a finished pretraining, and a probe of it", run, [use, *looks(run), again], (other,), AGAIN)
    run = place / "probed"
    again = make(command, *probe(run, "backbone.name=pixels"))
    yield Scenario("a finished probe", run, [*looks(run), again], may_be_missing=AGAIN)
    run = place / "tuned"
    again = make(command, *finetune(run))
    weights[0] = f"backbone.weights={run}"
    adapted = adapt(other, "method=adabn", "optim.duration=0", *weights)
    yield Scenario("a finished fine-tuning, and AdaBN from it", run, [adapted, *looks(run), again], (other,), AGAIN)
    run = place / "adapted"
    again = make(command, *adapt(run, *NET))
    yield Scenario("a finished adaptation", run, [*looks(run), again], may_be_missing=AGAIN)
    yield from of_data(place, command)
    yield from of_many(place, command)


def of_data(place: Path, command: Command) -> Iterator[Scenario]:
    """A pack, and the caches of a compressed archive and of frozen features."""
    random = np.random.default_rng(0)
    with tarfile.open(place / "set.tar.gz", "w:gz") as archive:
        for i in range(12):
            picture = place / "set" / f"class{i % 2}" / f"{i}.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(picture)
            archive.add(picture, picture.relative_to(place / "set"))
    pack = place / "pack"
    make(command, "data", f"folder:{place / 'set'}", "--pack", str(pack))
    yield Scenario(
        "a pack",
        pack,
        [["data", f"pack:{pack}", "--out", str(place / "sheet.png")]],
        said_as={"records.bin": "since packing"},
    )
    cache, describe = (
        place / "cache" / "rootstock",
        ["data", f"tar:{place / 'set.tar.gz'}", "--out", str(place / "sheet.png")],
    )
    for file in (place / "set.tar.gz", *(place / "set").rglob("*.png")):
        settle(file)
    make(command, *describe)
    gone = dict.fromkeys(
        sorted(path.name for path in cache.rglob("*") if path.is_file()), "made again, as of an empty cache"
    )
    yield Scenario("the cache of a compressed archive", cache, [describe], may_be_missing=gone)
    features, probed = cache / "features", place / "from_features"
    shutil.rmtree(features, ignore_errors=True)  # those of the runs before
    again = make(command, *probe(probed, "backbone.name=smallconv", "backbone.args={widths: [8, 8, 8, 8]}"))
    gone = dict.fromkeys(sorted(path.name for path in features.iterdir()), "extracted again, as with an empty cache")
    yield Scenario("the cache of frozen features", features, [again], beside=[probed], may_be_missing=gone)


def settle(path: Path) -> None:
    """Wait until a file counts as old enough to be remembered: its time of change cannot be set."""
    import time

    from rootstock.core.images.cache import SETTLED_SECONDS

    time.sleep(max(0.0, path.stat().st_ctime + SETTLED_SECONDS + 0.1 - time.time()))


def of_many(place: Path, command: Command) -> Iterator[Scenario]:
    """A pipeline and a sweep."""
    folder, file = place / "pipeline", place / "pipeline.yaml"
    section = (
        "{verb: probe, config: probe/digits.yaml, set: {backbone.name: pixels, data.size: 16, evaluate.linear: null, "
    )
    section += f"data.train: '{LABELLED[0][11:]}', data.test: '{LABELLED[1][10:]}', run.workers: 0}}}}"
    file.write_text(f"run: {{dir: {folder}}}\nseeds: 2\nstages:\n  probe: {section}\n")
    again = make(command, "run", str(file))
    without = {**AGAIN, "result.json": "made anew from those of the stages"}
    yield Scenario("a finished pipeline", folder, [*looks(folder), again], may_be_missing=without)
    folder, file = place / "sweep", place / "sweep.yaml"
    given = {
        word.partition("=")[0]: word.partition("=")[2]
        for word in probe(folder, "backbone.name=pixels", "data.test=null")[2:-1]
    }
    values = "".join(
        f"  {key}: {value if value[0] in '{[' else repr(value) if ':' in value else value}\n"
        for key, value in given.items()
    )
    file.write_text(
        f"run: {{dir: {folder}}}\nverb: probe\nconfig: probe/digits.yaml\nset:\n{values}search:\n  evaluate.knn.k: {{choice: [1, 3]}}\n"
        "trials: 2\nobjective: test/knn/accuracy\nsampler: {name: grid}\n"
    )
    again = make(command, "sweep", str(file))
    yield Scenario("a finished sweep", folder, [*looks(folder), again], may_be_missing=AGAIN)


# A lock is free without its file. What a run has not written yet, it writes.
UNBEGUN = {".lock": "made anew; it holds nothing"}
AGAIN = {".lock": "not needed by a finished run"}
