"""README.md tells the truth: its blocks are run, from top to bottom, in one repository.

That repository has what a clone has (meticulous.py, README.md, tests/example) and one commit. Every block is
run as if its reader typed it there; `python`, `python3` and `meticulous` are those under test.

    ```python    A script: written to example.py, committed and run; it must exit with 0.
    ```diff      The script as it is after the change, run in the same way.
    ```console   Lines with "$ " in front are commands, "> " goes on with one; what follows is what it prints
                 on both streams, blanks, times and shas aside; "..." is anything; nothing: don't look.
    ```sh        Commands without their output.

Any other block (```text, ```json, ...) is only read. Comments right above a block say more:

    <!-- file: train.py -->     the block is the content of this file: written and committed, not run
    <!-- exit: 1 -->            the script or last command must exit with this code
    <!-- needs: pandas -->      left out where this module can't be imported
    <!-- not run: why -->       left out; so is the command that runs these tests
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import PROJECT, Repo, Result

README = PROJECT / "README.md"
OPTION = re.compile(r"<!-- ([a-z ]+): (.*) -->\n")
BLOCK = re.compile(r"^((?:<!-- [a-z ]+: [^\n]* -->\n)*)```(\w+)\n(.*?)^```$", re.M | re.S)
COMMAND = re.compile(r"^\$ (?P<command>.*\n(?:> .*\n)*)(?P<output>(?:(?!\$ ).*\n)*)", re.M)
TEST_COMMAND = re.compile(r"^\$? *(python3 -m venv \.venv && .* -m pytest)$", re.M)
FIRST_COMMAND = "python3 tests/example/train.py --epochs 20 && python3 meticulous.py show -1"


class Block:
    def __init__(self, match):
        comments, self.kind, self.text = match.groups()
        self.options = dict(OPTION.findall(comments))
        self.line = match.string.count("\n", 0, match.start(3))

    @property
    def is_run(self):
        needed = self.options.get("needs")
        return "not run" not in self.options and not (needed and importlib.util.find_spec(needed) is None)

    def list_commands(self):
        """List (command, expected output) of a console block."""
        matches = list(COMMAND.finditer(self.text))
        assert "".join(match.group() for match in matches) == self.text, "text before the first command"
        return [
            (re.sub("^> ", "", match.group("command"), flags=re.M), match.group("output"))
            for match in matches
        ]

    def get_script(self):
        """Give the text of a script; of a diff, what it makes."""
        if self.kind != "diff":
            return self.text
        return "".join(line[1:] for line in self.text.splitlines(True) if not line.startswith(("-", "@")))


def read_blocks():
    return [Block(match) for match in BLOCK.finditer(README.read_bytes().decode("utf-8"))]


def simplify(text):
    """Take out of *text* what differs from run to run."""
    text = re.sub(r"(\d{4}-)?\b\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?", "TIME", text)
    text = re.sub(r"\b(?=[0-9a-f]*\d)[0-9a-f]{7,40}\b", "SHA", text)
    return re.sub(r"[ \t]+", " ", re.sub(r"[ \t]+$", "", text, flags=re.M)).strip()


def is_output(expected, printed):
    pattern = ".*?".join(re.escape(part) for part in simplify(expected).split("..."))
    return not expected or re.fullmatch(pattern, simplify(printed), re.S) is not None


@pytest.fixture(scope="module")
def clone(tmp_path_factory, module_folder):
    """Give a repository with what a clone of the project has, as far as the README uses it."""
    repo = Repo(tmp_path_factory.mktemp("readme") / "clone", module_folder)
    for name in ("meticulous.py", "README.md"):
        shutil.copy(str(PROJECT / name), str(repo.path))
    repo.write(".gitignore", "__pycache__\nexperiments\n")
    shutil.copytree(
        str(PROJECT / "tests" / "example"),
        str(repo.path / "tests" / "example"),
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    repo.commit("The project")
    yield repo
    repo.close()


@pytest.fixture(scope="module")
def run_command(clone, tmp_path_factory):
    """Give a function that runs a shell command in the clone, by the Python under test."""
    programs = tmp_path_factory.mktemp("bin")
    starters = {"python": "", "python3": "", "meticulous": f' "{clone.path / "meticulous.py"}"'}
    for name, script in starters.items():
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{script} "$@"\n')
        (programs / name).chmod(0o755)
    path = os.pathsep.join([str(programs), os.environ["PATH"]])

    def run(command):
        process = subprocess.Popen(
            command,
            shell=True,
            cwd=str(clone.path),
            # As on a terminal, what both streams get comes in the order of writing.
            env=clone.environment({"PATH": path, "PYTHONPATH": None, "PYTHONUNBUFFERED": "1"}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        stdout, _ = process.communicate(timeout=120)
        return Result(process.returncode, stdout, b"")

    return run


def run_block(block, clone, run_command):
    """Run *block*; return what is wrong, or None."""
    code = int(block.options.get("exit", 0))
    if "file" in block.options:
        clone.write(block.options["file"], block.get_script())
        clone.commit("Write " + block.options["file"], block.options["file"])
    elif block.kind in ("python", "diff"):
        result = clone.run(block.get_script(), name="example.py", env={"PYTHONPATH": None})
        if result.code != code:
            return result
    elif block.kind == "sh":
        result = run_command("set -e\n" + block.text)
        if result.code != code:
            return result
    elif block.kind == "console":
        commands = [pair for pair in block.list_commands() if not TEST_COMMAND.match("$ " + pair[0].strip())]
        for number, (command, expected) in enumerate(commands, 1):
            result = run_command(command)
            if result.code != (code if number == len(commands) else 0):
                return f"$ {command}{result}"
            if not is_output(expected, result.stdout):
                return f"$ {command}printed\n\n{result.stdout}\nand not\n\n{expected}"
    return None


def test_every_block_does_what_it_says(clone, run_command):
    blocks = [block for block in read_blocks() if block.is_run]
    assert blocks
    for block in blocks:
        problem = run_block(block, clone, run_command)
        if problem:
            pytest.fail(f"README.md, line {block.line}: {problem}", pytrace=False)


def test_the_first_command_works_with_python_and_git_alone(clone, tmp_path):
    """In a fresh clone, with an empty HOME and no variable set but PATH."""
    assert FIRST_COMMAND in README.read_text("utf-8")
    fresh = tmp_path / "fresh"
    clone.git("clone", "--quiet", clone.path, fresh)
    (tmp_path / "python3").symlink_to(sys.executable)
    process = subprocess.Popen(
        ["/bin/sh", "-c", FIRST_COMMAND],
        cwd=str(fresh),
        env={"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    stdout, stderr = process.communicate()
    result = Result(process.returncode, stdout, stderr)
    assert result.code == 0, result
    assert "test_accuracy" in result.stdout


def test_the_readme_has_one_line_that_runs_the_tests():
    """The line is what .ci/run runs."""
    assert len(TEST_COMMAND.findall(README.read_text("utf-8"))) == 1
