"""Configs checked by the JSON schema alone: no constructor is imported, so a mistake is found before torch is loaded.

The schema becomes the same tree of keys that `keys_of` reads from signatures. `resolve.py` therefore finds the same mistakes and writes
the same sentences. A type that the schema doesn't express becomes Any: the full check judges it later.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union

from .duration import MINUTES_PATTERN, TEXT_PATTERN, Duration, Minutes
from .schema import NO_DEFAULT, Choice, Key, Section, Value

Schema = Mapping[str, Any]

_SIMPLE = {"number": float, "integer": int, "string": str, "boolean": bool, "null": None}
_BESIDE = {"description", "title", "default"}  # what says nothing about the type


class StoredSection:
    """A section of the JSON schema, in the place of the constructor whose keys it lists."""

    def __init__(self, schema: Schema, definitions: Mapping[str, Schema], name: str) -> None:
        self.properties: Mapping[str, Schema] = schema["properties"]
        self.required: Sequence[str] = schema["required"]
        self.definitions = definitions
        self.__name__ = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raises TypeError: the constructor itself is not imported."""
        raise TypeError(f"{self.__name__} is a stored schema, which builds nothing")

    def config_keys(self) -> dict[str, Key]:
        """As `keys_of`. The `name` of a Choice's option is no key of its constructor."""
        keys = {}
        for name, schema in self.properties.items():
            if name == "name" and "const" in schema:
                continue
            node, nullable = self._node(schema)
            keys[name] = Key(node, NO_DEFAULT if name in self.required else schema["default"], nullable)
        return keys

    def _node(self, schema: Schema) -> tuple[Section | Choice | Value, bool]:
        """What a property admits, and whether it admits null beside a section."""
        schema = referred(schema, self.definitions)
        if "properties" in schema:
            return Section(StoredSection(schema, self.definitions, schema.get("description", ""))), False
        parts = [referred(part, self.definitions) for part in schema.get("anyOf", ())]
        options = {name: part for part in parts if (name := chosen_name(part)) is not None}
        if options:
            stored = {name: StoredSection(part, self.definitions, name) for name, part in options.items()}
            default = next((name for name, part in options.items() if "name" not in part["required"]), None)
            return Choice(stored, default, shorthand="enum" in parts[0]), False
        if len(parts) == 2 and parts[1] == {"type": "null"}:
            node, _ = self._node(parts[0])
            if not isinstance(node, Value):
                return node, True
        return Value(annotation_of(schema)), False


def stored_recipe(verb: str, schema: Schema) -> StoredSection:
    """What stands for the recipe of a verb; its keys include the sections that every verb has."""
    section = StoredSection(schema["$defs"][verb], schema["$defs"], verb)
    section.properties = {key: value for key, value in section.properties.items() if key != "extends"}
    return section


def referred(schema: Schema, definitions: Mapping[str, Schema]) -> Schema:
    """A schema, or the definition that it refers to."""
    return definitions[schema["$ref"].removeprefix("#/$defs/")] if "$ref" in schema else schema


def chosen_name(schema: Schema) -> str | None:
    """The name of a Choice that leads to this section; None if it is no option of a Choice."""
    return schema.get("properties", {}).get("name", {}).get("const")


def annotation_of(schema: Schema) -> Any:
    """The Python type that pydantic makes this schema of, or an equivalent one; Any where there is none."""
    schema = {key: value for key, value in schema.items() if key not in _BESIDE}
    match schema:
        case {"anyOf": [*parts]}:
            return Union[tuple(_alternatives(parts))]  # noqa: UP007 - their number is not known
        case {"enum": [*values]}:
            return Literal[tuple(values)]
        case {"const": value}:
            return Literal[value]
        case {"type": "array", "prefixItems": [*items]}:
            return tuple[tuple(annotation_of(item) for item in items)]  # pyright: ignore[reportInvalidTypeArguments]
        case {"type": "array", "items": item} if len(schema) == 2:
            return list[annotation_of(item)]
        case {"type": "object", "additionalProperties": True}:
            return dict[str, Any]
        case {"type": "object", "additionalProperties": {**values}}:
            return dict[str, annotation_of(values)]
        case {"type": "string", "pattern": pattern} if pattern == MINUTES_PATTERN:
            return Minutes
        case {"type": kind} if len(schema) == 1 and kind in _SIMPLE:
            return _SIMPLE[kind]
    return Any


def _alternatives(parts: Sequence[Schema]) -> list[Any]:
    """The types of a union. A duration is two parts of it: a number of steps, and a text of a pattern."""
    steps, text = {"minimum": 0, "type": "integer"}, {"pattern": TEXT_PATTERN, "type": "string"}
    if steps not in parts or text not in parts:
        return [annotation_of(part) for part in parts]
    return [Duration if part == steps else annotation_of(part) for part in parts if part != text]
