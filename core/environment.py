"""Versions, commit and host, which are recorded with every result."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor's name: results of different ones differ in their last bits."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def environment() -> dict[str, Any]:
    """What run.json records of machine and software; commit is "" outside a git checkout."""
    versions, commit = _software()
    return {
        "versions": dict(versions),
        "commit": commit,
        "host": platform.node(),
        "processor": processor(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


@cache
def _software() -> tuple[Mapping[str, str], str]:
    """The versions of packages, and the commit: once, for what this process has imported stays as it was."""
    packages = ("rootstock", "torch", "timm", "lightly", "accelerate", "faiss-cpu", "scikit-learn", "numpy")
    root = Path(__file__).resolve().parents[1]
    versions = {"python": platform.python_version(), **{name: version_of(name) for name in packages}}
    commit = _git(root, "rev-parse", "HEAD") if (root / ".git").exists() else ""
    commit += "+changes" if commit and _git(root, "status", "--porcelain") else ""
    return versions, commit


def version_of(package: str) -> str:
    """The version of a package; "unknown" if it is installed under another name (conda's faiss), or not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _git(root: Path, *arguments: str) -> str:
    """git's output, stripped; "" if git fails or is missing."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()
