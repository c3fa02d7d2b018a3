"""`rootstock launch --dry-run`: the plan is what a run then does, nothing is written, and what cannot work is refused in one sentence."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from rootstock.core.distributed import planned_processes, rank, world
from rootstock.core.images.open import open_images
from rootstock.launch.cluster import dryrun, memory
from rootstock.launch.cluster.dryrun import bytes_in_words
from rootstock.launch.cluster.memory import MEASURED
from rootstock.launch.verbs import resolve

SMALLCONV = {"name": "smallconv"}
OPTIM = {"name": "adamw", "lr": 1e-3, "batch_size": 16, "duration": "2ep", "warmup": "10%", "lr_scaling": "linear"}
DIGITS = "sklearn:digits?size=16"
CONFIGS: dict[str, dict[str, Any]] = {
    "pretrain": {
        "data": {"train": f"{DIGITS}#[:96]", "size": 16, "views": "digits"},
        "method": {"name": "simclr", "projection": [16, 8]},
    },
    "finetune": {"data": {"train": f"{DIGITS}#[:96]", "test": f"{DIGITS}#[96:120]", "size": 16, "views": "digits"}},
    "adapt": {
        "data": {"source": f"{DIGITS}#[:96]", "target": f"{DIGITS}#[96:192]", "size": 16, "views": "digits"},
        "method": {"name": "dann", "hidden": 8},
    },
    "probe": {
        "data": {"train": f"{DIGITS}#[:96]", "test": f"{DIGITS}#[96:120]", "size": 16},
        "evaluate": {"knn": {"k": 5}},
    },
}
Plan = Callable[..., dict[str, Any]]


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], str]:
    def written(verb: str) -> str:
        path = tmp_path / f"{verb}.yaml"
        optim = {} if verb == "probe" else {"optim": OPTIM}
        run = {"dir": str(tmp_path / "run"), "workers": 0}
        path.write_text(yaml.safe_dump({**CONFIGS[verb], **optim, "backbone": SMALLCONV, "run": run}))
        return str(path)

    return written


@pytest.fixture
def ask(config: Callable[[str], str], rootstock: Callable[..., Any]) -> Callable[..., Any]:
    def asked(verb: str, *words: str, nproc: int = 4) -> Any:
        return rootstock("launch", "--dry-run", "--json", "--nproc", str(nproc), verb, config(verb), *words)

    return asked


@pytest.mark.parametrize("verb", CONFIGS)
def test_the_plan_is_what_the_run_does(
    verb: str, ask: Callable[..., Any], config: Callable[[str], str], rootstock: Callable[..., Any], tmp_path: Path
) -> None:
    done = ask(verb)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run").exists()
    said = json.loads(done.stdout)
    assert said["processes"] == "4 on 1 node, on the CPU (gloo)"
    run = rootstock(verb, config(verb))
    assert run.returncode == 0, run.stderr
    there = {path.name + "/" * path.is_dir() for path in (tmp_path / "run").iterdir()}
    announced = set(said["will be written"].partition(": ")[2].split())
    assert there - {".lock", "report.html", "logs/"} <= announced | {
        "map.json",
        "map.webp",
        "predictions/",
        "confusion/",
    }, there
    if verb == "probe":
        return
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert said["steps"] == f"{result['steps']} of {result['steps'] // 2} an epoch, 2 epochs; warm-up 1"
    assert said["rate"] == "peak rate 6.25e-05 (0.001 x 16/256), adamw, cosine"
    assert said["batch"].endswith("4 processes x 1 micro-batches x 4") and ("of each domain" in said["batch"]) == (
        verb == "adapt"
    )
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    size = sum(path.stat().st_size for path in newest.iterdir())
    planned_size = next(part for part in said["checkpoints"].split(", ") if " of " in part).partition(" of ")[2]
    number, unit = planned_size.split()
    assert float(number) * {"kB": 1e3, "MB": 1e6}[unit] == pytest.approx(
        size, rel=0.35
    )  # the files have headers and names


def test_activations_grow_alike_with_each_image(config: Callable[[str], str]) -> None:
    resolved = resolve("pretrain", config("pretrain"))
    small, large, further = (memory._activations(dryrun._of_size("pretrain", resolved, n)) for n in (*MEASURED, 12))
    slope = (large - small) / (MEASURED[1] - MEASURED[0])
    assert further == pytest.approx(small + slope * (12 - MEASURED[0]), rel=0.05)
    # A convolution's output is kept in float32 for at least its own backward: two views of 16 channels of 8 x 8 places.
    assert slope > 2 * 16 * 8 * 8 * 4


def test_what_saves_memory_is_seen(config: Callable[[str], str]) -> None:
    """A ViT with so many blocks that they hold nearly all parameters, on 4 processes."""
    args = "backbone.args={patch_size: 4, embed_dim: 32, depth: 12, num_heads: 2}"
    vit = ["backbone.name=vit_tiny_patch16_224", args]

    def needed(*words: str) -> memory.Memory:
        resolved = resolve("pretrain", config("pretrain"), [*vit, *words])
        with planned_processes(4):
            _, training = dryrun._built("pretrain", resolved)
        assert training is not None
        of_size = partial(dryrun._of_size, "pretrain", resolved)
        return memory.expected_memory(training, of_size, 4, resolved["run"]["sharding"], 4)

    whole, again = needed(), needed("run.activation_checkpointing=true")
    assert again._replace(activations=0) == whole._replace(activations=0)
    tokens = 2 * 4 * 17 * 32 * 4  # bytes of a block's input: two views of four images
    assert 13 * tokens < again.activations < 0.4 * whole.activations
    zero2, fsdp2 = needed("run.sharding=zero2"), needed("run.sharding=fsdp2")
    assert zero2.saved == fsdp2.saved == whole.saved == whole.weights + whole.optimizer
    assert zero2.optimizer == fsdp2.optimizer == whole.optimizer // 4
    assert zero2.gradients == fsdp2.gradients < 0.45 * whole.gradients
    # Evaluated whole: beside the slices of weights and of two moments for each.
    parameters = (fsdp2.evaluation - zero2.evaluation, whole.evaluation, fsdp2.evaluation / whole.weights)
    assert parameters[:2] == (0, 0) and parameters[2] == pytest.approx(1 + 0.25 + 2 * 0.25, rel=0.02)
    assert fsdp2.weights < 0.55 * whole.weights < whole.weights < zero2.weights < 1.3 * whole.weights


def test_parameters_are_counted_with_and_without_those_that_stand_still(ask: Callable[..., Any]) -> None:
    whole = json.loads(ask("finetune").stdout)["parameters"]
    frozen = json.loads(ask("finetune", "method.freeze=true").stdout)["parameters"]
    total, trained = whole.removesuffix(" are trained").split(", of which ")
    assert total == trained and frozen == f"{total}, of which {128 * 10 + 10:,} are trained"


@pytest.mark.parametrize(
    ("verb", "words", "sentence"),
    [
        (
            "pretrain",
            ["optim.batch_size=18"],
            "optim.batch_size: 18 does not divide into 4 processes x 1 micro-batches",
        ),
        ("finetune", ["run.accumulate=3"], "optim.batch_size: 16 does not divide into 4 processes x 3"),
        ("pretrain", ["backbone.norm=group:8"], "backbone.norm: groups of 8 do not divide the 4 images"),
        ("pretrain", ["run.accumulate=2"], "run.accumulate: 2 would change this method"),
        ("pretrain", ["run.chunk=2"], "run.chunk: divides the batch, so BatchNorm cannot see the whole of it"),
        ("pretrain", ["data.train=folder:nowhere"], "nowhere"),
        ("pretrain", ["optim.lrr=1"], "optim.lrr"),
        ("pretrain", ["run.accumulate=0"], "run.accumulate: expected at least 1, got 0"),
        ("pretrain", ["run.checkpoint.keep=1"], "run.checkpoint.keep: expected at least 2"),
    ],
)
def test_what_cannot_work_is_refused(
    ask: Callable[..., Any], verb: str, words: list[str], sentence: str, tmp_path: Path
) -> None:
    done = ask(verb, *words)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") <= 2 and sentence in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_disk_that_is_too_small_is_refused(ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2000))
    done = ask("pretrain")
    assert done.returncode == 2 and "has 2 kB free, but 3 checkpoints of" in done.stderr


def test_a_folder_of_another_config_is_refused_and_of_this_one_goes_on(
    ask: Callable[..., Any], config: Callable[[str], str], rootstock: Callable[..., Any], tmp_path: Path
) -> None:
    assert rootstock("probe", config("probe")).returncode == 0
    done = ask("probe", "evaluate.knn.k=7")
    assert done.returncode == 2 and "holds a run of another config (evaluate.knn.k: 5 there, 7 now)" in done.stderr
    assert ask("probe").returncode == 0


def test_more_processes_than_gpus_are_refused(
    ask: Callable[..., Any],
    config: Callable[[str], str],
    rootstock: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    done = rootstock("launch", "--nproc", "4", "pretrain", config("pretrain"))
    assert done.returncode == 2 and "--nproc 4: this node has 2 GPUs, one for each process" in done.stderr
    done = ask("pretrain")
    assert done.returncode == 2 and "--nproc 4: this node has 2 GPUs, one for each process" in done.stderr
    assert json.loads(ask("pretrain", nproc=2).stdout)["processes"] == "2 on 1 node, a GPU each (NCCL)"
    assert ask("pretrain", "run.device=cpu").returncode == 0


@pytest.mark.parametrize(("verb", "key"), [("finetune", "train"), ("probe", "train"), ("adapt", "source")])
def test_slices_by_class_are_planned_where_labels_are_used(ask: Callable[..., Any], verb: str, key: str) -> None:
    """The plan opens a set as the run does: with its labels where these are used, and without them elsewhere."""
    half = f"{DIGITS}#[:96]#[:50%,stratify]"
    done = ask(verb, f"data.{key}={half}", nproc=1)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[f"data.{key}"].split()[0] == str(len(open_images(half)))


@pytest.mark.parametrize(("verb", "key"), [("pretrain", "train"), ("adapt", "target")])
def test_slices_by_class_are_refused_where_labels_are_unknown(ask: Callable[..., Any], verb: str, key: str) -> None:
    done = ask(verb, f"data.{key}={DIGITS}#[96:192]#[:50%,stratify]", nproc=1)
    assert done.returncode == 2 and "stratify reads labels, but these pictures are used as unlabelled" in done.stderr


def test_the_table_says_the_same(config: Callable[[str], str], rootstock: Callable[..., Any]) -> None:
    done = rootstock("launch", "--dry-run", "--nproc", "2", "pretrain", config("pretrain"))
    assert done.returncode == 0 and "16 in all = 2 processes x 1 micro-batches x 8" in done.stdout
    done = rootstock("launch", "--json", "--nproc", "2", "pretrain", config("pretrain"))
    assert done.returncode == 2 and "--json is for --dry-run" in done.stderr


def test_only_verbs_are_planned(config: Callable[[str], str], rootstock: Callable[..., Any]) -> None:
    done = rootstock("launch", "--dry-run", "--nproc", "2", "demo", config("pretrain"))
    assert done.returncode == 2 and "launch demo: expected one of pretrain" in done.stderr


def test_planning_ends_with_its_block() -> None:
    with planned_processes(8):
        assert (world(), rank()) == (8, 0)
    assert (world(), rank()) == (1, 0)


@pytest.mark.parametrize(
    ("size", "said"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e9, "2.5 GB"), (4e12, "4 TB")]
)
def test_bytes_are_spoken(size: float, said: str) -> None:
    assert bytes_in_words(size) == said
