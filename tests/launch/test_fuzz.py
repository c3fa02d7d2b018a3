"""Whatever stands in the files of a run, without a digest or with another's: it is shown, or named as damaged; no other error comes out."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from rootstock.core.manifest import OWN
from rootstock.core.run.directory import Run
from rootstock.launch.pipeline.run import run_pipeline
from rootstock.launch.report.page import write_report
from rootstock.launch.runs import list_runs
from rootstock.launch.sweep.worker import run_sweep
from rootstock.launch.verbs import execute, resolve
from rootstock.launch.verify import verify_folders
from rootstock.tests.fuzz import DEPTHS, changed, fuzz

Change = Callable[[Path], None]

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 99), st.integers(), st.floats(), st.text(max_size=5),
    st.sampled_from([".", "..", "/", "@run"]),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)
PIPELINE = {
    "run": {"dir": "pipeline"},
    "seeds": 2,
    "stages": {
        name: {"verb": "probe", "config": "probe.yaml", "set": {"backbone": {"name": name}}}
        for name in ("pixels", "hog")
    },
    "report": {
        "rows": [{"label": name, "stage": name, "metric": "test/knn/accuracy"} for name in ("pixels", "hog")],
        "comparisons": [{"label": "HOG over pixels", "a": "hog", "b": "pixels"}],
    },
}
SWEEP = {
    "run": {"dir": "sweep"},
    "verb": "probe",
    "config": "probe.yaml",
    "search": {"evaluate.knn.k": {"choice": [1, 3]}},
    "trials": 2,
    "objective": "test/knn/accuracy",
    "sampler": {"name": "grid"},
    "selection": "oracle",
}


def places(tree: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all that a JSON tree holds, itself too."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [above, *(place for key, value in inner for place in places(value, (*above, key)))]


def with_changes(tree: Any, changes: Sequence[tuple[tuple[Any, ...], str, Any]]) -> Any:
    """A copy of the tree with values put in place of others, or taken out."""
    tree = copy.deepcopy(tree)
    for place, what, value in changes:
        holder = tree
        try:
            for key in place[:-1]:
                holder = holder[key]
            if not place:
                tree = value
            elif what == "drop":
                del holder[place[-1]]
            else:
                holder[place[-1]] = value
        except (KeyError, IndexError, TypeError):  # an earlier change took it away
            continue
    return tree


def changes_of(path: Path) -> SearchStrategy[Change]:
    """Ways in which a file of a run may be wrong: its bytes, or the tree in it, with its digest from before, or without."""
    content = path.read_bytes()
    of_bytes = changed(content).map(lambda new: lambda at: at.write_bytes(new) and None)
    if path.suffix not in (".json", ".yaml", ".jsonl"):
        return of_bytes

    def parsed() -> Any:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in content.splitlines()]
        return yaml.safe_load(content) if path.suffix == ".yaml" else json.loads(content)

    tree = parsed()

    def write(drawn: tuple[Sequence[tuple[tuple[Any, ...], str, Any]], str], at: Path) -> None:
        changes, digest = drawn
        new = with_changes(tree, changes)
        if path.suffix == ".jsonl":
            lines = new if isinstance(new, list) else [new]
            at.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        elif path.suffix == ".yaml":
            try:
                at.write_text(yaml.safe_dump(new, allow_unicode=True), errors="surrogatepass")
            except ValueError:
                at.write_text(json.dumps(new))
        else:
            if isinstance(new, dict) and digest != "old":
                new.pop(OWN, None)
            at.write_text(json.dumps(new))

    change = st.tuples(st.sampled_from(places(tree)), st.sampled_from(("put", "put", "drop")), values)
    drawn = st.tuples(st.lists(change, min_size=1, max_size=3), st.sampled_from(("none", "old")))
    of_trees = drawn.map(lambda drawn: lambda at: write(drawn, at))
    return st.one_of(of_trees, of_trees, of_bytes)


@pytest.fixture(scope="module")
def all_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished probe, pipeline and sweep, in one folder."""
    folder, digits = tmp_path_factory.mktemp("made"), "sklearn:digits?size=16"
    config = {
        "data": {"train": f"{digits}#[:60]", "test": f"{digits}#[60:90]", "size": 16},
        "backbone": {"name": "pixels"},
        "evaluate": {"knn": {"k": 3}},
        "run": {"device": "cpu", "workers": 0, "dir": "probed"},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, content in (("probe", config), ("pipeline", PIPELINE), ("sweep", SWEEP)):
            Path(f"{name}.yaml").write_text(yaml.safe_dump(content))
        execute("probe", "probe.yaml", [], quiet=True)
        run_pipeline("pipeline.yaml", [], execute, resolve)
        assert run_sweep("sweep.yaml", [], 1) == 0
    return folder


@pytest.fixture
def made(all_made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same for every test, which puts back what it changes."""
    monkeypatch.chdir(all_made)
    return all_made


def files_of(folder: Path) -> list[str]:
    """The small files of a run, and of what it consists of."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in (".json", ".jsonl", ".yaml")
    )


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("kind", ["probed", "pipeline", "sweep"])
def test_any_folder_is_shown_or_named_as_damaged(
    kind: str, depth: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = made / kind
    kept = tmp_path / kind
    shutil.copytree(good, kept)
    names = files_of(kept)
    given = resolve("probe", "probe.yaml", [])

    def attempt(drawn: list[tuple[str, Change]]) -> None:
        try:
            for name, change in drawn:
                change(good / name)
            list_runs(made, as_json=len(drawn) == 1)
            verify_folders([good])
            write_report([good], tmp_path / "report.html")
            if kind == "probed":
                with Run("probe", given, quiet=True) as run:
                    if run.finished is None:
                        run.record(data={})
                        run.cut_metrics(1)
        finally:
            for path in good.iterdir():
                if path.name.endswith(".damaged"):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            for name in names:
                if (good / name).is_dir():
                    shutil.rmtree(good / name)
                shutil.copyfile(kept / name, good / name)
            capsys.readouterr()

    one = st.sampled_from(names).flatmap(lambda name: st.tuples(st.just(name), changes_of(kept / name)))
    fuzz(f"folders of runs ({kind})", st.lists(one, min_size=1, max_size=2), attempt, depth, examples=16, share=1 / 3)
