"""BatchNorm that knows positions: N processes and any cutting of the batch equal one forward of the whole."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rootstock.core.errors import UserError
from rootstock.core.method import Method
from rootstock.core.model import encode as chunk
from rootstock.core.model import norm

ROWS, GROUP = 12, 3
EXACT = 1e-10


def network() -> nn.Sequential:
    """Every kind of BatchNorm that backbones and heads have, in float64, with weights that matter."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3),
        BatchNormAct2d(5),
        nn.Flatten(),
        nn.Linear(5 * 4 * 4, 6),
        nn.BatchNorm1d(6, affine=False),
        nn.Linear(6, 2),
    ).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def batch() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(ROWS, 3, 8, 8, generator=generator, dtype=torch.float64)
    return images * torch.linspace(0.5, 2.0, ROWS).view(-1, 1, 1, 1) + torch.arange(ROWS).view(-1, 1, 1, 1) / 5


def loss_of(out: Tensor) -> Tensor:
    return (out[:, 0].tanh() * out[:, 1]).mean()


def trace(model: nn.Module, out: list[Tensor]) -> dict[str, Tensor]:
    """Outputs, gradients and running statistics, by name."""
    grads = {f"grad.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    buffers = {f"buffer.{name}": b.double() for name, b in model.named_buffers()}
    return {"out": torch.cat(out).detach(), **grads, **buffers}


def steps(
    model: nn.Module,
    micro: list[Tensor],
    wrapped: nn.Module | None = None,
    call: Callable[[nn.Module, Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Two training steps' worth of statistics, the gradients of both."""
    out = []
    for scale in (1.0, -0.5):
        for part in micro:
            out.append((call or nn.Module.__call__)(wrapped or model, part * scale))
            (loss_of(out[-1]) / len(micro)).backward()
        norm.commit(norm.layers(model))
    return trace(model, out)


def converted(mode: Any) -> nn.Sequential:
    model = network()
    assert norm.convert_batch_norms(model, mode, GROUP) == 3
    return model


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=EXACT, atol=EXACT, msg=lambda text, name=name: f"{name}: {text}"
        )


def whole(found: list[dict[str, Tensor]], mode: str) -> dict[str, Tensor]:
    """What both processes hold, as one: outputs in the order of positions; the rest must be the same on both."""
    first, second = (
        {name.removeprefix(f"{mode}/"): t for name, t in part.items() if name.startswith(mode)} for part in found
    )
    for name in first.keys() - {"out"}:
        assert torch.equal(first[name], second[name]), name
    halves = [part["out"].view(2, ROWS // 2, 2) for part in (first, second)]
    return {**first, "out": torch.cat(halves, 1).flatten(0, 1)}


@pytest.fixture(scope="module")
def shared(two_processes: Callable[[str], list[dict[str, Tensor]]]) -> list[dict[str, Tensor]]:
    return two_processes(__file__)


def test_local_is_torchs_own() -> None:
    assert_equal(steps(converted("local"), [batch()]), steps(network(), [batch()]))


def test_batch_mode_on_two_processes_is_torchs_own_on_the_whole_batch(shared: list[dict[str, Tensor]]) -> None:
    assert_equal(whole(shared, "batch"), steps(network(), [batch()]))


def test_group_mode_on_two_processes_is_group_mode_on_one(shared: list[dict[str, Tensor]]) -> None:
    assert_equal(whole(shared, "group"), steps(converted("group"), [batch()]))


def test_group_mode_is_torchs_own_group_by_group() -> None:
    # The mean over groups of each group's statistics is what torch accumulates with one forward a group at a fixed point:
    # forward and gradient are compared whole, statistics as the mean over models that see one group each.
    found = steps(converted("group"), [batch()])
    parts = batch().split(GROUP)
    model = network()
    slow = steps(model, list(parts))
    torch.testing.assert_close(found["out"], slow["out"], rtol=EXACT, atol=EXACT)
    for name in (name for name in slow if name.startswith("grad")):
        torch.testing.assert_close(found[name], slow[name], rtol=EXACT, atol=EXACT)
    alone = [steps(network(), [part]) for part in parts]
    for name in (name for name in slow if name.endswith(("mean", "var"))):
        torch.testing.assert_close(
            found[name], torch.stack([one[name] for one in alone]).mean(0), rtol=EXACT, atol=EXACT
        )


@pytest.mark.parametrize("size", [GROUP, 2 * GROUP])
def test_group_mode_does_not_see_how_the_batch_is_cut(size: int) -> None:
    assert_equal(steps(converted("group"), list(batch().split(size))), steps(converted("group"), [batch()]))


@pytest.mark.parametrize("size", [GROUP, 2 * GROUP, 3 * GROUP])
def test_chunks_change_nothing_and_recomputation_does_not_count(size: int) -> None:
    def in_chunks(model: nn.Module, images: Tensor) -> Tensor:
        return chunk.encode(model, images[None], size)[0]

    def forwards(model: nn.Sequential) -> list[int]:
        return [len(m.pending) for m in model if isinstance(m, norm.PositionBatchNorm)]

    model = converted("group")
    loss = loss_of(in_chunks(model, batch()))
    before = forwards(model)
    loss.backward()
    assert forwards(model) == before

    assert_equal(steps(converted("group"), [batch()], call=in_chunks), steps(converted("group"), [batch()]))


def test_chunks_hold_all_views_of_their_images() -> None:
    views = torch.stack([batch(), batch().flip(3)])
    backbone = nn.Sequential(*network()[:6])
    norm.convert_batch_norms(backbone, "group", GROUP, rows_per_position=2)
    together = chunk.encode(backbone, views)
    torch.testing.assert_close(chunk.encode(backbone, views, GROUP), together, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(
        together[:, :GROUP], norm.encode_together(backbone, views[:, :GROUP]), rtol=EXACT, atol=EXACT
    )


def test_a_skipped_step_leaves_no_trace() -> None:
    model = converted("local")
    before = {name: b.clone() for name, b in model.named_buffers()}
    model(batch())
    norm.commit(norm.layers(model), keep=False)
    norm.commit(norm.layers(model))
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())


def test_evaluation_and_state_dict_are_torchs_own() -> None:
    plain, ours = network(), converted("batch")
    steps(plain, [batch()])
    ours.load_state_dict(plain.state_dict())
    assert torch.equal(ours.eval()(batch()), plain.eval()(batch()))


@pytest.mark.parametrize("text", ["sync", "group", "group:1", "group:x", "group:0"])
def test_unknown_modes_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"backbone\.norm: .* use auto, batch, local or group:G"):
        norm.parse_mode(text)


class Couples(Method):
    couples_samples, rows_per_position, takes_chunk = True, 2, True

    def __init__(self) -> None:
        super().__init__()
        self.backbone: Any = network()


class Whole(Method):
    couples_samples, rows_per_position = True, 2

    def __init__(self) -> None:
        super().__init__()
        self.backbone: Any = network()


class Plain(Method):
    couples_samples, rows_per_position = False, 1

    def __init__(self) -> None:
        super().__init__()
        self.backbone: Any = network()


@pytest.mark.parametrize(
    ("method", "text", "options", "message"),
    [
        (Couples, "auto", {"accumulate": 4}, r"run\.accumulate: 4 .* run\.chunk"),
        (Plain, "auto", {"chunk": 4}, r"run\.chunk: .* run\.accumulate"),
        (Couples, "batch", {"chunk": 4}, r"run\.chunk: .*=group:G"),
        (Plain, "batch", {"accumulate": 2}, r"run\.accumulate: .*=group:G"),
        (Whole, "auto", {"accumulate": 4}, r"run\.accumulate: 4 .* smaller optim\.batch_size"),
        (Whole, "auto", {"chunk": 4}, r"run\.chunk: .* cannot encode its batch in chunks"),
        (Couples, "group:3", {"chunk": 4}, r"run\.chunk: 4 is not a multiple .* 3"),
    ],
)
def test_what_would_not_be_what_it_says_is_refused(
    method: type[Method], text: str, options: dict[str, int], message: str
) -> None:
    said: list[str] = []
    with pytest.raises(UserError, match=message):
        norm.configure(
            method(), text, accumulate=options.get("accumulate", 1), chunk=options.get("chunk"), log=said.append
        )


def test_groups_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match=r"groups of 3 rows do not divide the 4 rows"):
        converted("group")(batch()[:4])


def test_local_statistics_of_a_cut_batch_are_said() -> None:
    said: list[str] = []
    norm.configure(Plain(), "local", accumulate=2, chunk=None, log=said.append)
    assert len(said) == 1 and "backbone.norm: local" in said[0]


def test_kinds_of_batch_norm_that_cannot_be_converted_are_refused() -> None:
    with pytest.raises(UserError, match=r"SyncBatchNorm, which cannot normalise by batch or by group"):
        norm.convert_batch_norms(nn.Sequential(nn.SyncBatchNorm(3)), "batch")


def work(rank: int, folder: Path) -> None:
    """One of two processes: its half of the batch, in both modes, under DistributedDataParallel."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    half = batch().chunk(2)[rank]
    found: dict[str, Tensor] = {}
    for mode in ("batch", "group"):
        model = converted(mode)
        wrapped = DistributedDataParallel(model, broadcast_buffers=False)
        found |= {f"{mode}/{name}": t for name, t in steps(model, [half], wrapped).items()}
    save_file(found, folder / f"{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
