"""Where the object of each picture is, as the network sees the picture: masks for the pointing game."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ...core.errors import UserError
from ...core.evaluate.counts import Bools
from ...core.images.images import Images
from ...core.views.view import Evaluation
from ...finetune.dense.mask_files import MASKS_KEY, MaskFiles, MissingMask
from ...finetune.dense.masks import Masks

SET = "pictures"


def object_masks(place: str, images: Images, view: Evaluation, ignore: int | None = None) -> dict[int, Bools]:
    """bool [size, size] by the picture's row: of every picture that has a mask file with an object in what the view shows.

    place: a folder, or a pattern with {stem}, as of `evaluate.dense.masks`; every number but 0 (and `ignore`) is the object. Raises
    UserError if no picture has one, and for a mask that cannot be read or has another size than its picture.
    """
    files, found = MaskFiles(place), dict[int, Bools]()
    for row in range(len(images)):
        one = images.select(torch.tensor([row]))
        try:
            paths = files.of_sets({SET: one})[SET]
        except MissingMask:
            continue
        except UserError as error:
            raise _renamed(error) from None
        numbers = Masks(one, paths, view).numbers(0, view.size)
        mask = (numbers != 0) & (numbers != (0 if ignore is None else ignore))
        if mask.any():
            found[row] = mask
    if not found:
        raise UserError(
            f"--masks: none of the {len(images)} pictures has a mask with an object in {place}; give the folder that holds masks by the "
            "pictures' names (cat/01.png for cat/01.jpg), or a pattern with {stem}"
        )
    return found


def _renamed(error: UserError) -> UserError:
    return UserError(str(error).replace(MASKS_KEY, "--masks").replace(", as in {train: PATH, test: PATH}", ""))


def share_in_words(masks: Mapping[int, Bools]) -> str:
    """The mean share of the picture that is object, for messages."""
    return f"{100 * float(np.mean([mask.mean() for mask in masks.values()])):.1f} %"
