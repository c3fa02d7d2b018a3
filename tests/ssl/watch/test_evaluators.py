"""The probes and measures during pretraining are right and repeatable, and do not change the backbone."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from rootstock.core import stage as recipe
from rootstock.core.errors import UserError
from rootstock.launch.verbs import execute
from rootstock.ssl.watch.evaluators import linear_probe

DATA = "sklearn:digits?size=16"
TESTS = {"own": f"{DATA}#[150:200]", "other": "sklearn:digits-m?region=test#[:40]"}
STEPS = 12


def config(folder: Path, evaluate: dict[str, Any]) -> str:
    tree = {
        "data": {"train": f"{DATA}#[:100]", "size": 16, "views": "digits"},
        "backbone": {"name": "smallconv", "args": {"widths": [8, 8, 8, 16]}},
        "method": {"name": "simclr", "projection": [16, 8]},
        "optim": {"name": "adamw", "lr": 0.01, "batch_size": 16, "duration": STEPS},
        "evaluate": evaluate,
        "run": {"log_every": 4, "workers": 0},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def pretrain(folder: Path, evaluate: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]], str]:
    """The result, the rows, and the exported weights' hash."""
    folder.mkdir()
    result = execute("pretrain", config(folder, evaluate), [f"run.dir={folder / 'run'}"], quiet=True)
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    weights = hashlib.sha256((folder / "run" / "backbone" / "backbone.safetensors").read_bytes()).hexdigest()
    return result, rows, weights


def test_watching_changes_no_weight_and_covers_every_domain(tmp_path: Path) -> None:
    labelled = {"bank": f"{DATA}#[:100,seed=3]", "test": TESTS, "knn": {"k": 5}, "linear": {"steps": 40}}
    watched, rows, weights = pretrain(tmp_path / "watched", {**labelled, "watch": {"images": 32}, "every": 4})
    _, bare, unwatched = pretrain(tmp_path / "bare", {"watch": None})
    assert weights == unwatched
    assert not any(key.startswith(("eval/", "watch/")) for row in bare for key in row)
    assert watched["metrics"].keys() == {f"{t}/{p}/accuracy" for t in TESTS for p in ("knn", "linear")}
    seen = [row for row in rows if "watch/rankme" in row]
    assert [row["step"] for row in seen] == [4, 8, 12]
    for row in seen:
        assert {f"watch/{name}" for name in ("rankme", "lidar", "uniformity", "alignment")} <= row.keys()
        assert {f"eval/{key}" for key in watched["metrics"]} <= row.keys()
        assert 1.0 <= row["watch/rankme"] <= 16.0 and row["watch/uniformity"] < 0.0 < row["watch/alignment"]
    assert seen[-1]["eval/own/linear/accuracy"] == watched["metrics"]["own/linear/accuracy"]


def test_pictures_are_evaluated_as_the_data_section_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By kNN, linear probe and watch; larger pictures are resized, then cropped."""
    seen: list[dict[str, Any]] = []

    class Seen(recipe.Evaluation):
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, **more)
            seen.append(self.describe())

    monkeypatch.setattr(recipe, "Evaluation", Seen)
    words = ["data.crop=0.5", "data.interpolation=bicubic", "optim.duration=2", f"run.dir={tmp_path / 'run'}"]
    measured = {"bank": f"{DATA}#[:100]", "test": TESTS, "knn": {"k": 5}}
    execute("pretrain", config(tmp_path, measured), words, quiet=True)
    assert len(seen) == 1 and (seen[0]["size"], seen[0]["resize"], seen[0]["interpolation"]) == (16, 32, "bicubic")
    with pytest.raises(UserError, match=r"data.crop: 2.0 is given"):
        execute("pretrain", config(tmp_path, measured), ["data.crop=2.0", f"run.dir={tmp_path / 'no'}"], quiet=True)


def test_without_being_told_it_watches_ten_times_and_asks_for_no_label(tmp_path: Path) -> None:
    result, rows, _ = pretrain(tmp_path / "plain", {})
    assert result["metrics"] == {}
    assert len([row for row in rows if "watch/rankme" in row]) >= 10


def clusters(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 4
    centres = 5.0 * torch.eye(4, 6)
    return centres[labels] + torch.randn(n, 6, generator=generator) + 7.0, labels


def test_what_is_watched_is_drawn_where_no_test_is(tmp_path: Path) -> None:
    pretrain(tmp_path / "run", {"watch": {"images": 40}})
    drawn = json.loads((tmp_path / "run" / "run" / "map.json").read_text())
    assert len(drawn["x"]) == len(drawn["y"]) == 40 and drawn["domains"] == ["train"]
    pretrain(tmp_path / "bare", {"watch": None})
    assert not (tmp_path / "bare" / "run" / "map.json").exists()


def test_the_probe_learns_what_a_line_can_tell() -> None:
    x, labels = clusters(200, 0)
    probe = linear_probe(x, labels, 5, seed=0, steps=100, batch_size=64)
    unseen, truth = clusters(100, 1)
    assert (probe(unseen).argmax(1) == truth).double().mean() > 0.97
    again = linear_probe(x, labels, 5, seed=0, steps=100, batch_size=64)
    assert probe(unseen).equal(again(unseen))
    shuffled = linear_probe(x, labels[torch.randperm(200, generator=torch.Generator().manual_seed(2))], 5, seed=0)
    assert (shuffled(unseen).argmax(1) == truth).double().mean() < 0.6


def test_the_probe_goes_through_every_image_of_an_epoch() -> None:
    """Batches may span two epochs; with one image a class, each must have been used."""
    x = torch.eye(7)
    probe = linear_probe(x, torch.arange(7), 7, seed=1, steps=60, batch_size=3)
    assert probe(x).argmax(1).tolist() == list(range(7))


def test_gradients_of_the_features_are_left_alone() -> None:
    x, labels = clusters(40, 0)
    x.requires_grad_()
    linear_probe(x, labels, 4, seed=0, steps=5)
    assert x.grad is None


@pytest.mark.parametrize(
    ("evaluate", "key"),
    [
        ({"watch": {"images": 3}}, "evaluate.watch"),
        ({"watch": {"views": 1}}, "evaluate.watch"),
        ({"linear": {"steps": 0}}, "evaluate.linear"),
        ({"linear": {"lr": -1.0}}, "evaluate.linear"),
    ],
)
def test_what_cannot_be_measured_is_refused(evaluate: dict[str, Any], key: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=key):
        pretrain(tmp_path / "run", evaluate)


def test_unlabelled_sets_are_named(tmp_path: Path, draw: Callable[..., Path]) -> None:
    folder = draw(tmp_path / "flat", [f"{i}.png" for i in range(20)])
    with pytest.raises(
        UserError, match=r"evaluate.knn and evaluate.linear need labels; evaluate.bank: .* has no labels"
    ):
        pretrain(tmp_path / "run", {"linear": {}, "bank": f"folder:{folder}"})


def test_a_damaged_picture_is_replaced_here_too(tmp_path: Path, draw: Callable[..., Path]) -> None:
    folder = draw(tmp_path / "flat", [f"{i:02}.png" for i in range(24)])
    (folder / "03.png").write_bytes((folder / "03.png").read_bytes()[:60])
    path = config(tmp_path, {"every": 4})
    execute(
        "pretrain", path, [f"data.train=folder:{folder}", "run.damaged=0.5", f"run.dir={tmp_path / 'run'}"], quiet=True
    )
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len([row for row in rows if "watch/rankme" in row]) == 3
