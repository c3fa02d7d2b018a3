"""How work ends: every error becomes a sentence and an exit code here, and nowhere else.

A user's mistake is one sentence and exit code 2; what nobody foresaw keeps its traceback.
"""

import contextlib
import errno
import json
import os
import select
import sys
import time
import traceback
from collections.abc import Callable, Iterator

from ..core.errors import UserError
from ..core.launchlog import append

STOPPED = 130  # on request, after saving


def answer(work: Callable[[], int | None]) -> int:
    """Do the work and return its exit code, 0 where it returns None. Errors that nobody foresaw are raised on.

    2: a user's mistake (UserError). 130: stopped by Ctrl-C or a signal. 1: a full disk, or nobody reads what we print.
    """
    try:
        code = work()
        # Flushed here: at the interpreter's end a reader that has gone would be a traceback of Python's own.
        sys.stdout.flush()
        return code or 0
    except UserError as error:
        _say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        _say("interrupted; run the same command to resume")
        return STOPPED
    except BrokenPipeError:
        if not _reader_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if _stopped_on_request(error):
            _say(str(error) or "interrupted; run the same command to resume")
            return STOPPED
        if not _disk_full(error):
            _note(traceback.format_exc())
            _tell_agent(traceback.format_exc())
            raise
        _say(f"error: the disk is full ({_first_line(error)}); free some space, then run the same command to resume")
        return 1


def _say(sentence: str) -> None:
    """Print for the person, once: of several processes only the first prints, the others tell torchrun.

    torchrun ends all processes as soon as one has failed, perhaps before the first could speak; its own summary shows the
    file named by TORCHELASTIC_ERROR_FILE, so that the sentence is never lost.
    """
    if os.environ.get("RANK", "0") == "0":
        print(sentence, file=sys.stderr, flush=True)
        _note(sentence)
    else:
        _tell_agent(sentence)


def _note(text: str) -> None:
    """In the log of the first process of a launch, whose console is the launcher's."""
    if os.environ.get("RANK") == "0":
        with contextlib.suppress(OSError):
            append(text)


def _tell_agent(text: str) -> None:
    """Leave a text where torchrun's agent, if it started us, looks for it."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        details = {"message": text, "extraInfo": {"py_callstack": text, "timestamp": str(int(time.time()))}}
        with contextlib.suppress(OSError):  # a full disk, say: the exit code tells the agent enough
            # Whole or not at all: the agent, which may end us at any time, stumbles over half a file.
            with open(f"{path}.draft", "w", encoding="utf-8") as file:
                json.dump({"message": details}, file)
            os.replace(f"{path}.draft", path)


def _stopped_on_request(error: Exception) -> bool:
    """Whether `fit` stopped after saving; its module needs torch, so it is not imported for this."""
    run = sys.modules.get(f"{__name__.rsplit('.', 2)[0]}.core.run.directory")
    return run is not None and isinstance(error, run.Interrupted)


def _disk_full(error: BaseException) -> bool:
    """Whether a full disk is behind the error; libraries written in Rust and C++ say so only in their words."""
    return any(
        getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(cause)
        for cause in _causes(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _reader_gone() -> bool:
    """Whether stdout is a pipe whose reader has left, as in `rootstock schema | head`; other pipes breaking are faults."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
