"""What all tests may use: real processes, and a real git repository with scripts to run in it."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
FOREIGN = ("COVERAGE_RCFILE", "LANGUAGE", "LOCAL_RANK", "RANK", "WORLD_SIZE", "XDG_CONFIG_HOME")
FOREIGN_PREFIXES = (
    "GIT_",
    "LC_",
    "METICULOUS_",
    "OMPI_",
    "PMI_",
    "PMIX_",
    "SLURM_",
    "SLURMD_",
    "TORCHELASTIC_",
)


class Result:
    """How a process ended: .code (negative: a signal's number), .stdout and .stderr as str, line ends kept."""

    def __init__(self, code, stdout, stderr):
        self.code = code
        self.stdout = stdout.decode("utf-8", "surrogateescape")
        self.stderr = stderr.decode("utf-8", "surrogateescape")

    def __repr__(self):
        return f"code {self.code}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"


class Script(subprocess.Popen):
    """A running process, the leader of its own process group.

    Its pipes are unbuffered and carry bytes: a test can wait for `stdout.readline()` and then call `result()`.
    """

    def result(self, timeout=60):
        """Wait for the end and return the Result; after *timeout* seconds kill the group and fail."""
        try:
            stdout, stderr = self.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            self.kill_group()
            stdout, stderr = self.communicate()
            raise AssertionError(f"{error}\n{Result(self.returncode, stdout, stderr)}") from error
        return Result(self.returncode, stdout or b"", stderr or b"")

    def kill_group(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def launch(command, **keywords):
    """Start *command* (a list of words, paths and numbers) with Popen's *keywords*, and return the Script.

    Where no keyword says otherwise, stdin is empty, stdout and stderr are pipes, and the environment is this one.
    """
    defaults = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "start_new_session": True,
    }
    if "cwd" in keywords:
        keywords["cwd"] = str(keywords["cwd"])
    return Script([str(word) for word in command], bufsize=0, **{**defaults, **keywords})


class Repo:
    """A git repository with one commit, and the means to work in it as a user does."""

    def __init__(self, path, module_folder, pattern=None):
        """*pattern* is another Repo as it was made: a copy takes a tenth of the time of git's six processes."""
        self.path = path
        self.module_folder = module_folder
        self.scripts = []
        path.mkdir(parents=True, exist_ok=True)
        if pattern:
            shutil.copytree(str(pattern.path / ".git"), str(path / ".git"))
            shutil.copy2(str(pattern.path / "README"), str(path))
            return
        self.git("init", "--quiet")
        self.git("config", "user.name", "Test User")
        self.git("config", "user.email", "test@example.com")
        self.write("README", "A project under test.\n")
        self.commit("First commit")
        for sample in (path / ".git" / "hooks").glob("*.sample"):
            sample.unlink()

    def write(self, name, text):
        """Write *text* (or bytes) to the file *name*, making its folders, and return its path."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape"))
        return path

    def git(self, *arguments, codes=(0,)):
        """Run git here and return what it printed; fail if it ends with another exit code than one of *codes*."""
        result = launch(["git", *arguments], cwd=self.path, env=self.environment()).result()
        assert result.code in codes, f"git {arguments}: {result}"
        return result.stdout

    def commit(self, message="Change", *names):
        """Commit everything, or only *names*, if something changed; without hooks and signing."""
        self.git("add", "--all", *(["--force"] if names else []), "--", *(names or ["."]))
        self.git(
            "-c", "core.hooksPath=/dev/null", "-c", "commit.gpgSign=false",
            "commit", "--quiet", "--message", message, "--", *names,
            codes=(0, 1),  # 1: nothing has changed
        )  # fmt: skip

    def environment(self, changes=None):
        """Return a child's environment: ours without PYTHON*, with *changes* (None removes a name)."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment["PYTHONPATH"] = str(self.module_folder)
        environment.update(changes or {})
        return {name: str(value) for name, value in environment.items() if value is not None}

    def popen(
        self, source, *arguments, name="script.py", python=sys.executable, env=None, options=(), **keywords
    ):
        """Write *source* to the script *name* and commit it (None: keep it as it is), and start *python* on it.

        *options* are the interpreter's; *keywords* are Popen's, for example cwd or stdin.
        """
        if source is not None:
            self.write(name, textwrap.dedent(source))
            self.commit("Add " + name, name)
        keywords.setdefault("cwd", self.path)
        command = [python, *options, self.path / name, *arguments]
        script = launch(command, env=self.environment(env), **keywords)
        self.scripts.append(script)
        return script

    def run(self, source, *arguments, timeout=60, **keywords):
        """Call popen(), wait for the end, and return the Result."""
        return self.popen(source, *arguments, **keywords).result(timeout)

    def experiment(self, experiment_id):
        """Return the path of an experiment's folder in the default place."""
        return self.path / "experiments" / str(experiment_id)

    def close(self):
        for script in self.scripts:
            script.kill_group()
            script.wait()
            for pipe in (script.stdin, script.stdout, script.stderr):
                if pipe:
                    pipe.close()


@pytest.fixture(scope="session", autouse=True)
def usual_signals():
    """Reset the signals that a shell ignores in background jobs, so that children start as at a prompt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("SIGHUP", "SIGQUIT", "SIGTERM"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def quiet_environment(tmp_path_factory):
    """Remove the user's and the system's settings from the environment of this process and its children."""
    before = dict(os.environ)
    for name in before:
        if name in FOREIGN or name.startswith(FOREIGN_PREFIXES):
            del os.environ[name]
    os.environ.update(HOME=str(tmp_path_factory.mktemp("home")), GIT_CONFIG_NOSYSTEM="1", LANG="C.UTF-8")
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def module_folder(tmp_path_factory):
    """Return a folder for PYTHONPATH that holds only meticulous.py."""
    folder = tmp_path_factory.mktemp("module")
    try:
        (folder / "meticulous.py").symlink_to(PROJECT / "meticulous.py")  # a link, so that coverage knows it
    except OSError:
        shutil.copy(str(PROJECT / "meticulous.py"), str(folder))
    return folder


@pytest.fixture(scope="session")
def pattern(module_folder, quiet_environment, tmp_path_factory):
    """Return the Repo that all others are copies of."""
    return Repo(tmp_path_factory.mktemp("pattern"), module_folder)


@pytest.fixture
def make_repo(pattern):
    """Return a function that makes another Repo in an empty or new folder."""
    repos = []

    def make(path):
        repos.append(Repo(Path(str(path)), pattern.module_folder, pattern))
        return repos[-1]

    yield make
    for repo in repos:
        repo.close()


# For the source of a script, which sets signum, the names of functions of meticulous, and wanted and line: send the
# signal before the wanted line of these functions; line counts them.
SEND_AT_LINE = """
def trace(frame, event, argument):
    global line
    if frame.f_code.co_filename != meticulous.__file__ or frame.f_code.co_name not in names:
        return None
    line += event == "line"
    if event == "line" and line == wanted:
        os.kill(os.getpid(), signum)
    return trace
"""


@pytest.fixture
def latin_directory(tmp_path):
    """Return the path, as bytes, of an empty directory whose name is not UTF-8."""
    directory = os.path.join(os.fsencode(str(tmp_path)), b"caf\xe9")
    try:
        os.mkdir(directory)
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    return directory


@pytest.fixture
def repo(make_repo, tmp_path):
    """Return a Repo in tmp_path / "repo"."""
    return make_repo(tmp_path / "repo")
