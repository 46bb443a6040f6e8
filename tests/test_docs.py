"""The documents are true: their commands parse, their links lead somewhere, and the tour shows what is printed."""

import os
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer
from typer.exceptions import TyperException
from typer.main import get_command

import advrbd
import advrbd.pipeline
from advrbd.config import Config
from advrbd.data.folder import OK
from advrbd.events import Note
from advrbd.model.device import choose_device
from advrbd.model.factory import ModelSpec, choose_model, explain_choice
from advrbd.reports.report import CLEAN, POISONED, ClassVerdict, FileResult, Report
from advrbd.verification import Verification
from advrbd_cli import clean, console, verify
from advrbd_cli.app import app
from advrbd_cli.settings import PREFIX

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = (README, ROOT / "SECURITY.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "examples").rglob("*.md")))
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:^|&& |; |\| |do |next: )advrbd(?= |$)")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """The page without its fenced and indented blocks."""
    return re.sub(r"^    .*$", "", FENCED.sub("", text_of(page)), flags=re.MULTILINE)


def command_lines(page: Path) -> list[list[str]]:
    """The words after ``advrbd`` of every command in the blocks of a page."""
    whole = text_of(page)
    blocks = [body for language, body in FENCED.findall(whole) if language not in ("python", "yaml")]
    blocks += re.findall(r"^    (.*(?:\\\n.*)*)$", FENCED.sub("", whole), re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        if COMMAND.search(line.strip()):
            found += split_commands(line)
    return found


def split_commands(line: str) -> list[list[str]]:
    """The commands of advrbd in one line of shell, without their first word."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    commands, words = [], []
    for word in [*lexer, ";"]:
        if set(word) <= set("();<>|&"):
            before = words[: words.index("advrbd")] if "advrbd" in words else None
            if before in ([], ["do"], ["next:"]):
                commands.append(words[len(before) + 1 :])
            words = []
        else:
            words.append(word)
    return commands


def parse(words: list[str]) -> str:
    """Parse a command as the program does, and run nothing; its full name. Raises ``TyperException``."""
    command, context, name = get_command(app), None, "advrbd"
    while True:
        try:
            context = command.make_context(name, list(words), parent=context)
        except typer.Exit:  # --help and --version have answered
            return name
        if not hasattr(command, "commands"):
            return context.command_path
        left = [*context._protected_args, *context.args]
        if not left:
            return context.command_path
        name, command, words = command.resolve_command(context, left)


def is_incomplete(error: TyperException) -> bool:
    """Whether words are missing, and none is wrong; Typer keeps the classes for that to itself."""
    return type(error).__name__ == "MissingParameter" or "requires an argument" in error.format_message()


@pytest.fixture
def nowhere(tmp_path, monkeypatch) -> None:
    """An empty working directory and no settings."""
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(console, "state", console.State())
    monkeypatch.chdir(tmp_path)


def relative(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_command_in_a_block_parses(page):
    for words in command_lines(page):
        try:
            parse(words)
        except TyperException as error:
            pytest.fail(f"advrbd {shlex.join(words)}: {error.format_message()}")


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_command_that_is_mentioned_exists(page):
    for mention in re.findall(r"`(advrbd [^`]+)`", prose(page)):
        for words in split_commands(" ".join(mention.split())):
            try:
                parse(words)
            except TyperException as error:
                assert is_incomplete(error), f"{mention}: {error.format_message()}"


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize(
    "line",
    ["scna ./data", "scan ./data --htlm page.html", "scan ./data -f xml", "scan", "schema pictures", "bench draw runs"],
)
def test_what_isnt_there_doesnt_parse(line):
    with pytest.raises(TyperException):
        parse(line.split())


def test_commands_are_found_in_every_kind_of_block():
    assert split_commands("for a in b; do advrbd scan $a -0 # a note") == [["scan", "$a", "-0"]]
    assert split_commands("advrbd scan a > b && advrbd env") == [["scan", "a"], ["env"]]
    assert split_commands("pip install advrbd") == []
    assert len(command_lines(README)) >= 8
    assert ["demo"] in command_lines(README)


def all_options(command, found: set[str]) -> set[str]:
    for option in command.params:
        found |= {*option.opts, *option.secondary_opts}
    for inner in getattr(command, "commands", {}).values():
        all_options(inner, found)
    return found


def test_every_option_that_is_mentioned_exists():
    known = all_options(get_command(app), {"--help", "-h"})
    for page in PAGES:
        for option in re.findall(r"`(--?[a-z0-9][a-z0-9-]*)", prose(page)):
            assert option in known, f"{relative(page)}: {option}"


@pytest.mark.usefixtures("nowhere")
def test_every_command_is_documented():
    shown = {words[0] for page in PAGES for words in command_lines(page) if words}
    assert shown >= get_command(app).commands.keys()


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_relative_link_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith(("https://", "http://")):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link


def test_the_index_names_every_page():
    index = ROOT / "examples" / "README.md"
    linked = {(index.parent / link).resolve() for link in re.findall(r"\]\(([^)#\s]+)\)", text_of(index))}
    pages = set(index.parent.rglob("*.md")) - {index, index.parent / "reproduce" / "experiments.md"}
    assert pages <= linked
    assert "(examples/README.md)" in text_of(README)


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_python_in_the_documents_compiles_and_names_what_there_is(page):
    for language, code in FENCED.findall(text_of(page)):
        if language == "python":
            compile(code, relative(page), "exec")
            assert set(re.findall(r"\badvrbd\.([a-zA-Z_]\w*)", code)) <= {*advrbd.__all__}


# What the tour shows is what the commands print, of a made-up folder: a thousand each of cats, dogs and eels.


def blocks_of_the_tour() -> list[str]:
    return [body for language, body in FENCED.findall(text_of(README)) if language == "text"]


def made_up_file(label: str, number: int) -> FileResult:
    suspect = label == "cat" and number < 100
    return FileResult(f"{label}/{number:04d}.png", label, OK, "0" * 64, suspect, float(suspect))


def made_up_report() -> Report:
    files = [made_up_file(label, number) for label in ("cat", "dog", "eel") for number in range(1000)]
    verdicts = (("cat", 100, POISONED), ("dog", 0, CLEAN), ("eel", 0, CLEAN))
    return Report(tuple(files), tuple(ClassVerdict(label, 1000, count, verdict) for label, count, verdict in verdicts))


@pytest.fixture
def plain_machine(monkeypatch):
    """A CPU with eight threads, no GPU, and a stderr that is no terminal."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)


@pytest.mark.usefixtures("nowhere", "plain_machine")
def test_the_tour_shows_what_a_scan_prints(monkeypatch, capsys):
    def scan(*_, notify, **__) -> Report:
        device = choose_device(Config().device)
        name, arguments, size = choose_model(Config().model, 32, device)
        notify(Note(f"device: {device.reason}"))
        notify(Note(f"model: {explain_choice('auto', ModelSpec(name, 3, size, arguments=arguments), 32, device)}"))
        notify(Note("look 1: 100 suspects found and set aside"))
        return made_up_report()

    monkeypatch.setattr(advrbd.pipeline, "scan", scan)
    monkeypatch.setattr("advrbd.reports.html.render_html", lambda *_: b"")
    line = next(words for words in command_lines(README) if words[0] == "scan" and "--html" in words)
    Path(line[1]).mkdir()
    assert get_command(app).main(line, standalone_mode=False) == 1
    assert capsys.readouterr().err == blocks_of_the_tour()[0]


@pytest.mark.usefixtures("nowhere", "plain_machine")
def test_the_tour_shows_what_clean_and_verify_print(capsys):
    actions = ["kept"] * 2900 + ["relabelled"] * 80 + ["dropped"] * 20
    made = SimpleNamespace(
        decisions=[SimpleNamespace(action=action) for action in actions],
        cautions=(),
        check=SimpleNamespace(trust="good", reasons=(), rescan=None),
    )
    clean.summarise(made, Path("clean"), Path("advrbd-clean-report.csv"), Path("/home/me/clean.safetensors"))
    assert capsys.readouterr().err == blocks_of_the_tour()[1]
    verify.summarise(Verification(2980, "copy", "0123456789abcdef" * 4))
    assert capsys.readouterr().err == blocks_of_the_tour()[2]
