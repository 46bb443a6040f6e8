"""Where the tensors live, in which precision the models run, and why."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import joblib
import torch

from advrbd.errors import DeviceError
from advrbd.model.peers import ALONE, Peers, current


@dataclass(frozen=True)
class Device:
    """A torch device, the autocast type on it (None: plain float32), the reason of the choice, for the user, and the
    processes that work together, each on such a device of its own."""

    device: torch.device
    autocast_dtype: torch.dtype | None
    reason: str
    peers: Peers = ALONE

    def autocast(self, unscaled_gradients: bool = False) -> torch.autocast:
        """The autocast context; none in float16 where gradients aren't scaled, since small ones would vanish."""
        vanish = unscaled_gradients and self.autocast_dtype is torch.float16
        return torch.autocast(
            self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None and not vanish
        )

    def drawing(self, generator: torch.Generator) -> torch.Generator:
        """What draws many numbers on this device: ``generator`` itself on the CPU, elsewhere one that it seeds, since a
        GPU would have to wait for a processor's."""
        if self.device.type == "cpu":
            return generator
        return torch.Generator(self.device).manual_seed(int(torch.randint(2**31, (), generator=generator)))

    @contextmanager
    def seeded(self, generator: torch.Generator) -> Iterator[None]:
        """A context in which torch's global randomness (weights, dropout) comes from ``generator``, without a trace."""
        seed = int(torch.randint(2**31, (), generator=generator))
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield


def choose_device(name: str = "auto") -> Device:
    """Turn ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` into a ``Device``.

    ``auto`` takes CUDA before MPS before the CPU, where torch gets no more threads than a container's quota and the
    affinity of this process allow, unless ``OMP_NUM_THREADS`` is set. Of several processes, which work on CUDA or the
    CPU alone, each takes the GPU of its own number on its machine. Raises ``DeviceError`` when the device isn't there.
    """
    peers = current()
    if peers.count == 1:
        return _choose(name)
    if name.startswith(("cuda:", "mps")):
        raise DeviceError(f"{peers.count} processes can't work on {name}; use --device auto, cuda or cpu")
    if name == "auto" and not torch.cuda.is_available():
        name = "cpu"
    chosen = _choose(f"cuda:{peers.local}" if name == "cuda" or name == "auto" else name)
    return replace(chosen, reason=f"{chosen.reason}, the first of {peers.count} processes", peers=peers)


def _choose(name: str) -> Device:
    if name == "auto":
        if torch.cuda.is_available():
            name, why = "cuda", "a CUDA device is available"
        elif torch.backends.mps.is_available():
            name, why = "mps", "an Apple GPU is available"
        else:
            name, why = "cpu", "no GPU is available"
    else:
        why = "asked for"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"unknown device {name!r}; use auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda":
        return _cuda(device, why)
    if device.type == "mps":
        if not torch.backends.mps.is_available():
            raise DeviceError("device mps isn't available here; use --device auto or --device cpu")
        return Device(device, None, f"mps ({why})")
    if device.type != "cpu":
        raise DeviceError(f"unknown device {name!r}; use auto, cpu, cuda, cuda:N or mps")
    # bfloat16 pays on a CPU that multiplies it natively, and costs on one that has to emulate it
    native: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    dtype = torch.bfloat16 if native.get("avx512_bf16") or native.get("amx_bf16") else None
    precision = "bfloat16 autocast" if dtype else "float32"
    return Device(torch.device("cpu"), dtype, f"cpu, {_fitting_threads()} threads, {precision} ({why})")


def _fitting_threads() -> int:
    """The number of torch's threads, which is lowered to that of the processors that this process may use.

    Torch doesn't see a container's quota: it starts a thread for every core of the machine, and they wait for each
    other most of the time. Whoever sets ``OMP_NUM_THREADS`` has decided.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), joblib.cpu_count()))
    return torch.get_num_threads()


def out_of_memory(device: Device, what: str) -> DeviceError:
    """The error to raise where there is no memory left on ``device`` for ``what``."""
    advice = "try a smaller --image-size or --model" + (", or --device cpu" if device.device.type != "cpu" else "")
    return DeviceError(f"{device.device} has too little memory for {what}; {advice}")


def _cuda(device: torch.device, why: str) -> Device:
    if not torch.cuda.is_available():
        raise DeviceError("no CUDA device is available here; use --device auto or --device cpu")
    number = device.index or 0
    if number >= torch.cuda.device_count():
        raise DeviceError(f"there is no cuda:{number}; this machine has {torch.cuda.device_count()} CUDA device(s)")
    device = torch.device("cuda", number)
    with torch.cuda.device(device):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    dtype = torch.bfloat16 if native else torch.float16
    precision = str(dtype).removeprefix("torch.")
    return Device(device, dtype, f"{device}, {torch.cuda.get_device_name(device)}, {precision} autocast ({why})")


@contextmanager
def repeatable(device: Device) -> Iterator[None]:
    """On CUDA, deterministic algorithms wherever torch has them; its settings are restored at the end.

    Where it has none, two runs may differ, as they may on other kinds of processor, with other versions or another
    number of threads (pytorch.org/docs/stable/notes/randomness.html). On other devices nothing is changed.
    """
    if device.device.type != "cuda":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    deterministic: Any = torch.utils.deterministic  # its one setting has no type
    filled = deterministic.fill_uninitialized_memory
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*deterministic")  # nothing that the user could do about it
        torch.use_deterministic_algorithms(True, warn_only=True)
        deterministic.fill_uninitialized_memory = False  # a kernel more for each tensor; none is read unset
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            deterministic.fill_uninitialized_memory = filled
