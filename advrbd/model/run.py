"""What all steps of one run share, and what each of them does with it: build, train and ask networks."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from advrbd.config import TrainingSettings
from advrbd.data.pixels import Pixels
from advrbd.errors import DivergedError
from advrbd.events import Caution, Event, ignore
from advrbd.model.device import Device
from advrbd.model.factory import ModelSpec, Network, build
from advrbd.model.inference import Outputs, Predictions, infer, predict
from advrbd.model.training import Objective, Targets, given, train
from advrbd.workdir import Steps

SLOWER = 0.1  # the learning rate after a training that diverged


@dataclass(frozen=True)
class Run:
    """The images, their labels int64 [N] (never changed) and the means to learn from them.

    Subsets are index arrays int64 into these N images. ``generator`` (on the CPU) is the only source of randomness.
    What takes long goes through ``steps``, so that an interrupted run can go on. Without ``flip`` no image is mirrored,
    neither in training nor when a network is asked.
    """

    pixels: Pixels
    labels: torch.Tensor
    spec: ModelSpec
    device: Device
    generator: torch.Generator
    notify: Callable[[Event], None] = ignore
    class_names: tuple[str, ...] = ()
    steps: Steps = field(default_factory=Steps)
    flip: bool = True

    @property
    def class_count(self) -> int:
        return self.spec.class_count

    def class_name(self, label: int) -> str:
        """What to call a class when talking to the user."""
        return self.class_names[label] if self.class_names else str(label)

    def fresh_network(self) -> Network:
        return build(self.spec, self.device, self.generator)

    def train(
        self,
        network: Network,
        examples: torch.Tensor,
        settings: TrainingSettings,
        stage: str,
        targets: Targets | None = None,
        objective: Objective | None = None,
    ) -> float:
        """Train ``network`` in place, by default on the labels of the folder; returns the last epoch's mean loss.

        One that diverges is begun once more, with a tenth of the learning rate. Who brings an ``objective`` gets the
        ``DivergedError`` at once: what becomes of a loss without a bound is a result.
        """
        targets = given(self.labels) if targets is None else targets
        settings = replace(settings, flip=settings.flip and self.flip)

        def attempt(settings: TrainingSettings) -> float:
            means = self.device, self.generator, self.notify
            return train(network, self.pixels, examples, targets, settings, *means, stage, objective)

        def compute() -> dict[str, torch.Tensor]:
            start = copy.deepcopy(network.state_dict())
            try:
                loss = attempt(settings)
            except DivergedError:
                if objective is not None:
                    raise
                self.notify(Caution(f"training diverged ({stage}): once more with a tenth of the learning rate"))
                network.load_state_dict(start)
                loss = attempt(replace(settings, learning_rate=SLOWER * settings.learning_rate))
            return network.state_dict() | {"loss": torch.tensor(loss, dtype=torch.float64)}

        state = dict(self.steps.remember(stage, (examples, self.labels), self.generator, compute))
        loss = float(state.pop("loss"))
        network.load_state_dict(state)
        network.eval()
        return loss

    def infer(self, network: Network, examples: torch.Tensor, mirror: bool = False) -> Outputs:
        return infer(network, self.pixels, examples, self.device, mirror and self.flip)

    def predict(self, network: Network, examples: torch.Tensor) -> Predictions:
        return predict(network, self.pixels, examples, self.device)
