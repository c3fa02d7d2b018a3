"""What the operating system, a decoder, a parser, a missing package or too little memory raised, as one sentence and an exit code.

Whatever has no sentence here is a bug of ours. Types are known by their names: to import their libraries would take seconds.
"""

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ..core.errors import MachineError, ProcessesFailed, UserError, first_line, places

MISTAKE, FAILURE = 2, 1  # exit codes: of a user's mistake, and of what the machine could not do

# What the system says, and what to do about it. The first group is a user's mistake.
_MISTAKES = {
    errno.ENOENT: "check the path",
    errno.EACCES: "give yourself the permission, or choose another place",
    errno.EPERM: "give yourself the permission, or choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.EEXIST: "choose another name",
    errno.EISDIR: "give a file",
    errno.ENOTDIR: "a part of the path is a file; check the path",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "a link leads back to itself; check the path",
    errno.EINVAL: "check the path",
    errno.ENXIO: "give a file, not a device or a socket",
    errno.ENODEV: "give a file, not a device or a socket",
    errno.ENOTEMPTY: "choose an empty folder",
    errno.EXDEV: "choose a place on the same file system",
}  # fmt: skip
_FAILURES = {
    errno.ENOSPC: "free some space, then run the same command to resume",
    errno.EDQUOT: "free some space, then run the same command to resume",
    errno.EFBIG: "the file system or `ulimit -f` allows no larger file; raise the limit, then run the same command to resume",
    errno.EMFILE: "raise the limit (`ulimit -n`), or use fewer run.workers",
    errno.ENFILE: "close other programs, or use fewer run.workers",
    errno.ENOMEM: "free some memory, or use a smaller batch or fewer run.workers",
    errno.EAGAIN: "the machine allows no more processes or threads (`ulimit -u`); use fewer run.workers",
    errno.EIO: "the disk or the network reports an error; check it, then run the same command again",
    errno.ESTALE: "the network disk was mounted anew; run the same command again",
    errno.ETXTBSY: "another program uses the file; wait for it",
    errno.EBUSY: "another program uses the file; wait for it",
}
_FULL = (errno.ENOSPC, errno.EDQUOT)
# Errors of parsers and decoders, by the full names of their classes.
_UNREADABLE = {
    "json.decoder.JSONDecodeError", "yaml.error.YAMLError", "PIL.UnidentifiedImageError", "PIL.Image.DecompressionBombError",
    "zlib.error", "_lzma.LZMAError", "zipfile.BadZipFile", "tarfile.TarError", "_csv.Error", "safetensors_rust.SafetensorError",
    "struct.error", "binascii.Error", "builtins.EOFError", "xml.parsers.expat.ExpatError", "pickle.UnpicklingError",
    "builtins.UnicodeDecodeError", "gzip.BadGzipFile",
}  # fmt: skip
# Packages whose name for pip is not the module's.
_PIP = {
    "PIL": "pillow", "cv2": "opencv-python", "faiss": "faiss-cpu", "optuna": "'rootstock[sweep]'", "peft": "'rootstock[lora]'",
    "sklearn": "scikit-learn", "tensorboard": "'rootstock[track]'", "wandb": "'rootstock[track]'",
    "mlflow": "'rootstock[track]'", "yaml": "pyyaml",
}  # fmt: skip
_NO_MEMORY = re.compile(
    r"can't allocate memory|DefaultCPUAllocator|Cannot allocate memory|bad_alloc|CUDA out of memory"
)


def sentence_of(error: BaseException) -> tuple[str, int] | None:
    """(sentence, exit code) of an error that has a cause outside of Rootstock; None for a bug."""
    if isinstance(error, UserError):
        return str(error), FAILURE if isinstance(error, MachineError) else MISTAKE
    if isinstance(error, ProcessesFailed):
        return str(error), error.code
    for cause in _causes(error):
        where = _where(error, cause)
        if (found := _of_system(cause, where)) or (found := _of_memory(cause, where)) or (found := _of_import(cause)):
            return found
        if found := _of_content(cause, where):
            return found
    return None


def _of_system(error: BaseException, where: str) -> tuple[str, int] | None:
    full = os.strerror(errno.ENOSPC) in str(error)  # libraries written in Rust and C++ say it only in the message
    number = errno.ENOSPC if full else error.errno if isinstance(error, OSError) else None
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        number = errno.EAGAIN
    if number is None or isinstance(error, BrokenPipeError | ConnectionError):
        return None
    if number in _FULL:
        return f"the disk is full ({where}{first_line(error)}); {_FAILURES[number]}", FAILURE
    name = getattr(error, "filename", None)
    file = "" if name is None else f"{os.fsdecode(name) if isinstance(name, bytes) else name}: "
    if file and where.endswith(file):
        file = ""
    said = getattr(error, "strerror", None) or first_line(error)
    if number in _MISTAKES and (file or where):
        return f"{where}{file}{said}; {_MISTAKES[number]}", MISTAKE
    if number in _FAILURES or file:
        remedy = _FAILURES.get(number, "check the path and the disk, then run the same command again")
        return f"{where}{file}{said}; {remedy}", FAILURE
    return None


def _of_memory(error: BaseException, where: str) -> tuple[str, int] | None:
    device = type(error).__name__ == "OutOfMemoryError" or "CUDA out of memory" in str(error)
    if not (
        device or isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)))
    ):
        return None
    what = "the device's memory is full" if device else "the memory is full"
    said = first_line(error) if str(error) else "no more could be had"
    return (
        f"{where}{what} ({said}); use a smaller optim.batch_size or data.size, set run.chunk or run.accumulate, or fewer run.workers",
        FAILURE,
    )


def _of_import(error: BaseException) -> tuple[str, int] | None:
    if not isinstance(error, ImportError) or error.name is None:
        return None
    top = error.name.partition(".")[0]
    if top in ("", __name__.partition(".")[0]):
        return None
    package = _PIP.get(top, top)
    if isinstance(error, ModuleNotFoundError):
        return f"the package {top} is not installed; `pip install {package}`", FAILURE
    return (
        f"the package {top} cannot be imported ({first_line(error)}); install it anew: `pip install --upgrade --force-reinstall {package}`",
        FAILURE,
    )


def _of_content(error: BaseException, where: str) -> tuple[str, int] | None:
    if isinstance(error, UnicodeEncodeError):
        text = error.object[max(0, error.start - 20) : error.end + 20]
        return (
            f"{where}{text!r} holds characters that {error.encoding} cannot write; rename it, or set PYTHONUTF8=1",
            FAILURE,
        )
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    if not where or not (names & _UNREADABLE or isinstance(error, RecursionError)):
        return None
    said = "it is nested too deeply" if isinstance(error, RecursionError) else first_line(error)
    return f"{where}cannot be read ({said}); it is damaged or of another kind, so restore it or give another", FAILURE


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__


def _where(error: BaseException, cause: BaseException) -> str:
    """`data.train: folder:x: ` from the notes of `at`; else the file that our innermost function had in hand; else empty."""
    noted = list(dict.fromkeys([*places(error), *places(cause)]))
    return "".join(f"{place}: " for place in noted or _path_in_hand(cause))


def _path_in_hand(error: BaseException) -> list[str]:
    """The local variable `path`, `file` or `folder` of the innermost function of ours that has one, if it is a path."""
    own, found = __name__.partition(".")[0], list[str]()
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if str(frame.f_globals.get("__name__", "")).startswith(own):
            values = [frame.f_locals.get(name) for name in ("path", "file", "folder")]
            found = next(([str(value)] for value in values if isinstance(value, Path)), found)
        trace = trace.tb_next
    return found


def abbreviated(text: str, most: int = 2000) -> str:
    """A text whose lines have at most `most` characters: of a longer one the begin and the end, where the remedy stands."""
    lines = [
        line if len(line) <= most else f"{line[: most // 2]} ... {line[-most // 4 :]}" for line in text.split("\n")
    ]
    return "\n".join(lines)
