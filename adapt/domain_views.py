"""The views of each domain's images that a method declares: `data.views` is the weak one, and `data.strong` the strong one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core import stage
from ..core.errors import UserError
from ..core.images.open import Images
from ..core.method import AdaptMethod
from ..core.registration import FURTHER_VIEWS
from ..core.run.directory import Run
from ..core.views.multiview import Multiview
from .sets import SOURCE, TARGET

STRONG = "fixmatch"
"""The preset of the strong view where `data.strong` is null."""


def domain_views(
    run: Run, data: Mapping[str, Any], method: AdaptMethod, name: str, images: Images
) -> dict[str, Multiview]:
    """The views of source and target, by domain, the weak one first. name: the method's, for messages; images: of the source.

    Every view has a stream of draws by its place, so the weak view is the same whichever follow. Raises UserError for a section whose
    view the method does not take.
    """
    wanted = {SOURCE: method.source_views, TARGET: method.target_views}
    weak = stage.augmentation(run, data["views"], method, name, images)
    further: dict[str, Multiview] = {}
    for view in FURTHER_VIEWS:
        key = f"data.{view}"
        if any(view in views for views in wanted.values()):
            section = {"name": STRONG} if data[view] is None else data[view]
            further[view] = stage.augmentation(run, section, method, name, images, key)
        elif data[view] is not None:
            raise UserError(f"{key}: {name} takes no {view} view of an image; leave it out")
    return {domain: weak.beside([further[view] for view in views[1:]]) for domain, views in wanted.items()}
