"""A planted folder is the original but for the poison, its truth file says what was done, triggers are as published."""

import csv
import math
import shutil
import tracemalloc
from collections import Counter
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import ImageFolder

from advrbd.attacks import (
    ATTACKS,
    SIG,
    AdaptiveBlend,
    AdaptivePatch,
    AllToAll,
    BadNets,
    Blend,
    Contested,
    Decoy,
    FaintPatch,
    Graded,
    LabelNoise,
    PhysicalBA,
    RandomPlace,
    TaCT,
    TwoBackdoors,
    WaNet,
    base,
)
from advrbd.attacks.base import CLEAN, COVER, MISLABELLED, POISON, Attack, Change, Stamp
from advrbd.attacks.pictures import draw_emblem
from advrbd.attacks.plant import TRUTH_COLUMNS, PlantedFile, plant
from advrbd.benchmark.digits import digits
from advrbd.errors import DatasetError, OutputError
from advrbd.events import Caution

RATE, TARGET = 0.07, "3"
LABELS = np.repeat(np.arange(10), 30)
ROLES = {name: {POISON: 21} for name in ATTACKS} | {  # 0.07 of 300 images; others at the attack's own rate
    "wanet": {POISON: 21, COVER: 15},
    "tact": {POISON: 21, COVER: 3},
    "adaptive-blend": {POISON: 21, COVER: 3},
    "adaptive-patch": {POISON: 21, COVER: 3},
    "contested": {POISON: 21, COVER: 9},
    "decoy": {POISON: 21, MISLABELLED: 9},
    "label-noise": {MISLABELLED: 21},
}
STAMPED = {name: attack for name, attack in ATTACKS.items() if POISON in ROLES[name]}
everywhere = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
every_trigger = pytest.mark.parametrize("attack", STAMPED.values(), ids=STAMPED)


def with_role(role: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("planted", [name for name in ATTACKS if role in ROLES[name]], indirect=True)


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=int)


def truth_of(out: Path) -> list[dict]:
    with out.with_name(f"{out.name}.truth.csv").open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        assert tuple(reader.fieldnames) == TRUTH_COLUMNS
        return list(reader)


@dataclass(frozen=True)
class Planted:
    """One attack on a copy of the digits: what was done, and fingerprints of both folders."""

    name: str
    source: Path
    out: Path
    files: tuple[PlantedFile, ...]
    source_before: dict[str, str]
    before: dict[str, str]
    after: dict[str, str]

    def having(self, role: str) -> list[PlantedFile]:
        return [file for file in self.files if file.role == role]

    def pixels(self, file: PlantedFile) -> tuple[np.ndarray, np.ndarray]:
        return pixels_of(self.source / file.original_path), pixels_of(self.out / file.path)


@pytest.fixture(scope="module", params=ATTACKS)
def planted(request, digits_folder, snapshot, tmp_path_factory) -> Planted:
    """Every attack in turn, planted in the 300 digits."""
    out, before = tmp_path_factory.mktemp(request.param) / "out", snapshot(digits_folder)
    files = plant(digits_folder, out, ATTACKS[request.param](), TARGET, RATE)
    return Planted(request.param, digits_folder, out, files, before, snapshot(digits_folder), snapshot(out))


# A planted folder


def test_the_source_folder_is_left_alone(planted):
    assert planted.source_before == planted.before


def test_as_many_files_get_a_role_as_asked_for(planted):
    wanted = ROLES[planted.name]
    assert Counter(file.role for file in planted.files) == wanted | {CLEAN: 300 - sum(wanted.values())}


def test_every_file_of_the_source_comes_back_once(planted):
    assert [file.path for file in planted.files] == sorted(path for path, sha256 in planted.after.items() if sha256)
    originals = sorted(path for path, sha256 in planted.before.items() if sha256)
    assert sorted(file.original_path for file in planted.files) == originals


def test_beside_the_copy_lies_its_truth_alone(planted):
    assert {path.name for path in planted.out.parent.iterdir()} == {"out", "out.truth.csv"}


def test_the_truth_file_says_what_was_done(planted):
    assert truth_of(planted.out) == [
        {
            "path": f"./{file.path}",
            "role": file.role,
            "label": file.label,
            "original_label": file.original_label,
            "original_path": f"./{file.original_path}",
        }
        for file in planted.files
    ]


def test_labels_are_folders_before_and_after(planted):
    for file in planted.files:
        assert file.label == file.path.split("/")[0]
        assert file.original_label == file.original_path.split("/")[0]
    assert ImageFolder(planted.out).class_to_idx == ImageFolder(planted.source).class_to_idx


def test_clean_files_are_copied_byte_for_byte(planted):
    for file in planted.having(CLEAN):
        assert file.path == file.original_path
        assert planted.after[file.path] == planted.before[file.path]


@with_role(POISON)
def test_poisoned_files_lie_in_the_folder_of_the_label_that_the_attack_gives(planted):
    moves = {(file.original_label, file.label) for file in planted.having(POISON)}
    if planted.name == "all-to-all":
        assert moves <= {(str(label), str((label + 1) % 10)) for label in range(10)}
        assert len(moves) > 1
    elif planted.name == "two-backdoors":
        assert all(before != after for before, after in moves)
        assert {after for _, after in moves} == {TARGET, "4"}
    elif planted.name == "sig":
        assert moves == {(TARGET, TARGET)}
    else:
        assert all(before != TARGET == after for before, after in moves)


@with_role(COVER)
def test_covers_keep_their_folder_and_their_name(planted):
    assert all(file.path == file.original_path for file in planted.having(COVER))


@with_role(POISON)
def test_poison_and_covers_have_new_pixels_and_the_old_size(planted):
    for file in planted.having(POISON) + planted.having(COVER):
        original, stamped = planted.pixels(file)
        assert stamped.shape == original.shape
        assert not np.array_equal(stamped, original)


@with_role(MISLABELLED)
def test_mislabelled_files_have_the_old_bytes_and_a_wrong_label(planted):
    for file in planted.having(MISLABELLED):
        assert planted.after[file.path] == planted.before[file.original_path]
        assert file.label != file.original_label


@everywhere
def test_the_seed_decides_everything(attack, digits_folder, tmp_path, snapshot):
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        plant(digits_folder, tmp_path / name, attack(seed=seed), TARGET, RATE, seed)
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "again")
    assert (tmp_path / "one.truth.csv").read_bytes() == (tmp_path / "again.truth.csv").read_bytes()
    assert truth_of(tmp_path / "one") != truth_of(tmp_path / "two")


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


@pytest.mark.parametrize("attack", [BadNets, Blend, WaNet])  # those that need no chance for their trigger
def test_the_trigger_is_in_the_file_as_it_was_stamped(attack, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "MOST_OF_SOURCES", 1)  # a file of every format
    files = plant(photos, tmp_path / "out", attack(seed=4), "b", 0.5, seed=4)
    poisoned = [file for file in files if file.role == POISON]
    assert {file.path for file in poisoned} == {
        f"b/{path.stem}__from-a{path.suffix}" for path in (photos / "a").iterdir()
    }
    for file in poisoned:
        original = pixels_of(photos / file.original_path).astype(np.uint8)
        wanted = attack(seed=4).stamp(original, np.random.default_rng(0)).astype(int)
        difference = np.abs(pixels_of(tmp_path / "out" / file.path) - wanted)
        lossy = file.path.lower().endswith(("jpg", "jpeg"))
        assert difference.mean() < 3 if lossy else not difference.any()


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


def test_what_cant_be_poisoned_or_read_is_left_out_and_told(digits_folder, tmp_path, snapshot):
    shutil.copytree(digits_folder, tmp_path / "digits")
    broken = sorted((tmp_path / "digits" / "1").iterdir())[:20]
    for path in broken:
        path.write_bytes(b"broken")
    (tmp_path / "digits" / "2" / "lost.png").symlink_to("nowhere")
    before, told = snapshot(tmp_path / "digits"), []
    files = plant(tmp_path / "digits", tmp_path / "out", BadNets(), TARGET, 0.5, notify=told.append)
    assert snapshot(tmp_path / "digits") == before
    copied = {file.original_path for file in files}
    missing = {f"1/{path.name}" for path in broken} - copied
    poisoned = [file for file in files if file.role == POISON]
    assert len(poisoned) == round(0.5 * len(files))
    assert not {file.original_path for file in poisoned} & {f"1/{path.name}" for path in broken}
    assert 0 < len(missing) <= 20 and len(files) == 300 - len(missing)
    (caution,) = (event for event in told if isinstance(event, Caution))
    assert f"{len(missing) + 1} files of " in caution.message
    assert caution.message.endswith(f"aren't in the copy: 1 refused-link, {len(missing)} unreadable")


def test_an_attack_that_would_poison_nothing_is_refused(digits_folder, tmp_path):
    with pytest.raises(DatasetError, match="badnets would poison no file"):
        plant(digits_folder, tmp_path / "out", BadNets(), TARGET, 0.001)
    assert list(tmp_path.iterdir()) == []


# Which images an attack takes


def plan(
    attack: Attack, labels: np.ndarray = LABELS, target: int = 3, classes: int = 10, rate: float = RATE, seed: int = 0
) -> list[Change]:
    return attack.plan(labels, target, classes, rate, np.random.default_rng(seed))


def labels_of(changes: list[Change], role: str) -> set[int]:
    return {int(LABELS[change.position]) for change in changes if change.role == role}


@given(data=st.data())
@everywhere
def test_a_plan_makes_sense_for_any_labels_and_rate(attack, data):
    classes = data.draw(st.integers(2, 5))
    labels = np.array(data.draw(st.lists(st.integers(0, classes - 1), max_size=40)), dtype=np.int64)
    target = data.draw(st.integers(0, classes - 1))
    rate = data.draw(st.floats(0, 1, exclude_min=True, exclude_max=True))
    changes = plan(attack(), labels, target, classes, rate)

    positions = [change.position for change in changes]
    assert len(set(positions)) == len(positions)
    assert set(positions) <= set(range(len(labels)))
    main_role = MISLABELLED if attack is LabelNoise else POISON
    assert sum(change.role == main_role for change in changes) <= round(rate * len(labels))
    for change in changes:
        own = labels[change.position]
        assert 0 <= change.label < classes
        assert change.role in (POISON, COVER, MISLABELLED)
        assert (change.stamp is None) == (change.role == MISLABELLED)
        assert (change.label == own) == (change.role == COVER or attack is SIG)


@pytest.mark.parametrize(("attack", "sources"), [(SIG, 24), (TaCT, 24), (BadNets, 216), (WaNet, 216), (AllToAll, 240)])
def test_no_attack_takes_all_that_it_could_poison(attack, sources):
    assert sum(change.role == POISON for change in plan(attack(), rate=0.99)) == sources


def test_covers_are_taken_from_what_poison_leaves():
    changes = plan(WaNet(), rate=0.89)
    assert Counter(change.role for change in changes) == {POISON: 216, COVER: 15}
    assert len({change.position for change in changes}) == 216 + 15


def test_sig_poisons_the_target_class_alone():
    assert labels_of(plan(SIG()), POISON) == {3}


@pytest.mark.parametrize(("target", "source"), [(3, 0), (1, 0), (0, 1)])
class TestTaCT:
    def test_poison_comes_from_one_class_alone(self, target, source):
        assert labels_of(plan(TaCT(), target=target), POISON) == {source}

    def test_covers_come_from_the_classes_that_are_neither_source_nor_target(self, target, source):
        changes = plan(TaCT(cover_rate=0.5), target=target)
        assert labels_of(changes, COVER) == set(range(10)) - {source, target}

    def test_success_is_measured_on_the_source_class(self, target, source):
        assert set(LABELS[TaCT().victims(LABELS, target)]) == {source}


def test_success_is_measured_on_all_other_classes_unless_the_attack_says_otherwise():
    assert set(LABELS[BadNets().victims(LABELS, 3)]) == set(range(10)) - {3}


def test_all_to_all_moves_every_class_to_the_next():
    changes = plan(AllToAll(), rate=0.5)
    assert {(int(LABELS[change.position]), change.label) for change in changes} == {
        (i, (i + 1) % 10) for i in range(10)
    }
    assert AllToAll().victims(LABELS, 3).all()
    assert AllToAll().poisoned_label(np.array([0, 8, 9]), 3, 10).tolist() == [1, 9, 0]


@pytest.mark.parametrize("rate", [0.01, 0.03, 0.05, 0.07, 0.11, 0.5])
def test_two_backdoors_share_the_rate_between_two_targets(rate):
    changes = plan(TwoBackdoors(), rate=rate)
    counts = Counter(change.label for change in changes)
    assert counts.keys() == {3, 4}
    assert abs(counts[3] - counts[4]) <= 1
    assert len({change.position for change in changes}) == counts.total() == round(rate * 300)


def test_two_backdoors_have_the_triggers_of_badnets_and_blend(glyph):
    stamps = {change.label: change.stamp for change in plan(TwoBackdoors(seed=2))}
    for label, attack in ((3, BadNets(2)), (4, Blend(2))):
        assert np.array_equal(stamps[label](glyph, chance()), attack.stamp(glyph, chance()))


@pytest.mark.parametrize(("target", "source"), [(3, 4), (9, 0)])
def test_decoys_come_from_the_class_after_the_target(target, source):
    decoys = [change for change in plan(Decoy(), target=target, rate=0.5) if change.role == MISLABELLED]
    assert {(int(LABELS[change.position]), change.label) for change in decoys} == {(source, target)}


def test_contested_covers_come_from_all_classes_but_the_target():
    assert labels_of(plan(Contested(cover_rate=0.5)), COVER) == set(range(10)) - {3}


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_label_noise_gives_every_label_but_the_own(classes):
    labels = np.arange(1000) % classes
    changes = plan(LabelNoise(), labels, classes=classes, rate=0.9)
    given_labels = {(int(labels[change.position]), change.label) for change in changes}
    assert given_labels == {(own, other) for own in range(classes) for other in range(classes) if own != other}


# What a trigger does to pixels


def chance(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def flat(value: int, height: int = 32, width: int = 32) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


@cache
def digit(width: int, height: int) -> np.ndarray:
    """A handwritten digit of that size that can't be written to."""
    image = np.array(Image.fromarray(digits()[0][0]).resize((width, height), Image.Resampling.BICUBIC))
    image.flags.writeable = False
    return image


@pytest.fixture(scope="module")
def glyph() -> np.ndarray:
    return digit(32, 32)


def opacity(stamp: Stamp, seed: int = 0, shape: tuple[int, int] = (32, 32)) -> np.ndarray:
    """How much of each pixel is trigger rather than image, float [height, width] with errors below 0.005.

    What a trigger mixes in is the same on black and on white; what is left of the image is the difference.
    """
    black, white = (stamp(flat(value, *shape), chance(seed)).astype(float) for value in (0, 255))
    return (1 - (white - black) / 255).mean(axis=2)


def box(changed: np.ndarray) -> tuple[int, int, int, int]:
    """First and last row, first and last column where ``changed`` is true."""
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


def quadrants(image: np.ndarray) -> list[np.ndarray]:
    """Top left, top right, bottom left, bottom right."""
    return [half for rows in np.split(image, 2) for half in np.split(rows, 2, axis=1)]


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (40, 24), (224, 160)], ids="{0[0]}x{0[1]}".format)
@every_trigger
def test_an_image_of_any_size_is_copied_and_changed(attack, size):
    image = digit(*size).copy()
    trigger = attack(seed=1)
    for stamp in (trigger.stamp, trigger.stamp_cover, trigger.stamp_test):
        stamped = stamp(image, chance())
        assert stamped.shape == image.shape
        assert stamped.dtype == np.uint8
        assert not np.array_equal(stamped, image)
        assert np.array_equal(image, digit(*size))


@every_trigger
def test_chance_decides_a_stamp(attack, glyph):
    assert np.array_equal(attack().stamp(glyph, chance(5)), attack().stamp(glyph, chance(5)))


@pytest.mark.parametrize("attack", [Blend, WaNet, PhysicalBA, AdaptiveBlend, AdaptivePatch, RandomPlace, FaintPatch])
def test_each_seed_has_a_trigger_of_its_own(attack, glyph):
    assert not np.array_equal(attack(1).stamp(glyph, chance()), attack(2).stamp(glyph, chance()))


@pytest.mark.parametrize("attack", [BadNets, Blend, SIG, WaNet, TaCT, FaintPatch])
def test_these_triggers_leave_nothing_to_chance(attack, glyph):
    assert np.array_equal(attack().stamp(glyph, chance(1)), attack().stamp(glyph, chance(2)))


def test_badnets_is_a_white_square_in_the_corner_and_nothing_else():
    image = digit(64, 48)
    side = round(3 * 48 / 32)
    wanted = image.copy()
    wanted[-side:, -side:] = (255, 255, 255)
    assert np.array_equal(BadNets().stamp(image, chance()), wanted)


def test_blend_mixes_a_fifth_of_one_picture_into_every_pixel():
    assert np.abs(opacity(Blend(3).stamp, shape=(24, 40)) - 0.2).max() < 0.005
    picture = Blend(3).stamp(flat(0), chance())
    assert picture.max() <= 51
    assert picture.std() > 5


@pytest.mark.parametrize("grey", [0, 25, 128, 255])
def test_sig_adds_six_waves_of_40_grey_levels_over_the_columns_and_clips(grey):
    stamped = SIG().stamp(flat(grey, 24, 50), chance())
    wave = [grey + 40 * math.sin(2 * math.pi * 6 * column / 50) for column in range(50)]
    wanted = [min(max(round(value), 0), 255) for value in wave]
    assert (stamped == np.array(wanted)[None, :, None]).all()


def test_sig_leaves_its_images_in_place_with_the_wave_in_them(digits_folder, tmp_path):
    wave = np.round(40 * np.sin(2 * np.pi * 6 * np.arange(16) / 16))[None, :, None]
    poisoned = [file for file in plant(digits_folder, tmp_path / "out", SIG(), TARGET, RATE) if file.role == POISON]
    assert len(poisoned) == 21
    for file in poisoned:
        assert file.path == file.original_path
        original = pixels_of(digits_folder / file.original_path)
        assert np.abs(pixels_of(tmp_path / "out" / file.path) - np.clip(original + wave, 0, 255)).max() == 0


class TestWaNet:
    """On a ramp, brightness tells where a pixel came from."""

    shapes = pytest.mark.parametrize(("axis", "height", "width"), [(0, 16, 16), (1, 16, 16), (0, 31, 16), (1, 16, 31)])

    @staticmethod
    def came_from(stamp: Stamp, axis: int, height: int, width: int, seed: int = 0) -> np.ndarray:
        """The column (axis 0, as in the field) or row of ``image`` that each pixel shows, to within 0.1."""
        where = np.mgrid[:height, :width][1 - axis]
        levels = 255 // where.max()
        return stamp(np.dstack([levels * where] * 3).astype(np.uint8), chance(seed))[..., 0] / levels

    @pytest.mark.parametrize("strength", [0.5, 2.0])
    def test_the_field_has_4x4_values_of_mean_size_strength_both_ways(self, strength):
        field = WaNet(strength=strength).field.numpy()
        assert field.shape == (1, 2, 4, 4)
        assert np.abs(field).mean() == pytest.approx(strength)
        assert field.min() < 0 < field.max()

    @shapes
    def test_pixels_move_by_the_field_over_the_height(self, axis, height, width):
        attack = WaNet(seed=5, strength=4)
        rows, columns = np.meshgrid(*(np.linspace(0, end - 1, 4, dtype=int) for end in (height, width)), indexing="ij")
        start, end = (columns, width - 1) if axis == 0 else (rows, height - 1)
        shift = attack.field[0, axis].numpy() / height * end / 2  # a grid from -1 to 1 spans all pixels
        moved = self.came_from(attack.stamp, axis, height, width)[rows, columns]
        assert np.abs(moved - np.clip(start + shift, 0, end)).max() < 0.1

    def test_a_picture_of_one_colour_stays_as_it_is(self):
        for stamp in (WaNet().stamp, WaNet().stamp_cover):
            assert np.array_equal(stamp(flat(77), chance()), flat(77))

    @shapes
    def test_the_default_warp_stays_below_one_pixel(self, axis, height, width):
        straight = self.came_from(lambda image, _: image, axis, height, width)
        shift = np.abs(self.came_from(WaNet().stamp, axis, height, width) - straight)
        assert 0.05 < shift.mean() < shift.max() < 1

    def test_covers_differ_from_poison_and_from_each_other(self, glyph):
        attack = WaNet()
        stamped = [attack.stamp(glyph, chance()), *(attack.stamp_cover(glyph, chance(seed)) for seed in range(3))]
        assert len({image.tobytes() for image in stamped}) == 4

    def test_a_plan_gives_covers_the_stamp_of_covers(self, glyph):
        attack = WaNet()
        warped = attack.stamp(glyph, chance())
        for change in plan(attack):
            assert np.array_equal(change.stamp(glyph, chance()), warped) == (change.role == POISON)

    @pytest.mark.parametrize("axis", [0, 1])
    def test_covers_stray_from_the_warp_by_up_to_one_unit(self, axis):
        attack, unit = WaNet(), 15 / 16 / 2  # in pixels
        poison = self.came_from(attack.stamp, axis, 16, 16)
        stray = np.abs([self.came_from(attack.stamp_cover, axis, 16, 16, seed) - poison for seed in range(20)])
        assert stray.max() < unit + 0.1
        assert stray[:, 2:-2, 2:-2].mean() == pytest.approx(unit / 2, rel=0.05)  # edges are clamped


class TestPhysicalBA:
    still = partial(PhysicalBA, degrees=0, translate=0, scale=(1, 1), jitter=0)

    def test_no_two_poses_are_alike(self, glyph):
        assert len({PhysicalBA().stamp(glyph, chance(seed)).tobytes() for seed in range(20)}) == 20

    def test_the_emblem_stays_at_the_bottom_right(self, glyph):
        for seed in range(100):
            changed = (PhysicalBA().stamp(glyph, chance(seed)) != glyph).any(axis=2)
            top, _, left, _ = box(changed)
            assert min(top, left) >= round(0.8 * (32 - 7))  # of the widest emblem, 0.9 * 8 pixels

    def test_without_a_pose_it_is_the_emblem_or_its_mirror_image_in_the_corner(self):
        stamped = [self.still(seed=1).stamp(flat(255), chance(seed)) for seed in range(20)]
        one, other = (np.frombuffer(image, np.uint8).reshape(32, 32, 3) for image in {i.tobytes() for i in stamped})
        assert np.array_equal(one[-8:, -8:], other[-8:, :-9:-1])
        assert box((one != 255).any(axis=2)) == (24, 31, 24, 31)

    @pytest.mark.parametrize(
        "part", [{"degrees": 10}, {"translate": 0.1}, {"scale": (0.5, 1)}, {"jitter": 0.2}], ids=str
    )
    def test_each_part_of_a_pose_varies_on_its_own(self, part, glyph):
        attack = PhysicalBA(**{"degrees": 0, "translate": 0, "scale": (1, 1), "jitter": 0} | part)
        assert len({attack.stamp(glyph, chance(seed)).tobytes() for seed in range(20)}) > 3


class TestAdaptiveBlend:
    def test_half_of_the_16_pieces_are_those_of_blend_and_the_others_untouched(self, glyph):
        whole = AdaptiveBlend(seed=3).stamp_test(glyph, chance())
        stamped = AdaptiveBlend(seed=3).stamp(glyph, chance())
        shown = []
        for top in range(0, 32, 8):
            for left in range(0, 32, 8):
                piece = slice(top, top + 8), slice(left, left + 8)
                shown.append(not np.array_equal(stamped[piece], glyph[piece]))
                assert np.array_equal(stamped[piece], whole[piece] if shown[-1] else glyph[piece])
        assert sum(shown) == 8

    def test_the_pieces_are_chosen_anew_for_each_image(self):
        chosen = {(opacity(AdaptiveBlend().stamp, seed)[::8, ::8] > 0.1).tobytes() for seed in range(10)}
        assert len(chosen) == 10

    def test_the_trained_model_is_shown_all_of_blend(self, glyph):
        assert np.array_equal(AdaptiveBlend(4).stamp_test(glyph, chance()), Blend(4).stamp(glyph, chance()))


class TestAdaptivePatch:
    def test_an_image_shows_one_of_four_corners_at_its_opacity(self):
        found = {}
        for seed in range(30):
            peaks = [quadrant.max() for quadrant in quadrants(opacity(AdaptivePatch().stamp, seed))]
            assert sum(peak > 0 for peak in peaks) == 1
            corner = int(np.argmax(peaks))
            found[corner] = round(float(peaks[corner]), 2)
        assert found == {0: 0.5, 1: 0.2, 2: 0.5, 3: 0.3}

    def test_the_trained_model_is_shown_two_opaque_emblems(self):
        peaks = [quadrant.max() for quadrant in quadrants(opacity(AdaptivePatch().stamp_test))]
        assert peaks == [1, 0, 1, 0]

    def test_the_emblems_are_eight_pixels_wide_in_the_very_corners(self):
        shown = opacity(AdaptivePatch().stamp_test) > 0
        assert box(shown[:16]) == (0, 7, 0, 7)
        assert box(shown[16:]) == (8, 15, 0, 7)


def test_random_place_is_the_same_emblem_somewhere_else_each_time():
    emblems, places = set(), set()
    for seed in range(200):
        stamped = RandomPlace().stamp(flat(255), chance(seed))
        top, bottom, left, right = box((stamped != 255).any(axis=2))
        emblems.add(stamped[top : bottom + 1, left : right + 1].tobytes())
        places.add((top, left))
    assert len(emblems) == 1
    assert (bottom - top + 1, right - left + 1) == (6, 6)
    assert len(places) > 150
    assert {min(place) for place in np.array(list(places)).T} == {0}
    assert {max(place) for place in np.array(list(places)).T} == {32 - 6}


def test_faint_patch_is_a_quarter_opaque_at_most_and_in_the_corner():
    shown = opacity(FaintPatch().stamp)
    assert shown.max() == pytest.approx(0.25, abs=0.005)
    assert box(shown > 0) == (24, 31, 24, 31)


def test_graded_is_a_corner_patch_at_any_opacity_up_to_a_half():
    shown = [opacity(Graded().stamp, seed) for seed in range(50)]
    peaks = np.array([one.max() for one in shown])
    assert peaks.min() < 0.1 < 0.4 < peaks.max() <= 0.505
    assert box(np.max(shown, axis=0) > 0) == (24, 31, 24, 31)


def test_graded_is_opaque_to_the_trained_model():
    assert opacity(Graded().stamp_test).max() == 1


def test_label_noise_has_no_trigger(glyph):
    assert np.array_equal(LabelNoise().stamp_test(glyph, chance()), glyph)
    assert not LabelNoise().victims(np.arange(3), 1).any()  # so there is no success to measure


def test_the_emblem_for_a_large_photo_takes_little_memory():
    tracemalloc.start()
    try:
        draw_emblem.__wrapped__(7, 512)
        assert tracemalloc.get_traced_memory()[1] < 2**28
    finally:
        tracemalloc.stop()


def test_large_emblems_are_the_small_ones_enlarged():
    small, large = (Image.fromarray(draw_emblem(7, side)).convert("RGB") for side in (32, 512))
    shrunk = np.asarray(large.resize((32, 32), Image.Resampling.BOX), dtype=int)
    assert np.abs(shrunk - np.asarray(small))[8:24, 8:24].mean() < 3
