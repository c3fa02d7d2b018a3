"""Durations against plain arithmetic, and what is none."""

from typing import Annotated, Any

import pytest

from rootstock.core.config.duration import Minutes
from rootstock.core.config.resolve import Duration, validate
from rootstock.core.errors import UserError


def recipe(
    *, warmup: Duration, duration: Annotated[int | str, Duration] = "50%", every: Duration | None = None
) -> None: ...


def saving(*, every: Duration | Minutes = Minutes("30min")) -> None: ...


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        (100, 100),
        ("100", 100),
        (0, 0),
        ("10ep", 70),
        ("0.5ep", 4),
        ("50%", 500),
        ("33.3%", 333),
        ("0%", 0),
        ("100%", 1000),
    ],
)
def test_durations_in_steps(text: int | str, steps: int) -> None:
    duration = Duration.parse(text)
    assert duration.steps(7, 1000) == steps
    assert Duration.parse(str(duration)) == duration == Duration.parse(duration)


@pytest.mark.parametrize("text", ["", "ep", "-1", -1, True, 1.5, "1.5", "101%", "10 ep", "10epochs", "1e3", None, [1]])
def test_what_is_no_duration(text: Any) -> None:
    with pytest.raises(UserError, match=r"expected a duration \(100 for steps, 10ep for epochs, 50% for a part\), got"):
        Duration.parse(text)
    for key in ("warmup", "duration"):
        with pytest.raises(UserError, match=f"^{key}: expected a duration"):
            validate({"warmup": 1, key: text}, recipe)


def test_a_part_needs_a_whole() -> None:
    assert Duration.parse("5ep").steps(3) == 15
    with pytest.raises(UserError, match="50% is a part of no whole"):
        Duration.parse("50%").steps(3)


@pytest.mark.parametrize("text", [7, "10ep", "50%"])
def test_durations_stay_as_written(text: int | str) -> None:
    given = {"warmup": text, "duration": text, "every": text}
    assert validate(given, recipe) == given
    assert validate({"warmup": 1}, recipe) == {"warmup": 1, "duration": "50%", "every": None}


@pytest.mark.parametrize(("text", "seconds"), [("30min", 1800), ("0.5min", 30), (".05min", 3), ("010.0min", 600)])
def test_minutes(text: str, seconds: float) -> None:
    found = Minutes.read(text)
    assert found is not None and found.seconds == pytest.approx(seconds)
    assert Minutes.read(validate({"every": text}, saving)["every"]) == text


@pytest.mark.parametrize("text", ["0min", "0.0min", "00min", "min", ".min", "1.min", "-1min", "1 min"])
def test_what_is_no_time(text: str) -> None:
    assert Minutes.read(text) is None
    with pytest.raises(UserError, match=r"^every: expected "):
        validate({"every": text}, saving)
