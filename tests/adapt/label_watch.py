"""Who reads the labels of given images before a look at them is written down."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rootstock.core.images.images import Images
from rootstock.core.images.sealed import SealedImages
from rootstock.core.ledger import read_ledger
from rootstock.core.run.rows import LOOKS

ROOT = Path(__file__).parents[2]

# To open a set is to read its labels: parts of it are chosen, classes are numbered as the source's, and its fingerprint is taken. What
# comes of that is dropped when a set is sealed. `_has_labels` asks whether there are any.
OPENING = {
    ("core/images/images.py", "select"),
    ("core/images/images.py", "fingerprint"),
    ("core/images/sets.py", "align"),
    ("core/images/sets.py", "labelled"),
    ("core/views/corrupted.py", "corrupted"),
    ("adapt/sets.py", "_has_labels"),
}


class LabelWatch:
    """From `watch` on, `readers` has (file, function) of each read of labels of the hidden images, up to the first opening of a sealed set.

    Each opening must find a look in the run's ledger. It sees every read of `Images.labels`, whichever way the images were opened.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.readers, self.openings, self.hidden = set[tuple[str, str]](), 0, torch.empty(0, dtype=torch.int64)
        self.run = Path()
        patch.setattr(Images, "labels", property(self._get, self._set), raising=False)
        straight = SealedImages.unsealed

        def unsealed(images: SealedImages) -> Images:
            ledger = read_ledger(self.run / LOOKS)
            assert ledger is not None and images.looked_at in {entry["split"] for entry in ledger.entries}
            self.openings += 1
            return straight(images)

        patch.setattr(SealedImages, "unsealed", unsealed)

    def watch(self, hidden: Tensor, run: Path) -> None:
        """hidden: keys of the images. run: the folder."""
        self.readers, self.openings, self.hidden, self.run = set[tuple[str, str]](), 0, hidden, run

    def _get(self, images: Images) -> Tensor | None:
        labels: Tensor | None = vars(images).get("labels")
        if labels is not None and not self.openings and bool(torch.isin(images.keys(), self.hidden).any()):
            code: Any = sys._getframe(1).f_code
            while code.co_name.startswith("<"):  # a generator or a comprehension: of whom is in its qualified name
                code = code.replace(co_name=code.co_qualname.split(".<locals>")[0].rpartition(".")[2])
            path = Path(code.co_filename)
            where = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
            self.readers.add((where.as_posix(), code.co_name))
        return labels

    def _set(self, images: Images, labels: Tensor | None) -> None:
        vars(images)["labels"] = labels
