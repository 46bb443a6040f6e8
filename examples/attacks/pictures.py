"""Draw every attack on handwritten digits: the clean image, the stamped one, and their difference times ten.

    python examples/attacks/pictures.py --out attacks.png --seed 0

A row is an attack that leads to class 1, with one image for each of its ways to stamp; the text on the left says in
the same order what becomes of their labels. The difference is drawn on middle grey and clipped. The last column is the
trigger as the trained model is shown it, where that differs. The images are from scikit-learn's digits (UCI Optical
Recognition of Handwritten Digits, CC BY 4.0), enlarged, with colours of ink and paper drawn from the seed.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from advrbd.attacks import ATTACKS, Attack
from advrbd.attacks.base import Change
from advrbd.benchmark.digits import digits

TARGET = 1
GAP, LABEL_WIDTH, HEADER_HEIGHT = 4, 116, 20
HEADER = ("clean", "stamped", "x10", "clean", "stamped", "x10", "at test")
PAGE = (205, 210, 220)  # white would swallow white squares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("attacks.png"), help="PNG file to write")
    parser.add_argument("--side", type=int, default=64, help="side of an image in pixels")
    parser.add_argument("--seed", type=int, default=0, help="seed of digits, colours and triggers")
    arguments = parser.parse_args()

    rows = [draw_row(name, attack(arguments.seed), arguments) for name, attack in ATTACKS.items()]
    sheet = Image.fromarray(np.concatenate([draw_header(arguments.side), *rows]))
    sheet.save(arguments.out, optimize=True)
    print(f"{arguments.out}: {sheet.width}x{sheet.height} pixels, {arguments.out.stat().st_size / 1000:.0f} kB")


def draw_row(name: str, attack: Attack, arguments: argparse.Namespace) -> np.ndarray:
    """What the attack makes of one image for each of its ways to stamp."""
    images, labels, _, _ = digits()
    generator = np.random.default_rng(arguments.seed)
    plan = attack.plan(labels, TARGET, 10, 0.05, generator)
    one_of_each = list({change.stamp: change for change in reversed(plan)}.values())[::-1]

    cells, text = [], [name]
    for change in one_of_each:
        clean = colour(images[change.position], arguments.side, generator)
        stamped = change.stamp(clean, generator) if change.stamp else clean
        cells += [clean, stamped, difference(clean, stamped)]
        text.append(describe(change, int(labels[change.position])))
    at_test = None
    if type(attack).stamp_test is not Attack.stamp_test:
        at_test = attack.stamp_test(cells[0], generator)
    return lay_out(text, cells, at_test, arguments.side)


def describe(change: Change, label: int) -> str:
    return f"{change.role}: {label}" + (f" -> {change.label}" if change.label != label else "")


def colour(image: np.ndarray, side: int, generator: np.random.Generator) -> np.ndarray:
    """A grey digit uint8 [S, S, 3] enlarged, in a light ink on dark paper; neither is black or white."""
    ink, paper = generator.integers(150, 230, 3), generator.integers(30, 110, 3)
    share = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)) / 255
    return np.round(paper + share * (ink - paper)).astype(np.uint8)


def difference(clean: np.ndarray, stamped: np.ndarray) -> np.ndarray:
    """Ten times the difference on middle grey, clipped: lighter and darker both show."""
    return np.clip(128 + 10 * (stamped.astype(int) - clean), 0, 255).astype(np.uint8)


def draw_header(side: int) -> np.ndarray:
    header = Image.new("RGB", (sheet_width(side), HEADER_HEIGHT), PAGE)
    for column, title in enumerate(HEADER):
        middle = LABEL_WIDTH + column * (side + GAP) + side / 2
        ImageDraw.Draw(header).text((middle, HEADER_HEIGHT / 2), title, "black", ImageFont.load_default(12), "mm")
    return np.asarray(header)


def lay_out(text: list[str], cells: list[np.ndarray], at_test: np.ndarray | None, side: int) -> np.ndarray:
    row = Image.new("RGB", (sheet_width(side), side + GAP), PAGE)
    ImageDraw.Draw(row).multiline_text((GAP, GAP), "\n".join(text), "black", ImageFont.load_default(12), spacing=4)
    places = list(enumerate(cells)) + ([] if at_test is None else [(len(HEADER) - 1, at_test)])
    for column, cell in places:
        row.paste(Image.fromarray(cell), (LABEL_WIDTH + column * (side + GAP), 0))
    return np.asarray(row)


def sheet_width(side: int) -> int:
    return LABEL_WIDTH + len(HEADER) * (side + GAP)


if __name__ == "__main__":
    main()
