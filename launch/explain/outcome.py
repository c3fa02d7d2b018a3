"""The folder that `rootstock explain` writes: pictures, result.json, and the page. The same command writes the same bytes."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from ...core.errors import UserError
from ...core.evaluate.feature_key import weights_digest
from ...core.files import path_beside, write_bytes
from ...core.formats import FORMAT
from ...core.manifest import DamagedFile, read_object, write_record
from ...core.ownfiles import is_run
from ...finetune.explain.methods import METHOD_SOURCES, at_side
from ..outputs.pictures import names_of
from .contents import Explained
from .measured import game_as_json, sanity_as_json
from .overlays import as_shown, data_uri, overlaid, plain_picture, png_bytes
from .page import ExplainPage, PictureRow, page_of, write_explanation

PICTURES, PAGE, RESULT_FILE = "pictures", "explained.html", "result.json"
TASK = "explain"
_PLAIN = "picture"  # the name of a picture without a map
_PANEL = re.compile(rf"\d{{3,}}_({'|'.join(map(re.escape, (_PLAIN, *METHOD_SOURCES)))})\.png")


def check_page_folder(out: Path) -> None:
    """Raises UserError for a folder whose result something else wrote: the page's own would replace it."""
    if not out.is_dir():
        return
    try:
        task = read_object(out / RESULT_FILE).get("task")
    except FileNotFoundError:
        task = "run" if is_run(os.listdir(out)) else TASK
    except DamagedFile as error:
        raise UserError(f"--out: {error}; delete the file, or name another folder") from error
    if task != TASK:
        raise UserError(
            f"--out: {out} holds what another command wrote ({task or RESULT_FILE}), and it would be replaced; name another folder, such "
            f"as {path_beside(out, '-explained')}"
        )


def write_outcome(out: Path, found: Explained, of: str, seed: int) -> Path:
    """Write everything into `out`; returns the page. of: which class of each picture is explained, as the verb was told."""
    (out / PICTURES).mkdir(parents=True, exist_ok=True)
    for path in (out / PICTURES).iterdir():  # an earlier explanation may have had more of them
        if _PANEL.fullmatch(path.name):
            path.unlink()
    result = result_of(found, of, seed)
    rows = _pictures(out, found)
    # With its digest, which `rootstock verify` compares; a number that is none is a bug.
    write_record(out / RESULT_FILE, json.loads(json.dumps(result, allow_nan=False)))
    page: ExplainPage = page_of(found, result, rows)
    return write_explanation(page, out / PAGE)


def result_of(found: Explained, of: str, seed: int) -> dict[str, Any]:
    """The content of result.json."""
    trained, images = found.trained, found.images
    return {
        "format": FORMAT,
        "task": TASK,
        "run": str(trained.folder),
        "network": trained.backbone.spec,
        "weights": weights_digest(found.classifier),
        "view": trained.view.describe(),
        "data": {"uri": images.uri, "images": len(images), "split": images.split_hash()},
        "class": of,
        "seed": seed,
        "n": len(found.rows),
        "methods": {explainer.name: _method(found, explainer.name) for explainer in found.made},
        "left_out": list(found.lacking),
        "pictures": _each(found),
    }


def _method(found: Explained, name: str) -> dict[str, Any]:
    explainer = next(one for one in found.made if one.name == name)
    measures, told = found.measures[name], {"what": METHOD_SOURCES[name], **explainer.describe()}
    told["constant"] = len(found.constant[name])
    if explainer.completed:
        told["completeness"] = {
            "tolerance": explainer.settings.tolerance,
            "complete": sum(one[3] for one in explainer.completed.values()),
            "n": len(explainer.completed),
            "most_steps": max(one[2] for one in explainer.completed.values()),
            "largest_error": max(one[1] for one in explainer.completed.values()),
        }
    if measures.sanity is not None:
        told["sanity"] = sanity_as_json(measures.sanity)
    if measures.curves is not None:
        told["curves"] = measures.curves
    if measures.game is not None:
        told["pointing"] = game_as_json(measures.game, found.tolerance)
    return told


def _each(found: Explained) -> list[dict[str, Any]]:
    """One entry a picture with maps: names, classes, points, and the nearest training pictures of those on the page."""
    names, keys, outputs = names_of(found.images), found.images.keys().tolist(), found.classifier.outputs
    entries = []
    for number, row in enumerate(found.rows):
        entry: dict[str, Any] = {
            "name": names[row],
            "key": keys[row],
            "class": outputs[int(found.target[row])],
            "probability": float(found.probability[row]),
        }
        if found.labels is not None:
            entry["label"] = outputs[int(found.labels[row])]
        points = {name: one.points[row] for name, one in found.measures.items() if row in one.points}
        if points:
            entry["pointing"] = {
                name: {"row": one.place[0], "column": one.place[1], "hit": one.hit} for name, one in points.items()
            }
            first = next(iter(points.values()))
            entry |= {"chance": first.chance, "centre": first.centre}
        if number < found.shown and found.neighbours[number]:
            assert found.train is not None
            entry["nearest"] = [
                {"name": found.train.full_name(one.row), "class": training_class(found, one.row), "cosine": one.cosine}
                for one in found.neighbours[number]
            ]
        entries.append(entry)
    return entries


def training_class(found: Explained, row: int) -> str:
    """The class of a training picture; empty where it has none, or several."""
    train = found.train
    if train is None or train.labels is None or train.classes is None or train.labels.ndim != 1:
        return ""
    label = int(train.labels[row])
    return train.classes[label] if label >= 0 else ""


def _pictures(out: Path, found: Explained) -> list[PictureRow]:
    """Write the pictures of the page as PNG files; returns them as the page holds them."""
    side, rows, entries = found.trained.view.size, list[PictureRow](), _each(found)
    for number, row in enumerate(found.rows[: found.shown]):
        picture, mask = as_shown(found.images, row, found.trained.view), found.masks.get(row)
        panels = {_PLAIN: plain_picture(picture, mask)}
        for explainer in found.made:
            if row not in found.constant[explainer.name]:
                large = at_side(found.maps[explainer.name][number : number + 1], side)[0]
                point = found.measures[explainer.name].points.get(row)
                panels[explainer.name] = overlaid(picture, large, mask, None if point is None else point.place)
        for name, panel in panels.items():
            write_bytes(out / PICTURES / f"{number:03d}_{name}.png", png_bytes(panel))
        entry, near = entries[number], list[tuple[str, str]]()
        for one in found.neighbours[number]:
            assert found.train is not None
            small = plain_picture(as_shown(found.train, one.row, found.trained.view))
            near.append((data_uri(small, 96), f"{training_class(found, one.row)} {one.cosine:.2f}".strip()))
        rows.append(PictureRow(entry, [(data_uri(panel), name) for name, panel in panels.items()], near))
    return rows
