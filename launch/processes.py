"""A run on one process or on several: those of several compare what they were given, and watch each other until the end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from inspect import signature

import torch

from ..core.agree import code_version, compared_config, same_everywhere
from ..core.distributed import connected, wait_without_limit
from ..core.errors import MachineError, UserError
from ..core.heartbeat import Heartbeat
from ..core.run import state
from ..core.run.directory import Interrupted, Run
from ..core.run.options import options
from .exits import STOPPED, last_words


@contextlib.contextmanager
def opened(run: Run) -> Iterator[Run]:
    """`with run`, watched where there are several processes. Raises UserError on all of them if they were given different things."""
    if not connected():
        with run:
            yield run
        return
    given, told = run.options, _Told(run)
    beats = Heartbeat(given["timeout"], given["phase_timeout"], run.device.type == "cpu", told.say, run.log)
    with _beating(beats), _explained(beats):
        _compare(run)
        with run:
            told.open = True
            beats.keep_stacks(run.dir / "logs")
            with _explained(beats):  # here too, so that the run's own record has the explanation
                yield run


@contextlib.contextmanager
def together(device: torch.device, log: Callable[[str], None]) -> Iterator[None]:
    """Within it, the processes of a command without a run, of one code, watch each other. log: for the person who watches."""
    if not connected():
        yield
        return
    timeout, patience = (signature(options).parameters[key].default for key in ("timeout", "phase_timeout"))
    beats = Heartbeat(timeout, patience, device.type == "cpu", lambda sentence, *_: last_words(sentence), log)
    with _beating(beats), _explained(beats):
        same_everywhere(code_version(), "code", "install the same version on every node")
        yield


@contextlib.contextmanager
def _beating(beats: Heartbeat) -> Iterator[Heartbeat]:
    """Within it, this process beats; the others learn how it ended."""
    beats.start()
    try:
        wait_without_limit()
        yield beats
    except Interrupted:
        beats.finish()
        raise
    except BaseException as error:
        codes = {MachineError: 1, UserError: 2, KeyboardInterrupt: STOPPED}
        beats.failed(error, next((code for kind, code in codes.items() if isinstance(error, kind)), 1))
        raise
    else:
        beats.finish()


@contextlib.contextmanager
def _explained(beats: Heartbeat) -> Iterator[None]:
    """Of an error that another process caused, that process is the explanation."""
    try:
        yield
    except Exception as error:
        better = beats.explained(error)
        if better is error:
            raise
        raise better from error


class _Told:
    """Leaves the last sentence of a run that is ended by a verdict on the console, and in state.json once the run is open."""

    def __init__(self, run: Run) -> None:
        self.run, self.open = run, False

    def say(self, sentence: str, code: int, speaks: bool) -> None:
        last_words(sentence)
        if speaks and self.open:
            with contextlib.suppress(OSError):
                state.write_state(self.run.dir, "failed", self.run.steps, sentence)


def _compare(run: Run) -> None:
    same_everywhere(code_version(), "code", "install the same version on every node")
    same_everywhere(
        compared_config(run.verb, run.config), "configs", "start all of them with the same config and overrides"
    )
