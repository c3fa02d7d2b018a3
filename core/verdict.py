"""From the beats of all processes to a verdict: who is lost, who has failed, who did not come where the others wait.

Time is counted in own beats, never in seconds of a clock: a process that was stopped for a while counts one beat when it goes on, and
does not take the others for lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .agree import ranks_in_words
from .errors import ProcessesFailed
from .phase import TRAINING

ALIVE, DONE, FAILED = "alive", "done", "failed"  # the states of a beat
ENDED = "ended"  # of peers.py's `condition`
BEATS_OF_GRACE = 2  # beats in which the main thread may notice by itself that another process has failed
PLACES_SHOWN = 4  # processes whose places a message tells
MISTAKE = 2  # exit code of a user's mistake
Beat = Mapping[str, Any]  # what heartbeat.py's `own_beat` writes


class Verdict(NamedTuple):
    """Why this run cannot go on. ranks: whose fault it is; code: the exit code."""

    sentence: str
    ranks: tuple[int, ...]
    code: int = ProcessesFailed.LOST


@dataclass
class Judge:
    """Judges the beats that one process has read.

    rank: of that process. limit: own beats after which a process without a beat is lost, and after which a training stands still; patience:
    the same for other phases, in which nothing may be counted for long. interval: seconds between beats, for messages. on_cpu: whether a
    training computes there; on a GPU, CPU time does not tell who computes from who waits.
    """

    rank: int
    world: int
    limit: int
    patience: int
    interval: float
    on_cpu: bool = True
    how: Mapping[int, str] = field(default_factory=dict)
    last: dict[int, Beat] = field(default_factory=dict)
    missed: dict[int, int] = field(default_factory=dict)
    ended: dict[int, int] = field(default_factory=dict)  # own beats since a process was seen failed or gone
    quiet: int = 0  # own beats in which nobody got on or computed
    still: int = 0  # own beats in which nobody got on

    def update(self, beats: Mapping[int, Beat], how: Mapping[int, str] = {}) -> Verdict | None:
        """beats: the newest of each process, those that have none left out. how: what the kernel says of processes that are late."""
        moved = busy = False
        self.how = how
        for rank in range(self.world):
            before, now = self.last.get(rank), beats.get(rank)
            fresh = now is not None and (before is None or now["count"] != before["count"])
            self.missed[rank] = 0 if fresh else self.missed.get(rank, 0) + 1
            if now is not None and fresh:
                moved = moved or before is None or progress(now) != progress(before)
                busy = busy or (now["busy"] and (self.on_cpu or now["phase"] != TRAINING))
                self.last[rank] = now
            gone = how.get(rank) == ENDED and self._going(rank)
            if gone or (now is not None and now["state"] == FAILED):
                self.ended[rank] = self.ended.get(rank, 0) + 1
        self.still = 0 if moved else self.still + 1
        self.quiet = 0 if moved or busy else self.quiet + 1
        return self._ended() or self._lost() or self._stuck()

    def _ended(self) -> Verdict | None:
        for rank, beats in self.ended.items():
            if rank != self.rank and beats > BEATS_OF_GRACE:
                return ended(rank, self.last.get(rank))
        return None

    def _lost(self) -> Verdict | None:
        lost = [r for r in range(self.world) if r != self.rank and self.missed[r] >= self.limit and self._going(r)]
        if not lost:
            return None
        seconds = self.limit * self.interval
        return Verdict(
            f"{ranks_in_words(lost)} gave no sign of life for {seconds:g} s: {self._places(lost)}; {self._others(lost)}",
            tuple(lost),
        )

    def _stuck(self) -> Verdict | None:
        going = {rank: beat for rank, beat in self.last.items() if self._going(rank)}
        training = any(beat["phase"] == TRAINING for beat in going.values())
        if not (
            self.quiet >= (self.limit if training else self.patience) or (training and self.still >= self.patience)
        ):
            return None
        away = absent(going)
        seconds = (self.quiet if self.quiet >= self.limit else self.still) * self.interval
        if not away:
            where = self._places(sorted(going))
            return Verdict(f"nothing went on for {seconds:g} s, and all processes wait: {where}", ())
        return Verdict(
            f"nothing went on for {seconds:g} s: {ranks_in_words(away)} did not come: {self._places(away)}; {self._others(away)}",
            tuple(away),
        )

    def _going(self, rank: int) -> bool:
        return rank not in self.last or self.last[rank]["state"] == ALIVE

    def _places(self, ranks: Sequence[int]) -> str:
        return where_each_is(ranks, self.last, self.how)

    def _others(self, ranks: Sequence[int]) -> str:
        others = [rank for rank in range(self.world) if rank not in ranks]
        return f"{ranks_in_words(others)} came: {self._places(others)}" if others else "no other process is left"


def progress(beat: Beat) -> tuple[Any, ...]:
    return (beat["step"], beat["phase"], beat["ticks"], beat["state"])


def absent(beats: Mapping[int, Beat]) -> list[int]:
    """The ranks for which the others wait: those that are in no collective; if all are in one, those in the rarest phase or step."""
    away = [rank for rank, beat in beats.items() if not beat["waits"]]
    if away and len(away) < len(beats):
        return sorted(away)
    places: dict[tuple[Any, Any], list[int]] = {}
    for rank, beat in beats.items():
        places.setdefault((beat["phase"], beat["step"]), []).append(rank)
    if len(places) > 1:
        return sorted(
            min(places.values(), key=lambda ranks: (len(ranks), beats[ranks[0]]["phase"] == TRAINING, -min(ranks)))
        )
    return sorted(away)


def where_each_is(ranks: Sequence[int], beats: Mapping[int, Beat], how: Mapping[int, str] = {}) -> str:
    """Where processes were at their last beats, in words. how: the condition of some of them."""
    found = []
    for rank in ranks[:PLACES_SHOWN]:
        where = place(beats.get(rank), how.get(rank, ""))
        found.append(f"rank {rank}, {where}" if len(ranks) > 1 else where)
    return "; ".join(found + (["..."] if len(ranks) > PLACES_SHOWN else []))


def place(beat: Beat | None, how: str = "") -> str:
    """Where a process was at its last beat, in words. how: its condition, if known."""
    if beat is None:
        return "it has not begun"
    count = f", {beat['done']:,} of {beat['total']:,}" if beat["total"] else ""
    at = f", at {beat['place']}" if beat["place"] else ""
    how = f" ({how})" if how else ""
    return f"process {beat['pid']} on {beat['host']}{how}, {beat['phase']}{count} after step {beat['step']}{at}"


def ended(rank: int, beat: Beat | None) -> Verdict:
    """The verdict where a process has failed with an error or ended without a word."""
    if beat is None or beat["state"] != FAILED:
        return Verdict(f"rank {rank} ended without a word: {place(beat)}", (rank,))
    if beat["code"] == MISTAKE:
        return Verdict(f"rank {rank}: {beat['error']}", (rank,), MISTAKE)
    return Verdict(f"rank {rank} failed after step {beat['step']}, in its {beat['phase']}: {beat['error']}", (rank,))
