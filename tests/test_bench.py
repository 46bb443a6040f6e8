"""The benchmark: its units and their names, presets, resuming, overrides, tables; one small real run."""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from advrbd.attacks import ATTACKS
from advrbd.attacks.base import Attack
from advrbd.baselines import BASELINES, INSTALLED, PAPER_RECIPE
from advrbd.benchmark import case as cases
from advrbd.benchmark import curves, defences, measure, presets, settings, store, tables
from advrbd.benchmark import run as running
from advrbd.benchmark.case import lay_out, open_case
from advrbd.benchmark.datasets import digits_data
from advrbd.benchmark.defences import DEFENCES, Step
from advrbd.benchmark.matrix import Matrix, Unit
from advrbd.benchmark.presets import EVERY_DEFENCE, PRESETS, plan
from advrbd.config import Config
from advrbd.data.folder import OK
from advrbd.errors import BenchmarkError, DefenceError, OutputError
from advrbd.events import Caution, Note, Progress
from advrbd.reports.report import CLEAN, POISONED, ClassVerdict, FileResult, Report
from advrbd_cli.app import main

TOO_MANY = ("learning_rate", "weight_decay", "shift", "rise")


@pytest.fixture
def data(tmp_path) -> Path:
    """A data set of two classes with no image in it: enough to name units."""
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
    return tmp_path / "pets"


def result(**changes) -> dict:
    """What a unit's JSON holds, made up."""
    unit = Unit(Path("/pets"), 100, 1, "auto", "badnets", 0.05, 11)
    counts = {"poisoned": 10, "found": 9, "clean": 180, "false_alarms": 1, "covers": 10, "covers_flagged": 2}
    counts |= {"mislabelled": 0, "mislabelled_flagged": 0, "flagged": 12, "files": 200}
    return unit.as_dict() | {
        "verdict": "poisoned",
        "detection": counts | {"tpr": 0.9, "fpr": 1 / 180, "auroc": 0.99},
        "filters": {"random": {"tpr": 0.06, "fpr": 0.06}, "perfect": {}},  # as earlier versions have it
        "network": {"name": "resnet10t"},
        **defences.circumstances(unit.config),
        "seconds": {"scan": 12.3},
        "scan_peak_mb": 900,
        "models": {"undefended": {"acc": 0.7, "asr": 0.9}},
        **changes,
    }


def save(work: Path, **changes) -> None:
    work.mkdir(exist_ok=True)
    store.write_unit(result(**changes), work)


def units_of(data: Path, **changes) -> list[Unit]:
    return list(plan([Matrix()], [data], changes))


def run_without_work(
    monkeypatch, data: Path, work: Path, minutes: float = float("inf"), **changes
) -> tuple[running.Outcome, list[str], list]:
    """The outcome, which steps of which units were started, and what was told; each step gets a made-up result."""
    started, told = [], []
    made_up = {"advrbd": {"cleaning": {}}, "scan": {"detection": result()["detection"]}}

    def start(unit, work, name, _notify) -> str:
        started.append(f"{unit.name} {name}")
        known = store.read_unit(store.path_of(unit.name, work)) or result(**unit.as_dict(), models={})
        known |= defences.circumstances(unit.config)
        known.pop("detection", None) if name == "scan" else None
        model = {"models": {name.replace("-", "_").replace("none", "undefended"): {"acc": 0.7, "asr": 0.9}}}
        store.write_unit(store.add_to_unit(known, made_up.get(name, model)), work)
        running.report_of(unit, work).parent.mkdir(exist_ok=True)
        running.report_of(unit, work).touch()
        return ""

    monkeypatch.setattr(running, "start", start)
    monkeypatch.setattr(running, "lay_out", lambda *_: None)
    planned = plan([replace(Matrix(), per_class=100)], [data], changes)
    return running.run(planned, work, minutes, told.append), started, told


def test_a_unit_is_named_by_all_that_tells_it_from_others(data):
    plain, *_ = units_of(data)
    assert plain.name == "pets-n1000-t1-auto-badnets-r0.05-s11"
    overrides = settings.parse_overrides(["warm_up.epochs=8", "partition.epsilon=.030"])
    other, *_ = units_of(data, overrides=overrides)
    assert other.name == f"{plain.name}-partition.epsilon=0.03-warm_up.epochs=8"
    assert (other.config.warm_up.epochs, other.config.partition.epsilon, other.config.seed) == (8, 0.03, 11)
    assert units_of(data, budget=0.5)[0].name == f"{plain.name}-b0.5"


def test_units_are_every_combination_but_one_unpoisoned_folder_a_seed(data):
    changes = {"rates": (0.01, 0.05), "models": ("a", "b"), "seeds": (1, 2)}
    asked = units_of(data, attacks=("paper", "none", "badnets"), **changes)
    assert len(asked) == len({unit.name for unit in asked}) == 2 * 2 * (8 * 2 + 1)
    assert [unit.seed for unit in asked] == sorted(unit.seed for unit in asked)
    assert {unit.rate for unit in asked if unit.attack == "none"} == {0.0}
    assert {unit.attack for unit in units_of(data, attacks=("all",))} == {"none", *ATTACKS}


def test_a_defence_brings_what_it_builds_on_and_all_go_in_the_same_order(data):
    steps = set(plan([Matrix()], [data], {"defences": ("abl", "random-filter")}).values())
    assert steps == {("none", "scan", "random-filter", "abl")}
    assert set(plan([Matrix()], [data], {"defences": ("all",)}).values()) == {EVERY_DEFENCE}
    assert {*BASELINES, *PAPER_RECIPE, *INSTALLED} < set(DEFENCES)


def test_detectors_that_are_not_installed_are_refused_by_name_and_no_part_of_all(data, monkeypatch):
    monkeypatch.setattr(presets, "INSTALLED_HERE", False)
    with pytest.raises(BenchmarkError, match=r"cleanlab needs .* pip install '\.\[bench\]'"):
        plan([Matrix()], [data], {"defences": ("cleanlab",)})
    monkeypatch.setattr(presets, "INSTALLED_HERE", True)
    assert plan([Matrix()], [data], {"defences": ("cleanlab",)})


def test_a_unit_that_two_matrices_name_gets_the_defences_of_both(data):
    both = plan([replace(Matrix(), seeds=(1,)), replace(Matrix(), seeds=(1, 2), defences=("clp",))], [data])
    assert [(unit.seed, names) for unit, names in both.items() if unit.attack == "blend"] == [
        (1, ("none", "scan", "clp")),
        (2, ("none", "clp")),
    ]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_plan(data, tmp_path, name):
    data.rename(tmp_path / "cifar10")
    planned = plan(PRESETS[name], [tmp_path / "cifar10"])
    assert len({unit.name for unit in planned}) == len(planned)
    first, names = next(iter(planned.items()))
    assert set(names) >= {"none", "scan", "advrbd", "fine-tuning"}
    if name == "paper":  # the most important is first, and the unit that Figure 7 begins with is in it
        assert (first.rate, first.seed, set(BASELINES) < set(names)) == (0.0, 11, True)
        assert {unit.overrides for unit in planned} > {(), (("partition.rate", 0.1),)}
        assert {unit.rate for unit in planned} == {0.0, 0.003, 0.01, 0.05, 0.1, 0.15, 0.2}
        assert not any(unit.attack == "sig" and unit.rate > 0.05 for unit in planned)


def test_a_folder_may_have_a_remark_in_its_name(tmp_path):
    folders = [tmp_path / name for name in ("cifar10", "cifar10-half", "cifar100")]
    assert [unit.data.name for unit in replace(Matrix(("cifar10",), ("none",)), seeds=(1,)).units(folders)] == [
        "cifar10",
        "cifar10-half",
    ]


def test_data_that_a_preset_wants_and_nobody_has_is_left_out_but_not_all_of_it(data):
    with pytest.raises(BenchmarkError, match="cifar10, imagenette"):
        plan(PRESETS["paper"], [data])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": 2}, "none with number 2"),
        ({"rates": (0.0,)}, "between 0 and 1"),
        ({"attacks": ("badnet",)}, "unknown attack 'badnet'; there are none, badnets"),
        ({"defences": ("able",)}, "unknown defence 'able'; there are none, scan"),
        ({"budget": 0.0}, "more than 0"),
        ({"seeds": ()}, "--seeds names nothing; give it one at least"),
        ({"defences": ()}, "--defences names nothing"),
        ({"overrides": (("separation.parts", (2, 4)),)}, "no sense: parts (2, 4) and examined (1, 1, 4)"),
        ({"overrides": (("warm_up.batch_size", 0),)}, "batch_size takes numbers from 1 on, not 0"),
        ({"overrides": (("separation.examined", (1, 1, -4)),)}, "examined takes numbers from 1 on, not (1, 1, -4)"),
        ({"overrides": tuple((f"enhancement.training.{name}", 0.123456789) for name in TOO_MANY)}, "too long"),
    ],
)
def test_what_makes_no_sense_is_one_error_before_any_work(data, changes, message):
    with pytest.raises(BenchmarkError, match=re.escape(message)):
        units_of(data, **changes)


def test_a_data_set_has_train_and_test_with_the_same_classes(data):
    (data / "test" / "dog").rmdir()
    for folders, message in (
        ([data], "the same classes"),
        ([data / "train"], "no folder train/"),
        ([data, data / ".." / "pets"], "the same name"),
    ):
        with pytest.raises(BenchmarkError, match=message):
            plan([Matrix()], folders)


def test_overrides_are_typed_by_their_fields_and_change_nothing_else():
    made = settings.parse_overrides(["looks=1", "relearning.clean.shift=1e-1", "image_size=64", "warm_up.flip=False"])
    assert made == (("image_size", 64), ("looks", 1), ("relearning.clean.shift", 0.1), ("warm_up.flip", False))
    changed = settings.apply_overrides(Config(), made)
    assert (changed.image_size, changed.looks) == (64, 1)
    assert (changed.relearning.clean.shift, changed.warm_up.flip) == (0.1, False)
    assert settings.parse_overrides(["separation.parts=2,4"]) == (("separation.parts", (2, 4)),)
    both = settings.parse_overrides(["separation.parts=2,4", "separation.examined=1,3"])  # neither makes sense alone
    assert settings.apply_overrides(Config(), both).separation.places(4000, 2) == ((1, 0), (3, 0))
    assert settings.shown((2, 4)) == settings.shown([2, 4]) == "2,4"
    back = settings.parse_overrides([f"relearning.clean.shift={Config().relearning.clean.shift}", "warm_up.flip=true"])
    restored = settings.apply_overrides(changed, back)
    assert restored == settings.apply_overrides(Config(), made[:2])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("warm_up.epochs", "STAGE.FIELD=VALUE"),
        ("warmup.epochs=8", "no setting is called 'warmup.epochs'; Config has model"),
        ("warm_up.epoch=8", "warm_up has epochs"),
        ("warm_up.epochs.more=8", "epochs is no stage"),
        ("warm_up=8", "a whole stage"),
        ("warm_up.epochs=8.5", "a whole number, not '8.5'"),
        ("partition.epsilon=nan", "takes a number"),
        ("warm_up.flip=1", "true or false"),
        ("seed=1", "set by --seeds"),
    ],
)
def test_a_wrong_override_is_told(text, message):
    with pytest.raises(BenchmarkError, match=re.escape(message)):
        settings.parse_overrides([text])
    with pytest.raises(BenchmarkError, match="twice"):
        settings.parse_overrides(["looks=1", "looks=2"])


def test_the_tables_give_each_unit_and_the_mean_and_worst_over_the_seeds(tmp_path):
    save(tmp_path)
    worse = result()["detection"] | {"tpr": 0.5, "fpr": 0.0, "auroc": 0.9}
    save(tmp_path, name="b", seed=12, detection=worse, verdict="clean", models={"undefended": {"acc": 0.6, "asr": 0.7}})
    nothing = result()["detection"] | {"poisoned": 0, "covers": 0, "tpr": float("nan"), "auroc": float("nan")}
    models = {"undefended": {"acc": 0.8, "asr": None}, "trained_on_cleaned": None}
    save(tmp_path, name="c", attack="none", rate=0.0, detection=nothing, verdict="clean", models=models)
    save(tmp_path, name="d", overrides={"looks": 1}, network={"name": "resnet18"})
    (tmp_path / "other.json").write_text('{"verdict": "of something else"}')

    each, means = tables.unit_tables(store.read_units(tmp_path)).split("\n\nOver the seeds")
    titles, _, none, first, second, other = [line.split(" | ") for line in each.splitlines()]
    assert "mislabelled flagged" not in titles  # nobody has any
    assert "clean model" not in titles
    assert none[titles.index("TPR")] == none[titles.index("covers flagged")] == "-"
    assert none[titles.index("undefended")] == "0.800/-"
    assert (first[titles.index("seed")], second[titles.index("seed")]) == ("11", "12")
    assert first[titles.index("model")] == "resnet10t (auto)"
    assert first[titles.index("covers flagged")] == "2 of 10"
    assert (other[titles.index("model")], other[titles.index("overrides")]) == ("resnet18 (auto)", "looks=1")

    titles, _, _, both, _ = [line.split(" | ") for line in means.splitlines()[2:]]
    row = dict(zip(titles, both, strict=True))
    assert (row["n"], row["verdicts"]) == ("2", "poisoned 1, clean 1")
    assert (row["TPR"], row["FPR"], row["AUROC"]) == ("0.7000 (0.5000)", "0.0028 (0.0056)", "0.9450")
    assert row["random filter's TPR"] == "0.0600"
    assert row["undefended |"] == "0.650/0.800 |"

    unscanned = {key: value for key, value in result(name="e", seed=13).items() if key not in ("detection", "filters")}
    store.write_unit(unscanned, tmp_path)
    means = tables.unit_tables(store.read_units(tmp_path)).split("\n\nOver the seeds")[1]
    row = dict(zip(titles, means.splitlines()[5].split(" | "), strict=True))
    assert (row["n"], row["TPR"], row["AUROC"]) == ("3", "0.7000 (0.5000) (n = 2)", "0.9450 (n = 2)")
    assert (row["FPR"], row["random filter's TPR"]) == ("0.0028 (0.0056) (n = 2)", "0.0600 (n = 2)")
    assert row["covers flagged"] == "4 of 20 (n = 2)"


def test_a_cleaned_unit_shows_all_its_models():
    pair = {"acc": 0.7, "asr": 0.01}
    made = result(models=dict.fromkeys(tables.MODELS, pair), cleaning={"relabelled": 9, "relabelled_right": 7})
    table = tables.unit_tables([made])
    assert all(title in table for title in tables.MODELS.values())
    assert "| 9 (7) |" in table


def test_a_unit_without_a_scan_is_in_the_tables_too():
    made = result()
    for name in ("detection", "verdict", "filters", "seconds", "scan_peak_mb"):
        del made[name]
    each, means = tables.unit_tables([made]).split("\n\nOver the seeds")
    assert each.splitlines()[2].endswith("| 0.700/0.900 |")
    assert "| badnets | 0.05 | 1 | 0.700/0.900 |" in means


def test_resuming_runs_what_is_missing_and_shows_everything(data, tmp_path, monkeypatch):
    work = tmp_path / "runs"
    outcome, first, _ = run_without_work(monkeypatch, data, work, seeds=(11,))
    assert (outcome, len(first)) == (running.Outcome((), 0), 3 * 2)  # without a defence and scanned
    _, second, _ = run_without_work(monkeypatch, data, work, seeds=(11, 12))
    assert len(second) == 3 * 2
    assert not set(first) & set(second)
    assert run_without_work(monkeypatch, data, work, seeds=(12,)) == (running.Outcome((), 0), [], [])
    assert tables.unit_tables(store.read_units(work)).count("| badnets |") == 2 + 1  # both seeds, and their mean


def test_cleaning_is_run_where_it_is_missing_but_never_lost(data, tmp_path, monkeypatch):
    only, work = {"attacks": ("badnets",), "seeds": (11,)}, tmp_path / "runs"
    assert len(run_without_work(monkeypatch, data, work, **only)[1]) == 2
    cleaning = only | {"defences": ("none", "scan", "cleaning")}
    (name,) = {started.split()[0] for started in run_without_work(monkeypatch, data, work, **cleaning)[1]}
    assert set(store.read_unit(work / f"{name}.json")["models"]) == {"undefended", "random_filter", "perfect_filter"}
    assert run_without_work(monkeypatch, data, work, **cleaning)[1] == []
    assert run_without_work(monkeypatch, data, work, **only)[1] == []


def test_no_minutes_run_nothing_and_say_what_is_left(data, tmp_path, monkeypatch):
    save(tmp_path / "runs", dataset="pets")
    outcome, started, _ = run_without_work(monkeypatch, data, tmp_path / "runs", minutes=0)
    assert (outcome.left, started) == (8, [])  # of nine


@pytest.mark.parametrize(
    "circumstance",
    [{"config": Config(seed=11, looks=1).as_dict()}, {"versions": {"advrbd": "0"}}, {"machine": "another"}],
)
def test_results_of_other_circumstances_are_named_and_not_added_to(data, tmp_path, monkeypatch, circumstance):
    only, work = {"attacks": ("badnets",), "seeds": (11,)}, tmp_path / "runs"
    save(work, dataset="pets", name=units_of(data, per_class=100, **only)[0].name, **circumstance)
    before = next(work.iterdir()).read_bytes()
    _, started, told = run_without_work(monkeypatch, data, work, **only)
    (caution,) = (event.message for event in told if isinstance(event, Caution))
    assert caution.startswith("1 results are of other settings") and caution.endswith("-badnets-r0.05-s11.json")
    assert started == []
    with pytest.raises(BenchmarkError, match=r"remove those to be added to, or use another --work: .*-s11\.json"):
        run_without_work(monkeypatch, data, work, defences=("none", "scan", "abl"), **only)
    assert next(work.iterdir()).read_bytes() == before


def test_results_never_lie_in_the_data(data):
    with pytest.raises(OutputError, match="never written to"):
        running.run(plan([Matrix()], [data]), data / "runs")
    assert not (data / "runs").exists()


def test_a_step_that_fails_stops_no_other_but_those_that_build_on_it(data, tmp_path, monkeypatch):
    tried, told = [], []
    monkeypatch.setattr(running, "lay_out", lambda *_: None)
    monkeypatch.setattr(running, "start", lambda _, __, name, *___: tried.append(name) or "no room" * (name == "scan"))
    planned = plan([Matrix()], [data], {"seeds": (11,), "attacks": ("none",), "defences": ("cleaning", "clp")})
    outcome = running.run(planned, tmp_path / "runs", notify=told.append)
    assert tried == ["none", "scan", "perfect-filter", "clp"]
    reasons = ["scan: no room", "advrbd: scan failed", "random-filter: scan failed"]
    assert [failed.split(", ")[1] for failed in outcome.failed] == reasons
    assert outcome.left == 1
    cautions = [event.message for event in told if isinstance(event, Caution)]
    assert cautions == [f"failed: {failed}" for failed in outcome.failed]


def test_a_step_that_can_not_be_done_tells_its_parent_why_and_prints_nothing(data, tmp_path, capfd):
    unit = units_of(data)[0]
    store.path_of(unit.name, tmp_path).write_text("{")
    assert running.start(unit, tmp_path, "none") == f"{tmp_path / unit.name}.json is no JSON; remove it"
    assert capfd.readouterr() == ("", "")
    store.path_of(unit.name, tmp_path).unlink()
    assert running.start(unit, tmp_path, "none") == "its process ended with exit code 1"  # there are no images


def test_a_unit_leaves_a_whole_result_or_none_and_no_images(digits_folder, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    for part in ("train", "test"):
        (tmp_path / "data" / part).symlink_to(digits_folder)
    unit = Unit(tmp_path / "data", 5, 1, "auto", "badnets", 0.1, 11)
    work = tmp_path / "runs"
    (work / unit.name / "subset").mkdir(parents=True)  # a killed one left this

    def broken(case) -> dict:
        assert sum(role == "poison" for role in case.role.values()) == 5
        assert {path.name for path in case.directory.iterdir()} >= {"poisoned", "planted.json"}
        return unit.as_dict() | {"seconds": {1: {1, 2}}}  # no JSON can hold a set

    for run, names in ((broken, set()), (lambda _: result(**unit.as_dict()), {f"{unit.name}.json"})):
        monkeypatch.setitem(DEFENCES, "scan", Step(run, lambda unit: "detection" in unit))
        monkeypatch.setattr(running, "start", lambda *arguments: running.work_on(*arguments) or "")
        try:
            running.run_unit(unit, ("scan",), work)
        except TypeError:
            assert run is broken
        assert {path.name for path in work.iterdir()} == names
    assert store.read_units(work) == [json.loads(json.dumps({"schema": store.SCHEMA} | result(**unit.as_dict())))]


@pytest.mark.parametrize("content", [b"\xff{", b"[" * 200_000], ids=["bytes", "nested"])
def test_a_file_that_is_no_result_is_told(tmp_path, content):
    (tmp_path / "broken.json").write_bytes(content)
    with pytest.raises(BenchmarkError, match=r"broken\.json is no JSON; remove it"):
        store.read_units(tmp_path)


def test_a_unit_that_was_scanned_is_cleaned_without_another_scan(data, tmp_path):
    unit = Unit(data, 100, 1, "auto", "none", 0.0, 11)
    store.write_unit(result(**unit.as_dict()), tmp_path)
    names = ("none", "scan", "advrbd")
    assert running.missing(unit, names, tmp_path) == ("scan", "advrbd")  # the report is gone
    running.report_of(unit, tmp_path).parent.mkdir()
    running.report_of(unit, tmp_path).touch()
    assert running.missing(unit, names, tmp_path) == ("advrbd",)
    more = {"cleaning": {"relabelled": 0}, "models": {"clean_model": {"acc": 0.5}}}
    known = store.add_to_unit(result(**unit.as_dict()), more)
    assert known["verdict"] == "poisoned"
    assert set(known["models"]) == {"undefended", "clean_model"}


@pytest.mark.parametrize("linked", [True, False])
def test_a_draw_is_the_same_for_a_seed_and_copied_where_no_link_leads(digits_folder, tmp_path, monkeypatch, linked):
    if not linked:
        monkeypatch.setattr(os, "link", Mock(side_effect=OSError("another disk")))
    for number, seed in enumerate((1, 1, 2)):
        cases.draw_subset(digits_folder, tmp_path / str(number), 5, seed)
    drawn = [sorted(path.relative_to(root) for path in root.rglob("*.png")) for root in sorted(tmp_path.iterdir())]
    assert [len(files) for files in drawn] == [50, 50, 50]
    assert drawn[0] == drawn[1] != drawn[2]
    file = drawn[0][0]
    assert (tmp_path / "0" / file).read_bytes() == (digits_folder / file).read_bytes()
    assert (tmp_path / "0" / file).samefile(digits_folder / file) == linked


class Corner(Attack):
    """One white pixel, whatever the size of the image."""

    name = "corner"

    def stamp(self, image, generator):
        image = image.copy()
        image[0, 0] = 255
        return image


def test_the_trigger_is_put_on_before_a_test_image_is_scaled(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (64, 48)).save(tmp_path / name / "black.png")
    seen = measure.read_held_out(tmp_path, 16, Corner(), target=0)
    assert seen.images.shape == (2, 16, 16, 3)
    assert not seen.images.any()
    assert seen.stamped.shape == (1, 16, 16, 3)
    assert 0 < seen.stamped[0, 0, 0, 0] < 128  # one of some twelve pixels that became one
    assert seen.wanted.tolist() == [0]
    assert measure.read_held_out(tmp_path, 16, None, target=0).stamped is None


def test_few_test_images_are_the_same_ones_every_time(digits_folder, monkeypatch):
    monkeypatch.setattr(measure, "MOST_TEST_IMAGES", 40)
    first, second = (measure.read_held_out(digits_folder, 16, None, 1) for _ in range(2))
    assert len(first.images) == len(first.labels) == 40
    assert np.array_equal(first.images, second.images)


def test_trusted_images_are_none_that_is_measured_on(digits_folder, monkeypatch):
    def fingerprints(images) -> set[bytes]:
        return {image.tobytes() for image in images}

    everything = measure.read_held_out(digits_folder, 16, None, 1).images
    for most, count in ((250, 40), (2000, 40), (2000, 290)):
        monkeypatch.setattr(measure, "MOST_TEST_IMAGES", most)
        held_out = measure.read_held_out(digits_folder, 16, None, 1, trusted=count)
        images, labels = measure.read_trusted(digits_folder, 16, count)
        assert len(images) == len(labels) == min(count, 150)
        assert len(held_out.images) == min(most, 300 - len(images))
        assert not fingerprints(images) & fingerprints(held_out.images)
        assert fingerprints(images) | fingerprints(held_out.images) <= fingerprints(everything)


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Path:
    """A unit's folder of 200 digits of four classes, a tenth with BadNets, and nothing trained yet."""
    root = tmp_path_factory.mktemp("bench")
    data = digits_data(root)
    for part in ("train", "test"):
        for number in range(4, 10):
            (data / part / str(number)).rename(root / f"{part}-{number}")
    (root / "unit").mkdir()
    lay_out(unit_of(root), root / "unit")
    return root


def unit_of(root: Path) -> Unit:
    stages = ("relearning.clean", "relearning.fine_tuning", "warm_up")
    short = ("batch_size=32", "epochs=1", "minimum_steps=20")
    quick = settings.parse_overrides(
        [*(f"{stage}.{change}" for stage in stages for change in short), "enhancement.steps=20"]
    )
    return Unit(root / "digits", 50, 1, "test_resnet", "badnets", 0.1, 3, "cpu", quick, budget=0.01)


def case_of(root: Path, known: dict | None = None) -> cases.Case:
    return open_case(unit_of(root), root / "unit", root / "report.json", known or {})


def test_a_class_that_an_attack_would_empty_shifts_no_label(tmp_path):
    unit = replace(unit_of(tmp_path), data=digits_data(tmp_path), attack="tact", rate=0.15)
    data, entries = lay_out(unit, new_folder(tmp_path / "tact"))
    assert sum(entry.role == "poison" for entry in entries) == 40  # of 50 zeros, for 75 that were asked for
    assert sorted(path.name for path in data.iterdir()) == [str(digit) for digit in range(10)]
    for file in (unit.data / "train" / "3").iterdir():
        file.unlink()
    with pytest.raises(BenchmarkError, match="hasn't the classes of the test set"):
        lay_out(unit, new_folder(tmp_path / "again"))


def new_folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_the_undefended_model_is_trained_once_and_is_what_the_library_trains(planted, monkeypatch):
    first = case_of(planted)
    network = first.undefended
    same = measure.train_and_judge(first.data, first.unit.config, first.held_out)
    assert measure.judge(network, first.held_out) == {name: same[name] for name in ("acc", "asr")}
    again = case_of(planted)
    before = first.prepared[1].generator.get_state()
    monkeypatch.setattr(cases, "relearn", Mock(side_effect=AssertionError("trained again")))
    assert all(torch.equal(*pair) for pair in zip(network.parameters(), again.undefended.parameters(), strict=True))
    assert torch.equal(again.prepared[1].generator.get_state(), before)  # whoever comes next draws the same


@pytest.mark.parametrize("name", ["fine-tuning", "d-br", "clp"])
def test_a_baseline_is_measured_with_what_it_needs(planted, monkeypatch, name):
    kind, seen = BASELINES[name], {}
    real = kind.defend

    def spy(self, run, examples, network, clean=None):
        seen.update(self=self, run=run, examples=examples, clean=clean)
        return real(self, run, examples, network, clean)

    monkeypatch.setattr(kind, "defend", spy)
    case = case_of(planted)
    entry = DEFENCES[name].run(case)["defences"][name]
    assert 0 <= entry["acc"] <= 1
    assert 0 <= entry["asr"] <= 1
    assert entry["seconds"] >= 0
    assert entry["peak_mb"] > 100
    assert len(seen["examples"]) == 200
    if name == "fine-tuning":
        assert seen["clean"].tolist() == list(range(200, 210))  # 5 % of 200, behind the folder's own
        assert torch.equal(seen["run"].labels[:200], case.prepared[1].labels)
        assert seen["self"].training.epochs == kind().training.epochs  # cheap, so at full length
        assert "tpr" not in entry
    elif name == "d-br":
        assert seen["clean"] is None
        assert seen["self"].poisoned_share == case.poison_rate == 0.1
        assert entry["needs"] == "poison rate"  # it was told
        assert seen["self"].unlearning.epochs == 1  # 20 at a budget of .01
        assert entry["flagged"] == 20
        assert entry["found"] + entry["false_alarms"] == 20
        assert 0 <= entry["auroc"] <= 1


def test_a_baseline_that_cannot_work_here_has_that_as_its_result(planted, monkeypatch):
    def refuse(*_):
        raise DefenceError("needs what it lacks")

    monkeypatch.setattr(BASELINES["clp"], "defend", refuse)
    made = DEFENCES["clp"].run(case_of(planted))
    assert made["defences"] == {"clp": {"needs": "nothing", "error": "needs what it lacks"}}
    assert DEFENCES["clp"].has(made)


def test_filters_leave_out_what_they_say(planted, monkeypatch):
    trained = []
    pair = {"acc": 0.5, "asr": 0.5}
    monkeypatch.setattr(defences, "train_and_judge", lambda part, *_: trained.append(part) or pair)
    known = {"models": {"undefended": {"acc": 0.4}}, "detection": {"flagged": 30}, "network": {}}
    case = case_of(planted, known)
    assert DEFENCES["random-filter"].run(case)["models"] == {"random_filter": pair}
    assert DEFENCES["perfect-filter"].run(case)["models"] == {"perfect_filter": pair}
    left = [{path.relative_to(part).as_posix() for path in part.rglob("*.png")} for part in trained]
    assert (len(left[0]), len(left[1])) == (170, 180)
    assert left[1] == {path for path, role in case.role.items() if role == "clean"}
    known["detection"]["flagged"] = 0
    assert DEFENCES["random-filter"].run(case)["models"] == {"random_filter": {"acc": 0.4}}  # the undefended one


def test_a_unit_without_a_scan_says_how_it_was_run(planted):
    case = case_of(planted)
    made = DEFENCES["none"].run(case)
    assert made["models"]["undefended"]["acc"] > 0.3
    assert {"name", "config", "versions", "machine", "device", "network", "test"} <= set(made)
    assert made["test"]["images"] == len(case.held_out.images)
    json.dumps(made)


def report_of_the_truth(case: cases.Case) -> Report:
    """What a scan would say that makes no mistake."""
    index = case.prepared[0]
    files = tuple(
        FileResult(
            file.path,
            index.class_name(file),
            OK,
            hashlib.sha256((case.data / file.path).read_bytes()).hexdigest(),
            case.role[file.path] == "poison",
            float(case.role[file.path] == "poison"),
        )
        for file in index.files
    )
    verdicts = tuple(ClassVerdict(name, 50, 0, POISONED if name == "1" else CLEAN) for name in index.classes)
    run = {"model": {}, "device": "cpu", "config": case.unit.config.as_dict()}
    return Report(files, verdicts, run=run | dict.fromkeys(("advrbd", "torch", "timm", "python"), "1"))


def test_a_scan_is_held_against_the_truth_and_cleaning_goes_on_from_its_report(planted, monkeypatch):
    case = case_of(planted)
    monkeypatch.setattr(defences, "run_scan", lambda *_, **__: report_of_the_truth(case))
    found = DEFENCES["scan"].run(case)
    assert (found["detection"]["tpr"], found["detection"]["fpr"], found["detection"]["flagged"]) == (1.0, 0.0, 20)
    assert found["filters"]["random"] == {"tpr": 0.1}
    assert found["verdict"] == "poisoned"
    assert case.report.is_file()

    cleaned = DEFENCES["advrbd"].run(case)
    assert set(cleaned["models"]) == {"clean_model", "not_relabelled", "trained_on_cleaned"}
    assert cleaned["cleaning"]["relabelled"] + cleaned["cleaning"]["dropped"] == 20
    assert cleaned["cleaning"]["relabelled"] > 0  # so there is a model before that, which isn't trained a second time
    assert len(list((case.directory / "steps").glob("*-relearn-*"))) == 1
    assert cleaned["models"]["clean_model"]["seconds"] >= 0
    assert DEFENCES["advrbd"].has(cleaned)
    json.dumps([found, cleaned])


def test_the_data_of_figures_is_by_role_and_starts_before_the_first_round(planted, monkeypatch):
    monkeypatch.setattr(curves, "ROUNDS", 6)
    monkeypatch.setattr(curves, "SIDE", 3)
    made = DEFENCES["figures"].run(case_of(planted))["figures"]
    assert {role: len(values) for role, values in made["divergence"].items()} == {"clean": 180, "poison": 20}
    assert min(min(values) for values in made["divergence"].values()) > -1e-3
    assert [entry["round"] for entry in made["rounds"]] == list(range(7))
    assert made["rounds"][6]["acc"] < made["rounds"][0]["acc"]  # it forgets the task
    assert [len(made["landscape"][kind]) for kind in ("clean", "poison")] == [3, 3]
    json.dumps(made)


def test_steps_run_in_processes_of_their_own_on_the_same_folder(planted, tmp_path):
    unit = replace(unit_of(planted), overrides=unit_of(planted).overrides[1:4])  # the names of files have their limit
    planned = {unit: ("none", "clp")}
    told = []
    assert running.run(planned, tmp_path / "runs", notify=told.append) == running.Outcome((), 0), told
    (made,) = store.read_units(tmp_path / "runs")
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {f"{made['name']}.json"}
    notes = [event.message for event in told if isinstance(event, Note)]
    assert [note.strip().split(":")[0] for note in notes] == ["1 of 1", "none", "clp"]  # with their seconds
    progress = [event for event in told if isinstance(event, Progress)]
    assert any(event.stage == "none, relearn" and event.done == event.total for event in progress)
    assert made["models"]["undefended"]["acc"] > 0.3
    entry = made["defences"]["clp"]
    assert "error" not in entry
    assert 0 <= entry["acc"] <= 1


@pytest.mark.slow
def test_a_whole_small_experiment(tmp_path):
    words = ["--preset", "smoke", "--work", str(tmp_path / "runs"), "--attacks", "badnets,none", "--per-class", "60"]
    words += ["--defences", "none,scan,fine-tuning", "--clean", "--seeds", "1", "--device", "cpu"]
    changes = ("relearning.clean.enough_steps=0", "relearning.clean.minimum_steps=150", "looks=1")
    words += [word for change in changes for word in ("--override", change)]
    command = [sys.executable, "-m", "advrbd_cli", "bench", "run", *words]
    killed = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    (directory,) = wait_for(lambda: list((tmp_path / "runs").glob("digits-*/poisoned")))
    killed.kill()
    killed.communicate()  # the end of its pipes: no process has them any more, so the step ended with its parent
    assert directory.is_dir()

    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert sorted(path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()) == ["data", "reports"]
    planted, none = store.read_units(tmp_path / "runs")
    assert planted["detection"]["poisoned"] == 30
    assert planted["scan_peak_mb"] > 100
    assert set(planted["models"]) == set(none["models"]) == set(tables.MODELS)
    assert set(planted["defences"]) == {"fine-tuning"}
    assert none["models"]["perfect_filter"] == none["models"]["undefended"]
    assert none["detection"]["tpr"] is none["filters"]["random"]["tpr"] is None
    assert all(model["acc"] > 0.7 for model in planted["models"].values())
    assert planted["config"]["relearning"]["clean"]["minimum_steps"] == 150


def wait_for(condition, seconds: float = 60):
    for _ in range(int(seconds * 20)):
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it never came")


def command(capfd, *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``advrbd bench``."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(sys, "argv", ["advrbd", "bench", *words])
        main()
    return stop.value.code, *capfd.readouterr()


def test_the_command_asks_for_what_it_was_told(data, tmp_path, monkeypatch, capfd):
    asked = {}

    def run(planned, _, minutes, __):
        asked.update(planned=planned, minutes=minutes)
        return running.Outcome((), 2)

    monkeypatch.setattr(running, "run", run)
    words = ("--data", str(data), "--work", str(tmp_path / "runs"), "--attacks", "badnets, sig", "--rates", ".01,.1")
    words += ("--seeds", "4", "--per-class", "7", "--target", "0", "--clean", "--figures", "--minutes", "3")
    code, out, err = command(capfd, "run", *words, "--override", "looks=1", "--override", "warm_up.epochs=8")
    assert (code, out) == (0, "")
    assert "2 of 4 units are left" in err
    assert asked["minutes"] == 3
    assert [(unit.attack, unit.rate) for unit in asked["planned"]] == [
        ("badnets", 0.01),
        ("badnets", 0.1),
        ("sig", 0.01),
        ("sig", 0.1),
    ]
    unit, names = next(iter(asked["planned"].items()))
    assert (unit.seed, unit.per_class, unit.target) == (4, 7, 0)
    assert (unit.config.looks, unit.config.warm_up.epochs) == (1, 8)
    assert names == ("none", "scan", "advrbd", "random-filter", "perfect-filter", "figures")

    monkeypatch.setattr(running, "run", lambda *_: running.Outcome(("pets, scan: no room",), 1))
    code, _, err = command(capfd, "run", *words)
    assert code == 2
    assert "1 steps failed, the first of them: pets, scan: no room" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run --work runs", "--preset smoke"),
        ("run --work runs --data nowhere", "no folder train/"),
        ("run --work runs --preset smoke --rates many", "--rates takes numbers"),
        ("run --work runs --preset smoke --override looks", "STAGE.FIELD=VALUE"),
        ("run --work runs --preset smoke --defences magic", "unknown defence 'magic'"),
        ("run --work runs --preset smoke --clean --defences ,", "--defences names nothing"),
        ("tables nowhere", "no such folder"),
        ("figures nowhere", "no such folder"),
        ("download mnist .", "mnist"),
    ],
)
def test_what_is_asked_for_wrongly_is_one_line(tmp_path, monkeypatch, capfd, words, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(capfd, *words.split())
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert message in err
    assert "internal error" not in err


def test_tables_go_to_stdout_or_to_a_file(tmp_path, capfd):
    assert command(capfd, "tables", str(tmp_path))[:2] == (0, "no unit has run yet\n")
    save(tmp_path)
    code, out, _ = command(capfd, "tables", str(tmp_path))
    assert code == 0
    assert "Table II" in out
    assert command(capfd, "tables", str(tmp_path), "--units", "-o", str(tmp_path / "t.md"))[:2] == (0, "")
    assert (tmp_path / "t.md").read_text().startswith("| data |")


@pytest.mark.parametrize(
    ("name", "message"),
    [("pipe", "a pipe; give --output the name"), ("runs", "is a folder"), ("missing/t.md", "missing doesn't exist")],
)
def test_tables_replace_no_pipe_but_may_lie_beside_the_results(tmp_path, monkeypatch, capfd, name, message):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "runs")
    os.mkfifo("pipe")
    code, out, err = command(capfd, "tables", "runs", "-o", name)
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert message in err
    assert Path("pipe").is_fifo()
    assert command(capfd, "tables", "runs", "-o", "runs/tables.md")[0] == 0


def test_the_help_names_every_defence(capfd):
    code, out, _ = command(capfd, "run", "--help")
    assert code == 0
    assert set(DEFENCES) - {"figures"} <= set(re.sub(r"[,.;:]", " ", out).split())
