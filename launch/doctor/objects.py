"""Whether object storage can be read: s3:// in a URI. Nothing is asked of a service."""

import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

from ...core.errors import UserError
from ...core.images.remote.blocks import DEFAULT_MOST
from ...core.images.remote.client import opened_client
from .findings import Finding


def object_storage() -> Iterator[Finding]:
    try:
        opened_client("s3", "s3://")
    except UserError as error:
        yield Finding("note", "s3", f"{str(error).removeprefix('s3://: ')} (only for s3:// in URIs)")
        return
    place = urlsplit(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "")
    where = f"at {place.hostname}{f':{place.port}' if place.port else ''}" if place.hostname else "at Amazon's endpoint"
    said = f"s3fs {version('s3fs')} reads s3:// {where}, with {credentials()}; the cache holds {DEFAULT_MOST} unless ?cache= says more"
    yield Finding("ok", "s3", said)


def credentials() -> str:
    """Where the AWS ways of giving credentials begin here; never what they are."""
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return "the credentials of the environment"
    if os.environ.get("AWS_PROFILE"):
        return f"the profile {os.environ['AWS_PROFILE']}"
    files = [
        os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials",
        os.environ.get("AWS_CONFIG_FILE") or "~/.aws/config",
    ]
    if any(Path(os.path.expanduser(file)).is_file() for file in files):
        return "the default profile"
    return "no credentials in the environment or in ~/.aws (a role of the machine may have some)"
