"""Labels of images that may have several classes: cells of tables, numbers, unions, splits and packs."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from rootstock.core.errors import UserError
from rootstock.core.images.images import Images
from rootstock.core.images.open import holdout, open_images, open_with_splits
from rootstock.core.images.pack.files import PackFiles
from rootstock.core.images.pack.reader import load_index
from rootstock.core.images.pack.record import Packing
from rootstock.core.images.pack.validate import WrongField, check_index
from rootstock.core.images.pack.writer import pack
from rootstock.core.images.sets import align, labelled, train_and_tests
from rootstock.core.images.several import only_classes, rarest_classes


def table(folder: Path, cells: list[str], name: str = "t", header: str = "path,label", between: str = ",") -> str:
    """The location of a csv of as many pictures."""
    for k in range(len(cells)):
        Image.new("L", (4, 4), 3 * k).save(folder / f"{k}.png")
    rows = [f"{k}.png{between}{cell}" for k, cell in enumerate(cells)]
    (folder / f"{name}.csv").write_text("\n".join([header, *rows]))
    return f"csv:{folder}/{name}.csv"


def told(images: Images) -> list[list[str]]:
    assert images.labels is not None and images.classes is not None and images.labels.dtype == torch.uint8
    return [[images.classes[k] for k in row.nonzero().flatten().tolist()] for row in images.labels]


def test_cells_hold_any_number_of_classes(tmp_path: Path) -> None:
    for option, sign in (("semicolon", ";"), ("pipe", "|"), ("space", " "), ("tab", "\t"), ("|", "|")):
        cells = [sign.join(("cat", "dog")), "", "dog", sign.join(("dog", "a_b", "cat"))]
        images = open_images(f"{table(tmp_path, cells)}?several={option}")
        assert told(images) == [["cat", "dog"], [], ["dog"], ["a_b", "cat", "dog"]]
    place = table(tmp_path, ["cat, dog", ""], header="path;label", between=";")
    assert told(open_images(f"{place}?several=comma&separator=semicolon")) == [["cat", "dog"], []]
    tens = open_images(f"{table(tmp_path, ['10;9', '9'])}?several=semicolon")
    assert tens.classes == ("9", "10")  # whole numbers by their size, as of one class


@pytest.mark.parametrize(
    ("cells", "option", "sentence"),
    [
        (["a;b", "b;a;b"], "semicolon", r"t\.csv: line 3 has the class b twice \('b;a;b'\); remove one of them"),
        (
            ["a;b", "a;;b"],
            "semicolon",
            r"t\.csv: line 3 has an empty name of a class beside a ';'.*; remove the ';', or fill",
        ),
        (["a;"], "semicolon", "line 2 has an empty name"),
        (
            ["a"],
            "comma",
            r"comma separates the columns, so it cannot separate the classes in a label too; .* \?several=pipe",
        ),
        (["a"], "dot", r"several=dot is unknown \(known: comma, semicolon, tab, pipe, space\)"),
        (["", " "], "pipe", r"the column label is empty; fill it in, or remove \?several="),
        (["a", ""], None, r"line 3 has no label, .*; if a picture may have none or several, add \?several=semicolon"),
    ],
)
def test_bad_cells_and_options_are_named(tmp_path: Path, cells: list[str], option: str | None, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        open_images(table(tmp_path, cells) + (f"?several={option}" if option else ""))


def test_a_table_without_the_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no column label"):
        open_images(f"{table(tmp_path, ['a'], header='path,kind')}?several=pipe")


def test_unlabelled_roles_see_no_label(tmp_path: Path) -> None:
    place = f"{table(tmp_path, ['a;b', ''])}?several=semicolon"
    assert open_images(place, role="unlabelled").labels is None


def test_the_fingerprint_sees_labels_and_the_split_hash_images(tmp_path: Path) -> None:
    one, same, other = (
        open_images(f"{table(tmp_path, cells)}?several=semicolon")
        for cells in (["a;b", "", "b"], ["b;a", "", "b"], ["b;a", "b", ""])
    )
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()
    assert one.split_hash() == other.split_hash()
    single = open_images(table(tmp_path, ["a", "b"]))
    assert single.fingerprint() != open_images(f"{table(tmp_path, ['a', 'b'])}?several=pipe").fingerprint()


def test_unions_align_classes_by_name_and_have_one_kind(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    first, second = table(tmp_path, ["b;a", ""]), table(tmp_path / "two", ["c|b", "a"])
    both = open_images([f"{first}?several=semicolon", f"{second}?several=pipe"])
    assert both.classes == ("a", "b", "c") and told(both) == [["a", "b"], [], ["b", "c"], ["a"]]
    uris = [f"{first}?several=semicolon", second]
    with pytest.raises(UserError, match=r"may have several classes an image and .* has one; a union needs one kind"):
        open_images(uris)
    assert open_images(uris, role="unlabelled").labels is None


def test_test_classes_are_those_of_train(tmp_path: Path) -> None:
    train = open_images(f"{table(tmp_path, ['b;a', 'c'])}?several=semicolon")
    test = open_images(f"{table(tmp_path, ['c;b', ''], 'u')}?several=semicolon")
    aligned = align(test, train.classes or (), "data.test", several=True)
    assert aligned.classes == ("a", "b", "c") and told(aligned) == [["b", "c"], []]
    odd = open_images(f"{table(tmp_path, ['c;dog'], 'v')}?several=semicolon")
    with pytest.raises(UserError, match=r"data.test: .* has classes that the training set lacks \(dog\)"):
        align(odd, train.classes or (), "data.test", several=True)
    with pytest.raises(
        UserError, match=r"has one class an image, and the training images may have several; .*\?several= too"
    ):
        align(open_images(table(tmp_path, ["a", "b"], "w")), train.classes or (), "data.test", several=True)
    for refused in (lambda: labelled(train, "data.train"), lambda: align(test, ("a", "b", "c"), "data.train")):
        with pytest.raises(
            UserError, match=r"data.train: .* may have several classes an image \(\?several=\), which knn and linear"
        ):
            refused()


def test_a_cut_has_rare_classes_on_both_sides(tmp_path: Path) -> None:
    """Pictures 0 to 3 alone have the class rare; many have common; a copy of a picture stays beside it."""
    cells = [*["common;rare"] * 4, *["common"] * 20, *[""] * 12]
    place = f"{table(tmp_path, cells)}?several=semicolon"
    for seed in range(4):
        kept, held = (open_images(f"{place}#[{part},seed={seed},stratify]") for part in (":75%", "75%:"))
        assert [sum("rare" in names for names in told(images)) for images in (kept, held)] == [3, 1]
        assert (len(kept), len(held)) == (27, 9)
        train, tests = train_and_tests(place, None, seed, several=True)
        assert any("rare" in names for names in told(train)) and len(train) + len(tests["test"]) == 36
        assert len(holdout(open_images(place), seed=seed, stratify=True)[1]) == len(tests["test"])
    plain = open_images(f"{place}#[:75%,seed=1]")
    assert [plain.name(i) for i in range(27)] == [
        image for image in (f"{k}.png" for k in range(36)) if image in {plain.name(i) for i in range(27)}
    ]


def test_the_rarest_class_counts_identities() -> None:
    labels = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]], dtype=torch.uint8)
    assert rarest_classes(torch.arange(6), labels).tolist() == [1, 1, 0, 0, 3, 3]
    # The last four are copies of one image, which has all classes of its rows: each class has two identities, and the first counts.
    keys = torch.tensor([0, 1, 2, 2, 2, 2])
    assert rarest_classes(keys, labels).tolist() == [0, 1, 0, 0, 0, 0]
    assert rarest_classes(keys.repeat(3), labels.repeat(3, 1)).tolist() == 3 * [0, 1, 0, 0, 0, 0]
    assert only_classes(labels).tolist() == [-1, 1, 0, 0, -1, -1]


def test_a_pack_keeps_the_labels(tmp_path: Path) -> None:
    images, splits = open_with_splits(f"{table(tmp_path, ['b;a', '', 'c'])}?several=semicolon")
    pack(images, splits, tmp_path / "pack", Packing())
    again = open_images(f"pack:{tmp_path / 'pack'}")
    assert told(again) == told(images) and again.fingerprint() == images.fingerprint()
    tensors, about = load_index(PackFiles(tmp_path / "pack"))
    good = tensors["labels"]

    def changed(labels: Tensor) -> str:
        with pytest.raises(WrongField) as found:
            check_index({**tensors, "labels": labels}, about)
        return str(found.value)

    assert changed(good + 1) == "labels of several classes hold a number other than 0 and 1"
    assert "not one for each image and class" in changed(good[:, :2])
