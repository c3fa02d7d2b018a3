"""`make check`: lint, types and tests of what differs from the last commit, in under a minute.

For each changed module, the test file of its name runs; where there is none, those that import it. A changed test file runs too, a changed
config is checked (`tests/test_configs.py`), a changed page with all others (`tests/test_documents.py`), and so are the house's rules. Tests
of the longer tiers and those of whole commands that are stopped, resumed or on two processes are left out: `make test` runs these.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from rootstock.tests.conftest import LONG
from rootstock.tests.house.source import PACKAGES, ROOT, imported

PAGES = (".md", ".ipynb")
HOUSE = [Path("tests", name) for name in ("house/test_rooms.py", "house/test_imports.py", "launch/test_schema_file.py")]


def changed() -> list[Path]:
    """Python files, configs and pages that differ from the last commit or are not under version control, relative to the checkout."""
    commands = [["diff", "--name-only", "HEAD"], ["ls-files", "--others", "--exclude-standard"]]
    lines = [
        line
        for command in commands
        for line in subprocess.check_output(["git", *command], cwd=ROOT, text=True).splitlines()
    ]
    kinds = (".py", ".yaml", *PAGES)
    return sorted({Path(line) for line in lines if line.endswith(kinds) and (ROOT / line).is_file()})


def tests_of(path: Path, tests: list[Path]) -> list[Path]:
    """The test files of a changed file. tests: all test files, relative to the checkout."""
    if path in tests:
        return [path]
    if path.suffix in PAGES:
        return [Path("tests", "test_documents.py")]
    if path.parts[0] in (*PACKAGES, "benchmarks"):
        named = [test for test in tests if test.name == f"test_{path.stem}.py" and test.parts[1] == path.parts[0]]
        mirrored = [test for test in named if test.parent == Path("tests") / path.parent]
        if named:
            return mirrored or named
    module = ".".join(("rootstock", *path.with_suffix("").parts))
    return [
        test
        for test in tests
        if test.name not in LONG
        and any(f"{name}.".startswith(f"{module}.") for name, _ in imported(ast.parse((ROOT / test).read_text()), test))
    ]


def main() -> int:
    differing = changed()
    files = [path for path in differing if path.suffix == ".py"]
    configs = [path.stem for path in differing if path.parts[0] == "configs" and path.suffix == ".yaml"]
    tests = sorted(path.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py"))
    pages = [path for path in differing if path.suffix in PAGES]
    chosen = sorted({test for path in (*files, *pages) for test in tests_of(path, tests)} | set(HOUSE))
    names = [str(path) for path in files]
    commands = [["ruff", "check", "--quiet", "."], ["ruff", "format", "--check", "--quiet", "."]]
    if names:
        commands.append(["basedpyright", *names])
    print(f"{len(files)} changed files; tests: {' '.join(map(str, chosen))}", flush=True)
    commands.append(["pytest", "-q", "-n", "2", "--dist", "loadfile", *map(str, chosen)])
    if configs:
        print(f"changed configs: {' '.join(configs)}", flush=True)
        commands.append(["pytest", "-q", "tests/test_configs.py", "-k", " or ".join(configs)])
    codes = [subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=False).returncode for command in commands]
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
