"""The blocks of README.md do what they say: they are run, from top to bottom, in one repository.

That repository has one commit with what a clone has (meticulous.py, README.md, tests/example). Each block is
run as if its reader typed it there; `python`, `python3` and `meticulous` are those under test.

    ```python    A script: written to example.py, committed and run; it must exit with 0.
    ```diff      The script as it is after the change, run in the same way.
    ```console   "$ " begins a command and "> " continues it. The lines below are what it prints on both
                 streams, except for blanks, times and shas; "..." matches anything; no lines: not compared.
    ```sh        Commands without their output.

Other blocks (```text, ```json, ...) are not run. Comments directly above a block are options:

    <!-- file: train.py -->     the block is the content of this file: written and committed, not run
                                (of a notebook, train.ipynb, the code, with "# %%" above each cell)
    <!-- exit: 1 -->            the script or last command must exit with this code
    <!-- needs: pandas -->      skipped where this module can't be imported
    <!-- recipe: hydra, 3 records -->  run by test_recipes.py only
    <!-- not run: why -->       skipped; the command that runs these tests is skipped too
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from changelog import make_changelog, write_section
from conftest import PROJECT, Repo, launch

README = PROJECT / "README.md"
OPTION = re.compile(r"<!-- ([a-z ]+): (.*) -->\n")
BLOCK = re.compile(r"^((?:<!-- [a-z ]+: [^\n]* -->\n)*)```(\w+)\n(.*?)^```$", re.M | re.S)
COMMAND = re.compile(r"^\$ (?P<command>.*\n(?:> .*\n)*)(?P<output>(?:(?!\$ ).*\n)*)", re.M)
TEST_COMMAND = re.compile(r"^\$? *(python3 -m venv \.venv && .* -m pytest)$", re.M)
TIMEOUT_S = 300
FIRST_COMMAND = "python3 tests/example/train.py --epochs 20 && python3 meticulous.py show -1"


class Block:
    def __init__(self, match):
        comments, self.kind, self.text = match.groups()
        self.options = dict(OPTION.findall(comments))
        self.line = match.string.count("\n", 0, match.start(3))

    @property
    def is_run(self):
        needed = self.options.get("needs")
        if "not run" in self.options or "recipe" in self.options:
            return False
        return not (needed and importlib.util.find_spec(needed) is None)

    def list_commands(self):
        """List (command, expected output) of a console block."""
        matches = list(COMMAND.finditer(self.text))
        assert "".join(match.group() for match in matches) == self.text, "text before the first command"
        return [
            (re.sub("^> ", "", match.group("command"), flags=re.M), match.group("output"))
            for match in matches
        ]

    def get_script(self):
        """Return the script of this block; of a diff, the new version; a notebook in its format."""
        if self.options.get("file", "").endswith(".ipynb"):
            return make_notebook(self.text)
        if self.kind != "diff":
            return self.text
        return "".join(line[1:] for line in self.text.splitlines(True) if not line.startswith(("-", "@")))


def make_notebook(text):
    """Return the JSON of a notebook; a line "# %%" begins a cell, as in editors that run scripts by cells."""
    cell = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
    cells = [{**cell, "source": part} for part in re.split("^# %%\n", text, flags=re.M)[1:]]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4})


def read_blocks():
    return [Block(match) for match in BLOCK.finditer(README.read_bytes().decode("utf-8"))]


def simplify(text):
    """Replace what differs from run to run in *text*."""
    text = re.sub(r"(\d{4}-)?\b\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?", "TIME", text)
    text = re.sub(r"\b(?=[0-9a-f]*\d)[0-9a-f]{7,40}\b", "SHA", text)
    return re.sub(r"[ \t]+", " ", re.sub(r"[ \t]+$", "", text, flags=re.M)).strip()


def is_output(expected, printed):
    pattern = ".*?".join(re.escape(part) for part in simplify(expected).split("..."))
    return not expected or re.fullmatch(pattern, simplify(printed), re.S) is not None


@pytest.fixture(scope="module")
def clone(tmp_path_factory, module_folder):
    yield from make_clone(tmp_path_factory, module_folder)


def make_clone(tmp_path_factory, module_folder):
    """Yield a repository with what a clone of the project has, as far as the README uses it."""
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
    return make_runner(clone, tmp_path_factory)


def make_runner(clone, tmp_path_factory):
    """Return a function that runs a shell command in the clone, with the Python under test."""
    programs = tmp_path_factory.mktemp("bin")
    starters = {"python": "", "python3": "", "meticulous": f' "{clone.path / "meticulous.py"}"'}
    for name, script in starters.items():
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{script} "$@"\n')
        (programs / name).chmod(0o755)
    # The programs of installed packages (torchrun, jupyter) are beside the interpreter.
    path = os.pathsep.join([str(programs), os.path.dirname(sys.executable), os.environ["PATH"]])

    def run(command):
        # As on a terminal, both streams arrive in the order of writing.
        environment = clone.environment({"PATH": path, "PYTHONPATH": None, "PYTHONUNBUFFERED": "1"})
        script = launch(["sh", "-c", command], cwd=clone.path, env=environment, stderr=subprocess.STDOUT)
        return script.result(timeout=TIMEOUT_S)

    return run


def run_block(block, clone, run_command):
    """Run *block*; return what went wrong, or None."""
    code = int(block.options.get("exit", 0))
    if "file" in block.options:
        clone.write(block.options["file"], block.get_script())
        clone.commit("Write " + block.options["file"], block.options["file"])
    elif block.kind in ("python", "diff"):
        result = clone.run(block.get_script(), name="example.py", env={"PYTHONPATH": None}, timeout=TIMEOUT_S)
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


def test_each_block_does_what_it_says(clone, run_command):
    blocks = [block for block in read_blocks() if block.is_run]
    assert blocks
    for block in blocks:
        problem = run_block(block, clone, run_command)
        if problem:
            pytest.fail(f"README.md, line {block.line}: {problem}", pytrace=False)


def test_the_first_command_works_with_python_and_git_alone(clone, tmp_path):
    """In a fresh clone, with an empty HOME and only PATH set."""
    assert FIRST_COMMAND in README.read_text("utf-8")
    fresh = tmp_path / "fresh"
    clone.git("clone", "--quiet", clone.path, fresh)
    (tmp_path / "python3").symlink_to(sys.executable)
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}
    result = launch(["/bin/sh", "-c", FIRST_COMMAND], cwd=fresh, env=environment).result()
    assert result.code == 0, result
    assert "test_accuracy" in result.stdout


def test_the_readme_has_one_line_that_runs_the_tests():
    """The line is what .ci/run runs."""
    assert len(TEST_COMMAND.findall(README.read_text("utf-8"))) == 1


def test_the_changelog_is_read_from_the_tags(repo):
    blobs = []
    for tag in ("v1.9.0", "v1.10.0"):
        path = repo.write("meticulous.py", f"# {tag}\n")
        blobs.append(repo.git("hash-object", path).strip())
        repo.commit(f"Release {tag}")
        annotation = ["--annotate", "--message", "First line\n\n* a point\n"] if tag == "v1.9.0" else []
        repo.git("tag", *annotation, tag)
    changelog = make_changelog(repo.path)
    assert [line for line in changelog.splitlines() if line] == [
        *re.findall(r"### 1\.10\.0 \(\d{4}-\d\d-\d\d\)", changelog),
        f"Blob `{blobs[1]}`",
        *re.findall(r"### 1\.9\.0 \(\d{4}-\d\d-\d\d\)", changelog),
        f"Blob `{blobs[0]}`",
        "First line",
        "* a point",
    ]
    readme = repo.write(
        "README.md", "before\n<!-- changelog: begin -->\nold\n<!-- changelog: end -->\nafter\n"
    )
    write_section(readme, "changelog", changelog)
    text = readme.read_text("utf-8")
    assert (
        text.startswith("before\n") and text.endswith("after\n") and "old" not in text and changelog in text
    )


def test_the_changelog_without_a_tag_says_so(repo):
    assert make_changelog(repo.path) == "No release yet.\n"
