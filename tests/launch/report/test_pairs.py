"""Runs compared image by image: differences, tests, what cannot be paired, and that it stands on the page and in the terminal."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from rootstock.core.evaluate.predictions import Predictions, ScoredImages, to_half
from rootstock.core.manifest import write_manifest
from rootstock.core.run.rows import PREDICTIONS
from rootstock.launch.report import pairs as pairs_module
from rootstock.launch.report.answers import Answers, answers_of, read_answers
from rootstock.launch.report.page import write_report
from rootstock.launch.report.pairs import Paired, Pairs, adjust, compare_images, pair_stages
from rootstock.launch.report.records import StageRuns, by_experiment, read_run
from rootstock.launch.report.reliability import confidence_figures
from rootstock.tests.launch.report.test_page import Page, check_standing_alone

CLASSES = ("ant", "bee", "cat")


def images(n: int = 120, seed: int = 0, copies: int = 1) -> ScoredImages:
    random = np.random.default_rng(seed)
    keys = np.repeat(random.integers(-(2**62), 2**62, n), copies)
    return ScoredImages(keys, np.repeat(random.integers(0, 3, n), copies), CLASSES)


def scores(rows: ScoredImages, skill: float, seed: int) -> Any:
    """Logits that depend on the image and on the seed, more right with more skill."""
    noise = np.array([np.random.default_rng([abs(int(k)), seed]).normal(size=3) for k in rows.keys])
    return noise + skill * (rows.labels[:, None] == np.arange(3))


def make(path: Path, rows: ScoredImages, skill: float, seed: int = 0, key: str = "test/linear", **config: Any) -> Path:
    """A finished run with predictions, as a recipe leaves it."""
    path.mkdir(parents=True)
    kept = Predictions()
    kept.add(key, rows, to_half(scores(rows, skill, seed + int(10 * skill)), "logits"))
    kept.write(path)
    saved = kept.scores[key].scores
    accuracy = float((saved.argmax(1) == rows.labels).mean())
    (path / "config.yaml").write_text(yaml.safe_dump({"verb": "probe", "seed": seed, "skill": skill, **config}))
    (path / "run.json").write_text(json.dumps({"verb": "probe"}))
    result = {"task": "probe", "run": str(path), "seed": seed, "metrics": {f"{key}/accuracy": accuracy}}
    (path / "result.json").write_text(json.dumps(result))
    write_manifest(path, [PREDICTIONS, "result.json"])
    return path


def compared(*runs: Path) -> Pairs:
    stages = by_experiment([read_run(run) for run in runs])
    return pair_stages(stages, [answers_of(stage) for stage in stages])


def shuffled(rows: ScoredImages) -> ScoredImages:
    order = np.random.default_rng(9).permutation(len(rows.keys))
    return ScoredImages(rows.keys[order], rows.labels[order], rows.classes)


def test_one_seed_is_paired_by_image_whatever_the_order(tmp_path: Path) -> None:
    rows = images()
    a, b = make(tmp_path / "a", rows, 0.5), make(tmp_path / "b", shuffled(rows), 1.5)
    found = compared(a, b)
    right = [scores(rows, s, int(10 * s)).argmax(1) == rows.labels for s in (0.5, 1.5)]
    accuracy, f1, nll = found.lines
    assert (accuracy.metric, f1.metric, nll.metric) == ("accuracy", "f1", "nll") and not found.notes
    assert accuracy.mean == pytest.approx(right[1].mean() - right[0].mean(), abs=1e-12)
    b_only, c_only = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    assert accuracy.only == (b_only, c_only) and accuracy.test == "McNemar"
    assert accuracy.p == pytest.approx(stats.binomtest(b_only, b_only + c_only).pvalue)
    gap = right[1].astype(float) - right[0]
    half = 1.96 * gap.std() / np.sqrt(len(gap))
    assert (accuracy.low, accuracy.high) == pytest.approx((gap.mean() - half, gap.mean() + half), abs=0.02)
    assert nll.difference == f"{nll.mean:+.3f}".replace("-", "−")
    assert nll.mean < 0 and accuracy.adjusted >= accuracy.p and accuracy.adjusted < 0.05
    assert "that of b is" in accuracy.sentence and "which is better" in accuracy.sentence
    assert "which is better" in nll.sentence and "lower than that of a" in nll.sentence
    assert "One seed each says nothing about another training." in accuracy.sentence
    again = compared(b, a).lines[0]
    assert again.mean == pytest.approx(-accuracy.mean) and again.p == accuracy.p


def test_equal_runs_show_no_difference(tmp_path: Path) -> None:
    rows = images(40)
    found = compared(make(tmp_path / "a", rows, 1.0), make(tmp_path / "b", rows, 1.0, more=1))
    assert [(line.mean, line.low, line.p, line.adjusted) for line in found.lines] == [(0, None, 1.0, 1.0)] * 3
    assert "no difference between b and a is shown on 40 images" in found.lines[0].sentence


def test_seeds_are_paired_first(tmp_path: Path) -> None:
    rows = images(80)
    runs = [
        make(tmp_path / f"seed-{s}" / name, rows, skill, s)
        for name, skill in (("a", 0.5), ("b", 1.5))
        for s in range(3)
    ]
    (accuracy, *_) = compared(*runs).lines
    each = [
        float((scores(rows, 1.5, s + 15).argmax(1) == rows.labels).mean())
        - float((scores(rows, 0.5, s + 5).argmax(1) == rows.labels).mean())
        for s in range(3)
    ]
    assert (accuracy.seeds, accuracy.images, accuracy.test, accuracy.only) == (3, 80, "bootstrap", None)
    assert accuracy.mean == pytest.approx(np.mean(each), abs=1e-12)
    assert accuracy.low is not None and accuracy.high is not None and accuracy.low < accuracy.mean < accuracy.high
    assert "on 80 images over 3 seeds" in accuracy.sentence and "One seed" not in accuracy.sentence


def test_other_test_images_of_each_seed(tmp_path: Path) -> None:
    runs = [
        make(tmp_path / f"seed-{s}" / name, images(60, seed=s), skill, s)
        for name, skill in (("a", 0.5), ("b", 1.5))
        for s in range(2)
    ]
    (accuracy, *_) = compared(*runs).lines
    assert accuracy.seeds == 2 and accuracy.low is not None


def answered(rows: ScoredImages, skill: float) -> Any:
    """The answers of a run, by TEST/PROTOCOL; equal for an image that several seeds share."""
    saved = to_half(scores(rows, skill, int(10 * skill)), "logits")
    predictions = saved.scores.argmax(1)
    return {"t/x": Answers(rows, "logits", (predictions == rows.labels).astype(float), predictions, None, None)}


def differences(seeds: list[ScoredImages]) -> list[Paired]:
    first, second = ({seed: answered(rows, skill) for seed, rows in enumerate(seeds)} for skill in (0.8, 1.2))
    found = compare_images(("a", {**first}), ("b", {**second}), ("t/x", "t/x"))
    assert isinstance(found, list)
    return found


def some(rows: ScoredImages, of: Any) -> ScoredImages:
    return ScoredImages(rows.keys[of], rows.labels[of], rows.classes)


def test_seeds_with_the_same_images_are_as_sure_as_one() -> None:
    """Of as many pictures, whose answers are equal here: a second look at them adds nothing."""
    rows = images(300)
    for alone, twice in zip(differences([rows]), differences([rows, shuffled(rows)]), strict=True):
        assert (twice.low, twice.high) == pytest.approx((alone.low, alone.high), abs=1e-12)


def test_seeds_that_share_most_images_are_as_sure_as_one() -> None:
    """Each seed lacks one picture, which both runs have right, so the seeds have no spread. Independent draws would give 0.71 of it."""
    rows = images(300)
    both = np.flatnonzero((answered(rows, 0.8)["t/x"].correct + answered(rows, 1.2)["t/x"].correct) == 2)[:2]
    alone = differences([rows])[0]
    overlapping = differences([some(rows, np.delete(np.arange(300), one)) for one in both])[0]
    width, overlap = ((line.high or 0) - (line.low or 0) for line in (alone, overlapping))
    assert overlap == pytest.approx(width, rel=0.1)


def test_seeds_with_other_images_add_up() -> None:
    """Two halves that share no picture are as sure as the whole, but for the spread of the seeds, which only adds."""
    rows = images(600)
    (whole, _), (halves, _) = (
        differences([rows]),
        differences([some(rows, slice(0, 300)), some(rows, slice(300, 600))]),
    )
    assert halves.mean == pytest.approx(whole.mean, abs=1e-12)
    assert (halves.high or 0) - (halves.low or 0) >= 0.95 * ((whole.high or 0) - (whole.low or 0))


def test_seeds_of_very_few_images() -> None:
    """A draw may hold no picture of a seed: it is undefined, without a warning."""
    rows = images(5)
    for line in differences([some(rows, slice(0, 2)), some(rows, slice(2, 5))]):
        assert np.isfinite(line.mean) and 0 < line.p <= 1


def test_copies_are_drawn_together(tmp_path: Path) -> None:
    one = compared(make(tmp_path / "a", images(100), 0.8), make(tmp_path / "b", images(100), 1.2)).lines[0]
    rows = images(100, copies=4)
    four = compared(make(tmp_path / "c", rows, 0.8), make(tmp_path / "d", rows, 1.2)).lines[0]
    assert (four.mean, four.low, four.high) == pytest.approx((one.mean, one.low, one.high), abs=1e-12)
    assert four.test == "bootstrap" and "Its 400 images come from 100 pictures" in four.sentence


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (images(120, seed=1), r"different images \(120 and 120 images, splits [0-9a-f]{12} and [0-9a-f]{12}\)"),
        (images(119), "120 and 119 images"),
        (ScoredImages(images().keys, (images().labels + 1) % 3, CLASSES), "120 images have other labels"),
        (
            ScoredImages(images().keys, images().labels, ("ant", "cat", "bee")),
            "classes differ, or are numbered differently",
        ),
    ],
)
def test_what_differs_is_not_paired_and_said(tmp_path: Path, other: ScoredImages, why: str) -> None:
    a, b = make(tmp_path / "a", images(), 1.0), make(tmp_path / "b", other, 2.0)
    found = compared(a, b)
    assert not found.lines and len(found.notes) == 1
    said: list[str] = []
    page = Page(write_report([a, b], tmp_path / "r.html", said.append))
    check_standing_alone(page)
    assert said[-1] == f"not compared: {found.notes[0]}"
    for text in (found.notes[0], page.text):
        assert re.search(why, text) and "test/linear: a and b are not paired" in text


def test_other_protocols_of_one_test_are_paired(tmp_path: Path) -> None:
    rows = images(50)
    a, b = make(tmp_path / "a", rows, 1.0), make(tmp_path / "b", rows, 2.0, key="test/classifier")
    assert compared(a, b).lines[0].where == "test/classifier − test/linear"
    c = make(tmp_path / "c", rows, 2.0, key="other/classifier")
    assert compared(a, c) == Pairs([], [])


def test_other_seeds_of_single_runs_are_paired_and_said(tmp_path: Path) -> None:
    rows = images(50)
    found = compared(make(tmp_path / "a", rows, 1.0, 3), make(tmp_path / "b", rows, 2.0, 4))
    assert "Their training seeds differ: 3 and 4." in found.lines[0].sentence
    more = [make(tmp_path / f"seed-{s}" / "c", rows, 1.5, s) for s in (5, 6)]
    assert "share no seed with predictions" in compared(tmp_path / "a", *more).notes[0]


def test_runs_of_earlier_versions_are_named(tmp_path: Path) -> None:
    rows = images(50)
    runs = [make(tmp_path / name, rows, skill) for name, skill in (("a", 0.5), ("b", 1.0), ("c", 1.5))]
    (runs[1] / PREDICTIONS).unlink()
    write_manifest(runs[1], ["result.json"])
    found = compared(*runs)
    assert {(line.first, line.second) for line in found.lines} == {("a", "c")}
    assert found.notes == [
        "b has no predictions.safetensors, as runs of earlier versions, those without labelled test images, and those of retrieval and "
        "verification alone"
    ]
    for run in runs[::2]:
        (run / PREDICTIONS).unlink()
        write_manifest(run, ["result.json"])
    assert compared(*runs) == Pairs([], [])


def test_damage_is_told_and_the_rest_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = images(50)
    runs = [make(tmp_path / name, rows, skill) for name, skill in (("a", 0.5), ("b", 1.0))]
    content = bytearray((runs[1] / PREDICTIONS).read_bytes())
    content[-1] ^= 1
    (runs[1] / PREDICTIONS).write_bytes(content)
    page = Page(write_report(runs, tmp_path / "r.html"))
    assert f"Damaged: {runs[1]}/{PREDICTIONS} is damaged" in page.text and "2 experiments compared" in page.text
    assert capsys.readouterr().err.count("WARNING") == 1
    unguarded = make(tmp_path / "c", rows, 2.0)
    (unguarded / "MANIFEST.json").unlink()
    (unguarded / PREDICTIONS).write_bytes(b"no tensors")
    assert read_answers(read_run(unguarded)) == {} and "c/predictions.safetensors" in capsys.readouterr().err


def test_many_experiments_are_compared_with_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = images(20)
    runs = [make(tmp_path / str(i), rows, 0.2 + i / 5) for i in range(4)]
    assert len({(line.first, line.second) for line in compared(*runs).lines}) == 6
    monkeypatch.setattr("rootstock.launch.report.pairs.MOST_PAIRS", 5)
    found = compared(*runs)
    assert {(line.first, line.second) for line in found.lines} == {("0", "1"), ("0", "2"), ("0", "3")}
    assert found.notes == ["there are 4 experiments, so each is compared with 0 alone"]


def test_page_and_terminal(tmp_path: Path) -> None:
    rows, said = images(), list[str]()
    runs = [make(tmp_path / name, rows, skill) for name, skill in (("a", 0.5), ("b <i>", 1.5))]
    page = Page(write_report(runs, tmp_path / "r.html", said.append))
    check_standing_alone(page)
    for words in (
        "Image by image",
        "b <i> − a",
        "McNemar",
        "Holm",
        "Reliability, test",
        "Risk and coverage, test",
        "linear: ECE",
    ):
        assert words in page.text, words
    at = next(i for i, line in enumerate(said) if line.startswith("second - first"))
    assert said[at].split() == [
        "second",
        "-",
        "first",
        "metric",
        "difference",
        "95",
        "%",
        "interval",
        "n",
        "test",
        "p",
        "Holm",
    ]
    assert len(said) == at + 4 and said[at + 1].startswith("b <i> - a") and "test/linear accuracy" in said[at + 1]
    # Before that the numbers of the page, and its verdict.
    rows = [re.split(r"  +", line) for line in said[: at - 1]]
    assert rows[0][1:] == ["accuracy, %"] and [row[0] for row in rows[1:3]] == ["a", "b <i>"]
    assert all(0 <= float(row[1]) <= 100 for row in rows[1:3])
    assert rows[4][0] == "b <i>" and re.fullmatch(r"\[[+−].*\]", rows[4][2])  # the difference, over test images
    assert said[at - 1] in page.text


def test_a_repeating_protocol_has_no_single_prediction(tmp_path: Path) -> None:
    rows, stages = images(40), list[StageRuns]()
    for name, skill in (("a", 0.5), ("b", 2.0)):
        run, kept = make(tmp_path / name, rows, skill), Predictions()
        draws = np.stack([scores(rows, skill, seed) for seed in range(3)])
        kept.add("test/fewshot", rows, to_half(draws, "similarities"))
        kept.write(run)
        write_manifest(run, [PREDICTIONS, "result.json"])
        stages.append(StageRuns(name, [read_run(run)]))
    (line,) = pair_stages(stages, [answers_of(stage) for stage in stages]).lines
    right = [np.mean([scores(rows, s, seed).argmax(1) == rows.labels for seed in range(3)]) for s in (0.5, 2.0)]
    assert (line.metric, line.test) == ("accuracy", "bootstrap") and line.mean == pytest.approx(right[1] - right[0])


def test_why_a_run_is_not_compared(tmp_path: Path) -> None:
    rows = images(40)
    a, damaged, open_run, several, other = (make(tmp_path / name, rows, 1.0 + i) for i, name in enumerate("abcde"))
    (damaged / PREDICTIONS).write_bytes((damaged / PREDICTIONS).read_bytes()[:-1])
    (open_run / "result.json").unlink()
    for run in (several, other):
        labels = np.random.default_rng(0).integers(0, 2, (40, 3)).astype(np.uint8)
        kept = Predictions()
        kept.add("test/linear", ScoredImages(rows.keys, labels, CLASSES), to_half(scores(rows, 1.0, 0), "logits"))
        kept.write(run)
        write_manifest(run, [PREDICTIONS, "result.json"])
    found = compared(a, damaged, open_run, several)
    assert not found.lines and [note[:6] for note in found.notes] == ["b has ", "c is n", "d has "]
    assert f"b has no scores that can be read: {damaged / PREDICTIONS} is damaged" in found.notes[0]
    assert found.notes[1] == "c is not finished" and "several classes" in found.notes[2]
    assert [note[:5] for note in compared(several, other).notes] == ["d has", "e has"]
    assert compared(several) == Pairs([], [])


def test_one_run_given_twice_has_a_name_that_can_be_read(tmp_path: Path) -> None:
    run = make(tmp_path / "a", images(20), 1.0)
    assert [stage.name for stage in by_experiment([read_run(run)] * 2)] == [str(run.resolve())] * 2


def test_all_metrics_come_from_the_same_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, asked = images(60), list[int]()
    before = pairs_module.bootstrap_draws
    monkeypatch.setattr(pairs_module, "bootstrap_draws", lambda *a, **k: asked.append(1) or before(*a, **k))
    found = compared(make(tmp_path / "a", rows, 0.5), make(tmp_path / "b", rows, 1.5)).lines
    assert len(found) == 3 and len(asked) == 1


def test_p_of_many_comparisons_is_no_longer_that_of_few_draws() -> None:
    lines = [
        Paired("a", "b", "test/x", "nll", 1, 100, 0.1, 0.08, 0.12, "bootstrap", p) for p in (1e-9, 0.0, *[0.5] * 400)
    ]
    first, second, *_ = adjust(lines)
    assert first.adjusted < 1e-6 and first.adjusted_words == "4e-7" and second.p_words == "<1e-16"
    assert "p < 1e-16 after Holm" in second.sentence and "p = 4e-7 after Holm" in first.sentence


def test_a_protocol_has_one_colour_in_both_figures_of_a_test(tmp_path: Path) -> None:
    """Votes have no reliability, so they come after what has one."""
    rows, kept = images(60), Predictions()
    run = make(tmp_path / "a", rows, 1.0)
    kept.add("test/knn", rows, to_half(np.exp(scores(rows, 1.0, 1)), "votes"))
    kept.add("test/linear", rows, to_half(scores(rows, 1.0, 2), "logits"))
    kept.write(run)
    write_manifest(run, [PREDICTIONS, "result.json"])
    likely, risk = confidence_figures([read_answers(read_run(run))])
    assert [text.split(":")[0] for _, text in risk.legend] == ["linear", "knn"]
    assert likely.legend[0][0] == risk.legend[0][0] != risk.legend[1][0]
