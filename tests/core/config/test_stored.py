"""The tree of keys read back from the JSON schema equals the one read from the constructors, and so do its sentences."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from rootstock.core.config.messages import words
from rootstock.core.config.resolve import ConfigError, Section, json_schema, validate
from rootstock.core.config.schema import NO_DEFAULT, Key, Value, plain, root_keys
from rootstock.core.config.stored import annotation_of, stored_recipe
from rootstock.launch.verbs import EXTRA, VERBS

from .test_resolve import EXTRA as SMALL_EXTRA
from .test_resolve import pretrain as small
from .test_schema import BAD
from .test_schema import EXTRA as OTHER_EXTRA
from .test_schema import pretrain as other


def described(keys: Mapping[str, Key], path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, everything that a message or a default says of the key) of a tree."""
    for name, key in keys.items():
        node = key.node
        if isinstance(node, Value):
            says: Any = (words(node.annotation), node.adapter.json_schema())
        elif isinstance(node, Section):
            says = "section"
            yield from described(node.keys(), f"{path}{name}.")
        else:
            says = (list(node.registry), node.default, node.shorthand)
            for option in node.registry:
                yield from described(node.keys({"name": option}), f"{path}{name}.{option}.")
        default = NO_DEFAULT if key.default is NO_DEFAULT else plain(key.default)
        yield f"{path}{name}", (says, default, key.nullable)


SCHEMAS = {**VERBS, "small": small, "other": other}


@pytest.mark.parametrize("verb", SCHEMAS)
def test_the_stored_tree_equals_the_constructors(verb: str) -> None:
    extra = {"small": SMALL_EXTRA, "other": OTHER_EXTRA}.get(verb, EXTRA)
    schema = json.loads(json.dumps(json_schema({verb: SCHEMAS[verb]}, extra)))
    here, there = (
        list(described(keys)) for keys in (root_keys(SCHEMAS[verb], extra), root_keys(stored_recipe(verb, schema), {}))
    )
    assert [path for path, _ in there] == [path for path, _ in here]
    for (path, stored), (_, own) in zip(there, here, strict=True):
        assert stored == own, path


@pytest.mark.parametrize("config", BAD)
def test_the_same_sentences(config: dict[str, Any]) -> None:
    schema = json_schema({"other": other}, OTHER_EXTRA)
    with pytest.raises(ConfigError) as own:
        validate(config, other, OTHER_EXTRA)
    with pytest.raises(ConfigError) as stored:
        validate(config, stored_recipe("other", schema))
    assert stored.value.problems == own.value.problems


@pytest.mark.parametrize(
    "mistakes",
    [
        {"method": {"name": "simclr", "temprature": 1}, "sede": 1},
        {"method": {"nmae": "mae"}, "data": {"train": 1}, "run": {"precision": "bf61", "save": {"evry": 1}}},
        {"method": "SimCRL", "lr": 0.1, "seed": True, "evaluate": {"knn": {"k": None}, "every": "ten"}},
        {"method": 3, "data": None, "optim": {"betas": [1]}, "args": []},
        {},
    ],
)
def test_the_same_sentences_for_several_mistakes(mistakes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as own:
        validate(mistakes, small, SMALL_EXTRA)
    with pytest.raises(ConfigError) as stored:
        validate(mistakes, stored_recipe("small", json_schema({"small": small}, SMALL_EXTRA)))
    assert stored.value.problems == own.value.problems


def test_a_type_that_the_schema_cannot_say_is_left_to_the_full_check() -> None:
    for schema in ({}, {"type": "number", "exclusiveMinimum": 0}, {"type": "array", "items": {}, "uniqueItems": True}):
        assert annotation_of(schema) is Any
