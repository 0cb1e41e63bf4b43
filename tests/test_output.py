"""Recording is invisible: whoever prints has the same stream, whatever happens to the files."""

import fcntl
import io
import os
import pty
import random
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import textwrap
import threading
import time
from contextlib import contextmanager, redirect_stdout

import pytest
from conftest import SEND_AT_LINE

import meticulous

IMPORTS = "import os, signal, sys, time\nFOLDER = os.environ.get('FOLDER')\n"
# Where a program has this line, its experiment begins; otherwise at its top.
START = "# --- start ---\n"
PRELUDE = """\
if FOLDER:
    import meticulous
    directory, name = os.path.split(FOLDER)
    own = dict(project_directory=os.environ["PROJECT"], experiments_directory=directory)
    experiment = meticulous.Experiment(experiment_id=name, **own)
def kill_me():
    os.kill(os.getpid(), signal.SIGKILL)
"""
IS_36 = sys.version_info < (3, 7)


class Ended:
    """What a program left: .code, .out and .err on its pipes or terminal, .stdout and .stderr in files."""

    def __init__(self, code, out, err, folder):
        self.code, self.out, self.err = code, out, err
        self.stdout = (folder / "stdout").read_bytes() if (folder / "stdout").is_file() else None
        self.stderr = (folder / "stderr").read_bytes() if (folder / "stderr").is_file() else None

    def __repr__(self):
        return f"{vars(self)}"


class Lab:
    """Runs programs in real interpreters, recorded or not, on pipes or on a real pseudo-terminal."""

    def __init__(self, folder, repo):
        self.folder = folder
        self.repo = repo
        self.records = folder / "experiments" / "1"

    def _start(self, source, env, options, recorded, keywords):
        source = textwrap.dedent(source)
        source = source.replace(START, PRELUDE) if START in source else PRELUDE + source
        (self.folder / "program.py").write_text(IMPORTS + source, encoding="utf-8")
        environment = self.repo.environment({"TERM": "xterm", "COLUMNS": "80", "LINES": "24"})
        environment.update(LC_ALL="C.UTF-8", FOLDER=str(self.records) if recorded else "")
        environment.update(env, PROJECT=str(self.repo.path))
        command = [sys.executable] + list(options) + ["program.py"]
        return subprocess.Popen(command, cwd=str(self.folder), env=environment, **keywords)

    def run(self, source, env=(), options=(), recorded=True, stdin=b"", **keywords):
        """Run *source* on pipes."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        pipes.update(keywords)
        process = self._start(source, dict(env), options, recorded, pipes)
        try:
            out, err = process.communicate(stdin, timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return Ended(process.returncode, out, err, self.records)

    def run_on_terminal(self, source, env=(), options=(), recorded=True, stdin=b""):
        """Run *source* on a pseudo-terminal of its own; each line of *stdin* is typed at a "> "."""
        master, slave = pty.openpty()
        settings = termios.tcgetattr(slave)
        settings[1] &= ~termios.OPOST  # what the program writes, and not "\r\n" for every "\n"
        termios.tcsetattr(slave, termios.TCSANOW, settings)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))

        def become_terminal():
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        keywords = {"stdin": slave, "stdout": slave, "stderr": slave, "preexec_fn": become_terminal}
        process = self._start(source, dict(env), options, recorded, keywords)
        os.close(slave)
        try:
            out = converse(master, stdin.splitlines(keepends=True))
        finally:
            os.close(master)
            process.kill()
            process.wait()
        return Ended(process.returncode, out, b"", self.records)

    def compare(self, source, on_terminal=False, **keywords):
        """Run *source* without and with recording, which must print the same; return how the latter ended."""
        run = self.run_on_terminal if on_terminal else self.run
        without = run(source, recorded=False, **keywords)
        recorded = run(source, **keywords)
        assert (recorded.code, recorded.out, recorded.err) == (without.code, without.out, without.err)
        assert recorded.out or recorded.err, "the program printed nothing"
        return recorded


def converse(master, lines):
    """Type a line at every prompt that ends in "> " or ": ", and return all that came."""
    out = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not select.select([master], [], [], 60)[0]:
            break
        try:
            data = os.read(master, 65536)
        except OSError:  # EIO: the last process that had the terminal has gone
            return out
        if not data:
            return out
        out += data
        if lines and re.search(rb"(> |: |\(Pdb\) )(\x1b\[[?0-9;]*[a-z])*$", out):
            os.write(master, lines.pop(0))
    raise AssertionError(f"the program hangs after {out!r}")


@pytest.fixture
def lab(tmp_path, repo):
    return Lab(tmp_path, repo)


@pytest.fixture
def mount_tmpfs(tmp_path):
    """Give a function that mounts a small file system of its own; skip where that is not allowed."""
    mounted = []

    def mount(options):
        folder = tmp_path / f"mount{len(mounted)}"
        folder.mkdir()
        if os.geteuid() or subprocess.call(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]):
            pytest.skip("only root, with mount(8) on Linux, can make a full disk")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.check_call(["umount", "--lazy", str(folder)])


def start_capture(folder):
    folder.mkdir(exist_ok=True)
    capture = meticulous._Capture(str(folder))
    capture.start(str(folder))
    return capture


@contextmanager
def record(folder):
    """Record this very process, whose sys.stdout and sys.stderr are text streams on a file meanwhile."""
    before = sys.stdout, sys.stderr
    with open(str(folder / "terminal"), "w", encoding="utf-8") as sys.stdout:
        sys.stderr = sys.stdout
        try:
            capture = start_capture(folder)
            yield capture
            capture.close()
        finally:
            sys.stdout, sys.stderr = before


# Whoever prints does not notice.

PROGRAMS = {
    "attributes": """
        for stream in (sys.stdout, sys.stderr):
            print(stream.isatty(), stream.fileno(), stream.encoding, stream.errors, stream.mode, stream.name)
            print(stream.newlines, stream.line_buffering, stream.readable(), stream.writable(), stream.closed)
            print(stream.seekable(), stream.buffer.name, stream.buffer.mode, stream.buffer.raw.fileno())
            print(sorted(name for name in ("reconfigure", "detach", "softspace") if hasattr(stream, name)))
            print(sys.stdout.write("four"), sys.stdout.buffer.write(b"five5"), sys.stdout.flush())
            import io, weakref
            print(isinstance(stream, io.TextIOWrapper), isinstance(stream.buffer, io.BufferedWriter))
            print(weakref.ref(stream)() is stream, stream.buffer is stream.buffer, stream in {stream})
        """,
    "errors": """
        for call in (lambda: sys.stdout.write(b"x"), lambda: sys.stdout.nothing, lambda: sys.stdout.read(),
                     lambda: sys.stdout.seek("x"),
                     lambda: sys.stdout.buffer.write("x"), lambda: __import__("copy").copy(sys.stdout),
                     lambda: sys.stdout.writelines(5), lambda: setattr(sys.stdout, "encoding", "x")):
            try:
                call()
            except Exception as error:
                print(type(error).__name__, str(error).split("(")[0][:18])
        """,
    "set and delete an attribute": """
        sys.stdout.note = "mine"
        print(sys.stdout.note)
        del sys.stdout.note
        print(hasattr(sys.stdout, "note"))
        write, written = sys.stdout.write, []
        sys.stdout.write = written.append
        print("not seen")
        sys.stdout.write = write
        print(len(written))
        """,
    "with and close": """
        with sys.stdout as stream:
            stream.write("in a block")
        assert sys.stdout.closed
        print("to nobody", file=sys.stderr)
        """,
    "writelines and buffer": """
        sys.stdout.writelines(["one ", "two\\n"])
        sys.stdout.flush()
        sys.stdout.buffer.writelines([b"three ", bytearray(b"four\\n"), memoryview(b"\\xff\\n")])
        """,
    "new text stream on the buffer": """
        import io
        sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8", line_buffering=True)
        print("gr\\u00fc\\u00dfe")
        sys.stdout = io.TextIOWrapper(sys.stdout.detach(), encoding="utf-8")
        print("again")
        """,
    "detach": """
        import codecs
        sys.stdout = codecs.getwriter("utf-8")(sys.stdout.detach())
        print("gr\\u00fc\\u00dfe")
        """,
    "warnings": """
        import warnings
        warnings.warn("old")
        """,
    "logging": """
        import logging
        logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO)
        logging.info("from the root")
        try:
            1 / 0
        except ZeroDivisionError:
            logging.exception("it broke")
        """,
    "traceback": "def f():\n    raise ValueError('bad')\nprint('before')\nf()\n",
    "sys.exit with a text": "sys.exit('no such file')",
    "argparse": "import argparse\nargparse.ArgumentParser(prog='p').parse_args(['--what'])",
    "faulthandler": """
        import faulthandler
        faulthandler.enable()
        faulthandler.disable()
        faulthandler.dump_traceback(all_threads=False)
        """,
    "redirect_stdout": """
        import contextlib, io
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            print("inside")
        with contextlib.redirect_stdout(sys.stderr):
            print("crossed")
        print(text.getvalue())
        """,
    "subprocess": """
        import subprocess
        print("before", flush=True)
        subprocess.check_call([sys.executable, "-c", "print('child')"], stdout=sys.stdout, stderr=sys.stderr)
        print("after")
        """,
    "input": "print(repr(input('> ')))\nprint(repr(input('> ')))\n",
    "pdb": """
        import pdb
        answer = 42
        pdb.set_trace()
        print("done")
        """,
    "getpass": """
        import getpass, warnings
        warnings.simplefilter("ignore")
        print(repr(getpass.getpass("word: ")))
        """,
    "click": """
        import click
        click.echo("plain \\u2713")
        click.secho("green", fg="green")
        click.echo(b"bytes")
        click.echo("to stderr", err=True)
        with click.progressbar(range(3), label="work") as bar:
            for _ in bar:
                pass
        print(click.prompt("word", default="x"))
        """,
    "rich": """
        from rich.console import Console
        from rich.table import Table
        from rich.progress import BarColumn, Progress
        import rich
        rich.print("[bold red]alert[/]", {"a": 1})
        table = Table("name", "value")
        table.add_row("lr", "0.1")
        Console().print(table)
        with Progress("{task.description}", BarColumn(), auto_refresh=False) as progress:
            task = progress.add_task("work", total=3)
            for _ in range(3):
                progress.advance(task)
                progress.refresh()
                print("while it runs")
        """,
    "tqdm": """
        from tqdm import tqdm, trange
        for epoch in trange(2, bar_format="{desc}{n}/{total}", mininterval=0, position=0):
            for _ in trange(3, bar_format="{n}/{total}", mininterval=0, position=1, leave=False):
                pass
            tqdm.write("epoch %d" % epoch)
        for _ in tqdm(range(3), file=sys.stdout, bar_format="{l_bar}{bar}{n}", mininterval=0, ascii=True):
            pass
        """,
    "ipython": """
        import IPython, tempfile
        os.environ["IPYTHONDIR"] = tempfile.mkdtemp()
        IPython.start_ipython(argv=["--simple-prompt", "--no-banner", "--colors=NoColor", "--no-confirm-exit",
                                    "--HistoryManager.enabled=False", "--quick"])
        """,
}
TYPED = {
    "input": b"first\nsecond\n",
    "pdb": b"p answer\nw\nc\n",
    "getpass": b"secret\n",
    "click": b"typed\n",
    "ipython": b"6 * 7\nprint('hello')\n1 / 0\nexit\n",
}


# Progress bars are folded; what goes to a descriptor does not pass through sys.stdout.
NOT_ALL_IN_THE_FILES = ("click", "faulthandler", "redirect_stdout", "rich", "subprocess", "tqdm")


@pytest.mark.parametrize("on_terminal", [False, True], ids=["pipes", "terminal"])
@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_the_terminal_gets_the_same_bytes(lab, name, on_terminal):
    if name == "ipython" and IS_36:
        pytest.skip("IPython is not among the tests' packages for Python 3.6")
    ended = lab.compare(PROGRAMS[name], on_terminal=on_terminal, stdin=TYPED.get(name, b""))
    if not on_terminal and name not in NOT_ALL_IN_THE_FILES:
        # Sorted, because text waits in the terminal's stream while bytes for .buffer overtake it.
        assert sorted(ended.stdout + ended.stderr) == sorted(ended.out + ended.err)


@pytest.mark.parametrize("options", [(), ("-u",), ("-X", "dev")], ids=["plain", "-u", "-X dev"])
def test_text_and_bytes_are_recorded_in_the_order_of_writing(lab, options):
    ended = lab.run(
        """
        print("text 1", end=" ")
        sys.stdout.buffer.write(b"bytes \\xff 2 ")
        sys.stdout.buffer.write(memoryview(b"\\xc3"))
        sys.stdout.buffer.write(b"\\xa9")
        sys.stdout.writelines([" text 3\\n"])
        """,
        options=options,
    )
    assert ended.stdout == b"text 1 bytes \xff 2 \xc3\xa9 text 3\n"
    assert b"Warning" not in ended.err


def test_reconfigure_works_on_the_stream_below(lab):
    if IS_36:
        pytest.skip("Python 3.6 has no reconfigure")
    source = "sys.stdout.reconfigure(encoding='latin-1', errors='replace')\nprint('\\u00fc\\u20ac')"
    ended = lab.compare(source)
    assert ended.out == b"\xfc?\n" and ended.stdout == "\u00fc\u20ac\n".encode()


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("how", ["sys.{} = None", "sys.{}.close()"], ids=["None", "closed"])
def test_a_stream_that_is_not_there_is_no_reason_to_fail(lab, name, how):
    source = f"""
        {how.format(name)}
        experiment = meticulous.Experiment(experiment_id="2", **own)
        other = sys.stdout if {name!r} == "stderr" else sys.stderr
        print("recorded", file=other)
        experiment.finish()
        """
    ended = lab.run(source)
    assert ended.code == 0 and ended.stdout + ended.stderr == b"recorded\n", ended


def test_descriptors_closed_by_the_shell_are_no_reason_to_fail(lab):
    ended = lab.run("print('lost')", preexec_fn=lambda: os.close(1))
    assert (ended.code, ended.err) == (0, b"")


def test_a_broken_pipe_is_as_without_us(lab):
    source = "for i in range(200000): print(i)"
    results = []
    for recorded in (False, True):
        reading, writing = os.pipe()
        os.close(reading)
        ended = lab.run(source, stdout=writing, recorded=recorded)
        os.close(writing)
        results.append((ended.code, ended.err.splitlines()[-1]))
    assert results[0] == results[1]
    assert results[0][0] != 0 and results[0][1] == b"BrokenPipeError: [Errno 32] Broken pipe"


# The file is UTF-8.


@pytest.mark.parametrize(
    "encoding", ["ascii:strict", "ascii:replace", "latin-1:namereplace", "utf-16:strict"]
)
def test_the_terminals_encoding_fails_or_replaces_as_without_us(lab, encoding):
    source = """
        for text in ("plain", "gr\\u00fcn", "\\u20ac", "\\udce9"):
            try:
                print(text)
            except UnicodeEncodeError as error:
                print(error)
        """
    ended = lab.compare(source, env={"PYTHONIOENCODING": encoding})
    ended.stdout.decode("utf-8")
    if encoding == "ascii:replace":
        assert ended.stdout == "plain\ngr\u00fcn\n\u20ac\n\\udce9\n".encode()


def test_lone_surrogates_never_raise_in_our_file(lab):
    ended = lab.run("print('a\\ud800b'); print('\\udcff')", env={"PYTHONIOENCODING": "utf-8:surrogatepass"})
    assert (ended.code, ended.stdout) == (0, b"a\\ud800b\n\\udcff\n")


class HalfRaw(io.RawIOBase):
    """A raw stream that takes half of what it gets, and forgets it."""

    def writable(self):
        return True

    def write(self, data):
        return (len(data) + 1) // 2


def test_of_bytes_only_those_that_the_stream_took_are_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(HalfRaw(), write_through=True))
    capture = start_capture(tmp_path)
    assert sys.stdout.buffer.write(b"12345678") == 4
    capture.close()
    assert (tmp_path / "stdout").read_bytes() == b"1234"


def test_a_stream_that_takes_anything_may_get_anything(lab):
    source = """
        class Any:
            flush = sys.stdout.flush
            def write(self, thing):
                sys.__stdout__.write(str(thing))
        experiment.finish()
        sys.stdout = Any()
        experiment = meticulous.Experiment(experiment_id="2", **own)
        sys.stdout.write(5)
        print("text")
        experiment.finish()
        """
    ended = lab.run(source)
    assert (ended.code, ended.out) == (0, b"5text\n"), ended
    assert (lab.records.parent / "2" / "stdout").read_bytes() == b"5text\n"


# Durable and cheap at once.


@pytest.mark.parametrize("lines", [1, 100], ids=["a line", "a burst"])
def test_lines_are_in_the_file_when_print_returns(lab, lines):
    ended = lab.run(f"for i in range({lines}): print('line', i)\nkill_me()")
    assert ended.code == -signal.SIGKILL
    assert ended.stdout.decode() == "".join(f"line {i}\n" for i in range(lines))


def test_a_traceback_soon_after_a_flood_is_in_the_file_when_it_was_printed(lab):
    source = """
        end = time.monotonic() + 0.2
        while time.monotonic() < end:
            print("flood")
        time.sleep(0.05)
        for i in range(100):
            print("report", i)
        kill_me()
        """
    ended = lab.run(source, stdout=subprocess.DEVNULL)
    assert ended.stdout.endswith("".join(f"report {i}\n" for i in range(100)).encode())


def test_a_flood_is_written_every_ten_milliseconds(lab):
    source = """
        for i in range(5000):
            print("before", i)
        time.sleep(0.011)
        print("after")
        kill_me()
        """
    ended = lab.run(source, stdout=subprocess.DEVNULL)
    lines = ended.stdout.splitlines()
    assert len(lines) == 5001 and lines[-1] == b"after"


COUNT_WRITES = """
sizes = []
def count(descriptor, data, write=os.write):
    sizes.append(len(data))
    return write(descriptor, data)
os.write = count
"""


def test_a_line_at_ordinary_pace_costs_one_write(lab):
    source = """
        for i in range(50):
            print("line", i)
            time.sleep(0.001)
            print("err", i, file=sys.stderr, flush=True)
        sys.stdout.flush()
        print(len(sizes), file=sys.__stdout__)
        """
    assert lab.run(COUNT_WRITES + textwrap.dedent(source)).out.endswith(b"\n100\n")


def test_a_flood_costs_few_writes_and_loses_nothing(lab):
    source = """
        for i in range(200000):
            print(i)
        print(len(sizes), file=sys.__stderr__)
        """
    ended = lab.run(COUNT_WRITES + textwrap.dedent(source), stdout=subprocess.DEVNULL)
    assert int(ended.err) < 50000
    assert ended.stdout == b"".join(b"%d\n" % i for i in range(200000))


def test_text_without_a_line_end_is_not_kept_in_memory(lab):
    ended = lab.run("for i in range(200000): print('.', end='')\nkill_me()", stdout=subprocess.DEVNULL)
    assert len(ended.stdout) >= 50000


def test_much_text_without_a_line_end_is_not_kept_in_memory(lab):
    ended = lab.run("for i in range(50): print('.' * 1000000, end='')\nkill_me()", stdout=subprocess.DEVNULL)
    assert len(ended.stdout) >= 49000000


# Each would take hours if its cost grew with the square of what is written.
ENDLESS = {
    "a return, then no line end": ["\\r", "x" * 4096, 60000],
    "a return in each write": ["", "\\r" + "x" * 4096, 20000],
    "a moved cursor, then no line end": ["\\r1\\n\\r2\\x1b[A", "x" * 4096, 60000],
    "a moved cursor, then lines": ["\\r1\\n\\r2\\x1b[A", "x" * 400 + "\\n", 100000],
    "only returns": ["", "\\r" * 4096, 1000],
    "only returns and no state": ["x" * 100000, "\\r", 20000],
    "one text": ["", "x" * 10000000 + "\\r" + "x" * 10000000, 1],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ENDLESS))
def test_output_without_line_ends_costs_what_its_size_costs(lab, name):
    first, then, count = ENDLESS[name]
    then = f'"{then[0]}" * {len(then)}' if len(set(then)) == 1 else f'"{then}"'
    source = f'sys.stdout.write("{first}")\nthen = {then}\nfor i in range({count}): sys.stdout.write(then)'
    assert lab.run(source, stdout=subprocess.DEVNULL).code == 0


def test_flush_writes_an_unfinished_line(lab):
    assert lab.run("print('Loading', end='', flush=True)\nkill_me()").stdout == b"Loading"


def test_a_handled_signal_finds_a_way_to_save_everything(lab):
    source = """
        def end(number, frame):
            print("caught")
            experiment.finish()
            kill_me()
        signal.signal(signal.SIGALRM, end)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        i = 0
        while True:
            print(i)
            i += 1
        """
    text = lab.run(source, stdout=subprocess.DEVNULL).stdout
    assert text.endswith(b"caught\n")
    numbers = text[: -len("caught\n")].splitlines()
    assert len(numbers) > 1000 and numbers == [b"%d" % i for i in range(len(numbers))]


def test_a_signal_handler_may_print_at_any_moment(lab):
    source = """
        signals = 0
        def tell(number, frame):
            global signals
            signals += 1
            sys.stdout.write("signal %d\\n" % signals)
        signal.signal(signal.SIGALRM, tell)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        for i in range(3000):
            sys.stdout.write("line %d\\n" % i)
            sum(range(1000))
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(signals, file=sys.stderr)
        """
    ended = lab.run(source, stdout=subprocess.DEVNULL)
    assert ended.code == 0 and int(ended.err) > 10, ended
    expected = [f"line {i}" for i in range(3000)] + [f"signal {i + 1}" for i in range(int(ended.err))]
    assert sorted(ended.stdout.decode().splitlines()) == sorted(expected)


@pytest.mark.parametrize("call", ["print('x', flush=True)", "experiment.log(loss=1)"])
def test_a_timeout_that_a_signal_handler_raises_is_the_programs(lab, call):
    source = f"""
        def stop(number, frame):
            raise TimeoutError("enough")
        signal.signal(signal.SIGALRM, stop)
        caught = 0
        for _ in range(100):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.001)
                while True:
                    {call}
            except TimeoutError:
                caught += 1
        print(caught, file=sys.stderr)
        """
    assert lab.run(source, stdout=subprocess.DEVNULL).err == b"100\n"


def test_threads_lose_nothing(lab):
    source = """
        import threading
        def work(name):
            for i in range(2000):
                sys.stdout.write("%s %d\\n" % (name, i))
        threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        """
    lines = lab.run(source, stdout=subprocess.DEVNULL).stdout.decode().splitlines()
    for name in "abcd":
        assert [line for line in lines if line[0] == name] == [f"{name} {i}" for i in range(2000)]


FORKS = {
    "os.fork": """
        pid = os.fork()
        if pid == 0:
            print("child")
            sys.exit()
        os.waitpid(pid, 0)
        """,
    "multiprocessing": """
        import multiprocessing
        process = multiprocessing.get_context("fork").Process(target=print, args=("child",))
        process.start()
        process.join()
        """,
    "a thread prints": """
        import threading
        class Nowhere:  # in a forked child the lock of a real stream could be held for ever
            write = staticmethod(len)
            flush = dict
        sys.stderr = Nowhere()
        other = meticulous.Experiment(experiment_id="2", **own)
        def work():
            while not stopped:
                sys.stderr.write("busy\\n")
        stopped = []
        thread = threading.Thread(target=work)
        thread.start()
        for i in range(20):
            pid = os.fork()
            if pid == 0:
                if i == 0: print("child")
                sys.stderr.write("child\\n")
                sys.stdout.flush()
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        stopped.append(1)
        thread.join()
        """,
}


@pytest.mark.parametrize("way", sorted(FORKS))
def test_parent_and_child_do_not_write_the_same_text(lab, way):
    before = "\nfor i in range(3000): print(i)\nprint('unfinished', end=' ')\n"
    after = "\nprint('parent')\n"
    ended = lab.run(before + textwrap.dedent(FORKS[way]) + after, stdout=subprocess.DEVNULL)
    assert ended.code == 0
    expected = "".join(f"{i}\n" for i in range(3000)) + "unfinished child\nparent\n"
    assert ended.stdout.decode() == expected


def test_a_child_does_not_write_the_progress_bar_of_its_parent(lab):
    source = """
        sys.stdout.write("\\r50%")
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            print("child")
            experiment.finish()
            os._exit(0)
        os.waitpid(pid, 0)
        print("\\rready")
        """
    assert lab.run(source).stdout == b"child\nready\n"


def test_a_program_that_a_fork_starts_does_not_inherit_our_files(lab):
    source = """
        import subprocess
        if os.path.isdir("/proc/self/fd"):
            subprocess.check_call("ls -l /proc/self/fd", shell=True, close_fds=False)
        """
    assert b"records" not in lab.run(source).out


def test_recording_starts_no_thread_and_no_child(lab):
    source = "import threading\nprint(threading.active_count())\nfor i in range(20000): print(i)\n"
    source += "print(threading.active_count())\ntry: os.wait()\nexcept ChildProcessError: print('none')\n"
    lines = lab.run(source).out.split()
    assert (lines[0], lines[-2], lines[-1]) == (b"1", b"1", b"none")


# Progress bars are folded.


def show(text):
    """Give what a screen's lines say after *text*, as far as folding promises it."""
    lines = text.replace(b"\r\n", b"\n").split(b"\n")
    return [([b""] + [state for state in line.split(b"\r") if state])[-1] for line in lines]


def write_file(path, chunks):
    file = meticulous._OutputFile(str(path), [])
    for chunk in chunks:
        file.add(chunk)
        file.save()
    file.close()
    return path.read_bytes()


@pytest.mark.parametrize(
    "text, folded",
    [
        (b"plain\ntext", b"plain\ntext"),
        (b"dos\r\nlines\r\n", b"dos\r\nlines\r\n"),
        (b"1%\r50%\r100%\n", b"100%\n"),
        (b"\r1%\r50%\r100%\nnext\n", b"100%\nnext\n"),
        (b"\r1%\r50%", b"50%"),
        (b"1%\r50%\r", b"50%\r"),
        (b"1%\r50%\r\n", b"50%\r\n"),
        (b"1%\r50%\r\r\n", b"50%\r\r\n"),
        (b"a\rb\r\nc\rd\n", b"b\r\nd\n"),
        (b"\r", b"\r"),
        (b"\n\r\n\n", b"\n\r\n\n"),
        ("\r\u2588 1%\r\u2588\u2588 2%\n".encode(), "\u2588\u2588 2%\n".encode()),
    ],
)
def test_the_file_keeps_the_last_state_of_each_line(tmp_path, text, folded):
    assert write_file(tmp_path / "whole", [text]) == folded
    pieces = [text[i : i + 1] for i in range(len(text))]
    assert show(write_file(tmp_path / "pieces", pieces)) == show(folded)


def test_no_way_of_cutting_text_changes_lines_without_a_return(tmp_path):
    chance = random.Random(1)
    for number in range(200):
        text = b"".join(chance.choice([b"a", b"bc", b"\n", b"\r\n", b"\xc3\xa9"]) for _ in range(30))
        cuts = sorted(chance.sample(range(len(text)), 5))
        chunks = [text[start:end] for start, end in zip([0] + cuts, cuts + [len(text)])]
        assert write_file(tmp_path / str(number), chunks) == text, chunks


@pytest.mark.parametrize("interval", [0.0, 10.0], ids=["seen long ago", "just seen"])
def test_no_way_of_cutting_bars_changes_what_the_screen_shows(tmp_path, monkeypatch, interval):
    monkeypatch.setattr(meticulous, "_BAR_INTERVAL_S", interval)
    chance = random.Random(2)
    for number in range(300):
        text = b"".join(chance.choice([b"10%", b"\r", b"\rxy", b"ab\n", b"\r\n", b"z"]) for _ in range(20))
        cuts = sorted(chance.sample(range(len(text)), 6))
        chunks = [text[start:end] for start, end in zip([0] + cuts, cuts + [len(text)])]
        assert show(write_file(tmp_path / str(number), chunks)) == show(text), chunks


def test_a_running_bar_shows_in_the_file_every_ten_seconds(tmp_path, monkeypatch):
    assert meticulous._BAR_INTERVAL_S == 10
    file = meticulous._OutputFile(str(tmp_path / "file"), [])
    begin = time.monotonic()
    for second in range(25):
        monkeypatch.setattr(time, "monotonic", lambda second=second: begin + second)
        file.add(b"\r%d s" % second)
        file.save()
    assert (tmp_path / "file").read_bytes() == b"10 s\r21 s"
    file.add(b"\rready\n")
    file.close()
    assert (tmp_path / "file").read_bytes() == b"10 s\r21 s\rready\n"


@pytest.mark.slow
def test_100000_updates_of_tqdm_leave_little_in_the_file(lab):
    source = """
        from tqdm import tqdm
        print("begin", file=sys.stderr)
        for _ in tqdm(range(100000), mininterval=0, miniters=1):
            pass
        print("end", file=sys.stderr)
        """
    ended = lab.run(source, stderr=subprocess.DEVNULL)
    lines = ended.stderr.decode().split("\n")
    assert len(ended.stderr) < 2000
    assert lines[0] == "begin" and "100000/100000" in lines[1].split("\r")[-1] and lines[2:] == ["end", ""]


def test_a_bar_that_never_flushes_shows_in_the_file_as_well(lab):
    source = """
        meticulous._BAR_INTERVAL_S = 0
        sys.stdout.write("\\r10%")
        sys.stdout.write("\\r20%")
        kill_me()
        """
    assert lab.run(source).stdout == b"10%\r20%"


def test_the_state_of_a_bar_is_saved_when_the_process_is_ending(lab):
    source = """
        sys.stdout.write("\\r10%")
        sys.stdout.flush()
        assert os.path.getsize(FOLDER + "/stdout") == 0
        experiment.finish()
        kill_me()
        """
    assert lab.run(source).stdout == b"10%"


NESTED_BARS = {
    "tqdm": """
        from tqdm import tqdm
        for i in tqdm(range(50), mininterval=0, file=sys.stdout, ascii=True, desc="outer"):
            for _ in tqdm(range(50), mininterval=0, file=sys.stdout, ascii=True, desc="inner", leave=False):
                pass
        print("end")
        """,
    "tqdm in tqdm in tqdm, and lines": """
        from tqdm import trange, tqdm
        for i in trange(10, mininterval=0, file=sys.stdout, ascii=True, desc="outer"):
            for j in trange(10, mininterval=0, file=sys.stdout, ascii=True, desc="middle", leave=False):
                for _ in trange(10, mininterval=0, file=sys.stdout, ascii=True, desc="inner", leave=False):
                    pass
            tqdm.write("line %d" % i, file=sys.stdout)
        print("end")
        """,
    "rich": """
        from rich.console import Console
        from rich.progress import Progress
        console = Console(force_terminal=True, width=80)
        with Progress(console=console, auto_refresh=False) as progress:
            tasks = [progress.add_task(name, total=500) for name in ("outer", "inner")]
            for i in range(500):
                for task in tasks:
                    progress.advance(task)
                progress.refresh()
        print("end")
        """,
}


@pytest.mark.parametrize("name", sorted(NESTED_BARS))
def test_nested_bars_leave_their_last_state(lab, name):
    ended = lab.run(NESTED_BARS[name])
    assert ended.code == 0 and len(ended.out) > 20000, ended
    assert len(ended.stdout) < 3000 and ended.stdout.endswith(b"end\n"), ended.stdout
    assert b"100%" in ended.stdout or b"50/50" in ended.stdout, ended.stdout
    if "lines" in name:
        assert all(b"line %d\n" % i in ended.stdout for i in range(10)), ended.stdout


def test_a_bar_that_never_flushes_is_folded_too(lab):
    ended = lab.run("for i in range(30001): print('\\r%d of 30000' % i, end='')")
    assert ended.stdout == b"30000 of 30000" and ended.out.count(b"\r") == 30001


# Faults of the disk are no reason to die.

FILL = """
for i in range(40000):
    print("line %05d" % i, "." * 50)
"""
FILLED = b"".join(b"line %05d %s\n" % (i, b"." * 50) for i in range(40000))


def check_one_warning(err, words):
    assert err.count(b"\n") == 1 and err.startswith(b"meticulous: "), err
    assert words in err and b"stdout" in err


def test_a_full_disk_costs_the_record_and_nothing_else(lab, mount_tmpfs):
    lab.records = mount_tmpfs("size=1M") / "1"
    ended = lab.run(FILL)
    assert ended.code == 0 and ended.out == FILLED
    check_one_warning(ended.err, b"No space left on device")
    assert len(ended.stdout) >= 900000 and FILLED.startswith(ended.stdout)


def test_recording_goes_on_when_space_comes_back(lab, mount_tmpfs):
    lab.records = mount_tmpfs("size=1M") / "1"
    source = """
        print("begin")
        import subprocess
        subprocess.call(["dd", "if=/dev/zero", "of=" + FOLDER + "/big", "bs=64k"], stderr=-3)
        print("x" * 5000)
        os.unlink(FOLDER + "/big")
        print("end")
        kill_me()
        """
    ended = lab.run(source)
    assert ended.stdout == b"begin\n" + b"x" * 5000 + b"\nend\n"
    check_one_warning(ended.err, b"No space left on device")


def test_a_gap_in_the_file_shows(lab):
    allowed = "import resource\nlimits = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
    allowed += "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))\n"
    source = allowed + FILL + "resource.setrlimit(resource.RLIMIT_FSIZE, limits)\nprint('end')\n"
    ended = lab.run(source)
    assert ended.code == 0 and ended.out == FILLED + b"end\n"
    check_one_warning(ended.err, b"File too large")
    kept, end = ended.stdout.split(b"\n[meticulous: output is missing here]\n")
    assert FILLED.startswith(kept) and len(kept) > 1000000
    assert (FILLED + b"end\n").endswith(end) and len(end) < 1000000


def test_a_deleted_folder_costs_the_record_and_nothing_else(lab):
    source = """
        import shutil
        print("before")
        shutil.rmtree(FOLDER)
        print("after")
        print("after", file=sys.stderr)
        """
    ended = lab.run(source)
    assert ended.code == 0 and ended.out == b"before\nafter\n"
    warning, after, end = ended.err.splitlines()
    check_one_warning(warning + b"\n", b"No such file or directory")
    assert after == b"after" and b"the end of" in end and not lab.records.exists()


def test_another_file_in_the_place_of_ours_is_left_alone(lab):
    source = """
        print("before")
        os.rename(FOLDER + "/stdout", FOLDER + "/moved")
        print("moved")
        os.unlink(FOLDER + "/moved")
        with open(FOLDER + "/stdout", "w") as file: file.write("mine")
        print("after")
        """
    ended = lab.run(source)
    assert ended.code == 0 and ended.stdout == b"mine"
    check_one_warning(ended.err, b"another file")


def test_closed_descriptors_are_opened_again_and_new_files_left_alone(lab):
    source = """
        print("before")
        os.closerange(3, 64)
        new = [os.open("new%d" % i, os.O_CREAT | os.O_RDWR) for i in range(10)]
        print("after")
        print("after", file=sys.stderr)
        """
    ended = lab.run(source)
    assert (ended.code, ended.err) == (0, b"after\n")
    assert (ended.stdout, ended.stderr) == (b"before\nafter\n", b"after\n")
    assert [path.stat().st_size for path in lab.folder.glob("new*")] == [0] * 10


def test_a_descriptor_that_leads_elsewhere_is_not_closed_at_the_end(lab):
    source = """
        os.closerange(3, 64)
        new = [os.open("new%d" % i, os.O_CREAT | os.O_RDWR) for i in range(10)]
        experiment.finish()
        for descriptor in new:
            os.write(descriptor, b"still open")
        print("good")
        """
    assert lab.run(source).out == b"good\n"


def test_a_folder_that_cannot_be_written_is_an_error_at_the_start(lab, mount_tmpfs):
    lab.records = mount_tmpfs("ro,size=1M") / "1"
    ended = lab.run("print('never')")
    assert ended.code == 1 and b"Read-only file system" in ended.err and ended.out == b""


def test_a_start_that_fails_leaves_the_streams_alone(tmp_path):
    before = sys.stdout, sys.stderr
    (tmp_path / "stderr").mkdir()
    descriptors = os.listdir("/dev/fd")
    with pytest.raises(OSError, match="stderr"):
        meticulous._Capture(str(tmp_path))
    assert (sys.stdout, sys.stderr) == before and os.listdir("/dev/fd") == descriptors


def test_a_failing_stderr_is_no_second_fault(lab):
    source = """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        sys.stderr.close()
        print("good")
        """
    assert lab.run(source).out == b"good\n"


# Nesting and order.


def test_each_file_has_the_output_of_its_experiments_time(tmp_path):
    with record(tmp_path):
        folders = [tmp_path / name for name in "abc"]
        print("0", end="")
        a = start_capture(folders[0])
        print("1", end="")
        b = start_capture(folders[1])
        print("2", end="")
        a.close()
        print("3", end="")
        c = start_capture(folders[2])
        print("4", end="")
        b.close()
        print("5", end="")
        c.close()
        c.close()
        print("6", end="")
        sys.stdout.flush()
        assert [(folder / "stdout").read_text() for folder in folders] == ["12", "234", "45"]
        assert (tmp_path / "stdout").read_text() == "0123456"


@pytest.mark.parametrize("order", ["first in first out", "last in first out"])
def test_the_streams_are_never_replaced_and_get_their_methods_back(tmp_path, order):
    streams = sys.stdout, sys.stderr
    before = [vars(stream).copy() for stream in streams]
    captures = [start_capture(tmp_path / str(number)) for number in range(3)]
    for capture in captures if order == "first in first out" else captures[::-1]:
        assert (sys.stdout, sys.stderr) == streams
        capture.close()
    assert (sys.stdout, sys.stderr) == streams
    assert [vars(stream) for stream in streams] == before


def test_threads_open_and_close_in_any_order(tmp_path):
    before = sys.stdout, sys.stderr
    failures = []

    def work(name):
        try:
            for number in range(20):
                folder = tmp_path / f"{name}{number}"
                capture = start_capture(folder)
                sys.stdout.write(f"<{name}{number}>")
                capture.close()
                assert f"<{name}{number}>" in (folder / "stdout").read_text()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and (sys.stdout, sys.stderr) == before


def test_whoever_holds_our_stream_goes_on_writing_to_the_terminal(lab):
    source = """
        import logging
        logging.basicConfig(format="%(message)s")
        write = sys.stderr.write
        logging.error("during")
        if FOLDER:
            experiment.finish()
        logging.error("after")
        write("kept\\n")
        class Late:
            def __del__(self): write("late\\n")
        late = Late()
        """
    ended = lab.compare(source)
    # Python 3.7 and 3.8 run that __del__ when there is nothing left to write with, also without us.
    late = b"" if (3, 7) <= sys.version_info < (3, 9) else b"late\n"
    assert ended.err == b"during\nafter\nkept\n" + late and ended.stderr == b"during\n"


def test_an_experiment_inside_redirect_stdout(tmp_path):
    with record(tmp_path) as capture:
        terminal, text = sys.stdout, io.StringIO()
        with redirect_stdout(text):
            inner = start_capture(tmp_path / "inner")
            print("redirected")
            inner.close()
            assert sys.stdout is text
        assert sys.stdout is terminal
        print("not redirected")
        capture.flush()
        assert text.getvalue() == (tmp_path / "inner" / "stdout").read_text() == "redirected\n"
        assert (tmp_path / "stdout").read_text() == "not redirected\n"


class OtherTee:
    def __init__(self, stream):
        self.stream = stream
        self.seen = []

    def write(self, text):
        self.seen.append(text)
        return self.stream.write(text)

    def __getattr__(self, name):
        return getattr(self.stream, name)


def test_another_tools_tee_above_ours_stays_and_goes_on(tmp_path):
    with record(tmp_path) as capture:
        other = sys.stdout = OtherTee(sys.stdout)
        inner = start_capture(tmp_path / "inner")
        print("both")
        capture.close()
        print("inner only")
        inner.close()
        assert sys.stdout is other
        print("neither")
        assert (tmp_path / "stdout").read_text() == "both\n"
        assert (tmp_path / "inner" / "stdout").read_text() == "both\ninner only\n"
        assert "".join(other.seen) == "both\ninner only\nneither\n"
        other.flush()
        assert (tmp_path / "terminal").read_text() == "both\ninner only\nneither\n"


class OtherPatch:
    """What wandb's wrapper and others do: they replace a stream's `write`, and call the one before."""

    def __init__(self, stream):
        self.stream, self.below, self.seen = stream, stream.write, []
        stream.write = self.write

    def write(self, text):
        self.seen.append(text)
        return self.below(text)

    def remove(self):
        self.stream.write = self.below


def test_two_experiments_with_another_tools_patch_in_between(tmp_path):
    with record(tmp_path) as capture:
        print("outer")
        other = OtherPatch(sys.stdout)
        inner = start_capture(tmp_path / "inner")
        print("all")
        sys.stdout.flush()
        sys.stdout.buffer.write(b"bytes\n")
        capture.close()
        print("inner")
        inner.close()
        print("other")
        other.remove()
        print("none")
        sys.stdout.flush()
        assert (tmp_path / "stdout").read_text() == "outer\nall\nbytes\n"
        assert (tmp_path / "inner" / "stdout").read_text() == "all\nbytes\ninner\n"
        assert "".join(other.seen) == "all\ninner\nother\n"
        assert (tmp_path / "terminal").read_text() == "outer\nall\nbytes\ninner\nother\nnone\n"


def test_a_loop_below_another_tools_patches_does_not_pile_up_ours(tmp_path):
    """A thousand runs in one process, each ending before the other tool does, must not end in a RecursionError."""
    with record(tmp_path) as capture:
        capture.close()
        for _ in range(1000):
            capture = start_capture(tmp_path)
            other = OtherPatch(sys.stdout)
            capture.close()
            other.remove()
        print("good")
        sys.stdout.flush()
    assert (tmp_path / "terminal").read_text() == "good\n"


# Whoever got hold of a stream before, or patches it after.

ABOVE_AND_BELOW = {
    "basicConfig": """
        import logging
        logging.basicConfig(format="%(message)s")
        # --- start ---
        logging.warning("logged")
        """,
    "from sys import": """
        from sys import stderr, stdout
        write = sys.stderr.write
        # --- start ---
        print("out", file=stdout)
        print("err", file=stderr)
        """,
    "dunder streams": """
        # --- start ---
        sys.__stdout__.write("out\\n")
        sys.__stderr__.write("err\\n")
        """,
    "dictConfig": """
        import logging.config
        handlers = {name: {"class": "logging.StreamHandler", "stream": "ext://sys." + name}
                    for name in ("stdout", "stderr")}
        config = {"version": 1, "handlers": handlers, "root": {"handlers": ["stdout"], "level": "INFO"}}
        logging.config.dictConfig(config)
        logging.info("above")
        # --- start ---
        logging.info("kept")
        config["root"]["handlers"] = ["stdout", "stderr"]
        logging.config.dictConfig(config)
        logging.info("below")
        """,
    "warnings and traceback": """
        import traceback, warnings
        # --- start ---
        warnings.warn("old")
        try:
            1 / 0
        except ZeroDivisionError:
            traceback.print_exc()
        raise ValueError("bad")
        """,
    "getwriter": """
        import codecs
        sys.stdout = codecs.getwriter("utf-8")(sys.stdout.detach())
        # --- start ---
        print("gr\\u00fc\\u00dfe")
        sys.stdout.writelines(["a", "b\\n"])
        """,
    "getwriter below": """
        import codecs
        # --- start ---
        print("text")
        sys.stdout = codecs.getwriter("utf-8")(sys.stdout.detach())
        print("gr\\u00fc\\u00dfe")
        """,
    "wrapper": """
        class Wrapper:  # as colorama's
            def __init__(self, stream): self.stream = stream
            def __getattr__(self, name): return getattr(self.stream, name)
            def write(self, text): self.stream.write(text)
        sys.stdout = Wrapper(sys.stdout)
        # --- start ---
        print("above")
        sys.stderr = Wrapper(sys.stderr)
        print("below", file=sys.stderr)
        if FOLDER: experiment.finish()
        """,
    "slots": """
        class Slots:
            __slots__ = "stream"
            def __init__(self, stream): self.stream = stream
            def __getattr__(self, name): return getattr(self.stream, name)
            def write(self, text): return self.stream.write(text)
            def flush(self): self.stream.flush()
        sys.stdout = mine = Slots(sys.stdout)
        # --- start ---
        print("recorded", sys.stdout.encoding, sys.stdout.fileno())
        sys.stdout.writelines(["a", "b\\n"])
        if FOLDER: experiment.finish()
        assert sys.stdout is mine
        """,
    "frozen": """
        class Frozen(type(sys.stdout)):
            def __setattr__(self, name, value): raise RuntimeError("frozen")
        sys.stdout = Frozen(sys.stdout.detach(), line_buffering=True)
        # --- start ---
        print("recorded")
        """,
    "notebook": """
        import io
        class OutStream(io.TextIOBase):  # as ipykernel's: no buffer, no descriptor
            encoding = "UTF-8"
            def __init__(self, stream): self.stream = stream
            def write(self, text): return self.stream.write(text)
            def flush(self): self.stream.flush()
            def fileno(self): raise io.UnsupportedOperation("fileno")
        sys.stdout = OutStream(sys.stdout)
        # --- start ---
        print("recorded", flush=True)
        """,
    "methods in a class": """
        # --- start ---
        class Tee:
            write, flush = sys.stdout.write, sys.stdout.flush
        print("through a class", file=Tee(), flush=True)
        """,
    "mock.patch": """
        from unittest import mock
        # --- start ---
        with mock.patch("sys.stdout.write") as write:
            print("to the mock")
        sys.stderr.write("%d calls\\n" % write.call_count)
        print("after")
        """,
    "set, then deleted": """
        # --- start ---
        sys.stdout.write = len
        print("to nobody")
        del sys.stdout.write
        sys.stdout.flush()
        print("after")
        """,
}


@pytest.mark.parametrize("way", ["pipes", "terminal", "-u"])
@pytest.mark.parametrize("name", sorted(ABOVE_AND_BELOW))
def test_streams_held_wrapped_or_patched_by_others_are_recorded_once(lab, name, way):
    options = ["-u"] if way == "-u" else []
    ended = lab.compare(ABOVE_AND_BELOW[name], on_terminal=way == "terminal", options=options)
    written = (ended.out + ended.err).replace(b"above\n", b"", name == "dictConfig")
    assert sorted((ended.stdout + ended.stderr).splitlines()) == sorted(written.splitlines())


@pytest.mark.parametrize("way", ["pipes", "terminal", "-u"])
def test_text_and_bytes_in_the_order_of_writing_whatever_the_stream_leads_to(lab, way):
    source = """
        sys.stdout.write("1 ")
        sys.stdout.flush()
        sys.stdout.buffer.write(b"2 ")
        sys.stdout.buffer.flush()
        print("3")
        sys.stdout.flush()
        sys.stdout.buffer.write(b"4\\n")
        """
    run = lab.run_on_terminal if way == "terminal" else lab.run
    ended = run(source, options=["-u"] if way == "-u" else [])
    assert ended.out == ended.stdout == b"1 2 3\n4\n"


def test_a_patch_that_is_taken_away_is_there_again_after_a_flush(lab):
    ended = lab.run("del sys.stdout.write\nsys.stdout.flush()\nprint('recorded')")
    assert ended.stdout == b"recorded\n"


def test_pytest_captures_what_it_would_without_us(lab):
    test = """
        import meticulous, os, sys
        directory, name = os.path.split(os.environ["FOLDER"])
        def make(name):
            return meticulous.Experiment(project_directory=os.environ["PROJECT"], experiment_id=name,
                                         experiments_directory=directory)
        def test_sys(capsys):
            with make("sys"):
                print("to sys")
            assert capsys.readouterr() == ("to sys\\n", "")
        def test_fd(capfd):
            with make("fd"):
                print("to fd")
                os.write(1, b"past us")
            sys.stdout.flush()
            assert sorted(capfd.readouterr().out) == sorted("to fd\\npast us")
        experiment = make("across")
        def test_across():
            print("not captured by the same stream")
            experiment.finish()
        """
    (lab.folder / "test_mine.py").write_text(textwrap.dedent(test))
    source = "import pytest\nos.environ['FOLDER'] = %r\n" % str(lab.records)
    source += "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', 'test_mine.py']))\n"
    ended = lab.run(source, recorded=False)
    assert ended.code == 0 and b"3 passed" in ended.out, ended
    texts = [(lab.records.parent / name / "stdout").read_text() for name in ("sys", "fd")]
    assert texts == ["to sys\n", "to fd\n"]


# A signal handler that ends the experiment in the middle of a write: where it may hurt most.

INTERRUPTED = """
    def end(number, frame):
        print("caught")
        experiment.finish()
        mine.append(os.open("mine%d" % len(mine), os.O_CREAT | os.O_WRONLY))
    mine, calls = [], []
    signal.signal(signal.SIGUSR1, end)
    def interrupted(descriptor, data, write=os.write):
        calls.append(data)
        if {when!r} == "before" and len(calls) == 1: os.kill(os.getpid(), signal.SIGUSR1)
        count = write(descriptor, data)
        if {when!r} == "after" and len(calls) == 1: os.kill(os.getpid(), signal.SIGUSR1)
        return count
    os.write = interrupted
    {call}
    os.write(mine[0], b"my own")
    print("after")
    """
CALLS = {"print": "print('line')", "log": "experiment.log(loss=1)"}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("call", sorted(CALLS))
def test_finish_in_a_signal_handler_during_a_write_harms_no_file(lab, call, when):
    ended = lab.run(INTERRUPTED.format(when=when, call=CALLS[call]))
    assert (ended.code, ended.err) == (0, b""), ended
    assert (lab.folder / "mine0").read_bytes() == b"my own"
    if call == "print":
        # "before" is after the program's text was taken to be written, so the handler's comes first.
        assert sorted(ended.stdout.splitlines()) == [b"caught", b"line"]
    else:
        assert ended.stdout == b"caught\n"
        lines = (lab.records / "metrics.jsonl").read_bytes().splitlines()
        assert len(lines) == 1 and lines[0].endswith(b'"loss": 1}')


# The same at each line of the code that saves what was printed.
AT_EACH_LINE = """
    from meticulous import Experiment
    names = {{"flush", "_save_pending", "_encode_parts", "add", "_split_bar", "_fold", "save"}}
    signum = signal.SIGUSR1
    {trace}
    def end(number, frame):
        sys.settrace(None)
        print("caught")
        {end}
    signal.signal(signal.SIGUSR1, end)
    experiment.finish()
    wanted = line = 0
    while line >= wanted:
        wanted, line = wanted + 1, 0
        experiment = Experiment(experiment_id="line%d" % wanted, **own)
        sys.settrace(trace)
        try:
            sys.stdout.write({text!r} + chr(10))
        except ZeroDivisionError:
            pass
        sys.settrace(None)
        experiment.finish()
    """
ENDS = {"finish": "experiment.finish()", "raise": "1 / 0", "return": "pass"}


@pytest.mark.parametrize("end", sorted(ENDS))
@pytest.mark.parametrize("text", ["line", "0%\r50%\rline"], ids=["line", "bar"])
def test_a_signal_handler_at_any_line_of_a_flush_loses_nothing(lab, end, text):
    ended = lab.run(
        AT_EACH_LINE.format(end=ENDS[end], text=text, trace=textwrap.indent(SEND_AT_LINE, " " * 4)),
        stdout=subprocess.DEVNULL,
    )
    assert (ended.code, ended.err) == (0, b""), ended
    count = len(list(lab.records.parent.glob("line*")))
    # In the last one no signal came.
    found = [(lab.records.parent / f"line{i}" / "stdout").read_bytes() for i in range(1, count)]
    # Where a handler does not return to the flush it may come just before the end, and the text comes twice.
    get_lines = sorted if end == "return" else lambda lines: sorted(set(lines))
    lost = {
        i: data for i, data in enumerate(found, 1) if get_lines(data.splitlines()) != [b"caught", b"line"]
    }
    assert count > 20 and not lost, lost


def test_hooks_of_others_at_a_fork_and_threads_that_print_do_not_hang(lab):
    """loguru locks its handler before a fork, and holds that lock while it writes to sys.stderr."""
    if IS_36:
        pytest.skip("Python 3.6 has no os.register_at_fork")
    source = """
        import logging, threading
        lock = threading.Lock()
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
        # --- start ---
        os.register_at_fork(before=lambda: None)
        logging.basicConfig()
        def work():
            while not stopped:
                with lock:
                    print("busy", file=sys.stderr)
                logging.warning("busy")
        stopped = []
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads: thread.start()
        for i in range(200):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        stopped.append(1)
        for thread in threads: thread.join()
        print("good")
        """
    ended = lab.run(source, stderr=subprocess.DEVNULL)
    assert (ended.code, ended.stdout) == (0, b"good\n")


def test_the_output_of_a_child_is_recorded_at_once_and_folded(lab):
    source = """
        experiment.record_output("stdout", b"\\xff\\n1%\\r")
        experiment.record_output("stdout", b"2%\\n")
        experiment.record_output("stderr", b"unfinished")
        kill_me()
        """
    ended = lab.run(source)
    assert (ended.stdout, ended.stderr) == (b"\xff\n2%\n", b"unfinished")
    assert (ended.out, ended.err) == (b"", b"")


def test_a_resumed_file_is_appended_to(tmp_path):
    (tmp_path / "stdout").write_bytes(b"first\n")
    assert write_file(tmp_path / "stdout", [b"second\n"]) == b"first\nsecond\n"
