"""The keys of configs, read from constructors: each keyword-only parameter is a key.

`resolve.py` walks the tree of sections, so every message can name its key and the keys beside it. pydantic checks each value, in strict
JSON mode: lists become tuples, but booleans and texts never become numbers.
"""

import dataclasses
import functools
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from .duration import Duration
from .messages import literals, nearest, show, words

NO_DEFAULT = inspect.Parameter.empty
NUMBER = re.compile(r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)([eE][-+]?\d+)?")


class Key(NamedTuple):
    """One key of a section: what may stand there, its default (NO_DEFAULT if it is required), and whether null may."""

    node: "Section | Choice | Value"
    default: Any = NO_DEFAULT
    nullable: bool = False


@dataclasses.dataclass(eq=False)
class Section:
    """`Annotated[dict, Section(fn)]`: a mapping whose keys are fn's keyword-only parameters."""

    constructor: Callable[..., Any]

    def keys(self, value: Any = None) -> Mapping[str, Key]:
        return keys_of(self.constructor)


@dataclasses.dataclass(eq=False)
class Choice:
    """`Annotated[dict, Choice(METHODS)]`: `name` chooses a constructor; its keyword-only parameters follow.

    With `shorthand` the bare name may stand for the section. `default` is the name of a section that gives none. The keyword-only
    parameters of `common` are keys beside those of every constructor: whoever builds from the section takes them out (`apart`).
    """

    registry: Mapping[str, Callable[..., Any]]
    default: str | None = None
    shorthand: bool = True
    common: Callable[..., Any] | None = None

    def spread(self, value: Any) -> Any:
        """Expand a bare name to its section; return anything else unchanged."""
        return {"name": value} if self.shorthand and isinstance(value, str) else value

    def name(self, value: Any) -> Any:
        """The name that a section gives, or the default; None if there is neither."""
        value = self.spread(value)
        given = value.get("name") if isinstance(value, Mapping) else None
        return self.default if given is None else given

    def keys(self, value: Any = None) -> Mapping[str, Key]:
        """The keys of the section that `value` names; only `name` if it names no known one."""
        name = self.name(value)
        known = isinstance(name, str) and name in self.registry
        keys = keys_of(self.registry[name]) if known else {}
        if "name" in keys:
            raise TypeError(
                f"{name}: a constructor in a registry has no parameter called name; the config's `name` chooses it"
            )
        shared = self.common_keys() if known else {}
        if twice := sorted(keys.keys() & shared.keys()):
            raise TypeError(f"{name}: {', '.join(twice)} is a key of all names already; call the parameter otherwise")
        return {"name": Key(Value(str), self.default or NO_DEFAULT), **keys, **shared}

    def common_keys(self) -> Mapping[str, Key]:
        """The keys of every name."""
        return keys_of(self.common) if self.common is not None else {}

    def apart(self, section: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """A resolved section as (the keys of all names, `name` with the keys of its constructor)."""
        shared = self.common_keys()
        return {k: v for k, v in section.items() if k in shared}, {k: v for k, v in section.items() if k not in shared}


@dataclasses.dataclass(eq=False)
class Value:
    """A plain value of an annotated type."""

    annotation: Any

    @functools.cached_property
    def adapter(self) -> TypeAdapter[Any]:
        try:
            return _adapter(self.annotation)
        except TypeError:  # an annotation that cannot be hashed
            return TypeAdapter(self.annotation)

    def resolve(self, value: Any) -> Any:
        """The value as JSON holds it. Raises ValueError, which says what was expected and what was given."""
        try:
            return self._read(value)
        except (ValueError, TypeError) as error:
            # "1e-3" in quotes is a number, but only where text is not allowed.
            numbers = _numbers(value)
            if numbers is not value:
                try:
                    return self._read(numbers)
                except (ValueError, TypeError):
                    pass
            raise ValueError(self._complaint(value, error)) from None

    def _read(self, value: Any) -> Any:
        return to_jsonable_python(self.adapter.validate_json(json.dumps(plain(value), allow_nan=False), strict=True))

    def _complaint(self, value: Any, error: Exception) -> str:
        if isinstance(error, ValidationError) and error.error_count() == 1:
            detail = error.errors()[0]
            if {"gt", "ge", "lt", "le", "multiple_of"} & set(detail.get("ctx", {})):
                return f"{detail['msg'].removeprefix('Input ')}, got {show(value)}"
        complaint = f"expected {words(self.annotation)}, got {show(value)}"
        close = nearest(value, literals(self.annotation)) if isinstance(value, str) else None
        if isinstance(value, bool) and "text" in words(self.annotation):
            complaint += " (YAML reads yes, no, on and off as that; put the text in quotes)"
        return f"{complaint}; did you mean {close}?" if close else complaint


@functools.cache  # many keys have the same type, and pydantic takes long to build what checks it
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation)


@functools.cache
def keys_of(constructor: Callable[..., Any]) -> dict[str, Key]:
    """The keys of a constructor: its keyword-only parameters, or the fields of a dataclass that has none.

    A class whose `__init__` ends in `**keys` passes them on to its base class, so the keys of the base class follow. A constructor with
    a method `config_keys` is asked for its keys instead: `stored.StoredSection` stands for a constructor that is not imported. Raises
    TypeError (a bug, not a user's mistake) for a parameter without a usable annotation.
    """
    if (own := getattr(constructor, "config_keys", None)) is not None:
        return own()
    parameters, passes_on = _parameters(constructor)
    factories: dict[str, Any] = {}
    if dataclasses.is_dataclass(constructor):
        factories = {field.name: field.default_factory for field in dataclasses.fields(constructor)}
    hints = _hints(constructor, parameters)
    keys = {}
    for parameter in parameters:
        factory = factories.get(parameter.name, dataclasses.MISSING)
        default = parameter.default if factory is dataclasses.MISSING else factory()
        if dataclasses.is_dataclass(default) and not isinstance(default, type):
            default = dataclasses.asdict(default)
        node, nullable = _node(hints[parameter.name])
        keys[parameter.name] = Key(node, default, nullable)
    if passes_on and isinstance(constructor, type):
        base = next(base for base in constructor.__mro__[1:] if "__init__" in base.__dict__)
        keys |= {name: key for name, key in keys_of(base).items() if name not in keys}
    return keys


def _parameters(constructor: Callable[..., Any]) -> tuple[list[inspect.Parameter], bool]:
    """The keyword-only parameters of a constructor (of a dataclass without any, all), and whether it takes others by `**keys`."""
    signature = inspect.signature(constructor).parameters.values()
    named = [parameter for parameter in signature if parameter.kind is parameter.KEYWORD_ONLY]
    if not named and dataclasses.is_dataclass(constructor):
        named = list(signature)
    return named, any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature)


def _hints(constructor: Any, parameters: list[inspect.Parameter]) -> dict[str, Any]:
    """The annotations of these parameters only. Positional ones may be annotated with names that don't exist at run time."""
    for parameter in parameters:
        if parameter.annotation is NO_DEFAULT:
            raise TypeError(
                f"{constructor}: the parameter {parameter.name} needs an annotation, for configs are checked by it"
            )
    while isinstance(constructor, functools.partial):
        constructor = constructor.func
    function = inspect.unwrap(constructor.__init__ if isinstance(constructor, type) else constructor)
    annotated = types.SimpleNamespace(__annotations__={p.name: p.annotation for p in parameters})
    return typing.get_type_hints(annotated, globalns=getattr(function, "__globals__", {}), include_extras=True)


def _node(annotation: Any) -> tuple[Section | Choice | Value, bool]:
    """The node of an annotation, and whether null may stand in place of its section."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        marks = [mark for mark in arguments[1:] if isinstance(mark, Section | Choice)]
        if marks:
            return marks[0], type(None) in get_args(arguments[0])
    if origin in (Union, types.UnionType) and len(arguments) == 2 and type(None) in arguments:
        node, _ = _node(next(argument for argument in arguments if argument is not type(None)))
        if not isinstance(node, Value):
            return node, True
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return Section(annotation), False
    if any(not isinstance(_node(argument)[0], Value) for argument in arguments if origin is not Literal):
        raise TypeError(f"{annotation}: a section may stand alone or beside None, not inside another type")
    return Value(annotation), False


def _numbers(value: Any) -> Any:
    """The value with every text that spells a number converted to it; the same object if there is none."""
    if isinstance(value, str):
        return float(value.replace("_", "")) if NUMBER.fullmatch(value) else value
    if isinstance(value, list):
        items = [_numbers(item) for item in value]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    if isinstance(value, dict):
        entries = {key: _numbers(item) for key, item in value.items()}
        return entries if any(entries[key] is not value[key] for key in value) else value
    return value


def root_keys(schema: Callable[..., Any], extra: Mapping[str, Callable[..., Any]]) -> dict[str, Key]:
    """The sections of a verb's config: its recipe's keyword-only parameters, then the extra sections, all optional."""
    return {**keys_of(schema), **{name: Key(Section(constructor), {}) for name, constructor in extra.items()}}


def plain(value: Any) -> Any:
    """A value as JSON holds it."""
    return to_jsonable_python(str(value) if isinstance(value, Duration) else value)
