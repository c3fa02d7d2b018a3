"""CAPI's probes against plain torch: attention, AdamW, warm-up, and the choice for each source."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, scaled_dot_product_attention

from rootstock.core import hostmemory
from rootstock.core.errors import UserError
from rootstock.core.evaluate.held_out import held_out_rows
from rootstock.core.stream.order import straddling
from rootstock.finetune.protocols import attentive_capi
from rootstock.finetune.protocols.attentive_capi import AttentiveCAPI
from rootstock.finetune.protocols.contract import Counts, Known
from rootstock.finetune.protocols.registry import chosen_protocols

CLASSES = ("ant", "bee", "cat")
N, LENGTH, WIDTH, STEPS, BATCH, SEED = 60, 5, 128, 10, 16, 2


def known(seed: int = 0) -> Known:
    """Patches of which one in each image shows the class."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (N,), generator=generator)
    signs = 2 * torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(5))
    x = torch.randn(N, LENGTH, WIDTH, generator=generator)
    x[torch.arange(N), torch.randint(LENGTH, (N,), generator=generator)] += signs[y]
    return Known({"patches": x, "cls": x[:, 0], "mean": x.mean(1)}, y, torch.arange(N), CLASSES, SEED)


def trained_by_torch(x: Tensor, y: Tensor, lr: float, decay: float, option: AttentiveCAPI) -> Any:
    """One attentive probe as CAPI has it, with the bias of the keys: a function of patches."""
    query, key, value, weight, value_bias, bias = (
        part.detach().clone().requires_grad_() for part in attentive_capi._start(WIDTH, 3, SEED, "cpu")
    )
    key_bias = torch.zeros(WIDTH, requires_grad=True)
    groups = [
        {"params": [query, key, value, weight], "weight_decay": decay},
        {"params": [key_bias, value_bias, bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95))

    def logits(x: Tensor) -> Tensor:
        def split(matrix: Tensor, shift: Tensor) -> Tensor:  # [N, H, L, 64]
            return linear(x, matrix.reshape(WIDTH, WIDTH), shift).view(len(x), LENGTH, 2, 64).transpose(1, 2)

        asked = query.expand(len(x), -1, -1, -1)
        pooled = scaled_dot_product_attention(asked, split(key, key_bias), split(value, value_bias))
        return linear(pooled.reshape(len(x), WIDTH), weight, bias)

    warm = round(option.warmup * STEPS)
    for step, rows in enumerate(straddling(SEED, "heads", len(y), BATCH, STEPS)):
        rate = step / warm if step < warm else (1 + math.cos(math.pi * (step - warm) / (STEPS - warm))) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate * lr * BATCH / 256
        optimizer.zero_grad()
        cross_entropy(logits(x[rows]), y[rows]).backward()
        optimizer.step()
    return logits


def test_patch_is_capis_attentive_probe() -> None:
    """Every candidate alone by torch on the fitted part, then the best on all images."""
    train, test = known(), known(1)
    option = AttentiveCAPI(
        sources=("patch",),
        lr=(0.002, 0.03),
        weight_decay=(5e-4, 0.5),
        steps=STEPS,
        batch_size=BATCH,
        warmup=0.2,
        augment="none",
    )
    fitted = option.fit(train)
    x, y = train.features["patches"], train.labels
    outer = held_out_rows(train.keys, y, seed=SEED)
    grid = [(lr, decay) for lr in (0.002, 0.03) for decay in (5e-4, 0.5)]
    scores = []
    for lr, decay in grid:
        shown = trained_by_torch(x[~outer], y[~outer], lr, decay, option)(x[outer]).detach()
        scores.append((int((shown.argmax(1) == y[outer]).sum()), -float(cross_entropy(shown, y[outer])), shown))
    found = [row["accuracy"] * int(outer.sum()) for row in fitted.candidates]
    assert found == pytest.approx([right for right, _, _ in scores])
    best = max(range(4), key=lambda i: scores[i][:2])
    assert fitted.chosen == {"tap": "patches", "lr": grid[best][0], "weight_decay": grid[best][1]}
    assert fitted.held_out is not None
    torch.testing.assert_close(fitted.held_out[0], scores[best][2], rtol=1e-3, atol=1e-4)
    expected = trained_by_torch(x, y, *grid[best], option)(test.features["patches"]).detach()
    torch.testing.assert_close(fitted.scores(test.features), expected, rtol=1e-3, atol=1e-4)
    told = fitted.facts["settings"]
    assert told["optimizer"] == "adamw, betas [0.9, 0.95]" and told["trained"]["warmup_steps"] == 2


@pytest.mark.parametrize(("source", "tap"), [("cls", "cls"), ("avg_patch", "mean")])
def test_the_other_sources_are_linear_layers(source: Any, tap: str) -> None:
    train, test = known(), known(1)
    option = AttentiveCAPI(
        sources=(source,), lr=(0.01,), weight_decay=(0.5,), steps=STEPS, batch_size=BATCH, warmup=0.2, augment="none"
    )
    fitted = option.fit(train)
    layer = nn.Linear(WIDTH, 3)
    layer.weight.data = (
        0.02
        * attentive_capi.Draws(SEED, torch.zeros(1, dtype=torch.int64), "heads/").normal(f"weight/{tap}", 3, WIDTH)[0]
    )
    layer.bias.data.zero_()
    groups = [{"params": [layer.weight], "weight_decay": 0.5}, {"params": [layer.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95))
    for step, rows in enumerate(straddling(SEED, "heads", N, BATCH, STEPS)):
        rate = step / 2 if step < 2 else (1 + math.cos(math.pi * (step - 2) / (STEPS - 2))) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.01 * BATCH / 256
        optimizer.zero_grad()
        cross_entropy(layer(train.features[tap][rows]), train.labels[rows]).backward()
        optimizer.step()
    torch.testing.assert_close(fitted.scores(test.features), layer(test.features[tap]).detach(), rtol=1e-4, atol=1e-5)


def test_it_is_its_publication() -> None:
    made = chosen_protocols({"presets": ["attentive-capi"]}, ())
    assert list(made) == ["attentive-capi-cls", "attentive-capi-avg_patch", "attentive-capi-patch"]
    assert [one.reads for one in made.values()] == [("cls",), ("mean",), ("patches",)]
    option = AttentiveCAPI()
    rates = [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2]
    assert list(option.lr) == rates and option.weight_decay == (5e-4, 1e-3, 5e-2)
    assert option.length.of(1_000_000) == (12_500, 1250, 1024)
    assert AttentiveCAPI(epochs=2).length.of(2048) == (4, 0, 1024)
    with pytest.raises(UserError, match="sources: an empty list is given; expected some of cls, avg_patch, patch"):
        chosen_protocols({"attentive_capi": {"sources": []}}, ())


def test_blocks_of_test_images_change_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    option = AttentiveCAPI(sources=("patch",), lr=(0.01,), weight_decay=(0.0,), steps=3, augment="none")
    fitted, test = option.fit(known()), known(1).features
    whole = fitted.scores(test)
    monkeypatch.setattr(attentive_capi, "PATCH_NUMBERS", 7 * LENGTH * WIDTH)
    torch.testing.assert_close(fitted.scores(test), whole)


def test_a_candidate_that_diverges_is_told_and_the_others_end_as_without_it() -> None:
    options = {"sources": ("patch",), "weight_decay": (0.0,), "steps": 6, "batch_size": BATCH, "augment": "none"}
    fitted = AttentiveCAPI(lr=(0.01, 0.02, 1e30), **options).fit(known())  # pyright: ignore[reportArgumentType]
    without = AttentiveCAPI(lr=(0.01, 0.02), **options).fit(known())  # pyright: ignore[reportArgumentType]
    assert [row.get("diverged", False) for row in fitted.candidates] == [False, False, True]
    assert fitted.chosen == without.chosen
    test = known(1).features
    torch.testing.assert_close(fitted.scores(test), without.scores(test))
    with pytest.raises(
        UserError, match=r"attentive_capi: the training diverged at lr = 1e\+30 and weight_decay = 0; give"
    ):
        AttentiveCAPI(lr=(1e30,), **options).fit(known())  # pyright: ignore[reportArgumentType]


def test_what_it_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    train = known()
    counts = Counts(train.labels, train.keys, CLASSES, {"patches": (4, 96)})
    with pytest.raises(UserError, match="patches of 96 numbers don't fit heads of 64; take a network"):
        AttentiveCAPI().requires("attentive_capi", counts)
    AttentiveCAPI(sources=("cls",)).requires("attentive_capi-cls", counts)
    monkeypatch.setattr(hostmemory, "available", lambda: 10**8)
    with pytest.raises(UserError, match=r"attentive_capi: 90 candidates take .* or a smaller batch_size"):
        AttentiveCAPI().requires("attentive_capi", counts._replace(shapes={"patches": (196, 768)}))
    many = counts._replace(shapes={"cls": (400_000,), "mean": (400_000,)})
    for source in ("cls", "avg_patch"):
        with pytest.raises(UserError, match=r"attentive_capi: 30 candidates take 576.0 MB, more than half"):
            AttentiveCAPI(sources=(source,)).requires(f"attentive_capi-{source}", many)
    with pytest.raises(UserError, match=r"evaluate\.attentive_capi\.warmup: 1.5"):
        AttentiveCAPI(warmup=1.5).requires("attentive_capi", counts)
