"""Which side of a cut is examined, and how patiently."""

from dataclasses import replace

import pytest
import torch

import advrbd.method.look
from advrbd.config import Config, SeparationSettings
from advrbd.method.enhancement import Enhanced
from advrbd.method.look import _examine, patient
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
    splits = separate(Outputs(torch.zeros(400, 3), features), labels, seeds, settings, generator)
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
    splits = separate(Outputs(torch.zeros(200, 1), features), labels, labels == 0, settings, generator)
    assert splits
    assert all(split.turned is None for split in splits)


def examined(monkeypatch, first: float, second: float, other: torch.Tensor | None = NATURAL):
    """What the examination of ``PLANTED`` against ``other`` comes to, given the ambiguity of each, and what it took."""
    asked = []

    def enhance(_run, _network, _examples, split, *_):
        asked.append(split.group)
        return Enhanced(1, torch.zeros(400), first if split.group is PLANTED else second)

    monkeypatch.setattr(advrbd.method.look, "enhance", enhance)
    split = Split(1, 2, PLANTED, 4.0, 6.0, other)
    return *_examine(None, None, torch.arange(400), split, torch.zeros(400), Config()), asked


def test_what_is_surely_planted_leaves_the_other_half_alone(monkeypatch):
    split, entry, asked = examined(monkeypatch, 0.01, 0.0)
    assert (split.group is PLANTED, entry.ambiguity, len(asked)) == (True, 0.01, 1)


@pytest.mark.parametrize("first", [0.3, 0.8])
def test_of_two_halves_neither_of_them_clear_at_once_the_clearer_one_counts(monkeypatch, first):
    split, entry, asked = examined(monkeypatch, first, 0.07)
    assert (split.group is NATURAL, entry.ambiguity, len(asked)) == (True, 0.07, 2)
    split, entry, _ = examined(monkeypatch, first, 0.9)
    assert (split.group is PLANTED, entry.ambiguity) == (True, first)


def test_only_a_doubtful_answer_is_asked_for_again_and_only_of_the_clearer_half(monkeypatch):
    *_, asked = examined(monkeypatch, 0.3, 0.9)
    assert [group is PLANTED for group in asked] == [True, False, True]
    *_, asked = examined(monkeypatch, 0.8, 0.9)
    assert [group is PLANTED for group in asked] == [True, False]


def test_a_part_of_another_cut_is_examined_alone(monkeypatch):
    split, entry, asked = examined(monkeypatch, 0.3, 0.0, other=None)
    assert (split.group is PLANTED, entry.ambiguity, len(asked)) == (True, 0.3, 2)


def test_the_first_group_is_given_up_later_where_it_is_small():
    config, settings = Config(), Config().enhancement
    small = Split(1, 2, torch.arange(settings.few - 1), 4.0, 6.0)
    patiently = replace(config, enhancement=replace(settings, hopeless_half=settings.hopeless_few))
    assert patient(config, small) == patiently != config
    assert patient(config, replace(small, group=torch.arange(settings.few))) == config
