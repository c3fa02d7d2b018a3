"""The first half of LP-FT (Kumar et al. 2022, arXiv:2202.10054): the head that fine-tuning starts from is a linear probe's.

A new head's first gradients would distort the features; a trained one leaves them less to change. The probe is logistic regression on the
features of the backbone as it was given, in evaluation's view.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...core.evaluate.features import extract
from ...core.evaluate.linear_head import head_of
from ...core.evaluate.logreg import LogisticRegression, fit_choosing_C
from ...core.images.images import Images
from ...core.model.classifier import Classifier
from ...core.run.directory import Run
from ...core.run.kept_once import kept_once
from ...core.views.view import Evaluation

LINEAR_FIRST = "linear_first.safetensors"
TRIED_C = (
    1e-4,
    1e-3,
    1e-2,
    1e-1,
    1e0,
    1e1,
    1e2,
    1e3,
)  # values of C, of which one is chosen on a held-out 20 % of the training images


def probe_head(run: Run, classifier: Classifier, images: Images, view: Evaluation) -> None:
    """Give the classifier the head of a linear probe of its backbone. Called on every process, before the training.

    A command that goes on with a run reads the head that the first one stored. Raises UserError for features that are not finite.
    """

    def fitted() -> dict[str, torch.Tensor]:
        classifier.to(run.device)
        found = _fitted(run, classifier, images, view)
        run.log(f"linear probe before fine-tuning: C {found.C:g}, chosen on a held-out 20 % of the training images")
        return whole_layer(found, classifier.classes)

    stored = kept_once(run, LINEAR_FIRST, fitted, "the linear probe is fitted again")
    with torch.no_grad():
        classifier.head.weight.copy_(stored["weight"])
        classifier.head.bias.copy_(stored["bias"])


def _fitted(run: Run, classifier: Classifier, images: Images, view: Evaluation) -> LogisticRegression:
    features = extract(classifier.backbone, images, view, device=run.device, workers=run.options["workers"])
    assert images.labels is not None
    return fit_choosing_C(
        features, images.labels, images.units(), len(classifier.classes), seed=run.seed, values_of_C=TRIED_C
    )


def whole_layer(model: LogisticRegression, classes: Sequence[str]) -> dict[str, torch.Tensor]:
    """Weight [K, D] and bias [K], float32, of the linear layer that gives the regression's logits on unscaled features.

    A class without training images has the smallest bias of all, and no weights.
    """
    known, which = head_of(model, classes), model.classes.cpu()
    weight = torch.zeros(len(classes), known.weight.shape[1])
    bias = torch.full((len(classes),), float(known.bias.min()))
    weight[which], bias[which] = known.weight, known.bias
    return {"weight": weight, "bias": bias}
