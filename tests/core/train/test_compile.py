"""`run.compile`: compiled and plain training agree, no step compiles anew, and a missing compiler is one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from rootstock.adapt.cdan import CDAN
from rootstock.core.config.resolve import Duration
from rootstock.core.draws import Draws
from rootstock.core.errors import UserError
from rootstock.core.method import Domains, Labelled, RawBatch, Unlabelled, Views
from rootstock.core.model import norm
from rootstock.core.model.backbone import Backbone, create
from rootstock.core.model.classifier import Classifier
from rootstock.core.run.directory import Run
from rootstock.core.stream.batches import NO_LABELS
from rootstock.core.train import compile as compiling
from rootstock.core.train.fit import Every, fit
from rootstock.core.train.optim import Optim
from rootstock.core.views.multiview import multiview
from rootstock.core.views.presets import VIEWS
from rootstock.finetune.training.losses import CrossEntropy
from rootstock.finetune.training.objective import FineTune
from rootstock.ssl.mae import MAE
from rootstock.ssl.simclr import SimCLR

Open = Callable[..., Run]
N, STEPS = 8, 4
SENTENCE = r"run\.compile: on needs a C\+\+ compiler .* that works \(.*\); install one, or use run\.compile=auto or off"


def conv() -> Backbone:
    return create(16, name="smallconv", args={"widths": [8, 8, 8, 16]})


def simclr() -> nn.Module:
    return SimCLR(conv(), None, projection=(16, 8))


def mae() -> nn.Module:
    args = {"patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2}
    vit = create(16, name="vit_tiny_patch16_224", args=args)
    return MAE(vit, None, decoder_dim=16, decoder_depth=1, decoder_heads=2)


def batches(start: int) -> Iterator[list[RawBatch]]:
    pictures = torch.randint(0, 256, (STEPS * N, 3, 16, 16), generator=torch.Generator().manual_seed(0)).byte()
    for step in range(start, STEPS):
        at = torch.arange(N) + step * N
        yield [RawBatch(pictures[at], at, NO_LABELS)]


def trained(run: Run, build: Callable[[], nn.Module], preset: str) -> tuple[list[float], dict[str, Tensor]]:
    """The loss of each step, and the weights and running statistics at the end."""
    torch.manual_seed(0)
    method: Any = build()
    norm.configure(method, "local", accumulate=1, chunk=None, log=run.log)
    views = multiview(VIEWS[preset](), 16, (0.5,) * 3, (0.25,) * 3, method.views)

    def prepare(raw: RawBatch) -> Views:
        return views(raw, Draws(0, raw.positions))

    optim = Optim(name="sgd", lr=1e-3, batch_size=N, duration=Duration(STEPS, "steps"))
    fit(method, batches, prepare, steps=STEPS, steps_per_epoch=STEPS, optim=optim, seed=0, run=run, every=Every(log=1))
    rows = [json.loads(line) for line in (run.dir / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows], method.state_dict()


@pytest.mark.parametrize(
    ("build", "preset"),
    [
        pytest.param(simclr, "none", id="simclr", marks=pytest.mark.slow),
        pytest.param(mae, "mae", id="mae", marks=pytest.mark.slow),
    ],
)
def test_compiled_training_is_plain_training(opened: Open, build: Callable[[], nn.Module], preset: str) -> None:
    """Augmentation and method, forward, backward and running statistics; within rounding."""
    if (trouble := compiling.compiler_trouble("cpu")) is not None:
        pytest.skip(f"torch.compile needs a C++ compiler here: {trouble}")
    plain, weights = trained(opened("plain", compile="off"), build, preset)
    fast, found = trained(opened("fast", compile="on"), build, preset)
    assert fast == pytest.approx(plain, rel=1e-5)
    for name, value in weights.items():
        assert torch.allclose(found[name], value, rtol=1e-3, atol=1e-4), name


def test_a_schedule_does_not_compile_each_step_anew(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """CDAN+E's reversal is a function of progress; its losses and gradients are those of the plain method."""
    counter, straight = CompileCounterWithBackend("aot_eager"), torch.compile
    monkeypatch.setattr(torch, "compile", lambda plain, dynamic: straight(plain, backend=counter, dynamic=dynamic))
    torch.manual_seed(0)
    method = CDAN(Classifier(conv(), ["a", "b", "c"]), None, hidden=8)
    norm.configure(method, "local", accumulate=1, chunk=None, log=print)
    fast, graphs = compiling.compiled_method(method, opened(compile="on")), []
    for step in range(20):
        at = torch.arange(N) + step * N
        images = torch.randn(2, N, 3, 16, 16, generator=torch.Generator().manual_seed(step))
        draws = Draws(0, at)
        pair = Domains.of(Labelled(images[0], at % 3, draws), Unlabelled(images[1], draws))
        grads, outs = [], []
        for way in (method, fast):
            out = way(pair, step / 20)
            out.loss.backward()
            norm.commit(norm.layers(method), keep=False)
            grads.append(torch.cat([p.grad.flatten() for p in method.parameters() if p.grad is not None]))
            outs.append(out.loss.item())
            method.zero_grad()
        assert outs[1] == pytest.approx(outs[0], rel=1e-5)
        assert torch.allclose(grads[1], grads[0], rtol=1e-3, atol=1e-5)
        graphs.append(counter.frame_count)
    assert len(set(graphs)) == 1


def counting(monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    """torch.compile without a compiler, that counts graphs."""
    counter, straight = CompileCounterWithBackend("eager"), torch.compile
    monkeypatch.setattr(torch, "compile", lambda plain, dynamic: straight(plain, backend=counter, dynamic=dynamic))
    monkeypatch.setattr(compiling, "compiler_trouble", lambda device: None)
    return counter


@pytest.mark.parametrize(("mode", "graphs"), [("on", 2), ("off", 0)])
def test_fit_compiles_method_and_augmentation_once(
    opened: Open, monkeypatch: pytest.MonkeyPatch, mode: str, graphs: int
) -> None:
    counter = counting(monkeypatch)
    trained(opened(compile=mode), simclr, "none")
    assert counter.frame_count == graphs


def test_micro_batches_share_one_graph(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics of BatchNorm gather over a step, and no graph may depend on how many there are already."""
    torch.manual_seed(0)
    classifier = Classifier(conv(), ["a", "b"])
    method = FineTune(classifier, CrossEntropy(torch.ones(len(classifier.classes)), 0.0))
    norm.configure(method, "local", accumulate=6, chunk=None, log=print)
    counter, run = counting(monkeypatch), opened(compile="on", accumulate=6)

    def parts(start: int) -> Iterator[list[RawBatch]]:
        for micro in batches(start):
            yield [RawBatch(micro[0].images, micro[0].positions, micro[0].positions % 2)] * 6

    def prepare(raw: RawBatch) -> Labelled:
        return Labelled(raw.images.float() / 255.0, raw.labels, Draws(0, raw.positions))

    optim = Optim(name="sgd", lr=1e-3, batch_size=6 * N, duration=Duration(STEPS, "steps"))
    fit(method, parts, prepare, steps=STEPS, steps_per_epoch=STEPS, optim=optim, seed=0, run=run)
    assert counter.frame_count == 2


def test_paths_dropped_by_position_share_one_graph() -> None:
    """The draws of a step are set inside the forward; no graph may depend on those of the step before."""
    torch.manual_seed(0)
    args = {"patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2}
    backbone = create(16, name="vit_tiny_patch16_224", args=args, pooling="fc_norm", drop_path=0.5)
    criterion = CrossEntropy(torch.ones(2), 0.1)
    method, counter = FineTune(Classifier(backbone, ["a", "b"]), criterion).train(), CompileCounterWithBackend("eager")
    fast = torch.compile(method, backend=counter, dynamic=False, fullgraph=True)
    for step in range(3):
        batch = Labelled(torch.randn(8, 3, 16, 16), torch.arange(8) % 2, Draws(0, torch.arange(8) + 8 * step))
        assert torch.allclose(fast(batch, torch.tensor(0.5)).loss, method(batch, 0.5).loss)
    assert counter.frame_count == 1


@pytest.mark.parametrize("given", [True, False])
def test_convolutions_are_channels_last_where_the_run_says_so(opened: Open, given: bool) -> None:
    network = conv()
    torch.manual_seed(0)
    method: Any = SimCLR(network, None, projection=(16, 8))
    run = opened(compile="off", channels_last=given)
    views = multiview(VIEWS["none"](), 16, (0.5,) * 3, (0.25,) * 3, 2)
    optim = Optim(name="sgd", lr=1e-3, batch_size=N, duration=Duration(STEPS, "steps"))
    fit(
        method, batches, lambda raw: views(raw, Draws(0, raw.positions)),
        steps=STEPS, steps_per_epoch=STEPS, optim=optim, seed=0, run=run,
    )  # fmt: skip
    wide = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d) and m.in_channels > 3]
    assert wide and all(w.is_contiguous(memory_format=torch.channels_last) == given for w in wide)


def test_auto_compiles_nothing_on_the_cpu(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("torch.compile was called")

    monkeypatch.setattr(torch, "compile", refuse)
    assert not compiling.should_compile(opened(compile="auto"))
    trained(opened("auto", compile="auto"), simclr, "none")


def test_auto_goes_on_where_compiling_fails(
    opened: Open, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(graph: Any, inputs: Any) -> None:
        raise RuntimeError("no kernel for this")

    straight = torch.compile
    monkeypatch.setattr(torch, "compile", lambda plain, dynamic: straight(plain, backend=broken, dynamic=dynamic))
    run = opened(compile="auto")
    twice = compiling.compiled(lambda x: x * 2, run, "doubling")
    assert [twice(torch.ones(())).item() for _ in range(3)] == [2.0, 2.0, 2.0]
    assert capsys.readouterr().err.count("WARNING: doubling cannot be compiled") == 1


def test_on_without_a_compiler_is_one_sentence(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a machine without one says: the compiler's name is what the variable CXX becomes when it is read."""
    torch.compiler.reset()
    asked = compiling.compiler_trouble.__wrapped__  # no answer of before, and none for later
    with inductor.patch({"cpp.cxx": (None, "/no/such/compiler")}):
        told = asked("cpu")
    torch.compiler.reset()
    assert told is not None and "/no/such/compiler" in told
    monkeypatch.setattr(compiling, "compiler_trouble", lambda device: told)
    with pytest.raises(UserError, match=SENTENCE):
        compiling.should_compile(opened(compile="on"))
