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
