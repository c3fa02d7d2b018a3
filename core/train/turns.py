"""Turns: several updates on one batch, each of other players, for methods with `turns` above 1 (core/method.py).

A turn is a whole update of its own: forward, backward, clipping, the decision whether it is finite, the optimizer, BatchNorm's statistics.
The players that rest have no gradient, so the one optimizer leaves their weights, moments and step counts alone: it computes what an
optimizer for each player would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..distributed import world
from ..draws import Draws


def in_turn(batch: Any, turn: int) -> Any:
    """The same batch with other random draws in each turn; in turn 0 with its own. batch: tuples of tensors and `Draws`."""
    if turn == 0:
        return batch
    if isinstance(batch, Draws):
        return batch.stream(f"turn{turn}")
    if not isinstance(batch, tuple):
        return batch
    parts = [in_turn(part, turn) for part in batch]
    kind: Any = type(batch)
    return kind(*parts) if hasattr(kind, "_fields") else kind(parts)


def prepared_once(prepare: Callable[[Any], Any], raw: Any) -> Callable[[Any, int], Any]:
    """(raw batch, turn) -> the batch of the turn. The only micro-batch of the step is augmented once."""
    with torch.no_grad():
        batch = prepare(raw)
    return lambda _, turn: in_turn(batch, turn)


def of_turn(values: Mapping[str, Tensor], turn: int) -> dict[str, Tensor]:
    """A turn's numbers as they are logged: `turnN/NAME`. The first turn's loss and gradient are also the step's own."""
    named = {f"turn{turn}/{name}": value for name, value in values.items()}
    return {name: values[name] for name in ("loss", "grad_norm")} | named if turn == 0 else named


def with_absent(loss: Tensor, parameters: Iterable[nn.Parameter]) -> tuple[Tensor, list[nn.Parameter]]:
    """The loss plus 0 times the parameters on which it does not depend, and these.

    With several processes only: DistributedDataParallel waits for the gradient of every parameter, for ever if one never comes. The
    parameters that a turn leaves out are the same on all processes; their zero gradients become None after the backward pass.
    """
    if world() == 1:
        return loss, []
    absent = unreached(loss, parameters)
    return loss + sum((0.0 * parameter.sum() for parameter in absent), start=loss.new_zeros(())), absent


def unreached(loss: Tensor, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """The parameters on which a loss does not depend, by its graph."""
    reached: set[Tensor] = set()
    seen: set[Any] = set()
    waiting: list[Any] = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            reached.add(leaf)
        waiting += [following for following, _ in node.next_functions]
    return [parameter for parameter in parameters if parameter not in reached]


def raw_batches(raw: Any) -> list[Any]:
    """The raw batches of a micro-batch: one, or the source's and the target's."""
    return [raw] if hasattr(raw, "positions") else list(raw)
