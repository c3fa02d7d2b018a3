"""No split tears a group: neither slices, nor what is held out, nor the slice that a choice is made on."""

import subprocess
import tarfile
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from rootstock.core.errors import UserError
from rootstock.core.evaluate.held_out import describe_slice, held_out_rows
from rootstock.core.images.groups import NO_GROUP, numbered_groups, units_of
from rootstock.core.images.images import Images
from rootstock.core.images.open import holdout, open_images, open_with_splits
from rootstock.core.images.pack.record import Packing
from rootstock.core.images.pack.writer import pack
from rootstock.core.images.parts import drawn_apart, linked_to
from rootstock.core.images.split import TornGroup, cut, one_of_each
from rootstock.finetune.protocols.contract import Known


def slow_units(keys: Tensor, groups: Tensor) -> list[int]:
    """Slow version: rows are joined pair by pair until nothing changes."""
    units = keys.tolist()
    again = True
    while again:
        again = False
        for i in range(len(keys)):
            for j in range(len(keys)):
                linked = keys[i] == keys[j] or (groups[i] == groups[j] != NO_GROUP)
                if linked and units[i] < units[j]:
                    units[j], again = units[i], True
    return units


@given(st.lists(st.tuples(st.integers(-6, 6), st.integers(0, 5)), max_size=14))
def test_units_are_what_groups_and_copies_link(rows: list[tuple[int, int]]) -> None:
    keys, groups = torch.tensor(rows, dtype=torch.int64).reshape(-1, 2).T
    assert units_of(keys, groups).tolist() == slow_units(keys, groups)
    assert units_of(keys, None).tolist() == keys.tolist()


SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=30)


def grouped(sizes: list[int], seed: int) -> tuple[Tensor, Tensor]:
    """(keys, groups) of groups of these sizes, shuffled; one in six images is a copy of another one, perhaps of another group."""
    random = torch.Generator().manual_seed(seed)
    groups = numbered_groups([f"patient {k}" for k, size in enumerate(sizes) for _ in range(size)])
    keys = torch.randint(-(2**62), 2**62, (len(groups),), generator=random)
    copies = torch.rand(len(keys), generator=random) < 1 / 6
    keys[copies] = keys[torch.randint(len(keys), (int(copies.sum()),), generator=random)]
    order = torch.randperm(len(keys), generator=random)
    return keys[order], groups[order]


@settings(deadline=None)
@given(SIZES, st.integers(0, 99), st.sampled_from([["50%"], ["33%", "80%"], ["1", "60%"]]), st.booleans())
def test_parts_that_meet_leave_nothing_out_and_tear_nothing(
    sizes: list[int], seed: int, bounds: list[str], stratified: bool
) -> None:
    keys, groups = grouped(sizes, seed)
    units, labels = units_of(keys, groups), torch.arange(len(keys)) % 3 if stratified else None
    parts, torn = list[Tensor](), None
    for low, high in pairwise([None, *bounds, None]):
        try:
            parts.append(cut(keys, low, high, seed, labels, units))
        except TornGroup as error:
            torn = error
    if torn is not None:
        assert len(keys[units == torn.unit].unique()) == torn.size > torn.wanted
        return
    assert sorted(torch.cat(parts).tolist()) == list(range(len(keys)))
    for values in (keys, groups):
        sides = defaultdict(set)
        for side, part in enumerate(parts):
            for value in values[part].tolist():
                sides[value].add(side)
        assert all(len(found) == 1 for found in sides.values())
    if labels is None and len(parts) == 2:  # half of the largest unit is the most that rounding moves
        largest = max(len(keys[units == unit].unique()) for unit in units.unique())
        assert abs(len(keys[parts[0]].unique()) - len(keys.unique()) / 2) <= largest / 2 + 0.5


def test_a_group_larger_than_a_part_is_refused_only_where_it_would_be_torn() -> None:
    keys = torch.arange(100)
    groups = numbered_groups(["big"] * 40 + [f"small {k}" for k in range(60)])
    units, refused = units_of(keys, groups), list[tuple[int, int, int]]()
    for seed in range(40):
        assert len(cut(keys, None, None, seed, None, units)) == 100
        try:
            held = cut(keys, "80%", None, seed, None, units)
        except TornGroup as error:
            refused.append((error.unit, error.size, error.wanted))
        else:
            assert len(held) == 20 and not set(held.tolist()) & set(range(40))
    assert set(refused) == {(0, 40, 20)} and 5 < len(refused) < 35


@given(st.lists(st.integers(-50, 50), max_size=40), st.integers(0, 9), st.sampled_from(["12.5%", "50%", "7"]))
def test_groups_of_one_image_change_nothing(values: list[int], seed: int, bound: str) -> None:
    keys, labels = torch.tensor(values, dtype=torch.int64), torch.arange(len(values)) % 2
    units = units_of(keys, numbered_groups([str(value) for value in values]))
    for strata in (None, labels):
        for low, high in ((None, bound), (bound, None)):
            assert torch.equal(cut(keys, low, high, seed, strata, units), cut(keys, low, high, seed, strata))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 pictures of 24 patients in two classes; columns path, label, patient, empty and half."""
    place, random = tmp_path_factory.mktemp("groups"), np.random.default_rng(0)
    lines = ["path,label,patient,empty,half"]
    for i in range(120):
        Image.fromarray(random.integers(0, 256, (4, 5), dtype=np.uint8)).save(place / f"{i}.png")
        patient = i * i % 24 if i < 60 else i % 24
        lines.append(f"{i}.png,{'ab'[patient % 2]},p{patient},,{'x' if i % 2 else ''}")
    (place / "t.csv").write_text("\n".join(lines))
    return place / "t.csv"


def patients(images: Images) -> set[int]:
    assert images.groups is not None
    return set(images.groups.tolist())


def test_no_part_of_a_table_tears_a_group(table: Path) -> None:
    uri, everything = f"csv:{table}?group=patient", open_images(f"csv:{table}?group=patient")
    torn = [open_images(f"csv:{table}{part}") for part in ("#train", "#test")]
    assert torn[0].groups is None and len(patients(everything)) == 24
    for first, second in (
        ("#train", "#test"),
        ("#[:70%,seed=3]", "#[70%:,seed=3]"),
        ("#[:70%,seed=3,stratify]", "#[70%:,seed=3,stratify]"),
        ("#train#[:50%]", "#train#[50%:]"),
    ):
        one, other = open_images(uri + first), open_images(uri + second, role="test")
        assert len(one) and len(other) and not patients(one) & patients(other), first
        assert len(one) + len(other) == (120 if "#train#" not in first else len(open_images(f"{uri}#train")))
    for stratify in (False, True):
        kept, held = holdout(everything, seed=1, stratify=stratify)
        assert not patients(kept) & patients(held) and 12 <= len(held) <= 36
        unlabelled = holdout(everything.unlabelled(), seed=1, stratify=False)
        assert not patients(unlabelled[0]) & patients(unlabelled[1])
    both = open_images([f"{uri}#[:50%]", f"csv:{table}#[:7]"])
    assert both.groups is not None and (both.groups == NO_GROUP).sum() == 7


def test_a_changed_group_is_a_changed_set(table: Path, tmp_path: Path) -> None:
    lines, root = table.read_text().split("\n"), f"root={table.parent}"
    (tmp_path / "t.csv").write_text("\n".join([*lines[:-1], lines[-1].replace(",p", ",q")]))
    for group, same in ("", True), ("&group=patient", False):
        before, after = (open_images(f"csv:{file}?{root}{group}").fingerprint() for file in (table, tmp_path / "t.csv"))
        assert (before == after) is same


def test_data_says_how_many_groups_there_are(
    table: Path, rootstock: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    said = rootstock("data", f"csv:{table}?group=patient", "--out", str(tmp_path / "sheet.png")).stdout
    sizes = open_images(f"csv:{table}?group=patient").units().unique(return_counts=True)[1]
    assert f"{len(sizes)} of {int(sizes.min())} to {int(sizes.max())} pictures, which splits keep whole" in " ".join(
        said.split()
    )


def test_a_choice_is_made_on_whole_groups(table: Path) -> None:
    images = open_images(f"csv:{table}?group=patient")
    assert images.labels is not None and images.groups is not None and images.classes is not None
    known = Known({}, images.labels, images.keys(), images.classes)
    assert torch.equal(known.units, images.keys())
    known = known._replace(grouped=images.units())
    held = held_out_rows(known.units, known.labels, seed=0)
    assert not set(images.groups[held].tolist()) & set(images.groups[~held].tolist())
    assert torch.equal(known.rows(held.nonzero()[:, 0]).units, images.units()[held])
    told = describe_slice(images, 0)
    assert (told["images"], told["of_keys"]) == (int(held.sum()), len(images.units().unique()))
    assert told["drawn"].endswith("groups stay whole and count as one key")


def test_packs_keep_groups(table: Path, tmp_path: Path) -> None:
    packing = Packing("original")
    for name, uri in ("grouped", f"csv:{table}?group=patient"), ("plain", f"csv:{table}"):
        pack(*open_with_splits(uri), tmp_path / name, packing)
        packed, images = open_images(f"pack:{tmp_path / name}"), open_images(uri)
        assert (packed.groups is None) == (images.groups is None) == (name == "plain")
        assert torch.equal(packed.units(), images.units()) and packed.fingerprint() == images.fingerprint()
    with pytest.raises(UserError, match="from other pictures or labels"):
        pack(*open_with_splits(f"csv:{table}"), tmp_path / "grouped", packing)


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("group=label", "group=label is the column of the labels, which must not shape a split"),
        ("label=half&group=half", "group=half is the column of the labels"),
        ("group=empty", r"the column empty is empty; fill it in, or remove \?group="),
        ("group=half", "line 2 has no group, others have; fill it in"),
        ("group=person", "there is no column person"),
        ("group=patient#[:1]", r"a part of 1 pictures would tear a group of \d+ \(that of \d+\.png\), which is larger"),
    ],
)
def test_groups_that_cannot_be_are_one_sentence(table: Path, query: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        open_images(f"csv:{table}?{query}")


def test_copies_that_join_groups_are_named(tmp_path: Path) -> None:
    pixels, groups = np.random.default_rng(0).integers(0, 256, (40, 2, 2), dtype=np.uint8), np.arange(40) // 4
    pixels[::4] = 0  # a black picture in each group
    np.savez(tmp_path / "x.npz", images=pixels, groups=groups)
    with pytest.raises(
        UserError,
        match=r"would tear 10 groups that copies of pictures join, 31 in all .*another seed, remove the copies, or leave",
    ):
        open_images(f"npz:{tmp_path}/x.npz?group=groups#test")


def test_folders_below_the_classes_can_be_groups(tmp_path: Path) -> None:
    names = [
        f"{split}/{c}/p{p}/{i}.png" for split in ("train", "val") for c in "ab" for p in range(3) for i in range(2)
    ]
    for k, name in enumerate(names):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), (k, 0, 0)).save(tmp_path / "set" / name)
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(tmp_path / "set/train", "set")
    for uri in (f"folder:{tmp_path}/set/train?group=folder", f"tar:{tmp_path}/set.tar?group=folder"):
        images = open_images(uri)
        assert images.classes == ("a", "b") and len(patients(images)) == 3  # p0 of both classes is one patient
    with pytest.raises(
        UserError, match="12 pictures of its split train are of groups that val has too; cut parts of all"
    ):
        open_images(f"folder:{tmp_path}/set?group=folder#train")
    assert len(patients(open_images(f"folder:{tmp_path}/set?group=folder#all[:50%]"))) in (1, 2)
    with pytest.raises(UserError, match=r"group=patient is unknown \(known: folder\)"):
        open_images(f"folder:{tmp_path}/set/train?group=patient")
    Image.new("RGB", (2, 2)).save(tmp_path / "set/train/a/loose.png")
    with pytest.raises(UserError, match=r"needs a folder for each group .* a/loose\.png lies in none"):
        open_images(f"folder:{tmp_path}/set/train?group=folder")


def test_an_array_can_hold_groups(tmp_path: Path) -> None:
    pixels, random = np.random.default_rng(0).integers(0, 256, (40, 4, 5), dtype=np.uint8), np.random.default_rng(1)
    patient, y = random.permutation(np.arange(40) // 4), np.arange(40) % 3
    np.savez(
        tmp_path / "x.npz",
        images=pixels,
        labels=y,
        patient=patient,
        site=pixels[:, :1, 0].astype(float),
        few=patient[:9],
    )
    uri = f"npz:{tmp_path}/x.npz"
    whole = open_images(f"{uri}?group=patient")
    assert torch.equal(whole.units(), units_of(open_images(uri).keys(), torch.from_numpy(patient + 1)))
    one, other = open_images(f"{uri}?group=patient#train"), open_images(f"{uri}?group=patient#test")
    assert not patients(one) & patients(other) and len(one) + len(other) == 40
    part = open_images(f"{uri}?group=patient&rows=5:15")
    assert whole.groups is not None and part.groups is not None and torch.equal(part.groups, whole.groups[5:15])
    own: dict[str, Any] = {f"{name}_{split}": array[at] for split, at in (("train", slice(30)), ("test", slice(30, 40)))
           for name, array in (("x", pixels), ("y", y), ("patient", np.array([f"p{k}" for k in range(40)])))}  # fmt: skip
    np.savez(tmp_path / "splits.npz", **own)
    assert len(patients(open_images(f"npz:{tmp_path}/splits.npz?group=patient#train"))) == 30
    own["patient_test"] = own["patient_train"][:10]
    np.savez(tmp_path / "torn.npz", **own)
    with pytest.raises(UserError, match="10 pictures of its split train are of groups that test has too"):
        open_images(f"npz:{tmp_path}/torn.npz?group=patient#train")
    for group, sentence in (
        ("labels", "group=labels is the array of the labels"),
        ("person", r"group=person names no single array \(it has: images, labels"),
        ("site", r"site holds float64 \[40, 1\]; expected one whole number or text"),
        ("few", "few has 9 groups for 40 pictures"),
    ):
        with pytest.raises(UserError, match=sentence):
            open_images(f"{uri}?group={group}")


@pytest.fixture(scope="module")
def digits() -> Images:
    return open_images("sklearn:digits?size=8&classes=2")


def with_groups(images: Images, sizes: list[int], copies: list[int]) -> Images:
    """The first images in groups of these sizes, and copies of some of them, in the last group."""
    rows = torch.tensor([*range(sum(sizes)), *copies])
    found = images.select(rows)
    numbers = [k for k, size in enumerate(sizes) for _ in range(size)] + [len(sizes) - 1] * len(copies)
    found.groups = numbered_groups([f"patient {k}" for k in numbers])
    return found


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 40), st.integers(0, 9), st.booleans(),
    st.lists(st.integers(0, 11), max_size=3),
)  # fmt: skip
def test_what_is_drawn_apart_leaves_whole_groups(
    digits: Images, sizes: list[int], count: int, seed: int, leave: bool, copies: list[int]
) -> None:
    images = with_groups(digits, sizes, [k for k in copies if k < sum(sizes)])
    keys, units = images.keys(), images.units()
    drawn = drawn_apart(images, count, seed, leave=leave)
    assert len(drawn.keys().unique()) == len(drawn) <= count
    linked = linked_to(images, drawn)
    assert (
        linked.tolist() == torch.isin(units, units[torch.isin(keys, drawn.keys())]).tolist()
    )  # slow_units tests these
    left = images.select((~linked).nonzero()[:, 0])
    if not leave:
        assert len(drawn) == min(count, len(keys.unique()))
    elif len(units.unique()) == 1:
        assert not len(drawn)
    else:
        assert len(left) and len(left.units().unique()) >= len(units.unique()) // 2
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    assert drawn_apart(images.select(order), count, seed, leave=leave).keys().tolist() == drawn.keys().tolist()


def test_without_groups_the_first_identities_are_drawn(digits: Images) -> None:
    images = digits.select(torch.tensor([*range(20), 3, 4]))
    for count, leave, expected in ((5, True, 5), (5, False, 5), (30, True, 10), (30, False, 20)):
        drawn = drawn_apart(images, count, 2, leave=leave)
        rows = one_of_each(images.keys(), 2, expected)
        assert drawn.keys().tolist() == images.keys()[rows].tolist()
        assert linked_to(images, drawn).tolist() == torch.isin(images.keys(), drawn.keys()).tolist()


def test_groups_link_sets_that_were_opened_apart(digits: Images) -> None:
    images = with_groups(digits, [2, 3, 2, 4], [0])  # a copy joins the first and the last group
    one, other = images.select(torch.tensor([2, 7])), images.select(torch.arange(11))
    assert linked_to(other, one).tolist() == [False, False, True, True, True, False, False, True, True, True, True]
    one.groups = None  # then by content alone
    assert linked_to(other, one).nonzero()[:, 0].tolist() == [2, 3, 4, 7, 8, 9, 10]
    other.groups = None
    assert linked_to(other, one).nonzero()[:, 0].tolist() == [2, 7]
