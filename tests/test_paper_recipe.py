"""AdvrBD as its paper words it: that it is the raw recipe, step by step, and changes nothing that it is given."""

import copy
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from advrbd.attacks import BadNets
from advrbd.baselines import BASELINES, NOTHING, PAPER_RECIPE, PaperRecipe, advrbd_paper
from advrbd.baselines.advrbd_paper import learn_and_unlearn
from advrbd.baselines.base import stage, train_on_rest
from advrbd.benchmark.digits import digits
from advrbd.config import PartitionSettings, RelearningSettings
from advrbd.data.pixels import Pixels
from advrbd.errors import DefenceError
from advrbd.method.partition import partition
from advrbd.model.device import choose_device
from advrbd.model.factory import ModelSpec, Network
from advrbd.model.run import Run

COUNT, TARGET = 400, 1
EXAMPLES = torch.arange(COUNT)
PARTITION = PartitionSettings(rate=0.25, masks=1, steps=1)


@dataclass(frozen=True)
class Recorded(Run):
    """A run that keeps what was trained on: the stage, the images, and their targets (of all images, int64 [N])."""

    trained: list = field(default_factory=list)

    def train(self, network, examples, settings, stage, targets=None, objective=None):
        everything = torch.arange(len(self.labels))
        wanted = self.labels if targets is None else targets(everything, self.generator)
        self.trained.append((stage, examples, wanted))
        return super().train(network, examples, settings, stage, targets, objective)


def stamped(images: np.ndarray, which: torch.Tensor) -> torch.Tensor:
    attack, draws = BadNets(side=6), np.random.default_rng(0)
    carrying = [attack.stamp(image, draws) if carries else image for image, carries in zip(images, which, strict=True)]
    return torch.from_numpy(np.stack(carrying))


def recorded(images: torch.Tensor, labels: torch.Tensor, seed: int = 1, name: str = "test_resnet") -> Recorded:
    spec = ModelSpec(name, 10, images.shape[1])
    return Recorded(Pixels(images), labels, spec, choose_device("cpu"), torch.Generator().manual_seed(seed))


def again(run: Recorded, seed: int = 1) -> Recorded:
    """The same images, with a generator of its own and nothing trained."""
    return replace(run, generator=torch.Generator().manual_seed(seed), trained=[])


def short(epochs: int, learning_rate: float):
    return stage(epochs, learning_rate, batch_size=32, augmented=False)


def recipe(**settings) -> PaperRecipe:
    """The recipe with next to no training, but for what ``settings`` say."""
    relearning = RelearningSettings(clean=short(1, 0.02), fine_tuning=short(1, 0.01))
    quick = dict(partition=PARTITION, rounds=2, steps=2, enhancement=short(1, 0.01), relearning=relearning)
    return PaperRecipe(**(quick | settings))


@pytest.fixture(scope="module")
def planted() -> torch.Tensor:
    """Which of the digits carry a trigger, bool [COUNT]."""
    labels = torch.from_numpy(digits()[1][:COUNT])
    sources = (labels != TARGET).nonzero().flatten()
    chosen = sources[torch.randperm(len(sources), generator=torch.Generator().manual_seed(0))[:40]]
    return torch.isin(EXAMPLES, chosen)


@pytest.fixture(scope="module")
def run(planted) -> Recorded:
    """Digits, a tenth of them with a white square and the target's label."""
    images, labels = digits()[:2]
    return recorded(stamped(images[:COUNT], planted), torch.from_numpy(labels[:COUNT]).where(~planted, TARGET))


def trained(run: Recorded, epochs: int) -> Network:
    own = again(run, seed=0)
    network = own.fresh_network()
    own.train(network, EXAMPLES, short(epochs, 0.1), "train")
    return network


@pytest.fixture(scope="module")
def undefended(run) -> Network:
    """A network that learned all images, by heart or by the trigger."""
    return trained(run, epochs=8)


@pytest.fixture(scope="module")
def halfway(run) -> Network:
    """A network that learned a part of the images."""
    return trained(run, epochs=2)


def said(run: Run, network: Network, examples: torch.Tensor) -> torch.Tensor:
    return run.infer(network, examples).logits.argmax(dim=1)


def test_the_recipe_is_found_by_its_name_beside_the_baselines_and_needs_nothing():
    assert dict(PAPER_RECIPE) == {"advrbd-paper": PaperRecipe}
    assert "advrbd-paper" not in BASELINES
    assert PaperRecipe.needs == NOTHING


def test_learning_and_unlearning_are_one_loss_with_opposite_signs():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels, unlearned = torch.tensor([0, 2, 0, 1]), torch.tensor([False, False, True, True])
    loss = learn_and_unlearn(lambda _: logits, torch.zeros(4), torch.where(unlearned, ~labels, labels))
    one, other = (
        functional.cross_entropy(logits[part], labels[part], reduction="sum") for part in (~unlearned, unlearned)
    )
    assert loss.item() == pytest.approx((one - other).item() / 4)
    (gradient,), (expected,) = torch.autograd.grad(loss, logits, retain_graph=True), torch.autograd.grad(one, logits)
    assert torch.allclose(gradient[~unlearned], expected[~unlearned] / 4)


def test_the_clean_part_is_the_most_sensitive_of_all_classes_together_and_grows_by_a_share_of_the_rest(run, halfway):
    examples = EXAMPLES[torch.randperm(COUNT, generator=torch.Generator().manual_seed(3))][:200]
    own = again(run)
    recipe(rounds=3, moved=0.1).defend(own, examples, halfway)
    rounds = [(images, wanted) for name, images, wanted in own.trained if "enhance" in name]
    parts = [examples[wanted[examples] < 0] for _, wanted in rounds]
    assert [len(part) for part in parts] == [50, 65, 79]  # a quarter of 200, then a tenth of 150 and of 135
    for smaller, larger in pairwise(parts):
        assert torch.isin(smaller, larger).all()
    scored = partition(again(run), halfway, examples, PARTITION).divergence
    assert set(parts[0].tolist()) == set(examples[scored.topk(50).indices].tolist())
    for images, wanted in rounds:
        assert torch.isin(images, examples).all()
        assert torch.equal(torch.where(wanted < 0, ~wanted, wanted), run.labels)


def test_later_rounds_ask_the_damaged_model_what_is_consistent(run, halfway):
    """The same draws, and more or less damage: the first part is the same, what joins it isn't."""
    parts = []
    for rate in (1e-9, 0.05):
        own = again(run)
        recipe(steps=10, enhancement=short(1, rate)).defend(own, EXAMPLES[:120], halfway)
        parts.append([wanted < 0 for name, _, wanted in own.trained if "enhance" in name])
    assert torch.equal(parts[0][0], parts[1][0])
    assert not torch.equal(parts[0][1], parts[1][1])


def test_what_is_still_predicted_as_its_label_is_poisoned_whatever_else_there_is_to_say(run, halfway):
    """Without a round, the enhanced model is the halfway one, so that the rule can be seen alone."""
    examples = EXAMPLES.flip(0)[:300]
    labels = run.labels[examples]
    found = recipe(rounds=0).defend(again(run), examples, halfway)
    outputs = run.infer(halfway, examples)
    assert torch.equal(found.suspects, outputs.logits.argmax(dim=1) == labels)
    assert 0 < found.suspects.sum() < 300
    assert torch.allclose(found.score.exp(), outputs.probabilities[torch.arange(300), labels], atol=1e-5)


def test_a_folder_in_which_nothing_is_planted_has_suspects_too():
    images, labels = digits()[:2]
    own = recorded(torch.from_numpy(images[:COUNT]), torch.from_numpy(labels[:COUNT]))
    network = own.fresh_network()
    own.train(network, EXAMPLES, short(2, 0.1), "train")
    assert recipe(steps=10).defend(own, EXAMPLES, network).suspects.any()


def test_the_clean_model_learns_the_rest_then_labels_the_suspects_then_learns_all(run, halfway):
    own, examples = again(run), EXAMPLES[::2]
    relearning = RelearningSettings(clean=short(4, 0.05), fine_tuning=short(1, 0.02))
    found = recipe(rounds=0, relearning=relearning).defend(own, examples, halfway)
    (_, kept, plain), (name, union, wanted) = own.trained
    assert torch.equal(kept, examples[~found.suspects])
    assert torch.equal(plain, run.labels)
    assert "fine-tune" in name
    assert torch.equal(union, examples)
    before = train_on_rest(again(run), examples, found.suspects, relearning.clean, "before relabelling")
    suspects = examples[found.suspects]
    assert torch.equal(wanted[suspects], said(run, before, suspects))
    assert not torch.equal(wanted[suspects], run.labels[suspects])
    others = ~torch.isin(EXAMPLES, suspects)
    assert torch.equal(wanted[others], run.labels[others])
    assert not torch.equal(*(run.infer(each, examples).logits for each in (found.network, before)))


def test_a_folder_that_is_suspected_as_a_whole_leaves_nothing_to_learn(run, undefended):
    right = EXAMPLES[said(run, undefended, EXAMPLES) == run.labels]
    with pytest.raises(DefenceError, match=f"advrbd-paper suspects {len(right)} of {len(right)} images"):
        recipe(rounds=0).defend(again(run), right, undefended)


def test_a_budget_leaves_the_rounds_and_the_clean_model_as_they_are():
    assert PaperRecipe().scaled(0.1) == PaperRecipe()


def test_the_recipe_is_repeatable_and_leaves_images_labels_and_network_as_they_are(run, halfway):
    before = copy.deepcopy((run.pixels.images, run.labels, dict(halfway.state_dict()), torch.get_rng_state()))
    first, second = (recipe().defend(again(run), EXAMPLES[:200], halfway) for _ in range(2))
    assert torch.equal(before[0], run.pixels.images)
    assert torch.equal(before[1], run.labels)
    assert all(torch.equal(before[2][key], value) for key, value in halfway.state_dict().items())
    assert torch.equal(before[3], torch.get_rng_state())
    assert (first.suspects.dtype, first.score.dtype) == (torch.bool, torch.float32)
    assert torch.equal(first.score, second.score)
    assert torch.equal(*(run.infer(found.network, EXAMPLES).logits for found in (first, second)))


def test_a_transformer_can_be_enhanced_too(run):
    own = recorded(run.pixels.images, run.labels, name="test_vit")
    found = recipe(steps=1).defend(own, EXAMPLES[:64], own.fresh_network())
    assert own.infer(found.network, EXAMPLES[:8]).logits.isfinite().all()


def test_enhancement_forgets_the_task_before_the_backdoor_where_no_carrier_is_unlearned(
    run, undefended, planted, monkeypatch
):
    """The premise of the paper, on an easy set: of a part without carriers, unlearned, all other images suffer first.

    The recipe's own parts are no test of it: at this size they hold carriers or not by the processor's rounding, and
    the result of one enhancement follows (examples/reproduce/experiments.md, "The paper's recipe on 400 digits").
    """

    def right(run, _network, examples, _settings):
        return SimpleNamespace(divergence=(~planted[examples]) + torch.rand(len(examples), generator=run.generator))

    monkeypatch.setattr(advrbd_paper, "partition", right)
    assert (said(run, undefended, EXAMPLES) == run.labels).float().mean() > 0.9
    found = [area(recipe(rounds=3, steps=60), again(run, seed), undefended, planted) for seed in (1, 2, 3)]
    assert sum(found) / len(found) > 0.85  # single ones were .834 to 1.000, 8 networks; chance is .5


def area(paper: PaperRecipe, run: Run, network: Network, planted: torch.Tensor) -> float:
    """The AUROC for "carries the trigger" of the loss of an image's own label after enhancement, lower for carriers."""
    logits = run.infer(paper._enhanced(run, EXAMPLES, network), EXAMPLES).logits
    losses = functional.cross_entropy(logits, run.labels, reduction="none")
    return (losses[planted, None] < losses[~planted]).float().mean().item()
