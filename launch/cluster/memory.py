"""Estimate of the device memory that a training needs, from its weights and the measured activations of a few images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...core.model.recompute import repeated_blocks
from ...core.train.fit import Training

MEASURED = (2, 4)  # batch sizes at which activations are measured; their difference gives the growth per image
PER_PARAMETER = {"adamw": 2, "sgd": 1, "lars": 1}  # numbers that the optimizer stores for each parameter


class Memory(NamedTuple):
    """Bytes on each device, and in a checkpoint.

    activations: what a float32 forward pass keeps for the backward pass, and the most that is recomputed there at once.
    saved: size of a checkpoint. evaluation: total during an evaluation of a sharded training, when each device holds the whole
    network beside its shards; 0 without sharding.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    saved: int
    evaluation: int

    @property
    def total(self) -> int:
        """The peak, in a step or in an evaluation."""
        return max(sum(self.parts().values()), self.evaluation)

    def parts(self) -> dict[str, int]:
        """The parts that are on the device during a step."""
        return {name: size for name, size in self._asdict().items() if name not in ("saved", "evaluation")}


def expected_memory(
    training: Training, of_size: Callable[[int], Training], images: int, sharding: str, processes: int
) -> Memory:
    """Estimate the memory of a training.

    Weights, gradients and moments are counted. Activations are measured on a few images in one process and extrapolated
    linearly; synchronised BatchNorm may keep as much again of its layers' inputs.

    of_size: builds the training with a given batch size. images: number of images in a forward pass.
    """
    method = training.method
    trained = _bytes(training.trained)
    weights = _bytes([*method.parameters(), *method.buffers()])
    moments = PER_PARAMETER[training.optim.name] * trained
    small, large = (_activations(of_size(n)) for n in MEASURED)
    slope = (large - small) / (MEASURED[1] - MEASURED[0])
    activations = round(small + slope * (images - MEASURED[0]))
    saved, evaluation = weights + moments, 0
    # LARS on a GPU: old weights and moments are kept until the update is known to be finite.
    kept = trained + moments if training.optim.name == "lars" else 0
    if sharding != "none":
        whole = [_bytes(block.parameters()) for block in repeated_blocks(method)]
        rest = _bytes(method.parameters()) - sum(whole)
        # fsdp2 holds the weights of the block that computes and of the next one, which is being gathered.
        borrowed = rest + (sum(whole) if sharding == "zero2" else 2 * max(whole))
        weights = _bytes(method.buffers()) + _bytes(method.parameters()) // processes + borrowed
        slices = _bytes(method.parameters()) // processes + moments // processes
        evaluation = slices + _bytes(method.parameters()) + 2 * _bytes(method.buffers())
        trained, moments, kept = trained // processes + rest + max(whole), moments // processes, kept // processes
    return Memory(weights, trained, moments + kept, activations, saved, evaluation)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _activations(training: Training) -> int:
    """Bytes that a forward pass keeps for the backward pass, without the weights."""
    method = training.method
    own = {t.untyped_storage().data_ptr() for t in [*method.parameters(), *method.buffers()]}
    again = 0

    def entered(block: nn.Module, given: tuple[Any, ...]) -> None:
        # A recomputed block keeps only its inputs; its other activations exist during its own backward pass.
        nonlocal again
        within = _Kept(own)
        with within, torch.enable_grad():
            forward: Any = block.forward
            forward.args[0](*given)
        again = max(again, within.size())
        for tensor in given:
            kept.note(tensor)

    kept = _Kept(own)
    recomputed = [block for block in repeated_blocks(method) if isinstance(block.forward, partial)]
    handles = [block.register_forward_pre_hook(entered) for block in recomputed]
    (sample,) = next(iter(training.batches(0)))
    batch = training.prepare(sample)
    with kept:
        training.method(batch, 0.0)
    for handle in handles:
        handle.remove()
    return kept.size() + again


class _Kept(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that autograd saves inside this context, each storage once. own: addresses of storages not to count."""

    def __init__(self, own: set[int]) -> None:
        self.own, self.storages = own, dict[int, int]()
        super().__init__(self.note, lambda tensor: tensor)

    def note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.own:
            self.storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    def size(self) -> int:
        return sum(self.storages.values())
