"""The result of a scan: one row per file, one verdict per class, one for the dataset."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from advrbd.data.folder import OK
from advrbd.errors import SuspectsFound

CLEAN = "clean"
UNEXAMINED = "unexamined"  # could not look, which is another answer than: looked and found nothing
SUSPICIOUS = "suspicious"
POISONED = "poisoned"
VERDICTS = (CLEAN, UNEXAMINED, SUSPICIOUS, POISONED)  # from good to bad


def worst(verdicts: Iterable[str]) -> str:
    """The worst of the ``verdicts``; ``clean`` if there are none."""
    return max(verdicts, key=VERDICTS.index, default=CLEAN)


@dataclass(frozen=True)
class FileResult:
    """What the scan says of one file.

    ``score`` is in 0..1, higher = more likely poisoned; it is None where the file couldn't be read. The suggested
    label is the class that a model trained without the suspects sees in the image, ``suggested_confidence`` its
    probability; both are None unless the file is a suspect and such a model was trained. ``accepted_by`` says what
    accepts a suspect that somebody looked at, None if nothing does. It stays a suspect.
    """

    path: str
    label: str
    status: str
    sha256: str
    suspect: bool = False
    score: float | None = None
    suggested_label: str | None = None
    suggested_confidence: float | None = None
    accepted_by: str | None = None


@dataclass(frozen=True)
class ClassVerdict:
    """What the scan says of one class, with the figures that it rests on."""

    label: str
    files: int
    suspects: int
    verdict: str
    evidence: dict[str, float] = field(default_factory=dict)

    @property
    def is_named(self) -> bool:
        """Whether something was found in the class: suspects, or what stands apart without them."""
        return bool(self.suspects) or self.verdict in (SUSPICIOUS, POISONED)


@dataclass(frozen=True)
class Report:
    """The result of ``advrbd.scan``: ``files`` sorted by path, ``classes`` in the order of their labels.

    *Not found* and *could not look* are different answers: a class that the scan could not have seen a backdoor in
    has the verdict ``unexamined``, and ``cautions`` say why. ``run`` holds the settings, versions, device and timings.
    ``whole_sha256``, where ``files`` are only some of those that were scanned, is the fingerprint of all, else None.
    """

    files: tuple[FileResult, ...]
    classes: tuple[ClassVerdict, ...]
    cautions: tuple[str, ...] = ()
    run: dict = field(default_factory=dict)
    whole_sha256: str | None = None

    @property
    def suspects(self) -> tuple[FileResult, ...]:
        """The files that are more likely poisoned than not."""
        return tuple(file for file in self.files if file.suspect)

    @property
    def open_suspects(self) -> tuple[FileResult, ...]:
        """The suspects that nobody accepted."""
        return tuple(file for file in self.suspects if file.accepted_by is None)

    @property
    def elsewhere(self) -> int:
        """How many suspects are among the files that a report on some of them leaves out, accepted or not."""
        return 0 if self.whole_sha256 is None else sum(entry.suspects for entry in self.classes) - len(self.suspects)

    @property
    def accepted_by(self) -> Counter[str]:
        """How many suspects somebody looked at and accepted, by what says so."""
        return Counter(file.accepted_by for file in self.suspects if file.accepted_by is not None)

    @property
    def unread(self) -> tuple[FileResult, ...]:
        """The files that couldn't be scanned; their ``status`` says why."""
        return tuple(file for file in self.files if file.status != OK)

    @property
    def unexamined(self) -> tuple[ClassVerdict, ...]:
        """The classes in which the scan could not have seen a backdoor; the cautions say why."""
        return tuple(entry for entry in self.classes if entry.verdict == UNEXAMINED)

    @property
    def unaccused(self) -> tuple[ClassVerdict, ...]:
        """The poisoned classes of a report on all files without a suspect: a trigger, but nobody to blame for it."""
        if self.whole_sha256 is not None:
            return ()
        accused = {file.label for file in self.suspects}
        return tuple(entry for entry in self.classes if entry.verdict == POISONED and entry.label not in accused)

    @property
    def verdict(self) -> str:
        """The worst of the classes' verdicts: ``clean``, ``unexamined``, ``suspicious`` or ``poisoned``."""
        return worst(entry.verdict for entry in self.classes)

    def raise_for_suspects(self) -> None:
        """Raise ``SuspectsFound`` when there is a suspect that nobody accepted, or a poisoned class without any file
        to accuse; for use in a pipeline."""
        if found := self.open_suspects:
            labels = {file.label for file in found}
            named = [entry.label for entry in self.classes if entry.label in labels]
            raise SuspectsFound(f"{len(found)} suspected files, labelled {', '.join(named)}")
        if self.unaccused:
            names = ", ".join(entry.label for entry in self.unaccused)
            raise SuspectsFound(f"poisoned, without any one file to accuse: {names}")
