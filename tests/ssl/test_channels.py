"""Pictures that are not RGB at 8 bits pretrain from file to exported backbone: 16-bit gray, and five channels."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

Rootstock = Callable[..., subprocess.CompletedProcess[str]]
VIT = (
    "backbone={name: vit_tiny_patch16_224, pooling: mean, args: {patch_size: 4, embed_dim: 16, depth: 1, num_heads: 2}}"
)
SWIN = "backbone={name: swin_tiny_patch4_window7_224, args: {embed_dim: 8, depths: [1, 1, 1, 1], num_heads: [1, 1, 1, 1], window_size: 4}}"
METHODS = {
    "mae": [VIT, "method={name: mae, decoder_dim: 16, decoder_depth: 1, decoder_heads: 2}"],
    "simmim": [VIT, "method={name: simmim, mask_patch: 8}"],
    "simmim-swin": [SWIN, "method={name: simmim, mask_patch: 8}"],
    "ijepa": [VIT, "method={name: ijepa, predictor_dim: 16, predictor_depth: 1, predictor_heads: 2}"],
}
SHORT = ["data.size=32", "optim.batch_size=4", "optim.duration=2", "run.log_every=1", "run.workers=0", "run.device=cpu"]
N = 20


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A URI for each kind of pictures."""
    folder = tmp_path_factory.mktemp("channels")
    generator = np.random.default_rng(0)
    (folder / "deep").mkdir()
    for i in range(N):
        height, width = generator.integers(34, 48, 2)
        picture = Image.fromarray(generator.integers(0, 65536, (height, width), dtype=np.uint16))
        picture.save(folder / "deep" / f"{i}.png")
    np.savez(folder / "five.npz", x=generator.integers(0, 256, (N, 5, 40, 40), dtype=np.uint8))
    np.savez(folder / "gray.npz", x=generator.integers(0, 65536, (N, 40, 40), dtype=np.uint16))
    return {
        "deep": f"folder:{folder / 'deep'}",
        "five": f"npz:{folder / 'five.npz'}?layout=NCHW",
        "gray": f"npz:{folder / 'gray.npz'}",
    }


@pytest.mark.parametrize(
    ("method", "kind", "channels"),
    [
        *((method, "five", 5) for method in METHODS),
        *((m, kind, 3) for m in ("mae", "simmim") for kind in ("deep", "gray")),
    ],
)
def test_pictures_of_any_kind_pretrain(
    method: str, kind: str, channels: int, pictures: dict[str, str], tmp_path: Path, rootstock: Rootstock
) -> None:
    """Gray pictures become three equal channels, at their depth; others keep theirs."""
    run = tmp_path / "run"
    config = tmp_path / "config.yaml"
    config.write_text(
        "data: {views: {name: mae, scale: [0.6, 1.0]}}\n"
        "optim: {name: adamw, lr: 1e-3}\nevaluate: {watch: {images: 16, views: 2}}\n"
    )
    done = rootstock(
        "pretrain", str(config), f"data.train={pictures[kind]}", *METHODS[method], *SHORT, f"run.dir={run}"
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row) and rows[-1]["step"] == 2
    assert any("rankme" in key for row in rows for key in row)
    weights = load_file(run / "backbone" / "backbone.safetensors")
    assert weights["patch_embed.proj.weight"].shape[1] == channels
    sheets = {path.stem for path in (run / "pictures").glob("*.png")}
    assert "views" in sheets and ("reconstructions" in sheets) == (method != "ijepa")
    assert np.asarray(Image.open(run / "pictures" / "views.png")).std() > 10
