"""The training pictures that are nearest to a picture in a network's features: the reason by example."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from ...core.evaluate.cosines import cosine_table, unit_rows


class Neighbour(NamedTuple):
    """A training picture: its row, and its cosine."""

    row: int
    cosine: float


def nearest_pictures(features: Tensor, keys: Tensor, bank: Tensor, bank_keys: Tensor, k: int) -> list[list[Neighbour]]:
    """The k different nearest training pictures of each picture by cosine, nearest first; never the picture itself or a copy of it.

    features: [N, D]; bank: [M, D], of the training pictures; keys, bank_keys: int64, their identities. Of equal cosines the smaller
    identity comes first.
    """
    table = cosine_table(unit_rows(features, "picture"), unit_rows(bank, "training"))
    identities, found = bank_keys.numpy(), list[list[Neighbour]]()
    for cosines, key in zip(table, keys.tolist(), strict=True):
        order = np.lexsort((identities, -cosines))
        chosen, taken = list[Neighbour](), {key}
        for row in order.tolist():
            if len(chosen) == k:
                break
            if (identity := int(identities[row])) not in taken:
                taken.add(identity)
                chosen.append(Neighbour(row, float(cosines[row])))
        found.append(chosen)
    return found
