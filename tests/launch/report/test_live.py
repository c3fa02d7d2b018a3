"""What the page's script gets: the numbers of the runs, each picture once, the same bytes for the same runs, and no more than fits."""

import base64
import gzip
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from rootstock.core.evaluate.predictions import Predictions, ScoredImages, to_half
from rootstock.launch.report import live, maps
from rootstock.launch.report.folder import odd_map
from rootstock.launch.report.live import MISSING
from rootstock.launch.report.maps import Thumbnails
from rootstock.launch.report.page import write_report
from rootstock.launch.report.records import read_run
from rootstock.tests.launch.report.test_page import CLASSES, Page, check_standing_alone, make_pipeline, make_run

SIDE, COLUMNS = 8, 10


def pictured(run: Path, shift: int = 0) -> Path:
    """A run whose map has identities, neighbours and thumbnails of one colour each; right for the first half of the target's."""
    chart = json.loads((run / "map.json").read_text())
    keys = [1000 + shift + i for i in range(60)]
    identities = [key - key % 2 for key in keys]  # as blends of one digit, two and two share theirs
    near = [[(i + step) % 60 for step in (1, 2, 3)] for i in range(60)]
    said = {"file": "map.webp", "side": SIDE, "columns": COLUMNS, "pixels": keys}
    chart |= {
        "key": identities,
        "row": list(range(60)),
        "near": near,
        "thumbnails": said,
        "domains": ["source", "target"],
    }
    (run / "map.json").write_text(json.dumps(chart))
    sheet = numpy.zeros((6 * SIDE, COLUMNS * SIDE, 3), numpy.uint8)
    for i, key in enumerate(keys):
        sheet[i // COLUMNS * SIDE :, i % COLUMNS * SIDE :][:SIDE, :SIDE] = (key * 37 % 256, key * 91 % 256, 128)
    Image.fromarray(sheet).save(run / "map.webp", lossless=True)
    labels = numpy.array(chart["label"])
    guessed = numpy.where(numpy.arange(60) < 30, labels, (labels + 1) % 4)
    images = ScoredImages(numpy.array(identities), labels, tuple(CLASSES))
    kept = Predictions()
    kept.add("target/classifier", images, to_half(8.0 * numpy.eye(4)[guessed], "logits"))
    kept.write(run)
    return run


def unpacked(page: Path, name: str = "live-data") -> str:
    found = re.search(rf'id="{name}">([^<]*)<', page.read_text(encoding="utf-8"))
    assert found is not None
    return gzip.decompress(base64.b64decode(found[1])).decode()


def test_the_numbers_are_those_of_the_run(tmp_path: Path) -> None:
    run = pictured(make_run(tmp_path / "dann"))
    data = json.loads(unpacked(write_report([run], tmp_path / "r.html")))
    loss = next(plot for plot in data["plots"] if plot["title"] == "Training loss")
    (line,) = loss["lines"]
    assert line["x"] == list(range(1, 400)) and line["y"] == [
        pytest.approx(5 / step, rel=1e-4) for step in range(1, 400)
    ]
    online = next(plot for plot in data["plots"] if plot["title"] == "Online evaluation")
    assert online["lines"][0]["y"] == [20, 40, 60] and online["smooth"]
    (chart,) = data["maps"]
    assert chart["near"][59] == [0, 1, 2] and chart["scored"] == "target/classifier"
    target = [i for i in range(60) if i % 2]  # no protocol has scored the source
    assert [chart["points"]["right"][i] for i in target] == [int(i < 30) for i in target]
    assert all(chart["points"]["guess"][i] == (i % 4 if i < 30 else (i + 1) % 4) for i in target)
    assert {chart["points"]["right"][i] for i in range(0, 60, 2)} == {-1}


def test_the_same_runs_give_the_same_page(tmp_path: Path) -> None:
    runs = [pictured(make_run(tmp_path / f"a{seed}", seed)) for seed in range(2)]
    first, second = (write_report(runs, tmp_path / name).read_bytes() for name in ("1.html", "2.html"))
    assert first == second


def test_a_picture_stands_once_whatever_maps_show_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [
        pictured(make_run(tmp_path / name, 0, lr=i), shift)
        for i, (name, shift) in enumerate([("a", 0), ("b", 0), ("c", 40)])
    ]
    page = write_report(runs, tmp_path / "r.html")
    data = json.loads(unpacked(page))
    assert data["thumbs"]["count"] == 100 and len(data["maps"]) == 3
    one, other, third = (chart["points"]["thumb"] for chart in data["maps"])
    assert one == other == list(range(60)) and third == list(range(40, 100))
    with Image.open(io.BytesIO(base64.b64decode(data["thumbs"]["src"].partition(",")[2]))) as sheet:
        pixels = numpy.asarray(sheet.convert("RGB")).astype(int)
    columns = data["thumbs"]["columns"]
    for number in (0, 59, 99):
        square = pixels[number // columns * SIDE :, number % columns * SIDE :][:SIDE, :SIDE]
        key = 1000 + number
        assert numpy.abs(square[2:6, 2:6].mean((0, 1)) - [key * 37 % 256, key * 91 % 256, 128]).max() < 40, number
    monkeypatch.setattr(maps, "MOST_PICTURES", 70)
    few = write_report(runs, tmp_path / "few.html")
    assert json.loads(unpacked(few))["thumbs"]["count"] == 70
    assert "The maps show the first 70 pictures; 30 points have none." in Page(few).text


def test_a_page_of_many_long_runs_stays_small(tmp_path: Path) -> None:
    """Twelve runs of 2,000 logged steps each."""
    rows = [{"step": s, "loss": 1 / (1 + s), "lr": s * 1e-6, "grad_norm": float(s % 7)} for s in range(2000)]
    long = "".join(json.dumps(row) + "\n" for row in rows)
    runs = []
    for i in range(12):
        runs.append(make_run(tmp_path / f"r{i}", 0, lr=i))
        (runs[-1] / "metrics.jsonl").write_text(long)
    page = write_report(runs, tmp_path / "r.html")
    data = json.loads(unpacked(page))
    assert sum(len(line["x"]) for plot in data["plots"] for line in plot["lines"]) <= 12 * 6 * 700
    assert page.stat().st_size < 3_000_000


def test_of_very_many_runs_the_later_ones_are_shown_briefly(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"r{i}", 0, lr=i) for i in range(27)]
    page = Page(write_report(runs, tmp_path / "r.html"))
    assert page.tags.count("img") == 24 and "are those of the first 24; the page of one run has its own." in page.text
    assert page.text.count("folder:a&b") >= 27 and len(json.loads(unpacked(tmp_path / "r.html"))["maps"]) == 24
    few = Page(write_report(runs[:2], tmp_path / "few.html"))
    assert few.tags.count("img") == 2 and "are those of the first" not in few.text


def test_without_bokeh_the_page_is_still_and_says_how_it_would_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_library", lambda: "")
    page = Page(write_report([make_pipeline(tmp_path / "p", 1)], tmp_path / "r.html"))
    check_standing_alone(page)
    assert page.tags.count("script") == 1 and MISSING in page.text and "Training loss" in page.text
    assert page.tags.count("svg") > 4


def test_the_library_is_whole_and_keeps_its_licence(tmp_path: Path) -> None:
    code = unpacked(write_report([make_run(tmp_path / "a")], tmp_path / "r.html"), "live-library")
    assert "Copyright (c) Anaconda, Inc., and Bokeh Contributors" in code and "register_plugin" in code
    assert "</script" not in code.lower()


@pytest.mark.parametrize(
    "damage",
    [
        {"near": [[99]] * 60},
        {"near": [["x"]] * 60},
        {"near": 3},
        {"key": ["a"] * 60},
        {"key": [1]},
        {"row": [1]},
        {"thumbnails": [1]},
    ],
    ids=str,
)
def test_a_map_of_another_shape_is_damaged(tmp_path: Path, damage: dict[str, Any]) -> None:
    chart = json.loads((pictured(make_run(tmp_path / "a")) / "map.json").read_text())
    assert odd_map(chart) == "" != odd_map({**chart, **damage})


@pytest.mark.parametrize(
    "said",
    [{"side": 9}, {"columns": 10**9}, {"file": "../map.webp"}, {"side": 0}, {"side": "8"}, {"pixels": [1]}],
    ids=str,
)
def test_a_sheet_that_does_not_fit_is_left_out(tmp_path: Path, said: dict[str, Any]) -> None:
    run = pictured(make_run(tmp_path / "a"))
    chart = json.loads((run / "map.json").read_text())
    chart["thumbnails"] |= said
    (run / "map.json").write_text(json.dumps(chart))
    assert Thumbnails().add(read_run(run)) == [-1] * 60
