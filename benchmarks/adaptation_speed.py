"""Compares the step of adaptation methods with the same step around the loss classes of tllib and pytorch-adapt, on one CPU core.

    python benchmarks/adaptation_speed.py --tllib FOLDER --pytorch-adapt FOLDER [--markdown benchmarks/adaptation_speed.md] [--gate]

FOLDER: a checkout; `installed` takes the installed package. Each way gets the same network, batch, optimizer and joint forward of both
domains, and is timed once a round, each round in another order. `--gate` exits with 1 if ours is slower; `--toy` only checks that
everything runs. tllib also needs prettytable, and pytorch-adapt pytorch-metric-learning.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import page
import torch
import torch.nn.functional as F
from adaptation_peers import PEERS, WIDTH, Made
from fitted import Figures, Plan
from rounds import Found, Way, in_rounds
from timing import Interval
from torch import Tensor

from rootstock.adapt.registry import ADAPT_METHODS
from rootstock.core.draws import Draws
from rootstock.core.method import Domains, Labelled, Unlabelled
from rootstock.core.model.backbone import create
from rootstock.core.model.classifier import Classifier

METHODS: dict[str, dict[str, Any]] = {
    "dann": {"hidden": WIDTH},
    "cdan": {"hidden": WIDTH, "randomized_above": 1 << 30},  # exact, as tllib's is by default
    "mcc": {},
    "mdd": {"hidden": WIDTH},
    "dan": {},
    "jan": {},
}
OURS, ROUNDS = "ours", 7


class Scale(NamedTuple):
    """size: pixels. batch: images of each domain."""

    size: int
    batch: int
    classes: int
    network: dict[str, Any]
    plan: Plan


FULL = Scale(32, 64, 31, {"name": "resnet10t"}, Plan(2, 1, 5))
TOY = Scale(16, 4, 3, {"name": "smallconv", "args": {"widths": [4, 4, 8, 8]}}, Plan(1, 1, 1))


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


def train_ours(name: str, scale: Scale) -> Figures:
    method, pair = ADAPT_METHODS[name](classifier(scale), None, **METHODS[name]).train(), batch(scale)
    return timed(scale.plan, list(method.parameters()), lambda progress: method(pair, progress).loss)


def train_theirs(make: Callable[[], Made], scale: Scale) -> Figures:
    """A peer's loss on our network, in the step of tllib's scripts: one joint forward, and the source's accuracy, which ours logs too."""
    network, pair, made = classifier(scale).train(), batch(scale), make()
    made.modules.train()

    def loss_of(progress: float) -> Tensor:
        features = network.backbone(torch.cat([pair.source.images, pair.target.images])).unflatten(0, (2, -1))
        logits = network.head(features)
        (logits[0].argmax(1) == pair.source.labels).float().mean()
        return F.cross_entropy(logits[0], pair.source.labels) + made.loss(features, logits)

    return timed(scale.plan, [*network.parameters(), *made.modules.parameters()], loss_of)


def ways(name: str, scale: Scale, peers: dict[str, Any]) -> Iterator[Way]:
    yield Way(OURS, False, partial(train_ours, name, scale))
    for peer, losses in peers.items():
        if name in losses:
            yield Way(peer, False, partial(train_theirs, losses[name], scale))


def ratio(found: Found, peer: str) -> Interval | None:
    """Our steps a second divided by the peer's: the median of the rounds' ratios; None if it has no such loss."""
    ours, theirs = found[OURS, False], found.get((peer, False))
    if theirs is None:
        return None
    return Interval.of_median([peer / own for own, peer in zip(ours.seconds, theirs.seconds, strict=True)])


def line(name: str, found: Found, peers: list[str]) -> tuple[str, bool]:
    """A method's row, and whether ours is not slower than any peer beyond noise."""
    cells, held = [name, f"{1.0 / found[OURS, False].median:.1f}"], True
    for peer in peers:
        said = ratio(found, peer)
        if said is None:
            cells += ["–", "–"]
            continue
        held = held and said.high >= 1.0
        cells += [f"{1.0 / found[peer, False].median:.1f}", page.spoken(said)]
    return page.row([*cells, "yes" if held else "no"]), held


def heading(arguments: list[str], toy: bool, scale: Scale, rounds: int, peers: list[str]) -> list[str]:
    command = " ".join(page.shown(word) for word in arguments)
    columns = [f"{peer}, steps/s | ratio" for peer in peers]
    return [
        "# Throughput of adaptation methods, against the loss classes of tllib and pytorch-adapt",
        "",
        f"Command: `python benchmarks/adaptation_speed.py {command}`, {time.strftime('%Y-%m-%d', time.gmtime())}. One thread, CPU time; "
        f"{rounds} interleaved rounds, each way in another order. {scale.network['name']}, {scale.size} px, {scale.batch} images of each "
        f"domain, {scale.classes} classes, SGD with Nesterov momentum.",
        "",
        "A step is one forward of both domains together, cross-entropy on the source, the transfer loss, backward, update; pictures are "
        "ready in memory. Ratio: how many times as many steps a second ours takes, the median of the rounds' own ratios [95 % bootstrap "
        "interval]. A row holds where each interval reaches 1. Discriminators have width 1024, tllib's with BatchNorm after each hidden "
        "layer; estimates of MMD compare all pairs. numpy 2 lacks np.float, which tllib calls: it is given back. pytorch-adapt's "
        "adversarial methods are hooks around whole models and have no row.",
        *(["", "Toy sizes: the numbers say nothing."] if toy else []),
        "",
        page.machine(),
        "",
        page.row(["method", "ours, steps/s", *columns, "holds"]),
        "|---" * (3 + 2 * len(peers)) + "|",
    ]


def options(arguments: list[str]) -> argparse.Namespace:
    """Exits with 2 and one sentence if the options cannot be met."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for peer in PEERS:
        parser.add_argument(f"--{peer.replace('_', '-')}", metavar="FOLDER", help="its checkout, or `installed`")
    parser.add_argument("--only", metavar="NAME,...", help="methods (all by default)")
    parser.add_argument("--trials", type=int, help=f"interleaved rounds ({ROUNDS})")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the table there as well")
    parser.add_argument("--gate", action="store_true", help="exit with 1 where ours is slower")
    parser.add_argument("--toy", action="store_true", help="tiny sizes: tells only whether everything runs")
    asked = parser.parse_args(arguments)
    page.check_options(parser, asked)
    asked.only = asked.only.split(",") if asked.only else list(METHODS)
    if unknown := [name for name in asked.only if name not in METHODS]:
        parser.error(f"--only {unknown[0]}: expected some of {', '.join(METHODS)}")
    scale, asked.peers = TOY if asked.toy else FULL, {}
    for peer, losses in PEERS.items():
        if (where := getattr(asked, peer)) is not None:
            try:
                made = losses(
                    None if where == "installed" else Path(where), classifier(scale).feature_dim, scale.classes
                )
                for make in made.values():  # whatever it lacks is said before anything is measured
                    make()
            except ImportError as error:
                parser.error(f"--{peer.replace('_', '-')} {where}: {error}")
            except FileNotFoundError as error:
                parser.error(f"--{peer.replace('_', '-')}: {error}")
            asked.peers[peer] = made
    return asked


def main(arguments: list[str]) -> int:
    torch.set_num_threads(1)
    asked = options(arguments)
    scale, rounds, peers = TOY if asked.toy else FULL, asked.trials or ROUNDS, list(asked.peers)
    lines, held, before = heading(arguments, asked.toy, scale, rounds, peers), True, os.getloadavg()[0]
    print("\n".join(lines), flush=True)
    for name in asked.only:
        row, passed = line(name, in_rounds(list(ways(name, scale, asked.peers)), rounds), peers)
        print(row, flush=True)
        lines.append(row)
        held = held and passed
        if asked.markdown:  # keep what is measured even if a later part fails
            asked.markdown.write_text("\n".join(lines) + "\n")
    lines += ["", f"Load average {before:.1f} before, {os.getloadavg()[0]:.1f} after."]
    print("\n".join(lines[-2:]), flush=True)
    if asked.markdown:
        asked.markdown.write_text("\n".join(lines) + "\n")
    return 1 if asked.gate and not held else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
