"""`rootstock export`: what timm and model.py make of the folder is the run's network, to the last bit; or nothing is kept."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torchvision.transforms import CenterCrop, Resize

from rootstock.core.evaluate.trained import load_trained
from rootstock.core.images.open import open_images
from rootstock.core.model.backbone import create
from rootstock.core.model.classifier import Classifier
from rootstock.core.model.heads import Structure
from rootstock.launch.outputs import network as plain
from rootstock.launch.outputs.checking import shown_pictures
from rootstock.launch.outputs.export import export_network
from rootstock.tests.core.model.test_backbone import RESNET, TINY
from rootstock.tests.launch.outputs.conftest import Runs, moved

Command = Callable[..., subprocess.CompletedProcess[str]]
OURS = ("smallconv", "lenet", "cifar_resnet")
HEADS = {
    "linear": Structure(),
    "unknown": Structure(extra=1),
    "weightnorm": Structure(head="weightnorm"),
    "cosine": Structure(head="cosine"),
    "bottleneck": Structure(bottleneck=5),
    "bottleneck cosine": Structure(bottleneck=5, head="cosine", extra=1),
}


def made(
    name: str,
    size: int,
    options: dict[str, Any],
    folder: Path,
    structure: Structure | None = None,
    classes: tuple[str, ...] = ("cat", "dog", "owl"),
) -> Path:
    """A run with such a network, whose statistics are not the initial ones."""
    torch.manual_seed(0)
    backbone = create(size, name=name, **options)
    whole = backbone if structure is None else Classifier(backbone, classes, structure=structure)
    moved(whole, torch.randn(4, 3, size, size))
    whole.export(folder)
    return folder


def by_script(folder: Path, **how: Any) -> Any:
    """What model.py of the folder makes of it."""
    names: dict[str, Any] = {"__file__": str(folder / "model.py"), "__name__": "model"}
    exec(compile((folder / "model.py").read_text(), "model.py", "exec"), names)
    return names["load"](folder, **how)


@pytest.mark.parametrize(("name", "size", "options"), TINY, ids=[f"{n}-{o.get('pooling', '')}" for n, _, o in TINY])
def test_every_family_is_the_same_to_the_last_bit(
    name: str, size: int, options: dict[str, Any], runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, to = made(name, size, options, tmp_path / "run"), tmp_path / "exported"
    assert export_network(run, to, images=[runs.pictures]) == 0
    said = capsys.readouterr()
    assert said.out == f"{to}\n" and "features of model.py: equal to the last bit on 7 pictures" in said.err
    trained = load_trained(run)
    shown = shown_pictures(trained, [runs.pictures])
    with torch.no_grad():
        assert torch.equal(by_script(to)(shown.inputs), trained.backbone(shown.inputs))
        if name in OURS or options.get("stem"):
            assert "timm.create_model` cannot build it" in (to / "README.md").read_text()
            with pytest.raises((KeyError, RuntimeError)):  # loudly
                timm.create_model(f"local-dir:{to}", pretrained=True)
        else:
            model: Any = timm.create_model(f"local-dir:{to}", pretrained=True).eval()
            assert torch.equal(model(shown.inputs), trained.backbone(shown.inputs))
            assert model.pretrained_cfg["mean"] == list(trained.backbone.mean)
            assert model.pretrained_cfg["input_size"] == (3, size, size)
    assert "rootstock" not in (to / "model.py").read_text().replace('["rootstock"]', "")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "exported"}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["resnet10t", "smallconv"])
def test_every_head_gives_its_logits_to_the_last_bit(name: str, head: str, runs: Runs, tmp_path: Path) -> None:
    options = {"args": RESNET} if name == "resnet10t" else {}
    run, to = made(name, 16, options, tmp_path / "run", HEADS[head]), tmp_path / "exported"
    export_network(run, to, images=[runs.pictures])
    trained = load_trained(run)
    shown = shown_pictures(trained, [runs.pictures])
    assert trained.classifier is not None and shown.logits is not None
    with torch.no_grad():
        assert torch.equal(by_script(to)(shown.inputs), shown.logits)
        assert torch.equal(by_script(to, head=False)(shown.inputs), shown.features)
        if name == "smallconv":
            return
        model = timm.create_model(f"local-dir:{to}", pretrained=True).eval()
        features = timm.create_model(f"local-dir:{to}", pretrained=True, num_classes=0).eval()
        within = head in ("linear", "unknown", "weightnorm")  # one linear layer: timm's own classifier holds it
        assert torch.equal(model(shown.inputs), shown.logits if within else shown.features)
        assert torch.equal(features(shown.inputs), shown.features)
    config = json.loads((to / "config.json").read_text())
    assert config.get("label_names") == (trained.classifier.outputs if within else None)
    assert (to / "head.safetensors").exists() != within


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [case for case in TINY if case[0] not in OURS and "stem" not in case[2]],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_classifier_of_every_family_of_timm_holds_a_linear_head(
    name: str, size: int, options: dict[str, Any], runs: Runs, tmp_path: Path
) -> None:
    run = made(name, size, options, tmp_path / "run", Structure())
    export_network(run, tmp_path / "exported", images=[runs.pictures])
    shown = shown_pictures(load_trained(run), [runs.pictures])
    model = timm.create_model(f"local-dir:{tmp_path / 'exported'}", pretrained=True).eval()
    with torch.no_grad():
        assert shown.logits is not None and torch.equal(model(shown.inputs), shown.logits)


def prepared(picture: torch.Tensor, told: dict[str, Any]) -> torch.Tensor:
    """What `rootstock.preprocessing` of config.json says, in plain PyTorch: uint8 [C, H, W] -> float [C, S, S]."""
    size, (height, width) = told["size"], picture.shape[1:]
    assert told["of_size_already"] == "taken whole" and told["longer_side"] == "in proportion, rounded down"
    assert told["crop_from"] == "round((side - size) / 2), halves to the even number" and told["crop"] == "center"
    assert told["resized_values"] == "rounded to whole numbers" and told["range"] == [0.0, 1.0]
    if (height, width) != (size, size):
        sides = [int(told["resize"] * side / min(height, width)) for side in (height, width)]
        how = {"mode": told["interpolation"], "antialias": told["antialias"]}
        picture = torch.nn.functional.interpolate(picture[None], sides, **how)[0]
        top, left = (round((side - size) / 2) for side in sides)
        picture = picture[:, top : top + size, left : left + size]
    mean, std = (torch.tensor(told[key])[:, None, None] for key in ("mean", "std"))
    return (picture.float() / 255 - mean) / std


@pytest.mark.parametrize("shown", ["crop: 0.8, interpolation: bicubic", "resize: 19", "resize: 21", "crop: 1.0"])
def test_the_config_says_how_pictures_are_prepared(shown: str, runs: Runs, tmp_path: Path) -> None:
    options = {"args": RESNET, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
    run, to = made("resnet10t", 16, options, tmp_path / "run", Structure()), tmp_path / "exported"
    (run / "config.yaml").write_text(f"verb: finetune\ndata: {{size: 16, {shown}}}\n")
    export_network(run, to, images=[runs.pictures])
    trained = load_trained(run)
    view, told = trained.view, json.loads((to / "config.json").read_text())["rootstock"]["preprocessing"]
    random = torch.Generator().manual_seed(0)
    for height, width in ((16, 16), (40, 40), (33, 57), (57, 33), (16, 31), (9, 12), (21, 24)):
        picture = torch.randint(256, (3, height, width), generator=random, dtype=torch.uint8)
        torch.testing.assert_close(prepared(picture, told), view(view.worker(picture)[None])[0], rtol=0, atol=1e-6)
    # timm alone, of the folder alone.
    model = timm.create_model(f"local-dir:{to}", pretrained=True, num_classes=0).eval()
    transform: Any = create_transform(**resolve_model_data_config(model))
    resize, crop, _, normalise = transform.transforms
    assert (resize.size, resize.interpolation.value) == (view.short, view.interpolation)
    assert type(resize) is Resize and type(crop) is CenterCrop and tuple(crop.size) == (16, 16)
    assert (normalise.mean.tolist(), normalise.std.tolist()) == (
        torch.tensor(view.mean).tolist(),
        torch.tensor(view.std).tolist(),
    )
    images = open_images(runs.pictures)
    assert tuple(images.read(0).shape[1:]) != (16, 16)
    least = 1.0
    for i in range(len(images)):
        pixels = transform(Image.fromarray(images.read(i).permute(1, 2, 0).numpy()))
        with torch.no_grad():
            own = trained.backbone(view(view.worker(images.read(i))[None]))
            least = min(least, float(torch.cosine_similarity(model(pixels[None]).double(), own.double())))
    card = (to / "README.md").read_text()
    shown_least = float(card.partition("those of the run is at least ")[2].split()[0])
    assert 0 <= least - shown_least < 2e-6 and least > 0.99


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(("name", "options"), [("resnet10t", {"args": RESNET}), ("smallconv", {})])
def test_the_recipe_has_a_mean_and_std_of_each_channel(
    name: str, options: dict[str, Any], deep: bool, tmp_path: Path
) -> None:
    """Of five bands, from raw pixels by what is written, in plain PyTorch; timm's transform of colours isn't shown."""
    random, to = np.random.default_rng(0), tmp_path / "exported"
    pixels = random.integers(0, 65536 if deep else 256, (6, 16, 16, 5)).astype(np.uint16 if deep else np.uint8)
    np.savez(tmp_path / "bands.npz", x=pixels)
    torch.manual_seed(0)
    backbone = create(16, 5, name=name, **options)
    moved(backbone, torch.randn(4, 5, 16, 16))
    backbone.export(tmp_path / "run")
    export_network(tmp_path / "run", to, images=[f"npz:{tmp_path}/bands.npz?layout=NHWC"])
    config, card = json.loads((to / "config.json").read_text()), (to / "README.md").read_text()
    told = config["rootstock"]["preprocessing"]
    assert told["mean"] == [*backbone.mean, *backbone.mean[:2]] and told["std"] == [*backbone.std, *backbone.std[:2]]
    assert "create_transform" not in card and f"with mean {told['mean']}" in card
    largest = 65535 if deep else 255
    assert str(largest) in told["divided_by"]
    mean, std = (torch.tensor(told[key])[:, None, None] for key in ("mean", "std"))
    inputs = (torch.from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2).contiguous() / largest - mean) / std
    trained = load_trained(tmp_path / "run")
    images = open_images(f"npz:{tmp_path}/bands.npz?layout=NHWC")
    own = trained.view(torch.stack([trained.view.worker(images.read(i)) for i in range(6)]))
    with torch.no_grad():
        assert torch.equal(by_script(to)(inputs), trained.backbone(own))
        if name == "resnet10t":
            assert config["pretrained_cfg"]["mean"] == told["mean"] and config["pretrained_cfg"]["std"] == told["std"]
            assert "timm has no transform for pictures of 5 channels" in card
            assert torch.equal(
                timm.create_model(f"local-dir:{to}", pretrained=True).eval()(inputs), trained.backbone(own)
            )


def test_timm_resizes_to_the_very_side_of_the_run() -> None:
    """Of size / short in floats, timm makes one pixel less here and there."""
    for size in (1, 16, 96, 224, 299):
        for short in range(size, 100 * size if size < 20 else 5 * size):
            part = plain.crop_share(size, short)
            assert math.floor(size / part) == short and math.floor(size / math.nextafter(part, 2.0)) < short
    assert math.floor(96 / (96 / 118)) == 117 and plain.crop_share(96, 118) == pytest.approx(96 / 118)
    assert plain.crop_share(224, 224) == 1.0


@pytest.mark.slow
def test_it_loads_in_processes_that_know_no_rootstock(runs: Runs, tmp_path: Path) -> None:
    """As README.md of the folder says it: SimCLR's stem, a bottleneck, and a network of ours."""
    cases = {
        "stem": made("resnet10t", 16, {"stem": "small", "args": RESNET}, tmp_path / "r1"),
        "bottleneck": made("resnet10t", 16, {"args": RESNET}, tmp_path / "r2", HEADS["bottleneck cosine"]),
        "ours": made("smallconv", 16, {}, tmp_path / "r3", HEADS["bottleneck"]),
    }
    expected = {}
    for name, run in cases.items():
        export_network(run, tmp_path / name, images=[runs.pictures])
        shown = shown_pictures(load_trained(run), [runs.pictures])
        save_file({"x": shown.inputs}, tmp_path / f"{name}.safetensors")
        expected[name] = shown.features if shown.logits is None else shown.logits
    code = f"""
import sys, torch
from safetensors.torch import load_file, save_file
for name in {list(cases)}:
    sys.path.insert(0, name)
    from model import load
    with torch.no_grad():
        found = load()(load_file(f"{{name}}.safetensors")["x"])
    save_file({{"x": found}}, f"{{name}}-found.safetensors")
    del sys.path[0], sys.modules["model"]
assert not [name for name in sys.modules if name.startswith("rootstock")]
"""
    environment = {"PATH": "", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, check=True, env=environment)
    for name, logits in expected.items():
        assert torch.equal(load_file(tmp_path / f"{name}-found.safetensors")["x"], logits), name


def test_what_differs_is_not_kept(
    runs: Runs, rootstock: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = plain.write_tensors

    def moved_a_little(path: Path, tensors: dict[str, torch.Tensor], metadata: Any) -> None:
        write(path, {name: x * 1.01 if x.is_floating_point() else x for name, x in tensors.items()}, metadata)

    monkeypatch.setattr(plain, "write_tensors", moved_a_little)
    to = tmp_path / "exported"
    done = rootstock("export", str(runs.pretrained), "--to", str(to), "--images", runs.pictures)
    assert done.returncode == 1 and "more than rounding" in done.stderr and "nothing is written" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_timm_without_local_dir_is_said(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(timm.models._hub, "load_model_config_from_path")
    run = made("resnet10t", 16, {"args": RESNET}, tmp_path / "run")
    export_network(run, tmp_path / "exported", images=[runs.pictures])
    assert f"timm {timm.__version__} opens no folders" in capsys.readouterr().err
    assert (tmp_path / "exported" / "config.json").exists()


def test_the_card_says_what_the_run_recorded(runs: Runs, tmp_path: Path, rootstock: Command) -> None:
    run = tmp_path / "run"
    backbone = create(16, name="smallconv")
    backbone.provenance = [
        {"task": "pretrain", "method": "simclr", "steps": 3, "seed": 5, "selection": "last",
         "data": {"fingerprint": "f1f2", "split": {"train": "abcd"}, "n": {"train": 9}}}
    ]  # fmt: skip
    backbone.seen = {"pretrain": torch.arange(9)}
    backbone.export(run)
    result = {
        "task": "pretrain", "seed": 5, "selection": "last", "seen_unlabelled": {"pretrain": 2}, "data": {"n": {"test": 4}},
        "metrics": {"test/knn/accuracy": 0.75, "test/knn/mcc": 0.5}, "intervals": {"test/knn/accuracy": [0.5, 0.9]},
    }  # fmt: skip
    (run / "result.json").write_text(json.dumps(result))
    (run / "config.yaml").write_text(
        f"verb: pretrain\ndata: {{train: '{runs.pictures}', size: 16, crop: 0.5}}\nseed: 5\n"
    )
    words = ("export", str(run), "--to", str(tmp_path / "exported"), "--licence", "cc-by-4.0")
    done = rootstock(*words)  # compared on the run's own pictures
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "exported" / "README.md").read_text()
    told = ModelCard(card).data.to_dict()  # as the Hub reads it
    assert (told["license"], told["pipeline_tag"]) == ("cc-by-4.0", "image-feature-extraction")
    header: Any = ModelCard(card).data
    (shown,) = header.eval_results
    assert (shown.metric_type, shown.metric_value, shown.metric_name) == ("accuracy", 0.75, "accuracy (knn)")
    assert (shown.task_type, shown.dataset_name) == ("image-feature-extraction", "test: test")
    for sentence in (
        "| test/knn/accuracy | 0.7500 | 0.5000 to 0.9000 |",
        "result.json has 1 more",
        "| pretrain | simclr | 3 | 5 | last | train 9 | f1f2 |",
        "- pretrain/train: `abcd`",
        "- 9 different pictures without labels, by pretrain",
        "seen in training without labels: pretrain 2",
        "resized to 32 px (bilinear, antialiased, rounded to whole numbers, as `torch.nn.functional.interpolate(",
        f"on pictures of `{runs.pictures}`",
        "`rootstock pretrain config.yaml`",
        "Of the weights: `cc-by-4.0`",
    ):
        assert sentence in card, sentence
    assert rootstock("verify", str(tmp_path / "exported")).returncode == 0
    assert rootstock(*words).returncode == 2  # the folder is there


def test_without_pictures_it_says_which_option(runs: Runs, rootstock: Command, tmp_path: Path) -> None:
    done = rootstock("export", str(runs.adapted), "--to", str(tmp_path / "exported"))
    assert done.returncode == 2 and "give some: --images URI" in done.stderr
    (run := tmp_path / "run").mkdir()
    create(16, name="smallconv").export(run)
    (run / "config.yaml").write_text("verb: pretrain\ndata: {train: 'folder:/nowhere', size: 16}\n")
    done = rootstock("export", str(run), "--to", str(tmp_path / "exported"))
    assert done.returncode == 2 and "/nowhere" in done.stderr and "--images URI" in done.stderr
    assert not (tmp_path / "exported").exists()
