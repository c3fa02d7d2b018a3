"""The JSON schema of configs, made from the constructors: editors check files by it, and `stored.py` reads it back."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .descriptions import described_keys, first_sentence, summary
from .schema import NO_DEFAULT, Choice, Key, Section, Value, plain, root_keys

Constructor = Callable[..., Any]


def json_schema(verbs: Mapping[str, Constructor], extra: Mapping[str, Constructor] = {}) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of complete configs. Each verb is under `$defs`, and so is each section, once."""
    definitions = _Definitions(verbs)
    for verb, recipe in verbs.items():
        properties = definitions.properties(root_keys(recipe, extra), recipe, verb, extra)
        properties["extends"] = {
            "type": "string",
            "description": "Another YAML file, beside this one or among those that ship. This file is merged over it.",
        }
        definitions.found[verb] = _object(properties, root_keys(recipe, extra), summary(recipe))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "rootstock",
        "anyOf": [{"$ref": f"#/$defs/{verb}"} for verb in verbs],
        "$defs": definitions.found,
    }


def undescribed(verbs: Mapping[str, Constructor], extra: Mapping[str, Constructor] = {}) -> list[str]:
    """The dotted keys, verb first, that no docstring explains; an option of a Choice is named in the path."""
    schema = json_schema(verbs, extra)
    definitions = schema["$defs"]

    def missing(part: Mapping[str, Any], path: str) -> Iterator[str]:
        if "$ref" in part:
            part = definitions[part["$ref"].removeprefix("#/$defs/")]
        for option in part.get("anyOf", ()):
            target = definitions[option["$ref"].removeprefix("#/$defs/")] if "$ref" in option else option
            name = target.get("properties", {}).get("name", {}).get("const")
            yield from missing(target, f"{path}.{name}" if name else path)
        for key, inner in part.get("properties", {}).items():
            if not inner.get("description"):
                yield f"{path}.{key}"
            yield from missing(inner, f"{path}.{key}")

    return list(dict.fromkeys(key for verb in verbs for key in missing(definitions[verb], verb)))


class _Definitions:
    """The `$defs` of one schema: equal sections share one entry."""

    def __init__(self, verbs: Mapping[str, Constructor]) -> None:
        self.found: dict[str, Any] = {verb: {} for verb in verbs}  # their names are taken
        self.names: dict[str, str] = {}  # by content

    def properties(
        self, keys: Mapping[str, Key], constructor: Constructor, path: str, extra: Mapping[str, Constructor] = {}
    ) -> dict[str, Any]:
        """The JSON schema of each key of a section. A section of `extra` that the recipe doesn't explain explains itself."""
        explained = {**{name: summary(section) for name, section in extra.items()}, **described_keys(constructor)}
        return {name: self.property(key, f"{path}.{name}", explained.get(name, "")) for name, key in keys.items()}

    def property(self, key: Key, path: str, description: str) -> dict[str, Any]:
        node = key.node
        if isinstance(node, Value):
            schema = node.adapter.json_schema()
        elif isinstance(node, Section):
            properties = self.properties(node.keys(), node.constructor, path)
            schema = self.shared(_object(properties, node.keys(), summary(node.constructor)), path)
        else:
            bare = [{"enum": list(node.registry)}] if node.shorthand else []
            schema = {"anyOf": [*bare, *(self.option(node, name, path) for name in node.registry)]}
        if key.nullable:
            schema = {"anyOf": [schema, {"type": "null"}]}
        if description:
            schema = {**schema, "description": description}
        return schema if key.default is NO_DEFAULT else {**schema, "default": plain(key.default)}

    def option(self, node: Choice, name: str, path: str) -> dict[str, Any]:
        """The section that one name of a Choice stands for. Only the default's may leave the name out."""
        constructor, about = node.registry[name], summary(node.registry[name])
        keys = dict(node.keys({"name": name}))
        keys["name"] = keys["name"]._replace(default=name if name == node.default else NO_DEFAULT)
        properties = self.properties(keys, constructor, f"{path}.{name}")
        if node.common is not None:
            shared = node.common_keys()
            properties |= self.properties({key: keys[key] for key in shared}, node.common, path)
        properties["name"] = {"const": name, "description": f"Chooses {name}. {first_sentence(about)}".strip()}
        return self.shared(_object(properties, keys, about), f"{path}.{name}", least=2)

    def shared(self, schema: dict[str, Any], path: str, least: int = 1) -> dict[str, Any]:
        """A reference to this section. Its name is the shortest free end of its path, of `least` parts or more."""
        content = json.dumps(schema)
        if content not in self.names:
            parts = path.split(".")
            ends = [".".join(parts[-count:]) for count in range(least, len(parts) + 1)]
            self.names[content] = next(end for end in ends if end not in self.found)
            self.found[self.names[content]] = schema
        return {"$ref": f"#/$defs/{self.names[content]}"}


def _object(properties: dict[str, Any], keys: Mapping[str, Key], description: str) -> dict[str, Any]:
    return {
        **({"description": description} if description else {}),
        "type": "object",
        "properties": properties,
        "required": [name for name, key in keys.items() if key.default is NO_DEFAULT],
        "additionalProperties": False,
    }
