"""JSON and YAML from files that anybody may have written, read with limits: no file costs more than seconds and some memory.

A YAML text of a few hundred bytes can stand for billions of values, because an alias repeats what it names. So the limits are on what a
text stands for, not only on its length. A value counts 1, a text 1 more for each 64 characters.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError

LARGEST_YAML = 2**20  # bytes of a YAML file: PyYAML reads 100 kB/s
LARGEST_JSON = 2**28  # bytes of a JSON file: a confusion matrix of 1,000 classes takes a few MB
DEEPEST = 64  # levels of nesting
MOST_VALUES = 100_000  # values that a YAML text may stand for


class Unreadable(ValueError):
    """Why a file or a text cannot be read; the message is the reason alone and names no file."""


class Excess(yaml.MarkedYAMLError):
    """A YAML text that stands for too much; `problem` says what, `problem_mark` where."""


class BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader, with a limit on nesting and on the values that a text stands for once its aliases are expanded.

    Raises Excess as soon as a limit is passed, before anything is built.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.open_nodes = 0
        self.weights: dict[int, tuple[int, int]] = {}  # id of a finished node: (values, levels), expanded

    def compose_node(self, parent: Any, index: Any) -> Any:
        alias, mark = self.check_event(yaml.AliasEvent), self.peek_event().start_mark
        self.open_nodes += 1
        if self.open_nodes > DEEPEST:
            raise Excess(None, None, f"nested in more than {DEEPEST} levels", mark)
        node: Any = super().compose_node(parent, index)
        self.open_nodes -= 1
        if alias and id(node) not in self.weights:
            raise Excess(None, None, "an alias stands for something that contains itself", mark)
        if not alias:
            self.weights[id(node)] = self._weight(node)
        values, levels = self.weights[id(node)]
        if values > MOST_VALUES:
            raise Excess(None, None, f"stands for more than {MOST_VALUES:,} values", mark)
        if levels > DEEPEST:
            raise Excess(None, None, f"nested in more than {DEEPEST} levels", mark)
        return node

    def _weight(self, node: Any) -> tuple[int, int]:
        if isinstance(node, yaml.ScalarNode):
            return 1 + len(node.value) // 64, 1
        pairs = isinstance(node, yaml.MappingNode)
        children = [self.weights[id(child)] for entry in node.value for child in (entry if pairs else (entry,))]
        return 1 + sum(values for values, _ in children), 1 + max((levels for _, levels in children), default=0)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises Unreadable."""
    try:
        tree = json.loads(text)
    except RecursionError:
        raise Unreadable(f"nested in more than {DEEPEST} levels") from None
    except UnicodeDecodeError:
        raise Unreadable("its bytes are no text") from None
    except ValueError as error:  # integers of thousands of digits included
        raise Unreadable(f"not valid JSON ({error})" if text.strip() else "empty") from None
    level = [tree]
    for _ in range(DEEPEST):
        level = [child for node in level for child in _inside(node) if isinstance(child, dict | list)]
        if not level:
            return tree
    raise Unreadable(f"nested in more than {DEEPEST} levels")


def _inside(node: Any) -> Any:
    return node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, as yaml.safe_load reads it. Raises Unreadable."""
    loader = None
    try:
        loader = BoundedLoader(text)
        tree = loader.get_single_data()
        json.dumps(tree, default=str, skipkeys=True)  # raises ValueError for integers of thousands of digits
        return tree
    except Excess as error:
        raise Unreadable(str(error.problem)) from None
    except yaml.YAMLError as error:
        raise Unreadable(f"not valid YAML ({' '.join(str(error).split())[:200]})") from None
    except (ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, TypeError) as error:
        # PyYAML's, for `!!bool maybe` and such
        raise Unreadable(f"not valid YAML ({error})") from None
    finally:
        if loader is not None:
            loader.dispose()


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises Unreadable."""
    return parse_json(read_bytes(path, LARGEST_JSON))


def read_yaml(path: Path) -> Any:
    """The value in a YAML file, as yaml.safe_load reads it. Raises Unreadable."""
    return parse_yaml(read_text(path, LARGEST_YAML))


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file that an earlier command wrote. Raises UserError with the file and a remedy."""
    try:
        found = read_yaml(path) if path.suffix == ".yaml" else read_json(path)
    except Unreadable as error:
        raise UserError(f"{path} is damaged ({error}); restore it, or delete {path.parent}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged (it holds no mapping); restore it, or delete {path.parent}")
    return found


def read_text(path: Path, most: int) -> str:
    """The text of a regular file in UTF-8 of at most `most` bytes. Raises Unreadable."""
    try:
        return read_bytes(path, most).decode("utf-8")
    except UnicodeDecodeError:
        raise Unreadable("not a text file in UTF-8") from None


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes. Raises Unreadable, also for a pipe or a device, which may have no end."""
    try:
        handle = os.open(
            path, os.O_RDONLY | os.O_NONBLOCK
        )  # to open a pipe that nobody writes to would else wait for ever
        status, content = os.fstat(handle), b""
        if stat.S_ISREG(status.st_mode) and status.st_size <= most:
            with open(handle, "rb") as file:
                content = file.read(most + 1)
        else:
            os.close(handle)
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from None
    except ValueError as error:  # a NUL in the path
        raise Unreadable(str(error)) from None
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable("a folder, a pipe or a device, not a file")
    if max(status.st_size, len(content)) > most:
        raise Unreadable(f"larger than {most >> 20} MiB, which no such file is")
    return content


def flattened(facts: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        where = f"{path}.{name}" if path else str(name)
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, where)
        else:
            flat[where] = value
    return flat
