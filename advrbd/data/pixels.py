"""The pixel store: every image decoded once to uint8 at the training size, in RAM or in a memory-mapped file.

Files are read once: the SHA-256 is of the very bytes that were decoded. Images are squashed to a square, never
cropped: a trigger in a corner has to survive. Pixels reach the models as floats in [0, 1], channels first.
"""

import hashlib
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch

from advrbd.config import DecodingSettings
from advrbd.data.decoders import Decoders, how_many
from advrbd.data.files import opened
from advrbd.data.folder import OK, FolderIndex, ImageFile, Read, check_every_class
from advrbd.errors import DatasetError
from advrbd.events import Notify, Progress, ignore
from advrbd.memory import Memory, choose_memory, in_words

DEFAULTS = DecodingSettings()
ASKED, MEASURED, TIMED = 2000, 200, 100  # images at most: for the mean, for the side, for the time of decoding
IN_FLIGHT, IN_FLIGHT_BYTES = 1024, 32 * 2**20  # decoded files that may wait for one before them
BATCH, BATCH_BYTES = 16, 4 * 2**20  # what a process gets at once: waiting for it file by file takes longer


@dataclass(frozen=True)
class Pixels:
    """``images`` uint8 [N, size, size, 3], channels last, on the CPU or resident on an accelerator."""

    images: torch.Tensor

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> int:
        """Side of the square images, in pixels."""
        return self.images.shape[1]

    def to(self, device: torch.device) -> "Pixels":
        """The store on ``device`` where it takes less than half of the memory free there, else as it is."""
        if device.type != "cuda" or self.images.nbytes > torch.cuda.mem_get_info(device)[0] / 2:
            return self
        return replace(self, images=self.images.to(device))

    def batch(self, indices: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The images at ``indices`` as float32 [B, 3, size, size] in [0, 1] on ``device``, channels-last in memory."""
        chosen = self.images[indices.to(self.images.device, non_blocking=True)].to(device, non_blocking=True)
        return chosen.permute(0, 3, 1, 2).float().div_(255)

    def statistics(
        self, examples: torch.Tensor, generator: torch.Generator
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel, in [0, 1], over a random sample of ``examples`` (int64)."""
        chosen = examples[torch.randperm(len(examples), generator=generator)[:ASKED]]
        images = self.batch(chosen, torch.device("cpu"))
        std = images.std(dim=(0, 2, 3)).clamp_min(0.05)
        return tuple(images.mean(dim=(0, 2, 3)).tolist()), tuple(std.tolist())


@dataclass(frozen=True)
class Extended(Pixels):
    """A store with the images ``more`` uint8 [K, size, size, 3] after its own N, which are not copied."""

    more: torch.Tensor

    def __len__(self) -> int:
        return len(self.images) + len(self.more)

    def batch(self, indices: torch.Tensor, device: torch.device) -> torch.Tensor:
        count = len(self.images)
        added = (indices >= count).nonzero().flatten()  # where the indices are, on the CPU: no GPU has to be waited for
        batch = super().batch(indices.where(indices < count, 0), device)
        if len(added):
            batch[added.to(device)] = Pixels(self.more).batch(indices[added] - count, device)
        return batch


def load(
    index: FolderIndex,
    size: int,
    notify: Notify = ignore,
    settings: DecodingSettings = DEFAULTS,
    memory: Memory | None = None,
) -> tuple[FolderIndex, Pixels]:
    """Read, hash and decode every file of ``index`` at ``size`` pixels, within the budget of ``memory``.

    Returns the index with the status and SHA-256 of each file, and the pixels, row i belonging to
    ``index.files[i]``; the row of a file whose status isn't ``ok`` is black and must not be used.
    Raises ``DatasetError`` when a class has no readable image, or there is no room for the pixels, ``DecoderError``
    when nothing can be decoded here.
    """
    images = _allocate(len(index.files), size, memory or choose_memory())
    files = []
    for row, (pixels, status, sha256) in enumerate(_decoded(index, size, settings)):
        if pixels is not None:
            images[row] = pixels
        files.append(index.files[row].having(status, sha256))
        if row % 256 == 255 or row + 1 == len(index.files):
            notify(Progress("decode", row + 1, len(index.files)))
    index = replace(index, files=tuple(files))
    check_every_class(index)
    return index, Pixels(torch.from_numpy(images))


def _decoded(index: FolderIndex, size: int, settings: DecodingSettings) -> Iterator[tuple]:
    """Pixels, status and SHA-256 of the files in the order of the index, a bounded number of them in flight."""

    def read(files: Sequence[ImageFile]) -> list[tuple[np.ndarray | None, str, str]]:
        rows = []
        for batch in _batches(files, read_bytes):
            images = iter(decoders.decode([data for data, _, _ in batch if data is not None], size))
            rows += [(None, status, "") if data is None else (*next(images), sha256) for data, status, sha256 in batch]
        return rows

    count = how_many(len(index.files))
    waiting = min(IN_FLIGHT, max(4 * BATCH * count, IN_FLIGHT_BYTES // (size * size * 3)))
    with (
        opened(index.place) as read_bytes,
        ThreadPoolExecutor(count) as pool,
        Decoders(settings, count) as decoders,
    ):
        for start in range(0, len(index.files), waiting):
            stop = min(start + waiting, len(index.files))
            for rows in pool.map(read, [index.files[at : min(at + BATCH, stop)] for at in range(start, stop, BATCH)]):
                yield from rows


def _batches(files: Sequence[ImageFile], read: Read) -> Iterator[list[tuple[bytes | None, str, str]]]:
    """Bytes, status and SHA-256 of ``files``, not much more than ``BATCH_BYTES`` at once."""
    batch, length = [], 0
    for file in files:
        batch.append(read(file.path) if file.status == OK else (None, file.status, ""))
        length += len(batch[-1][0] or b"")
        if length > BATCH_BYTES:
            yield batch
            batch, length = [], 0
    yield batch


def typical_side(index: FolderIndex, settings: DecodingSettings = DEFAULTS) -> int:
    """Median side, in pixels, of a sample of the images, from their headers alone."""
    sides = []
    with opened(index.place) as read, Decoders(settings, 1) as decoders:
        for batch in _batches(_some(index, MEASURED), read):
            sizes = decoders.measure([data for data, _, _ in batch if data is not None])
            sides += [(width * height) ** 0.5 for width, height in sizes]
    if not sides:
        raise DatasetError(f"no readable image in {index.root}")
    return max(1, round(float(np.median(sides))))


def decoding_seconds(index: FolderIndex, size: int, settings: DecodingSettings) -> float:
    """How long ``load`` is going to take, in seconds, by a sample of the images."""
    chosen, count = _some(index, TIMED), len(index.files)
    with opened(index.place) as read, Decoders(settings, 1) as decoders:
        decoders.measure([b""])  # its start doesn't count
        started = time.perf_counter()
        for batch in _batches(chosen, read):
            decoders.decode([data for data, _, _ in batch if data is not None], size)
        spent = time.perf_counter() - started
    return spent / max(1, len(chosen)) * count / how_many(count)


def _some(index: FolderIndex, count: int) -> list[ImageFile]:
    """Up to ``count`` of the files that may hold images, always the same of a folder. Drawn by all names together:
    if every so-many-th were taken, a few small files in the right places would choose the size for all."""
    usable = [file for file in index.files if file.status == OK]
    names = hashlib.sha256(b"\0".join(os.fsencode(file.path) for file in index.files))
    return random.Random(names.digest()).sample(usable, min(count, len(usable)))


def _allocate(count: int, size: int, memory: Memory) -> np.ndarray:
    shape = (count, size, size, 3)
    total = count * size * size * 3
    if memory.holds(total):
        return np.zeros(shape, np.uint8)
    try:
        # unlinked: gone with the process, whatever ends that
        with tempfile.TemporaryFile(prefix="advrbd-", dir=memory.folder) as file:
            reserve = getattr(os, "posix_fallocate", lambda handle, _, length: os.truncate(handle, length))
            reserve(file.fileno(), 0, total)  # now, since a full disk found out later kills the process
            return np.memmap(file, np.uint8, "r+", shape=shape)
    except OSError as error:
        room = f"no temporary file for {in_words(total)} of pixels in {memory.folder}: {error.strerror}"
        raise DatasetError(f"{room}; set TMPDIR or --work-dir to a folder on a disk with room") from error
