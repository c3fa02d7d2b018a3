"""What goes first: magnitude as torch-pruning has it, Taylor's expansion by loops, and how many channels stay by trying all levels."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rootstock.core.images.open import open_images
from rootstock.core.model.classifier import Classifier
from rootstock.core.views.view import Evaluation
from rootstock.finetune.compress.channels import CoupledUnits, Member, coupled_channels
from rootstock.finetune.compress.importance import (
    TAYLOR_BATCH,
    by_magnitude,
    by_taylor,
    chosen_pictures,
    layers_to_score,
    shown_batches,
)
from rootstock.finetune.compress.widths import Ranking
from rootstock.tests.finetune.compress.networks import RESNET, TOKENS, classifier_of

pruning: Any = pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")


def test_magnitude_is_that_of_torch_pruning() -> None:
    classifier = classifier_of("resnet10t", 16, {"stem": "small", "args": RESNET})
    ours = dict(zip(*_by_root(classifier), strict=True))
    images = torch.zeros(1, 3, 16, 16)
    graph = pruning.DependencyGraph().build_dependency(classifier, images, verbose=False)
    names = {module: name.removeprefix("backbone.model.") for name, module in classifier.named_modules()}
    measure, seen = pruning.importance.GroupMagnitudeImportance(p=2), 0
    for group in graph.get_all_groups(ignored_layers=[classifier.head]):
        theirs, root = measure(group), names[group[0].dep.target.module]
        torch.testing.assert_close(ours[root].float(), theirs, rtol=1e-4, atol=1e-5)
        seen += 1
    assert seen == len(ours) == 9


def _by_root(classifier: Classifier) -> tuple[list[str], list[torch.Tensor]]:
    groups = coupled_channels(classifier.backbone, features=True)
    return [group.root for group in groups], by_magnitude(layers_to_score(classifier), groups)


def test_a_new_head_does_not_count() -> None:
    classifier = classifier_of("smallconv", 16, {})
    groups = coupled_channels(classifier.backbone, features=True)
    with_head = by_magnitude(layers_to_score(classifier), groups)
    without = by_magnitude({**layers_to_score(classifier), "reader": torch.nn.Identity()}, groups)
    assert all(torch.equal(a, b) for a, b in zip(with_head[:3], without[:3], strict=True))
    assert not torch.equal(with_head[3], without[3])


@pytest.mark.parametrize("case", [("smallconv", 16, {"args": {"widths": [3, 4, 4, 5]}}), TOKENS[0]], ids=["cnn", "vit"])
def test_taylor_against_loops(case: Any) -> None:
    """(sum of gradient times weight)^2 of each channel or head, averaged over two batches."""
    classifier = classifier_of(*case)
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(5, 3, 16, 16, generator=generator), torch.tensor([0, 1, 2, 0, 1])) for _ in range(2)]
    groups = coupled_channels(classifier.backbone, features=True)
    found = by_taylor(classifier.train(), groups, batches)
    assert classifier.training
    classifier.eval()
    layers: dict[str, Any] = layers_to_score(classifier)
    for group, scores in zip(groups, found, strict=True):
        total = [0.0] * group.units
        for images, labels in batches:
            classifier.zero_grad()
            F.cross_entropy(classifier(images), labels).backward()
            for unit in range(group.units):
                change = 0.0
                for member in group.members:
                    layer = layers[member.place]
                    for channel, owner in enumerate(member.units.tolist()):
                        if owner == unit:
                            axis = 0 if member.side == "out" else 1
                            part = (layer.weight * layer.weight.grad).detach().select(axis, channel)
                            change += float(part.double().sum())
                            if member.side == "out" and layer.bias is not None:
                                change += float(layer.bias.detach()[channel] * layer.bias.grad[channel])
                total[unit] += change**2
        mean = sum(total) / len(total)
        assert scores.tolist() == pytest.approx([one / mean for one in total], rel=2e-3, abs=1e-5), group.root


def test_taylors_pictures_are_drawn_by_content() -> None:
    images = open_images("sklearn:digits?size=8#[:150,seed=1]", seed=0)
    chosen = chosen_pictures(images, 100, 3)
    backwards = images.select(torch.arange(len(images)).flip(0))
    assert sorted(chosen_pictures(backwards, 100, 3).keys().tolist()) == sorted(chosen.keys().tolist())
    assert len(chosen.keys().unique()) == 100 and set(chosen.keys().tolist()) != set(images.keys()[:100].tolist())
    batches = list(shown_batches(chosen, Evaluation(8), torch.device("cpu")))
    assert [len(labels) for _, labels in batches] == [TAYLOR_BATCH, 100 - TAYLOR_BATCH]


def group_of(units: int, whole: bool = False) -> CoupledUnits:
    return CoupledUnits("layer", units, (Member("layer", "out", torch.arange(units)),), whole)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_the_lowest_level_within_the_goal_is_found(scope: Any) -> None:
    """By trying all levels; costs are those of two layers, one after the other."""
    groups = [group_of(24), group_of(64), group_of(4, whole=True)]
    scores = [
        torch.rand(group.units, generator=torch.Generator().manual_seed(group.units)).double() for group in groups
    ]
    ranking = Ranking(groups, scores, scope, 0.2, 8)

    def macs(counts: Any) -> int:
        return 10 * counts[0] + counts[0] * counts[1] + 100 * counts[2]

    costs = [macs(ranking.counts(level)) for level in range(ranking.levels + 1)]
    assert costs == sorted(costs, reverse=True) and costs[0] == macs((24, 64, 4))
    for share in (0.9, 0.7, 0.5, 0.3):
        goal = int(share * costs[0])
        first = next(level for level, cost in enumerate(costs) if cost <= goal)
        assert ranking.first_within(macs, goal) == ranking.counts(first)
    assert ranking.first_within(macs, costs[-1] - 1) is None
    least = ranking.counts(ranking.levels)
    assert least == (8, 16, 1)  # a fifth of 64 are 13, and so many are no multiple of 8


def test_a_layer_alone_loses_its_share_and_all_layers_together_their_weakest() -> None:
    groups = [group_of(10), group_of(10)]
    scores = [torch.arange(10.0).double(), torch.arange(10.0).double() + 100.0]
    assert Ranking(groups, scores, "layer", 0.0, 1).counts(300) == (7, 7)
    alone = Ranking(groups, scores, "global", 0.0, 1)
    assert alone.counts(6) == (4, 10)
    assert [kept.tolist() for kept in alone.kept((4, 10))] == [[6, 7, 8, 9], list(range(10))]
    assert Ranking(groups, scores, "global", 0.5, 1).counts(8) == (5, 10)


def test_of_equal_channels_the_first_stay() -> None:
    ranking = Ranking([group_of(6)], [torch.ones(6).double()], "layer", 0.0, 1)
    assert ranking.kept((4,))[0].tolist() == [0, 1, 2, 3]
