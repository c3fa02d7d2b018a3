"""Values for the keys of a config that say `auto`, from the pictures, the machine and the run in `backbone.weights`.

They are settled before a run is recorded: its config.yaml holds them, and the same command goes on with what it holds. The rules give the
same values on any number of processes. They look at the number of pictures and at the sizes of 64 of them, never at a label.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch

from ..core.config.auto import AUTO
from ..core.documents import Unreadable, read_yaml
from ..core.errors import UserError
from ..core.images.images import Images
from ..core.images.open import DamagedImage, open_images
from ..core.images.sets import HELD_OUT
from ..core.model.description import read_description
from ..core.run.compare import begun
from ..core.run.folder import CONFIG, run_folder
from ..ssl.registry import PRETRAIN_METHODS

AUTO_KEYS = ("data.size", "backbone.name", "optim.batch_size", "optim.duration")
TRAINED = {"pretrain": ("train",), "probe": ("train",), "finetune": ("train",), "adapt": ("source", "target")}
INPUT_SIDES = (32, 64, 96, 128, 160, 192, 224)  # multiples of a ViT's patch of 16
NEARLY = 0.9  # a picture of 29 px may be enlarged to 32
LARGEST_ON_CPU = 64
SAMPLED_SIZES = 64  # pictures whose sizes are looked at
BATCHES = 8  # of the smaller set
SMALLEST_BATCH, LARGEST_BATCH, LARGEST_JOINT = 16, 256, 64
EPOCHS = {"pretrain": 100, "finetune": 30, "adapt": 30}
FEWEST_STEPS, MOST_STEPS = 1_000, 100_000


class Facts(NamedTuple):
    """What the rules know. counts: pictures of each training set; side: median of their shorter sides in pixels."""

    counts: tuple[int, ...]
    side: int
    accelerator: bool  # whether there is one, and the run may use it


def settle(verb: str, config: Mapping[str, Any], wait: bool = False) -> dict[str, Any]:
    """A resolved config without `auto`: with the values of the run that it goes on with, or with new ones.

    wait: whether a key stays `auto` that depends on a run or on pictures which are not there yet, in a pipeline. Raises UserError.
    """
    settled = copy.deepcopy(dict(config))
    if not (missing := open_keys(settled)):
        return settled
    for key, value in _recorded(settled, missing).items():
        _put(settled, key, value)
    if not (missing := open_keys(settled)):
        return settled
    described = _described(settled, missing, wait)
    if described is None:
        return settled
    try:
        facts = facts_about(verb, settled)
    except UserError:
        if wait:  # building the stage says it
            return settled
        raise
    if "data.size" in missing:
        _put(settled, "data.size", described["size"] if described else whole_patches(side_for(facts), settled))
    if "backbone.name" in missing:
        for key, value in ({"name": None} if described else network_for(verb, settled, facts)).items():
            _put(settled, f"backbone.{key}", value)
    if "optim.batch_size" in missing:
        _put(settled, "optim.batch_size", batch_for(verb, facts))
    if "optim.duration" in missing:
        _put(settled, "optim.duration", steps_for(verb, facts, settled["optim"]["batch_size"]))
    return settled


def open_keys(config: Mapping[str, Any]) -> list[str]:
    """The keys of a resolved config that say `auto`, and are to be settled."""
    return [key for key in AUTO_KEYS if _get(config, key) == AUTO]


def chosen_words(before: Mapping[str, Any], settled: Mapping[str, Any]) -> str:
    """What was chosen for `auto`, in a line for the log: "auto: data.size=96 optim.batch_size=64"; "" where nothing was."""
    keys = open_keys(before)
    extra = [key for key in ("backbone.stem",) if "backbone.name" in keys and _get(before, key) != _get(settled, key)]
    words = [f"{key}={_get(settled, key)}" for key in [*keys, *extra] if _get(settled, key) is not None]
    return f"auto: {' '.join(words)}" if words else ""


def give_way(given: dict[str, Any], overrides: Sequence[str]) -> str:
    """Where the command names a run in `backbone.weights`, and the config another network: the run's. Returns a line for the log, or "".

    given: the resolved config, which is changed. A network that the command names itself stays, and is refused if it contradicts the run.
    """
    named = {override.partition("=")[0].strip() for override in overrides}
    backbone = given.get("backbone") or {}
    if "backbone.weights" not in named or {"backbone.name", "backbone.args", "backbone.stem", "backbone"} & named:
        return ""
    if not names_a_run(backbone["weights"]) or backbone["name"] in (None, AUTO):
        return ""
    try:
        described = read_description(backbone["weights"])
    except UserError:  # is still to come, in a pipeline; or opening the run says what is wrong
        described = {"name": None}
    if described["name"] == backbone["name"]:
        return ""
    gone = backbone["name"]
    given["backbone"] = {**backbone, "name": None, "args": {}, "stem": None}
    return f"backbone.name: {described['name']} of {backbone['weights']}, not the config's {gone}"


def names_a_run(weights: str) -> bool:
    """Whether `backbone.weights` names the folder of a run."""
    return weights not in ("none", "timm") and not weights.endswith(".safetensors")


def facts_about(verb: str, config: Mapping[str, Any]) -> Facts:
    """Open the training sets without their labels, and look at some pictures. Raises UserError."""
    sets = [open_images(config["data"][key], seed=config["seed"], role="unlabelled") for key in TRAINED[verb]]
    sides = [side for images in sets for side in shorter_sides(images, SAMPLED_SIZES // len(sets))]
    if not sides:
        raise UserError(
            f"{sets[0].uri}: none of the pictures that were looked at can be read, so data.size=auto has no answer"
        )
    accelerator = torch.cuda.is_available() and config["run"]["device"] != "cpu"
    return Facts(tuple(len(images) for images in sets), int(median(sides)), accelerator)


def side_for(facts: Facts, largest_on_cpu: int = LARGEST_ON_CPU) -> int:
    """The smallest of INPUT_SIDES that pictures nearly have; on a CPU at most 64."""
    enough = next((side for side in INPUT_SIDES if side >= NEARLY * facts.side), INPUT_SIDES[-1])
    return enough if facts.accelerator else min(enough, largest_on_cpu)


def whole_patches(side: int, config: Mapping[str, Any]) -> int:
    """The nearest side, of two equal ones the larger, that the patches of the config's network fill; `side` itself where it has none."""
    backbone = config.get("backbone") or {}
    named = re.search(r"patch([0-9]+)", str(backbone.get("name")))
    patch = (backbone.get("args") or {}).get("patch_size", int(named[1]) if named else 1)
    return max((2 * side + patch) // (2 * patch), 1) * patch if isinstance(patch, int) and patch > 0 else side


def network_for(verb: str, config: Mapping[str, Any], facts: Facts) -> dict[str, Any]:
    """Keys of `backbone`: a ViT for methods that hide patches, else a ResNet, with the stem for small images up to 64 px on a GPU.

    For tiny pictures on a CPU it is SmallConv; larger ones that are shown as small get a network that timm has, too.
    Raises UserError for a file of weights, whose network only the user knows.
    """
    size, weights = config["data"]["size"], config["backbone"]["weights"]
    if weights.endswith(".safetensors"):
        raise UserError(f"backbone.name: auto cannot tell which network {weights} is of; give its name at timm")
    if verb == "pretrain" and PRETRAIN_METHODS[config["method"]["name"]].hides_patches:
        patch = 16 if size >= 128 else 8 if size >= 64 else 4
        return {
            "name": "vit_small_patch16_224" if facts.accelerator else "vit_tiny_patch16_224",
            "args": {"patch_size": patch, **config["backbone"]["args"]},
            "pooling": config["backbone"]["pooling"] or "mean",
        }
    if facts.accelerator:
        small = {"name": "resnet18", "stem": config["backbone"]["stem"] or "small"}
        return small if size <= 64 and weights == "none" else {"name": "resnet50" if size >= 160 else "resnet18"}
    tiny = max(size, NEARLY * facts.side) <= INPUT_SIDES[0]
    return {"name": "smallconv" if tiny and weights == "none" else "resnet10t"}


def batch_for(verb: str, facts: Facts) -> int:
    """The largest power of two of which the smallest set has eight, from 16 to 256, in adaptation to 64.

    Of a set that has no 16 pictures where a fifth is held out, the largest power of two that it has then.
    """
    largest = LARGEST_JOINT if verb == "adapt" else LARGEST_BATCH
    batch = largest
    while batch > SMALLEST_BATCH and batch * BATCHES > min(facts.counts):
        batch //= 2
    while batch > 1 and batch > (1 - HELD_OUT) * min(facts.counts):
        batch //= 2
    return batch


def steps_for(verb: str, facts: Facts, batch: int) -> int:
    """Steps of so many epochs of the largest set, from 1,000 to 100,000; on a CPU half of them, which takes minutes for some hundred."""
    steps = min(max(EPOCHS[verb] * max(facts.counts) // batch, FEWEST_STEPS), MOST_STEPS)
    return steps if facts.accelerator else max(1, steps // 2)


def shorter_sides(images: Images, most: int) -> list[int]:
    """The shorter sides of at most so many pictures, evenly spaced; damaged ones left out."""
    found = []
    for number in range(min(most, len(images))):
        try:
            picture = images.read(number * len(images) // min(most, len(images)))
        except DamagedImage:
            continue
        found.append(min(picture.shape[-2:]))
    return found


def _recorded(config: Mapping[str, Any], keys: list[str]) -> dict[str, Any]:
    """The values that the run in `run.dir` has at these keys, if one was begun there by a command that said `auto`."""
    folder = run_folder(config["run"]["dir"])
    try:
        before = read_yaml(folder / CONFIG) if begun(folder) else None
    except (Unreadable, OSError):
        return {}  # opening the run says what is wrong
    if not isinstance(before, dict):
        return {}
    found = {key: _get(before, key) for key in keys}
    if "backbone.name" in keys:
        found |= {f"backbone.{key}": _get(before, f"backbone.{key}") for key in ("stem", "args", "pooling")}
    return {key: value for key, value in found.items() if value is not None or key in keys}


def _described(config: Mapping[str, Any], keys: list[str], wait: bool) -> dict[str, Any] | None:
    """backbone.json of the run in `backbone.weights`, {} without one; None if it has to be waited for."""
    weights = (config.get("backbone") or {}).get("weights", "none")
    if not names_a_run(weights) or not {"data.size", "backbone.name"} & set(keys):
        return {}
    try:
        return read_description(weights)
    except UserError:
        if wait:
            return None
        raise


def _get(config: Mapping[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    return (config.get(section) or {}).get(name)


def _put(config: dict[str, Any], key: str, value: Any) -> None:
    section, _, name = key.partition(".")
    config[section] = {**config[section], name: value}
