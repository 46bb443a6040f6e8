"""``advrbd env``: the versions and devices that a bug report needs, even where torch is broken."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from advrbd.processor import processor
from advrbd.version import __version__
from advrbd.writing import escaped
from advrbd_cli import console

PACKAGES = ("timm", "torchvision", "pillow", "numpy", "scikit-learn", "safetensors", "typer")
SMI = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
SECONDS = 20


def env() -> None:
    """Print versions and devices on stdout, for bug reports. Nothing of any dataset is in it."""
    for name, value in _facts():
        console.to_stdout(f"{name}: {escaped(value)}\n".encode())  # one by one: a broken torch can end the process


def _facts() -> Iterator[tuple[str, str]]:
    yield "advrbd", __version__
    yield "Python", f"{platform.python_version()} ({platform.python_implementation()})"
    yield "system", f"{platform.system()} {platform.release()} {platform.machine()}"
    yield "CPU", f"{processor()}, {os.cpu_count()} cores"
    yield "GPU", _gpu()
    for package in PACKAGES:
        yield package, _version(package)
    yield "torch", _version("torch")
    yield from _torch_facts()


def _torch_facts() -> Iterator[tuple[str, str]]:
    """What torch itself says; whatever its import raises is an answer, too."""
    try:
        import torch

        cudnn = torch.backends.cudnn.version()
        yield "torch threads", str(torch.get_num_threads())
        yield "torch CUDA", f"built for {torch.version.cuda}, cuDNN {cudnn}" if torch.version.cuda else "built without"
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        yield "torch sees", ", ".join(names) or ("an Apple GPU" if torch.backends.mps.is_available() else "no GPU")
    except Exception as error:
        yield "torch is broken", f"{type(error).__name__}: {error}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _gpu() -> str:
    """What the NVIDIA driver says, which doesn't need a torch that works."""
    if shutil.which(SMI[0]) is None:
        return "no nvidia-smi"
    try:
        done = subprocess.run(SMI, capture_output=True, text=True, errors="replace", timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi failed: {type(error).__name__}"
    if done.returncode:
        return f"nvidia-smi failed: exit code {done.returncode}"
    gpus = [tuple(part.strip() for part in line.split(",")) for line in done.stdout.splitlines() if line.strip()]
    return "; ".join(f"{name}, driver {driver}, {memory}" for name, driver, memory in gpus) or "none"
