"""Several processes for one run, as torchrun starts them, and what they say to each other.

The first process, the leader, runs the program as if it were alone: it reads the folder, draws all random numbers,
decides and writes. The others, its helpers, compute shares of what it deals out (``helping``). They need neither the
folder nor the settings, and there is nothing on which the processes would have to agree. What travels are JSON and
tensors, never pickles.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed

from advrbd.errors import DeviceError, PeerLostError, is_out_of_memory

# helpers wait while the leader decodes and clusters; where one ends, gloo says so, and with NCCL torchrun ends the rest
PATIENCE = timedelta(days=7)

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Peers:
    """``count`` processes, of which this is number ``rank``, and number ``local`` of those on its machine; number 0
    leads. By default there is one, which has nobody to talk to. All methods raise ``PeerLostError``."""

    rank: int = 0
    count: int = 1
    local: int = 0

    def share(self, total: int, rank: int | None = None) -> slice:
        """Which of ``total`` items are for a process, by default this one; no share is larger than the leader's."""
        rank = self.rank if rank is None else rank
        size, more = divmod(total, self.count)
        start = rank * size + min(rank, more)
        return slice(start, start + size + (rank < more))

    def tell(self, message: dict | None) -> None:
        """Say ``message``, JSON values, to all helpers; None ends what they are at."""
        data = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
        with _connected():
            distributed.broadcast(torch.tensor(len(data)), 0)
            distributed.broadcast(data, 0)

    def hear(self) -> dict | None:
        """What the leader says."""
        length = torch.zeros((), dtype=torch.int64)
        with _connected():
            distributed.broadcast(length, 0)
            data = torch.empty(int(length), dtype=torch.uint8)
            distributed.broadcast(data, 0)
        return json.loads(data.numpy().tobytes())

    def copy_(self, tensors: list[torch.Tensor]) -> None:
        """Make the ``tensors`` of all processes those of the leader."""
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            alike = [tensor for tensor in tensors if tensor.dtype == dtype]
            with _connected(), _flat(alike) as flat:
                distributed.broadcast(flat, 0)

    def add_(self, tensors: list[torch.Tensor]) -> None:
        """Make the ``tensors``, all of one type, the sums of those of all processes."""
        if self.count > 1:
            with _connected(), _flat(tensors) as flat:
                distributed.all_reduce(flat)

    def deal(self, *tensors: torch.Tensor) -> Tensors:
        """Send ``tensors`` [B, ...], and keep the leader's own share of each."""
        if self.count > 1:
            kinds = [[str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for tensor in tensors]
            self.tell({"dealt": kinds})
            with _connected():
                for tensor in tensors:
                    distributed.broadcast(tensor.contiguous(), 0)
        return tuple(tensor[self.share(len(tensor))] for tensor in tensors)

    def take(self, device: torch.device) -> Tensors | None:
        """This helper's share of what the leader deals, on ``device``; None if there is no more."""
        message = self.hear()
        if message is None:
            return None
        shares = []
        for kind, shape in message["dealt"]:
            tensor = torch.empty(shape, dtype=getattr(torch, kind), device=device)
            with _connected():
                distributed.broadcast(tensor, 0)
            share = tensor[self.share(len(tensor))]
            shares.append(share.contiguous(memory_format=torch.channels_last) if share.ndim == 4 else share)
        return tuple(shares)

    def give(self, results: Tensors) -> None:
        """Send what this helper made of its share to the leader."""
        with _connected():
            for result in results:
                distributed.send(result.cpu().contiguous(), 0)

    def collect(self, results: Tensors, total: int) -> Tensors:
        """The leader's own ``results`` and those of all helpers as tensors [total, ...]; on the CPU where there are
        helpers."""
        if self.count == 1:
            return results
        whole = tuple(result.new_empty((total, *result.shape[1:]), device="cpu") for result in results)
        for target, own in zip(whole, results, strict=True):
            target[self.share(total)] = own.cpu()
        for rank in range(1, min(self.count, total)):
            with _connected():
                for target in whole:
                    distributed.recv(target[self.share(total, rank)], rank)
        return whole


ALONE = Peers()
_current: ContextVar[Peers] = ContextVar("peers", default=ALONE)


def current() -> Peers:
    """The processes of this run: those that ``joined`` holds together, else this one alone."""
    return _current.get()


@contextmanager
def joined() -> Iterator[Peers]:
    """The processes that torchrun started, held together while the context lasts; helpers are told of its end.

    Raises ``DeviceError`` where they can't reach each other. Left with an error, it tells nobody: who waits for this
    process notices that it ends, and a message might meet others in the middle of a computation.
    """
    nvidia = torch.cuda.is_available() and distributed.is_nccl_available()
    try:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if nvidia else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise DeviceError(f"the processes of this run can't reach each other: {str(error).splitlines()[0]}") from error
    local = int(os.environ.get("LOCAL_RANK", "0"))
    peers = Peers(distributed.get_rank(), distributed.get_world_size(), local)
    token = _current.set(peers)
    try:
        yield peers
        if peers.rank == 0:
            peers.tell(None)
        distributed.destroy_process_group()
    finally:
        _current.reset(token)


@contextmanager
def _connected() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise PeerLostError("another process of this run ended; what it said may tell why") from error


@contextmanager
def _flat(tensors: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    """All ``tensors`` in one, since each message takes time; what it holds at the end goes back into them."""
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    yield flat
    with torch.no_grad():
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))
