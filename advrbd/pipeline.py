"""The two jobs: ``scan`` says which files of a folder look poisoned, ``clean`` writes a folder without them.

scan  = index the folder, decode it once, look until nothing is found that stands, report
clean = scan (or take a report), relearn a model on what is kept, relabel the suspects with it, check, write
"""

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import timm
import torch

from advrbd.config import Config
from advrbd.data import sources
from advrbd.data.folder import FolderIndex
from advrbd.errors import DatasetError, OutputError, UntrustedError
from advrbd.events import Caution, Note, Notify, ignore
from advrbd.manifest import COPY, MANIFEST, RELABELLED, Decision
from advrbd.memory import choose_memory
from advrbd.method.findings import Findings, as_report, from_report, which_accepted
from advrbd.method.gate import GOOD, Check, Result, check
from advrbd.method.look import find
from advrbd.method.relearning import fine_tune, relabel, relearn
from advrbd.model.device import repeatable
from advrbd.model.factory import Network
from advrbd.model.run import Run
from advrbd.model.saved import save_model
from advrbd.output import cautions_of, check_link_mode, decide, written_folder
from advrbd.plan import Plan, make_plan
from advrbd.preparation import MINIMUM_IMAGES, choose, prepare, usable
from advrbd.reports.accepted import accept
from advrbd.reports.report import Report
from advrbd.reports.tables import fingerprint_of, read_report
from advrbd.version import __version__
from advrbd.workdir import WorkDir, check_usable
from advrbd.writing import check_apart, check_target_folder

LIBRARIES = ("numpy", "pillow", "scikit-learn", "torchvision")
"""Besides torch and timm, what the numbers of a run depend on: its work directory is no use to other versions."""
ACTIONS = ("relabel", "drop", "quarantine")
SUSPECTS_ONLY = (
    "the report names suspects only, so a file that was added or changed since would pass as scanned; "
    "one in JSON tells them apart"
)


@dataclass(frozen=True)
class Cleaned:
    """What ``clean`` made: the ``report`` with the clean model's suggestions, what became of each file, how far the
    result can be trusted, the ``manifest`` as written, and the clean ``network`` with its classes."""

    report: Report
    decisions: tuple[Decision, ...]
    check: Check
    manifest: dict
    network: Network
    classes: tuple[str, ...]
    cautions: tuple[str, ...]

    def save_model(self, path: str | os.PathLike) -> None:
        """Write the clean model to ``path`` as safetensors, whole or not at all. Raises ``OutputError``."""
        save_model(Path(path), self.network, self.classes)


def scan(
    path: str | os.PathLike,
    config: Config | None = None,
    *,
    split: str | None = None,
    root: str | os.PathLike | None = None,
    work_dir: str | os.PathLike | None = None,
    resume: bool = False,
    memory_budget: int | None = None,
    notify: Notify = ignore,
) -> Report:
    """Scan the image folder ``path`` (or its sub-folder ``split``) for backdoor-poisoned files.

    ``path`` may be an archive of one, too, or a table of paths, which start from the folder ``root``, and labels
    (``data.sources``).
    The same folder, config and device give the same report, but for its ``run`` block, as far as torch allows (see
    ``model.device.repeatable``). What was computed is kept in the folder ``work_dir``, if one is given; with
    ``resume``, what an interrupted run left there isn't computed again.
    ``memory_budget``: bytes for what grows with the number of images (default: half of the free memory).
    Raises an ``AdvrbdError`` when the folder, the model or the device can't be used. Prints nothing, and writes nothing
    else.
    """
    config = config or Config()
    _check_work_dir(work_dir, {"the input": sources.territory(Path(path), root)})
    index, run = prepare(path, config, split, notify, root, memory_budget, work_dir)
    started = time.perf_counter()
    with repeatable(run.device), _steps(work_dir, resume, index, run, config) as run:
        findings = find(run, usable(index), config)
    looked = {name: getattr(findings, name) for name in ("looks", "exhausted", "control_found")}
    block = _run_block(run, config, time.perf_counter() - started) | _input_of(index)
    return as_report(index, findings, block | looked)


def clean(
    path: str | os.PathLike,
    out: str | os.PathLike,
    config: Config | None = None,
    *,
    report: str | os.PathLike | Report | None = None,
    accepted: Mapping[tuple[str, str], str] | None = None,
    action: str = "relabel",
    quarantine: str | os.PathLike | None = None,
    link_mode: str = "copy",
    rescan: bool = False,
    strict: bool = False,
    split: str | None = None,
    root: str | os.PathLike | None = None,
    work_dir: str | os.PathLike | None = None,
    resume: bool = False,
    memory_budget: int | None = None,
    notify: Notify = ignore,
    finish: Callable[[Cleaned], None] | None = None,
) -> Cleaned:
    """Write ``path`` to the new folder ``out`` without its poison, and train a clean model on the result.

    The suspects come from a scan, or from an earlier ``report`` of one, as ``scan`` returned it or a file; ``path``
    must hold what it was made of, and what it accepts counts only where ``accepted`` says so, too. Those whose SHA-256
    and class are in ``accepted`` (to what says so) are kept and trusted like files that nobody suspects. ``action``
    says what becomes of the others: ``relabel`` (to what the clean model sees, dropped where it isn't sure), ``drop``,
    or ``quarantine`` (to the folder ``quarantine``, default ``out`` with ``-quarantine`` added). ``link_mode`` is
    ``copy``, ``hardlink`` or ``symlink``; with links, whoever can write to ``path`` can change ``out``. Before anything
    is written, the result is checked (``Cleaned.check``), with ``rescan`` by one more look at it; with ``strict``, what
    can't be trusted fully isn't written. ``work_dir``, ``resume`` and ``memory_budget`` are those of ``scan``, whose
    work is taken over. ``finish`` is called with the folder in place, to write what belongs to it; where it fails, the
    folder is removed again. ``split`` and ``root`` are those of ``scan``; whatever ``path`` is, ``out`` has class
    folders. Raises an ``AdvrbdError``; ``path`` is never written to, and nothing is half-written.
    """
    config = config or Config()
    if action not in ACTIONS:
        raise ValueError(f"action must be one of {', '.join(ACTIONS)}, not {action!r}")
    if quarantine is not None and action != "quarantine":
        raise OutputError("--quarantine names a folder for --action quarantine, which wasn't asked for; add it")
    check_link_mode(link_mode)
    if link_mode != COPY and not isinstance(sources.place(Path(path), split, root), Path):
        raise OutputError(f"{path} is an archive, so there are no files to link to; use --link-mode copy")
    territory = sources.territory(Path(path), root)
    out, quarantine = _targets(territory, Path(out), quarantine, action)
    aside = {"the quarantine": quarantine} if action == "quarantine" else {}
    _check_work_dir(work_dir, {"the input": territory, "the output": out, **aside})
    known = None if report is None else read_report(report)
    if known is not None and known.files_sha256 is None:
        notify(Caution(SUSPECTS_ONLY))
    index, run = prepare(path, config, split, notify, root, memory_budget, work_dir)
    if MANIFEST in index.classes:
        raise DatasetError(f"a class folder named {MANIFEST} can't be cleaned: the manifest has that name; rename it")
    examples, started = usable(index), time.perf_counter()
    with repeatable(run.device), _steps(work_dir, resume, index, run, config) as run:
        findings = find(run, examples, config) if known is None else from_report(index, known)
        spared = which_accepted(index, accepted or {})
        guilty = replace(findings, suspects=findings.suspects & ~spared)
        network, decisions, result = _repair(run, index, examples, guilty, action, config)
        checked = check(run, network, guilty, replace(result, accepted=spared), config, rescan)
    if strict and checked.trust != GOOD:
        why = "; ".join(checked.reasons)
        raise UntrustedError(f"nothing was written, since the result can't be fully trusted: {why}")
    block = _run_block(run, config, time.perf_counter() - started) | _input_of(index)
    found = accept(as_report(index, findings, block), accepted or {})
    seen = {file.sha256 for file in found.suspects if file.accepted_by is not None}
    settings = {"action": action, "config": config.as_dict(), "accepted": sorted(seen)}
    settings["check"] = asdict(checked)
    with written_folder(index, decisions, out, quarantine, settings, link_mode) as manifest:
        cautions = cautions_of(index, found, decisions, manifest)
        cleaned = Cleaned(found, decisions, checked, manifest, network, index.classes, cautions)
        if finish is not None:
            finish(cleaned)
    return cleaned


def train_plainly(path: str | os.PathLike, config: Config | None = None, *, notify: Notify = ignore) -> Network:
    """The model that ``clean`` would train if every file were trusted: what there is to compare its model with."""
    config = config or Config()
    index, run = prepare(path, config, notify=notify)
    with repeatable(run.device):
        return relearn(run, usable(index), config.relearning)


def plan_scan(
    path: str | os.PathLike,
    config: Config | None = None,
    *,
    split: str | None = None,
    root: str | os.PathLike | None = None,
    work_dir: str | os.PathLike | None = None,
    memory_budget: int | None = None,
    notify: Notify = ignore,
) -> Plan:
    """What ``scan`` with the same arguments is going to take; writes nothing, and raises what that would raise before
    it decodes anything."""
    config, memory = config or Config(), choose_memory(memory_budget, work_dir)
    _check_work_dir(work_dir, {"the input": sources.territory(Path(path), root)})
    index, device, network = choose(path, config, split, notify, root)
    return make_plan(index, network, device, config, memory)


def _check_work_dir(work_dir: str | os.PathLike | None, others: Mapping[str, Path]) -> None:
    """Refuse one that can't be used, or overlaps one of the ``others``, by what they are, before decoding."""
    if work_dir is not None:
        for what, other in others.items():
            check_apart(Path(work_dir), other, what)
        check_usable(Path(work_dir))


def _targets(path: Path, out: Path, quarantine: str | os.PathLike | None, action: str) -> tuple[Path, Path]:
    """Where the results go; refused now, not after an hour of training, where they can't."""
    check_target_folder(out, path)
    out = out.resolve()
    quarantine = Path(quarantine or f"{out}-quarantine")
    if action == "quarantine":
        check_target_folder(quarantine, path)
        check_target_folder(quarantine, out, "the output")
    return out, quarantine


def _repair(
    run: Run, index: FolderIndex, examples: torch.Tensor, findings: Findings, action: str, config: Config
) -> tuple[Network, tuple[Decision, ...], Result]:
    """Train the clean model on what is kept, let it say what the suspects show, decide on every file, and fine-tune."""
    suspects, kept = findings.suspects.nonzero().flatten(), findings.unsuspected(examples)
    if len(kept) < MINIMUM_IMAGES or len(run.labels[kept].unique()) < 2:
        raise DatasetError(f"too little is left of {index.root} without the suspects: {len(kept)} files")
    network = relearn(run, kept, config.relearning)
    if len(suspects):
        seen = relabel(run, network, suspects, kept, config.relearning)
        findings.suggested[suspects], findings.confidence[suspects] = seen
    decisions = decide(as_report(index, findings, {}), action, config.relearning.confidence_floor)
    relabelled, labels = _new_labels(index, run.labels, decisions)
    fine_tune(run, network, kept, relabelled, labels, config.relearning)
    return network, decisions, Result(examples, torch.cat([kept, relabelled]), labels)


@contextmanager
def _steps(
    work_dir: str | os.PathLike | None, resume: bool, index: FolderIndex, run: Run, config: Config
) -> Iterator[Run]:
    """The ``run`` with its steps kept in ``work_dir``, if there is one."""
    if work_dir is None:
        yield run
        return
    same = {key: value for key, value in _run_block(run, config, 0).items() if key != "seconds"}
    same |= {"versions": {name: version(name) for name in LIBRARIES}, "files": fingerprint_of(index)}
    with WorkDir(Path(work_dir), same, resume) as steps:
        if steps.kept:
            run.notify(Note(f"work directory: {steps.kept} steps of an interrupted run are there"))
        yield replace(run, steps=steps)


def _new_labels(
    index: FolderIndex, labels: torch.Tensor, decisions: tuple[Decision, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which images were relabelled (int64 [R]), and the labels of all images (int64 [N]) after that."""
    position = {file.path: number for number, file in enumerate(index.files)}
    moved = [entry for entry in decisions if entry.action == RELABELLED]
    where = torch.tensor([position[entry.source] for entry in moved], dtype=torch.int64)
    new = labels.clone()
    new[where] = torch.tensor([index.classes.index(entry.new_label) for entry in moved], dtype=torch.int64)
    return where, new


def _input_of(index: FolderIndex) -> dict:
    """What the input was, for the report; nothing for class folders, whose reports and steps stay as they were."""
    return {} if index.layout == sources.FOLDER else {"input": index.layout}


def _run_block(run: Run, config: Config, seconds: float) -> dict:
    return {
        "advrbd": __version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        "device": run.device.reason,
        "processes": run.device.peers.count,
        "model": run.spec.as_dict(),
        "config": config.as_dict(),
        "seconds": round(seconds, 1),
    }
