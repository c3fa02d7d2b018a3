"""Two steps of every adaptation method, on one process or in a group of them: the results that test_one_update.py compares.

As a program in a group of processes, `exact_steps.py OUT DTYPE`: each takes its share of the batch, and rank 0 writes the results.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from rootstock.adapt.parts.masked_consistency import MaskedConsistency
from rootstock.adapt.parts.online import OnlinePredictions
from rootstock.adapt.parts.resampling import Resampling
from rootstock.adapt.registry import ADAPT_METHODS
from rootstock.core.distributed import rank
from rootstock.core.method import Domains, Overview
from rootstock.core.model import norm
from rootstock.core.model.classifier import Classifier
from rootstock.core.model.domains import BatchNorms
from rootstock.core.model.heads import Structure
from rootstock.launch.doctor.equality import CLASSES, domain_pair
from rootstock.launch.doctor.trial_steps import backbone, run_steps, share

N, GROUP, STEPS = 16, 4, 2
# Large weights, so that an error of the transfer loss shows beside the cross-entropy.
KEYS: dict[str, dict[str, Any]] = {
    "mdd": {"hidden": 8, "reversal": 1.0},
    "dann": {"hidden": 8},
    "cdan": {"hidden": 8},
    "deepjdot": {"features": 1.0, "labels": 1.0},
    "deepcoral": {"trade_off": 100.0},
    "afn": {"trade_off": 1.0},
    "aad": {"neighbours": 3},
    "fixmatch": {"threshold": 0.35},
    "adamatch": {"momentum": 0.9},
    # So that some images are chosen in both steps, and not all of them.
    "eata": {"margin": 0.99, "similar": 0.999},
}


class Setting(NamedTuple):
    """What a config adds to a method: structure of the classifier, BatchNorm of two domains, class weights of the source, MIC."""

    structure: Structure = Structure()
    batchnorm: BatchNorms = "joint"
    weights: tuple[float, ...] | None = None
    mic: bool = False


PLAIN = Setting()
# By the name of the setting, with the methods that are tried in it.
SETTINGS: dict[str, tuple[Setting, tuple[str, ...]]] = {
    "resampled": (
        Setting(weights=(0.5, 1.0, 1.5)),
        tuple(name for name, kind in ADAPT_METHODS.items() if "target" in kind.resamples),
    ),
    "resampled mic": (Setting(weights=(0.5, 1.0, 1.5), mic=True), ("mcc",)),
    "apart": (Setting(batchnorm="apart"), ("mcc", "cdan")),
    "own": (Setting(batchnorm="own"), ("dann", "jan")),
    "weightnorm": (Setting(Structure(bottleneck=5, head="weightnorm")), ("cdan", "mdd")),
    "cosine": (Setting(Structure(bottleneck=5, head="cosine")), ("mcc", "afn")),
    "mic": (Setting(mic=True), ("mcc", "source_only")),
}


class Trial(NamedTuple):
    """One method, in a setting if any, on one kind of BatchNorm: "batch", or "group" of GROUP images."""

    name: str
    norm: str
    dtype: torch.dtype
    setting: str = ""

    @property
    def key(self) -> str:
        words = [self.name, *([self.setting] if self.setting else []), self.norm]
        return "/".join([*words, str(self.dtype).removeprefix("torch.")])

    @property
    def in_chunks(self) -> bool:
        """Whether chunks leave its gradient as it is: not where BatchNorm sees the whole batch."""
        kind = ADAPT_METHODS[self.name]
        usual = self.norm == "group" and self.dtype == torch.float64 and not self.setting
        return kind.takes_chunk and kind.couples_samples and usual


DTYPES = (torch.float64, torch.float32)
# AdaBN trains as source_only does: what it does after the training is compared in tests/test_processes.py.
TRIALS = [Trial(name, mode, dtype) for name in ADAPT_METHODS for mode in ("batch", "group") for dtype in DTYPES]
TRIALS += [
    Trial(name, "batch", dtype, setting)
    for setting, (_, names) in SETTINGS.items()
    for name in names
    for dtype in DTYPES
]


def run(trial: Trial, chunk: int | None = None) -> dict[str, Tensor]:
    """Losses, the gradients of both steps, and all weights and buffers after them."""
    torch.manual_seed(0)
    setting = SETTINGS[trial.setting][0] if trial.setting else PLAIN
    structure = setting.structure._replace(extra=ADAPT_METHODS[trial.name].extra_outputs)
    names = [str(k) for k in range(CLASSES)]
    classifier = Classifier(backbone("conv"), names, structure=structure, batchnorm=setting.batchnorm)
    made: Any = ADAPT_METHODS[trial.name](classifier, chunk, **KEYS.get(trial.name, {}))
    if setting.weights is not None:
        assert made.resamples
        made.resampling = Resampling(torch.tensor(setting.weights))
    made.make_room(N)
    if setting.mic:
        made = MaskedConsistency(made, chunk)
    made = made.to(trial.dtype)
    if made.refresh_every is not None:
        generator = torch.Generator().manual_seed(0)
        features, logits = (
            torch.randn(N, width, generator=generator, dtype=torch.float64).to(trial.dtype)
            for width in (classifier.feature_dim, CLASSES)
        )
        made.refresh(Overview(torch.arange(N), features, logits), 0.0)
    if made.online:
        made.predictions = OnlinePredictions(N * STEPS, CLASSES).to(trial.dtype)
        made.begin(lambda count, size: [domain_pair(made, N, 0, trial.dtype).target.images])
    made.train()
    norm.convert_batch_norms(made, "group" if trial.norm == "group" else "batch", GROUP, made.rows_per_position)
    batches = [share(batch_of(made, step, trial.dtype)) for step in range(STEPS)]
    return run_steps(made, batches)


def batch_of(method: Any, step: int, dtype: torch.dtype) -> Domains:
    """A pair of domains; for an online method the target alone, with the numbers of its images."""
    both = domain_pair(method, N, step + 1, dtype)
    if not method.online:
        return both
    target = both.target._replace(index=torch.arange(N) + step * N)
    return Domains((), (target,))


def main(out: str, dtype: str) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    results = {trial.key: run(trial) for trial in TRIALS if trial.key.endswith(dtype)}
    if rank() == 0:
        flat = {f"{key}|{name}": value for key, found in results.items() for name, value in found.items()}
        save_file({name: value.contiguous() for name, value in flat.items()}, out)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
