"""Files are written whole or not at all, and no id is given out twice."""

import contextlib
import enum
import errno
import os
import re
import subprocess
import sys
import threading

import pytest
from conftest import PROJECT

import meticulous


def take(directory, count=1):
    """Take *count* ids and make their folders, as starts do."""
    taken = []
    for _ in range(count):
        for number in meticulous._claim_ids(str(directory), contextlib.ExitStack()):
            try:
                os.mkdir(str(directory / str(number)))
            except FileExistsError:
                continue
            taken.append(number)
            break
    return taken


def age(path, seconds):
    status = os.stat(str(path))
    os.utime(str(path), (status.st_atime - seconds, status.st_mtime - seconds))


def test_ids_count_from_one(tmp_path):
    assert take(tmp_path, 3) == [1, 2, 3]


def test_ids_go_on_after_the_largest_integer(tmp_path):
    for name in ["4", "007", "x9", "9x", "\N{ARABIC-INDIC DIGIT NINE}", "-12"]:
        (tmp_path / name).mkdir()
    assert take(tmp_path) == [8]


@pytest.mark.parametrize(
    ("names", "largest"),
    [
        ([], 0),
        (["9", "10", "8"], 10),
        (["007", "6"], 7),
        ([".claim-12", "3"], 12),
        ([".claim-2"], 2),
        ([".claim-3", "12"], 12),
        (["x", "12", "5"], 12),
        (["x", "y-7"], 0),
        (["-9", "+7", " 8", "3"], 3),
        (["1" * 255, "2"], int("1" * 255)),
    ],
)
def test_the_largest_id_counts_whatever_else_is_there(tmp_path, names, largest):
    for name in names:
        (tmp_path / name).mkdir()
    assert meticulous._list_ids(str(tmp_path))[0] == largest


def test_an_id_is_not_given_out_again_after_deletion(tmp_path):
    take(tmp_path, 3)
    os.rmdir(str(tmp_path / "3"))
    os.rmdir(str(tmp_path / "2"))
    assert take(tmp_path) == [4]


def test_old_claims_are_swept_but_the_newest(tmp_path):
    take(tmp_path, 5)
    for path in tmp_path.glob(".claim-*"):
        age(path, 7200)
    take(tmp_path)
    for number in range(1, 7):
        os.rmdir(str(tmp_path / str(number)))
    assert {path.name for path in tmp_path.iterdir()} == {".claim-5", ".claim-6"}
    assert take(tmp_path) == [7]


def test_old_claims_are_swept_beside_those_of_another_user(tmp_path):
    """In a directory like /tmp they can't be removed; whatever comes first in a listing must not end the sweep."""
    if os.getuid():
        pytest.skip("needs root")
    directory = tmp_path / "shared"
    directory.mkdir()
    directory.chmod(0o1777)
    theirs = [directory / f".claim-{number}" for number in range(1, 41)]
    ours = [directory / f".claim-{number}" for number in range(41, 61)]
    for path in theirs + ours:
        path.write_text("")
        os.chown(str(path), 1001 if path in theirs else 1002, -1)
        age(path, 7200)
    os.chown(str(directory), 1003, -1)
    for path in (tmp_path, *list(tmp_path.parents)[:-2]):
        path.chmod(0o755)
    become = "import meticulous\nos.setgroups([])\nos.setuid(1002)"
    source = CLAIMER.format(project=str(PROJECT)).replace("import meticulous", become)
    command = [sys.executable, "-c", source.replace("range(10)", "range(60)")]
    assert subprocess.check_output(command, cwd=str(directory), input=b"\n").split()[0] == b"61"
    assert all(path.exists() for path in theirs)
    assert not any(path.exists() for path in ours)


def test_an_id_is_not_given_out_again_after_a_start_that_swept_and_failed(tmp_path):
    take(tmp_path, 3)
    for path in tmp_path.glob("[0-9]"):
        path.rmdir()
    for path in tmp_path.glob(".claim-*"):
        age(path, 7200)
    for _ in range(5):
        with contextlib.ExitStack() as undo:
            assert next(meticulous._claim_ids(str(tmp_path), undo)) == 4


def test_young_claims_stay(tmp_path):
    take(tmp_path, 5)
    assert len(list(tmp_path.glob(".claim-*"))) == 5


def test_a_start_that_slept_too_long_lists_again(tmp_path, monkeypatch):
    """It has listed nothing, sleeps for hours, and finds the claims swept: 1 was given out all the same."""
    take(tmp_path, 3)
    listed = meticulous._list_ids
    answers = [(0, []), listed(str(tmp_path))]
    for number in (1, 2, 3):
        os.rmdir(str(tmp_path / str(number)))
    for number in (1, 2):
        (tmp_path / f".claim-{number}").unlink()
    monkeypatch.setattr(
        meticulous, "_list_ids", lambda directory: answers.pop(0) if answers else listed(directory)
    )
    hours = iter(range(1000))
    monkeypatch.setattr(meticulous.time, "monotonic", lambda: next(hours) * 3600.0 if len(answers) else 0.0)
    assert take(tmp_path) == [4]


CLAIMER = """
import contextlib, os, sys
sys.path.insert(0, {project!r})
import meticulous
sys.stdin.readline()
for _ in range(10):
    for number in meticulous._claim_ids(".", contextlib.ExitStack()):
        try:
            os.mkdir(str(number))
        except FileExistsError:
            continue
        print(number)
        break
"""


def test_processes_that_start_together_get_different_contiguous_ids(tmp_path):
    source = CLAIMER.format(project=str(PROJECT))
    claimers = [
        subprocess.Popen(
            [sys.executable, "-c", source], cwd=str(tmp_path), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(16)
    ]
    for claimer in claimers:
        claimer.stdin.write(b"\n")
        claimer.stdin.flush()
    ids = [int(word) for claimer in claimers for word in claimer.communicate()[0].split()]
    assert sorted(ids) == list(range(1, 161))


class Level(enum.IntEnum):
    HIGH = 3


class Name(str, enum.Enum):
    BASE = "base"


class Index:
    def __index__(self):
        return 4


@pytest.mark.parametrize(
    "given, name",
    [(None, None), ("", None), (0, "0"), (7, "7"), ("a-b_c.1", "a-b_c.1"), ("é", "é"), ("a b", "a b")]
    + [(Level.HIGH, "3"), (Name.BASE, "base"), (Index(), "4")],
)
def test_good_ids(given, name):
    assert meticulous._check_id(given) == name


@pytest.mark.parametrize(
    "given",
    ["a/b", ".", "..", ".hidden", "a\0b", "a\nb", "x" * 300, "é" * 120, "a\\b", 1.5, True, ["a"], -1, "-1"]
    + [memoryview(b"a")],
)
def test_bad_ids_are_named_in_the_error(given):
    with pytest.raises(meticulous.InvalidIdException, match="can't be an experiment id") as caught:
        meticulous._check_id(given)
    assert len(str(caught.value)) < 200
    assert isinstance(caught.value, ValueError)


@pytest.mark.skipif(
    not os.path.exists("/proc/self/environ"), reason="this interpreter runs without Linux's /proc"
)
def test_a_long_file_of_proc_is_read_completely():
    source = "import meticulous; print(meticulous._read_text('/proc/self/environ').count('x'))"
    folder = os.path.dirname(meticulous.__file__)
    environment = {"LONG": "x" * 100000, "PYTHONPATH": folder}
    output = subprocess.check_output([sys.executable, "-c", source], env=environment)
    assert int(output) >= 100000


def test_refused_write_to_a_descriptor_names_the_directory():
    error = meticulous._explain_refused_write(
        OSError(errno.EIO, "Input/output error", 99), "/home/experiments"
    )
    assert str(error) == "/home/experiments can't be used: Input/output error."


def test_writing_replaces_the_whole_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "file"
    meticulous._write_file(str(path), b"long old content")
    meticulous._write_file(str(path), b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_keeps_the_old_content_and_names_the_path(tmp_path):
    path = tmp_path / "missing" / "file"
    with pytest.raises(OSError, match=re.escape(str(path))):
        meticulous._write_file(str(path), b"new")
    path = tmp_path / "folder"
    path.mkdir()
    with pytest.raises(OSError, match=re.escape(str(path))):
        meticulous._write_file(str(path), b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_a_reader_never_sees_half_a_file(tmp_path):
    path = str(tmp_path / "file")
    contents = [bytes([letter]) * 100000 for letter in b"ab"]
    meticulous._write_file(path, contents[0])
    done = threading.Event()

    def write():
        for turn in range(300):
            meticulous._write_file(path, contents[turn % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(meticulous._read_file(path))
    writer.join()
    assert seen <= set(contents)


@pytest.mark.parametrize(
    "timestamp, ending",
    [(0, ".000000"), (1.5, ".500000"), (1600000000.000001, ".000001"), (1.9999999, ".999999")],
)
def test_times_have_microseconds_always(timestamp, ending):
    text = meticulous._local_time(timestamp)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}", text)
    assert text.endswith(ending)


def test_directories_are_made_with_their_parents_and_taken_away_again(tmp_path):
    path = tmp_path / "a" / "b"
    with contextlib.ExitStack() as undo:
        meticulous._make_directories(str(path), undo)
        assert path.is_dir()
        with contextlib.ExitStack() as nothing:
            meticulous._make_directories(str(path), nothing)
        assert path.is_dir()
    assert os.listdir(str(tmp_path)) == []


def test_directories_that_were_made_before_a_failure_are_taken_away(tmp_path):
    path = tmp_path / "a" / ("b" * 300)
    with pytest.raises(meticulous.FolderException), contextlib.ExitStack() as undo:
        meticulous._make_directories(str(path), undo)
    assert os.listdir(str(tmp_path)) == []


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "a").write_text("")
    with contextlib.ExitStack() as undo:
        with pytest.raises(meticulous.FolderException, match=re.escape(str(tmp_path / "a"))):
            meticulous._make_directories(str(tmp_path / "a" / "b"), undo)
        with pytest.raises(OSError):
            meticulous._make_directories(str(tmp_path / "a"), undo)
