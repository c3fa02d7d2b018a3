"""Asks storage services for objects, by fsspec: what there is, and parts of it, with retries.

The clients of fsspec work in a thread of their own, which no fork copies, so each process opens its own when it first asks.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from ...errors import UserError
from ...launchlog import warn
from ...phase import note_progress
from ..places import abridged
from .address import protocol_of
from .faults import (
    ChangedObject,
    MissingObject,
    NoRanges,
    ObjectError,
    ShortBody,
    is_missing,
    is_passing,
    missing_bucket,
    reason,
    refusal,
)

PROTOCOL_PACKAGES = {
    "s3": ("s3fs", "'rootstock[s3]'"), "s3a": ("s3fs", "'rootstock[s3]'"), "http": ("aiohttp", "aiohttp"),
    "https": ("aiohttp", "aiohttp"), "gs": ("gcsfs", "gcsfs"), "gcs": ("gcsfs", "gcsfs"), "az": ("adlfs", "adlfs"),
    "abfs": ("adlfs", "adlfs"),
}  # fmt: skip
"""The package that speaks a protocol, and what pip installs for it."""

TRIES, FIRST_WAIT, LONGEST_WAIT, LONGEST = 10, 0.25, 8.0, 40.0
"""How often a request is made; seconds before the second try, which double up to the longest; and after so many in all, none is made."""

CONNECT_SECONDS, READ_SECONDS, QUIET_SECONDS = 5, 15, 60
VERSION_FIELDS = ("ETag", "etag", "generation", "md5Hash", "content_md5", "Content-MD5", "Digest")
TIME_FIELDS = ("LastModified", "Last-Modified", "last_modified", "updated", "mtime", "created")
"""What the information about an object calls its version, and its time of change."""

_Answer = TypeVar("_Answer")
_clients: dict[tuple[Any, ...], Any] = {}


class Clock(NamedTuple):
    """What retries need of time: seconds now, and a pause."""

    now: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep


class Retrying:
    """The clock that retries use; tests put another one here. quiet_until: when this process may complain again."""

    clock = Clock()
    quiet_until = float("-inf")


class RemoteObject(NamedTuple):
    """An object as it was when it was opened. tag: what the service calls this version of it (ETag, or else its time of change)."""

    url: str
    size: int
    tag: str

    @property
    def version(self) -> int:
        """The tag as a number of 56 bits: as a time in ns it is one long ago."""
        return int.from_bytes(hashlib.sha256(self.tag.encode()).digest()[:7], "big")

    @property
    def stamp(self) -> tuple[int, int, int]:
        """In the place of a file's size and times."""
        return self.size, self.version, self.version


def client_for(url: str) -> Any:
    """This process's client of a protocol, for the present endpoint and credentials. Raises UserError if its package is missing."""
    protocol = protocol_of(url)
    given = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    client = _clients.get((os.getpid(), protocol, given))
    if client is None:
        client = _clients[os.getpid(), protocol, given] = opened_client(protocol, abridged(url))
    return client


def opened_client(protocol: str, title: str) -> Any:
    """A client of fsspec. No client retries by itself: `asked` does, so that there is one place to count and to wait."""
    package, install = PROTOCOL_PACKAGES.get(protocol, ("its package of fsspec", ""))
    options: dict[str, Any] = {"skip_instance_cache": True}
    if protocol in ("s3", "s3a"):
        limits = {
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": READ_SECONDS,
            "retries": {"total_max_attempts": 1},
        }
        options |= {"config_kwargs": limits, "use_listings_cache": False, "default_fill_cache": False}
    try:
        import fsspec

        client = fsspec.filesystem(protocol, **options)
    except ImportError:
        how = f"`pip install {install}`" if install else "install it, as fsspec's documentation says"
        raise UserError(f"{title}: {package} reads {protocol}://, which is not installed; {how}") from None
    except ValueError:
        raise UserError(
            f"{title}: {protocol}:// is no protocol that fsspec knows; use for example s3://, gs:// or https://, or a path"
        ) from None
    except Exception as error:  # of the profile, for example
        raise refusal(error, title, protocol) from None
    if hasattr(client, "retries"):
        client.retries = 1
    return client


def asked(url: str, request: Callable[[Any], _Answer]) -> _Answer:
    """The answer of a service, asked again after throttling and broken connections. Raises UserError, or ObjectError.

    request: gets the client of this process.
    """
    clock, began, shown = Retrying.clock, Retrying.clock.now(), abridged(url)
    for number in range(TRIES):
        try:
            answer = request(client_for(url))
        except Exception as error:
            wait = min(FIRST_WAIT * 2**number, LONGEST_WAIT) * (0.75 + 0.25 * _spread(number))
            last = number == TRIES - 1 or clock.now() - began + wait > LONGEST
            if last and is_passing(error):
                raise ObjectError(
                    f"{shown}: it cannot be read now ({reason(error)}, {number + 1} times in {clock.now() - began:.0f} s); check the "
                    "network, then run the same command again to go on"
                ) from None
            if last or not is_passing(error):
                raise refusal(error, shown, protocol_of(url)) from None
            if number == 1 and clock.now() > Retrying.quiet_until:  # one failure is usual where many read
                Retrying.quiet_until = clock.now() + QUIET_SECONDS
                warn(f"WARNING: {shown}: {reason(error)}; it is asked for again")
            clock.pause(wait)
        else:
            note_progress()
            return answer
    raise AssertionError("the last try returns or raises")


def _spread(number: int) -> float:
    """0 to 1, different in each process, so that those that were refused together don't come back together."""
    return (os.getpid() * 40_503 + number * 9_973) % 1024 / 1023


def found_object(url: str) -> RemoteObject:
    """The object at an address. Raises UserError if there is none."""
    shown = abridged(url)
    try:
        found = asked(url, lambda client: client.info(client._strip_protocol(url)))
    except MissingObject:
        refuse_missing_bucket(url)
        raise
    if found.get("type") == "directory":
        raise UserError(f"{shown}: it is a folder; name objects in it, for example {shown.rstrip('/')}/*.tar")
    return object_of(url, found)


def refuse_missing_bucket(url: str) -> None:
    """Raises UserError if not even the bucket of an object is there: a HEAD request says only that something is missing."""
    if protocol_of(url) not in ("s3", "s3a"):
        return

    def look(client: Any) -> None:
        bucket, _, _ = client.split_path(client._strip_protocol(url))
        try:
            client.call_s3("head_bucket", Bucket=bucket)
        except Exception as error:
            if is_missing(error):
                raise missing_bucket(abridged(url)) from None
            if is_passing(error):
                raise

    asked(url, look)


def object_of(url: str, found: Mapping[str, Any]) -> RemoteObject:
    """The object that a service describes. Raises UserError if it can't be seen whether it changes, or how large it is."""
    tag = next((str(found[name]) for name in VERSION_FIELDS if found.get(name)), None)
    tag = tag or next((text_of_time(found[name]) for name in TIME_FIELDS if found.get(name)), None)
    size = found.get("size")
    if tag is None or not isinstance(size, int):
        what = "neither a version nor a time of change" if tag is None else "no size"
        raise UserError(
            f"{abridged(url)}: its server says {what} of it, so it cannot be read safely; fetch it to a folder"
        )
    return RemoteObject(url, size, tag)


def text_of_time(value: Any) -> str:
    """A time of change; one service says it in two ways, alone and in a list."""
    return str(value.timestamp() if isinstance(value, datetime) else value)


def matching(pattern: str) -> list[RemoteObject]:
    """The objects that a pattern with * and [..] names, sorted by address."""
    found = asked(pattern, lambda client: client.glob(client._strip_protocol(pattern), detail=True))
    return objects_listed(pattern, found)


def below(folder: str, ending: str) -> list[RemoteObject]:
    """The objects below an address whose names have an ending, sorted; hidden ones are passed over."""
    found = asked(folder, lambda client: client.find(client._strip_protocol(folder), detail=True))
    last = {name: name.rpartition("/")[2] for name in found}
    return objects_listed(
        folder, {name: one for name, one in found.items() if last[name].endswith(ending) and last[name][0] not in "._"}
    )


def objects_listed(asked_for: str, found: Mapping[str, Any]) -> list[RemoteObject]:
    protocol = protocol_of(asked_for)
    objects = {
        name if "://" in name else f"{protocol}://{name.lstrip('/')}": one
        for name, one in found.items()
        if one.get("type") == "file"
    }
    return [object_of(url, objects[url]) for url in sorted(objects)]


def part_of_object(one: RemoteObject, start: int, end: int) -> bytes:
    """The bytes [start, end) of an object. Raises ObjectError, also if it is another version now."""

    def request(client: Any) -> bytes:
        content = _part(client, one, start, end)
        if len(content) != end - start:
            if len(content) == one.size:
                raise NoRanges
            raise ShortBody
        return content

    return asked(one.url, request)


def _part(client: Any, one: RemoteObject, start: int, end: int) -> bytes:
    protocol, path = protocol_of(one.url), client._strip_protocol(one.url)
    strong = one.tag.startswith('"')
    if protocol in ("s3", "s3a"):
        return _part_of_s3(client, path, one.tag, start, end)
    if protocol in ("http", "https"):
        condition = {"If-Match": one.tag} if strong else {}
        content = client.cat_file(path, start=start, end=end, headers={"Accept-Encoding": "identity", **condition})
    else:
        strong, content = False, client.cat_file(path, start=start, end=end)
    # without a condition in the request: bytes that came before this look are of the version that is still there
    if not strong and object_of(one.url, client.info(path)).tag != one.tag:
        raise ChangedObject
    return content


def _part_of_s3(client: Any, path: str, tag: str, start: int, end: int) -> bytes:
    """With the version as a condition of the request, which s3fs offers only for its files."""
    from fsspec.asyn import sync

    bucket, key, _ = client.split_path(path)

    async def request() -> bytes:
        service = await client.set_session()
        answer = await service.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}", IfMatch=tag)
        async with answer["Body"] as body:
            return await body.read()

    content: Any = sync(client.loop, request)
    return content
