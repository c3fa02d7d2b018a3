"""How fast pictures can be had here: decoded on a core, and read from the disk under the current folder.

Short measurements that tell which of the two a training would wait for; what a whole pipeline delivers is benchmarks/input.py's.
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

SIDES, QUALITY = (500, 375), 97  # at this quality, files about as large as ImageNet's
ROUNDS, SECONDS = 5, 0.2  # of decoding
SMALL_FILES, SMALL, LARGE, BLOCK = 128, 112 * 2**10, 48 * 2**20, 2**20  # bytes on the disk: 62 MiB in all
READ_ROUNDS = 3


class Rate(NamedTuple):
    """Of repeated measurements, in whatever a second."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Rate":
        return cls(statistics.mean(values), min(values), max(values))

    def spoken(self, unit: str) -> str:
        return f"{self.mean:,.0f} {unit} ({self.low:,.0f} to {self.high:,.0f})"


def rates() -> Iterator[Finding]:
    """Decoding, and reading, which is judged by whether decoding would wait for it."""
    files = photographs(8)
    decoded, size = measure_decoding(files), round(statistics.mean(len(file) for file in files))
    cores = usable_cores()
    yield Finding(
        "ok",
        "decoding",
        f"{decoded.spoken('images/s per core')} of JPEGs of {SIDES[0]} x {SIDES[1]} pixels and {size / 1000:.0f} kB, alone; "
        f"{cores} cores feed up to {cores * decoded.mean:,.0f} images/s, crops not counted",
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
    """Images a second of CPU time, decoded as loader workers do it."""
    from ...core.images.decode import decode

    def once() -> None:
        for file in files:
            decode(file, "a photograph")

    once()  # the first call also chooses the decoder
    found = []
    for _ in range(ROUNDS):
        count, start = 0, time.process_time()
        while (spent := time.process_time() - start) < SECONDS:
            once()
            count += len(files)
        found.append(count / spent)
    return Rate.of(found)


def measure_reading(folder: Path, decoded: float, size: int) -> Finding:
    """Small files in random order, and one large one from end to end, out of the page cache where that can be emptied.

    decoded: images/s that a core decodes. size: bytes of such an image.
    """
    free = shutil.disk_usage(folder).free
    if free < BYTES_PER_GIB or not os.access(folder, os.W_OK):
        why = f"only {free / BYTES_PER_GIB:.1f} GiB are free in" if free < BYTES_PER_GIB else "one cannot write in"
        return Finding("note", "reading", f"not measured: {why} {folder}")
    try:
        with stop_signals() as asked:

            def go_on() -> None:
                if asked:
                    raise KeyboardInterrupt  # leaves through the folder's removal

            with tempfile.TemporaryDirectory(dir=folder, prefix=".rootstock-doctor-") as scratch:
                gone, files, large = _measured(Path(scratch), go_on)
            go_on()
    except OSError as error:  # a quota, say
        return Finding("note", "reading", f"not measured: files cannot be written in {folder} ({short_message(error)})")
    return reading_finding(gone, files, large, decoded, size)


def reading_finding(gone: bool | None, files: Rate, large: Rate, decoded: float, size: int) -> Finding:
    """What the rates mean. gone: whether the page cache was empty of what was read; None where that cannot be told. files: small
    files/s. large: bytes/s of a large one."""
    megabytes = Rate(*(value / 1e6 for value in large))
    said = (
        f"{files.spoken('small files/s')} of {SMALL // 1024} KiB in random order by one reader, {megabytes.spoken('MB/s')} from end "
        f"to end, {large.mean / size:,.0f} images/s of a pack"
    )
    facts = {"files_per_s": files._asdict(), "bytes_per_s": large._asdict(), "page_cache_avoided": gone}
    if gone is False:
        return Finding(
            "note", "reading", f"{said}; the page cache could not be emptied, so this is memory, not the disk", facts
        )
    if gone is None:
        said += "; whether the page cache was avoided cannot be told here"
    if files.mean < decoded:
        remedy = (
            f"slower than a core decodes ({decoded:,.0f} images/s): pack the set (`rootstock data URI --pack FOLDER`) and read it in "
            "order (data.shuffle={name: blocks}), or use more run.workers"
        )
        return Finding("note", "reading", f"{said}; {remedy}", facts)
    return Finding("ok", "reading", said, facts)


def _measured(folder: Path, go_on: Callable[[], None]) -> tuple[bool | None, Rate, Rate]:
    """Whether the page cache was avoided, small files/s, and bytes/s of a large one. go_on: called between reads."""
    content = os.urandom(BLOCK)  # what no disk compresses
    paths = [folder / f"{k:04}" for k in range(SMALL_FILES)]
    large = folder / "large"
    for path in paths:
        _write(path, content, SMALL)
    _write(large, content, LARGE)
    gone = leaves_page_cache(paths[0], content)
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
    return gone, Rate.of(small_rates), Rate.of(large_rates)


def _write(path: Path, content: bytes, size: int) -> None:
    """`size` bytes of `content` again and again, down to the disk, as only clean pages leave the cache."""
    with open(path, "wb", buffering=0) as file:
        for at in range(0, size, len(content)):
            file.write(content[: size - at])
        os.fsync(file.fileno())


def _drop(path: Path) -> None:
    """Ask the kernel to forget a file's pages; where it cannot be asked (macOS), nothing."""
    if hasattr(os, "posix_fadvise"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def leaves_page_cache(path: Path, content: bytes) -> bool | None:
    """Whether a file in this folder leaves the page cache when asked to; None where the kernel does not tell (not Linux, some mounts).

    The file is written anew, so that looking at it disturbs no measurement: asking for what is not in memory may fetch it.
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
