"""What all pages share: one HTML file from a template, the configs as YAML, and where the runs come from."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ...core.files import write_text
from .live import page_script
from .records import RunRecord


def write_html(template: str, page: Any, out: Path) -> Path:
    """Render `page` by a file of templates/ into the single file `out`; returns `out`."""
    # Autoescape always: labels, class names and captions are the user's text.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(template).render(page=page, script=page_script())
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, text, shared=True)
    return out


def yaml_text(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=100) if config else ""


def provenance(records: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """(name, value) of versions, commit, host and date; every value that occurs, where runs differ."""
    names = dict.fromkeys(name for record in records for name in record.about.get("versions") or {})
    versions = {
        name: _different((record.about.get("versions") or {}).get(name) for record in records) for name in names
    }
    facts = [("versions", ", ".join(f"{name} {' and '.join(found)}" for name, found in versions.items() if found))]
    facts += [(key, ", ".join(_different(record.about.get(key) for record in records))) for key in ("commit", "host")]
    started = _different(record.about.get("started") for record in records)
    facts.append(("started", " to ".join(dict.fromkeys([*started[:1], *started[-1:]]))))
    return [(key, value) for key, value in facts if value]


def _different(values: Iterable[Any]) -> list[str]:
    return sorted({str(value) for value in values if value})
