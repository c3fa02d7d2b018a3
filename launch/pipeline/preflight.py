"""What can be known before the first stage of a pipeline runs: sets that don't open, networks that can't be built, too few images a class.

Each unfinished stage of one seed is built as its recipe builds it, and dropped. A stage that takes the weights of an earlier one gets them
untrained, from a temporary folder.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.config.resolve import ConfigError
from ...core.errors import UserError
from .plan import StageJob

# (verb, resolved config, folder for what the stage will export, or None) -> None; raises UserError as the recipe would.
Build = Callable[[str, dict[str, Any], Path | None], None]


def check_buildable(path: str | Path, jobs: Sequence[StageJob], build: Build) -> None:
    """Build the unfinished stages of the first seed that has any. Raises ConfigError, which names each stage that can't be built."""
    waiting = [job for job in jobs if not (job.dir / "result.json").exists()]
    first = [job for job in waiting if job.seed == waiting[0].seed]
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="rootstock-pipeline-") as scratch:
        places = {str(job.dir): f"{scratch}/{job.name}" for job in first}  # of what is not there yet
        unknown: set[str] = set()  # stages of which nothing can be said
        for job in first:
            others = [folder for folder in places if folder != str(job.dir)]
            config, used = _with_places(job.resolved, others, places)
            if used & unknown or any(_mentions(config, folder) for folder in others):
                unknown.add(str(job.dir))
                continue
            needed = any(_mentions(other.resolved, str(job.dir)) for other in first if other is not job)
            if needed and job.resolved.get("run", {}).get("keep") == "results":
                problems.append(
                    f"stages.{job.name}: run.keep: results removes what another stage starts from; use all here"
                )
            try:
                build(job.verb, config, Path(places[str(job.dir)]) if needed else None)
            except UserError as error:
                problems.append(f"stages.{job.name}: {str(error).replace(scratch, str(job.dir.parent))}")
                unknown.add(str(job.dir))
            except (OSError, MemoryError):  # no room to try it in; the stage itself may have more
                unknown.add(str(job.dir))
    if problems:
        raise ConfigError(problems, str(path))


def _with_places(
    config: Mapping[str, Any], folders: Sequence[str], places: Mapping[str, str]
) -> tuple[dict[str, Any], set[str]]:
    """The config with the weights that it starts from, and its teachers, in their temporary places, and the folders that these are from."""
    read = {key: config[key] for key in ("backbone", "method") if isinstance(config.get(key), Mapping)}
    used = {folder for folder in folders if _mentions(read, folder)}
    for folder in used:
        read = {key: _moved(section, folder, places[folder]) for key, section in read.items()}
    return {**config, **read}, used


def _moved(value: Any, folder: str, place: str) -> Any:
    """The value with each path in a folder moved to another place."""
    if isinstance(value, str):
        return value.replace(folder, place) if _mentions(value, folder) else value
    if isinstance(value, Mapping):
        return {key: _moved(item, folder, place) for key, item in value.items()}
    return [_moved(item, folder, place) for item in value] if isinstance(value, list | tuple) else value


def _mentions(value: Any, folder: str) -> bool:
    """Whether a config holds a folder, or a path below it."""
    if isinstance(value, str):
        return value.endswith(folder) or f"{folder}/" in value
    if isinstance(value, Mapping):
        return any(_mentions(item, folder) for key, item in value.items() if key != "run")
    return isinstance(value, list | tuple) and any(_mentions(item, folder) for item in value)
