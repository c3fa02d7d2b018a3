"""Reads the source of the package for the house's tests: files, imports and module-level names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("core", "ssl", "finetune", "adapt", "launch")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> list[Path]:
    """Every module that ships, relative to the checkout."""
    return sorted(
        path.relative_to(ROOT)
        for path in (*ROOT.glob("*.py"), *(p for name in PACKAGES for p in (ROOT / name).rglob("*.py")))
    )


def outside_tests() -> list[Path]:
    """Every Python file besides the tests, relative to the checkout."""
    others = [path for folder in ("benchmarks", "docs") for path in (ROOT / folder).rglob("*.py")]
    return sources() + sorted(path.relative_to(ROOT) for path in others)


@cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a file. path: relative to the checkout."""
    return ast.parse((ROOT / path).read_text())


def imported(tree: ast.AST, path: Path) -> Iterator[tuple[str, bool]]:
    """The dotted names that a module imports, and whether relatively; relative ones are resolved from the checkout's root."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            start = path.parent.parts[: len(path.parent.parts) - node.level + 1]
            base = ".".join((*start, *(node.module or "").split("."))).strip(".")
            yield from ((f"{base}.{alias.name}".strip("."), True) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", False) for alias in node.names)


def executed(node: ast.Module) -> ast.Module:
    """The module without its blocks under `if TYPE_CHECKING`, which only type checkers read."""
    for_types = [
        part
        for part in node.body
        if isinstance(part, ast.If) and ast.unparse(part.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    ]
    return ast.Module([part for part in node.body if part not in for_types], [])


def module_file(name: str, known: set[Path]) -> Path | None:
    """The file of a dotted name that names a module or something in one, e.g. core.draws.Draws -> core/draws.py."""
    parts = name.split(".") if name else []
    for candidate in (parts, parts[:-1]):
        if candidate and (path := Path(*candidate).with_suffix(".py")) in known:
            return path
    return Path("__init__.py") if len(parts) < 2 else None


def public_names(node: ast.Module) -> set[str]:
    """Functions, classes and variables that the module defines at its top level, without names that begin with an underscore."""
    names: set[str] = set()
    for part in node.body:
        if isinstance(part, Function | ast.ClassDef):
            names.add(part.name)
        elif isinstance(part, ast.Assign):
            names |= {target.id for target in part.targets if isinstance(target, ast.Name)}
        elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            names.add(part.target.id)
    return {name for name in names if not name.startswith("_")}
