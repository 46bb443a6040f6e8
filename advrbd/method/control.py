"""A positive control (ours, not the paper's): a backdoor of our own, planted in memory, that the scan has to find.

A few copies of images get a patch of random pixels and a label that isn't theirs, and take part in the first look's
training. If the stages then can't tell them from their class, they could not have seen an attacker's either: the
folder isn't clean, it is unexamined. The copies are no part of anything else that is computed.
"""

from dataclasses import dataclass, replace

import torch

from advrbd.config import Config
from advrbd.data.pixels import Extended
from advrbd.method.enhancement import enhance
from advrbd.method.identification import for_groups, is_sharp
from advrbd.method.partition import Partition
from advrbd.method.separation import candidates, separate
from advrbd.model.factory import Network
from advrbd.model.inference import Predictions
from advrbd.model.run import Run


@dataclass(frozen=True)
class Control:
    """``run`` holds the folder's N images and after them the copies, at the positions ``examples`` (int64 [K])."""

    run: Run
    examples: torch.Tensor
    label: int


def plant_control(run: Run, examples: torch.Tensor, config: Config) -> Control:
    """Copies of images ``examples`` of other classes, stamped and labelled as a class that is drawn at random."""
    labels = run.labels[examples]
    present = labels.unique()
    label = int(present[torch.randint(len(present), (), generator=run.generator)])
    sources = examples[labels != label]
    wanted = max(2 * config.separation.minimum_group, round(config.control_share * len(examples) / len(present)))
    chosen = sources[torch.randperm(len(sources), generator=run.generator)[:wanted]]
    copies = run.pixels.images[chosen.to(run.pixels.images.device)].clone()
    side = max(2, run.pixels.size // 5)
    top, left = torch.randint(0, run.pixels.size - side + 1, (2,), generator=run.generator).tolist()
    patch = 255 * torch.randint(0, 2, (side, side, 3), generator=run.generator, dtype=torch.uint8)
    copies[:, top : top + side, left : left + side] = patch.to(copies.device)
    count = len(run.labels)
    extended = replace(
        run,
        pixels=Extended(run.pixels.images, copies),
        labels=torch.cat([run.labels, torch.full((len(copies),), label)]),
    )
    return Control(extended, torch.arange(count, count + len(copies)), label)


def with_copies(run: Run, examples: torch.Tensor, control: Control | None) -> tuple[Run, torch.Tensor]:
    """A run and the images ``examples`` (int64 [M]) in it; with a ``control``, the run that holds its copies as well,
    and they come after the images."""
    return (control.run, torch.cat([examples, control.examples])) if control else (run, examples)


def find_control(
    control: Control, network: Network, examples: torch.Tensor, outputs: Predictions, parts: Partition, config: Config
) -> bool:
    """Whether the stages find the copies: as one of the groups they would examine, and with a sharp answer, with
    no more patience than most real groups get, and from one side alone.

    ``network``, ``outputs`` and ``parts`` belong to the images ``examples`` (int64 [M]), the copies among them.
    """
    run = control.run
    planted = torch.isin(examples, control.examples)
    splits = separate(outputs.features, run.labels[examples], parts.seeds, config.separation, run.generator)
    chosen = candidates(splits, run.labels[examples[~planted]], config.separation)
    for split in chosen:
        inside = int(planted[split.group].sum())
        if split.label == control.label and 2 * inside > max(len(split.group), int(planted.sum())):
            conviction = for_groups(config.identification, len(chosen))
            no_further = replace(config.enhancement, clear_ambiguity=conviction.ambiguity_limit)
            return is_sharp(enhance(run, network, examples, split, parts.seeds, no_further), conviction)
    return False
