"""YAML files of configs: find one by its path, read it, and name the line of a syntax error."""

import copy
import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..documents import LARGEST_YAML, BoundedLoader, Excess, Unreadable, read_text
from ..errors import UserError
from ..files import expanded
from .messages import nearest, show, spelt

PACKAGE = Path(__file__).resolve().parents[2]
CONFIGS = PACKAGE / "configs"

_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
"""What stands in a text of JSON as it is, and in one of YAML only escaped."""


class ConfigError(UserError):
    """Mistakes in a config: `problems`, one line for each, in the file `where` (empty if there is no file)."""

    def __init__(self, problems: Iterable[str], where: str = "") -> None:
        self.problems = tuple(problems)
        self.where = where
        if len(self.problems) == 1:
            message = f"{where}: {self.problems[0]}" if where else self.problems[0]
        else:
            message = "\n  ".join([f"{where or 'the config'} has {len(self.problems)} mistakes:", *self.problems])
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems, self.where)


def find(path: str | Path, verb: str = "") -> Path:
    """The file of a config: the path itself, else one of the shipped configs (`demo.yaml`, `probe/digits.yaml`).

    verb: the folder of shipped configs in which a bare file name is looked for as well. A shipped config may be called without its
    `.yaml`: `simclr` and `pretrain/simclr` are pretrain/simclr.yaml for the verb pretrain. Raises ConfigError.
    """
    path = expanded(path)
    places = [path, CONFIGS / path, CONFIGS / verb / path]
    if path.parts[:1] == ("configs",):
        places.append(PACKAGE / path)
    for place in places:
        if os.path.exists(place) and not os.path.isdir(place):
            return place
    if path.suffix != ".yaml":  # also where a folder of yours has the name of a config that ships
        for place in (place.with_name(f"{place.name}.yaml") for place in reversed(places[1:])):
            if os.path.isfile(place):
                return place
    if os.path.isdir(path):
        raise ConfigError([f"{path} is a folder; give one YAML file of it"])
    shipped = sorted(file.relative_to(CONFIGS).as_posix() for file in CONFIGS.rglob("*.yaml"))
    beside = [str(path.parent / name) for name in _listed(path.parent) if name.endswith(".yaml")]
    close = nearest(str(path), beside + shipped)
    if close is None and (stem := nearest(path.stem, [Path(name).stem for name in shipped])):
        same = [name for name in shipped if Path(name).stem == stem]
        close = next((name for name in same if name.startswith(f"{verb}/")), same[0])
    question = f"; did you mean {close}?" if close else ""
    own = [name for name in shipped if name.startswith(f"{verb}/")] or shipped
    raise ConfigError(
        [
            f"{spelt(str(path))}: no such config here or among those that ship{question} (shipped: {', '.join(own) or 'none'})"
        ]
    )


def _listed(folder: Path) -> list[str]:
    """The names in a folder, sorted; none if it cannot be listed."""
    try:
        return sorted(os.listdir(folder))
    except (OSError, ValueError):
        return []


def read(path: str | Path) -> dict[str, Any]:
    """The mapping in one YAML file, neither merged nor checked. Raises ConfigError with file, line and column."""
    problems: list[str] = []
    tree = read_into(Path(path), problems)
    if problems:
        raise ConfigError(problems)
    return tree


class _Loader(BoundedLoader):
    """A bounded loader, but as in YAML 1.2 `1e-3` is a number, `on` and dates are text; a doubled key is noted."""

    def __init__(self, text: str, where: str) -> None:
        super().__init__(text)
        self.name = where
        self.problems: list[str] = []

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            line, column = key.start_mark.line + 1, key.start_mark.column + 1
            if key.value in first:
                again = (
                    f"the key {spelt(key.value)} is given twice (first in line {first[key.value]}); keep one of them"
                )
                self.problems.append(f"{self.name}:{line}:{column}: {again}")
            first.setdefault(key.value, line)
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in ("timestamp", "bool")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("true|True|TRUE|false|False|FALSE"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def parse(text: str, where: str, problems: list[str]) -> Any:
    """Parse a YAML text. Keys given twice are added to `problems`; invalid YAML raises ConfigError."""
    tree, doubled = _parsed(text, where)
    problems.extend(doubled)
    return copy.deepcopy(tree)


@functools.lru_cache(maxsize=1024)  # the stages of a pipeline share their files and most of their overrides
def _parsed(text: str, where: str) -> tuple[Any, tuple[str, ...]]:
    """(the value, a sentence for each key given twice). Raises ConfigError."""
    try:
        loader = _Loader(text, where)
        tree = loader.get_single_data()
        json.dumps(tree, default=str, skipkeys=True)  # raises ValueError for integers of thousands of digits
    except Excess as error:
        mark: Any = error.problem_mark
        raise ConfigError(
            [f"{where}:{mark.line + 1}:{mark.column + 1}: {error.problem}; write it out, and shorter"]
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        begun = error.context_mark if error.context_mark and error.context_mark.line != (mark and mark.line) else None
        opened = f" {error.context} begun in line {begun.line + 1}" if begun else ""
        raise ConfigError([f"{place}: not valid YAML: {error.problem or error.context}{opened}"]) from None
    except yaml.reader.ReaderError as error:
        place = f"{where}:{text.count(chr(10), 0, error.position) + 1}"
        raise ConfigError(
            [f"{place}: not valid YAML: the character {error.character:#x} may not stand in it"]
        ) from None
    except (ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, TypeError) as error:
        # PyYAML's, for `!!bool maybe` and such
        raise ConfigError([f"{where}: not valid YAML: {error}"]) from None
    return tree, tuple(loader.problems)


def parse_override(text: str, where: str, problems: list[str]) -> Any:
    """As `parse`, for the value of KEY=VALUE: a word with a colon at its end, such as `idx:FILE?rows=10000:`, is text and no mapping."""
    value = parse(text, where, problems)
    ends_with_colon = isinstance(value, dict) and text.rstrip().endswith(":") and len(text.split()) == 1
    return text.strip() if ends_with_colon and not text.lstrip().startswith(("[", "{", '"', "'")) else value


def override_of(key: str, value: Any, default: Callable[[Any], Any] | None = None) -> str:
    """KEY=VALUE with the value as JSON, which `parse` reads as the same. default: as of `json.dumps`, which may raise TypeError."""
    text = json.dumps(value, ensure_ascii=False, default=default)  # json's pairs of escapes are two characters for YAML
    return f"{key}=" + _NOT_IN_YAML.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def plain_override_of(key: str, value: Any) -> str:
    """As `override_of`, but a text that is read as itself is not quoted: for people."""
    try:
        plain = isinstance(value, str) and parse_override(value, "", []) == value
    except ConfigError:
        plain = False
    return f"{key}={value}" if plain else override_of(key, value)


def read_into(path: Path, problems: list[str]) -> dict[str, Any]:
    """As `read`, but keys given twice are added to `problems` instead of raised."""
    try:
        text = read_text(path, LARGEST_YAML)
    except Unreadable as error:
        raise ConfigError([f"{path}: cannot be read: {error}; give a config, a YAML file"]) from None
    tree = parse(text, str(path), problems)
    if not isinstance(tree, Mapping | None):
        raise ConfigError([f"{path}: expected a mapping of sections, got {show(tree)}"])
    return dict(tree or {})
