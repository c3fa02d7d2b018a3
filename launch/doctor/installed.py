"""Checks of the installation: Python, packages, compiled operations, compiler."""

import importlib
import os
import platform
import shutil
import ssl
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from .findings import Finding, short_message


def python() -> Iterator[Finding]:
    verdict = "ok" if sys.version_info >= (3, 11) else "wrong"
    yield Finding(verdict, "python", f"{platform.python_version()} on {platform.platform()} (3.11 or newer is needed)")
    if not hasattr(ssl, "OPENSSL_VERSION"):
        yield Finding("wrong", "ssl", f"`import ssl` gives {ssl}, not Python's own; remove ssl/__init__.py")


def packages() -> Iterator[Finding]:
    """Every package that setup.cfg requires is installed and new enough; those with compiled parts can be imported."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in requires("rootstock") or []]
    except PackageNotFoundError:
        yield Finding("wrong", "packages", "rootstock is not installed here; run `pip install -e .` in the checkout")
        return
    found = []
    for requirement in wanted:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found.append(f"{requirement.name} {version(requirement.name)}")
        except PackageNotFoundError:
            yield Finding("wrong", "packages", f"{requirement.name} is missing; run `pip install '{requirement}'`")
            continue
        if not requirement.specifier.contains(version(requirement.name), prereleases=True):
            yield Finding(
                "wrong", "packages", f"{found[-1]} is not {requirement.specifier}; run `pip install '{requirement}'`"
            )
    yield Finding("ok", "packages", ", ".join(found))
    for name in ("torch", "torchvision", "timm", "lightly", "faiss", "accelerate", "sklearn", "safetensors"):
        try:
            importlib.import_module(name)
        except Exception as error:
            yield Finding("wrong", name, f"cannot be imported ({short_message(error)}); reinstall it")


def torchvision() -> Iterator[Finding]:
    """torch and torchvision must be compiled for each other; a wrong pair imports without error and fails at its first operation."""
    import torch
    from torchvision.ops import nms

    pair = f"torchvision {version('torchvision')} with torch {version('torch')}"
    try:
        right = nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2), torch.tensor([0.1, 0.9]), 0.5).tolist() == [1]
        text = "its compiled operations work" if right else "a compiled operation computes wrongly"
    except (RuntimeError, AttributeError) as error:
        right, text = False, f"its compiled operations do not work ({short_message(error)}); install the matching pair"
    yield Finding("ok" if right else "wrong", "torchvision", f"{pair}: {text}")


def compiler() -> Iterator[Finding]:
    found = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)
    if found:
        yield Finding("ok", "compiler", f"{found} (for run.compile=on on the CPU)")
    else:
        yield Finding(
            "note", "compiler", "no C++ compiler: run.compile=on does not work on the CPU; install g++ if you want it"
        )
    if not shutil.which("git"):
        yield Finding("note", "git", "not found: run.json cannot name the commit of the code")
