"""``advrbd poison``: plant a known backdoor in a copy of a folder, to see what a scan makes of it."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from advrbd.config import MAX_SEED
from advrbd_cli import console, options

EXAMPLES = (
    "Attacks: badnets, blend, sig, wanet, physicalba, tact, adaptive-blend, adaptive-patch; "
    "all-to-all, two-backdoors, random-place, faint-patch, label-noise; graded, decoy, contested. "
    "Example: advrbd poison ./data --attack badnets --target-label cat --out ./poisoned"
)


def poison(
    data: options.Folder,
    attack: Annotated[str, typer.Option(help="One of those named below.", show_default=False)],
    target_label: Annotated[str, typer.Option(help="Class that the backdoor leads to.", show_default=False)],
    out: Annotated[Path, typer.Option(help="New folder for the poisoned copy.", show_default=False)],
    poison_rate: options.PoisonRate = 0.05,
    seed: Annotated[
        int, typer.Option(help="Seed of the trigger and of the choice of images.", min=0, max=MAX_SEED)
    ] = 0,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Write a copy of an image folder with a backdoor in it, for testing.

    The truth lies beside it in OUT.truth.csv: which files are poisoned (role poison), which only carry the trigger
    (cover) or a wrong label (mislabelled), and where they came from.
    """
    console.state.quiet, console.state.verbose = quiet, verbose

    from advrbd.attacks import named
    from advrbd.attacks.plant import plant

    planted = plant(data, out, named(attack)(seed=seed), target_label, poison_rate, seed, console.Narrator(False))
    counts = Counter(entry.role for entry in planted)
    console.say(", ".join(f"{count} {role}" for role, count in sorted(counts.items())))
    console.say(f"dataset: {out}; truth: {out}.truth.csv")
