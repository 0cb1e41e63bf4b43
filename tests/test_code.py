"""Code: are the files whose code runs those of the commit, and a snapshot of a work tree that differs from it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest
from conftest import PROJECT

sys.path.insert(0, str(PROJECT))
from test_git import OLD_GIT, SUBJECT, die_at, make_stand_in  # noqa: E402

import meticulous  # noqa: E402

# What Experiment does at start and end, alone. Prints what would be recorded.
PREPARE = """
    import json
    import os
    import sys
    import meticulous

    def prepare(allow_dirty=False, directory="experiments"):
        top = meticulous._find_work_tree("")
        directory = os.path.abspath(directory)
        try:
            return meticulous._prepare_repository(
                top, directory, lambda: os.makedirs(directory, exist_ok=True), allow_dirty
            )
        except meticulous.MeticulousException as error:
            sys.exit(f"{type(error).__name__}: {error}")

    def show(head):
        record = {"sha": head.sha, "snapshot": head.snapshot, "code": head.proof.check()}
        print(json.dumps(record))
"""
CHECK = PREPARE + "    show(prepare())\n"
SNAP = PREPARE + "    show(prepare(allow_dirty=True))\n"
IN_TWO_PROCESSES = """
        run_git, calls = meticulous._git, []
        meticulous._git = lambda *rest, **more: calls.append(rest[0]) or run_git(*rest, **more)
        head = prepare()
        head.proof.check()
        assert len(calls) == 2, calls
        show(head)
"""


@pytest.fixture
def check(repo):
    """Give a function that runs a committed script and returns what its proof says."""

    def run(source="", *arguments, name="train.py", commit=True, **keywords):
        text = textwrap.dedent(CHECK if "prepare" not in source else PREPARE) + textwrap.dedent(source)
        repo.write(name, text)
        if commit:
            repo.commit()
        result = repo.run(None, *arguments, name=name, **keywords)
        assert result.code == 0, result
        run.stderr = result.stderr
        return json.loads(result.stdout.splitlines()[-1])["code"]

    repo.write(".gitignore", "experiments\n__pycache__\n*.so\n/venv\n/ignored*\n")
    repo.commit()
    return run


def proved(count, **others):
    return {"checked": count, "untracked": [], "ignored": [], "changed": [], **others}


# --- proof --------------------------------------------------------------------------------------


def test_committed_script_and_modules_are_proved(repo, check):
    repo.write("helper.py", "import pkg.deep.mod\n")
    repo.write("pkg/__init__.py", "")
    repo.write("pkg/deep/mod.py", "import namespace.mod\n")
    repo.write("namespace/mod.py", "")
    repo.commit()
    code = check("import helper\nshow(prepare())")
    assert code == proved(5)
    assert check.stderr == ""


def test_untracked_script_is_named_at_once(repo, check):
    assert check(commit=False) == proved(1, untracked=["train.py"])
    assert check.stderr.count("\n") == 1
    assert "'train.py' (untracked)" in check.stderr


def test_untracked_and_ignored_modules(repo, check):
    source = "import helper, ignored_version\nshow(prepare())"
    repo.write("train.py", textwrap.dedent(PREPARE) + source)
    repo.commit()
    repo.write("helper.py", "")
    repo.write("ignored_version.py", "")
    assert check(source, commit=False) == proved(3, untracked=["helper.py"], ignored=["ignored_version.py"])
    assert "'helper.py' (untracked)" in check.stderr
    assert "version" not in check.stderr


@pytest.mark.parametrize("bit", ["--skip-worktree", "--assume-unchanged"])
def test_change_behind_a_bit_of_the_index(repo, check, bit):
    repo.write("helper.py", "")
    repo.commit()
    source = "import helper\nshow(prepare())"
    assert check(source) == proved(2)
    repo.git("update-index", bit, "helper.py")
    repo.write("helper.py", "1")
    assert check(source, commit=False) == proved(2, changed=["helper.py"])


def test_modules_loaded_since_the_start_are_checked_at_the_end(repo, check):
    repo.write("pkg/late.py", "")
    source = """
        head = prepare()
        assert head.proof.check()["checked"] == 1
        run_git, calls = meticulous._git, []
        meticulous._git = lambda *rest, **more: calls.append(rest[0]) or run_git(*rest, **more)
        head.proof.check()
        assert not calls, calls
        import pkg.late
        import untracked
        show(head)
    """
    repo.write("train.py", textwrap.dedent(PREPARE) + textwrap.dedent(source))
    repo.commit()
    repo.write("untracked.py", "")
    assert check(source, commit=False) == proved(3, untracked=["untracked.py"])
    assert check.stderr.count("\n") == 1


def test_line_ends_and_filters_are_no_change(repo, check):
    repo.git("config", "filter.upper.clean", "tr a-z A-Z")
    repo.write(".gitattributes", "crlf.py text eol=crlf\nident.py ident\nupper.py filter=upper\n")
    repo.write("ident.py", "# $Id$\n")
    repo.write("crlf.py", "1\r\n2\r\n")
    repo.write("upper.py", "# abc\n")
    repo.commit()
    (repo.path / "ident.py").unlink()
    repo.git("checkout", "ident.py")
    assert "$Id:" in (repo.path / "ident.py").read_text()
    assert check("import crlf, ident, upper\nshow(prepare())") == proved(4)


def test_sha256_repository(repo, check, tmp_path):
    shutil.rmtree(str(repo.path / ".git"))
    if subprocess.call(["git", "init", "-q", "--object-format=sha256"], cwd=str(repo.path)):
        pytest.skip("this git knows SHA-1 only")
    repo.git("config", "user.name", "A")
    repo.git("config", "user.email", "a@b")
    repo.write("pkg/mod.py", "")
    assert check("import pkg.mod\nshow(prepare())") == proved(2)


def test_linked_files_and_a_linked_project(repo, check, tmp_path):
    repo.write("real/helper.py", "")
    (repo.path / "helper.py").symlink_to("real/helper.py")
    repo.commit()
    (tmp_path / "link").symlink_to(repo.path)
    source = "import helper\nshow(prepare())"
    assert check(source) == proved(3)
    result = repo.run(None, name=str(tmp_path / "link" / "train.py"), cwd=str(tmp_path / "link"))
    assert json.loads(result.stdout)["code"] == proved(3)


def test_submodule_is_compared_with_its_commit(repo, make_repo, check, tmp_path):
    other = make_repo(tmp_path / "other")
    other.write("pkg/mod.py", "")
    other.write(".gitignore", "__pycache__\n")
    other.commit()
    repo.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(other.path), "module")
    repo.commit()
    source = "sys.path.insert(0, 'module')\nimport pkg.mod\nshow(prepare())"
    assert check(source) == proved(2)
    repo.write("module/pkg/extra.py", "")
    source = source.replace("pkg.mod", "pkg.mod, pkg.extra")
    assert check(source) == proved(3, untracked=["module/pkg/extra.py"])


def test_nested_repository_is_untracked(repo, make_repo, check):
    make_repo(repo.path / "nested").write("mod.py", "")
    repo.git("-C", "nested", "add", ".")
    repo.git("-C", "nested", "commit", "-qm", "Add")
    source = "sys.path.insert(0, 'nested')\nimport mod\nshow(prepare())"
    repo.write("train.py", textwrap.dedent(PREPARE) + source)
    repo.commit("Add", "train.py")
    assert check(source, commit=False) == proved(2, untracked=["nested/mod.py"])


def test_zipped_sourceless_and_built_modules(repo, check):
    repo.write("lib/zipped.py", "")
    shutil.make_archive(str(repo.path / "archive"), "zip", str(repo.path / "lib"))
    repo.commit()
    source = """
        import importlib.util, py_compile, types
        sys.path.insert(0, "archive.zip")
        import zipped
        py_compile.compile("lib/zipped.py", "ignored_pyc.pyc")
        import ignored_pyc
        sys.modules["built"] = types.ModuleType("built")
        sys.modules["built"].__file__ = os.path.abspath("built.so")
        show(prepare())
    """
    (repo.path / "built.so").write_bytes(b"x")
    assert check(source) == proved(4, ignored=["built.so", "ignored_pyc.pyc"])
    assert check.stderr == ""


def test_virtual_environment_and_experiments_are_not_the_project(repo, check):
    repo.write("venv/lib/python3/site-packages/dependency.py", "")
    repo.write("experiments/1/copy.py", "")
    source = "sys.path[:0] = ['venv/lib/python3/site-packages', 'experiments/1']\nimport dependency, copy\nshow(prepare())"
    assert check(source) == proved(1)


def test_odd_modules_do_no_harm(repo, check):
    source = """
        class Odd:
            def __getattr__(self, name):
                raise RuntimeError(name)
        sys.modules.update(odd=Odd(), none=None, number=7, slots=object())
        Odd.__file__ = 7
        show(prepare())
    """
    assert check(source) == proved(1)


def test_module_of_a_package_and_c_option(repo, check):
    repo.write("pkg/__init__.py", "")
    repo.write("pkg/mod.py", textwrap.dedent(CHECK))
    repo.commit()
    for options, count in ((["-m", "pkg.mod"], 2), (["-c", textwrap.dedent(CHECK)], 0)):
        command = [sys.executable, *options]
        output = subprocess.check_output(command, cwd=str(repo.path), env=repo.environment())
        assert json.loads(output.decode())["code"] == proved(count)


@pytest.mark.parametrize("folder", ["sub", ".."])
def test_script_that_has_left_its_directory(repo, check, folder):
    repo.write("sub/file", "")
    source = f"""
        top = os.getcwd()
        os.chdir({folder!r})
        directory = os.path.join(top, "experiments")
        show(meticulous._prepare_repository(top, directory, lambda: os.makedirs(directory)))
    """
    repo.write("train.py", textwrap.dedent(PREPARE) + textwrap.dedent(source))
    repo.commit()
    command = [sys.executable, "train.py"]  # up to Python 3.8 __file__ is as relative as this
    output = subprocess.check_output(command, cwd=str(repo.path), env=repo.environment())
    assert json.loads(output.decode())["code"] == proved(1)


def test_code_from_stdin_is_not_a_file(repo, check, tmp_path):
    (tmp_path / "stdin").write_text(textwrap.dedent(CHECK))
    with open(str(tmp_path / "stdin"), "rb") as file:
        command = [sys.executable, "-"]
        output = subprocess.check_output(command, stdin=file, cwd=str(repo.path), env=repo.environment())
    assert json.loads(output.decode())["code"] == proved(0)


def test_linked_work_tree(repo, check, tmp_path):
    repo.write("helper.py", "")
    assert check("import helper\nshow(prepare())") == proved(2)
    linked = tmp_path / "linked"
    repo.git("worktree", "add", "-q", linked, "HEAD")
    for text, code in (("", proved(2)), ("1\n", proved(2, changed=["helper.py"]))):
        repo.git("-C", linked, "update-index", "--assume-unchanged", "helper.py")
        (linked / "helper.py").write_text(text)
        result = repo.run(None, name=str(linked / "train.py"), cwd=linked)
        assert json.loads(result.stdout)["code"] == code, result


def test_main_module_of_a_notebook_has_no_file(repo, check):
    pytest.importorskip("IPython", reason="this interpreter has no IPython")
    repo.write("helper.py", "")
    repo.write("other.py", textwrap.dedent(PREPARE))
    repo.commit()
    repo.write("untracked.py", "")
    cell = "import helper, untracked\nfrom other import prepare, show\nshow(prepare())"
    command = [sys.executable, "-m", "IPython", "--quick", "--colors=NoColor", "-c", cell]
    output = subprocess.check_output(command, cwd=str(repo.path), env=repo.environment())
    shown = output.decode().splitlines()[-1]
    shown = shown[shown.index("{") :]  # IPython 7 sets the terminal's title first
    assert json.loads(shown)["code"] == proved(3, untracked=["untracked.py"])


def test_editable_install_of_the_project_itself(repo, check):
    repo.write("src/project/__init__.py", "")
    packages = repo.path / "venv" / "lib" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "__editable__.project.pth").write_text(str(repo.path / "src") + "\n")
    source = "import site\nsite.addsitedir('venv/lib/site-packages')\nimport project\nshow(prepare())"
    assert check(source) == proved(2)


def test_2000_modules_are_proved_by_the_processes_of_a_start(repo, check):
    for number in range(2000):
        repo.write(f"pkg{number // 10}/mod{number}.py", "")
    source = """
        import importlib
        for number in range(2000):
            importlib.import_module(f"pkg{number // 10}.mod{number}")
    """
    assert check(textwrap.dedent(source) + textwrap.dedent(IN_TWO_PROCESSES)) == proved(2001)


def test_description_is_one_line():
    assert meticulous._describe_code({}) == ""
    assert meticulous._describe_code({"code": proved(3, ignored=["a"])}) == ""
    metadata = {"githead-sha": "1234567890", "code": proved(9, untracked=list("abcdef"), changed=["x\ny"])}
    assert "commit 1234567" in meticulous._describe_code(metadata)
    assert meticulous._describe_code(metadata).endswith(", 'e' (untracked), ...")
    assert "'big' (left out)" in meticulous._describe_code({"snapshot": {"left-out": {"big": "00"}}})


def test_start_with_proof_takes_no_more_processes(repo, check):
    assert check(IN_TWO_PROCESSES) == proved(1)


# --- snapshot -----------------------------------------------------------------------------------


def state(repo):
    """Describe what a snapshot must leave as it is."""
    return (
        (repo.path / ".git" / "index").read_bytes(),
        repo.git("rev-parse", "HEAD", "refs/stash") if "stash" in repo.git("for-each-ref") else "",
        repo.git("for-each-ref", "refs/heads"),
        repo.git("--no-optional-locks", "status", "--porcelain"),
    )


@pytest.fixture
def snap(repo, tmp_path):
    """Give a function that starts dirty in a real process and returns what would be recorded."""
    repo.write(".gitignore", "experiments\n")
    repo.commit()
    script = tmp_path / "snap.py"
    script.write_text(textwrap.dedent(SNAP))

    def run(code=0, **keywords):
        before = state(repo)
        result = repo.run(None, name=str(script), **keywords)
        assert result.code == code, result
        assert state(repo) == before
        return result.stderr if code else json.loads(result.stdout)

    return run


def tree_of(repo):
    """Return the tree that `git add --all` makes, in a copy of the repository."""
    copy = repo.path.parent / "copy"
    shutil.copytree(str(repo.path), str(copy), symlinks=True)
    subprocess.check_call(["git", "add", "--all"], cwd=str(copy))
    tree = subprocess.check_output(["git", "write-tree"], cwd=str(copy)).decode()
    shutil.rmtree(str(copy))
    return tree


def test_clean_tree_needs_no_snapshot(repo, snap):
    record = snap()
    assert record["snapshot"] is None
    assert record["sha"] == repo.git("rev-parse", "HEAD").strip()
    assert repo.git("for-each-ref", "refs/meticulous") == ""


def make_changes(repo):
    for name in ("old", "gone", "staged", "mode", "kind", "dir/file", "back"):
        repo.write(name, name * 50)
    repo.commit()
    repo.git("mv", "old", "new")
    (repo.path / "gone").unlink()
    repo.write("staged", "2")
    repo.git("add", "staged")
    repo.write("back", "2")
    repo.git("add", "back")
    repo.write("back", "back" * 50)
    (repo.path / "mode").chmod(0o755)
    (repo.path / "kind").unlink()
    (repo.path / "kind").symlink_to("mode")
    shutil.rmtree(str(repo.path / "dir"))
    repo.write("dir", "a file now")
    repo.write("intended", "x")
    repo.git("add", "--intent-to-add", "intended")
    repo.write("untracked/a b", b"\0\1\2\xff")
    repo.write("new\nline ä", "1\r\n2\n")
    repo.write(os.fsdecode(b"no-utf-8-\xff"), "x")
    repo.write('start\t"quoted"', "x")


def test_snapshot_is_the_work_tree_and_its_patch_too(repo, snap, tmp_path, monkeypatch):
    make_changes(repo)
    record = snap()
    sha, head = record["sha"], repo.git("rev-parse", "HEAD").strip()
    assert record["snapshot"]["head"] == head
    assert record["snapshot"]["complete"] is True
    assert {"gone", "new", "untracked/a b", "intended"} <= set(record["snapshot"]["files"])
    assert repo.git("rev-parse", sha + "^").strip() == head
    assert repo.git("rev-parse", sha + "^{tree}") == tree_of(repo)
    assert repo.git("rev-parse", "refs/meticulous/" + sha).strip() == sha
    assert snap()["sha"] == sha
    # The same from the patch, where neither the work tree nor the reference is.
    monkeypatch.chdir(repo.path)
    path = str(repo.path / "experiments")
    patch = meticulous._prepare_repository(str(repo.path), path, lambda: None, True).patch
    clone = tmp_path / "clone"
    subprocess.check_call(["git", "clone", "-q", str(repo.path), str(clone)])
    process = subprocess.Popen(["git", "apply", "--index"], cwd=str(clone), stdin=subprocess.PIPE)
    process.communicate(patch)
    assert process.returncode == 0
    tree = subprocess.check_output(["git", "write-tree"], cwd=str(clone)).decode()
    assert tree == repo.git("rev-parse", sha + "^{tree}")


def test_snapshot_with_old_git(repo, snap, tmp_path):
    make_changes(repo)
    log = tmp_path / "log"
    path = make_stand_in(tmp_path, OLD_GIT.replace("LOG", str(log)))
    assert snap(env={"PATH": path})["sha"] == snap()["sha"]


def test_edit_of_the_same_size_in_the_same_second(repo, snap):
    repo.write("data", "1")
    repo.commit()
    os.utime(str(repo.path / "data"), (10**9, 10**9))
    repo.git("update-index", "--refresh")
    for number in range(5):
        repo.write("data", "a")
        repo.write("other", str(number))
        repo.git("add", "data")
        repo.write("data", "b")
        assert repo.git("show", snap()["sha"] + ":data") == "b"


def test_link_in_place_of_a_folder_with_tracked_files(repo, snap):
    repo.write("data/a", "1")
    repo.write("data/b", "2")
    repo.commit()
    (repo.path / "data").rename(repo.path.parent / "moved")
    (repo.path / "data").symlink_to(repo.path.parent / "moved")
    sha = snap()["sha"]
    assert repo.git("rev-parse", sha + "^{tree}") == tree_of(repo)
    # The bits of the index are those of files that are gone.
    repo.git("reset", "-q")
    repo.git("update-index", "--assume-unchanged", "data/a", "data/b")
    assert repo.git("rev-parse", snap()["sha"] + "^{tree}") == repo.git("rev-parse", sha + "^{tree}")


def test_file_that_is_ignored_now_is_not_in_the_snapshot(repo, snap):
    repo.write("model.pt", "1")
    repo.commit()
    repo.git("rm", "-q", "--cached", "model.pt")
    repo.write(".gitignore", "experiments\nmodel.pt\n")
    repo.write("model.pt", "new")
    assert repo.git("rev-parse", snap()["sha"] + "^{tree}") == tree_of(repo)


def test_intent_to_add_after_removal_from_the_index(repo, snap):
    repo.write("data", "1")
    repo.commit()
    repo.git("rm", "-q", "--cached", "data")
    repo.git("add", "--intent-to-add", "data")
    repo.write("data", "2")
    assert repo.git("show", snap()["sha"] + ":data") == "2"


def test_untracked_file_that_another_process_removes_meanwhile(repo, snap, tmp_path):
    source = """#!/bin/sh
    case "$*" in *status*) 'GIT' "$@"; rm -f temporary; exit;; esac
    exec GIT "$@"
    """.replace("'GIT'", shutil.which("git"))
    path = make_stand_in(tmp_path, textwrap.dedent(source))
    repo.write("untracked", "1")
    repo.write("temporary", "1")
    result = repo.run(None, name=str(tmp_path / "snap.py"), env={"PATH": path})
    assert result.code == 0, result
    sha = json.loads(result.stdout)["sha"]
    assert repo.git("diff", "--name-only", "HEAD", sha).split() == ["untracked"]


def test_missing_index_is_an_empty_one(repo, snap):
    tree = tree_of(repo)
    (repo.path / ".git" / "index").unlink()
    result = repo.run(None, name=str(repo.path.parent / "snap.py"))
    assert result.code == 0, result
    assert repo.git("rev-parse", json.loads(result.stdout)["sha"] + "^{tree}") == tree
    assert not (repo.path / ".git" / "index").exists()


def test_conflicts_in_the_index(repo, snap):
    repo.write("data", "1\n")
    repo.commit()
    repo.git("checkout", "-q", "-b", "side")
    repo.write("data", "2\n")
    repo.commit()
    repo.git("checkout", "-q", "-")
    repo.write("data", "3\n")
    repo.commit()
    subprocess.call(["git", "merge", "-q", "side"], cwd=str(repo.path), stdout=subprocess.DEVNULL)
    assert "<<<<" in repo.git("show", snap()["sha"] + ":data")


@pytest.mark.parametrize("bit", ["--skip-worktree", "--assume-unchanged"])
def test_hidden_changes_are_in_the_snapshot(repo, snap, bit):
    for name in ("hidden", "sparse"):
        repo.write(name, "1")
    repo.commit()
    repo.git("update-index", bit, "hidden", "sparse")
    repo.write("hidden", "2")
    (repo.path / "sparse").unlink()
    repo.write("untracked", "")
    sha = snap()["sha"]
    assert repo.git("show", sha + ":hidden") == "2"
    # A sparse checkout leaves files out by this bit; by the other one, the user has deleted it.
    is_there = "sparse" in repo.git("ls-tree", "--name-only", sha).split()
    assert is_there == (bit == "--skip-worktree")


def test_sparse_checkout(repo, snap):
    repo.write("kept/data", "1")
    repo.write("sparse/data", "1")
    repo.commit()
    repo.git("config", "core.sparseCheckout", "true")
    repo.write(".git/info/sparse-checkout", "/*\n!/sparse/\n")
    repo.git("read-tree", "-mu", "HEAD")
    assert not (repo.path / "sparse").exists()
    repo.write("kept/data", "2")
    sha = snap()["sha"]
    assert repo.git("diff", "--name-only", "HEAD", sha).split() == ["kept/data"]


@pytest.mark.parametrize("setting", [["index.version", "4"], ["core.splitIndex", "true"]], ids=["4", "split"])
def test_bits_in_other_forms_of_the_index(repo, snap, setting):
    repo.git("config", *setting)
    name = "a" * 200 + "/" + "b" * 200
    repo.write(name, "1")
    repo.commit()
    repo.git("update-index", "--force-write-index", *(["--split-index"] if "core" in setting[0] else []))
    repo.git("update-index", "--assume-unchanged", name)
    repo.write(name, "2")
    repo.write("untracked", "")
    assert repo.git("show", snap()["sha"] + ":" + name) == "2"


def test_filters_and_line_ends_apply_to_a_snapshot(repo, snap):
    # As with Git LFS, the repository holds a pointer.
    repo.git("config", "filter.lfs.clean", "sed 's/.*/pointer/'")
    repo.write(".gitattributes", "*.bin filter=lfs\n*.txt text eol=crlf\n")
    repo.write("data.bin", "1\n")
    repo.write("data.txt", "1\r\n")
    repo.commit()
    repo.write("new.bin", "2\n")
    repo.write("data.txt", "2\r\n")
    sha = snap()["sha"]
    assert repo.git("show", sha + ":new.bin") == "pointer\n"
    assert repo.git("show", sha + ":data.txt") == "2\n"
    assert repo.git("rev-parse", sha + "^{tree}") == tree_of(repo)


def test_no_space_for_objects(repo, snap, tmp_path):
    objects = repo.path / ".git" / "objects"
    if os.geteuid():
        pytest.skip("only root can make a full disk")
    objects.rename(tmp_path / "objects")
    objects.mkdir()
    if subprocess.call(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(objects)]):
        pytest.skip("only root, with mount(8) on Linux, can make a full disk")
    try:
        for folder in (tmp_path / "objects").iterdir():
            shutil.copytree(str(folder), str(objects / folder.name))
        repo.write("untracked", os.urandom(500000))
        message = snap(code=1)
    finally:
        subprocess.check_call(["umount", "--lazy", str(objects)])
    assert "No space left on device" in message and "norecord=True" in message
    assert os.listdir(str(repo.path / "experiments")) == []


def test_large_untracked_files_are_left_out_by_name(repo, snap, monkeypatch):
    repo.write("large", b"x" * (2**20 + 1))
    repo.write("limit", b"x" * 2**20)
    for number in range(20):
        repo.write(f"z{number:02}", b"x" * 2**20)
    snapshot = snap()["snapshot"]
    assert snapshot["complete"] is False
    assert sorted(snapshot["left-out"]) == ["large", "z19"]
    assert len(snapshot["left-out"]["large"]) == 64
    assert "limit" in snapshot["files"] and "z18" in snapshot["files"]


def test_submodule_and_nested_repository_are_refused(repo, make_repo, snap, tmp_path):
    other = make_repo(tmp_path / "other")
    repo.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(other.path), "module")
    repo.commit()
    repo.write("module/README", "2")
    assert "module is a submodule" in snap(code=1)
    repo.git("-C", "module", "checkout", "-q", "README")
    make_repo(repo.path / "nested")
    assert "nested/ is a submodule" in snap(code=1)


def test_patch_removes_a_submodule_whatever_the_settings(repo, make_repo, snap, tmp_path, monkeypatch):
    other = make_repo(tmp_path / "other")
    repo.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(other.path), "module")
    repo.commit()
    shutil.rmtree(str(repo.path / "module"))
    repo.git("config", "submodule.module.ignore", "all")
    sha = snap()["sha"]
    monkeypatch.chdir(repo.path)
    path = str(repo.path / "experiments")
    patch = meticulous._prepare_repository(str(repo.path), path, lambda: None, True).patch
    assert b"deleted file mode 160000" in patch
    assert "module" not in repo.git("ls-tree", "--name-only", sha).split()


def test_dirty_first_start_moves_nothing(repo, snap):
    repo.git("rm", "-q", "--cached", ".gitignore")
    (repo.path / ".gitignore").unlink()
    repo.git("commit", "-qm", "Forget the line")
    repo.write("untracked", "")
    record = snap()
    assert record["snapshot"]["files"] == ["untracked"]
    assert SUBJECT not in repo.git("log", "--format=%s")
    assert "experiments\n" in (repo.path / ".git" / "info" / "exclude").read_text()
    assert snap()["sha"] == record["sha"]


def test_settings_do_not_change_a_snapshot(repo, snap, tmp_path):
    make_changes(repo)
    sha = snap()["sha"]
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text(
        "[diff]\n noprefix = true\n external = false\n renames = copies\n[user]\n name = Other\n"
        "[color]\n ui = always\n[status]\n showUntrackedFiles = no\n relativePaths = true\n"
    )
    others = {
        "HOME": home,
        "GIT_AUTHOR_NAME": "Ann",
        "GIT_COMMITTER_DATE": "1234567890 +0100",
        "TZ": "Asia/Tokyo",
    }
    assert snap(env=others)["sha"] == sha


@pytest.mark.parametrize("step", range(10))
def test_kill_at_every_step_of_a_snapshot_changes_nothing(repo, snap, step):
    make_changes(repo)
    before = state(repo)
    child = os.fork()
    if child == 0:
        try:
            os.chdir(str(repo.path))
            die_at(step)
            path = str(repo.path / "experiments")
            meticulous._prepare_repository(
                str(repo.path), path, lambda: os.makedirs(path, exist_ok=True), True
            )
        finally:
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert (status == signal.SIGKILL) == (step < 9), status
    assert state(repo) == before
    assert not list((repo.path / ".git").glob("index.*"))  # but in experiments, which a later start sweeps
    assert tree_of(repo) == repo.git("rev-parse", snap()["sha"] + "^{tree}")


@pytest.mark.slow
@pytest.mark.parametrize("has_line", [True, False])
def test_64_dirty_starts_make_one_snapshot(repo, tmp_path, has_line):
    if has_line:
        repo.write(".gitignore", "experiments\n")
        repo.commit()
    repo.write("untracked", "1")
    script = tmp_path / "snap.py"
    script.write_text(textwrap.dedent(SNAP))
    scripts = [repo.popen(None, name=str(script)) for _ in range(64)]
    results = [script.result() for script in scripts]
    assert [result for result in results if result.code] == []
    assert len({json.loads(result.stdout)["sha"] for result in results}) == 1


# --- whole experiments --------------------------------------------------------------------------


TRAIN = """
    import sys
    import meticulous

    experiment = meticulous.Experiment(allow_dirty="dirty" in sys.argv, experiment_id="7")
    if "late" in sys.argv:
        import helper
    print("done")
"""


@pytest.fixture
def dirty(repo):
    """A committed script beside a changed file, an untracked one and a deleted one."""
    repo.write("train.py", textwrap.dedent(TRAIN))
    repo.write(".gitignore", "experiments\n__pycache__\n")
    repo.write("changed", "1\n")
    repo.write("gone", "1\n")
    repo.commit()
    repo.write("changed", "2\n")
    repo.write("untracked", b"\0\xff")
    (repo.path / "gone").unlink()
    return repo


def read_metadata(repo):
    return json.loads((repo.experiment("7") / "metadata.json").read_text())


def test_patch_of_a_record_gives_the_identical_tree_in_a_fresh_clone(dirty, tmp_path):
    assert dirty.run(None, "dirty", name="train.py").code == 0
    metadata = read_metadata(dirty)
    fresh = tmp_path / "fresh"
    dirty.git("clone", "--quiet", dirty.path, fresh)
    for command in (
        ["checkout", "-q", metadata["snapshot"]["head"]],
        ["apply", "--index", str(dirty.experiment("7") / "snapshot.patch")],
    ):
        subprocess.check_call(["git", *command], cwd=str(fresh))
    tree = subprocess.check_output(["git", "write-tree"], cwd=str(fresh)).decode()
    assert tree == dirty.git("rev-parse", metadata["githead-sha"] + "^{tree}")
    assert metadata["snapshot"]["complete"]
    assert sorted(metadata["snapshot"]["files"]) == ["changed", "gone", "untracked"]


def test_dirty_record_is_resumed_while_the_tree_is_unchanged(dirty):
    assert [dirty.run(None, "dirty", name="train.py").code for _ in range(2)] == [0, 0]
    assert len(read_metadata(dirty)["attempts"]) == 2
    dirty.write("changed", "3\n")
    result = dirty.run(None, "dirty", name="train.py")
    assert result.code == 1 and "MismatchedCommitException" in result.stderr, result
    assert len(read_metadata(dirty)["attempts"]) == 2


@pytest.mark.parametrize("code", [None, 5, [5], {"untracked": 5}])
def test_resume_overlooks_an_odd_list_of_code(repo, code):
    source = "from meticulous import Experiment\nExperiment(experiment_id='7')"
    assert repo.run(source).code == 0
    path = repo.experiment(7) / "metadata.json"
    path.write_text(json.dumps({**read_metadata(repo), "code": code}))
    assert repo.run(None).code == 0
    assert read_metadata(repo)["code"]["untracked"] == []


def test_dirty_record_is_resumed_after_a_commit_of_ours(repo):
    source = textwrap.dedent(TRAIN).replace(
        "experiment_id", "experiments_directory=sys.argv[1], experiment_id"
    )
    repo.write("train.py", source)
    repo.write(".gitignore", "experiments\n")
    repo.commit()
    head = repo.git("rev-parse", "HEAD")
    repo.write("untracked", "1")
    words = "experiments", "dirty"
    assert repo.run(None, *words, name="train.py").code == 0
    assert repo.run(None, "others", name="train.py").code == 0  # only untracked files: it commits its line
    assert repo.git("rev-parse", "HEAD^") == head
    result = repo.run(None, *words, name="train.py")
    assert result.code == 0, result
    assert len(read_metadata(repo)["attempts"]) == 2
    repo.write(".gitignore", "experiments\nothers\nmore\n")
    assert "MismatchedCommitException" in repo.run(None, *words, name="train.py").stderr
    repo.git("commit", "-qam", "Ignore more")
    assert "MismatchedCommitException" in repo.run(None, *words, name="train.py").stderr


def test_clean_record_is_not_resumed_with_changes_to_the_ignore_file(repo):
    repo.write("train.py", textwrap.dedent(TRAIN))
    repo.write(".gitignore", "experiments\n")
    repo.commit()
    assert repo.run(None, "dirty", name="train.py").code == 0
    repo.write(".gitignore", "experiments\nmore\n")
    assert "MismatchedCommitException" in repo.run(None, "dirty", name="train.py").stderr


def test_index_of_a_killed_snapshot_is_swept(dirty):
    dirty.write("more.py", "import meticulous\nmeticulous.Experiment()")
    hidden = dirty.experiment(".new-" + "0" * 16)
    hidden.mkdir(parents=True)
    (hidden / "index").write_text("")
    assert dirty.run(None, "dirty", name="train.py").code == 0
    assert hidden.exists()
    for _ in range(40):  # a start sweeps from a random one on until it meets a young one, like its own
        for name in os.listdir(str(dirty.path / "experiments")):
            if name.startswith("."):
                os.utime(str(dirty.experiment(name)), (0, 0))
        if hidden.exists():
            assert dirty.run(None, name="more.py", env={"METICULOUS_ALLOW_DIRTY": "1"}).code == 0
    assert not hidden.exists()
    assert "index" in {name[:5] for name in os.listdir(str(dirty.path / ".git"))}
    assert [name for name in os.listdir(str(dirty.path / ".git")) if name.startswith("index.")] == []


def test_variable_allows_a_dirty_start(dirty):
    refused = dirty.run(None, name="train.py", env={"METICULOUS_ALLOW_DIRTY": "0"})
    assert refused.code == 1 and "2 tracked files" in refused.stderr, refused
    assert dirty.run(None, name="train.py", env={"METICULOUS_ALLOW_DIRTY": "1"}).code == 0
    assert read_metadata(dirty)["snapshot"]["files"]


def test_option_allows_a_dirty_start(dirty):
    source = """
        import argparse, meticulous
        parser = argparse.ArgumentParser()
        meticulous.Experiment.add_argument_group(parser)
        meticulous.Experiment.from_parser(parser)
    """
    dirty.write("option.py", textwrap.dedent(source))
    assert dirty.run(None, "--experiment-id", "7", name="option.py").code == 1
    assert dirty.run(None, "--experiment-id", "7", "--allow-dirty", name="option.py").code == 0
    assert "option.py" in read_metadata(dirty)["snapshot"]["files"]


def test_untracked_main_script_is_in_the_record(repo):
    repo.write("train.py", textwrap.dedent(TRAIN))
    result = repo.run(None, name="train.py")
    assert result.code == 0 and "'train.py' (untracked)" in result.stderr, result
    assert read_metadata(repo)["code"]["untracked"] == ["train.py"]


def test_helper_that_is_imported_later_is_warned_of_at_the_end(repo):
    repo.write("train.py", textwrap.dedent(TRAIN))
    repo.commit()
    repo.write("helper.py", "")
    result = repo.run(None, "late", name="train.py")
    assert result.code == 0 and "'helper.py' (untracked)" in result.stderr, result
    assert read_metadata(repo)["code"]["untracked"] == ["helper.py"]


def test_code_of_an_earlier_attempt_stays_in_the_record(repo):
    repo.write(".gitignore", "experiments\n")
    repo.write("helper.py", "")
    source = """
        import os
        from meticulous import Experiment
        if os.path.exists("helper.py"):
            import helper
        with Experiment({}, experiment_id="a"):
            if os.path.exists("later.py"):
                import later
    """
    repo.write("later.py", "")
    assert repo.run(source).code == 0
    assert repo.run(source).code == 0
    for name in ("helper.py", "later.py"):
        (repo.path / name).unlink()
    assert repo.run(source).code == 0
    code = json.loads((repo.experiment("a") / "metadata.json").read_text())["code"]
    assert code == proved(1, untracked=["helper.py", "later.py"])
