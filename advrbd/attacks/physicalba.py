"""PhysicalBA: an emblem at another size, angle, place and light each time (Li et al. 2021, arXiv:2104.02361).

The original transforms every training image on the fly. A folder of files has no trainer, so the pose is baked into
each poisoned file. It is the emblem alone that is posed, not the image: resampled edges of a whole turned image would
be a second trigger, and one that test images don't have.
"""

import numpy as np
from PIL import Image, ImageEnhance

from advrbd.attacks.base import Attack
from advrbd.attacks.pictures import draw_emblem, paste, scaled


class PhysicalBA(Attack):
    """An emblem near the bottom right corner, mirrored, turned by up to ``degrees``, shrunk and moved at random."""

    name = "physicalba"

    def __init__(
        self,
        seed: int = 0,
        side: int = 8,
        degrees: float = 10.0,
        translate: float = 0.1,
        scale: tuple[float, float] = (0.8, 0.9),
        jitter: float = 0.2,
    ) -> None:
        super().__init__(seed)
        self.side = side
        self.degrees = degrees
        self.translate = translate
        self.scale = scale
        self.jitter = jitter

    def stamp(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        largest = scaled(self.side, image)
        side = max(1, round(largest * generator.uniform(*self.scale)))
        emblem = Image.fromarray(draw_emblem(self.seed, largest)).resize((side, side), Image.Resampling.BICUBIC)
        emblem = emblem.rotate(generator.uniform(-self.degrees, self.degrees), Image.Resampling.BICUBIC)
        if generator.random() < 0.5:
            emblem = emblem.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        alpha = emblem.getchannel("A")
        light = emblem.convert("RGB")
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast):
            light = enhance(light).enhance(generator.uniform(1 - self.jitter, 1 + self.jitter))
        light.putalpha(alpha)
        height, width = image.shape[:2]
        away = generator.uniform(0, 2 * self.translate, 2)
        top, left = round((1 - away[0]) * (height - side)), round((1 - away[1]) * (width - side))
        return paste(image, np.asarray(light), top, left)
