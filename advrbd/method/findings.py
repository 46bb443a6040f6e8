"""What all looks together say, and how that becomes a report and comes back from one."""

import os
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass, field, replace

import torch

from advrbd.data import duplicates
from advrbd.data.folder import OK, FolderIndex
from advrbd.errors import ReportError
from advrbd.reports.report import CLEAN, POISONED, UNEXAMINED, ClassVerdict, FileResult, Report, worst
from advrbd.reports.tables import Earlier, fingerprint_of
from advrbd.writing import escaped, printable


@dataclass(frozen=True)
class Conviction:
    """Why a class is held to be poisoned: the ``probability`` that it holds a trigger, as in ``Identification``, before
    any second opinion; ``by_label``: hardly anything but false labels says so."""

    probability: float
    by_label: bool = False


@dataclass
class Findings:
    """What all looks together say of the N images of a run.

    ``score`` float32 [N] in 0..1, higher = more likely poisoned; ``suspects`` bool [N]; ``carries`` float32 [N] as
    in ``Identification``, before any second opinion, but of files in doubt, whose label tells; ``convictions`` of
    convicted classes. ``acquitted`` bool
    [N]: suspects once, whom a second opinion acquitted. ``verdicts`` and ``evidence`` by class label, from the look
    that found most. ``suggested`` int64 [N] is the class that a model trained without the suspects sees in a suspect
    (-1: there is no such model), ``confidence`` float32 [N] its probability. ``control_found``: the scan found what it
    planted to test itself; ``blind``: it could not have seen a backdoor; ``exhausted``: the last look allowed still
    found suspects, or left groups unexamined; ``told``: it is known which classes were examined, which not every report
    says.
    """

    score: torch.Tensor
    carries: torch.Tensor
    suspects: torch.Tensor
    acquitted: torch.Tensor
    suggested: torch.Tensor
    confidence: torch.Tensor
    convictions: dict[int, Conviction] = field(default_factory=dict)
    verdicts: dict[int, str] = field(default_factory=dict)
    evidence: dict[int, dict[str, float]] = field(default_factory=dict)
    cautions: list[str] = field(default_factory=list)
    looks: int = 0
    control_found: bool = False
    blind: bool = False
    exhausted: bool = False
    told: bool = True

    @classmethod
    def nothing(cls, count: int) -> "Findings":
        """What is known of ``count`` images before the first look."""
        score, carries, confidence = torch.zeros(3, count)
        suspects, acquitted = torch.zeros(2, count, dtype=torch.bool)
        return cls(score, carries, suspects, acquitted, torch.full((count,), -1), confidence)

    @property
    def verdict(self) -> str:
        """The worst of the classes' verdicts."""
        return worst(self.verdicts.values())

    def unsuspected(self, examples: torch.Tensor) -> torch.Tensor:
        """Those of the images ``examples`` (int64 [M]) that nothing is held against."""
        return examples[~self.suspects[examples]]


def as_report(index: FolderIndex, findings: Findings, run_block: dict) -> Report:
    """The report on the folder: a row per file, sorted by path, and a verdict per class."""
    files = tuple(_row(index, findings, position) for position in range(len(index.files)))
    cautions = [*findings.cautions, *duplicates.warnings_of(index)]
    if unread := sum(file.status != OK for file in files):
        cautions.append(f"{unread} files could not be read: nothing is known of them, and something else may read them")
    counts = Counter(file.label for file in files)
    suspected = Counter(file.label for file in files if file.suspect)
    classes = tuple(
        ClassVerdict(
            name,
            counts[name],
            suspected[name],
            findings.verdicts.get(label, UNEXAMINED),
            {name: round(figure, 3) for name, figure in findings.evidence.get(label, {}).items()},
        )
        for label, name in enumerate(index.classes)
    )
    by_path = tuple(sorted(files, key=lambda file: os.fsencode(file.path)))
    return Report(by_path, classes, tuple(cautions), run_block)


def from_report(index: FolderIndex, earlier: Earlier) -> Findings:
    """The findings of an ``earlier`` report.

    Raises ``ReportError`` unless every suspect that it names is there with the same bytes, no file is readable now that
    wasn't then, and the folder's files have the report's fingerprint, if it has one.
    """
    positions = {printable(file.path): position for position, file in enumerate(index.files)}
    findings = Findings.nothing(len(index.files))
    findings.score.fill_(torch.nan)  # the report has them
    for path, (sha256, _) in earlier.suspects.items():
        shown = escaped(path)[:100]
        if path not in positions:
            raise ReportError(f"the report names {shown!r}, which isn't in {index.root}; scan the folder again")
        if index.files[positions[path]].sha256 != sha256:
            raise ReportError(f"{shown!r} isn't the file that the report was made of; scan the folder again")
        findings.suspects[positions[path]] = True
    if earlier.files_sha256 not in (None, fingerprint_of(index)):
        raise ReportError(
            f"{index.root} doesn't hold the files that the report was made of: some were added, removed, changed or "
            "labelled anew since; scan the folder again"
        )
    for path in earlier.unread:
        if path in positions and index.files[positions[path]].status == OK:
            shown = escaped(path)[:100]
            raise ReportError(f"{shown!r} can be read now, but couldn't be when it was scanned; scan the folder again")
    accused = {index.files[positions[path]].label for path in earlier.suspects}
    for label, name in enumerate(index.classes):
        told = CLEAN if earlier.verdicts is None else earlier.verdicts.get(printable(name), UNEXAMINED)
        findings.verdicts[label] = POISONED if label in accused else told
    findings.exhausted, findings.control_found = earlier.exhausted, earlier.control_found
    findings.told = earlier.verdicts is not None
    return findings


def which_accepted(index: FolderIndex, accepted: Container[tuple[str, str]]) -> torch.Tensor:
    """bool [N]: the files whose SHA-256 somebody accepted in their class, whatever a scan says of them."""
    return torch.tensor([(file.sha256, printable(index.class_name(file))) in accepted for file in index.files])


def _row(index: FolderIndex, findings: Findings, position: int) -> FileResult:
    file = index.files[position]
    result = FileResult(file.path, index.class_name(file), file.status, file.sha256)
    if file.status != OK:
        return result
    result = replace(result, suspect=bool(findings.suspects[position]))
    if not findings.score[position].isnan():
        result = replace(result, score=float(findings.score[position]))
    if result.suspect and findings.suggested[position] >= 0:
        suggested = index.classes[int(findings.suggested[position])]
        confidence = float(findings.confidence[position])
        result = replace(result, suggested_label=suggested, suggested_confidence=confidence)
    return result
