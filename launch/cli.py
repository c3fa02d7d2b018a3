"""The command line: one function a verb, which imports what it needs only when it is called.

`rootstock --help` must answer at once, and torch alone takes seconds to import.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from .. import __doc__ as about
from .. import __version__
from .exits import answer

P = ParamSpec("P")

app = typer.Typer(
    help=about,
    epilog="N processes: torchrun --standalone --nproc_per_node=N -m rootstock VERB ...",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Plain help: rich would double the time of `--help`.
    rich_markup_mode=None,
)

Config = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, here or among the configs that ship.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Keys of the file, e.g. optim.lr=3e-4 seed=1.", show_default=False),
]


def main() -> None:
    """The entry point `rootstock`."""
    app(prog_name="rootstock")


def verb(work: Callable[P, int | None]) -> Callable[P, None]:
    """Make a verb of a function: its errors become sentences, what it returns the exit code."""

    @functools.wraps(work)
    def answered(*args: P.args, **kwargs: P.kwargs) -> None:
        raise typer.Exit(answer(lambda: work(*args, **kwargs)))

    return app.command()(answered)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rootstock {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of the command itself, before the verb."""


@verb
def demo(overrides: Overrides = None) -> None:
    """Tell the whole story on real images, on two CPU cores."""
    _pipeline(str(Path(__file__).parent.parent / "configs" / "demo.yaml"), overrides)


@verb
def run(pipeline: Config, overrides: Overrides = None) -> None:
    """Run a pipeline: stages chained by name, several seeds, a report."""
    _pipeline(pipeline, overrides)


@verb
def pretrain(config: Config, overrides: Overrides = None) -> None:
    """Pretrain a backbone on unlabelled images."""
    _execute("pretrain", config, overrides)


@verb
def probe(config: Config, overrides: Overrides = None) -> None:
    """Measure frozen features: kNN, linear, few-shot."""
    _execute("probe", config, overrides)


@verb
def finetune(config: Config, overrides: Overrides = None) -> None:
    """Fine-tune a backbone on labelled images."""
    _execute("finetune", config, overrides)


@verb
def adapt(config: Config, overrides: Overrides = None) -> None:
    """Adapt from labelled source images to an unlabelled domain."""
    _execute("adapt", config, overrides)


@verb
def data(
    uri: Annotated[str, typer.Argument(metavar="URI", help="folder:PATH, tar:PATH, csv:FILE, sklearn:digits, ...")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to save the contact sheet (PNG).")] = None,
) -> int:
    """Count, hash and check a set of images; draw a contact sheet."""
    from .data import describe

    return describe(uri, out)


@verb
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs, or of one pipeline.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The page; RUN/report.html, or comparison.html here for several runs."),
    ] = None,
) -> None:
    """Make a page of a run, or one that compares several."""
    from .report import write_report

    page = out or (runs[0] / "report.html" if len(runs) == 1 else Path("comparison.html"))
    typer.echo(write_report(runs, page))


@verb
def doctor() -> int:
    """Show versions and devices, and what is wrong with them."""
    from .doctor import examine

    return examine()


@verb
def schema() -> None:
    """Print the JSON schema of every config."""
    from . import verbs

    typer.echo(json.dumps(verbs.schema(), indent=2))


def _execute(name: str, config: str, overrides: list[str] | None) -> None:
    from .verbs import execute

    execute(name, config, overrides or [])


def _pipeline(path: str, overrides: list[str] | None) -> None:
    from .pipeline import run_pipeline
    from .verbs import execute, resolve

    run_pipeline(path, overrides or [], execute, resolve)
