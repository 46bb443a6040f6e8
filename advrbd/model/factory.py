"""Any timm classifier, made to fit the images: which one, at which size, and with a stem that keeps small images.

A network takes pixels in [0, 1]; normalisation is part of it, so a perturbation's size is in pixel units.
"""

import re
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from timm.models.convnext import ConvNeXt
from timm.models.resnet import ResNet
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from advrbd.errors import ModelError, is_out_of_memory
from advrbd.model.device import Device, out_of_memory

# Dotted names in a timm model, and what comes there instead: pairs of numbers, and layers of torch.nn that have no more
# to them than their repr says. That way the repr is also the code that makes the change (see ``saved``).
Changes = dict[str, nn.Module | tuple[int, int]]

SMALL_IMAGE_SIDE = 64  # up to here a stem that halves the image twice throws away what a small trigger is made of
THIN_STEM = 16  # channels that leave the stem of the model for a CPU


@dataclass(frozen=True)
class ModelSpec:
    """All that it takes to build the same network again: it is what is saved beside the weights, as JSON."""

    name: str
    class_count: int
    image_size: int
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.25, 0.25, 0.25)
    arguments: dict = field(default_factory=dict)
    pretrained: bool = False

    def as_dict(self) -> dict:
        return asdict(self)


class Network(nn.Module):
    """A timm model behind its own normalisation.

    ``forward`` maps pixels float [B, 3, H, W] in [0, 1] to logits [B, classes]; ``features`` to the penultimate
    features [B, F], which ``classify`` maps to logits. ``changes`` is what sets ``backbone`` apart from timm's model,
    ``spec`` what it was built from.
    """

    backbone: Any  # timm's models share methods, but no class that has them
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        backbone: nn.Module,
        changes: Changes,
        spec: ModelSpec,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.changes = changes
        self.spec = spec
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        maps = self.backbone.forward_features((pixels - self.mean) / self.std)
        return self.backbone.forward_head(maps, pre_logits=True)

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        classifier = self.backbone.get_classifier()
        if isinstance(classifier, nn.Conv2d):  # of one pixel, as ResNetV2 has it
            return classifier(features[..., None, None]).flatten(1)
        return classifier(features)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.classify(self.features(pixels))


def choose_model(
    name: str, image_side: int, device: Device, image_size: int | None = None, pretrained: bool = False
) -> tuple[str, dict, int]:
    """Which timm model to train on images of ``image_side`` pixels (their typical side) and at which size.

    Returns the model's name, the extra arguments of ``timm.create_model`` and the side of its input. ``auto`` takes
    ResNet-18 on a GPU and a ResNet-10 half as wide behind a thin stem on a CPU, where ResNet-18 would take hours;
    timm's own ResNet-10 where it is to be ``pretrained``, since no weights fit the narrow one.
    The patches of a transformer cover that side wholly; those of a small one, unless it is ``pretrained``, are smaller.
    Raises ``ModelError`` for a name that timm doesn't know.
    """
    arguments: dict = {}
    if name == "auto":
        if device.device.type == "cpu":
            name = "resnet10t"
            arguments = {} if pretrained else {"stem_type": "deep", "stem_width": 8, "channels": (32, 64, 128, 256)}
        else:
            name = "resnet18"
    elif not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name}*")[:3])
        lists = "`python -c 'import timm; print(timm.list_models())'` lists them"
        raise ModelError(f"timm knows no model {name!r}; {f'close to it: {close}' if close else lists}")
    if image_size is None:
        largest = 64 if device.device.type == "cpu" else _default_input(name)
        unit = _patch_side(name) if _resizable(name) and (pretrained or image_side > SMALL_IMAGE_SIDE) else 8
        image_size = min(max(16, _up_to(image_side, unit)), _up_to(largest, unit))
        if (timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()).fixed_input_size and not _resizable(name):
            image_size = _default_input(name)
    return name, arguments, image_size


def explain_choice(requested: str, spec: ModelSpec, image_side: int, device: Device) -> str:
    """One line for the user: which model, at which size, and why."""
    width = f" with {'-'.join(map(str, spec.arguments['channels']))} channels" if "channels" in spec.arguments else ""
    why = f"picked for {device.device.type}" if requested == "auto" else "asked for"
    return f"{spec.name}{width} at {spec.image_size} px ({why}; images are about {image_side} px)"


def build(spec: ModelSpec, device: Device, generator: torch.Generator, fetch: bool = True) -> Network:
    """A fresh network on ``device``, its weights drawn from ``generator`` (or timm's, where ``spec.pretrained``).

    Without ``fetch`` timm's weights are left where they are: the same network, to be filled by the caller.
    Raises ``ModelError`` when timm can't build the model at this size, or can't fetch its weights.
    """
    fetched = spec.pretrained and fetch
    with device.seeded(generator):
        try:
            backbone = timm.create_model(
                spec.name, pretrained=fetched, num_classes=spec.class_count, **timm_arguments(spec)
            )
            changes = _small_stem(backbone, fetched) if spec.image_size <= SMALL_IMAGE_SIDE else {}
            for name, value in changes.items():
                owner, _, attribute = name.rpartition(".")
                setattr(backbone.get_submodule(owner), attribute, value)
        except OSError as error:
            what = f"timm can't fetch the weights of {spec.name}: {_first_line(error)}"
            raise ModelError(f"{what}; see to the network, or go without --pretrained") from error
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            what = f"timm can't build {spec.name} for {spec.image_size}-pixel images: {_first_line(error)}"
            raise ModelError(what) from error
    if fetched:
        config = resolve_model_data_config(backbone)
        spec = replace(spec, mean=tuple(config["mean"]), std=tuple(config["std"]))
    network = Network(backbone, changes, spec).to(device.device).to(memory_format=torch.channels_last)
    _check_fits(network.eval(), device)
    return network


def _check_fits(network: Network, device: Device) -> None:
    """Raise ``ModelError`` where the model can't be used, or cuts images into patches that don't cover all of them."""
    spec, patch = network.spec, _patch_of(network)
    if spec.image_size % patch:
        whole = _up_to(spec.image_size, patch)
        raise ModelError(
            f"{spec.name} looks at patches of {patch} pixels, so that of {spec.image_size} it would never see those at "
            f"the right and bottom border, where a trigger may be; use --image-size {whole}"
        )
    otherwise = f"{spec.name} answers otherwise than by one layer on top of its features; try another --model"
    try:
        probe = torch.linspace(0, 1, 6 * spec.image_size**2, device=device.device)
        probe = probe.view(2, 3, spec.image_size, spec.image_size)
        if isinstance(network.backbone.get_classifier(), tuple | list | nn.ModuleList):
            raise ModelError(otherwise)  # several of them, as for distillation
        with torch.no_grad():
            said, as_timm_says = network(probe), network.backbone((probe - network.mean) / network.std)
            same = torch.allclose(said, as_timm_says, rtol=1e-2, atol=1e-2)  # on a GPU, sums differ a little
    except (RuntimeError, AssertionError, ValueError, TypeError, AttributeError, LookupError) as error:
        if is_out_of_memory(error):
            raise out_of_memory(device, f"{spec.name} at {spec.image_size} px") from error
        why = _first_line(error)
        what = f"{spec.name} doesn't take {spec.image_size}-pixel images: {why}; try another --image-size or --model"
        raise ModelError(what) from error
    if said.shape != (2, spec.class_count):
        raise ModelError(f"{spec.name} is no image classifier: its output has the shape {tuple(said.shape)}")
    if not same:
        raise ModelError(otherwise)


def _first_line(error: Exception) -> str:
    """What it says, without the list of layers that may follow."""
    return str(error).partition("\n")[0] or type(error).__name__


def _patch_of(network: Network) -> int:
    """The side of the patches that a stem cuts the image into; 1 where it goes over it in overlapping steps."""
    stem = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    if stem is None or stem.in_channels != 3 or stem.kernel_size[0] > stem.stride[0]:
        return 1
    return stem.stride[0]


def _up_to(side: int, unit: int) -> int:
    """The next multiple of ``unit``."""
    return -(-side // unit) * unit


def _default_input(name: str) -> int:
    config = timm.get_pretrained_cfg(name)
    return config.input_size[-1] if config else 224


def _resizable(name: str) -> bool:
    return name.startswith(("vit_", "deit", "test_vit"))


def _patch_side(name: str) -> int:
    """The side of the patches that timm's name of a transformer states."""
    stated = re.search(r"patch(\d+)", name)
    return int(stated[1]) if stated else 16


def timm_arguments(spec: ModelSpec) -> dict:
    """The extra arguments of ``timm.create_model``, with what a transformer has to be told of the image size."""
    arguments = dict(spec.arguments)
    if _resizable(spec.name):
        arguments["img_size"] = spec.image_size
        if spec.image_size <= SMALL_IMAGE_SIDE and not spec.pretrained:
            side = max(2, spec.image_size // 8)
            arguments["patch_size"] = next(
                (size for size in range(side, side // 2, -1) if spec.image_size % size == 0), side
            )
    return arguments


def _small_stem(backbone: nn.Module, pretrained: bool) -> Changes:
    """What makes the stem keep the resolution of small images: stride 1, no pooling, 3x3 where a 7x7 would start.

    A deep stem that is thin pools all the same: it has looked at the full resolution three times, and what follows can
    be four times as wide at the same price.
    """
    if isinstance(backbone, VisionTransformer):
        return {}  # its patch size says it
    if isinstance(backbone, ResNet):
        if isinstance(backbone.conv1, nn.Conv2d):
            return {"conv1": _as_small_convolution(backbone.conv1, pretrained), "maxpool": nn.Identity()}
        deep: Any = backbone.conv1  # what a stem is made of has no type of its own
        pool: Changes = {} if deep[-1].out_channels <= THIN_STEM else {"maxpool": nn.Identity()}
        return {"conv1.0.stride": (1, 1), **pool}
    if isinstance(backbone, ResNetV2):
        first = "conv" if "conv" in dict(backbone.stem.named_children()) else "conv1"
        return {f"stem.{first}.stride": (1, 1), "stem.pool": nn.Identity()}
    if isinstance(backbone, ConvNeXt):
        stem: Any = backbone.stem[0]
        if tuple(stem.kernel_size) != tuple(stem.stride):
            return {}
        size = max(1, stem.stride[0] // 2)  # a patchify stem: patches of 2 keep the grid
        return {"stem.0": nn.Conv2d(3, stem.out_channels, size, size, bias=stem.bias is not None)}
    if isinstance(getattr(backbone, "conv_stem", None), nn.Conv2d):
        return {"conv_stem.stride": (1, 1)}
    return {}


def _as_small_convolution(convolution: nn.Conv2d, pretrained: bool) -> nn.Conv2d:
    small = nn.Conv2d(convolution.in_channels, convolution.out_channels, 3, 1, 1, bias=convolution.bias is not None)
    if pretrained:
        middle = (convolution.kernel_size[0] - 3) // 2
        with torch.no_grad():
            small.weight.copy_(convolution.weight[:, :, middle : middle + 3, middle : middle + 3])
    else:
        nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")
    return small
