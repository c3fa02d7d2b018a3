"""The worst mistakes of a classifier beside the training pictures that it finds most alike: a picture for the page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from ..images.open import Images
from ..model.classifier import Classifier
from ..printable import printable
from ..views.view import Evaluation
from .calibration import probabilities
from .features import extract
from .pictures import save_picture, spread
from .predictions import SavedScores, ScoredImages
from .scores import Scored
from .thumbnails import square_picture

WORST, ALIKE = 6, 3  # mistakes of a test set, and training pictures beside each
MOST_COMPARED = 1000  # training pictures, evenly spaced, among which the nearest are looked for
MOST_TESTS = 4
_SIDE, _CELL, _LINE, _GAP = (
    96,
    132,
    15,
    8,
)  # pixels: of a picture, of the place it has, of a line of text, between two mistakes


class Mistake(NamedTuple):
    """A test image that is taken for another class. row: in its set. confidence: of the wrong class, 0 to 1."""

    row: int
    label: int
    predicted: int
    confidence: float


class _Features(nn.Module):
    """Images -> what the classifier's head sees."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier.features(images)


def worst_mistakes(images: ScoredImages, saved: SavedScores, most: int = WORST) -> list[Mistake]:
    """The wrong predictions of the highest confidence, the highest first; of copies and blends of one picture the first.

    saved: logits, [M, K].
    """
    p = probabilities(saved.scores, saved.kind)
    assert p is not None
    predicted, sure = p.argmax(axis=1), p.max(axis=1)
    wrong = np.flatnonzero(predicted != images.labels)
    found: dict[int, Mistake] = {}
    for row in wrong[np.argsort(-sure[wrong], kind="stable")].tolist():
        if len(found) == most:
            break
        key = int(images.keys[row])
        found.setdefault(key, Mistake(row, int(images.labels[row]), int(predicted[row]), float(sure[row])))
    return list(found.values())


def most_alike(queries: Tensor, bank: Tensor, most: int = ALIKE) -> Tensor:
    """The rows of the bank with the highest cosine, the highest first, of equal ones the first: int64 [Q, min(most, B)].

    queries: [Q, D]; bank: [B, D].
    """
    unit = [nn.functional.normalize(part.double(), dim=1) for part in (queries, bank)]
    return (-(unit[0] @ unit[1].T)).argsort(dim=1, stable=True)[:, :most]


def save_mistakes(
    run: Path,
    classifier: Classifier,
    train: Images,
    tests: Mapping[str, Images],
    scored: Scored,
    view: Evaluation,
    *,
    device: torch.device,
    workers: int = 0,
    write: bool = True,
) -> None:
    """Write pictures/mistakes_TEST.png of each test set with mistakes: the worst ones, each beside its nearest training pictures.

    Every process calls it, one of them writes. scored: of the classifier on these tests, as "TEST/classifier".
    """
    shown = {
        name: found
        for name in list(tests)[:MOST_TESTS]
        if (found := worst_mistakes(scored.kept.tests[name], scored.kept.scores[f"{name}/classifier"]))
    }
    if not shown or train.labels is None:
        return
    settings = {"device": device, "workers": workers}
    kept = spread(len(train), MOST_COMPARED)
    bank = extract(_Features(classifier), train.select(kept), view, **settings)
    for name, found in shown.items():
        rows = torch.tensor([one.row for one in found])
        queries = extract(_Features(classifier), tests[name].select(rows), view, **settings)
        near = kept[most_alike(queries, bank)]
        if write:
            picture = _sheet(tests[name], train, classifier.classes, found, near.tolist())
            save_picture(run, f"mistakes_{name}", picture, _caption(name, classifier.classes, found, near, train))


def _sheet(test: Images, train: Images, classes: list[str], found: list[Mistake], near: list[list[int]]) -> Image.Image:
    """Two mistakes beside each other: the test picture, and to its right the nearest training pictures, with their classes below."""
    assert train.labels is not None
    wide, high = (1 + ALIKE) * _CELL, _SIDE + 2 * _LINE + _GAP
    columns = min(2, len(found))
    sheet = Image.new("RGB", (columns * wide + (columns - 1) * 3 * _GAP, -(-len(found) // columns) * high), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for k, (one, rows) in enumerate(zip(found, near, strict=True)):
        left, top = (k % columns) * (wide + 3 * _GAP), (k // columns) * high
        cells = [(square_picture(test, one.row, _SIDE), f"{_short(classes[one.label])}, taken for", "#b00020")]
        cells += [(square_picture(train, row, _SIDE), _short(classes[int(train.labels[row])]), "black") for row in rows]
        for place, (picture, words, ink) in enumerate(cells):
            x = left + place * _CELL
            sheet.paste(picture, (x, top))
            draw.text((x, top + _SIDE + 1), words, ink, font)
        second = f"{_short(classes[one.predicted])} ({100 * one.confidence:.0f} %)"
        draw.text((left, top + _SIDE + 1 + _LINE), second, "#b00020", font)
    return sheet


def _short(name: str) -> str:
    """Pillow's own font has Latin letters alone."""
    name = printable(name)
    return (name if len(name) <= 13 else f"{name[:12]}.").encode("latin-1", "replace").decode("latin-1")


def _caption(test: str, classes: list[str], found: list[Mistake], near: Tensor, train: Images) -> str:
    """What the picture shows, in words too, for those who don't see it."""
    assert train.labels is not None
    among = "" if len(train) <= MOST_COMPARED else f" of {MOST_COMPARED} evenly spaced ones"
    told = "; ".join(
        f"{printable(classes[one.label])} taken for {printable(classes[one.predicted])} ({100 * one.confidence:.0f} %), nearest "
        + ", ".join(printable(classes[int(train.labels[row])]) for row in rows)
        for one, rows in zip(found, near.tolist(), strict=True)
    )
    return (
        f"{test}: the wrong predictions of the highest confidence, each beside the {near.shape[1]} training pictures{among} whose features "
        f"are nearest by cosine. {told}."
    )
