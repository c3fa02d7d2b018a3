"""run.dir: what cannot be a folder is one sentence that names what is in the way; results and configs carry digests."""

import json
import os
from pathlib import Path

import pytest
import yaml

from rootstock.core.errors import UserError
from rootstock.core.run.compare import check_origin, science
from rootstock.core.run.folder import (
    check_config,
    keep_damaged,
    make_folder,
    others_file,
    read_result,
    run_folder,
    write_config,
    write_result,
)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("file", "file is a file"),
        ("file/run", "file is a file"),
        ("dangling", "dangling is a link to /nowhere/scratch, which does not exist"),
        ("dangling/x/y", "dangling is a link to /nowhere/scratch, which does not exist"),
        ("loop", "loop is a link that leads back to itself"),
        ("loop/x", "loop is a link that leads back to itself"),
        ("n" * 300, r"nnn\.\.\.nnn.*\(File name too long\)"),
    ],
)
def test_the_part_in_the_way_is_named(tmp_path: Path, name: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("dangling").symlink_to("/nowhere/scratch")
    Path("loop").symlink_to("loop")
    with pytest.raises(UserError, match=f"^run.dir: .*{why}.*; choose another run.dir$") as error:
        make_folder(run_folder(name))
    assert len(str(error.value)) < 250


def test_proc_has_no_runs() -> None:
    with pytest.raises(UserError, match=r"run\.dir: /proc/x cannot be written"):
        make_folder(Path("/proc/x"))


def test_the_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert run_folder("~/runs/a") == Path("/home/me/runs/a")
    for odd in ("", " ", "a\0b", "~nobody-has-this-name/x"):
        with pytest.raises(UserError, match=r"^run\.dir: "):
            run_folder(odd)


@pytest.mark.parametrize("text", ["/", "//", "~", "a/../..", "home"])
def test_a_run_has_a_folder_of_its_own(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path("home").symlink_to(tmp_path)
    with pytest.raises(
        UserError, match=r"^run\.dir: .* is no folder for a run alone; name one inside it, such as .*runs/first$"
    ):
        run_folder(text)
    assert run_folder("~/runs/a") == tmp_path / "runs" / "a" and run_folder("home/a") == Path("home/a")


def test_a_result_is_compared_with_its_manifest(tmp_path: Path) -> None:
    told: list[str] = []
    write_result(tmp_path, {"metrics": {"a": 0.25}}, ())
    assert read_result(tmp_path, told.append) == {"metrics": {"a": 0.25}} and not told
    path = tmp_path / "result.json"
    path.write_text(path.read_text().replace("0.25", "0.26"))
    assert read_result(tmp_path, told.append) is None
    assert told == [f"{path} is damaged (its sha256 differs from that in MANIFEST.json)"]
    path.unlink()
    assert read_result(tmp_path, told.append) is None and "is missing, though MANIFEST.json lists it" in told[1]
    path.write_text("{}")  # of an earlier version, with neither manifest nor run.json
    (tmp_path / "MANIFEST.json").unlink()
    assert read_result(tmp_path, told.append) == {} and len(told) == 2
    (tmp_path / "run.json").write_text(json.dumps({"manifest": True}))
    assert read_result(tmp_path, told.append) == {} and "MANIFEST.json is missing" in told[2]


def test_a_config_edited_by_hand_stays_a_config_and_is_noticed(tmp_path: Path) -> None:
    told: list[str] = []
    write_config(tmp_path, {"a": {"b": 1}, "c": "é"})
    path = tmp_path / "config.yaml"
    assert yaml.safe_load(path.read_text()) == {"a": {"b": 1}, "c": "é"} and check_config(tmp_path, told.append)
    path.write_text(path.read_text().replace("b: 1", "b: 2"))
    assert yaml.safe_load(path.read_text())["a"] == {"b": 2} and check_config(tmp_path, told.append)
    path.write_text("a: 1\n")  # of an earlier version
    assert not check_config(tmp_path, told.append)
    assert len(told) == 1 and "config.yaml was changed since it was written" in told[0]


def test_what_is_damaged_is_kept(tmp_path: Path) -> None:
    for k in range(3):
        (tmp_path / "x").write_text(str(k))
        keep_damaged(tmp_path / "x")
    (tmp_path / "x").mkdir()
    keep_damaged(tmp_path / "x")
    assert sorted(os.listdir(tmp_path)) == ["x.damaged", "x.damaged-2", "x.damaged-3", "x.damaged-4"]


@pytest.mark.parametrize("name", ["config.yaml", "run.json", "state.json", "MANIFEST.json", "backbone", "pictures"])
def test_what_no_run_wrote_is_not_replaced(name: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("in nobody's way")
    assert others_file(tmp_path) == ""
    (tmp_path / name).write_text("mine: 1\n")
    assert others_file(tmp_path) == str(tmp_path / name)
    (tmp_path / ".lock").write_text("")  # a run began here
    assert others_file(tmp_path) == ""


def test_a_config_that_a_run_wrote_may_be_replaced(tmp_path: Path) -> None:
    """As of a run that was copied without its hidden files before it had saved anything."""
    write_config(tmp_path, {"a": 1})
    assert others_file(tmp_path) == ""


def test_checkpoints_of_another_run_are_not_resumed(tmp_path: Path) -> None:
    config = {"seed": 0, "optim": {"lr": 0.1, "betas": (0.9, 0.99)}, "run": {"dir": "a"}}
    saved = json.loads(json.dumps(science("pretrain", config)))
    check_origin(tmp_path, None, "pretrain", config)  # of an earlier version
    check_origin(tmp_path, saved, "pretrain", {**config, "run": {"dir": "b"}})
    with pytest.raises(
        UserError, match="was made by another config \\(seed: 0 there, 1 now\\); restore the checkpoints"
    ):
        check_origin(tmp_path, saved, "pretrain", {**config, "seed": 1})
