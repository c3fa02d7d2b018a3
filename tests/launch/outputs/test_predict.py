"""`rootstock predict`: the classes of the tests of a run, confidences by the stored or fitted temperature, and refusals."""

import csv
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from rootstock.core.errors import UserError
from rootstock.core.evaluate.calibration import fit_temperature
from rootstock.core.evaluate.features import extract
from rootstock.core.evaluate.trained import calibration_entry, load_trained
from rootstock.core.images.open import open_images
from rootstock.launch.outputs.predict import calibrated, labels_for
from rootstock.launch.verbs import execute
from rootstock.tests.launch.outputs.conftest import NAMES, Runs

Command = Callable[..., subprocess.CompletedProcess[str]]
ALONE = ("--workers", "0", "--device", "cpu")
DIGITS = "sklearn:digits?size=16"
CONFIG = f"""
data: {{train: '{DIGITS}#[:100]', test: '{DIGITS}#[100:160]', size: 16, views: digits}}
backbone: {{name: smallconv, args: {{widths: [4, 8, 12, 16]}}}}
optim: {{name: adamw, lr: 2e-2, batch_size: 32, duration: 40, warmup: 0}}
run: {{workers: 0}}
"""


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finetuned")
    (folder / "config.yaml").write_text(CONFIG)
    execute("finetune", str(folder / "config.yaml"), [f"run.dir={folder / 'run'}"], quiet=True)
    return folder / "run"


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_labels_are_those_that_the_runs_own_test_counts(finetuned: Path, rootstock: Command, tmp_path: Path) -> None:
    out = tmp_path / "labels.csv"
    done = rootstock("predict", str(finetuned), f"{DIGITS}#[100:160]", "--out", str(out), *ALONE)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}\n" and "confidence is the softmax as trained" in done.stderr
    found, images = rows(out), open_images(f"{DIGITS}#[100:160]")
    assert list(found[0]) == ["name", "class", "confidence"]
    assert [row["name"] for row in found] == [images.full_name(i) for i in range(60)]
    assert images.labels is not None and images.classes is not None
    right = [row["class"] == images.classes[label] for row, label in zip(found, images.labels.tolist(), strict=True)]
    told = json.loads((finetuned / "result.json").read_text())["metrics"]["test/classifier/accuracy"]
    assert sum(right) / 60 == told
    assert len({row["class"] for row in found}) > 2  # it tells something apart


def test_top_k_are_the_softmax_of_the_logits_over_the_stored_temperature(
    runs: Runs, rootstock: Command, tmp_path: Path
) -> None:
    words = ("predict", str(runs.adapted), runs.pictures, "--top", "4", *ALONE)
    done = rootstock(*words, "--out", str(tmp_path / "labels.csv"))
    assert done.returncode == 0, done.stderr
    assert "temperature 0.25, fitted on 40 held-out source images" in done.stderr
    found = rows(tmp_path / "labels.csv")
    logits = extract(runs.classifier, open_images(runs.pictures), load_trained(runs.adapted).view, device="cpu")
    expected = (logits.double() / 0.25).softmax(1)
    names = ["cat", "dog", "owl", "unknown"]
    for row, p in zip(found, expected, strict=True):
        told = [(row[f"class{n}"], float(row[f"confidence{n}"])) for n in ("", "_2", "_3", "_4")]
        assert [name for name, _ in told] == [names[i] for i in p.argsort(descending=True)]
        assert [sure for _, sure in told] == sorted(p.tolist(), reverse=True)
    assert [row["name"] for row in found] == sorted(NAMES)


def test_equal_logits_go_to_the_first_class(runs: Runs, rootstock: Command, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(runs.adapted, tmp_path / "run"))
    trained = load_trained(folder)
    assert trained.classifier is not None
    torch.nn.init.zeros_(trained.classifier.head.weight)
    torch.nn.init.zeros_(trained.classifier.head.bias)
    (folder / "result.json").unlink()
    trained.classifier.export(folder)
    words = ("predict", str(folder), runs.pictures, "--out", str(tmp_path / "f.csv"), "--top", "2", *ALONE)
    assert rootstock(*words).returncode == 0
    assert {tuple(row.values())[1:] for row in rows(tmp_path / "f.csv")} == {("cat", "0.25", "dog", "0.25")}


def test_a_temperature_is_fitted_on_labelled_pictures(finetuned: Path, rootstock: Command, tmp_path: Path) -> None:
    held_out = f"{DIGITS}#[160:400]"
    words = ("predict", str(finetuned), f"{DIGITS}#[100:160]", "--calibrate", held_out, *ALONE)
    done = rootstock(*words, "--out", str(tmp_path / "labels.csv"))
    assert done.returncode == 0, done.stderr
    images, trained = open_images(held_out), load_trained(finetuned)
    assert images.labels is not None and trained.classifier is not None
    logits = extract(trained.classifier, images, trained.view, device="cpu")
    value = fit_temperature(logits.double().numpy(), images.labels.numpy()).value
    assert f"temperature {value:.4g}, fitted on 240 pictures of {held_out}" in done.stderr
    shown = extract(trained.classifier, open_images(f"{DIGITS}#[100:160]"), trained.view, device="cpu")
    expected = (shown.double() / value).softmax(1).max(1).values
    found = [float(row["confidence"]) for row in rows(tmp_path / "labels.csv")]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_pictures_that_trained_with_their_labels_calibrate_nothing(
    finetuned: Path, rootstock: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that trained without labels, as the target of an adaptation, do, and it is said."""
    uri = f"{DIGITS}#[60:130]"
    words = ("predict", str(finetuned), f"{DIGITS}#[:9]", "--calibrate", uri, "--out", str(tmp_path / "f.csv"), *ALONE)
    done = rootstock(*words)
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert done.stderr.splitlines()[-1] == (
        f"error: --calibrate: 40 of the 70 pictures of {uri} trained the network with their labels, so it is surer of them than of others; "
        "give labelled pictures that no training saw"
    )
    trained, device = load_trained(finetuned), torch.device("cpu")
    labelled = open_images(uri)
    trained.backbone.seen = {"adapt": labelled.keys()[:50].sort().values, "labelled": labelled.keys()[:0]}
    assert calibrated(trained, [uri], device=device).fitted_on == f"70 pictures of {uri}"
    assert capsys.readouterr().err == (
        "--calibrate: 50 of 70 images (71.4%) were seen in training without labels, by adapt: scores may be lower on images that no "
        "training saw\n"
    )


def test_parquet_holds_what_csv_holds(runs: Runs, rootstock: Command, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    for name in ("labels.csv", "labels.parquet"):
        words = ("predict", str(runs.adapted), runs.pictures, "--top", "2", "--out", str(tmp_path / name), *ALONE)
        assert rootstock(*words).returncode == 0
    table = parquet.read_table(tmp_path / "labels.parquet")
    of_table = [{name: str(value) for name, value in row.items()} for row in table.to_pylist()]
    assert of_table == rows(tmp_path / "labels.csv")
    assert json.loads(table.schema.metadata[b"rootstock"])["calibration"]["temperature"] == 0.25


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--top", "5"), "--top: expected 1 to 4, the number of the classifier's outputs, got 5"),
        (("--top", "0"), "--top: expected 1 to 4"),
    ],
)
def test_mistakes_are_one_sentence(
    options: tuple[str, ...], sentence: str, runs: Runs, rootstock: Command, tmp_path: Path
) -> None:
    words = ("predict", str(runs.adapted), runs.pictures, "--out", str(tmp_path / "labels.csv"))
    done = rootstock(*words, *options, *ALONE)
    assert done.returncode == 2 and sentence in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


def test_a_run_without_a_classifier_says_what_to_do(runs: Runs, rootstock: Command, tmp_path: Path) -> None:
    done = rootstock("predict", str(runs.pretrained), runs.pictures, "--out", str(tmp_path / "labels.csv"), *ALONE)
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert f"rootstock finetune CONFIG backbone.weights={runs.pretrained}" in done.stderr


def test_classes_that_a_classifier_lacks(runs: Runs, finetuned: Path) -> None:
    """They are unknown to an open-set classifier, and an error for others."""
    digits = open_images("sklearn:digits?size=16&classes=3")
    assert labels_for(load_trained(runs.adapted), digits, "--test").unique().tolist() == [3]
    assert digits.labels is not None
    assert torch.equal(labels_for(load_trained(finetuned), digits, "--test"), digits.labels)
    pictures = open_images(runs.pictures)
    with pytest.raises(UserError, match=r"--test: .* has the class a, which smallconv of .* does not know"):
        labels_for(load_trained(finetuned), pictures, "--test")
    with pytest.raises(UserError, match="has no label for each picture"):
        labels_for(load_trained(finetuned), pictures.unlabelled(), "--test")


def test_a_temperature_at_its_bound_is_not_stored() -> None:
    logits, labels = torch.eye(3)[[0, 1, 2, 0]], torch.tensor([0, 1, 2, 0])
    assert calibration_entry(logits, labels, "images") == {}
    (entry,) = calibration_entry(logits, torch.tensor([0, 1, 2, 1]), "images").values()
    assert entry["fitted_on"] == "4 images" and entry["temperature"] > 0
