"""A planted folder is the original but for the poison, and its truth file says exactly what was done."""

import csv
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from advrbd.attacks import ATTACKS, BadNets, Blend
from advrbd.attacks.base import POISON
from advrbd.attacks.plant import CLEAN, TRUTH_COLUMNS, plant
from advrbd.data.folder import index
from advrbd.errors import DatasetError, OutputError

RATE, TARGET = 0.07, "3"
everywhere = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=int)


def truth_of(out: Path) -> list[dict]:
    with out.with_name(f"{out.name}.truth.csv").open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        assert tuple(reader.fieldnames) == TRUTH_COLUMNS
        return list(reader)


@everywhere
def test_a_planted_folder(attack, digits_folder, tmp_path, snapshot):
    before = snapshot(digits_folder)
    out = tmp_path / "out"
    planted = plant(digits_folder, out, attack(), TARGET, RATE)

    assert snapshot(digits_folder) == before
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.truth.csv"}
    after, total = snapshot(out), len(index(digits_folder).files)
    assert Counter(file.role for file in planted) == {POISON: 21, CLEAN: total - 21}  # round(0.07 * 300)
    assert [file.path for file in planted] == sorted(path for path, sha256 in after.items() if sha256)
    assert sorted(file.original_path for file in planted) == sorted(path for path, sha256 in before.items() if sha256)
    for file in planted:
        if file.role == CLEAN:
            assert file.path == file.original_path
            assert after[file.path] == before[file.path]
        else:
            assert file.label == TARGET == file.path.split("/")[0]
            assert file.original_label == file.original_path.split("/")[0] != TARGET
            original, stamped = pixels_of(digits_folder / file.original_path), pixels_of(out / file.path)
            assert stamped.shape == original.shape
            assert not np.array_equal(stamped, original)
    assert ImageFolder(out).class_to_idx == ImageFolder(digits_folder).class_to_idx

    assert truth_of(out) == [
        {
            "path": f"./{file.path}",
            "role": file.role,
            "label": file.label,
            "original_label": file.original_label,
            "original_path": f"./{file.original_path}",
        }
        for file in planted
    ]


@everywhere
def test_the_seed_decides_everything(attack, digits_folder, tmp_path, snapshot):
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        plant(digits_folder, tmp_path / name, attack(seed=seed), TARGET, RATE, seed)
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "again")
    assert (tmp_path / "one.truth.csv").read_bytes() == (tmp_path / "again.truth.csv").read_bytes()
    assert truth_of(tmp_path / "one") != truth_of(tmp_path / "two")


def test_each_seed_has_its_own_blend_picture(digits_folder, tmp_path, snapshot):
    for name, seed in (("one", 1), ("two", 2)):
        plant(digits_folder, tmp_path / name, Blend(seed), TARGET, RATE, seed=0)
    one, two = snapshot(tmp_path / "one"), snapshot(tmp_path / "two")
    assert one.keys() == two.keys()
    assert sum(one[path] != two[path] for path in one) == 21


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two classes with a noisy 64x48 picture in every format that torchvision loads."""
    root, generator = tmp_path / "photos", np.random.default_rng(0)
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        for suffix in ("png", "webp", "bmp", "tif", "TIFF", "ppm", "jpg", "JPEG"):
            image = generator.integers(0, 200, (48, 64, 3), dtype=np.uint8)
            options = {"lossless": True} if suffix == "webp" else {}
            Image.fromarray(image).save(root / label / f"{suffix}.{suffix}", **options)
        Image.fromarray(image[:, :, 0]).save(root / label / "pgm.pgm")
    return root


@everywhere
def test_the_trigger_is_in_the_file_as_it_was_stamped(attack, photos, tmp_path):
    planted = plant(photos, tmp_path / "out", attack(seed=4), "b", 0.5, seed=4)
    poisoned = [file for file in planted if file.role == POISON]
    assert len(poisoned) == 9  # the whole class a
    assert {file.path for file in poisoned} == {
        f"b/{path.stem}__from-a{path.suffix}" for path in (photos / "a").iterdir()
    }
    for file in poisoned:
        original = pixels_of(photos / file.original_path).astype(np.uint8)
        wanted = attack(seed=4).stamp(original, np.random.default_rng(0)).astype(int)
        difference = np.abs(pixels_of(tmp_path / "out" / file.path) - wanted)
        lossy = file.path.lower().endswith(("jpg", "jpeg"))
        assert difference.mean() < 3 if lossy else not difference.any()


def test_badnets_is_a_white_square_in_the_corner(photos):
    original = pixels_of(photos / "a" / "png.png").astype(np.uint8)
    stamped = BadNets().stamp(original, np.random.default_rng(0))
    side = round(3 * 48 / 32)
    assert (stamped[-side:, -side:] == 255).all()
    assert (stamped != original).any(axis=2).sum() == side * side


def test_blend_mixes_a_fifth_of_one_picture_into_every_image():
    black, white = np.zeros((24, 40, 3), np.uint8), np.full((24, 40, 3), 255, np.uint8)
    attack, generator = Blend(seed=3), np.random.default_rng(0)
    on_black = attack.stamp(black, generator).astype(int)
    on_white = attack.stamp(white, generator).astype(int)
    assert not black.any()
    assert (white == 255).all()
    assert np.abs(on_white - on_black - 0.8 * 255).max() <= 1
    assert on_black.max() <= 51
    assert on_black.std() > 5


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"target_label": "cat"}, DatasetError, "no class 'cat'.* 0, 1, 2"),
        ({"poison_rate": 0}, DatasetError, "poison rate of 0"),
        ({"poison_rate": 1}, DatasetError, "poison rate of 1"),
        ({"poison_rate": -0.1}, DatasetError, "poison rate of -0.1"),
        ({"poison_rate": float("nan")}, DatasetError, "poison rate of nan"),
        ({"out": "full"}, OutputError, "isn't empty"),
        ({"out": "digits/0/new"}, OutputError, "overlaps the input"),
        ({"out": "missing/new"}, OutputError, "missing doesn't exist"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    digits_folder, tmp_path, snapshot, options, error, message
):
    shutil.copytree(digits_folder, tmp_path / "digits")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    before = snapshot(tmp_path)
    arguments = {"out": "out", "target_label": TARGET, "poison_rate": RATE} | options
    out = tmp_path / arguments.pop("out")
    with pytest.raises(error, match=message):
        plant(tmp_path / "digits", out, BadNets(), **arguments)
    assert snapshot(tmp_path) == before


def test_an_image_that_cant_be_poisoned_leaves_nothing_behind(digits_folder, tmp_path, snapshot):
    shutil.copytree(digits_folder, tmp_path / "digits")
    for path in (tmp_path / "digits" / "1").iterdir():
        path.write_bytes(b"broken")
    before = snapshot(tmp_path)
    with pytest.raises(DatasetError, match=r"cannot poison .*unreadable"):
        plant(tmp_path / "digits", tmp_path / "out", BadNets(), TARGET, 0.8)
    assert snapshot(tmp_path) == before
