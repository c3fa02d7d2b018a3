"""Configs: what is resolved, and the sentence for everything that cannot be."""

import copy
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml

from rootstock.core.config.resolve import Choice, ConfigError, Duration, Section, build, load, validate
from rootstock.core.errors import UserError


class SimCLR:
    """Two views of an image, drawn together."""

    def __init__(self, backbone: object, *, temperature: float = 0.2, projection: Sequence[int] = (512, 128)) -> None:
        self.backbone, self.temperature, self.projection = backbone, temperature, projection


def mae(backbone: object, *, mask: float, norm_pix: bool = True, temperature: float = 1.0) -> tuple[object, float]:
    return backbone, mask


TEN_EPOCHS = Duration(10, "ep")
METHODS: dict[str, Callable] = {"simclr": SimCLR, "mae": mae, "weak_simclr": functools.partial(SimCLR, temperature=0.5)}


def adamw(*, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.95), duration: Duration = TEN_EPOCHS) -> None: ...


def sgd(*, lr: float, momentum: float = 0.9, duration: Annotated[int | str, Duration] = "50%") -> None: ...


def data(*, train: str | list[str], test: str | dict[str, str] | None = None, size: int = 32) -> None: ...


def knn(*, k: int = 20, temperature: float | None = 0.07) -> None: ...


def evaluate(*, knn: Annotated[Mapping | None, Section(knn)] = None, every: Duration | None = None) -> None: ...


@dataclass
class Checkpoints:
    every: int = 5
    keep: list[int] = field(default_factory=lambda: [2, 3])


RARE = Checkpoints(90)


def options(
    *,
    dir: str = "runs/x",
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    save: Annotated[Mapping, Section(Checkpoints)] = {},
    log: Checkpoints | None = None,
    rare: Checkpoints = RARE,
) -> None:
    """Where and how."""


def pretrain(
    run: "NotDefinedAnywhere",  # noqa: F821  # pyright: ignore[reportUndefinedVariable]
    *,
    data: Annotated[Mapping, Section(data)],
    method: Annotated[Mapping, Choice(METHODS)],
    optim: Annotated[Mapping, Choice({"adamw": adamw, "sgd": sgd}, default="adamw")] = {},
    evaluate: Annotated[Mapping, Section(evaluate)] = {},
    args: Mapping[str, Any] = {},
    seed: int = 0,
) -> None:
    """Learn a backbone."""


EXTRA: dict[str, Callable] = {"run": options}
LEAST = {"data": {"train": "sklearn:digits"}, "method": "simclr"}
RESOLVED = {
    "data": {"train": "sklearn:digits", "test": None, "size": 32},
    "method": {"name": "simclr", "temperature": 0.2, "projection": [512, 128]},
    "optim": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.95], "duration": "10ep"},
    "evaluate": {"knn": None, "every": None},
    "args": {},
    "seed": 0,
    "run": {
        "dir": "runs/x",
        "precision": "auto",
        "save": {"every": 5, "keep": [2, 3]},
        "log": None,
        "rare": {"every": 90, "keep": [2, 3]},
    },
}


def written(folder: Path, text: str, name: str = "a.yaml") -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def resolved(*overrides: str, folder: Path, text: str = json.dumps(LEAST)) -> dict[str, Any]:
    return load(written(folder, text), pretrain, overrides, EXTRA)


def problems(config: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        validate(config, pretrain, EXTRA)
    return caught.value.problems


def problem(**sections: Any) -> str:
    (line,) = problems({**LEAST, **sections})
    return line


# What is resolved


def test_defaults_are_filled_in_in_the_order_of_the_signature() -> None:
    config = validate({"seed": 0, **LEAST}, pretrain, EXTRA)
    assert config == RESOLVED
    assert [list(config), list(config["run"])] == [list(RESOLVED), list(RESOLVED["run"])]


@pytest.mark.parametrize(
    "config",
    [
        LEAST,
        {**LEAST, "method": {"name": "mae", "mask": 1, "temperature": "1e-3"}, "evaluate": {"knn": {}, "every": 7}},
        {**LEAST, "data": {"train": ["a", "b"], "test": {"x": "y"}}, "args": {"depths": [1, None, {"a": True}]}},
        {**LEAST, "optim": {"name": "sgd", "lr": 3, "duration": "2.5ep"}, "run": {"save": {"keep": []}}},
    ],
)
def test_resolving_again_changes_nothing(config: dict[str, Any], tmp_path: Path) -> None:
    before = copy.deepcopy(config)
    once = validate(config, pretrain, EXTRA)
    assert config == before
    assert validate(once, pretrain, EXTRA) == once == json.loads(json.dumps(once))
    file = written(tmp_path, yaml.safe_dump(once, sort_keys=False))
    assert load(file, pretrain, (), EXTRA) == once
    assert load(file, pretrain, (), EXTRA) is not once


def test_nothing_resolved_is_shared_with_a_default() -> None:
    validate(LEAST, pretrain, EXTRA)["method"]["projection"].append(7)
    assert validate(LEAST, pretrain, EXTRA) == RESOLVED


def test_positional_parameters_are_not_config() -> None:
    assert "backbone" not in validate(LEAST, pretrain, EXTRA)["method"]
    assert "method.backbone: unknown key" in problem(method={"name": "simclr", "backbone": "resnet50"})


def test_a_partial_of_a_constructor_has_its_own_default() -> None:
    config = validate({**LEAST, "method": "weak_simclr"}, pretrain, EXTRA)
    assert config["method"] == {"name": "weak_simclr", "temperature": 0.5, "projection": [512, 128]}


def test_build_calls_the_constructor_that_the_name_chose() -> None:
    section = validate({**LEAST, "method": {"name": "simclr", "temperature": 0.1}}, pretrain, EXTRA)["method"]
    method = build(section, METHODS, "the backbone")
    assert isinstance(method, SimCLR)
    assert (method.backbone, method.temperature, method.projection) == ("the backbone", 0.1, [512, 128])


def test_an_empty_section_has_its_defaults_and_a_nullable_one_is_null(tmp_path: Path) -> None:
    text = "{data: {train: x}, method: simclr, evaluate: , optim: , run: }"
    assert resolved(folder=tmp_path, text=text) == {**RESOLVED, "data": {**RESOLVED["data"], "train": "x"}}
    assert validate({**LEAST, "evaluate": {"knn": {}}}, pretrain)["evaluate"]["knn"] == {"k": 20, "temperature": 0.07}


@pytest.mark.parametrize("written_number", ["1e-3", "1E-3", "0.1e-2", '"1e-3"', "'.001'", "+1.e-3", "0.001"])
def test_1e_3_is_a_number_in_a_file_and_in_an_override(written_number: str, tmp_path: Path) -> None:
    text = f"{{data: {{train: x}}, method: {{name: simclr, temperature: {written_number}}}}}"
    assert resolved(folder=tmp_path, text=text)["method"]["temperature"] == 0.001
    lr = resolved(f"optim.lr={written_number}", f"optim.betas=[{written_number}, 1]", folder=tmp_path)["optim"]
    assert (lr["lr"], lr["betas"]) == (0.001, [0.001, 1.0])


def test_texts_stay_texts(tmp_path: Path) -> None:
    config = resolved("run.dir='1e-3'", 'data.train="5"', "args.when=2024-01-01", folder=tmp_path)
    assert (config["run"]["dir"], config["data"]["train"], config["args"]) == ("1e-3", "5", {"when": "2024-01-01"})


# Overrides and extends


def test_overrides_say_what_the_file_could_have_said(tmp_path: Path) -> None:
    uri = "folder:/x y#train[:80%,seed=0]"
    config = resolved("method.temperature=0.1", f"data.train={uri}", "data.test.near=a", "seed=3", folder=tmp_path)
    assert config["method"] == {"name": "simclr", "temperature": 0.1, "projection": [512, 128]}
    assert config["data"] == {"train": uri, "test": {"near": "a"}, "size": 32}
    assert config["seed"] == 3


@pytest.mark.parametrize(
    "text", ["@simclr", "*.png", "%d", "!x", "a: b: c", "idx:a.gz?rows=10000:", "sklearn:digits-m?size=32&seed={seed}"]
)
def test_an_override_may_hold_what_yaml_reserves(text: str, tmp_path: Path) -> None:
    assert resolved(f"run.dir={text}", folder=tmp_path)["run"]["dir"] == text


def test_overrides_of_a_bare_name_in_any_order(tmp_path: Path) -> None:
    asked = ["method=mae", "method.mask=0.75", "method.temperature=0.1"]
    for order in (asked, asked[::-1], [asked[1], asked[0], asked[2]]):
        method = resolved(*order, folder=tmp_path)["method"]
        assert method == {"name": "mae", "mask": 0.75, "norm_pix": True, "temperature": 0.1}


def test_a_changed_name_drops_the_other_constructors_keys(tmp_path: Path) -> None:
    text = "{data: {train: x}, method: {name: simclr, temperature: 0.4, projection: [8]}}"
    for override in ("method=mae", "method.name=mae"):
        method = resolved(override, "method.mask=0.5", folder=tmp_path, text=text)["method"]
        assert method == {"name": "mae", "mask": 0.5, "norm_pix": True, "temperature": 1.0}
    assert resolved("method=simclr", folder=tmp_path, text=text)["method"]["temperature"] == 0.4


def network(*, name: str | None = None, args: dict[str, int] = {}, stem: str = "usual") -> None: ...


def with_network(*, network: Annotated[Mapping, Section(network)]) -> None: ...


WIDE = "{network: {name: wide, args: {layers: 3, width: 8}, stem: small}}"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], {"layers": 3, "width": 8}),
        (["network.name=wide", "network.args.width=4"], {"layers": 3, "width": 4}),
        (["network.name=deep"], {}),
        (["network={name: deep, args: {depth: 2}}"], {"depth": 2}),
        (["network.args.depth=2", "network.name=deep"], {"depth": 2}),
        (["network.name=null"], {}),
        (["network.args={}"], {}),
    ],
)
def test_a_network_of_another_name_has_its_own_args(
    overrides: Sequence[str], expected: Mapping[str, int], tmp_path: Path
) -> None:
    """The other keys of the section are of every network, and stay."""
    found = load(written(tmp_path, WIDE), with_network, overrides)["network"]
    assert (found["args"], found["stem"]) == (expected, "small")


def test_a_network_of_another_name_over_a_base_has_its_own_args(tmp_path: Path) -> None:
    written(tmp_path, WIDE, "base.yaml")
    extending = written(tmp_path, "{extends: base.yaml, network: {name: deep}}", "over.yaml")
    assert load(extending, with_network, [])["network"] == {"name": "deep", "args": {}, "stem": "small"}


def test_an_empty_mapping_empties_a_value_and_no_section(tmp_path: Path) -> None:
    text = "{data: {train: x, test: {a: y, b: z}}, method: {name: mae, mask: 0.5}, args: {a: 1, b: {c: 2}}}"
    for override, expected in (("args={}", {}), ("args.b={}", {"a": 1, "b": {}})):
        assert resolved(override, folder=tmp_path, text=text)["args"] == expected
    assert resolved("data={}", folder=tmp_path, text=text)["data"]["test"] == {"a": "y", "b": "z"}
    assert resolved("method={}", folder=tmp_path, text=text)["method"]["mask"] == 0.5


def test_extends_merges_mappings_and_replaces_lists(tmp_path: Path) -> None:
    written(tmp_path, "{data: {train: x, size: 8}, method: {name: simclr, temperature: 0.4}, seed: 1}", "far/root.yaml")
    written(tmp_path, "{extends: root.yaml, method: {projection: [1, 2, 3]}, args: {a: 1, b: {c: 1}}}", "far/base.yaml")
    text = "{extends: far/base.yaml, method: {projection: [4]}, args: {b: {d: 2}}, seed: 2}"
    config = resolved("args.b.e=3", folder=tmp_path, text=text)
    assert config["data"] == {"train": "x", "test": None, "size": 8}
    assert config["method"] == {"name": "simclr", "temperature": 0.4, "projection": [4]}
    assert (config["args"], config["seed"]) == ({"a": 1, "b": {"c": 1, "d": 2, "e": 3}}, 2)


def test_extends_with_another_name_drops_the_bases_keys(tmp_path: Path) -> None:
    written(tmp_path, "{data: {train: x}, method: {name: simclr, temperature: 0.4}, optim: {lr: 0.5}}", "base.yaml")
    config = resolved(folder=tmp_path, text="{extends: base.yaml, method: {name: mae, mask: 0.5}, optim: sgd}")
    assert config["method"] == {"name": "mae", "mask": 0.5, "norm_pix": True, "temperature": 1.0}
    assert config["optim"]["lr"] == 0.5, "a base that chose no name has keys of whatever is chosen"


# Mistakes, each in one sentence


def test_an_unknown_key_names_the_nearest_and_all() -> None:
    assert problem(method={"name": "simclr", "temprature": 1}) == (
        "method.temprature: unknown key; did you mean temperature? (known: name, temperature, projection)"
    )
    assert problem(sede=1) == (
        "sede: unknown key; did you mean seed? (known: data, method, optim, evaluate, args, seed, run)"
    )
    assert problem(run={"save": {"evry": 1}}) == "run.save.evry: unknown key; did you mean every? (known: every, keep)"


def test_a_key_in_the_wrong_section_is_told_where_it_belongs() -> None:
    assert "lr: unknown key; did you mean optim.lr? (known: data, " in problem(lr=0.1)
    assert problem(optim={"momentum": 0.1}) == "optim.momentum: unknown key (known: name, lr, betas, duration)"


def test_an_unknown_name_lists_the_known() -> None:
    known = "(known: simclr, mae, weak_simclr)"
    assert problem(method="SimCRL") == f"method: unknown name SimCRL; did you mean simclr? {known}"
    assert problem(method={"name": "dino"}) == f"method.name: unknown name dino {known}"
    assert problem(method={"name": ["mae"]}) == f'method.name: unknown name ["mae"]; did you mean mae? {known}'
    assert problem(method={}) == "method.name: missing (known: simclr, mae, weak_simclr)"
    assert problem(method={"nmae": "mae"}) == f"method.name: missing; did you mean name by nmae? {known}"
    assert problem(method=3) == "method: expected one of simclr, mae, weak_simclr, got 3"


def test_an_unknown_name_hides_only_its_own_section() -> None:
    config = {"data": {"train": 1}, "method": {"name": "x", "what": 1}, "evaluate": {"knn": {"k": "many"}}, "sed": 1}
    assert [line.split(":")[0] for line in problems(config)] == ["sed", "data.train", "method.name", "evaluate.knn.k"]


def test_a_wrong_type_says_what_was_expected_and_given() -> None:
    assert problem(seed="one") == 'seed: expected an integer, got "one"'
    assert problem(seed=True) == "seed: expected an integer, got true"
    assert problem(evaluate={"knn": {"k": None}}) == "evaluate.knn.k: expected an integer, got null"
    assert problem(evaluate=1) == "evaluate: expected a section with the keys knn, every, got 1"
    assert problem(method={"name": "simclr", "temperature": True}) == "method.temperature: expected a number, got true"
    assert problem(run={"precision": "bf61"}) == (
        'run.precision: expected auto, bf16 or fp32, got "bf61"; did you mean bf16?'
    )


def test_missing_keys_say_what_belongs_there() -> None:
    assert problems({}) == (
        "data: missing; expected a section with the keys train, test, size",
        "method: missing; expected one of simclr, mae, weak_simclr",
    )
    assert problem(method="mae") == "method.mask: missing; expected a number"


def test_all_mistakes_of_file_and_overrides_come_at_once(tmp_path: Path) -> None:
    text = "method: {name: simclr, temprature: 1}\ndata: {train: x, size: big}\nseed: 1\nseed: 2\n"
    with pytest.raises(ConfigError) as caught:
        resolved("optim.lrr=1", "seed", "run.save.keep=[1", folder=tmp_path, text=text)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{tmp_path / 'a.yaml'} has 6 mistakes:"
    assert lines[1] == f"  {tmp_path / 'a.yaml'}:4:1: the key seed is given twice (first in line 3); keep one of them"
    assert lines[2] == '  "seed": expected an override KEY=VALUE, for example optim.lr=1e-3'
    assert lines[3].startswith('  run.save.keep: "[1" is not valid YAML: expected')
    assert [line.split(":")[0] for line in lines[4:]] == ["  data.size", "  method.temprature", "  optim.lrr"]
    assert "did you mean lr? (known: name, lr, betas, duration)" in lines[6]


def test_one_mistake_is_one_line_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        resolved("method.temprature=0.1", folder=tmp_path)
    assert str(copy.copy(caught.value)) == str(caught.value), "as when it crosses to another process"
    assert str(caught.value) == (
        f"{tmp_path / 'a.yaml'}: method.temprature: unknown key; did you mean temperature? "
        "(known: name, temperature, projection)"
    )


def test_a_runs_own_config_is_a_config_again(tmp_path: Path) -> None:
    """The config.yaml in a run's folder names its verb, which is checked and left out."""

    def pretrain(*, seed: int = 0) -> None: ...

    path = tmp_path / "config.yaml"
    path.write_text("verb: pretrain\nseed: 3\n")
    assert load(path, pretrain) == {"seed": 3}
    path.write_text("verb: adapt\nseed: 3\n")
    with pytest.raises(ConfigError, match="verb: this is a config of rootstock adapt; give one of rootstock pretrain"):
        load(path, pretrain)
