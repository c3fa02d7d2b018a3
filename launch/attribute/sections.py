"""The sections of an attribution's file: each function's keyword-only parameters are the keys of one section."""

from typing import Annotated, Any

from ...core.config.resolve import Section
from ..pipeline.sections import pipeline_folder


def attribution(
    *,
    run: Annotated[dict[str, Any], Section(pipeline_folder)],
    seeds: int | list[int] = 3,
    stages: dict[str, dict[str, Any]],
    factors: dict[str, dict[str, Any]],
    response: str,
    metric: str | None = None,
    primary: list[str] = [],
    title: str = "",
    text: str | list[str] = "",
) -> None:
    """The file of an attribution.

    run: Where it writes.
    seeds: Number of seeds N (seeds 0 to N-1), or a list of different seeds; all cells run with each of them.
    stages: Stages by name, as of a pipeline, with all factors off; a cell runs those that its response needs.
    factors: What is turned on and off, by name, at most six; k of them make 2^k cells.
    response: Stage whose result is explained.
    metric: Metric of that result, TEST/PROTOCOL/METRIC, a fraction; null takes the first one.
    primary: Effects chosen before the first run, at most four, such as ssl or "ssl x loss"; all others are exploratory.
    title: Title of the page; the folder's name by default.
    text: Paragraph, or list of paragraphs, under the title.
    """


def factor(*, label: str = "", on: dict[str, Any] = {}, off: dict[str, Any] = {}) -> None:
    """One entry of `factors`.

    label: Text in tables; the factor's name by default.
    on: Overrides where the factor is on, {STAGE.KEY: value}; the value "@NAME" is the run folder of stage NAME of the same cell.
    off: Overrides where it is off.
    """
