"""The measurement of adaptation steps at toy size: that ours runs, and what a peer that is not there is answered with."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor, nn


def test_a_table_has_a_row_a_method(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    speed, threads = script("adaptation_speed"), torch.get_num_threads()
    to = tmp_path / "table.md"
    try:
        code = speed.main(["--toy", "--trials", "1", "--workers", "0", "--markdown", str(to), "--gate"])
    finally:
        torch.set_num_threads(threads)
    table = to.read_text().partition("|---|")[2].splitlines()[1:]
    rows = [line.strip("| ").split(" | ") for line in table if line.startswith("| ")]
    assert [row[0] for row in rows] == list(speed.METHODS) == ["dann", "cdan", "mcc", "mdd", "dan", "jan"] and code == 0
    assert all(float(row[1]) > 0.0 and float(row[2]) > 0.0 and row[3:] == ["yes"] for row in rows)
    assert "Toy sizes: the numbers say nothing." in to.read_text()


def a_peer(dim: int, classes: int, made: list[Tensor]) -> dict[str, Callable[[], object]]:
    """A library with one loss, by which its step is the cross-entropy on the source plus 0; notes the features it was given."""

    def loss(features: Tensor, logits: Tensor) -> Tensor:
        assert features.shape[2] == dim and logits.shape[2] == classes
        made.append(features)
        return 0.0 * features.sum()

    return {"mcc": lambda: SimpleNamespace(loss=loss, modules=nn.ModuleList())}


def test_a_peer_is_measured_in_both_ways_and_a_slow_one_does_not_hold(
    script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    speed, given = script("adaptation_speed"), []
    files = speed.Files.written(tmp_path, (24, 20), 6, 3, 0)
    ways = list(speed.ways("mcc", speed.TOY, {"tllib": partial(a_peer, classes=3, made=given)}, files))
    both = {f"{who}, {what}" for who in ("ours", "tllib") for what in (speed.STEP, speed.WHOLE)}
    assert len(ways) == 4 and {way.name for way in ways} == both
    found = speed.in_rounds(ways, 1)
    # On a ready batch a step of warm-up and one that counts; end to end the loop stops before the step after these two.
    assert [features.shape[:2] for features in given] == [(2, speed.TOY.batch)] * 4
    columns = [(speed.STEP, ["tllib"]), (speed.WHOLE, ["tllib"])]

    def seconds(ready: float, whole: float) -> object:
        """Found, where tllib takes so many times as long as ours."""
        times = {f"ours, {speed.STEP}": 1.0, f"tllib, {speed.STEP}": ready, f"ours, {speed.WHOLE}": 1.0}
        times |= {f"tllib, {speed.WHOLE}": whole}
        return {(name, False): found[name, False]._replace(seconds=[value]) for name, value in times.items()}

    assert speed.line("mcc", seconds(1.0, 1.5), columns)[1]
    assert not speed.line("mcc", seconds(0.9, 1.5), columns)[1]
    assert not speed.line("mcc", seconds(1.0, 1.4), columns)[1]


def test_both_sides_are_fed_the_same_pictures_with_the_same_labels(
    script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    whole = script("adaptation_whole")
    files = whole.Files.written(tmp_path, (24, 20), 6, 3, 0)
    images = whole.open_images(f"folder:{tmp_path / 'source'}", role="train")
    ours = {(int(images.labels[i]), tuple(images.read(i).shape), whole_mean(images.read(i))) for i in range(6)}
    theirs = whole.Pictures(files.paths["source"], whole.T.PILToTensor())
    assert {(label, tuple(pixels.shape), whole_mean(pixels)) for pixels, label in (theirs[i] for i in range(6))} == ours
    assert len(ours) == 6 and {label for label, _, _ in ours} == {0, 1, 2}


def whole_mean(pixels: Tensor) -> int:
    """The mean of a picture's numbers, which two decoders share."""
    return round(pixels.float().mean().item())


def test_a_peer_that_is_not_there_is_refused_in_a_sentence(
    script: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        script("adaptation_speed").options(["--toy", "--tllib", str(tmp_path)])
    assert end.value.code == 2
    assert f"--tllib: {tmp_path} holds no tllib" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        script("adaptation_speed").options(["--only", "bnm"])
    assert "--only bnm: expected some of dann, cdan, mcc, mdd, dan, jan" in capsys.readouterr().err
