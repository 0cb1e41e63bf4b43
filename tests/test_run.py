"""`meticulous run` records any command, without touching it: streams, signals and the exit code are its own."""

import functools
import json
import os
import pty
import resource
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import PROJECT
from hypothesis import given, settings
from hypothesis import strategies as st

import meticulous

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX")


def vendor(repo):
    repo.write("meticulous.py", (PROJECT / "meticulous.py").read_bytes())
    repo.write(".gitignore", "experiments\n")
    repo.commit("Vendor", "meticulous.py", ".gitignore")


@pytest.fixture
def start(repo):
    """Give a function that starts `meticulous run` on a command."""

    def start(*command, options=(), **keywords):
        words = ["run"] + list(options) + ["--"] + [str(word) for word in command]
        vendor(repo)
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


PRINT = "x = bytearray(200000000); print(1)"


def test_a_whole_record(repo, run):
    result = run("python3", "-c", PRINT, "--lr", "0.1", "--steps=3", "--fast", "--name", "a b", "--", "-x")
    assert (result.code, result.stdout) == (0, "1\n"), result
    args = {"lr": 0.1, "steps": 3, "fast": True, "name": "a b"}
    argv = ["python3", "-c", PRINT, "--lr", None, "--steps=", "--fast", "--name", None, "--", "-x"]
    assert load(repo, "args.json") == {**args, "argv": argv}
    assert load(repo, "default_args.json") is None
    assert (repo.experiment(1) / "stdout").read_text() == "1\n"
    assert status(repo) == "SUCCESS"
    metadata = load(repo, "metadata.json")
    assert metadata["command"][:2] == ["python3", "-c"]
    assert metadata["usage"]["peak-memory-bytes"] > 200000000
    assert metadata["usage"]["cpu-seconds"] > 0
    assert metadata["usage"]["wall-seconds"] > 0


@pytest.mark.parametrize(
    "words, args",
    [
        (["--lr", "0.1"], {"lr": 0.1}),
        (["--lr=1e-3", "x", "--n", "-5"], {"lr": 0.001, "n": -5}),
        (["lr=0.1", "-n=5", "model.size=big"], {"lr": 0.1, "n": 5, "model.size": "big"}),
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
        (["--a", "1", "--a", "2"], {"a": [1, 2]}),
        (["--a=x", "--a=y", "--b", "--b", "3"], {"a": ["x", "y"], "b": 3}),
        (["--layers", "64", "32", "--lr", "0.1", "data.csv"], {"layers": [64, 32], "lr": 0.1}),
        (["--name", "one", "data.csv", "5"], {"name": "one"}),
        (["x", "--", "--a", "1"], {"a": 1}),
        (["-c", "print(x=1)", "https://host/?a=1", "./b=2"], {}),
        (["--argv", "1", "argv=2"], {}),
        ([], {}),
    ],
)
def test_arguments_of_the_command(words, args):
    parsed = meticulous._parse_command(words)
    assert len(parsed.pop("argv")) == len(words)
    assert parsed == args


def test_words_that_are_no_options_values_are_kept_in_order():
    words = ["train.py", "data.csv", "--lr", "0.1", "-x", "--n=5", "--m=05", "--layers", "64", "32", ""]
    kept = ["train.py", "data.csv", "--lr", None, "-x", "--n=", "--m=", "--layers", None, None, ""]
    assert meticulous._parse_command(words)["argv"] == kept


_words = st.lists(
    st.one_of(
        st.sampled_from(
            ["--a", "--b", "--", "-a", "", "-", "--a=", "a=", "--argv", "1", "1.0", "1e0", "true"]
        ),
        st.sampled_from(
            ["1e+16", "10000000000000000", "--a=1", "--a=1.0", "a=x", "True", "-1", "0.10", ".1"]
        ),
        st.from_regex(r"(--|-|)([ab]|argv)?=?(-?[0-9.e+]{0,3}|[xy]?)", fullmatch=True),
        st.text(max_size=3),
    ),
    max_size=6,
)


@settings(max_examples=500, deadline=None)
@given(_words, _words)
def test_different_commands_have_different_arguments(one, other):
    parsed = [json.loads(json.dumps(meticulous._parse_command(words))) for words in (one, other)]
    assert (parsed[0] == parsed[1]) == (one == other)
    assert meticulous._find_differences(*parsed) != (one != other)


@settings(max_examples=500, deadline=None)
@given(_words, st.randoms())
def test_commands_whose_words_are_like_each_other_have_different_arguments(words, random):
    other = list(words)
    random.shuffle(other)
    parsed = [json.loads(json.dumps(meticulous._parse_command(found))) for found in (words, other)]
    assert (parsed[0] == parsed[1]) == (words == other)


@pytest.mark.parametrize(
    "other", [["x", "y"], ["y"], ["x", "-lr=0.1"], ["x", "--lr", "0.10"], ["x", "--lr=0.1"]], ids=" ".join
)
def test_a_resume_with_other_words_is_refused(repo, run, other):
    own = ["--experiment-id", "mine"]
    assert run("echo", "x", "--lr", "0.1", options=own).code == 0
    result = run("echo", *other, options=own)
    assert (result.code, result.stdout) == (2, "")
    assert "'argv' was ['echo', 'x', '--lr', None], now" in result.stderr
    assert run("echo", "x", "--lr", "0.1", options=own).stdout == "x --lr 0.1\n"


def test_own_options_come_before_the_dashes(repo, run):
    assert run(*shell("exit 0"), options=["--experiment-id", "mine", "--description", "words"]).code == 0
    assert load(repo, "metadata.json", "mine")["description"] == "words"
    assert load(repo, "args.json", "mine") == {"argv": ["sh", "-c", "exit 0"]}


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


def reports(*names):
    """Return a command that prints each of the signals *names* that it gets, until it gets SIGUSR2."""
    source = """
import os, signal, sys
signums = {int(name) for name in sys.argv[1:]}
reader, writer = os.pipe()
os.set_blocking(writer, False)
signal.set_wakeup_fd(writer)
for signum in signums | {signal.SIGUSR2}:
    signal.signal(signum, lambda *_: None)
print("up", os.getpid(), flush=True)
while True:
    for signum in os.read(reader, 1):  # a byte for each signal, in order
        if signum == signal.SIGUSR2:
            sys.exit()
        print("got", signum, flush=True)
"""
    return [sys.executable, "-c", source] + [str(int(name)) for name in names]


HANDED_ON = [
    getattr(signal, name)
    for name in [
        "SIGTERM",
        "SIGHUP",
        "SIGINT",
        "SIGQUIT",
        "SIGUSR1",
        "SIGALRM",
        "SIGVTALRM",
        "SIGPROF",
        "SIGXCPU",
        "SIGCONT",
        "SIGTSTP",
        "SIGTTIN",
        "SIGTTOU",
        "SIGWINCH",
        "SIGURG",
        "SIGIO",
        "SIGABRT",
        "SIGSEGV",
        "SIGSYS",
    ]
]


@pytest.mark.parametrize("number", HANDED_ON, ids=lambda number: number.name)
def test_signals_are_handed_on_once(start, number):
    process = start(*reports(number))
    assert process.stdout.readline().startswith(b"up")
    process.send_signal(number)
    assert process.stdout.readline() == b"got %d\n" % number
    process.send_signal(signal.SIGUSR2)
    result = process.result()
    assert (result.code, result.stdout) == (0, "")


def test_a_signal_that_was_ignored_before_is_the_commands_to_handle(start):
    ignore = functools.partial(signal.signal, signal.SIGHUP, signal.SIG_IGN)
    process = start(*reports(signal.SIGHUP), preexec_fn=ignore)
    assert process.stdout.readline().startswith(b"up")
    process.send_signal(signal.SIGHUP)
    assert process.stdout.readline() == b"got 1\n"


@pytest.fixture
def in_terminal(repo, tmp_path):
    """Return a function that runs `meticulous run COMMAND >out` in a terminal, with *redirection*."""
    processes = []

    def in_terminal(command, redirection="", leader="sh"):
        """*leader*: "sh" or "", which makes us the terminal session's leader."""
        vendor(repo)
        os.mkfifo(str(tmp_path / "out"))
        words = [sys.executable, "meticulous.py", "run", "--", *command]
        line = " ".join(map(shlex.quote, words)) + f" >{tmp_path}/out {redirection}"
        line = f"{line}; exit $?" if leader else f"exec {line}"
        source = "import pty, sys; pty.spawn(['sh', '-c', sys.argv[1]])"
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            [sys.executable, "-c", source, line],
            cwd=str(repo.path), env=repo.environment(None), stdin=pipe, stdout=pipe, bufsize=0,
        )  # fmt: skip
        processes.append(process)
        process.output = (tmp_path / "out").open("rb", buffering=0)
        return process

    yield in_terminal
    for process in processes:
        process.kill()
        process.communicate()
        process.output.close()


@pytest.mark.parametrize("redirection", ["", "</dev/null", "2>/dev/null", "</dev/null 2>/dev/null"])
def test_ctrl_c_reaches_the_command_once(in_terminal, redirection):
    process = in_terminal(reports(signal.SIGINT, signal.SIGUSR1), redirection)
    pid = int(process.output.readline().split()[1])
    process.stdin.write(b"\x03")
    assert process.output.readline() == b"got 2\n"
    # What we hand on, we hand on in the order of the numbers, and after what came before.
    with open(f"/proc/{pid}/stat") as file:
        ours = int(file.read().rpartition(")")[2].split()[1])
    os.kill(ours, signal.SIGUSR1)
    assert process.output.readline() == b"got 10\n"
    os.kill(ours, signal.SIGINT)  # from a process, and so to us alone
    assert process.output.readline() == b"got 2\n"
    os.kill(ours, signal.SIGUSR2)
    assert process.output.read() == b""


def test_a_terminal_that_hangs_up_tells_only_its_sessions_leader(in_terminal):
    process = in_terminal(reports(signal.SIGHUP, signal.SIGCONT), leader="")
    pid = int(process.output.readline().split()[1])
    process.kill()
    assert {process.output.readline() for _ in range(2)} == {b"got 1\n", b"got 18\n"}
    os.kill(pid, signal.SIGUSR2)
    assert process.output.read() == b""


def wait_for_state(pid, states):
    """Wait until a process is in one of *states*: R, S, T, Z, ... as in proc(5), or "" after its end."""
    state = None
    while state not in states:
        try:
            with open(f"/proc/{pid}/stat") as file:
                state = file.read().rpartition(")")[2].split()[0]
        except OSError:
            state = ""
    return state


@pytest.mark.parametrize("continues_all", [False, True], ids=["one", "group"])
def test_a_command_that_stops_stops_us_and_is_continued_with_us_once(start, continues_all):
    # In a session with the test, because the kernel does not stop a group that no shell could continue.
    process = start(
        *reports(signal.SIGCONT), start_new_session=False, preexec_fn=functools.partial(os.setpgid, 0, 0)
    )
    pid = int(process.stdout.readline().split()[1])
    for _ in range(2):
        process.send_signal(signal.SIGTSTP)
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        assert wait_for_state(pid, ["T"]) == "T"
        (os.killpg if continues_all else os.kill)(process.pid, signal.SIGCONT)
        assert process.stdout.readline() == b"got %d\n" % signal.SIGCONT
    process.send_signal(signal.SIGUSR2)
    result = process.result()
    assert (result.code, result.stdout) == (0, "")


def test_a_command_that_is_stopped_alone_is_continued_alone(start):
    process = start(*reports(signal.SIGCONT))
    pid = int(process.stdout.readline().split()[1])
    os.kill(pid, signal.SIGSTOP)
    wait_for_state(pid, ["T"])
    os.kill(pid, signal.SIGCONT)
    assert process.stdout.readline() == b"got %d\n" % signal.SIGCONT
    process.send_signal(signal.SIGUSR2)
    assert process.result().code == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM])
def test_a_signal_after_the_commands_end_changes_nothing(repo, start, number):
    # The command can end, because the rest fits into its pipe; we can't, until all is read.
    process = start(*shell("echo $$ >&2; head -c 100000 /dev/zero"))
    pid = int(process.stderr.readline())
    wait_for_state(pid, ("Z", ""))
    process.send_signal(number)
    result = process.result()
    assert (result.code, len(result.stdout)) == (0, 100000)
    assert status(repo) == "SUCCESS"


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


STATE = """
import json, os, resource, signal
with open("/proc/self/status") as file:
    fields = dict(line.split(":", 1) for line in file)
ignored = int(fields["SigIgn"], 16) & ~(1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)
with open("/proc/self/environ") as file:
    environment = sorted(set(file.read().split(chr(0))))
names = [name for name in dir(resource) if name.startswith("RLIMIT_")]
print(json.dumps({
    "blocked": int(fields["SigBlk"], 16),
    "ignored": ignored,
    "caught": int(fields["SigCgt"], 16) & 1 << signal.SIGTERM - 1,
    "umask": os.umask(0),
    "group": os.getpgrp(),
    "session": os.getsid(0),
    "limits": [resource.getrlimit(getattr(resource, name)) for name in names],
    "descriptors": sorted(set(os.listdir("/proc/self/fd")) - {"0", "1", "2"}),
    "environment": [entry for entry in environment if not entry.startswith("METICULOUS_EXPERIMENT_FOLDER=")],
}))
"""
SITUATIONS = {
    "usual": lambda: None,
    "blocked": lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD, signal.SIGTERM, 40]),
    "ignored": lambda: [signal.signal(n, signal.SIG_IGN) for n in (signal.SIGCHLD, signal.SIGHUP, 2, 40)],
    "limits": lambda: (resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200)), os.umask(0o27)),
}
ENVIRONMENTS = {
    "none": [],
    "c": ["LC_CTYPE=C", "A=b=c", "E="],
    "utf-8": ["LC_CTYPE=C.UTF-8"],
    "other": ["LC_CTYPE=xx_YY", "LANG=C", "METICULOUS_X=1"],
}


@pytest.mark.parametrize("situation", sorted(SITUATIONS))
@pytest.mark.parametrize("options", [[], ["--norecord"]], ids=["record", "norecord"])
def test_the_command_is_started_as_without_us(repo, start, situation, options):
    prepare, program = SITUATIONS[situation], [sys.executable, "-c", STATE]
    process = start(*program, options=options, preexec_fn=prepare)
    ours = process.result()
    environment = repo.environment()
    bare = subprocess.Popen(
        ["setsid", "--wait", *program], env=environment, stdout=subprocess.PIPE, preexec_fn=prepare
    )
    expected, found = json.loads(bare.communicate()[0].decode()), json.loads(ours.stdout)
    assert (found.pop("group"), found.pop("session")) == (process.pid, process.pid)
    del expected["group"], expected["session"]
    assert found == expected


@pytest.mark.parametrize("name", sorted(ENVIRONMENTS))
@pytest.mark.parametrize("options", [[], ["--norecord"]], ids=["record", "norecord"])
def test_the_environment_is_the_commands_own(repo, run, name, options):
    words = ["env", "-i", f"HOME={repo.path.parent}", f"PATH={os.environ['PATH']}", *ENVIRONMENTS[name]]
    ours = [*words, sys.executable, "meticulous.py", "run", *options, "--", "env", "-0"]
    run("true")  # the module is there then
    result = subprocess.check_output(ours, cwd=str(repo.path)).split(b"\0")
    expected = subprocess.check_output([*words, "env", "-0"]).split(b"\0")
    assert sorted(v for v in result if not v.startswith(b"METICULOUS_EXPERIMENT_FOLDER=")) == sorted(expected)


@pytest.mark.parametrize("options", [[], ["--norecord"]], ids=["record", "norecord"])
def test_inherited_descriptors_stay_open_in_the_command(start, options):
    reader, writer = os.pipe()
    process = start(*shell(f"echo hi >/dev/fd/{writer}; exit 3"), options=options, pass_fds=[writer])
    os.close(writer)
    with open(reader, "rb") as file:
        assert file.read() == b"hi\n"
    assert process.result().code == 3


def test_we_hold_no_descriptor_that_the_command_has_closed(start):
    reader, writer = os.pipe()
    source = f"import os, signal; os.close({writer}); os.close(0); os.kill(os.getpid(), signal.SIGSTOP)"
    process = start(sys.executable, "-c", source, pass_fds=[writer], stdin=subprocess.PIPE)
    os.close(writer)
    with open(reader, "rb") as file:
        assert file.read() == b""  # it was closed in us as well
    with pytest.raises(BrokenPipeError):
        while True:
            process.stdin.write(b"x")
    process.stdin.close()
    process.stdin = None
    process.send_signal(signal.SIGCONT)
    assert process.result().code == 0


@pytest.mark.parametrize("prepare", ["blocked", "ignored"])
def test_sigchld_that_is_blocked_or_ignored_does_not_hide_the_end(repo, run, prepare):
    assert run(*shell("exit 7"), preexec_fn=SITUATIONS[prepare]).code == 7
    assert status(repo) == "ERROR\nexit code 7"


@pytest.mark.parametrize("closed", ["0", "1", "2", "01", "012"])
@pytest.mark.parametrize("options", [[], ["--norecord"]], ids=["record", "norecord"])
def test_closed_streams_are_closed_in_the_command(repo, start, tmp_path, closed, options):
    source = "import os, sys; os.write(int(sys.argv[1]), os.fsencode(' '.join(os.listdir('/proc/self/fd'))))"
    fifo = tmp_path / "fifo"
    os.mkfifo(str(fifo))
    reader = os.open(str(fifo), os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(str(fifo), os.O_WRONLY)
    process = start(
        sys.executable, "-c", source, str(writer), options=options, pass_fds=[writer],
        preexec_fn=lambda: [os.close(int(descriptor)) for descriptor in closed],
    )  # fmt: skip
    assert process.result().code == 0
    found = os.read(reader, 100).decode().split()
    os.close(reader)
    os.close(writer)
    # listdir() has one, too, and gets the lowest number.
    expected = ({"0", "1", "2"} - set(closed)) | {str(writer), closed[0]}
    assert set(found) == expected
    if not options:
        assert [(repo.experiment(1) / name).read_text() for name in ("stdout", "stderr")] == ["", ""]
        assert status(repo) == "SUCCESS"


def test_a_full_disk_below_stdout_does_not_stop_the_command_or_the_record(repo, start):
    with open("/dev/full", "wb") as full:
        process = start(*shell("echo one; echo two >&2; echo three; exit 5"), stdout=full)
    result = process.result()
    assert (result.code, result.stderr) == (5, "two\n")
    assert (repo.experiment(1) / "stdout").read_text() == "one\nthree\n"


def test_a_terminal_that_is_gone_does_not_stop_the_command_or_the_record(repo, start):
    terminal, stdout = pty.openpty()
    process = start(*shell("read line; echo one; echo two; exit 5"), stdin=subprocess.PIPE, stdout=stdout)
    os.close(stdout)
    os.close(terminal)
    assert process.communicate(b"go\n")[1] == b""
    assert process.returncode == 5
    assert (repo.experiment(1) / "stdout").read_text() == "one\ntwo\n"


def test_a_stdout_that_is_not_read_does_not_hold_up_stderr(start):
    process = start(*shell("head -c 1000000 /dev/zero & echo here >&2; wait"))
    assert process.stderr.readline() == b"here\n"
    assert len(process.result().stdout) == 1000000


def test_the_other_ranks_become_the_command(repo, start):
    reader, writer = os.pipe()
    ranks = [
        start(
            *shell(f'echo "$PMI_RANK" >/dev/fd/{writer}; echo "$$"'),
            env={"PMI_RANK": rank, "PMI_SIZE": 2, "PMI_FD": writer},
            pass_fds=[writer],
        )
        for rank in (0, 1)
    ]
    os.close(writer)
    with open(reader) as file:
        assert sorted(file.read().split()) == ["0", "1"]
    results = [rank.result() for rank in ranks]
    assert int(results[1].stdout) == ranks[1].pid
    assert status(repo) == "SUCCESS"
    assert not repo.experiment(2).exists()
