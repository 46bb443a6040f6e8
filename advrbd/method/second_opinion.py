"""After stage 3a (ours, not the paper's): what a model that was trained without the suspects says of them.

A sharp group may be natural: white backgrounds among the lawn mowers. The next look's model hasn't learned the
suspects, and the one thing that a natural group keeps and a planted one never had is an affinity to its label.
"""

from dataclasses import dataclass
from math import log

import torch

from advrbd.config import IdentificationSettings
from advrbd.method.identification import moved
from advrbd.model.factory import Network
from advrbd.model.run import Run

PLAIN = 0.95
FEWEST = 20


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
    weight = settings.affinity_slope * (settings.affinity_limit - affinity)
    weight = min(max(weight, -settings.most_against), settings.most_for)
    revised = float(moved(torch.tensor(conviction), weight))
    return SecondOpinion(moved(carries, torch.where(unseen, confirmed * (own >= 0.5), raised)), revised, denied)


def affinity_to(label: int, logits: torch.Tensor, run: Run, network: Network, kept: torch.Tensor) -> float:
    """How much more S suspects have of the class ``label`` than what looks like them.

    ``logits`` float32 [S, classes], of 1 suspect or more, are what ``network`` says of them and their mirror images; it
    was trained on the images ``kept`` (int64 [K]) alone. In 0..1: the probability that ``label`` comes
    earlier among the classes that it sees in a suspect than among those that it sees in a kept image of the class that
    it takes the suspect for (ties count half), and 1 for a suspect taken for ``label`` itself. One half for a falsified
    label, whatever the model is worth; a cat is told from a dog by cats only, so the source of a source-specific
    attack may be close to its target.
    """
    seen, ranks, total = logits.argmax(dim=1), _ranks(logits, label), 0.0
    for other in seen.unique().tolist():
        mine = ranks[seen == other]
        like = kept[run.labels[kept] == other][: max(FEWEST, len(mine))]
        if other == label:
            total += len(mine)
        elif len(like) == 0:  # of a class without any image, nothing can be said
            total += len(mine) / 2
        else:
            theirs = _ranks(run.infer(network, like, mirror=True).logits, label)
            earlier, same = mine[:, None] < theirs, mine[:, None] == theirs
            total += float((earlier.float() + same / 2).mean(dim=1).sum())
    return total / len(logits)


def _ranks(logits: torch.Tensor, label: int) -> torch.Tensor:
    """How many classes come before ``label`` in each row of the ``logits`` [M, classes], int64 [M]."""
    return (logits > logits[:, label, None]).sum(dim=1)
