"""What each number that a training logs means, in a sentence; metrics of results have theirs in core/evaluate/definitions.py."""

from __future__ import annotations

from collections.abc import Iterable

from ...core.evaluate.definitions import definition_of

LAYER_GRADIENTS = "layer_grad_norm/"  # as core/train/layer_gradients.py has it, which imports torch
_LOGGED = {
    "loss": "What the training minimises, mean over the batch; its values compare only within one method and batch size.",
    "lr": "Learning rate at each step.",
    "grad_norm": "Length of the gradient before clipping; sudden peaks come before a divergence.",
    "skipped": "Steps so far whose loss or gradient was not finite, so that no update was made; 0 is right.",
    "train_accuracy": "Right images of the augmented training batch; higher is better, and far above the test's is overfitting.",
    "source_accuracy": "Right images of the augmented source batch; says nothing about the target.",
    "feature_std": "Spread of the features over directions: 1 evenly in all, 0 if all images give one vector (collapse).",
    "embedding_std": "Spread of the embeddings over directions: 1 evenly in all, 0 if all images give one vector (collapse).",
    "feature_rank": "Number of dimensions that the features of a batch use; 1 is a collapse.",
    "embedding_rank": "Number of dimensions that the embeddings of a batch use; 1 is a collapse.",
    "positive_cosine": "Mean cosine of the embeddings of two views of an image; near 1 is good only while positive auc is high, too.",
    "positive_auc": "How often two views of an image are more alike than views of two images; higher is better, 0.5 is chance.",
    "rankme": "RankMe, effective rank of the features: higher means that more dimensions are used; compare runs of one method only.",
    "alpha_req": "alpha-ReQ, how fast the features' spectrum falls: about 1 is good; higher: few directions hold all variance.",
    "lidar": "LiDAR, effective rank of what tells images apart beyond augmentation: higher is better within one method.",
    "uniformity": "How evenly features cover the sphere: lower is more even, about -4 is best, 0 is a collapse.",
    "alignment": "Mean squared distance of the features of two views of an image: lower is more alike; 0 with uniformity 0 is a collapse.",
    "domain_accuracy": "How often the discriminator tells source from target: 50 % is chance, which the features aim at.",
    "domain_loss": "Loss of the discriminator, which the features try to raise.",
    "transfer_loss": "The part of the loss that draws source and target together.",
    "gradient_ratio": "Size of the transfer loss's gradient over that of the task's: far above 1 drowns the task, near 0 does nothing.",
    "effective_classes": "exp of the entropy of the mean prediction on the target: near the number of classes is right where these are "
    "balanced, 1 is a collapse.",
    "target_entropy": "Mean entropy of the predictions on the target in nats: lower is surer, not more right.",
    "unknown_target": "Share of the target batch that is called unknown.",
    "confident": "Share of the target above the confidence threshold, which is what pseudo-labels are made of.",
    "pseudo_changed": "Share of the target whose pseudo-label changed at the last look; it should fall.",
    "agreement": "How often both heads agree on the target; adversarial steps lower it, the others raise it.",
    "source_agreement": "How often the adversary agrees with the classifier on the source.",
    "target_agreement": "How often the adversary agrees with the classifier on the target.",
    "entropy": "Mean entropy of the predictions of a candidate on the target in nats: lower is surer, not more right.",
}


# Of held-out training images: training is judged by them.
_OF_SLICE = {
    "held_out/accuracy": "Right images of the training images that are held out from training; higher is better.",
    "held_out/loss": "Mean cross-entropy of the training images that are held out from training, whatever the training minimises; lower is "
    "better.",
    "held_out/raw_accuracy": "Right images of the held-out training images, by the weights of the last step and not their average; higher "
    "is better.",
    "held_out/raw_loss": "Mean cross-entropy of the held-out training images, by the weights of the last step and not their average; lower "
    "is better.",
}


def meaning_of(key: str) -> str:
    """The meaning of a key of metrics.jsonl; "" for one that only its method knows."""
    if key.startswith("lr/"):
        return _LOGGED["lr"]
    if key.startswith(LAYER_GRADIENTS):
        return "Length of the gradient of one layer, before clipping."
    if key.startswith("eval/"):
        return metric_meaning(key)
    return _OF_SLICE.get(key) or _LOGGED.get(key.rsplit("/", 1)[-1], "")


def metric_meaning(metric: str) -> str:
    """The definition of TEST/PROTOCOL/METRIC as a sentence with its better direction; "" for one without a definition."""
    found, name = definition_of(metric), metric.rsplit("/", 1)[-1]
    if found is None:
        return ""
    return f"{name.replace('_', ' ')}: {found.meaning}; {found.better} is better."


def defined_name(metric: str) -> str:
    """The name under which the page defines TEST/PROTOCOL/METRIC; "" for one without a definition."""
    name = metric.rsplit("/", 1)[-1]
    return name if definition_of(metric) is not None else ""


def glossary(metrics: Iterable[str]) -> list[tuple[str, str]]:
    """(name, meaning) of each metric that has a definition, once, in their order."""
    named = {defined_name(metric): metric for metric in metrics if defined_name(metric)}
    return [(name, metric_meaning(metric).partition(": ")[2]) for name, metric in named.items()]
