"""`rootstock attribute`: run all cells of a factorial with common random numbers, and say what each factor adds.

The cells are one pipeline in `DIR/cells`, whose stages are shared by the cells that need the same: it resumes run by run, and several
commands may run different seeds at once. Then `DIR/result.json`, `DIR/table.md` and `DIR/report.html` are written.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from ...core.distributed import rank
from ...core.files import write_text
from ...core.manifest import write_record
from ...core.run.folder import make_folder, run_folder, write_config
from ..pipeline.contrasts import declare
from ..pipeline.plan import Validate
from ..pipeline.preflight import Build
from ..pipeline.run import Execute, run_pipeline
from ..report.answers import read_answers
from ..report.records import read_run
from .effects import explained
from .page import attribution_markdown, write_attribution_page
from .plan import FILE, check_attribution, pipeline_text


def run_attribution(
    path: str | Path, overrides: Sequence[str], execute: Execute, validate: Validate, build: Build | None = None
) -> dict[str, Any]:
    """Run the unfinished cells, then write result.json, table.md and report.html; returns the result.

    Arguments: as of `run_pipeline`. Raises ConfigError with all mistakes at once, before the first cell runs.
    """
    plan, jobs = check_attribution(path, overrides, validate)
    folder = run_folder(plan.config["run"]["dir"])
    declared = None
    if rank() == 0:
        make_folder(folder)
        write_config(folder, plan.config, shared=True)
        write_text(folder / FILE, pipeline_text(plan), shared=True)
        told = {key: plan.config[key] for key in ("response", "metric")}
        declared = declare(folder, [{"effect": name, **told} for name in plan.config["primary"]], jobs)
    file = folder / FILE
    table = run_pipeline(file, [], execute, validate, build=build)
    folders = {(job.name, job.seed): job.dir for job in jobs}
    answers = functools.cache(lambda stage, seed: read_answers(read_run(folders[stage, seed])))
    found = explained(plan, table["rows"], answers)
    result = {
        "task": "attribution",
        "run": str(folder),
        "response": plan.config["response"],
        **found,
        **({} if declared is None else {"contrasts": declared}),
    }
    if rank() == 0:
        write_record(folder / "result.json", result, shared=True)
        text = attribution_markdown(result, " ".join(["rootstock attribute", str(path), *overrides]))
        write_text(folder / "table.md", text, shared=True)
        page = write_attribution_page(folder, folder / "report.html")
        console = Console(stderr=True, highlight=False)
        console.print(escape(text), soft_wrap=True)
        console.print(f"report: {escape(str(page))}", soft_wrap=True)
    return result
