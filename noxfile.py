"""The developer's menu: `nox -l` shows it, `nox -s tests-3.6 -- -k resume` hands pytest its options."""

import os
import shutil
import subprocess
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "venv"  # virtualenv no longer makes environments for Python 3.6
nox.options.error_on_missing_interpreters = True

VERSIONS = [f"3.{minor}" for minor in range(6, 16)]
REQUIREMENTS = ("-r", "tests/requirements.txt")


def list_pyenv_folders():
    """List the folders of pyenv's interpreters, whose shims work for the selected ones only."""
    if not shutil.which("pyenv"):
        return []
    root = subprocess.run(["pyenv", "root"], stdout=subprocess.PIPE, check=True).stdout.decode().strip()
    return [str(folder) for folder in sorted(Path(root, "versions").glob("*/bin"))]


def is_there(version):
    command = [f"python{version}", "-c", ""]
    return bool(shutil.which(command[0])) and subprocess.call(command, stderr=subprocess.DEVNULL) == 0


os.environ["PATH"] = os.pathsep.join(list_pyenv_folders() + [os.environ["PATH"]])
FOUND = [version for version in VERSIONS if is_there(version)]
MISSED = [version for version in VERSIONS if version not in FOUND]


@nox.session(python=FOUND or VERSIONS)
def tests(session):
    """Run the tests on each Python that is found."""
    session.notify("missing")
    session.install(*REQUIREMENTS)
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(python=False, default=False)
def missing(session):
    """Name the Pythons that are not found here."""
    if not FOUND:
        session.error("No Python of a version from 3.6 on is found.")
    session.log(f"Found {', '.join(FOUND)}. Missed {', '.join(MISSED) or 'none'}.")


@nox.session
def lint(session):
    """Check the style with ruff and the types with mypy."""
    session.install("ruff ==0.17.*", "mypy ==2.*")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy", *session.posargs)


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
    """Measure which lines and branches the tests reach, in their child processes too."""
    session.install(*REQUIREMENTS, "coverage >=7.10")
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *session.posargs, success_codes=[0, 1])
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session(default=False)
def bench(session):
    """Compare the cost of recording with a floor and with peers (`-- --write`: in README.md)."""
    session.run("python", "tests/bench", *session.posargs)


@nox.session(default=False)
def slurm(session):
    """Run real jobs on a private Slurm, installed from Debian's packages if it is missing (as root)."""
    session.install(*REQUIREMENTS)
    session.run("python", "tests/slurm/cluster.py", "install")
    session.run("python", "-m", "pytest", "-m", "slurm", *session.posargs)


@nox.session(default=False)
def kills(session):
    """Kill 500 recording processes at random moments and look at what they leave."""
    session.run("python", "tests/kills.py", *(session.posargs or ["500"]))


@nox.session(default=False)
def browser(session):
    """Test the report in Chromium, from Debian's packages (`-- --write`: redo the README's picture)."""
    if not shutil.which("chromedriver"):
        session.run("apt-get", "update", "-q", external=True)
        packages = ("chromium", "chromium-driver", "fonts-dejavu-core")
        session.run("apt-get", "install", "-y", "-q", "--no-install-recommends", *packages, external=True)
    session.install(*REQUIREMENTS, "selenium ==4.*", "pillow")
    folder = session.create_tmp()
    session.run("npm", "install", "--silent", "--prefix", folder, "axe-core@4", external=True)
    session.env["AXE"] = str(Path(folder).resolve() / "node_modules" / "axe-core" / "axe.min.js")
    options = [option for option in session.posargs if option != "--write"]
    if len(options) < len(session.posargs):
        session.env["PICTURE"] = "tests/example/report.png"
    session.run("python", "-m", "pytest", "-m", "browser", "tests/browser", *options)
