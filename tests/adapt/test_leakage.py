"""No label of a target shapes a split or a weight, and what was seen is counted: whole runs, in-process, on tiny folders."""

import errno
import functools
import gc
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import rootstock.adapt.adapt as adapt_recipe
import rootstock.finetune.probe as probe_recipe
from rootstock.adapt.kept_states import concludes
from rootstock.adapt.online_pass import LOOK
from rootstock.adapt.registry import ADAPT_METHODS
from rootstock.adapt.sets import open_sets
from rootstock.core import stage
from rootstock.core.errors import UserError
from rootstock.core.evaluate import sealed
from rootstock.core.images.open import Images, open_images
from rootstock.core.images.sources.files import FileStore
from rootstock.core.ledger import read_ledger
from rootstock.core.method import Domains, Labelled, RawPair, Unlabelled
from rootstock.core.run.rows import LOOKS
from rootstock.launch.dry import build_dry
from rootstock.launch.report.page import write_report
from rootstock.launch.report.results import kind_of
from rootstock.launch.verbs import execute, fill_defaults
from rootstock.tests.adapt.label_watch import OPENING, LabelWatch

SIZE = 12
OPTIM = {"lr": 1e-3, "batch_size": 4, "duration": 3}
RUN = {"workers": 0, "device": "cpu", "log_every": 1, "checkpoint": {"every": "100%"}}
SIMCLR = {"name": "simclr", "projection": [8, 4]}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
NET = {"name": "resnet10t", "args": {"channels": [4, 4, 8, 8], "layers": [1, 1, 1, 1]}}
TINY = {"name": "smallconv", "args": {"widths": [4, 4, 4, 8]}}


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
    if verb == "adapt":
        config.setdefault("label_shift", {"resamples": 0})
    if verb != "probe":
        config["optim"] = {**OPTIM, **config.get("optim", {})}
    (where / "config.yaml").write_text(yaml.safe_dump(config))
    return execute(verb, str(where / "config.yaml"), quiet=True)


def digest(where: Path, *names: str) -> list[str]:
    names = names or ("backbone/backbone.safetensors", "backbone/seen.safetensors", "classifier/head.safetensors")
    return [sha256(where / "run" / name) for name in names]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def labels_of(n: int, seed: int) -> list[int]:
    """Alternating labels, shuffled by seed (0: not at all)."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)) if seed else torch.arange(n)
    return [int(k) % 2 for k in order]


class Case(NamedTuple):
    """What one config has beside the tiny sets: its method and settings.

    trained: whether it begins with the classifier of a run on the source. further: whether targets have a class that the source lacks.
    """

    method: dict[str, Any]
    sections: Mapping[str, Any] = MappingProxyType({})
    trained: bool = False
    further: bool = False


# Candidates of a step and of the end, labels of held-out source images, and mixed target images.
EVERYTHING = {"every": 2, "held_out": 0.25, "mixval": True}


def case(method: str, trained: bool = False, keys: Mapping[str, Any] = {}, **sections: Any) -> Case:
    """A case with all that the method's settings allow without changing what it is: every measure, re-sampling and correction by priors."""
    kind = ADAPT_METHODS[method]
    evaluate = (
        {**EVERYTHING, "every": None} if concludes(method) else EVERYTHING
    )  # a state before the last one would be refused
    given: dict[str, Any] = {"evaluate": evaluate, "label_shift": {"resamples": 4}}
    given["label_shift"] |= {} if kind.extra_outputs else {"correct": "mlls"}
    given["label_shift"] |= {"resample": "pseudo-labels"} if kind.resamples else {}
    if kind.online:
        given |= {"optim": {"duration": "1ep"}, "data": {"views": "none"}}
    given["data"] = {**given.get("data", {}), **sections.pop("data", {})}
    return Case({"name": method, **keys}, {**given, **sections}, trained or kind.keeps_head, kind.extra_outputs > 0)


BLUR = {"name": "gaussian_noise", "severity": 2, "table": "cifar"}
CASES: dict[str, Case] = {
    **{name: case(name) for name in sorted(ADAPT_METHODS)},
    "mic": case("mcc", keys={"mic": {}}),
    "plain": case("cdan", label_shift={}, evaluate={}),
    "corrected by bbse": case("source_only", label_shift={"correct": "bbse", "resamples": 4}),
    "BatchNorm apart": case("dann", keys={"batchnorm": "apart"}),
    "BatchNorm own": case("dann", keys={"batchnorm": "own"}),
    "bottleneck and weightnorm": case("cdan", keys={"bottleneck": 8, "head": "weightnorm"}),
    "bottleneck and cosine": case("mcc", keys={"bottleneck": 8, "head": "cosine"}),
    "frozen first stages": case(
        "dann", data={"views": "none"}, keys={"bottleneck": 8}, backbone={"freeze": "stage1"}, trained=True
    ),
    **{f"damaged {name}": case(name, data={"damaged": True}) for name in ("mcc", "shot", "aad", "adamatch")},
    **{f"another test {name}": case(name, data={"tested": True}) for name in ("cdan", "mcd", "shot", "osbp", "adabn")},
    "frozen features": case(
        "dann", data={"views": "none"}, keys={"bottleneck": 8}, backbone={"freeze": "all"}, trained=True
    ),
    "kept head": case("cdan", trained=True, keys={"keep_head": True}),
    "another strong view": case("adamatch", data={"strong": {"name": "randaugment"}}),
    "half precision": case("dann", evaluate={**EVERYTHING, "half": True}),
    "no measures": case("dann", evaluate=None),
    "corrupted pairs": case("dann", data={"corrupt": BLUR}),
    **{f"corrupted {name}": case(name, data={"corrupt": BLUR}) for name in ("tent", "eata", "roid")},
    "sequential": case("tent", data={"order": "sequential"}),
}


@pytest.fixture(scope="module")
def trained(pictures: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose classifier methods can begin with, on the source of the cases."""
    where = tmp_path_factory.mktemp("trained") / "source_only"
    source = folder(where.parent / "source", pictures[:16], labels_of(16, 0))
    data = {"source": source, "target": source, "size": SIZE}
    start("adapt", where, data=data, backbone=TINY, method="source_only", evaluate=None)
    return where / "run"


def damaged(where: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """Copies of both domains with a picture, the same whatever its name, that cannot be decoded, so that its neighbour replaces it."""
    copies = {}
    for domain in ("source", "target"):
        copy = where.with_name(f"{where.name} {domain}")
        shutil.copytree(data[domain].removeprefix("folder:"), copy)
        broken = sorted(copy.rglob("*.png"), key=sha256)[3]
        broken.write_bytes(broken.read_bytes()[:60])
        copies[domain] = f"folder:{copy}"
    return copies


def run_case(where: Path, given: Case, trained: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    sections = dict(given.sections)
    more = dict(sections.pop("data", {})), sections.pop("backbone", {})
    if more[0].pop("damaged", False):
        data = {**damaged(where, data), "test": {"target": data["target"]}}
    if more[0].pop("tested", False):
        data = {**data, "test": {"target": data["target"]}}
    backbone = {"weights": str(trained)} if given.trained else TINY
    return start(
        "adapt",
        where,
        data={**data, "size": SIZE, **more[0]},
        backbone={**backbone, **more[1]},
        method=given.method,
        **sections,
    )


class Left(NamedTuple):
    """What a run leaves that labels of the target might have shaped. exact: equal to the bit. by_key: outputs by image, in whose order on
    the disk they were computed; they may differ by rounding."""

    exact: dict[str, Any]
    by_key: dict[str, Tensor]


def left_by(run: Path, result: Mapping[str, Any]) -> Left:
    files = [*run.glob("classifier/*.safetensors"), *run.glob("backbone/*.safetensors")]
    files += [path for path in run.glob("candidates/*.safetensors") if not path.stem.endswith("-tests")]
    files += run.glob("checkpoints/*/*.safetensors")
    assert {"head.safetensors", "seen.safetensors", "model.safetensors"} <= {path.name for path in files}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    told = dict(result.get("validators", {}))
    told.pop("regret", None)  # after the look
    exact = {
        "weights": {str(path.relative_to(run)): sha256(path) for path in files},
        "rows": [{k: v for k, v in row.items() if k not in ("images_per_s", "data_wait")} for row in rows],
        "data": {key: result["data"][key] for key in ("split", "n")},
        "validators": told,
        "diagnostics": result.get("diagnostics"),
        "label_shift": {k: v for k, v in result["label_shift"].items() if k != "true"},
        "seen": [result["seen_labelled"], result["seen_unlabelled"], result["selection"], result["steps"]],
    }
    stored = load_file(run / "candidates.safetensors")
    assert not any("labels" in name for name in stored)
    tests = {name.partition("/")[0] for name in stored}
    order = {test: stored[f"{test}/keys"].argsort() for test in tests}
    return Left(exact, {name: rows[order[name.partition("/")[0]]] for name, rows in stored.items()})


@pytest.mark.parametrize("name", CASES)
def test_no_label_and_no_place_of_a_target_changes_anything(
    name: str, pictures: list[Path], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target's files moved, renamed and labelled anew: the same splits, weights, candidates, scores, picks, measures and estimates.

    The held-out part of the target is the test, so its labels are there to be read; the watch says that nobody does before the look.
    """
    given, watch, found = CASES[name], LabelWatch(monkeypatch), list[Left]()
    source = folder(tmp_path / "source", pictures[:16], labels_of(16, 0))
    hidden = open_images(folder(tmp_path / "hidden", pictures[16:36])).keys()
    for seed in (0, 1):
        order = [pictures[16 + k] for k in torch.randperm(20, generator=torch.Generator().manual_seed(seed)).tolist()]
        moved = [tmp_path / f"before{seed}" / f"{k:02}.png" for k in range(20)]
        moved[0].parent.mkdir()
        for path, place in zip(order, moved, strict=True):
            shutil.copy(path, place)
        labels = [k % 3 for k in range(20)] if given.further else labels_of(20, seed)
        target = folder(tmp_path / f"target{seed}", moved, labels)
        where = tmp_path / f"run{seed}"
        watch.watch(hidden, where / "run")
        result = run_case(where, given, trained, {"source": source, "target": target})
        assert watch.readers <= OPENING and watch.openings == 1, watch.readers - OPENING
        assert set(result["looks"]) == {"target"}
        found.append(left_by(where / "run", result))
    assert found[0].exact == found[1].exact
    assert len(found[0].by_key) >= 2
    torch.testing.assert_close(found[0].by_key, found[1].by_key, rtol=1e-2, atol=1e-3)


def test_the_watch_sees_who_reads_too_early(
    pictures: list[Path], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe that opens the target once more, with labels, to order its stream; and one that forgets to write the look down."""
    watch, given = LabelWatch(monkeypatch), case("tent", data={"order": "sequential"})
    target = folder(tmp_path / "target", pictures[16:36], labels_of(20, 0))
    data = {"source": folder(tmp_path / "source", pictures[:16], labels_of(16, 0)), "target": target}
    straight = adapt_recipe.stream_order

    def bypass(*arguments: Any) -> Any:
        known = open_images(target).labels
        assert known is not None and len(known) == 20
        return straight(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(adapt_recipe, "stream_order", bypass)
        watch.watch(open_images(target).keys(), tmp_path / "early" / "run")
        run_case(tmp_path / "early", given, trained, data)
    assert watch.readers - OPENING == {("tests/adapt/test_leakage.py", "bypass")}
    with monkeypatch.context() as patch:
        patch.setattr(sealed, "record_look", lambda *_: {"n": 1, "since": None, "note": ""})
        watch.watch(open_images(target).keys(), tmp_path / "silent" / "run")
        with pytest.raises(AssertionError):
            run_case(tmp_path / "silent", given, trained, data)


def test_a_stream_sorted_by_class_is_a_look_of_its_own_and_a_diagnostic(
    pictures: list[Path], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is counted before the pass, as the first one; the test's is the second. Where the files lie still changes nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    watch, given, found = LabelWatch(monkeypatch), case("tent", data={"order": "sorted"}), list[Left]()
    labels = labels_of(20, 3)
    source = folder(tmp_path / "source", pictures[:16], labels_of(16, 0))
    for number, order in enumerate((range(20), range(19, -1, -1))):
        shown = [tmp_path / f"before{number}" / f"{place:02}.png" for place in range(20)]
        shown[0].parent.mkdir()
        for place, k in enumerate(order):
            shutil.copy(pictures[16 + k], shown[place])
        target = folder(tmp_path / f"target{number}", shown, [labels[k] for k in order])
        where = tmp_path / f"run{number}"
        watch.watch(open_images(target).keys(), where / "run")
        result = run_case(where, given, trained, {"source": source, "target": target})
        assert watch.readers <= OPENING and watch.openings == 2
        ledger = read_ledger(where / "run" / LOOKS)
        assert ledger is not None and [entry["test"] for entry in ledger.entries] == [LOOK, "target"]
        # The second run's config names other files, so both are further looks.
        assert [result["looks"][key]["n"] for key in (LOOK, "target")] == [1 + 2 * number, 2 + 2 * number]
        assert "a diagnostic" in result["data"]["order"] and kind_of(result) == "diagnostic"
        found.append(left_by(where / "run", result))
    assert found[0].exact == found[1].exact
    page = write_report([tmp_path / "run0" / "run"], tmp_path / "page.html").read_text()
    assert "Diagnostic: the target&#39;s images were met sorted by class" in page and f"{LOOK} looks: 1" in page
    assert execute("adapt", str(tmp_path / "run0" / "config.yaml"), quiet=True) == json.loads(
        (tmp_path / "run0" / "run" / "result.json").read_text()
    )


def test_seeds_that_hold_out_other_parts_look_at_one_target(
    pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `data.test` each seed tests on another fifth, so after some seeds most labels were seen: one ledger counts them all."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = folder(tmp_path / "source", pictures[:16], labels_of(16, 0))
    target = folder(tmp_path / "target", pictures[16:36], labels_of(20, 0))
    data, found = {"source": source, "target": target, "size": SIZE}, list[dict[str, Any]]()
    for seed in range(2):
        where = tmp_path / f"seed{seed}"
        found.append(start("adapt", where, seed=seed, data=data, backbone=TINY, method="source_only", evaluate=None))
    assert found[0]["data"]["split"] != found[1]["data"]["split"]
    assert [result["looks"]["target"]["n"] for result in found] == [1, 2]
    (place,) = (tmp_path / "cache" / "rootstock" / "looks").glob("*.json")
    ledger = read_ledger(place)
    assert ledger is not None and len(ledger.entries) == 2 and place.stem == open_images(target).split_hash()


def test_a_dry_run_looks_at_no_label(
    pictures: list[Path], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = LabelWatch(monkeypatch)
    target = folder(tmp_path / "target", pictures[16:36], labels_of(20, 0))
    data = {"source": folder(tmp_path / "source", pictures[:16], labels_of(16, 0)), "target": target, "size": SIZE}
    written = {
        "data": {**data, "views": "none", "order": "sorted"},
        "backbone": {"weights": str(trained)},
        "method": "tent",
        "optim": {**OPTIM, "duration": "1ep"},
        "run": {"dir": str(tmp_path / "run"), **RUN},
    }
    watch.watch(open_images(target).keys(), tmp_path / "run")
    build_dry("adapt", fill_defaults("adapt", written))
    assert watch.openings == 0 and watch.readers <= OPENING and not (tmp_path / "run").exists()


@pytest.mark.parametrize("source_kind", ["csv", "folder"])
@pytest.mark.parametrize("held_out", [True, False], ids=["held-out test", "data.test"])
def test_a_table_of_labels_is_as_good_as_folders(
    source_kind: str, held_out: bool, pictures: list[Path], tmp_path: Path
) -> None:
    """Of a target with labels in a table, or in the names of folders, tested on a part of it or on other pictures."""
    source = folder(tmp_path / "source", pictures[:16], labels_of(16, 0))
    test = {} if held_out else {"test": {"target": folder(tmp_path / "test", pictures[36:], [0, 1, 0, 1])}}
    found = list[Left]()
    for seed in (0, 1):
        labels = labels_of(20, seed)
        if source_kind == "csv":
            target = listed(tmp_path / f"target{seed}.csv", pictures[16:36], labels)
        else:
            target = folder(tmp_path / f"target{seed}", pictures[16:36], labels)
        where = tmp_path / f"run{seed}"
        result = run_case(where, CASES["cdan"], Path(), {"source": source, "target": target, **test})
        assert result["metrics"]["target/classifier/accuracy"] >= 0.0
        assert result["data"]["n"]["target"] == (16 if held_out else 20)
        found.append(left_by(where / "run", result))
    assert labels_of(20, 0) != labels_of(20, 1)
    assert found[0].exact == found[1].exact
    torch.testing.assert_close(found[0].by_key, found[1].by_key, rtol=1e-2, atol=1e-3)


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


def test_a_target_of_which_only_some_sets_have_labels_has_none(pictures: list[Path], tmp_path: Path) -> None:
    source = folder(tmp_path / "source", pictures[:20], labels_of(20, 0))
    target = [folder(tmp_path / "a", pictures[20:30], labels_of(10, 0)), folder(tmp_path / "b", pictures[30:40])]
    sets = open_sets({"source": source, "target": target, "test": None}, 0)
    assert len(sets.target) == 20 and set(sets.tests) == {"source"} and "no test is of the target" in sets.untested()


def test_a_source_of_one_class_is_refused(pictures: list[Path], tmp_path: Path) -> None:
    source = folder(tmp_path / "source", pictures[:20], [0] * 20)
    target = folder(tmp_path / "target", pictures[20:30])
    with pytest.raises(UserError, match=r"^data\.source: all 20 training images of .* are of the class class0, and"):
        open_sets({"source": source, "target": target, "test": None}, 0)


def test_a_file_that_cannot_be_read_tells_nothing_by_its_place(
    pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes give it no identity, and its path would give it one that knows the class's folder: the order of training would follow."""
    straight = FileStore.content

    def content(store: FileStore, i: int) -> bytes | bytearray:
        if "lost" in store.name(i):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return straight(store, i)

    monkeypatch.setattr(FileStore, "content", content)
    data = {"source": folder(tmp_path / "source", pictures[:16], labels_of(16, 0)), "test": None}
    found = []
    for number, place in enumerate(("class0/lost.png", "class1/was lost.png")):
        target = folder(tmp_path / f"target{number}", pictures[16:35], labels_of(19, 0))
        shutil.copy(pictures[35], tmp_path / f"target{number}" / place)
        sets = [open_sets({**data, "target": target}, seed) for seed in range(4)]
        found.append([(one.target.keys().tolist(), one.tests["target"].keys().sort().values.tolist()) for one in sets])
    assert found[0] == found[1]


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

    @functools.wraps(create)  # its signature is the section `backbone`
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
