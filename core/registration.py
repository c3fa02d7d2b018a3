"""The registries of methods, checked: a class that leaves out what core/method.py requires is refused in one sentence."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from .errors import UserError
from .method import AdaptMethod, Method, PretrainMethod


class Required(NamedTuple):
    """A required attribute of a method's class: the type of its value, and its meaning for the message."""

    kind: type
    meaning: str


_EVERY_METHOD = {
    "rows_per_position": Required(
        int, "the rows that one image contributes to a forward: 2 where two views are encoded together, else 1"
    ),
    "couples_samples": Required(
        bool, "True if the loss of an image depends on the other images of its batch, else False"
    ),
    "forward": Required(object, "(batch, progress) -> Step"),
}
REQUIRED: Mapping[type[Method], Mapping[str, Required]] = {
    PretrainMethod: _EVERY_METHOD | {"views": Required(int, "how many whole views of each image are drawn, 1 or more")},
    AdaptMethod: _EVERY_METHOD | {"sees_target": Required(bool, "True if it uses target images, else False")},
}
# An instance may also set such an attribute, where a key of the config decides it: `self.couples_samples = entropy`. The class then still
# says what holds by default.

FURTHER_VIEWS = ("strong",)
"""The names that `source_views` and `target_views` may have after "weak": each is a key of the `data` section."""

Kind = TypeVar("Kind", bound=Method)


def register(kind: type[Kind], methods: Mapping[str, type[Kind]]) -> Mapping[str, type[Kind]]:
    """The registry of a recipe, {name in configs: class}, checked. kind: PretrainMethod or AdaptMethod.

    Raises UserError, one sentence, for a class that is not of this kind, lacks a required attribute, or gives one a wrong type.
    """
    for name, method in methods.items():
        who = f"method {name} ({method.__module__.removeprefix('rootstock.')}.{method.__qualname__})"
        if not issubclass(method, kind):
            raise UserError(f"{who} is no {kind.__name__}: derive it from core.method.{kind.__name__}")
        for attribute, required in REQUIRED[kind].items():
            own = inspect.getattr_static(method, attribute, None)
            if own is None or own is inspect.getattr_static(kind, attribute, None):
                raise UserError(f"{who} lacks {attribute}: {required.meaning}; see core/method.py")
            # bool is an int to Python, not to us; and no count is 0.
            fits = type(own) is required.kind if required.kind in (int, bool) else True
            if not fits or (required.kind is int and own < 1):
                raise UserError(f"{who} has {attribute} = {own!r}; it is {required.meaning}; see core/method.py")
        if issubclass(method, AdaptMethod):
            _check_views(who, method)
    return dict(methods)


def _check_views(who: str, method: type[AdaptMethod]) -> None:
    for attribute in ("source_views", "target_views"):
        views = getattr(method, attribute)
        if not isinstance(views, tuple) or views[:1] != ("weak",) or not set(views[1:]) <= set(FURTHER_VIEWS):
            raise UserError(
                f'{who} has {attribute} = {views!r}; it is ("weak",), or that and {" or ".join(FURTHER_VIEWS)}; see core/method.py'
            )
        if len(views) > 1 and not method.uses_pixels:
            raise UserError(f"{who} has {attribute} = {views!r}, so uses_pixels must be True; see core/method.py")


def check_built(method: Method, name: str) -> None:
    """Raises UserError if a method that was just built lacks what only an instance can have. name: the method's, in configs."""
    lacking = [
        key for key in ("backbone", "classifier") if key in _annotated(type(method)) and not hasattr(method, key)
    ]
    if lacking:
        raise UserError(
            f"method {name} has no {lacking[0]}: set self.{lacking[0]} in its constructor, after super().__init__(); see core/method.py"
        )


def _annotated(kind: type) -> set[str]:
    return {name for base in kind.__mro__ for name in inspect.get_annotations(base)}
