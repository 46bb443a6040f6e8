"""The main job on real images: handwritten digits, clean and with a backdoor planted."""

import csv
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score
from small import SMALL
from torchvision.datasets import ImageFolder

import advrbd
from advrbd.attacks import ATTACKS
from advrbd.attacks.plant import plant
from advrbd.benchmark.digits import digits, write_image_folder
from advrbd.benchmark.metrics import attack_success_rate
from advrbd.errors import ReportError
from advrbd.manifest import MANIFEST
from advrbd.pipeline import train_plainly
from advrbd.reports.tables import render

CLASSES, RATE, TARGET = 6, 0.05, 3  # the digits 0 to 5: what all ten take longer for shows nothing more


def few_digits():
    """Training images and labels, held-out images and labels, of the first ``CLASSES`` digits."""
    images, labels, held_out, held_out_labels = digits()
    few, held_out_few = labels < CLASSES, held_out_labels < CLASSES
    return images[few], labels[few], held_out[held_out_few], held_out_labels[held_out_few]


@pytest.fixture(scope="session")
def held_out():
    _, _, images, labels = few_digits()
    return images, labels


@pytest.fixture(scope="session")
def clean_digits(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("clean") / "digits"
    images, labels, _, _ = few_digits()
    write_image_folder(images, labels, root)
    return root


@pytest.fixture(scope="session")
def poisoned(clean_digits, tmp_path_factory):
    """A poisoned folder with one unreadable file in it, its truth, and its scan by the program."""
    root = tmp_path_factory.mktemp("poisoned") / "digits"
    attack = ATTACKS["badnets"](seed=0)
    truth = {entry.path: entry.role for entry in plant(clean_digits, root, attack, str(TARGET), RATE)}
    (root / "5" / "00000-broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    report = root.parent / "report.csv"
    command = [sys.executable, "-m", "advrbd_cli", "scan", str(root), "-o", str(report), "--all-files"]
    before = files_below(root)
    done = subprocess.run(command, capture_output=True, text=True)
    assert files_below(root) == before
    return root, truth, report, done


def files_below(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_program_finds_the_planted_files_and_exits_with_one(poisoned):
    _, truth, report, done = poisoned
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert "1 could not be read" in done.stderr
    assert "warm-up: " in done.stderr
    with report.open(encoding="utf-8", newline="") as lines:
        rows = {row["path"].removeprefix("./"): row for row in csv.DictReader(lines)}
    assert rows.keys() == {*truth, "5/00000-broken.png"}
    assert rows.pop("5/00000-broken.png")["status"] == "unreadable"
    flagged = {path for path, row in rows.items() if row["suspect"] == "true"}
    planted = {path for path, role in truth.items() if role == "poison"}
    assert len(flagged & planted) >= 0.9 * len(planted)
    assert len(flagged - planted) <= 0.01 * len(truth)
    assert {path.split("/")[0] for path in flagged} == {str(TARGET)}
    assert roc_auc_score([path in planted for path in rows], [float(row["score"]) for row in rows.values()]) > 0.99


QUICKLY = """
from dataclasses import replace
import advrbd.pipeline
from advrbd_cli.app import main
from small import SMALL
scan = advrbd.pipeline.scan
advrbd.pipeline.scan = lambda path, config, **how: scan(path, replace(SMALL, seed=config.seed), **how)
main()
"""


def test_the_same_folder_and_seed_give_the_same_bytes_through_the_api_and_no_output(digits_folder, tmp_path, capfd):
    report = tmp_path / "report.csv"
    command = [sys.executable, "-c", QUICKLY, "scan", str(digits_folder), "-o", str(report), "--all-files"]
    done = subprocess.run([*command, "--seed", "3"], capture_output=True, cwd=Path(__file__).parent)
    found = advrbd.scan(digits_folder, replace(SMALL, seed=3))
    assert done.returncode == bool(found.suspects)
    assert render(found, "csv", all_files=True) == report.read_bytes()
    assert len({file.score for file in found.files}) > 1
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="session")
def cleaned(poisoned, tmp_path_factory):
    root, _, report, _ = poisoned
    out = tmp_path_factory.mktemp("cleaned") / "out"
    before = files_below(root)
    done = subprocess.run(
        [sys.executable, "-m", "advrbd_cli", "clean", str(root), "--out", str(out), "--report", str(report)],
        capture_output=True,
        text=True,
        cwd=out.parent,
    )
    assert files_below(root) == before
    return out, done


def test_clean_accounts_for_every_file_and_keeps_their_bytes(poisoned, cleaned):
    root, _, _, _ = poisoned
    out, done = cleaned
    assert done.returncode == 0, done.stderr
    manifest = json.loads((out / MANIFEST).read_text())
    assert {entry["source"] for entry in manifest["files"]} == {str(p.relative_to(root)) for p in root.rglob("*.png")}
    written = {entry["written"]: entry for entry in manifest["files"] if entry["written"]}
    assert set(written) | {MANIFEST} == set(files_below(out))
    assert all((out / path).read_bytes() == (root / entry["source"]).read_bytes() for path, entry in written.items())
    assert Counter(entry["action"] for entry in manifest["files"])["excluded"] == 1
    assert {path.name for path in out.parent.iterdir()} == {"out", "out.safetensors", "advrbd-clean-report.csv"}


def test_the_cleaned_folder_loads_and_its_suspects_got_their_true_labels(poisoned, cleaned):
    _, truth, _, _ = poisoned
    out, _ = cleaned
    folder = ImageFolder(str(out))
    assert folder.classes == [str(number) for number in range(CLASSES)]
    manifest = json.loads((out / MANIFEST).read_text())
    assert len(folder) == sum(entry["written"] is not None for entry in manifest["files"])
    _, labels, _, _ = few_digits()
    moved = [e for e in manifest["files"] if e["action"] == "relabelled" and truth.get(e["source"]) == "poison"]
    true_label = [str(labels[int(Path(entry["source"]).name[:5])]) for entry in moved]
    right = np.mean([entry["new_label"] == label for entry, label in zip(moved, true_label, strict=True)])
    assert len(moved) >= 0.8 * RATE * len(labels)
    assert right > 0.9


def test_the_backdoor_is_in_the_poisoned_folder_and_gone_from_the_cleaned_one(poisoned, cleaned, held_out):
    images, labels = held_out
    attack = ATTACKS["badnets"](seed=0)
    undefended = train_plainly(poisoned[0])
    model, classes = advrbd.load_model(cleaned[0].with_name("out.safetensors"))
    assert classes == tuple(str(number) for number in range(CLASSES))
    victims = [(image, TARGET) for image in images[labels != TARGET]]
    assert attack_success_rate(undefended, attack, victims, np.random.default_rng(0)) > 0.8
    assert attack_success_rate(model, attack, victims, np.random.default_rng(0)) < 0.05


def test_a_report_of_another_folder_is_refused(poisoned, clean_digits, tmp_path):
    with pytest.raises(ReportError, match="scan the folder again"):
        advrbd.clean(clean_digits, tmp_path / "out", report=poisoned[2])
    assert list(tmp_path.iterdir()) == []


def test_an_unpoisoned_folder_comes_back_clean(clean_digits, tmp_path):
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "advrbd_cli", "scan", str(clean_digits), "-o", str(report), "-q", "--strict"]
    done = subprocess.run([*command, "--seed", "2"], capture_output=True, text=True)  # may lose two controls
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    found = json.loads(report.read_text())
    assert (found["verdict"], found["files"]) == ("clean", [])
    assert found["run"]["control_found"] is True


def test_too_few_images_are_refused_before_any_work(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / "data" / name / f"{number}.png")
    with pytest.raises(advrbd.AdvrbdError, match="fewer than 100"):
        advrbd.scan(tmp_path / "data")
