"""The measurements of benchmarks/ at toy size: that they run, compare equal work, and count rightly. Nothing is timed here."""

import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

SCRIPTS = ("input", "page", "peers", "pictures", "timing")


class Scripts:
    """The modules of benchmarks/, which import each other as scripts of one folder do."""

    input: ModuleType
    page: ModuleType
    peers: ModuleType
    pictures: ModuleType
    timing: ModuleType


@pytest.fixture(scope="module")
def scripts(script: Callable[[str], ModuleType]) -> Scripts:
    found = Scripts()
    for name in SCRIPTS:
        setattr(found, name, script(name))
    return found


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The scripts compute with one thread; other tests with as many as they had."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def costs(scripts: Scripts, *values: float) -> list[object]:
    return [scripts.timing.Cost(value, 1) for value in values]


def medians(ratios: Sequence[float], resamples: int, seed: int) -> list[float]:
    """The bootstrap of a median, written out."""
    drawn = np.random.default_rng(seed)
    return [float(np.median([ratios[int(drawn.integers(len(ratios)))] for _ in ratios])) for _ in range(resamples)]


@pytest.mark.slow
def test_every_section_runs_at_toy_size(
    scripts: Scripts, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripts.timing, "SKIP", 1)
    monkeypatch.setattr(scripts.timing, "FEWEST", 1)
    out = tmp_path / "input.md"
    assert scripts.input.main(["--toy", "--trials", "1", "--markdown", str(out)]) == 0
    page = out.read_text()
    assert all(part in page for part in capsys.readouterr().out.split("\n\n") if part.startswith("|"))
    titles = re.findall("^## (.*)$", page, re.MULTILINE)
    assert len(titles) == 8 + 2 and titles[-2:] == ["Without a row", "Gates"]
    for name in (
        "lightly SimCLRTransform",
        "torchvision v2, uint8 tensors",
        "ours from a pack (raw)",
        "ours, 2 workers",
    ):
        assert f"| {name} |" in page
    assert all(f"| {gate.what} |" in page for gate in scripts.input.GATES)
    assert "FFCV" in page and str(tmp_path) not in page


def test_rounds_are_interleaved_and_as_long_as_asked(scripts: Scripts) -> None:
    seen: list[tuple[str, int]] = []

    def timer(contender: object, batches: int) -> object:
        name: str = contender.name  # pyright: ignore[reportAttributeAccessIssue]
        seen.append((name, batches))
        return scripts.timing.Cost({"a": 1000.0, "b": 250.0}[name], 4 * batches)  # batches of 4: 4 ms and 1 ms

    ways = [scripts.timing.Contender(name, lambda batches: iter(())) for name in "ab"]
    found = scripts.timing.interleaved(ways, timer, trials=5, seconds=0.02)
    assert {name: len(trials) for name, trials in found.items()} == {"a": 5, "b": 5}
    rounds = [seen[k : k + 2] for k in range(len(seen) - 10, len(seen), 2)]
    assert all(sorted(one) == [("a", 5), ("b", 20)] for one in rounds)


def test_a_ratio_is_that_of_its_round(scripts: Scripts) -> None:
    """A machine that is slow for a round is slow for both: the ratio stays 3."""
    slow = [1.0, 5.0, 2.0, 9.0]
    ratio = scripts.timing.Interval.ratio(costs(scripts, *(3 * s for s in slow)), costs(scripts, *slow))
    assert ratio == pytest.approx((3.0, 3.0, 3.0))


def test_the_interval_is_the_bootstraps(scripts: Scripts) -> None:
    ratios = np.random.default_rng(3).lognormal(sigma=0.3, size=15).tolist()
    found = scripts.timing.Interval.ratio(costs(scripts, *ratios), costs(scripts, *[1.0] * 15))
    low, high = np.quantile(medians(ratios, 2000, seed=1), [0.025, 0.975])
    assert found.median == pytest.approx(np.median(ratios))
    assert found.low == pytest.approx(low, abs=0.05) and found.high == pytest.approx(high, abs=0.05)


def test_cpu_time_is_told_by_images(scripts: Scripts, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.5])
    monkeypatch.setattr(scripts.timing.time, "process_time", lambda: next(clock))
    cost = scripts.timing.on_one_core(scripts.timing.Contender("a", lambda batches: iter([100] * batches)), 5)
    assert cost.main == pytest.approx(1000.0) and cost.images == 500


def test_what_loaders_begin_with_is_not_counted(scripts: Scripts, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock starts after SKIP batches and stops at the last one."""
    now = [0.0]
    monkeypatch.setattr(scripts.timing.time, "perf_counter", lambda: now[0])

    def batches(count: int) -> Iterator[int]:
        for k in range(count):
            now[0] += 100.0 if k < scripts.timing.SKIP else 1.0
            yield 10

    cost = scripts.timing.by_the_clock(scripts.timing.Contender("a", batches), 4)
    assert cost.main == pytest.approx(1e5) and cost.images == 40


@pytest.mark.parametrize(("factor", "status"), [(1.01, 0), (0.99, 1)])
def test_gates_hold_from_their_floor_on(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch, factor: float, status: int
) -> None:
    """Sections whose costs are known; only --gate makes a failure the exit status."""
    script = scripts.input
    keys = sorted({gate.section for gate in script.GATES})

    def costed(key: str) -> dict[str, list[object]]:
        # every gate's slower way takes `factor` times its floor of what its faster way takes
        value = {"ours": 1.0, "ours, 1 worker": 1.0}
        for gate in (gate for gate in script.GATES if gate.section == key):
            if gate.slower in value:
                value[gate.faster] = value[gate.slower] / (factor * gate.floor)
            else:
                value[gate.slower] = value[gate.faster] * factor * gate.floor
        return {name: costs(scripts, cost, cost) for name, cost in value.items()}

    made = [script.Section(key, key, [key], None, "ours") for key in keys]
    monkeypatch.setattr(script, "sections", lambda *_: iter(made))
    monkeypatch.setattr(script, "interleaved", lambda contenders, *_: costed(contenders[0]))
    assert script.main([]) == 0
    assert script.main(["--gate"]) == status


def test_a_gate_that_was_not_measured_does_not_hold(scripts: Scripts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripts.input, "sections", lambda *_: iter(()))
    assert scripts.input.main(["--gate", "--only", "moved96"]) == 1


@pytest.mark.parametrize(
    "views",
    [
        torch.zeros(1, 4, 3, 8, 8),
        torch.zeros(2, 4, 3, 9, 9),
        torch.zeros(2, 4, 1, 8, 8),
        torch.zeros(2, 4, 3, 8, 8, dtype=torch.uint8),
    ],
    ids=["one view", "size", "channels", "bytes"],
)
def test_unequal_work_is_refused(scripts: Scripts, views: torch.Tensor) -> None:
    assert scripts.peers.counted(torch.zeros(2, 4, 3, 8, 8), 8) == 4
    with pytest.raises(ValueError, match="not two float views"):
        scripts.peers.counted(views, 8)


def test_ours_and_lightlys_views_are_alike(scripts: Scripts, tmp_path: Path) -> None:
    """Equal work, as far as means and spreads tell: the same augmentation of the same pictures."""
    side, count = 32, 96
    pixels = np.stack([np.asarray(picture) for picture in scripts.pictures.photographs(side, side, count)])
    np.savez(tmp_path / "pictures.npz", images=pixels)
    job = scripts.peers.Job(pixels, side, count)
    ours = scripts.input.Ours(f"npz:{tmp_path / 'pictures.npz'}", job)
    (sample,) = ours.samples(1)
    made = ours.views(sample, scripts.input.Draws(0, sample.positions)).images
    transform = scripts.peers.SimCLRTransform(input_size=side)
    torch.manual_seed(0)
    theirs = torch.stack([torch.stack(transform(scripts.peers.pil_picture(item))) for item in pixels], 1)
    assert made.shape == theirs.shape
    # brightness alone moves a picture's mean by up to 80 %, so the mean of 2 x 96 views is known to about 0.1
    assert float(made.mean()) == pytest.approx(float(theirs.mean()), abs=0.35)
    assert float(made.std()) == pytest.approx(float(theirs.std()), rel=0.2)
    roughness = [float((x[..., 1:] - x[..., :-1]).abs().mean()) for x in (made, theirs)]
    assert roughness[0] == pytest.approx(roughness[1], rel=0.25)  # blur as wide as theirs


def test_ours_has_lightlys_parameters(scripts: Scripts, tmp_path: Path) -> None:
    """Equal work, number by number."""
    np.savez(tmp_path / "pictures.npz", images=np.zeros((8, 32, 32, 3), np.uint8))
    job = scripts.peers.Job(np.zeros((8, 32, 32, 3), np.uint8), 32, 4)
    first, second = scripts.input.Ours(f"npz:{tmp_path / 'pictures.npz'}", job).views.views
    assert vars(first) == vars(second)
    drawn = first.augmentation
    theirs = scripts.peers.SimCLRTransform(input_size=32).transforms[0].transform.transforms
    crop, flip, vertical, rotate, jitter, gray, blur, _, normalise = theirs
    assert (drawn.scale, drawn.ratio, first.size) == (crop.scale, pytest.approx(crop.ratio), crop.size[0])
    assert getattr(crop.interpolation, "value", crop.interpolation) == drawn.interpolation and crop.antialias
    assert (drawn.flip, vertical.p, rotate.prob) == (flip.p, 0.0, 0.0)
    (colour,) = jitter.transforms
    spans = (colour.brightness, colour.contrast, colour.saturation, colour.hue)
    assert drawn.jitter == pytest.approx([(high - low) / 2 for low, high in spans])
    assert (first.jitter_p, first.grayscale, first.blur) == (jitter.p, gray.p, blur.prob)
    assert [sigma * first.size / 224 for sigma in drawn.blur_sigma] == pytest.approx(blur.sigmas)
    assert (list(first.mean), list(first.std)) == (normalise.mean, normalise.std)
    assert not (first.solarize or first.invert or drawn.rotate or drawn.shift or drawn.erase or drawn.randaugment)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--only", "file224"], "--only file224: expected some of memory, files96"),
        (["--trials", "0"], "--trials 0: expected 1 or more"),
        (["--markdown", "NOWHERE/x.md"], "there is no folder"),
        (["--files96", "tar:NOWHERE"], "expected folder:PATH or tar:PATH of JPEG files that are there"),
        (["--files224", "npz:x.npz"], "--files224 npz:x.npz: expected"),
    ],
)
def test_bad_arguments_are_one_sentence_before_anything_is_measured(
    scripts: Scripts, tmp_path: Path, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        scripts.input.main([word.replace("NOWHERE", str(tmp_path / "none")) for word in words])
    said = capsys.readouterr()
    assert end.value.code == 2 and said.out == "" and sentence in said.err.splitlines()[-1]


def test_files_come_from_a_folder_or_an_archive(scripts: Scripts, tmp_path: Path) -> None:
    drawn = scripts.pictures.jpeg_files(None, tmp_path / "drawn", (20, 12), 5)
    with tarfile.open(tmp_path / "drawn.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "drawn", "train")
    for uri in (f"folder:{tmp_path / 'drawn'}", f"tar:{tmp_path / 'drawn.tar.gz'}"):
        stem = uri.partition(":")[0]
        few = scripts.pictures.jpeg_files(uri, tmp_path / f"{stem}-few", (0, 0), 2)
        assert [path.read_bytes() for path in few] == [drawn[k].read_bytes() for k in (0, 2)]
        many = scripts.pictures.jpeg_files(uri, tmp_path / f"{stem}-many", (0, 0), 12)
        assert [path.read_bytes() for path in many] == [drawn[k % 5].read_bytes() for k in range(12)]


@pytest.mark.parametrize("uri", ["npz:x.npz", "folder:EMPTY"])
def test_files_of_another_kind_are_one_sentence(scripts: Scripts, tmp_path: Path, uri: str) -> None:
    with pytest.raises(SystemExit, match=r"expected folder:PATH or tar:PATH"):
        scripts.pictures.jpeg_files(uri.replace("EMPTY", str(tmp_path)), tmp_path / "out", (8, 8), 1)


def test_the_page_names_no_folder_of_the_machine(scripts: Scripts) -> None:
    words = ["--trials", "9", "--files96", "tar:/data/sets/small.tar.gz", "--markdown", "benchmarks/input.md"]
    assert [scripts.page.shown(word) for word in words] == [*words[:3], "tar:small.tar.gz", *words[4:]]
    assert scripts.page.shown("--files96=tar:/data/sets/small.tar.gz") == "--files96=tar:small.tar.gz"
    assert scripts.page.shown("/home/me/input.md") == "input.md"
