"""What a map keeps beside its points: a thumbnail, the identity and the nearest points of each."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rootstock.core.evaluate.pictures import NEIGHBOURS, save_map
from rootstock.core.evaluate.thumbnails import COLUMNS, SHEET, THUMBNAIL_SIDE, thumbnail_sheet
from rootstock.core.images.open import open_images


def squares(sheet: Path) -> list[np.ndarray]:
    with Image.open(sheet, formats=("WEBP",)) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    rows, columns = pixels.shape[0] // THUMBNAIL_SIDE, pixels.shape[1] // THUMBNAIL_SIDE
    return [
        pixels[r * THUMBNAIL_SIDE :, c * THUMBNAIL_SIDE :][:THUMBNAIL_SIDE, :THUMBNAIL_SIDE]
        for r in range(rows)
        for c in range(columns)
    ]


def test_neighbours_and_identities_are_those_of_the_points(tmp_path: Path) -> None:
    images = open_images("sklearn:digits")
    sets = {"a": images.select(torch.arange(40)), "b": images.select(torch.arange(100, 130))}
    features = {
        name: torch.randn(len(s), 6, generator=torch.Generator().manual_seed(len(s))) for name, s in sets.items()
    }
    save_map(tmp_path, features, sets, 0)
    drawn = json.loads((tmp_path / "map.json").read_text())
    x = torch.cat([features["a"], features["b"]]).double()
    for i, near in enumerate(drawn["near"]):
        cosines = [-2.0 if j == i else float(x[i] @ x[j] / (x[i].norm() * x[j].norm())) for j in range(len(x))]
        assert near == sorted(range(len(x)), key=lambda j: -cosines[j])[:NEIGHBOURS]
    assert drawn["key"] == [*sets["a"].keys().tolist(), *sets["b"].keys().tolist()]
    assert drawn["row"] == [*range(40), *range(30)]
    save_map(
        tmp_path, features, sets, 0, rows={"b": torch.arange(100, 130)}
    )  # a part of a test, and a set that is none
    assert json.loads((tmp_path / "map.json").read_text())["row"] == [-1] * 40 + [*range(100, 130)]
    assert len(squares(tmp_path / SHEET)) == 4 * COLUMNS  # 70 points, 20 in a row


def test_thumbnails_stand_in_the_order_of_the_points_and_show_the_middle(tmp_path: Path) -> None:
    """Pictures of one colour each, wide ones with other colours at the ends; the last file is damaged and gray."""
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (230, 230, 40)]
    for i, colour in enumerate(colours):
        picture = Image.new("RGB", (90, 40), (0, 0, 0))
        picture.paste(colour, (25, 0, 65, 40))
        picture.save(tmp_path / f"{i}.png")
    Image.new("RGB", (900, 700), (120, 0, 120)).save(tmp_path / "4.jpg")
    (tmp_path / "5.png").write_bytes(b"no picture")
    images = open_images(f"folder:{tmp_path}", role="unlabelled")
    rows = torch.tensor([3, 0, 4, 1, 2, 5])
    sheet = tmp_path / "sheet" / SHEET
    sheet.parent.mkdir()
    content, numbers = thumbnail_sheet([(images, rows[:2]), (images, rows[2:])])
    sheet.write_bytes(content)
    found = [square.mean((0, 1)) for square in squares(sheet)]
    expected = [*colours, (120, 0, 120), (128, 128, 128)]
    for square, i in zip(found, rows.tolist(), strict=False):
        assert np.abs(square - expected[i]).max() < 6, (i, square)
    assert (content, numbers) == thumbnail_sheet([(images, rows)]), "the same pictures give the same bytes"
    assert len(set(numbers)) == len(rows) and numbers[:2] == thumbnail_sheet([(images, rows[:2])])[1]
