"""Run as a script, this file is one of the processes of test_exact_over_processes."""

import math
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rootstock.core.errors import UserError
from rootstock.core.evaluate import rounds
from rootstock.core.evaluate.features import evaluating, extract
from rootstock.tests.conftest import Forks

SIZES = range(1, 34)
# The processes of one set serve a world of 3 and then, without the last, one of 2.
PROCESSES = 3


class Pictures:
    """Picture i is 3 x 4 x 4 (x 5 for odd i, so that nothing but the view makes them equal), its pixels all i."""

    def __init__(self, n: int, *, uniform: bool = False, damaged: int | None = None) -> None:
        self.n, self.uniformly, self.damaged = n, uniform, damaged
        self.reads: list[int] = []

    def __len__(self) -> int:
        return self.n

    def read(self, i: int) -> Tensor:
        if i == self.damaged:
            raise UserError(f"picture-{i}.png is damaged; remove it")
        self.reads.append(i)
        return torch.full((3, 4, 4 + i % 2), i, dtype=torch.uint8)

    def full_name(self, i: int) -> str:
        return f"picture-{i}.png"

    def uniform(self) -> object | None:
        return (3, 4, 4) if self.uniformly else None

    def rows(self, indices: Tensor) -> Tensor | None:
        return torch.stack([self.read(i)[:, :, :4] for i in indices.tolist()]) if self.uniformly else None


class View:
    def worker(self, image: Tensor) -> Tensor:
        return image[:, :4, :4]

    def __call__(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        return images.float()


class Numbers(nn.Module):
    """[N, 3, 4, 4] -> [N, 2]: the number of the picture, and its square."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        number = x.mean(dim=(1, 2, 3))
        return torch.stack([number, number.square()], dim=1)


class Tokens(Numbers):
    """[N, 3, 4, 4] -> [N, 4, 2]: tokens 0 to 3, each with the number of the picture and its own."""

    def forward(self, x: Tensor) -> Tensor:
        number = super().forward(x)[:, :1]
        return torch.stack([number.expand(-1, 4), torch.arange(4.0).expand(len(x), 4)], dim=2)


def expected_tokens(n: int) -> Tensor:
    return torch.tensor([[[float(i), float(t)] for t in range(4)] for i in range(n)])


def expected(n: int) -> Tensor:
    return torch.tensor([[float(i), float(i * i)] for i in range(n)])


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.ReLU(), nn.Flatten())


@pytest.mark.parametrize("uniform", [True, False])
def test_each_sample_once_by_index(uniform: bool) -> None:
    for n in SIZES:
        pictures, model = Pictures(n, uniform=uniform), Numbers()
        assert torch.equal(extract(model, pictures, View(), batch_size=4, device="cpu"), expected(n))
        assert pictures.reads == list(range(n))
        assert sum(model.batches) == n


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_tokens_keep_their_axes(dtype: torch.dtype) -> None:
    found = extract(Tokens(), Pictures(10), View(), batch_size=4, device="cpu", axes=2, dtype=dtype)
    assert found.dtype == dtype and torch.equal(found, expected_tokens(10).to(dtype))
    assert not found.is_inference()


def test_workers_keep_the_order() -> None:
    assert torch.equal(extract(Numbers(), Pictures(33), View(), batch_size=4, device="cpu", workers=2), expected(33))


def test_the_model_comes_back_as_it_was() -> None:
    model = network().train()
    model.get_submodule("2").eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    features = extract(model, Pictures(10), View(), batch_size=4, device="cpu")
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    pixels = torch.stack([View()(torch.full((1, 3, 4, 4), i, dtype=torch.uint8))[0] for i in range(10)])
    torch.testing.assert_close(features, model.eval()(pixels).detach())
    # A probe is trained on them, which inference tensors would refuse.
    assert not features.is_inference()
    assert not features.requires_grad


def test_the_modes_come_back_after_an_error() -> None:
    model = network().train()
    with pytest.raises(RuntimeError, match="boom"), evaluating(model):
        raise RuntimeError("boom")
    assert all(module.training for module in model.modules())


def test_the_global_random_stream_does_not_move() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    extract(Numbers(), Pictures(9), View(), device="cpu", workers=1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_is_said_in_its_own_words(workers: int) -> None:
    with pytest.raises(UserError, match=r"^picture-6.png is damaged; remove it$"):
        extract(Numbers(), Pictures(9, damaged=6), View(), batch_size=4, device="cpu", workers=workers)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(UserError, match="no images"):
        extract(Numbers(), Pictures(0), View(), device="cpu")
    with pytest.raises(UserError, match="batch_size is 0"):
        extract(Numbers(), Pictures(3), View(), batch_size=0, device="cpu")
    with pytest.raises(ValueError, match=r"not \(3, 3, 4, 4\)"):
        extract(nn.Identity(), Pictures(3), View(), device="cpu")
    with pytest.raises(ValueError, match=r"2 axes each, not \(3, 2\)"):
        extract(Numbers(), Pictures(3), View(), device="cpu", axes=2)


class Broken(Numbers):
    """The features of some pictures are not finite."""

    def __init__(self, values: dict[int, float], tokens: bool = False) -> None:
        super().__init__()
        self.values, self.tokens = values, tokens

    def forward(self, x: Tensor) -> Tensor:
        found = super().forward(x)
        for row, number in enumerate(found[:, 0].tolist()):
            found[row, 1] = self.values.get(int(number), found[row, 1])
        return found[:, None].expand(-1, 3, -1) if self.tokens else found


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {2: math.nan},
            r"^the features of 1 of 9 images are not finite \(picture-2.png\); leave these pictures out, or take",
        ),
        ({7: -math.inf, 1: math.inf}, r"of 2 of 9 images are not finite \(picture-1.png, picture-7.png\); leave"),
        (dict.fromkeys(range(1, 8), math.nan), r"7 of 9 .*picture-1.png, .*picture-5.png, \.\.\.\); leave"),
        (
            dict.fromkeys(range(9), math.nan),
            r"all 9 images are not finite: the network has diverged.*; take an earlier",
        ),
    ],
)
@pytest.mark.parametrize("tokens", [False, True])
def test_features_that_are_not_finite_are_refused(values: dict[int, float], sentence: str, tokens: bool) -> None:
    with pytest.raises(UserError, match=sentence):
        extract(Broken(values, tokens), Pictures(9), View(), batch_size=4, device="cpu", axes=1 + tokens)


def test_a_number_too_large_for_the_dtype_alone_is_the_callers_matter() -> None:
    found = extract(Broken({3: 1e30}), Pictures(9), View(), batch_size=4, device="cpu", dtype=torch.float16)
    assert found[3].tolist() == [3.0, math.inf] and bool(found[4:].isfinite().all())


def test_a_round_exchanges_no_more_rows_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    exchanged: list[int] = []

    def gathered(room: Tensor) -> Tensor:
        exchanged.append(len(room))
        return torch.stack([room, room])

    monkeypatch.setattr(rounds, "world", lambda: 2)
    monkeypatch.setattr(rounds, "rank", lambda: 0)
    monkeypatch.setattr(rounds, "gather_equal", gathered)
    stores = rounds.stores_in_memory(9, {"x": torch.float32})
    work = rounds.ExtractionRounds(9, 2, ["x"], stores, torch.device("cpu"))
    while (batches := work.next()) is not None:
        found = [{"x": torch.full((len(rows), 3), -0.0)} for rows in batches]
        assert work.agree(found, None) is None
        work.exchange(found)
    # Of 5 batches the first process has 3: one in the first round, when nobody knows the size of a row, and then the others.
    assert exchanged == [2, 4]
    assert bool(torch.signbit(work.finish()["x"]).all())


def test_exact_over_processes(tmp_path: Path, forks: Forks) -> None:
    """1..33 samples over 1, 2 and 3 gloo processes: the same bits, nothing missing, nothing twice, in order."""
    for code, said in forks(__file__, [[str(rank), tmp_path] for rank in range(PROCESSES)]):
        assert code == 0 and said.splitlines()[-1].endswith("exact"), said


def one_process(rank: int, folder: Path) -> None:
    alone = [extract(network(), Pictures(n), View(), batch_size=4, device="cpu") for n in (1, 6, 33)]
    for world in (3, 2):
        if rank >= world:
            break
        dist.init_process_group("gloo", init_method=f"file://{folder / str(world)}", rank=rank, world_size=world)
        for n in SIZES:
            pictures, model = Pictures(n), Numbers()
            assert torch.equal(extract(model, pictures, View(), batch_size=4, device="cpu"), expected(n))
            # Over all processes, each picture was read once: the list of reads is the union, sorted, without repeats.
            reads: list[list[int]] = [[] for _ in range(world)]
            dist.all_gather_object(reads, pictures.reads)
            assert sorted(i for own in reads for i in own) == list(range(n))
            assert sum(model.batches) == len(pictures.reads)
        for n, features in zip((1, 6, 33), alone, strict=True):
            assert torch.equal(extract(network(), Pictures(n), View(), batch_size=4, device="cpu"), features)
            tokens = extract(Tokens(), Pictures(n), View(), batch_size=4, device="cpu", axes=2, dtype=torch.float16)
            assert tokens.dtype == torch.float16 and torch.equal(tokens, expected_tokens(n).half())
        rounds.NUMBERS_AT_ONCE = 1  # rounds of one batch
        assert torch.equal(extract(Numbers(), Pictures(33), View(), batch_size=4, device="cpu"), expected(33))
        # Only the last process meets the picture; all of them name it, and none waits for another.
        with pytest.raises(UserError, match=r"^picture-30.png is damaged; remove it$"):
            extract(Numbers(), Pictures(33, damaged=30), View(), batch_size=4, device="cpu")
        with pytest.raises(UserError, match=r"of 2 of 33 images .*\(picture-0.png, picture-32.png\); leave"):
            extract(Broken({0: math.nan, 32: math.inf}), Pictures(33), View(), batch_size=4, device="cpu")
        dist.barrier()
        dist.destroy_process_group()
    print(f"{rank}: exact")


if __name__ == "__main__":
    one_process(int(sys.argv[1]), Path(sys.argv[2]))
