"""Between stages 1 and 2 (ours, not the paper's): which class holds a group of images that are foreign to it.

A poisoned class is two populations under one label. In the penultimate features, whitened by the within-class
covariance of the seeds (they stand in for the clean data that SCAn, arXiv:1908.00686, asks for), each class is split
in two. How far apart the parts lie says where to look; whether a group was planted, only enhancement can tell.
"""

from dataclasses import dataclass

import torch
from sklearn.cluster import KMeans

from advrbd.config import SeparationSettings
from advrbd.model.inference import Outputs


@dataclass(frozen=True)
class Split:
    """The two parts of the class ``label``; ``group`` bool [M] marks the part that would be the planted one.

    ``bimodality`` is Ashman's D along the line between the parts (Ashman et al. 1994, AJ 108:2348; 2.65 for a
    halved Gaussian, higher = clearer), ``distance`` that between their means in units of the seeds' deviation.
    """

    label: int
    group: torch.Tensor
    bimodality: float
    distance: float

    @property
    def strength(self) -> float:
        """How much the split asks to be looked at; higher = more."""
        return self.bimodality * self.distance


def separate(
    outputs: Outputs,
    labels: torch.Tensor,
    seeds: torch.Tensor,
    settings: SeparationSettings,
    generator: torch.Generator,
) -> tuple[Split, ...]:
    """Split every class of M images, given their ``outputs``, ``labels`` int64 [M] and ``seeds`` bool [M].

    Classes with fewer than twice ``settings.minimum_group`` images are passed over.
    """
    whitened = _whiten(outputs.features.double(), labels, seeds)
    splits = []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        if len(members) >= 2 * settings.minimum_group:
            splits.append(_split_class(whitened, members, label, seeds, settings, generator))
    return tuple(split for split in splits if split is not None)


def candidates(splits: tuple[Split, ...], settings: SeparationSettings) -> tuple[tuple[Split, ...], int]:
    """The splits worth an enhancement, strongest first: all beyond the limits, and always the few strongest.

    At most ``settings.most_candidates``; how many more were beyond the limits is returned beside them.
    """
    usable = [split for split in splits if split.group.sum() >= settings.minimum_group]
    ranked = sorted(usable, key=lambda split: -split.strength)
    chosen = [
        split
        for rank, split in enumerate(ranked)
        if rank < settings.least_candidates
        or split.bimodality > settings.bimodality_limit
        or split.distance > settings.distance_limit
    ]
    return tuple(chosen[: settings.most_candidates]), max(0, len(chosen) - settings.most_candidates)


def _whiten(features: torch.Tensor, labels: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    """Features [M, F] such that the seeds' covariance within their classes is the identity."""
    centred = torch.empty_like(features)
    for label in labels.unique():
        members = labels == label
        centred[members] = features[members] - features[members & seeds].mean(dim=0)
    trusted = centred[seeds]
    covariance = trusted.T @ trusted / len(trusted)
    ridge = 0.01 * covariance.diagonal().mean() + 1e-12
    factor = torch.linalg.cholesky(covariance + ridge * torch.eye(len(covariance), dtype=covariance.dtype))
    return torch.linalg.solve_triangular(factor, centred.T, upper=False).T


def _split_class(
    whitened: torch.Tensor,
    members: torch.Tensor,
    label: int,
    seeds: torch.Tensor,
    settings: SeparationSettings,
    generator: torch.Generator,
) -> Split | None:
    """The split of one class, None where all of its images look alike to the model."""
    points = whitened[members]
    if len(points.unique(dim=0)) < 2:
        return None
    seed = int(torch.randint(2**31, (), generator=generator))
    parts = torch.from_numpy(KMeans(2, n_init=settings.starts, random_state=seed).fit_predict(points.numpy())).bool()
    first, second = points[~parts], points[parts]
    axis = second.mean(dim=0) - first.mean(dim=0)
    distance = float(axis.norm())
    spread = sum(float((part @ axis / max(distance, 1e-12)).var(correction=0)) for part in (first, second))
    bimodality = 2**0.5 * distance / max(spread, 1e-12) ** 0.5

    foreign = parts if _second_is_foreign(parts, seeds[members], settings) else ~parts
    group = torch.zeros(len(whitened), dtype=torch.bool)
    group[members[foreign]] = True
    return Split(label, group, bimodality, distance)


def _second_is_foreign(parts: torch.Tensor, seeds: torch.Tensor, settings: SeparationSettings) -> bool:
    """The smaller part is the foreign one, unless both are large and the seeds, which are clean, lie in the smaller."""
    smaller_is_second = parts.sum() * 2 <= len(parts)
    smaller = parts if smaller_is_second else ~parts
    seeds_there, seeds_elsewhere = seeds[smaller].float().mean(), seeds[~smaller].float().mean()
    large = smaller.float().mean() > settings.large_part
    return bool(smaller_is_second != (large and seeds_there > 2 * seeds_elsewhere))
