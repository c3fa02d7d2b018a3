"""Schedules and parameter groups against formulas written out by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rootstock.core import method as method_page
from rootstock.core.errors import UserError
from rootstock.core.model.backbone import create
from rootstock.core.model.ema import teacher_of
from rootstock.core.train.optim import Optim, parameter_groups, set_rate

VIT = {"patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2}


def optim(**given: Any) -> Optim:
    return Optim(**{"lr": 0.1, "batch_size": 64, "duration": 100, **given})


class Method(method_page.Method):
    def __init__(self, name: str = "vit_tiny_patch16_224", args: dict[str, Any] = VIT) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = create(16, name=name, args=args)
        self.head = nn.Linear(self.backbone.feature_dim, 3)


def scales(method: nn.Module, **given: Any) -> dict[str, float]:
    names = {parameter: name for name, parameter in method.named_parameters()}
    return {names[p]: g["lr_scale"] for g in parameter_groups(method, optim(**given)) for p in g["params"]}


def decays(method: nn.Module, **given: Any) -> dict[str, float]:
    names = {parameter: name for name, parameter in method.named_parameters()}
    return {names[p]: g["weight_decay"] for g in parameter_groups(method, optim(**given)) for p in g["params"]}


def test_warmup_is_linear_and_cosine_ends_at_the_least_rate() -> None:
    schedule = optim(warmup=10, min_lr=0.01)
    rates = [schedule.rate(step, 100, 5) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) / 10 for i in range(10)])
    for step in range(10, 101):
        assert rates[step] == pytest.approx(0.01 + 0.09 * (1 + math.cos(math.pi * (step - 10) / 90)) / 2)
    assert rates[10] == pytest.approx(0.1) and rates[100] == pytest.approx(0.01)


def test_warmup_in_epochs_and_percent() -> None:
    assert optim(warmup="2ep").rate(4, 100, 5) == pytest.approx(0.05)
    assert optim(warmup="20%").rate(4, 100, 5) == pytest.approx(0.025)


def test_constant_and_inverse_schedules() -> None:
    assert {optim(schedule="constant").rate(step, 100, 5) for step in range(100)} == {0.1}
    for step in range(100):
        assert optim(schedule="inverse").rate(step, 100, 5) == pytest.approx(0.1 / (1 + 10 * step / 100) ** 0.75)


@pytest.mark.parametrize("alpha", [1e-3, 3e-4])
def test_the_schedule_by_steps_is_tllibs_whatever_the_duration(alpha: float) -> None:
    schedule = optim(schedule="inverse_steps", inverse_alpha=alpha)
    for step in (0, 1, 999, 19_999):
        for steps in (20_000, 30_000):
            assert schedule.rate(step, steps, 5) == pytest.approx(0.1 * (1.0 + alpha * step) ** -0.75, rel=1e-12)
    # (1 + 10 p)^-0.75 is the same at 10,000 steps and 1e-3 alone.
    fixed, relative = optim(schedule="inverse_steps"), optim(schedule="inverse")
    assert fixed.rate(5000, 10_000, 5) == pytest.approx(relative.rate(5000, 10_000, 5))
    assert relative.rate(20_000, 20_000, 5) / fixed.rate(20_000, 20_000, 5) == pytest.approx((21 / 11) ** 0.75)


@pytest.mark.parametrize("kind", ["cosine", "inverse", "inverse_steps", "constant"])
def test_a_constant_rate_warms_up_and_stays(kind: str) -> None:
    schedule = optim(schedule=kind, warmup=10)
    rates = [schedule.rate(step, 100, 5, constant=True) for step in range(100)]
    assert rates == pytest.approx([0.1 * min(1.0, (step + 1) / 10) for step in range(100)])


@pytest.mark.parametrize(("scaling", "peak"), [("none", 0.1), ("linear", 0.4), ("sqrt", 0.2)])
def test_the_rate_follows_the_batch_size(scaling: str, peak: float) -> None:
    assert optim(batch_size=1024, lr_scaling=scaling).peak_lr == pytest.approx(peak)


def test_durations_are_resolved_by_epochs() -> None:
    assert optim(duration="3ep").steps(7) == 21 and optim(duration=50).steps(7) == 50


def test_every_trainable_parameter_is_in_one_group() -> None:
    method = Method()
    method.head.bias.requires_grad = False
    groups = parameter_groups(method, optim())
    listed = [id(p) for g in groups for p in g["params"]]
    assert sorted(listed) == sorted(id(p) for p in method.parameters() if p.requires_grad)


def test_biases_norms_and_embeddings_are_not_decayed() -> None:
    for name, decay in decays(Method(), weight_decay=0.05).items():
        free = name.endswith("bias") or "norm" in name or name.endswith(("pos_embed", "cls_token"))
        assert decay == (0.0 if free else 0.05), name


def test_decay_all_decays_every_parameter_and_leaves_lars_alone() -> None:
    method = Method()
    assert set(decays(method, weight_decay=0.05, decay_all=True).values()) == {0.05}
    groups = parameter_groups(method, optim(name="lars", weight_decay=0.05, decay_all=True))
    adapted = {p for group in groups for p in group["params"] if group["always_adapt"]}
    assert adapted and all(p.ndim > 1 for p in adapted) and method.head.bias not in adapted


def test_one_step_with_decay_all_is_torchs_sgd() -> None:
    given = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}
    ours, plain = Method(), Method()
    mine, torchs = optim(name="sgd", decay_all=True, **given).build(ours), torch.optim.SGD(plain.parameters(), **given)
    for made, optimizer in ((ours, mine), (plain, torchs)):
        for i, parameter in enumerate(made.parameters()):
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
        optimizer.step()
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_backbones_rate_is_scaled_and_reaches_the_optimizer() -> None:
    method = Method()
    for name, scale in scales(method, backbone_lr=0.5).items():
        assert scale == (1.0 if name.startswith("head") else 0.5), name
    optimizer = optim(backbone_lr=0.5).build(method)
    set_rate(optimizer, 0.2)
    assert {group["lr"] for group in optimizer.param_groups} == {0.2, 0.1}


def test_modules_of_constant_rate_keep_their_own() -> None:
    method = Method()
    method.constant_rate = (method.head,)
    optimizer = optim(backbone_lr=0.5).build(method)
    set_rate(optimizer, 0.2, constant=0.3)
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rates[p] for p in method.head.parameters()} == {0.3}
    assert {rates[p] for p in method.backbone.parameters() if p.requires_grad} == {0.1}
    set_rate(optimizer, 0.2)
    assert {group["lr"] for group in optimizer.param_groups} == {0.2, 0.1}


@pytest.mark.parametrize(
    ("name", "args", "layers"),
    [
        ("vit_tiny_patch16_224", VIT, ["patch_embed", "blocks.0", "blocks.1", "blocks.2", "head"]),
        ("resnet10t", {}, ["conv1", "layer1.0", "layer2.0", "layer3.0", "layer4.0", "head"]),
    ],
)
def test_rates_fall_from_layer_to_layer(name: str, args: dict[str, Any], layers: list[str]) -> None:
    found = scales(Method(name, args), layer_decay=0.5, backbone_lr=0.1)
    rates = []
    for layer in layers:
        own = {scale for key, scale in found.items() if key.removeprefix("backbone.model.").startswith(layer)}
        assert len(own) == 1, (layer, own)
        rates.append(own.pop())
    # No two layers share a rate, and only the head has the full one.
    depth = len(layers) - 1
    assert rates == pytest.approx([*(0.1 * 0.5 ** (depth - i) for i in range(depth)), 1.0])


def step_once(name: str, method: nn.Module, **given: Any) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """One optimizer step on made-up gradients: name -> (before, gradient, after)."""
    optimizer = optim(name=name, **given).build(method)
    set_rate(optimizer, 0.1)
    before = {key: p.detach().clone() for key, p in method.named_parameters()}
    grads = {}
    for i, (key, parameter) in enumerate(method.named_parameters()):
        grads[key] = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
        parameter.grad = grads[key].clone()
    optimizer.step()
    return {key: (before[key], grads[key], p.detach()) for key, p in method.named_parameters()}


def test_lars_adapts_and_decays_weights_alone() -> None:
    found = step_once("lars", Method(), weight_decay=0.01, trust=0.02)
    kinds = set()
    for key, (w, g, after) in found.items():
        plain = w.ndim == 1 or key.endswith(("pos_embed", "cls_token"))
        kinds.add(plain)
        # You et al. 2017 (arXiv:1708.03888), eq. 6: trust * |w| / (|g| + decay * |w|), times (g + decay * w).
        ratio = 0.02 * w.norm() / (g.norm() + 0.01 * w.norm())
        expected = w - 0.1 * (g if plain else ratio * (g + 0.01 * w))
        torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")
    assert kinds == {True, False}


def test_lars_adapts_without_weight_decay_too() -> None:
    w, g, after = step_once("lars", Method(), trust=0.02)["head.weight"]
    torch.testing.assert_close(after, w - 0.1 * 0.02 * w.norm() / g.norm() * g, rtol=1e-4, atol=1e-6)


def test_adamw_decouples_its_decay() -> None:
    w, g, after = step_once("adamw", Method(), weight_decay=0.05)["head.weight"]
    # The first step: both bias-corrected moments are those of this gradient alone.
    torch.testing.assert_close(after, w * (1 - 0.1 * 0.05) - 0.1 * g / (g.abs() + 1e-8), rtol=1e-4, atol=1e-6)


def test_sgd_with_nesterov_momentum() -> None:
    w, g, after = step_once("sgd", Method(), weight_decay=0.05, nesterov=True)["head.weight"]
    whole = g + 0.05 * w
    torch.testing.assert_close(after, w - 0.1 * (whole + 0.9 * whole), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", -0.1),
        ("batch_size", 0),
        ("clip", 0.0),
        ("layer_decay", 1.5),
        ("momentum", 1.0),
        ("betas", (0.9, 1.0)),
        ("trust", 0.0),
    ],
)
def test_impossible_numbers_are_refused_by_key(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"optim\.{key}: expected .*, got"):
        optim(**{key: value})


def test_weight_decay_follows_a_cosine_where_there_is_any() -> None:
    schedule = optim(weight_decay=0.04, weight_decay_end=0.4)
    for step in range(0, 101, 10):
        assert schedule.decay(step, 100) == pytest.approx(0.4 - 0.36 * (1 + math.cos(math.pi * step / 100)) / 2)
    assert optim(weight_decay=0.04).decay(70, 100) == 0.04
    optimizer = schedule.build(Method())
    set_rate(optimizer, 0.1, decay=0.3)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.3}
    assert {group["weight_decay"] for group in optimizer.param_groups if group["decayed"]} == {0.3}


def gradients() -> list[nn.Parameter]:
    """Parameters whose gradients have the norms 1, 4 and 0.5, and one without."""
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(4)]
    for parameter, size in zip(parameters, (1.0, 4.0, 0.5), strict=False):
        parameter.grad = torch.tensor([0.6, 0.8]) * size
    return parameters


def norms(parameters: list[nn.Parameter]) -> list[float]:
    return [p.grad.norm().item() for p in parameters if p.grad is not None]


def test_gradients_are_clipped_together_or_each() -> None:
    whole = math.sqrt(1 + 16 + 0.25)
    for given, expected in (
        ({}, [1.0, 4.0, 0.5]),
        ({"clip": 2.0}, [size * 2.0 / whole for size in (1.0, 4.0, 0.5)]),
        ({"clip": 2.0, "clip_by": "parameter"}, [1.0, 2.0, 0.5]),
    ):
        parameters = gradients()
        assert optim(**given).clip_gradients(parameters).item() == pytest.approx(whole)
        assert norms(parameters) == pytest.approx(expected, rel=1e-5), given


def test_a_teacher_is_exported_and_its_student_trained() -> None:
    """All backbones of a method have their scales; what has no gradient is in no group."""

    class Taught(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student = create(16, name="vit_tiny_patch16_224", args=VIT)
            self.backbone = teacher_of(self.student)

    found = scales(Taught(), layer_decay=0.5, backbone_lr=0.1)
    assert all(name.startswith("student.") for name in found)
    assert {round(scale, 6) for scale in found.values()} == {0.1, 0.05, 0.025, 0.0125, 0.00625}


def test_the_rate_is_told_with_its_scaling() -> None:
    assert optim().rate_in_words() == "peak rate 0.1"
    assert optim(batch_size=1024, lr_scaling="linear").rate_in_words() == "peak rate 0.4 (0.1 x 1024/256)"
    assert "square root of 1024/256" in optim(batch_size=1024, lr_scaling="sqrt").rate_in_words()


@pytest.mark.parametrize("given", [{"weight_decay_end": -1.0}, {"clip_by": "parameter"}])
def test_numbers_without_meaning_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"optim.{next(iter(given))}"):
        optim(**given)
