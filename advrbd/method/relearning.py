"""Stage 3b (Eq. 5): a clean model from what is left, new labels for the suspects, and fine-tuning on the union.

A model that never learned the trigger may still be blinded by it: a pattern over the whole image hides what is there.
So it is asked twice, the second time with what the suspects of a class have in common, their mean less that of the rest
of the class, taken out of each. Where many turn out to be what their label says, no label was falsified (SIG).
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch.nn import functional

from advrbd.config import RelearningSettings
from advrbd.data.pixels import Pixels
from advrbd.model.factory import Network
from advrbd.model.inference import infer
from advrbd.model.run import Run

BATCH = 512


def relearn(run: Run, kept: torch.Tensor, settings: RelearningSettings) -> Network:
    """A fresh network trained on the images ``kept`` (int64 [K]) alone."""
    network = run.fresh_network()
    run.train(network, kept, settings.clean, "relearn")
    return network


def relabel(
    run: Run, network: Network, suspects: torch.Tensor, kept: torch.Tensor, settings: RelearningSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """What ``network``, which was trained on ``kept`` (int64 [K]) alone, sees in the ``suspects`` (int64 [S]).

    Returns the most probable class int64 [S] and its probability float32 [S], the mean over ten views of the image: as
    it is, and moved a little to each side, and mirrored. A network that knows its own images by heart is too sure of
    others; where their views disagree, it no longer is. Where a class's labels weren't falsified
    (``settings.clean_label_share``), its suspects all get their own label.
    """
    confidence, labels = _seen_from_all_sides(run, network, suspects, settings).max(dim=1)
    for label in run.labels[suspects].unique().tolist():
        mine = run.labels[suspects] == label
        own = _own_label(run, network, suspects[mine], labels[mine], kept, label, settings)
        if own is not None:
            labels[mine], confidence[mine] = label, own
    return labels, confidence


def _own_label(
    run: Run,
    network: Network,
    suspects: torch.Tensor,
    seen: torch.Tensor,
    kept: torch.Tensor,
    label: int,
    settings: RelearningSettings,
) -> torch.Tensor | None:
    """The probability float32 [S] of ``label`` in its ``suspects`` without their pattern, if many are what it says.

    None if they aren't, or if other images turn into ``label`` as well when that pattern is taken out of them: then it
    held what the classes look like. Those are kept images of the classes ``seen`` (int64 [S]) in the suspects.
    """
    rest = kept[run.labels[kept] == label]
    if len(rest) == 0:
        return None
    pattern = _mean(run, suspects) - _mean(run, rest)
    own = _without(run, network, suspects, pattern)[:, label]
    share = float((own > 0.5).float().mean())
    counts = seen[seen != label].bincount(minlength=run.class_count)
    drawn = kept[torch.randperm(len(kept), generator=run.generator)]  # not by name, which is the attacker's to choose
    others = torch.cat([drawn[run.labels[drawn] == other][:count] for other, count in enumerate(counts.tolist())])
    if len(others):
        share -= float((_without(run, network, others, pattern)[:, label] > 0.5).float().mean())
    return own if share >= settings.clean_label_share else None


def fine_tune(
    run: Run,
    network: Network,
    kept: torch.Tensor,
    relabelled: torch.Tensor,
    labels: torch.Tensor,
    settings: RelearningSettings,
) -> None:
    """Go on training ``network`` in place on the ``kept`` images and the ``relabelled`` ones (int64 indices), with the
    new ``labels`` int64 [N] of all images."""
    if len(relabelled):
        given_anew = replace(run, labels=labels)
        given_anew.train(network, torch.cat([kept, relabelled]), settings.fine_tuning, "fine-tune")


def _seen_from_all_sides(
    run: Run, network: Network, examples: torch.Tensor, settings: RelearningSettings
) -> torch.Tensor:
    """The mean of the probabilities float32 [M, classes] that ``network`` gives to ten views of the images, five of
    them mirrored (unless that changes what they mean)."""
    shift = round(settings.clean.shift * run.pixels.size)  # as far as in training

    def view(down: int, right: int, mirrored: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        def change(images: torch.Tensor) -> torch.Tensor:
            height, width = images.shape[-2:]
            padded = functional.pad(images, (shift,) * 4, mode="reflect")
            moved = padded[..., shift + down :, shift + right :][..., :height, :width]
            return moved.flip(-1) if mirrored else moved

        return change

    moves = ((0, 0), (shift, 0), (-shift, 0), (0, shift), (0, -shift))
    views = [view(*move, mirrored) for move in moves for mirrored in (False, True)[: 1 + run.flip]]
    mean = torch.zeros(len(examples), run.class_count)
    for change in views:  # added up, since with many classes ten of them would be large
        mean += _asked_about(run, network, examples, change, mirror=False) / len(views)
    return mean


def _without(run: Run, network: Network, examples: torch.Tensor, pattern: torch.Tensor) -> torch.Tensor:
    """The probabilities float32 [M, classes] that ``network`` gives to images from which ``pattern`` was subtracted."""
    return _asked_about(run, network, examples, lambda images: (images - pattern).clamp(0, 1), mirror=True)


def _asked_about(
    run: Run, network: Network, examples: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor], mirror: bool
) -> torch.Tensor:
    """The probabilities float32 [M, classes] that ``network`` gives to images after a ``change`` of them."""
    said = []
    for chunk in examples.split(BATCH):
        images = change(run.pixels.batch(chunk, run.device.device))
        changed = Pixels((images * 255).round().byte().permute(0, 2, 3, 1))
        said.append(infer(network, changed, torch.arange(len(changed)), run.device, mirror and run.flip).probabilities)
    return torch.cat(said)


def _mean(run: Run, examples: torch.Tensor) -> torch.Tensor:
    """The mean image float32 [3, S, S]."""
    sums = [run.pixels.batch(chunk, run.device.device).sum(dim=0) for chunk in examples.split(BATCH)]
    return torch.stack(sums).sum(dim=0) / len(examples)
