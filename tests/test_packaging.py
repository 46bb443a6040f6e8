"""What is published: the wheel is complete and works by itself, the source distribution makes the same one, and the
metadata and the citation say what they should."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.metadata import Metadata
from packaging.utils import canonicalize_name

from advrbd.version import __version__

ROOT = Path(__file__).parents[1]
PACKAGES = ("advrbd", "advrbd_cli")
LEFT_OUT = (".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info", "build", "dist")
INFO = f"advrbd-{__version__}.dist-info"
LOOK_AROUND = """
import sys
from pathlib import Path
import advrbd, advrbd_cli
from advrbd.benchmark.paper_tables import published
from advrbd.reports.html import render_html
from advrbd.reports.report import ClassVerdict, Report
print(advrbd.__file__)
print(advrbd_cli.__file__)
print(len(published()))
page = render_html(Report((), (ClassVerdict("cat", 30, 0, "clean"),)), Path("data"))
sys.stdout.write(page.decode())
"""


def ran(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, encoding="utf-8", timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def built(tree: Path, kind: str, into: Path) -> Path:
    """The ``sdist`` or ``wheel`` of a tree, by the backend that is installed: a front end would fetch one."""
    ran(sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(into), cwd=tree)
    [made] = into.iterdir()
    return made


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of what git tracks here, or of all but caches where there is no git."""
    copy = tmp_path_factory.mktemp("tree") / "advrbd"
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for name in ran("git", "ls-files", "-z", cwd=ROOT).split("\0"):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory) -> Path:
    return built(tree, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tree, tmp_path_factory) -> Path:
    return built(tree, "sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The wheel in an empty folder; what it needs comes from the environment of the tests."""
    folder = tmp_path_factory.mktemp("installed")
    quietly = ("--quiet", "--no-compile", "--disable-pip-version-check")
    ran(
        *(sys.executable, "-m", "pip", "install", *quietly, "--no-deps", "--no-index", "--target", str(folder)),
        str(wheel),
        cwd=folder,
    )
    return folder


@pytest.fixture(scope="module")
def metadata(wheel) -> Metadata:
    return Metadata.from_email(contents(wheel)[f"{INFO}/METADATA"], validate=True)


def test_the_wheel_holds_the_packages_as_they_are_and_nothing_else(tree, wheel):
    ours = [path for package in PACKAGES for path in (tree / package).rglob("*") if path.is_file()]
    expected = {path.relative_to(tree).as_posix(): path.read_bytes() for path in ours}
    held = contents(wheel)
    assert {name: data for name, data in held.items() if not name.startswith(INFO)} == expected
    assert {name for name in held if name.startswith(INFO)} == {
        f"{INFO}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
    }
    assert held[f"{INFO}/licenses/LICENSE"] == (tree / "LICENSE").read_bytes()
    assert "advrbd/py.typed" in held


def test_the_source_distribution_makes_the_same_wheel_and_brings_its_tests_along(wheel, sdist, tree, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / f"advrbd-{__version__}"
    assert contents(built(unpacked, "wheel", tmp_path / "again")) == contents(wheel)
    for name in ("README.md", "LICENSE", "CITATION.cff", "tests/conftest.py", "examples/README.md", ".ci/run"):
        assert (unpacked / name).read_bytes() == (tree / name).read_bytes()


def test_the_metadata_is_complete_and_valid(metadata, tree):
    assert (metadata.name, str(metadata.version)) == ("advrbd", __version__)
    assert metadata.summary
    assert metadata.description == (tree / "README.md").read_text(encoding="utf-8")
    assert metadata.description_content_type == "text/markdown"
    assert (metadata.license_expression, metadata.license_files) == ("Apache-2.0", ["LICENSE"])
    assert str(metadata.requires_python) == ">=3.11"
    assert metadata.author == "The advrbd maintainers"
    assert set(metadata.provides_extra) == {"bench", "fuzz", "test"}
    assert metadata.keywords
    assert {"Environment :: Console", "Topic :: Security", "Typing :: Typed"} <= {*metadata.classifiers}
    needed = {canonicalize_name(each.name) for each in metadata.requires_dist if each.marker is None}
    assert {"torch", "typer", "jinja2"} <= needed
    assert not needed & {"pytest", "hatchling"}


def test_the_installed_wheel_works_by_itself(installed, tmp_path):
    alone = {"PYTHONPATH": str(installed)}
    program = (sys.executable, str(installed / "bin" / "advrbd"))
    assert ran(*program, "--version", cwd=tmp_path, **alone) == f"advrbd {__version__}\n"
    for kind in ("report", "manifest"):
        assert "$schema" in json.loads(ran(*program, "schema", kind, cwd=tmp_path, **alone))
    ours, cli, rows, page = ran(sys.executable, "-c", LOOK_AROUND, cwd=tmp_path, **alone).split("\n", 3)
    assert [Path(file).parent for file in (ours, cli)] == [installed / package for package in PACKAGES]
    assert int(rows) > 300
    assert re.search(r"<style>.*<script>.*</html>", page, re.DOTALL)


CITED = {"cff-version", "title", "message", "type", "license", "authors", "references"}
"""What CITATION.cff holds, all of it in the Citation File Format 1.2.0, which needs a version, a message, a title and
authors. https://github.com/citation-file-format/citation-file-format/blob/1.2.0/schema-guide.md"""


def test_the_citation_is_valid_and_names_the_paper_by_both_titles():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited.keys() == CITED
    assert (cited["cff-version"], cited["type"], cited["license"]) == ("1.2.0", "software", "Apache-2.0")
    assert (cited["title"], cited["authors"]) == ("advrbd", [{"name": "The advrbd maintainers"}])
    [paper] = cited["references"]
    assert paper.keys() == {"type", "title", "notes", "year", "url", "authors"}
    assert (paper["type"], paper["year"]) == ("article", 2024)
    assert all(author.keys() == {"name"} for author in paper["authors"])
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    first, later = re.findall(r'published first as "([^"]+)", later as "([^"]+)"', readme)[0]
    assert paper["title"] == first
    assert paper["notes"].endswith(later)
    assert f"({paper['url']})" in readme
