"""What the page of a pipeline, of a run or of several runs shows."""

from dataclasses import dataclass, field

from .figures import Figure
from .live import Live
from .pairs import Pairs
from .settings import Settings
from .stages import StageView
from .tables import ResultTable
from .unfinished import Standing


@dataclass
class Page:
    """verdict: what the page says first. standing: of a pipeline that has not ended. settings: where configs differ. command: that makes
    the page. layers: accuracy by layer. labels: accuracy against the number of labelled images. meanings: (metric, what it means). live:
    what the page's script draws.
    """

    title: str
    summary: str
    text: list[str] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)
    tables: list[ResultTable] = field(default_factory=list)
    differences: ResultTable | None = None
    contrasts: list[str] = field(default_factory=list)
    gains: list[str] = field(default_factory=list)
    labels: list[Figure] = field(default_factory=list)
    pairs: Pairs = field(default_factory=lambda: Pairs([], []))
    stages: list[StageView] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    config: str = ""
    verdict: str = ""
    standing: Standing | None = None
    settings: list[Settings] = field(default_factory=list)
    command: str = ""
    layers: list[Figure] = field(default_factory=list)
    meanings: list[tuple[str, str]] = field(default_factory=list)
    live: Live = field(default_factory=Live)

    @property
    def brief(self) -> int:
        """How many stages are shown with few curves and no pictures."""
        return sum(stage.brief for stage in self.stages)
