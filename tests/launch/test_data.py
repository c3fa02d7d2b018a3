"""`rootstock data`: its summary and contact sheet, and that it finds the one damaged image."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rootstock.core.errors import UserError
from rootstock.core.images.open import open_images
from rootstock.launch.data import describe_set
from rootstock.launch.sheet import CAPTION, COLUMNS, MARGIN, THUMBNAIL, thumbnail


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
    assert said.splitlines()[-1] == "nothing was passed over"


def test_the_sheet_goes_to_the_cache_and_never_into_the_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = drawn(tmp_path / "set", {".": 3})
    monkeypatch.chdir(folder)
    for _ in range(2):
        assert describe_set("folder:.") == 0
    said = capsys.readouterr().out
    assert said.count("pictures     3 ") == 2
    assert sorted(path.name for path in folder.iterdir()) == ["0.png", "1.png", "2.png"]
    (sheet,) = (tmp_path / "cache" / "rootstock" / "sheets").iterdir()
    assert said.count(f"contact sheet: {sheet}") == 2


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        ("set/sheet.png", "--out: .*lies in .*set, which is read as data"),
        ("link/sheet.png", "which is read as data"),
        ("set/a/../sheet.png", "which is read as data"),
        ("nowhere/sheet.png", "there is no folder .*nowhere; create it"),
        ("sheet.xyz", r"expected a name that ends in \.png"),
        (f"{'n' * 300}.png", r"cannot be written \(File name too long\)"),
        ("folder.png", "no file that can be replaced"),
        ("null.png", "no file that can be replaced"),
    ],
)
def test_a_place_that_a_sheet_cannot_have_is_refused_before_anything_is_read(
    tmp_path: Path, out: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rootstock.launch.data.survey", lambda *_: pytest.fail("it reads the pictures first"))
    drawn(tmp_path / "set", {"a": 1})
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "null.png").symlink_to("/dev/null")
    (tmp_path / "link").symlink_to("set")
    with pytest.raises(UserError, match=sentence):
        describe_set(f"folder:{tmp_path}/set", tmp_path / out)


def test_a_sheet_does_not_replace_a_picture_of_a_list(tmp_path: Path) -> None:
    drawn(tmp_path, {"a": 1})
    (tmp_path / "list.txt").write_text("a/0.png\n")
    with pytest.raises(UserError, match=r"is a file of list:.*, so that it isn't overwritten"):
        describe_set(f"list:{tmp_path}/list.txt", tmp_path / "a" / "0.png")


def test_what_is_passed_over_ends_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = drawn(tmp_path / "set", {"cat": 2, "dog": 2})
    for file in sorted((folder / "dog").iterdir()):
        file.rename(file.with_suffix(".heic"))
    first = Image.new("RGB", (4, 4))
    first.save(folder / "cat" / "x.gif", save_all=True, append_images=[Image.new("RGB", (4, 4), "red")])
    Image.fromarray(np.full((4, 4), 4095, np.uint16)).save(folder / "cat" / "y.png")
    assert describe_set(f"folder:{folder}") == 0
    table = capsys.readouterr().out.partition("no picture is damaged\n")[2].splitlines()
    rows = [" ".join(line.split()) for line in table]
    assert rows[0] == "number passed over, or read in part for example"
    assert rows[1] == "2 files ending in .heic, which are not read dog/0.heic"
    assert rows[2] == "1 class folders without a picture, so these classes are missing dog"
    assert rows[3] == "1 files of several pages or frames; only the first is read, 1 are not cat/x.gif"
    assert rows[4].startswith(
        "1 pictures of 16 bits with no value above 4,095 of 65,535, so they are read at up to 6% of"
    )
    assert rows[4].endswith("?bits=12 would use the whole range cat/y.png")


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


def test_a_sheet_below_the_home_of_nobody_is_one_sentence(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="there is no folder ~nobody-of-this-name"):
        describe_set(f"folder:{tmp_path}", Path("~nobody-of-this-name/x.png"))
