"""Each numeric key of a method states its range in its line of the docstring; beyond it, one sentence with its name refuses the number."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args, get_origin

import pytest

from rootstock.adapt.objective import shared_options
from rootstock.adapt.parts.masked_consistency import MaskedConsistency, mic_options
from rootstock.adapt.registry import ADAPT_METHODS
from rootstock.adapt.source_only import SourceOnly
from rootstock.core.config.descriptions import described_keys
from rootstock.core.config.schema import Value, keys_of
from rootstock.core.errors import UserError
from rootstock.core.model.heads import Structure
from rootstock.launch.doctor.equality import classifier
from rootstock.launch.verbs import resolve
from rootstock.ssl.registry import PRETRAIN_METHODS
from rootstock.tests.ssl.cases import CASES, method

NUMBER = r"(-?\d[\d,]*(?:\.\d+)?)"
# As a line of a docstring says it; the first of these in the line is the key's range. [low, high], and which of them belongs to it.
PHRASES: dict[str, tuple[bool, bool]] = {
    rf"{NUMBER} to below {NUMBER}": (True, False),
    rf"above {NUMBER} and (?:at most|up to) {NUMBER}": (False, True),
    rf"between {NUMBER} and {NUMBER}": (False, False),
    rf"{NUMBER} to {NUMBER}": (True, True),
    rf"above {NUMBER}": (False, False),
    rf"{NUMBER} or more": (True, False),
}
# Their range is another key's number, or that of several keys; their own files test them.
RELATIVE = {
    "decoder_dim",
    "decoder_heads",
    "predictor_dim",
    "predictor_heads",
    "mask_patch",
    "norm_target",
    "max_context",
}


class Range(NamedTuple):
    low: float
    high: float
    with_low: bool
    with_high: bool

    def outside(self, whole: bool) -> Iterator[float]:
        step = 1 if whole else 1e-3
        yield self.low - step if self.with_low else self.low
        if self.high < math.inf:
            yield self.high + step if self.with_high else self.high
        if not whole:
            yield from (math.nan, math.inf, -math.inf)


def stated(line: str) -> Range | None:
    """The range that a docstring's line states, None if it states none."""
    found = [
        (m.start(), -m.end(), m.groups(), ends)
        for phrase, ends in PHRASES.items()
        if (m := re.search(phrase, line, re.I))
    ]
    if not found:
        return None
    _, _, numbers, ends = min(found)
    low, high = (*(float(text.replace(",", "")) for text in numbers), math.inf)[:2]
    return Range(low, high, *ends)


def numeric(annotation: Any) -> tuple[type, bool] | None:
    """int or float, and whether it is several of them; None for what is no number."""
    inside = [part for part in get_args(annotation) if part is not type(None) and get_origin(part) is not Literal]
    if annotation in (int, float):
        return annotation, False
    if get_origin(annotation) is tuple and inside[0] in (int, float):
        return inside[0], True
    return (
        (inside[0], False)
        if len(inside) == 1 and inside[0] in (int, float) and get_origin(annotation) is not Literal
        else None
    )


def adapted(name: str) -> Callable[..., Any]:
    kind = ADAPT_METHODS[name]
    return lambda **keys: kind(classifier(bottleneck=5, extra=kind.extra_outputs), None, **keys)


def structured(**keys: Any) -> None:
    """The shared keys that have a number."""
    Structure(keys.get("bottleneck"), temperature=keys.get("head_temperature", 0.05)).check()


class Case(NamedTuple):
    who: str
    key: str
    line: str
    type: type
    default: Any  # of a key of several numbers, else None
    build: Callable[..., Any]
    prefix: str = "method"


def cases() -> Iterator[Case]:
    builders: dict[str, tuple[Any, Callable[..., Any], str]] = {
        **{name: (kind, adapted(name), "method") for name, kind in ADAPT_METHODS.items()},
        **{
            name: (kind, lambda name=name, **keys: method(name, CASES[name][1][0], **keys), "method")
            for name, kind in PRETRAIN_METHODS.items()
        },
        "every adaptation method": (shared_options, structured, "method"),
        "mic": (mic_options, lambda **keys: MaskedConsistency(SourceOnly(classifier()), **keys), "method.mic"),
    }
    for who, (kind, build, prefix) in builders.items():
        lines: Mapping[str, str] = described_keys(kind)
        for key, entry in keys_of(kind).items():
            found = numeric(entry.node.annotation) if isinstance(entry.node, Value) else None
            if found is not None and key not in RELATIVE:
                yield Case(who, key, lines[key], found[0], entry.default if found[1] else None, build, prefix)


ALL = list(cases())


@pytest.mark.parametrize("case", ALL, ids=[f"{case.who}.{case.key}" for case in ALL])
def test_a_number_out_of_its_stated_range_is_refused_by_name(case: Case) -> None:
    bounds = stated(case.line)
    if bounds is None and case.default is not None:
        return  # several numbers: their file says what they may be
    assert bounds is not None, f"{case.who}.{case.key} states no range: {case.line}"
    for wrong in bounds.outside(case.type is int):
        given: Any = case.type(wrong) if case.type is float or wrong == int(wrong) else wrong
        given = given if case.default is None else (given, *case.default[1:])
        with pytest.raises(UserError, match=rf"{re.escape(case.prefix)}\.{case.key}\b") as refused:
            case.build(**{case.key: given})
        assert "\n" not in str(refused.value)


def test_the_ranges_are_read_as_they_are_meant() -> None:
    assert stated("Weight, 0 or more; 1 to 2 is usual.") == (0.0, math.inf, True, False)
    assert stated("Above 0; 1/3 in the paper.") == (0.0, math.inf, False, False)
    assert stated("Share, from 0 to below 1.") == (0.0, 1.0, True, False)
    assert stated("How many, 1 to 1,000.") == (1.0, 1000.0, True, True)
    assert stated("t, between 0 and 1; 0.5 in the paper.") == (0.0, 1.0, False, False)
    assert stated("A factor, above 0 and at most 1.") == (0.0, 1.0, False, True)
    assert stated("How wide it is.") is None
    assert {case.who for case in ALL} >= {*PRETRAIN_METHODS, "mic"} and len(ALL) > 100


@pytest.mark.parametrize("text", [".nan", ".inf", "-.inf"])
def test_no_config_holds_such_a_number(text: str) -> None:
    with pytest.raises(UserError, match=r"method\.reversal: expected a number, got -?(NaN|Infinity)"):
        resolve("adapt", "adapt/digits_dann.yaml", [f"method.reversal={text}"])
