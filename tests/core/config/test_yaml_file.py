"""The files of configs: not YAML, not text, not there; each in one sentence with its place."""

import itertools
import os
from pathlib import Path

import pytest

from rootstock.core.config import yaml_file as configfile
from rootstock.core.config.resolve import ConfigError, load, read

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in itertools.pairwise("abcdefghi")
)  # stands for 9^9 values


def pretrain(*, seed: int = 0) -> None: ...


def written(folder: Path, text: str, name: str = "a.yaml") -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


TEXTS = (
    "plain", "folder:a#[:80%]", "a: b", 'a"b', "a\\b", "a #b", "#a", "?a", "a%b", "'", "1", "1e-3", "true", "null", "", " a ", "[a", "@a",
    "*a", "idx:F?rows=1:", "😀é", "tab\tline\nend", "\x7f\x85\x9f", "\u2028\ufeff", "\udcff", "\uffff",
)  # fmt: skip


@pytest.mark.parametrize("value", [*TEXTS, list(TEXTS), {"a: b": {"c": list(TEXTS)}}, 1e-5, 3, True, None, []])
def test_words_that_are_written_are_read_as_the_same(value: object) -> None:
    for write in configfile.override_of, configfile.plain_override_of:
        key, _, word = write("data.train", value).partition("=")
        assert key == "data.train" and configfile.parse_override(word, "x", []) == value


def test_words_for_people_are_quoted_where_they_have_to_be() -> None:
    for text in "folder:photos", "folder:a#[:80%]", "runs/first", "idx:F?rows=1:":
        assert configfile.plain_override_of("a.b", text) == f"a.b={text}"
    for text in "folder:a: b", "1", "null", "[a", " a":
        assert configfile.plain_override_of("a.b", text) == f'a.b="{text}"'


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("seed: 1\nmethod: {name: simclr\ndata: {train: x}\n", "a.yaml:3:5: not valid YAML: expected ',' or '}'"),
        ("seed: [1, 2\n", "a.yaml:2:1: not valid YAML: expected"),
        ("data:\n\ttrain: x\n", "a.yaml:2:1: not valid YAML: found character"),
        ("seed: 1\n---\nseed: 2\n", "a.yaml:2:1: not valid YAML: but found another document"),
        ("seed: *nothing\n", "a.yaml:1:7: not valid YAML: found undefined alias"),
        ("args: &a\n  b: *a\n", "a.yaml:2:6: an alias stands for something that contains itself"),
        ("seed: !!python/object/apply:os.getcwd []\n", "a.yaml:1:7: not valid YAML: could not determine a constructor"),
        ("seed: !!bool maybe\n", "a.yaml: not valid YAML: 'maybe'"),
        ("a: " + "[" * 10_000, "a.yaml:1:67: nested in more than 64 levels"),
        (
            "a0: &a0 [1]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}]\n" for i in range(100)),
            "a.yaml:64:6: nested in more than 64",
        ),
        (BOMB, "a.yaml:6:4: stands for more than 100,000 values; write it out, and shorter"),
        (
            "a: &a " + "x" * 100_000 + "\nb: [" + ",".join(["*a"] * 100) + "]\n",
            "a.yaml:2:4: stands for more than 100,000",
        ),
        ("x: 1" + ":1" * 3000 + ".0\n", "a.yaml: not valid YAML: int too large"),
        ("x: 0x" + "f" * 5000 + "\n", "a.yaml: not valid YAML: Exceeds the limit"),
        ("seed: 1\nrun: \x01\n", "a.yaml:2: not valid YAML: the character 0x1"),
        ("- 1\n", "a.yaml: expected a mapping of sections, got [1]"),
        ("a: 1\nb: {c: 1, d: 2, c: 3}\n", "a.yaml:2:17: the key c is given twice (first in line 2); keep one of them"),
    ],
)
def test_malformed_yaml_is_one_sentence_with_line_and_column(text: str, line: str, tmp_path: Path) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read(file)
    assert str(caught.value).startswith(f"{tmp_path}/{line}")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "picture.yaml").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ConfigError, match=r"picture\.yaml: cannot be read: not a text file in UTF-8"):
        load(tmp_path / "picture.yaml", pretrain)
    with pytest.raises(ConfigError, match=r"is a folder; give one YAML file of it"):
        load(tmp_path, pretrain)
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ConfigError, match=r"pipe\.yaml: cannot be read: a folder, a pipe or a device, not a file"):
        load(tmp_path / "pipe.yaml", pretrain)
    with pytest.raises(ConfigError, match=r"/dev/zero: cannot be read: a folder, a pipe or a device, not a file"):
        load("/dev/zero", pretrain)
    (tmp_path / "long.yaml").write_text(f"# {'x' * 2**20}")
    with pytest.raises(ConfigError, match=r"long\.yaml: cannot be read: larger than 1 MiB"):
        load(tmp_path / "long.yaml", pretrain)


@pytest.mark.parametrize(
    "name", ["x" * 5000, "a\0b", "~nobody-is-called-so/a.yaml", "a" * 300 + "/b.yaml", "\ud800.yaml", "a\x1b[31m"]
)
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(ConfigError, match="no such config here or among those that ship") as caught:
        load(name, pretrain)
    assert len(str(caught.value)) < 2500 and "\x1b" not in str(caught.value)


def test_a_chain_of_files_has_an_end(tmp_path: Path) -> None:
    for i in range(70):
        written(tmp_path, f"extends: {i + 1}.yaml\n", f"{i}.yaml")
    with pytest.raises(ConfigError, match="extends: a chain of more than 64 files; shorten it"):
        load(tmp_path / "0.yaml", pretrain)


def test_merge_keys_and_anchors_are_no_doubled_keys(tmp_path: Path) -> None:
    file = written(tmp_path, "a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  x: 3\n")
    assert read(file) == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}}


def test_shipped_configs_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("demo.yaml", "pretrain/digits.yaml", "probe/digits.yaml"):
        written(tmp_path, "seed: 0", f"package/configs/{name}")
    written(tmp_path, "seed: 9", "here/demo.yaml")
    monkeypatch.setattr(configfile, "PACKAGE", tmp_path / "package")
    monkeypatch.setattr(configfile, "CONFIGS", tmp_path / "package/configs")
    monkeypatch.chdir(tmp_path / "here")
    assert load("demo.yaml", pretrain)["seed"] == 9, "what lies here comes first"
    for path in ("pretrain/digits.yaml", "configs/pretrain/digits.yaml", "digits.yaml"):
        assert load(path, pretrain)["seed"] == 0
    assert configfile.find("digits.yaml", "probe") == tmp_path / "package/configs/probe/digits.yaml"
    written(tmp_path, "{extends: pretrain/digits.yaml, seed: 4}", "here/mine.yaml")
    assert load("mine.yaml", pretrain)["seed"] == 4
    for wrong, near in {
        "dmeo.yaml": "demo.yaml",
        "pretrain/digit.yaml": "pretrain/digits.yaml",
        "x/mine": None,
    }.items():
        with pytest.raises(ConfigError) as caught:
            load(wrong, pretrain)
        question = f"; did you mean {near}?" if near else ""
        assert str(caught.value) == (
            f"{wrong}: no such config here or among those that ship{question} (shipped: pretrain/digits.yaml)"
        )


def test_a_bare_name_is_a_config_that_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("demo.yaml", "simclr.yaml", "pretrain/simclr.yaml", "probe/digits.yaml", "finetune/digits.yaml"):
        written(tmp_path, f"where: {name}", f"package/configs/{name}")
    monkeypatch.setattr(configfile, "CONFIGS", tmp_path / "package/configs")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    found = {
        (name, verb): configfile.find(name, verb).relative_to(tmp_path / "package/configs").as_posix()
        for name, verb in [
            ("simclr", "pretrain"),
            ("simclr", "probe"),
            ("digits", "probe"),
            ("digits", "finetune"),
            ("demo", ""),
            ("pretrain/simclr", "pretrain"),
        ]
    }
    assert list(found.values()) == [
        "pretrain/simclr.yaml", "simclr.yaml", "probe/digits.yaml", "finetune/digits.yaml", "demo.yaml",
        "pretrain/simclr.yaml",
    ]  # fmt: skip
    for name in ("digits", "pretrain/digits", "simclr.yml"):
        with pytest.raises(ConfigError, match="no such config here or among those that ship"):
            configfile.find(name, "pretrain")
    with pytest.raises(ConfigError, match=r"did you mean probe/digits\.yaml\?"):
        configfile.find("digit", "probe")
    written(tmp_path, "here: 1", "here/simclr.yaml")
    assert configfile.find("simclr", "pretrain").parent.name == "pretrain"
    written(tmp_path, "here: 1", "here/simclr")
    assert configfile.find("simclr", "pretrain") == Path("simclr")
    (tmp_path / "here/demo").mkdir()  # a folder of the user's hides no config that ships, as `finetune` in a checkout
    assert configfile.find("demo").name == "demo.yaml"
    (tmp_path / "here/mine").mkdir()
    with pytest.raises(ConfigError, match="mine is a folder; give one YAML file of it"):
        configfile.find("mine")


def test_extends_leads_somewhere_and_not_in_a_circle(tmp_path: Path) -> None:
    written(tmp_path, "extends: ../a.yaml", "far/b.yaml")
    with pytest.raises(ConfigError, match=r"b\.yaml: extends: a\.yaml -> b\.yaml -> a\.yaml is a circle"):
        load(written(tmp_path, "extends: far/b.yaml"), pretrain)
    with pytest.raises(ConfigError, match=r"a\.yaml: extends: bsae\.yaml: no such config"):
        load(written(tmp_path, "extends: bsae.yaml"), pretrain)
    with pytest.raises(ConfigError, match=r"a\.yaml: extends: expected the path of one YAML file, got \[1\]"):
        load(written(tmp_path, "extends: [1]"), pretrain)
