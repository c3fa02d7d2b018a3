"""Labels of a sealed test are read once, by one function, after the look was written down; and the count survives what happens to runs."""

import ast
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rootstock.adapt.sets import open_sets
from rootstock.core.errors import UserError
from rootstock.core.evaluate import looks, sealed
from rootstock.core.evaluate.looks import cache_ledger, looks_of_rows, looks_words, refuse_damaged_looks
from rootstock.core.evaluate.predictions import read_predictions
from rootstock.core.evaluate.scores import Scored
from rootstock.core.evaluate.sealed import CandidateLogits, Opened, open_sealed, rows_by_class
from rootstock.core.images.open import Images, open_images
from rootstock.core.images.sealed import SealedImages
from rootstock.core.images.sets import align
from rootstock.core.ledger import read_ledger
from rootstock.core.run.directory import Run
from rootstock.core.run.rows import CANDIDATES, LOOKS
from rootstock.core.views.corrupted import Corruption, corrupted
from rootstock.core.views.view import Evaluation
from rootstock.tests.conftest import Forks
from rootstock.tests.house.source import ROOT, sources
from rootstock.tests.house.source import tree as parsed

CLASSES = ("a", "b")
Open = Callable[..., Run]


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Twelve pictures of two classes, and a cache for this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    generator = np.random.default_rng(0)
    for k in range(12):
        place = tmp_path / "pictures" / CLASSES[k % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(place / f"{k:02}.png")
    return f"folder:{tmp_path / 'pictures'}"


def labelled(uri: str) -> Images:
    return align(open_images(uri, role="test"), CLASSES, "data.test")


def seal(uri: str) -> SealedImages:
    return SealedImages(partial(labelled, uri))


def candidate(seed: int, m: int = 12) -> CandidateLogits:
    generator = torch.Generator().manual_seed(seed)
    return CandidateLogits(f"digest {seed}", {"target": torch.randn(m, 2, generator=generator)})


def scored(run: Run, uri: str, *seeds: int) -> Opened:
    return open_sealed(run, {"target": seal(uri)}, {f"c{seed}": candidate(seed) for seed in seeds}, CLASSES)


def entries(path: Path) -> Sequence[Any]:
    found = read_ledger(path)
    return () if found is None else found.entries


def test_a_sealed_set_has_no_labels_and_the_fingerprint_of_the_labelled_one(uri: str) -> None:
    found, known = seal(uri), labelled(uri)
    assert found.labels is None and found.select(torch.arange(3)).labels is None
    assert not any(isinstance(value, Images) for value in vars(found).values())
    assert found.fingerprint() == known.fingerprint() and found.split_hash() == known.split_hash()
    assert found.fingerprint() != known.unlabelled().fingerprint()
    assert SealedImages(partial(labelled, uri), "mtime").fingerprint("mtime") == known.fingerprint("mtime")
    opened = found.unsealed()
    assert opened.labels is not None and known.labels is not None and torch.equal(opened.labels, known.labels)


def test_other_images_than_at_the_beginning_are_refused(uri: str) -> None:
    found = seal(uri)
    (Path(uri.removeprefix("folder:")) / "a" / "00.png").unlink()
    with pytest.raises(UserError, match="holds other images than when the run began"):
        found.unsealed()


def trees(name: str) -> Iterable[tuple[str, ast.Module]]:
    """Every module of the package in whose text the name stands, with its path."""
    for path in sources():
        if name in (ROOT / path).read_text():
            yield path.as_posix(), parsed(path)


def users(tree: ast.AST, *names: str) -> set[str]:
    """The functions (of a module's first level, or methods as CLASS.METHOD; "" for none) in which one of these names stands: called, given
    away, imported, or as a text for `getattr`."""
    found = set[str]()

    def visit(node: ast.AST, place: str) -> None:
        for child in ast.iter_child_nodes(node):
            here = place
            if isinstance(child, ast.FunctionDef | ast.ClassDef) and (not place or isinstance(node, ast.ClassDef)):
                here = f"{place}.{child.name}".lstrip(".")
            spelt = {getattr(child, key, None) for key in ("id", "attr", "name", "value")}
            if any(isinstance(text, str) and text in names for text in spelt) and not isinstance(
                child, ast.FunctionDef | ast.ClassDef
            ):
                found.add(here)
            visit(child, here)

    visit(tree, "")
    return found


def test_one_function_reads_the_labels() -> None:
    """However `unsealed` is reached: called, passed on, or by its name; and a sealed set's own way to its labels is its own."""
    opening = {where: found for where, tree in trees("unsealed") if (found := users(tree, "unsealed"))}
    assert opening == {"core/evaluate/sealed.py": {"_open"}}
    source = dict(trees("_open"))["core/evaluate/sealed.py"]
    assert users(source, "_open") == {"open_sealed", "rows_by_class"}
    assert {where for where, tree in trees("rows_by_class") if users(tree, "rows_by_class")} == {"adapt/online_pass.py"}


def test_nobody_else_of_an_adaptation_opens_a_set() -> None:
    """What could bypass the seal: in adapt/, only `sets` opens images, and gives what it opens to a `SealedImages`."""
    opening = {where: tree for where, tree in trees("open_images") if where.startswith("adapt/")}
    assert {where for where, tree in opening.items() if users(tree, "open_images")} == {"adapt/sets.py"}
    tree = opening["adapt/sets.py"]
    # _has_labels asks whether the target has labels at all; Tested.opened and sealed_target are what is sealed. Of Tested.undrawn the seal
    # takes the identities; training_source opens the source alone.
    assert users(tree, "open_images") == {
        "", "_has_labels", "open_sets", "sealed_target", "training_source", "Tested.opened", "Tested.undrawn"
    }  # fmt: skip
    names = ("Tested", "_store", "_stores")
    ours = {where: tree for name in names for where, tree in trees(name) if where.startswith("adapt/")}
    others = {where for where, tree in ours.items() if users(tree, *names)}
    assert others == {"adapt/sets.py"}


def test_the_guard_finds_every_way_to_spell_it() -> None:
    for text in ("x.unsealed()", "partial(x.unsealed)", "getattr(x, 'unsealed')()", "f = SealedImages.unsealed"):
        assert users(ast.parse(f"def g(x):\n    {text}"), "unsealed") == {"g"}, text
    assert users(ast.parse("from .open import open_images as o"), "open_images") == {""}
    assert users(ast.parse("class A:\n    def b(self, x): return x.unsealed()"), "unsealed") == {"A.b"}


def test_the_numbers_are_those_of_the_plain_test(uri: str, opened: Open) -> None:
    run, plain = opened(), Scored(CLASSES, 0)
    found = scored(run, uri, 1, 2)
    for seed in (1, 2):
        plain.add(f"target/c{seed}", labelled(uri), candidate(seed).logits["target"])
    assert {key: found.result[key] for key in plain.as_result()} == json.loads(json.dumps(plain.as_result()))
    assert found.result["looks"]["target"]["n"] == 1 and found.tests["target"].labels is not None
    saved = read_predictions(run.dir)
    assert saved is not None and set(saved.scores) == {"target/c1", "target/c2"}


def test_logits_are_stored_and_the_look_written_down_before_labels_are_read(
    uri: str, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, straight = opened(), SealedImages.unsealed
    from safetensors.numpy import load_file

    def read(self: SealedImages) -> Images:
        stored = load_file(run.dir / CANDIDATES)
        assert set(stored) == {"target/keys", "target/c1/logits"} and stored["target/c1/logits"].dtype == np.float16
        (look,) = entries(run.dir / LOOKS)
        assert look["candidates"] == {"c1": "digest 1"} and look["split"] == self.split_hash()
        assert [one["candidates"] for one in entries(cache_ledger(self.split_hash()))] == [look["candidates"]]
        return straight(self)

    monkeypatch.setattr(SealedImages, "unsealed", read)
    scored(run, uri, 1)


@pytest.mark.parametrize("when", ["after the run's ledger", "before the labels", "after the labels"])
def test_a_kill_and_a_resume_are_one_look(when: str, uri: str, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*arguments: Any, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    run = opened()
    if (child := os.fork()) == 0:
        place, name = {
            "after the run's ledger": (looks, "cache_ledger"),
            "before the labels": (SealedImages, "unsealed"),
            "after the labels": (Scored, "save"),
        }[when]
        monkeypatch.setattr(place, name, killed)
        scored(run, uri, 1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert len(entries(run.dir / LOOKS)) == 1
    for _ in range(2):
        assert scored(run, uri, 1).result["looks"]["target"]["n"] == 1
    assert len(entries(run.dir / LOOKS)) == 1 and len(entries(cache_ledger(seal(uri).split_hash()))) == 1


def test_what_was_frozen_is_scored_after_a_resume(uri: str, opened: Open) -> None:
    """The same weights may give other logits in the last digit on another machine."""
    run = opened()
    first = scored(run, uri, 1)
    nearly = CandidateLogits("digest 1", {"target": 1.01 * candidate(1).logits["target"]})
    again = open_sealed(run, {"target": seal(uri)}, {"c1": nearly}, CLASSES)
    assert again.result == first.result
    (run.dir / CANDIDATES).write_bytes(b"damaged")
    other = open_sealed(run, {"target": seal(uri)}, {"c1": nearly}, CLASSES)
    assert other.result["looks"] == first.result["looks"]
    assert other.result["metrics"]["target/c1/nll"] != first.result["metrics"]["target/c1/nll"]


def test_other_candidates_and_other_runs_are_further_looks_and_other_sets_are_not(uri: str, opened: Open) -> None:
    count = [scored(opened(name), uri, *seeds).result["looks"]["target"]["n"] for name, seeds in RUNS]
    assert count == [1, 2, 3, 1]
    other = {"other": SealedImages(lambda: labelled(uri).select(torch.arange(6)))}
    logits = {"other": torch.randn(6, 2)}
    assert (
        open_sealed(opened("d"), other, {"c": CandidateLogits("x", logits)}, CLASSES).result["looks"]["other"]["n"] == 1
    )
    assert len(entries(opened("a2").dir / LOOKS)) == 0


def test_the_same_weights_with_other_pictures_are_another_look(uri: str, opened: Open) -> None:
    """A crop, a size and a corruption leave identities and weights as they are. The same pictures in another order are the same look."""

    def n(name: str, images: SealedImages, view: Evaluation) -> int:
        run = opened(name)
        found = open_sealed(run, {"target": images}, {"c1": candidate(1)}, CLASSES, view=view)
        count: int = found.result["looks"]["target"]["n"]
        return count

    plain, noisy = Evaluation(8), partial(corrupted, corruption=Corruption("gaussian_noise", 5, "imagenet"))
    assert n("plain", seal(uri), plain) == 1
    assert n("noise", SealedImages(lambda: noisy(labelled(uri), view=plain)), plain) == 2
    assert n("crop", seal(uri), Evaluation(8, crop=0.5)) == 3
    assert n("bicubic", seal(uri), Evaluation(4, interpolation="bicubic")) == 4
    assert n("std", seal(uri), Evaluation(8, std=(0.5, 0.5, 0.5))) == 5
    assert n("again", SealedImages(lambda: labelled(uri).select(torch.arange(12).flip(0))), plain) == 1
    assert n("noise again", SealedImages(lambda: noisy(labelled(uri), view=plain)), plain) == 2


def test_parts_that_are_drawn_from_one_set_are_counted_at_that_one(uri: str, opened: Open) -> None:
    """Of one candidate too: each part shows other labels. A part that is fixed is a set of its own."""

    def n(name: str, test: str) -> int:
        data = {"source": uri, "target": uri, "test": {"t": test}, "size": 8}
        images = open_sets(data, 0).tests["t"]
        known = CandidateLogits("digest", {"t": torch.zeros(len(images), 2)})
        count: int = open_sealed(opened(name), {"t": images}, {"c": known}, CLASSES).result["looks"]["t"]["n"]
        return count

    drawn = [
        f"{uri}#[50%:,seed=1]",
        f"{uri}#[50%:,seed=2]",
        f"{uri}#[dirichlet=1]",
        f"{uri}#[:50%]#[longtail=2,seed=1]",
    ]
    assert [n(f"run {k}", test) for k, test in enumerate(drawn)] == [1, 2, 3, 1]
    assert n("fixed", f"{uri}#[:50%]") == 2 and n("whole", uri) == 4 and n("again", drawn[1]) == 2
    assert len(list(cache_ledger("x").parent.glob("*.json"))) == 2


RUNS = [("a", [1]), ("b", [2]), ("c", [1, 2]), ("a3", [1])]  # the last one scores what the first one did


def test_a_copied_run_goes_on_with_the_same_look(uri: str, opened: Open, tmp_path: Path) -> None:
    run = opened()
    scored(run, uri, 1)
    copy = opened("copy")
    shutil.copy(run.dir / LOOKS, copy.dir / LOOKS)
    shutil.copy(run.dir / CANDIDATES, copy.dir / CANDIDATES)
    assert scored(copy, uri, 1).result["looks"]["target"]["n"] == 1
    assert len(entries(cache_ledger(seal(uri).split_hash()))) == 1


def test_a_copy_on_another_machine_tells_that_ones_cache(
    uri: str, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = opened()
    scored(run, uri, 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "there"))
    assert scored(run, uri, 1).result["looks"]["target"]["n"] == 1
    assert scored(opened("next"), uri, 2).result["looks"]["target"]["n"] == 2
    assert len(entries(run.dir / LOOKS)) == 1


def test_a_cache_that_cannot_be_written_is_said(uri: str, opened: Open, tmp_path: Path) -> None:
    place = cache_ledger("x").parent
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("")
    run = opened()
    told = scored(run, uri, 1).result["looks"]["target"]
    assert told["n"] == 1 and f"{place} cannot be written" in told["note"]
    assert looks_words(told).startswith("looks: at least 1 (unknown before 20")
    assert scored(run, uri, 2).result["looks"]["target"]["n"] == 2  # the run's own ledger counts
    assert place.read_text() == ""


def test_a_cache_that_can_only_be_read_still_counts(uri: str, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(opened("a"), uri, 1)
    straight = looks.add_entry

    def refused(path: Path, *arguments: Any, **options: Any) -> Any:
        if options.get("shared"):
            raise PermissionError(13, "Permission denied", str(path))
        return straight(path, *arguments, **options)

    monkeypatch.setattr(looks, "add_entry", refused)
    told = scored(opened("b"), uri, 2).result["looks"]["target"]
    assert told["n"] == 2 and "Permission denied" in told["note"]
    assert scored(opened("c"), uri, 1).result["looks"]["target"]["n"] == 1  # that look is known


def test_a_damaged_ledger_is_named_and_never_begun_anew(uri: str, opened: Open) -> None:
    run = opened()
    scored(run, uri, 1)
    path = cache_ledger(seal(uri).split_hash())
    for place in (path, run.dir / LOOKS):
        good = place.read_bytes()
        bad = good.replace(b"digest 1", b"digest 2")
        place.write_bytes(bad)
        if place == path:
            told = scored(run, uri, 1).result["looks"]["target"]
            assert told["n"] is None and str(path) in told["note"]
            assert looks_words(told).startswith("looks: unknown (")
        else:
            assert str(place) in refuse_damaged_looks(run.dir)
            with pytest.raises(UserError, match=r"looks\.json is damaged .* move it away"):
                scored(run, uri, 1)
        assert place.read_bytes() == bad
        place.write_bytes(good)
    assert refuse_damaged_looks(run.dir) == ""


def test_scores_that_are_not_numbers_cost_no_look(uri: str, opened: Open) -> None:
    run = opened()
    broken = CandidateLogits("x", {"target": torch.full((12, 2), torch.nan)})
    with pytest.raises(UserError, match="diverged"):
        open_sealed(run, {"target": seal(uri)}, {"c": broken}, CLASSES)
    assert entries(run.dir / LOOKS) == () and not (run.dir / LOOKS).exists()


def test_commands_at_once_count_each_other(uri: str, opened: Open) -> None:
    runs, children = [opened(f"run{seed}") for seed in range(4)], []
    for seed, run in enumerate(runs):
        if (child := os.fork()) == 0:
            try:
                n = scored(run, uri, seed).result["looks"]["target"]["n"]
                (run.dir / "n").write_text(str(n))
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    assert sorted(int((run.dir / "n").read_text()) for run in runs) == [1, 2, 3, 4]


PROGRAM = """
import errno, json, os, sys
import torch
import torch.distributed as dist
from rootstock.core.errors import UserError
from rootstock.core.evaluate import looks
from rootstock.core.evaluate.sealed import rows_by_class
from rootstock.core.images.sealed import SealedImages
from rootstock.tests.core.evaluate.test_sealed import seal, candidate, CLASSES, open_sealed
from rootstock.core.config.resolve import validate
from rootstock.core.run.directory import Run
from rootstock.core.run.options import options
from rootstock.tests.core.conftest import no_section

uri, folder, fault = sys.argv[1:]
torch.set_num_threads(1)
dist.init_process_group("gloo")
straight = SealedImages.unsealed
def read(self):
    open(f"{folder}.read-by-{dist.get_rank()}", "w").close()
    return straight(self)
SealedImages.unsealed = read
def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "looks.json")
if fault == "full":
    looks.add_entry = full
config = validate({"run": {"dir": folder, "device": "cpu"}}, no_section, {"run": options})
with Run("pretrain", config, quiet=True) as run:
    try:
        found = open_sealed(run, {"target": seal(uri)}, {"c1": candidate(1)}, CLASSES).result
    except UserError as error:
        found = f"{type(error).__name__}: {error}"
    order, look = (torch.empty(0), {}) if fault else rows_by_class(run, "order", seal(uri))
    with open(f"{folder}.{dist.get_rank()}", "w") as out:
        json.dump([found, order.tolist(), look], out)
dist.barrier()
dist.destroy_process_group()
"""


def test_two_processes_look_once_and_know_the_same(uri: str, opened: Open, forks: Forks, tmp_path: Path) -> None:
    """Also the order by class, which is a look of its own."""
    alone = scored(opened("alone"), uri, 1).result
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    forks.group(program, uri, tmp_path / "pair", "")
    texts = [json.loads((tmp_path / f"pair.{rank}").read_text()) for rank in range(2)]
    known = labelled(uri).labels
    assert known is not None
    assert texts[0] == texts[1] and texts[0][0] == json.loads(json.dumps(alone))
    assert texts[0][1] == known.argsort(stable=True).tolist() and texts[0][2]["n"] == 2
    kept = [look["candidates"] for look in entries(tmp_path / "pair" / LOOKS)]
    assert kept == [{"c1": "digest 1"}, {"in the order of classes": kept[1]["in the order of classes"]}]
    assert [look["candidates"] for look in entries(cache_ledger(seal(uri).split_hash()))] == kept
    assert sorted(path.name for path in tmp_path.glob("pair.read*")) == ["pair.read-by-0"]


def test_a_fault_of_the_main_process_is_one_sentence_on_all(uri: str, forks: Forks, tmp_path: Path) -> None:
    """A ledger that cannot be written: the other process does not wait for what never comes, and no label is read."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    forks.group(program, uri, tmp_path / "pair", "full")
    texts = [json.loads((tmp_path / f"pair.{rank}").read_text())[0] for rank in range(2)]
    assert texts[0] == texts[1] and texts[0].startswith("MachineError: the final test of")
    assert "needs looks.json, and the system says: No space left on device; mend that" in texts[0]
    assert not list(tmp_path.glob("pair.read*"))


def test_the_order_by_class_is_one_look_however_often_a_run_goes_on(uri: str, opened: Open) -> None:
    run, other = opened("a"), opened("b")
    orders = [rows_by_class(run, "order", seal(uri)) for _ in range(2)]
    assert torch.equal(orders[0][0], orders[1][0]) and orders[0][1] == orders[1][1] and orders[0][1]["n"] == 1
    known = seal(uri).unsealed().labels
    assert known is not None and known[orders[0][0]].tolist() == sorted(known.tolist())
    assert len(entries(run.dir / LOOKS)) == 1
    flat = SealedImages(lambda: open_images(f"{uri}/a", role="test"))
    with pytest.raises(UserError, match="not one label for each picture"):
        rows_by_class(other, "order", flat)
    assert entries(other.dir / LOOKS) == ()


def test_words_of_a_row_over_seeds() -> None:
    def look(n: int | None, since: str = "2026-01-01", note: str = "") -> dict[str, Any]:
        return {"n": n, "since": since, "note": note}

    assert (
        looks_words(looks_of_rows([look(1), look(3, "2026-02-01"), look(2)])) == "looks: 3 (unknown before 2026-02-01)"
    )
    assert looks_words(looks_of_rows([look(1), look(None, note="X is damaged")])) == (
        "looks: unknown (unknown before 2026-01-01; X is damaged)"
    )
    assert sealed.CANDIDATES == CANDIDATES
