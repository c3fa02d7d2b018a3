"""`rootstock predict`: the class of each picture, with its confidence and the classes after it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ...core.distributed import barrier, rank
from ...core.errors import UserError
from ...core.evaluate.calibration import fit_temperature
from ...core.evaluate.feature_key import weights_digest
from ...core.evaluate.features import extract, extract_taps
from ...core.evaluate.rounds import stores_in_memory
from ...core.evaluate.trained import Calibration, TrainedRun, load_trained
from ...core.images.images import Images
from ...core.images.open import open_images
from ...core.images.sets import exposure, seen_without_labels
from ...core.images.several import has_several
from ...core.model.classifier import UNKNOWN, Classifier
from ..aloud import conclude, say
from ..following import exporting
from .pictures import damage_with_remedy, names_of, open_pictures, watched_together
from .tables import PARQUET, Column, check_parquet, write_csv, write_parquet


class Ranked(nn.Module):
    """float [N, C, H, W] -> the k outputs of highest probability, highest first; of equal ones the first, as argmax has it.

    "probability": softmax(logits / temperature) in float64, [N, k]. "output": their numbers, [N, k].
    """

    def __init__(self, classifier: nn.Module, temperature: float, k: int) -> None:
        super().__init__()
        self.classifier, self.temperature, self.k = classifier, temperature, k

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        logits = self.classifier(images).double()
        order = logits.argsort(dim=1, descending=True, stable=True)[:, : self.k]
        return {
            "probability": (logits / self.temperature).softmax(1).gather(1, order),
            "output": order.to(torch.float32),
        }


def predict_pictures(
    run: Path,
    uris: Sequence[str],
    out: Path,
    top: int = 1,
    calibrate: Sequence[str] = (),
    *,
    device: str = "auto",
    batch_size: int = 256,
    workers: int = 8,
    skip_damaged: bool = False,
) -> int:
    """Write a row for each picture to `out`, .csv or .parquet: name, class, confidence, and up to the `top`-th class and confidence.

    calibrate: URIs of labelled pictures; the temperature is fitted on them instead of taken from the run. Returns the exit code 0.
    Raises UserError.
    """
    check_parquet(out)
    with watched_together(device) as place:
        trained = load_trained(run)
        classifier = classifier_of(trained)
        outputs = classifier.outputs
        check_ranking(classifier, top, batch_size)
        images = open_pictures(uris, trained, skip_damaged)
        classifier.to(place)
        how = {"device": place, "batch_size": batch_size, "workers": workers}
        fitted = trained.calibration
        if calibrate:
            fitted = calibrated(trained, calibrate, device=place, workers=workers)
        say(f"predict {trained.title}: {len(outputs)} outputs, {len(images)} {trained.view.in_words()}, on {place}")
        say(confidence_in_words(fitted))
        order, probability = ranked(trained, images, top, fitted, **how)
        if rank() == 0:
            columns = prediction_columns(names_of(images), outputs, order, probability)
            if out.suffix.lower() == PARQUET:
                about = {
                    "run": str(trained.folder),
                    "weights": weights_digest(classifier),
                    "view": trained.view.describe(),
                    "outputs": outputs,
                    "calibration": None if fitted is None else fitted._asdict(),
                    "data": {"uri": images.uri, "images": len(images), "split": images.split_hash()},
                }
                write_parquet(out, columns, about)
            else:  # without a place for it, and without reading every file once more for its identity
                write_csv(out, columns)
            print(out)
            conclude(predicted_in_words(outputs, order[:, 0], probability[:, 0]), exporting(trained.folder))
        barrier()
    return 0


def predicted_in_words(outputs: Sequence[str], best: Tensor, sure: Tensor) -> str:
    """How many pictures, the commonest class, and how sure. best: int64 [N], numbers of outputs; sure: float [N]."""
    if not len(best):
        return "predict: no pictures"
    counts = torch.bincount(best, minlength=len(outputs))
    share, which = counts.max() / len(best), outputs[int(counts.argmax())]
    return f"predict: {len(best)} pictures, {100 * float(share):.0f} % of them {which}; mean confidence {100 * float(sure.mean()):.1f} %"


def check_ranking(classifier: Classifier, top: int, batch_size: int) -> None:
    """Raises UserError for numbers out of range."""
    count = len(classifier.outputs)
    if not 1 <= top <= count:
        raise UserError(f"--top: expected 1 to {count}, the number of the classifier's outputs, got {top}")
    if batch_size < 1:
        raise UserError(f"--batch-size: expected 1 or more, got {batch_size}")


def ranked(
    trained: TrainedRun,
    images: Images,
    top: int,
    fitted: Calibration | None,
    *,
    device: torch.device,
    batch_size: int = 256,
    workers: int = 0,
) -> tuple[Tensor, Tensor]:
    """The `top` likeliest outputs of each picture, int64 [N, top], and their probabilities, float64 [N, top]; on every process.

    fitted: the temperature; None for 1. Raises UserError.
    """
    classifier = classifier_of(trained)
    check_ranking(classifier, top, batch_size)
    model = Ranked(classifier.to(device), 1.0 if fitted is None else fitted.temperature, top)
    dtypes = {"probability": torch.float64, "output": torch.float32}
    with damage_with_remedy():
        found = extract_taps(
            model,
            images,
            trained.view,
            dict.fromkeys(dtypes, 1),
            stores_in_memory(len(images), dtypes),
            device=device,
            batch_size=batch_size,
            workers=workers,
        )
    return found["output"].long(), found["probability"]


def classifier_of(trained: TrainedRun) -> Classifier:
    """Raises UserError for a run that trained no classifier."""
    if trained.classifier is None:
        raise UserError(
            f"{trained.folder} has a network and no classifier, so it has no classes to predict; train one on labelled pictures, "
            f"`rootstock finetune CONFIG backbone.weights={trained.folder}`, and predict with that run; see also `rootstock embed`"
        )
    return trained.classifier


def prediction_columns(
    names: Sequence[str], outputs: Sequence[str], order: Tensor, probability: Tensor
) -> dict[str, Column]:
    """The columns of the table. order: int64 [N, K], numbers of outputs, best first. probability: float64 [N, K]."""
    columns: dict[str, Column] = {"name": names}
    for place in range(order.shape[1]):
        which = f"_{place + 1}" if place else ""
        named = [str(outputs[number]) for number in order[:, place].tolist()]
        columns[f"class{which}"] = named
        columns[f"confidence{which}"] = probability[:, place].contiguous()
    return columns


def calibrated(trained: TrainedRun, uris: Sequence[str], *, device: torch.device, workers: int = 0) -> Calibration:
    """The temperature of least NLL on labelled pictures.

    Raises UserError for unknown classes, for pictures that trained the network with their labels, and where no temperature is best.
    """
    images = open_images(list(uris))
    labels = labels_for(trained, images, "--calibrate")
    trained.check_pictures(images)
    seen, own = trained.backbone.seen, {"--calibrate": images}
    if count := exposure(seen, own)["seen_labelled"]:
        raise UserError(
            f"--calibrate: {count} of the {len(images)} pictures of {images.uri} trained the network with their labels, so it is surer of "
            "them than of others; give labelled pictures that no training saw"
        )
    for sentence in seen_without_labels(seen, own):
        say(sentence)
    logits = extract(classifier_of(trained), images, trained.view, device=device, workers=workers)
    fitted = fit_temperature(logits.double().numpy(), labels.numpy())
    if fitted.at_bound:
        right = float((logits.argmax(1) == labels).double().mean())
        raise UserError(
            f"--calibrate: no temperature is the best one on the {len(images)} pictures of {images.uri}, of which {right:.0%} are right; "
            "give others, which no training saw"
        )
    return Calibration(fitted.value, f"{len(images)} pictures of {images.uri}")


def labels_for(trained: TrainedRun, images: Images, option: str) -> Tensor:
    """int64 [N]: the number of the output of each image's class; of an open-set classifier, `unknown` for classes that it lacks.

    Raises UserError for a set without labels, and for classes that the classifier does not know.
    """
    classifier = classifier_of(trained)
    outputs = classifier.outputs
    if images.labels is None or images.classes is None or has_several(images.labels):
        raise UserError(f"{option}: {images.uri} has no label for each picture; give a labelled set")
    other = outputs.index(UNKNOWN) if classifier.structure.extra else -1
    number = torch.tensor([outputs.index(name) if name in outputs else other for name in images.classes])
    labels = number[images.labels]
    if (lacking := (labels < 0).nonzero()[:, 0]).numel():
        name = images.classes[int(images.labels[lacking[0]])]
        raise UserError(
            f"{option}: {images.uri} has the class {name}, which {trained.title} does not know; give pictures of its classes "
            f"({', '.join(outputs[:10])}{', ...' if len(outputs) > 10 else ''})"
        )
    return labels


def confidence_in_words(fitted: Calibration | None) -> str:
    """What a confidence is."""
    if fitted is None:
        return (
            "confidence is the softmax as trained, which is often too sure; --calibrate URI fits a temperature on labelled pictures "
            "that no training saw"
        )
    return f"confidence is calibrated: temperature {fitted.temperature:.4g}, fitted on {fitted.fitted_on}"
