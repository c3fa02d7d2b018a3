"""Each number that every training logs has a sentence that says what it means."""

import torch

from rootstock.core.evaluate import spectrum
from rootstock.launch.report.meanings import glossary, meaning_of, metric_meaning
from rootstock.ssl.watch.collapse import collapse_metrics


def test_what_trainings_log_is_explained() -> None:
    views = torch.randn(2, 8, 4)
    logged = {"loss", "lr", "grad_norm", "skipped", *collapse_metrics(views, views)}
    logged |= {
        f"watch/{name}"
        for name in ("rankme", "alpha_req", "lidar", "uniformity", "alignment")
        if hasattr(spectrum, name)
    }
    assert len(logged) == 15
    for key in (*logged, "turn2/gradient_ratio", "candidate/effective_classes", "lr/head"):
        assert meaning_of(key).endswith("."), key
    assert meaning_of("watch/alpha_req").startswith("alpha-ReQ") and "higher: few directions" in meaning_of(
        "watch/alpha_req"
    )
    # What is held out is no training, and its loss not what the training minimises.
    for key in ("accuracy", "loss", "raw_accuracy", "raw_loss"):
        assert "held-out" in (said := meaning_of(f"held_out/{key}")) or "held out" in said
        assert not said.startswith("What the training minimises") and said.endswith("better.")
    assert meaning_of("what_only_its_method_knows") == "" == metric_meaning("test/knn/of_an_earlier_version")


def test_a_metric_says_its_better_direction_and_stands_once() -> None:
    assert metric_meaning("target/knn/accuracy") == "accuracy: right images of all images; higher is better."
    assert metric_meaning("target/knn/nll").endswith("; lower is better.") == meaning_of("eval/a/linear/nll").endswith(
        "lower is better."
    )
    found = glossary(["a/knn/accuracy", "b/linear/accuracy", "a/knn/recall@5", "a/knn/unknown_name"])
    assert [name for name, _ in found] == ["accuracy", "recall@5"]
