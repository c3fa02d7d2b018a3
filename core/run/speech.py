"""What a run says to the person who watches: on stderr, and in the log file of `rootstock launch`."""

from __future__ import annotations

import contextlib
from functools import partial

from rich.console import Console

from ..launchlog import append
from ..loudness import Loudness, loudness
from ..printable import printable_lines


class Speech:
    """main: whether this is the process that speaks. silent: whether only warnings are wanted, as of a stage of a pipeline."""

    main: bool
    silent: bool
    console: Console

    @property
    def quiet(self) -> bool:
        """Whether only warnings are printed, and a verdict where the user asked for quiet."""
        return loudness() is Loudness.QUIET or (self.silent and loudness() is not Loudness.VERBOSE)

    @property
    def concludes(self) -> bool:
        """Whether this process prints a verdict."""
        return self.main and (not self.silent or loudness() is Loudness.VERBOSE)

    def log(self, message: str) -> None:
        """One plain line; warnings are printed even when quiet."""
        if not self.quiet or message.startswith("WARNING"):
            self._print(message)

    def mention(self, message: str) -> None:
        """One plain line that a stage of a pipeline prints, too; not with -q."""
        if loudness() is not Loudness.QUIET:
            self._print(message)

    def detail(self, message: str) -> None:
        """A line that helps to find a mistake, printed with -v alone."""
        if loudness() is Loudness.VERBOSE:
            self._print(message)

    def conclude(self, message: str) -> None:
        """The verdict, which -q prints too."""
        if self.concludes:
            self._print(message)

    def advise(self, message: str) -> None:
        """A line about what to do next, for whoever reads the whole."""
        if not self.quiet:
            self._print(message)

    def _print(self, message: str) -> None:
        if not self.main:
            return
        for out in (partial(self.console.print, markup=False, soft_wrap=True), append):
            with contextlib.suppress(OSError):  # a line that a full disk does not take ends no training
                out(printable_lines(message))
