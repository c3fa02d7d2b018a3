"""A checkpoint that cannot be written, and those that are due by the clock."""

import errno
import itertools
import os
from collections.abc import Callable
from functools import partial
from io import FileIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from rootstock.core.config.resolve import Minutes
from rootstock.core.errors import MachineError
from rootstock.core.run import rows as rows_module
from rootstock.core.run.directory import Run
from rootstock.core.train import checkpoint, fit, saving
from rootstock.core.train.fit import Every
from rootstock.core.train.loop import Loop
from rootstock.tests.core.train.test_fit import STEPS, Regression, train

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
ERRORS = [
    FULL,
    OSError(errno.EFBIG, os.strerror(errno.EFBIG)),
    OSError(errno.EIO, os.strerror(errno.EIO)),
    SafetensorError(
        'Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })'
    ),
]


def refuse(monkeypatch: pytest.MonkeyPatch, error: Exception, at: set[int]) -> None:
    """Writing the model of the checkpoints `at` these steps fails."""
    write = checkpoint.files.write_tensors

    def failing(path: Path, *rest: object) -> None:
        if path.name == checkpoint.MODEL and int(path.parent.name.rpartition("-")[2]) in at:
            path.write_bytes(b"half")
            raise error
        write(path, *rest)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(checkpoint.files, "write_tensors", failing)


@pytest.mark.parametrize("error", ERRORS, ids=["full", "too large", "broken", "full in safetensors"])
def test_training_goes_on_and_saves_the_next_one(
    error: Exception, opened: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = opened()
    refuse(monkeypatch, error, {4})
    trained = train(run, Regression(), every=Every(save=4))
    said = capsys.readouterr().err
    assert "WARNING: the checkpoint of step 4 cannot be written in" in said and "there is no checkpoint yet" in said
    assert ("No space left on device" in said) is (error in (FULL, ERRORS[3]))
    assert sorted(os.listdir(run.checkpoints)) == ["step-00000008", "step-00000012"], "no half checkpoint stays"
    straight = train(opened("straight"), Regression(), every=Every(save=4))
    assert torch.equal(trained.get_parameter("layer.weight"), straight.get_parameter("layer.weight"))


def test_the_last_one_ends_the_run_with_an_error_and_the_command_resumes(
    opened: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = opened()
    refuse(monkeypatch, FULL, {STEPS})
    with pytest.raises(
        MachineError, match=r"step 12 cannot be written .*\(No space left on device\); .* of step 8; free some space"
    ):
        train(run, Regression(), every=Every(save=4))
    monkeypatch.undo()
    method = Regression()
    train(run, method, every=Every(save=4))
    assert method.after == [step / STEPS for step in range(8, STEPS)]


def test_asked_to_stop_it_says_that_nothing_was_saved(
    opened: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, FULL, {8})
    with pytest.raises(MachineError, match=r"step 8 cannot be written .* of step 5"):
        train(opened(), Regression(), stop_at=7, every=Every(save=5))


@pytest.mark.parametrize(("deferred", "steps"), [(False, [4, 8, 12]), (True, [5, 10, 12])])
def test_minutes_by_the_clock(
    deferred: bool, steps: list[int], opened: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step takes a minute of this clock; a deferred step's flag arrives one step later."""
    clock, written = [0.0], list[int]()

    class Slow(Regression):
        def after_step(self, progress: float) -> None:
            super().after_step(progress)
            clock[0] += 60.0

    monkeypatch.setattr(saving, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(fit, "Loop", partial(Loop, deferred=deferred))
    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *given: (written.append(given[1].step), save(*given)))
    run = opened()
    run.options["checkpoint"]["every"] = "3min"
    train(run, Slow(), every=Every.of(run, STEPS, 5))
    assert written == steps


def test_minutes_keep_checkpoints_by_their_age(tmp_path: Path) -> None:
    saved = checkpoint.Checkpoint(1, {"a": torch.zeros(2)}, {}, {})
    for step in range(1, 6):
        checkpoint.save(tmp_path, saved._replace(step=step), Minutes("10min"))
    assert checkpoint.steps(tmp_path) == [1, 2, 3, 4, 5]
    for step in (1, 2, 4, 5):
        folder = tmp_path / f"step-{step:08d}"
        early = folder.stat().st_mtime - 601
        os.utime(folder, (early, early))
    checkpoint.save(tmp_path, saved._replace(step=6), Minutes("10min"))
    assert checkpoint.steps(tmp_path) == [3, 5, 6], "young ones, and one to fall back to"


def test_time_spent_on_checkpoints_is_said(opened: Callable[..., Run], capsys: pytest.CaptureFixture[str]) -> None:
    for spent, said in ((2.0, "took 2% of the time (2 s); save less often"), (0.5, "")):
        one = saving.Saving(opened(f"spent-{spent}"))
        one.began -= 100.0
        one.spent = spent
        one.report()
        printed = capsys.readouterr().err
        assert (said in printed) if said else not printed


def full_disk_for_rows(monkeypatch: pytest.MonkeyPatch, times: range) -> None:
    """The disk is full for these appends to metrics.jsonl: of every second one it takes the half, of the others nothing."""
    write, count = FileIO.write, itertools.count()

    class Full(FileIO):
        def write(self, content: bytes, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
            time = next(count)
            if time in times and time % 2:
                raise FULL
            return write(self, content[: len(content) // 2] if time in times else content)

    monkeypatch.setattr(rows_module, "open", lambda path, mode, buffering: Full(path, mode), raising=False)


@pytest.mark.parametrize("full", [range(1), range(4), range(3, 6), range(8, 11)])
def test_rows_wait_for_room_on_the_disk(
    full: range, opened: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = opened("straight")
    train(straight, Regression(), every=Every(log=1, save=6))
    run = opened()
    full_disk_for_rows(monkeypatch, full)
    train(run, Regression(), every=Every(log=1, save=6))
    assert capsys.readouterr().err.count("its rows wait in memory") == 1
    assert [row["loss"] for row in run.rows()] == [row["loss"] for row in straight.rows()]


def test_no_checkpoint_stands_without_its_rows(
    opened: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While rows wait, no checkpoint is written; the last one ends the run, and the command goes on from the one before."""
    run = opened()
    full_disk_for_rows(monkeypatch, range(4, 1000))
    with pytest.raises(
        MachineError, match=r"step 12 cannot be written .*No space left on device.* of step 4; free some"
    ):
        train(run, Regression(), every=Every(log=1, save=4))
    assert [row["step"] for row in run.rows()] == [1, 2, 3, 4]
    assert "checkpoint of step 8 cannot be written" in capsys.readouterr().err
    monkeypatch.undo()
    train(run, Regression(), every=Every(log=1, save=4))
    assert [row["step"] for row in run.rows()] == list(range(1, STEPS + 1))
