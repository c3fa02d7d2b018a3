"""`rootstock help KEY`: what a config's key means, from configs/schema.json alone."""

import itertools
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..core.config.messages import among, show, words
from ..core.config.stored import annotation_of, chosen_name, referred
from ..core.errors import UserError
from .schema_file import SCHEMA_FILE, is_outdated, stored_schema, verbs_of

HOW = """rootstock help KEY says what a key of a config means, for example:

  rootstock help optim                        a section: what it is, and its keys
  rootstock help optim.lr                     one key: meaning, type, default, and the verbs that have it
  rootstock help method.temperature           the same, for every method that has this key
  rootstock help method.simclr.temperature    of one method

rootstock VERB --help says how a verb is called."""


@dataclass(frozen=True)
class ConfigKey:
    """One key of one verb's configs, or one option of a key that chooses by name (then `names` ends with that option)."""

    verb: str
    parts: tuple[str, ...]
    names: tuple[str, ...]  # for each part the option chosen there, empty where there is nothing to choose
    schema: Mapping[str, Any]
    keys: tuple[str, ...]  # of a section or an option: its keys
    options: tuple[str, ...]  # of a key that chooses by name: the names
    required: bool

    @property
    def path(self) -> str:
        """The key as an override gives it: `method.temperature`."""
        return ".".join(self.parts)

    @property
    def spellings(self) -> set[str]:
        """The path with and without the options on the way: `method.temperature`, `method.simclr.temperature`."""
        last = self.names[-1]  # an option is never meant without its name
        choices = [
            [part, f"{part}.{name}"] if name else [part] for part, name in zip(self.parts, self.names, strict=True)
        ]
        choices[-1] = [f"{self.parts[-1]}.{last}"] if last else choices[-1]
        return {".".join(spelling) for spelling in itertools.product(*choices)}

    @property
    def where(self) -> str:
        """The verb, and the options without which the key is not there: `pretrain (method simclr)`."""
        chosen = [f"{part} {name}" for part, name in zip(self.parts[:-1], self.names, strict=False) if name]
        return f"{self.verb} ({', '.join(chosen)})" if chosen else self.verb


def every_key(schema: Mapping[str, Any], verb: str) -> Iterator[ConfigKey]:
    """Every key of a verb's configs, and every option of those that choose by name."""
    return _keys(schema["$defs"][verb], schema["$defs"], verb, (), ())


def _keys(
    section: Mapping[str, Any],
    definitions: Mapping[str, Any],
    verb: str,
    parts: tuple[str, ...],
    names: tuple[str, ...],
) -> Iterator[ConfigKey]:
    for name, schema in section["properties"].items():
        here = (*parts, name)
        sections = list(_sections(schema, definitions))
        options = {option: inner for inner in sections if (option := chosen_name(inner))}
        plain = [inner for inner in sections if not chosen_name(inner)]
        keys = tuple(key for inner in plain for key in inner["properties"])
        yield ConfigKey(verb, here, (*names, ""), schema, keys, tuple(options), name in section["required"])
        for inner in plain:
            yield from _keys(inner, definitions, verb, here, (*names, ""))
        for option, inner in options.items():
            keys = tuple(key for key in inner["properties"] if key != "name")
            yield ConfigKey(verb, here, (*names, option), inner, keys, (), False)
            yield from _keys(inner, definitions, verb, here, (*names, option))


def _sections(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The sections that may stand in this place: one, those that a name chooses among, or none."""
    schema = referred(schema, definitions)
    if "properties" in schema:
        yield schema
    for part in schema.get("anyOf", ()):
        yield from _sections(part, definitions)


def explain(key: str | None) -> str:
    """The help text of a key as a user spells it; without one, how to ask. Raises UserError for an unknown key."""
    if key is None:
        return HOW
    schema = stored_schema()
    if schema is None:
        raise UserError(f"{SCHEMA_FILE} is missing or damaged; run `make schema`, or install rootstock again")
    verbs = verbs_of(schema)
    if key in verbs:
        return f"{key} is a verb; see rootstock {key} --help. Keys of its configs: {', '.join(schema['$defs'][key]['properties'])}"
    every = [found for verb in verbs for found in every_key(schema, verb)]
    matches = [found for found in every if key in found.spellings]
    if not matches:
        known = dict.fromkeys(spelling for found in every for spelling in sorted(found.spellings, key=len))
        newer = "; a key that you have just added is known after `make schema`" if is_outdated(schema) else ""
        raise UserError(_unknown(key, list(known)) + newer)
    texts: dict[str, list[str]] = {}
    for found in matches:
        texts.setdefault(_text(found), []).append(found.where)
    return "\n\n".join([key, *(f"{text}\n  in: {', '.join(dict.fromkeys(where))}" for text, where in texts.items())])


def _unknown(key: str, known: list[str]) -> str:
    """The message about an unknown key, which lists what stands beside it: the keys of the longest part that is known."""
    section = key
    while "." in section:
        section = section.rpartition(".")[0]
        beside = [
            name for name in known if name.startswith(f"{section}.") and name.count(".") == section.count(".") + 1
        ]
        if beside:
            ends = [name.removeprefix(f"{section}.") for name in beside]
            last = key.removeprefix(f"{section}.")
            elsewhere = [name for name in known if name.endswith(f".{last}")]
            return f"{key}: unknown key{among(last, ends, guess=next(iter(elsewhere), None))}"
    ends = [name for name in known if "." not in name]
    elsewhere = [name for name in known if name.endswith(f".{key}")]
    return f"{key}: unknown key{among(key, ends, guess=next(iter(elsewhere), None))}"


def _text(key: ConfigKey) -> str:
    """Meaning, type and default of a key, indented."""
    lines = textwrap.wrap(key.schema.get("description", ""), 96)
    if key.options:
        lines += textwrap.wrap(f"one of: {', '.join(key.options)}", 96, subsequent_indent="  ")
    elif key.keys:
        lines += textwrap.wrap(f"keys: {', '.join(key.keys)}", 96, subsequent_indent="  ")
    elif not key.names[-1]:
        lines.append(f"type: {words(annotation_of(key.schema))}")
    if not key.names[-1]:
        lines.append("required" if key.required else f"default: {show(key.schema['default'])}")
    return textwrap.indent("\n".join(lines), "  ")
