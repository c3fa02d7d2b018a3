"""What stands in a run folder, read for people: damage in a file is told, and the rest is used.

It reads neither YAML nor anything that imports torch, since `rootstock runs` reads hundreds of folders.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from ...core.errors import UserError
from ...core.files import read_regular
from ...core.manifest import DamagedFile, check_file, read_manifest, read_object
from ...core.run.folder import ABOUT, CONFIG, RESULT, check_config, read_about, read_result
from ...core.run.rows import METRICS, read_rows

MAP = "map.json"
Complain = Callable[[str], None]


def check_is_run(path: Path) -> None:
    """Raises UserError if a folder holds neither a config nor a result."""
    if (path / CONFIG).is_file() or (path / RESULT).is_file():
        return
    what = (
        f"holds no {CONFIG} and no {RESULT}"
        if path.is_dir()
        else "is a file"
        if path.exists()
        else "is a link to what does not exist"
        if path.is_symlink()
        else "does not exist"
    )
    raise UserError(f"{path} {what}; expected the folder of a run or of a pipeline (run.dir of its config)")


class Parts:
    """The files of a run besides its config: run.json (about), metrics.jsonl (rows), result.json and map.json.

    Of a finished run each is compared with the manifest. damage: a sentence for each file that is damaged.
    """

    def __init__(self, path: Path, *names: str) -> None:
        """names: of the files to read (METRICS, MAP) or to compare (PREDICTIONS); run.json and result.json are always read."""
        self.damage: list[str] = []
        self.about = read_about(path, self.damage.append)
        self.result: dict[str, Any] = read_result(path, self.damage.append) or {}
        self.rows: list[dict[str, Any]] = []
        self.map: dict[str, Any] = {}
        if METRICS in names:
            self.rows = read_rows(path / METRICS, self.damage.append)
        if MAP in names:
            try:
                self.map = read_object(path / MAP)
            except FileNotFoundError:
                pass
            except DamagedFile as error:
                self.damage.append(str(error))
        if not check_config(path, self.damage.append) and self.about.get("manifest") and not self.damage:
            self.damage.append(f"{path / CONFIG} has lost the digest in its first line")
        self._compare(path, names)
        self._drop_odd(path)

    def _compare(self, path: Path, names: tuple[str, ...]) -> None:
        """Files that can be read, but are not those that the run ended with."""
        if not self.result:
            return
        try:
            digests = read_manifest(path) or {}
        except DamagedFile:  # told already
            return
        listed = [name for name in digests if MAP in names and name.startswith("pictures/")]
        if digests and not os.path.lexists(path / ABOUT):
            self.damage.append(f"{path / ABOUT} is missing")
        for name in (*names, *listed):
            try:
                if name in digests:
                    check_file(path, name, digests)
            except DamagedFile as error:
                if not any(str(path / name) in told for told in self.damage):
                    self.damage.append(str(error))

    def _drop_odd(self, path: Path) -> None:
        """Readable JSON of another shape than ours: a page cannot show it."""
        for name, found, odd in (
            (RESULT, self.result, odd_result(self.result)),
            (ABOUT, self.about, odd_about(self.about)),
            (MAP, self.map, odd_map(self.map)),
        ):
            if found and odd:
                self.damage.append(f"{path / name} is damaged ({odd})")
                found.clear()


def odd_result(result: Mapping[str, Any]) -> str:
    """What in a result.json has another type than a recipe, a pipeline or a sweep gives it; "" if nothing has."""
    for key in ("metrics", "intervals", "details", "seen_unlabelled", "data"):
        if not isinstance(result.get(key) or {}, dict):
            return f"{key} is no mapping"
    for key in ("seconds", "steps", "seed"):
        if not isinstance(result.get(key) or 0, int | float):
            return f"{key} is no number"
    if any(
        not isinstance(value, int | float) or not isfinite(value) for value in (result.get("metrics") or {}).values()
    ):
        return "metrics holds something other than finite numbers"
    for key in ("rows", "comparisons", "gains", "trials"):
        entries = result.get(key) or []
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            return f"{key} is no list of mappings"
    return ""


def odd_about(about: Mapping[str, Any]) -> str:
    """As `odd_result`, of run.json."""
    if not isinstance(about.get("versions") or {}, dict):
        return "versions is no mapping"
    return "" if all(isinstance(about.get(key) or "", str) for key in ("verb", "host", "commit")) else "a text is none"


def odd_map(chart: Mapping[str, Any]) -> str:
    """As `odd_result`, of map.json: x and y are numbers, label and domain whole numbers, all of them as many."""
    lengths = set[int]()
    before = chart.get("before", {})
    if not isinstance(before, dict):
        return "before is no mapping"
    wanted = [("x", int | float), ("y", int | float), ("label", int), ("domain", int)]
    parts = [*((chart, *pair) for pair in wanted), *((before, *pair) for pair in wanted[:2] if before)]
    for part, key, kind in parts:
        values = part.get(key, [])
        if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
            return f"{key} is no list of numbers"
        if values or key in ("x", "y"):
            lengths.add(len(values))
    if len(lengths) > 1:
        return "its lists differ in length"
    count = len(chart.get("x", []))
    for name, kept in ((name, chart.get(name, [])) for name in ("near", "key", "row")):
        flat = [one for row in kept for one in row] if name == "near" and _is_table(kept) else kept
        if not isinstance(flat, list) or not all(isinstance(one, int) for one in flat) or len(kept) not in (0, count):
            return f"{name} is no list of whole numbers for each point"
        if name == "near" and not all(0 <= one < count for one in flat):
            return "near names points that are none"
    if not isinstance(chart.get("thumbnails") or {}, dict):
        return "thumbnails is no mapping"
    names = [chart.get(key) or [] for key in ("classes", "domains")]
    return "" if all(isinstance(found, list) for found in names) else "classes and domains are no lists"


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, list) for row in value)


def config_words(path: Path) -> Mapping[str, str]:
    """The top-level keys of config.yaml with the text beside each ("" for a section), without reading the YAML.

    Raises UserError if the file cannot be read.
    """
    try:
        text = read_regular(path / CONFIG).decode("utf-8")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{path / CONFIG} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path / CONFIG} is damaged (it is not a text in UTF-8)") from None
    found = dict(re.findall(r"(?m)^(\w+):[ \t]*(.*?)[ \t]*$", text))
    if not found:
        raise UserError(f"{path / CONFIG} is damaged (it has no keys)")
    return found
