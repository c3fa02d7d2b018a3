"""The run directory: whose it is, what it remembers, and what it refuses."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from accelerate.utils.dataclasses import DynamoBackend

from rootstock.core.config.resolve import validate
from rootstock.core.errors import UserError
from rootstock.core.run.compare import differing
from rootstock.core.run.directory import Run
from rootstock.core.run.options import options
from rootstock.core.train.checkpoint import Checkpoint, save
from rootstock.core.train.fit import Every


@pytest.mark.parametrize(("key", "value"), [("accumulate", 0), ("chunk", 0), ("workers", -1), ("log_every", -1)])
def test_impossible_run_options_are_refused(key: str, value: int, opened: Callable[..., Run]) -> None:
    with pytest.raises(UserError, match=rf"run\.{key}: expected at least"):
        opened(**{key: value})


def test_durations_of_every(opened: Callable[..., Run]) -> None:
    every = Every.of(opened(checkpoint={"every": "1%"}, log_every=0), 40, 8, "2ep")
    assert every == Every(log=0, evaluate=16, save=1)
    assert Every.of(opened("b", checkpoint={"every": 0}), 40, 8) == Every(log=10, evaluate=0, save=0)


def test_a_second_owner_is_refused_until_the_first_is_gone(opened: Callable[..., Run], tmp_path: Path) -> None:
    first = opened()
    with pytest.raises(UserError, match=r"run\.dir: .* still going"):
        opened()
    first.close()
    opened()


def test_a_forked_child_does_not_hold_the_lock(opened: Callable[..., Run]) -> None:
    first = opened()
    told, tell = os.pipe()
    ready, say = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(tell)
        os.write(say, b".")
        os.read(told, 1)  # lives on until the end of the test
        os._exit(0)
    assert os.read(ready, 1) == b"."
    first.close()
    opened()
    os.close(tell)
    os.waitpid(child, 0)
    for end in (told, ready, say):
        os.close(end)


def begin(run: Run) -> None:
    """What a run leaves that has got so far that its config matters."""
    save(run.checkpoints, Checkpoint(1, {}, {}, {}), keep=2)
    run.close()


def test_options_of_run_may_change_and_other_keys_may_not(opened: Callable[..., Run], tmp_path: Path) -> None:
    begin(opened(log_every=5))
    again = opened(log_every=7)
    assert yaml.safe_load((again.dir / "config.yaml").read_text())["run"]["log_every"] == 7
    again.close()
    path = again.dir / "config.yaml"
    path.write_text(path.read_text().replace("seed: 0", "seed: 3"))
    with pytest.raises(UserError, match=r"seed: 3 there, 0 now.* choose another run\.dir"):
        opened()


def test_another_verbs_folder_is_refused(opened: Callable[..., Run]) -> None:
    run = opened()
    begin(run)
    with pytest.raises(UserError, match=r"verb: 'pretrain' there, 'adapt' now"):
        Run("adapt", run.config, quiet=True).open()


@pytest.mark.parametrize("text", ["", "[1, 2", "- a", "\x00"])
def test_a_damaged_config_is_said(text: str, opened: Callable[..., Run]) -> None:
    run = opened()
    begin(run)
    (run.dir / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml is damaged"):
        opened()


def test_a_file_in_the_way_is_said(opened: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UserError, match=r"is a file; choose another run\.dir"):
        opened()


def test_differing_compares_as_yaml_would() -> None:
    before = {"a": {"x": [1, 2], "y": 1.0}, "run": {"dir": "a"}, "gone": 1}
    now = {"a": {"x": (1, 2), "y": 2.0, "z": None}, "run": {"dir": "b"}}
    assert differing(before, now) == [("a.y", 1.0, 2.0), ("gone", 1, None)]


def test_changed_data_is_refused_unless_accepted(opened: Callable[..., Run]) -> None:
    run = opened()
    run.record(data={"train": "a" * 64})
    run.record(data={"train": "a" * 64})
    with pytest.raises(UserError, match=r"data\.train changed since .* run\.changed_data=accept"):
        run.record(data={"train": "b" * 64})
    run.close()
    opened(changed_data="accept").record(data={"train": "b" * 64})
    facts = json.loads((run.dir / "run.json").read_text())
    assert facts["data"] == {"train": "b" * 64} and facts["processes"] == 1 and "torch" in facts["versions"]


def test_the_result_comes_last_and_is_found_again(opened: Callable[..., Run]) -> None:
    run = opened()
    assert run.finished is None
    result = run.finish({"metrics": {"test/knn/accuracy": 0.5}})
    assert run.finished == json.loads(json.dumps(result)) and result["task"] == "pretrain" and result["seed"] == 0


def test_rows_beyond_the_checkpoint_are_cut(opened: Callable[..., Run]) -> None:
    run = opened()
    for step in range(1, 6):
        run.metrics({"step": step})
    with open(run.dir / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')  # a kill in the middle of a write
    run.cut_metrics(3)
    assert (run.dir / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_an_accelerate_config_for_something_else_changes_nothing(
    opened: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    accelerator = opened().accelerator
    assert accelerator.mixed_precision == "no"
    plugin = accelerator.state.dynamo_plugin
    assert plugin is not None and plugin.backend == DynamoBackend.NO


def no_section(run: Run, *, seed: int = 0) -> None:
    """The smallest recipe: all that its config has is a seed and `run`."""


def test_a_folder_of_others_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    def refused(folder: Path, sentence: str, train: str = "sklearn:digits") -> None:
        held = sorted(folder.rglob("*"))
        config = validate({"run": {"dir": str(folder)}}, no_section, {"run": options})
        run = Run("pretrain", {**config, "data": {"train": [train]}}, quiet=True)
        with pytest.raises(UserError, match=sentence):
            run.open()
        assert sorted(folder.rglob("*")) == held

    for name, content, sentence in (
        ("1.png", "", r"holds 1 pictures \(1\.png\)"),
        ("config.yaml", "mine: 1\n", "no run wrote .*config.yaml"),
        ("run.json", "{}", "no run wrote .*run.json"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(content)
        refused(folder, sentence)
        assert (folder / name).read_text() == content
    (tmp_path / "set" / "cat").mkdir(parents=True)
    (tmp_path / "link").symlink_to("set")
    refused(tmp_path / "set", r"is itself read as data\.train", f"folder:{tmp_path}/link#train")


def test_energy_goes_into_the_result_and_over_the_parts(
    opened: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = opened()
    run.note_rows()
    run.finish({})
    why = "not measured: no GPU with a counter of energy computes"
    assert json.loads((run.dir / "result.json").read_text())["energy"] == {"joules": None, "why": why}
    run.close()

    given = list[object]()

    class Counted:
        def __init__(self, device: object, earlier: object) -> None:
            given.append(earlier)

        def so_far(self) -> dict[str, float]:
            return {"joules": 2.5 * len(given)}

    monkeypatch.setattr("rootstock.core.run.directory.RunEnergy", Counted)
    begin(first := opened("b"))
    first.note_rows()
    first.close()
    begin(second := opened("b"))
    assert given == [None, {"joules": 2.5}] and second.finish({})["energy"] == {"joules": 5.0}
