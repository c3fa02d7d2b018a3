"""The command that usually comes after a finished run. It runs as printed, in the folder where the run's own command was given."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.config.yaml_file import plain_override_of
from ..core.files import path_beside
from ..core.run.folder import CONFIG
from .report.negative import TRANSFER_WEIGHTS
from .settle import names_a_run

LABELS = "labels.csv"


def following(verb: str, config: Mapping[str, Any], result: Mapping[str, Any], controlled: bool = False) -> str:
    """config: resolved. controlled: of an adaptation, whether its control is known."""
    run = str(config["run"]["dir"])
    if config["run"].get("keep") == "results":  # no weights are left to go on with
        return command("report", run)
    if verb == "adapt":
        return _after_adaptation(run, config, result, controlled)
    after = {"pretrain": _after_pretraining, "probe": _after_probe, "finetune": _after_finetuning}
    return after[verb](run, config, result)


def command(*words: str, **keys: Any) -> str:
    """ "rootstock WORD ... KEY=VALUE ...", quoted for a shell; keys with __ for the dot, left out where None."""
    given = [plain_override_of(key.replace("__", "."), value) for key, value in keys.items() if value is not None]
    return shlex.join(["rootstock", *words, *given])


def exporting(run: object) -> str:
    """The command that exports a run's network."""
    return command("export", str(run), "--to", str(path_beside(str(run), "-exported")))


def _after_pretraining(run: str, config: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """A probe, where the labelled images are known; else the features."""
    evaluate, train = config["evaluate"], config["data"]["train"]
    if not result.get("metrics"):
        return command("embed", run, *uris(train, config["seed"]), "--out", f"{run}-features.npz")
    return command(
        "probe", "small", data__train=evaluate["bank"] or train, data__test=evaluate["test"], backbone__weights=run,
        run__dir=f"{run}-probe", seed=config["seed"] or None,
    )  # fmt: skip


def _after_probe(run: str, config: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """Fine-tuning of what was probed; a pretraining, if nothing had trained it."""
    data, backbone, seed = config["data"], config["backbone"], config["seed"] or None
    classified = any(key.endswith("/accuracy") for key in result.get("metrics") or ())
    if not classified:
        return command("report", run)
    if backbone["weights"] == "none":
        return command(
            "pretrain", "small", data__train=data["train"], evaluate__knn={}, run__dir=f"{run}-pretrained", seed=seed
        )
    of_run = names_a_run(backbone["weights"])
    return command(
        "finetune", "small", data__train=data["train"], data__test=data["test"],
        data__size=None if of_run else data["size"], backbone__name=None if of_run else backbone["name"],
        backbone__weights=backbone["weights"], run__dir=f"{run}-finetuned", seed=seed,
    )  # fmt: skip


def _after_finetuning(run: str, config: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """Labels of the test images, or of the training set where a part of it was held out."""
    data = config["data"]
    return command("predict", run, *uris(data["test"] or data["train"], config["seed"]), "--out", LABELS)


def _after_adaptation(run: str, config: Mapping[str, Any], result: Mapping[str, Any], controlled: bool) -> str:
    """Its control, where it was measured without one; else labels of the target."""
    method = config["method"]
    weight = next((key for key in reversed(TRANSFER_WEIGHTS) if method.get(key) is not None), None)
    is_control = any(method.get(key) == 0 for key in TRANSFER_WEIGHTS)
    if weight is not None and not is_control and result.get("metrics") and not controlled:
        return command("adapt", f"{run}/{CONFIG}", **{f"method__{weight}": 0}, run__dir=f"{run}-control")
    return command("predict", run, *uris(config["data"]["target"], config["seed"]), "--out", LABELS)


def uris(given: str | Sequence[str] | Mapping[str, str], seed: int) -> list[str]:
    """The URIs of a key of `data` as other verbs take them, with the seed filled in. Of several tests the first."""
    found = [next(iter(given.values()))] if isinstance(given, Mapping) else [given] if isinstance(given, str) else given
    return [re.sub(r"\{seed\}", str(seed), uri) for uri in found]
