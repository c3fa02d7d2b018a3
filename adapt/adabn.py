"""AdaBN: a trained classifier, with BatchNorm's statistics re-estimated on the target (Li et al. 2016, arXiv:1603.04779)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..core import norm
from ..core.errors import UserError
from .source_only import SourceOnly


class AdaBN(SourceOnly):
    """Keeps the classifier of `backbone.weights`; usually run for 0 steps. The target's labels play no part."""

    keeps_head = True

    @torch.no_grad()
    def conclude(self, target: Iterable[Tensor]) -> None:
        """Set every BatchNorm's statistics to the mean over the target's batches (float [n, C, h, w], each image once).

        Raises UserError if the network has no BatchNorm.
        """
        layers = [m for m in self.classifier.modules() if isinstance(m, norm.PositionBatchNorm)]
        if not layers:
            raise UserError("method: adabn needs a backbone with BatchNorm; use source_only or dann for this one")
        self.eval()
        for layer in layers:
            layer.train()
            layer.pending = []
        for images in target:
            self.classifier(images)
        for layer in layers:
            momentum, layer.momentum = layer.momentum, 1.0  # replace the source's statistics, do not mix
            norm.commit(layer)
            layer.momentum = momentum
        self.eval()
