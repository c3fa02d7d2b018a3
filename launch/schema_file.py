"""configs/schema.json: the JSON schema that ships, so that mistakes, help and completion need no torch. `make schema` writes it."""

import ast
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from ..core.config.yaml_file import CONFIGS, PACKAGE

SCHEMA_FILE = CONFIGS / "schema.json"
_FOLDERS = ("core", "ssl", "finetune", "adapt")
_SOURCES = "x-sources"


@functools.cache
def stored_schema() -> dict[str, Any] | None:
    """The schema that ships; None where the file is missing or damaged."""
    try:
        return json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def verbs_of(schema: Mapping[str, Any]) -> list[str]:
    """The verbs whose configs a schema describes."""
    return [part["$ref"].removeprefix("#/$defs/") for part in schema["anyOf"]]


def schema_text() -> str:
    """What the file has to hold, from the constructors. Imports torch."""
    from .verbs import schema

    return json.dumps({**schema(), _SOURCES: _interfaces()}, indent=1, ensure_ascii=False) + "\n"


def is_current(schema: Mapping[str, Any]) -> bool:
    """Whether no constructor has changed since the file was written: someone may be adding a key or a method."""
    return schema.get(_SOURCES) == _interfaces()


def is_outdated(schema: Mapping[str, Any]) -> bool:
    """Whether sources changed since the schema was written; False for a schema that names no sources."""
    return _SOURCES in schema and not is_current(schema)


def _interfaces() -> dict[str, str]:
    """A hash of what each source file adds to the schema: keyword-only parameters, fields of classes, constants and registries."""
    found = {}
    for file in sorted(path for folder in _FOLDERS for path in (PACKAGE / folder).rglob("*.py")):
        text = "\n".join(_declared(ast.parse(file.read_text(encoding="utf-8"))))
        if text:
            found[file.relative_to(PACKAGE).as_posix()] = hashlib.sha256(text.encode()).hexdigest()[:12]
    return found


def _declared(tree: ast.Module) -> Iterator[str]:
    for node in _outside_functions(tree):
        if isinstance(node, ast.FunctionDef) and node.args.kwonlyargs:
            yield node.name
            yield from (ast.dump(part) if part else "" for part in (*node.args.kwonlyargs, *node.args.kw_defaults))
        elif isinstance(node, ast.ClassDef):
            yield from (ast.dump(part) for part in node.body if isinstance(part, ast.AnnAssign))
    yield from (ast.dump(part) for part in tree.body if isinstance(part, ast.Assign | ast.AnnAssign))


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a module in the order of its text, without those inside of functions, which declare no key."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield child
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _outside_functions(child)


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
