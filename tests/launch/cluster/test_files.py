"""The ready-made files under launch/: the header says when, how and what to change; the file starts just that (SLURM: test_slurm.py)."""

import configparser
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed.run
import yaml
from accelerate.commands import launch as accelerate
from accelerate.commands.config.config_args import load_config_from_file
from packaging.specifiers import SpecifierSet

from rootstock.launch.cluster.files import HERE, ready_files
from rootstock.launch.verbs import VERBS, resolve

ROOT = Path(__file__).parents[3]
# Machines, processes on each, and how they meet; None: one process, which nobody else starts.
ACCELERATE: dict[str, tuple[int, int, str, str] | None] = {
    "cpu.yaml": (1, 2, "static", ""),
    "gpu.yaml": None,
    "node.yaml": (1, 8, "static", ""),
    "nodes.yaml": (2, 8, "c10d", "node1:29500"),
    "fsdp2.yaml": (1, 8, "static", ""),
    "zero2.yaml": (1, 8, "static", ""),
}
SLURM = ("node.sh", "nodes.sh", "requeue.sh", "seeds.sh")  # tests/launch/cluster/test_slurm.py
OTHERS = ("Dockerfile", "cloud/kubernetes.yaml", "cloud/skypilot.yaml")
SMALL = ["data.size=32", "optim.batch_size=4", "backbone.name=test_resnet", "run.device=cpu"]
Rootstock = Callable[..., subprocess.CompletedProcess[str]]


def head(path: Path) -> dict[str, str]:
    """The header of a file: {When, Command, Change: text}."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#!")]
    said = [re.fullmatch(r"# (When|Command|Change): (\S.*)", line) for line in lines[:3]]
    assert not lines[3].startswith("# ") and max(map(len, lines[:3])) <= 140
    return {match[1]: match[2] for match in said if match}


def test_every_file_is_checked_and_handed_out() -> None:
    here = {path.relative_to(HERE) for path in HERE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    files = {path for path in here if path.parts[:2] != ("report", "templates")}
    checked = [*(f"accelerate/{name}" for name in ACCELERATE), *(f"slurm/{name}" for name in SLURM), *OTHERS]
    assert files == set(map(Path, checked)) == set(ready_files())


@pytest.mark.parametrize("path", ready_files(), ids=str)
def test_the_first_lines_say_when_how_and_what_to_change(path: Path) -> None:
    said = head(HERE / path)
    assert list(said) == ["When", "Command", "Change"]
    words = shlex.split(said["Command"])
    files = [word for word in words if word.startswith("launch/")]
    assert files == [f"launch/{path}"]
    verbs = [place for place, word in enumerate(words) if word in VERBS]
    assert len(verbs) == (0 if path.parts[0] == "cloud" else 1)
    for place in verbs:
        resolve(words[place], words[place + 1], words[place + 2 :])


def test_they_are_copied_and_nothing_is_overwritten(tmp_path: Path, rootstock: Rootstock) -> None:
    folder = tmp_path / "mine"
    done = rootstock("launch", "--files", str(folder))
    assert done.returncode == 0 and done.stdout.split() == [str(folder / path) for path in ready_files()]
    assert all((folder / path).read_bytes() == (HERE / path).read_bytes() for path in ready_files())
    changed = folder / "slurm" / "node.sh"
    changed.write_text("mine")
    (folder / "Dockerfile").unlink()
    done = rootstock("launch", "--files", str(folder))
    assert done.returncode == 2 and "is there already; name another folder" in done.stderr
    assert changed.read_text() == "mine" and not (folder / "Dockerfile").exists()
    done = rootstock("launch", "--files", str(changed))
    assert done.returncode == 2 and f"--files {changed}: cannot be written" in done.stderr


@pytest.mark.parametrize("name", ACCELERATE)
def test_accelerate_would_start_these_processes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    caught: list[Any] = []

    def run(args: Any) -> None:
        plugins = [key for key in os.environ if key in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")]
        assert not plugins, "run.sharding is the one way to ask"
        caught.append(args)

    monkeypatch.setattr(torch.distributed.run, "run", run)
    monkeypatch.setattr(accelerate, "simple_launcher", run)
    path = str(HERE / "accelerate" / name)
    load_config_from_file(path)  # refuses unknown keys
    command = shlex.split(head(Path(path))["Command"])
    accelerate.launch_command(accelerate.launch_command_parser().parse_args(["--config_file", path, *command[4:]]))
    (args,) = caught
    assert (
        args.module
        and args.training_script == "rootstock"
        and args.training_script_args == command[command.index("rootstock") + 1 :]
    )
    expected = ACCELERATE[name]
    if expected is None:
        assert (args.num_processes, args.num_machines, args.gpu_ids) == (1, 1, "0")
        return
    config, _, _ = torch.distributed.run.config_from_args(args)
    machines, processes, backend, endpoint = expected
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node) == (machines, machines, processes)
    assert config.rdzv_backend == backend and (not endpoint or config.rdzv_endpoint == endpoint)
    if name in ("fsdp2.yaml", "zero2.yaml"):
        assert f"run.sharding={Path(name).stem}" in args.training_script_args


@pytest.mark.slow
def test_accelerate_starts_two_processes_on_the_cpu(tmp_path: Path) -> None:
    path = HERE / "accelerate" / "cpu.yaml"
    words = [word.replace(f"launch/accelerate/{path.name}", str(path)) for word in shlex.split(head(path)["Command"])]
    assert words[:2] == ["accelerate", "launch"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *words[2:], f"run.dir={tmp_path / 'run'}"]
    done = subprocess.run(
        [*command, "optim.batch_size=8", "optim.duration=2"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["processes"] == 2


def planned(rootstock: Rootstock, words: list[str], images: Path) -> dict[str, Any]:
    """The dry run of a launch command from one of the files, with small images."""
    small = [*SMALL, f"data.train=folder:{images}", f"run.dir={images.parent / 'run'}"]
    done = rootstock("launch", "--nproc", "2", *words, *small, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def images(tmp_path: Path, draw: Callable[[Path, Iterable[str]], Path]) -> Path:
    return draw(tmp_path / "images", [f"{i}.png" for i in range(8)])


def given(words: list[str], key: str) -> str:
    (value,) = [word.partition("=")[2] for word in words if word.startswith(f"{key}=")]
    return value


def test_kubernetes_starts_a_launcher_in_each_pod(
    images: Path, rootstock: Rootstock, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = yaml.safe_load((HERE / "cloud" / "kubernetes.yaml").read_text())
    assert (job["apiVersion"], job["kind"], set(job)) == (
        "kubeflow.org/v1",
        "PyTorchJob",
        {"apiVersion", "kind", "metadata", "spec"},
    )
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert set(replicas) == {"Master", "Worker"} and replicas["Master"]["replicas"] == 1
    pods = [replica["template"]["spec"] for replica in replicas.values()]
    assert pods[0] == pods[1] and pods[0]["terminationGracePeriodSeconds"] >= 60
    # By exit code the operator starts pods again from 128 on.
    assert {replica["restartPolicy"] for replica in replicas.values()} == {"ExitCode"}
    (container,) = pods[0]["containers"]
    assert container["name"] == "pytorch" and container["resources"]["limits"]["nvidia.com/gpu"] == 8
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pods[0]["volumes"]}
    assert set(mounts) == set(volumes) and volumes["shm"]["emptyDir"]["medium"] == "Memory"
    assert mounts["shm"] == "/dev/shm" and given(container["args"], "data.train") == f"folder:{mounts['data']}"
    assert Path(mounts["runs"]) in Path(given(container["args"], "run.dir")).parents
    set_by_operator = {"MASTER_ADDR": "rootstock-master-0", "MASTER_PORT": "23456", "WORLD_SIZE": "2", "RANK": "1"}
    for name, value in set_by_operator.items():
        monkeypatch.setenv(name, value)
    program, verb, *words = (
        re.sub(r"\$\((\w+)\)", lambda found: os.environ[found[1]], word)
        for word in container["command"] + container["args"]
    )
    assert (program, verb) == ("rootstock", "launch")
    assert planned(rootstock, words, images)["processes"].startswith(
        "2 on each of 2 nodes, rendezvous at rootstock-master-0:23456"
    )
    assert sum(replica["replicas"] for replica in replicas.values()) == 2
    monkeypatch.setenv("RANK", "1")
    done = rootstock("launch", *words, "optim.lrr=1")
    assert done.returncode == 2 and "optim.lrr" in done.stderr


def test_skypilot_runs_a_launch_on_each_node(images: Path, tmp_path: Path, rootstock: Rootstock) -> None:
    task = yaml.safe_load((HERE / "cloud" / "skypilot.yaml").read_text())
    assert set(task) == {"name", "workdir", "num_nodes", "resources", "volumes", "setup", "run"}
    assert set(task["resources"]) == {"infra", "accelerators", "job_recovery"}
    assert task["resources"]["job_recovery"] == {"recover_on_exit_codes": [130]}
    for block in (task["setup"], task["run"]):
        shellcheck = [str(Path(sys.executable).parent / "shellcheck"), "--shell=bash", "-"]
        for check in (["bash", "-n"], shellcheck):
            done = subprocess.run(check, input=block, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
    program = tmp_path / "rootstock" / "bin" / "rootstock"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    program.chmod(0o755)
    nodes = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": "2"}
    command = ["bash", "-c", task["run"]]
    environment = {**os.environ, **nodes, "HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    verb, *words = done.stdout.splitlines()
    assert verb == "launch" and given(words, "data.train").removeprefix("folder:") in task["volumes"]
    assert any(Path(volume) in Path(given(words, "run.dir")).parents for volume in task["volumes"])
    assert planned(rootstock, words, images)["processes"].startswith(
        "2 on each of 2 nodes, rendezvous at 10.0.0.1:29400"
    )


def test_the_image_is_this_checkout_in_its_pinned_versions() -> None:
    text = (HERE / "Dockerfile").read_text().replace("\\\n", " ")
    steps = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    assert [name for name, _ in steps] == [
        "FROM",
        "RUN",
        "COPY",
        "RUN",
        "COPY",
        "RUN",
        "RUN",
        "USER",
        "WORKDIR",
        "ENTRYPOINT",
    ]
    told = dict(steps)
    pinned = re.fullmatch(r"python:(\d+\.\d+\.\d+)-slim-[a-z]+", told["FROM"])
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    assert pinned and SpecifierSet(settings["options"]["python_requires"]).contains(pinned[1])
    installs = [shlex.split(step) for name, step in steps if name == "RUN" and step.startswith("pip install")]
    assert len(installs) == 2 and all(install[4] == "/opt/constraints.txt" for install in installs)
    versions = (ROOT / "constraints.txt").read_text()
    assert all(f"\n{package}==" in versions for package in installs[0][5:])
    copied = [step.split() for name, step in steps if name == "COPY"]
    assert copied == [["constraints.txt", "/opt/"], [".", installs[1][5]]]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".git", ".venv", "data", "runs"} <= set(ignored)
    assert not {"setup.cfg", "README.md", "LICENSE", "configs", "core", "launch"} & set(ignored)
    assert told["USER"] == "rootstock" and json.loads(told["ENTRYPOINT"]) == ["rootstock"]
