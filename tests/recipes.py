"""Print the versions of the recipes' packages: `python tests/recipes.py [--write]` (into README.md)."""

import importlib.metadata
import platform
import re
import sys
from pathlib import Path

from changelog import README, write_section

REQUIREMENTS = Path(__file__).resolve().parent / "recipes.txt"


def list_versions():
    names = re.findall(r"^[\w-]+", REQUIREMENTS.read_text("utf-8"), re.M)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    return f"Last run with Python {platform.python_version()}, {versions}.\n"


if __name__ == "__main__":
    versions = list_versions()
    print(versions, end="")
    if "--write" in sys.argv[1:]:
        write_section(README, "recipes", versions)
