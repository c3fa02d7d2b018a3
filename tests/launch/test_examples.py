"""The examples that end each verb's help: the command line takes them, and what they name resolves as if they were run."""

import shlex
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer

from rootstock.core.model.backbone import create
from rootstock.core.model.classifier import Classifier
from rootstock.launch.attribute.plan import check_attribution
from rootstock.launch.cli import app
from rootstock.launch.dry import build_dry
from rootstock.launch.examples import HELP_EXAMPLES
from rootstock.launch.pipeline.plan import check_pipeline
from rootstock.launch.sweep.plan import plan_sweep
from rootstock.launch.verbs import resolve

Rootstock = Callable[..., subprocess.CompletedProcess[str]]
ROOT_COMMAND: Any = typer.main.get_command(app)
GROUPS = {"score": "validators"}
LINES = [(verb, line) for verb, lines in HELP_EXAMPLES.items() for line in lines]


def commands(group: Any = ROOT_COMMAND) -> dict[str, Any]:
    """Every verb by name, of groups too."""
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        found |= commands(command) if hasattr(command, "commands") else {name: command}
    return found


def parsed(line: str) -> tuple[str, Mapping[str, Any]]:
    """The verb of a line, and what the parser of the command line makes of the rest."""
    words = shlex.split(line.partition(">")[0])
    assert words[0] == "rootstock"
    verb = words[1] if words[1] not in GROUPS.values() else words[2]
    rest = words[2 if words[1] not in GROUPS.values() else 3 :]
    context = commands()[verb].make_context(verb, rest)
    return verb, context.params


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, draw: Callable[[Path, Iterable[str]], Path]) -> Path:
    """A folder with the pictures and the runs that the examples name."""
    folder = tmp_path_factory.mktemp("place")
    draw(folder / "photos", (f"{i}.png" for i in range(40)))
    for name in ("labelled", "sketches"):
        draw(folder / name, (f"{'ab'[i % 2]}/{i}.png" for i in range(40)))
    network = create(32, name="smallconv", args={"widths": (4, 4, 6, 8)})
    network.export(folder / "runs" / "small_pretrained")
    (folder / "runs" / "small_pretrained" / "config.yaml").write_text("data: {train: 'folder:photos', size: 32}\n")
    for name in ("small_finetuned", "small"):
        Classifier(network, ["a", "b", "c"]).export(folder / "runs" / name)
    return folder


def test_every_verb_has_two_examples_in_its_help(rootstock: Rootstock) -> None:
    assert set(HELP_EXAMPLES) == set(commands())
    for verb, lines in HELP_EXAMPLES.items():
        words = [GROUPS[verb], verb] if verb in GROUPS else [verb]
        assert len(set(lines)) == 2
        shown = rootstock(*words, "--help").stdout.rstrip()
        assert shown.endswith("Examples:\n" + "\n".join(f"    {line}" for line in lines)), shown


@pytest.mark.parametrize(("verb", "line"), LINES, ids=[line for _, line in LINES])
def test_an_example_runs_as_printed(
    verb: str, line: str, place: Path, rootstock: Rootstock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    named, given = parsed(line)
    assert named == verb
    config, overrides = str(given.get("config") or ""), given.get("overrides") or []
    if verb in ("pretrain", "probe", "finetune", "adapt", "launch"):  # everything before the first step
        what = given["name"] if verb == "launch" else verb
        build_dry(what, resolve(what, config, overrides))
    elif verb in ("run", "demo"):
        check_pipeline(config or "demo.yaml", overrides, resolve)
    elif verb == "attribute":
        check_attribution(config, overrides, resolve)
    elif verb == "sweep":
        plan_sweep(config, overrides)
    elif verb in ("data", "predict", "embed", "schema", "help") or (verb == "export" and not given["onnx"]):
        done = rootstock(*shlex.split(line.partition(">")[0])[1:])
        assert done.returncode == 0, done.stderr


def test_the_commands_of_the_page_are_taken_by_the_parser() -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/command-line.md").read_text()
    blocks = page.split("```sh\n")[1:]
    lines = [
        line for block in blocks for line in block.partition("```")[0].splitlines() if line.startswith("rootstock ")
    ]
    assert len(lines) >= 5
    for line in lines:
        verb, given = parsed(line)
        assert verb == "pretrain"
        if given["config"] and not given["config"].startswith("runs/"):
            assert resolve(verb, given["config"], given["overrides"] or [])
