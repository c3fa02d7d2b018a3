"""The rounds of `rootstock prune RUN` as a pipeline: each prunes the one before, and trains as the run was trained. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ...core.documents import read_mapping
from ...core.errors import UserError
from ...core.files import expanded, path_beside, write_text
from ...core.manifest import DamagedFile, own_digest, read_manifest
from ...core.run.folder import CONFIG, read_result, run_folder

FILE_OF_ROUNDS = "rounds.yaml"
MOST_ROUNDS = 100

# What a recovery does not take over from the run: how that one's network began, what would keep a part of it as it is, and zeros.
ANEW: Mapping[str, Any] = {
    "backbone.name": None,
    "backbone.stem": None,
    "backbone.args": {},
    "backbone.positions": None,
    "backbone.mean": None,
    "backbone.std": None,
    "backbone.freeze": "none",
    "backbone.lora": None,
    "method.keep_head": True,
    "method.head_init": "torch",
    "method.linear_first": False,
    "method.wise_ft": None,
    "method.freeze": False,
    "method.trained": "all",
    "method.prune.weights": None,
    "method.prune.of": None,
}
# What the rounds themselves say, so that no override may.
_SETTLED = (
    "method.prune.macs", "method.prune.of", "method.prune.weights", "method.keep_head", "backbone.weights", "backbone.name",
)  # fmt: skip


class PruningRounds(NamedTuple):
    """run: that is pruned. folder: of the pipeline. text: its file, whose first line tells the run's weights. overrides: of the pipeline.
    total: how many rounds there are."""

    run: Path
    folder: Path
    text: str
    overrides: list[str]
    total: int

    @property
    def file(self) -> Path:
        return self.folder / FILE_OF_ROUNDS

    def write(self) -> str:
        """Write the pipeline's file, and return its path. Raises UserError if other rounds have begun there."""
        if self.file.exists():
            before = self.file.read_text()
            if before == self.text:
                return str(self.file)
            if any(self.folder.glob("seed-*")):  # else that command was refused before its first round
                if before.partition("\n")[2] == self.text.partition("\n")[2]:
                    raise UserError(
                        f"run.dir: {self.folder} holds rounds of another network: {self.run} has been trained anew since; choose another "
                        "folder with run.dir=..., or delete this one"
                    )
                raise UserError(
                    f"run.dir: {self.folder} holds rounds of another pruning ({self.file}); choose another folder with run.dir=..., or "
                    "give the same run, --macs, --rounds and --importance"
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.file, self.text, shared=True)
        return str(self.file)


def plan_rounds(run: Path, macs: float, rounds: int, importance: str, overrides: Sequence[str]) -> PruningRounds:
    """The pipeline of so many rounds. macs: share of the run's multiply-adds that the last one keeps. Goals fall by the same share from
    round to round, and each is a share of the run's own multiply-adds, so that what rounding takes in one round is not taken again.
    overrides: of each round; `run.dir` is the folder of all. Raises UserError."""
    if not 0.0 < macs < 1.0:
        raise UserError(
            f"--macs: expected a share of the multiply-adds that is kept, above 0 and below 1, got {macs:g}; 0.5 is usual"
        )
    if not 1 <= rounds <= MOST_ROUNDS:
        raise UserError(f"--rounds: expected 1 to {MOST_ROUNDS}, got {rounds}; 1 to 5 are usual")
    config, seed = _finetuned(run)
    folder = path_beside(run, "-pruned")
    further = list[str]()
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "run.dir":
            folder = run_folder(value)
        elif key == "seed":
            raise UserError(
                f"seed: rounds have the seed of the run that is pruned, {seed}; leave seed out, or prune a run of another seed"
            )
        elif key in _SETTLED:
            raise UserError(f"{key}: rootstock prune sets it in each round; leave it out")
        elif within := next((settled for settled in _SETTLED if settled.startswith(f"{key}.")), None):
            raise UserError(f"{key}: rootstock prune sets {within} in each round; give other keys of it one by one")
        else:
            further.append(override)
    whole = str(expanded(run).resolve())
    shares = [macs ** (number / rounds) for number in range(1, rounds + 1)]
    stages: dict[str, Any] = {}
    for number in range(1, rounds + 1):
        before = whole if number == 1 else f"@{stage_of_round(number - 1)}"
        prune = {
            "method.prune.macs": shares[number - 1],
            "method.prune.of": whole,
            "method.prune.importance": importance,
        }
        stages[stage_of_round(number)] = {
            "verb": "finetune",
            "config": str(config),
            "set": {**ANEW, "backbone.weights": before, **prune},
        }
    rows = [
        {
            "label": f"Round {number} of {rounds}: at most {shares[number - 1]:.0%} of the multiply-adds",
            "stage": stage_of_round(number),
        }
        for number in range(1, rounds + 1)
    ]
    given = {
        "run": {"dir": str(folder)},
        "seeds": [seed],
        "stages": stages,
        "report": {"title": f"{run.name}, pruned to {macs:.0%} of its multiply-adds", "rows": rows},
    }
    all_of_them = [f"stages.{name}.{override}" for name in stages for override in further]
    text = f"# of the weights {_weights_of(run)}\n{yaml.safe_dump(given, sort_keys=False)}"
    return PruningRounds(run, folder, text, all_of_them, rounds)


def stage_of_round(number: int) -> str:
    """The stage of a round, counted from 1."""
    return f"round_{number}"


def _weights_of(run: Path) -> str:
    """A digest of the classifier's tensors, by its manifest; of none where that cannot be read, which is refused where they are loaded."""
    try:
        known = read_manifest(expanded(run) / "classifier") or {}
    except DamagedFile:
        known = {}
    return own_digest({name: digest for name, digest in known.items() if name.endswith(".safetensors")})


def _finetuned(run: Path) -> tuple[Path, int]:
    """The config of a finished fine-tuning with its weights, and its seed. Raises UserError."""
    root = expanded(run)
    config = root / CONFIG
    if not config.is_file():
        raise UserError(f"{run} is no run's folder; give that of a finished run of finetune, such as runs/NAME")
    about = read_mapping(config)
    if about.get("verb") == "adapt":
        raise UserError(
            f"{run} is an adaptation, and its target has no labels to recover on; fine-tune it on labelled images first (rootstock "
            f"finetune CONFIG backbone.weights={run} method.keep_head=true), and prune that run"
        )
    if about.get("verb") != "finetune":
        raise UserError(
            f"{run} is a run of {about.get('verb')}, which has no classifier; give that of a finished run of finetune"
        )
    if read_result(root, lambda _: None) is None:
        raise UserError(f"{run} is not finished; give its command again, which goes on with it, and prune it then")
    return config.resolve(), int(about.get("seed", 0))
