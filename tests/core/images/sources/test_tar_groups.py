"""`?group=json:KEY` of `tar:`: no split tears what the .json beside the pictures says to belong together."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rootstock.core.errors import UserError
from rootstock.core.images.groups import numbered_groups, units_of
from rootstock.core.images.images import Images
from rootstock.core.images.open import holdout, open_images, open_with_splits
from rootstock.core.images.pack.record import Packing
from rootstock.core.images.pack.writer import pack
from rootstock.tests.core.images.sources.test_ways import picture
from rootstock.tests.objectstore import archive

COUNT = 60
PATIENTS = [f"p{i * i % 13}" for i in range(COUNT)]


def members(numbers: range, folder: str = "", **also: object) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for i in numbers:
        said = {"patient": PATIENTS[i], "grade": i % 3, "visit": i, **also}
        found |= {f"{folder}{i:03}.png": picture(i), f"{folder}{i:03}.json": json.dumps(said).encode()}
        found |= {f"{folder}{i:03}.cls": b"%d" % (i % 2), f"{folder}{i:03}.txt": b"grade %d" % (i % 3)}
    return found


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two archives; patients have pictures in both."""
    place = tmp_path_factory.mktemp("shards")
    for k in range(2):
        (place / f"{k}.tar").write_bytes(archive(members(range(30 * k, 30 * k + 30))))
    return place


def groups(images: Images) -> set[int]:
    assert images.groups is not None
    return set(images.groups.tolist())


@pytest.mark.parametrize(
    ("label", "classes"),
    [("", ("0", "1")), ("&label=cls", ("0", "1")), ("&label=json:grade", ("0", "1", "2")),
     ("&label=txt", ("grade 0", "grade 1", "grade 2")), ("&labels=none", None)],
)  # fmt: skip
def test_groups_are_those_of_the_sidecars_whatever_the_labels_are(
    label: str, classes: tuple[str, ...] | None, shards: Path
) -> None:
    images, plain = (
        open_images(f"tar:{shards}/{{0,1}}.tar?group=json:patient{label}"),
        open_images(f"tar:{shards}/*.tar"),
    )
    expected = numbered_groups([PATIENTS[int(images.name(i).partition(".")[0])] for i in range(COUNT)])
    assert images.groups is not None and torch.equal(images.groups, expected) and images.classes == classes
    assert torch.equal(images.units(), units_of(plain.keys(), expected))
    assert plain.groups is None


def test_no_part_tears_a_group(shards: Path) -> None:
    uri = f"tar:{shards}/*.tar?group=json:patient"
    plain = f"tar:{shards}/*.tar?group=json:visit"
    for first, second in (
        ("#train", "#test"),
        ("#[:50%,seed=3]", "#[50%:,seed=3]"),
        ("#[:60%,seed=1,stratify]", "#[60%:,seed=1,stratify]"),
    ):
        one, other = open_images(uri + first), open_images(uri + second)
        assert len(one) and len(other) and len(one) + len(other) == COUNT and not groups(one) & groups(other)
        torn = [
            {PATIENTS[int(part.name(i)[:3])] for i in range(len(part))}
            for part in (open_images(plain + first), open_images(plain + second))
        ]
        assert torn[0] & torn[1]  # so the pictures alone would have torn them
    kept, held = holdout(open_images(uri), seed=1, stratify=False)
    assert not groups(kept) & groups(held)


def test_packs_keep_them(shards: Path, tmp_path: Path) -> None:
    uri = f"tar:{shards}/*.tar?group=json:patient"
    pack(*open_with_splits(uri), tmp_path / "pack", Packing("original"))
    packed, images = open_images(f"pack:{tmp_path}/pack"), open_images(uri)
    assert torch.equal(packed.units(), images.units()) and packed.fingerprint() == images.fingerprint()
    with pytest.raises(UserError, match="from other pictures or labels"):
        pack(*open_with_splits(f"tar:{shards}/*.tar"), tmp_path / "pack", Packing("original"))


def test_a_changed_group_is_a_changed_set(tmp_path: Path) -> None:
    prints = []
    for patient in ("a", "b"):
        (tmp_path / "x.tar").write_bytes(archive(members(range(4), patient=patient)))
        prints.append(
            [open_images(f"tar:{tmp_path}/x.tar{query}").fingerprint() for query in ("", "?group=json:patient")]
        )
    assert prints[0][0] == prints[1][0] and prints[0][1] != prints[1][1]


def test_folders_and_keys_with_dots(tmp_path: Path) -> None:
    dotted = {name.replace("00", "v1.0"): content for name, content in members(range(6), "deep/").items()}
    (tmp_path / "x.tar").write_bytes(
        archive({name.replace(".json", ".JSON"): content for name, content in dotted.items()})
    )
    images = open_images(f"tar:{tmp_path}/x.tar?under=deep&key=last-dot&group=json:patient")
    assert len(groups(images)) == len({PATIENTS[i] for i in range(6)})
    own = {f"{split}/{name}": content for split, numbers in (("train", range(3)), ("test", range(3, 6)))
           for name, content in members(numbers, patient="same").items()}  # fmt: skip
    (tmp_path / "splits.tar").write_bytes(archive(own))
    with pytest.raises(UserError, match="3 pictures of its split train are of groups that test has too"):
        open_images(f"tar:{tmp_path}/splits.tar?group=json:patient#train")
    assert len(open_images(f"tar:{tmp_path}/splits.tar?group=json:visit#train")) == 3


REFUSED = {
    "json:person": "the .json beside 000.png has no key person",
    "json:several": 'has \\["a"\\] as several, which is neither a text nor a whole number',
    "json:": "group=json: is unknown .known: folder, json:KEY",
    "txt": "group=txt is unknown",
    "a.json:patient": "6 pictures have no .a.json beside them .000.png., which says their group",
    "json:grade&label=json:grade": "group=json:grade is the key of the labels, which must not shape a split",
}


@pytest.mark.parametrize("query", REFUSED)
def test_groups_that_cannot_be_are_one_sentence(query: str, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(archive(members(range(6), several=["a"])))
    with pytest.raises(UserError, match=REFUSED[query]):
        open_images(f"tar:{tmp_path}/x.tar?group={query}")


def test_a_picture_without_one_is_named(tmp_path: Path) -> None:
    held = members(range(6))
    del held["004.json"]
    (tmp_path / "x.tar").write_bytes(archive(held))
    with pytest.raises(UserError, match=r"1 pictures have no \.json beside them \(004\.png\)"):
        open_images(f"tar:{tmp_path}/x.tar?group=json:patient")
    assert np.array_equal(
        open_images(f"tar:{tmp_path}/x.tar").keys(), open_images(f"tar:{tmp_path}/x.tar?labels=none").keys()
    )
