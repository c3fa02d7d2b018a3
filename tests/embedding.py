"""One of a group of processes of `rootstock embed`: embedding.py ARGV FAULT. FAULT: what rank 1 does in place of its pictures."""

import json
import os
import signal
import sys
from typing import Any

from rootstock.core.run.options import options
from rootstock.launch import cli
from rootstock.launch.outputs import embed


def main(argv: str, fault: str) -> None:
    sys.argv = ["rootstock", *json.loads(argv)]
    assert options.__kwdefaults__ is not None
    options.__kwdefaults__["timeout"] = 3.0
    if os.environ["RANK"] == "1" and fault:

        def faulty(*_: Any, **__: Any) -> Any:
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("a bug on one rank")

        embed.features = faulty
    cli.main()


if __name__ == "__main__":
    main(*sys.argv[1:])
