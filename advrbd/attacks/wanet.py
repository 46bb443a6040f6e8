"""WaNet: a smooth warp of the whole image; covers are warped at random (Nguyen & Tran 2021, arXiv:2102.10369)."""

import numpy as np
import torch
from torch.nn import functional

from advrbd.attacks.base import Attack


class WaNet(Attack):
    """A warp field of ``cells`` x ``cells`` values drawn from the seed, of mean absolute value ``strength``, scaled up.

    Covers get the warp plus fresh noise of up to one unit of it and keep their label, so that no other warp works.
    """

    name = "wanet"

    def __init__(self, seed: int = 0, cells: int = 4, strength: float = 0.5, cover_rate: float = 0.05) -> None:
        super().__init__(seed)
        self.cover_rate = cover_rate
        noise = torch.rand(1, 2, cells, cells, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        self.field = strength * noise / noise.abs().mean()

    def cover_sources(self, labels: np.ndarray, target_label: int) -> np.ndarray:
        return np.ones(len(labels), dtype=bool)

    def stamp(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return self._warp(image, 0.0)

    def stamp_cover(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return self._warp(image, generator.uniform(-1, 1, (*image.shape[:2], 2)))

    def _warp(self, image: np.ndarray, noise: np.ndarray | float) -> np.ndarray:
        height, width = image.shape[:2]
        upsampled = functional.interpolate(self.field, (height, width), mode="bicubic", align_corners=True)
        straight = torch.stack(
            torch.meshgrid(torch.linspace(-1, 1, width), torch.linspace(-1, 1, height), indexing="xy"), dim=-1
        )
        moved = straight + (upsampled[0].permute(1, 2, 0) + torch.as_tensor(noise, dtype=torch.float32)) / height
        pixels = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
        warped = functional.grid_sample(pixels, moved.clamp(-1, 1)[None], align_corners=True)
        return warped[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()
