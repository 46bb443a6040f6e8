"""What enhancement leaves in doubt of a class with suspects, told by its label (ours, not the paper's).

In some images a trigger hardly shows, and a model may have hardly learned it. Enhancement then says little of such a
file, but more than of the rest of its class. The model that hears the suspects doesn't learn those files either, nor
some others of the class: where more labels are denied, or more surely, than those of the others let expect, somebody
put those files there.
"""

from dataclasses import dataclass
from math import log

import torch

from advrbd.config import Config
from advrbd.method.findings import Findings
from advrbd.method.identification import Identification
from advrbd.method.second_opinion import SURELY, lowest_expected
from advrbd.model.run import Run

FEWEST_OTHERS = 50
ODD = 2.0  # natural files that stand out are denied about twice as often as others
DENIED = torch.tensor([0.002, 0.02, 0.1, 0.5])


@dataclass(frozen=True)
class Doubt:
    """Images (int64) of one class that aren't suspects, and that the hearing's model doesn't learn: those ``in_doubt``,
    and ``others`` to compare them with, which don't stand out."""

    in_doubt: torch.Tensor
    others: torch.Tensor

    @property
    def held(self) -> torch.Tensor:
        return torch.cat([self.in_doubt, self.others])


def doubts(
    run: Run, findings: Findings, looked_at: torch.Tensor, found: Identification, config: Config
) -> dict[int, Doubt]:
    """What is in doubt, by class, where a look over the images ``looked_at`` (int64 [M]) ``found`` suspects: what
    stands out of the rest of its class by what it carries.

    Three quarters of that rest stay to learn the class from, at least: a class that is hardly known is denied.
    """
    labels, settings, by_class = run.labels[looked_at], config.identification, dict[int, Doubt]()
    settled = found.suspects | findings.suspects[looked_at] | findings.acquitted[looked_at]
    for label in set(labels[found.suspects].tolist()):
        rest = ((labels == label) & ~settled).nonzero().flatten()
        odds = torch.logit(found.carries[rest], eps=1e-5)
        order, room = rest[odds.argsort(descending=True, stable=True)], len(rest) // 8
        if not room:
            continue
        above = int((odds > max(-lowest_expected(-odds, settings.doubt_deviations), log(settings.undecided))).sum())
        others = order[above:][torch.randperm(len(rest) - above, generator=run.generator)]
        count = min(above, room)
        if count:
            others = others[: min(room, max(count, FEWEST_OTHERS))]
            by_class[label] = Doubt(looked_at[order[:count]], looked_at[others])
    return by_class


def told_by_label(own: torch.Tensor, natural: torch.Tensor) -> torch.Tensor:
    """P(planted), float32 [K] in 0..1, of K files by the probability ``own`` (float32 [K]) that a model which learned
    none of them gives to their label, as it does to that of ``natural`` files (float32 [N]).

    Local false discovery rates (Efron et al. 2001, JASA 96:1151) between limits of ``own``: how many natural files to
    expect there, twice as many as the others say, and two standard errors more, of those that are there. How many of
    the K are natural those tell whose label isn't denied (Storey 2002, JRSS B 64:479).
    """
    there, of_natural = _counts(own), _counts(natural) + 0.5
    shown = there[-1] + 0.5
    many = ((shown + SURELY * shown.sqrt()) * of_natural.sum() / of_natural[-1]).clamp_max(len(own))
    expected = ODD * many * of_natural / of_natural.sum()
    error = (expected + expected**2 / of_natural).sqrt()
    return (1 - (expected + SURELY * error) / there.clamp_min(1)).clamp_min(0)[_between(own)]


def _counts(own: torch.Tensor) -> torch.Tensor:
    return _between(own).bincount(minlength=len(DENIED) + 1)


def _between(own: torch.Tensor) -> torch.Tensor:
    return torch.bucketize(own.contiguous(), DENIED)
