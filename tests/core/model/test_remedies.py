"""Weights that don't fit: the sentence names the command that works, and that command works."""

import re
import shlex
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from rootstock.core.errors import UserError
from rootstock.core.model import hub
from rootstock.core.model.backbone import OWN, create
from rootstock.finetune.baselines.registry import BASELINES
from rootstock.launch import importing
from rootstock.launch.importing import import_weights
from rootstock.tests.core.convert import cases

VIT: dict[str, Any] = {"patch_size": 4, "embed_dim": 192, "depth": 1, "num_heads": 3}
RESNET: dict[str, Any] = {"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1]}


@pytest.mark.parametrize("file", ["moco.pth.tar", "vit.safetensors", "resnet.safetensors"])
def test_files_of_others_point_to_the_import_that_works(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if file == "moco.pth.tar":
        monkeypatch.setattr(importing, "read_weights", cases.opened)
        state = {f"module.encoder_q.{key}": t for key, t in cases.resnet().state_dict().items()}
        torch.save({"state_dict": state}, file)
        options: dict[str, Any] = {"name": "resnet18"}
    elif file == "resnet.safetensors":
        save_file({f"module.encoder.{key}": t for key, t in cases.resnet().state_dict().items()}, file)
        options = {"name": "resnet18", "args": {"layers": [1, 1, 1, 1]}}
    else:
        vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, **VIT)
        save_file({f"module.{key}": t for key, t in vit.state_dict().items()}, file)
        options = {"name": "vit_tiny_patch16_224", "args": VIT}
    with pytest.raises(UserError) as caught:
        create(32, weights=file, **options)
    (command,) = re.findall(r"`(rootstock import .*?)`", str(caught.value))
    _, verb, path, *rest = shlex.split(command)
    given = list(zip(rest[::2], rest[1::2], strict=True))
    run = dict(given)["--to"]
    assert (verb, path) == ("import", file) and f"then set backbone.weights={run} backbone.name=null" in str(
        caught.value
    )
    arguments = [value for option, value in given if option == "--args"]
    assert import_weights(Path(path), "auto", Path(run), name=dict(given).get("--name"), arguments=arguments) == 0
    assert create(32, weights=run).spec["name"] == options["name"]


@pytest.mark.parametrize(("there", "here"), [(5, 3), (3, 5), (1, 3)])
@pytest.mark.parametrize(("name", "args"), [("resnet18", RESNET), ("vit_tiny_patch16_224", VIT)])
def test_weights_for_other_channels(there: int, here: int, name: str, args: dict[str, Any], tmp_path: Path) -> None:
    made = create(32, there, name=name, args=args)
    made.export(tmp_path)
    save_file(made.model.state_dict(), tmp_path / "w.safetensors")
    for weights, again in {tmp_path: {}, tmp_path / "w.safetensors": {"name": name, "args": args}}.items():
        with pytest.raises(
            UserError,
            match=rf"safetensors is for pictures of {there} channels, and these have {here}; give pictures of {there} channels",
        ):
            create(32, here, weights=str(weights), **again)


def test_timms_weights_offline_cost_no_minute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "reachable", lambda address: False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits to try again"))
    with pytest.raises(
        UserError,
        match=r"timm's weights for resnet18 cannot be loaded .* where there is a network, `python -c .*HF_HOME",
    ):
        create(32, name="resnet18", weights="timm")
    assert not constants.HF_HUB_OFFLINE


def test_who_answers_is_reachable_whatever_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(error: Exception) -> Any:
        def urlopen(request: Any, timeout: float) -> Any:
            raise error

        return urlopen

    for error, expected in {
        urllib.error.HTTPError("u", 403, "no", None, None): True,  # pyright: ignore[reportArgumentType]
        urllib.error.URLError(ssl.SSLError("who?")): True,
        urllib.error.URLError(OSError("Name or service not known")): False,
        TimeoutError(): False,
        ValueError("unknown url type"): False,
    }.items():
        monkeypatch.setattr(urllib.request, "urlopen", raising(error))
        assert hub.reachable("https://hub.invalid", 2.0) is expected


@pytest.mark.parametrize(
    ("size", "cell", "fitting"),
    [(20, 8, "4 or 5 or 10"), (30, 7, "6 or 10 or 15"), (1, 1, "a part of a larger data.size")],
)
def test_hog_names_the_key_and_cells_that_fit(size: int, cell: int, fitting: str) -> None:
    with pytest.raises(
        UserError,
        match=rf"^backbone\.args\.cell: .*cells of {cell} px don't fit images of {size} px; give cell as {fitting}$",
    ):
        create(size, 3, BASELINES, name="hog", args={"cell": cell})
    with pytest.raises(UserError, match=r"^backbone\.args\.orientations: expected 2 or more, got 1; 9 is usual$"):
        create(16, 3, BASELINES, name="hog", args={"orientations": 1})


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("smallconv", {"widths": [0, 8, 8, 8]}), ("smallconv", {"widths": [-1, 8, 8, 8]}), ("smallconv", {"widths": "abcd"}),
        ("smallconv", {"widths": None}), ("resnet18", {"layers": "x"}), ("resnet18", {"block": 3}),
        ("vit_tiny_patch16_224", {"num_heads": 0}), ("vit_tiny_patch16_224", {"patch_size": 0}), ("convnext_atto", {"depths": {}}),
        ("hog", {"bins": 3}), ("pixels", {"bins": 3}), ("resnet18", {"norm_layer": "no-such-norm"}),
    ],
)  # fmt: skip
def test_arguments_that_build_no_network(name: str, args: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^backbone") as caught:
        create(32, 3, {**OWN, **BASELINES}, name=name, args=args)
    assert "\n" not in str(caught.value)
