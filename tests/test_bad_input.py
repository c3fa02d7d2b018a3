"""What goes wrong ends in one sentence with its remedy and the documented exit code; nothing that was there before is lost."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from rootstock.core import files
from rootstock.core.manifest import own_digest
from rootstock.core.model.backbone import create
from rootstock.core.train import checkpoint, loop
from rootstock.finetune import probe
from rootstock.launch.runs import row_of
from rootstock.tests.conftest import Forks

STEPS, EVERY = 6, 2
SMALL = ["data.size=16", "backbone.args={widths: [8, 8, 8, 16]}", "run.workers=0", "run.device=cpu"]
SHORT = ["optim.batch_size=4", f"optim.duration={STEPS}", "run.log_every=1", f"run.checkpoint.every={EVERY}"]
PRETRAIN = ["pretrain", "pretrain/digits_simclr.yaml", "data.train=folder:flat", "evaluate.knn=null", *SMALL, *SHORT]
FINETUNE = ["finetune", "finetune/digits.yaml", "data.train=folder:photos", "data.test=null", *SMALL, *SHORT]
ADAPT = ["adapt", "adapt/digits_dann.yaml", "data.source=folder:photos", "data.target=folder:sketches"]
ADAPT += ["data.test=null", *SMALL, *SHORT]
PROBE = ["probe", "probe/digits.yaml", "data.train=folder:photos", "data.test=null", "evaluate.linear=null", *SMALL]
Rootstock = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, draw: Callable[[Path, Iterable[str]], Path]) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    classes = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(6)]
    draw(folder / "photos", classes)
    draw(folder / "sketches", classes)
    draw(folder / "birds", [f"{name}/{i}.png" for name in ("bird", "cat") for i in range(6)])
    draw(folder / "flat", [f"{i}.png" for i in range(8)])
    (folder / "empty").mkdir()
    (folder / "file").write_text("no folder")
    (folder / "unclosed.yaml").write_text("data: {train: x\n")
    (folder / "one.yaml").write_text("stages: {a: {verb: probe, config: probe/digits.yaml}}\nrun: {dir: runs/one}\n")
    other = create(16, name="smallconv", args={"widths": [8, 8, 8, 8]})
    save_file(other.model.state_dict(), folder / "other.safetensors")
    return folder


@pytest.fixture(autouse=True)
def here(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workplace)
    return workplace


@pytest.fixture(scope="module")
def straight(workplace: Path) -> Path:
    """A pretraining that nothing disturbed."""
    from rootstock.launch.verbs import execute

    before = Path.cwd()
    os.chdir(workplace)
    try:
        execute(PRETRAIN[0], PRETRAIN[1], [*PRETRAIN[2:], "run.dir=runs/straight"], quiet=True)
    finally:
        os.chdir(before)
    return workplace / "runs" / "straight"


def contents(folder: Path) -> dict[str, str]:
    """The sha256 of every file, by path."""
    return {str(p): files.sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def weights(run: Path) -> str:
    return hashlib.sha256((run / "backbone" / "backbone.safetensors").read_bytes()).hexdigest()


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of stderr that says what is wrong; it stands last, and no traceback is near it."""
    assert "Traceback" not in done.stderr, done.stderr
    *_, last = done.stderr.strip().splitlines()
    assert done.stderr.count("error: ") <= 1
    return last


MISTAKES = {
    "a typo in a key": ([*PRETRAIN, "optim.lrr=1"], "optim.lrr: unknown key; did you mean lr? (known: name, lr,"),
    "a wrong type": ([*PRETRAIN, "optim.lr=fast"], 'optim.lr: expected a number, got "fast"'),
    "a boolean for a number": (
        [*PRETRAIN, "optim.batch_size=true"],
        "optim.batch_size: expected an integer or auto, got true",
    ),
    "an unknown method": (
        [*PRETRAIN, "method=simclrr"],
        "unknown name simclrr; did you mean simclr? (known: simclr, byol",
    ),
    "an unknown backbone": ([*PRETRAIN, "backbone.name=resnet51"], "unknown backbone 'resnet51'; did you mean resnet"),
    "a backbone of another kind": ([*PRETRAIN, "backbone.stem=small"], "leave backbone.stem and backbone.pooling out"),
    "nonsense as a duration": (
        [*PRETRAIN, "optim.duration=soon"],
        "expected a duration (100 for steps, 10ep for epochs",
    ),
    "a percentage of itself": (
        [*PRETRAIN, "optim.duration=50%"],
        "optim.duration: 50% would be a percentage of itself",
    ),
    "a missing folder": ([*PRETRAIN, "data.train=folder:nowhere"], "there is no folder nowhere; check the path"),
    "an empty folder": (
        [*PRETRAIN, "data.train=folder:empty"],
        "no pictures under empty; expected files ending in .jpg,",
    ),
    "a file for a folder": ([*PRETRAIN, "data.train=folder:file"], "this is a file, not a folder"),
    "an unknown scheme": ([*PRETRAIN, "data.train=foldr:flat"], "unknown scheme foldr; did you mean folder?"),
    "a batch larger than the data": (
        [*PRETRAIN, "optim.batch_size=9"],
        "optim.batch_size: 9 is larger than the 8 training images; choose at most 8",
    ),
    "a batch larger than the target": (
        [*ADAPT, "data.target=folder:sketches#[:4]"],
        "optim.batch_size: 4 is larger than the 3 training images of data.target",
    ),
    "no labels to learn from": (
        [*FINETUNE, "data.train=folder:flat"],
        "data.train: folder:flat has no labels; give class",
    ),
    "other labels in the target": (
        [*ADAPT, "data.target=folder:birds"],
        "data.target: folder:birds has classes that the training set lacks (bird)",
    ),
    "other labels in a test": (
        [*ADAPT, "data.test=folder:birds"],
        "data.test: folder:birds has classes that the training",
    ),
    "a run that is not there": (
        [*FINETUNE, "backbone.weights=runs/none"],
        "runs/none does not exist; expected none, timm,",
    ),
    "a run without a backbone": ([*FINETUNE, "backbone.weights=empty"], "empty holds no finished backbone/"),
    "a file that is no run": ([*FINETUNE, "backbone.weights=file"], "file is no run's folder; expected none, timm,"),
    "weights of another architecture": (
        [*FINETUNE, "backbone.weights=other.safetensors"],
        "does not fit this architecture: 5 of another shape",
    ),
    "a classifier where there is none": (
        [*ADAPT, "method={name: adabn}"],
        "backbone.weights: none holds no classifier",
    ),
    "a vote of nobody": ([*PRETRAIN, "evaluate.knn={k: 0}"], "evaluate.knn: expected k of at least 1"),
    "a part above one": (
        [*FINETUNE, "method.dropout=1.5"],
        "method.dropout: expected 0 or more and less than 1, got 1.5",
    ),
    "a negative seed": ([*PROBE, "seed=-1"], "seed: expected at least 0, got -1"),
    "an override without a value": ([*PROBE, "seed"], "expected an override KEY=VALUE, for example"),
    "a config that is not there": (["probe", "nope.yaml"], "nope.yaml: no such config here or among those that ship"),
    "a config that is no YAML": (["probe", "unclosed.yaml"], "unclosed.yaml:2:1: not valid YAML"),
    "a stage that is not there": (
        ["run", "demo.yaml", "stages.simclrr.seed=1"],
        "no stage simclrr; did you mean simclr?",
    ),
    "a set that is not there": (["data", "folder:nowhere"], "there is no folder nowhere; check the path"),
    "a report of nothing": (["report", "runs/none"], "runs/none does not exist; expected the folder of a run"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_users_mistake_is_one_sentence(mistake: str, rootstock: Rootstock, straight: Path, tmp_path: Path) -> None:
    command, said = MISTAKES[mistake]
    place = [f"run.dir={tmp_path / 'run'}"] if command[0] in ("pretrain", "probe", "finetune", "adapt", "run") else []
    before = contents(straight)
    done = rootstock(*command, *place)
    assert done.returncode == 2
    assert sentence(done).startswith("error: ") and said in sentence(done)
    assert contents(straight) == before
    assert not (tmp_path / "run" / "result.json").exists()


def test_all_mistakes_of_a_config_are_said_at_once(rootstock: Rootstock, tmp_path: Path) -> None:
    done = rootstock(*PRETRAIN, "optim.lrr=1", "seed=x", f"run.dir={tmp_path / 'run'}")
    assert done.returncode == 2 and "2 mistakes" in done.stderr
    assert "optim.lrr: " in done.stderr and "seed: " in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_mended_command_may_use_the_same_folder(rootstock: Rootstock, tmp_path: Path, straight: Path) -> None:
    """What ended before the first step has nothing to lose, so its folder is not taken."""
    for mistake in ("data.train=folder:nowhere", "optim.batch_size=9", "backbone.weights=other.safetensors"):
        assert rootstock(*PRETRAIN, mistake, f"run.dir={tmp_path}").returncode == 2
    assert rootstock(*PRETRAIN, f"run.dir={tmp_path}").returncode == 0
    assert weights(tmp_path) == weights(straight)


@pytest.mark.parametrize("command", [PRETRAIN, PROBE, ["run", "one.yaml"]], ids=lambda command: command[0])
def test_a_folder_that_is_a_file(command: list[str], rootstock: Rootstock) -> None:
    for place in ("file", "file/below"):
        done = rootstock(*command, f"run.dir={place}")
        assert done.returncode == 2
        assert sentence(done) == "error: run.dir: file is a file; choose another run.dir"
    assert Path("file").read_text() == "no folder"


def test_a_run_of_another_config(rootstock: Rootstock, straight: Path) -> None:
    before = contents(straight)
    done = rootstock(*PRETRAIN, "optim.lr=0.5", f"run.dir={straight}")
    assert done.returncode == 2
    assert "optim.lr: 0.008 there, 0.5 now" in sentence(done) and "choose another run.dir" in sentence(done)
    assert contents(straight) == before


def test_a_finished_run_is_left_alone(rootstock: Rootstock, straight: Path) -> None:
    before = contents(straight)
    done = rootstock(*PRETRAIN, "run.dir=runs/straight")
    assert done.returncode == 0 and "is finished" in done.stderr
    assert {k: v for k, v in contents(straight).items() if "config.yaml" not in k}.items() <= before.items()


def test_a_finished_run_that_has_lost_its_export_says_how_to_export_again(rootstock: Rootstock, straight: Path) -> None:
    run = Path("runs/robbed")
    shutil.copytree(straight, run)
    before = (run / "backbone" / "backbone.safetensors").read_bytes()
    shutil.rmtree(run / "backbone")
    done = rootstock(*PRETRAIN, f"run.dir={run}")
    assert (
        done.returncode == 0
        and f"backbone/ of this run: missing or damaged; delete {run}/result.json and give"
        in " ".join(done.stderr.split())
    )
    (run / "result.json").unlink()
    assert rootstock(*PRETRAIN, f"run.dir={run}").returncode == 0
    assert (run / "backbone" / "backbone.safetensors").read_bytes() == before


def test_a_run_that_another_process_has(rootstock: Rootstock, straight: Path) -> None:
    before = contents(straight)
    with open(straight / ".lock", "a") as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        done = rootstock(*PRETRAIN, f"run.dir={straight}")
    assert done.returncode == 2
    assert sentence(done).endswith("belongs to a run that is still going; wait for it, or choose another run.dir")
    assert contents(straight) == before


def test_a_run_whose_backbone_is_another(rootstock: Rootstock, straight: Path, tmp_path: Path) -> None:
    given = [*FINETUNE, f"backbone.weights={straight}", f"run.dir={tmp_path}"]
    for key, value, said in (
        ("name", "resnet18", "'resnet18' contradicts 'smallconv'"),
        ("args", "{widths: [4, 4, 4, 4]}", "contradicts"),
    ):
        done = rootstock(*given, f"backbone.{key}={value}")
        assert done.returncode == 2
        assert (
            f"backbone.{key}: " in sentence(done) and said in sentence(done) and "leave the key out" in sentence(done)
        )


def test_checkpoints_of_another_architecture(rootstock: Rootstock, straight: Path, tmp_path: Path) -> None:
    """As when someone copies a folder of checkpoints into a run of another network."""
    other = [*PRETRAIN, "backbone.args={widths: [8, 8, 8, 8]}", f"run.dir={tmp_path}"]
    shutil.copytree(straight / "checkpoints", tmp_path / "checkpoints")
    shutil.copyfile(straight / "config.yaml", tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert "- 16\n" in text
    (tmp_path / "config.yaml").write_text(text.replace("- 16\n", "- 8\n"))
    before = contents(tmp_path / "checkpoints")
    done = rootstock(*other)
    assert done.returncode == 2
    assert "was made by another config (backbone.args.widths: " in sentence(done)
    assert contents(tmp_path / "checkpoints") == before
    for state in (tmp_path / "checkpoints").glob("*/state.json"):  # of an earlier version, which saved no config
        saved = json.loads(state.read_text())
        del saved["config"]
        state.write_text(json.dumps(saved))
        manifest = json.loads(state.with_name("MANIFEST.json").read_text())
        manifest["sha256"]["state.json"] = files.sha256(state)
        del manifest["own"]
        state.with_name("MANIFEST.json").write_text(json.dumps({**manifest, "own": own_digest(manifest)}))
    before = contents(tmp_path / "checkpoints")
    done = rootstock(*other)
    assert done.returncode == 2
    assert "is of another architecture" in sentence(done) and "choose another run.dir" in sentence(done)
    assert contents(tmp_path / "checkpoints") == before


@pytest.fixture
def damaged(here: Path, tmp_path: Path) -> Callable[[str, str], str]:
    """damaged(folder, picture): a copy of the folder in which that picture is cut short, as a URI."""

    def copy(folder: str, picture: str) -> str:
        shutil.copytree(here / folder, tmp_path / folder)
        path = tmp_path / folder / picture
        path.write_bytes(path.read_bytes()[:100])
        return f"folder:{tmp_path / folder}"

    return copy


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_picture_is_replaced_in_training(
    workers: int, damaged: Callable[[str, str], str], rootstock: Rootstock, tmp_path: Path
) -> None:
    """Counted, listed in the result, and said once."""
    uri = damaged("flat", "3.png")
    done = rootstock(*PRETRAIN, f"data.train={uri}", f"run.workers={workers}", f"run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["damaged"] == ["3.png"]
    assert done.stderr.count("damaged picture replaced by its neighbour: 3.png") == 1


def test_broken_pictures_in_both_domains_of_adaptation(
    damaged: Callable[[str, str], str], rootstock: Rootstock, tmp_path: Path
) -> None:
    source, target = damaged("photos", "cat/0.png"), damaged("sketches", "dog/5.png")
    tests = "data.test=folder:photos"
    done = rootstock(*ADAPT, f"data.source={source}", f"data.target={target}", tests, f"run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    listed = json.loads((tmp_path / "run" / "result.json").read_text())["damaged"]
    assert sorted(name.split("/", 1)[-1] for name in listed) == ["0.png", "5.png"]


def test_too_many_broken_pictures(damaged: Callable[[str, str], str], rootstock: Rootstock, tmp_path: Path) -> None:
    uri = damaged("flat", "3.png")
    done = rootstock(*PRETRAIN, f"data.train={uri}", "run.damaged=0", f"run.dir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert "3.png" in sentence(done) and "raise run.damaged" in sentence(done)


@pytest.mark.parametrize("verb", [PROBE, FINETUNE, ADAPT], ids=lambda command: command[0])
def test_a_broken_picture_in_evaluation_is_named(
    verb: list[str], damaged: Callable[[str, str], str], rootstock: Rootstock, tmp_path: Path
) -> None:
    """Evaluation never skips; after the picture is mended, the same command goes on from the checkpoint."""
    uri = damaged("sketches", "dog/2.png")
    command = [*verb, f"data.test={uri}", f"run.dir={tmp_path / 'run'}"]
    done = rootstock(*command)
    assert done.returncode == 2
    assert str(tmp_path / "sketches" / "dog" / "2.png") in sentence(done) and "replace or remove it" in sentence(done)
    assert not (tmp_path / "run" / "result.json").exists()
    # An adaptation shows its tests, without their labels, to the state before the training, so it says it before any step.
    trained = checkpoint.steps(tmp_path / "run" / "checkpoints") if verb is not PROBE else []
    assert trained[-1:] == ([STEPS] if verb is FINETUNE else [])
    shutil.copyfile("sketches/dog/2.png", tmp_path / "sketches" / "dog" / "2.png")
    again = rootstock(*command, "run.changed_data=accept")
    assert again.returncode == 0 and (f"resumed from step {STEPS}" in again.stderr) == (verb is FINETUNE)


def test_a_full_disk_in_the_middle_of_a_checkpoint(
    rootstock: Rootstock, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No checkpoint but the first fits: it stays whole, and with space the same command ends with the same weights."""
    write = files.write_tensors

    def full(path: Path, *given: Any, **named: Any) -> None:
        if f"step-{EVERY:08d}" not in str(path) and path.name == checkpoint.OPTIMIZER:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_tensors", full)
        done = rootstock(*PRETRAIN, f"run.dir={tmp_path}")
    assert done.returncode == 1
    said = sentence(done)
    assert (
        said.startswith(f"error: the checkpoint of step {STEPS} cannot be written") and "run the same command" in said
    )
    assert "WARNING: the checkpoint of step" in done.stderr and os.strerror(errno.ENOSPC) in said
    assert checkpoint.steps(tmp_path / "checkpoints") == [EVERY]
    assert checkpoint.read_checkpoint(tmp_path / "checkpoints" / f"step-{EVERY:08d}").step == EVERY
    again = rootstock(*PRETRAIN, f"run.dir={tmp_path}")
    assert again.returncode == 0 and f"resumed from step {EVERY}" in again.stderr
    assert weights(tmp_path) == weights(straight)
    assert not [p for p in (tmp_path / "checkpoints").iterdir() if p.name.startswith(".")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_at_the_result(rootstock: Rootstock, straight: Path, tmp_path: Path) -> None:
    """The system's own error, for /dev/full refuses every write; nothing that stands under a final name is half of it."""
    (tmp_path / ".result.json.draft").symlink_to("/dev/full")
    done = rootstock(*PRETRAIN, f"run.dir={tmp_path}")
    assert done.returncode == 1
    assert sentence(done).startswith("error: the disk is full")
    assert not (tmp_path / "result.json").exists()
    (tmp_path / ".result.json.draft").unlink()
    assert rootstock(*PRETRAIN, f"run.dir={tmp_path}").returncode == 0
    assert weights(tmp_path) == weights(straight)


DRIVER = """
import os, signal, sys
from rootstock.core.train import loop
from rootstock.launch.cli import main
step, at = loop.Loop.step, int(sys.argv.pop(1))
def stepping(self, wrapped, micro, prepare, number, asked):
    if number == at:
        os.kill(os.getpid(), signal.SIGINT)
    return step(self, wrapped, micro, prepare, number, asked)
loop.Loop.step = stepping
main()
"""


def test_ctrl_c_saves_and_the_same_command_resumes(
    rootstock: Rootstock, forks: Forks, straight: Path, tmp_path: Path
) -> None:
    """A process of its own, interrupted in its fourth step: it ends that step, saves, and says how to go on."""
    run = tmp_path / "run"
    command = [*PRETRAIN, f"run.dir={run}", "run.workers=2"]
    program = tmp_path / "interrupted.py"
    program.write_text(DRIVER)
    (ended,) = forks(program, [["3", *command]])
    done = subprocess.CompletedProcess(command, ended.code, "", ended.said)
    assert done.returncode == 130, done.stderr
    assert sentence(done) == f"interrupted; saved at step 4 of {STEPS} in {run}; the same command resumes"
    assert not (run / "result.json").exists()
    assert row_of(run, run).step == 4
    again = rootstock(*command)
    assert again.returncode == 0 and "resumed from step 4" in again.stderr
    assert weights(run) == weights(straight)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in lines if "loss" in row]  # the others are evaluations
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))


def test_a_probe_that_is_told_to_stop_says_so(
    rootstock: Rootstock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has nothing to save in between; the next command does it from the beginning."""
    with monkeypatch.context() as patch:
        patch.setattr(probe, "features_of", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
        done = rootstock(*PROBE, f"run.dir={tmp_path}")
    assert done.returncode == 130
    assert (
        sentence(done)
        == f"interrupted by SIGTERM; the probe in {tmp_path} saved nothing yet; the same command begins it anew"
    )
    assert json.loads((tmp_path / "state.json").read_text())["state"] == "preempted"
    assert rootstock(*PROBE, f"run.dir={tmp_path}").returncode == 0


def test_a_second_ctrl_c_leaves_at_once(
    rootstock: Rootstock, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing more is saved; the last checkpoint is whole, and from it the same command ends with the same weights."""
    step = loop.Loop.step

    def stepping(self: loop.Loop, wrapped: Any, micro: Any, prepare: Any, number: int, asked: list[int]) -> Any:
        if number == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return step(self, wrapped, micro, prepare, number, asked)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "step", stepping)
        done = rootstock(*PRETRAIN, f"run.dir={tmp_path}")
    assert done.returncode == 130
    assert sentence(done) == f"interrupted; the checkpoints in {tmp_path} are whole; the same command resumes"
    assert signal.getsignal(signal.SIGINT) is handler
    assert checkpoint.steps(tmp_path / "checkpoints") == [EVERY]
    assert rootstock(*PRETRAIN, f"run.dir={tmp_path}").returncode == 0
    assert weights(tmp_path) == weights(straight)
