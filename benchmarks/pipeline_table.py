"""The page of a pipeline: runs what is missing of it, and writes its table with machine and versions.

Command: python benchmarks/pipeline_table.py configs/NAME.yaml [key=value ...]   (seeds as in the file). Writes benchmarks/NAME.md.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import page
import yaml
from demo import made, run_to_its_end

from rootstock.launch.report.layer_tables import tables_of_pipeline
from rootstock.launch.report.markdown import pipeline_markdown

HERE = Path(__file__).parent


def text(config: str, table: Mapping[str, Any], command: str, layers: Sequence[str] = ()) -> str:
    """The page as Markdown. table: the pipeline's result.json. command: that made it. layers: `tables_of_pipeline`."""
    title = yaml.safe_load(Path(config).read_text())["report"].get("title", Path(config).stem)
    written = f"`python benchmarks/pipeline_table.py {config}` runs it and writes this page; protocol and networks stand in {config}."
    return (
        "\n\n".join([f"# {title}", page.machine(), written, pipeline_markdown(table, command, layers).strip()]) + "\n"
    )


def main(words: list[str]) -> int:
    if not words:
        sys.exit(__doc__)
    config, *overrides = words
    content = yaml.safe_load(Path(config).read_text())
    folder, command = run_to_its_end(["run", config], content["run"]["dir"], content["seeds"], overrides)
    path = HERE / f"{Path(config).stem}.md"
    path.write_text(text(config, made(folder)[0], " ".join(map(page.shown, command)), tables_of_pipeline(folder)))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
