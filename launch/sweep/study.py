"""A sweep's trials in Optuna's storage, and which worker owns which trial.

Optuna stores parameters, states and values. The owner of a trial holds a lock on a file in its folder; the operating system frees it
however the owner ends. A trial that is running, but whose lock is free, can be taken over by any worker: same number, parameters,
folder and checkpoint. Optuna's own heartbeat would fail it after a while and retry it as a new trial.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import platform
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

from ...core.config import resolve as config
from ...core.errors import UserError
from ...core.run.compare import as_written_now, differing
from ...core.run.folder import make_folder, write_config
from ..verbs import fill_defaults
from .place import check_sweep_folder, lock_trial, sweep_place
from .plan import Sweep, without_run
from .search_space import SAMPLERS

try:
    import optuna

    from .storage import open_storage, without_password
except ImportError as error:
    raise UserError("rootstock sweep needs Optuna; `pip install 'rootstock[sweep]'`") from error

TrialState = optuna.trial.TrialState
StorageError = optuna.exceptions.StorageInternalError
_LOCK = ".sweep.lock"
_OFFERED = "offered"


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
            check_sweep_folder(sweep.dir)
            self.place = sweep_place(sweep.dir)
            # get_storage adds Optuna's cache of a database; trials that we create have to go through it too.
            self.storage = optuna.storages.get_storage(open_storage(sweep.config["storage"], sweep.dir))
            self.name: str = sweep.config["study"] or sweep.dir.resolve().name
            directions = [sweep.config["direction"], *(["minimize"] if sweep.cost is not None else [])]
            self.study = optuna.create_study(
                storage=self.storage, study_name=self.name, directions=directions, load_if_exists=True
            )
            self.id = self.storage.get_study_id_from_name(self.name)
            self._check_identity()
            written = sweep.config | {"trials": sweep.trials, "storage": without_password(sweep.config["storage"])}
            write_config(sweep.dir, written, shared=True)

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """The trials so far, by number; without surplus ones that machines without a common disk created at the same moment."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.number < self.sweep.trials]

    @property
    def finished(self) -> bool:
        found = self.trials()
        return len(found) == self.sweep.trials and all(trial.state.is_finished() for trial in found)

    def offer(self, points: Callable[[], list[dict[str, Any]]]) -> None:
        """Give the first trials these points, unless the study has some already: then the first worker's hold."""
        if _OFFERED not in self.study.user_attrs:
            found = points()
            labels = [{key: self.sweep.space[key].label(value) for key, value in point.items()} for point in found]
            with self._locked():
                if _OFFERED not in self.study.user_attrs:
                    self.study.set_user_attr(_OFFERED, labels)

    def claim(self) -> Claim | None:
        """A trial that has lost its owner, otherwise a new one; None if other workers own all that are left.

        A trial with the parameters of an earlier one is no work: it gets the values of that one, as soon as it has any.
        """
        with self._locked():
            for frozen in self.trials():
                here = frozen.user_attrs.get("place") == self.place
                if frozen.state != TrialState.RUNNING or not here or self._waits(frozen):
                    continue
                lock = lock_trial(self.sweep.folder(frozen.number))
                if lock is None:
                    continue
                trial_id = self._id(frozen.number)
                # Its owner may have finished it between the reading and the locking.
                if self.storage.get_trial(trial_id).state == TrialState.RUNNING:
                    claim = self._claimed(frozen.number, trial_id, lock)
                    if not self._repeats(claim):
                        return claim
                lock.close()
            while len(self.trials()) < self.sweep.trials:
                claim = self._new()
                if claim is None or not self._repeats(claim):
                    return claim
            return None

    def _earlier(self, frozen: Any) -> list[optuna.trial.FrozenTrial]:
        """The earlier trials with all parameters of this one."""
        same = len(frozen.params) == len(self.sweep.space)
        return [one for one in self.trials() if same and one.number < frozen.number and one.params == frozen.params]

    def _waits(self, frozen: Any) -> bool:
        """Whether an earlier trial in this folder with the same parameters is still running."""
        return any(
            one.state == TrialState.RUNNING and one.user_attrs.get("place") == self.place
            for one in self._earlier(frozen)
        )

    def _repeats(self, claim: Claim) -> bool:
        """Whether an earlier trial has, or will have, the values of this one. The claim is then freed, and finished if it can be."""
        waits = self._waits(claim.trial)
        for one in self._earlier(claim.trial):
            if not waits and one.state in (TrialState.COMPLETE, TrialState.PRUNED):
                self.note(claim, same_as=one.user_attrs.get("same_as", one.number), attempts=0)
                self._weigh(claim, one.user_attrs.get("cost"))
                self._tell(claim, one.values, one.state)
                waits = True
        if waits:
            claim.free()
        return waits

    def _new(self) -> Claim | None:
        # Not Study.ask: a kill right after it would leave a trial without a place, which nobody could take over.
        attributes = {"place": self.place, "host": platform.node(), "dir": str(self.sweep.dir.resolve())}
        template = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=attributes)
        trial_id = self.storage.create_new_trial(self.id, template)
        number = self.storage.get_trial(trial_id).number
        if number >= self.sweep.trials:  # another machine was faster
            self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
            return None
        lock = lock_trial(self.sweep.folder(number))
        assert lock is not None, "a new trial has no owner"
        return self._claimed(number, trial_id, lock)

    def _claimed(self, number: int, trial_id: int, lock: IO[str]) -> Claim:
        """Claim a locked trial and draw its parameters; those already drawn are kept, so this can be repeated after a kill."""
        try:
            with _quietly():
                self.study.sampler = self._sampler(number)
                trial = optuna.Trial(self.study, trial_id)
                params = {key: span.draw(trial, key) for key, span in self.sweep.space.items()}
            before = trial.user_attrs.get("attempts", 0)
            trial.set_user_attr("attempts", before + 1)
        except BaseException:
            lock.close()
            raise
        return Claim(number, params, trial, lock, before)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        sampler = config.build(self.sweep.config["sampler"], SAMPLERS, number, self.sweep.space)
        offered = self.study.user_attrs.get(_OFFERED, [])
        if number >= len(offered):
            return sampler
        return optuna.samplers.PartialFixedSampler(offered[number], sampler)

    def note(self, claim: Claim, **facts: Any) -> None:
        """Store facts with a trial, unless somebody has finished it from outside (`optuna tell`)."""
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            for key, value in facts.items():
                claim.trial.set_user_attr(key, value)

    def finish(self, claim: Claim, value: float | None, why: str = "", cost: Mapping[str, Any] | None = None) -> None:
        """Finish a trial with its value, or as failed for the reason `why`. The claim keeps its lock. cost: what is known of its cost."""
        self._weigh(claim, cost)
        if value is None:
            self.note(claim, why=why)
            self._tell(claim, None, TrialState.FAIL)
        else:
            self._tell(claim, [value, *([cost["cost"]] if cost is not None else [])], TrialState.COMPLETE)

    def leave_out(self, claim: Claim, cost: Mapping[str, Any]) -> None:
        """Finish a trial that is beyond the budget, and so has not been trained."""
        self._weigh(claim, cost)
        self._tell(claim, None, TrialState.PRUNED)

    def _tell(self, claim: Claim, values: Sequence[float] | None, state: Any) -> None:
        with _quietly():
            self.study.tell(claim.trial, values, state=state, skip_if_finished=True)

    def _weigh(self, claim: Claim, cost: Mapping[str, Any] | None) -> None:
        """Keep the cost with the trial, and tell samplers that heed it by how much it exceeds the budget."""
        if cost is None or self.sweep.cost is None:
            return
        self.note(claim, cost=dict(cost))
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            # The form that Optuna 4 and 5 read; `Trial.set_constraint` is new in 5.
            self.storage.set_trial_system_attr(
                self._id(claim.number), "constraints", [self.sweep.cost.excess(cost["cost"])]
            )

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


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Silence Optuna's warnings about experimental features: those used here are years old, and the user cannot act on them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
