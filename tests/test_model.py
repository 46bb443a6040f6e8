"""Any timm model, fitted to the images: sizes, stems, errors."""

import os
import subprocess
import sys

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from advrbd.errors import DeviceError, ModelError
from advrbd.model.device import Device, choose_device
from advrbd.model.factory import ModelSpec, Network, build, choose_model

CPU = choose_device("cpu")


@pytest.mark.parametrize(
    "name",
    ["test_resnet", "test_efficientnet", "test_vit", "test_convnext", "resnet18", "mobilenetv2_050", "resnetv2_18"],
)
def test_models_of_every_kind_take_small_images_and_their_features_are_what_the_classifier_reads(name):
    _, arguments, size = choose_model(name, 32, CPU)
    spec = ModelSpec(name, 7, size, arguments=arguments)
    network = build(spec, CPU, torch.Generator().manual_seed(0))
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        features = network.features(images)
        assert features.ndim == 2
        assert torch.allclose(network.classify(features), network(images), atol=1e-5)
        assert network(images).shape == (2, 7)


GPU = Device(torch.device("cuda"), None, "made up")  # for what chooses and doesn't compute


@pytest.mark.parametrize(
    ("name", "side", "device", "pretrained", "expected"),
    [
        ("test_vit", 32, CPU, False, 32),
        ("test_vit", 100, GPU, False, 112),
        ("vit_tiny_patch16_224", 20, CPU, True, 32),
        ("vit_small_patch14_dinov2", 100, GPU, False, 112),
        ("vit_small_patch14_dinov2", 500, CPU, True, 70),
        ("resnet18", 100, GPU, False, 104),
    ],
)
def test_sizes_are_such_that_patches_cover_all_of_an_image(name, side, device, pretrained, expected):
    assert choose_model(name, side, device, pretrained=pretrained)[2] == expected


def seen_at_the_border(network: Network) -> bool:
    """Whether the last row and the last column of an image make any difference."""
    image = torch.rand(1, 3, network.spec.image_size, network.spec.image_size, requires_grad=True)
    network.features(image)[0, 0].backward()
    return bool(image.grad[..., -1, :].any() and image.grad[..., :, -1].any())


@pytest.mark.parametrize(
    ("name", "size", "whole"),
    [("vit_tiny_patch16_224", 104, 112), ("test_vit", 61, 63), ("convmixer_768_32", 32, 35)],
)
def test_a_border_that_no_patch_covers_is_refused_with_a_size_that_is_covered(name, size, whole):
    with pytest.raises(ModelError, match=f"right and bottom border, .* use --image-size {whole}"):
        build(ModelSpec(name, 3, size), CPU, torch.Generator())


@pytest.mark.parametrize(("name", "size"), [("test_vit", 112), ("test_vit", 44), ("test_convnext", 72)])
def test_what_is_built_sees_the_border(name, size):
    assert seen_at_the_border(build(ModelSpec(name, 3, size), CPU, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("volo_d1_224", 224, "answers otherwise than by one layer"),
        ("levit_128s", 224, "answers otherwise than by one layer"),  # one more layer, for distillation
        ("sequencer2d_s", 35, "doesn't take 35-pixel"),
    ],
)
def test_a_model_that_cant_be_used_as_it_is_is_refused(name, size, message):
    with pytest.raises(ModelError, match=message):
        build(ModelSpec(name, 3, size), CPU, torch.Generator())


def test_the_stem_of_a_residual_net_keeps_small_images_and_halves_large_ones():
    shapes = {}
    for size in (32, 128):
        network = build(ModelSpec("resnet18", 10, size), CPU, torch.Generator())
        shapes[size] = network.backbone.forward_features(torch.zeros(1, 3, size, size)).shape[-1]
    assert shapes == {32: 4, 128: 4}  # strides 8 and 32


def test_pretrained_weights_fit_the_model_that_is_picked_for_a_cpu(monkeypatch):
    name, arguments, size = choose_model("auto", 32, CPU, pretrained=True)
    assert timm.get_pretrained_cfg(name).has_weights
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *args, **how: create(*args, **how | {"pretrained": False}))
    assert arguments == {}  # of another width, timm's weights would fit nothing
    network = build(ModelSpec(name, 3, size, pretrained=True), CPU, torch.Generator().manual_seed(0))
    imagenet = timm.get_pretrained_cfg(name).mean
    assert network.spec.mean == imagenet  # and that is what the report states
    assert torch.allclose(network.mean.flatten(), torch.tensor(imagenet))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("no way to the hub\nand so on"), "fetch the weights of resnet18: no way to the hub; .* --pretrained"),
        (
            RuntimeError("size mismatch\n\tlayer 1\n\tlayer 2"),
            "can't build resnet18 for 32-pixel images: size mismatch$",
        ),
    ],
)
def test_what_timm_says_of_weights_is_one_line(monkeypatch, error, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(ModelError, match=message):
        build(ModelSpec("resnet18", 3, 32, pretrained=True), CPU, torch.Generator())


@pytest.mark.parametrize(("side", "expected"), [(8, 16), (28, 32), (32, 32), (64, 64), (500, 64)])
def test_auto_on_a_cpu_trains_a_small_net_at_the_size_of_the_images_within_reason(side, expected):
    name, arguments, size = choose_model("auto", side, CPU)
    assert size == expected
    work = []
    for spec in (ModelSpec(name, 10, size, arguments=arguments), ModelSpec("resnet18", 10, size)):
        with FlopCounterMode(display=False) as counter:
            build(spec, CPU, torch.Generator())(torch.zeros(1, 3, size, size))
        work.append(counter.get_total_flops())
    assert work[0] < work[1] / 10


def test_weights_come_from_the_generator_and_the_global_one_is_left_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    nets = [build(ModelSpec("test_resnet", 3, 16), CPU, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)]
    first, same, other = (next(network.parameters()) for network in nets)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(torch.rand(1), expected)


def test_unknown_models_and_devices_are_refused_with_a_way_out():
    with pytest.raises(ModelError, match="resnet18"):
        choose_model("esnet18", 32, CPU)
    with pytest.raises(DeviceError, match="auto"):
        choose_device("abacus")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="--device cpu"):
            choose_device("cuda")


@pytest.mark.parametrize(
    ("processors", "asked_for", "expected"),
    [(1, None, "cpu, 1 threads"), (2, None, "cpu, 2 threads"), (1, "3", "cpu, 3 threads")],
)
def test_torch_gets_no_more_threads_than_a_quota_leaves_unless_it_was_told_how_many(processors, asked_for, expected):
    program = f"""
import joblib, torch
torch.set_num_threads(3)  # as on a machine with as many cores
joblib.cpu_count = lambda: {processors}
from advrbd.model.device import choose_device
print(choose_device("cpu").reason)
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"OMP_NUM_THREADS": asked_for} if asked_for else {}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(expected)
