"""`rootstock explain`: pictures, a page and numbers; the same bytes again; one sentence for what cannot be explained."""

import base64
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rootstock.adapt.sets import open_sets
from rootstock.core.errors import UserError
from rootstock.core.evaluate.trained import load_trained
from rootstock.core.images.open import open_images
from rootstock.core.manifest import read_record
from rootstock.core.model.classifier import Classifier
from rootstock.finetune.explain.cam import grad_cam
from rootstock.finetune.explain.methods import at_side
from rootstock.finetune.explain.places import chosen_place
from rootstock.launch.explain import explain
from rootstock.launch.explain.masks import object_masks
from rootstock.launch.explain.measured import curves_at_random, measured_curves, measured_points
from rootstock.launch.explain.network import explained_run
from rootstock.launch.explain.overlays import as_shown, overlaid
from rootstock.launch.explain.training import training_pictures
from rootstock.tests.launch.outputs.conftest import NAMES, Runs, small

Command = Callable[..., Any]
QUICK = ("--workers", "0", "--device", "cpu", "--pictures", "3", "--measured", "3", "--draws", "2", "--steps", "32")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def masks(tmp_path: Path, runs: Runs) -> Path:
    """Of five of the seven pictures; in one of them there is no object."""
    images = open_images(runs.pictures)
    for i, name in enumerate(sorted(NAMES)[:5]):
        _, height, width = images.read(i).shape
        mask = np.zeros((height, width), dtype=np.uint8)
        if i:
            mask[height // 3 :, : width // 2] = 1
        path = tmp_path / "masks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    return tmp_path / "masks"


def check_panels(out: Path, run: Path, pictures: str, masks: Path | None = None) -> None:
    """Grad-CAM's panels of the three pictures on the page are those of each picture alone, of its class in result.json."""
    trained, classifier = explained_run(run)
    images, result = open_images(pictures), read_record(out / "result.json")
    names, page = [images.full_name(i) for i in range(7)], (out / "explained.html").read_text()
    objects = {} if masks is None else object_masks(str(masks), images, trained.view)
    differences = list[float]()
    for number, told in enumerate(result["pictures"][:3]):
        row = names.index(told["name"])
        shown = trained.view(trained.view.worker(images.read(row))[None])
        target = torch.tensor([classifier.outputs.index(told["class"])])
        cam = grad_cam(classifier, shown, target, chosen_place(classifier, None))
        assert cam.shape == (1, 2, 2)
        if cam.amax() > cam.amin():
            point = told.get("pointing", {}).get("grad-cam")
            place, picture = point and (point["row"], point["column"]), as_shown(images, row, trained.view)
            alone = overlaid(picture, at_side(cam, trained.view.size)[0], objects.get(row), place)
            written = (out / "pictures" / f"{number:03d}_grad-cam.png").read_bytes()
            found = Image.open(io.BytesIO(written))
            differences.append(float(np.abs(np.asarray(found).astype(int) - np.asarray(alone)).mean()))
            assert base64.b64encode(written).decode() in page
    assert len(differences) >= 2  # the others are constant
    assert differences and max(differences) < 0.5  # of 255: rounding moves a colour


def trained_classes(runs: Runs) -> dict[str, str]:
    """The class that the network predicts for each picture, by the picture's name."""
    trained, images = load_trained(runs.adapted), open_images(runs.pictures)
    assert trained.classifier is not None
    shown = trained.view(torch.stack([trained.view.worker(images.read(i)) for i in range(7)]))
    predicted = trained.classifier(shown).argmax(1).tolist()
    return {images.full_name(i): trained.classifier.outputs[k] for i, k in enumerate(predicted)}


def test_a_page_pictures_and_numbers_and_the_same_bytes_again(
    runs: Runs, rootstock: Command, tmp_path: Path, masks: Path
) -> None:
    out = tmp_path / "explained"
    train = ("--train", runs.pictures, "--neighbours", "2")
    words = ["explain", str(runs.adapted), runs.pictures, "--out", str(out), "--masks", str(masks), *train, *QUICK]
    done = rootstock(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out / 'explained.html'}\n"
    first, result = contents(out), read_record(out / "result.json")
    methods = result["methods"]
    assert (
        list(methods) == ["grad-cam", "saliency", "smoothgrad", "integrated-gradients"] and len(result["left_out"]) == 2
    )
    for name, told in methods.items():
        assert told["pointing"]["hits"]["n"] == 4, name
        assert [told["sanity"]["levels"][k]["lost"] for k in (0, -1)] == ["the head", "all weights"]
        assert {"area", "random", "gain", "curve"} == set(told["curves"]["insertion"])
    page = first["explained.html"].decode()
    assert (
        page.count("data:image/png")
        == page.count('<div class="maps-of">') * 5 - sum(told["constant"] for told in methods.values())
        or "constant" in page
    )
    assert "http://" not in page.replace("http://www.w3.org", "") and "Sanity check by random weights" in page
    pictured = [one for one in result["pictures"] if "nearest" in one]
    assert len(pictured) == 3 and all(len(one["nearest"]) == 2 for one in pictured)
    assert all(near["name"] != one["name"] for one in pictured for near in one["nearest"])
    predicted = trained_classes(runs)
    assert [one["class"] for one in result["pictures"]] == [predicted[one["name"]] for one in result["pictures"]]
    check_panels(out, runs.adapted, runs.pictures, masks)
    # Panels of an earlier explanation of more pictures go, and what somebody else put there stays.
    for name in ("007_picture.png", "1000_grad-cam.png", "007_mine.png"):
        (out / "pictures" / name).write_bytes(b"earlier")
    assert rootstock(*words).returncode == 0
    assert contents(out) == {**first, "pictures/007_mine.png": b"earlier"}


def test_the_linear_classifier_of_a_probe_is_explained(runs: Runs, rootstock: Command, tmp_path: Path) -> None:
    """Its logits are those that the probe scored, and its prototypes are drawn."""
    run, labelled = tmp_path / "probe", runs.pictures
    keys = [
        "evaluate.linear={C: [1.0]}",
        "evaluate.prototypes={per_class: 2, C: [1.0]}",
        "run.workers=0",
        f"run.dir={run}",
    ]
    (config := tmp_path / "probe.yaml").write_text(
        f"data: {{train: '{labelled}', test: '{labelled}'}}\nbackbone: {{weights: '{runs.pretrained}'}}\n"
        "evaluate: {}\nrun: {dir: x}\n"
    )
    done = rootstock("probe", str(config), "data.size=16", *keys)
    assert done.returncode == 0, done.stderr
    result = json.loads((run / "result.json").read_text())
    assert {"test/linear/accuracy", "test/prototypes/accuracy"} <= result["metrics"].keys()
    assert (run / "pictures" / "prototypes.png").is_file()
    trained, classifier = explained_run(run)
    images = open_images(labelled)
    shown = trained.view(torch.stack([trained.view.worker(images.read(i)) for i in range(7)]))
    right = (classifier(shown).argmax(1) == images.labels).double().mean()
    assert float(right) == pytest.approx(result["metrics"]["test/linear/accuracy"])
    out = tmp_path / "explained"
    done = rootstock(
        "explain", str(run), labelled, "--out", str(out), "--method", "grad-cam", "--class", "label", *QUICK
    )
    assert done.returncode == 0, done.stderr
    told = json.loads((out / "result.json").read_text())
    assert all(one["class"] == one["label"] for one in told["pictures"])
    assert len({one["class"] for one in told["pictures"][:3]}) == 2
    check_panels(out, run, labelled)
    shutil.rmtree(run / "linear")
    done = rootstock("explain", str(run), labelled, "--out", str(out), *QUICK)
    assert done.returncode == 2 and "evaluate.linear={}" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("task", ["finetune", "pipeline", None, ""])
def test_the_result_of_another_command_is_not_replaced(task: str | None, runs: Runs, tmp_path: Path) -> None:
    if task is None:  # a run that is not finished
        (tmp_path / "config.yaml").write_text("")
        (tmp_path / "run.json").write_text("{}")
    else:
        (tmp_path / "result.json").write_text(json.dumps({"task": task} if task else {}))
    before = contents(tmp_path)
    with pytest.raises(UserError) as refused:
        explain.explain_pictures(runs.adapted, [runs.pictures], tmp_path, explain.Explaining())
    named = "run" if task is None else task or "result.json"
    assert str(refused.value) == (
        f"--out: {tmp_path} holds what another command wrote ({named}), and it would be replaced; name another folder, such as "
        f"{tmp_path}-explained"
    )
    assert contents(tmp_path) == before


def test_a_folder_of_pictures_gets_no_page(runs: Runs, tmp_path: Path) -> None:
    read = Path(runs.pictures.removeprefix("folder:"))
    shutil.copytree(read, tmp_path / "train")
    for given, folder in ((runs.pictures, read), (f"folder:{tmp_path / 'train'}", tmp_path / "train")):
        asked = explain.Explaining(train=(given,), device="cpu")
        with pytest.raises(UserError) as refused:
            explain.explain_pictures(runs.adapted, [runs.pictures], folder / "explained", asked)
        assert str(refused.value) == (
            f"--out: {folder / 'explained'} lies in {folder}, which is read as data, so it would become data itself; choose a place outside"
        )
    (tmp_path / "result.json").write_text("no JSON")
    with pytest.raises(
        UserError, match=r"^--out: .*result\.json is damaged .*; delete the file, or name another folder$"
    ):
        explain.explain_pictures(runs.adapted, [runs.pictures], tmp_path, explain.Explaining())


def test_what_cannot_be_explained_is_one_sentence(
    runs: Runs, rootstock: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(run: Path, *more: str) -> str:
        done = rootstock("explain", str(run), runs.pictures, "--out", str(tmp_path / "out"), *QUICK, *more)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        return done.stderr

    assert "has a network and no classifier" in refused(runs.pretrained)
    assert "--class: smallconv of" in refused(runs.adapted, "--class", "cow")
    assert "attention-rollout" in refused(runs.adapted, "--method", "lime")
    assert "has no attention of all its tokens" in refused(runs.adapted, "--method", "attention-rollout")
    assert "--layer: smallconv has no layer called 'stage7'" in refused(runs.adapted, "--layer", "stage7")
    assert "none of the 7 pictures has a mask" in refused(runs.adapted, "--masks", str(tmp_path))
    assert "add --masks PLACE" in refused(runs.adapted, "--tolerance", "3")
    assert "--pictures: expected 1 or more, got 0" in refused(runs.adapted, "--pictures", "0")
    blind = Classifier(small(), ["cat", "dog"])
    torch.nn.init.zeros_(blind.head.weight)
    blind.export(tmp_path / "blind")
    assert "the maps of all 3 pictures are constant" in refused(tmp_path / "blind", "--method", "saliency")
    monkeypatch.setattr(explain, "connected", lambda: True)
    assert "works in one process; start it without torchrun" in refused(runs.adapted)


@pytest.mark.parametrize("test", [None, "sklearn:digits?size=8#[120:140,seed=1]"])
def test_nearest_pictures_of_an_adaptation_are_those_that_trained_it(runs: Runs, test: str | None) -> None:
    """Not those of its source that it was tested with, or that chose its state."""
    digits = "sklearn:digits?size=8"
    data = {"source": f"{digits}#[:90,seed=1]", "target": f"{digits}#[90:120,seed=1]", "test": test}
    for held_out in (0.0, 0.2):
        config = {"data": data, "seed": 3, "evaluate": {"held_out": held_out}}
        found = training_pictures(load_trained(runs.adapted)._replace(config=config), ())
        sets = open_sets(data, 3).hold_out(held_out, 3)
        assert set(found.keys().tolist()) == set(sets.source.keys().tolist())
        assert len(found) <= (90 if test else 72) * (1 - held_out) + 10


def test_measures_are_over_groups(runs: Runs) -> None:
    """Of pictures of one group nothing says how sure a mean is."""
    trained, images = load_trained(runs.adapted), open_images(runs.pictures)
    images.groups = torch.tensor([5, 5, 5, 5, 6, 6, 6])
    seen = explain._seen(trained, images, [0, 1, 4], torch.zeros(7, dtype=torch.int64), torch.device("cpu"))
    assert seen.units.tolist() == images.units()[[0, 1, 4]].tolist() and len(seen.units.unique()) == 2
    one, maps = seen.rows([0, 1]), torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0))
    assert len(one.units.unique()) == 1 and trained.classifier is not None
    chance = curves_at_random(trained.classifier, one, 0, 2)
    assert chance is not None
    told = measured_curves(trained.classifier, one, maps, chance, 0, 2)
    mask = np.zeros((16, 16), dtype=bool)
    mask[:8] = True
    game, _ = measured_points(maps, [0, 1], one, {0: mask, 1: mask}, 16, 0.0, 0)
    assert told["insertion"]["gain"]["low"] is None and game is not None and game.above_centre.low is None
    apart = one._replace(units=torch.arange(2))
    told = measured_curves(trained.classifier, apart, maps, chance, 0, 2)
    assert told["insertion"]["gain"]["low"] is not None
