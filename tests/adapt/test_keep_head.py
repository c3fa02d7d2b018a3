"""LP-FT (Kumar et al. 2022): a head is trained on the frozen network; what comes next begins with exactly its logits, and trains all."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rootstock.core.errors import UserError
from rootstock.core.evaluate.predictions import read_predictions
from rootstock.launch.verbs import execute
from rootstock.tests.adapt.digits import sets
from rootstock.tests.adapt.test_objective import start

PARTS = tuple(f"classifier/{part}.safetensors" for part in ("backbone", "bottleneck", "head"))


def logits(run: Path) -> Tensor:
    return load_file(run / "candidates.safetensors")["test/classifier/logits"]


def weights_of(run: Path, name: str) -> dict[str, Tensor]:
    return load_file(run / "run" / name)


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear probe with a bottleneck and a cosine head, on a frozen network."""
    folder = tmp_path_factory.mktemp("lp") / "a"
    method = {"name": "source_only", "bottleneck": 6, "head": "cosine"}
    start(folder, method, "backbone.freeze=all", "evaluate=null")
    return folder / "run"


def test_the_second_stage_begins_with_the_logits_of_the_first(probe: Path, tmp_path: Path) -> None:
    begun = {"backbone": {"weights": str(probe)}, "evaluate": None}
    for name in ("source_only", "mcc"):
        start(tmp_path / name, {"name": name, "keep_head": True}, "optim.duration=0", **begun)
        assert torch.equal(logits(tmp_path / name / "run"), logits(probe))
        for part in PARTS:  # of which logits are stored in float16
            kept, found = load_file(probe / part), weights_of(tmp_path / name, part)
            assert kept.keys() == found.keys() and all(torch.equal(kept[key], found[key]) for key in kept), part
    new = {"name": "source_only", "bottleneck": 6, "head": "cosine"}
    start(tmp_path / "new", new, "optim.duration=0", **begun)
    assert not torch.allclose(logits(tmp_path / "new" / "run"), logits(probe), atol=0.1)


def test_it_then_trains_everything(probe: Path, tmp_path: Path) -> None:
    method = {"name": "source_only", "keep_head": True}
    start(tmp_path / "b", method, "optim.duration=1", backbone={"weights": str(probe)}, evaluate=None)
    for name in PARTS:
        before, after = load_file(probe / name), weights_of(tmp_path / "b", name)
        trained = [key for key in before if key.endswith("weight")]
        assert trained and all(not torch.equal(before[key], after[key]) for key in trained), name


def finetune(folder: Path, *overrides: str) -> Path:
    data = sets(size=16)
    keys = {"data.train": data["source"], "data.test": data["test"], "data.size": 16, "data.views": "digits"}
    keys |= {"backbone.weights": "none", "optim.lr": 0.01, "optim.batch_size": 8, "optim.duration": 3}
    given = [f"{key}={value}" for key, value in keys.items()]
    run = folder / "run"
    options = [f"run.dir={run}", "run.workers=0", "run.device=cpu"]
    execute("finetune", "finetune/finetune.yaml", [*given, *options, *overrides], quiet=True)
    return run


def scores(run: Path) -> Any:
    found = read_predictions(run)
    assert found is not None
    return found.scores["test/classifier"].scores


def test_finetune_keeps_a_head_too(probe: Path, tmp_path: Path) -> None:
    """Of another run of finetune, whose head alone was trained, and of adapt."""
    net = ["backbone.name=smallconv", "backbone.args.widths=[4,4,6,8]", "optim.layer_decay=null"]
    first = finetune(tmp_path / "lp", *net, "method.freeze=true")
    kept = ["backbone.name=null", "method.keep_head=true", "optim.layer_decay=null", "optim.duration=0"]
    then = finetune(tmp_path / "ft", *kept, f"backbone.weights={first}")
    assert (scores(then) == scores(first)).all()
    adapted = finetune(tmp_path / "adapted", *kept, f"backbone.weights={probe}")
    torch.testing.assert_close(torch.from_numpy(scores(adapted)).float(), logits(probe).float(), rtol=1e-2, atol=1e-2)
    assert weights_of(tmp_path / "adapted", "classifier/bottleneck.safetensors")["0.weight"].shape == (6, 8)


def test_a_head_that_cannot_be_kept_is_refused(probe: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"backbone\.weights: none holds no classifier"):
        start(tmp_path / "a", {"name": "source_only", "keep_head": True})
    with pytest.raises(UserError, match=r"method\.keep_head: osbp needs an output for unknown images"):
        start(tmp_path / "b", {"name": "osbp", "keep_head": True}, backbone={"weights": str(probe)})
    with pytest.raises(UserError, match=r"method: bottleneck 5, head linear contradicts the classifier of"):
        start(tmp_path / "c", {"name": "mcc", "keep_head": True, "bottleneck": 5}, backbone={"weights": str(probe)})
