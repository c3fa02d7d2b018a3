"""The input pipeline against its peers, at equal work: two SimCLR views of each picture, normalised floats, stacked.

    python benchmarks/input.py [--files96 URI] [--files224 URI] [--markdown benchmarks/input.md] [--gate]

Interleaved trials of one thread a process. Without URIs it makes its own JPEG files from two photographs that come with
scikit-learn, so it runs anywhere. `--gate` exits with 1 if a gate fails; `--toy` only checks that everything runs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import page
import peers
import torch
from peers import MEAN, SIGMA, STD, Job, counted, said
from pictures import jpeg_files, photographs
from timing import Contender, Costs, Interval, Timer, by_the_clock, interleaved, on_one_core

from rootstock.core.draws import Draws
from rootstock.core.images.decode import decode
from rootstock.core.images.open import open_images, open_with_splits
from rootstock.core.images.pack.record import Packing
from rootstock.core.images.pack.writer import pack
from rootstock.core.method import RawBatch
from rootstock.core.stream.batches import Order, stream
from rootstock.core.views.multiview import multiview
from rootstock.core.views.presets import VIEWS

CPU = torch.device("cpu")


class Measures(NamedTuple):
    """Sizes and numbers of pictures, and the length of a trial."""

    small: int = 32
    middle: int = 96
    large: int = 224
    picture: tuple[int, int] = (500, 375)  # width, height of the large files
    batches: tuple[int, int, int] = (256, 64, 64)  # of the three sizes
    images: int = 512
    seconds: float = 0.4


TOY = Measures(16, 16, 24, (48, 36), (4, 4, 4), 8, 0.0)


class Section(NamedTuple):
    key: str
    title: str
    contenders: list[Contender]
    timer: Timer
    against: str  # the row that all are compared with


class Gate(NamedTuple):
    """`slower` takes at least `floor` times as long as `faster`."""

    what: str
    section: str
    slower: str
    faster: str
    floor: float


KEYS = ("memory", *(name + px for px in ("96", "224") for name in ("files", "moved", "loader")), "decode")
GATES = (
    Gate("32 px from memory, over lightly", "memory", "lightly SimCLRTransform", "ours", 10.0),
    Gate("224 px from JPEG files, over lightly", "files224", "lightly SimCLRTransform", "ours", 1.5),
    Gate("96 px, one worker over lightly's", "loader96", "lightly SimCLRTransform, 1 worker", "ours, 1 worker", 5.0),
    Gate("96 px, two workers over one", "loader96", "ours, 1 worker", "ours, 2 workers", 1.8),
)


class Ours:
    """Our pipeline as in a run: order, stream, crops, photometry. The blur is as wide in pixels as the peers' blur."""

    def __init__(self, uri: str, job: Job) -> None:
        self.images, self.job = open_images(uri, role="unlabelled"), job
        sigma = (SIGMA[0] * 224 / job.size, SIGMA[1] * 224 / job.size)
        self.views = multiview(VIEWS["simclr"](blur_sigma=sigma), job.size, MEAN, STD, 2)

    def samples(self, batches: int, workers: int = 0) -> Iterator[RawBatch]:
        order = Order(len(self.images), self.job.batch, 0)
        for (sample,) in stream(self.images, order, self.views, steps=batches, device=CPU, workers=workers)(0):
            yield sample

    def finished(self, sample: RawBatch) -> int:
        return counted(list(self.views(sample, Draws(0, sample.positions)).images), self.job.size)

    def whole(self, name: str = "ours", workers: int = 0) -> Contender:
        return Contender(name + said(workers), lambda n: (self.finished(sample) for sample in self.samples(n, workers)))

    def crops(self, name: str = "ours", workers: int = 0) -> Contender:
        """The work of a loader process: read, decode, crop."""
        return Contender(name + said(workers), lambda n: (self.cropped(sample) for sample in self.samples(n, workers)))

    def cropped(self, sample: RawBatch) -> int:
        """The number of source images. Raises ValueError unless only photometry is left to do."""
        if sample.images.shape[1:] != (2, 3, self.job.size, self.job.size):
            raise ValueError(f"not two crops of {self.job.size} px: {tuple(sample.images.shape)}")
        return len(sample.images)

    def photometry(self, name: str) -> Contender:
        """The work that is left for the device, here the CPU."""
        (cropped,) = self.samples(1)
        return Contender(name, lambda n: (self.finished(cropped) for _ in range(n)))


def packed(source: str, target: Path, packing: Packing) -> str:
    """The URI of a pack of `source`, as `rootstock data SOURCE --pack TARGET` writes it."""
    images, splits = open_with_splits([source])
    pack(images, splits, target, packing)
    return f"pack:{target}"


def sections(
    measures: Measures, folder: Path, uris: tuple[str | None, str | None], wanted: Callable[[str], bool]
) -> Iterator[Section]:
    """The chosen sections; each is measured before the next is built."""
    if wanted("memory"):
        yield memory(measures, folder)
    small, large = (measures.middle, measures.middle), measures.picture
    for k, (key, size, sides) in enumerate((("96", measures.middle, small), ("224", measures.large, large))):
        paths = jpeg_files(uris[k], folder / key, sides, measures.images)
        job = Job(paths, size, measures.batches[k + 1])
        for name, build in (("files", files), ("moved", moved), ("loader", loaders)):
            if wanted(name + key):
                yield build(name + key, job, folder)
    if wanted("decode"):
        yield decoding(job)  # pyright: ignore[reportPossiblyUnboundVariable]


def memory(measures: Measures, folder: Path) -> Section:
    side = measures.small
    pixels = np.stack([np.asarray(picture) for picture in photographs(side, side, measures.images)])
    np.savez(folder / "memory.npz", images=pixels)
    job = Job(pixels, side, measures.batches[0])
    contenders = [Ours(f"npz:{folder / 'memory.npz'}", job).whole(), *peers.whole(job)]
    title = f"{side} px from memory: the whole pipeline on one core, batches of {job.batch}"
    return Section("memory", title, contenders, on_one_core, "ours")


def files(key: str, job: Job, folder: Path) -> Section:
    short = job.size * 8 // 7
    contenders = [Ours(job.uri, job).whole()]
    for name, packing in (
        ("original files", Packing("original")),
        ("raw", Packing("raw")),
        (f"raw, shorter side {short}: other pixels", Packing("raw", short=short)),
    ):
        uri = packed(job.uri, folder / f"{key}-pack{len(contenders)}", packing)
        contenders.append(Ours(uri, job).whole(f"ours from a pack ({name})"))
    title = f"{job.size} px from JPEG files: the whole pipeline on one core, batches of {job.batch}"
    return Section(key, title, [*contenders, *peers.whole(job)], on_one_core, "ours")


def moved(key: str, job: Job, folder: Path) -> Section:
    ours = Ours(job.uri, job)
    contenders = [
        ours.whole(),
        ours.crops("of it in the worker: read, decode, crop"),
        ours.photometry("of it moved to the device: photometry, normalising"),
    ]
    title = f"{job.size} px: work moved (no speed-up: what the worker no longer does, the device does)"
    return Section(key, title, contenders, on_one_core, "ours")


def loaders(key: str, job: Job, folder: Path) -> Section:
    ours = Ours(job.uri, job)
    contenders = [
        made(job, workers=workers) if made else ours.crops(workers=workers)
        for workers in (1, 2)
        for made in (None, peers.lightly, peers.torchvision_tensor)
    ]
    title = f"{job.size} px from JPEG files: what loader workers deliver (ours: crops, the rest is the device's)"
    return Section(key, title, contenders, by_the_clock, "ours, 1 worker")


def decoding(job: Job) -> Section:
    ways: dict[str, Callable[[bytes], Any]] = {"ours": lambda content: decode(content, "a picture"), **peers.decoders()}
    contents = [Path(path).read_bytes() for path in job.pictures]

    def contender(name: str, way: Callable[[bytes], Any]) -> Contender:
        dataset = peers.Transformed(contents, way, lambda pixels: 0)
        return Contender(name, lambda n: (len(zeros) for zeros in peers.loader(dataset, job.batch, n, workers=1)))

    title = "Decoding the files of the 224 px rows in one DataLoader worker (nothing travels)"
    return Section("decode", title, [contender(*way) for way in ways.items()], by_the_clock, "ours")


def checked(costs: dict[str, Costs]) -> list[tuple[str, str, bool]]:
    """For each measured gate: its name, its value with the floor, and whether the median reaches the floor."""
    rows = []
    for gate in GATES:
        if gate.section in costs:
            ratio = Interval.ratio(costs[gate.section][gate.slower], costs[gate.section][gate.faster])
            rows.append((gate.what, f"{page.spoken(ratio)} (floor {gate.floor:g})", ratio.median >= gate.floor))
    return rows


def heading(arguments: list[str], asked: argparse.Namespace) -> list[str]:
    rows = ((96, asked.files96), (224, asked.files224))
    drawn = "drawn (parts of scikit-learn's two photographs)"
    origins = [f"for {px} px {page.shown(uri) if uri else drawn}" for px, uri in rows]
    return [
        "# The input pipeline",
        "",
        f"Command: `python benchmarks/input.py {' '.join(page.shown(word) for word in arguments)}`, "
        f"{time.strftime('%Y-%m-%d', time.gmtime())}. n = {asked.trials} interleaved trials: medians [quartiles]; ratios are "
        "medians of the rounds' own ratios [95 % bootstrap interval over rounds]. One thread a process. CPU time where one "
        "process does everything, wall-clock time where loader workers run.",
        "",
        "Equal work: two views of each source image by SimCLR's augmentation at lightly's parameters, finished to normalised "
        f"floats and stacked; ours blurs as many pixels as the peers do. JPEG files: {', '.join(origins)}.",
        "",
        page.machine(),
    ]  # fmt: skip


def options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--files96", metavar="URI", help="folder:PATH or tar:PATH of JPEG files for the 96 px rows")
    parser.add_argument("--files224", metavar="URI", help="likewise for the 224 px rows (ImageNet's: about 500 x 375)")
    parser.add_argument("--trials", type=int, default=9, help="rounds (9)")
    parser.add_argument("--only", metavar="KEY,...", help=", ".join(KEYS))
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the tables there as well")
    parser.add_argument("--gate", action="store_true", help="exit with 1 where a gate does not hold")
    parser.add_argument("--toy", action="store_true", help="tiny sizes: tells only whether everything runs")
    asked = parser.parse_args(arguments)
    page.check_options(parser, asked)
    if unknown := [key for key in (asked.only or KEYS[0]).split(",") if key not in KEYS]:
        parser.error(f"--only {unknown[0]}: expected some of {', '.join(KEYS)}")
    return asked


def main(arguments: list[str]) -> int:
    asked = options(arguments)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*capabilities of TorchVision are deprecated.*")
    measures = TOY if asked.toy else Measures()
    only = asked.only.split(",") if asked.only else []
    lines, costs = heading(arguments, asked), {}
    with tempfile.TemporaryDirectory() as folder:
        uris = (asked.files96, asked.files224)
        for section in sections(measures, Path(folder), uris, lambda key: not only or key in only):
            before = os.getloadavg()[0]
            found = interleaved(section.contenders, section.timer, asked.trials, measures.seconds)
            load = f"{before:.1f} before, {os.getloadavg()[0]:.1f} after"
            part = page.table(section.title, load, found, section.against, section.timer is by_the_clock)
            print("\n".join(part), flush=True)
            lines += part
            costs[section.key] = found
    gates = checked(costs)
    rest = ["", "## Without a row", "", *(f"- {name}: {why}" for name, why in peers.missing().items())]
    rest += ["", "## Gates", "", "| gate | times | holds |", "|---|---|---|"]
    rest += [page.row([what, figure, "yes" if holds else "no"]) for what, figure, holds in gates]
    print("\n".join(rest))
    if asked.markdown:
        asked.markdown.write_text("\n".join(lines + rest) + "\n")
    failed = not gates or not all(holds for _, _, holds in gates)  # a gate that was not measured fails
    return 1 if asked.gate and failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
