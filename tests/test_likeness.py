"""Frames of a scene are told from images that are merely alike, with a trigger or without."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from sklearn.datasets import load_digits, load_sample_image

from advrbd.attacks import ATTACKS
from advrbd.data.pixels import Pixels
from advrbd.method import likeness
from advrbd.method.findings import Findings
from advrbd.method.likeness import count_pictures, scenes
from advrbd.method.look import _tell_of_scenes
from advrbd.model.device import choose_device
from advrbd.model.factory import ModelSpec
from advrbd.model.run import Run

SIDE, FRAMES = 32, 6


@pytest.fixture(scope="module")
def places() -> list[Image.Image]:
    """Parts of two photographs that don't overlap, without the sky."""
    photos = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    boxes = [(left, top, left + 130, top + 130) for left in (0, 150, 300, 450) for top in (130, 280)]
    return [photo.crop(box) for photo in photos for box in boxes]


def film(place: Image.Image, generator: np.random.Generator) -> list[np.ndarray]:
    """Frames of a place: moved, mirrored, brighter or darker."""
    frames = []
    for _ in range(FRAMES):
        left, top = generator.integers(0, 10, 2).tolist()
        frame = place.crop((left, top, left + 120, top + 120)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        frame = ImageEnhance.Brightness(frame).enhance(generator.uniform(0.9, 1.1))
        frames.append(np.asarray(frame)[:, ::-1] if generator.random() < 0.5 else np.asarray(frame))
    return frames


def run_on(images: list[np.ndarray]) -> Run:
    pixels = Pixels(torch.from_numpy(np.stack(images)))
    labels, spec = torch.zeros(len(images), dtype=torch.int64), ModelSpec("test_resnet", 2, SIDE)
    return Run(pixels, labels, spec, choose_device("cpu"), torch.Generator())


def test_frames_of_a_place_are_a_scene_and_other_places_are_none_of_it(places):
    generator = np.random.default_rng(0)
    run = run_on([frame for place in places for frame in film(place, generator)])
    found = scenes(run, torch.arange(len(run.labels))).reshape(len(places), FRAMES)
    whole = [len(row.unique()) == 1 for row in found]
    assert sum(whole) >= 0.8 * len(places)
    assert len(found.unique()) >= 0.7 * len(places)  # petals are alike


@pytest.mark.parametrize("name", ["badnets", "blend", "wanet"])
def test_a_trigger_makes_no_scene_of_what_carries_it(places, name):
    attack, generator = ATTACKS[name](seed=1), np.random.default_rng(0)
    images = [np.asarray(place.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for place in places]
    everything = torch.arange(len(places))
    before = scenes(run_on(images), everything)
    after = scenes(run_on([attack.stamp_test(image, generator) for image in images]), everything)
    assert len(after.unique()) >= len(before.unique()) > 0.7 * len(places)


def test_images_without_contrast_are_like_no_other_and_too_many_are_not_compared(monkeypatch, places):
    photo = np.asarray(places[0].resize((SIDE, SIDE)))
    run = run_on([np.full((SIDE, SIDE, 3), 0, np.uint8), photo, np.full((SIDE, SIDE, 3), 0, np.uint8), photo])
    assert scenes(run, torch.arange(4)).tolist() == [0, 1, 2, 1]
    assert scenes(run, torch.tensor([3, 0, 1])).tolist() == [0, 1, 0]
    assert scenes(run, torch.arange(0)).tolist() == []
    monkeypatch.setattr(likeness, "MOST", 3)
    assert scenes(run, torch.arange(4)).tolist() == [0, 1, 2, 3]


def test_what_others_link_is_one_scene(monkeypatch):
    monkeypatch.setattr(likeness, "CHUNK", 7)
    steps = np.linspace(0, 1, 40)  # from one picture to its negative, each step a small one
    picture = np.asarray(Image.fromarray(load_sample_image("flower.jpg")).resize((SIDE, SIDE)), np.float64)
    other = np.asarray(Image.fromarray(load_sample_image("china.jpg")).resize((SIDE, SIDE)), np.float64)
    chain = [(picture * (1 - step) + other * step).astype(np.uint8) for step in steps]
    order = np.random.default_rng(0).permutation(len(chain))
    run = run_on([chain[number] for number in order])
    assert scenes(run, torch.arange(len(chain))).unique().tolist() == [0]
    assert len(scenes(run, torch.tensor([int(np.argmin(order)), int(np.argmax(order))])).unique()) == 2


def test_frames_of_a_place_are_few_pictures_and_digits_of_a_kind_are_many(places):
    """Most zeros are one scene, by way of others, but they aren't one picture."""
    generator = np.random.default_rng(0)
    frames = run_on([frame for place in places[:4] for frame in film(place, generator)])
    assert 3 <= count_pictures(frames, torch.arange(4 * FRAMES)) <= 10
    assert count_pictures(run_on([np.asarray(place.resize((SIDE, SIDE))) for place in places]), torch.arange(16)) > 12
    images, labels = load_digits(return_X_y=True)
    zeros = images[labels == 0].reshape(-1, 8, 8, 1).repeat(3, axis=3).astype(np.uint8)
    run, everything = run_on(list(zeros)), torch.arange(len(zeros))
    assert scenes(run, everything).bincount().max() > 0.6 * len(zeros)
    assert count_pictures(run, everything) > 0.25 * len(zeros)


def test_pictures_are_counted_of_none_of_one_of_black_ones_and_of_too_many(monkeypatch, places):
    photo = np.asarray(places[0].resize((SIDE, SIDE)))
    run = run_on([np.zeros((SIDE, SIDE, 3), np.uint8), photo, np.zeros((SIDE, SIDE, 3), np.uint8), photo[:, ::-1]])
    assert [count_pictures(run, torch.arange(count)) for count in range(5)] == [0, 1, 2, 3, 3]
    monkeypatch.setattr(likeness, "MOST_COUNTED", 3)
    assert count_pictures(run, torch.arange(4)) == 4


def test_suspects_of_few_scenes_are_told(places):
    run = run_on([frame for place in places[:2] for frame in film(place, np.random.default_rng(0)) * 2])
    findings = Findings.nothing(len(run.labels))
    findings.suspects[:], findings.evidence[0] = True, {}
    _tell_of_scenes(run, findings)
    assert findings.evidence[0] == {"scenes": 2}
    assert findings.cautions[0].startswith("the 24 suspects of class '0' show 2 scenes only: ")
    findings = Findings.nothing(len(run.labels))
    findings.suspects[::6] = True
    _tell_of_scenes(run, findings)
    assert findings.cautions == []
