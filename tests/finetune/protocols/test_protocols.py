import dataclasses
import json
import re
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from rootstock.core.errors import MachineError, UserError
from rootstock.core.evaluate.calibration import fit_temperature
from rootstock.core.evaluate.held_out import held_out_rows
from rootstock.core.evaluate.intervals import mean_interval
from rootstock.core.evaluate.knn import knn_predict
from rootstock.core.evaluate.logreg import fit_choosing_C
from rootstock.core.evaluate.metrics import classification
from rootstock.core.evaluate.scores import Scored
from rootstock.core.images.images import Images
from rootstock.core.images.store import Store
from rootstock.core.views.view import Evaluation
from rootstock.finetune.protocols.attentive import Attentive, fit_choosing
from rootstock.finetune.protocols.contract import Counts, Fitted, Known, Measuring, ProbeProtocol
from rootstock.finetune.protocols.few_labels import drawn_rows
from rootstock.finetune.protocols.fewshot import FewShot
from rootstock.finetune.protocols.knn import KNN
from rootstock.finetune.protocols.linear import COARSE_GRID, Linear
from rootstock.finetune.protocols.outcomes import (
    CANDIDATES_SHOWN,
    add_outcome,
    ends_chosen,
    given_to_all,
    say_ends,
    say_what_was_done,
    with_settings,
)
from rootstock.finetune.protocols.registry import (
    PRESETS,
    SECTIONS,
    chosen_protocols,
    naming_preset,
    preset_of,
    published,
    section_of,
)

CLASSES = ("ant", "bee", "cat", "dog")
Tests = dict[str, tuple[Tensor, Tensor]]
# Every protocol, and what makes its training short where that matters.
QUICK: dict[str, dict[str, Any]] = {
    "attentive": {"epochs": 10},
    "linear_sgd": {"augment": "none"},
    "linear-simclr": {"augment": "none"},
    "linear-simclr-cifar": {"augment": "none"},
    "linear-mae": {"augment": "none", "lr": (30.0,)},
    "linear-dinov2": {"augment": "none", "steps": 100},
    "attentive_capi": {"augment": "none", "steps": 100, "sources": ("cls",), "weight_decay": (5e-4,)},
    "attentive-capi": {"augment": "none", "steps": 100, "sources": ("avg_patch",), "lr": (1e-2,)},
    "prototypes": {"per_class": 3, "candidates": 2, "C": (0.03, 0.3)},
}
EVERY: dict[str, ProbeProtocol] = {name: make(**QUICK.get(name, {})) for name, make in SECTIONS.items()}
EVERY |= {name: dataclasses.replace(cast("Any", make()), **QUICK.get(name, {})) for name, make in PRESETS.items()}
# Those whose batches are drawn over rows.
BY_ROWS = {name for name in EVERY if name.startswith(("attentive", "linear_sgd", "linear-"))}


def blobs(n: int, seed: int, dim: int = 6) -> tuple[Tensor, Tensor]:
    centres = torch.randn(4, dim, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (n,), generator=generator)
    return 3 + 1.3 * centres[y] + torch.randn(n, dim, generator=generator), y


def taps(x: Tensor) -> dict[str, Tensor]:
    """Features under every tap; an image has one token, its features, or those that `x` gives it."""
    if x.ndim == 3:
        return {"tokens": x, "patches": x}
    vectors = ("pooled", "cls", "mean", "cls+mean", "last4", "last4+mean")
    return {**dict.fromkeys(("tokens", "patches"), x[:, None]), **dict.fromkeys(vectors, x)}


def known(x: Tensor, y: Tensor, keys: Tensor | None = None, seed: int = 0) -> Known:
    """Each image has an identity of its own, unless keys are given."""
    return Known(taps(x), y, torch.arange(len(y)) if keys is None else keys, CLASSES, seed)


def asked(x: Tensor, y: Tensor, keys: Tensor | None = None) -> Counts:
    return Counts(y, torch.arange(len(y)) if keys is None else keys, CLASSES)


def images(y: Tensor) -> Images:
    """A set of that many labelled images."""
    pixels = torch.arange(len(y))[:, None, None, None].expand(-1, 1, 1, 2).to(torch.uint8)
    keys = torch.arange(len(y))
    store = SimpleNamespace(rows=lambda index: pixels[index], keys=lambda: keys)
    zeros, cast_store = torch.zeros(len(y), dtype=torch.int64), cast("Store", store)
    return Images("x", [cast_store], zeros, keys, labels=y, classes=CLASSES, domains=zeros, domain_names=("x",))


def scored(name: str, protocol: ProbeProtocol, train: Known, tests: Tests) -> tuple[Scored, Fitted]:
    """Fit a protocol and score tests, as the recipe does."""
    scores, fitted = Scored(CLASSES, 0), protocol.fit(train)
    sets = {test: images(y) for test, (_, y) in tests.items()}
    add_outcome(scores, name, fitted, sets, {test: taps(x) for test, (x, _) in tests.items()})
    return scores, fitted


@pytest.fixture
def train() -> Known:
    return known(*blobs(240, seed=0))


@pytest.fixture
def tests() -> Tests:
    return {"near": blobs(60, seed=1), "far": blobs(40, seed=2)}


@pytest.mark.parametrize("name", sorted(EVERY))
def test_outcome(name: str, train: Known, tests: Tests) -> None:
    """Metrics are TEST/PROTOCOL/METRIC with accuracy first, details are JSON, and both share their keys."""
    scores, fitted = scored(name, EVERY[name], train, tests)
    metrics = ("accuracy", "precision", "recall", "f1")
    for test in tests:
        assert [m for m in scores.metrics if m.startswith(f"{test}/{name}/")][:4] == [
            f"{test}/{name}/{m}" for m in metrics
        ]
    assert list(scores.details) == [f"{test}/{name}" for test in tests]
    told = [scores.as_result(), fitted.chosen, fitted.candidates, fitted.fit, fitted.facts]
    json.dumps(told, allow_nan=False)
    assert isinstance(EVERY[name], ProbeProtocol)
    for key, details in scores.details.items():
        assert all(scores.metrics[f"{key}/{metric}"] == details[metric] for metric in metrics)
        assert scores.metrics[f"{key}/accuracy"] > 0.5


@pytest.mark.parametrize("name", sorted(EVERY))
def test_the_whole_protocol_and_every_candidate_are_printed(name: str, train: Known) -> None:
    fitted, lines = EVERY[name].fit(train), list[str]()
    settings = {**fitted.facts["settings"], **published(name)}
    assert settings["chosen"] != "nothing" if fitted.candidates else settings["chosen"] == "nothing"
    if name in PRESETS:
        assert "224 px" in settings["expects"] or "32 px" in settings["expects"]
        assert {"tap", "inputs", "sources"} & settings.keys() and {"trained", "optimizer"} & settings.keys()
    say_what_was_done(name, fitted, lines.append)
    assert len(lines) == 1 + len(fitted.candidates) and all(line.startswith(f"{name}: ") for line in lines)
    for row, line in zip(fitted.candidates, lines[1:], strict=True):
        printed = float(re.search(r"accuracy ([0-9.e-]+)", line)[1])  # pyright: ignore[reportOptionalSubscript]
        assert printed == pytest.approx(row["accuracy"], rel=5e-4) and len(line) < 140
    many = fitted._replace(candidates=({"C": 1.0, "accuracy": 0.5},) * (CANDIDATES_SHOWN + 2))
    lines.clear()
    say_what_was_done(name, many, lines.append)
    assert lines[-1] == f"{name}: 2 more candidates are in result.json" and len(lines) == CANDIDATES_SHOWN + 2


@pytest.mark.parametrize("name", sorted(EVERY))
def test_scores_are_one_for_each_class(name: str, train: Known, tests: Tests) -> None:
    """Also for a class without training images, and for a set of one or no test image, which scores as among others."""
    some = train.rows((train.labels != 2).nonzero()[:, 0])
    if name == "fewshot":  # which needs images of each class
        some = train
    fitted, x = EVERY[name].fit(some), tests["near"][0]
    found = fitted.scores(taps(x))
    assert found.shape[-2:] == (60, 4) and not bool(found.isnan().any())
    assert not bool((found.argmax(-1) == 2).any()) or name == "fewshot"
    for n in (1, 0):
        assert torch.allclose(fitted.scores(taps(x[:n])).double(), found[..., :n, :].double(), atol=1e-3)
    if fitted.held_out is not None:
        assert fitted.held_out[0].shape == (len(fitted.held_out[1]), 4)


@pytest.mark.parametrize("name", sorted(EVERY))
def test_the_training_set_is_all_that_is_fitted_and_its_order_is_no_matter(
    name: str, train: Known, tests: Tests
) -> None:
    """Test labels reach no protocol; a shuffled training set gives the same choices and predictions."""
    order = torch.randperm(240, generator=torch.Generator().manual_seed(1))
    one, other = (EVERY[name].fit(given) for given in (train, train.rows(order)))
    if name in BY_ROWS:
        return
    assert one.chosen == other.chosen
    assert torch.equal(*(fitted.scores(taps(tests["near"][0])).argmax(-1) for fitted in (one, other)))


@pytest.mark.parametrize("name", sorted(SECTIONS))
def test_fields_are_keys_with_defaults(name: str) -> None:
    fields = dataclasses.fields(cast("Any", SECTIONS[name]))
    assert all(field.default is not dataclasses.MISSING and field.kw_only for field in fields)


def test_a_protocol_is_run_for_each_tap() -> None:
    chosen = chosen_protocols(
        {"knn": {"taps": ["pooled", "cls"]}, "linear": {"taps": ["layers"]}}, ("block0", "block1")
    )
    assert list(chosen) == ["knn", "knn@cls", "linear@block0", "linear@block1"]
    assert [protocol.reads for protocol in chosen.values()] == [("pooled",), ("cls",), ("block0",), ("block1",)]
    assert list(chosen_protocols({}, ())) == ["knn"]
    with pytest.raises(UserError, match="unknown preset 'dinov9'"):
        chosen_protocols({"presets": ["dinov9"]}, ())


def test_knn(train: Known, tests: Tests) -> None:
    scores, fitted = scored("knn", KNN(k=7, temperature=0.2), train, tests)
    x, y = tests["far"]
    shares = fitted.scores(taps(x))
    expected = knn_predict(train.features["pooled"], train.labels, x, 4, k=7, temperature=0.2)
    assert torch.equal(shares.argmax(1), expected) and torch.allclose(shares.sum(1).float(), torch.ones(40), atol=2e-3)
    told = {**classification(y, expected, CLASSES), "classes": list(CLASSES), "k": 7, "kind": "votes"}
    assert told.items() <= scores.details["far/knn"].items()
    assert (fitted.chosen, fitted.candidates) == ({}, ())


def test_presets_are_their_parameters() -> None:
    made = chosen_protocols({"presets": ["knn-lightly", "knn-dino", "logreg"]}, ())
    assert cast("KNN", made["knn-lightly"]).grid == [(200, 0.1)]
    assert cast("KNN", made["knn-dino"]).grid == [(k, 0.07) for k in (10, 20, 100, 200)]
    grid = cast("Linear", made["logreg"]).C
    assert grid is not None and len(grid) == 45 and (grid[0], grid[-1]) == pytest.approx((1e-6, 1e5))


def test_k_and_temperature_are_chosen_on_the_held_out_slice(train: Known) -> None:
    x, y = train.features["pooled"], train.labels
    outer = held_out_rows(train.keys, y, seed=3)
    fitted = KNN(k=(120, 1, 9), temperature=(0.5, 0.05)).fit(train._replace(seed=3))
    grid = [(k, warmth) for k in (1, 9, 120) for warmth in (0.05, 0.5)]
    right = [
        int((knn_predict(x[~outer], y[~outer], x[outer], 4, k=k, temperature=warmth) == y[outer]).sum())
        for k, warmth in grid
    ]
    assert [row["accuracy"] for row in fitted.candidates] == [hits / int(outer.sum()) for hits in right]
    assert tuple(fitted.chosen.values()) == grid[right.index(max(right))]
    assert fitted.held_out is not None and int((fitted.held_out[0].argmax(1) == y[outer]).sum()) == max(right)


def test_linear(train: Known, tests: Tests) -> None:
    fitted = Linear().fit(train._replace(seed=4))
    expected = fit_choosing_C(train.features["pooled"], train.labels, train.keys, 4, seed=4, values_of_C=COARSE_GRID)
    x = tests["near"][0]
    assert torch.equal(fitted.scores(taps(x)).argmax(1), expected.predict(x))
    assert fitted.chosen == {"C": expected.C}
    fits = fitted.fit
    assert [fit["C"] for fit in fits["choice"]] == list(COARSE_GRID) and fits["refit"]["C"] == expected.C
    assert all(fit["converged"] and fit["iterations"] > 0 for fit in [*fits["choice"], fits["refit"]])
    single = Linear(C=(0.5,)).fit(train)
    assert (single.chosen, single.fit["choice"], single.candidates, single.held_out) == ({}, [], (), None)


@pytest.mark.parametrize(
    ("grid", "chosen", "ends", "said"),
    [
        ((1.0, 10.0, 100.0), 100.0, {"C": {"lowest": 0, "highest": 1}}, ["C = 100 was chosen, the highest of 3 that were tried;"]),
        ((1.0, 10.0, 100.0), 10.0, {}, []),
        ((1.0, 10.0), 10.0, {}, []),
        (
            (1.0, 10.0, 100.0),
            [1.0, 100.0, 10.0, 100.0],
            {"C": {"lowest": 1, "highest": 2}},
            ["C = 1 was chosen, the lowest of 3 that were tried, in 1 of 4 draws;", "C = 100 was chosen, the highest of 3 that"],
        ),
    ],
)  # fmt: skip
def test_a_choice_at_an_end_of_its_grid_is_said_and_kept(
    grid: tuple[float, ...], chosen: Any, ends: dict[str, Any], said: list[str]
) -> None:
    fitted = Fitted(
        lambda _: torch.zeros(0), "logits", {"C": chosen}, tuple({"C": one, "accuracy": 0.5} for one in grid)
    )
    lines = list[str]()
    say_ends("linear", fitted, lines.append)
    assert len(lines) == len(said)
    assert all(line.startswith(f"WARNING: linear: {start}") for line, start in zip(lines, said, strict=True))
    assert with_settings(fitted, ["pooled"], {}).facts.get("chosen_at_the_ends", {}) == ends


def test_nothing_lies_below_no_decay_and_one_neighbour() -> None:
    rows = tuple({"k": k, "weight_decay": decay} for k, decay in ((1, 0.0), (5, 0.1), (10, 0.2)))
    fitted = Fitted(lambda _: torch.zeros(0), "votes", {"k": 1, "weight_decay": 0.0}, rows)
    assert ends_chosen(fitted) == {}
    assert ends_chosen(fitted._replace(chosen={"k": 10, "weight_decay": 0.2})).keys() == {"k", "weight_decay"}


def test_settings_have_the_view_the_weights_and_what_a_tap_is() -> None:
    """Beside what the publication expects, and the same for protocols that compare images."""
    view = Evaluation(32, mean=(0.5, 0.5, 0.5))
    given = given_to_all(view, "none", "ab12", 60)
    for fitted in (
        Fitted(lambda _: torch.zeros(0), "votes", facts={"settings": {"k": 5}}),
        Measuring(cast("Any", None)),
    ):
        told = with_settings(fitted, ["cls+mean", "block3"], {"expects": "224 px", **given})
        lines = list[str]()
        say_what_was_done("knn", told, lines.append)
        assert (
            '"pictures resized and cropped to 32 px, bilinear", mean [0.5, 0.5, 0.5], std [0.229, 0.224, 0.225]'
            in lines[0]
        )
        assert 'expects "224 px"' in lines[0] and lines[0].endswith(
            'weights "none", weights_sha256 "ab12", train_images 60'
        )
        meant = "the class token after the last norm and the mean of the patch tokens after the last norm; the mean over all "
        assert told.facts["settings"]["features"].startswith(f"{meant}places of block 3")
        assert fitted.facts.get("settings", {}).items() <= told.facts["settings"].items()


def test_linear_tells_every_candidate_and_what_it_scores_on_the_slice(train: Known) -> None:
    """Each C by itself on the fitted part; a temperature is fitted on the scores of the best one there, not of the refit."""
    x, y = train.features["pooled"], train.labels
    outer = held_out_rows(train.keys, y, seed=0)
    scores, fitted = scored("linear", Linear(C=(1e-3, 1e-5, 10.0)), train, {"near": blobs(60, seed=1)})
    alone = [
        fit_choosing_C(x[~outer], y[~outer], train.keys, 4, seed=0, values_of_C=[row["C"]]) for row in fitted.candidates
    ]
    assert [row["C"] for row in fitted.candidates] == [1e-5, 1e-3, 10.0]
    right = [float((model.predict(x[outer]) == y[outer]).float().mean()) for model in alone]
    assert [row["accuracy"] for row in fitted.candidates] == pytest.approx(right)
    assert all(row["converged"] and row["iterations"] > 0 for row in fitted.candidates)
    best = right.index(max(right))
    assert fitted.held_out is not None and torch.equal(fitted.held_out[1], y[outer])
    torch.testing.assert_close(fitted.held_out[0], alone[best].logits(x[outer]), rtol=1e-4, atol=1e-4)
    temperature = fit_temperature(fitted.held_out[0].numpy(), fitted.held_out[1].numpy()).value
    assert scores.details["near/linear"]["temperature"]["value"] == temperature


def test_a_held_out_class_that_the_fitted_part_lacks_has_no_part_in_the_temperature() -> None:
    """Class 3 has one image of its own, and another that lies on a held-out key of class 0."""
    x, y = blobs(60, seed=0)
    y = y % 3
    keys = torch.arange(60)
    outer = held_out_rows(keys, y, seed=0).nonzero()[0, 0]
    x, y, keys = torch.cat([x, x[outer][None]]), torch.cat([y, torch.tensor([3])]), torch.cat([keys, keys[outer][None]])
    scores, fitted = scored("linear", Linear(), known(x, y, keys), {"near": blobs(60, seed=1)})
    assert fitted.held_out is not None and 3 not in fitted.held_out[1]
    # The image of class 3 could never be right; the others all are.
    assert scores.details["near/linear"]["left_out"]["nll_scaled"].endswith("of which 100% are right")


def test_attentive(train: Known, tests: Tests) -> None:
    x, test_x = train.features["pooled"].view(-1, 2, 3), tests["near"][0].view(-1, 2, 3)
    options = Attentive(epochs=3, lr=(1e-3, 1e-2))
    fitted = options.fit(known(x, train.labels, seed=4))
    model = fit_choosing(x, train.labels, train.keys, 4, options, 4)
    assert torch.equal(fitted.scores(taps(test_x)), model.logits(test_x)[0])
    assert fitted.chosen == {"lr": model.grid[0][0], "weight_decay": 0.1}
    assert [row["lr"] for row in fitted.candidates] == [1e-3, 1e-2]
    assert max(row["accuracy"] for row in fitted.candidates) > 0.25
    assert Attentive(epochs=1, lr=1e-2).fit(known(x, train.labels)).chosen == {}


def test_fewshot_with_all_images_is_the_nearest_mean(tests: Tests) -> None:
    """As many shots as images: there is one draw, which equals cosines with class means by hand."""
    x, _ = blobs(40, seed=0)
    y = torch.arange(40) % 4
    scores, fitted = scored("fewshot", FewShot(shots=10, draws=3), known(x, y), tests)
    test_x, labels = tests["near"]
    centre = x.mean(0)
    unit = [(row - centre) / (row - centre).norm() for row in x]
    means = [torch.stack([u for u, label in zip(unit, y, strict=True) if label == c]).mean(0) for c in range(4)]
    slow = [max(range(4), key=lambda c: float((row - centre) @ means[c] / means[c].norm())) for row in test_x]
    assert fitted.scores(taps(test_x)).argmax(-1).tolist() == [slow]
    accuracy = sum(a == b for a, b in zip(slow, labels.tolist(), strict=True)) / len(slow)
    assert scores.metrics["near/fewshot/accuracy"] == pytest.approx(accuracy)
    low, high = scores.intervals["near/fewshot/accuracy"]
    assert low < high  # over the images


def test_fewshot_draws(train: Known, tests: Tests) -> None:
    far = {"far": tests["far"]}
    scores, fitted = scored("fewshot", FewShot(shots=1, draws=12), train, far)
    accuracies = scores.details["far/fewshot"]["draws"]
    mean, low, high = mean_interval(accuracies)
    assert len(set(accuracies)) > 3
    assert scores.metrics["far/fewshot/accuracy"] == pytest.approx(mean)
    assert scores.details["far/fewshot"]["intervals"]["draws"] == [low, high]
    more, _ = scored("fewshot", FewShot(shots=20, draws=12), train, far)
    assert more.metrics["far/fewshot/accuracy"] > mean
    other, _ = scored("fewshot", FewShot(shots=1, draws=12), train._replace(seed=1), far)
    assert other.metrics != scores.metrics
    # Draw i is the same however many draws there are.
    fewer, one = scored("fewshot", FewShot(shots=1, draws=1), train, far)
    x = taps(tests["far"][0])
    assert torch.allclose(one.scores(x)[0], fitted.scores(x)[0], atol=1e-6)
    # One draw has no spread: its interval is that over the images.
    low, high = fewer.intervals["far/fewshot/accuracy"]
    assert low < fewer.metrics["far/fewshot/accuracy"] < high and "draws" not in fewer.details["far/fewshot"]


def test_fewshot_draws_different_pictures() -> None:
    """Each class has 3 pictures in 5 blends: a draw has no two blends of a picture, and every blend is drawn by some draw."""
    y = torch.arange(60) // 15
    keys = torch.arange(60) // 5 * 1000003 - 5
    rows = drawn_rows(keys, y, 0, 3, 40)
    assert rows.shape == (40, 4, 3) and bool((y[rows] == torch.arange(4)[:, None]).all())
    assert all(len(keys[rows[i, c]].unique()) == 3 for i in range(40) for c in range(4))
    assert len(rows.unique()) == 60
    # The order of the pictures changes no draw.
    shuffled = (
        torch.randperm(12, generator=torch.Generator().manual_seed(0)).repeat_interleave(5) * 5 + torch.arange(60) % 5
    )
    again = drawn_rows(keys[shuffled], y[shuffled], 0, 3, 40)
    assert torch.equal(shuffled[again], rows)


def test_bad_parameters_are_named(train: Known) -> None:
    x, y = train.features["pooled"], train.labels
    some = y != 2
    with pytest.raises(
        UserError, match="class cat has 0 different training images, fewer than shots = 5; leave the cl"
    ):
        FewShot().requires("fewshot", asked(x[some], y[some]))
    with pytest.raises(UserError, match=r"fewer than shots = 99; give evaluate.fewshot.shots of at most \d\d, or add"):
        FewShot(shots=99).requires("fewshot@cls", asked(x, y))
    with pytest.raises(UserError, match="has 1 different training images"):  # copies of one picture
        FewShot(shots=2).requires("fewshot", asked(x, y, y))
    with pytest.raises(UserError, match="shots and draws of at least 1"):
        FewShot(shots=0).requires("fewshot", asked(x, y))
    with pytest.raises(UserError, match="at least one k"):
        KNN(k=()).requires("knn", asked(x, y))
    with pytest.raises(UserError, match="give a single k"):
        KNN(k=(1, 2)).requires("knn", asked(x[:2], y[:2], torch.zeros(2, dtype=torch.int64)))


def test_names_of_presets() -> None:
    for name, preset in (
        ("linear-simclr", "linear-simclr"), ("linear-simclr-cifar", "linear-simclr-cifar"), ("logreg", "logreg"), ("linear", None),
        ("ridge-bigvision-5shot", "ridge-bigvision"), ("ridge-5shot", None), ("attentive-capi-cls", "attentive-capi"), ("knn@cls", None),
    ):  # fmt: skip
        assert preset_of(name) == preset
    sections = ["knn", "knn", "linear", "ridge", *["linear_sgd"] * 4, "attentive_capi"]
    assert [section_of(PRESETS[name]()) for name in PRESETS] == sections


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("knn-dino", "knn={...}"),
        ("ridge-bigvision-25shot", "ridge={...}"),
        ("linear-dinov2", "linear_sgd={preset: linear-dinov2, ...}"),
        ("attentive-capi-cls", "attentive_capi={...}"),
    ],
)
def test_an_error_of_a_preset_says_which_section_to_give(name: str, given: str) -> None:
    """Its numbers are no keys, so a remedy that names a key would change nothing."""
    x, _ = blobs(8, 0)
    protocol = chosen_protocols({"presets": [preset_of(name)]}, ())[name]
    with (
        pytest.raises(UserError, match=rf"evaluate\..* is a preset, .* and give evaluate\.{re.escape(given)}\)$"),
        naming_preset(name, protocol),
    ):
        protocol.requires(name, asked(x[:4], torch.arange(4)))
    for error in (
        UserError("evaluate.knn.k: 0"),
        MachineError("the disk is full: evaluate.x"),
        UserError("3 pictures are damaged"),
    ):
        section = "knn" if "evaluate.knn" in str(error) else name
        with pytest.raises(type(error), match=f"^{error}$"), naming_preset(section, protocol):
            raise error
