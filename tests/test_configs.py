"""Every config that ships runs for two steps with its model as written, says what it is, and the demo's pipeline is whole."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rootstock.adapt.registry import ADAPT_METHODS
from rootstock.core.config.resolve import load
from rootstock.core.errors import UserError
from rootstock.core.evaluate.definitions import range_of
from rootstock.core.images.open import open_images
from rootstock.core.model.backbone import create
from rootstock.core.train.loop import Loop
from rootstock.docs.site.generated import all_keys
from rootstock.launch.attribute.plan import check_attribution
from rootstock.launch.dry import build_untrained
from rootstock.launch.early import resolve_early
from rootstock.launch.pipeline.plan import StageJob, check_pipeline, plan_pipeline
from rootstock.launch.pipeline.preflight import check_buildable
from rootstock.launch.sweep.plan import plan_sweep
from rootstock.launch.sweep.sections import sweep
from rootstock.launch.verbs import resolve

CONFIGS = Path(__file__).parents[1] / "configs"
SWEEPS = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.glob("sweep/*.yaml"))
STAGES = sorted({path.relative_to(CONFIGS).as_posix() for path in CONFIGS.glob("*/*.yaml")} - set(SWEEPS))
ATTRIBUTIONS = sorted(path.name for path in CONFIGS.glob("attribute_*.yaml"))
PIPELINES = sorted({path.name for path in CONFIGS.glob("*.yaml")} - set(ATTRIBUTIONS))
# Pixels at which a config is tried; masks need more than the two patches across that 32 px are to a ViT-B/16.
SIZES = {"pretrain/simmim.yaml": 64, "pretrain/ijepa.yaml": 96}
Rootstock = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, draw: Callable[[Path, Iterable[str]], Path]) -> dict[str, str]:
    """A URI for each key of `data` that a config leaves to the user."""
    folder = tmp_path_factory.mktemp("pictures")
    classes = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(10)]
    photos, sketches = draw(folder / "photos", classes), draw(folder / "sketches", classes)
    return dict.fromkeys(("train", "test", "source"), f"folder:{photos}") | {"target": f"folder:{sketches}"}


def cut(written: Mapping[str, Any]) -> list[str]:
    """Overrides that leave the first hundred images of source and target."""
    return [f"data.{key}={written['data'][key]}#[:100]" for key in ("source", "target")]


def leaves_data_to_the_user(config: str) -> bool:
    return re.search(r"(folder|tar|csv):data/", (CONFIGS / config).read_text()) is not None


# Published recipes have networks of their papers' size; tests/ssl/ tries their methods on small ones. So `make test` resolves these
# configs and `make test-all` trains them.
@pytest.mark.parametrize(
    "config",
    [pytest.param(config, marks=[pytest.mark.slow] if leaves_data_to_the_user(config) else []) for config in STAGES],
)
def test_every_config_runs_for_two_steps(
    config: str, pictures: dict[str, str], tmp_path: Path, rootstock: Rootstock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only URIs, sizes of sets, data.size, optim.batch_size, optim.duration and what is saved are overridden; never the model.

    No checkpoint is written: they are tested elsewhere, and some are of two gigabytes, hashed and synced.
    """
    monkeypatch.setattr(Loop, "save", lambda loop, done: None)
    verb = config.partition("/")[0]
    written = resolve(verb, config)
    own = [
        key for key, uri in written["data"].items() if str(uri).startswith(("folder:data/", "tar:data/", "csv:data/"))
    ]
    overrides = [f"data.{key}={pictures[key]}" for key in own] + ([f"data.size={SIZES.get(config, 32)}"] if own else [])
    overrides += ["optim.batch_size=4", "optim.duration=2"] if "optim" in written else []
    given = str(written["backbone"]["weights"])  # downloaded, the user's, or of another command
    overrides += ["backbone.weights=none"] if given == "timm" or given.startswith("data/") else []
    if "teacher" in written.get("method", {}) and written["method"]["teacher"] is not None and verb == "pretrain":
        create(32, name="smallconv").export(tmp_path / "teacher")
        overrides += [f"method.teacher={tmp_path / 'teacher'}"]
    if given.startswith("runs/"):
        # The classifier that a method keeps is of a run that the header names; a method at test time takes another config's.
        online, small = ADAPT_METHODS[written["method"]["name"]].online, ["optim.batch_size=4", "optim.duration=2"]
        before, data = ("adapt/digits_dann.yaml", []) if online else (config, ["backbone.weights=none"])
        data += cut(resolve("adapt", before))
        small += [
            "evaluate=null",
            "data.test=null",
            "label_shift.resamples=0",
            f"run.dir={tmp_path / 'trained'}",
            *data,
        ]
        done = rootstock("adapt", before, "method=source_only", *small)
        assert done.returncode == 0, done.stderr
        overrides += [f"backbone.weights={tmp_path / 'trained'}"]
        overrides += ["data.target=sklearn:digits?size=32#[:8]", "optim.duration=1ep"] if online else []  # two steps
    if "digits-m" in str(written["data"].get("train")) and verb != "pretrain":  # the probes' time is their images
        overrides += ["data.train=sklearn:digits-m#[:60]", "data.test=sklearn:digits-m#[60:90]"]
    elif isinstance(tests := written["data"].get("test"), dict) and not own:
        overrides += [f"data.test.{name}=sklearn:digits?size=32#[60:90]" for name in tests]
    if verb == "adapt":  # intervals of priors take seconds, and so do outputs on whole sets
        overrides = [*([] if own else cut(written)), *overrides, "label_shift.resamples=0"]
    if verb == "adapt" and written["evaluate"]:
        overrides += ["evaluate.images=50"]
    if verb == "pretrain" and written["evaluate"].get("watch") is not None:
        overrides += ["evaluate.watch.images=16"]
    if verb == "pretrain" and (bank := written["evaluate"].get("bank")) is not None:  # and that of kNN
        assert all(len(open_images(uri)) > 90 for uri in (bank, *written["evaluate"]["test"].values()))
        few = "sklearn:digits?size=32#"
        overrides += [f"evaluate.bank={few}[:60]", f"evaluate.test={{source: '{few}[60:90]'}}"]
    run = tmp_path / "run"
    done = rootstock(verb, config, *overrides, f"run.dir={run}")
    assert done.returncode == 0, done.stderr
    result = json.loads((run / "result.json").read_text())
    assert result["task"] == verb
    if "optim" in written:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert result["steps"] == 2 == rows[-1]["step"]
        assert all(torch.tensor(row["loss"]).isfinite() for row in rows if "loss" in row)
        assert (run / "backbone" / "backbone.safetensors").is_file()
    if verb != "pretrain":
        assert result["metrics"]
        for name, value in result["metrics"].items():
            low, high = range_of(name)
            assert low <= value <= high, name
    shutil.rmtree(run)  # a ViT-B with its moments is more than a gigabyte


@pytest.mark.parametrize("config", STAGES)
def test_every_config_is_right(config: str) -> None:
    verb = config.partition("/")[0]
    assert resolve(verb, config)["data"]


def header(config: str) -> str:
    lines = (CONFIGS / config).read_text().splitlines()
    return "\n".join(lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])


@pytest.mark.parametrize("config", STAGES + SWEEPS)
def test_every_header_says_what_the_experiment_is(config: str) -> None:
    """The paper, the command that runs this very file, the time with its machine, the number to expect."""
    verb, said = config.partition("/")[0], header(config)
    assert re.search(rf"^# Command +.*rootstock {verb} configs/{re.escape(config)}\b", said, re.MULTILINE), said
    for heading in ("Time", "Expected"):
        assert re.search(rf"^# {heading} +\S", said, re.MULTILINE), f"{config}: no {heading}"
    if verb in ("pretrain", "adapt", "sweep"):
        paper = r"\barXiv:\d{4}\.\d{4,5}\b|\bdoi:10\.\d{4,}/\S+|\bhttps://\S+"
        assert re.search(paper, said), f"{config}: the header names no paper by its arXiv id, doi: or https:// address"


# A key and its value as the command line takes them; not those inside of a URI, where another letter stands before.
KEY = re.compile(r"(?:^|[\s(`'\"])([a-z_]\w*(?:\.[\w-]+)*)=(?=\S)", re.MULTILINE)


def unknown(config: str, key: str) -> str:
    """What is said against the key where this config has none of its name, and no method of its verb, else ""."""
    verb, given = config.partition("/")[0], [f"{key}=null"]
    if key in {spelling for one in all_keys() if one.verb == verb for spelling in one.spellings}:
        return ""
    try:
        if config in STAGES:
            resolve_early(verb, config, given)
        elif config in SWEEPS:
            load(config, sweep, given)
        elif config in ATTRIBUTIONS:
            check_attribution(config, given, resolve_early)
        else:
            check_pipeline(config, given, resolve_early)
    except UserError as error:  # null may be no value of it
        return str(error) if "unknown key" in str(error) else ""
    return ""


@pytest.mark.parametrize("config", STAGES + SWEEPS + PIPELINES + ATTRIBUTIONS)
def test_every_key_of_a_header_is_one_of_its_config(config: str) -> None:
    for key in dict.fromkeys(KEY.findall(header(config))):
        assert not unknown(config, key), f"{config}: {key}: {unknown(config, key)}"


def test_a_key_that_a_config_has_not_is_found() -> None:
    said = "# 'optim.lr=1e-3 layer_decay=0.75 duration=50ep, backbone.args.drop_path_rate=0.3 (seeds=5) sklearn:digits?size=32#[:9,seed=1]"
    keys = KEY.findall(said)
    assert keys == ["optim.lr", "layer_decay", "duration", "backbone.args.drop_path_rate", "seeds"]
    wrong = {"layer_decay", "duration", "seeds"}
    assert {key for key in keys if unknown("finetune/mae_imagenet_b.yaml", key)} == wrong
    assert {key for key in keys if not unknown("demo.yaml", key)} == {"seeds"}
    assert [unknown("sweep/digits_m.yaml", key) != "" for key in ("trials", "trails")] == [False, True]


@pytest.mark.parametrize("config", PIPELINES)
def test_every_pipeline_is_checked_as_a_whole(config: str, tmp_path: Path) -> None:
    sections, jobs = plan_pipeline(config, ["seeds=5", f"run.dir={tmp_path}"], resolve)
    assert len(jobs) == 5 * len(sections["stages"])
    assert {row["stage"] for row in sections["report"]["rows"]} <= set(sections["stages"])
    assert re.search(r"^# Command +rootstock ", header(config), re.MULTILINE)
    assert not any(tmp_path.iterdir())


def on_drawn_pictures(job: StageJob, pictures: dict[str, str]) -> StageJob:
    """The stage with its network and method as written, and drawn pictures in place of its data, no weights in place of the user's."""
    data = {
        key: pictures.get(key, pictures["train"]) if key in ("train", "test", "source", "target") and value else value
        for key, value in job.resolved["data"].items()
    }
    changed = {**job.resolved, "data": data}
    weights = str((job.resolved.get("backbone") or {}).get("weights"))
    if weights == "timm" or weights.startswith(("data/", "runs/")):
        network = job.resolved["backbone"]["name"] or "resnet18"
        changed["backbone"] = {**job.resolved["backbone"], "name": network, "weights": "none"}
    if job.verb == "pretrain":
        changed["evaluate"] = dict.fromkeys(job.resolved["evaluate"] or {})
    if "optim" in changed:
        changed["optim"] = {**job.resolved["optim"], "batch_size": 4}
    return replace(job, resolved=changed)


@pytest.mark.parametrize("config", PIPELINES)
def test_every_pipeline_can_be_built(config: str, pictures: dict[str, str], tmp_path: Path) -> None:
    """As `rootstock run` builds it before the first stage: a stage that begins with another stage's network takes it, for one."""
    _, jobs = check_pipeline(config, ["seeds=[0]", f"run.dir={tmp_path / 'run'}"], resolve)
    unlike: dict[str, StageJob] = {}  # one stage of each kind is enough, whatever its numbers
    for job in jobs:
        kind = [job.verb, job.config, *(job.resolved.get(key) for key in ("backbone", "method"))]
        unlike.setdefault(re.sub(r"\d[\d.e-]*", "0", json.dumps(kind)), job)
    taken = {job.name for job in unlike.values()}
    for job in reversed(jobs):  # a stage uses earlier ones
        taken |= set(job.inputs) if job.name in taken else set()
    built: list[str] = []

    def build(verb: str, resolved: dict[str, Any], export: Path | None) -> None:
        build_untrained(verb, resolved, export)
        built.append(verb)

    check_buildable(config, [on_drawn_pictures(job, pictures) for job in jobs if job.name in taken], build)
    assert built == [job.verb for job in jobs if job.name in taken]  # none was passed over


def test_the_table_of_test_time_has_the_published_constants_of_cifar10_c(tmp_path: Path) -> None:
    """The defaults of EATA are ImageNet's: a `fisher` of 2000 there is 1 on CIFAR-10 in the benchmark of ROID's authors."""
    _, jobs = plan_pipeline("test_time_cifar10", ["seeds=1", f"run.dir={tmp_path}"], resolve)
    every = [job.resolved for job in jobs if job.verb == "adapt"]
    adapted = [config for config in every if config["method"]["name"] != "source_only"]
    assert len(adapted) == 40
    for config in adapted:
        method, optim = config["method"], config["optim"]
        assert (optim["name"], optim["batch_size"], optim["weight_decay"]) == ("adamw", 200, 0.0)
        assert optim["lr"] in ((0.0, 1e-3) if method["name"] == "tent" else (1e-3,))
        if method["name"] == "eata":
            assert (method["fisher"], method["similar"], method["margin"]) == (1.0, 0.4, 0.4)


@pytest.mark.parametrize("config", ATTRIBUTIONS)
def test_every_attribution_is_checked_as_a_whole(config: str, tmp_path: Path) -> None:
    plan, jobs = check_attribution(config, ["seeds=5", f"run.dir={tmp_path}"], resolve)
    assert len(jobs) == 5 * len(plan.pipeline["stages"]) and len(plan.cells) == 2 ** len(plan.factors)
    assert {effect for text in plan.config["primary"] for effect in text.split(" x ")} <= set(plan.factors)
    steps = {job.resolved["optim"]["duration"] for job in jobs if job.name.startswith("simclr")}
    assert steps == {"40ep", 200}  # of 287 x 5 and of fewer images, and as many steps
    for heading in ("Command +rootstock attribute", "Time", "Expected"):
        assert re.search(rf"^# {heading} +\S", header(config), re.MULTILINE), heading
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("config", SWEEPS)
def test_every_sweep_is_checked_as_a_whole(config: str, tmp_path: Path) -> None:
    """With every value that its search names. None is tuned on a test set: that is refused where the sweep does not admit it.

    A sweep that names its own set for the choice takes a part of the training images that no trial is trained on.
    """
    checked = plan_sweep(config, [f"run.dir={tmp_path / 'sweep'}"])
    chosen_on = checked.config["set"].get("data.test")
    assert checked.config["selection"] == (chosen_on and "train-split")
    if chosen_on:
        trained, low = re.fullmatch(r"(.+#train\[):(\d+)%,seed=100,stratify\]", checked.config["set"]["data.train"]), 90
        assert trained and chosen_on == f"{trained[1]}{low}%:,seed=100,stratify]" and int(trained[2]) <= low
    assert not any(tmp_path.iterdir())


def keys(uri: str, seed: int) -> set[int]:
    return set(open_images(uri, seed=seed).keys().tolist())


@pytest.mark.parametrize("seed", [0, 1])
def test_no_digit_of_the_demo_is_on_two_sides(seed: int) -> None:
    """Source and target share no digit, and neither do training and test parts; nor does a stage look beyond them."""
    data = resolve("adapt", "adapt/digits_dann.yaml", [f"seed={seed}"])["data"]
    source, target = keys(data["source"], seed), keys(data["target"], seed)
    tests = {name: keys(uri, seed) for name, uri in data["test"].items()}
    assert tests["target"] == tests["target_other_scale"]
    parts = [source, target, tests["source"], tests["target"]]
    assert sum(map(len, parts)) == len(set().union(*parts))
    for part, share in zip(parts, (0.48, 0.32, 0.12, 0.08), strict=True):
        assert len(part) == pytest.approx(share * 1797, abs=2)
    for verb, config in (("pretrain", "pretrain/digits_simclr.yaml"), ("pretrain", "pretrain/digits_mae.yaml")):
        assert set().union(*(keys(uri, seed) for uri in resolve(verb, config)["data"]["train"])) == source | target
    for verb, config in (("probe", "probe/digits.yaml"), ("finetune", "finetune/digits.yaml")):
        other = resolve(verb, config)["data"]
        assert keys(other["train"], seed) == source and other["test"] == data["test"]


def test_a_small_pipeline_of_the_demos_shape_runs_to_its_report(tmp_path: Path, rootstock: Rootstock) -> None:
    """One stage of each verb, chained as in the demo, on a handful of digits; a second call finds everything finished."""
    demo: dict[str, Any] = yaml.safe_load((CONFIGS / "demo.yaml").read_text())
    kept = ("hog", "source_only_strong", "adabn", "simclr", "simclr_probe", "simclr_finetune", "simclr_cdan")
    source, target = "sklearn:digits?size=32#[:60,seed={seed}]", "sklearn:digits-m#[60:120,seed={seed}]"
    tests = {
        "target": "sklearn:digits-m#[120:150,seed={seed}]",
        "target_other_scale": "sklearn:digits-m#[120:150,seed={seed}]",
        "source": "sklearn:digits?size=32#[150:180,seed={seed}]",
    }
    sets: dict[str, dict[str, Any]] = {
        "probe": {"data.train": source, "data.test": tests},
        "finetune": {"data.train": source, "data.test": tests},
        "adapt": {"data.source": source, "data.target": target, "data.test": tests},
        "pretrain": {"data.train": [source, target], "evaluate.knn": None},
    }
    demo["stages"] = {name: demo["stages"][name] for name in kept}
    for stage in demo["stages"].values():
        quick = {"optim.batch_size": 8, "optim.duration": 2} if stage["verb"] != "probe" else {}
        stage["set"] = {**sets[stage["verb"]], **quick, **stage.get("set", {})}
    report = demo["report"]
    report["rows"] = [row for row in report["rows"] if row["stage"] in kept]
    labels = [row["label"] for row in report["rows"]]
    sides = [{pair["a"], *pair.get("over", [pair.get("b")])} for pair in report["comparisons"]]
    report["comparisons"] = [
        pair for pair, named in zip(report["comparisons"], sides, strict=True) if named <= set(labels)
    ]
    report["columns"] = {"source": "Source test"}
    demo["run"]["dir"] = str(tmp_path / "demo")
    pipeline = tmp_path / "small.yaml"
    pipeline.write_text(yaml.safe_dump(demo, sort_keys=False))

    done = rootstock("run", str(pipeline))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "demo"
    table = json.loads((folder / "result.json").read_text())
    assert [row["label"] for row in table["rows"]] == labels
    assert all(row["n"] == 1 and 0 <= row["mean"] <= 1 for row in table["rows"])
    assert [pair["label"] for pair in table["comparisons"]] == ["AdaBN over source-only"]
    assert "SimCLR -&gt; CDAN+E" in (folder / "report.html").read_text()
    chained = json.loads((folder / "seed-0" / "simclr_cdan" / "result.json").read_text())
    assert chained["seen_unlabelled"] == {"pretrain": 0, "adapt": 0}
    assert chained["selection"] == "tuned-on-target"

    written = (folder / "result.json").read_bytes()
    again = rootstock("run", str(pipeline))
    assert again.returncode == 0
    assert again.stderr.count("finished before") == len(kept)
    assert (folder / "result.json").read_bytes() == written


@pytest.mark.slow
def test_a_small_attribution_runs_to_its_tables(tmp_path: Path, rootstock: Rootstock) -> None:
    """Two factors of the shipped one on a handful of digits; a second call finds everything finished."""
    config: dict[str, Any] = yaml.safe_load((CONFIGS / "attribute_digits.yaml").read_text())
    source, target = "sklearn:digits?size=32#[:60,seed={seed}]", "sklearn:digits-m#[60:120,seed={seed}]"
    quick = {"optim.batch_size": 8, "optim.duration": 2}
    tests = {"target": "sklearn:digits-m#[120:150,seed={seed}]"}
    own = {"data.source": source, "data.target": target, "data.test": tests, "label_shift.resamples": 0}
    config["stages"]["adapt"]["set"] = {**own, **quick}
    config["stages"]["simclr"]["set"] = {"data.train": [source, target], "evaluate.knn": None, **quick}
    # PyYAML takes the keys on and off for booleans, where they have no quotes; the loader of configs does not.
    sides = {True: "on", False: "off"}
    kept = {name: config["factors"][name] for name in ("ssl", "loss")}
    factors = {name: {sides.get(key, key): value for key, value in one.items()} for name, one in kept.items()}
    config |= {"factors": factors, "seeds": 1}
    config["run"]["dir"] = str(tmp_path / "out")
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    done = rootstock("attribute", str(tmp_path / "small.yaml"))
    assert done.returncode == 0, done.stderr
    written = (tmp_path / "out" / "result.json").read_bytes()
    result = json.loads(written)
    assert result["runs"] == 4 and result["metric"] == "target/classifier/accuracy"
    on = {tuple(cell["on"]): cell["mean"] for cell in result["cells"]}
    effects = {one["name"]: one["mean"] for one in result["effects"]}
    gains = [on["ssl",] - on[()], on["ssl", "loss"] - on["loss",]]
    assert effects["ssl"] == pytest.approx(sum(gains) / 2) and effects["ssl x loss"] == pytest.approx(
        (gains[1] - gains[0]) / 2
    )
    assert result["looks"]["target"]["n"] >= 1 and result["contrasts"]["note"] == ""
    assert "looks: " in (tmp_path / "out" / "table.md").read_text()
    again = rootstock("attribute", str(tmp_path / "small.yaml"))
    assert again.returncode == 0 and again.stderr.count("finished before") == 5
    assert (tmp_path / "out" / "result.json").read_bytes() == written


@pytest.mark.parametrize(
    ("name", "crop", "interpolation"),
    [
        ("finetune/mae.yaml", 0.875, "bicubic"),
        ("pretrain/mae.yaml", 0.875, "bicubic"),
        ("pretrain/dino.yaml", 0.875, "bicubic"),
        ("pretrain/ibot.yaml", 0.875, "bicubic"),
        ("pretrain/dinov2.yaml", 0.875, "bicubic"),
        ("pretrain/simmim.yaml", 0.875, "bicubic"),
        ("pretrain/mocov3.yaml", 0.875, "bilinear"),  # main_lincls.py resizes by torchvision's default
    ],
)
def test_transformers_are_evaluated_as_their_papers_do(name: str, crop: float, interpolation: str) -> None:
    """In the authors' code: Resize(256), or 256 / 224 of the size, then CenterCrop."""
    data = resolve(name.partition("/")[0], name)["data"]
    assert (data["crop"], data["resize"], data["interpolation"]) == (crop, None, interpolation)
