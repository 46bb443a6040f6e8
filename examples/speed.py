"""How long advrbd and its peers take to find the same poison, in one run on one machine.

    python examples/speed.py ./data --attack badnets --peers activation-clustering,spectral-signatures,abl,d-br

Plants a known backdoor in a copy of the image folder ``./data`` (one folder a class; never written to), scans the copy
with advrbd, and lets each peer look at it. Seconds are from the folder on disk to the list of suspects: decoding is
in them, and the training of the model that a detector is given, which is as long as that of advrbd's own clean model.
ABL and D-BR are whole defences, so their repair counts as well. What needs the poison rate is told it. The detectors of
other packages come with ``pip install '.[bench]'``.
"""

import argparse
import json
import tempfile
import time
from dataclasses import fields, replace
from pathlib import Path

import torch

import advrbd
from advrbd.attacks import ATTACKS
from advrbd.attacks.base import POISON
from advrbd.attacks.plant import plant
from advrbd.attacks.wider import LabelNoise
from advrbd.baselines import BASELINES, INSTALLED, NOTHING, POISON_RATE, Defence
from advrbd.benchmark.defences import RATE_FIELDS, machine
from advrbd.benchmark.metrics import Detection, detection
from advrbd.config import Config
from advrbd.data.folder import OK
from advrbd.errors import AdvrbdError
from advrbd.method.relearning import relearn
from advrbd.model.device import choose_device
from advrbd.preparation import prepare, usable
from advrbd.reports.report import FileResult

DETECTORS = {
    name: kind
    for name, kind in (BASELINES | INSTALLED).items()
    if kind.detects and kind.needs in (NOTHING, POISON_RATE)
}


def scan(folder: Path, roles: dict[str, str], config: Config) -> Detection:
    """What advrbd finds, with its default settings."""
    return detection(advrbd.scan(folder, config).files, roles)


def ask(kind: type[Defence], folder: Path, roles: dict[str, str], config: Config, rate: float) -> Detection:
    """What a peer finds, after the training that it needs."""
    index, run = prepare(folder, config)
    examples = usable(index)
    defence = kind()
    defence = replace(defence, **{field.name: rate for field in fields(defence) if field.name in RATE_FIELDS})
    if kind.name in INSTALLED:  # looks at a trained model; what would be trained after that isn't counted
        suspects, score = defence.detect(run, examples, relearn(run, examples, config.relearning))
    else:  # trains by itself, and finds while it does
        found = defence.defend(run, examples, run.fresh_network())
        suspects, score = found.suspects, found.score
    files = [
        FileResult(index.files[position].path, "", OK, "", bool(suspects[number]), float(score[number]))
        for number, position in enumerate(examples.tolist())
    ]
    return detection(files, roles)


def table(rows: list[dict]) -> str:
    """The rows as Markdown, with each time as a multiple of advrbd's."""
    lines = ["| | seconds | x advrbd | AUROC | TPR | FPR |", "|---|---|---|---|---|---|"]
    for row in rows:
        ratio = row["seconds"] / rows[0]["seconds"]
        rates = " | ".join(f"{row[name]:.4f}" for name in ("auroc", "tpr", "fpr"))
        lines.append(f"| {row['name']} | {row['seconds']:.1f} | {ratio:.2f} | {rates} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="image folder, one sub-folder a class")
    parser.add_argument("--attack", default="badnets", choices=[name for name in ATTACKS if name != LabelNoise.name])
    parser.add_argument("--rate", type=float, default=0.05, help="share of the files to poison")
    parser.add_argument("--peers", default=",".join((*INSTALLED, "abl", "d-br")), help="with commas between them")
    parser.add_argument("--model", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    given = parser.parse_args()
    peers = [name for name in given.peers.split(",") if name]
    if unknown := set(peers) - DETECTORS.keys():
        parser.error(f"no such peer: {', '.join(sorted(unknown))}; there are {', '.join(DETECTORS)}")
    config, rows = Config(model=given.model, device=given.device, seed=given.seed), []
    with tempfile.TemporaryDirectory() as place:
        folder, target = Path(place) / "poisoned", sorted(p.name for p in given.data.iterdir() if p.is_dir())[0]
        planted = plant(given.data, folder, ATTACKS[given.attack](seed=given.seed), target, given.rate, given.seed)
        roles = {entry.path: entry.role for entry in planted}
        rate = sum(role == POISON for role in roles.values()) / len(roles)
        jobs = {"advrbd": lambda: scan(folder, roles, config)}
        jobs |= {name: lambda kind=DETECTORS[name]: ask(kind, folder, roles, config, rate) for name in peers}
        for name, job in jobs.items():
            started = time.perf_counter()
            found = job()
            seconds = time.perf_counter() - started
            rates = {"tpr": found.true_positive_rate, "fpr": found.false_positive_rate, "auroc": found.auroc}
            rows.append({"name": name, "seconds": round(seconds, 2)} | rates)
            print(f"{name}: {seconds:.1f} s, AUROC {found.auroc:.4f}", flush=True)  # a long run may be cut off
    here, threads = machine(choose_device(given.device).device), torch.get_num_threads()
    print(f"\n{given.attack}, {rate:.1%} of {len(roles)} files; {here}, {threads} threads\n")
    print(table(rows))
    if given.json:
        about = {"machine": here, "threads": threads, "torch": torch.__version__, **vars(given)}
        given.json.write_text(json.dumps({"about": about, "rows": rows}, indent=1, default=str) + "\n")


if __name__ == "__main__":
    try:
        main()
    except AdvrbdError as error:
        raise SystemExit(f"error: {error}") from error
