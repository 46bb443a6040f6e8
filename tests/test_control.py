"""The positive control: a backdoor of our own, seen by nobody else, and what its loss does to the verdict."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import advrbd
from advrbd.config import Config, EnhancementSettings, SeparationSettings, TrainingSettings
from advrbd.data.pixels import Extended, Pixels
from advrbd.method import look
from advrbd.method.control import plant_control
from advrbd.method.findings import Findings
from advrbd.method.look import _check_separation
from advrbd.method.separation import Split, separate
from advrbd.model.device import choose_device
from advrbd.model.factory import ModelSpec
from advrbd.model.run import Run
from advrbd.reports.report import CLEAN, UNEXAMINED


@pytest.fixture
def run() -> Run:
    generator = torch.Generator().manual_seed(0)
    pixels = Pixels(torch.randint(0, 256, (400, 20, 20, 3), generator=generator, dtype=torch.uint8))
    labels = torch.arange(4).repeat(100)
    return Run(pixels, labels, ModelSpec("test_resnet", 4, 20), choose_device("cpu"), generator)


def test_an_extended_store_holds_both_parts_in_order(run):
    more = torch.randint(0, 256, (7, 20, 20, 3), generator=run.generator, dtype=torch.uint8)
    store, cpu = Extended(run.pixels.images, more), torch.device("cpu")
    assert (len(store), store.size) == (407, 20)
    everything = Pixels(torch.cat([run.pixels.images, more]))
    for indices in (torch.tensor([0, 399, 400, 406, 3]), torch.tensor([5, 6]), torch.tensor([401])):
        assert torch.equal(store.batch(indices, cpu), everything.batch(indices, cpu))


def test_the_control_is_a_group_of_copies_with_one_patch_and_a_wrong_label(run):
    before, examples = run.pixels.images.clone(), torch.arange(0, 400, 2)  # labels 0 and 2 only
    control = plant_control(run, examples, Config(control_share=0.3))
    assert torch.equal(run.pixels.images, before)
    assert len(run.labels) == 400
    assert control.examples.tolist() == list(range(400, 430))  # .3 of an average class of 100
    assert control.label in (0, 2)
    assert control.run.labels[control.examples].eq(control.label).all()
    assert torch.equal(control.run.labels[:400], run.labels)
    copies = control.run.pixels.more
    sources = torch.tensor([int((copy != before).flatten(1).sum(dim=1).argmin()) for copy in copies])
    assert torch.isin(sources, examples).all()
    assert run.labels[sources].ne(control.label).all()
    changed = (copies != before[sources]).any(dim=3).any(dim=0).nonzero()  # where any copy differs
    assert (changed.max(dim=0).values - changed.min(dim=0).values).max() < 20 // 5
    place = tuple(
        slice(int(low), int(high) + 1) for low, high in zip(changed.min(0).values, changed.max(0).values, strict=True)
    )
    patches = copies[(slice(None), *place)]
    assert patches.eq(patches[0]).all()  # the same in every copy


ONCE = TrainingSettings(epochs=1, minimum_steps=0, learning_rate=1e-6)
HARDLY = Config(
    model="test_resnet",
    device="cpu",
    warm_up=ONCE,
    enhancement=EnhancementSettings(rounds=1, steps=1, training=ONCE),
)


def test_a_scan_whose_model_learned_nothing_says_that_it_could_not_look(digits_folder):
    report = advrbd.scan(digits_folder, HARDLY)
    assert not report.suspects
    assert report.verdict == UNEXAMINED
    assert len(report.unexamined) == 10
    assert any("could not have seen a backdoor" in caution for caution in report.cautions)
    assert report.run["control_found"] is False
    assert report.run["looks"] == 1  # another control is no help to it


@pytest.mark.parametrize(
    ("found", "allowed", "looks", "verdict"),
    [
        ([True], 4, 1, CLEAN),
        ([False, True], 4, 2, CLEAN),
        ([False, False, True], 4, 3, CLEAN),
        ([False, False, False], 4, 3, UNEXAMINED),
        ([False], 1, 1, UNEXAMINED),
    ],
)
def test_a_control_that_is_lost_is_planted_twice_more(digits_folder, monkeypatch, found, allowed, looks, verdict):
    planted = []

    def find_control(control, *_):
        planted.append(control)
        return found[len(planted) - 1]

    monkeypatch.setattr(look, "find_control", find_control)
    monkeypatch.setattr(look, "LEARNED", -1.0)  # so short a training counts as enough
    config = replace(HARDLY, looks=allowed, warm_up=TrainingSettings(epochs=2, minimum_steps=0))
    report = advrbd.scan(digits_folder, config)
    assert (report.run["looks"], report.run["control_found"]) == (looks, found[-1])
    assert {row.verdict for row in report.classes if row.evidence} == {verdict}
    assert len(planted) == looks
    assert not report.run["exhausted"]
    copies = [control.run.pixels.more for control in planted]
    # copies of other shapes aren't equal, either
    assert all(not torch.equal(before, after) for before, after in pairwise(copies))


def test_classes_that_could_not_be_cut_are_named_with_the_reason(run):
    labels = torch.tensor([0, 1, 2]).repeat_interleave(30).tolist() + [3] * 15
    found = Findings.nothing(len(labels))
    splits = tuple(Split(label, 2, torch.arange(0), 3.0, 5.0) for label in (0, 1))
    _check_separation(run, torch.tensor(labels), splits, Config(), found)
    few, alike = found.cautions
    assert few.startswith("1 classes have fewer than 20 images")
    assert alike.startswith("in 1 classes no group of 10 images or more stands apart")


def test_images_that_all_look_alike_are_not_cut():
    labels = torch.tensor([0, 1]).repeat_interleave(40)
    features = torch.randn(80, 8, generator=torch.Generator().manual_seed(0))
    features[labels == 1] = 1.0
    splits = separate(
        features,
        labels,
        torch.ones(80, dtype=torch.bool),
        SeparationSettings(),
        torch.Generator().manual_seed(0),
    )
    assert {split.label for split in splits} == {0}
