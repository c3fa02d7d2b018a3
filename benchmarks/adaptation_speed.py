"""Compares the step of adaptation methods with the same step around the loss classes of tllib and pytorch-adapt, on one CPU core.

    python benchmarks/adaptation_speed.py --tllib FOLDER --pytorch-adapt FOLDER [--markdown benchmarks/adaptation_speed.md] [--gate]

FOLDER: a checkout; `installed` takes the installed package. Each way gets the same network, batch, optimizer and joint forward of both
domains, and is timed once a round, each round in another order. Two measurements: the step on a batch that is ready in memory, and end
to end from JPEG files, against a loop as tllib's scripts build it. `--gate` exits with 1 if ours is slower, or end to end less than
1.5 times as fast; `--toy` only checks that everything runs. tllib also needs prettytable, and pytorch-adapt pytorch-metric-learning.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import page
import torch
from adaptation_peers import PEERS, WIDTH, Made
from adaptation_whole import Files, of_ours, of_theirs, peer_loss
from fitted import Figures, Plan
from rounds import Found, Way, in_rounds
from timing import Interval
from torch import Tensor

from rootstock.adapt.registry import ADAPT_METHODS
from rootstock.core.draws import Draws
from rootstock.core.method import AdaptMethod, Domains, Labelled, Unlabelled
from rootstock.core.model.backbone import create
from rootstock.core.model.classifier import Classifier

METHODS: dict[str, dict[str, Any]] = {
    "dann": {"hidden": WIDTH},
    "cdan": {"hidden": WIDTH, "map": "exact"},  # as tllib's is by default
    "mcc": {},
    "mdd": {"hidden": WIDTH},
    "dan": {},
    "jan": {},
}
Losses = Callable[[int], Mapping[str, Callable[[], Made]]]
"""From the number of features to a peer's losses by our names."""
OURS, TLLIB, ROUNDS = "ours", "tllib", 7
STEP, WHOLE, FLOOR = "ready batch", "end to end", 1.5


class Scale(NamedTuple):
    """size: pixels. batch: images of each domain. light: the network end to end. picture: width, height of the JPEG files, of which
    there are `files` a domain.
    """

    size: int
    batch: int
    classes: int
    network: dict[str, Any]
    plan: Plan
    light: dict[str, Any]
    picture: tuple[int, int]
    files: int
    whole: Plan  # with a longer warm-up, in which loaders come to read ahead as far as they ever do


FULL = Scale(32, 64, 31, {"name": "resnet10t"}, Plan(2, 1, 5), {"name": "smallconv"}, (300, 300), 192, Plan(5, 1, 12))
TINY = {"name": "smallconv", "args": {"widths": [4, 4, 8, 8]}}
TOY = Scale(16, 4, 3, TINY, Plan(1, 1, 1), TINY, (24, 20), 6, Plan(1, 1, 1))


def classifier(scale: Scale) -> Classifier:
    torch.manual_seed(0)
    return Classifier(create(scale.size, **scale.network), [str(k) for k in range(scale.classes)])


def batch(scale: Scale) -> Domains:
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randn(2, scale.batch, 3, scale.size, scale.size, generator=generator)
    labels, draws = (
        torch.randint(scale.classes, (scale.batch,), generator=generator),
        Draws(0, torch.arange(scale.batch)),
    )
    return Domains.of(Labelled(source, labels, draws), Unlabelled(target, draws))


def timed(plan: Plan, parameters: list[torch.nn.Parameter], loss_of: Callable[[float], Tensor]) -> Figures:
    """CPU seconds a step of forward, loss, backward and SGD. loss_of: the loss, given the progress."""
    optimizer = torch.optim.SGD(parameters, 0.01, momentum=0.9, nesterov=True, weight_decay=1e-3)
    windows = []
    for window in range(plan.windows + 1):  # the first is not counted
        start = time.process_time()
        length = plan.length if window else plan.warm
        for _ in range(length):
            optimizer.zero_grad()
            loss_of(0.5).backward()
            optimizer.step()
        windows.append((time.process_time() - start) / length)
    return Figures(windows[1:], 0.0)


def ours(name: str, scale: Scale) -> AdaptMethod:
    return ADAPT_METHODS[name](classifier(scale), None, **METHODS[name]).train()


def train_ours(name: str, scale: Scale) -> Figures:
    method, pair = ours(name, scale), batch(scale)
    return timed(scale.plan, list(method.parameters()), lambda progress: method(pair, progress).loss)


def train_theirs(make: Callable[[], Made], scale: Scale) -> Figures:
    """A peer's loss on our network, in the step of tllib's scripts."""
    network, pair, made = classifier(scale).train(), batch(scale), make()
    made.modules.train()
    parameters = [*network.parameters(), *made.modules.parameters()]
    source, images = pair.source, pair.target.images
    return timed(scale.plan, parameters, lambda _: peer_loss(network, made, source.images, images, source.labels))


def train_theirs_whole(make: Callable[[], Made], scale: Scale, job: tuple[Plan, int, int, Files]) -> Figures:
    return of_theirs(classifier(scale), make(), *job)


def ways(name: str, scale: Scale, peers: dict[str, Losses], files: Files) -> Iterator[Way]:
    """Ours and the peers' on a ready batch; ours and tllib's end to end."""
    light = scale._replace(network=scale.light)
    job = (scale.whole, scale.size, scale.batch, files)
    yield Way(f"{OURS}, {STEP}", False, partial(train_ours, name, scale))
    yield Way(f"{OURS}, {WHOLE}", False, partial(of_ours, partial(ours, name, light), *job))
    for peer, losses in peers.items():
        if name in (made := losses(classifier(scale).feature_dim)):
            yield Way(f"{peer}, {STEP}", False, partial(train_theirs, made[name], scale))
        if peer == TLLIB:
            make = losses(classifier(light).feature_dim)[name]
            yield Way(f"{peer}, {WHOLE}", False, partial(train_theirs_whole, make, light, job))


def ratio(found: Found, peer: str, what: str) -> Interval | None:
    """Our steps a second divided by the peer's: the median of the rounds' ratios; None if it has no such loss."""
    own, theirs = found[f"{OURS}, {what}", False], found.get((f"{peer}, {what}", False))
    if theirs is None:
        return None
    return Interval.of_median([long / short for short, long in zip(own.seconds, theirs.seconds, strict=True)])


def line(name: str, found: Found, columns: list[tuple[str, list[str]]]) -> tuple[str, bool]:
    """A method's row, and whether it holds: the step alone is not slower than any peer's beyond noise, and the whole reaches its floor.

    columns: what is measured, with the peers that are measured beside ours.
    """
    cells, held = [name], True
    for what, peers in columns:
        cells.append(f"{1.0 / found[f'{OURS}, {what}', False].median:.2f}")
        for peer in peers:
            said = ratio(found, peer, what)
            if said is None:
                cells += ["–", "–"]
                continue
            held = held and (said.high >= 1.0 if what == STEP else said.median >= FLOOR)
            cells += [f"{1.0 / found[f'{peer}, {what}', False].median:.2f}", page.spoken(said)]
    return page.row([*cells, "yes" if held else "no"]), held


def heading(
    arguments: list[str], asked: argparse.Namespace, scale: Scale, files: Files, columns: list[tuple[str, list[str]]]
) -> list[str]:
    command, rounds = " ".join(page.shown(word) for word in arguments), asked.trials or ROUNDS
    width, height = scale.picture
    titles = [
        title
        for what, peers in columns
        for title in (f"{what}: ours, steps/s", *(text for peer in peers for text in (f"{peer}, steps/s", "ratio")))
    ]
    return [
        "# Throughput of adaptation methods, against the loss classes of tllib and pytorch-adapt",
        "",
        f"Command: `python benchmarks/adaptation_speed.py {command}`, {time.strftime('%Y-%m-%d', time.gmtime())}. One thread, CPU time; "
        f"{rounds} interleaved rounds, each way in another order. {scale.size} px, {scale.batch} images of each "
        f"domain, {scale.classes} classes, SGD with Nesterov momentum.",
        "",
        f"{STEP.capitalize()}: one forward of both domains together, cross-entropy on the source, the transfer loss, backward, update; "
        f"{scale.network['name']}. Discriminators have width 1024, tllib's with BatchNorm after each hidden layer; estimates of MMD "
        "compare all pairs; CDAN's map is exact. numpy 2 lacks np.float, which tllib calls: it is given back. pytorch-adapt's adversarial "
        "methods are hooks around whole models and have no row.",
        "",
        f"{WHOLE.capitalize()}: JPEG files of {width} x {height} pixels and {files.kilobytes:.0f} kB (parts of scikit-learn's "
        f"photographs), a random crop and flip, batches, and the step; {scale.light['name']}. Loader processes for each domain, on both "
        f"sides: {asked.workers}; their CPU time counts. Ours is `fit` as `rootstock adapt` calls it; theirs is the loop of tllib's "
        "scripts: two DataLoaders over pictures that Pillow opens and torchvision transforms. The scripts also squeeze each picture to "
        "256 x 256 first, which is left out on both sides. The arithmetic of the network is the same, so the ratio is that of feeding "
        "it, diluted by the network's share: on a CPU a larger network brings it towards 1, and a GPU takes that share away. "
        "The network end to end was resnet10t in pilots, with ratios of 1.3 to 1.5; it is smaller since.",
        "",
        "Ratio: how many times as many steps a second ours takes, the median of the rounds' own ratios [95 % bootstrap interval]. A row "
        f"holds where the intervals of the step reach 1, and the ratio end to end is at least {FLOOR:g}.",
        *(["", "Toy sizes: the numbers say nothing."] if asked.toy else []),
        "",
        page.machine(),
        "",
        page.row(["method", *titles, "holds"]),
        "|---" * (2 + len(titles)) + "|",
    ]


def options(arguments: list[str]) -> argparse.Namespace:
    """Exits with 2 and one sentence if the options cannot be met."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for peer in PEERS:
        parser.add_argument(f"--{peer.replace('_', '-')}", metavar="FOLDER", help="its checkout, or `installed`")
    parser.add_argument("--only", metavar="NAME,...", help="methods (all by default)")
    parser.add_argument("--workers", type=int, default=1, help="loader processes of each domain, end to end (1)")
    parser.add_argument("--trials", type=int, help=f"interleaved rounds ({ROUNDS})")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the table there as well")
    parser.add_argument("--gate", action="store_true", help="exit with 1 where a row does not hold")
    parser.add_argument("--toy", action="store_true", help="tiny sizes: tells only whether everything runs")
    asked = parser.parse_args(arguments)
    page.check_options(parser, asked)
    if asked.workers < 0:
        parser.error(f"--workers {asked.workers}: expected 0 or more")
    asked.only = asked.only.split(",") if asked.only else list(METHODS)
    if unknown := [name for name in asked.only if name not in METHODS]:
        parser.error(f"--only {unknown[0]}: expected some of {', '.join(METHODS)}")
    scale, asked.peers = TOY if asked.toy else FULL, {}
    for peer, losses in PEERS.items():
        if (where := getattr(asked, peer)) is not None:
            try:
                found = partial(losses, None if where == "installed" else Path(where), classes=scale.classes)
                for make in found(classifier(scale).feature_dim).values():
                    make()  # whatever it lacks is said before anything is measured
            except ImportError as error:
                parser.error(f"--{peer.replace('_', '-')} {where}: {error}")
            except FileNotFoundError as error:
                parser.error(f"--{peer.replace('_', '-')}: {error}")
            asked.peers[peer] = found
    return asked


def main(arguments: list[str]) -> int:
    torch.set_num_threads(1)
    asked = options(arguments)
    scale, rounds, peers = TOY if asked.toy else FULL, asked.trials or ROUNDS, list(asked.peers)
    columns = [(STEP, peers), (WHOLE, [peer for peer in peers if peer == TLLIB])]
    with tempfile.TemporaryDirectory() as folder:
        files = Files.written(Path(folder), scale.picture, scale.files, scale.classes, asked.workers)
        rows = (
            line(name, in_rounds(list(ways(name, scale, asked.peers, files)), rounds), columns) for name in asked.only
        )
        held = page.measure_rows(heading(arguments, asked, scale, files, columns), rows, asked.markdown)
    return 1 if asked.gate and not held else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
