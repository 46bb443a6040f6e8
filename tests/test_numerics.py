"""Degenerate images, labels and numbers: a sensible answer or *could not look*, never a warning or a wild figure."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import advrbd
from advrbd.attacks.base import CLEAN as CLEAN_FILE
from advrbd.attacks.base import POISON
from advrbd.baselines.base import ascent
from advrbd.benchmark.digits import write_image_folder
from advrbd.benchmark.metrics import detection
from advrbd.config import (
    Config,
    EnhancementSettings,
    IdentificationSettings,
    PartitionSettings,
    RelearningSettings,
    SeparationSettings,
    TrainingSettings,
)
from advrbd.data.duplicates import MANY, warnings_of
from advrbd.data.folder import OK, UNREADABLE, FolderIndex, ImageFile
from advrbd.data.pixels import Pixels
from advrbd.errors import DivergedError, ModelError
from advrbd.events import Caution, ignore
from advrbd.method.enhancement import Enhanced, _ambiguity
from advrbd.method.findings import Findings, as_report
from advrbd.method.identification import identify
from advrbd.method.look import find
from advrbd.method.second_opinion import second_opinion
from advrbd.method.separation import Split, candidates, separate
from advrbd.model.device import choose_device
from advrbd.model.factory import ModelSpec
from advrbd.model.run import Run
from advrbd.preparation import prepare
from advrbd.reports.report import POISONED, UNEXAMINED, FileResult
from advrbd.reports.tables import render

CPU = choose_device("cpu")
QUICK = SeparationSettings(starts=1, parts=(2, 4), examined=(1, 2), minimum_group=5)
HARDLY = TrainingSettings(epochs=1, minimum_steps=0, batch_size=32)
HARDLY_ANYTHING = Config(
    warm_up=HARDLY,
    partition=PartitionSettings(masks=1, steps=1),
    separation=replace(SeparationSettings(), starts=1),
    enhancement=EnhancementSettings(rounds=2, steps=2, training=HARDLY),
)
WILD = TrainingSettings(epochs=2, minimum_steps=0, learning_rate=1e30)


def run_on(images: np.ndarray, labels: list[int], notify=ignore) -> Run:
    pixels, generator = Pixels(torch.from_numpy(images)), torch.Generator().manual_seed(0)
    mean, std = pixels.statistics(torch.arange(len(images)), generator)
    spec = ModelSpec("test_resnet", max(labels) + 1, images.shape[1], mean=mean, std=std)
    return Run(pixels, torch.tensor(labels), spec, CPU, generator, notify)


def noise(count: int, side: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def evenly(count: int, classes: int = 3) -> list[int]:
    return [number * classes // count for number in range(count)]


FOLDERS = {
    "all the same": (np.repeat(noise(1), 120, axis=0), evenly(120)),
    "black": (np.zeros_like(noise(120)), evenly(120)),
    "each one colour": (np.broadcast_to(noise(120)[:, :1, :1], noise(120).shape).copy(), evenly(120)),
    "grey": (np.repeat(noise(120)[..., :1], 3, axis=3), evenly(120)),
    "one class black": (noise(120) * (np.array(evenly(120)) != 1)[:, None, None, None], evenly(120)),
    "copies of one class under every label": (np.tile(noise(40), (3, 1, 1, 1)), evenly(120)),
    "a class of one image": (noise(101), [0] * 50 + [1] * 50 + [2]),
    "two classes, 30 to 1": (noise(310), [0] * 300 + [1] * 10),
    "the large class last": (noise(124), [0] * 4 + [1] * 120),
    "a class for every image": (noise(100), list(range(100))),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_with_nothing_to_learn_are_unexamined_and_accuse_nobody(name):
    images, labels = FOLDERS[name]
    findings = find(run_on(images.astype(np.uint8), labels), torch.arange(len(images)), HARDLY_ANYTHING)
    assert findings.verdicts == dict.fromkeys(labels, UNEXAMINED)  # of every class, also of one too small to be cut
    assert not findings.suspects.any()
    assert findings.cautions
    assert ((findings.score >= 0) & (findings.score <= 1)).all()
    for evidence in findings.evidence.values():
        assert all(math.isfinite(figure) for figure in evidence.values())


def test_images_without_contrast_are_normalised_by_finite_numbers():
    run = run_on(np.zeros_like(noise(100)), evenly(100))
    assert min(run.spec.std) > 0
    assert run.infer(run.fresh_network(), torch.arange(100)).logits.isfinite().all()


@st.composite
def classes_of_features(draw):
    """Features as a wild model might give them, with the labels and seeds that go with them."""
    sizes = draw(st.lists(st.integers(1, 40), min_size=2, max_size=4))
    labels = torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    features = torch.randn(len(labels), draw(st.integers(1, 6)), generator=generator)
    features *= 10.0 ** draw(st.sampled_from([-30, -7, 0, 15, 30]))
    features += draw(st.sampled_from([0.0, 1.0, 1e6]))
    if draw(st.booleans()):
        features[:, -1] = 1.0
    if draw(st.booleans()):
        features = features.sign()
    if draw(st.booleans()):
        features[labels == 0] = features[0].clone()
    if draw(st.booleans()):
        features[-1] = 1e20
    seeds = torch.rand(len(labels), generator=generator) < draw(st.sampled_from([0.0, 0.05, 0.2, 1.0]))
    return features, labels, seeds


@settings(max_examples=60)
@given(classes_of_features())
def test_separation_gives_parts_of_classes_and_finite_figures_whatever_the_features(drawn):
    features, labels, seeds = drawn
    before = features.clone(), seeds.clone()
    splits = separate(features, labels, seeds, QUICK, torch.Generator().manual_seed(0))
    assert torch.equal(features, before[0]) and torch.equal(seeds, before[1])
    for split in splits:
        size, most = len(split.group), int((labels == split.label).sum()) - QUICK.minimum_group
        assert split.group.tolist() == sorted(set(split.group.tolist()))
        assert labels[split.group].eq(split.label).all()
        assert QUICK.minimum_group <= size <= most
        assert math.isfinite(split.bimodality) and split.bimodality >= 0
        assert math.isfinite(split.distance) and split.distance >= 0
    chosen = candidates(splits, labels, QUICK)
    assert len(chosen) <= sum(QUICK.examined) + len(QUICK.parts)
    assert len({id(split) for split in chosen} - {id(split) for split in splits}) == 0
    assert bool(chosen) == bool(splits)


def test_a_class_whose_seeds_are_all_copies_of_the_control_is_cut_all_the_same():
    generator = torch.Generator().manual_seed(0)
    labels, features = evenly(120), torch.randn(120, 8, generator=generator)
    features[50:60] += 20  # the planted ones of the second class
    seeds = torch.tensor(labels) != 1
    splits = separate(features, torch.tensor(labels), seeds, SeparationSettings(), generator)
    clearest = max((split for split in splits if split.label == 1), key=lambda split: split.bimodality)
    assert clearest.group.tolist() == list(range(50, 60))


PROBABILITIES = st.one_of(st.sampled_from([0.0, 1.0, 0.5, 1e-30, 1 - 1e-7]), st.floats(0, 1, width=32))
FILES = st.lists(st.tuples(PROBABILITIES, PROBABILITIES, st.booleans()), min_size=1, max_size=40)
AMBIGUITIES = st.one_of(st.sampled_from([0.0, 1e-9, 99.0, math.inf]), st.floats(0, 1e6))


@settings(max_examples=200)
@given(FILES)
def test_the_ambiguity_is_never_less_than_what_could_not_be_seen(files):
    probability = torch.tensor([carries for carries, _, _ in files])
    ambiguity = _ambiguity(probability, EnhancementSettings())
    carriers = int((probability > 0.5).sum())
    if carriers in (0, len(files)):
        assert ambiguity == math.inf
    else:
        assert 3 / min(carriers, len(files) - carriers) <= ambiguity < math.inf


@settings(max_examples=200)
@given(FILES, AMBIGUITIES, AMBIGUITIES, st.floats(0, 1e7))
def test_scores_are_probabilities_and_only_convicted_classes_have_suspects(files, one, other, bimodality):
    """Class 0 was examined twice, class 1 was only cut, class 2 was too small for either."""
    count = len(files)
    labels = torch.arange(3).repeat_interleave(count)
    carries = torch.zeros(2, 3 * count)
    carries[:, :count] = torch.tensor([file[:2] for file in files]).T
    splits = tuple(Split(label, 2, torch.arange(label * count, label * count + 1), bimodality, 1.0) for label in (0, 1))
    enhanced = (Enhanced(0, carries[0], one), Enhanced(0, carries[1], other))
    found = identify(labels, splits, enhanced, IdentificationSettings())
    assert found.score.shape == found.carries.shape == found.suspects.shape == (3 * count,)
    for probability in (found.score, found.carries):
        assert ((probability >= 0) & (probability <= 1)).all()
    assert set(found.verdicts) == {0, 1}
    assert 0 <= found.convictions[0] <= 1
    assert not found.suspects[count:].any()
    assert not found.suspects.any() or found.verdicts[0] == POISONED
    assert all(math.isfinite(figure) for evidence in found.evidence.values() for figure in evidence.values())


@settings(max_examples=200)
@given(FILES, PROBABILITIES, PROBABILITIES)
def test_a_second_opinion_stays_a_probability_and_affinity_never_makes_a_class_worse(files, conviction, affinity):
    carries, own = (torch.tensor([file[which] for file in files]) for which in (0, 1))
    unseen = torch.tensor([file[2] for file in files])
    heard = second_opinion(carries, conviction, own, unseen, affinity, IdentificationSettings())
    assert heard.carries.shape == carries.shape
    assert ((heard.carries >= 0) & (heard.carries <= 1)).all()
    assert 0 <= heard.conviction <= 1
    assert 0 < heard.denied < 1
    if affinity > 0.7:
        assert heard.conviction <= max(conviction, 1e-4)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from([CLEAN_FILE, POISON]), st.booleans(), PROBABILITIES), max_size=30))
def test_what_a_detection_counts_adds_up(rows):
    files = [
        FileResult(str(number), "a", OK, "", suspect, score) for number, (_, suspect, score) in enumerate(rows)
    ] + [FileResult("unread", "a", UNREADABLE, "")]
    found = detection(files, {str(number): role for number, (role, _, _) in enumerate(rows)})
    assert found.poisoned + found.clean == len(rows)
    assert found.found + found.false_alarms == sum(suspect for _, suspect, _ in rows)
    both = bool(found.poisoned and found.clean)
    assert (0 <= found.auroc <= 1) if both else math.isnan(found.auroc)
    for rate, count in ((found.true_positive_rate, found.poisoned), (found.false_positive_rate, found.clean)):
        assert (0 <= rate <= 1) if count else math.isnan(rate)


class Brittle(nn.Module):
    """Two weights as logits, and no numbers at all once one of them leaves -1..1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.where(self.weight.abs() > 1, torch.nan, self.weight).expand(len(pixels), 2)


def test_a_training_that_diverges_is_begun_once_more_from_where_it_started():
    told: list = []
    run, network = run_on(noise(8), [0] * 8, told.append), Brittle()
    once = TrainingSettings(epochs=2, minimum_steps=0, learning_rate=500, flip=False)  # AdamW: a first step of 5
    loss = run.train(network, torch.arange(8), once, "train")
    assert 0 < loss < math.log(2)
    assert network.weight.abs().max() < 1
    assert [event.message for event in told if isinstance(event, Caution)] == [
        "training diverged (train): once more with a tenth of the learning rate"
    ]


@pytest.mark.parametrize(("objective", "cautions"), [(None, 1), (ascent, 0)])
def test_a_training_that_diverges_again_or_has_no_bound_is_an_error(objective, cautions):
    told: list = []
    run, network = run_on(noise(8), [0] * 8, told.append), Brittle()
    with pytest.raises(DivergedError, match="training diverged"):
        run.train(network, torch.arange(8), replace(WILD, learning_rate=1e5), "train", objective=objective)
    assert sum(isinstance(event, Caution) for event in told) == cautions


@pytest.mark.parametrize("count", [0, 1])
def test_there_is_no_training_without_images(count):
    run = run_on(noise(8), evenly(8))
    with pytest.raises(ModelError, match="too few"):
        run.train(run.fresh_network(), torch.arange(count), HARDLY, "train")


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_model_that_says_no_numbers_gives_no_verdict(value):
    run = run_on(noise(8), evenly(8))
    network = run.fresh_network()
    with torch.no_grad():
        network.backbone.get_classifier().bias[0] = value
    with pytest.raises(DivergedError, match="another --model"):
        run.infer(network, torch.arange(8))


def test_a_scan_and_a_clean_that_diverge_end_in_one_line_and_leave_nothing(digits_folder, tmp_path):
    config = Config(model="test_resnet", device="cpu", warm_up=WILD)
    with pytest.raises(ModelError, match=r"^training diverged \(warm-up\)"):
        advrbd.scan(digits_folder, config)

    index, _ = prepare(digits_folder, config)
    report = tmp_path / "report.json"
    report.write_bytes(render(as_report(index, Findings.nothing(300), {}), "json"))
    config = Config(model="test_resnet", device="cpu", relearning=RelearningSettings(clean=WILD))
    with pytest.raises(ModelError, match=r"^training diverged \(relearn\)"):
        advrbd.clean(digits_folder, tmp_path / "out", config, report=report)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def listed(*contents: tuple[str, str, int]) -> FolderIndex:
    """An index with so many files of a class (its letter) that have the same bytes."""
    classes = tuple(sorted({label for label, _, _ in contents}))
    files = [
        ImageFile(f"{label}/{number}", classes.index(label), OK, sha256)
        for label, sha256, count in contents
        for number in range(count)
    ]
    return FolderIndex(None, classes, tuple(files))


def test_few_copies_in_one_class_are_worth_no_word():
    assert warnings_of(listed(("a", "one", MANY - 1), ("a", "two", 1), ("b", "three", 2))) == ()
    unread = listed(("a", "", 50), ("b", "", 50))
    files = tuple(replace(file, status=UNREADABLE) for file in unread.files)
    assert warnings_of(replace(unread, files=files)) == ()


def test_copies_under_two_labels_and_many_copies_are_told():
    (torn,) = warnings_of(listed(("a", "one", 2), ("b", "one", 1), ("b", "two", 4)))
    assert torn.startswith("3 files have copies in another class")
    (many,) = warnings_of(listed(("a", "one", MANY + 5), ("a", "two", MANY), ("b", "three", 1)))
    assert f"class 'a' has one {MANY + 5} times." in many
    (many,) = warnings_of(listed(*((letter, letter, MANY) for letter in "abcdefgh")))
    assert "'c' has one 10 times, and 5 more classes." in many and "'d'" not in many


def test_copies_reach_the_terminal_and_the_report(tmp_path):
    images = noise(100)
    images[60:75] = images[0]
    write_image_folder(images, np.array(evenly(100, 2)), tmp_path / "data")
    told: list = []
    index, _ = prepare(tmp_path / "data", Config(model="test_resnet", device="cpu"), notify=told.append)
    cautions = as_report(index, Findings.nothing(100), {}).cautions
    assert list(cautions) == [event.message for event in told if isinstance(event, Caution)]
    assert cautions[0].startswith("16 files have copies in another class")
    assert "class '1' has one 15 times" in cautions[1]
