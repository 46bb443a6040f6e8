"""After stage 3a (ours, not the paper's): what a model that was trained without the suspects says of them.

A sharp group may be natural: white backgrounds among the lawn mowers. The next look's model hasn't learned the
suspects, and the one thing that a natural group keeps and a planted one never had is an affinity to its label.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import log

import torch

from advrbd.config import IdentificationSettings
from advrbd.method.identification import moved
from advrbd.method.warm_up import Learned
from advrbd.model.inference import Outputs
from advrbd.model.run import Run

PLAIN = 0.95
FEWEST = 50
EVENLY = 10_000  # images to compare with, shared evenly by the classes
LEAST_SPREAD = 0.05
SURELY = 2.0  # standard errors
CHANCE = SURELY * 12**-0.5  # over the root of their number: in an affinity, to which false labels add uniform numbers


@dataclass(frozen=True)
class SecondOpinion:
    """``carries`` float32 [K] and ``conviction`` as in ``Identification``, reconsidered; ``denied`` in 0..1: the share
    of the plain suspects whose label the second model denies."""

    carries: torch.Tensor
    conviction: float
    denied: float


def second_opinion(
    carries: torch.Tensor,
    conviction: float,
    own: torch.Tensor,
    unseen: torch.Tensor,
    affinity: float,
    settings: IdentificationSettings,
) -> SecondOpinion:
    """Reconsider the K files of a convicted class, now that a model was trained without its suspects.

    ``own`` float32 [K]: the probability that the model gives to the label they have, ``unseen`` bool [K]: the suspects,
    ``affinity``: how near they are to that label, by ``affinity_to``.

    - Suspects without any affinity have falsified labels: the class is more likely poisoned. With it, the group may be
      natural, and only a very sharp one is convicted: a clean-label attack is.
    - A trigger that hardly shows (a white corner on a white background) leaves the enhanced models in doubt; a file
      whose label is denied although the model learned it isn't in its class by chance.
    - A suspect whose label is confirmed where nearly all others' are denied is an innocent bystander.
    """
    plain = unseen & (carries > PLAIN)
    denied = (float((own[plain] < 0.5).sum()) + 1) / (int(plain.sum()) + 2)
    denied_learned = float((own[~unseen] < 0.5).float().mean()) if (~unseen).any() else 0.0
    confirmed = min(0.0, log(1 - denied) - log(1 - min(denied_learned, 0.99)))
    raised = denied * torch.logit(1 - own, eps=1e-3).clamp_min(0)
    revised = reconsidered(conviction, affinity, settings)
    return SecondOpinion(moved(carries, torch.where(unseen, confirmed * (own >= 0.5), raised)), revised, denied)


def reconsidered(conviction: float, affinity: float, settings: IdentificationSettings) -> float:
    """The ``conviction`` of a class whose group has so much ``affinity`` to its label, by ``affinity_to``."""
    weight = settings.affinity_slope * (settings.affinity_limit - affinity)
    weight = min(max(weight, -settings.most_against), settings.most_for)
    return float(moved(torch.tensor(conviction), weight))


class Outsider:
    """A network that ``learned`` none of the images that matter, and what it says of them and their mirror images.

    What it did learn is asked about once, however many groups are compared with it, and in no order of the files:
    whoever names them would choose by it whom suspects are compared with.
    """

    def __init__(self, run: Run, learned: Learned) -> None:
        self.run, self.learned = run, learned
        order = torch.Generator().manual_seed(len(learned.examples))
        self._known = learned.examples[torch.randperm(len(learned.examples), generator=order)]
        self._said, self._least = dict[int, torch.Tensor](), max(FEWEST, EVENLY // run.class_count)

    def says(self, images: torch.Tensor) -> Outputs:
        """Of the ``images`` (int64 [K])."""
        return self.run.infer(self.learned.network, images, mirror=True)

    def own(self, images: torch.Tensor, label: int) -> torch.Tensor:
        """The probability, float32 [K], that each of the ``images`` (int64 [K]) shows the class ``label``."""
        return self.says(images).probabilities[:, label].contiguous()

    def affinity(self, label: int, logits: torch.Tensor) -> float:
        """``affinity_to`` the class ``label`` of what it says of suspects, ``logits`` float32 [S, classes]."""
        return affinity_to(label, logits, self.familiar)

    def familiar(self, label: int, count: int) -> torch.Tensor:
        """Logits float32 [S, classes] of ``count`` known images of the class ``label``, of ``FEWEST`` at least and of
        as many as an even share of ``EVENLY``, or of all if those are fewer, that it takes for that class."""
        mine = self._known[self.run.labels[self._known] == label][: max(count, self._least)]
        said = self._said.get(label, torch.zeros(0, self.run.class_count))
        if len(said) < len(mine):
            said = self._said[label] = torch.cat([said, self.says(mine[len(said) :]).logits])
        said = said[: len(mine)]
        return said[said.argmax(dim=1) == label]


def affinity_to(label: int, logits: torch.Tensor, familiar: Callable[[int, int], torch.Tensor]) -> float:
    """How much more S suspects have of the class ``label`` than what looks like them.

    ``logits`` float32 [S, classes], of 1 suspect or more, are what a network says of them that didn't learn them,
    ``familiar`` gives those of so many images of a class that it did learn. In 0..1: the probability that ``label`` has
    more of what the network leaves to other classes than the one it takes a suspect for, than it has in a familiar
    image of that class that it takes for it as well (ties count half), and 1 for a suspect taken for ``label`` itself.
    One half for a falsified label, whatever the model is worth and however sure it is; a cat is told from a dog by cats
    only, so the source of a source-specific attack may be close to its target.
    """
    seen, shares, total = logits.argmax(dim=1), _shares(logits)[:, label], 0.0
    for other in seen.unique().tolist():
        mine = shares[seen == other]
        if other == label:
            total += len(mine)
            continue
        theirs = _shares(familiar(other, len(mine)))[:, label].sort().values
        if len(theirs):
            less, no_more = (torch.searchsorted(theirs, mine, right=right) for right in (False, True))
            total += float((less + no_more).double().sum()) / (2 * len(theirs))
        else:  # of a class without any image that the model knows, nothing can be said
            total += len(mine) / 2
    return total / len(logits)


def _shares(logits: torch.Tensor) -> torch.Tensor:
    """What each class has, as log-probabilities, of what is left to all but the first in each row of the ``logits``
    [M, classes]."""
    first = logits.argmax(dim=1, keepdim=True)
    return logits.scatter(1, first, -torch.inf).log_softmax(dim=1)


def lowest_expected(values: torch.Tensor, deviations: float) -> float:
    """So many standard deviations below the middle of the ``values`` [K], by their median absolute deviation: a few of
    them may lie far off. A few that agree by chance aren't taken for less spread than ``LEAST_SPREAD``."""
    middle = values.quantile(0.5)
    spread = max(LEAST_SPREAD, 1.4826 * float((values - middle).abs().quantile(0.5)))  # of a Gaussian, by its median
    return float(middle) - deviations * spread
