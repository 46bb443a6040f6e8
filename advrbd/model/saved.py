"""Trained networks as files: safetensors with the model's description as JSON in its header, never a pickle."""

import json
import os
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from advrbd.errors import ModelError
from advrbd.model.device import choose_device
from advrbd.model.factory import Changes, ModelSpec, Network, build, timm_arguments
from advrbd.writing import printable, write_whole

KNOWN_ARGUMENTS = {"stem_type", "stem_width", "channels"}  # of timm.create_model, that `--model auto` gives
LARGEST_SIDE = 4096  # pixels


def save_model(path: Path, network: Network, classes: tuple[str, ...]) -> None:
    """Write what ``model_bytes`` gives to ``path``, whole or not at all."""
    write_whole(path, model_bytes(path.name, network, classes))


def model_bytes(name: str, network: Network, classes: tuple[str, ...]) -> bytes:
    """The weights of the timm model and, as metadata, its name, arguments, input, class names, and its usage as the
    file ``name``."""
    about = network.spec.as_dict() | {"classes": [printable(name) for name in classes]}
    about["mean"], about["std"] = network.mean.flatten().tolist(), network.std.flatten().tolist()
    about["usage"] = loading_code(network, classes, name)
    # clones, since safetensors refuses layers that share their memory
    tensors = {key: tensor.contiguous().cpu().clone() for key, tensor in network.backbone.state_dict().items()}
    # all under one key: safetensors writes several in random order, and the same model would have many hashes
    return save(tensors, metadata={"advrbd": json.dumps(about)})


def loading_code(network: Network, classes: tuple[str, ...], path: str) -> str:
    """Python that loads the model saved at ``path`` with timm alone; its comments say what goes in and what comes out.

    Names come from whoever made the dataset: each enters as a literal, which ``repr`` keeps on one line and closed.
    """
    spec = network.spec
    arguments = "".join(f", {name}={value!r}" for name, value in timm_arguments(spec).items())
    mean, std = (tuple(round(value, 7) for value in each.flatten().tolist()) for each in (network.mean, network.std))
    size = (spec.image_size, spec.image_size)
    layers = any(isinstance(value, nn.Module) for value in network.changes.values())
    return "\n".join(
        [
            "import timm",
            "from safetensors.torch import load_file",
            *(["from torch import nn"] if layers else []),
            "",
            f"model = timm.create_model({spec.name!r}, num_classes={spec.class_count}{arguments}).eval()",
            *([_assignment(network.changes)] if network.changes else []),
            f"model.load_state_dict(load_file({path!r}))",
            "# input: upright RGB images through torchvision's",
            f"#   Resize({size}, InterpolationMode.BICUBIC), ToTensor(), Normalize(mean={mean}, std={std})",
            "# output: a logit for each of the classes",
            f"#   {tuple(printable(name) for name in classes)}",
        ]
    )


def _assignment(changes: Changes) -> str:
    """One statement that makes these changes to ``model``: ``model.conv1[0].stride, ... = (1, 1), ...``."""
    places = ["".join(f"[{part}]" if part.isdigit() else f".{part}" for part in name.split(".")) for name in changes]
    values = [f"nn.{value!r}" if isinstance(value, nn.Module) else repr(value) for value in changes.values()]
    return ", ".join(f"model{place}" for place in places) + " = " + ", ".join(values)


def load_model(path: str | os.PathLike, device: str = "cpu") -> tuple[Network, tuple[str, ...]]:
    """A network saved by ``advrbd clean --save-model`` and its class names, in eval mode on ``device``.

    The network takes float pixels [B, 3, S, S] in [0, 1]. Raises ``ModelError`` when the file is none of advrbd's.
    """
    place = choose_device(device)
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["advrbd"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        classes = about.pop("classes")
        about.pop("usage", None)  # for people, never for us: code in a file is anybody's
        spec = ModelSpec(**about | {"mean": tuple(about["mean"]), "std": tuple(about["std"])})
        if not timm.is_model(spec.name) or not set(spec.arguments) <= KNOWN_ARGUMENTS:
            raise ValueError("unknown architecture")  # others could make timm read files or the network
        _check_description(spec, classes, weights)
        network = build(spec, place, torch.Generator(), fetch=False)
    except (
        OSError,
        SafetensorError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise ModelError(f"{path} is no model saved by advrbd: {error}") from error
    try:
        network.backbone.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelError(f"{path} holds other weights than its description says") from error
    return network.eval(), tuple(classes)


def _check_description(spec: ModelSpec, classes: object, weights: dict[str, torch.Tensor]) -> None:
    """Raise ``ValueError`` where the description can't be, or asks for more memory than the weights beside it do."""
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("its classes are no list of names")
    if spec.class_count != len(classes) or not 0 < spec.image_size <= LARGEST_SIDE:
        raise ValueError("its description can't be")
    mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)  # in float32, as the network has them
    if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
        raise ValueError("its normalisation can't be")
    with torch.device("meta"):  # shapes without memory
        claimed = timm.create_model(spec.name, num_classes=spec.class_count, **timm_arguments(spec)).state_dict()
    held = sum(tensor.numel() for tensor in weights.values())
    if sum(tensor.numel() for tensor in claimed.values()) > 2 * held:  # a stem for small images is a little smaller
        raise ValueError("it holds fewer weights than its description says")
