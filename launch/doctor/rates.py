"""Speed of decoding images on a core, and of reading them from the disk under the current folder.

Short measurements that show which of the two would limit a training; benchmarks/input.py measures the whole input pipeline.
"""

import io
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ...core.environment import usable_cores
from ...core.interrupt import stop_signals
from .findings import Finding, short_message
from .machine import BYTES_PER_GIB

SIDES, QUALITY = (500, 375), 97  # files at this quality are about as large as ImageNet's
ROUNDS, SECONDS = 5, 0.2  # decoding: number of measurements, and CPU time of each
SMALL_FILES = 128
SMALL, LARGE, BLOCK = (
    112 * 2**10,
    48 * 2**20,
    2**20,
)  # bytes of a small file, of the large one, of one read; 62 MiB in all
READ_ROUNDS = 3


class Rate(NamedTuple):
    """A rate per second, from repeated measurements."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Rate":
        return cls(statistics.mean(values), min(values), max(values))

    def in_words(self, unit: str) -> str:
        return f"{self.mean:,.0f} {unit} ({self.low:,.0f} to {self.high:,.0f})"


def rates() -> Iterator[Finding]:
    """Check decoding, then reading, which should not be slower than decoding."""
    files = photographs(8)
    decoded, size = measure_decoding(files), round(statistics.mean(len(file) for file in files))
    cores = usable_cores()
    yield Finding(
        "ok",
        "decoding",
        f"{decoded.in_words('images/s per core')} of JPEGs of {SIDES[0]} x {SIDES[1]} pixels and {size / 1000:.0f} kB; "
        f"{cores} cores decode up to {cores * decoded.mean:,.0f} images/s, without crops",
        {
            "images_per_s_per_core": decoded._asdict(),
            "cores": cores,
            "width": SIDES[0],
            "height": SIDES[1],
            "bytes": size,
        },
    )
    yield measure_reading(Path.cwd(), decoded.mean, size)


def photographs(count: int) -> list[bytes]:
    """JPEG files of random parts of scikit-learn's two photographs, SIDES pixels each."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    sources = [Image.fromarray(picture) for picture in load_sample_images().images]
    drawn, files = random.Random(0), []
    for k in range(count):
        source, content = sources[k % len(sources)], io.BytesIO()
        left, top = (drawn.uniform(0, whole - side) for whole, side in zip(source.size, SIDES, strict=True))
        part = source.crop((round(left), round(top), round(left) + SIDES[0], round(top) + SIDES[1]))
        part.save(content, "JPEG", quality=QUALITY)
        files.append(content.getvalue())
    return files


def measure_decoding(files: Sequence[bytes]) -> Rate:
    """Images per second of CPU time, decoded as the loader's workers do it."""
    from ...core.images.decode import decode

    def once() -> None:
        for file in files:
            decode(file, "a photograph")

    once()  # the first call also selects the decoder
    found = []
    for _ in range(ROUNDS):
        count, start = 0, time.process_time()
        while (spent := time.process_time() - start) < SECONDS:
            once()
            count += len(files)
        found.append(count / spent)
    return Rate.of(found)


def measure_reading(folder: Path, decoded: float, size: int) -> Finding:
    """Read small files in random order and a large one sequentially, after dropping them from the page cache where possible.

    decoded: images/s that a core decodes. size: bytes of such an image.
    """
    free = shutil.disk_usage(folder).free
    if free < BYTES_PER_GIB or not os.access(folder, os.W_OK):
        why = (
            f"only {free / BYTES_PER_GIB:.1f} GiB are free in" if free < BYTES_PER_GIB else "no permission to write in"
        )
        return Finding("note", "reading", f"not measured: {why} {folder}")
    try:
        with stop_signals() as requests:

            def go_on() -> None:
                if requests:
                    raise KeyboardInterrupt  # so that the temporary folder is removed on the way out

            with tempfile.TemporaryDirectory(dir=folder, prefix=".rootstock-doctor-") as scratch:
                uncached, files, large = _measured(Path(scratch), go_on)
            go_on()
    except OSError as error:  # for example a quota
        return Finding("note", "reading", f"not measured: no file can be written in {folder} ({short_message(error)})")
    return reading_finding(uncached, files, large, decoded, size)


def reading_finding(uncached: bool | None, files: Rate, large: Rate, decoded: float, size: int) -> Finding:
    """What the rates mean. uncached: whether the disk was read and not the page cache; None if unknown. files: small files/s.
    large: bytes/s of a large file.
    """
    megabytes = Rate(*(value / 1e6 for value in large))
    text = (
        f"{files.in_words('small files/s')} of {SMALL // 1024} KiB in random order by one reader, {megabytes.in_words('MB/s')} read "
        f"sequentially, {large.mean / size:,.0f} images/s of a pack"
    )
    facts = {"files_per_s": files._asdict(), "bytes_per_s": large._asdict(), "page_cache_avoided": uncached}
    if uncached is False:
        return Finding(
            "note",
            "reading",
            f"{text}; the page cache could not be emptied, so this is the speed of memory, not of the disk",
            facts,
        )
    if uncached is None:
        text += "; whether the page cache was avoided is unknown here"
    if files.mean < decoded:
        remedy = (
            f"slower than one core decodes ({decoded:,.0f} images/s): pack the set (`rootstock data URI --pack FOLDER`) and read it in "
            "order (data.shuffle={name: blocks}), or use more run.workers"
        )
        return Finding("note", "reading", f"{text}; {remedy}", facts)
    return Finding("ok", "reading", text, facts)


def _measured(folder: Path, go_on: Callable[[], None]) -> tuple[bool | None, Rate, Rate]:
    """(page cache avoided, small files/s, bytes/s of a large file). go_on: called between reads; raises to stop."""
    content = os.urandom(BLOCK)  # random bytes, which no disk compresses
    paths = [folder / f"{k:04}" for k in range(SMALL_FILES)]
    large = folder / "large"
    for path in paths:
        _write(path, content, SMALL)
    _write(large, content, LARGE)
    uncached = leaves_page_cache(paths[0], content)
    drawn, small_rates, large_rates = random.Random(0), [], []
    for _ in range(READ_ROUNDS):
        for path in (*paths, large):
            _drop(path)
        drawn.shuffle(paths)
        start = time.perf_counter()
        for path in paths:
            path.read_bytes()
            go_on()
        small_rates.append(len(paths) / (time.perf_counter() - start))
        start = time.perf_counter()
        with open(large, "rb", buffering=0) as file:
            while file.read(BLOCK):
                go_on()
        large_rates.append(LARGE / (time.perf_counter() - start))
    return uncached, Rate.of(small_rates), Rate.of(large_rates)


def _write(path: Path, content: bytes, size: int) -> None:
    """Write `content` repeatedly, `size` bytes in all, and flush to the disk: only clean pages can be dropped from the cache."""
    with open(path, "wb", buffering=0) as file:
        for at in range(0, size, len(content)):
            file.write(content[: size - at])
        os.fsync(file.fileno())


def _drop(path: Path) -> None:
    """Ask the kernel to drop a file's pages from the cache; does nothing where it cannot (macOS)."""
    if hasattr(os, "posix_fadvise"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def leaves_page_cache(path: Path, content: bytes) -> bool | None:
    """Whether the kernel drops a file of this folder from the page cache; None if unknown (not Linux, some mounts).

    The file is rewritten first, so that this test, which may load the file into memory, disturbs no measurement.
    """
    if not hasattr(os, "RWF_NOWAIT"):
        return None
    _write(path, content, SMALL)
    _drop(path)
    with open(path, "rb", buffering=0) as file:
        try:
            os.preadv(file.fileno(), [bytearray(1)], SMALL // 2, os.RWF_NOWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return None
    return False
