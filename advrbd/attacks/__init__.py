"""Backdoor attacks, to test the scanner with: each turns a clean image into one that carries its trigger."""

from advrbd.attacks.badnets import BadNets
from advrbd.attacks.base import Attack
from advrbd.attacks.blend import Blend

ATTACKS: dict[str, type[Attack]] = {"badnets": BadNets, "blend": Blend}
"""The attacks by the name that the command line gives them."""

__all__ = ["ATTACKS", "Attack", "BadNets", "Blend"]
