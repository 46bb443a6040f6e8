"""The seven defences that the AdvrBD paper (arXiv:2405.12719, section VI-A) compares itself with, one a file.

Beside them, behind the same interface: AdvrBD as its paper words it, and detectors of other packages (extra ``bench``).

The papers' epochs are those for 50,000 images on a GPU; ``Defence.scaled`` makes all stages shorter. Everything trains
in advrbd's own loop, so four things are not the papers': the learning rate rises and falls linearly within a stage, the
weight decay is 5e-4, a network without batch normalisation gets AdamW (decay .05) at a hundredth of the rate, and the
augmentation is a flip and a shift by up to 1/16 of the side.
"""

from advrbd.baselines.abl import ABL
from advrbd.baselines.advrbd_paper import PaperRecipe
from advrbd.baselines.base import CLEAN_IMAGES, NOTHING, POISON_RATE, Defence, Defended
from advrbd.baselines.clp import CLP
from advrbd.baselines.cutmix import CutMix
from advrbd.baselines.dbr import DBR
from advrbd.baselines.fine_pruning import FinePruning
from advrbd.baselines.fine_tuning import FineTuning
from advrbd.baselines.installed import ActivationClustering, LabelIssues, SpectralSignatures
from advrbd.baselines.scan_em import SCAnFT

PAPER: tuple[type[Defence], ...] = (FineTuning, FinePruning, CutMix, CLP, DBR, SCAnFT, ABL)
BASELINES: dict[str, type[Defence]] = {defence.name: defence for defence in PAPER}
"""The defences by their name, in the order of the paper's tables."""

PAPER_RECIPE: dict[str, type[Defence]] = {PaperRecipe.name: PaperRecipe}
"""AdvrBD as its paper words it, by its name."""

INSTALLED: dict[str, type[Defence]] = {
    defence.name: defence for defence in (ActivationClustering, SpectralSignatures, LabelIssues)
}
"""Detectors that a user could install instead, by their name; they need the extra ``bench``."""

__all__ = [
    "BASELINES",
    "CLEAN_IMAGES",
    "INSTALLED",
    "NOTHING",
    "PAPER_RECIPE",
    "POISON_RATE",
    "Defence",
    "Defended",
    *(defence.__name__ for defence in (*PAPER, *PAPER_RECIPE.values(), *INSTALLED.values())),
]
