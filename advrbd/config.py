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
    """One pass through the training loop. Small folders get more epochs, large ones fewer."""

    epochs: int = 16
    minimum_steps: int = 400  # as many epochs as that takes
    enough_steps: int = 0  # as many epochs as that takes, up to most_epochs
    most_epochs: int = 80
    plenty_steps: int = 0  # where there would be more, fewer epochs, down to fewest_epochs; 0: any number
    fewest_epochs: int = 8
    batch_size: int = 128
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    flip: bool = True
    shift: float = 0.0  # how far images are moved at random, as a share of their side
    rise: float = 0.2  # the share of the steps over which the learning rate rises

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
    """Algorithm 1."""

    rate: float = 0.2  # the share of each class that becomes the seeds
    masks: int = 2  # patches tried on each image
    steps: int = 2  # of gradient ascent on each
    patch: float = 0.5  # its side, as a share of the image's
    epsilon: float = 16 / 255  # how far a pixel may move, of 1

    def __post_init__(self) -> None:
        _check_positive(self, "masks")


@dataclass(frozen=True)
class SeparationSettings:
    """Into how many parts each class is cut, and how many of the parts are examined: those that stand out most.

    A small planted group is no part of its own before a class is cut often enough. Of few files the features are so
    noisy that they scatter it as well: its parts stand out less than natural groups do, but farther, so the farthest
    of the other parts of each cut is examined besides. Many classes have more natural groups that stand out, while a
    large planted one is seldom far behind.
    """

    starts: int = 4  # of k-means
    sure: float = 0.9  # the core of a part are the images that are in it with more than this probability
    farthest: float = 0.75  # of a rare part, the core is only this share of it, the farthest from the rest
    enough: int = 100  # but so many images at least
    rare: float = 0.125  # the share of its class under which a part is rare
    minimum_group: int = 10  # a smaller one can't be seen
    parts: tuple[int, ...] = (2, 4, 8)
    examined: tuple[int, ...] = (1, 1, 4)  # parts of each cut; of one in two the other may be as well, and the rest
    few: int = 4000  # files under which the farthest parts are examined, too
    classes: int = 25  # for so many these numbers are; they grow with more, but for the finest cut twice as fast

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
    """Algorithm 2. Ambiguities are undecided images for each picture on the smaller side of the class."""

    rounds: int = 3  # at most
    steps: int = 120  # of training in each, for each half
    cleared: float = 0.1  # under this probability an image of the class joins the trusted ones
    clear_ambiguity: float = 0.05  # no further round is needed
    hopeless_ambiguity: float = 0.65  # no further round helps
    hopeless_half: float = 0.65  # the same after one half of a round
    hopeless_few: float = 1.0  # and of the first group that is examined, if that is small: it is judged by little
    few: int = 100  # images of a group, under which it is small
    own_share: float = 0.02  # of the unlearned images at least so many are of the class itself
    training: TrainingSettings = field(
        default_factory=lambda: TrainingSettings(epochs=1, minimum_steps=0, learning_rate=0.05)
    )

    def __post_init__(self) -> None:
        _check_positive(self, "rounds", "steps")


@dataclass(frozen=True)
class IdentificationSettings:
    """What an ambiguity, an affinity and a probability are worth, in log-odds.

    A conviction is the probability that a class holds a trigger, a score that times the probability that the file
    carries it. A group whose labels turned out to be false is convicted at a higher ambiguity, but only so far that a
    second opinion can tip it, and what hardly anything but its labels accused has to have false ones in that model's
    eyes, too.
    """

    ambiguity_limit: float = 0.33  # as likely natural as poisoned
    ambiguity_slope: float = 16.0  # log-odds for each undecided image for each picture
    groups: int = 6  # that holds for up to so many groups in a look; with more of them the limit falls
    doubt: float = 0.02  # a conviction further than this from 0 and 1 is looked into twice
    even_odds: float = 0.2  # the enhanced probability at which a file is as likely poisoned as not
    undecided: float = 0.01  # the one under which an image surely lacks what its class's group carries
    doubt_deviations: float = 2.0  # a file is in doubt from so many above the middle of its class on, and undecided
    unexamined: float = 0.01  # the score in a group that wasn't examined, since others stood out more
    affinity_limit: float = 0.65  # of suspects to their label, that speaks neither for nor against a trigger
    # A group that no trigger tells, of a class that nothing else speaks against, has surely less if it was put there.
    affinity_slope: float = 12.0  # log-odds for an affinity of 1
    most_for: float = 1.2  # log-odds by which too little affinity speaks for a trigger
    most_against: float = 3.5  # log-odds by which more of it speaks against one
    held_out_margin: float = 0.05  # and less than the lowest of the natural ones by so much
    held_out_limit: float = 0.6  # affinity at which a stray, or what its labels accused, is as likely natural
    stray_deviations: float = 3.0  # a stray lies so far below the middle of the natural ones
    limit_if_falsified: float = 1.5  # as likely label noise as planted
    even_odds_if_falsified: float = 1 / 3  # with the denial of a file's label weighed beside it
    most: float = 1.0  # the highest conviction
    most_if_falsified: float = 0.88
    slope_if_falsified: float = 60.0  # log-odds for an affinity of 1, beside held_out_limit

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
    """Eq. 5."""

    confidence_floor: float = 0.75  # under it a suspect is dropped rather than given a guessed label
    # Where so many more suspects of a class than images of others show its label, once the suspects' common pattern is
    # taken out, no label was falsified.
    clean_label_share: float = 1 / 3
    clean: TrainingSettings = field(
        default_factory=lambda: TrainingSettings(epochs=32, enough_steps=4000, shift=0.0625)
    )
    fine_tuning: TrainingSettings = field(
        default_factory=lambda: TrainingSettings(epochs=4, minimum_steps=100, learning_rate=0.01, shift=0.0625)
    )


@dataclass(frozen=True)
class GateSettings:
    """What limits the trust in the result."""

    lost: float = 0.4  # a class that lost more than this share of its images
    agreement: float = 0.6  # or of whose images the model gives the label to less than this share of its average
    denied: float = 0.5  # suspects of a class of whom the model denies less than this share the label they had


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
    controls: int = 3
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
