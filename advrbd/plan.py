"""What a scan is going to take, before it takes it: files, memory and time.

Time is counted in images that are trained on, at the speed of a few steps of the very network on this machine. To ask
a network takes a third of that: a forward pass, where training has a backward pass of twice the work besides.
"""

import time
from collections import Counter
from dataclasses import asdict, dataclass, replace

import torch

from advrbd.config import Config
from advrbd.data.folder import OK, FolderIndex
from advrbd.data.pixels import Pixels, decoding_seconds
from advrbd.memory import Memory, peak_so_far
from advrbd.method.held_out import FEWEST_CLASSES
from advrbd.method.separation import equal_classes
from advrbd.model.device import Device
from advrbd.model.factory import ModelSpec, Network
from advrbd.model.training import given, train

SCHEMA = "advrbd.plan/1"
ROW_BYTES = 1024  # measured: 640 a file for its place in the index, before and after it is read, and in the report
FEATURE_COPIES = 6.5  # measured at the peak of separation, in copies of the features as float32
FORWARD = 1 / 3  # of the work of training on an image
ENOUGH_SECONDS = 1.0  # of measuring


@dataclass(frozen=True)
class Plan:
    """What a scan is going to take. Memory and files in bytes, times in seconds; all but the counts are estimates.

    ``statuses`` counts the files by their status as far as it is known before they are opened. ``passes``: how often
    each image goes through the network in one look, by purpose; besides, up to ``groups`` groups get trainings that
    show ``group_images`` images each. ``pixels_place`` is the folder of their temporary file, or ``memory``.
    ``tables``: what is kept of the images besides their pixels. ``first_look_seconds`` is with the hearing of what it
    leaves, which a scan that finds nothing ends with; ``clean_seconds`` is what ``clean`` adds. ``peak_memory`` is that
    of the whole process; of a temporary file, the system keeps in memory what it has room for.
    """

    files: int
    statuses: dict[str, int]
    file_bytes: int
    classes: int
    device: str
    model: ModelSpec
    passes: dict[str, float]
    groups: int
    group_images: int
    looks: int
    pixels: int
    pixels_place: str
    tables: int
    memory_budget: int
    peak_memory: int
    images_per_second: float
    decoding_seconds: float
    first_look_seconds: float
    other_look_seconds: float
    clean_seconds: float

    def as_dict(self) -> dict:
        return {"schema": SCHEMA} | asdict(self)


def make_plan(index: FolderIndex, network: Network, device: Device, config: Config, memory: Memory) -> Plan:
    """The plan of a scan of ``index`` with such a ``network``. Trains it for a moment, and decodes a few of the files.

    Raises ``DatasetError`` where there is no room for the pixels, ``DeviceError`` where training takes more memory than
    the device has.
    """
    spec, statuses = network.spec, index.statuses
    count, pixels = statuses[OK], len(index.files) * spec.image_size**2 * 3
    tables = table_bytes(len(index.files), network, config)
    held = memory.without(tables, len(index.files)).holds(pixels)
    before = peak_so_far()
    speed = training_speed(network, device, config)
    batches = 2 * (peak_so_far() - before)  # on a CPU, images are scored 256 at a time, and trained on half as many
    passes, group_images = _passes(count, config), _group_images(config)
    sizes = Counter(file.label for file in index.files if file.status == OK)
    groups = _groups(count, equal_classes(torch.tensor([*sizes.values()])), config)
    trained = passes["training"] + passes["scoring"] * _work_of_scoring(config) + passes["inference"] * FORWARD
    look = (count * trained + groups * group_images) / speed
    is_heard = config.looks > 1 and spec.class_count >= FEWEST_CLASSES
    heard = count * config.warm_up.halved().length(count)[2] / speed if is_heard else 0.0
    return Plan(
        files=len(index.files),
        statuses=dict(statuses),
        file_bytes=sum(file.length for file in index.files),
        classes=len(index.classes),
        device=device.reason,
        model=spec,
        passes=passes,
        groups=groups,
        group_images=group_images,
        looks=config.looks,
        pixels=pixels,
        pixels_place="memory" if held else str(memory.folder),
        tables=tables,
        memory_budget=memory.budget,
        peak_memory=before + batches + tables + (pixels if held else 0),
        images_per_second=round(speed, 1),
        decoding_seconds=round(decoding_seconds(index, spec.image_size, config.decoding), 1),
        first_look_seconds=round(look + 2 * group_images / speed + heard, 1),  # with the control, both of its halves
        other_look_seconds=round(look, 1),
        clean_seconds=round(count * _cleaning_epochs(count, config) / speed, 1),
    )


def table_bytes(count: int, network: Network, config: Config) -> int:
    """What a scan keeps of ``count`` images besides their pixels, at its peak, in bytes: a row in the index and the
    report, the features, and what each enhanced model says."""
    spec, device = network.spec, network.mean.device
    with torch.no_grad():
        features = network.eval().features(torch.zeros(1, 3, spec.image_size, spec.image_size, device=device)).shape[1]
    return round(count * (ROW_BYTES + FEATURE_COPIES * 4 * features + 4 * _groups(count, spec.class_count, config)))


def training_speed(network: Network, device: Device, config: Config) -> float:
    """Images per second that ``network`` is trained on; it learns nothing from it."""
    spec, batch, generator = network.spec, config.warm_up.batch_size, torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (batch, spec.image_size, spec.image_size, 3), dtype=torch.uint8, generator=generator)
    labels, steps, spent = torch.arange(batch) % spec.class_count, 1, 0.0
    while True:  # the first step has much to prepare; where it takes long all the same, it is measure enough
        settings = replace(config.warm_up, epochs=1, minimum_steps=steps, learning_rate=0.0)
        started = time.perf_counter()
        train(network, Pixels(noise), torch.arange(batch), given(labels), settings, device, generator)
        spent = time.perf_counter() - started
        if spent > ENOUGH_SECONDS:
            return steps * batch / spent
        steps *= 2


def _passes(count: int, config: Config) -> dict[str, float]:
    """How often each of ``count`` images goes through the network in one look: trained on, scored, asked."""
    settings, partition = config.warm_up, config.partition
    return {"training": settings.length(count)[2], "scoring": partition.masks * (partition.steps + 2), "inference": 1}


def _cleaning_epochs(count: int, config: Config) -> int:
    """How often the clean model sees each of ``count`` images, with the relabelled ones once more."""
    settings = config.relearning
    return settings.clean.length(count)[2] + settings.fine_tuning.length(count)[2]


def _work_of_scoring(config: Config) -> float:
    """What a pass of scoring takes of one of training: its steps have gradients, the first and the last have none."""
    steps = config.partition.steps
    return (steps + 2 * FORWARD) / (steps + 2)


def _groups(size: int, class_count: int, config: Config) -> int:
    """How many groups one look at ``size`` images of classes of one size examines at most: of a class cut in two, both
    halves; that what is left of it is examined as well is rare."""
    settings = config.separation
    places = [sum(numbers) for numbers in settings.places(size, class_count)]
    return sum(places) + dict(zip(settings.parts, places, strict=True)).get(2, 0)


def _group_images(config: Config) -> int:
    """How many images a training of an enhanced model shows; a natural group takes one such training, mostly."""
    return config.enhancement.steps * config.enhancement.training.batch_size
