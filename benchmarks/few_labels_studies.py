"""The comparisons of benchmarks/few_labels.py: which configs make them, and what their stages are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

SIDES = {"simclr": "SimCLR, fine-tuned", "scratch": "from scratch"}


class Added(NamedTuple):
    """A row of SimCLR that came after the first results. label: in the page. pretraining, sweep: configs."""

    label: str
    pretraining: str
    sweep: str


class Stage(NamedTuple):
    """What a stage of the pipeline stands on. label: in the page. pretraining: config, None from scratch. sweep: config that chose keys."""

    label: str
    pretraining: str | None
    sweep: str


class Study(NamedTuple):
    """One comparison. pretraining: config. sweeps: by (side, per cent of labels). pipeline: of the five subsets. curve: of more labels.

    added: rows that came after the first results, by stage of the pipeline.
    """

    title: str
    pretraining: str
    sweeps: Mapping[tuple[str, str], str]
    pipeline: str
    curve: str
    added: Mapping[str, Added] = {}

    @property
    def stages(self) -> dict[str, Stage]:
        """All compared stages of the pipeline by name, those that were added last."""
        first = {
            stage_name(side, part): Stage(SIDES[side], self.pretraining if side == "simclr" else None, sweep)
            for (side, part), sweep in self.sweeps.items()
        }
        return first | {
            name: Stage(f"SimCLR, {one.label}", one.pretraining, one.sweep) for name, one in self.added.items()
        }


def _study(
    name: str, title: str, pretraining: str, sweeps: Mapping[tuple[str, str], str], added: Mapping[str, Added] = {}
) -> Study:
    found = {key: f"configs/sweep/few_labels_{name}_{end}.yaml" for key, end in sweeps.items()}
    base = f"configs/few_labels_{name}"
    return Study(title, f"configs/pretrain/{pretraining}.yaml", found, f"{base}.yaml", f"{base}_curve.yaml", added)


_RETUNED = "configs/sweep/few_labels_cifar10_retuned.yaml"


STUDIES = {
    "cifar10": _study(
        "cifar10",
        "Few labels of CIFAR-10 (JPEG)",
        "cifar10_all",
        {(side, part): f"{side}_{part}" for part in ("1", "10") for side in SIDES},
        {
            "retuned_10": Added("35 epochs, tuned again", "configs/pretrain/cifar10_all.yaml", _RETUNED),
            "longer_10": Added("80 epochs, the same keys", "configs/pretrain/cifar10_80ep.yaml", _RETUNED),
        },
    ),
    "imagenette": _study(
        "imagenette", "Few labels of Imagenette at 96 px", "imagenette", {(side, "10"): side for side in SIDES}
    ),
}


def stage_name(side: str, part: str) -> str:
    """A stage of the pipeline, such as simclr_10."""
    return f"{side}_{part}"


def part_of(stage: str) -> str:
    """The per cent of the labels in the name of a stage, such as 10."""
    return stage.partition("_")[2]
