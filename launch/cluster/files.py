"""`rootstock launch --files`: copies the ready-made files for Accelerate, SLURM, SkyPilot, Kubernetes and Docker.

Users are meant to change them, so they are copied to where the user works.
"""

import shutil
from pathlib import Path

import typer

from ...core.errors import UserError

HERE = Path(__file__).parents[1]
READY = ("Dockerfile", "accelerate/*.yaml", "cloud/*.yaml", "slurm/*.sh")


def ready_files() -> list[Path]:
    """The paths of the ready-made files, relative to launch/."""
    return sorted(path.relative_to(HERE) for pattern in READY for path in HERE.glob(pattern))


def copy_ready_files(folder: Path) -> None:
    """Copy the files into `folder`, which is created, and print their paths. Raises UserError rather than overwrite a file."""
    taken = [path for path in ready_files() if (folder / path).exists()]
    if taken:
        raise UserError(f"--files {folder}: {folder / taken[0]} is there already; name another folder")
    try:
        for path in ready_files():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(HERE / path, folder / path)
            typer.echo(folder / path)
    except OSError as error:
        raise UserError(f"--files {folder}: cannot be written ({error}); name another folder") from error
