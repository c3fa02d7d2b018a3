"""What an adaptation reports without target labels: whole runs, in-process, on tiny slices of digits."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

import rootstock.adapt.examine as examine
import rootstock.adapt.kept_states as kept_states
from rootstock.adapt.examine import sampled
from rootstock.adapt.kept_states import read_candidates
from rootstock.adapt.registry import ADAPT_METHODS
from rootstock.adapt.validators.registry import VALIDATORS
from rootstock.core.errors import UserError
from rootstock.core.evaluate.calibration import fit_temperature
from rootstock.core.evaluate.scores import Scored
from rootstock.core.evaluate.trained import load_trained
from rootstock.core.images.open import open_images
from rootstock.launch.report.page import write_report
from rootstock.launch.verbs import execute

DIGITS = "sklearn:digits?size=12"
DATA = {
    "source": f"{DIGITS}#[:120,seed=1]",
    "target": f"{DIGITS}#[120:220,seed=1]",
    "test": {"target": f"{DIGITS}#[220:250,seed=1]"},
    "size": 12,
}
NET = {"name": "smallconv", "args": {"widths": [4, 4, 8, 8]}}


def start(where: Path, evaluate: Any = None, **more: Any) -> dict[str, Any]:
    """Write a config and execute it; returns the result."""
    where.mkdir(parents=True, exist_ok=True)
    config = {
        "data": DATA, "backbone": NET, "method": {"name": "dann", "hidden": 8},
        "optim": {"lr": 1e-2, "batch_size": 16, "duration": 6}, "seed": 0,
        "run": {"dir": str(where / "run"), "workers": 0, "device": "cpu", "log_every": 1, "checkpoint": {"every": 1}},
        "label_shift": {"resamples": 0}, **({} if evaluate == "default" else {"evaluate": evaluate}), **more,
    }  # fmt: skip
    (where / "config.yaml").write_text(yaml.safe_dump(config))
    return execute("adapt", str(where / "config.yaml"), quiet=True)


def weights(where: Path) -> list[str]:
    names = ("backbone/backbone.safetensors", "classifier/head.safetensors")
    return [hashlib.sha256((where / "run" / name).read_bytes()).hexdigest() for name in names]


FULL = {"every": 2, "held_out": 0.25, "mixval": True}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    where = tmp_path_factory.mktemp("full")
    return where, start(where, FULL)


def test_the_result_has_scores_of_all_validators_for_every_candidate(full: tuple[Path, dict[str, Any]]) -> None:
    _, result = full
    found = result["validators"]
    assert found["candidates"] == ["step 2", "step 4", "step 6"]
    assert set(found["scores"]) == set(VALIDATORS) and found["left_out"] == {}
    assert all(len(scores) == 3 for scores in found["scores"].values())
    assert found["picks"]["last"] == "step 6" and set(found["picks"].values()) <= set(found["candidates"])
    assert found["rule"]["pick"] in found["rule"]["kept"]
    assert found["images"]["target"] == 100 and found["images"]["source"] + found["images"]["held_out"] == 120
    assert result["data"]["n"]["source"] == found["images"]["source"]
    assert result["data"]["n"]["held_out"] == found["images"]["held_out"] >= 20


def test_what_each_pick_costs_is_told_after_one_look(full: tuple[Path, dict[str, Any]]) -> None:
    where, result = full
    told = result["validators"]["regret"]["target"]
    stored = load_file(where / "run" / "candidates.safetensors")
    test = open_images(DATA["test"]["target"])
    assert test.labels is not None and torch.equal(stored["target/keys"], test.keys())
    names = ("step 2", "step 4", "classifier")
    by_hand = [
        float((stored[f"target/{name}/logits"].float().argmax(1) == test.labels).double().mean()) for name in names
    ]
    assert told["accuracies"] == pytest.approx(by_hand) and told["oracle"] == max(told["accuracies"])
    assert told["accuracies"][2] == result["metrics"]["target/classifier/accuracy"]
    picked = {**result["validators"]["picks"], "rule": result["validators"]["rule"]["pick"]}
    for name, pick in picked.items():
        accuracy = told["accuracies"][result["validators"]["candidates"].index(pick)]
        assert told["by"][name] == {"accuracy": accuracy, "regret": told["oracle"] - accuracy}
    looks = json.loads((where / "run" / "looks.json").read_text())
    assert len(looks["entries"]) == 1 and set(looks["entries"][0]["candidates"]) == set(names)
    assert not any(
        "labels" in name for path in (where / "run" / "candidates").glob("*-tests*") for name in load_file(path)
    )


def test_the_result_has_the_diagnostics(full: tuple[Path, dict[str, Any]]) -> None:
    found = full[1]["diagnostics"]
    assert 1.0 <= found["target"]["effective"] <= 10.0 and found["target"]["classes"] == 10
    for when in ("before", "after"):
        distance = found["a_distance"][when]
        assert 0.0 <= distance["low"] <= distance["value"] <= distance["high"] <= 2.0
        assert 0.0 < found["mmd"][when]["p"] <= 1.0 and found["batchnorm"][when] >= 0.0
    # Blends and corruptions of one drawer's digits: the same domain, before as after.
    assert found["mmd"]["before"]["p"] > 0.005 and found["batchnorm"]["before"] < 0.5
    assert found["training"]["rows"] == 6 and found["training"]["lost"] is None
    assert set(found["training"]["last"]) == {"domain_accuracy", "gradient_ratio"}
    assert json.loads((full[0] / "run" / "result.json").read_text())["diagnostics"] == found


def test_the_result_has_the_temperature_of_the_held_out_source(full: tuple[Path, dict[str, Any]]) -> None:
    run, result = full[0] / "run", full[1]
    kept = load_file(run / "candidates" / "step-00000006.safetensors")
    fitted = fit_temperature(kept["source/logits"].double().numpy(), kept["source/labels"].numpy())
    on = f"{len(kept['source/labels'])} held-out source images"
    assert not fitted.at_bound and result["calibration"] == {"temperature": fitted.value, "fitted_on": on}
    assert load_trained(run).calibration == (fitted.value, on)


def test_candidates_lie_in_the_run_without_labels_of_the_target(full: tuple[Path, dict[str, Any]]) -> None:
    folder = full[0] / "run" / "candidates"
    kept = {path.name for path in folder.iterdir()}
    assert kept == {f"step-{s:08d}{end}.safetensors" for s in (2, 4, 6) for end in ("", "-tests")}
    for path in folder.iterdir():
        tensors = load_file(path)
        if path.stem.endswith("-tests"):
            assert {name: tuple(rows.shape) for name, rows in tensors.items()} == {"target": (30, 10)}
            continue
        assert {name for name in tensors if name.startswith("target/")} == {
            "target/features",
            "target/logits",
            "target/keys",
        }
        assert tensors["target/logits"].shape == (100, 10)


def test_the_rows_of_the_training_say_how_many_classes_are_predicted(full: tuple[Path, dict[str, Any]]) -> None:
    rows = [json.loads(line) for line in (full[0] / "run" / "metrics.jsonl").read_text().splitlines()]
    of_candidates = {row["step"]: row for row in rows if "candidate/effective_classes" in row}
    assert set(of_candidates) == {2, 4, 6}
    scores = full[1]["validators"]["scores"]
    assert [of_candidates[s]["candidate/im"] for s in (2, 4, 6)] == pytest.approx(scores["im"])


def test_a_run_that_was_stopped_reports_the_same(
    full: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended in the evaluation after step 4, whose checkpoint is written: the next command makes up for it."""
    original, calls = examine.Examination.__call__, list[int]()

    def stopping(self: Any, method: Any) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, method)

    with monkeypatch.context() as patched:
        patched.setattr(examine.Examination, "__call__", stopping)
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path, FULL)
    result = start(tmp_path, FULL)
    assert weights(tmp_path) == weights(full[0])
    assert result["validators"] == full[1]["validators"] and result["diagnostics"] == full[1]["diagnostics"]


def test_measuring_changes_no_weight_and_null_measures_nothing(tmp_path: Path) -> None:
    none = start(tmp_path / "none", None)
    some = start(tmp_path / "some", {"every": 3, "mixval": True})
    assert weights(tmp_path / "none") == weights(tmp_path / "some")
    assert none["metrics"] == some["metrics"]
    assert "validators" not in none and "diagnostics" not in none
    assert not (tmp_path / "none" / "run" / "candidates").exists()
    assert some["validators"]["candidates"] == ["step 3", "step 6"]


def test_a_collapse_is_said_in_result_log_and_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    show = examine._show

    def collapsed(classifier: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = show(classifier, images)
        return features, torch.zeros_like(logits).index_fill(1, torch.tensor([3]), 20.0)

    monkeypatch.setattr(examine, "_show", collapsed)
    result = start(tmp_path, "default")
    words = "predicts one class for everything"
    assert words in result["diagnostics"]["target"]["alarm"]
    assert words in " ".join(capsys.readouterr().err.split())
    assert words in write_report([tmp_path / "run"], tmp_path / "page.html").read_text()
    # Of a config without a word about it: the last state alone, nothing on the disk.
    assert result["validators"]["candidates"] == ["step 6"] and not (tmp_path / "run" / "candidates").exists()
    lacking = {"source_validation", "iwv", "dev", "devn", "atc", "doc", "nearest_source", "mixval"}
    assert set(result["validators"]["left_out"]) == lacking
    assert "no held-out source" in result["validators"]["rule"]["how"]


def test_a_damaged_candidate_is_named_and_left_out(full: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    said: list[str] = []
    folder = shutil.copytree(full[0] / "run" / "candidates", tmp_path / "candidates")
    (folder / "step-00000002.safetensors").write_bytes(b"nothing")
    (folder / "step-00000006.safetensors").unlink()
    assert [one.name for one in read_candidates(folder, (2, 4, 6), said.append)] == ["step 4"]
    assert [name in line for name, line in zip(("step-00000002", "step-00000006"), said, strict=True)] == [True, True]


def test_a_damaged_state_is_named_and_counted_honestly(
    full: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A run that ended between its look and its scores has lost two of its states since: one by a flipped bit, one altogether.

    What it stored before it read the labels is scored, so the candidates are the same, and so is the look. Without that file too, other
    candidates are scored, which is another look; and the result and the page name the files.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def ended(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Scored, "save", ended)
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path, FULL)
    folder = tmp_path / "run" / "candidates"
    flipped, gone = (folder / f"step-{step:08d}-tests.safetensors" for step in (2, 4))
    content = bytearray(flipped.read_bytes())
    content[-3] ^= 1
    flipped.write_bytes(content)
    gone.unlink()
    shutil.copytree(tmp_path / "run", tmp_path / "other" / "run")

    result = start(tmp_path, FULL)
    warned = " ".join(capsys.readouterr().err.split())
    assert f"{flipped} is damaged" in warned and f"{gone} cannot be read" in warned
    assert warned.count("is scored as it was stored for the final test") == 2
    assert result["states"] == full[1]["states"] and result["looks"]["target"]["n"] == 1
    assert "states_lost" not in result and result["validators"] == full[1]["validators"]

    (tmp_path / "other" / "run" / "candidates.safetensors").unlink()
    result = start(tmp_path / "other", FULL)
    assert result["looks"]["target"]["n"] == 2 and "states" not in result and "regret" not in result["validators"]
    assert list(result["states_lost"]) == ["step 2", "step 4"]
    page = write_report([tmp_path / "other" / "run"], tmp_path / "page.html").read_text()
    assert "step 2 is missing in the final test" in page and flipped.name in page


def test_a_run_of_an_earlier_version_has_states_without_a_digest(full: tuple[Path, dict[str, Any]]) -> None:
    path = full[0] / "run" / "candidates" / "step-00000002-tests.safetensors"
    written = load_file(path)
    save_file(written, earlier := path.with_name("earlier.safetensors"))
    found, again = kept_states._read(path), kept_states._read(earlier)
    earlier.unlink()
    torch.testing.assert_close(found.logits, again.logits, rtol=0, atol=0)
    assert found.digest != again.digest  # of the file


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        ({"images": 10}, "evaluate.images: expected at least 50, got 10"),
        ({"held_out": 0.6}, "evaluate.held_out: expected a number from 0 to 0.5"),
    ],
)
def test_numbers_out_of_range_are_one_sentence(evaluate: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        start(tmp_path, evaluate)


def test_a_sample_is_drawn_by_content_with_whole_identities() -> None:
    images = open_images("sklearn:digits-m?region=train&blends=4#[:60,seed=0]")
    found = sampled(images, 100, seed=3)
    assert 60 <= len(found) <= 100 < len(images)
    _, counts = found.keys().unique(return_counts=True)
    assert counts.unique().tolist() == images.keys().unique(return_counts=True)[1].unique().tolist()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    again = sampled(images.select(order), 100, seed=3)
    assert sorted(again.keys().tolist()) == sorted(found.keys().tolist())
    assert sampled(images, 10_000, seed=3) is images
    assert sorted(sampled(images, 100, seed=4).keys().tolist()) != sorted(found.keys().tolist())


KEPT_NONE = (
    "evaluate.every: {} changes the network once more after its last step, so states before it cannot be compared with the last one; "
    "use null"
)


@pytest.mark.parametrize("name", ["adabn", "prototypes", "tent", "eata", "roid"])
def test_states_before_the_last_one_are_refused_where_they_cannot_be_compared(
    name: str, full: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    online = ADAPT_METHODS[name].online
    given: dict[str, Any] = {
        "method": {"name": name},
        "backbone": NET if name == "prototypes" else {"weights": str(full[0] / "run")},
        "optim": {"lr": 1e-3, "batch_size": 16, "duration": "1ep" if online else 3},
        "data": {**DATA, "views": "none"},
    }
    with pytest.raises(UserError) as error:
        start(tmp_path / "every", {"every": 1}, **given)
    assert str(error.value) == KEPT_NONE.format(name)
    assert not (tmp_path / "every" / "run" / "candidates").exists()
    if name not in ("prototypes", "tent"):
        return
    # A distance that no state before the last one lies at asks for none.
    result = start(tmp_path / "last", {"every": "100%"}, **given)
    assert len(result["validators"]["candidates"]) == 1 and "states" not in result
    zero = (
        start(tmp_path / "zero", {"every": 1}, **{**given, "optim": {**given["optim"], "duration": 0}})
        if not online
        else None
    )
    assert zero is None or zero["validators"]["candidates"] == ["step 0"]


def test_only_methods_that_change_nothing_after_the_last_step_have_states_before_it() -> None:
    refused = set()
    for name in ADAPT_METHODS:
        try:
            kept_states.check_states(name, 10, 3)
        except UserError:
            refused.add(name)
    assert refused == {"adabn", "prototypes", "tent", "eata", "roid"}
    for every in (0, 10, 11):
        kept_states.check_states("tent", 10, every)
