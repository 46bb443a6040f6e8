"""Every command in the documents is run, on a few digits and with settings that take seconds.

What a command needs lies there before: the folders, archives, tables and results that documents speak of. Experiments
are planned and started, but no unit of them is run; the demo is run by CI.
"""

import io
import os
import shlex
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small import SMALL
from test_bench_tables import rates, unit, with_models
from test_docs import PAGES, command_lines

import advrbd.pipeline
from advrbd.attacks import BadNets
from advrbd.attacks.plant import plant
from advrbd.benchmark import drill as drilling
from advrbd.benchmark.digits import digits, write_image_folder
from advrbd.benchmark.presets import INSTALLED_HERE
from advrbd.benchmark.store import write_unit
from advrbd.config import Config
from advrbd.reports.tables import render
from advrbd_cli import console
from advrbd_cli.app import main
from advrbd_cli.settings import PREFIX

COMMANDS = dict.fromkeys(shlex.join(words) for page in PAGES for words in command_lines(page) if words != ["demo"])
PLACEHOLDERS = {"NAME": "badnets", "CLASS": "cat", "CLEAN": "cleaned", "partition.rate=$share": "partition.rate=0.1"}
SHORTENED = {"all": "sig,label-noise"}  # every attack in turn takes minutes
SUSPECTS_OR_NOT = (0, 1)


def quickly(run: Callable) -> Callable:
    """``run`` with settings that take seconds in the place of the defaults."""

    def brief(given: object) -> object:
        return replace(SMALL, seed=given.seed, device=given.device) if isinstance(given, Config) else given

    def ran(*arguments, **named) -> object:
        return run(*map(brief, arguments), **{name: brief(value) for name, value in named.items()})

    return ran


@pytest.fixture(scope="module")
def furniture(tmp_path_factory) -> Path:
    """All that the documents' commands read, by the names that they give it."""
    root = tmp_path_factory.mktemp("documents")
    images, labels, _, _ = digits()
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == label)[:100] for label in (0, 1)]))
    write_image_folder(images[chosen], labels[chosen], root / "unpoisoned")
    for label, name in (("0", "cat"), ("1", "dog")):
        (root / "unpoisoned" / label).rename(root / "unpoisoned" / name)
    plant(root / "unpoisoned", root / "data", BadNets(side=8), "cat", 0.12)
    shutil.copytree(root / "data", root / "photos")
    shutil.copytree(root / "data", root / "splits" / "train")
    for name in ("cifar10", "cifar100", "imagenette", "tiny-imagenet", "mine"):
        for part in ("train", "test"):
            shutil.copytree(root / "unpoisoned", root / name / part)
    paths = sorted(path.relative_to(root / "data") for path in root.glob("data/*/*"))
    (root / "data" / "labels.csv").write_text("path,label\n" + "".join(f"{path},{path.parent}\n" for path in paths))
    lines = "".join(f'{{"path": "{path}", "label": "{path.parent}"}}\n' for path in paths)
    (root / "labels.jsonl").write_text(lines)
    (root / "names").write_bytes(b"\0".join(os.fsencode(path) for path in paths[:5]))
    with zipfile.ZipFile(root / "data.zip", "w") as archive:
        for path in paths:
            archive.write(root / "data" / path, str(path))
    with tarfile.open(root / "data.tar.gz", "w:gz") as archive:
        archive.add(root / "splits" / "train", "train")
    report = advrbd.scan(root / "data", SMALL)
    (root / "report.json").write_bytes(render(report, "json", all_files=True))
    shutil.copy(root / "report.json", root / "accepted.json")
    (root / "advrbd-ignore.txt").write_text(f"{report.files[0].sha256}  {report.files[0].path}\n")
    advrbd.clean(root / "data", root / "clean", SMALL)
    for work in ("runs", "small"):
        (root / work).mkdir()
        grid = [[1.0, 2.0], [3.0, 4.0]]
        figures = {"divergence": {"clean": [0.1, 0.5]}, "rounds": [], "landscape": {"radius": 1.0, "clean": grid}}
        write_unit(unit("badnets", **with_models(rates(0.7), rates(0.7)), figures=figures), root / work)
    return root


@pytest.fixture
def place(furniture, tmp_path, monkeypatch) -> Path:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    for module, names in ((advrbd.pipeline, ("scan", "clean", "plan_scan")), (drilling, ("scan", "train_plainly"))):
        for name in names:
            monkeypatch.setattr(module, name, quickly(getattr(module, name)))
    monkeypatch.setattr(console, "state", console.State())
    place = tmp_path / "place"
    shutil.copytree(furniture, place)
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((place / "names").read_bytes())))
    return place


def lay_out(place: Path, words: list[str]) -> None:
    """Make room where ``words`` write, and let ``data`` be what they say that it is."""
    if "--out" in words and words[0] == "clean":
        shutil.rmtree(place / "clean")
    if "--split" in words and words[1].endswith("data"):
        shutil.rmtree(place / "data")
        (place / "splits").rename(place / "data")


def ends(words: list[str]) -> tuple[tuple[int, ...], str]:
    """With which exit codes the command may end here, and what it says then."""
    match words:
        case [*_, "cuda:1"]:
            return (2,), "no CUDA device"
        case [*_, names] if "activation-clustering" in names and not INSTALLED_HERE:
            return (2,), "pip install '.[bench]'"
        case ["drill", *_]:  # so short a training may learn no backdoor
            return (0, 1, 2), "attack"
        case ["scan", *_] if "--strict" in words:  # or not enough
            return (0, 1, 2), "verdict: "
        case ["scan", *_] if "--dry-run" in words:
            return (0,), "" if "json" in words else "nothing was scanned"
        case ["scan", *_]:
            return SUSPECTS_OR_NOT, "verdict: "
        case ["clean", *_]:
            return SUSPECTS_OR_NOT, "trust in the result: "
    return (0,), ""


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_documents_does_what_it_says(command, place, monkeypatch, capfd):
    words = [(PLACEHOLDERS | SHORTENED).get(word, word) for word in shlex.split(command)]
    if words[:2] == ["bench", "figures"]:
        pytest.importorskip("matplotlib", reason="figures need the extra bench")
    lay_out(place, words)
    codes, said = ends(words)
    if words[:2] == ["bench", "run"]:
        words += ["--minutes", "0"]
    monkeypatch.setattr(sys, "argv", ["advrbd", *words])
    with pytest.raises(SystemExit) as ending:
        main()
    err = capfd.readouterr().err
    assert (ending.value.code or 0) in codes, err
    assert said in err
    assert "internal error" not in err
    for option in ("-o", "--html", "--out"):
        if option in words and (target := words[words.index(option) + 1]) != "-" and "--dry-run" not in words:
            assert (place / target).exists()
