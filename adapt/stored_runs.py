"""Finished adaptations read back for a study of validators: what each kept of its candidates, and the accuracies of its one look.

Nothing here opens a set or reads a label of the target. A run is read from its folder, or from a file into which it was packed:

    NAME.candidates.safetensors      CANDIDATE/target/features, ... as in `validators.stored`, in float16
    header, entry `about`            JSON: what `RunFacts` has, and format

The file holds nothing that differs when the run is made again: no time, no path of the run, no count of looks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..core.documents import read_mapping
from ..core.errors import UserError
from ..core.files import write_tensors
from ..core.manifest import DamagedFile, check_file, read_manifest
from ..core.run.folder import CONFIG, read_result
from .kept_states import FOLDER, name_of, path_of
from .outcome import LAST
from .sets import SOURCE, TARGET
from .validators.candidate import CandidateModel
from .validators.stored import candidate_of, tensors_of

PACKED = ".candidates.safetensors"
_FORMAT = 1
PassOver = Callable[[str], None]
"""Gets a sentence that names what is passed over, and why."""


class RunFacts(NamedTuple):
    """What is known of a run without its candidates. steps: of the states whose accuracy is known, by name."""

    method: str
    seed: int
    source: list[str]  # URIs, as its config has them
    target: list[str]
    splits: dict[str, str]  # hashes of the target and of the tests, by `target` and `test.NAME`
    corrupt: dict[str, Any] | None
    accuracies: dict[str, dict[str, float]]  # {test: {candidate: accuracy}}
    steps: dict[str, int]

    def task(self, test: str) -> str:
        """Equal for runs whose candidates can be compared: the same source, target images, corruption and test images.

        The target counts by its URIs too, since a digit and its blends have one identity and so one hash of the split.
        """
        source, target = (
            [uri.replace("{seed}", str(self.seed)) for uri in uris] for uris in (self.source, self.target)
        )
        same = [source, target, self.splits[TARGET], self.corrupt, self.splits[f"test.{test}"]]
        return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()

    def test(self, wanted: str | None) -> str | None:
        """The test by its name; without one, the test of the target: `target`, else the first that is not the source's. None: no such."""
        if wanted is not None:
            return wanted if wanted in self.accuracies else None
        others = [name for name in self.accuracies if name != SOURCE]
        return TARGET if TARGET in others else next(iter(others), None)


class StoredRun(NamedTuple):
    """A run of which at least one candidate was kept. read: its candidates, those that can be read.

    looks: at the labels of its tests, as in result.json; empty for a packed run, which holds nothing that differs when it is made again.
    """

    name: str
    facts: RunFacts
    read: Callable[[], list[CandidateModel]]
    looks: Mapping[str, Any] = {}


def stored_run(folder: Path, say: PassOver) -> StoredRun | None:
    """The run of `rootstock adapt` in this folder; None if it is of another verb, not finished, damaged, or kept no candidate."""
    complaints: list[str] = []
    result = read_result(folder, complaints.append)
    if result is None:
        say(complaints[0] if complaints else f"{folder} is not finished")
        return None
    if result.get("task") != "adapt":
        return None
    try:
        facts = _facts_of(read_mapping(folder / CONFIG), result)
        digests = read_manifest(folder) or {}
    except (UserError, DamagedFile) as error:
        say(str(error))
        return None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        say(f"{folder} has a result that this version cannot read")
        return None
    kept = {name: path for name, step in facts.steps.items() if (path := path_of(folder / FOLDER, step)).exists()}
    if not kept:
        say(f"{folder} kept no candidate; evaluate.every=25% keeps four states of a run")
        return None

    def read() -> list[CandidateModel]:
        found = (_read_state(folder, path, name, facts.steps[name], digests, say) for name, path in kept.items())
        return [one for one in found if one is not None]

    return StoredRun(str(folder), facts, read, result.get("looks") or {})


def _facts_of(config: Mapping[str, Any], result: Mapping[str, Any]) -> RunFacts:
    """Raises KeyError and the like for what is no result of an adaptation."""
    data, tests = config["data"], dict[str, dict[str, float]]()
    exported = (result.get("validators") or {}).get("selected") or name_of(int(result["steps"]))
    for key, value in result["metrics"].items():
        test, _, metric = key.partition("/")
        if metric == f"{LAST}/accuracy":
            tests[test] = {**(result.get("states") or {}).get(test, {}), exported: float(value)}
    splits = {key: text for key, text in result["data"]["split"].items() if key == TARGET or key.startswith("test.")}
    source, target = ([given] if isinstance(given := data[key], str) else list(given) for key in (SOURCE, TARGET))
    steps = {name: int(name.rpartition(" ")[2]) for found in tests.values() for name in found}
    return RunFacts(config["method"]["name"], result["seed"], source, target, splits, data.get("corrupt"), tests, steps)


def _read_state(
    folder: Path, path: Path, name: str, step: int, digests: Mapping[str, str], say: PassOver
) -> CandidateModel | None:
    listed = path.relative_to(folder).as_posix()
    try:
        if listed in digests:  # runs of earlier versions don't list it
            check_file(folder, listed, digests)
        return candidate_of(name, step, load_file(path))
    except (DamagedFile, UserError) as error:
        say(str(error) if str(path) in str(error) else f"{path}: {error}")
    except (OSError, SafetensorError) as error:
        say(f"{path} cannot be read ({error})")
    return None


def pack_run(folder: Path, packed: Path, more: Mapping[str, Any] = {}) -> list[str]:
    """Write the candidates of a finished run into one file, in float16, beside the accuracies; returns the names of the candidates.

    more: entries of the header. Raises UserError if the run has no candidate to pack, or one that cannot be read.
    """
    problems: list[str] = []
    run = stored_run(folder, problems.append)
    if run is None:
        raise UserError(f"nothing to pack: {problems[0] if problems else f'{folder} is no adaptation'}")
    candidates = run.read()
    if problems:
        raise UserError(f"not packed: {problems[0]}")
    tensors = {f"{one.name}/{part}": rows for one in candidates for part, rows in tensors_of(one, half=True).items()}
    about = {"format": _FORMAT, **run.facts._asdict(), **more}
    packed.parent.mkdir(parents=True, exist_ok=True)
    draft = packed.with_name(f".{packed.name}.draft")
    write_tensors(draft, tensors, {"about": json.dumps(about, sort_keys=True)})
    draft.replace(packed)
    return [one.name for one in candidates]


def packed_about(packed: Path) -> dict[str, Any]:
    """The header of a packed run. Raises UserError, naming the file, if it is none."""
    try:
        with safe_open(packed, "pt") as file:
            about = json.loads(file.metadata()["about"])
        if about["format"] != _FORMAT:
            raise UserError(f"{packed} has format {about['format']}, and this version reads {_FORMAT}")
        return about
    except OSError as error:
        raise UserError(f"{packed} cannot be read ({error.strerror or error})") from None
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{packed} is damaged, or holds no packed run") from None


def packed_run(packed: Path, say: PassOver) -> StoredRun | None:
    """The run in a packed file; None if it cannot be read."""
    try:
        about = packed_about(packed)
        facts = RunFacts(**{field: about[field] for field in RunFacts._fields})
        digests = read_manifest(packed.parent) or {}
        if packed.name in digests:
            check_file(packed.parent, packed.name, digests)
    except (UserError, DamagedFile) as error:
        say(str(error))
        return None
    except (KeyError, TypeError):
        say(f"{packed} is damaged, or holds no packed run")
        return None

    def read() -> list[CandidateModel]:
        try:
            return list(_read_packed(load_file(packed), facts.steps))
        except (UserError, SafetensorError, OSError) as error:
            say(f"{packed}: {error}")
            return []

    return StoredRun(str(packed.with_name(packed.name.removesuffix(PACKED))), facts, read)


def _read_packed(tensors: Mapping[str, Tensor], steps: Mapping[str, int]) -> Iterator[CandidateModel]:
    parts: dict[str, dict[str, Tensor]] = {}
    for key, rows in tensors.items():
        name, _, part = key.partition("/")
        parts.setdefault(name, {})[part] = rows
    for name, step in steps.items():
        if name in parts:
            yield candidate_of(name, step, parts[name])


def stored_below(runs: Iterator[Path], packs: Sequence[Path], say: PassOver) -> list[StoredRun]:
    """The runs in these folders and these packed files, in their order. Each path is one run."""
    found = [stored_run(folder, say) for folder in runs] + [packed_run(path, say) for path in packs]
    return [run for run in found if run is not None]
