"""Addresses of objects: `PROTOCOL://...` inside a URI, such as tar:s3://bucket/train-{000..127}.tar."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from ...errors import UserError

PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
SECRETS = re.compile(
    r"[?&](?:x-amz-[^=&]*|x-goog-[^=&]*|awsaccesskeyid|signature|sig|token|access_token|password)=", re.IGNORECASE
)
"""Parameters of an address that give whoever knows them access."""


def is_remote(path: str) -> bool:
    """Whether a path is the address of an object, not a file."""
    return PROTOCOL.match(path) is not None


def protocol_of(address: str) -> str:
    """`s3` of s3://bucket/key."""
    match = PROTOCOL.match(address)
    assert match is not None
    return match.group(1).lower()


def absolute(place: str) -> str:
    """A name that doesn't depend on the working folder: an address stays as it is."""
    return place if is_remote(place) else os.path.abspath(place)


def refuse_secrets(text: str) -> None:
    """Raises UserError, which doesn't repeat it, if an address holds a password or a signature.

    URIs are written into runs, logs and pages.
    """
    for match in PROTOCOL.finditer(text):
        host = re.split(r"[/?#]", text[match.end() :], maxsplit=1)[0]
        if "@" in host:
            what = "a name or password before its host"
        elif SECRETS.search(re.sub("%3f", "?", text, flags=re.IGNORECASE)):
            what = "a signature or key"
        else:
            continue
        raise UserError(
            f"{text[: match.end()]}...: the address holds {what}, and URIs are written into runs and logs; give credentials by the "
            "environment or a profile (AWS_PROFILE for s3://), and leave them out of the URI"
        )


def refuse_secrets_in(values: Any) -> None:
    """`refuse_secrets` of every text in a config."""
    if isinstance(values, str):
        refuse_secrets(values)
    elif isinstance(values, Mapping):
        refuse_secrets_in(list(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            refuse_secrets_in(value)
