"""Descriptions of keys, read from docstrings of every kind of constructor."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import pytest

from rootstock.core.config.descriptions import described_keys, first_sentence, summary
from rootstock.core.config.json_schema import json_schema, undescribed
from rootstock.core.config.resolve import Choice, Section


def knn(*, k: int = 20, temperature: float = 0.07) -> None:
    """Classify by the nearest neighbours,
    weighted. Published by someone.

    k: How many neighbours: at least 1.
        More are smoother.

        Not a part of it.
    temperature:Needs a space.
    Raises UserError: for nothing.
    """


class Base:
    """A base.

    momentum: Of the base.
    width: Width in pixels.
    """

    def __init__(self, *, momentum: float = 0.9, width: int = 3) -> None: ...


class Derived(Base):
    """A derived class.

    depth: Number of layers.
    """

    def __init__(self, *, momentum: float = 0.9, width: int = 3, depth: int = 1, lr: float = 1) -> None:
        """Build it.

        momentum: Of the derived class.
        lr: Learning rate.
        depth: Hidden by the class's own line.
        """
        super().__init__(momentum=momentum, width=width)


@dataclass
class Fields:
    """Fields.

    every: Steps between two.
    """

    every: int = 3


def test_a_key_has_a_line_of_its_own_and_continues_indented() -> None:
    assert described_keys(knn)["k"] == "How many neighbours: at least 1. More are smoother."
    assert "temperature" not in described_keys(knn)
    assert summary(knn) == "Classify by the nearest neighbours, weighted. Published by someone."
    assert first_sentence(summary(knn)) == "Classify by the nearest neighbours, weighted."
    assert first_sentence("SimCLR v2 (arXiv 2002.05709, eq. 1) for e.g. images. More.") == (
        "SimCLR v2 (arXiv 2002.05709, eq. 1) for e.g. images."
    )


@pytest.mark.parametrize("constructor", [Derived, functools.partial(Derived, momentum=0.5)])
def test_a_class_is_described_by_its_docstring_then_its_constructor_then_its_bases(constructor) -> None:
    assert described_keys(constructor) == {
        "depth": "Number of layers.",
        "momentum": "Of the derived class.",
        "lr": "Learning rate.",
        "width": "Width in pixels.",
    }
    assert summary(constructor) == "A derived class."
    assert described_keys(Fields) == {"every": "Steps between two."}


def recipe(
    *,
    method: Annotated[Mapping, Choice({"knn": knn, "derived": Derived})],
    fields: Annotated[Mapping | None, Section(Fields)] = None,
    seed: int = 0,
) -> None:
    """A recipe.

    method: Which method.
    seed: Number that all randomness comes from.
    """


def test_the_json_schema_says_what_docstrings_say() -> None:
    schema = json_schema({"recipe": recipe}, {"run": Fields, "save": knn})["$defs"]
    verb = schema["recipe"]["properties"]
    assert verb["method"]["description"] == "Which method."
    assert (verb["run"]["description"], verb["save"]["description"]) == ("Fields.", summary(knn))
    option = schema["method.derived"]
    assert option["description"] == "A derived class."
    assert option["properties"]["name"] == {"const": "derived", "description": "Chooses derived. A derived class."}
    assert option["properties"]["momentum"]["description"] == "Of the derived class."


def test_what_no_docstring_explains_is_listed() -> None:
    assert undescribed({"recipe": recipe}, {"run": Fields}) == ["recipe.method.knn.temperature", "recipe.fields"]
