"""The wheel holds what the checkout holds: packages are listed by hand, so a forgotten folder would be missing only for users."""

import email
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import rootstock
from rootstock.tests.house.source import PACKAGES, ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built without network from a copy, since setuptools leaves a build folder beside what it builds."""
    copy, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("wheel")
    for path in ROOT.iterdir():
        if path.is_dir() and path.name in (*PACKAGES, "configs", "tests", "benchmarks"):
            shutil.copytree(path, copy / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.is_file():
            shutil.copy(path, copy)
    command = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-build-isolation", "--no-deps", "--no-index"]
    done = subprocess.run([*command, "--wheel-dir", out, copy], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


def shipped() -> set[str]:
    """Every file of the checkout that a user needs, as the wheel should name it."""
    files = [*ROOT.glob("*.py"), ROOT / "py.typed"]
    files += [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    files += [path for path in (ROOT / "configs").rglob("*") if path.is_file()]
    files += [path for path in (ROOT / "launch").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    return {f"rootstock/{path.relative_to(ROOT).as_posix()}" for path in files}


def test_the_wheel_holds_every_module_config_and_template(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert inside == shipped()


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        (scripts,) = (name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt"))
        fields = email.message_from_bytes(archive.read(metadata))
        assert any(name.endswith("/LICENSE") for name in archive.namelist())
        assert "rootstock = rootstock.launch.cli:main" in archive.read(scripts).decode()
    assert fields["Requires-Python"] == ">=3.11"
    assert fields["License-Expression"] == "Apache-2.0"
    extras = [
        "adapt",
        "bench",
        "docs",
        "energy",
        "handcrafted",
        "lora",
        "medical",
        "onnx",
        "parquet",
        "prune",
        "quantize",
        "s3",
        "sweep",
        "test",
        "track",
    ]
    assert fields.get_all("Provides-Extra") == extras
    assert fields["Description-Content-Type"] == "text/markdown"
    assert fields.get_payload() == (ROOT / "README.md").read_text()
    addresses = dict(line.split(", ", 1) for line in fields.get_all("Project-URL") or ())
    assert {"Changelog", "Documentation", "Issues", "Source"} <= set(addresses)
    for address in addresses.values():  # files of the repository that it names are there
        _, _, path = address.partition("/blob/main/")
        assert (ROOT / path).exists(), address


def test_the_description_is_a_page(wheel: Path) -> None:
    """As PyPI renders it: headings, code, tables and the picture survive its cleaning."""
    markdown = pytest.importorskip("readme_renderer.markdown", reason="readme_renderer is not installed")
    shown = markdown.render((ROOT / "README.md").read_text())
    assert shown is not None and "<table>" in shown and "<img" in shown and "<pre" in shown and "<!-- test" not in shown


def test_the_citation_has_the_version() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == rootstock.__version__


def test_the_wheel_works_in_any_folder(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    (tmp_path / "elsewhere").mkdir()
    code = (
        "import ssl, rootstock, rootstock.launch.cli; from rootstock.core.config.yaml_file import find;"
        "print(rootstock.__file__, find('demo.yaml', 'run'), ssl.OPENSSL_VERSION, sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "elsewhere",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    explained = subprocess.run(
        [sys.executable, "-m", "rootstock", "help", "optim.lr"],
        cwd=tmp_path / "elsewhere",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert explained.returncode == 0 and "learning rate" in explained.stdout, explained.stderr
    package, config, library = done.stdout.splitlines()
    assert Path(package) == tmp_path / "site" / "rootstock" / "__init__.py"
    assert Path(config) == tmp_path / "site" / "rootstock" / "configs" / "demo.yaml"
    assert "SSL" in library


def test_every_dependency_is_pinned() -> None:
    """Each requirement of setup.cfg has an exact version in constraints.txt, and that version meets it."""
    import configparser

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    groups = [settings["options"]["install_requires"], *settings["options.extras_require"].values()]
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    pinned = {canonicalize_name(name): version for name, version in pinned.items()}
    for text in (line for group in groups for line in group.splitlines() if line):
        wanted = Requirement(text)
        assert wanted.specifier.contains(pinned[canonicalize_name(wanted.name)]), text
