"""Bottleneck and heads against formulas, their export, and which images share BatchNorm statistics."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from rootstock.core.errors import UserError
from rootstock.core.manifest import write_manifest
from rootstock.core.model import norm
from rootstock.core.model.backbone import create
from rootstock.core.model.classifier import Classifier, read_head
from rootstock.core.model.domains import SOURCE, TARGET, BatchNorms
from rootstock.core.model.heads import CosineHead, Structure, WeightNormHead
from rootstock.core.model.recompute import recompute
from rootstock.core.train.optim import Optim, parameter_groups

CLASSES = ["a", "b", "c"]


def classifier(batchnorm: BatchNorms = "joint", name: str = "smallconv", **structure: Any) -> Classifier:
    torch.manual_seed(0)
    args = {"widths": [4, 4, 6, 8]} if name == "smallconv" else {"channels": [4, 4, 4, 4], "layers": [2, 1, 1, 1]}
    made = Classifier(create(16, name=name, args=args), CLASSES, structure=Structure(**structure), batchnorm=batchnorm)
    norm.convert_batch_norms(made, "local")
    return made


def pictures(domains: int = 2, n: int = 6) -> Tensor:
    """[domains, n, 3, 16, 16]; domains differ in brightness and contrast."""
    noise = torch.randn(domains, n, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return noise * torch.arange(1.0, domains + 1.0).view(-1, 1, 1, 1, 1) + torch.arange(0.0, domains).view(
        -1, 1, 1, 1, 1
    )


def test_the_bottleneck_is_linear_batchnorm_and_relu() -> None:
    made: Any = classifier(bottleneck=5).double()
    images = pictures().double()
    features = made.encode(images)
    assert features.shape == (2, 6, 5) and made.feature_dim == 5 == made.head.in_features
    linear, batchnorm, _ = made.bottleneck
    assert isinstance(linear, nn.Linear) and isinstance(batchnorm, nn.modules.batchnorm._BatchNorm)
    z = copy.deepcopy(made.backbone)(images.flatten(0, 1)) @ linear.weight.T + linear.bias
    for d in range(5):  # one output at a time
        column = z[:, d]
        expected = ((column - column.mean()) / (column.var(correction=0) + batchnorm.eps).sqrt()).clamp(min=0.0)
        torch.testing.assert_close(features.flatten(0, 1)[:, d], expected)


def test_a_classifier_without_one_is_as_before() -> None:
    made = classifier()
    assert made.bottleneck is None and made.feature_dim == 8 and sorted(made.head.state_dict()) == ["bias", "weight"]
    assert not any(name.startswith("bottleneck") for name in made.state_dict())


def test_the_bottlenecks_first_weights_are_torchs_own() -> None:
    made: Any = classifier(bottleneck=64)
    bound, weight = 1.0 / math.sqrt(8), made.bottleneck[0].weight.detach()
    assert 0.8 * bound < float(weight.abs().max()) <= bound


def test_a_weightnorm_head_begins_as_the_linear_layer_and_scales_each_row() -> None:
    torch.manual_seed(0)
    head, f = WeightNormHead(4, 3), torch.randn(5, 4)
    torch.testing.assert_close(head(f), f @ head.direction.T + head.bias)
    with torch.no_grad():
        head.direction.mul_(torch.tensor([[2.0], [7.0], [0.5]]))  # the length of a direction changes nothing
        head.scale.copy_(torch.tensor([[1.0], [2.0], [3.0]]))
    for k in range(3):
        unit = head.direction[k] / head.direction[k].norm()
        torch.testing.assert_close(head(f)[:, k], head.scale[k] * (f @ unit) + head.bias[k])


def test_a_cosine_head_sees_directions_alone() -> None:
    torch.manual_seed(0)
    head, f = CosineHead(4, 3, 0.05).requires_grad_(False), torch.randn(5, 4)
    for i in range(5):
        for k in range(3):
            cosine = F.cosine_similarity(f[i], head.weight[k], dim=0)
            assert head(f)[i, k].item() == pytest.approx(cosine.item() / 0.05, abs=1e-4)
    torch.testing.assert_close(head(10.0 * f), head(f))
    assert float(head(f).abs().max()) <= 20.0 and not any("bias" in name for name in head.state_dict())


@pytest.mark.parametrize("head", ["linear", "weightnorm", "cosine"])
def test_a_head_sees_each_image_alone_also_in_a_batch_of_two_domains(head: Any) -> None:
    """Methods give it [2, N, D]: a cosine over the images of a batch would depend on which others there are."""
    _, layer = Structure(head=head).layers(6, 4)
    features = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    alone = torch.stack([torch.stack([layer(image[None])[0] for image in domain]) for domain in features])
    torch.testing.assert_close(layer(features), alone)


@pytest.mark.parametrize("batchnorm", ["joint", "own"])
@pytest.mark.parametrize(
    "structure",
    [{"bottleneck": 5}, {"head": "weightnorm"}, {"bottleneck": 4, "head": "cosine", "temperature": 0.1}, {"extra": 1}],
)
def test_what_is_exported_loads_into_the_same_logits(
    structure: dict[str, Any], batchnorm: BatchNorms, tmp_path: Path
) -> None:
    made = classifier(batchnorm, **structure)
    made.encode(pictures()).sum().backward()
    norm.commit(norm.layers(made))
    made.export(tmp_path)
    again = classifier(batchnorm, **structure)
    loaded = Classifier(create(16, weights=str(tmp_path)), CLASSES, structure=again.structure, batchnorm=batchnorm)
    loaded.load_head(str(tmp_path))
    images = pictures()[0]
    assert torch.equal(loaded.eval()(images), made.eval()(images))
    assert loaded(images).shape == (6, 3 + structure.get("extra", 0))
    told = json.loads((tmp_path / "classifier" / "classifier.json").read_text())
    assert told == {"format": 1, **Structure(**structure)._asdict()}
    assert read_head(str(tmp_path)).structure == Structure(**structure)
    assert (tmp_path / "classifier" / "bottleneck.safetensors").is_file() == ("bottleneck" in structure)
    plain = Classifier(create(16, weights=str(tmp_path)), CLASSES, structure=Structure(**structure))
    plain.load_head(str(tmp_path))  # a domain's own statistics leave a plain network
    assert torch.equal(plain.eval()(images), made(images))


def test_an_export_of_an_earlier_version_has_a_linear_head(tmp_path: Path) -> None:
    made = classifier()
    made.export(tmp_path)
    folder = tmp_path / "classifier"
    (folder / "classifier.json").unlink()
    listed = [
        name for name in json.loads((folder / "MANIFEST.json").read_text())["sha256"] if name != "classifier.json"
    ]
    write_manifest(folder, listed)
    loaded = classifier()
    loaded.load_head(str(tmp_path))
    assert torch.equal(loaded.head.state_dict()["weight"], made.head.state_dict()["weight"])
    assert sorted(load_file(folder / "head.safetensors")) == ["bias", "weight"]


def test_another_structure_is_one_sentence(tmp_path: Path) -> None:
    classifier(bottleneck=5).export(tmp_path)
    with pytest.raises(
        UserError, match=r"method: bottleneck 4, head linear contradicts .* \(bottleneck 5, head linear\)"
    ):
        classifier(bottleneck=4).load_head(str(tmp_path))
    (tmp_path / "classifier" / "bottleneck.safetensors").write_text("no tensors")
    with pytest.raises(UserError, match=r"bottleneck\.safetensors is damaged"):
        classifier(bottleneck=5).load_head(str(tmp_path))
    (tmp_path / "classifier" / "classifier.json").unlink()
    with pytest.raises(UserError, match=r"classifier\.json cannot be read"):
        classifier(bottleneck=5).load_head(str(tmp_path))
    for text in (
        "[]",
        "{}",
        '{"bottleneck": "5"}',
        '{"bottleneck": 0, "head": "linear", "temperature": 1, "extra": 0}',
    ):
        with pytest.raises(ValueError, match="describe"):
            Structure.from_text(text, "x")


def test_numbers_out_of_range_name_their_keys() -> None:
    with pytest.raises(UserError, match=r"method\.bottleneck: expected a width of 1 or more, or none, got 0"):
        classifier(bottleneck=0)
    with pytest.raises(UserError, match=r"method\.head_temperature: expected more than 0"):
        classifier(head="cosine", temperature=0.0)


def inputs_of(made: Classifier, images: Tensor) -> Tensor:
    """What the backbone's first BatchNorm gets, [n, C, h, w]."""
    block: Any = made.backbone.model
    return block.blocks[0][0](images).detach()


def test_joint_statistics_are_of_both_domains_and_apart_of_each() -> None:
    images = pictures(n=8)
    joint, apart = classifier(bottleneck=5), classifier("apart", bottleneck=5)
    both, each = joint.encode(images), apart.encode(images)
    torch.testing.assert_close(both, joint.narrowed(joint.backbone(images.flatten(0, 1)).view(2, 8, -1), (0, 1)))
    for domain in (0, 1):  # a domain alone gives the same features
        alone = classifier("apart", bottleneck=5).encode(images[domain : domain + 1])
        torch.testing.assert_close(each[domain], alone[0])
    assert not torch.allclose(both, each, atol=0.1)
    for made in (joint, apart):
        norm.commit(norm.layers(made))
    together = inputs_of(joint, images.flatten(0, 1)).transpose(0, 1).flatten(1)
    mine = [inputs_of(joint, part).transpose(0, 1).flatten(1) for part in images]
    layer = norm.layers(joint)[0]
    torch.testing.assert_close(layer.running_var, 0.9 + 0.1 * together.var(1), rtol=1e-4, atol=1e-5)
    layer = norm.layers(apart)[0]
    assert int(layer.num_batches_tracked or 0) == 1  # one update a step, though there are two forwards
    within = torch.stack([part.var(1) for part in mine]).mean(0)
    torch.testing.assert_close(layer.running_var, 0.9 + 0.1 * within, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(within, together.var(1), rtol=1e-3)


def test_own_statistics_and_affine_are_of_each_domain() -> None:
    made, images = classifier("own", bottleneck=5), pictures(n=8)
    features = made.encode(images)
    features.square().sum().backward()
    norm.commit(norm.layers(made))
    layer = norm.layers(made.backbone)[0]
    twin: Any = layer.of_source
    assert layer.weight.grad is not None and twin.weight.grad is not None
    assert not torch.allclose(layer.weight.grad, twin.weight.grad)
    for of_domain, rows in ((twin, images[SOURCE]), (layer, images[TARGET])):
        inputs = inputs_of(made, rows).transpose(0, 1).flatten(1)
        torch.testing.assert_close(of_domain.running_mean, 0.1 * inputs.mean(1), rtol=1e-4, atol=1e-5)
    # At the start the layers are equal, so that a step's features are those of `apart`.
    torch.testing.assert_close(features, classifier("apart", bottleneck=5).encode(images))


def test_in_evaluation_the_targets_own_layers_are_used() -> None:
    made, images = classifier("own", bottleneck=5), pictures()
    for layer in norm.layers(made):
        twin: Any = getattr(layer, "of_source", None)
        if twin is not None:
            twin.running_mean.fill_(torch.nan)
            with torch.no_grad():
                twin.weight.fill_(torch.nan)
    made.eval()
    assert bool(made(images[0]).isfinite().all())
    assert bool(made.encode(images)[TARGET].isfinite().all()) and not bool(made.encode(images)[SOURCE].isfinite().any())
    exported = made.backbone.model.state_dict()
    assert any("of_source" in name for name in exported)


def test_further_rows_are_the_targets_unless_they_are_named() -> None:
    images = torch.cat([pictures(), pictures()[1:].flip(-1)])
    made = classifier("apart", bottleneck=5)
    found = made.encode(images)
    torch.testing.assert_close(
        found, classifier("apart", bottleneck=5).encode(images, domains=(SOURCE, TARGET, TARGET))
    )
    swapped = classifier("apart", bottleneck=5).encode(images[[1, 2, 0]], domains=(TARGET, TARGET, SOURCE))
    torch.testing.assert_close(swapped, found[[1, 2, 0]])
    # Both rows of the target are normalised together.
    torch.testing.assert_close(found[1:], classifier("joint", bottleneck=5).encode(images[1:]))


def test_a_domain_encoded_alone_is_named_where_each_has_its_own_statistics() -> None:
    images, made = pictures(), classifier("own", bottleneck=5)
    with pytest.raises(
        UserError, match=r"method\.batchnorm: own needs to know the domain of images that are encoded alone"
    ):
        made.encode(images[:1])
    both = made.encode(images)
    for domain in (SOURCE, TARGET):
        torch.testing.assert_close(made.encode(images[[domain]], domains=(domain,))[0], both[domain])


@pytest.mark.parametrize("batchnorm", ["joint", "apart", "own"])
@pytest.mark.parametrize("chunked", [False, True])
def test_chunks_and_recomputed_blocks_change_no_gradient(batchnorm: BatchNorms, chunked: bool) -> None:
    def gradients(chunk: int | None, again: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        made = classifier(batchnorm, "resnet10t", bottleneck=5).double()
        norm.convert_batch_norms(made, "group", 2, 2)
        if again:
            recompute(made.backbone)
        features = made.encode(pictures(n=8).double(), chunk)
        loss = F.cross_entropy(made.head(features[0]), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]))
        (loss + features[1].square().sum()).backward()
        norm.commit(norm.layers(made))
        state = {name: value for name, value in made.state_dict().items() if "running" in name}
        return {n: p.grad for n, p in made.named_parameters() if p.grad is not None}, state

    (grads, state), (expected, whole) = (
        gradients(2, False) if chunked else gradients(None, True),
        gradients(None, False),
    )
    assert grads.keys() == expected.keys() and len(grads) > 10
    torch.testing.assert_close(grads, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(state, whole, rtol=1e-9, atol=1e-12)


def test_a_network_without_batchnorm_has_none_of_its_own() -> None:
    vit = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    with pytest.raises(UserError, match=r"method\.batchnorm: own needs a network with BatchNorm"):
        Classifier(create(8, name="vit_tiny_patch16_224", args=vit), CLASSES, batchnorm="own")


def test_twins_learn_at_the_backbones_rate() -> None:
    made = classifier("own", bottleneck=5)
    groups = parameter_groups(made, Optim(lr=1.0, batch_size=1, duration="1", backbone_lr=0.1))  # pyright: ignore[reportArgumentType]
    scales = {p: group["lr_scale"] for group in groups for p in group["params"]}
    for name, parameter in made.named_parameters():
        assert scales[parameter] == (0.1 if name.startswith("backbone.") else 1.0), name
