"""A group that stands out is held against its label: a natural one is acquitted for good, a planted one is not."""

from dataclasses import replace

import pytest
import torch
from small import Rows

import advrbd.method.look
from advrbd.benchmark.digits import digits
from advrbd.config import Config, PartitionSettings, SeparationSettings, TrainingSettings
from advrbd.data.pixels import Pixels
from advrbd.events import Note
from advrbd.method.enhancement import Enhanced
from advrbd.method.look import find
from advrbd.method.second_opinion import affinity_to
from advrbd.method.separation import Split
from advrbd.model.device import choose_device
from advrbd.model.factory import ModelSpec
from advrbd.model.run import Run
from advrbd.reports.report import CLEAN, POISONED

CLASSES, EACH, SIDE = 6, 40, 8


@pytest.fixture
def rows() -> Run:
    """Images of six classes with a bright row each, on noise that ranks the others at random."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 100, (CLASSES * EACH, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
    labels = torch.arange(CLASSES).repeat_interleave(EACH)
    images[torch.arange(len(images)), labels] = 200
    return Run(Pixels(images), labels, ModelSpec("test_resnet", CLASSES, SIDE), choose_device("cpu"), generator)


def held_against(rows: Run, suspects: torch.Tensor, label: int) -> float:
    kept = torch.arange(len(rows.labels))[~torch.isin(torch.arange(len(rows.labels)), suspects)]
    network = Rows(CLASSES)
    return affinity_to(label, rows.infer(network, suspects, mirror=True).logits, rows, network, kept)


def test_falsified_labels_have_no_affinity_and_true_ones_have_all_of_it(rows):
    strangers = torch.cat([torch.arange(start * EACH, start * EACH + 8) for start in range(1, CLASSES)])
    assert held_against(rows, strangers, 0) == pytest.approx(0.5, abs=0.1)
    assert held_against(rows, torch.arange(20), 0) == 1


def test_natural_images_that_the_model_takes_for_another_class_still_have_it(rows):
    """A model that is right on half of the images denies true labels; what is behind another class there is theirs."""
    suspects = torch.arange(20)
    rows.pixels.images[suspects, 0] = 150
    rows.pixels.images[suspects, 1 + suspects % (CLASSES - 1)] = 200
    assert held_against(rows, suspects, 0) > 0.9


def test_the_affinity_of_a_suspect_taken_for_a_class_without_images_is_even(rows):
    suspects = torch.arange(EACH, 2 * EACH)  # all there is of class 1
    assert held_against(rows, suspects, 0) == 0.5


SHORT = TrainingSettings(epochs=12, minimum_steps=0, batch_size=32)
QUICK = Config(
    model="test_resnet",
    device="cpu",
    warm_up=SHORT,
    partition=PartitionSettings(masks=1, steps=1),
    separation=SeparationSettings(examined=(3, 1, 4)),  # all groups
)


def found_when_sharp(
    monkeypatch: pytest.MonkeyPatch,
    images: torch.Tensor,
    labels: torch.Tensor,
    *groups: tuple[int, torch.Tensor],
    looks: int = 4,
):
    """What the looks say of digits where the ``groups`` look planted: each from a certain look on, and positions of one
    class. Besides, what was told, and the labels that each look examined."""
    told, examined = list[str](), list[list[int]]()

    def separate(_outputs, shown, *_):
        examined.append([])
        places = enumerate(int(labels[group[0]]) for _, group in groups)
        members = {number: (label, (shown == label).nonzero().flatten()) for number, label in places}
        return tuple(Split(label, 2, at[10 * n : 10 * n + 10], 5.0, float(n)) for n, (label, at) in members.items())

    def examine(_run, _network, examples, split, *_):
        examined[-1].append(split.label)
        since, group = groups[int(split.distance)]
        inside = torch.isin(examples, group) & (since <= len(examined))
        return Enhanced(split.label, 0.99 * inside, 0.25 if inside.any() else 9.0)

    for name, stand_in in (("separate", separate), ("_examine", examine), ("find_control", lambda *_: True)):
        monkeypatch.setattr(advrbd.method.look, name, stand_in)
    generator = torch.Generator().manual_seed(0)
    spec = ModelSpec("test_resnet", 10, 16)
    notify = lambda event: told.append(event.message) if isinstance(event, Note) else None  # noqa: E731
    run = Run(Pixels(images), labels, spec, choose_device("cpu"), generator, notify)
    return find(run, torch.arange(len(labels)), replace(QUICK, looks=looks)), told, examined


@pytest.fixture(scope="module")
def some_digits() -> tuple[torch.Tensor, torch.Tensor]:
    images, labels, _, _ = digits()
    return torch.from_numpy(images[:450]), torch.from_numpy(labels[:450]).long()


def test_a_natural_group_that_looks_planted_is_acquitted(monkeypatch, some_digits):
    images, labels = some_digits
    group = (labels == 3).nonzero().flatten()[::2]
    found, told, _ = found_when_sharp(monkeypatch, images, labels, (1, group))
    assert found.verdicts[3] == CLEAN
    assert not found.suspects.any()
    assert found.looks == 1, told  # nothing was hidden by it
    assert torch.equal(found.acquitted.nonzero().flatten(), group)
    assert found.evidence[3]["affinity"] > 0.8
    assert any("acquitted" in message for message in told)
    assert float(found.score.max()) < 0.5
    assert not found.exhausted


def strangers(labels: torch.Tensor, label: int) -> torch.Tensor:
    """Positions of four images of every other class."""
    chosen = [(labels == other).nonzero().flatten()[:4] for other in range(10) if other != label]
    return torch.cat(chosen).sort().values


@pytest.fixture
def falsified(some_digits) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, labels, and the positions of those that aren't the 3 that they are said to be."""
    images, labels = some_digits
    group, labels = strangers(labels, 3), labels.clone()
    labels[group] = 3
    return images, labels, group


def test_a_planted_group_stays_convicted(monkeypatch, falsified):
    images, labels, group = falsified
    found, _, _ = found_when_sharp(monkeypatch, images, labels, (1, group))
    assert found.verdicts[3] == POISONED
    assert torch.equal(found.suspects.nonzero().flatten(), group)
    assert found.evidence[3]["affinity"] < 0.65
    assert not found.acquitted.any()
    assert found.looks == 2  # what else it hid was looked for


def test_who_was_acquitted_is_not_found_again(monkeypatch, falsified):
    images, labels, group = falsified
    natural = (labels == 5).nonzero().flatten()[::2]
    found, told, _ = found_when_sharp(monkeypatch, images, labels, (1, natural), (1, group))
    assert (found.verdicts[3], found.verdicts[5]) == (POISONED, CLEAN), told
    assert found.looks == 2, told  # the second look has the natural group again, still sharp, and finds nothing
    assert sum("acquitted" in message for message in told) == 1
    assert found.evidence[5]["affinity"] > 0.8
    assert torch.equal(found.suspects.nonzero().flatten(), group)


def test_a_natural_group_hides_no_planted_one_of_its_class(monkeypatch, falsified):
    images, labels, group = falsified
    natural = (labels == 3).nonzero().flatten()
    natural = natural[~torch.isin(natural, group)][::2]
    other = (labels == 7).nonzero().flatten()[::2]  # never looks planted
    groups = (1, natural), (1, group), (9, other)
    found, told, examined = found_when_sharp(monkeypatch, images, labels, *groups)
    assert examined == [[3, 7], [3, 3], [3, 3, 7]], told  # it waits; then its class alone is in doubt
    assert found.verdicts[3] == POISONED
    assert torch.equal(found.suspects.nonzero().flatten(), group)
    assert torch.equal(found.acquitted.nonzero().flatten(), natural)


@pytest.mark.parametrize("looks", [2, 3])
def test_who_is_found_by_the_last_look_is_heard_as_well(monkeypatch, falsified, looks):
    images, labels, group = falsified
    natural = (labels == 5).nonzero().flatten()[::2]
    found, told, _ = found_when_sharp(monkeypatch, images, labels, (1, group), (2, natural), looks=looks)
    assert (found.verdicts[3], found.verdicts[5]) == (POISONED, CLEAN), told
    assert torch.equal(found.suspects.nonzero().flatten(), group)
    assert torch.equal(found.acquitted.nonzero().flatten(), natural)
    assert found.looks == 2
    assert not found.exhausted
