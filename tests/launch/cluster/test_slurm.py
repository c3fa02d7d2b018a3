"""launch/slurm/: each script runs for real and does what its header says, with a fake srun, scontrol and squeue."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from rootstock.tests.launch.cluster.test_launcher import CONFIG, STEPS, losses, processes, trained_some

SLURM = Path(__file__).parents[3] / "launch" / "slurm"
SCRIPTS = sorted(SLURM.iterdir())
OPTIONS = {
    "array": r"\d+-\d+",
    "cpus-per-task": r"\d+",
    "gpus-per-node": r"\d+",
    "job-name": r"\w+",
    "nodes": r"\d+",
    "ntasks-per-node": "1",
    "open-mode": "append",
    "output": r"%x-%(j|A_%a)\.log",
    "requeue": "",
    "signal": r"(B:)?USR1@\d+",
    "time": r"\d+:\d\d:\d\d",
}
"""Options of sbatch (its manual page), with a pattern of their values."""
SCONTROL = """#!/bin/sh
case "$1 $2" in
"show hostnames") printf 'localhost\\nlocalhost\\n' ;;
requeue*) echo "requeue $2" >> "$FAKES/events" ;;
*) exit 1 ;;
esac
"""
RECORDER = """#!/bin/sh
printf '%s\\n' "$@" > "$FAKES/srun"
exit "${CODE:-0}"
"""
Rootstock = Callable[..., subprocess.CompletedProcess[str]]


class Cluster:
    """A folder of fake commands that come first in PATH, and a record of their calls. squeue says that the job is RUNNING."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.job = folder, free_job()
        self.command("rootstock", f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m rootstock "$@"\n')
        self.command(
            "srun", f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {Path(__file__).parent}/fake_srun.py "$@"\n'
        )
        self.command("scontrol", SCONTROL)
        self.command("squeue", "#!/bin/sh\necho RUNNING\n")

    def command(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def batch(self, script: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """The batch shell, as SLURM starts it on the first node."""
        environment = {
            "PATH": f"{self.folder}{os.pathsep}{os.environ['PATH']}",
            "FAKES": str(self.folder),
            "SLURM_JOB_ID": str(self.job),
            "SLURM_JOB_NAME": "digits",
            "SLURM_JOB_NODELIST": "localhost",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_CPUS_PER_TASK": "2",
        }
        command = ["bash", str(SLURM / script), *arguments]
        return subprocess.Popen(
            command, env={**os.environ, **environment, **variables}, stderr=subprocess.PIPE, text=True
        )

    def ran(self, script: str, *arguments: str, **variables: str) -> tuple[int, str]:
        """The exit code and output, after it has ended."""
        job = self.batch(script, *arguments, **variables)
        _, said = job.communicate()
        return job.returncode, said

    def events(self) -> list[str]:
        path = self.folder / "events"
        return path.read_text().replace(str(self.job), "JOB").splitlines() if path.exists() else []


def free_job() -> int:
    """A job number whose port, computed as in the scripts, is free."""
    for job in range(os.getpid(), os.getpid() + 1000):
        with socket.socket() as tried:
            if tried.connect_ex(("localhost", 10000 + job % 20000)):
                return job
    raise AssertionError("a thousand ports are taken")


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    (tmp_path / "bin").mkdir()
    return Cluster(tmp_path / "bin")


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "run": {**CONFIG["run"], "device": "cpu"}}))
    return str(path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean_and_ask_sbatch_for_what_it_knows(script: Path) -> None:
    shellcheck = [str(Path(sys.executable).parent / "shellcheck"), str(script)]
    for check in (["bash", "-n", str(script)], shellcheck):
        done = subprocess.run(check, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    head, body = script.read_text().split("set -euo pipefail\n")
    assert "#SBATCH" not in body
    for line in head.splitlines()[4:-1]:
        option = re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(.+))?", line)
        assert option and option[1] in OPTIONS and re.fullmatch(OPTIONS[option[1]], option[2] or ""), line


@pytest.mark.slow
def test_a_job_asked_to_stop_is_queued_again_and_goes_on(
    cluster: Cluster, config: str, tmp_path: Path, rootstock: Rootstock
) -> None:
    """At the time limit: SLURM signals the batch shell, then starts the same script again."""
    straight, run = tmp_path / "straight", tmp_path / "run"
    assert rootstock("pretrain", config, f"run.dir={straight}").returncode == 0
    words = ["requeue.sh", "--nproc", "2", "pretrain", config, f"run.dir={run}"]
    job = cluster.batch(*words)
    try:
        trained_some(job, run)
        job.send_signal(signal.SIGUSR1)
        _, said = job.communicate()
    finally:
        for process in processes(run):
            process.kill()
        job.wait()
    assert job.returncode == 0 and "interrupted; saved at step" in said, said
    assert cluster.events() == ["step 130", "requeue JOB"] and len(losses(run)) < STEPS
    assert json.loads((run / "state.json").read_text())["state"] == "preempted"
    code, said = cluster.ran(*words, SLURM_RESTART_COUNT="1")
    assert code == 0 and "interrupted" not in said, said
    assert cluster.events() == ["step 130", "requeue JOB", "step 0"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, STEPS + 1))
    assert losses(run) == pytest.approx(losses(straight), rel=1e-5)
    assert json.loads((run / "state.json").read_text())["state"] == "finished"


@pytest.mark.parametrize(
    ("code", "state", "restarts", "again"),
    [
        (130, "RUNNING", "0", True),
        (138, "RUNNING", "3", True),
        (143, "RUNNING", "49", True),
        (130, "RUNNING", "50", False),
        (130, "COMPLETING", "0", False),
        (130, "", "0", False),
        (0, "RUNNING", "0", False),
        (1, "RUNNING", "0", False),
        (2, "RUNNING", "0", False),
        (137, "RUNNING", "0", False),
    ],
)
def test_only_a_job_that_was_stopped_is_queued_again(
    code: int, state: str, restarts: str, again: bool, cluster: Cluster
) -> None:
    """Not a job that finished, failed, was cancelled, was requeued by SLURM itself, or was requeued too often."""
    cluster.command("srun", RECORDER)
    cluster.command("squeue", f"#!/bin/sh\necho {state}\n")
    ended, said = cluster.ran("requeue.sh", "pretrain", "x.yaml", CODE=str(code), SLURM_RESTART_COUNT=restarts)
    assert (ended, cluster.events()) == ((0, ["requeue JOB"]) if again else (code, [])), said
    assert ("submit it again to go on" in said) == (restarts == "50")


@pytest.mark.slow
def test_nodes_meet(cluster: Cluster, config: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["--nproc", "1", "pretrain", config, f"run.dir={run}", "optim.duration=3"]
    # An operator's names for its nodes are not those of our processes.
    others = {"RANK": "1", "WORLD_SIZE": "7", "LOCAL_RANK": "1", "MASTER_ADDR": "nowhere", "MASTER_PORT": "1"}
    ended, said = cluster.ran("nodes.sh", *words, SLURM_JOB_NUM_NODES="2", **others)
    assert ended == 0 and len(losses(run)) == 3, said
    assert json.loads((run / "run.json").read_text())["processes"] == 2


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_step_is_a_launch_of_what_was_submitted(
    script: Path, cluster: Cluster, config: str, tmp_path: Path, rootstock: Rootstock
) -> None:
    cluster.command("srun", RECORDER)
    seeds, nodes = script.name == "seeds.sh", "1" if script.name in ("node.sh", "seeds.sh") else "2"
    variables = {"SLURM_JOB_NUM_NODES": nodes, "SLURM_ARRAY_TASK_ID": "3"}
    given = [] if seeds else [f"run.dir={tmp_path / 'run'}"]
    ended, said = cluster.ran(script.name, "--nproc", "2", "pretrain", config, *given, **variables)
    assert ended == 0, said
    words = (cluster.folder / "srun").read_text().splitlines()
    start = words.index("rootstock")
    assert set(words[:start]) <= {"--cpus-per-task=2", "--kill-on-bad-exit=1"}
    done = rootstock(*words[start + 1 :], "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    where = "2 nodes, rendezvous at localhost" if nodes == "2" else "on 1 node"
    assert plan["processes"].startswith("2 on ") and where in plan["processes"]
    assert plan["run"] == ("runs/digits/seed-3" if seeds else str(tmp_path / "run"))
    assert ("seed=3" in words) == seeds
