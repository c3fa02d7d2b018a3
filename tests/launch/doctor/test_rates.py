"""Rates that the doctor measures: real reads and images, from the disk and not from memory; no file is left behind."""

import errno
import os
import shutil
import signal
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from rootstock.core.images.decode import decode, decode_by_pillow, plain_jpeg_size
from rootstock.launch.doctor import rates
from rootstock.launch.doctor.rates import Rate, reading_finding

DECODED, SIZE = 1000.0, 100_000
SLOW, QUICK, LARGE = Rate(400, 390, 410), Rate(4000, 3900, 4100), Rate(2e9, 1e9, 3e9)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few and small files, for tests in which the rates do not matter."""
    monkeypatch.setattr(rates, "SMALL_FILES", 4)
    monkeypatch.setattr(rates, "LARGE", 2 * rates.BLOCK)


@pytest.mark.usefixtures("few")
def test_reading_measures_files_under_the_folder_and_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    dropped: list[str] = []
    plain, drop = Path.read_bytes, rates._drop

    def reading(path: Path) -> bytes:
        content = plain(path)
        assert len(content) == rates.SMALL
        read.append(path.name)
        return content

    def dropping(path: Path) -> None:
        dropped.append(path.name)
        drop(path)

    monkeypatch.setattr(Path, "read_bytes", reading)
    monkeypatch.setattr(rates, "_drop", dropping)
    finding = rates.measure_reading(tmp_path, decoded=1e-9, size=SIZE)
    small = [f"{k:04}" for k in range(4)]
    assert sorted(read) == sorted(small * rates.READ_ROUNDS)
    assert sorted(dropped[-5 * rates.READ_ROUNDS :]) == sorted([*small, "large"] * rates.READ_ROUNDS)
    assert finding.facts["files_per_s"]["mean"] > 0 and finding.facts["bytes_per_s"]["mean"] > 0
    # A file system in memory is said to be one.
    assert finding.verdict == ("note" if finding.facts["page_cache_avoided"] is False else "ok"), finding.message
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("few")
def test_a_cache_that_stays_full_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with TemporaryDirectory() as disk:  # those of other tests may lie in memory (tests/conftest.py)
        if rates.leaves_page_cache(Path(disk) / "file", b"0" * rates.BLOCK) is None:
            pytest.skip("this file system does not tell what is in the page cache")
        monkeypatch.setattr(rates, "_drop", lambda path: None)
        finding = rates.measure_reading(Path(disk), DECODED, SIZE)
    assert finding.verdict == "note" and "this is the speed of memory, not of the disk" in finding.message
    assert finding.facts["page_cache_avoided"] is False


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (BlockingIOError(errno.EAGAIN, "would wait"), True),
        (OSError(errno.EOPNOTSUPP, "unsupported"), None),
        (None, False),
    ],
)
def test_the_kernel_is_asked_whether_pages_are_in_memory(
    answer: OSError | None, expected: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped: list[Path] = []

    def preadv(file: int, buffers: list[bytearray], offset: int, flags: int) -> int:
        assert flags == 8 and 0 < offset < rates.SMALL  # RWF_NOWAIT of Linux
        assert dropped == [tmp_path / "file"]
        if answer is not None:
            raise answer
        return 1

    monkeypatch.setattr(rates, "_drop", dropped.append)
    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(os, "RWF_NOWAIT", 8, raising=False)
    assert rates.leaves_page_cache(tmp_path / "file", b"0" * rates.BLOCK) is expected
    monkeypatch.delattr(os, "RWF_NOWAIT")
    assert rates.leaves_page_cache(tmp_path / "file", b"") is None


@pytest.mark.usefixtures("few")
def test_a_request_to_stop_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asking(path: Path, content: bytes, size: int) -> None:
        write(path, content, size)
        os.kill(os.getpid(), signal.SIGTERM)

    write, read = rates._write, []
    monkeypatch.setattr(rates, "_write", asking)
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path))
    with pytest.raises(KeyboardInterrupt):
        rates.measure_reading(tmp_path, DECODED, SIZE)
    assert len(read) == 1 and not list(tmp_path.iterdir())


def test_a_disk_without_room_or_rights_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2**29}))
        finding = rates.measure_reading(tmp_path, DECODED, SIZE)
    assert finding.verdict == "note" and "only 0.5 GiB are free" in finding.message

    def full(*_: object) -> None:
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(rates, "_write", full)
    finding = rates.measure_reading(tmp_path, DECODED, SIZE)
    assert finding.verdict == "note" and "Disk quota exceeded" in finding.message and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("gone", "files", "verdict", "words"),
    [
        (True, QUICK, "ok", "20,000 images/s of a pack"),
        (True, SLOW, "note", "slower than one core decodes (1,000 images/s): pack the set"),
        (None, QUICK, "ok", "is unknown here"),
        (False, SLOW, "note", "could not be emptied"),
    ],
)
def test_what_rates_mean(gone: bool | None, files: Rate, verdict: str, words: str) -> None:
    finding = reading_finding(gone, files, LARGE, DECODED, SIZE)
    assert finding.verdict == verdict and words in finding.message
    assert "2,000 MB/s (1,000 to 3,000)" in finding.message


def test_decoding_is_that_of_loader_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Photographs of the stated size are decoded by `decode`, and each one is counted."""
    files = rates.photographs(2)
    for file in files:
        assert plain_jpeg_size(file) == rates.SIDES[::-1]
        assert torch.equal(decode(file, "a photograph"), decode_by_pillow(file, "a photograph"))
    assert files[0] != files[1]
    clock = iter(range(1000))
    monkeypatch.setattr(rates.time, "process_time", lambda: next(clock) * 0.15)
    monkeypatch.setattr(rates, "ROUNDS", 3)
    decoded: list[bytes] = []
    monkeypatch.setattr("rootstock.core.images.decode.decode", lambda file, _: decoded.append(file))
    # A round by this clock: 0.15 s after its start, below 0.2, the two files are decoded, and at 0.30 it ends.
    assert rates.measure_decoding(files) == pytest.approx((2 / 0.3,) * 3)
    assert len(decoded) == 2 * (1 + 3)
