"""What is rendered from results: the paper's tables with its figures beside ours, its figures, and data sets."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advrbd.baselines import BASELINES
from advrbd.benchmark import curves, datasets
from advrbd.benchmark.figures import draw, partition_rates
from advrbd.benchmark.matrix import Unit
from advrbd.benchmark.paper_tables import outcome, paper_tables, published
from advrbd.benchmark.settings import parse_overrides
from advrbd.data import folder
from advrbd.data.pixels import Pixels
from advrbd.errors import BenchmarkError
from advrbd.model.device import choose_device
from advrbd.model.factory import ModelSpec
from advrbd.model.run import Run


def unit(attack: str, rate: float = 0.05, *overrides: str, model: str = "auto", seed: int = 11, **more) -> dict:
    about = Unit(Path("/cifar10"), 500, 1, model, attack, rate, seed, "cpu", parse_overrides(list(overrides)))
    network = {"name": "resnet10t" if model == "auto" else model}
    return about.as_dict() | {"network": network, "machine": "a machine", "config": about.config.as_dict()} | more


def rates(acc: float, asr: float | None = 0.01, **more) -> dict:
    return {"acc": acc, "asr": asr, **more}


def with_models(undefended: dict, ours: dict, **defences: dict) -> dict:
    models = {"undefended": undefended, "not_relabelled": ours, "clean_model": ours}
    return {"models": models, "defences": {name.replace("_", "-"): entry for name, entry in defences.items()}}


def table(text: str, number: str) -> list[dict[str, str]]:
    """The rows of one of the paper's tables in ``text``, by title."""
    lines = text.split(f"Table {number}, ")[1].split("\n\n")[1].splitlines()
    titles, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(titles, row, strict=True)) for row in rows]


def test_what_is_published_agrees_with_the_papers_own_averages():
    """A mistyped cell would show; where the paper itself is at odds with its cells, it is left as it is printed."""
    known = published()
    assert all(0 <= value <= 1 for pair in known.values() for value in pair)
    odd = []
    for key, theirs in known.items():
        if key[3] == "average":
            like = [(*key[:3], key[5], key[4]), (*key[:3], key[5], "0" if key[0] == "VI" else key[4])]
            same = [pair for k, pair in known.items() if (*k[:3], k[5], k[4]) in like and k[3] != "average"]
            odd += [key[0]] if np.abs(np.mean(same, axis=0) - theirs).max() > 0.0002 else []
    assert odd == ["III", "V", "V", "V"]  # ABL's 32.92 on Imagenette, and the averages for three poison rates


def test_ours_are_means_over_seeds_with_the_papers_beside_them():
    units = [
        unit("badnets", seed=11, **with_models(rates(0.7, 0.9), rates(0.72), abl=rates(0.6))),
        unit("badnets", seed=12, **with_models(rates(0.6, 0.8), rates(0.70))),
        unit("blend", **with_models(rates(0.5, 1.0), rates(0.6))),
        unit("none", 0.0, **with_models(rates(0.8, None), rates(0.75, None))),
        unit("badnets", 0.05, "looks=1", **with_models(rates(0.1, 0.1), rates(0.1))),  # an ablation is none of them
    ]
    text = paper_tables(units)
    assert "2 seeds (a machine)" in text
    badnets, blend, sig, *_, average = table(text, "II")
    assert "Table II, defences and attacks, n = 1:" in text
    assert badnets["none"] == "70.0 / 90.0 (92.00 / 95.20)"  # of the one seed that abl has, too
    assert badnets["advrbd"] == "72.0 / 1.0"
    assert badnets["not-relabelled"] == "72.0 / 1.0 (85.72 / 0.00)"
    assert badnets["abl"] == "60.0 / 1.0 (71.98 / 0.00)"
    assert blend["abl"] == "- (82.20 / 5.71)"
    assert sig["none"] == "- (84.70 / 95.40)"
    assert average["attack"] == "average of 2"
    assert average["none"] == "60.0 / 95.0"
    assert average["abl"] == "-"  # a mean of other attacks than the column beside it would mislead
    assert "Table IV, relabelling and relearning, n = 2:" in text
    assert table(text, "IV")[0]["advrbd"] == "71.0 / 1.0 (86.81 / 0.00)"
    assert table(text, "VII")[0] == {
        "attack": "none",
        "none": "80.0 / - (87.86 / 0.00)",
        "not-relabelled": "75.0 / - (86.04 / 0.66)",
        "advrbd": "75.0 / -",
    }
    assert "Table III" not in text
    assert "Table VI," not in text


def test_a_row_without_a_common_seed_is_named():
    units = [
        unit("badnets", seed=seed, **with_models(rates(0.7, 0.9), rates(0.72), abl=abl, clp=clp))
        for seed, abl, clp in ((11, {"error": "it diverged"}, rates(0.6)), (12, rates(0.5), {"error": "so did it"}))
    ]
    text = paper_tables(units)
    assert table(text, "II")[0]["none"] == "- (92.00 / 95.20)"
    assert text.count("Left out, since no seed has all of their columns: badnets.") == 1
    assert table(text, "IV")[0]["advrbd"] == "72.0 / 1.0 (86.81 / 0.00)"


def test_the_papers_average_stands_beside_ours_only_if_it_is_of_the_same_attacks():
    five = ("badnets", "blend", "sig", "wanet", "physicalba")
    units = [unit(name, **with_models(rates(0.7, 0.9), rates(0.72))) for name in five]
    assert table(paper_tables(units), "II")[-1]["none"] == "70.0 / 90.0 (87.12 / 88.36)"


def test_rates_and_models_have_tables_of_their_own():
    units = [
        unit("badnets", rate, **with_models(rates(0.7, 0.9), rates(acc))) for rate, acc in ((0.1, 0.5), (0.2, 0.4))
    ]
    units += [unit("badnets", model="resnet34", **with_models(rates(0.7, 0.9), rates(0.9)))]
    text = paper_tables(units)
    none, badnets, *_ = table(text, "V")
    assert none["0.0"] == "- (86.04 / 0.66)"
    assert (badnets["0.1"], badnets["0.2"]) == ("50.0 / 1.0 (85.82 / 0.00)", "40.0 / 1.0 (82.20 / 0.00)")
    assert table(text, "VI")[1]["resnet34"] == "90.0 / 1.0 (88.35 / 0.00)"
    assert table(text, "II")[0]["none"] == "70.0 / 90.0"  # the paper's Table II isn't about that model


def test_who_beats_advrbd_is_named():
    units = [
        unit("badnets", **with_models(rates(0.7, 0.9), rates(0.72), abl=rates(0.8, 0.2), clp=rates(0.73, 0.04))),
        unit("blend", **with_models(rates(0.7, 0.9), rates(0.72), abl=rates(0.71, 0.0))),
        unit("tact", **with_models(rates(0.7, 0.9), rates(0.72, 0.3), abl=rates(0.8, 0.2))),
    ]
    (line,) = (line for line in paper_tables(units).splitlines() if "highest accuracy" in line)
    assert line.endswith("2 of 3: badnets (72.0 / 1.0): clp (73.0 / 4.0); tact (72.0 / 30.0): no defence is.")
    assert "in 1 of 1 attacks" in paper_tables(units[1:2])


def test_a_contest_is_over_the_seeds_that_all_who_ran_share():
    seeds = [
        unit("badnets", seed=11, **with_models(rates(0.7, 0.9), rates(0.9), abl=rates(0.88, 0.0))),
        unit("badnets", seed=12, **with_models(rates(0.7, 0.9), rates(0.8), abl={"error": "it diverged"})),
    ]
    assert "in 1 of 1 attacks" in paper_tables(seeds)


def test_rates_of_detection_costs_and_failures_are_told():
    found = {"detection": {"tpr": 0.9, "fpr": 0.01, "auroc": 0.95}, "seconds": {"scan": 100.0}, "scan_peak_mb": 900}
    abl = rates(0.6, tpr=0.2, fpr=0.05, auroc=0.6, seconds=30, peak_mb=700)
    lame = {"error": "clp needs batch normalisation", "needs": "nothing"}
    made = unit("badnets", **with_models(rates(0.7), rates(0.7, seconds=20, peak_mb=950), abl=abl, clp=lame), **found)
    text = paper_tables([made])
    assert "| advrbd | 1 | 0.900 | 0.0100 | 0.950 | 120 | 950 |" in text
    assert "| abl | 1 | 0.200 | 0.0500 | 0.600 | 30 | 700 |" in text
    assert "Could not run: clp: clp needs batch normalisation" in text
    assert "| scan | 1 | 0.900 | 0.0100 | 0.950 | 100 | 900 |" in text
    scanned = unit("badnets", seed=12, **(found | {"seconds": {"scan": 300.0}}), defences={"abl": abl})
    text = paper_tables([made, scanned])
    assert "| advrbd | 1 | 0.900 | 0.0100 | 0.950 | 120 | 950 |" in text  # no mean of a scan and a cleaning
    assert "| scan | 2 | 0.900 | 0.0100 | 0.950 | 200 | 900 |" in paper_tables([made | {"models": {}}, scanned])
    assert outcome(made, "clp") is None


def test_a_defence_that_joins_later_has_a_column():
    made = unit("badnets", **with_models(rates(0.7, 0.9), rates(0.7), of_tomorrow=rates(0.5, 0.5)))
    assert "of-tomorrow" not in BASELINES
    assert table(paper_tables([made]), "II")[0]["of-tomorrow"] == "50.0 / 50.0"


def test_partition_rates_are_put_in_order_and_with_their_like():
    made = [
        unit(attack, 0.05, *change, **with_models(rates(0.7), rates(acc)))
        for attack, change, acc in (
            ("badnets", ("partition.rate=0.3",), 0.3),
            ("badnets", (), 0.2),
            ("badnets", ("partition.rate=0.1",), 0.1),
            ("badnets", ("partition.rate=0.1", "looks=1"), 0.0),
            ("blend", (), 0.5),
        )
    ]
    ((name, points),) = partition_rates(made).items()
    assert name == "cifar10-n500-t1-auto-badnets-r0.05-s11"
    assert [(rate, model["acc"]) for rate, model in points] == [(0.1, 0.1), (0.2, 0.2), (0.3, 0.3)]


def test_figures_without_matplotlib_say_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BenchmarkError, match=r"pip install '\.\[bench\]'"):
        draw([], tmp_path)


@pytest.mark.parametrize("form", ["png", "svg"])
def test_figures_are_drawn_from_what_units_stored(tmp_path, form):
    pytest.importorskip("matplotlib", reason="figures need the extra bench")
    grid = [[float(row + column) for column in range(curves.SIDE)] for row in range(curves.SIDE)]
    data = {
        "divergence": {"clean": [0.1, 0.5, 2.0], "poison": [0.0, 0.1]},
        "rounds": [{"round": number, "acc": 0.7 - 0.1 * number, "asr": 0.9} for number in range(3)],
        "landscape": {"radius": 1.0, "clean": grid, "poison": grid},
    }
    units = [
        unit("badnets", **with_models(rates(0.7), rates(0.7)), figures=data),
        unit("badnets", 0.05, "partition.rate=0.4", **with_models(rates(0.7), rates(0.6))),
        unit("none", 0.0, figures=data | {"rounds": [], "landscape": {"radius": 1.0, "clean": grid}}),
    ]
    paths = draw(units, tmp_path / "out", form)
    assert [path.name.split("-")[0] for path in paths] == [
        "figure4",
        "figure5",
        "figure6",
        "figure4",
        "figure5",
        "figure7",
    ]
    assert sorted(paths) == sorted((tmp_path / "out").iterdir())
    for path in paths:
        if form == "png":
            with Image.open(path) as image:
                image.load()
                assert len(np.unique(np.asarray(image))) > 10
        else:
            assert path.read_text().lstrip().startswith("<?xml")
    with pytest.raises(BenchmarkError, match="no unit has data"):
        draw([unit("badnets")], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_landscape_has_the_networks_own_loss_in_its_middle():
    images = torch.randint(0, 256, (20, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels, spec = torch.arange(20) % 3, ModelSpec("test_resnet", 3, 16)
    run = Run(Pixels(images), labels, spec, choose_device("cpu"), torch.Generator().manual_seed(0))
    network = run.fresh_network()
    before = [parameter.clone() for parameter in network.parameters()]
    grid = curves.landscape(run, network, torch.arange(20))
    middle = curves.SIDE // 2
    own = torch.nn.functional.cross_entropy(run.infer(network, torch.arange(20)).logits, labels)
    assert grid[middle][middle] == pytest.approx(float(own), abs=2e-4)
    assert len({value for row in grid for value in row}) > curves.SIDE
    assert all(torch.equal(*pair) for pair in zip(before, network.parameters(), strict=True))
    assert grid == curves.landscape(run, network, torch.arange(20))


class Downloaded:
    """What torchvision gives, by number: an image and its class; Imagenette's classes have several names each."""

    classes = ("cat", ("dog", "hound"))

    def __init__(self, archive: str, train: bool) -> None:
        (Path(archive) / "archive.tgz").touch()
        self.count = 6 if train else 2

    def __getitem__(self, number: int) -> tuple[Image.Image, int]:
        if number >= self.count:
            raise IndexError
        return Image.new("RGB", (20, 10 + number), (number, 0, 0)), number % 2


def test_what_torchvision_downloads_becomes_image_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "_opener", lambda _: Downloaded)
    root = datasets.download("imagenette", tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["imagenette"]  # and no archive
    train, test = folder.index(root / "train"), folder.index(root / "test")
    assert train.classes == test.classes == ("cat", "dog")
    assert [file.path for file in train.files if file.label == 1] == [f"dog/{number:06d}.png" for number in (1, 3, 5)]
    with Image.open(root / "train" / "dog" / "000003.png") as image:
        assert (image.size, image.getpixel((0, 0))) == ((20, 13), (3, 0, 0))
    with pytest.raises(BenchmarkError, match="exists already"):
        datasets.download("imagenette", tmp_path / "data")


@pytest.mark.parametrize("error", [OSError("no network"), RuntimeError("corrupted")])
def test_a_download_that_fails_leaves_nothing(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(datasets, "_opener", lambda _: fail)
    with pytest.raises(BenchmarkError, match=f"{error}; try again"):
        datasets.download("cifar10", tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BenchmarkError, match="unknown data set 'mnist'; there are cifar10"):
        datasets.download("mnist", tmp_path)


def test_torchvisions_own_classes_are_asked_for(monkeypatch):
    asked = []
    for name in ("CIFAR10", "CIFAR100", "Imagenette"):
        monkeypatch.setattr(
            f"torchvision.datasets.{name}", lambda *given, name=name, **more: asked.append((name, given, more))
        )
    for name in datasets.DOWNLOADS:
        datasets._opener(name)("archive", False)
    assert asked == [
        ("CIFAR10", ("archive", False), {"download": True}),
        ("CIFAR100", ("archive", False), {"download": True}),
        ("Imagenette", ("archive", "val", "160px"), {"download": True}),
    ]
