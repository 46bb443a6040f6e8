"""The stages, each on its own: what they compute, and that they touch nothing else."""

import copy
from dataclasses import replace

import pytest
import torch

from advrbd.config import (
    EnhancementSettings,
    IdentificationSettings,
    PartitionSettings,
    SeparationSettings,
    TrainingSettings,
)
from advrbd.data.pixels import Pixels
from advrbd.method.enhancement import Enhanced, _ambiguity, _halves, unlearning
from advrbd.method.identification import for_groups, identify, is_sharp
from advrbd.method.partition import partition
from advrbd.method.perturbation import divergence, random_patches
from advrbd.method.second_opinion import second_opinion
from advrbd.method.separation import Split, candidates, equal_classes, most_striking, separate
from advrbd.model.device import choose_device
from advrbd.model.factory import ModelSpec, build
from advrbd.model.inference import Outputs
from advrbd.model.run import Run
from advrbd.reports.report import CLEAN, POISONED

MANY = SeparationSettings().few


def of_classes(count: int, size: int = MANY) -> torch.Tensor:
    """Labels of ``size`` images, of ``count`` classes of one size."""
    return torch.arange(size) % count


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def network(generator):
    return build(ModelSpec("test_resnet", 4, 16), choose_device("cpu"), generator)


def test_patches_are_squares_of_the_side_that_was_asked_for_anywhere_in_the_image(generator):
    masks = random_patches(3000, 16, 5, generator)
    assert masks.shape == (3000, 1, 16, 16)
    assert masks.flatten(1).sum(dim=1).eq(25).all()
    assert masks.amax(dim=(1, 2)).sum(dim=1).eq(5).all()  # five columns: a square, not scattered
    assert masks.sum(dim=(0, 1)).gt(0).all()  # every pixel is reached


def test_divergence_grows_with_epsilon_and_leaves_the_network_as_it_was(network, generator):
    images = torch.rand(8, 3, 16, 16, generator=generator)
    before = copy.deepcopy(network.state_dict())

    def score(epsilon: float, steps: int) -> torch.Tensor:
        settings = PartitionSettings(epsilon=epsilon, steps=steps)
        return divergence(network, images, settings, choose_device("cpu"), torch.Generator().manual_seed(1))

    assert score(0.0, 2).abs().max() < 1e-4
    assert score(0.1, 2).mean() > score(0.01, 2).mean() > 0
    assert score(0.1, 2).mean() > score(0.1, 0).mean()  # the steps go against the prediction; noise alone does less
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_partition_takes_the_most_sensitive_share_of_every_class(network, generator):
    labels = torch.tensor([0, 1, 2, 3]).repeat(25)
    pixels = Pixels(torch.randint(0, 256, (100, 16, 16, 3), generator=generator, dtype=torch.uint8))
    run = Run(pixels, labels, ModelSpec("test_resnet", 4, 16), choose_device("cpu"), generator)
    examples = torch.arange(0, 100, 1)[labels != 2]
    parts = partition(run, network, examples, PartitionSettings(rate=0.2))
    assert parts.divergence.shape == parts.seeds.shape == (75,)
    for label in (0, 1, 3):
        members = labels[examples] == label
        assert parts.seeds[members].sum() == 5
        assert parts.divergence[members & parts.seeds].min() >= parts.divergence[members & ~parts.seeds].max()


def planted_features(generator, planted: int, class_size: int = 300, distance: float = 8.0):
    """Features of three Gaussian classes, of which class 1 has ``planted`` members shifted along one direction."""
    labels = torch.arange(3).repeat_interleave(class_size)
    features = torch.randn(len(labels), 20, generator=generator) @ torch.randn(20, 20, generator=generator)
    features += labels[:, None] * 5.0
    group = torch.zeros(len(labels), dtype=torch.bool)
    group[class_size : class_size + planted] = True
    direction = features[:class_size].std(dim=0)
    features[group] += distance * direction
    return Outputs(torch.zeros(len(labels), 3), features), labels, group


@pytest.mark.parametrize("planted", [20, 60, 170])
def test_separation_finds_the_planted_group_and_puts_it_up_for_examination(generator, planted):
    """Also where it is a small part of its class, and where the poison outnumbers the class but holds no seeds."""
    outputs, labels, group = planted_features(generator, planted)
    seeds = (torch.rand(len(labels), generator=generator) < 0.2) & ~group
    chosen = candidates(
        separate(outputs.features, labels, seeds, SeparationSettings(), generator), of_classes(3), SeparationSettings()
    )
    best = max(chosen, key=lambda split: split.bimodality)
    assert best.label == 1
    assert best.bimodality > 4
    assert (torch.isin(torch.arange(len(labels)), best.group) == group).float().mean() > 0.99


def test_the_core_of_a_part_that_overlaps_its_class_holds_hardly_any_strangers(generator):
    outputs, labels, group = planted_features(generator, 120, distance=0.3)
    seeds = (torch.rand(len(labels), generator=generator) < 0.2) & ~group

    def part(sure: float) -> torch.Tensor:
        settings = SeparationSettings(parts=(2,), examined=(1,), sure=sure, farthest=1.0)
        splits = separate(outputs.features, labels, seeds, settings, torch.Generator().manual_seed(0))
        return next(split.group for split in splits if split.label == 1)

    whole, core = part(0.0), part(0.9)
    strangers = [float((~group[members]).float().mean()) for members in (whole, core)]
    assert strangers[0] > 0.1
    assert strangers[1] < strangers[0] / 2
    assert torch.isin(core, whole).all()
    assert len(core) > 40
    assert torch.equal(part(1.0), whole)  # nothing is that sure, so all of it has to do


def test_of_a_group_that_is_a_small_part_of_its_class_those_are_learned_that_are_farthest_from_the_rest(generator):
    outputs, labels, group = planted_features(generator, 250, class_size=2400, distance=0.3)
    seeds = (torch.rand(len(labels), generator=generator) < 0.2) & ~group

    def core(**settings) -> torch.Tensor:
        how = SeparationSettings(parts=(2,), examined=(1,), sure=0.0, **settings)  # so that some strangers are left
        splits = separate(outputs.features, labels, seeds, how, torch.Generator().manual_seed(0))
        return next(split.group for split in splits if split.label == 1)

    whole, farthest = core(farthest=1.0), core()
    assert torch.isin(farthest, whole).all()
    assert len(farthest) == max(100, round(0.75 * len(whole))) < len(whole)
    assert (~group[farthest]).sum() < (~group[whole]).sum() / 2
    assert torch.equal(core(enough=len(whole)), whole)  # few are learned as they are
    assert torch.equal(core(rare=0.1), whole)  # and so is what is no small part


def split_of(label: int, parts: int, members: range, bimodality: float) -> Split:
    return Split(label, parts, torch.tensor(list(members)), bimodality, distance=5.0)


def test_every_number_of_parts_has_its_places_and_near_copies_take_none():
    settings = SeparationSettings(parts=(2, 8), examined=(1, 2))
    clearest, weaker = split_of(0, 2, range(0, 40), 3.0), split_of(1, 2, range(50, 80), 2.9)
    same, small, smaller, last = (
        split_of(0, 8, range(0, 38), 6.0),
        split_of(0, 8, range(0, 9), 5.0),
        split_of(1, 8, range(50, 55), 4.0),
        split_of(1, 8, range(60, 65), 3.5),
    )
    assert candidates((weaker, clearest, last, smaller, small, same), of_classes(2), settings) == (
        clearest,
        small,
        smaller,
    )


def test_where_images_are_few_the_farthest_group_of_each_cut_is_examined_as_well():
    settings = SeparationSettings(parts=(2, 8), examined=(1, 1))
    halves = [replace(split_of(label, 2, range(40), 4.0 - label), distance=5.0 + label) for label in range(3)]
    parts = [replace(split_of(label, 8, range(9), 4.0 - label), distance=5.0 - label) for label in range(2)]
    everything = tuple(halves + parts)
    assert candidates(everything, of_classes(3), settings) == (halves[0], parts[0])
    assert candidates(everything, of_classes(3, MANY - 1), settings) == (halves[0], halves[2], parts[0], parts[1])


def test_the_most_striking_group_of_each_class_is_a_small_part_of_it():
    half, quarter, faint = (split_of(0, parts, range(40), far) for parts, far in ((2, 9.0), (4, 8.0), (8, 2.0)))
    clear, other, larger = (
        split_of(0, 8, range(50, 90), 3.0),
        split_of(1, 8, range(100, 140), 4.0),
        split_of(2, 8, range(200, 300), 3.0),
    )
    assert most_striking((half, faint, other, clear, quarter, larger)) == (other, larger, clear)
    assert most_striking(()) == ()


def test_more_classes_have_more_candidates():
    splits = tuple(split_of(label, 2, range(label, label + 10), 3.0 + label / 100) for label in range(80))
    settings = SeparationSettings(parts=(2,), examined=(3,), classes=40)
    assert [split.label for split in candidates(splits, of_classes(80), settings)] == [79, 78, 77, 76, 75, 74]
    assert len(candidates(splits[:40], of_classes(40), settings)) == 3


def test_tiny_classes_take_no_part_in_how_many_there_are():
    ten, hundred = torch.full((10,), 1000), torch.full((100,), 250)
    assert (equal_classes(ten), equal_classes(hundred), equal_classes(torch.tensor([], dtype=torch.int64))) == (
        10,
        100,
        0,
    )
    assert equal_classes(torch.cat([ten, torch.full((90,), 20)])) < 15
    poisoned = torch.full((100,), 237)
    poisoned[3] += 1250  # five of six images of it
    assert 75 < equal_classes(poisoned) <= 100
    splits = tuple(split_of(label, 2, range(label, label + 10), 3.0 + label / 100) for label in range(80))
    settings = SeparationSettings(parts=(2,), examined=(3,), classes=40)
    labels = torch.cat([of_classes(10), torch.arange(10, 80)])
    assert len(candidates(splits, labels, settings)) == 3


def test_of_many_classes_relatively_more_large_groups_are_examined():
    settings = SeparationSettings()
    assert settings.places(MANY, 2) == settings.places(MANY, 25) == ((1, 0), (1, 0), (4, 0))
    assert settings.places(MANY, 26) == ((4, 0), (4, 0), (8, 0))
    assert settings.places(MANY, 100) == ((8, 0), (8, 0), (16, 0))
    assert settings.places(settings.few - 1, 100) == ((8, 4), (8, 4), (16, 4))


def test_classes_too_small_to_split_are_passed_over(generator):
    outputs, labels, group = planted_features(generator, planted=3, class_size=15)
    assert separate(outputs.features, labels, ~group, SeparationSettings(minimum_group=10), generator) == ()


def test_unlearning_draws_every_label_but_the_own_one_and_learning_never_changes_it(generator):
    learned = torch.zeros(1000, dtype=torch.bool)
    learned[:500] = True
    labels = unlearning(2, learned, 5)(torch.arange(1000), generator)
    assert labels[:500].eq(2).all()
    assert set(labels[500:].tolist()) == {0, 1, 3, 4}


def verdict_of(ambiguity: float, probability: torch.Tensor):
    labels = torch.zeros(len(probability), dtype=torch.int64)
    split = Split(0, 2, (probability > 0.5).nonzero().flatten(), bimodality=5.0, distance=8.0)
    enhanced = Enhanced(0, probability, ambiguity)
    return identify(labels, (split,), (enhanced,), IdentificationSettings())


def test_a_sharp_division_convicts_the_class_and_a_blurred_one_does_not():
    probability = torch.tensor([0.99, 0.95, 0.02, 0.01])
    sharp, blurred = verdict_of(0.05, probability), verdict_of(0.6, probability)
    assert sharp.verdicts == {0: POISONED}
    assert sharp.suspects.tolist() == [True, True, False, False]
    assert blurred.verdicts == {0: CLEAN}
    assert not blurred.suspects.any()
    assert sharp.score[0] > blurred.score[0]


def test_of_several_groups_of_a_class_the_sharpest_counts():
    labels, probability = torch.zeros(4, dtype=torch.int64), torch.tensor([0.99, 0.01, 0.01, 0.01])
    split = Split(0, 2, (probability > 0.5).nonzero().flatten(), bimodality=5.0, distance=8.0)
    natural, planted = Enhanced(0, 1 - probability, 0.8), Enhanced(0, probability, 0.02)
    for enhanced in ((natural, planted), (planted, natural)):
        found = identify(labels, (split,), enhanced, IdentificationSettings())
        assert found.suspects.tolist() == [True, False, False, False]
        assert found.evidence[0]["groups"] == 2


PLAIN_SUSPECTS = 20


def opinion(
    carries: float, own: float, unseen: bool, denied_share: float, conviction: float = 0.9, affinity: float = 0.5
):
    """The second opinion on one file beside plain suspects, whose label the model denies in ``denied_share``."""
    denied = round(denied_share * PLAIN_SUSPECTS)
    scores = torch.tensor([carries] + [0.99] * PLAIN_SUSPECTS + [0.01] * PLAIN_SUSPECTS)
    owns = torch.tensor([own] + [0.02] * denied + [0.98] * (PLAIN_SUSPECTS - denied) + [0.98] * PLAIN_SUSPECTS)
    seen = torch.tensor([unseen] + [True] * PLAIN_SUSPECTS + [False] * PLAIN_SUSPECTS)
    return second_opinion(scores, conviction, owns, seen, affinity, IdentificationSettings())


def carries(*arguments, **named) -> float:
    return float(opinion(*arguments, **named).carries[0])


def test_a_second_opinion_counts_where_labels_were_falsified():
    assert carries(0.3, own=0.02, unseen=False, denied_share=1.0) > 0.9  # learned with its label, and denied
    assert carries(0.3, own=0.98, unseen=False, denied_share=1.0) == pytest.approx(0.3, abs=1e-4)
    assert carries(0.8, own=0.9, unseen=True, denied_share=1.0) < 0.5  # a bystander
    assert carries(0.8, own=0.1, unseen=True, denied_share=1.0) == pytest.approx(0.8, abs=1e-4)
    assert carries(0.999, own=0.9, unseen=True, denied_share=1.0) > 0.5  # it carries the trigger plainly


def test_a_second_opinion_clears_no_file_in_a_clean_label_attack():
    assert carries(0.8, own=0.9, unseen=True, denied_share=0.0) > 0.75
    assert carries(0.3, own=0.02, unseen=False, denied_share=0.0) < 0.5


@pytest.mark.parametrize("denied_share", [0.1, 0.9])  # a model that is right on half of the images denies true labels
def test_an_affinity_to_their_label_acquits_a_class_unless_its_group_is_very_sharp(denied_share):
    def conviction(first: float, affinity: float) -> float:
        return opinion(0.99, 0.9, True, denied_share, first, affinity).conviction

    assert conviction(0.8, affinity=0.9) < 0.25  # red cars
    assert conviction(0.99, affinity=0.9) > 0.5  # a clean-label attack
    assert conviction(0.7, affinity=0.5) > 0.85  # a dirty-label attack


@pytest.mark.parametrize(
    ("carriers", "undecided", "convicts"), [(9, 2, False), (9, 0, False), (100, 2, True), (100, 60, False)]
)
def test_a_few_images_that_fall_sharply_apart_convict_nobody(carriers, undecided, convicts):
    probability = torch.tensor([0.99] * carriers + [0.4] * undecided + [0.01] * 500)
    ambiguity = _ambiguity(probability, EnhancementSettings())
    assert is_sharp(Enhanced(0, probability, ambiguity), IdentificationSettings()) == convicts


@pytest.mark.parametrize(
    ("ambiguity", "versions", "verdict"),
    [(0.075, 1.0, POISONED), (0.075, 3.0, POISONED), (0.075, 20.0, CLEAN), (0.5, 20.0, CLEAN)],
)
def test_versions_of_a_few_photos_accuse_nobody(ambiguity, versions, verdict):
    """Forty files fall sharply apart, but they are two photos."""
    probability = torch.tensor([0.99] * 40 + [0.01] * 500)
    labels, split = torch.zeros(540, dtype=torch.int64), Split(0, 2, torch.arange(40), 5.0, 8.0)
    found = identify(labels, (split,), (Enhanced(0, probability, ambiguity, versions),), IdentificationSettings())
    assert found.verdicts == {0: verdict}
    assert int(found.suspects.sum()) == (40 if verdict == POISONED else 0)
    assert ("versions" in found.evidence[0]) == (ambiguity * versions == 1.5)  # why a sharp division says nothing


def test_halves_cut_every_part_evenly(generator):
    parts = torch.arange(100) < 11, torch.arange(100) >= 60
    half = _halves(torch.arange(100), parts, generator)
    assert [int(half[part].sum()) for part in parts] == [5, 20]


def test_halves_cut_no_scene_unless_it_is_much_of_its_part(generator):
    scene, everything = torch.arange(100) // 10, (torch.ones(100, dtype=torch.bool),)
    half = _halves(scene, everything, generator)
    assert [int(half[scene == number].sum()) % 10 for number in range(10)] == [0] * 10
    assert int(half.sum()) == 50
    scene[:60] = 0
    half = _halves(scene, everything, generator)
    assert int(half[scene == 0].sum()) in (0, 60)
    scene[:80] = 0
    half = _halves(scene, everything, generator)
    assert int(half.sum()) == 50
    assert 0 < int(half[scene == 0].sum()) < 80
    assert _halves(scene[:0], (torch.ones(0, dtype=torch.bool),), generator).tolist() == []


def test_a_large_group_that_stands_out_a_little_less_is_examined_before_a_small_one():
    small = Split(0, 2, torch.arange(16), bimodality=5.0, distance=8.0)
    large = Split(1, 2, torch.arange(100, 356), bimodality=4.0, distance=8.0)
    blurred = Split(2, 2, torch.arange(400, 656), bimodality=2.0, distance=8.0)
    settings = SeparationSettings(parts=(2,), examined=(2,))
    assert [split.label for split in candidates((small, large, blurred), of_classes(2), settings)] == [1, 0]


def test_a_class_that_was_not_enhanced_has_no_suspects_whatever_its_split():
    labels = torch.zeros(4, dtype=torch.int64)
    split = Split(0, 2, torch.tensor([0, 1]), bimodality=9.0, distance=20.0)
    found = identify(labels, (split,), (), IdentificationSettings())
    assert not found.suspects.any()
    assert found.score[0] > found.score[2]


def test_training_is_the_same_for_the_same_generator_and_learns(generator):
    labels = torch.arange(4).repeat(40)
    images = torch.randint(0, 100, (160, 16, 16, 3), generator=generator, dtype=torch.uint8)
    images[torch.arange(160), labels * 4, :, :] = 255  # a bright line tells the class
    settings = TrainingSettings(epochs=6, minimum_steps=60, batch_size=32, flip=False)

    def trained():
        own = torch.Generator().manual_seed(3)
        run = Run(Pixels(images), labels, ModelSpec("test_resnet", 4, 16), choose_device("cpu"), own)
        network = run.fresh_network()
        run.train(network, torch.arange(160), settings, "train")
        return run.infer(network, torch.arange(160)).logits

    first, second = trained(), trained()
    assert torch.equal(first, second)
    assert (first.argmax(dim=1) == labels).float().mean() > 0.95


def test_the_more_groups_are_examined_the_sharper_one_has_to_be():
    def conviction(ambiguity: float, groups: int) -> float:
        split = Split(0, 2, torch.arange(4), 3.0, 5.0)
        entry = Enhanced(0, torch.ones(4), ambiguity)
        settings = for_groups(IdentificationSettings(), groups)
        return identify(torch.zeros(4, dtype=torch.int64), (split,), (entry,), settings).convictions[0]

    assert (
        for_groups(IdentificationSettings(), 6) == for_groups(IdentificationSettings(), 0) == IdentificationSettings()
    )
    odds = [conviction(0.25, groups) / (1 - conviction(0.25, groups)) for groups in (6, 24)]
    assert odds[0] / odds[1] == pytest.approx(4)
    assert conviction(0.18, 24) > 0.5 > conviction(0.3, 24)
    assert conviction(0.3, 6) > 0.5
    assert conviction(0.05, 24) > 0.95
