"""The doctor finds nothing wrong on this machine, and names what is wrong where a test breaks something."""

import json
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from rootstock.launch.doctor import examine, installed, machine
from rootstock.launch.doctor.findings import Finding
from rootstock.launch.doctor.objects import object_storage
from rootstock.tests.objectstore import without_s3fs


def test_this_machine_is_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rootstock: Callable[..., Any]) -> None:
    monkeypatch.chdir(tmp_path)  # where files are written and read
    done = rootstock("doctor")
    assert done.returncode == 0, done.stdout
    assert "nothing essential is wrong" in done.stdout and "two gloo processes add up" in done.stdout
    assert f"torch {metadata.version('torch')}" in done.stdout
    assert "images/s per core" in done.stdout and "small files/s" in done.stdout
    assert not list(tmp_path.iterdir())


def test_scripts_get_json_and_nothing_else(monkeypatch: pytest.MonkeyPatch, rootstock: Callable[..., Any]) -> None:
    def wrong() -> Iterator[Finding]:
        yield Finding("wrong", "disk", "full", {"free": 0})

    monkeypatch.setattr(examine, "CHECKS", (wrong,))
    done = rootstock("doctor", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout) == {
        "wrong": 1,
        "findings": [{"verdict": "wrong", "subject": "disk", "said": "full", "free": 0}],
    }


def test_options_of_several_processes_need_them_named(rootstock: Callable[..., Any]) -> None:
    done = rootstock("doctor", "--nproc", "2")
    assert done.returncode == 2 and "--distributed; add it" in done.stderr


def test_a_missing_and_an_old_package_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "lightly":
            raise metadata.PackageNotFoundError(name)
        return "2.0.0" if name == "torch" else real(name)

    monkeypatch.setattr(installed, "version", version)
    wrong = [finding.message for finding in installed.packages() if finding.verdict == "wrong"]
    assert any("lightly is missing" in said for said in wrong)
    assert any("torch 2.0.0 is not >=2.11" in said for said in wrong)
    assert len(wrong) == 2


def test_a_check_that_stops_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> Iterator[Finding]:
        yield Finding("ok", "half", "this far")
        raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(examine, "CHECKS", (broken, machine.memory))
    assert examine.examine() == 1
    said = capsys.readouterr().out
    assert "this far" in said and "libGL.so.1" in said and "memory" in said and "1 wrong" in said


def test_a_wrong_pair_of_torch_and_torchvision_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise RuntimeError("Couldn't load custom C++ ops.")

    monkeypatch.setattr("torchvision.ops.nms", missing)
    (finding,) = installed.torchvision()
    assert finding.verdict == "wrong" and "matching pair" in finding.message


def test_a_full_disk_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2**20}))
    assert all(finding.verdict == "note" and "only 0.0 GiB free" in finding.message for finding in machine.disk())


def test_a_busy_machine_is_noted() -> None:
    quiet, busy = machine.cpu(2, 2, 0.4), machine.cpu(2, 2, 3.1)
    assert (quiet.verdict, busy.verdict) == ("ok", "note")
    assert "load average 3.1" in busy.message and "OMP_NUM_THREADS=1" in busy.message
    assert busy.facts == {"cores": 2, "threads": 2, "load": 3.1}


def test_object_storage_is_said_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs", reason="s3fs is not installed (the extra `s3`)")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:hunter2@127.0.0.1:9000/x")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDOFATEST")
    (found,) = object_storage()
    assert (
        found.verdict == "ok"
        and "reads s3:// at 127.0.0.1:9000, with the credentials of the environment" in found.message
    )
    assert "hunter2" not in found.message and "AKIDOFATEST" not in found.message
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert "at Amazon's endpoint, with the profile work" in next(object_storage()).message
    without_s3fs(monkeypatch)
    (found,) = object_storage()
    assert found.verdict == "note" and "`pip install 'rootstock[s3]'`" in found.message
