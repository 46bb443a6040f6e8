"""How the leader of several processes has work done, and how a helper does it (``peers``).

A job is a network and a computation on batches. Its name stands for a function that a helper calls with its copy of the
network, its device and the settings of the job, and that returns the computation.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from advrbd.errors import DivergedError
from advrbd.model.device import Device, choose_device, repeatable
from advrbd.model.factory import ModelSpec, Network, build
from advrbd.model.peers import Peers, Tensors

Job = Callable[..., Callable[..., Tensors]]


@contextmanager
def handed_out(device: Device, job: str, network: Network, **settings: Any) -> Iterator[None]:
    """While the context lasts, the helpers are at ``job`` with the ``network`` as it is now: what the leader deals goes
    to them, too. Without helpers it does nothing. The ``settings`` are JSON values.

    After a ``DivergedError``, which is raised between two batches only, the leader may go on with another job.
    """
    peers = device.peers
    if peers.count == 1:
        yield
        return
    precision = device.autocast_dtype and str(device.autocast_dtype).removeprefix("torch.")
    place = {"device": device.device.type, "precision": precision}
    peers.tell({"job": job, "settings": settings, "spec": network.spec.as_dict()} | place)
    peers.copy_(_tensors(network))
    try:
        yield
    except DivergedError:
        peers.tell(None)
        raise
    peers.tell(None)


def serve(peers: Peers, jobs: Mapping[str, Job]) -> None:
    """Do the ``jobs`` that the leader hands out, until it says that there is no more."""
    known, network = None, None
    while (order := peers.hear()) is not None:
        precision = order["precision"] and getattr(torch, order["precision"])
        device = replace(choose_device(order["device"]), autocast_dtype=precision)
        if network is None or known != (order["spec"], device):
            known = order["spec"], device
            network = build(ModelSpec(**order["spec"]), device, torch.Generator(), fetch=False)
        peers.copy_(_tensors(network))
        with repeatable(device):
            compute = jobs[order["job"]](network.eval(), device, **order["settings"])
            while (share := peers.take(device.device)) is not None:
                if len(share[0]):
                    peers.give(compute(*share))


def _tensors(network: Network) -> list[torch.Tensor]:
    """All that sets one network apart from another of the same kind."""
    return [*network.parameters(), *network.buffers()]
