"""The seven baselines: what defines each of them, what it needs, and that it changes nothing that it is given."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional

from advrbd.attacks import BadNets
from advrbd.baselines import BASELINES, CLEAN_IMAGES, CLP, DBR, CutMix, FinePruning, FineTuning, SCAnFT
from advrbd.baselines.abl import ABL, held_at
from advrbd.baselines.base import ascent, stage, unlearn_and_relearn
from advrbd.baselines.clp import lipschitz_bounds, normalised_convolutions
from advrbd.baselines.cutmix import mixed_cross_entropy, paste_box
from advrbd.baselines.dbr import feature_changes, rotate_and_shift, similarity_of_centres
from advrbd.baselines.fine_pruning import channels_to_keep
from advrbd.baselines.scan_em import anomalies, decompose, likelihood_ratio, untangle
from advrbd.benchmark.digits import digits
from advrbd.data.pixels import Pixels
from advrbd.errors import DefenceError, ModelError
from advrbd.model.device import choose_device
from advrbd.model.factory import ModelSpec, Network
from advrbd.model.run import Run
from advrbd.model.training import cross_entropy

COUNT, TARGET = 400, 1
EXAMPLES = torch.arange(COUNT)


def run_of(images: torch.Tensor, labels: torch.Tensor, seed: int = 0, name: str = "test_resnet") -> Run:
    spec = ModelSpec(name, int(labels.max()) + 1, images.shape[1])
    return Run(Pixels(images), labels, spec, choose_device("cpu"), torch.Generator().manual_seed(seed))


def short(epochs: int, learning_rate: float):
    return stage(epochs, learning_rate, batch_size=32, augmented=False)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def planted() -> torch.Tensor:
    """Which of the digits below carry a trigger, bool [COUNT]."""
    labels = torch.from_numpy(digits()[1][:COUNT])
    sources = (labels != TARGET).nonzero().flatten()
    chosen = sources[torch.randperm(len(sources), generator=torch.Generator().manual_seed(0))[:40]]
    return torch.isin(EXAMPLES, chosen)


@pytest.fixture(scope="module")
def run(planted) -> Run:
    """Digits, a tenth of them with a white square and the target's label."""
    images, labels = digits()[:2]
    return run_of(stamped(images[:COUNT], planted), torch.from_numpy(labels[:COUNT]).where(~planted, TARGET))


@pytest.fixture(scope="module")
def undefended(run) -> Network:
    """A network that learned the digits and the backdoor."""
    own = fresh(run, seed=0)
    network = own.fresh_network()
    own.train(network, EXAMPLES, short(24, 0.1), "train")  # long enough to have settled on any processor
    return network


@pytest.fixture(scope="module")
def clean(planted) -> torch.Tensor:
    return (~planted).nonzero().flatten()[::3]


def stamped(images: np.ndarray, which: torch.Tensor) -> torch.Tensor:
    attack, draws = BadNets(side=6), np.random.default_rng(0)
    carrying = [attack.stamp(image, draws) if carries else image for image, carries in zip(images, which, strict=True)]
    return torch.from_numpy(np.stack(carrying))


def judge(network: Network) -> tuple[float, float]:
    """Accuracy and attack success rate on held-out digits."""
    images, labels = digits()[2:]
    labels = torch.from_numpy(labels)
    said = []
    for shown in (torch.from_numpy(images), stamped(images, torch.ones(len(images), dtype=torch.bool))):
        outputs = run_of(shown, labels).infer(network, torch.arange(len(labels)))
        said.append(outputs.logits.argmax(dim=1))
    return float((said[0] == labels).float().mean()), float((said[1][labels != TARGET] == TARGET).float().mean())


def fresh(run: Run, seed: int = 1) -> Run:
    """The same images with a generator of its own."""
    return replace(run, generator=torch.Generator().manual_seed(seed))


def shuffled(count: int) -> torch.Tensor:
    """Some of the examples, in no order."""
    return EXAMPLES[torch.randperm(COUNT, generator=torch.Generator().manual_seed(3))][:count]


# The interface


def test_the_baselines_stand_in_the_order_of_the_paper_and_say_what_they_need():
    assert list(BASELINES) == ["fine-tuning", "fine-pruning", "cutmix", "clp", "d-br", "scan-ft", "abl"]
    needy = {name for name, defence in BASELINES.items() if defence.needs == CLEAN_IMAGES}
    assert needy == {"fine-tuning", "fine-pruning", "scan-ft"}


@pytest.mark.parametrize("name", ["fine-tuning", "fine-pruning", "scan-ft"])
def test_a_defence_is_refused_without_the_clean_images_that_it_needs(run, undefended, name):
    for given in (None, torch.arange(0)):
        with pytest.raises(DefenceError, match=f"{name} needs clean images"):
            BASELINES[name]().defend(run, EXAMPLES, undefended, given)


def test_a_budget_scales_every_stage_and_nothing_else():
    scaled = ABL(floor=0.4).scaled(0.1)
    assert (scaled.isolation.epochs, scaled.fine_tuning.epochs, scaled.unlearning.epochs) == (1, 6, 1)
    assert scaled.floor == 0.4
    assert scaled.unlearning.minimum_steps == 4
    assert scaled.scaled(1e-6).fine_tuning.epochs == 1
    assert FineTuning().scaled(1) == FineTuning()


@pytest.mark.parametrize("name", BASELINES)
def test_a_defence_is_repeatable_and_leaves_images_labels_and_network_as_they_are(run, undefended, clean, name):
    examples = shuffled(300)
    before = copy.deepcopy((run.pixels.images, run.labels, dict(undefended.state_dict()), torch.get_rng_state()))
    first, second = (BASELINES[name]().scaled(0.001).defend(fresh(run), examples, undefended, clean) for _ in range(2))
    weights = dict(undefended.state_dict())
    assert torch.equal(before[0], run.pixels.images)
    assert torch.equal(before[1], run.labels)
    assert all(torch.equal(before[2][key], weights[key]) for key in weights)
    assert torch.equal(before[3], torch.get_rng_state())
    assert first.network is not undefended
    once, again = (run.infer(result.network, EXAMPLES).logits for result in (first, second))
    assert torch.equal(once, again)
    if name in ("d-br", "scan-ft", "abl"):
        assert first.suspects.dtype == torch.bool
        assert first.score.dtype == torch.float32
        assert first.suspects.shape == first.score.shape == (300,)
        assert torch.equal(first.score, second.score)
        assert first.suspects.any()
        assert first.score[first.suspects].median() > first.score[~first.suspects].median()
    else:
        assert first.suspects is None
        assert first.score is None


@pytest.mark.parametrize("name", [name for name in BASELINES if name != CLP.name])
def test_a_transformer_can_be_defended_too(run, clean, name):
    own = run_of(run.pixels.images, run.labels, name="test_vit")
    network = own.fresh_network()
    defended = BASELINES[name]().scaled(0.001).defend(own, EXAMPLES[:128], network, clean[:80]).network
    before, after = (own.infer(each, EXAMPLES[:8]).logits for each in (network, defended))
    assert after.isfinite().all()
    assert after.shape == before.shape == (8, 10)


# The loop's objective


def test_the_default_objective_is_the_cross_entropy_and_another_one_is_used(run):
    def trained(objective):
        own = fresh(run)
        network = own.fresh_network()
        own.train(network, EXAMPLES[:64], short(1, 0.05), "train", objective=objective)
        return own.infer(network, EXAMPLES[:64]).logits

    assert torch.equal(trained(None), trained(cross_entropy))
    assert not torch.equal(trained(None), trained(ascent))


def test_unlearning_forgets_the_backdoor_and_relearning_keeps_the_task(run, undefended, planted, clean):
    assert judge(undefended)[1] > 0.9
    network = copy.deepcopy(undefended)
    unlearn_and_relearn(fresh(run), network, EXAMPLES[planted], clean, short(6, 0.02), "test")
    accuracy, success = judge(network)
    assert success < 0.2
    assert accuracy > judge(undefended)[0] - 0.15


# Fine-tuning and fine-pruning


def test_fine_tuning_learns_from_the_clean_images_alone(run, undefended, clean):
    """Whose labels are turned here, so that what was learned from them shows."""
    turned = replace(fresh(run), labels=run.labels.clone())
    turned.labels[clean] = 9 - run.labels[clean]
    network = FineTuning(training=short(20, 0.05)).defend(turned, EXAMPLES, undefended, clean).network
    said = run.infer(network, EXAMPLES).logits.argmax(dim=1)
    others = ~torch.isin(EXAMPLES, clean) & (run.labels != TARGET)
    assert (said[clean] == 9 - run.labels[clean]).float().mean() > 0.7
    assert (said[others] == run.labels[others]).float().mean() < 0.3


def test_pruning_cuts_dormant_channels_first_and_stops_before_the_accuracy_falls_too_far():
    """Ten classes, each on a channel of its own, and ten dormant channels, mixed among them."""
    labels = torch.arange(10).repeat(5)
    activity = torch.arange(1.0, 11.0)  # of the class's channel, so that their order is known
    place = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    features = torch.full((50, 20), 1e-3)
    features[torch.arange(50), place[labels]] = activity[labels]
    classifier = nn.Linear(20, 10)
    with torch.no_grad():
        classifier.weight.zero_()
        classifier.bias.zero_()
        classifier.bias[9] = 0.01  # an image whose channel is gone looks like a nine
        classifier.weight[torch.arange(10), place[:10]] = 1.0
    kept = channels_to_keep(classifier, features, labels, step=0.05, largest_drop=0.25)
    assert not kept[place[10:]].any()
    assert kept[place[:10]].tolist() == [False] * 2 + [True] * 8  # two classes of ten lost is .2, three would be .3
    assert channels_to_keep(classifier, features, labels, step=0.05, largest_drop=1.0).sum() == 1


def test_channels_that_were_pruned_stay_cut_while_the_rest_is_tuned(run, undefended, clean):
    defended = FinePruning(training=short(6, 0.02)).defend(fresh(run), EXAMPLES, undefended, clean).network
    before, after = (network.backbone.get_classifier().weight for network in (undefended, defended))
    cut = (after == 0).all(dim=0)
    assert 0 < cut.sum() < len(cut)
    assert not (before == 0).all(dim=0).any()
    assert not torch.equal(before[:, ~cut], after[:, ~cut])
    features = run.infer(undefended, clean).features.mean(dim=0)
    assert features[cut].max() <= features[~cut].min()
    images = run.pixels.batch(clean[:4], torch.device("cpu"))
    with torch.no_grad():
        assert torch.equal(defended(images), defended.classify(defended.features(images)))  # no hook is left
    assert judge(defended)[0] > judge(undefended)[0] - 0.15


# CutMix


@pytest.mark.parametrize("share", [0.0, 0.3, 0.75, 1.0])
def test_the_share_of_the_labels_is_that_of_the_area(share):
    draws = np.random.default_rng(0)
    images, partners = torch.zeros(2, 3, 16, 16), torch.ones(2, 3, 16, 16)
    shares = set()
    for _ in range(50):
        mixed, left = paste_box(images, partners, share, draws)
        assert mixed.mean().item() == pytest.approx(1 - left)
        assert left >= share - 1e-9
        rows, columns = mixed[0, 0].amax(dim=1), mixed[0, 0].amax(dim=0)
        assert mixed[0, 0].sum() == rows.sum() * columns.sum()  # a box
        shares.add(left)
    assert images.eq(0).all()
    assert min(shares) - share < 0.15


def test_a_mixed_batch_is_learned_under_both_labels_by_their_share(generator):
    """Images of one grey each, and a network that reads their mean: both partners and the share can be told from it."""
    greys, labels = torch.linspace(0, 1, 8), torch.arange(8) % 2
    images = greys[:, None, None, None].expand(8, 3, 16, 16).contiguous()
    seen = []

    def network(batch):
        seen.append(batch)
        return batch.mean(dim=(1, 2, 3))[:, None] * torch.tensor([[3.0, -3.0]])

    loss = mixed_cross_entropy(50.0, 1.0, generator)(network, images, labels)
    share = float((seen[0] == images).float().mean(dim=(1, 2, 3)).min())  # 1 where an image is its own partner
    assert 0 < share < 1
    other = (seen[0].mean(dim=(1, 2, 3)) - share * greys) / (1 - share)
    partners = (other[:, None] - greys).abs().argmin(dim=1)
    assert partners.sort().values.tolist() == list(range(8))
    logits = network(seen[0])
    expected = share * functional.cross_entropy(logits, labels)
    expected += (1 - share) * functional.cross_entropy(logits, labels[partners])
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    plain = mixed_cross_entropy(50.0, 0.0, generator)(network, images, labels)
    assert plain.item() == pytest.approx(functional.cross_entropy(network(images), labels).item())


def test_cutmix_learns_the_task_afresh(run, undefended):
    defended = CutMix(training=short(6, 0.1)).defend(fresh(run), EXAMPLES, undefended).network
    assert judge(defended)[0] > 0.4  # 0.1 by chance


# CLP


def test_the_bound_of_a_one_by_one_convolution_is_its_lipschitz_constant():
    convolution, norm = nn.Conv2d(5, 3, 1, bias=False), nn.BatchNorm2d(3).eval()
    norm.running_var.copy_(torch.tensor([0.5, 2.0, 1.0]))
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -2.0, 0.5]))
        steepest = convolution.weight.flatten(1)  # the direction in which a channel answers most
        steepest = (steepest / steepest.norm(dim=1, keepdim=True))[:, :, None, None]
        change = norm(convolution(steepest)) - norm(convolution(torch.zeros(1, 5, 1, 1)))
    assert torch.allclose(change.flatten(1).diagonal().abs(), lipschitz_bounds(convolution, norm), atol=1e-5)


def test_clp_cuts_the_outlier_of_a_layer_and_no_other_channel(run, undefended):
    network = copy.deepcopy(undefended)
    layers = list(normalised_convolutions(network))
    norm = next(norm for _, norm in layers if norm.num_features >= 32)
    with torch.no_grad():
        for convolution, each in layers:  # no bound of a layer far from the others ...
            spread = torch.linspace(0.9, 1.1, each.num_features)
            each.weight.copy_(spread * each.weight / lipschitz_bounds(convolution, each))
        norm.weight[7] *= 4  # ... but one
    defended = CLP().defend(run, EXAMPLES, network).network
    for (_, before), (_, after) in zip(layers, normalised_convolutions(defended), strict=True):
        cut = after.weight == 0
        assert cut.nonzero().flatten().tolist() == ([7] if before is norm else [])
        assert torch.equal(after.weight[~cut], before.weight[~cut])
        assert after.bias[cut].eq(0).all()


def test_every_normalisation_of_a_residual_net_is_looked_at_and_a_transformer_has_none(run):
    network = run.fresh_network()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [norm for _, norm in normalised_convolutions(network)] == norms
    transformer = run_of(run.pixels.images, run.labels, name="test_vit")
    with pytest.raises(ModelError, match="batch normalisation"):
        CLP().defend(transformer, EXAMPLES, transformer.fresh_network())


# D-BR


def test_transformations_move_images_within_their_limits(generator):
    images = torch.rand(6, 3, 16, 16, generator=generator)
    assert torch.allclose(rotate_and_shift(images, 0.0, 0.0, generator), images, atol=1e-5)
    assert not torch.allclose(rotate_and_shift(images, 180.0, 0.0, generator), images, atol=1e-2)
    dot = torch.zeros(200, 1, 20, 20)
    dot[:, :, 9:11, 9:11] = 1.0
    shifted, turned = rotate_and_shift(dot, 0.0, 0.2, generator), rotate_and_shift(dot, 180.0, 0.0, generator)
    reached = shifted.amax(dim=(0, 1)).nonzero()
    assert (reached.min(), reached.max()) == (5, 14)  # four pixels, a fifth of the side, either way
    assert turned.amax(dim=(0, 1)).nonzero().min() >= 8  # the middle stays where it is


def test_classes_with_centres_apart_have_a_low_intra_class_loss():
    class Given:
        def features(self, images):
            return images.flatten(1)

    labels = torch.tensor([5, 5, 2, 2])
    alike, apart = torch.ones(4, 2, 1, 1), torch.tensor([[1.0, 0], [3, 0], [0, 2], [0, 4]])[..., None, None]
    assert similarity_of_centres(Given(), alike, labels).item() == pytest.approx(0.5)  # 2 of 4 pairs are no pairs
    assert similarity_of_centres(Given(), apart, labels).item() == pytest.approx(0.0)
    opposite = torch.tensor([[1.0, 0], [3, 0], [-2, 0], [-4, 0]])[..., None, None]
    assert similarity_of_centres(Given(), opposite, labels).item() == pytest.approx(-0.5)


def discs(generator) -> tuple[Run, torch.Tensor]:
    """Discs whose brightness is their class: no rotation changes them. A tenth have a white corner and the target's
    label; bool [240] says which."""
    labels, side = torch.arange(4).repeat(60), torch.arange(16.0)
    disc = ((side[:, None] - 7.5).square() + (side - 7.5).square() < 25).float()
    noise = 20 * torch.rand(240, 16, 16, generator=generator)
    images = (disc * (40 + 65 * labels[:, None, None]) + noise).clamp(0, 255).to(torch.uint8)
    planted = torch.isin(torch.arange(240), torch.randperm(240, generator=generator)[:24]) & (labels != TARGET)
    images[planted, -3:, -3:] = 255
    return run_of(images[..., None].repeat(1, 1, 1, 3), labels.where(~planted, TARGET)), planted


def test_features_of_poisoned_images_are_the_most_sensitive_ones(generator):
    run, planted = discs(generator)
    defence = DBR(learning=short(20, 0.1), parting=short(3, 0.01), unlearning=short(1, 1e-4))
    found = defence.defend(run, torch.arange(240), run.fresh_network())
    assert roc_auc_score(planted, found.score) > 0.8
    assert found.suspects.sum() == 12  # 5 %
    assert found.score[found.suspects].min() >= found.score[~found.suspects].max()
    assert (found.suspects & planted).sum() >= 6  # 1.2 by chance


def test_an_image_that_its_transformation_leaves_alone_has_no_feature_change(run, undefended):
    blank = run_of(torch.cat([torch.zeros_like(run.pixels.images[:1]), run.pixels.images[:20]]), run.labels[:21])
    changes = feature_changes(blank, undefended, torch.arange(21), 180.0, 0.2)
    assert changes[0] == 0
    assert changes[1:].min() > 0


# SCAn


def populations(generator, second: int, distance: float):
    """Features of six Gaussian classes of 200 with one covariance; ``second`` images of class 2 are shifted by
    ``distance`` of its deviations. Then the shared covariance."""
    labels = torch.arange(6).repeat_interleave(200)
    mixing = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    centres = 6 * torch.randn(6, 8, generator=generator, dtype=torch.float64)
    whitened = torch.randn(1200, 8, generator=generator, dtype=torch.float64)
    whitened[400 : 400 + second, 0] += distance
    return whitened @ mixing.T + centres[labels], labels, mixing @ mixing.T


def test_em_finds_the_variation_within_classes(generator):
    features, labels, true = populations(generator, second=0, distance=0.0)
    between, within = decompose(features - features.mean(dim=0), labels, 100, 1e-5)
    assert (within - true).norm() < 0.1 * true.norm()
    means = torch.stack([features[labels == label].mean(dim=0) for label in range(6)])
    expected = torch.cov(means.T, correction=0)
    assert (between - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("second", [40, 100])
def test_a_class_of_two_populations_stands_out_and_is_cut_where_they_meet(generator, second):
    features, labels, true = populations(generator, second, distance=6.0)
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(true), features.T, upper=False).T
    statistics = []
    for label in range(6):
        points = whitened[labels == label]
        axis, offset = untangle(points, 100)
        side = points @ axis - offset > 0
        statistics.append(likelihood_ratio(points, side))
        if label == 2:
            found = side if side[:second].float().mean() > 0.5 else ~side
            assert (found == (torch.arange(200) < second)).float().mean() > 0.97
    anomaly = anomalies(torch.tensor(statistics))
    assert anomaly[2] > SCAnFT().threshold == pytest.approx(7.389, abs=1e-3)
    assert anomaly[torch.arange(6) != 2].max() < SCAnFT().threshold


def test_points_that_are_all_alike_are_one_population():
    points = torch.ones(10, 3, dtype=torch.float64)
    axis, offset = untangle(points, 100)
    assert (axis.abs().sum(), offset) == (0, 0)
    assert likelihood_ratio(points, points @ axis > offset) == 0


def test_scan_finds_the_backdoored_digits_and_unlearns_them(run, undefended, planted, clean):
    examples = shuffled(360)
    found = SCAnFT(unlearning=short(6, 0.02)).defend(fresh(run), examples, undefended, clean)
    carries = planted[examples]
    assert found.suspects[carries].float().mean() > 0.9
    assert found.suspects[~carries].float().mean() < 0.02
    assert not found.suspects[torch.isin(examples, clean)].any()
    assert roc_auc_score(carries, found.score) > 0.95
    accuracy, success = judge(found.network)
    assert success < 0.2
    assert accuracy > judge(undefended)[0] - 0.15


def test_scan_refuses_clean_images_that_tell_nothing(run, undefended):
    same = replace(run, pixels=Pixels(run.pixels.images[:1].expand(COUNT, -1, -1, -1)))
    with pytest.raises(DefenceError, match="more of them"):
        SCAnFT().defend(same, EXAMPLES, undefended, torch.arange(10))


# ABL


@pytest.mark.parametrize(("level", "sign"), [(0.3, 1.0), (1.5, -1.0)])
def test_local_gradient_ascent_turns_the_loss_round_below_the_floor(level, sign):
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]], requires_grad=True)  # a loss of log 2 = .69
    labels = torch.tensor([0, 1])
    loss = held_at(level)(lambda _: logits, torch.zeros(2), labels)
    plain = functional.cross_entropy(logits, labels)
    (gradient,), (expected,) = torch.autograd.grad(loss, logits), torch.autograd.grad(plain, logits)
    assert torch.allclose(gradient, sign * expected)


def test_abl_isolates_what_is_learned_fastest(run, planted, generator):
    """Labels that are drawn by chance are slow to learn, a trigger is fast."""
    labels = torch.randint(0, 10, (COUNT,), generator=generator).where(~planted, TARGET)
    hard = replace(fresh(run), labels=labels)
    defence = ABL(isolated_share=0.05, isolation=short(5, 0.1), fine_tuning=short(1, 1e-4), unlearning=short(1, 1e-4))
    found = defence.defend(hard, EXAMPLES, run.fresh_network())
    assert found.suspects.sum() == 20
    assert found.suspects[planted].sum() >= 15  # 2 by chance
    assert found.score[found.suspects].min() >= found.score[~found.suspects].max()


@pytest.mark.parametrize(("minimum_steps", "turns"), [(0, 3), (4, 3), (20, 10)])
def test_unlearning_takes_more_turns_where_few_images_give_few_steps(minimum_steps, turns):
    stages = []

    def train(_network, _examples, settings, name, **_):
        stages.append((name, settings))

    run = SimpleNamespace(train=train)
    settings = stage(3, 1e-4, batch_size=10, minimum_steps=minimum_steps)
    unlearn_and_relearn(run, None, torch.arange(25), torch.arange(25, 60), settings, "d-br")  # two steps an epoch
    assert [name for name, _ in stages[:2]] == ["d-br: unlearn, epoch 1", "d-br: relearn, epoch 1"]
    assert len(stages) == 2 * turns
    assert {(given.epochs, given.minimum_steps) for _, given in stages} == {(1, 0)}
