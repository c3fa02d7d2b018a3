"""`rootstock help KEY`, on a small schema of its own and on the one that ships."""

from collections.abc import Mapping
from typing import Annotated, Any

import pytest

from rootstock.core.config.resolve import Choice, Duration, Section, json_schema
from rootstock.core.errors import UserError
from rootstock.launch import keys
from rootstock.launch.keys import every_key, explain
from rootstock.launch.schema_file import stored_schema, verbs_of


def simclr(*, temperature: float = 0.2) -> None:
    """Contrast of two views. Published.

    temperature: Temperature of the softmax.
    """


def mae(*, temperature: float = 0.2, mask: float) -> None:
    """Masked patches.

    temperature: Temperature of the softmax.
    mask: Fraction of patches that are masked.
    """


def optim(*, lr: float = 1e-3, warmup: Duration | None = None) -> None:
    """The optimizer.

    lr: Learning rate.
    warmup: Time until the rate is reached; null is none.
    """


def pretrain(
    *,
    method: Annotated[Mapping, Choice({"simclr": simclr, "mae": mae})],
    optim: Annotated[Mapping, Section(optim)] = {},
) -> None:
    """Pretrain.

    method: The objective.
    optim: How weights are updated.
    """


def probe(*, optim: Annotated[Mapping, Section(optim)] = {}, seed: int = 0) -> None:
    """Probe.

    optim: How weights are updated.
    seed: Number that all randomness comes from.
    """


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = json_schema({"pretrain": pretrain, "probe": probe})
    monkeypatch.setattr(keys, "stored_schema", lambda: schema)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("optim.lr", "optim.lr\n\n  Learning rate.\n  type: a number\n  default: 0.001\n  in: pretrain, probe"),
        (
            "optim.warmup",
            "optim.warmup\n\n  Time until the rate is reached; null is none.\n"
            "  type: a duration (100 for steps, 10ep for epochs, 50% for a part) or null\n  default: null\n"
            "  in: pretrain, probe",
        ),
        ("optim", "optim\n\n  How weights are updated.\n  keys: lr, warmup\n  default: {}\n  in: pretrain, probe"),
        ("method", "method\n\n  The objective.\n  one of: simclr, mae\n  required\n  in: pretrain"),
        ("method.simclr", "method.simclr\n\n  Contrast of two views. Published.\n  keys: temperature\n  in: pretrain"),
        (
            "method.temperature",
            "method.temperature\n\n  Temperature of the softmax.\n  type: a number\n  default: 0.2\n"
            "  in: pretrain (method simclr), pretrain (method mae)",
        ),
        (
            "method.mae.mask",
            "method.mae.mask\n\n  Fraction of patches that are masked.\n  type: a number\n  required\n"
            "  in: pretrain (method mae)",
        ),
        ("probe", "probe is a verb; see rootstock probe --help. Keys of its configs: optim, seed, extends"),
    ],
)
def test_what_is_said_of_a_key(key: str, text: str) -> None:
    assert explain(key) == text


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("optim.lrr", "optim.lrr: unknown key; did you mean lr? (known: lr, warmup)"),
        ("optm", "optm: unknown key; did you mean optim? (known: method, optim, extends, seed)"),
        ("lr", "lr: unknown key; did you mean optim.lr? (known: method, optim, extends, seed)"),
        ("method.simclr.mask", "method.simclr.mask: unknown key; did you mean method.mask? (known: name, temperature)"),
        ("seed.x", "seed.x: unknown key; did you mean seed? (known: method, optim, extends, seed)"),
    ],
)
def test_an_unknown_key(key: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        explain(key)
    assert str(caught.value) == sentence


def test_without_a_key_it_says_how_to_ask() -> None:
    assert "rootstock help optim.lr" in explain(None)


def test_without_the_schema_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "stored_schema", lambda: None)
    with pytest.raises(UserError, match=r"schema\.json is missing or damaged; run `make schema`"):
        explain("optim.lr")


def test_every_key_that_ships_can_be_asked_for() -> None:
    schema: dict[str, Any] | None = stored_schema()
    assert schema is not None
    every = [key for verb in verbs_of(schema) for key in every_key(schema, verb)]
    texts = {spelling: explain(spelling) for spelling in ("optim.lr", "method.simclr", "data.views.jitter", "run.dir")}
    assert all(text.startswith(f"{spelling}\n\n  ") and "\n  in: " in text for spelling, text in texts.items())
    assert {"method.simclr.temperature", "data.views.simclr.jitter", "data.views.jitter", "evaluate.knn.k"} <= {
        spelling for key in every for spelling in key.spellings
    }
