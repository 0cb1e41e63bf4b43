"""meticulous.py works when it is copied alone, imports little and changes nothing, and keeps its order."""

import ast
import importlib.util
import re
import shutil
import symtable
import sys
import sysconfig

import pytest
from chapters import CHAPTERS, FILE, LINES, SOURCE, find_chapter, read_map
from conftest import PROJECT, launch

LONGEST_CHAPTER = 500
LONGEST_FUNCTION = 50
# as_dataframe() alone imports pandas; the others are the standard library's on Windows or in some versions.
NOT_HERE = {"pandas", "msvcrt", "winreg", "_winapi", "_interpreters", "_xxsubinterpreters"}


def find_top_level_names():
    """Return the line where each global name is first defined."""
    names = {}
    for node in ast.parse(SOURCE).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.setdefault(node.name, node.lineno)
        for child in ast.walk(node) if isinstance(node, (ast.Assign, ast.AnnAssign, ast.If, ast.Try)) else ():
            if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
                names.setdefault(child.id, child.lineno)
    return names


def list_global_uses(table):
    """List (name, line of the scope) of each global name that a function or class body uses."""
    uses = []
    if table.get_type() != "module":
        uses = [
            (symbol.get_name(), table.get_lineno()) for symbol in table.get_symbols() if symbol.is_global()
        ]
    return uses + [use for child in table.get_children() for use in list_global_uses(child)]


def list_uses_at_import():
    """List (name, line) of each name in decorators, defaults, bases and statements of the module itself."""
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
    return launch([sys.executable, *arguments], cwd=cwd).result()


@pytest.fixture
def alone(tmp_path):
    """Return a folder that holds only a copy of meticulous.py."""
    folder = tmp_path / "alone"
    folder.mkdir()
    shutil.copy(str(FILE), str(folder))
    return folder


def test_the_map_in_the_docstring_has_four_parts_and_their_chapters_in_order():
    parts = read_map()
    assert [name.split()[0] for name in parts] == ["I", "II", "III", "IV"]
    titles = [title for title, _, _ in CHAPTERS]
    assert [title for chapters in parts.values() for title in chapters] == titles
    assert len(titles) == len(set(titles))


def test_every_chapter_begins_with_a_comment_on_what_it_does():
    assert CHAPTERS and [title for title, start, _ in CHAPTERS if not LINES[start].startswith("# ")] == []


def test_no_chapter_is_long():
    lengths = {title: end - start for title, start, end in CHAPTERS}
    assert {title: length for title, length in lengths.items() if length > LONGEST_CHAPTER} == {}


@pytest.mark.skipif(sys.version_info < (3, 8), reason="this interpreter does not tell where a function ends")
def test_no_function_is_long():
    functions = [node for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.FunctionDef)]
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in functions}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION} == {}


def test_a_chapter_uses_only_names_from_the_chapters_above():
    defined = find_top_level_names()
    uses = list_global_uses(symtable.symtable(SOURCE, str(FILE), "exec")) + list_uses_at_import()
    assert len(uses) > 100
    from_below = [
        f"line {line} uses {name} of line {defined[name]}"
        for name, line in uses
        if name in defined and find_chapter(defined[name]) > find_chapter(line)
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


def test_modules_are_imported_in_the_first_chapter_or_inside_functions():
    at_the_top = [node for node in ast.parse(SOURCE).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert {find_chapter(node.lineno) for node in at_the_top} == {0}


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


def test_the_head_names_the_version_the_package_and_the_licence():
    head = "\n".join(LINES[:6])
    version = re.search(r'^__version__ = "(.+)"$', SOURCE, re.MULTILINE).group(1)
    assert f"meticulous {version}" in head and "meticulous-lite" in head
    assert "SPDX-License-Identifier: MIT" in head and "SPDX-FileCopyrightText: 2026" in head


def test_the_file_ends_with_the_complete_text_of_the_licence():
    licence = (PROJECT / "LICENSE").read_text("utf-8").splitlines()
    assert [line[2:] for line in LINES[-len(licence) :]] == licence
    assert all(line.startswith("#") for line in LINES[-len(licence) :])
