"""`meticulous run` records any command, without touching it: streams, signals and the exit code are its own."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import PROJECT

import meticulous

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX")


@pytest.fixture
def start(repo):
    """Give a function that starts `meticulous run` on a command."""

    def start(*command, options=(), **keywords):
        words = ["run"] + list(options) + ["--"] + [str(word) for word in command]
        repo.write("meticulous.py", (PROJECT / "meticulous.py").read_bytes())
        repo.commit("Vendor", "meticulous.py")
        return repo.popen(None, *words, name="meticulous.py", **keywords)

    return start


@pytest.fixture
def run(start):
    return lambda *command, **keywords: start(*command, **keywords).result()


def shell(text):
    return ("sh", "-c", text)


def load(repo, name, number=1):
    return json.loads((repo.experiment(number) / name).read_text())


def status(repo, number=1):
    return (repo.experiment(number) / "STATUS").read_text()


def test_a_whole_record(repo, run):
    result = run(
        "python3", "-c", "print(1)", "--lr", "0.1", "--steps=3", "--fast", "--name", "a b", "--", "-x"
    )
    assert (result.code, result.stdout) == (0, "1\n"), result
    assert load(repo, "args.json") == {"lr": 0.1, "steps": 3, "fast": True, "name": "a b"}
    assert load(repo, "default_args.json") is None
    assert (repo.experiment(1) / "stdout").read_text() == "1\n"
    assert status(repo) == "SUCCESS"
    metadata = load(repo, "metadata.json")
    assert metadata["command"][:2] == ["python3", "-c"]
    assert metadata["usage"]["peak-memory-bytes"] > 1000000
    assert metadata["usage"]["cpu-seconds"] > 0
    assert metadata["usage"]["wall-seconds"] > 0


@pytest.mark.parametrize(
    "words, args",
    [
        (["--lr", "0.1"], {"lr": 0.1}),
        (["--lr=1e-3", "x", "--n", "-5"], {"lr": 0.001, "n": -5}),
        (["--a", "--b"], {"a": True, "b": True}),
        (["--a", "-o", "x", "--b", "-", "--c", "-.5"], {"a": True, "b": "-", "c": -0.5}),
        (["--a="], {"a": ""}),
        (["--a=2026_03", "--b", "1_0.5"], {"a": "2026_03", "b": "1_0.5"}),
        (
            ["--a=0123", "--b", "12e5678", "--c=nan", "--d=-inf"],
            {"a": "0123", "b": "12e5678", "c": "nan", "d": "-inf"},
        ),
        (["--a=0.10", "--b", "+2", "--c=1.", "--d=1.2.3"], {"a": 0.1, "b": 2, "c": 1.0, "d": "1.2.3"}),
        (["--a=--b"], {"a": "--b"}),
        (["--a=b=c", "-x", "1", "y"], {"a": "b=c"}),
        (["--a", "1", "--a", "2"], {"a": 2}),
        (["x", "--", "--a", "1"], {"a": 1}),
        ([], {}),
    ],
)
def test_arguments_of_the_command(words, args):
    assert meticulous._parse_command(words) == args


def test_own_options_come_before_the_dashes(repo, run):
    assert run(*shell("exit 0"), options=["--experiment-id", "mine", "--description", "words"]).code == 0
    assert load(repo, "metadata.json", "mine")["description"] == "words"
    assert load(repo, "args.json", "mine") == {}


@pytest.mark.parametrize(
    "text, code, reason",
    [
        ("exit 3", 3, "exit code 3"),
        ("kill -TERM $$", 143, "killed by SIGTERM at "),
        ("kill -KILL $$", 137, "killed by SIGKILL at "),
        ("kill -SEGV $$", 139, "killed by SIGSEGV at "),
    ],
)
def test_the_end_is_exact(repo, run, text, code, reason):
    assert run(*shell(text)).code == code
    assert status(repo).startswith("ERROR\n" + reason)


def test_both_streams_of_the_whole_process_tree(repo, run):
    result = run(*shell("echo a; (echo b; echo c >&2) & wait; cat README"))
    assert (result.stdout, result.stderr.splitlines()[-1]) == ("a\nb\nA project under test.\n", "c")
    assert (repo.experiment(1) / "stdout").read_text() == result.stdout
    assert (repo.experiment(1) / "stderr").read_text() == "c\n"


def test_bytes_of_any_kind_pass_unchanged(repo, run):
    source = "import os; os.write(1, bytes(range(256)) * 4096)"
    process = run(sys.executable, "-c", source)
    expected = bytes(range(256)) * 4096
    assert process.stdout.encode("utf-8", "surrogateescape") == expected


def test_stdin_is_the_commands(repo, start):
    process = start("cat", stdin=-1)
    process.stdin.write(b"typed\n")
    process.stdin.close()
    process.stdin = None
    assert process.result().stdout == "typed\n"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP", "SIGQUIT"])
def test_signals_are_handed_on(repo, start, name):
    number = int(getattr(signal, name))
    process = start(*shell(f"trap 'echo got; exit 5' {number}; echo up; while :; do sleep 0.01; done"))
    assert process.stdout.readline() == b"up\n"
    process.send_signal(number)
    result = process.result()
    assert (result.code, result.stdout) == (5, "got\n")
    assert status(repo) == "ERROR\nexit code 5"


@pytest.mark.parametrize("redirection", ["", "</dev/null", "2>/dev/null"])
def test_ctrl_c_reaches_the_command_once(repo, tmp_path, redirection):
    repo.write("meticulous.py", (PROJECT / "meticulous.py").read_bytes())
    repo.commit("Vendor", "meticulous.py")
    # A byte in the pipe for each signal, though Python may call its handler once for two. We hand on what
    # we have caught in the order of its numbers: whoever has SIGUSR1 has any SIGINT of ours, too.
    count = """
import os, signal
reader, writer = os.pipe()
os.set_blocking(writer, False)
signal.set_wakeup_fd(writer)
signal.signal(signal.SIGINT, lambda *_: None)
signal.signal(signal.SIGUSR1, lambda *_: None)
print("up", flush=True)
got = os.read(reader, 1)
os.kill(os.getppid(), signal.SIGUSR1)
while signal.SIGUSR1 not in got:
    got += os.read(reader, 100)
print("got", got.count(signal.SIGINT), "in all")
"""
    (tmp_path / "count.py").write_text(count)
    line = f"exec {sys.executable} meticulous.py run -- {sys.executable} {tmp_path}/count.py {redirection}"
    terminal = [sys.executable, "-c", "import pty, sys; pty.spawn(['sh', '-c', sys.argv[1]])", line]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        terminal, cwd=str(repo.path), env=repo.environment(None), stdin=pipe, stdout=pipe, bufsize=0
    ) as process:
        while b"up" not in process.stdout.readline():
            pass
        process.stdin.write(b"\x03")
        assert b"got 1 in all" in process.stdout.read()


def test_a_signal_that_comes_before_the_command_runs_is_handed_on(repo, start, tmp_path):
    git = shutil.which("git")
    (tmp_path / "git").write_text(f'#!/bin/sh\n[ "$1" = -c ] && kill -TERM $PPID\nexec {git} "$@"\n')
    (tmp_path / "git").chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    result = start("sleep", "50", env={"PATH": path}).result()
    assert result.code == 128 + signal.SIGTERM, result
    assert status(repo).startswith("ERROR\nkilled by SIGTERM at ")


def test_a_command_that_closes_its_stdout_early(repo, run):
    result = run(*shell("exec >&-; sleep 0.1; echo late >&2; exit 4"))
    assert result.code == 4
    assert (repo.experiment(1) / "stderr").read_text() == "late\n"


def test_a_daemon_that_is_left_behind_does_not_hang_us_and_loses_nothing(repo, start, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(str(fifo))
    process = start(
        *shell(f"(read line <{fifo}; echo late; echo x >{fifo}) & echo early"), start_new_session=False
    )
    assert process.stdout.readline() == b"early\n"
    assert process.wait(60) == 0
    assert status(repo) == "SUCCESS"
    with open(str(fifo), "w") as file:
        file.write("go\n")
    with open(str(fifo)) as file:
        file.read()
    assert process.stdout.readline() == b"late\n"
    assert process.stdout.read() == b""  # the last of our processes is gone
    assert (repo.experiment(1) / "stdout").read_text() == "early\nlate\n"


def test_a_reader_that_has_seen_enough(repo, start):
    process = start(*shell("while echo line; do :; done; exit 7"))
    assert process.stdout.readline() == b"line\n"
    process.stdout.close()
    process.stdout = None
    assert process.wait(60) in (7, 128 + signal.SIGPIPE)


def test_a_stdout_that_does_not_block_gets_all(repo, start):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    process = start(*shell("head -c 1000000 /dev/zero"), stdout=writer)
    give_up = time.monotonic() + 30
    while select.select([], [writer], [], 0)[1]:  # there is room in it still
        assert time.monotonic() < give_up
    os.close(writer)
    with open(reader, "rb") as file:
        assert len(file.read()) == 1000000
    assert process.wait(60) == 0
    assert status(repo) == "SUCCESS"


def test_progress_bars_are_folded(repo, run):
    result = run(sys.executable, "-c", "for n in range(10000): print('\\r%d %%' % n, end='')\nprint()")
    assert len(result.stdout) > 50000
    assert (repo.experiment(1) / "stdout").read_text() == "9999 %\n"


@pytest.mark.slow
def test_a_large_output(repo, run):
    result = run(sys.executable, "-c", "import os\nfor n in range(800): os.write(1, b'x' * 65535 + b'\\n')")
    assert len(result.stdout) == 800 * 65536
    assert (repo.experiment(1) / "stdout").stat().st_size == 800 * 65536


@pytest.mark.parametrize(
    "command, code",
    [("no-such-command", 127), ("./missing", 127), ("./README", 126), ("/", 126), ("README", 127)],
)
def test_a_command_that_is_not_there_makes_no_folder(repo, run, command, code):
    result = run(command)
    assert result.code == code
    assert result.stderr.startswith(f"meticulous: {command} ")
    assert not (repo.path / "experiments").exists()


def test_a_file_that_is_no_program(repo, run):
    path = repo.write("notes.bin", b"\0\1")
    path.chmod(0o755)
    repo.commit("Notes", "notes.bin")
    result = run(path)
    assert result.code == 126
    assert status(repo).startswith("ERROR\n")


def test_no_command_is_wrong_use(repo, run):
    assert run().code == 2
    assert not (repo.path / "experiments").exists()


def test_a_dirty_repo_is_refused(repo, start):
    repo.write("README", "changed")
    result = start("true").result()
    assert result.code == 2
    assert "'README'" in result.stderr and "Traceback" not in result.stderr


def test_norecord_runs_the_command_alone(repo, run):
    result = run(*shell("echo a; exit 3"), options=["--norecord"])
    assert (result.code, result.stdout) == (3, "a\n")
    assert not (repo.path / "experiments").exists()


def test_norecord_ends_at_a_broken_pipe_as_without_us(start):
    process = start("yes", options=["--norecord"])
    assert process.stdout.readline() == b"y\n"
    process.stdout.close()
    process.stdout = None
    assert process.wait(60) == -signal.SIGPIPE


def test_a_daemon_that_never_stops_writing_does_not_hang_us(repo, start):
    process = start(*shell("yes & echo $! >pid; sleep 0.2"))
    give_up = time.monotonic() + 10
    # Slower than it writes, so that there is always more to pass on.
    while process.poll() is None and time.monotonic() < give_up:
        os.read(process.stdout.fileno(), 1 << 16)
        time.sleep(0.005)
    os.kill(int((repo.path / "pid").read_text()), signal.SIGKILL)
    assert process.returncode == 0
    assert status(repo) == "SUCCESS"
