"""`freeze` copies the code of a commit, where experiments run as they would in the original; `repeat` compares."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest
from conftest import PROJECT, launch
from test_git import OLD_GIT, make_stand_in

import meticulous

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX")

TRAIN = """
import argparse
from meticulous import Experiment

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--data", default="data/numbers.txt")
Experiment.add_argument_group(parser)
experiment = Experiment.from_parser(parser)
args = parser.parse_args()
with open(args.data) as file:
    numbers = [float(line) for line in file]
experiment.summary(loss=args.lr * sum(numbers), nan=float("nan"), nested={"numbers": [1, numbers]})
"""


@pytest.fixture
def project(repo):
    """Return a repository with meticulous.py, a script and data that git ignores."""
    repo.write("meticulous.py", (PROJECT / "meticulous.py").read_bytes())
    repo.write(".gitignore", "__pycache__/\n/data/\nexperiments\ngenerated.py\n*.bin\n")
    repo.write("data/numbers.txt", "1\n2\n")
    repo.write("train.py", TRAIN)
    repo.commit("Add a script")
    return repo


def python(repo, *words, cwd=None, env=None, **keywords):
    """Run Python with *words* as a user does, who has no PYTHONPATH; return the Result."""
    environment = repo.environment({"PYTHONPATH": None, **(env or {})})
    script = launch([sys.executable, *words], cwd=cwd or repo.path, env=environment, **keywords)
    repo.scripts.append(script)
    return script.result()


def command(repo, *words, cwd=None, **keywords):
    return python(repo, str(repo.path / "meticulous.py"), *words, cwd=cwd, **keywords)


def freeze(repo, *words, **keywords):
    """Return the path that `freeze` prints."""
    result = command(repo, "freeze", *words, **keywords)
    assert result.code == 0, result
    assert result.stdout.endswith("\n") and result.stdout.count("\n") == 1
    return repo.path.__class__(result.stdout[:-1])


def record(repo, source, *words, name="script.py", **keywords):
    """Write a script, commit and run it: an experiment."""
    repo.write(name, textwrap.dedent(source))
    repo.commit("Write " + name)
    result = python(repo, name, *words, **keywords)
    return result


def load(repo, number, name="metadata.json"):
    return json.loads((repo.experiment(number) / name).read_text())


def list_copies(repo):
    return sorted(name for name in os.listdir(str(repo.path / "experiments" / ".code")) if name[0] != ".")


def list_state(repo):
    """Return all that a repetition must leave as it is."""
    paths = [path for path in (repo.path / ".git").rglob("*") if path.is_file()]
    contents = {str(path): path.read_bytes() for path in paths if path.name in ("HEAD", "index", "config")}
    return contents, repo.git("status", "--porcelain"), repo.git("stash", "list"), repo.git("branch", "--all")


def head(repo):
    return repo.git("rev-parse", "HEAD").strip()


# --- freeze


def test_copy_is_the_commit_however_the_original_goes_on(project):
    copy = freeze(project)
    assert copy == project.path / "experiments" / ".code" / head(project)
    project.write("train.py", "raise SystemExit('edited')")
    project.commit("Edit")
    result = python(project, "train.py", cwd=copy)
    assert result.code == 0, result
    assert load(project, 1)["githead-sha"] == copy.name
    assert load(project, 1)["directory"] == str(copy)
    assert not (copy / "experiments").exists()


def test_path_of_a_copy_is_printed_as_it_is(make_repo, latin_directory):
    make_repo(os.fsdecode(latin_directory))
    script = os.path.abspath(meticulous.__file__)
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    output = subprocess.check_output([sys.executable, script, "freeze"], cwd=latin_directory, env=strict)
    assert os.path.isdir(output[:-1]) and output.startswith(latin_directory)


def test_copy_is_a_clean_repository_without_a_branch(project):
    copy = freeze(project)
    assert project.git("-C", str(copy), "status", "--porcelain") == ""
    assert project.git("-C", str(copy), "log", "--format=%H") == project.git("log", "--format=%H")
    assert (copy / ".git" / "HEAD").read_text().strip() == head(project)
    assert project.git("-C", str(copy), "fsck") == ""


def test_dirty_work_tree_is_refused_and_nothing_is_printed(project):
    project.write("train.py", "changed")
    result = command(project, "freeze")
    assert (result.code, result.stdout) == (2, "")
    assert "'train.py'" in result.stderr
    assert not (project.path / "experiments" / ".code").exists()


def test_first_run_of_a_project_may_be_in_a_copy(project):
    project.write(".gitignore", "__pycache__/\n/data/\n")
    project.commit("Ignore no experiments")
    copy = freeze(project)
    assert copy.name == head(project)
    assert project.git("log", "-1", "--format=%s").strip() == "Added experiments directory to .gitignore"
    assert python(project, "train.py", cwd=copy).code == 0
    assert project.experiment(1).is_dir()
    assert project.git("status", "--porcelain") == ""


def test_copy_below_the_top_is_that_of_the_current_directory(project):
    project.write("part/train.py", TRAIN.replace("data/", "../data/"))
    project.commit("Add a part")
    top = freeze(project)
    shutil.rmtree(str(project.path / "experiments"))
    part = freeze(project, cwd=project.path / "part")
    assert part == project.path / "part" / "experiments" / ".code" / top.name / "part"
    assert python(project, "train.py", cwd=part, env={"PYTHONPATH": part.parent}).code == 0
    assert (project.path / "part" / "experiments" / "1" / "summary.json").exists()


@pytest.mark.parametrize("name", ["HEAD^", "1", "experiments/1", "branch", "other/branch"])
def test_commit_or_experiment_can_be_named(project, name):
    sha = head(project)
    project.git("branch", "branch")
    project.git("branch", "other/branch")
    assert python(project, "train.py").code == 0
    project.write("train.py", "changed")
    project.commit()
    assert freeze(project, name).name == sha


def test_unknown_commit_is_an_error(project):
    result = command(project, "freeze", "nonsense")
    assert (result.code, result.stdout) == (2, "")
    assert "'nonsense'" in result.stderr


def test_ignored_data_is_linked_and_ignored_python_is_copied(project):
    project.write("generated.py", "X = 1\n")
    project.write("libs/README", "")
    project.commit()
    project.write("libs/weights.bin", "")
    project.write("libs/generated.py", "X = 2\n")
    project.write(".pytest_cache/x", "")
    project.write("__pycache__/x", "")
    (project.path / ".git" / "info" / "exclude").write_text(".pytest_cache\n.env\n")
    project.write(".env", "")
    copy = freeze(project)
    names = {
        ".env",
        ".git",
        ".gitignore",
        "README",
        "data",
        "generated.py",
        "libs",
        "meticulous.py",
        "train.py",
    }
    assert set(os.listdir(str(copy))) == names
    assert os.readlink(str(copy / "data")) == str(project.path / "data")
    assert os.readlink(str(copy / "libs" / "weights.bin")) == str(project.path / "libs" / "weights.bin")
    for name in ("generated.py", "libs/generated.py"):
        assert not (copy / name).is_symlink()
        assert (copy / name).read_text() == (project.path / name).read_text()


def test_ignored_python_that_is_not_a_file_is_linked(project):
    (project.path / ".git" / "info" / "exclude").write_text("old.py\nfolder.py\n")
    (project.path / "old.py").symlink_to("nowhere")
    project.write("folder.py/x", "")
    copy = freeze(project)
    assert os.readlink(str(copy / "old.py")) == str(project.path / "old.py")
    assert (copy / "folder.py" / "x").exists()


def test_data_that_came_later_is_linked_into_the_copy_that_is_there(project):
    shutil.rmtree(str(project.path / "data"))
    copy = freeze(project)
    assert not (copy / "data").exists()
    project.write("data/numbers.txt", "1\n")
    assert freeze(project) == copy
    assert (copy / "data" / "numbers.txt").exists()


def test_link_adds_a_path_and_no_links_leaves_all_out(project):
    project.write("untracked/x", "")
    copy = freeze(project, "--link", "untracked", "--no-links")
    assert (copy / "untracked" / "x").exists()
    assert not (copy / "data").exists()
    assert (freeze(project) / "data").exists()
    assert not (copy / "data").exists()


@pytest.mark.parametrize("path", ["missing", "../outside"])
def test_link_that_leads_nowhere_is_an_error(project, path):
    (project.path.parent / "outside").mkdir()
    result = command(project, "freeze", "--link", path)
    assert (result.code, result.stdout) == (2, "")
    assert path in result.stderr


def test_names_that_git_quotes(project):
    name = 'd\u00e4ta "quoted" #1'
    project.write(name + "/x", "")
    project.write(".gitignore", f"experiments\n{name}\n")
    project.commit()
    assert (freeze(project) / name / "x").exists()


def test_work_tree_with_unusual_characters(make_repo, tmp_path):
    repo = make_repo(tmp_path / 'a "b" \\c # \u00e9')
    repo.write("meticulous.py", (PROJECT / "meticulous.py").read_bytes())
    repo.write("script.py", "from meticulous import Experiment\nExperiment().summary(loss=1)\n")
    repo.commit()
    copy = freeze(repo)
    assert python(repo, "script.py", cwd=copy).code == 0
    assert repo.experiment(1).is_dir()
    assert command(repo, "repeat", "1").code == 0


def test_settings_of_the_original_hold_in_the_copy(project):
    project.git("config", "core.autocrlf", "true")
    project.git("config", "filter.shout.smudge", "tr a-z A-Z")
    project.git("config", "filter.shout.clean", "tr A-Z a-z")
    project.write(".git/info/attributes", "*.loud filter=shout\n")
    project.write("word.loud", "hello\r\n")
    project.write("lines.txt", "a\r\nb\r\n")
    project.commit()
    project.write("lines.txt", "a\r\nb\r\n")
    copy = freeze(project)
    assert (copy / "word.loud").read_bytes() == b"HELLO\r\n"
    assert (copy / "lines.txt").read_bytes() == b"a\r\nb\r\n"
    assert project.git("-C", str(copy), "status", "--porcelain") == ""


def test_shallow_clone(project, tmp_path):
    project.git("clone", "--quiet", "--depth=1", f"file://{project.path}", str(tmp_path / "clone"))
    copy = freeze(project, cwd=tmp_path / "clone")
    assert project.git("-C", str(copy), "log", "--format=%H").split() == [copy.name]


def test_submodules_are_at_their_commits_without_network(project, make_repo, tmp_path):
    library = make_repo(tmp_path / "library")
    library.write("library.py", "VERSION = 1\n")
    library.commit()
    project.git(
        "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(library.path), "libs/one"
    )
    project.write("train.py", TRAIN + "\nimport sys; sys.path.append('libs/one')\nimport library\n")
    project.commit("Add a submodule")
    shutil.rmtree(str(library.path))
    inner = project.path / "libs" / "one"
    copy = freeze(project)
    project.git(
        "-C", str(inner), "-c", "user.name=x", "-c", "user.email=x", "commit", "-qm", "x", "--allow-empty"
    )
    project.commit("Move the submodule on")
    assert (copy / "libs" / "one" / "library.py").read_text() == "VERSION = 1\n"
    assert project.git("-C", str(copy), "status", "--porcelain") == ""
    assert "library.py" in project.git("-C", str(copy / "libs" / "one"), "ls-files")
    result = python(project, "train.py", cwd=copy)
    assert result.code == 0, result


def test_linked_work_tree(project, tmp_path):
    project.git("worktree", "add", "--quiet", str(tmp_path / "linked"))
    shutil.copytree(str(project.path / "data"), str(tmp_path / "linked" / "data"))
    copy = freeze(project, cwd=tmp_path / "linked")
    assert copy.parent.parent == tmp_path / "linked" / "experiments"
    assert python(project, "train.py", cwd=copy).code == 0
    assert (tmp_path / "linked" / "experiments" / "1").is_dir()


def test_old_git_is_enough(project, tmp_path):
    log = tmp_path / "log"
    path = make_stand_in(tmp_path, OLD_GIT.replace("LOG", str(log)))
    copy = freeze(project, env={"PATH": path})
    result = python(project, "train.py", cwd=copy, env={"PATH": path})
    assert result.code == 0, result
    assert command(project, "repeat", "1", env={"PATH": path}).code == 0
    assert "reset" in log.read_text()


def test_sixty_four_at_once_make_one_copy(project):
    words = [sys.executable, "meticulous.py", "freeze"]
    environment = project.environment({"PYTHONPATH": None})
    scripts = [launch(words, cwd=project.path, env=environment) for _ in range(64)]
    results = [script.result() for script in scripts]
    assert {(result.code, result.stdout) for result in results} == {
        (0, f"{project.path}/experiments/.code/{head(project)}\n")
    }
    assert list_copies(project) == [head(project)]
    assert [name for name in os.listdir(str(project.path / "experiments")) if name.startswith(".new")] == []


def test_killed_in_between_blocks_nobody(project, tmp_path):
    """The git that checks out tells that it does, waits, and is killed with the process that started it."""
    source = """#!/bin/sh
    case "$*" in *reset*) exec GIT "$@" & echo started >&2; kill -9 $PPID; exit;; esac
    exec GIT "$@"
    """
    path = make_stand_in(tmp_path, textwrap.dedent(source).replace('exec GIT "$@" &', ""))
    result = command(project, "freeze", env={"PATH": path})
    assert (result.code, result.stdout) == (-signal.SIGKILL, "")
    assert list_copies(project) == []
    copy = freeze(project)
    assert python(project, "train.py", cwd=copy).code == 0
    assert list_copies(project) == [copy.name]


def test_every_command_works_in_the_copy(project):
    assert python(project, "train.py").code == 0
    copy = freeze(project)
    for words in ([], ["experiments"][:0], ["show", "1"], ["path", "-1"], ["diff", "1", "1"], ["freeze"]):
        result = python(project, "meticulous.py", *words, cwd=copy)
        assert result.code == 0, result
    assert result.stdout == f"{copy}\n"
    run = python(project, "meticulous.py", "run", "--", "true", cwd=copy)
    assert run.code == 0, run
    assert load(project, 2)["githead-sha"] == copy.name
    assert python(project, "meticulous.py", "repeat", "2", cwd=copy).code == 3


@pytest.mark.parametrize("directory", ["runs", "../beside", "ABSOLUTE"])
def test_experiments_directory_is_the_original_ones(project, tmp_path, directory):
    directory = directory.replace("ABSOLUTE", str(tmp_path / "elsewhere"))
    project.write(".gitignore", "__pycache__/\n/data/\nexperiments\nruns\n")
    project.commit()
    copy = freeze(project)
    result = python(project, "train.py", "--experiments-directory", directory, cwd=copy)
    assert result.code == 0, result
    assert (project.path / directory / "1" / "args.json").exists()


def test_experiments_directory_that_is_a_link(project, tmp_path):
    (tmp_path / "scratch").mkdir()
    (project.path / "experiments").symlink_to(str(tmp_path / "scratch"))
    copy = freeze(project)
    assert python(project, "train.py", cwd=copy).code == 0
    assert (tmp_path / "scratch" / "1").is_dir()
    assert not (copy / "experiments").exists()


def test_resumed_in_the_copy_after_the_original_has_moved_on(project):
    copy = freeze(project)
    assert python(project, "train.py", "--experiment-id", "job", cwd=copy).code == 0
    project.write("train.py", "changed")
    project.commit()
    result = python(project, "train.py", "--experiment-id", "job", cwd=copy)
    assert result.code == 0, result
    assert len(load(project, "job")["attempts"]) == 2


@pytest.mark.parametrize("is_deleted", [True, False], ids=["deleted", "moved"])
def test_original_that_is_gone_is_a_clear_error(project, tmp_path, is_deleted):
    directory = tmp_path / "elsewhere"
    copy = freeze(project, "--experiments-directory", str(directory))
    if is_deleted:
        shutil.rmtree(str(project.path))
    else:
        project.path.rename(tmp_path / "moved")
    for words in (["train.py"], ["meticulous.py"], ["meticulous.py", "freeze"]):
        result = python(project, *words, cwd=copy)
        assert result.code in (1, 2) and f"is a frozen copy of {project.path}, which was" in result.stderr
    assert sorted(os.listdir(str(directory))) == [".code"]


@pytest.mark.parametrize("is_inside", [True, False], ids=["started in it", "started elsewhere"])
def test_remove_keeps_only_the_copy_of_a_living_run(project, is_inside):
    old = freeze(project)
    project.write("wait.py", "from meticulous import Experiment\nExperiment()\nprint(flush=True)\ninput()\n")
    project.commit()
    used = freeze(project)
    assert list_copies(project) == sorted([old.name, used.name])
    words = ["wait.py"] if is_inside else [str(used / "wait.py")]
    script = launch(
        [sys.executable, *words],
        cwd=used if is_inside else project.path, env=project.environment(), stdin=subprocess.PIPE,
    )  # fmt: skip
    project.scripts.append(script)
    script.stdout.readline()
    assert command(project, "freeze", "--remove").code == 0
    assert list_copies(project) == [used.name]
    script.communicate(b"\n")
    assert command(project, "freeze", "--remove").code == 0
    assert list_copies(project) == []
    assert (project.path / "data" / "numbers.txt").exists()


HAS_SNAPSHOTS = pytest.mark.skipif(
    not hasattr(meticulous, "_take_snapshot"), reason="there are no snapshots yet"
)


@HAS_SNAPSHOTS
def test_copy_of_a_snapshot(project):
    sha = head(project)
    project.write("train.py", TRAIN + "import new\n")
    project.write("new.py", "")
    before = list_state(project)
    copy = freeze(project, "--allow-dirty")
    assert list_state(project) == before
    assert copy.name != sha and (copy / "new.py").exists()
    project.git("checkout", "--quiet", ".")
    result = python(project, "train.py", cwd=copy, env={"METICULOUS_ALLOW_DIRTY": "1"})
    assert result.code == 0, result
    assert load(project, 1)["githead-sha"] == copy.name
    assert freeze(project, "--allow-dirty").name != copy.name


@HAS_SNAPSHOTS
def test_repeated_snapshot(project):
    sha = head(project)
    project.write("train.py", TRAIN.replace("sum(", "max("))
    assert python(project, "train.py", "--allow-dirty").code == 0
    project.git("checkout", "--quiet", ".")
    result = command(project, "repeat", "1")
    assert (result.code, result.stdout) == (0, "REPRODUCED  1 -> 2: SUCCESS\n")
    assert load(project, 2)["githead-sha"] == load(project, 1)["githead-sha"] != sha


# --- repeat


def test_reproduced_leaves_work_tree_index_and_head(project):
    assert python(project, "train.py", "--lr", "0.3").code == 0
    project.write("train.py", "changed and committed")
    project.commit()
    project.write("train.py", "changed and staged")
    project.git("add", "train.py")
    project.write("train.py", "changed")
    before = list_state(project)
    result = command(project, "repeat", "1")
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout == "REPRODUCED  1 -> 2: SUCCESS\n"
    assert list_state(project) == before
    assert load(project, 2)["repeats"] == "1"
    assert load(project, 2, "args.json") == load(project, 1, "args.json")
    assert load(project, 2)["githead-sha"] == load(project, 1)["githead-sha"]


def test_random_result_differs_by_both_values(project):
    source = """
        import os
        from meticulous import Experiment
        with Experiment() as experiment:
            experiment.summary(loss=int.from_bytes(os.urandom(4), "big"), same=1)
    """
    assert record(project, source).code == 0
    result = command(project, "repeat", "-1")
    old, new = (load(project, number, "summary.json")["loss"] for number in (1, 2))
    assert (result.code, result.stdout) == (1, f"DIFFERS  1 -> 2: SUCCESS\nsummary\nloss  {old} -> {new}\n")


COUNT = """
import json, os, sys
from meticulous import Experiment
count = len(os.listdir(os.environ["COUNT"]))
open(os.path.join(os.environ["COUNT"], str(count)), "w").close()
Experiment().summary(json.loads(sys.argv[1 + count % 2]))
"""


@pytest.mark.parametrize(
    "first, second, rtol, code",
    [
        ('{"x": 1.0}', '{"x": 1.001}', "0", 1),
        ('{"x": 1.0}', '{"x": 1.001}', "0.01", 0),
        ('{"x": {"y": [1, 2, {"z": 3}]}}', '{"x": {"y": [1, 2, {"z": 3.001}]}}', "0.01", 0),
        ('{"x": {"y": [1, 2, {"z": 3}]}}', '{"x": {"y": [1, 2, {"z": 4}]}}', "0.01", 1),
        ('{"x": [1, 2]}', '{"x": [1, 2, 3]}', "0.5", 1),
        ('{"x": "1.0"}', '{"x": "1.001"}', "0.5", 1),
        ('{"x": NaN}', '{"x": NaN}', "0", 0),
        ('{"x": NaN}', '{"x": 1}', "0.5", 1),
        ('{"x": Infinity}', '{"x": 1}', "0.5", 1),
        ('{"x": Infinity}', '{"x": Infinity}', "0", 0),
        ('{"x": 1}', "{}", "0", 1),
        ('{"x": 1}', '{"x": 1, "y": 2}', "0", 1),
        ('{"x": 0}', '{"x": false}', "0", 0),
        (f'{{"x": 1{"0" * 400}}}', f'{{"x": 1{"0" * 400}}}', "0", 0),
        (f'{{"x": 1{"0" * 400}}}', f'{{"x": 1{"0" * 399}1}}', "0", 1),
        (f'{{"x": 1{"0" * 400}}}', f'{{"x": 1{"0" * 399}1}}', "0.1", 0),
        (f'{{"x": 1{"0" * 400}}}', '{"x": 1.5}', "0.1", 1),
        ("{}", '{"x": 1}', "0", 3),
    ],
)
def test_what_counts_as_the_same_result(project, tmp_path, first, second, rtol, code):
    (tmp_path / "count").mkdir()
    env = {"COUNT": tmp_path / "count"}
    assert record(project, COUNT, first, second, env=env).code == 0
    result = command(project, "repeat", "1", "--rtol", rtol, env=env)
    verdict = {0: "REPRODUCED", 1: "DIFFERS", 3: "NOTHING TO COMPARE"}[code]
    assert result.code == code and result.stdout.startswith(verdict + "  1 -> 2"), result


def test_crash_is_failed_with_its_reason(project, tmp_path):
    source = "import os\nfrom meticulous import Experiment\nExperiment().summary(x=1)\nos.mkdir(os.environ['DIR'])\n"
    env = {"DIR": tmp_path / "new"}
    assert record(project, source, env=env).code == 0
    result = command(project, "repeat", "1", env=env)
    assert result.code == 2
    assert "FAILED  1 -> 2: ERROR FileExistsError" in result.stdout
    assert "Traceback" in result.stderr


def test_run_that_records_nothing_is_failed(project, tmp_path):
    source = "import os\nos.mkdir(os.environ['DIR'])\nfrom meticulous import Experiment\nExperiment().summary(x=1)\n"
    env = {"DIR": tmp_path / "new"}
    assert record(project, source, env=env).code == 0
    result = command(project, "repeat", "1", env=env)
    assert (result.code, result.stdout) == (2, "FAILED  1 -> nothing was recorded\n")


SUMMARY = "from meticulous import Experiment\nExperiment(experiment_id=ID).summary(x=1)\n"


@pytest.mark.parametrize(
    "words",
    [
        ["train.py"],
        ["-u", "-W", "ignore", "./train.py", "--experiment-id", "name"],
        ["-m", "package.module"],
        ["-c", "from meticulous import Experiment; Experiment().summary(x=1)"],
        ["meticulous.py", "run", "--", sys.executable, "train.py", "--experiment-id=inner"],
        ["meticulous.py", "run", "--experiment-id", "name", "--", "sh", "-c", "exit 0"],
        ["fixed_id.py"],
        ["ABSOLUTE/train.py", "--data=ABSOLUTE/data/numbers.txt"],
        ["LINKS/project/train.py", "--data=LINKS/project/data/numbers.txt"],
        ["LINKS/package/module.py"],
        ["LINKS/train.py"],
    ],
    ids=[
        "script",
        "id",
        "module",
        "code",
        "run",
        "run-id",
        "fixed-id",
        "absolute",
        "link",
        "folder-link",
        "file-link",
    ],
)
def test_kinds_of_command_lines(project, words):
    project.write("package/__init__.py", "")
    project.write("package/module.py", SUMMARY.replace("ID", "None"))
    project.write("fixed_id.py", SUMMARY.replace("ID", "'name'"))
    project.commit()
    links = project.path.parent / "links"
    links.mkdir()
    for name, target in (("project", ""), ("package", "package"), ("train.py", "train.py")):
        (links / name).symlink_to(project.path / target)
    words = [word.replace("ABSOLUTE", str(project.path)).replace("LINKS", str(links)) for word in words]
    env = {"PYTHONPATH": project.path}
    result = python(project, *words, env=env)
    assert result.code == 0, result
    sha = head(project)
    for name in ("train.py", "package/module.py", "fixed_id.py"):
        project.write(name, "raise SystemExit('live code')")
    project.commit()
    before = set(os.listdir(str(project.path / "experiments")))
    name = "name" if "name" in before else "1"
    result = command(project, "repeat", name, env=env)
    assert result.code == (3 if words[1:2] == ["run"] else 0), result
    new = [name for name in set(os.listdir(str(project.path / "experiments"))) - before if name[0] != "."]
    assert {load(project, name)["githead-sha"] for name in new} == {sha}
    assert len(load(project, name)["attempts"]) == 1
    assert all(name.isdigit() for name in new)


def test_run_in_a_copy_that_was_removed(project):
    copy = freeze(project, "--no-links")
    assert (
        python(
            project, str(copy / "train.py"), "--data", str(project.path / "data/numbers.txt"), cwd=copy
        ).code
        == 0
    )
    assert command(project, "freeze", "--remove").code == 0
    result = command(project, "repeat", "1")
    assert (result.code, result.stderr) == (0, "")


def test_long_list_of_paths_among_the_arguments(project):
    source = (
        "import sys\nfrom meticulous import Experiment\nExperiment({'files': sys.argv[1]}).summary(x=1)\n"
    )
    paths = ",".join(f"/data/set/part/{number}" for number in range(600))
    assert record(project, source, f"--files={paths}").code == 0
    assert command(project, "repeat", "1").code == 0


def test_resumed_experiment(project):
    for _ in range(2):
        assert python(project, "train.py", "--experiment-id", "name").code == 0
    assert command(project, "repeat", "name").code == 0
    assert len(load(project, "name")["attempts"]) == 2


def test_repetition_can_be_repeated(project):
    assert python(project, "train.py").code == 0
    assert command(project, "repeat", "1").code == 0
    assert command(project, "freeze", "--remove").code == 0
    assert command(project, "repeat", "2").code == 0
    assert [load(project, number).get("repeats") for number in (1, 2, 3)] == [None, "1", "2"]


def test_directory_below_the_top(project):
    project.write("part/train.py", TRAIN.replace("data/", "../data/"))
    project.commit()
    env = {"PYTHONPATH": project.path}
    words = ["train.py", "--project-directory", ".."]
    assert python(project, *words, cwd=project.path / "part", env=env).code == 0
    project.write("meticulous.py", (PROJECT / "meticulous.py").read_bytes() + b"\n# changed\n")
    result = command(project, "repeat", "1", env=env)
    assert result.code == 0, result
    copy = project.path / "experiments" / ".code" / load(project, 1)["githead-sha"]
    assert load(project, 2)["directory"] == str(copy / "part")


def test_path_is_an_id(project):
    assert python(project, "train.py", "--experiments-directory", "others").code == 0
    result = command(project, "repeat", "others/1")
    assert (result.code, result.stdout.split()[0]) == (0, "REPRODUCED"), result
    assert json.loads((project.path / "others" / "2" / "metadata.json").read_text())["repeats"] == "1"


def test_id_zero(project):
    assert python(project, "train.py", "--experiment-id", "0").code == 0
    assert command(project, "repeat", "0").code == 0
    assert (load(project, 1)["repeats"], len(load(project, 0)["attempts"])) == ("0", 1)


@pytest.mark.parametrize("rtol", ["-1", "nan", "much"])
def test_tolerance_that_makes_no_sense(project, rtol):
    result = command(project, "repeat", "1", f"--rtol={rtol}")
    assert result.code == 2 and f"--rtol {rtol!r}" in result.stderr


@pytest.mark.parametrize("source", ["print('hello')", "import atexit; atexit.register(print, 3)"])
def test_interpreter_that_prints_at_its_start_or_end(project, tmp_path, source):
    assert python(project, "train.py").code == 0
    (tmp_path / "sitecustomize.py").write_text(source)
    result = command(project, "repeat", "1", env={"PYTHONPATH": tmp_path})
    assert (result.code, result.stderr) == (0, "")


def test_second_experiment_of_a_script(project):
    source = """
        from meticulous import Experiment
        for x in (1, 2, 3):
            with Experiment({"x": x}) as experiment:
                experiment.summary(x=x)
    """
    assert record(project, source).code == 0
    result = command(project, "repeat", "2")
    assert (result.code, result.stdout) == (0, "REPRODUCED  2 -> 5: SUCCESS\n")


def test_other_interpreter_gets_its_verdict_and_is_named(project, tmp_path):
    source = "import sys\nfrom meticulous import Experiment\nExperiment().summary(python=sys.version)\n"
    project.write("script.py", source)
    project.commit()
    link = tmp_path / "python"
    link.symlink_to(sys.executable)
    environment = project.environment({"PYTHONPATH": None})
    assert launch([link, "script.py"], cwd=project.path, env=environment).result().code == 0
    metadata = load(project, 1)
    metadata["executable"] = str(tmp_path / "gone")
    metadata["place"]["python"] = "3.5.0"
    metadata["packages"] = "onlythen==1.0"
    (project.experiment(1) / "metadata.json").write_text(json.dumps(metadata))
    result = command(project, "repeat", "1")
    assert result.code == 0
    assert f"{tmp_path / 'gone'} is not there any more" in result.stderr
    for text in (result.stdout, result.stderr):
        assert "3.5.0 -> " + sys.version.split()[0] in text
        assert "1.0 -> -" in text


def test_variables_that_matter_are_compared(project):
    assert python(project, "train.py", env={"OMP_NUM_THREADS": "1"}).code == 0
    result = command(project, "repeat", "1", env={"OMP_NUM_THREADS": "2"})
    assert "environment.OMP_NUM_THREADS" in result.stdout and "1 -> 2" in result.stdout
    assert "OMP_NUM_THREADS" in result.stderr


def test_missing_data_is_named_before_it_starts(project, tmp_path):
    project.write("untracked.txt", "1\n")
    assert python(project, "train.py", "--data", "untracked.txt").code == 0
    result = command(project, "repeat", "1")
    assert result.code == 2
    assert result.stderr.index("not there: 'untracked.txt'") < result.stderr.index("Traceback")
    result = command(project, "repeat", "1", "--link", "untracked.txt")
    assert (result.code, result.stderr) == (0, "")


def test_paths_in_a_list_of_arguments_are_found(project):
    source = "from meticulous import Experiment\nExperiment({'data': [FILE]}).summary(x=1)\n"
    for number, file in enumerate(["'data/numbers.txt'", "'data/other.txt'"], 1):
        assert record(project, source.replace("FILE", file)).code == 0
        result = command(project, "repeat", str(2 * number - 1))
        assert result.code == 0
        assert ("not there: 'data/other.txt'" in result.stderr) == (number == 2), result


def test_what_only_looks_like_a_path_is_not_missed(project):
    source = (
        "import sys\nfrom meticulous import Experiment\nExperiment({'model': sys.argv[1]}).summary(x=1)\n"
    )
    for number, text in enumerate(["facebook/opt-125m", "s3://bucket/key", "2026/11/27", "/say this"]):
        assert record(project, source, text).code == 0
        result = command(project, "repeat", str(2 * number + 1))
        assert (result.code, result.stderr) == (0, "")


def test_experiments_directory_among_the_arguments_is_not_missed(project):
    assert python(project, "train.py", "--experiments-directory", "runs").code == 0
    result = command(project, "repeat", "runs/1")
    assert (result.code, result.stderr) == (0, "")


def test_directory_that_is_gone(project, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    words = [str(project.path / "train.py"), "--project-directory", str(project.path)]
    words += ["--data", str(project.path / "data" / "numbers.txt")]
    assert python(project, *words, cwd=tmp_path / "elsewhere").code == 0
    assert command(project, "repeat", "1").code == 0
    (tmp_path / "elsewhere").rmdir()
    result = command(project, "repeat", "1")
    assert (result.code, result.stdout) == (2, "")
    assert f"{tmp_path / 'elsewhere'}, which is not there" in result.stderr


@pytest.mark.parametrize("stdin", [b"from meticulous import Experiment\nExperiment()\n"])
@pytest.mark.parametrize("words", [[], ["-"]])
def test_script_from_stdin_cannot_be_repeated(project, tmp_path, stdin, words):
    (tmp_path / "stdin").write_bytes(stdin)
    with open(str(tmp_path / "stdin"), "rb") as file:
        assert python(project, *words, stdin=file).code == 0
    result = command(project, "repeat", "1")
    assert (result.code, result.stdout) == (2, "")
    assert "can't be repeated" in result.stderr


@pytest.mark.parametrize("value", [None, [5]])
@pytest.mark.parametrize("name", ["command-line", "directory", "executable", "packages", "attempts"])
def test_repeat_of_odd_metadata_shows_no_traceback(project, name, value):
    project.run("from meticulous import Experiment\nExperiment().summary(loss=1)\n", name="train.py")
    path = project.experiment(1) / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    result = command(project, "repeat", "1")
    assert result.code in (0, 2) and "Traceback" not in result.stderr, result


def test_record_of_the_package_cannot_be_repeated(project):
    folder = project.experiment(1)
    folder.mkdir(parents=True)
    (folder / "metadata.json").write_text(json.dumps({"githead-sha": head(project), "command": ["train.py"]}))
    (folder / "STATUS").write_text("SUCCESS")
    (folder / "args.json").write_text("{}")
    result = command(project, "repeat", "1")
    assert result.code == 2 and "can't be repeated" in result.stderr


def test_unknown_id(project):
    assert python(project, "train.py").code == 0
    result = command(project, "repeat", "7")
    assert (result.code, result.stdout) == (2, "") and "'7'" in result.stderr


def test_commit_that_is_gone(project):
    assert python(project, "train.py").code == 0
    metadata = load(project, 1)
    metadata["githead-sha"] = "1" * 40
    (project.experiment(1) / "metadata.json").write_text(json.dumps(metadata))
    result = command(project, "repeat", "1")
    assert result.code == 2 and "1" * 40 in result.stderr


def test_streams_are_inherited(project, tmp_path):
    source = """
        import sys
        from meticulous import Experiment
        Experiment().summary(text=sys.stdin.read())
        print("out")
        print("err", file=sys.stderr)
    """
    (tmp_path / "stdin").write_text("text")
    with open(str(tmp_path / "stdin"), "rb") as file:
        assert record(project, source, stdin=file).code == 0
    with open(str(tmp_path / "stdin"), "rb") as file:
        result = command(project, "repeat", "1", stdin=file)
    assert (result.code, result.stdout) == (0, "out\nREPRODUCED  1 -> 2: SUCCESS\n")
    assert result.stderr == "err\n"


def test_json(project):
    source = "from meticulous import Experiment\nExperiment().summary(x=1)\nprint('noise')\n"
    assert record(project, source).code == 0
    result = command(project, "repeat", "1", "--json")
    answer = json.loads(result.stdout)
    assert (answer["verdict"], answer["differences"], answer["changes"]) == ("REPRODUCED", {}, {})
    assert [row["header.expid"] for row in answer["rows"]] == ["1", "2"]
    assert result.stderr == "noise\n"


def test_norecord_of_the_environment_does_not_count(project):
    assert python(project, "train.py").code == 0
    assert command(project, "repeat", "1", env={"METICULOUS_NORECORD": "1"}).code == 0


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_it_as_a_run(project, tmp_path, signum):
    os.mkfifo(str(tmp_path / "fifo"))
    source = """
        import os, time
        from meticulous import Experiment
        Experiment().summary(x=1)
        if "WAIT" in os.environ:
            print("started", flush=True)
            time.sleep(100)
    """
    assert record(project, source).code == 0
    environment = project.environment({"PYTHONPATH": None, "WAIT": "1"})
    script = launch([sys.executable, "meticulous.py", "repeat", "1"], cwd=project.path, env=environment)
    project.scripts.append(script)
    assert script.stdout.readline() == b"started\n"
    script.send_signal(signum)
    result = script.result()
    assert result.code == 2, result
    status = (project.experiment(2) / "STATUS").read_text()
    assert status.startswith("ERROR") and ("KeyboardInterrupt" in status or "SIGTERM" in status)
    assert "FAILED  1 -> 2: ERROR" in result.stdout


def test_main_in_this_process_knows_both(capsys):
    with pytest.raises(SystemExit):
        meticulous.main(["repeat", "--help"])
    assert "--rtol" in capsys.readouterr().out
