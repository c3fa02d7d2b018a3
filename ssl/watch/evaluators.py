"""Evaluations during a pretraining run: kNN and a linear probe on labelled sets, and measures that need no labels.

They look at features of a frozen backbone in eval mode, without gradients, so they change nothing; and they depend only on the weights
and the seed, so a resumed run gets the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...core.distributed import gather, rank, world
from ...core.draws import Draws, permute
from ...core.errors import UserError
from ...core.evaluate import spectrum
from ...core.evaluate.features import evaluating, extract
from ...core.evaluate.knn import knn_predict
from ...core.evaluate.pictures import save_map
from ...core.images.damage import read_or_neighbour
from ...core.images.open import Images
from ...core.method import RawBatch
from ...core.run.directory import Run
from ...core.stream.order import straddling
from ...core.views.multiview import Multiview
from ...core.views.view import Evaluation, stack_pictures

WATCH_BATCH = 256
MIN_IMAGES, MOST_VIEWS = 16, 64  # fewer images give no meaningful spectrum


def knn_options(*, k: int = 20, temperature: float = 0.07) -> None:
    """Weighted cosine kNN of frozen features (Wu et al. 2018, arXiv:1805.01978). Nothing is chosen by its result.

    k: Number of neighbours that vote, 1 or more. A copy of a picture in the bank is one more neighbour; `rootstock probe` counts it once.
    temperature: Temperature of the weights exp(cosine / temperature) of their votes, above 0.
    """


def linear_options(*, steps: int = 300, lr: float = 0.01, batch_size: int = 1024) -> None:
    """A linear classifier on frozen features, trained anew at each evaluation by its own AdamW. It only indicates progress: the number to
    report is that of `rootstock probe`.

    steps: Optimizer steps of its training, 1 or more.
    lr: Learning rate at its start, above 0; it falls linearly to 0.
    batch_size: Features in one step, 1 or more; all of them if there are fewer.
    """


def watch_options(*, images: int = 256, views: int = 4) -> None:
    """Measures without labels on some training images: RankMe, alpha-ReQ, LiDAR, uniformity and alignment (see core/evaluate/spectrum.py).

    images: Number of training images, 16 or more.
    views: Number of augmented views of each, 2 to 64, for LiDAR and alignment.
    """


class Probes:
    """ "TEST/knn/accuracy" and "TEST/linear/accuracy" of a method's frozen backbone, trained on the features and labels of the bank."""

    def __init__(
        self,
        bank: Images | None,
        tests: Mapping[str, Images],
        view: Evaluation,
        run: Run,
        knn: Mapping[str, Any] | None,
        linear: Mapping[str, Any] | None,
    ) -> None:
        self.bank, self.tests, self.view, self.run = bank, tests, view, run
        self.knn, self.linear = knn, linear
        self.last: tuple[dict[str, Tensor], dict[str, float]] | None = None

    def __call__(self, method: Any) -> dict[str, float]:
        """Called by `fit` at each evaluation."""
        features = {name: self._features(method.backbone, t) for name, t in self.tests.items()}
        self.last = features, self._score(method.backbone, features)
        return self.last[1]

    def final_scores(self, method: Any) -> dict[str, float]:
        """The scores of `fit`'s last evaluation, after the last step. Also saves a map of the tests' features."""
        if self.last is None:  # a run that resumes after its last step has not evaluated
            self(method)
        assert self.last is not None
        features, scores = self.last
        if self.run.main and self.run.draws:
            save_map(self.run.dir, features, self.tests, self.run.seed)
        return scores

    def _features(self, backbone: nn.Module, images: Images) -> Tensor:
        return extract(backbone, images, self.view, device=self.run.device, workers=self.run.options["workers"])

    def _score(self, backbone: nn.Module, features: Mapping[str, Tensor]) -> dict[str, float]:
        if self.bank is None:
            return {}
        labels, classes = self.bank.labels, self.bank.classes
        assert labels is not None and classes is not None
        known = self._features(backbone, self.bank)
        predicted: dict[str, Tensor] = {}
        if self.knn is not None:
            for name, x in features.items():
                predicted[f"{name}/knn"] = knn_predict(known, labels, x, len(classes), **self.knn)
        if self.linear is not None:
            probe = linear_probe(known, labels, len(classes), seed=self.run.seed, device=self.run.device, **self.linear)
            for name, x in features.items():
                predicted[f"{name}/linear"] = probe(x.to(self.run.device)).argmax(1).cpu()
        truth = {name: images.labels for name, images in self.tests.items()}
        return {
            f"{key}/accuracy": float((found == truth[key.rpartition("/")[0]]).double().mean())
            for key, found in predicted.items()
        }


class _Linear(nn.Module):
    """A linear layer on features that are centred and divided by one number (for the reason, see core/evaluate/logreg.py)."""

    def __init__(self, x: Tensor, num_classes: int) -> None:
        super().__init__()
        self.mean = x.mean(0)
        self.scale = (x - self.mean).square().mean().sqrt().clamp(min=1e-12)
        self.layer = nn.Linear(x.shape[1], num_classes, device=x.device)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer((x - self.mean) / self.scale)


def linear_probe(
    x: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    steps: int = 300,
    lr: float = 0.01,
    batch_size: int = 1024,
) -> nn.Module:
    """A linear classifier of features float [N, D] with labels int64 [N], trained from zero weights in an order drawn from the seed.

    Returns a module [M, D] -> logits [M, num_classes] on the device.
    """
    x, labels = x.detach().to(device), labels.to(device)
    model = _Linear(x, num_classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-4)
    for step, places in enumerate(straddling(seed, "linear", len(x), min(batch_size, len(x)), steps)):
        rows = places.to(device)
        for group in optimizer.param_groups:
            group["lr"] = lr * (1.0 - step / steps)
        optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            nn.functional.cross_entropy(model(x[rows]), labels[rows]).backward()
        optimizer.step()
    return model.eval()


class Watch:
    """Measures of a backbone that need no labels, on a fixed set of training images; core/evaluate/spectrum.py defines them."""

    def __init__(
        self, train: Images, view: Evaluation, augment: Multiview, run: Run, *, images: int = 256, views: int = 4
    ) -> None:
        """Raises UserError for fewer than 16 images, and for fewer than 2 or more than MOST_VIEWS views."""
        if images < MIN_IMAGES or not 2 <= views <= MOST_VIEWS:
            raise UserError(
                f"evaluate.watch: expected {MIN_IMAGES} images or more in 2 to {MOST_VIEWS} views, got {images} and {views}; "
                "null turns it off"
            )
        n = min(images, len(train))
        chosen = permute(run.seed, "watch", len(train), torch.arange(n))
        self.images, self.view, self.run, self.views = train.select(chosen), view, run, views
        self.augment = Multiview(augment.views[:1])  # the first of the training views
        self.last: Tensor | None = None

    def __call__(self, method: Any) -> dict[str, float]:
        """Called by `fit` at each evaluation."""
        if len(self.images) < MIN_IMAGES:
            return {}
        features = self._features(method.backbone)
        self.last = features[:, 0]
        if not bool(features.isfinite().all()):
            return {}  # diverged: `fit` reports it, and no decomposition is defined
        plain, views = features[:, 0], features[:, 1:]
        found = {
            "rankme": spectrum.rankme(plain),
            "alpha_req": spectrum.alpha_req(plain),
            "lidar": spectrum.lidar(views),
            "uniformity": spectrum.uniformity(plain),
            "alignment": spectrum.alignment(views),
        }
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def save_map(self, method: Any) -> None:
        """Save a map of the watched images' features, for runs without labelled tests."""
        if self.last is None:  # a run that resumes after its last step has not evaluated
            self(method)
        if self.run.main and self.last is not None:
            save_map(self.run.dir, {"train": self.last}, {"train": self.images}, self.run.seed)

    def _features(self, backbone: nn.Module) -> Tensor:
        """Features of each image without and with augmentation, [n, 1 + views, D] on the CPU. Processes share the encoding, all get all.

        Damaged pictures are replaced as in training, which is allowed because these are no test scores.
        """
        n = len(self.images)
        share = -(-n // world())
        own = [
            min(i, n - 1) for i in range(rank() * share, (rank() + 1) * share)
        ]  # the last image fills up the last share
        parts = []
        with evaluating(backbone), torch.inference_mode():
            for start in range(0, share, WATCH_BATCH):
                few = own[start : start + WATCH_BATCH]
                pictures = [read_or_neighbour(self.images, i)[0] for i in few]
                plain = self.view(stack_pictures([self.view.worker(p) for p in pictures]).to(self.run.device))
                seen = [plain, *(self._augmented(pictures, few, v) for v in range(self.views))]
                parts.append(torch.stack([backbone(images) for images in seen], 1))
        return gather(torch.cat(parts))[:n].float().cpu()

    def _augmented(self, pictures: list[Tensor], numbers: list[int], view: int) -> Tensor:
        """One more augmented view, with draws that training does not use: [len(pictures), C, size, size]."""
        on_host = Draws(self.run.seed, torch.tensor(numbers) * self.views + view, "watch/")
        crops = self.augment.crop_each(pictures, on_host)["images"].to(self.run.device)
        draws = Draws(self.run.seed, on_host.positions.to(self.run.device), "watch/")
        return self.augment(RawBatch(crops, draws.positions, torch.empty(0)), draws).images[0]
