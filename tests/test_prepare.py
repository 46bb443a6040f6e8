"""Whoever prepares a run, the pipeline or an experiment, does it by the same settings; on CUDA it is repeatable."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from advrbd.benchmark.case import Case
from advrbd.benchmark.drill import drill
from advrbd.benchmark.matrix import Unit
from advrbd.config import MAX_SEED, Config, DecodingSettings, TrainingSettings
from advrbd.data import pixels
from advrbd.errors import AdvrbdError, DatasetError, DecoderError
from advrbd.model.device import Device, repeatable
from advrbd.preparation import prepare, usable

QUICK = Config(model="test_resnet", device="cpu")
SMALL = DecodingSettings(max_pixels=16 * 16 - 1)
BAD = DecodingSettings(seconds=float("nan"))  # no process starts with it


def case_of(data: Path, tmp_path: Path, overrides: tuple = ()) -> Case:
    unit = Unit(data, 30, 0, QUICK.model, "none", 0.0, 0, "cpu", overrides, budget=1.0)
    return Case(unit, tmp_path, data, (), tmp_path / "report.json", {})


def test_an_experiment_prepares_as_the_pipeline_does(digits_folder, tmp_path):
    case = case_of(digits_folder, tmp_path)
    index, run = case.prepared
    same, expected = prepare(digits_folder, case.unit.config)
    assert index == same
    assert run.spec == expected.spec
    assert torch.equal(run.pixels.images, expected.pixels.images)
    assert torch.equal(run.generator.get_state(), expected.generator.get_state())
    assert usable(index).tolist() == list(range(len(index.files)))


def test_an_experiment_decodes_by_its_settings(digits_folder, tmp_path):
    case = case_of(digits_folder, tmp_path, (("decoding.max_pixels", SMALL.max_pixels),))
    assert case.unit.config.decoding == SMALL
    with pytest.raises(DatasetError, match="no readable image in class"):
        _ = case.prepared


def test_a_drill_measures_its_images_by_its_settings(digits_folder):
    with pytest.raises(DecoderError):
        drill(digits_folder, ["badnets"], replace(QUICK, decoding=BAD))
    drill(digits_folder, ["badnets"], QUICK)


def settings() -> tuple[bool, ...]:
    backend = torch.backends.cudnn
    deterministic = torch.are_deterministic_algorithms_enabled()
    return (
        deterministic,
        torch.is_deterministic_algorithms_warn_only_enabled(),
        backend.deterministic,
        backend.benchmark,
    )


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1, 2**64])
def test_a_seed_out_of_range_is_refused_before_decoding(digits_folder, monkeypatch, seed):
    monkeypatch.setattr(pixels, "load", None)
    with pytest.raises(AdvrbdError, match=f"the seed has to be a number from 0 to {MAX_SEED}, not {seed}; choose"):
        prepare(digits_folder, replace(QUICK, seed=seed))


def test_the_largest_seed_is_taken(digits_folder):
    assert prepare(digits_folder, replace(QUICK, seed=MAX_SEED))[1].generator.initial_seed() == MAX_SEED


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_nothing_is_changed_without_cuda(device):
    before = settings()
    with repeatable(Device(torch.device(device), None, "")):
        assert settings() == before


def test_with_cuda_torch_is_deterministic_where_it_can_be_and_silent_where_not():
    before, filled = settings(), torch.utils.deterministic.fill_uninitialized_memory
    with pytest.raises(KeyError), repeatable(Device(torch.device("cuda"), None, "")):
        assert settings() == (True, True, True, False)
        assert not torch.utils.deterministic.fill_uninitialized_memory
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))  # has no deterministic implementation
        raise KeyError
    assert settings() == before
    assert torch.utils.deterministic.fill_uninitialized_memory == filled


def test_without_flips_nothing_is_mirrored(digits_folder, monkeypatch):
    index, run = prepare(digits_folder, replace(QUICK, flip=False))
    trained = []
    monkeypatch.setattr("advrbd.model.run.train", lambda *arguments: trained.append(arguments[4].flip) or 0.0)
    network, every = run.fresh_network(), usable(index)
    for one in (run, replace(run, flip=True)):
        one.train(network, every, TrainingSettings(), "warm-up")
    assert trained == [False, True]
    plain, mirrored = (run.infer(network, every, mirror=mirror).logits for mirror in (False, True))
    assert torch.equal(plain, mirrored)
    assert not torch.equal(plain, replace(run, flip=True).infer(network, every, mirror=True).logits)
