"""How often the labels of a test set were looked at: a ledger in the run's folder, and one for each test set in the cache.

A *look* is one set of test images, shown in one way (crop, size, corruption), scored for one set of candidates (classifiers, by the
digest of their weights). Who scores the same again, after a kill, on more processes or in a copy of the run, learns nothing new: that is
the same look. A run that meets a set sorted by class looks at its labels too, once for each config. A look is written down before any
label is read. The cache's ledger counts the looks of all adaptations on this machine, from the day on which it was begun. It is that of a
test set, known by the identities of its images (`Images.split_hash`), wherever they lie. Parts that seeds or class priors draw from one set
(`#[60%:,seed=3]`, `dirichlet=`, what is held out of a target) share the ledger of the set that they are drawn from, since they share
images. `probe`, `finetune` and `pretrain` read the labels of their tests as they always did, and do not count.

Without torch, so that a report need not import it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError
from ..images.cache import cache_folder
from ..ledger import Ledger, add_entry, read_ledger, utc_now
from ..manifest import DamagedFile
from ..run.rows import LOOKS

_KIND = "looks"  # the cache's folder of this name
_SAME = ("split", "part", "shown", "candidates")  # what two records of one look have alike
_REMEDY = "restore it from a copy, or move it away; then looks before today are unknown"


class LookedAt(NamedTuple):
    """Images that are looked at. split: `Images.split_hash` of the set to which the look is counted; part: of the images themselves."""

    split: str
    part: str
    shown: str = ""  # a digest of how they are shown


def record_look(run: Path, test: str, images: LookedAt, candidates: Mapping[str, str]) -> dict[str, Any]:
    """Write a look down, unless it is there already; returns the entry of result.json: {"n", "since", "note"}.

    run: the folder. test: its name in this run. candidates: digests of weights by name.
    n: this is the n-th look at the labels of this set, None if nobody knows; since: the day from which on looks are counted;
    note: why there may have been more. Raises UserError if the run's ledger is damaged, OSError if it cannot be written.
    """
    what = {**images._asdict(), "candidates": dict(candidates), "at": utc_now()}
    look = {"test": test, **what}
    try:
        own = add_entry(run / LOOKS, "run", look, _SAME)
    except DamagedFile as error:
        raise UserError(f"{error}; {_REMEDY}") from None
    path = cache_ledger(images.split)
    try:
        return _told(add_entry(path, images.split, {**what, "run": run.name}, _SAME, shared=True), look)
    except DamagedFile as error:
        return {"n": None, "since": None, "note": f"{error}; {_REMEDY}"}
    except OSError as error:
        why = f"{path.parent} cannot be written ({error.strerror}), so looks of other runs may be missing"
        return _without_cache(path, own, look, why)


def _told(ledger: Ledger, look: Mapping[str, Any]) -> dict[str, Any]:
    place = ledger.place(look, _SAME)
    assert place is not None
    return {"n": place + 1, "since": ledger.since[:10], "note": ""}


def _without_cache(path: Path, own: Ledger, look: Mapping[str, Any], why: str) -> dict[str, Any]:
    """What is known where the cache cannot be written: its ledger may be readable, and the run has its own."""
    try:
        found = read_ledger(path)
    except (DamagedFile, OSError) as error:
        return {"n": None, "since": None, "note": f"{why}; {error}"}
    if found is not None:
        place = found.place(look, _SAME)
        return {"n": (len(found.entries) if place is None else place) + 1, "since": found.since[:10], "note": why}
    mine = [entry for entry in own.entries if entry["split"] == look["split"]]
    place = Ledger("", "", tuple(mine)).place(look, _SAME)
    assert place is not None
    return {"n": place + 1, "since": own.since[:10], "note": why}


def cache_ledger(split: str) -> Path:
    """The ledger of a test set in the cache; it may not exist."""
    return cache_folder(_KIND) / f"{split}.json"


def refuse_damaged_looks(run: Path) -> str:
    """Why a run cannot go on with its ledger, "" if it can: it is damaged, and a new one would forget what was looked at."""
    try:
        read_ledger(run / LOOKS)
    except DamagedFile as error:
        return f"{error}; {_REMEDY}"
    return ""


def looks_words(look: Mapping[str, Any]) -> str:
    """An entry of `looks` of result.json, for a table: "looks: 3 (unknown before 2026-11-29)"."""
    n, note = look.get("n"), look.get("note") or ""
    count = "unknown" if n is None else f"at least {n}" if note else str(n)
    why = "; ".join(filter(None, [f"unknown before {look['since']}" if look.get("since") else "", note]))
    return f"looks: {count} ({why})" if why else f"looks: {count}"


def merged_looks(several: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The entries `looks` of several results as one: `looks_of_rows` of each test that one of them has."""
    by_test: dict[str, list[Mapping[str, Any]]] = {}
    for looks in several:
        for test, look in looks.items():
            by_test.setdefault(test, []).append(look)
    return {test: looks_of_rows(found) for test, found in by_test.items()}


def looks_of_rows(looks: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The looks of one test over several runs, as one entry: the largest n, the latest beginning, every note once."""
    known = [look["n"] for look in looks if look.get("n") is not None]
    dates = [look["since"] for look in looks if look.get("since")]
    notes = dict.fromkeys(look.get("note") or "" for look in looks)
    return {
        "n": max(known) if len(known) == len(looks) else None,
        "since": max(dates, default=None),
        "note": "; ".join(filter(None, notes)),
    }
