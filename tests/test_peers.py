"""Several processes share a run and come to what one comes to; what is wrong is said once, and nobody waits for ever.

The tests are the leader; the helper is the program itself, as torchrun starts it. ``slow``: whole scans by torchrun.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Timer

import pytest
import torch
from jsonschema import Draft202012Validator
from test_workdir import scanned

import advrbd
from advrbd.attacks import BadNets
from advrbd.attacks.plant import plant
from advrbd.benchmark.digits import digits, write_image_folder
from advrbd.config import PartitionSettings, TrainingSettings
from advrbd.data.pixels import Pixels
from advrbd.errors import DatasetError, DeviceError, DivergedError, PeerLostError
from advrbd.method.partition import partition
from advrbd.method.perturbation import divergence
from advrbd.model import peers as peers_module
from advrbd.model.device import Device, choose_device
from advrbd.model.factory import ModelSpec, Network
from advrbd.model.peers import ALONE, Peers, joined
from advrbd.model.run import Run
from advrbd.workdir import SUFFIX
from advrbd_cli.launch import part_of

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="no gloo here")

COUNT = 41  # images: no multiple of two
SHORT = TrainingSettings(epochs=2, minimum_steps=0, batch_size=9, learning_rate=0.01, shift=0.1)
ONE = Device(torch.device("cpu"), None, "one")


def surroundings(rank: int, port: int) -> dict[str, str]:
    """What torchrun puts into the environment of the process ``rank`` of two."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    return place | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]


@contextmanager
def helped(code: int) -> Iterator[tuple[Device, subprocess.Popen]]:
    """This process as the leader, on the CPU, and a helper, which ends with ``code`` and without a word."""
    port = free_port()
    command = [sys.executable, "-m", "advrbd_cli", "scan"]
    environment = os.environ | surroundings(1, port)
    with (
        pytest.MonkeyPatch.context() as patch,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as helper,
    ):
        for name, value in surroundings(0, port).items():
            patch.setenv(name, value)
        try:
            with joined() as peers:
                yield replace(ONE, peers=peers), helper
        finally:
            if torch.distributed.is_initialized():  # as it is where a process ends with an error
                torch.distributed.destroy_process_group()
            patience = Timer(100, helper.kill)
            patience.start()
            said = helper.communicate()[0]
            patience.cancel()
        assert (said, helper.returncode) == (b"", code)


@contextmanager
def among(peers: Peers) -> Iterator[None]:
    """What runs here is one of these processes."""
    token = peers_module._current.set(peers)
    try:
        yield
    finally:
        peers_module._current.reset(token)


@pytest.fixture(scope="module")
def two() -> Iterator[Device]:
    """Both of them; tests with other helpers come first, since a process has one group at a time."""
    with helped(0) as (device, _), among(ALONE):
        yield device


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Noise around the colour of the class."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 128, (COUNT, 16, 16, 3), generator=generator)
    return (noise + 40 * torch.arange(COUNT)[:, None, None, None].remainder(3)).to(torch.uint8)


def run_on(device: Device, images: torch.Tensor, model: str) -> Run:
    generator = torch.Generator().manual_seed(1)
    return Run(Pixels(images), torch.arange(COUNT) % 3, ModelSpec(model, 3, 16), device, generator)


def trained(device: Device, images: torch.Tensor, model: str, settings: TrainingSettings = SHORT):
    """A run, its network after training, the last loss, and what the generator would draw next."""
    run = run_on(device, images, model)
    network = run.fresh_network()
    loss = run.train(network, torch.arange(COUNT), settings, "train")
    return run, network, loss, torch.rand(1, generator=run.generator)


def same(one: Network, other: Network) -> None:
    for (name, mine), theirs in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_a_helper_that_is_killed_is_an_error_and_no_wait(images):
    with pytest.raises(PeerLostError, match="another process of this run ended"), helped(-9) as (device, helper):
        trained(device, images, "test_resnet")
        helper.kill()
        trained(device, images, "test_resnet")


def test_a_leader_that_fails_lets_its_helper_go():
    with pytest.raises(DatasetError, match="mine"), helped(2):
        raise DatasetError("mine")


@pytest.mark.parametrize("model", ["test_vit", "test_resnet", "test_efficientnet"])
def test_training_is_that_of_one_process_but_for_rounding(two, images, model):
    """Without batch normalisation, with torch's, and with timm's own."""
    (_, network, loss, drawn), (_, other, expected, drawn_by_one) = (trained(d, images, model) for d in (two, ONE))
    same(network, other)
    assert loss == pytest.approx(expected, abs=1e-3)  # nats; it is small, so its last digits are rounding
    assert torch.equal(drawn, drawn_by_one)


def test_the_helper_gets_its_share_of_a_training(two, images, monkeypatch):
    """Not the whole batch twice: the leader's network sees half of each."""
    sizes = set()
    forward = Network.forward
    monkeypatch.setattr(Network, "forward", lambda self, pixels: sizes.add(len(pixels)) or forward(self, pixels))
    run = run_on(two, images, "test_resnet")
    network = run.fresh_network()
    sizes.clear()
    run.train(network, torch.arange(COUNT), SHORT, "train")
    assert sizes == {5}  # and 4 of 9
    sizes.clear()
    divergence(network, torch.rand(7, 3, 16, 16), PartitionSettings(), two, run.generator)
    assert sizes == {4}


def test_answers_and_divergences_are_those_of_one_process(two, images):
    run, network, _, _ = trained(ONE, images, "test_resnet")
    for mirror in (False, True):
        mine, alone = (replace(run, device=d).infer(network, torch.arange(COUNT).flip(0), mirror) for d in (two, ONE))
        torch.testing.assert_close(mine.logits, alone.logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(mine.features, alone.features, rtol=1e-5, atol=1e-5)
    for few in (0, 1, 2):  # some have nothing to do
        mine, alone = (replace(run, device=d).predict(network, torch.arange(few)) for d in (two, ONE))
        assert torch.equal(mine.classes, alone.classes)
    examples, scores = torch.arange(COUNT), []
    for device in (two, ONE):
        own = replace(run, device=device, generator=torch.Generator().manual_seed(2))
        scores.append(partition(own, network, examples, PartitionSettings()))
    torch.testing.assert_close(scores[0].divergence, scores[1].divergence, rtol=1e-3, atol=1e-5)
    assert torch.equal(scores[0].seeds, scores[1].seeds)


def test_a_training_that_diverges_begins_once_more_with_the_helper(two, images):
    wild = replace(SHORT, learning_rate=1e30, epochs=3)
    with pytest.raises(DivergedError):
        trained(two, images, "test_resnet", wild)
    same(trained(two, images, "test_resnet")[1], trained(ONE, images, "test_resnet")[1])


def test_answers_that_are_no_numbers_are_found_wherever_they_were_computed(two, images):
    run = run_on(two, images, "test_resnet")
    network = run.fresh_network()
    with torch.no_grad():
        network.backbone.get_classifier().bias[0] = torch.nan
    with pytest.raises(DivergedError, match="no finite numbers"):
        run.infer(network, torch.arange(COUNT))
    assert run.infer(run.fresh_network(), torch.arange(COUNT)).logits.isfinite().all()


def test_who_brings_an_objective_trains_alone(two, images):
    run = run_on(two, images, "test_resnet")
    seen = []

    def objective(network, batch, labels):
        seen.append(len(batch))
        return (network(batch) - labels[:, None]).square().mean()

    run.train(run.fresh_network(), torch.arange(COUNT), SHORT, "train", objective=objective)
    assert set(seen) == {9}


def test_more_processes_than_images_in_a_batch_are_refused(images):
    crowd = replace(ONE, peers=Peers(0, 10))
    with pytest.raises(DeviceError, match="10 processes can't share batches of 9 images"):
        trained(crowd, images, "test_resnet")


def test_what_cannot_be_shared_is_done_once():
    done = []

    def app(**_) -> int:
        return done.append("ran") or 1

    ranks = [{"WORLD_SIZE": "3", "RANK": rank, "TORCHELASTIC_RUN_ID": "none"} for rank in "012"]
    assert [part_of(app, ["drill"], rank)() for rank in ranks] == [1, 0, 0]
    assert done == ["ran"]
    for alone in ({}, {"WORLD_SIZE": "1", "RANK": "0"}, {"WORLD_SIZE": "many", "RANK": "0"}, {"WORLD_SIZE": "3"}):
        assert part_of(app, ["scan"], alone) is app
    parts = [part_of(app, ["clean"], rank) for rank in ranks]
    assert app not in parts
    assert parts[1] is parts[2] is not parts[0]


@pytest.mark.parametrize("command", [["verify"], ["env"], ["schema"], ["--help"], ["scann"], []])
def test_no_gate_is_open_to_the_other_processes(command):
    ranks = [{"WORLD_SIZE": "2", "RANK": rank, "TORCHELASTIC_RUN_ID": "none"} for rank in "01"]
    assert [part_of(lambda **_: 1, command, rank)() for rank in ranks] == [1, 1]


def test_without_torchrun_nobody_stands_by():
    assert part_of(lambda **_: 1, ["drill"], {"WORLD_SIZE": "2", "RANK": "1"})() == 1


@pytest.mark.parametrize(("total", "count"), [(0, 2), (1, 3), (7, 3), (9, 3), (512, 7)])
def test_shares_are_all_there_is_once_and_in_order(total, count):
    parts = [range(total)[Peers(rank, count).share(total)] for rank in range(count)]
    assert [item for part in parts for item in part] == list(range(total))
    sizes = list(map(len, parts))
    assert sizes == sorted(sizes, reverse=True) and sizes[0] - sizes[-1] <= 1
    assert parts == [range(total)[Peers(0, count).share(total, rank)] for rank in range(count)]


def test_the_device_of_each_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with among(Peers(1, 4, 1)):
        chosen = choose_device()
        assert (chosen.device.type, chosen.peers) == ("cpu", Peers(1, 4, 1))
        for name in ("cuda:0", "mps"):
            with pytest.raises(DeviceError, match=f"4 processes can't work on {name}; use --device auto, cuda or cpu"):
                choose_device(name)
    with among(ALONE):
        assert choose_device("cpu").peers is ALONE


@pytest.fixture(scope="module")
def data(digits_folder, tmp_path_factory) -> Path:
    """The first four digits, 30 each, an eighth of them with a large trigger and the label 0."""
    root = tmp_path_factory.mktemp("peers")
    for label in "0123":
        shutil.copytree(digits_folder / label, root / "clean" / label)
    plant(root / "clean", root / "data", BadNets(side=8), "0", 0.12)
    return root / "data"


def test_a_scan_is_shared_and_its_work_kept_for_as_many_processes(two, data, tmp_path):
    whole = scanned(data)
    with among(two.peers):
        shared = scanned(data, work_dir=tmp_path / "work")
        kept = len(list((tmp_path / "work").glob(f"*{SUFFIX}")))
        assert scanned(data, work_dir=tmp_path / "work", resume=True) == shared
    assert (whole["run"].pop("processes"), shared["run"].pop("processes")) == (1, 2)
    assert kept == len(list((tmp_path / "work").glob(f"*{SUFFIX}"))) > 3
    assert [file["path"] for file in shared["files"]] == [file["path"] for file in whole["files"]]
    assert [file["sha256"] for file in shared["files"]] == [file["sha256"] for file in whole["files"]]
    with pytest.raises(advrbd.AdvrbdError, match=r"other device, processes"):
        scanned(data, work_dir=tmp_path / "work", resume=True)


QUICKLY = """
import sys
from dataclasses import replace
import advrbd.config, advrbd.pipeline
sys.path.insert(0, {tests!r})
from test_workdir import QUICK
advrbd.config.Config = lambda **given: replace(QUICK, **given)
from advrbd_cli.app import main
main()
"""
SCAN = ("scan", "data", "-o", "report.json", "--all-files", "--exit-zero", "--device", "cpu")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def report_of(*words: str, cwd: Path) -> tuple[dict, str]:
    """The report that a scan in the folder ``cwd`` writes, and its stderr."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=900
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    report = json.loads((cwd / "report.json").read_bytes())
    schema = Path(advrbd.__file__).parent / "reports" / "schema" / "report-1.json"
    Draft202012Validator(json.loads(schema.read_bytes())).validate(report)
    (cwd / "report.json").unlink()
    return report, done.stderr


@pytest.mark.slow
def test_torchrun_starts_a_scan_that_writes_and_says_everything_once(data, tmp_path, snapshot):
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "quickly.py").write_text(QUICKLY.format(tests=str(Path(__file__).parent)))
    before = snapshot(tmp_path)
    report, said = report_of(*TORCHRUN, "quickly.py", *SCAN, "--model", "test_resnet", cwd=tmp_path)
    assert snapshot(tmp_path) == before
    assert report["run"]["processes"] == 2
    for start in ("device: ", "model: ", "decode: ", "verdict: "):
        assert sum(line.startswith(start) for line in said.splitlines()) == 1, said
    assert "Traceback" not in said


@pytest.mark.slow
def test_two_processes_come_to_the_report_of_one(tmp_path):
    shown, labels, _, _ = digits()
    write_image_folder(shown[labels < 4], labels[labels < 4], tmp_path / "clean")
    plant(tmp_path / "clean", tmp_path / "data", BadNets(seed=0), "3", 0.05)
    (one, _), (two, _) = (report_of(*words, "-m", "advrbd_cli", *SCAN, cwd=tmp_path) for words in ((), TORCHRUN))
    suspects = [{file["path"] for file in report["files"] if file["suspect"]} for report in (one, two)]
    assert one["verdict"] == two["verdict"] == "poisoned"
    assert [entry["verdict"] for entry in one["classes"]] == [entry["verdict"] for entry in two["classes"]]
    assert len(suspects[0] & suspects[1]) >= 0.9 * len(suspects[0] | suspects[1]) > 0
