"""What one look at a folder sees with each setting moved alone, from the same trained network where that allows it.

    python examples/reproduce/ablation.py ./cifar10 looks --attacks wanet none

``./cifar10`` holds ``train/`` and ``test/`` in ImageFolder layout (``advrbd bench download cifar10 .``). Each attack is
planted once in a draw of it, the settings take turns, and each leaves a JSON in ``looks``; the same command again does
what is missing. The table is printed last. It is the first look alone, without a second opinion: *planted* is how
ambiguous the poisoned class was to the enhanced models, *natural* the least ambiguous of the other classes that were
examined, and what matters is the gap between the two. No file is suspected where the planted class isn't convicted. A
row that equals that of the defaults to the last digit moved nothing: a folder's size limits the warm-up's length, too.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from advrbd.attacks import ATTACKS
from advrbd.attacks.base import POISON
from advrbd.benchmark.case import Case, lay_out, open_case
from advrbd.benchmark.defences import circumstances
from advrbd.benchmark.matrix import NO_ATTACK, Unit
from advrbd.benchmark.metrics import detection
from advrbd.benchmark.settings import parse_overrides, shown
from advrbd.benchmark.tables import NOTHING, markdown
from advrbd.config import Config
from advrbd.data.folder import OK
from advrbd.errors import AdvrbdError, BenchmarkError
from advrbd.method.control import plant_control
from advrbd.method.findings import Findings
from advrbd.method.held_out import Left
from advrbd.method.look import look
from advrbd.method.warm_up import Learned, warm_up
from advrbd.model.device import choose_device, repeatable
from advrbd.preparation import usable
from advrbd.reports.report import FileResult
from advrbd.writing import write_whole

MOVED = (
    *("partition.patch=0.25", "partition.patch=0.75"),
    *("partition.epsilon=0.0314", "partition.epsilon=0.1255"),
    *("partition.steps=1", "partition.steps=4"),
    *("partition.masks=1", "partition.masks=4"),
    *("partition.rate=0.1", "partition.rate=0.3"),
    *("separation.sure=0.8", "separation.sure=0.95"),
    *("enhancement.rounds=1", "enhancement.rounds=5"),
    *("enhancement.steps=60", "enhancement.steps=240"),
    *("enhancement.cleared=0.05", "enhancement.cleared=0.2"),
    *("warm_up.epochs=12", "warm_up.epochs=24"),
)
"""Each setting, lower and higher than its default."""


def units(base: Unit) -> Iterator[Unit]:
    """The unit as it is, and with each setting moved alone."""
    yield base
    for text in MOVED:
        yield replace(base, overrides=(*base.overrides, *parse_overrides([text])))


def measure(case: Case, unit: Unit, networks: dict[tuple, Learned]) -> dict:
    """What a look sees with the settings of ``unit``; ``networks`` holds what was trained already, by how it was."""
    (index, run), config = case.prepared, unit.config
    run.generator.manual_seed(config.seed)
    examples = usable(index)
    training = replace(config.warm_up, epochs=0), config.warm_up.length(len(examples))
    if training not in networks:
        networks[training] = warm_up(run, examples, config, plant_control(run, examples, config))
    run.generator.manual_seed(config.seed + 1)  # draws like those of the others
    findings, started = Findings.nothing(len(run.labels)), time.perf_counter()
    findings.looks = 1
    _, seen = look(run, networks[training], config, findings, None)
    seconds = round(time.perf_counter() - started, 1)
    found = {"look_seconds": seconds, "control_found": findings.control_found, "cautions": findings.cautions}
    return unit.as_dict() | circumstances(config) | found | _judged(case, seen)


def _judged(case: Case, seen: Left) -> dict:
    index, run = case.prepared
    rows = zip(usable(index).tolist(), seen.found.suspects.tolist(), seen.found.score.tolist(), strict=True)
    files = [FileResult(index.files[at].path, "", OK, "", suspect, score) for at, suspect, score in rows]
    counts = detection(files, case.role)
    rates = {"tpr": counts.true_positive_rate, "fpr": counts.false_positive_rate, "auroc": counts.auroc}
    of_poison = {} if counts.poisoned else dict.fromkeys(("tpr", "auroc"))  # JSON has no NaN
    poisoned = {entry.label for entry in case.planted if entry.role == POISON}
    told = {run.class_name(label): entry.get("ambiguity") for label, entry in seen.found.evidence.items()}
    examined = {name: ambiguity for name, ambiguity in told.items() if ambiguity is not None}
    return {
        "detection": asdict(counts) | rates | of_poison,
        "planted": min((examined[name] for name in examined if name in poisoned), default=None),
        "natural": min((examined[name] for name in examined if name not in poisoned), default=None),
        "verdicts": {run.class_name(label): verdict for label, verdict in seen.found.verdicts.items()},
    }


def table(found: list[dict]) -> str:
    """A row a setting, of each attack."""
    rows = []
    for unit in found:
        rates = unit["detection"]
        moved = " ".join(f"{name}={shown(value)}" for name, value in unit["overrides"].items())
        rows.append(
            {
                "attack": unit["attack"],
                "seed": str(unit["seed"]),
                "setting": moved or "defaults",
                "TPR": _number(rates["tpr"]),
                "FPR": _number(rates["fpr"], 4),
                "AUROC": _number(rates["auroc"], 4),
                "planted": _number(unit["planted"]),
                "natural": _number(unit["natural"]),
                "control": "found" if unit["control_found"] else "lost",
                "seconds": f"{unit['look_seconds']:.0f}",
            }
        )
    return markdown(rows)


def _number(value: float | None, places: int = 3) -> str:
    return NOTHING if value is None else f"{value:.{places}f}"


def measured(base: Unit, work: Path) -> list[dict]:
    """The results of the unit and of those with a setting moved: what is missing in ``work`` is measured first.

    Raises ``BenchmarkError`` where there is a result of other versions, defaults or machines.
    """
    places = {unit: work / f"{unit.name}.look.json" for unit in units(base)}
    known = {unit: json.loads(place.read_bytes()) for unit, place in places.items() if place.exists()}
    for unit, entry in known.items():
        if not entry.items() >= circumstances(unit.config).items():
            raise BenchmarkError(f"{places[unit]} is of other versions, defaults or machines; use another folder")
    missing = [unit for unit in places if unit not in known]
    if missing:
        networks: dict[tuple, Learned] = {}
        with tempfile.TemporaryDirectory() as directory, repeatable(choose_device(base.device)):
            lay_out(base, Path(directory))
            case = open_case(base, Path(directory), Path(directory, "report.json"), {})
            for unit in missing:
                known[unit] = measure(case, unit, networks)
                write_whole(places[unit], json.dumps(known[unit], indent=1).encode())
                print(unit.name, flush=True)
    return [known[unit] for unit in places]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="holds train/ and test/")
    parser.add_argument("work", type=Path, help="folder for the results; the same one goes on")
    parser.add_argument("--attacks", nargs="+", default=["wanet", NO_ATTACK], choices=[*ATTACKS, NO_ATTACK])
    parser.add_argument("--seed", type=int, default=21)
    parser.add_argument("--per-class", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--target", type=int, default=1, help="number of the poisoned class")
    parser.add_argument("--model", default=Config().model)
    told = parser.parse_args()
    told.work.mkdir(parents=True, exist_ok=True)
    found = []
    for attack in told.attacks:
        rate = 0.0 if attack == NO_ATTACK else told.rate
        found += measured(Unit(told.data, told.per_class, told.target, told.model, attack, rate, told.seed), told.work)
    print(table(found))


if __name__ == "__main__":
    try:
        main()
    except AdvrbdError as error:
        raise SystemExit(f"error: {error}") from None
