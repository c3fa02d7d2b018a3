"""The run directory: resolved config, lock, metrics, pictures and the result; readable without Rootstock.

Running the same command again resumes; a finished run is left alone. Only rank 0 writes; every process reads the same decisions.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..distributed import barrier, broadcast_text, rank, world
from ..environment import environment
from ..errors import UserError
from ..files import write_text
from ..formats import FORMAT, check_format
from ..images.remote.address import refuse_secrets_in
from ..manifest import write_record
from . import state
from .accelerator import build_accelerator
from .compare import Complete, begun, of_another_config
from .energy import RunEnergy
from .folder import (
    ABOUT,
    ELSEWHERE,
    folder_trouble,
    keep_damaged,
    make_folder,
    others_file,
    read_about,
    read_result,
    run_folder,
    write_config,
    write_result,
)  # fmt: skip
from .mend import file_for_folder, find_damage, not_for_a_run, put_aside
from .options import check_run_options
from .rows import METRICS, RowFile, differs, digest_of_rows, guarded_files, read_rows
from .speech import Speech
from .trackers import Trackers
from .watched import changed_set


class Interrupted(Exception):
    """Stopped on request after saving; the same command resumes."""


class Run(Speech):
    """One run of one verb, in its folder.

    config: the resolved config. quiet: whether only warnings are printed. complete: fills in the defaults of a config of this verb, for
    comparing it with the config of an earlier version, which lacks the keys that are new since.
    """

    dry = False  # whether nothing is written, and so no label of a sealed set read

    def __init__(
        self, verb: str, config: dict[str, Any], quiet: bool = False, complete: Complete | None = None
    ) -> None:
        self.verb, self.config, self.complete = verb, config, complete
        self.options: dict[str, Any] = config["run"]
        self.dir = run_folder(self.options["dir"])
        self.seed: int = config["seed"]
        self.started = time.time()
        check_run_options(self.options, self.seed)
        refuse_secrets_in(config)  # before any of it is written
        self.accelerator = build_accelerator(self.options)
        self.device: torch.device = self.accelerator.device
        self.main = rank() == 0
        self.silent = quiet
        self.console = Console(stderr=True, quiet=not self.main, highlight=False)
        self.finished: dict[str, Any] | None = None  # the result, once there is one
        self.recorded: dict[str, Any] = {}
        self.steps: int | None = None
        self._file = RowFile(self.dir / METRICS, self.log)
        self._rows: dict[str, Any] | None = None  # what metrics.jsonl was at the last checkpoint
        self._energy: RunEnergy | None = None  # of rank 0, once it has the folder
        self._lock: Any = None
        self._trackers = Trackers(self.options["tracker"], self.accelerator, self.dir, config, self.log)

    def open(self) -> Run:
        """Create or take over the folder; of a finished run nothing is written. Raises UserError: locked, or of another config."""
        # Only rank 0 decides, all learn of it: an exception on one process alone would leave the others waiting.
        trouble, found = self._decide() if self.main else ("", None)
        if trouble := broadcast_text(trouble):
            self.close()
            raise UserError(trouble)
        self.finished = json.loads(broadcast_text(json.dumps(found)))
        self.plan(None)
        return self

    def plan(self, steps: int | None) -> None:
        """Write into state.json how many steps the whole training takes; None where nothing is trained."""
        self.steps = steps
        if self.main and self.finished is None:
            self._write_state("running")

    def _decide(self) -> tuple[str, dict[str, Any] | None]:
        """Why the folder cannot be used ("" if it can), and the result of the finished run in it."""
        complaints: list[str] = []
        try:
            found = read_result(self.dir, complaints.append)
            if found is not None and state.is_locked(self.dir):
                raise BlockingIOError
            if found is not None:
                self._complain(complaints)
                return of_another_config(self.dir, self.verb, self.config, self.complete), found
            if not begun(self.dir) and (trouble := not_for_a_run(self.dir, self.config)):
                return f"run.dir: {trouble}", None
            make_folder(self.dir)
            return self._take(complaints), None
        except UserError as error:
            return str(error), None
        except BlockingIOError:
            return f"run.dir: {self.dir} belongs to a run that is still going; wait for it, or {ELSEWHERE}", None
        except IsADirectoryError as error:
            return f"run.dir: {error.filename} is a folder where a file belongs; move it away, or {ELSEWHERE}", None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise  # another run.dir on the same disk would not help
            return f"run.dir: {folder_trouble(self.dir, error)}; {ELSEWHERE}", None

    def _take(self, complaints: list[str]) -> str:
        """Lock the folder, put aside what is damaged in it, and write config.yaml. Returns why it cannot be used."""
        if not begun(self.dir) and (theirs := others_file(self.dir)):
            return f"run.dir: no run wrote {theirs}, and this one would replace it; {ELSEWHERE}, or move it away"
        self._lock = state.take_lock(self.dir)
        earlier = None
        if not begun(self.dir):
            (self.dir / ABOUT).unlink(missing_ok=True)
        elif trouble := of_another_config(self.dir, self.verb, self.config, self.complete):
            return trouble
        else:
            complaints = [*complaints, *find_damage(self.dir)]
            said = state.read_state(self.dir)
            self._rows, earlier = said.get("rows"), said.get("energy", {})
        if blocked := file_for_folder(self.dir):
            return f"run.dir: {blocked} is a file, where a folder of the run belongs; move it away, or {ELSEWHERE}"
        self._complain(complaints)
        put_aside(self.dir, complaints)
        write_config(self.dir, {"verb": self.verb, **self.config})
        self._energy = RunEnergy(self.device, earlier)
        return ""

    def _complain(self, complaints: list[str]) -> None:
        """Say what is damaged; what was there keeps its content as NAME.damaged, and a new file is written."""
        for complaint in complaints:
            self.log(f"WARNING: {complaint}{'' if 'unchecked' in complaint else '; it is made anew'}")

    def record(self, watched: Mapping[str, Any] | None = None, **facts: Any) -> None:
        """Add facts to run.json: versions, host, data, and under `history` where each part of the run ran.

        watched: how the data was watched for changes, and what was seen (`watch_sets`). Raises UserError if the data changed since
        the run began.
        """
        path = self.dir / ABOUT
        before = read_about(self.dir, lambda _: None)
        check_format(before, str(path))
        # Other nodes may have copies of the files with other times of change, so rank 0 alone compares.
        changed = changed_set(self.dir, before, facts.get("data", {}), watched or {}) if self.main else ""
        if (changed := broadcast_text(changed)) and self.options["changed_data"] == "refuse":
            raise UserError(f"{changed}; restore the data, {ELSEWHERE}, or say run.changed_data=accept")
        where = {"processes": world(), "device": str(self.device), "threads": torch.get_num_threads()}
        now = {"format": FORMAT, **environment(), "verb": self.verb, **where}
        if not self.recorded:
            part = {key: now[key] for key in ("started", "host", "processor", "commit", *where)}
            facts["history"] = [*before.get("history", []), part]
        self.recorded = {**now, **before, **facts, **({"watched": watched} if watched else {}), "manifest": True}
        barrier()
        if self.main:
            write_record(path, self.recorded)

    @property
    def draws(self) -> bool:
        """Whether pictures and maps are made for the page; the main process writes them."""
        return self.options["pictures"] != "none"

    @property
    def checkpoints(self) -> Path:
        return self.dir / "checkpoints"

    @property
    def dtype(self) -> torch.dtype:
        """What the forward pass computes in."""
        precision: str = self.options["precision"]
        if precision == "auto":
            precision = "bf16" if self.device.type == "cuda" else "fp32"
        if precision == "fp16" and self.device.type != "cuda":
            raise UserError("run.precision: fp16 needs a GPU; use fp32 or bf16 on the CPU")
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Append a row to metrics.jsonl and to the tracker. A row that the disk does not take waits for a later one."""
        if self.main:
            self._file.add(row)
        self._trackers.log(row)

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl so far, without a half-written last one."""
        return read_rows(self.dir / METRICS, lambda _: None)

    def cut_metrics(self, step: int) -> None:
        """Drop the rows beyond the step that the run resumes from, and those that cannot be read, which a warning counts."""
        if not self.main:
            return
        self._file.waiting.clear()
        path, complaints = self.dir / METRICS, list[str]()
        kept = [row for row in read_rows(path, complaints.append) if row["step"] <= step]
        if not complaints and differs(path, self._rows):
            complaints.append(f"{path} is damaged (it differs from what it was at the last checkpoint)")
        if not kept and not complaints and 0 < self.options["log_every"] <= step:
            self.log(f"WARNING: {path} holds none of the rows up to step {step}; it goes on without them")
        for complaint in complaints:
            self.log(
                f"WARNING: {complaint}; it is kept as {keep_damaged(path)}, and goes on with the rows that can be read"
            )
        if kept or os.path.lexists(path):
            write_text(path, "".join(f"{json.dumps(row)}\n" for row in kept))
        self.note_rows()

    def write_rows(self) -> None:
        """Write the rows that wait for room on the disk. Raises OSError."""
        if self.main:
            self._file.write()

    def note_rows(self) -> None:
        """Leave in state.json what metrics.jsonl is now, at a checkpoint, so that later damage is noticed on resuming."""
        self._rows = digest_of_rows(self.dir / METRICS)
        self._write_state("running")

    def _write_state(self, now: state.RunState, why: str = "") -> None:
        spent = None if self._energy is None else self._energy.so_far()
        state.write_state(self.dir, now, self.steps, why, self._rows, spent)

    def finish(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Write MANIFEST.json with the digests of the run's files, then result.json, atomically and last, and return it."""
        spent = json.loads(broadcast_text(json.dumps(self._energy and self._energy.so_far())))
        whole = {
            "task": self.verb,
            "run": str(self.dir),
            "seed": self.seed,
            **result,
            "seconds": round(time.time() - self.started, 2),
            "energy": spent,
        }
        barrier()
        if self.main:
            self.write_rows()
            write_result(self.dir, whole, guarded_files(self.dir), self.options["keep"])
            self._trackers.conclude(whole.get("metrics", {}))
        self.finished = json.loads(json.dumps(whole))
        return whole

    def close(self) -> None:
        """Free the lock and close the trackers."""
        self._trackers.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Run:
        return self.open()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if self.main:
            with contextlib.suppress(OSError, UserError):  # a full disk, say, which then is the error already
                self._say_farewell(error)
        self.close()
        if isinstance(error, KeyboardInterrupt):
            error.add_note(self._what_is_kept())
        if isinstance(
            error, Interrupted
        ):  # all come here together, and who ends first has the others ended by the launcher
            barrier()

    def _what_is_kept(self) -> str:
        """What a run that was stopped outside of its training leaves, and what to do."""
        if any(self.checkpoints.glob("step-*")):
            return f"the checkpoints in {self.dir} are whole; the same command resumes"
        return f"the {self.verb} in {self.dir} saved nothing yet; the same command begins it anew"

    def _say_farewell(self, error: BaseException | None) -> None:
        """Leave in state.json how the run ended, unless an earlier command ended it."""
        if error is None or self.finished is not None:
            if state.read_state(self.dir)["state"] != "finished":
                self._write_state("finished")
        elif isinstance(error, Interrupted | KeyboardInterrupt):
            self._write_state("preempted")
        else:
            self._write_state("failed", (str(error).splitlines() or [type(error).__name__])[0])
