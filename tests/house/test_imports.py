"""House rules that can be read off the source: who imports whom, and what nobody may call."""

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

from rootstock.tests.house.source import PACKAGES, ROOT, imported, sources

# What each package may import of ours, besides the root and itself.
BELOW = {
    "core": set(),
    "ssl": {"core"},
    "finetune": {"core"},
    "adapt": {"core"},
    "launch": {"core", "ssl", "finetune", "adapt"},
}
MAY_IMPORT_ACCELERATE = {
    "core/train/fit.py",
    "core/distributed.py",
    "core/evaluate/features.py",
    "core/run/accelerator.py",
    "core/run/trackers.py",
}
# The one place that reads pickles: with weights_only, in a process of its own.
MAY_LOAD = "core/convert/load.py"
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}


def misplaced_imports(source: str, path: Path) -> list[str]:
    """The imports of a module at `path` (relative to the checkout) that break the house's direction."""
    wrong = []
    own = path.parts[0] if len(path.parts) > 1 else ""
    for name, relative in imported(ast.parse(source), path):
        top = name.partition(".")[0]
        if relative:
            if top in PACKAGES and own and top != own and top not in BELOW[own]:
                wrong.append(f"{name}: {own} does not import {top}")
        elif top == "rootstock":
            wrong.append(f"{name}: inside the package, imports are relative")
        # Python's own ssl is what `import ssl` gives, from anywhere; the other names would be second copies of our classes.
        elif top in PACKAGES and top != "ssl":
            wrong.append(f"{name}: makes a second copy of the package; import relatively")
        elif top == "accelerate" and own != "launch" and path.as_posix() not in MAY_IMPORT_ACCELERATE:
            wrong.append(f"{name}: accelerate stays in {', '.join(sorted(MAY_IMPORT_ACCELERATE))} and launch/")
    return wrong


def unsafe_uses(source: str, path: Path) -> list[str]:
    """What could run code that a file holds, or code that a config holds."""
    tree = ast.parse(source)
    wrong = [f"import {name}" for name, _ in imported(tree, path) if name.partition(".")[0] in UNSAFE_MODULES]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in {"eval", "exec", "builtins.eval", "builtins.exec", "torch.load", "torch.save"}:
            weights_only = any(
                keyword.arg == "weights_only"
                and isinstance(keyword.value, ast.Constant)
                and keyword.value.value is True
                for keyword in node.keywords
            )
            if not (called == "torch.load" and path.as_posix() == MAY_LOAD and weights_only):
                wrong.append(f"{called}()")
        if called.startswith("yaml.") and called.removeprefix("yaml.") in {
            "load",
            "load_all",
            "unsafe_load",
            "full_load",
        }:
            loaders = [*node.args[1:2], *(keyword.value for keyword in node.keywords if keyword.arg == "Loader")]
            # A subclass of SafeLoader (one that refuses duplicate keys) is constructed directly, without yaml.load.
            wrong.append(f"{called}() with {[ast.unparse(loader) for loader in loaders] or 'no loader'}")
        for keyword in node.keywords:
            if keyword.arg == "allow_pickle" and not (
                isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            ):
                wrong.append(f"{called}(allow_pickle={ast.unparse(keyword.value)})")
    return wrong


def in_files(check: Callable[[str, Path], list[str]]) -> dict[str, list[str]]:
    """What a check finds in each source file, those without anything left out."""
    found = {str(path): check((ROOT / path).read_text(), path) for path in sources()}
    return {path: wrong for path, wrong in found.items() if wrong}


def test_imports_go_one_way() -> None:
    assert in_files(misplaced_imports) == {}


def test_nothing_runs_what_a_file_holds() -> None:
    assert in_files(unsafe_uses) == {}


def test_only_the_root_is_a_package() -> None:
    """An ssl/__init__.py would hide Python's ssl from everything that runs in the checkout; one rule for all folders."""
    found = [p for name in (*PACKAGES, "configs", "tests", "benchmarks") for p in (ROOT / name).rglob("__init__.py")]
    assert found == []


def test_tests_and_benchmarks_make_no_second_copy() -> None:
    for path in [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        names = imported(ast.parse(path.read_text()), path)
        tops = {name.partition(".")[0] for name, relative in names if not relative}
        assert tops & (set(PACKAGES) - {"ssl"}) == set(), path


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("core/x.py", "from ..ssl.simclr import SimCLR"),
        ("core/x.py", "from ..launch import cli"),
        ("core/x.py", "from .. import launch"),
        ("core/images/x.py", "from ...finetune.logreg import f"),
        ("ssl/x.py", "from ..adapt.dann import DANN"),
        ("finetune/x.py", "def f():\n    from ..ssl import recipe"),
        ("adapt/x.py", "from ..launch.report import f"),
        ("core/x.py", "import core.train"),
        ("launch/x.py", "from core.train import fit"),
        ("launch/x.py", "from rootstock.core.train import fit"),
        ("core/images/x.py", "import rootstock"),
        ("ssl/simclr.py", "from accelerate import Accelerator"),
        ("core/views/view.py", "import accelerate.utils"),
    ],
)
def test_a_wrong_import_is_seen(path: str, line: str) -> None:
    assert misplaced_imports(line, Path(path))


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("core/train/fit.py", "from accelerate import Accelerator"),
        ("launch/x.py", "from ..adapt.dann import DANN\nfrom .report import f\nimport accelerate"),
        ("core/images/x.py", "from ..draws import Draws\nfrom .tar import f\nimport ssl"),
        ("ssl/pretrain.py", "from .simclr import SimCLR\nfrom ..core.train import fit"),
        ("__main__.py", "from .launch.cli import main"),
    ],
)
def test_a_right_import_passes(path: str, line: str) -> None:
    assert misplaced_imports(line, Path(path)) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "exec('pass')",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.FullLoader)",
        "yaml.unsafe_load(text)",
        "np.load(f, allow_pickle=True)",
        "np.load(f, allow_pickle=flag)",
        "torch.load(path)",
    ],
)
def test_an_unsafe_use_is_seen(line: str) -> None:
    assert unsafe_uses(line, Path("core/x.py"))


def test_only_one_module_loads_and_only_weights() -> None:
    assert unsafe_uses("torch.load(path, weights_only=True)", Path("core/x.py"))
    assert not unsafe_uses("torch.load(path, weights_only=True)", Path(MAY_LOAD))
    for line in ("torch.load(path)", "torch.load(path, weights_only=False)", "torch.load(path, weights_only=safe)"):
        assert unsafe_uses(line, Path(MAY_LOAD))


def test_a_safe_use_passes() -> None:
    lines = "model.eval()\nyaml.safe_load(text)\nnp.load(f, allow_pickle=False)\nsafetensors.torch.load_file(p)"
    assert unsafe_uses(lines, Path("core/x.py")) == []
