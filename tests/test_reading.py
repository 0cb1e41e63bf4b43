"""Records are read as far as they go, whoever wrote them and whatever happened to them."""

import copy
import json
import ntpath
import os
import pickle
import shlex
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path

import pytest
from conftest import PROJECT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from records import END, PROCESS, SHA, START, write_experiment, write_json

import meticulous
from meticulous import ExperimentReader, Experiments

ALL = ["STATUS", "args.json", "default_args.json", "metadata.json", "summary.json"]


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "experiments"
    path.mkdir()
    return path


def read(directory):
    return Experiments(experiments_directory=str(directory))


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "the package's"])
def test_everything_in_a_record_is_read(directory, ours):
    folder = write_experiment(directory, 7, {"lr": 0.1}, {"loss": 0.5}, default_args={"lr": 0.2}, ours=ours)
    reader = ExperimentReader(str(folder) + "/")
    assert (reader.curexpdir, reader.expid, repr(reader)) == (str(folder), "7", str(folder))
    assert (reader.args, reader.default_args, reader.summary) == ({"lr": 0.1}, {"lr": 0.2}, {"loss": 0.5})
    assert reader.metadata["command"] == "train.py --lr 0.1"
    assert (reader.sha, reader.start_time, reader.duration) == (SHA, START, 3723.0)
    assert (reader.status, reader.status_message) == ("SUCCESS", "")
    assert reader.problems == []
    assert list(reader.df_vars()) == ["header", "args", "default_args", "metadata", "summary"]
    assert reader.df_vars()["header"] == {
        "expid": "7", "sha": SHA, "start_time": START, "status": "SUCCESS", "status_message": "",
        "cause": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        ("SUCCESS", "SUCCESS", ""),
        ("SUCCESS\n", "SUCCESS", ""),
        ("ERROR\nTraceback ...\nValueError: no", "ERROR", "ValueError: no"),
        ("ERROR\nTraceback ...\nValueError: no\n\n", "ERROR", "ValueError: no"),
        ("ERROR\r\nwhy\r\n", "ERROR", "why"),
        ("", "UNKNOWN", ""),
        (" \n", "UNKNOWN", ""),
    ],
)
def test_status_is_the_first_line_and_its_message_the_last(directory, text, status, message):
    folder = write_experiment(directory, 1, status=text)
    reader = ExperimentReader(folder)
    assert (reader.status, reader.status_message) == (status, message)


def test_a_start_that_is_not_recorded_is_the_time_of_the_folder(directory):
    folder = write_experiment(directory, 1, start=None)
    assert ExperimentReader(folder).start_time == meticulous._local_time(os.stat(str(folder)).st_ctime)


@pytest.mark.parametrize("size", [65534, 65535, 65536, 200000])
def test_large_files_are_read_whole(directory, size):
    folder = write_experiment(directory, 1)
    content = b'{"text": "%s"}' % (b"x" * (size - len('{"text": ""}')))
    (folder / "summary.json").write_bytes(content)
    reader = ExperimentReader(folder)
    assert len(reader.summary["text"]) + len('{"text": ""}') == size
    assert reader.problems == []


def test_unknown_defaults_are_none(directory):
    assert ExperimentReader(write_experiment(directory, 1)).default_args is None


def test_equal_defaults_are_not_shared_between_readers(directory):
    for name, defaults in ((1, {"lr": 1}), (2, {"lr": 1}), (3, {"layers": [1]}), (4, {"layers": [1]})):
        write_experiment(directory, name, default_args=defaults)
    experiments = read(directory)
    assert experiments["1"].default_args == experiments["2"].default_args
    experiments["1"].default_args["lr"] = 2
    experiments["3"].default_args["layers"].append(2)
    assert experiments["2"].default_args == {"lr": 1}
    assert experiments["4"].default_args == {"layers": [1]}


def test_files_are_opened_relative_to_the_folder(directory):
    reader = ExperimentReader(write_experiment(directory, 1))
    with reader.open("stdout") as file:
        assert file.read() == "epoch 1\nepoch 2\n"
    with reader.open("notes.txt", "w", encoding="utf-8") as file:
        file.write("é")
    assert (directory / "1" / "notes.txt").read_bytes() == "é".encode()
    with reader.open(b"notes.txt") as first, reader.open(os.dup(first.fileno())) as second:
        assert second.read() == "é"


def test_the_id_is_the_last_part_of_the_path_on_windows_too(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "path", ntpath)
        found = [ExperimentReader(path).expid for path in ("experiments\\7", "C:\\net/experiments/7/")]
    assert found == ["7", "7"]


def test_refresh_reads_again(directory):
    folder = write_experiment(directory, 1, status="RUNNING", ours=False)
    reader = ExperimentReader(folder)
    assert (reader.status, reader.summary) == ("RUNNING?", {"loss": 0.5})
    (folder / "STATUS").write_text("ERROR\nwhy")
    write_json(folder / "summary.json", {"loss": 0.25})
    assert (reader.status, reader.summary) == ("RUNNING?", {"loss": 0.5})
    reader.refresh_status()
    reader.refresh_summary()
    assert (reader.status, reader.status_message, reader.summary) == ("ERROR", "why", {"loss": 0.25})


def test_refresh_status_counts_the_time_again(directory):
    folder = write_experiment(directory, 1, status="RUNNING", ours=False)
    reader = ExperimentReader(folder)
    assert reader.duration > 63 * 60 + 3
    metadata = dict(reader.metadata, **{"end-time": END})
    write_json(folder / "metadata.json", metadata)
    reader.refresh_status()
    assert reader.duration == 62 * 60 + 3


def test_attributes_can_be_set(directory):
    reader = ExperimentReader(write_experiment(directory, 1))
    reader.args = {"lr": 3}
    assert reader.df_vars()["args"] == {"lr": 3}


def test_readers_can_be_copied_and_sent_to_other_processes(directory):
    write_experiment(directory, 1)
    experiments = Experiments(experiments_directory=str(directory))
    assert experiments["1"].args == {"lr": 0.1}
    for copied in (copy.deepcopy(experiments), pickle.loads(pickle.dumps(experiments))):
        assert copied["1"].df_vars() == experiments["1"].df_vars()
        assert [reader.expid for reader in copied] == ["1"]


# --- what became of a run that says RUNNING


def describe_dead_process(repo):
    source = "import json, meticulous; print(json.dumps(meticulous._describe_process()))"
    return json.loads(repo.run(source).stdout)


def set_attempt(folder, process):
    metadata = json.loads((folder / "metadata.json").read_text())
    metadata["attempts"] = [{"start-time": START, **process}]
    write_json(folder / "metadata.json", metadata)
    return ExperimentReader(folder)


def test_a_living_process_is_running(directory):
    folder = write_experiment(directory, 1, status="RUNNING")
    reader = set_attempt(folder, meticulous._describe_process())
    assert (reader.status, reader.status_message) == ("RUNNING", "")
    assert reader.duration > 0


def test_only_the_latest_attempt_can_be_running(directory):
    past = {**PROCESS, "end-time": END}
    now = meticulous._describe_process()
    for name, attempts in (("going", [past, now]), ("gone", [now, past])):
        write_experiment(directory, name, status="RUNNING", attempts=attempts)
    assert ExperimentReader(directory / "going").status == "RUNNING"
    assert ExperimentReader(directory / "gone").status == "RUNNING?"


def test_a_process_that_is_gone_is_dead(directory, repo):
    folder = write_experiment(directory, 1, status="RUNNING")
    reader = set_attempt(folder, describe_dead_process(repo))
    assert reader.status == "DEAD"
    assert reader.status_message.startswith("killed without a trace; last sign of life 0s ago on ")
    assert (folder / "STATUS").read_text() == "RUNNING"


def test_a_process_elsewhere_may_be_running(directory):
    reader = ExperimentReader(write_experiment(directory, 1, status="RUNNING"))
    assert reader.status == "RUNNING?"
    assert reader.status_message == "last sign of life 0s ago on elsewhere"


@pytest.mark.parametrize(
    "attempts", [None, [], 5, ["x"], [{"host": [], "pid": "x"}], [{"host": "h", "pid": -1}]]
)
def test_a_running_record_that_names_no_process_may_be_running(directory, attempts):
    reader = ExperimentReader(write_experiment(directory, 1, status="RUNNING", attempts=attempts))
    assert reader.status == "RUNNING?"
    assert reader.duration is None or reader.duration > 0


class Slurm(meticulous._Scheduler):
    """Stands in for the scheduler's answer, which comes between two looks at the folder."""

    def __init__(self, meanwhile):
        super().__init__()
        self.meanwhile = meanwhile
        self.asked = 0

    def is_job_running(self, process):
        self.asked += 1
        self.meanwhile()
        return False


def test_a_run_that_ends_while_it_is_looked_at_is_not_dead(directory):
    folder = write_experiment(directory, 1, status="RUNNING")
    reader = ExperimentReader(folder)
    scheduler = reader._scheduler = Slurm(lambda: (folder / "STATUS").write_text("SUCCESS"))
    assert (reader.status, reader.status_message, scheduler.asked) == ("SUCCESS", "", 1)


def test_a_run_that_goes_on_elsewhere_while_it_is_looked_at_is_not_dead(directory):
    folder = write_experiment(directory, 1, status="RUNNING")
    reader = ExperimentReader(folder)
    assert len(reader.metadata["attempts"]) == 1
    scheduler = reader._scheduler = Slurm(
        lambda: set_attempt(folder, {"host": "other", "boot": "b", "pid": 9})
    )
    assert (reader.status, scheduler.asked) == ("RUNNING?", 1)
    scheduler = reader._scheduler = Slurm(lambda: set_attempt(folder, meanwhile))
    meanwhile = meticulous._describe_process()
    reader.refresh_status()
    assert reader.status == "RUNNING"


def test_an_ended_attempt_of_a_running_record_is_about_to_be_followed(directory):
    folder = write_experiment(directory, 1, status="RUNNING")
    reader = set_attempt(folder, {**PROCESS, "end-time": END, "ended": "DEAD"})
    scheduler = reader._scheduler = Slurm(lambda: None)
    assert (reader.status, scheduler.asked) == ("RUNNING?", 0)


def test_a_killed_experiment_is_dead(repo):
    script = repo.popen(
        """
        import sys, meticulous
        meticulous.Experiment({"lr": 0.1})
        print("ready", flush=True)
        sys.stdin.read()
        """,
        stdin=-1,
    )
    assert script.stdout.readline() == b"ready\n"
    reader = ExperimentReader(repo.experiment(1))
    assert reader.status == "RUNNING"
    script.kill_group()
    script.wait()
    reader.refresh_status()
    assert reader.status == "DEAD"


def test_the_time_of_all_attempts_is_added_up(directory):
    attempts = [
        {"start-time": "2026-03-04T05:00:00.000000", "end-time": "2026-03-04T05:00:10.000000"},
        {"start-time": "2026-03-04T06:00:00.000000"},
        {"start-time": "2026-03-04T07:00:00", "end-time": "2026-03-04T07:00:02.500000"},
    ]
    assert ExperimentReader(write_experiment(directory, 1, attempts=attempts)).duration == 12.5


# --- many experiments


def test_experiments_are_in_the_order_of_their_starts(directory):
    for name, start in (("b", "2026-01-02"), ("10", "2026-01-03"), ("9", "2026-01-01")):
        write_experiment(directory, name, start=start + "T00:00:00.000000")
    experiments = read(directory)
    assert list(experiments.experiments) == ["9", "b", "10"]
    assert [reader.expid for reader in experiments] == ["9", "b", "10"]
    assert len(experiments) == 3
    assert "b" in experiments
    assert "c" not in experiments
    assert experiments["b"] is experiments.experiments["b"]
    with pytest.raises(KeyError):
        experiments["c"]


def test_refresh_finds_new_experiments(directory):
    write_experiment(directory, 1)
    experiments = read(directory)
    assert list(experiments.experiments) == ["1"]
    write_experiment(directory, 2)
    assert list(experiments.experiments) == ["1"]
    experiments.refresh_experiments()
    assert list(experiments.experiments) == ["1", "2"]


def test_the_directory_is_experiments_in_the_project_unless_named(directory, monkeypatch):
    write_experiment(directory, 1)
    assert len(Experiments(str(directory.parent))) == 1
    monkeypatch.chdir(directory.parent)
    assert len(Experiments()) == 1
    assert len(Experiments("/nowhere", "experiments")) == 1


@pytest.mark.parametrize("name", ["missing", "file"])
def test_a_directory_that_is_none_is_an_error(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(meticulous.FolderException, match=name):
        read(tmp_path / name)


def test_a_reader_of_ones_own(directory):
    class Reader(ExperimentReader):
        def df_vars(self):
            with self.open("stdout") as file:
                return {**super().df_vars(), "own": {"lines": len(file.readlines())}}

    write_experiment(directory, 1)
    experiments = Experiments(experiments_directory=str(directory), reader=Reader)
    assert isinstance(experiments["1"], Reader)
    assert experiments.rows()[0]["own.lines"] == 2


def test_rows_are_flat(directory):
    write_experiment(directory, 1, {"lr": 0.1, "net": {"depth": 3, "act": {"name": "relu"}}}, {"a.b": 1})
    row = read(directory).rows()[0]
    assert row["header.expid"] == "1"
    assert row["args.net"] == {"depth": 3, "act": {"name": "relu"}}
    assert row["summary.a.b"] == 1
    assert read(directory).rows(1)[0]["args.net.act"] == {"name": "relu"}
    row = read(directory).rows(2)[0]
    assert (row["args.net.depth"], row["args.net.act.name"], row["args.lr"]) == (3, "relu", 0.1)


def test_nothing_is_printed_and_no_git_needed(directory, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    write_experiment(directory, 1)
    (write_experiment(directory, 2) / "args.json").write_text("{")
    assert len(read(directory).rows()) == 2
    assert capsys.readouterr() == ("", "")


# --- pandas


def test_a_dataframe_has_levels_of_columns(directory):
    pandas = pytest.importorskip("pandas")
    write_experiment(
        directory, 1, {"lr": 0.1, "n": 1, "net": {"depth": 3}, "a.b": 1}, {"loss": 0.5}, default_args={"n": 1}
    )
    write_experiment(directory, 2, {"lr": 0.2, "n": 2}, {"loss": float("nan")}, start="2027-01-01T00:00:00.0")
    frame = read(directory).as_dataframe()
    assert ("args", "a.b") in frame.columns
    assert frame.index.name == ("header", "expid")
    assert list(frame.index) == ["1", "2"]
    assert isinstance(frame.columns, pandas.MultiIndex)
    assert frame.columns.nlevels == 2
    assert list(frame["args"].columns) == ["lr", "n", "net", "a.b"]
    assert set(frame.columns.get_level_values(0)) == {"header", "args", "default_args", "metadata", "summary"}
    assert ("header", "expid") not in frame.columns
    assert frame[("args", "lr")].dtype == "float64"
    assert frame[("args", "n")].dtype == "int64"
    assert frame[("args", "net")]["1"] == {"depth": 3}
    assert frame[("summary", "loss")].isna().tolist() == [False, True]
    deep = read(directory).as_dataframe(normalize_json_values=1)
    assert deep.columns.nlevels == 3
    assert deep[("args", "net", "depth")]["1"] == 3
    assert deep["args"]["lr"].tolist() == [0.1, 0.2]


def test_a_dataframe_of_nothing_is_an_error(directory):
    with pytest.raises(IndexError):
        read(directory).as_dataframe()


def test_without_pandas_the_error_says_what_to_use(directory, monkeypatch):
    write_experiment(directory, 1)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(meticulous.MeticulousException, match=r"needs pandas.*rows\(\)"):
        read(directory).as_dataframe()


# --- bad folders


def empty_the_folder(folder):
    for path in folder.iterdir():
        path.unlink()


def empty_all_files(folder):
    for path in folder.iterdir():
        path.write_bytes(b"")


def put(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def make_directory(folder):
    (folder / "args.json").unlink()
    (folder / "args.json").mkdir()


def make_pipe(folder):
    (folder / "summary.json").unlink()
    os.mkfifo(str(folder / "summary.json"))


def make_loop(folder):
    (folder / "metadata.json").unlink()
    (folder / "metadata.json").symlink_to("metadata.json")


def replace_by_file(folder):
    shutil.rmtree(str(folder))
    folder.write_text("no folder")


def replace_by_loop(folder):
    shutil.rmtree(str(folder))
    folder.symlink_to(folder.name)


def replace_by_lost_link(folder):
    shutil.rmtree(str(folder))
    folder.symlink_to("nowhere")


def replace_by_socket(folder):
    shutil.rmtree(str(folder))
    before = os.getcwd()
    os.chdir(str(folder.parent))  # the path of a socket is at most 100 characters long
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(folder.name)
    finally:
        os.chdir(before)


BAD = {
    "no files": (empty_the_folder, ["STATUS", "args.json", "metadata.json"]),
    "empty files": (empty_all_files, ALL),
    "half of the JSON": (put("args.json", b'{"lr": 0.'), ["args.json"]),
    "a list": (put("summary.json", b"[1]"), ["summary.json"]),
    "a number": (put("metadata.json", b"3"), ["metadata.json"]),
    "null for args": (put("args.json", b"null"), ["args.json"]),
    "Latin 1": (put("args.json", '{"name": "é"}'.encode("latin-1")), ["args.json"]),
    "UTF-16": (put("args.json", '{"name": "é"}'.encode("utf-16")), ["args.json"]),
    "NUL": (put("args.json", b"\0" * 100), ["args.json"]),
    "deep": (put("summary.json", b'{"a":' + b"[" * 200000), ["summary.json"]),
    "a long number": (put("summary.json", b'{"a": 1' + b"0" * 20 + b"x}"), ["summary.json"]),
    "a directory": (make_directory, ["args.json"]),
    "a pipe": (make_pipe, ["summary.json"]),
    "a link to itself": (make_loop, ["metadata.json"]),
    "a file for a folder": (replace_by_file, ALL),
    "a folder that links to itself": (
        replace_by_loop, ALL,
    ),
    "a link to nowhere": (replace_by_lost_link, ["STATUS", "args.json", "metadata.json"]),
    "a socket": (replace_by_socket, ALL),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_folder_is_read_as_far_as_it_goes(directory, name):
    write_experiment(directory, 1)
    folder = write_experiment(directory, 2)
    write_experiment(directory, 3)
    break_it, problems = BAD[name]
    break_it(folder)
    experiments = read(directory)
    rows = {row["header.expid"]: row for row in experiments.rows()}
    assert sorted(rows) == ["1", "2", "3"]
    assert sorted({text.partition(":")[0] for text in experiments["2"].problems}) == sorted(problems)
    assert all(len(text) < 200 for text in experiments["2"].problems)
    if "STATUS" in problems or name == "empty files":
        assert rows["2"]["header.status"] == "UNKNOWN"
    if "args.json" not in problems:
        assert rows["2"]["args.lr"] == 0.1
    if "summary.json" not in problems and name not in ("no files", "a link to nowhere"):
        assert rows["2"]["summary.loss"] == 0.5
    assert experiments["1"].problems == experiments["3"].problems == []


@pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can become somebody else"
)
def test_folders_without_permission_do_not_stop_the_others(repo, request):
    directory = Path(tempfile.mkdtemp())  # tmp_path is in a folder that others may not enter
    request.addfinalizer(lambda: shutil.rmtree(str(directory)))
    os.chmod(str(directory), 0o755)
    for name in (1, 2, 3):
        write_experiment(directory, name)
    os.chmod(str(directory / "1"), 0)
    os.chmod(str(directory / "2" / "args.json"), 0)
    source = """
        import os, meticulous
        meticulous.Experiments(experiments_directory=".").rows()  # imports what others may not read
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        for reader in meticulous.Experiments(experiments_directory="."):
            print(reader.expid, reader.df_vars()["header"]["status"], len(reader.problems))
    """
    result = repo.run(source, cwd=str(directory))
    assert sorted(result.stdout.split("\n")) == ["", "1 UNKNOWN 5", "2 SUCCESS 1", "3 SUCCESS 0"], result


def test_a_folder_that_vanishes_while_it_is_read(directory):
    for name in (1, 2):
        write_experiment(directory, name)
    experiments = read(directory)
    shutil.rmtree(str(directory / "1"))
    rows = {row["header.expid"]: row for row in experiments.rows()}
    assert rows["1"]["header.status"] == "UNKNOWN"
    assert rows["1"]["header.start_time"] == ""
    assert rows["2"]["header.status"] == "SUCCESS"


def test_files_beside_the_experiments_are_none(directory):
    write_experiment(directory, 1)
    (directory / "table.csv").write_text("")
    (directory / ".claim-7").write_text("")
    (directory / ".hidden").mkdir()
    assert list(read(directory).experiments) == ["1"]


def test_nan_and_infinity_are_read(directory):
    write_experiment(directory, 1, summary={"a": float("nan"), "b": float("inf")})
    row = read(directory).rows()[0]
    assert row["summary.a"] != row["summary.a"]
    assert row["summary.b"] == float("inf")
    assert read(directory)["1"].problems == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=8,
)
wrong_contents = st.binary(max_size=40) | json_values.map(lambda value: json.dumps(value).encode())


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    if hasattr(HealthCheck, "function_scoped_fixture") else []
)  # fmt: skip
@given(
    contents=st.fixed_dictionaries({name: wrong_contents for name in ALL}),
    status=st.sampled_from(["", "RUNNING\n"]),
)
def test_whatever_is_in_the_files_is_no_error(tmp_path, contents, status):
    folder = tmp_path / "experiments" / "1"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(status.encode() + content if name == "STATUS" else content)
    (row,) = read(folder.parent).rows(1)
    assert row["header.expid"] == "1"
    assert meticulous.main([str(folder.parent), "--json"]) == 0
    assert meticulous.main([str(folder.parent)]) == 0
    assert meticulous.main(["show", "1", "--experiments-directory", str(folder.parent)]) == 0


METADATA = st.sampled_from(
    ["start-time", "end-time", "command", "attempts", "place", "githead-sha", "code", "snapshot", "usage"]
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    if hasattr(HealthCheck, "function_scoped_fixture") else []
)  # fmt: skip
@given(
    metadata=st.dictionaries(METADATA, json_values),
    attempt=st.dictionaries(METADATA | st.sampled_from(list(PROCESS)), json_values),
    code=st.dictionaries(st.sampled_from(["untracked", "changed"]), json_values),
)
def test_whatever_is_in_metadata_is_no_error(tmp_path, metadata, attempt, code):
    directory = tmp_path / "experiments"
    shutil.rmtree(str(directory), ignore_errors=True)
    write_experiment(directory, 1, status="RUNNING", **{"attempts": [attempt], "code": code, **metadata})
    write_experiment(directory, 2, status="ERROR\nwhy", **metadata)
    options = ["--experiments-directory", str(directory)]
    assert meticulous.main([str(directory)]) == 0
    assert meticulous.main([str(directory), "--json"]) == 0
    assert meticulous.main(["show", "1", *options]) == 0
    assert meticulous.main(["diff", "1", "2", *options]) == 0
    assert meticulous.main(["show", "--job", "40", *options]) in (0, 1, 2)


# --- clocks, attempts and paths


def test_time_by_the_monotonic_clock_counts_more_than_local_times(directory):
    zones = {"start-time": "2026-03-04T09:00:00.000000", "end-time": "2026-03-04T00:00:00.000000"}
    attempt = {**PROCESS, **zones, "start-epoch": 1772600000.5, "duration-seconds": 60.25, "ended": "SUCCESS"}
    assert ExperimentReader(write_experiment(directory, 1, attempts=[attempt])).duration == 60.25
    old = ExperimentReader(write_experiment(directory, 2, attempts=[{**PROCESS, **zones}]))
    assert old.duration == 0


def test_order_comes_from_seconds_since_the_epoch(directory):
    for name, start, epoch in (("east", "2026-03-04T20:00:00", 1000), ("west", "2026-03-04T08:00:00", 2000)):
        write_experiment(directory, name, start=start, attempts=[{**PROCESS, "start-epoch": epoch}])
    assert list(read(directory).experiments) == ["east", "west"]
    assert meticulous.main(["path", "-1", "--experiments-directory", str(directory)]) == 0


@pytest.mark.parametrize("number", [float("nan"), float("inf"), "x", True, [1], 10**400, None])
def test_a_time_that_is_not_one_is_left_out(directory, number):
    attempt = {
        **PROCESS,
        "start-epoch": number,
        "duration-seconds": number,
        "start-time": START,
        "end-time": END,
    }
    reader = ExperimentReader(write_experiment(directory, 1, attempts=[attempt]))
    assert reader.duration == 3723.0
    assert meticulous.main([str(directory)]) == 0


def test_an_attempt_that_died_took_until_its_last_sign_of_life(directory, repo):
    folder = write_experiment(directory, 1, status="RUNNING")
    dead = json.loads(
        repo.run("import json, meticulous; print(json.dumps(meticulous._describe_process()))").stdout
    )
    metadata = json.loads((folder / "metadata.json").read_text())
    first = {**PROCESS, "start-epoch": 1, "duration-seconds": 10, "end-time": END, "ended": "DEAD"}
    metadata["attempts"] = [first, {**dead, "start-time": START, "start-epoch": 1000000}]
    write_json(folder / "metadata.json", metadata)
    for path in folder.iterdir():
        os.utime(str(path), (1000030, 1000030))
    reader = ExperimentReader(folder)
    assert (reader.status, reader.duration) == ("DEAD", 40)


def test_a_relative_directory_is_read_after_the_program_has_changed_its_own(directory, monkeypatch):
    write_experiment(directory, 1)
    monkeypatch.chdir(directory.parent)
    experiments = Experiments(experiments_directory="experiments")
    monkeypatch.chdir("/")
    assert experiments.rows()[0]["args.lr"] == 0.1
    experiments.refresh_experiments()
    assert experiments["1"].status == "SUCCESS"


def test_a_summary_of_30_megabytes_is_read(directory):
    folder = write_experiment(directory, 1, summary={"text": "x" * 30000000})
    reader = ExperimentReader(folder)
    assert (len(reader.summary["text"]), reader.problems) == (30000000, [])


def test_the_command_can_be_pasted_into_a_shell(directory):
    words = ["train.py", "--note", "it's $HOME", "", "--lr=0.1"]
    reader = ExperimentReader(write_experiment(directory, 1, command=words))
    assert shlex.split(reader.metadata["command"]) == words


def test_slurm_does_not_make_a_record_with_a_fresh_sign_of_life_dead(directory):
    folder = write_experiment(directory, 1, status="RUNNING")
    reader = ExperimentReader(folder)
    reader._scheduler = Slurm(lambda: None)
    assert reader.status == "RUNNING?"
    for path in folder.iterdir():
        os.utime(str(path), (1000000, 1000000))
    reader.refresh_status()
    assert reader.status == "DEAD"


def test_a_scheduler_that_does_not_answer_is_named(directory, capsys, monkeypatch):
    monkeypatch.setattr(meticulous, "_WAIT_S", 0.01)
    reader = ExperimentReader(write_experiment(directory, 1, status="RUNNING"))
    said = []

    def wait():
        deadline = time.monotonic() + 30
        while not said and time.monotonic() < deadline:
            said.append(capsys.readouterr().err)
            said[:] = filter(None, said)

    reader._scheduler = Slurm(wait)
    assert reader.status == "RUNNING?"
    assert "waiting for Slurm" in said[0]


def test_types_are_those_that_the_docstrings_promise(tmp_path):
    api = pytest.importorskip("mypy.api", reason="this interpreter has no mypy")
    shutil.copy(str(PROJECT / "meticulous.py"), str(tmp_path))
    (tmp_path / "user.py").write_text(
        "import argparse\n"
        "from pathlib import Path\n"
        "from typing import Optional\n"
        "from meticulous import DirtyRepoException, Experiment, ExperimentReader, Experiments\n\n\n"
        "def best(directory: str) -> Optional[ExperimentReader]:\n"
        "    readers = list(Experiments(experiments_directory=directory))\n"
        "    for reader in readers:\n"
        "        status: str = reader.status\n"
        "        took: Optional[float] = reader.duration\n"
        "        print(status.lower(), reader.args['lr'], reader.summary.get('loss'), took, reader.sha)\n"
        "        with reader.open('stdout') as file:\n"
        "            print(file.read())\n"
        "    return Experiments(experiments_directory=directory).experiments['1']\n"
        "\n\n"
        "def train(folder: Path) -> None:\n"
        "    parser = argparse.ArgumentParser()\n"
        "    Experiment.add_argument_group(parser, project_directory=folder)\n"
        "    try:\n"
        "        with Experiment({'lr': 0.1}, experiments_directory=folder / 'runs') as experiment:\n"
        "            experiment.log({'loss': 0.3}, step=3)\n"
        "            experiment.summary(loss=0.3)\n"
        "            experiment.open(Path('model'), 'wb').close()\n"
        "    except DirtyRepoException as error:\n"
        "        print(', '.join(error.files), error.commit.upper())\n"
    )
    options = ["--strict", "--follow-imports=silent", "--cache-dir", str(tmp_path / "cache")]
    output, errors, code = api.run([*options, str(tmp_path / "user.py")])
    assert code == 0, output + errors


# --- metrics


def write_metrics(folder, *lines):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    return ExperimentReader(str(folder))


@pytest.mark.parametrize(
    "text",
    ['{"step": 7, "lo', "# epoch 3", "[1]", '"a"', '{"epoch": 1}', '{"step": "1"}', "", "\0", "[" * 99999],
)
def test_a_line_that_is_torn_or_foreign_is_left_out(directory, text):
    lines = ['{"step": 0, "time": 5, "loss": 0.5}', text, '{"step": 1, "time": 6, "loss": 0.25}']
    assert [row["step"] for row in write_metrics(directory / "1", *lines).metrics] == [0, 1]
    assert [row["step"] for row in write_metrics(directory / "1", *lines[:2]).metrics] == [0]


def test_steps_that_fall_back_in_one_attempt_are_kept(directory):
    lines = ['{"step": %d, "time": 5}' % step for step in (100, 1, 200)]
    assert [row["step"] for row in write_metrics(directory / "1", *lines).metrics] == [100, 1, 200]


# --- slow file systems


def test_folders_are_read_alike_by_threads(directory, monkeypatch):
    for number in range(20, 60):
        folder = write_experiment(directory, number, status="RUNNING" if number % 2 else "SUCCESS")
        for path in folder.iterdir():
            os.utime(str(path), (2, 2))  # their age, which the message tells, is the same for an hour
    expected = meticulous._load_rows(str(directory), meticulous._GROUPS[1:], 0)
    names = list(read(directory).experiments)
    monkeypatch.setattr(meticulous, "_SLOW_S", float("-inf"))
    assert meticulous._load_rows(str(directory), meticulous._GROUPS[1:], 0) == expected
    assert list(read(directory).experiments) == names


def test_slurm_is_asked_once_by_all_threads(directory, tmp_path, monkeypatch):
    attempt = {"host": "elsewhere", "slurmd-nodename": "n1", "slurm-job-id": 40, "slurm-job-uid": os.getuid()}
    # The first five are read one after the other.
    folders = [write_experiment(directory, number) for number in range(5)]
    for number in range(5, 30):
        folders.append(write_experiment(directory, number, status="RUNNING", attempts=[attempt]))
    scheduler = meticulous._Scheduler()

    def read_status(folder):
        reader = ExperimentReader(folder)
        reader._scheduler = scheduler
        return reader.status

    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho asked >>{tmp_path}/log\nsleep 0.1\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(meticulous, "_SLOW_S", float("-inf"))
    assert meticulous._read_folders(read_status, folders)[5:] == ["RUNNING?"] * 25
    assert (tmp_path / "log").read_text() == "asked\n"
