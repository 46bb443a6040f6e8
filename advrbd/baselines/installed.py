"""Detectors that a user could install instead: those of the adversarial-robustness-toolbox, and cleanlab.

They run as they are, on the features or the probabilities of the same networks that all defences get, and a fresh
network learns what they leave, with the settings of advrbd's own clean model, which a budget doesn't scale. They come
with ``pip install '.[bench]'``; without them this module can be imported and its detectors raise
``DefenceError``.
"""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import ClassVar

import numpy as np
import torch

from advrbd.baselines.base import POISON_RATE, Defence, Defended, train_on_rest
from advrbd.config import RelearningSettings
from advrbd.errors import DefenceError
from advrbd.model.factory import Network
from advrbd.model.run import Run

TOOLBOX = "art.defences.detector.poison"
LARGEST_PART = 0.5  # of a class that is ever set apart, as in the toolbox's own default (1.5 x .33)


@dataclass(frozen=True)
class Detector(Defence):
    """A defence that says which images are poisoned; a fresh network then learns the others."""

    detects: ClassVar[bool] = True
    relearning: RelearningSettings = field(default_factory=RelearningSettings, kw_only=True)

    def _defend(self, run: Run, examples: torch.Tensor, network: Network, clean: torch.Tensor | None) -> Defended:
        suspects, score = self.detect(run, examples, network)
        return Defended(train_on_rest(run, examples, suspects, self.relearning.clean, self.name), suspects, score)

    @abstractmethod
    def detect(self, run: Run, examples: torch.Tensor, network: Network) -> tuple[torch.Tensor, torch.Tensor]:
        """The suspects bool [M] among the ``examples`` (int64 [M]) and the score float32 [M], higher = more likely.

        Raises ``DefenceError`` where the package or the rate is missing, or where it can't work on these images.
        """


@dataclass(frozen=True)
class ActivationClustering(Detector):
    """Chen et al., "Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering" (SafeAI 2019,
    arXiv:1811.03728), by the toolbox's ``ActivationDefence``.

    The penultimate features of each class are reduced to 10 principal components and cut in two by k-means. The smaller
    part of *every* class is suspected, which is the toolbox's default (that parts are only suspected where they are
    under 35 % of their class fails in version 1.20.1 with numpy 2.4). The toolbox gives no score; here it is
    1 minus the share of its class that an image's part has, in 0..1, after the paper's criterion of size.
    """

    name: ClassVar[str] = "activation-clustering"

    def detect(self, run: Run, examples: torch.Tensor, network: Network) -> tuple[torch.Tensor, torch.Tensor]:
        toolbox = installed(TOOLBOX, "adversarial-robustness-toolbox", self.name)
        classifier, numbers = known_features(run, examples, network)
        defence = toolbox.ActivationDefence(classifier, np.arange(len(examples)), numbers)
        try:
            with seeded_numpy(run.generator):
                _, is_clean = defence.detect_poison()
        except (ValueError, IndexError) as error:  # of a class with fewer images than components, or with one part
            why = " ".join(str(error).split())
            hint = "it needs 10 images of every class, not all alike"
            raise DefenceError(f"{self.name} can't cut every class in two: {hint} ({why})") from error
        score = torch.zeros(len(examples))
        for number, parts in enumerate(defence.clusters_by_class):
            parts = torch.as_tensor(parts, dtype=torch.int64)
            score[torch.from_numpy(numbers == number)] = 1 - parts.bincount()[parts] / len(parts)
        return torch.tensor(is_clean) == 0, score


@dataclass(frozen=True)
class SpectralSignatures(Detector):
    """Tran, Li & Madry, "Spectral Signatures in Backdoor Attacks" (NeurIPS 2018, arXiv:1811.00636), by the toolbox's
    ``SpectralSignatureDefense``.

    The score is |v . x| >= 0, with the penultimate features x and the top singular vector v of those of the class
    around their mean (x itself the toolbox doesn't centre, as the paper does). In each class, ``multiplier`` times as
    many images as are expected to be poisoned are suspected, those with the highest score.

    ``rate`` is the poisoned share of all images. The toolbox cuts every class at the same quantile, so what it is told
    to expect is the share of the class that all the poison would be in, r C / (1 + r (C - 1)) with C classes; never
    more than sets half of a class apart, which is the toolbox's default.
    """

    name: ClassVar[str] = "spectral-signatures"
    needs: ClassVar[str] = POISON_RATE

    rate: float | None = None
    multiplier: float = 1.5

    def detect(self, run: Run, examples: torch.Tensor, network: Network) -> tuple[torch.Tensor, torch.Tensor]:
        if self.rate is None or not 0 <= self.rate < 1:
            raise DefenceError(f"{self.name} needs the poison rate: give it the share of the images, from 0 to below 1")
        toolbox = installed(TOOLBOX, "adversarial-robustness-toolbox", self.name)
        classifier, numbers = known_features(run, examples, network)
        expected = min(share_of_class(self.rate, classifier.nb_classes), LARGEST_PART / self.multiplier)
        defence = toolbox.SpectralSignatureDefense(
            classifier, np.arange(len(examples)), numbers, expected_pp_poison=expected, eps_multiplier=self.multiplier
        )
        _, is_clean = defence.detect_poison()
        # it reports the scores of suspects alone, so a second pass suspects all
        report, _ = defence.detect_poison(expected_pp_poison=1.0, eps_multiplier=1.0)
        score = torch.tensor([float(report[position]) for position in range(len(examples))])
        return torch.tensor(is_clean) == 0, score


@dataclass(frozen=True)
class LabelIssues(Detector):
    """Northcutt, Jiang & Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels" (JAIR 2021,
    arXiv:1911.00068), by cleanlab's ``find_label_issues`` with its defaults.

    The probabilities are cross-validated in as many ``folds`` as is cleanlab's default: networks like the undefended
    one, each trained without the images that it judges. cleanlab asks for that, since a network that has learned a
    wrong label predicts it. So ``network`` itself isn't used, and it costs as much as four trainings. The score is
    1 minus cleanlab's label quality, which is the label's probability; in 0..1.
    """

    name: ClassVar[str] = "cleanlab"

    folds: int = 5

    def detect(self, run: Run, examples: torch.Tensor, network: Network) -> tuple[torch.Tensor, torch.Tensor]:
        finder, ranker = (installed(f"cleanlab.{part}", "cleanlab", self.name) for part in ("filter", "rank"))
        probabilities = self._held_out(run, examples).double().numpy()
        labels = run.labels[examples].numpy()
        # one process: its workers would be forks of a process that may hold a GPU, and change nothing but the time
        issues = finder.find_label_issues(labels, probabilities, n_jobs=1)
        quality = ranker.get_label_quality_scores(labels, probabilities)
        return torch.from_numpy(issues), 1 - torch.from_numpy(quality).float()

    def _held_out(self, run: Run, examples: torch.Tensor) -> torch.Tensor:
        """The probabilities float32 [M, classes] by networks that were trained without the image's fold."""
        fold = stratified_folds(run.labels[examples], self.folds, run.generator)
        probabilities = torch.zeros(len(examples), run.class_count)
        for number in range(self.folds):
            held_out = fold == number
            network = run.fresh_network()
            stage = f"{self.name}: fold {number + 1} of {self.folds}"
            run.train(network, examples[~held_out], self.relearning.clean, stage)
            probabilities[held_out] = run.infer(network, examples[held_out]).probabilities
        return probabilities


@dataclass(frozen=True)
class KnownFeatures:
    """What the toolbox's detectors ask of a classifier, for ``features`` float32 [M, F] of M images that are known.

    Of a model in PyTorch the toolbox's own classifier sees the top-level modules alone, the last of which gives logits;
    both papers take the last hidden layer. The toolbox is given positions int64 [K] in place of images, so that it
    doesn't hold all of them as floats.
    """

    features: np.ndarray
    nb_classes: int
    layer_names: tuple[str, ...] = ("penultimate",)

    def get_activations(
        self, x: np.ndarray, layer: int | str | None = None, batch_size: int = 128, framework: bool = False
    ) -> np.ndarray:
        return self.features[x]


def known_features(run: Run, examples: torch.Tensor, network: Network) -> tuple[KnownFeatures, np.ndarray]:
    """The images for the toolbox, with their classes int64 [M], numbered anew: it can't work on one without images."""
    present, numbers = run.labels[examples].unique(return_inverse=True)
    return KnownFeatures(run.infer(network, examples).features.numpy(), len(present)), numbers.numpy()


def share_of_class(rate: float, class_count: int) -> float:
    """The poisoned share of a class that the share ``rate`` of all images was moved to, from classes of one size."""
    return rate * class_count / (1 + rate * (class_count - 1))


def stratified_folds(labels: torch.Tensor, folds: int, generator: torch.Generator) -> torch.Tensor:
    """Which of the ``folds`` each image is in, int64 [M]; each class of ``labels`` (int64 [M]) evenly, at random."""
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels[order].argsort(stable=True)]
    fold = torch.empty_like(order)
    fold[order] = torch.arange(len(order)) % folds
    return fold


def installed(module: str, package: str, name: str) -> ModuleType:
    """Import ``module`` of an optional ``package``; raises ``DefenceError`` for the defence ``name`` without it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise DefenceError(f"{name} needs {package}: pip install '.[bench]' ({error})") from error


@contextmanager
def seeded_numpy(generator: torch.Generator) -> Iterator[None]:
    """Seed numpy's global randomness, which the toolbox's k-means draws from, and put it back afterwards."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(int(torch.randint(2**31, (), generator=generator)))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
