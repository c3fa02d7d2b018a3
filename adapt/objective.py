"""The keys that all adaptation methods share, and a method built from them and its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from ..core import stage
from ..core.checks import sizes_fit
from ..core.config.resolve import Choice, Section
from ..core.errors import UserError
from ..core.method import AdaptMethod
from ..core.model.backbone import Backbone
from ..core.model.classifier import Classifier, read_head
from ..core.model.domains import BatchNorms
from ..core.model.heads import HeadKind, Structure
from ..core.run.directory import Run
from .parts.masked_consistency import MaskedConsistency, mic_options
from .registry import ADAPT_METHODS


def shared_options(
    *,
    bottleneck: int | Literal["none"] = "none",
    head: HeadKind = "linear",
    head_temperature: float = 0.05,
    batchnorm: BatchNorms = "joint",
    keep_head: bool = False,
    unknown: bool = False,
    mic: Annotated[dict[str, Any] | None, Section(mic_options)] = None,
) -> None:
    """The keys of every adaptation method.

    bottleneck: Width of a layer between backbone and head, 1 or more, or none: Linear, BatchNorm, ReLU at the full learning rate, as in the
        published tables on ResNets (256; MDD and MCC 1024). It is part of the exported classifier. Where a classifier is kept, `none` and
        the defaults of the two keys below stand for what it has.
    head: The last layer: linear, weightnorm (weight-normalised, SHOT's) or cosine (of features and class weights, without a bias).
    head_temperature: What the cosine head divides by, above 0; MME has 0.05. Other heads don't use it.
    batchnorm: How a batch of two domains is normalised. `joint`: one forward of both, so statistics are of both (tllib). `apart`: one
        forward a domain, each with its own batch statistics and with shared running ones (the authors of CDAN and MCD). `own`: statistics,
        scales and shifts of its own for each domain, of which the target's are exported and tested (DSBN, arXiv:1906.03950).
    keep_head: Whether training begins with bottleneck and head of the classifier in `backbone.weights` instead of new ones. So the second
        half of LP-FT does: a head is trained on the frozen network, then everything from there (arXiv:2202.10054). Methods that go on from
        a trained classifier (adabn, shot, aad, tent, eata, roid) always do.
    unknown: Whether the head has one more output, for images that are in none of the source's classes; osbp always has it. No image teaches
        it to another method, so it is hardly ever the highest: with source_only, the row beside osbp on tests that hold other classes.
    mic: Masked image consistency as a term beside the method's loss (MIC, arXiv:2212.01322); null is without it.
    """


METHOD = Choice(ADAPT_METHODS, common=shared_options)
"""The `method` section of `rootstock adapt`."""


def further_outputs(section: Mapping[str, Any], weights: str) -> int:
    """How many outputs a method's classifier has beyond the classes: its own, or those of the run whose head it keeps. Raises UserError."""
    kind = ADAPT_METHODS[section["name"]]
    return read_head(weights).structure.extra if kind.keeps_head or section["keep_head"] else _extra(section)


def _extra(section: Mapping[str, Any]) -> int:
    """How many outputs beyond the classes a new head of the method has."""
    return max(ADAPT_METHODS[section["name"]].extra_outputs, int(section["unknown"]))


def build_objective(
    section: Mapping[str, Any], backbone: Backbone, classes: Sequence[str], weights: str, run: Run
) -> AdaptMethod:
    """The method of a resolved `method` section, around a new classifier. weights: `backbone.weights`, whose head some methods keep, and
    any method with `keep_head`.

    Raises UserError.
    """
    shared, own = METHOD.apart(section)
    kind = ADAPT_METHODS[own["name"]]
    _check_batchnorm(shared["batchnorm"], own["name"])
    extra, keeps = _extra(section), kind.keeps_head or shared["keep_head"]
    structure = _structure(shared, extra)
    if keeps and structure == Structure(extra=extra):
        structure = read_head(weights).structure
        if structure.extra < extra:
            what, leave = (" with unknown", "unknown") if shared["unknown"] else ("", "keep_head")
            raise UserError(
                f"method.keep_head: {own['name']}{what} needs an output for unknown images, and the classifier of {weights} has none; "
                f"leave {leave} out"
            )
    with sizes_fit("method", shared):
        classifier = Classifier(backbone, classes, structure=structure, batchnorm=shared["batchnorm"])
    objective: AdaptMethod = stage.build_method(own, ADAPT_METHODS, classifier, run)
    if keeps:
        classifier.load_head(weights)
    return objective


def with_terms(objective: AdaptMethod, section: Mapping[str, Any], run: Run) -> AdaptMethod:
    """The method with the terms that a resolved `method` section adds to its loss. Called after `resample`. Raises UserError."""
    if section["mic"] is None:
        return objective
    if objective.online:
        raise UserError(
            f"method.mic: it needs a training on source and target, and {section['name']} goes over the target once; "
            "use method.mic=null, or another method"
        )
    return MaskedConsistency(objective, run.options["chunk"], **section["mic"])


def _structure(shared: Mapping[str, Any], extra: int) -> Structure:
    width = None if shared["bottleneck"] == "none" else shared["bottleneck"]
    given = Structure(width, shared["head"], shared["head_temperature"], extra)
    given.check()
    # The temperature of another head means nothing, so two such structures are equal.
    return given if given.head == "cosine" else given._replace(temperature=Structure().temperature)


def _check_batchnorm(batchnorm: BatchNorms, name: str) -> None:
    """Raises UserError if the method has no use for statistics of its own for each domain."""
    if batchnorm == "own" and ADAPT_METHODS[name].rows_per_position == 1:
        raise UserError(
            f"method.batchnorm: own needs a method that encodes source and target in each step, which {name} does not; use joint"
        )
