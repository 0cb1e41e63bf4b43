"""The developer's menu: `nox -l` lists the sessions; `nox -s tests-3.6 -- -k resume` passes on options."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "venv"  # virtualenv no longer makes environments for Python 3.6
nox.options.error_on_missing_interpreters = True

VERSIONS = [f"3.{minor}" for minor in range(6, 16)]
REQUIREMENTS = ("-r", "tests/requirements.txt")
LINTERS = ("ruff ==0.17.*", "mypy ==2.*")
# Because of these lines linters and formatters leave copies in other projects as they are (see the session
# "vendored"). Here meticulous.py is checked with the lines masked.
SILENCERS = (
    "# fmt: off",
    "# flake8: noqa",
    "# isort: skip_file",
    "# mypy: ignore-errors",
    "# pylint: skip-file",
)


def list_pyenv_folders():
    """List the folders of pyenv's interpreters: its shims work only for the selected versions."""
    if not shutil.which("pyenv"):
        return []
    root = subprocess.run(["pyenv", "root"], stdout=subprocess.PIPE, check=True).stdout.decode().strip()
    return [str(folder) for folder in sorted(Path(root, "versions").glob("*/bin"))]


def is_there(version):
    """Return whether this Python is found and can make environments (Debian's can't without python3-venv)."""
    command = [f"python{version}", "-c", "import ensurepip, ssl"]
    return bool(shutil.which(command[0])) and subprocess.call(command, stderr=subprocess.DEVNULL) == 0


os.environ["PATH"] = os.pathsep.join(list_pyenv_folders() + [os.environ["PATH"]])
FOUND = [version for version in VERSIONS if is_there(version)]
MISSED = [version for version in VERSIONS if version not in FOUND]


def write_masked_copy(session):
    """Write meticulous.py with masked SILENCERS to a temporary folder, and return the path of this copy."""
    source = Path("meticulous.py").read_text("utf-8")
    for line in SILENCERS:
        if f"\n{line}\n" not in source:
            session.error(f"meticulous.py lacks the line {line!r}.")
        source = source.replace(f"\n{line}\n", f"\n{line.replace(':', ';')}\n", 1)
    copy = Path(session.create_tmp(), "meticulous.py")
    copy.write_text(source, "utf-8")
    return copy


@nox.session(python=FOUND or VERSIONS)
def tests(session):
    """Run the tests on each Python that is found."""
    session.notify("missing")
    session.install(*REQUIREMENTS)
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(python=False, default=False)
def missing(session):
    """Log which Pythons were not found."""
    if not FOUND:
        session.error("No Python from 3.6 on was found.")
    session.log(f"Found {', '.join(FOUND)}. Not found: {', '.join(MISSED) or 'none'}.")


@nox.session
def lint(session):
    """Check the style with ruff and the types with mypy (`nox -s format` corrects the layout)."""
    session.install(*LINTERS)
    copy = write_masked_copy(session)
    session.run("ruff", "check", "--config", "pyproject.toml", ".", str(copy))
    session.run("ruff", "format", "--config", "pyproject.toml", "--check", ".", str(copy))
    session.run("mypy", "--shadow-file", "meticulous.py", str(copy), *session.posargs)


@nox.session(default=False)
def format(session):
    """Format all files, meticulous.py included."""
    session.install(*LINTERS)
    copy = write_masked_copy(session)
    session.run("ruff", "check", "--config", "pyproject.toml", "--fix", ".", str(copy))
    session.run("ruff", "format", "--config", "pyproject.toml", ".", str(copy))
    source = copy.read_text("utf-8")
    for line in SILENCERS:
        source = source.replace(line.replace(":", ";"), line, 1)
    Path("meticulous.py").write_text(source, "utf-8")


@nox.session
def vendored(session):
    """Check that the usual linters and formatters, with strict settings, leave a copy as it is."""
    session.install(*LINTERS, "black", "flake8", "isort", "pylint")
    folder = Path(session.create_tmp())
    shutil.copy("meticulous.py", str(folder))
    with session.chdir(folder):
        session.run("black", "--check", "--line-length", "79", "meticulous.py")
        session.run("ruff", "format", "--isolated", "--check", "--line-length", "79", "meticulous.py")
        session.run("ruff", "check", "--isolated", "--select", "E,F,W,I,B,D,N,ANN,S,PL,UP", "meticulous.py")
        session.run("flake8", "--isolated", "meticulous.py")
        session.run("isort", "--check", "--force-single-line-imports", "meticulous.py")
        session.run("pylint", "meticulous.py")
        session.run("mypy", "--config-file=", "--strict", "meticulous.py")


@nox.session(python=False)
def size(session):
    """Count the tokens of code of each chapter and part, and compare them with the limits."""
    session.run(sys.executable, "tests/chapters.py")


@nox.session(python=sorted({*FOUND[:1], *FOUND[-1:]}, key=VERSIONS.index) or VERSIONS)
def wheel(session):
    """Build wheel and sdist, and install and run each, on the oldest and the newest Python."""
    # The pip that comes with 3.6 can't install an sdist without a setup.py.
    session.install("pip ==21.3.1" if session.python == "3.6" else "pip", "flit_core >=3.11,<4")
    folder = session.create_tmp()
    build = "from flit_core.buildapi import *; import sys; build_wheel(sys.argv[1]); build_sdist(sys.argv[1])"
    session.run("python", "-c", build, folder)
    for package in sorted(Path(folder).resolve().glob("meticulous_lite-*")):
        session.install("--force-reinstall", str(package))
        with session.chdir(folder):
            session.run("meticulous", "--version")
            session.run("python", "-I", "-c", "from meticulous.experiment import Experiment")


@nox.session(default=False)
def coverage(session):
    """Measure which lines and branches the tests cover, in their child processes too."""
    session.install(*REQUIREMENTS, "coverage >=7.10")
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *session.posargs, success_codes=[0, 1])
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session(python=False, default=False)
def changelog(session):
    """Print each release's date, blob hash and changes, read from the tags (`-- --write`: into README.md)."""
    session.run(sys.executable, "tests/changelog.py", *session.posargs)


@nox.session(default=False)
def bench(session):
    """Measure the cost of recording against a floor and other trackers (`-- --write`: into README.md)."""
    session.run("python", "tests/bench", *session.posargs)


@nox.session(default=False)
def slurm(session):
    """Run real jobs on a private Slurm; install it from Debian's packages if it is missing (as root)."""
    session.install(*REQUIREMENTS)
    session.run("python", "tests/slurm/cluster.py", "install")
    session.run("python", "-m", "pytest", "-m", "slurm", *session.posargs)


@nox.session(default=False)
def kills(session):
    """Kill 500 recording processes, most of them after STATUS is written, and check what they leave."""
    session.run("python", "tests/kills.py", *(session.posargs or ["500"]))


@nox.session(default=False)
def browser(session):
    """Test the report in Chromium, from Debian's packages (`-- --write`: redo the README's picture)."""
    if not all(map(shutil.which, ("chromium", "chromedriver", "npm"))):
        apt = ("apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300")
        packages = ["chromium", "chromium-driver", "fonts-dejavu-core"] + ["npm"] * (not shutil.which("npm"))
        session.run(*apt, "update", external=True)
        session.run(*apt, "install", "--no-install-recommends", *packages, external=True)
    session.install(*REQUIREMENTS, "selenium ==4.*", "pillow")
    folder = session.create_tmp()
    session.run("npm", "install", "--silent", "--prefix", folder, "axe-core@4", external=True)
    session.env["AXE"] = str(Path(folder).resolve() / "node_modules" / "axe-core" / "axe.min.js")
    options = [option for option in session.posargs if option != "--write"]
    if len(options) < len(session.posargs):
        session.env["PICTURE"] = "tests/example/report.png"
    session.run("python", "-m", "pytest", "-m", "browser", "tests/browser", *options)


# torch without CUDA is at hand for 3.11; else it takes several GB (`--force-python 3.13`: another Python).
@nox.session(python="3.11", default=False)
def recipes(session):
    """Run the README's recipes with the real packages (`-- --write`: their versions into README.md)."""
    session.install(*REQUIREMENTS, "-r", "tests/recipes.txt")
    session.run("python", "-m", "pytest", "-m", "recipes", "tests/test_recipes.py")
    session.run("python", "tests/recipes.py", *session.posargs)
