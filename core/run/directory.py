"""The run directory: resolved config, lock, metrics, pictures and the result; readable without Rootstock.

Running the same command again resumes; a finished run is left alone. Only rank 0 writes; every process reads the same decisions.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import warnings
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
from rich.console import Console

from ..distributed import barrier, broadcast_text, rank, world
from ..environment import environment
from ..errors import UserError
from ..files import write_text
from ..formats import FORMAT, check_format
from ..launchlog import append
from ..printable import printable_lines
from . import state
from .compare import CONFIG, Complete, begun, of_another_config
from .join import JOINED_WITHIN, joining
from .options import check_run_options

SUPPORTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
_open_runs: weakref.WeakSet[Run] = weakref.WeakSet()


class Interrupted(Exception):
    """Stopped on request after saving; the same command resumes."""


@contextlib.contextmanager
def unannounced() -> Iterator[None]:
    """Within it, nothing is said of `broadcast_buffers`, announced for a torch to come; Accelerate has no other way to say it yet."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        yield


class Run:
    """One run of one verb, in its folder.

    config: the resolved config. complete: fills in the defaults of a config of this verb, for comparing it with the config of an earlier
    version, which lacks the keys that are new since.
    """

    def __init__(
        self, verb: str, config: dict[str, Any], quiet: bool = False, complete: Complete | None = None
    ) -> None:
        self.verb, self.config, self.complete = verb, config, complete
        self.options: dict[str, Any] = config["run"]
        self.dir = Path(self.options["dir"])
        self.seed: int = config["seed"]
        self.started = time.time()
        check_run_options(self.options, self.seed)
        with unannounced():
            options = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        with joining():
            self.accelerator = Accelerator(
                # Without an accelerator, Accelerate would otherwise start the processes and then train each of them alone.
                cpu=self.options["device"] == "cpu" or not torch.accelerator.is_available(),
                # Named, or environment variables (an `accelerate config` made for something else) would decide.
                mixed_precision="no",
                dynamo_backend="no",
                gradient_accumulation_steps=1,
                log_with=None if self.options["tracker"] == "none" else self.options["tracker"],
                project_dir=str(self.dir),
                # Running statistics are reduced once a step by core/model/norm.py; broadcasting rank 0's would undo that. And gradients
                # lie in what is sent, instead of beside it.
                kwargs_handlers=[options, InitProcessGroupKwargs(timeout=JOINED_WITHIN)],
            )
        if self.accelerator.num_processes != world() or self.accelerator.distributed_type not in SUPPORTED:
            raise UserError(
                f"Accelerate set up {self.accelerator.distributed_type} for {self.accelerator.num_processes} of {world()} processes; "
                "Rootstock trains data-parallel: use torchrun, or an `accelerate config` without FSDP or DeepSpeed, and run.sharding=fsdp2"
            )
        self.device: torch.device = self.accelerator.device
        self.main = rank() == 0
        self.quiet = quiet
        self.console = Console(stderr=True, quiet=not self.main, highlight=False)
        self.finished: dict[str, Any] | None = None  # the result, once there is one
        self.recorded: dict[str, Any] = {}
        self.steps: int | None = None
        self._lock: Any = None

    def open(self) -> Run:
        """Create or take over the folder. Raises UserError: locked by another process, or of another config."""
        # Only rank 0 decides, all learn of it: an exception on one process alone would leave the others waiting.
        trouble = self._take() if self.main else ""
        if trouble := broadcast_text(trouble):
            self.close()
            raise UserError(trouble)
        path = self.dir / "result.json"
        self.finished = json.loads(broadcast_text(path.read_text() if self.main and path.exists() else "null"))
        if self.options["tracker"] != "none":
            # TensorBoard takes it as the name of its folder in run.dir, Weights & Biases as the project's.
            self.accelerator.init_trackers("tensorboard" if self.options["tracker"] == "tensorboard" else "rootstock")
        self.plan(None)
        return self

    def plan(self, steps: int | None) -> None:
        """Write into state.json how many steps the whole training takes; None where nothing is trained."""
        self.steps = steps
        if self.main and self.finished is None:
            state.write_state(self.dir, "running", steps)

    def _take(self) -> str:
        try:
            self.dir.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.dir / state.LOCK, "w")  # noqa: SIM115 - held until close
            _open_runs.add(self)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return f"run.dir: {self.dir} belongs to a run that is still going; wait for it, or choose another run.dir"
        except (FileExistsError, NotADirectoryError):
            return f"run.dir: {self.dir} is a file; choose another run.dir"
        except PermissionError:
            return f"run.dir: {self.dir} cannot be written; choose another run.dir"
        if not begun(self.dir):
            (self.dir / "run.json").unlink(missing_ok=True)
        elif trouble := of_another_config(self.dir, self.verb, self.config, self.complete):
            return trouble
        path = self.dir / CONFIG
        write_text(path, yaml.safe_dump({"verb": self.verb, **self.config}, sort_keys=False, width=120))
        return ""

    def record(self, **facts: Any) -> None:
        """Add facts to run.json: versions, host, data, and under `history` where each part of the run ran.

        Raises UserError if the data changed since the run began.
        """
        path = self.dir / "run.json"
        before = json.loads(path.read_text()) if path.exists() else {}
        old, new = before.get("data", {}), facts.get("data", {})
        changed = [name for name in new if name in old and old[name] != new[name]]
        if changed and self.options["changed_data"] == "refuse":
            raise UserError(
                f"data.{changed[0]} changed since {self.dir} began (fingerprint {old[changed[0]][:12]} then, {new[changed[0]][:12]} now); "
                "restore the data, choose another run.dir, or say run.changed_data=accept"
            )
        check_format(before, str(path))
        where = {"processes": world(), "device": str(self.device), "threads": torch.get_num_threads()}
        now = {"format": FORMAT, **environment(), "verb": self.verb, **where}
        if not self.recorded:
            part = {key: now[key] for key in ("started", "host", "processor", "commit", *where)}
            facts["history"] = [*before.get("history", []), part]
        self.recorded = {**now, **before, **facts}
        barrier()
        if self.main:
            write_text(path, json.dumps(self.recorded, indent=1))

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

    def log(self, message: str) -> None:
        """One plain line for the person who watches; warnings are printed even when quiet."""
        message = printable_lines(message)
        if self.main and (not self.quiet or message.startswith("WARNING")):
            self.console.print(message, markup=False, soft_wrap=True)
            append(message)

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Append a row to metrics.jsonl and to the tracker."""
        if self.main:
            with open(self.dir / "metrics.jsonl", "a") as file:
                file.write(json.dumps(row) + "\n")
        if self.options["tracker"] != "none":
            values = {k: v for k, v in row.items() if isinstance(v, int | float)}
            self.accelerator.log(values, step=row["step"])

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl so far, without a half-written last one."""
        path = self.dir / "metrics.jsonl"
        rows = []
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                rows.append(json.loads(line))
            except ValueError:  # a kill in the middle of a write leaves half a line
                continue
        return rows

    def cut_metrics(self, step: int) -> None:
        """Drop the rows beyond the step that the run resumes from."""
        path = self.dir / "metrics.jsonl"
        if self.main and path.exists():
            kept = [row for row in self.rows() if row["step"] <= step]
            write_text(path, "".join(f"{json.dumps(row)}\n" for row in kept))

    def finish(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Write result.json, atomically and last, and return it."""
        whole = {
            "task": self.verb,
            "run": str(self.dir),
            "seed": self.seed,
            **result,
            "seconds": round(time.time() - self.started, 2),
        }
        barrier()
        if self.main:
            write_text(self.dir / "result.json", json.dumps(whole, indent=1))
        self.finished = json.loads(json.dumps(whole))
        return whole

    def close(self) -> None:
        """Free the lock and close the trackers."""
        # Not accelerator.end_training(): it also ends the process group, which the next stage of a pipeline needs.
        for tracker in getattr(self.accelerator, "trackers", []):
            tracker.finish()
        self.accelerator.trackers = []
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Run:
        return self.open()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if self.main:
            with contextlib.suppress(OSError):  # a full disk, say, which then is the error already
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
                state.write_state(self.dir, "finished", self.steps)
        elif isinstance(error, Interrupted | KeyboardInterrupt):
            state.write_state(self.dir, "preempted", self.steps)
        else:
            state.write_state(self.dir, "failed", self.steps, (str(error).splitlines() or [type(error).__name__])[0])


def _leave_lock_to_parent() -> None:
    # A forked loader worker outlives a killed run by seconds; with our descriptor it would hold the lock that long.
    for run in list(_open_runs):
        if run._lock is not None:
            run._lock.close()


os.register_at_fork(after_in_child=_leave_lock_to_parent)
