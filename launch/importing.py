"""`rootstock import`: convert published weights to a run's backbone/, with a report about every tensor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.config.messages import among, show, spelt
from ..core.config.yaml_file import parse
from ..core.convert.adopt import adopt
from ..core.convert.file import read_weights
from ..core.convert.names import PROJECTS, count_with_examples
from ..core.errors import UserError
from ..core.files import write_text
from ..core.images.pack.unfinished import writable
from ..core.model.backbone import Backbone

REPORT = "import.json"


def import_weights(
    path: Path,
    project: str,
    to: Path,
    *,
    name: str | None = None,
    size: int | None = None,
    arguments: Sequence[str] = (),
    mean: str | None = None,
    std: str | None = None,
    prefix: str | None = None,
    as_json: bool = False,
) -> int:
    """Convert `path` into to/backbone/ and to/import.json, both or neither, and print the report. Returns the exit code 0.

    arguments: KEY=VALUE, of the timm model. mean, std: numbers joined by commas. Raises UserError if it cannot be imported.
    """
    if project != "auto" and project not in PROJECTS:
        raise UserError(f"--from: unknown project {spelt(project)}{among(project, [*PROJECTS, 'auto'])}")
    if size is not None and size < 1:
        raise UserError(f"--size: expected pixels, got {size}")
    if to.exists() and not (to.is_dir() and not any(to.iterdir())):
        raise UserError(f"--to: {to} exists already; name a new folder, or delete that one")
    args = parse_pairs(arguments)
    normalisation = {"mean": numbers("--mean", mean), "std": numbers("--std", std)}
    backbone, report = adopt(
        read_weights(path), project, name=name, size=size, args=args, prefix=prefix, **normalisation
    )
    write_backbone(backbone, report, to)
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        print("\n".join(report_lines(report, to)))
    return 0


def parse_pairs(arguments: Sequence[str]) -> dict[str, Any]:
    """["depth=6"] -> {"depth": 6}, with values as in YAML. Raises UserError."""
    args: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--args: expected KEY=VALUE, for example num_heads=6, got {show(argument)}")
        problems: list[str] = []
        args[key.strip()] = parse(text, f"--args {key}", problems)
        if problems:
            raise UserError(problems[0])
    return args


def numbers(option: str, text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(number) for number in text.split(",")]
    except ValueError:
        raise UserError(
            f"{option}: expected numbers joined by commas, for example 0.485,0.456,0.406, got {show(text)}"
        ) from None


def write_backbone(backbone: Backbone, report: dict[str, Any], to: Path) -> None:
    """Write the folder under a hidden name, then rename it, so that it is never incomplete."""
    draft = to.absolute().parent / f".{to.name}.import"
    with writable(to):
        shutil.rmtree(draft, ignore_errors=True)  # left by an import that was killed
        draft.mkdir(parents=True)
        try:
            backbone.export(draft)
            write_text(draft / REPORT, json.dumps(report, indent=1))
            draft.rename(to)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def report_lines(report: dict[str, Any], to: Path) -> list[str]:
    """The report as text: counts and the first names; import.json has all names."""
    spec, where = report["backbone"], report["place"] or "the top of the file"
    reason = f"recognised by {report['recognised_by']}" if report["recognised_by"] else "as --from says"
    options = [f"{key} {spec[key]}" for key in ("stem", "pooling") if spec[key] not in (None, "default")]
    options += [f"{key}={show(value)}" for key, value in spec["args"].items()]
    report_text = [
        f"project   {report['from']} ({reason}), weights in {where}"
        + (f" under {report['prefix']}" if report["prefix"] else ""),
        f"backbone  {spec['name']} for {spec['size']} px, {report['parameters']:,} parameters"
        + (f" ({', '.join(options)})" if options else ""),
        f"used      {count_with_examples(report['used'])} tensors",
    ]
    for key, what in (("filled", "filled    {} missing counts of batches, with 0"), ("heads", "dropped   {} of heads, decoders and masks"),
                      ("unused", "unused    {} elsewhere in the file")):  # fmt: skip
        if report[key]:
            report_text.append(what.format(count_with_examples(report[key])))
    mean, std = (",".join(f"{number:g}" for number in spec[key]) for key in ("mean", "std"))
    report_text.append(f"pictures  normalised with mean {mean} and std {std}")
    report_text += [f"note      {note}" for note in report["notes"]]
    return [*report_text, f"imported; use it as backbone.weights={to} backbone.name=null"]
