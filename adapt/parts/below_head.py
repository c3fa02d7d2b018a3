"""Methods that change what the head sees and never the head itself: with everything below it frozen they would change nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...core.errors import UserError

if TYPE_CHECKING:
    from ...core.model.classifier import Classifier


def check_below_head(
    classifier: Classifier, name: str, what: str = "changes features alone", remedy: str = "give method.bottleneck=256"
) -> None:
    """Raises UserError where nothing below the classifier's head learns. name: of the method; what: it does."""
    head = set(classifier.head.parameters())
    if not any(parameter.requires_grad for parameter in set(classifier.parameters()) - head):
        raise UserError(
            f"method: {name} {what}, and with this backbone.freeze nothing below the head learns, so that the method would change "
            f"nothing; freeze less, or {remedy}"
        )
