"""A drill says which attacks a scan finds in a user's own folder, leaves that folder alone and nothing behind."""

import csv
import io
import json
import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest

from advrbd.attacks import ATTACKS
from advrbd.attacks import plant as planting
from advrbd.benchmark import drill as drilling
from advrbd.benchmark import metrics
from advrbd.benchmark.drill import DID_NOT_TAKE, FALSE_ALARM, FOUND, LEFT_ALONE, MISSED, PARTLY_FOUND, Drilled, drill
from advrbd.benchmark.drill_report import COLUMNS, meaning, passed, render
from advrbd.benchmark.metrics import Detection
from advrbd.config import Config
from advrbd.data.files import read_image
from advrbd.data.folder import OK, index
from advrbd.errors import AdvrbdError, DatasetError, ModelError
from advrbd.events import Caution, Progress
from advrbd.reports.report import FileResult, Report

CPU = Config(device="cpu")
SIZE = 16


def drilled(attack: str = "badnets", found: int = 100, success: float | None = 1.0, **others) -> Drilled:
    """A made-up result: ``found`` of 100 poisoned files among 1,000, or of none where there is no ``success``."""
    poisoned = 0 if success is None else 100
    counts = dict(covers=0, covers_flagged=0, mislabelled=0 if poisoned else 100, mislabelled_flagged=0, false_alarms=0)
    counts |= others
    held = Detection(poisoned, found if poisoned else 0, clean=900, auroc=0.5 if poisoned else float("nan"), **counts)
    return Drilled(attack, 0.1, 100, "cat", success, held, "a verdict", ("a caution",), {"seconds": 1.0, "torch": "2"})


NOISE = partial(drilled, "label-noise", success=None)


@pytest.mark.parametrize(
    ("entry", "outcome"),
    [
        (drilled(found=100), FOUND),
        (drilled(found=90), FOUND),
        (drilled(found=89), PARTLY_FOUND),
        (drilled(found=10), PARTLY_FOUND),
        (drilled(found=9), MISSED),
        (drilled(found=0), MISSED),
        (drilled(found=90, success=0.5), FOUND),
        (drilled(found=90, success=0.499), DID_NOT_TAKE),
        (drilled(found=0, success=0.0), DID_NOT_TAKE),
        (drilled(found=90, false_alarms=500), FOUND),
        (NOISE(), LEFT_ALONE),
        (NOISE(false_alarms=1), FALSE_ALARM),
        (NOISE(mislabelled_flagged=1), FALSE_ALARM),
    ],
)
def test_the_outcome(entry, outcome):
    assert entry.outcome == outcome


@pytest.mark.parametrize(
    ("entries", "all_found", "said"),
    [
        (
            [drilled(), replace(drilled("sig"), planted=8)],  # of 10 % asked for, where it had few sources
            True,
            "2 of 2 attacks that took were found: a scan of this folder sees badnets in 10 %, sig in 0.8 % of its",
        ),
        ([drilled(), drilled("sig", 50)], False, "1 of 2 attacks that took was found, not sig (partly found): a clean"),
        ([drilled(), drilled("sig", 0, 0.1)], True, "sig did not take, so nothing is known of it"),
        ([drilled(found=0), drilled("sig", 0, 0.1)], False, "0 of 1 attacks that took were found, not badnets"),
        ([drilled(found=100, success=0.4)], None, "badnets did not take"),
        ([drilled(success=0.4), drilled("sig", success=0.4)], None, "nothing is known of them"),
        ([drilled(), NOISE()], True, "label-noise, which is no backdoor, raised no alarm"),
        ([drilled(), NOISE(false_alarms=2)], False, "label-noise, which is no backdoor, raised a false alarm"),
        ([NOISE()], True, "raised no alarm"),
        ([drilled(success=0.4), NOISE()], None, "badnets did not take"),
    ],
)
def test_what_a_drill_means(entries, all_found, said):
    assert passed(entries) is all_found
    assert said in meaning(entries)


def test_the_report_in_every_format():
    entries = [drilled(found=95), NOISE()]
    rows = list(csv.DictReader(io.StringIO(render(entries, "csv").decode())))
    assert [row["outcome"] for row in rows] == ["found", "left alone"]
    assert (rows[0]["true_positive_rate"], rows[1]["true_positive_rate"]) == ("0.9500", "")
    whole = json.loads(render(entries, "json"))
    assert whole["schema"] == "advrbd.drill/1"
    assert (whole["meaning"], whole["run"]) == (meaning(entries), {"torch": "2"})
    assert [row["run"] for row in whole["attacks"]] == [{"seconds": 1.0}] * 2
    assert [set(row) - {"cautions", "run"} for row in whole["attacks"]] == [set(COLUMNS)] * 2
    assert whole["attacks"][1]["attack_success_rate"] is None
    lines = render(entries, "table").decode().splitlines()
    assert [line.split()[0] for line in lines] == ["attack", "badnets", "label-noise"]
    with pytest.raises(ValueError, match="unknown format"):
        render(entries, "html")


@pytest.fixture
def unfound(monkeypatch):
    """Scans that find nothing and no training: what is left of a drill is the copying, the counting and the stamping.

    Returns the folders that were scanned, and what the attack success rate would have been measured on.
    """
    scanned, measured = [], []

    def scan(copy, *_, **__):
        scanned.append(copy)
        assert copy.is_dir()
        files = [FileResult(file.path, "", OK, "0" * 64, False, 0.0) for file in index(copy).files]
        return Report(tuple(files), ())

    def accuracy(_, images, labels):
        measured.append((images, labels))
        return 0.75

    monkeypatch.setattr(drilling, "scan", scan)
    network = SimpleNamespace(spec=SimpleNamespace(image_size=SIZE))
    monkeypatch.setattr(drilling, "train_plainly", lambda *_, **__: network)
    monkeypatch.setattr(metrics, "accuracy", accuracy)
    return scanned, measured


def test_every_attack_is_planted_in_a_copy_of_its_own(unfound, digits_folder, tmp_path, snapshot):
    before, scanned = snapshot(digits_folder), unfound[0]
    results = []
    for result in drill(digits_folder, list(ATTACKS), CPU, poison_rate=0.07, work=tmp_path):
        results.append(result)
        assert list(tmp_path.iterdir()) == []
    assert snapshot(digits_folder) == before
    assert [result.attack for result in results] == list(ATTACKS)
    assert len(set(scanned)) == len(ATTACKS)
    assert not any(copy.exists() for copy in scanned)
    for result in results:
        held = result.detection
        noise = result.attack == "label-noise"
        assert held.poisoned == (0 if noise else 21), result.attack
        assert result.planted == held.poisoned + held.mislabelled >= 21
        assert (held.found, held.false_alarms) == (0, 0)
        assert result.outcome == (LEFT_ALONE if noise else MISSED)
        assert (result.target_label, result.verdict) == ("0", "clean")


@pytest.mark.parametrize(
    ("attack", "wanted"),
    [("badnets", {3}), ("sig", {3}), ("tact", {3}), ("all-to-all", set(range(10)))],
)
def test_the_success_of_an_attack_is_measured_on_images_that_it_left_clean(
    attack, wanted, unfound, digits_folder, monkeypatch
):
    next(drill(digits_folder, [attack], CPU, poison_rate=0.07, target_label="3"))
    [(images, labels)] = unfound[1]
    assert set(labels.tolist()) == wanted
    assert images.shape == (len(labels), SIZE, SIZE, 3)
    victims = {"badnets": 270 - 21, "sig": 270, "tact": 30 - 21, "all-to-all": 300 - 21}
    assert len(labels) == victims[attack]  # each of them, since they are fewer than 500
    if attack == "badnets":
        assert (images[:, -2:, -2:] == 255).all()
    monkeypatch.setattr(drilling, "MOST_MEASURED", 5)
    next(drill(digits_folder, [attack], CPU))
    assert len(unfound[1][1][1]) == 5


def test_some_of_the_sources_are_left(unfound, digits_folder):
    result = next(drill(digits_folder, ["tact"], CPU, poison_rate=0.5))
    assert (result.poison_rate, result.planted) == (0.5, 24)  # of the 30 images of its one source class
    assert len(unfound[1][0][1]) == 6


@pytest.mark.usefixtures("unfound")
def test_the_target_is_the_largest_class_unless_it_is_named(digits_folder, tmp_path):
    shutil.copytree(digits_folder, tmp_path / "data")
    assert next(drill(tmp_path / "data", ["badnets"], CPU)).target_label == "0"
    shutil.copy(next((tmp_path / "data" / "7").iterdir()), tmp_path / "data" / "7" / "more.png")
    assert next(drill(tmp_path / "data", ["badnets"], CPU)).target_label == "7"
    assert next(drill(tmp_path / "data", ["badnets"], CPU, target_label="2")).target_label == "2"


@pytest.mark.usefixtures("unfound")
def test_a_failure_leaves_no_copy(digits_folder, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ModelError("no good")

    monkeypatch.setattr(drilling, "train_plainly", fail)
    with pytest.raises(ModelError):
        next(drill(digits_folder, ["badnets"], CPU, work=tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("unfound")
def test_an_image_is_checked_once_whatever_draws_it(digits_folder, monkeypatch):
    read = []
    monkeypatch.setattr(planting, "read_image", lambda path, side: read.append(path) or read_image(path, side))
    told = []
    results = drill(digits_folder, ["badnets", "blend", "all-to-all"], CPU, poison_rate=0.2, notify=told.append)
    assert len(set(read)) == len(read) > 60  # before the first attack is planted
    checks = [event for event in told if isinstance(event, Progress) and "check" in event.stage]
    assert sum(event.total for event in checks) == len(read)
    assert [result.planted for result in results] == [60, 60, 60]
    assert len(set(read)) == len(read)


@pytest.mark.usefixtures("unfound")
def test_files_that_cant_be_poisoned_are_no_hindrance(digits_folder, tmp_path):
    shutil.copytree(digits_folder, tmp_path / "data")
    for path in sorted((tmp_path / "data" / "5").iterdir())[:20]:
        path.write_bytes(b"broken")
    told = []
    assert next(drill(tmp_path / "data", ["badnets"], CPU, poison_rate=0.2, notify=told.append)).planted > 50
    assert any("aren't in the copy" in event.message for event in told if isinstance(event, Caution))


def test_plans_that_are_no_test_are_refused_before_any_work(digits_folder, tmp_path):
    with pytest.raises(DatasetError, match="badnets would poison no file"):
        drill(digits_folder, ["badnets"], CPU, poison_rate=0.001)
    shutil.copytree(digits_folder, tmp_path / "data")
    for path in sorted((tmp_path / "data" / "0").iterdir())[1:]:
        path.unlink()
    with pytest.raises(DatasetError, match="badnets would leave class '0' no image"):
        drill(tmp_path / "data", ["sig", "badnets"], CPU, poison_rate=0.7)
    with pytest.raises(DatasetError, match="makes no sense"):
        drill(digits_folder, ["badnets"], CPU, poison_rate=1.0)
    with pytest.raises(AdvrbdError, match="unknown attack 'magic'"):
        drill(digits_folder, ["badnets", "magic"], CPU)
    with pytest.raises(ModelError, match="answers otherwise than by one layer"):
        drill(digits_folder, ["badnets"], replace(CPU, model="levit_128s"))
