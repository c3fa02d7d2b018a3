"""MoCo v3's InfoNCE against a loop over queries and keys, its momentum encoder, its heads and its frozen patch projection."""

import math
from typing import Any

import pytest
import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from rootstock.core.errors import UserError
from rootstock.core.method import Views
from rootstock.core.model.backbone import Backbone
from rootstock.core.train.optim import Optim
from rootstock.ssl.mocov3 import MoCoV3, cosines, info_nce
from rootstock.tests.ssl.cases import backbone, method, views


def stacks(n: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Queries and keys of two views, [2, n, dim] each."""
    generator = torch.Generator().manual_seed(seed)
    queries, keys = torch.randn(2, 2, n, dim, generator=generator, dtype=torch.float64)
    return queries.requires_grad_(), keys


def loss_of(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    return info_nce(cosines(queries, keys), torch.arange(keys.shape[1]), temperature)


def slow_loss(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Algorithm 1, one query at a time: 2 tau (ctr(q1, k2) + ctr(q2, k1))."""

    def similarity(q: Tensor, k: Tensor) -> Tensor:
        return (q @ k) / (q @ q).sqrt() / (k @ k).sqrt()

    total = torch.zeros((), dtype=torch.float64)
    for view, other in ((0, 1), (1, 0)):
        for i, q in enumerate(queries[view]):
            scores = torch.stack([(similarity(q, k) / temperature).exp() for k in keys[other]])
            total = total - 2 * temperature * (scores[i] / scores.sum()).log() / queries.shape[1]
    return total


@pytest.mark.parametrize(("n", "temperature"), [(2, 1.0), (7, 0.2), (5, 0.05)])
def test_the_loss_and_its_gradient_equal_a_loop(n: int, temperature: float) -> None:
    queries, keys = stacks(n, 5)
    ours, slow = loss_of(queries, keys, temperature), slow_loss(queries, keys, temperature)
    assert ours.item() == pytest.approx(slow.item(), rel=1e-12)
    (a,), (b,) = torch.autograd.grad(ours, queries), torch.autograd.grad(slow, queries)
    assert b.abs().max() > 1e-3
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_rows_are_the_queries_of_one_process_and_add_up() -> None:
    queries, keys = stacks(6, 4)
    whole = loss_of(queries, keys, 0.2)
    parts = [
        info_nce(cosines(queries[:, rows], keys), torch.arange(6)[rows], 0.2) for rows in (slice(0, 4), slice(4, 6))
    ]
    torch.testing.assert_close((4 * parts[0] + 2 * parts[1]) / 6, whole, rtol=1e-12, atol=0)


def test_the_loss_ignores_lengths_and_the_order_of_views() -> None:
    queries, keys = stacks(5, 4)
    loss = loss_of(queries, keys, 0.2)
    torch.testing.assert_close(loss_of(3.0 * queries, 0.1 * keys, 0.2), loss)
    torch.testing.assert_close(loss_of(queries.flip(0), keys.flip(0), 0.2), loss)


def test_limits_of_the_loss() -> None:
    same = torch.ones(2, 5, 4)
    assert loss_of(same, same, 0.2).item() == pytest.approx(4 * 0.2 * math.log(5), rel=1e-6)
    # At high temperature the loss is chance level minus each query's preference for its own key, for any tau: hence the factor 2 tau.
    queries, keys = stacks(5, 4)
    s = cosines(queries, keys)
    preferred = (s.diagonal(dim1=1, dim2=2) - s.mean(2)).mean(1).sum()
    found = loss_of(queries, keys, 1e5) - 4e5 * math.log(5)
    assert found.item() == pytest.approx(-2 * preferred.item(), rel=1e-3)


def test_half_precision_is_computed_in_float32() -> None:
    queries, keys = stacks(8, 16)
    low = loss_of(queries.half(), keys.half(), 0.01)
    assert low.dtype == torch.float32 and bool(low.isfinite())
    with torch.autocast("cpu", torch.bfloat16):
        found = loss_of(queries.float(), keys.float(), 0.2)
    assert found.item() == pytest.approx(loss_of(queries, keys, 0.2).item(), rel=1e-5)


def test_the_step_is_that_of_the_parts() -> None:
    """Heads and encoders are applied by hand: both views in one BatchNorm, keys of the other view, no gradient in the momentum encoder."""
    made: MoCoV3 = method("mocov3", "conv").double()
    with torch.no_grad():  # so that encoder and momentum encoder differ
        for parameter in made.momentum_backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    batch = views(made, 6, dtype=torch.float64)
    step = made(batch, 0.0)
    rows = batch.images.flatten(0, 1)
    queries = made.predictor(made.projector(made.backbone(rows))).unflatten(0, (2, 6))
    keys = made.momentum_projector(made.momentum_backbone(rows)).unflatten(0, (2, 6))
    assert step.loss.item() == pytest.approx(slow_loss(queries, keys, 0.2).item(), rel=1e-9)
    hits = [
        max(range(6), key=lambda j: cosines(queries, keys)[v, i, j].item()) == i for v in range(2) for i in range(6)
    ]
    assert step.metrics["accuracy"].item() == pytest.approx(sum(hits) / 12)
    assert {"feature_std", "embedding_std"} < step.metrics.keys()
    assert not any(metric.requires_grad for metric in step.metrics.values())
    step.loss.backward()
    trained = {name for name, p in made.named_parameters() if p.grad is not None}
    assert {name.partition(".")[0] for name in trained} == {"backbone", "projector", "predictor"}
    assert trained == {name for name, p in made.named_parameters() if p.requires_grad}


def test_the_momentum_encoder_follows_along_a_cosine() -> None:
    made: MoCoV3 = method("mocov3", "conv", momentum=0.9)
    pairs = ((made.momentum_backbone, made.backbone), (made.momentum_projector, made.projector))
    with torch.no_grad():
        for parameter in (*made.backbone.parameters(), *made.projector.parameters()):
            parameter.add_(1.0)
    for progress, momentum in ((0.0, 0.9), (0.5, 0.95), (1.0, 1.0)):
        expected = [
            momentum * m + (1 - momentum) * b
            for slow, fast in pairs
            for m, b in zip(slow.parameters(), fast.parameters(), strict=True)
        ]
        made.after_step(progress)
        found = [m for slow, _ in pairs for m in slow.parameters()]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def layers(head: nn.Module) -> list[tuple[Any, ...]]:
    """Each layer's widths, and whether it has a bias, or scale and shift."""
    found: list[tuple[Any, ...]] = []
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            found.append((layer.in_features, layer.out_features, layer.bias is not None))
        elif isinstance(layer, nn.BatchNorm1d):
            found.append((layer.num_features, layer.affine))
        elif isinstance(layer, nn.ReLU):
            found.append(("relu",))
    return found


def test_the_heads_are_the_published_ones() -> None:
    made: MoCoV3 = method("mocov3", "vit", projection=[12, 10, 6])
    hidden = [(16, 12, False), (12, True), ("relu",), (12, 10, False), (10, True), ("relu",)]
    assert layers(made.projector) == layers(made.momentum_projector) == [*hidden, (10, 6, False), (6, False)]
    first = [(6, 10, False), (10, True), ("relu",)]
    assert layers(made.predictor) == [*first, (10, 6, False), (6, False)]
    resnet: MoCoV3 = method("mocov3", "conv", prediction_norm=False)
    width = resnet.backbone.feature_dim
    assert layers(resnet.projector) == [(width, 12, False), (12, True), ("relu",), (12, 6, False), (6, False)]
    assert layers(resnet.predictor) == [*first, (10, 6, False)]


@pytest.mark.parametrize("stopped", [True, False])
def test_a_stopped_patch_projection_stays_as_it_was_drawn(stopped: bool) -> None:
    made: MoCoV3 = method("mocov3", "vit", stop_patch_embed=stopped)
    vit = made.backbone.model
    assert isinstance(vit, VisionTransformer) and isinstance(vit.patch_embed, PatchEmbed)
    before = {name: p.detach().clone() for name, p in made.named_parameters()}
    optimizer = Optim(name="adamw", lr=0.1, weight_decay=0.1, batch_size=4, duration=10).build(made)  # pyright: ignore[reportArgumentType]
    made(views(made, 4), 0.0).loss.backward()
    optimizer.step()
    made.after_step(0.0)
    patches = [f"{part}.model.patch_embed.proj.weight" for part in ("backbone", "momentum_backbone")]
    now = dict(made.named_parameters())
    assert [torch.equal(now[name], before[name]) for name in patches] == [stopped, stopped]
    assert not torch.equal(
        now["backbone.model.blocks.0.mlp.fc1.weight"], before["backbone.model.blocks.0.mlp.fc1.weight"]
    )


def test_a_fresh_vit_starts_as_the_authors_does() -> None:
    """Queries, keys and values are Xavier-uniform each by itself; the patch projection as a linear layer; fixed positions."""
    made: MoCoV3 = method("mocov3", "vit")
    vit = made.backbone.model
    assert isinstance(vit, VisionTransformer) and isinstance(vit.patch_embed, PatchEmbed)
    assert vit.pos_embed is not None and not vit.pos_embed.requires_grad
    assert vit.pos_embed[0, 0].abs().max() == 0.0 and vit.pos_embed[0, 1:].abs().max() == 1.0
    assert vit.cls_token is not None and vit.cls_token.std() < 1e-5

    def fills(weight: Tensor, bound: float) -> bool:
        return 0.9 * bound < weight.abs().max().item() <= bound

    for block in vit.blocks:
        attention: Any = block
        assert fills(attention.attn.qkv.weight, math.sqrt(6 / (16 + 16)))
        assert fills(attention.mlp.fc1.weight, math.sqrt(6 / (16 + 64)))
        assert attention.mlp.fc1.bias.abs().max() == 0.0
    assert fills(vit.patch_embed.proj.weight, math.sqrt(6 / (3 * 4 * 4 + 16)))
    torch.testing.assert_close(made.momentum_backbone.model.state_dict(), vit.state_dict())


def test_a_trained_vit_keeps_its_weights() -> None:
    given = backbone("vit")
    given.provenance = [{"task": "pretrain"}]
    before = {name: value.clone() for name, value in given.state_dict().items()}
    torch.testing.assert_close(dict(MoCoV3(given, projection=(4,), prediction=(4,)).backbone.state_dict()), before)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"temperature": 0.0}, "method.temperature"),
        ({"momentum": 1.5}, "method.momentum"),
        ({"projection": ()}, "method.projection"),
        ({"prediction": (8, 0)}, "method.prediction"),
        ({"prediction": (8, 5)}, "method.prediction.*5.*6"),
        ({"stop_patch_embed": True}, "method.stop_patch_embed.*smallconv"),
    ],
)
def test_values_that_make_no_method_are_refused(options: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        method("mocov3", "conv", **options)


def test_one_image_has_no_negatives() -> None:
    made = method("mocov3", "vit")
    batch = views(made, 1)
    with pytest.raises(UserError, match=r"optim\.batch_size.*2 images"):
        made(Views(batch.images, batch.draws), 0.0)


def test_what_is_exported_is_the_query_encoder() -> None:
    given: Backbone = backbone("conv")
    assert MoCoV3(given, projection=(4,), prediction=(4,)).backbone is given
