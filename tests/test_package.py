"""The wheel and the sdist hold what they should, and the installed package is the same one file."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser

import pytest
from conftest import PROJECT

VERSION = re.search(
    r'^__version__ = "(.+)"$', (PROJECT / "meticulous.py").read_text("utf-8"), re.MULTILINE
).group(1)
BUILD = "import sys; from flit_core import buildapi; buildapi.{}(sys.argv[1])"


def build(kind, project, folder):
    """Build a wheel or an sdist of *project* as pip does, and return its path."""
    folder.mkdir()
    subprocess.check_call(
        [sys.executable, "-c", BUILD.format("build_" + kind), str(folder)],
        cwd=str(project),
        env=dict(os.environ, SOURCE_DATE_EPOCH="1700000000"),
    )
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build("wheel", PROJECT, tmp_path_factory.mktemp("package") / "wheel")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    return build("sdist", PROJECT, tmp_path_factory.mktemp("package") / "sdist")


def test_the_wheel_is_the_one_file_for_every_platform(wheel):
    info = f"meticulous_lite-{VERSION}.dist-info/"
    assert wheel.name == f"meticulous_lite-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(str(wheel)) as archive:
        expected = {"meticulous.py"}
        expected.update(
            info + name for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
        )
        assert set(archive.namelist()) == expected
        assert archive.read("meticulous.py") == (PROJECT / "meticulous.py").read_bytes()


def test_the_metadata_comes_from_the_file(wheel):
    with zipfile.ZipFile(str(wheel)) as archive:
        metadata = Parser().parsestr(
            archive.read(f"meticulous_lite-{VERSION}.dist-info/METADATA").decode("utf-8")
        )
    assert (metadata["Name"], metadata["Version"]) == ("meticulous-lite", VERSION)
    assert metadata["Requires-Python"] == ">=3.6"
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Summary"] in (PROJECT / "meticulous.py").read_text("utf-8")
    assert metadata.get_all("Requires-Dist") is None


def test_the_sdist_has_what_a_developer_needs_and_no_more(sdist):
    with tarfile.open(str(sdist)) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    assert {
        "LICENSE", "README.md", "meticulous.py", "noxfile.py", "pyproject.toml", "tests/conftest.py",
        "tests/example/iris.csv", "tests/example/train.py", "tests/requirements.txt",
    } <= names  # fmt: skip
    assert [name for name in names if re.search(r"__pycache__|experiments/|\.pyc|\.git|\.venv", name)] == []


def test_the_sdist_builds_the_same_wheel(sdist, wheel, tmp_path):
    with tarfile.open(str(sdist)) as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(str(tmp_path))
    again = build("wheel", tmp_path / f"meticulous_lite-{VERSION}", tmp_path / "wheel")
    assert again.name == wheel.name
    assert again.read_bytes() == wheel.read_bytes()


@pytest.mark.slow
def test_the_installed_package_records_and_lists(wheel, repo, tmp_path):
    subprocess.check_call([sys.executable, "-m", "venv", str(tmp_path / "venv")])
    programs = tmp_path / "venv" / "bin"
    python = programs / "python"
    subprocess.check_call(
        [
            str(python),
            "-m",
            "pip",
            "--disable-pip-version-check",
            "install",
            "--quiet",
            "--no-index",
            str(wheel),
        ]
    )
    alone = {"PYTHONPATH": None}
    result = repo.run("from meticulous import Experiment; Experiment({'lr': 0.25})", python=python, env=alone)
    assert result.code == 0, result
    assert (repo.experiment(1) / "STATUS").read_text() == "SUCCESS"
    listing = subprocess.check_output([str(programs / "meticulous"), "experiments"], cwd=str(repo.path))
    assert b"0.25" in listing
    version = subprocess.check_output([str(programs / "meticulous"), "--version"], cwd=str(tmp_path))
    assert VERSION in version.decode()
