"""What grows with the number of images stays within a budget, and what asks networks within the device's memory."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from advrbd import memory
from advrbd.config import PartitionSettings, TrainingSettings
from advrbd.data.pixels import Pixels
from advrbd.errors import AdvrbdError, DatasetError, DeviceError
from advrbd.memory import Memory, choose_memory, free_memory, in_words, peak_so_far
from advrbd.method.perturbation import divergence
from advrbd.model.device import Device
from advrbd.model.factory import ModelSpec, build
from advrbd.model.inference import Batches, infer, predict
from advrbd.model.training import given, train
from advrbd_cli.options import parse_size

CPU = Device(torch.device("cpu"), None, "in float32, since some processors round bfloat16 by the size of the batch")
GIB = 2**30


@pytest.mark.parametrize(
    ("text", "size"),
    [("4G", 4 * GIB), ("1.5g", 3 * GIB // 2), ("64MiB", 2**26), ("2 KB", 2048), ("4096", 4096), ("0B", 0)],
)
def test_sizes_are_powers_of_1024(text, size):
    assert parse_size(text) == size


def test_the_peak_is_in_bytes_and_nothing_where_no_system_says_it(monkeypatch):
    assert 50 * 2**20 < peak_so_far() < 100 * GIB  # torch alone takes more
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_so_far() == 0


@pytest.mark.parametrize("text", ["", "-1G", "4X", "G", "1e9", "4Gi G", "٤G"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(AdvrbdError, match="--memory-budget takes a size"):
        parse_size(text)


def make_group(folder: Path, names: tuple[str, str], limit: str, used: int, stale: str) -> None:
    folder.mkdir(parents=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{stale}\n")


def test_every_control_group_above_counts(tmp_path):
    names, own = ("memory.max", "memory.current"), tmp_path / "own"
    make_group(tmp_path / "cg/box/run", names, "max", 10, "inactive_file 0")
    (tmp_path / "cg/box/memory.max").write_text(f"{4 * GIB}\n")
    (tmp_path / "cg/box/memory.current").write_text(f"{3 * GIB}\n")
    (tmp_path / "cg/box/memory.stat").write_text(f"inactive_file {GIB}\n")
    own.write_text("0::/box/run\n")
    assert list(memory._rooms_of_cgroups(own, tmp_path / "cg")) == [2 * GIB]
    make_group(
        tmp_path / "cg/memory/old",
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        f"{GIB}",
        GIB // 2,
        "total_inactive_file 0",
    )
    own.write_text("7:cpu:/old\n4:memory:/old\n")
    assert list(memory._rooms_of_cgroups(own, tmp_path / "cg")) == [GIB // 2]
    assert list(memory._rooms_of_cgroups(tmp_path / "none", tmp_path)) == []


def test_by_default_half_of_what_is_free_is_the_budget(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_available", lambda: GIB)
    monkeypatch.setattr(memory, "_rooms_of_cgroups", lambda *_: iter([3 * GIB]))
    assert free_memory() == GIB
    assert (choose_memory().budget, choose_memory().asked) == (GIB // 2, False)
    assert choose_memory(7, tmp_path) == Memory(7, tmp_path, asked=True)
    assert choose_memory(7, tmp_path / "new").folder == tmp_path


def test_what_fits_nowhere_is_refused_with_the_way_out(tmp_path, monkeypatch):
    assert Memory(100, tmp_path).holds(100)
    monkeypatch.setattr(memory, "_is_in_memory", lambda _: False)
    assert not Memory(100, tmp_path).holds(101)
    with pytest.raises(DatasetError, match=r"no room for .*TMPDIR or --work-dir"):
        Memory(100, tmp_path).holds(2**60)
    monkeypatch.setattr(memory, "_is_in_memory", lambda _: True)
    with pytest.raises(DatasetError, match=r"itself kept in memory.*TMPDIR or --work-dir"):
        Memory(100, tmp_path).holds(101)


def test_only_a_budget_that_was_asked_for_is_a_limit(tmp_path):
    assert Memory(100, tmp_path).without(300, 5).budget == 0
    assert Memory(100, tmp_path, asked=True).without(30, 5).budget == 70
    with pytest.raises(DatasetError, match="raise --memory-budget"):
        Memory(100, tmp_path, asked=True).without(300, 5)


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="nobody says which file systems are in memory")
def test_file_systems_in_memory_are_known():
    assert not memory._is_in_memory(Path("/proc"))
    if Path("/dev/shm").is_mount():
        assert memory._is_in_memory(Path("/dev/shm"))


def test_sizes_in_words():
    assert [in_words(count) for count in (12, 2048, 3 * 2**20, GIB * 3 // 2)] == [
        "12 bytes",
        "2.0 KiB",
        "3.0 MiB",
        "1.5 GiB",
    ]


@pytest.fixture(scope="module")
def images() -> Pixels:
    generator = torch.Generator().manual_seed(0)
    return Pixels(torch.randint(0, 256, (150, 16, 16, 3), generator=generator, dtype=torch.uint8))


ON_A_GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
ON_A_CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you")


def network_for(most: int, error: RuntimeError = ON_A_GPU):
    """A network on a device that has memory for ``most`` images at a time."""
    network = build(ModelSpec("test_resnet", 4, 16), CPU, torch.Generator().manual_seed(1)).eval()

    def refuse(_, inputs):
        if len(inputs[0]) > most:
            raise error

    network.backbone.conv1.register_forward_pre_hook(refuse)
    return network


@pytest.mark.parametrize(("most", "error"), [(64, ON_A_GPU), (7, ON_A_CPU), (1, ON_A_GPU)])
def test_answers_dont_depend_on_how_much_memory_the_device_has(images, most, error):
    everything = torch.arange(150).flip(0)
    roomy, tight = (infer(network_for(size, error), images, everything, CPU, mirror=True) for size in (10**6, most))
    assert torch.allclose(roomy.logits, tight.logits, atol=1e-5)
    assert torch.allclose(roomy.features, tight.features, atol=1e-5)
    said = predict(network_for(most), images, everything, CPU)
    plainly = infer(network_for(10**6), images, everything, CPU)
    assert torch.equal(said.classes, plainly.logits.argmax(dim=1))
    assert torch.allclose(said.features, plainly.features, atol=1e-5)


def test_smaller_batches_draw_the_same_patches(images):
    settings, scores = PartitionSettings(), []
    shown = images.batch(torch.arange(60), CPU.device)
    for most in (60, 9):
        generator, batches = torch.Generator().manual_seed(5), Batches(60, CPU)
        scores.append(divergence(network_for(most), shown, settings, CPU, generator, batches))
        assert batches.size == (60 if most == 60 else 7)  # and stays, rather than to be found out again
    assert torch.allclose(*scores, atol=1e-5)


def test_no_memory_for_one_image_is_an_error_with_the_way_out(images):
    with pytest.raises(DeviceError, match=r"memory for a single image; try a smaller --image-size or --model$"):
        infer(network_for(0), images, torch.arange(10), CPU)


def test_training_batches_are_not_cut(images):
    settings = TrainingSettings(epochs=1, minimum_steps=1, batch_size=32)
    labels, everything = torch.zeros(150, dtype=torch.int64), torch.arange(150)
    with pytest.raises(DeviceError, match="training on 32 images of 16 px at once; try a smaller"):
        train(network_for(31), images, everything, given(labels), settings, CPU, torch.Generator())
    train(network_for(32), images, everything, given(labels), replace(settings), CPU, torch.Generator())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system doesn't say what is mapped")
def test_pixels_of_ten_times_the_budget_are_decoded_and_asked_about_within_it(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHIN_BUDGET, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},  # what glibc frees is gone
    )
    assert done.returncode == 0, done.stderr
    stored, budget, grown = map(int, done.stdout.split())
    assert stored >= 10 * budget
    assert grown < budget


WITHIN_BUDGET = """
import os, sys, threading
from pathlib import Path
import torch
from PIL import Image
from torch import nn
from advrbd.data import folder, pixels
from advrbd.memory import Memory
from advrbd.model.device import choose_device
from advrbd.model import inference
from advrbd.model.factory import ModelSpec, Network

SIDE, BUDGET, root = 128, 16 * 2**20, Path(sys.argv[1])
pixels.IN_FLIGHT, inference.BATCH = 64, 32  # what comes and goes may be seen at the one folder, not at the other


class Mean(nn.Module):
    forward_features = staticmethod(lambda images: images.mean(dim=(2, 3)))
    forward_head = staticmethod(lambda maps, pre_logits: maps)
    get_classifier = staticmethod(nn.Identity)


def make(name, count):
    for label in "ab":
        (root / name / label).mkdir(parents=True)
        Image.new("RGB", (8, 8), label * 3 == "bbb" and "red" or "blue").save(root / name / label / "0.png")
        for number in range(1, count // 2):
            os.link(root / name / label / "0.png", root / name / label / f"{number}.png")
    return folder.index(root / name)


def anonymous():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1])


def run(index):
    read, store = pixels.load(index, SIDE, memory=Memory(BUDGET, root))
    network = Network(Mean(), {}, ModelSpec("mean", 3, 4))
    inference.predict(network, store, torch.arange(len(store)), choose_device("cpu"))
    return store.images.nbytes


peak, over = [0], threading.Event()


def watch():
    while not over.wait(0.005):
        peak[0] = max(peak[0], anonymous())


large, small = make("large", 3500), make("small", 600)  # the small one shows what libraries and batches take
threading.Thread(target=watch).start()
try:
    Memory.holds, holds = (lambda *_: False), Memory.holds
    run(small)
    Memory.holds, before = holds, peak[0]
    print(run(large), BUDGET, peak[0] - before)
finally:
    over.set()
"""
