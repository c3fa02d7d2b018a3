"""Whatever stands in a config or behind a key: it is resolved, or refused with a UserError, and the check by the schema alone agrees."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from rootstock.core.config.resolve import load
from rootstock.core.config.stored import stored_recipe
from rootstock.core.documents import read_mapping
from rootstock.core.errors import UserError
from rootstock.launch.keys import every_key
from rootstock.launch.pipeline.plan import check_pipeline
from rootstock.launch.schema_file import stored_schema
from rootstock.launch.sweep.sections import sweep
from rootstock.launch.verbs import EXTRA, VERBS, resolve
from rootstock.tests.fuzz import DEPTHS, fuzz

SCHEMA: Any = stored_schema()
STORED = {
    verb: stored_recipe(verb, SCHEMA) for verb in VERBS
}  # made once, since what is known of a recipe is kept for ever
EVERY = {key.path: key.schema for verb in VERBS for key in every_key(SCHEMA, verb)}
KEYS = sorted(EVERY)
NAMES = sorted({part for key in KEYS for part in key.split(".")})
CONFIGS = {"pretrain": "simclr", "probe": "probe", "finetune": "finetune", "adapt": "dann"}
# Pieces of YAML that mean something, and texts that config values are.
PIECES = [
    "a: ", "- ", "? ", ": ", "[", "]", "{", "}", ",", "&a ", "*a", "<<: ", "!!", "!!set ", "!!omap ", "!!binary ", "!!timestamp ", "!!int ",
    "!!float ", "!!python/object:os.system ", "|\n", ">-\n", "'", '"', "\\u", "\\x", "\n", "\n  ", "\t", "#", "%YAML 1.1\n", "---\n",
    "...\n", "~", "null", "true", "on", "1e-3", ".nan", "-.inf", "0x", "0o7", "1:1:1", "1_0", "2001-01-01", "=", "@run", "*.png", "\x00",
    "\ud800", "é", "\x85", "\u2028", "\ufeff", "data:\n", "optim: {lr: ", "extends: ", "extends: config.yaml\n", "verb: ", "seed: ",
    "stages:\n", "run: {dir: x}\n", "0x" + "f" * 4000, ":1" * 400,
]  # fmt: skip
WORDS = [
    "none", "timm", "10ep", "50%", "101%", "cuda:99", "folder:x", "simclr", "auto", "@ssl", "resnet18", "..", "~", "-1", "1e400", "=3",
]  # fmt: skip
ENDS = [".a", ".", "..b", "=", "==", " ", ".name"]

texts = st.one_of(
    st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=30).map("".join), st.text(max_size=60)
)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(WORDS), st.text(max_size=8),
    st.binary(max_size=4), st.dates(),
)  # fmt: skip
names = st.one_of(st.sampled_from(NAMES), st.text(max_size=5), st.integers(), st.booleans(), st.none(), st.floats())
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(names, inner, max_size=4)),
    max_leaves=12,
)


def near(path: str) -> SearchStrategy[Any]:
    """Values that a key may have, by the schema: its names, its default, numbers around its bounds. Most of them are accepted."""
    schema = EVERY[path]
    kinds = schema.get("anyOf", [schema])
    meant = [schema["default"]] if "default" in schema else []
    for kind in kinds:
        meant += [*kind.get("enum", []), *([kind["const"]] if "const" in kind else [])]
        bounds = [kind[name] for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum") if name in kind]
        if kind.get("type") == "integer":
            meant += [*bounds, *(bound + 1 for bound in bounds), 1, 2]
        elif kind.get("type") == "number":
            meant += [*bounds, *(bound + 1e-3 for bound in bounds), 0.5, 1]
        elif kind.get("type") == "boolean":
            meant += [True, False]
        elif kind.get("type") == "null":
            meant += [None]
    return st.sampled_from(meant) if meant else scalars


# By number, for hypothesis warns of a strategy that takes long to print.
keys = st.integers(0, len(KEYS) - 1).map(lambda number: KEYS[number])
meant = keys.flatmap(lambda key: near(key).map(lambda value: (key, value)))
overrides = st.one_of(
    meant.map(lambda pair: f"{pair[0]}={json.dumps(pair[1], default=str)}"),
    meant.map(lambda pair: f"{pair[0]}={json.dumps(pair[1], default=str)}"),
    st.builds(lambda key, value: f"{key}={value}", keys, st.one_of(texts, scalars.map(str))),
    st.builds(
        lambda key, value: f"{key}={json.dumps(value)}",
        keys,
        st.lists(st.sampled_from(WORDS), max_size=3),
    ),
    st.builds(lambda key, end, value: f"{key}{end}={value}", keys, st.sampled_from(ENDS), texts),
    texts,
)


def nested(keys: dict[str, Any]) -> dict[Any, Any]:
    """{"a.b": 1} -> {"a": {"b": 1}}, as a config has it; a key that is a section and a value stays the value."""
    tree: dict[Any, Any] = {}
    for key, value in keys.items():
        *above, last = key.split(".")
        place = tree
        for part in above:
            inner = place.setdefault(part, {})
            if not isinstance(inner, dict):
                break
            place = inner
        else:
            place[last] = value
    return tree


trees = st.one_of(
    values,
    st.dictionaries(keys, values, max_size=8).map(nested),
    st.lists(meant, max_size=4).map(dict).map(nested),
    st.lists(meant, max_size=4).map(dict).map(nested),
    st.dictionaries(names, values, max_size=6),
)


@pytest.fixture
def resolved_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, list[str]], None]:
    monkeypatch.chdir(tmp_path)

    def both(verb: str, path: str, given: list[str]) -> None:
        try:
            early: Any = load(path, STORED[verb], given)
        except UserError as error:
            early = error
        found = load(path, VERBS[verb], given, EXTRA)
        assert not isinstance(early, UserError), f"refused by the schema alone: {early}"
        json.dumps(found, allow_nan=False)
        resolve(verb, path, given)

    return both


@pytest.mark.parametrize("depth", DEPTHS)
def test_any_file_is_resolved_or_refused(depth: str, resolved_both_ways: Callable[[str, str, list[str]], None]) -> None:
    def attempt(drawn: tuple[str, str | bytes, bool]) -> None:
        verb, content, on_top = drawn
        content = f"extends: {verb}/{CONFIGS[verb]}.yaml\n{content}" if on_top and isinstance(content, str) else content
        data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
        Path("config.yaml").write_bytes(data)
        resolved_both_ways(verb, "config.yaml", [])

    contents = st.one_of(texts, texts, st.binary(max_size=40))
    fuzz(
        "texts of configs",
        st.tuples(st.sampled_from(list(CONFIGS)), contents, st.booleans()),
        attempt,
        depth,
        examples=250,
    )


@pytest.mark.parametrize("depth", DEPTHS)
def test_any_tree_is_resolved_or_refused(depth: str, resolved_both_ways: Callable[[str, str, list[str]], None]) -> None:
    def attempt(drawn: tuple[str, bool, Any]) -> None:
        verb, on_top, tree = drawn
        tree = {"extends": f"{verb}/{CONFIGS[verb]}.yaml", **tree} if on_top and isinstance(tree, dict) else tree
        try:
            text = yaml.safe_dump(tree, allow_unicode=True)
        except (ValueError, TypeError):  # integers of thousands of digits, keys that don't sort
            text = json.dumps(str(tree)[:100])
        Path("config.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
        resolved_both_ways(verb, "config.yaml", [])

    fuzz(
        "trees of configs",
        st.tuples(st.sampled_from(list(CONFIGS)), st.booleans(), trees),
        attempt,
        depth,
        examples=150,
        share=0.25,
    )


@pytest.mark.parametrize("depth", DEPTHS)
def test_any_override_is_applied_or_refused(
    depth: str, resolved_both_ways: Callable[[str, str, list[str]], None]
) -> None:
    def attempt(drawn: tuple[str, list[str]]) -> None:
        verb, given = drawn
        resolved_both_ways(verb, f"{verb}/{CONFIGS[verb]}.yaml", ["run.dir=x", "data.train=folder:x", *given])

    drawn = st.tuples(st.sampled_from(list(CONFIGS)), st.lists(overrides, max_size=4))
    found = fuzz("overrides", drawn, attempt, depth, examples=250, share=0.25)
    assert found["read"] > 4


@pytest.mark.parametrize("depth", DEPTHS)
def test_any_pipeline_sweep_or_record_is_read_or_refused(
    depth: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stages = st.fixed_dictionaries(
        {
            "run": st.one_of(st.just({"dir": "out"}), values),
            "stages": st.dictionaries(st.text(max_size=4), values, max_size=2),
        },
        optional={"seeds": values, "report": values, "search": values, "config": values},
    )

    def attempt(drawn: Any) -> None:
        kind, content = drawn
        text = content if isinstance(content, str) else json.dumps(content, default=str, skipkeys=True)
        name = "record.json" if kind == "record" else "record.yaml"
        Path(name).write_text(text, encoding="utf-8", errors="surrogatepass")
        if kind == "record":
            read_mapping(Path(name))
        elif kind == "sweep":
            load(name, sweep, [])
        else:
            check_pipeline(
                name, [text[:20], f"stages.{text[:5]}.lr={text[:9]}"] if kind == "overrides" else [], resolve
            )

    kinds = st.sampled_from(["record", "sweep", "pipeline", "overrides"])
    fuzz(
        "pipelines, sweeps and records",
        st.tuples(kinds, st.one_of(texts, stages)),
        attempt,
        depth,
        examples=250,
        share=0.25,
    )
