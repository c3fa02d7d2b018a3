"""Each tracker is told what metrics.jsonl says, once a step also after a resume, and its failure costs a warning."""

import json
import re
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rootstock.core.errors import UserError
from rootstock.core.run import trackers
from rootstock.core.run.directory import Run
from rootstock.core.run.trackers import check_tracker, flat

KINDS = ("tensorboard", "wandb", "mlflow")
ROWS = [{"step": step, "epoch": step / 5, "loss": 1 / step, "warning": "a word"} for step in (1, 2, 3, 4)]


def tensorboard_history(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator: Any = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def leveldb_records(content: bytes) -> Iterator[bytes]:
    """The records of a log of LevelDB, as .wandb files are: blocks of 32 KiB; in them pieces of checksum, length, type, data."""
    at, record = 7, b""  # after the file's own header
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last piece
            yield record
            record = b""


def wandb_history(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What the files of the offline mode hold, which `wandb sync` would send: a later file goes on with the same run."""
    pytest.importorskip("wandb").teardown()  # its process writes what it still holds
    records: Any = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    found: dict[str, dict[int, float]] = {}
    files = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len({file.name for file in files}) == 1
    for file in files:
        for data in leveldb_records(file.read_bytes()):
            record = records.Record()
            record.ParseFromString(data)
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for key, value in row.items():
                if not key.startswith("_"):
                    found.setdefault(key, {})[row.get("_step", record.history.step.num)] = value
    return {key: sorted(points.items()) for key, points in found.items()}


def mlflow_history(folder: Path) -> dict[str, list[tuple[int, float]]]:
    client = pytest.importorskip("mlflow").MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("rootstock").experiment_id])
    assert run.data.params["run.tracker"] == "mlflow" and run.info.status == "FINISHED"
    return {key: sorted({(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)})
            for key in run.data.metrics}  # fmt: skip


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


@pytest.mark.parametrize("kind", KINDS)
def test_a_tracker_has_the_rows_and_the_result_once(kind: str, opened: Callable[..., Run]) -> None:
    pytest.importorskip(kind)
    killed = opened(tracker=kind)
    for row in ROWS[:3]:
        killed.metrics(row)
    killed.close()  # and the last checkpoint was after step 1
    run = opened(tracker=kind)
    run.cut_metrics(1)
    for row in ROWS[1:]:
        run.metrics(row)
    run.finish({"metrics": {"test/knn/accuracy": 0.75}})
    run.close()
    history = {"tensorboard": tensorboard_history, "wandb": wandb_history, "mlflow": mlflow_history}[kind](run.dir)
    assert set(history) == {"epoch", "loss", "result/test/knn/accuracy"}
    assert history["loss"] == [(row["step"], pytest.approx(row["loss"])) for row in ROWS]
    assert history["result/test/knn/accuracy"] == [(4, 0.75)]
    before = sorted(run.dir.rglob("*"))
    finished = opened(tracker=kind)  # a finished run that is asked for again
    finished.close()
    assert sorted(run.dir.rglob("*")) == before


def test_a_tracker_that_fails_costs_a_warning(
    opened: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")

    def broken(*_: object, **__: object) -> None:
        raise ConnectionError("no way to the service\nat all")

    before = threading.enumerate()
    run = opened(tracker="tensorboard")
    monkeypatch.setattr(run.accelerator, "log", broken)
    for row in ROWS:
        run.metrics(row)
    run.close()
    said = re.sub(r"\s+", " ", capsys.readouterr().err)
    sentence = "WARNING: run.tracker: tensorboard failed (no way to the service); the run goes on without it"
    assert said.count("WARNING") == 1 and sentence in said
    assert len(run.rows()) == 4
    assert not [thread for thread in threading.enumerate() if thread not in before and thread.is_alive()]


def test_a_tracker_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda _: None)
    check_tracker("none")
    with pytest.raises(UserError, match=r"run\.tracker: wandb is not installed; `pip install 'rootstock\[track\]'`"):
        check_tracker("wandb")


def test_a_config_becomes_parameters() -> None:
    config = {"optim": {"lr": 0.1, "betas": [0.9, 0.95]}, "seed": 0, "data": {"test": None}}
    assert flat(config) == {"optim.lr": 0.1, "optim.betas": "[0.9, 0.95]", "seed": 0, "data.test": "None"}
