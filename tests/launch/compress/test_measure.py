"""`rootstock measure` with a clock that the test moves: what is counted, what is named as not measured, and what is refused."""

import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from rootstock.core.environment import usable_cores
from rootstock.core.errors import MachineError, UserError
from rootstock.core.evaluate.trained import load_trained
from rootstock.core.images.open import open_images
from rootstock.core.model.backbone import create
from rootstock.core.model.classifier import Classifier
from rootstock.launch.compress.costs import UNMEASURED, NetworkCosts, cost_rows, headings, markdown_page, remarks
from rootstock.launch.compress.frames import frames_a_second, jpeg_frames, label_of
from rootstock.launch.compress.measure import HowMeasured, following_costs, network_costs
from rootstock.launch.compress.memory import PeakMemory, peak_memory
from rootstock.launch.compress.networks import INT8, ONNX, TORCH, open_network, pictures_for
from rootstock.launch.outputs.export import export_network

Command = Callable[..., subprocess.CompletedProcess[str]]
onnx: Any = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
DIGITS = "sklearn:digits?size=16&classes=3"
CHANNELS, SIDE, WIDTHS = 3, 16, (4, 4, 6, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """run: a classifier of digits; exported: with model.onnx, which takes pixels; plain: without any graph."""
    found = tmp_path_factory.mktemp("measure")
    torch.manual_seed(0)
    Classifier(create(SIDE, name="smallconv", args={"widths": WIDTHS}), ["0", "1", "2"]).eval().export(found / "run")
    export_network(found / "run", found / "exported", images=[DIGITS], onnx=True, uint8=True)
    export_network(found / "run", found / "plain", images=[DIGITS])
    return found


class Clock:
    """A millisecond passes from one look to the next."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


def test_a_run_is_measured_in_every_form(folder: Path, tmp_path: Path) -> None:
    asked, told = HowMeasured(1, (1, 4), (DIGITS,), seconds=0.05), list[Any]()

    def peak(*words: Any) -> PeakMemory:
        told.append(words)
        return PeakMemory(3 << 20, 1 << 20)

    titles = [str(folder / name) for name in ("run", "exported", "plain")]
    found, shown = network_costs(titles, asked, tmp_path, clock=Clock(), peak=peak)
    assert [list(network.forms) for network in found] == [[TORCH, ONNX, INT8], [TORCH, ONNX], [TORCH]]
    assert [list(network.missing) for network in found] == [[], [INT8], [ONNX, INT8]]
    for network in found:
        for costs in network.forms.values():
            assert costs.latency[1].median == pytest.approx(1.0) and costs.throughput(4) == pytest.approx(4000.0)
            assert costs.frames is not None and costs.joules is None
            assert costs.frames[:3] == pytest.approx((1000.0, 1000.0, 1000.0))
        # by hand: sides 8, 4, 2 (after a pool of 2 each, from 16 / 2), then 1; 3x3 without bias; and the head
        shapes = [(3, 4, 8), (4, 4, 4), (4, 6, 1), (6, 8, 1)]
        assert network.parameters == sum(9 * a * b + 2 * b for a, b, _ in shapes) + 3 * 8 + 3
        assert network.macs is not None and network.macs > 9 * 3 * 4 * 64
    assert [words[0] for words in told] == ["torch", "onnx", "onnx", "torch", "onnx", "torch"]
    assert [words[3] for words in told] == ["float32"] * 4 + ["uint8", "float32"]
    assert shown == [f"16 pictures of {DIGITS}, 16 x 16 px, encoded as JPEG of quality 95"]
    assert found[1].forms[ONNX].bytes == (folder / "exported" / "model.onnx").stat().st_size
    rows = cost_rows(found, asked.batches)
    assert all(len(row) in (3, len(headings(asked.batches))) for row in rows) and len(rows) == 9
    assert rows[0][-1] == UNMEASURED and rows[0][5] == "1" and rows[1][5] == "1 [1, 1]"
    page = markdown_page(found, asked.batches, "On a machine", "rootstock measure run")
    assert f"- {titles[2]}: {ONNX}: {UNMEASURED}: {titles[2]} has no model.onnx\n" in page
    assert f"- energy: {UNMEASURED}: no GPU with a counter of energy computes\n" in page
    assert remarks(found, "x")[0].startswith(f"{titles[0]}: 3 x 16 x 16, 0.0 million multiply-adds, ")
    json.dumps([network.as_json() for network in found], allow_nan=False)


@pytest.mark.parametrize("name", ["run", "exported", "plain"])
@pytest.mark.parametrize(("own", "given"), [(3, 5), (5, 3), (5, None)])
def test_pictures_of_other_channels_are_refused(
    name: str, own: int, given: int | None, folder: Path, five: str, tmp_path: Path
) -> None:
    """A network that takes five channels is shown neither three of the user nor the photographs, which a run is not shown either."""
    measured = open_network(folder / name)._replace(channels=own)
    if own == 5 and measured.trained is not None:
        measured = measured._replace(trained=measured.trained._replace(backbone=create(SIDE, 5, name="smallconv")))
    with pytest.raises(UserError) as refused:
        pictures_for(measured, {5: [five], 3: [DIGITS], None: []}[given])
    said = str(refused.value)
    if name == "run":
        assert "give pictures of" in said or said.endswith("give some: --images URI")
        return
    other = "those of " + {5: five, 3: DIGITS}.get(given or 0, "folder:")
    assert said.startswith(f"{folder / name} takes pictures of {own} channels, and {other}")
    assert said.endswith(f" have {8 - own}; give pictures of {own} channels with --images URI")


def test_eight_bits_come_next_for_a_run_alone(folder: Path) -> None:
    costs = [
        NetworkCosts(str(folder / name), SIDE, CHANNELS, None, None, {}, {}) for name in ("exported", "run", "plain")
    ]
    run = folder / "run"
    assert following_costs(costs) == f"rootstock quantize {run} --calibrate URI --to {run}-quantized"
    assert following_costs(costs[:1]) == f"rootstock verify {folder / 'exported'}"


def test_a_foreign_script_is_not_run(folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder / "plain", copy)
    (copy / "model.py").write_text("raise SystemExit('it was run')\n")
    found = open_network(copy)
    assert found.network is None and found.missing[TORCH] == f"{copy / 'model.py'} is not of this version of Rootstock"


def test_a_frame_is_decoded_resized_normalised_and_named(folder: Path) -> None:
    trained = load_trained(folder / "run")
    assert trained.classifier is not None
    random, content = np.random.default_rng(0), io.BytesIO()
    Image.fromarray(random.integers(0, 256, (40, 56, 3), dtype=np.uint8)).save(content, "JPEG")
    pixels = torch.from_numpy(np.array(Image.open(content))).permute(2, 0, 1)
    expected = int(trained.classifier(trained.view(pixels[None]))[0].argmax())
    cpu = torch.device("cpu")
    assert label_of(content.getvalue(), trained.view, trained.classifier, False, cpu) == expected
    other = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))
    with torch.no_grad():
        found = other(trained.view.worker(pixels)[None].float()).argmax()
        assert label_of(content.getvalue(), trained.view, lambda x: {"features": other(x.float())}, True, cpu) == found


def test_frames_are_by_the_time_of_all_and_their_interval_over_calls() -> None:
    rate, low, high, _ = frames_a_second([10.0, 30.0] * 50)
    assert rate == 50.0 and low is not None and high is not None
    # The mean of 100 calls has a deviation of 1 ms around 20.
    assert low == pytest.approx(1000 / 21.96, rel=0.02) and high == pytest.approx(1000 / 18.04, rel=0.02)
    assert frames_a_second([8.0, 8.0])[:3] == (125.0, 125.0, 125.0)


def test_frames_are_the_files_themselves_where_they_are_jpegs(folder: Path, tmp_path: Path) -> None:
    photographs = jpeg_frames(pictures_for(open_network(folder / "plain"), []))  # those of scikit-learn
    assert photographs is not None and photographs.title.endswith("640 x 427 px") and len(photographs.files) == 2
    assert all(content[:2] == b"\xff\xd8" for content in photographs.files)
    (tmp_path / "a").mkdir()
    Image.fromarray(np.zeros((8, 12, 3), np.uint8)).save(tmp_path / "a" / "x.png")
    encoded = jpeg_frames(open_images(f"folder:{tmp_path}", role="unlabelled"))
    assert encoded is not None and encoded.title.endswith("12 x 8 px, encoded as JPEG of quality 95")
    Image.fromarray(np.zeros((8, 12), np.uint16)).save(tmp_path / "a" / "x.png")
    assert jpeg_frames(open_images(f"folder:{tmp_path}", role="unlabelled")) is None


def test_memory_is_of_the_form_alone(tmp_path: Path) -> None:
    weights = 64 << 20
    ends = [onnx.helper.make_tensor_value_info(name, 1, ["n", 4096]) for name in ("images", "features")]
    matrix = onnx.numpy_helper.from_array(np.ones((4096, 4096), np.float32), "w")
    node = onnx.helper.make_node("MatMul", ["images", "w"], ["features"])
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:], [matrix])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "model.onnx")
    mine = np.ones(700 << 17)  # 700 MiB of this process, which are not the child's
    found = peak_memory("onnx", tmp_path / "model.onnx", [1, 4096], "float32", 1)
    assert weights <= found.peak - found.before <= 5 * weights and found.peak < 500 << 20 < mine.nbytes
    with pytest.raises(
        MachineError, match=r"the memory of .*none\.onnx could not be measured, since the process ended"
    ):
        peak_memory("onnx", tmp_path / "none.onnx", [1, 4096], "float32", 1)


@pytest.mark.slow
def test_the_command_writes_json_and_says_the_machine(folder: Path, rootstock: Command, tmp_path: Path) -> None:
    words = ("measure", str(folder / "run"), "--images", DIGITS, "--seconds", "0.01", "--batch", "2")
    done = rootstock(*words, "--out", str(tmp_path / "costs.json"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "costs.json").read_text())
    (network,) = found["networks"]
    assert found["threads"] == 1 and found["processor"] and found["versions"]["onnxruntime"]
    assert [*network["forms"]] == [TORCH, ONNX, INT8] and all(
        form["peak_bytes"] > form["library_bytes"] and form["ms"]["2"]["median"] > 0
        for form in network["forms"].values()
    )
    assert "multiply-adds" in done.stderr and "load average" in done.stderr and "measure: " in done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["none"], "none does not exist; give the folder of a finished run, such as runs/NAME"),
        (
            ["run", "--threads", "0"],
            f"--threads: expected 1 to {usable_cores()}, the cores that this process may use, got 0",
        ),
        (["run", "--batch", "0"], "--batch: expected 1 to 4096 pictures, got 0; 1 and 64 are usual"),
        (["run", "--seconds", "0"], "--seconds: expected more than 0 and at most 3600, got 0; 10 are usual"),
        (["run", "--device", "cuda"], "--device: expected auto or cpu, got cuda"),
        (["run", "--out", "costs.txt"], "--out: costs.txt ends in none of .md, .json; name a file with such an ending"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(words: list[str], sentence: str, rootstock: Command) -> None:
    done = rootstock("measure", *words)
    assert done.returncode == 2 and done.stderr == f"error: {sentence}\n", done.stderr


def test_several_processes_and_a_folder_without_words_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rootstock.launch.compress.commands import measure_command

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"^measure times one process; start it without torchrun$"):
        measure_command([folder / "run"])
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"config.json does not say how pictures are prepared .*; give a folder that"):
        open_network(tmp_path)
