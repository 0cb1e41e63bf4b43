"""However a process ends: STATUS tells it, and exit code and output are those that it has without us."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from meticulous import ExperimentReader

SILENT = """\
import os, sys
from meticulous import Experiment
experiment = Experiment()
"""
START = SILENT + "print('last words')\n"
IN_MAIN = """\
import os, sys
from meticulous import Experiment
def main():
    global experiment
    experiment = Experiment()
    print("last words")
    return {}
"""
TRACEBACK = "Traceback (most recent call last):"
DIVISION = "ZeroDivisionError: division by zero"
INTERRUPTED = 1 if sys.version_info < (3, 8) else -signal.SIGINT

UNSEEN = re.compile(
    "A SystemExit left .*script.py:[0-9]+, and .* could not be seen: write sys.exit.code. instead."
)


def at_top(code):
    """Give what is seen of a SystemExit that the main module itself raises."""
    if sys.version_info < (3, 12):
        return UNSEEN
    return f"sys.exit({code})" if code else "SUCCESS"


# name, exit code, last line of STATUS, what the script does after START (or all of it)
ENDINGS = [
    ("falls off the end", 0, "SUCCESS", ""),
    ("sys.exit()", 0, "SUCCESS", "sys.exit()"),
    ("sys.exit(None)", 0, "SUCCESS", "sys.exit(None)"),
    ("sys.exit(0)", 0, "SUCCESS", "sys.exit(0)"),
    ("sys.exit(False)", 0, "SUCCESS", "sys.exit(False)"),
    ("sys.exit(3)", 3, "sys.exit(3)", "sys.exit(3)"),
    ("sys.exit(True)", 1, "sys.exit(True)", "sys.exit(True)"),
    ("sys.exit(text)", 1, "sys.exit('no\\ndata')", r"sys.exit('no\ndata')"),
    ("sys.exit(empty text)", 1, "sys.exit('')", "sys.exit('')"),
    ("sys.exit(float)", 1, "sys.exit(0.0)", "sys.exit(0.0)"),
    ("sys.exit(tuple)", 1, "sys.exit((0, 1))", "sys.exit((0, 1))"),
    ("exit(0)", 0, "SUCCESS", "exit(0)"),
    ("exit(4)", 4, "sys.exit(4)", "exit(4)"),
    ("exit(code=4)", 4, "sys.exit(4)", "exit(code=4)"),
    ("quit()", 0, "SUCCESS", "quit()"),
    ("quit(text)", 1, "sys.exit('no data')", "quit('no data')"),
    ("argparse's error", 2, "sys.exit(2)",
     "import argparse; argparse.ArgumentParser().parse_args(['--what'])"),
    ("sys.exit in a function", 3, "sys.exit(3)", "def deep(): sys.exit(3)\ndeep()"),
    ("sys.exit in except", 3, f"sys.exit(3) after {DIVISION}", "try: 1 / 0\nexcept ArithmeticError: sys.exit(3)"),
    ("sys.exit(0) in try", 0, "SUCCESS", "try: sys.exit(0)\nfinally: len('')"),
    ("sys.exit(0) raised again", 0, "SUCCESS", "try: sys.exit(0)\nexcept SystemExit: raise"),
    ("sys.exit(0) kept and raised", 0, "SUCCESS",
     "try: sys.exit(0)\nexcept SystemExit as e: kept = e\nraise kept"),
    ("sys.exit(0) in a with block", 0, "SUCCESS", "{MANAGER}with manager(): sys.exit(0)"),
    ("sys.exit(3) in a with block", 3, "sys.exit(3)", "{MANAGER}with manager(): sys.exit(3)"),
    # sys.exit was looked up before the experiment was made.
    ("sys.exit(main())", 0, "SUCCESS", IN_MAIN.format(None) + "sys.exit(main())"),
    ("sys.exit(main()), 0", 0, "SUCCESS", IN_MAIN.format(0) + "sys.exit(main())"),
    ("sys.exit(main()), 3", 3, "sys.exit(3)", IN_MAIN.format(3) + "sys.exit(main())"),
    ("sys.exit(main()), computed", 7, "sys.exit(7)",
     IN_MAIN.format("6 + len(sys.argv)") + "sys.exit(main())"),
    ("sys.exit(main()) in try", 0, "SUCCESS", IN_MAIN.format(0) + "try: sys.exit(main())\nfinally: len('')"),
    ("sys.exit(main()) in try, 3", 3, "sys.exit(3)",
     IN_MAIN.format(3) + "try: sys.exit(main())\nfinally: len('')"),
    ("from sys import exit after us", 0, "SUCCESS", "from sys import exit\ndef deep(): exit(0)\ndeep()"),
    ("from sys import exit before us", 0, at_top(0), "from sys import exit\n" + START + "exit(0)"),
    ("from sys import exit before us, 4", 4, at_top(4), "from sys import exit\n" + START + "exit(4)"),
    ("from sys import exit before us, deep", 0, UNSEEN,
     "from sys import exit\n" + START + "def f(): exit()\nf()"),
    # A SystemExit that we have not made.
    ("raise SystemExit(main())", 0, at_top(0), IN_MAIN.format(None) + "raise SystemExit(main())"),
    ("raise SystemExit(main()), 3", 3, at_top(3), IN_MAIN.format(3) + "raise SystemExit(main())"),
    ("raise SystemExit(main()) in with", 0, at_top(0),
     IN_MAIN.format(0) + "{MANAGER}with manager(): raise SystemExit(main())"),
    ("raise SystemExit(main()) in try", 3, UNSEEN,
     IN_MAIN.format(3) + "try: raise SystemExit(main())\nfinally: len('')"),
    ("raise SystemExit(3)", 3, at_top(3), "raise SystemExit(3)"),
    ("raise SystemExit", 0, UNSEEN, "raise SystemExit"),
    ("raise SystemExit(0, 5)", 1, UNSEEN, "raise SystemExit(0, 5)"),
    ("raise SystemExit(0) deep", 0, UNSEEN, "def deep(): raise SystemExit(0)\ndeep()"),
    ("raise SystemExit(3) deep", 3, UNSEEN, "def deep(): raise SystemExit(3)\ndeep()"),
    # Not the end.
    ("sys.exit(5) is caught", 0, "SUCCESS", "{CATCH_EXIT}"),
    ("sys.exit(5) is caught, then sys.exit(0)", 0, "SUCCESS", "{CATCH_EXIT}sys.exit(0)"),
    ("sys.exit(5) is caught, then a bug", 1, DIVISION, "{CATCH_EXIT}1 / 0"),
    ("sys.exit(0) is caught, then another", 5, UNSEEN, """
try:
    sys.exit(0)
except SystemExit as error:
    print(error.code, "last words")
def deep(): raise SystemExit(5)
deep()
"""),
    ("sys.exit(0) is caught and kept, then another", 5, UNSEEN, """
def deep():
    try:
        sys.exit(0)
    except SystemExit as error:
        kept = error
    raise SystemExit(kept.code + 5)
deep()
"""),
    ("raise SystemExit(0) is caught, then another", 5, UNSEEN, """
try:
    raise SystemExit(0)
except SystemExit:
    pass
def deep(): raise SystemExit(5)
deep()
"""),
    ("excepthook is called by hand", 0, "SUCCESS", """
try:
    1 / 0
except ArithmeticError:
    sys.excepthook(*sys.exc_info())
"""),
    ("another exception is kept as the last one", 0, UNSEEN, """
def deep():
    try:
        1 / 0
    except ArithmeticError:
        sys.last_type, sys.last_value, sys.last_traceback = sys.exc_info()
deep()
raise SystemExit
"""),
    ("sys.exit in a thread", 0, "SUCCESS", "{THREAD}run(lambda: sys.exit(5)).join()"),
    ("exception in a thread", 0, "SUCCESS", "{THREAD}run(lambda: 1 / 0).join()"),
    ("a thread goes on", 0, "SUCCESS", "{THREAD}run(lambda: time.sleep(0.1) or print('last words'))"),
    ("exception in a later atexit handler", 0, "SUCCESS", "import atexit; atexit.register(lambda: 1 / 0)"),
    ("exception in an earlier atexit handler", 0, "SUCCESS",
     "import atexit; atexit.register(lambda: 1 / 0)\n" + START),
    ("an atexit handler and sys.exit", 3, "sys.exit(3)",
     "import atexit; atexit.register(print, 'last words'); sys.exit(3)"),
    # Exceptions.
    ("exception", 1, DIVISION, "1 / 0"),
    ("exception in a with block", 1, DIVISION, "{MANAGER}with manager(): 1 / 0"),
    ("exception of a module", 1, "json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)",
     "import json; json.loads('')"),
    ("exception of the script", 1, "Odd: x", "class Odd(Exception): pass\nraise Odd('x')"),
    ("exception without a message", 1, "ValueError", "raise ValueError"),
    ("exception of several lines", 1, "ValueError: one two", r"raise ValueError('one\ntwo')"),
    ("exception without a text", 1, re.compile("Odd: <.*>"),
     "class Odd(Exception): __str__ = None\nraise Odd"),
    ("exceptions in a chain", 1, "KeyError: 'x'",
     "try: 1 / 0\nexcept ArithmeticError as error: raise KeyError('x') from error"),
    ("BaseException", 1, "BaseException: x", "raise BaseException('x')"),
    ("MemoryError", 1, "MemoryError", "raise MemoryError"),
    ("RecursionError", 1, re.compile("RecursionError: .*"), "def deep(): deep()\ndeep()"),
    ("SyntaxError in a lazy import", 1, "SyntaxError: invalid syntax",
     "open('broken.py', 'w').write('a = = 1'); import broken"),
    ("KeyboardInterrupt", INTERRUPTED, "KeyboardInterrupt", "raise KeyboardInterrupt"),
    ("SIGINT", INTERRUPTED, "KeyboardInterrupt", "import time; os.kill(os.getpid(), 2); time.sleep(60)"),
    ("a user's excepthook", 1, DIVISION,
     "sys.excepthook = lambda *error: print('oh no', file=sys.stderr)\n1 / 0"),
]  # fmt: skip
if sys.version_info >= (3, 11):
    ENDINGS += [
        ("exception group", 1, "ExceptionGroup: bugs (1 sub-exception)",
         "raise ExceptionGroup('bugs', [KeyError(1)])"),
        ("exception with a note", 1, "KeyError: 1",
         "error = KeyError(1); error.add_note('Why?')\nraise error"),
    ]  # fmt: skip
PIECES = {
    "{MANAGER}": """
import contextlib
@contextlib.contextmanager
def manager():
    try:
        yield
    finally:
        len("")
""",
    "{CATCH_EXIT}": """
try:
    sys.exit(5)
except SystemExit:
    pass
""",
    "{THREAD}": """
import threading, time
def run(function):
    thread = threading.Thread(target=function)
    thread.start()
    return thread
""",
}


def build_script(source):
    for name, piece in PIECES.items():
        source = source.replace(name, piece)
    return source if "import Experiment" in source else START + source


@pytest.fixture
def repo(repo):
    """Give a repo where a first experiment has nothing to say about .gitignore."""
    repo.write(".gitignore", "experiments\n")
    repo.commit("Ignore the experiments")
    return repo


def check_ended(repo, result, reason, experiment_id=1):
    """Check STATUS by its last line, and that the rest of the end is recorded; return STATUS."""
    folder = repo.experiment(experiment_id)
    status = (folder / "STATUS").read_text()
    if reason == "SUCCESS":
        assert status == "SUCCESS", result
    else:
        first, *_, last = status.split("\n")
        assert first == "ERROR", result
        assert re.fullmatch(reason, last) if isinstance(reason, type(UNSEEN)) else last == reason, result
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["end-time"] == metadata["attempts"][-1]["end-time"] >= metadata["start-time"]
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
    return status


@pytest.mark.parametrize(
    "code, reason, source", [ending[1:] for ending in ENDINGS], ids=[e[0] for e in ENDINGS]
)
def test_every_ending(repo, code, reason, source):
    script = build_script(source)
    plain = repo.run(script.replace("from meticulous import Experiment", "Experiment = object"))
    result = repo.run(script)
    assert result.code == plain.code == code, result
    addresses = re.compile("0x[0-9a-f]+")
    assert addresses.sub("", result.stderr) == addresses.sub("", plain.stderr)
    assert result.stdout == plain.stdout == (repo.experiment(1) / "stdout").read_text()
    assert result.stdout.endswith("last words\n")
    status = check_ended(repo, result, reason)
    if TRACEBACK in status:
        assert status.count(TRACEBACK) == max(1, plain.stderr.count(TRACEBACK))


DEAD = {
    "os._exit(0)": ("os._exit(0)", 0),
    "os._exit(3)": ("os._exit(3)", 3),
    "os.abort()": ("os.abort()", -signal.SIGABRT),
    "os.execv": ("os.execv(sys.executable, [sys.executable, '-c', 'raise SystemExit(9)'])", 9),
    **{
        name: (
            f"import signal, time; os.kill(os.getpid(), signal.{name}); time.sleep(60)",
            -signal.Signals[name],
        )
        for name in ("SIGKILL", "SIGSEGV", "SIGQUIT", "SIGABRT", "SIGUSR1", "SIGPIPE", "SIGALRM")
        if name != "SIGPIPE"  # which Python ignores
    },
}


@pytest.mark.parametrize("name", DEAD)
def test_an_ending_that_nobody_can_see_leaves_it_running_for_the_reader(repo, name):
    source, code = DEAD[name]
    result = repo.run(START + "sys.stdout.flush()\n" + source)
    assert (result.code, result.stdout, result.stderr) == (code, "last words\n", "")
    assert (repo.experiment(1) / "STATUS").read_text() == "RUNNING"
    assert (repo.experiment(1) / "stdout").read_text() == "last words\n"


SIGNALS = [signal.SIGTERM, signal.SIGHUP]
WAIT = (
    START
    + """
import signal, time
sys.stdout.flush()
time.sleep(60)
"""
)


IN_C = """
import collections, itertools
said = itertools.starmap(os.write, [(1, b"last words\\n")])
collections.deque(itertools.chain(said, itertools.repeat(0, {times})), maxlen=0)
"""


def start(repo, source, **keywords):
    """Start a script and wait until it has said its last words."""
    process = repo.popen(source, **keywords)
    assert process.stdout.readline() == b"last words\n"
    return process


def killed_by(signum):
    return re.compile(f"killed by {signal.Signals(signum).name} at [0-9]{{4}}-[0-9-]+T[0-9:]+[.][0-9]{{6}}")


@pytest.mark.parametrize("signum", SIGNALS, ids=lambda signum: signum.name)
class TestSignals:
    def test_it_is_recorded_and_the_process_dies_of_it(self, repo, signum):
        process = start(repo, WAIT)
        process.send_signal(signum)
        result = process.result()
        assert (result.code, result.stderr) == (-signum, "")
        status = check_ended(repo, result, killed_by(signum))
        assert len(status.splitlines()) == 2

    def test_it_comes_several_times(self, repo, signum):
        process = start(repo, WAIT)
        for _ in range(5):
            process.send_signal(signum)
        result = process.result()
        assert (result.code, result.stderr) == (-signum, "")
        check_ended(repo, result, killed_by(signum))

    def test_all_open_experiments_are_ended(self, repo, signum):
        process = start(repo, START + "inner = Experiment()" + WAIT.replace(START, ""))
        process.send_signal(signum)
        result = process.result()
        assert result.code == -signum
        check_ended(repo, result, killed_by(signum), 1)
        check_ended(repo, result, killed_by(signum), 2)

    def test_it_comes_in_a_c_call_that_returns(self, repo, signum):
        process = start(repo, SILENT + IN_C.format(times=10**7) + "import time; time.sleep(60)")
        process.send_signal(signum)
        result = process.result()
        assert (result.code, result.stderr) == (-signum, "")
        check_ended(repo, result, killed_by(signum))

    def test_it_comes_while_the_end_is_being_recorded(self, repo, signum):
        result = repo.run(
            START
            + f"""
            real = os.replace
            def replace(source, target):
                os.kill(os.getpid(), {int(signum)})
                real(source, target)
            os.replace = replace
            """.replace("\n            ", "\n")
        )
        assert (result.code, result.stderr) == (-signum, "")
        check_ended(repo, result, re.compile(f"killed by {signum.name} at .*"))

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_a_handler_of_the_user_is_left_alone(self, repo, signum, when):
        handler = f"import signal; signal.signal({int(signum)}, lambda *a: sys.exit(7))\n"
        source = (
            START.replace("experiment =", handler + "experiment =") if when == "before" else START + handler
        )
        process = start(repo, WAIT.replace(START, source))
        process.send_signal(signum)
        result = process.result()
        assert (result.code, result.stderr) == (7, "")
        check_ended(repo, result, "sys.exit(7)")

    def test_a_signal_that_is_ignored_stays_ignored(self, repo, signum):
        process = repo.popen(
            START + f"os.kill(os.getpid(), {int(signum)})\nsys.exit(4)",
            preexec_fn=lambda: signal.signal(signum, signal.SIG_IGN),
        )
        result = process.result()
        assert (result.code, result.stderr) == (4, "")
        check_ended(repo, result, "sys.exit(4)")

    def test_an_experiment_made_in_a_thread_leaves_signals_alone(self, repo, signum):
        process = start(
            repo,
            f"""
            import signal, threading, time
            from meticulous import Experiment
            thread = threading.Thread(target=Experiment)
            thread.start()
            thread.join()
            assert signal.getsignal({int(signum)}) is signal.SIG_DFL
            print("last words", flush=True)
            time.sleep(60)
            """,
        )
        process.send_signal(signum)
        assert process.result().code == -signum
        assert (repo.experiment(1) / "STATUS").read_text() == "RUNNING"


BUSY = """
import threading
def deep(n):
    return n and deep(n - 1) + sum(x for x in range(3))
def work():
    while True: deep(20)
threading.Thread(target=work, daemon=True).start()
sys.stdout.flush()
work()
"""


def test_a_signal_in_busy_threads_does_not_crash(repo):
    processes = [start(repo, START + BUSY)] + [start(repo, None) for _ in range(7)]
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for number, process in enumerate(processes, 1):
        result = process.result()
        assert (result.code, result.stderr) == (-signal.SIGTERM, "")
        check_ended(repo, result, killed_by(signal.SIGTERM), number)


def test_a_file_that_got_the_number_of_one_of_ours_stays_open(repo):
    source = """
os.closerange(3, 256)
files = [open("results-%d" % number, "w") for number in range(5)]
experiment.finish()
for file in files: file.write("mine")
for file in files: file.close()
os.closerange(3, 256)
Experiment()
os.closerange(3, 256)
"""
    result = repo.run(SILENT + source)
    assert (result.code, result.stderr.count("Traceback")) == (0, 0), result
    assert [path.read_text() for path in sorted(repo.path.glob("results-*"))] == ["mine"] * 5
    for number in (1, 2):
        assert (repo.experiment(number) / "STATUS").read_text() == "SUCCESS"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize(
    ("stream", "end", "message"),
    [
        ("stdout", "", "exit code 120: stdout can't be flushed: [Errno 28] No space left on device"),
        (
            "stdout",
            "sys.exit(0)",
            "exit code 120: stdout can't be flushed: [Errno 28] No space left on device",
        ),
        ("stdout", "1 / 0", DIVISION),
        (
            "stderr",
            "sys.stderr = open('/dev/full', 'w'); sys.stderr.write('x')",
            "exit code 120: stderr can't be flushed: [Errno 28] No space left on device",
        ),
    ],
)
def test_output_that_nobody_takes_any_more_is_an_error(repo, stream, end, message):
    with open("/dev/full", "w") as full:
        result = repo.run(START + end, **({"stdout": full} if stream == "stdout" else {}))
    assert result.code == 120, result
    reader = ExperimentReader(str(repo.experiment(1)))
    assert (reader.status, reader.status_message) == ("ERROR", message)


def test_a_ctrl_c_while_the_last_output_is_stuck_does_not_cost_the_record(repo):
    source = """
class Stuck:
    def write(self, text):
        pass
    def flush(self):
        raise KeyboardInterrupt
sys.stdout = Stuck()
"""
    assert repo.run(SILENT + source).code == 120
    assert (repo.experiment(1) / "STATUS").read_text() == "SUCCESS"


def test_a_handler_of_c_is_left_alone(repo):
    if not os.path.exists("/proc/self/status"):
        pytest.skip("nobody tells here whether C has a handler")
    process = start(
        repo, "import faulthandler, signal; faulthandler.register(signal.SIGTERM, chain=True)\n" + WAIT
    )
    process.send_signal(signal.SIGTERM)
    result = process.result()
    assert result.code == -signal.SIGTERM and "Current thread" in result.stderr
    assert (repo.experiment(1) / "STATUS").read_text() == "RUNNING"


HOOKS = """
import atexit, builtins, signal, sys, threading
def hooks():
    tools = [sys.monitoring.get_tool(n) for n in range(6)] if hasattr(sys, "monitoring") else []
    signals = [signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)]
    return [sys.excepthook, sys.stdout, sys.stderr, type(builtins.exit).__call__, signals, tools,
            threading.active_count(), sys.gettrace(), sys.getprofile()]
plain_exit, before = sys.exit, hooks()
from meticulous import Experiment
assert hooks() == before
"""


def test_the_last_finish_puts_everything_back(repo):
    result = repo.run(
        HOOKS
        + """
for _ in range(2):
    first = Experiment()
    assert sys.exit is not plain_exit and signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    second = Experiment()
    first.finish()
    assert sys.exit is not plain_exit and signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    second.finish()
    assert (sys.exit, hooks()) == (plain_exit, before)
print("last words", flush=True)
sys.exit(3)
"""
    )
    assert (result.code, result.stdout, result.stderr) == (3, "last words\n", "")
    for number in (1, 2, 3, 4):
        check_ended(repo, result, "SUCCESS", number)


def test_hooks_of_others_that_came_after_ours_stay(repo):
    result = repo.run(
        HOOKS
        + """
experiment = Experiment()
def handler(*arguments): print("handler", flush=True)
ours, sys.exit = sys.exit, lambda code: ours(code + 1)
theirs = sys.exit
for signum in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(signum, handler)
experiment.finish()
assert sys.exit is theirs
assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGHUP)] == [handler, handler]
import os
os.kill(os.getpid(), signal.SIGTERM)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
Experiment().finish()
os.kill(os.getpid(), signal.SIGTERM)
sys.exit(3)
"""
    )
    assert (result.code, result.stdout, result.stderr) == (4, "handler\n", "")


def test_a_signal_after_the_last_finish_kills(repo):
    result = repo.run(
        START
        + "experiment.finish()\nimport signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(60)"
    )
    assert (result.code, result.stderr) == (-signal.SIGTERM, "")
    check_ended(repo, result, "SUCCESS")


def test_sys_exit_looks_like_the_one_it_wraps(repo):
    result = repo.run(
        """
        import copy, inspect, pickle, sys, traceback
        plain = sys.exit
        import meticulous
        experiment = meticulous.Experiment()
        assert sys.exit is not plain
        for name in ("__name__", "__qualname__", "__doc__", "__module__"):
            assert getattr(sys.exit, name) == getattr(plain, name), name
        if sys.version_info >= (3, 8):
            assert inspect.signature(sys.exit) == inspect.signature(plain)

        def catch(exit, *arguments):
            try:
                try:
                    1 / 0
                finally:
                    exit(*arguments)
            except SystemExit as error:
                return error

        class Own(SystemExit):
            pass

        for arguments in [(), (3,), ("text",), ((1, 2),), (None,), (Own(3),)]:
            one, other = catch(sys.exit, *arguments), catch(plain, *arguments)
            assert isinstance(one, SystemExit)
            for look in (repr, str, vars, lambda e: e.args, lambda e: e.code, lambda e: repr(e.__context__)):
                assert look(one) == look(other), arguments
            assert traceback.format_exception_only(type(one), one) == traceback.format_exception_only(
                type(other), other
            )
            assert one.__cause__ is None and not one.__suppress_context__
            assert repr(pickle.loads(pickle.dumps(one))) == repr(copy.copy(one)) == repr(other)
        one.code = 5
        assert one.code == 5
        for exit in (plain, sys.exit):
            try:
                exit(1, 2)
            except TypeError as error:
                print(error)
        """
    )
    assert result.code == 0, result
    assert len(set(result.stdout.splitlines())) == 1


# name, exit code of the child, last line of the record that it makes itself, what it does
CHILDREN = [
    ("ends", 0, None, ""),
    ("prints", 0, None, "print('child')"),
    ("exits", 5, None, "sys.exit(5)"),
    ("raises", 1, None, "1 / 0"),
    ("is killed", -signal.SIGTERM, None,
     "import signal, time; os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)"),
    ("finishes", 0, None, "experiment.finish()"),
    ("finishes with ERROR", 0, None, "experiment.finish('ERROR')"),
    ("records its own", 0, "SUCCESS", "with Experiment(): print('child')"),
    ("leaves its own open", 5, "sys.exit(5)", "own = Experiment(); sys.exit(5)"),
    ("forks a daemon", 0, None, "if os.fork(): os._exit(0)\n    os.setsid()\n    if os.fork(): os._exit(0)"),
]  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize(
    "code, reason, source", [child[1:] for child in CHILDREN], ids=[c[0] for c in CHILDREN]
)
def test_a_forked_child_leaves_the_record_alone(repo, code, reason, source):
    result = repo.run(
        f"""{START}
sys.stdout.flush()
def read():
    names = sorted(name for name in os.listdir(experiment.curexpdir) if not name.startswith("std"))
    return [(name, open(os.path.join(experiment.curexpdir, name)).read()) for name in names]
before = read()
assert ("STATUS", "RUNNING") in before
child = os.fork()
if child == 0:
    {source}
    sys.exit()
status = os.waitpid(child, 0)[1]
code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
assert code == {code}, code
assert read() == before
sys.exit(3)
"""
    )
    assert result.code == 3, result
    assert result.stderr.count(TRACEBACK) == (code == 1)
    check_ended(repo, result, "sys.exit(3)")
    if reason:
        check_ended(repo, result, reason, 2)
    assert (repo.experiment(1) / "stdout").read_text().count("last words") == 1
    assert result.stdout.count("last words") == 1


METHODS = ["fork", "spawn", "forkserver"]
MULTIPROCESSING = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from meticulous import Experiment

def work(number):
    return number + 1

def end(number):
    sys.exit(number)

def own(number):
    with Experiment(dict(number=number)) as experiment:
        print("task", number)
        experiment.summary(result=number + 1)
    return experiment.curexpdir

def wait(began):
    began.set()
    time.sleep(60)

def leave_open(how, began):
    global experiment
    experiment = Experiment(dict(how=how))
    if how == "raises":
        raise ValueError(how)
    if how == "exits":
        sys.exit(3)
    if how == "waits":
        wait(began)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    killed = 255 if sys.version_info < (3, 7) and sys.argv[1] == "forkserver" else -15  # Python's own mistake
    {body}
"""


@pytest.mark.parametrize("method", METHODS)
class TestMultiprocessing:
    def run(self, repo, method, *lines):
        return repo.run(MULTIPROCESSING.format(body="\n    ".join(lines)), method)

    @pytest.mark.slow
    def test_children_change_nothing_in_the_record(self, repo, method):
        result = self.run(
            repo,
            method,
            "experiment = Experiment()",
            "path = os.path.join(experiment.curexpdir, 'metadata.json')",
            "before = open(path).read()",
            "with context.Pool(2) as pool: assert pool.map(work, range(9)) == list(range(1, 10))",
            "if sys.version_info >= (3, 7):",
            "    with ProcessPoolExecutor(2, mp_context=context) as pool: list(pool.map(work, range(9)))",
            "child = context.Process(target=end, args=(3,))",
            "child.start(); child.join()",
            "assert child.exitcode == 3",
            "began = context.Event()",
            "child = context.Process(target=wait, args=(began,))",
            "child.start(); began.wait(); child.terminate(); child.join()",
            "assert child.exitcode == killed",
            "assert open(path).read() == before",
            "signals = os.path.join(experiment.curexpdir, '.signals')",
            "assert not os.path.exists(signals) or os.path.getsize(signals) == 0",
            "print('last words')",
            "sys.exit(4)",
        )
        assert (result.code, result.stdout, result.stderr) == (4, "last words\n", "")
        check_ended(repo, result, "sys.exit(4)")
        assert sorted(path.name for path in repo.experiment(1).parent.glob("[0-9]*")) == ["1"]

    def test_each_task_may_record_its_own(self, repo, method):
        result = self.run(
            repo, method, "with context.Pool(2) as pool: assert len(set(pool.map(own, range(4), 1))) == 4"
        )
        assert (result.code, result.stderr) == (0, "")
        for number in range(1, 5):
            check_ended(repo, result, "SUCCESS", number)
            summary = json.loads((repo.experiment(number) / "summary.json").read_text())
            assert (repo.experiment(number) / "stdout").read_text() == f"task {summary['result'] - 1}\n"

    def test_a_child_that_leaves_its_own_open(self, repo, method):
        result = self.run(
            repo,
            method,
            "began = context.Event()",
            "for how, code in [('returns', 0), ('raises', 1), ('exits', 3), ('waits', killed)]:",
            "    child = context.Process(target=leave_open, args=(how, began))",
            "    child.start()",
            "    if how == 'waits': began.wait(); child.terminate()",
            "    child.join()",
            "    assert child.exitcode == code, (how, child.exitcode)",
        )
        assert result.code == 0, result
        check_ended(repo, result, "SUCCESS", 1)
        # From Python 3.13 on nobody is told of the exception before it is gone.
        reason = "ValueError: raises"
        if sys.version_info >= (3, 13):
            assert reason in (repo.experiment(2) / "stderr").read_text()
            reason = "The child process ended with exit code 1; what it showed is in stderr."
        check_ended(repo, result, reason, 2)
        check_ended(repo, result, "sys.exit(3)", 3)
        check_ended(repo, result, killed_by(signal.SIGTERM), 4)


@pytest.mark.skipif(sys.version_info < (3, 7), reason="Python 3.6 can lose a signal that comes during a fork")
def test_a_child_that_is_killed_as_soon_as_it_is_forked(repo):
    lines = (
        "experiment = Experiment()",
        "for _ in range(50):",
        "    child = context.Process(target=time.sleep, args=(30,))",
        "    child.start(); child.terminate(); child.join()",
        "    assert child.exitcode == -15",
        "signals = os.path.join(experiment.curexpdir, '.signals')",
        "assert not os.path.exists(signals) or os.path.getsize(signals) == 0",
    )
    result = repo.run(MULTIPROCESSING.format(body="\n    ".join(lines)), "fork")
    assert (result.code, result.stderr) == (0, "")
    check_ended(repo, result, "SUCCESS")


def test_a_subprocess_is_not_the_one_that_began(repo):
    child = "import sys; print('child'); sys.exit(5)"
    result = repo.run(
        START + f"import subprocess\nassert subprocess.call([sys.executable, '-c', {child!r}]) == 5",
    )
    assert (result.code, result.stderr) == (0, "")
    check_ended(repo, result, "SUCCESS")


PROFILED = ["-m", "cProfile", "-o", "profile", "script.py"]
INTERPRETERS = {
    "-c ends": (["-c", START], None, 0, "SUCCESS"),
    "-c exits": (["-c", START + "sys.exit(3)"], None, 3, "sys.exit(3)"),
    "-c raises": (["-c", START + "1 / 0"], None, 1, DIVISION),
    "-m ends": (["-m", "script"], START, 0, "SUCCESS"),
    "-m exits": (["-m", "script"], IN_MAIN.format(3) + "sys.exit(main())", 3, "sys.exit(3)"),
    "-m raises SystemExit": (["-m", "script"], IN_MAIN.format(3) + "raise SystemExit(main())", 3, at_top(3)),
    "-m raises": (["-m", "script"], START + "1 / 0", 1, DIVISION),
    "profiler ends": (PROFILED, START, 0, "SUCCESS"),
    "profiler catches the exit": (PROFILED, START + "sys.exit(3)", 0, "sys.exit(3)"),
    "profiler raises": (PROFILED, START + "1 / 0", 1, DIVISION),
    "-OO": (["-OO", "script.py"], START + "sys.exit(3)", 3, "sys.exit(3)"),
    "-S": (["-S", "script.py"], START + "sys.exit(3)", 3, "sys.exit(3)"),
}


@pytest.mark.parametrize("name", INTERPRETERS)
def test_ways_to_start_a_script(repo, name):
    arguments, source, code, reason = INTERPRETERS[name]
    if source is not None:
        repo.write("script.py", source)
        repo.commit("Add a script")
    result = run_python(repo, *arguments)
    assert result.returncode == code, result
    check_ended(repo, result, reason)
    assert result.stdout == b"last words\n"


def run_python(repo, *arguments, **keywords):
    return subprocess.run(
        [sys.executable] + list(arguments),
        cwd=str(repo.path),
        env=repo.environment({"TERM": "dumb"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        timeout=60,
        **keywords,
    )


SHELLS = {
    "ends": ("", 0, "SUCCESS"),
    "a mistake, then ends": ("1 / 0", 0, "SUCCESS"),
    "exits": ("sys.exit(3)", 3, "sys.exit(3)"),
    "exit()": ("exit(4)", 4, "sys.exit(4)"),
    "a caught exit, then ends": ("try: sys.exit(3)\nexcept SystemExit: pass\n", 0, "SUCCESS"),
}


@pytest.mark.parametrize("name", SHELLS)
def test_an_interactive_shell(repo, name):
    source, code, reason = SHELLS[name]
    result = run_python(repo, "-i", "-q", input=(START + source + "\n").encode())
    assert result.returncode == code, result
    check_ended(repo, result, reason)


def test_a_main_module_that_runs_cells(repo):
    """As Jupyter's kernel does: it catches what the cells raise, and ends long after them."""
    result = repo.run(
        """
        import io, sys, traceback
        def run_cell(source, namespace={"__name__": "__main__"}):
            try:
                exec(compile(source, "<cell>", "exec"), namespace)
            except BaseException:
                sys.last_type, sys.last_value, sys.last_traceback = sys.exc_info()
                traceback.print_exc()
        def main():
            sys.stdout = io.StringIO()
            run_cell("import sys; from meticulous import Experiment; experiment = Experiment()")
            run_cell("print('hello')")
            run_cell("1 / 0")
            run_cell("sys.exit(3)")
            run_cell("assert open(experiment.curexpdir + '/STATUS').read() == 'RUNNING'; print('last words')")
        main()
        """
    )
    assert result.code == 0 and result.stderr.count(TRACEBACK) == 2, result
    check_ended(repo, result, "SUCCESS")
    assert (repo.experiment(1) / "stdout").read_text() == "hello\nlast words\n"


def test_a_test_runner_that_goes_on(repo):
    """As in pytest: the streams are other ones for each test, and a SystemExit is a result, not the end."""
    repo.write(
        "test_training.py",
        """
import sys, pytest
from meticulous import Experiment
def test_one():
    with pytest.raises(SystemExit):
        global experiment
        experiment = Experiment()
        print("one")
        sys.exit(3)
def test_two():
    print("two")
    assert (open(experiment.curexpdir + "/STATUS").read()) == "RUNNING"
    with Experiment(): print("inner")
    experiment.finish()
""",
    )
    repo.commit("Add tests")
    result = run_python(repo, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_training.py")
    assert result.returncode == 0, result
    check_ended(repo, result, "SUCCESS", 1)
    check_ended(repo, result, "SUCCESS", 2)


@pytest.mark.parametrize(
    "end, code", [("", 0), ("sys.exit(3)", 3), ("1 / 0", 1)], ids=["end", "exit", "raise"]
)
def test_our_own_errors_at_the_end_change_nothing(repo, end, code):
    result = repo.run(START + "import shutil; shutil.rmtree(experiment.curexpdir)\n" + end)
    assert result.code == code
    assert 1 <= result.stderr.count("meticulous: ") <= 2, result
    assert result.stderr.count(TRACEBACK) == (code == 1)


def test_an_experiment_made_in_a_thread_is_ended_too(repo):
    result = repo.run(
        """
        import sys, threading
        from meticulous import Experiment
        thread = threading.Thread(target=Experiment)
        thread.start()
        thread.join()
        sys.exit(3)
        """
    )
    assert (result.code, result.stderr) == (3, "")
    check_ended(repo, result, "sys.exit(3)")


# An own launcher looks sys.exit up before the script is run, as coverage and kernprof do.
LAUNCHER = """
import sys
from sys import exit
script = sys.argv.pop(1)
with open(script) as file:
    code = compile(file.read(), script, "exec")
try:
    exec(code, {"__name__": "__main__", "__file__": script})
except SystemExit as error:
    exit(error.code)
except Exception:
    exit(1)
exit(0)
"""
LAUNCHERS = {
    "own launcher": ["launcher.py"],
    "pdb": ["-m", "pdb", "-c", "continue"],
    "profiler": ["-m", "cProfile", "-o", "profile"],
    "coverage": ["-m", "coverage", "run", "--data-file=coverage-data"],
    "IPython": ["-m", "IPython"],
}
LAUNCHED_ENDS = {
    "ends": ("", "SUCCESS"),
    "exits with 0": ("sys.exit(0)", "SUCCESS"),
    "exits with 3": ("sys.exit(3)", "sys.exit(3)"),
    "raises": ("1 / 0", re.compile(".*(division by zero|An exception left .*:[0-9]+; .*)")),
}


@pytest.mark.parametrize("end", LAUNCHED_ENDS)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_script_counts_and_not_the_program_that_runs_it(repo, launcher, end):
    if "-m" in LAUNCHERS[launcher]:
        pytest.importorskip(LAUNCHERS[launcher][1], reason="this interpreter does not have it")
    source, reason = LAUNCHED_ENDS[end]
    repo.write("launcher.py", LAUNCHER)
    repo.write("script.py", START + "def main():\n    experiment.summary(done=True)\nmain()\n" + source)
    repo.commit("Add a launcher")
    run_python(repo, *LAUNCHERS[launcher], "script.py", input=b"")
    if launcher == "IPython" and end == "exits with 3" and sys.version_info < (3, 8):
        reason = "sys.exit(1)"  # IPython 7 exits with 1, whatever the script's code was
    check_ended(repo, "", reason)


@pytest.mark.parametrize("end", LAUNCHED_ENDS)
def test_a_test_runner_that_leaves_an_experiment_open(repo, end):
    source, reason = LAUNCHED_ENDS[end]
    repo.write(
        "test_training.py",
        f"import sys\nfrom meticulous import Experiment\ndef test():\n    Experiment()\n    {source}",
    )
    repo.commit("Add a test")
    result = run_python(repo, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_training.py")
    check_ended(repo, result, reason)


@pytest.mark.parametrize("end", LAUNCHED_ENDS)
@pytest.mark.parametrize(
    "monkey", ["", "from gevent import monkey; monkey.patch_all()\n"], ids=["greenlet", "gevent"]
)
def test_an_experiment_made_in_a_greenlet(repo, end, monkey):
    pytest.importorskip("gevent", reason="this interpreter does not have it")
    source, reason = LAUNCHED_ENDS[end]
    result = repo.run(
        monkey
        + "import gevent, sys\nfrom meticulous import Experiment\ngevent.spawn(Experiment).join()\n"
        + source
    )
    check_ended(repo, result, reason)


@pytest.mark.parametrize(
    ("last", "reason"), [("2", "SUCCESS"), ("1 / 0", DIVISION)], ids=["succeeds", "fails"]
)
def test_the_last_cell_of_an_ipython_shell_counts(repo, last, reason):
    pytest.importorskip("IPython", reason="this interpreter does not have it")
    cells = [
        "from meticulous import Experiment; experiment = Experiment()",
        "0 / 0",
        "print('second cell')",
        last,
    ]
    result = run_python(repo, "-m", "IPython", "--simple-prompt", input="\n".join(cells).encode())
    check_ended(repo, result, reason)
    assert "second cell" in (repo.experiment(1) / "stdout").read_text()


def test_a_second_run_in_an_embedded_python(repo):
    """As PyRun_SimpleString does it: code.InteractiveInterpreter would catch, exec in the same frame would not end."""
    source = """
import ctypes
run = ctypes.pythonapi.PyRun_SimpleString
run(b"from meticulous import Experiment; Experiment()")
run(b"1 / 0")
import os; os._exit
"""
    repo.write("embedding.py", source)
    repo.commit("Embed")
    run_python(repo, "-c", source)
    assert (repo.experiment(1) / "STATUS").exists()


def test_a_handler_that_another_one_calls_does_nothing(repo):
    """Lightning calls the handler that was there before its own, and saves its checkpoint after that."""
    result = repo.run(
        START
        + """
import signal
before = signal.getsignal(signal.SIGTERM)
def save(signum, frame):
    if callable(before):
        before(signum, frame)
    print("saved", flush=True)
    sys.exit(5)
signal.signal(signal.SIGTERM, save)
os.kill(os.getpid(), signal.SIGTERM)
"""
    )
    assert (result.code, result.stdout) == (5, "last words\nsaved\n"), result
    check_ended(repo, result, "sys.exit(5)")


def test_a_handler_of_faulthandler_that_the_user_registers_stays(repo):
    source = "import faulthandler, signal\nfaulthandler.register(signal.SIGTERM, file=open('stacks', 'w'))\n"
    result = repo.run(
        START + source + "experiment.finish()\nos.kill(os.getpid(), signal.SIGTERM)\nprint('alive')"
    )
    assert (result.code, "script.py" in (repo.path / "stacks").read_text()) == (0, True), result
    assert result.stdout == "last words\nalive\n"


@pytest.mark.skipif(
    sys.version_info < (3, 8), reason="Python 3.6 and 3.7 exit with 1 after Ctrl-C, as without us"
)
@pytest.mark.parametrize(
    "hook", ["eval('1')", "import csv", "from collections import namedtuple as n; n('A', 'b')"]
)
def test_ctrl_c_ends_with_the_signal_though_a_hook_of_the_user_runs_code(repo, hook):
    source = f"import atexit\ndef hook():\n    {hook}\natexit.register(hook)\n"
    result = repo.run(source + START + "os.kill(os.getpid(), 2)\nimport time; time.sleep(60)")
    assert result.code in (-signal.SIGINT, 1), result
    if "atexit.register" in START:
        assert result.code == -signal.SIGINT
    check_ended(repo, result, "KeyboardInterrupt")


def test_ctrl_c_several_times_while_the_end_is_written(repo):
    result = repo.run(
        START
        + """
real = os.replace
def replace(source, target):
    os.kill(os.getpid(), 2)
    real(source, target)
os.replace = replace
os.kill(os.getpid(), 2)
import time; time.sleep(60)
"""
    )
    status = check_ended(repo, result, "KeyboardInterrupt")
    assert status.count(TRACEBACK) == 1


def test_importing_the_file_does_not_change_the_type_of_a_system_exit(repo):
    source = """
import sys, meticulous
def type_of_exit():
    try:
        sys.exit(1)
    except SystemExit as error:
        return type(error)
assert type_of_exit() is SystemExit
with meticulous.Experiment(): assert issubclass(type_of_exit(), SystemExit)
assert type_of_exit() is SystemExit
assert not hasattr(sys.exit, "__wrapped__")
"""
    result = repo.run(source)
    assert result.code == 0, result


def test_a_child_forked_while_another_thread_ends_an_experiment_hears_sigterm(repo):
    source = """
import os, signal, sys, threading
from meticulous import Experiment
first, second = Experiment(), Experiment()
in_replace, go_on = threading.Event(), threading.Event()
real = os.replace
def replace(source, target):
    in_replace.set()
    go_on.wait()
    real(source, target)
os.replace = replace
thread = threading.Thread(target=second.finish)
thread.start()
in_replace.wait()
child = os.fork()
if not child:
    signal.pause()
    os._exit(0)
os.kill(child, signal.SIGTERM)
print(os.waitpid(child, 0)[1])
go_on.set()
thread.join()
"""
    result = repo.run(source)
    assert result.stdout == f"{int(signal.SIGTERM)}\n", result
    check_ended(repo, result, "SUCCESS", 2)


def test_exit_in_a_handler_has_the_exception_above_and_names_both(repo):
    result = repo.run(START + "try:\n    open('nowhere')\nexcept OSError:\n    sys.exit('cannot read')\n")
    status = check_ended(
        repo,
        result,
        "sys.exit('cannot read') after FileNotFoundError: [Errno 2] No such file or directory: 'nowhere'",
    )
    assert status.count(TRACEBACK) == 1 and "open('nowhere')" in status
