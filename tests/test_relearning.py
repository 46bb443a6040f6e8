"""What the clean model makes of the suspects: falsified labels are told from true ones, each image gets its own."""

import numpy as np
import pytest
import torch
from small import Rows

from advrbd.config import Config, RelearningSettings, TrainingSettings
from advrbd.data.pixels import Pixels
from advrbd.method.relearning import _seen_from_all_sides, relabel
from advrbd.model.device import choose_device
from advrbd.model.factory import ModelSpec
from advrbd.model.run import Run

SIDE, CLASSES, EACH = 8, 4, 60
STRIPES = torch.zeros(SIDE, SIDE, 3, dtype=torch.uint8)
STRIPES[3] = 200  # brighter than any shape, in the row that class 3 is told by


@pytest.fixture
def images() -> torch.Tensor:
    """Sixty images of each of four classes: a faint row somewhere else on each, a plain one for the class."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, 40, (CLASSES * EACH, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
    for number in range(len(drawn)):
        # which part of its row an image shows differs, so that the mean of a class looks like none of its images
        start = int(torch.randint(0, SIDE, (), generator=generator))
        drawn[number, number // EACH, [start, start - 1, start - 2], :] = 160
    return drawn


def seen(images: torch.Tensor, labels: torch.Tensor, suspects: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    spec, generator = ModelSpec("test_resnet", CLASSES, SIDE), torch.Generator().manual_seed(0)
    run = Run(Pixels(images), labels, spec, choose_device("cpu"), generator)
    kept = torch.arange(len(labels))[~torch.isin(torch.arange(len(labels)), suspects)]
    return relabel(run, Rows(CLASSES), suspects, kept, RelearningSettings())


def brightened(images: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    made = images.clone()
    made[where] = (images[where].int() + STRIPES).clamp(max=255).byte()
    return made


TRUE = torch.arange(CLASSES).repeat_interleave(EACH)


class Peeking(Rows):
    """Remembers what it is shown."""

    def __init__(self) -> None:
        super().__init__(CLASSES)
        self.shown: list[torch.Tensor] = []

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        self.shown.append(pixels)
        return super().features(pixels)


@pytest.mark.parametrize(("flip", "sides"), [(True, 10), (False, 5)])
def test_a_suspect_is_seen_from_many_sides_and_the_mean_is_what_it_shows(flip, sides):
    side = 32
    drawn = torch.randint(0, 256, (3, side, side, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    means = torch.zeros(3).long(), ModelSpec("x", CLASSES, side), choose_device("cpu"), torch.Generator()
    run = Run(Pixels(drawn), *means, flip=flip)
    model = Peeking()
    mean = _seen_from_all_sides(run, model, torch.tensor([2, 0]), RelearningSettings())
    padded = np.pad(drawn[[2, 0]].numpy(), ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")  # 2 of 32, as in training
    moves = [(2, 2), (4, 2), (0, 2), (2, 4), (2, 0)]
    expected = [padded[:, down : down + side, right : right + side] for down, right in moves]
    expected = [view for moved in expected for view in (moved, moved[:, :, ::-1])[: 1 + flip]]
    shown = [(pixels * 255).round().byte().permute(0, 2, 3, 1).numpy() for pixels in model.shown]
    assert len(shown) == sides
    assert {view.tobytes() for view in shown} == {np.ascontiguousarray(view).tobytes() for view in expected}
    said = [model.classify(Rows(CLASSES).features(pixels)).softmax(dim=1) for pixels in model.shown]
    assert torch.allclose(mean, torch.stack(said).mean(dim=0), atol=1e-5)


def test_a_pattern_that_hides_a_true_label_is_taken_out_and_the_label_stays(images):
    suspects = torch.arange(0, 30)
    hidden = brightened(images, suspects)
    model = Rows(CLASSES)
    assert model.classify(model.features(hidden[suspects].permute(0, 3, 1, 2) / 255)).argmax(dim=1).eq(3).all()
    labels, confidence = seen(hidden, TRUE, suspects)
    assert labels.eq(0).all()
    assert (confidence > 0.5).float().mean() > 0.5


def test_falsified_labels_are_told_and_each_image_gets_its_own(images):
    suspects = torch.cat([torch.arange(start, start + 10) for start in (EACH, 2 * EACH, 3 * EACH)])
    labels = TRUE.clone()
    labels[suspects] = 0
    found, confidence = seen(images, labels, suspects)
    assert torch.equal(found, TRUE[suspects])
    assert (confidence > 0.5).all()


def test_a_difference_that_turns_any_image_into_the_class_is_no_evidence(images):
    """Where all images of a class look alike, their mean is the class itself, and everything gets it."""
    alike = images.clone()
    for label in range(CLASSES):
        alike[label == TRUE] = 0
        alike[label == TRUE, label] = 160
    suspects = torch.arange(EACH, EACH + 30)
    labels = TRUE.clone()
    labels[suspects] = 0
    found, _ = seen(alike, labels, suspects)
    assert found.eq(1).all()


def test_a_class_without_any_image_left_is_asked_plainly(images):
    labels = TRUE.clone()
    labels[TRUE == 0] = 1
    suspects = (labels == 1).nonzero().flatten()
    found, _ = seen(images, labels, suspects)
    assert torch.equal(found, TRUE[suspects])


@pytest.mark.parametrize(
    ("count", "epochs"),
    [(100, 400), (1_000, 80), (5_000, 80), (10_000, 52), (20_000, 32), (50_000, 32), (1_281_167, 32)],
)
def test_the_clean_model_learns_a_small_folder_for_longer_within_limits(count, epochs):
    assert RelearningSettings().clean.length(count)[2] == epochs


@pytest.mark.parametrize(
    ("count", "epochs"), [(500, 134), (2_500, 22), (10_000, 16), (25_000, 16), (30_000, 13), (50_000, 8), (10**6, 8)]
)
def test_large_folders_are_learned_in_fewer_passes(count, epochs):
    assert Config().warm_up.length(count)[2] == epochs


def test_what_is_needed_at_least_is_done_whatever_would_do():
    settings = TrainingSettings(epochs=2, minimum_steps=1000, plenty_steps=100, fewest_epochs=1)
    assert settings.length(1280) == (128, 10, 100)


def test_a_training_is_as_long_as_its_settings_say(images):
    heard = []
    labels = torch.arange(len(images)) // EACH
    spec = ModelSpec("resnet10t", CLASSES, SIDE)
    run = Run(Pixels(images), labels, spec, choose_device("cpu"), torch.Generator().manual_seed(0), heard.append)
    settings = TrainingSettings(epochs=1, minimum_steps=0, enough_steps=100, most_epochs=3, batch_size=64)
    run.train(run.fresh_network(), torch.arange(len(images)), settings, "learn")
    assert settings.length(len(images)) == (64, 3, 3)
    assert [event.done for event in heard] == [192, 384, 576]
