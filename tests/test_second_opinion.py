"""A group that stands out is held against its label: a natural one is acquitted for good, a planted one is not."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from small import Rows

import advrbd.method.look
import advrbd.method.second_opinion as opinions
from advrbd.benchmark.digits import digits
from advrbd.config import Config, PartitionSettings, SeparationSettings, TrainingSettings
from advrbd.data.pixels import Pixels
from advrbd.events import Note
from advrbd.method.doubt import Doubt, doubts, told_by_label
from advrbd.method.enhancement import Enhanced
from advrbd.method.findings import Conviction, Findings
from advrbd.method.hearing import hear_newcomers, hear_suspects
from advrbd.method.held_out import FEWEST_CLASSES, SURELY_FALSE, Hearing, HeldOut, Left, hold_out, lowest_expected
from advrbd.method.identification import Identification, identify
from advrbd.method.look import _set_aside, find
from advrbd.method.second_opinion import Outsider, affinity_to, second_opinion
from advrbd.method.separation import Split
from advrbd.method.warm_up import Learned
from advrbd.model.device import choose_device
from advrbd.model.factory import ModelSpec
from advrbd.model.run import Run
from advrbd.reports.report import CLEAN, POISONED, SUSPICIOUS

CLASSES, EACH, SIDE = 6, 40, 8
NEVER = 99


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
    outsider = Outsider(rows, Learned(Rows(CLASSES), kept))
    return outsider.affinity(label, outsider.says(suspects).logits)


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


def saw(run: Run, *in_doubt: torch.Tensor, conviction: float = 0.4) -> Identification:
    """What a look found that convicts nobody, but is ``in_doubt`` about groups of one class each."""
    carries, classes = torch.zeros(len(run.labels)), [int(run.labels[group[0]]) for group in in_doubt]
    for group in in_doubt:
        carries[group] = 0.9
    doubts, verdicts = dict.fromkeys(classes, conviction), dict.fromkeys(classes, SUSPICIOUS)
    return Identification(carries, conviction * carries, doubts, verdicts, {label: {} for label in classes})


def unasked(split: Split, *_: object) -> Enhanced:
    raise AssertionError(f"nothing is to be asked about a group of {split.label}")


@pytest.mark.parametrize(
    ("falsified", "are_usual", "accused"), [(30, True, 30), (15, True, 0), (30, False, 0)], ids=["all", "half", "weak"]
)
def test_a_stray_lies_below_the_limit_and_below_what_natural_groups_show(rows, falsified, are_usual, accused):
    """Thirty files of the class 0 that the model takes for others, of which some have nothing of it at all."""
    group, images = torch.arange(30), rows.pixels.images
    images[group, 0] = 150
    images[group[:falsified], 0] = images[group[:falsified], 6]  # noise
    images[group, 1 + group % (CLASSES - 1)] = 200
    witnesses = tuple(torch.arange(start * EACH, start * EACH + 12) for start in range(1, CLASSES))
    for witness in () if are_usual else witnesses:
        images[witness] = images[witness].roll(1, dims=1)  # a model that sees nothing of their class in them
    findings = Findings.nothing(len(rows.labels))
    findings.evidence[0] = {"conviction": 0.97}
    everything = torch.arange(len(rows.labels))
    learned = Learned(Rows(CLASSES), everything[~torch.isin(everything, torch.cat([group, *witnesses]))])
    strays, others = (
        (Split(int(rows.labels[one[0]]), 8, one, 5.0, 5.0) for one in some) for some in ([group], witnesses)
    )
    nobody = torch.zeros(len(everything), dtype=torch.bool)
    groups = HeldOut(tuple(strays), tuple(others), (), nobody)
    left = Left(everything, saw(rows), (), (), nobody, unasked)
    assert Hearing(Outsider(rows, learned), left, groups, findings, QUICK).outcome() is None
    assert findings.suspects.nonzero().flatten().tolist() == list(range(accused))


@pytest.mark.parametrize("are_usual", [True, False], ids=["usual", "weak"])
def test_a_label_is_denied_no_more_surely_than_natural_images_of_other_classes_allow(rows, are_usual):
    """Twenty images of the class 0 that show another one, ten that show theirs, and ten that the model learned."""
    images, everything = rows.pixels.images, torch.arange(len(rows.labels))
    false, true, learned = torch.arange(20), torch.arange(20, 30), torch.arange(30, EACH)
    images[false, 0] = images[false, 6]  # noise
    images[false, 1 + false % (CLASSES - 1)] = 200
    witnesses = [
        Split(label, 8, torch.arange(label * EACH, label * EACH + 12), 5.0, 5.0) for label in range(1, CLASSES)
    ]
    for witness in () if are_usual else witnesses:
        images[witness.group] = images[witness.group].roll(1, dims=1)  # the model sees nothing of their class in them
    unknown = torch.isin(everything, torch.cat([false, true, *(split.group for split in witnesses)]))
    groups = HeldOut((), tuple(witnesses), (Split(0, 8, torch.arange(30), 5.0, 5.0),), unknown)
    left, findings = Left(everything, saw(rows), (), (), everything < 0, unasked), Findings.nothing(len(everything))
    findings.acquitted[false[:3]] = True
    denial = Hearing(
        Outsider(rows, Learned(Rows(CLASSES), everything[~unknown])), left, groups, findings, QUICK
    ).denial(0)
    surely = float((denial[false[3:]] > SURELY_FALSE).float().mean())
    assert surely == 1 if are_usual else surely < 0.25
    assert (denial[true] < 0).all()
    assert (denial[learned] == 0).all()  # what it knows by heart confirms nothing
    assert (denial[false[:3]] == 0).all() and (denial[EACH:] == 0).all()  # acquitted, or of another class


def twelve_of(label: int) -> Split:
    """A small part of a class of the ``rows``."""
    return Split(label, 8, torch.arange(label * EACH, label * EACH + 12), 5.0, 5.0)


def falsify(rows: Run, group: torch.Tensor, label: int) -> None:
    """Let a ``group`` of the class ``label`` show all others in turn, and nothing of its own."""
    rows.pixels.images[group, label] = 0
    others = torch.tensor([other for other in range(CLASSES) if other != label])
    rows.pixels.images[group, others[torch.arange(len(group)) % len(others)]] = 200


def heard_by_rows(rows: Run, groups: HeldOut, probability: float = 0.3):
    """What is said of held out ``groups`` where enhancement gives each file of a class the same ``probability``, and
    which classes it was asked about, with the seeds."""
    everything, asked = torch.arange(len(rows.labels)), dict[int, torch.Tensor]()

    def ask(split: Split, trusted: torch.Tensor, *_: object) -> Enhanced:
        asked[split.label] = trusted
        return Enhanced(split.label, probability * (rows.labels == split.label), 0.8)

    left = Left(everything, saw(rows), (), (), everything % 2 == 0, ask)
    learned, findings = Learned(Rows(CLASSES), everything[~groups.unknown]), Findings.nothing(len(everything))
    findings.verdicts |= dict.fromkeys(range(CLASSES), CLEAN)
    return Hearing(Outsider(rows, learned), left, groups, findings, QUICK).outcome(), asked


def test_where_enhancement_is_in_doubt_the_denial_of_its_label_tells_a_single_file(rows):
    false, true, learned = torch.arange(24), torch.arange(24, 30), torch.arange(30, EACH)
    falsify(rows, false, 0)
    witnesses = tuple(twelve_of(label) for label in range(1, CLASSES))
    unknown = torch.isin(torch.arange(len(rows.labels)), torch.cat([false, true, *(one.group for one in witnesses)]))
    groups = HeldOut((), witnesses, (Split(0, 4, false, 5.0, 5.0),), unknown)
    found, asked = heard_by_rows(rows, groups)
    assert torch.equal(found.suspects.nonzero().flatten(), false)
    assert found.verdicts == {0: POISONED}
    assert (found.carries[true] < 0.1).all() and (found.carries[learned] > 0.3).all()
    assert torch.equal(asked[0].nonzero().flatten(), torch.cat([true, learned[::2]]))  # confirmed, or seeds not denied
    unconvincing, _ = heard_by_rows(rows, groups, probability=0.0)
    assert unconvincing.verdicts == {0: SUSPICIOUS}  # what has a false label isn't what carries a trigger
    assert not unconvincing.suspects.any()


@pytest.mark.parametrize(("where", "accused"), [((), True), ((1,), True), ((1, 1), True), ((1, 2), False)])
def test_wrong_labels_in_one_other_class_silence_nobody(rows, where, accused):
    false, wrong = torch.arange(24), []
    for number, label in enumerate(where):
        start = label * EACH + 12 * (1 + number)
        wrong.append(Split(label, 8, torch.arange(start, start + 12), 5.0, 5.0))
    for group in (false, *(split.group for split in wrong)):
        falsify(rows, group, int(rows.labels[group[0]]))
    witnesses = (*(twelve_of(label) for label in range(1, CLASSES)), *wrong)
    unknown = torch.isin(torch.arange(len(rows.labels)), torch.cat([false, *(one.group for one in witnesses)]))
    found, asked = heard_by_rows(rows, HeldOut((), witnesses, (Split(0, 4, false, 5.0, 5.0),), unknown))
    assert (0 in asked) == accused
    assert accused == (found is not None and found.verdicts.get(0) == POISONED)


@pytest.mark.parametrize(
    ("false", "held", "told_by", "verdict"),
    [
        (0, 30, 0.4, CLEAN),
        (15, 30, 0.4, SUSPICIOUS),
        (0, 12, 0.4, SUSPICIOUS),
        (0, 30, 0.45, SUSPICIOUS),
    ],
    ids=["natural", "half of it false", "most of it learned", "suspicious by another look"],
)
def test_a_suspicious_class_is_cleared_where_what_made_it_so_shows_its_label(rows, false, held, told_by, verdict):
    group, everything, images = torch.arange(30), torch.arange(len(rows.labels)), rows.pixels.images
    images[group[:false], 0] = images[group[:false], 6]  # noise, so there is no affinity, but no aversion either
    images[group[:false], 1 + group[:false] % (CLASSES - 1)] = 200
    witnesses = tuple(twelve_of(label) for label in range(1, CLASSES))
    unknown = torch.isin(everything, torch.cat([group[:held], *(one.group for one in witnesses)]))
    findings = Findings.nothing(len(everything))
    findings.verdicts |= {0: SUSPICIOUS} | dict.fromkeys(range(1, CLASSES), CLEAN)
    findings.evidence[0], findings.score[:EACH] = {"conviction": told_by}, 0.4
    left = Left(everything, saw(rows, group), (), (), everything < 0, unasked)
    learned = Learned(Rows(CLASSES), everything[~unknown])
    groups = HeldOut((), witnesses, (Split(0, 4, group[:held], 5.0, 5.0),), unknown)
    Hearing(Outsider(rows, learned), left, groups, findings, QUICK).clear()
    assert findings.verdicts[0] == verdict
    assert bool((findings.score[:EACH] < 0.1).all()) == (verdict == CLEAN)
    assert ("affinity" in findings.evidence[0]) == (verdict == CLEAN)


def test_two_planted_groups_dont_vouch_for_each_other(rows):
    for label in (0, 1):
        falsify(rows, twelve_of(label).group, label)
    witnesses = tuple(twelve_of(label) for label in range(CLASSES))
    unknown = torch.isin(torch.arange(len(rows.labels)), torch.cat([one.group for one in witnesses]))
    found, asked = heard_by_rows(rows, HeldOut((), witnesses, (), unknown))
    assert sorted(asked) == [0, 1]
    assert torch.equal(found.suspects.nonzero().flatten(), torch.cat([twelve_of(0).group, twelve_of(1).group]))


@pytest.mark.parametrize(("true", "asked_about"), [(16, [0]), (18, [])], ids=["less", "perhaps not"])
def test_what_surely_has_less_affinity_than_speaks_for_nothing_is_asked_about_again(rows, true, asked_about):
    """Of thirty files so many are what their label says, and the others have nothing of it: .53 and .60, with .11 that
    chance may add. The planted group of a WaNet scan had .58 with .04."""
    group = torch.arange(30)
    falsify(rows, group[true:], 0)
    witnesses = tuple(twelve_of(label) for label in range(1, CLASSES))
    held = torch.cat([group, *(one.group for one in witnesses)])
    groups = HeldOut((), witnesses, (Split(0, 8, group, 5.0, 5.0),), torch.isin(torch.arange(len(rows.labels)), held))
    assert list(heard_by_rows(rows, groups)[1]) == asked_about


def test_however_often_a_network_is_asked_of_what_it_knows_it_says_the_same(rows):
    kept = torch.arange(len(rows.labels))[5:]
    rows.pixels.images[kept[::7]] = rows.pixels.images[kept[::7]].roll(1, dims=1)  # some it doesn't recognise
    outsider = Outsider(rows, Learned(Rows(CLASSES), kept))
    logits = rows.infer(Rows(CLASSES), kept[rows.labels[kept] == 0], mirror=True).logits
    logits = logits[logits.argmax(dim=1) == 0]
    for count in (10, 30, 10, 99):
        said = outsider.familiar(0, count)
        assert torch.equal(said.sort(dim=0).values, logits.sort(dim=0).values)  # all that there are, in another order


def test_the_order_of_the_files_chooses_nobody_to_compare_with(monkeypatch, rows):
    monkeypatch.setattr(opinions, "EVENLY", 0)
    monkeypatch.setattr(opinions, "FEWEST", 3)
    kept = torch.arange(len(rows.labels))
    mine = kept[rows.labels == 0]
    logits = rows.infer(Rows(CLASSES), mine, mirror=True).logits
    said = Outsider(rows, Learned(Rows(CLASSES), kept)).familiar(0, 12)
    assert len(said) == 12
    assert not torch.equal(said, logits[:12])


def test_an_affinity_is_the_share_of_pairs_of_which_the_suspect_has_more():
    generator = torch.Generator().manual_seed(0)
    suspects, known = torch.randn(40, CLASSES, generator=generator), torch.randn(60, CLASSES, generator=generator)
    suspects[:, 2] += 9
    known[:, 2] += 9
    known[::3] = suspects[:20]  # ties

    def left(rows_of: torch.Tensor) -> torch.Tensor:
        others = rows_of.clone()
        others[:, 2] = -torch.inf
        return others.log_softmax(dim=1)[:, 0]

    mine, theirs = left(suspects)[:, None], left(known)
    expected = ((mine > theirs).double() + (mine == theirs).double() / 2).mean()
    assert affinity_to(0, suspects, lambda *_: known) == pytest.approx(float(expected), abs=1e-6)


def test_what_is_expected_of_natural_groups_withstands_an_odd_one_and_chance():
    natural = [0.852, 0.638, 0.710, 0.540, 0.788, 0.750, 0.883, 0.855, 0.875]  # a ConvNeXt's, experiments.md
    assert lowest_expected(torch.tensor(natural), 3.0) == pytest.approx(0.441, abs=1e-3)
    assert lowest_expected(torch.tensor([1.0, 1.0, 0.98, 0.97, 0.99, 0.47]), 3.0) > 0.8
    assert lowest_expected(torch.full((5,), 0.5), 3.0) == pytest.approx(0.35)  # five that agree by chance


SHORT = TrainingSettings(epochs=8, minimum_steps=100, batch_size=32)
QUICK = Config(
    model="test_resnet",
    device="cpu",
    warm_up=SHORT,
    partition=PartitionSettings(masks=1, steps=1),
    separation=SeparationSettings(examined=(4, 1, 4), few=0),  # all groups of a test, each once
)


def found_when_sharp(
    monkeypatch: pytest.MonkeyPatch,
    images: torch.Tensor,
    labels: torch.Tensor,
    *groups: tuple,
    looks: int = 4,
    doubtful: Sequence[int] = (),
    faint: Sequence[int] = (),
    controls: Sequence[bool] = (True,),
    witnesses: Sequence[torch.Tensor] = (),
    asked: list | None = None,
):
    """What the looks say of digits where the ``groups`` look planted: each from a certain look on (or ``NEVER``),
    positions of one class, and an ambiguity, if it isn't one that convicts. Besides, what was told, and the labels that
    each look examined; ``asked`` gets every question: split, seeds, settings.

    Of the ``doubtful`` positions it isn't sure whether they carry what their group carries, and the ``faint`` ones
    hardly seem to carry what the group of their class carries; ``controls``: whether each
    control that is planted is found; ``witnesses``: positions of one class each that stand apart besides, too little to
    be examined.
    """
    told, examined, twice, lost_or_found = list[str](), list[list[int]](), list[tuple](), iter(controls)
    real_look, looked_at = advrbd.method.look.look, list[torch.Tensor]()
    unsure, faintly = (torch.tensor(list(some), dtype=torch.int64) for some in (doubtful, faint))

    def look(run, learned, *rest):
        looked_at.append(learned.examples)
        return real_look(run, learned, *rest)

    def separate(_outputs, shown, *_):
        examined.append([])
        splits = []
        for number, (since, group, *in_doubt) in enumerate(groups):
            label = int(labels[group[0]])
            at = (shown == label).nonzero().flatten()[10 * number : 10 * number + 10]
            if since == NEVER or in_doubt:  # all that there is of it is what was cut out
                at = torch.isin(looked_at[-1], group).nonzero().flatten()
            splits.append(Split(label, 2, at, 5.0, float(number)))
        apart = [torch.isin(looked_at[-1], group).nonzero().flatten() for group in witnesses]
        return (*splits, *(Split(int(shown[at[0]]), 16, at, 1.0, 0.0) for at in apart))

    def examine(_run, _network, examples, split, seeds, settings):
        if asked is not None:
            asked.append((split, seeds, settings))
        if twice[-1:] != [(len(examined), split.distance)]:  # a doubtful answer is asked for again
            examined[-1].append(split.label)
            twice.append((len(examined), split.distance))
        since, group, ambiguity = (*groups[int(split.distance)], 0.25)[:3]
        inside = torch.isin(examples, group) & (since <= len(examined))
        probability = torch.where(torch.isin(examples, unsure), 0.5, 0.99) * inside
        mine = labels[examples] == split.label
        probability = probability.maximum(0.03 * (inside.any() & mine & torch.isin(examples, faintly)))
        return Enhanced(split.label, probability, ambiguity if 2 * inside.sum() > len(group) else 9.0)

    def find_control(*_):
        return next(lost_or_found)

    for stand_in in (look, separate, find_control):
        monkeypatch.setattr(advrbd.method.look, stand_in.__name__, stand_in)
    monkeypatch.setattr(advrbd.method.look, "enhance", examine)
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


def strangers(labels: torch.Tensor, label: int, first: int = 0, each: int = 4) -> torch.Tensor:
    """Positions of ``each`` images of every other class, from the one with the number ``first`` on."""
    chosen = [(labels == other).nonzero().flatten()[first : first + each] for other in range(10) if other != label]
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
    assert found.evidence[3]["affinity"] < 0.65 and not found.convictions[3].by_label
    assert not found.acquitted.any()
    assert found.looks == 2  # what else it hid was looked for


def test_who_was_acquitted_is_not_found_again(monkeypatch, falsified):
    images, labels, group = falsified
    natural, labels = (labels == 5).nonzero().flatten()[::2], labels.clone()
    later = strangers(labels, 7, first=8)
    later = later[~torch.isin(later, torch.cat([natural, group]))]
    labels[later] = 7
    found, told, examined = found_when_sharp(monkeypatch, images, labels, (1, natural), (1, group), (2, later))
    assert [found.verdicts[label] for label in (3, 5, 7)] == [POISONED, CLEAN, POISONED], told
    assert len(examined) == 3 and 5 in examined[2]  # it was trained on by then, and was as sharp as before
    assert sum("acquitted" in message for message in told) == 1
    assert found.evidence[5]["affinity"] > 0.8
    assert torch.equal(found.suspects.nonzero().flatten(), torch.cat([group, later]).sort().values)


def test_who_was_cleared_is_not_accused_again_by_a_model_that_learned_its_label(monkeypatch, falsified):
    images, labels, group = falsified
    bystanders, labels = (labels == 3).nonzero().flatten(), labels.clone()
    bystanders = bystanders[~torch.isin(bystanders, group)][:3]
    later = strangers(labels, 7, first=8)
    later = later[~torch.isin(later, torch.cat([bystanders, group]))]
    labels[later] = 7
    accused = torch.cat([group, bystanders]).sort().values
    groups = (1, accused), (2, later)
    found, told, examined = found_when_sharp(monkeypatch, images, labels, *groups, doubtful=bystanders.tolist())
    assert len(examined) == 3, told  # and so two hearings
    assert torch.equal(found.suspects.nonzero().flatten(), torch.cat([group, later]).sort().values)


def test_where_only_natural_groups_and_no_control_were_found_another_is_planted(monkeypatch, some_digits):
    images, labels = some_digits
    natural = (labels == 5).nonzero().flatten()[::2]
    found, told, examined = found_when_sharp(monkeypatch, images, labels, (1, natural), controls=(False, False, True))
    assert [message.split(":")[0] for message in told if message.startswith("look")] == ["look 1", "look 1", "look 2"]
    assert (found.looks, found.control_found, found.blind) == (3, True, False), told
    assert examined == [[5], [5], [5]]
    assert found.verdicts[5] == CLEAN


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


def test_groups_that_still_wait_after_the_last_look_are_told(monkeypatch, falsified):
    images, labels, group = falsified
    natural = (labels == 5).nonzero().flatten()[::2]
    hidden = (labels == 5).nonzero().flatten()[1::2]  # as natural, but nobody could say so
    groups = (1, group), (2, natural), (2, hidden)
    found, told, examined = found_when_sharp(monkeypatch, images, labels, *groups, looks=2)
    assert examined[1] == [3, 5], told
    assert found.verdicts[5] == CLEAN
    assert found.exhausted
    left = "look 2, the last one allowed, left groups unexamined or in doubt behind those that it found"
    assert [caution for caution in found.cautions if "last one" in caution] == [f"{left}; there may be more"]


def test_a_group_that_accuses_nobody_is_looked_at_once(monkeypatch, falsified):
    images, labels, group = falsified
    other = (labels == 3).nonzero().flatten()[::2]
    barely = (1, group, 0.32), (1, other, 0.32)  # enough for the class, not for a file that isn't sure
    found, told, examined = found_when_sharp(monkeypatch, images, labels, *barely, doubtful=range(len(labels)))
    assert examined == [[3]], told  # a second look would see it again, and the other one wait behind it
    assert found.verdicts[3] == POISONED
    assert not found.suspects.any()
    assert not found.exhausted


@pytest.mark.parametrize(
    ("is_false", "classes"), [(False, 9), (True, 9), (False, 3)], ids=["natural", "false", "few classes are clean"]
)
def test_what_makes_a_class_suspicious_is_heard_in_the_end(monkeypatch, falsified, is_false, classes):
    images, labels, group = falsified
    doubted = group[:18] if is_false else true_threes(labels, group)[:18]  # half of a class stays
    witnesses = ordinary(labels)[:classes]
    found, told, _ = found_when_sharp(monkeypatch, images, labels, (1, doubted, 0.38), witnesses=witnesses)
    assert found.verdicts[3] == (SUSPICIOUS if is_false else CLEAN), told
    assert float(found.score.max()) < (0.5 if is_false else 0.1)


def test_a_natural_group_hides_no_group_in_doubt(monkeypatch, falsified):
    images, labels, group = falsified
    natural = (labels == 3).nonzero().flatten()
    natural = natural[~torch.isin(natural, group)][::2]
    found, told, examined = found_when_sharp(monkeypatch, images, labels, (1, group, 0.38), (1, natural))
    assert examined == [[3, 3], [3, 3]], told
    assert torch.equal(found.acquitted.nonzero().flatten(), natural)
    assert found.verdicts[3] == SUSPICIOUS


@pytest.fixture
def left_over(falsified) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As ``falsified``, and the positions of more files that aren't the 3 that they are said to be."""
    images, labels, group = falsified
    left, labels = strangers(labels, 3, first=8), labels.clone()
    left = left[~torch.isin(left, group)]
    labels[left] = 3
    return images, labels, group, left


def true_threes(labels: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    """Positions of the images with the label 3 that are none of the ``others``."""
    members = (labels == 3).nonzero().flatten()
    return members[~torch.isin(members, torch.cat(others))]


def ordinary(labels: torch.Tensor) -> list[torch.Tensor]:
    """Positions of twelve images of every class but the 3."""
    return [(labels == other).nonzero().flatten()[20:32] for other in range(10) if other != 3]


def test_a_natural_group_doesnt_hide_among_the_suspects_of_an_earlier_look(monkeypatch, falsified):
    images, labels, group = falsified
    natural = true_threes(labels, group)[::2]
    found, told, examined = found_when_sharp(monkeypatch, images, labels, (1, group), (2, natural))
    assert len(examined) == 2, told  # nothing stood that hadn't been heard
    assert torch.equal(found.suspects.nonzero().flatten(), group)
    assert torch.equal(found.acquitted.nonzero().flatten(), natural)
    assert found.verdicts[3] == POISONED and found.evidence[3]["affinity"] < 0.65


def test_what_is_left_of_a_planted_group_stands_beside_the_suspects_of_an_earlier_look(monkeypatch, left_over):
    images, labels, group, left = left_over
    found, told, examined = found_when_sharp(monkeypatch, images, labels, (1, group), (2, left))
    assert len(examined) == 3, told
    assert torch.equal(found.suspects.nonzero().flatten(), torch.cat([group, left]).sort().values)
    assert not found.acquitted.any()


def test_whoever_is_found_in_a_class_convicted_without_suspects_is_heard_with_it(rows):
    """Acquitted by themselves they would leave a poisoned class without anybody to accuse, or to acquit."""
    everything, findings, newcomers = (
        torch.arange(len(rows.labels)),
        Findings.nothing(len(rows.labels)),
        torch.arange(18),
    )
    findings.convictions[0], findings.carries[:EACH] = Conviction(0.55), 0.3
    found = replace(saw(rows, newcomers, conviction=0.7), verdicts={0: POISONED})
    heard = hear_newcomers(Outsider(rows, Learned(Rows(CLASSES), everything[18:])), findings, everything, found, QUICK)
    assert torch.equal(heard.suspects.nonzero().flatten(), newcomers) and heard.verdicts == {0: POISONED}
    assert not findings.acquitted.any()


@pytest.mark.parametrize("is_false", [False, True], ids=["natural", "false"])
def test_a_newcomer_who_is_acquitted_is_nothing_to_any_later_hearing(rows, is_false):
    everything, findings = torch.arange(len(rows.labels)), Findings.nothing(len(rows.labels))
    before, newcomers = torch.arange(12), torch.arange(12, 30)
    falsify(rows, torch.arange(30) if is_false else before, 0)
    findings.suspects[before], findings.carries[:EACH] = True, 0.3  # as the look before left it
    found = replace(saw(rows, newcomers, conviction=0.7), verdicts={0: POISONED})
    learned = Learned(Rows(CLASSES), everything[30:])
    heard = hear_newcomers(Outsider(rows, learned), findings, everything, found, QUICK)
    assert torch.equal(found.suspects.nonzero().flatten(), newcomers)  # the look's own answer stays what it was
    assert bool(heard.suspects.any()) == (0 in heard.verdicts) == is_false
    assert findings.acquitted[newcomers].any() == (not is_false)
    assert (findings.carries[newcomers] > 0).all() == is_false and (findings.carries[before] > 0).all()


def test_a_network_isnt_asked_about_the_labels_of_files_that_it_didnt_learn(rows):
    """It denies the label of suspects that were just acquitted as well, for want of it."""
    everything, findings = torch.arange(len(rows.labels)), Findings.nothing(len(rows.labels))
    suspects, acquitted, learned = torch.arange(12), torch.arange(12, 24), torch.arange(24, 30)
    falsify(rows, torch.arange(30), 0)
    findings.evidence[0], findings.convictions[0] = {}, Conviction(0.97)
    findings.suspects[suspects], findings.carries[:EACH] = True, 0.3
    findings.carries[suspects] = 0.99
    known = everything[~torch.isin(everything, torch.cat([suspects, acquitted]))]
    hear_suspects(Outsider(rows, Learned(Rows(CLASSES), known)), findings, everything, {}, QUICK)
    accused = torch.cat([suspects, learned])
    assert torch.equal(findings.suspects.nonzero().flatten(), accused)
    hear_suspects(
        Outsider(rows, Learned(Rows(CLASSES), known[~torch.isin(known, learned)])), findings, everything, {}, QUICK
    )
    assert torch.equal(findings.suspects.nonzero().flatten(), accused)  # the next model learned none of them


@pytest.mark.parametrize("are_false", [True, False], ids=["planted", "natural"])
def test_what_enhancement_left_in_doubt_is_not_learned_and_its_label_tells(monkeypatch, falsified, are_false):
    images, labels, planted = falsified
    group, hidden = planted[:30], planted[30:]
    faint = hidden if are_false else true_threes(labels, planted)[:6]
    found, told, _ = found_when_sharp(monkeypatch, images, labels, (1, group), faint=faint.tolist())
    accused = found.suspects.nonzero().flatten()
    assert torch.isin(group, accused).all()
    assert torch.isin(faint, accused).float().mean() > 0.8 if are_false else not torch.isin(faint, accused).any(), told
    assert torch.isin(accused, planted).all()
    assert (found.suggested[torch.cat([group, faint[torch.isin(faint, accused)]])] >= 0).all()  # nobody learned them


def test_in_doubt_is_what_stands_out_of_an_accused_class_and_most_of_that_is_learned(rows):
    findings, everything = Findings.nothing(len(rows.labels)), torch.arange(len(rows.labels))
    found, room = saw(rows, everything[:12], conviction=0.9), (EACH - 12) // 8  # of the first class
    found.carries[12:EACH], found.carries[20:22] = 0.001, 0.2
    found.carries[EACH : EACH + 9] = 0.3  # a class that nobody accuses
    (doubt,) = doubts(rows, findings, everything, found, QUICK).values()
    assert doubt.in_doubt.sort().values.tolist() == [20, 21]
    assert len(doubt.others) == room and (doubt.others < EACH).all() and (doubt.others >= 12).all()
    assert not torch.isin(doubt.others, doubt.in_doubt).any()
    found.carries[14:EACH:3] = 0.3  # nine of 28 stand out
    doubt = doubts(rows, findings, everything, found, QUICK)[0]
    assert len(doubt.in_doubt) == len(doubt.others) == room
    assert (found.carries[doubt.in_doubt] > 0.1).all() and (found.carries[doubt.others] < 0.1).all()
    findings.acquitted[12:EACH] = True
    assert not doubts(rows, findings, everything, found, QUICK)
    findings.acquitted[12:EACH] = False
    found.carries[12:EACH], found.carries[20:24] = 0.001, 0.008  # too little, however far it stands out
    assert not doubts(rows, findings, everything, found, QUICK)


@pytest.mark.parametrize(("denied", "told"), [(40, True), (8, False)], ids=["more", "as many"])
def test_a_denied_label_tells_where_more_are_denied_than_natural_images_explain(denied, told):
    """Five natural images in a hundred are denied as surely as any."""
    natural = torch.tensor([0.001] * 5 + [0.9] * 95)
    own = torch.tensor([0.001] * denied + [0.9] * (100 - denied))
    planted = told_by_label(own, natural)
    assert (planted[:denied] > 0.5).all() == told
    assert (planted[denied:] < 0.1).all()


def test_where_labels_are_shown_as_they_are_by_others_nobody_in_doubt_is_accused():
    own = torch.tensor([0.001, 0.05, 0.3, 0.9, 0.99] * 4)
    assert (told_by_label(own, own) <= 0.5).all()
    assert not len(told_by_label(own[:0], own))


def in_doubt(rows: Run, are_false: bool, suspects_false: bool) -> tuple[torch.Tensor, Findings]:
    """Who of eight that are in doubt in the first class is accused beside its suspects."""
    everything, findings = torch.arange(len(rows.labels)), Findings.nothing(len(rows.labels))
    suspects, unsure, others = torch.arange(12), torch.arange(12, 20), torch.arange(20, 30)
    falsify(rows, torch.cat([suspects] * suspects_false + [unsure] * are_false + [everything[:0]]), 0)
    findings.evidence[0], findings.convictions[0] = {}, Conviction(0.97)
    findings.suspects[suspects], findings.carries[suspects], findings.carries[unsure] = True, 0.99, 0.1
    findings.score[unsure] = 0.097
    learned = Learned(Rows(CLASSES), everything[30:])
    hear_suspects(Outsider(rows, learned), findings, everything, {0: Doubt(unsure, others)}, QUICK)
    accused = unsure[findings.suspects[unsure]]
    assert (findings.suggested[accused] > 0).all() and not findings.suspects[others].any()
    assert (findings.carries[accused] > 0.5).all()  # for whoever hears them later
    return accused, findings


def test_who_is_in_doubt_is_accused_by_a_false_label_beside_false_labels_alone(rows):
    accused, _ = in_doubt(rows, are_false=True, suspects_false=True)
    assert len(accused) == 8


def test_who_is_in_doubt_and_shows_the_label_is_not_accused(rows):
    accused, findings = in_doubt(rows, are_false=False, suspects_false=True)
    assert not len(accused) and findings.suspects.any()
    assert torch.allclose(findings.carries[12:20], torch.tensor(0.1))  # what enhancement said of them stands


def test_who_is_in_doubt_beside_natural_suspects_goes_with_them(rows):
    accused, findings = in_doubt(rows, are_false=True, suspects_false=False)
    assert not len(accused) and findings.verdicts[0] == SUSPICIOUS
    assert float(findings.score[:EACH].max()) < 0.5
    assert torch.allclose(findings.score[12:20], torch.tensor(0.1 * findings.evidence[0]["conviction"]), atol=1e-3)


def test_who_is_in_doubt_is_no_longer_where_a_newcomer_is_acquitted_and_is_looked_at_again(monkeypatch, rows):
    """A model that learned none of a natural kind denies all of it, whoever else has a false label in the class."""
    monkeypatch.setattr(advrbd.method.look, "warm_up", lambda _run, examples, _config: Learned(Rows(CLASSES), examples))
    everything, findings = torch.arange(len(rows.labels)), Findings.nothing(len(rows.labels))
    before, newcomers, alike = torch.arange(4), torch.arange(4, 8), torch.arange(8, 12)
    falsify(rows, torch.cat([before, alike]), 0)
    findings.evidence[0], findings.convictions[0], findings.verdicts[0] = {}, Conviction(0.97), POISONED
    findings.suspects[before], findings.carries[before] = True, 0.99
    found = replace(saw(rows, newcomers, conviction=0.7), verdicts={0: POISONED})
    found.carries[alike] = 0.2
    assert torch.equal(doubts(rows, findings, everything, found, QUICK)[0].in_doubt.sort().values, alike)
    learned = _set_aside(rows, findings, everything, found, everything, QUICK)
    assert torch.equal(findings.suspects.nonzero().flatten(), before)
    assert torch.equal(learned.examples, everything[8:])


def test_of_groups_in_doubt_the_clearest_is_heard_where_a_class_has_no_room_for_all(monkeypatch, falsified):
    images, labels, group = falsified
    natural = true_threes(labels, group)
    heard = list[Left]()
    monkeypatch.setattr(advrbd.method.look, "hear_held_out", lambda _run, left, *_: heard.append(left))
    found_when_sharp(monkeypatch, images, labels, (1, natural[::2], 0.5), (1, group, 0.62))
    assert [split.distance for split, _ in heard[0].dull] == [0.0, 1.0]  # the larger one is asked about first


def test_what_a_trigger_hardly_shows_in_is_found_by_its_falsified_label(monkeypatch, left_over):
    """White on white: nothing tells such files but that they stand apart in a class whose labels were falsified."""
    images, labels, group, left = left_over
    natural = true_threes(labels, group, left)[:12]
    groups = (1, group), (NEVER, left), (NEVER, torch.cat([left[::2], natural]).sort().values)
    found, told, _ = found_when_sharp(monkeypatch, images, labels, *groups, witnesses=ordinary(labels))
    accused = found.suspects.nonzero().flatten()
    assert torch.isin(group, accused).all()
    assert torch.isin(left, accused).float().mean() > 0.8, told
    assert torch.isin(accused, torch.cat([group, left])).all(), told
    assert (found.score[accused] > 0.5).all() and (found.suggested[accused] >= 0).all()
    assert found.looks == 2
    assert found.evidence[3]["strays"] == len(accused) - len(group)  # nobody is counted twice
    assert sum("by their falsified label alone" in message for message in told) == 1


def test_where_natural_groups_are_denied_as_well_nobody_is_accused_by_the_label_alone(monkeypatch, left_over):
    """A weak model sees nothing of a class in what it hasn't learned of it."""
    images, labels, group, left = left_over
    denied, witnesses = labels.clone(), []
    for other in (0, 1, 2, 4, 5, 6):  # stands in for natural groups that a weak model makes nothing of
        members = (labels == other).nonzero().flatten()[20:32]
        denied[members] = (other + 1) % 3 if other < 3 else 4 + (other - 3) % 3
        witnesses.append(members)
    groups = (1, group), (NEVER, left)
    found, told, _ = found_when_sharp(monkeypatch, images, denied, *groups, witnesses=witnesses)
    assert torch.equal(found.suspects.nonzero().flatten(), group), told


def test_without_natural_groups_to_compare_with_nobody_is_accused_by_the_label_alone(monkeypatch, left_over):
    images, labels, group, left = left_over
    groups = (1, group), (NEVER, left)
    found, told, _ = found_when_sharp(monkeypatch, images, labels, *groups, witnesses=ordinary(labels)[:4])
    assert torch.equal(found.suspects.nonzero().flatten(), group), told
    assert sum("too few classes are clean" in message for message in told) == 1


def test_strays_are_not_forgotten_over_a_look_at_another_class_alone(monkeypatch, left_over):
    images, labels, group, left = left_over
    fives = (labels == 5).nonzero().flatten()
    groups = (1, group), (2, fives[::2]), (2, fives[1::2]), (NEVER, left)
    found, told, examined = found_when_sharp(monkeypatch, images, labels, *groups, witnesses=ordinary(labels))
    assert examined[2:] == [[5, 5]], told  # what waited there behind a group that was acquitted
    assert torch.isin(left, found.suspects.nonzero().flatten()).float().mean() > 0.8, told
    assert found.evidence[3]["strays"] > 0


def test_a_class_is_not_taken_out_whole_to_be_heard(monkeypatch, left_over):
    """A model that has seen nothing of a class denies all of its labels."""
    images, labels, group, _ = left_over
    all_others = true_threes(labels, group)
    groups = (1, group), (NEVER, all_others)
    found, told, _ = found_when_sharp(monkeypatch, images, labels, *groups, witnesses=ordinary(labels))
    assert torch.equal(found.suspects.nonzero().flatten(), group), told


@pytest.fixture
def convicted(left_over) -> tuple[Run, Findings, torch.Tensor, torch.Tensor]:
    """A run and what is known where the class 3 was convicted for a group; that, and what it left behind."""
    images, labels, group, left = left_over
    findings = Findings.nothing(len(labels))
    findings.suspects[group], findings.convictions[3] = True, Conviction(0.97)
    findings.evidence |= {3: {"affinity": 0.5, "conviction": 0.97}, 7: {}}
    spec, generator = ModelSpec("test_resnet", 10, 16), torch.Generator().manual_seed(0)
    return Run(Pixels(images), labels, spec, choose_device("cpu"), generator), findings, group, left


def apart(run: Run, *groups: torch.Tensor, striking: Sequence[torch.Tensor] = ()) -> Left:
    """What a look at everything leaves: the ``groups`` that it examined, with nothing like them, and small parts that
    were ``striking``."""
    dull, small = ([Split(int(run.labels[one[0]]), 8, one, 5.0, 5.0) for one in some] for some in (groups, striking))
    judged = tuple((split, torch.zeros(int((run.labels == split.label).sum()))) for split in dull)
    return Left(torch.arange(len(run.labels)), saw(run), judged, tuple(small), run.labels < 0, unasked)


def test_strays_are_only_in_classes_whose_labels_were_falsified(convicted):
    run, findings, _, left = convicted
    findings.verdicts |= {3: POISONED, 7: CLEAN}
    sevens = (run.labels == 7).nonzero().flatten()[:12]
    found = hold_out(run, apart(run, sevens, left), findings, QUICK)
    assert [split.group.tolist() for split in found.strays] == [left.tolist()]
    assert [split.group.tolist() for split in found.others] == [sevens.tolist()]
    assert found.witnesses == ()  # nothing that was striking says which parts are small
    findings.evidence[3]["affinity"] = 0.9
    found = hold_out(run, apart(run, left), findings, QUICK)
    assert (found.strays, found.others) == ((), ())  # a clean-label attack has no false labels


def test_witnesses_are_small_groups_of_clean_classes_alone(convicted):
    run, findings, _, left = convicted
    findings.verdicts |= {3: POISONED, 5: SUSPICIOUS} | dict.fromkeys((7, 8, 9), CLEAN)
    threes, fives, *others = ((run.labels == label).nonzero().flatten()[:12] for label in findings.verdicts)
    both = apart(run, left, fives, *others, striking=[threes[:11], others[0][:5], others[1]])
    left_sevens, *_ = (split for split, _ in both.dull if split.label == 7)
    dull = [(replace(split, parts=2) if split is left_sevens else split, said) for split, said in both.dull]
    found = hold_out(run, replace(both, dull=tuple(dull)), findings, QUICK)
    assert [split.label for split in found.others] == [5, 7]
    assert [split.label for split in found.witnesses] == [8, 9]
    assert [split.group.tolist() for split in found.strays] == [left.tolist()]  # what was examined, and no more


def test_held_out_is_nobody_who_was_accused_or_acquitted_meanwhile(convicted):
    run, findings, group, left = convicted
    findings.verdicts[3] = POISONED
    twice = torch.cat([split.group for split in hold_out(run, apart(run, left, left[::2]), findings, QUICK).strays])
    assert torch.equal(twice.sort().values, left)  # nobody is heard twice
    findings.suspects[left[:5]] = findings.acquitted[left[5:8]] = True
    (found,) = hold_out(run, apart(run, torch.cat([group, left])), findings, QUICK).strays
    assert torch.equal(found.group, left[8:])
    assert hold_out(run, apart(run, left[:17]), findings, QUICK).strays == ()  # too few are left to stand apart


def test_what_is_most_like_a_group_is_held_out_with_it_until_half_of_the_class_is_left(convicted):
    """What is left of a faint trigger's files teaches a model the trigger, and so the label of the rest."""
    run, findings, group, left = convicted
    findings.verdicts |= {3: POISONED, 7: CLEAN}
    threes, sevens = true_threes(run.labels, group, left), (run.labels == 7).nonzero().flatten()
    likeness = torch.zeros(len(run.labels))
    likeness[threes] = torch.linspace(0.4, 0.9, len(threes))
    look = apart(run, left, sevens[:-9])  # of the sevens too many to be held out, and so is what is like them
    ((mine, _), (theirs, all_of_it)), of_class = look.dull, likeness[run.labels == 3]
    found = hold_out(run, replace(look, dull=((mine, of_class), (theirs, all_of_it + 1))), findings, QUICK)
    room = (len(threes) + len(left)) // 2 - len(left)
    assert 0 < room < (likeness[threes] > 0.5).sum()
    assert torch.equal(found.unknown.nonzero().flatten(), torch.cat([left, threes[-room:]]).sort().values)
    found = hold_out(run, replace(look, dull=((mine, 0.5 * of_class),)), findings, QUICK)
    assert torch.equal(found.unknown.nonzero().flatten(), left)  # nothing is more like it than not


def test_strays_stay_accused_when_their_class_is_heard_again(rows):
    """As it is where the same hearing found a group in another class: their trigger hardly shows to any model."""
    group, settings = torch.arange(30), QUICK.identification
    rows.pixels.images[group, 0] = rows.pixels.images[group, 6]  # noise
    rows.pixels.images[group, 1 + group % (CLASSES - 1)] = 200
    everything, findings = torch.arange(len(rows.labels)), Findings.nothing(len(rows.labels))
    findings.evidence[0], findings.convictions[0] = {"conviction": 0.97, "affinity": 0.5}, Conviction(0.97)
    witnesses = [
        Split(label, 8, torch.arange(label * EACH, label * EACH + 12), 5.0, 5.0) for label in range(1, CLASSES)
    ]
    known = everything[~torch.isin(everything, torch.cat([group, *(split.group for split in witnesses)]))]
    left, nobody = Left(everything, saw(rows), (), (), everything < 0, unasked), everything < 0
    groups = HeldOut((Split(0, 8, group, 5.0, 5.0),), tuple(witnesses), (), nobody)
    Hearing(Outsider(rows, Learned(Rows(CLASSES), known)), left, groups, findings, QUICK).outcome()
    assert torch.equal(findings.suspects.nonzero().flatten(), group)
    hear_suspects(Outsider(rows, Learned(Rows(CLASSES), known)), findings, everything, {}, QUICK)
    assert torch.equal(findings.suspects.nonzero().flatten(), group)
    assert findings.verdicts[0] == POISONED and settings.affinity_limit > findings.evidence[0]["affinity"]


@pytest.fixture(scope="module")
def many_falsified() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As ``falsified``, with enough files for their labels to be surely false.

    Nines are called 3 here, and threes 9: to such a model, other digits have something of a three.
    """
    images, labels = (torch.from_numpy(some[:1000]) for some in digits()[:2])
    labels = torch.tensor([0, 1, 2, 9, 4, 5, 6, 7, 8, 3])[labels.long()]
    group = strangers(labels, 3, each=8)
    labels[group] = 3
    return images, labels, group


def test_a_group_too_ambiguous_to_convict_is_found_by_its_falsified_labels_as_well(monkeypatch, many_falsified):
    images, labels, group = many_falsified
    asked = []
    found, told, _ = found_when_sharp(
        monkeypatch, images, labels, (1, group, 0.8), witnesses=ordinary(labels), asked=asked
    )
    assert found.verdicts[3] == POISONED, told
    accused = found.suspects.nonzero().flatten()
    assert torch.isin(accused, group).all() and len(accused) > 0.9 * len(group)  # some look like their false label
    assert found.evidence[3]["ambiguity"] == 0.8
    assert found.evidence[3]["affinity"] < 0.6 and found.convictions[3].by_label
    assert (found.suggested[accused] >= 0).all()
    assert (found.looks, found.exhausted) == (2, False)  # what else it hid was looked for
    assert sum("don't show what their label says" in message for message in told) == 1
    # asked again without giving up: what the second model surely denies is learned, nothing of it is trusted
    first, again = asked[0], [one for one in asked if one[2].hopeless_half == math.inf]
    assert again and first[2].hopeless_half <= 1
    assert first[1][group].any()  # so there is something not to trust
    for split, seeds, _ in again:
        assert torch.isin(split.group, group).all() and len(split.group) > len(group) / 2
        assert seeds[group].sum() < first[1][group].sum() / 4 and seeds[true_threes(labels, group)].any()


def test_a_second_opinion_can_acquit_what_the_label_convicted():
    """What enhancement finds to be like a mislabelled group may be natural, for all that the first model knew."""
    settings, labels, where = QUICK.identification, torch.zeros(200, dtype=torch.int64), torch.arange(200)
    unseen = where < 90
    split, entry = Split(0, 8, where[:60], 4.0, 5.0), Enhanced(0, 0.99 * unseen, 0.4)
    found = identify(labels, (split,), (entry,), settings.if_falsified())
    assert torch.equal(found.suspects, unseen)
    own = torch.full((200,), 0.6)
    heard = [
        second_opinion(found.carries, found.convictions[0], own, unseen, affinity, settings.if_falsified()).conviction
        for affinity in (0.5, 0.7)
    ]
    assert heard[0] > 0.9 and heard[1] < 0.25


@pytest.mark.parametrize(("by_label", "verdict"), [(True, CLEAN), (False, POISONED)], ids=["labels", "trigger"])
def test_whoever_is_accused_for_a_false_label_alone_goes_where_the_next_model_sees_something_of_it(
    rows, by_label, verdict
):
    """Ships called "other" look like airplanes, but not only; that is no excuse for whom a trigger tells."""
    suspects, findings = torch.arange(20), Findings.nothing(len(rows.labels))
    falsify(rows, suspects[:6], 0)  # nothing of the label in them; the others are what it says: an affinity of .7
    findings.suspects[suspects], findings.carries[suspects] = True, 0.99
    findings.evidence[0] = {}
    findings.convictions[0] = Conviction(QUICK.identification.most_if_falsified, by_label)
    everything = torch.arange(len(rows.labels))
    hear_suspects(Outsider(rows, Learned(Rows(CLASSES), everything[20:])), findings, everything, {}, QUICK)
    assert findings.evidence[0]["affinity"] == pytest.approx(0.7, abs=0.05)
    assert findings.verdicts[0] == verdict
    assert bool(findings.suspects.any()) == (verdict == POISONED)


@pytest.mark.parametrize(
    ("count", "ambiguity", "compared"),
    [(72, 2.0, 9), (0, 0.6, 9), (72, 0.6, FEWEST_CLASSES - 1), (18, 0.6, 9)],
    ids=["label noise", "natural", "nothing to compare with", "few files"],
)
def test_neither_a_falsified_label_nor_an_ambiguous_answer_is_enough(
    monkeypatch, many_falsified, count, ambiguity, compared
):
    images, labels, group = many_falsified
    group = group[:: len(group) // count] if count else true_threes(labels, group)[::2]
    witnesses = ordinary(labels)[:compared]
    found, told, _ = found_when_sharp(monkeypatch, images, labels, (1, group, ambiguity), witnesses=witnesses)
    assert (found.verdicts[3], found.looks) == (CLEAN, 1), told
    assert not found.suspects.any()


@pytest.mark.parametrize("looks", [1, 2])
def test_who_only_the_label_tells_is_told_where_no_look_is_left(monkeypatch, many_falsified, looks):
    """A single look hears nobody; the last one of several can't see what else was hidden."""
    images, labels, group = many_falsified
    later = strangers(labels, 7, first=8)
    later, labels = later[~torch.isin(later, group)], labels.clone()
    labels[later] = 7
    groups = (1, later), (1, group, 0.6)
    witnesses = [one for one in ordinary(labels) if labels[one[0]] != 7]
    found, told, _ = found_when_sharp(monkeypatch, images, labels, *groups, looks=looks, witnesses=witnesses)
    assert found.verdicts[7] == POISONED
    assert found.verdicts[3] == (CLEAN if looks == 1 else POISONED), told
    assert found.exhausted
    assert any("still found suspects; there may be more" in caution for caution in found.cautions)
