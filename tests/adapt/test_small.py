"""configs/adapt/small.yaml on two folders as people have them: some sixty drawn pictures in class folders, all of other sizes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from rootstock.core.errors import UserError
from rootstock.launch.verbs import execute, resolve

SHAPES = ("disc", "square", "cross")
STEPS = 5


def draw_shapes(folder: Path, count: int, background: str, *, classes: bool = True, seed: int = 0) -> str:
    """`count` pictures of shapes, 30 to 160 px, PNG and JPEG, in class folders or side by side; returns the URI."""
    random = np.random.default_rng(seed)
    for i in range(count):
        shape = SHAPES[i % len(SHAPES)]
        width, height = (int(side) for side in random.integers(30, 160, 2))
        picture = Image.new("RGB", (width, height), background)
        pen, colour = ImageDraw.Draw(picture), tuple(int(c) for c in random.integers(0, 256, 3))
        x, y, r = width // 2, height // 2, int(min(width, height) * random.uniform(0.2, 0.45))
        if shape == "disc":
            pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        elif shape == "square":
            pen.rectangle((x - r, y - r, x + r, y + r), fill=colour)
        else:
            pen.line((x - r, y - r, x + r, y + r), fill=colour, width=5)
            pen.line((x - r, y + r, x + r, y - r), fill=colour, width=5)
        place = folder / shape if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        picture.save(place / f"{i:03}.{'jpg' if i % 2 else 'png'}")
    return f"folder:{folder}"


def small(folder: Path, source: str, target: str, *more: str, quiet: bool = True) -> dict:
    """The shipped config as it stands, but for how long it trains, and for intervals of priors, which take seconds."""
    given = [f"data.source={source}", f"data.target={target}", f"run.dir={folder / 'run'}", "label_shift.resamples=0"]
    return execute(
        "adapt", "small", [*given, f"optim.duration={STEPS}", "run.device=cpu", "run.workers=0", *more], quiet=quiet
    )


def test_two_folders_of_sixty_pictures_of_any_sizes_are_enough(tmp_path: Path) -> None:
    source = draw_shapes(tmp_path / "a", 60, "white")
    target = draw_shapes(tmp_path / "b", 63, "black", seed=1)
    result = small(tmp_path, source, target)
    assert result["steps"] == STEPS
    # A fifth is held out for the tests, and a tenth of what is left of the source for validators.
    numbers = result["data"]["n"]
    assert (numbers["source"] + numbers["held_out"], numbers["test.source"]) == (48, 12)
    assert numbers["target"] + numbers["test.target"] == 63 and numbers["test.target"] in (12, 13)
    assert {"target/classifier/accuracy", "source/classifier/accuracy"} <= set(result["metrics"])
    assert result["selection"] == "last" and result["looks"]["target"]["n"] >= 1
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("transfer_loss" in row for row in rows)
    # What validators would have chosen, with held-out source images, and what that would have cost.
    told = result["validators"]
    assert len(told["candidates"]) == STEPS and "source_validation" in told["picks"]
    assert set(told["regret"]["target"]["by"]) == {*told["picks"], "rule"}
    assert (tmp_path / "run" / "classifier" / "bottleneck.safetensors").is_file()


def test_a_target_without_class_folders_is_adapted_to_and_not_tested(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = draw_shapes(tmp_path / "a", 60, "white")
    target = draw_shapes(tmp_path / "b", 60, "black", classes=False, seed=1)
    result = small(tmp_path, source, target, "data.size=32", quiet=False)
    said = capsys.readouterr().err
    assert "no test is of the target: accuracies are those on the source" in " ".join(said.split())
    assert result["data"]["n"]["target"] == 60 and {name.partition("/")[0] for name in result["metrics"]} == {"source"}


def test_too_few_pictures_are_refused_with_a_remedy(tmp_path: Path) -> None:
    source, target = (draw_shapes(tmp_path / name, count, "white") for name, count in (("a", 60), ("b", 18)))
    with pytest.raises(
        UserError, match=r"optim\.batch_size: 16 is larger than the 1\d training images of data\.target"
    ):
        small(tmp_path, source, target, "optim.batch_size=16")


def test_too_few_pictures_to_hold_any_out_name_the_key_and_what_helps(tmp_path: Path) -> None:
    few, target = draw_shapes(tmp_path / "a", 12, "white"), draw_shapes(tmp_path / "b", 60, "black", classes=False)
    with pytest.raises(
        UserError, match=r"evaluate\.held_out: .* too few to hold 10% .* evaluate\.held_out=0 holds none out"
    ):
        small(tmp_path, few, target)
    least = draw_shapes(tmp_path / "c", 3, "white")
    with pytest.raises(UserError, match=r"data\.source: .* too few to hold 20% .* \(data\.test\)"):
        small(tmp_path, least, target)


def test_it_is_mcc_on_joint_statistics_from_no_labels_of_a_target() -> None:
    config = resolve("adapt", "small")
    assert (config["method"]["name"], config["method"]["batchnorm"]) == ("mcc", "joint")
    assert config["method"]["trade_off"] == 1.0 and config["data"]["selection"] == "last"
