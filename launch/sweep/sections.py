"""The sections of a sweep's file: each function's keyword-only parameters are the keys of one section."""

from typing import Annotated, Any, Literal

from ...core.config.resolve import Choice, Section
from .cost import COSTS, cost_options
from .prefilter import PREFILTERS, prefilter_options
from .search_space import SAMPLERS


def sweep_folder(*, dir: str) -> None:
    """The `run` section of a sweep.

    dir: Folder of all trials, of result.json and of report.html.
    """


def sweep(
    *,
    run: Annotated[dict[str, Any], Section(sweep_folder)],
    verb: Literal["pretrain", "probe", "finetune", "adapt", "run"],
    config: str,
    set: dict[str, Any] = {},
    search: dict[str, dict[str, Any]],
    trials: int | None = None,
    objective: str | None = None,
    direction: Literal["maximize", "minimize"] = "maximize",
    cost: Annotated[dict[str, Any] | None, Choice(COSTS, common=cost_options)] = None,
    prefilter: Annotated[dict[str, Any], Choice(PREFILTERS, common=prefilter_options)] = {"name": "none"},
    selection: Literal["train-split", "source-val", "tuned-on-target", "oracle"] | None = None,
    sampler: Annotated[dict[str, Any], Choice(SAMPLERS)] = {"name": "tpe"},
    storage: str = "sqlite",
    study: str | None = None,
) -> None:
    """The file of a sweep.

    run: Where the sweep writes.
    verb: Command that each trial runs; `run` is a pipeline.
    config: Config file of the trials, beside the sweep's file or among the shipped ones.
    set: Overrides for all trials, {dotted key: value}; a key of a pipeline's stage is stages.NAME.KEY.
    search: Keys to tune, {dotted key: {log, uniform, int, choice or list: ...}}; a key of a pipeline's stage is stages.NAME.KEY.
    trials: Number of trials in all; null runs every combination of a grid, and is an error with the other samplers.
    objective: Metric to tune, TEST/PROTOCOL/METRIC or watch/MEASURE, with STAGE/ before it for a pipeline. Null takes the verb's usual
        one: kNN accuracy for pretrain and probe, accuracy of the classifier for finetune, on held-out source images for adapt.
    direction: Whether the objective is maximized or minimized; a cost is minimized in any case.
    cost: A second objective, known of each trial's network before it trains: macs, parameters, bytes or latency. The result is then the
        Pareto front of both. null: none.
    prefilter: How points are scored before the trials, the best of which are tried first: none, synflow or steps.
    selection: What the objective was measured on; has to be given where that is a test set or uses labels of the target.
    sampler: Chooses the parameters of each trial.
    storage: Where Optuna keeps the trials: sqlite, journal (for network disks; both in run.dir), or a database URL.
    study: Name of the study in the storage; by default the name of run.dir.
    """
