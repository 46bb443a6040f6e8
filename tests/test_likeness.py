"""Frames of a scene are told from images that are merely alike, with a trigger or without."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_image

from advrbd.attacks import ATTACKS
from advrbd.data.pixels import Pixels
from advrbd.method import likeness
from advrbd.method.likeness import scenes
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
    assert sum(whole) >= 0.75 * len(places)
    for row, others in ((row, found[torch.arange(len(found)) != number]) for number, row in enumerate(found)):
        assert not torch.isin(row, others).any()


@pytest.mark.parametrize("name", ["badnets", "blend", "wanet"])
def test_a_trigger_makes_no_scene_of_what_carries_it(places, name):
    attack, generator = ATTACKS[name](seed=1), np.random.default_rng(0)
    images = [np.asarray(place.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for place in places]
    run = run_on([attack.stamp_test(image, generator) for image in images])
    assert len(scenes(run, torch.arange(len(places))).unique()) == len(places)


def test_images_without_contrast_are_one_scene_and_too_many_images_none(monkeypatch):
    run = run_on([np.full((SIDE, SIDE, 3), shade, np.uint8) for shade in (0, 0, 90, 255)])
    assert scenes(run, torch.arange(4)).unique().tolist() == [0]
    assert scenes(run, torch.tensor([1, 3])).tolist() == [0, 0]
    monkeypatch.setattr(likeness, "MOST", 3)
    assert scenes(run, torch.arange(4)).tolist() == [0, 1, 2, 3]
