"""Bags of visual words: an image as a histogram of its local descriptors, each counted as the nearest of some learned words.

The words are fitted on the training images alone, without labels, before features are extracted. Which images and places are taken is a
hash of seed and content, and the descriptors are sorted before k-means. So neither the order of the images nor copies of them, nor the
number of processes, moves a word.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...core.distributed import of_first
from ...core.draws import Draws, permute
from ...core.errors import UserError
from ...core.evaluate.features import EvaluationView
from ...core.images.images import Images
from .inputs import at_least

# Descriptors a word that k-means learns from, places an image that they come from at most, rounds of k-means.
PER_WORD, PER_IMAGE, ITERATIONS = 100, 32, 25
_NUMBERS_AT_ONCE = 1 << 24  # of similarities between descriptors and words in memory


class VisualWords(nn.Module):
    """A bag of visual words (Sivic & Zisserman 2003; Csurka et al. 2004), [N, channels, size, size] in 0..1 -> [N, D].

    describe: images -> local descriptors [N, places, width], place by place. places: their (row, column) in pixels, float [places, 2].
    Each descriptor counts for the word at the smallest Euclidean distance. In each of 1, 2 x 2, 4 x 4, ... equal parts of the image (a
    spatial pyramid of `levels`, Lazebnik et al. 2006) the shares of the words are taken; all are divided by their sum and square-rooted
    (L1, then Hellinger). D = words * (1 + 4 + ... + 4^(levels - 1)), laid out as level, part (row by row), word.

    Its words are 0 until `learn_words` has fitted them. Raises UserError for numbers out of range.
    """

    words: Tensor
    parts: Tensor

    def __init__(self, who: str, describe: nn.Module, places: Tensor, width: int, words: int, levels: int) -> None:
        super().__init__()
        at_least(who, "words", words, 2, "512")
        at_least(who, "levels", levels, 1, "1, or 3 for a spatial pyramid,")
        self.who, self.describe, self.levels = who, describe, levels
        self.register_buffer("words", torch.zeros(words, width))
        size: Any = describe.size
        self.size, found, first = size, list[Tensor](), 0
        for level in range(levels):
            grid = 2**level
            part = (places * grid / size).long().clamp(max=grid - 1)
            found.append(first + part[:, 0] * grid + part[:, 1])
            first += grid**2
        self.register_buffer("parts", torch.stack(found), persistent=False)
        self.feature_dim = first * words

    def forward(self, images: Tensor) -> Tensor:
        descriptors = self.describe(images)
        step = max(1, _NUMBERS_AT_ONCE // (descriptors.shape[1] * len(self.words)))
        return torch.cat([self._counted(some) for some in descriptors.split(step)])

    def _counted(self, descriptors: Tensor) -> Tensor:
        k = len(self.words)
        nearest = nearest_words(descriptors, self.words)
        found = descriptors.new_zeros(len(descriptors), self.feature_dim)
        for part in self.parts:
            found.scatter_add_(1, part * k + nearest, found.new_ones(()).expand_as(nearest))
        return (found / (self.levels * nearest.shape[1])).sqrt()


def nearest_words(descriptors: Tensor, words: Tensor) -> Tensor:
    """The word at the smallest Euclidean distance, of equals the first: [..., width], [K, width] -> int64 [...]."""
    return (descriptors @ words.T - words.square().sum(1) / 2).argmax(-1)


def learn_words(
    model: VisualWords, images: Images, view: EvaluationView, *, seed: int, log: Callable[[str], None] = print
) -> None:
    """Fit the words of `model`, in place, by k-means (faiss) on descriptors of these images; the same on all processes.

    100 descriptors a word are taken, at most 32 of an image, at places drawn by the image's identity. view: as features are extracted.
    Raises UserError if the images have fewer different descriptors than words, and the error of a damaged picture.
    """
    k = len(model.words)
    sample = sampled_descriptors(model, images, view, seed)
    different = np.unique(sample, axis=0)
    if len(different) < k:
        raise UserError(
            f"backbone.args.words: {model.who} needs {k} different descriptors to learn {k} words, and the training images have "
            f"{len(different)}; give fewer words, or more images"
        )
    log(f"{model.who}: {k} words are fitted on {len(sample):,} descriptors of the training images")
    first = permute(seed, "words", len(different), torch.arange(k)).numpy()

    def fitted() -> Tensor:
        return torch.from_numpy(k_means(sample, different[first]))

    model.words.copy_(of_first(fitted, model.words))


def sampled_descriptors(model: VisualWords, images: Images, view: EvaluationView, seed: int) -> NDArray[np.float32]:
    """Descriptors of the training images, [M, width], sorted: a function of seed and the images' content."""
    keys = images.keys()
    draws = Draws(seed, keys, "words/")
    places = model.parts.shape[1]
    each = min(places, PER_IMAGE)
    needed = min(len(images), math.ceil(len(model.words) * PER_WORD / each))
    order = draws.bits("image")
    # Images that share an identity, as blends of one digit do, are taken together.
    rows = (order <= order.sort().values[needed - 1]).nonzero()[:, 0]
    chosen = draws.choice("place", places, each)

    def described() -> Iterator[Tensor]:
        # One by one: batches of other images round otherwise.
        for row in rows.tolist():
            yield model.describe(view(view.worker(images.read(row))[None]))[0][chosen[row]]

    with torch.inference_mode():
        found = torch.cat(list(described())).numpy().astype(np.float32)
    return np.ascontiguousarray(found[np.lexsort(found.T)])


def k_means(rows: NDArray[np.float32], first: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lloyd's algorithm from given centroids, float32 [K, width]: the same for the same rows, on one thread."""
    import faiss  # takes half a second

    # Any: faiss's Python signatures are swig's, which type checkers misread.
    threads, library = faiss.omp_get_max_threads(), faiss
    settings: dict[str, Any] = {"niter": ITERATIONS, "min_points_per_centroid": 1, "max_points_per_centroid": len(rows)}
    faiss.omp_set_num_threads(1)
    try:
        made: Any = library.Kmeans(rows.shape[1], len(first), seed=1, **settings)
        made.train(rows, init_centroids=first)
    finally:
        faiss.omp_set_num_threads(threads)
    return np.asarray(made.centroids, dtype=np.float32)


def regular_places(size: int, step: int) -> list[int]:
    """The rows (or columns) of a regular grid of pixels in the middle of `size` pixels, every `step` pixels."""
    count = max(1, size // step)
    return [(size - 1 - (count - 1) * step) // 2 + i * step for i in range(count)]


class DenseDescriptors(nn.Module):
    """A regular grid of places, the same for each of some scales: what describes images for `VisualWords` begins with it.

    step: pixels between places; None for an eighth of the side, at most 8. scales: their number. who: the baseline, for messages.
    places: (row, column) of each descriptor, scale by scale, float [places, 2]. Raises UserError for a step out of range.
    """

    def __init__(self, size: int, channels: int, step: int | None, scales: int, who: str) -> None:
        super().__init__()
        step = min(8, max(1, size // 8)) if step is None else step
        at_least(who, "step", step, 1, "8")
        if step > size:
            raise UserError(
                f"backbone.args.step: {who} cannot step {step} px in images of {size} px; give a smaller step"
            )
        self.size, self.shape = size, (channels, size, size)
        self.step, self.rows = step, regular_places(size, step)
        grid = [(row, column) for _ in range(scales) for row in self.rows for column in self.rows]
        self.places = torch.tensor(grid, dtype=torch.float32)
