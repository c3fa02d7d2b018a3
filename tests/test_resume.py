"""A run that is killed again and again ends with the very weights of one that ran straight through."""

import fcntl
import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from PIL import Image

from rootstock.adapt.kept_states import concludes
from rootstock.adapt.registry import ADAPT_METHODS
from rootstock.core.ledger import read_ledger
from rootstock.core.run.rows import LOOKS
from rootstock.ssl.registry import PRETRAIN_METHODS
from rootstock.tests.conftest import Forks
from rootstock.tests.core.images.sources import test_ways as ways
from rootstock.tests.ssl import cases

STEPS, EVERY = 22, 4
DATA = "sklearn:digits?size=16"
CONV = {"name": "smallconv", "args": {"widths": [8, 8, 8, 16]}}
VIT = {"name": "vit_tiny_patch16_224", "args": {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}}
RUN = {"log_every": 1, "workers": 0, "checkpoint": {"every": EVERY}}
TEST = f"{DATA}#[:30,seed=9]"


class Outcome(NamedTuple):
    code: int  # minus the signal's number where that ended it
    output: str


class CommandLine:
    """`rootstock ...` in a process of its own each time, which need not import anything."""

    def __init__(self, log: Path, forks: Forks) -> None:
        self.log, self.forks = log, forks

    def __call__(
        self, *argv: str, at: int = -1, signal: int = 9, save: bool = False, event: int = 0, under: Path | None = None
    ) -> Outcome:
        """under: the folder below which changes of the disk are counted; event: the change right before which it is killed."""
        folder = "" if under is None else str(under)
        job = {
            "argv": argv,
            "log": str(self.log),
            "at": at,
            "signal": signal,
            "save": save,
            "event": event,
            "under": folder,
        }
        (ended,) = self.forks(Path(__file__).with_name("driver.py"), [[json.dumps(job)]])
        return Outcome(ended.code, self.log.read_text())

    def changes(self) -> int:
        """How often the last command, which ended by itself, changed the disk below `under`."""
        return int(self.log.with_suffix(".changes").read_text())


@pytest.fixture(scope="module")
def rootstock(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> CommandLine:
    return CommandLine(tmp_path_factory.mktemp("driver") / "log", forks)


def optim(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "lr": 0.01,
        "batch_size": 16,
        "duration": STEPS,
        "warmup": "10%",
        "weight_decay": 0.05,
        **more,
    }


def pretrain(backbone: dict[str, Any], method: dict[str, Any], optimizer: dict[str, Any]) -> dict[str, Any]:
    data = {"train": f"{DATA}#[:100]", "size": 16, "views": "digits"}
    measured = {"every": 5}  # at each step it takes longer than the step
    return {
        "data": data,
        "backbone": backbone,
        "method": method,
        "optim": optimizer,
        "evaluate": measured,
        "run": RUN,
    }


SIMCLR, MAE = (
    {"name": "simclr", "projection": [16, 8]},
    {"name": "mae", "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2},
)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "simclr-adamw": (
        "pretrain",
        {
            **pretrain(CONV, SIMCLR, optim("adamw")),
            "evaluate": {"knn": {"k": 5}, "every": 5, "bank": f"{DATA}#[:60,seed=8]", "test": TEST},
        },
    ),
    "simclr-lars": ("pretrain", pretrain(CONV, SIMCLR, optim("lars", lr=1.0))),
    "mae": ("pretrain", pretrain(VIT, MAE, optim("adamw", clip=1.0))),
    "finetune-sgd": (
        "finetune",
        {
            "data": {
                "train": f"{DATA}#[:100,seed=1]",
                "test": TEST,
                "size": 16,
                "views": "randaugment",
                "shuffle": "blocks",
            },
            "backbone": CONV,
            "method": {"dropout": 0.2, "mixup": 0.8, "cutmix": 1.0, "teacher": {"weights": cases.teacher_of_digits()}},
            "optim": optim("sgd", nesterov=True),
            "run": {**RUN, "accumulate": 2},
        },
    ),
    "finetune-pruned": (
        "finetune",
        {
            "data": {"train": f"{DATA}#[:100,seed=1]", "test": TEST, "size": 16, "views": "digits"},
            "backbone": {"weights": cases.teacher_of_digits()},
            "method": {"keep_head": True, "prune": {"macs": 0.6, "multiple": 1, "importance": "taylor"}},
            "optim": optim("adamw"),
            "run": RUN,
        },
    ),
    "dann": (
        "adapt",
        {
            "data": {
                "source": f"{DATA}#[:80]",
                "target": f"{DATA}#[80:180]",
                "test": TEST,
                "size": 16,
                "views": "digits_weak",
            },
            "backbone": CONV,
            "method": {"name": "dann", "hidden": 16},
            "optim": optim("adamw"),
            "label_shift": {"resamples": 0},
            "run": RUN,
        },
    ),
}


def write(folder: Path, config: dict[str, Any]) -> str:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def weights(run: Path) -> str:
    return hashlib.sha256((run / "backbone" / "backbone.safetensors").read_bytes()).hexdigest()


def rows(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock says."""
    clocks = {"images_per_s", "data_wait"}
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in clocks} for line in lines]


def checkpoints(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))


# By `make test` every method below is killed once, and tests/finetune/training/test_regime.py resumes fine-tuning.
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_three_kills_change_nothing(case: str, rootstock: CommandLine, tmp_path: Path) -> None:
    verb, config = CASES[case]
    path = write(tmp_path, config)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert rootstock(verb, path, f"run.dir={straight}").code == 0

    kills = sorted(random.Random(case).sample(range(EVERY + 1, STEPS - 1), 3))
    resumed_from = 0
    for k in kills:
        outcome = rootstock(verb, path, f"run.dir={killed}", at=k)
        assert outcome.code == -9, outcome.output
        assert checkpoints(killed)[-1] == k // EVERY * EVERY >= EVERY and not (killed / "result.json").exists()
        assert (f"resumed from step {resumed_from} of {STEPS}" in outcome.output) == (resumed_from > 0), outcome.output
        resumed_from = k // EVERY * EVERY
    outcome = rootstock(verb, path, f"run.dir={killed}")
    assert outcome.code == 0, outcome.output
    assert f"resumed from step {resumed_from} of {STEPS}" in outcome.output and "checkpoint" not in outcome.output
    assert weights(killed) == weights(straight)
    assert rows(killed) == rows(straight)

    before = weights(killed), rows(killed)
    assert "is finished" in rootstock(verb, path, f"run.dir={killed}").output
    assert (weights(killed), rows(killed)) == before


@pytest.mark.parametrize("method", sorted(PRETRAIN_METHODS))
def test_every_method_resumes_to_the_same_bits(method: str, rootstock: CommandLine, tmp_path: Path) -> None:
    """With the views and kind of step of its config; queues, teachers, centres and schedules are in use on both sides of the kill."""
    steps, killed_at = 12, random.Random(method).choice([5, 6, 7, 9, 10])
    config = cases.config(
        method, cases.CASES[method][1][0], f"{DATA}#[:100]", 0.1, lr=0.003, batch_size=16, duration=steps
    )
    path = write(tmp_path, {**config, "run": RUN, "evaluate": {"every": 5}})
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert rootstock("pretrain", path, f"run.dir={straight}").code == 0
    assert rootstock("pretrain", path, f"run.dir={killed}", at=killed_at).code == -9
    outcome = rootstock("pretrain", path, f"run.dir={killed}")
    assert outcome.code == 0 and f"resumed from step {killed_at // EVERY * EVERY} of {steps}" in outcome.output
    assert weights(killed) == weights(straight)
    assert rows(killed) == rows(straight) and len(rows(straight)) >= steps


def adaptation(name: str, steps: int, folder: Path, rootstock: CommandLine) -> dict[str, Any]:
    """The config of an adaptation method for that many steps; one that keeps a head gets a run on the source, made in `folder`."""
    verb, config = CASES["dann"]
    config = {**config, "method": {"name": name}, "optim": optim("adamw", duration=steps)}
    if ADAPT_METHODS[name].keeps_head:
        trained, source = folder / "trained", folder / "source"
        source.mkdir()
        path = write(source, {**config, "method": {"name": "source_only"}})
        assert rootstock(verb, path, f"run.dir={trained}", "optim.duration=10").code == 0
        config = {**config, "backbone": {"weights": str(trained)}}
    if ADAPT_METHODS[name].online:  # one pass, ten images a step
        data = {**config["data"], "target": f"{DATA}#[80:{80 + 10 * steps}]", "views": "none"}
        config = {**config, "data": data, "optim": {**config["optim"], "batch_size": 10, "duration": "1ep"}}
    return config


# Settings that bring buffers of their own, beside every method with its default keys.
SETTINGS = {
    "weights of images": ("dann", ["label_shift.resample=pseudo-labels"]),
    "BatchNorm of each domain": ("mcc", ["method.batchnorm=own", "method.bottleneck=8"]),
    "a masked teacher": ("mcc", ["method.mic={}"]),
}


def measured(method: str) -> list[str]:
    """Two candidates before the last one, where they are of its kind; corrected predictions, where outputs are of known classes alone."""
    found = [
        "evaluate.images=50",
        "evaluate.held_out=0.25",
        "label_shift.resamples=0",
        *([] if concludes(method) else ["evaluate.every=3"]),
    ]
    return [*found, *([] if ADAPT_METHODS[method].extra_outputs else ["label_shift.correct=mlls"])]


def left(run: Path) -> dict[str, str]:
    """sha256 of what an adaptation leaves: exports, any candidates, and the last checkpoint, which has second heads, banks and moments."""
    last = f"checkpoints/step-{checkpoints(run)[-1]:08d}"
    folders = [run / folder for folder in ("backbone", "classifier", "candidates", last, ".")]
    files = [path for folder in folders if folder.exists() for path in folder.iterdir()]
    found = {str(path.relative_to(run)): path for path in files if path.suffix == ".safetensors"}
    exported = {"backbone/backbone.safetensors", "classifier/head.safetensors", "candidates.safetensors"}
    assert found.keys() >= exported | {f"{last}/model.safetensors", f"{last}/optimizer.safetensors"}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items()}


def said(run: Path) -> dict[str, Any]:
    """result.json without what a clock or the folder's name says."""
    result = json.loads((run / "result.json").read_text())
    return {key: value for key, value in result.items() if key not in ("seconds", "run")}


def looks_at(run: Path, cache: Path) -> tuple[int, int]:
    """Numbers of entries: in the run's ledger, and in all of the cache's."""
    found = [read_ledger(path) for path in (run / LOOKS, *(cache / "rootstock" / "looks").glob("*.json"))]
    counts = [len(ledger.entries) for ledger in found if ledger is not None]
    return counts[0], sum(counts[1:])


@pytest.mark.parametrize("case", [*sorted(ADAPT_METHODS), *SETTINGS])
def test_every_adaptation_method_resumes_to_the_same_bits(
    case: str, rootstock: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that it leaves; and one look at the test in a cache of its own, since both runs score the same candidates."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    method, settings = SETTINGS.get(case, (case, list[str]()))
    more = [*measured(method), *settings]
    steps, killed_at = 10, random.Random(case).choice([5, 6, 7, 9])
    path = write(tmp_path, adaptation(method, steps, tmp_path, rootstock))
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)  # what the run on the source looked at
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert rootstock("adapt", path, f"run.dir={straight}", *more).code == 0
    assert rootstock("adapt", path, f"run.dir={killed}", *more, at=killed_at).code == -9
    outcome = rootstock("adapt", path, f"run.dir={killed}", *more)
    assert outcome.code == 0 and f"resumed from step {killed_at // EVERY * EVERY} of {steps}" in outcome.output
    assert left(killed) == left(straight) and rows(killed) == rows(straight) and said(killed) == said(straight)
    assert looks_at(straight, tmp_path / "cache") == looks_at(killed, tmp_path / "cache") == (1, 1)


@pytest.mark.parametrize("method", [pytest.param("dann", marks=pytest.mark.slow), "tent"])
def test_killed_within_the_final_test_it_looks_once(
    method: str, rootstock: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the result, three times at different places; with candidates of the training, corrected and online ones."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write(tmp_path, adaptation(method, 6, tmp_path, rootstock))
    own = [f"data.test={DATA}#[80:140]"] if method == "tent" else []  # its target, which it predicts while it meets it
    more = [*measured(method), *own]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert rootstock("adapt", path, f"run.dir={straight}", *more, under=straight).code == 0
    changes = rootstock.changes()
    shutil.rmtree(tmp_path / "cache")
    # The last changes of a run: predictions, map, manifest, result and state. In a life that only ends a run there are fewer changes.
    assert rootstock("adapt", path, f"run.dir={killed}", *more, under=killed, event=changes - 9).code == -9
    assert (killed / LOOKS).exists() and not (killed / "result.json").exists()
    copy = Path(shutil.copytree(killed, tmp_path / "copy"))
    assert rootstock("adapt", path, f"run.dir={copy}", *more, under=copy).code == 0
    ending = rootstock.changes()
    for before in (7, 3):
        assert rootstock("adapt", path, f"run.dir={killed}", *more, under=killed, event=ending - before).code == -9
        assert not (killed / "result.json").exists()
    assert rootstock("adapt", path, f"run.dir={killed}", *more).code == 0
    assert left(killed) == left(straight) and said(killed)["looks"]["test"]["n"] == 1
    assert ("test/online/accuracy" in said(killed)["metrics"]) == (method == "tent")
    assert looks_at(killed, tmp_path / "cache") == (1, 1)


@pytest.fixture(scope="module")
def mae(rootstock: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A straight run, and one killed with checkpoints of steps 8 and 12 behind it."""
    folder = tmp_path_factory.mktemp("mae")
    path = write(folder, CASES["mae"][1])
    assert rootstock("pretrain", path, f"run.dir={folder / 'straight'}").code == 0
    assert rootstock("pretrain", path, f"run.dir={folder / 'killed'}", at=14).code == -9
    assert checkpoints(folder / "killed") == [8, 12]
    return {"path": path, "straight": folder / "straight", "killed": folder / "killed"}


def copied(mae: dict[str, Any], to: Path) -> Path:
    return Path(shutil.copytree(mae["killed"], to / "run"))


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"])
def test_a_flipped_bit_is_named_and_survived(
    file: str, mae: dict[str, Any], rootstock: CommandLine, tmp_path: Path
) -> None:
    run = copied(mae, tmp_path)
    damaged = run / "checkpoints" / "step-00000012" / file
    content = bytearray(damaged.read_bytes())
    bit = random.Random(file).randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    damaged.write_bytes(content)
    outcome = rootstock("pretrain", mae["path"], f"run.dir={run}")
    assert outcome.code == 0, outcome.output
    (warning,) = (line for line in outcome.output.splitlines() if "WARNING" in line)
    assert str(damaged) in warning and warning.endswith("falling back to the checkpoint of step 8")
    assert f"resumed from step 8 of {STEPS}" in outcome.output
    assert weights(run) == weights(mae["straight"]) and rows(run) == rows(mae["straight"])


def test_a_kill_in_the_middle_of_a_checkpoint_is_survived(
    mae: dict[str, Any], rootstock: CommandLine, tmp_path: Path
) -> None:
    run = copied(mae, tmp_path)
    assert rootstock("pretrain", mae["path"], f"run.dir={run}", at=16, save=True).code == -9
    assert checkpoints(run) == [8, 12] and (run / "checkpoints" / ".step-00000016").is_dir()
    outcome = rootstock("pretrain", mae["path"], f"run.dir={run}")
    assert (
        outcome.code == 0 and f"resumed from step 12 of {STEPS}" in outcome.output and "WARNING" not in outcome.output
    )
    assert weights(run) == weights(mae["straight"])
    assert not list((run / "checkpoints").glob(".step-*"))


@pytest.mark.parametrize("signal", [2, 15])
def test_asked_to_stop_it_saves_and_resumes(
    signal: int, mae: dict[str, Any], rootstock: CommandLine, tmp_path: Path
) -> None:
    run = copied(mae, tmp_path)
    outcome = rootstock("pretrain", mae["path"], f"run.dir={run}", at=14, signal=signal)
    assert (
        outcome.code == 130 and f"saved at step 15 of {STEPS}" in outcome.output and "Traceback" not in outcome.output
    )
    outcome = rootstock("pretrain", mae["path"], f"run.dir={run}")
    assert outcome.code == 0 and f"resumed from step 15 of {STEPS}" in outcome.output
    assert weights(run) == weights(mae["straight"])


def test_another_config_is_refused_by_key(mae: dict[str, Any], rootstock: CommandLine, tmp_path: Path) -> None:
    run = copied(mae, tmp_path)
    outcome = rootstock("pretrain", mae["path"], f"run.dir={run}", "optim.lr=0.02", "run.log_every=5")
    assert outcome.code == 2
    assert "optim.lr: 0.01 there, 0.02 now" in outcome.output and "another run.dir" in outcome.output
    assert "log_every" not in outcome.output and "Traceback" not in outcome.output
    assert checkpoints(run) == [8, 12]


def test_the_lock_of_a_living_process_is_respected(mae: dict[str, Any], rootstock: CommandLine, tmp_path: Path) -> None:
    run = copied(mae, tmp_path)
    with open(run / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        outcome = rootstock("pretrain", mae["path"], f"run.dir={run}")
    assert outcome.code == 2 and "still going" in outcome.output and "Traceback" not in outcome.output
    assert checkpoints(run) == [8, 12]


def draw(folder: Path, count: int) -> None:
    """Pictures of different sizes, by seed."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(count):
        height, width = random.integers(18, 40, 2)
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{i:03}.png")


def test_rows_and_scans_resume_as_files_do(rootstock: CommandLine, tmp_path: Path) -> None:
    """Parquet, Arrow, a table with groups and DICOM of 12 bits, all in one set; with two workers after the kill."""
    for package in "pydicom", "nibabel":
        pytest.importorskip(package, reason=f"{package} is not installed (the extra `medical`)")
    from rootstock.tests.core.images.sources.test_medical import write as write_dicom

    uris = [make(tmp_path / make.__name__) for make in (ways.make_parquet, ways.make_hf, ways.make_csv)]
    for k in range(12):
        scan = np.random.default_rng(k).integers(0, 4096, (20, 18)).astype(np.uint16)
        write_dicom(tmp_path / "scans" / f"{k}.dcm", scan, 12, PatientID=f"p{k // 2}")
    uris.append(f"dicom:{tmp_path}/scans?group=patient")
    config = pretrain(CONV, SIMCLR, optim("sgd", duration=10))
    config["data"] = {"train": [f"{uri}#[:90%]" for uri in uris], "size": 16, "views": "simclr"}
    path = write(tmp_path, config)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert rootstock("pretrain", path, f"run.dir={straight}").code == 0
    assert rootstock("pretrain", path, f"run.dir={killed}", at=6).code == -9
    outcome = rootstock("pretrain", path, f"run.dir={killed}", "run.workers=2")
    assert outcome.code == 0 and "resumed from step 4 of 10" in outcome.output, outcome.output
    assert weights(killed) == weights(straight) and rows(killed) == rows(straight)


def test_workers_change_nothing_and_changed_data_is_refused(rootstock: CommandLine, tmp_path: Path) -> None:
    draw(tmp_path / "photos", 40)
    config = pretrain(CONV, SIMCLR, optim("sgd"))
    config["data"] = {"train": f"folder:{tmp_path / 'photos'}", "size": 16, "views": "simclr"}
    path = write(tmp_path, config)
    none, two = tmp_path / "none", tmp_path / "two"
    assert rootstock("pretrain", path, f"run.dir={none}").code == 0
    assert rootstock("pretrain", path, f"run.dir={two}", "run.workers=2", at=9).code == -9
    kept = Path(shutil.copytree(two, tmp_path / "kept"))
    # At once: the killed run's workers may live on for a moment, and must not hold its lock.
    outcome = rootstock("pretrain", path, f"run.dir={two}", "run.workers=2")
    assert outcome.code == 0 and f"resumed from step 8 of {STEPS}" in outcome.output, outcome.output
    assert weights(two) == weights(none) and rows(two) == rows(none)

    Image.new("RGB", (20, 20)).save(tmp_path / "photos" / "new.png")
    outcome = rootstock("pretrain", path, f"run.dir={kept}")
    assert (
        outcome.code == 2
        and "data.train changed since" in outcome.output
        and "run.changed_data=accept" in outcome.output
    )
