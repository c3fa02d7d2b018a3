"""DICOM and NIfTI: levels by the standard's formulas, frames and slices that stay together, and sentences for what cannot be read."""

import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rootstock.core.errors import UserError
from rootstock.core.images.images import Images
from rootstock.core.images.open import open_images, open_with_splits
from rootstock.core.images.pack.record import Packing
from rootstock.core.images.pack.writer import pack
from rootstock.core.images.sources.windows import Window, levels
from rootstock.core.images.store import DamagedImage
from rootstock.tests.core.images.sources.test_ways import check

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed (the extra `medical`)")
nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed (the extra `medical`)")

IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"


def write(file: Path, pixels: np.ndarray, bits: int = 16, kind: str = "MONOCHROME2", **more: Any) -> Path:
    """A DICOM file of pixels [H, W], [F, H, W] or [H, W, 3], with further elements."""
    file.parent.mkdir(parents=True, exist_ok=True)
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = EXPLICIT, "1.2", "1.2.3"
    found = pydicom.dataset.FileDataset(str(file), {}, file_meta=meta, preamble=b"\0" * 128)
    colours = pixels.ndim == 3 and kind == "RGB"
    found.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    found.Rows, found.Columns = pixels.shape[:2] if colours else pixels.shape[-2:]
    found.SamplesPerPixel, found.PhotometricInterpretation = (3 if colours else 1), kind
    if colours:
        found.PlanarConfiguration = 0
    elif pixels.ndim == 3:
        found.NumberOfFrames = len(pixels)
    found.BitsAllocated = 8 * pixels.dtype.itemsize
    found.BitsStored, found.HighBit = bits, bits - 1
    found.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in more.items():
        setattr(found, name, value)
    found.PixelData = pixels.tobytes()
    found.save_as(file, enforce_file_format=True)
    return file


def slow_level(x: float, window: tuple[str, float, float], inverted: bool) -> int:
    """PS3.3, C.11.2.1.2.1 and C.11.2.1.3, value by value, on 16 bits."""
    shape, c, w = window
    if shape == "LINEAR":
        y = 0.0 if x <= c - 0.5 - (w - 1) / 2 else 1.0 if x > c - 0.5 + (w - 1) / 2 else (x - (c - 0.5)) / (w - 1) + 0.5
    elif shape == "LINEAR_EXACT":
        y = 0.0 if x <= c - w / 2 else 1.0 if x > c + w / 2 else (x - c) / w + 0.5
    else:
        y = 1 / (1 + math.exp(-4 * (x - c) / w))
    return round((1 - y if inverted else y) * 65535)


@pytest.mark.parametrize("shape", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("inverted", [False, True])
def test_levels_are_the_standards(shape: str, inverted: bool, tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(-1000, 3000, (6, 7)).astype(np.int16)
    kind = "MONOCHROME1" if inverted else "MONOCHROME2"
    write(
        tmp_path / "a.dcm", stored, 13, kind, RescaleSlope=0.5, RescaleIntercept=-100, WindowCenter=[300, 1], WindowWidth=[901.5, 2],
        VOILUTFunction=shape,
    )  # fmt: skip
    expected = [[slow_level(0.5 * v - 100, (shape, 300, 901.5), inverted) for v in row] for row in stored.tolist()]
    images = open_images(f"dicom:{tmp_path}")
    found = images.read(0)
    assert found.dtype == torch.uint16 and found.shape == (3, 6, 7)
    assert all((channel.int() - torch.tensor(expected)).abs().max() <= 1 for channel in found)
    own = open_images(f"dicom:{tmp_path}?window=50,400").read(0)
    expected = [[slow_level(0.5 * v - 100, ("LINEAR", 50, 400), inverted) for v in row] for row in stored.tolist()]
    assert (own[0].int() - torch.tensor(expected)).abs().max() <= 1
    whole = open_images(f"dicom:{tmp_path}?window=range").read(0)[0].int()
    darkest = stored.argmax() if inverted else stored.argmin()
    assert whole.flatten()[darkest] == 0 and whole.max() == 65535
    keys = {int(open_images(f"dicom:{tmp_path}{query}").keys()[0]) for query in ("", "?window=50,400", "?window=range")}
    prints = {
        open_images(f"dicom:{tmp_path}{query}").fingerprint() for query in ("", "?window=50,400", "?window=range")
    }
    assert len(keys) == 1 and len(prints) == 3  # the same picture, differently shown


def test_windows_at_their_edges() -> None:
    values = np.array([-1.0, 0.0, 1.0, 2.0])
    assert Window(1, 1).share(values).tolist() == [0, 0, 1, 1]  # no value lies between
    assert Window(1, 2).share(values).tolist() == [0, 0, 1, 1]
    assert Window(1, 2, "LINEAR_EXACT").share(values).tolist() == [0, 0, 0.5, 1]
    assert levels(np.array([0, 0.5, 1]), False).tolist() == [0, 128, 255]


@pytest.mark.parametrize(("bits", "dtype"), [(8, np.uint8), (12, np.uint16), (16, np.uint16)])
def test_depth_is_kept(bits: int, dtype: type, tmp_path: Path) -> None:
    stored = np.linspace(0, 2**bits - 1, 600).astype(dtype).reshape(20, 30)
    write(tmp_path / "a.dcm", stored, bits)
    found = open_images(f"dicom:{tmp_path}").read(0)[0]
    assert found.dtype == (torch.uint8 if bits == 8 else torch.uint16)
    assert len(np.unique(found.numpy())) == len(np.unique(stored))
    colour = np.random.default_rng(1).integers(0, 2**bits, (4, 5, 3)).astype(dtype)
    write(tmp_path / "rgb" / "c.dcm", colour, bits if bits != 12 else 16, "RGB")
    assert np.array_equal(open_images(f"dicom:{tmp_path}/rgb").read(0).numpy(), colour.transpose(2, 0, 1))


def item(**values: Any) -> Any:
    found = pydicom.Dataset()
    for name, value in values.items():
        setattr(found, name, value)
    return found


def lookup(values: list[int], bits: int, first: int = 0, code: str = "<u2", **more: Any) -> Any:
    """A sequence with a lookup table."""
    data = np.array(values, code).tobytes()
    return pydicom.Sequence([item(LUTDescriptor=[len(values), first, bits], LUTData=data, **more)])


def functional(**steps: dict[str, Any]) -> Any:
    """The functional groups of a frame, or of all."""
    return item(**{f"{name}Sequence": pydicom.Sequence([item(**values)]) for name, values in steps.items()})


def test_lookup_tables_come_before_and_in_the_place_of_windows(tmp_path: Path) -> None:
    stored = np.array([[0, 1], [2, 3]], np.uint8)
    modality = lookup([3, 2, 1, 0], 8, ModalityLUTType="US")
    window = lookup([0, 10, 100, 255], 8)
    file = write(tmp_path / "a.dcm", stored, 8, ModalityLUTSequence=modality, VOILUTSequence=window)
    found = open_images(f"dicom:{file}").read(0)[0]
    assert found.tolist() == [[255, 100], [10, 0]]


@pytest.mark.parametrize("code", ["<u2", "u1"])
def test_a_table_of_8_bits_may_have_more_than_256_places(code: str, tmp_path: Path) -> None:
    stored = np.array([[-20, -10, 245], [246, 1013, 2000]], np.int16)
    table = lookup([place // 4 for place in range(1024)], 8, -10, code)
    found = open_images(f"dicom:{write(tmp_path / 'a.dcm', stored, 12, VOILUTSequence=table)}").read(0)[0]
    assert found.tolist() == [[level * 257 for level in row] for row in ([0, 0, 63], [64, 255, 255])]


def test_a_range_is_of_values_that_a_picture_has(tmp_path: Path) -> None:
    stored = np.tile(np.array([0, 2], np.uint8), (4, 4))  # the table has more for 1, which is nowhere
    table = lookup([5, 200, 10], 8, ModalityLUTType="US")
    found = open_images(f"dicom:{write(tmp_path / 'a.dcm', stored, 8, ModalityLUTSequence=table)}").read(0)[0]
    assert found.unique().tolist() == [0, 255]


FRAMES = np.arange(-20, 220, dtype=np.int16).reshape(3, 8, 10)
SLOPES, WINDOWS = [(1, -1024), (0.5, -600), (2, 30)], [(40, 400), (-500, 200), (100, 90)]


def steps_of_frame(k: int) -> dict[str, dict[str, Any]]:
    (slope, intercept), (center, width) = SLOPES[k], WINDOWS[k]
    return {
        "PixelValueTransformation": {"RescaleSlope": slope, "RescaleIntercept": intercept, "RescaleType": "US"},
        "FrameVOILUT": {"WindowCenter": center, "WindowWidth": width, "VOILUTFunction": "LINEAR_EXACT"},
    }


@pytest.mark.parametrize("query", ["", "?window=40,400", "?window=range"])
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_frames_of_enhanced_files_are_shown_as_files_of_their_own(kind: str, query: str, tmp_path: Path) -> None:
    all_steps = [steps_of_frame(k) for k in range(3)]
    plain = [{name: value for step in steps.values() for name, value in step.items()} for steps in all_steps]

    def alone(k: int, steps: int) -> torch.Tensor:
        file = write(tmp_path / f"{k}-{steps}.dcm", FRAMES[k], 16, kind, **plain[steps])
        return open_images(f"dicom:{file}{query}").read(0)

    own = [functional(**steps) for steps in all_steps]
    shared = {"SharedFunctionalGroupsSequence": pydicom.Sequence([own[1]])}
    files = {
        "own": ({"PerFrameFunctionalGroupsSequence": pydicom.Sequence(own)}, [0, 1, 2]),
        "shared": (shared, [1, 1, 1]),
        "own, else shared": (
            {**plain[2], **shared, "PerFrameFunctionalGroupsSequence": pydicom.Sequence([own[0], functional()])}, [0, 1, 1],
        ),
        "neither": ({**plain[2], "SharedFunctionalGroupsSequence": pydicom.Sequence([functional()])}, [2, 2, 2]),
    }  # fmt: skip
    for name, (elements, steps) in files.items():
        images = open_images(f"dicom:{write(tmp_path / f'{name}.dcm', FRAMES, 16, kind, **elements)}{query}")
        assert all(torch.equal(images.read(k), alone(k, steps[k])) for k in range(3)), name
        single = write(tmp_path / f"{name}, single.dcm", FRAMES[:1], 16, kind, **elements)
        assert torch.equal(open_images(f"dicom:{single}{query}").read(0), images.read(0)), name


def test_lookup_tables_of_functional_groups(tmp_path: Path) -> None:
    stored = np.array([[[0, 1], [2, 3]], [[0, 1], [2, 3]]], np.uint8)
    modality = {"ModalityLUTSequence": lookup([3, 2, 1, 0], 8, ModalityLUTType="US")}
    own = [functional(FrameVOILUT={"VOILUTSequence": lookup(table, 8)}) for table in ([0, 10, 100, 255], [9, 8, 7, 6])]
    file = write(
        tmp_path / "a.dcm", stored, 8, RescaleSlope=2, RescaleIntercept=0, WindowCenter=1, WindowWidth=2,
        SharedFunctionalGroupsSequence=pydicom.Sequence([functional(PixelValueTransformation=modality)]),
        PerFrameFunctionalGroupsSequence=pydicom.Sequence(own),
    )  # fmt: skip
    images = open_images(f"dicom:{file}")
    assert [images.read(k)[0].tolist() for k in range(2)] == [[[255, 100], [10, 0]], [[6, 7], [8, 9]]]


@pytest.mark.parametrize("query", ["", "?window=range"])
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("height", [1, 3000])  # each place is computed, or each value
@pytest.mark.parametrize(
    ("padding", "value", "limit"),
    [([-2000], -2000, None), ([-2000], 63536, None), ([4000, 4090], 4095, 3990), ([-2000, -1990], -2000, -1980)],
)
def test_padding_is_black_and_outside_of_the_range(
    padding: list[int], value: int, limit: int | None, height: int, kind: str, query: str, tmp_path: Path
) -> None:
    stored = np.tile(np.array([*padding, 1000, 1100, 1200], np.int16), (height, 1))
    file = write(tmp_path / "a.dcm", stored, 16, kind, RescaleSlope=0.5, RescaleIntercept=-7)
    header = pydicom.dcmread(file)
    for name, number in (("PixelPaddingValue", value), ("PixelPaddingRangeLimit", limit)):
        if number is not None:
            header.add_new(name, "US" if number > 32767 else "SS", number)
    header.save_as(file)
    found = open_images(f"dicom:{file}{query}").read(0)[0, 0].tolist()
    shown = [0, 32768, 65535]
    assert found == [0] * len(padding) + (shown if kind == "MONOCHROME2" else [65535, 32768, 0])


def test_a_picture_of_padding_alone_is_black(tmp_path: Path) -> None:
    file = write(tmp_path / "a.dcm", np.full((3, 3), 9, np.uint8), 8, "MONOCHROME1", PixelPaddingValue=9)
    assert open_images(f"dicom:{file}").read(0).unique().tolist() == [0]


def test_padding_goes_through_a_window_like_any_value(tmp_path: Path) -> None:
    stored = np.array([[0, 100], [120, 255]], np.uint8)
    file = write(tmp_path / "a.dcm", stored, 8, PixelPaddingValue=255, WindowCenter=128, WindowWidth=256)
    assert open_images(f"dicom:{file}").read(0)[0].tolist() == stored.tolist()


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes; patients p0 to p4 with a picture in each; a film of four frames, of 8 bits; a report without a picture."""
    place, random = tmp_path_factory.mktemp("clinic"), np.random.default_rng(0)
    for k in range(10):
        name, pixels = f"{'ab'[k % 2]}/{k}.dcm", random.integers(0, 4096, (9 + k % 3, 8)).astype(np.uint16)
        write(
            place / name,
            pixels,
            12,
            PatientID=f"p{k // 2}",
            StudyInstanceUID="1.2",
            WindowCenter=2000,
            WindowWidth=4000,
        )
    film = write(place / "a" / "film.dcm", random.integers(0, 256, (4, 6, 5)).astype(np.uint8), 8, PatientID="p0")
    film.rename(place / "a" / "FILM01")  # without an ending, as on a scanner's disk
    (place / "a" / "NOTES").write_text("no dicom")
    report = pydicom.dcmread(place / "a" / "0.dcm")
    for name in ("PixelData", "Rows", "Columns"):
        delattr(report, name)
    report.save_as(place / "b" / "report.dcm")
    return place


def groups(images: Images) -> list[int]:
    assert images.groups is not None
    return images.groups.tolist()


def test_frames_and_patients_are_not_torn(clinic: Path) -> None:
    images = open_images(f"dicom:{clinic}")
    names = [images.name(i) for i in range(len(images))]
    assert [name for name in names if "#" in name] == [f"a/FILM01#{k}" for k in range(4)]
    assert len(images) == 14 and images.classes == ("a", "b") and len(images.keys().unique()) == 14
    assert len(set(groups(images))) == 11  # ten files of one frame, and the film
    assert any("2 files that were looked at and hold no picture of DICOM" in note.sentence() for note in images.notes)
    patients = open_images(f"dicom:{clinic}?group=patient")
    assert len(set(groups(patients))) == 5
    train, test = (open_images(f"dicom:{clinic}?group=patient#{part}") for part in ("[:60%]", "[60%:]"))
    assert not set(groups(train)) & set(groups(test)) and len(train) + len(test) == 14
    assert len(open_images(f"dicom:{clinic}?frames=middle")) == len(open_images(f"dicom:{clinic}?frames=first")) == 11
    film = pydicom.dcmread(clinic / "a/FILM01").pixel_array
    middle = open_images(f"dicom:{clinic}/a/FILM01?frames=middle&window=128,256").read(0)[0]
    deep = open_images(f"dicom:{clinic}?window=128,256").read(names.index("a/FILM01#2"))[0]
    assert middle.dtype == torch.uint8 and deep.dtype == torch.uint16  # beside files of 12 bits
    assert (deep.int() / 257 - middle.int()).abs().max() <= 0.5
    assert (middle.int() - torch.from_numpy(film[2].astype(np.int64))).abs().max() <= 1
    for query, sentence in (
        ("group=series", "14 of 14 pictures have no SeriesInstanceUID"),
        ("group=person", r"group=person is unknown .known: patient, study, series, folder."),
        ("group=folder", "lies in none"),
        ("frames=last", "frames=last is unknown"),
        ("window=40", "window=40 is not understood; expected file, range, or CENTER,WIDTH"),
        ("window=40,0", "a width of at least 1"),
    ):
        with pytest.raises(UserError, match=sentence):
            open_images(f"dicom:{clinic}?{query}")


def test_files_of_any_name_are_looked_at_and_known_by_their_mark(tmp_path: Path) -> None:
    names = ("CT.1.3.6.1.4.1.5962.1.1.0.0.1", "IM-0001.2", "1.2.840.99.dat", "plain", "one.dcm")
    for k, name in enumerate(names):
        write(tmp_path / "ab"[k % 2] / name, np.full((4, 4), k, np.uint16))
    (tmp_path / "a" / "CT.9.9").write_bytes(b"no picture of DICOM" * 20)
    (tmp_path / "a" / "notes.txt").write_text("x")
    images = open_images(f"dicom:{tmp_path}")
    assert sorted(images.name(i).rpartition("/")[2] for i in range(len(images))) == sorted(names)
    notes = {note.what: note.example for note in images.notes}
    assert notes.get("files that were looked at and hold no picture of DICOM, which are not read") == "a/CT.9.9"


def test_files_of_one_patient_are_said_to_be_torn(tmp_path: Path) -> None:
    for k in range(6):
        ids: Any = {"PatientID": f"p{k // 2}", "StudyInstanceUID": f"1.{k}", "SeriesInstanceUID": f"2.{k}"}
        write(tmp_path / "a" / f"{k}.dcm", np.full((4, 4), k, np.uint16), **ids)
    (note,) = open_images(f"dicom:{tmp_path}").notes
    assert (
        note.sentence()
        == "6 files with pictures of 3 patients, which splits tear; ?group=patient keeps each on one side"
    )
    assert not open_images(f"dicom:{tmp_path}?group=patient").notes
    for k in range(6):  # one patient: then it is the series
        ids = {"PatientID": "p", "StudyInstanceUID": "1", "SeriesInstanceUID": f"2.{k // 3}"}
        write(tmp_path / "b" / f"{k}.dcm", np.full((4, 4), k, np.uint16), **ids)
    assert "of 2 series, which splits tear; ?group=series" in open_images(f"dicom:{tmp_path}/b").notes[0].what


def test_dicom_gives_what_a_folder_of_pictures_gives(clinic: Path, tmp_path: Path) -> None:
    images = open_images(f"dicom:{clinic}?group=patient")
    for i in range(len(images)):
        picture = images.read(i)[0].numpy()
        Image.fromarray(picture).save(tmp_path / f"{i:02}.png")
    check(images, open_images(f"folder:{tmp_path}"))
    packed = pack(*open_with_splits(f"dicom:{clinic}?group=patient"), tmp_path / "p.pack", Packing("raw"))
    again = open_images(f"pack:{tmp_path}/p.pack")
    assert packed.pictures == 14 and torch.equal(again.units(), images.units())
    assert all(torch.equal(again.read(i), images.read(i)) for i in range(14))


def test_damaged_dicom_is_a_damaged_picture(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.dcm", np.zeros((30, 30), np.uint16) + 5, 12).read_bytes()
    for name, content in (("short", whole[:-400]), ("header", whole[:200]), ("text", b"no picture"), ("none", b"")):
        (tmp_path / f"{name}.dcm").write_bytes(content)
    write(tmp_path / "deep.dcm", np.zeros((3, 3, 3), np.uint32), 32, "RGB")
    images = open_images(f"dicom:{tmp_path}")
    assert [images.name(i) for i in range(6)] == [
        "a.dcm",
        "deep.dcm",
        "header.dcm",
        "none.dcm",
        "short.dcm",
        "text.dcm",
    ]
    assert images.read(0).shape == (3, 30, 30)
    for i in range(1, 6):
        with pytest.raises(DamagedImage, match=re.escape(str(tmp_path / images.name(i)))):
            images.read(i)


def volume(file: Path, values: np.ndarray, affine: np.ndarray | None = None, **header: float) -> Path:
    image = nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine)
    if header:
        image.header.set_slope_inter(header["slope"], header["inter"])
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, file)
    return file


def test_slices_of_volumes(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 1000, (5, 6, 7)).astype(np.int16)
    values[..., 2] = 9  # one value only
    for name in "a/x.nii", "b/y.nii.gz":
        volume(tmp_path / name, values if name[0] == "a" else values[::-1].copy())
    images = open_images(f"nifti:{tmp_path}")
    assert len(images) == 12 and images.classes == ("a", "b") and len(set(groups(images))) == 2
    assert [images.name(i) for i in range(3)] == ["a/x.nii#0", "a/x.nii#1", "a/x.nii#3"]
    assert any("2 slices of one value only" in note.sentence() for note in images.notes)
    low, high = int(values.min()), int(values.max())
    for i, k in enumerate([0, 1, 3, 4, 5, 6]):
        found = images.read(i)[0]
        for x in range(5):
            for y in range(6):  # x to the right, y upwards
                expected = round((int(values[x, y, k]) - low) / (high - low) * 65535)
                assert abs(int(found[5 - y, x]) - expected) <= 1
    for axis, shape, count in (("axial", (6, 5), 6), ("coronal", (7, 5), 6), ("sagittal", (7, 6), 5)):
        turned = open_images(f"nifti:{tmp_path}/a/x.nii?axis={axis}")
        assert len(turned) == count and turned.read(0).shape[1:] == shape
    flipped = volume(tmp_path / "c/z.nii", values[::-1].copy(), np.diag([-1.0, 1, 1, 1]))
    assert torch.equal(open_images(f"nifti:{flipped}").read(0), images.read(0))
    windowed = open_images(f"nifti:{tmp_path}/a/x.nii?window=100,200").read(0)[0]
    assert int(windowed[5, 0]) == levels(Window(100, 200).share(values[:1, 0, 0]), True)[0]
    flipped.unlink()
    with pytest.raises(
        UserError, match=r"a part of 1 pictures would tear a group of 6 .*, or add pictures of other groups"
    ):
        open_images(f"nifti:{tmp_path}/a/x.nii#test")
    part = open_images(f"nifti:{tmp_path}#[:50%]")
    assert len(part) == 6 and len(set(groups(part))) == 1


def test_nifti_gives_what_a_folder_of_pictures_gives(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (9, 8, 12)).astype(np.uint8)
    uri = f"nifti:{volume(tmp_path / 'v/x.nii.gz', np.stack([values, 255 - values], 3))}"
    images = open_images(uri)
    assert len(images) == 24 and images.read(0).dtype == torch.uint8  # two volumes
    (tmp_path / "plain").mkdir()
    volume(tmp_path / "v/y.nii", values.astype(np.int16) * 3)
    mixed = open_images(f"nifti:{tmp_path}/v")
    assert len(mixed) == 36 and {mixed.read(i).dtype for i in range(36)} == {torch.uint16}
    for i in range(len(images)):
        assert torch.equal(mixed.read(i).int(), images.read(i).int() * 257)
        Image.fromarray(images.read(i)[0].numpy()).save(tmp_path / "plain" / f"{i:02}.png")
    check(images, open_images(f"folder:{tmp_path}/plain"))


def test_volumes_that_cannot_be_read_are_one_sentence(tmp_path: Path) -> None:
    whole = volume(tmp_path / "whole/x.nii", np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    (tmp_path / "short").mkdir()
    (tmp_path / "short/x.nii").write_bytes(whole.read_bytes()[:-20])
    (tmp_path / "text").mkdir()
    (tmp_path / "text/x.nii").write_text("no volume")
    volume(tmp_path / "flat/x.nii", np.zeros((3, 4), np.int16))
    volume(tmp_path / "endless/x.nii", np.full((3, 4, 5), np.inf, np.float32))
    volume(tmp_path / "one/x.nii", np.zeros((3, 4, 5), np.int16))
    for uri, sentence in (
        (f"{tmp_path}/short", "cannot be read .*; check the file, or fetch it again"),
        (f"{tmp_path}/text", "cannot be read"),
        (f"{tmp_path}/flat", r"it has the shape \[3, 4(, 1)?\]"),
        (f"{tmp_path}/endless", "it holds infinite values"),
        (f"{tmp_path}/one", "no slice of a volume"),
        (f"{tmp_path}/none", "there is no folder"),
        (f"{whole}?window=file", "window=file is of dicom:"),
        (f"{whole}?axis=top", "axis=top is unknown .known: sagittal, coronal, axial."),
        (f"{whole}?group=patient", "group=patient is unknown"),
    ):
        with pytest.raises(UserError, match=sentence):
            open_images(f"nifti:{uri}")


def test_without_their_readers_a_sentence_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for scheme, package in ("dicom", "pydicom"), ("nifti", "nibabel"):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=rf"{package} reads it.*pip install 'rootstock\[medical\]'"):
            open_images(f"{scheme}:{tmp_path}")
