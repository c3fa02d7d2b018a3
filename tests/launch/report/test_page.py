"""The report: its content, and that the page needs no other file."""

import base64
import json
import math
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy
import pytest
import yaml
from PIL import Image

from rootstock.core.config.yaml_file import parse_override
from rootstock.core.errors import UserError
from rootstock.core.evaluate.predictions import Predictions, ScoredImages, to_half
from rootstock.launch.pipeline.table import tabulate
from rootstock.launch.report.commands import commands_of
from rootstock.launch.report.confusion import confusions
from rootstock.launch.report.curves import curves
from rootstock.launch.report.differences import differences_table
from rootstock.launch.report.figures import heat, scatter
from rootstock.launch.report.page import write_report
from rootstock.launch.report.records import RunRecord, StageRuns, by_experiment, read_run
from rootstock.launch.report.results import averaged, kind_of, looks_note, summarise
from rootstock.launch.report.stages import share_of_tests
from rootstock.launch.report.tables import duration, is_fraction, results_tables

CLASSES = ["cat", "dog & <b>", "鳥", "$x_$"]
VOID = {"meta", "link", "img", "wbr", "br"}


def make_run(path: Path, seed: int = 0, accuracy: float = 0.8, verb: str = "adapt", **config: Any) -> Path:
    """A finished run with every file that a run can have."""
    (path / "pictures").mkdir(parents=True)
    science = {"data": {"train": "folder:a&b"}, "method": {"name": "dann"}, "seed": seed, **config}
    (path / "config.yaml").write_text(yaml.safe_dump({"verb": verb, **science, "run": {"dir": str(path)}}))
    (path / "run.json").write_text(
        json.dumps({"verb": verb, "versions": {"torch": "9.9"}, "commit": "abc", "host": "h"})
    )
    rows: list[dict[str, Any]] = [{"step": s, "loss": 5 / s, "lr": 1e-3, "images_per_s": 100.0} for s in range(1, 400)]
    rows += [{"step": s, "eval/test/knn/accuracy": s / 500} for s in range(100, 400, 100)]
    rows.append({"step": 400, "loss": math.nan})
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 401, "lo')
    confusion = [[8, 1, 1, 0], [0, 9, 0, 1], [2, 0, 7, 1], [0, 0, 0, 10]]
    result = {
        "task": verb,
        "run": str(path),
        "seed": seed,
        "data": {"split": {"target": "0123456789abcdef"}},
        "seen_unlabelled": {"pretrain": 0},
        "metrics": {
            "target/classifier/accuracy": accuracy,
            "target/classifier/f1": accuracy,
            "source/knn/accuracy": 0.97,
        },
        "intervals": {"target/classifier/accuracy": [accuracy - 0.05, accuracy + 0.05]},
        "details": {"target/classifier": {"classes": CLASSES, "confusion": confusion}},
        "selection": "tuned-on-target",
        "seconds": 90.0,
    }
    (path / "result.json").write_text(json.dumps(result))
    Image.fromarray(numpy.zeros((64, 96, 3), numpy.uint8)).save(path / "pictures/views.png")
    (path / "pictures/captions.json").write_text(json.dumps({"views.png": "Two views <each>"}))
    random = numpy.random.default_rng(seed)
    chart: dict[str, Any] = {axis: random.normal(size=60).tolist() for axis in ("x", "y")}
    chart |= {"label": [i % 4 for i in range(60)], "domain": [i % 2 for i in range(60)], "classes": CLASSES}
    (path / "map.json").write_text(json.dumps({**chart, "domains": ["plain", "photo"], "method": "t-SNE of features"}))
    return path


def make_pipeline(path: Path, seeds: int) -> Path:
    """A pipeline's folder: a control and a method over `seeds` seeds."""
    names = {"control": 0.7, "cdan": 0.8}
    results: dict[str, list[Mapping[str, Any]]] = {name: [] for name in names}
    for seed in range(seeds):
        for name, accuracy in names.items():
            folder = make_run(path / f"seed-{seed}" / name, seed, accuracy + 0.01 * seed, stage_of=name)
            results[name].append(json.loads((folder / "result.json").read_text()))
    rows = [
        {"label": "Control", "stage": "control", "group": "Group <1>", "note": "weight 0"},
        {"label": "A rather long name of a method, CDAN+E", "stage": "cdan", "emphasis": True},
    ]
    report = {"title": "Title & more", "text": "A paragraph.", "columns": {"target": "digits-m", "source": "Source"}}
    report |= {"rows": rows, "comparisons": [{"label": "gain", "a": rows[1]["label"], "b": "Control"}]}
    stages = {name: {"verb": "adapt", "config": "x.yaml", "set": {}} for name in names}
    config = {"run": {"dir": str(path)}, "seeds": list(range(seeds)), "stages": stages, "report": report}
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (path / "result.json").write_text(json.dumps(tabulate(report, results)))
    return path


class Page(HTMLParser):
    """Parses a page strictly enough to notice unclosed elements; collects visible text, ids and references."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def check_standing_alone(page: Page) -> None:
    """Nothing fetched, only the page's own scripts, unique ids, all references resolved, no matplotlib placeholder left."""
    policy = [value for name, value in page.attributes if name == "content" and "default-src" in value]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"]
    assert page.tags.count("script") <= 3
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for name, value in page.attributes:
        assert name != "src" or value.startswith("data:image/")
        assert name != "href" or value.startswith("data:") or value.removeprefix("#") in ids
        assert name != "clip-path" or value.removeprefix("url(#").removesuffix(")") in ids
        assert not name.startswith("on")
    still = re.sub(r"<script.*?</script>", "", page.source, flags=re.DOTALL)
    assert not re.search(r"url\((?!#)|@import|#0400\w\w|#010101|#020202|#030303", still)


def test_page_of_a_pipeline(tmp_path: Path) -> None:
    out = write_report([make_pipeline(tmp_path / "p", 3)], tmp_path / "out" / "report.html")
    page = Page(out)
    check_standing_alone(page)
    for words in (
        "Title & more",
        "A paragraph.",
        "2 stages · 3 seeds · 9 min 00 s in all",
        "Group <1>",
        "weight 0",
        "accuracy on digits-m, %",
        "71.0",
        "81.0",
        "+10.0",
        "found while looking at labels of the target",
        "95 % t-interval over 3 seeds",
        "No evaluation image was seen in training",
        "t-SNE of features, seed 0",
        "dog & <b>",
        "鳥",
        "$x_$",
        "Two views <each>",
        "torch 9.9",
        "target 0123456789ab",
        "folder:a&b",
    ):
        assert words in page.text, words
    assert out.stat().st_size < 3_000_000
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


def test_one_seed_is_written_as_one_run_with_its_bootstrap(tmp_path: Path) -> None:
    page = Page(write_report([make_pipeline(tmp_path / "p", 1)], tmp_path / "r.html"))
    assert "one run" in page.text and "[65.0, 75.0]" in page.text
    assert "bootstrap intervals over its test images" in page.text and "t-interval" not in page.text
    assert "There is only one seed" in page.text


def test_page_of_one_run_shows_every_protocol(tmp_path: Path) -> None:
    page = Page(write_report([make_run(tmp_path / "dann")], tmp_path / "r.html"))
    check_standing_alone(page)
    for words in (
        "adapt: dann",
        "target/classifier",
        "source/knn",
        "97.0",
        "Training loss",
        "Online evaluation",
        "By domain",
    ):
        assert words in page.text, words


def test_commands_of_a_page_are_read_as_they_were_meant() -> None:
    record = RunRecord(Path("runs: my 'first'"), {"seed": 0}, {"verb": "pretrain"}, result={"seed": 0})
    given = {
        key: parse_override(value, "", [])
        for _, command in commands_of(StageRuns("a", [record]))
        for key, equals, value in (word.partition("=") for word in shlex.split(command))
        if equals
    }
    assert given["backbone.weights"] == "runs: my 'first'" and given["seed"] == 1
    assert given["run.dir"] == "runs: my 'first'-seed1"


def test_runs_that_differ_by_seed_become_one_row(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"a{s}", s, 0.7, lr=1) for s in range(2)]
    runs += [make_run(tmp_path / f"seed-{s}" / "b", s, 0.8 + s / 10, weights=f"seed-{s}/ssl") for s in range(2)]
    stages = by_experiment([read_run(run) for run in runs])
    assert [[record.seed for record in stage.records] for stage in stages] == [[0, 1], [0, 1]]
    assert [stage.name for stage in stages] == ["a0", "b"]
    page = Page(write_report(runs, tmp_path / "r.html"))
    assert "2 experiments compared" in page.text and "85.0" in page.text and "+15.0" in page.text


def test_the_same_seed_again_is_no_further_evidence(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, 0) for name in ("first", "again")]
    assert [stage.name for stage in by_experiment([read_run(run) for run in runs])] == ["first", "again"]


def test_a_run_that_was_killed_has_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "result.json").unlink()
    shutil.rmtree(run / "pictures")
    (run / "map.json").unlink()
    page = Page(write_report([run], tmp_path / "r.html"))
    assert "1 run unfinished" in page.text and "Training loss" in page.text


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    pipeline, run = make_pipeline(tmp_path / "p", 1), make_run(tmp_path / "run")
    with pytest.raises(UserError, match="nowhere does not exist; expected the folder of a run"):
        write_report([tmp_path / "nowhere"], tmp_path / "r.html")
    with pytest.raises(UserError, match="holds no config"):
        write_report([tmp_path], tmp_path / "r.html")
    damaged = make_run(tmp_path / "below" / "damaged")
    (damaged / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"^[^ ]*below holds no config"):  # whatever lies below it
        write_report([tmp_path / "below"], tmp_path / "r.html")
    with pytest.raises(UserError, match="p is a pipeline"):
        write_report([run, pipeline], tmp_path / "r.html")
    with pytest.raises(UserError, match="no run given"):
        write_report([], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_large_pictures_are_made_smaller(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    noise = numpy.random.default_rng(0).integers(0, 256, (300, 2000, 3), numpy.uint8)
    Image.fromarray(noise).save(run / "pictures/noise.png")
    page = Page(write_report([run], tmp_path / "r.html"))
    (source,) = [value for name, value in page.attributes if name == "src" and "webp" in value]
    assert len(base64.b64decode(source.partition(",")[2])) < (run / "pictures/noise.png").stat().st_size / 3


def test_only_pngs_are_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run of somebody else may hold a PostScript file, which Pillow would hand to Ghostscript."""
    run = make_run(tmp_path / "run")
    Image.fromarray(numpy.zeros((8, 8, 3), numpy.uint8)).save(run / "pictures/script.png", format="EPS")
    write_report([run], tmp_path / "r.html")
    assert f"WARNING: {run}/pictures/script.png is left out (it is no PNG)" in capsys.readouterr().err


def row(values: Sequence[float], kind: str = "inductive", **more: Any) -> dict[str, Any]:
    mean = sum(values) / len(values)
    base = {
        "label": "r",
        "stage": "s",
        "metric": "test/knn/accuracy",
        "n": len(values),
        "mean": mean,
        "selection": ["last"],
    }
    return {**base, "low": None, "high": None, "values": list(values), "kind": kind, **more}


def test_inductive_and_transductive_rows_are_never_in_one_table() -> None:
    tables = results_tables([row([0.5]), row([0.6], "transductive"), row([0.7])], {})
    assert [table.heading.split(":")[0] for table in tables] == ["Inductive", "Transductive"]
    assert [len(table.groups[0][1]) for table in tables] == [2, 1]


def test_results_of_tests_that_were_trained_on_are_never_called_inductive() -> None:
    """A handful of images in one seed of several is enough; the page's facts say how many."""
    clean: dict[str, Any] = {
        "metrics": {"test/knn/accuracy": 0.5},
        "seen_unlabelled": {"pretrain": 0},
        "seen_labelled": 0,
    }
    spoilt = {**clean, "seen_labelled": 3, "data": {"n": {"train": 50, "test": 10, "far": 20}}}
    assert [kind_of(one) for one in (clean, spoilt, {**spoilt, "seen_unlabelled": {"adapt": 2}})] == [
        "inductive", "labelled", "labelled"
    ]  # fmt: skip
    assert summarise([clean, spoilt], label="a", stage="b")["kind"] == "labelled"
    tables = results_tables([row([0.5]), row([0.9], "labelled")], {})
    assert [table.heading.split(":")[0] for table in tables] == [
        "Inductive", "Trained on evaluation images with their labels"
    ]  # fmt: skip
    assert [share_of_tests(3, one) for one in (spoilt, clean)] == ["3 of 30 (10.0%)", "3"]
    mean = averaged([[{**clean, "seed": 0}], [{**spoilt, "seed": 0}]])
    assert [kind_of(one) for one in mean] == ["labelled"]


def test_marks_stand_where_the_axis_says() -> None:
    (table,) = results_tables([row([0.4, 0.6], low=0.3, high=0.7), row([0.8])], {})
    (a, lowest, _), (b, highest, _) = table.ticks[0], table.ticks[-1]
    first, last = float(lowest), float(highest)
    plot = table.groups[0][1][0].plot
    assert plot is not None
    marks = [plot.mean, plot.low, plot.high, *plot.values]
    for position, value in zip(marks, [50, 30, 70, 40, 60], strict=True):
        assert position == pytest.approx(a + (value - first) * (b - a) / (last - first), abs=0.02)
        assert position is not None and 0 <= position <= 100


def test_intervals_never_leave_the_range_of_their_metric() -> None:
    """Nor do those that an earlier version wrote into the result of a pipeline; a value without a range keeps its own."""
    (table,) = results_tables([row([0.97, 1.0], low=0.8, high=1.17), row([0.0, 0.1], low=-0.59, high=0.69)], {})
    assert [line.interval for line in table.groups[0][1]] == ["[80.0, 100.0]", "[0.0, 69.0]"]
    plots = [line.plot for line in table.groups[0][1] if line.plot is not None]
    marks = [mark for plot in plots for mark in (plot.low, plot.high)]
    assert len(plots) == 2
    assert all(mark is not None and 0 <= mark <= 100 for mark in marks)
    result = [{"metrics": {"t/x/accuracy": value, "t/x/nll": value, "t/x/kappa": value}} for value in (0.9, 1.0, 1.0)]
    made = {
        kind: summarise(result, label="x", stage="x", metric=f"t/x/{kind}") for kind in ("accuracy", "nll", "kappa")
    }
    assert made["accuracy"]["high"] == 1.0 == made["kappa"]["high"] and made["nll"]["high"] > 1.1
    assert (is_fraction("t/x/accuracy", [0.5]), is_fraction("t/x/nll", [0.5]), is_fraction("t/x/kappa", [0.5])) == (
        True,
        False,
        False,
    )
    wide = {"label": "d", "a": "x", "b": "y", "n": 2, "mean": 0.5, "low": -1.4, "high": 2.4, "values": [1.0, 0.0]}
    assert differences_table([wide]).groups[0][1][0].interval == "[−100.0, +100.0]"


def test_comparisons_of_a_pipeline_are_made_image_by_image(tmp_path: Path) -> None:
    pipeline = make_pipeline(tmp_path / "p", 2)
    random = numpy.random.default_rng(0)
    images = ScoredImages(numpy.arange(60), random.integers(0, 4, 60), tuple(CLASSES))
    for seed in range(2):
        for name, skill in (("control", 1.0), ("cdan", 4.0)):
            kept, noise = Predictions(), random.normal(size=(60, 4))
            kept.add("target/classifier", images, to_half(noise + skill * numpy.eye(4)[images.labels], "logits"))
            kept.write(pipeline / f"seed-{seed}" / name)
    said: list[str] = []
    page = Page(write_report([pipeline], tmp_path / "r.html", said.append))
    check_standing_alone(page)
    assert "Image by image" in page.text and "A rather long name of a method, CDAN+E − Control" in page.text
    at = next(i for i, line in enumerate(said) if line.startswith("second - first"))
    assert len(said) == at + 4 and "60 x 2 seeds" in said[at + 1]
    # A primary contrast is judged by its own interval: its metric does not come again, as an exploratory one.
    result = json.loads((pipeline / "result.json").read_text())
    for one in result["comparisons"]:
        one["primary"] = True
    (pipeline / "result.json").write_text(json.dumps(result))
    again: list[str] = []
    write_report([pipeline], tmp_path / "r.html", again.append)
    assert len(again) == len(said) - 1
    assert "/classifier accuracy" in "".join(said[at:]) and "/classifier accuracy" not in "".join(again[at:])
    # A row that is a mean over tasks is not compared by its first task.
    for one in result["rows"]:
        one["stages"] = [one["stage"], one["stage"]]
    (pipeline / "result.json").write_text(json.dumps(result))
    over_tasks: list[str] = []
    page = Page(write_report([pipeline], tmp_path / "r.html", over_tasks.append))
    assert (
        not any("x 2 seeds" in line for line in over_tasks)
        and "Not compared: rows that are means over tasks" in page.text
    )


def test_differences_are_signed_and_hold_zero() -> None:
    entry = {
        "label": "d",
        "a": "x",
        "b": "y",
        "n": 2,
        "mean": -0.025,
        "low": -0.03,
        "high": -0.02,
        "values": [-0.02, -0.03],
    }
    table = differences_table([entry])
    line = table.groups[0][1][0]
    assert (line.mean, line.interval) == ("−2.5", "[−3.0, −2.0]")
    assert any(zero for _, _, zero in table.ticks)


def test_confusion_sums_seeds_and_scores_like_a_loop() -> None:
    classes = ["a", "b", "c"]
    matrices = [[[3, 1, 0], [0, 2, 0], [0, 0, 0]], [[1, 0, 0], [2, 2, 0], [1, 0, 0]]]
    results = [{"details": {"t/knn": {"classes": classes, "confusion": m}}} for m in matrices]
    (found,) = confusions(results)
    total = [[matrices[0][i][j] + matrices[1][i][j] for j in range(3)] for i in range(3)]
    assert [[cell[0] for cell in cells] for _, cells in found.rows] == total
    for i, (_, (precision, recall, f1), support) in enumerate(found.scores):
        true, predicted = sum(total[i]), sum(line[i] for line in total)
        assert support == true
        assert recall == f"{100 * total[i][i] / true:.1f}"
        assert precision == (f"{100 * total[i][i] / predicted:.1f}" if predicted else "–")
        assert f1 == f"{200 * total[i][i] / (true + predicted):.1f}"
    assert found.mistakes[0] == ("b", "a", 2) and found.seeds == 2


def test_many_classes_are_shown_as_shades() -> None:
    matrix = numpy.eye(40, dtype=int).tolist()
    details = {"classes": [f"class {i}" for i in range(40)], "confusion": matrix}
    (found,) = confusions([{"details": {"t/knn": details}}])
    assert found.figure is not None and not found.rows
    assert heat(matrix, "m").svg.count("h1v1h-1z") == 40


def test_curves_are_thinned_to_means_and_skip_what_is_not_finite() -> None:
    rows = [{"step": s, "loss": float(s % 2), "lr": math.inf} for s in range(1000)]
    (loss,) = curves([rows])
    assert loss.title == "Training loss" and "mean of 7 logged steps" in loss.caption
    assert loss.svg.count("L ") < 400


def test_every_point_of_a_map_is_drawn_once_inside_the_frame() -> None:
    random = numpy.random.default_rng(0)
    chart = {"x": random.normal(size=500).tolist(), "y": (5 * random.normal(size=500)).tolist()}
    chart |= {"label": random.integers(-1, 3, 500).tolist(), "classes": ["a", "b", "c"]}
    figure = scatter(chart, "label")
    points = [tuple(map(float, point)) for point in re.findall(r"M([\d.]+) ([\d.]+)h0", figure.svg)]
    assert len(points) == 500
    assert all(0 <= x <= 340 and 0 <= y <= 340 for x, y in points)
    assert [name for _, name in figure.legend] == ["a", "b", "c"]


def test_durations() -> None:
    assert [duration(s) for s in (1.23, 59.6, 90, 3725)] == ["1.2 s", "60 s", "1 min 30 s", "1 h 02 min"]


def test_every_row_of_a_target_test_says_how_often_its_labels_were_looked_at() -> None:
    results = [
        {
            "metrics": {
                "target/classifier/accuracy": 0.5,
                "source/classifier/accuracy": 0.9,
                "far/classifier/accuracy": 0.4,
            },
            "looks": {
                test: {"n": n + more, "since": "2026-03-01", "note": ""} for test, more in (("target", 0), ("far", 5))
            },
            "seed": n,
        }
        for n in (1, 2)
    ]
    row = summarise(results, label="DANN", stage="dann", tests=["source"])
    assert row["looks"] == {"target": {"n": 2, "since": "2026-03-01", "note": ""}}
    (table,) = results_tables([row], {})
    assert table.groups[0][1][0].note == "looks: 2 (unknown before 2026-03-01)"
    both = summarise(results, label="DANN", stage="dann", tests=["far"])
    assert looks_note(both) == "target looks: 2 (unknown before 2026-03-01); far looks: 7 (unknown before 2026-03-01)"
    source = summarise(results, label="DANN", stage="dann", metric="source/classifier/accuracy")
    assert "looks" not in source and looks_note(source) == ""
