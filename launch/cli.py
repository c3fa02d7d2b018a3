"""The command line: one function a verb, which imports what it needs only when it is called.

`rootstock --help` must answer at once, and torch alone takes seconds to import.
"""

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from .. import __doc__ as about
from .. import __version__
from ..core.errors import UserError
from .cluster.launcher import follow_launcher
from .cluster.launcher import launch as launch_processes
from .cluster.placement import places
from .exits import answer

P = ParamSpec("P")

app = typer.Typer(
    help=about,
    epilog="N processes: rootstock launch --nproc N VERB ..., or torchrun --nproc_per_node=N -m rootstock VERB ...",
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

Nproc = Annotated[
    int | None, typer.Option(metavar="N", help="Processes on this node; one a GPU if left out.", show_default=False)
]
Nodes = Annotated[int, typer.Option(metavar="M", help="Nodes, each of which runs this command.")]
Rendezvous = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Of one of several nodes, the same on all.")]
Job = Annotated[
    str | None, typer.Option(metavar="ID", help="Tells launches at one rendezvous apart; SLURM's job by default.")
]


def main() -> None:
    """The entry point `rootstock`."""
    follow_launcher()
    app(prog_name="rootstock")


def verb(work: Callable[P, int | None]) -> Callable[P, None]:
    """Make a verb of a function: its errors become sentences, what it returns the exit code."""

    @functools.wraps(work)
    def answered(*args: P.args, **kwargs: P.kwargs) -> None:
        raise typer.Exit(answer(lambda: work(*args, **kwargs)))

    answered.__name__ = work.__name__.rstrip("_")  # `import` is Python's own word
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
def sweep(
    config: Config,
    overrides: Overrides = None,
    workers: Annotated[int, typer.Option(metavar="N", help="Trials at one time, here.")] = 1,
) -> int:
    """Tune a config or a pipeline by many trials."""
    from .sweep.worker import run_sweep

    return run_sweep(config, overrides or [], workers)


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


def _files(folder: Path | None) -> None:
    if folder is not None:
        from .cluster.files import copy_ready

        raise typer.Exit(answer(lambda: copy_ready(folder)))


@verb
def launch(
    name: Annotated[str, typer.Argument(metavar="VERB", help="pretrain, probe, finetune or adapt.")],
    config: Config,
    overrides: Overrides = None,
    nproc: Nproc = None,
    nodes: Nodes = 1,
    rendezvous: Rendezvous = None,
    job: Job = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and start nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print the plan as JSON.")] = False,
    files: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            callback=_files,
            is_eager=True,
            help="Copy ready files for Accelerate, SLURM, SkyPilot, Kubernetes and Docker there, and exit.",
        ),
    ] = None,
) -> int:
    """Run a verb on several processes, here and on other nodes."""
    # PyTorchJob numbers its pods with RANK, by which the processes of a launch know who speaks; each pod's launcher does.
    os.environ.pop("RANK", None)
    where = places(nproc, nodes, rendezvous, job)
    if as_json and not dry:
        raise UserError("--json is for --dry-run; add it")
    if not dry:
        return launch_processes(name, config, overrides or [], where)
    from .cluster.dryrun import dry_run

    dry_run(name, config, overrides or [], where, as_json)
    return 0


@verb
def data(
    uri: Annotated[
        list[str],
        typer.Argument(
            metavar="URI", help="folder:PATH, tar:PATH, csv:FILE, sklearn:digits, ...; several: their union."
        ),
    ],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to save the contact sheet (PNG).")] = None,
    pack: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Copy the set there, into one file that pack:FOLDER opens.")
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(metavar="original|raw|jpeg", help="In a pack: the files as they are, pixels, or JPEGs made anew."),
    ] = None,
    short: Annotated[
        int | None, typer.Option(metavar="N", help="In a pack: scale pictures down to N pixels on the shorter side.")
    ] = None,
    quality: Annotated[int | None, typer.Option(metavar="Q", help="Of JPEGs made anew, 95 by default.")] = None,
    skip_damaged: Annotated[bool, typer.Option("--skip-damaged", help="Leave damaged pictures out of a pack.")] = False,
) -> int:
    """Count, hash, check and draw a set of images; or pack it."""
    options = {"format": format, "short": short, "quality": quality}
    given = {name: value for name, value in options.items() if value is not None}
    if pack is None:
        if given or skip_damaged:
            raise UserError(f"--{next(iter(given), 'skip-damaged')} is for packing; add --pack FOLDER")
        from .data import describe

        return describe(uri, out)
    if out is not None:
        raise UserError("--out is where the contact sheet goes, and --pack draws none; give one of them")
    from ..core.images.pack.record import Packing
    from .pack import pack_set

    return pack_set(uri, pack, Packing(**given), skip_damaged)


@verb
def import_(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A .pth, .pth.tar, .pt, .ckpt, .bin or .safetensors file.")
    ],
    to: Annotated[Path, typer.Option(metavar="RUN", help="The new folder, for backbone.weights=RUN.")],
    project: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="PROJECT",
            help="timm, torchvision, mae, dino, dinov2, moco, solo, lightly, vissl, simmim, ijepa, or auto.",
        ),
    ] = "auto",
    name: Annotated[
        str | None, typer.Option(metavar="TIMM_MODEL", help="The architecture; told by the shapes if left out.")
    ] = None,
    size: Annotated[int | None, typer.Option(metavar="N", help="Pixels, if other than the weights'.")] = None,
    args: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An argument of the timm model; may be repeated.")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="Of its normalisation; ImageNet's if left out.")
    ] = None,
    std: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="Of its normalisation; ImageNet's if left out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
) -> int:
    """Make a backbone of weights that others published."""
    from .importing import import_weights

    return import_weights(
        path, project, to, name=name, size=size, arguments=args or [], mean=mean, std=std, as_json=as_json
    )


@verb
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs, or of one pipeline.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The page; RUN/report.html, or comparison.html here for several runs."),
    ] = None,
) -> None:
    """Make a page of a run, or one that compares several."""
    from .report.page import write_report

    page = out or (runs[0] / "report.html" if len(runs) == 1 else Path("comparison.html"))
    typer.echo(write_report(runs, page))


@verb
def runs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with runs below it.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """List runs: state, step, headline metric, host and age."""
    from .runs import list_runs

    list_runs(folder, as_json)


@verb
def doctor(
    distributed: Annotated[
        bool, typer.Option("--distributed", help="Examine several processes: reachability, bandwidth, and N == 1.")
    ] = False,
    nproc: Nproc = None,
    nodes: Nodes = 1,
    rendezvous: Rendezvous = None,
    job: Job = None,
    device: Annotated[str, typer.Option(metavar="auto|cpu", help="Of the processes.")] = "auto",
    timeout: Annotated[int, typer.Option(metavar="S", help="Seconds that they wait for each other.")] = 120,
    as_json: Annotated[bool, typer.Option("--json", help="Print what is found as JSON.")] = False,
) -> int:
    """Show versions, devices and rates, and what is wrong with them."""
    if not distributed:
        if (nproc, nodes, rendezvous, job, device, timeout) != (None, 1, None, None, "auto", 120):
            raise UserError("doctor examines several processes with --distributed; add it, or leave their options out")
        from .doctor.examine import examine

        return examine(as_json)
    # Silence is said in one sentence; torch, which reads this when it is imported, would add a stack trace for each try.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    from .doctor.distributed import examine_together

    return examine_together(nproc, nodes, rendezvous, job, device, timeout, as_json)


@verb
def schema() -> None:
    """Print the JSON schema of every config."""
    from . import verbs

    typer.echo(json.dumps(verbs.schema(), indent=2))


def _execute(name: str, config: str, overrides: list[str] | None) -> None:
    from .verbs import execute

    execute(name, config, overrides or [])


def _pipeline(path: str, overrides: list[str] | None) -> None:
    from .pipeline.run import run_pipeline
    from .verbs import execute, resolve

    run_pipeline(path, overrides or [], execute, resolve)
