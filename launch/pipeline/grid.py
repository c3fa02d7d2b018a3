"""A pipeline's `grid`: stages, rows and comparisons written once and repeated for every name of an axis, such as tasks and methods."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...core.config.messages import among
from .checks import FOLDER_NAME, of_one_row

MOST_STAGES = 20_000  # a larger grid is a mistake, and its list would fill the memory
_PLACE = re.compile(r"\{(\w+)\}")
_TAKEN = "seed"  # {seed} in a URI is the seed of the run
_SIDES = ("a", "b", "over", "beyond")  # of a comparison

Axes = Mapping[str, Mapping[str, Mapping[str, Any]]]  # {axis: {name: overrides}}


def expand(config: dict[str, Any], problems: list[str]) -> None:
    """Repeat the stages, rows and comparisons of a pipeline over its grid, in place. Mistakes are appended to problems.

    A stage is repeated over the axes whose {AXIS} stands in its name, and takes their overrides before its own `set`. A row is repeated
    over the axes in its label and stage, but for those of its `over`: it then shows the mean of these stages. A comparison is repeated
    over the axes in its label and sides, where these are different rows that no comparison above it has.
    """
    axes: Axes = config["grid"]
    if not axes:
        return
    if wrong := _wrong(axes):
        problems += wrong
        return
    config["stages"] = _stages(axes, config["stages"], problems)
    report = config["report"]
    report["rows"] = [new for row in report["rows"] for new in _rows(axes, row, problems)]
    report["comparisons"] = _comparisons(axes, report["comparisons"])


def _wrong(axes: Axes) -> list[str]:
    """What is wrong with the grid itself."""
    wrong = []
    for axis, names in axes.items():
        if not axis.isidentifier() or axis == _TAKEN:
            wrong.append(f"grid.{axis}: an axis is named by letters, digits and _, and not {_TAKEN}")
        if not names:
            wrong.append(
                f"grid.{axis}: expected at least one name, as NAME: {{KEY: VALUE}}, or NAME: {{}} without overrides"
            )
        wrong += [
            f"grid.{axis}.{name}: a name becomes part of a folder; use letters, digits, - and _"
            for name in names
            if not FOLDER_NAME.fullmatch(name)
        ]
    return wrong


def _stages(axes: Axes, stages: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    expanded: dict[str, Any] = {}
    for name, section in stages.items():
        used = _places(name)
        unknown = [place for place in used if place not in axes]
        if unknown:
            problems.append(f"stages.{name}: the grid has no axis {unknown[0]}{among(unknown[0], list(axes))}")
            continue
        for chosen in _chosen(axes, used):
            full = _filled(name, chosen)
            if full in expanded:
                problems.append(
                    f"stages.{name}: {full} stands twice; a stage's name needs {{AXIS}} of each axis of its grid"
                )
                break
            if len(expanded) == MOST_STAGES:
                problems.append(f"stages.{name}: the grid has more than {MOST_STAGES:,} stages; make it smaller")
                return expanded
            expanded[full] = _stage(axes, section, chosen)
    return expanded


def _stage(axes: Axes, section: Any, chosen: Mapping[str, str]) -> Any:
    """A stage with the overrides of its names before its own `set`."""
    if not isinstance(section, Mapping):
        return section  # refused with its path where stages are checked
    given: dict[str, Any] = {}
    for axis, name in chosen.items():
        given |= axes[axis][name]
    own = section.get("set", {})
    merged = {**given, **own} if isinstance(own, Mapping) else own
    return _filled({**section, **({"set": merged} if merged else {})}, chosen)


def _rows(axes: Axes, row: Any, problems: list[str]) -> Iterator[Any]:
    """The rows that one entry of `report.rows` stands for."""
    if not isinstance(row, Mapping) or not isinstance(row.get("stage"), str):
        yield row  # refused with its path where rows are checked
        return
    over = row.get("over", [])
    over = [over] if isinstance(over, str) else over
    if not isinstance(over, list):
        problems.append(f"report.rows: {row.get('label')}: over: expected a list of axes, got {over!r}")
        return
    unknown = [axis for axis in over if axis not in _places(row["stage"])]
    if unknown:
        problems.append(
            f"report.rows: {row.get('label')}: over names {unknown[0]}, and its stage has no {{{unknown[0]}}}"
        )
        return
    kept = [place for place in _places(row) if place not in over]
    for chosen in _chosen(axes, kept):
        filled = _filled({key: value for key, value in row.items() if key != "over"}, chosen)
        if over:
            filled["stages"] = [_filled(filled["stage"], inner) for inner in _chosen(axes, over)]
            filled["stage"] = filled["stages"][0]
        yield filled


def _comparisons(axes: Axes, entries: Sequence[Any]) -> list[Any]:
    """All comparisons, but for repetitions that say nothing: of a row with itself, or what an entry above compares."""
    found, known = list[Any](), list[Any]()
    for entry in entries:
        for chosen in _chosen(axes, places := _places(entry)):
            filled = _filled(entry, chosen)
            sides = {key: filled.get(key) for key in _SIDES} if isinstance(filled, Mapping) else filled
            # What was written without a place stays, and is refused where it is wrong.
            if places and isinstance(sides, dict) and (sides in known or of_one_row(sides)):
                continue
            found.append(filled)
            known.append(sides)
    return found


def _chosen(axes: Axes, places: Sequence[str]) -> Iterator[dict[str, str]]:
    """Every {axis: name} of the axes that are named, in the order of the grid."""
    used = [axis for axis in axes if axis in places]
    for names in itertools.product(*(axes[axis] for axis in used)):
        yield dict(zip(used, names, strict=True))


def _places(value: Any) -> list[str]:
    """The placeholders {NAME} in a text, or in any text of a mapping or list."""
    if isinstance(value, str):
        return _PLACE.findall(value)
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return [place for item in inner for place in _places(item)]


def _filled(value: Any, chosen: Mapping[str, str]) -> Any:
    """A value with each {AXIS} replaced by its name; other braces, such as {seed}, stay."""
    if isinstance(value, str):
        return _PLACE.sub(lambda found: chosen.get(found[1], found[0]), value)
    if isinstance(value, Mapping):
        return {_filled(key, chosen): _filled(item, chosen) for key, item in value.items()}
    return [_filled(item, chosen) for item in value] if isinstance(value, list) else value
