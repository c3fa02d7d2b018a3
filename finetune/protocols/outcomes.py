"""What the result of a probe says about each protocol: the scores of each test, what was chosen, and how solvers ended."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...core.evaluate.held_out import describe_slice
from ...core.evaluate.scores import Scored
from ...core.evaluate.taps import tap_in_words
from ...core.images.images import Images
from ...core.images.several import has_several
from ...core.launchlog import warn
from ...core.printable import printable
from ...core.views.view import Evaluation
from .contract import Features, Fitted, LabelledTest, Measuring

LONGEST = 12  # characters of a number that somebody chose; result.json has all digits of the others
# DINOv2's 52 heads and 45 values of C, and the draws of few_linear by default.
CANDIDATES_SHOWN = 60
CLASSES_SHOWN = 5
# A grid of fewer numbers has no inside.
FEWEST_TRIED = 3
NOTHING_BELOW: Mapping[str, float] = {"weight_decay": 0.0, "k": 1}


def add_outcome(
    scored: Scored, name: str, fitted: Fitted | Measuring, tests: Mapping[str, Images], shown: Mapping[str, Features]
) -> None:
    """Score or measure every labelled test by a fitted protocol. name: the protocol's; shown: the features of each test, by tap."""
    for test, images in tests.items():
        if images.labels is None:
            continue
        key = f"{test}/{name}"
        if isinstance(fitted, Measuring):
            given = LabelledTest(shown[test], images.labels.cpu(), images.keys(), images.units(), scored.seed)
            scored.add_measured(key, fitted.measure(given))
            told = scored.details[key]
            if 0 < (dropped := told.get("without_relevant", 0)) < told.get("queries", 0):
                warn(f"WARNING: {key}: {_dropped(dropped, told['queries'])}")
        else:
            scored.add(key, images, fitted.scores(shown[test]), fitted.kind, held_out=fitted.held_out)
            if absent := scored.details[key].get("classes_without_images"):
                warn(f"WARNING: {key}: {_absent(absent)}")
        _say_left_out(key, scored.details[key].get("left_out", {}))
        scored.details[key] |= fitted.facts


def _say_left_out(key: str, left_out: Mapping[str, str]) -> None:
    """A line for each reason, with all metrics that it is of. key: TEST/PROTOCOL."""
    for reason in dict.fromkeys(left_out.values()):
        metrics = [metric for metric, why in left_out.items() if why == reason]
        are = "is" if len(metrics) == 1 else "are"
        warn(f"WARNING: {key}/{', '.join(metrics)} {are} left out: {reason}")


def _dropped(queries: int, of: int) -> str:
    """What is said of the queries that count in no mean."""
    return f"{queries} of {of} queries {'has' if queries == 1 else 'have'} no relevant image in the gallery, and no part in any mean"


def _absent(names: Sequence[str]) -> str:
    """What is said of the classes without a test image."""
    shown = ", ".join(map(printable, names[:CLASSES_SHOWN])) + (", ..." if len(names) > CLASSES_SHOWN else "")
    are = "class has" if len(names) == 1 else "classes have"
    return f"{len(names)} {are} no test image ({shown}), so no AP, and no part in the mean of AP"


def given_to_all(view: Evaluation, weights: str, digest: str, images: int) -> dict[str, Any]:
    """What the settings of every protocol of a probe end with. weights: as the config has them; digest: sha256 of what was loaded.

    images: those that are trained on, without copies.
    """
    return {
        "view": view.in_words(),
        "mean": list(view.mean),
        "std": list(view.std),
        "weights": weights,
        "weights_sha256": digest,
        "train_images": images,
    }


def with_settings(fitted: Fitted | Measuring, reads: Sequence[str], more: Mapping[str, Any]) -> Fitted | Measuring:
    """The same, whose settings have the meaning of its taps, and `more`; what was chosen at an end of its grid is in the facts too."""
    settings = {
        **fitted.facts.get("settings", {}),
        "features": "; ".join(map(tap_in_words, dict.fromkeys(reads))),
        **more,
    }
    ends = ends_chosen(fitted) if isinstance(fitted, Fitted) else {}
    facts = {**fitted.facts, "settings": settings, **({"chosen_at_the_ends": ends} if ends else {})}
    return fitted._replace(facts=facts)


def ends_chosen(fitted: Fitted) -> dict[str, dict[str, int]]:
    """How many of the choices are the lowest and the highest number that was tried, by key; only of keys that have such a choice.

    Of one or two numbers every choice is an end, and weight decay 0 and k = 1 have nothing below them: these are passed over.
    """
    found = dict[str, dict[str, int]]()
    for key, value in fitted.chosen.items():
        tried = sorted({row[key] for row in fitted.candidates if isinstance(row.get(key), int | float)})
        choices = value if isinstance(value, list) else [value]
        if len(tried) < FEWEST_TRIED:
            continue
        ends = {"lowest": choices.count(tried[0]), "highest": choices.count(tried[-1])}
        if tried[0] == NOTHING_BELOW.get(key):
            ends["lowest"] = 0
        if any(ends.values()):
            found[key] = ends
    return found


def say_ends(name: str, fitted: Fitted, log: Callable[[str], None]) -> None:
    """A warning for each choice at an end of its grid, where a better number may lie beyond. name: the protocol's."""
    for key, ends in ends_chosen(fitted).items():
        tried = sorted({row[key] for row in fitted.candidates if isinstance(row.get(key), int | float)})
        for end, number in (("lowest", tried[0]), ("highest", tried[-1])):
            if count := ends[end]:
                chosen = fitted.chosen[key]
                draws = f", in {count} of {len(chosen)} draws" if isinstance(chosen, list) else ""
                log(
                    f"WARNING: {name}: {key} = {number:g} was chosen, the {end} of {len(tried)} that were tried{draws}; a wider grid may "
                    "have a better one"
                )


def say_what_was_done(name: str, fitted: Fitted | Measuring, log: Callable[[str], None]) -> None:
    """Print the whole protocol and the score of every candidate on the slice; of very many, the first. name: the protocol's."""
    if settings := fitted.facts.get("settings"):
        log(f"{name}: {_line(settings)}")
    if isinstance(fitted, Measuring):
        return
    for row in fitted.candidates[:CANDIDATES_SHOWN]:
        log(f"{name}: candidate {_line(row)}")
    if (more := len(fitted.candidates) - CANDIDATES_SHOWN) > 0:
        log(f"{name}: {more} more candidates are in result.json")


def _line(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_spoken(value)}" for key, value in row.items())


def _spoken(value: Any) -> str:
    """A setting is printed as it is; of a measured number, four digits."""
    return f"{value:.4g}" if isinstance(value, float) and len(repr(value)) > LONGEST else json.dumps(value)


def what_was_chosen(outcomes: Mapping[str, Fitted], train: Images, seed: int) -> dict[str, Any]:
    """What the protocols chose, how the slice of the training images was drawn on which they did, and how solvers ended."""
    chosen = {f"{name}/{key}": value for name, one in outcomes.items() for key, value in one.chosen.items()}
    fits = {name: dict(one.fit) for name, one in outcomes.items() if one.fit}
    tried = {name: list(map(dict, one.candidates)) for name, one in outcomes.items() if one.candidates}
    thresholds = has_several(train.labels)  # those of F1 are chosen there too
    on_the_slice = any(
        (one.chosen or (thresholds and one.held_out)) and not one.own_slices for one in outcomes.values()
    )
    drawn = {"held_out": describe_slice(train, seed)} if on_the_slice else {}
    return {
        "chosen": chosen, **drawn, **({"candidates": tried} if tried else {}), **({"fits": fits} if fits else {})
    }  # fmt: skip
