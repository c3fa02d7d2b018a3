"""`rootstock validators score` on whole runs, in-process, on tiny slices of digits."""

import json
import os
import shutil
import signal
import warnings
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr

import rootstock.core.images.sealed as sealed
from rootstock.adapt.stored_runs import PACKED, pack_run, packed_run
from rootstock.adapt.validators.contract import Validator
from rootstock.adapt.validators.registry import VALIDATORS
from rootstock.core.errors import UserError
from rootstock.core.evaluate.looks import cache_ledger
from rootstock.launch import scoring
from rootstock.launch.scoring import score_validators
from rootstock.launch.verbs import execute

DIGITS = "sklearn:digits?size=12"
TARGETS = {"a": "[120:220,seed=1]", "b": "[250:350,seed=1]"}
CHEAP = ("entropy", "im", "source_validation", "last")


def start(where: Path, target: str, seed: int, method: dict[str, Any], **evaluate: Any) -> dict[str, Any]:
    config = {
        "data": {
            "source": f"{DIGITS}#[:120,seed=1]",
            "target": f"{DIGITS}#{TARGETS[target]}",
            "test": {"target": f"{DIGITS}#[220:250,seed=1]", "source": f"{DIGITS}#[350:380,seed=1]"},
            "size": 12,
        },
        "backbone": {"name": "smallconv", "args": {"widths": [4, 4, 8, 8]}},
        "method": method,
        "optim": {"lr": 1e-2, "batch_size": 16, "duration": 6},
        "evaluate": {"every": 2, "held_out": 0.25, "images": 60, "mixval": True, **evaluate},
        "seed": seed,
        "run": {"dir": str(where), "workers": 0, "device": "cpu", "log_every": 0, "checkpoint": {"every": 6}},
    }
    where.parent.mkdir(parents=True, exist_ok=True)
    path = where.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    return execute("adapt", str(path), quiet=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """Two methods on one task, one on another, whose candidates are kept in float16."""
    where = tmp_path_factory.mktemp("runs")
    dann, plain = {"name": "dann", "hidden": 8}, {"name": "source_only"}
    return where, {
        "a/dann": start(where / "a" / "dann", "a", 0, dann),
        "a/plain": start(where / "a" / "plain", "a", 0, plain, every=4),
        "b/half": start(where / "b" / "half", "b", 0, dann, every=4, half=True),
    }


@pytest.fixture
def copy(runs: tuple[Path, dict[str, dict[str, Any]]], tmp_path: Path) -> Path:
    return shutil.copytree(runs[0], tmp_path / "copy")


def told(
    capsys: pytest.CaptureFixture[str],
    *folders: Path,
    names: tuple[str, ...] = (),
    test: str | None = None,
    out: Path | None = None,
    processes: int = 1,
) -> tuple[dict[str, Any], str]:
    """The table as JSON, and what was said on stderr."""
    capsys.readouterr()
    assert score_validators(folders, names, test, out, True, processes) == 0
    printed = capsys.readouterr()
    return json.loads(printed.out), printed.err


def test_scores_are_those_of_the_runs_themselves(
    runs: tuple[Path, dict[str, dict[str, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, results = runs
    table, _ = told(capsys, folder, out=tmp_path / "all.json")
    assert (table["runs"], table["tasks"], table["candidates"]) == (3, 2, 7)
    assert set(table["validators"]) == {*VALIDATORS, "rule", "random"} and table["left_out"] == {}
    written = {Path(one["run"]).relative_to(folder).as_posix(): one for one in scores(tmp_path / "all.json")}
    assert set(written) == set(results)
    for name, result in results.items():
        assert written[name]["scores"] == result["validators"]["scores"]  # to the last bit: also of the one in float16
        assert written[name]["accuracies"] == result["validators"]["regret"]["target"]["accuracies"]
    costs = [result["validators"]["regret"]["target"]["by"] for result in results.values()]
    for name in (*CHEAP, "rule"):
        mean = table["validators"][name]["regret_in_runs"]["mean"]
        assert mean == pytest.approx(np.mean([cost[name]["regret"] for cost in costs]))


def test_several_processes_give_the_same_scores(
    runs: tuple[Path, dict[str, dict[str, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for processes in (1, 2, 8):  # tasks are divided among them, and there are two
        table, _ = told(capsys, runs[0], out=tmp_path / f"{processes}.json", processes=processes)
        found.append((table, scores(tmp_path / f"{processes}.json")))
    assert found[0] == found[1] == found[2] and len(found[0][1]) == 3


def test_a_killed_process_is_one_sentence(
    runs: tuple[Path, dict[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: Validator, candidates: object) -> list[float]:
        os.kill(os.getpid(), signal.SIGKILL)
        return []

    monkeypatch.setattr(type(VALIDATORS["im"]), "scores", killed)
    with pytest.raises(UserError, match=r"killed.* --processes 1 needs the least"):
        score_validators([runs[0]], ["im"], None, None, True, 2)
    assert not active_children()


def scores(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["scores"]


def test_candidates_are_ranked_within_their_task(
    runs: tuple[Path, dict[str, dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, results = runs
    table, _ = told(capsys, folder, names=CHEAP)
    for name in CHEAP:
        found = []
        for task in "ab":
            own = [result["validators"] for run, result in results.items() if run.startswith(task)]
            given = [score for one in own for score in one["scores"][name]]
            known = [accuracy for one in own for accuracy in one["regret"]["target"]["accuracies"]]
            with warnings.catch_warnings(
                action="ignore"
            ):  # of constant sides, whose correlation is not a number there and 0 here
                statistic: Any = spearmanr(given, known)
            found.append(0.0 if np.isnan(statistic[0]) else float(statistic[0]))
        assert table["validators"][name]["spearman"]["estimate"] == pytest.approx(np.mean(found))
    accuracies = [
        [
            a
            for r, one in results.items()
            if r.startswith(t)
            for a in one["validators"]["regret"]["target"]["accuracies"]
        ]
        for t in "ab"
    ]
    by_chance = np.mean([max(task) - np.mean(task) for task in accuracies])
    assert table["validators"]["random"]["regret_in_tasks"]["mean"] == pytest.approx(by_chance)


def test_the_command_reads_no_label_and_leaves_no_look(
    copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("a set was opened")

    monkeypatch.setattr(sealed.SealedImages, "unsealed", refused)
    monkeypatch.setattr("rootstock.core.images.open.open_images", refused)
    split = json.loads((copy / "a" / "plain" / "looks.json").read_text())["entries"][0]["split"]
    looks = [*copy.rglob("looks.json"), cache_ledger(split)]
    before = [path.read_bytes() for path in looks]
    for path in copy.rglob("predictions.safetensors"):  # the one file of a run that has labels of the target
        path.unlink()
    told(capsys, copy, names=("im",))
    assert [path.read_bytes() for path in looks] == before


def test_a_run_without_candidates_or_with_one_alone(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone, bare = copy / "a" / "plain", copy / "b" / "half"
    (alone / "candidates" / "step-00000006.safetensors").unlink()
    shutil.rmtree(bare / "candidates")
    table, _ = told(capsys, alone, names=("im",))
    assert (
        table["candidates"] == 1 and table["validators"]["im"]["regret_in_runs"] is None
    )  # there is nothing to choose from
    with pytest.raises(UserError, match="half kept no candidate; evaluate"):
        score_validators([bare], [], None, None, False, 1)
    table, said = told(capsys, copy, names=("im",))
    assert table["runs"] == 2 and "kept no candidate" in said


def test_what_is_damaged_is_passed_over_by_name(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flipped = copy / "a" / "dann" / "candidates" / "step-00000004.safetensors"
    content = bytearray(flipped.read_bytes())
    content[-3] ^= 1
    flipped.write_bytes(content)
    cut = copy / "a" / "dann" / "candidates" / "step-00000002.safetensors"
    cut.write_bytes(cut.read_bytes()[:100])
    (copy / "a" / "plain" / "result.json").write_text("{}")
    shutil.copytree(copy / "b" / "half", copy / "b" / "begun")
    for name in ("result.json", "MANIFEST.json"):
        (copy / "b" / "begun" / name).unlink()
    table, said = told(capsys, copy, names=("im",))
    assert (table["runs"], table["candidates"]) == (2, 1 + 2)
    for name in (flipped, cut, copy / "a" / "plain" / "result.json", copy / "b" / "begun"):
        assert sum(str(name) in sentence for sentence in table["passed_over"]) == 1
    assert said.count("passed over") == 4


def test_labels_of_the_target_in_a_kept_candidate_are_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy / "b" / "half" / "candidates" / "step-00000006.safetensors"
    tensors = load_file(path)
    (copy / "b" / "half" / "MANIFEST.json").unlink()
    save_file({**tensors, "target/labels": tensors["target/keys"].clone()}, path)
    table, _ = told(capsys, copy / "b", names=("im",))
    assert table["candidates"] == 1
    assert any("target/labels is no part of a candidate" in why for why in table["passed_over"])


def test_a_packed_run_gives_the_same_table_and_holds_no_label_of_the_target(
    runs: tuple[Path, dict[str, dict[str, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, results = runs
    for number, name in enumerate(results):
        pack_run(folder / name, tmp_path / "packs" / f"{number}{PACKED}")
    packed = tmp_path / "packs" / f"2{PACKED}"
    names = set(load_file(packed))
    assert {name.partition("/")[0] for name in names} == {"step 4", "step 6"}
    assert not any("target" in name and "label" in name for name in names)
    before = packed.read_bytes()
    pack_run(folder / "b" / "half", packed)
    assert packed.read_bytes() == before and str(folder).encode() not in before
    whole, _ = told(capsys, folder, names=CHEAP)
    again, _ = told(capsys, tmp_path / "packs", names=CHEAP)
    assert (again["runs"], again["tasks"], again["candidates"]) == (3, 2, 7)
    assert again["validators"]["random"] == whole["validators"]["random"]
    packed.write_bytes(before[:-1])
    assert packed_run(packed, lambda _: None) is None
    table, _ = told(capsys, tmp_path / "packs", names=("im",))
    assert table["runs"] == 2 and f"2{PACKED}" in table["passed_over"][0]


def test_the_table_can_be_kept_as_markdown(
    runs: tuple[Path, dict[str, dict[str, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score_validators([runs[0]], ["im", "last"], None, tmp_path / "new" / "table.md", False, 1) == 0
    written = (tmp_path / "new" / "table.md").read_text()
    assert "rootstock validators score" in written and "| im |" in written and "| default rule |" in written
    shown = capsys.readouterr().out
    assert "Spearman" in shown and "by chance" in shown


def test_another_test_can_be_the_one_that_counts(
    runs: tuple[Path, dict[str, dict[str, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, results = runs
    told(capsys, folder, names=("im",), test="source", out=tmp_path / "source.json")
    (one,) = (one for one in scores(tmp_path / "source.json") if one["run"].endswith("plain"))
    assert one["accuracies"][-1] == results["a/plain"]["metrics"]["source/classifier/accuracy"]
    with pytest.raises(UserError, match="no accuracy on other; its tests: source, target"):
        score_validators([folder], [], "other", None, False, 2)


REFUSED: dict[str, tuple[Callable[[Path], Path], list[str], str]] = {
    "no folder": (lambda where: where / "nothing", [], "nothing does not exist"),
    "no run": (lambda where: where, [], "no finished run of `rootstock adapt`"),
    "a file": (lambda where: where / "file.txt", [], "file.txt is a file; expected a folder with runs"),
    "no validator": (
        lambda where: where,
        ["entropie"],
        "--validator entropie: no such validator; did you mean entropy",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_one_sentence(case: str, tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("x")
    place, names, sentence = REFUSED[case]
    with pytest.raises(UserError, match=sentence):
        score_validators([place(tmp_path)], names, None, None, False, 1)


def test_a_new_validator_is_scored_alone_and_may_compare_candidates(
    runs: tuple[Path, dict[str, dict[str, Any]]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """EnsV's ensemble in the table is that of all candidates of a task that were shown the same images, not that of one run."""
    seen: list[int] = []
    ensv = type(VALIDATORS["ensv"])

    class Watched(ensv):
        def scores(self, candidates: Any) -> list[float]:
            seen.append(len(candidates))
            return super().scores(candidates)

    monkeypatch.setattr(scoring, "VALIDATORS", {"watched": Watched()})
    table, _ = told(capsys, runs[0])
    assert set(table["validators"]) == {"watched", "random"}
    # Each run by itself, then the five of the first task, and the two of the second.
    assert sorted(seen) == [2, 2, 2, 3, 5]
