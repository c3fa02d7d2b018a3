"""The typer application, and the arguments and options that several verbs have."""

import functools
import inspect
import io
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from .. import __doc__ as about
from .. import __version__
from ..core.errors import UserError
from ..core.loudness import OPTIONS, Loudness, speaking
from .examples import epilog
from .exits import answer

COMPLETION = "_ROOTSTOCK_COMPLETE"  # set by the shell, which asks for the script or for words
app = typer.Typer(
    help=about,
    epilog="N processes: rootstock launch --nproc N VERB ..., or torchrun --nproc_per_node=N -m rootstock VERB ...",
    # Only where a shell asks for completions (`completion.py`): otherwise typer would add two options to the help.
    add_completion=COMPLETION in os.environ,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Plain help: rich would double the time of `--help`.
    rich_markup_mode=None,
)

validators_app = typer.Typer(
    help="Measure how well validators choose models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(validators_app, name="validators")


def complete_config(ctx: typer.Context, incomplete: str) -> list[str]:
    """Configs for the shell; imported when asked, like all that takes time."""
    from . import completion

    return completion.configs(ctx, incomplete)


def complete_override(ctx: typer.Context, incomplete: str) -> list[str]:
    """Keys for the shell."""
    from . import completion

    return completion.overrides(ctx, incomplete)


def complete_key(incomplete: str) -> list[str]:
    """Keys to explain, for the shell."""
    from . import completion

    return completion.keys(incomplete)


def complete_validator(incomplete: str) -> list[str]:
    """Names of validators, for the shell."""
    from . import completion

    return completion.validators(incomplete)


def complete_verb(incomplete: str) -> list[str]:
    """Verbs to launch, for the shell."""
    from . import completion

    return completion.verbs(incomplete)


ConfigArgument = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG",
        help="A YAML file, here or among the configs that ship, such as `small`. Without it, these are listed.",
        show_default=False,
        autocompletion=complete_config,
    ),
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Keys of the file, e.g. optim.lr=3e-4 seed=1.",
        show_default=False,
        autocompletion=complete_override,
    ),
]
DryOption = Annotated[
    bool, typer.Option("--dry-run", help="Say how long it would take, by a few real steps within 10 s; write nothing.")
]
NprocOption = Annotated[
    int | None, typer.Option(metavar="N", help="Processes on this node; one a GPU if left out.", show_default=False)
]
NodesOption = Annotated[int, typer.Option(metavar="M", help="Nodes. The same command runs on each.")]
RendezvousOption = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Address of one of several nodes, the same on all.")
]
JobOption = Annotated[
    str | None,
    typer.Option(metavar="ID", help="Tells launches at one rendezvous apart; SLURM's job number by default."),
]


def verb(work: Callable[..., int | None], of: typer.Typer = app, *, logs: bool = True) -> Callable[..., None]:
    """Make `NAME_command` the verb NAME: its errors become sentences, and what it returns becomes the exit code.

    Without its CONFIG it lists the configs that ship. of: a group of verbs. logs: whether it says what it does, so that -q and -v mean
    something.
    """
    name = work.__name__.removesuffix("_command")

    @functools.wraps(work)
    def answered(*args: Any, quiet: bool = False, verbose: bool = False, **given: Any) -> None:
        if given.get("config") == "":
            from .shipped import listing

            launched = given.get("name")
            if os.environ.get("RANK", "0") == "0":
                typer.echo(listing(launched or name, bool(launched)), err=True)
            raise typer.Exit(2)

        def work_aloud() -> int | None:
            if quiet and verbose:
                raise UserError(f"{' and '.join(OPTIONS.values())} contradict each other; give one of them")
            if "=" in (config := given.get("config") or "") and not os.path.exists(config):
                raise UserError(
                    f"{config} stands where the config belongs; `rootstock {name}` alone lists those that ship"
                )
            with speaking(Loudness.QUIET if quiet else Loudness.VERBOSE if verbose else Loudness.NORMAL):
                return work(*args, **given)

        raise typer.Exit(answer(work_aloud))

    if logs:
        _add_loudness(answered)
    return of.command(name, epilog=epilog(name))(answered)


QuietOption = Annotated[bool, typer.Option("-q", "--quiet", help="Print warnings, errors and the verdict alone.")]
VerboseOption = Annotated[
    bool, typer.Option("-v", "--verbose", help="Print also each logged step, checkpoint, evaluation and set of images.")
]


def _add_loudness(command: Callable[..., None]) -> None:
    """Give a verb the options -q and -v beside its own."""
    own = inspect.signature(command)
    added = {"quiet": QuietOption, "verbose": VerboseOption}
    more = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for key, kind in added.items()
    ]
    command.__signature__ = own.replace(parameters=[*own.parameters.values(), *more])  # pyright: ignore[reportFunctionMemberAccess]
    command.__annotations__ = {**command.__annotations__, **added}


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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may hold what the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
