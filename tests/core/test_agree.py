"""What processes compare before the first step, by the values of each."""

import inspect
from typing import Any

import pytest

from rootstock.core import agree
from rootstock.core.agree import MAY_DIFFER, code_version, compared_config, differences, same_everywhere
from rootstock.core.documents import flattened
from rootstock.core.errors import UserError
from rootstock.core.run.options import options


def test_a_difference_is_named_with_its_values_and_ranks() -> None:
    facts: list[dict[str, Any]] = [
        {"optim.lr": 0.1, "seed": 0},
        {"optim.lr": 0.2, "seed": 0},
        {"optim.lr": 0.1, "seed": 0, "more": None},
    ]
    assert differences(facts) == [
        "more: absent on ranks 0, 1, null on rank 2",
        "optim.lr: 0.1 on ranks 0, 2, 0.2 on rank 1",
    ]
    assert differences([facts[0]] * 3) == []
    verbs = [{"data.size": 8, "verb": "pretrain"}, {"verb": "probe"}]
    assert differences(verbs)[0] == 'verb: "pretrain" on rank 0, "probe" on rank 1'  # the rest follows from it


def test_all_raise_the_same_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agree, "connected", lambda: True)
    monkeypatch.setattr(agree, "gather_texts", lambda text: [text, text.replace("1", "2")])
    facts = {name: {"n": 1} for name in "abcde"}
    with pytest.raises(UserError) as error:
        same_everywhere(facts, "configs", "give them one config")
    assert str(error.value) == (
        "the processes have different configs (a.n: 1 on rank 0, 2 on rank 1; b.n: 1 on rank 0, 2 on rank 1; c.n: 1 on rank 0, 2 on "
        "rank 1; and 2 more); give them one config"
    )
    monkeypatch.setattr(agree, "gather_texts", lambda text: [text, text])
    same_everywhere(facts, "configs", "")


def test_one_process_compares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agree, "gather_texts", lambda text: pytest.fail("it has nobody to ask"))
    same_everywhere({"a": 1}, "configs", "")


def test_every_key_of_a_config_is_compared_but_those_with_a_reason() -> None:
    run = dict.fromkeys(inspect.signature(options).parameters, 1)
    config = {"optim": {"lr": 0.1}, "seed": 3, "run": run}
    found = flattened(compared_config("pretrain", config))
    left_out = {f"run.{name}" for name in MAY_DIFFER}
    assert set(found) == {"verb", *flattened(config)} - left_out and left_out < set(flattened(config))


def test_the_code_is_compared_file_by_file() -> None:
    found = code_version()
    assert {"core/agree.py", "ssl/simclr.py", "launch/cli.py", "torch", "pillow"} <= set(found)
    assert not any(name.startswith(("tests", ".venv")) for name in found)
