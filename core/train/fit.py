"""`fit`: the only training loop in the project.

Its only clock is the integer step, and everything random is a function of (seed, step, position). So a checkpoint holds only weights,
moments and counters, and a resumed run gives the same bits as an uninterrupted one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from .. import phase
from ..config.resolve import Duration, Minutes
from ..interrupt import stop_signals
from ..method import Method
from ..run.directory import Interrupted, Run
from ..stream.batches import MicroBatches
from .compile import compiled, should_compile
from .loop import Alarm, Loop
from .memory import step_in_memory
from .optim import Optim, parameter_groups
from .parallel import Strategy, strategy_for
from .progress import Progress
from .refresh import NEVER, Refresh
from .replicas import check_replicas

Evaluator = Callable[[nn.Module], Mapping[str, float]]


@dataclass(frozen=True)
class Every:
    """How often `fit` logs, evaluates, saves and compares replicas, in steps. 0: only after the last step."""

    log: int = 10
    evaluate: int = 0
    save: int = 0
    save_seconds: float = 0.0  # of the clock, after which a checkpoint is due; 0: never
    verify: int | None = None  # None: before each checkpoint; 0: never

    def logs(self, done: int, steps: int) -> bool:
        """Whether a row is logged after `done` of `steps` steps."""
        return done == steps or bool(self.log and done % self.log == 0)

    def evaluates(self, done: int, steps: int) -> bool:
        """Whether evaluators are called after `done` of `steps` steps."""
        return done == steps or bool(self.evaluate and done % self.evaluate == 0)

    def saves(self, done: int, steps: int) -> bool:
        """Whether a checkpoint is saved after `done` of `steps` steps."""
        return done == steps or bool(self.save and done % self.save == 0)

    def verifies(self, done: int, steps: int, saves: bool) -> bool:
        """Whether the processes compare their weights after `done` of `steps` steps. saves: whether a checkpoint follows."""
        if self.verify is None:
            return saves
        return self.verify > 0 and (done == steps or done % self.verify == 0)

    @staticmethod
    def of(run: Run, steps: int, steps_per_epoch: int, evaluate: Any = None) -> Every:
        """From the run's options and `evaluate`, the duration between evaluations (None: only at the end)."""

        def resolve(duration: Any) -> int:
            parsed = Duration.parse(duration)
            return max(1, parsed.steps(steps_per_epoch, steps)) if parsed.value else 0

        save = run.options["checkpoint"]["every"]
        minutes = Minutes.read(save)
        return Every(
            log=run.options["log_every"],
            evaluate=resolve(evaluate) if evaluate is not None else 0,
            save=0 if minutes else resolve(save),
            save_seconds=minutes.seconds if minutes else 0.0,
            verify=None if (verify := run.options["verify_replicas"]) is None else resolve(verify),
        )


class Training(NamedTuple):
    """The arguments of a call of `fit`."""

    method: Method
    batches: MicroBatches
    prepare: Callable[[Any], Any]
    optim: Optim
    steps: int
    steps_per_epoch: int
    every: Every
    refresh: Refresh = NEVER

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that the optimizer gets. Raises UserError as building it would."""
        return [p for group in parameter_groups(self.method, self.optim) for p in group["params"]]


def fit(
    method: Method,
    batches: MicroBatches,
    prepare: Callable[[Any], Any],
    *,
    steps: int,
    steps_per_epoch: int,
    optim: Optim,
    seed: int,
    run: Run,
    evaluators: Mapping[str, Evaluator] = {},
    every: Every = Every(),
    refresh: Refresh = NEVER,
    alarm: Alarm | None = None,
    enough: Callable[[int], bool] | None = None,
) -> int:
    """Train `method` in place for `steps` optimizer steps, from the newest checkpoint if there is one; returns how many were made.

    method: see core/method.py. batches(step): this process's micro-batches of each step from `step` on. prepare: raw batch -> batch of
    the method. evaluators: called every `every.evaluate` steps and at the end, with the method in eval mode. refresh: before which steps
    the method looks over the target. alarm: (step, logged row) -> a warning or None. enough: after an evaluation, completed steps -> if
    training stops, alike everywhere. Raises Interrupted, after saving, if asked to stop; UserError after repeated non-finite losses.
    """
    strategy = strategy_for(method, run)
    run.plan(steps)
    trained = strategy.wrap()
    loop = Loop(trained, optim.build(trained), optim, run, steps, steps_per_epoch, seed, sharded=strategy.sharded)
    loop.saving.seconds = every.save_seconds
    start = loop.resume()
    _note_length(optim, steps, steps_per_epoch, run)
    fast = should_compile(run)
    prepare = compiled(prepare, run, "the augmentation") if fast else prepare
    forward, loop.unsynced = strategy.forward(fast), strategy.unsynced
    score = partial(_score, strategy, trained, evaluators, steps_per_epoch, run)
    trained.train()
    phase.begin(phase.FIRST_STEP, start)
    done, due = start, bool(evaluators) and start > 0 and every.evaluates(start, steps)
    stopped = due and _judge(loop, every, start, score, enough, again=True)
    with stop_signals() as asked, Progress(run, steps, start) as progress:
        waiting = time.perf_counter()
        for step, micro in zip(range(start, steps), batches(start), strict=True) if not stopped else ():
            waited = time.perf_counter() - waiting
            progress.leave_out(refresh.before(trained, step, steps))
            done = step + 1
            loop.watching = every.logs(done, steps)
            row = step_in_memory(loop, forward, micro, prepare, step, asked)
            phase.begin(phase.TRAINING, done)
            progress.advance(done, loop.images(micro), waited)
            if every.saves(done, steps) or loop.watching or loop.stop or loop.due:
                loop.flush()
            if loop.watching:
                loop.log(done, row, progress, alarm)
            aside = time.perf_counter()
            _secure(loop, every, done)
            if evaluators and every.evaluates(done, steps) and _judge(loop, every, done, score, enough):
                break
            waiting = time.perf_counter()
            progress.leave_out(waiting - aside)
    _close(loop, strategy)
    return done


def _judge(
    loop: Loop,
    every: Every,
    done: int,
    score: Callable[[int], None],
    enough: Callable[[int], bool] | None,
    again: bool = False,
) -> bool:
    """Evaluate; returns whether training stops before its last step. Then the state is saved, so that the same command goes on from there.

    again: whether a resumed run is at this step; it evaluates only if an earlier command ended after saving and before evaluating.
    """
    if not again or not loop.evaluated(done):
        score(done)
    if enough is None or done == loop.steps or not enough(done):
        return False
    if again:
        return True
    loop.run.log(f"step {done} of {loop.steps}: the last evaluations brought nothing better, so training stops here")
    if not every.saves(done, loop.steps):
        loop.flush()
        with phase.during(phase.CHECKPOINT):
            loop.save(done)
    return True


def _note_length(optim: Optim, steps: int, steps_per_epoch: int, run: Run) -> None:
    """Say so if nothing is trained, or if the warm-up takes the whole training."""
    if steps == 0:
        run.log("0 steps: the initial weights are kept as they are")
    elif (warmup := optim.warmup_steps(steps, steps_per_epoch)) >= steps:
        run.log(
            f"WARNING: optim.warmup takes {warmup} steps of {steps}, so the peak rate is never reached; try warmup: 10%"
        )


def _close(loop: Loop, strategy: Strategy) -> None:
    """After the last step: free the gradients, say what saving took, and leave the complete method."""
    phase.begin(phase.CLOSING, loop.steps)
    loop.optimizer.zero_grad(set_to_none=True)
    loop.saving.report()
    strategy.finish()


def _secure(loop: Loop, every: Every, done: int) -> None:
    """Compare the weights of the processes and save them, where one of both is due: weights that have come apart are not saved.

    Raises Interrupted if some process was asked to stop.
    """
    # Before an evaluation, which may outlast the time that a scheduler gives a run to stop.
    saves = every.saves(done, loop.steps) or loop.stop or loop.due
    if every.verifies(done, loop.steps, saves):
        loop.flush()
        check_replicas(loop.method, done, loop.run.checkpoints)
    if saves:
        with phase.during(phase.CHECKPOINT):
            loop.save(done)
    if loop.stop and done < loop.steps:
        raise _interrupted(done, loop.steps, loop.run)


def _interrupted(done: int, steps: int, run: Run) -> Interrupted:
    return Interrupted(f"interrupted; saved at step {done} of {steps} in {run.dir}; the same command resumes")


def _score(
    strategy: Strategy,
    trained: nn.Module,
    evaluators: Mapping[str, Evaluator],
    steps_per_epoch: int,
    run: Run,
    done: int,
) -> None:
    """Evaluate the gathered method after `done` steps, and return to training mode."""
    with phase.during(phase.EVALUATION), strategy.gathered() as whole:
        evaluate(whole, evaluators, done, done / steps_per_epoch, run)
    trained.train()


def evaluate(method: nn.Module, evaluators: Mapping[str, Evaluator], step: int, epoch: float, run: Run) -> None:
    """Run the evaluators in eval mode and write their numbers as one row of metrics.jsonl."""
    began = time.perf_counter()
    method.eval()
    values = {
        f"{name}/{key}": value for name, evaluator in evaluators.items() for key, value in evaluator(method).items()
    }
    run.metrics({"step": step, "epoch": epoch, **values})
    run.log("  ".join([f"step {step}", *(f"{key} {value:.4f}" for key, value in values.items())]))
    run.detail(f"evaluation after step {step}: {', '.join(evaluators)}, {time.perf_counter() - began:.2f} s")
