"""The loader that lies in an exported folder, model.py: plain PyTorch, with timm where timm has the network. Nothing is filled in here:
what differs from network to network stands in config.json.
"""

from __future__ import annotations

SCRIPT_NAME = "model.py"
SCALE_SUFFIX = "_scale"
"""Ends the name of the scales of a tensor of int8."""

_HEAD = '''"""Loads the network of this folder without Rootstock; how pictures are prepared is said in config.json and README.md.

    from model import load
    model = load()              # float [N, C, S, S], normalised -> logits, or features where there is no classifier
    model = load(head=False)    # -> features
"""

import json
from pathlib import Path

{imports}


def load(folder=Path(__file__).parent, head=True):
    folder = Path(folder)
    about = json.loads((folder / "config.json").read_text())["rootstock"]
    tensors = load_file(folder / "model.safetensors")
'''

_TAIL = """    if about["pruned"]:
        shrink(model, about["pruned"]["layers"], tensors)
    model.load_state_dict(tensors)
    if head and about["head"]:
        layers = [getattr(nn, kind, Cosine)(*args) for kind, *args in about["head"]]
        top = nn.Sequential(*layers)
        top.load_state_dict(load_file(folder / "head.safetensors"))
        model = nn.Sequential(model, top)
    return model.eval()


def shrink(model, layers, tensors):
    for place, sizes in layers.items():
        for name, size in sizes.items():
            setattr(model.get_submodule(place), name, size)
    for name, old in model.state_dict().items():
        place, _, key = name.rpartition(".")
        if name in tensors and tensors[name].shape != old.shape:
            layer, new = model.get_submodule(place), torch.empty_like(tensors[name])
            setattr(layer, key, nn.Parameter(new) if key in dict(layer.named_parameters()) else new)


class Cosine(nn.Module):
    def __init__(self, features, outputs, temperature):
        super().__init__()
        self.weight, self.temperature = nn.Parameter(torch.empty(outputs, features)), temperature

    def forward(self, x):
        return F.normalize(x, dim=-1) @ F.normalize(self.weight, dim=1).T / self.temperature
"""

_TORCH = """import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn"""

_TIMM = """    kwargs = dict(about["kwargs"])
    if about["classifier"] and not head:
        kwargs["num_classes"] = 0
        tensors = {name: x for name, x in tensors.items() if not name.startswith(about["classifier"] + ".")}
    model = timm.create_model(about["name"], **kwargs)
    for layer, (kind, arguments) in about["layers"].items():
        setattr(model, layer, getattr(nn, kind)(**arguments))
"""

_SMALLCONV = """    channels, blocks = about["kwargs"]["channels"], nn.Sequential()
    for i, width in enumerate(about["kwargs"]["widths"]):
        convolution = nn.Conv2d(channels, width, 3, stride=1 if i else 2, padding=1, bias=False)
        pool = [nn.MaxPool2d(2)] if i in (1, 2) else []
        blocks.append(nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(), *pool))
        channels = width
"""

_POOLED = """    model = nn.Sequential()
    model.add_module("blocks", blocks)
    model.add_module("pool", Mean())
"""

_MEAN = """

class Mean(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))
"""

_LENET = """    channels, blocks = about["kwargs"]["channels"], nn.Sequential()
    for width in about["kwargs"]["widths"]:
        blocks.append(nn.Sequential(nn.Conv2d(channels, width, 5), nn.ReLU(), nn.MaxPool2d(2)))
        channels = width
    model = nn.Sequential()
    model.add_module("blocks", blocks)
    model.add_module("flatten", nn.Flatten())
"""

_RESNET = """    kwargs = about["kwargs"]
    before, blocks = kwargs["widths"][0], nn.Sequential()
    first = nn.Conv2d(kwargs["channels"], before, 3, padding=1, bias=False)
    blocks.append(nn.Sequential(first, nn.BatchNorm2d(before), nn.ReLU()))
    for stage, width in enumerate(kwargs["widths"]):
        for number in range((kwargs["depth"] - 2) // 6):
            blocks.append(Block(before, width, 2 if stage and not number else 1, kwargs["shortcut"]))
            before = width
"""

_BLOCK = """

class Block(nn.Module):
    def __init__(self, before, width, stride, shortcut):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.stride, self.new, self.shortcut = stride, width - before, shortcut

    def forward(self, x):
        found = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.shortcut:
            found = found + F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new))
        return F.relu(found)
"""

_BEGINNING = _HEAD.replace("{imports}", _TORCH)

OF_TIMM = _HEAD.replace("{imports}", _TORCH.replace("import torch\n", "import timm\nimport torch\n", 1)) + _TIMM + _TAIL
"""model.py of a network that timm has."""

OF_OURS = {
    "smallconv": _BEGINNING + _SMALLCONV + _POOLED + _TAIL + _MEAN,
    "lenet": _BEGINNING + _LENET + _TAIL,
    "cifar_resnet": _BEGINNING + _RESNET + _POOLED + _TAIL + _MEAN + _BLOCK,
}
"""model.py of our own networks, by name."""

_READS = '    tensors = load_file(folder / "model.safetensors")\n'
_SCALES = f"""    for name in [name for name in tensors if name.endswith("{SCALE_SUFFIX}")]:
        scale = tensors.pop(name)  # [outputs, 1] of int8 weights [outputs, inputs]
        tensors[name.removesuffix("{SCALE_SUFFIX}")] = tensors[name.removesuffix("{SCALE_SUFFIX}")] * scale
"""


def with_scales(script: str) -> str:
    """model.py of tensors some of which are int8 with scales."""
    return script.replace(_READS, _READS + _SCALES)


KNOWN_SCRIPTS = frozenset(text for script in (OF_TIMM, *OF_OURS.values()) for text in (script, with_scales(script)))
"""Each model.py that this version writes."""
