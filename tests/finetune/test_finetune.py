"""The loss of fine-tuning on classes and on mixed labels, against sums over classes."""

import pytest
import torch
from torch import Tensor

from rootstock.core.draws import Draws
from rootstock.core.method import Labelled
from rootstock.core.model.backbone import create
from rootstock.core.model.classifier import Classifier
from rootstock.core.views.mixup import Mixing, mix_images
from rootstock.finetune.training.losses import CrossEntropy
from rootstock.finetune.training.objective import FineTune

CLASSES = ["a", "b", "c"]


def smoothed_cross_entropy(logits: Tensor, target: Tensor, smoothing: float) -> float:
    total = 0.0
    for row, weights in zip(logits, target, strict=True):
        log_p = row - row.exp().sum().log()
        for k in range(len(CLASSES)):
            total -= float(((1 - smoothing) * weights[k] + smoothing / len(CLASSES)) * log_p[k])
    return total / len(logits)


@torch.no_grad()
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_of_classes_and_of_mixed_labels(smoothing: float) -> None:
    torch.manual_seed(0)
    criterion = CrossEntropy(torch.ones(len(CLASSES)), smoothing)
    objective = FineTune(Classifier(create(16, name="smallconv", weights="none"), CLASSES, 0.0), criterion).eval()
    images, labels, draws = torch.randn(8, 3, 16, 16), torch.arange(8) % 3, Draws(0, torch.arange(8))
    logits = objective.classifier(images)
    step = objective(Labelled(images, labels, draws), 0.0)
    one_hot = torch.eye(3)[labels]
    assert float(step.loss) == pytest.approx(smoothed_cross_entropy(logits, one_hot, smoothing), rel=1e-5)
    mixed, soft = mix_images(images, labels, draws.stream("mix"), len(CLASSES), Mixing(0.8, 1.0))
    logits = objective.classifier(mixed)
    step = objective(Labelled(mixed, soft, draws), 0.0)
    assert float(step.loss) == pytest.approx(smoothed_cross_entropy(logits, soft, smoothing), rel=1e-5)
    right = (logits.argmax(1) == soft.argmax(1)).float().mean()
    assert torch.equal(step.metrics["train_accuracy"], right)
