"""What the shell proposes after Tab: configs and their keys, from configs/schema.json alone.

In bash: `eval "$(_ROOTSTOCK_COMPLETE=source_bash rootstock)"`; zsh and fish likewise."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import typer

from ..core.config.yaml_file import CONFIGS
from .keys import every_key
from .schema_file import stored_schema, verbs_of


def verbs(incomplete: str) -> list[str]:
    """The verbs that take a config of their own."""
    return [name for name in verbs_of(stored_schema() or {"anyOf": []}) if name.startswith(incomplete)]


def validators(incomplete: str) -> list[str]:
    """Names of validators, read from their files, since importing them takes seconds."""
    folder = Path(__file__).parent.parent / "adapt" / "validators"
    texts = (path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py")))
    names = (name for text in texts for name in re.findall(r'(?m)^    name = "(\w+)"$', text))
    return [name for name in names if name.startswith(incomplete)]


def configs(ctx: typer.Context, incomplete: str) -> list[str]:
    """YAML files here, folders on the way to them, and the configs that ship for the verb."""
    folder = CONFIGS / _verb(ctx.info_name or "", ctx.params)
    shipped = [path.stem for path in folder.glob("*.yaml")]
    whole = [path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml")]
    return sorted({name for name in [*shipped, *whole, *_files(incomplete)] if name.startswith(incomplete)})


def overrides(ctx: typer.Context, incomplete: str) -> list[str]:
    """The keys of the verb's configs, with an equals sign."""
    verb, schema = _verb(ctx.info_name or "", ctx.params), stored_schema()
    if schema is None or verb not in verbs(""):
        return []
    paths = dict.fromkeys(key.path for key in every_key(schema, verb) if not key.keys and not key.names[-1])
    return [f"{path}=" for path in paths if path.startswith(incomplete)]


def keys(incomplete: str) -> list[str]:
    """Keys that `rootstock help` explains."""
    schema = stored_schema()
    every = [key for verb in verbs("") for key in every_key(schema or {}, verb)]
    return sorted({spelling for key in every for spelling in key.spellings if spelling.startswith(incomplete)})


def _verb(command: str, given: Mapping[str, str]) -> str:
    """The verb whose config is completed: the command, or what `launch` was asked to launch."""
    return given.get("name") or "" if command == "launch" else command


def _files(incomplete: str) -> Iterator[str]:
    folder = Path(incomplete if incomplete.endswith("/") else Path(incomplete).parent)
    for path in folder.glob("*") if folder.is_dir() else ():
        if path.is_dir() and not path.name.startswith("."):
            yield f"{path}/"
        elif path.suffix in (".yaml", ".yml"):
            yield str(path)
