"""Do N processes compute what one does? A few methods, each a few steps together and once more by every process alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...adapt.dann import DANN
from ...core.distributed import all_reduce_min, alone, gather, own_rows, world
from ...core.draws import Draws
from ...core.method import Labelled, Pair, Step, Unlabelled
from ...core.model import norm
from ...core.model.classifier import Classifier
from ...ssl.dino import DINO
from ...ssl.mae import MAE
from ...ssl.simclr import SimCLR
from .findings import Finding
from .trial_steps import SIZE, backbone, distance, run_steps, share, views

IMAGES, STEPS, WIDTH, CLASSES = 4, 2, 6, 3  # images: of each process
BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-4}
PARTS = ("loss", "grad", "state")


class Coupled(nn.Module):
    """A loss in which each row meets all others: a gather with gradient, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, rows: Tensor, progress: float) -> Step:
        local = self.layer(rows)
        everyone = gather(local)
        similarity = everyone @ everyone.T / everyone.norm(dim=1)
        return Step(similarity.logsumexp(1)[own_rows(len(rows))].mean(), {})


class Normalised(nn.Module):
    """A layer below BatchNorm, whose statistics are those of all rows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)

    def forward(self, rows: Tensor, progress: float) -> Step:
        return Step((self.norm(self.layer(rows)) * rows).sigmoid().mean(), {})


def random_rows(method: Any, n: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def domain_pair(method: Any, n: int, seed: int, dtype: torch.dtype) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    source, target = torch.randn(2, n, 3, SIZE, SIZE, generator=generator, dtype=torch.float64).to(dtype)
    labels, draws = torch.randint(CLASSES, (n,), generator=generator), Draws(seed, torch.arange(n))
    return Pair(Labelled(source, labels, draws), Unlabelled(target + 1, draws))


class Case(NamedTuple):
    """One computation. batch: of a method, how many images, by which seed, in which type."""

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[Any, int, int, torch.dtype], Any]


def dino() -> nn.Module:
    return DINO(backbone("conv"), prototypes=10, hidden=12, bottleneck=6, head_norm=True, freeze_last_layer=0.0)


def dann() -> nn.Module:
    return DANN(Classifier(backbone("conv"), [str(k) for k in range(CLASSES)]), hidden=8)


CASES = (
    Case("gather with gradient", Coupled, random_rows),
    Case("BatchNorm of all processes", Normalised, random_rows),
    Case(
        "SimCLR, convolutions, BatchNorm", lambda: SimCLR(backbone("conv"), projection=(12, 8), temperature=0.5), views
    ),
    Case("DINO, convolutions, centring", dino, views),
    Case("MAE, ViT", lambda: MAE(backbone("vit"), decoder_dim=16, decoder_depth=1, decoder_heads=2), views),
    Case("DANN, convolutions, BatchNorm", dann, domain_pair),
)


def equality(device: torch.device) -> Iterator[Finding]:
    """Each trial's largest relative difference between all processes together and one alone, on whichever process it is largest."""
    every = True
    for trial in CASES:
        errors = {dtype: difference(trial, device, dtype) for dtype in device_types(device)}
        right = all(error <= BOUNDS[dtype] for dtype, error in errors.items())
        every = every and right
        said = ", ".join(
            f"{error:.1e} in {_name(dtype)} (at most {BOUNDS[dtype]:.0e})" for dtype, error in errors.items()
        )
        facts = {"trial": trial.name, "relative_difference": {_name(dtype): _number(e) for dtype, e in errors.items()}}
        yield Finding("ok" if right else "wrong", "N == 1", f"{trial.name}: {said}", facts)
    if not every:
        remedy = "look for differing drivers or libraries (NCCL, MPI, OFI plugins), and try NCCL_ALGO=Ring and NCCL_P2P_DISABLE=1"
        yield Finding(
            "note",
            "N == 1",
            f"{world()} processes do not compute what one does, so runs here cannot be trusted; {remedy}",
        )


def device_types(device: torch.device) -> list[torch.dtype]:
    """What the device computes in: Apple's has no float64."""
    return [dtype for dtype in BOUNDS if dtype == torch.float32 or device.type != "mps"]


def difference(trial: Case, device: torch.device, dtype: torch.dtype) -> float:
    """The largest relative difference of losses, gradients, weights and buffers; infinite where anything is no number."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # by default it rounds float32 to 11 bits
        together = run_case(trial, world(), device, dtype)
        n = world()
        with alone():
            right = run_case(trial, n, device, dtype)
    worst = max(distance(together, right, part) for part in PARTS)
    # the smallest of the negated: not-a-numbers would be lost on the way
    least = all_reduce_min(
        torch.tensor(-worst if math.isfinite(worst) else -math.inf, dtype=torch.float64, device=device)
    )
    return -float(least)


def run_case(trial: Case, processes: int, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """What `steps` finds for this process's shares of the batches for so many processes."""
    torch.manual_seed(0)
    method: Any = trial.build().to(device, dtype).train()
    norm.convert(method, "batch", 0, method.rows_per_position)
    batches = [trial.batch(method, IMAGES * processes, step + 1, dtype) for step in range(STEPS)]
    return run_steps(method, [_on(share(batch), device) for batch in batches])


def _on(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Draws):
        return Draws(batch.seed, batch.positions.to(device), batch.prefix)
    return None if batch is None else type(batch)(*(_on(part, device) for part in batch))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _number(error: float) -> float | None:
    """JSON has no infinity."""
    return error if math.isfinite(error) else None
