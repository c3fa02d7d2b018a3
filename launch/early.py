"""Configs checked before torch is imported, which takes seconds: a typo is answered at once, by configs/schema.json alone."""

import sys
from collections.abc import Sequence
from typing import Any

from ..core.errors import UserError
from .schema_file import is_current, stored_schema


def check_early(verb: str, path: str, overrides: Sequence[str]) -> None:
    """Raise the ConfigError of the full check if the schema that ships shows a mistake.

    Does nothing if torch is imported already, for then the full check is as quick, or if the sources have changed since the schema was
    written.
    """
    if "torch" in sys.modules or (schema := stored_schema()) is None:
        return
    try:
        resolve_early(verb, path, overrides)
    except UserError:
        if is_current(schema):
            raise


def resolve_early(verb: str, path: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The config of a verb as the schema that ships resolves it. Raises ConfigError."""
    # pydantic, which the check needs, would double the time of `rootstock --help`.
    from ..core.config.resolve import load
    from ..core.config.stored import stored_recipe

    return load(path, stored_recipe(verb, stored_schema() or {}), overrides)
