"""A sweep's trials in Optuna's storage, and which worker owns which trial.

Optuna stores parameters, states and values. The owner of a trial holds a lock on a file in its folder; the operating system frees it
however the owner ends. A trial that is running, but whose lock is free, can be taken over by any worker: same number, parameters,
folder and checkpoint. Optuna's own heartbeat would fail it after a while and retry it as a new trial.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import platform
import re
import uuid
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from ...core.config import resolve as config
from ...core.documents import Unreadable, read_yaml
from ...core.errors import UserError
from ...core.files import read_regular, write_text
from ...core.launchlog import warn
from ...core.run.compare import as_written_now, differing
from ...core.run.folder import keep_damaged, make_folder, write_config
from ..verbs import fill_defaults
from .plan import Sweep, without_run
from .search_space import SAMPLERS

try:
    import optuna
    import sqlalchemy.exc
except ImportError as error:
    raise UserError("rootstock sweep needs Optuna; `pip install 'rootstock[sweep]'`") from error

TrialState = optuna.trial.TrialState
StorageError = optuna.exceptions.StorageInternalError
_LOCK, _PLACE, _OWNER = ".sweep.lock", ".place", ".owner"
_PATIENCE = 60.0  # seconds to wait for a locked SQLite file


@dataclass
class Claim:
    """A trial that this process owns until `free`. params: overrides of its config. before: number of earlier attempts."""

    number: int
    params: dict[str, Any]
    trial: optuna.Trial
    lock: IO[str]
    before: int

    def free(self) -> None:
        self.lock.close()


class Study:
    """The study of a sweep, created or joined.

    Machines that share run.dir and the storage can take over each other's trials. Machines that share only a database take different
    trials; an unfinished trial is then resumed on the machine that holds its folder.
    """

    def __init__(self, sweep: Sweep) -> None:
        """Raises UserError if the storage cannot be opened, or if run.dir or the study holds another sweep."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.sweep = sweep
        make_folder(sweep.dir)
        with self._locked():
            _check_folder(sweep)
            self.place = _place(sweep.dir)
            # get_storage adds Optuna's cache of a database; trials that we create have to go through it too.
            self.storage = optuna.storages.get_storage(_open_storage(sweep))
            self.name: str = sweep.config["study"] or sweep.dir.resolve().name
            self.study = optuna.create_study(
                storage=self.storage, study_name=self.name, direction=sweep.config["direction"], load_if_exists=True
            )
            self.id = self.storage.get_study_id_from_name(self.name)
            self._check_identity()
            written = sweep.config | {"trials": sweep.trials, "storage": _without_password(sweep.config["storage"])}
            write_config(sweep.dir, written, shared=True)

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """The trials so far, by number; without surplus ones that machines without a common disk created at the same moment."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.number < self.sweep.trials]

    @property
    def finished(self) -> bool:
        found = self.trials()
        return len(found) == self.sweep.trials and all(trial.state.is_finished() for trial in found)

    def claim(self) -> Claim | None:
        """A trial that has lost its owner, otherwise a new one; None if other workers own all that are left."""
        with self._locked():
            for frozen in self.trials():
                if frozen.state == TrialState.RUNNING and frozen.user_attrs.get("place") == self.place:
                    lock = _lock_trial(self.sweep.folder(frozen.number))
                    if lock is None:
                        continue
                    trial_id = self._id(frozen.number)
                    # Its owner may have finished it between the reading and the locking.
                    if self.storage.get_trial(trial_id).state == TrialState.RUNNING:
                        return self._claimed(frozen.number, trial_id, lock)
                    lock.close()
            if len(self.trials()) >= self.sweep.trials:
                return None
            return self._new()

    def _new(self) -> Claim | None:
        # Not Study.ask: a kill right after it would leave a trial without a place, which nobody could take over.
        attributes = {"place": self.place, "host": platform.node(), "dir": str(self.sweep.dir.resolve())}
        template = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=attributes)
        trial_id = self.storage.create_new_trial(self.id, template)
        number = self.storage.get_trial(trial_id).number
        if number >= self.sweep.trials:  # another machine was faster
            self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
            return None
        lock = _lock_trial(self.sweep.folder(number))
        assert lock is not None, "a new trial has no owner"
        return self._claimed(number, trial_id, lock)

    def _claimed(self, number: int, trial_id: int, lock: IO[str]) -> Claim:
        """Claim a locked trial and draw its parameters; those already drawn are kept, so this can be repeated after a kill."""
        try:
            with _quietly():
                self.study.sampler = config.build(self.sweep.config["sampler"], SAMPLERS, number, self.sweep.space)
                trial = optuna.Trial(self.study, trial_id)
                params = {key: span.draw(trial, key) for key, span in self.sweep.space.items()}
            before = trial.user_attrs.get("attempts", 0)
            trial.set_user_attr("attempts", before + 1)
        except BaseException:
            lock.close()
            raise
        return Claim(number, params, trial, lock, before)

    def note(self, claim: Claim, **facts: Any) -> None:
        """Store facts with a trial, unless somebody has finished it from outside (`optuna tell`)."""
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            for key, value in facts.items():
                claim.trial.set_user_attr(key, value)

    def finish(self, claim: Claim, value: float | None, why: str = "") -> None:
        """Finish a trial with its value, or as failed for the reason `why`. The claim keeps its lock."""
        if value is None:
            self.note(claim, why=why)
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        with _quietly():
            self.study.tell(claim.trial, value, state=state, skip_if_finished=True)

    def _id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self.id, number)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Only one worker of this folder at a time is inside."""
        with open(self.sweep.dir / _LOCK, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _check_identity(self) -> None:
        known = self.study.user_attrs.get("sweep")
        if known is None:
            if self.study.get_trials(deepcopy=False):
                raise UserError(
                    f"the study {self.name} holds trials that are not of a sweep; choose another study (or run.dir)"
                )
            if left := sorted(self.sweep.dir.glob("trial-*")):
                raise UserError(
                    f"run.dir: {self.sweep.dir} holds {left[0].name}, which is not in the storage; restore the storage, or "
                    "choose another run.dir"
                )
            self.study.set_user_attr("sweep", self.sweep.identity)
            return
        # The storage returns JSON.
        changed = differing(self._as_written_now(known), json.loads(json.dumps(self.sweep.identity)))
        if changed:
            listed = "; ".join(f"{key}: {old!r} there, {new!r} now" for key, old, new in changed)
            raise UserError(
                f"the study {self.name} is of another sweep ({listed}); choose another run.dir (and study), or restore these keys"
            )

    def _as_written_now(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """The identity that an earlier version stored, as this version would: keys that are new since then have their defaults."""
        sections, run = known.get("config", {}), {"run": {"dir": str(self.sweep.dir)}}
        completed = {
            name: as_written_now(section, run, partial(fill_defaults, self.sweep.verbs[name]))
            if name in self.sweep.verbs
            else section
            for name, section in sections.items()
        }
        return {**known, "config": {name: without_run(section) for name, section in completed.items()}}


def _lock_trial(folder: Path) -> IO[str] | None:
    """Take the lock of a trial; None if another process holds it."""
    folder.mkdir(exist_ok=True)
    file = open(folder / _OWNER, "w")  # noqa: SIM115 - the claim holds it
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _place(folder: Path) -> str:
    """The identifier of the folder in the storage, the same wherever the disk is mounted."""
    path = folder / _PLACE
    try:
        text = read_regular(path).decode("ascii", "replace").strip()
        if text == text[:32] + _checked(text[:32]) or re.fullmatch(
            "[0-9a-f]{32}", text
        ):  # earlier versions wrote no checksum
            return text[:32]
        trouble = f"{path} is damaged"
        keep_damaged(path)
    except FileNotFoundError:
        trouble = f"{path} is missing" if (folder / "config.yaml").exists() else ""
    if trouble:
        warn(f"WARNING: {trouble}; it is made anew, so unfinished trials here count as those of another machine")
    name = uuid.uuid4().hex
    write_text(path, name + _checked(name))
    return name


def _checked(name: str) -> str:
    return "-" + hashlib.sha256(name.encode()).hexdigest()[:8]


def _check_folder(sweep: Sweep) -> None:
    path = sweep.dir / "config.yaml"
    if not path.exists():
        return
    try:
        before = read_yaml(path)
    except Unreadable:
        before = None
    if not isinstance(before, dict) or "search" not in before:
        raise UserError(f"run.dir: {sweep.dir} holds something other than a sweep; choose another run.dir")


def _open_storage(sweep: Sweep) -> optuna.storages.BaseStorage:
    where = sweep.config["storage"]
    if where == "journal":
        from optuna.storages.journal import JournalFileBackend

        return optuna.storages.JournalStorage(JournalFileBackend(str(sweep.dir / "study.journal")))
    url = f"sqlite:///{sweep.dir / 'study.db'}" if where == "sqlite" else where
    patience = {"connect_args": {"timeout": _PATIENCE}} if url.startswith("sqlite:") else {}
    try:
        return optuna.storages.RDBStorage(url, engine_kwargs=patience)
    except (
        ImportError,
        ValueError,
        RuntimeError,
        sqlalchemy.exc.SQLAlchemyError,
        optuna.exceptions.OptunaError,
    ) as error:
        raise UserError(
            f"storage: {_without_password(where)}: {cause(error)}; expected sqlite, journal, or a database URL such as "
            "postgresql+psycopg://user@host/name whose driver is installed"
        ) from error


def cause(error: BaseException) -> str:
    """The database's own message, without the text that SQLAlchemy and Optuna add."""
    inner = error.__cause__ or error
    return (str(getattr(inner, "orig", None) or inner).splitlines() or [type(inner).__name__])[0]


def _without_password(where: str) -> str:
    from sqlalchemy.engine import make_url

    try:
        return make_url(where).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return where


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Silence Optuna's warnings about experimental features: those used here are years old, and the user cannot act on them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
