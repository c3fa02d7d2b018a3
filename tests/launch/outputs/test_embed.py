"""`rootstock embed`: each picture once, in the order of the set, the same bits on any number of processes; whole files or none."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rootstock.core.evaluate.features import extract
from rootstock.core.evaluate.trained import load_trained
from rootstock.core.images.open import open_images
from rootstock.launch.outputs import tables
from rootstock.tests.conftest import Forks
from rootstock.tests.launch.outputs.conftest import NAMES, Runs

Command = Callable[..., subprocess.CompletedProcess[str]]
ALONE = ("--workers", "0", "--device", "cpu")
COMMANDS = "import sys; sys.argv[0] = 'rootstock'; from rootstock.launch.cli import main; main()"


def arrays(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as found:
        return dict(found)


def test_features_are_those_of_the_runs_view_in_the_order_of_the_set(
    runs: Runs, rootstock: Command, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "features.npz"
    taps = ("--tap", "pooled", "--tap", "stage1", "--tap", "tokens")
    done = rootstock("embed", str(runs.pretrained), runs.pictures, "--out", str(out), *taps, *ALONE)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}\n"
    assert "resized to 20 and cropped to 16 px, bicubic" in done.stderr  # as the run's config says
    found, images = arrays(out), open_images(runs.pictures)
    trained = load_trained(runs.pretrained)
    assert found["name"].tolist() == [images.full_name(i) for i in range(7)] == sorted(NAMES)
    assert found["key"].tolist() == images.keys().tolist()
    for i in range(7):  # each picture shown alone
        picture = trained.view(trained.view.worker(images.read(i))[None])
        with torch.no_grad():
            np.testing.assert_allclose(found["pooled"][i], trained.backbone(picture)[0], rtol=1e-4, atol=1e-6)
            map = trained.backbone.model.blocks[:2](picture)  # pyright: ignore[reportIndexIssue, reportCallIssue, reportArgumentType]
            np.testing.assert_allclose(found["stage1"][i], map.mean((2, 3))[0], rtol=1e-4, atol=1e-6)
    assert found["tokens"].shape == (7, 4, 8)
    about = json.loads(str(found["about"]))
    assert about["data"]["split"] == images.split_hash() and about["view"]["resize"] == 20
    assert [path.name for path in out.parent.iterdir()] == ["features.npz"]


def test_what_the_head_sees_gives_the_logits_to_the_last_bit(runs: Runs, rootstock: Command, tmp_path: Path) -> None:
    out = tmp_path / "features.npz"
    done = rootstock(
        "embed", str(runs.adapted), runs.pictures, "--out", str(out), "--tap", "bottleneck", "--batch-size", "3", *ALONE
    )
    assert done.returncode == 0, done.stderr
    trained = load_trained(runs.adapted)
    logits = extract(runs.classifier, open_images(runs.pictures), trained.view, batch_size=3, device="cpu")
    seen = torch.from_numpy(arrays(out)["bottleneck"])
    assert seen.shape == (7, 5)
    with torch.no_grad():
        assert torch.equal(torch.cat([runs.classifier.head(part) for part in seen.split(3)]), logits)


def test_two_processes_write_the_bytes_of_one(runs: Runs, rootstock: Command, tmp_path: Path, forks: Forks) -> None:
    def words(name: str) -> list[str]:
        given = ["embed", str(runs.adapted), runs.pictures, "--out", str(tmp_path / name), "--tap", "pooled"]
        return [*given, "--tap", "bottleneck", "--batch-size", "2", *ALONE]

    (script := tmp_path / "commands.py").write_text(COMMANDS)
    forks.group(script, *words("two.npz"))
    assert rootstock(*words("one.npz")).returncode == 0
    assert (tmp_path / "two.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()


def test_parquet_holds_what_npz_holds(runs: Runs, rootstock: Command, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    taps = ("--tap", "pooled", "--tap", "tokens")
    for name in ("features.npz", "features.parquet"):
        done = rootstock("embed", str(runs.pretrained), runs.pictures, "--out", str(tmp_path / name), *taps, *ALONE)
        assert done.returncode == 0, done.stderr
    found, table = arrays(tmp_path / "features.npz"), parquet.read_table(tmp_path / "features.parquet")
    assert json.loads(table.schema.metadata[b"rootstock"]) == json.loads(str(found.pop("about")))
    assert table.column_names == list(found)
    for name, column in found.items():
        assert np.array_equal(np.array(table[name].to_pylist(), dtype=column.dtype), column), name


def test_a_table_larger_than_one_group_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    monkeypatch.setattr(tables, "TABLE_ROWS", 3)
    columns = {"name": [f"{i}\udcff" for i in range(8)], "x": torch.arange(16.0).view(8, 2)}
    tables.write_parquet(tmp_path / "t.parquet", columns, {})
    table = parquet.read_table(tmp_path / "t.parquet")
    assert table["x"].to_pylist() == columns["x"].tolist() and table["name"][7].as_py() == "7\ufffd"  # pyright: ignore[reportAttributeAccessIssue]
    tables.write_csv(tmp_path / "t.csv", {"name": columns["name"], "x": torch.arange(8) / 3})
    lines = (tmp_path / "t.csv").read_bytes().splitlines()
    assert len(lines) == 9 and lines[2] == b"1\xff,0.33333334"


def test_without_pyarrow_a_sentence_comes_before_the_work(
    runs: Runs, rootstock: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = rootstock("embed", str(runs.pretrained), runs.pictures, "--out", str(tmp_path / "f.parquet"))
    assert done.returncode == 2 and "pip install 'rootstock[parquet]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_error_while_writing_leaves_the_old_file(
    runs: Runs, rootstock: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (out := tmp_path / "f.npz").write_bytes(b"old")

    def half(file: Any, **arrays: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device", str(out))

    monkeypatch.setattr(np, "savez", half)
    assert rootstock("embed", str(runs.pretrained), runs.pictures, "--out", str(out), *ALONE).returncode == 1
    assert out.read_bytes() == b"old" and [path.name for path in tmp_path.iterdir()] == ["f.npz"]


def test_damaged_pictures_are_named_or_left_out(runs: Runs, rootstock: Command, tmp_path: Path) -> None:
    pictures = Path(shutil.copytree(runs.pictures.removeprefix("folder:"), tmp_path / "pictures"))
    (pictures / sorted(NAMES)[4]).write_bytes(b"no picture")
    words = ("embed", str(runs.pretrained), f"folder:{pictures}", "--out", str(tmp_path / "f.npz"), *ALONE)
    done = rootstock(*words)
    assert done.returncode == 2 and not (tmp_path / "f.npz").exists()
    assert f"{sorted(NAMES)[4]}: cannot be decoded" in done.stderr and "--skip-damaged" in done.stderr
    done = rootstock(*words, "--skip-damaged")
    assert done.returncode == 0 and "1 of 7 pictures cannot be read" in done.stderr
    assert arrays(tmp_path / "f.npz")["name"].tolist() == [name for name in sorted(NAMES) if name != sorted(NAMES)[4]]
    for name in NAMES:
        (pictures / name).write_bytes(b"no picture")
    done = rootstock(*words, "--skip-damaged")
    assert done.returncode == 2 and "none of its 7 pictures can be read" in done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("nowhere",), "nowhere does not exist; give the folder of a finished run"),
        (("RUN", "--tap", "cls"), "has no features called 'cls'; choose from pooled, tokens"),
        (("RUN", "--tap", "bottleneck"), "only classifiers with a bottleneck have"),
        (("RUN", "--batch-size", "0"), "--batch-size: expected 1 or more"),
        (("RUN", "--device", "gpu"), "--device: expected auto or cpu, got gpu"),
    ],
)
def test_mistakes_are_one_sentence(
    words: tuple[str, ...], sentence: str, runs: Runs, rootstock: Command, tmp_path: Path
) -> None:
    run, *options = (str(runs.pretrained) if word == "RUN" else word for word in words)
    given = ("--workers", "0", *options)
    done = rootstock("embed", run, runs.pictures, "--out", str(tmp_path / "f.npz"), *given)
    assert done.returncode == 2 and sentence in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


def test_what_has_no_network_of_its_own(runs: Runs, rootstock: Command, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"task": "probe"}')
    words = ("--out", str(tmp_path / "f.npz"))
    done = rootstock("embed", str(tmp_path), runs.pictures, *words)
    assert done.returncode == 2 and "is a probe, which exports no network of its own" in done.stderr
    (tmp_path / "result.json").unlink()
    done = rootstock("embed", str(tmp_path), runs.pictures, *words)
    assert done.returncode == 2 and "holds no finished backbone/" in done.stderr
    assert "backbone.weights" not in done.stderr
    done = rootstock("embed", str(runs.pretrained), "npz:none.npz", *words)
    assert done.returncode == 2


def test_pictures_of_other_channels_are_refused(runs: Runs, rootstock: Command, tmp_path: Path) -> None:
    np.savez(tmp_path / "five.npz", images=np.zeros((3, 16, 16, 5), dtype=np.uint8))
    words = (
        "embed",
        str(runs.pretrained),
        f"npz:{tmp_path / 'five.npz'}?layout=NHWC",
        "--out",
        str(tmp_path / "f.npz"),
    )
    done = rootstock(*words)
    assert done.returncode == 2 and "its pictures have 5 channels" in done.stderr, done.stderr


@pytest.mark.parametrize(("fault", "words"), [("kill", "rank 1 ended without a word"), ("error", "a bug on one rank")])
def test_a_process_that_is_lost_ends_the_other(
    runs: Runs, tmp_path: Path, forks: Forks, fault: str, words: str
) -> None:
    argv = ["embed", str(runs.pretrained), runs.pictures, "--out", str(tmp_path / "out.npz"), *ALONE]
    script = Path(__file__).parents[2] / "embedding.py"
    first, second = forks(script, [[json.dumps(argv), fault]] * 2, forks.ranks(2))
    assert first.code == 132 and second.code in (-signal.SIGKILL, 1), (first.said, second.said)
    assert words in first.said and not (tmp_path / "out.npz").exists()
