"""`run.compile`: torch.compile of the method and of the augmentation, with static shapes.

It changes only speed. `auto` compiles on CUDA and continues uncompiled if that fails; `on` raises an error that says what is missing.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..errors import UserError
from ..run.directory import Run


class _Fallback:
    """A compiled function that is replaced by the plain one if its first call fails, for `run.compile: auto`."""

    def __init__(self, plain: Callable[..., Any], fast: Callable[..., Any], run: Run, what: str) -> None:
        self.plain, self.fast, self.run, self.what, self.tried = plain, fast, run, what, False

    def __call__(self, *arguments: Any) -> Any:
        if self.tried:
            return self.fast(*arguments)
        from torch._dynamo.exc import TorchDynamoException  # imported here: it takes two seconds
        from torch._inductor.exc import InductorError

        try:
            result = self.fast(*arguments)
        except (TorchDynamoException, InductorError) as error:
            self.run.log(
                f"WARNING: {self.what} cannot be compiled and runs as it is ({_first_line(error)}); "
                "run.compile=off says so from the start"
            )
            self.fast = self.plain
            result = self.plain(*arguments)
        self.tried = True
        return result


def should_compile(run: Run) -> bool:
    """Whether this run compiles. Raises UserError if `run.compile` is `on` and compiling does not work."""
    mode, device = run.options["compile"], run.device.type
    if mode == "off" or (mode == "auto" and device != "cuda"):
        return False
    trouble = compiler_trouble(device)
    if trouble is None:
        return True
    needed = "Triton" if device == "cuda" else "a C++ compiler (g++ or clang++)"
    if mode == "on":
        raise UserError(
            f"run.compile: on needs {needed} that works ({trouble}); install one, or use run.compile=auto or off"
        )
    run.log(
        f"WARNING: nothing is compiled, for that needs {needed} ({trouble}); run.compile=off says so from the start"
    )
    return False


def compiled(plain: Callable[..., Any], run: Run, what: str) -> Callable[..., Any]:
    """`plain` compiled for static shapes. what: its name in a warning."""
    fast = torch.compile(plain, dynamic=False)
    return fast if run.options["compile"] == "on" else _Fallback(plain, fast, run, what)


def compiled_method(method: nn.Module, run: Run) -> Callable[..., Any]:
    """The method's forward, compiled. `progress` reaches it as a float64 scalar tensor.

    As a Python float it would be a constant of the graph, and each step would compile another (tests/core/train/test_compile.py). A turn
    is one: each turn has a graph of its own.
    """
    fast = compiled(method, run, "the method")
    return lambda batch, progress, *turn: fast(batch, torch.tensor(progress, dtype=torch.float64), *turn)


@functools.cache
def compiler_trouble(device: str) -> str | None:
    """Why torch.compile cannot work for a device type, found out by compiling a sum; None if it can."""
    import torch._inductor.config as inductor

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about compiler versions; only whether they work matters
        try:
            # Without caches: an earlier process's result would hide that the compiler is gone.
            with inductor.patch(force_disable_caches=True):
                torch.compile(_probe, dynamic=False)(torch.ones(8, device=device))
        except Exception as error:  # whatever a missing or broken tool chain raises
            return _first_line(error)
    return None


def _probe(x: torch.Tensor) -> torch.Tensor:
    return (x + 1.0).cos()


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
