"""A real S3 server on loopback, moto's, with faults on demand; and what tests of objects share. Needs the extra `s3` and moto."""

from __future__ import annotations

import io
import logging
import re
import sys
import tarfile
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pytest

BUCKET = "shelf"
Fault = Callable[[str, str], str | None]
"""(method, path of an object) -> what goes wrong: slow, busy, denied, short, whole; None for nothing."""

ERRORS = {
    "slow": ("503 Slow Down", "SlowDown"), "busy": ("429 Too Many Requests", "TooManyRequests"),
    "denied": ("403 Forbidden", "AccessDenied"),
}  # fmt: skip


class ObjectStore:
    """The server. gets: (path, first byte, last byte) of each part that was asked for. fault: what goes wrong now."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._app: Any = DomainDispatcherApplication(create_backend_app)
        self.gets: list[tuple[str, int, int]] = []
        self.fault: Fault = lambda method, path: None
        self.port, self._server = 0, None
        self.start()

    def start(self) -> None:
        from werkzeug.serving import make_server

        self._server = make_server("127.0.0.1", self.port, self.answer, threaded=True)
        self.port = self._server.port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def running(self) -> bool:
        return self._server is not None

    def stop(self) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        self._server = None

    def stop_soon(self) -> None:
        """From a request: after it the server is gone, and what is being read from it is cut off."""
        threading.Thread(target=self.stop).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """The usual variables of AWS that lead to this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint, "AWS_ACCESS_KEY_ID": "AKIDOFATEST", "AWS_SECRET_ACCESS_KEY": "secret-of-a-test",
            "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/nowhere/config",
            "AWS_SHARED_CREDENTIALS_FILE": "/nowhere/credentials",
        }  # fmt: skip

    def put(self, key: str, content: bytes) -> str:
        """Store an object; returns its address."""
        if key:
            self._send(f"{BUCKET}/{key}", content)
        return f"s3://{BUCKET}/{key}"

    def make_bucket(self) -> None:
        self._send(BUCKET, b"")

    def _send(self, path: str, content: bytes) -> None:
        headers = {"x-amz-acl": "public-read", "Content-Type": "application/octet-stream"}
        request = urllib.request.Request(f"{self.endpoint}/{path}", content, headers, method="PUT")
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 200

    def answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """The application of the server: moto's, with what goes wrong before it or behind it."""
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        wrong = self.fault(method, path)
        if wrong in ERRORS:
            status, code = ERRORS[wrong]
            content = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()
            start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(content)))])
            return [b"" if method == "HEAD" else content]
        if wrong == "whole":
            environ.pop("HTTP_RANGE", None)
        if method == "GET" and (span := re.fullmatch(r"bytes=([0-9]+)-([0-9]+)", environ.get("HTTP_RANGE", ""))):
            self.gets.append((path, int(span.group(1)), int(span.group(2))))
        answer = self._app(environ, start)
        return self._cut(answer) if wrong == "short" and method == "GET" else answer

    def _cut(self, answer: Iterable[bytes]) -> Iterator[bytes]:
        """Half of a body, whose header announced the whole one."""
        content = b"".join(answer)
        yield content[: len(content) // 2]
        raise ConnectionAbortedError


def archive(members: Mapping[str, bytes]) -> bytes:
    """An uncompressed .tar."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    return file.getvalue()


def needs_objects() -> None:
    """Skip a test file where the packages are missing."""
    for name in ("s3fs", "moto", "flask", "flask_cors"):
        pytest.importorskip(name, reason=f"{name} is not installed (the extras `s3` and `test`)")


def without_s3fs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were not installed."""
    registry: Any = pytest.importorskip("fsspec.registry")
    monkeypatch.delitem(registry._registry, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
