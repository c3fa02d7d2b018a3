"""Lists and tables: what is wrong is said with its line, and with a remedy that works."""

import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rootstock.core.errors import UserError
from rootstock.core.images.images import Images
from rootstock.core.images.open import open_images
from rootstock.core.images.sources.listed import open_csv


def told(images: Images) -> list[str]:
    assert images.labels is not None and images.classes is not None
    return [images.classes[label] for label in images.labels.tolist()]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "imgs").mkdir()
    for k in range(4):
        Image.new("L", (4, 4), 9 * k).save(tmp_path / "imgs" / f"{k}.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "dangling.png").symlink_to("nowhere.png")
    return tmp_path


ROWS = [f"imgs/{k}.png,{k % 2}" for k in range(4)]
HEADED = ["path,label", *ROWS]


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (
            ROWS,
            r"no column path in its first line \(imgs/0\.png,0\), which names a picture.* add a first line such as path,label",
        ),
        (
            [line.replace(",", ";") for line in HEADED],
            r"no column path between ',', but there is one between ';': add \?separator=semicolon",
        ),
        ([line.replace(",", "\t") for line in HEADED], r"add \?separator=tab"),
        (["path,label,label", *(f"{row},x" for row in ROWS)], "2 columns are called label; rename"),
        (["path,path,label", *(f"x,{row}" for row in ROWS)], "2 columns are called path"),
        ([*HEADED, "", ",;"], "line 7 has no path"),
        ([*HEADED, "", "imgs/1.png"], "line 7 has 1 columns and the header 2"),
        ([*HEADED, "", "imgs/1.png,"], "line 7 has no label"),
        (["path,label", '"imgs/0.png","a', 'b"', "", "imgs/1.png"], "line 5 has 1 columns"),
        (["path,label", '"imgs/0.png,1'], r"line 2 is not readable as a table \(unexpected end of data\)"),
        (
            ["path,label", "x.png,1", *ROWS, "", *(f"{k}.png,1" for k in range(8))],
            r"9 of its 13 pictures cannot be opened, line 2: x\.png \(it is not there\); line 8: 0\.png .*; \.\.\.; restore",
        ),
        (
            ["path,label", f"{'n' * 5000}.png,1"],
            r"line 2: n+\.\.\.n*\.png \(5,004 characters\) .*longer than the file system allows",
        ),
        (["path,label", "im\0gs.png,1"], "line 2: .*its path holds a NUL"),
        (["path,label", "pipe.png,1"], "line 2: pipe.png is a pipe, not a file"),
        (["path,label", "imgs,1"], "line 2: imgs is a folder, not a file"),
        (["path,label", "imgs\\0.png,1"], r"write the paths with / instead of \\"),
        (["path,label"], "it names no pictures"),
        ([], r"there is no column path \(there are: none\)"),
    ],
)
def test_a_table_that_cannot_be_read_says_where(place: Path, lines: list[str], sentence: str) -> None:
    (place / "t.csv").write_text("\n".join(lines) + ("\n" if lines else ""))
    with pytest.raises(UserError, match=sentence):
        open_images(f"csv:{place}/t.csv")


def test_the_remedies_for_tables_work(place: Path) -> None:
    (place / "t.csv").write_text("\n".join(line.replace(",", ";") for line in HEADED))
    for separator in ("semicolon", ";"):
        assert told(open_images(f"csv:{place}/t.csv?separator={separator}")) == ["0", "1", "0", "1"]
    with pytest.raises(UserError, match="separator=dot is unknown"):
        open_images(f"csv:{place}/t.csv?separator=dot")
    for encoding, advice in (("utf-16", "utf-16"), ("latin-1", "latin-1")):
        (place / "t.csv").write_bytes("\n".join(HEADED).replace(",1", ",café").encode(encoding))
        with pytest.raises(UserError, match=rf"not a text in UTF-8 \(byte \d+\); .*\?encoding={advice}"):
            open_images(f"csv:{place}/t.csv")
        assert told(open_images(f"csv:{place}/t.csv?encoding={encoding}")) == ["0", "café", "0", "café"]
    for encoding in ("no-such", "base64", "undefined"):
        with pytest.raises(UserError, match=f"encoding={encoding} is unknown"):
            open_images(f"csv:{place}/t.csv?encoding={encoding}")
    (place / "t.csv").write_text("\n".join([*HEADED, ROWS[0]]))
    (note,) = open_csv(f"{place}/t.csv", None).notes
    assert note.sentence() == "1 pictures listed again, which count double (imgs/0.png)"


def test_a_quoted_line_break_belongs_to_the_field(place: Path) -> None:
    (place / "a\nb.png").write_bytes((place / "imgs/0.png").read_bytes())
    (place / "ab.png").write_bytes((place / "imgs/1.png").read_bytes())
    for end in "\n", "\r\n":
        (place / "t.csv").write_text(end.join(["path,label", '"a\nb.png",catdog', f'ab.png,"cat{end}dog"']), newline="")
        images = open_images(f"csv:{place}/t.csv")
        assert [images.name(i) for i in range(2)] == ["a\nb.png", "ab.png"]
        assert told(images) == ["catdog", "cat\ndog"]


def test_what_a_table_says_twice_or_in_other_columns_is_said(place: Path) -> None:
    def said(lines: list[str], **options: Any) -> list[str]:
        (place / "t.csv").write_text("\n".join(lines))
        return [note.sentence() for note in open_csv(f"{place}/t.csv", None, **options).notes]

    assert said(["path,label", "imgs/0.png,a", "imgs/1.png,a", "./imgs/0.png,b"]) == [
        "1 pictures listed again, which count double (imgs/0.png)",
        "1 pictures listed with several labels (imgs/0.png)",
    ]
    assert said(["path,Label,id", "imgs/0.png,a,1"]) == [
        "2 columns that are not read; ?label=COLUMN would read the classes from one (Label, id)"
    ]
    assert said(["path,label,id", "imgs/0.png,a,1"]) == ["1 columns that are not read (id)"]
    assert said(["path,label", "imgs/0.png,a"]) == []
    with pytest.raises(UserError, match="the column kind is empty"):
        said(["path,kind", "imgs/0.png,", "imgs/1.png,"], label="kind")


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["imgs/0.png 1", "", "\t2"], "line 3 has no path"),
        (["imgs/0.png 1", "", "imgs/1.png"], "line 1 and line 3 differ"),
        (
            ["", "a.png", "imgs/0.png", "b.png"],
            r"2 of its 3 pictures cannot be opened, line 2: a\.png .*line 4: b\.png",
        ),
        (["\0.png"], "line 1: .*its path holds a NUL"),
        (["n" * 5000], "line 1: .*longer than the file system allows"),
        (["pipe.png"], "line 1: pipe.png is a pipe, not a file"),
        (["dangling.png"], "line 1: dangling.png is a dangling link"),
    ],
)
def test_a_list_that_cannot_be_read_says_where(place: Path, lines: list[str], sentence: str) -> None:
    (place / "t.txt").write_text("\n".join(lines))
    with pytest.raises(UserError, match=sentence):
        open_images(f"list:{place}/t.txt")


@pytest.mark.parametrize("scheme", ["tar", "npz", "idx", "list", "csv", "pack"])
def test_paths_that_no_file_can_have_are_one_sentence(place: Path, scheme: str) -> None:
    for path, sentence in (
        ("n" * 5000, "cannot be opened .the path is longer than the file system allows"),
        ("a\0b", "it holds a NUL"),
        ("~nobody-of-this-name/x", "there is no user whose home folder"),
    ):
        with pytest.raises(UserError, match=sentence) as found:
            open_images(f"{scheme}:{path}")
        assert len(str(found.value)) < 1200
    (place / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="a link leads back to itself"):
        open_images(f"{scheme}:{place}/loop")
    if scheme != "pack":
        with pytest.raises(UserError, match="it is a pipe, and no file"):
            open_images(f"{scheme}:{place}/pipe.png")
