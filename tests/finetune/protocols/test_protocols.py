import inspect
import json

import pytest
import torch
from torch import Tensor

from rootstock.core.errors import UserError
from rootstock.core.evaluate.held_out import held_out_rows
from rootstock.core.evaluate.intervals import mean_interval
from rootstock.core.evaluate.knn import knn_predict
from rootstock.core.evaluate.logreg import fit_choosing_C
from rootstock.core.evaluate.metrics import classification
from rootstock.finetune.protocols.attentive import AttentiveTraining, attentive, fit_choosing
from rootstock.finetune.protocols.fewshot import _drawn, fewshot
from rootstock.finetune.protocols.knn import knn, knn_dino, knn_lightly
from rootstock.finetune.protocols.linear import COARSE_GRID, linear
from rootstock.finetune.protocols.outcome import SCORES, Outcome
from rootstock.finetune.protocols.registry import PROTOCOLS, READ_TOKENS

CLASSES = ["ant", "bee", "cat", "dog"]
Train = tuple[Tensor, Tensor, Tensor]


def blobs(n: int, seed: int, dim: int = 6) -> tuple[Tensor, Tensor]:
    centres = torch.randn(4, dim, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (n,), generator=generator)
    return 3 + 1.3 * centres[y] + torch.randn(n, dim, generator=generator), y


def run(name: str, train: Train, tests: dict[str, tuple[Tensor, Tensor]], seed: int = 0) -> Outcome:
    """Run a protocol by name. Those that read tokens get one token for each image: its features."""
    if name in READ_TOKENS:
        tokens = {test: (x[:, None], y) for test, (x, y) in tests.items()}
        return PROTOCOLS[name](train[0][:, None], *train[1:], tokens, CLASSES, seed, epochs=10)
    return PROTOCOLS[name](*train, tests, CLASSES, seed)


def keyed(x: Tensor, y: Tensor) -> Train:
    """Each image has an identity of its own."""
    return x, y, torch.arange(len(y))


@pytest.fixture
def train() -> Train:
    return keyed(*blobs(240, seed=0))


@pytest.fixture
def tests() -> dict[str, tuple[Tensor, Tensor]]:
    return {"near": blobs(60, seed=1), "far": blobs(40, seed=2)}


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_outcome(name: str, train: Train, tests: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Metrics are TEST/PROTOCOL/METRIC with accuracy first, details are JSON, and both share their keys."""
    outcome = run(name, train, tests)
    assert list(outcome.metrics) == [f"{test}/{name}/{score}" for test in tests for score in SCORES]
    assert list(outcome.details) == list(outcome.predictions) == [f"{test}/{name}" for test in tests]
    json.dumps([outcome.metrics, outcome.details, outcome.intervals, outcome.chosen], allow_nan=False)
    assert (outcome.selection == "train-split") == bool(outcome.chosen)
    for key, details in outcome.details.items():
        assert all(outcome.metrics[f"{key}/{score}"] == details[score] for score in SCORES)
        assert outcome.metrics[f"{key}/accuracy"] > 0.5


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_test_labels_only_score(name: str, train: Train, tests: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Shuffled test labels change no prediction and no choice."""
    shuffled = {test: (x, y.roll(7)) for test, (x, y) in tests.items()}
    outcome, other = (run(name, train, given) for given in (tests, shuffled))
    assert outcome.chosen == other.chosen
    assert all(torch.equal(outcome.predictions[key], other.predictions[key]) for key in outcome.predictions)
    assert outcome.metrics != other.metrics


@pytest.mark.parametrize("name", PROTOCOLS)
def test_positional_arguments_are_built_and_the_rest_is_config(name: str) -> None:
    parameters = inspect.signature(PROTOCOLS[name]).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    # Tokens stay on the CPU, so their protocol takes the device to train on.
    assert positional == [
        "train_x",
        "train_y",
        "train_keys",
        "tests",
        "classes",
        "seed",
        *(["device"] if name in READ_TOKENS else []),
    ]
    assert all(p.default is not p.empty for p in parameters if p.kind is p.KEYWORD_ONLY)


def test_knn(train: Train, tests: dict[str, tuple[Tensor, Tensor]]) -> None:
    outcome = knn(*train, tests, CLASSES, 0, k=7, temperature=0.2)
    x, y = tests["far"]
    expected = knn_predict(*train[:2], x, 4, k=7, temperature=0.2)
    assert torch.equal(outcome.predictions["far/knn"], expected)
    assert outcome.details["far/knn"] == {**classification(y, expected, CLASSES), "k": 7}
    assert outcome.selection == "last"


def test_presets_are_their_parameters(train: Train, tests: dict[str, tuple[Tensor, Tensor]]) -> None:
    pairs = [
        (knn_lightly(*train, tests, CLASSES, 0), knn(*train, tests, CLASSES, 0, k=200, temperature=0.1)),
        (knn_dino(*train, tests, CLASSES, 0), knn(*train, tests, CLASSES, 0, k=[100, 10, 200, 20])),
    ]
    for preset, plain in pairs:
        assert list(preset.metrics.values()) == list(plain.metrics.values())
        assert list(preset.chosen.values()) == list(plain.chosen.values())


def test_k_is_chosen_on_the_held_out_slice(train: Train, tests: dict[str, tuple[Tensor, Tensor]]) -> None:
    x, y, keys = train
    held_out = held_out_rows(keys, y, seed=3)
    values = [1, 9, 120]
    right = [int((knn_predict(x[~held_out], y[~held_out], x[held_out], 4, k=k) == y[held_out]).sum()) for k in values]
    outcome = knn(*train, tests, CLASSES, 3, k=values)
    assert outcome.chosen == {"knn/k": values[right.index(max(right))]}
    assert outcome.selection == "train-split"


def test_linear(train: Train, tests: dict[str, tuple[Tensor, Tensor]]) -> None:
    outcome = linear(*train, tests, CLASSES, 4)
    expected = fit_choosing_C(*train, 4, seed=4, values_of_C=COARSE_GRID)
    assert torch.equal(outcome.predictions["near/linear"], expected.predict(tests["near"][0]))
    assert outcome.chosen == {"linear/C": expected.C}
    fits = outcome.fits["linear"]
    assert [fit["C"] for fit in fits["choice"]] == list(COARSE_GRID) and fits["refit"]["C"] == expected.C
    assert all(fit["converged"] and fit["iterations"] > 0 for fit in [*fits["choice"], fits["refit"]])
    single = linear(*train, tests, CLASSES, 4, C=[0.5])
    assert (single.chosen, single.selection, single.fits["linear"]["choice"]) == ({}, "last", [])


def test_attentive(train: Train, tests: dict[str, tuple[Tensor, Tensor]]) -> None:
    x, y, keys = train[0].view(-1, 2, 3), *train[1:]
    tokens = {test: (features.view(-1, 2, 3), labels) for test, (features, labels) in tests.items()}
    outcome = attentive(x, y, keys, tokens, CLASSES, 4, epochs=3, lr=[1e-3, 1e-2])
    model = fit_choosing(x, y, keys, 4, AttentiveTraining(epochs=3, lr=(1e-3, 1e-2)), 4)
    assert torch.equal(outcome.predictions["near/attentive"], model.predict(tokens["near"][0]))
    assert outcome.chosen == {"attentive/lr": model.grid[0][0], "attentive/weight_decay": 0.1}
    single = attentive(x, y, keys, tokens, CLASSES, 4, epochs=1, lr=1e-2)
    assert (single.chosen, single.selection) == ({}, "last")


def test_fewshot_with_all_images_is_the_nearest_mean(tests: dict[str, tuple[Tensor, Tensor]]) -> None:
    """As many shots as images: every draw is the same, and equals cosines with class means by hand."""
    x, _ = blobs(40, seed=0)
    y = torch.arange(40) % 4
    outcome = fewshot(x, y, torch.arange(40), tests, CLASSES, 0, shots=10, draws=3)
    test_x, labels = tests["near"]
    centre = x.mean(0)
    unit = [(row - centre) / (row - centre).norm() for row in x]
    means = [torch.stack([u for u, label in zip(unit, y, strict=True) if label == c]).mean(0) for c in range(4)]
    slow = [max(range(4), key=lambda c: float((row - centre) @ means[c] / means[c].norm())) for row in test_x]
    assert outcome.predictions["near/fewshot"].tolist() == [slow] * 3
    accuracy = sum(a == b for a, b in zip(slow, labels.tolist(), strict=True)) / len(slow)
    assert outcome.metrics["near/fewshot/accuracy"] == pytest.approx(accuracy)
    assert outcome.intervals["near/fewshot/accuracy"] == pytest.approx([accuracy, accuracy])


def test_fewshot_draws(train: Train, tests: dict[str, tuple[Tensor, Tensor]]) -> None:
    outcome = fewshot(*train, tests, CLASSES, 0, shots=1, draws=12)
    accuracies = outcome.details["far/fewshot"]["draws"]
    mean, low, high = mean_interval(accuracies)
    assert len(set(accuracies)) > 3
    assert outcome.metrics["far/fewshot/accuracy"] == pytest.approx(mean)
    assert outcome.intervals["far/fewshot/accuracy"] == [low, high]
    more = fewshot(*train, tests, CLASSES, 0, shots=20, draws=12)
    assert more.metrics["far/fewshot/accuracy"] > mean
    assert fewshot(*train, tests, CLASSES, 1, shots=1, draws=12).metrics != outcome.metrics
    # Draw i is the same however many draws there are.
    fewer = fewshot(*train, tests, CLASSES, 0, shots=1, draws=1)
    assert torch.equal(fewer.predictions["far/fewshot"][0], outcome.predictions["far/fewshot"][0])
    assert fewer.intervals["far/fewshot/accuracy"] == [None, None]


def test_fewshot_draws_different_pictures() -> None:
    """Each class has 3 pictures in 5 blends: a draw has no two blends of a picture, and every blend is drawn by some draw."""
    y = torch.arange(60) // 15
    keys = torch.arange(60) // 5 * 1000003 - 5
    rows = _drawn(keys, y, 0, 3, 40)
    assert rows.shape == (40, 4, 3) and bool((y[rows] == torch.arange(4)[:, None]).all())
    assert all(len(keys[rows[i, c]].unique()) == 3 for i in range(40) for c in range(4))
    assert len(rows.unique()) == 60
    # The order of the pictures changes no draw.
    shuffled = (
        torch.randperm(12, generator=torch.Generator().manual_seed(0)).repeat_interleave(5) * 5 + torch.arange(60) % 5
    )
    again = _drawn(keys[shuffled], y[shuffled], 0, 3, 40)
    assert torch.equal(shuffled[again], rows)


def test_bad_parameters_are_named(train: Train, tests: dict[str, tuple[Tensor, Tensor]]) -> None:
    x, y, keys = train
    some = y != 2
    with pytest.raises(
        UserError, match="class cat has 0 different training images, fewer than shots = 5; leave the cl"
    ):
        fewshot(x[some], y[some], keys[some], tests, CLASSES, 0)
    with pytest.raises(UserError, match=r"fewer than shots = 99; give evaluate.fewshot.shots of at most \d\d, or add"):
        fewshot(*train, tests, CLASSES, 0, shots=99)
    with pytest.raises(UserError, match="has 1 different training images"):  # copies of one picture
        fewshot(x, y, y, tests, CLASSES, 0, shots=2)
    with pytest.raises(UserError, match="shots and draws of at least 1"):
        fewshot(*train, tests, CLASSES, 0, shots=0)
    with pytest.raises(UserError, match="at least one k"):
        knn(*train, tests, CLASSES, 0, k=[])
    with pytest.raises(UserError, match="give a single k"):
        knn(x[:2], y[:2], torch.zeros(2, dtype=torch.int64), tests, CLASSES, 0, k=[1, 2])
