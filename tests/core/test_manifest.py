"""Digests: any change of a file or of a record is noticed, and files of earlier versions are read as they are."""

import json
import shutil
from pathlib import Path

import pytest

from rootstock.core import launchlog
from rootstock.core.errors import UserError
from rootstock.core.manifest import (
    MANIFEST,
    DamagedFile,
    check_file,
    guard,
    guard_alone,
    read_manifest,
    read_record,
    write_manifest,
    write_record,
)


def flipped(content: bytes, bit: int) -> bytes:
    return content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]


def test_every_flipped_bit_of_a_record_is_noticed(tmp_path: Path) -> None:
    path, content = tmp_path / "r.json", {"a": 1.5, "b": [True, None, "x"], "c": {"1": 2}}
    write_record(path, {**content, "c": {1: 2}})
    assert read_record(path) == content
    good = path.read_bytes()
    for bit in range(8 * len(good)):
        path.write_bytes(flipped(good, bit))
        with pytest.raises(DamagedFile, match=r"r\.json is damaged"):
            read_record(path)


@pytest.mark.parametrize("text", [b"", b"\0\0", b"[]", b"{", b"\xff{}", b'{"own": 1}', b"[" * 100_000])
def test_what_is_no_record_is_named(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "r.json").write_bytes(text)
    with pytest.raises(DamagedFile, match=r"r\.json is damaged"):
        read_record(tmp_path / "r.json")


def test_a_record_of_an_earlier_version_has_no_digest(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"a": 1}')
    assert read_record(tmp_path / "r.json") == {"a": 1}
    with pytest.raises(FileNotFoundError):
        read_record(tmp_path / "none.json")


def test_guard_names_the_file_and_says_once_that_there_is_no_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launchlog, "_said", set())
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    for _ in range(2):
        guard(tmp_path, ("a", "b"), "key")
    assert capsys.readouterr().err.count(f"{tmp_path} has no {MANIFEST}") == 1
    write_manifest(tmp_path, ("a",), {"later": "text"})
    guard(tmp_path, ("a",), "key")
    digests = read_manifest(tmp_path)
    assert digests is not None
    with pytest.raises(DamagedFile, match="later cannot be read"):
        check_file(tmp_path, "later", digests)
    (tmp_path / "later").write_text("text")
    guard(tmp_path, ("a", "later"), "key")
    with pytest.raises(UserError, match=r"^key: .*/b is not listed in .*; restore it"):
        guard(tmp_path, ("b",), "key")
    (tmp_path / "a").write_text("A")
    with pytest.raises(UserError, match=r"^key: .*/a is damaged"):
        guard(tmp_path, ("a",), "key")
    (tmp_path / MANIFEST).write_text(json.dumps({"sha256": 3}))
    with pytest.raises(UserError, match=f"{MANIFEST} is damaged"):
        guard(tmp_path, ("a",), "key")


def test_an_export_of_another_run_is_named_with_what_makes_it_anew(tmp_path: Path) -> None:
    """Each export is whole by its own manifest, which that of its finished run lists."""
    for run in ("a", "b"):
        folder = tmp_path / run / "backbone"
        folder.mkdir(parents=True)
        (folder / "x").write_text(run)
        write_manifest(folder, ["x"])
        write_manifest(folder.parent, [f"backbone/{MANIFEST}"])
    shutil.copytree(tmp_path / "b" / "backbone", tmp_path / "a" / "backbone", dirs_exist_ok=True)
    guard(tmp_path / "a" / "backbone", ["x"], "key")  # the run goes on, and will write its manifest anew
    for run in ("a", "b"):
        (tmp_path / run / "result.json").write_text("{}")
    guard(tmp_path / "b" / "backbone", ["x"], "key")
    with pytest.raises(UserError, match=r"a/backbone/MANIFEST\.json is damaged .* in another run\.dir"):
        guard(tmp_path / "a" / "backbone", ["x"], "key")
    (tmp_path / "a" / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"delete .*a/result\.json and give that run's command again"):
        guard(tmp_path / "a" / "backbone", ["x"], "key")


def test_a_file_of_an_export_is_checked_where_it_is_given_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launchlog, "_said", set())
    folder = tmp_path / "run" / "backbone"
    folder.mkdir(parents=True)
    weights, other = folder / "backbone.safetensors", folder / "mine.safetensors"
    for path in (weights, other):
        path.write_bytes(b"abc")
    guard_alone(weights, "backbone.weights")  # no manifest: a file like any other
    (folder / MANIFEST).write_text("{}")  # somebody else's
    guard_alone(weights, "backbone.weights")
    (folder / "backbone.json").write_text("{}")
    write_manifest(folder, ["backbone.json", "backbone.safetensors"])
    assert not capsys.readouterr().err
    for path in (weights, other):
        guard_alone(path, "backbone.weights")
        path.write_bytes(b"abd")
    assert f"backbone.weights={tmp_path}/run would also take what its network has seen" in capsys.readouterr().err
    guard_alone(other, "backbone.weights")  # not one of the export's
    with pytest.raises(UserError, match=r"backbone.weights: .*backbone.safetensors is damaged"):
        guard_alone(weights, "backbone.weights")
    (folder / MANIFEST).write_text("")
    with pytest.raises(UserError, match=r"MANIFEST.json is damaged"):
        guard_alone(weights, "backbone.weights")
