"""Files are written whole or not at all, never over the input, and never two under one name."""

import errno
import os
import stat
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from advrbd.errors import OutputError
from advrbd.writing import (
    Names,
    NewFolder,
    alike,
    check_target_file,
    check_target_folder,
    in_class,
    printable,
    unprintable,
    write_whole,
)


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path):
    target = tmp_path / ("r" * 240 + ".csv")  # its name leaves little room for a temporary one
    write_whole(target, b"old, and longer than the new one")
    write_whole(target, b"new")
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_written_file_has_the_rights_that_open_would_give_it(tmp_path):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "report", b"")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "report").stat().st_mode) == 0o640


def test_what_cant_be_written_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*folder"):
        write_whole(tmp_path / "folder", b"data")
    with pytest.raises(OutputError, match="cannot write"):
        write_whole(tmp_path / "missing" / "report", b"data")
    with pytest.raises(OutputError, match="cannot write"):
        write_whole(tmp_path / ("x" * 300), b"data")
    assert list(tmp_path.rglob("*")) == [tmp_path / "folder"]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    def full(_handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "report").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        write_whole(tmp_path / "report", b"new")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


@pytest.fixture
def data(tmp_path) -> Path:
    """An input folder ``data``, with ``link`` beside it, a link to it."""
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("data", "overlaps the input"),
        ("data/new", "overlaps the input"),
        ("data/a/../new", "overlaps the input"),
        ("data/a/b/c", "overlaps the input"),
        ("link", "overlaps the input"),
        ("link/new", "overlaps the input"),
        (".", "overlaps the input"),
        ("link-to-new", "is no folder"),
        ("file", "is no folder"),
        ("full", "isn't empty"),
        ("missing/new", "missing doesn't exist"),
    ],
)
def test_folders_that_are_refused(tmp_path, data, target, message, snapshot):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / ".hidden").touch()
    (tmp_path / "link-to-new").symlink_to(tmp_path / "new")
    before = snapshot(tmp_path)
    for source in (data, tmp_path / "link"):
        with pytest.raises(OutputError, match=message):
            check_target_folder(tmp_path / target, source)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("target", [".", "../empty", "{tmp_path}/empty"])
def test_no_folder_takes_the_place_of_the_working_directory(tmp_path, data, target, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(OutputError, match=r"no folder can take the place of .*; name a new one inside of it"):
        check_target_folder(Path(target.format(tmp_path=tmp_path)), data)


def test_no_folder_takes_the_place_of_a_mount_point(tmp_path, data, monkeypatch):
    (tmp_path / "mounted").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "mounted")
    with pytest.raises(OutputError, match=r"mounted; name a new one inside of it, such as .*mounted/out"):
        check_target_folder(tmp_path / "mounted", data)
    check_target_folder(tmp_path / "mounted" / "out", data)


def test_folders_that_are_accepted(tmp_path, data):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new", "data2", "data/../new"):
        check_target_folder(tmp_path / name, data)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("data/report.csv", "inside the scanned folder"),
        ("data/a/report.csv", "inside the scanned folder"),
        ("link/report.csv", "inside the scanned folder"),
        ("other/../data/report.csv", "inside the scanned folder"),
        ("link-into", "inside the scanned folder"),
        ("data", "is a folder"),
        ("other", "is a folder"),
        ("missing/report.csv", "missing doesn't exist"),
    ],
)
def test_files_that_are_refused(tmp_path, data, target, message):
    (tmp_path / "other").mkdir()
    (tmp_path / "link-into").symlink_to(data / "a" / "1.png")
    for source in (data, tmp_path / "link"):
        with pytest.raises(OutputError, match=message):
            check_target_file(tmp_path / target, source, "--output")


def test_files_that_are_accepted(tmp_path, data):
    (tmp_path / "old.csv").touch()
    for name in ("old.csv", "new.csv", "data.csv"):
        check_target_file(tmp_path / name, data, "--output")


def test_a_file_inside_the_input_is_told_by_the_option_that_named_it(data):
    with pytest.raises(OutputError, match="name a place outside of it with --html"):
        check_target_file(data / "page.html", data, "--html")


def test_a_device_or_a_pipe_is_never_replaced_by_a_file(tmp_path, data):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to-null").symlink_to("/dev/null")
    for name in ("pipe", "to-null"):
        with pytest.raises(OutputError, match="is a device or a pipe; give --output the name of a file"):
            check_target_file(tmp_path / name, data, "--output")


def test_a_standard_stream_is_told_by_its_name(data):
    if not Path("/dev/stdout").is_symlink():
        pytest.skip("/dev/stdout is no link here")
    with pytest.raises(OutputError, match="is a device or a pipe; give --output the name of a file"):
        check_target_file(Path("/dev/stdout"), data, "--output")


def test_what_a_link_leads_to_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "old").write_bytes(b"old")
    for name, target in (("latest", "there/old"), ("dangling", "there/new")):
        (tmp_path / name).symlink_to(target)
        write_whole(tmp_path / name, b"new")
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / target).read_bytes() == b"new"
    assert {path.name for path in tmp_path.rglob("*")} == {"there", "old", "new", "latest", "dangling"}


def test_a_new_folder_appears_at_the_end_only(tmp_path):
    out = tmp_path / "out"
    with NewFolder(out) as folder:
        (folder / "a").mkdir()
        (folder / "a" / "1.png").write_bytes(b"1")
        assert not out.exists()
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [
        "out",
        "out/a",
        "out/a/1.png",
    ]


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(KeyboardInterrupt(), KeyboardInterrupt), (ValueError("x"), ValueError), (OSError(28, "No space"), OutputError)],
)
def test_a_new_folder_that_fails_leaves_nothing(tmp_path, raised, expected):
    with pytest.raises(expected), NewFolder(tmp_path / "out") as folder:
        (folder / "a").mkdir()
        raise raised
    assert not list(tmp_path.iterdir())


def test_a_new_folder_whose_name_was_taken_meanwhile(tmp_path):
    with pytest.raises(OutputError), NewFolder(tmp_path / "out") as folder:
        (folder / "1").touch()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").touch()
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "out", tmp_path / "out" / "mine"]


stems = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=3)
folders = st.sampled_from(["b", "B", "b/c", "ß", "ss"])
paths = st.builds(lambda *parts: "{}/{}{}".format(*parts), folders, stems, st.sampled_from([".png", ".PNG", ".jpeg"]))
few_paths = st.builds(
    lambda *parts: "{}/{}{}".format(*parts), folders, st.sampled_from(["1", "a", "A", "a__from-a"]), st.just(".png")
)
claims = st.lists(st.tuples(few_paths | paths, st.sampled_from(["a", "A", "c"])), max_size=20)


@given(st.lists(few_paths | paths, max_size=10), claims)
@example(["b/1.png", "b/1__from-a.png"], [("b/1.png", "a"), ("B/1.PNG", "A"), ("b/1__from-a-2.png", "a")])
def test_no_name_is_given_twice_whatever_its_case(taken, claimed):
    names, used = Names(taken), {alike(path) for path in taken}
    for path, origin in claimed:
        given_name = names.claim(path, origin)
        assert alike(given_name) not in used
        assert given_name == path or alike(path) in used
        assert PurePosixPath(given_name).parent == PurePosixPath(path).parent
        assert PurePosixPath(given_name).suffix == PurePosixPath(path).suffix
        used.add(alike(given_name))


@pytest.mark.parametrize(
    ("taken", "path"),
    [("b/\u00e9.png", "b/e\u0301.png"), ("b/E\u0301.png", "b/\u00e9.png"), ("b/ss.png", "b/ß.PNG")],
)
def test_names_that_some_file_system_takes_for_one_are_told_apart(taken, path):
    assert alike(Names([taken]).claim(path, "a")) != alike(taken)


@pytest.mark.parametrize(
    ("path", "origin"),
    [
        ("b/.png", "a"),
        ("b/" + "n" * 240 + ".png", "a" * 30),
    ],
)
def test_a_name_given_instead_is_still_the_name_of_an_image(tmp_path, path, origin):
    given_name = Names([path]).claim(path, origin)
    assert given_name.endswith(".png")
    (tmp_path / "b").mkdir()
    (tmp_path / given_name).touch()  # not too long


def test_a_move_to_another_class_keeps_what_lies_below():
    assert in_class("a/b/1.png", "c") == "c/b/1.png"
    assert in_class("a/1.png", "c d") == "c d/1.png"


@given(st.binary().map(os.fsdecode))
def test_any_file_name_can_be_shown(name):
    printable(name).encode("utf-8")


@given(st.text(st.characters(codec="utf-8", exclude_characters="\\").filter(str.isprintable)))
def test_proper_text_is_shown_as_it_is(text):
    assert printable(text) == text


def test_stray_bytes_are_shown_as_escapes():
    assert printable(os.fsdecode(b"caf\xe9.png")) == "caf\\xe9.png"


def test_two_names_are_never_shown_alike():
    assert printable(os.fsdecode(b"\xff.png")) != printable("\\xff.png")


anything = st.text(st.characters(exclude_categories=()))


@given(anything | st.binary().map(os.fsdecode) | st.text("\\x0ce9u\n\x7f\x80\xff\udcff"))
@example("\ud800\udcff\udbff\udfff\U0010ffff\xff\x00\\")
def test_what_is_shown_leads_back_to_the_name(name):
    assert unprintable(printable(name)) == name


@given(anything | st.text("\\x0ce9un2fF"))
def test_any_text_is_a_name_or_refused(text):
    try:
        name = unprintable(text)
    except ValueError:
        assert "\\" in text
    else:
        assert unprintable(printable(name)) == name


@pytest.mark.parametrize(
    "text",
    [
        "\\",
        "a\\",
        "\\\\\\",
        "\\a",
        "\\x",
        "\\x4",
        "\\xE9",
        "\\x2e\\x2e",  # .. in disguise
        "a\\x2fb",
        "\\x5c",
        "\\u002e",
        "\\U0000002f",
        "\\U00110000",
        "\\Uffffffff",
        "\\N{DIGIT ONE}",
        "\\061",
    ],
)
def test_what_never_is_shown_is_no_name(text):
    with pytest.raises(ValueError, match="no escape"):
        unprintable(text)
