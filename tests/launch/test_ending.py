"""How a run ends: a verdict with what it has to beat, and a next command that runs as printed, from the first pretraining to an export."""

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rootstock.core.config.yaml_file import parse_override
from rootstock.launch.ending import gained, headlines, scores_in_words, sentence, to_beat
from rootstock.launch.following import command, following, uris
from rootstock.launch.pipeline.ending import after_pipeline, pipeline_verdict
from rootstock.launch.verbs import resolve

Rootstock = Callable[..., subprocess.CompletedProcess[str]]
FEW = ["optim.duration=2", "optim.batch_size=16"]
DIGITS = "sklearn:digits?size=32#[:160]"


def test_a_printed_command_is_read_as_it_was_meant() -> None:
    for uri in "folder:photos#[:80%]", "folder:a: b", 'folder:it\'s "x"', ["folder:a", "folder: #b"]:
        words = shlex.split(command("probe", "small", data__train=uri, seed=None))
        key, _, value = words[-1].partition("=")
        assert words[:-1] == ["rootstock", "probe", "small"] and key == "data.train"
        assert parse_override(value, "", []) == uri


def following_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The words of the next command that a command printed last."""
    assert done.returncode == 0, done.stderr
    last = [line for line in (done.stderr + done.stdout).splitlines() if line.startswith("next: ")]
    assert len(last) == 1
    name, *words = shlex.split(last[0].removeprefix("next: "))
    assert name == "rootstock"
    return words


def verdict_of(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.splitlines()[-2]


def test_the_next_commands_lead_from_pixels_to_an_export(
    tmp_path: Path, rootstock: Rootstock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = rootstock("data", DIGITS)
    words = following_of(done)
    assert words[:3] == ["pretrain", "small", f"data.train={DIGITS}"]
    done = rootstock(*words, *FEW, "evaluate.watch=null", "run.dir=runs/a")
    assert re.match(
        r"pretrain simclr: loss [\d.]+ -> [\d.]+ in 2 steps, kNN on test [\d.]+ % \(chance 10\.0\); in runs/a$",
        verdict_of(done),
    )
    again = rootstock(*words, *FEW, "evaluate.watch=null", "run.dir=runs/a")
    assert again.stderr.splitlines()[-2:] == done.stderr.splitlines()[-2:]  # a finished run says the same

    words = following_of(done)
    assert words[:2] == ["probe", "small"] and "backbone.weights=runs/a" in words
    done = rootstock(*words)
    assert re.match(
        r"probe: kNN on test [\d.]+ % \[[\d.]+, [\d.]+\], linear probe on test [\d.]+ % \[[\d.]+, [\d.]+\] "
        r"\(chance 10\.0, the commonest class [\d.]+; brackets: 95 % over test images\); in runs/a-probe$",
        verdict_of(done),
    )
    words = following_of(done)
    assert words[:2] == ["finetune", "small"]
    done = rootstock(*words, *FEW)
    assert verdict_of(done).startswith("finetune: loss ") and "in runs/a-probe-finetuned" in verdict_of(done)
    words = following_of(done)
    assert words == ["predict", "runs/a-probe-finetuned", DIGITS, "--out", "labels.csv"]
    done = rootstock(*words)
    assert re.match(r"predict: 160 pictures, \d+ % of them \d; mean confidence [\d.]+ %$", verdict_of(done))
    assert len((tmp_path / "labels.csv").read_text().splitlines()) == 161
    done = rootstock(*following_of(done))
    assert verdict_of(done).startswith("export: smallconv of runs/a-probe-finetuned, compared on ")
    assert rootstock(*following_of(done)).returncode == 0


def test_an_adaptation_is_measured_against_its_control(
    tmp_path: Path, rootstock: Rootstock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = [f"data.source={DIGITS}", "data.target=sklearn:digits-m#[:160]", "data.test=sklearn:digits-m#[160:220]"]
    words = [
        "adapt",
        "digits_dann",
        *data,
        "optim.batch_size=16",
        "optim.duration=12",
        "evaluate=null",
        "run.dir=runs/d",
    ]
    done = rootstock(*words)
    assert re.match(
        r"adapt dann: loss .* in 12 steps, test [\d.]+ % \[.*\] \(chance 10\.0, .*\); in runs/d$", verdict_of(done)
    )
    control = following_of(done)
    assert control == ["adapt", "runs/d/config.yaml", "method.reversal=0", "run.dir=runs/d-control"]
    assert following_of(rootstock(*control))[:2] == ["predict", "runs/d-control"]  # a control needs no other
    done = rootstock(*words)
    own, other = (json.loads(Path(f"runs/{name}/result.json").read_text())["metrics"] for name in ("d", "d-control"))
    points = 100 * (own["test/classifier/accuracy"] - other["test/classifier/accuracy"])
    assert re.search(
        rf": {re.escape(f'{points:+.1f}')} points \[[+-][\d.]+, [+-][\d.]+\] over control in runs/d-control; in runs/d$",
        verdict_of(done),
    )
    assert following_of(done) == ["predict", "runs/d", "sklearn:digits-m#[:160]", "--out", "labels.csv"]


def test_words_follow_the_interval() -> None:
    assert gained(0.052, 0.021, 0.083) == "gain: +5.2 points [+2.1, +8.3]"
    assert gained(-0.03, -0.05, -0.01) == "negative transfer: -3.0 points [-5.0, -1.0]"
    assert gained(0.01, -0.02, 0.04) == "no difference that these images can show: +1.0 points [-2.0, +4.0]"
    assert gained(0.01, None, None) == "+1.0 points"


TARGET = {"classes": ["a", "b", "c", "d"], "confusion": [[3, 1, 0, 0], [2, 2, 0, 0], [1, 1, 6, 2], [0, 0, 1, 1]]}
RESULT: dict[str, Any] = {
    "steps": 1200,
    "data": {"n": {}},
    "metrics": {
        "source/classifier/accuracy": 0.97,
        "target/classifier/f1": 0.5,
        "target/classifier/accuracy": 0.71,
        "target/classifier/hos": 0.6,
    },
    "intervals": {"target/classifier/accuracy": [0.654, 0.744]},
    "details": {"target/classifier": TARGET},
}


def test_the_target_comes_first_and_is_held_against_chance_and_the_commonest_class() -> None:
    keys = list(headlines(RESULT))
    assert keys == ["target/classifier/hos", "source/classifier/accuracy"]
    assert scores_in_words(RESULT, "target/classifier/accuracy") == "target 71.0 % [65.4, 74.4]"
    assert to_beat(RESULT, keys) == ""  # it is an accuracy that they are of
    accuracies = {
        **RESULT,
        "metrics": {key: value for key, value in RESULT["metrics"].items() if not key.endswith("hos")},
    }
    keys = list(headlines(accuracies))
    assert keys == ["target/classifier/accuracy", "source/classifier/accuracy"]
    assert (
        to_beat(accuracies, keys) == "chance 25.0, the commonest class 50.0; brackets: 95 % over test images"
    )  # 10 of 20
    config = {"method": {"name": "dann"}}
    told = sentence("adapt", config, accuracies, [{"loss": 2.5}, {"target/x": 1}, {"loss": 1.25}])
    assert told == (
        "adapt dann: loss 2.5 -> 1.25 in 1,200 steps, target 71.0 % [65.4, 74.4] (chance 25.0, the commonest class 50.0; brackets: 95 % "
        "over test images), source 97.0 %"
    )
    assert (
        sentence("pretrain", config, {**RESULT, "steps": 0, "metrics": {}}, []) == "pretrain dann: nothing was trained"
    )


PROBE, CLASSIFIED = ["data.train=folder:l", "run.dir=runs/x"], {"test/knn/accuracy": 0.5}
CASES: dict[str, tuple[str, list[str], dict[str, float], str]] = {
    "no labels: the features": (
        "pretrain",
        ["data.train=folder:u"],
        {},
        "embed runs/x folder:u --out runs/x-features.npz",
    ),
    "nothing was trained: a pretraining": (
        "probe",
        [*PROBE, "backbone.name=resnet10t", "data.size=32"],
        CLASSIFIED,
        "pretrain small data.train=folder:l evaluate.knn={} run.dir=runs/x-pretrained",
    ),
    "weights of timm: their network": (
        "probe",
        [*PROBE, "backbone={name: resnet10t, weights: timm}", "data.size=64"],
        CLASSIFIED,
        "finetune small data.train=folder:l data.size=64 backbone.name=resnet10t backbone.weights=timm run.dir=runs/x-finetuned",
    ),
    "no accuracy: the page": (
        "probe",
        [*PROBE, "backbone.name=hog", "data.size=32"],
        {"test/retrieval/map": 0.5},
        "report runs/x",
    ),
    "no weights are kept: the page": ("finetune", ["data.train=folder:l", "run.keep=results"], {}, "report runs/x"),
    "a test set: its labels": (
        "finetune",
        ["data.train=folder:l", "data.test={one: 'tar:t#[:{seed}]', two: folder:v}", "seed=3"],
        {},
        "predict runs/x tar:t#[:3] --out labels.csv",
    ),
    "no test of the target: its labels": (
        "adapt",
        ["data.source=folder:s", "data.target=[folder:a b, folder:c]"],
        {},
        "predict runs/x 'folder:a b' folder:c --out labels.csv",
    ),
    "no weight to set to 0: its labels": (
        "adapt",
        ["method=adabn", "data.target=folder:t"],
        {"target/classifier/accuracy": 0.5},
        "predict runs/x folder:t --out labels.csv",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_next_command_fits_the_run(case: str) -> None:
    verb, overrides, metrics, expected = CASES[case]
    recipe = "digits_dann" if verb == "adapt" else "small"
    config = resolve(verb, recipe, [*overrides, "run.dir=runs/x"])
    assert shlex.split(following(verb, config, {"metrics": metrics}))[1:] == shlex.split(expected)


def test_keys_are_quoted_for_a_shell() -> None:
    written = command("adapt", "runs/a b", data__train=["folder:a b", "folder:c"], seed=1, x=None)
    assert shlex.split(written) == ["rootstock", "adapt", "runs/a b", 'data.train=["folder:a b", "folder:c"]', "seed=1"]
    assert uris({"a": "x#{seed}", "b": "y"}, 4) == ["x#4"]


def contrast(
    label: str, mean: float, low: float | None, high: float | None, holds: bool, **more: Any
) -> dict[str, Any]:
    """As result.json of a pipeline has it. more: what is not the usual."""
    a, b = label.split(" over ")
    usual = {
        "claim": "differs",
        "margin": None,
        "metric": "test/knn/accuracy",
        "adjusted": 0.01 if holds else 0.2,
        "of": 7,
    }
    return {"label": label, "a": a, "b": b, "mean": mean, "low": low, "high": high, "holds": holds, **usual, **more}


def test_a_pipeline_ends_with_more_seeds_or_with_its_page(tmp_path: Path) -> None:
    """What is said of a primary contrast is what its table says: after Holm's method, by its claim and by the direction of its metric."""
    rows = [{"seeds": [0]}, {"seeds": [0]}]
    primary = [
        contrast("A over B", 0.02, 0.01, 0.03, True),
        contrast("C over B", -0.02, -0.03, -0.01, True),
        contrast("D over B", 0.0, -0.01, 0.01, False),
        contrast("E over B", 0.1, None, None, False),
        contrast("F over B", -0.02, -0.04, -0.001, False),
        contrast("G over B", -0.01, -0.015, -0.005, True, claim="loses at most", margin=0.03),
        contrast("H over B", 0.3, 0.2, 0.4, True, metric="test/knn/nll"),
    ]
    table = {"rows": rows, "contrasts": {"primary": primary}}
    assert pipeline_verdict(table, tmp_path) == [
        "A over B: helped (+2.0 points [+1.0, +3.0])",
        "C over B: did harm (-2.0 points [-3.0, -1.0])",
        "D over B: no difference is shown (+0.0 points [-1.0, +1.0])",
        "E over B: +10.0 points; the test set is too small for an interval",
        "F over B: no difference is shown (-2.0 points [-4.0, -0.1])",
        "G over B: G loses at most 3.0 points against B (-1.0 points as measured, 95 % interval [-1.5, -0.5], p = 0.01 after Holm over 7)",
        "H over B: did harm (+0.3 [+0.2, +0.4])",
        f"2 rows over 1 seed, in {tmp_path / 'table.md'}",
    ]
    assert (
        after_pipeline("simclr_probe", ["run.dir=r", "seeds=1"], table, Path("r"))
        == "rootstock run simclr_probe run.dir=r seeds=3"
    )
    assert after_pipeline("demo.yaml", [], table, Path("r")) == "rootstock demo seeds=3"
    for seeds in ([0, 1, 2], [7]):
        assert after_pipeline("simclr_probe", [], {"rows": [{"seeds": seeds}]}, Path("r")) == "rootstock report r"
