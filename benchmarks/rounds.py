"""Compares ways to train fairly: each runs once a round, in an order that changes."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from fitted import Figures

from rootstock.core.errors import UserError


class Way(NamedTuple):
    """One way to train. compiled: whether torch.compile takes part. ours: whether it trains through `fit`."""

    name: str
    compiled: bool
    train: Callable[[], Figures]


Found = dict[tuple[str, bool], Figures]


def in_rounds(ways: Sequence[Way], rounds: int, failures: dict[str, str] | None = None) -> Found:
    """Every way once a round, each round in another order.

    failures: if given, a way that fails is left out from then on, and its error is put here under its name.
    """
    seen: dict[tuple[str, bool], list[Figures]] = {(way.name, way.compiled): [] for way in ways}
    lost: set[int] = set()
    shuffled = np.random.default_rng(0)
    for _ in range(rounds):
        for k in shuffled.permutation(len(ways)):
            if k in lost:
                continue
            way = ways[k]
            _clean(way)
            try:
                seen[way.name, way.compiled].append(way.train())
            except (RuntimeError, UserError) as error:  # no memory, no graph, a worker that died
                if failures is None:
                    raise
                lost.add(k)
                failures[way.name + (", compiled" if way.compiled else "")] = str(error).strip().partition("\n")[0]
    return {key: Figures.joined(figures) for key, figures in seen.items() if figures}


def _clean(way: Way) -> None:
    """Free memory and graphs, so that no way depends on those before it."""
    gc.collect()
    if way.compiled:
        torch.compiler.reset()  # beyond a number of graphs, torch would go on uncompiled
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
