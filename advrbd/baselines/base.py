"""What a baseline is: settings, what it needs that a user may not have, and one method that gives a defended model."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Self

import torch

from advrbd.config import TrainingSettings
from advrbd.errors import DefenceError
from advrbd.model.factory import Network
from advrbd.model.run import Run
from advrbd.model.training import cross_entropy

NOTHING = "nothing"
CLEAN_IMAGES = "clean images"
POISON_RATE = "poison rate"


@dataclass(frozen=True)
class Defended:
    """The defended ``network``, and from a defence that detects, in the order of its M examples:

    ``suspects`` bool [M], and ``score`` float32 [M], higher = more likely poisoned, on a scale of the defence's own.
    """

    network: Network
    suspects: torch.Tensor | None = None
    score: torch.Tensor | None = None


@dataclass(frozen=True)
class Defence(ABC):
    """A defence with all its settings.

    ``needs`` is ``NOTHING``, ``CLEAN_IMAGES``: some that are surely clean, or ``POISON_RATE``: the share of the images
    that is poisoned, which such a defence takes as its setting ``rate``. ``detects``: it names suspects.
    """

    name: ClassVar[str]
    needs: ClassVar[str] = NOTHING
    detects: ClassVar[bool] = False

    def defend(self, run: Run, examples: torch.Tensor, network: Network, clean: torch.Tensor | None = None) -> Defended:
        """Defend against what may be planted in the images ``examples`` (int64 [M]).

        ``network`` was trained on them without a defence; it is left as it is, so that several defences can share it.
        ``clean`` (int64 [K]) are images of the run that are trusted, with their labels. Raises ``DefenceError`` where
        they, or the rate, are needed and not given, or where the defence leaves nothing to train on; ``ModelError`` for
        a network that it can't work on.
        """
        if self.needs == CLEAN_IMAGES and (clean is None or len(clean) < 2):
            raise DefenceError(f"{self.name} needs clean images: give it some that are trusted, 5 % of all is usual")
        return self._defend(run, examples, network, clean)

    @abstractmethod
    def _defend(self, run: Run, examples: torch.Tensor, network: Network, clean: torch.Tensor | None) -> Defended: ...

    def scaled(self, budget: float) -> Self:
        """The same defence with ``budget`` (> 0) times as many epochs in every stage, and one at least; the minimum of
        steps is that much smaller, too."""
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(
            self,
            **{
                name: replace(
                    value,
                    epochs=max(1, round(budget * value.epochs)),
                    minimum_steps=round(budget * value.minimum_steps),
                )
                for name, value in settings.items()
                if isinstance(value, TrainingSettings)
            },
        )


def stage(
    epochs: int, learning_rate: float, batch_size: int = 128, augmented: bool = True, minimum_steps: int = 0
) -> TrainingSettings:
    """The settings of one stage of a defence; its length is the paper's.

    Where a stage sees a small part of the folder, or has to tell images by how far they are learned, its steps count:
    its ``minimum_steps`` are those that the paper's epochs come to at 50,000 images.
    """
    shift = 0.0625 if augmented else 0.0
    return TrainingSettings(
        epochs=epochs,
        minimum_steps=minimum_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        flip=augmented,
        shift=shift,
    )


def train_on_rest(
    run: Run, examples: torch.Tensor, suspects: torch.Tensor, settings: TrainingSettings, name: str
) -> Network:
    """A fresh network that learned the images ``examples`` (int64 [M]) but for the ``suspects`` (bool [M]).

    Raises ``DefenceError`` where fewer than two are left, which batch normalisation could not work on.
    """
    kept = examples[~suspects]
    if len(kept) < 2:
        suspected = f"{len(examples) - len(kept)} of {len(examples)}"
        raise DefenceError(f"{name} suspects {suspected} images, so there is nothing left to train on; leave it out")
    network = run.fresh_network()
    run.train(network, kept, settings, f"{name}: train on the rest")
    return network


def ascent(network: Network, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The objective of unlearning: minus the cross-entropy, so that a step climbs where learning descends."""
    return -cross_entropy(network, images, labels)


def unlearn_and_relearn(
    run: Run, network: Network, poisoned: torch.Tensor, trusted: torch.Tensor, settings: TrainingSettings, name: str
) -> None:
    """Change ``network`` in turns of an epoch: climb on the images ``poisoned``, descend on those ``trusted``.

    Both are int64. The removal module of D-BR (Chen et al., NeurIPS 2022). As many turns as there are epochs, or as
    many more as the minimum of steps takes on the poisoned images. Nothing happens where there is at most one poisoned
    image, which batch normalisation could not work on.
    """
    if len(poisoned) < 2:
        return
    once = replace(settings, epochs=1, minimum_steps=0)
    for epoch in range(1, settings.length(len(poisoned))[2] + 1):
        run.train(network, poisoned, once, f"{name}: unlearn, epoch {epoch}", objective=ascent)
        run.train(network, trusted, once, f"{name}: relearn, epoch {epoch}")
