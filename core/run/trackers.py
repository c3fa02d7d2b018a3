"""Where metrics go besides metrics.jsonl: TensorBoard, Weights & Biases or MLflow, through Accelerate.

A tracker is told what the run's own files say, and nothing is read back from it. So a tracker that fails costs a warning, not the run.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import logging
import netrc
import os
import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

from ..distributed import rank
from ..documents import flattened
from ..errors import UserError
from ..files import write_text

Tracker = Literal["none", "tensorboard", "wandb", "mlflow"]
PROJECT = "rootstock"  # Weights & Biases calls it project, MLflow experiment
IDENTITY = "tracker.json"  # the run's id at a service, so that a resumed run goes on there
INSTALLED_AS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow-skinny sqlalchemy alembic"}
QUIET = ("alembic", "mlflow", "wandb")  # loggers that tell of their own set-up


def check_tracker(tracker: str) -> None:
    """Raises UserError if the package of `run.tracker` is not installed."""
    if tracker != "none" and importlib.util.find_spec(tracker) is None:
        install = f"`pip install 'rootstock[track]'` or `pip install {INSTALLED_AS[tracker]}`"
        raise UserError(f"run.tracker: {tracker} is not installed; {install}, or use run.tracker=none")


class Trackers:
    """The tracker of one run. It is opened with the first row, so a finished run that is started again leaves it alone.

    folder: The run's. warn: gets one sentence if the tracker fails; the run then goes on without it.
    """

    def __init__(
        self,
        tracker: str,
        accelerator: Accelerator,
        folder: Path,
        config: Mapping[str, Any],
        warn: Callable[[str], None],
    ) -> None:
        self.tracker, self.accelerator, self.folder, self.config, self.warn = tracker, accelerator, folder, config, warn
        self.used = tracker != "none" and rank() == 0
        self.opened, self.last = False, 0

    def log(self, row: Mapping[str, Any]) -> None:
        """Pass on the numbers of a row of metrics.jsonl, at its `step`."""
        if not self.used:
            return
        values = {key: value for key, value in row.items() if isinstance(value, int | float) and key != "step"}
        if values:
            self.last = row["step"]
            self._try(self._tell, values)

    def conclude(self, metrics: Mapping[str, Any]) -> None:
        """Pass on the final numbers of result.json, at the step of the last row."""
        self.log({"step": self.last, **{f"result/{key}": value for key, value in metrics.items()}})

    def close(self) -> None:
        """End the tracker's run. What is begun there again goes on with it."""
        # Not accelerator.end_training(): it also ends the process group, which the next stage of a pipeline needs.
        for tracker in self.accelerator.trackers if self.opened else []:
            if self.used:
                self._try(tracker.finish)
            elif (
                self.tracker == "tensorboard"
            ):  # its thread would go on writing; a service that failed may keep one waiting
                with contextlib.suppress(Exception), _undisturbed():
                    tracker.finish()
        self.accelerator.trackers, self.opened = [], False

    def _tell(self, values: Mapping[str, float]) -> None:
        if not self.opened:
            self._open(self.last)
        self.accelerator.log(dict(values), step=self.last)

    def _try(self, call: Callable[..., object], *args: Any) -> None:
        if not self.used:
            return
        try:
            with _undisturbed():
                call(*args)
        except Exception as error:  # whatever a service and its client may raise
            self.used = False
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.warn(f"WARNING: run.tracker: {self.tracker} failed ({first}); the run goes on without it")

    def _open(self, step: int) -> None:
        """Begin, or go on with, the run at the tracker. step: that of the first row that follows."""
        self.accelerator.log_with = cast("list[Any]", [self.tracker])
        resumed = (self.folder / IDENTITY).exists()
        self.accelerator.project_configuration = ProjectConfiguration(str(self.folder), str(self.folder))
        arguments = getattr(self, f"_{self.tracker}")(step)
        project = {"tensorboard": "tensorboard", "wandb": os.environ.get("WANDB_PROJECT")}.get(self.tracker) or PROJECT
        self.accelerator.init_trackers(project, init_kwargs={self.tracker: arguments})
        self.opened = True
        own: Any = self.accelerator.get_tracker(self.tracker, unwrap=True)
        if self.tracker == "tensorboard":
            own.add_text("config", "\n".join(f"    {key}: {value}" for key, value in flat(self.config).items()), step)
            return
        if self.tracker == "mlflow" and not resumed:
            self._keep(own.info.run_id)
        if self.tracker == "wandb" or not resumed:  # what MLflow was once told of a parameter cannot change
            self.accelerator.trackers[0].store_init_configuration(flat(self.config))

    def _tensorboard(self, step: int) -> dict[str, Any]:
        return {"purge_step": step}  # rows that a killed run logged beyond its last checkpoint disappear

    def _wandb(self, step: int) -> dict[str, Any]:
        wandb: Any = importlib.import_module("wandb")
        return {
            "id": self._identity() or self._keep(secrets.token_hex(4)),
            "resume": "allow",
            "name": str(self.folder),
            "dir": str(self.folder),
            **({} if _wandb_knows_what_to_do() else {"mode": "offline"}),
            "settings": wandb.Settings(silent=True, disable_git=True, console="off"),
        }

    def _mlflow(self, step: int) -> dict[str, Any]:
        mlflow: Any = importlib.import_module("mlflow")
        artifacts = None
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            mlflow.set_tracking_uri(f"sqlite:///{self.folder.absolute() / 'mlflow.db'}")
            artifacts = (self.folder.absolute() / "mlflow").as_uri()
        return {"run_id": self._identity(), "run_name": str(self.folder), "logging_dir": artifacts}

    def _identity(self) -> str | None:
        """The id of this run at the tracker, if an earlier command began it."""
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self.folder / IDENTITY).read_text()).get(self.tracker)
        return None

    def _keep(self, identity: str) -> str:
        write_text(self.folder / IDENTITY, json.dumps({self.tracker: identity}) + "\n")
        return identity


def flat(config: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """A config with one level: `optim.lr`, ..., as parameters of a tracker; what is no number is text."""
    values = {key: value for key, value in flattened(config).items() if not isinstance(value, Mapping)}
    return {key: value if isinstance(value, int | float) else str(value) for key, value in values.items()}


def _wandb_knows_what_to_do() -> bool:
    """Whether Weights & Biases has an account here, or was told a mode; or else it asks at the prompt."""
    if any(os.environ.get(f"WANDB_{name}") for name in ("MODE", "API_KEY", "IDENTITY_TOKEN_FILE")):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    return False


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Within it, the clients of services say nothing of their own set-up and of what they will change one day."""
    loggers = [logging.getLogger(name) for name in QUIET]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
