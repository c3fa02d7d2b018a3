"""What the comparison of methods calls learned: one protocol a family, an interval above 0, and fine-tuning that is not worse."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from rootstock.ssl.registry import PRETRAIN_METHODS


@pytest.fixture(scope="module")
def methods(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("methods")


def numbers(**values: list[float]) -> dict[str, Any]:
    """By protocol, the accuracies of seeds 0, 1, ..."""
    keys = {name.replace("_", "-"): found for name, found in values.items()}
    return {
        name: {
            "label": name, "metric": f"test/{name}/accuracy", "seeds": list(range(len(found))), "values": found,
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
        methods.Row("Method", f"{stage}_2", "net", numbers(**{name: two for name, (_, two) in made.items()}), stage, 100, 1.0, 0),
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


def test_every_method_has_one_family(methods: ModuleType) -> None:
    named = [method for family in methods.FAMILIES.values() for method in family]
    assert sorted(named) == sorted(name for name, kind in PRETRAIN_METHODS.items() if not kind.takes_teacher)


def changed(row: Any, protocol: str, **more: Any) -> Any:
    return row._replace(numbers={**row.numbers, protocol: {**row.numbers[protocol], **more}})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: [*r[:3], r[3]._replace(method="mae2")], "name the family of mae2 in FAMILIES"),
        # Without a number that the rule asks for, no method passes.
        (lambda r: [*r[:3], without(r[3], "linear")], "has no number for linear"),
        (lambda r: [*r[:3], without(r[3], "fine-tuned")], "has no number for fine-tuned"),
        (lambda r: [*r[:2], without(r[2], "fine-tuned"), r[3]], "or its random network has no number for fine-tuned"),
        (lambda r: [*r[:2], r[3]], "has 0 rows of a random net"),
        (lambda r: [*r[:3], r[2], r[3]], "has 2 rows of a random net"),
        # Numbers of another measurement, or of other seeds.
        (lambda r: [*r[:3], changed(r[3], "linear", metric="test/knn/accuracy")], "cannot be compared|column linear shows"),
        (lambda r: [*r[:2], *(changed(one, "linear", metric="test/linear/ece") for one in r[2:])], "column linear shows test/linear/ece"),
        (lambda r: [*r[:2], changed(r[2], "linear", metric="other/linear/accuracy"), r[3]], "cannot be compared"),
        (lambda r: [*r[:2], changed(r[2], "linear", seeds=[0, 1, 5]), r[3]], "of seeds"),
        (lambda r: [changed(changed(r[0], "linear", seeds=[7, 8, 9]), "kNN", seeds=[7, 8, 9]), *r[1:]], "of seeds"),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_said(methods: ModuleType, change: Any, said: str) -> None:
    every = change(rows(methods, "simclr", {"linear": BETTER["linear"]}))
    with pytest.raises(SystemExit, match=said):
        methods.judge(every[-1], every)


def without(row: Any, protocol: str) -> Any:
    return row._replace(numbers={name: one for name, one in row.numbers.items() if name != protocol})


def test_a_pipeline_that_does_not_fine_tune_judges_by_the_probe(methods: ModuleType) -> None:
    every = [without(row, "fine-tuned") if "fine-tuned" in row.numbers else row for row in rows(methods, "mae", BETTER)]
    assert methods.judge(every[-1], every).learned is True


def test_numbers_that_are_none_are_refused(methods: ModuleType) -> None:
    every = rows(methods, "simclr", {"linear": [0.65, float("nan"), 0.67]})
    with pytest.raises(ValueError, match="not finite"):
        methods.judge(every[-1], every)
