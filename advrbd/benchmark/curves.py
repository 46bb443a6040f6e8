"""The data of the paper's Figures 4 to 6 from one unit: loss landscape, divergence by role, rounds of enhancement."""

import copy

import numpy as np
import torch
from torch.nn import functional

from advrbd.attacks.base import CLEAN, POISON
from advrbd.benchmark.case import Case
from advrbd.benchmark.measure import judge
from advrbd.method.enhancement import unlearning
from advrbd.method.partition import Partition, partition
from advrbd.method.separation import separate
from advrbd.model.factory import Network
from advrbd.model.run import Run
from advrbd.preparation import usable

ROUNDS = 5
RADIUS, SIDE = 1.0, 9  # of the landscape, in lengths of the weights, and its points along an axis
MOST_IMAGES = 256  # that a point of the landscape is the mean of


def curves(case: Case) -> dict:
    """What the figures are drawn from, for the unit's JSON.

    ``divergence``: of the partition, nats, by role. ``rounds``: accuracy and attack success rate before and after each
    round of enhancement, or none without an attack. ``landscape``: see ``landscape``, for clean and poisoned images.
    """
    index, run = case.prepared
    examples, config = usable(index), case.unit.config
    role = np.array([case.role.get(index.files[position].path, CLEAN) for position in examples.tolist()])
    network = run.fresh_network()
    run.train(network, examples, config.warm_up, "warm-up")
    parts = partition(run, network, examples, config.partition)
    divergence = parts.divergence.double().numpy().round(4)
    return {
        "divergence": {str(name): divergence[role == name].tolist() for name in np.unique(role)},
        "rounds": _rounds(case, run, network, examples, parts),
        "landscape": {
            "radius": RADIUS,
            **{
                str(name): landscape(run, case.undefended, _some(examples[torch.from_numpy(role == name)]))
                for name in (CLEAN, POISON)
                if (role == name).any()
            },
        },
    }


def _some(examples: torch.Tensor) -> torch.Tensor:
    """``MOST_IMAGES`` of the ``examples`` at most, the same every time, of all classes: they lie class by class."""
    return examples[torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))[:MOST_IMAGES]]


def _rounds(case: Case, run: Run, network: Network, examples: torch.Tensor, parts: Partition) -> list[dict]:
    """One model that learns the clearest group of the target's class and unlearns what is trusted, round after round.

    The scan starts each round from the warm-up model and moves images over; here the same model goes on with the same
    images, so that the curve shows what the training alone does.
    """
    config, label = case.unit.config, case.unit.target
    labels = run.labels[examples]
    splits = separate(run.infer(network, examples).features, labels, parts.seeds, config.separation, run.generator)
    groups = [split for split in splits if split.label == label]
    if case.attack is None or not groups:
        return []
    group = max(groups, key=lambda split: split.bimodality).group
    trusted = parts.seeds | (labels != label)
    trusted[group] = False
    learned = torch.zeros(len(run.labels), dtype=torch.bool)
    learned[examples[group]] = True
    expert, settings = copy.deepcopy(network), config.enhancement
    draws = settings.training.batch_size * settings.steps // 2
    judged = [{"round": 0} | judge(expert, case.held_out)]
    for number in range(1, ROUNDS + 1):
        sets = (examples[group], examples[trusted])
        drawn = [one[torch.randint(len(one), (draws,), generator=run.generator)] for one in sets]
        targets = unlearning(label, learned, run.class_count)
        run.train(expert, torch.cat(drawn), settings.training, f"enhance, round {number}", targets)
        judged.append({"round": number} | judge(expert, case.held_out))
    return judged


@torch.no_grad()
def landscape(run: Run, network: Network, examples: torch.Tensor) -> list[list[float]]:
    """The mean cross-entropy of the images ``examples`` (int64 [M]) at ``SIDE`` x ``SIDE`` points around the weights.

    The points lie within ``RADIUS`` along two random directions, each filter of which is as long as the network's own
    (Li et al. 2018, arXiv:1712.09913); the directions are the same for every call on a network.
    """
    generator = torch.Generator().manual_seed(0)
    moved = copy.deepcopy(network)
    weights = [(one.clone(), _direction(one, generator), _direction(one, generator)) for one in network.parameters()]
    steps = torch.linspace(-RADIUS, RADIUS, SIDE).tolist()
    grid = []
    for down in steps:
        row = []
        for right in steps:
            for parameter, (origin, one, other) in zip(moved.parameters(), weights, strict=True):
                parameter.copy_(origin + right * one + down * other)
            logits = run.infer(moved, examples).logits
            row.append(round(float(functional.cross_entropy(logits, run.labels[examples])), 4))
        grid.append(row)
    return grid


def _direction(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random direction, filter by filter as long as ``weight``; nowhere for biases and normalisation."""
    if weight.ndim < 2:
        return torch.zeros_like(weight)
    drawn = torch.randn(weight.shape, generator=generator).to(weight)
    length = drawn.flatten(1).norm(dim=1).clamp_min(1e-12)
    return drawn * (weight.flatten(1).norm(dim=1) / length).view(-1, *[1] * (weight.ndim - 1))
