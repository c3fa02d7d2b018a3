"""From beats to a verdict, by lists of beats: no process and no clock takes part."""

from typing import Any

import pytest

from rootstock.core.phase import CHECKPOINT, EVALUATION, PREPARING, TRAINING
from rootstock.core.verdict import FAILED, Judge, Verdict

LIMIT, PATIENCE, INTERVAL = 4, 9, 5.0


def beat(count: int, rank: int, **facts: Any) -> dict[str, Any]:
    usual = {"state": "alive", "error": "", "code": 0, "step": 7, "phase": TRAINING, "done": 0, "total": 0, "ticks": 3}
    where = {"place": f"f.py:{rank} in f", "waits": True, "busy": False, "pid": 100 + rank, "host": "here"}
    return {"count": count, **usual, **where, **facts}


def judged(turns: int, world: int = 3, on_cpu: bool = True, **ranks: Any) -> tuple[int, Verdict | None]:
    """Rank 0's verdict, and after how many turns. r1=...: facts of rank 1's beats, a function of the turn; None: it does not beat."""
    judge = Judge(0, world, LIMIT, PATIENCE, INTERVAL, on_cpu)
    held: dict[int, dict[str, Any]] = {}
    for turn in range(1, turns + 1):
        for rank in range(world):
            facts = ranks.get(f"r{rank}", lambda turn: {})(turn)
            if facts is not None:
                held[rank] = beat(turn, rank, **facts)
        if verdict := judge.update(dict(held)):
            return turn, verdict
    return turns, None


def going(turn: int) -> dict[str, Any]:
    return {"step": turn}


def test_one_without_beats_is_lost_and_named() -> None:
    turn, verdict = judged(20, r0=going, r1=lambda turn: going(turn) if turn <= 3 else None, r2=going)
    assert verdict is not None and (turn, verdict.ranks, verdict.code) == (3 + LIMIT, (1,), 132)
    assert verdict.sentence == (
        "rank 1 gave no sign of life for 20 s: process 101 on here, training after step 3, at f.py:1 in f; ranks 0, 2 came: "
        "rank 0, process 100 on here, training after step 7, at f.py:0 in f; rank 2, process 102 on here, training after step "
        "7, at f.py:2 in f"
    )


def test_one_that_never_began_is_lost_too() -> None:
    turn, verdict = judged(20, r0=going, r1=lambda turn: None, r2=going)
    assert (
        verdict is not None
        and turn == LIMIT
        and "rank 1 gave no sign of life for 20 s: it has not begun" in verdict.sentence
    )


def test_a_pause_shorter_than_the_limit_is_none() -> None:
    """Of others, or of the judge itself: however long it was stopped, it is one turn."""
    assert judged(40, r0=going, r1=lambda turn: going(turn) if turn % LIMIT == 1 else None, r2=going)[1] is None


def test_who_did_not_come_is_named() -> None:
    turn, verdict = judged(20, r1=lambda turn: {"waits": False, "place": "g.py:9 in sleep"})
    assert verdict is not None and (turn, verdict.ranks) == (1 + LIMIT, (1,))
    assert "rank 1 did not come: process 101 on here, training after step 7, at g.py:9 in sleep" in verdict.sentence


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_where_all_wait_the_one_in_another_phase_is_named(odd: int) -> None:
    facts: dict[str, Any] = {f"r{odd}": lambda turn: {"phase": EVALUATION, "done": 3, "total": 12}}
    _, verdict = judged(20, **facts)
    assert verdict is not None and verdict.ranks == (odd,) and "evaluation, 3 of 12 after step 7" in verdict.sentence


def test_where_all_wait_at_one_place_nobody_is_to_blame() -> None:
    turn, verdict = judged(20)
    assert (
        verdict is not None and turn == 1 + LIMIT and verdict.ranks == () and "all processes wait" in verdict.sentence
    )


@pytest.mark.parametrize("phase", [PREPARING, EVALUATION, CHECKPOINT])
def test_other_phases_have_a_limit_of_their_own(phase: str) -> None:
    facts: dict[str, Any] = {f"r{rank}": lambda turn: {"phase": phase} for rank in range(3)}
    assert judged(PATIENCE, **facts)[1] is None
    assert judged(1 + PATIENCE, **facts)[1] is not None


@pytest.mark.parametrize("progress", [lambda turn: {"ticks": turn // 3}, lambda turn: {"busy": turn % 3 == 0}])
def test_what_goes_on_is_never_stuck(progress: Any) -> None:
    """Whether it counts something or only computes, as a long fit does."""

    def slow(turn: int) -> dict[str, Any]:
        return {"phase": EVALUATION, "waits": False, **progress(turn)}

    facts: dict[str, Any] = {f"r{rank}": lambda turn: {"phase": EVALUATION} for rank in (0, 2)}
    assert judged(40, r1=slow, **facts)[1] is None


@pytest.mark.parametrize(("on_cpu", "turns"), [(True, 1 + PATIENCE), (False, 1 + LIMIT)])
def test_a_training_that_only_computes_has_the_longer_limit(on_cpu: bool, turns: int) -> None:
    """On a GPU, who waits for it spins: CPU time says nothing there."""
    facts: dict[str, Any] = {f"r{rank}": lambda turn: {"waits": False, "busy": True} for rank in range(3)}
    turn, verdict = judged(40, on_cpu=on_cpu, **facts)
    assert verdict is not None and turn == turns


@pytest.mark.parametrize(
    ("facts", "code", "words"),
    [
        ({"code": 2, "error": "b.png is damaged; delete it"}, 2, "rank 1: b.png is damaged; delete it"),
        ({"code": 1, "error": "KeyError: x"}, 132, "rank 1 failed after step 7, in its training: KeyError: x"),
    ],
)
def test_one_that_failed_ends_the_others_a_little_later(facts: dict[str, Any], code: int, words: str) -> None:
    turn, verdict = judged(20, r0=going, r1=lambda turn: {"state": FAILED, **facts}, r2=going)
    assert verdict is not None and (turn, verdict.code, verdict.sentence) == (3, code, words)


def test_one_that_is_done_is_not_missed() -> None:
    assert judged(40, r0=going, r1=lambda turn: {"state": "done"} if turn == 1 else None, r2=going)[1] is None


def test_one_whose_process_has_ended_is_not_waited_for() -> None:
    judge = Judge(0, 2, 100, 100, INTERVAL)
    beats = {0: beat(1, 0), 1: beat(1, 1)}
    assert [judge.update({**beats, 0: beat(turn, 0, step=turn)}, {1: "ended"}) for turn in (2, 3)] == [None, None]
    verdict = judge.update(beats, {1: "ended"})
    assert verdict is not None and verdict.sentence.startswith("rank 1 ended without a word: process 101")
