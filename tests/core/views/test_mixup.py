"""Mixup and cutmix for each pair, their distributions, and independence of how a batch is split."""

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor

from rootstock.core.draws import Draws
from rootstock.core.errors import UserError
from rootstock.core.views.mixup import Mixing, cutmix_boxes, mix_images

CLASSES = 5
BOTH = Mixing(0.8, 1.0)


def batch(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Draws]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (n,), generator=generator)
    return torch.randn(n, 3, 12, 16, generator=generator), labels, Draws(seed, torch.arange(n) + 640)


@pytest.mark.parametrize("mixing", [Mixing(0.8), Mixing(cutmix=1.0), BOTH])
def test_pair_by_pair(mixing: Mixing) -> None:
    n = 60
    images, labels, draws = batch(n)
    mixed, soft = mix_images(images, labels, draws, CLASSES, mixing)
    shares = draws.beta("mixup", 0.8, 0.8).tolist()
    boxes = cutmix_boxes(draws, 12, 16, draws.beta("cutmix", 1.0, 1.0)).tolist()
    by_box = draws.bernoulli("which", 0.5).tolist() if all(mixing) else [mixing.cutmix > 0] * n
    for k in range(n):
        other = k + 1 if k % 2 == 0 else k - 1
        if by_box[k]:
            top, left, h, w = boxes[k]
            expected = images[k].clone()
            expected[:, top : top + h, left : left + w] = images[other][:, top : top + h, left : left + w]
            share = 1 - h * w / (12 * 16)
            assert torch.equal(mixed[k], expected)
        else:
            share = shares[k]
            assert torch.allclose(mixed[k], share * images[k] + (1 - share) * images[other], atol=1e-6)
        target = torch.zeros(CLASSES)
        target[labels[k]] += share
        target[labels[other]] += 1 - share
        assert torch.allclose(soft[k], target, atol=1e-6)
    assert torch.allclose(soft.sum(1), torch.ones(n), atol=1e-6)


def test_no_mixing_is_one_hot() -> None:
    images, labels, draws = batch(3)
    mixed, soft = mix_images(images, labels, draws, CLASSES, Mixing())
    assert torch.equal(mixed, images) and torch.equal(soft.argmax(1), labels)
    logits = torch.randn(3, CLASSES)
    assert torch.allclose(F.cross_entropy(logits, soft), F.cross_entropy(logits, labels))


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_parts_of_a_batch_mix_as_the_whole(parts: int) -> None:
    images, labels, draws = batch(32)
    whole = mix_images(images, labels, draws, CLASSES, BOTH)
    found = [
        mix_images(images[rows], labels[rows], Draws(0, draws.positions[rows]), CLASSES, BOTH)
        for rows in torch.arange(32).chunk(parts)
    ]
    for a, b in zip(whole, zip(*found, strict=True), strict=True):
        assert torch.allclose(
            a, torch.cat(b), atol=1e-6
        )  # the last bit of a logarithm depends on its place in the vector


def test_boxes_are_torchvisions() -> None:
    """torchvision's CutMix.make_params with our centres and shares: half sides rounded down, clipped at the border."""
    n, height, width = 300, 30, 47
    draws = Draws(1, torch.arange(n))
    share = draws.uniform("share")
    rows, columns = draws.integers("row", height).tolist(), draws.integers("column", width).tolist()
    for found, lam, y, x in zip(cutmix_boxes(draws, height, width, share).tolist(), share, rows, columns, strict=True):
        r = 0.5 * (1.0 - lam).sqrt()
        half_w, half_h = int(r * width), int(r * height)
        x1, y1, x2, y2 = max(x - half_w, 0), max(y - half_h, 0), min(x + half_w, width), min(y + half_h, height)
        assert found == [y1, x1, y2 - y1, x2 - x1]
    assert stats.chisquare(torch.bincount(torch.tensor(rows), minlength=height).numpy()).pvalue > 0.001


def test_shares_are_beta() -> None:
    n = 4_000
    images, labels = torch.zeros(n, 1, 1, 1), torch.arange(n) % 2  # partners have the other class
    images[::2] = 1.0
    mixed, soft = mix_images(images, labels, Draws(0, torch.arange(n)), 2, Mixing(0.8))
    assert stats.kstest(mixed[::2].flatten().numpy(), stats.beta(0.8, 0.8).cdf).pvalue > 0.001
    assert torch.allclose(soft[::2, 0], mixed[::2].flatten(), atol=1e-6)


def test_pairs_must_stay_together() -> None:
    BOTH.check(64, 4)
    Mixing().check(63, 3)
    with pytest.raises(
        UserError, match=r"optim\.batch_size: 36 does not divide into 4 parts of even size.*multiple of 8"
    ):
        BOTH.check(36, 4)
    with pytest.raises(UserError, match=r"method\.mixup"):
        Mixing(-0.1).check(64, 1)
    with pytest.raises(ValueError, match="pairs"):
        mix_images(*batch(3), CLASSES, BOTH)


def test_one_lambda_a_batch_as_timm_mixes() -> None:
    """Against timm's Mixup on pairs that its flip of the batch makes too: [0 1 2 3] against [1 0 3 2] of ours."""
    mixing, size = BOTH._replace(by="batch"), 8
    images, labels, _ = batch(size)
    kinds = set()
    for step in range(3, 83, 10):
        own = Draws(0, torch.arange(size) + step * size)
        drawn = mixing.draws_of(own, size)
        mixed, soft = mix_images(images[:size], labels[:size], drawn, CLASSES, mixing)
        by_box = bool(drawn.bernoulli("which", 0.5)[0])
        kinds.add(by_box)
        theirs = Mixup(0.8, 1.0, num_classes=CLASSES, label_smoothing=0.0, correct_lam=True)
        share = drawn.beta("cutmix", 1.0, 1.0) if by_box else drawn.beta("mixup", 0.8, 0.8)
        assert len(share.unique()) == 1
        box = cutmix_boxes(drawn, 12, 16, share)[0].tolist()
        paired = torch.cat([images[0:size:2], images[1:size:2].flip(0)])  # what flip(0) pairs: k with size - 1 - k
        left = float(share[0])
        if by_box:
            top, first, h, w = box
            left = 1 - h * w / (12 * 16)
            expected = paired.clone()
            expected[..., top : top + h, first : first + w] = paired.flip(0)[..., top : top + h, first : first + w]
        else:
            expected = paired * left + paired.flip(0) * (1 - left)
        assert torch.allclose(torch.cat([mixed[0::2], mixed[1::2].flip(0)]), expected, atol=1e-6)
        classes = torch.cat([labels[0:size:2], labels[1:size:2].flip(0)])
        wanted = mixup_target(classes, CLASSES, left, 0.0)
        assert torch.allclose(torch.cat([soft[0::2], soft[1::2].flip(0)]), wanted, atol=1e-6)
        assert theirs.mix_prob == 1.0 and theirs.switch_prob == 0.5  # what `by: batch` has
        halves = [
            mix_images(images[r], labels[r], mixing.draws_of(Draws(0, own.positions[r]), size), CLASSES, mixing)[0]
            for r in (slice(2), slice(2, size))
        ]
        assert torch.equal(torch.cat(halves), mixed)
    assert kinds == {True, False}
