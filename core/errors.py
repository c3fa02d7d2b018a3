"""Errors that the command line prints as one sentence, and the place that every other error is given on its way to the command line.

The command line exits with 2 for a mistake of the user and with 1 for a fault of the machine. What the operating system, a decoder or a
parser raises becomes a sentence too (launch/sentences.py), which names the places that it came through.
"""

from collections.abc import Iterator
from contextlib import contextmanager

_PLACE = "at "  # begins a note that names a place


class UserError(ValueError):
    """A mistake in a config, a path or a picture. The message is one sentence that names the mistake and its remedy."""


class MachineError(UserError):
    """A fault of the machine, such as a full disk or too little memory, that no config causes. One sentence with a remedy."""


class ProcessesFailed(RuntimeError):
    """Several processes cannot go on together, though the user made no mistake. The message is one sentence.

    code: the exit code. 1: their weights differ. LOST: one is lost or stuck.
    """

    LOST = 132

    def __init__(self, sentence: str, code: int = 1) -> None:
        super().__init__(sentence)
        self.code = code


@contextmanager
def at(place: str) -> Iterator[None]:
    """Within it, an error that is no UserError is noted to come from `place`: a key with its value, a file, a picture."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        error.add_note(f"{_PLACE}{place}")
        raise


def places(error: BaseException) -> list[str]:
    """The places that `at` noted, outermost first."""
    notes = [note for note in getattr(error, "__notes__", ()) if note.startswith(_PLACE)]
    return [note.removeprefix(_PLACE) for note in reversed(notes)]


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 300 characters; its class if it has none."""
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= 300 else f"{line[:296]} ..."
