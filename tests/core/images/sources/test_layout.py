"""The meaning of folders: classes, splits, and the wrapper of an archive."""

import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from rootstock.core.errors import UserError
from rootstock.core.images.images import Images
from rootstock.core.images.open import open_images, open_with_splits
from rootstock.core.images.sets import align
from rootstock.core.images.sources.layout import arrange, common_folders

Draw = Callable[[Path, Iterable[str]], Path]


def told(images: Images) -> list[str]:
    """The class of each picture."""
    assert images.labels is not None
    assert images.classes is not None
    return [images.classes[label] for label in images.labels.tolist()]


def tarred(folder: Path, top: str) -> Path:
    archive = folder.with_suffix(".tar")
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, arcname=top)
    return archive


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["cat/1.png", "cat/2.png"], ["cat", "cat"]),
        (["scratch/left/1.png", "scratch/right/2.png"], ["scratch", "scratch"]),
        (["a/b/c/1.png", "a/b/d/2.png", "a/3.png"], ["a", "a", "a"]),
        (["cat/1.png", "dog/deep/er/2.png"], ["cat", "dog"]),
        (["test_a/1.png"], ["test_a"]),
        (["train/1.png", "cat/2.png"], ["cat", "train"]),  # not all folders are splits, so none is
        (["1.png", "2.png"], None),
    ],
)
def test_the_folders_right_below_the_path_are_the_classes(
    tmp_path: Path, draw: Draw, names: list[str], classes: list[str] | None
) -> None:
    images = open_images(f"folder:{draw(tmp_path / 'set', names)}")
    assert (None if images.labels is None else told(images)) == classes
    assert [images.name(i) for i in range(len(images))] == sorted(names)
    assert open_images(f"folder:{tmp_path}/set?labels=none").labels is None


@pytest.mark.parametrize("wrapper", ["", "wrapper/", "two/deep/"])
def test_splits_are_recognised_and_what_leads_to_them_is_passed_through(
    tmp_path: Path, draw: Draw, wrapper: str
) -> None:
    names = ["train/cat/1.png", "train/dog/2.png", "Val/cat/3.png", "test/cat/deep/4.png"]
    folder = draw(tmp_path / "set", [wrapper + name for name in names])
    for uri in (f"folder:{folder}", f"tar:{tarred(folder, '.')}"):
        whole, splits = open_with_splits(uri)
        assert {name: len(indices) for name, indices in splits.items()} == {"train": 2, "Val": 1, "test": 1}
        assert told(open_images(f"{uri}#train")) == ["cat", "dog"]
        assert told(open_images(f"{uri}#test")) == ["cat"]
        said = [note for note in whole.notes if "passed through" in note.what]
        assert [note.example for note in said] == ([wrapper.rstrip("/")] if wrapper else [])
        with pytest.raises(UserError, match="comes in splits"):
            open_images(uri)


def test_a_single_split_keeps_its_classes(tmp_path: Path, draw: Draw) -> None:
    assert told(open_images(f"folder:{draw(tmp_path, ['val/defect/1.png', 'val/defect/2.png'])}")) == ["defect"] * 2


def test_the_only_folder_of_an_archive_is_its_wrapper_and_no_more_than_one(tmp_path: Path, draw: Draw) -> None:
    folder = draw(tmp_path / "set", ["defect/left/1.png", "defect/right/2.png"])
    images = open_images(f"tar:{tarred(folder, 'photos')}")
    assert told(images) == ["defect", "defect"]
    assert ("photos", "say") in [(note.example, note.level) for note in images.notes]


def test_one_class_is_a_test_set(tmp_path: Path, draw: Draw) -> None:
    train = open_images(f"folder:{draw(tmp_path / 'train', ['defect/1.png', 'ok/2.png'])}")
    test = open_images(f"folder:{draw(tmp_path / 'val', ['ok/3.png'])}")
    assert train.classes is not None
    assert align(test, train.classes, "data.test").labels.tolist() == [1]  # type: ignore[union-attr]


def test_who_expects_folders_in_a_class_to_be_classes_is_told(tmp_path: Path, draw: Draw) -> None:
    folder = draw(tmp_path / "nest", ["scratch/left/1.png", "scratch/right/2.png"])
    (note,) = open_images(f"folder:{folder}").notes
    assert (note.level, "?under=scratch" in note.what) == ("say", True)
    assert told(open_images(f"folder:{folder}?under=scratch")) == ["left", "right"]


@pytest.mark.parametrize("under", ["../other", "/", "a/../../other", ".."])
def test_under_stays_inside(tmp_path: Path, draw: Draw, under: str) -> None:
    draw(tmp_path / "other", ["a/1.png"])
    folder = draw(tmp_path / "set", ["a/1.png"])
    with pytest.raises(UserError, match=f"under={under} leaves PATH; expected a folder inside it"):
        open_images(f"folder:{folder}?under={under}")


def test_class_folders_without_a_picture_are_named(tmp_path: Path, draw: Draw) -> None:
    folder = draw(tmp_path / "flat", ["cat/1.png", "dog/2.png"])
    (folder / "dog" / "2.png").rename(folder / "dog" / "2.heic")
    (folder / "eel" / "deep").mkdir(parents=True)
    warned = [note for note in open_images(f"folder:{folder}").notes if note.level == "warn"]
    assert [(note.number, note.example) for note in warned] == [(1, "dog/2.heic"), (2, "dog, eel")]
    split = draw(tmp_path / "split", ["train/cat/1.png", "test/cat/2.png"])
    for empty in ("val", "train/dog", "train/cat/deep"):
        (split / empty).mkdir()
    assert [note.example for note in open_images(f"folder:{split}#train").notes] == ["train/dog, val"]


def test_a_set_without_labels_has_the_fingerprint_of_earlier_versions(tmp_path: Path, draw: Draw) -> None:
    """They passed through single folders, and runs that were begun then go on."""
    deep = draw(tmp_path / "deep", ["a/b/1.png", "a/b/c/2.png"])
    flat = f"folder:{deep}/a/b?labels=none"
    for uri in (f"folder:{deep}?labels=none", f"tar:{tarred(deep, '.')}?labels=none"):
        assert open_images(uri).fingerprint() == open_images(flat).fingerprint()


def test_common_folders() -> None:
    assert common_folders(["a/b/1.png", "a/b/2.png"]) == "a/b/"
    assert common_folders(["a/b/1.png", "a/bc/2.png"]) == "a/"
    assert common_folders(["a/train/1.png", "a/train/2.png"]) == "a/"
    assert common_folders(["1.png", "a/2.png"]) == ""


def test_mistakes() -> None:
    with pytest.raises(UserError, match="labels=no is unknown"):
        arrange(["a.png"], "no", "folder:x", "x")
    with pytest.raises(UserError, match=r"1 pictures lie in no class folder \(1.png\)"):
        arrange(["1.png", "a/2.png"], "folders", "folder:x", "x", archive=False)


def test_folders_named_like_splits_beside_others_are_said(tmp_path: Path, draw: Draw) -> None:
    folder = draw(tmp_path / "set", ["train/cat/1.png", "test/cat/2.png", "extra/cat/3.png"])
    images = open_images(f"folder:{folder}")
    assert images.classes == ("extra", "test", "train")
    assert [(note.number, note.example, note.level) for note in images.notes] == [(2, "test, train", "warn")]
    assert "because extra lies beside them" in images.notes[0].what


def test_classes_of_nearly_equal_names_are_said(tmp_path: Path, draw: Draw) -> None:
    names = ["Cat", "cat", "dog", "caf\u00e9", "cafe\u0301", "1", "01"]
    folder = draw(tmp_path / "set", [f"{name}/1.png" for name in names])
    (note,) = open_images(f"folder:{folder}").notes
    assert (note.number, note.example, note.level) == (6, "01, 1", "say")
    one, two = draw(tmp_path / "a", ["x/1.png"]), draw(tmp_path / "b", ["X/2.png"])
    assert not open_images(f"folder:{one}").notes
    assert [note.example for note in open_images([f"folder:{one}", f"folder:{two}"]).notes] == ["X, x"]


def test_a_file_in_place_of_a_folder_says_how_it_is_opened(tmp_path: Path) -> None:
    for name, advice in (
        ("a.zip", "unpack it"),
        ("a.npz", "open it as npz:"),
        ("a.csv", "open it as csv:"),
        ("a.tar.gz", "open it as tar:"),
        ("a.txt", "open it as list:"),
        ("a.png", "open the folder that holds it"),
    ):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(UserError, match=f"this is a file, not a folder; {advice}"):
            open_images(f"folder:{tmp_path}/{name}")
