"""Stage 2 (Algorithm 2): a model that keeps the backdoor and forgets the task.

In rounds, the model learns the suspected group (D_u) under its label and unlearns what is trusted (D_c, Eq. 4): an
unlearned image gets a fresh random label at every draw, any but the group's, which, unlike gradient ascent, doesn't
diverge; of two classes, the other one keeps its own. What the round clears moves to D_c. D_c starts as the seeds of the
class and all images of the other classes, so that nothing but the trigger is left to tell the group by.

Two models take turns: each learns one half of the group and judges the other, so no image is judged by a model that
learned it here, or another image of its scene. A trigger carries over from one half to the other, all or nothing; a
natural sub-population of the class fades into the rest. That difference is what the verdict rests on.
"""

import copy
from dataclasses import dataclass, replace

import torch

from advrbd.config import EnhancementSettings
from advrbd.method.likeness import count_pictures, scenes
from advrbd.method.separation import Split
from advrbd.model.factory import Network
from advrbd.model.run import Run
from advrbd.model.training import Targets

UNSEEN = 3
LARGEST = 0.7  # the share of a part that one scene may be and still not be cut


@dataclass(frozen=True)
class Enhanced:
    """What the enhanced models say of the class ``label``.

    ``probability`` float32 [M]: that an image carries what the group carries, in 0..1, and 0 outside the class.
    ``ambiguity``: undecided images of the class for each one on its smaller side; near 0 for a trigger, 0.4 and more
    for a natural group, up to 1.2 for a trigger that the network has hardly learned. ``versions``: how many images for
    each picture that side has, from 1; versions of a few photos fall as sharply apart as images with a trigger.
    """

    label: int
    probability: torch.Tensor
    ambiguity: float
    versions: float = 1.0


def enhance(
    run: Run, network: Network, examples: torch.Tensor, split: Split, seeds: torch.Tensor, settings: EnhancementSettings
) -> Enhanced:
    """Enhance what ``split`` found among the images ``examples`` (int64 [M]); ``seeds`` bool [M] are the trusted ones.

    Starts from ``network``, which is left as it is. Stops as soon as a round is clear, no better than the one before
    it, or hopeless, which shows after one half already: most classes that are looked at hold nothing. The clearest
    round counts.
    """
    in_class = run.labels[examples] == split.label
    learned = torch.zeros(len(examples), dtype=torch.bool)
    learned[split.group] = True
    scene = torch.zeros(len(examples), dtype=torch.int64)
    scene[in_class] = scenes(run, examples[in_class])
    half = _halves(scene, (learned, in_class & ~learned), run.generator)
    unlearned = (seeds | ~in_class) & ~learned
    best = Enhanced(split.label, torch.zeros(len(examples)), float("inf"))
    for number in range(1, settings.rounds + 1):
        stage = f"enhance {run.class_name(split.label)!r}, round {number}"
        found = _round(run, network, examples, split.label, (half, learned, unlearned), settings, stage)
        improved, best = found.ambiguity < best.ambiguity, min(best, found, key=lambda entry: entry.ambiguity)
        if not improved or not settings.clear_ambiguity < found.ambiguity < settings.hopeless_ambiguity:
            break
        learned = in_class & (found.probability > 0.5)
        unlearned = ~in_class | (found.probability < settings.cleared)
        if min(learned[half == side].sum() for side in (0, 1)) == 0:
            break
    return replace(best, versions=_versions(run, examples[in_class], best.probability[in_class] > 0.5))


def mean_of(one: Enhanced, other: Enhanced) -> Enhanced:
    """What two enhancements of one group say together."""
    ambiguity, versions = (one.ambiguity + other.ambiguity) / 2, (one.versions + other.versions) / 2
    return Enhanced(one.label, (one.probability + other.probability) / 2, ambiguity, versions)


def _round(
    run: Run,
    network: Network,
    examples: torch.Tensor,
    label: int,
    parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    settings: EnhancementSettings,
    stage: str,
) -> Enhanced:
    """Two copies of ``network`` learn a half each and judge the other; ``parts``: half (0 or 1), learned, unlearned."""
    half, learned, unlearned = parts
    in_class = run.labels[examples] == label
    members = in_class.nonzero().flatten()
    judged = torch.zeros(2, len(examples))
    for side in (0, 1):
        own, expert = half == side, copy.deepcopy(network)
        sets = [examples[which] for which in (learned & own, unlearned & in_class & own, unlearned & ~in_class)]
        _learn_and_unlearn(run, expert, sets, label, settings, f"{stage}, half {side + 1}")
        judged[side, members] = run.infer(expert, examples[members]).probabilities[:, label]
        if side == 0:
            unseen = judged[0, in_class & ~(own & (learned | unlearned))]
            if (ambiguity := _ambiguity(unseen, settings)) > settings.hopeless_half:
                return Enhanced(label, judged[0], ambiguity)
    shown = in_class & (learned | unlearned)
    probability = torch.where(shown, judged[1 - half, torch.arange(len(examples))], judged.mean(dim=0))
    return Enhanced(label, probability, _ambiguity(probability[in_class], settings))


def _halves(scene: torch.Tensor, parts: tuple[torch.Tensor, ...], generator: torch.Generator) -> torch.Tensor:
    """Zeros and ones int64 [M] that cut each of the ``parts`` (bool [M]) in two at random, but no ``scene`` (int64
    [M]): one half of its frames would be known from the other. Scenes are cut all the same where one of them is nearly
    all of a part: there is no other half to ask then.
    """
    half = torch.zeros_like(scene)
    for part in parts:
        where = part.nonzero().flatten()
        names, sizes = scene[where].unique(return_inverse=True, return_counts=True)[1:]
        if (sizes > LARGEST * len(where)).any():
            names, sizes = torch.arange(len(where)), torch.ones(len(where), dtype=torch.int64)
        order, sides, loads = torch.randperm(len(sizes), generator=generator), torch.zeros_like(sizes), [0, 0]
        for number in order[sizes[order].argsort(descending=True, stable=True)].tolist():  # the largest first
            sides[number] = int(loads[1] < loads[0])
            loads[int(sides[number])] += int(sizes[number])
        half[where] = sides[names]
    return half


def unlearning(label: int, learned: torch.Tensor, class_count: int) -> Targets:
    """Targets that are ``label`` for the images where ``learned`` (bool [N]) is set, else another class at random."""

    def draw(indices: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        wrong = torch.randint(0, class_count - 1, (len(indices),), generator=generator)
        wrong += wrong >= label
        return torch.where(learned[indices], torch.full_like(wrong, label), wrong)

    return draw


def _learn_and_unlearn(
    run: Run, expert: Network, sets: list[torch.Tensor], label: int, settings: EnhancementSettings, stage: str
) -> None:
    """Train ``expert`` for one round on the ``sets``: images to learn, to unlearn of the class, and of all others.

    As many draws are learned as unlearned; the class's own are few where there are many classes, and get a floor.
    """
    learned, own, others = sets
    draws = settings.training.batch_size * settings.steps // 2
    own_share = max(settings.own_share, len(own) / max(1, len(own) + len(others))) if len(own) else 0.0
    own_draws = round(own_share * draws)
    drawn = [
        images[torch.randint(len(images), (count,), generator=run.generator)]
        for images, count in ((learned, draws), (own, own_draws), (others, draws - own_draws))
        if len(images)
    ]
    is_learned = torch.zeros(len(run.labels), dtype=torch.bool)
    is_learned[learned] = True
    targets = unlearning(label, is_learned, run.class_count)
    run.train(expert, torch.cat(drawn), settings.training, stage, targets)


def _ambiguity(probability: torch.Tensor, settings: EnhancementSettings) -> float:
    """Undecided images of a class (probability between the two limits) for each image on its smaller side.

    Three more are counted than were seen (the rule of three: none seen still allows for three), since a few images,
    crossed sevens among the sevens, fall sharply apart by chance. Infinite where there is one side only: what tells
    all of the class from the other classes is no trigger in it.
    """
    undecided = ((probability > settings.cleared) & (probability < 1 - settings.cleared)).sum()
    carriers = int((probability > 0.5).sum())
    smaller = min(carriers, len(probability) - carriers)
    return (float(undecided) + UNSEEN) / smaller if smaller else float("inf")


def _versions(run: Run, images: torch.Tensor, carries: torch.Tensor) -> float:
    """How many of the ``images`` (int64 [K]) there are for each picture, on the smaller side of ``carries`` (bool)."""
    smaller = images[min(carries, ~carries, key=torch.count_nonzero)]
    return len(smaller) / count_pictures(run, smaller) if len(smaller) else 1.0
