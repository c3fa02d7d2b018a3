"""Primary contrasts: what a claim needs, Holm over the primary ones alone, pairs of images within seeds, and tasks that share domains."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rootstock.core.evaluate.power import seeds_needed
from rootstock.core.evaluate.predictions import ScoredImages
from rootstock.core.evaluate.statistics import holm
from rootstock.launch.pipeline.table import tabulate
from rootstock.launch.report.answers import Answers
from rootstock.launch.report.claims import (
    ContrastClaim,
    claim_words,
    judge,
    needed_words,
    removed_words,
    room_of,
    tasks_of,
    tasks_words,
)
from rootstock.launch.report.contrasts import over_images, primary_contrasts, student_p
from rootstock.launch.report.differences import differences_table
from rootstock.launch.report.markdown import contrast_lines, pipeline_markdown, points
from rootstock.launch.report.results import averaged, summarise
from rootstock.launch.report.tables import number

KEY = "target/classifier"


@pytest.mark.parametrize(
    ("claim", "margin", "bounds", "holds"),
    [
        ("differs", None, (0.01, 0.05), True),
        ("differs", None, (-0.05, -0.01), True),
        ("differs", None, (-0.01, 0.05), False),
        ("differs", None, (0.0, 0.05), False),
        ("loses at most", 0.02, (-0.01, 0.09), True),
        ("loses at most", 0.02, (0.01, 0.09), True),
        ("loses at most", 0.02, (-0.03, 0.09), False),
        ("loses at most", 0.02, (-0.02, 0.09), False),
        ("equals", 0.02, (-0.01, 0.015), True),
        ("equals", 0.02, (-0.01, 0.03), False),
        ("equals", 0.02, (-0.03, 0.01), False),
        ("equals", 0.02, (0.021, 0.03), False),
        ("equals", 0.02, (None, None), False),
    ],
)
def test_a_claim_holds_only_if_the_whole_interval_lies_where_it_says(
    claim: ContrastClaim, margin: float | None, bounds: tuple[float | None, float | None], holds: bool
) -> None:
    mean = 0.0 if bounds[0] is None or bounds[1] is None else (bounds[0] + bounds[1]) / 2
    assert judge(claim, margin, mean, bounds, lambda null: 0.01).inside is holds


def test_of_what_is_better_when_lower_a_loss_is_a_rise() -> None:
    assert judge("loses at most", 0.1, 0.0, (-0.5, 0.05), lambda null: 0.01, higher_is_better=False).inside
    assert not judge("loses at most", 0.1, 0.0, (-0.05, 0.5), lambda null: 0.01, higher_is_better=False).inside
    assert room_of("loses at most", 0.1, 0.04, higher_is_better=False) == pytest.approx(0.06)
    assert room_of("loses at most", 0.1, 0.04) == pytest.approx(0.14)
    assert room_of("equals", 0.1, -0.04) == pytest.approx(0.06) and room_of("equals", 0.1, 0.2) < 0


def test_p_is_of_the_claims_opposite() -> None:
    """Of equality the larger of both edges' p; a mean beyond an edge shows nothing, however sure it is."""
    asked: list[float] = []

    def p_of(null: float) -> float:
        asked.append(null)
        return {0.0: 0.3, -0.02: 0.01, 0.02: 0.04}[null]

    assert judge("differs", None, 0.01, (-1, 1), p_of).p == 0.3
    assert judge("loses at most", 0.02, 0.01, (-1, 1), p_of).p == 0.01
    assert judge("equals", 0.02, 0.01, (-1, 1), p_of).p == 0.04
    assert asked == [0.0, -0.02, -0.02, 0.02]
    assert judge("equals", 0.02, 0.05, (0.04, 0.06), p_of).p == 1.0


def answers(correct: np.ndarray) -> dict[str, Answers]:
    n = len(correct)
    images = ScoredImages(np.arange(n, dtype=np.int64), np.zeros(n, dtype=np.int64), ("a", "b"))
    return {KEY: Answers(images, "logits", correct.astype(np.float64), (1 - correct).astype(np.int64), None, None)}


class Table:
    """Stages with a given accuracy on 400 images, over seeds that share nothing but the images."""

    def __init__(self, rates: Mapping[str, float], seeds: int = 5) -> None:
        random = np.random.default_rng(0)
        hard = random.random(400)
        self.answers = {
            (stage, seed): answers(
                (hard + random.normal(0, 0.05, 400) < rate + random.normal(0, 0.004)).astype(np.int64)
            )
            for stage, rate in rates.items()
            for seed in range(seeds)
        }
        results = {
            stage: [
                {"metrics": {f"{KEY}/accuracy": float(self.answers[stage, seed][KEY].correct.mean())}, "seed": seed}
                for seed in range(seeds)
            ]
            for stage in rates
        }
        self.rows = {stage: summarise(found, label=stage, stage=stage) for stage, found in results.items()}

    def __call__(self, stage: str, seed: int) -> Mapping[str, Answers]:
        return self.answers[stage, seed]


def entry(
    a: str, b: str, *, primary: bool = True, claim: str = "differs", margin: float | None = None
) -> dict[str, Any]:
    return {"label": f"{a} over {b}", "a": a, "b": b, "primary": primary, "claim": claim, "margin": margin}


def test_holm_counts_the_primary_contrasts_alone() -> None:
    table = Table({"control": 0.5, "good": 0.56, "same": 0.501, "other": 0.7})
    asked = [
        entry("good", "control"),
        entry("other", "control", primary=False),
        entry("same", "control", claim="equals", margin=0.05),
        entry("same", "control"),
        entry("control", "good", claim="loses at most", margin=0.01),
    ]
    found = primary_contrasts(asked, table.rows, table)
    assert [one["label"] for one in found] == [one["label"] for one in asked if one["primary"]]
    assert [one["adjusted"] for one in found] == holm([one["p"] for one in found])
    assert [one["holds"] for one in found] == [True, True, False, False]
    for one in found:
        assert one["of"] == 4 and one["resampled"] == "seeds and images" and one["images"] == 400 and one["n"] == 5
        assert -1 <= one["low"] <= one["mean"] <= one["high"] <= 1
    assert found[0]["seeds_needed"] <= 5 < found[2]["seeds_needed"]
    # One of four claims, so by Bonferroni's level, whatever comes of the others.
    spread = float(np.std(found[2]["values"], ddof=1))
    assert found[2]["seeds_needed"] == seeds_needed(spread, found[2]["mean"], level=1 - 0.05 / 4)
    assert f"{found[2]['seeds_needed']} paired seeds show it (p < 0.05 / 4) with 80 %" in needed_words(found[2])
    assert found[3]["seeds_needed"] is None  # no number of seeds shows that 6 points are at most 1
    alone = primary_contrasts(asked[:1], table.rows, table)[0]
    assert alone["p"] == alone["adjusted"] == found[0]["p"]


def test_a_gain_is_said_as_the_share_of_the_error_that_it_removes() -> None:
    table = Table({"control": 0.5, "good": 0.8})
    gain, loss = primary_contrasts([entry("good", "control"), entry("control", "good")], table.rows, table)
    before, after = (np.array(table.rows[name]["values"]) for name in ("control", "good"))
    share = gain["error_removed"]
    assert share["mean"] == pytest.approx((after - before).mean() / (1 - before).mean())
    # Each end is a share s for which "after - before - s (1 - before) is 0 on average" has p = 0.05 exactly.
    for end in (share["low"], share["high"]):
        assert student_p((after - before - end * (1 - before)).tolist()) == pytest.approx(0.05)
    assert share["low"] < share["mean"] < share["high"]
    mean, low, high = (f"{100 * share[end]:.0f} %" for end in ("mean", "low", "high"))
    words = (
        f"good removes {mean} of the error of control (95 % interval over seeds by Fieller's theorem [{low}, {high}])"
    )
    assert removed_words(gain) == words
    assert removed_words(loss) == "" and loss["error_removed"]["mean"] < 0
    assert removed_words({**gain, "error_removed": {"mean": 0.6, "low": None, "high": None}}).endswith("(no interval)")
    declared = {"primary": [gain], "declared": "2026-11-30", "digest": "0" * 64, "note": ""}
    assert f" Over seeds and images. {words}. " in contrast_lines(declared)[0]


def test_all_of_an_error_and_none() -> None:
    values = {"right": [1.0, 1.0, 1.0], "some": [0.5, 0.4, 0.6]}
    results = {
        name: [{"metrics": {f"{KEY}/accuracy": x}, "seed": seed} for seed, x in enumerate(several)]
        for name, several in values.items()
    }
    rows = {name: summarise(several, label=name, stage=name) for name, several in results.items()}
    whole, none = primary_contrasts([entry("right", "some"), entry("some", "right")], rows, lambda *_: {})
    assert whole["error_removed"] == pytest.approx({"mean": 1.0, "low": 1.0, "high": 1.0})
    assert none["error_removed"] is None and removed_words(none) == ""


def test_of_a_loss_and_of_an_interaction_no_error_is_removed() -> None:
    results = [{"metrics": {f"{KEY}/nll": value}, "seed": seed} for seed, value in enumerate([1.0, 0.5, 0.7])]
    rows = {name: summarise(results, label=name, stage=name) for name in ("a", "b")}
    (of_loss,) = primary_contrasts([entry("a", "b")], rows, lambda *_: {})
    assert of_loss["error_removed"] is None
    table = Table({"a": 0.5, "b": 0.6, "c": 0.5, "d": 0.5})
    (of_four,) = primary_contrasts([{**entry("a", "b"), "beyond": ["c", "d"]}], table.rows, table)
    assert of_four["error_removed"] is None


def test_an_interaction_is_the_difference_of_two_differences() -> None:
    """By seed and by image: what a method gains after pretraining, less what it gains from scratch."""
    table = Table({"ssl": 0.6, "ssl+": 0.75, "plain": 0.5, "plain+": 0.55})
    (found,) = primary_contrasts([{**entry("ssl+", "ssl"), "beyond": ["plain+", "plain"]}], table.rows, table)
    value = {stage: row["values"] for stage, row in table.rows.items()}
    sides = zip(value["ssl+"], value["ssl"], value["plain+"], value["plain"], strict=True)
    expected = [(a - b) - (c - d) for a, b, c, d in sides]
    assert found["values"] == pytest.approx(expected) and found["mean"] == pytest.approx(np.mean(expected))
    assert (found["a"], found["b"]) == ("(ssl+ − ssl)", "(plain+ − plain)")
    assert found["holds"] and found["images"] == 400 and found["resampled"] == "seeds and images"
    assert found["low"] < 0.1 < found["high"] and found["low"] > 0
    alone = primary_contrasts(
        [{**entry("ssl+", "ssl"), "beyond": ["plain+", "plain"]}], table.rows, lambda stage, seed: {}
    )
    assert alone[0]["values"] == pytest.approx(expected) and alone[0]["images"] == 0
    # The same effect twice is no interaction, and a side that was tested on other images is not paired image by image.
    (none,) = primary_contrasts([{**entry("ssl+", "ssl"), "beyond": ["ssl+", "ssl"]}], table.rows, table)
    assert none["mean"] == 0 and not none["holds"]
    for seed in range(5):
        moved = table.answers["plain", seed][KEY].images.keys + 1000
        for stage in ("plain", "plain+"):
            old = table.answers[stage, seed][KEY]
            images = ScoredImages(moved, old.images.labels, old.images.classes)
            table.answers[stage, seed] = {KEY: replace(old, images=images)}
    (other,) = primary_contrasts([{**entry("ssl+", "ssl"), "beyond": ["plain+", "plain"]}], table.rows, table)
    assert other["images"] == 0 and "ssl+ and plain+ were tested on different images" in other["note"]


def test_the_interval_over_images_is_wider_than_over_seeds_alone() -> None:
    table = Table({"control": 0.5, "good": 0.56})
    by_image = primary_contrasts([entry("good", "control")], table.rows, table)[0]
    alone = primary_contrasts([entry("good", "control")], table.rows, lambda stage, seed: {})[0]
    assert alone["resampled"] == "seeds" and "kept no predictions" in alone["note"] and alone["images"] == 0
    assert by_image["low"] < alone["low"] and by_image["high"] > alone["high"]
    assert alone["p"] == student_p(alone["values"])
    low, high = over_images(table.rows["good"], table) or (None, None)
    row = table.rows["good"]
    assert low is not None and high is not None and 0 <= low < row["low"] and row["high"] < high <= 1
    assert over_images(row, lambda stage, seed: {}) is None


@pytest.mark.parametrize("claim", ["loses at most", "equals"])
def test_a_margin_is_held_over_images_or_not_at_all(claim: str) -> None:
    """However alike the seeds are: without predictions, and of metrics that are not paired by image, nobody knows the images' part."""
    table = Table({"control": 0.5, "same": 0.501})
    asked = [entry("same", "control", claim=claim, margin=0.2)]
    (by_image,) = primary_contrasts(asked, table.rows, table)
    assert by_image["holds"] and by_image["images"] == 400 and "paired seeds show it" in needed_words(by_image)
    (alone,) = primary_contrasts(asked, table.rows, lambda stage, seed: {})
    assert -0.2 < alone["low"] <= alone["high"] < 0.2 and not alone["holds"] and alone["p"] == 1.0
    assert "kept no predictions, so a claim with a margin cannot hold" in alone["note"]
    declared = {"primary": [alone], "declared": "2026-11-30", "digest": "0" * 64, "note": ""}
    assert "No number of seeds shows it, since the bound has to be over images, too." in contrast_lines(declared)[0]
    rows = {name: {**row, "metric": f"{KEY}/f1"} for name, row in table.rows.items()}
    (other,) = primary_contrasts(asked, rows, table)
    assert not other["holds"] and other["note"].startswith("only accuracies are paired image by image")


def test_one_seed_claims_nothing_about_another_training() -> None:
    table = Table({"control": 0.5, "good": 0.8}, seeds=1)
    found = primary_contrasts([entry("good", "control")], table.rows, table)
    assert found[0]["resampled"] == "images" and found[0]["seeds_needed"] is None
    (line, _) = contrast_lines({"digest": "0" * 64, "declared": "2026-03-01T00:00:00Z", "note": "", "primary": found})
    assert "Over images." in line and "One seed says nothing about the spread between seeds" in line
    nothing = primary_contrasts([entry("good", "control")], table.rows, lambda stage, seed: {})
    assert not nothing[0]["holds"] and nothing[0]["p"] == 1.0 and nothing[0]["low"] is None


@pytest.mark.parametrize("seeds", [1, 3])
def test_every_difference_has_an_interval_over_images_where_predictions_are_at_hand(seeds: int) -> None:
    """Of one seed it stands where no interval over seeds can; the Markdown table never calls it one over seeds."""
    table = Table({"control": 0.5, "good": 0.6}, seeds=seeds)
    stages = ("control", "good")
    results = {
        stage: [
            {"metrics": {f"{KEY}/accuracy": value}, "seed": seed, "looks": {"target": {"n": 3, "since": "2026-03-01"}}}
            for seed, value in zip(table.rows[stage]["seeds"], table.rows[stage]["values"], strict=True)
        ]
        for stage in stages
    }
    compared = {**entry("good", "control", primary=False), "label": "gain"}
    report = {"rows": [{"label": name, "stage": name} for name in stages], "comparisons": [compared], "columns": {}}
    found = tabulate(report, results, answers=table)
    (one,) = found["comparisons"]
    low, high = one["over_images"]
    assert low < one["mean"] < high and (one["low"] is None) == (seeds == 1)
    shown = differences_table(found["comparisons"])
    text = f"[{number(low, sign=True)}, {number(high, sign=True)}]"
    assert (shown.groups[0][1][0].interval == text) == (seeds == 1)
    assert ("leave out the spread between seeds" in shown.foot[0]) == (seeds == 1)
    lines = pipeline_markdown(found, "rootstock run x.yaml").splitlines()
    heads = [line for line in lines if "95 %" in line]
    what = "images" if seeds == 1 else "seeds and images"
    assert len(heads) == 2 and all(f"| 95 % over seeds | 95 % over {what} |" in head for head in heads)
    assert "looks" in heads[0] and any(line.startswith("- Looks: ") for line in lines)
    (line,) = [line for line in lines if line.startswith("| gain")]
    assert (f"|  | {text} | 1 |" in line) == (seeds == 1) and f"| {text} | {seeds} |" in line
    # Without predictions nothing is over images.
    assert "over_images" not in tabulate(report, results)["comparisons"][0]


def test_sentences() -> None:
    contrast = {
        "a": "MCC",
        "b": "control",
        "margin": 0.02,
        "mean": -0.004,
        "low": -0.011,
        "high": 0.003,
        "adjusted": 0.004,
        "of": 3,
    }
    words = {
        (claim, holds): claim_words({**contrast, "claim": claim, "holds": holds}, " points", points)
        for claim in ("differs", "loses at most", "equals")
        for holds in (True, False)
    }
    facts = "(−0.4 points as measured, 95 % interval [−1.1, +0.3], p = 0.004 after Holm over 3)"
    assert words["loses at most", True] == f"MCC loses at most 2.0 points against control {facts}"
    assert words["equals", False] == f"that MCC equals control within 2.0 points is not shown {facts}"
    assert words["differs", False] == f"no difference between MCC and control is shown {facts}"


def test_tasks_of_shared_domains_are_called_that() -> None:
    names = "pacs"
    twelve = [(a, b) for a in names for b in names if a != b]
    assert tasks_words(tasks_of(twelve)) == (
        "mean over 12 tasks of 4 domains; tasks share domains, so they are not independent, and n counts seeds"
    )
    assert tasks_words(tasks_of([("a", "b"), ("c", "d")])) == "mean over 2 tasks of 4 domains"
    assert tasks_words(tasks_of([("a", "b"), ()])) == "mean over 2 tasks"
    assert tasks_words(None) == ""


def test_averaged_stages_pair_seeds_and_keeps_what_tables_say() -> None:
    def result(seed: int, accuracy: float, n: int) -> dict[str, Any]:
        looks = {"target": {"n": n, "since": "2026-03-01", "note": ""}}
        return {"seed": seed, "metrics": {f"{KEY}/accuracy": accuracy}, "looks": looks, "seen_unlabelled": {"adapt": 3}}

    tasks = [[result(0, 0.2, 1), result(1, 0.4, 4)], [result(1, 0.8, 2), result(0, 0.6, 9), result(2, 0.1, 1)]]
    row = summarise(averaged(tasks), label="DANN", stage="dann")
    assert row["values"] == pytest.approx([0.4, 0.6]) and row["seeds"] == [0, 1]
    assert row["looks"]["target"]["n"] == 9 and row["kind"] == "transductive"


def test_contrasts_over_tasks_draw_shared_targets_together() -> None:
    table = Table({"control": 0.5, "good": 0.56, "control2": 0.5, "good2": 0.56})
    for name in ("good", "control"):
        table.rows[name]["tasks"] = {"n": 2, "domains": 3, "shared": True}
        table.rows[name]["stages"] = [name, f"{name}2"]
    found = primary_contrasts([entry("good", "control")], table.rows, table)[0]
    assert found["images"] == 800 and found["resampled"] == "seeds and images"
    table.rows["control"].pop("stages")
    found = primary_contrasts([entry("good", "control")], table.rows, table)[0]
    assert found["images"] == 0 and "different numbers of tasks" in found["note"]
