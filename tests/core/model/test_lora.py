"""Adapters: few parameters learn, the start is the pretrained model, and what is exported computes the same without them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rootstock.core.errors import UserError
from rootstock.core.model.backbone import Backbone, create
from rootstock.core.model.lora import folded

ARGS = {"patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2}
LORA: dict[str, Any] = {"rank": 2, "alpha": 4, "targets": ["qkv"], "unfreeze": 1}


@pytest.fixture
def run(tmp_path: Path) -> str:
    torch.manual_seed(0)
    backbone = create(16, name="vit_tiny_patch16_224", args=ARGS)
    backbone.provenance = [{"task": "pretrain", "method": "mae"}]
    backbone.export(tmp_path / "run")
    return str(tmp_path / "run")


def adapted(run: str, **changed: Any) -> Backbone:
    torch.manual_seed(1)
    return create(16, weights=run, lora={**LORA, **changed})


def images() -> torch.Tensor:
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def test_it_starts_as_the_pretrained_model(run: str) -> None:
    torch.testing.assert_close(adapted(run).eval()(images()), create(16, weights=run).eval()(images()))


def test_adapters_norms_and_the_last_block_learn_and_nothing_else(run: str) -> None:
    learning = {name for name, p in adapted(run).model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "norm" in name or name.startswith("blocks.2.") for name in learning)
    for name, p in create(16, weights=run).model.named_parameters():
        assert (name in learning) == ("norm" in name or name.startswith("blocks.2.")), name
        del p
    lora = {name for name in learning if "lora_" in name}
    assert {name.split(".lora_")[0] for name in lora} == {"blocks.0.attn.qkv", "blocks.1.attn.qkv"}
    none = {name for name, p in adapted(run, unfreeze=0).model.named_parameters() if p.requires_grad}
    assert not any(name.startswith("blocks.2.mlp") for name in none) and any(
        "blocks.2.attn.qkv.lora" in n for n in none
    )


def test_the_export_computes_the_same_without_adapters(run: str, tmp_path: Path) -> None:
    backbone = adapted(run)
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        backbone(images()).square().mean().backward()
        optimizer.step()
    backbone.export(tmp_path / "adapted")
    plain = create(16, weights=str(tmp_path / "adapted"))
    assert plain.model.state_dict().keys() == create(16, weights=run).model.state_dict().keys()
    before = create(16, weights=run).eval()(images())
    after = backbone.eval()(images())
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(plain.eval()(images()), after, rtol=1e-5, atol=1e-5)
    assert plain.provenance == backbone.provenance == [{"task": "pretrain", "method": "mae"}]


def test_what_has_no_adapters_is_exported_as_it_is(run: str) -> None:
    model = create(16, weights=run).model
    state = folded(model)
    assert all(state[key].equal(value) for key, value in model.state_dict().items()) and len(state) == len(
        model.state_dict()
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rank": 0}, "backbone.lora: expected rank"),
        ({"targets": ["query"], "unfreeze": 0}, r"backbone.lora.targets: .* \(known: fc1, fc2, proj, qkv\)"),
        ({"unfreeze": 4}, "backbone.lora.unfreeze: vit_tiny_patch16_224 has 3 blocks, got 4"),
    ],
)
def test_what_cannot_be_adapted_is_refused(run: str, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        adapted(run, **changed)


def test_a_new_network_has_nothing_to_adapt() -> None:
    with pytest.raises(UserError, match=r"backbone\.lora: adapters need trained weights"):
        create(16, name="vit_tiny_patch16_224", args=ARGS, lora=LORA)
