"""A plan says what a scan is going to take, and does nothing else."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import advrbd
from advrbd.config import Config
from advrbd.data.pixels import Pixels
from advrbd.errors import DatasetError
from advrbd.method.separation import Split, candidates
from advrbd.model.device import choose_device
from advrbd.model.factory import ModelSpec, build
from advrbd.model.training import given, train
from advrbd.pipeline import plan_scan
from advrbd.plan import SCHEMA, _groups, _passes
from advrbd_cli import console, exits
from advrbd_cli.app import app

TINY = Config(model="test_resnet", device="cpu")


def link_many(source: Path, root: Path, classes: int, count: int) -> None:
    """An image folder of ``classes`` times ``count`` hard links to the images in ``source``."""
    images = sorted(map(str, source.rglob("*.png")))
    for label in range(classes):
        folder = root / f"class {label:04}"
        folder.mkdir(parents=True)
        for number in range(count):
            os.link(images[(label * count + number) % len(images)], f"{folder}/{number:04}.png")


def dry_run(monkeypatch, place: Path, *options: str) -> int:
    """The exit code of ``advrbd scan --dry-run`` in the folder ``place``."""
    monkeypatch.setattr(sys, "argv", ["advrbd", "scan", *options, "--dry-run"])
    monkeypatch.setattr(console, "state", console.State())
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit) as ending:
        exits.guard(app)
    return ending.value.code or 0


def test_a_plan_in_words_and_nothing_written(digits_folder, tmp_path, monkeypatch, capfd, snapshot):
    before = snapshot(digits_folder)
    options = ("--model", "test_resnet", "--device", "cpu", "-o", "r.csv", "--html", "r.html", "--work-dir", "work")
    assert dry_run(monkeypatch, tmp_path, str(digits_folder), *options) == 0
    out, err = capfd.readouterr()
    assert out == ""
    assert "files: 300 in 10 classes" in err
    assert "in memory" in err
    assert "nothing was scanned" in err
    assert not list(tmp_path.iterdir())
    assert snapshot(digits_folder) == before


def test_a_plan_as_json_is_all_there_is_on_stdout(digits_folder, tmp_path, monkeypatch, capfd):
    options = ("--model", "test_resnet", "--device", "cpu", "--format", "json", "--image-size", "32")
    assert dry_run(monkeypatch, tmp_path, str(digits_folder), *options) == 0
    plan = json.loads(capfd.readouterr().out)
    assert (plan["schema"], plan["files"], plan["classes"]) == (SCHEMA, 300, 10)
    assert plan["statuses"] == {"ok": 300}
    assert plan["file_bytes"] == sum(path.stat().st_size for path in digits_folder.rglob("*.png"))
    assert plan["pixels"] == 300 * 32 * 32 * 3
    assert plan["pixels_place"] == "memory"
    assert plan["peak_memory"] > plan["pixels"] + plan["tables"]
    assert plan["first_look_seconds"] > plan["other_look_seconds"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--memory-budget", "1K"), "raise --memory-budget"), (("--memory-budget", "much"), "--memory-budget takes")],
)
def test_what_could_not_run_is_exit_code_2(digits_folder, tmp_path, monkeypatch, capfd, options, message):
    options = ("--model", "test_resnet", "--device", "cpu", *options)
    assert dry_run(monkeypatch, tmp_path, str(digits_folder), *options) == 2
    assert message in capfd.readouterr().err


def test_a_scan_refuses_a_budget_before_it_decodes(digits_folder):
    stages = []
    with pytest.raises(DatasetError, match="raise --memory-budget"):
        advrbd.scan(digits_folder, TINY, memory_budget=1024, notify=stages.append)
    assert not [event for event in stages if hasattr(event, "stage")]


def test_a_plan_counts_thousands_of_files_and_knows_where_their_pixels_go(digits_folder, tmp_path):
    link_many(digits_folder, tmp_path / "many", classes=20, count=150)
    (tmp_path / "many/class 0003/away.png").symlink_to(digits_folder)
    os.mkfifo(tmp_path / "many/class 0004/pipe.png")
    roomy = plan_scan(tmp_path / "many", TINY)
    assert roomy.files == 3002
    assert roomy.statuses == {"ok": 3000, "refused-link": 1, "not-a-file": 1}
    assert roomy.pixels == 3002 * roomy.model.image_size**2 * 3
    tight = plan_scan(tmp_path / "many", TINY, memory_budget=roomy.tables + 1000, work_dir=tmp_path / "work")
    assert tight.pixels_place == str(tmp_path)
    assert tight.peak_memory < roomy.peak_memory + roomy.pixels
    assert not (tmp_path / "work").exists()


@pytest.mark.slow
def test_a_plan_of_a_million_files_takes_two_gigabytes_at_most(digits_folder, tmp_path):
    link_many(digits_folder, tmp_path / "many", classes=1000, count=1000)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path / "many")],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    shutil.rmtree(tmp_path)  # pytest would keep it for a while
    files, peak = map(int, done.stdout.split())
    assert files == 1_000_000
    assert peak < 2 * 2**30


MEASURED = """
import resource, sys
from advrbd.config import Config
from advrbd.pipeline import plan_scan

plan = plan_scan(sys.argv[1], Config(device="cpu"))
print(plan.files, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.parametrize("count", [90, 300])
def test_the_passes_of_a_plan_are_those_of_the_training(count):
    config = replace(TINY, warm_up=replace(TINY.warm_up, epochs=2, minimum_steps=7, batch_size=64))
    events, spec = [], ModelSpec("test_resnet", 2, 16)
    network = build(spec, choose_device("cpu"), torch.Generator())
    images, labels = Pixels(torch.zeros(count, 16, 16, 3, dtype=torch.uint8)), torch.zeros(count, dtype=torch.int64)
    means = (choose_device("cpu"), torch.Generator(), events.append)
    train(network, images, torch.arange(count), given(labels), config.warm_up, *means)
    assert len(events) == _passes(count, config)["training"]


@pytest.mark.parametrize("count", [TINY.separation.few - 1, TINY.separation.few])
@pytest.mark.parametrize("classes", [10, 30])
def test_the_groups_of_a_plan_are_those_that_a_look_examines(count, classes):
    splits = tuple(
        Split(label, parts, torch.arange(10 * label, 10 * label + 10), 3.0, 5.0 + label)
        for label in range(classes)
        for parts in TINY.separation.parts
    )
    distinct = tuple(replace(split, group=split.group + 10**4 * split.parts) for split in splits)
    chosen = candidates(distinct, torch.arange(count) % classes, TINY.separation)
    other_halves = sum(split.parts == 2 for split in chosen)
    assert _groups(count, classes, TINY) == len(chosen) + other_halves
