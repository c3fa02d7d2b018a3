"""What the page of a pipeline, of a run or of several runs shows."""

from dataclasses import dataclass, field

from .pairs import Pairs
from .stages import StageView
from .tables import ResultTable


@dataclass
class Page:
    title: str
    summary: str
    text: list[str] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)
    tables: list[ResultTable] = field(default_factory=list)
    differences: ResultTable | None = None
    contrasts: list[str] = field(default_factory=list)
    gains: list[str] = field(default_factory=list)
    pairs: Pairs = field(default_factory=lambda: Pairs([], []))
    stages: list[StageView] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    config: str = ""
