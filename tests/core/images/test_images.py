"""Sources: the same pictures out of folders, archives, lists and tables; unions; workers."""

import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rootstock.core.errors import UserError
from rootstock.core.images.images import Images
from rootstock.core.images.open import open_images

NAMES = ["cat/1.png", "cat/deep/er/2.png", "dog/3.png", "dog/4.png", "eel/5.png"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def drawn(folder: Path, names: list[str], first: int = 0) -> Path:
    """A folder of pictures of different sizes and contents."""
    for k, name in enumerate(names, start=first):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(k).integers(0, 256, (6 + k % 3, 5 + k % 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
    return folder


def packed(folder: Path, archive: Path, mode: str = "w") -> Path:
    with tarfile.open(archive, mode) as tar:  # type: ignore[call-overload]
        tar.add(folder, arcname=".")
    return archive


def told(images: Images) -> list[str]:
    """The class name of each picture."""
    assert images.labels is not None
    assert images.classes is not None
    return [images.classes[label] for label in images.labels.tolist()]


def equal(first: Images, second: Images) -> bool:
    return len(first) == len(second) and all(torch.equal(first.read(i), second.read(i)) for i in range(len(first)))


def test_folder_archive_list_and_table_are_the_same(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "set", NAMES)
    (folder / "notes.txt").write_text("not a picture")
    (folder / "cat" / "._1.png").write_bytes(b"hidden")
    (folder / "list.txt").write_text("".join(f"{name} {name[:3]}\n" for name in NAMES))
    (folder / "table.csv").write_text("path,label\n" + "".join(f"{name},{name[:3]}\n" for name in NAMES))
    uris = [f"folder:{folder}", f"list:{folder}/list.txt", f"csv:{folder}/table.csv"]
    for mode, ending in (("w", "tar"), ("w:gz", "tar.gz"), ("w:bz2", "tar.bz2"), ("w:xz", "tar.xz")):
        uris.append(f"tar:{packed(folder, tmp_path / f'set.{ending}', mode)}")
    first, *others = [open_images(uri) for uri in uris]
    assert told(first) == ["cat", "cat", "dog", "dog", "eel"]
    assert [first.name(i) for i in range(5)] == NAMES
    for other in others:
        assert equal(first, other)
        assert other.classes == first.classes == ("cat", "dog", "eel")
        assert told(other) == told(first)
        assert torch.equal(other.keys(), first.keys())
        assert other.fingerprint() == first.fingerprint()
        assert other.split_hash() == first.split_hash()


def test_layouts_of_folders(tmp_path: Path) -> None:
    flat = open_images(f"folder:{drawn(tmp_path / 'flat', ['a.png', 'b.png'])}")
    assert (len(flat), flat.labels, flat.classes) == (2, None, None)
    wrapped = open_images(f"folder:{drawn(tmp_path / 'wrapped', [f'in/side/{name}' for name in NAMES])}")
    assert told(wrapped) == ["in"] * 5
    inner = open_images(f"folder:{tmp_path}/wrapped?under=in/side")
    assert told(inner) == ["cat", "cat", "dog", "dog", "eel"]
    assert inner.name(0) == "cat/1.png"
    assert inner.domain_names == ("side",)
    plain = open_images(f"folder:{tmp_path}/wrapped?labels=none")
    assert plain.labels is None
    drawn(tmp_path / "wrapped", ["in/side/loose.png"], first=9)
    with pytest.raises(UserError, match=r"1 pictures lie in no class folder \(loose.png\)"):
        open_images(f"folder:{tmp_path}/wrapped?under=in/side")
    assert len(open_images(f"folder:{tmp_path}/wrapped?labels=none")) == 6


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "set", ["a/1.png", "a/2.png"])
    (folder / "b").symlink_to(drawn(tmp_path / "elsewhere", ["3.png"], first=5))
    (folder / "a" / "loop").symlink_to(folder)
    assert told(open_images(f"folder:{folder}")) == ["a", "a", "b"]
    (folder / "a" / "gone.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"gone\.png cannot be opened: it is a dangling link"):
        open_images(f"folder:{folder}")


def test_archives_of_several_domains_links_and_odd_names(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "set", [f"{d}/{c}/{i} #.png" for d in ("photo", "sketch") for c in "xy" for i in "12"])
    os.link(folder / "photo/x/1 #.png", folder / "photo/x/3 #.png")
    os.rename(folder / "photo/x/2 #.png", os.fsencode(folder) + b"/photo/x/\xff.png")
    images = open_images(
        f"tar:{packed(folder, tmp_path / 'odd%#?.tar').as_posix().replace('%', '%25').replace('#', '%23').replace('?', '%3F')}?under=photo"
    )
    assert equal(images, open_images(f"folder:{folder}/photo"))
    assert told(images) == ["x", "x", "x", "y", "y"]
    assert images.domain_names == ("photo",)
    assert len(set(images.keys().tolist())) == 4


def test_lists_with_spaces_tabs_roots_and_no_labels(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "pictures", ["one two.png", "three.png", "four.png"])
    listing = tmp_path / "list.txt"
    listing.write_text("one two.png\r\n\r\nthree.png\r\n")
    images = open_images(f"list:{listing}?root=pictures")
    assert ([images.name(i) for i in range(2)], images.labels) == (["one two.png", "three.png"], None)
    listing.write_text("one two.png\t10\nthree.png 9\n" + f"{folder}/four.png 10\n")
    images = open_images(f"list:{listing}?root={folder}")
    assert images.classes == ("9", "10")
    assert told(images) == ["10", "9", "10"]
    listing.write_text("one two.png 1\nthree.png\n")
    with pytest.raises(UserError, match="line 1 and line 2 differ"):
        open_images(f"list:{listing}?root=pictures")
    listing.write_text("five.png\n")
    with pytest.raises(UserError, match=r"five\.png \(it is not there\)"):
        open_images(f"list:{listing}")


def test_tables_with_domains_and_other_column_names(tmp_path: Path) -> None:
    drawn(tmp_path, ["a.png", "b,c.png", "d.png"])
    (tmp_path / "t.csv").write_text('file,kind,place\na.png,cat,lab\n"b,c.png",dog,field\nd.png,cat,field\n')
    images = open_images(f"csv:{tmp_path}/t.csv?path=file&label=kind&domain=place")
    assert told(images) == ["cat", "dog", "cat"]
    assert images.domain_names == ("field", "lab")
    assert images.domains.tolist() == [1, 0, 0]
    with pytest.raises(UserError, match=r"no column path \(there are: file, kind, place\)"):
        open_images(f"csv:{tmp_path}/t.csv")
    (tmp_path / "t.tsv").write_text("path\tlabel\na.png\tx\nd.png\t\n")
    with pytest.raises(UserError, match="line 3 has no label"):
        open_images(f"csv:{tmp_path}/t.tsv")
    (tmp_path / "u.csv").write_text("path\na.png\n")
    assert open_images(f"csv:{tmp_path}/u.csv").labels is None
    (tmp_path / "v.csv").write_text("path,label\na.png\n")
    with pytest.raises(UserError, match="line 2 has 1 columns and the header 2"):
        open_images(f"csv:{tmp_path}/v.csv")


def test_a_union_has_domains_and_merges_classes_by_name(tmp_path: Path) -> None:
    first = drawn(tmp_path / "photo", ["cat/1.png", "dog/2.png"])
    second = drawn(tmp_path / "sketch", ["ant/3.png", "cat/4.png", "dog/5.png"], first=7)
    images = open_images([f"folder:{first}", f"folder:{second}"])
    assert images.classes == ("ant", "cat", "dog")
    assert told(images) == ["cat", "dog", "ant", "cat", "dog"]
    assert images.domain_names == ("photo", "sketch")
    assert images.domains.tolist() == [0, 0, 1, 1, 1]
    parts = open_images(f"folder:{first}"), open_images(f"folder:{second}")
    assert torch.equal(images.keys(), torch.cat([part.keys() for part in parts]))
    assert torch.equal(images.read(3), parts[1].read(1))
    subset = images.select(torch.tensor([4, 0]))
    assert (told(subset), subset.domains.tolist()) == (["dog", "cat"], [1, 0])
    assert torch.equal(subset.read(1), images.read(0))
    assert images.resident() is None


def test_unions_of_arrays_are_resident_and_clashing_names_spelled_out() -> None:
    uris = ["sklearn:digits#[:3]", "sklearn:digits-m?seed=1#[3:5]", "sklearn:digits-m?seed=2#[5:9]"]
    images = open_images(uris)
    resident = images.resident()
    assert resident is not None
    assert all(torch.equal(resident[i], images.read(i)) for i in range(9))
    assert images.domain_names == ("digits", *uris[1:])
    assert images.select(torch.tensor([8, 0, 4])).resident().equal(resident[[8, 0, 4]])  # type: ignore[union-attr]
    assert open_images(["sklearn:digits?size=8#[:3]", "sklearn:digits#[3:5]"]).resident() is None


def test_unions_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    flat = f"folder:{drawn(tmp_path / 'flat', ['1.png'])}"
    with pytest.raises(UserError, match=r"has labels and .* has none"):
        open_images(["sklearn:digits", flat])
    assert len(open_images(["sklearn:digits", flat], role="unlabelled")) == 1798
    with pytest.raises(UserError, match="given twice"):
        open_images([flat, flat])
    with pytest.raises(UserError, match="no image URI"):
        open_images([])


def test_unlabelled_keeps_class_names_but_no_label(tmp_path: Path) -> None:
    images = open_images(f"folder:{drawn(tmp_path, NAMES)}", role="unlabelled")
    assert (images.labels, images.classes) == (None, ("cat", "dog", "eel"))


class Reader(Dataset[Tensor]):
    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return self.images.read(i)


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_read_what_the_parent_reads(tmp_path: Path, start: str) -> None:
    folder = drawn(tmp_path / "set", [f"{c}/{i}.png" for c in "ab" for i in range(8)])
    images = open_images([f"folder:{folder}", f"tar:{packed(folder, tmp_path / 'archive.tar.gz', 'w:gz')}"])
    expected = [images.read(i) for i in range(len(images))]  # the parent's descriptor of the archive is open by now
    loader = DataLoader(Reader(images), batch_size=None, num_workers=2, multiprocessing_context=start)
    assert all(torch.equal(image, one) for image, one in zip(loader, expected, strict=True))


def test_images_pickle_without_open_files(tmp_path: Path) -> None:
    images = open_images(f"tar:{packed(drawn(tmp_path / 'set', NAMES), tmp_path / 'set.tar')}")
    images.read(0)
    assert equal(pickle.loads(pickle.dumps(images)), images)  # noqa: S301


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("fodler:x", "did you mean folder?"),
        ("pictures", "it has no scheme; write for example folder:pictures"),
        ("folder:", "the path is missing after"),
        ("folder:x?", "no option is given after"),
        ("folder:x?under", "'under' is not an option"),
        ("folder:x?udner=y", "did you mean under?"),
        ("folder:/no/such/place", "there is no folder /no/such/place; check the path"),
        ("tar:/no/such.tar", "no such archive"),
        ("idx:/no/such", "there is no /no/such"),
        ("npz:/no/such.npz", "there is no such file"),
        ("list:/no/such.txt", "there is no such file"),
        ("csv:/no/such.csv", "there is no such file"),
        ("torchvision:MNIST?root=/no&download=maybe#train", "neither true nor false"),
    ],
)
def test_mistakes_are_one_sentence(uri: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence.replace("?", r"\?")):
        open_images(uri)


def test_a_folder_without_a_scheme_is_named_as_a_uri_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn(tmp_path / "100%#1", NAMES)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"has no scheme; write for example folder:100%25%231$"):
        open_images("100%#1")
    assert len(open_images("folder:100%25%231")) == len(NAMES)


def test_empty_folders_and_wrong_kinds_say_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("a.png")
    with pytest.raises(UserError, match=r"no pictures under .*; expected files ending in \.jpg"):
        open_images(f"folder:{tmp_path}")
    with pytest.raises(UserError, match="this is a file, not a folder"):
        open_images(f"folder:{tmp_path}/notes.txt")
    with pytest.raises(UserError, match="open it as folder:"):
        open_images(f"tar:{tmp_path}")
    with pytest.raises(UserError, match="not a readable archive"):
        open_images(f"tar:{tmp_path}/notes.txt")
    with pytest.raises(UserError, match="no IDX pictures there"):
        open_images(f"idx:{tmp_path}")


def test_archives_cut_short_are_refused(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "set", [f"{i}.png" for i in range(30)])
    for ending, mode in (("tar", "w"), ("tar.gz", "w:gz")):
        archive = packed(folder, tmp_path / f"set.{ending}", mode)
        archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2 + 100])
        with pytest.raises(UserError, match=r"cut short|not a readable archive"):
            open_images(f"tar:{archive}")


def test_a_later_member_of_the_same_name_counts(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "twice.tar", "w") as tar:
        for shade in (0, 200):
            stream = io.BytesIO()
            Image.new("L", (4, 4), shade).save(stream, "PNG")
            member = tarfile.TarInfo("a.png")
            member.size = stream.tell()
            stream.seek(0)
            tar.addfile(member, stream)
    images = open_images(f"tar:{tmp_path}/twice.tar")
    assert len(images) == 1
    assert images.read(0).unique().tolist() == [200]
