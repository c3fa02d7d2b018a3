"""Published weights: each project's file gives the features that the project's own network computes, or one sentence."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rootstock.core.convert import load
from rootstock.core.convert.adopt import IMAGENET_MEAN, IMAGENET_STD, adopt
from rootstock.core.convert.file import Contents, Limits, read_weights
from rootstock.core.convert.names import Encoder, recognise
from rootstock.core.convert.shapes import architecture
from rootstock.core.errors import UserError
from rootstock.core.model.backbone import create
from rootstock.tests.core.convert import cases
from rootstock.tests.core.convert.cases import opened


def contents(tree: Any, tmp_path: Path) -> Contents:
    torch.save(tree, tmp_path / "file.pth")
    return opened(tmp_path / "file.pth")


@pytest.mark.parametrize("name", cases.CASES)
def test_an_import_has_the_features_of_the_projects_own_network(name: str, tmp_path: Path) -> None:
    case = cases.save(name, tmp_path / "weights.pth")
    found = opened(tmp_path / "weights.pth")
    assert recognise(found)[0] == case.project
    backbone, report = adopt(found, args=case.args)
    images = torch.randn(2, 3, case.side, case.side, dtype=torch.float64)
    with torch.no_grad():
        expected, actual = case.features(images), backbone.double().eval()(images)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    assert report["from"] == case.project and report["recognised_by"]
    assert {key: backbone.spec[key] for key in case.spec} == case.spec
    assert (backbone.mean, backbone.std) == (IMAGENET_MEAN, IMAGENET_STD)
    # Only indices of relative positions and masks of windows are in no list: timm computes them.
    listed = sum(len(report[key]) for key in ("used", "heads", "unused"))
    assert listed == sum(map(len, found.groups.values())) - {"simmim": 1, "simmim_swin": 5}.get(name, 0)


@pytest.mark.parametrize("name", ["mae", "moco_v2", "lightly_benchmark"])
def test_what_is_exported_is_what_was_imported(name: str, tmp_path: Path) -> None:
    case = cases.save(name, tmp_path / "weights.pth")
    backbone, _ = adopt(opened(tmp_path / "weights.pth"), args=case.args)
    backbone.export(tmp_path / "run")
    again = create(backbone.size, weights=str(tmp_path / "run"))
    images = torch.randn(2, 3, backbone.size, backbone.size)
    with torch.no_grad():
        assert torch.equal(again.eval()(images), backbone.eval()(images))
    (stage,) = again.provenance
    assert stage == {"task": "external", "weights": "weights.pth", "sha256": "0" * 64, "from": case.project}
    assert again.selection("last") == "last" and again.seen == {}
    assert again.mean == IMAGENET_MEAN


def test_a_missing_or_unknown_layer_is_an_error(tmp_path: Path) -> None:
    state = cases.vit_state()
    bare = {name: t for name, t in state.items() if name != "blocks.1.attn.proj.bias"}
    with pytest.raises(UserError, match=r"1 missing \(blocks.1.attn.proj.bias\); check --from, --name and --args"):
        adopt(contents({"model": bare}, tmp_path), args=cases.VIT_ARGS)
    # An unknown layer inside the encoder would change its function, so it is no head to be dropped.
    with pytest.raises(UserError, match=r"1 unexpected \(blocks.0.attn.q_norm.weight\)"):
        adopt(
            contents({"model": {**state, "blocks.0.attn.q_norm.weight": cases.random(8)}}, tmp_path),
            args=cases.VIT_ARGS,
        )
    with pytest.raises(UserError, match=r"NaN or infinite numbers in 1 \(norm.bias\)"):
        adopt(contents({"model": {**state, "norm.bias": torch.full((16,), torch.nan)}}, tmp_path), args=cases.VIT_ARGS)
    halved = {**state, "blocks.0.mlp.fc1.weight": cases.random(64)}
    with pytest.raises(UserError, match=r"of another shape|no complete network"):
        adopt(contents({"model": halved}, tmp_path), args=cases.VIT_ARGS)
    del bare["blocks.0.mlp.fc1.weight"]
    with pytest.raises(UserError, match=r"no complete network of mae .*mlp.fc1.weight"):
        adopt(contents({"model": bare}, tmp_path), args=cases.VIT_ARGS)


def test_heads_and_the_rest_of_the_file_are_reported(tmp_path: Path) -> None:
    cases.save("moco_v2", tmp_path / "w.pth")
    _, report = adopt(opened(tmp_path / "w.pth"))
    assert report["heads"] == ["fc.0.bias", "fc.0.weight", "fc.2.bias", "fc.2.weight"]
    assert "queue" in report["unused"] and "encoder_k.conv1.weight" in report["unused"]
    assert not any(name.startswith("optimizer") for name in report["unused"])
    assert (report["place"], report["prefix"]) == ("state_dict", "encoder_q.")
    cases.save("dino", tmp_path / "w.pth")
    _, report = adopt(opened(tmp_path / "w.pth"), args=cases.VIT_ARGS)
    assert "student/module.backbone.norm.weight" in report["unused"] and "dino_loss/center" in report["unused"]
    assert report["place"] == "teacher"


def test_counts_of_batches_may_be_missing(tmp_path: Path) -> None:
    state = {k: v for k, v in cases.resnet().state_dict().items() if "num_batches" not in k}
    backbone, report = adopt(contents(state, tmp_path))
    assert "bn1.num_batches_tracked" in report["filled"] and backbone.spec["name"] == "resnet18"


def test_the_wrong_project_is_named_with_the_right_one(tmp_path: Path) -> None:
    cases.save("moco_v3", tmp_path / "w.pth")
    with pytest.raises(
        UserError, match=r"no ViT or ResNet where mae keeps its encoder; it looks like moco's: say --from moco"
    ):
        adopt(opened(tmp_path / "w.pth"), "mae")
    with pytest.raises(UserError, match=r"unknown project mocco; did you mean moco\? \(known: timm, .*auto\)"):
        adopt(opened(tmp_path / "w.pth"), "mocco")
    with pytest.raises(
        UserError, match=r"its tensors \(body.weight, ...\) have names of no known project; give --from"
    ):
        adopt(contents({"body.weight": torch.zeros(3)}, tmp_path))


def test_what_timm_cannot_represent_is_said(tmp_path: Path) -> None:
    conv_stem = {"module.base_encoder.patch_embed.proj.0.weight": torch.zeros(8, 3, 3, 3)}
    with pytest.raises(UserError, match=r"convolutional stem \(MoCo v3's vit_conv"):
        adopt(contents({"state_dict": conv_stem}, tmp_path))
    wide = {"module.conv1.weight": torch.zeros(128, 3, 7, 7), "module.layer1.0.conv1.weight": torch.zeros(1, 1, 1, 1)}
    with pytest.raises(UserError, match=r"128 channels in its stem \(widened, as SwAV's"):
        adopt(contents(wide, tmp_path))
    other = {"encoder.patch_embed.proj.weight": torch.zeros(8, 3, 4, 4), "encoder.stages.0.norm1.weight": torch.zeros(8),
             "encoder.mask_token": torch.zeros(1, 1, 8)}  # fmt: skip
    with pytest.raises(UserError, match=r"holds no plain ViT, ResNet or Swin"):
        adopt(contents({"model": other}, tmp_path))
    cases.save("simmim", tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"--size: .* has relative positions for 16 px, which are not resampled"):
        adopt(opened(tmp_path / "w.pth"), size=32)


def test_positions_are_resampled_to_the_size(tmp_path: Path) -> None:
    cases.save("dinov2_registers", tmp_path / "w.pth")
    found = opened(tmp_path / "w.pth")
    native, _ = adopt(found, args=cases.VIT_ARGS)
    larger, report = adopt(found, size=24, args=cases.VIT_ARGS)
    assert (native.size, larger.size) == (16, 24)
    assert "positions resampled from 16 to 24 px, by timm" in report["notes"]
    native.export(tmp_path / "run")
    # The same as exporting at the weights' own size and opening that at another.
    opened_larger = create(24, weights=str(tmp_path / "run"))
    torch.testing.assert_close(opened_larger.model.state_dict()["pos_embed"], larger.model.state_dict()["pos_embed"])
    assert larger(torch.zeros(1, 3, 24, 24)).shape == (1, cases.WIDTH)


def test_attention_heads_that_nothing_tells_are_asked_for(tmp_path: Path) -> None:
    cases.save("mae", tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"how many attention heads share 16 channels; give --args num_heads=N"):
        adopt(opened(tmp_path / "w.pth"))


def placeholder(name: str, **options: Any) -> dict[str, Tensor]:
    """The names and shapes of a timm model's weights, without memory for them."""
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0, **options)
    return {key: torch.ones(()).expand(value.shape) for key, value in model.state_dict().items()}


def guessed(tensors: dict[str, Tensor], project: str, stem: str | None = None) -> Any:
    return architecture(Encoder("", "", tensors, [], stem, []), project, "w.pth", None, {})


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_tiny_patch16_224", 224), ("vit_small_patch8_224", 224), ("vit_base_patch16_224", 224), ("vit_large_patch16_224", 224),
        ("vit_huge_patch14_224", 224), ("vit_small_patch14_dinov2", 518), ("vit_base_patch14_reg4_dinov2", 518),
        ("vit_giant_patch14_reg4_dinov2", 518), ("resnet18", 224), ("resnet34", 224), ("resnet50", 224), ("resnet152", 224),
        ("resnext50_32x4d", 224), ("wide_resnet50_2", 224),
    ],
)  # fmt: skip
def test_known_architectures_are_told_by_their_shapes(name: str, size: int) -> None:
    found = guessed(placeholder(name), "dinov2" if "dinov2" in name else "dino")
    assert (found.name, found.args, found.size, found.stem) == (name, {}, size, "default")


def test_architectures_between_the_known_ones_get_arguments() -> None:
    found = guessed(placeholder("vit_large_patch16_224", patch_size=8, img_size=64), "mae")
    assert (found.name, found.args, found.size) == ("vit_large_patch16_224", {"patch_size": 8}, 64)
    found = guessed(placeholder("vit_huge_patch14_224", class_token=False, global_pool="avg", fc_norm=False), "ijepa")
    assert (found.name, found.args, found.pooling) == ("vit_huge_patch14_224", {"class_token": False}, "mean")
    found = guessed(placeholder("beit_base_patch16_224", use_rel_pos_bias=False, use_shared_rel_pos_bias=True, use_abs_pos_emb=False,
                                init_values=0.1, use_fc_norm=False), "simmim")  # fmt: skip
    shared = {
        "use_abs_pos_emb": False,
        "use_shared_rel_pos_bias": True,
        "use_rel_pos_bias": False,
        "use_fc_norm": False,
    }
    assert (found.name, found.size) == ("beit_base_patch16_224", 224) and found.args == {**shared, "init_values": 0.1}
    with pytest.raises(UserError, match="num_heads=N"):
        guessed(placeholder("vit_base_patch16_224", embed_dim=96, num_heads=4), "dino")


@pytest.mark.parametrize(
    ("project", "fixed", "heads"), [("moco", True, 12), ("solo", True, 12), ("solo", False, 6), ("dino", True, 6)]
)
def test_small_vits_of_moco_v3_have_twelve_heads(project: str, fixed: bool, heads: int) -> None:
    """moco-v3/vits.py gives ViT-S 12 heads where timm, DINO and solo-learn's plain ViT have 6; only fixed positions are 0 first."""
    tensors = placeholder("vit_small_patch16_224")
    positions = torch.ones(1, 197, 384)
    positions[:, 0] = 0 if fixed else 1
    found = guessed({**tensors, "pos_embed": positions}, project)
    assert found.args.get("num_heads", 6) == heads
    assert bool(found.notes) == (heads == 12)


def test_small_stems_are_those_of_their_projects() -> None:
    tensors = {**placeholder("resnet18"), "conv1.weight": torch.ones(64, 3, 3, 3)}
    assert [guessed(tensors, project).stem for project in ("solo", "moco", "lightly")] == ["solo", "small", "small"]
    assert guessed(tensors, "lightly", "lightly").stem == "lightly"
    assert guessed(tensors, "solo").size == 32
    with pytest.raises(UserError, match=r"stem is 5 x 5"):
        guessed({**tensors, "conv1.weight": torch.ones(64, 3, 5, 5)}, "moco")


def test_any_timm_model_can_be_named(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}
    model: Any = timm.create_model("convnext_atto", num_classes=5, **arguments).eval()
    images = torch.randn(1, 3, 32, 32)
    saved = {
        "arch": "convnext_atto",
        "state_dict": model.state_dict(),
        "version": 2,
        "args": argparse.Namespace(lr=1.0),
    }
    found = contents(saved, tmp_path)
    backbone, report = adopt(found, size=32, args=arguments)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(images), pre_logits=True)
        torch.testing.assert_close(backbone.eval()(images), expected)
    assert report["from"] == "timm" and report["heads"] == ["head.fc.bias", "head.fc.weight"]
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other, report = adopt(
        read_weights(tmp_path / "model.safetensors"), "timm", name="convnext_atto", size=32, args=arguments
    )
    assert torch.equal(other.eval()(images), backbone(images))
    assert len(report["sha256"]) == 64
    with pytest.raises(UserError, match="--name: 'convnext_nano2' is no timm model"):
        adopt(found, name="convnext_nano2")
    with pytest.raises(UserError, match="timm's other models need --name"):
        adopt(found._replace(arch=None), "timm")


def test_timms_own_normalisation_and_a_given_one(tmp_path: Path) -> None:
    state = {**cases.vit_state(), **cases.linear_head("head")}
    backbone, _ = adopt(contents(state, tmp_path), args=cases.VIT_ARGS)
    assert backbone.provenance[0]["from"] == "timm" and backbone.mean == (0.5, 0.5, 0.5)
    backbone, _ = adopt(contents(state, tmp_path), "mae", args=cases.VIT_ARGS, mean=[0.1, 0.2, 0.3])
    assert (backbone.mean, backbone.std) == ((0.1, 0.2, 0.3), IMAGENET_STD)
    with pytest.raises(UserError, match="expected 3 numbers each"):
        adopt(contents(state, tmp_path), "mae", args=cases.VIT_ARGS, mean=[0.1])


class Malicious:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


def refused(path: Path, tmp_path: Path) -> tuple[str, str]:
    """The child's work in this process: what it refuses a file for."""
    folder = tmp_path / "scratch"
    folder.mkdir(exist_ok=True)
    load.write_plain(str(path), folder)
    assert not (folder / load.TENSORS).exists()
    said = json.loads((folder / load.REFUSED).read_text())
    return said["kind"], said["detail"]


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "legacy"])
def test_code_in_a_file_is_refused_not_run(archive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tree = {"model": cases.vit_state(), "extra": Malicious()}
    torch.save(tree, "w.pth", _use_new_zipfile_serialization=archive)
    kind, detail = refused(tmp_path / "w.pth", tmp_path)
    assert kind == "unsafe" and ("Path" in detail or "getattr" in detail)
    assert not Path("executed").exists()


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pth")
    assert refused(tmp_path / "w.pth", tmp_path) == ("unsafe", "torch.nn.modules.linear.Linear")


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.98])
def test_a_truncated_file_is_damaged(archive: bool, part: float, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"model": {"w": torch.ones(1000)}}, buffer, _use_new_zipfile_serialization=archive)
    whole = buffer.getvalue()
    (tmp_path / "w.pth").write_bytes(whole[: int(part * len(whole))])
    kind, detail = refused(tmp_path / "w.pth", tmp_path)
    assert kind == "damaged" and detail and "\n" not in detail


@pytest.mark.parametrize(
    "content", [b"not weights", b"PK\x03\x04 and no more", b"\x89PNG\r\n\x1a\n", b"\x80\x02}q\x00."]
)
def test_other_files_are_no_weights(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    assert refused(tmp_path / "w.pth", tmp_path)[0] == "damaged"


def test_a_flipped_bit_is_seen(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1000)}, tmp_path / "w.pth")
    content = bytearray((tmp_path / "w.pth").read_bytes())
    content[content.index(torch.ones(100).numpy().tobytes()) + 50] ^= 1
    (tmp_path / "w.pth").write_bytes(content)
    assert refused(tmp_path / "w.pth", tmp_path) == (
        "damaged", "the checksum of w/data/0 is wrong"
    )  # fmt: skip


def test_what_holds_no_plain_tensors_is_refused(tmp_path: Path) -> None:
    for tree, expected in (([1, 2], ("empty", "list")), ({"epoch": 3}, ("empty", "dict")),
                           ({"w": torch.eye(2).to_sparse()}, ("odd", "w is torch.sparse_coo torch.float32")),
                           ({"w": torch.zeros(2, dtype=torch.complex64)}, ("odd", "w is torch.strided torch.complex64"))):  # fmt: skip
        torch.save(tree, tmp_path / "w.pth")
        assert refused(tmp_path / "w.pth", tmp_path) == expected


def test_a_dictionary_that_holds_itself_ends() -> None:
    tree: dict[str, Any] = {"w": torch.ones(1)}
    tree["again"] = tree
    assert [(place, name) for place, name, _ in load.collect(tree)] == [("", "w")]


def test_a_recompressed_archive_is_read_right(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(1000.0)}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as source,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert torch.equal(load.unpickle(str(tmp_path / "b.pth"))["w"], torch.arange(1000.0))


def test_reading_in_a_child_gives_the_same(tmp_path: Path) -> None:
    cases.save("dino", tmp_path / "w.pth")
    direct, child = opened(tmp_path / "w.pth"), read_weights(tmp_path / "w.pth")
    assert child.keys == direct.keys and child.groups.keys() == direct.groups.keys()
    for place, group in direct.groups.items():
        assert child.groups[place].keys() == group.keys()
        assert all(torch.equal(child.groups[place][name], tensor) for name, tensor in group.items())


def giant_legacy(path: Path) -> None:
    """A file of the format before torch 1.6 that claims a storage of 16 GiB where 70,000 numbers are."""
    torch.save({"w": torch.ones(70_000, dtype=torch.float64)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    claim = b"J" + (70_000).to_bytes(4, "little")
    at = whole.index(claim)  # the storage's size comes before the tensor's
    path.write_bytes(whole[:at] + b"J" + (2**31 - 1).to_bytes(4, "little") + whole[at + 5 :])


def giant_view(path: Path) -> None:
    """One number, expanded to 40 GB without being stored."""
    torch.save({"w": torch.ones(1).expand(10_000, 1_000_000)}, path)


@pytest.mark.parametrize("make", [giant_legacy, giant_view])
def test_a_file_that_asks_for_giant_memory_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "w.pth")
    # Forked, not started: this process has torch already.
    if (child := os.fork()) == 0:
        try:
            load.limit(1 << 30, 60)
            load.write_plain(str(tmp_path / "w.pth"), tmp_path)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert json.loads((tmp_path / load.REFUSED).read_text()) == {"kind": "memory", "detail": ""}
    assert not (tmp_path / load.TENSORS).exists()


def test_a_child_that_does_not_end_is_stopped(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"reading took more than 0 s and was stopped"):
        read_weights(tmp_path / "w.pth", Limits(wall=0.2))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (-24, r"reading took more than \d+ s of processor time and was stopped"),
        (-11, r"the process that read it crashed \(SIGSEGV\)"),
        (1, r"cannot be read \(last words\)"),
    ],
)
def test_a_child_that_dies_is_one_sentence(
    code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "w.pth")

    class Done:
        returncode, stderr = code, b"first\nlast words\n"

    monkeypatch.setattr("rootstock.core.convert.file.subprocess.run", lambda *_, **__: Done())
    with pytest.raises(UserError, match=said):
        read_weights(tmp_path / "w.pth")


def test_a_full_disk_is_not_the_files_fault() -> None:
    assert load.failure(OSError(28, "No space left on device")) == ("disk", "")
    assert (
        load.failure(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))[0]
        == "memory"
    )
    assert load.failure(RuntimeError("Cannot use weights_only=True with TorchScript archives"))[0] == "script"


def test_no_stand_in_is_the_thing_itself() -> None:
    """The unpickler may build these and nothing else beside tensors; none of them does anything."""
    assert {made for made, _ in load.STAND_INS} == {load.Discarded, load.PlainDictionary}
    assert isinstance(load.PlainDictionary("x"), dict) and vars(load.Discarded("x")) == {}
    names = [name for _, name in load.STAND_INS]
    assert len(names) == len(set(names)) and not [
        name for name in names if re.search(r"^(os|sys|posix|subprocess)\b|eval|exec", name)
    ]


def test_paths_that_are_no_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.pth: cannot be read \(No such file"):
        read_weights(tmp_path / "nowhere.pth")
    with pytest.raises(UserError, match=r": not a file; expected weights as .pth"):
        read_weights(tmp_path)
    (tmp_path / "w.pth").touch()
    with pytest.raises(UserError, match=r"the file is empty"):
        read_weights(tmp_path / "w.pth")
    (tmp_path / "w.safetensors").write_text("no tensors")
    with pytest.raises(UserError, match=r"not a safetensors file, or a damaged one"):
        read_weights(tmp_path / "w.safetensors")
