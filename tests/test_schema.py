"""What advrbd writes as JSON is what its schemas say, and nothing else passes for it."""

import copy
import json
import os
import subprocess
import sys
from importlib.resources import files
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

import advrbd
import advrbd.pipeline
from advrbd.config import Config
from advrbd.data import folder, pixels
from advrbd.manifest import LINK_MODES, MANIFEST
from advrbd.model.device import choose_device
from advrbd.model.factory import ModelSpec
from advrbd.output import decide, written_folder
from advrbd.reports.accepted import accept
from advrbd.reports.report import VERDICTS, ClassVerdict, FileResult, Report
from advrbd.reports.subset import restrict
from advrbd.reports.tables import render
from advrbd.writing import printable

SHA = "ab" * 32
STATUSES = tuple(status for status in folder.STATUSES if status != folder.OK)
ODD = [
    "line\nbreak",
    "=1+1",
    "\\",
    "\x1b[2J",
    "\u2028\x85\x7f",
    os.fsdecode(b"\xff\xc3"),
    "日本",
    "\ufeff",
    "\u202egnp",
]


def schema(kind: str) -> Draft202012Validator:
    found = json.loads((files("advrbd.reports") / "schema" / f"{kind}-1.json").read_bytes())
    Draft202012Validator.check_schema(found)
    return Draft202012Validator(found)


def written(report: Report) -> dict:
    return json.loads(render(report, "json", all_files=True))


@pytest.fixture(scope="module")
def whole() -> Report:
    """A report with everything that a scan can say."""
    odd = [FileResult(f"{name}/{name}.png", name, folder.OK, SHA, True, 1.0, name, 0.5) for name in ODD]
    unread = [FileResult(f"cat/{status}.png", "cat", status, "") for status in STATUSES]
    plain = [FileResult("cat/1.png", "cat", folder.OK, SHA, False, 0), FileResult("cat/2.png", "cat", "ok", SHA)]
    evidence = {"bimodality": 5.1, "groups": 2, "conviction": 0.97}
    classes = tuple(ClassVerdict(f"{verdict}\n", 3, 0, verdict, evidence) for verdict in VERDICTS)
    run = SimpleNamespace(device=choose_device("cpu"), spec=ModelSpec("test_resnet", 2, 16, arguments={"a": (1, 2)}))
    block = advrbd.pipeline._run_block(run, Config(), 1.25) | {"looks": 2, "control_found": False}
    return accept(
        Report((*odd, *unread, *plain), classes, ("a caution",), block),
        {(SHA, printable(name)): "old.csv" for name in ODD},
    )


def test_a_report_with_everything_in_it_is_valid(whole):
    assert len(written(whole)["accepted"]) == len(ODD)
    schema("report").validate(written(whole))


def test_a_report_on_some_of_the_files_is_valid(whole):
    schema("report").validate(written(restrict(whole, frozenset({"cat/1.png"}))))


def test_an_empty_report_is_valid():
    schema("report").validate(written(Report((), ())))


names = st.one_of(st.sampled_from(ODD), st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)) | st.binary(
    min_size=1, max_size=6
).map(os.fsdecode)


@given(names, names, st.floats(0, 1), st.sampled_from(STATUSES))
def test_no_name_makes_a_report_invalid(label, name, score, status):
    found = FileResult(f"{label}/{name}", label, folder.OK, SHA, True, score, name, score)
    unread = FileResult(f"{label}/{name}.png", label, status, SHA)
    report = Report((found, unread), (ClassVerdict(label, 2, 1, "poisoned"),))
    schema("report").validate(written(accept(report, {(SHA, printable(label)): printable(name)})))


def changed(document: dict, *place, to) -> dict:
    document = copy.deepcopy(document)
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = to
    return document


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("schema",), "advrbd.report/2"),
        (("new",), 1),
        (("verdict",), "fine"),
        (("classes", 0, "new"), 1),
        (("classes", 0, "files"), -1),
        (("classes", 0, "evidence", "x"), "1"),
        (("files", 0, "new"), 1),
        (("files", 0, "path"), "cat/1.png"),
        (("files", 0, "path"), "./cat/\n.png"),
        (("files", 0, "suspect"), "true"),
        (("files", 0, "score"), 1.5),
        (("files", 0, "sha256"), ""),
        (("files", 0, "sha256"), "AB" * 32),
        (("files", 0, "status"), "fine"),
        (("files", len(ODD), "suspect"), True),
        (("files", len(ODD), "score"), 0.5),
        (("accepted", 0, "new"), 1),
        (("run", "new"), 1),
        (("run", "seconds"), "1"),
    ],
)
def test_drift_is_caught(whole, place, value):
    with pytest.raises(ValidationError):
        schema("report").validate(changed(written(whole), *place, to=value))


@pytest.mark.parametrize("key", ["schema", "verdict", "cautions", "classes", "files", "accepted", "run"])
def test_nothing_may_be_missing(whole, key):
    document = written(whole)
    del document[key]
    with pytest.raises(ValidationError):
        schema("report").validate(document)


def test_every_object_is_closed_unless_it_says_why_not():
    def objects(part):
        if isinstance(part, dict):
            if part.get("type") == "object":
                yield part
            for inner in part.values():
                yield from objects(inner)

    for kind in ("report", "manifest"):
        for part in objects(schema(kind).schema):
            assert "additionalProperties" in part or "description" in part, part


@pytest.mark.parametrize("link_mode", LINK_MODES)
def test_a_manifest_is_valid(digits_folder, tmp_path, link_mode):
    index, _ = pixels.load(folder.index(digits_folder), 16)
    results = [FileResult(file.path, index.class_name(file), file.status, file.sha256) for file in index.files]
    for number, position in enumerate((0, 40, 80)):
        guess = (str(number + 5), 0.9) if number else (None, None)
        old = results[position]
        results[position] = FileResult(old.path, old.label, old.status, old.sha256, True, 1.0, *guess)
    decisions = decide(Report(tuple(results), ()), "relabel", 0.5)
    settings = {"action": "relabel", "config": Config().as_dict(), "accepted": [SHA]}
    with written_folder(index, decisions, tmp_path / "out", tmp_path / "aside", settings, link_mode):
        pass
    document = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert document["counts"] == {"dropped": 1, "kept": 297, "relabelled": 2}
    schema("manifest").validate(document)
    for place, value in ((("new",), 1), (("files", 0, "new"), 1), (("files", 0, "action"), "eaten")):
        with pytest.raises(ValidationError):
            schema("manifest").validate(changed(document, *place, to=value))


@pytest.mark.parametrize("kind", ["report", "manifest"])
def test_the_command_prints_what_ships(kind):
    command = [sys.executable, "-m", "advrbd_cli", "schema", kind]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["title"] == f"advrbd.{kind}/1"
    assert done.stdout == (files("advrbd.reports") / "schema" / f"{kind}-1.json").read_bytes()
