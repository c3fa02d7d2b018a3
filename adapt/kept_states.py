"""States of a training that the final test scores too: their logits on the tests, in files of their own, and what becomes of a damaged one.

The header's entry `digest` is that of the tensors, so that a file which is not what was written is named, and never scored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..core.digested import read_digested, write_digested
from ..core.errors import UserError
from ..core.evaluate.sealed import CandidateLogits, frozen_candidate
from ..core.manifest import DamagedFile
from ..core.method import AdaptMethod
from ..core.run.directory import Run
from .registry import ADAPT_METHODS
from .validators.candidate import CandidateModel
from .validators.stored import candidate_of

FOLDER = "candidates"


class KeptStates(NamedTuple):
    """found: by the name of the candidate. lost: a sentence for each that can't be scored, by its name."""

    found: dict[str, CandidateLogits]
    lost: dict[str, str]


def name_of(step: int) -> str:
    """The name of a candidate."""
    return f"step {step}"


def tests_path(folder: Path, step: int) -> Path:
    """Where a candidate's logits on the tests lie: float [M, K] by test, without labels. folder: RUN/candidates."""
    return folder / f"step-{step:08d}-tests.safetensors"


def keep_tests(folder: Path, step: int, logits: Mapping[str, Tensor]) -> None:
    """Write a state's logits by test, without labels."""
    write_digested(tests_path(folder, step), logits)


def path_of(folder: Path, step: int) -> Path:
    """Where the candidate of a step lies. folder: RUN/candidates."""
    return folder / f"step-{step:08d}.safetensors"


def read_candidates(folder: Path, steps: Iterable[int], say: Callable[[str], None]) -> list[CandidateModel]:
    """The candidates that were kept; one that cannot be read is named in a sentence, and left out."""
    found = []
    for step in steps:
        path = path_of(folder, step)
        try:
            found.append(candidate_of(name_of(step), step, load_file(path)))
        except (OSError, SafetensorError, UserError) as error:
            say(f"{path} cannot be read ({error}); no validator sees this candidate")
    return found


def concludes(name: str) -> bool:
    """Whether a method changes the network once more after its last step."""
    kind = ADAPT_METHODS[name]
    return (kind.conclude, kind.conclude_source) != (AdaptMethod.conclude, AdaptMethod.conclude_source)


def check_states(name: str, steps: int, every: int) -> None:
    """Raises UserError where states before the last of `steps` steps are asked of a method that changes the network after it.

    They are those of a network that nobody would use: with the source's statistics, or with another head. every: as of `kept_states`.
    """
    if concludes(name) and 0 < every < steps:
        raise UserError(
            f"evaluate.every: {name} changes the network once more after its last step, so states before it cannot be compared with the "
            "last one; use null"
        )


def kept_states(run: Run, steps: int, every: int, exported: int) -> KeptStates:
    """The states of a training of `steps` steps but for the one that is exported. every: steps between them, 0 for the last state alone.
    exported: the step of that one. Of the main process; others have none.

    One whose file is damaged is scored as an earlier command of this run stored it before it read the labels, if one did: the candidates
    are then the same, and so is the look. Else it is named, in the log and in `lost`, and the look is at the others alone.
    """
    states = KeptStates({}, {})
    all_steps = [*(range(every, steps, every) if every else ()), steps]
    for step in (step for step in all_steps if step != exported and run.main):
        name, path = name_of(step), tests_path(run.dir / FOLDER, step)
        try:
            states.found[name] = _read(path)
        except (DamagedFile, OSError) as error:
            why = str(error) if isinstance(error, DamagedFile) else f"{path} cannot be read ({error})"
            if (frozen := frozen_candidate(run.dir, name)) is None:
                states.lost[name] = why
                run.log(f"WARNING: {why}; {name} is left out of the final test")
            else:
                states.found[name] = frozen
                run.log(f"WARNING: {why}; {name} is scored as it was stored for the final test")
    return states


def _read(path: Path) -> CandidateLogits:
    """Raises DamagedFile or OSError."""
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    logits = read_digested(path, needed=False)  # an earlier version wrote none
    return CandidateLogits(content, logits)
