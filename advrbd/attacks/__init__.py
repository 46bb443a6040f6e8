"""Backdoor attacks, to test the scanner with.

The eight of the paper's Table I, what else an attacker would try, and attackers who know how advrbd works.
"""

from advrbd.attacks.adaptive import AdaptiveBlend, AdaptivePatch
from advrbd.attacks.aware import Contested, Decoy, Graded
from advrbd.attacks.badnets import BadNets
from advrbd.attacks.base import Attack
from advrbd.attacks.blend import Blend
from advrbd.attacks.physicalba import PhysicalBA
from advrbd.attacks.sig import SIG
from advrbd.attacks.tact import TaCT
from advrbd.attacks.wanet import WaNet
from advrbd.attacks.wider import AllToAll, FaintPatch, LabelNoise, RandomPlace, TwoBackdoors
from advrbd.errors import AdvrbdError

PAPER = (BadNets, Blend, SIG, WaNet, PhysicalBA, TaCT, AdaptiveBlend, AdaptivePatch)
WIDER = (AllToAll, TwoBackdoors, RandomPlace, FaintPatch, LabelNoise)
AWARE = (Graded, Decoy, Contested)
ATTACKS: dict[str, type[Attack]] = {attack.name: attack for attack in PAPER + WIDER + AWARE}
"""The attacks by the name that the command line gives them."""


def named(name: str) -> type[Attack]:
    """The attack of that name. Raises ``AdvrbdError`` where there is none."""
    if name not in ATTACKS:
        raise AdvrbdError(f"unknown attack {name!r}; there are {', '.join(ATTACKS)}")
    return ATTACKS[name]


__all__ = [
    "ATTACKS",
    "AWARE",
    "PAPER",
    "WIDER",
    "Attack",
    "named",
    *(attack.__name__ for attack in PAPER + WIDER + AWARE),
]
