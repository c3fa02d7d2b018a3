"""Durations: one notation for lengths of training, warm-ups and intervals, converted to steps in one place."""

import re
from typing import Any, Literal, NamedTuple

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from ..errors import UserError
from .messages import show

MINUTES_PATTERN = r"^(0*[1-9]\d*(?:\.\d+)?|0*\.0*[1-9]\d*)min$"  # more than zero
_PATTERN = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(ep|%)|\d+")
TEXT_PATTERN = f"^({_PATTERN.pattern})$"


class Duration(NamedTuple):
    """A length of training in steps (`100`), epochs (`10ep`) or percent of the whole (`50%`).

    As an annotation (`Duration`, or `Annotated[int | str, Duration]`) it allows these in a config. The constructor gets the value as it
    was written.
    """

    value: float
    unit: Literal["steps", "ep", "%"]

    in_words = "a duration (100 for steps, 10ep for epochs, 50% for a part)"

    @classmethod
    def parse(cls, text: "int | str | Duration") -> "Duration":
        """Read `100`, "10ep" or "50%"; anything else, negative or above 100 %, raises UserError."""
        if isinstance(text, Duration):
            return text
        found = None if isinstance(text, bool) else _PATTERN.fullmatch(str(text))
        if found is None or (found[2] == "%" and float(found[1]) > 100):
            raise UserError(f"expected {cls.in_words}, got {show(text)}")
        return cls(float(found[1]), found[2]) if found[2] else cls(int(found[0]), "steps")  # pyright: ignore[reportArgumentType]

    def steps(self, steps_per_epoch: int, total: int | None = None) -> int:
        """The duration in steps, rounded to the nearest. total: steps that are 100 %. Raises UserError for a percentage without it."""
        if self.unit == "steps":
            return int(self.value)
        if self.unit == "ep":
            return round(self.value * steps_per_epoch)
        if total is None:
            raise UserError(f"{self} is a part of no whole: give this duration in steps (100) or epochs (10ep)")
        return round(self.value / 100 * total)

    def __str__(self) -> str:
        return repr(self.value).removesuffix(".0") + self.unit.removeprefix("steps")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def keep(value: Any) -> Any:
            cls.parse(value)
            return value

        form = core_schema.union_schema([core_schema.int_schema(ge=0), core_schema.str_schema(pattern=TEXT_PATTERN)])
        return core_schema.no_info_before_validator_function(keep, form)


class Minutes(str):
    """A time in minutes, such as `30min`: an annotation beside Duration or int, where a config may name a time of the clock."""

    in_words = "minutes (30min)"

    @property
    def seconds(self) -> float:
        return 60.0 * float(self.removesuffix("min"))

    @classmethod
    def read(cls, value: Any) -> "Minutes | None":
        """The value as minutes if it is written so, else None."""
        return cls(value) if isinstance(value, str) and re.fullmatch(MINUTES_PATTERN, value) else None

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.str_schema(pattern=MINUTES_PATTERN)
