"""What every job does first: index the folder, choose device and model, decode each image once."""

import os
from dataclasses import replace

import torch

from advrbd.config import MAX_SEED, Config
from advrbd.data import duplicates, pixels, sources
from advrbd.data.folder import OK, VANISHED, FolderIndex, check_every_class, lost_in_words
from advrbd.errors import AdvrbdError, DatasetError
from advrbd.events import Caution, Note, Notify, ignore
from advrbd.memory import choose_memory, in_words
from advrbd.model.device import Device, choose_device
from advrbd.model.factory import ModelSpec, Network, build, choose_model, explain_choice
from advrbd.model.run import Run
from advrbd.plan import table_bytes

MINIMUM_IMAGES = 100


def prepare(
    path: str | os.PathLike,
    config: Config,
    split: str | None = None,
    notify: Notify = ignore,
    root: str | os.PathLike | None = None,
    memory_budget: int | None = None,
    work_dir: str | os.PathLike | None = None,
) -> tuple[FolderIndex, Run]:
    """Index and decode the folder, and choose the device and the model, with a note on each choice.

    Raises an ``AdvrbdError`` when the folder, the model or the device can't be used, or the memory isn't enough.
    """
    memory = choose_memory(memory_budget, work_dir)
    index, device, network = choose(path, config, split, notify, root)
    tables = table_bytes(len(index.files), network, config)
    if tables > memory.budget and not memory.asked:
        what = f"about {in_words(tables)} besides their pixels"
        notify(Caution(f"{len(index.files)} images take {what}, more than half of the memory that is free"))
    left, spec = memory.without(tables, len(index.files)), network.spec
    index, images = pixels.load(index, spec.image_size, notify, config.decoding, left)
    check_enough(index, "readable images")
    for message in duplicates.warnings_of(index):
        notify(Caution(message))
    generator = torch.Generator().manual_seed(config.seed)
    if not spec.pretrained:  # timm's weights want timm's own
        mean, std = images.statistics(usable(index), generator)
        spec = replace(spec, mean=mean, std=std)
    labels = torch.tensor([file.label for file in index.files])
    means = device, generator, notify, index.classes
    return index, Run(images.to(device.device), labels, spec, *means, flip=config.flip)


def choose(
    path: str | os.PathLike,
    config: Config,
    split: str | None = None,
    notify: Notify = ignore,
    root: str | os.PathLike | None = None,
) -> tuple[FolderIndex, Device, Network]:
    """The index of the folder, the device, and a network of the model to try them with; nothing is decoded yet.

    Raises an ``AdvrbdError`` as ``prepare`` does.
    """
    if not 0 <= config.seed <= MAX_SEED:
        raise AdvrbdError(f"the seed has to be a number from 0 to {MAX_SEED}, not {config.seed}; choose another")
    index = sources.index(path, split, root)
    for line in (sources.told(index), sources.told_ignored(index)):
        if line:
            notify(Note(line))
    device = choose_device(config.device)
    notify(Note(f"device: {device.reason}"))
    check_enough(index)
    check_every_class(index)
    side = pixels.typical_side(index, config.decoding)
    name, arguments, size = choose_model(config.model, side, device, config.image_size, config.pretrained)
    spec = ModelSpec(name, len(index.classes), size, arguments=arguments, pretrained=config.pretrained)
    network = build(spec, device, torch.Generator())  # a model that doesn't fit is an error now, not after decoding
    notify(Note(f"model: {explain_choice(config.model, spec, side, device)}"))
    return index, device, network


def check_enough(index: FolderIndex, images: str = "images") -> None:
    """Raise ``DatasetError``, which says what became of the others, where too few of the files can be used."""
    statuses = index.statuses
    if statuses[OK] >= MINIMUM_IMAGES:
        return
    hint = "; paths in a table start from --root, with / between folders" if VANISHED in statuses else ""
    why = lost_in_words(statuses)
    lost = f" ({why} of {len(index.files)} listed{hint})" if why else ""
    raise DatasetError(f"{index.root} has fewer than {MINIMUM_IMAGES} {images}, too few to train on{lost}")


def usable(index: FolderIndex) -> torch.Tensor:
    """The images that could be read, as positions in the ``index``, int64 [M]."""
    return torch.tensor([position for position, file in enumerate(index.files) if file.status == OK])
