"""Draw the interrupted runs that tests/test_old_runs.py resumes: python tests/formats/draw.py CHECKOUT OUT

CHECKOUT: a clone of the commit whose format is to be kept. OUT: a new folder, tests/formats/N. Each case is run twice by that commit:
killed after ten steps (OUT/CASE/run, with its newest checkpoint alone), and straight through (OUT/CASE/backbone.safetensors, and the
file's sha256 in OUT/expected.json beside the versions and the processor that computed it).
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

STEPS, KILLED_AT, SAVED_EVERY = 16, 10, 8
DATA = "sklearn:digits?size=16"
CONV = {"name": "smallconv", "args": {"widths": [8, 8, 8, 16]}}
VIT = {"name": "vit_tiny_patch16_224", "args": {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}}
OPTIM = {"lr": 0.01, "batch_size": 16, "duration": STEPS, "warmup": "10%", "weight_decay": 0.05}
RUN = {"dir": "run", "workers": 0, "log_every": 1, "device": "cpu", "checkpoint": {"every": SAVED_EVERY}}
VIEWS = {"train": f"{DATA}#[:100]", "size": 16, "views": "digits"}
DINO = {"name": "dino", "prototypes": 10, "hidden": 12, "bottleneck": 6}
MAE = {"name": "mae", "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
LABELLED = {"train": f"{DATA}#[:100]", "test": f"{DATA}#[100:130]", "size": 16, "views": "digits_weak"}
DOMAINS = {"source": f"{DATA}#[:80]", "target": f"{DATA}#[80:180]", "test": f"{DATA}#[180:210]", "size": 16}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dino": ("pretrain", {"data": VIEWS, "backbone": CONV, "method": DINO, "optim": {"name": "adamw", **OPTIM}}),
    "mae": ("pretrain", {"data": VIEWS, "backbone": VIT, "method": MAE, "optim": {"name": "adamw", **OPTIM}}),
    "finetune": ("finetune", {"data": LABELLED, "backbone": CONV, "optim": {"name": "sgd", **OPTIM}}),
    "cdan": (
        "adapt",
        {
            "data": {**DOMAINS, "views": "digits_weak"},
            "backbone": CONV,
            "method": {"name": "cdan", "hidden": 16},
            "optim": {"name": "lars", **OPTIM},
        },
    ),
}


def processor() -> str:
    """The processor's model and the instructions that torch uses on it; results are equal bit for bit where it is the same."""
    import torch

    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return (
        f"{models[0].partition(': ')[2] if models else platform.processor()}, {torch.backends.cpu.get_cpu_capability()}"
    )


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def draw(checkout: Path, out: Path) -> None:
    import torch

    out.mkdir(parents=True)
    expected: dict[str, Any] = {"torch": torch.__version__, "processor": processor(), "sha256": {}}
    with tempfile.TemporaryDirectory() as temporary:
        packages, work = Path(temporary) / "packages", Path(temporary) / "work"
        packages.mkdir()
        (packages / "rootstock").symlink_to(checkout.resolve())
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(packages)}
        driver = [sys.executable, str(packages / "rootstock" / "tests" / "driver.py")]
        for name, (verb, config) in CASES.items():
            for killed in (True, False):
                folder = work / name / ("killed" if killed else "straight")
                folder.mkdir(parents=True)
                (folder / "config.yaml").write_text(yaml.safe_dump({**config, "run": RUN}))
                job = {"argv": [verb, "config.yaml"], "log": "log", "at": KILLED_AT if killed else -1, "signal": 9}
                line = json.dumps({**job, "save": False}) + "\n"
                done = subprocess.run(
                    driver, cwd=folder, env=environment, input=line, stdout=subprocess.PIPE, text=True
                )
                if done.stdout.strip() != ("-9" if killed else "0"):
                    sys.exit(f"{name}: {done.stdout}{(folder / 'log').read_text()}")
                if not killed:
                    backbone = folder / "run" / "backbone" / "backbone.safetensors"
                    shutil.copy(backbone, out / name)
                    expected["sha256"][name] = digest(backbone)
                    continue
                (out / name).mkdir()
                shutil.copy(folder / "config.yaml", out / name)
                shutil.copytree(folder / "run", out / name / "run", ignore=shutil.ignore_patterns(".lock"))
                for file in ("run.json", "state.json"):
                    anonymous = (out / name / "run" / file).read_text().replace(platform.node(), "host")
                    (out / name / "run" / file).write_text(anonymous)
    (out / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
