"""All settings of a run: one frozen dataclass per stage. They reach the report as they are; counts that no run
could work with are a ``ValueError``.

The paper's own constants are not known; these were chosen by experiment (examples/reproduce/experiments.md).
"""

import math
from dataclasses import asdict, dataclass, field, replace

MAX_SEED = 2**63 - 1  # half of what torch takes, which fails only once everything is decoded


@dataclass(frozen=True)
class DecodingSettings:
    """What a file may take to be decoded: an image of more than ``max_pixels`` isn't, one that takes longer than
    ``seconds`` no further."""

    max_pixels: int = 64 * 2**20
    seconds: float = 20.0


@dataclass(frozen=True)
class TrainingSettings:
    """One pass through the training loop. ``shift`` is a share of the image's side, ``rise`` of the steps.

    Small folders get more epochs: until there are ``minimum_steps``, however many that takes, and until there are
    ``enough_steps``, as long as they are no more than ``most_epochs``. Large ones get fewer, at least
    ``fewest_epochs``, where ``plenty_steps`` (0: any number) would be exceeded.
    """

    epochs: int = 16
    minimum_steps: int = 400
    enough_steps: int = 0
    most_epochs: int = 80
    plenty_steps: int = 0
    fewest_epochs: int = 8
    batch_size: int = 128
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    flip: bool = True
    shift: float = 0.0
    rise: float = 0.2

    def __post_init__(self) -> None:
        _check_positive(self, "batch_size")

    def length(self, count: int) -> tuple[int, int, int]:
        """Of a training on ``count`` images (1 or more): batch size, steps in an epoch, and epochs."""
        batch_size = min(self.batch_size, count)
        steps = count // batch_size
        needed, better = math.ceil(self.minimum_steps / steps), math.ceil(self.enough_steps / steps)
        epochs = max(self.epochs, needed, min(better, self.most_epochs))
        if self.plenty_steps:
            epochs = min(epochs, max(self.fewest_epochs, self.plenty_steps // steps, needed))
        return batch_size, steps, epochs

    def halved(self) -> "TrainingSettings":
        """The same with half of the epochs, where the least or enough steps don't ask for more."""
        epochs, fewest = max(1, self.epochs // 2), max(1, self.fewest_epochs // 2)
        return replace(self, epochs=epochs, fewest_epochs=fewest, plenty_steps=self.plenty_steps // 2)


@dataclass(frozen=True)
class PartitionSettings:
    """Algorithm 1: ``patch`` is a share of the image's side, ``epsilon`` is in pixel units of [0, 1]."""

    rate: float = 0.2
    masks: int = 2
    steps: int = 2
    patch: float = 0.5
    epsilon: float = 16 / 255

    def __post_init__(self) -> None:
        _check_positive(self, "masks")


@dataclass(frozen=True)
class SeparationSettings:
    """Into how many ``parts`` each class is cut, and how many of the clearest groups of each cut are ``examined``; of a
    cut in two the other half may be as well, and what is left of the class.

    A small planted group is no part of its own before a class is cut often enough. Of fewer than ``few`` files the
    features are so noisy that they scatter it as well: its parts stand out less than natural groups do, but farther,
    and the farthest of the other groups of each cut is examined besides. The numbers are those for up to ``classes``
    classes and grow with them, of all cuts but the finest twice as fast: many classes have more natural groups that
    stand out, and a large planted one is seldom far behind. A group smaller than ``minimum_group`` can't be seen.
    Its core are the images that are in it with a probability of more than ``sure``. Of a group that is less than the
    share ``rare`` of its class, and more than ``enough``, the core is the share ``farthest`` from the rest.
    """

    starts: int = 4
    sure: float = 0.9
    farthest: float = 0.75
    enough: int = 100
    rare: float = 0.125
    minimum_group: int = 10
    parts: tuple[int, ...] = (2, 4, 8)
    examined: tuple[int, ...] = (1, 1, 4)
    few: int = 4000
    classes: int = 25

    def __post_init__(self) -> None:
        _check_positive(self, "starts", "minimum_group", "parts", "examined", "classes")
        if len(self.parts) != len(self.examined):
            raise ValueError(f"parts {self.parts} and examined {self.examined} have to be as many; give both")

    def places(self, size: int, class_count: int) -> tuple[tuple[int, int], ...]:
        """How many groups of each cut are examined in a folder of ``size`` files and ``class_count`` classes: those
        that stand out most, and those that lie farthest."""
        scale, finest = math.ceil(class_count / self.classes), max(self.parts)
        faster, farthest = 2 * scale if scale > 1 else 1, scale if size < self.few else 0
        places = zip(self.parts, self.examined, strict=True)
        return tuple((number * (scale if parts == finest else faster), farthest) for parts, number in places)


@dataclass(frozen=True)
class EnhancementSettings:
    """Algorithm 2. ``cleared``: the probability under which an image of the class joins the trusted ones.

    Between the two ambiguities (undecided images per image on the class's smaller side) another round may help. The
    first half of a round ends it already if it is worse than ``hopeless_half``; for the leader of the cut in two, if it
    has fewer than ``few`` images, and so little to be judged by, than ``hopeless_few``.
    ``own_share``: at least so many of the unlearned images are of the class itself.
    """

    rounds: int = 3
    steps: int = 120
    cleared: float = 0.1
    clear_ambiguity: float = 0.05
    hopeless_ambiguity: float = 0.65
    hopeless_half: float = 0.65
    hopeless_few: float = 1.0
    few: int = 100
    own_share: float = 0.02
    training: TrainingSettings = field(
        default_factory=lambda: TrainingSettings(epochs=1, minimum_steps=0, learning_rate=0.05)
    )

    def __post_init__(self) -> None:
        _check_positive(self, "rounds", "steps")


@dataclass(frozen=True)
class IdentificationSettings:
    """``ambiguity_limit``: undecided images per carrier at which a class is as likely natural as poisoned, in a look
    that examines up to ``groups`` groups; with more of them it falls. ``doubt``: a conviction further than this from 0
    and 1 is looked into twice. ``even_odds``: the enhanced probability at which a file of a convicted class is as
    likely poisoned as not. Those that aren't suspects are in doubt where their log-odds lie ``doubt_deviations`` above
    the middle of theirs in the class, and above ``undecided``: under that an image surely lacks what its class's group
    carries. ``affinity_limit``: the affinity of a class's suspects
    to their label that speaks neither for nor against a trigger; less of it moves the log-odds by up to ``most_for``,
    more by up to ``most_against``.
    ``held_out_limit``: the affinity at which a group that no trigger tells surely is as likely natural as mislabelled,
    where natural ones have more. For a stray, in a class with falsified labels, what lies ``stray_deviations`` below
    the middle of small natural groups' is the limit if that is less; for any other group what lies
    ``held_out_margin`` below the lowest but one of theirs, with what chance may add to its own.
    ``limit_if_falsified``: the ambiguity at which such a group is as likely label noise as planted,
    ``even_odds_if_falsified`` what ``even_odds`` is then, with the denial of a file's label weighed beside it, and
    ``most_if_falsified`` the most that it can be convicted by that, for a second opinion to tip (``most``: any group):
    what was accused for its labels has to have false ones in that model's eyes, too, which asks about the affinity with
    ``held_out_limit`` and ``slope_if_falsified``.
    """

    ambiguity_limit: float = 0.33
    ambiguity_slope: float = 16.0
    groups: int = 6
    doubt: float = 0.02
    even_odds: float = 0.2
    undecided: float = 0.01
    doubt_deviations: float = 2.0
    unexamined: float = 0.01
    affinity_limit: float = 0.65
    affinity_slope: float = 12.0
    most_for: float = 1.2
    most_against: float = 3.5
    held_out_limit: float = 0.6
    held_out_margin: float = 0.05
    stray_deviations: float = 3.0
    limit_if_falsified: float = 1.5
    even_odds_if_falsified: float = 1 / 3
    most: float = 1.0
    most_if_falsified: float = 0.88
    slope_if_falsified: float = 60.0

    def if_falsified(self) -> "IdentificationSettings":
        """The same for a group that is accused because its labels seem to be false."""
        return replace(
            self,
            ambiguity_limit=self.limit_if_falsified,
            even_odds=self.even_odds_if_falsified,
            most=self.most_if_falsified,
            affinity_limit=self.held_out_limit,
            affinity_slope=self.slope_if_falsified,
        )


@dataclass(frozen=True)
class RelearningSettings:
    """Eq. 5. Under ``confidence_floor`` a suspect is dropped rather than given a guessed label. ``clean_label_share``:
    where so many more suspects of a class than images of others show its label once the suspects' common pattern is
    taken out, no label was falsified."""

    confidence_floor: float = 0.75
    clean_label_share: float = 1 / 3
    clean: TrainingSettings = field(
        default_factory=lambda: TrainingSettings(epochs=32, enough_steps=4000, shift=0.0625)
    )
    fine_tuning: TrainingSettings = field(
        default_factory=lambda: TrainingSettings(epochs=4, minimum_steps=100, learning_rate=0.01, shift=0.0625)
    )


@dataclass(frozen=True)
class GateSettings:
    """What limits the trust in the result: a class that lost more than the share ``lost`` of its images, or of whose
    images the clean model gives fewer their label than the share ``agreement`` of what it does on average; suspects
    of whom the model denies less than the share ``denied`` the label that they had."""

    lost: float = 0.4
    agreement: float = 0.6
    denied: float = 0.5


@dataclass(frozen=True)
class Config:
    """What a scan or a clean is told to do; the defaults need no knowledge of the data.

    ``looks``: how often at most the folder is looked at; after each look that found something, what was found is taken
    out, and a fresh model says first whether it is natural. Unless all of it is, it looks at the rest; if so, at the
    classes that have more groups in doubt. What still stands apart at the end is heard by a model of its own. What a
    single look finds or leaves is heard by nobody. ``flip``: whether an image and its mirror image mean the same, as
    trainings then take for granted; a trigger that is a mirror image isn't seen with it. ``control_share``: size of the
    control group, as a share of an average class. ``controls``: how many are tried, in a look each, before the folder
    counts as unexamined. ``seed``: 0 to ``MAX_SEED``.
    """

    model: str = "auto"
    device: str = "auto"
    seed: int = 0
    image_size: int | None = None
    pretrained: bool = False
    flip: bool = True
    looks: int = 4
    control_share: float = 0.1
    controls: int = 2
    decoding: DecodingSettings = field(default_factory=DecodingSettings)
    warm_up: TrainingSettings = field(default_factory=lambda: TrainingSettings(plenty_steps=3200))
    partition: PartitionSettings = field(default_factory=PartitionSettings)
    separation: SeparationSettings = field(default_factory=SeparationSettings)
    enhancement: EnhancementSettings = field(default_factory=EnhancementSettings)
    identification: IdentificationSettings = field(default_factory=IdentificationSettings)
    relearning: RelearningSettings = field(default_factory=RelearningSettings)
    gate: GateSettings = field(default_factory=GateSettings)

    def __post_init__(self) -> None:
        _check_positive(self, "looks")

    def as_dict(self) -> dict:
        return asdict(self)


def _check_positive(settings: object, *names: str) -> None:
    """Raise ``ValueError`` for one of the fields ``names`` that is no number from 1 on, nor made of such."""
    for name in names:
        value = getattr(settings, name)
        if any(number < 1 for number in (value if isinstance(value, tuple) else (value,))):
            raise ValueError(f"{name} takes numbers from 1 on, not {value}")
