"""What a verb does: resolve the config, open the run, call the recipe. Pipelines call it in the same process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from ..adapt.adapt import adapt, build_adaptation
from ..core.config import resolve as config
from ..core.distributed import world
from ..core.manifest import exported_anew, lost_exports
from ..core.run.directory import Run
from ..core.run.options import options
from ..finetune.finetune import build_finetuning, finetune
from ..finetune.probe import build_probe, probe
from ..ssl.pretrain import build_pretraining, pretrain
from .ending import say_ending
from .processes import opened
from .settle import chosen_words, give_way, settle

VERBS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "pretrain": pretrain,
    "probe": probe,
    "finetune": finetune,
    "adapt": adapt,
}
# The first part of each recipe, before anything is trained or scored. A dry run calls only this.
BUILDERS: Mapping[str, Callable[..., Any]] = {
    "pretrain": build_pretraining,
    "probe": build_probe,
    "finetune": build_finetuning,
    "adapt": build_adaptation,
}
EXTRA: Mapping[str, Callable[..., Any]] = {"run": options}


def resolve(verb: str, path: str | Mapping[str, Any], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The verb's resolved config. `auto` stays where the run of `backbone.weights` is still to come. Raises ConfigError."""
    return settle(verb, _given(verb, path, overrides)[0], wait=True)


def _given(verb: str, path: str | Mapping[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The config as it is given, in which keys may say `auto`, and a line for the log."""
    given = config.load(path, VERBS[verb], overrides, EXTRA)
    return given, give_way(given, overrides)


def fill_defaults(verb: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """A config of this verb, checked, with every default filled in. Raises ConfigError."""
    return config.validate(given, VERBS[verb], EXTRA)


def execute(
    verb: str, path: str | Mapping[str, Any], overrides: Sequence[str] = (), quiet: bool = False
) -> dict[str, Any]:
    """Run one verb and return its result; if the run is finished, return the result that it has. path: as for `load`."""
    given, notes = _given(verb, path, overrides)
    resolved = settle(verb, given)
    with opened(Run(verb, resolved, quiet, partial(fill_defaults, verb))) as run:
        if (result := run.finished) is not None:
            run.log(f"{run.dir} is finished; see {run.dir / 'result.json'}, or choose another run.dir")
            if gone := lost_exports(run.dir):
                run.log(f"WARNING: {', '.join(gone)} of this run: missing or damaged; {exported_anew(run.dir)}")
            say_ending(run, result)
            return result
        run.detail(
            f"{run.device}, {run.dtype}, {torch.get_num_threads()} threads, {world()} processes, compile {run.options['compile']}"
        )
        for line in filter(None, (notes, chosen_words(given, resolved))):
            run.log(line)
        result = VERBS[verb](run, **{key: value for key, value in resolved.items() if key != "run"})
        say_ending(run, result)
        return result


def schema() -> dict[str, Any]:
    """The JSON schema of every config."""
    return config.json_schema(VERBS, EXTRA)
