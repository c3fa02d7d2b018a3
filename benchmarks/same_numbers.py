"""Whether two checkouts compute the same: python benchmarks/same_numbers.py OLD NEW [--steps 3]

In each, every pretraining method of configs/methods.yaml is trained for a few steps on the CPU and the sha256 of its exported backbone is
printed; so are hashes of the JSON schema of all configs (references expanded, descriptions dropped) and of the command line's verbs and
options. Exit code 0 if all lines are equal. For refactors that must move no number.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

FIXED = ["run.precision=fp32", "run.device=cpu", "run.workers=0"]
COMMANDS = """
import json, typer
from rootstock.launch.cli import app
verbs = typer.main.get_command(app).commands
print(json.dumps({name: sorted(option for p in verb.params for option in (*p.opts, *p.secondary_opts)) for name, verb in verbs.items()}))
"""


def digest(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()[:16]


def resolved(schema: Any, definitions: dict[str, Any]) -> Any:
    """A JSON schema with every reference replaced by what it refers to, without descriptions and titles."""
    if isinstance(schema, list):
        return [resolved(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        schema = {
            **definitions[schema["$ref"].removeprefix("#/$defs/")],
            **{k: v for k, v in schema.items() if k != "$ref"},
        }
    # Under `properties` the keys are names, of which one may be "title" or "description".
    return {
        key: {name: resolved(part, definitions) for name, part in value.items()}
        if key == "properties"
        else resolved(value, definitions)
        for key, value in schema.items()
        if key not in ("description", "title", "$defs")
    }


def whole_schema(schema: dict[str, Any]) -> Any:
    definitions = schema["$defs"]
    verbs = {part["$ref"].removeprefix("#/$defs/") for part in schema["anyOf"]}
    return {verb: resolved(definitions[verb], definitions) for verb in verbs}


def measured(checkout: Path, steps: int) -> Iterator[tuple[str, str]]:
    """(what, hash) of everything that is compared."""
    with tempfile.TemporaryDirectory() as temporary:
        packages = Path(temporary)
        (packages / "rootstock").symlink_to(checkout.resolve())
        environment = {**os.environ, "PYTHONPATH": temporary, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

        def python(*arguments: str) -> str:
            return subprocess.check_output([sys.executable, *arguments], cwd=temporary, env=environment, text=True)

        yield "schema", digest(whole_schema(json.loads(python("-m", "rootstock", "schema"))))
        for verb, options in sorted(json.loads(python("-c", COMMANDS)).items()):
            yield f"verb {verb}", digest(options)
        # One interpreter, forked for each command: the imports take longer than the steps.
        driver = subprocess.Popen(
            [sys.executable, str(packages / "rootstock" / "tests" / "driver.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=temporary, env=environment, text=True,
        )  # fmt: skip
        assert driver.stdin is not None and driver.stdout is not None
        stages = yaml.safe_load((checkout / "configs" / "methods.yaml").read_text())["stages"]
        for name, stage in stages.items():
            if stage["verb"] != "pretrain":
                continue
            overrides = [f"{key}={json.dumps(value)}" for key, value in stage.get("set", {}).items()]
            overrides += [f"optim.duration={steps}", f"run.dir={temporary}/{name}", *FIXED]
            job = {
                "argv": ["pretrain", stage["config"], *overrides],
                "log": "log",
                "at": -1,
                "signal": 9,
                "save": False,
            }
            driver.stdin.write(json.dumps(job) + "\n")
            driver.stdin.flush()
            if driver.stdout.readline().strip() != "0":
                sys.exit(f"{checkout}: {name}: {(packages / 'log').read_text()}")
            yield f"pretrain {name}", digest((packages / name / "backbone" / "backbone.safetensors").read_bytes())
        driver.communicate()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", type=Path, nargs="+", metavar="CHECKOUT")
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    tables = [dict(measured(checkout, options.steps)) for checkout in options.checkouts]
    equal = True
    for what in {what: None for table in tables for what in table}:
        hashes = [table.get(what, "-") for table in tables]
        same = len(set(hashes)) == 1
        equal &= same
        print(f"{what:24} {'  '.join(f'{h:16}' for h in hashes)}{'' if same else '  DIFFERENT'}", flush=True)
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
