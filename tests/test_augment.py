"""Flips and shifts come from the generator alone, and each image is moved exactly as numpy would move it."""

import numpy as np
import pytest
import torch

from advrbd.data.augment import augment

COUNT, SIDE = 200, 8


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(COUNT, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def moved(image: np.ndarray, flip: bool, row: int, column: int, shift: int) -> np.ndarray:
    padded = np.pad(image[:, :, ::-1] if flip else image, ((0, 0), (shift, shift), (shift, shift)), mode="reflect")
    return padded[:, row : row + SIDE, column : column + SIDE]


@pytest.mark.parametrize(("flip", "shift"), [(True, 0), (False, 2), (True, 2), (True, 1)])
def test_every_image_is_a_flip_and_a_shift_of_itself_and_all_of_them_occur(images, flip, shift):
    result = augment(images, flip, shift, torch.Generator().manual_seed(0)).numpy()
    assert result.shape == images.shape
    ways = [
        (mirrored, row, column)
        for mirrored in ((False, True) if flip else (False,))
        for row in range(2 * shift + 1)
        for column in range(2 * shift + 1)
    ]
    drawn = []
    for before, after in zip(images.numpy(), result, strict=True):
        fitting = [way for way in ways if np.array_equal(moved(before, *way, shift), after)]
        assert len(fitting) == 1
        drawn += fitting
    for place, values in enumerate(zip(*ways, strict=True)):
        assert {way[place] for way in drawn} == set(values)
    if flip:
        assert 0.35 < np.mean([way[0] for way in drawn]) < 0.65


def test_the_draws_come_from_the_generator_alone(images):
    before = images.clone()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = augment(images, True, 2, torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(augment(images, True, 2, torch.Generator().manual_seed(5)), first)
    assert not torch.equal(augment(images, True, 2, torch.Generator().manual_seed(6)), first)
    assert torch.equal(images, before)


def test_a_generator_goes_on_drawing(images):
    generator = torch.Generator().manual_seed(0)
    assert not torch.equal(augment(images, True, 1, generator), augment(images, True, 1, generator))


def test_nothing_to_do_changes_nothing(images):
    assert torch.equal(augment(images, False, 0, torch.Generator()), images)
