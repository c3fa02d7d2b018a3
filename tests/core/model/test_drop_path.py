"""Drop path by position, against timm's formula on the same draws, whatever the batch is divided into."""

from typing import Any

import pytest
import torch

from rootstock.core.draws import Draws
from rootstock.core.model.backbone import create
from rootstock.core.model.drop_path import KeyedDropPath, draw_paths, keyed_drop_paths

VIT = {"patch_size": 8, "embed_dim": 8, "depth": 3, "num_heads": 2}


def test_branches_are_dropped_and_rescaled_as_timm_does() -> None:
    """Each image apart, by hand: with rates 0, p / 2 and p in depth; two branches a block."""
    torch.manual_seed(0)
    backbone = create(16, name="vit_tiny_patch16_224", args=VIT, pooling="mean", drop_path=0.6).double().train()
    vit: Any = backbone.model
    images, positions = torch.randn(6, 3, 16, 16, dtype=torch.float64), torch.arange(70, 76)
    draws, paths = Draws(3, positions), keyed_drop_paths(backbone)
    rates = [path.drop_prob for path in paths]
    assert rates == pytest.approx([0.3, 0.3, 0.6, 0.6])
    draw_paths(paths, draws)
    found = backbone(images)
    unit = draws.uniform("drop_path", 4)
    dropped = 0
    for n in range(len(images)):
        x = vit._pos_embed(vit.patch_embed(images[n : n + 1]))
        for b, block in enumerate(vit.blocks):
            for k, branch in enumerate((lambda t, b=block: b.attn(b.norm1(t)), lambda t, b=block: b.mlp(b.norm2(t)))):
                rate = (0.0, *rates[1::2])[b]
                keep = b == 0 or float(unit[n, 2 * (b - 1) + k]) >= rate
                dropped += not keep
                x = x + branch(x) / (1 - rate) if keep else x
        torch.testing.assert_close(found[n], vit.norm(x)[0, 1:].mean(0))
    assert 0 < dropped < 24
    # The same images at the same positions, divided otherwise.
    parts = []
    for rows in (slice(0, 2), slice(2, 6)):
        draw_paths(paths, Draws(3, positions[rows]))
        parts.append(backbone(images[rows]))
    assert torch.allclose(torch.cat(parts), found)
    assert not torch.allclose(backbone.eval()(images), found)


def test_branches_are_dropped_as_often_as_asked() -> None:
    path = KeyedDropPath(0.25).train()
    draw_paths([path], Draws(0, torch.arange(20000)))
    out = path(torch.ones(20000, 1))
    assert set(out.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs((out == 0).float().mean().item() - 0.25) < 0.01


def test_a_residual_network_of_any_weights_drops_paths() -> None:
    backbone = create(32, name="resnet10t", args={"channels": [4, 4, 4, 8], "stem_width": 4}, drop_path=0.5)
    assert len(keyed_drop_paths(backbone)) == 3  # the first block's rate is 0
    assert backbone.spec["args"] == {"channels": [4, 4, 4, 8], "stem_width": 4}
