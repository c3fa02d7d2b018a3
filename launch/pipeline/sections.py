"""The sections of a pipeline's file: each function's keyword-only parameters are the keys of one section."""

from typing import Annotated, Any

from pydantic import Field

from ...core.config.resolve import Section
from ..report.claims import ContrastClaim


def pipeline_folder(*, dir: str) -> None:
    """The `run` section of a pipeline.

    dir: Folder of all stages, of result.json and of report.html.
    """


def report_page(
    *,
    title: str = "",
    text: str | list[str] = "",
    columns: dict[str, str] = {},
    rows: list[dict[str, Any]] = [],
    comparisons: list[dict[str, Any]] = [],
) -> None:
    """The `report` section of a pipeline.

    title: Title of the page; the folder's name by default.
    text: Paragraph, or list of paragraphs, under the title.
    columns: Test sets shown beside a row's own, {TEST: heading}.
    rows: Rows of the table of results; by default one for each stage that measures something.
    comparisons: Differences between two rows, paired by seed.
    """


def pipeline(
    *,
    run: Annotated[dict[str, Any], Section(pipeline_folder)],
    seeds: int | list[int] = 1,
    grid: dict[str, dict[str, dict[str, Any]]] = {},
    stages: dict[str, dict[str, Any]],
    report: Annotated[dict[str, Any], Section(report_page)] = {},
) -> None:
    """The file of a pipeline.

    run: Where the pipeline writes.
    seeds: Number of seeds N (seeds 0 to N-1), or a list of different seeds; each stage runs once per seed.
    grid: Axes of a grid, {AXIS: {NAME: overrides}}. What has {AXIS} in its name or label stands once for each NAME: stages, which take the
        overrides before those of their `set`, rows and comparisons.
    stages: Stages by name, in the order in which they run; a name is also the stage's folder.
    report: What result.json and report.html show.
    """


def stage(*, verb: str, config: str, set: dict[str, Any] = {}) -> None:
    """One entry of `stages`.

    verb: Command of the stage: pretrain, probe, finetune or adapt.
    config: Config file of the stage, beside the pipeline's file or among the shipped ones.
    set: Overrides of the config, {dotted key: value}; the value "@NAME" is the run folder of stage NAME with the same seed.
    """


def row(
    *,
    label: str,
    stage: str,
    metric: str | None = None,
    also: dict[str, str] = {},
    stages: list[str] = [],
    group: str = "",
    note: str = "",
    emphasis: bool = False,
) -> None:
    """One entry of `report.rows`.

    label: Text of the row.
    stage: Stage whose results the row shows.
    metric: Metric of the row, TEST/PROTOCOL/METRIC; null takes the first one of the stage's result.
    also: Further metrics shown beside it, {heading: TEST/PROTOCOL/METRIC}.
    stages: Several stages, such as one method on several tasks, whose mean the row shows, seed by seed; `over: [AXIS]` of a grid fills it.
    group: Heading under which the row stands; rows of one heading stand together.
    note: Text in small letters under the label.
    emphasis: Whether the row is printed in bold and its stage's map and errors stand in the page's first part.
    """


def comparison(
    *,
    label: str,
    a: str,
    b: str | None = None,
    over: list[str] = [],
    beyond: list[str] = [],
    primary: bool = False,
    claim: ContrastClaim = "differs",
    margin: Annotated[float, Field(gt=0)] | None = None,
) -> None:
    """One entry of `report.comparisons`: row a minus row b, or minus each of several rows.

    label: Text of the row.
    a: First row, by its label or its stage.
    b: Row that is subtracted, by its label or its stage.
    over: Two or more rows instead of `b`, such as the control and source-only. All differences are shown, and the sentence about the gain
        uses the smallest one.
    beyond: Two rows C and D: the comparison is then (a - b) - (C - D), an interaction. With a method and its control after pretraining as a
        and b, and the same two from scratch as C and D, it says how much more the method gains after pretraining.
    primary: Whether this is one of the table's primary contrasts, at most four, chosen before the first run; all others are exploratory.
    claim: What a primary contrast is to show: differs, loses at most (a loses at most margin against b) or equals (within margin).
    margin: Largest loss or difference of the claim, above 0, in the metric's own units; 0.01 is one point of accuracy.
    """
