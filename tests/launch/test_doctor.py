"""The doctor finds this machine well, and says what is wrong where something is made wrong."""

from collections.abc import Iterator
from importlib import metadata

import pytest

from rootstock.launch import doctor
from rootstock.launch.doctor import Finding


def test_this_machine_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.examine() == 0
    said = capsys.readouterr().out
    assert "nothing essential is wrong" in said and "two gloo processes add up" in said
    assert f"torch {metadata.version('torch')}" in said


def test_a_missing_and_an_old_package_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "lightly":
            raise metadata.PackageNotFoundError(name)
        return "2.0.0" if name == "torch" else real(name)

    monkeypatch.setattr(doctor, "version", version)
    wrong = [finding.said for finding in doctor.packages() if finding.verdict == "wrong"]
    assert any("lightly is missing" in said for said in wrong)
    assert any("torch 2.0.0 is not >=2.11" in said for said in wrong)
    assert len(wrong) == 2


def test_a_check_that_stops_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> Iterator[Finding]:
        yield Finding("ok", "half", "this far")
        raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(doctor, "CHECKS", (broken, doctor.memory))
    assert doctor.examine() == 1
    said = capsys.readouterr().out
    assert "this far" in said and "libGL.so.1" in said and "memory" in said and "1 wrong" in said


def test_a_wrong_pair_of_torch_and_torchvision_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise RuntimeError("Couldn't load custom C++ ops.")

    monkeypatch.setattr("torchvision.ops.nms", missing)
    (finding,) = doctor.torchvision()
    assert finding.verdict == "wrong" and "matching pair" in finding.said


def test_a_full_disk_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2**20}))
    assert all(finding.verdict == "note" and "only 0.0 GiB free" in finding.said for finding in doctor.disk())
