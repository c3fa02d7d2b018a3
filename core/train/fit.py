"""`fit`: the only training loop in the project.

Its only clock is the integer step; everything random in it is a function of (seed, step, position), so a checkpoint holds
weights, moments and numbers, and a resumed run repeats a straight one to the last bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from ..config.resolve import Duration
from ..interrupt import stop_signals
from ..method import Method
from ..run.directory import Interrupted, Run
from ..stream.batches import MicroBatches
from .compile import compiled, wanted
from .loop import Loop, samples
from .optim import Optim, parameter_groups
from .parallel import strategy_for
from .progress import Progress

Evaluator = Callable[[nn.Module], Mapping[str, float]]


@dataclass(frozen=True)
class Every:
    """How often, in steps; 0 is never."""

    log: int = 10
    evaluate: int = 0
    save: int = 0

    def evaluates(self, done: int, steps: int) -> bool:
        """Whether evaluators are called after so many steps of all."""
        return done == steps or bool(self.evaluate and done % self.evaluate == 0)

    @staticmethod
    def of(run: Run, steps: int, steps_per_epoch: int, evaluate: Any = None) -> Every:
        """Resolve the run's and the evaluators' durations."""

        def resolve(duration: Any) -> int:
            parsed = Duration.parse(duration)
            return max(1, parsed.steps(steps_per_epoch, steps)) if parsed.value else 0

        return Every(
            log=run.options["log_every"],
            evaluate=resolve(evaluate) if evaluate is not None else 0,
            save=resolve(run.options["checkpoint"]["every"]),
        )


class Training(NamedTuple):
    """What `fit` was called with."""

    method: Method
    batches: MicroBatches
    prepare: Callable[[Any], Any]
    optim: Optim
    steps: int
    steps_per_epoch: int
    every: Every

    @property
    def trained(self) -> list[nn.Parameter]:
        """What the optimizer will be given. Raises UserError as it would."""
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
    alarm: Callable[[int, Mapping[str, float]], str | None] | None = None,
) -> None:
    """Train `method` in place for `steps` optimizer steps, or for what is left of them after the newest checkpoint.

    method: see core/method.py. batches(step): this process's
    micro-batches of each step from `step` on. prepare: raw sample -> batch.
    evaluators: called at every.evaluate steps and at the end with the method in eval mode. alarm: is shown each logged row, and
    what it says is warned of. Raises Interrupted after saving when asked to stop, UserError after repeated non-finite losses.
    """
    strategy = strategy_for(method, run)
    run.plan(steps)
    trained = strategy.wrap()
    optimizer = optim.build(trained)
    loop = Loop(trained, optimizer, optim, run, steps, steps_per_epoch, seed, sliced=strategy.sliced)
    start = loop.resume()
    if steps == 0:
        run.log("0 steps: the initial weights, as they are")
    elif (warmup := optim.warmup_steps(steps, steps_per_epoch)) >= steps:
        run.log(
            f"WARNING: optim.warmup takes {warmup} steps of {steps}, so the peak rate is never reached; try warmup: 10%"
        )
    fast = wanted(run)
    forward = strategy.forward(fast)
    loop.unsynced = strategy.unsynced
    if fast:  # beside the method
        prepare = compiled(prepare, run, "the augmentation")

    def score(done: int) -> None:
        with strategy.gathered() as whole:
            evaluate(whole, evaluators, done, done / steps_per_epoch, run)
        trained.train()

    trained.train()
    if evaluators and start and every.evaluates(start, steps) and not loop.evaluated(start):
        score(start)  # an earlier command ended between the checkpoint and its evaluation
    with stop_signals() as asked, Progress(run, steps, start) as progress:
        waiting = time.perf_counter()
        for step, micro in zip(range(start, steps), batches(start), strict=True):
            waited = time.perf_counter() - waiting
            row = loop.step(forward, micro, prepare, step, asked)
            done = step + 1
            progress.advance(done, sum(len(s.positions) for raw in micro for s in samples(raw)) * loop.world, waited)
            due = done == steps or (every.save and done % every.save == 0)
            logged = done == steps or (every.log and done % every.log == 0)
            if due or logged or loop.stop:
                loop.flush()
            if logged:
                means = loop.log(done, row, progress)
                if alarm is not None and (said := alarm(done, means)) is not None:
                    run.log(f"WARNING: {said}")
                    run.metrics({"step": done, "epoch": done / steps_per_epoch, "warning": said})
            aside = time.perf_counter()
            # Saved before it is evaluated, which may take longer than who asks to stop will wait.
            if loop.stop or due:
                loop.save(done)
            if loop.stop and done < steps:
                raise Interrupted(
                    f"interrupted; saved at step {done} of {steps} in {run.dir}; the same command resumes"
                )
            if evaluators and every.evaluates(done, steps):
                score(done)
            waiting = time.perf_counter()
            progress.leave_out(waiting - aside)
    optimizer.zero_grad(set_to_none=True)
    strategy.finish()


def evaluate(method: nn.Module, evaluators: Mapping[str, Evaluator], step: int, epoch: float, run: Run) -> None:
    """Run the evaluators in eval mode and write their numbers as one row."""
    method.eval()
    values = {
        f"{name}/{key}": value for name, evaluator in evaluators.items() for key, value in evaluator(method).items()
    }
    run.metrics({"step": step, "epoch": epoch, **values})
    run.log("  ".join([f"step {step}", *(f"{key} {value:.4f}" for key, value in values.items())]))
