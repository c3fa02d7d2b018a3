"""Every project's checkpoint at a size for tests: its own names, what it saves beside the weights, and its own forward.

The forward passes are written from the projects' models and read the published names, so they know nothing of timm.
"""

from __future__ import annotations

import argparse
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from lightly.models import ResNetGenerator
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from rootstock.core.convert import load
from rootstock.core.convert.file import Contents

WIDTH, DEPTH, HEADS, PATCH, GRID = 16, 2, 2, 4, 4
SIDE = PATCH * GRID
State = dict[str, Tensor]


class Case(NamedTuple):
    """tree: what the project saves. project: what auto must find. features: of float64 [N, 3, side, side], as the project computes them."""

    tree: Any
    project: str
    features: Callable[[Tensor], Tensor]
    side: int
    args: dict[str, Any]
    spec: dict[str, Any]


def random(*shape: int, scale: float = 0.3) -> Tensor:
    return scale * torch.randn(*shape)


def vit_state(*, token: bool = True, scale: str = "", swiglu: bool = False, registers: int = 0) -> State:
    """A ViT's weights under the names of dino, mae, moco-v3 and dinov2. scale: the name of the layer scales, `ls{}.gamma`."""
    hidden = 4 * WIDTH
    state = {"pos_embed": random(1, GRID**2 + token, WIDTH), "patch_embed.proj.weight": random(WIDTH, 3, PATCH, PATCH),
             "patch_embed.proj.bias": random(WIDTH)}  # fmt: skip
    if token:
        state["cls_token"] = random(1, 1, WIDTH)
    if registers:
        state["register_tokens"] = random(1, registers, WIDTH)
    up, down = ("w12", "w3") if swiglu else ("fc1", "fc2")
    for i in range(DEPTH):
        layers = {"norm1": (WIDTH,), "attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH), "norm2": (WIDTH,),
                  f"mlp.{up}": (hidden * (1 + swiglu), WIDTH), f"mlp.{down}": (WIDTH, hidden)}  # fmt: skip
        for name, shape in layers.items():
            state[f"blocks.{i}.{name}.weight"] = random(*shape)
            state[f"blocks.{i}.{name}.bias"] = random(shape[0])
        if scale:
            state |= {f"blocks.{i}.{scale.format(j)}": random(WIDTH, scale=1.0) for j in (1, 2)}
    return {**state, "norm.weight": random(WIDTH, scale=1.0), "norm.bias": random(WIDTH)}


def vit_forward(state: Mapping[str, Tensor], images: Tensor, pool: str = "token") -> Tensor:
    """The features of a plain ViT in any of these names; attention row by row, in float64."""
    s = {name: tensor.double() for name, tensor in state.items()}

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (WIDTH,), s[f"{name}.weight"], s[f"{name}.bias"], 1e-6)

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ s[f"{name}.weight"].T + s.get(f"{name}.bias", torch.zeros(()))

    def scaled(names: tuple[str, ...], x: Tensor) -> Tensor:
        return next((s[name] * x for name in names if name in s), x)

    def attend(block: str, x: Tensor) -> Tensor:
        mixed = linear(f"{block}.attn.qkv", x)
        if f"{block}.attn.q_bias" in s:  # beit's and simmim's: none for keys
            q_bias, v_bias = s[f"{block}.attn.q_bias"], s[f"{block}.attn.v_bias"]
            mixed = mixed + torch.cat([q_bias, torch.zeros(WIDTH), v_bias])
        q, k, v = mixed.split(WIDTH, dim=-1)
        out, d = [], WIDTH // HEADS
        for h in range(HEADS):
            a, b, c = (t[..., h * d : (h + 1) * d] for t in (q, k, v))
            logits = a @ b.transpose(1, 2) / d**0.5
            if "rel_pos_bias.relative_position_bias_table" in s:
                logits = logits + relative(s["rel_pos_bias.relative_position_bias_table"][:, h])
            out.append(logits.softmax(-1) @ c)
        return linear(f"{block}.attn.proj", torch.cat(out, -1))

    def feed(block: str, x: Tensor) -> Tensor:
        if f"{block}.mlp.w12.weight" in s:
            gate, value = linear(f"{block}.mlp.w12", x).chunk(2, -1)
            return linear(f"{block}.mlp.w3", F.silu(gate) * value)
        return linear(f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", x)))

    x = F.conv2d(images, s["patch_embed.proj.weight"], s["patch_embed.proj.bias"], stride=PATCH).flatten(2).mT
    token = "cls_token" in s
    if token:
        x = torch.cat([s["cls_token"].expand(len(x), -1, -1), x], 1)
    x = x + s.get("pos_embed", torch.zeros(()))
    registers = s.get("register_tokens", torch.zeros(1, 0, WIDTH)).double()
    x = torch.cat([x[:, :1], registers.expand(len(x), -1, -1), x[:, 1:]], 1) if token else x
    for i in range(DEPTH):
        block = f"blocks.{i}"
        x = x + scaled((f"{block}.ls1.gamma", f"{block}.gamma_1"), attend(block, norm(f"{block}.norm1", x)))
        x = x + scaled((f"{block}.ls2.gamma", f"{block}.gamma_2"), feed(block, norm(f"{block}.norm2", x)))
    if "fc_norm.weight" in s:
        return norm("fc_norm", x[:, 1:].mean(1))
    x = norm("norm", x)
    return x[:, 0] if pool == "token" else x[:, int(token) :].mean(1)


def relative(table: Tensor) -> Tensor:
    """[1 + g^2, 1 + g^2] biases of one head from its table of (2g - 1)^2 + 3, entry by entry (beit, simmim)."""
    n, g = 1 + GRID**2, GRID
    bias = torch.zeros(n, n, dtype=table.dtype)
    for i in range(n):
        for j in range(n):
            if i == 0 and j == 0:
                bias[i, j] = table[-1]
            elif i == 0:
                bias[i, j] = table[-3]
            elif j == 0:
                bias[i, j] = table[-2]
            else:
                (y, x), (v, u) = divmod(i - 1, g), divmod(j - 1, g)
                bias[i, j] = table[(y - v + g - 1) * (2 * g - 1) + (x - u + g - 1)]
    return bias


def simmim_state() -> State:
    state = vit_state(scale="gamma_{}")
    del state["pos_embed"]
    for i in range(DEPTH):
        del state[f"blocks.{i}.attn.qkv.bias"]
        state |= {f"blocks.{i}.attn.{name}_bias": random(WIDTH) for name in "qv"}
    state["rel_pos_bias.relative_position_bias_table"] = random((2 * GRID - 1) ** 2 + 3, HEADS, scale=1.0)
    state["rel_pos_bias.relative_position_index"] = torch.zeros(1 + GRID**2, 1 + GRID**2, dtype=torch.int64)
    return state


def warmed(net: nn.Module, side: int) -> nn.Module:
    """With BatchNorm statistics and scales that are not those of a new network, in evaluation."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    net.train()(torch.randn(8, 3, side, side))
    return net.eval()


def resnet(block: Any = BasicBlock, stem: str = "default", **options: Any) -> torchvision.models.ResNet:
    """torchvision's, with one block a stage, small widths except the stem's, and no classifier."""
    net = torchvision.models.ResNet(block, [1, 1, 1, 1], **options)
    net.fc = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    if stem != "default":
        net.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding={"small": 1, "solo": 2}[stem], bias=False)
        net.maxpool = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    return net


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def linear_head(name: str) -> State:
    return {f"{name}.weight": random(3, 4), f"{name}.bias": random(3)}


def training() -> dict[str, Any]:
    """What training scripts save beside the weights: an optimizer that ran, a scaler, an epoch, the arguments."""
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    state["param_groups"][0]["lr"] = np.float64(1e-3)  # dino writes its schedule's numpy numbers there
    arguments = argparse.Namespace(lr=1e-3, output_dir="x", betas=(0.9, 0.95), device="cuda", blr=None)
    return {"optimizer": state, "epoch": 3, "scaler": {"scale": 1.0}, "args": arguments}


PACKAGES = ("yacs.config.CfgNode", "pytorch_lightning.utilities.parsing.AttributeDict")


@contextmanager
def foreign_packages() -> Iterator[None]:
    """Packages that are not installed, with the classes of dictionaries that checkpoints hold, for as long as a file is saved."""
    before = dict(sys.modules)
    for path in PACKAGES:
        module, _, name = path.rpartition(".")
        made = types.ModuleType(module)
        setattr(made, name, type(name, (dict,), {"__module__": module}))
        sys.modules.setdefault(module.partition(".")[0], types.ModuleType(module.partition(".")[0]))
        sys.modules[module] = made
    try:
        yield
    finally:
        for name in sys.modules.keys() - before.keys():
            if name.startswith(("yacs", "pytorch_lightning")):
                del sys.modules[name]
        sys.modules.update(
            {name: module for name, module in before.items() if name.startswith(("yacs", "pytorch_lightning"))}
        )


VIT_ARGS = {"num_heads": HEADS}


def _vit(tree: Any, project: str, state: Mapping[str, Tensor], pool: str = "token", **spec: Any) -> Case:
    return Case(tree, project, lambda x: vit_forward(state, x, pool), SIDE, VIT_ARGS, {"size": SIDE, **spec})


def _conv(tree: Any, project: str, net: nn.Module, side: int = 64, **spec: Any) -> Case:
    net = net.double()
    return Case(tree, project, lambda x: net.eval()(x).flatten(1), side, {}, spec)


def mae() -> Case:
    state, decoder = (
        vit_state(),
        {**prefixed("decoder_blocks.0.norm1.", {"weight": random(8)}), **linear_head("decoder_embed")},
    )
    whole = {**state, **decoder, "mask_token": random(1, 1, 8), "decoder_pos_embed": random(1, 17, 8)}
    return _vit({"model": whole, **training()}, "mae", state, pooling="token")


def mae_published() -> Case:
    state = vit_state()
    return _vit({"model": state}, "mae", state)


def mae_finetuned() -> Case:
    state = vit_state()
    state = {name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: t for name, t in state.items()}
    return _vit({"model": {**state, **linear_head("head")}, **training()}, "mae", state, pooling=None)


def dino() -> Case:
    teacher, student, head = vit_state(), vit_state(), linear_head("head.mlp.0")
    tree = {
        "student": {**prefixed("module.backbone.", student), **prefixed("module.", head)},
        "teacher": {**prefixed("backbone.", teacher), **head},
        "dino_loss": {"center": random(1, 5)},
        **training(),
    }
    return _vit(tree, "dino", teacher)


def dino_published() -> Case:
    state = vit_state()
    return _vit(OrderedDict(state), "dino", state)


def ibot() -> Case:
    state = vit_state()
    return _vit({"state_dict": {**state, "masked_embed": random(1, WIDTH)}}, "dino", state)


def dinov2() -> Case:
    state = vit_state(scale="ls{}.gamma")
    return _vit({**state, "mask_token": random(1, WIDTH)}, "dinov2", state, name="vit_base_patch14_dinov2")


def dinov2_registers() -> Case:
    state = vit_state(scale="ls{}.gamma", registers=3)
    return _vit({**state, "mask_token": random(1, WIDTH)}, "dinov2", state, name="vit_base_patch14_reg4_dinov2")


def dinov2_training() -> Case:
    """The giant's SwiGLU, in chunks of blocks (FSDP), under the teacher."""
    state = vit_state(scale="ls{}.gamma", swiglu=True)
    chunked = {name.replace("blocks.", "blocks.0."): tensor for name, tensor in state.items()}
    teacher = {**prefixed("backbone.", {**chunked, "mask_token": random(1, WIDTH)}), **linear_head("dino_head.mlp.0")}
    return _vit({"teacher": teacher}, "dinov2", state, name="vit_giant_patch14_dinov2")


def moco_v3() -> Case:
    state, other, head = vit_state(), vit_state(), linear_head("head.0")
    names = {
        **prefixed("module.base_encoder.", {**state, **head}),
        **prefixed("module.momentum_encoder.", {**other, **head}),
    }
    tree = {
        "epoch": 300,
        "arch": "vit_base",
        "state_dict": {**names, **linear_head("module.predictor.0")},
        **training(),
    }
    return _vit(tree, "moco", state)


def moco_v2() -> Case:
    net, other = warmed(resnet(), 64), resnet()
    names = {**prefixed("module.encoder_q.", {**net.state_dict(), **linear_head("fc.0"), **linear_head("fc.2")}),
             **prefixed("module.encoder_k.", other.state_dict()), "module.queue": random(4, 8)}  # fmt: skip
    return _conv({"epoch": 200, "arch": "resnet50", "state_dict": names, **training()}, "moco", net, name="resnet18")


def simsiam() -> Case:
    net = warmed(resnet(), 64)
    names = {
        **prefixed("module.encoder.", {**net.state_dict(), **linear_head("fc.0")}),
        **linear_head("module.predictor.0"),
    }
    return _conv({"epoch": 100, "arch": "resnet50", "state_dict": names}, "moco", net)


def simmim() -> Case:
    state = simmim_state()
    names = {**prefixed("encoder.", {**state, "mask_token": random(1, 1, WIDTH)}), **linear_head("decoder.0")}
    node: Any = sys.modules["yacs.config"].CfgNode
    config = node(MODEL=node(TYPE="vit"))
    config.__dict__["__immutable__"] = True
    tree = {"model": names, "lr_scheduler": {"t": 1}, "max_accuracy": 0.0, "config": config, **training()}
    return _vit(tree, "simmim", state, "mean", name="beit_base_patch16_224")


def simmim_swin() -> Case:
    """Another implementation's Swin, torchvision's, under the names of the authors' code."""
    net = torchvision.models.SwinTransformer([PATCH, PATCH], 16, [2, 2], [2, 4], [2, 2], stochastic_depth_prob=0.0)
    net.head = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    names: State = {"mask_token": random(1, 1, 16)}
    for theirs, tensor in net.state_dict().items():
        tensor.copy_(tensor + random(*tensor.shape)) if tensor.is_floating_point() else None
        part, number, *rest = theirs.split(".")
        if part == "norm":
            names[theirs] = tensor
        elif number == "0":
            names[f"patch_embed.{ {'0': 'proj', '2': 'norm'}[rest[0]] }.{rest[1]}"] = tensor
        elif int(number) % 2 == 0:
            names[".".join([f"layers.{int(number) // 2 - 1}.downsample", *rest])] = tensor
        else:
            layer = ".".join(rest[1:]).replace("mlp.0", "mlp.fc1").replace("mlp.3", "mlp.fc2")
            table = tensor.view(4, 4) if layer.endswith("relative_position_index") else tensor
            names[f"layers.{int(number) // 2}.blocks.{rest[0]}.{layer}"] = table
    names["layers.0.blocks.1.attn_mask"] = torch.zeros(1, 4, 4)
    tree = {"model": {**prefixed("encoder.", names), **linear_head("decoder.0")}, "max_accuracy": 0.0, **training()}
    spec = {"name": "swin_tiny_patch4_window7_224"}
    net.double().eval()
    return Case(tree, "simmim", net, 2 * 2 * PATCH, {}, spec)


def solo() -> Case:
    net, other = warmed(resnet(stem="solo"), 32), resnet(stem="solo")
    names = {**prefixed("backbone.", net.state_dict()), **prefixed("momentum_backbone.", other.state_dict()),
             **linear_head("projector.0"), **linear_head("classifier")}  # fmt: skip
    return _conv(_lightning(names), "solo", net, 32, stem="solo")


def solo_vit() -> Case:
    state = vit_state()
    return _vit(_lightning({**prefixed("backbone.", state), **linear_head("projector.0")}), "solo", state)


def lightly_torchvision() -> Case:
    """torchvision's ResNet without its classifier, as lightly's tutorials wrap it, 3 x 3 stem."""
    net = warmed(resnet(stem="small"), 32)
    parts = nn.Sequential(*list(net.children())[:-1])
    names = {**prefixed("backbone.", parts.state_dict()), **linear_head("projection_head.layers.0")}
    return _conv(_lightning(names), "lightly", parts, 32, stem="small")


def lightly_vit() -> Case:
    """A timm ViT in lightly's wrapper, as its DINO and MAE benchmarks train it."""
    state = vit_state()
    names = {
        **prefixed("backbone.vit.", state),
        "backbone.mask_token": random(1, 1, WIDTH),
        **linear_head("projection_head.0"),
    }
    return _vit(_lightning(names), "lightly", state)


def lightly_benchmark() -> Case:
    """lightly's own ResNet taken apart, as in its CIFAR benchmarks, with split BatchNorm."""
    net = ResNetGenerator("resnet-9", width=1, num_splits=2)
    parts = nn.Sequential(*list(net.children())[:-1], nn.AdaptiveAvgPool2d(1))
    parts.train()(torch.randn(8, 3, 32, 32))
    names = {
        **prefixed("backbone.", {k: v.clone() for k, v in parts.state_dict().items()}),
        **linear_head("projection_head.0"),
    }
    return _conv(_lightning(names), "lightly", parts, 32, stem="lightly")


def vissl() -> Case:
    net = warmed(resnet(Bottleneck), 64)
    trunk = prefixed("_feature_blocks.", net.state_dict())
    model = {"trunk": trunk, "heads": linear_head("0.clf.0")}
    tree = {"phase": 1, "classy_state_dict": {"train": True, "base_model": {"model": model, "meters": []}}, "loss": 1.0}
    return _conv(tree, "vissl", net, name="resnet50")


def barlow() -> Case:
    net = warmed(resnet(), 64)
    names = {
        **prefixed("module.backbone.", net.state_dict()),
        **linear_head("module.projector.0"),
        "module.bn.running_mean": random(3),
    }
    return _conv({"epoch": 10, "model": names, **training()}, "torchvision", net)


def swav() -> Case:
    net = warmed(resnet(Bottleneck, groups=2, width_per_group=32), 64)
    names = prefixed(
        "module.", {**net.state_dict(), **linear_head("projection_head.0"), "prototypes.weight": random(3, 4)}
    )
    return _conv(names, "torchvision", net)


def ijepa() -> Case:
    state = vit_state(token=False)
    tree = {"encoder": prefixed("module.", vit_state(token=False)), "target_encoder": prefixed("module.", state),
            "predictor": {"module.mask_token": random(1, 1, 8)}, "opt": {}, "epoch": 3}  # fmt: skip
    return _vit(tree, "ijepa", state, "mean", pooling="mean")


def _lightning(names: Mapping[str, Tensor]) -> dict[str, Any]:
    hyper = sys.modules["pytorch_lightning.utilities.parsing"].AttributeDict(lr=0.1, method="byol")
    return {"epoch": 9, "global_step": 5, "pytorch-lightning_version": "1.7.7", "state_dict": OrderedDict(names),
            "loops": {}, "callbacks": {}, "optimizer_states": [training()["optimizer"]], "hyper_parameters": hyper}  # fmt: skip


CASES: dict[str, Callable[[], Case]] = {
    case.__name__: case
    for case in (
        mae, mae_published, mae_finetuned, dino, dino_published, ibot, dinov2, dinov2_registers, dinov2_training, moco_v3, moco_v2,
        simsiam, simmim, simmim_swin, solo, solo_vit, lightly_torchvision, lightly_vit, lightly_benchmark, vissl, barlow, swav, ijepa,
    )
}  # fmt: skip


def save(name: str, path: Path, seed: int = 0) -> Case:
    """Write the file that the project would, with random weights; returns what it is."""
    torch.manual_seed(seed)
    with foreign_packages():
        case = CASES[name]()
        torch.save(case.tree, path)
    return case


def opened(path: Path) -> Contents:
    """What `read` gives, without its child process, which takes seconds to import torch."""
    tree = load.unpickle(str(path))
    groups: dict[str, dict[str, Tensor]] = {}
    for place, name, tensor in load.collect(tree):
        groups.setdefault(place, {})[name] = tensor
    return Contents(path, groups, **load.top_level(tree), sha256="0" * 64)
