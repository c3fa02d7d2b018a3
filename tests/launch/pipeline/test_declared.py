"""Primary contrasts are declared before the first run: what was changed later, or declared late, is said by the table."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rootstock.core.config.resolve import ConfigError
from rootstock.core.errors import UserError
from rootstock.launch.pipeline.plan import domains_of, plan_pipeline
from rootstock.launch.pipeline.run import run_pipeline
from rootstock.tests.launch.pipeline.test_run import Verbs, changed, project, resolve, write

__all__ = ["project"]
PRIMARY = {"label": "gain", "a": "SSL", "b": "plain", "primary": True}


def with_contrasts(*comparisons: dict[str, Any], **more: Any) -> dict[str, Any]:
    found = changed()
    found["report"]["comparisons"] = list(comparisons)
    return found | more


def run(folder: Path, config: dict[str, Any], *overrides: str) -> dict[str, Any]:
    return run_pipeline(write(folder, config), overrides, Verbs(), resolve)


def test_contrasts_that_were_declared_first_carry_their_digest(project: Path, tmp_path: Path) -> None:
    other = {"label": "loss", "a": "plain", "b": "SSL"}
    found = run(tmp_path, with_contrasts(PRIMARY, other), "seeds=3")["contrasts"]
    assert found["note"] == "" and len(found["digest"]) == 64
    (gain,) = found["primary"]
    assert gain["label"] == "gain" and gain["holds"] and gain["resampled"] == "seeds" and gain["of"] == 1
    table = json.loads(Path("out/result.json").read_text())
    assert table["contrasts"] == found
    assert [one["primary"] for one in table["comparisons"]] == [True, False]
    # A pipeline goes on with more seeds, and texts may be polished: the contrasts are the same.
    again = run(tmp_path, with_contrasts({**PRIMARY, "label": "the gain of SSL"}, other), "seeds=4")["contrasts"]
    assert again["digest"] == found["digest"] and again["note"] == "" and again["declared"] == found["declared"]
    text = Path("out/table.md").read_text()
    assert "SSL differs from Plain" in text and "| exploratory |" in text and found["digest"][:12] in text
    page = Path("out/report.html").read_text()
    assert "Primary contrasts" in page and "exploratory" in page and "SSL differs from Plain" in page


@pytest.mark.parametrize(
    "change",
    [
        {"a": "plain", "b": "SSL"},
        {"claim": "equals", "margin": 0.5},
        {"beyond": ["plain", "SSL"]},
        {"primary": False},
    ],
    ids=["other sides", "another claim", "an interaction", "none"],
)
def test_contrasts_that_were_changed_after_the_first_run_are_called_that(
    change: dict[str, Any], project: Path, tmp_path: Path
) -> None:
    first = run(tmp_path, with_contrasts(PRIMARY))["contrasts"]
    found = run(tmp_path, with_contrasts({**PRIMARY, **change}), "seeds=2")["contrasts"]
    assert found["note"].startswith(f"changed after the first run: {first['digest'][:12]} was declared")
    assert "Changed after the first run" in Path("out/table.md").read_text()
    assert "Changed after the first run" in Path("out/report.html").read_text()
    assert run(tmp_path, with_contrasts(PRIMARY))["contrasts"]["note"] == ""


def test_an_interaction_stands_in_table_and_page(project: Path, tmp_path: Path) -> None:
    found = run(tmp_path, with_contrasts({**PRIMARY, "beyond": ["plain", "SSL"]}), "seeds=3")
    (one,) = found["contrasts"]["primary"]
    plain, ssl = (row["values"] for row in found["rows"])
    assert one["values"] == pytest.approx(2 * (np.array(ssl) - np.array(plain)))
    for file in ("out/table.md", "out/report.html"):
        assert "(SSL − Plain) differs from (Plain − SSL)" in Path(file).read_text(), file


def test_contrasts_that_come_late_are_called_that(project: Path, tmp_path: Path) -> None:
    assert "contrasts" not in run(tmp_path, with_contrasts({**PRIMARY, "primary": False}))
    assert not Path("out/contrasts.json").exists()
    for _ in range(2):
        found = run(tmp_path, with_contrasts(PRIMARY), "seeds=2")["contrasts"]
        assert found["note"] == "declared when 3 of 6 runs were finished"
    Path("out/contrasts.json").unlink()
    assert run(tmp_path, with_contrasts(PRIMARY))["contrasts"]["note"] == "declared when 3 of 3 runs were finished"


def test_a_damaged_declaration_is_named_and_kept(project: Path, tmp_path: Path) -> None:
    run(tmp_path, with_contrasts(PRIMARY))
    path = Path("out/contrasts.json")
    path.write_text(path.read_text().replace('"plain"', '"plaim"'))
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"contrasts\.json is damaged .* declared after 3 runs"):
        run(tmp_path, with_contrasts(PRIMARY))
    assert path.read_bytes() == before


def test_what_a_table_may_claim(project: Path, tmp_path: Path) -> None:
    broken = with_contrasts(
        *[PRIMARY] * 5,
        {**PRIMARY, "claim": "equals"},
        {**PRIMARY, "margin": 0.1},
        {**PRIMARY, "primary": False, "claim": "equals", "margin": 0.1},
        {**PRIMARY, "claim": "loses at most", "margin": -0.1},
        {**PRIMARY, "b": PRIMARY["a"], "primary": False},
        {**PRIMARY, "beyond": [PRIMARY["a"], PRIMARY["b"]], "primary": False},
    )
    broken["report"]["rows"][0]["stages"] = ["plane", "grafted", "grafted"]
    with pytest.raises(ConfigError) as caught:
        plan_pipeline(write(tmp_path, broken), [], resolve)
    expected = [
        "report.comparisons: 7 are primary, and a table has at most 4",
        "report.comparisons.5.margin: a margin is needed by equals",
        "report.comparisons.6.margin: a margin belongs to another claim than differs",
        "report.comparisons.7.claim: only a primary contrast has a claim; add primary: true",
        "report.comparisons.8.margin: ",
        "report.comparisons.9.b: both sides are the same, and nothing differs from itself; name another row",
        "report.comparisons.10.b: both sides are the same",
        "report.rows.0.stage: no stage plane; did you mean plain?",
        "report.rows.0.stages: a stage is given twice",
    ]
    for line in expected:
        assert any(problem.startswith(line) for problem in caught.value.problems), (line, caught.value.problems)


def test_a_row_over_tasks_is_the_mean_of_its_stages(project: Path, tmp_path: Path) -> None:
    config = with_contrasts()
    config["report"]["rows"][0]["stages"] = ["plain", "grafted"]
    both = run(tmp_path, config, "seeds=2")["rows"][0]
    assert "mean over 2 tasks" in Path("out/table.md").read_text()
    single = run(tmp_path, changed(), "seeds=2")["rows"]
    means = [(a + b) / 2 for a, b in zip(single[0]["values"], single[1]["values"], strict=True)]
    assert both["values"] == pytest.approx(means) and both["tasks"]["n"] == 2


def test_domains_are_uris_without_options_and_splits() -> None:
    data = {"source": "sklearn:digits?size=32#[:60%]#train", "target": ["folder:a/b#train", "folder:a/c"]}
    assert domains_of({"data": data}) == ("sklearn:digits", "folder:a/b", "folder:a/c")
    assert domains_of({"data": {"train": "x"}}) == () and domains_of({}) == ()
