"""What the comparison of methods calls learned: one protocol a family, an interval above 0, and fine-tuning that is not worse."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def methods() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("methods")


def numbers(**values: list[float]) -> dict[str, Any]:
    """By protocol, the accuracies of seeds 0, 1, ..."""
    keys = {name.replace("_", "-"): found for name, found in values.items()}
    return {
        name: {
            "label": name, "metric": "test/x/accuracy", "seeds": list(range(len(found))), "values": found,
            "mean": sum(found) / len(found), "n": len(found),
        }
        for name, found in keys.items()
    }  # fmt: skip


def rows(methods: ModuleType, stage: str, values: dict[str, list[float]], seeds: int = 3) -> list[Any]:
    start = {
        "kNN": [0.2, 0.21, 0.22],
        "linear": [0.3, 0.31, 0.32],
        "attentive": [0.4, 0.41, 0.42],
        "fine_tuned": [0.8, 0.81, 0.82],
    }
    made = {name: [v[:seeds] for v in [start[name], values.get(name, start[name])]] for name in start}
    return [
        methods.Row("raw pixels", "pixels", "pixels", numbers(kNN=[0.5, 0.5, 0.5][:seeds], linear=[0.6, 0.6, 0.6][:seeds])),
        methods.Row("HOG", "hog", "hog", numbers(kNN=[0.9, 0.9, 0.9][:seeds], linear=[0.7, 0.7, 0.7][:seeds])),
        methods.Row("random", "random", "net", numbers(**{name: one for name, (one, _) in made.items()})),
        methods.Row("Method", stage, "net", numbers(**{name: two for name, (_, two) in made.items()}), 100, 1.0, 0),
    ]  # fmt: skip


BETTER = {"linear": [0.65, 0.66, 0.67], "attentive": [0.65, 0.66, 0.67]}


@pytest.mark.parametrize(
    ("stage", "values", "protocol", "learned"),
    [
        ("simclr", {"linear": BETTER["linear"]}, "linear", True),
        # A gain by another protocol than the family's does not count.
        ("simclr", {"attentive": BETTER["attentive"], "kNN": [0.9, 0.91, 0.92]}, "linear", False),
        ("mae", {"attentive": BETTER["attentive"]}, "attentive", True),
        ("mae", {"linear": BETTER["linear"], "fine_tuned": [0.9, 0.91, 0.92]}, "attentive", False),
        # A gain that may be chance.
        ("simclr", {"linear": [0.29, 0.33, 0.35]}, "linear", False),
        # Fine-tuning may lose a little, with its whole interval, but not more.
        ("simclr", {"linear": BETTER["linear"], "fine_tuned": [0.79, 0.80, 0.81]}, "linear", True),
        ("simclr", {"linear": BETTER["linear"], "fine_tuned": [0.77, 0.78, 0.79]}, "linear", False),
        ("simclr", {"linear": BETTER["linear"], "fine_tuned": [0.85, 0.79, 0.82]}, "linear", False),
    ],
)  # fmt: skip
def test_the_rule(
    methods: ModuleType, stage: str, values: dict[str, list[float]], protocol: str, learned: bool
) -> None:
    every = rows(methods, stage, values)
    found = methods.judge(every[-1], every)
    assert (found.protocol, found.learned) == (protocol, learned)


def test_handcrafted_features_count_by_their_better_protocol(methods: ModuleType) -> None:
    every = rows(methods, "simclr", {"linear": BETTER["linear"]})
    above = methods.judge(every[-1], every).above
    assert above["pixels"]["mean"] == pytest.approx(0.06) and above["hog"]["mean"] == pytest.approx(-0.24)


def test_the_sentence_counts(methods: ModuleType) -> None:
    every = rows(methods, "simclr", {"linear": BETTER["linear"]})
    page, said = methods.text(
        every, {"versions": {"rootstock": "1", "faiss-cpu": "1"}}, "rootstock run x", "configs/x.yaml", "Title"
    )
    assert said == "1 of 1 methods have learned; 1 of 1 are above raw pixels; 0 of 1 are above HOG. No log warns."
    assert "| Method | linear | +35.0 [+35.0, +35.0] | +0.0 [+0.0, +0.0] | +6.0" in page and page.rstrip().endswith(
        said
    )
    one = rows(methods, "simclr", {}, seeds=1)
    assert "one seed" in methods.text(one, {"versions": {"rootstock": "1", "faiss-cpu": "1"}}, "x", "y", "z")[0].lower()
