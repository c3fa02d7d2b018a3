"""What storage services and their clients raise: what is tried again, and the sentence of what is not.

Types are known by their names and codes, since their packages may not be installed. No sentence repeats a request or its headers, which
can hold credentials.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from ...errors import MachineError, UserError
from ...printable import printable

STATUSES_AGAIN = {408, 429, 500, 502, 503, 504}
"""HTTP's codes of what may succeed a moment later."""

CODES_AGAIN = {
    "SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling", "ThrottlingException",
    "RequestLimitExceeded", "TooManyRequests", "BandwidthLimitExceeded", "IncompleteBody",
}  # fmt: skip
BROKEN = {
    "ConnectionError", "EndpointConnectionError", "ConnectionClosedError", "ConnectTimeoutError", "ReadTimeoutError",
    "HTTPClientError", "ResponseStreamingError", "IncompleteReadError", "ClientPayloadError", "ClientConnectionError",
    "ClientConnectorError", "ServerDisconnectedError", "ClientOSError", "FSTimeoutError", "ServerTimeoutError", "TimeoutError",
    "ProxyConnectionError", "ContentLengthError",
}  # fmt: skip
"""Names of errors of connections that could not be made, or ended too early."""

CHANGED = {"PreconditionFailed", "412"}
NO_BUCKET = {"NoSuchBucket"}
NO_CREDENTIALS = {
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound", "ConfigNotFound",
    "NoAuthTokenError", "DefaultCredentialsError", "TokenRetrievalError", "UnauthorizedSSOTokenError", "SSOTokenLoadError",
    "ConfigParseError",
}  # fmt: skip
NO_RIGHTS = {
    "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "AllAccessDisabled",
    "RequestTimeTooSkewed", "AccountProblem", "401", "403", "Forbidden", "Unauthorized",
}  # fmt: skip


class ObjectError(MachineError):
    """An object could not be read though it is there: the network, the service, or another version of it. No picture is damaged."""


class MissingObject(UserError):
    """There is no such object, or no such bucket."""


class ShortBody(Exception):
    """Fewer bytes came than were asked for."""


class ChangedObject(Exception):
    """The object is another one than when it was opened."""


class NoRanges(Exception):
    """A server sends whole objects where a part is asked for."""


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__


def said_codes(error: BaseException) -> set[str]:
    """The codes of a service, and the names of classes, in an error and its causes."""
    found: set[str] = set()
    for one in chain(error):
        found |= {kind.__name__ for kind in type(one).__mro__[:-2]}
        response: Any = getattr(one, "response", None)
        if isinstance(response, dict):
            found.add(str(response.get("Error", {}).get("Code", "")))
            found.add(str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")))
        if isinstance(number := getattr(one, "status", None), int):  # of aiohttp
            found.add(str(number))
    return found - {""}


def is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    if isinstance(error, ShortBody | asyncio.TimeoutError | TimeoutError | ConnectionError):
        return True
    codes = said_codes(error)
    if codes & (CHANGED | NO_RIGHTS | NO_CREDENTIALS):
        return False
    return bool(codes & (CODES_AGAIN | BROKEN | {str(code) for code in STATUSES_AGAIN}))


def is_missing(error: BaseException) -> bool:
    return bool(said_codes(error) & {"FileNotFoundError", "NoSuchKey", "NoSuchBucket", "404"})


def missing_bucket(url: str) -> MissingObject:
    """url: as shown."""
    return MissingObject(
        f"{url}: there is no such bucket; check its name, the region and the endpoint (AWS_ENDPOINT_URL)"
    )


def refusal(error: BaseException, url: str, protocol: str) -> UserError:
    """The sentence of what is not tried again. url: as shown."""
    codes = said_codes(error)
    if isinstance(error, UserError):
        return error
    if isinstance(error, ChangedObject) or codes & CHANGED:
        return ObjectError(
            f"{url}: the object has changed since it was opened, so what is read of it would be of two versions; run the same command "
            "again, and leave objects as they are while runs read them"
        )
    if isinstance(error, NoRanges):
        return UserError(
            f"{url}: its server sends no parts of a file (byte ranges), which reading in random order needs; fetch it to a folder"
        )
    if codes & NO_CREDENTIALS:
        ways = (
            "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            if protocol in ("s3", "s3a")
            else "see the documentation of its fsspec package"
        )
        return UserError(f"{url}: no credentials are found, or the profile is incomplete; {ways}")
    if codes & NO_BUCKET:
        return missing_bucket(url)
    if codes & NO_RIGHTS or "PermissionError" in codes:
        return UserError(
            f"{url}: no permission to read it ({reason(error)}); check the address, ask for the right to read and list it, or use other "
            "credentials"
        )
    if is_missing(error):
        return MissingObject(f"{url}: there is no such object; check the address")
    if is_passing(error):
        return ObjectError(
            f"{url}: it cannot be read now ({reason(error)}); check the network, then run the same command again"
        )
    return ObjectError(f"{url}: it cannot be read ({reason(error)}); check the address and the service")


def reason(error: BaseException) -> str:
    """A few words about an error that hold nothing of the request."""
    codes = said_codes(error)
    if isinstance(error, ShortBody):
        return "fewer bytes came than were asked for"
    named = codes & (CODES_AGAIN | NO_RIGHTS | {str(number) for number in STATUSES_AGAIN})
    if named:  # a word rather than a number
        return f"the service says {min(named, key=lambda code: (code.isdigit(), code))}"
    if codes & {
        "EndpointConnectionError",
        "ClientConnectorError",
        "ConnectionRefusedError",
        "ConnectTimeoutError",
        "gaierror",
    }:
        return "no connection to the service"
    if codes & {"ReadTimeoutError", "FSTimeoutError", "TimeoutError", "ServerTimeoutError", "ConnectTimeoutError"}:
        return "the service does not answer"
    if codes & BROKEN:
        return "the connection ended too early"
    return printable(type(error).__name__)
