"""A ledger only grows: whatever else happens to its file is noticed, and nothing of it is forgotten."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rootstock.core.ledger import add_entry, read_ledger
from rootstock.core.manifest import DamagedFile, own_digest


def three(path: Path) -> list[dict[str, Any]]:
    entries = [{"what": name, "n": n} for n, name in enumerate("abc")]
    for entry in entries:
        add_entry(path, "tests", entry, ("what",))
    return entries


def test_entries_come_back_in_their_order_and_each_is_there_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "ledger.json"
    assert read_ledger(path) is None
    entries = three(path)
    before = path.read_bytes()
    again = add_entry(path, "tests", {"what": "b", "n": 17}, ("what",))
    assert path.read_bytes() == before and list(again.entries) == entries
    found = read_ledger(path)
    assert found is not None and found == again and found.since.endswith("Z")
    assert found.place({"what": "c"}, ("what",)) == 2 and found.place({"what": "d"}, ("what",)) is None


def test_each_entry_holds_the_digest_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    three(path)
    record = json.loads(path.read_text())
    links = [entry["before"] for entry in record["entries"]]
    head = {key: record[key] for key in ("format", "of", "since")}
    assert links == [own_digest(head), *(own_digest(entry) for entry in record["entries"][:-1])]


def sealed_anew(record: dict[str, Any]) -> str:
    """A record as somebody would write it who knows its own digest, but not the chain."""
    plain = {key: value for key, value in record.items() if key != "own"}
    return json.dumps({**plain, "own": own_digest(plain)})


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another entry": lambda record: record["entries"][0].update(n=5),
    "a missing entry": lambda record: record["entries"].pop(1),
    "a missing first entry": lambda record: record["entries"].pop(0),
    "another order": lambda record: record["entries"].reverse(),
    "another beginning": lambda record: record.update(since="2020-01-01T00:00:00Z"),
    "an entry without a link": lambda record: record["entries"].append({"what": "d"}),
    "an entry that is none": lambda record: record["entries"].append(3),
    "no entries": lambda record: record.pop("entries"),
    "another format": lambda record: record.update(format=2),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_ledger_is_named_and_left_as_it_is(change: str, tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    three(path)
    record = json.loads(path.read_text())
    CHANGES[change](record)
    for text in (sealed_anew(record), json.dumps(record)):
        path.write_text(text)
        for touch in (lambda: read_ledger(path), lambda: add_entry(path, "tests", {"what": "d"}, ("what",))):
            with pytest.raises(DamagedFile, match=r"ledger\.json is damaged"):
                touch()
        assert path.read_text() == text


def test_every_cut_and_every_flipped_letter_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    three(path)
    good = path.read_bytes()
    texts = [good[:length] for length in range(0, len(good) - 2, 7)]
    texts += [
        good[:k] + bytes([good[k] ^ 1]) + good[k + 1 :] for k in range(0, len(good), 5) if good[k : k + 1].isalnum()
    ]
    for text in texts:
        path.write_bytes(text)
        with pytest.raises(DamagedFile):
            read_ledger(path)


def test_the_ledger_of_something_else_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    three(path)
    with pytest.raises(DamagedFile, match="ledger of something else"):
        add_entry(path, "others", {"what": "d"}, ("what",))


def test_a_kill_while_writing_leaves_the_old_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.json"
    three(path)
    before = path.read_bytes()

    def killed(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        add_entry(path, "tests", {"what": "d"}, ("what",))
    assert path.read_bytes() == before


def test_commands_at_once_lose_no_entry(tmp_path: Path) -> None:
    path, children = tmp_path / "ledger.json", []
    for child in range(4):
        if (number := os.fork()) == 0:
            try:
                for n in range(10):
                    add_entry(path, "tests", {"child": child, "n": n}, ("child", "n"), shared=True)
                    add_entry(path, "tests", {"child": -1, "n": n}, ("child", "n"), shared=True)
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(number)
    assert [os.waitpid(number, 0)[1] for number in children] == [0] * 4
    found = read_ledger(path)
    assert found is not None
    seen = sorted((entry["child"], entry["n"]) for entry in found.entries)
    assert seen == sorted((child, n) for child in range(-1, 4) for n in range(10))
    assert ".lock" in os.listdir(tmp_path)
