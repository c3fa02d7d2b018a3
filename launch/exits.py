"""How a command ends: every error becomes a sentence and an exit code here, and nowhere else.

A user's mistake is one sentence and exit code 2. An unexpected error keeps its traceback.
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

from ..core.errors import MachineError, UserError
from ..core.launchlog import append

STOPPED = 130  # on request, after saving


def answer(work: Callable[[], int | None]) -> int:
    """Do the work and return its exit code, 0 if it returns None. Unexpected errors are raised again.

    2: a user's mistake (UserError). 130: stopped by Ctrl-C or a signal. 1: a fault of the machine (MachineError, a full disk), or a closed
    stdout.
    """
    try:
        code = work()
        # Flushed here: if stdout was closed, a flush at interpreter exit would print a traceback.
        sys.stdout.flush()
        return code or 0
    except UserError as error:
        _say(f"error: {error}")
        return 1 if isinstance(error, MachineError) else 2
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
    """Print a sentence once: rank 0 prints it, other ranks leave it for torchrun.

    torchrun ends all processes as soon as one fails, perhaps before rank 0 could print. Its summary shows the file named by
    TORCHELASTIC_ERROR_FILE, so the sentence is never lost.
    """
    if os.environ.get("RANK", "0") == "0":
        print(sentence, file=sys.stderr, flush=True)
        _note(sentence)
    else:
        _tell_agent(sentence)


def _note(text: str) -> None:
    """Append a text to the log of rank 0, if several processes run."""
    if os.environ.get("RANK") == "0":
        with contextlib.suppress(OSError):
            append(text)


def _tell_agent(text: str) -> None:
    """Write a text to the file that torchrun reads, if torchrun started this process."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        details = {"message": text, "extraInfo": {"py_callstack": text, "timestamp": str(int(time.time()))}}
        with contextlib.suppress(OSError):  # for example a full disk; the exit code is enough
            # Renamed when complete: torchrun may kill this process at any time, and fails on half a file.
            with open(f"{path}.draft", "w", encoding="utf-8") as file:
                json.dump({"message": details}, file)
            os.replace(f"{path}.draft", path)


def _stopped_on_request(error: Exception) -> bool:
    """Whether `fit` stopped on request, after saving. The class is looked up, not imported: its module imports torch."""
    run = sys.modules.get(f"{__name__.rsplit('.', 2)[0]}.core.run.directory")
    return run is not None and isinstance(error, run.Interrupted)


def _disk_full(error: BaseException) -> bool:
    """Whether a full disk caused the error. Libraries written in Rust and C++ say it only in the message."""
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
    """Whether the reader of stdout has closed it, as in `rootstock schema | head`. Any other broken pipe is an error."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
