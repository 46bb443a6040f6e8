"""Augmentation of whole batches on the device: random flips and shifts drawn from an explicit generator."""

import torch
from torch.nn import functional


def augment(images: torch.Tensor, flip: bool, shift: int, generator: torch.Generator) -> torch.Tensor:
    """Flip half of the batch [B, C, H, W] left to right, and move each image by up to ``shift`` pixels.

    What moves in from outside is the reflected image. The draws come from ``generator``, which lives on the CPU so
    that they are the same on every device.
    """
    count = len(images)
    if flip:
        flipped = torch.rand(count, generator=generator).lt(0.5).to(images.device, non_blocking=True)
        images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
    if shift:
        height, width = images.shape[-2:]
        offsets = torch.randint(0, 2 * shift + 1, (2, count, 1), generator=generator)
        offsets = offsets.to(images.device, non_blocking=True)
        rows = torch.arange(height, device=images.device) + offsets[0]
        columns = torch.arange(width, device=images.device) + offsets[1]
        padded = functional.pad(images, (shift,) * 4, mode="reflect").permute(0, 2, 3, 1)
        picked = padded[torch.arange(count, device=images.device)[:, None, None], rows[:, :, None], columns[:, None, :]]
        images = picked.permute(0, 3, 1, 2)
    return images
