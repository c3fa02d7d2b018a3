"""Few labels: which images have one, and the classifiers of the draws against scikit-learn and single fits."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestCentroid
from torch import Tensor

from rootstock.core.errors import UserError
from rootstock.core.evaluate.held_out import distinct_rows, rows_by_name
from rootstock.core.evaluate.logreg import fit_choosing_C
from rootstock.core.images.open import open_images
from rootstock.finetune.protocols.contract import Fitted
from rootstock.finetune.protocols.few_labels import drawn_parts, drawn_rows, listed_rows
from rootstock.finetune.protocols.few_linear import FewLinear
from rootstock.finetune.protocols.fewshot import FewShot
from rootstock.finetune.protocols.linear import COARSE_GRID, Linear
from rootstock.finetune.protocols.nearest_mean import NearestMean
from rootstock.finetune.protocols.outcomes import what_was_chosen
from rootstock.finetune.protocols.registry import chosen_protocols
from rootstock.finetune.protocols.ridge import FewShotRidge
from rootstock.tests.finetune.protocols.test_protocols import CLASSES, asked, blobs, images, known, scored, taps


def test_sections_of_several_are_scored_one_by_one() -> None:
    made = chosen_protocols(
        {
            "ridge": {"shots": [5, 1, 5], "taps": ["pooled", "cls"]},
            "few_linear": {"fractions": [0.1, 0.01], "shots": [2], "list": "names.txt"},
        },
        (),
    )
    ridge = ["ridge-1shot", "ridge-1shot@cls", "ridge-5shot", "ridge-5shot@cls"]
    assert list(made) == [*ridge, "few_linear-0.01", "few_linear-0.1", "few_linear-2shot", "few_linear-list"]
    assert made["ridge-5shot@cls"] == FewShotRidge(shots=(5,), taps=("cls",))
    assert made["few_linear-2shot"] == FewLinear(fractions=(), shots=(2,))
    for nothing in ({"ridge": {"shots": []}}, {"few_linear": {"fractions": []}}):
        with pytest.raises(UserError, match=r"an empty list|no labels are asked for"):
            chosen_protocols(nothing, ())


def told(fitted: Fitted) -> dict[str, Any]:
    """The facts besides the settings."""
    return {key: value for key, value in fitted.facts.items() if key != "settings"}


@pytest.mark.parametrize("shots", [2, 9])
def test_ridge_is_scikit_learns_on_each_draw(shots: int) -> None:
    """With fewer and with more shots than features."""
    x, y = blobs(120, 0)
    test, _ = blobs(20, 1)
    fitted = FewShotRidge(shots=(shots,), draws=2, l2=3.0).fit(known(x, y))
    found = fitted.scores(taps(test))
    rows = drawn_rows(torch.arange(120), y, 0, shots, 2).flatten(1)
    for i, some in enumerate(rows):
        mean, scale = x[some].double().mean(0), x[some].double().std(0, correction=0) + 1e-5

        def given(part: Tensor, mean: Tensor = mean, scale: Tensor = scale) -> Any:
            return torch.cat([(part.double() - mean) / scale, torch.full((len(part), 1), 100.0)], 1).numpy()

        model = Ridge(alpha=3.0, fit_intercept=False, solver="cholesky")
        model.fit(given(x[some]), 2 * torch.eye(4)[y[some]].numpy() - 1)
        torch.testing.assert_close(
            found[i].double(), torch.from_numpy(model.predict(given(test))), rtol=1e-5, atol=1e-5
        )
    assert (fitted.kind, fitted.chosen, told(fitted)) == ("similarities", {}, {"shots": shots, "l2": 3.0})


def test_nearest_mean_is_scikit_learns() -> None:
    x, y = blobs(80, 0)
    test, labels = blobs(60, 1)
    scores, _ = scored("nearest_mean", NearestMean(), known(x, y), {"near": (test, labels)})
    right = float(NearestCentroid().fit(x.numpy(), y.numpy()).score(test.numpy(), labels.numpy()))
    assert scores.metrics["near/nearest_mean/accuracy"] == pytest.approx(right)


@pytest.mark.parametrize("scale", ["l2n", "cl2n"])
def test_nearest_mean_by_hand(scale: Any) -> None:
    x, y = blobs(40, 0)
    test, _ = blobs(9, 1)
    centre = x.mean(0) if scale == "cl2n" else torch.zeros(6)
    unit, shown = ((part - centre) / (part - centre).norm(dim=1, keepdim=True) for part in (x, test))
    means = torch.stack([unit[y == c].mean(0) for c in range(4)])
    distance = torch.cdist(shown, means).square().double()
    spread = (unit - means[y]).square().sum(1).mean()
    expected = -(distance - distance.mean(1, keepdim=True)) / spread
    found = NearestMean(scale=scale).fit(known(x, y)).scores(taps(test))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_part_of_the_labels_is_stratified_and_drawn_over_identities() -> None:
    """Classes of 40, 20 and 3 pictures in two blends each, and one of a single picture."""
    own = torch.tensor([0] * 40 + [1] * 20 + [2] * 3 + [3])
    y, keys = own.repeat_interleave(2), torch.arange(64).repeat_interleave(2) * 7919 - 3
    tenth, half = drawn_parts(keys, y, 0, 0.1, 6), drawn_parts(keys, y, 0, 0.5, 6)
    for few, more in zip(tenth, half, strict=True):
        assert (y[few].bincount() // 2).tolist() == [4, 2, 1, 1] and (y[more].bincount() // 2).tolist() == [
            20,
            10,
            2,
            1,
        ]
        assert set(few.tolist()) <= set(more.tolist())
        assert all(int((keys[few] == key).sum()) == 2 for key in keys[few])
    assert len({tuple(few.tolist()) for few in tenth}) == 6
    order = torch.randperm(128, generator=torch.Generator().manual_seed(0))
    again = drawn_parts(keys[order], y[order], 0, 0.1, 6)
    assert [sorted(order[few].tolist()) for few in again] == [few.tolist() for few in tenth]
    assert drawn_parts(keys, y, 1, 0.1, 6)[0].tolist() != tenth[0].tolist()
    (everything,) = drawn_parts(keys, y, 0, 1.0, 5)  # five equal ones would have no spread
    assert everything.tolist() == list(range(128))


def test_draws_of_all_images_are_one() -> None:
    y, keys = torch.tensor([0, 0, 1, 1]), torch.arange(4)
    assert drawn_rows(keys, y, 0, 2, 5).shape == (1, 2, 2) and drawn_rows(keys, y, 0, 1, 5).shape == (5, 2, 1)
    blends = drawn_rows(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 0, 0, 1]), 0, 1, 5)
    assert len(blends) == 5
    two = drawn_rows(torch.tensor([0, 0, 1, 2, 3]), torch.tensor([0, 0, 0, 1, 1]), 0, 2, 5)
    assert len(two) == 5  # all identities, but one of two blends
    x, labels = blobs(40, 0)
    fitted = FewLinear(fractions=(1.0,), draws=3, C=(1.0,)).fit(known(x, labels))
    assert fitted.scores(taps(x)).shape[0] == told(fitted)["images"].count(40) == 1


@pytest.mark.parametrize("scale", [2.0**-60, 2.0**-110, 2.0**60, 2.0**110])
def test_the_scale_of_features_changes_no_cosine(scale: float) -> None:
    (x, y), (test, _) = blobs(40, 0), blobs(9, 1)
    for protocol in (FewShot(shots=2, draws=3), NearestMean(scale="l2n"), NearestMean(scale="cl2n")):
        one, other = (protocol.fit(known(x * by, y)).scores(taps(test * by)) for by in (1.0, scale))
        assert torch.equal(one, other)


def test_two_parts_have_two_names() -> None:
    parts = FewLinear(fractions=(0.1, 0.1000001, 1.0, 0.01, 1e-5)).each()
    assert list(parts) == ["1e-05", "0.01", "0.1", "0.1000001", "1"]


def test_a_choice_on_the_slices_of_draws_is_not_said_to_be_on_the_slice_of_all() -> None:
    x, y = blobs(80, 0)
    few, whole = FewLinear(fractions=(0.5,), draws=2).fit(known(x, y)), Linear(C=(0.1, 1.0)).fit(known(x, y))
    said = what_was_chosen({"few_linear-0.5": few}, images(y), 0)
    assert said["chosen"] and "held_out" not in said
    assert "held_out" in what_was_chosen({"few_linear-0.5": few, "linear": whole}, images(y), 0)


def test_few_linear_chooses_for_each_draw_on_its_own_images() -> None:
    """Each draw is `fit_choosing_C` of its images alone: other training labels have no part."""
    x, y = blobs(240, 0)
    test, labels = blobs(60, 1)
    train, keys = known(x, y), torch.arange(240)
    option = FewLinear(fractions=(0.2,), draws=3)
    scores, fitted = scored("few_linear-0.2", option, train, {"near": (test, labels)})
    found = fitted.scores(taps(test))
    for i, some in enumerate(drawn_parts(keys, y, 0, 0.2, 3)):
        model = fit_choosing_C(x[some], y[some], keys[some], 4, seed=0, values_of_C=COARSE_GRID)
        torch.testing.assert_close(found[i], model.logits(test))
        assert fitted.chosen["C"][i] == model.C
    assert [(row["draw"], row["C"]) for row in fitted.candidates] == [(d, c) for d in range(3) for c in COARSE_GRID]
    details = scores.details["near/few_linear-0.2"]
    assert details["intervals"].keys() == {"draws", "images", "draws and images"} and len(details["draws"]) == 3
    labelled = torch.zeros(240, dtype=torch.bool)
    labelled[torch.cat(drawn_parts(keys, y, 0, 0.2, 3))] = True
    other = x + 100 * (~labelled).float()[:, None]
    assert torch.equal(option.fit(known(other, y)).scores(taps(test)), found)


def test_one_image_a_class_has_nothing_to_choose_on(caplog: pytest.LogCaptureFixture) -> None:
    x, y = blobs(80, 0)
    with caplog.at_level(logging.WARNING):
        fitted = FewLinear(fractions=(), shots=(1,), draws=2).fit(known(x, y))
    assert (fitted.chosen, fitted.candidates, caplog.messages) == ({}, (), [])
    assert told(fitted) == {"shots": 1, "images": [4, 4], "C": [1.0, 1.0]}


NAMES = [("a/x.jpg", 0), ("a/y.jpg", 1), ("b/x.jpg", 2), ("b/deep/z.jpg", 3), ("c/w.jpg", 4), ("d/v.jpg", 5)]


def test_a_list_names_images_by_the_end_of_their_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "10percent.txt"
    file.write_text("y.jpg\r\n\nz.jpg\nz.jpg\nc/w.jpg\n./a/x.jpg\nv.jpg\nn01_9.JPEG\n", encoding="utf-8")
    found = listed_rows(str(file), NAMES)
    assert found.rows.tolist() == [0, 1, 3, 4, 5] and (found.names, found.missing) == (6, ("n01_9.JPEG",))
    x, y = blobs(6, 0)
    y = torch.tensor([0, 0, 1, 1, 2, 3])
    option = FewLinear(fractions=(), list=str(file), C=(2.0,))
    with caplog.at_level(logging.WARNING):
        option.requires("few_linear-list", asked(x, y)._replace(names=lambda: NAMES))
    assert caplog.messages == [f"few_linear-list: 1 of the 6 names in {file} are no training images (n01_9.JPEG)"]
    fitted = option.fit(known(x, y)._replace(names=lambda: NAMES))
    expected = fit_choosing_C(x[found.rows], y[found.rows], found.rows, 4, seed=0, values_of_C=[2.0])
    assert torch.equal(fitted.scores(taps(x)), expected.logits(x))
    said = {"file": str(file), "sha256": found.sha256, "names": 6, "missing": 1}
    assert told(fitted) == {"list": said, "images": [5], "C": [2.0]}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"x.jpg\n", r"names x.jpg, and 2 training images end so \(a/x.jpg, b/x.jpg\); write their folders before"),
        (b"no.jpg\n", r"names none of the training images \(a/x.jpg, a/y.jpg, ...\); give a list of their names"),
        (b"\n\n", "names none of the training images"),
        (b"\xff\xfe\x00", "cannot be read .not a text in UTF-8.; give a text with one file name a line"),
        (b"y.jpg\nz.jpg\n", r"names no image of 2 classes \(cat, dog\); add at least one a class"),
        (None, "cannot be read .No such file or directory."),
    ],
)
def test_a_list_that_names_other_images_is_refused(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    if content is not None:
        (tmp_path / "list.txt").write_bytes(content)
    counts = asked(torch.zeros(6, 2), torch.tensor([0, 0, 1, 1, 2, 3]))._replace(names=lambda: NAMES)
    with pytest.raises(UserError, match=f"evaluate.few_linear.list: .*list.txt {sentence}"):
        FewLinear(fractions=(), list=str(tmp_path / "list.txt")).requires("few_linear-list", counts)


def test_the_name_of_a_copy_is_its_first_image(tmp_path: Path) -> None:
    for name, shade in (("a/one", 10), ("a/two", 20), ("b/three", 30)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4), shade).save(tmp_path / f"{name}.png")
    (tmp_path / "a" / "copy.png").write_bytes((tmp_path / "a" / "two.png").read_bytes())
    images = open_images(f"folder:{tmp_path}")
    kept = distinct_rows(images)
    found = dict(rows_by_name(images, kept))
    assert len(kept) == 3 and len(found) == 4
    assert found["a/copy.png"] == found["a/two.png"] != found["a/one.png"]


@pytest.mark.parametrize(
    ("protocol", "sentence"),
    [
        (FewShotRidge(l2=0.0), "evaluate.ridge.l2: 0.0 is given; expected 1e-12 to"),
        (FewShotRidge(l2=1e300), r"evaluate.ridge.l2: 1e\+300 is given"),
        (FewShotRidge(l2=float("nan")), "evaluate.ridge.l2: nan is given"),
        (FewShotRidge(l2=float("nan")), "evaluate.ridge.l2: nan"),
        (FewShotRidge(draws=0), "needs shots and draws of at least 1"),
        (FewShotRidge(shots=(99,)), r"fewer than shots = 99; give evaluate.ridge.shots of at most \d"),
        (FewLinear(fractions=(0.0,)), "evaluate.few_linear.fractions: 0 is given; expected parts above 0"),
        (FewLinear(fractions=(float("nan"),)), "fractions: nan"),
        (FewLinear(fractions=(10.0,)), "such as 0.01 for 1 %"),
        (FewLinear(draws=0), "needs draws of at least 1"),
        (FewLinear(draws=10**9), "expected at most 10,000"),
        (FewLinear(shots=(99,)), "give evaluate.few_linear.shots of at most"),
        (FewLinear(C=(-1.0,)), "evaluate.few_linear.C: expected one or more numbers"),
    ],
)
def test_numbers_out_of_range_are_named(protocol: FewLinear | FewShotRidge, sentence: str) -> None:
    x, y = blobs(80, 0)
    with pytest.raises(UserError, match=sentence):
        protocol.requires("name", asked(x, y))
    some = y != 2
    if isinstance(protocol, FewLinear):
        with pytest.raises(UserError, match=f"class {CLASSES[2]} has no training images"):
            replace(protocol, shots=(), draws=1, C=None, fractions=(0.5,)).requires("name", asked(x[some], y[some]))
