"""Whole fine-tunings that begin with pruning: shares are met, stops and processes change nothing, and what makes no sense is refused."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rootstock.core.errors import UserError
from rootstock.core.evaluate.trained import load_trained
from rootstock.core.model.backbone import create
from rootstock.core.model.macs import macs_of
from rootstock.core.run.directory import Run
from rootstock.finetune.compress.prune import check_prune
from rootstock.finetune.finetune import build_finetuning
from rootstock.launch.verbs import execute, fill_defaults
from rootstock.tests.conftest import Forks
from rootstock.tests.cut_off import cut_off_at

pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")

DATA = "sklearn:digits?size=8"
# Clipped, since a linear probe's head is large on features that BatchNorm normalises otherwise in training.
OPTIM = {"name": "sgd", "lr": 0.02, "batch_size": 16, "duration": 8, "warmup": 2, "weight_decay": 0.01, "clip": 1.0}
WHOLE: dict[str, Any] = {
    "data": {"train": f"{DATA}#[:90,seed=1]", "test": f"{DATA}#[90:120,seed=1]", "size": 8, "views": "digits_weak"},
    "backbone": {"name": "smallconv", "norm": "batch"},
    "optim": OPTIM,
    "run": {"log_every": 1, "workers": 0, "checkpoint": {"every": 3}},
}
TAYLOR = {"macs": 0.5, "importance": "taylor", "pictures": 70, "multiple": 2}
CASES: dict[str, dict[str, Any]] = {
    "taylor": {"keep_head": True, "prune": TAYLOR, "ema": {"decay": 0.5}, "l2_sp": {}, "wise_ft": 0.9},
    "new head": {"linear_first": True, "prune": {"macs": 0.4, "multiple": 1, "scope": "layer"}, "swa": {"start": "50%", "every": 2}},
    "weights": {"keep_head": True, "prune": {"weights": 0.8}, "ema": {"decay": 0.5}},
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that is pruned."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    execute("finetune", {**WHOLE, "run": {**WHOLE["run"], "dir": str(folder)}}, quiet=True)
    return folder


def config_of(case: str, whole: Path, folder: Path) -> dict[str, Any]:
    backbone = {"weights": str(whole), "norm": "batch"}
    return {**WHOLE, "backbone": backbone, "method": CASES[case], "run": {**WHOLE["run"], "dir": str(folder)}}


def pruned(case: str, whole: Path, folder: Path) -> dict[str, Any]:
    return execute("finetune", config_of(case, whole, folder), quiet=True)


Straight = dict[str, tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def straight(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """Each case once: its folder and its result."""
    folder = tmp_path_factory.mktemp("straight")
    return {case: (folder / case, pruned(case, whole, folder / case)) for case in CASES}


def exported(run: Path) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": tensor
        for name in ("backbone", "head")
        for key, tensor in load_file(run / "classifier" / f"{name}.safetensors").items()
    }


@pytest.mark.parametrize("case", ["taylor", "new head"])
def test_the_share_is_met_and_the_result_says_so(case: str, whole: Path, straight: Straight) -> None:
    folder, result = straight[case]
    told, before, after = result["pruned"], load_trained(whole).backbone, load_trained(folder).backbone
    macs = [macs_of(one.model, 3 if one.channels == 3 else one.channels, 8) for one in (before, after)]
    share = CASES[case]["prune"]["macs"]
    assert 0.85 * share < macs[1] / macs[0] <= share
    assert [told[when]["macs"] for when in ("before", "after")] == macs
    assert told["by"] == {"macs": share, "importance": "magnitude", "scope": "global", "least": 0.1, "multiple": 8} | {
        key: value for key, value in CASES[case]["prune"].items() if key != "pictures"
    }
    assert (
        told["after"]["parameters"] == sum(p.numel() for p in after.model.parameters()) < told["before"]["parameters"]
    )
    assert after.provenance[-1]["pruned"] == told and "pruned" not in after.provenance[0]
    assert after.feature_dim < before.feature_dim and create(8, weights=str(folder), channels=after.channels)


def test_masked_weights_are_0_in_the_export(straight: Straight) -> None:
    folder, result = straight["weights"]
    kernels = [
        tensor for key, tensor in load_file(folder / "backbone" / "backbone.safetensors").items() if tensor.ndim == 4
    ]
    zeros, count = sum(int((one == 0).sum()) for one in kernels), sum(one.numel() for one in kernels)
    told = result["pruned"]
    assert zeros == told["zeros"] == round(0.8 * count) and told["of_weights"] == count
    assert told["by"] == {"weights": 0.8, "scope": "global"} and "after" not in told
    assert "pruned" not in json.loads((folder / "backbone" / "backbone.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_ends_with_the_same_weights(
    case: str, whole: Path, straight: Straight, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cut_off_at(5):
        pruned(case, whole, tmp_path / "run")
    with monkeypatch.context() as patch:  # what was decided is read
        patch.setattr("rootstock.finetune.compress.prune._choose", None)
        again = pruned(case, whole, tmp_path / "run")
    folder, result = straight[case]
    for name in ("backbone/backbone", "classifier/head"):
        digests = [
            hashlib.sha256((run / f"{name}.safetensors").read_bytes()).hexdigest() for run in (folder, tmp_path / "run")
        ]
        assert digests[0] == digests[1], name
    assert again["metrics"] == result["metrics"] and again["pruned"] == result["pruned"]


def test_a_damaged_decision_is_made_again(
    whole: Path, straight: Straight, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run" / "checkpoints" / "kept" / "pruned.json"
    pruned("taylor", whole, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    decided = file.read_text()
    file.write_text(decided.replace("blocks.0.0", "blocks.0.9"))
    assert pruned("taylor", whole, tmp_path / "run")["pruned"] == straight["taylor"][1]["pruned"]
    assert file.read_text() == decided and "it is decided again what is pruned" in capsys.readouterr().err


PAIR = """
import json, sys
from rootstock.launch.verbs import execute

for config in json.loads(sys.argv[1]):
    execute("finetune", config, quiet=True)
"""


def test_two_processes_end_with_the_weights_of_one(
    whole: Path, straight: Straight, tmp_path: Path, forks: Forks
) -> None:
    (script := tmp_path / "pair.py").write_text(PAIR)
    forks.group(script, json.dumps([config_of(case, whole, tmp_path / case) for case in CASES]))
    for case, (folder, result) in straight.items():
        found, expected = exported(tmp_path / case), exported(folder)
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            torch.testing.assert_close(
                tensor, expected[name], rtol=1e-4, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
            )
        assert json.loads((tmp_path / case / "result.json").read_text())["pruned"] == result["pruned"]


def test_other_verbs_take_a_pruned_run(straight: Straight, tmp_path: Path) -> None:
    folder = straight["taylor"][0]
    probe = {"data": {**WHOLE["data"]}, "backbone": {"weights": str(folder)}, "run": {"dir": str(tmp_path / "probe")}}
    probe["data"].pop("views")
    assert execute("probe", {**probe, "evaluate": {"knn": {}}, "run": {**probe["run"], "workers": 0}}, quiet=True)[
        "metrics"
    ]
    again = {
        **config_of("taylor", folder, tmp_path / "again"),
        "method": {"keep_head": True, "prune": {"macs": 0.6, "multiple": 1}},
    }
    result = execute("finetune", again, quiet=True)
    assert result["pruned"]["before"] == straight["taylor"][1]["pruned"]["after"]
    assert result["pruned"]["after"]["macs"] <= 0.6 * result["pruned"]["before"]["macs"]


def test_a_share_of_another_runs_multiply_adds(whole: Path, straight: Straight, tmp_path: Path) -> None:
    """Of the whole network, of which a pruned one has less; where it has so few already, all stay."""
    folder, result = straight["taylor"]
    before, most = result["pruned"]["after"]["macs"], result["pruned"]["before"]["macs"]
    for share in (0.3, 0.9):
        config = config_of("taylor", folder, tmp_path / str(share))
        config["method"] = {"keep_head": True, "prune": {"macs": share, "of": str(whole), "multiple": 1}}
        told = execute("finetune", config, quiet=True)["pruned"]
        assert told["by"]["of"] == str(whole) and told["before"]["macs"] == before
        after = told["after"]["macs"]
        assert after == before if share == 0.9 else 0.85 * share * most < after <= share * most
    config["method"]["prune"]["of"] = str(tmp_path / "nothing")
    config["run"]["dir"] = str(tmp_path / "refused")
    with pytest.raises(UserError) as error:
        execute("finetune", config, quiet=True)
    assert str(error.value) == (
        f"method.prune.of: {tmp_path / 'nothing'} does not exist; give the folder of a finished run, such as runs/NAME"
    )


def test_a_contradiction_with_a_pruned_run_is_still_refused(straight: Straight) -> None:
    with pytest.raises(UserError, match=r"^backbone\.name: 'lenet' contradicts 'smallconv' of the run "):
        create(8, weights=str(straight["taylor"][0]), name="lenet")


def test_a_damaged_entry_is_refused(straight: Straight, tmp_path: Path) -> None:
    backbone = load_trained(straight["taylor"][0]).backbone
    backbone.spec["pruned"] = {"layers": {"blocks.0.0": {"out_channels": 99}}, "network": {}}
    backbone.export(tmp_path)
    with pytest.raises(UserError) as error:
        create(8, weights=str(tmp_path), channels=backbone.channels)
    assert str(error.value) == (
        f"backbone.weights: backbone.json of {tmp_path} is damaged (`pruned`: layer blocks.0.0 cannot have the sizes "
        "{'out_channels': 99}); restore it from a copy, or export the run again"
    )


def sections(**prune: Any) -> dict[str, Any]:
    config = {**WHOLE, "method": {"prune": prune}, "run": {**WHOLE["run"], "dir": "unused"}}
    return fill_defaults("finetune", config)


RANGE = "above 0 and below 1, got {}; 0.5 is usual, and without method.prune nothing is pruned"
MACS = f"macs: expected a share of the multiply-adds that are kept, {RANGE}"
BOTH = ": expected macs (whole channels go) or weights (single weights become 0), and {}; give one of them"
RESTS = ": all layers are pruned and have to recover, and {} lets some rest; leave one of both out"
RANDOM = (
    ": which weights matter is seen in trained ones, and these are random; set backbone.weights, or leave prune out"
)
TAYLORS = (
    "importance: taylor asks for the loss, which a new head cannot tell; give method.keep_head: true with the run of a classifier in "
    "backbone.weights, or importance: magnitude"
)
OF = ".of: it says whose multiply-adds macs is a share of, and single weights have none; leave it out"
HALF = {"macs": 0.5}
REFUSED: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = [
    ({"macs": 1.0}, {}, {}, "." + MACS.format(1.0)),
    ({"macs": 0.0}, {}, {}, "." + MACS.format(0.0)),
    ({"weights": 1.0}, {}, {}, f".weights: expected a share of the weights that become 0, {RANGE.format(1.0)}"),
    ({}, {}, {}, BOTH.format("neither is given")),
    ({**HALF, "weights": 0.5}, {}, {}, BOTH.format("both are given")),
    ({**HALF, "least": 1.0}, {}, {}, ".least: expected 0 or more and less than 1, got 1.0"),
    ({**HALF, "multiple": 0}, {}, {}, ".multiple: expected 1 to 4,096, got 0; 8 is usual"),
    ({**HALF, "pictures": 0}, {}, {}, ".pictures: expected 1 to 10,000,000, got 0; 512 are usual"),
    ({"weights": 0.5, "of": "runs/a"}, {}, {}, OF),
    (HALF, {}, {"weights": "none"}, RANDOM),
    ({**HALF, "importance": "taylor"}, {}, {}, "." + TAYLORS),
    (HALF, {"freeze": True}, {}, RESTS.format("method.freeze")),
    (HALF, {"trained": "biases"}, {}, RESTS.format("method.trained")),
    (HALF, {}, {"freeze": "stem"}, RESTS.format("backbone.freeze")),
    (HALF, {}, {"lora": {"rank": 2}}, RESTS.format("backbone.lora")),
]


@pytest.mark.parametrize(("prune", "method", "backbone", "sentence"), REFUSED)
def test_what_makes_no_sense_is_refused(prune: Any, method: Any, backbone: Any, sentence: str) -> None:
    config = sections(**prune)
    with pytest.raises(UserError) as error:
        check_prune({**config["method"], **method}, {**config["backbone"], "weights": "timm", **backbone}, "none")
    assert str(error.value) == f"method.prune{sentence}"


def test_sharded_weights_are_refused() -> None:
    config = sections(macs=0.5)
    with pytest.raises(UserError) as error:
        check_prune(config["method"], {**config["backbone"], "weights": "timm"}, "fsdp2")
    assert str(error.value) == "method.prune: it does not work with run.sharding: fsdp2; use run.sharding=none"


def test_a_share_out_of_reach_is_refused(whole: Path, tmp_path: Path) -> None:
    config = config_of("taylor", whole, tmp_path / "run")
    config["method"] = {"keep_head": True, "prune": {"macs": 0.01}}
    config = fill_defaults("finetune", config)
    with Run("finetune", config, quiet=True) as run, pytest.raises(UserError) as error:
        build_finetuning(run, **{key: value for key, value in config.items() if key != "run"})
    said = str(error.value)
    assert said.startswith("method.prune.macs: 0.01 of the multiply-adds of smallconv cannot be reached: 0.")
    assert said.endswith(
        " stay where each layer keeps 0.1 of its channels, in multiples of 8; give more, or lower method.prune.least or multiple"
    )
