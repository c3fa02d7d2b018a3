"""Schemas from signatures: the types of values, what cannot be a schema, and the JSON schema against a slow reader of it."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from rootstock.core.config.resolve import Choice, ConfigError, Duration, Section, json_schema, validate
from rootstock.core.config.schema import Value

FIVE_EPOCHS, TEN_EPOCHS = Duration(5, "ep"), Duration(10, "ep")


class SimCLR:
    """Two views of an image, drawn together.

    And more than one paragraph.
    """

    def __init__(
        self, backbone: object, *, temperature: float = 0.2, projection: Sequence[int] = (512, 128)
    ) -> None: ...


def mae(backbone: object, *, mask: float) -> None: ...


def knn(*, k: int = 20) -> None: ...


@dataclass
class Checkpoints:
    every: Duration = FIVE_EPOCHS
    keep: list[int] = field(default_factory=lambda: [2, 3])


def options(*, precision: Literal["auto", "bf16"] = "auto", save: Checkpoints | None = None) -> None: ...


def pretrain(
    *,
    method: Annotated[Mapping, Choice({"simclr": SimCLR, "mae": mae})],
    optim: Annotated[Mapping, Choice({"sgd": knn}, default="sgd", shorthand=False)] = {},
    betas: tuple[float, float] = (0.9, 0.95),
    test: str | dict[str, str] | None = None,
    duration: Duration = TEN_EPOCHS,
    seed: int = 0,
) -> None:
    """Learn a backbone."""


EXTRA: dict[str, Callable] = {"run": options}


@pytest.mark.parametrize(
    ("annotation", "given", "resolved"),
    [
        (float, 1, 1.0),
        (float, "1e-3", 0.001),
        (float | None, None, None),
        (int | float, 2, 2),
        (str | float, "1e-3", "1e-3"),
        (Literal["auto"] | bool, True, True),
        (tuple[float, float], [1, "2e0"], [1.0, 2.0]),
        (tuple[int, ...], (1, 2, 3), [1, 2, 3]),
        (Sequence[int], [1], [1]),
        (dict[str, float], {"a": ".5"}, {"a": 0.5}),
        (str | dict[str, str], {"a": "b"}, {"a": "b"}),
        (Mapping[str, Any], {"a": [1, {"b": None}]}, {"a": [1, {"b": None}]}),
        (list[Literal[1, 2]], [2], [2]),
        (Annotated[float, Field(gt=0)], 0.5, 0.5),
    ],
)
def test_values_as_json_holds_them(annotation: Any, given: Any, resolved: Any) -> None:
    value = Value(annotation).resolve(given)
    assert value == resolved
    assert type(value) is type(resolved)
    assert Value(annotation).resolve(value) == value


@pytest.mark.parametrize(
    ("annotation", "given", "sentence"),
    [
        (int, "one", 'expected an integer, got "one"'),
        (int, 1.5, "expected an integer, got 1.5"),
        (int, "3", 'expected an integer, got "3"'),
        (int, True, "expected an integer, got true"),
        (float, False, "expected a number, got false"),
        (float, float("nan"), "expected a number, got NaN"),
        (float | None, [1], "expected a number or null, got [1]"),
        (float, {1, 2}, 'expected a number, got "{1, 2}"'),
        (bool, 1, "expected true or false, got 1"),
        (str, 5, "expected text, got 5"),
        (str, False, "expected text, got false (YAML reads yes, no, on and off as that; put the text in quotes)"),
        (list[int], [1, True], "expected a list (each an integer), got [1, true]"),
        (tuple[float, float], [1], "expected a list of 2 (a number, a number), got [1]"),
        (str | dict[str, str] | None, {"a": 1}, 'expected text, a mapping (each value text) or null, got {"a": 1}'),
        (dict[str, Any], [], "expected a mapping, got []"),
        (
            Literal["auto", "bf16"] | bool,
            "BF-16",
            'expected auto, bf16, true or false, got "BF-16"; did you mean bf16?',
        ),
        (Annotated[float, Field(gt=0)], -1, "should be greater than 0, got -1"),
        (int, "x" * 99, f'expected an integer, got "{"x" * 75} ...'),
    ],
)
def test_what_is_wrong_with_a_value(annotation: Any, given: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        Value(annotation).resolve(given)


def test_signatures_that_cannot_be_a_schema() -> None:
    def unannotated(*, size=3) -> None: ...

    def inside(*, sections: Sequence[Annotated[Mapping, Section(knn)]] = ()) -> None: ...

    def named(*, name: str = "x") -> None: ...

    with pytest.raises(TypeError, match="parameter size needs an annotation"):
        validate({}, unannotated)
    with pytest.raises(TypeError, match="a section may stand alone or beside None"):
        validate({}, inside)
    with pytest.raises(TypeError, match="no parameter called name"):
        Choice({"named": named}).keys("named")


def admits(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    kinds: dict[str, Any] = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    kinds |= {"integer": int, "number": (int, float)}
    if "$ref" in schema:
        return admits(root["$defs"][schema["$ref"].removeprefix("#/$defs/")], value, root)
    if "anyOf" in schema and not any(admits(option, value, root) for option in schema["anyOf"]):
        return False
    kind = schema.get("type")
    if kind and (not isinstance(value, kinds[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return False
    if value not in schema.get("enum", [value]) or value != schema.get("const", value):
        return False
    if isinstance(value, dict) and kind == "object":
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        others = {} if others is True else others
        inside = (admits(properties[key], item, root) for key, item in value.items() if key in properties)
        outside = (
            others is not False and admits(others, item, root) for key, item in value.items() if key not in properties
        )
        return all(key in value for key in schema.get("required", [])) and all(inside) and all(outside)
    if isinstance(value, list):
        items = schema.get("prefixItems") or [schema.get("items", {})] * len(value)
        return schema.get("maxItems", len(value)) >= len(value) >= schema.get("minItems", 0) and all(
            admits(item, member, root) for item, member in zip(items, value, strict=False)
        )
    if isinstance(value, str):
        return re.search(schema.get("pattern", ""), value) is not None
    return not isinstance(value, int) or value >= schema.get("minimum", value)


GOOD: list[dict[str, Any]] = [
    {"method": "simclr"},
    {"method": {"name": "simclr", "temperature": 1}, "optim": {}, "extends": "base.yaml"},
    {"method": {"name": "mae", "mask": 0.5}, "optim": {"name": "sgd", "k": 3}, "test": {"a": "b"}},
    {"method": "simclr", "run": {"save": None}, "test": None, "betas": [0, 1]},
    {"method": "simclr", "run": {"save": {"every": "10%", "keep": []}, "precision": "bf16"}, "duration": 3},
]
BAD: list[dict[str, Any]] = [
    {},
    {"method": "simclr", "sed": 1},
    {"method": "simclr", "seed": "x"},
    {"method": "simclr", "seed": True},
    {"method": "simclr", "optim": "sgd"},
    {"method": "simclr", "test": {"a": 1}},
    {"method": "simclr", "betas": [1]},
    {"method": "simclr", "betas": [1, 2, 3]},
    {"method": "simclr", "duration": "10epx"},
    {"method": "simclr", "duration": "x10ep"},
    {"method": "simclr", "duration": -1},
    {"method": "simclr", "run": {"precision": "fp64"}},
    {"method": "simclr", "run": {"save": {"evry": 1}}},
    {"method": "dino"},
    {"method": {"temperature": 1}},
    {"method": {"name": "simclr", "mask": 1}},
    {"method": {"name": "mae"}},
]


def test_the_json_schema_admits_what_validate_admits() -> None:
    schema = json_schema({"pretrain": pretrain}, EXTRA)
    for config in GOOD:
        plain = {key: value for key, value in config.items() if key != "extends"}
        assert admits(schema, config, schema)
        assert admits(schema, validate(plain, pretrain, EXTRA), schema)
    for config in BAD:
        assert not admits(schema, config, schema), config
        with pytest.raises(ConfigError):
            validate(config, pretrain, EXTRA)


def test_the_json_schema_mentions_every_key_with_its_default() -> None:
    schema = json.loads(json.dumps(json_schema({"pretrain": pretrain, "knn": knn}, EXTRA), allow_nan=False))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    verb = schema["$defs"]["pretrain"]
    assert set(schema["$defs"]) == {
        "pretrain",
        "knn",
        "run",
        "save",
        "method.simclr",
        "method.mae",
        "optim.sgd",
    }
    assert (verb["description"], verb["required"]) == ("Learn a backbone.", ["method"])
    assert list(verb["properties"]) == ["method", "optim", "betas", "test", "duration", "seed", "run", "extends"]

    def referred(part: dict[str, Any]) -> dict[str, Any]:
        return schema["$defs"][part["$ref"].removeprefix("#/$defs/")]

    bare, *options = verb["properties"]["method"]["anyOf"]
    simclr, mae_section = map(referred, options)
    assert bare == {"enum": ["simclr", "mae"]}
    assert simclr["description"] == "Two views of an image, drawn together."
    assert [list(section["properties"]) for section in (simclr, mae_section)] == [
        ["name", "temperature", "projection"],
        ["name", "mask"],
    ]
    assert (simclr["required"], mae_section["required"]) == (["name"], ["name", "mask"])
    assert simclr["properties"]["projection"]["default"] == [512, 128]
    assert verb["properties"]["duration"]["default"] == "10ep"
    save = referred(referred(verb["properties"]["run"])["properties"]["save"]["anyOf"][0])
    assert save["properties"]["every"]["default"] == "5ep"


def test_equal_sections_are_defined_once() -> None:
    def twice(
        *, knn: Annotated[Mapping, Section(knn)] = {}, other: Annotated[Mapping | None, Section(knn)] = None
    ) -> None: ...

    schema = json_schema({"twice": twice})
    assert set(schema["$defs"]) == {"twice", "knn"}
    properties = schema["$defs"]["twice"]["properties"]
    assert properties["knn"] == {"$ref": "#/$defs/knn", "default": {}}
    assert properties["other"] == {"anyOf": [{"$ref": "#/$defs/knn"}, {"type": "null"}], "default": None}


def test_only_the_default_option_may_leave_out_its_name() -> None:
    def chosen(
        *, optim: Annotated[Mapping, Choice({"sgd": knn, "other": mae}, default="sgd", shorthand=False)] = {}
    ) -> None: ...

    options = json_schema({"chosen": chosen})["$defs"]
    assert (options["optim.sgd"]["required"], options["optim.other"]["required"]) == ([], ["name", "mask"])
