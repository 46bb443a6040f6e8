"""Detectors of other packages: that each image gets what the package said of it, and what they need is asked for.

Everything is tried on stubs that have the packages' signatures, and on the packages themselves where they are there.
"""

import copy
import importlib
import inspect
import sys
from dataclasses import dataclass, field, replace
from types import ModuleType

import numpy as np
import pytest
import torch
from torch.nn import functional

from advrbd.baselines import (
    BASELINES,
    INSTALLED,
    NOTHING,
    POISON_RATE,
    ActivationClustering,
    LabelIssues,
    SpectralSignatures,
)
from advrbd.baselines.base import stage
from advrbd.baselines.installed import TOOLBOX, known_features, share_of_class, stratified_folds
from advrbd.benchmark.digits import digits
from advrbd.config import RelearningSettings
from advrbd.data.pixels import Pixels
from advrbd.errors import DefenceError
from advrbd.model.device import choose_device
from advrbd.model.factory import ModelSpec
from advrbd.model.inference import Outputs
from advrbd.model.run import Run

SHORT = RelearningSettings(clean=stage(1, 0.02, batch_size=32, augmented=False))
CLUSTERING, SPECTRAL, LABELS = "activation-clustering", "spectral-signatures", "cleanlab"


class StubClustering:
    """Cuts each class in the middle of the range of its most variable feature, and suspects the smaller part."""

    def __init__(self, classifier, x_train, y_train, generator=None, ex_re_threshold=None):
        self.classifier, self.x_train, self.y_train = classifier, x_train, y_train
        self.clusters_by_class = []

    def detect_poison(self, **kwargs):
        assert not kwargs
        features = self.classifier.get_activations(self.x_train, layer=len(self.classifier.layer_names) - 1)
        clean = [1] * len(self.x_train)
        for label in range(self.classifier.nb_classes):
            members = np.flatnonzero(self.y_train == label)
            if len(members) < 10:
                raise ValueError("too few\nof them")
            values = features[members, features[members].var(axis=0).argmax()]
            parts = (values > (values.min() + values.max()) / 2).astype(np.int32)
            parts = parts ^ np.random.randint(2)  # noqa: NPY002 - k-means, too, names its parts by chance
            self.clusters_by_class.append(parts)
            for member in members[parts == np.bincount(parts, minlength=2).argmin()]:
                clean[member] = 0
        return {}, clean


class StubSpectral:
    """Scores an image by the most variable feature."""

    def __init__(self, classifier, x_train, y_train, expected_pp_poison=0.33, batch_size=128, eps_multiplier=1.5):
        self.classifier, self.x_train, self.y_train = classifier, x_train, y_train
        self.settings = {"expected_pp_poison": expected_pp_poison, "eps_multiplier": eps_multiplier}

    def detect_poison(self, **kwargs):
        self.settings |= kwargs
        share = self.settings["expected_pp_poison"] * self.settings["eps_multiplier"]
        features = self.classifier.get_activations(self.x_train, layer=0)
        score = np.abs(features[:, features.var(axis=0).argmax()])
        clean, report = [0] * len(score), {}
        for label in range(self.classifier.nb_classes):
            members = np.flatnonzero(self.y_train == label)
            cutoff = np.quantile(score[members], max(1 - share, 0.0))
            for member in members:
                if score[member] < cutoff:
                    clean[member] = 1
                else:
                    report[member] = score[member]
        return report, clean


class StubIssues:
    """Calls every label wrong that isn't the most probable one; its methods stand for two functions."""

    def find_label_issues(
        self,
        labels,
        pred_probs,
        *,
        return_indices_ranked_by=None,
        rank_by_kwargs=None,
        filter_by="prune_by_noise_rate",
        frac_noise=1.0,
        num_to_remove_per_class=None,
        min_examples_per_class=1,
        confident_joint=None,
        n_jobs=None,
        verbose=False,
        multi_label=False,
    ):
        assert n_jobs == 1
        return pred_probs.argmax(axis=1) != labels

    def get_label_quality_scores(self, labels, pred_probs, *, method="self_confidence", adjust_pred_probs=False):
        return pred_probs[np.arange(len(labels)), labels]


STUBS = {
    TOOLBOX: {"ActivationDefence": StubClustering, "SpectralSignatureDefense": StubSpectral},
    "cleanlab.filter": {"find_label_issues": StubIssues().find_label_issues},
    "cleanlab.rank": {"get_label_quality_scores": StubIssues().get_label_quality_scores},
}


def need(module: str) -> ModuleType:
    """The real ``module``, or the test is skipped."""
    package = module.partition(".")[0]
    pytest.importorskip(package, reason=f"{package} isn't installed (extra bench)")
    return importlib.import_module(module)


@pytest.fixture
def stubs(monkeypatch):
    for name, content in STUBS.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture(params=["stub", "real"])
def packages(request):
    """Both the stubs and, where they are installed, the packages."""
    if request.param == "stub":
        request.getfixturevalue("stubs")
    else:
        for name in STUBS:
            need(name)


@dataclass(frozen=True)
class Given(Run):
    """A run in which the features float32 [N, F] of all images are known, and what was trained on is kept."""

    features: torch.Tensor | None = None
    trained: list = field(default_factory=list)

    def train(self, network, examples, settings, stage, targets=None, objective=None):
        self.trained.append((examples, settings))
        return 0.0

    def infer(self, network, examples, mirror=False):
        return Outputs(torch.zeros(len(examples), self.class_count), self.features[examples])


def given(labels: torch.Tensor, features: torch.Tensor, seed: int = 0, kind: type[Run] = Given) -> Given:
    spec = ModelSpec("test_resnet", 7, 16)
    pixels = Pixels(torch.zeros(len(labels), 16, 16, 3, dtype=torch.uint8))
    means = choose_device("cpu"), torch.Generator().manual_seed(seed)
    return kind(pixels, labels, spec, *means, features=features)


@pytest.fixture
def planted() -> torch.Tensor:
    """Which of the images below are planted, bool [240]."""
    return torch.arange(240) < 15


@pytest.fixture
def run(planted) -> Given:
    """Sixty images of each of four classes, not all classes of the model; 15 of class 3 are shifted far in one
    direction."""
    labels = torch.tensor([3, 0, 6, 2]).repeat_interleave(60)
    features = torch.randn(240, 20, generator=torch.Generator().manual_seed(0))
    features[planted, 0] += 12
    return given(labels, features)


@pytest.fixture
def examples() -> torch.Tensor:
    """Most of the images, in no order."""
    return torch.randperm(240, generator=torch.Generator().manual_seed(1))[:220]


def again(run: Given) -> Given:
    return replace(run, generator=torch.Generator().manual_seed(0), trained=[])


# What there is and what it needs


def test_the_detectors_are_found_by_name_beside_the_baselines_and_say_what_they_need():
    assert {name: detector.needs for name, detector in INSTALLED.items()} == {
        CLUSTERING: NOTHING,
        SPECTRAL: POISON_RATE,
        LABELS: NOTHING,
    }
    assert not set(INSTALLED) & set(BASELINES)


@pytest.mark.parametrize("name", INSTALLED)
def test_a_missing_package_is_one_line_that_says_which_extra_to_install(run, examples, monkeypatch, name):
    for module in STUBS:
        monkeypatch.setitem(sys.modules, module, None)
    settings = {"rate": 0.05} if name == SPECTRAL else {}
    package = "cleanlab" if name == LABELS else "adversarial-robustness-toolbox"
    with pytest.raises(DefenceError, match=rf"^{name} needs {package}: pip install '\.\[bench\]'") as caught:
        INSTALLED[name](**settings).defend(run, examples, run.fresh_network())
    assert "\n" not in str(caught.value)
    assert run.trained == []


@pytest.mark.usefixtures("stubs")
@pytest.mark.parametrize("rate", [None, -0.1, 1.0, float("nan")])
def test_spectral_signatures_are_refused_without_a_rate(run, examples, rate):
    with pytest.raises(DefenceError, match="spectral-signatures needs the poison rate"):
        SpectralSignatures(rate=rate).defend(run, examples, run.fresh_network())


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in STUBS.items() for name in names])
def test_the_stubs_have_the_signatures_of_the_packages(module, name):
    ours, theirs = STUBS[module][name], getattr(need(module), name)
    described = [
        [(each.name, each.kind, each.default) for each in inspect.signature(thing).parameters.values()]
        for thing in (ours, theirs)
    ]
    assert described[0] == described[1]


# Activation clustering and spectral signatures


@pytest.mark.usefixtures("packages")
def test_clustering_suspects_the_smaller_part_of_every_class_in_the_order_of_the_examples(run, examples, planted):
    suspects, score = ActivationClustering().detect(run, examples, None)
    labels, carries = run.labels[examples], planted[examples]
    assert torch.equal(suspects[labels == 3], carries[labels == 3])
    assert (suspects.dtype, score.dtype) == (torch.bool, torch.float32)
    for label in labels.unique():
        members = labels == label
        share = suspects[members].float().mean()
        assert share <= 0.5
        assert torch.allclose(score[members & suspects], 1 - share)
        assert torch.allclose(score[members & ~suspects], share)


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("detector", [ActivationClustering(), SpectralSignatures(rate=0.05)])
def test_the_toolbox_is_repeatable_and_leaves_the_global_randomness_alone(run, examples, detector):
    before = np.random.get_state()  # noqa: NPY002
    first = detector.detect(again(run), examples, None)
    np.random.random(7)  # noqa: NPY002
    state = np.random.get_state()  # noqa: NPY002
    second = detector.detect(again(run), examples, None)
    after = np.random.get_state()  # noqa: NPY002
    np.random.set_state(before)  # noqa: NPY002
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    assert state[2] == after[2]
    assert np.array_equal(state[1], after[1])


@pytest.mark.usefixtures("packages")
def test_a_class_that_is_too_small_to_cluster_is_one_line(run):
    few = torch.cat([torch.arange(60), torch.arange(180, 185)])
    with pytest.raises(DefenceError, match="it needs 10 images of every class") as caught:
        ActivationClustering().detect(run, few, None)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("packages")
def test_signatures_suspect_as_many_as_the_rate_says_and_score_every_image(run, examples, planted):
    """6 % of all, were they in one class of four: .24 / 1.18 of it, of which 1.5 times as many are suspected."""
    suspects, score = SpectralSignatures(rate=0.06).detect(run, examples, None)
    labels, carries = run.labels[examples], planted[examples]
    assert (suspects.dtype, score.dtype) == (torch.bool, torch.float32)
    assert score.min() >= 0
    assert suspects[carries].all()
    for label in labels.unique():
        members = labels == label
        assert suspects[members].float().mean() == pytest.approx(1.5 * 0.24 / 1.18, abs=0.03)
        assert score[members & suspects].min() >= score[members & ~suspects].max()
    assert score[carries].min() > score[(labels == 3) & ~carries].max()


@pytest.mark.usefixtures("packages")
def test_signatures_follow_the_images_when_their_order_changes(run, examples):
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(5))
    detector = SpectralSignatures(rate=0.02)
    (suspects, score), (moved, moved_score) = (
        detector.detect(run, which, None) for which in (examples, examples[order])
    )
    assert torch.allclose(score[order], moved_score, atol=1e-3)
    assert torch.equal(suspects[order], moved)


@pytest.mark.usefixtures("packages")
def test_signatures_never_set_more_than_half_of_a_class_apart(run):
    suspects, _ = SpectralSignatures(rate=0.9).detect(run, torch.arange(240), None)
    assert [int(suspects[run.labels == label].sum()) for label in (0, 2, 3, 6)] == [30] * 4


def test_the_share_of_a_class_is_that_of_the_images_moved_into_it():
    """1,000 images of ten classes; 50, five of each class, get the label of one of them."""
    assert share_of_class(0.05, 10) == pytest.approx(50 / (100 + 50 - 5))
    assert share_of_class(0.0, 10) == 0


def test_the_toolbox_sees_penultimate_features_and_classes_without_gaps(run, examples):
    classifier, numbers = known_features(run, examples, None)
    assert classifier.nb_classes == 4
    assert torch.equal(torch.tensor([0, 2, 3, 6])[torch.from_numpy(numbers)], run.labels[examples])
    positions = np.array([5, 0, 219])
    assert np.array_equal(classifier.get_activations(positions, layer=0), run.features[examples[positions]].numpy())


# cleanlab


@dataclass(frozen=True)
class HeldOut(Given):
    """A run whose networks know the true class (in ``features``, one-hot) of every image that they didn't learn, and
    give every image that they learned its label."""

    def infer(self, network, examples, mirror=False):
        learned = torch.isin(examples, self.trained[-1][0])
        own = functional.one_hot(self.labels[examples], self.class_count).float()
        said = torch.where(learned[:, None], own, self.features[examples])
        return Outputs(4 * said, self.features[examples])


@pytest.mark.usefixtures("packages")
def test_label_issues_are_wrong_labels_by_networks_that_never_saw_the_image():
    true = torch.arange(7).repeat(30)
    wrong = torch.isin(torch.arange(210), torch.arange(0, 210, 11))
    labels = torch.where(wrong, (true + 2) % 7, true)
    run = given(labels, functional.one_hot(true, 7).float(), kind=HeldOut)
    examples = torch.randperm(210, generator=torch.Generator().manual_seed(2))[:200]
    suspects, score = LabelIssues(folds=4, relearning=SHORT).detect(run, examples, None)
    assert torch.equal(suspects, wrong[examples])
    assert (suspects.dtype, score.dtype) == (torch.bool, torch.float32)
    assert score[suspects].min() > score[~suspects].max()
    assert [len(learned) for learned, _ in run.trained] == [150] * 4
    assert all(torch.isin(learned, examples).all() for learned, _ in run.trained)


def test_folds_share_every_class_evenly_and_at_random():
    labels = torch.tensor([0] * 23 + [4] * 40 + [1] * 3)[torch.randperm(66, generator=torch.Generator().manual_seed(0))]
    folds = [stratified_folds(labels, 5, torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    assert not torch.equal(*folds)
    for label in (0, 1, 4):
        counts = folds[0][labels == label].bincount(minlength=5)
        assert counts.max() - counts.min() <= 1


# The network that is trained on the rest


@pytest.mark.usefixtures("stubs")
def test_a_fresh_network_learns_what_is_left_with_the_shared_settings_whatever_the_budget(run, examples):
    detector = SpectralSignatures(rate=0.06)
    assert detector.scaled(0.1) == detector
    found = detector.defend(run, examples, run.fresh_network())
    ((learned, settings),) = run.trained
    assert torch.equal(learned, examples[~found.suspects])
    assert settings == RelearningSettings().clean


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("name", INSTALLED)
def test_a_detector_works_on_real_images_and_changes_nothing_that_it_is_given(name):
    images, labels = (torch.from_numpy(array[:200]) for array in digits()[:2])
    labels = labels % 4  # classes large enough for the toolbox
    spec = ModelSpec("test_resnet", 4, images.shape[1])
    own = Run(Pixels(images), labels, spec, choose_device("cpu"), torch.Generator().manual_seed(0))
    network = own.fresh_network()
    before = copy.deepcopy((images, labels, dict(network.state_dict()), torch.get_rng_state()))
    settings = {SPECTRAL: {"rate": 0.05}, LABELS: {"folds": 2}}.get(name, {})
    found = INSTALLED[name](relearning=SHORT, **settings).defend(own, torch.arange(200).flip(0), network)
    assert found.suspects.shape == found.score.shape == (200,)
    assert 0 < found.suspects.sum() < 200
    assert found.score.isfinite().all()
    assert found.network is not network
    assert own.infer(found.network, torch.arange(8)).logits.isfinite().all()
    assert torch.equal(before[0], images)
    assert torch.equal(before[1], labels)
    assert all(torch.equal(before[2][key], value) for key, value in network.state_dict().items())
    assert torch.equal(before[3], torch.get_rng_state())
