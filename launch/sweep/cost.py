"""What a trial's network costs, known before it trains: the second objective of a sweep, which is always minimized.

Counts are exact. Time is measured in turn with a network of reference, and what is compared is the ratio of both: other work of the machine
slows both alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ...core.config.resolve import Choice, build
from ...core.errors import UserError

if TYPE_CHECKING:
    from .point import Untrained

COST = "cost"  # of a point's facts: the number that is compared
# The network of the sweep's config with these overrides, untrained; with the first value of each searched key for None.
Others = Callable[[Mapping[str, Any] | None], "Untrained"]


def cost_options(*, budget: float | None = None) -> None:
    """The keys of `cost` that all names have.

    budget: Largest cost, above 0: a count, or for latency a share of the reference's time. A trial beyond it trains nothing and is recorded
        with its cost. null: none.
    """


def count_macs(point: Untrained, others: Others) -> dict[str, float]:
    """Multiply-adds of one picture."""
    return {COST: point.macs}


def count_parameters(point: Untrained, others: Others) -> dict[str, float]:
    """Numbers that are learned."""
    from ...core.model.macs import parameters_of

    return {COST: parameters_of(point.network)}


def count_bytes(point: Untrained, others: Others) -> dict[str, float]:
    """Bytes of the weights as they are saved, buffers included."""
    from ...core.model.macs import bytes_of_tensors

    return {COST: bytes_of_tensors(point.network)}


def measure_latency(
    point: Untrained,
    others: Others,
    *,
    reference: dict[str, Any] | None = None,
    runtime: Literal["onnx", "torch"] = "onnx",
    threads: int = 1,
    rounds: int = 100,
) -> dict[str, float]:
    """Time of one picture on the CPU, as a share of the time of a network of reference: the median over rounds that call both in turn.

    reference: Overrides of the trials' config whose network is the reference, {dotted key: value}. null: the first value of each key of
        search.
    runtime: onnx (ONNX Runtime, which fuses layers) or torch.
    threads: Threads that compute.
    rounds: Timed calls of each, 3 or more.
    """
    from .timed import time_beside

    return time_beside(point, others(reference), runtime=runtime, threads=threads, rounds=rounds)


COSTS: Mapping[str, Callable[..., dict[str, float]]] = {
    "macs": count_macs,
    "parameters": count_parameters,
    "bytes": count_bytes,
    "latency": measure_latency,
}
COST_UNITS: Mapping[str, str] = {
    "macs": "multiply-adds of a picture",
    "parameters": "parameters",
    "bytes": "bytes of weights",
    "latency": "time of a picture / the reference's",
}


def cost_in_words(cost: float) -> str:
    """A cost in four digits: 1.234M, 310k, 0.957."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(cost) >= size:
            return f"{cost / size:.4g}{letter}"
    return f"{cost:.4g}"


@dataclass(frozen=True)
class Cost:
    """The `cost` section of a sweep. section: name and keys of its constructor."""

    section: Mapping[str, Any]
    budget: float | None

    @property
    def name(self) -> str:
        return self.section["name"]

    @property
    def reference(self) -> Mapping[str, Any] | None:
        """Overrides of the reference; None for the first point, and for counts."""
        return self.section.get("reference")

    def of(self, point: Untrained, others: Others) -> dict[str, float]:
        """{"cost": the number that is compared, ...}."""
        return build(self.section, COSTS, point, others)

    def excess(self, cost: float) -> float:
        """By how much of the budget it is exceeded; 0 or less within it, or without one."""
        return 0.0 if self.budget is None else cost / self.budget - 1.0

    def in_words(self) -> str:
        within = "" if self.budget is None else f", at most {cost_in_words(self.budget)}"
        return f"{self.name} ({COST_UNITS[self.name]}){within}"


def read_cost(section: Mapping[str, Any] | None, problems: list[str]) -> Cost | None:
    """The resolved `cost` section; its mistakes are added to `problems`. Raises UserError where a package is missing."""
    if section is None:
        return None
    common, own = Choice(COSTS, common=cost_options).apart(section)
    budget = common["budget"]
    if budget is not None and not budget > 0:
        problems.append(f"cost.budget: expected a number above 0, got {budget}")
    problems += [f"cost.threads: expected 1 or more, got {own['threads']}"] if own.get("threads", 1) < 1 else []
    problems += [f"cost.rounds: expected 3 or more, got {own['rounds']}"] if own.get("rounds", 3) < 3 else []
    if own.get("runtime") == "onnx":
        from ..outputs.onnx_file import missing_onnx

        if missing := missing_onnx():
            raise UserError(
                f"cost.runtime: onnx needs {' and '.join(missing)}; `pip install 'rootstock[onnx]'`, or take runtime: torch"
            )
    return Cost(own, budget)
