"""A drill: plant known attacks in copies of a user's own folder and see which of them the scanner finds there.

drill = for each attack: plant a copy, scan it, hold the report against the truth, train on the copy to see whether the
        attack took, delete the copy

A model that is trained on the copy and doesn't do what the attacker wants shows that there was no backdoor to find:
an attack that did not take is no test. Suspects that the folder had before count as false alarms here, so scan it
first.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from advrbd.attacks import Attack, named
from advrbd.attacks.base import CLEAN, POISON, Change
from advrbd.attacks.plant import PlantedFile, check_poison_rate, class_number, draw_plan, plant
from advrbd.benchmark.metrics import Detection, attack_success_rate, detection
from advrbd.config import Config
from advrbd.data.files import read_image
from advrbd.data.folder import OK, FolderIndex, ImageFile
from advrbd.data.sources import index_class_folders
from advrbd.errors import DatasetError, OutputError
from advrbd.events import Event, Note, Notify, Progress, ignore
from advrbd.pipeline import scan, train_plainly
from advrbd.preparation import choose

TOOK = 0.5
"""The attack success rate from which on an attack took."""
FOUND_FROM = 0.9
"""The true positive rate from which on an attack counts as found."""
MISSED_BELOW = 0.1
"""The true positive rate under which it counts as missed."""
MOST_MEASURED = 500
"""So many images at most are stamped to measure the attack success rate."""

FOUND = "found"
PARTLY_FOUND = "partly found"
MISSED = "missed"
DID_NOT_TAKE = "did not take"
LEFT_ALONE = "left alone"
FALSE_ALARM = "false alarm"


@dataclass(frozen=True)
class Drilled:
    """What became of one attack.

    ``poison_rate`` is the share that was asked for, ``planted`` the number of files that were in fact poisoned or
    mislabelled; ``target_label`` the class that the backdoor leads to, where the attack has a single one.
    ``attack_success_rate`` is in 0..1, None where no trigger was planted. It is measured on images that the attack
    left clean, but the model learned them with their own labels, so it is a lower bound. ``verdict``, ``cautions``
    and ``run`` are those of the scan.
    """

    attack: str
    poison_rate: float
    planted: int
    target_label: str
    attack_success_rate: float | None
    detection: Detection
    verdict: str
    cautions: tuple[str, ...] = ()
    run: dict = field(default_factory=dict)

    @property
    def is_backdoor(self) -> bool:
        """Whether there was a trigger; label noise has none."""
        return self.attack_success_rate is not None

    @property
    def took(self) -> bool:
        """Whether a model that is trained on the copy does what the attacker wants."""
        return self.attack_success_rate is not None and self.attack_success_rate >= TOOK

    @property
    def outcome(self) -> str:
        """``did not take`` under an attack success rate of .5; else by the true positive rate: ``found`` from .9 on,
        ``missed`` under .1, ``partly found`` between them. Without a trigger: ``left alone``, or ``false alarm`` if
        there is any suspect. False alarms have no part in the first four.
        """
        if not self.is_backdoor:
            flagged = self.detection.false_alarms + self.detection.mislabelled_flagged
            return FALSE_ALARM if flagged else LEFT_ALONE
        if not self.took:
            return DID_NOT_TAKE
        if self.detection.true_positive_rate >= FOUND_FROM:
            return FOUND
        return MISSED if self.detection.true_positive_rate < MISSED_BELOW else PARTLY_FOUND


@dataclass(frozen=True)
class _Ground:
    """What the attacks of a drill share: the files that can be copied, their labels, and the settings.

    ``known`` has the status of each image that an attack drew, by its path, so that none is checked twice.
    """

    source: FolderIndex
    files: tuple[ImageFile, ...]
    labels: np.ndarray
    target: int
    poison_rate: float
    config: Config
    work: Path
    known: dict[str, str] = field(default_factory=dict)


def drill(
    root: str | os.PathLike,
    attacks: Sequence[str],
    config: Config | None = None,
    *,
    poison_rate: float = 0.05,
    target_label: str | None = None,
    split: str | None = None,
    work: str | os.PathLike | None = None,
    notify: Notify = ignore,
) -> Iterator[Drilled]:
    """Plant each of ``attacks`` (names of ``ATTACKS``) in a copy of ``root`` (or of ``root/split``) and scan it.

    ``poison_rate`` is a share of all files, between 0 and 1. The backdoor leads to ``target_label``, by default the
    class with the most images. The copies lie in a temporary folder in ``work`` (default: the system's), one at a
    time, and are deleted whatever happens; ``root`` is only read. Arguments are checked at once, the work is done as
    the results are asked for. Raises an ``AdvrbdError`` when an argument, the folder, the model or the device is no
    good. Neither prints nor leaves anything behind.
    """
    config = config or Config()
    kinds = [named(name) for name in attacks]
    check_poison_rate(poison_rate)
    source = index_class_folders(root, split)
    place = Path(tempfile.gettempdir() if work is None else work)
    _check_work_folder(place, Path(root))
    files = tuple(file for file in source.files if file.status == OK)
    choose(root, config, split)  # what a scan would refuse is refused now, not after a copy was made
    labels = np.array([file.label for file in files])
    largest = int(np.bincount(labels).argmax())  # the first of several
    target = largest if target_label is None else class_number(source, target_label)
    ground = _Ground(source, files, labels, target, poison_rate, config, place)
    _check_plans(ground, kinds, notify)
    return (_drill_one(ground, kind, _naming(kind.name, notify)) for kind in kinds)


def _drill_one(ground: _Ground, kind: type[Attack], notify: Notify) -> Drilled:
    config, attack = ground.config, kind(seed=ground.config.seed)
    target_label = ground.source.classes[ground.target]
    with _copy_folder(ground.work) as temporary:
        copy = Path(temporary) / "copy"
        root, rate = ground.source.root, ground.poison_rate
        planted = plant(root, copy, attack, target_label, rate, config.seed, notify, ground.known)
        role = {entry.path: entry.role for entry in planted}
        wrong = sum(entry.role == POISON or entry.label != entry.original_label for entry in planted)
        notify(Note(f"planted in {wrong} of {len(planted)} files"))
        report = scan(copy, config, notify=notify)
        success = None
        if POISON in role.values():
            network = train_plainly(copy, config, notify=_progress_only(_naming("plain training", notify)))
            generator = np.random.default_rng(config.seed)
            victims = _victims(ground, attack, planted, generator)
            success = attack_success_rate(network, attack, victims, generator)
    return Drilled(
        attack.name,
        ground.poison_rate,
        wrong,
        target_label,
        success,
        detection(report.files, role),
        report.verdict,
        report.cautions,
        report.run,
    )


def _victims(
    ground: _Ground, attack: Attack, planted: tuple[PlantedFile, ...], generator: np.random.Generator
) -> Iterator[tuple[np.ndarray, int]]:
    """Images to measure the attack success rate on, of those that the attack left clean, and the labels wanted."""
    left = {entry.original_path for entry in planted if entry.role == CLEAN}
    clean = np.array([file.path in left for file in ground.files])
    victims = np.flatnonzero(attack.victims(ground.labels, ground.target) & clean)
    drawn = np.sort(generator.choice(victims, min(MOST_MEASURED, len(victims)), replace=False))
    wanted = attack.poisoned_label(ground.labels, ground.target, len(ground.source.classes))
    any_read = False
    for position in drawn:
        pixels, _, _ = read_image(ground.source.root / ground.files[position].path, None)
        if pixels is not None:
            any_read = True
            yield pixels, wanted[position]
    if not any_read:
        raise DatasetError(f"none of {len(drawn)} images to measure {attack.name} on could be read")


def _check_work_folder(work: Path, root: Path) -> None:
    if not work.is_dir():
        raise OutputError(f"no such folder to work in: {work}")
    if work.resolve().is_relative_to(root.resolve()):
        raise OutputError(f"{work} lies inside {root}, which is never written to; work elsewhere with --work-dir")


def _check_plans(ground: _Ground, kinds: Sequence[type[Attack]], notify: Notify) -> None:
    """Try what ``plant`` will draw, so that the fifth attack doesn't fail after hours of work on the other four."""
    for kind in kinds:
        attack, seed, rate = kind(seed=ground.config.seed), ground.config.seed, ground.poison_rate
        tell = _naming(kind.name, notify)
        files, plan, _ = draw_plan(ground.source, attack, ground.target, rate, seed, ground.known, tell)
        drawn = replace(ground, files=tuple(files), labels=np.array([file.label for file in files]))
        _check_plan(drawn, attack, plan)


def _check_plan(ground: _Ground, attack: Attack, plan: list[Change]) -> None:
    """Refuse a plan that plants nothing, takes every image of a class away, or leaves nothing to measure it on."""
    after, clean = ground.labels.copy(), np.ones(len(ground.labels), dtype=bool)
    for change in plan:
        after[change.position], clean[change.position] = change.label, False
    poisoned = [change for change in plan if change.role == POISON]
    if not poisoned and np.array_equal(after, ground.labels):
        raise DatasetError(f"{attack.name} would poison no file; raise --poison-rate or leave it out")
    if emptied := set(ground.labels.tolist()) - set(after.tolist()):
        name = ground.source.classes[min(emptied)]
        raise DatasetError(f"{attack.name} would leave class {name!r} no image; lower --poison-rate or leave it out")
    if poisoned and not (attack.victims(ground.labels, ground.target) & clean).any():
        raise DatasetError(f"{attack.name} would leave no image to measure it on; lower --poison-rate or leave it out")


def _copy_folder(work: Path) -> tempfile.TemporaryDirectory:
    try:
        return tempfile.TemporaryDirectory(prefix="advrbd-drill-", dir=work)
    except OSError as error:
        raise OutputError(f"cannot write in {work}: {error.strerror}") from error


def _naming(attack: str, notify: Notify) -> Notify:
    """A listener that says of each event which attack it belongs to."""

    def tell(event: Event) -> None:
        if isinstance(event, Progress):
            notify(replace(event, stage=f"{attack}, {event.stage}"))
        else:
            notify(replace(event, message=f"{attack}: {event.message}"))

    return tell


def _progress_only(notify: Notify) -> Notify:
    """A listener that leaves out what the scan of the same folder has said already."""
    return lambda event: notify(event) if isinstance(event, Progress) else None
