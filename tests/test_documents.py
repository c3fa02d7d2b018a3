"""README and the pages of docs/: every block has a mark, every command, option, config, key, link and name that they speak of exists."""

from __future__ import annotations

import configparser
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootstock.adapt.registry import ADAPT_METHODS
from rootstock.adapt.validators.registry import VALIDATORS
from rootstock.core.images.open import SCHEMES
from rootstock.docs.site.generated import all_keys, every_command, generated
from rootstock.docs.site.links import anchors, targets
from rootstock.docs.site.stage import REPOSITORY, is_outside, page_text, pages, resolved, staged_text
from rootstock.launch.pipeline.sections import pipeline
from rootstock.launch.sweep.sections import sweep
from rootstock.ssl.registry import PRETRAIN_METHODS
from rootstock.tests.documents import KINDS, ROOT, Block, blocks, check_command, commands, documents, of_kind

README = documents()["README.md"]
STAGED = {path: staged_text(path, pages(), generated) for path in pages()}
LINKED = [*pages(), "README.md"]
WRITTEN = {block.mark.split()[1] for block in of_kind("file")}  # by who adds a method


def code(text: str) -> list[str]:
    """What stands in `code`, one line each."""
    outside = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", outside)


@pytest.mark.parametrize("block", blocks(), ids=lambda block: block.where)
def test_every_block_has_a_mark(block: Block) -> None:
    if block.language == "text" or block.language.startswith("{"):
        assert not block.mark, f"{block.where}: a block of {block.language} is not tested"
        return
    assert block.language in ("sh", "python", "yaml"), f"{block.where}: say sh, python, yaml or text behind the fence"
    assert block.kind in KINDS, f"{block.where}: no mark <!-- test: KIND -->; tests/documents.py has the kinds"
    if block.kind == "not run":
        assert re.match(r"not run, \w", block.mark), f"{block.where}: say why, <!-- test: not run, needs 8 GPUs -->"
        assert block.language == "sh", f"{block.where}: only commands may be left out"


CHECKED: set[str] = set()


@pytest.mark.parametrize(
    "block", [block for block in blocks() if block.language == "sh"], ids=lambda block: block.where
)
def test_every_command_could_run(block: Block) -> None:
    for command in block.commands:
        line = shlex.join(command)
        if line not in CHECKED and not WRITTEN & {f"configs/{word}.yaml" for word in command}:
            check_command(command)
            CHECKED.add(line)


def test_a_command_that_cannot_run_is_found() -> None:
    right = ["rootstock", "pretrain", "small", "optim.lr=1e-3"]
    check_command(right)
    for wrong in (
        ["rootstock", "pretrian", "small"],
        ["rootstock", "pretrain", "smal"],
        ["rootstock", "pretrain", "small", "optim.rate=1"],
        ["rootstock", "predict", "runs/x", "folder:x"],
        ["rootstock", "export", "runs/x", "--to", "y", "--onxn"],
        ["torchrun", "--nproc_per_node=2", "-m", "rootstock", "pretrain", "small", "optim.rate=1"],
    ):
        with pytest.raises(Exception, match=r".+"):
            check_command(wrong)


def test_setting_up_is_what_the_makefile_does() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for program, *arguments in commands("make"):
        if program == "make":
            assert re.search(rf"^{arguments[0]}:|^[\w -]*\b{arguments[0]}\b[\w -]*: \$", makefile, re.MULTILINE), (
                arguments
            )
        else:
            assert program == "."
            assert arguments == [f"{re.search(r'^VENV := (.*)', makefile, re.MULTILINE)[1]}/bin/activate"]  # pyright: ignore[reportOptionalSubscript]


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_the_readme_shows_in_full_on_pypi() -> None:
    """Where a relative link or picture would lead nowhere."""
    assert {target for target in targets(README) if not target.startswith("https://")} == set()


def links() -> Iterator[tuple[str, str]]:
    """(page, target) of each link within the repository."""
    for page in LINKED:
        text = STAGED.get(page, README)
        for target in {*targets(page_text(page))} if page in STAGED else targets(text):
            raw = re.match(r"https://raw\.githubusercontent\.com/rootstock-ml/rootstock/main/(.*)", target)
            if target.startswith(f"{REPOSITORY}/blob/main/") or raw:
                yield "README.md", raw[1] if raw else target.removeprefix(f"{REPOSITORY}/blob/main/")
            elif not is_outside(target):
                yield page, target


def test_every_link_leads_somewhere() -> None:
    """A file of the repository; behind `#` a heading of the page. Those of generated parts count."""
    found = sorted(set(links()))
    assert len(found) > 100
    heads = {path: set(anchors(STAGED.get(path) or page_text(path))) for path in LINKED}
    for page, target in found:
        named, anchor = resolved(target, page)
        assert (ROOT / named).exists(), f"{page}: {target} names no file"
        if anchor:
            assert anchor in heads[named], f"{page}: {target} names no heading"


def test_every_page_is_in_the_navigation() -> None:
    trees = re.findall(
        r"```\{toctree\}\n(.*?)```", documents()["docs/index.md"] + documents()["docs/measurements.md"], re.DOTALL
    )
    named = {line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")}
    for place in pages().values():
        name = place.removesuffix(".md")
        assert name == "index" or name in named or f"{name.rpartition('/')[0]}/*" in named, place


@pytest.mark.parametrize(("page", "names"), [("pretraining", PRETRAIN_METHODS), ("adaptation", ADAPT_METHODS)])
def test_every_method_has_a_row_a_section_and_its_paper(page: str, names: dict[str, type]) -> None:
    text = documents()[f"docs/methods/{page}.md"]
    verb = {"pretraining": "pretrain", "adaptation": "adapt"}[page]
    assert sorted(re.findall(r"^\| \[`(\w+)`\]\(#\1\)", text, re.MULTILINE)) == sorted(names)
    for name, kind in names.items():
        row = re.search(rf"^\| \[`{name}`\]\(#{name}\) \|.*$", text, re.MULTILINE)
        section = text.partition(f"\n### {name}\n")[2].partition("\n### ")[0]
        assert row and section, f"{name}: no row or no section"
        assert f"<!-- generated: method {verb} {name} -->" in section, name
        assert re.search(r"configs/[\w/]+\.yaml", section), f"{name}: the section names no config"
        assert "$" in section or name == "adabn", f"{name}: no equation"
        for number in re.findall(r"arXiv:(\d{4}\.\d{5})", (inspect.getmodule(kind).__doc__ or "")):  # pyright: ignore[reportOptionalMemberAccess]
            assert number in row[0], f"{name}: arXiv:{number} is not in its row"


def test_every_key_is_on_its_page() -> None:
    keys = STAGED["docs/reference/keys.md"]
    of_methods = {
        verb: STAGED[f"docs/methods/{page}.md"] for verb, page in (("pretrain", "pretraining"), ("adapt", "adaptation"))
    }
    for key in all_keys():
        if key.names[-1] or (key.parts[-1] == "name" and len(key.parts) > 1 and key.names[-2]):
            continue  # a choice of a key, and the word that chooses it
        heading = len(key.parts) == 1 and f"\n## `{key.path}`\n" in keys
        assert heading or f"| `{key.path}`" in keys + of_methods.get(key.verb, ""), f"{key.verb}: {key.path}"


def test_every_command_and_validator_is_on_its_page() -> None:
    verbs = STAGED["docs/reference/commands.md"]
    for name, command in every_command():
        part = verbs.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert command.help in part, name
        assert all(
            option in part for p in command.params if not p.hidden for option in p.opts if option.startswith("--")
        ), name
    chosen = STAGED["docs/methods/validators.md"]
    assert all(
        f"| `{name}` |" in chosen and one.blind_to.replace("|", "\\|") in chosen for name, one in VALIDATORS.items()
    )


def test_the_readme_counts_right() -> None:
    counts = re.findall(r"(\d+) (?:methods )?of\n?\s*\[(\w+)\]|(\d+)\n?\s*\[(validators)\]", README)
    found = {name or other: int(number or second) for number, name, second, other in counts}
    assert found == {
        "pretraining": len(PRETRAIN_METHODS),
        "adaptation": len(ADAPT_METHODS),
        "validators": len(VALIDATORS),
    }


def test_every_source_and_its_options_are_on_their_page() -> None:
    text = (
        documents()["docs/how-to/sources.md"]
        + documents()["docs/how-to/own-pictures.md"]
        + documents()["docs/limits.md"]
    )
    for scheme in (*SCHEMES, "sklearn"):
        assert re.search(rf"^\|.*`{scheme}:", text, re.MULTILINE), scheme
    known = {name for opener in SCHEMES.values() for name in inspect.signature(opener).parameters}
    spoken = set(re.findall(r"[?&](\w+)=", " ".join(code(text))))
    assert spoken - known - {"labels", "classes"} == set()


@pytest.mark.parametrize("page", documents())
def test_what_a_page_speaks_of_exists(page: str) -> None:
    """Configs, verbs with their options, keys of configs, and files of the repository, in what stands in `code`."""
    text = documents()[page]
    for config in set(re.findall(r"\bconfigs/[\w/]+\.yaml", text)) - WRITTEN:
        assert (ROOT / config).is_file(), config
    verbs = dict(every_command())
    keys = {spelling for key in all_keys() for spelling in key.spellings}
    sections = {key.path for key in all_keys() if len(key.parts) == 1}
    for words in code(text):
        if words.startswith("rootstock ") and (said := re.match(r"rootstock ([a-z]+(?: score)?)", words)):
            assert said[1] in verbs or said[1] in ("validators",), words
            options = {option for p in verbs[said[1]].params for option in (*p.opts, *p.secondary_opts)}
            assert set(re.findall(r"--[\w-]+", words.replace("--help", ""))) <= options, words
        for path in re.findall(r"(?:^|\s)([a-z_]+(?:\.[a-z_]+)+)(?:=|:|$)", words):
            if path.partition(".")[0] in sections and Path(path).suffix not in (".py", ".json", ".yaml"):
                assert path in keys, f"{path}: no such key"
        if (
            re.fullmatch(r"(?:core|ssl|finetune|adapt|launch|tests|benchmarks|docs)/[\w/.-]*", words)
            and words not in WRITTEN
        ):
            assert (ROOT / words).exists(), words


def given_keys(text: str) -> set[str]:
    """The keys that stand before a value in `code` as the command line takes them; what has a bracket is Python."""
    spoken = [words for words in code(text) if "(" not in words]
    return {key for words in spoken for key in re.findall(r"(?:^|\s)([a-z]\w*(?:\.\w+)*)=(?=\S)", words)}


def test_every_key_that_a_page_gives_a_value_exists() -> None:
    """Without its section it would be refused: `optim.duration=5ep`, not `duration=5ep`."""
    known = {spelling for key in all_keys() for spelling in key.spellings}
    known |= {key for file in (pipeline, sweep) for key in inspect.signature(file).parameters}
    known |= {"num_classes"}  # timm's
    found = {page: given_keys(text) - known for page, text in documents().items()}
    assert {page: keys for page, keys in found.items() if keys} == {}
    assert given_keys(
        "`optim.lr=1e-3 duration=5ep`, `f(x=1)`, `?size=8`, `A=1 rootstock demo seeds=5` y=2"
    ) - known == {"duration"}


def test_extras_that_pages_name_exist() -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    named = set(re.findall(r"rootstock\[(\w+)\]|\(?extra `(\w+)`", "".join(documents().values())))
    assert {one or other for one, other in named} <= set(settings["options.extras_require"])


def test_the_layout_is_the_repositorys() -> None:
    named = re.findall(r"^\| `(\w+)/` \|", documents()["docs/reference/layout.md"], re.MULTILINE)
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    folders = [path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")]
    held = {path.name for path in folders if path.name not in ignored and path.suffix != ".egg-info"}
    assert set(named) == held and len(named) == len(held)


def test_numbers_of_the_readme_are_on_the_page_of_measurements() -> None:
    measured = (ROOT / "benchmarks" / "demo.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| (\d[^|]+) \|$", README, re.MULTILINE)
    assert len(rows) == 6
    for label, value in rows:
        assert f"| {label} | {value} |" in measured, label
    assert of_kind("api")
