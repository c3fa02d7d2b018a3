"""The command line from outside: quick to answer, one sentence for a mistake, and never in the way of Python's ssl."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from rootstock.core.errors import UserError
from rootstock.launch import early
from rootstock.launch.cli import app

ROOT = Path(__file__).parents[2]


def rootstock(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rootstock", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def cpu_seconds(*arguments: str, code: int = 0, runs: int = 3) -> float:
    """The least user + system time of some runs of Python: unlike wall time, it does not depend on what else runs."""
    seconds = []
    for _ in range(runs):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=False)
        assert done.returncode == code, done.stderr
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(seconds)


def test_help_answers_at_once() -> None:
    assert cpu_seconds("-m", "rootstock", "--help") < 4 * cpu_seconds("-c", "pass") + 0.3


def without_torch(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """A command in a fresh interpreter, which fails with exit code 99 if it has imported what takes seconds.

    Whether the schema that ships is up to date is tests/launch/test_schema_file.py's to say.
    """
    code = (
        f"import sys; sys.argv = ['rootstock', *{arguments!r}]\n"
        "from rootstock.launch import early\n"
        "from rootstock.launch.cli import main\n"
        "early.is_current = lambda schema: True\n"
        "try: main()\nexcept SystemExit as end: code = end.code\n"
        "heavy = {'torch', 'numpy', 'sklearn', 'timm', 'accelerate', 'matplotlib'} & set(sys.modules)\n"
        "if heavy: print(f'imported {heavy}', file=sys.stderr)\n"
        "sys.exit(99 if heavy else code)"
    )
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["pretrain", "--help"], 0),
        (["--version"], 0),
        (["pretran"], 2),
        (["help"], 0),
        (["help", "optim.lr"], 0),
        (["validators", "score", "--help"], 0),
    ],
)
def test_what_needs_no_torch_imports_none(arguments: list[str], code: int) -> None:
    done = without_torch(*arguments)
    assert done.returncode == code, done.stderr


MISTAKES = {
    "a key": (
        ["pretrain", "simclr", "method.temprature=1"],
        "method.temprature: unknown key; did you mean temperature?",
    ),
    "a method": (
        ["pretrain", "simclr", "method=simcrl"],
        "method.name: unknown name simcrl; did you mean simclr? (known: ",
    ),
    "a config": (
        ["pretrain", "simcrl"],
        "simcrl: no such config here or among those that ship; did you mean pretrain/simclr",
    ),
    "a config with its folder": (["probe", "probe/digit.yaml"], "did you mean probe/digits.yaml?"),
    "a type": (["finetune", "digits", "optim.lr=fast"], 'optim.lr: expected a number, got "fast"'),
    "a key of adapt": (["adapt", "dann", "optim.lrr=1"], "optim.lrr: unknown key; did you mean lr?"),
    "of several processes": (["launch", "pretrain", "simclr", "sede=1"], "sede: unknown key; did you mean seed?"),
    "a verb to launch": (["launch", "pretran", "simclr"], "launch pretran: expected one of pretrain, probe, "),
    "a pipeline": (
        ["run", "dmeo.yaml"],
        "dmeo.yaml: no such config here or among those that ship; did you mean demo.yaml?",
    ),
    "a stage": (
        ["run", "demo.yaml", "stages.simclr.optim.lrr=1"],
        "pretrain/digits_simclr.yaml: optim.lrr: unknown key; did you mean lr?",
    ),
    "an attribution": (
        ["attribute", "attribute_digits.yaml", "reponse=adapt"],
        "reponse: unknown key; did you mean response?",
    ),
    "a stage of an attribution": (
        ["attribute", "attribute_digits.yaml", "stages.adapt.optim.lrr=1"],
        "adapt/digits_dann.yaml: optim.lrr: unknown key; did you mean lr?",
    ),
    "a sweep": (["sweep", "digits_m", "trails=1"], "trails: unknown key; did you mean trials?"),
    "a key to explain": (["help", "optim.lrr"], "optim.lrr: unknown key; did you mean lr?"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_before_torch_is_imported(mistake: str) -> None:
    arguments, sentence = MISTAKES[mistake]
    done = without_torch(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and sentence in done.stderr and done.stdout == ""


def test_a_mistake_is_answered_at_once() -> None:
    """In less than the import of torch alone takes, which a mistake need not wait for."""
    assert cpu_seconds("-m", "rootstock", "pretrain", "simclr", "sede=1", code=2, runs=2) < cpu_seconds(
        "-c", "import torch", runs=1
    )


@pytest.mark.parametrize("arguments", [arguments for arguments, _ in list(MISTAKES.values())[:6]], ids=" ".join)
def test_the_full_check_says_the_same(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(early, "stored_schema", lambda: None)  # nothing is checked early
    assert refused(*arguments) == 2
    assert without_torch(*arguments).stderr == capsys.readouterr().err


def test_a_schema_that_is_out_of_date_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(early, "is_current", lambda schema: True)
    arguments = ("pretrain", "simclr", ["method=simcrl"])
    with pytest.raises(UserError, match="unknown name simcrl"):
        early.check_config_early(*arguments)
    monkeypatch.setattr(early, "is_current", lambda schema: False)
    early.check_config_early(*arguments)
    monkeypatch.setattr(early, "stored_schema", lambda: None)
    early.check_config_early(*arguments)


@pytest.mark.parametrize(
    ("words", "proposed"),
    [
        ("pret", ["pretrain"]),
        ("pretrain simc", ["simclr", "simclr_probe.yaml"]),
        ("pretrain pretrain/simc", ["pretrain/simclr.yaml"]),
        ("pretrain conf", ["configs/"]),
        ("pretrain simclr optim.lr", ["optim.lr=", "optim.lr_scaling="]),
        ("probe digits method", []),
        ("launch fine", ["finetune"]),
        ("launch adapt digits_da", ["digits_dann", "digits_dann_shift"]),
        ("launch adapt digits_dann method.proj", []),
        ("help optim.lr", ["optim.lr", "optim.lr_scaling"]),
        ("validators score --validator snd", ["snd"]),
    ],
)
def test_the_shell_completes(words: str, proposed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_ROOTSTOCK_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"rootstock {words}")
    monkeypatch.setenv("COMP_CWORD", str(len(words.split())))
    done = without_torch()
    assert (done.returncode, done.stdout.split()) == (0, proposed), done.stderr


def test_completion_adds_no_option(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "completion" not in rootstock("--help").stdout
    monkeypatch.setenv("_ROOTSTOCK_COMPLETE", "source_bash")
    assert "complete -o default -F _rootstock_completion rootstock" in rootstock().stdout


def test_help_names_every_verb() -> None:
    shown = rootstock("--help").stdout
    for verb in (
        "demo",
        "run",
        "pretrain",
        "probe",
        "finetune",
        "adapt",
        "try",
        "data",
        "import",
        "predict",
        "embed",
        "export",
        "explain",
        "sweep",
        "report",
        "validators",
        "doctor",
        "schema",
        "help",
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
