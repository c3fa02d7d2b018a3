"""The checks of a pipeline's file that need no stage's config: names, references between stages, rows and comparisons."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ...core.config.messages import among
from ...core.config.resolve import ConfigError, validate
from ...core.config.yaml_file import parse_override
from ..report.claims import MOST_PRIMARY, stages_shown
from .sections import comparison, row

REFERENCE = re.compile(r"@([^/]+)(/.*)?")
FOLDER_NAME = re.compile(r"[A-Za-z0-9][\w-]*")
# Each is a folder with a run of each stage; a larger number is a mistake, and its list would fill the memory.
MOST_SEEDS = 10_000
_SET_BY_PIPELINE = {"seed": "seeds", "run.dir": "run.dir"}  # key of a stage: key of the pipeline


def read_seeds(given: int | list[int], problems: list[str]) -> list[int]:
    """The list of seeds that `seeds` stands for."""
    if isinstance(given, int) and given > MOST_SEEDS:
        problems.append(
            f"seeds: {given} are given, and a pipeline runs at most {MOST_SEEDS:,}; give fewer, or a list of them"
        )
        return [0]
    seeds = list(range(given)) if isinstance(given, int) else given
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        problems.append(f"seeds: expected how many (1 or more), or a list of different seeds, got {given}")
    return seeds


def validate_each(
    path: str, sections: Mapping[str, Any], schema: Callable[..., Any], problems: list[str]
) -> dict[str, Any]:
    """Resolve sections that share one schema, by name; each problem gets the path of its section."""
    resolved = {}
    for name, section in sections.items():
        try:
            resolved[name] = validate(section, schema)
        except ConfigError as error:
            problems += [f"{path}.{name}.{problem}" for problem in error.problems]
    return resolved


def add_overrides(stages: dict[str, Any], overrides: Sequence[str], names: Sequence[str], problems: list[str]) -> None:
    """Append each override `stages.NAME.KEY=VALUE` to the `set` of its stage."""
    for override in overrides:
        path, equals, text = override.partition("=")
        _, name, key = (*path.split(".", 2), "", "")[:3]
        if not equals or not key:
            problems.append(f"{override}: expected stages.NAME.KEY=VALUE, for example stages.simclr.optim.lr=1e-3")
        elif name not in names:
            problems.append(f"{path}: no stage {name}{among(name, names)}")
        elif name in stages:
            stages[name]["set"].pop(key, None)
            try:
                # YAML reserves the @ at the start of a stage reference, so such text is not parsed.
                stages[name]["set"][key] = text if text.startswith("@") else parse_override(text, path, problems)
            except ConfigError as error:
                problems += error.problems


def check_stages(stages: Mapping[str, Any], verbs: Collection[str], names: Sequence[str], problems: list[str]) -> None:
    """Check names, verbs and references. names: of all stages of the file, those with mistakes included."""
    if not names:
        problems.append("stages: expected at least one stage")
    for name, section in stages.items():
        above = names[: names.index(name)]
        if not FOLDER_NAME.fullmatch(name):
            problems.append(f"stages.{name}: a stage's name is its folder; use letters, digits, - and _")
        if section["verb"] not in verbs:
            problems.append(f"stages.{name}.verb: unknown verb {section['verb']}{among(section['verb'], verbs)}")
        for key, value in section["set"].items():
            where = f"stages.{name}.set.{key}"
            if key in _SET_BY_PIPELINE:
                problems.append(
                    f"{where}: the pipeline gives each stage its {key}; set {_SET_BY_PIPELINE[key]} of the pipeline"
                )
            for other in references(value):
                if other not in names:
                    problems.append(f"{where}: no stage {other}{among(other, above)}")
                elif other not in above:
                    problems.append(f"{where}: @{other} does not come before {name}; a stage may use those above it")


def check_report(report: dict[str, Any], names: Sequence[str], problems: list[str]) -> None:
    """Resolve the rows and comparisons of the `report` section in place. names: of all stages."""
    numbered = dict[str, dict[str, Any]]()  # by the number in the file, which stays that where one before has a mistake
    for key, schema in (("rows", row), ("comparisons", comparison)):
        given = {str(index): section for index, section in enumerate(report[key])}
        numbered[key] = validate_each(f"report.{key}", given, schema, problems)
        report[key] = list(numbered[key].values())
    for index, entry in numbered["rows"].items():
        for name in stages_shown(entry):
            if name not in names:
                problems.append(f"report.rows.{index}.stage: no stage {name}{among(name, names)}")
        if len(set(stages_shown(entry))) < len(stages_shown(entry)):
            problems.append(f"report.rows.{index}.stages: a stage is given twice; give each one once")
        for key, name in {
            "metric": entry["metric"],
            **{f"also.{key}": name for key, name in entry["also"].items()},
        }.items():
            if name is not None and name.count("/") < 2:
                problems.append(f"report.rows.{index}.{key}: expected TEST/PROTOCOL/METRIC, got {name}")
    for index, entry in numbered["comparisons"].items():
        problems += [f"report.comparisons.{index}.{problem}" for problem in _wrong_sides(entry, report["rows"])]
        if (entry["claim"] == "differs") != (entry["margin"] is None):
            wrong = "belongs to another claim than differs" if entry["margin"] else f"is needed by {entry['claim']}"
            problems.append(f"report.comparisons.{index}.margin: a margin {wrong}; say how much, or leave both out")
        if entry["claim"] != "differs" and not entry["primary"]:
            problems.append(f"report.comparisons.{index}.claim: only a primary contrast has a claim; add primary: true")
    if (count := sum(entry["primary"] for entry in report["comparisons"])) > MOST_PRIMARY:
        problems.append(
            f"report.comparisons: {count} are primary, and a table has at most {MOST_PRIMARY}; choose, before the first run"
        )


def _wrong_sides(entry: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with the rows that a comparison names."""
    over, wrong = entry["over"], list[str]()
    named = {"a": entry["a"], **({} if entry["b"] is None else {"b": entry["b"]})}
    sides = [*named.items(), *(("over", name) for name in over), *(("beyond", name) for name in entry["beyond"])]
    for key, name in sides:
        found = rows_named(rows, name)
        if not found:
            wrong.append(f"{key}: no row {name}{among(name, [row['label'] for row in rows])}")
        elif len(found) > 1:
            wrong.append(f"{key}: {len(found)} rows show {name}; name one by its label")
    if of_one_row(entry):
        wrong.append("b: both sides are the same, and nothing differs from itself; name another row")
    if (entry["b"] is None) != bool(over):
        wrong.append("b: give the row that is subtracted, or several of them as over: [ROW, ROW], and not both")
    elif (
        over
        and len({row["label"] for name in over for row in rows_named(rows, name)}) < max(2, len(over))
        and not wrong
    ):
        wrong.append("over: expected two or more different rows; one row is given as b")
    if entry["beyond"] and (over or len(entry["beyond"]) != 2):
        wrong.append("beyond: expected two rows, [C, D], beside a and b, for (a - b) - (C - D)")
    if over and entry["primary"]:
        wrong.append(
            "primary: a primary contrast has one row b; write one for each row, and leave `over` to what is exploratory"
        )
    return wrong


def of_one_row(entry: Mapping[str, Any]) -> bool:
    """Whether both sides of a comparison are the same, so that it is 0 whatever is measured."""
    pair = [entry.get("a"), entry.get("b")]
    return pair[0] is not None and (pair[0] == pair[1] or pair == entry.get("beyond"))


def subtracted(entry: Mapping[str, Any]) -> list[str]:
    """The rows that a comparison subtracts from a: b, or each of `over`."""
    return list(entry.get("over") or [entry["b"]])


def sides_of(entry: Mapping[str, Any]) -> list[str]:
    """All rows that a comparison names."""
    return [entry["a"], *subtracted(entry), *entry.get("beyond", ())]


def rows_named(rows: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    """The rows that a side of a comparison names: by label, otherwise by stage."""
    return [entry for entry in rows if entry["label"] == name] or [entry for entry in rows if entry["stage"] == name]


def references(value: Any) -> list[str]:
    """The stages that a value of `set` names by "@NAME" or "@NAME/file", at any depth."""
    if isinstance(value, str):
        match = REFERENCE.fullmatch(value)
        return [match[1]] if match else []
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return [name for item in inner for name in references(item)]
