"""meticulous.py alone is the product: it works alone, costs nothing on import, and keeps its order."""

import ast
import importlib.util
import re
import shutil
import subprocess
import symtable
import sys
import sysconfig

import pytest
from conftest import PROJECT, Result

FILE = PROJECT / "meticulous.py"
SOURCE = FILE.read_bytes().decode("utf-8")
LINES = SOURCE.splitlines()
BANNER = re.compile(r"# === (\S.*?) =+")
LONGEST_SECTION = 260
LONGEST_FUNCTION = 50
# What pandas is for is only asked for by as_dataframe(); the others are the standard library's on Windows.
NOT_HERE = {"pandas", "msvcrt", "winreg", "_winapi"}


def list_sections():
    """List (title, first line, line after the last) of each section, lines counted from 1."""
    starts = [
        (match.group(1), number) for number, match in enumerate(map(BANNER.fullmatch, LINES), 1) if match
    ]
    ends = [number for _, number in starts[1:]] + [len(LINES) + 1]
    return [(title, start, end) for (title, start), end in zip(starts, ends)]


def find_section(line):
    """Give the position of the section that *line* is in."""
    return max((index for index, section in enumerate(list_sections()) if section[1] <= line), default=0)


def find_top_level_names():
    """Map each name that the module defines to the line where it first does."""
    names = {}
    for node in ast.parse(SOURCE).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.setdefault(node.name, node.lineno)
        for child in ast.walk(node) if isinstance(node, (ast.Assign, ast.AnnAssign, ast.If, ast.Try)) else ():
            if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
                names.setdefault(child.id, child.lineno)
    return names


def list_global_uses(table):
    """List (name, line of the scope) of every global name that a function or class body uses."""
    uses = []
    if table.get_type() != "module":
        uses = [
            (symbol.get_name(), table.get_lineno()) for symbol in table.get_symbols() if symbol.is_global()
        ]
    return uses + [use for child in table.get_children() for use in list_global_uses(child)]


def list_uses_at_import():
    """List (name, line) of every name in decorators, defaults, bases and statements of the module itself."""
    uses = []
    waiting = [ast.parse(SOURCE)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            uses.append((node.id, node.lineno))
        children = list(ast.iter_child_nodes(node))
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Lambda)):
            body = node.body if isinstance(node.body, list) else [node.body]
            children = [child for child in children if child not in body]
        waiting += children
    return uses


def run_python(*arguments, cwd):
    process = subprocess.Popen(
        [sys.executable] + list(arguments),
        cwd=str(cwd),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    stdout, stderr = process.communicate()
    return Result(process.returncode, stdout, stderr)


@pytest.fixture
def alone(tmp_path):
    """Give a folder with a copy of meticulous.py and nothing else."""
    folder = tmp_path / "alone"
    folder.mkdir()
    shutil.copy(str(FILE), str(folder))
    return folder


def test_sections_are_those_of_the_map_in_the_docstring_in_its_order():
    titles = [title for title, _, _ in list_sections()]
    docstring = ast.get_docstring(ast.parse(SOURCE))
    map_lines = docstring[docstring.rindex("\n\n") :].splitlines()
    assert [re.split(r"\s{2,}", line.strip())[0] for line in map_lines if line.strip()] == titles


def test_every_section_says_what_it_is_for():
    without = [title for title, start, _ in list_sections() if not LINES[start].startswith("# ")]
    assert list_sections() and without == []


def test_no_section_is_long():
    lengths = {title: end - start for title, start, end in list_sections()}
    assert {title: length for title, length in lengths.items() if length > LONGEST_SECTION} == {}


@pytest.mark.skipif(sys.version_info < (3, 8), reason="this interpreter does not tell where a function ends")
def test_no_function_is_long():
    functions = [node for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.FunctionDef)]
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in functions}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION} == {}


def test_a_section_uses_only_names_from_above():
    defined = find_top_level_names()
    uses = list_global_uses(symtable.symtable(SOURCE, str(FILE), "exec")) + list_uses_at_import()
    assert len(uses) > 100
    from_below = [
        f"line {line} uses {name} of line {defined[name]}"
        for name, line in uses
        if name in defined and find_section(defined[name]) > find_section(line)
    ]
    assert from_below == []


def test_only_the_standard_library_is_imported():
    modules = set()
    for node in ast.walk(ast.parse(SOURCE)):
        if isinstance(node, ast.Import):
            modules.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            modules.add((node.module or "").split(".")[0])
    paths = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
    foreign = set()
    for module in modules - NOT_HERE - set(sys.builtin_module_names):
        spec = importlib.util.find_spec(module)
        origin = (spec and spec.origin) or "nowhere"
        if origin != "frozen" and (not origin.startswith(paths) or "-packages" in origin):
            foreign.add(module)
    assert "json" in modules and foreign == set()


def test_modules_are_imported_at_the_top_or_where_they_are_used():
    at_the_top = [node for node in ast.parse(SOURCE).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert {find_section(node.lineno) for node in at_the_top} == {0}


def test_import_brings_only_itself_on_top_of_argparse_and_json(alone):
    result = run_python(
        "-c",
        "import argparse, json, sys; before = set(sys.modules); import meticulous; "
        "print(*sorted(set(sys.modules) - before))",
        cwd=alone,
    )
    assert result.code == 0, result
    new = {name for name in result.stdout.split() if name.split(".")[0] != "meticulous"}
    assert new <= {"errno", "time"}


def test_import_does_nothing(alone):
    source = """
import atexit, io, os, signal, sys, threading
def look():
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    streams = sys.stdout, sys.stderr, sys.stdin, sys.excepthook, getattr(sys, "unraisablehook", None)
    return handlers, streams, threading.enumerate(), dict(os.environ), atexit._ncallbacks(), print, io.open
before = look()
import meticulous
assert look() == before
"""
    result = run_python("-I", "-c", "import sys; sys.path[:0] = ['.']" + source, cwd=alone)
    assert (result.code, result.stdout, result.stderr) == (0, "", ""), result
    assert {path.name for path in alone.iterdir()} <= {"meticulous.py", "__pycache__"}


@pytest.mark.parametrize("options", [("-W", "error", "-X", "dev"), ("-OO",), ("-S", "-s")], ids=" ".join)
def test_it_imports_silently_with_the_interpreter_option(alone, options):
    result = run_python(*options, "-c", "import meticulous", cwd=alone)
    assert (result.code, result.stdout, result.stderr) == (0, "", ""), result


def test_a_copy_alone_prints_its_version_and_blob_hash(alone, repo):
    result = run_python("-I", "meticulous.py", "--version", cwd=alone)
    assert result.code == 0, result
    version = re.search(r'^__version__ = "(.+)"$', SOURCE, re.MULTILINE).group(1)
    assert version in result.stdout
    assert repo.git("hash-object", "--no-filters", alone / "meticulous.py").strip() in result.stdout


def test_an_edited_copy_shows_in_the_version(alone):
    before = run_python("-I", "meticulous.py", "--version", cwd=alone).stdout
    with (alone / "meticulous.py").open("a") as file:
        file.write("# edited\n")
    after = run_python("-I", "meticulous.py", "--version", cwd=alone).stdout
    assert before and after and before != after


def test_a_copy_beside_the_script_records_and_lists(repo):
    shutil.copy(str(FILE), str(repo.path))
    result = repo.run("from meticulous import Experiment; Experiment({'lr': 0.25})", env={"PYTHONPATH": None})
    assert result.code == 0, result
    assert (repo.experiment(1) / "STATUS").read_text() == "SUCCESS"
    listing = repo.run(None, "experiments", name="meticulous.py", env={"PYTHONPATH": None})
    assert listing.code == 0 and "0.25" in listing.stdout, listing


def test_the_file_names_its_licence_and_copyright():
    head = "\n".join(LINES[:10])
    assert "SPDX-License-Identifier: MIT" in head and "SPDX-FileCopyrightText: 2026" in head
