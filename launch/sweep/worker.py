"""`rootstock sweep`: a worker that begins trials, resumes those that other workers left, and writes the page when all are done.

The same command in another terminal, or on another machine, starts another worker of the same sweep.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

from rich.console import Console

from ...core.distributed import world
from ...core.errors import UserError
from ...core.interrupt import REQUESTS
from ...core.launchlog import warn
from ...core.loudness import Loudness, loudness
from ...core.run.folder import read_result
from ..exits import STOPPED
from ..report.tables import selection_sentence
from .appraisal import FACTS, cost_facts, offered_points
from .cost import cost_in_words
from .front import front_lines
from .page import write_sweep_page
from .plan import Sweep, plan_sweep
from .result import BEYOND_BUDGET, params_in_words, record_result, trials_table
from .storage import cause
from .study import Claim, StorageError, Study, TrialState
from .trial import BEYOND, CRASHED, MISTAKE, Attempt, failure_reason, start_trial

_LOOK_AGAIN = 1.0  # seconds between two looks at the trials of other workers
_FAILURES = 3  # failed trials without a success, after which the sweep stops: the cause is probably common to all
_DEATHS = 3  # times that the system may kill a trial before it counts as failed


def run_sweep(path: str, overrides: Sequence[str], slots: int) -> int:
    """Work on a sweep until all its trials are done; of a finished sweep only print the result. slots: trials at the same time.

    Returns the exit code. Raises UserError, and KeyboardInterrupt if asked to stop, after the trials have saved.
    """
    if slots < 1:
        raise UserError(f"--workers {slots}: expected 1 or more")
    if world() > 1 or "RANK" in os.environ:
        raise UserError(
            "a sweep starts its trials itself; run it without torchrun or accelerate, with --workers N for several at once"
        )
    sweep = plan_sweep(path, overrides)
    console = Console(stderr=True, highlight=False, width=None if os.isatty(2) else 160)
    try:
        study = Study(sweep)
        before = read_result(sweep.dir, lambda why: warn(f"WARNING: {why}; it is made anew"))
        if study.finished and before is not None and len(before["trials"]) >= sweep.trials:
            console.print(f"{sweep.dir} is finished; raise trials to go on, or choose another run.dir", markup=False)
            return _print_result(console, before)
        worker = Worker(sweep, study, slots, console)
        if sweep.cost is not None or sweep.filtered:
            study.offer(lambda: offered_points(sweep, worker.say))
        worker.work()
        if not study.finished:  # the other trials belong to machines that share no disk with this one
            return 0
        code = _print_result(console, record_result(study))
        console.print(f"report: {write_sweep_page(sweep.dir)}", markup=False, soft_wrap=True)
        return code
    except StorageError as error:
        raise UserError(f"storage: {cause(error)}; run the same command to go on once it answers again") from error


def _print_result(console: Console, result: Mapping[str, Any]) -> int:
    """Print the trials and the best command. Returns the exit code: 1 if no trial has succeeded."""
    console.print(trials_table(result))
    for line in front_lines(result):
        console.print(line, markup=False, soft_wrap=True)
    console.print(selection_sentence(result["selection"]), markup=False, soft_wrap=True)
    if result["best"] is not None:
        console.print(f"best: {result['best']['command']}", markup=False, soft_wrap=True)
        return 0
    if result.get("cost") and all(trial["state"] == BEYOND_BUDGET for trial in result["trials"]):
        least = min(trial["cost"] for trial in result["trials"])
        why = f"all cost more than cost.budget {result['cost']['budget']:g} (the least: {least:g}); raise it in another run.dir"
        console.print(
            f"error: no trial of {len(result['trials'])} has been trained: {why}", markup=False, soft_wrap=True
        )
        return 1
    failed = next((trial["why"] for trial in result["trials"] if trial.get("why")), "see the logs of the trials")
    console.print(f"error: no trial of {len(result['trials'])} has succeeded: {failed}", markup=False, soft_wrap=True)
    return 1


class Worker:
    """The main loop of a worker and its messages."""

    def __init__(self, sweep: Sweep, study: Study, slots: int, console: Console) -> None:
        self.sweep, self.study, self.slots, self.console = sweep, study, slots, console
        self.attempts: list[Attempt] = []
        self.failures = 0  # since the last success
        self.waiting: set[int] = set()

    def work(self) -> None:
        """Run trials until nothing is left for this worker. Raises KeyboardInterrupt if asked to stop, UserError if all trials fail."""
        found = self.study.trials()
        done = sum(trial.state.is_finished() for trial in found)
        objective = "/".join(filter(None, self.sweep.objective))
        against = "" if self.sweep.cost is None else f" against {self.sweep.cost.in_words()}"
        self.say(
            f"sweep {self.sweep.dir}: {self.sweep.trials} trials ({done} done), {self.sweep.config['sampler']['name']}, "
            f"{self.sweep.config['direction']} {objective}{against} (selection: {self.sweep.selection})"
        )
        with _collect_requests(self.attempts) as requests:
            try:
                while not requests and (self._begin() or self._others_work()):
                    self._listen()
            finally:
                self._stop()
        if requests:
            raise KeyboardInterrupt

    def say(self, text: str) -> None:
        if loudness() > Loudness.QUIET:
            self.console.print(text, markup=False, soft_wrap=True)

    def _begin(self) -> bool:
        """Start trials in the free slots. Returns whether any trial is running."""
        while len(self.attempts) < self.slots and (claim := self.study.claim()) is not None:
            slot = next(number for number in range(self.slots) if all(a.slot != number for a in self.attempts))
            again = f", begun before ({claim.before} x)" if claim.before else ""
            self.say(f"trial {claim.number:3d}  {params_in_words(claim.params)}{again}")
            self.attempts.append(start_trial(self.sweep, claim, slot, self.slots, [a.claim for a in self.attempts]))
        return bool(self.attempts)

    def _others_work(self) -> bool:
        """Whether other workers in this folder still run trials; this worker takes a trial over if its owner is killed."""
        running = [trial for trial in self.study.trials() if trial.state == TrialState.RUNNING]
        here = {trial.number for trial in running if trial.user_attrs.get("place") == self.study.place}
        if here - self.waiting:
            self.say(f"waiting for {_listed(sorted(here))}, which other workers run")
        self.waiting = here
        if running and not here:
            places = ", ".join(sorted({f"{t.user_attrs.get('host')}:{t.user_attrs.get('dir')}" for t in running}))
            self.say(
                f"unfinished: {_listed([t.number for t in running])} in {places}; the same command continues there. If they are lost: "
                f"optuna tell --storage URL --study-name {self.study.name} --trial-number N --state fail"
            )
        return bool(here)

    def _listen(self) -> None:
        """Wait until a trial ends, for _LOOK_AGAIN seconds at most, and handle those that have ended."""
        wait([attempt.process.sentinel for attempt in self.attempts], _LOOK_AGAIN)
        for attempt in [attempt for attempt in self.attempts if not attempt.process.is_alive()]:
            self.attempts.remove(attempt)
            self._ended(attempt)

    def _ended(self, attempt: Attempt) -> None:
        claim = attempt.claim
        attempt.process.join()
        code = attempt.process.exitcode
        assert code is not None
        earlier = claim.trial.user_attrs
        self.study.note(claim, seconds=round(earlier.get("seconds", 0.0) + attempt.seconds, 1))
        try:
            if code == 0:
                self._succeeded(claim, attempt.seconds)
            elif code == BEYOND:
                self._left_out(claim)
            elif code in (MISTAKE, CRASHED):
                self._failed(claim, failure_reason(self.sweep.folder(claim.number)))
            elif code == STOPPED or -code in REQUESTS:
                self.say(f"trial {claim.number:3d}  stopped; resumes with the same command")
            elif code > 0:
                raise UserError(f"trial {claim.number}: {failure_reason(self.sweep.folder(claim.number))}")
            else:
                self._killed(claim, signal.Signals(-code).name, earlier.get("deaths", 0) + 1)
        finally:
            claim.free()

    def _succeeded(self, claim: Claim, seconds: float) -> None:
        try:
            value = self.sweep.objective.of(self.sweep.folder(claim.number))
        except UserError as error:
            raise UserError(f"objective: {error}; correct it, and choose another run.dir") from error
        if math.isnan(value):
            self._failed(claim, f"{self.sweep.objective.name} is not a number")
            return
        cost = self._cost(claim)
        self.study.finish(claim, value, cost=cost)
        self.failures = 0
        known = [(trial.values[0], trial.number) for trial in self.study.trials() if trial.values]
        best, number = (max if self.sweep.maximize else min)(known, key=lambda pair: pair[0])
        price = (
            ""
            if cost is None or self.sweep.cost is None
            else f", {self.sweep.cost.name} {cost_in_words(cost['cost'])},"
        )
        self.say(f"trial {claim.number:3d}  {value:.4f}{price} in {seconds:.0f} s; best {best:.4f} of trial {number}")

    def _cost(self, claim: Claim) -> dict[str, Any] | None:
        """The trial's cost, which it has found out itself; None for a sweep without one. Raises UserError if its file is damaged."""
        if self.sweep.cost is None:
            return None
        if (cost := cost_facts(self.sweep, claim.number)) is None:
            raise UserError(
                f"trial {claim.number}: {self.sweep.folder(claim.number) / FACTS} is missing or damaged; run the same command again"
            )
        return cost

    def _left_out(self, claim: Claim) -> None:
        cost = self._cost(claim)
        assert cost is not None and self.sweep.cost is not None and self.sweep.cost.budget is not None
        self.study.leave_out(claim, cost)
        self.say(
            f"trial {claim.number:3d}  not trained: {self.sweep.cost.name} {cost_in_words(cost['cost'])} is beyond the budget of "
            f"{cost_in_words(self.sweep.cost.budget)}"
        )

    def _failed(self, claim: Claim, why: str) -> None:
        cost = None if self.sweep.cost is None else cost_facts(self.sweep, claim.number)
        self.study.finish(claim, None, why, cost)
        self.say(f"trial {claim.number:3d}  failed: {why}")
        self.failures += 1
        if self.failures >= _FAILURES and not any(t.state == TrialState.COMPLETE for t in self.study.trials()):
            raise UserError(
                f"{self.failures} trials have failed and none has finished; the last, trial {claim.number}: {why} (its log is in "
                f"{self.sweep.folder(claim.number)}/logs); correct the cause, and choose another run.dir"
            )

    def _killed(self, claim: Claim, by: str, deaths: int) -> None:
        self.study.note(claim, deaths=deaths)
        if deaths >= _DEATHS:
            self._failed(claim, f"was killed by {by} {deaths} times; the usual cause is too little memory")
        else:
            self.say(f"trial {claim.number:3d}  was killed by {by}; resuming it")

    def _stop(self) -> None:
        """Ask all trials to save and end, and wait for them; those that just finished are recorded."""
        for attempt in self.attempts:
            attempt.ask(signal.SIGTERM)
        while self.attempts:
            self._listen()


def _listed(numbers: Sequence[int]) -> str:
    return f"trial {', '.join(map(str, numbers))}"


@contextmanager
def _collect_requests(attempts: list[Attempt]) -> Iterator[list[int]]:
    """Yields a list of the signals that asked to stop. A second Ctrl-C ends the trials without saving."""
    requests: list[int] = []

    def ask(number: int, _: Any) -> None:
        if requests and number == signal.SIGINT:
            for attempt in attempts:
                attempt.ask(signal.SIGINT)
        requests.append(number)

    before: Mapping[int, Any] = {number: signal.signal(number, ask) for number in REQUESTS}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
