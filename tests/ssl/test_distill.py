"""The losses against loops, a student that comes to its teacher, and what is refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rootstock.core.errors import UserError
from rootstock.core.model.backbone import create
from rootstock.launch.doctor.trial_steps import backbone
from rootstock.launch.verbs import execute
from rootstock.ssl.distill import Distance, Distill, feature_loss
from rootstock.ssl.parts.feature_maps import to_grid
from rootstock.tests.cut_off import cut_off_at
from rootstock.tests.ssl.cases import config, method, teacher, views


def slow_loss(student: Tensor, target: Tensor, kind: str) -> float:
    """Row by row and number by number."""
    total, rows = 0.0, list(zip(student.flatten(0, -2), target.flatten(0, -2), strict=True))
    for ours, theirs in rows:
        if kind == "cosine":
            total += 1.0 - float((ours * theirs).sum() / (ours.square().sum() * theirs.square().sum()).sqrt())
            continue
        mean = theirs.mean()
        whitened = (theirs - mean) / ((theirs - mean).square().mean() + 1e-5).sqrt()
        for difference in (ours - whitened).abs().tolist():
            if kind == "mse":
                total += difference**2 / len(ours)
            else:
                total += (difference**2 / 4 if difference <= 2 else difference - 1) / len(ours)
    return total / len(rows)


@pytest.mark.parametrize("kind", ["cosine", "mse", "smooth_l1"])
@pytest.mark.parametrize("shape", [(4, 6), (3, 5, 6)])
def test_the_losses_are_those_of_loops(kind: Distance, shape: tuple[int, ...]) -> None:
    student, target = 2.0 * torch.randn(2, *shape, dtype=torch.float64)
    assert float(feature_loss(student, target, kind)) == pytest.approx(slow_loss(student, target, kind), rel=1e-12)
    assert float(feature_loss(student.half(), target.half(), kind)) == pytest.approx(
        slow_loss(student, target, kind), rel=1e-2
    )


def test_the_loss_of_a_batch() -> None:
    """Two teachers of other grids and widths, two depths: the mean over both of pooled + 0.5 * the mean over depths."""
    torch.manual_seed(0)
    made: Distill = method("distill", "conv", loss="cosine", places=0.5)
    made.double().train()
    batch = views(made, 5, dtype=torch.float64)
    step = made(batch, 0.0)
    (images,) = batch.images
    with torch.no_grad():
        pooled, *maps = made.maps(images)
        expected = 0.0
        for kind, adapters in zip(("conv", "vit"), made.adapters, strict=True):
            network = create(16, weights=teacher(kind)).double().eval()
            first, *others = adapters  # pyright: ignore[reportGeneralTypeIssues]
            expected += slow_loss(first(pooled), network(images), "cosine") / 2
            last = network.tokens(images)[:, 1:] if kind == "vit" else network.tokens(images)
            side = round(last.shape[1] ** 0.5)
            common = min(side, 2)  # the student's last map is 2 x 2
            here, there = to_grid(maps[1], (2, 2), (common, common)), to_grid(last, (side, side), (common, common))
            final = slow_loss(others[1](here), there, "cosine")
            _, inner = network.model.forward_intermediates(images, indices=[1 if kind == "conv" else 0])  # pyright: ignore[reportCallIssue]
            tokens = to_grid(inner[0].flatten(2).mT, (4, 4), (4, 4))
            expected += 0.5 * (final + slow_loss(others[0](maps[0]), tokens, "cosine")) / 2 / 2
    assert float(step.loss.detach()) == pytest.approx(expected, rel=1e-9)
    assert set(step.metrics) >= {"pooled_loss", "places_loss", "teacher_cosine", "feature_std"}


def test_the_teacher_learns_nothing_and_the_student_does() -> None:
    made = method("distill", "vit")
    before = [p.clone() for one in made.teachers for p in one.maps.backbone.parameters()]
    made.train()
    made(views(made, 4), 0.0).loss.backward()
    after = [p for one in made.teachers for p in one.maps.backbone.parameters()]
    assert all(torch.equal(a, b) and a.grad is None for a, b in zip(after, before, strict=True))
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in made.adapters.parameters())
    assert all(p.grad is not None for p in made.backbone.parameters())
    assert not any(one.maps.backbone.training for one in made.teachers)


def test_a_student_like_its_teacher_comes_to_it() -> None:
    torch.manual_seed(3)
    made = Distill(backbone("conv"), teacher=teacher("conv"), loss="cosine")
    optimizer = torch.optim.Adam(made.parameters(), 0.01)
    losses = []
    for step in range(60):
        loss = made(views(made, 16, seed=step), 0.0).loss
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert sum(losses[-5:]) < 0.25 * sum(losses[:5])


def test_a_cache_changes_nothing(tmp_path: Path) -> None:
    plain, kept = method("distill", "conv", seed=2), method("distill", "conv", seed=2, cache=str(tmp_path))
    for made in (plain, kept, method("distill", "conv", seed=2, cache=str(tmp_path))):
        step = made(views(made, 4), 0.0)
        assert torch.equal(step.loss, plain(views(plain, 4), 0.0).loss)
    again = method("distill", "conv", seed=2, cache=str(tmp_path))
    assert all(note.startswith("method.cache holds 4 views of ") for note in again.notes)
    for one in again.teachers:
        assert one.cache is not None
        one.maps.backbone.forward = None  # type: ignore[method-assign]  # it is not asked
    assert torch.equal(again(views(again, 4), 0.0).loss, kept(views(kept, 4), 0.0).loss)


def test_teachers_of_equal_weights_share_no_cache(tmp_path: Path) -> None:
    """Of a ViT whose class token or whose mean over patches is the feature."""
    made = []
    for pooling in ("token", "mean"):
        create(16, weights=teacher("vit"), pooling=pooling).export(tmp_path / pooling)
        torch.manual_seed(0)
        source, cache = str(tmp_path / pooling), str(tmp_path / "cache")
        plain, kept = (Distill(backbone("conv"), teacher=source, places=0.0, cache=where) for where in (None, cache))
        kept.load_state_dict(plain.state_dict())
        made.append(kept(views(kept, 4), 0.0).loss)
        assert torch.equal(made[-1], plain(views(plain, 4), 0.0).loss)
    assert not torch.equal(*made)


@pytest.mark.parametrize("kept", [False, True])
def test_a_run_with_a_cache_resumes_to_the_same_bits(kept: bool, tmp_path: Path) -> None:
    """Killed after its cache has views of steps that are done again. kept: whether the command that goes on has the cache still."""
    images = "sklearn:digits?size=16#[:48,seed=1]"
    optim = {"lr": 0.01, "batch_size": 16, "duration": 6}

    def trained(folder: str, cache: Path | None) -> dict[str, Tensor]:
        given = config("distill", "conv", images, 1.0, **optim)
        given["method"] = {**given["method"], "cache": None if cache is None else str(cache)}
        run = {"dir": str(tmp_path / folder), "device": "cpu", "workers": 0, "checkpoint": {"every": 2}}
        execute("pretrain", {**given, "evaluate": {"watch": None}, "run": run}, quiet=True)
        return load_file(tmp_path / folder / "backbone" / "backbone.safetensors")

    straight, cache = trained("straight", None), tmp_path / "cache"
    with cut_off_at(3):
        trained("resumed", cache)
    assert len(list(cache.rglob("*.rows"))) == 2  # one of each teacher
    if not kept:
        shutil.rmtree(cache)
    resumed = trained("resumed", cache)
    assert (
        all(torch.equal(straight[name], tensor) for name, tensor in resumed.items())
        and resumed.keys() == straight.keys()
    )


def test_the_teachers_history_goes_to_the_student() -> None:
    made = method("distill", "conv")
    assert [stage["teacher"] for stage in made.backbone.provenance] == [teacher("conv"), teacher("vit")]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"teacher": []}, "method.teacher: an empty list; name the folder of a run, or timm:NAME"),
        (
            {"pooled": 0.0, "places": 0.0},
            "method.pooled: with places 0 and pooled 0 there is nothing to learn; set one of both to 1",
        ),
        (
            {"teacher": "runs/nowhere"},
            "method.teacher: runs/nowhere does not exist; give the folder of a finished run, such as runs/NAME",
        ),
        ({"depths": 5}, "method.depths: smallconv has features at 4 depths, got 5"),
        ({"depths": 3}, "method.depths: vit_tiny_patch16_224 has features at 2 depths, got 3"),
    ],
)
def test_refusals(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        method("distill", "conv", **keys)
    assert str(refused.value) == said


def test_an_unknown_network_of_timm_and_other_channels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^method\.teacher: unknown backbone 'resnet81'; did you mean"):
        Distill(backbone("conv"), teacher="timm:resnet81")
    create(16, 1, name="smallconv").export(tmp_path)
    with pytest.raises(UserError, match=r"takes pictures of 1 channels, and these have 3; give another one$"):
        Distill(backbone("conv"), teacher=str(tmp_path))
