"""No collective waits for ever: each process beats, all watch the beats, and a lost or stuck process ends the run with its name.

A beat says what the process does (phase.py). It goes through the store in which the processes found each other (TCPStore), which works
under gloo and NCCL and on several nodes. Two threads of each process do it while the main thread waits in a collective: one beats and
judges (verdict.py), one watches that the store itself still answers. One process alone has neither.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from . import phase
from .distributed import rank, shared_store, world
from .errors import ProcessesFailed, UserError
from .peers import condition, end_processes, identity, whereabouts
from .verdict import ALIVE, DONE, FAILED, MISTAKE, Beat, Judge, Verdict, ended, place

INTERVAL = 5.0  # seconds between beats
# Four beats at least fit into the time-out.
BEATS = 4
GLANCE = 1.0  # seconds between two looks for a verdict of another process
SAID_EVERY = 30.0  # seconds between two lines that say what a long phase does
COMPUTES = 0.1  # part of one core's time from which a process counts as computing
PARTING = 1.0  # seconds, after a beat's, that the process with the store waits at its end for those that still read it
AGAIN = "the same command resumes from the last checkpoint"
_begun = 0  # heartbeats of this process so far: each has its own keys in the store

Say = Callable[[str, int, bool], None]  # (sentence, exit code, whether this process speaks for all)


class Heartbeat:
    """The beats of one run, from `start` to `finish` or `failed`.

    timeout: seconds without a sign of life after which a process is lost, and without progress after which a training is stuck. patience:
    the same for phases in which nothing may be counted for long. on_cpu: whether the training computes there, so that CPU time tells who
    computes from who waits. say: gets the last sentence of a process that is ended here. log: for what the person who watches should know.
    """

    def __init__(self, timeout: float, patience: float, on_cpu: bool, say: Say, log: Callable[[str], None]) -> None:
        global _begun
        _begun += 1
        self.rank, self.world, self.interval = rank(), world(), min(INTERVAL, timeout / BEATS)
        beats = max(1, round(timeout / self.interval))
        long = max(beats, round(patience / self.interval))
        self.judge = Judge(self.rank, self.world, beats, long, self.interval, on_cpu)
        self.say, self.log = say, log
        self.prefix, self.main = f"rootstock/{_begun}", threading.get_ident()
        self.store = shared_store()
        # Under torchrun, its agent holds the store; else rank 0 does, with whose end it is gone.
        self.hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE", "") != "True"
        self.identity = identity()
        self.stacks: Any = None
        self.closed, self.ending = threading.Event(), threading.Lock()
        self.count = self.turns = 0
        self.state, self.error, self.code, self.heard = ALIVE, "", 0, False
        self.spent = 0.0
        self.spoken, self.long = time.monotonic(), ""

    def start(self) -> Heartbeat:
        phase.begin(phase.PREPARING, 0)
        self._send()
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self._beat, self._guard)]
        for thread in self.threads:
            thread.start()
        return self

    def keep_stacks(self, folder: Path) -> None:
        """Name the folder for the stacks of a stuck run: stacks-rank-N.txt. SIGUSR2 leaves them there too, and ends the process."""
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            self.stacks = open(folder / f"stacks-rank-{self.rank}.txt", "w", encoding="utf-8")  # noqa: SIM115 - until the end
            # In C, so that it works even where the main thread never returns to Python.
            faulthandler.register(signal.SIGUSR2, self.stacks, chain=True)

    def finish(self) -> None:
        """This process has done its part."""
        self._close(DONE)

    def failed(self, error: BaseException, code: int) -> None:
        """This process ends with an error, of which the others learn. code: its exit code."""
        self.error, self.code = (str(error).splitlines() or [""])[0] or type(error).__name__, code
        if not isinstance(error, UserError):
            self.error = f"{type(error).__name__}: {self.error}"
        self._close(FAILED)

    def explained(self, error: Exception) -> Exception:
        """The error to raise in place of one of a collective: who has ended or is lost. Other errors are returned as they are."""
        if not of_communication(error):
            return error
        verdict, until = None, time.monotonic() + self.judge.limit * self.interval
        while verdict is None and time.monotonic() < until:
            verdict = self._ended_now()
            time.sleep(0.05)
        if verdict is None:
            return error
        with contextlib.suppress(OSError, ValueError):
            if self.stacks is not None:
                self.stacks.writelines(traceback.format_exception(error))
        return as_error(verdict)

    def _ended_now(self) -> Verdict | None:
        """Who has failed or is gone, without waiting for beats."""
        beats: Mapping[int, Beat] = {}
        first = self.judge.last.get(0)
        if self.hosted and self.rank and first is not None and self._is_gone(first):  # and the store with it
            return ended(0, first)
        with contextlib.suppress(dist.DistError):
            beats = self._read()
        if not beats and self.hosted and self.rank:
            return ended(0, self.judge.last.get(0))
        if verdict := self._published():
            return verdict
        for other, beat in {**self.judge.last, **beats}.items():
            if other != self.rank and (beat["state"] == FAILED or (beat["state"] == ALIVE and self._is_gone(beat))):
                return ended(other, beat)
        return None

    def _beat(self) -> None:
        """Beat, read the others' beats and judge them, until the end."""
        while self._waited():
            with contextlib.suppress(dist.DistError):  # then `_guard` notices that no turn is completed
                self._send()
                beats = self._read()
                late = {r: beat for r, beat in beats.items() if self.judge.missed.get(r)}
                how = {r: condition(beat) for r, beat in late.items() if beat["where"] == self.identity["where"]}
                if verdict := self.judge.update(beats, how):
                    self._end(verdict)
                if not self.heard and any(beat["state"] == FAILED for beat in beats.values()):
                    self.heard = True
                    self._send()
                self._say_what_is_long(beats)
                self.turns += 1

    def _waited(self) -> bool:
        """Wait for the time of the next beat, and end if another process has reached a verdict meanwhile. False at the end."""
        slices = max(1, round(self.interval / GLANCE))
        for _ in range(slices):
            if self.closed.wait(self.interval / slices):
                return False
            if verdict := self._published():
                self._end(verdict)
        return True

    def _guard(self) -> None:
        """End the run if the store does not answer for as long as a process may be silent."""
        before, missed = self.turns, 0
        while not self.closed.wait(self.interval):
            missed = missed + 1 if self.turns == before else 0
            before = self.turns
            if missed > (self.judge.limit if self.hosted else self.judge.patience):
                self._end(self._without_store((missed - 1) * self.interval), no_store=True)

    def _without_store(self, seconds: float) -> Verdict:
        """The verdict where the store gave no answer."""
        here = f"rank {self.rank} came: {place(self._own_beat())}"
        if not self.hosted:
            return Verdict(f"the store of the launcher gave no answer for {seconds:g} s; {here}", ())
        beat = self.judge.last.get(0)
        how = condition(beat) if beat is not None and beat["where"] == self.identity["where"] else ""
        return Verdict(f"rank 0 gave no sign of life for {seconds:g} s: {place(beat, how)}; {here}", (0,))

    def _send(self) -> None:
        self.count += 1
        self.store.set(f"{self.prefix}/{self.rank}", json.dumps(self._own_beat()))

    def _own_beat(self) -> dict[str, Any]:
        at, spent, now = whereabouts(self.main), time.process_time(), phase.NOW
        busy = not at.collective and spent - self.spent > COMPUTES * self.interval
        self.spent = spent
        return {
            "count": self.count, "state": self.state, "error": self.error, "code": self.code, "heard": self.heard,
            "step": now.step, "phase": now.phase, "done": now.done, "total": now.total, "ticks": now.ticks,
            "place": at.place, "waits": at.waits, "busy": busy, **self.identity,
        }  # fmt: skip

    def _read(self) -> dict[int, Beat]:
        keys = {f"{self.prefix}/{other}": other for other in range(self.world)}
        if len(self.judge.last) < self.world:  # reading a key that is not there yet would wait for it
            keys = {key: other for key, other in keys.items() if self.store.check([key])}
        found = self.store.multi_get(list(keys))
        return {other: json.loads(text) for other, text in zip(keys.values(), found, strict=True)}

    def _published(self) -> Verdict | None:
        """The verdict that another process has reached."""
        key = f"{self.prefix}/verdict"
        try:
            return Verdict(*json.loads(self.store.get(key))) if self.store.check([key]) else None
        except dist.DistError:
            return None

    def _is_gone(self, beat: Beat) -> bool:
        """Whether a process of this machine has ended; False for those of other machines."""
        return beat["where"] == self.identity["where"] and condition(beat) == "ended"

    def _say_what_is_long(self, beats: Mapping[int, Beat]) -> None:
        """A line now and then where another phase than training takes long."""
        working = [r for r, beat in beats.items() if beat["phase"] != phase.TRAINING and not beat["waits"]]
        now, what = time.monotonic(), beats[working[0]]["phase"] if working else ""
        if what != self.long or not what:
            self.spoken, self.long = now, what
        elif now - self.spoken >= SAID_EVERY:
            self.spoken = now
            self.log(f"still going: rank {working[0]}, {place(beats[working[0]])}")

    def _end(self, verdict: Verdict, no_store: bool = False) -> None:
        """End this process, and those of this machine that are at fault."""
        with self.ending:
            if self.closed.is_set():
                return
            with contextlib.suppress(dist.DistError):
                if not no_store:
                    self.store.set(f"{self.prefix}/verdict", json.dumps(verdict))
            kept = ""
            if self.stacks is not None:
                faulthandler.dump_traceback(self.stacks)
                kept = f"; the stacks are in {Path(self.stacks.name).parent}"
            speaks = self.rank == min(set(range(self.world)) - set(verdict.ranks), default=self.rank)
            self.say(f"{verdict.sentence}{kept}; {AGAIN}", verdict.code, speaks)
            # One that beats, or has failed, ends by itself. Without the store nobody knows of rank 0's beats.
            silent = [r for r in verdict.ranks if r != self.rank and (self.judge.missed.get(r, 0) > 1 or no_store)]
            beats = [self.judge.last[r] for r in silent if r in self.judge.last]
            # Under torchrun, who ends last must not be the one that was at fault, for the first exit code counts.
            end_processes(
                (b for b in beats if b["where"] == self.identity["where"] and b["state"] == ALIVE),
                2.0 if self.hosted else 0.0,
            )
            if not no_store:
                self._let_others_read()
            sys.stderr.flush()
            os._exit(verdict.code)

    def _let_others_read(self) -> None:
        """Tell that this process knows the verdict; with the store, wait until the others do too."""
        self.heard = True
        with contextlib.suppress(dist.DistError):
            self._send()
            until = time.monotonic() + 2 * GLANCE
            while self.hosted and self.rank == 0 and time.monotonic() < until:
                if not any(self._awaited(beat) for r, beat in self._read().items() if not self.judge.missed.get(r)):
                    return
                time.sleep(0.02)

    def _close(self, state: str) -> None:
        with self.ending:  # a verdict that came first ends this process
            self.closed.set()
        self.state = state
        with contextlib.suppress(dist.DistError):
            self._send()
            if self.hosted and self.rank == 0:  # the others still read what lies in the store of this process
                until = time.monotonic() + self.interval + PARTING
                while time.monotonic() < until and any(self._awaited(beat) for beat in self._read().values()):
                    time.sleep(0.02)
        for thread in self.threads:
            thread.join(PARTING)
        if self.stacks is not None:
            faulthandler.unregister(signal.SIGUSR2)
            self.stacks.close()
            with contextlib.suppress(OSError):
                if not os.path.getsize(self.stacks.name):
                    os.unlink(self.stacks.name)

    def _awaited(self, beat: Beat) -> bool:
        return beat["state"] == ALIVE and not beat["heard"] and not self._is_gone(beat)


def as_error(verdict: Verdict) -> Exception:
    """A verdict as the error that ends a run."""
    if verdict.code == MISTAKE:
        return UserError(verdict.sentence)
    return ProcessesFailed(f"{verdict.sentence}; {AGAIN}", verdict.code)


def of_communication(error: BaseException) -> bool:
    """Whether an error comes from a collective, because another process has ended or the network is broken."""
    words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and any(w in str(error) for w in words))
