"""The page shows what the report says, lets the trigger be seen, and hands nothing of the attacker's to a browser."""

import base64
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

import advrbd.pipeline
from advrbd.attacks import BadNets
from advrbd.attacks.pictures import scaled
from advrbd.benchmark.digits import digits, write_image_folder
from advrbd.config import Config, IdentificationSettings
from advrbd.data.folder import OK, REFUSED_LINK, UNREADABLE
from advrbd.method.enhancement import Enhanced
from advrbd.method.identification import identify
from advrbd.method.separation import Split
from advrbd.reports import html, images, wording
from advrbd.reports.accepted import accept
from advrbd.reports.html import MOST_PICTURES, histogram, render_html
from advrbd.reports.report import CLEAN, POISONED, SUSPICIOUS, UNEXAMINED, ClassVerdict, FileResult, Report
from advrbd.reports.subset import restrict
from advrbd.writing import printable
from advrbd_cli import console
from advrbd_cli.app import main

VOID = {"meta", "img", "input"}
INLINE = {"bdi", "strong", "code"}
PER_CLASS, PLANTED = 30, 24
NOISE_LIMIT = 32e6  # bytes of a page whose thousand thumbnails are noise, which no encoder shrinks


class Page(HTMLParser):
    """A page taken apart: ``tags`` with their attributes, and the ``texts`` within elements by tag and class."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[tuple[str, str]] = []
        self.pieces: list[tuple[tuple[tuple[str, str], ...], str]] = []
        self.feed(data.decode())
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        assert len(found) == len(attributes)
        self.tags.append((tag, found))
        if tag not in VOID:
            self.open.append((tag, found.get("class") or ""))

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in INLINE:
            self.handle_data(" ")
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.pieces.append((tuple(self.open), data))

    def having(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self, tag: str, kind: str = "") -> str:
        """All text inside elements ``tag`` of the class ``kind``, with spaces as a browser shows them."""
        wanted = [text for place, text in self.pieces if (tag, kind) in place or (not kind and tag in dict(place))]
        return " ".join("".join(wanted).split())

    def paths(self) -> list[str]:
        """The suspects' paths as the page's script reads them."""
        return [text for place, text in self.pieces if place[-2:] == (("span", "path"), ("bdi", ""))]

    def pictures(self) -> list[bytes]:
        found = [re.fullmatch(r"data:image/(?:png|jpeg);base64,(.+)", entry["src"]) for entry in self.having("img")]
        return [base64.b64decode(match[1], validate=True) for match in found]


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory) -> tuple[Path, Report]:
    """300 digits, 24 of which carry the trigger of BadNets and the label 3, and the report that knows it."""
    pictures, labels, _, _ = digits()
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == label)[:PER_CLASS] for label in range(10)]))
    pictures, labels = pictures[chosen].copy(), labels[chosen]
    attack, generator = BadNets(), np.random.default_rng(0)
    changes = attack.plan(labels, 3, 10, PLANTED / len(labels), generator)
    true = labels.copy()
    for change in changes:
        pictures[change.position] = change.stamp(pictures[change.position], generator)
        labels[change.position] = change.label
    root = tmp_path_factory.mktemp("html") / "data"
    write_image_folder(pictures, labels, root)
    planted = {change.position for change in changes}
    files = []
    for number, label in enumerate(labels):
        path, found = f"{label}/{number:05d}.png", number in planted
        score = 0.9 + number / 10_000 if found else number / 1_000
        guess = (str(true[number]), 0.75) if found else (None, None)
        files.append(FileResult(path, str(label), OK, sha256_of(root / path), found, score, *guess))
    counts = Counter(file.label for file in files)
    evidence = {"bimodality": 5.12, "distance": 8.25, "groups": 2, "ambiguity": 0.064, "conviction": 0.97}
    classes = tuple(
        ClassVerdict(str(label), counts[str(label)], PLANTED, POISONED, evidence)
        if label == 3
        else ClassVerdict(str(label), counts[str(label)], 0, CLEAN)
        for label in range(10)
    )
    return root, Report(tuple(sorted(files, key=lambda file: file.path)), classes)


@pytest.fixture
def copy(poisoned, tmp_path) -> tuple[Path, Report]:
    """The same in a folder of one's own."""
    root, report = poisoned
    return Path(shutil.copytree(root, tmp_path / "data")), report


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def a_suspect(path: str, sha256: str = "ab" * 32, score: float = 0.9, suggested: str | None = None) -> FileResult:
    return FileResult(path, path.split("/")[0], OK, sha256, True, score, suggested, None if suggested is None else 0.5)


def a_report(*files: FileResult, verdict: str = POISONED, **more) -> Report:
    counts = Counter(file.label for file in files)
    suspects = Counter(file.label for file in files if file.suspect)
    return Report(files, tuple(ClassVerdict(name, counts[name], suspects[name], verdict) for name in counts), **more)


def test_the_page_needs_nothing_and_runs_only_its_own_script(poisoned):
    root, report = poisoned
    data = render_html(report, root)
    page = Page(data)
    [script] = re.findall(r"<script>(.*?)</script>", data.decode(), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    [policy] = [entry["content"] for entry in page.having("meta") if entry.get("http-equiv")]
    assert page.tags.index(("meta", {"http-equiv": "Content-Security-Policy", "content": policy})) < page.tags.index(
        ("style", {})
    )
    assert dict(directive.split(" ", 1) for directive in policy.split("; ")) == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": "'unsafe-inline'",
        "script-src": f"'sha256-{digest}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert {"link", "iframe", "object", "embed", "base", "form"}.isdisjoint(tag for tag, _ in page.tags)
    addresses = [value for _, found in page.tags for key, value in found.items() if key in ("src", "href", "action")]
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    assert "//" not in re.sub(r"base64,[^\"]+|// an empty field|// sha256sum", "", data.decode())
    assert "url(" not in page.text("style")
    assert not [key for _, found in page.tags for key in found if key.startswith("on") or key == "style"]


def test_headings_landmarks_labels_and_alternatives(poisoned):
    root, report = poisoned
    page = Page(render_html(report, root))
    tags = [tag for tag, _ in page.tags]
    assert [tags.count(tag) for tag in ("h1", "header", "main", "footer")] == [1, 1, 1, 1]
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in pairwise(levels))
    names = [found["id"] for _, found in page.tags if "id" in found]
    assert len(names) == len(set(names))
    for _, found in page.tags:
        assert found.get("aria-labelledby", names[0]) in names
        assert found.get("href", f"#{names[0]}").removeprefix("#") in names
    assert all(found["alt"] and found["loading"] == "lazy" for found in page.having("img"))
    assert [found["role"] for found in page.having("svg")] == ["img"]
    assert page.having("html") == [{"lang": "en"}]


def test_the_numbers_are_those_of_the_report(poisoned):
    root, report = poisoned
    shown = replace(
        report,
        cautions=("look 4 still found suspects",),
        files=(*report.files, FileResult("9/link.png", "9", REFUSED_LINK, ""), FileResult("9/x", "9", UNREADABLE, "")),
        run={"looks": 3, "control_found": True, "seconds": 1234.5, "torch": "2.15", "config": Config().as_dict()},
    )
    page = Page(render_html(shown, root))
    assert page.text("h1").startswith("24 of 302 files look tampered with")
    assert page.text("dl", "numbers") == ("files 302 classes 10 suspects 24 could not be read 2 classes unexamined 0")
    in_class = report.classes[3].files
    assert f"24 of its {in_class} files are suspects ({2400 / in_class:.1f} %)" in page.text("article")
    assert "Mean of 24 suspects" in page.text("figcaption")
    assert f"Mean of {in_class - 24} others of the class" in page.text("figcaption")
    for figure in ("97 %", "0.06 for each file on the smaller side", "5.1", "8.2 deviations", "2"):
        assert figure in page.text("strong")
    assert page.text("ul", "cautions") == "look 4 still found suspects"
    assert "9/link.png refused-link a link out of the folder" in page.text("tbody")
    run = page.text("dl", "legend") + page.text("dl", "legend small")
    for fact in ("Looks 3", "found, as it should be", "Time 1,234 seconds", "torch 2.15", "warm_up.epochs 16"):
        assert fact in run


def test_every_suspect_is_listed_with_what_is_known_of_it(poisoned):
    root, report = poisoned
    page = Page(render_html(report, root))
    ranked = sorted(report.suspects, key=lambda file: -file.score)
    assert page.paths() == [file.path for file in ranked]
    assert page.text("ol", "wall") == " ".join(
        f"{file.path} labelled 3 looks like {file.suggested_label} (75 %) score {file.score:.3f}" for file in ranked
    )
    boxes = [found for found in page.having("input") if found["type"] == "checkbox"]
    assert [found["value"] for found in boxes] == [file.sha256 for file in ranked]
    rows = [found for found in page.having("li") if "data-score" in found]
    assert [(found["data-class"], float(found["data-score"])) for found in rows] == [("3", f.score) for f in ranked]
    thumbnails = page.pictures()[3:]
    for file, thumbnail in zip(ranked, thumbnails, strict=True):
        assert np.array_equal(pixels(thumbnail), np.asarray(Image.open(root / file.path)))  # small ones lose nothing


def test_the_difference_shows_the_trigger_in_its_corner(poisoned):
    root, report = poisoned
    mean, others, difference = map(pixels, Page(render_html(report, root)).pictures()[:3])
    side = 4 * scaled(BadNets().side, np.zeros((16, 16, 3)))  # the mean images are 64 pixels wide, the digits 16
    corner, around = np.zeros((2, 64, 64), bool)
    corner[-side + 2 :, -side + 2 :] = True
    around[-side - 3 :, -side - 3 :] = True  # enlarging blurs the edge
    brightness = difference.mean(axis=2)
    assert brightness[corner].min() > 240
    assert brightness[~around].max() < 200
    assert mean[corner].min() > 240
    assert others[corner].max() < 100


def test_without_a_trigger_nothing_stands_out_in_the_corner(poisoned):
    root, report = poisoned
    same = [file for file in report.files if file.label == "3" and not file.suspect]
    found = images.compare(same[::2], same[1::2], root)
    assert found.difference.max() == 255
    assert found.amplification > 2  # two halves of the same are alike
    assert found.difference[-6:, -6:].mean() < 32


def test_a_suspicious_class_shows_what_stands_apart_without_accusing(poisoned):
    root, report = poisoned
    files = tuple(replace(f, suspect=False, score=0.4 if f.suspect else 0.1) for f in report.files)
    entry = replace(report.classes[3], suspects=0, verdict=SUSPICIOUS, evidence={"conviction": 0.4})
    page = Page(render_html(Report(files, (*report.classes[:3], entry, *report.classes[4:])), root))
    assert page.text("h1").startswith("Something stands apart in 1 class")
    assert "None of its" in page.text("article")
    assert f"Mean of {PLANTED} files that stand apart" in page.text("figcaption")
    assert pixels(page.pictures()[2])[-4:, -4:].min() > 200
    assert "The suspects" not in page.text("h2")


HOSTILE = (
    "cat/<script>alert(1)<",
    'cat/"><img src=x onerror=alert(1)>.png',
    "cat/' onmouseover='alert(1).png",
    "cat/{{ 7 * 7 }}{% raw %}&lt;b&gt;&amp;.png",
    "cat/\u202egnp.exe\u2066\u200f\n\r\t\x1b[2J\0.png",
    "cat/" + os.fsdecode(b"\xff\xfe") + "back\\slash.png",
    "cat/\u05d0\u05d1  two spaces .png",
    "cat/-->]]><!--<![CDATA[.png",
    "cat/<" + "/script><script>alert(2)</script>.png",
    "<" + "/style></title><svg onload=alert(3)>/1.png",
    "=\u061cdog<b>/2.png",
)


def named(paths: tuple[str, ...], word: str) -> Report:
    """A report with ``paths`` as suspects and as unread files, and with ``word`` everywhere else."""
    found = [a_suspect(path, suggested=word) for path in paths]
    unread = [FileResult(path, path.split("/")[0], UNREADABLE, "") for path in paths]
    return a_report(*found, *unread, cautions=(word,), run={"device": word, "config": {word: word}})


@pytest.mark.parametrize("word", HOSTILE)
def test_hostile_names_are_shown_and_do_nothing(word, tmp_path):
    data = render_html(named(HOSTILE, word), tmp_path)
    page = Page(data)
    harmless = [f"{label}/{number}" for number, label in enumerate(path[0] for path in HOSTILE)]
    expected = Page(render_html(named(tuple(harmless), "word"), tmp_path))
    assert [(tag, sorted(found)) for tag, found in page.tags] == [(tag, sorted(found)) for tag, found in expected.tags]
    assert page.paths() == [printable(path) for path in sorted(HOSTILE)]
    assert word.isprintable() == (word in "".join(text for _, text in page.pieces))
    assert not set("\u202e\u2066\u200f\u061c\r\x1b\0") & set(data.decode())


def test_the_attackers_bytes_stay_out_of_the_page(tmp_path):
    """A picture that is a web page, too, by what is hidden in its chunks and after its end."""
    (tmp_path / "cat").mkdir()
    payload = b"<script>alert('polyglot')</script>"
    chunk = PngImagePlugin.PngInfo()
    chunk.add_text("Comment", payload.decode())
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8))
    noise.save(tmp_path / "cat/1.png", pnginfo=chunk)
    noise.save(tmp_path / "cat/2.jpg", comment=payload, exif=b"Exif\0\0" + payload, quality=80, subsampling=0)
    noise.crop((0, 0, 20, 20)).save(tmp_path / "cat/3.png")
    for path in tmp_path.rglob("*.*"):
        path.write_bytes(path.read_bytes() + payload)
    names = ("cat/1.png", "cat/2.jpg", "cat/3.png")
    data = render_html(a_report(*[a_suspect(name, sha256_of(tmp_path / name)) for name in names]), tmp_path)
    pictures = Page(data).pictures()
    assert [pixels(picture).shape[:2] for picture in pictures] == [(40, 90), (40, 90), (20, 20)]
    for name in names:
        theirs = (tmp_path / name).read_bytes()
        assert base64.b64encode(theirs)[:-4] not in data
        for picture in pictures:
            assert b"alert" not in picture
            assert picture not in theirs


def test_a_large_image_becomes_a_thumbnail_of_the_same_shape(tmp_path):
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (600, 200), (200, 30, 30)).save(tmp_path / "cat/1.png")
    Image.new("L", (3000, 1)).save(tmp_path / "cat/2.png")
    files = [a_suspect(name, sha256_of(tmp_path / name)) for name in ("cat/1.png", "cat/2.png")]
    page = Page(render_html(a_report(*files), tmp_path))
    assert [(found["width"], found["height"]) for found in page.having("img")] == [("96", "32"), ("96", "1")]
    assert np.abs(pixels(page.pictures()[0]).astype(int) - (200, 30, 30)).max() < 8


def test_a_file_that_is_no_longer_what_was_scanned_has_no_picture(copy):
    root, report = copy
    outside = root.parent / "outside.png"
    first, second, third, fourth, fifth = (root / file.path for file in report.suspects[:5])
    shutil.copy(third, outside)
    first.write_bytes(second.read_bytes())  # an image still, but another one
    second.unlink()
    third.unlink()
    third.symlink_to(outside)  # the same bytes, but from out of the folder
    fourth.unlink()
    os.mkfifo(fourth)  # whoever opens it waits for ever
    fifth.unlink()
    fifth.mkdir()
    page = Page(render_html(report, root))
    assert page.text("span", "frame missing").count("no picture: gone or changed since the scan") == 5
    assert len(page.pictures()) == 3 + PLANTED - 5
    assert f"Mean of {PLANTED - 5} suspects" in page.text("figcaption")


def test_a_folder_that_is_gone_still_gives_a_page(poisoned, tmp_path):
    page = Page(render_html(poisoned[1], tmp_path / "gone"))
    assert not page.pictures()
    assert "There are no two groups of files left to compare" in page.text("p", "missing")
    assert page.text("span", "frame missing").count("no picture") == PLANTED


def test_a_class_of_suspects_alone_has_nothing_to_compare_with(poisoned):
    root, report = poisoned
    page = Page(render_html(a_report(*report.suspects), root))
    assert f"{PLANTED} of its {PLANTED} files are suspects (100.0 %)" in page.text("article")
    assert len(page.pictures()) == PLANTED


@pytest.mark.parametrize(
    ("verdict", "sentence", "command"),
    [
        (CLEAN, "Nothing was found", "advrbd drill 'my data'"),
        (UNEXAMINED, "This scan can't say whether the folder is safe: it could not look into 1 of 1 class", "--model"),
        (SUSPICIOUS, "Something stands apart in 1 class, but not sharply enough", "advrbd scan 'my data' --seed 1"),
        (POISONED, "Something stands apart in 1 class, but not sharply enough", "advrbd scan 'my data' --seed 1"),
    ],
)
def test_without_suspects_there_is_a_verdict_and_no_wall(verdict, sentence, command):
    report = a_report(FileResult("cat/1.png", "cat", OK, "00", score=0.1), verdict=verdict)
    page = Page(render_html(report, Path("my data")))
    assert page.text("h1").startswith(sentence)
    assert command in page.text("pre")
    assert page.text("p", "eyebrow").endswith(verdict)
    assert not page.pictures()
    assert not page.having("input")
    assert not page.having("ol")


@pytest.mark.parametrize(
    ("verdict", "run", "command"),
    [
        (SUSPICIOUS, {"config": {"seed": 6}}, "--seed 7"),
        (SUSPICIOUS, {"config": None}, "--seed 1"),
        (UNEXAMINED, {"model": {"name": "resnet10t"}}, "--model resnet18"),
        (UNEXAMINED, {"model": {"name": "resnet18"}}, "--model resnet50"),
        (UNEXAMINED, {"model": "x"}, "--model resnet18"),
    ],
)
def test_the_next_scan_is_another_than_this_one(verdict, run, command):
    report = Report((FileResult("cat/1.png", "cat", OK, "00"),), (ClassVerdict("cat", 1, 0, verdict, {}),), run=run)
    assert Page(render_html(report, Path("data"))).text("pre").endswith(command)


def test_with_suspects_the_next_step_is_to_clean():
    page = Page(render_html(a_report(a_suspect("cat/1.png")), Path("it's here")))
    assert page.text("pre") == """advrbd clean 'it'"'"'s here' --out CLEAN"""
    assert page.text("h1").startswith("1 of 1 file looks tampered with")
    assert "no other label suggested" in page.text("ol")


@pytest.mark.parametrize("run", [{}, {"model": "x", "config": None, "seconds": "long"}, {"config": {"a": {"b": []}}}])
def test_the_page_does_without_what_the_report_doesnt_say(run, tmp_path):
    odd = ClassVerdict("cat", 1, 0, SUSPICIOUS, {"conviction": 0.3, "new-figure": 7})
    report = Report((FileResult("cat/1.png", "cat", OK, "00"), a_suspect("lost/1.png")), (odd,), run=run)
    page = Page(render_html(report, tmp_path))
    assert "30 %" in page.text("dl", "figures")
    assert "new-figure 7" in page.text("dl", "figures")
    assert Page(render_html(Report((), (), run=run), tmp_path)).text("h1").startswith("Nothing was found")


def test_five_thousand_suspects_have_a_thousand_pictures_and_a_bounded_size(tmp_path):
    (tmp_path / "cat").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "cat/0.png")
    sha256 = sha256_of(tmp_path / "cat/0.png")
    names = ["cat/0.png", *(f"cat/{number}.png" for number in range(1, 5000))]
    for name in names[1:]:
        os.link(tmp_path / "cat/0.png", tmp_path / name)
    files = [a_suspect(name, sha256, 1 - number / 20_000, "dog") for number, name in enumerate(names)]
    data = render_html(a_report(*reversed(files)), tmp_path)
    page = Page(data)
    assert len(page.pictures()) == MOST_PICTURES == 1000
    assert page.paths() == names
    assert [len(re.findall("<li data-", part)) for part in data.decode().split('class="rows"')] == [1000, 4000]
    assert "The 1,000 with the highest scores have a picture" in page.text("p")
    assert len(data) < NOISE_LIMIT
    assert f"This page holds {len(data) / 1e6:.1f} MB" in page.text("footer")
    assert len(data) - sum(map(len, page.pictures())) * 4 / 3 < 5e6


def test_what_is_too_much_is_counted(monkeypatch, tmp_path):
    for name, limit in (("MOST_PICTURES", 2), ("MOST_ROWS", 3), ("MOST_UNREAD", 1), ("MOST_SECTIONS", 1)):
        monkeypatch.setattr(html, name, limit)
    files = [a_suspect(f"{label}/{number}.png") for label in ("cat", "dog") for number in range(4)]
    broken = [FileResult(f"cat/x{number}.png", "cat", UNREADABLE, "") for number in range(3)]
    page = Page(render_html(a_report(*files, *broken), tmp_path))
    assert len([found for found in page.having("li") if "data-score" in found]) == 5
    assert "3 more are in the other reports only" in page.text("p")
    assert "The first 1; the other reports have them all" in page.text("p")
    assert "Shown are the 1 classes with the most suspects, of 2" in page.text("p")
    assert len(page.having("article")) == 1


def test_means_are_of_a_spread_out_sample(poisoned, monkeypatch):
    root, report = poisoned
    monkeypatch.setattr(images, "MEAN_SAMPLE", 5)
    read, original = [], images._read_again
    monkeypatch.setattr(images, "_read_again", lambda file, *rest: (read.append(file.path), original(file, *rest))[1])
    others = [file for file in report.files if not file.suspect]
    found = images.compare(report.suspects, others, root)
    assert (found.count, found.count_of_others) == (5, 5)
    step = len(others) / 5
    assert sorted(read[5:]) == [others[int(number * step)].path for number in range(5)]


def test_the_same_report_gives_the_same_bytes_and_the_folder_stays_as_it_was(copy, snapshot):
    root, report = copy
    before = snapshot(root.parent)
    assert render_html(report, root) == render_html(report, root)
    assert snapshot(root.parent) == before


def test_a_histogram_counts_every_score_once_and_cuts_at_one_half():
    bars = histogram([0.0, 0.01, 0.5, 0.5000001, 1.0, *[0.93] * 5000])
    assert {bar.high: bar.count for bar in bars if bar.count} == {0.05: 2, 0.5: 1, 0.55: 1, 0.95: 5000, 1.0: 1}
    heights = {bar.count: bar.height for bar in bars}
    assert heights[5000] == 100 > heights[2] > heights[1] > 5 > heights[0] == 0
    assert all(bar.height == 0 for bar in histogram([]))


def test_every_verdict_status_and_figure_has_words():
    from advrbd.data import folder
    from advrbd.reports import report

    statuses = {value for name, value in vars(folder).items() if name.isupper() and isinstance(value, str)}
    assert set(wording.STATUSES) == statuses - {OK}
    assert set(wording.VERDICTS) == set(report.VERDICTS)
    examined = identify(
        torch.zeros(2, dtype=torch.int64),
        (Split(0, 2, torch.tensor([0]), 5.0, 8.0),),
        (Enhanced(0, torch.tensor([1.0, 0.0]), 0.1),),
        IdentificationSettings(),
    )
    heard_later = {"denied", "affinity", "strays"}  # by a model that was trained without them
    assert set(wording.FIGURES) == examined.evidence[0].keys() | heard_later | {"scenes", "versions"}


def colours(block: str) -> dict[str, np.ndarray]:
    found = re.findall(r"--([\w-]+): #([0-9a-f]{6});", block)
    return {name: np.frombuffer(bytes.fromhex(value), np.uint8) / 255 for name, value in found}


def luminance(colour: np.ndarray) -> float:
    """WCAG 2.2, relative luminance."""
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_has_the_contrast_that_wcag_asks_for(scheme):
    style = (html.HOME / "report.css").read_text()
    scheme = colours(re.findall(r":root \{(.*?)\}", style, re.DOTALL)[scheme])
    for text in ("ink", "quiet", "accent", CLEAN, UNEXAMINED, SUSPICIOUS, POISONED):
        for ground in ("paper", "raised"):
            light, dark = sorted((luminance(scheme[text]), luminance(scheme[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


def test_importing_the_page_doesnt_import_torch():
    probe = "import sys, advrbd.reports.html; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], timeout=60).returncode == 0


def scan_with(report: Report, monkeypatch, folder: Path, *options: str) -> int:
    """The exit code of a scan that found ``report``."""
    monkeypatch.setattr(advrbd.pipeline, "scan", lambda *_, **__: report)
    monkeypatch.setattr(sys, "argv", ["advrbd", "scan", "data", *options])
    monkeypatch.setattr(console, "state", console.State())
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as ending:
        main()
    return ending.value.code or 0


def test_scan_writes_the_page_beside_the_report_and_names_it(copy, monkeypatch, capfd):
    root, report = copy
    assert scan_with(report, monkeypatch, root.parent, "--html", "page.html") == 1
    assert {path.name for path in root.parent.iterdir()} == {"data", "advrbd-report.csv", "page.html"}
    assert (root.parent / "page.html").read_bytes() == render_html(report, Path("data"))
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "verdict: poisoned; report: advrbd-report.csv; page: page.html" in captured.err


def test_the_page_shows_what_the_scans_limit_on_pixels_allows(tmp_path, monkeypatch):
    (tmp_path / "data" / "cat").mkdir(parents=True)
    Image.new("1", (8192 + 8, 8192)).save(tmp_path / "data/cat/1.png")  # more than by default
    report = a_report(a_suspect("cat/1.png", sha256_of(tmp_path / "data/cat/1.png")))
    for limit, shown in (("68000000", 1), ("67000000", 0)):
        assert scan_with(report, monkeypatch, tmp_path, "--html", "page.html", "--max-pixels", limit) == 1
        assert len(Page((tmp_path / "page.html").read_bytes()).pictures()) == shown


def test_the_page_passes_the_limit_on_to_the_drill_that_it_suggests(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    report = Report((FileResult("cat/1.png", "cat", OK, "0" * 64),), (ClassVerdict("cat", 1, 0, CLEAN),))
    assert scan_with(report, monkeypatch, tmp_path, "--html", "page.html", "--max-pixels", "5000", "--no-flip") == 0
    assert "advrbd drill data --max-pixels 5000 --no-flip" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_pillows_own_limit_is_the_scans_while_pictures_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (60, 20)).save(tmp_path / "cat/1.png")
    suspect = a_suspect("cat/1.png", sha256_of(tmp_path / "cat/1.png"))
    assert len(Page(render_html(a_report(suspect), tmp_path, 1200)).pictures()) == 1
    assert Image.MAX_IMAGE_PIXELS == 100


def test_accepted_suspects_dont_count_in_the_headline(tmp_path):
    known, new = a_suspect("cat/1.png", "12" * 32), a_suspect("cat/2.png")
    report = a_report(known, new, a_suspect("dog/1.png", "12" * 32))
    some = accept(report, {(known.sha256, "cat"): "old.csv"})
    page = Page(render_html(some, tmp_path))
    assert page.text("h1").startswith("2 of 3 files look tampered with")
    assert page.text("h1").endswith("hidden trigger; accepted: 1 file by old.csv.")
    assert page.text("title").startswith("advrbd: 2 suspects in 3 files")
    assert page.text("ol").count("labelled cat, accepted (old.csv)") == 1
    assert sorted(page.paths()) == ["cat/1.png", "cat/2.png", "dog/1.png"]  # they stay to be looked at
    both = {(known.sha256, "cat"): "old.csv", (known.sha256, "dog"): ".advrbdignore", (new.sha256, "cat"): "old.csv"}
    page = Page(render_html(accept(report, both), tmp_path))
    assert page.text("h1") == "No suspects but accepted ones: 3 files by old.csv, .advrbdignore."
    assert "--no-config" in page.text("pre")
    assert "accepted" not in render_html(report, Path("data")).decode()


def test_a_class_that_is_poisoned_without_suspects_is_no_less_so_beside_accepted_ones(tmp_path):
    known = a_suspect("cat/1.png", "12" * 32)
    classes = (ClassVerdict("cat", 1, 1, POISONED), ClassVerdict("dog", 1, 0, POISONED))
    report = Report((known, FileResult("dog/1.png", "dog", OK, "34" * 32, score=0.2)), classes)
    page = Page(render_html(accept(report, {(known.sha256, "cat"): "old.csv"}), tmp_path))
    sentence = "Something stands apart in 1 class, but not sharply enough to accuse single files"
    assert page.text("h1") == f"{sentence}; accepted: 1 file by old.csv."


def test_a_report_on_files_that_arent_accused_names_the_others(tmp_path):
    (tmp_path / "cat").mkdir()
    files = []
    for number, score in enumerate((0.47, 0.47, 0.1, 0.1)):  # two lean to what was accused
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"cat/{number}.png")
        files.append(FileResult(f"cat/{number}.png", "cat", OK, sha256_of(tmp_path / f"cat/{number}.png"), score=score))
    classes = (ClassVerdict("cat", 5, 1, POISONED, {"conviction": 0.9}),)
    report = restrict(Report((a_suspect("cat/9.png"), *files), classes), frozenset(file.path for file in files))
    page = Page(render_html(report, tmp_path))
    assert page.text("h1") == "None of the 4 files reported is accused; 1 other in the folder is."
    assert f"advrbd scan {tmp_path}" in page.text("pre")
    assert "Mean of" not in page.text("figure")


def test_the_page_of_a_split_shows_the_splits_files(copy, monkeypatch):
    root, report = copy
    (root.parent / "whole").mkdir()
    root.rename(root.parent / "whole" / "train")
    (root.parent / "whole").rename(root)
    assert scan_with(report, monkeypatch, root.parent, "--split", "train", "--html", "page.html") == 1
    page = Page((root.parent / "page.html").read_bytes())
    assert len(page.pictures()) == 3 + PLANTED
    assert page.text("pre") == "advrbd clean data --split train --out CLEAN"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--html", "data/page.html"), "lies inside the scanned folder"),
        (("--html", "no/page.html"), "the folder no doesn't exist"),
        (("--html", "data"), "data is a folder"),
        (("--html", "-"), "--html takes the name of a file"),
        (("--html", "./x", "-o", "x"), "--html and --output both name x"),
    ],
)
def test_a_page_that_cant_be_written_is_refused_before_work(copy, monkeypatch, capfd, snapshot, options, message):
    root, _ = copy
    before = snapshot(root.parent)
    monkeypatch.setattr(advrbd.pipeline, "scan", lambda *_, **__: pytest.fail("worked first"))
    monkeypatch.setattr(sys, "argv", ["advrbd", "scan", "data", *options])
    monkeypatch.chdir(root.parent)
    with pytest.raises(SystemExit) as ending:
        main()
    assert ending.value.code == 2
    assert message in capfd.readouterr().err
    assert snapshot(root.parent) == before


@pytest.fixture
def browser() -> Iterator:
    """A real Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no chromium")
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_filters_sorts_and_saves(copy, browser, scheme):
    root, report = copy
    (root.parent / "page.html").write_bytes(render_html(report, root))
    page = browser.new_page(color_scheme=scheme, viewport={"width": 360, "height": 740}, accept_downloads=True)
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((root.parent / "page.html").as_uri())
    assert page.locator("#count").inner_text() == f"{PLANTED} of {PLANTED} shown, 0 ticked"
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.select_option("#order", "path")
    paths = sorted(file.path for file in report.suspects)
    assert [text.strip() for text in page.locator(".path").all_text_contents()] == paths
    page.fill("#text", paths[0])
    assert page.locator("#count").inner_text() == f"1 of {PLANTED} shown, 0 ticked"
    page.click("#tick")
    with page.expect_download() as download:
        page.click("#save")
    sha256 = {file.path: file.sha256 for file in report.files}[paths[0]]
    assert Path(download.value.path()).read_text() == f"{sha256}  {paths[0]}\n"
    assert not complaints
    assert all(url.startswith(("file:", "data:", "blob:")) for url in requests)
