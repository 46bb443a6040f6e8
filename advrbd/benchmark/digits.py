"""A small real image set that needs no download: scikit-learn's handwritten digits as an image folder.

1,797 grey 8x8 scans of handwritten digits (UCI Optical Recognition of Handwritten Digits, test part), enlarged to
16x16; four fifths are written out, one fifth is held out for measuring.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

SIDE = 16


def digits(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images uint8 [1437, 16, 16, 3] and labels int64, then held-out images and labels."""
    raw, labels = load_digits(return_X_y=True)
    grey = np.round(raw.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    images = np.stack(
        [np.asarray(Image.fromarray(i).resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")) for i in grey]
    )
    order = np.random.default_rng(seed).permutation(len(images))
    train, held_out = np.sort(order[: len(order) * 4 // 5]), np.sort(order[len(order) * 4 // 5 :])
    return images[train], labels[train], images[held_out], labels[held_out]


def write_image_folder(images: np.ndarray, labels: np.ndarray, root: Path) -> None:
    """Write ``images`` uint8 [N, S, S, 3] as PNG files ``root/LABEL/NUMBER.png``."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:05d}.png")
