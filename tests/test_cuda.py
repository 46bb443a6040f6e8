"""What only a GPU can show: the recorded steps train as plain ones do, and a whole scan finds what was planted."""

import pytest
import torch
from torch import nn

import advrbd
from advrbd.attacks import BadNets
from advrbd.attacks.plant import plant
from advrbd.benchmark.digits import digits, write_image_folder
from advrbd.config import TrainingSettings
from advrbd.data.pixels import Pixels
from advrbd.model.device import choose_device, repeatable
from advrbd.model.factory import ModelSpec, build
from advrbd.model.recorded import FIRST, Recorded
from advrbd.model.training import Objective, cross_entropy, given, train

pytestmark = pytest.mark.cuda
SETTINGS = TrainingSettings(epochs=4, minimum_steps=0, batch_size=32)


def drawn(seed: int = 0) -> tuple[Pixels, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (256, 16, 16, 3), generator=generator, dtype=torch.uint8)
    return Pixels(images.cuda()), torch.randint(0, 3, (256,), generator=generator)


def trained(name: str, objective: Objective | None) -> tuple[torch.Tensor, torch.Tensor, float]:
    """How a network's weights moved (float [P]) in a training with recorded steps, or, with an objective, with plain
    ones, where its batch statistics are (float [S]), and the last loss."""
    device, (pixels, labels) = choose_device("cuda"), drawn()
    generator, examples = torch.Generator().manual_seed(1), torch.arange(len(labels))
    with repeatable(device):
        network = build(ModelSpec(name, 3, 16), device, generator)
        before = torch.cat([value.detach().flatten().clone() for value in network.parameters()])
        loss = train(network, pixels, examples, given(labels), SETTINGS, device, generator, objective=objective)
    after = torch.cat([value.detach().flatten() for value in network.parameters()])
    statistics = [value.float().flatten() for value in network.buffers()]
    return after - before, torch.cat(statistics), loss


@pytest.mark.parametrize("name", ["resnet18", "test_resnet", "mobilenetv2_100", "convnext_atto", "test_vit"])
def test_a_recorded_step_trains_as_a_plain_one(name):
    """As far as rounding lets it: the plain ones end within a few per cent of it, and repeat themselves exactly."""
    moved, statistics, loss = trained(name, None)
    plainly_moved, plain_statistics, plain_loss = trained(name, cross_entropy)
    assert loss == pytest.approx(plain_loss, abs=0.1)
    assert (moved - plainly_moved).norm() < 0.15 * plainly_moved.norm()
    assert (statistics - plain_statistics).norm() < 0.05 * plain_statistics.norm()
    again = trained(name, None)
    assert torch.equal(again[0], moved)


def test_a_step_that_reads_back_runs_as_it_is():
    seen = []

    def step(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = (images.mean(dim=(1, 2, 3)) - labels).square().mean()
        seen.append(float(loss))  # can't be recorded
        return loss

    recorded, stream = Recorded(step), torch.cuda.current_stream()
    generator = torch.Generator().manual_seed(0)
    for number in range(FIRST + 4):
        images = torch.rand(8, 3, 4, 4, generator=generator).cuda()
        labels = torch.full((8,), number % 3).cuda()
        expected = (images.mean(dim=(1, 2, 3)) - labels).square().mean()
        assert float(recorded(images, labels)) == pytest.approx(float(expected))
    assert torch.cuda.current_stream() == stream


def test_replays_take_the_batch_they_are_given_and_keep_no_result():
    weight = nn.Parameter(torch.ones((), device="cuda"))

    def step(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (weight * images).mean().detach() + labels.float().mean()

    recorded, generator = Recorded(step), torch.Generator().manual_seed(0)
    losses, expected = [], []
    for number in range(FIRST + 5):
        images, labels = torch.rand(8, 3, 4, 4, generator=generator).cuda(), torch.full((8,), number).cuda()
        losses.append(recorded(images, labels))
        expected.append(float(images.mean()) + number)
    assert [float(loss) for loss in losses] == pytest.approx(expected, rel=1e-5)
    assert recorded._graph is not None


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    images, labels, _, _ = digits()
    place = tmp_path_factory.mktemp("gpu")
    write_image_folder(images, labels, place / "clean")
    planted = plant(place / "clean", place / "data", BadNets(), "1", 0.05, 0)
    return place, {entry.path for entry in planted if entry.role == "poison"}


def test_a_scan_on_the_gpu_finds_the_planted_files_and_says_the_same_twice(poisoned):
    place, planted = poisoned
    report = advrbd.scan(place / "data", advrbd.Config(device="cuda"))
    suspects = {entry.path for entry in report.suspects}
    assert report.verdict == "poisoned"
    assert len(suspects & planted) >= 0.9 * len(planted)
    assert len(suspects - planted) <= 5
    again = advrbd.scan(place / "data", advrbd.Config(device="cuda"))
    assert {entry.path for entry in again.suspects} == suspects


def test_an_unpoisoned_folder_is_clean_on_the_gpu(poisoned):
    report = advrbd.scan(poisoned[0] / "clean", advrbd.Config(device="cuda"))
    assert (report.verdict, len(report.suspects)) == ("clean", 0)
