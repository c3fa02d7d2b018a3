"""A verb without its CONFIG lists the configs that ship; every line is a whole statement of the config's header."""

import re
import subprocess
from collections.abc import Callable

import pytest

from rootstock.core.config.yaml_file import CONFIGS, find
from rootstock.launch.shipped import first_statement, shipped

Rootstock = Callable[..., subprocess.CompletedProcess[str]]
VERBS = ("pretrain", "probe", "finetune", "adapt", "sweep", "run", "attribute")
LONGEST, SHORTEST = 98, 25


def without_asides(text: str) -> str:
    """Without what stands in parentheses, letter by letter."""
    kept, depth = "", 0
    for letter in text:
        depth += letter == "("
        if not depth:
            kept += letter
        depth -= letter == ")"
    return re.sub(r" +([,.:;])", r"\1", re.sub(" +", " ", kept))


def described(text: str) -> str:
    lines = text.partition("# Command")[0].splitlines()
    return without_asides(" ".join(line.removeprefix("# ") for line in lines if line.startswith("#")))


@pytest.mark.parametrize("verb", VERBS)
def test_each_line_is_a_whole_statement(verb: str) -> None:
    for name, line in shipped(verb).items():
        file = find(name, verb)
        header = described(file.read_text())
        assert SHORTEST <= len(line) <= LONGEST, (
            f"{name}: {line}; put a colon or a full stop into the header's first sentence"
        )
        assert header.startswith(line), name
        assert re.match(r"[.:;]( |$)", header[len(line) :]), f"{name}: {line} is cut"
        assert "(" not in line and "arXiv" not in line


def test_every_config_is_listed_once() -> None:
    found = [find(name, verb) for verb in VERBS for name in shipped(verb)]
    assert sorted(found) == sorted(CONFIGS.rglob("*.yaml"))


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("# A (of B (C 2020)) on D. Then E.", "A on D"),
        ("# A at 2.5 px: then C", "A at 2.5 px"),
        ("# A with\n# B; C\n# Time      1 s", "A with B"),
        ("# A\n# Command   rootstock", "A"),
        ("data: {}", ""),
    ],
)
def test_where_a_statement_ends(header: str, line: str) -> None:
    assert first_statement(header) == line


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_without_a_config_lists_those_that_ship(verb: str, rootstock: Rootstock) -> None:
    done = rootstock(verb)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: rootstock {verb} needs a config")
    assert f"\n  rootstock {verb} " in done.stderr  # how one is used
    words = " ".join(done.stderr.split())
    for name, line in shipped(verb).items():
        assert f" {name} {' '.join(line.split())} " in words


def test_launch_lists_the_configs_of_the_verb(rootstock: Rootstock) -> None:
    done = rootstock("launch", "--nproc", "2", "probe")
    assert done.returncode == 2 and "rootstock launch probe small data.train=folder:labelled" in done.stderr
    assert "rootstock launch --help" in done.stderr and "simclr" not in done.stderr.partition("\n\n")[2]


def test_a_key_in_the_place_of_the_config_is_named(rootstock: Rootstock) -> None:
    done = rootstock("probe", "data.size=32")
    assert done.returncode == 2
    assert done.stderr == (
        "error: data.size=32 stands where the config belongs; `rootstock probe` alone lists those that ship\n"
    )


def test_small_comes_first() -> None:
    for verb in ("pretrain", "probe", "finetune", "adapt"):
        assert next(iter(shipped(verb))) == "small"
