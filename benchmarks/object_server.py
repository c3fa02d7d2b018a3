"""An S3 server on loopback, moto's, in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

BUCKET, SECONDS = "bench", 60.0


@contextmanager
def served(files: Mapping[str, Path]) -> Iterator[str]:
    """Within it, s3://BUCKET/NAME is each of the files, by the environment of this process. Yields the address of the bucket."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    own = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    before = {name: os.environ.get(name) for name in own}
    try:
        wait_for(port, server)
        put(f"{endpoint}/{BUCKET}", b"")
        for name, file in files.items():
            put(f"{endpoint}/{BUCKET}/{name}", file.read_bytes())
        os.environ.update(own)
        yield f"s3://{BUCKET}"
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        server.terminate()
        server.wait()


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    """Raises RuntimeError if nothing listens there in time."""
    for _ in range(int(SECONDS / 0.1)):
        if server.poll() is not None:
            break
        with socket.socket() as knock:
            if knock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError("moto's server does not start; is moto[s3] with flask installed?")


def put(url: str, content: bytes) -> None:
    headers = {"Content-Type": "application/octet-stream"}
    with urllib.request.urlopen(urllib.request.Request(url, content, headers, method="PUT")) as answer:
        assert answer.status == 200
