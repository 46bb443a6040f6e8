"""Settings come from the place that is documented to win, unknown ones are refused, and the dataset sets nothing."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import advrbd.pipeline
from advrbd.reports.report import CLEAN, ClassVerdict, Report
from advrbd_cli import console, env
from advrbd_cli.app import main
from advrbd_cli.settings import PREFIX

NOTHING = Report((), (ClassVerdict("cat", 0, 0, CLEAN),))


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """An empty working directory beside a folder to scan, and no setting in the environment."""
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    for folder in ("work", "data/cat", "data/dog"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.fixture
def call(place, monkeypatch, capfd):  # noqa: ARG001 - it runs in that place
    """A function from arguments to the exit code, the settings that the library was called with, and stderr."""

    def run(*arguments: str) -> SimpleNamespace:
        seen = []

        def scanned(_, config, **__):
            seen.append(config)
            return NOTHING

        monkeypatch.setattr(advrbd.pipeline, "scan", scanned)
        monkeypatch.setattr(console, "state", console.State())
        monkeypatch.setattr(sys, "argv", ["advrbd", *arguments])
        with pytest.raises(SystemExit) as ending:
            main()
        captured = capfd.readouterr()
        config = seen[0] if seen else None
        return SimpleNamespace(code=ending.value.code or 0, config=config, err=captured.err, out=captured.out)

    return run


def pyproject(text: str) -> None:
    Path("pyproject.toml").write_text(f"[tool.advrbd]\n{text}\n")


def assert_refused(done: SimpleNamespace, *messages: str) -> None:
    assert (done.code, done.out, done.config) == (2, "", None), done.err
    (line,) = done.err.splitlines()
    assert line.startswith("error: ")
    for message in messages:
        assert message in line


def test_each_place_wins_over_the_weaker_ones(call, monkeypatch):
    settings = ("scan", "../data", "--config", "mine.toml")
    assert call("scan", "../data").config.seed == 0
    pyproject("seed = 1")
    assert call("scan", "../data").config.seed == 1
    Path("mine.toml").write_text("seed = 2\n")
    assert call(*settings).config.seed == 2
    monkeypatch.setenv("ADVRBD_SEED", "3")
    assert call(*settings).config.seed == 3
    assert call(*settings, "--seed", "0").config.seed == 0  # the default's value, said aloud, wins too


def test_places_add_up(call, monkeypatch):
    pyproject('model = "resnet18"\ndevice = "cuda"')
    Path("mine.toml").write_text('device = "cpu"\n')
    monkeypatch.setenv("ADVRBD_CONFIG", "mine.toml")
    monkeypatch.setenv("ADVRBD_IMAGE_SIZE", "32")
    monkeypatch.setenv("ADVRBD_SEED", "")  # empty is as good as not set
    config = call("scan", "../data").config
    assert (config.model, config.device, config.image_size, config.seed) == ("resnet18", "cpu", 32, 0)


def test_a_commands_own_table_wins_and_the_others_dont_count(call):
    pyproject("seed = 1\nconfidence-floor = 0.8\n[tool.advrbd.scan]\nseed = 2\n[tool.advrbd.clean]\nseed = 3")
    assert call("scan", "../data").config.seed == 2


def test_flags_and_formats_can_be_set(call, monkeypatch):
    pyproject('format = "json"\nall-files = true\nprogress = false\nfail-on = 5')
    assert call("scan", "../data").code == 0
    assert Path("advrbd-report.json").read_text().startswith("{")
    monkeypatch.setenv("ADVRBD_FORMAT", "jsonl")
    assert call("scan", "../data").code == 0
    assert Path("advrbd-report.jsonl").exists()
    monkeypatch.setenv("ADVRBD_PRETRAINED", "yes")
    assert call("scan", "../data").config.pretrained is True


def test_a_pyproject_without_a_table_for_it_says_nothing(call):
    Path("pyproject.toml").write_text("[tool.ruff]\nseed = 7\n")
    done = call("scan", "../data")
    assert (done.code, done.config.seed) == (0, 0)
    assert "settings" not in done.err


def test_where_values_came_from_is_said(call, monkeypatch):
    pyproject('seed = 7\nmodel = "resnet18"')
    monkeypatch.setenv("ADVRBD_DEVICE", "cpu")
    monkeypatch.setenv("ADVRBD_MODEL", "resnet50")
    err = call("scan", "../data").err
    assert "settings from pyproject.toml: seed\n" in err
    assert "settings from the environment: model, device\n" in err
    err = call("scan", "../data", "-v", "--seed", "8").err
    assert "settings from the environment: model = resnet50, device = cpu\n" in err
    assert "pyproject" not in err
    assert "settings" not in call("scan", "../data", "-q").err


@pytest.mark.parametrize("origin", ["pyproject.toml", "mine.toml", "the environment"])
def test_no_setting_silences_where_it_came_from(call, monkeypatch, origin):
    options = ()
    if origin == "pyproject.toml":
        pyproject("quiet = true\nexit-zero = true")
    elif origin == "mine.toml":
        Path(origin).write_text("quiet = true\nexit-zero = true\n")
        options = ("--config", origin)
    else:
        monkeypatch.setenv("ADVRBD_QUIET", "1")
        monkeypatch.setenv("ADVRBD_EXIT_ZERO", "1")
    told = call("scan", "../data", *options).err
    assert sorted(told.partition(f"settings from {origin}: ")[2].strip().split(", ")) == ["exit-zero", "quiet"]
    assert told.count("\n") == 1  # all else is quiet
    assert call("scan", "../data", *options, "-q").err == ""


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("sede = 1", ("pyproject.toml: unknown setting sede", "did you mean seed?")),
        ("fail_on = 1", ("fail_on", "did you mean fail-on?")),
        ("config = 'x.toml'", ("unknown setting config",)),
        ("data = 'x'", ("unknown setting data",)),
        ("[tool.advrbd.scan]\nconfidence-floor = 0.5", ("unknown setting scan.confidence-floor",)),
        ("[tool.advrbd.clean]\nactoin = 'drop'", ("unknown setting clean.actoin", "did you mean action?")),
        ("[tool.advrbd.scna]\nseed = 1", ("unknown setting scna", "did you mean scan?")),
        ("seed = '1'", ("pyproject.toml: seed should be a whole number, not '1'",)),
        ("seed = true", ("seed should be a whole number",)),
        ("seed = 1.5", ("seed should be a whole number",)),
        ("seed = -1", ("pyproject.toml: seed", "greater than or equal to 0")),
        ("strict = 1", ("strict should be true or false, not 1",)),
        ("model = true", ("model should be text",)),
        ("model = ['a']", ("model should be text",)),
        ("format = 'yaml'", ("pyproject.toml: format", "'yaml'", "'jsonl'")),
        ("seed = ", ("pyproject.toml is no TOML",)),
        (f"seed = {'[' * 5000}", ("pyproject.toml is no TOML", "nested too deeply")),
        (f"seed = {'9' * 5000}", ("pyproject.toml is no TOML", "5000 digits")),
        (f"seed = 0x{'9' * 5000}", ("pyproject.toml: seed", "digits")),
        (f"seed = [0x{'9' * 5000}]", ("pyproject.toml: seed", "digits")),
    ],
)
def test_what_nobody_knows_or_has_another_type_is_refused(call, text, messages):
    pyproject(text)
    assert_refused(call("scan", "../data"), *messages)


def test_other_tables_of_another_kind_are_refused(call):
    Path("pyproject.toml").write_text("[tool]\nadvrbd = 3\n")
    assert_refused(call("scan", "../data"), "tool.advrbd is no table")


@pytest.mark.parametrize(
    ("name", "value", "messages"),
    [
        ("ADVRBD_SEDE", "1", ("ADVRBD_SEDE, which is no setting", "did you mean ADVRBD_SEED?")),
        ("ADVRBD_FORM", "csv", ("did you mean ADVRBD_FORMAT?",)),
        ("ADVRBD_SEED", "x", ("ADVRBD_SEED: ", "valid integer", "got 'x'")),
        ("ADVRBD_STRICT", "maybe", ("ADVRBD_STRICT: ", "got 'maybe'")),
        ("ADVRBD_NO_CONFIG", "1", ("ADVRBD_NO_CONFIG, which is no setting",)),
    ],
)
def test_variables_are_checked_like_files(call, monkeypatch, name, value, messages):
    monkeypatch.setenv(name, value)
    assert_refused(call("scan", "../data"), *messages)


def test_settings_of_other_commands_are_no_unknown_ones(call, monkeypatch):
    monkeypatch.setenv("ADVRBD_CONFIDENCE_FLOOR", "0.9")  # of clean
    monkeypatch.setenv("ADVRBD_POISON_RATE", "0.1")  # of drill
    assert call("scan", "../data").code == 0


def test_a_config_that_cant_be_read_is_refused(call, place):
    assert_refused(call("scan", "../data", "--config", "no.toml"), "cannot read the settings in no.toml")
    (place / "work" / "bad.toml").write_bytes(b"\xff")
    assert_refused(call("scan", "../data", "--config", "bad.toml"), "bad.toml is no TOML")


def test_no_config_reads_no_file(call, monkeypatch):
    pyproject("nonsense = 1")
    monkeypatch.setenv("ADVRBD_CONFIG", "missing.toml")
    monkeypatch.setenv("ADVRBD_SEED", "4")
    assert call("scan", "../data", "--no-config").config.seed == 4  # the environment is no file
    Path("mine.toml").write_text("seed = 2\n")
    assert_refused(call("scan", "../data", "--no-config", "--config", "mine.toml"), "contradict each other")


def test_help_answers_however_broken_the_settings_are(call, monkeypatch):
    pyproject("nonsense =")
    monkeypatch.setenv("ADVRBD_SEED", "5")
    done = call("scan", "--help")
    assert (done.code, done.err) == (0, "")
    assert "[default: 0]" in done.out
    assert "--no-config" in done.out


def test_only_the_working_directorys_pyproject_counts(call, place):
    (place / "pyproject.toml").write_text("[tool.advrbd]\nseed = 9\n")  # above
    (place / "data" / "pyproject.toml").write_text("[tool.advrbd]\nexit-zero = true\nseed = 9\n")
    assert call("scan", "../data").config.seed == 0


@pytest.mark.parametrize("inner", ["", "cat"])
def test_the_dataset_never_configures_its_scan(call, monkeypatch, place, inner):
    here = place / "data" / inner
    (here / "pyproject.toml").write_text("[tool.advrbd]\nseed = 9\n")
    monkeypatch.chdir(here)
    done = call("scan", str(place / "data"), "-o", "-")
    assert (done.code, done.config.seed) == (0, 0)
    assert "warning: pyproject.toml lies in the scanned folder, so it isn't read" in done.err


def test_a_link_into_the_dataset_is_the_datasets(call, place):
    (place / "data" / "evil.toml").write_text("[tool.advrbd]\nseed = 9\n")
    Path("pyproject.toml").symlink_to("../data/evil.toml")
    assert call("scan", "../data").config.seed == 0
    assert_refused(call("scan", "../data", "--config", "../data/evil.toml"), "--config", "lies in the scanned folder")
    (place / "link").symlink_to("data")
    assert_refused(call("scan", "../link", "--config", "../data/evil.toml"), "lies in the scanned folder")


def test_clean_and_drill_take_settings_too(call):
    pyproject("sede = 1")
    assert_refused(call("clean", "../data", "--out", "new"), "unknown setting sede")
    assert_refused(call("drill", "../data"), "unknown setting sede")
    assert call("schema").code == 0  # what scans nothing has no settings


def test_env_is_on_stdout(call):
    lines = dict(line.split(": ", 1) for line in call("env").out.splitlines())
    assert {"advrbd", "Python", "CPU", "GPU", "timm", "torch", "torch threads", "torch sees"} <= lines.keys()
    assert lines["advrbd"] == advrbd.__version__


def test_env_says_what_is_broken(call, monkeypatch):
    def missing(name):
        raise env.PackageNotFoundError(name)

    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(env, "version", missing)
    done = call("env")
    assert done.code == 0
    assert "torch: not installed\n" in done.out
    assert "torch is broken: ModuleNotFoundError: " in done.out


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 'NVIDIA H200, 580.1, 143771 MiB'", "GPU: NVIDIA H200, driver 580.1, 143771 MiB\n"),
        ("exit 9", "GPU: nvidia-smi failed: exit code 9\n"),
    ],
)
def test_env_asks_the_driver(call, monkeypatch, place, script, expected):
    tool = place / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)
    assert expected in call("env").out
