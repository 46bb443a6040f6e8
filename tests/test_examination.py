"""Which side of a cut is examined, and how patiently."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

import advrbd.method.separation
from advrbd.config import Config, SeparationSettings
from advrbd.method.enhancement import Enhanced
from advrbd.method.examination import examine, examine_cut, patient, variety
from advrbd.method.findings import Findings
from advrbd.method.hearing import is_acquitted
from advrbd.method.separation import Split, separate
from advrbd.model.inference import Outputs

PLANTED, NATURAL = torch.arange(100, 160), torch.arange(160, 300)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def cut_in_two(generator, seeds: torch.Tensor) -> Split:
    """The cut of class 1 of three Gaussian ones, in which 60 of 200 images are shifted."""
    labels = torch.tensor([0] * 100 + [1] * 200 + [2] * 100)
    features = torch.randn(400, 10, generator=generator) + 5.0 * labels[:, None]
    features[PLANTED] += 6.0 * torch.eye(10)[0]
    settings = SeparationSettings(parts=(2,), examined=(1,))
    splits = separate(features, labels, seeds, settings, generator)
    return next(split for split in splits if split.label == 1)


def test_a_cut_in_two_has_both_halves_the_one_that_the_seeds_avoid_first(generator):
    seeds = torch.rand(400, generator=generator) < 0.2
    seeds[PLANTED] = False
    split = cut_in_two(generator, seeds)
    assert torch.isin(split.group, PLANTED).all()
    assert split.turned is not None
    assert torch.isin(split.turned.group, NATURAL).all()
    assert len(split.turned.group) > 130
    assert split.turned.turned is None


def test_poisoned_seeds_put_the_planted_half_second_but_do_not_lose_it(generator):
    """As with WaNet at full size: the sensitive images of the class are the poisoned ones."""
    seeds = torch.rand(400, generator=generator) < 0.2
    seeds[NATURAL], seeds[PLANTED] = False, True
    split = cut_in_two(generator, seeds)
    assert torch.isin(split.group, NATURAL).all()
    assert split.turned is not None
    assert torch.isin(split.turned.group, PLANTED).all()


def test_only_a_class_cut_in_two_has_another_half(generator):
    labels, features = torch.zeros(200, dtype=torch.int64), torch.randn(200, 10, generator=generator)
    settings = SeparationSettings(parts=(4,), examined=(1,))
    splits = separate(features, labels, labels == 0, settings, generator)
    assert splits
    assert all(split.turned is None for split in splits)


def examined(
    first: float,
    second: float,
    other: torch.Tensor | None = NATURAL,
    acquitted: torch.Tensor = NATURAL[:0],
) -> tuple[list[tuple[str, float]], list[str]]:
    """What stands after the examination of ``PLANTED`` and the half ``other``, with the ambiguity of each, and in which
    order they were enhanced."""
    asked = []

    def enhance(split, *_):
        name = "planted" if split.group is PLANTED else "natural"
        asked.append(name)
        carriers = torch.zeros(400)
        carriers[split.group] = 1.0
        return Enhanced(1, carriers, first if name == "planted" else second)

    findings = Findings.nothing(400)
    findings.acquitted[acquitted] = True
    split = Split(1, 2, PLANTED, 4.0, 6.0, other)
    seeds = torch.zeros(400, dtype=torch.bool)
    judged = examine_cut(
        split, enhance, seeds, lambda entry: is_acquitted(entry, torch.arange(400), findings), Config()
    )
    return [("planted" if half.group is PLANTED else "natural", entry.ambiguity) for half, entry in judged], asked


def test_what_is_surely_planted_leaves_the_other_half_alone():
    assert examined(0.01, 0.0) == ([("planted", 0.01)], ["planted"])


@pytest.mark.parametrize("first", [0.3, 0.8])
def test_unless_the_first_half_is_surely_planted_both_are_examined(first):
    judged, asked = examined(first, 0.07)
    assert judged == [("planted", first), ("natural", 0.07)]
    assert asked == ["planted", "natural"]


def test_only_a_doubtful_answer_is_asked_for_again_and_only_of_the_clearer_half():
    assert examined(0.3, 0.9)[1] == ["planted", "natural", "planted"]
    assert examined(0.3, 0.2)[1] == ["planted", "natural", "natural"]
    assert examined(0.8, 0.9)[1] == ["planted", "natural"]


def mixed_up(
    natural: float,
    left: float = 0.05,
    has: torch.Tensor = NATURAL,
    acquitted: bool = False,
    planted_first: bool = False,
) -> tuple[list[str], list[str]]:
    """Which sides of a class of 60 planted and 140 natural images were asked about, and which stand, the clearest
    first, where the first half is 60 natural images, with the ambiguity ``natural``, the other a mixture and 3.0, and
    the rest of what ``has`` what the first half has, ``left``. ``planted_first``: the roles are exchanged."""
    first, asked = NATURAL[:60], []
    mixture = torch.cat([NATURAL[60:], PLANTED])

    def name(split: Split) -> str:
        return "first" if split.group is first else "mixture" if split.group is mixture else "rest"

    seeds = torch.zeros(400, dtype=torch.bool)

    def enhance(split, trusted, _settings):
        asked.append(name(split))
        carries = torch.zeros(400)
        carries[100:300] = 0.001
        carries[has if split.group is first else split.group] = 0.95
        carries[has[-5:]] = 0.4  # some are undecided: neither learned nor trusted
        if asked[-1] == "rest":
            assert torch.equal(trusted.nonzero().flatten(), has[:-5])
            assert torch.equal(split.group, torch.arange(100, 300)[~torch.isin(torch.arange(100, 300), has)])
        else:
            assert trusted is seeds
        return Enhanced(1, carries, {"first": natural, "mixture": 3.0, "rest": left}[asked[-1]])

    def various(label, some):
        assert label == 1
        return float(some[PLANTED].float().mean()) * (-1 if planted_first else 1)

    split = Split(1, 2, first, 4.0, 6.0, mixture)
    judged = examine_cut(
        split, enhance, seeds, lambda entry: acquitted and bool(entry.probability[160] > 0.5), Config(), various
    )
    for half, entry in judged:
        if name(half) == "rest":
            assert entry.ambiguity == pytest.approx((natural + left) / 2)
    return asked, [name(half) for half, _ in sorted(judged, key=lambda one: one[1].ambiguity)]


def test_where_most_of_a_class_stands_apart_its_rest_is_examined_against_it():
    """As with WaNet at full size: the seeds avoid what is natural, the other half is a mixture, what is left of that
    is planted."""
    assert mixed_up(0.3) == (["first", "mixture", "rest"], ["rest", "first", "mixture"])
    assert mixed_up(0.3, left=0.2)[0] == ["first", "mixture", "rest"]  # in doubt, but asked from both sides
    assert mixed_up(0.3, left=1.2) == (["first", "mixture", "rest", "first"], ["first", "rest", "mixture"])


def test_the_rest_of_an_acquitted_class_is_examined_however_sharp_that_was():
    assert mixed_up(0.01, acquitted=True) == (["first", "mixture", "rest"], ["rest", "mixture"])


@pytest.mark.parametrize("natural", [0.01, 0.8])
def test_the_rest_of_a_class_is_let_be_where_the_answer_is_sure(natural):
    assert "rest" not in mixed_up(natural)[0]


def test_the_rest_of_a_class_is_let_be_where_it_is_most_of_it():
    assert "rest" not in mixed_up(0.3, has=NATURAL[:90])[0]


def test_the_rest_of_a_class_is_let_be_where_it_is_less_various():
    """Most of a class may be planted; what was, is taken from many classes."""
    assert mixed_up(0.3, planted_first=True) == (["first", "mixture", "first"], ["first", "mixture"])


def test_images_of_many_classes_are_more_various_than_those_of_one():
    logits = torch.zeros(90, 10)
    logits[:, 3] = 9.0  # what all are said to be
    one, many = logits.clone(), logits.clone()
    one[:80, 5], one[80:, 8] = 4.0, 4.0
    many[torch.arange(90), torch.tensor([label for label in range(10) if label != 3]).repeat(10)] = 4.0
    assert variety(many, 3) == pytest.approx(math.log(9))
    assert 0 < variety(one, 3) < 0.5


def test_an_acquitted_half_hides_the_other_one_no_more():
    judged, asked = examined(0.3, 0.01, acquitted=NATURAL)
    assert judged == [("planted", 0.3)]
    assert asked == ["planted", "natural", "planted"]
    assert examined(0.01, 0.3, acquitted=PLANTED)[0] == [("natural", 0.3)]
    assert examined(0.01, 0.3, acquitted=torch.arange(400))[0] == []


def test_a_part_of_another_cut_is_examined_alone():
    assert examined(0.3, 0.0, other=None) == ([("planted", 0.3)], ["planted", "planted"])


def test_a_small_group_is_given_up_later_where_patience_is_asked_for():
    settings = Config().enhancement
    small = Split(1, 2, torch.arange(settings.few - 1), 4.0, 6.0)
    assert patient(settings, small) == replace(settings, hopeless_half=settings.hopeless_few) != settings
    assert patient(settings, replace(small, group=torch.arange(settings.few))) == settings


def test_only_the_first_group_of_all_is_asked_patiently():
    patience = []

    def natural(split, _, settings):
        patience.append((split.label, settings.hopeless_half))
        return Enhanced(split.label, torch.zeros(400), 9.0)

    small = [Split(label, 2, torch.arange(20), 4.0, 6.0) for label in (1, 2)]
    settings = Config().enhancement
    examined = examine(tuple(small), natural, torch.zeros(400, dtype=torch.bool), lambda _: False, Config())
    assert patience == [(1, settings.hopeless_few), (2, settings.hopeless_half)]
    assert (examined.waiting, len(examined.dull)) == (set(), 2)


def test_the_classes_are_cut_side_by_side_and_alike_by_any_number_of_threads(monkeypatch, generator):
    labels = torch.arange(4).repeat_interleave(100)
    outputs = Outputs(torch.zeros(400, 4), torch.randn(400, 10, generator=generator) + 5.0 * labels[:, None])
    seeds, pools, real = torch.rand(400, generator=generator) < 0.2, [], ThreadPoolExecutor

    def pool(workers: int, **how):
        pools.append(workers)
        return real(workers, **how)

    def groups(threads: int) -> list[list[int]]:
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        own = torch.Generator().manual_seed(1)
        return [split.group.tolist() for split in separate(outputs.features, labels, seeds, SeparationSettings(), own)]

    monkeypatch.setattr(advrbd.method.separation, "ThreadPoolExecutor", pool)
    assert groups(1) == groups(16) != []
    assert pools == [1, 2]  # half of the images at once
