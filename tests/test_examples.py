"""The examples for pipelines do what they promise, with a report that is there or an advrbd that only pretends."""

import hashlib
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from small import SHORT, SMALL

import advrbd
import advrbd.pipeline
from advrbd.baselines.dbr import DBR
from advrbd.benchmark.datasets import digits_data
from advrbd.benchmark.matrix import Unit
from advrbd.benchmark.settings import parse_overrides
from advrbd.config import TrainingSettings
from advrbd.data.folder import OK, UNREADABLE
from advrbd.errors import BenchmarkError, UntrustedError
from advrbd.reports.accepted import accept
from advrbd.reports.report import CLEAN, POISONED, ClassVerdict, FileResult, Report
from advrbd.reports.tables import read_suspects, render
from advrbd_cli.app import app

ROOT = Path(__file__).parents[1]
PIPELINES = ROOT / "examples" / "pipelines"
STUB = """#!/bin/sh
# tells what it was asked and with which settings, writes the report that is wanted, and exits as it was told
command=$1; shift
{ printf '%s' "$command"; printf ' <%s>' "$@"; printf ' %s\\n' "$(env | grep '^ADVRBD_' | tr '\\n' ' ')"; } >> "$CALLS"
while [ $# -gt 0 ]; do
    [ "$1" = --output ] && cp "$PREPARED" "$2"
    shift
done
[ "$command" = clean ] && exit "${CODE_OF_CLEAN:-$CODE}"
exit "$CODE"
"""


@pytest.fixture
def data(tmp_path) -> Path:
    """Two classes of three files, with a space in the folder's name."""
    root = tmp_path / "in coming"
    for label in ("cat", "dog"):
        (root / label).mkdir(parents=True)
        for number in range(3):
            (root / label / f"{number}.png").write_bytes(f"{label}{number}".encode())
    return root


def report_on(root: Path) -> Report:
    """The first cat looks like a dog, the first dog like nothing else, the second cat couldn't be read."""
    files = []
    for path in sorted(root.glob("*/*.png")):
        sha256, label = hashlib.sha256(path.read_bytes()).hexdigest(), path.parent.name
        files.append(FileResult(path.relative_to(root).as_posix(), label, OK, sha256, False, 0.0))
    files[0] = replace(files[0], suspect=True, score=1.0, suggested_label="dog", suggested_confidence=0.9)
    files[1] = replace(files[1], status=UNREADABLE, score=None)
    files[3] = replace(files[3], suspect=True, score=1.0, suggested_label="dog", suggested_confidence=0.9)
    return Report(tuple(files), (ClassVerdict("cat", 3, 1, POISONED), ClassVerdict("dog", 3, 1, POISONED)))


@pytest.fixture
def stub(tmp_path, data, monkeypatch):
    """Put an advrbd in the way that only pretends; a function to run a command with its exit code chosen."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "advrbd").write_text(STUB)
    (tmp_path / "bin" / "advrbd").chmod(0o755)
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "work").mkdir()
    (tmp_path / "prepared").write_bytes(render(report_on(data), "json"))
    for name in [name for name in os.environ if name.startswith("ADVRBD_")]:
        monkeypatch.delenv(name)

    def run(*command: str, code: int, **environment: str) -> SimpleNamespace:
        calls = tmp_path / "calls"
        calls.write_text("")
        given = {"CODE": str(code), "CALLS": str(calls), "PREPARED": str(tmp_path / "prepared")} | environment
        path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            command,
            cwd=tmp_path / "work",
            env=os.environ | {"PATH": path} | given,
            capture_output=True,
            text=True,
            timeout=60,
        )
        heard = [line.strip() for line in calls.read_text().splitlines()]
        return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr, calls=heard)

    return run


def known_options(command: str) -> set[str]:
    from typer.main import get_command

    return {name for option in get_command(app).commands[command].params for name in option.opts}


def test_every_option_in_the_examples_exists():
    texts = [path.read_text() for path in PIPELINES.rglob("*") if path.suffix in (".sh", ".yaml", ".yml")]
    lines = [line for text in (*texts, (PIPELINES / "Makefile").read_text()) for line in text.splitlines()]
    used = [line[line.index("advrbd ") :] for line in lines if "advrbd scan -" in line or "advrbd clean -" in line]
    assert len(used) >= 6
    for line in used:
        words = line.split()
        assert {word for word in words if word.startswith("--") and word != "--"} <= known_options(words[1]), line


@pytest.mark.parametrize(("code", "folder", "commands"), [(0, "in coming", ["scan"]), (1, "clean", ["scan", "clean"])])
def test_intake_in_bash(stub, tmp_path, data, code, folder, commands):
    done = stub("bash", str(PIPELINES / "intake.sh"), str(data), "clean", code=code, CODE_OF_CLEAN="0")
    assert (done.code, Path(done.out.strip()).name) == (0, folder), done.err
    assert done.out.count("\n") == 1
    assert [call.split()[:2] for call in done.calls] == [[command, "<--no-config>"] for command in commands]
    assert f"<{data}>" in done.calls[0]
    if code:
        assert "<--report> <clean.report.json>" in done.calls[1]
        assert read_suspects(tmp_path / "work" / "clean.report.json").keys() == {"cat/0.png", "dog/0.png"}


@pytest.mark.parametrize("code", [2, 130])
def test_intake_in_bash_without_a_verdict(stub, data, code):
    done = stub("bash", str(PIPELINES / "intake.sh"), str(data), "clean", code=code)
    assert (done.code, done.out, len(done.calls)) == (code, "", 1)
    assert "no verdict" in done.err


def test_intake_in_bash_when_cleaning_fails(stub, data):
    done = stub("bash", str(PIPELINES / "intake.sh"), str(data), "clean", code=1)  # of both commands
    assert (done.code, done.out, len(done.calls)) == (1, "", 2)
    assert stub("bash", str(PIPELINES / "intake.sh"), code=0).code != 0


def example(name: str, monkeypatch):
    """An example as a module."""
    monkeypatch.syspath_prepend(PIPELINES)
    spec = importlib.util.spec_from_file_location(f"example_{name}", PIPELINES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_intake_in_python(data, tmp_path, monkeypatch, capsys):
    intake, clean, cleaned = example("intake", monkeypatch), tmp_path / "clean", []
    found = report_on(data)
    found = replace(found, files=tuple(file for file in found.files if file.status == OK))
    monkeypatch.setattr(sys, "argv", ["intake.py", str(data), str(clean)])
    monkeypatch.setattr(advrbd.pipeline, "clean", lambda *given, **options: cleaned.append((given, options)))
    harmless = tuple(replace(entry, suspects=0, verdict=CLEAN) for entry in found.classes)
    monkeypatch.setattr(advrbd.pipeline, "scan", lambda *_: replace(found, files=found.files[1:2], classes=harmless))
    assert (intake.main(), capsys.readouterr().out, cleaned) == (0, f"{data}\n", [])
    monkeypatch.setattr(advrbd.pipeline, "scan", lambda *_: replace(found, files=found.files[1:2]))
    assert (intake.main(), capsys.readouterr().out) == (
        0,
        f"{clean}\n",
    )  # poisoned, and no file to blame: clean decides
    cleaned.clear()
    monkeypatch.setattr(advrbd.pipeline, "scan", lambda *_: found)
    assert (intake.main(), capsys.readouterr().out) == (0, f"{clean}\n")
    [(given, options)] = cleaned
    assert given == (data, clean)
    assert options["strict"] is True
    assert options["report"] is found
    assert read_suspects(tmp_path / "clean.report.json").keys() == {"cat/0.png", "dog/0.png"}


def test_intake_in_python_without_a_verdict(data, tmp_path, monkeypatch, capsys):
    intake = example("intake", monkeypatch)
    monkeypatch.setattr(sys, "argv", ["intake.py", str(data), str(tmp_path / "clean")])
    monkeypatch.setattr(advrbd.pipeline, "scan", lambda *_: report_on(data))
    assert intake.main() == 2
    assert "1 files and 0 classes are unexamined" in capsys.readouterr().err

    def refuse(*_, **__):
        raise UntrustedError("nothing was written")

    found = report_on(data)
    monkeypatch.setattr(advrbd.pipeline, "scan", lambda *_: replace(found, files=found.files[:1]))
    monkeypatch.setattr(advrbd.pipeline, "clean", refuse)
    assert intake.main() == 2
    out, err = capsys.readouterr()
    assert (out, "not taken in: nothing was written" in err) == ("", True)


def trusted(root: Path, report: Report, folder: Path, monkeypatch, **options) -> tuple[set[tuple[str, str]], list[str]]:
    (folder / "report.json").write_bytes(render(report, "json", all_files=True))
    found, classes = example("trusted", monkeypatch).trusted_files(root, folder / "report.json", **options)
    return {(path.relative_to(root).as_posix(), label) for path, label in found}, classes


def test_only_what_was_scanned_and_let_pass_is_trusted(data, tmp_path, monkeypatch):
    report = report_on(data)
    (data / "cat" / "new.png").write_bytes(b"came later")
    kept = {("cat/2.png", "cat"), ("dog/1.png", "dog"), ("dog/2.png", "dog")}
    assert trusted(data, report, tmp_path, monkeypatch) == (kept, ["cat", "dog"])
    moved = kept | {("cat/0.png", "dog")}  # a suspect that is confirmed in its label stays out
    assert trusted(data, report, tmp_path, monkeypatch, relabel=True)[0] == moved
    assert trusted(data, report, tmp_path, monkeypatch, relabel=True, confidence=0.95)[0] == kept
    accepted = accept(report, {(report.files[3].sha256, "dog"): ".advrbdignore"})
    assert trusted(data, accepted, tmp_path, monkeypatch)[0] == kept | {("dog/0.png", "dog")}
    shutil.copy(data / "dog" / "0.png", data / "cat" / "0.png")  # what is a dog isn't accepted as a cat
    copied = replace(accepted.files[0], sha256=report.files[3].sha256)
    copied = replace(accepted, files=(copied, *accepted.files[1:]))
    assert trusted(data, copied, tmp_path, monkeypatch)[0] == kept | {("dog/0.png", "dog")}


def test_what_changed_or_isnt_whole_is_refused(data, tmp_path, monkeypatch):
    report = report_on(data)
    (tmp_path / "short.json").write_bytes(render(report, "json"))
    with pytest.raises(ValueError, match="scan with --all-files"):
        example("trusted", monkeypatch).trusted_files(data, tmp_path / "short.json")
    (data / "dog" / "2.png").write_bytes(b"changed")
    with pytest.raises(ValueError, match="changed since the scan"):
        trusted(data, report, tmp_path, monkeypatch)


@pytest.fixture
def pictures(digits_folder, tmp_path) -> tuple[Path, Path]:
    """A folder of digits in which the first 0 is suspected to be an 8, and a report on it."""
    shutil.copytree(digits_folder, tmp_path / "digits")
    files = []
    for path in sorted((tmp_path / "digits").glob("*/*.png")):
        sha256, name = hashlib.sha256(path.read_bytes()).hexdigest(), path.relative_to(tmp_path / "digits").as_posix()
        files.append(FileResult(name, path.parent.name, OK, sha256, False, 0.0))
    files[0] = replace(files[0], suspect=True, score=1.0, suggested_label="8", suggested_confidence=0.9)
    classes = tuple(ClassVerdict(str(label), 30, int(label == 0), CLEAN) for label in range(10))
    (tmp_path / "report.json").write_bytes(render(Report(tuple(files), classes), "json", all_files=True))
    return tmp_path / "digits", tmp_path / "report.json"


def test_plain_pytorch_sees_the_images_of_torchvision_but_for_the_suspect(pictures, monkeypatch):
    from torchvision.datasets import ImageFolder

    root, report = pictures
    images = example("plain_pytorch", monkeypatch).TrustedImages
    theirs = ImageFolder(root)
    ours = images(root, report, lambda image: image)
    assert (len(ours), ours.classes) == (len(theirs) - 1, theirs.classes)
    for number in (0, 100, len(ours) - 1):
        (image, label), (other, other_label) = ours[number], theirs[number + 1]
        assert (image.tobytes(), label) == (other.tobytes(), other_label)
    relabelled = images(root, report, lambda image: image, relabel=True)
    assert relabelled[0] == (relabelled[0][0], 8)
    assert len(relabelled) == len(theirs)


def test_plain_pytorch_runs_as_its_docstring_says(pictures):
    command = [sys.executable, str(PIPELINES / "plain_pytorch.py"), *map(str, pictures)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "300 images of 10 classes; a batch is (64, 3, 32, 32)\n", done.stderr


@pytest.mark.filterwarnings("default")  # what that library pickles for its cache, and warns of, is its own affair
def test_hugging_face(pictures, monkeypatch):
    pytest.importorskip("datasets", reason="the Hugging Face library isn't installed")
    dataset = example("hugging_face", monkeypatch).trusted_dataset(*pictures, relabel=True)
    assert (dataset.num_rows, dataset.features["label"].names) == (300, [str(label) for label in range(10)])
    assert dataset[0]["label"] == 8
    assert dataset[1]["label"] == 0
    assert dataset[1]["image"].size == (16, 16)


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(("code", "trained"), [(0, True), (1, False), (2, False)])
def test_make_trains_only_on_what_a_scan_let_pass(stub, data, code, trained):
    make = ("make", "-f", str(PIPELINES / "Makefile"), "train", f"DATA={data}", "TRAIN=echo trained on")
    for _ in range(2):  # the report of the first time must not pass for a scan
        done = stub(*make, code=code)
        assert (done.code == 0, f"trained on {data}" in done.out) == (trained, trained)
        assert done.calls == [f"scan <--no-config> <--output> <advrbd-report.json> <--strict> <--> <{data}>"]


def read_yaml(path: Path):
    return yaml.safe_load(path.read_text())


def test_the_stages_of_dvc(stub, tmp_path):
    stages = read_yaml(PIPELINES / "dvc.yaml")["stages"]
    made = {
        name: {next(iter(out)) if isinstance(out, dict) else out for out in stage.get("outs", [])}
        for name, stage in stages.items()
    }
    assert made["scan"] | {"data"} == set(stages["clean"]["deps"])
    assert made["clean"] == {"clean", "clean.safetensors", "clean-report.csv"}
    assert "clean" in stages["train"]["deps"]
    for name, expected in (("scan", "scan <--exit-zero> <--strict>"), ("clean", "clean <--report> <report.json>")):
        done = stub("sh", "-c", stages[name]["cmd"], code=0)
        assert done.code == 0
        assert done.calls[0].startswith(expected)
        assert done.calls[0].endswith("<--> <data>")
    assert (tmp_path / "work" / "report.json").exists()
    done = stub("sh", "-c", stages["train"]["cmd"], code=1)  # a folder that isn't as it was written isn't trained on
    assert (done.code, done.calls) == (1, ["verify <clean>"])


def test_the_hooks_of_pre_commit(stub):
    hooks = {hook["id"]: hook for hook in read_yaml(ROOT / ".pre-commit-hooks.yaml")}
    assert hooks.keys() == {"advrbd-verify", "advrbd-scan"}
    assert hooks["advrbd-scan"]["stages"] == ["pre-push", "manual"]
    for hook in hooks.values():
        assert (hook["pass_filenames"], hook["require_serial"], hook["language"]) == (False, True, "python")
        done = stub(*shlex.split(hook["entry"]), "some folder", code=1)
        assert (done.code, done.calls) == (1, [f"{hook['id'].removeprefix('advrbd-')} <some folder>"])


@pytest.fixture
def steps() -> dict[str, dict]:
    return {step["name"]: step for step in read_yaml(PIPELINES / "action" / "action.yml")["runs"]["steps"]}


def test_nothing_is_spliced_into_the_actions_shell(steps):
    inputs = read_yaml(PIPELINES / "action" / "action.yml")["inputs"]
    for step in steps.values():
        assert "${{" not in step.get("run", "")
    used = " ".join(str(step.get("env", "")) for step in steps.values())
    assert all(f"inputs.{name} " in used for name in inputs)
    keeping = steps["Keep the report"]
    assert (keeping["if"], keeping["with"]["path"]) == ("always()", "${{ inputs.report }}")
    root = (PIPELINES / "action" / "../../..").resolve()
    assert "../../.." in steps["Install"]["run"]
    assert (root / "pyproject.toml").exists()


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_actions_scan(stub, tmp_path, data, steps, code):
    given = {"DATA": str(data), "REPORT": "$(touch pwned) report.json", "ADVRBD_FAIL_ON": "0.5%", "ADVRBD_MODEL": ""}
    assert given.keys() <= steps["Scan"]["env"].keys()
    summary = tmp_path / "summary"
    (tmp_path / "step.sh").write_text(steps["Scan"]["run"])
    bash = ("bash", "--noprofile", "--norc", "-eo", "pipefail", str(tmp_path / "step.sh"))  # as GitHub runs it
    done = stub(*bash, code=code, GITHUB_STEP_SUMMARY=str(summary), **given)
    assert done.code == code, done.err
    [call] = done.calls
    assert call.startswith("scan <--no-config> <--output> <$(touch pwned) report.json> <--format> <json>")
    assert "ADVRBD_FAIL_ON=0.5%" in call
    told = summary.read_text() if summary.exists() else ""
    assert told == ("" if code == 2 else "advrbd: **poisoned**, 2 suspects, 0 of them accepted\n")
    assert not (tmp_path / "work" / "pwned").exists()
    assert json.loads((tmp_path / "work" / given["REPORT"]).read_text())["verdict"] == POISONED


@dataclass(frozen=True)
class QuickDBR(DBR):
    learning: TrainingSettings = SHORT
    parting: TrainingSettings = SHORT
    unlearning: TrainingSettings = SHORT


def test_speed_compares_what_it_measured(digits_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "examples")
    spec = importlib.util.spec_from_file_location("example_speed", ROOT / "examples" / "speed.py")
    speed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(speed)
    monkeypatch.setattr(speed, "Config", lambda **given: replace(SMALL, **given))
    monkeypatch.setitem(speed.DETECTORS, "d-br", QuickDBR)  # its own has the steps of 50,000 images
    tiny = ["--model", "test_resnet", "--device", "cpu", "--peers", "d-br", "--json", str(tmp_path / "speed.json")]
    monkeypatch.setattr(sys, "argv", ["speed.py", str(digits_folder), *tiny])
    speed.main()
    ours, peer = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert (ours["name"], peer["name"]) == ("advrbd", "d-br")
    assert min(ours["seconds"], peer["seconds"]) > 0
    assert 0 <= peer["auroc"] <= 1
    assert peer["tpr"] + peer["fpr"] > 0  # it suspects 5 % of the files, and was told how many there are
    out = capsys.readouterr().out
    assert "badnets, 5.0% of 300 files" in out
    assert f"| d-br | {peer['seconds']:.1f} | {peer['seconds'] / ours['seconds']:.2f} |" in out
    assert "| advrbd | " in out


def test_speed_knows_its_peers(tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "speed.py"), str(tmp_path), "--peers", "clp"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "no such peer: clp" in done.stderr  # it names no files


@pytest.fixture
def ablation():
    spec = importlib.util.spec_from_file_location("ablation", ROOT / "examples" / "reproduce" / "ablation.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_ablation_moves_each_setting_alone(ablation, tmp_path):
    plain = Unit(tmp_path, 40, 1, "test_resnet", "badnets", 0.1, 21)
    moved = {unit.name: unit.config.as_dict() for unit in ablation.units(plain)}
    assert len(moved) == 1 + len(ablation.MOVED)
    for name, config in list(moved.items())[1:]:
        stages = [stage for stage, value in config.items() if value != plain.config.as_dict()[stage]]
        assert len(stages) == 1 and f"-{stages[0]}." in name, (name, stages)  # a default that isn't moved would show


def test_an_ablation_tells_planted_from_natural_classes(ablation):
    files = [SimpleNamespace(path=f"{label}/{number}.png", status=OK) for label in "abc" for number in range(4)]
    suspects = torch.tensor([True, True, False, False, False, False, True, False, False, False, False, False])
    evidence = {0: {"ambiguity": 0.7}, 1: {"ambiguity": 0.2}, 2: {"bimodality": 3.0}}
    found = SimpleNamespace(suspects=suspects, score=suspects.float(), evidence=evidence, verdicts={1: POISONED})
    poisoned = {"a/0.png", "a/1.png", "a/2.png", "a/3.png"}
    roles = {file.path: "poison" if file.path in poisoned else "clean" for file in files}
    planted = [SimpleNamespace(role=role, label=path[0]) for path, role in roles.items()]
    run = SimpleNamespace(class_name="abc".__getitem__)
    case = SimpleNamespace(prepared=(SimpleNamespace(files=files), run), role=roles, planted=planted)
    judged = ablation._judged(case, SimpleNamespace(found=found))
    assert (judged["planted"], judged["natural"]) == (0.7, 0.2)
    assert (judged["detection"]["tpr"], judged["detection"]["fpr"]) == (0.5, 0.125)
    case.role, case.planted = {}, []
    judged = ablation._judged(case, SimpleNamespace(found=found))
    assert (judged["planted"], judged["natural"], judged["detection"]["tpr"]) == (None, 0.2, None)


def test_an_ablation_goes_on_where_it_was(ablation, tmp_path, monkeypatch, capsys):
    quick = ["warm_up.minimum_steps=0", "warm_up.epochs=3", "enhancement.steps=2", "enhancement.rounds=1"]
    quick = parse_overrides([*quick, "separation.starts=1", "separation.parts=2,4", "separation.examined=1,1"])
    trained, warm_up = [], ablation.warm_up
    monkeypatch.setattr(ablation, "warm_up", lambda *rest: trained.append(rest) or warm_up(*rest))
    monkeypatch.setattr(ablation, "Unit", partial(Unit, overrides=quick))
    monkeypatch.setattr(ablation, "MOVED", ("partition.masks=1", "warm_up.epochs=4"))
    told = [str(digits_data(tmp_path)), str(tmp_path / "looks"), "--model", "test_resnet", "--per-class", "40"]
    monkeypatch.setattr(sys, "argv", ["ablation.py", *told, "--attacks", "badnets", "none", "--rate", "0.1"])
    ablation.main()
    assert len(trained) == 4  # once for the partition's settings and once for its own, with each attack
    units = [json.loads(path.read_text()) for path in (tmp_path / "looks").iterdir()]
    shown = {
        (unit["attack"], unit["config"]["partition"]["masks"], unit["config"]["warm_up"]["epochs"]) for unit in units
    }
    assert shown == {(attack, *moved) for attack in ("badnets", "none") for moved in ((2, 3), (1, 3), (2, 4))}
    assert {unit["detection"]["poisoned"] for unit in units if unit["attack"] == "badnets"} == {40}
    first = capsys.readouterr().out
    assert first.count("| badnets | 21 | ") == 3 and first.count(" partition.masks=1 | ") == 2

    monkeypatch.setattr(ablation, "measure", None)  # nothing is missing
    ablation.main()
    assert capsys.readouterr().out == first[first.index("| attack") :]
    one = next((tmp_path / "looks").iterdir())
    one.write_text(one.read_text().replace('"torch": "', '"torch": "0.'))
    with pytest.raises(BenchmarkError, match="other versions"):
        ablation.main()
