"""Between stages 1 and 2 (ours, not the paper's): which class holds a group of images that are foreign to it.

A poisoned class is two populations under one label. In the penultimate features, whitened by the within-class
covariance of the seeds (they stand in for the clean data that SCAn, arXiv:1908.00686, asks for), each class is cut in
two, four and eight. How far a part stands apart says where to look; whether it was planted, only enhancement can tell,
and of a class cut in two, which half: where a trigger is faint, most of its seeds may be poisoned.
It learns from the core of the part, where hardly anything else lies: a tenth of strangers there blurs its answer.
"""

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.covariance import ledoit_wolf
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from advrbd.config import SeparationSettings


@dataclass(frozen=True)
class Split:
    """A part of the class ``label`` against the rest of it; ``group`` int64 [K], ascending, are the positions among the
    M images of its core, which would be planted. Masks of all splits would take memory by classes times images.
    ``other`` is the same of the other half where the class was cut in two.

    ``parts``: into how many the class was cut. ``bimodality`` is Ashman's D along the line between part and rest
    (Ashman et al. 1994, AJ 108:2348; 2.65 for a halved Gaussian, higher = clearer), ``distance`` that between their
    means in units of the seeds' deviation.
    """

    label: int
    parts: int
    group: torch.Tensor
    bimodality: float
    distance: float
    other: torch.Tensor | None = None

    @property
    def turned(self) -> "Split | None":
        """The same cut with the halves' parts exchanged, if there is one."""
        return None if self.other is None else replace(self, group=self.other, other=None)


def separate(
    features: torch.Tensor,
    labels: torch.Tensor,
    seeds: torch.Tensor,
    settings: SeparationSettings,
    generator: torch.Generator,
) -> tuple[Split, ...]:
    """Cut every class of M images in parts, given their ``features`` float [M, F], all finite, ``labels`` int64 [M] and
    ``seeds`` bool [M].

    Classes with fewer than twice ``settings.minimum_group`` images are passed over.
    """
    whitened, is_seed = _whiten(features, labels, seeds).numpy(), seeds.numpy()
    cuts = []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten().numpy()
        if len(members) >= 2 * settings.minimum_group:
            cuts += [(label, members, parts, _seed(generator)) for parts in settings.parts]

    def cut(planned: tuple[int, np.ndarray, int, int]) -> list[Split]:
        label, members, parts, seed = planned
        return _cut(whitened[members], members, is_seed[members], label, parts, seed, settings)

    # A class is too small for several threads to share it, so each has one to itself, for half of all images at once,
    # since they are copied. In numpy alone: torch would start its threads from each of these. The limit of BLAS is the
    # process's, that of OpenMP the thread's, and that of torch is the latter: its number is asked for before.
    threads = max(1, min(torch.get_num_threads(), len(cuts) // (2 * len(settings.parts))))
    with (
        warnings.catch_warnings(),  # here, since filters are the process's
        threadpool_limits(1),
        ThreadPoolExecutor(threads, initializer=threadpool_limits, initargs=(1,)) as pool,
    ):
        warnings.simplefilter("ignore", ConvergenceWarning)
        return tuple(split for splits in pool.map(cut, cuts) for split in splits)


def candidates(splits: tuple[Split, ...], labels: torch.Tensor, settings: SeparationSettings) -> tuple[Split, ...]:
    """The splits worth an enhancement, of images with ``labels`` int64 [M]: those of each number of parts that stand
    out most, without what is nearly the same, and where images are few, those of the others that lie farthest away.

    Small groups look more bimodal by chance than large ones, so each number of parts has places of its own, and among
    them counts the bimodality times the fourth root of the group's size.
    """
    places, chosen = settings.places(len(labels), equal_classes(labels.bincount())), list[Split]()

    def fresh(ranked: list[Split]) -> list[Split]:
        return [split for split in ranked if not any(_alike(split, other) for other in chosen)]

    for parts, (clearest, farthest) in zip(settings.parts, places, strict=True):
        ranked = sorted((split for split in splits if split.parts == parts), key=lambda split: -_standing(split))
        chosen += fresh(ranked)[:clearest]
        chosen += fresh(sorted(ranked, key=lambda split: -split.distance))[:farthest]
    return tuple(chosen)


def equal_classes(sizes: torch.Tensor) -> int:
    """How many classes of one size are as many as classes of the ``sizes`` (int64 [classes]): the inverse of Simpson's
    index (Hill 1973, Ecology 54:427). Tiny ones, of which an attacker can add a hundred, hardly count."""
    total, squares = float(sizes.sum()), float(sizes.double().square().sum())
    return round(total**2 / squares) if squares else 0


def most_striking(splits: tuple[Split, ...]) -> tuple[Split, ...]:
    """The split of each class that stands out most of those with the most parts: those that stand out most first."""
    parts, leading = max((split.parts for split in splits), default=0), dict[int, Split]()
    for split in sorted((split for split in splits if split.parts == parts), key=lambda split: -_standing(split)):
        leading.setdefault(split.label, split)
    return tuple(leading.values())


def _standing(split: Split) -> float:
    return split.bimodality * len(split.group) ** 0.25


def _alike(one: Split, other: Split) -> bool:
    """More than half of what either holds is in both."""
    if one.label != other.label:
        return False
    both = int(torch.isin(one.group, other.group).sum())
    return 2 * both > len(one.group) + len(other.group) - both


def _whiten(features: torch.Tensor, labels: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    """Features float64 [M, F] such that the seeds' covariance within their classes is the identity.

    A class without any seed (all of its seeds may be copies of the control) has to be its own reference.
    """
    centred, seeds = features.to(torch.float64, copy=True), seeds.clone()
    for label in labels.unique():
        members = labels == label
        if not (members & seeds).any():
            seeds |= members
        centred[members] -= centred[members & seeds].mean(dim=0)
    # shrunk, because there may be fewer seeds than features: what they don't span must not look infinitely far
    covariance = torch.from_numpy(ledoit_wolf(centred[seeds].numpy(), assume_centered=True)[0])
    ridge = 1e-6 * covariance.diagonal().mean() + 1e-12
    factor = torch.linalg.cholesky(covariance + ridge * torch.eye(len(covariance), dtype=covariance.dtype))
    return torch.linalg.solve_triangular(factor, centred.T, upper=False).T


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**31, (), generator=generator))


def _cut(
    points: np.ndarray,
    members: np.ndarray,
    is_seed: np.ndarray,
    label: int,
    parts: int,
    seed: int,
    how: SeparationSettings,
) -> list[Split]:
    """The groups of the class ``label`` that ``parts`` clusters of its ``points`` float64 [K, F] give; none where all
    of its images look alike to the model.

    ``members`` int64 [K] are their positions, ``is_seed`` bool [K] says which of them are seeds.
    """
    if all(len(np.unique(some, axis=0)) < parts for some in (points[: 8 * parts], points)):  # the second takes longer
        return []
    # it warns where rounding leaves fewer points than parts, beside an outlier: some parts are empty then
    cluster = KMeans(parts, n_init=how.starts, random_state=seed).fit_predict(points)
    groups = [cluster == number for number in range(parts)]
    if parts == 2:
        groups = [groups[_foreign(groups, is_seed)]]
    largest = len(members) - how.minimum_group if parts == 2 else len(members) // 2
    splits = []
    for inside in groups:
        if how.minimum_group <= inside.sum() <= largest:
            bimodality, distance = _apart(points[inside], points[~inside])
            sides = (inside, ~inside) if parts == 2 else (inside,)
            core, *other = (torch.from_numpy(members[_core(points, side, how)]) for side in sides)
            splits.append(Split(label, parts, core, bimodality, distance, *other))
    return splits


def _core(points: np.ndarray, inside: np.ndarray, settings: SeparationSettings) -> np.ndarray:
    """Which of the ``points`` [K, F] inside of a part (``inside`` bool [K]) surely belong to it, as bool [K].

    Surely, by a mixture of two Gaussians of one width along the line between the part's mean and that of the rest,
    fitted from there; where hardly anything is sure, the part as it is. Of a small part of the class only those
    farthest from the rest: there a few strangers, which lie on the side of the rest, leave much of the class in doubt.
    """
    axis = points[inside].mean(axis=0) - points[~inside].mean(axis=0)
    along = (points @ axis / max(np.linalg.norm(axis), 1e-12))[:, None]
    sides = [~inside, inside]
    width = sum(side.mean() * along[side].var() for side in sides)
    mixture = GaussianMixture(
        2,
        covariance_type="tied",
        weights_init=[side.mean() for side in sides],
        means_init=[along[side].mean(axis=0) for side in sides],
        precisions_init=[[1 / max(width, 1e-12)]],
        random_state=0,  # nothing is drawn where all starting points are given
    )
    # it warns where it is still moving, which is as good as any
    sure = inside & (mixture.fit(along).predict_proba(along)[:, 1] > settings.sure)
    core = sure if sure.sum() >= settings.minimum_group else inside
    if inside.mean() >= settings.rare:
        return core
    enough = max(settings.enough, round(settings.farthest * core.sum()))
    farthest = np.argsort(np.where(core, -along[:, 0], np.inf), kind="stable")[:enough]
    return core & np.isin(np.arange(len(core)), farthest)


def _apart(group: np.ndarray, rest: np.ndarray) -> tuple[float, float]:
    """Ashman's D and the distance between the means of two sets of points [K, F] and [L, F]."""
    axis = group.mean(axis=0) - rest.mean(axis=0)
    distance = max(float(np.linalg.norm(axis)), 1e-12)
    spread = sum(float((part @ axis / distance).var()) for part in (group, rest))
    return 2**0.5 * distance / max(spread, 1e-12) ** 0.5, distance


def _foreign(halves: list[np.ndarray], is_seed: np.ndarray) -> int:
    """Which of two halves is not the class: the one that the seeds avoid, which mostly are clean; else the smaller."""
    share = [is_seed[half].sum() / max(1, half.sum()) for half in halves]
    for number in (0, 1):
        if share[1 - number] > 2 * share[number]:
            return number
    return int(halves[1].sum() < halves[0].sum())
