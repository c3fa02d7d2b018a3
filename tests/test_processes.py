"""Two processes, micro-batches and chunks all train as one process with the whole batch does."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from rootstock.adapt.registry import ADAPT_METHODS
from rootstock.core.errors import UserError
from rootstock.core.ledger import read_ledger
from rootstock.core.method import needs_whole_batch
from rootstock.core.model.backbone import create
from rootstock.core.model.classifier import Classifier
from rootstock.core.model.description import WEIGHTS
from rootstock.core.model.heads import Structure
from rootstock.core.run.rows import LOOKS
from rootstock.launch.verbs import execute
from rootstock.ssl.registry import PRETRAIN_METHODS as PRETRAINING
from rootstock.tests.conftest import Forks
from rootstock.tests.ssl import cases

STEPS, BATCH = 4, 32
DATA = "sklearn:digits?size=16"
# The mean of patches: a new ViT's class token is nearly the same for all images, and BatchNorm in SimCLR's head would make much
# of its rounding.
VIT = {
    "name": "vit_tiny_patch16_224",
    "pooling": "mean",
    "args": {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2},
}
CONV = {"name": "smallconv", "args": {"widths": [4, 4, 6, 8]}, "norm": "batch"}
OPTIM = {"name": "adamw", "lr": 3e-4, "batch_size": BATCH, "duration": STEPS, "warmup": "10%", "weight_decay": 0.05}
# Of adaptation, whose exports are compared too: AdamW makes steps of the rounding of a gradient that is 0, as a bias has below BatchNorm.
PLAIN_OPTIM = {**OPTIM, "name": "sgd", "lr": 0.01}
RUN = {"log_every": 1, "workers": 0, "checkpoint": {"every": "100%"}}
UNLABELLED = {"train": f"{DATA}#[:100]", "size": 16, "views": "digits"}
PAIR = {
    "source": f"{DATA}#[:80]",
    "target": f"{DATA}#[80:180]",
    "test": f"{DATA}#[180:200]",
    "size": 16,
    "views": "digits",
}
LABELLED = {"train": f"{DATA}#[:100]", "test": f"{DATA}#[180:200]", "size": 16, "views": "randaugment"}
METHODS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "simclr": ("pretrain", UNLABELLED, {"name": "simclr", "projection": [32, 16], "temperature": 0.5}),
    "mae": ("pretrain", UNLABELLED, {"name": "mae", "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}),
    "dann": ("adapt", PAIR, {"name": "dann", "hidden": 16}),
    "cdan": ("adapt", PAIR, {"name": "cdan", "hidden": 16, "bottleneck": 8, "discriminator_norm": True}),
    "mic": ("adapt", PAIR, {"name": "mcc", "mic": {}}),
    "frozen": ("adapt", {**PAIR, "views": "none"}, {"name": "cdan", "hidden": 16, "bottleneck": 8}),
    "last_block": ("adapt", {**PAIR, "views": "none"}, {"name": "cdan", "hidden": 16, "bottleneck": 8}),
    "mixed": (
        "finetune",
        LABELLED,
        {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1, "teacher": {"weights": cases.teacher_of_digits()}},
    ),
}
# Every other adaptation method with its default keys. One that keeps the head of a trained run gets such a run.
METHODS |= {
    name: ("adapt", PAIR, {"name": name})
    for name, method in ADAPT_METHODS.items()
    if name not in METHODS and not method.online
}
ONLINE = sorted(name for name, method in ADAPT_METHODS.items() if method.online)
METHODS |= {name: ("adapt", {**PAIR, "views": "none"}, {"name": name}) for name in ONLINE}
# What the adaptation runs say besides training and test is the subject of one of them alone.
METHODS |= {"examined": ("adapt", PAIR, {"name": "mcc"}), "with statistics": ("adapt", PAIR, {"name": "source_only"})}
BRIEF = {"evaluate": None, "label_shift": {"resamples": 0}}
EXAMINED = {
    "evaluate": {"every": "50%", "held_out": 0.25},
    "label_shift": {"resample": "pseudo-labels", "correct": "mlls", "resamples": 0},
}
ONCE = 4  # steps of one pass over the target
FEW = 4  # steps of the other methods
EPSILON = 1e-6  # some roundings of terms of size 1: a loss that is their difference, as SimSiam's, may be near 0
# Runs of two processes that share parameters and optimizer state (core/train/fsdp.py): the method whose losses they must have, and
# their overrides. The last goes on from a checkpoint of one process.
HALFWAY = STEPS // 2
SLICED: dict[str, tuple[str, list[str]]] = {
    "simclr in chunks": ("simclr", ["run.sharding=fsdp2", f"run.chunk={BATCH // 4}"]),
    "mae accumulated": ("mae", ["run.sharding=zero2", "run.accumulate=4"]),
    "mae stopped": ("mae", ["run.sharding=fsdp2", f"run.checkpoint.every={HALFWAY}"]),
    "mixed recomputed": ("mixed", ["run.sharding=fsdp2", "run.activation_checkpointing=true"]),
    "dinov2": ("dinov2", ["run.sharding=fsdp2"]),
    "byol by LARS": ("byol", ["run.sharding=fsdp2"]),
    "simsiam by SGD": ("simsiam", ["run.sharding=fsdp2"]),
    "mae resumed": ("mae", ["run.sharding=fsdp2"]),
}

# In two processes without sharding: by `make test` one method for each thing that the loop does, and those of the runs above; all others by
# `make test-all`. (tests/ssl/test_exactness.py and tests/adapt/test_one_update.py have every method in two processes, with a sharper
# bound, but not through whole commands.) Those of LATER do in the loop what another adaptation does.
LATER = ("aad", "adamatch", "afn", "bnm", "dan", "deepcoral", "deepjdot", "eata", "jan", "mcc", "mdd")
USUAL = sorted({*METHODS, *(name for name, _ in SLICED.values())} - {*LATER})
FURTHER = sorted({*PRETRAINING, *LATER} - {*USUAL})

# The command line, several times in one process of a group, which `main` would end.
COMMANDS = """
import json, sys
from rootstock.launch.cli import app

for argv in json.loads(sys.argv[1]):
    sys.argv = ["rootstock", *argv]
    try:
        app()
    except SystemExit as end:
        if end.code:
            raise
"""

# An adaptation that ends after it wrote its look down and read the labels, and before it wrote any score.
ENDED = """
import os, sys
from rootstock.adapt import outcome
from rootstock.core.distributed import rank
from rootstock.core.evaluate.scores import Scored
from rootstock.launch.cli import app

straight = outcome.open_sealed

def ending(*arguments, **options):
    if rank():
        os._exit(9)
    Scored.save = lambda *_: os._exit(9)
    return straight(*arguments, **options)

outcome.open_sealed = ending
sys.argv = ["rootstock", *sys.argv[1:]]
app()
"""


def verb(name: str) -> str:
    return METHODS[name][0] if name in METHODS else "pretrain"


def config(folder: Path, name: str) -> str:
    if name in METHODS:
        _, data, method = METHODS[name]
        special = {
            "frozen": {**VIT, "freeze": "all"},
            "last_block": {**VIT, "freeze": "stage1"},
            "with statistics": CONV,
        }
        backbone = special.get(name, VIT)
        optim = PLAIN_OPTIM if verb(name) == "adapt" else OPTIM
        optim = {**optim, "duration": "1ep"} if name in ONLINE else optim
        if name in ADAPT_METHODS and ADAPT_METHODS[name].keeps_head:
            start = trained(folder, "with statistics" if name == "adabn" else "source_only")
            backbone = {"weights": str(start), "norm": "batch"}
        written = {"data": data, "backbone": backbone, "method": method, "optim": optim}
        if verb(name) == "adapt":
            written |= EXAMINED if name == "examined" else BRIEF
    else:  # with the views and kind of step of the method's config
        written = cases.config(name, "vit", f"{DATA}#[:100]", 0.1, lr=3e-4, batch_size=BATCH, duration=FEW)
    if verb(name) == "pretrain":  # which would take longer to watch than to train
        written["evaluate"] = {"watch": None}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**written, "run": RUN}))
    return str(path)


def trained(folder: Path, name: str) -> Path:
    """A run whose classifier a method can start from; AdaBN's has BatchNorm."""
    run = folder / name
    if not run.exists():
        train(folder, name, run)
    return run


def losses(name: str, run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in lines if "loss" in row]  # the others are evaluations
    assert [row["step"] for row in rows] == list(
        range(1, (ONCE if name in ONLINE else STEPS if name in METHODS else FEW) + 1)
    )
    return [row["loss"] for row in rows]


def train(folder: Path, name: str, run: Path, *overrides: str) -> list[float]:
    execute(verb(name), config(folder, name), [f"run.dir={run}", *overrides], quiet=True)
    return losses(name, run)


Losses = dict[str, list[float]]


class Alone(Losses):
    """The losses of one process with the whole batch at once, by method, each trained when it is asked for first.

    folder: of the configs, and of the runs by the method's name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __missing__(self, name: str) -> list[float]:
        run = self.folder / name  # it may be there already, for a method that starts from it
        self[name] = losses(name, run) if run.exists() else train(self.folder, name, run)
        return self[name]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    return Alone(tmp_path_factory.mktemp("alone"))


def train_in_two(forks: Forks, alone: Alone, folder: Path, runs: dict[str, tuple[str, list[str]]]) -> None:
    """Train `runs`, {name of the run: (method, overrides)}, one after another in the same two processes."""
    script = folder / "commands.py"
    script.write_text(COMMANDS)
    jobs = [
        [verb(name), config(alone.folder, name), f"run.dir={folder / run}", *more] for run, (name, more) in runs.items()
    ]
    forks.group(script, json.dumps(jobs))


@pytest.fixture(scope="module")
def pair(alone: Alone, tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    """A folder with the usual runs of two processes, by name."""
    folder = tmp_path_factory.mktemp("pair")
    train(folder, "mae", folder / "mae resumed", f"run.checkpoint.every={HALFWAY}")
    stopped_halfway(folder / "mae resumed")
    train_in_two(forks, alone, folder, {name: (name, []) for name in USUAL} | SLICED)
    return folder


@pytest.fixture(scope="module")
def further(alone: Alone, tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    """The same, of the methods that only `make test-all` trains in two processes."""
    folder = tmp_path_factory.mktemp("further")
    train_in_two(forks, alone, folder, {name: (name, []) for name in FURTHER})
    return folder


def stopped_halfway(run: Path) -> None:
    """Make a finished run one that was stopped after its first checkpoint."""
    for name in ("result.json", "backbone", f"checkpoints/step-{STEPS:08d}"):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{HALFWAY:08d}"]


def check_pair(folder: Path, names: list[str], alone: Alone) -> None:
    for name in names:
        assert json.loads((folder / name / "run.json").read_text())["processes"] == 2
        assert losses(name, folder / name) == pytest.approx(alone[name], rel=1e-5, abs=EPSILON), name


def test_two_processes_train_as_one(alone: Alone, pair: Path) -> None:
    check_pair(pair, USUAL, alone)


def exported(run: Path) -> dict[str, torch.Tensor]:
    """Every tensor that an adaptation leaves behind for others, by its file: the classifier, and the logits of its candidates."""
    files = [
        *(run / "classifier").glob("*.safetensors"),
        run / "candidates.safetensors",
        *(run / "candidates").glob("*"),
    ]
    return {
        f"{path.relative_to(run)}/{name}": tensor
        for path in sorted(files)
        if path.suffix == ".safetensors"
        for name, tensor in load_file(path).items()
    }


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in LATER else [])
        for name in sorted(METHODS)
        if METHODS[name][0] == "adapt"
    ],
)
def test_two_processes_leave_the_classifier_and_the_candidates_of_one(
    name: str, alone: Alone, request: pytest.FixtureRequest
) -> None:
    """What follows the last step too: statistics of the whole target, prototypes of the whole source, predictions of a pass."""
    assert alone[name]
    folder: Path = request.getfixturevalue("further" if name in LATER else "pair")
    ours, right = exported(folder / name), exported(alone.folder / name)
    files = {key.rpartition("/")[0].partition("/")[0] for key in right}
    assert {"classifier", "candidates.safetensors"} <= files and (name == "examined") == ("candidates" in files)
    assert ours.keys() == right.keys()
    for key, expected in right.items():
        # Logits are stored in float16.
        bound = 2e-3 if expected.dtype == torch.float16 else 1e-4
        assert ours[key].dtype == expected.dtype
        torch.testing.assert_close(
            ours[key], expected, rtol=bound, atol=bound, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.slow
def test_two_processes_train_every_other_method_as_one(alone: Alone, further: Path) -> None:
    check_pair(further, FURTHER, alone)


@pytest.mark.parametrize("run", SLICED)
def test_slices_train_as_one(run: str, alone: Alone, pair: Path) -> None:
    name, _ = SLICED[run]
    assert losses(name, pair / run) == pytest.approx(alone[name], rel=1e-5, abs=EPSILON)


def test_what_was_trained_in_slices_is_whole_for_others(alone: Alone, pair: Path) -> None:
    """Its export is that of one process, and its checkpoint goes on in one."""
    weights, expected = (load_file(pair / run / "backbone" / WEIGHTS) for run in ("mae accumulated", "mae"))
    assert {name: tensor.shape for name, tensor in weights.items()} == {k: v.shape for k, v in expected.items()}
    torch.testing.assert_close(weights, expected, rtol=0.0, atol=1e-4)
    stopped_halfway(pair / "mae stopped")
    assert train(pair, "mae", pair / "mae stopped") == pytest.approx(alone["mae"], rel=1e-5, abs=EPSILON)


def division(name: str) -> str:
    """The key by which an adaptation method's batch is divided; empty where it takes none."""
    kind = ADAPT_METHODS[name]
    built = kind(Classifier(create(16, **VIT), ["a", "b"], structure=Structure(extra=kind.extra_outputs)), None)
    if needs_whole_batch(built):
        return f"run.chunk={BATCH // 4}" if built.takes_chunk else ""
    return "run.accumulate=4"


@pytest.mark.parametrize(
    ("name", "override"),
    [
        ("mae", "run.accumulate=4"),
        ("mixed", "run.accumulate=4"),
        ("simclr", f"run.chunk={BATCH // 4}"),
        ("dann", f"run.chunk={BATCH // 4}"),
        *((name, key) for name in sorted(ADAPT_METHODS) if name != "adabn" and (key := division(name))),
    ],
)
def test_cutting_the_batch_changes_nothing(name: str, override: str, alone: Alone, tmp_path: Path) -> None:
    assert train(alone.folder, name, tmp_path / "run", override) == pytest.approx(alone[name], rel=1e-5, abs=EPSILON)


def test_simclr_refuses_accumulation_and_names_chunks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.accumulate: 4 .* run\.chunk"):
        train(tmp_path, "simclr", tmp_path / "run", "run.accumulate=4")


@pytest.mark.parametrize("processes", [2, 1], ids=["two, then one", "one, then two"])
@pytest.mark.parametrize("name", ["dann", "tent"])
def test_any_number_of_processes_looks_once(
    name: str, processes: int, tmp_path: Path, forks: Forks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run ends between its look and its scores, and goes on with another number of processes; with corrected and online candidates."""
    (tmp_path / "sets").mkdir()
    path, run = config(tmp_path / "sets", name), tmp_path / "run"
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    argv = ["adapt", path, f"run.dir={run}", "evaluate.images=50", "evaluate.held_out=0.25", "label_shift.correct=mlls"]
    # tent has no state before the last one; it predicts the images of the target while it meets them.
    argv += [f"data.test={PAIR['target']}"] if name == "tent" else ["evaluate.every=2"]
    (script := tmp_path / "ended.py").write_text(ENDED)
    (whole := tmp_path / "whole.py").write_text(COMMANDS)
    ended = forks(script, [argv] * processes, forks.ranks(processes) if processes > 1 else ())
    assert [one.code for one in ended] == [9] * processes, ended[0].said[-3000:]
    assert (run / LOOKS).exists() and not (run / "result.json").exists()
    before = read_ledger(run / LOOKS)
    if processes > 1:
        execute("adapt", path, argv[2:], quiet=True)
    else:
        forks.group(whole, json.dumps([argv]))
    history = json.loads((run / "run.json").read_text())["history"]
    assert [part["processes"] for part in history] == [processes, 3 - processes]
    (place,) = (cache / "rootstock" / "looks").glob("*.json")
    after, shared = read_ledger(run / LOOKS), read_ledger(place)
    assert after is not None and after == before and len(after.entries) == 1
    assert shared is not None and len(shared.entries) == 1
    kept = {"classifier", "corrected", "online" if name == "tent" else "step 2"}
    assert after.entries[0]["candidates"].keys() == kept
    assert json.loads((run / "result.json").read_text())["looks"]["test"]["n"] == 1
