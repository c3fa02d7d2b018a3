"""`rootstock measure`: what networks cost on this machine, in each form in which they run; nothing is estimated."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from ...core.environment import environment, processor, usable_cores
from ...core.evaluate.statistics import Interval
from ...core.files import expanded, path_beside, write_text
from ...core.images.images import Images
from ...core.model.macs import macs_of, parameters_of
from ...core.run.energy import EnergyMeter
from ..aloud import conclude, say
from ..doctor.machine import BUSY
from ..following import command
from ..outputs.onnx_file import OnnxSession
from .costs import FormCosts, NetworkCosts, markdown_page, printed_table, remarks
from .frames import Frames, frame_form, frames_a_second, jpeg_frames
from .latency import TIMED_ROUNDS, Form, latency_of, latency_ratio, time_in_turn
from .memory import PeakMemory, peak_memory
from .networks import TORCH, MeasuredNetwork, bytes_of, inputs_of, is_exported, open_network, pictures_for, with_graphs

FEWEST_ROUNDS = 5  # rounds of each batch size
BUSY_SAID = "the machine is busy, so times are longer than on a free one, and ratios are what holds"
_PROCESS_SECONDS = 6.0  # until a process that measures memory has its libraries
_ENERGY_SECONDS = 3.0  # NVML's counter moves some ten times a second

SecondsClock = Callable[[], float]
Peak = Callable[..., PeakMemory]


class RunnableForm(NamedTuple):
    """One form of one network, ready to be called. kind: of the process that measures its memory; path: what that one loads."""

    network: MeasuredNetwork
    form: str
    run: Callable[[torch.Tensor], Any]
    pixels: bool
    kind: str
    path: Path
    device: torch.device

    @property
    def name(self) -> str:
        return f"{self.network.title}\n{self.form}"

    def on(self, images: Images, batch: int) -> Form:
        return Form(self.name, self.run, inputs_of(self.network, images, batch, self.pixels).to(self.device))


class HowMeasured(NamedTuple):
    """threads: of torch and of ONNX Runtime; batches: pictures of a call, 1 among them; seconds: of each batch size, all forms together."""

    threads: int
    batches: tuple[int, ...]
    images: tuple[str, ...] = ()
    seconds: float = 10.0
    cuda: bool = False


def measure_networks(runs: Sequence[Path], asked: HowMeasured, out: Path | None, as_json: bool) -> int:
    """Measure, print a table, and write it to `out`. Returns the exit code 0. Raises UserError."""
    titles = list(dict.fromkeys(map(str, runs)))
    with tempfile.TemporaryDirectory() as folder:
        found, shown = network_costs(titles, asked, Path(folder))
    machine = machine_in_words(asked, shown)
    whole = {"task": "measure", **measured_on(asked, shown), "networks": [network.as_json() for network in found]}
    text = json.dumps(whole, indent=1, allow_nan=False)
    if out is not None:
        out.resolve().parent.mkdir(parents=True, exist_ok=True)
        words = command("measure", *titles, "--threads", str(asked.threads))
        is_json = out.suffix.lower() == ".json"
        write_text(out, text + "\n" if is_json else markdown_page(found, asked.batches, machine, words))
    if as_json:
        print(text)
    else:
        Console(highlight=False, width=None if os.isatty(1) else 250).print(printed_table(found, asked.batches))
        for line in remarks(found, machine):
            say(line)
    best, form, ms = min(
        ((network.title, form, costs.latency[1].median) for network in found for form, costs in network.forms.items()),
        key=lambda each: each[2],
    )
    conclude(f"measure: {best} in {form}: {ms:.3g} ms a picture, the least here", following_costs(found))
    return 0


def following_costs(found: Sequence[NetworkCosts]) -> str:
    """The next command: 8 bits for a run; for exports alone, which are not quantized any more, the comparison of their digests."""
    titles = [network.title for network in found]
    run = next((title for title in titles if not is_exported(expanded(title))), None)
    if run is None:
        return command("verify", titles[0])
    return command("quantize", run, "--calibrate", "URI", "--to", str(path_beside(run, "-quantized")))


def network_costs(
    titles: Sequence[str],
    asked: HowMeasured,
    folder: Path,
    *,
    clock: SecondsClock = time.perf_counter,
    peak: Peak = peak_memory,
) -> tuple[list[NetworkCosts], list[str]]:
    """The costs of each network, and which pictures each was shown. folder: where graphs of ONNX are written. Raises UserError."""
    opened = [open_network(title) for title in titles]
    pictures = [pictures_for(network, asked.images) for network in opened]
    opened = [
        with_graphs(network, images, folder / str(number))
        for number, (network, images) in enumerate(zip(opened, pictures, strict=True))
    ]
    ways = [_ways(network, asked) for network in opened]
    forms = sum(len(own) for own in ways)
    whole = (len(asked.batches) + 1) * asked.seconds + _PROCESS_SECONDS * forms
    say(f"measuring {forms} forms of {len(opened)} network{'s' * (len(opened) > 1)}: about {whole:.0f} s")
    all_ways = [(way, images) for own, images in zip(ways, pictures, strict=True) for way in own]
    calls = {
        batch: _timed([way.on(images, batch) for way, images in all_ways], asked, clock) for batch in asked.batches
    }
    films = [jpeg_frames(images) for images in pictures]
    frames = _frame_rates(ways, pictures, films, asked, clock)
    found = []
    for network, own, images in zip(opened, ways, pictures, strict=True):
        forms, first = dict[str, FormCosts](), own[0].name
        for way in own:
            latency = {batch: latency_of(calls[batch][way.name]) for batch in asked.batches}
            faster = None if way.name == first else latency_ratio(calls[1][first], calls[1][way.name])
            shape, dtype = (
                [1, network.channels, network.view.size, network.view.size],
                "uint8" if way.pixels else "float32",
            )
            memory = peak(way.kind, way.path, shape, dtype, asked.threads)
            joules, why = _energy(way.on(images, 1), asked.threads, clock)
            forms[way.form] = FormCosts(
                bytes_of(network, way.form), latency, faster, frames.get(way.name), memory, joules, why
            )
        found.append(_counted(network, forms))
    shown = [
        f"{images.uri} (no JPEG holds them)" if film is None else film.title
        for film, images in zip(films, pictures, strict=True)
    ]
    return found, list(dict.fromkeys(shown))


def _counted(network: MeasuredNetwork, forms: dict[str, FormCosts]) -> NetworkCosts:
    size, built = network.view.size, network.network
    macs = None if built is None else macs_of(built, network.channels, size)
    parameters = None if built is None else parameters_of(built)
    return NetworkCosts(network.title, size, network.channels, macs, parameters, forms, network.missing)


def _ways(network: MeasuredNetwork, asked: HowMeasured) -> list[RunnableForm]:
    found, cpu = list[RunnableForm](), torch.device("cpu")
    if network.network is not None:
        found.append(RunnableForm(network, TORCH, network.network, False, "torch", network.folder, cpu))
    for form, path in network.graphs.items():
        session = OnnxSession(path, asked.threads)
        found.append(RunnableForm(network, form, session, session.takes_pixels, "onnx", path, cpu))
    if asked.cuda and network.network is not None:
        other = open_network(network.title).network
        assert other is not None
        gpu = torch.device("cuda")
        form = f"PyTorch, {torch.cuda.get_device_name(gpu)}"
        found.append(RunnableForm(network, form, other.to(gpu), False, "cuda", network.folder, gpu))
    return found


def _timed(forms: Sequence[Form], asked: HowMeasured, clock: SecondsClock) -> dict[str, list[float]]:
    """As many rounds as the seconds allow, which a first round tells."""
    first = time_in_turn(forms, threads=asked.threads, rounds=1, warm=1, clock=clock)
    spent = max(1e-6, sum(calls[0] for calls in first.values()) / 1000)
    rounds = max(FEWEST_ROUNDS, min(TIMED_ROUNDS, int(asked.seconds / spent)))
    return time_in_turn(forms, threads=asked.threads, rounds=rounds, warm=rounds // 10, clock=clock)


def _frame_rates(
    ways: Sequence[Sequence[RunnableForm]],
    pictures: Sequence[Images],
    films: Sequence[Frames | None],
    asked: HowMeasured,
    clock: SecondsClock,
) -> dict[str, Interval]:
    """Frames a second by the name of the way, all in turn."""
    forms = [
        frame_form(way.on(images, 1), film, way.network.view, way.pixels)
        for own, images, film in zip(ways, pictures, films, strict=True)
        if film is not None
        for way in own
    ]
    return {name: frames_a_second(calls) for name, calls in _timed(forms, asked, clock).items()} if forms else {}


def _energy(form: Form, threads: int, clock: SecondsClock) -> tuple[float | None, str]:
    """Joules of a picture, and why there are none. One picture after the other, for some seconds."""
    meter, began, pictures = EnergyMeter([form.images.device]), clock(), 0
    if meter.why:
        return None, meter.why
    while clock() - began < _ENERGY_SECONDS:
        pictures += len(time_in_turn([form], threads=threads, rounds=TIMED_ROUNDS, warm=0)[form.name])
    joules = meter.joules()
    return (None, meter.why) if joules is None else (joules / pictures, "")


def measured_on(asked: HowMeasured, shown: Sequence[str]) -> Mapping[str, Any]:
    """The machine and how it was measured."""
    from importlib.metadata import PackageNotFoundError, version

    here = environment()
    versions = dict(here["versions"])
    for name in ("onnxruntime", "pillow", "simplejpeg"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    facts = {key: here[key] for key in ("host", "processor", "started", "commit")}
    return {
        **facts,
        "versions": versions,
        "threads": asked.threads,
        "load": os.getloadavg()[0],
        "pictures": list(shown),
    }


def machine_in_words(asked: HowMeasured, shown: Sequence[str]) -> str:
    """One line below the table."""
    about = measured_on(asked, shown)
    named = ", ".join(f"{name} {found}" for name in ("torch", "onnxruntime") if (found := about["versions"].get(name)))
    busy = f"; {BUSY_SAID}" if about["load"] >= BUSY * usable_cores() else ""
    return (
        f"On {processor()}, {asked.threads} thread{'s' * (asked.threads > 1)}, load average {about['load']:.1f}{busy} ({named}). Calls in "
        "turn: median and 95th percentile by the wall clock, ratios paired by round with 95 % bootstrap intervals. Frames: "
        f"{'; '.join(shown)}"
    )
