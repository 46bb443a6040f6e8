"""All settings of a run: one frozen dataclass per stage. They reach the report as they are.

The paper's own constants are not known; these were chosen by experiment (examples/reproduce/experiments.md).
"""

from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class TrainingSettings:
    """One pass through the training loop. ``shift`` is a share of the image's side, ``rise`` of the steps."""

    epochs: int = 16
    minimum_steps: int = 400  # small folders get more epochs
    batch_size: int = 128
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    flip: bool = True
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
class SeparationSettings:
    """Which classes are worth an enhancement. A group smaller than ``minimum_group`` images can't be seen."""

    starts: int = 8
    minimum_group: int = 10
    large_part: float = 0.4  # two parts this large: the seeds say which one is the class
    least_candidates: int = 2
    most_candidates: int = 10
    bimodality_limit: float = 3.3
    distance_limit: float = 7.0


@dataclass(frozen=True)
class EnhancementSettings:
    """Algorithm 2. ``cleared``: the probability under which an image of the class joins the trusted ones."""

    rounds: int = 3
    steps: int = 120
    cleared: float = 0.1
    hopeless_ambiguity: float = 0.4
    training: TrainingSettings = field(
        default_factory=lambda: TrainingSettings(epochs=1, minimum_steps=0, learning_rate=0.05)
    )


@dataclass(frozen=True)
class IdentificationSettings:
    """``ambiguity_limit``: undecided images per carrier at which a class is as likely natural as poisoned.

    ``even_odds``: the enhanced probability at which a file of a convicted class is as likely poisoned as not.
    """

    ambiguity_limit: float = 0.2
    ambiguity_slope: float = 32.0
    even_odds: float = 0.15
    unexamined: float = 0.01


@dataclass(frozen=True)
class RelearningSettings:
    """Eq. 5. Under ``confidence_floor`` a suspect is dropped rather than given a guessed label."""

    confidence_floor: float = 0.5
    clean: TrainingSettings = field(default_factory=lambda: TrainingSettings(shift=0.0625))
    fine_tuning: TrainingSettings = field(
        default_factory=lambda: TrainingSettings(epochs=4, minimum_steps=100, learning_rate=0.01, shift=0.0625)
    )


@dataclass(frozen=True)
class Config:
    """What a scan or a clean is told to do; the defaults need no knowledge of the data.

    ``looks``: how often at most the folder is looked at; after each look that found something, what was found is
    taken out and a fresh model looks at the rest.
    """

    model: str = "auto"
    device: str = "auto"
    seed: int = 0
    image_size: int | None = None
    pretrained: bool = False
    looks: int = 3
    warm_up: TrainingSettings = field(default_factory=TrainingSettings)
    partition: PartitionSettings = field(default_factory=PartitionSettings)
    separation: SeparationSettings = field(default_factory=SeparationSettings)
    enhancement: EnhancementSettings = field(default_factory=EnhancementSettings)
    identification: IdentificationSettings = field(default_factory=IdentificationSettings)
    relearning: RelearningSettings = field(default_factory=RelearningSettings)

    def as_dict(self) -> dict:
        return asdict(self)
