"""README.md of an exported network: the model card that the Hugging Face Hub shows, from what the run recorded."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from ... import __version__
from ...core.evaluate.trained import TrainedRun
from ...core.views.view import per_channel
from .checking import ExportCheck
from .network import CROPPED_FROM, PlainNetwork

# Of each test and protocol; a card with every number would be read by nobody.
SHOWN_METRICS = (
    "hos", "os_star", "unknown_accuracy", "accuracy", "balanced_accuracy", "f1_macro", "map", "auroc", "worst_group", "nll", "ece",
)  # fmt: skip
HUB_METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "accuracy",
    "f1_macro": "f1",
    "auroc": "roc_auc",
}  # ours: the Hub's
UNKNOWN_LICENCE = "unknown"


def model_card(
    trained: TrainedRun,
    network: PlainNetwork,
    checks: Sequence[ExportCheck],
    *,
    licence: str = UNKNOWN_LICENCE,
    pictures: str,
    cosine: float | None = None,
    further: Iterable[str] = (),
) -> str:
    """Markdown with the Hub's header. pictures: on which the checks were made. cosine: as of `through_timms_transform`.

    further: sections about other forms of the network.
    """
    title = trained.folder.resolve().name
    task = "image-feature-extraction" if trained.classifier is None else "image-classification"
    header = {
        "license": licence,
        "library_name": "timm" if network.config else "pytorch",
        "pipeline_tag": task,
        "tags": ["rootstock", *(["timm"] if network.config else []), trained.backbone.spec["name"]],
        **_index(title, task, trained),
    }
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
        f"# {title}",
        _what(trained),
        _use(trained, network),
        _pictures(trained, network, cosine),
        _results(trained.result),
        _training(trained.backbone.provenance),
        _seen(trained),
        f"## Checks\n\nBefore this folder was kept, its network was compared with the run's on pictures of `{pictures}`:\n\n"
        + "\n".join(f"- {check.in_words()}" for check in checks),
        *further,
        _licence(licence),
        _command(trained.config),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _what(trained: TrainedRun) -> str:
    spec, classifier = trained.backbone.spec, trained.classifier
    count = sum(parameter.numel() for parameter in trained.backbone.parameters())
    what = [f"`{spec['name']}` for {spec['size']} px, {count:,} parameters, {trained.backbone.feature_dim} features"]
    if classifier is not None:
        names = ", ".join(classifier.outputs[:50]) + (", ..." if len(classifier.outputs) > 50 else "")
        what.append(f"{len(classifier.outputs)} outputs ({names}); {classifier.structure.in_words()}")
    return f"{'. '.join(what)}. Trained and exported by Rootstock {__version__}."


def _use(trained: TrainedRun, network: PlainNetwork) -> str:
    whole = trained.classifier is not None
    own = "logits" if whole else "features"
    lines = ["## Use", "", "```python", "from model import load  # model.py of this folder; it needs no Rootstock"]
    lines += [f"model = load()  # {own}" + ("; load(head=False) gives the features" if whole else ""), "```"]
    if network.config:
        has_head = bool(network.config["num_classes"])
        lines += ["", "In timm alone:", "", "```python", "import timm"]
        lines += [
            f'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # {"logits" if has_head else "features"}'
        ]
        if has_head:
            lines += ['features = timm.create_model("local-dir:FOLDER", pretrained=True, num_classes=0).eval()']
        of_colours = trained.backbone.channels == 3
        if of_colours:
            lines += [
                "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))  # a PIL picture -> [3, H, W]"
            ]
        how = (
            "The transform resizes by Pillow; what it changes is said below."
            if of_colours
            else f"timm has no transform for pictures of {trained.backbone.channels} channels: prepare them as said below."
        )
        lines += ["```", "", f"FOLDER is the path of this folder. {how}"]
        if whole and not has_head:
            lines += ["", "The layers above the features lie in `head.safetensors`, which `model.py` reads."]
    else:
        lines += ["", f"`timm.create_model` cannot build it: {network.reason}. `model.py` can."]
    return "\n".join(lines)


def _pictures(trained: TrainedRun, network: PlainNetwork, cosine: float | None) -> str:
    view = trained.view
    mean, std = (
        [round(value, 6) for value in per_channel(values, trained.backbone.channels)]
        for values in (view.mean, view.std)
    )
    text = (
        f"## Pictures\n\nThe shorter side is resized to {view.short} px ({view.interpolation}, antialiased, rounded to whole numbers, "
        "as `torch.nn.functional.interpolate(..., antialias=True)` does to a uint8 tensor), the longer one in proportion, rounded "
        f"down; the centre of {view.size} x {view.size} is cut out (from row and column {CROPPED_FROM}, as torchvision's CenterCrop does); "
        "values are divided by 255 (by 65535 where they have 16 bits) and normalised, channel by channel, "
        f"with mean {mean} and std {std}. Pictures of exactly {view.size} x {view.size} are taken whole. "
        "The same stands in `config.json` under `rootstock.preprocessing`."
    )
    if cosine is not None and network.config:
        text += (
            f" timm's own transform, made of `pretrained_cfg`, resizes by Pillow: the cosine of its features with those of the run is at "
            f"least {math.floor(1e6 * cosine) / 1e6:.6f} on the pictures of the checks. "
            "Features that are equal to the last bit need the same pixels: prepare them as above."
        )
    return text


def _results(result: Mapping[str, Any]) -> str:
    metrics, intervals = result.get("metrics") or {}, result.get("intervals") or {}
    if not metrics:
        return "## Results\n\nThe run measured nothing."
    n = (result.get("data") or {}).get("n") or {}
    lines = ["## Results", "", "| test / protocol / metric | value | 95 % interval over test images |", "|---|---|---|"]
    shown = {name: value for name, value in metrics.items() if name.rpartition("/")[2] in SHOWN_METRICS} or metrics
    for name, value in shown.items():
        low, high = intervals.get(name) or (None, None)
        between = "" if low is None or high is None else f"{low:.4f} to {high:.4f}"
        lines.append(f"| {name} | {value:.4f} | {between} |")
    if len(metrics) > len(shown):
        lines.append(f"\nThe run's result.json has {len(metrics) - len(shown)} more.")
    sizes = ", ".join(f"{name} {count}" for name, count in n.items())
    lines.append(f"\nOne run, seed {result.get('seed')}; selection: {result.get('selection')}. Pictures: {sizes}.")
    return "\n".join(lines)


def _index(title: str, task: str, trained: TrainedRun) -> dict[str, Any]:
    """The results for the Hub's header, which it shows beside the card: accuracies, F1 and AUROC by test set."""
    given = (trained.config.get("data") or {}).get("test")
    uris = given if isinstance(given, Mapping) else {}
    results: dict[str, list[dict[str, Any]]] = {}
    for name, value in (trained.result.get("metrics") or {}).items():
        test, protocol, metric = (*name.split("/"), "", "")[:3]
        if metric in HUB_METRICS and name.count("/") == 2:
            own = {"type": HUB_METRICS[metric], "name": f"{metric} ({protocol})", "value": round(value, 6)}
            results.setdefault(f"{test}: {uris.get(test) or (given if isinstance(given, str) else test)}", []).append(
                own
            )
    shown = [
        {"task": {"type": task}, "dataset": {"name": name, "type": "imagefolder"}, "metrics": metrics}
        for name, metrics in results.items()
    ]
    return {"model-index": [{"name": title, "results": shown}]} if shown else {}


def _training(provenance: Sequence[Mapping[str, Any]]) -> str:
    if not provenance:
        return "## Training\n\nNo stage of a training is recorded: these are the weights that the network began with."
    columns = ("stage", "method", "steps", "seed", "selection", "pictures", "fingerprint of the data")
    lines = ["## Training", "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for stage in provenance:
        data = stage.get("data") or {}
        count = ", ".join(f"{name} {size}" for name, size in (data.get("n") or {}).items())
        method = stage.get("method") or stage.get("weights") or stage.get("project") or ""
        cells = [stage.get("task"), method, stage.get("steps"), stage.get("seed"), stage.get("selection"), count]
        shown = ["" if cell is None else str(cell) for cell in cells]
        lines.append(f"| {' | '.join([*shown, data.get('fingerprint', '')])} |")
    splits = {
        f"{stage.get('task')}/{name}": digest
        for stage in provenance
        for name, digest in ((stage.get("data") or {}).get("split") or {}).items()
    }
    if splits:
        lines += ["", "Split hashes (sha256 over the sorted identities of the pictures):", ""]
        lines += [f"- {name}: `{digest}`" for name, digest in splits.items()]
    return "\n".join(lines)


def _seen(trained: TrainedRun) -> str:
    lines = ["## What the weights have seen", ""]
    seen = {stage: len(keys) for stage, keys in trained.backbone.seen.items() if len(keys)}
    if not seen:
        lines.append("No picture is recorded.")
    for stage, count in seen.items():
        how = "with their labels" if stage == "labelled" else f"without labels, by {stage}"
        lines.append(f"- {count:,} different pictures {how}")
    if any(stage.get("task") == "external" or stage.get("from") for stage in trained.backbone.provenance):
        lines.append("- whatever the published weights saw, of which no list exists")
    for key, how in (("seen_labelled", "with their labels"), ("seen_unlabelled", "without labels")):
        if (found := trained.result.get(key)) is not None:
            count = (
                ", ".join(f"{name} {n}" for name, n in found.items())
                if isinstance(found, Mapping) and found
                else str(found or 0)
            )
            lines.append(f"- test pictures of the results above that were seen in training {how}: {count}")
    return "\n".join(lines)


def _licence(licence: str) -> str:
    known = "not stated" if licence == UNKNOWN_LICENCE else f"`{licence}`"
    return (
        f"## Licence\n\nOf the weights: {known}. What they were trained on may restrict their use too: pictures, and weights that others "
        "published."
    )


def _command(config: Mapping[str, Any]) -> str:
    if not config:
        return ""
    plain = {key: value for key, value in config.items() if key != "verb"}
    text = yaml.safe_dump(json.loads(json.dumps(plain)), sort_keys=False, allow_unicode=True, width=120)
    return (
        f"## Command\n\n`rootstock {config.get('verb', 'VERB')} config.yaml`, with this config:\n\n"
        f"<details><summary>config.yaml</summary>\n\n```yaml\n{text}```\n\n</details>"
    )
