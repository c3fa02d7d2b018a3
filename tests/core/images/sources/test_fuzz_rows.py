"""Any Parquet, Arrow, DICOM and NIfTI is read, or refused with a sentence."""

import gzip
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from rootstock.core.images.open import open_images
from rootstock.tests.fuzz import DEPTHS, changed, fuzz, read_all

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra `parquet`)")
pq = pytest.importorskip("pyarrow.parquet")
nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed (the extra `medical`)")
pytest.importorskip("pydicom", reason="pydicom is not installed (the extra `medical`)")
from rootstock.tests.core.images.sources.test_medical import write  # noqa: E402 - it needs both


def rows() -> object:
    pictures = []
    for k in range(4):
        stream = io.BytesIO()
        Image.new("RGB", (3 + k, 4), (60 * k, 9, 200)).save(stream, "PNG")
        pictures.append({"bytes": stream.getvalue(), "path": f"{k}.png"})
    label = {"info": {"features": {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}}}
    found = pa.table(
        {"image": pictures, "label": [0, 1, 1, 0], "group": ["x", "x", "y", "z"], "tags": [["u"], [], None, ["u", "v"]]}
    )
    return found.replace_schema_metadata({"huggingface": json.dumps(label)})


def parquet(compression: str) -> bytes:
    stream = io.BytesIO()
    pq.write_table(rows(), stream, compression=compression, row_group_size=2)
    return stream.getvalue()


def arrow(compression: str | None) -> bytes:
    stream = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(stream, rows().schema, options=options) as writer:  # pyright: ignore[reportAttributeAccessIssue]
        writer.write_table(rows(), max_chunksize=3)
    return stream.getvalue()


OPTIONS = st.sampled_from(
    ("", "", "?group=group", "?label=tags", "?labels=none", "?image=label", "?domain=group#[:50%]", "?max_size=1KB")
)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_any_rows_are_read_or_refused(kind: str, depth: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "x"}]}')
    wholes = [parquet("none"), parquet("snappy")] if kind == "parquet" else [arrow(None), arrow("lz4")]
    uri = f"parquet:{tmp_path}/x" if kind == "parquet" else f"hf:{tmp_path}"

    def attempt(drawn: tuple[bytes, str]) -> None:
        content, options = drawn
        (tmp_path / "x").write_bytes(content)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        read_all(open_images(uri + options))

    contents = st.sampled_from(wholes).flatmap(changed) | st.binary(max_size=200)
    fuzz(kind, st.tuples(contents, OPTIONS), attempt, depth, examples=100, share=0.5)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("kind", ["dicom", "nifti"])
@pytest.mark.filterwarnings("ignore")  # the readers warn of what is odd, and a command goes on
def test_any_medical_file_is_read_or_refused(
    kind: str, depth: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    values = np.arange(60, dtype=np.int16)
    if kind == "dicom":
        frames = write(
            tmp_path / "two.dcm", values.reshape(2, 5, 6).astype(np.uint16), 12, WindowCenter=9, WindowWidth=20
        )
        colour = write(tmp_path / "rgb.dcm", values.astype(np.uint8).reshape(4, 5, 3), 8, "RGB")
        wholes, name = [frames.read_bytes(), colour.read_bytes()], "x.dcm"
        options = st.sampled_from(("", "?window=range", "?window=40,400", "?frames=middle", "?group=patient"))
    else:
        nibabel.save(nibabel.Nifti1Image(values.reshape(3, 4, 5), np.eye(4)), tmp_path / "x.nii")
        wholes, name = [(tmp_path / "x.nii").read_bytes()], "x.nii"
        options = st.sampled_from(("", "?axis=coronal", "?window=3,9", "?max_size=10B"))
    (tmp_path / "set").mkdir()

    def attempt(drawn: tuple[bytes, str, bool]) -> None:
        content, option, packed = drawn
        packed = packed and kind == "nifti"
        for old in (tmp_path / "set").iterdir():
            old.unlink()
        (tmp_path / "set" / (name + ".gz" * packed)).write_bytes(gzip.compress(content, 1) if packed else content)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        read_all(open_images(f"{kind}:{tmp_path}/set{option}"))

    contents = st.sampled_from(wholes).flatmap(changed) | st.binary(max_size=400)
    fuzz(kind, st.tuples(contents, options, st.booleans()), attempt, depth, examples=100, share=0.5)
