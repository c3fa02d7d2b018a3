"""A begun run whose records are damaged resumes: each is named, kept under another name, and made anew."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rootstock.core.errors import UserError
from rootstock.core.run import state
from rootstock.core.run.directory import Run


def begin(opened: Callable[..., Run], tmp_path: Path) -> Path:
    run = opened()
    run.record(data={"train": "a"})
    for step in (1, 2):
        run.metrics({"step": step, "loss": 1.0})
    run.note_rows()
    run.metrics({"step": 3, "loss": 1.0})
    run.close()
    return tmp_path / "run"


@pytest.mark.parametrize(
    "damage", [b"", b"\0" * 40, b"{", b"\xff\xfe", None], ids=["empty", "zeros", "cut", "no UTF-8", "folder"]
)
@pytest.mark.parametrize("name", ["run.json", "state.json", "metrics.jsonl", "result.json", "MANIFEST.json"])
def test_it_is_named_kept_and_made_anew(
    tmp_path: Path, opened: Callable[..., Run], capsys: pytest.CaptureFixture[str], name: str, damage: bytes | None
) -> None:
    folder = begin(opened, tmp_path)
    path = folder / name
    path.unlink(missing_ok=True)
    path.mkdir() if damage is None else path.write_bytes(damage)
    run = opened()
    run.record(data={"train": "a"})
    run.cut_metrics(2)
    said = " ".join(capsys.readouterr().err.split())
    assert f"WARNING: {path} " in said
    if damage is None:
        assert path.with_name(f"{name}.damaged").is_dir()
    elif damage and name != "metrics.jsonl":
        assert path.with_name(f"{name}.damaged").read_bytes() == damage
    run.finish({"metrics": {}})
    run.close()
    assert json.loads((folder / "result.json").read_text())["metrics"] == {}
    assert opened().finished is not None and "WARNING" not in capsys.readouterr().err


def test_a_changed_digit_of_an_earlier_row_is_noticed(
    tmp_path: Path, opened: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    path = begin(opened, tmp_path) / "metrics.jsonl"
    good = path.read_text()
    for text, seen in (
        (good, False),
        (good + '{"step": 4, "lo', False),
        (good.replace("1.0", "1.5", 1), True),
        ("", True),
    ):
        path.write_text(text)
        run = opened()
        run.cut_metrics(2)
        run.close()
        assert (f"WARNING: {path}" in " ".join(capsys.readouterr().err.split())) == seen, text
        path.write_text(good)
        run = opened()
        run.note_rows()
        run.close()


@pytest.mark.parametrize("name", ["checkpoints", "backbone", "pictures", ".lock", "config.yaml"])
def test_a_file_for_a_folder_or_a_folder_for_a_file_is_refused_and_named(
    tmp_path: Path, opened: Callable[..., Run], name: str
) -> None:
    path = begin(opened, tmp_path) / name
    if name in ("checkpoints", "backbone", "pictures"):
        path.write_text("")
    else:
        path.unlink()
        path.mkdir()
    with pytest.raises(UserError, match=f"{path}.*(belongs; move it away|is damaged)"):
        opened()


def test_a_finished_run_is_only_read(tmp_path: Path, opened: Callable[..., Run]) -> None:
    """So it may lie on a disk that cannot be written."""
    begin(opened, tmp_path)
    run = opened()
    run.finish({"metrics": {}})
    state.write_state(run.dir, "finished", None)
    run.close()
    (run.dir / ".lock").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in run.dir.iterdir()}
    with opened("run", log_every=3) as again:
        assert again.finished == json.loads((run.dir / "result.json").read_text())
    assert {path.name: path.stat().st_mtime_ns for path in run.dir.iterdir()} == before
    shutil.rmtree(run.dir)


def test_a_seed_has_at_most_63_bits(opened: Callable[..., Run]) -> None:
    from rootstock.core.run.options import check_run_options

    options = opened().options
    check_run_options(options, 2**63 - 1)
    with pytest.raises(UserError, match=r"seed: expected at most 9223372036854775807 \(63 bits\)"):
        check_run_options(options, 2**63)
    with pytest.raises(
        UserError, match=r"run.feature_cache: huge is no size; expected for example 500MB or 20GB, or 0"
    ):
        check_run_options({**options, "feature_cache": "huge"}, 0)
