"""Print the versions of the recipes' packages: `python tests/recipes.py [--write]` (into README.md)."""

import importlib.metadata
import platform
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
README = TESTS.parent / "README.md"
BEGIN, END = "<!-- recipes: begin -->\n", "<!-- recipes: end -->\n"


def list_versions():
    names = [line for line in (TESTS / "recipes.txt").read_text("utf-8").splitlines() if line[0] != "#"]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    return f"Last run with Python {platform.python_version()}, {versions}.\n"


def write_versions(versions):
    """Replace what is between the markers in README.md by *versions*."""
    before, begin, rest = README.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{README} lacks a line {BEGIN.strip()} and after it a line {END.strip()}.")
    README.write_bytes((before + begin + versions + end + after).encode("utf-8"))


if __name__ == "__main__":
    versions = list_versions()
    print(versions, end="")
    if "--write" in sys.argv[1:]:
        write_versions(versions)
