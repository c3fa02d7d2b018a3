"""The command line: one function a verb, which imports what it needs only when it is called.

`rootstock --help` must answer at once, and torch alone takes seconds to import. For the same reason a config is checked by the JSON
schema that ships before anything else is imported.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import UserError
from . import tools
from .allocator import keep_freed_memory
from .app import (
    COMPLETION,
    ConfigArgument,
    DryOption,
    JobOption,
    NodesOption,
    NprocOption,
    OverridesArgument,
    RendezvousOption,
    app,
    complete_verb,
    validators_app,
    verb,
)
from .cluster.launcher import follow_launcher
from .cluster.launcher import launch_verb as launch_processes
from .cluster.placement import read_placement
from .compress import commands as compressing
from .exits import answer, leave
from .explain.verb import explain_command
from .outputs import commands
from .waiting import spin_briefly


def main() -> None:
    """The entry point `rootstock`."""
    spin_briefly()
    keep_freed_memory()
    follow_launcher()
    if COMPLETION in os.environ:
        from .completion import script

        if (text := script(os.environ[COMPLETION])) is not None:
            typer.echo(text)
            return
    try:
        app(prog_name="rootstock")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            leave(end.code or 0)
        raise


@verb
def demo_command(overrides: OverridesArgument = None, dry: DryOption = False) -> int:
    """Tell the whole story on real images, on two CPU cores."""
    return _pipeline(str(Path(__file__).parent.parent / "configs" / "demo.yaml"), overrides, dry)


@verb
def run_command(
    config: ConfigArgument = "",
    overrides: OverridesArgument = None,
    only: Annotated[
        str, typer.Option(metavar="NAMES", help="Run these stages now (a,b or mae*), and what they use.")
    ] = "",
    dry: DryOption = False,
) -> int:
    """Run a pipeline: stages by name, several seeds, a report."""
    return _pipeline(config, overrides, dry, [name.strip() for name in only.split(",") if name.strip()])


@verb
def attribute_command(config: ConfigArgument = "", overrides: OverridesArgument = None) -> None:
    """Say what each part of a recipe adds: all cells of a factorial."""
    from .early import check_attribution_early

    check_attribution_early(config, overrides or [])
    from .attribute.run import run_attribution
    from .dry import build_untrained
    from .verbs import execute, resolve

    run_attribution(config, overrides or [], execute, resolve, build=build_untrained)


@verb
def sweep_command(
    config: ConfigArgument = "",
    overrides: OverridesArgument = None,
    workers: Annotated[int, typer.Option(metavar="N", help="Trials at one time, here.")] = 1,
) -> int:
    """Tune a config or a pipeline by many trials."""
    from .early import check_sweep_early

    check_sweep_early(config, overrides or [])
    from .sweep.worker import run_sweep

    return run_sweep(config, overrides or [], workers)


@verb
def pretrain_command(config: ConfigArgument = "", overrides: OverridesArgument = None, dry: DryOption = False) -> int:
    """Pretrain a backbone on unlabelled images."""
    return _execute("pretrain", config, overrides, dry)


@verb
def probe_command(config: ConfigArgument = "", overrides: OverridesArgument = None, dry: DryOption = False) -> int:
    """Measure frozen features: kNN, linear, few-shot."""
    return _execute("probe", config, overrides, dry)


@verb
def finetune_command(config: ConfigArgument = "", overrides: OverridesArgument = None, dry: DryOption = False) -> int:
    """Fine-tune a backbone on labelled images."""
    return _execute("finetune", config, overrides, dry)


@verb
def adapt_command(config: ConfigArgument = "", overrides: OverridesArgument = None, dry: DryOption = False) -> int:
    """Adapt from labelled source images to an unlabelled domain."""
    return _execute("adapt", config, overrides, dry)


def _files(folder: Path | None) -> None:
    if folder is not None:
        from .cluster.files import copy_ready_files

        raise typer.Exit(answer(lambda: copy_ready_files(folder)))


@verb
def launch_command(
    name: Annotated[
        str,
        typer.Argument(metavar="VERB", help="pretrain, probe, finetune or adapt.", autocompletion=complete_verb),
    ],
    config: ConfigArgument = "",
    overrides: OverridesArgument = None,
    nproc: NprocOption = None,
    nodes: NodesOption = 1,
    rendezvous: RendezvousOption = None,
    job: JobOption = None,
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
    # PyTorchJob numbers its pods with RANK, which would silence every launcher but the first pod's (`exits.py` reads it).
    os.environ.pop("RANK", None)
    from .early import check_config_early

    check_config_early(name, config, overrides or [])
    where = read_placement(nproc, nodes, rendezvous, job)
    if as_json and not dry:
        raise UserError("--json is for --dry-run; add it")
    if not dry:
        return launch_processes(name, config, overrides or [], where)
    from .cluster.dryrun import dry_run

    dry_run(name, config, overrides or [], where, as_json)
    return 0


verb(tools.try_command)
verb(tools.data_command, logs=False)
verb(tools.import_command)
verb(commands.predict_command)
verb(commands.embed_command)
verb(commands.export_command)
verb(compressing.compress_command)
verb(compressing.distill_command)
verb(compressing.prune_command)
verb(compressing.measure_command)
verb(compressing.quantize_command)
verb(explain_command)
verb(tools.report_command, logs=False)
verb(tools.runs_command, logs=False)
verb(tools.verify_command, logs=False)
verb(tools.score_command, validators_app, logs=False)
verb(tools.doctor_command, logs=False)
verb(tools.schema_command, logs=False)
verb(tools.help_command, logs=False)


def _execute(name: str, config: str, overrides: list[str] | None, dry: bool) -> int:
    from .early import check_config_early

    check_config_early(name, config, overrides or [])
    if dry:
        return _say_time(name, config, overrides)
    from .verbs import execute

    execute(name, config, overrides or [])
    return 0


def _say_time(name: str, config: str, overrides: list[str] | None) -> int:
    from .dry_time import say_time

    return say_time(name, config, overrides or [])


def _pipeline(path: str, overrides: list[str] | None, dry: bool, only: Sequence[str] = ()) -> int:
    from .early import check_pipeline_early

    check_pipeline_early(path, overrides or [])
    if dry:
        return _say_time("run", path, overrides)
    from .dry import build_untrained
    from .pipeline.ending import end_pipeline
    from .pipeline.run import run_pipeline
    from .verbs import execute, resolve

    table = run_pipeline(path, overrides or [], execute, resolve, build=build_untrained, only=only)
    if table:
        end_pipeline(path, overrides or [], table)
    return 0
