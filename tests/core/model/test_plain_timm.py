"""An export in timm alone, as docs/how-to/export.md shows it: the same features, bit for bit, or the reason why not."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rootstock.core.errors import UserError
from rootstock.core.model import norm
from rootstock.core.model.backbone import Backbone, create
from rootstock.core.model.lora import add_lora

VIT = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
RESNET = {"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1]}
SNIPPET = re.compile(r"<!-- test: plain timm -->\n```python\n(.*?)```", re.DOTALL)
NETWORKS: list[tuple[str, int, int, dict[str, Any]]] = [
    ("resnet18", 32, 3, {"args": RESNET}),
    ("resnet18", 32, 3, {"args": RESNET, "stem": "small"}),
    ("resnet18", 32, 5, {"args": RESNET, "stem": "solo"}),
    ("resnet18", 32, 3, {"args": RESNET, "stem": "lightly"}),
    ("resnet18", 32, 5, {"args": RESNET}),
    ("resnet18", 32, 3, {"args": {**RESNET, "norm_layer": "groupnorm", "channels": [32, 32, 32, 32]}, "stem": "small"}),
    ("resnet50_gn", 32, 3, {"args": {"channels": [32, 32, 32, 32], "layers": [1, 1, 1, 1]}}),
    ("convnext_atto", 32, 3, {"args": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}}),
    ("vit_tiny_patch16_224", 16, 3, {"pooling": "token", "args": VIT}),
    ("vit_tiny_patch16_224", 16, 3, {"pooling": "mean", "args": VIT}),
    ("vit_tiny_patch16_224", 24, 5, {"args": VIT}),
    ("vit_tiny_patch16_224", 16, 3, {"positions": "sincos", "args": {**VIT, "class_token": False, "global_pool": "avg"}}),
    ("swin_tiny_patch4_window7_224", 32, 3, {"args": {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}}),
    ("mobilenetv3_small_050", 32, 3, {}),
]  # fmt: skip


def trained(name: str, size: int, channels: int, options: dict[str, Any]) -> tuple[Backbone, Tensor]:
    """A network whose statistics are no longer the initial ones, in eval mode, and pictures for it."""
    torch.manual_seed(0)
    made, pictures = create(size, channels, name=name, **options), torch.randn(3, channels, size, size)
    made.train()(pictures)
    return made.eval(), pictures


def in_plain_timm(folder: Path) -> nn.Module:
    """What timm makes of an export, by the entry `timm` of its backbone.json."""
    entry = json.loads((folder / "backbone" / "backbone.json").read_text())["timm"]
    model = timm.create_model(entry["name"], **entry["kwargs"])
    for layer, (kind, kwargs) in entry["layers"].items():
        setattr(model, layer, getattr(nn, kind)(**kwargs))
    model.load_state_dict(load_file(folder / "backbone" / "backbone.safetensors"), strict=True)
    return model.eval()


@pytest.mark.parametrize(("name", "size", "channels", "options"), NETWORKS)
def test_features_are_those_of_plain_timm_to_the_last_bit(
    name: str, size: int, channels: int, options: dict[str, Any], tmp_path: Path
) -> None:
    made, pictures = trained(name, size, channels, options)
    made.export(tmp_path)
    with torch.no_grad():
        assert torch.equal(in_plain_timm(tmp_path)(pictures), made(pictures))


def test_batchnorm_of_groups_is_plain_batchnorm_afterwards(tmp_path: Path) -> None:
    made, pictures = trained("resnet18", 32, 3, {"args": RESNET})
    norm.convert_batch_norms(made, "group", 3, 1)
    made.train()(pictures)
    made.eval().export(tmp_path)
    with torch.no_grad():
        assert torch.equal(in_plain_timm(tmp_path)(pictures), made(pictures))


def test_adapters_are_folded(tmp_path: Path) -> None:
    made, pictures = trained("vit_tiny_patch16_224", 16, 3, {"args": VIT})
    add_lora(made.model, "a ViT", rank=2, alpha=4, targets=["qkv"], unfreeze=0)
    made.export(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(in_plain_timm(tmp_path)(pictures), made.eval()(pictures))


def test_what_timm_cannot_build_says_why(tmp_path: Path) -> None:
    create(16, name="smallconv").export(tmp_path)
    entry = json.loads((tmp_path / "backbone" / "backbone.json").read_text())["timm"]
    assert list(entry) == ["reason"] and "smallconv is a network of Rootstock's own" in entry["reason"]
    made = create(16, name="resnet18", args=RESNET)
    made.model.register_parameter("extra", nn.Parameter(torch.zeros(1)))
    made.export(tmp_path)
    entry = json.loads((tmp_path / "backbone" / "backbone.json").read_text())["timm"]
    assert list(entry) == ["reason"] and "timm builds it with other layers (extra" in entry["reason"]


def test_an_export_draws_no_random_numbers(tmp_path: Path) -> None:
    made, _ = trained("vit_tiny_patch16_224", 16, 3, {"args": VIT})
    torch.manual_seed(7)
    expected = torch.randn(3)
    torch.manual_seed(7)
    made.export(tmp_path)
    assert torch.equal(torch.randn(3), expected)


def test_exports_of_earlier_versions_load(tmp_path: Path) -> None:
    made, pictures = trained("vit_tiny_patch16_224", 16, 3, {"pooling": "mean", "args": VIT})
    made.export(tmp_path)
    path = tmp_path / "backbone" / "backbone.json"
    described = json.loads(path.read_text())
    path.with_name("MANIFEST.json").unlink()  # they had none
    path.write_text(json.dumps({key: value for key, value in described.items() if key not in ("timm", "channels")}))
    with torch.no_grad():
        assert torch.equal(create(16, weights=str(tmp_path)).eval()(pictures), made(pictures))


def test_the_snippet_of_the_page(tmp_path: Path) -> None:
    """Four statements after the imports, in a process that knows no Rootstock."""
    (snippet,) = SNIPPET.findall((Path(__file__).parents[3] / "docs" / "how-to" / "export.md").read_text())
    statements = [node for node in ast.parse(snippet).body if not isinstance(node, ast.Import | ast.ImportFrom)]
    assert len(statements) == 4 and "rootstock" not in snippet
    made, pictures = trained("resnet18", 32, 3, {"args": RESNET, "stem": "small"})
    made.export(tmp_path / "runs" / "simclr")
    save_file({"pictures": pictures}, tmp_path / "pictures.safetensors")
    rest = """
import torch
from safetensors.torch import save_file
with torch.no_grad():
    save_file({"found": model(load_file("pictures.safetensors")["pictures"])}, "found.safetensors")
"""
    code = snippet + rest
    subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, check=True, env={"PATH": "", "OMP_NUM_THREADS": "1"}
    )
    with torch.no_grad():
        assert torch.equal(load_file(tmp_path / "found.safetensors")["found"], made(pictures))


@pytest.mark.parametrize(
    "args", [{"checkpoint_path": "x.pth"}, {"pretrained": True}, {"num_classes": 10}, {"in_chans": 4}]
)
def test_arguments_that_are_not_of_the_network(args: dict[str, Any]) -> None:
    (key,) = args
    with pytest.raises(UserError, match=rf"backbone\.args\.{key}: .*leave it out"):
        create(32, name="resnet18", args=args)
