"""House rules about rooms, sizes and names: rooms import only downwards, there is no import circle, files and functions stay short."""

import ast
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest

from rootstock.tests.house.source import (
    ROOT,
    Function,
    executed,
    imported,
    module_file,
    outside_tests,
    public_names,
    sources,
    tree,
)

# A room of core/ may import those before its own group. Rooms of one group don't import each other.
ORDER = (
    {"ground"},
    {"config"},
    {"images"},
    {"views"},
    {"model"},
    {"stream"},
    {"run"},
    {"train", "evaluate", "convert"},
    {"stage"},
)
FLOOR = {room: floor for floor, rooms in enumerate(ORDER) for room in rooms}
LINES, FUNCTION_LINES = 300, 60
# The attributes of a method: core/method.py gives each a default or requires it, so nobody has to ask whether one is there.
CONTRACT = {
    "after_step",
    "backbone",
    "chunk",
    "classifier",
    "conclude",
    "constant_rate",
    "couples_samples",
    "frozen",
    "keeps_head",
    "paint",
    "rows_per_position",
    "sees_target",
    "skipped",
    "takes_chunk",
    "takes_local",
    "turns",
    "views",
}
# Names that may live in several files, and why.
SHARED_NAMES = {
    "data_options": "the keys of a recipe's section `data`; each recipe has its own",
}
# launch/cli.py defines a function for each verb, and that is named as what does the verb's work.
COMMAND_LINE = Path("launch/cli.py")
PYTHON_API = Path("api.py")  # whose functions are called like what they call, as the verbs are


def room(path: Path) -> str | None:
    """The room of a file of core/: its folder, `stage` or `ground`. None outside core/."""
    if path.parts[0] != "core":
        return None
    if len(path.parts) > 2:
        return path.parts[1]
    return "stage" if path.stem == "stage" else "ground"


def imported_files(source: ast.Module, path: Path, known: set[Path]) -> set[Path]:
    """The files of ours that a module imports when it runs, imports inside functions included."""
    names = (name for name, relative in imported(executed(source), path) if relative)
    return {file for name in names if (file := module_file(name, known)) is not None}


def upward_imports(source: ast.Module, path: Path, known: set[Path]) -> list[str]:
    """Imports of a file of core/ that go to a room above its own or beside it."""
    own = room(path)
    wrong = []
    for file in sorted(imported_files(source, path, known)):
        other = room(file)
        if own is not None and other is not None and other != own and FLOOR[other] >= FLOOR[own]:
            wrong.append(f"{path} ({own}) imports {file} ({other})")
    return wrong


def imports_between_finetune_rooms(source: ast.Module, path: Path, known: set[Path]) -> list[str]:
    """Imports of a file in a room of finetune/ that go to another room, or up to finetune/*.py."""
    if path.parts[0] != "finetune" or len(path.parts) < 3:
        return []
    return [
        f"{path} imports {file}"
        for file in sorted(imported_files(source, path, known))
        if file.parts[0] == "finetune" and file.parent != path.parent
    ]


def circle(graph: Mapping[Path, set[Path]]) -> list[Path]:
    """A circle of imports: its files in order, the first again at the end. Empty if there is none."""
    done: set[Path] = set()

    def visit(path: Path, way: list[Path]) -> list[Path]:
        if path in way:
            return [*way[way.index(path) :], path]
        if path in done:
            return []
        for file in sorted(graph.get(path, ())):
            if found := visit(file, [*way, path]):
                return found
        done.add(path)
        return []

    for start in graph:
        if found := visit(start, []):
            return found
    return []


def inner_imports(source: ast.Module) -> list[int]:
    """Lines of imports inside functions."""
    return sorted(
        {
            node.lineno
            for function in ast.walk(source)
            if isinstance(function, Function)
            for node in ast.walk(function)
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
    )


def long_functions(source: ast.Module) -> list[tuple[str, int]]:
    """(name, lines) of functions that are too long, from `def` to the last line."""
    lengths = (
        (node.name, (node.end_lineno or node.lineno) - node.lineno + 1)
        for node in ast.walk(source)
        if isinstance(node, Function)
    )
    return [(name, lines) for name, lines in lengths if lines > FUNCTION_LINES]


def guesses_at_methods(source: ast.Module) -> list[str]:
    """Calls of getattr and the like that ask for an attribute of the method contract."""
    return [
        ast.unparse(node)
        for node in ast.walk(source)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("getattr", "hasattr", "inspect.getattr_static", "getattr_static")
        and len(node.args) > 1
        and isinstance(node.args[1], ast.Constant)
        and node.args[1].value in CONTRACT
    ]


def test_every_room_of_core_has_a_floor() -> None:
    assert {room(path) for path in sources()} - {None} <= set(FLOOR)


def test_rooms_of_core_import_only_downwards() -> None:
    known = set(sources())
    assert [line for path in known for line in upward_imports(tree(path), path, known)] == []


def test_rooms_of_finetune_do_not_import_each_other() -> None:
    known = set(sources())
    assert [line for path in known for line in imports_between_finetune_rooms(tree(path), path, known)] == []


def test_no_import_circle() -> None:
    known = set(sources())
    found = circle({path: imported_files(tree(path), path, known) for path in sorted(known)})
    assert not found, " -> ".join(map(str, found))


def test_no_imports_inside_functions_of_ssl_and_adapt() -> None:
    paths = [path for path in sources() if path.parts[0] in ("ssl", "adapt")]
    assert {str(path): lines for path in paths if (lines := inner_imports(tree(path)))} == {}


def test_files_are_short() -> None:
    lengths = {path: len((ROOT / path).read_text().splitlines()) for path in outside_tests()}
    wrong = [f"{path}: {lines} lines" for path, lines in lengths.items() if lines > LINES]
    assert not wrong, "\n".join(wrong)


def test_functions_are_short() -> None:
    wrong = [f"{path}: {name}, {lines} lines" for path in outside_tests() for name, lines in long_functions(tree(path))]
    assert not wrong, "\n".join(wrong)


def test_a_public_name_lives_in_one_file() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for path in sources():
        if path not in (COMMAND_LINE, PYTHON_API):
            for name in public_names(tree(path)):
                homes[name].append(str(path))
    several = {name: files for name, files in homes.items() if len(files) > 1}
    wrong = [f"{name}: {', '.join(files)}" for name, files in sorted(several.items()) if name not in SHARED_NAMES]
    assert not wrong, "\n".join(wrong)
    assert set(SHARED_NAMES) <= set(several), "an exception that nothing needs any more"


def test_nobody_asks_whether_a_method_has_an_attribute() -> None:
    paths = [path for path in outside_tests() if path != Path("core/registration.py")]
    assert {str(path): found for path in paths if (found := guesses_at_methods(tree(path)))} == {}


KNOWN = {
    Path(name)
    for name in (
        "__init__.py",
        "core/draws.py",
        "core/stage.py",
        "core/config/resolve.py",
        "core/model/norm.py",
        "core/train/fit.py",
        "core/evaluate/knn.py",
        "finetune/probe.py",
        "finetune/protocols/tokens.py",
        "finetune/baselines/hog.py",
    )
}


@pytest.mark.parametrize(
    ("path", "line", "wrong"),
    [
        ("core/draws.py", "from .config.resolve import load", True),
        ("core/draws.py", "def f():\n    from .model import norm", True),
        ("core/config/resolve.py", "from ..train.fit import fit", True),
        ("core/evaluate/knn.py", "from ..train import fit", True),
        ("core/train/fit.py", "from ..stage import feed", True),
        ("core/train/fit.py", "from ..model.norm import configure\nfrom ..draws import Draws", False),
        ("core/stage.py", "from .train.fit import fit\nfrom .. import __version__", False),
        ("core/draws.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .model import norm", False),
        ("ssl/simclr.py", "from ..core.train.fit import fit", False),
    ],
)
def test_an_upward_import_is_seen(path: str, line: str, wrong: bool) -> None:
    assert bool(upward_imports(ast.parse(line), Path(path), KNOWN)) == wrong


@pytest.mark.parametrize(
    ("path", "line", "wrong"),
    [
        ("finetune/baselines/hog.py", "from ..protocols.tokens import f", True),
        ("finetune/baselines/hog.py", "from ..probe import f", True),
        ("finetune/probe.py", "from .protocols.tokens import f\nfrom .baselines import hog", False),
        ("finetune/protocols/tokens.py", "from ...core.draws import Draws", False),
    ],
)
def test_an_import_between_finetune_rooms_is_seen(path: str, line: str, wrong: bool) -> None:
    assert bool(imports_between_finetune_rooms(ast.parse(line), Path(path), KNOWN)) == wrong


def test_a_circle_is_seen() -> None:
    a, b, c, d = map(Path, "abcd")
    assert circle({a: {b, c}, b: {c}, c: {d}, d: set()}) == []
    assert circle({a: {b}, b: {c}, c: {b, d}, d: set()}) == [b, c, b]
    assert circle({a: {a}}) == [a, a]


def test_the_rules_see_what_they_forbid() -> None:
    assert inner_imports(ast.parse("import a\nclass B:\n    def f(self):\n        from c import d")) == [4]
    body = "\n".join(["    x = 1"] * FUNCTION_LINES)
    assert long_functions(ast.parse(f"def f():\n{body}")) == [("f", FUNCTION_LINES + 1)]
    assert guesses_at_methods(ast.parse("getattr(method, 'takes_local', False); getattr(x, 'y')"))
    assert public_names(ast.parse("a = 1\n_b = 2\nc: int = 3\ndef d(): ...\nclass E: ...")) == {"a", "c", "d", "E"}
