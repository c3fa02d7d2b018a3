"""The measurement of the training step at toy size: that all of it runs, and counts and times rightly. Nothing is timed here."""

import importlib
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

SCRIPTS = ("fitted", "flops", "gpu", "lightly_steps", "overhead", "rounds", "step", "timing")


class Scripts:
    """The modules of benchmarks/, which import each other as scripts of one folder do."""

    fitted: ModuleType
    flops: ModuleType
    gpu: ModuleType
    lightly_steps: ModuleType
    overhead: ModuleType
    rounds: ModuleType
    step: ModuleType
    timing: ModuleType


@pytest.fixture(scope="module")
def scripts(script: Callable[[str], ModuleType]) -> Scripts:
    found = Scripts()
    for name in SCRIPTS:
        setattr(found, name, script(name))
    return found


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The script computes with one thread; other tests with as many as they had."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def table_rows(page: str, title: str) -> dict[str, list[str]]:
    """The rows of the section whose title begins so, by their first cell."""
    part = page.split(f"\n## {title}")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in part.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def test_the_cpu_part_runs_at_toy_size(scripts: Scripts, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "step.md"
    assert scripts.step.main(["--toy", "--trials", "2", "--markdown", str(out)]) == 0
    page = out.read_text()
    assert page == capsys.readouterr().out and str(tmp_path) not in page and "Toy sizes" in page
    assert {"a bare PyTorch loop", "`fit`", "`fit` beyond a bare loop"} <= set(table_rows(page, "What `fit` costs"))
    small = table_rows(page, "A small step on the CPU")
    assert small["ours, ready views (the ceiling)"][4] == "100.0%"
    assert all(re.fullmatch(r"\d+\.\d%", cell) for cell in small["ours, from memory"][4:7])


def test_the_gpu_part_runs_at_toy_size_without_one(scripts: Scripts, tmp_path: Path) -> None:
    out = tmp_path / "gpu.md"
    words = ["--gpu", "--toy", "--device", "cpu", "--workers", "1", "--trials", "1", "--markdown", str(out)]
    assert scripts.step.main(words) == 0
    page = out.read_text()
    ways = {"ours, ready views (the ceiling)", "lightly, ready views", "lightly, end to end"}
    packs = {"ours, from a pack (raw)"}
    for title, own in (
        ("simclr, smallconv, 24 px", packs | {"ours, from a pack (original)"}),
        ("simclr, smallconv, 16 px", {"ours, resident"}),
        ("mae, vit_tiny_patch16_224, 16 px", packs),
    ):
        rows = table_rows(page, title)
        assert ways | own <= set(rows)
        for name in own:
            assert all(0.0 <= float(cell[:-1]) <= 100.0 for cell in rows[name][5:7])  # data_wait, augmentation
    targets = table_rows(page, "Targets")
    assert len(targets) == 2 + 3 * 4  # head and rule, then four a job
    assert targets["resnet50: views/s"][1] == ">= 4,000" and targets["mae: data_wait"][1] == "< 5%"


@pytest.mark.parametrize("words", [["--gpu"], ["--gpu", "--device", "cuda", "--toy"], ["--gpu", "--device", "cpu"]])
def test_without_a_gpu_it_is_one_sentence(
    scripts: Scripts, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as end:
        scripts.step.main(words)
    said = capsys.readouterr()
    assert end.value.code == 2 and said.out == ""
    assert said.err.startswith("error: ") and said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--trials", "-1"], "--trials -1: expected 1 or more"),
        (["--markdown", "NOWHERE/x.md"], "there is no folder"),
        (["--only", "mae"], "are of --gpu; add it"),
        (["--gpu", "--only", "vit"], "--only vit: expected some of resnet50, resnet18, mae"),
        (["--gpu", "--files", "tar:NOWHERE"], "expected folder:PATH or tar:PATH of JPEG files that are there"),
        (["--gpu", "--workers", "-1"], "--workers -1: expected 0 or more"),
    ],
)
def test_bad_arguments_are_one_sentence(
    scripts: Scripts, tmp_path: Path, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        scripts.step.main([word.replace("NOWHERE", str(tmp_path / "none")) for word in words])
    said = capsys.readouterr()
    assert end.value.code == 2 and said.out == "" and sentence in said.err.splitlines()[-1]


@pytest.mark.parametrize(("cost", "status"), [(299.0, 0), (301.0, 1)])
def test_the_gate_is_the_upper_bound(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch, cost: float, status: int
) -> None:
    """The pairs cost 200 apart from one in three, so that the median is 200 and its upper bound is not."""
    bare = [100.0 + 7.0 * k for k in range(10)]
    fit = [b + (cost if k % 3 == 0 else 200.0) for k, b in enumerate(bare)]
    found = scripts.overhead.Overhead(fit, bare)
    assert found.difference.median == 200.0 and found.difference.high == cost
    monkeypatch.setattr(scripts.step, "pairs", lambda *_: found)
    monkeypatch.setattr(scripts.step, "small_simclr", lambda *_: [])
    assert scripts.step.main([]) == 0
    assert scripts.step.main(["--gate"]) == status


def test_pairs_are_interleaved(scripts: Scripts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def way(name: str, seconds: float) -> Any:
        return lambda *_: (called.append(name), seconds)[1]

    monkeypatch.setattr(scripts.overhead, "by_fit", way("fit", 0.5))
    monkeypatch.setattr(scripts.overhead, "by_hand", way("bare", 0.1))
    found = scripts.overhead.pairs(tmp_path, 4, 1000)
    assert called == ["fit", "bare"] + ["bare", "fit", "fit", "bare"] * 2
    assert found.fit == pytest.approx([500.0] * 4) and found.difference == pytest.approx((400.0,) * 3)


def test_both_loops_do_the_same_work(scripts: Scripts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an epoch each sees every picture once, in equal batches, and updates after each of them."""
    seen: list[torch.Tensor] = []
    steps = scripts.overhead.COUNT // scripts.overhead.BATCH
    forward = scripts.overhead.OneLinear.forward

    def noted(self: nn.Module, batch: torch.Tensor, progress: float) -> Any:
        seen.append(batch)
        weights.append(self.layer.weight.detach().clone())  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
        return forward(self, batch, progress)

    monkeypatch.setattr(scripts.overhead.OneLinear, "forward", noted)
    whole = torch.from_numpy(scripts.overhead.pictures()).permute(0, 3, 1, 2).flatten(1).float() / 255.0
    for run in (lambda: scripts.overhead.by_fit(tmp_path, steps), lambda: scripts.overhead.by_hand(steps)):
        seen, weights = [], []
        run()
        assert [tuple(batch.shape) for batch in seen] == [(scripts.overhead.BATCH, whole.shape[1])] * steps
        assert torch.equal(sorted_rows(torch.cat(seen)), sorted_rows(whole))
        assert not torch.equal(torch.cat(seen), whole)  # shuffled
        assert all(not torch.equal(a, b) for a, b in itertools.pairwise(weights))


def sorted_rows(x: torch.Tensor) -> torch.Tensor:
    return x[np.lexsort(x.numpy().T)]


def test_the_watch_tells_waiting_and_preparing_from_the_rest(scripts: Scripts) -> None:
    """A clock by hand: 1 s to get a batch, 2 s to prepare it, 5 s for the step; more in the warm-up and at the end."""
    now = [0.0]
    plan = scripts.fitted.Plan(warm=3, windows=2, length=4)
    watch = scripts.fitted.Watch(plan, torch.device("cpu"), lambda: now[0])

    def batches() -> Iterator[int]:
        for step in range(plan.steps):
            now[0] += 1.0 if plan.warm <= step < plan.warm + plan.measured else 70.0
            yield step

    def prepare(raw: int) -> int:
        now[0] += 2.0 if plan.warm <= raw < plan.warm + plan.measured else 50.0
        return raw

    timed, got = watch.preparing(prepare), []
    for raw in watch.over(batches()):
        got.append(timed(raw))
        now[0] += 5.0 if plan.warm <= raw < plan.warm + plan.measured else 90.0
    assert got == list(range(plan.steps)) == list(range(12))
    assert watch.figures() == scripts.fitted.Figures([8.0, 8.0], 1 / 8, 2 / 8, None)


def test_rounds_are_joined(scripts: Scripts) -> None:
    Figures = scripts.fitted.Figures
    found = Figures.joined([Figures([1.0, 2.0], 0.1, 0.2, 5), Figures([3.0], 0.3, 0.4, 4)])
    assert found.seconds == [1.0, 2.0, 3.0] and found.median == 2.0
    assert (found.waited, found.prepared, found.memory) == (pytest.approx(0.2), pytest.approx(0.3), 5)
    assert Figures.joined([Figures([1.0], 0.0)]) == Figures([1.0], 0.0, None, None)


def test_a_way_that_fails_is_told_where_that_is_wanted(scripts: Scripts) -> None:
    Way, figures = scripts.rounds.Way, scripts.fitted.Figures([1.0], 0.0)
    calls: list[int] = []

    def fails() -> Any:
        calls.append(1)
        raise torch.OutOfMemoryError("no memory\nand a long story")

    ways = [Way("whole", False, lambda: figures), Way("broken", False, fails)]
    failures: dict[str, str] = {}
    assert scripts.rounds.in_rounds(ways, 3, failures) == {("whole", False): figures._replace(seconds=[1.0] * 3)}
    assert failures == {"broken": "no memory"} and calls == [1]
    with pytest.raises(torch.OutOfMemoryError):
        scripts.rounds.in_rounds(ways, 1)


def test_operations_are_those_of_the_products(scripts: Scripts) -> None:
    """Two for each multiply-add: forward, and backward for the weight; the first layer's input needs no gradient."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(5, 7, bias=False), nn.ReLU(), nn.Linear(7, 3, bias=False))

        def forward(self, batch: torch.Tensor, progress: float) -> Any:
            return scripts.overhead.Step(self.layers(batch).square().mean(), {})

    method = Two()
    n, first, second = 11, 5 * 7, 7 * 3
    counted = scripts.flops.of_step(method, torch.randn(n, 5), torch.device("cpu"), torch.float32)
    assert counted == 2 * n * (2 * first + 3 * second)
    assert all(parameter.grad is None for parameter in method.parameters())


@pytest.mark.parametrize(
    ("device", "tera"),
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 311.9),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
    ],
)
def test_peaks_go_by_the_devices_name(scripts: Scripts, device: str, tera: float) -> None:
    assert scripts.flops.peak(device) == pytest.approx(tera * 1e12)


def test_an_unknown_device_has_no_peak(scripts: Scripts) -> None:
    assert scripts.flops.peak("NVIDIA A1000 Laptop GPU") is None and scripts.flops.peak("CPU") is None


def test_figures_of_the_table(scripts: Scripts) -> None:
    """Rates, the part of the ceiling and MFU, computed by hand; lightly's operations are not ours."""
    setting = scripts.gpu.simclr(8, 10, {"name": "smallconv"}, [8, 8], {"name": "sgd", "lr": 0.1})
    Figures, gpu = scripts.fitted.Figures, scripts.gpu
    found = {
        (gpu.CEILING, True): Figures([0.1], 0.0, None, 2**30),
        ("ours, resident", True): Figures([0.125], 0.04, 0.03, 2**31),
        (gpu.STEP, True): Figures([0.2], 0.0, None, 2**30),
    }
    page = "\n".join(gpu.table("toy", setting, found, operations=10**12, best=2e13))
    ours = table_rows(page, "toy")["ours, resident"]
    assert ours == ["on", "125 [125, 125]", "80", "160", "80.0%", "4.0%", "3.0%", "40.0%", "2.0 GiB"]
    assert table_rows(page, "toy")[gpu.STEP][4:] == ["50.0%", "0.0%", "–", "–", "1.0 GiB"]
    job = gpu.Job("toy", setting, ("memory",), 150.0, "views")
    assert [row[1:] for row in gpu.targets(job, found, compiled=True)] == [
        ("160", ">= 150", True),
        ("80.0%", ">= 95%", False),
        ("4.0%", "< 5%", True),
        ("3.0%", "<= 5%", True),
    ]
    assert not any(met for *_, met in gpu.targets(job, {}, compiled=True))


@pytest.mark.parametrize(("key", "compiled"), [("resnet18", False), ("mae", True)])
def test_lightlys_loop_trains_as_ours_does(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch, key: str, compiled: bool
) -> None:
    """An update a step, compiled where asked, and of MAE as many visible tokens."""
    steps = scripts.lightly_steps
    setting = next(job.setting for job in scripts.gpu.jobs(True) if job.key == key)
    weights, made, compiles = [], [], []
    build, transform = steps.METHODS[setting.method["name"]]

    class Noted(build):
        def __init__(self, setting: Any) -> None:
            super().__init__(setting)
            made.append(self)

        def forward(self, *views: torch.Tensor) -> torch.Tensor:
            weights.append(torch.cat([p.detach().flatten().clone() for p in self.parameters() if p.requires_grad]))
            return super().forward(*views)

    monkeypatch.setitem(steps.METHODS, setting.method["name"], (Noted, transform))
    monkeypatch.setattr(torch, "compile", lambda method, dynamic: (compiles.append(method), method)[1])
    plan = scripts.fitted.Plan(1, 1, 2)
    steps.of_ready_views(setting, plan, torch.device("cpu"), torch.float32, compiled)
    assert len(weights) == plan.begun and all(not torch.equal(a, b) for a, b in itertools.pairwise(weights))
    assert compiles == (made if compiled else [])
    if key == "mae":
        ours = setting.objective()
        patches = (setting.size // 4) ** 2
        kept, _ = steps.lightly_masked.utils.random_token_mask((2, made[0].encoder.sequence_length), made[0].ratio)
        assert kept.shape[1] - 1 == patches - round(setting.method["mask_ratio"] * patches) == ours.visible


def test_lightlys_step_learns_the_same_thing(scripts: Scripts) -> None:
    """Its loss on equal projections is that of ours, so the peer's step is the same method."""
    gpu = scripts.gpu
    setting = gpu.jobs(True)[1].setting
    ours, theirs = setting.objective(), scripts.lightly_steps.LightlySimCLR(setting)
    assert torch.equal(*(next(net.backbone.parameters()) for net in (ours, theirs)))
    first, second = torch.randn(2, 6, 8)
    loss = importlib.import_module("rootstock.ssl.simclr").nt_xent(first, second, setting.method["temperature"])
    assert float(theirs.criterion(first, second)) == pytest.approx(float(loss), rel=1e-5)
    assert theirs(*torch.randn(2, 4, 3, setting.size, setting.size)).isfinite()
