"""`auto` beside a value: the key is settled before a run is recorded, so whoever reads the run finds the value itself."""

from __future__ import annotations

from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

AUTO = "auto"


class OrAuto:
    """`Annotated[int, OrAuto]` allows `auto` in a config. The constructor that gets the config never sees it."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.union_schema([handler(source), core_schema.literal_schema([AUTO])])
