"""What the shell proposes after Tab: verbs, configs, their keys and the values of these, from configs/schema.json alone.

In bash: `eval "$(_ROOTSTOCK_COMPLETE=source_bash rootstock)"`; zsh and fish likewise.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from ..core.config.yaml_file import CONFIGS
from .keys import every_key
from .schema_file import stored_schema, verbs_of

KINDS_OF_SETS = (
    "folder",
    "tar",
    "csv",
    "list",
    "parquet",
    "hf",
    "pack",
    "npz",
    "idx",
    "torchvision",
    "sklearn",
    "dicom",
    "nifti",
)
PICTURE_KEYS = ("data.train", "data.test", "data.source", "data.target", "evaluate.bank", "evaluate.test")
_NETWORK = re.compile(r"\bbackbone(?::\s*\{?(?:[^}{]*?)\bname|\.name):\s*([\w.]+)")
# Both ask typer's completion for fish, which takes a line as it is typed and answers with plain lines; what follows a tab is help. In bash
# `=` and `:` end a word, so what stands before the last of them has to go.
_ANSWERS = (
    'env _TYPER_COMPLETE_ARGS="$line" _TYPER_COMPLETE_FISH_ACTION=get-args _ROOTSTOCK_COMPLETE=complete_fish rootstock'
)
SCRIPTS = {
    "bash": f"""_rootstock_completion() {{
    local IFS=$'\\n' line="${{COMP_LINE:0:COMP_POINT}}" word cut
    word="${{line##*[[:space:]]}}"
    cut="${{word%"${{word##*[=:]}}"}}"
    COMPREPLY=( $({_ANSWERS} 2>/dev/null) )
    COMPREPLY=( "${{COMPREPLY[@]%%$'\\t'*}}" )
    COMPREPLY=( "${{COMPREPLY[@]#"$cut"}}" )
    if [[ ${{#COMPREPLY[@]}} == 1 && ${{COMPREPLY[0]}} == *[=/:] ]]; then compopt -o nospace 2>/dev/null; fi
    return 0
}}
complete -o default -F _rootstock_completion rootstock
""",
    "zsh": f"""#compdef rootstock
_rootstock_completion() {{
    local line="${{words[1,$CURRENT]}}"
    local -a found
    found=("${{(@f)$({_ANSWERS} 2>/dev/null)}}")
    found=("${{(@)found%%$'\\t'*}}")
    found=(${{found:#}})
    if (( ! $#found )); then _files; return; fi
    compadd -Q -S '' -- ${{(M)found:#*[=/:]}}
    compadd -Q -- ${{found:#*[=/:]}}
}}
compdef _rootstock_completion rootstock
""",
}


def script(asked: str) -> str | None:
    """What the command prints for `source_SHELL`; None where typer has it, or something else was asked."""
    return SCRIPTS.get(asked.removeprefix("source_"))


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
    """The keys of the verb's configs, with an equals sign; after it the values, where these are a choice."""
    verb, schema = _verb(ctx.info_name or "", ctx.params), stored_schema()
    if schema is None or verb not in verbs(""):
        return []
    key, equals, begun = incomplete.partition("=")
    if equals:
        return [f"{key}={value}" for value in _values(schema, verb, key, begun) if value.startswith(begun)]
    paths = dict.fromkeys(key.path for key in every_key(schema, verb) if not key.keys and not key.names[-1])
    return [f"{path}=" for path in paths if path.startswith(incomplete)]


def _values(schema: Mapping[str, Any], verb: str, path: str, begun: str) -> list[str]:
    """What a key may be: its choices; for networks, runs and pictures those that are at hand."""
    if path == "backbone.weights":
        return ["none", "timm", *_folders(begun)]
    if path == "backbone.name":
        return _networks()
    if path in PICTURE_KEYS:
        kind, colon, place = begun.partition(":")
        uris = [f"{kind}:{folder}" for folder in _folders(place)] if colon else [f"{kind}:" for kind in KINDS_OF_SETS]
    else:
        uris = []
    found = [key for key in every_key(schema, verb) if key.path == path]
    named = [name for key in found for name in key.options]
    return list(dict.fromkeys([*named, *(value for key in found for value in _choices(key.schema)), *uris]))


def _choices(schema: Mapping[str, Any]) -> Iterator[str]:
    """The values that a key's schema lists, as the command line writes them."""
    if "const" in schema:
        yield from _choices({"enum": [schema["const"]]})
    yield from (value if isinstance(value, str) else json.dumps(value) for value in schema.get("enum", ()))
    if schema.get("type") == "boolean":
        yield from ("true", "false")
    if schema.get("type") == "null":
        yield "null"
    for part in schema.get("anyOf", ()):
        yield from _choices(part)


def _networks() -> list[str]:
    """Names of networks in the configs that ship: all of timm's would be a thousand, and importing it takes seconds."""
    texts = (path.read_text(encoding="utf-8") for path in CONFIGS.rglob("*.yaml"))
    return sorted({"auto", *(name for text in texts for name in _NETWORK.findall(text) if name != "null")})


def _folders(begun: str) -> list[str]:
    """The folders at a path that is begun, with a slash."""
    place = Path(begun if begun.endswith("/") else Path(begun).parent)
    found = place.iterdir() if place.is_dir() else ()
    return sorted(f"{path}/" for path in found if path.is_dir() and not path.name.startswith("."))


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
