"""The files that Rootstock itself writes, told by their names: what it wrote is never read as data."""

from collections.abc import Collection

RUN_CONFIG, RUN_RECORDS = "config.yaml", ("run.json", "state.json")
"""A folder is that of a run if it holds the first file and one of the others."""

RUN_FOLDERS = ("pictures", "checkpoints", "backbone", "classifier")
"""The folders inside a run."""

OLD_SHEET = "contact-sheet.png"
"""The contact sheet that earlier versions saved in the working directory, often among the pictures."""


def is_run(names: Collection[str]) -> bool:
    """Whether a folder that holds these names is a run's."""
    return RUN_CONFIG in names and any(name in names for name in RUN_RECORDS)


def run_folders(names: Collection[str]) -> set[str]:
    """The folders of runs among the members of an archive; "" for the archive itself. names: with / between folders."""
    holders = {
        mark: {name.rpartition("/")[0] for name in names if _last(name) == mark} for mark in (RUN_CONFIG, *RUN_RECORDS)
    }
    return holders[RUN_CONFIG] & set().union(*(holders[mark] for mark in RUN_RECORDS))


def is_output(name: str, runs: Collection[str]) -> bool:
    """Whether a member of an archive lies in one of the folders inside a run. runs: as `run_folders` found them."""
    return any(name.startswith(f"{run}/{inner}/".lstrip("/")) for run in runs for inner in RUN_FOLDERS)


def _last(name: str) -> str:
    return name.rpartition("/")[2]
