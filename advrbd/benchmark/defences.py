"""What a poisoned folder is put through, by name: no defence, advrbd, filters to compare with, and the baselines.

A step takes a ``Case`` and returns what it adds to the unit's JSON. Models are under ``models`` (as before there were
baselines) or, one a defence, under ``defences``: accuracy, attack success rate and, of detectors, the rates.
"""

import json
import os
import platform
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import timm
import torch

from advrbd.attacks.base import POISON
from advrbd.baselines import BASELINES, CLEAN_IMAGES, INSTALLED, PAPER_RECIPE, POISON_RATE, Defence, Defended
from advrbd.benchmark.case import Case, link_files
from advrbd.benchmark.curves import curves
from advrbd.benchmark.matrix import NO_ATTACK
from advrbd.benchmark.measure import judge, train_and_judge
from advrbd.benchmark.metrics import Detection, detection
from advrbd.config import Config
from advrbd.data import folder
from advrbd.data.folder import OK, FolderIndex
from advrbd.errors import AdvrbdError, DefenceError, ModelError
from advrbd.manifest import DROPPED, RELABELLED
from advrbd.memory import peak_so_far
from advrbd.model.device import choose_device
from advrbd.pipeline import clean
from advrbd.pipeline import scan as run_scan
from advrbd.preparation import usable
from advrbd.processor import processor
from advrbd.reports.report import FileResult
from advrbd.reports.tables import render
from advrbd.version import __version__

FIGURES = "figures"
RELEARNING = "relearning"  # of a baseline that trains as advrbd does: the unit's own
RATE_FIELDS = {"rate", "poisoned_share"}  # what a baseline calls the share of poisoned images, which it is told


@dataclass(frozen=True)
class Step:
    """One thing to do with a unit: ``run`` gives what is added to its JSON, ``has`` says whether that is there."""

    run: Callable[[Case], dict]
    has: Callable[[dict], bool]
    after: tuple[str, ...] = ()


def undefended(case: Case) -> dict:
    """The model of somebody who trusts every file, which also shows whether the backdoor took."""
    started = time.perf_counter()
    network = case.undefended
    spent = {"seconds": _since(started), "peak_mb": peak_memory(case.device.device)[0]}
    return about(case) | {"models": {"undefended": spent | judge(network, case.held_out)}}


def scan(case: Case) -> dict:
    """What the scan finds, how long it takes and what memory; its report stays for a cleaning to go on from."""
    started = time.perf_counter()
    report = run_scan(case.data, case.unit.config, notify=case.notify)
    seconds = {"scan": _since(started)}
    main, gpu = peak_memory(case.device.device)
    case.report.parent.mkdir(exist_ok=True)
    case.report.write_bytes(render(report, "json"))
    flagged, by_chance = len(report.suspects), len(report.suspects) / len(report.files)
    counts = detection(report.files, case.role)
    return case.unit.as_dict() | {
        **circumstances(case.unit.config),
        "verdict": report.verdict,
        "detection": _rates(counts) | {"flagged": flagged, "files": len(report.files)},
        "filters": {"random": {"tpr": by_chance if counts.poisoned else None}},
        "classes": [asdict(entry) for entry in report.classes],
        "cautions": report.cautions,
        "network": report.run["model"],
        "device": report.run["device"],
        "seconds": seconds,
        "scan_peak_mb": main,
        "scan_peak_gpu_mb": gpu,
    }


def cleaned(case: Case) -> dict:
    """Clean the folder by the scan's report: what became of the suspects, and what the clean model is worth, before it
    was fine-tuned with relabelled images and after, and one that was trained from scratch on the cleaned folder."""
    place, config, started = case.data.with_name, case.unit.config, time.perf_counter()
    report, steps = case.report, place("steps")
    try:
        done = clean(case.data, place("cleaned"), config, report=report, work_dir=steps, notify=case.notify)
    except AdvrbdError as error:  # too little was left; the scan's result stands all the same
        return {"cleaning": {"error": str(error)}}
    spent = {"seconds": _since(started), "peak_mb": peak_memory(case.device.device)[0]}
    origin = {entry.path: entry.original_label for entry in case.planted}
    relabelled = [entry for entry in done.decisions if entry.action == RELABELLED]
    cleaning = {
        "relabelled": len(relabelled),
        "relabelled_right": sum(entry.new_label == origin[entry.source] for entry in relabelled),
        "dropped": sum(entry.action == DROPPED for entry in done.decisions),
        "trust": done.check.trust,
        "cautions": [*done.cautions, *done.check.reasons],
    }
    models: dict[str, dict | None] = {"clean_model": spent | judge(done.network, case.held_out)}
    models["not_relabelled"] = models["clean_model"]
    if relabelled:  # the same training, kept from above, up to where the relabelled images come in
        dropped = clean(case.data, place("dropped"), config, report=report, action="drop", work_dir=steps, resume=True)
        models["not_relabelled"] = judge(dropped.network, case.held_out)
    models["trained_on_cleaned"] = _trained_on_part(case, "cleaned")
    return _tested(case) | {"cleaning": cleaning, "models": models}


def random_filter(case: Case) -> dict:
    """What a model is worth that was trained without as many random files as the scan flagged."""
    paths = [entry.path for entry in case.planted]
    chosen = random.Random(case.unit.seed).sample(paths, case.known["detection"]["flagged"])
    return _filtered(case, "random_filter", set(chosen))


def perfect_filter(case: Case) -> dict:
    """What a model is worth that was trained without the poison; covers and mislabelled files stay."""
    return _filtered(case, "perfect_filter", {path for path, role in case.role.items() if role == POISON})


def baseline(kind: type[Defence], case: Case) -> dict:
    """The defence at its best honest chance: with trusted images or the true poison rate, where it needs them.

    A defence that works on trusted images alone is cheap and has its paper's epochs; the unit's budget is that of the
    others. One that can't work here has its ``error`` as the result.
    """
    index, run = case.prepared
    examples, trusted, defence = usable(index), None, kind()
    if kind.needs == CLEAN_IMAGES:
        run, trusted = case.with_trusted()
    else:
        defence = defence.scaled(case.unit.budget)
    settings = {field.name for field in fields(defence)}
    told: dict[str, Any] = dict.fromkeys(settings & RATE_FIELDS, case.poison_rate)
    if RELEARNING in settings:
        told[RELEARNING] = case.unit.config.relearning
    defence = replace(defence, **told)
    network = case.undefended
    entry: dict[str, object] = {"needs": POISON_RATE if told.keys() & RATE_FIELDS else kind.needs}
    started = time.perf_counter()
    try:
        defended = defence.defend(run, examples, network, trusted)
        main, gpu = peak_memory(case.device.device)
        entry |= {"seconds": _since(started), "peak_mb": main, "peak_gpu_mb": gpu}
        entry |= _found(case, index, examples, defended) | judge(defended.network, case.held_out)
    except (DefenceError, ModelError) as error:
        entry |= {"error": str(error)}
    return about(case) | {"defences": {kind.name: entry}}


def about(case: Case) -> dict:
    """What a unit's JSON says of its circumstances, where the scan hasn't said it."""
    if "network" in case.known:
        return _tested(case)
    run = case.prepared[1]
    return case.unit.as_dict() | {
        **circumstances(case.unit.config),
        "network": run.spec.as_dict(),
        "device": run.device.reason,
        **_tested(case),
    }


def circumstances(config: Config) -> dict:
    """What has to be the same for all results of a unit, as its JSON has it: settings, numbers of versions, and the
    kind of machine."""
    versions = {"advrbd": __version__, "torch": torch.__version__, "timm": timm.__version__}
    return {
        "config": json.loads(json.dumps(config.as_dict())),
        "versions": versions | {"python": platform.python_version()},
        "machine": machine(choose_device(config.device).device),
    }


def peak_memory(device: torch.device) -> tuple[int, int | None]:
    """The highest memory use of this process so far, in MB (0 where the system doesn't say), and of its tensors on
    ``device``, if that is a GPU."""
    gpu = round(torch.cuda.max_memory_allocated(device) / 2**20) if device.type == "cuda" else None
    return round(peak_so_far() / 2**20), gpu


def machine(device: torch.device) -> str:
    """The processor and its kind, how many there are, and the GPU if ``device`` is one."""
    gpu = [torch.cuda.get_device_name(device)] if device.type == "cuda" else []
    return ", ".join([platform.machine(), processor(), f"{os.cpu_count()} processors", *gpu])


def _found(case: Case, index: FolderIndex, examples: torch.Tensor, defended: Defended) -> dict:
    """The rates of a defence that detects; nothing of one that doesn't."""
    if defended.suspects is None or defended.score is None:
        return {}
    suspects = defended.suspects.tolist()
    files = [
        FileResult(index.files[position].path, "", OK, "", is_suspect, score)
        for position, is_suspect, score in zip(examples.tolist(), suspects, defended.score.tolist(), strict=True)
    ]
    return _rates(detection(files, case.role)) | {"flagged": sum(suspects), "files": len(files)}


def _rates(counts: Detection) -> dict:
    return asdict(counts) | {"tpr": counts.true_positive_rate, "fpr": counts.false_positive_rate}


def _filtered(case: Case, name: str, removed: set[str]) -> dict:
    """A filter that removes nothing leaves the undefended model."""
    model = case.known["models"]["undefended"]
    if removed:
        link_files(case.data, case.data.with_name(name), (path for path in case.role if path not in removed))
        model = _trained_on_part(case, name)
    return _tested(case) | {"models": {name: model}}


def _trained_on_part(case: Case, name: str) -> dict | None:
    """None where a class lost its last file: the labels of the others would shift, and mean something else."""
    part = case.data.with_name(name)
    if folder.index(part).classes != folder.index(case.data).classes:
        return None
    return train_and_judge(part, case.unit.config, case.held_out, case.notify)


def _tested(case: Case) -> dict:
    victims = 0 if case.held_out.stamped is None else len(case.held_out.stamped)
    return {"test": {"images": len(case.held_out.images), "victims": victims}}


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 1)


def _as_step(kind: type[Defence]) -> Step:
    return Step(lambda case: baseline(kind, case), lambda unit: kind.name in unit.get("defences", {}), (NO_ATTACK,))


def _has_model(name: str) -> Callable[[dict], bool]:
    return lambda unit: name in unit.get("models", {})


DEFENCES: dict[str, Step] = {
    NO_ATTACK: Step(undefended, _has_model("undefended")),
    "scan": Step(scan, lambda unit: "detection" in unit),
    "advrbd": Step(cleaned, lambda unit: "cleaning" in unit, (NO_ATTACK, "scan")),
    "random-filter": Step(random_filter, _has_model("random_filter"), (NO_ATTACK, "scan")),
    "perfect-filter": Step(perfect_filter, _has_model("perfect_filter"), (NO_ATTACK,)),
    **{name: _as_step(kind) for name, kind in (BASELINES | PAPER_RECIPE | INSTALLED).items()},
    FIGURES: Step(lambda case: {"figures": curves(case)}, lambda unit: "figures" in unit, (NO_ATTACK,)),
}
"""The steps by the name that the command line gives them, in the order in which a unit takes them. Another ``Defence``
joins by a line like that of ``BASELINES``."""
CLEANING = ("advrbd", "random-filter", "perfect-filter")
