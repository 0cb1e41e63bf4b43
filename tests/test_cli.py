"""The command line answers, with exit codes that scripts can use, to people and to programs."""

import csv
import hashlib
import json
import os
import re
import struct
import subprocess
import sys
import textwrap
import zipfile

import pytest
from conftest import PROJECT
from records import END, SHA, START, write_experiment

import meticulous

COMMAND = [sys.executable, str(PROJECT / "meticulous.py")]
ERROR = 'ERROR\nTraceback (most recent call last):\n  File "train.py", line 3\nValueError: no such thing'


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "experiments"
    defaults = {"lr": 0.1, "seed": 0, "model": "net"}
    for number, lr in enumerate([0.1, 0.01, 0.001], 1):
        write_experiment(
            path, number, {**defaults, "lr": lr}, {"loss": lr * 5}, default_args=defaults,
            start=f"2026-03-0{number}T05:06:07.000008",
        )  # fmt: skip
    write_experiment(
        path, "12", defaults, {}, ERROR, default_args=defaults, start="2026-03-09T05:06:07.000008"
    )
    return path


@pytest.fixture
def run(directory, capsys, monkeypatch):
    """Give a function that runs main() beside the directory: exit code, stdout and stderr."""
    monkeypatch.chdir(directory.parent)

    def run_main(*words):
        try:
            code = meticulous.main(list(words))
        except SystemExit as error:
            code = error.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_main


def run_on_terminal(words, columns, **environment):
    """Run the command on a terminal that is *columns* wide and give what it wrote."""
    import fcntl
    import pty
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    clean = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    process = subprocess.Popen(COMMAND + words, stdout=slave, env={**clean, **environment})
    os.close(slave)
    output = b""
    while True:
        try:
            chunk = os.read(master, 4096)
        except OSError:  # Linux: the other end is closed
            break
        if not chunk:
            break
        output += chunk
    os.close(master)
    assert process.wait() == 0
    return output.decode().replace("\r\n", "\n")


# --- the listing


def test_the_default_view_shows_what_differs_and_what_came_of_it(run):
    code, out, err = run("experiments")
    assert (code, err) == (0, "")
    lines = out.split("\n")
    assert lines[0].split() == ["args", "summary"]
    assert lines[1].split() == ["id", "status", "when", "took", "lr", "loss"]
    assert lines[2].split()[:2] == ["1", "SUCCESS"]
    assert lines[2].split()[-4:] == ["1h", "02m", "0.1", "0.5"] or "0.1" in lines[2]
    assert lines[5].endswith("ValueError: no such thing")
    assert len(lines) == 7


def test_without_a_directory_it_is_that_of_the_project(run, directory, monkeypatch):
    inside = directory.parent / "a" / "b"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    assert run()[1] == run(str(directory))[1]
    monkeypatch.chdir("/")
    assert run("--project-directory", str(inside))[1] == run(str(directory))[1]
    (directory.parent / "a" / ".git").mkdir()
    code, out, err = run("--project-directory", str(inside))
    assert (code, out) == (2, "")
    assert "name one" in err


@pytest.mark.parametrize(
    ("mode", "columns"),
    [
        ("none", ["loss"]),
        ("non-default", ["lr", "loss"]),
        ("all", ["lr", "seed", "model", "loss"]),
        ("truncated", ["args", "loss"]),
    ],
)
def test_args(run, mode, columns):
    out = run("experiments", "--args", mode)[1]
    title = [line for line in out.split("\n") if "status" in line][0]
    assert title.split()[4:] == columns
    assert ("lr=0.01" in out) == (mode == "truncated")


def test_columns_sort_tail_and_filter(run):
    words = [
        "experiments",
        "--columns",
        "args.lr",
        "header.expid",
        "--filter",
        "args_lr < 0.5 and args.seed == 0",
    ]
    assert run(*words, "--sort", "args.lr", "--tail", "2")[1].split() == [
        "args",
        "lr",
        "id",
        "0.01",
        "2",
        "0.001",
        "3",
    ]
    assert run(*words, "--sort_reverse", "args.lr", "--tail", "2")[1].split() == [
        "args",
        "lr",
        "id",
        "0.1",
        "1",
        "0.1",
        "12",
    ]


def test_flat_titles(run):
    assert run("experiments", "--flat_cols", "--columns", "args.lr")[1].split("\n")[0] == "args.lr"


def test_groups(run):
    code, out, err = run("experiments", "--groupby", "args.lr", "--json")
    rows = json.loads(out)["rows"]
    assert [row["args.lr"] for row in rows] == [0.001, 0.01, 0.1]
    assert rows[2]["summary.loss.count"] == 1
    assert rows[2]["header.expid.count"] == 2
    words = [
        "experiments",
        "--groupby",
        "args_lr",
        "--sort",
        "summary.loss.mean",
        "--columns",
        "args.lr",
        "summary.loss.mean",
    ]
    assert run(*words)[1].split()[4:] == ["0.1", "0.5", "0.01", "0.05", "0.001", "0.005"]
    assert "runs" in run("experiments", "--groupby", "header.status")[1]


@pytest.mark.parametrize("mode", ["none", "truncated", "non-default", "all"])
def test_groups_keep_their_keys_whatever_arguments_are_shown(run, mode):
    code, out, _ = run("experiments", "--groupby", "args.seed", "--args", mode)
    assert (code, out.split()[2:4]) == (0, ["seed", "runs"])


@pytest.mark.parametrize("words", [[], ["--json"], ["--args", "non-default"], ["--columns", "args"]])
def test_a_tail_of_no_rows_is_nothing(run, words):
    code, out, err = run("experiments", "--tail", "0", *words)
    assert (code, err) == (1, "")
    assert out == ("" if words != ["--json"] else '{\n  "rows": [],\n  "problems": {},\n  "code": {}\n}\n')


def test_columns_are_listed(run):
    code, out, err = run("experiments", "--list_columns")
    assert code == 0
    assert {"header.expid", "header.duration", "args.lr", "metadata.place", "summary.loss"} <= set(
        out.split("\n")
    )
    assert json.loads(run("experiments", "--list_columns", "--json")[1])["columns"] == out.split()
    assert "metadata.place.host" in run("experiments", "--list_columns", "--normalize_json_values", "1")[1]


def test_a_column_inside_of_a_value_can_be_shown_and_asked_for(run):
    words = [
        "experiments",
        "--columns",
        "metadata.place.host",
        "--filter",
        "metadata.place.slurm-job-id == 40",
    ]
    assert run(*words)[0] == 2  # a minus sign
    words[-1] = "`metadata.place.slurm-job-id` == 40 and metadata_place_host == 'node1'"
    assert run(*words)[1].split()[-4:] == ["node1"] * 4


def test_one_bad_folder_is_noted_below_the_table(run, directory):
    (directory / "2" / "args.json").write_text('{"lr": ')
    code, out, err = run("experiments")
    assert (code, err) == (0, "")
    assert out.split("\n")[-2].startswith("1 could not be read completely: 2 (args.json: ")
    assert len(out.split("\n")) == 8


@pytest.mark.parametrize("ending", ["csv", "json", "md", "tex"])
def test_export(run, directory, ending):
    path = directory.parent / ("table." + ending)
    code, out, err = run("experiments", "--export", str(path))
    assert (code, out) == (0, "")
    assert "wrote 4 rows" in err
    text = path.read_text(encoding="utf-8")
    assert "0.001" in text
    if ending == "csv":
        with open(str(path), newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["header.expid"] for row in rows] == ["1", "2", "3", "12"]
        assert list(rows[0])[-3:] == ["args.lr", "summary.loss", "header.status_message"]
        assert rows[3]["header.status_message"] == "ValueError: no such thing"
    if ending == "json":
        assert json.loads(text)["rows"][3]["header.status"] == "ERROR"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["experiments", "--export", "table.xls"], "the extension is one of .csv, .json, .md, .tex, .pd"),
        (["experiments", "--export", "/nowhere/table.csv"], "/nowhere/table.csv can't be written"),
        (["experiments", "--columns", "args.lrr"], "no column 'args.lrr': did you mean args.lr"),
        (["experiments", "--columns", "lr"], "no column 'lr': did you mean args.lr"),
        (["experiments", "--sort", "summary.los"], "did you mean summary.loss"),
        (["experiments", "--groupby", "nonsense"], "no column 'nonsense'"),
        (["experiments", "--filter", "args.lr <"], "can't be parsed"),
        (["experiments", "--tail", "-1"], "'-1' is not a number from 0 on"),
        (["report", "experiments", "--head", "-1"], "'-1' is not a number from 0 on"),
        (["missing"], "missing"),
        (["show"], "Name an experiment"),
        (["show", "1", "--job", "3"], "Name an experiment"),
        (["show", ""], "Name an experiment"),
        (["show", "--job", ""], "Name an experiment"),
        (["path", ""], "Name an experiment"),
        (["path", "", "--filter", ""], "Name an experiment"),
        (["path", "1", "--filter", "args.lr > 5"], "1 can't be listed"),
        (["experiments", "--over", "seed"], "no column 'seed': did you mean args.seed"),
        (["path", "1", "--experiments-directory", "missing"], "missing"),
        (["experiments", "--nonsense"], "--nonsense"),
    ],
)
def test_wrong_use_is_exit_code_2_and_a_message(run, words, message):
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "words",
    [
        ["experiments", "--filter", "args.lr > 5"],
        ["empty"],
        ["show", "99"],
        ["show", "--job", "99"],
        ["path", "x"],
        ["path", "-9"],
        ["diff", "1", "99"],
    ],
)
def test_nothing_found_is_exit_code_1(run, directory, words):
    (directory.parent / "empty").mkdir()
    code, out, err = run(*words)
    assert (code, out) == (1, "")
    assert err.startswith("meticulous: there are no") or "There is no experiment" in err
    code, out, err = run(*words, "--json")
    assert code == 1
    assert not out or json.loads(out)["rows"] == []


# --- show, diff, path


def test_show_tells_everything(run, directory):
    (directory / "12" / "stderr").write_bytes(b"50%\r100%\n\x1b[1mbold\n\xff")
    code, out, err = run("show", "12")
    assert (code, err) == (0, "")
    for text in (
        "ERROR",
        "seed",
        "githead-sha",
        "train.py --lr 0.1",
        "epoch 2",
        "  100%\n",
        "\\x1b[1mbold",
        "node1",
    ):
        assert text in out, text
    assert ERROR.partition("\n")[2].replace("\n", "\n  ") in out
    assert "\x1b" not in out


def test_show_gives_the_whole_status_and_what_could_not_be_read(run, directory):
    (directory / "2" / "STATUS").write_text("ERROR\nsys.exit(3)")
    (directory / "2" / "summary.json").write_text("[]")
    out = run("show", "2")[1]
    assert out.startswith("2  ERROR  sys.exit(3)\n")
    assert "\nSTATUS\n  ERROR\n  sys.exit(3)\n" in out
    assert "\nargs (* is not the default)\n" in out
    assert "\nsummary: none\n" in out
    assert out.endswith("\ncould not be read\n  summary.json: holds a list, not an object\n")


def test_show_tells_each_attempt_in_one_line(run, directory):
    killed = {"start-time": START, "host": "node1", "pid": 5, "boot": "b", "end-time": END, "ended": "DEAD"}
    write_experiment(directory, "30", attempts=[killed, {"start-time": START, "host": "node2", "pid": 6}])
    out = run("show", "30")[1]
    assert re.search(f"  attempts.1 +{START} to {END} on node1, pid 5: DEAD\n", out)
    assert re.search(f"  attempts.2 +{START} to - on node2, pid 6: -\n", out)


def test_show_marks_what_is_not_the_default(run):
    lines = run("show", "2")[1].split("\n")
    assert "* lr     0.01  (default 0.1)" in lines
    assert "  seed   0" in lines


def test_show_json(run):
    shown = json.loads(run("show", "12", "--json")[1])
    assert shown["rows"][0]["header.expid"] == "12"
    assert shown["rows"][0]["args.lr"] == 0.1
    assert shown["status"] == ERROR.split("\n")
    assert shown["stdout"] == ["epoch 1", "epoch 2"]
    assert (shown["stderr"], shown["problems"]) == ([], {})


@pytest.mark.parametrize(
    ("job", "name"), [("1234_7", "a7"), ("1241", "a7"), ("1234_8", "a8"), ("77", "single")]
)
def test_show_finds_a_job(run, directory, job, name):
    for task in (7, 8):
        place = {"slurm-job-id": 1234 + task, "slurm-array-job-id": 1234, "slurm-array-task-id": task}
        write_experiment(directory, f"a{task}", place=place)
    write_experiment(directory, "single", place={"slurm-job-id": 77})
    assert json.loads(run("show", "--job", job, "--json")[1])["rows"][0]["header.expid"] == name
    code, out, err = run("show", "--job", "1234")
    assert (code, out) == (2, "")
    assert "2 experiments: a7, a8" in err


@pytest.mark.parametrize(
    ("text", "name"),
    [("1", "1"), ("12", "12"), ("-1", "12"), ("-2", "3"), ("-4", "1"), ("tr", "trial"), ("../x", None)],
)
def test_ids_can_be_short(run, directory, text, name):
    write_experiment(directory, "trial", start="2020-01-01T00:00:00.000000")
    write_experiment(directory, "-4x", start="2020-01-01T00:00:00.000000")
    (directory.parent / "x").mkdir()
    code, out, err = run("path", text)
    assert (code, out) == ((0, f"{directory / name}\n") if name else (1, ""))


def test_an_ambiguous_beginning_is_an_error(run, directory):
    write_experiment(directory, "run-a")
    write_experiment(directory, "run-b")
    code, out, err = run("path", "run")
    assert (code, out) == (2, "")
    assert "run-a, run-b" in err


def test_path_json(run, directory):
    assert json.loads(run("path", "3", "--json")[1]) == {
        "rows": [{"header.expid": "3", "path": str(directory / "3")}]
    }


def test_the_path_of_a_run_is_told_without_asking_slurm_for_it(directory, tmp_path):
    attempt = {"host": "elsewhere", "slurmd-nodename": "n1", "slurm-job-id": 40}
    attempt["slurm-job-uid"] = os.getuid()
    write_experiment(directory, "20", status="RUNNING", attempts=[attempt])
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho asked >>{tmp_path}/log\n")
    (tmp_path / "scontrol").chmod(0o755)
    environment = {**os.environ, "PATH": os.pathsep.join([str(tmp_path), os.environ["PATH"]])}
    for command, asked in (("path", False), ("show", True)):
        words = [command, "20", "--experiments-directory", str(directory)]
        subprocess.run(COMMAND + words, env=environment, stdout=subprocess.PIPE, check=True)
        assert (tmp_path / "log").exists() is asked


def test_commands_win_over_a_folder_of_the_same_name(run, directory):
    directory.rename(directory.parent / "show")
    assert run("show", "1")[0] == 2
    assert run("show", "1", "--experiments-directory", "show")[1].startswith("1  SUCCESS")
    assert run("./show")[1].count("SUCCESS") == 3


def test_diff_of_real_commits(repo, capsys, monkeypatch):
    source = (
        "import sys, meticulous; e = meticulous.Experiment({'lr': float(sys.argv[1])}); e.summary(loss=%d)"
    )
    assert repo.run(source % 4, "0.5").code == 0
    assert repo.run(source % 3, "0.25").code == 0
    monkeypatch.chdir(repo.path)
    repo.git("config", "color.ui", "always")
    assert meticulous.main(["diff", "1", "2"]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.split("\n")]
    assert ["args.lr", "0.5", "->", "0.25", "(-0.25)"] in lines
    assert ["summary.loss", "4", "->", "3", "(-1)"] in lines
    assert "script.py | 2 +-" in out
    assert meticulous.main(["diff", "1", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["header.expid"] for row in found["rows"]] == ["1", "2"]
    assert {"column": "args.lr", "values": [0.5, 0.25], "difference": -0.25} in found["differences"]
    assert "script.py" in found["stat"]


def test_diff_of_one_commit_and_of_unknown_ones(run, directory):
    assert f"Both on commit {SHA[:7]}" in run("diff", "1", "2")[1]
    write_experiment(directory, "odd", **{"githead-sha": "--output=/tmp/x"})
    assert "commits are not known" in run("diff", "1", "odd")[1]
    write_experiment(directory, "other", **{"githead-sha": "0" * 40})
    code, out, err = run("diff", "1", "other")
    assert (code, err) == (0, "")
    assert "0000000" in out


def test_folders_of_real_runs_are_listed(repo, capsys):
    source = """
        import sys, meticulous
        e = meticulous.Experiment({"lr": 0.5}, {"lr": 0.1})
        e.summary(loss=float("nan"))
        sys.exit(int(sys.argv[1]))
    """
    assert [repo.run(source, code).code for code in (0, 3)] == [0, 3]
    assert meticulous.main([str(repo.path / "experiments"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["header.status"] for row in rows] == ["SUCCESS", "ERROR"]
    assert rows[1]["header.status_message"] == "sys.exit(3)"
    assert rows[0]["summary.loss"] is None
    assert rows[0]["header.duration"] >= 0


# --- terminals and pipes


def test_on_a_terminal_the_table_has_its_width_and_colors(directory):
    options = {f"option_{number}": number for number in range(20)}
    write_experiment(directory, "wide", options)
    narrow = run_on_terminal([str(directory)], 60)
    assert "\x1b[31mERROR\x1b[0m" in narrow
    assert "); `| less -S` shows all, --columns some:" in narrow
    assert "\x1b" not in run_on_terminal([str(directory)], 60, NO_COLOR="1")
    assert "Not shown" not in run_on_terminal([str(directory)], 500)
    plain = run_on_terminal([str(directory)], 60, NO_COLOR="1").split("\n")
    assert max(len(line) for line in plain) <= 60


def test_a_pipe_gets_no_colors_and_all_columns(directory):
    output = subprocess.check_output(COMMAND + [str(directory)], env={**os.environ, "COLUMNS": "20"}).decode()
    assert "\x1b" not in output
    assert "ValueError: no such thing" in output


@pytest.mark.parametrize(
    "words", [["", "--json"], ["", "--export", "-"], ["report", "-o", "-"]], ids=["json", "export", "report"]
)
def test_a_closed_pipe_ends_quietly(directory, words):
    for number in range(2000):
        write_experiment(directory, f"more-{number}")
    process = subprocess.Popen(
        [*COMMAND, *filter(None, words), str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": ""},  # unbuffered, Python overlooks that a part is not written
    )
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0
    process.stderr.close()


@pytest.mark.parametrize("words", [[], ["--json"], ["show", "-1"], ["--version"]])
def test_without_stdout_nothing_is_wrong(directory, words):
    command = ["sh", "-c", '"$@" >&-', "sh", *COMMAND, *words]
    process = subprocess.Popen(command, cwd=str(directory.parent), stderr=subprocess.PIPE)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (0, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("words", [[], ["--json"]])
def test_a_full_disk_is_told_in_one_line(directory, words):
    with open("/dev/full", "wb") as full:
        process = subprocess.Popen(COMMAND + [str(directory)] + words, stdout=full, stderr=subprocess.PIPE)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (2, b"meticulous: No space left on device.\n")


def test_an_encoding_without_the_characters_is_no_error(directory):
    write_experiment(directory, "漢", {"name": "漢\ud800"})
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    output = subprocess.check_output(COMMAND + [str(directory), "--args", "all"], env=environment)
    assert b"\\u6f22" in output


@pytest.mark.parametrize(
    "words", [[], ["show"], ["diff"], ["path"]], ids=lambda words: " ".join(words) or "listing"
)
def test_help_reads_at_80_columns(run, words):
    code, out, err = run(*words, "--help")
    assert (code, err) == (0, "")
    assert max(map(len, out.split("\n"))) <= 80
    assert "--json" in out


def test_help_lists_the_commands(run):
    out = run("--help")[1]
    for name in meticulous._COMMANDS:
        assert f"\n  {name} " in out


def test_version_has_the_hash_that_git_has(run):
    content = (PROJECT / "meticulous.py").read_bytes()
    sha = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    assert run("--version") == (0, f"meticulous {meticulous.__version__}, git blob {sha}\n", "")


# --- what is asked in odd ways, or of odd records


def test_a_number_is_not_the_beginning_of_another(run, directory):
    (directory / "1").rename(directory / "5")
    code, out, err = run("path", "1")
    assert (code, out) == (1, "")
    assert "There is no experiment '1'" in err


def test_diff_names_the_two(run):
    assert run("diff", "-1", "1")[1].startswith("12 -> 1\n")


@pytest.mark.parametrize("path", ["experiments/12", "experiments/12/", "./experiments/12", "{}/12"])
def test_a_path_is_an_id(run, directory, path):
    path = path.format(directory)
    assert run("path", path) == (0, f"{directory / '12'}\n", "")
    assert run("show", path)[1].startswith("12  ERROR")
    assert run("diff", path, "1")[1].startswith("12 -> 1\n")


def test_the_end_of_a_stream_that_is_larger_than_memory(run, directory):
    with open(str(directory / "1" / "stdout"), "ab") as file:
        file.truncate(1 << 40)  # without blocks on the disk
        file.seek(0, os.SEEK_END)
        file.write(b"\nthe end\n")
    code, out, _ = run("show", "1")
    assert code == 0 and "  the end\n" in out


def test_every_command_takes_the_directory_as_an_option(run, directory, monkeypatch):
    listing = run("experiments")[1]
    monkeypatch.chdir("/")
    assert run("--experiments-directory", str(directory))[1] == listing
    assert run("--experiments_directory", str(directory))[1] == listing
    assert run("path", "--experiments_directory", str(directory), "3")[1] == f"{directory / '3'}\n"


def test_options_are_spelled_with_hyphens_or_underscores(run):
    for hyphens in ("--sort-reverse=args.lr", "--list-columns", "--flat-cols", "--normalize-json-values=1"):
        assert run("experiments", hyphens) == run(
            "experiments", hyphens.replace("-", "_").replace("__", "--")
        )
    assert run("experiments", "--sort_reverse", "args.lr")[1].split("\n")[2].startswith(" 3 ")


def test_an_unknown_command_names_the_known_ones(run):
    code, out, err = run("shwo", "1")
    assert (code, out) == (2, "")
    assert (
        "'shwo' is not a directory, nor one of the commands: report, show, diff, path, describe, run" in err
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--columns", "args.lrr"],
        ["--sort", "x"],
        ["--groupby", "x"],
        ["--filter", "args.lr > 5", "--sort", "x"],
    ],
)
def test_a_misspelt_column_is_an_error_also_when_the_filter_leaves_no_row(run, words):
    code, out, err = run("experiments", "--filter", "args.lr > 5", *words)
    assert (code, out) == (2, "")
    assert "no column" in err


def test_columns_are_those_asked_for_also_when_the_filter_leaves_no_row(run, directory):
    path = directory.parent / "table.csv"
    words = ["--export", str(path), "--columns", "args.lr", "summary.loss"]
    assert run("experiments", "--filter", "args.lr > 5", *words)[0] == 1
    assert path.read_text() == "args.lr,summary.loss\n"


@pytest.mark.parametrize(
    "words",
    [["--groupby", "args.lr", "--sort", "summary.loss.mean"], ["--over", "args.lr", "--columns", "summary"]],
    ids=["groupby", "over"],
)
def test_columns_of_groups_are_known_also_when_the_filter_leaves_no_row(run, words):
    assert run("experiments", *words)[0] == 0
    code, out, err = run("experiments", "--filter", "args.lr > 5", *words)
    assert (code, out) == (1, "") and "there are no such experiments" in err


@pytest.mark.parametrize(
    "column", ["header.duration", "header.expid", "header.status", "header.status_message"]
)
def test_a_table_and_a_report_are_grouped_by_any_column(run, column):
    for words in (["experiments"], ["report"], ["report", "--columns", "header", "summary"]):
        code, out, err = run(*words, "--groupby", column)
        assert code == 0, err
        code, out, err = run(*words, "--over", column)
        assert code == 0, err


def test_an_export_names_what_could_not_be_read(run, directory):
    (directory / "2" / "args.json").write_text('{"lr": ')
    err = run("experiments", "--export", str(directory.parent / "table.csv"))[2]
    assert "1 could not be read completely: 2 (args.json: " in err


@pytest.mark.parametrize(
    "words, begin",
    [
        (["experiments", "--export", "table.csv"], "header.expid,"),
        (["show", "1", "--export", "table.md"], "# Run 1"),
        (["report", "-o", "table.html"], "<!doctype html>"),
    ],
    ids=["table", "story", "report"],
)
def test_an_export_goes_into_the_file_that_is_there(run, directory, words, begin):
    real, link = directory.parent / "real", directory.parent / words[-1]
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to("real")
    assert run(*words)[0] == 0
    assert link.is_symlink()
    assert real.read_text().startswith(begin)
    assert real.stat().st_mode & 0o777 == 0o640


def test_a_report_goes_to_stdout(run):
    code, out, err = run("report", "-o", "-")
    assert out.startswith("<!doctype html>")
    assert (code, err) == (0, "meticulous: wrote 4 rows to stdout\n")


@pytest.mark.parametrize(
    "words", [["path", "1"], ["path", ".", "--filter", "args.lr > 0"]], ids=["id", "filter"]
)
def test_a_path_that_is_not_utf_8_is_printed_as_it_is(tmp_path, latin_directory, words):
    write_experiment(tmp_path / os.fsdecode(latin_directory), 1)
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    words = [*COMMAND, *words, "--experiments-directory", "."]
    output = subprocess.check_output(words, cwd=latin_directory, env=strict)
    assert output == latin_directory + b"/1\n"


def test_an_export_goes_into_a_pipe(run, directory):
    pipe = directory.parent / "table.csv"
    os.mkfifo(str(pipe))
    process = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    assert run("experiments", "--export", "table.csv", "--columns", "header.expid")[0] == 0
    assert process.communicate()[0] == b"header.expid\n1\n2\n3\n12\n"


def test_a_report_goes_into_a_pipe(run, directory):
    pipe = directory.parent / "report.html"
    os.mkfifo(str(pipe))
    process = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    assert run("report")[0] == 0
    assert process.communicate()[0].startswith(b"<!doctype html>")


def test_an_export_to_a_hyphen_is_csv_on_stdout(run):
    code, out, err = run("experiments", "--export", "-", "--columns", "header.expid", "args.lr")
    assert (code, out) == (0, "header.expid,args.lr\n1,0.1\n2,0.01\n3,0.001\n12,0.1\n")


def test_a_filter_adds_no_column(run, directory):
    write_experiment(directory, "20", {"net": {"depth": 3}})
    row = json.loads(run("experiments", "--filter", "args.net.depth == 3", "--json")[1])["rows"][0]
    assert "args.net.depth" not in row


@pytest.mark.parametrize("option", ["--json", "--list-columns", "--version", "--export=t.csv"])
def test_a_report_refuses_the_options_of_a_table_that_it_would_ignore(run, directory, option):
    code, out, err = run("report", option)
    assert (code, out) == (2, "") and option.partition("=")[0] in err
    assert not (directory.parent / "report.html").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["\x1b[31m"],
        ["experiments", "\x1b[31m"],
        ["experiments", "--\x1b[31m"],
        ["experiments", "--tail", "\x1b[31m"],
        ["experiments", "--export", "\x1b[31m"],
    ],
)
def test_escape_sequences_in_errors_are_shown_not_executed(run, words):
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert "\x1b" not in err and "\\x1b[31m" in err


def test_nan_is_not_a_difference(run, directory):
    for name in ("20", "21"):
        nan = float("nan")
        write_experiment(directory, name, {"a": nan, "b": [nan]}, default_args={"a": nan, "b": [nan]})
    assert run("diff", "20", "21")[1].startswith("20 -> 21: none\n")
    assert "\n* " not in run("show", "20")[1]
    assert "args.a" not in run("experiments", "--filter", "header.expid in ['20', '21']", "--flat-cols")[1]


def test_the_version_is_told_from_a_zip_file(tmp_path):
    content = (PROJECT / "meticulous.py").read_bytes()
    with zipfile.ZipFile(str(tmp_path / "all.zip"), "w") as archive:
        archive.writestr("meticulous.py", content)
    code = "import sys, meticulous; sys.exit(meticulous.main(['--version']))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "all.zip")}
    output = subprocess.check_output([sys.executable, "-c", code], env=environment, cwd=str(tmp_path))
    assert hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() in output.decode()


@pytest.mark.parametrize("job", ["1234", "1234.0", "1230", "1230+1"])
def test_a_job_is_found_by_its_step_and_by_its_component(run, directory, job):
    place = {"slurm-job-id": 1234, "slurm-step-id": 0, "slurm-het-job-id": 1230, "slurm-het-job-offset": 1}
    write_experiment(directory, "het", place=place)
    assert run("show", "--job", job)[1].startswith("het  SUCCESS")


def test_a_long_line_of_output_is_cut(run, directory):
    (directory / "1" / "stdout").write_bytes(b"x" * 70000)
    assert max(map(len, run("show", "1")[1].split("\n"))) < 1100


def test_a_commit_message_has_its_lines(run):
    out = run("show", "1")[1]
    assert re.search(r"githead-message +Tune it\n", out)


def test_lists_are_shown_in_their_own_characters(run, directory):
    write_experiment(directory, "20", {"names": ["é", "漢"]})
    assert '["é", "漢"]' in run("experiments", "--columns", "args.names")[1]


def test_fifty_thousand_arguments_and_a_long_text_take_linear_time(run, directory):
    arguments = {f"a{number}": number for number in range(50000)}
    for name in ("20", "21"):
        write_experiment(directory, name, {**arguments, "text": name + "漢" * 4000000, "own": name})
    filtered = ["--filter", "header.expid in ['20', '21']"]
    assert run("experiments", *filtered)[0] == 0
    assert re.search(
        r"Not shown \(49\d{3}\)", run_on_terminal(["experiments", *filtered, "--args", "all"], 80)
    )
    assert run("show", "20")[0] == 0


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ({"FORCE_COLOR": ""}, False),
    ],
)
def test_colors_can_be_forced(directory, environment, expected):
    output = subprocess.check_output(COMMAND + [str(directory)], env={**os.environ, **environment})
    assert (b"\x1b[31mERROR" in output) is expected


def test_a_dumb_terminal_gets_no_colors(directory):
    assert "\x1b" not in run_on_terminal([str(directory)], 80, TERM="dumb")
    assert "\x1b" in run_on_terminal([str(directory)], 80, TERM="xterm")


# --- main() in a program of one's own


def test_main_gives_back_what_it_changes(directory):
    source = """
        import gc, os, sys, meticulous
        before = os.fstat(1), sys.stdout
        assert meticulous.main([sys.argv[1], "--json"]) == 2
        assert gc.isenabled()
        gc.disable()
        meticulous.main([sys.argv[1], "--json"])
        assert not gc.isenabled()
        assert (os.fstat(1), sys.stdout) == before
    """
    with open("/dev/full", "wb") as full:
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(source), str(directory)],
            cwd=str(PROJECT), stdout=full, stderr=subprocess.PIPE,
        )  # fmt: skip
    assert process.communicate()[1] == b"meticulous: No space left on device.\n" * 2
    assert process.returncode == 0


def test_main_writes_into_a_stringio_in_a_thread_from_a_deleted_directory(directory, tmp_path):
    source = """
        import io, os, sys, threading, meticulous
        os.mkdir(sys.argv[2]); os.chdir(sys.argv[2]); os.rmdir(sys.argv[2])
        sys.stdout = io.StringIO()
        codes = []
        def work():
            codes.append(meticulous.main([sys.argv[1]]))
            codes.append(meticulous.main(["show", sys.argv[1] + "/12"]))
            codes.append(meticulous.main(["show", "12"]))
        thread = threading.Thread(target=work)
        thread.start(); thread.join()
        assert codes == [0, 0, 2], codes
        assert "no such thing" in sys.stdout.getvalue()
    """
    command = [sys.executable, "-c", textwrap.dedent(source), str(directory), str(tmp_path / "gone")]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    errors = process.communicate()[1].decode()
    assert process.returncode == 0, errors
    assert "The current directory was deleted" in errors


def test_head_takes_the_first_rows(run):
    code, out, _ = run("--columns", "header.expid", "--head", "2", "--export", "-")
    assert (code, out.split()) == (0, ["header.expid", "1", "2"])


def test_paths_of_all_that_match_a_filter(run, directory):
    code, out, _ = run("path", "--filter", "args.lr < 0.05")
    assert (code, out.split()) == (0, [str(directory / "2"), str(directory / "3")])
    assert run("path", "--filter", "args.lr > 5")[:2] == (1, "")
    assert run("path", str(directory), "--filter", "args.lr < 0.05")[:2] == (code, out)


def test_a_description_is_changed_afterwards_and_not_while_it_runs(run, directory):
    assert run("describe", "2", "a better one")[0] == 0
    metadata = json.loads((directory / "2" / "metadata.json").read_text())
    assert (metadata["description"], metadata["githead-sha"]) == ("a better one", SHA)
    write_experiment(directory, "running", status="RUNNING")
    code, _, err = run("describe", "running", "never")
    assert code == 2 and "still running" in err
    assert run("describe", "nothing", "text")[0] == 1


def test_a_description_is_kept_when_no_new_one_is_named(run, directory):
    path = directory / "2" / "metadata.json"
    before = path.read_bytes()
    code, _, err = run("describe", "2")
    assert (code, path.read_bytes()) == (2, before) and "Name the new description" in err
    assert run("describe", "2", "")[0] == 0
    assert json.loads(path.read_text())["description"] == ""


@pytest.mark.parametrize(
    "words",
    [
        ["describe", "2", "text"],
        ["show", "2", "--export", "nowhere/story.md"],
        ["report", "experiments", "-o", "nowhere/report.html"],
    ],
    ids=lambda words: words[0],
)
def test_a_file_that_can_not_be_used_is_named_in_one_line(run, directory, words):
    (directory / "2" / "metadata.json").write_text("[]")
    code, _, err = run(*words)
    assert code == 2 and err.count("\n") == 1 and not err.endswith("..\n")
    assert (
        "metadata.json can't be read (holds a list"
        if words[0] == "describe"
        else words[-1] + " can't be written"
    ) in err


@pytest.mark.parametrize("name", ["STATUS", "metadata.json", "args.json"])
def test_a_path_is_an_id_also_where_a_file_is_missing(run, directory, name):
    (directory / "2" / name).unlink()
    assert run("path", "experiments/2") == (0, f"{directory / '2'}\n", "")
    assert name + ": No such file" in run("show", "experiments/2")[1]


def test_a_result_that_groups_is_one_column(run, directory):
    out = run("experiments", "--groupby", "summary.loss", "--export", "-")[1]
    assert out.split("\n")[0] == "summary.loss,header.expid.count"


def test_code_that_is_not_in_the_commit_is_shown_for_good(run, directory):
    code = {"checked": 2, "untracked": ["helper.py"], "ignored": [], "changed": []}
    write_experiment(directory, "odd", code=code)
    assert "Not in commit 3f2a9c1: 'helper.py' (untracked)" in run("show", "odd")[1]
    assert "odd: Not in commit 3f2a9c1: 'helper.py' (untracked)" in run("diff", "1", "odd")[1]
    assert run()[1].splitlines()[-1].startswith("1 ran code that is not in its commit: odd (")


def test_packages_that_differ_are_in_a_diff(run, directory):
    write_experiment(directory, "old", packages="numpy==1.0\ntorch==2.0")
    write_experiment(directory, "new", packages="numpy==2.0\ntorch==2.0")
    out = run("diff", "old", "new")[1]
    assert "old  numpy==1.0" in out and "new  numpy==2.0" in out and "torch" not in out


@pytest.mark.parametrize("name", ["run.md", "run.html"])
def test_the_story_of_one_run_is_exported(run, directory, name):
    assert run("show", "12", "--export", name)[0] == 0
    text = (directory.parent / name).read_text(encoding="utf-8")
    assert "Run 12" in text and "ValueError: no such thing" in text
    assert run("show", "12", "--export", "run.txt")[0] == 2


def test_what_was_said_of_a_run_is_in_the_table(run, directory):
    assert "description" not in run()[1]
    write_experiment(directory, "again", description="once more", repeats="1")
    table = run()[1].splitlines()
    assert "description" in table[1] and "repeats" in table[1]
    assert "once more" in next(line for line in table if line.startswith("again"))


def read_columns(run, *words):
    """Return the header and the rows of the table as it is exported."""
    code, out, _ = run("experiments", "--export", "-", *words)
    assert code == 0
    return list(csv.reader(out.splitlines()))


def test_over_seeds_there_is_one_row_with_the_mean(run, directory):
    for number, seed in enumerate((1, 2), 20):
        write_experiment(directory, number, {"lr": 0.01, "seed": seed, "model": "net"}, {"loss": 0.05 + seed})
    write_experiment(directory, 22, {"lr": 5, "seed": 1, "model": "net"}, {"loss": 5e-07})
    words = ["--over", "args.seed", "--filter", "header.status == 'SUCCESS'"]
    out = run("experiments", *words)[1]
    assert [line.split() for line in out.split("\n")[1:-1]] == [
        ["lr", "runs", "loss"],
        ["0.001", "1", "0.005", "(1)"],
        ["0.01", "3", "1.05", "±", "1", "(3)"],
        ["0.1", "1", "0.5", "(1)"],
        ["5", "1", "5e-07", "(1)"],
    ]
    best = read_columns(run, *words, "--sort", "summary.loss", "--head", "1")
    assert best == [["args.lr", "header.expid.count", "summary.loss"], ["0.01", "3", "1.05 ± 1 (3)"]]
    row = json.loads(run("experiments", *words, "--json")[1])["rows"][1]
    assert (row["args.lr"], row["summary.loss"]) == (0.01, "1.05 ± 1 (3)")
    assert (row["summary.loss.mean"], row["summary.loss.std"]) == (1.05, pytest.approx(1))
    assert run("report", *words)[0] == 0
    assert "1.05 ± 1 (3)" in (directory.parent / "report.html").read_text(encoding="utf-8")


def test_over_all_that_differs_there_is_one_row(run):
    assert read_columns(run, "--over", "args.lr", "args.seed")[1:] == [["4", "0.185 ± 0.27 (3)"]]


def test_over_a_part_of_a_dict(run, directory):
    for number, (lr, seed) in enumerate([(1, 1), (1, 2), (3, 1)], 20):
        write_experiment(directory, number, {"net": {"lr": lr, "seed": seed}}, {"loss": lr * seed})
    words = ["--over", "args.net.seed", "--filter", "args.net.lr > 0"]
    assert read_columns(run, *words)[1:] == [["1", "2", "1.5 ± 0.71 (2)"], ["3", "1", "3 (1)"]]


def test_a_mean_is_ascii_where_the_terminal_lacks_its_sign(directory):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    words = [str(directory), "--over", "args.lr"]
    output = subprocess.check_output(COMMAND + words, env=environment).decode("ascii")
    assert "0.185 +- 0.27 (3)" in output


@pytest.mark.parametrize(
    "words", [["--head", "2"], ["--tail", "2"], ["--head", "9"], ["--head", "3", "--tail", "1"]]
)
def test_a_part_is_the_same_part_of_the_order_by_start(run, directory, words):
    write_experiment(directory, "0", start="2026-03-05T05:06:07.000008")
    expected = run("experiments", "--json", "--sort-reverse", "header.start_time", *words)
    assert run("experiments", "--json", *words) == expected


def test_a_tail_reads_only_what_it_shows(directory, tmp_path):
    trace = tmp_path / "trace"
    source = """
        import builtins, os, sys
        opened, read = [], os.open
        os.open = lambda path, *rest, **more: opened.append(str(path)) or read(path, *rest, **more)
        import meticulous
        meticulous.main(sys.argv[2:])
        open(sys.argv[1], "w").write("\\n".join(opened))
    """
    words = [str(trace), str(directory), "--tail", "1"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    subprocess.check_call([sys.executable, "-c", textwrap.dedent(source), *words], env=environment)
    opened = [path for path in trace.read_text().split("\n") if path.startswith(str(directory))]
    assert str(directory / "12" / "STATUS") in opened
    assert {path.rpartition("/")[2] for path in opened if "/12/" not in path} == {"metadata.json"}


def test_arguments_that_differ_come_before_those_that_only_changed(run, directory):
    for number in (20, 21):
        args = {"changed": 5, "differs": number}
        write_experiment(directory, number, args, default_args={"changed": 4, "differs": 20})
    words = ["--filter", "header.expid in ['20', '21']"]
    assert read_columns(run, *words)[0][4:] == ["args.differs", "args.changed", "summary.loss"]


def test_arguments_that_are_dicts_are_opened_where_they_differ(run, directory):
    for number, name in enumerate(("adam", "sgd"), 20):
        write_experiment(directory, number, {"optimizer": {"name": name, "betas": {"b1": 0.9}}})
    words = ["--filter", "header.expid in ['20', '21']"]
    assert read_columns(run, *words)[0][4:] == ["args.optimizer.name", "summary.loss"]
    rows = json.loads(run("experiments", *words, "--json")[1])["rows"]
    assert rows[0]["args.optimizer"] == {"name": "adam", "betas": {"b1": 0.9}}


@pytest.mark.parametrize("words", [[], ["--filter", "`metadata.githead-sha` != None"]])
def test_a_description_is_the_last_column(run, directory, words):
    write_experiment(directory, "20", description="wider\nlayers")
    table = run("experiments", *words)[1].splitlines()
    assert table[1].endswith("  description")
    assert [line.split()[0] for line in table if line.endswith("wider\\nlayers")] == ["20"]


def test_a_description_is_a_column_of_the_header_whatever_is_asked_for(run, directory):
    write_experiment(directory, "20", description="wider")
    assert "header.description" in read_columns(run)[0]
    assert ["wider"] in read_columns(run, "--columns", "header.description")


def test_results_that_no_shown_run_has_take_no_column(run):
    words = ["--filter", "header.status == 'ERROR'"]
    assert read_columns(run, *words)[0][4:] == ["header.status_message"]


def test_a_running_experiment_shows_what_it_logged_last(run, directory):
    folder = write_experiment(directory, "20", summary={}, status="RUNNING")
    lines = ["%d," % number + "x" * 70000 + "\n" for number in range(2)]
    (folder / "metrics.jsonl").write_text("".join(lines) + '{"step": 3, "time": 5, "acc": 0.75}\n')
    assert read_columns(run, "--filter", "header.expid == '20'")[0][-2] == "metrics.acc"
    (folder / "STATUS").write_text("SUCCESS")
    assert "metrics" not in run("experiments")[1]
    assert "metrics" in run("experiments", "--sort", "metrics.acc")[1]
