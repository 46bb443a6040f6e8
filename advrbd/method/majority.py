"""Where most of a class is accused: which of its two kinds was put there (ours, not the paper's).

A faint trigger is easily pushed away, so most of the class's seeds may be poisoned, and the natural images are what
stands apart from them. A model that is trained without these learns the trigger for the class, and denies the label of
whatever truly shows it. So where a look isn't sure of such a group, one more model is trained, without the rest of the
class. Images that were put there belong to other classes, and a model knows them as such; natural ones are like nothing
it has learned.
"""

from collections.abc import Callable
from dataclasses import replace

import torch

from advrbd.config import Config
from advrbd.events import Note
from advrbd.method.doubt import Doubt
from advrbd.method.identification import Identification
from advrbd.method.second_opinion import CHANCE
from advrbd.method.warm_up import Learned
from advrbd.model.run import Run

Train = Callable[[Identification], tuple[Learned, dict[int, Doubt]]]
"""Trains a network without the suspects of an identification and what is in doubt beside them, which it tells."""


def put_right(
    run: Run, looked_at: torch.Tensor, found: Identification, train: Train, config: Config
) -> tuple[Identification, Learned, dict[int, Doubt]]:
    """What a look over the images ``looked_at`` (int64 [M]) has ``found``, with the sides exchanged in classes where it
    accused the wrong one, and what ``train`` gives for it."""
    (learned, doubted), labels = train(found), run.labels[looked_at]
    for label in mostly_accused(found, labels, config):
        other = turned(found, labels, label)
        suspects, rest = (looked_at[one.suspects & (labels == label)] for one in (found, other))
        if not len(rest):
            continue
        trained = train(other)
        one, two = _sureness(run, learned, label, suspects), _sureness(run, trained[0], label, rest)
        if probability_of_more(two, one) > 0.5 + CHANCE * (1 / len(one) + 1 / len(two)) ** 0.5:
            found, (learned, doubted) = other, trained
            what = f"{len(suspects)} suspects, most of the class, are let be; the other {len(rest)} were put there"
            run.notify(Note(f"{run.class_name(label)!r}: {what}"))
    return found, learned, doubted


def mostly_accused(found: Identification, labels: torch.Tensor, config: Config) -> list[int]:
    """The classes, of M images with ``labels`` int64 [M], most of which was ``found`` to be planted, but not surely: a
    clean-label attack may take most of a class, and its group is as sharp as any."""
    counts, accused = (some.bincount(minlength=1 + int(labels.max())) for some in (labels, labels[found.suspects]))
    surely = 1 - config.identification.doubt
    return [label for label in (2 * accused > counts).nonzero().flatten().tolist() if found.convictions[label] < surely]


def turned(found: Identification, labels: torch.Tensor, label: int) -> Identification:
    """The same as if the rest of a class, of M images with ``labels`` int64 [M], were what stands apart."""
    members = labels == label
    carries = torch.where(members, 1 - found.carries, found.carries)
    return replace(found, carries=carries, score=torch.where(members, found.convictions[label] * carries, found.score))


def probability_of_more(some: torch.Tensor, others: torch.Tensor) -> float:
    """That one of ``some`` (float32 [K]) is more than one of ``others`` (float32 [L]); ties count half."""
    ordered = others.sort().values
    less, no_more = (torch.searchsorted(ordered, some, right=right) for right in (False, True))
    return float((less + no_more).double().mean() / (2 * len(others)))


def _sureness(run: Run, learned: Learned, label: int, images: torch.Tensor) -> torch.Tensor:
    """How surely each of the ``images`` (int64 [K]) belongs to a certain other class than ``label``, if to any:
    float32 [K] in 0..1, of a network that ``learned`` none of them."""
    logits = run.infer(learned.network, images, mirror=True).logits.clone()
    logits[:, label] = -torch.inf
    return logits.softmax(dim=1).amax(dim=1).contiguous()
