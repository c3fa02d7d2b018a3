"""The parts of the site that are made of the code: keys, commands, methods, validators, and the list of measurements."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import typer

from ...adapt.objective import shared_options
from ...adapt.validators.registry import VALIDATORS
from ...api import METHODS
from ...core.config.messages import show, words
from ...core.config.stored import annotation_of
from ...launch.cli import app
from ...launch.keys import ConfigKey, every_key
from ...launch.schema_file import stored_schema, verbs_of
from .stage import ROOT

KEYS = ("key", "meaning", "type", "default")
SECTIONS = ("data", "backbone", "optim", "method", "label_shift", "evaluate", "run")


def generated(name: str) -> str:
    """The Markdown for `<!-- generated: NAME -->`. Raises KeyError for an unknown name."""
    kind, _, rest = name.partition(" ")
    makers: Mapping[str, Callable[..., str]] = {
        "keys": keys,
        "commands": commands,
        "method": lambda: method(*rest.split()),
        "validators": validators,
        "measurements": measurements,
    }
    return makers[kind]()


def cell(text: str) -> str:
    """A text in a cell of a table."""
    return " ".join(text.replace("|", "\\|").split())


def table(heading: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Rows of cells as a table of Markdown."""
    lines = [heading, ("---",) * len(heading), *([cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _type(key: ConfigKey) -> str:
    if key.options:
        return f"one of {', '.join(f'`{option}`' for option in key.options)}"
    return "a section" if key.keys else words(annotation_of(key.schema))


def _default(key: ConfigKey) -> str:
    if key.required:
        return "required"
    return f"`{show(key.schema['default'])}`" if "default" in key.schema else ""


def chosen_options(key: ConfigKey) -> str:
    """The options without which the key is not there, but for the method's: `sgd`."""
    return " ".join(name for part, name in zip(key.parts[:-1], key.names, strict=False) if name and part != "method")


def key_rows(found: list[ConfigKey]) -> list[tuple[str, ...]]:
    """A row for each key: the same key of several verbs, or of several options of a choice, is one row if it means the same in all."""
    rows: dict[tuple[str, ...], list[ConfigKey]] = {}
    options: dict[str, dict[str, None]] = {}  # of a choice: all that have keys
    for key in found:
        if key.names[-1]:
            options.setdefault(key.path, {})[key.names[-1]] = None
        elif not (key.parts[-1] == "name" and len(key.parts) > 1 and key.names[-2]):  # which chooses the option itself
            rows.setdefault((key.path, key.schema.get("description", ""), _type(key)), []).append(key)
    section = {key.verb for key in found}
    return [
        (
            f"`{path}`{_only_of(same, options)}",
            about
            + (
                ""
                if {key.verb for key in same} == section
                else f" *{', '.join(dict.fromkeys(key.verb for key in same))}*"
            ),
            kind,
            _defaults(same),
        )
        for (path, about, kind), same in rows.items()
    ]


def _only_of(same: list[ConfigKey], options: Mapping[str, Mapping[str, None]]) -> str:
    """In words, the options that have a key, where others of the same choice have not."""
    have = list(dict.fromkeys(filter(None, map(chosen_options, same))))
    all_of = options.get(".".join(same[0].parts[:-1]), {})
    return f" of {', '.join(f'`{name}`' for name in have)}" if have and len(have) < len(all_of) else ""


def _defaults(same: list[ConfigKey]) -> str:
    """The default, or those of each option."""
    found: dict[str, list[str]] = {}
    for key in same:
        names = found.setdefault(_default(key), [])
        names += [name for name in [chosen_options(key)] if name and name not in names]
    if len(found) == 1:
        return next(iter(found))
    most = max(found, key=lambda default: len(found[default]))
    others = [f"{default} ({', '.join(names)})" for default, names in found.items() if default != most]
    return "; ".join([most, *others])


def all_keys() -> list[ConfigKey]:
    """Every key of every verb."""
    schema = stored_schema()
    assert schema is not None, "configs/schema.json is missing; run `make schema`"
    return [key for verb in verbs_of(schema) for key in every_key(schema, verb)]


def of_method(key: ConfigKey) -> str | None:
    """The method that a key belongs to; None for a key that is there without one."""
    return key.names[0] or None if key.parts[0] == "method" else None


def keys() -> str:
    """All keys but those of a method by name, a table for each section."""
    parts = []
    found = all_keys()
    heads = {key.path: key for key in found if len(key.parts) == 1}
    single = [key for key in found if len(key.parts) == 1 and key.path not in SECTIONS]
    for section in SECTIONS:
        here = [key for key in found if key.parts[0] == section and of_method(key) is None and len(key.parts) > 1]
        if section == "method":
            here += shared_keys(found)
        verbs = ", ".join(dict.fromkeys(key.verb for key in found if key.path == section))
        parts.append(f"## `{section}`\n\n{heads[section].schema.get('description', '')} In configs of {verbs}.")
        parts.append(table(KEYS, key_rows(here)))
    parts.append("## Other keys\n\n" + table(KEYS, key_rows(single)))
    return "\n\n".join(parts)


def shared_keys(found: list[ConfigKey]) -> list[ConfigKey]:
    """The keys that all adaptation methods have, once."""
    shared = inspect.signature(shared_options).parameters
    first = next(iter(METHODS["adapt"]))
    return [
        key
        for key in found
        if key.verb == "adapt" and of_method(key) == first and key.parts[1:][:1] and key.parts[1] in shared
    ]


def _paragraphs(kind: type, keys: Iterable[str] = ()) -> list[str]:
    """The docstring without the lines that describe keys and errors."""
    found = []
    for paragraph in re.split(r"\n\s*\n", inspect.getdoc(kind) or ""):
        if not paragraph.startswith(("Raises ", *(f"{key}: " for key in keys))):
            found.append(" ".join(paragraph.split()))
    return found


def _facts(verb: str, kind: Any) -> Iterator[str]:
    """Sentences on what a method needs, from what its class declares (core/method.py)."""
    coupled = "The images of a batch are coupled, by the loss or by BatchNorm in a head."
    yield coupled if kind.couples_samples else "The loss is a mean over images."
    if kind.takes_chunk:
        yield "`run.chunk` saves memory."
    elif verb == "pretrain" and not kind.couples_samples:
        yield "`run.accumulate` saves memory."
    if verb == "pretrain":
        if kind.takes_local:
            yield "It takes local crops (`data.views.local`)."
        return
    if not kind.sees_target:
        yield "It sees no target image."
    if kind.keeps_head:
        yield "It goes on from the classifier in `backbone.weights`."
    if kind.online:
        yield "It meets each target image once."
    if "strong" in kind.target_views:
        yield "It takes a weak and a strong view of target images (`data.views`, `data.strong`)."
    if kind.extra_outputs:
        yield "Its classifier has a further output, `unknown`."
    if kind.resamples:
        yield f"`label_shift.resample` weighs its images of {' and '.join(kind.resamples)}."


def method(verb: str, name: str) -> str:
    """What the class of a method says, what is true of it, and a table of its own keys."""
    kind: Any = METHODS[verb][name]
    mine = [key for key in all_keys() if key.verb == verb and of_method(key) == name and len(key.parts) > 1]
    parts = _paragraphs(kind, {key.parts[1] for key in mine})
    parts.append(" ".join(_facts(verb, kind)))
    shared = {"name", *(inspect.signature(shared_options).parameters if verb == "adapt" else ())}
    found = [key for key in mine if key.parts[1] not in shared]
    rows = key_rows(found)
    if rows:
        parts.append(table(KEYS, rows))
    return "\n\n".join(parts)


def validators() -> str:
    """The validators: score, what each reads, and what it cannot see."""
    rows = []
    for name, one in VALIDATORS.items():
        first, *further = _paragraphs(type(one))
        needs = ", ".join(one.needs) or "nothing"
        rows.append((f"`{name}`", " ".join([first, *further]), needs, one.blind_to))
    return table(("name", "score, larger is better", "reads", "cannot see"), rows)


def every_command() -> Iterator[tuple[str, Any]]:
    """Name and click command of each verb, and of each verb of a group."""
    for name, command in typer.main.get_group(app).commands.items():
        inner = getattr(command, "commands", None)
        if inner is None:
            yield name, command
        else:
            yield from ((f"{name} {sub}", one) for sub, one in inner.items())


def commands() -> str:
    """Every verb with its arguments and options."""
    parts = []
    for name, command in every_command():
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option"]
        usage = " ".join(
            ["rootstock", name, *(f"{p.metavar or p.name.upper()}{' ...' if p.nargs == -1 else ''}" for p in arguments)]
        )
        parts.append(f"## {name}\n\n{command.help}\n\n```text\n{usage}{' [options]' if options else ''}\n```")
        rows = [(f"`{p.metavar or p.name.upper()}`", p.help or "") for p in arguments]
        rows += [
            (f"`{', '.join(p.opts)}{f' {p.metavar}' if p.metavar else ''}`", f"{p.help or ''}{_default_of(p)}")
            for p in options
            if not p.hidden
        ]
        if rows:
            parts.append(table(("argument", "meaning"), rows))
    return "\n\n".join(parts)


def _default_of(option: Any) -> str:
    if option.is_flag or option.default in (None, "", (), []) or callable(option.default):
        return " Required." if option.required else ""
    return f" Default: `{option.default}`."


def measurements() -> str:
    """A link to each page of measurements."""
    found = []
    for path in sorted((ROOT / "benchmarks").glob("*.md")):
        title = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        found.append(f"- [{title}](../benchmarks/{path.name})")
    return "\n".join(found)
