"""Files that stand for more than they look like are refused within seconds and without memory, wherever they are read."""

import itertools
import json
import os
from pathlib import Path

import pytest

from rootstock.core.documents import (
    DEEPEST,
    MOST_VALUES,
    Unreadable,
    parse_json,
    parse_yaml,
    read_json,
    read_mapping,
    read_yaml,
)
from rootstock.core.errors import UserError
from rootstock.tests.conftest import Forks
from rootstock.tests.core.config.test_yaml_file import BOMB


@pytest.mark.parametrize(
    "text",
    [
        "a: 1",
        "[1, 2.5, true, null, on, 2001-01-01]",
        "a: &a {x: 1}\nb: {<<: *a, y: 2}",
        "1e-3",
        "",
        "- !!set {a, b}",
        "é: ü",
    ],
)
def test_ordinary_yaml_is_as_safe_load_reads_it(text: str) -> None:
    import yaml

    assert parse_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (BOMB, f"stands for more than {MOST_VALUES:,} values"),
        ("a: &z {x: 1}\n" + "".join(f"{b}: &{b} {{<<: [{','.join([f'*{a}'] * 9)}]}}\n" for a, b in itertools.pairwise("zabcdefgh")),
         f"stands for more than {MOST_VALUES:,} values"),
        ("[" * DEEPEST + "[" + "]" * (DEEPEST + 1), f"nested in more than {DEEPEST} levels"),
        ("- " * 10_000 + "1", f"nested in more than {DEEPEST} levels"),
        ("&a [*a]", "an alias stands for something that contains itself"),
        ("&a {b: {<<: *a}}", "an alias stands for something that contains itself"),
        ("a: [1, 2", "not valid YAML (while parsing a flow sequence"),
        ("a: !!timestamp 1", "not valid YAML ("),
        ("a: 1" + ":1" * 3000 + ".0", "not valid YAML (int too large"),
        ("a: !!python/name:os.system", "not valid YAML (could not determine a constructor"),
    ],
)  # fmt: skip
def test_yaml_that_is_refused(text: str, why: str) -> None:
    with pytest.raises(Unreadable) as caught:
        parse_yaml(text)
    assert str(caught.value).startswith(why) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 10_000 + "]" * 10_000, f"nested in more than {DEEPEST} levels"),
        ("[" * 100 + "]" * 100, f"nested in more than {DEEPEST} levels"),
        ('{"a":' * 100 + "1" + "}" * 100, f"nested in more than {DEEPEST} levels"),
        ("1" * 5000, "not valid JSON (Exceeds the limit"),
        ('{"a": 1', "not valid JSON ("),
        (b"\xff\xfe\x00", "its bytes are no text"),
        (b"\0" * 63, "its bytes are no text"),
        ("", "empty"),
    ],
)
def test_json_that_is_refused(text: str | bytes, why: str) -> None:
    with pytest.raises(Unreadable) as caught:
        parse_json(text)
    assert str(caught.value).startswith(why)


def test_the_deepest_that_is_read() -> None:
    text = "[" * DEEPEST + "]" * DEEPEST
    assert parse_yaml(text) == parse_json(text) == json.loads(text)


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "large.json", "wb") as file:
        file.truncate(2**28 + 1)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    for path, why in {
        tmp_path / "pipe": "a pipe or a device",
        tmp_path: "a folder",
        Path("/dev/zero"): "a device",
        tmp_path / "none": "No such file",
        tmp_path / "a\0b": "null",
        tmp_path / ("x" * 300): "File name too long",
        tmp_path / "latin.yaml": "not a text file in UTF-8",
        tmp_path / "large.json": "larger than 256 MiB",
    }.items():
        with pytest.raises(Unreadable, match=why):
            (read_json if path.suffix == ".json" else read_yaml)(path)


def test_a_mapping_or_the_name_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "inputs.json"
    for text in ("[1]", "", "{", "null", "nan"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"inputs\.json is damaged \(.*\); restore it, or delete"):
            read_mapping(path)
    path.write_text('{"a": 1}')
    assert read_mapping(path) == {"a": 1}


CHILD = """
import sys
from pathlib import Path
from rootstock.core.convert.load import limit
from rootstock.core.errors import UserError
from rootstock.core.run.compare import of_another_config
from rootstock.core.config.resolve import load
from rootstock.launch.pipeline.plan import plan_pipeline
from rootstock.launch.report.page import write_report
from rootstock.launch.runs import list_runs
from rootstock.launch.verbs import VERBS, resolve
run = Path(sys.argv[1])
bomb = str(run / "config.yaml")
def refuse(work):
    try:
        print(work())
    except UserError as error:
        print(error)
limit(300 * 2**20, 20)
refuse(lambda: resolve("probe", bomb, []))
refuse(lambda: load(bomb, VERBS["probe"], []))
refuse(lambda: resolve("probe", "probe/digits.yaml", ["backbone.args=" + "{a: " * 5000]))
refuse(lambda: of_another_config(run, "probe", {}, None))
refuse(lambda: plan_pipeline(bomb, [], resolve))
refuse(lambda: write_report([run], run / "report.html"))
refuse(lambda: list_runs(run, False))
"""


def test_a_bomb_costs_neither_time_nor_memory(tmp_path: Path, forks: Forks) -> None:
    """460 bytes that stand for 9^9 values, wherever a config is read: 300 MiB and 20 s of processor time are more than enough."""
    (tmp_path / "config.yaml").write_text(BOMB)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + "[" * 100_000 + "\n")
    assert len(BOMB) < 480
    child = tmp_path / "child.py"
    child.write_text(CHILD)
    (ended,) = forks(child, [[tmp_path]])
    assert ended.code == 0, ended.said
    lines = ended.said.splitlines()
    lines, table = lines[:6], lines[6:]
    assert all(
        "config.yaml" in line and "more than 100,000 values" in line for i, line in enumerate(lines) if i != 2
    ), lines
    assert "state" in table[0] and "lines cannot be read" in "".join(table)  # the list of runs reads no YAML
    assert "backbone.args: " in lines[2] and "nested in more than 64 levels" in lines[2]
