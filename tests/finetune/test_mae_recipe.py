"""configs/finetune/mae_imagenet_b.yaml from a drawn checkpoint in MAE's format, against the published recipe written out by hand."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rootstock.core.convert.adopt import adopt
from rootstock.core.convert.file import Contents
from rootstock.core.errors import UserError
from rootstock.core.evaluate.features import extract
from rootstock.core.model.heads import CosineHead
from rootstock.core.run.directory import Run
from rootstock.core.train.optim import set_rate
from rootstock.finetune.finetune import FineTuning, build_finetuning
from rootstock.launch.verbs import execute, resolve
from rootstock.tests.core.convert.cases import random

WIDTH, DEPTH, HEADS, SIDE = 8, 12, 2, 32
BATCH, EPOCHS, PER_EPOCH = 8, 100, 4
# Of evaluation.md's section 6 and MAE's code.
BLR, DECAY, LAYER_DECAY, WARMUP, MIN_LR = 5e-4, 0.05, 0.65, 5, 1e-6
OVERRIDES = [
    "data.train=sklearn:digits?size=32#[:39,seed=3]", "data.test=sklearn:digits?size=32#[:20,seed=9]", f"data.size={SIDE}",
    f"optim.batch_size={BATCH}", "run.workers=0", "run.log_every=1",
]  # fmt: skip


def drawn_checkpoint() -> dict[str, Tensor]:
    """What MAE publishes of a ViT-B, drawn and narrow: the encoder alone, with its last norm."""
    torch.manual_seed(1)
    state = {"cls_token": random(1, 1, WIDTH), "pos_embed": random(1, 5, WIDTH), "patch_embed.proj.weight": random(WIDTH, 3, 16, 16),
             "patch_embed.proj.bias": random(WIDTH), "norm.weight": random(WIDTH), "norm.bias": random(WIDTH)}  # fmt: skip
    layers = {"norm1": (WIDTH,), "attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH), "norm2": (WIDTH,),
              "mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH)}  # fmt: skip
    for i in range(DEPTH):
        for name, shape in layers.items():
            state |= {f"blocks.{i}.{name}.weight": random(*shape), f"blocks.{i}.{name}.bias": random(shape[0])}
    return state


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("published")
    state = drawn_checkpoint()
    contents = Contents(folder / "mae_pretrain_vit_base.pth", {"model": state}, ["model"], None, "0" * 64)
    options = {"name": "vit_base_patch16_224", "args": {"embed_dim": WIDTH, "num_heads": HEADS}, "size": SIDE}
    backbone, _ = adopt(contents, **options)
    backbone.export(folder / "run")
    return folder / "run", state


def build(published: Path, folder: Path, *more: str) -> tuple[FineTuning, Mapping[str, Any]]:
    given = [*OVERRIDES, f"backbone.weights={published}", "backbone.name=null", f"run.dir={folder}", *more]
    config = resolve("finetune", "finetune/mae_imagenet_b.yaml", given)
    sections = {key: value for key, value in config.items() if key != "run"}
    with Run("finetune", config, quiet=True) as run:
        return build_finetuning(run, **sections), config


def layer_of(name: str) -> int:
    """BEiT's number of a parameter of the classifier."""
    inner = name.removeprefix("backbone.model.")
    if inner.startswith("blocks."):
        return int(inner.split(".")[1]) + 1
    return 0 if inner.startswith(("cls_token", "pos_embed", "patch_embed")) else DEPTH + 1


def rate_of(step: int) -> float:
    """MAE's adjust_learning_rate, called in each iteration with the epoch as a fraction."""
    epoch, peak = step / PER_EPOCH, BLR * BATCH / 256
    if epoch < WARMUP:
        return peak * epoch / WARMUP
    return MIN_LR + (peak - MIN_LR) * 0.5 * (1.0 + math.cos(math.pi * (epoch - WARMUP) / (EPOCHS - WARMUP)))


def decays(name: str, parameter: Tensor) -> bool:
    return parameter.ndim > 1 and not name.endswith(("pos_embed", "cls_token"))


def test_optimizer_groups_and_schedule_are_the_published_ones(
    published: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    built, config = build(published[0], tmp_path / "run")
    plan: Any = built.plan
    names = {parameter: name for name, parameter in plan.method.classifier.named_parameters()}
    optimizer = plan.optim.build(plan.method)
    assert type(optimizer) is torch.optim.AdamW and plan.optim.clip is None
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.999)}
    assert (plan.steps, plan.steps_per_epoch) == (EPOCHS * PER_EPOCH, PER_EPOCH)
    for step in range(plan.steps):
        set_rate(optimizer, plan.optim.rate(step, plan.steps, plan.steps_per_epoch), plan.optim.decay(step, plan.steps))
        for group in (
            optimizer.param_groups if step in (0, 1, 19, 20, 21, 200, plan.steps - 1) else optimizer.param_groups[:1]
        ):
            for parameter in group["params"]:
                name = names[parameter]
                scale = LAYER_DECAY ** (DEPTH + 1 - layer_of(name))
                assert group["lr"] == pytest.approx(rate_of(step) * scale, rel=1e-12, abs=1e-300), (step, name)
                assert group["weight_decay"] == (DECAY if decays(name, parameter) else 0.0), name
    assert sorted(names.values()) == sorted(names[p] for group in optimizer.param_groups for p in group["params"])
    # By hand: the embedding, the sixth block, the last block, and what follows it. Each with and without decay, but for what has no matrix.
    scales = {round(group["lr_scale"], 9) for group in optimizer.param_groups}
    assert {round(0.65**13, 9), round(0.65**7, 9), 0.65, 1.0} <= scales and len(scales) == 14
    # The rest of the recipe.
    paths = [path.drop_prob for path in plan.method.paths]
    assert paths == pytest.approx([0.1 * i / 11 for i in range(1, 12) for _ in range(2)], rel=1e-6)
    assert (
        config["method"] | {"label_smoothing": 0.1, "mixup": 0.8, "cutmix": 1.0, "mix_by": "batch"} == config["method"]
    )
    assert (built.view.short, built.view.interpolation) == (int(SIDE / 0.875), "bicubic")


def test_its_head_is_no_head_of_cosines(published: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^method\.head_init: truncated_normal is for a linear head, .*ldam has not"):
        build(published[0], tmp_path / "run", "method.loss=ldam")
    built, _ = build(published[0], tmp_path / "other", "method.loss=ldam", "method.head_init=torch")
    assert isinstance(built.regime.classifier.head, CosineHead)


def test_head_and_norm_begin_as_published(published: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    """The encoder's weights but its last norm; a new norm after the mean over patches; a head of N(0, 2e-5)."""
    built, _ = build(published[0], tmp_path / "run", "data.train=sklearn:digits?size=32")
    method: Any = built.plan.method
    state = method.backbone.model.state_dict()
    assert state.keys() == (published[1].keys() - {"norm.weight", "norm.bias"}) | {"fc_norm.weight", "fc_norm.bias"}
    assert all(torch.equal(state[key], published[1][key]) for key in state if not key.startswith("fc_norm"))
    assert torch.equal(state["fc_norm.weight"], torch.ones(WIDTH)) and not state["fc_norm.bias"].any()
    head = method.classifier.head.requires_grad_(False)
    assert not head.bias.any() and 1e-5 < float(head.weight.std()) < 3e-5 and head.weight.any()


def test_steps_are_those_of_a_plain_loop(published: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    """The last weights of a short run, past its warm-up, against torch's AdamW with a group for each parameter, on the same batches."""
    short = ["optim.duration=8", "optim.warmup=3", "optim.lr=0.5", "optim.min_lr=0.01"]
    built, config = build(published[0], tmp_path / "plain", *short)
    method: Any = built.plan.method
    named = dict(method.classifier.named_parameters())
    groups = [{"params": [p], "weight_decay": DECAY if decays(n, p) else 0.0, "name": n} for n, p in named.items()]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999))
    method.train()
    peak = 0.5 * BATCH / 256
    for step, micro in zip(range(8), built.plan.batches(0), strict=True):
        rate = peak * step / 3 if step < 3 else 0.01 + (peak - 0.01) * 0.5 * (1 + math.cos(math.pi * (step - 3) / 5))
        for group in optimizer.param_groups:
            group["lr"] = rate * LAYER_DECAY ** (DEPTH + 1 - layer_of(group["name"]))
        batch = built.plan.prepare(micro[0])
        assert batch.labels.shape == (BATCH, 10) and torch.allclose(batch.labels.sum(1), torch.ones(BATCH))
        for i, path in enumerate(method.paths):
            path.kept = batch.draws.uniform("drop_path", len(method.paths))[:, i] >= path.drop_prob
        soft = batch.labels * 0.9 + 0.1 / 10
        loss = -(soft * F.log_softmax(method.classifier(batch.images), 1)).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    result = execute("finetune", {**config, "run": {**config["run"], "dir": str(tmp_path / "run")}}, quiet=True)
    again, _ = build(tmp_path / "run", tmp_path / "read", "method.keep_head=true", "method.head_init=torch")
    found: Any = again.plan.method
    for name, parameter in found.classifier.named_parameters():
        if name.endswith(
            "attn.qkv.bias"
        ):  # a key's bias has no gradient but rounding, which Adam scales to a whole step
            moved = [*range(WIDTH), *range(2 * WIDTH, 3 * WIDTH)]  # queries and values
            torch.testing.assert_close(parameter[moved], named[name][moved], rtol=1e-4, atol=1e-6)
            continue
        torch.testing.assert_close(
            parameter, named[name], rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )
    logits = extract(method.classifier, built.tests["test"], built.view, device="cpu")
    right = (logits.argmax(1) == built.tests["test"].labels).float().mean()
    assert result["metrics"]["test/classifier/accuracy"] == pytest.approx(float(right))
