"""Do N processes compute the same as one? Each case trains a few steps on all processes, and again on every process alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...adapt.adamatch import AdaMatch
from ...adapt.cdan import CDAN
from ...adapt.dann import DANN
from ...adapt.fixmatch import FixMatch
from ...adapt.parts.masked_consistency import MaskedConsistency
from ...core.distributed import all_reduce_min, alone, gather, own_rows, world
from ...core.draws import Draws
from ...core.method import Domains, Labelled, Method, Step, Unlabelled
from ...core.model import norm
from ...core.model.classifier import Classifier
from ...core.model.heads import Structure
from ...ssl.dino import DINO
from ...ssl.mae import MAE
from ...ssl.simclr import SimCLR
from .findings import Finding
from .trial_steps import SIZE, backbone, distance, rebuilt, run_steps, share, views

IMAGES, STEPS, WIDTH, CLASSES = 4, 2, 6, 3  # IMAGES: per process
BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-4}
PARTS = ("loss", "grad", "state")


class Coupled(Method):
    """A loss that compares each row with all others: tests the gather with gradient."""

    rows_per_position, couples_samples = 1, True

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, batch: Tensor, progress: float) -> Step:
        local = self.layer(batch)
        everyone = gather(local)
        similarity = everyone @ everyone.T / everyone.norm(dim=1)
        return Step(similarity.logsumexp(1)[own_rows(len(batch))].mean(), {})


class Normalised(Method):
    """A layer below BatchNorm over all processes: tests the global statistics."""

    rows_per_position, couples_samples = 1, True

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)

    def forward(self, batch: Tensor, progress: float) -> Step:
        return Step((self.norm(self.layer(batch)) * batch).sigmoid().mean(), {})


def random_rows(method: Any, n: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def domain_pair(method: Any, n: int, seed: int, dtype: torch.dtype) -> Domains:
    """Random images of two domains, and as many further views of each as the method takes."""
    generator = torch.Generator().manual_seed(seed)
    source, target = torch.randn(2, n, 3, SIZE, SIZE, generator=generator, dtype=torch.float64).to(dtype)
    labels, draws = torch.randint(CLASSES, (n,), generator=generator), Draws(seed, torch.arange(n))

    def more(images: Tensor, views: tuple[str, ...]) -> tuple[Tensor, ...]:
        noise = torch.randn(len(views) - 1, *images.shape, generator=generator, dtype=torch.float64).to(dtype)
        return tuple(images + 0.5 * noise)

    return Domains.of(
        Labelled(source, labels, draws, more(source, method.source_views)),
        Unlabelled(target + 1, draws, torch.arange(n), more(target + 1, method.target_views)),
    )


class Case(NamedTuple):
    """One method to check. batch: (method, number of images, seed, dtype) -> a batch."""

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[Any, int, int, torch.dtype], Any]


def dino() -> nn.Module:
    return DINO(backbone("conv"), prototypes=10, hidden=12, bottleneck=6, head_norm=True, freeze_last_layer=0.0)


def classifier(kind: str = "conv", **structure: Any) -> Classifier:
    return Classifier(backbone(kind), [str(k) for k in range(CLASSES)], structure=Structure(**structure))


def cdan() -> nn.Module:
    return CDAN(classifier(bottleneck=WIDTH), hidden=8, discriminator_norm=True)


CASES = (
    Case("gather with gradient", Coupled, random_rows),
    Case("BatchNorm of all processes", Normalised, random_rows),
    Case(
        "SimCLR, convolutions, BatchNorm", lambda: SimCLR(backbone("conv"), projection=(12, 8), temperature=0.5), views
    ),
    Case("DINO, convolutions, centring", dino, views),
    Case("MAE, ViT", lambda: MAE(backbone("vit"), decoder_dim=16, decoder_depth=1, decoder_heads=2), views),
    Case("DANN, convolutions, BatchNorm", lambda: DANN(classifier(), hidden=8), domain_pair),
    Case("CDAN+E, bottleneck, BatchNorm", cdan, domain_pair),
    # Of six images a pair, one more often has an activation that rounding moves across ReLU's kink: a ViT has none below the bottleneck.
    Case("AdaMatch, ViT, bottleneck", lambda: AdaMatch(classifier("vit", bottleneck=WIDTH), momentum=0.9), domain_pair),
    Case("FixMatch with MIC, a teacher", lambda: MaskedConsistency(FixMatch(classifier(), threshold=0.4)), domain_pair),
)


def equality(device: torch.device) -> Iterator[Finding]:
    """The largest relative difference of each case between N processes and one, over all processes."""
    all_equal = True
    for case in CASES:
        errors = {dtype: difference(case, device, dtype) for dtype in device_types(device)}
        right = all(error <= BOUNDS[dtype] for dtype, error in errors.items())
        all_equal = all_equal and right
        text = ", ".join(
            f"{error:.1e} in {_name(dtype)} (at most {BOUNDS[dtype]:.0e})" for dtype, error in errors.items()
        )
        facts = {"trial": case.name, "relative_difference": {_name(dtype): _number(e) for dtype, e in errors.items()}}
        yield Finding("ok" if right else "wrong", "N == 1", f"{case.name}: {text}", facts)
    if not all_equal:
        remedy = "look for different drivers or libraries (NCCL, MPI, OFI plugins), and try NCCL_ALGO=Ring and NCCL_P2P_DISABLE=1"
        yield Finding(
            "note",
            "N == 1",
            f"{world()} processes do not compute the same as one, so runs with several processes here cannot be trusted; {remedy}",
        )


def device_types(device: torch.device) -> list[torch.dtype]:
    """The types that the device supports: Apple's GPUs have no float64."""
    return [dtype for dtype in BOUNDS if dtype == torch.float32 or device.type != "mps"]


def difference(case: Case, device: torch.device, dtype: torch.dtype) -> float:
    """The largest relative difference of losses, gradients, weights and buffers; infinite if any is not a number."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # TF32, the default, rounds float32 to 11 bits
        distributed = run_case(case, world(), device, dtype)
        n = world()
        with alone():
            reference = run_case(case, n, device, dtype)
    worst = max(distance(distributed, reference, part) for part in PARTS)
    # The minimum of the negated values is the maximum. NaN becomes infinity first: a minimum over processes could lose it.
    least = all_reduce_min(
        torch.tensor(-worst if math.isfinite(worst) else -math.inf, dtype=torch.float64, device=device)
    )
    return -float(least)


def run_case(case: Case, processes: int, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """The result of `run_steps` on this process's shares of batches for `processes` processes."""
    torch.manual_seed(0)
    method: Any = case.build().to(device, dtype).train()
    norm.convert_batch_norms(method, "batch", 0, method.rows_per_position)
    batches = [case.batch(method, IMAGES * processes, step + 1, dtype) for step in range(STEPS)]
    return run_steps(method, [_on(share(batch), device) for batch in batches])


def _on(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Draws):
        return Draws(batch.seed, batch.positions.to(device), batch.prefix)
    return None if batch is None else rebuilt(batch, lambda part: _on(part, device))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _number(error: float) -> float | None:
    """JSON has no infinity."""
    return error if math.isfinite(error) else None
