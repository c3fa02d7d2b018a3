"""How a command ends: every error becomes a sentence and an exit code here, and nowhere else.

A user's mistake is one sentence and exit code 2; what the machine could not do, one sentence and 1. Only a bug of ours prints a
traceback, and says that it is one.
"""

import atexit
import contextlib
import json
import os
import select
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import TextIO

from ..core.errors import first_line
from ..core.interrupt import StoppedBySignal, signals_as_errors
from ..core.launchlog import append
from ..core.printable import printable_lines
from .sentences import abbreviated, sentence_of

STOPPED = 130  # on request, after saving


def answer(work: Callable[[], int | None]) -> int:
    """Do the work and return its exit code, 0 if it returns None. Errors end here; only those of the command line's parser pass.

    2: a user's mistake. 130: stopped by Ctrl-C or a signal. 1: the machine could not do it (a full disk or memory, a damaged file, a
    missing package), stdout was closed, or a bug, whose traceback is printed and kept in a file. 132: another process of this run is
    lost or stuck.
    """
    try:
        with signals_as_errors():
            code = work()
        # Flushed here: if stdout was closed, a flush at interpreter exit would print a traceback.
        sys.stdout.flush()
        return code or 0
    except KeyboardInterrupt as error:
        _say(_interrupted(error))
        return STOPPED
    except BrokenPipeError as error:
        if not _reader_gone():
            return _bug(error)
        return 1
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("click", "typer"):  # how the parser of the command line ends
            raise
        if _stopped_on_request(error):
            _say(str(error) or _interrupted(error))
            return STOPPED
        if (found := sentence_of(error)) is None:
            return _bug(error)
        _say(f"error: {found[0]}")
        return found[1]
    finally:
        _drop_what_cannot_be_written(sys.stdout)


def leave(code: int) -> None:
    """Let a process that is connected with others end here, with what Python does at its end, but without the interpreter's own teardown.

    That teardown frees threads and sockets that the others may still use; what aborts in it would be told as a failure of a run that had
    ended well. Returns where this process is alone.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_initialized():
        return
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        _drop_what_cannot_be_written(stream)
    os._exit(code)


def _interrupted(error: BaseException) -> str:
    by = f" by {error}" if isinstance(error, StoppedBySignal) else ""
    hint = next(iter(getattr(error, "__notes__", ())), "run the same command to resume")
    return f"interrupted{by}; {hint}"


def _bug(error: BaseException) -> int:
    """Print the traceback of an error that nobody foresaw and keep it in a file; returns the exit code."""
    trace = "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError, ValueError):
        print(printable_lines(trace), file=sys.stderr, end="", flush=True)
    kept = ""
    with contextlib.suppress(OSError):
        handle, name = tempfile.mkstemp(".txt", "rootstock-bug-")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(trace)
        kept = f" and in {name}"
    name = type(error).__name__
    _tell_agent(trace)
    _note(trace)
    _say(
        f"error: this is a bug of Rootstock ({name}: {first_line(error)}), not a mistake of yours; the traceback is above{kept}; "
        "please report it",
        tell=False,
    )
    return 1


def _drop_what_cannot_be_written(stream: TextIO) -> None:
    """If a stream's reader or disk is gone, send the rest nowhere: Python's own flush at the end would print a traceback."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _say(sentence: str, tell: bool = True) -> None:
    """Print a sentence once: rank 0 prints it, other ranks leave it for torchrun, or print it where there is none (srun).

    torchrun ends all processes as soon as one fails, perhaps before rank 0 could print. Its summary shows the file named by
    TORCHELASTIC_ERROR_FILE, so the sentence is never lost. tell: whether torchrun doesn't know yet.
    """
    sentence, rank = abbreviated(printable_lines(sentence)), os.environ.get("RANK", "0")
    if rank != "0" and "TORCHELASTIC_ERROR_FILE" in os.environ:
        if tell:
            _tell_agent(sentence)
        return
    with contextlib.suppress(OSError, ValueError):  # stderr is closed, or its disk is full: the exit code is enough
        print(sentence if rank == "0" else f"rank {rank}: {sentence}", file=sys.stderr, flush=True)
    _note(sentence)


def last_words(sentence: str) -> None:
    """Print the sentence of a process that is about to be ended from a thread. Never raises an error."""
    with contextlib.suppress(OSError, ValueError):
        _say(f"error: {sentence}")


def _note(text: str) -> None:
    """Append a text to the log of rank 0, if several processes run."""
    if os.environ.get("RANK") == "0":
        with contextlib.suppress(OSError, UnicodeError):
            append(text)


def _tell_agent(text: str) -> None:
    """Write a text to the file that torchrun reads, if torchrun started this process."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        details = {"message": text, "extraInfo": {"py_callstack": text, "timestamp": str(int(time.time()))}}
        with contextlib.suppress(OSError, UnicodeError):  # for example a full disk; the exit code is enough
            # Renamed when complete: torchrun may kill this process at any time, and fails on half a file.
            with open(f"{path}.draft", "w", encoding="utf-8") as file:
                json.dump({"message": details}, file)
            os.replace(f"{path}.draft", path)


def _stopped_on_request(error: Exception) -> bool:
    """Whether `fit` stopped on request, after saving. The class is looked up, not imported: its module imports torch."""
    run = sys.modules.get(f"{__name__.rsplit('.', 2)[0]}.core.run.directory")
    return run is not None and isinstance(error, run.Interrupted)


def _reader_gone() -> bool:
    """Whether the reader of stdout has closed it, as in `rootstock schema | head`. Any other broken pipe is an error."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
