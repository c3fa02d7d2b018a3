"""Validators on the candidates of many finished runs, task by task: what `rootstock validators score` measures."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context

from threadpoolctl import threadpool_limits

from ..core.errors import UserError
from ..core.stream.workers import init_worker
from ..core.threads import on_threads
from .stored_runs import StoredRun
from .validators.candidate import CandidateModel
from .validators.contract import NEEDS, Validator
from .validators.quality import ScoredRun
from .validators.selection import Scoring, score_candidates

_Task = tuple[str, list[StoredRun]]
"""The name of a task and its runs."""
_TaskScores = tuple[list[ScoredRun], list[str]]
"""The runs of one task, and a sentence for each that was passed over and each validator that was left out."""


def score_runs(
    runs: Sequence[StoredRun],
    validators: Mapping[str, Validator],
    test: str | None = None,
    *,
    say: Callable[[str], None],
    done: Callable[[int], None] = lambda runs: None,
    processes: int = 1,
) -> list[ScoredRun]:
    """The scores of every candidate that can be read and whose accuracy is known, run by run; accuracies are read beside them.

    test: the name of the test whose accuracies count, or None for that of the target (`RunFacts.test`). say: gets a sentence for
    each run that is passed over. done: gets the number of further runs that are scored. processes: tasks are scored side by side in so
    many, each with one thread, and the scores are the same for any number. A process has one run at a time in memory; validators that
    compare candidates keep what they need of all candidates of a task.
    """
    by_task: dict[str, list[StoredRun]] = {}
    for run in runs:
        if _test_of(run, test, say) is not None:
            by_task.setdefault(_task_of(run, test), []).append(run)
    found: list[ScoredRun] = []
    for scored, said in _each(sorted(by_task.items()), validators, test, done, min(processes, len(by_task))):
        found += scored
        for sentence in said:
            say(sentence)
    return found


def _each(
    tasks: Sequence[_Task],
    validators: Mapping[str, Validator],
    test: str | None,
    done: Callable[[int], None],
    processes: int,
) -> Iterator[_TaskScores]:
    """The tasks in their order, each scored."""
    if processes < 2:
        yield from (_score_task(task, validators, test, done) for task in tasks)
        return
    others = set(active_children())
    pool = ProcessPoolExecutor(processes, get_context("fork"), _begin, (tasks, validators, test))
    try:
        for (_, runs), scored in zip(tasks, pool.map(_score_number, range(len(tasks))), strict=True):
            done(len(runs))
            yield scored
    except BrokenProcessPool:
        raise UserError(
            "a process that scores runs was killed, which happens when memory runs out; --processes 1 needs the least"
        ) from None
    finally:
        for child in set(active_children()) - others:  # at Ctrl-C they are in the middle of a task
            child.terminate()
        pool.shutdown(cancel_futures=True)


_shared: tuple[Sequence[_Task], Mapping[str, Validator], str | None]


def _begin(tasks: Sequence[_Task], validators: Mapping[str, Validator], test: str | None) -> None:
    """Begin a forked process: it has the runs without a copy of them, and is asked for tasks by their numbers."""
    global _shared
    init_worker(0)
    _shared = tasks, validators, test


def _score_number(number: int) -> _TaskScores:
    tasks, validators, test = _shared
    return _score_task(tasks[number], validators, test, lambda runs: None)


def _score_task(
    task: _Task, validators: Mapping[str, Validator], test: str | None, done: Callable[[int], None]
) -> _TaskScores:
    """With one thread: sums in other threads would be other sums, whose last bits differ."""
    name, runs = task
    comparing = {name: one for name, one in validators.items() if one.compares}
    found, waiting, said = list[ScoredRun](), list[tuple[int, list[CandidateModel]]](), list[str]()
    with on_threads(1), threadpool_limits(1):
        for run in _counted(runs, done):
            accuracies = run.facts.accuracies[run.facts.test(test) or ""]
            candidates = [one for one in run.read() if one.name in accuracies]
            if not candidates:
                said.append(f"{run.name} has no candidate that can be read")
                continue
            scoring = _scored(run, candidates, validators, said.append)
            alone = {name: scores for name, scores in scoring.scores.items() if name not in comparing}
            known = tuple(accuracies[one.name] for one in candidates)
            if comparing:
                waiting.append((len(found), [_slim(one, comparing.values()) for one in candidates]))
            found.append(ScoredRun(run.name, name, _shown(candidates[0]), known, scoring, alone))
        _compare(found, waiting, comparing)
    return found, said


def _counted(runs: Iterable[StoredRun], done: Callable[[int], None]) -> Iterator[StoredRun]:
    for run in runs:
        yield run
        done(1)


def _test_of(run: StoredRun, wanted: str | None, say: Callable[[str], None]) -> str | None:
    name = run.facts.test(wanted)
    if name is None:
        tests = ", ".join(run.facts.accuracies) or "none"
        say(f"{run.name} has no accuracy on {wanted or 'a test of the target'}; its tests: {tests}")
    return name


def _task_of(run: StoredRun, test: str | None) -> str:
    return run.facts.task(run.facts.test(test) or "")


def _scored(
    run: StoredRun,
    candidates: Sequence[CandidateModel],
    validators: Mapping[str, Validator],
    say: Callable[[str], None],
) -> Scoring:
    """The scores of one run; a validator that refuses its candidates is left out of it."""
    whole = Scoring(tuple(one.name for one in candidates), {}, {})
    for name, validator in validators.items():
        try:
            scored = score_candidates(candidates, {name: validator})
        except ValueError as error:
            say(f"{run.name}: {name} is left out ({error})")
            whole.left_out[name] = str(error)
            continue
        whole.scores.update(scored.scores)
        whole.left_out.update(scored.left_out)
    return whole


def _compare(
    found: list[ScoredRun], waiting: list[tuple[int, list[CandidateModel]]], comparing: Mapping[str, Validator]
) -> None:
    """Score the candidates of a finished task that were shown the same images, all together, and forget them."""
    for together in _by_images(found, waiting):
        every = [one for _, candidates in together for one in candidates]
        for name, scores in score_candidates(every, comparing).scores.items():
            left = iter(scores)
            for number, candidates in together:
                run = found[number]
                found[number] = run._replace(among={**run.among, name: [next(left) for _ in candidates]})
    waiting.clear()


def _by_images(
    found: Sequence[ScoredRun], waiting: Sequence[tuple[int, list[CandidateModel]]]
) -> Iterator[list[tuple[int, list[CandidateModel]]]]:
    shown: dict[str, list[tuple[int, list[CandidateModel]]]] = {}
    for number, candidates in waiting:
        shown.setdefault(found[number].shown, []).append((number, candidates))
    yield from shown.values()


def _slim(candidate: CandidateModel, validators: Iterable[Validator]) -> CandidateModel:
    """The candidate without the parts that none of these validators needs."""
    needed = {need for one in validators for need in one.needs} | {"target"}
    return dataclasses.replace(candidate, **{need: None for need in NEEDS if need not in needed})


def _shown(candidate: CandidateModel) -> str:
    """Which target images a candidate was shown, whatever their order, and how many outputs it has."""
    keys = candidate.target.keys.sort().values
    return hashlib.sha256(keys.numpy().tobytes() + bytes(str(candidate.classes), "ascii")).hexdigest()


def scores_by_run(found: Sequence[ScoredRun]) -> list[dict[str, object]]:
    """The scores as JSON has them: a score that is no finite number is null."""
    return [
        {
            "run": run.run,
            "task": run.task,
            "candidates": list(run.own.names),
            "accuracies": list(run.accuracies),
            "scores": {n: [s if math.isfinite(s) else None for s in scores] for n, scores in run.own.scores.items()},
            "left_out": run.own.left_out,
        }
        for run in found
    ]
