"""L2-SP and the proximal step of L1, against loops over single weights, and what they promise."""

import copy
import threading
from typing import Any

import pytest
import torch

from rootstock.core.draws import Draws
from rootstock.core.errors import UserError
from rootstock.core.images.damage import Damage
from rootstock.core.method import Labelled
from rootstock.core.model.backbone import create
from rootstock.core.model.classifier import Classifier
from rootstock.core.stage import Feed
from rootstock.core.train.optim import Optim, parameter_groups
from rootstock.finetune.training.losses import CrossEntropy
from rootstock.finetune.training.objective import FineTune
from rootstock.finetune.training.partial import train_part
from rootstock.finetune.training.penalties import SoftThreshold, check_penalties

BATCH = Labelled(torch.randn(6, 3, 16, 16), torch.arange(6) % 3, Draws(0, torch.arange(6)))


def objective(l2_sp: dict[str, float] | None = None, trained: str = "all") -> FineTune:
    torch.manual_seed(0)
    model = create(16, name="smallconv", args={"widths": [4, 4, 4, 8]})
    train_part(model, trained)
    return FineTune(Classifier(model, ["a", "b", "c"]), CrossEntropy(torch.ones(3), 0.0), l2_sp=l2_sp).eval()


@pytest.mark.parametrize("trained", ["all", "last:1"])
def test_l2_sp_against_a_loop(trained: str) -> None:
    plain, held = objective(trained=trained), objective({"alpha": 0.3, "beta": 0.05}, trained)
    start = {name: p.detach().clone() for name, p in held.named_parameters()}
    with torch.no_grad():
        for i, parameter in enumerate(held.parameters()):
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    plain.load_state_dict(held.state_dict())
    expected = 0.0
    for name, parameter in held.named_parameters():
        for value, begin in zip(parameter.flatten().tolist(), start[name].flatten().tolist(), strict=True):
            if "head" in name:
                expected += 0.05 / 2 * value**2
            elif parameter.requires_grad:
                expected += 0.3 / 2 * (value - begin) ** 2
    with torch.no_grad():
        step, other = held(BATCH, 0.0), plain(BATCH, 0.0)
    assert float(step.metrics["l2_sp"]) == pytest.approx(expected, rel=1e-5)
    assert float(step.loss - other.loss) == pytest.approx(expected, rel=1e-4)
    assert held.state_dict().keys() == plain.state_dict().keys()  # no checkpoint holds the start


def shrunk(on: str, steps: int) -> tuple[FineTune, Optim]:
    method = objective()
    optim = Optim(name="sgd", lr=0.5, batch_size=6, duration="10", backbone_lr=0.5, warmup="5", momentum=0.0)  # pyright: ignore[reportArgumentType]
    uncopied: Any = threading.Lock()  # as a feed's log has one
    method.add_l1({"weight": 0.2, "on": on}, optim, Feed(uncopied, 10, 10, 6, Damage()))
    method = copy.deepcopy(method)  # as a sharded training does
    for step in range(steps):
        method.after_step(step / 10)
    return method, optim


@pytest.mark.parametrize("on", ["head", "backbone", "all"])
def test_soft_threshold_against_a_loop(on: str) -> None:
    (method, optim), before = shrunk(on, 3), objective().state_dict()
    for name, parameter in method.named_parameters():
        part = "head" if "head" in name else "backbone"
        values = before[name].flatten().tolist()
        if parameter.ndim > 1 and on in (part, "all"):
            for step in range(3):
                away = optim.rate(step, 10, 10) * (0.5 if part == "backbone" else 1.0) * 0.2
                values = [max(abs(v) - away, 0.0) * (1 if v > 0 else -1) for v in values]
        assert parameter.flatten().tolist() == pytest.approx(values, abs=1e-7), name
    zeros = float((method.classifier.head.weight == 0).float().mean())
    assert (zeros > 0.1) == (on != "backbone")


def test_embeddings_are_not_shrunk() -> None:
    """Nor are they decayed: what weight decay leaves alone has several dimensions in a ViT."""
    torch.manual_seed(0)
    vit = {"patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2}
    model = Classifier(create(16, name="vit_tiny_patch16_224", args=vit), ["a", "b", "c"])
    method = FineTune(model, CrossEntropy(torch.ones(3), 0.0)).eval()
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    groups = parameter_groups(method, Optim(lr=0.1, batch_size=1, duration="9", weight_decay=0.1))  # pyright: ignore[reportArgumentType]
    decayed = {p for group in groups if group["weight_decay"] for p in group["params"]}
    method.shrink = SoftThreshold(method, groups, lambda _: 0.1, weight=0.01, on="all")
    method.after_step(0.0)
    moved = {name for name, p in method.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in method.named_parameters() if p in decayed}
    assert not any("pos_embed" in name or "cls_token" in name for name in moved) and len(moved) == 6


def test_proximal_gradient_finds_the_lasso_minimum() -> None:
    """On 1/2 |w - y|^2 the minimum of the penalised loss is the soft threshold of y itself, zeros included."""
    method = objective()
    head: Any = method.classifier.head
    y = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(3))
    groups = parameter_groups(method, Optim(lr=0.1, batch_size=1, duration="9"))  # pyright: ignore[reportArgumentType]
    method.shrink = SoftThreshold(method, groups, lambda _: 0.1, weight=0.6, on="head")
    for _ in range(150):
        with torch.no_grad():
            head.weight -= 0.1 * (head.weight - y)
        method.after_step(0.0)
    assert torch.allclose(head.weight, y.sign() * (y.abs() - 0.6).clamp(min=0), atol=1e-5)
    assert torch.equal(head.weight == 0, y.abs() <= 0.6)


def test_what_cannot_be() -> None:
    with pytest.raises(UserError, match=r"method\.l2_sp: .* which are random here; set backbone\.weights"):
        check_penalties({"alpha": 0.1, "beta": 0.1}, None, "none", "none")
    with pytest.raises(UserError, match=r"method\.l2_sp: it does not work with run\.sharding: fsdp2"):
        check_penalties({"alpha": 0.1, "beta": 0.1}, None, "timm", "fsdp2")
    with pytest.raises(UserError, match=r"method\.l2_sp\.beta: must be 0 or more"):
        check_penalties({"alpha": 0.1, "beta": -0.1}, None, "timm", "none")
    with pytest.raises(UserError, match=r"method\.l1\.weight: must be 0 or more and finite"):
        check_penalties(None, {"weight": float("inf"), "on": "head"}, "none", "none")
