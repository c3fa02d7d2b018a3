"""No label of a target shapes a split or a weight, and what was seen is counted: whole runs, in-process, on tiny folders."""

import gc
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import rootstock.finetune.probe as probe_recipe
from rootstock.adapt.registry import ADAPT_METHODS
from rootstock.adapt.sets import open_sets
from rootstock.core import stage
from rootstock.core.errors import UserError
from rootstock.core.images.open import Images, open_images
from rootstock.core.method import Domains, Labelled, RawPair, Unlabelled
from rootstock.launch.verbs import execute

SIZE = 12
OPTIM = {"lr": 1e-3, "batch_size": 4, "duration": 3}
RUN = {"workers": 0, "device": "cpu", "log_every": 1, "checkpoint": {"every": "100%"}}
SIMCLR = {"name": "simclr", "projection": [8, 4]}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
NET = {"name": "resnet10t", "args": {"channels": [4, 4, 8, 8], "layers": [1, 1, 1, 1]}}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Forty real digits as files of their own, p00.png to p39.png."""
    folder = tmp_path_factory.mktemp("pictures")
    digits = open_images(f"sklearn:digits?size={SIZE}")
    paths = []
    for i in range(40):
        path = folder / f"p{i:02}.png"
        Image.fromarray(digits.read(i).permute(1, 2, 0).contiguous().numpy()).save(path)
        paths.append(path)
    return paths


def folder(root: Path, paths: Sequence[Path], labels: Sequence[int] | None = None) -> str:
    """A folder of copies, in class folders (or flat), as a URI."""
    for k, path in enumerate(paths):
        place = root if labels is None else root / f"class{labels[k]}"
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place / path.name)
    return f"folder:{root}"


def listed(path: Path, paths: Sequence[Path], labels: Sequence[int]) -> str:
    rows = [f"{picture},class{label}" for picture, label in zip(paths, labels, strict=True)]
    path.write_text("\n".join(["path,label", *rows]) + "\n")
    return f"csv:{path}"


def start(verb: str, where: Path, **sections: Any) -> dict[str, Any]:
    """Write a config and execute it; returns the result."""
    where.mkdir(parents=True)
    config = {"seed": 0, "run": {"dir": str(where / "run"), **RUN}, **sections}
    if verb != "probe":
        config["optim"] = {**OPTIM, **config.get("optim", {})}
    (where / "config.yaml").write_text(yaml.safe_dump(config))
    return execute(verb, str(where / "config.yaml"), quiet=True)


def digest(where: Path, *names: str) -> list[str]:
    names = names or ("backbone/backbone.safetensors", "backbone/seen.safetensors", "classifier/head.safetensors")
    return [hashlib.sha256((where / "run" / name).read_bytes()).hexdigest() for name in names]


def labels_of(n: int, seed: int) -> list[int]:
    """Alternating labels, shuffled by seed (0: not at all)."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)) if seed else torch.arange(n)
    return [int(k) % 2 for k in order]


@pytest.mark.parametrize("held_out", [True, False], ids=["held-out test", "data.test"])
@pytest.mark.parametrize("source_kind", ["csv", "folder"])
@pytest.mark.parametrize("method", ["cdan", "adabn"])
def test_shuffling_the_targets_labels_changes_no_split_and_no_weight(
    source_kind: str, held_out: bool, method: str, pictures: list[Path], tmp_path: Path
) -> None:
    source = folder(tmp_path / "source", pictures[:16], labels_of(16, 0))
    test = folder(tmp_path / "test", pictures[36:], [0, 1, 0, 1])
    weights = {}
    if method == "adabn":
        start("finetune", tmp_path / "trained", data={"train": source, "test": test, "size": SIZE}, backbone=NET)
        weights = {"weights": str(tmp_path / "trained" / "run")}
    outcomes = []
    for seed in (0, 1):
        labels = labels_of(20, seed)
        if source_kind == "csv":
            target = listed(tmp_path / f"target{seed}.csv", pictures[16:36], labels)
        else:
            target = folder(tmp_path / f"target{seed}", pictures[16:36], labels)
        data = {"source": source, "target": target, "size": SIZE, **({} if held_out else {"test": {"target": test}})}
        where = tmp_path / f"run{seed}"
        backbone = weights or NET
        result = start("adapt", where, data=data, backbone=backbone, method=method)
        rows = [json.loads(line) for line in (where / "run" / "metrics.jsonl").read_text().splitlines()]
        losses = [row["loss"] for row in rows if "loss" in row]
        chosen = result["validators"], result["diagnostics"]
        outcomes.append((result["data"]["split"], result["data"]["n"], digest(where), losses, chosen))
        assert result["metrics"]["target/classifier/accuracy"] >= 0.0
    assert labels_of(20, 0) != labels_of(20, 1)
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][1]["target"] == (16 if held_out else 20)


@pytest.mark.parametrize("method", sorted(ADAPT_METHODS))
def test_moving_and_relabelling_the_targets_files_changes_no_weight_and_no_candidate(
    method: str, pictures: list[Path], tmp_path: Path
) -> None:
    """Beside the weights, the stored logits are equal, and so is every choice that could be made of them."""
    source = folder(tmp_path / "source", pictures[:16], labels_of(16, 0))
    start(
        "adapt",
        tmp_path / "trained",
        data={"source": source, "target": source, "size": SIZE},
        backbone=NET,
        method="source_only",
    )
    kind = ADAPT_METHODS[method]
    backbone = {"weights": str(tmp_path / "trained" / "run")} if kind.keeps_head else NET
    once: dict[str, Any] = {"optim": {"duration": "1ep"}} if kind.online else {}
    outcomes = []
    for seed in (0, 1):
        order = [pictures[16 + int(k)] for k in torch.randperm(20, generator=torch.Generator().manual_seed(seed))]
        moved = [tmp_path / f"before{seed}" / f"{k:02}.png" for k in range(20)]
        moved[0].parent.mkdir()
        for path, place in zip(order, moved, strict=True):
            shutil.copy(path, place)
        target = folder(tmp_path / f"target{seed}", moved, labels_of(20, seed))
        data = {"source": source, "target": target, "size": SIZE, **({"views": "none"} if kind.online else {})}
        result = start("adapt", tmp_path / f"run{seed}", data=data, backbone=backbone, method=method, **once)
        names = ("backbone/backbone.safetensors", "classifier/head.safetensors")
        assert set(result["looks"]) == {"target"} and result["looks"]["target"]["n"] >= 1
        stored = load_file(tmp_path / f"run{seed}" / "run" / "candidates.safetensors")
        assert not any("labels" in name for name in stored)
        # The order of the files is that of the test set, but no image's logits depend on it.
        rows = stored["target/keys"].argsort()
        kept = stored["target/keys"][rows], stored["target/classifier/logits"][rows]
        outcomes.append(((result["data"]["split"], digest(tmp_path / f"run{seed}", *names)), kept))
    assert outcomes[0][0] == outcomes[1][0]
    torch.testing.assert_close(outcomes[0][1], outcomes[1][1], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("held_out", [True, False], ids=["held-out test", "data.test"])
def test_no_label_of_a_target_test_is_in_memory_while_training(
    held_out: bool, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder(tmp_path / "source", pictures[:16], labels_of(16, 0))
    target = folder(tmp_path / "target", pictures[16:36], labels_of(20, 0))
    hidden = open_images(target).keys()
    straight, looked = stage.fit, list[int]()

    def spy(*arguments: Any, **options: Any) -> None:
        gc.collect()
        known = [found for found in gc.get_objects() if isinstance(found, Images) and len(found)]
        ours = [found for found in known if bool(torch.isin(found.keys(), hidden).any())]
        looked.append(len(ours))
        assert all(found.labels is None for found in ours)
        straight(*arguments, **options)

    monkeypatch.setattr(stage, "fit", spy)
    data = {
        "source": source,
        "target": target,
        "size": SIZE,
        **({} if held_out else {"test": {"t": target, "u": target}}),
    }
    result = start("adapt", tmp_path / "run", data=data, backbone=NET, method="dann")
    assert looked and looked[0] >= 2  # the training set and a test
    assert set(result["looks"]) == ({"target"} if held_out else {"t", "u"})


def test_within_a_target_of_drawn_priors_no_label_changes_a_weight(pictures: list[Path], tmp_path: Path) -> None:
    """Labels choose the subset, as in every experiment on label shift. The same pictures with other labels give the same weights."""
    source = folder(tmp_path / "source", pictures[:16], labels_of(16, 0))
    test = folder(tmp_path / "test", pictures[36:], [0, 1, 0, 1])
    whole = folder(tmp_path / "target", pictures[16:36], labels_of(20, 0)) + "#[dirichlet=1,seed=2]"
    chosen = open_images(whole)
    assert 4 <= len(chosen) < 20
    every = open_images(folder(tmp_path / "every", pictures[16:36])).keys()  # in the order of names
    kept = [p for p, key in zip(pictures[16:36], every, strict=True) if key in chosen.keys()]  # noqa: SIM118
    outcomes = []
    for where, target in (
        ("first", whole),
        ("other", listed(tmp_path / "a.csv", kept, [k % 2 for k in range(len(kept))])),
        ("flat", folder(tmp_path / "unlabelled", kept)),
    ):
        data = {"source": source, "target": target, "size": SIZE, "test": {"target": test}}
        result = start("adapt", tmp_path / where, data=data, backbone=NET, method="dann")
        outcomes.append((result["data"]["split"]["target"], digest(tmp_path / where)))
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_the_target_holds_no_label_anywhere(
    pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Domains._fields == ("sources", "targets") and Unlabelled._fields == ("images", "draws", "index", "more")
    assert Labelled._fields == ("images", "labels", "draws", "more")
    source = folder(tmp_path / "source", pictures[:16], labels_of(16, 0))
    target = folder(tmp_path / "target", pictures[16:36], labels_of(20, 0))
    looked: list[RawPair] = []
    original = stage.fit

    def spy(method: Any, batches: Any, prepare: Any, **options: Any) -> None:
        for micro in batches(0):
            looked.extend(micro)
            assert prepare(micro[0])._fields == Domains._fields
        original(method, batches, prepare, **options)

    monkeypatch.setattr(stage, "fit", spy)
    start(
        "adapt", tmp_path / "run", data={"source": source, "target": target, "size": SIZE}, backbone=NET, method="dann"
    )
    assert len(looked) == 3
    for sample in looked:
        assert sample.target.labels.numel() == 0 and sample.target.extra == {}
        assert sample.source.labels.numel() == 4 and sample.target.images.shape[0] == 4
    for test in (None, {"x": target}):
        sets = open_sets({"source": source, "target": target, "test": test}, 0)
        assert sets.target.labels is None and sets.source.labels is not None


def test_a_stratified_target_is_refused_with_and_without_a_test(pictures: list[Path], tmp_path: Path) -> None:
    source = folder(tmp_path / "source", pictures[:16], labels_of(16, 0))
    target = folder(tmp_path / "target", pictures[16:36], labels_of(20, 0)) + "#[:80%,stratify]"
    for test in (None, {"x": source}):
        with pytest.raises(UserError, match="stratify reads labels"):
            open_sets({"source": source, "target": target, "test": test}, 0)


def test_an_unlabelled_target_is_used_whole(pictures: list[Path], tmp_path: Path) -> None:
    source = folder(tmp_path / "source", pictures[:20], labels_of(20, 0))
    sets = open_sets({"source": source, "target": folder(tmp_path / "target", pictures[20:30]), "test": None}, 0)
    assert len(sets.target) == 10 and set(sets.tests) == {"source"}
    assert len(sets.source) == 16 and len(sets.tests["source"]) == 4


def test_what_was_seen_is_counted_through_the_chain(pictures: list[Path], tmp_path: Path) -> None:
    """Test: p18 p19 (pretraining saw them), p34 p35 (adaptation), p20 (its label was trained on), p36 to p39 (nobody)."""
    unlabelled = folder(tmp_path / "unlabelled", pictures[:20])
    source = folder(tmp_path / "source", pictures[20:28], labels_of(8, 0))
    target = folder(tmp_path / "target", pictures[28:36])
    shown = [18, 19, 34, 35, 20, 36, 37, 38, 39]
    test = folder(tmp_path / "test", [pictures[i] for i in shown], [0, 1, 0, 1, 0, 1, 0, 1, 0])
    other = folder(tmp_path / "other", [pictures[i] for i in (20, 21, 0)], [0, 1, 1])

    evaluate = {"knn": {"k": 1}, "bank": source, "test": {"t": test, "o": other}}
    data = {"train": unlabelled, "size": SIZE}
    first = start("pretrain", tmp_path / "pretrain", data=data, backbone=NET, method=SIMCLR, evaluate=evaluate)
    assert first["seen_unlabelled"] == {"pretrain": 3} and first["seen_labelled"] == 0
    assert set(first["metrics"]) == {"t/knn/accuracy", "o/knn/accuracy"}

    data = {"source": source, "target": target, "test": test, "size": SIZE}
    from_pretrained = {"weights": str(tmp_path / "pretrain" / "run")}
    for method, adapted in (("dann", 2), ("source_only", 0)):
        result = start("adapt", tmp_path / method, data=data, backbone=from_pretrained, method=method)
        expected = {"pretrain": 2, "adapt": 2} if adapted else {"pretrain": 2}
        assert result["seen_unlabelled"] == expected and result["seen_labelled"] == 1

    adapted_weights = {"weights": str(tmp_path / "dann" / "run")}
    knn = {"knn": {"k": 1}}
    fresh = folder(tmp_path / "fresh", pictures[36:], [0, 1, 0, 1])
    data = {"train": fresh, "test": {"t": test, "o": other}, "size": SIZE}
    last = start("probe", tmp_path / "probe", data=data, backbone=adapted_weights, evaluate=knn)
    assert last["seen_unlabelled"] == {"pretrain": 3, "adapt": 2}
    assert last["seen_labelled"] == 1 + 4 + 2  # p20 and the four fresh ones in the test, p20 and p21 in the other
    provenance = json.loads((tmp_path / "dann" / "run" / "backbone" / "backbone.json").read_text())["provenance"]
    assert [stage["task"] for stage in provenance] == ["pretrain", "adapt"]


def test_every_kind_of_run_gives_weights(pictures: list[Path], tmp_path: Path) -> None:
    images = folder(tmp_path / "images", pictures[:20], labels_of(20, 0))
    start("pretrain", tmp_path / "pretrain", data={"train": images, "size": SIZE}, backbone=NET, method=SIMCLR)
    before = load_file(tmp_path / "pretrain" / "run" / "backbone" / "backbone.safetensors")
    chain = [
        ("finetune", {"data": {"train": images, "size": SIZE}}),
        ("adapt", {"data": {"source": images, "target": images, "size": SIZE}, "method": "source_only"}),
        ("pretrain", {"data": {"train": images, "size": SIZE}, "method": SIMCLR}),
    ]
    previous = tmp_path / "pretrain"
    for k, (verb, sections) in enumerate(chain):
        where = tmp_path / f"{verb}{k}"
        start(verb, where, backbone={"weights": str(previous / "run")}, optim={"lr": 0.0}, **sections)
        after = load_file(where / "run" / "backbone" / "backbone.safetensors")
        # At rate 0 everything but BatchNorm's statistics comes out as it went in.
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved and all(name.rsplit(".", 1)[1] in STATISTICS for name in moved)
        previous = where


def test_a_frozen_backbone_keeps_every_number(
    pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = folder(tmp_path / "images", pictures[:20], labels_of(20, 0))
    data = {"train": images, "size": SIZE}
    start("finetune", tmp_path / "trained", data=data, backbone=NET)
    weights = {"weights": str(tmp_path / "trained" / "run")}
    start("finetune", tmp_path / "frozen", data=data, backbone=weights, method={"freeze": True}, optim={"lr": 0.1})
    kept = ("backbone/backbone.safetensors",)
    assert digest(tmp_path / "frozen", *kept) == digest(tmp_path / "trained", *kept)
    heads = ("classifier/head.safetensors",)
    assert digest(tmp_path / "frozen", *heads) != digest(tmp_path / "trained", *heads)

    made: list[tuple[Any, dict[str, Tensor]]] = []
    create = probe_recipe.create

    def spy(*args: Any, **options: Any) -> Any:
        model = create(*args, **options)
        made.append((model, {name: value.clone() for name, value in model.state_dict().items()}))
        return model

    monkeypatch.setattr(probe_recipe, "create", spy)
    result = start("probe", tmp_path / "probe", data=data, backbone=weights, evaluate={"knn": {"k": 3}})
    ((model, before),) = made
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert result["metrics"]["test/knn/accuracy"] >= 0.0


def test_adabn_keeps_the_classifier_of_its_weights(pictures: list[Path], tmp_path: Path) -> None:
    source = folder(tmp_path / "source", pictures[:16], labels_of(16, 0))
    target = folder(tmp_path / "target", pictures[16:36])
    data = {"source": source, "target": target, "size": SIZE}
    start("adapt", tmp_path / "before", data=data, backbone=NET, method="source_only")
    weights = {"weights": str(tmp_path / "before" / "run")}
    result = start("adapt", tmp_path / "after", data=data, backbone=weights, method="adabn", optim={"duration": 0})
    assert result["steps"] == 0
    head = "classifier/head.safetensors"
    assert digest(tmp_path / "after", head) == digest(tmp_path / "before", head)
    old, new = (load_file(tmp_path / k / "run" / "backbone" / "backbone.safetensors") for k in ("before", "after"))
    moved = {name.rsplit(".", 1)[1] for name in old if not torch.equal(old[name], new[name])}
    assert moved == {"running_mean", "running_var"}
    with pytest.raises(UserError, match=r"backbone.weights: none holds no classifier"):
        start("adapt", tmp_path / "none", data=data, backbone=NET, method="adabn", optim={"duration": 0})


def test_other_classes_than_the_sources_are_one_sentence(pictures: list[Path], tmp_path: Path) -> None:
    source = folder(tmp_path / "source", pictures[:16], labels_of(16, 0))
    target = folder(tmp_path / "target", pictures[16:36], [0, 2] * 10)
    for k, test in enumerate(({"target": target}, None)):
        data = {"source": source, "target": target, "size": SIZE, **({"test": test} if test else {})}
        with pytest.raises(
            UserError, match=r"classes that the training set lacks \(class2\); known there: class0, class1"
        ) as error:
            start("adapt", tmp_path / f"run{k}", data=data, backbone=NET, method="dann")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("verb", ["pretrain", "adapt"])
def test_a_broken_first_picture_is_replaced_not_fatal(verb: str, pictures: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "a00.png"
    broken.write_bytes(pictures[0].read_bytes()[:60])
    images = folder(tmp_path / "images", [broken, *pictures[:20]])
    source = folder(tmp_path / "source", pictures[20:36], labels_of(16, 0))
    run = {"dir": str(tmp_path / verb / "run"), **RUN, "damaged": 0.1}
    if verb == "pretrain":
        sections = {"data": {"train": images, "size": SIZE}, "method": SIMCLR}
    else:
        start("finetune", tmp_path / "trained", data={"train": source, "size": SIZE}, backbone=NET)
        sections = {"data": {"source": source, "target": images, "size": SIZE}, "method": "adabn"}
    backbone = NET if verb == "pretrain" else {"weights": str(tmp_path / "trained" / "run")}
    result = start(verb, tmp_path / verb, backbone=backbone, run=run, optim={"duration": 6}, **sections)
    assert [Path(name).name for name in result["damaged"]] == ["a00.png"]


def test_labelled_and_unlabelled_folders_pretrain_together(pictures: list[Path], tmp_path: Path) -> None:
    flat = folder(tmp_path / "flat", pictures[:10])
    classes = folder(tmp_path / "classes", pictures[10:20], labels_of(10, 0))
    result = start(
        "pretrain", tmp_path / "run", data={"train": [flat, classes], "size": SIZE}, backbone=NET, method=SIMCLR
    )
    assert result["data"]["n"] == {"train": 20} and result["metrics"] == {}
