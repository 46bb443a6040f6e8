"""``advrbd drill``: exit codes, one line for what goes wrong, no copy left behind, and one drill from end to end."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from advrbd.attacks import PAPER, WIDER
from advrbd.benchmark import drill as drilling
from advrbd.benchmark.digits import digits, write_image_folder
from advrbd.benchmark.drill import Drilled
from advrbd.benchmark.drill_report import meaning
from advrbd.benchmark.metrics import Detection
from advrbd.errors import ModelError
from advrbd_cli import console
from advrbd_cli.app import main
from advrbd_cli.drill import _names
from advrbd_cli.exits import Signalled

COMMAND = (sys.executable, "-m", "advrbd_cli", "drill")

HIT = Drilled("badnets", 0.1, 100, "cat", 1.0, Detection(100, 100, 900, 0, 0, 0, 0, 0, 0.5), "poisoned", ("a caution",))
MISS = replace(HIT, attack="blend", detection=replace(HIT.detection, found=89))
NO_TEST = replace(HIT, attack="sig", attack_success_rate=0.4)
NOISE = replace(
    HIT, attack="label-noise", attack_success_rate=None, detection=Detection(0, 0, 900, 0, 0, 0, 100, 1, float("nan"))
)


def run(monkeypatch, folder: Path, *arguments: str) -> int:
    """The exit code of ``advrbd drill`` in ``folder``, in this process."""
    monkeypatch.setattr(sys, "argv", ["advrbd", "drill", *arguments])
    monkeypatch.setattr(console, "state", console.State())
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as ending:
        main()
    return ending.value.code or 0


@pytest.fixture
def place(tmp_path, digits_folder) -> Path:
    """Where drills of ``data`` run, with ``work`` for their copies, and settings in ``mine.toml``."""
    shutil.copytree(digits_folder, tmp_path / "data")
    (tmp_path / "mine.toml").touch()
    (tmp_path / "work").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(("data", "--attacks", "badnets,magic"), "unknown attack 'magic'; there are badnets", id="attack"),
        pytest.param(("data", "--attacks", ""), "unknown attack ''", id="no attack"),
        pytest.param(("data", "--target-label", "cat"), "data has no class 'cat'; its classes are 0, 1", id="target"),
        pytest.param(("data", "--poison-rate", "0"), "makes no sense", id="no rate"),
        pytest.param(("data", "--poison-rate", "1.5"), "--poison-rate", id="rate"),
        pytest.param(("data", "-o", "data/r.csv"), "inside the scanned folder", id="output inside"),
        pytest.param(("data", "--config", "mine.toml", "-o", "mine.toml"), "which this run reads", id="own settings"),
        pytest.param(("data", "-o", "no/r.csv"), "folder no doesn't exist", id="output nowhere"),
        pytest.param(("data", "-f", "json"), "add --output", id="format of nothing"),
        pytest.param(("data", "--work-dir", "data/3"), "lies inside data", id="work inside"),
        pytest.param(("data", "--work-dir", "no"), "no such folder to work in: no", id="work nowhere"),
        pytest.param(("data", "--model", "nosuchnet"), "no model 'nosuchnet'", id="model"),
        pytest.param(("data", "--split", "train"), "no split folder named 'train'", id="split"),
        pytest.param(("missing",), "no such folder: missing", id="missing"),
        pytest.param(("missing", "--max-pixels", "5000"), "no such folder: missing", id="what a scan's page passes on"),
    ],
)
def test_what_goes_wrong_is_one_line_and_exit_code_2(arguments, message, place, snapshot, monkeypatch, capfd):
    before = snapshot(place)
    assert run(monkeypatch, place, *arguments) == 2
    out, err = capfd.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert err.startswith("error: ")
    assert message in err
    assert "internal error" not in err
    assert snapshot(place) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_drill_that_is_ended_leaves_no_copy(place, snapshot, number, code):
    before = snapshot(place)
    command = [*COMMAND, "data", "--work-dir", "work", "--model", "test_resnet", "--device", "cpu", "-o", "r.csv"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background starts out deaf to it
    with subprocess.Popen(command, cwd=place, stdout=-1, stderr=-1, text=True, preexec_fn=heard) as process:
        seen = iter(process.stderr.readline, "")
        assert any(line.startswith("badnets: model: ") for line in seen)  # from here on it works for long
        assert list((place / "work").iterdir())
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")
    assert "Traceback" not in err
    assert snapshot(place) == before


def drill_with(entries: list[Drilled], monkeypatch, folder: Path, *options: str) -> int:
    """The exit code of a drill with these results: what is tested here is what becomes of them."""
    monkeypatch.setattr(drilling, "drill", lambda *_, **__: iter(entries))
    (folder / "data").mkdir(exist_ok=True)
    return run(monkeypatch, folder, "data", *options)


@pytest.mark.parametrize(
    ("entries", "code"),
    [
        ([HIT, NO_TEST], 0),
        ([HIT, MISS], 1),
        ([HIT, NOISE], 1),
        ([NO_TEST], 2),
    ],
)
def test_exit_codes(entries, code, monkeypatch, tmp_path, capfd):
    assert drill_with(entries, monkeypatch, tmp_path, "-o", "-", "-f", "json") == code
    out, err = capfd.readouterr()
    assert [row["attack"] for row in json.loads(out)["attacks"]] == [entry.attack for entry in entries]
    assert ("error: no attack took" in err) == (code == 2)
    assert meaning(entries) in err
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(("error", "code"), [(ModelError("no good"), 2), (Signalled(signal.SIGINT), 130)])
def test_what_was_drilled_before_a_failure_is_kept(error, code, monkeypatch, tmp_path, capfd):
    def drilled(*_, **__):
        yield HIT
        raise error

    monkeypatch.setattr(drilling, "drill", drilled)
    (tmp_path / "data").mkdir()
    assert run(monkeypatch, tmp_path, "data", "-o", "d.json") == code
    assert [row["attack"] for row in json.loads((tmp_path / "d.json").read_text())["attacks"]] == ["badnets"]
    assert meaning([HIT]) not in capfd.readouterr().err


def test_a_report_only_where_one_was_asked_for(monkeypatch, tmp_path, capfd):
    assert drill_with([HIT], monkeypatch, tmp_path) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    out, err = capfd.readouterr()
    assert out == ""
    assert "badnets: found (attack success rate 100.0%, 100 of 100 files found, 0 false alarms in 900 clean" in err
    assert drill_with([HIT], monkeypatch, tmp_path, "-q", "-o", "r.JSON") == 0
    assert capfd.readouterr() == ("", "")
    assert json.loads((tmp_path / "r.JSON").read_text())["attacks"][0]["cautions"] == ["a caution"]


def test_the_attacks_that_are_asked_for():
    everything = [attack.name for attack in PAPER + WIDER]
    assert _names("all") == everything
    assert _names("blend, badnets,blend") == ["blend", "badnets"]
    assert _names("sig,all") == ["sig", *(name for name in everything if name != "sig")]


@pytest.mark.slow
def test_a_drill_from_end_to_end(tmp_path, snapshot):
    images, labels, _, _ = digits()
    few = labels < 6  # what all ten take longer for shows nothing more
    write_image_folder(images[few], labels[few], tmp_path / "data")
    (tmp_path / "work").mkdir()
    before = snapshot(tmp_path)
    options = ("--attacks", "badnets", "--poison-rate", "0.1", "--work-dir", "work", "-o", "-", "-f", "json")
    done = subprocess.run([*COMMAND, "data", *options], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert snapshot(tmp_path) == before
    whole = json.loads(done.stdout)
    [result] = whole["attacks"]
    assert (result["attack"], result["outcome"], result["verdict"]) == ("badnets", "found", "poisoned")
    assert result["target_label"] == str(np.bincount(labels[few]).argmax())
    assert result["planted"] == result["poisoned"] == round(0.1 * few.sum())
    assert result["attack_success_rate"] > 0.8
    assert result["true_positive_rate"] >= 0.9
    assert result["false_positive_rate"] < 0.01
    assert whole["run"]["model"]["image_size"] == 16
    assert f"planted in {result['planted']} of {few.sum()} files" in done.stderr
    assert "1 of 1 attacks that took was found" in done.stderr
