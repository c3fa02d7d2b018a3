"""Where each project keeps its encoder in a checkpoint, how it names the layers, and what timm calls them.

Sizes of the architecture are core/convert/shapes.py's. All that is renamed, dropped or not used is reported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from torch import Tensor

from ..config.messages import among, spelt
from ..errors import UserError
from .file import Contents

VISSL = "classy_state_dict/base_model/model/trunk"


class Project(NamedTuple):
    """places: where in the file the encoder may be, best first. prefixes: what its tensors' names may begin with, best first."""

    places: tuple[str, ...]
    prefixes: tuple[str, ...]


PROJECTS: Mapping[str, Project] = {
    "timm": Project(("state_dict_ema", "model_ema", "state_dict", "model", ""), ("",)),
    # Barlow Twins, VICReg, SwAV, DINO's ResNets and many more: plain names, or names under `backbone.`.
    "torchvision": Project(("state_dict", "model_state_dict", "model", ""), ("backbone.", "")),
    "mae": Project(("model", "state_dict", ""), ("", "encoder.")),
    "dino": Project(("teacher", "state_dict", "student", "model", ""), ("backbone.", "")),
    "dinov2": Project(("teacher", "model", "state_dict", ""), ("backbone.", "")),
    # MoCo evaluates the query encoder, MoCo v3 the base encoder, SimSiam (same code) its encoder.
    "moco": Project(("state_dict", "model", ""), ("encoder_q.", "base_encoder.", "encoder.", "")),
    "solo": Project(("state_dict", ""), ("backbone.", "encoder.", "")),
    "lightly": Project(
        ("state_dict", ""), ("backbone.vit.", "backbone.", "teacher_backbone.", "student_backbone.", "")
    ),
    "vissl": Project((VISSL, "model", "state_dict", ""), ("_feature_blocks.", "trunk._feature_blocks.", "trunk.", "")),
    "simmim": Project(("model", "state_dict", ""), ("encoder.", "")),
    "ijepa": Project(("target_encoder", "encoder", ""), ("",)),
}
# Tensors by which an encoder is recognised: a ViT's patch embedding, a ResNet's stem (plain, deep, or the first of nn.Sequential).
ANCHORS = ("patch_embed.proj.weight", "patch_embed.proj.0.weight", "conv1.weight", "conv1.0.weight", "0.weight")
# Not part of an encoder, though under the same prefix: classifiers, projections, predictors, decoders and mask tokens.
HEADS = (
    "fc.", "head.", "linear.", "classifier.", "projector.", "projection_head.", "prediction_head.", "predictor.", "prototypes.",
    "head_dist.", "dino_head.", "ibot_head.", "decoder", "mask_token", "masked_embed", "pre_logits.",
)  # fmt: skip
WRAPPERS = ("module.", "_orig_mod.")


class Encoder(NamedTuple):
    """An encoder in timm's names, and the rest of the file.

    unused: names of the file's other tensors, with their places. stem: the value of backbone.stem that it was trained with, if the names
    show it. notes: remarks for the user.
    """

    place: str
    prefix: str
    tensors: dict[str, Tensor]
    unused: list[str]
    stem: str | None
    notes: list[str]


def recognise(contents: Contents) -> tuple[str, str]:
    """The project that a file comes from, and the name by which it was recognised. Raises UserError if no rule fits."""
    names = {unwrapped(name) for group in contents.groups.values() for name in group}
    places, lightning = contents.groups.keys(), "pytorch-lightning_version" in contents.keys

    def first(pattern: str) -> str | None:
        return min((name for name in names if re.search(pattern, name)), default=None)

    rules = [
        ("vissl", next((place for place in places if place.startswith("classy_state_dict")), None)),
        ("vissl", first(r"(^|\.)_feature_blocks\.")),
        ("simmim", first(r"relative_position_bias_table$|^encoder\.mask_token$")),
        ("moco", first(r"^(encoder_q|encoder_k|base_encoder|momentum_encoder)\.")),
        ("mae", first(r"^decoder_(pos_embed|embed|blocks)")),
        ("dinov2", first(r"(^|\.)register_tokens$|^dino_head\.|\.mlp\.w12\.")),
        ("dinov2", first(r"(^|\.)mask_token$") and first(r"\.ls1\.gamma$")),
        ("ijepa", "target_encoder" if "target_encoder" in places else None),
        ("dino", next((place for place in ("teacher", "student") if place in places), None)),
        ("dino", first(r"^masked_embed$")),
        ("lightly", first(r"^((student_|teacher_)?backbone\.)?0\.weight$|^backbone\.vit\.")),
        ("lightly", first(r"^(projection_head|prediction_head|student_projection_head)\.") if lightning else None),
        ("solo", first(r"^momentum_backbone\.")),
        ("solo", "pytorch-lightning_version" if lightning and first(r"^(backbone|encoder)\.") else None),
        ("moco", first(r"^encoder\.conv1\.weight$") and first(r"^predictor\.")),
        ("timm", f"arch: {contents.arch}" if contents.arch and first(r"^(conv1|patch_embed|stem)") else None),
        # MAE's published files, and DeiT's, on whose code it builds; timm saves under state_dict or at the top.
        ("mae", "cls_token under model" if _holds(contents, "model", "cls_token") else None),
        ("timm", first(r"^head\.weight$") if first(r"^patch_embed\.proj\.weight$") else None),
        ("dino", "cls_token at the top, no head" if _holds(contents, "", "cls_token") else None),
        ("torchvision", first(r"^(backbone\.)?layer1\.0\.conv1\.weight$")),
    ]  # fmt: skip
    for project, evidence in rules:
        if evidence:
            return project, spelt(evidence)
    shown = ", ".join(spelt(name) for name in sorted(names)[:3])
    raise UserError(
        f"{contents.path}: its tensors ({shown}, ...) have names of no known project; give --from ({', '.join(PROJECTS)}), --name "
        "with the timm model that it is, or --prefix with what stands before the names of its layers"
    )


def find_encoder(contents: Contents, project: str, named: bool = False) -> Encoder:
    """The project's encoder in a file, in timm's names.

    named: the architecture is given, so a file of timm's may hold any model, not only a ViT or a ResNet. Raises UserError if the file
    holds no encoder; it names the project that the file looks like.
    """
    if project not in PROJECTS:
        raise UserError(f"--from: unknown project {spelt(project)}{among(project, [*PROJECTS, 'auto'])}")
    for place in _places(contents, project):
        group = {unwrapped(name): tensor for name, tensor in contents.groups[place].items()}
        for prefix in PROJECTS[project].prefixes:
            whole = project == "timm" and named
            if whole or any(_is_anchor(group.get(prefix + anchor)) for anchor in ANCHORS):
                unused = [name for name in group if not name.startswith(prefix)]
                for other in contents.groups.keys() - {place}:
                    unused += [f"{other}/{name}".lstrip("/") for name in contents.groups[other]]
                inside = {name.removeprefix(prefix): t for name, t in group.items() if name.startswith(prefix)}
                if project == "timm":
                    return Encoder(place, prefix, inside, sorted(unused), None, [])
                return _renamed(place, prefix, inside, sorted(unused))
    try:
        other, _ = recognise(contents)
    except UserError:
        other = project
    hint = "; with --name, any model of timm is read by --from timm" if named else "; timm's other models need --name"
    if other != project:
        hint = f"; it looks like {other}'s: say --from {other}"
    raise UserError(f"{contents.path}: holds no ViT or ResNet where {project} keeps its encoder{hint}")


def _places(contents: Contents, project: str) -> Iterator[str]:
    known = PROJECTS[project].places
    yield from (place for place in known if place in contents.groups)
    yield from (place for place in contents.groups if place not in known)


def _holds(contents: Contents, place: str, name: str) -> bool:
    return any(unwrapped(key) == name for key in contents.groups.get(place, ()))


def unwrapped(name: str) -> str:
    """The name without the prefixes of DistributedDataParallel and torch.compile."""
    while name.startswith(WRAPPERS):
        name = name.partition(".")[2]
    return name


def _is_anchor(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.ndim == 4


def _renamed(place: str, prefix: str, inside: dict[str, Tensor], unused: list[str]) -> Encoder:
    notes: list[str] = []
    inside = {name.removeprefix("_feature_blocks."): tensor for name, tensor in inside.items()}
    # A layer called 0 that is no convolution belongs to a head.
    sequential = _is_anchor(inside.get("0.weight"))
    stem = None
    if sequential:
        inside, stem = _from_sequential(inside)
    # Index and mask of shifted windows follow from the size; timm computes them.
    computed = ("relative_position_index", "attn_mask")
    tensors = {_layer(name): t for name, t in inside.items() if not name.endswith(computed)}
    if not any(name.endswith("relative_position_bias_table") for name in tensors):
        # DeiT III and iBOT; timm's BEiT, which has relative positions, has these names too.
        tensors = {re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name): tensor for name, tensor in tensors.items()}
    if "reg_token" in tensors and "cls_token" in tensors and "pos_embed" in tensors:
        # DINOv2 has a position for the class token and none for registers; timm's model with registers has positions for patches only.
        patches = tensors["pos_embed"].shape[1] - 1
        if math.isqrt(patches) ** 2 == patches:
            tensors["cls_token"] = tensors["cls_token"] + tensors["pos_embed"][:, :1]
            tensors["pos_embed"] = tensors["pos_embed"][:, 1:]
    split = _merge_splits(tensors)
    if split:
        notes.append(f"statistics of {split} split BatchNorms (lightly's) averaged, as in its evaluation")
    return Encoder(place, prefix, tensors, unused, stem, notes)


def _layer(name: str) -> str:
    """timm's name of a layer: blocks in chunks and SwiGLU (DINOv2), registers, shortcuts (lightly), and Swin's patch merging, which its
    authors place at the end of a stage and timm at the start of the next."""
    name = re.sub(r"^layers\.(\d+)\.downsample\.", lambda stage: f"layers.{int(stage[1]) + 1}.downsample.", name)
    name = re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)
    name = re.sub(r"\.mlp\.w12\.", ".mlp.fc1.", re.sub(r"\.mlp\.w3\.", ".mlp.fc2.", name))
    name = re.sub(r"^(layer\d+\.\d+)\.shortcut\.", r"\1.downsample.", name)
    return "reg_token" if name == "register_tokens" else name


def _from_sequential(inside: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
    """Rename the numbered children of a ResNet in nn.Sequential; returns also its stem, if the numbers show it.

    torchvision's children are conv1 bn1 relu maxpool layer1..4. lightly's own ResNet has no module for the ReLU and no pooling, so its
    layers begin at 2; in nn.Sequential (as in lightly's CIFAR benchmarks) that ReLU is lost.
    """
    own = any(name.startswith("2.") for name in inside)
    first = 2 if own else 4
    names = {"0": "conv1", "1": "bn1", **{str(first + i): f"layer{i + 1}" for i in range(4)}}
    renamed = {}
    for name, tensor in inside.items():
        number, _, rest = name.partition(".")
        renamed[f"{names.get(number, number)}.{rest}"] = tensor
    return renamed, "lightly" if own else None


def _merge_splits(tensors: dict[str, Tensor]) -> int:
    """Average the statistics of lightly's SplitBatchNorm over its k splits, [k * C] -> [C], as it does in evaluation.

    Changes `tensors`; returns how many BatchNorms were merged.
    """
    merged = 0
    for name in [name for name in tensors if name.endswith(("running_mean", "running_var"))]:
        weight = tensors.get(name.rpartition(".")[0] + ".weight")
        if (
            weight is not None
            and len(weight)
            and len(tensors[name]) > len(weight)
            and not len(tensors[name]) % len(weight)
        ):
            tensors[name] = tensors[name].view(-1, len(weight)).mean(0)
            merged += name.endswith("running_mean")
    return merged


def count_with_examples(names: Iterable[str], most: int = 3) -> str:
    """`12 (a, b, c, ...)`: how many names there are, and the first `most` of them."""
    names = list(names)
    shown = ", ".join(spelt(name) for name in names[:most])
    return f"{len(names)} ({shown}{', ...' if len(names) > most else ''})"
