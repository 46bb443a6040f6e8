"""AdvrBD as its paper words it, so that what advrbd's own recipe does otherwise can be measured beside it."""

import copy
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch.nn import functional

from advrbd.baselines.base import Defence, Defended, stage, train_on_rest
from advrbd.config import PartitionSettings, RelearningSettings, TrainingSettings
from advrbd.method.partition import partition
from advrbd.model.factory import Network
from advrbd.model.run import Run
from advrbd.model.training import given


@dataclass(frozen=True)
class PaperRecipe(Defence):
    """Algorithms 1 and 2, Eq. 4 and 5 of "How to Train a Backdoor-Robust Model on a Poisoned Dataset without Auxiliary
    Data?" (arXiv:2405.12719, 2024; "Mellivora Capensis" from its second version on).

    The images that one adversarial patch moves most, of all classes together, are called clean (D_c). In rounds the
    backdoored model learns the rest (D_u) and unlearns D_c, and the images of D_u that a patch moves most *now*, the
    least consistent ones, join D_c. What the enhanced model still predicts as its label is poisoned, what it
    misclassifies is clean: there is no verdict, so something is suspected in every folder. A model is trained on the
    clean images, labels the suspects, and is fine-tuned on all. The score is the log-probability that the enhanced
    model gives to the label.

    The enhancement has no bound (unlearning climbs the cross-entropy), and its own damage decides what is moved next,
    so it can drift and lose the backdoor together with the task. That is the recipe, and isn't mended here.

    None of the paper's constants is known. All of these are ours:

    - ``partition``: rate, steps, size of the patch and epsilon are those of advrbd's own recipe; the text speaks of one
      patch, so ``masks`` is 1. The model that is partitioned by is the undefended one.
    - ``rounds`` 5 and ``moved`` .2, the share of D_u that joins D_c after a round: a third of all images is left in
      D_u in the last round, more than the largest poison rate in the paper, a fifth.
    - ``steps`` 60 a round, however many images there are, with the batches of ``enhancement``: 64, as ABL, on which the
      paper builds its unlearning. At its learning rate of .01 the accuracy on 400 handwritten digits falls to chance
      within the five rounds (two seeds).
    - Eq. 4 in one loss, L(D_u) - L(D_c), of images drawn from all with replacement, so that both weigh as they are
      many.
    - ``relearning``: that of advrbd's own clean model, which a budget doesn't scale. No suspect is too doubtful to be
      relabelled. The paper's results are mostly those before relabelling, Table IV apart.
    """

    name: ClassVar[str] = "advrbd-paper"
    detects: ClassVar[bool] = True

    partition: PartitionSettings = field(default_factory=lambda: PartitionSettings(masks=1))
    rounds: int = 5
    moved: float = 0.2
    steps: int = 60
    enhancement: TrainingSettings = field(default_factory=lambda: stage(1, 0.01, batch_size=64, augmented=False))
    relearning: RelearningSettings = field(default_factory=RelearningSettings)

    def _defend(self, run: Run, examples: torch.Tensor, network: Network, clean: torch.Tensor | None) -> Defended:
        labels = run.labels[examples]
        logits = run.infer(self._enhanced(run, examples, network), examples).logits
        suspects = logits.argmax(dim=1) == labels
        defended = train_on_rest(run, examples, suspects, self.relearning.clean, self.name)
        if suspects.any():
            relabelled = run.labels.clone()
            relabelled[examples[suspects]] = run.infer(defended, examples[suspects]).logits.argmax(dim=1)
            settings, stage_name = self.relearning.fine_tuning, f"{self.name}: fine-tune"
            run.train(defended, examples, settings, stage_name, given(relabelled))
        return Defended(defended, suspects, -functional.cross_entropy(logits, labels, reduction="none"))

    def _enhanced(self, run: Run, examples: torch.Tensor, network: Network) -> Network:
        """A copy of ``network`` after all rounds: D_c grows in each, by Algorithm 1's rate in the first."""
        enhanced = copy.deepcopy(network)
        trusted = torch.zeros(len(examples), dtype=torch.bool)
        for number in range(1, self.rounds + 1):
            untrusted = (~trusted).nonzero().flatten()
            sensitivity = partition(run, enhanced, examples[untrusted], self.partition).divergence
            share = self.partition.rate if number == 1 else self.moved
            trusted[untrusted[sensitivity.topk(round(share * len(untrusted))).indices]] = True
            unlearned = torch.zeros(len(run.labels), dtype=torch.bool)
            unlearned[examples[trusted]] = True
            targets = given(torch.where(unlearned, ~run.labels, run.labels))
            drawn = torch.randint(len(examples), (self.steps * self.enhancement.batch_size,), generator=run.generator)
            name = f"{self.name}: enhance, round {number}"
            run.train(enhanced, examples[drawn], self.enhancement, name, targets, learn_and_unlearn)
        return enhanced


def learn_and_unlearn(network: Network, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The objective L(D_u) - L(D_c), per image of the batch; an image to unlearn has the complement of its label.

    The complement ``~label`` is -1 - label, so it is negative and no label is lost.
    """
    unlearned = labels < 0
    losses = functional.cross_entropy(
        network(images).float(), torch.where(unlearned, ~labels, labels), reduction="none"
    )
    return torch.where(unlearned, -losses, losses).mean()
