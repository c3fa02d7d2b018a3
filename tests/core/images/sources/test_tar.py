"""Sets of several archives: patterns, labels beside the images, and the order on disk."""

import io
import json
import os
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rootstock.core.errors import UserError
from rootstock.core.images.images import Images
from rootstock.core.images.open import DamagedImage, open_images
from rootstock.core.images.sets import labelled
from rootstock.core.images.sources import tar
from rootstock.core.images.sources.shards import braces, pattern_name
from rootstock.core.images.sources.tar import open_tar


def picture(number: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (5 + number % 3, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def archive(path: Path, members: Mapping[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as packed:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return path


def told(images: Images) -> list[str]:
    assert images.labels is not None and images.classes is not None
    return [images.classes[label] for label in images.labels.tolist()]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three archives of two classes, not in the order of the names; and the same images as a folder."""
    for k in range(3):
        members = {f"{c}/{10 * k + i}.png": picture(100 * ord(c) + 10 * k + i) for c in "ba" for i in (3, 1, 2)}
        archive(tmp_path / "shards" / f"set-{k:03d}.tar", members)
        for name, content in members.items():
            (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "set" / name).write_bytes(content)
    return tmp_path / "shards"


def test_shards_are_one_set(shards: Path) -> None:
    folder = open_images(f"folder:{shards.parent}/set")
    for pattern in (
        "set-{000..002}.tar",
        "*.tar",
        "set-00[012].tar",
        "{set-000,set-001,set-002}.tar",
        "s*-{000..002}.tar",
    ):
        images = open_images(f"tar:{shards}/{pattern}")
        assert [images.name(i) for i in range(18)] == [folder.name(i) for i in range(18)]
        assert all(images.read(i).equal(folder.read(i)) for i in range(18))
        assert images.keys().equal(folder.keys())
        assert told(images) == told(folder)
        assert images.fingerprint() == folder.fingerprint()
        assert images.domain_names == (pattern_name(f"{shards}/{pattern}"),)
        assert images.domains.unique().tolist() == [0]
    one = open_images(f"tar:{shards}/set-{{001..001}}.tar?under=a")
    assert [one.name(i) for i in range(3)] == ["11.png", "12.png", "13.png"]
    assert pickle.loads(pickle.dumps(one)).read(1).equal(one.read(1))  # noqa: S301


def test_pictures_of_one_name_in_two_shards_are_two_pictures(tmp_path: Path) -> None:
    for k in range(2):
        archive(tmp_path / f"{k}.tar", {f"x/{i}.png": picture(10 * k + i) for i in range(3)})
    images = open_images(f"tar:{tmp_path}/{{0..1}}.tar")
    assert [images.name(i) for i in range(6)] == [f"{i}.png" for i in range(3) for _ in range(2)]
    expected = [open_images(f"tar:{tmp_path}/{i % 2}.tar").read(i // 2) for i in range(6)]
    assert all(images.read(i).equal(one) for i, one in enumerate(expected))


def test_the_storage_order_reads_shards_from_start_to_end(shards: Path) -> None:
    images = open_images([f"tar:{shards}/*.tar#[:70%]", f"folder:{shards.parent}/set#[70%:]"])
    ordered = images.in_storage_order()
    assert sorted(ordered.keys().tolist()) == sorted(images.keys().tolist())
    assert ordered.fingerprint() == images.fingerprint()
    numbers = [int(ordered.name(i).removesuffix(".png")[2:]) // 10 for i in range(len(ordered))]
    count = int((ordered.domains == 0).sum())
    assert ordered.domains.tolist() == sorted(ordered.domains.tolist())
    assert numbers[:count] == sorted(numbers[:count])
    within = [ordered.name(i) for i in range(count) if numbers[i] == 1]
    written = [f"{c}/{10 + i}.png" for c in "ba" for i in (3, 1, 2)]
    assert within == [name for name in written if name in within]
    place = {images.name(i): images.read(i) for i in range(len(images))}
    assert all(ordered.read(i).equal(place[ordered.name(i)]) for i in range(len(ordered)))
    assert ordered.labels is not None
    assert told(ordered) == [ordered.name(i)[0] for i in range(len(ordered))]


def test_labels_beside_the_pictures_are_read(tmp_path: Path) -> None:
    labels = {"000": "7", "001": "12\n", "002": "7"}
    members = {
        f"{key}.{end}": content
        for key in labels
        for end, content in (("png", picture(int(key))), ("cls", labels[key].encode()), ("json", b"{}"))
    }
    archive(tmp_path / "a-0.tar", members)
    archive(tmp_path / "a-1.tar.gz", {"000.cls": b"3", "000.seg.png": picture(9), "000.png": picture(8)}, "w:gz")
    images = open_images(f"tar:{tmp_path}/a-0.tar")
    assert (told(images), images.classes) == (["7", "12", "7"], ("7", "12"))
    both = open_images(f"tar:{tmp_path}/{{a-0.tar,a-1.tar.gz}}?image=png")
    assert [both.name(i) for i in range(4)] == ["000.png", "000.png", "001.png", "002.png"]
    assert told(both) == ["7", "3", "12", "7"]
    again = open_images(f"tar:{tmp_path}/{{a-0.tar,a-1.tar.gz}}?image=png")
    assert told(again) == told(both)
    assert open_images(f"tar:{tmp_path}/a-0.tar?labels=none").labels is None


def test_labels_beside_the_pictures_go_with_folders_of_splits(tmp_path: Path) -> None:
    names = [f"{split}/{i}" for split in ("train", "val") for i in range(2)]
    members = {
        f"{name}.{end}": c for name in names for end, c in (("png", picture(len(name))), ("cls", name[-1:].encode()))
    }
    uri = f"tar:{archive(tmp_path / 'x.tar', members)}"
    assert told(open_images(f"{uri}#val")) == ["0", "1"]
    with pytest.raises(UserError, match="comes in splits"):
        open_images(uri)


def test_labels_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    uri = f"tar:{archive(tmp_path / 'x.tar', {'0.png': picture(0), '0.cls': b'1', '1.png': picture(1)})}"
    with pytest.raises(UserError, match=r"1 pictures have no \.cls beside them \(1\.png\).*\?labels=none"):
        open_images(uri)
    assert open_images(f"{uri}?labels=none").labels is None
    uri = f"tar:{archive(tmp_path / 'y.tar', {'0.png': picture(0), '0.cls': b'cat'})}"
    with pytest.raises(
        UserError, match=r"the \.cls beside 0\.png says 'cat', which is not a whole number.*\?label=cls"
    ):
        open_images(uri)
    assert told(open_images(f"{uri}?label=cls")) == ["cat"]
    for content, fault in (
        (b"1" * 5000, "has 5,000 bytes, more than"),
        (b"\xff", "is no text in UTF-8"),
        (b" \n", "is empty"),
        (b"1\n2", "has several lines"),
    ):
        uri = f"tar:{archive(tmp_path / 'z.tar', {'0.png': picture(0), '0.cls': content})}"
        with pytest.raises(UserError, match=rf"the \.cls beside 0\.png {fault}"):
            open_images(uri)
        assert open_images(f"{uri}?labels=none").labels is None


def dotted(tmp_path: Path) -> str:
    """Eight samples whose names have a dot before their last one."""
    members = {f"IMG_2.{k}.{e}": c for k in range(8) for e, c in (("png", picture(k)), ("cls", str(k % 2).encode()))}
    return f"tar:{archive(tmp_path / 'dots.tar', members)}"


def masked(tmp_path: Path) -> str:
    """Four pictures and their masks, with one label for both, and one in JSON."""
    members = {}
    for k in range(4):
        members |= {f"00{k}.png": picture(k), f"00{k}.seg.png": picture(10 + k), f"00{k}.cls": str(k % 2).encode()}
        members[f"00{k}.json"] = json.dumps({"label": "ab"[k % 2], "n": k, "odd": [k]}).encode()
    return f"tar:{archive(tmp_path / 'two.tar', members)}"


def test_each_picture_gets_its_own_label_or_an_error_names_the_sample(tmp_path: Path) -> None:
    uri = dotted(tmp_path)
    with pytest.raises(
        UserError,
        match=r"the sample IMG_2 has 8 pictures \(IMG_2\.0\.png, IMG_2\.1\.png, \.\.\.\) and 8 \.cls .*\?key=last-dot",
    ):
        open_images(uri)
    assert told(open_images(f"{uri}?key=last-dot")) == ["0", "1"] * 4
    assert told(open_images(f"{uri}?image=3.png&label=3.cls")) == ["1"]
    lacking = {"a.0.png": picture(0), "a.0.cls": b"1", "a.1.png": picture(1)}
    with pytest.raises(UserError, match=r"the sample a has 2 pictures .* and 1 \.cls.*\?key=last-dot"):
        open_images(f"tar:{archive(tmp_path / 'lacking.tar', lacking)}")
    assert len(open_images(f"{uri}?labels=none")) == 8


def test_a_picture_or_a_label_of_each_sample_can_be_chosen(tmp_path: Path) -> None:
    uri = masked(tmp_path)
    with pytest.raises(
        UserError, match=r"the sample 000 has 2 pictures .* and 1 \.cls.*3 more .*\?image=png or \?image=seg\.png"
    ):
        open_images(uri)
    for image, first in (("png", 0), ("seg.png", 10)):
        images = open_images(f"{uri}?image={image}")
        assert told(images) == ["0", "1", "0", "1"]
        same = archive(tmp_path / "same.tar", {f"{k}.png": picture(first + k) for k in range(4)})
        assert all(images.read(i).equal(open_images(f"tar:{same}").read(i)) for i in range(4))
    assert told(open_images(f"{uri}?image=png&label=json:label")) == ["a", "b", "a", "b"]
    assert told(open_images(f"{uri}?image=png&label=json:n")) == ["0", "1", "2", "3"]
    several = archive(tmp_path / "s.tar", {"0.png": picture(0), "0.a.cls": b"1", "0.cls": b"2"})
    with pytest.raises(UserError, match=r"1 picture and 2 \.cls \(0\.a\.cls, 0\.cls\).*\?label=cls or \?label=a\.cls"):
        open_images(f"tar:{several}")
    assert told(open_images(f"tar:{several}?label=cls")) == ["2"]
    assert told(open_images(f"tar:{several}?label=a.cls")) == ["1"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            "image=png&label=json:odd",
            r"the \.json beside 000\.png has \[0\] as odd, which is neither a text nor a whole",
        ),
        ("image=png&label=json:x", r"the \.json beside 000\.png has no key x \(it has: label, n, odd\)"),
        ("image=png&label=json", "label=json is not understood; expected cls, txt or json:KEY"),
        ("image=png&label=cls:n", "label=cls:n is not understood"),
        ("image=png&label=txt", r"no picture has a \.txt beside it"),
        ("image=jpg", r"no picture has the ending image=jpg \(there are: png, seg\.png\)"),
        ("image=", "image= names no ending"),
        ("key=middle", "key=middle is unknown .known: first-dot, last-dot"),
    ],
)
def test_choices_that_make_no_sense_are_refused(tmp_path: Path, options: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        open_images(f"{masked(tmp_path)}?{options}")


def test_what_is_not_read_is_said(tmp_path: Path) -> None:
    members = {"0.png": picture(0), "0.seg.png": picture(1), "0.json": b"{}", "a.heic": b"x", ".DS_Store": b"x"}
    said = [note.sentence() for note in open_tar(str(archive(tmp_path / "x.tar", members)), None).notes]
    assert (
        "1 samples with several pictures, all of which are read; ?image=ENDING would choose one of each (0.png, 0.seg.png)"
        in said
    )
    assert "1 files ending in .json, which are not read; ?label=json:KEY would read a label from them (0.json)" in said
    assert "1 files ending in .heic, which are not read (a.heic)" in said
    labelled = archive(tmp_path / "y.tar", {"0.png": picture(0), "0.cls": b"1", "1.cls": b"1"})
    said = [note.sentence() for note in open_tar(str(labelled), None).notes]
    assert said == ["1 .cls without a picture beside them (1.cls)"]


def test_what_rootstock_wrote_into_an_archive_is_no_data(tmp_path: Path) -> None:
    """As in a folder: a set that was packed with the runs and sheets inside it has the pictures and classes of the set alone."""
    data = {f"{name}/{i}.png": picture(i) for i, name in enumerate("abab")}
    run = {"config.yaml": b"", "run.json": b"{}", "pictures/views.png": picture(5), "backbone/x.png": picture(6)}
    ours = {**{f"runs/first/{name}": content for name, content in run.items()}, "contact-sheet.png": picture(7)}
    alone = open_images(f"tar:{archive(tmp_path / 'alone.tar', data)}")
    for folder, written in (("set/", ours), ("set/", run), ("", run)):
        members = {folder + name: content for name, content in {**data, **written}.items()}
        found = open_images(f"tar:{archive(tmp_path / 'with.tar', members)}")
        assert found.classes == ("a", "b") and found.fingerprint() == alone.fingerprint()
        said = [note.sentence() for note in found.notes]
        prefix = f"{folder}runs/first/" if written is ours else folder
        assert f"2 folders of runs, which are no data ({prefix}backbone/x.png)" in said
        assert any("contact sheets" in sentence for sentence in said) == (written is ours)
        assert not any("class folders without a picture" in sentence for sentence in said)
    lone = archive(tmp_path / "lone.tar", {"a/pictures/0.png": picture(0), "a/config.yaml": b"", "b/0.png": picture(1)})
    assert len(open_images(f"tar:{lone}")) == 2, "a config alone makes no run"


def test_two_labels_that_differ_by_case_are_not_chosen_by_an_ending(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.tar", {"a.png": picture(0), "a.cls": b"0", "a.CLS": b"1"})
    for options in ("", "?label=CLS"):
        with pytest.raises(
            UserError, match=r"2 \.(cls|CLS) \(a\.CLS, a\.cls\).*; leave one of them out of the archive, or add"
        ):
            open_images(f"tar:{path}{options}")


def test_links_in_an_archive_are_read_as_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "a").mkdir(parents=True)
    (folder / "b").mkdir()
    (folder / "a" / "1.png").write_bytes(picture(1))
    (folder / "b" / "2.png").symlink_to("../a/1.png")
    (folder / "b" / "3.png").symlink_to("2.png")
    (folder / "data").write_bytes(picture(4))
    os.link(folder / "data", folder / "b" / "4.png")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(folder / "data", arcname="data")
        for name in ("b/3.png", "b/2.png", "b/4.png", "a/1.png"):
            tar.add(folder / name, arcname=name)
        for name, target in (
            ("b/5.png", "6.png"),
            ("b/6.png", "5.png"),
            ("b/7.png", "/etc/x.png"),
            ("b/8.png", "9.png"),
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
        pipe = tarfile.TarInfo("b/9.png")
        pipe.type = tarfile.FIFOTYPE
        tar.addfile(pipe)
    images, same = open_images(f"tar:{tmp_path}/x.tar"), open_images(f"folder:{folder}")
    assert [images.name(i) for i in range(4)] == [same.name(i) for i in range(4)]
    assert (len(images), told(images)) == (4, told(same))
    assert all(images.read(i).equal(same.read(i)) for i in range(4))
    (note,) = open_tar(f"{tmp_path}/x.tar", None).notes[:1]
    assert (note.number, note.example) == (5, "b/5.png")


def sparse(path: Path, form: int) -> Path:
    """An archive with a sparse picture, as GNU tar writes it: form 0 is the old GNU format, 1 that of pax, version 1.0."""
    content = picture(3)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT if form else tarfile.GNU_FORMAT) as tar:
        if form:
            member = tarfile.TarInfo("GNUSparseFile.0/0.png")
            member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "0.png"}
            member.pax_headers["GNU.sparse.realsize"] = "100000"
            body = f"1\n0\n{len(content)}\n".encode().ljust(512, b"\0") + content
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    if not form:
        member = tarfile.TarInfo("0.png")
        member.type, member.size = tarfile.GNUTYPE_SPARSE, len(content)
        block = bytearray(member.tobuf(tarfile.GNU_FORMAT)[:512])
        block[386:410] = b"%011o\0%011o\0" % (0, len(content))
        block[483:495] = b"%011o\0" % 100000
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        path.write_bytes(bytes(block) + content.ljust(-(-len(content) // 512) * 512, b"\0") + bytes(1024))
    return path


@pytest.mark.parametrize("form", [0, 1])
def test_a_sparse_picture_is_refused(tmp_path: Path, form: int) -> None:
    with pytest.raises(UserError, match=r"0\.png is stored as a sparse file.*without --sparse"):
        open_images(f"tar:{sparse(tmp_path / 'x.tar', form)}")


def with_size(path: Path, size: bytes) -> Path:
    """Two pictures, the first of which claims another size."""
    archive(path, {"0.png": picture(0), "1.png": picture(1)})
    content = bytearray(path.read_bytes())
    content[124:136] = size
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        (b"\xff" * 11 + b"\0", "damaged"),  # -256 in the base 256 of GNU tar
        (b"\xff" * 10 + b"\xfe\0", "damaged"),  # -512: the header itself again, for ever
        (b"\x80" + b"\x7f" * 11, "cut short in 0.png"),
        (b"%011o\0" % (1 << 30), "cut short in 0.png|not a readable archive"),
        (b"%011o\0" % 600, "damaged after 0.png: [0-9,]+ bytes behind it"),
    ],
)
def test_a_size_that_lies_is_refused(tmp_path: Path, size: bytes, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        open_images(f"tar:{with_size(tmp_path / 'x.tar', size)}")


def test_a_damaged_header_does_not_end_an_archive_silently(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.tar", {f"{k}.png": picture(k) for k in range(5)})
    with tarfile.open(path) as whole:
        place = whole.getmember("2.png").offset
    content = bytearray(path.read_bytes())
    content[place + 10] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"the archive is damaged after 1\.png: [0-9,]+ bytes behind it cannot be read"):
        open_images(f"tar:{path}")
    joined = archive(tmp_path / "y.tar", {"0.png": picture(0)}).read_bytes() + path.read_bytes()
    (tmp_path / "y.tar").write_bytes(joined)
    assert "data behind its end mark" in open_tar(f"{tmp_path}/y.tar", None).notes[0].what
    (tmp_path / "y.tar").write_bytes(joined[:1024])
    assert "without an end mark" in open_tar(f"{tmp_path}/y.tar", None).notes[0].what


@pytest.mark.parametrize("lost", [1, 512])
def test_an_archive_that_ends_within_a_picture_names_it(tmp_path: Path, lost: int) -> None:
    path = archive(tmp_path / "x.tar", {"0.png": picture(0), "1.png": bytes(2000)})
    with tarfile.open(path) as whole:
        last = whole.getmember("1.png")
    os.truncate(path, last.offset_data + last.size - lost)
    with pytest.raises(UserError, match=r"x\.tar: the archive is cut short in 1\.png; fetch it again"):
        open_images(f"tar:{path}")


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("set-{000..003}.tar", r"1 of its 4 archives are not there \(.*set-003\.tar\)"),
        ("other-*.tar", r"no archive is called .*other-\*\.tar"),
        ("{set-000,set-00*}.tar", "names an archive twice"),
        ("set-9.tar", "there is no such archive; check the path"),
        ("set-{0..3000000}.tar", r"stands for 3,000,001 archives, more than a set may have \(100,000\)"),
        ("{0..999}-{0..999}.tar", "stands for 1,000,000 archives"),
        ("{0..99999999999999999999999}.tar", "1 of its 1 archives are not there"),
        ("{9..0}.tar", r"the range \{9\.\.0\} is empty"),
        ("{a,{b,c}}.tar", "nested or have no partner"),
        ("set-{000.tar", "nested or have no partner"),
    ],
)
def test_patterns_that_match_too_little_or_too_much_are_refused(shards: Path, pattern: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        open_images(f"tar:{shards}/{pattern}")


def test_braces_and_names() -> None:
    assert braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert braces("{9..11}") == ["9", "10", "11"]
    assert braces("{000..001}/{x,y}") == ["000/x", "000/y", "001/x", "001/y"]
    assert braces("plain.tar") == ["plain.tar"]
    assert pattern_name("/data/imagenet-train-{0000..0146}.tar") == "imagenet-train"
    assert pattern_name("/data/shards/*.tar") == "shards"


def test_a_name_that_looks_like_a_pattern_is_a_name(tmp_path: Path) -> None:
    archive(tmp_path / "a[1].tar", {"0.png": picture(0)})
    images = open_images(f"tar:{tmp_path}/a[1].tar")
    assert (len(images), images.domain_names) == (1, ("a[1]",))


def test_open_shards_are_bounded_and_an_end_too_early_names_shard_and_picture(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = open_images(f"tar:{shards}/*.tar")
    store = images._stores[0]
    assert isinstance(store, tar.TarStore)
    store._files.limit = 1
    for i in torch.randperm(18, generator=torch.Generator().manual_seed(0)).tolist():
        images.read(i)
        assert len(store._files._open) == 1
    os.truncate(shards / "set-001.tar", 2000)
    with pytest.raises(DamagedImage, match=r"set-001\.tar!a/1\d\.png: cannot be read \(.*bytes too early\)"):
        images.read(3)


def said_of(path: Path, **options: Any) -> list[str]:
    return [note.sentence() for note in open_tar(str(path), None, **options).notes]


def test_two_spellings_of_one_label_are_one_class(tmp_path: Path) -> None:
    members = {f"{k}.PNG": picture(k) for k in range(3)}
    numbers = archive(tmp_path / "n.tar", members | {"0.CLS": b"1", "1.cls": b"01\n", "2.Cls": b"\xef\xbb\xbf1"})
    assert told(open_images(f"tar:{numbers}")) == ["1", "1", "1"]
    texts = archive(tmp_path / "t.tar", members | {"0.txt": b"a", "1.txt": b"\xef\xbb\xbfa", "2.txt": b"a \r\n"})
    assert told(open_images(f"tar:{texts}?label=txt")) == ["a", "a", "a"]


def test_members_that_are_replaced_or_hidden_are_counted(tmp_path: Path) -> None:
    members = {
        "a/1.png": picture(0),
        "./a//1.png": picture(1),
        "a/.h/2.png": picture(2),
        "a/.3.png": b"",
        "b/4.png": b"x",
    }
    said = said_of(archive(tmp_path / "x.tar", members))
    assert any(one.startswith("1 members whose name comes again later") for one in said)
    assert sum(int(one[0]) for one in said if "hidden files and folders" in one) == 2
    above = {"../p/a/1.png": picture(0), "../p/b/2.png": picture(1), "/p/b/3.png": picture(2)}
    assert told(open_images(f"tar:{archive(tmp_path / 'above.tar', above)}")) == ["a", "b", "b"]


def test_a_class_beside_folders_without_a_picture_is_no_wrapper(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.tar", {"a/1.png": picture(0), "b/1.heic": b"x"})
    assert told(open_images(f"tar:{path}")) == ["a"]
    assert "1 class folders without a picture, so these classes are missing (b)" in said_of(path)
    inside = archive(tmp_path / "y.tar", {"w/a/1.png": picture(0), "w/b/2.png": picture(1), "text/read.me": b"x"})
    assert told(open_images(f"tar:{inside}")) == ["a", "b"]


def test_an_archive_of_one_class_can_be_opened_with_it(tmp_path: Path) -> None:
    """The only folder is taken for a wrapper, which is said with what says otherwise; a real wrapper stays one."""
    path = archive(tmp_path / "x.tar", {f"defect/{i}.png": picture(i) for i in range(3)})
    plain = open_images(f"tar:{path}")
    assert plain.labels is None
    assert [note.sentence() for note in plain.notes] == [
        "1 folders passed through: the archive's wrapper; ?labels=folders would make it a class (defect)"
    ]
    with pytest.raises(UserError, match=r"no labels; .*; if its only folder defect is a class, add \?labels=folders"):
        labelled(plain, "data.test")
    assert told(open_images(f"tar:{path}?labels=folders")) == ["defect"] * 3
    wrapped = archive(tmp_path / "y.tar", {f"set/{c}/{i}.png": picture(i) for i, c in enumerate("ab")})
    assert told(open_images(f"tar:{wrapped}?labels=folders")) == ["a", "b"]
    beside = archive(tmp_path / "z.tar", {"0.png": picture(0), "0.cls": b"1"})
    with pytest.raises(UserError, match="labels=both is unknown"):
        open_images(f"tar:{wrapped}?labels=both")
    assert told(open_images(f"tar:{beside}?labels=folders")) == ["1"]


def test_the_used_bits_of_an_archive(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 4), 4095, np.uint16)).save(stream, "PNG")
    uri = f"tar:{archive(tmp_path / 'x.tar', {'a/1.png': stream.getvalue()})}"
    assert open_images(uri).read(0).numpy().max() == 4095
    assert open_images(f"{uri}?bits=12").read(0).numpy().max() == 65535


def test_an_archive_and_a_link_to_it_are_one(tmp_path: Path) -> None:
    (tmp_path / "b.tar").symlink_to(archive(tmp_path / "a.tar", {"1.png": picture(0)}))
    with pytest.raises(UserError, match="names an archive twice, perhaps by a link"):
        open_images(f"tar:{tmp_path}/*.tar")
