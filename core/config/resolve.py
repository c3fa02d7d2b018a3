"""From a YAML file and overrides to one dictionary with every default filled in, or to a list of all mistakes.

No key is declared here: the signature of a recipe is the schema of its configs (`schema.py`). A resolved config is plain JSON. A run's
own config.yaml therefore holds every choice, and resolving it again changes nothing.
"""

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..documents import DEEPEST
from ..formats import current_keys
from .duration import Duration as Duration
from .duration import Minutes as Minutes
from .json_schema import json_schema as json_schema
from .messages import among, nearest, show, spelt, words
from .schema import NO_DEFAULT, Key, Value, root_keys
from .schema import Choice as Choice
from .schema import Section as Section
from .yaml_file import ConfigError as ConfigError
from .yaml_file import find as find
from .yaml_file import parse_override, read_into
from .yaml_file import read as read


def load(
    path: str | Path | Mapping[str, Any],
    schema: Callable[..., Any],
    overrides: Sequence[str] = (),
    extra: Mapping[str, Callable[..., Any]] = {},
) -> dict[str, Any]:
    """Resolve a config: merge it over what it `extends`, apply overrides (`a.b=VALUE`), check it, fill in defaults.

    path: of the file; one that doesn't exist is looked up among the shipped configs. Or what such a file would hold, as a mapping.
    schema: a recipe; its keyword-only parameters are the sections. extra: sections that every verb has, by name.
    Raises ConfigError with all mistakes at once.
    """
    verb = getattr(schema, "__name__", "")
    keys = root_keys(schema, extra)
    problems: list[str] = []
    if isinstance(path, Mapping):
        given, path = path, Path("config")
        tree = current_keys(_over_base(dict(given), path, keys, problems, ()))
    else:
        tree = current_keys(_extended(find(path, verb), keys, problems, ()))
    if "verb" not in keys and (written := tree.pop("verb", verb)) != verb:  # a run's own config.yaml names its verb
        raise ConfigError(
            [f"verb: this is a config of rootstock {spelt(written)}; give one of rootstock {verb}"], str(path)
        )
    tree = merge(tree, _overrides(overrides, keys, problems), keys)
    return _resolve(tree, keys, problems, str(path))


def validate(
    config: Mapping[str, Any], schema: Callable[..., Any], extra: Mapping[str, Callable[..., Any]] = {}
) -> dict[str, Any]:
    """`load` without a file: the config checked, with every default filled in."""
    return _resolve(config, root_keys(schema, extra), [], "")


def build(section: Mapping[str, Any], registry: Mapping[str, Callable[..., Any]], *args: Any) -> Any:
    """Call the constructor that a resolved `Choice` section names, with args and the other keys of the section."""
    return registry[section["name"]](*args, **{key: value for key, value in section.items() if key != "name"})


def _extended(path: Path, keys: Mapping[str, Key], problems: list[str], seen: tuple[Path, ...]) -> dict[str, Any]:
    """A file merged over the file that it `extends`, and so on up the chain. Raises ConfigError."""
    seen = (*seen, path.resolve())
    if len(seen) > DEEPEST:
        raise ConfigError([*problems, f"extends: a chain of more than {DEEPEST} files; shorten it"], str(path))
    return _over_base(read_into(path, problems), path, keys, problems, seen)


def _over_base(
    tree: dict[str, Any], path: Path, keys: Mapping[str, Key], problems: list[str], seen: tuple[Path, ...]
) -> dict[str, Any]:
    """What a file holds, merged over the file that it `extends`. path: of the file, beside which that one may lie."""
    base = tree.pop("extends", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise ConfigError([*problems, f"extends: expected the path of one YAML file, got {show(base)}"], str(path))
    beside = path.parent / base
    try:
        found = beside if os.path.isfile(beside) else find(base)
    except ConfigError as error:
        raise ConfigError([*problems, *(f"extends: {problem}" for problem in error.problems)], str(path)) from None
    if found.resolve() in seen:
        circle = " -> ".join(file.name for file in (*seen, found))
        raise ConfigError([*problems, f"extends: {circle} is a circle; take one of these lines out"], str(path))
    return merge(_extended(found, keys, problems, seen), tree, keys)


def merge(base: Mapping[str, Any], over: Mapping[str, Any], keys: Mapping[str, Key]) -> dict[str, Any]:
    """`over` merged over `base`: mappings merge, all else is replaced; `{}` empties a value that is a mapping.

    If `over` changes the name of a Choice, the other keys of `base` are dropped, because they belong to another constructor; keys that
    all names have stay. So are the `args` of any other section whose `name` it changes.
    """
    merged = dict(base)
    for name, above in over.items():
        node = keys[name].node if name in keys else None
        below = merged.get(name)
        if isinstance(node, Choice):
            below, above = node.spread(below), node.spread(above)
        if isinstance(below, Mapping) and isinstance(above, Mapping):
            inner = {} if node is None or isinstance(node, Value) else node.keys({**below, **above})
            if "name" in inner and "name" in above and below.get("name", above["name"]) != above["name"]:
                kept = node.common_keys() if isinstance(node, Choice) else inner.keys() - {"args"}
                below = {key: value for key, value in below.items() if key in kept}
            free = not inner  # its keys are no keys of a config
            above = merge(below, above, inner) if above or not free else {}
        merged[name] = above
    return merged


def _overrides(overrides: Sequence[str], keys: Mapping[str, Key], problems: list[str]) -> dict[str, Any]:
    """The overrides as one small config, which is merged over the file. Their order therefore doesn't matter."""
    tree: dict[str, Any] = {}
    for override in overrides:
        place, equals, text = override.partition("=")
        names = place.strip().split(".")
        if not equals or not all(names) or len(names) > DEEPEST:
            problems.append(f"{show(override)}: expected an override KEY=VALUE, for example optim.lr=1e-3")
            continue
        try:
            value = parse_override(text, place, problems)
        except ConfigError as error:
            if text.lstrip()[:1] in tuple("[{\"'"):
                problems.append(f"{place}: {show(text)} is {error.problems[0].partition(': ')[2]}")
                continue
            value = text  # a text with a special meaning in YAML, such as `@run` or `*.png`
        nested = functools.reduce(lambda inner, name: {name: inner}, reversed(names[1:]), value)
        tree = merge(tree, {names[0]: nested}, keys)
    return tree


def _resolve(tree: Mapping[str, Any], keys: Mapping[str, Key], problems: list[str], where: str) -> dict[str, Any]:
    check = _Check(tree, keys, problems)
    resolved = check.keys(tree, keys, "")
    if problems:
        raise ConfigError(problems, where)
    return resolved


class _Check:
    """One walk over a config that collects every problem with its path. The values returned are valid only if there is none."""

    def __init__(self, tree: Mapping[str, Any], keys: Mapping[str, Key], problems: list[str]) -> None:
        self.problems, self._tree, self._keys = problems, tree, keys

    @functools.cached_property
    def places(self) -> list[str]:
        """Of every key that the config could hold; a walk that only an unknown key is worth."""
        return list(_places(self._tree, self._keys))

    def keys(self, given: Mapping[str, Any], keys: Mapping[str, Key], path: str) -> dict[str, Any]:
        """The values of one section's keys, in the order of the signature."""
        for name in given:
            if name not in keys:
                text = spelt(name)
                elsewhere = next((place for place in self.places if place.split(".")[-1] == text), None)
                self.problems.append(f"{path}{text}: unknown key{among(text, keys, guess=elsewhere)}")
        resolved = {}
        for name, key in keys.items():
            if name not in given and key.default is NO_DEFAULT:
                self.problems.append(f"{path}{name}: missing; expected {_expected(key.node)}")
            else:
                resolved[name] = self.key(given.get(name, key.default), key, f"{path}{name}")
        return resolved

    def key(self, value: Any, key: Key, path: str) -> Any:
        """The value of one key. An empty section (`evaluate:` and nothing under it) is one with its defaults."""
        node = key.node
        if isinstance(node, Value):
            try:
                return node.resolve(value)
            except ValueError as error:
                self.problems.append(f"{path}: {error}")
                return None
        if value is None and key.nullable:
            return None
        given = node.spread(value) if isinstance(node, Choice) else value
        given = {} if given is None else given
        if not isinstance(given, Mapping):
            self.problems.append(f"{path}: expected {_expected(node)}, got {show(value)}")
            return None
        if isinstance(node, Choice):
            name = node.name(given)
            if name is None:
                near = next((key for key in given if isinstance(key, str) and nearest(key, ["name"])), None)
                instead = f"; did you mean name by {near}?" if near else ""
                self.problems.append(f"{path}.name: missing{instead} (known: {', '.join(node.registry) or 'none'})")
                return None
            if not isinstance(name, str) or name not in node.registry:
                place = f"{path}.name" if isinstance(value, Mapping) else path
                text = spelt(name)
                self.problems.append(f"{place}: unknown name {text}{among(text, node.registry)}")
                return None
        return self.keys(given, node.keys(given), f"{path}.")


def _expected(node: Value | Section | Choice) -> str:
    if isinstance(node, Value):
        return words(node.annotation)
    if isinstance(node, Section):
        return f"a section with the keys {', '.join(node.keys())}"
    names = ", ".join(node.registry)
    return f"one of {names}" if node.shorthand else f"a section with its name, one of {names}"


def _places(tree: Any, keys: Mapping[str, Key], path: str = "") -> Iterator[str]:
    """The dotted path of every key that this config could hold, with the names that it chooses."""
    for name, key in keys.items():
        yield f"{path}{name}"
        if not isinstance(key.node, Value):
            inner = tree.get(name) if isinstance(tree, Mapping) else None
            yield from _places(inner, key.node.keys(inner), f"{path}{name}.")
