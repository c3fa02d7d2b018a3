"""Parsers of others on files of others: whatever they raise, the user reads one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import UserError


@contextmanager
def parsing(title: str, remedy: str) -> Iterator[None]:
    """Turn what a parser raises in the block into a UserError: `title: cannot be read (reason); remedy`.

    A damaged or hostile file can make a parser raise nearly anything (zipfile: RuntimeError, NotImplementedError, struct.error; numpy:
    SyntaxError, TypeError). So the block holds calls of the parser alone. A full disk passes, since it has its own message.
    """
    try:
        yield
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{title}: cannot be read (it needs more memory than there is); {remedy}") from None
    except RecursionError:
        raise UserError(f"{title}: cannot be read (it is nested too deeply); {remedy}") from None
    except Exception as error:
        words = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
        raise UserError(f"{title}: cannot be read ({words or type(error).__name__}); {remedy}") from None
