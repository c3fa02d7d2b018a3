"""When `fit` saves by the clock, and what it does when a checkpoint cannot be written."""

from __future__ import annotations

import contextlib
import errno
import os
import time

import torch
from safetensors import SafetensorError

from ..distributed import any_process
from ..errors import MachineError
from ..run.directory import Run
from . import checkpoint

WORTH_SAYING = 0.01  # part of the training's time that checkpoints take, from which the log says so
SHORT = 60.0  # seconds; in a shorter training that part says nothing


class Saving:
    """Writes the checkpoints of one training.

    A checkpoint that cannot be written (a full disk) does not end the training: a warning says so, and the next one is tried as usual.
    Only where it is the last one, at the end or before a stop, the run ends with an error. seconds: of the clock, after which a
    checkpoint is due; 0 for never.
    """

    def __init__(self, run: Run, seconds: float = 0.0) -> None:
        self.run, self.seconds = run, seconds
        self.began = self.last = time.monotonic()
        self.spent = 0.0

    def due(self) -> bool:
        """Whether the time has come by rank 0's clock; False on other processes, which learn of it from rank 0."""
        return bool(self.seconds) and self.run.main and time.monotonic() - self.last >= self.seconds

    def write(self, saved: checkpoint.Checkpoint | None, done: int, last: bool) -> None:
        """Write the checkpoint after `done` steps on rank 0, which has it; the others wait for it.

        Raises MachineError on all processes if it is the `last` one and cannot be written.
        """
        began, reason = time.monotonic(), ""
        if saved is not None:
            try:
                self.run.write_rows()  # first, for a run that resumes from this checkpoint has no others
                checkpoint.save(self.run.checkpoints, saved, self.run.options["checkpoint"]["keep"])
            except (OSError, SafetensorError) as error:
                reason = _reason(error)
            else:
                self.run.detail(f"checkpoint of step {done} saved in {time.monotonic() - began:.2f} s")
                with contextlib.suppress(OSError):  # the digest of an earlier checkpoint stays true of those rows
                    self.run.note_rows()
        self.last = time.monotonic()
        self.spent += self.last - began
        # Also waits until it is written.
        failed = any_process(torch.tensor([bool(reason)], device=self.run.device)).item()
        if not failed:
            return
        kept = checkpoint.steps(self.run.checkpoints)
        whole = f"the newest whole checkpoint is that of step {kept[-1]}" if kept else "there is no checkpoint yet"
        trouble = f"the checkpoint of step {done} cannot be written in {self.run.checkpoints} ({reason or 'see rank 0'}); {whole}"
        if last:
            raise MachineError(f"{trouble}; free some space, then run the same command to go on from there")
        self.run.log(f"WARNING: {trouble}. Training goes on and tries again at the next checkpoint; free some space")

    def report(self) -> None:
        """Say how much of the time checkpoints took, if that is worth saying."""
        whole = time.monotonic() - self.began
        if whole > SHORT and self.spent > WORTH_SAYING * whole:
            self.run.log(
                f"WARNING: saving checkpoints took {self.spent / whole:.0%} of the time ({self.spent:.0f} s); save less often, for "
                "example run.checkpoint.every=30min"
            )


def _reason(error: Exception) -> str:
    """What went wrong, in words. safetensors names the system's error in its message only."""
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
            return os.strerror(number)
    return str(error).splitlines()[0] if str(error) else type(error).__name__
