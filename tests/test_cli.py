"""The command line: exit 1 means suspects and nothing else, stdout is for reports, what goes wrong is one line."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.cells import cell_len

import advrbd.pipeline
import advrbd.reports.html
from advrbd.attacks import ATTACKS, BadNets
from advrbd.attacks.plant import plant
from advrbd.data.folder import OK, UNREADABLE
from advrbd.errors import OutputError
from advrbd.events import Caution, Note, Progress
from advrbd.reports.report import CLEAN, POISONED, UNEXAMINED, ClassVerdict, FileResult, Report
from advrbd.reports.wording import command as command_line
from advrbd_cli import console, scan
from advrbd_cli.app import main

TINY = ("--model", "test_resnet", "--device", "cpu")
CSV = ("--format", "csv")
COMMAND = (sys.executable, "-m", "advrbd_cli")


def run(*arguments: str, cwd: Path, command: tuple[str, ...] = COMMAND) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


PROBE = """
import sys
from advrbd_cli.app import main
try:
    main()
finally:
    heavy = {"torch", "torchvision", "timm", "numpy", "sklearn", "PIL"} & set(sys.modules)
    sys.stderr.write("imported: " + ", ".join(sorted(heavy)))
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("--help", 0),
        ("--version", 0),
        ("scan --help", 0),
        ("clean --help", 0),
        ("poison --help", 0),
        ("drill --help", 0),
        ("verify --help", 0),
        ("bench --help", 0),
        ("bench run --help", 0),
        ("demo --help", 0),
        ("schema", 0),
        ("env --help", 0),
        ("scan missing", 2),
        ("clean missing --out out", 2),
        ("drill missing", 2),
        ("scan . --fail-on many", 2),
        ("scan", 2),
    ],
)
def test_help_and_usage_errors_dont_import_torch(arguments, code, tmp_path):
    done = run(*arguments.split(), cwd=tmp_path, command=(sys.executable, "-c", PROBE))
    assert done.returncode == code
    assert done.stderr.endswith("imported: ")
    assert bool(done.stdout) == (code == 0)


def test_the_help_names_every_attack(tmp_path):
    words = set(
        run("poison", "--help", cwd=tmp_path).stdout.replace(",", " ").replace(";", " ").replace(".", " ").split()
    )
    assert set(ATTACKS) <= words


def test_the_version_is_the_packages(tmp_path):
    assert run("--version", cwd=tmp_path).stdout == f"advrbd {advrbd.__version__}\n"


@pytest.fixture
def place(tmp_path, digits_folder) -> Path:
    """A folder with inputs of all kinds; ``work`` is where commands run."""
    shutil.copytree(digits_folder, tmp_path / "data")
    shutil.copytree(digits_folder, tmp_path / "hollow")
    (tmp_path / "hollow" / "x").mkdir()
    (tmp_path / "hollow" / "x" / "broken.png").write_bytes(b"broken")
    shutil.copytree(digits_folder, tmp_path / "void")
    for name in ("work", "empty", "void/x", "astray", "one/cat", "few/cat", "few/dog", "full"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("one/cat/1.png", "few/cat/1.png", "few/dog/2.png", "full/mine.png"):
        shutil.copy(next(digits_folder.glob("3/*.png")), tmp_path / name)
    (tmp_path / "garbage.bin").write_text("hello\n")
    rows = [f"nowhere/{number}.png,{number % 2}" for number in range(150)]
    (tmp_path / "astray" / "lost.csv").write_text("\n".join(["path,label", *rows]))
    (tmp_path / "work" / "mine").touch()
    return tmp_path


def assert_one_error(done: subprocess.CompletedProcess, message: str) -> None:
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith("error: ")
    assert message in errors[0]
    assert "internal error" not in done.stderr
    assert "Traceback" not in done.stderr


needs_no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
POISON = ("poison", "../data", "--attack")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(("scan", "../missing", *CSV), "no such folder: ../missing", id="missing"),
        pytest.param(("scan", "../garbage.bin", *CSV), "../garbage.bin is a file", id="file"),
        pytest.param(("scan", "../empty", *CSV), "holds no class folders", id="no classes"),
        pytest.param(("scan", "../one", *CSV), "one class only (cat)", id="one class"),
        pytest.param(("scan", "../hollow", *TINY, *CSV), "no readable image in class 'x'", id="unreadable class"),
        pytest.param(("scan", "../few", *TINY, *CSV), "fewer than 100 images", id="few images"),
        pytest.param(("scan", "../data", "--model", "nosuchnet", *CSV), "no model 'nosuchnet'", id="unknown model"),
        pytest.param(
            ("scan", "../data", "--device", "cuda", *CSV), "no CUDA device", id="no cuda", marks=needs_no_cuda
        ),
        pytest.param(("scan", "../data", *CSV, "-o", "../data/r.csv"), "inside the scanned folder", id="output inside"),
        pytest.param(("scan", "../data", *CSV, "-o", "no/r.csv"), "folder no doesn't exist", id="output nowhere"),
        pytest.param(("scan", "../data", *CSV, "-o", "/dev/null"), "is a device or a pipe", id="output to a device"),
        pytest.param(("scan", "../data", *CSV, "--fail-on", "0"), "--fail-on takes", id="fail on none"),
        pytest.param(("scan", "../data", *CSV, "--fail-on", "101%"), "--fail-on takes", id="fail on too many"),
        pytest.param(("scan", "../data", *TINY, "--seed", str(2**63), "--dry-run"), "--seed", id="seed too large"),
        pytest.param(
            (*POISON, "wanet", "--target-label", "3", "--out", "new", "--seed", str(2**63)),
            "--seed",
            id="its seed, too",
        ),
        pytest.param(("scan", "../data", "--bogus"), "--bogus", id="unknown option"),
        pytest.param(("scan",), "data", id="no folder"),
        pytest.param(("scan", "../void", *TINY, "--dry-run"), "no readable image in class 'x'", id="empty class"),
        pytest.param(
            ("scan", "../astray/lost.csv", *TINY), "(150 vanished of 150 listed; paths in a table", id="paths astray"
        ),
        pytest.param(
            ("scan", "../data", *TINY, "--work-dir", "no/w", "--dry-run"), "folder no doesn't exist", id="work nowhere"
        ),
        pytest.param(("scan", "../data", *TINY, "--work-dir", "../full"), "no work directory", id="work elsewhere"),
        pytest.param(
            ("clean", "../data", "--out", "new", "--quarantine", "q"), "for --action quarantine", id="no quarantine"
        ),
        pytest.param(("clean", "../data", "--out", "new", "-o", "r.json"), "is CSV", id="clean's report"),
        pytest.param(("clean", "../data", "--out", "../data/new"), "../data", id="clean inside"),
        pytest.param(("clean", "../data", "--out", "../full"), "full isn't empty", id="clean to a full folder"),
        pytest.param(
            ("clean", "../data", "--out", "../empty", "-o", "../empty/r.csv"),
            "may hold only class folders",
            id="into clean",
        ),
        pytest.param(
            ("clean", "../data", "--out", "."),
            "",
            id="clean to here",
        ),
        pytest.param((*POISON, "magic", "--target-label", "3", "--out", "new"), "unknown attack 'magic'", id="attack"),
        pytest.param((*POISON, "blend", "--target-label", "cat", "--out", "new"), "no class 'cat'", id="target"),
    ],
)
def test_what_goes_wrong_is_one_line_and_exit_code_2(place, snapshot, arguments, message):
    before = snapshot(place)
    assert_one_error(run(*arguments, cwd=place / "work"), message)
    assert snapshot(place) == before


def test_poison_from_end_to_end(place, snapshot):
    before = snapshot(place)
    options = ("--target-label", "3", "--poison-rate", "0.1", "--seed", "7", "--out", "poisoned")
    done = run(*POISON, "badnets", *options, cwd=place / "work")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines() == ["270 clean, 30 poison", "dataset: poisoned; truth: poisoned.truth.csv"]
    assert {path.name for path in (place / "work").iterdir()} == {"mine", "poisoned", "poisoned.truth.csv"}
    assert {path: sha256 for path, sha256 in snapshot(place).items() if "poisoned" not in path} == before

    plant(place / "data", place / "by-hand", BadNets(seed=7), "3", 0.1, seed=7)
    assert snapshot(place / "work" / "poisoned") == snapshot(place / "by-hand")
    again = run(*POISON, "badnets", *options, cwd=place / "work")
    assert_one_error(again, "poisoned isn't empty")


def test_an_interrupted_scan_writes_nothing(place, snapshot):
    before = snapshot(place)
    command = [*COMMAND, "scan", "../data", *TINY, *CSV]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background starts out deaf to it
    with subprocess.Popen(command, cwd=place / "work", stdout=-1, stderr=-1, text=True, preexec_fn=heard) as process:
        seen = iter(process.stderr.readline, "")
        assert any(line.startswith("model: ") for line in seen)  # from here on it works for long
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert snapshot(place) == before


FOUND = Report(
    (
        FileResult("cat/1.png", "cat", OK, "1" * 64, True, 1.0, "dog", 0.9),
        FileResult("cat/2.png", "cat", OK, "2" * 64, False, 0.0),
        FileResult("cat/3.png", "cat", UNREADABLE, "3" * 64),
        FileResult("dog/4.png", "dog", OK, "4" * 64, True, 1.0),
    ),
    (ClassVerdict("cat", 3, 1, POISONED), ClassVerdict("dog", 1, 1, POISONED)),
)
NOTHING = Report((FOUND.files[1],), (ClassVerdict("cat", 1, 0, CLEAN),))
UNACCUSED = Report((FOUND.files[1],), (ClassVerdict("cat", 1, 0, POISONED),))
PARTLY = Report(  # one class has a suspect, the other is poisoned without any
    (FOUND.files[0], FileResult("dog/4.png", "dog", OK, "4" * 64, False, 0.0)),
    (ClassVerdict("cat", 1, 1, POISONED), ClassVerdict("dog", 1, 0, POISONED)),
)
BLIND = Report((FOUND.files[1],), (ClassVerdict("cat", 1, 0, UNEXAMINED),))


def scan_with(report: Report, monkeypatch, folder: Path, *options: str) -> int:
    """The exit code of a scan that found ``report``: what is tested here is what becomes of it."""
    monkeypatch.setattr(advrbd.pipeline, "scan", lambda *_, **__: report)
    monkeypatch.setattr(sys, "argv", ["advrbd", "scan", "data", *options])
    monkeypatch.setattr(console, "state", console.State())
    monkeypatch.chdir(folder)
    Path("data").mkdir()
    with pytest.raises(SystemExit) as ending:
        main()
    return ending.value.code or 0


@pytest.mark.parametrize(
    ("report", "options", "code"),
    [
        (NOTHING, (), 0),
        (NOTHING, ("--fail-on", "1%"), 0),
        (NOTHING, ("--strict",), 0),
        (UNACCUSED, (), 1),
        (UNACCUSED, ("--exit-zero",), 0),
        (PARTLY, ("--fail-on", "2"), 1),
        (PARTLY, ("--fail-on", "2", "--exit-zero"), 0),
        (BLIND, (), 0),
        (BLIND, ("--strict",), 2),
        (FOUND, (), 1),
        (FOUND, ("--fail-on", "2"), 1),
        (FOUND, ("--fail-on", "3"), 0),
        (FOUND, ("--fail-on", "50%"), 1),
        (FOUND, ("--fail-on", "50.1%"), 0),
        (FOUND, ("--exit-zero",), 0),
        (FOUND, ("--strict",), 2),
        (FOUND, ("--strict", "--exit-zero"), 2),
    ],
)
def test_exit_codes_of_a_scan(report, options, code, monkeypatch, tmp_path):
    assert scan_with(report, monkeypatch, tmp_path, *CSV, *options) == code
    assert {path.name for path in tmp_path.iterdir()} == {"advrbd-report.csv", "data"}


def test_a_report_on_stdout_is_all_that_is_there(monkeypatch, tmp_path, capfd):
    assert scan_with(FOUND, monkeypatch, tmp_path, "-o", "-", "-f", "json", "--all-files") == 1
    captured = capfd.readouterr()
    assert len(json.loads(captured.out)["files"]) == 4
    assert "2 suspected of being poisoned; 1 could not be read" in captured.err
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_page_that_cant_be_written_takes_no_report_away(monkeypatch, tmp_path, capfd):
    def full(*_):
        raise OutputError("cannot write p.html: No space left on device")

    monkeypatch.setattr(advrbd.reports.html, "render_html", full)
    assert scan_with(FOUND, monkeypatch, tmp_path, "-o", "-", "-f", "json", "--html", "p.html") == 2
    out, err = capfd.readouterr()
    assert len(json.loads(out)["files"]) == 3
    assert "error: cannot write p.html: No space left on device" in err


@pytest.mark.parametrize(
    ("options", "command"),
    [
        ((), "advrbd clean data --report r.json --out CLEAN"),
        (("--no-config",), "advrbd clean data --report r.json --no-config --out CLEAN"),
        (("--max-pixels", "5000"), "advrbd clean data --report r.json --max-pixels 5000 --out CLEAN"),
        (("--config", "my.toml"), "advrbd clean data --report r.json --config my.toml --out CLEAN"),
        (("--split", "train"), "advrbd clean data --report r.json --split train --out CLEAN"),
        (
            (
                "--model",
                "resnet18",
                "--image-size",
                "48",
                "--seed",
                "3",
                "--pretrained",
                "--no-flip",
                "--device",
                "cpu",
            ),
            "advrbd clean data --report r.json --no-flip --model resnet18 --image-size 48 --seed 3 --device cpu "
            "--pretrained --out CLEAN",
        ),
    ],
)
def test_the_next_command_has_what_the_scan_had(options, command, monkeypatch, tmp_path, capfd):
    (tmp_path / "my.toml").touch()
    assert scan_with(FOUND, monkeypatch, tmp_path, "-o", "r.json", *options) == 1
    assert f"next: {command}\n" in capfd.readouterr().err


def test_a_folder_that_looks_like_an_option_is_none():
    assert command_line("clean", Path("-data"), "--out", "CLEAN") == "advrbd clean ./-data --out CLEAN"


@pytest.mark.parametrize("name", ["page.html", "page.HTM"])
def test_a_report_is_no_page(name, monkeypatch, tmp_path, capfd):
    assert scan_with(FOUND, monkeypatch, tmp_path, "-o", name) == 2
    assert "a page is written by --html" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_could_not_look_is_said_aloud(monkeypatch, tmp_path, capfd):
    assert scan_with(BLIND, monkeypatch, tmp_path, *CSV) == 0
    assert "verdict: unexamined (1 of 1 classes unexamined)" in capfd.readouterr().err


def test_quiet_says_nothing(monkeypatch, tmp_path, capfd):
    assert scan_with(FOUND, monkeypatch, tmp_path, "-q", *CSV) == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "name", "start"),
    [
        ((), "advrbd-report.csv", "path,label"),
        (("-o", "r.jsonl"), "r.jsonl", '{"path"'),
        (("-o", "r.JSON"), "r.JSON", '{\n "schema"'),
        (("-o", "r.txt"), "r.txt", "path,label"),
    ],
)
def test_the_format_may_be_left_out(monkeypatch, tmp_path, options, name, start):
    assert scan_with(FOUND, monkeypatch, tmp_path, *options) == 1
    assert (tmp_path / name).read_text().startswith(start)


CLOSED_STDOUT = """
import sys, types
from advrbd.reports.report import Report
sys.modules["advrbd.pipeline"] = types.SimpleNamespace(scan=lambda *_, **__: Report((), ()))
from advrbd_cli.app import main
main()
"""


def test_a_reader_that_goes_away_doesnt_mean_suspects(tmp_path):
    (tmp_path / "data").mkdir()
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", CLOSED_STDOUT, "scan", "data", *CSV, "-o", "-"]
    done = subprocess.run(command, cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)


@pytest.fixture
def quietly(monkeypatch) -> console.State:
    """The console's state, put back afterwards, and no terminal in the environment."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(console, "state", console.State())
    return console.state


def narrate(*events, progress: bool | None = None) -> None:
    with console.Narrator(progress) as narrator:
        for event in events:
            narrator(event)


@pytest.mark.usefixtures("quietly")
def test_without_a_terminal_there_are_plain_lines(capsys):
    steps = [Progress("decode", done, 300) for done in (100, 200, 300)]
    narrate(
        Note("device: cpu"), *steps, Progress("warm-up", 1, 2, "epochs"), Progress("warm-up", 2, 2, "epochs", "loss 1")
    )
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.rsplit(",", 1)[0] for line in err.splitlines()] == [
        "device: cpu",
        "decode: 300/300 images",
        "warm-up: 2/2 epochs (loss 1)",
    ]
    assert "\x1b" not in err


@pytest.mark.usefixtures("quietly")
def test_a_stage_began_when_the_one_before_it_ended(monkeypatch, capsys):
    times = iter((0, 4, 11, 20))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(times, 20))
    narrate(Progress("decode", 3, 3), Progress("warm-up", 1, 1), Progress("partition", 1, 2))
    assert capsys.readouterr().err == "decode: 3/3 images, 4 s\nwarm-up: 1/1 images, 7 s\n"


@pytest.mark.usefixtures("quietly")
def test_no_progress_leaves_notes_and_cautions(capsys):
    narrate(Note("a note"), Progress("decode", 3, 3), Caution("a caution"), progress=False)
    assert capsys.readouterr() == ("", "a note\nwarning: a caution\n")


@pytest.mark.usefixtures("quietly")
def test_a_wanted_bar_is_lines_where_there_is_no_terminal(capsys):
    narrate(Progress("decode", 3, 3), progress=True)
    assert capsys.readouterr().err.startswith("decode: 3/3 images")


def test_quiet_leaves_errors(quietly, capsys):
    quietly.quiet = True
    narrate(Note("a note"), Progress("decode", 3, 3), Caution("a caution"))
    console.error("an error")
    assert capsys.readouterr() == ("", "error: an error\n")


@pytest.mark.usefixtures("quietly")
def test_what_comes_from_outside_is_one_harmless_line(capsys):
    hostile = "a\nerror: b\x1b[2J\r[red]c[/red]\u202e" + os.fsdecode(b"\xff") + "x" * 300
    console.say(hostile)
    console.caution(hostile)
    console.error(hostile)
    shown = "a\\nerror: b\\x1b[2J\\r[red]c[/red]\\u202e\\xff" + "x" * 300
    assert capsys.readouterr().err.splitlines() == [shown, f"warning: {shown}", f"error: {shown}"]


DETAIL = "epoch 3/100, loss 2.142, 88 images/s"


@pytest.mark.parametrize("width", [10, 20, 40, 80, 200])
@pytest.mark.parametrize("name", ["cat", "日本" * 40, "[red]\x1b[2J"])
def test_the_progress_line_fits_and_its_figures_stay(width, name):
    stage, detail = console.fitting(f"enhance '{name}', round 1, half 1", DETAIL, width)
    assert "\x1b" not in stage
    assert cell_len(stage) <= max(1, width - console.FIGURES)
    assert detail in ("", DETAIL)
    assert not detail or cell_len(stage) + cell_len(detail) + console.BAR <= width - console.FIGURES


def test_the_detail_goes_before_the_stage():
    assert [console.fitting("warm-up", DETAIL, width) for width in (80, 40, 22)] == [
        ("warm-up", DETAIL),
        ("warm-up", ""),
        ("war…", ""),
    ]


@pytest.mark.usefixtures("quietly")
@pytest.mark.parametrize("width", ["20", "40", "80"])
def test_no_figure_and_no_class_of_the_summary_is_cut_off(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setattr(console.stderr, "_width", None)  # what COLUMNS was when the console was made
    names = ("cat", "[red]x[/red]" + "y" * 60, "日本語" * 10)
    scan.summarise(Report((), tuple(ClassVerdict(name, 1234567, 7654321, POISONED) for name in names)), None)
    lines = capsys.readouterr().err.splitlines()
    assert max(map(cell_len, lines[:-2])) == max(40, int(width))
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert [row[1:] for row in cells if row[1]] == [["1234567", "7654321", "poisoned"]] * 3
    assert "".join(row[0] for row in cells) == "".join(names)


UNDER_A_TERMINAL = """
import sys, types
from advrbd.events import Note, Progress
from advrbd.reports.report import POISONED, ClassVerdict, Report
def scan(*_, notify, **__):
    notify(Note("a note"))
    for done in range(1001):
        notify(Progress("warm-up", done, 1000, "images", "loss 2.142"))
    return Report((), (ClassVerdict("cat", 1234567, 100, POISONED),))
sys.modules["advrbd.pipeline"] = types.SimpleNamespace(scan=scan)
from advrbd_cli.app import main
main()
"""


def scan_under(folder: Path, terminal: bool, *options: str, **environment: str) -> str:
    """What a scan that only pretends prints on stderr, on a terminal of 40 columns or into a pipe."""
    reader, writer = os.openpty() if terminal else os.pipe()
    unset = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS")
    given = {name: value for name, value in os.environ.items() if name not in unset and not name.startswith("ADVRBD_")}
    if terminal:
        import termios  # POSIX alone has it

        termios.tcsetwinsize(writer, (24, 40))
    command = [sys.executable, "-c", UNDER_A_TERMINAL, "scan", "data", *CSV, *options]
    (folder / "data").mkdir(exist_ok=True)
    process = subprocess.Popen(command, cwd=folder, env=given | environment, stderr=writer)
    os.close(writer)
    told = b""
    with suppress(OSError):  # how the end of a terminal reads
        while chunk := os.read(reader, 65536):
            told += chunk
    os.close(reader)
    assert process.wait() == 1
    return told.decode().replace("\r\n", "\n")


BAR_DRAWN, BOLD = "\x1b[2K", "\x1b[1"


@pytest.mark.skipif(os.name != "posix", reason="there are no pseudo-terminals")
@pytest.mark.parametrize(
    ("terminal", "options", "environment", "bar", "bold"),
    [
        (True, (), {"TERM": "xterm-256color"}, True, True),
        (True, (), {"TERM": "screen-256color", "NO_COLOR": "1"}, True, True),
        (True, ("--progress",), {"TERM": "dumb"}, False, False),
        (True, ("--no-progress",), {"TERM": "xterm"}, False, True),
        (False, (), {"TERM": "xterm"}, False, False),
        (False, ("--progress", "-v"), {"TERM": "xterm", "FORCE_COLOR": "1"}, False, True),
    ],
)
def test_a_bar_is_for_terminals_and_a_log_gets_plain_lines(tmp_path, terminal, options, environment, bar, bold):
    told = scan_under(tmp_path, terminal, *options, **environment)
    assert "a note\n" in told
    assert "verdict: poisoned" in told
    assert (BAR_DRAWN in told, BOLD in told) == (bar, bold)
    assert bar or "\r" not in told
    assert ("\x1b" in told) == (bar or bold)
    assert bar or told.count("warm-up") == ("--no-progress" not in options)  # one line for a thousand events


@pytest.mark.skipif(os.name != "posix", reason="there are no pseudo-terminals")
def test_quiet_is_quiet_on_a_terminal_too(tmp_path):
    assert scan_under(tmp_path, True, "-q", TERM="xterm-256color") == ""
