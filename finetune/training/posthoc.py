"""What may be done to the head after a training on classes of unequal size, before it is tested and exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...core.checks import check_fraction, check_not_negative
from ...core.config.resolve import build
from ...core.errors import UserError
from ...core.evaluate.held_out import CHOICE_FRACTION
from .losses import ClassLoss, log_priors

TAUS = [i / 20 for i in range(21)]


def leave_head() -> Callable[[nn.Linear, Tensor], None]:
    """The head stays as it was trained."""
    return lambda head, counts: None


def adjust_logits(*, tau: float = 1.0) -> Callable[[nn.Linear, Tensor], None]:
    """f - tau log pi, by the head's bias (Menon et al. 2021, arXiv:2007.07314, eq. 9).

    tau: Strength of the adjustment, 0 or more; 1 gives the least balanced error for calibrated scores.
    """
    check_not_negative("posthoc.tau", tau, "1 is usual")

    def apply(head: nn.Linear, counts: Tensor) -> None:
        head.bias.sub_((tau * log_priors(counts)).to(head.bias))

    return apply


def normalise_head(*, tau: float | None = 1.0) -> Callable[[nn.Linear, Tensor], None]:
    """w_c / |w_c|^tau, without a bias (Kang et al. 2020, arXiv:1910.09217, eq. 3).

    tau: From 0 (weights as they are) to 1 (all of length 1). null: chosen on the images that evaluate.held_out holds out, as in the paper:
        of 0, 0.05, ... 1 the one of the highest balanced accuracy, of equal ones the smallest.
    """
    if tau is not None:
        check_fraction("posthoc.tau", tau, "0.5 to 1 is usual")

    def apply(head: nn.Linear, counts: Tensor) -> None:
        assert tau is not None
        head.weight.div_(_lengths(head) ** tau)
        head.bias.zero_()

    return apply


def _lengths(head: nn.Linear) -> Tensor:
    """[K, 1]: of the weights of each class."""
    return head.weight.norm(dim=1, keepdim=True).clamp(min=1e-12)


POSTHOC: Mapping[str, Callable[..., Any]] = {
    "none": leave_head,
    "logit_adjusted": adjust_logits,
    "tau_norm": normalise_head,
}


def check_posthoc(section: Mapping[str, Any], loss: ClassLoss, resampled: bool) -> None:
    """Raises UserError for a correction of a classifier whose training corrects for class sizes already, and of a head without a bias."""
    name = section["name"]
    if name == "none":
        return
    build(section, POSTHOC)
    if loss.head is not None:
        raise UserError(f"method.posthoc: {name} is for a linear head, which this loss has not; leave posthoc out")
    if name == "logit_adjusted" and (loss.corrects or resampled):
        by = "data.sampler" if resampled else "method.loss"
        raise UserError(
            f"method.posthoc: logit_adjusted would correct a second time for class sizes, as {by} does; leave one of both out"
        )


def chooses_tau(section: Mapping[str, Any]) -> bool:
    """Whether `method.posthoc` leaves its tau to the held-out slice."""
    return section["name"] != "none" and section["tau"] is None


def check_head(section: Mapping[str, Any], head: nn.Module, held_out: bool) -> None:
    """Raises UserError for a head that is not linear, and for a tau that nothing can be chosen on. held_out: whether there is a slice."""
    if section["name"] == "none":
        return
    if not isinstance(head, nn.Linear):
        raise UserError(f"method.posthoc: {section['name']} is for a linear head; leave posthoc out")
    if chooses_tau(section) and not held_out:
        raise UserError(
            f"method.posthoc.tau: null chooses it on held-out training images; give evaluate.held_out too, such as {CHOICE_FRACTION}"
        )


@torch.no_grad()
def chosen_tau(head: nn.Linear, logits: Tensor, labels: Tensor) -> float:
    """The tau of `normalise_head` of the highest balanced accuracy. logits: [N, K], of the head as it is; labels: int64 [N]."""
    plain, classes = logits.double() - head.bias.double().cpu(), labels.unique()
    lengths, accuracies = _lengths(head).double().cpu()[:, 0], list[Tensor]()
    for tau in TAUS:
        right = (plain / lengths**tau).argmax(1) == labels
        accuracies.append(torch.stack([right[labels == k].double().mean() for k in classes]).mean())
    return TAUS[int(torch.stack(accuracies).argmax())]


@torch.no_grad()
def treat_head(section: Mapping[str, Any], head: nn.Module, counts: Tensor) -> None:
    """Apply `method.posthoc`, with a tau, to a head that `check_head` lets pass. counts: int64 [K], training images of each class."""
    if section["name"] != "none":
        assert isinstance(head, nn.Linear)
        build(section, POSTHOC)(head, counts)
