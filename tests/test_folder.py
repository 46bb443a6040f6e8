"""The index lists what torchvision's ImageFolder lists, and follows nothing that leads out of the folder."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import ImageFolder

from advrbd.data import pixels
from advrbd.data.folder import EXTENSIONS, NOT_A_FILE, OK, REFUSED_LINK, index
from advrbd.errors import DatasetError


def make(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"not opened by either")
    return root


def assert_same_as_torchvision(root: Path) -> None:
    theirs, ours = ImageFolder(root), index(root)
    assert list(ours.classes) == theirs.classes
    assert [(f"{root}/{file.path}", file.label) for file in ours.files] == theirs.samples


def statuses(root: Path) -> dict[str, str]:
    return {file.path: file.status for file in index(root).files}


def test_same_files_in_the_same_order_as_torchvision(tmp_path):
    root = make(
        tmp_path,
        *("b/2.png", "b/10.png", "b/deep/er/1.JPEG", "b/deep-er/1.PnG", "b/deep.png/1.tif", "b/.png"),
        *(".hidden/1.webp", "B/1.bmp", "with space/a b.ppm", "new\nline/x\n.pgm", "-rf/-1.jpg", "ünï/日本.tiff"),
        *(os.fsdecode(b"\xff/\xfe.png"), "b/notes.txt", "b/deep/Thumbs.db", "loose.png", "README.md"),
    )
    assert_same_as_torchvision(root)
    found = index(root)
    assert {file.status for file in found.files} == {OK}
    assert set(found.ignored) == {"b/notes.txt", "b/deep/Thumbs.db", "loose.png", "README.md"}


names = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=6),
    st.binary(min_size=1, max_size=6).map(os.fsdecode),
    st.sampled_from(["a", "A", "b", "a.b", "a-b", "a b", ".a"]),
).filter(lambda name: name not in (".", "..") and "/" not in name and "\0" not in name)
suffixes = st.sampled_from([*EXTENSIONS, *(extension.upper() for extension in EXTENSIONS), "", ".txt", ".gif"])
files = st.builds(lambda folders, stem, suffix: [*folders, stem + suffix], st.lists(names, max_size=2), names, suffixes)


@given(st.dictionaries(names, st.lists(files, max_size=6), min_size=2, max_size=4), st.lists(names, max_size=2))
def test_any_tree_is_listed_as_torchvision_lists_it(tree, loose):
    with tempfile.TemporaryDirectory() as folder:
        root = make(Path(folder), *(f"{name}/!.png" for name in tree))  # torchvision takes no empty class
        wanted = [root.joinpath(name, *parts) for name, paths in tree.items() for parts in paths]
        for path in (*wanted, *(root / name for name in loose)):
            if not path.exists() and all(above.is_dir() or not above.exists() for above in path.parents):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        assert_same_as_torchvision(root)
        found = index(root)
        listed = [*(file.path for file in found.files), *found.ignored]
        assert sorted(listed) == sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["loose.png"], "holds no class folders"),
        (["cat/1.png", "loose.png"], r"one class only \(cat\)"),
        (["train/a/1.png", "Val/a/1.png", "test/a/1.png"], "only splits.*--split Val"),
        (["train/a/1.png", "train/b/1.png"], "only splits.*--split train"),
    ],
)
def test_a_folder_without_two_classes_is_refused(tmp_path, paths, message):
    with pytest.raises(DatasetError, match=message):
        index(make(tmp_path, *paths))


def test_a_path_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="no such folder"):
        index(tmp_path / "missing")
    with pytest.raises(DatasetError, match="is a file"):
        index(make(tmp_path, "file") / "file")


def test_a_split_is_scanned_by_name(tmp_path):
    make(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/2.png", "val/b/2.png")
    found = index(tmp_path, "val")
    assert found.root == tmp_path / "val"
    assert [file.path for file in found.files] == ["a/2.png", "b/2.png"]


@pytest.mark.parametrize(
    "split",
    [
        "test",
        "../data/train",
        "train/..",
        "..",
    ],
)
def test_a_split_that_is_no_sub_folder_is_refused(tmp_path, split):
    make(tmp_path / "data", "train/a/1.png", "train/b/1.png")
    with pytest.raises(DatasetError, match="no split folder"):
        index(tmp_path / "data", split)


def test_a_split_that_links_out_is_refused_and_one_that_links_inside_is_not(tmp_path):
    make(tmp_path, "outside/a/1.png", "outside/b/1.png", "data/inner/a/1.png", "data/inner/b/1.png")
    (tmp_path / "data" / "train").symlink_to(tmp_path / "outside")
    (tmp_path / "data" / "val").symlink_to("inner")
    with pytest.raises(DatasetError, match=r"is a link out of .*data, which isn't followed"):
        index(tmp_path / "data", "train")
    assert [file.path for file in index(tmp_path / "data", "val").files] == ["a/1.png", "b/1.png"]


@pytest.fixture
def two_classes(tmp_path) -> Path:
    root = tmp_path / "data"
    for path in ("a/1.png", "b/2.png"):
        (root / path).parent.mkdir(parents=True)
        Image.new("RGB", (8, 8), "white").save(root / path)
    return root


def test_links_are_followed_inside_the_folder_only(tmp_path, two_classes):
    make(tmp_path, "outside/secret.png")
    a = two_classes / "a"
    (a / "inside.png").symlink_to(two_classes / "b" / "2.png")
    (a / "outside.png").symlink_to(tmp_path / "outside" / "secret.png")
    (a / "relative.png").symlink_to("../../outside/secret.png")
    (a / "dangling.png").symlink_to("nowhere.png")
    (a / "linked").symlink_to(tmp_path / "outside")
    assert statuses(two_classes) == {
        "a/1.png": OK,
        "a/inside.png": OK,
        "a/outside.png": REFUSED_LINK,
        "a/relative.png": REFUSED_LINK,
        "a/dangling.png": REFUSED_LINK,
        "a/linked": REFUSED_LINK,
        "b/2.png": OK,
    }
    read, images = pixels.load(index(two_classes), 8)
    refused = [row for row, file in enumerate(read.files) if file.status == REFUSED_LINK]
    assert len(refused) == 4
    assert {read.files[row].sha256 for row in refused} == {""}
    assert not images.images[refused].any()


def test_a_class_folder_that_links_out_is_refused_whole(tmp_path, two_classes):
    make(tmp_path, "outside/secret.png")
    (two_classes / "c").symlink_to(tmp_path / "outside")
    assert index(two_classes).classes == ("a", "b", "c")
    assert statuses(two_classes) == {"a/1.png": OK, "b/2.png": OK, "c": REFUSED_LINK}


@pytest.mark.parametrize("target", ["..", ".", "../.."])
def test_a_loop_of_folders_ends(two_classes, target):
    (two_classes / "a" / "loop").symlink_to(target)
    assert statuses(two_classes) == {"a/1.png": OK, "a/loop": REFUSED_LINK, "b/2.png": OK}


@pytest.mark.parametrize(("path", "refused"), [("a/self.png", True), ("a/self", False), ("self", False)])
def test_a_link_to_itself_is_no_crash(two_classes, path, refused):
    link = two_classes / path
    link.symlink_to(link.name)
    assert index(two_classes).ignored == (() if refused else (path,))
    assert statuses(two_classes) == {"a/1.png": OK, "b/2.png": OK} | ({path: REFUSED_LINK} if refused else {})


def test_a_pipe_with_the_name_of_an_image_is_never_opened(two_classes):
    os.mkfifo(two_classes / "a" / "pipe.png")
    assert statuses(two_classes) == {"a/1.png": OK, "a/pipe.png": NOT_A_FILE, "b/2.png": OK}
    read, _ = pixels.load(index(two_classes), 8)  # would wait forever for somebody to write into the pipe
    assert [file.status for file in read.files] == [OK, NOT_A_FILE, OK]
