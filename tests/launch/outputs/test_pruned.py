"""The export of a pruned network: plain PyTorch and ONNX Runtime compute what the whole network computes with channels set to 0."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rootstock.core.evaluate.trained import load_trained
from rootstock.core.model.heads import Structure
from rootstock.finetune.compress.kept import keep_channels
from rootstock.launch.outputs.checking import shown_pictures
from rootstock.launch.outputs.export import export_network
from rootstock.tests.finetune.compress.networks import CNNS, TOKENS, chosen, classifier_of, named
from rootstock.tests.finetune.compress.test_channels import with_zeros
from rootstock.tests.launch.outputs.conftest import Runs
from rootstock.tests.launch.outputs.test_export import by_script

pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")


@pytest.mark.parametrize("case", [CNNS[1], CNNS[2], *CNNS[4:7], TOKENS[0], TOKENS[2]], ids=named)
def test_an_export_equals_the_masked_network(
    case: tuple[str, int, dict[str, Any]], runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classifier = classifier_of(*case)
    whole, kept = copy.deepcopy(classifier), chosen(classifier, 0.5)
    keep_channels(classifier, kept)
    classifier.export(tmp_path / "run")
    to, onnx = tmp_path / "exported", case is CNNS[1]
    assert export_network(tmp_path / "run", to, images=[runs.pictures], onnx=onnx) == 0
    said = capsys.readouterr().err
    ours, name = case[0] in ("smallconv", "lenet", "cifar_resnet"), case[0]
    why = f"{name} is a network of Rootstock's own, which timm does not have"
    why = why if ours else f"it is pruned, and timm's {name} has no argument for the sizes of single layers"
    assert f"timm's local-dir cannot load it: {why}; model.py can\n" in said
    assert ("logits of model.onnx in ONNX Runtime: " in said) == onnx
    shown = shown_pictures(load_trained(tmp_path / "run"), [runs.pictures])
    with torch.no_grad():
        logits, features = by_script(to)(shown.inputs), by_script(to, head=False)(shown.inputs)
    expected = with_zeros(whole, kept, shown.inputs)
    assert float((logits - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    assert torch.equal(features, shown.features)
    about = json.loads((to / "config.json").read_text())["rootstock"]
    assert "rootstock" not in (to / "model.py").read_text().replace('["rootstock"]', "")
    assert about["pruned"] == classifier.backbone.spec["pruned"] and "architecture" not in about


def test_another_head_lies_apart(runs: Runs, tmp_path: Path) -> None:
    classifier = classifier_of("smallconv", 16, {})
    classifier.structure = Structure(bottleneck=5)
    classifier.bottleneck, classifier.head = classifier.structure.layers(classifier.backbone.feature_dim, 3)
    keep_channels(classifier.eval(), chosen(classifier, 0.4))
    assert classifier.backbone.feature_dim < 128
    classifier.export(tmp_path / "run")
    assert export_network(tmp_path / "run", tmp_path / "exported", images=[runs.pictures]) == 0
