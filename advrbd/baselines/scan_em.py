"""SCAn: a class whose features are two populations under one label is contaminated; the foreign one is unlearned."""

import copy
from dataclasses import dataclass, field
from math import exp
from typing import ClassVar

import torch

from advrbd.baselines.base import CLEAN_IMAGES, Defence, Defended, stage, unlearn_and_relearn
from advrbd.config import TrainingSettings
from advrbd.errors import DefenceError
from advrbd.model.factory import Network
from advrbd.model.run import Run

RANK = 1e-6  # directions with less than this share of the largest variance are noise, and left out


@dataclass(frozen=True)
class SCAnFT(Defence):
    """Tang et al., "Demon in the Variant: Statistical Analysis of DNNs for Robust Backdoor Contamination Detection"
    (USENIX Security 2021, arXiv:1908.00686), with the unlearning that the AdvrBD paper adds.

    Features are x = mu + e, the class's own mean and a variation that all classes share. Clean images give its
    covariance S_e by EM; under it every class is untangled into two populations. The likelihood-ratio statistic J of
    two against one, as J* = (J - median) / (1.4826 MAD) over the classes, convicts where it exceeds ``threshold``,
    e^2. There the population that the clean images avoid is suspected, unlearned from the backdoored model, and the
    clean images relearned. At most 100 iterations, tolerance 1e-5 as in the authors' code; J* is one-sided here, since
    a class that is more uniform than the others is no victim. How the AdvrBD paper unlearns isn't known: as D-BR here.
    The score is J* (0 if negative) times P(the image belongs to that population).
    """

    name: ClassVar[str] = "scan-ft"
    needs: ClassVar[str] = CLEAN_IMAGES
    detects: ClassVar[bool] = True

    threshold: float = exp(2)
    iterations: int = 100
    tolerance: float = 1e-5
    unlearning: TrainingSettings = field(default_factory=lambda: stage(20, 1e-4, minimum_steps=400))

    def _defend(self, run: Run, examples: torch.Tensor, network: Network, clean: torch.Tensor | None) -> Defended:
        assert clean is not None  # ``defend`` refuses to go on without
        defended = copy.deepcopy(network)
        features, trusted = (run.infer(defended, which).features.double() for which in (examples, clean))
        labels, trusted_labels = run.labels[examples], run.labels[clean]
        whitening = self._whitening(trusted - trusted.mean(dim=0), trusted_labels)
        features, trusted = features @ whitening, trusted @ whitening

        statistic, foreign = {}, torch.zeros(len(examples), dtype=torch.float64)
        for label in labels.unique().tolist():
            members = labels == label
            axis, offset = untangle(features[members], self.iterations)
            margin = features[members] @ axis - offset
            statistic[label] = likelihood_ratio(features[members], margin > 0)
            own = trusted[trusted_labels == label] @ axis - offset > 0
            side = -1 if _is_own(own if len(own) else margin > 0) else 1
            foreign[members] = (side * margin).sigmoid()
        anomaly = anomalies(torch.tensor(list(statistic.values()), dtype=torch.float64))
        anomaly = anomaly[torch.searchsorted(torch.tensor(list(statistic)), labels)]
        suspects = (anomaly > self.threshold) & (foreign > 0.5) & ~torch.isin(examples, clean)
        unlearn_and_relearn(run, defended, examples[suspects], clean, self.unlearning, self.name)
        return Defended(defended, suspects, (anomaly.clamp_min(0) * foreign).float())

    def _whitening(self, centred: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The matrix float64 [F, R] that makes the shared variation isotropic, in the R directions that it has."""
        _, within = decompose(centred, labels, self.iterations, self.tolerance)
        variances, directions = torch.linalg.eigh(within)
        present = variances > RANK * variances[-1]
        if variances[-1] <= 0 or not present.any():
            raise DefenceError(f"{self.name} needs clean images that differ within their classes; give it more of them")
        return directions[:, present] / variances[present].sqrt()


def _is_own(sides: torch.Tensor) -> bool:
    """Whether most of a class's trusted images (or, without any, of all its images) lie on the positive side."""
    return 2 * int(sides.sum()) >= len(sides)


def decompose(
    centred: torch.Tensor, labels: torch.Tensor, iterations: int, tolerance: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The covariances float64 [F, F] of the classes' means, S_u, and of the variation within classes, S_e, by EM.

    ``centred`` float64 [K, F] are features around their overall mean, ``labels`` int64 [K]. In turns: the mean of each
    class given both covariances, n S_u (n S_u + S_e)^-1 times the mean of its n images; and the covariances given the
    means. Ends when neither changes by more than the share ``tolerance``.
    """
    number, counts = labels.unique(return_inverse=True, return_counts=True)[1:]
    sums = torch.zeros(len(counts), centred.shape[1], dtype=centred.dtype).index_add_(0, number, centred)
    averages = sums / counts[:, None]
    means = averages
    between, within = _covariance(means), _covariance(centred - means[number])
    for _ in range(iterations):
        means = torch.stack(
            [_posterior_mean(*pair, between, within) for pair in zip(averages, counts.tolist(), strict=True)]
        )
        old, (between, within) = (between, within), (_covariance(means), _covariance(centred - means[number]))
        if all((new - was).norm() <= tolerance * was.norm() for new, was in zip((between, within), old, strict=True)):
            break
    return between, within


def _posterior_mean(average: torch.Tensor, count: int, between: torch.Tensor, within: torch.Tensor) -> torch.Tensor:
    total = between + within / count
    ridge = 1e-9 * total.diagonal().mean() + 1e-12  # dead features have no variance at all
    return between @ torch.linalg.solve(total + ridge * torch.eye(len(total), dtype=total.dtype), average)


def _covariance(centred: torch.Tensor) -> torch.Tensor:
    return centred.T @ centred / len(centred)


def untangle(points: torch.Tensor, iterations: int) -> tuple[torch.Tensor, float]:
    """Part whitened ``points`` float64 [K, R] into two populations of the same, unit covariance.

    Returns the axis v [R] and the offset e such that v . x - e is the log-odds of the one population against the other
    (the paper's linear discriminant). Starts from the principal axis, so nothing is drawn; ends when no point changes
    sides. The axis is zero for points that are all alike.
    """
    centre = points.mean(dim=0)
    axis = torch.linalg.eigh(_covariance(points - centre))[1][:, -1]
    side = (points - centre) @ axis > 0
    offset = float(centre @ axis)
    for _ in range(iterations):
        if side.all() or not side.any():
            return torch.zeros_like(axis), 0.0
        one, other = points[side].mean(dim=0), points[~side].mean(dim=0)
        axis, offset = one - other, float(one @ one - other @ other) / 2
        old, side = side, points @ axis - offset > 0
        if torch.equal(old, side):
            break
    return axis, offset


def likelihood_ratio(points: torch.Tensor, side: torch.Tensor) -> float:
    """The statistic J of two populations, ``side`` bool [K] and the rest, against one: twice the log-ratio, per point.

    ``points`` float64 [K, R] are whitened. Per point, as in the authors' code, so that a large class isn't suspicious
    for its size. The one population has the mean of all points, which is the paper's estimate where there are many.
    """
    together = (points - points.mean(dim=0)).square().sum()
    apart = sum((part - part.mean(dim=0)).square().sum() for part in (points[side], points[~side]) if len(part))
    return float(together - apart) / len(points)


def anomalies(statistics: torch.Tensor) -> torch.Tensor:
    """J* float64 [C] of the classes' ``statistics`` [C]: distance from the median in robust standard deviations."""
    middle = statistics.quantile(0.5)
    deviation = 1.4826 * (statistics - middle).abs().quantile(0.5)
    return (statistics - middle) / deviation.clamp_min(1e-12)
