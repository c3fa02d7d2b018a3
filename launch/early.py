"""Configs checked before torch is imported, which takes seconds: a typo is answered at once, by configs/schema.json alone."""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ..core.config.resolve import load
from ..core.config.stored import StoredSection, stored_recipe
from ..core.errors import UserError
from .schema_file import is_current, stored_schema, verbs_of


def check_config_early(verb: str, path: str, overrides: Sequence[str]) -> None:
    """Raise the ConfigError of the full check for a mistake that the schema shows; likewise the three functions below."""
    _check(lambda: resolve_early(verb, path, overrides))


def check_pipeline_early(path: str, overrides: Sequence[str]) -> None:
    """Of a pipeline and all its stages."""
    from .pipeline.plan import check_pipeline

    _check(lambda: check_pipeline(path, overrides, resolve_early))


def check_sweep_early(path: str, overrides: Sequence[str]) -> None:
    """Of a sweep's own file; the configs of its trials are left to the full check."""
    from .sweep.sections import sweep

    _check(lambda: load(path, sweep, overrides))


def check_attribution_early(path: str, overrides: Sequence[str]) -> None:
    """Of an attribution, and all stages of its cells."""
    from .attribute.plan import check_attribution

    _check(lambda: check_attribution(path, overrides, resolve_early))


def resolve_early(verb: str, path: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The config of a verb, resolved by the schema that ships. Raises UserError."""
    schema = stored_schema() or {"anyOf": []}
    if verb not in verbs_of(schema):
        raise UserError(f"launch {verb}: expected one of {', '.join(verbs_of(schema))}")
    return load(path, _recipe(verb), overrides)


@functools.cache
def _recipe(verb: str) -> StoredSection:
    """That of the schema that ships: its keys are made once."""
    return stored_recipe(verb, stored_schema() or {})


def _check(check: Callable[[], object]) -> None:
    """Do nothing if torch is imported already, for then the full check is as quick, or if the sources are newer than the schema."""
    if "torch" in sys.modules or (schema := stored_schema()) is None:
        return
    try:
        check()
    except UserError:
        if is_current(schema):
            raise
