"""Plant, scan, clean and measure: one unit per attack, poison rate and seed, resumable, the table printed last.

    python examples/reproduce/detection.py --data cifar10 --work runs --attacks badnets blend none --seeds 0 1 2

``--data`` holds ``train/`` and ``test/`` in ImageFolder layout. A unit draws ``--per-class`` training images of each
class by its seed, plants the attack in a copy, runs ``advrbd scan`` and ``advrbd clean`` as programs of their own,
and trains plainly on the poisoned and on the cleaned folder. Its result is a JSON file in ``--work``; a unit that has
one is not run again. The attack ``none`` is the unpoisoned folder.
"""

import argparse
import csv
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from advrbd.attacks import ATTACKS
from advrbd.attacks.plant import plant
from advrbd.benchmark.metrics import accuracy, attack_success_rate, detection
from advrbd.config import Config
from advrbd.data import folder
from advrbd.data.pixels import read_image
from advrbd.model.saved import load_model
from advrbd.pipeline import train_plainly
from advrbd.reports.report import FileResult


def draw_subset(source: Path, target: Path, per_class: int, seed: int) -> None:
    """Link ``per_class`` random files of each class into ``target``."""
    generator = random.Random(seed)
    for name in sorted(entry.name for entry in source.iterdir()):
        files = sorted((source / name).iterdir())
        (target / name).mkdir(parents=True)
        for file in sorted(generator.sample(files, min(per_class, len(files)))):
            os.link(file, target / name / file.name)


def run_program(*arguments: str) -> dict:
    """Run ``advrbd`` and return its exit code, seconds and peak memory in MB."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "advrbd_cli", *arguments], stderr=subprocess.PIPE, text=True)
    log = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in ((0, 1) if arguments[0] == "scan" else (0,)):
        raise SystemExit(f"advrbd {' '.join(arguments)} failed with {code}:\n{log}")
    spent = time.perf_counter() - started
    return {"exit": code, "seconds": round(spent, 1), "peak_mb": round(usage.ru_maxrss / 1024), "log": log}


def run_unit(arguments: argparse.Namespace, attack_name: str, rate: float, seed: int, directory: Path) -> dict:
    data, report = directory / "subset", directory / "report.json"
    shutil.rmtree(directory, ignore_errors=True)
    draw_subset(arguments.data / "train", data, arguments.per_class, seed)
    classes = sorted(entry.name for entry in data.iterdir())
    attack = None if attack_name == "none" else ATTACKS[attack_name](seed=seed)
    truth: dict[str, str] = {}
    if attack is not None:
        planted = plant(data, directory / "poisoned", attack, classes[arguments.target], rate, seed)
        truth = {f"./{entry.path}": entry.role for entry in planted}
        data = directory / "poisoned"

    common = ["--device", arguments.device, "--model", arguments.model, "--seed", str(seed), "--no-progress"]
    scan = run_program("scan", str(data), "-o", str(report), "--all-files", *common)
    found = json.loads(report.read_text())
    unit = {"attack": attack_name, "rate": rate, "seed": seed, "verdict": found["verdict"], "scan": scan}
    unit |= {
        "detection": asdict(detection((FileResult(**row) for row in found["files"]), truth)),
        "classes": found["classes"],
        "run": found["run"],
    }
    unit |= {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "torch": torch.__version__}
    if attack is None or arguments.no_clean:
        return unit

    test = folder.index(arguments.data / "test")
    size = found["run"]["model"]["image_size"]
    images = np.stack([read_image(test.root / file.path, size)[0] for file in test.files])
    labels = np.array([file.label for file in test.files])
    config = Config(model=arguments.model, device=arguments.device, seed=seed)

    def judge(network) -> dict:
        success = attack_success_rate(network, attack, images, labels, arguments.target, len(classes))
        return {"acc": round(accuracy(network, images, labels), 4), "asr": round(success, 4)}

    cleaned = directory / "clean"
    model = directory / "clean.safetensors"
    outputs = ["--out", str(cleaned), "-o", str(directory / "clean.csv"), "--save-model", str(model)]
    unit["clean"] = run_program("clean", str(data), "--report", str(report), *outputs, *common)
    unit["clean_model"] = judge(load_model(model, arguments.device)[0])
    unit["undefended"] = judge(train_plainly(data, config))
    unit["trained_on_cleaned"] = judge(train_plainly(cleaned, config))
    with (directory / "clean.csv").open(newline="") as file:
        done = list(csv.DictReader(file))
    unit["relabelled"] = sum(row["action"] == "relabelled" for row in done)
    origin = {f"./{entry.path}": entry.original_label for entry in planted}
    unit["relabelled_right"] = sum(
        row["action"] == "relabelled" and row["suggested_label"] == origin[row["path"]] for row in done
    )
    return unit


def table(units: list[dict]) -> str:
    lines = [
        "| attack | rate | seed | verdict | TPR | FPR | AUROC | scan s | MB | undefended ACC/ASR | clean model | "
        "trained on cleaned | relabelled (right) |",
        "|" + "---|" * 13,
    ]
    for unit in units:
        hit = unit["detection"]
        rate = f"{hit['found'] / hit['poisoned']:.4f}" if hit["poisoned"] else "-"
        models = [
            f"{unit[key]['acc']:.3f}/{unit[key]['asr']:.3f}" if key in unit else "-"
            for key in ("undefended", "clean_model", "trained_on_cleaned")
        ]
        lines.append(
            f"| {unit['attack']} | {unit['rate']} | {unit['seed']} | {unit['verdict']} | {rate} | "
            f"{hit['false_alarms'] / hit['clean']:.4f} | {hit['auroc']:.4f} | {unit['scan']['seconds']:.0f} | "
            f"{unit['scan']['peak_mb']} | {' | '.join(models)} | "
            f"{unit.get('relabelled', '-')} ({unit.get('relabelled_right', '-')}) |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--attacks", nargs="+", default=["badnets", "blend", "none"], choices=[*ATTACKS, "none"])
    parser.add_argument("--rates", nargs="+", type=float, default=[0.05])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--per-class", type=int, default=1000)
    parser.add_argument("--target", type=int, default=1, help="number of the target class")
    parser.add_argument("--model", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--no-clean", action="store_true", help="detection only")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    units = []
    for seed in arguments.seeds:
        for attack in arguments.attacks:
            for rate in arguments.rates if attack != "none" else [0.0]:
                scope = "detection" if arguments.no_clean else "full"
                parts = (arguments.data.name, arguments.per_class, arguments.model, arguments.target, scope)
                name = "-".join(map(str, (*parts, attack, rate, seed)))
                result = arguments.work / f"{name}.json"
                if not result.exists():
                    unit = run_unit(arguments, attack, rate, seed, arguments.work / name)
                    result.write_text(json.dumps(unit, indent=1) + "\n")
                    shutil.rmtree(arguments.work / name)
                units.append(json.loads(result.read_text()))
                print(table(units[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    print(table(units))


if __name__ == "__main__":
    main()
