"""`rootstock data`: its summary and contact sheet, and that it finds the one damaged image."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rootstock.core.errors import UserError
from rootstock.core.images.open import open_images
from rootstock.launch.data import CAPTION, COLUMNS, MARGIN, THUMBNAIL, describe_set, thumbnail


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "400")  # no path is wrapped
    monkeypatch.chdir(tmp_path)


def drawn(folder: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = np.random.default_rng(len(name) * 100 + i).integers(0, 256, (8 + i % 2, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def test_a_whole_set_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = drawn(tmp_path / "set", {"cat": 30, "doggy": 10})
    assert describe_set(f"folder:{folder}", tmp_path / "sheet.png") == 0
    said = capsys.readouterr().out
    images = open_images(f"folder:{folder}")
    for expected in ("40", "2 classes", "75.0%", "8 to 9", images.fingerprint(), images.split_hash(), "no picture is"):
        assert expected in said
    with Image.open(tmp_path / "sheet.png") as sheet:
        pitch = THUMBNAIL + MARGIN
        assert sheet.size == (CAPTION + COLUMNS * pitch + MARGIN, 2 * pitch + MARGIN)
        colours = np.asarray(sheet)[MARGIN : MARGIN + THUMBNAIL, CAPTION : CAPTION + THUMBNAIL]
    first = np.asarray(thumbnail(images.read(0)))
    top = (THUMBNAIL - first.shape[0]) // 2
    assert np.array_equal(colours[top : top + first.shape[0]], first)


def test_every_file_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = drawn(tmp_path / "set", {"cat": 12, "dog": 12})
    broken = folder / "dog" / "7.png"
    broken.write_bytes(broken.read_bytes()[:60])
    (folder / "cat" / "3.png").write_bytes(b"")
    assert describe_set(f"folder:{folder}") == 1
    said = capsys.readouterr().out
    assert str(broken) in said
    assert "3.png: the file is empty" in said
    assert "2 damaged" in said
    assert (tmp_path / "contact-sheet.png").is_file()


def test_flat_sets_unions_of_splits_and_arrays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn(tmp_path / "flat", {".": 7})
    assert describe_set(f"folder:{tmp_path}/flat") == 0
    drawn(tmp_path / "split", {"train/a": 3, "val/a": 2})
    assert describe_set(f"folder:{tmp_path}/split") == 0
    assert "#all" in capsys.readouterr().out
    assert describe_set("sklearn:digits-m?blends=2#[:4]") == 0
    assert "8, 4 different" in capsys.readouterr().out
    with pytest.raises(UserError, match="there is no"):
        describe_set(f"folder:{tmp_path}/nowhere")


def test_thumbnails_of_deep_and_many_channels(tmp_path: Path) -> None:
    pixels = np.full((1, 6, 4, 8), 0x8040, np.uint16)
    np.savez(tmp_path / "x.npz", x=pixels)
    small = thumbnail(open_images("npz:x.npz?layout=NCHW").read(0))
    assert small.size == (64, 32)
    assert np.asarray(small).tolist() == np.full((32, 64, 3), 0x80).tolist()
