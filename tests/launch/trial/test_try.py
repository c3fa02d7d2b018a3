"""`rootstock try`: roles of sets, a plan that keeps its budget whatever a step costs, and the whole story on drawn pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw
from torch import Tensor

from rootstock.core.errors import UserError
from rootstock.core.images.images import Images
from rootstock.core.images.open import open_images
from rootstock.core.run.directory import Interrupted
from rootstock.launch.pipeline.plan import check_pipeline
from rootstock.launch.settle import INPUT_SIDES
from rootstock.launch.trial import run as trial
from rootstock.launch.trial.pictures import GivenSet, read_roles
from rootstock.launch.trial.plan import FEWEST_EPOCHS, FEWEST_STEPS, MOST_EPOCHS, RunCosts, plan_story, plan_words
from rootstock.launch.trial.probing import FEWEST_TIMED, TIMED_PICTURES, probe_costs, probed_parts
from rootstock.launch.verbs import resolve

COUNT = 66


def probe(config: Mapping[str, Any]) -> float:
    return 2.0


def draw(folder: Path, count: int, side: int, background: str, *, classes: bool, seed: int) -> str:
    """Discs and crosses, in class folders or side by side."""
    random = np.random.default_rng(seed)
    for i in range(count):
        picture = Image.new("RGB", (side + 4, side), background)
        pen, colour = ImageDraw.Draw(picture), tuple(int(c) for c in random.integers(0, 256, 3))
        x, y, r = side // 2 + int(random.integers(-3, 4)), side // 2, int(side * random.uniform(0.2, 0.4))
        if i % 2:
            pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        else:
            pen.line((x - r, y - r, x + r, y + r), fill=colour, width=4)
            pen.line((x - r, y + r, x + r, y - r), fill=colour, width=4)
        place = folder / ("disc" if i % 2 else "cross") if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        picture.save(place / f"{i:03}.png")
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("pictures")
    return {
        "u": draw(root / "u", COUNT, 30, "grey", classes=False, seed=0),
        "l": draw(root / "l", COUNT, 30, "white", classes=True, seed=1),
        "t": draw(root / "t", COUNT, 30, "black", classes=True, seed=2),
        "big": draw(root / "big", COUNT, 130, "white", classes=True, seed=3),
        "few": draw(root / "few", 20, 30, "white", classes=True, seed=4),
    }


def test_roles_are_by_order_and_labels(folders: dict[str, str]) -> None:
    def roles(*names: str) -> list[str | None]:
        return [
            one and Path(one.uri.removeprefix("folder:")).name for one in read_roles([folders[name] for name in names])
        ]

    assert roles("u") == ["u", None, None]
    assert roles("l") == [None, "l", None]
    assert roles("u", "l") == ["u", "l", None]
    assert roles("l", "t") == [None, "l", "t"]
    assert roles("l", "u") == [None, "l", "u"]
    assert roles("u", "l", "t") == ["u", "l", "t"]
    for names, sentence in (
        (("u", "u"), "has no labels, and nor has the set before it"),
        (("l", "t", "t"), "is a third"),
        (("u", "l", "t", "t"), "takes 1 to 3 sets, got 4"),
        (("few",), "20 labelled pictures are too few"),
        (("l", "few"), "20 pictures of another domain are too few"),
    ):
        with pytest.raises(UserError, match=sentence):
            read_roles([folders[name] for name in names])
    with pytest.raises(UserError, match="no_such"):
        read_roles(["folder:no_such"])


@pytest.mark.parametrize("names", [("u",), ("l", "t"), ("u", "l", "t")])
@pytest.mark.parametrize(("step", "minutes"), [(0.001, 2), (0.05, 10), (0.5, 2), (0.5, 60)])
def test_the_plan_keeps_the_budget(
    names: tuple[str, ...], step: float, minutes: float, folders: dict[str, str]
) -> None:
    asked: list[tuple[str, int]] = []

    def measure(verb: str, config: Mapping[str, Any]) -> RunCosts:
        asked.append((verb, config["data"]["size"]))
        return RunCosts(step * (config["data"]["size"] / 32) ** 2, 2.0)

    roles = read_roles([folders[name] for name in names])
    plan = plan_story(roles, minutes, "out", resolve, measure, probe)
    assert plan.seconds <= 60 * minutes * 0.9
    trained = plan.steps["pretrain"]
    uris = plan.pipeline["stages"]["pretrained"]["set"]["data.train"]
    count = sum(len(open_images(uri)) for uri in uris)  # without the fifth of each labelled set, which tests
    assert count == COUNT * len(names) - 13 * len(set(names) - {"u"})
    assert plan.epochs == pytest.approx(trained * plan.batch["pretrain"] / count)
    assert FEWEST_STEPS <= trained <= MOST_EPOCHS * count // plan.batch["pretrain"]
    assert ("adapt" in plan.steps) == ("t" in names)
    # What is said is what will be done.
    lines = plan_words(plan, roles, minutes, "2 CPU cores")
    assert len(lines) == 4 + (plan.longer is not None) and f"{plan.network} at {plan.size} px" in lines[1]
    assert f"in {trained} steps" in lines[2] and ("fifth" in lines[2]) == (names != ("u",))
    assert {verb for verb, _ in asked} == ({"pretrain", "adapt"} if "t" in names else {"pretrain"})
    assert len([verb for verb, _ in asked if verb == "pretrain"]) <= 3
    # A pretraining that cannot be judged is said to be one, and so are the minutes with which it can.
    assert (plan.longer is not None) == (trained * plan.batch["pretrain"] < FEWEST_EPOCHS * count)
    if plan.longer is not None:
        assert (
            lines[4].startswith("WARNING: these trainings are too short") and f"--minutes {plan.longer:g}" in lines[4]
        )
        again = plan_story(roles, plan.longer, "out", resolve, measure, probe)
        assert again.longer is None and plan.longer > minutes


def test_pictures_become_smaller_until_each_is_seen_often_enough(folders: dict[str, str]) -> None:
    def plan(step: float) -> Any:
        measure = lambda verb, config: RunCosts(step * (config["data"]["size"] / 32) ** 2, 1.0)  # noqa: E731
        return plan_story(read_roles([folders["big"]]), 2, "out", resolve, measure, probe)

    sizes = [plan(step).size for step in (0.001, 0.05, 0.2, 5.0)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 96 and sizes[-1] == INPUT_SIDES[0]
    enough = plan(0.001)
    assert enough.steps["pretrain"] * enough.batch["pretrain"] >= FEWEST_EPOCHS * (COUNT - 13)


NAMES = ("a: b", "#1", "what?", "100%23", 'say "hi"', "back\\slash", "it's, [x] {y}: &z", "two\nlines", "\x7f😀")


@pytest.mark.parametrize("name", NAMES)
def test_folders_of_any_name_are_tried(name: str, folders: dict[str, str], tmp_path: Path) -> None:
    given = [tmp_path / f"{kind}{name}" for kind in "ult"]
    for place in given:
        place.symlink_to(folders[place.name[0]])
    roles = read_roles([str(place) for place in given])
    opened: list[set[str]] = []

    def measure(verb: str, config: Mapping[str, Any]) -> RunCosts:
        data = config["data"]
        uris = data["train"] if verb == "pretrain" else [data["source"], data["target"], data["test"]]
        opened.extend({str(folder) for folder in open_images(uri).folders} for uri in uris)
        return RunCosts(0.01, 1.0)

    plan = plan_story(roles, 5, str(tmp_path / "out"), resolve, measure, probe)
    assert set.union(*opened) == {str(place) for place in given}
    file = trial._write(
        tmp_path / "out", plan, {"uris": [one.uri for one in roles.all]}, plan_words(plan, roles, 5, "cpu")
    )
    jobs = {job.name: job.resolved for job in check_pipeline(file, [], resolve)[1]}
    assert jobs["pretrained"]["data"]["train"] == plan.pipeline["stages"]["pretrained"]["set"]["data.train"]
    for uri, folder in ((jobs["probe"]["data"]["test"], given[1]), (jobs["adapted"]["data"]["target"], given[2])):
        assert open_images(uri).folders == (str(folder),)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("of {seed}", r"\{seed\} in its path"),
        ("blank ", "a blank at its end"),
        ("\udcff", "bytes in its path that are no UTF-8"),
    ],
)
def test_folders_that_no_uri_can_name_are_refused(
    name: str, what: str, folders: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / name).symlink_to(folders["l"])
    with pytest.raises(UserError, match=f"a URI cannot name a folder with {what}; rename it, or give a link to it"):
        read_roles([str(tmp_path / name)])


@pytest.mark.slow
def test_the_whole_story_on_drawn_pictures(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trial, "measured", lambda verb, config: RunCosts(60.0, 1.0))  # as few steps as there may be
    monkeypatch.setattr(trial, "probed", probe)
    uris, to = [folders[name] for name in ("u", "l", "t")], str(tmp_path / "try")
    result = trial.try_pictures(uris, 2, to)
    said = capsys.readouterr().err
    assert "66 pictures of 30 px, no labels, in folder:" in said and "min that it may take" in said
    labels = [row["label"] for row in result["rows"]]
    assert {"random network, kNN", "pretrained, linear probe", "HOG, kNN", "control", "MCC"} <= set(labels)
    primary = {one["label"]: one for one in result["contrasts"]["primary"]}
    assert set(primary) == {
        "pretraining over a random network, kNN", "pretraining over a random network, linear probe", "MCC over its control",
    }  # fmt: skip
    for one in primary.values():  # one seed: over test images
        assert one["resampled"] == "images" and f"{one['label']}: " in said
    page = (tmp_path / "try" / "report.html").read_text()
    assert "A first try" in page and "pretraining over a random network" in page
    # It is a pipeline like any other, and the same command goes on with it.
    pipeline = yaml.safe_load((tmp_path / "try" / "try.yaml").read_text())
    assert pipeline["stages"]["pretrained"]["set"]["optim.duration"] == FEWEST_STEPS
    monkeypatch.setattr(trial, "measured", None)
    monkeypatch.setattr(trial, "probed", None)
    assert trial.try_pictures(uris, 2, to) == result
    with pytest.raises(UserError, match=r"--to: .* has a try with other minutes; choose another folder"):
        trial.try_pictures(uris, 3, to)
    # No picture that is tested on was pretrained on.
    assert all(set(row["seen_unlabelled"].values()) <= {0} for row in result["rows"] if row.get("seen_unlabelled"))


def test_costs_are_those_of_real_steps(folders: dict[str, str], tmp_path: Path) -> None:
    words = [
        f"data.train=folder:{folders['u']}",
        "data.size=32",
        "optim.batch_size=16",
        "run.dir=unused",
        "run.workers=0",
        "run.device=cpu",
    ]
    costs = trial.measured("pretrain", resolve("pretrain", "small", words))
    assert 0.0 < costs.step < 10.0 and costs.fixed > 0.0 and not Path("unused").exists()


def test_probes_are_timed_and_leave_nothing(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled = read_roles([folders["l"]]).labelled
    assert labelled is not None
    seen: list[tuple[str, int]] = []

    def timed(config: Mapping[str, Any]) -> float:
        data, name = config["data"], config["backbone"]["name"]
        count = sum(len(open_images(data[key])) for key in ("train", "test"))
        seen.append((name, count))
        assert config["run"]["feature_cache"] == "0"  # features of an earlier try are no costs
        return {"pixels": 0.04, "hog": 0.02, "smallconv": 0.01}[name] * count + 1.5

    costs = probe_costs(labelled, 32, "smallconv", resolve, timed)
    # a fifth of 66 is 13, so that four fifths of 32 and a fifth of it are there
    assert seen == [("smallconv", COUNT), ("pixels", COUNT), ("hog", COUNT), ("smallconv", 32)]
    assert costs.fixed == pytest.approx(6.0) and costs.picture == pytest.approx(0.08)
    assert costs.of(1000, 64) == pytest.approx(6 + 4 * 80) and costs.fitting(326, 64) in (999, 1000)
    assert costs.spent == pytest.approx(0.07 * COUNT + 0.32 + 6)
    words = [
        f"data.train={labelled.uri}#[:80%]#[:26]",
        f"data.test={labelled.uri}#[80%:]#[:6]",
        "data.size=32",
        "backbone.name=pixels",
    ]
    assert 0.0 < trial.probed(resolve("probe", "small", [*words, "run.dir=unused"])) < 60.0
    assert not Path("unused").exists()


class Many:
    """A set of many pictures, of which some are there."""

    def __init__(self, images: Images, count: int) -> None:
        self.images, self.count = images, count

    def __len__(self) -> int:
        return self.count

    def read(self, i: int) -> Tensor:
        return self.images.read(i % len(self.images))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.images, name)


@pytest.mark.parametrize(("count", "each"), [(COUNT, 0.01), (50_000, 0.01), (50_000, 0.0001)])
def test_of_many_labelled_pictures_as_many_are_probed_as_fit(count: int, each: float, folders: dict[str, str]) -> None:
    roles = read_roles([folders["l"]])
    assert roles.labelled is not None
    many: Any = Many(roles.labelled.images, count)
    roles = roles._replace(labelled=roles.labelled._replace(images=many))

    def timed(config: Mapping[str, Any]) -> float:
        few = f"#[:{FEWEST_TIMED - FEWEST_TIMED // 5}]" in config["data"]["train"]
        return 1.0 + each * (FEWEST_TIMED if few else min(count, TIMED_PICTURES))

    plan = plan_story(roles, 10, "out", resolve, lambda verb, config: RunCosts(0.1, 5.0), timed)
    assert plan.seconds <= 600 * 0.9 and plan.steps["pretrain"] > 100
    words = plan_words(plan, roles, 10, "cpu")[2]
    stages = {name: plan.pipeline["stages"][name]["set"] for name in ("pixels", "hog", "random", "probe")}
    uri = roles.labelled.uri if roles.labelled is not None else ""
    if count * each * 4 < 100:
        assert plan.probed == count and "for time" not in words
        assert all(one["data.train"].endswith("#[:80%]") for one in stages.values())
    else:
        assert 1000 < plan.probed < 5000 and f"on {plan.probed:,} of the 50,000 labelled pictures, for time" in words
        kept, tested = plan.probed - plan.probed // 5, plan.probed // 5
        assert {one["data.train"] for one in stages.values()} == {f"{uri}#[:80%]#[:{kept}]"}
        assert {one["data.test"] for one in stages.values()} == {f"{uri}#[80%:]#[:{tested}]"}


def test_probes_that_leave_no_time_are_refused(folders: dict[str, str]) -> None:
    roles = read_roles([folders["l"]])
    with pytest.raises(UserError, match=r"--minutes: probing 6\d labelled pictures of .* give \d+ or more"):
        plan_story(roles, 2, "out", resolve, lambda verb, config: RunCosts(0.1, 5.0), lambda config: 15.0)


def test_parts_of_groups_are_as_large_as_their_groups_need(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pixels, labels = random.integers(0, 256, (400, 8, 8, 3), dtype=np.uint8), np.arange(400) % 2
    np.savez(tmp_path / "set.npz", x=pixels, y=labels, patient=np.arange(400) // 40)
    uri = f"npz:{tmp_path}/set.npz?layout=NHWC&group=patient"
    parts = probed_parts(GivenSet(uri, open_images(uri), True), 32)
    assert parts.pictures > 32 and all(len(open_images(part)) for part in parts[:2])


@pytest.mark.parametrize("error", [Interrupted("saved at step 8 of 12 in runs/x"), KeyboardInterrupt()])
def test_who_stops_it_while_it_measures_is_told_that_nothing_was_begun(
    error: BaseException, folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(trial, "execute", stopped)
    with pytest.raises(Interrupted, match=r"^interrupted while the costs were measured: nothing was begun"):
        trial.try_pictures([folders["l"]], 2, str(tmp_path / "try"))
    assert not (tmp_path / "try").exists()


def test_pictures_of_several_classes_are_refused_before_anything_is_trained(
    folders: dict[str, str], tmp_path: Path
) -> None:
    files = sorted(Path(folders["l"]).rglob("*.png"))
    lines = [f"{file},{'cat' if i % 2 else 'cat;dog'}" for i, file in enumerate(files)]
    (tmp_path / "several.csv").write_text("\n".join(["path,label", *lines]))
    uri = f"csv:{tmp_path}/several.csv?several=semicolon"
    for given in ([uri], [folders["u"], uri], [folders["l"], uri]):
        with pytest.raises(UserError, match=r"several classes .* rootstock probe small 'data.train=csv:.*semicolon'"):
            read_roles(given)


def test_no_time_is_refused(folders: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--minutes: expected 1 or more, got 0.5"):
        trial.try_pictures([folders["l"]], 0.5, str(tmp_path / "try"))
