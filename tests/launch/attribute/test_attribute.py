"""`rootstock attribute`: from factors to shared stages, what is resumed, and tables that say the effects of a known model."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from rootstock.core.config.resolve import ConfigError, load
from rootstock.core.errors import UserError
from rootstock.launch.attribute.plan import check_attribution, effect_subsets, plan_attribution
from rootstock.launch.attribute.run import run_attribution
from rootstock.launch.report.page import write_report
from rootstock.launch.runs import find_runs
from rootstock.launch.verify import verify_folders

CONFIG: dict[str, Any] = {
    "run": {"dir": "out"},
    "seeds": 3,
    "stages": {
        "ssl": {"verb": "pretrain", "config": "ssl.yaml"},
        "adapt": {"verb": "adapt", "config": "adapt.yaml", "set": {"lr": 0.5}},
    },
    "factors": {
        "ssl": {"label": "SSL first", "on": {"adapt.weights": "@ssl"}},
        "target": {"on": {"ssl.extra": {"target": "yes"}}, "off": {"ssl.extra": {"target": "no"}}},
        "loss": {"on": {"adapt.lr": 0.1}},
    },
    "response": "adapt",
    "primary": ["loss", "loss x ssl"],
}


def recipe(*, lr: float = 1e-3, weights: str = "none", extra: dict[str, str] = {}, seed: int = 0) -> None:
    """A stand-in for a verb's recipe: its signature is its schema."""


def where(*, dir: str) -> None:
    """A stand-in for the options of a run."""


def resolve(verb: str, config: str, overrides: Sequence[str]) -> dict[str, Any]:
    return load(config, recipe, overrides, {"run": where})


class Verbs:
    """Runs nothing: 40 points, +10 by SSL, +4 more if it saw the target, +6 by the loss, +8 by SSL and loss together, + the seed's own."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.killed_at = -1

    def __call__(self, verb: str, config: str, overrides: list[str], quiet: bool = False) -> dict[str, Any]:
        resolved = resolve(verb, config, overrides)
        folder, seed = Path(resolved["run"]["dir"]), resolved["seed"]
        if len(self.calls) == self.killed_at:
            raise KeyboardInterrupt
        self.calls.append(f"{folder.parent.name}/{folder.name}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump({"verb": verb, **resolved}))
        metrics: dict[str, float] = {}
        if verb == "adapt":
            ssl, loss = resolved["weights"] != "none", resolved["lr"] == 0.1
            seen = False
            if ssl:
                trained = yaml.safe_load((Path(resolved["weights"]) / "config.yaml").read_text())
                seen = trained["extra"]["target"] == "yes"
            own = (0.0, 0.05, -0.03)[seed] + (0.001 * seed if loss else 0.0)
            metrics = {
                "target/classifier/accuracy": 0.4 + 0.1 * ssl + 0.04 * seen + 0.06 * loss + 0.08 * (ssl and loss) + own
            }
        result = {
            "task": verb,
            "run": str(folder),
            "seed": seed,
            "metrics": metrics,
            "selection": "last",
            "seconds": 1.0,
        }
        n = (
            1 + seed + 10 * (resolved.get("weights") != "none") + 20 * (resolved["lr"] == 0.1)
        )  # of the last cell the most
        result |= {"seen_unlabelled": {}, "looks": {"target": {"n": n, "since": "2026-03-01", "note": ""}}}
        result |= {"label_shift": {"bbse": {"total_variation": 0.25}, "mlls": {"total_variation": 0.5}}}
        (folder / "result.json").write_text(json.dumps(result))
        return result


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ssl.yaml").write_text("lr: 0.2\n")
    (tmp_path / "adapt.yaml").write_text("lr: 0.2\n")
    return write(CONFIG)


def write(config: dict[str, Any]) -> Path:
    Path("attribution.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return Path("attribution.yaml")


def changed(**sections: Any) -> dict[str, Any]:
    """CONFIG with sections replaced; a deep copy."""
    return json.loads(json.dumps({**CONFIG, **sections}))


def test_cells_share_the_stages_that_are_the_same(project: Path) -> None:
    plan = plan_attribution(project, [])
    stages = plan.pipeline["stages"]
    assert plan.cells == [
        "adapt-base",
        "adapt-ssl",
        "adapt-base",
        "adapt-ssl-target",
        "adapt-loss",
        "adapt-ssl-loss",
        "adapt-loss",
        "adapt-ssl-target-loss",
    ]
    assert list(stages) == [
        "adapt-base",
        "ssl-ssl",
        "adapt-ssl",
        "ssl-ssl-target",
        "adapt-ssl-target",
        *plan.cells[4:6],
        plan.cells[7],
    ]
    assert stages["adapt-base"]["set"] == {"lr": 0.5}
    assert stages["adapt-ssl-target-loss"]["set"] == {"weights": "@ssl-ssl-target", "lr": 0.1}
    assert stages["ssl-ssl"]["set"] == {"extra": {"target": "no"}}
    _, jobs = check_attribution(project, ["seeds=2", "stages.adapt.lr=0.7"], resolve)
    assert len(jobs) == 2 * len(stages) and {job.resolved["lr"] for job in jobs if job.name == "adapt-ssl"} == {0.7}


def test_a_further_factor_leaves_the_runs_of_the_others(project: Path) -> None:
    before = plan_attribution(project, []).pipeline["stages"]
    more = changed()
    more["factors"]["augmentation"] = {"on": {"adapt.extra": {"strong": "yes"}}}
    after = plan_attribution(write(more), []).pipeline["stages"]
    assert {name: after[name] for name in before} == before and len(after) == 6 + 6 + 2


def test_effects_and_shares_of_a_known_model(project: Path) -> None:
    result = run_attribution(project, [], Verbs(), resolve)
    effects = {one["name"]: one for one in result["effects"]}
    # "target" works only where SSL is on; the loss's effect grows by 0.001 a seed.
    assert effects["ssl"]["mean"] == pytest.approx(0.1 + 0.02 + 0.04) and effects["target"]["mean"] == pytest.approx(
        0.02
    )
    assert effects["loss"]["mean"] == pytest.approx(0.06 + 0.04 + 0.001)
    assert effects["loss"]["values"] == pytest.approx([0.1, 0.101, 0.102])
    assert effects["ssl x target"]["mean"] == pytest.approx(0.02) and effects["ssl x loss"]["mean"] == pytest.approx(
        0.04
    )
    assert effects["target x loss"]["mean"] == pytest.approx(0.0) == effects["ssl x target x loss"]["mean"]
    assert [one["name"] for one in result["effects"]] == [
        " x ".join(s) for s in effect_subsets(["ssl", "target", "loss"])
    ]
    shapley = {one["factor"]: one for one in result["shapley"]}
    assert [shapley[name]["mean"] for name in ("ssl", "target", "loss")] == pytest.approx([0.16, 0.02, 0.101])
    assert result["total"]["mean"] == pytest.approx(0.281)
    assert sum(one["share"] for one in result["shapley"]) == pytest.approx(1.0)
    assert shapley["loss"]["share_low"] < 0.101 / 0.281 < shapley["loss"]["share_high"]
    assert effects["loss"]["variance_ratio"] > 100 and effects["loss"]["seeds_saved"] > 300
    assert result["runs"] == 6 * 3 and result["looks"]["target"]["n"] == 33
    assert effects["loss"]["primary"] and effects["ssl x loss"]["primary"] and not effects["ssl"]["primary"]
    assert effects["loss"]["holds"] and effects["loss"]["of"] == 2


def test_a_killed_attribution_goes_on_where_it_stopped(project: Path) -> None:
    killed = Verbs()
    killed.killed_at = 13
    with pytest.raises(KeyboardInterrupt):
        run_attribution(project, [], killed, resolve)
    rest, straight = Verbs(), Verbs()
    result = run_attribution(project, [], rest, resolve)
    assert len(killed.calls) == 13 and not {*killed.calls} & {*rest.calls} and len(rest.calls) == 8 * 3 - 13
    other = run_attribution(project, ["run.dir=other"], straight, resolve)
    assert straight.calls == killed.calls + rest.calls
    assert [one["values"] for one in result["cells"]] == [one["values"] for one in other["cells"]]
    again = Verbs()
    run_attribution(project, [], again, resolve)
    assert again.calls == []


def test_what_is_written(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_attribution(project, ["seeds=2"], Verbs(), resolve)
    out = Path("out")
    assert {
        key: value for key, value in json.loads((out / "result.json").read_text()).items() if key != "own"
    } == result
    text = (out / "table.md").read_text()
    for part in (
        "Made by `rootstock attribute attribution.yaml seeds=2`.",
        "8 cells are 6 different recipes",
        "looks: 32 (unknown before 2026-03-01)",
        "| 0.25 / 0.50 / – |",
        "Class priors apart: ",
        "| SSL first × loss | +4.0 |",
        "| all together | +28.1 |",
        "Primary effects were declared on ",
    ):
        assert part in text, part
    page = (out / "report.html").read_text()
    assert "SSL first × loss" in page and "What each factor adds" in page and "Primary contrasts" in page
    assert "t-intervals" not in page and "95 % intervals are over seeds alone, since no predictions were kept." in page
    write_report([out], out / "again.html")
    assert (out / "again.html").read_text() == page
    capsys.readouterr()
    verify_folders([out])
    said = capsys.readouterr().out
    for name in ("result.json", "contrasts.json", "config.yaml"):
        assert f"ok         {out / name}" in said
    assert len(list(find_runs(Path()))) == 8 * 2


def test_primary_effects_that_were_changed_are_called_that(project: Path) -> None:
    assert run_attribution(project, ["seeds=1"], Verbs(), resolve)["contrasts"]["note"] == ""
    result = run_attribution(write(changed(primary=["ssl"])), ["seeds=1"], Verbs(), resolve)
    assert result["contrasts"]["note"].startswith("changed after the first run")
    assert "Changed after the first run" in Path("out/table.md").read_text()
    assert result["effects"][0]["low"] is None and not result["effects"][0]["holds"]


def test_every_mistake_at_once(project: Path) -> None:
    broken = changed(response="adpt", metric="accuracy", primary=["los", "ssl x ssl"])
    broken["factors"] |= {
        "same": {"on": {"adapt.seed": 1}, "off": {"adapt.seed": 1}},
        "clash": {"on": {"adapt.lr": 0.3}},
        "inside": {"on": {"ssl.extra.more": "x"}},
        "nowhere": {"on": {"adpat.lr": 1, "adapt": 3}},
        "bad-name": {"on": {"adapt.more": 1}},
    }
    with pytest.raises(ConfigError) as caught:
        plan_attribution(write(broken), [])
    expected = [
        "factors: expected 1 to 6, got 8",
        "factors.same: on and off are the same",
        "factors.clash: adapt.lr is set by loss too",
        "factors.inside: ssl.extra.more is set by target too",
        "factors.nowhere: adpat.lr is no STAGE.KEY; did you mean adapt?",
        "factors.nowhere: adapt is no STAGE.KEY",
        "factors.bad-name: names of factors",
        "primary: no factor los; did you mean loss?",
        "primary: ssl x ssl names a factor twice",
        "response: no stage adpt; did you mean adapt?",
        "metric: expected TEST/PROTOCOL/METRIC, got accuracy",
    ]
    for line in expected:
        assert any(problem.startswith(line) for problem in caught.value.problems), (line, caught.value.problems)


def test_mistakes_of_a_cells_stages_are_found_before_any_runs(project: Path) -> None:
    broken = changed()
    broken["factors"]["ssl"]["on"] = {"adapt.weights": "@sll"}
    with pytest.raises(ConfigError, match="no stage sll; did you mean ssl"):
        plan_attribution(write(broken), [])
    broken = changed()
    broken["factors"]["loss"]["on"] = {"adapt.lrr": 1}
    with pytest.raises(
        ConfigError,
        match=r"attribution\.yaml has 3 mistakes:\n  stages\.adapt-loss: .*lrr: unknown key; did you mean lr\?",
    ):
        run_attribution(write(broken), [], Verbs(), resolve)
    assert not Path("out").exists()


def test_a_metric_that_is_no_fraction_is_refused(project: Path) -> None:
    class Losses(Verbs):
        def __call__(self, *arguments: Any, **options: Any) -> dict[str, Any]:
            result = super().__call__(*arguments, **options)
            result["metrics"] = {"target/classifier/nll": 2.0} if result["metrics"] else {}
            return result

    with pytest.raises(UserError, match="target/classifier/nll is no fraction"):
        run_attribution(project, ["seeds=1"], Losses(), resolve)
