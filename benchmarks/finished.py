"""Pack the finished runs of a table that is not complete, so that another machine goes on where this one stopped.

Command: python benchmarks/finished.py pack configs/NAME.yaml [key=value ...]      writes benchmarks/finished/NAME.seed-S.tar.xz, one a seed
         python benchmarks/finished.py unpack configs/NAME.yaml [key=value ...]    puts back what is missing; then `rootstock run` goes on

A packed run is what the table needs of it: its records and results, and for each test image whether the prediction is right; no scores, so
no calibration can be computed from it again. Weights are packed while a stage of their seed that uses them is not finished. Beside the
archives stands when the table's contrasts were declared.
"""

from __future__ import annotations

import io
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import copy2, copytree, ignore_patterns

import numpy as np

from rootstock.core.errors import UserError
from rootstock.core.evaluate.predictions import Half, Predictions, SavedScores, ScoredImages, read_predictions
from rootstock.core.manifest import read_manifest, write_manifest
from rootstock.core.run.folder import WEIGHT_FOLDERS, read_result, run_folder
from rootstock.launch.pipeline.contrasts import DECLARED
from rootstock.launch.pipeline.plan import StageJob, inputs_file, plan_pipeline
from rootstock.launch.verbs import resolve

PLACE = Path(__file__).parent / "finished"
RECORDS = ("config.yaml", "run.json", "result.json", "state.json", "looks.json")
EXPORTS = [name for name in WEIGHT_FOLDERS if name not in ("checkpoints", "candidates")]


def main(words: list[str], place: Path = PLACE) -> int:
    if len(words) < 2 or words[0] not in ("pack", "unpack"):
        sys.exit(__doc__)
    what, config, *overrides = words
    pipeline, jobs = plan_pipeline(config, overrides, resolve)
    name, folder = Path(config).stem, run_folder(pipeline["run"]["dir"])
    declared, kept = folder / DECLARED, place / f"{name}.{DECLARED}"
    for seed in pipeline["seeds"]:
        archive = place / f"{name}.seed-{seed}.tar.xz"
        own = [job for job in jobs if job.seed == seed]
        if what == "pack":
            done = pack_seed(own, archive)
            print(f"seed {seed}: {done} of {len(own)} runs packed" + (f" in {archive}" if done else ""))
        elif archive.is_file():
            put = unpack(archive, folder / f"seed-{seed}")
            print(f"seed {seed}: {put} runs put back from {archive}")
    given, to = (declared, kept) if what == "pack" else (kept, declared)
    if given.is_file() and to.parent.is_dir() and not (what == "unpack" and to.exists()):
        copy2(given, to)
    return 0


def pack_seed(jobs: Sequence[StageJob], archive: Path) -> int:
    """Write the finished runs of one seed into an archive, the same runs to the same bytes; returns their number. 0: nothing is written."""
    done = [job for job in jobs if read_result(job.dir, lambda _: None) is not None]
    if not done:
        return 0
    needed = {name for job in jobs if job not in done for name in job.inputs}
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for job in done:
            lighten(job.dir, Path(scratch) / job.name, weights=job.name in needed)
        copy2(inputs_file(done[0]), scratch)
        with tarfile.open(archive, "w:xz", preset=9) as tar:
            for path in sorted(path for path in Path(scratch).rglob("*") if path.is_file()):
                entry, content = tarfile.TarInfo(str(path.relative_to(scratch))), path.read_bytes()
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return len(done)


def lighten(run: Path, to: Path, weights: bool) -> None:
    """Copy what a table needs of a finished run, with a manifest of that. weights: the tensors of its exports, too."""
    to.mkdir()
    for name in RECORDS:
        if (run / name).is_file():
            copy2(run / name, to)
    for name in EXPORTS:
        if (run / name).is_dir():  # its description always: configs that name the weights are resolved by it
            copytree(run / name, to / name, ignore=None if weights else ignore_patterns("*.safetensors"))
    if (found := read_predictions(run)) is not None:
        light = Predictions()
        for key, saved in found.scores.items():
            images = found.tests[key.partition("/")[0]]
            light.add(key, images, right_or_wrong(images, saved))
        light.write(to)
    listed: Mapping[str, str] = read_manifest(run) or {}
    write_manifest(to, [name for name in listed if (to / name).is_file()])


def right_or_wrong(images: ScoredImages, saved: SavedScores) -> SavedScores:
    """Scores with the same images right: 0 for the label if the image is right, or for the class after it, and -1 elsewhere."""
    if images.labels.ndim == 2:
        return saved
    right = saved.scores.argmax(axis=-1) == images.labels
    chosen = np.where(right, images.labels, (images.labels + 1) % len(images.classes))
    scores: Half = (np.eye(len(images.classes)) - 1).astype(np.float16)[chosen]
    return SavedScores("logits", scores)


def unpack(archive: Path, folder: Path) -> int:
    """Put the runs of an archive into the folder of their seed where it has none of that name; returns how many."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        known = {path.name for path in folder.iterdir()}
        new = [entry for entry in tar if Path(entry.name).parts[0] not in known]
        tar.extractall(folder, new, filter="data")
    return len({Path(entry.name).parts[0] for entry in new if len(Path(entry.name).parts) > 1})


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
