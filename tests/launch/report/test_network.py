"""What the page says of a network: counts of a real export, of what was pruned, and nothing of what cannot be read."""

from pathlib import Path
from typing import Any

import pytest

from rootstock.core.model.backbone import create
from rootstock.core.model.classifier import Classifier
from rootstock.core.model.heads import Structure
from rootstock.launch.report.network import network_facts


@pytest.mark.parametrize("bottleneck", [None, 6])
def test_parameters_are_counted_without_statistics(bottleneck: int | None, tmp_path: Path) -> None:
    backbone = create(16, name="smallconv", args={"widths": [4, 4, 8, 8]}, norm="batch")
    classifier = Classifier(backbone, ["a", "b", "c"], structure=Structure(bottleneck=bottleneck))
    assert any("running_mean" in name for name in classifier.state_dict())
    backbone.export(tmp_path)
    counts = [sum(parameter.numel() for parameter in network.parameters()) for network in (backbone.model, classifier)]
    assert said(tmp_path).startswith(f"{counts[0]:,} parameters, ")
    classifier.export(tmp_path)
    assert said(tmp_path).startswith(f"{counts[1]:,} parameters, ")


def said(run: Path) -> str:
    ((what, words),) = network_facts(run, {})
    assert what == "network"
    return words


def test_what_was_pruned_is_said(tmp_path: Path) -> None:
    counts = {"before": {"macs": 4_000_000, "parameters": 2_000}, "after": {"macs": 1_000_000, "parameters": 700}}
    words = "1.0 of 4.0 million multiply-adds a picture are left (25.0%), and 700 of 2,000 parameters of the backbone"
    assert network_facts(tmp_path, {"pruned": counts}) == [("pruned", words)]
    zeros = {"zeros": 1500, "of_weights": 2000}
    assert network_facts(tmp_path, {"pruned": zeros}) == [("pruned", "1,500 of 2,000 weights are 0 (75.0%)")]


@pytest.mark.parametrize(
    "pruned", [None, 3, {}, {"before": {}, "after": {}}, {"before": 1}, {"zeros": 1, "of_weights": 0}]
)
def test_of_what_cannot_be_read_nothing_is_said(pruned: Any, tmp_path: Path) -> None:
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone" / "backbone.safetensors").write_bytes(b"no tensors")
    assert network_facts(tmp_path, {"pruned": pruned}) == []
