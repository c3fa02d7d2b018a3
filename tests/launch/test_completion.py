"""What the shell proposes: keys, values of keys that are choices, networks, runs, pictures; asked in a real bash."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rootstock.core.images.open import SCHEMES as OPENERS
from rootstock.launch import completion
from rootstock.launch.verbs import fill_defaults, resolve
from rootstock.ssl.registry import PRETRAIN_METHODS

ROOT = Path(__file__).parents[2]


def proposed(verb: str, begun: str) -> list[str]:
    context: Any = SimpleNamespace(info_name=verb, params={})
    return completion.overrides(context, begun)


@pytest.mark.parametrize(
    ("verb", "begun", "values"),
    [
        ("pretrain", "method=", [*PRETRAIN_METHODS]),
        ("pretrain", "method.name=sim", ["simclr", "simsiam", "simmim"]),
        ("adapt", "method.name=sim", []),
        ("finetune", "optim.name=", ["adamw", "sgd", "lars"]),
        ("pretrain", "run.channels_last=", ["true", "false"]),
        ("probe", "backbone.weights=n", ["none"]),
        ("pretrain", "data.train=f", ["folder:"]),
        ("pretrain", "optim.lr=", []),
        ("pretrain", "no.such=", []),
    ],
)
def test_values_are_proposed_where_they_are_a_choice(verb: str, begun: str, values: list[str]) -> None:
    key = begun.partition("=")[0]
    assert proposed(verb, begun) == [f"{key}={value}" for value in values]


@pytest.mark.parametrize("key", ["run.precision", "run.compile", "optim.schedule", "data.interpolation", "run.keep"])
def test_what_is_proposed_is_taken(key: str, tmp_path: Path) -> None:
    found = proposed("pretrain", f"{key}=")
    assert len(found) > 1
    for override in found:
        config = resolve("pretrain", "digits_simclr", [override])
        assert fill_defaults("pretrain", config)
        section, _, name = key.partition(".")
        assert str(config[section][name]) == override.partition("=")[2]


def test_networks_are_those_of_the_configs_that_ship() -> None:
    found = [value.partition("=")[2] for value in proposed("pretrain", "backbone.name=")]
    assert found == sorted(set(found))
    assert {"auto", "resnet18", "resnet50", "smallconv", "vit_base_patch16_224"} <= set(found)
    assert all(name[0].isalpha() for name in found)


def test_runs_and_pictures_are_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/first", "runs/.hidden", "photos"):
        (tmp_path / name).mkdir(parents=True)
    assert proposed("probe", "backbone.weights=runs/") == ["backbone.weights=runs/first/"]
    assert proposed("probe", "data.train=folder:ph") == ["data.train=folder:photos/"]
    assert proposed("probe", "backbone.weights=nowhere/") == []


def test_every_kind_of_set_is_known() -> None:
    assert {*OPENERS} <= {*completion.KINDS_OF_SETS}


LINES = {
    "rootstock pretr": ["pretrain"],
    "rootstock pretrain simclr method.name=vicr": ["vicreg"],  # bash replaces what stands behind the equals sign
    "rootstock pretrain simclr data.train=tar": ["tar:"],
}


def test_bash_completes(tmp_path: Path) -> None:
    shim = tmp_path / "rootstock"
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m rootstock "$@"\n')
    shim.chmod(0o755)
    asked = "\n".join(f"ask {line!r}" for line in LINES)
    program = (
        'eval "$(_ROOTSTOCK_COMPLETE=source_bash rootstock)"\n'
        'ask() { COMP_LINE="$1"; COMP_POINT=${#1}; _rootstock_completion; echo "${COMPREPLY[*]}"; }\n'
        f"{asked}\ncomplete -p rootstock\n"
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    *answers, registered = done.stdout.splitlines()
    assert answers == [" ".join(words) for words in LINES.values()], done.stderr
    assert registered == "complete -o default -F _rootstock_completion rootstock"


@pytest.mark.parametrize("shell", [*completion.SCRIPTS])
def test_the_script_is_one_of_its_shell(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    subprocess.run([shell, "-n"], input=completion.SCRIPTS[shell], text=True, check=True)
