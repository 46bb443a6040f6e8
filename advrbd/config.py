"""All settings of a run: one frozen dataclass per stage. They reach the report as they are.

The paper's own constants are not known; these were chosen by experiment (examples/reproduce/experiments.md).
"""

from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class TrainingSettings:
    """One pass through the training loop. ``shift`` is a share of the image's side, ``rise`` of the steps."""

    epochs: int = 16
    minimum_steps: int = 300  # small folders get more epochs
    batch_size: int = 128
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    flip: bool = False
    shift: float = 0.0
    rise: float = 0.2


@dataclass(frozen=True)
class PartitionSettings:
    """Algorithm 1: ``patch`` is a share of the image's side, ``epsilon`` is in pixel units of [0, 1]."""

    rate: float = 0.2
    masks: int = 2
    steps: int = 2
    patch: float = 0.5
    epsilon: float = 16 / 255


@dataclass(frozen=True)
class Config:
    """What a scan or a clean is told to do; the defaults need no knowledge of the data."""

    model: str = "auto"
    device: str = "auto"
    seed: int = 0
    image_size: int | None = None
    pretrained: bool = False
    warm_up: TrainingSettings = field(default_factory=TrainingSettings)
    partition: PartitionSettings = field(default_factory=PartitionSettings)

    def as_dict(self) -> dict:
        return asdict(self)
