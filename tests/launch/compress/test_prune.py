"""`rootstock prune`: rounds that are a pipeline, not made twice, with the table of what each costs; and what it refuses."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file
from typer.testing import CliRunner

from rootstock.core.errors import UserError
from rootstock.core.evaluate.trained import load_trained
from rootstock.core.model.macs import macs_of
from rootstock.finetune.compress.prune import check_prune
from rootstock.launch.cli import app
from rootstock.launch.compress.prune import prune_run
from rootstock.launch.compress.rounds import plan_rounds
from rootstock.launch.dry import build_dry
from rootstock.launch.verbs import execute, resolve
from rootstock.tests.conftest import Forks
from rootstock.tests.finetune.compress.test_prune import WHOLE

pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")
QUICK = ["optim.duration=4", "method.prune.multiple=2", "method.prune.pictures=40"]
HEADING = "difference [95 % over test images]"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prune") / "digits"
    config = {**WHOLE, "seed": 3, "method": {"linear_first": True}, "run": {**WHOLE["run"], "dir": str(folder)}}
    execute("finetune", config, quiet=True)
    return folder


def cost_of(folder: Path) -> int:
    backbone = load_trained(folder).backbone
    return macs_of(backbone.model, backbone.channels, backbone.size)


def test_two_rounds_and_their_table(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prune_run(plan_rounds(run, 0.25, 2, "taylor", QUICK), dry=False) == 0
    said = capsys.readouterr().err
    folder = run.parent / "digits-pruned"
    rounds = [folder / "seed-3" / f"round_{number}" for number in (1, 2)]
    costs = [cost_of(one) for one in (run, *rounds)]
    assert costs[1] <= 0.5 * costs[0] and costs[2] <= 0.25 * costs[0]
    config = (rounds[1] / "config.yaml").read_text()
    assert "importance: taylor" in config and "keep_head: true" in config and "linear_first: false" in config
    lines = said[said.index(HEADING) :].splitlines()[1:4]
    names = [line.split()[0:2] for line in lines]
    assert names[0][0] == "digits" and names[1:] == [["round", "1"], ["round", "2"]]
    answers = [load_file(one / "predictions.safetensors") for one in (run, *rounds)]
    orders = [found["test/keys"].argsort() for found in answers]
    right = [
        (found["test/classifier/scores"].argmax(1) == found["test/labels"])[order]
        for found, order in zip(answers, orders, strict=True)
    ]
    for line, own, other in zip(lines, costs, right, strict=True):
        assert f"{own / 1e6:,.1f} M" in line and f"{100 * float(np.mean(other)):.1f} %" in line
    for line, other in zip(lines[1:], right[1:], strict=True):
        found = re.search(r"([+−]\d+\.\d) \[([+−]\d+\.\d), ([+−]\d+\.\d)\]$", line)
        assert found is not None
        away, low, high = (float(text.replace("−", "-")) for text in found.groups())
        assert away == pytest.approx(100 * (np.mean(other) - np.mean(right[0])), abs=0.06) and low <= away <= high
    kept = 100 * costs[2] / costs[0]
    assert f"prune: {kept:.1f}% of the multiply-adds of {run} stay after 2 rounds, in {folder}\n" in said
    assert f"next: rootstock export {rounds[1]} --to {rounds[1]}-exported\n" in said
    assert (folder / "report.html").is_file()
    told = json.loads((folder / "result.json").read_text())
    assert [row["stage"] for row in told["rows"]] == ["round_1", "round_2"] and told["rows"][0]["seeds"] == [3]

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a finished round is made again")

    monkeypatch.setattr("rootstock.launch.verbs.execute", never)
    prune_run(plan_rounds(run, 0.25, 2, "taylor", QUICK), dry=False)
    again = capsys.readouterr().err
    assert again[again.index(HEADING) :] == said[said.index(HEADING) :]
    with pytest.raises(UserError) as error:
        prune_run(plan_rounds(run, 0.3, 2, "taylor", QUICK), dry=False)
    assert str(error.value) == (
        f"run.dir: {folder} holds rounds of another pruning ({folder / 'rounds.yaml'}); choose another folder with run.dir=..., or give "
        "the same run, --macs, --rounds and --importance"
    )
    assert (folder / "rounds.yaml").read_text() == plan_rounds(run, 0.25, 2, "taylor", QUICK).text


@pytest.mark.parametrize("macs", [0.001, 0.01])
def test_a_refused_pruning_does_not_stand_in_the_way_of_the_next(run: Path, tmp_path: Path, macs: float) -> None:
    where = [f"run.dir={tmp_path / 'rounds'}", *QUICK]
    with pytest.raises(UserError, match=rf"of the multiply-adds of {run} cannot be reached"):
        prune_run(plan_rounds(run, macs, 1, "taylor", where), dry=False)
    corrected = plan_rounds(run, 0.3, 1, "taylor", where)
    assert Path(corrected.write()).read_text() == corrected.text
    (corrected.folder / "seed-3").mkdir()
    with pytest.raises(UserError, match=r"holds rounds of another pruning"):
        plan_rounds(run, 0.4, 1, "taylor", where).write()


def test_rounds_of_a_run_that_was_trained_anew_are_others(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(run, again)
    planned = plan_rounds(again, 0.5, 1, "taylor", [])
    planned.write()
    (planned.folder / "seed-3").mkdir()
    assert plan_rounds(again, 0.5, 1, "taylor", []).write() == str(planned.file)
    trained = load_trained(again).classifier
    assert trained is not None
    with torch.no_grad():
        trained.head.bias += 1.0
    trained.export(again)
    with pytest.raises(UserError) as refused:
        plan_rounds(again, 0.5, 1, "taylor", []).write()
    assert str(refused.value) == (
        f"run.dir: {planned.folder} holds rounds of another network: {again} has been trained anew since; choose another folder with "
        "run.dir=..., or delete this one"
    )


@pytest.mark.parametrize(
    "before", [None, {"weights": 0.8}, {"weights": 0.8, "scope": "layer"}, {"macs": 0.5, "multiple": 2}]
)
def test_a_run_that_was_pruned_before_is_pruned_by_channels(
    run: Path, tmp_path: Path, before: dict[str, Any] | None
) -> None:
    """Rounds take over how channels are ranked and rounded, and neither weights that are 0 nor a share."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["method"]["prune"] = before
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "result.json").write_bytes((run / "result.json").read_bytes())
    planned = yaml.safe_load(plan_rounds(tmp_path, 0.25, 2, "taylor", []).text)
    for stage, share in zip(planned["stages"].values(), (0.5, 0.25), strict=True):
        changed = [f"{key}={json.dumps(value)}" for key, value in stage["set"].items()]
        found = resolve("finetune", stage["config"], changed)
        check_prune(found["method"], found["backbone"], "none")
        options = found["method"]["prune"]
        assert (options["macs"], options["of"]) == (share, str(tmp_path))
        assert (options["weights"], options["importance"]) == (None, "taylor")
        expected = {"scope": "global", "multiple": 8} | (before or {})
        assert (options["scope"], options["multiple"]) == (expected["scope"], expected["multiple"])


def test_shares_fall_alike(run: Path, tmp_path: Path) -> None:
    planned = plan_rounds(run, 0.125, 3, "magnitude", [f"run.dir={tmp_path / 'other'}", "optim.lr=0.1"])
    stages = yaml.safe_load(planned.text)["stages"].values()
    assert [stage["set"]["method.prune.macs"] for stage in stages] == pytest.approx([0.5, 0.25, 0.125])
    assert planned.folder == tmp_path / "other" and {stage["set"]["method.prune.of"] for stage in stages} == {str(run)}
    assert planned.overrides == [f"stages.round_{number}.optim.lr=0.1" for number in (1, 2, 3)]
    assert not planned.folder.exists()


def test_rounds_come_to_the_goal_of_one(trained: Path, tmp_path: Path) -> None:
    """What rounding to multiples of 8 takes is not taken in each round: the end is as near to the goal as with one round."""
    left = {}
    for rounds in (1, 2, 5):
        before = str(trained)
        for stage in yaml.safe_load(plan_rounds(trained, 0.3, rounds, "magnitude", []).text)["stages"].values():
            changed = [f"{key}={json.dumps(value)}" for key, value in stage["set"].items() if key != "backbone.weights"]
            config = resolve("finetune", stage["config"], [*changed, f"backbone.weights={before}"])
            before = str(tmp_path / f"{rounds}-{len(list(tmp_path.iterdir()))}")
            build_dry("finetune", config)[1].plan.method.classifier.export(Path(before))
        left[rounds] = cost_of(Path(before)) / cost_of(trained)
    # Eight channels of the widest layers, 64 and 64 wide, are up to an eighth of both of their costs.
    assert all(left[1] - 0.04 <= share <= 0.3 for share in left.values()), left


PAIR = """
import sys
from pathlib import Path
from rootstock.launch.compress.prune import prune_run
from rootstock.launch.compress.rounds import plan_rounds

prune_run(plan_rounds(Path(sys.argv[1]), 0.5, 1, "taylor", sys.argv[2:]), dry=False)
"""


@pytest.mark.slow
def test_two_processes_make_the_rounds_of_one(run: Path, tmp_path: Path, forks: Forks) -> None:
    (script := tmp_path / "pair.py").write_text(PAIR)
    forks.group(script, run, f"run.dir={tmp_path / 'two'}", *QUICK)
    prune_run(plan_rounds(run, 0.5, 1, "taylor", [f"run.dir={tmp_path / 'one'}", *QUICK]), dry=False)
    one, two = (load_file(tmp_path / name / "seed-3/round_1/backbone/backbone.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(np.allclose(one[name], two[name], rtol=1e-4, atol=1e-4) for name in one)


def test_what_cannot_be_pruned_is_refused(run: Path, tmp_path: Path) -> None:
    def refused(run: Path, *overrides: str, macs: float = 0.5, rounds: int = 1) -> str:
        with pytest.raises(UserError) as error:
            plan_rounds(run, macs, rounds, "taylor", list(overrides))
        return str(error.value)

    for share in (1.0, 0.0):
        assert refused(run, macs=share) == (
            f"--macs: expected a share of the multiply-adds that is kept, above 0 and below 1, got {share:g}; 0.5 is usual"
        )
    assert refused(run, rounds=0) == "--rounds: expected 1 to 100, got 0; 1 to 5 are usual"
    assert refused(run, "seed=1") == (
        "seed: rounds have the seed of the run that is pruned, 3; leave seed out, or prune a run of another seed"
    )
    assert (
        refused(run, "method.prune.macs=0.3")
        == "method.prune.macs: rootstock prune sets it in each round; leave it out"
    )
    for key in ("method.prune.weights", "method.prune.of", "method.keep_head", "backbone.weights"):
        assert refused(run, f"{key}=x") == f"{key}: rootstock prune sets it in each round; leave it out"
    assert refused(run, "method.prune={macs: 0.3}") == (
        "method.prune: rootstock prune sets method.prune.macs in each round; give other keys of it one by one"
    )
    where = tmp_path / "nothing"
    assert refused(where) == f"{where} is no run's folder; give that of a finished run of finetune, such as runs/NAME"
    where.mkdir()
    (where / "config.yaml").write_text("verb: adapt\n")
    assert refused(where) == (
        f"{where} is an adaptation, and its target has no labels to recover on; fine-tune it on labelled images first (rootstock finetune "
        f"CONFIG backbone.weights={where} method.keep_head=true), and prune that run"
    )
    (where / "config.yaml").write_text("verb: pretrain\n")
    assert refused(where) == (
        f"{where} is a run of pretrain, which has no classifier; give that of a finished run of finetune"
    )
    (where / "config.yaml").write_text("verb: finetune\n")
    assert (
        refused(where) == f"{where} is not finished; give its command again, which goes on with it, and prune it then"
    )


def test_the_command_line_says_so_too(run: Path) -> None:
    answer = CliRunner().invoke(app, ["prune", str(run), "--macs", "1"])
    assert answer.exit_code == 2
    assert (
        "--macs: expected a share of the multiply-adds that is kept, above 0 and below 1, got 1; 0.5 is usual"
        in answer.output
    )
