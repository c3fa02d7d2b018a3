"""`rootstock prune RUN`: a finished fine-tuning is pruned in rounds, which are a pipeline in RUN-pruned.

So finished rounds are not made again, and reports read the folder. No torch is imported before the pipeline is checked.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from .rounds import FILE_OF_ROUNDS, PruningRounds


def prune_run(rounds: PruningRounds, dry: bool) -> int:
    """Train all rounds and print the table; returns the exit code. dry: say how long that would take, and write nothing."""
    from ..early import check_pipeline_early

    if dry:
        from ..dry_time import say_time

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / FILE_OF_ROUNDS
            path.write_text(rounds.text)
            return say_time("run", str(path), rounds.overrides)
    path = rounds.write()
    check_pipeline_early(path, rounds.overrides)
    from ..dry import build_untrained
    from ..pipeline.run import run_pipeline
    from ..verbs import execute, resolve
    from .outcome import say_rounds

    if run_pipeline(path, rounds.overrides, execute, resolve, build=build_untrained):
        say_rounds(rounds)
    return 0
