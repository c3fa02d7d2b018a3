"""Pipelines: what is refused before the first stage, what is passed to stages, what is run again, and the table."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from rootstock.core import files
from rootstock.core.config.resolve import ConfigError, load
from rootstock.core.errors import UserError
from rootstock.launch.pipeline import run as run_module
from rootstock.launch.pipeline.checks import references
from rootstock.launch.pipeline.plan import plan_pipeline
from rootstock.launch.pipeline.run import run_pipeline
from rootstock.launch.report.results import compare, summarise

PIPELINE = {
    "run": {"dir": "out"},
    "stages": {
        "ssl": {"verb": "pretrain", "config": "ssl.yaml"},
        "plain": {"verb": "adapt", "config": "adapt.yaml"},
        "grafted": {"verb": "adapt", "config": "adapt.yaml", "set": {"weights": "@ssl", "lr": 0.5}},
    },
    "report": {
        "rows": [
            {"label": "Plain", "stage": "plain"},
            {"label": "SSL", "stage": "grafted", "note": "from ssl", "emphasis": True},
        ],
        "comparisons": [{"label": "gain", "a": "SSL", "b": "plain"}],
        "columns": {"target": "Target", "source": "Source"},
    },
}


def recipe(*, lr: float = 1e-3, weights: str = "none", extra: dict[str, str] = {}, seed: int = 0) -> None:
    """A stand-in for a verb's recipe: its signature is its schema."""


def where(*, dir: str) -> None:
    """A stand-in for the options of a run."""


def resolve(verb: str, config: str, overrides: Sequence[str]) -> dict[str, Any]:
    return load(config, recipe, overrides, {"run": where})


class Verbs:
    """Runs nothing, but writes the files of a run and records the calls. `killed`: the stage in which it dies."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, str]] = []
        self.configs: dict[tuple[int, str], dict[str, Any]] = {}
        self.killed = ""

    def __call__(self, verb: str, config: str, overrides: list[str], quiet: bool = False) -> dict[str, Any]:
        resolved = resolve(verb, config, overrides)
        folder, seed = Path(resolved["run"]["dir"]), resolved["seed"]
        self.calls.append((seed, folder.name))
        self.configs[seed, folder.name] = resolved
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump({"verb": verb, **resolved}))
        if folder.name == self.killed:
            raise KeyboardInterrupt
        accuracy = 0.5 + 0.01 * seed**2 + (0.1 + 0.02 * seed if folder.name == "grafted" else 0)
        metrics = {} if verb == "pretrain" else {"target/knn/accuracy": accuracy, "source/knn/accuracy": 0.9}
        intervals = {"target/knn/accuracy": [accuracy - 0.05, accuracy + 0.05]}
        result = {"task": verb, "run": str(folder), "seed": seed, "metrics": metrics, "intervals": intervals}
        result |= {"seen_unlabelled": {"pretrain": 0}, "selection": "last", "seconds": 1.0}
        (folder / "result.json").write_text(json.dumps(result))
        return result


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ssl.yaml").write_text("lr: 0.1\n")
    (tmp_path / "adapt.yaml").write_text("lr: 0.2\n")
    return write(tmp_path, PIPELINE)


def write(folder: Path, config: dict[str, Any], name: str = "pipeline.yaml") -> Path:
    (folder / name).write_text(yaml.safe_dump(config, sort_keys=False))
    return folder / name


def changed(**sections: Any) -> dict[str, Any]:
    """PIPELINE with sections replaced; a deep copy."""
    return json.loads(json.dumps({**PIPELINE, **sections}))


def test_another_process_with_other_seeds_takes_no_drafts_away(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time one process has written a draft, another writes the same file completely."""
    replace = Path.replace
    ids = iter(range(10**6, 2 * 10**6))

    def late(self: Path, target: Path) -> Path:
        if self.name.endswith(".draft") and self.parent.name in ("out", "seed-0"):
            with monkeypatch.context() as other:
                other.setattr(Path, "replace", replace)
                other.setattr(files.os, "getpid", lambda: next(ids))
                files.write_text(target, "other", shared=True)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", late)
    run_pipeline(project, [], Verbs(), resolve)
    assert json.loads(Path("out/result.json").read_text())["task"] == "pipeline"
    assert yaml.safe_load(Path("out/config.yaml").read_text())["seeds"] == [0]
    assert not list(Path("out").rglob("*.draft"))


def test_stages_run_in_order_each_in_its_folder(project: Path) -> None:
    verbs = Verbs()
    run_pipeline(project, ["seeds=2"], verbs, resolve)
    assert verbs.calls == [(s, name) for s in (0, 1) for name in ("ssl", "plain", "grafted")]
    for seed in (0, 1):
        grafted = verbs.configs[seed, "grafted"]
        assert grafted["weights"] == f"out/seed-{seed}/ssl"
        assert grafted["lr"] == 0.5 and grafted["seed"] == seed
        assert grafted["run"]["dir"] == f"out/seed-{seed}/grafted"
        assert verbs.configs[seed, "plain"]["lr"] == 0.2
    assert Path("out/report.html").stat().st_size > 1000
    assert json.loads(Path("out/result.json").read_text())["task"] == "pipeline"
    assert "by layer" not in Path("out/table.md").read_text()


def test_the_table_has_accuracies_by_layer_below_it(project: Path) -> None:
    class Probes(Verbs):
        def __call__(self, verb: str, config: str, overrides: list[str], quiet: bool = False) -> dict[str, Any]:
            result = super().__call__(verb, config, overrides, quiet)
            if verb == "adapt":
                result["metrics"] |= {f"target/knn@stage{i}/accuracy": 0.2 + 0.1 * i for i in range(3)}
            (Path(result["run"]) / "result.json").write_text(json.dumps(result))
            return result

    run_pipeline(project, [], Probes(), resolve)
    said = Path("out/table.md").read_text()
    assert "| Plain | target/knn/accuracy |" in said.partition("## Accuracy by layer, knn on target")[0]
    assert "| Plain | 1 | 20.0 | 30.0 | 40.0 | 50.0 |\n| SSL | 1 | 20.0 | 30.0 | 40.0 | 60.0 |\n" in said


def test_only_some_stages_now_and_the_table_with_the_last(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verbs = Verbs()
    assert run_pipeline(project, ["seeds=2"], verbs, resolve, only=["graf*"]) == {}
    assert verbs.calls == [(s, name) for s in (0, 1) for name in ("ssl", "grafted")]  # with what it uses
    said = " ".join(capsys.readouterr().err.split())
    assert "2 of 6 runs are not made yet; without --only the command makes them, and the table" in said
    assert "plain" not in said and not Path("out/result.json").exists() and not Path("out/table.md").exists()
    table = run_pipeline(project, ["seeds=2"], verbs, resolve, only=["plain"])
    assert verbs.calls[4:] == [(0, "plain"), (1, "plain")] and len(table["rows"]) == 2  # nothing is left
    assert table == run_pipeline(project, ["seeds=2"], Verbs(), resolve)
    with pytest.raises(
        UserError, match=r"--only: no stage is called grated; did you mean grafted\? \(there are grafted, plain, ssl\)"
    ):
        run_pipeline(project, ["seeds=2"], verbs, resolve, only=["grated"])


def test_table_and_paired_differences_by_hand(project: Path) -> None:
    table = run_pipeline(project, ["seeds=3"], Verbs(), resolve)
    plain, grafted = table["rows"]
    values = [0.5, 0.51, 0.54]
    mean = sum(values) / 3
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / 2)
    half = 4.302652729911275 * deviation / math.sqrt(3)  # t(.975, 2 degrees of freedom)
    assert plain["values"] == pytest.approx(values) and plain["n"] == 3 and plain["seeds"] == [0, 1, 2]
    assert (plain["mean"], plain["low"], plain["high"]) == pytest.approx((mean, mean - half, mean + half))
    assert plain["metric"] == "target/knn/accuracy" and plain["kind"] == "inductive"
    assert plain["beside"]["source"]["mean"] == pytest.approx(0.9)
    assert grafted["note"] == "from ssl" and grafted["emphasis"]
    (gain,) = table["comparisons"]
    # The differences are .10, .12, .14, so their spread is .02 although the values' is twice that.
    assert gain["values"] == pytest.approx([0.1, 0.12, 0.14])
    half = 4.302652729911275 * 0.02 / math.sqrt(3)
    assert (gain["mean"], gain["low"], gain["high"]) == pytest.approx((0.12, 0.12 - half, 0.12 + half))


def test_one_seed_has_no_interval_over_seeds_but_its_bootstrap(project: Path) -> None:
    table = run_pipeline(project, [], Verbs(), resolve)
    assert table["rows"][0]["n"] == 1 and table["rows"][0]["low"] is None
    assert table["rows"][0]["bootstrap"] == pytest.approx([0.45, 0.55])
    assert table["comparisons"][0]["low"] is None


def test_growing_the_seeds_runs_only_new_ones(project: Path) -> None:
    run_pipeline(project, [], Verbs(), resolve)
    verbs = Verbs()
    table = run_pipeline(project, ["seeds=3"], verbs, resolve)
    assert {seed for seed, _ in verbs.calls} == {1, 2}
    assert table["rows"][0]["n"] == 3
    again = Verbs()
    assert run_pipeline(project, ["seeds=3"], again, resolve) == table
    assert not again.calls


def test_resumes_at_the_stage_that_was_interrupted(project: Path) -> None:
    verbs = Verbs()
    verbs.killed = "plain"
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(project, ["seeds=2"], verbs, resolve)
    assert not Path("out/result.json").exists()
    verbs.killed, verbs.calls = "", []
    table = run_pipeline(project, ["seeds=2"], verbs, resolve)
    assert verbs.calls == [(0, "plain"), (0, "grafted"), (1, "ssl"), (1, "plain"), (1, "grafted")]
    assert table == run_pipeline(project, ["seeds=2", "run.dir=straight"], Verbs(), resolve)


def test_overrides_reach_their_stage(project: Path) -> None:
    verbs = Verbs()
    overrides = ["stages.ssl.lr=1e-5", "stages.plain.weights=@ssl", "stages.grafted.extra.a=ü = b"]
    run_pipeline(project, [*overrides, "seeds=[4]", "run.dir=a folder"], verbs, resolve)
    assert verbs.configs[4, "ssl"]["lr"] == 1e-5
    assert verbs.configs[4, "plain"]["weights"] == "a folder/seed-4/ssl"
    assert verbs.configs[4, "grafted"]["extra"] == {"a": "ü = b"}


def test_changed_stage_is_refused_before_anything_runs(project: Path) -> None:
    run_pipeline(project, [], Verbs(), resolve)
    verbs = Verbs()
    with pytest.raises(UserError, match=r"out/seed-0/plain was run with another lr \(0.2 there, 3.0 now\).*run.dir"):
        run_pipeline(project, ["stages.plain.lr=3", "seeds=2"], verbs, resolve)
    assert not verbs.calls


def test_stage_made_from_another_input_is_refused(project: Path, tmp_path: Path) -> None:
    run_pipeline(project, [], Verbs(), resolve)
    for file in (tmp_path / "out/seed-0/ssl").iterdir():
        file.unlink()
    verbs = Verbs()
    with pytest.raises(UserError, match="out/seed-0/grafted was made from another ssl; delete"):
        run_pipeline(project, ["stages.ssl.lr=7"], verbs, resolve)
    assert not verbs.calls
    run_pipeline(project, [], verbs, resolve)
    assert verbs.calls == [(0, "ssl")], "the same input made again leaves what was made from it valid"


def newer(
    *, lr: float = 1e-3, weights: str = "none", extra: dict[str, str] = {}, seed: int = 0, ema: float | None = None
) -> None:
    """The recipe of a later version, with one more key."""


def newer_default(
    *, lr: float = 1e-3, weights: str = "none", extra: dict[str, str] = {}, seed: int = 0, ema: float | None = 0.5
) -> None:
    """The same, and the key has a default."""


@pytest.mark.parametrize("later", [newer, newer_default])
def test_a_key_that_is_new_leaves_earlier_runs_valid(project: Path, later: Any) -> None:
    def upgraded(verb: str, config: str, overrides: Sequence[str]) -> dict[str, Any]:
        later.__name__ = verb  # a recipe is called as its verb
        return load(config, later, overrides, {"run": where})

    run_pipeline(project, [], Verbs(), resolve)
    verbs = Verbs()
    run_pipeline(project, [], verbs, upgraded)
    assert not verbs.calls
    with pytest.raises(UserError, match="grafted was made from another ssl"):
        run_pipeline(project, ["stages.ssl.ema=0.9"], verbs, upgraded)


def test_every_mistake_at_once(project: Path, tmp_path: Path) -> None:
    broken = changed(seeds=[1, 1])
    broken["stages"]["ssl"] = {"verb": "pretrian", "config": "ssl.yaml", "set": {"weights": "@plain", "seed": 3}}
    broken["stages"]["grafted"]["set"]["weights"] = ["@sll"]
    broken["stages"]["plain"]["confg"] = "x"
    broken["report"]["rows"][0] |= {"stage": "plane", "metric": "accuracy", "also": {"F1": "f1"}}
    broken["report"]["comparisons"][0]["a"] = "SLL"
    with pytest.raises(ConfigError) as caught:
        plan_pipeline(write(tmp_path, broken), ["stages.sssl.lr=1", "stages.ssl"], resolve)
    expected = [
        r"seeds: expected how many",
        "stages.plain.confg: unknown key; did you mean config?",
        "stages.sssl.lr: no stage sssl; did you mean ssl?",
        "stages.ssl: expected stages.NAME.KEY=VALUE",
        "stages.ssl.verb: unknown verb pretrian; did you mean pretrain?",
        "stages.ssl.set.seed: the pipeline gives each stage its seed; set seeds",
        "stages.grafted.set.weights: no stage sll; did you mean ssl?",
        "report.rows.0.stage: no stage plane",
        "report.rows.0.metric: expected TEST/PROTOCOL/METRIC, got accuracy",
        "report.rows.0.also.F1: expected TEST/PROTOCOL/METRIC, got f1",
        "report.comparisons.0.a: no row SLL; did you mean SSL?",
    ]
    for line in expected:
        assert any(problem.startswith(line) for problem in caught.value.problems), (line, caught.value.problems)


@pytest.mark.parametrize("seeds", [10_001, 10**9, 10**40])
def test_a_huge_number_of_seeds_is_refused_before_it_is_a_list(project: Path, tmp_path: Path, seeds: int) -> None:
    with pytest.raises(ConfigError, match=f"seeds: {seeds} are given, and a pipeline runs at most 10,000"):
        plan_pipeline(write(tmp_path, changed(seeds=seeds)), [], resolve)


@pytest.mark.parametrize("target", ["@grafted", "@plain"])
def test_a_stage_uses_only_those_above_it(project: Path, tmp_path: Path, target: str) -> None:
    circle = changed()
    circle["stages"]["plain"]["set"] = {"weights": target}
    with pytest.raises(ConfigError, match=f"stages.plain.set.weights: {target} does not come before plain"):
        plan_pipeline(write(tmp_path, circle), [], resolve)


def test_stage_configs_are_checked_before_the_first_runs(project: Path, tmp_path: Path) -> None:
    (tmp_path / "adapt.yaml").write_text("lrr: 1\n")
    verbs = Verbs()
    with pytest.raises(ConfigError) as caught:
        run_pipeline(project, ["seeds=3", "stages.ssl.lr=fast"], verbs, resolve)
    assert len(caught.value.problems) == 3 and not verbs.calls
    assert any("stages.plain" in problem and "lrr: unknown key" in problem for problem in caught.value.problems)
    assert not Path("out").exists()


def test_row_without_its_metric_fails_at_its_stage(project: Path, tmp_path: Path) -> None:
    wrong = changed()
    wrong["report"]["rows"][0]["metric"] = "target/knn/acuracy"
    verbs = Verbs()
    with pytest.raises(UserError, match=r"no metric target/knn/acuracy; did you mean target/knn/accuracy\?"):
        run_pipeline(write(tmp_path, wrong), ["seeds=5"], verbs, resolve)
    assert verbs.calls == [(0, "ssl"), (0, "plain")]


def test_other_metrics_of_a_row_stand_beside_it(project: Path, tmp_path: Path) -> None:
    config = changed(
        report={"rows": [{"label": "Plain", "stage": "plain", "also": {"On source": "source/knn/accuracy"}}]}
    )
    (row,) = run_pipeline(write(tmp_path, config), ["seeds=3"], Verbs(), resolve)["rows"]
    assert row["metric"] == "target/knn/accuracy" and row["beside"]["On source"]["values"] == [0.9] * 3
    assert "On source" in Path("out/report.html").read_text()
    config["report"]["rows"][0]["also"] = {"On source": "sorce/knn/accuracy"}
    with pytest.raises(UserError, match=r"no metric sorce/knn/accuracy; did you mean source/knn/accuracy\?"):
        run_pipeline(write(tmp_path, config), ["run.dir=other"], Verbs(), resolve)


def test_rows_default_to_the_stages_that_measure(project: Path, tmp_path: Path) -> None:
    table = run_pipeline(write(tmp_path, changed(report={})), [], Verbs(), resolve)
    assert [row["label"] for row in table["rows"]] == ["plain", "grafted"]


def test_config_is_found_beside_the_pipeline(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    verbs = Verbs()
    run_pipeline(project, [], verbs, resolve)
    assert len(verbs.calls) == 3 and (elsewhere / "out/result.json").is_file()


def test_references_are_found_wherever_they_stand() -> None:
    assert references({"a": ["@x", {"b": "@y/backbone"}], "c": "x@y"}) == ["x", "y"]


def test_rows_that_share_no_seed_cannot_be_paired() -> None:
    def results(seeds: Sequence[int]) -> list[dict[str, Any]]:
        return [{"seed": seed, "metrics": {"test/knn/accuracy": 0.1 * seed}} for seed in seeds]

    a = summarise(results([0, 1, 3]), label="a", stage="a")
    b = summarise(results([3, 1, 5]), label="b", stage="b")
    assert compare(a, b, "d")["values"] == pytest.approx([0, 0]) and compare(a, b, "d")["seeds"] == [1, 3]
    with pytest.raises(UserError, match="share no seed"):
        compare(a, summarise(results([7]), label="c", stage="c"), "d")


def test_stages_that_log_gradients_or_probe_layers_are_read_for_the_tables_by_layer() -> None:
    jobs: Any = [
        SimpleNamespace(name=name, resolved={"run": {"log_gradients": name == "logs"}})
        for name in ("logs", "probes", "others")
    ]
    layers = {f"test/knn@block{i}/accuracy": 0.5 for i in range(2)}
    results = {"logs": [{"metrics": {}}], "probes": [{"metrics": layers}], "others": [{}]}
    found = run_module._by_layer(jobs, results)  # pyright: ignore[reportPrivateUsage]
    assert found == {"logs", "probes"}
