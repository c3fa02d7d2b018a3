"""The command line from outside: quick to answer, one sentence for a mistake, and never in the way of Python's ssl."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from rootstock.launch.cli import app

ROOT = Path(__file__).parents[2]


def rootstock(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rootstock", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def cpu_seconds(*arguments: str) -> float:
    """The least user + system time of three runs of Python: unlike wall time, it does not depend on what else runs."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(seconds)


def test_help_answers_at_once() -> None:
    assert cpu_seconds("-m", "rootstock", "--help") < 4 * cpu_seconds("-c", "pass") + 0.3


@pytest.mark.parametrize("arguments", [["--help"], ["pretrain", "--help"], ["--version"], ["pretran"]])
def test_what_needs_no_torch_imports_none(arguments: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['rootstock', *{arguments!r}]\n"
        "from rootstock.launch.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'sklearn', 'timm', 'accelerate', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_names_every_verb() -> None:
    shown = rootstock("--help").stdout
    for verb in (
        "demo",
        "run",
        "pretrain",
        "probe",
        "finetune",
        "adapt",
        "data",
        "import",
        "sweep",
        "report",
        "doctor",
        "schema",
    ):
        assert f"\n  {verb} " in shown
    assert "..." not in shown.partition("Commands:")[2].replace("VERB ...", "")  # no description is cut off


@pytest.mark.parametrize("folder", [ROOT, ROOT / "launch", ROOT / "tests"], ids=lambda path: path.name)
def test_ssl_is_pythons_own(folder: Path) -> None:
    code = "import ssl, urllib.request, asyncio; print(ssl.OPENSSL_VERSION)"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert "SSL" in done.stdout, done.stderr


def test_an_unknown_verb_is_the_users_mistake() -> None:
    done = rootstock("pretran", "x.yaml")
    assert done.returncode == 2
    assert "pretran" in done.stderr and "pretrain" in done.stderr
    assert "Traceback" not in done.stderr


def refused(*arguments: str) -> int | str | None:
    """The exit code of a command called in this process, which has torch imported already."""
    with pytest.raises(SystemExit) as end:
        app(arguments, prog_name="rootstock")
    return end.value.code


def test_a_missing_config_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused("pretrain", "no/such.yaml") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: no/such.yaml") and said.count("\n") == 1


def test_a_misspelt_key_is_named_with_the_one_that_was_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = "pretrain/digits_simclr.yaml", tmp_path / "run"
    assert refused("pretrain", config, "method.temprature=0.1", f"run.dir={folder}") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "method.temprature" in said and "did you mean temperature" in said
    assert not folder.exists()


def test_a_missing_run_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused("report", str(tmp_path / "no-such-run")) == 2
    assert "no-such-run does not exist" in capsys.readouterr().err
