"""The worst mistakes and their neighbours, against loops; the picture shows the right pixels, and its caption says what it shows."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rootstock.core.evaluate.mistakes import MOST_COMPARED, Mistake, most_alike, save_mistakes, worst_mistakes
from rootstock.core.evaluate.predictions import SavedScores, ScoredImages
from rootstock.core.evaluate.scores import Scored
from rootstock.core.images.open import Images, open_images
from rootstock.core.model.backbone import create
from rootstock.core.model.classifier import Classifier
from rootstock.core.views.view import Evaluation


def test_worst_mistakes_against_a_loop() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, (40, 4)).astype(np.float16)
    labels, keys = random.integers(0, 4, 40), np.arange(40) % 25  # the last 15 are copies of the first ones
    images = ScoredImages(keys.astype(np.int64), labels.astype(np.int64), ("a", "b", "c", "d"))
    expected, seen = list[Mistake](), set[int]()
    rows = []
    for i in range(40):
        p = np.exp(logits[i].astype(float)) / np.exp(logits[i].astype(float)).sum()
        if p.argmax() != labels[i]:
            rows.append((-p.max(), i, int(p.argmax())))
    for sure, i, predicted in sorted(rows):
        if keys[i] not in seen:
            seen.add(int(keys[i]))
            expected.append(Mistake(i, int(labels[i]), predicted, -float(sure)))
    found = worst_mistakes(images, SavedScores("logits", logits), most=6)
    assert [one[:3] for one in found] == [one[:3] for one in expected[:6]]
    assert [one.confidence for one in found] == pytest.approx([one.confidence for one in expected[:6]])
    right = np.where(np.arange(4) == labels[:, None], 5.0, 0.0).astype(np.float16)
    assert worst_mistakes(images, SavedScores("logits", right)) == []


def test_most_alike_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    queries, bank = torch.randn(5, 3, generator=generator), torch.randn(20, 3, generator=generator)
    bank[7] = bank[3]  # of equal ones the first comes first
    found = most_alike(queries, bank, most=4)
    for i in range(5):
        cosines = [float(torch.cosine_similarity(queries[i].double(), row.double(), dim=0)) for row in bank]
        cosines[7] = cosines[3]
        assert found[i].tolist() == sorted(range(20), key=lambda j: (-cosines[j], j))[:4]
    assert most_alike(queries, bank[:2]).shape == (5, 2)


def coloured(folder: Path, colours: Iterable[tuple[str, int]]) -> Images:
    """Plain gray pictures: (class, brightness)."""
    for number, (name, value) in enumerate(colours):
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (value, value, value)).save(folder / name / f"{number:04}.png")
    return open_images(f"folder:{folder}")


def test_the_picture(tmp_path: Path) -> None:
    train = coloured(tmp_path / "train", [("dark", 10), ("dark", 40), ("light", 200), ("light", 240)])
    test = coloured(tmp_path / "test", [("dark", 230), ("light", 220)])  # the first one is wrongly labelled
    torch.manual_seed(0)
    model = create(16, name="smallconv", args={"widths": [4, 4, 4, 8]})
    classifier, view = Classifier(model, ["dark", "light"]), Evaluation(16)
    scored = Scored(["dark", "light"], seed=0)
    scored.add("test/classifier", test, torch.tensor([[0.0, 4.0], [0.0, 4.0]]))
    place: dict[str, Any] = {"device": torch.device("cpu")}
    save_mistakes(tmp_path / "run", classifier, train, {"test": test}, scored, view, **place, write=False)
    assert not (tmp_path / "run").exists()
    save_mistakes(tmp_path / "run", classifier, train, {"test": test}, scored, view, **place)
    pixels = np.asarray(Image.open(tmp_path / "run/pictures/mistakes_test.png"))
    assert pixels[48, 48].tolist() == [230] * 3  # the mistake, and no row for what is right
    assert pixels.shape[0] < 200
    beside = [int(pixels[48, 132 * place + 48, 0]) for place in (1, 2, 3)]
    assert set(beside) <= {10, 40, 200, 240} and len(set(beside)) == 3
    caption = json.loads((tmp_path / "run/pictures/captions.json").read_text())["mistakes_test.png"]
    names = ", ".join("dark" if value < 100 else "light" for value in beside)
    assert f"dark taken for light (98 %), nearest {names}." in caption and str(MOST_COMPARED) not in caption
    scored = Scored(["dark", "light"], seed=0)
    scored.add("test/classifier", test, torch.tensor([[4.0, 0.0], [0.0, 4.0]]))
    save_mistakes(tmp_path / "none", classifier, train, {"test": test}, scored, view, **place)
    assert not (tmp_path / "none").exists()  # without a mistake there is no picture
