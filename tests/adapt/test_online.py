"""Methods of test time: what learns and what stays, predictions of the forward that adapts, losses against loops, whole runs."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from rootstock.adapt.adabn import AdaBN, estimate_statistics
from rootstock.adapt.eata import EATA
from rootstock.adapt.online_pass import places_of
from rootstock.adapt.parts.online import OnlinePredictions, affine_parameters, entropy_of
from rootstock.adapt.registry import ADAPT_METHODS
from rootstock.adapt.roid import image_weights, likelihood_ratio, smoothed_prior, symmetric_error
from rootstock.core import stage
from rootstock.core.draws import Draws
from rootstock.core.errors import UserError
from rootstock.core.evaluate.trained import load_trained
from rootstock.core.images.open import open_images
from rootstock.core.method import Domains, Method, Unlabelled
from rootstock.core.model import norm
from rootstock.core.model.classifier import Classifier
from rootstock.core.stream.order import Given, Order
from rootstock.core.views.corrupted import Corruption, corrupted
from rootstock.core.views.corruptions import corrupt
from rootstock.core.views.view import Evaluation
from rootstock.launch.doctor.trial_steps import SIZE, backbone
from rootstock.launch.verbs import execute
from rootstock.tests.adapt.one_update import PEERS, drawn, gradient_norms

NAMES = sorted(name for name, kind in ADAPT_METHODS.items() if kind.online)
CLASSES, IMAGES = 4, 12


def classifier(kind: str = "conv") -> Classifier:
    torch.manual_seed(0)
    made = Classifier(backbone(kind), [str(k) for k in range(CLASSES)], dropout=0.5)
    nn.init.normal_(made.head.weight, std=0.7)
    return made.double()


def images(n: int = IMAGES, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, SIZE, SIZE, generator=generator, dtype=torch.float64) + 0.5


def batch(n: int = IMAGES, seed: int = 0) -> Domains:
    target = Unlabelled(images(n, seed), Draws(seed, torch.arange(n)), torch.arange(n) + n * seed)
    return Domains((), (target,))


def small(name: str, network: Classifier | None = None, **keys: Any) -> Any:
    made: Any = ADAPT_METHODS[name](network or classifier(), None, **keys)
    made = made.double()
    norm.configure(made, "auto", accumulate=1, chunk=None, log=print)
    made.begin(lambda count, size: images(count, 7).split(size))
    return made.train()


def logits(n: int = 9, k: int = 5, scale: float = 2.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmaxes(rows: Tensor) -> list[list[float]]:
    powers = [[math.exp(z) for z in row] for row in rows.tolist()]
    return [[x / sum(row) for x in row] for row in powers]


def entropy(p: list[float]) -> float:
    return -sum(x * math.log(x) for x in p)


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


@pytest.mark.parametrize("network", ["conv", "vit"])
@pytest.mark.parametrize("name", NAMES)
def test_only_scales_and_shifts_learn_and_all_else_is_bit_identical(name: str, network: str) -> None:
    method = small(name, classifier(network), **({"margin": 2.0, "similar": 1.0} if name == "eata" else {}))
    before = copy.deepcopy(method.classifier.state_dict())
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    for seed in range(2):
        method(batch(seed=seed), 0.5).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        norm.commit(norm.layers(method))
        method.after_step(0.5)
    after = method.classifier.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    kinds = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)
    affine = {
        f"{path}.{part}"
        for path, layer in method.classifier.named_modules()
        if isinstance(layer, kinds)
        for part in ("weight", "bias")
    }
    assert moved and moved <= affine, moved - affine
    assert len(method.learned) == len(affine) == len(affine_parameters(method.classifier))
    assert {p for p in method.parameters() if p.requires_grad} == set(method.learned)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_prediction_is_adabns_of_the_first_batch(name: str) -> None:
    """Before any update: the network in evaluation, with the statistics that AdaBN finds on this batch."""
    plain_logits: dict[str, Any] = {"prior_correction": False} if name == "roid" else {}
    method, known = small(name, **plain_logits), batch()
    kept = method(known, 0.0).kept
    plain = AdaBN(classifier())
    counts = dict[nn.Module, int]()

    def count(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        counts[layer] = inputs[0].numel() // inputs[0].shape[1]

    for layer in plain.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(count)
    plain.conclude([known.target.images])
    for layer, n in counts.items():  # AdaBN keeps unbiased variances; a batch is normalised by the biased one
        assert isinstance(layer, nn.BatchNorm2d) and layer.running_var is not None
        layer.running_var *= (n - 1) / n
    torch.testing.assert_close(kept["logits"], plain.eval().classifier(known.target.images).detach())
    assert kept["index"].tolist() == list(range(IMAGES)) and not kept["logits"].requires_grad


def test_dropout_sleeps_while_batchnorm_is_awake() -> None:
    method = small("tent")
    first, second = (method(batch(), 0.0).loss for _ in range(2))
    assert torch.equal(first, second) and method.training
    assert not method.eval().training and not any(layer.training for layer in method.modules())


def test_tents_loss_is_the_mean_entropy() -> None:
    method = small("tent")
    step = method(batch(), 0.5)
    rows = softmaxes(step.kept["logits"])
    assert step.loss.item() == pytest.approx(sum(map(entropy, rows)) / IMAGES)
    assert entropy_of(torch.tensor([[1e3, 0.0, -1e3]])).item() == 0.0


def slow_eata(method: Any, rows: list[list[float]], mean: list[float] | None) -> tuple[float, list[float] | None, int]:
    """Loss without the penalty, the new running mean, and the number of chosen images."""
    chosen = [
        p
        for p in rows
        if entropy(p) < 0.8 * math.log(CLASSES) and (mean is None or abs(cosine(p, mean)) < method.similar)
    ]
    if not chosen:
        return 0.0, mean, 0
    loss = sum(math.exp(0.8 * math.log(CLASSES) - entropy(p)) * entropy(p) for p in chosen) / len(chosen)
    now = [sum(p[k] for p in chosen) / len(chosen) for k in range(CLASSES)]
    mean = now if mean is None else [0.9 * a + 0.1 * b for a, b in zip(mean, now, strict=True)]
    return loss, mean, len(chosen)


def test_eatas_loss_is_that_of_chosen_images() -> None:
    method = small("eata", margin=0.8, similar=0.8, fisher="none")
    mean: list[float] | None = None
    counts = []
    for seed in range(4):
        step = method(batch(seed=seed), 0.5)
        loss, mean, count = slow_eata(method, softmaxes(step.kept["logits"]), mean)
        counts.append(count)
        assert step.loss.item() == pytest.approx(loss)
        assert step.metrics["chosen"].item() == pytest.approx(count / IMAGES)
        method.after_step(0.5)
        assert mean is None or method.mean.tolist() == pytest.approx(mean)
    assert any(0 < count < IMAGES for count in counts), counts


def test_eata_makes_no_step_where_nothing_is_chosen() -> None:
    method = small("eata", margin=1e-6)
    assert method(batch(), 0.5).loss.item() == 0.0 and not method.started
    assert list(method.frozen(0.5)) == method.learned
    chooses = small("eata", margin=2.0, similar=1.0)
    chooses(batch(), 0.5)
    assert list(chooses.frozen(0.5)) == []


def test_eatas_importance_is_the_mean_squared_gradient_of_batches() -> None:
    method = small("eata", fisher_images=100)
    again, total = small("eata", fisher="none"), 0.0
    batches = images(100, 7).split(64)
    for part in batches:
        found = again.logits_of(part)
        loss = -found.log_softmax(1)[torch.arange(len(part)), found.argmax(1)].mean()
        gradients = torch.autograd.grad(loss, again.learned)
        total = total + torch.cat([g.flatten() for g in gradients]) ** 2
    torch.testing.assert_close(method.importance, total / len(batches))
    assert not again.importance.any() and len(batches) == 2
    # The penalty is 0 at the beginning, and pulls back from elsewhere.
    free = small("eata", fisher="none", margin=2.0, similar=1.0)
    held = small("eata", margin=2.0, similar=1.0, fisher=3.0, fisher_images=100)
    for made in (free, held):
        with torch.no_grad():
            made.learned[0] += 0.3
    gap = 3.0 * (held.importance[: held.learned[0].numel()] * 0.09).sum()
    torch.testing.assert_close(held(batch(), 0.5).loss - free(batch(), 0.5).loss, gap)
    with pytest.raises(UserError, match=r"method\.fisher: needs source images"):
        EATA(classifier()).begin(lambda count, size: [])


def slow_weights(rows: Tensor, mean: list[float], temperature: float) -> list[float]:
    p = softmaxes(rows)
    d, c = [1 - cosine(one, mean) for one in p], [-entropy(one) for one in p]
    d, c = ([(x - min(values)) / (max(values) - min(values)) for x in values] for values in (d, c))
    middle = sum(d) / len(d)
    return [math.exp(a * b / temperature) if a >= middle else 0.0 for a, b in zip(d, c, strict=True)]


def test_roids_parts_are_the_papers() -> None:
    first, second, mean = logits(), logits(seed=1), [0.1, 0.4, 0.2, 0.2, 0.1]
    found = image_weights(first, torch.tensor(mean, dtype=torch.float64), 1 / 3)
    assert found.tolist() == pytest.approx(slow_weights(first, mean, 1 / 3)) and 0 < int((found == 0).sum()) < 9
    p, q = softmaxes(first), softmaxes(second)
    clipped = [[min(x, 0.99) for x in row] for row in softmaxes(5.0 * first)]
    ratio = [-sum(x * math.log(x / (1 - x) + 1e-5) for x in row) for row in clipped]
    assert likelihood_ratio(5.0 * first).tolist() == pytest.approx(ratio)
    both = [
        -sum(0.5 * y * math.log(x) + 0.5 * x * math.log(y) for x, y in zip(a, b, strict=True))
        for a, b in zip(p, q, strict=True)
    ]
    assert symmetric_error(first, second).tolist() == pytest.approx(both)
    prior = smoothed_prior(torch.tensor(mean), 9)
    smooth = max(1 / 9, 1 / 5) / 0.4
    assert prior.tolist() == pytest.approx([(x + smooth) / (1 + 5 * smooth) for x in mean])
    assert prior.sum().item() == pytest.approx(1.0)


def test_roids_loss_prediction_and_averaged_weights() -> None:
    method = small("roid")
    plain = small("roid", consistency=False, prior_correction=False)
    step, raw = method(batch(), 0.5), plain(batch(), 0.5)
    rows = raw.kept["logits"]
    weights = torch.tensor(slow_weights(rows, [1 / CLASSES] * CLASSES, 1 / 3), dtype=torch.float64)
    assert raw.loss.item() == pytest.approx((weights * likelihood_ratio(rows)).mean().item())
    changed = method.logits_of(method.changed(batch().target)).detach()
    more = (weights * symmetric_error(changed, rows)).mean().item()
    assert step.loss.item() == pytest.approx(raw.loss.item() + more)
    mean = rows.softmax(1).mean(0)
    Method.after_step(plain, 0.5)
    torch.testing.assert_close(plain.mean, 0.9 * torch.full_like(mean, 1 / CLASSES) + 0.1 * mean)
    expected = (rows.softmax(1) * smoothed_prior(mean, IMAGES)).log()
    torch.testing.assert_close(step.kept["logits"], expected)
    before = plain.flat().detach()
    with torch.no_grad():
        for parameter in plain.learned:
            parameter += 1.0
    plain.after_step(0.5)
    torch.testing.assert_close(plain.flat().detach(), before + 0.99)


def test_a_changed_view_depends_on_the_position_alone() -> None:
    method, whole = small("roid"), batch().target
    view = method.changed(whole)
    part = Unlabelled(whole.images[5:8], Draws(0, torch.arange(5, 8)))
    torch.testing.assert_close(view[5:8], method.changed(part))
    assert view.shape == whole.images.shape and not torch.allclose(view, whole.images, atol=0.1)
    low, high = (method.changed(whole).amin(), method.changed(whole).amax())
    bound = max((1 - m) / s for m, s in zip(method.backbone.mean, method.backbone.std, strict=True))
    assert high <= bound + 1e-6 and low >= -bound - 1


def test_predictions_are_written_once() -> None:
    kept = OnlinePredictions(5, 2)
    kept.write(torch.tensor([3, 0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    kept.write(torch.tensor([4, 3]), torch.tensor([[5.0, 6.0], [7.0, 8.0]]))
    assert kept.logits.tolist() == [[3, 4], [0, 0], [0, 0], [1, 2], [5, 6]]
    assert kept.written.tolist() == [True, False, False, True, True]


def test_networks_without_scales_are_refused() -> None:
    made = classifier()
    made.requires_grad_(False)
    with pytest.raises(
        UserError, match=r"method: .* none that may change; take another backbone, or backbone\.freeze=none"
    ):
        ADAPT_METHODS["tent"](made, None)


def test_the_last_batch_begins_again() -> None:
    order = Order(10, 4, 0, "target", Given(torch.arange(9, -1, -1).numpy()), whole=True)
    assert order.steps_per_epoch == 3
    assert [order.indices(step).tolist() for step in range(3)] == [[9, 8, 7, 6], [5, 4, 3, 2], [1, 0, 9, 8]]
    assert [[n.tolist() for n in numbers[0]] for numbers in order.steps(2, 3)] == [[[1, 0, 9, 8], [8, 9, 10, 11]]]
    assert order.images_of(0).tolist() == list(range(9, -1, -1))
    shuffled = Order(10, 4, 0, "target", whole=True)
    seen = torch.cat([shuffled.indices(step) for step in range(3)])
    assert sorted(seen[:10].tolist()) == list(range(10)) and seen[10:].tolist() == seen[:2].tolist()


def test_images_are_found_by_content() -> None:
    found = places_of(torch.tensor([7, 3, 7]), torch.tensor([1, 7, 3, 7]))
    assert found is not None and found.tolist() == [1, 2, 3]
    assert places_of(torch.tensor([7, 9]), torch.tensor([1, 7, 3, 7])) is None
    assert places_of(torch.tensor([3, 3]), torch.tensor([1, 7, 3, 7])) is None


@pytest.mark.parametrize("name", ["gaussian_noise", "contrast"])
def test_a_corruption_depends_on_the_content_alone(name: str) -> None:
    plain, view = open_images("sklearn:digits?size=24#[:6]"), Evaluation(16)
    changed = corrupted(plain, Corruption(name, 3, "cifar"), view)
    again = corrupted(plain.select(torch.tensor([4, 1])), Corruption(name, 3, "cifar"), view)
    rows = changed.rows(torch.arange(6))
    assert rows is not None and rows.shape == (6, 3, 16, 16) and changed.uniform() is not None
    for i in range(6):
        cut = view.worker(plain.read(i))[None]
        expected = corrupt(cut, Draws(0, plain.keys()[i : i + 1], f"{name}/3/"), name, 3, "cifar")[0]
        assert torch.equal(changed.read(i), expected) and torch.equal(rows[i], expected)
    assert torch.equal(again.read(0), rows[4]) and torch.equal(again.read(1), rows[1])
    assert torch.equal(changed.keys(), plain.keys()) and changed.fingerprint() != plain.fingerprint()


DIGITS = "sklearn:digits?size=16"
CONFIG: dict[str, Any] = {
    "label_shift": {"resamples": 0},
    "data": {"source": f"{DIGITS}#[:60]", "target": f"{DIGITS}#[60:110]", "size": 16, "views": "none"},
    "backbone": {"name": "smallconv", "args": {"widths": [4, 4, 6, 8]}},
    "optim": {"name": "sgd", "lr": 0.05, "batch_size": 16, "duration": "1ep", "schedule": "constant"},
    "evaluate": {"images": 50},
    "run": {"log_every": 1, "workers": 0, "device": "cpu", "checkpoint": {"every": 2}},
}


def start(folder: Path, method: Any, *overrides: str) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "method": method}))
    return execute("adapt", str(path), [f"run.dir={folder / 'run'}", *overrides], quiet=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("trained")
    start(folder, "source_only", "optim.duration=20")
    return f"backbone.weights={folder / 'run'}"


def sums(run: Path) -> list[str]:
    names = ("backbone/backbone.safetensors", "classifier/head.safetensors", "candidates.safetensors")
    return [hashlib.sha256((run / "run" / name).read_bytes()).hexdigest() for name in names]


@pytest.mark.parametrize("name", NAMES)
def test_a_stopped_run_goes_on_to_the_same_bits(
    name: str, trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, the buffers of the method, and every prediction that was kept before the stop."""
    corrupt_it = "data.corrupt={name: contrast, severity: 2}"
    result = start(tmp_path / "a", name, trained, corrupt_it)
    assert result["steps"] == 4 and result["data"]["order"] == "shuffled"
    assert result["data"]["n"]["target"] == result["data"]["n"]["test.target"] == 50
    for key in ("online", "classifier"):
        assert 0.0 <= result["metrics"][f"target/{key}/accuracy"] <= 1.0
    assert "source/online/accuracy" not in result["metrics"]
    original = stage.fit

    def broken(method: Any, batches: Any, *arguments: Any, **options: Any) -> None:
        def some(step: int) -> Iterable[Any]:
            for number, micro in enumerate(batches(step), step):
                if number == 3:
                    raise KeyboardInterrupt
                yield micro

        original(method, some, *arguments, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(stage, "fit", broken)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "b", name, trained, corrupt_it)
    monkeypatch.setattr(stage, "fit", original)
    start(tmp_path / "b", name, trained, corrupt_it)
    assert sums(tmp_path / "a") == sums(tmp_path / "b")


def test_the_order_by_label_is_declared_and_changes_nothing_else(trained: str, tmp_path: Path) -> None:
    """With a rate of 0, each image's prediction still depends on its batch; the final classifier does not depend on the order."""
    results = {
        order: start(tmp_path / order, "tent", trained, f"data.order={order}", "optim.lr=0")
        for order in ("sequential", "sorted")
    }
    assert "labels were read to order its stream" in results["sorted"]["data"]["order"]
    first, second = (load_file(tmp_path / order / "run" / "candidates.safetensors") for order in results)
    assert torch.equal(first["target/keys"], second["target/keys"])
    assert torch.equal(first["target/classifier/logits"], second["target/classifier/logits"])
    assert not torch.equal(first["target/online/logits"], second["target/online/logits"])
    split = [result["data"]["split"] for result in results.values()]
    assert split[0] == split[1] and results["sorted"]["validators"] == results["sequential"]["validators"]


def floats(network: nn.Module) -> dict[str, Tensor]:
    """Weights and statistics, without the number of batches that plain BatchNorms count."""
    return {name: value.clone() for name, value in network.state_dict().items() if value.is_floating_point()}


def test_the_exported_classifier_has_the_statistics_of_the_whole_target(trained: str, tmp_path: Path) -> None:
    """With a rate of 0 all else is as it was: the export is what AdaBN makes of the classifier that the pass began with."""
    start(tmp_path, "tent", trained, "optim.lr=0")
    runs = [load_trained(run) for run in (Path(trained.partition("=")[2]), tmp_path / "run")]
    begun, found = (run.classifier for run in runs)
    assert begun is not None and found is not None
    target, view = open_images(CONFIG["data"]["target"]), runs[1].view
    whole = view(torch.stack([view.worker(target.read(i)) for i in range(50)]))
    before = floats(begun)
    estimate_statistics(begun, [whole])
    torch.testing.assert_close(floats(found), floats(begun))
    moved = {name for name, value in floats(begun).items() if not torch.allclose(value, before[name], rtol=0.01)}
    assert moved and all("running_" in name for name in moved)


def test_what_a_pass_cannot_have_is_one_sentence(trained: str, tmp_path: Path) -> None:
    for override, message in (
        ("data.views=digits", r"data\.views: tent predicts the very pictures .* data\.views=none"),
        ("optim.duration=2", r"optim\.duration: tent goes over the target once, in 4 steps of 16 images; use 1ep"),
        ("method.mic={}", r"method\.mic: .* tent goes over the target once; use method\.mic=null"),
        ("data.decode=scaled", r"data\.decode: .* use full"),
        ("run.accumulate=2", r"run\.accumulate"),
        ("data.corrupt={name: contrast, severity: 6}", r"data\.corrupt\.severity: expected 1 to 5, got 6"),
    ):
        with pytest.raises(UserError, match=message):
            start(tmp_path / "a", "tent", trained, override)
    with pytest.raises(
        UserError, match=r"data\.order: sorted is for methods that go over the target once \(tent, eata, roid\)"
    ):
        start(tmp_path / "b", "source_only", "data.order=sorted")


def on_five_classes(name: str, **keys: Any) -> Any:
    """The method around a network of five classes, for the drawn logits."""
    torch.manual_seed(0)
    return small(name, Classifier(backbone("conv"), [str(k) for k in range(5)]).double(), **keys)


NOTHING = Unlabelled(torch.zeros(12, 3, SIZE, SIZE, dtype=torch.float64), Draws(0, torch.arange(12)), torch.arange(12))


def test_tent_is_the_authors_value() -> None:
    """e9e926a forward_and_adapt: loss, norm of the gradient."""
    found = drawn()
    loss, _ = on_five_classes("tent").adapt(found.logits[1], NOTHING)
    (norm,) = gradient_norms(loss, found.logits)
    assert (loss.item(), norm) == pytest.approx((0.804226269732, 0.089478555338), rel=PEERS)


def test_eata_is_the_authors_value() -> None:
    """f739b36 forward_and_adapt_eata at E0 = 0.8 ln 5 and a cosine of 0.6, on three batches: loss, norm, how many are chosen, their mean.

    Then with the penalty of 2000 times an importance of 0.001, 0.1 away from the weights of the beginning.
    """
    found = drawn()
    batches = [found.logits[1].detach(), found.logits[0].detach(), found.adversary[1].detach()]
    right = [
        (1.062025444353, 0.184262073628, 10, 0.0346372539, 2.262025444353, 3.103860904064),
        (1.257459523099, 0.291622404061, 5, 0.0623609116, 2.457459523099, 3.112080273153),
        (1.328471581214, 0.298401397169, 3, 0.0833116910, 2.528471581214, 3.112722826374),
    ]
    free, held = (on_five_classes("eata", margin=0.8, similar=0.6, fisher=fisher) for fisher in ("none", 2000.0))
    for rows, (value, length, chosen, mean, with_penalty, its_length) in zip(batches, right, strict=True):
        leaf = rows.clone().requires_grad_()
        loss, watched = free.adapt(leaf, NOTHING)
        (norm,) = gradient_norms(loss, leaf)
        assert (loss.item(), norm) == pytest.approx((value, length), rel=PEERS)
        assert watched["chosen"].item() == pytest.approx(chosen / 12)
        free.after_step(0.5)
        assert free.mean[0].item() == pytest.approx(mean, abs=PEERS)
        held.learned, held.importance, held.anchor = (
            [leaf],
            torch.full((60,), 1e-3, dtype=torch.float64),
            (rows - 0.1).flatten(),
        )
        loss, _ = held.adapt(leaf, NOTHING)
        held.after_step(0.5)
        (norm,) = gradient_norms(loss, leaf)
        assert (loss.item(), norm) == pytest.approx((with_penalty, its_length), rel=PEERS)


@pytest.mark.parametrize(
    ("consistency", "right"),
    [
        (False, [-13.278698818446, 4.048811685028]),
        (True, [1.303855078141, 3.518275265086, 2.475520937013]),
    ],
)
def test_roid_is_the_authors_value(consistency: bool, right: list[float]) -> None:
    """8b2ed63 ROID.loss_calculation, where the changed view has the logits `adversary`; its running mean, and its smoothed prior."""
    found = drawn()
    method = on_five_classes("roid", consistency=consistency)
    method.changed, method.logits_of = lambda target: target.images, lambda images: found.adversary[1]
    loss, _ = method.adapt(found.logits[1], NOTHING)
    norms = gradient_norms(loss, found.logits, *([found.adversary] if consistency else []))
    assert [loss.item(), *norms] == pytest.approx(right, rel=PEERS)
    mean = [0.185390654618, 0.208580249789, 0.207098061216, 0.208219920369, 0.190711114008]
    Method.after_step(method, 0.5)
    assert method.mean.tolist() == pytest.approx(mean, abs=PEERS)
    prior = smoothed_prior(found.logits[1].detach().softmax(1).mean(0), 12)
    assert prior.tolist() == pytest.approx(
        [0.167526992601, 0.219071800112, 0.215777256841, 0.218270875798, 0.179353074648], rel=PEERS
    )


def test_roids_changed_view_equals_a_slow_version() -> None:
    """Pixel by pixel: brightness, contrast about the mean, gamma, the affine map with repeated edges, mirroring; in float64."""
    method = small("roid")
    model, target = method.backbone, batch(6).target
    draws = target.draws.stream("roid")
    mirrored = draws.bernoulli("flip", 0.5).tolist()
    assert 0 < sum(mirrored) < 6
    for n in range(6):

        def one(name: str, low: float, high: float, n: int = n) -> float:
            return float(draws.uniform(name, low=low, high=high)[n])

        def kept(x: float) -> float:
            return min(max(x, 0.0), 1.0)

        mean, std = model.mean, model.std
        raw = target.images[n].tolist()
        pixels = [[[kept(x * std[c] + mean[c]) for x in row] for row in raw[c]] for c in range(3)]
        bright = one("brightness", 0.6, 1.4)
        pixels = [[[kept(x * bright) for x in row] for row in channel] for channel in pixels]
        middle = sum(x for channel in pixels for row in channel for x in row) / (3 * SIZE * SIZE)
        contrast, gamma = one("contrast", 0.7, 1.3), one("gamma", 0.7, 1.3)
        pixels = [
            [[max(kept(middle + (x - middle) * contrast), 1e-6) ** gamma for x in row] for row in channel]
            for channel in pixels
        ]
        angle, zoom = math.radians(one("rotate", -15.0, 15.0)), math.exp(one("zoom", math.log(0.9), math.log(1.1)))
        across, down = (float(x) for x in draws.uniform("shift", 2, low=-1 / 8, high=1 / 8)[n])

        def at(c: int, i: int, j: int, pixels: list[list[list[float]]] = pixels) -> float:
            return pixels[c][min(max(i, 0), SIZE - 1)][min(max(j, 0), SIZE - 1)]

        view = method.changed(target)[n]
        for i in range(0, SIZE, 5):
            for j in range(0, SIZE, 3):
                column = SIZE - 1 - j if mirrored[n] else j
                u, v = ((2 * k + 1) / SIZE - 1 for k in (column, i))
                x = (math.cos(angle) * u - math.sin(angle) * v) / zoom + across
                y = (math.sin(angle) * u + math.cos(angle) * v) / zoom + down
                # Beyond the edges a place is that of the edge.
                s, t = (min(max(((k + 1) * SIZE - 1) / 2, 0.0), SIZE - 1.0) for k in (x, y))
                left, top = math.floor(s), math.floor(t)
                for c in range(3):
                    value = sum(
                        abs((1 - dx) - (s - left)) * abs((1 - dy) - (t - top)) * at(c, top + dy, left + dx)
                        for dx in (0, 1)
                        for dy in (0, 1)
                    )
                    expected = (kept(value) - mean[c]) / std[c]
                    assert view[c, i, j].item() == pytest.approx(expected, abs=2e-4), (n, c, i, j)
