"""Averages of the weights over a training: exponential (EMA) or equal from some step on (SWA).

The average is a network beside the one that is trained, in the method's state, so checkpoints hold it. At which steps weights come in is a
function of the step alone. With which share depends on how many really came in, since those of a skipped step do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...core.config.duration import Duration
from ...core.distributed import own_shard
from ...core.errors import UserError
from ...core.model.ema import follow, teacher_of
from ...core.numerics import approach, unless_skipped

WARMUP_POWER = 2 / 3  # timm's


def ema_options(
    *,
    decay: float = 0.9999,
    warmup: bool = False,
    buffers: Literal["average", "copy"] = "average",
) -> None:
    """The `method.ema` section: an exponential moving average of the weights is exported and tested, as timm's ModelEmaV3.

    The weights of the last step are tested beside it, as TEST/classifier-raw.

    decay: Share of the average that stays at each step, 0 or more and less than 1; the first step's weights are copied.
    warmup: Whether the decay rises from 0 as 1 - (1 + t)^(-2/3) until it reaches `decay`, for trainings too short for it.
    buffers: What becomes of BatchNorm's statistics: averaged as the weights are (average), or those of the last step (copy).
    """


def swa_options(*, start: Duration = Duration(75, "%"), every: Duration = Duration(1, "ep")) -> None:
    """The `method.swa` section: the equal average of the weights from some step on (Izmailov et al. 2018, arXiv:1803.05407).

    BatchNorm's statistics are then computed anew, by one epoch of training images. The rate of `optim` should not fall to 0 meanwhile:
    `schedule: constant`, or `min_lr`.

    start: When the first weights come in: steps, epochs (`10ep`) or a part of the training (`75%`).
    every: Steps or epochs between weights that come in.
    """


class Averaging(nn.Module):
    """The averaged network, and how it follows. network: a copy of the classifier, without noise and gradient."""

    entries: Tensor  # int64 scalar: how many weights came in

    def __init__(self, classifier: nn.Module, steps: int) -> None:
        super().__init__()
        self.network, self.steps = teacher_of(classifier), steps
        self.recomputes = False  # whether BatchNorm's statistics are computed anew at the end
        self.register_buffer("entries", torch.zeros((), dtype=torch.int64))

    def restart(self, classifier: nn.Module) -> None:
        """Begin with these weights, before the first step: the head may have changed since the copy was made."""
        self.network.load_state_dict(classifier.state_dict())

    def share(self, done: int) -> Tensor | None:
        """The share with which the weights after `done` steps come in, float64 scalar: 1 for the first ones. None: they do not."""
        raise NotImplementedError

    @torch.no_grad()
    def update(self, classifier: nn.Module, progress: float, skipped: Tensor | None = None) -> None:
        """After the step that began at this progress, of the whole training. skipped: `Method.skipped`."""
        share = self.share(round(progress * self.steps) + 1)
        if share is not None:
            follow(self.network, classifier, 1.0 - share, skipped)
            self._follow_buffers(classifier, share, skipped)
            self.entries += 1 if skipped is None else ~skipped

    def _follow_buffers(self, classifier: nn.Module, share: Tensor, skipped: Tensor | None) -> None:
        for mine, other in zip(self.network.buffers(), classifier.buffers(), strict=True):
            mine.copy_(unless_skipped(other, mine, skipped))


class ExponentialAverage(Averaging):
    """theta' <- d theta' + (1 - d) theta after each step."""

    def __init__(self, classifier: nn.Module, steps: int, options: Mapping[str, Any]) -> None:
        super().__init__(classifier, steps)
        self.decay, self.warmup, self.averages_buffers = (
            options["decay"],
            options["warmup"],
            options["buffers"] == "average",
        )

    def share(self, done: int) -> Tensor:
        usual = torch.full_like(self.entries, self._weight(done), dtype=torch.float64)
        return torch.where(self.entries == 0, 1.0, usual)

    def _weight(self, done: int) -> float:
        """Of the weights after `done` steps, where others came in before."""
        return 1.0 - (min(self.decay, 1.0 - done**-WARMUP_POWER) if self.warmup else self.decay)

    def _follow_buffers(self, classifier: nn.Module, share: Tensor, skipped: Tensor | None) -> None:
        for mine, other in zip(self.network.buffers(), classifier.buffers(), strict=True):
            if self.averages_buffers and mine.is_floating_point():
                approach(own_shard(mine), own_shard(other), share, skipped)
            else:
                mine.copy_(unless_skipped(other, mine, skipped))

    def left(self) -> float:
        """The share of the first step's weights in the last average."""
        kept = 1.0
        for done in range(2, self.steps + 1):
            kept *= 1.0 - self._weight(done)
            if kept < 1e-6:
                break
        return kept


class EqualAverage(Averaging):
    """theta' <- theta' + (theta - theta') / n, of the n-th weights that come in."""

    def __init__(self, classifier: nn.Module, steps: int, start: int, every: int) -> None:
        super().__init__(classifier, steps)
        self.start, self.every, self.recomputes = start, every, True

    def share(self, done: int) -> Tensor | None:
        if done < self.start or (done - self.start) % self.every:
            return None
        return 1.0 / (self.entries + 1).double()


def averaging_of(
    method: Mapping[str, Any], classifier: nn.Module, steps: int, steps_per_epoch: int
) -> Averaging | None:
    """What `method.ema` or `method.swa` asks for. Raises UserError for numbers out of their range."""
    ema, swa = method["ema"], method["swa"]
    if ema is not None and swa is not None:
        raise UserError("method.swa: method.ema averages the weights already; leave one of both out")
    if ema is not None:
        if not 0.0 <= ema["decay"] < 1.0:
            raise UserError(
                f"method.ema.decay: expected 0 or more and less than 1, got {ema['decay']}; 0.9999 is usual"
            )
        return ExponentialAverage(classifier, steps, ema)
    if swa is None:
        return None
    start = max(1, Duration.parse(swa["start"]).steps(steps_per_epoch, steps))
    every = Duration.parse(swa["every"]).steps(steps_per_epoch, steps)
    if start > steps or every < 1:
        wrong, expected = (
            ("start", f"a step up to {steps}, the last one") if start > steps else ("every", "1 step or more")
        )
        raise UserError(f"method.swa.{wrong}: expected {expected}, got {swa[wrong]}")
    return EqualAverage(classifier, steps, start, every)


def interpolated(start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """WiSE-FT (Wortsman et al. 2022, arXiv:2109.01903): (1 - alpha) start + alpha end, for each tensor; counters are the end's."""
    return {
        name: torch.lerp(start[name].to(tensor), tensor, alpha) if tensor.is_floating_point() else tensor
        for name, tensor in end.items()
    }
