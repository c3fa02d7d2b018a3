"""The README and the pages of docs/ for their tests: the fenced blocks with their marks, and commands that are checked without being run.

A block of code has a mark above it, `<!-- test: KIND ... -->`, which says what a test does with it:

    own            commands one after another, in a folder with the pictures that the pages speak of
    trained        commands on a trained classifier, runs/sketches
    exported       Python that reads what the commands `trained` of its page have exported
    api            Python that trains by rootstock.api
    try, import, pipeline, processes, make, files, sources    as the tests of these names say
    grid           a part of a pipeline: it is planned
    sweep          the file of a sweep: it runs with two trials, and its result is trained
    plain timm     Python that reads an export without Rootstock (tests/core/model/test_plain_timm.py)
    file PATH, line PATH ANCHOR, method              done by tests/test_walkthrough.py
    not run, WHY   checked only: verbs, options, configs and keys exist

Blocks of `text` have none.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import typer

from rootstock.docs.site.generated import every_command
from rootstock.launch.attribute.plan import check_attribution
from rootstock.launch.early import resolve_early
from rootstock.launch.pipeline.plan import check_pipeline

ROOT = Path(__file__).parents[1]
Draw = Callable[[Path, Iterable[str]], Path]  # the fixture `draw`
# In the order in which a reader meets them; each may stand on the runs of those before it.
FIRST = (
    "README.md",
    "docs/index.md",
    "docs/first-steps.md",
    "docs/guides/unlabelled-pictures.md",
    "docs/guides/two-domains.md",
)
KINDS = {
    "own",
    "trained",
    "exported",
    "api",
    "try",
    "import",
    "pipeline",
    "processes",
    "make",
    "files",
    "grid",
    "sweep",
    "sources",
    "plain timm",
    "file",
    "line",
    "method",
    "not run",
}
TRAININGS = ("pretrain", "probe", "finetune", "adapt")
_BLOCK = re.compile(
    r"^(?P<indent> *)(?:<!-- test: (?P<mark>.*?) -->\n *)?```(?P<language>[^\n`]*)\n(?P<body>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    page: str
    line: int
    language: str
    mark: str  # what stands in <!-- test: ... -->; "" without one
    body: str

    @property
    def kind(self) -> str:
        """The mark's kind: `not run` of `not run, needs 8 GPUs`."""
        if self.mark.startswith(("not run", "plain timm")):
            return self.mark.partition(",")[0]
        return self.mark.partition(" ")[0]

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """Each line as a shell would split it."""
        lines = self.body.replace("\\\n", " ").replace("&&", "\n").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


@cache
def documents() -> dict[str, str]:
    """README.md and the pages of docs/ by their path."""
    found = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))]
    order = [*FIRST, *(path for path in found if path not in FIRST)]
    return {path: (ROOT / path).read_text(encoding="utf-8") for path in order}


@cache
def blocks() -> tuple[Block, ...]:
    """Every fenced block of all pages."""
    found = []
    for page, text in documents().items():
        here = list(_BLOCK.finditer(text))
        fences = len(re.findall(r"^ *```", text, re.MULTILINE))
        assert fences == 2 * len(here), f"{page}: {fences} fences make {len(here)} blocks"
        for match in here:
            body = re.sub(f"^{match['indent']}", "", match["body"], flags=re.MULTILINE)
            line = text.count("\n", 0, match.end()) - body.count("\n")
            found.append(Block(page, line, match["language"], match["mark"] or "", body))
    return tuple(found)


def of_kind(kind: str) -> list[Block]:
    """The blocks of a kind, one or more."""
    chosen = [block for block in blocks() if block.kind == kind]
    assert chosen, f"no block is marked <!-- test: {kind} -->"
    return chosen


def commands(kind: str) -> list[list[str]]:
    """The different commands of all blocks of a kind."""
    found = {shlex.join(command): command for block in of_kind(kind) for command in block.commands}
    return list(found.values())


def given(command: list[str], key: str) -> str:
    """The value of KEY=VALUE in a command."""
    (value,) = [word.partition("=")[2] for word in command if word.startswith(f"{key}=")]
    return value


def check_command(command: list[str]) -> None:
    """Fails unless verb and options of a rootstock command exist, and config and keys resolve. Starts nothing."""
    while re.match(r"[A-Z_]+=", command[0]):  # a variable of the environment
        command = command[1:]
    words = command[1:]
    if Path(command[0]).name != "rootstock":  # torchrun ... -m rootstock VERB, accelerate launch -m rootstock VERB
        at = [k for k, (flag, name) in enumerate(pairwise(command)) if (flag, name) == ("-m", "rootstock")]
        if not at:
            return
        words = command[at[0] + 2 :]
    known = dict(every_command())
    name = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]
    assert name in known, f"{name}: no such verb"
    rest, verb = words[len(name.split()) :], known[name]
    parsed, left, _ = verb.make_parser(typer.Context(verb)).parse_args(list(rest))
    assert not left, f"{name}: {left} too many"
    if any(p.is_eager and parsed.get(p.name) for p in verb.params):  # --help, or another that answers before all else
        return
    missing = [p.name for p in verb.params if p.required and parsed.get(p.name) in (None, [], ())]
    assert not missing, f"{name}: {missing} missing"
    _check_config(name, parsed)


def _check_config(name: str, parsed: dict[str, Any]) -> None:
    overrides = list(parsed.get("overrides") or [])
    if any(
        str(parsed.get(key)).startswith("runs/") for key in ("config", "pipeline")
    ):  # of a run that the reader has made
        return
    if name in TRAININGS and parsed["config"] is None:  # lists those that ship
        return
    if name in TRAININGS:
        resolve_early(name, parsed["config"], overrides)
    elif name == "launch":
        resolve_early(parsed["name"], parsed["config"], overrides)
    elif name == "run":
        check_pipeline(parsed["config"], overrides, resolve_early)
    elif name == "demo":
        check_pipeline("demo.yaml", overrides, resolve_early)
    elif name == "attribute":
        check_attribution(parsed["config"], overrides, resolve_early)


def drawn(folder: Path, draw: Draw) -> Path:
    """A folder of one's own with the pictures that the pages speak of."""
    classes = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(5)]
    draw(folder / "photos", classes)
    draw(folder / "sketches", classes)
    draw(folder / "unlabeled", [f"{i}.jpg" for i in range(8)])
    return folder
