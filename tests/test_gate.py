"""The gate names what speaks against the result of a clean, with its numbers, and nothing where nothing does."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import advrbd
from advrbd.config import Config, RelearningSettings, TrainingSettings
from advrbd.data.pixels import Pixels
from advrbd.errors import UntrustedError
from advrbd.manifest import MANIFEST
from advrbd.method import gate
from advrbd.method.findings import Findings
from advrbd.method.gate import GOOD, LIMITED, NONE, Check, Result, check
from advrbd.model.device import choose_device
from advrbd.model.factory import ModelSpec
from advrbd.model.run import Run
from advrbd.reports.report import CLEAN, POISONED, SUSPICIOUS, UNEXAMINED
from advrbd.reports.tables import render

CLASSES, EACH = 3, 50


class Oracle(nn.Module):
    """Sees which class an image is of by its grey: 0, 1 or 2 of 255."""

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean(dim=(1, 2, 3)).mul(255)[:, None]

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        return -50 * (features - torch.arange(CLASSES)).abs()


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.arange(CLASSES).repeat_interleave(EACH)


@pytest.fixture
def run(labels) -> Run:
    images = labels[:, None, None, None].expand(-1, 4, 4, 3).to(torch.uint8)
    spec, generator = ModelSpec("test_resnet", CLASSES, 4), torch.Generator().manual_seed(0)
    return Run(Pixels(images), labels, spec, choose_device("cpu"), generator, class_names=("ant", "bee", "cat"))


@pytest.fixture
def findings(labels) -> Findings:
    """Of a scan that looked everywhere and found nothing."""
    found = Findings.nothing(len(labels))
    found.verdicts, found.control_found = dict.fromkeys(range(CLASSES), CLEAN), True
    return found


def judged(run: Run, findings: Findings, relabelled: dict[int, int] | None = None, **options) -> Check:
    """The gate's word when the suspects are taken out, and the ``relabelled`` ones put into other classes."""
    labels, everything = run.labels.clone(), torch.arange(len(run.labels))
    gone = findings.suspects.clone()
    for position, label in (relabelled or {}).items():
        labels[position], gone[position] = label, False
    return check(run, Oracle(), findings, Result(everything, everything[~gone], labels), Config(), **options)


def accuse(findings: Findings, positions: range, suggested: int) -> None:
    where = list(positions)
    findings.suspects[where], findings.suggested[where], findings.confidence[where] = True, suggested, 0.9
    findings.verdicts[positions[0] // EACH] = POISONED


def test_nothing_speaks_against_a_folder_in_which_nothing_was_found(run, findings):
    assert judged(run, findings).trust == GOOD
    assert judged(run, findings).reasons == ()
    assert [(entry.label, entry.images, entry.kept, entry.gained) for entry in judged(run, findings).classes] == [
        (name, EACH, EACH, 0) for name in ("ant", "bee", "cat")
    ]


def test_every_class_is_counted_before_and_after(run, findings):
    accuse(findings, range(10), suggested=2)  # ants that look like cats; they are ants to the oracle all the same
    said = judged(run, findings, {0: 2, 1: 2})
    assert said.trust == GOOD
    ant, bee, cat = said.classes
    assert (ant.images, ant.kept, ant.gained, ant.agreement, ant.denied) == (50, 40, 0, 1.0, 1.0)
    assert (bee.images, bee.kept, bee.gained, bee.agreement, bee.denied) == (50, 50, 0, 1.0, None)
    assert (cat.images, cat.kept, cat.gained, cat.agreement, cat.denied) == (50, 50, 2, round(50 / 52, 3), None)


@pytest.mark.parametrize("lost, trust", [(20, GOOD), (21, LIMITED), (50, LIMITED)])
def test_a_class_that_lost_too_many_images_is_named(run, findings, lost, trust):
    accuse(findings, range(lost), suggested=1)
    said = judged(run, findings)
    assert said.trust == trust
    assert [f"class 'ant' lost {lost} of its 50 images"] * (trust == LIMITED) == list(said.reasons)


def test_a_class_that_the_model_makes_no_sense_of_is_named(run, findings):
    accuse(findings, range(50, 90), suggested=0)
    said = judged(run, findings, dict.fromkeys(range(100, 120), 1))  # 10 bees are left, and 20 cats came to them
    assert said.trust == LIMITED
    assert any("33% of the images of class 'bee', 82% of all" in reason for reason in said.reasons), said.reasons


@pytest.mark.parametrize("confirmed, trust", [(5, GOOD), (6, LIMITED)])
def test_suspects_that_look_like_their_label_may_be_innocent(run, findings, confirmed, trust):
    accuse(findings, range(10), suggested=1)
    findings.suggested[:confirmed] = 0
    said = judged(run, findings)
    assert said.trust == trust
    assert all("class 'ant' do look like their label" in reason for reason in said.reasons)


@pytest.mark.parametrize(
    "verdict, words", [(UNEXAMINED, "could not have been seen"), (SUSPICIOUS, "looked suspicious")]
)
def test_what_the_scan_left_open_limits_the_trust(run, findings, verdict, words):
    findings.verdicts[1] = verdict
    said = judged(run, findings)
    assert said.trust == LIMITED
    assert words in said.reasons[0] and "'bee'" in said.reasons[0]


def test_a_class_without_a_verdict_was_not_examined(run, findings):
    findings.verdicts.clear()
    assert "classes 'ant', 'bee', 'cat'" in judged(run, findings).reasons[0]


def test_a_scan_that_was_stopped_at_its_last_look_limits_the_trust(run, findings):
    findings.exhausted = True
    assert judged(run, findings).trust == LIMITED


def test_a_report_that_says_nothing_of_the_classes_limits_the_trust(run, findings):
    findings.told = False
    assert judged(run, findings).trust == LIMITED


def test_a_poisoned_class_that_lost_no_file_is_named(run, findings):
    findings.verdicts[1] = POISONED
    said = judged(run, findings)
    assert said.trust == LIMITED
    assert said.reasons == ("class 'bee' looked poisoned, but no file was taken out of there",)
    accuse(findings, range(50, 55), suggested=0)
    assert judged(run, findings).trust == GOOD


def test_a_model_that_learned_nothing_is_no_result(run, findings):
    shifted = replace(run, labels=(run.labels + 1) % CLASSES)  # the oracle is always wrong
    said = judged(shifted, findings)
    assert said.trust == NONE
    assert "only 0% of its own training images" in said.reasons[0]


@pytest.mark.parametrize(
    "verdict, trust", [(CLEAN, GOOD), (SUSPICIOUS, LIMITED), (UNEXAMINED, LIMITED), (POISONED, NONE)]
)
def test_another_scan_looks_at_the_result_as_it_will_be_written(run, findings, monkeypatch, verdict, trust):
    seen = []

    def find(run, examples, config):
        seen.append((run.labels.tolist(), examples.tolist(), config.looks))
        again = Findings.nothing(len(run.labels))
        again.verdicts = {0: verdict, 1: CLEAN, 2: CLEAN}
        return again

    monkeypatch.setattr(gate, "find", find)
    accuse(findings, range(4), suggested=2)
    said = judged(run, findings, {0: 2}, rescan=True)
    assert (said.trust, said.rescan) == (trust, verdict)
    [(labels, examples, looks)] = seen
    assert labels == [2] + [0] * 49 + [1] * 50 + [2] * 50
    assert examples == [0, *range(4, 150)]
    assert looks == Config().looks


@pytest.mark.parametrize(
    "accepted, spared, trust, words",
    [
        ((0, 1), (), LIMITED, "suspects files in the result that were accepted, and no others"),
        ((0, 1), (1,), NONE, "another scan still calls class 'bee' poisoned, without a file of it to accuse"),
        ((0,), (), NONE, "another scan still finds 1 suspects in the result"),
        ((0,), (1, 2), NONE, "another scan still calls classes 'bee', 'cat' poisoned"),
    ],
)
def test_accepted_files_excuse_no_other_class(run, findings, monkeypatch, accepted, spared, trust, words):
    again = Findings.nothing(len(run.labels))
    again.verdicts = {0: POISONED} | {label: POISONED if label in spared else CLEAN for label in (1, 2)}
    again.suspects[:2] = True
    monkeypatch.setattr(gate, "find", lambda *_: again)
    which, everything = torch.zeros(len(run.labels), dtype=torch.bool), torch.arange(len(run.labels))
    which[list(accepted)] = True
    result = Result(everything, everything, run.labels, which)
    said = check(run, Oracle(), findings, result, Config(), rescan=True)
    assert said.trust == trust
    assert any(words in reason for reason in said.reasons)


@pytest.mark.parametrize("verdict, trust", [(None, LIMITED), (CLEAN, GOOD), (SUSPICIOUS, LIMITED)])
def test_a_scan_that_found_poison_but_not_its_own_test_is_trusted_no_further(
    run, findings, monkeypatch, verdict, trust
):
    again = Findings.nothing(len(run.labels))
    again.verdicts = {0: verdict or CLEAN, 1: CLEAN, 2: CLEAN}
    monkeypatch.setattr(gate, "find", lambda *_: again)
    findings.control_found = False
    assert judged(run, findings).trust == GOOD  # nothing was found: that class by class it saw nothing says the scan
    accuse(findings, range(4), suggested=2)
    said = judged(run, findings, rescan=verdict is not None)
    assert said.trust == trust
    assert (gate.UNTESTED in said.reasons) == (trust == LIMITED)


def report_on(root: Path, suspects: set[str], target: Path) -> Path:
    """A report that accuses ``suspects``, as a scan would have written it."""
    from advrbd.data import folder, pixels
    from advrbd.reports.report import ClassVerdict, FileResult, Report

    index, _ = pixels.load(folder.index(root), 16)
    assert suspects <= {file.path for file in index.files}
    files = [
        FileResult(file.path, index.class_name(file), file.status, file.sha256, file.path in suspects, 0.5)
        for file in index.files
    ]
    classes = tuple(ClassVerdict(name, 30, 0, CLEAN) for name in index.classes)
    target.write_bytes(render(Report(tuple(files), classes), "json"))
    return target


def test_strict_writes_nothing_that_is_not_fully_trusted_and_the_manifest_says_what_is(
    digits_folder, tmp_path, snapshot
):
    before = snapshot(digits_folder)
    half = {path.relative_to(digits_folder).as_posix() for path in sorted((digits_folder / "4").iterdir())[:15]}
    clean = TrainingSettings(epochs=1, minimum_steps=150)  # learns 300 digits well enough to be trusted
    config = Config(relearning=RelearningSettings(clean=clean))
    report = report_on(digits_folder, half, tmp_path / "report.json")
    with pytest.raises(UntrustedError, match="class '4' lost 15 of its 30 images"):
        advrbd.clean(digits_folder, tmp_path / "out", config, report=report, action="drop", strict=True)
    assert {path.name for path in tmp_path.iterdir()} == {"report.json"}

    report = report_on(digits_folder, set(), tmp_path / "report.json")
    cleaned = advrbd.clean(digits_folder, tmp_path / "out", config, report=report, strict=True)
    written = json.loads((tmp_path / "out" / MANIFEST).read_text())["settings"]["check"]
    assert (written["trust"], written["reasons"], written["rescan"]) == (GOOD, [], None) and cleaned.check.trust == GOOD
    assert [entry["kept"] for entry in written["classes"]] == [30] * 10
    assert snapshot(digits_folder) == before
