"""The contract of a method: what a registry refuses, in one sentence, and the defaults of what may be left out."""

from typing import Any

import pytest
import torch
from torch import nn

from rootstock.adapt.registry import ADAPT_METHODS
from rootstock.core.errors import UserError
from rootstock.core.method import AdaptMethod, PretrainMethod, Step, Views
from rootstock.core.registration import check_built, register
from rootstock.ssl.registry import PRETRAIN_METHODS


def method(**attributes: Any) -> type[Any]:
    """A pretraining method with everything that is required, changed; an attribute given as None is left out."""

    def forward(self: Any, batch: Views, progress: float) -> Step:
        return Step(batch.images.mean(), {})

    whole = {"views": 2, "rows_per_position": 2, "couples_samples": False, "forward": forward, **attributes}
    return type("Mine", (PretrainMethod,), {key: value for key, value in whole.items() if value is not None})


def test_a_whole_method_is_registered() -> None:
    mine = method()
    assert register(PretrainMethod, {"mine": mine}) == {"mine": mine}


@pytest.mark.parametrize("attribute", ["rows_per_position", "couples_samples", "views", "forward"])
def test_what_is_required_and_left_out_is_refused_in_one_sentence(attribute: str) -> None:
    with pytest.raises(UserError) as refused:
        register(PretrainMethod, {"mine": method(**{attribute: None})})
    sentence = str(refused.value)
    assert sentence.startswith("method mine (") and f" lacks {attribute}: " in sentence and "core/method.py" in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("rows_per_position", "2"),
        ("rows_per_position", 0),
        ("rows_per_position", True),
        ("couples_samples", 1),
        ("views", 2.0),
    ],
)
def test_a_wrong_value_is_refused(attribute: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"method mine .* has {attribute} = .*; see core/method\.py"):
        register(PretrainMethod, {"mine": method(**{attribute: value})})


def test_a_class_of_another_kind_is_refused() -> None:
    other: Any = nn.Linear
    with pytest.raises(UserError, match=r"no AdaptMethod: derive it from core\.method\.AdaptMethod"):
        register(AdaptMethod, {"mine": method()})
    with pytest.raises(UserError, match=r"no PretrainMethod"):
        register(PretrainMethod, {"linear": other})


def test_an_adaptation_method_says_whether_it_sees_the_target() -> None:
    class Mine(AdaptMethod):
        rows_per_position, couples_samples = 1, False

        def forward(self, batch: Any, progress: float) -> Step:
            return Step(torch.zeros(()), {})

    with pytest.raises(UserError, match="lacks sees_target"):
        register(AdaptMethod, {"mine": Mine})


def test_a_method_without_its_network_is_refused() -> None:
    made = method()()
    with pytest.raises(UserError, match=r"method mine has no backbone: set self\.backbone"):
        check_built(made, "mine")
    made.backbone = nn.Linear(1, 1)
    check_built(made, "mine")
    with pytest.raises(UserError, match=r"method mine has no backbone|no classifier"):
        check_built(ADAPT_METHODS["source_only"].__new__(ADAPT_METHODS["source_only"]), "mine")


def test_what_may_be_left_out_has_a_default() -> None:
    made = method()()
    assert (made.takes_chunk, made.takes_local, made.constant_rate) == (False, False, ())
    assert list(made.frozen(0.5)) == [] and made.after_step(0.5) is None
    assert made.paint(torch.zeros(1), None) is None


def test_every_method_that_ships_is_registered_with_its_name() -> None:
    assert len(PRETRAIN_METHODS) >= 14 and all(issubclass(kind, PretrainMethod) for kind in PRETRAIN_METHODS.values())
    assert len(ADAPT_METHODS) >= 4 and all(issubclass(kind, AdaptMethod) for kind in ADAPT_METHODS.values())
