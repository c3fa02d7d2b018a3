"""The runs of tests/core, for commands that look at runs."""

from rootstock.tests.core.conftest import opened

__all__ = ["opened"]
