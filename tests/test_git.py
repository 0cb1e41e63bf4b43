"""Git: which commit runs here, is it clean, and one commit that has git ignore the experiments directory."""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time

import pytest
from conftest import PROJECT

sys.path.insert(0, str(PROJECT))
import meticulous  # noqa: E402

SUBJECT = "Added experiments directory to .gitignore"
# What Experiment does with git at its start, alone.
START = """
    import os
    import sys
    import meticulous

    project, experiments = (sys.argv[1:] + ["", "experiments"][len(sys.argv) - 1:])[:2]
    top = meticulous._find_work_tree(project)
    directory = os.path.normpath(os.path.join(os.path.abspath(project), experiments))
    try:
        head = meticulous._prepare_repository(top, directory, lambda: os.makedirs(directory, exist_ok=True))
    except meticulous.MeticulousException as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(head.sha)
"""
# A git that is first on PATH: notes its arguments, refuses what git 1.8.3 lacks, and hands the rest on.
OLD_GIT = """#!/bin/sh
printf '%s\\n' "$*" >> 'LOG'
for word in "$@"; do
    case "$word" in
    -C | worktree | --porcelain=v2 | --absolute-git-dir | --no-optional-locks | --path-format* | \\
    --show-current)
        echo "unknown option: $word" >&2
        exit 129
        ;;
    esac
done
exec GIT "$@"
"""


@pytest.fixture
def start(repo):
    """Give a function that prepares the repository in a real process, as Experiment does."""
    (repo.path / ".git" / "info" / "exclude").write_text("start.py\n")

    def run(*arguments, env=None):
        repo.write("start.py", textwrap.dedent(START))
        return repo.run(None, *arguments, name="start.py", env=env)

    return run


@pytest.fixture
def work_in(repo):
    """Give a function that prepares the repository in this process and returns HEAD."""

    def prepare(directory="experiments", project=None):
        project = str(project or repo.path)
        top = meticulous._find_work_tree(project)
        path = os.path.normpath(os.path.join(project, directory))
        return meticulous._prepare_repository(top, path, lambda: os.makedirs(path, exist_ok=True))

    return prepare


def make_stand_in(tmp_path, source):
    """Make a git of a shell script in which GIT is the real one; return the PATH that has it first."""
    stand_in = tmp_path / "bin" / "git"
    stand_in.parent.mkdir()
    stand_in.write_text(source.replace("exec GIT", f"exec '{shutil.which('git')}'"))
    stand_in.chmod(0o755)
    return f"{stand_in.parent}{os.pathsep}{os.environ['PATH']}"


def subjects(repo):
    return repo.git("log", "--format=%s").splitlines()


def assert_added(repo, line="experiments", before=""):
    """Check that one commit of one file added one line, and left the work tree clean."""
    assert subjects(repo)[0] == SUBJECT
    assert subjects(repo).count(SUBJECT) == 1
    assert repo.git("diff", "--name-only", "HEAD^", "HEAD").split() == [".gitignore"]
    assert (repo.path / ".gitignore").read_bytes().decode() == before + line + "\n"
    assert repo.git("show", "HEAD:.gitignore") == before + line + "\n"
    assert repo.git("status", "--porcelain", "--untracked-files=no") == ""


def snapshot(repo):
    """Describe all that a refused commit must leave as it was."""
    ignore = repo.path / ".gitignore"
    return (
        repo.git("rev-parse", "HEAD"),
        repo.git("ls-files", "--stage"),
        repo.git("status", "--porcelain", "--untracked-files=no"),
        ignore.is_symlink(),
        ignore.read_bytes() if ignore.is_file() else None,
        sorted(os.listdir(str(repo.path))),
    )


@contextlib.contextmanager
def unchanged(repo):
    before = snapshot(repo)
    yield
    assert snapshot(repo) == before


# --- which commit -------------------------------------------------------------------------------


def test_head_is_sha_and_exact_message(repo, work_in):
    repo.write(".gitignore", "experiments\n")
    repo.git("add", ".gitignore")
    message = "Subject\n\n  body  \n\n\n"
    subprocess.run(
        ["git", "commit", "-q", "--cleanup=verbatim", "-F", "-"],
        input=message.encode(), cwd=str(repo.path), check=True,
    )  # fmt: skip
    head = work_in()
    assert head.sha == repo.git("rev-parse", "HEAD").strip()
    assert head.message == message


@pytest.mark.parametrize("encoding", ["ISO-8859-1", "UTF-8", "no-such-encoding"])
def test_message_is_decoded_as_the_commit_says(repo, encoding):
    codec = "utf-8" if encoding.startswith("no") else encoding
    subprocess.run(
        ["git", "-c", "i18n.commitEncoding=" + encoding, "commit", "-q", "--allow-empty", "-F", "-"],
        input="Größe\n".encode(codec), cwd=str(repo.path), check=True,
    )  # fmt: skip
    assert meticulous._read_state(str(repo.path), True).message == "Größe\n"


def test_message_of_a_signed_commit_has_no_header(repo):
    raw = b"tree 0\nauthor A\ngpgsig -----BEGIN\n \n encoding x\n -----END\nencoding ISO-8859-1\n\n\xe4\n\nb"
    assert meticulous._parse_commit(raw) == "ä\n\nb"
    assert meticulous._parse_commit(b"tree 0\nauthor A\n\n") == ""


def test_detached_head_is_read_and_moved(repo, work_in):
    repo.git("checkout", "-q", "--detach")
    branch = repo.git("for-each-ref", "--format=%(objectname)", "refs/heads")
    assert work_in().sha == repo.git("rev-parse", "HEAD").strip()
    assert_added(repo)
    assert repo.git("for-each-ref", "--format=%(objectname)", "refs/heads") == branch


def test_linked_work_tree(repo, work_in, tmp_path):
    linked = tmp_path / "linked"
    repo.git("worktree", "add", "-q", str(linked))
    head = work_in(project=linked)
    assert (linked / ".gitignore").read_text() == "experiments\n"
    assert not (repo.path / ".gitignore").exists()
    assert head.sha == meticulous._read_state(str(linked), True).sha
    assert head.sha != repo.git("rev-parse", "HEAD").strip()


def test_submodule_has_a_line_of_its_own(repo, make_repo, work_in, tmp_path):
    other = make_repo(tmp_path / "other")
    repo.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(other.path), "module")
    repo.commit("Add module")
    head = work_in(project=repo.path / "module")
    assert (repo.path / "module" / ".gitignore").read_text() == "experiments\n"
    assert not (repo.path / ".gitignore").exists()
    with pytest.raises(meticulous.DirtyRepoException, match="'module'"):  # the submodule has a new commit
        work_in()
    repo.commit("Update module")
    work_in()
    assert_added(repo)
    assert repo.git("ls-tree", "HEAD", "module").split()[:3] == ["160000", "commit", head.sha]


def test_sub_directory_gives_path_from_the_top(repo, work_in):
    repo.write("pkg/train.py", "")
    repo.commit()
    work_in(project=repo.path / "pkg")
    assert_added(repo, "pkg/experiments")


def test_work_tree_keeps_symbolic_links(repo, tmp_path):
    (tmp_path / "link").symlink_to(repo.path)
    (repo.path / "pkg").mkdir()
    (tmp_path / "inner").symlink_to(repo.path / "pkg")
    assert meticulous._find_work_tree(str(tmp_path / "link" / "pkg")) == str(tmp_path / "link")
    assert meticulous._find_work_tree(str(tmp_path / "inner")) == os.path.realpath(str(repo.path))


def test_work_tree_elsewhere_is_never_taken_for_this_one(repo, work_in, tmp_path):
    repo.git("config", "core.worktree", str(tmp_path))
    with unchanged(repo), pytest.raises(meticulous.GitException):
        work_in()


@pytest.mark.parametrize("missing", ["HEAD", "refs", "objects"])
@pytest.mark.parametrize("sub_directory", ["", "pkg"])
def test_inner_repository_that_git_rejects(repo, make_repo, work_in, missing, sub_directory):
    inner = make_repo(repo.path / "inner")
    inner.write("pkg/train.py", "")
    inner.write("a.py", "")
    if missing == "HEAD":
        inner.write(".git/HEAD", "")  # as after a power cut
    else:
        shutil.rmtree(str(inner.path / ".git" / missing))
    (inner.path / ".git").rename(repo.path / "kept")  # the outer repository has the files, too
    repo.commit("Add all", "README", "inner")
    (repo.path / "kept").rename(inner.path / ".git")
    files = repo.git("ls-tree", "-r", "--name-only", "HEAD").split()
    head = work_in(project=inner.path / sub_directory)
    assert head.work_tree == os.path.realpath(str(repo.path))
    assert head.sha == repo.git("rev-parse", "HEAD").strip()
    assert_added(repo, "/".join(["inner", sub_directory, "experiments"]).replace("//", "/"))
    assert repo.git("ls-tree", "-r", "--name-only", "HEAD").split() == [".gitignore"] + files


def test_commit_that_would_change_more_is_not_made(repo, start, tmp_path):
    repo.write("start.py", "")
    source = '#!/bin/sh\ncase "$*" in *mktree*) set -- mktree; exec </dev/null;; esac\nexec GIT "$@"\n'
    with unchanged(repo):
        assert_refused(repo, start(env={"PATH": make_stand_in(tmp_path, source)}), "more than this file")


# --- is it clean --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["file", "a b", "a\nb", 'quo"te', "ä", "sub/x.py", "-n", pytest.param("\udcff", id="no-utf-8")]
)
def test_dirty_file_is_named_exactly(repo, work_in, name):
    try:
        repo.write(name, "1")
    except OSError:
        pytest.skip("the file system refuses this name")
    repo.commit()
    repo.write(name, "2")
    with unchanged(repo), pytest.raises(meticulous.DirtyRepoException) as caught:
        work_in()
    assert caught.value.files == [name]
    assert caught.value.commit == repo.git("rev-parse", "HEAD").strip()
    assert not (repo.path / "experiments").exists()


def test_staged_renamed_deleted_and_added_files_are_dirty(repo, work_in):
    for name in ("old", "gone", "staged"):
        repo.write(name, name * 50)
    repo.commit()
    repo.git("mv", "old", "new")
    (repo.path / "gone").unlink()
    repo.write("staged", "2")
    repo.write("added", "3")
    repo.git("add", "staged", "added")
    with pytest.raises(meticulous.DirtyRepoException) as caught:
        work_in()
    # git looks for renames in any case up to 2.17.
    assert sorted(set(caught.value.files) - {"old"}) == ["added", "gone", "new", "staged"]


def test_untracked_and_touched_files_are_not_dirty(repo, work_in):
    repo.write("untracked", "")
    os.utime(str(repo.path / "README"), (1, 1))
    work_in()
    assert_added(repo)


def test_status_output_is_parsed():
    output = b"## M a\0 M a\nb\0R  new\0old\0MM \xc3\xa4\0 C # b\0c\0"
    assert meticulous._parse_status(output) == {"a\nb": " M", "new": "R ", "ä": "MM", "# b": " C"}
    assert meticulous._parse_status(b"## main\0") == {}


def test_dirty_ignore_file_is_the_users_change(repo, work_in):
    work_in()
    repo.write(".gitignore", "experiments\n*.pyc\n")
    with unchanged(repo), pytest.raises(meticulous.DirtyRepoException, match="gitignore"):
        work_in()
    repo.git("add", ".gitignore")
    with unchanged(repo), pytest.raises(meticulous.DirtyRepoException, match="gitignore"):
        work_in()


@pytest.mark.parametrize("content", [None, ""], ids=["no-file", "empty"])
def test_commit_of_that_name_need_not_be_ours(repo, work_in, content):
    repo.write(".gitignore", "*.pyc\n")
    repo.commit()
    (repo.path / ".gitignore").unlink()
    if content is not None:
        repo.write(".gitignore", content)
    repo.commit(message=SUBJECT)
    repo.write(".gitignore", "*.so\n")
    repo.git("add", ".gitignore")
    with unchanged(repo), pytest.raises(meticulous.DirtyRepoException, match="gitignore"):
        work_in()


def test_mode_of_ignore_file_is_the_users_change(repo, work_in):
    work_in()
    (repo.path / ".gitignore").chmod(0o755)
    with unchanged(repo), pytest.raises(meticulous.DirtyRepoException, match="gitignore"):
        work_in()


@pytest.mark.parametrize("setting", ["submodule.module.ignore", "diff.ignoreSubmodules", ".gitmodules"])
def test_change_in_a_submodule_that_is_to_be_ignored(repo, make_repo, work_in, tmp_path, setting):
    other = make_repo(tmp_path / "other")
    repo.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(other.path), "module")
    if setting == ".gitmodules":
        repo.git("config", "-f", ".gitmodules", "submodule.module.ignore", "all")
    else:
        repo.git("config", setting, "all")
    repo.git("commit", "-qam", "Add module")
    repo.write("module/untracked", "")
    work_in()
    repo.write("module/README", "changed")
    with pytest.raises(meticulous.DirtyRepoException, match="'module'"):
        work_in()


REAPERS = {
    "ignored": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "handler": """
        def reap(number, frame):
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                pass

        signal.signal(signal.SIGCHLD, reap)
    """,
}


@pytest.mark.parametrize("reaper", list(REAPERS))
def test_failure_is_seen_where_others_reap_children(repo, start, tmp_path, reaper):
    source = "import os, signal\n" + textwrap.dedent(REAPERS[reaper]) + textwrap.dedent(START)
    results = [repo.run(None, name=repo.write("start.py", source).name)]
    assert_added(repo)
    repo.write("README", "changed")
    results.append(repo.run(None, name="start.py"))
    path = make_stand_in(tmp_path, '#!/bin/sh\ncase "$*" in *status*) kill -9 $$;; esac\nexec GIT "$@"\n')
    results.append(repo.run(None, name="start.py", env={"PATH": path}))
    (repo.path / ".git" / "index").write_text("broken")
    results.append(repo.run(None, name="start.py"))
    assert [result.code for result in results] == [0, 1, 1, 1], results
    assert "DirtyRepoException" in results[1].stderr
    assert "GitException" in results[2].stderr
    assert "GitException" in results[3].stderr and "index" in results[3].stderr


# --- no user setting disturbs -------------------------------------------------------------------

HOSTILE_SETTINGS = """
[color]
    ui = always
[core]
    quotePath = true
    pager = false
    fsmonitor = SLOW
    hooksPath = HOOKS
    safecrlf = true
[pager]
    status = true
[status]
    branch = true
    short = true
    showUntrackedFiles = all
    relativePaths = true
    submoduleSummary = true
[log]
    showSignature = true
    date = relative
[i18n]
    logOutputEncoding = ISO-8859-1
[alias]
    status = !false
    cat-file = !false
[commit]
    gpgSign = true
[gpg]
    program = false
[trace2]
    normalTarget = TRACE
    eventTarget = TRACE
    perfTarget = TRACE
[diff]
    noprefix = true
    external = false
"""


def test_settings_and_variables_change_nothing(repo, start, tmp_path, monkeypatch):
    trace = tmp_path / "trace"
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for name in ("reference-transaction", "post-index-change", "pre-commit", "commit-msg", "post-commit"):
        (hooks / name).write_text("#!/bin/sh\nexit 1\n")
        (hooks / name).chmod(0o755)
        shutil.copy(str(hooks / name), str(repo.path / ".git" / "hooks" / name))
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nsleep 1000\n")
    slow.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    settings = HOSTILE_SETTINGS
    for word, path in (("TRACE", trace), ("SLOW", slow), ("HOOKS", hooks)):
        settings = settings.replace(word, str(path))
    (home / ".gitconfig").write_text(settings)
    result = start(env={
        "HOME": home, "GIT_DIR": "/nowhere", "GIT_WORK_TREE": "/nowhere", "GIT_INDEX_FILE": "/nowhere",
        "GIT_OBJECT_DIRECTORY": "/nowhere", "GIT_NAMESPACE": "x", "GIT_TRACE": "1", "GIT_TRACE_SETUP": "1",
        "GIT_PAGER": "false", "GIT_EDITOR": "false", "GIT_EXTERNAL_DIFF": "false", "GIT_PREFIX": "x/",
        "GIT_LITERAL_PATHSPECS": "1", "LANGUAGE": "de:fr", "LC_MESSAGES": "de_DE.UTF-8",
    })  # fmt: skip
    assert result.code == 0, result
    assert not trace.exists()
    assert_added(repo)
    assert result.stdout.strip() == repo.git("rev-parse", "HEAD").strip()


def test_commit_carries_the_users_name(repo, start):
    start(env={"GIT_AUTHOR_NAME": "Ann", "GIT_COMMITTER_EMAIL": "ann@example.org"})
    names = repo.git("log", "-1", "--format=%an %ae %cn %ce")
    assert names == "Ann test@example.com Test User ann@example.org\n"


def test_commit_has_a_name_of_ours_without_the_users(repo, start):
    repo.git("config", "--unset", "user.name")
    repo.git("config", "--unset", "user.email")
    assert start().code == 0
    assert repo.git("log", "-1", "--format=%an %ae %cn %ce") == (
        "meticulous meticulous@localhost meticulous meticulous@localhost\n"
    )
    assert_added(repo)


def test_clean_filter_sees_the_users_locale(repo, start):
    repo.git("config", "filter.locale.clean", 'sed "s/^/$LC_ALL/"')
    repo.write(".gitattributes", "data filter=locale\n")
    repo.write(".gitignore", "experiments\nstart.py\n")
    repo.write("data", "1\n")
    repo.git("add", ".")
    repo.git("commit", "-qm", "Add data")
    os.utime(str(repo.path / "data"), (1, 1))  # so that git has the filter run again
    assert start().code == 0
    assert start(env={"LC_ALL": "C.UTF-8"}).code == 1


def test_partial_clone_stays_offline(repo, make_repo, start, tmp_path):
    server = make_repo(tmp_path / "server")
    server.git("config", "uploadpack.allowFilter", "true")
    for number in range(3):
        server.write("data", str(number) * 99)
        server.commit()
    url = f"file://{server.path}"
    repo.git("clone", "-q", "--filter=blob:none", "--no-checkout", url, "clone")
    repo.git("-C", "clone", "reset", "-q")
    for name in ("README", "data"):
        (server.path / name).rename(repo.path / "clone" / name)
    repo.git("-C", "clone", "mv", "data", "renamed")
    with (repo.path / "clone" / "renamed").open("a") as file:
        file.write("x")
    repo.git("-C", "clone", "add", "renamed")
    objects = repo.git("-C", "clone", "count-objects", "-v")
    result = start("clone")
    assert "DirtyRepoException" in result.stderr
    assert "'renamed'" in result.stderr
    assert repo.git("-C", "clone", "count-objects", "-v") == objects  # looking for renames would fetch


# --- while another git operation owns HEAD --------------------------------------------------------

PROBE = (
    START
    + """
    sys.exit(os.path.exists("bug"))
"""
)


@pytest.fixture
def history(repo, tmp_path):
    """Give eight commits, of which the fifth brings a bug, and the command of a script that finds it."""
    for number in range(1, 9):
        repo.write("bug" if number == 5 else f"file{number}", "")
        repo.commit(f"Commit {number}")
    probe = tmp_path / "probe.py"
    probe.write_text(textwrap.dedent(PROBE))
    return [sys.executable, str(probe)]


def assert_excluded(repo):
    assert SUBJECT not in repo.git("log", "--all", "--format=%s")
    exclude = repo.path / ".git" / "info" / "exclude"
    assert exclude.read_text().split("\n").count("experiments") == 1
    assert repo.git("status", "--porcelain") == ""


@pytest.mark.parametrize("has_info", [True, False], ids=["usual", "made without a template"])
def test_bisect_run_finds_the_commit(repo, history, has_info):
    if not has_info:
        shutil.rmtree(str(repo.path / ".git" / "info"))
    repo.git("bisect", "start", "HEAD", "HEAD~8")
    assert re.search("first '?bad'? commit", repo.git("bisect", "run", *history))
    assert repo.git("log", "-1", "--format=%s", "refs/bisect/bad").strip() == "Commit 5"
    repo.git("bisect", "reset")
    assert_excluded(repo)


def test_rebase_exec_keeps_the_commits(repo, history):
    before = repo.git("rev-parse", "HEAD")
    repo.git("rebase", "-q", "--exec", " ".join(history) + " || true", "HEAD~3")
    assert repo.git("rev-parse", "HEAD") == before
    assert_excluded(repo)


def test_bisect_in_a_linked_work_tree(repo, history, work_in, tmp_path):
    linked = tmp_path / "linked"
    repo.git("worktree", "add", "-q", "--detach", str(linked))
    subprocess.check_call(["git", "bisect", "start", "-q", "HEAD", "HEAD~8"], cwd=str(linked))
    work_in(project=linked)
    work_in(project=linked)
    assert_excluded(repo)


def test_line_in_exclude_that_has_no_effect(repo, history, work_in):
    repo.write(".gitignore", "!experiments\n")
    repo.commit()
    repo.git("bisect", "start", "HEAD", "HEAD~8")
    repo.git("bisect", "bad", "HEAD")
    repo.git("checkout", "-q", "master") if "master" in repo.git("branch") else repo.git(
        "checkout", "-q", "main"
    )
    assert work_in().sha == repo.git("rev-parse", "HEAD").strip()
    assert SUBJECT not in subjects(repo)


# --- commits of ours since an experiment was recorded ---------------------------------------------


def test_commits_of_ours_make_no_difference(repo, work_in):
    recorded = repo.git("rev-parse", "HEAD").strip()
    work_in()
    head = work_in("others")
    assert head.sha != recorded
    differs = meticulous._differs_only_by_our_commits
    assert differs(str(repo.path), recorded, head)
    assert differs(str(repo.path), repo.git("rev-parse", "HEAD^").strip(), head)
    for other in (head.sha, "0" * 40, "HEAD^", "--output=x", "None", "7"):
        assert not differs(str(repo.path), other, head)
    assert not (repo.path / "x").exists()


@pytest.mark.parametrize("message", [SUBJECT, "Ignore more"])
@pytest.mark.parametrize("name", [".gitignore", "train.py"])
def test_commits_of_the_user_make_a_difference(repo, work_in, name, message):
    recorded = work_in().sha
    repo.write(name, "experiments\n*.pyc\n")
    repo.commit(message)
    is_like_ours = (name, message) == (".gitignore", SUBJECT)
    assert (
        meticulous._differs_only_by_our_commits(str(repo.path), recorded, work_in("others")) == is_like_ours
    )


def test_branch_beside_commits_of_ours_makes_a_difference(repo, work_in):
    repo.git("checkout", "-q", "-b", "side")
    repo.write("train.py", "")
    repo.commit()
    recorded = repo.git("rev-parse", "HEAD").strip()
    repo.git("checkout", "-q", "-")
    assert not meticulous._differs_only_by_our_commits(str(repo.path), recorded, work_in())


# --- git's refusals -----------------------------------------------------------------------------


def test_no_repository(tmp_path, work_in):
    folder = tmp_path / "plain"
    folder.mkdir()
    with pytest.raises(meticulous.GitException, match="(?s)not in a git repository.*git init.*norecord=True"):
        work_in(project=folder)
    (folder / ".git").mkdir()  # git does not take it for a repository
    with pytest.raises(meticulous.GitException, match="not in a git repository"):
        work_in(project=folder)


def test_no_such_directory(repo):
    with pytest.raises(meticulous.GitException, match="(?s)no directory .*nothere.*project_directory"):
        meticulous._find_work_tree(str(repo.path / "nothere"))


def test_deleted_current_directory(tmp_path, monkeypatch):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(meticulous.GitException, match="current directory was deleted"):
        meticulous._find_work_tree("")


def test_no_commit_yet(tmp_path, work_in):
    folder = tmp_path / "new"
    subprocess.check_call(["git", "init", "-q", str(folder)])
    (folder / "train.py").write_text("")
    with pytest.raises(meticulous.GitException, match="(?s)no commit yet.*git commit.*norecord=True"):
        work_in(project=folder)
    assert sorted(os.listdir(str(folder))) == [".git", "train.py"]


@pytest.mark.parametrize("where", [".git", ".git/hooks", "bare", "bare/hooks"])
def test_no_files_checked_out(repo, work_in, where):
    repo.git("init", "-q", "--bare", "bare")
    with pytest.raises(meticulous.GitException, match="(?s)bare repository or inside.*project_directory"):
        work_in(project=repo.path / where)


def test_repository_made_bare(repo, work_in):
    repo.git("config", "core.bare", "true")
    with pytest.raises(meticulous.GitException, match="bare repository"):
        work_in()


def test_repository_of_another_user(repo, start, tmp_path):
    path = make_stand_in(tmp_path, '#!/bin/sh\nGIT_TEST_ASSUME_DIFFERENT_OWNER=1 exec GIT "$@"\n')
    result = start(env={"PATH": path})
    if result.code:  # git from 2.35.2 on
        assert "belongs to another user" in result.stderr
        assert (
            f"run `git config --global --add safe.directory {repo.path}`, or pass norecord=True"
            in result.stderr
        )
        trust = {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": repo.path,
        }
        assert start(env=dict(trust, PATH=path)).code == 0
    assert_added(repo)


def test_broken_repositories(repo, work_in):
    (repo.path / ".git" / "index").write_text("broken")
    with pytest.raises(
        meticulous.GitException, match="(?s)can't use: .*index.*`git reset`.*, or pass norecord=True"
    ):
        work_in()
    shutil.rmtree(str(repo.path / ".git"))
    (repo.path / ".git").write_text("gitdir: /nowhere\n")
    with pytest.raises(meticulous.GitException, match="whose repository is not there"):
        work_in()


def test_linked_work_tree_without_its_repository(repo, work_in, tmp_path):
    linked = tmp_path / "linked"
    repo.git("worktree", "add", "-q", str(linked))
    repo.path.rename(tmp_path / "moved")
    with pytest.raises(meticulous.GitException, match="(?s)repository is not there.*worktree repair"):
        work_in(project=linked)


@pytest.mark.parametrize("name", ["new\nline", ".git"])
def test_parent_with_an_unusual_name(make_repo, tmp_path, work_in, name):
    other = make_repo(tmp_path / name / "repo")
    other.write("pkg/train.py", "")
    other.commit()
    work_in(project=other.path / "pkg")
    assert_added(other, "pkg/experiments")


def test_unreadable_configuration(open_repo, work_in, plain_user):
    plain_user(open_repo.path)
    (open_repo.path / ".git" / "config").chmod(0)
    with pytest.raises(meticulous.GitException, match="config': Permission denied"):
        work_in(project=open_repo.path)


def test_git_is_missing(start, tmp_path):
    result = start(env={"PATH": tmp_path})
    assert result.code == 1
    assert "git can't be run" in result.stderr
    assert "Install git" in result.stderr
    assert "norecord=True" in result.stderr


def test_ceiling_ends_the_search(repo, work_in, monkeypatch):
    (repo.path / "pkg" / "deep").mkdir(parents=True)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", f"/nowhere{os.pathsep}{repo.path}")
    with pytest.raises(meticulous.GitException, match="not in a git repository"):
        work_in(project=repo.path / "pkg" / "deep")
    work_in()  # the directory itself is always looked at


# --- how many processes, and which options ---------------------------------------------------------


@pytest.mark.parametrize(
    "ignored, commands",
    [
        ("experiments\n", ["cat-file", "status"]),
        ("*.pyc\r\n/experiments/\r\n", ["cat-file", "status"]),
        ("exp*\n", ["cat-file", "check-ignore", "status"]),
    ],
    ids=["literal", "slashes", "pattern"],
)
def test_processes_of_a_start(repo, work_in, monkeypatch, ignored, commands):
    repo.write(".gitignore", ignored)
    repo.commit()
    seen = []
    run_git = meticulous._git

    def run(command, *rest):
        words = command.split() if isinstance(command, str) else command
        seen.append(next(word for word in words if word != "-c" and "=" not in word))
        return run_git(command, *rest)

    monkeypatch.setattr(meticulous, "_git", run)
    work_in()
    assert sorted(seen) == commands


def test_old_git_is_enough(repo, start, tmp_path):
    log = tmp_path / "log"
    path = make_stand_in(tmp_path, OLD_GIT.replace("LOG", str(log)))
    repo.write("pkg/file", "")
    repo.commit()
    results = [start(*arguments, env={"PATH": path}) for arguments in ([], ["pkg", "runs"], [".git"])]
    assert [result.code for result in results] == [0, 0, 1], results
    assert "inside .git" in results[2].stderr
    assert "update-ref" in log.read_text()
    assert (repo.path / ".gitignore").read_text() == "experiments\npkg/runs\n"


# --- which directory ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, line",
    [
        ("experiments", "experiments"), ("a/b/c", "a/b/c"), ("a b", "a b"), (" a", " a"), ("ä", "ä"),
        ("a]", "a]"), ("#a", "\\#a"), ("x/#a", "x/#a"), ("!a", "\\!a"), ("a!", "a!"), ("a*", "a\\*"),
        ("a?", "a\\?"), ("[a]", "\\[a]"), ("a\\b", "a\\\\b"), ("a  ", "a\\ \\ "), (":a", ":a"),
        (":(top)a", ":(top)a"), ("-a", "-a"), ("a\tb", "a\tb"), ('"a"', '"a"'),
    ],
)  # fmt: skip
def test_special_names_are_one_working_line(repo, work_in, name, line):
    work_in(name)
    assert_added(repo, line)
    (repo.path / name / "1").mkdir()
    (repo.path / name / "1" / "STATUS").write_text("x")
    assert repo.git("status", "--porcelain", "-z") == ""
    work_in(name)
    assert_added(repo, line)


def test_ascii_locale_takes_any_name(repo, start):
    # LC_ALL=C is ASCII up to Python 3.6, and from 3.7 on without these two.
    ascii_only = {"LC_ALL": "C", "LANG": None, "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    result = start("", "Läufe", env=ascii_only)
    assert result.code == 0, result
    assert_added(repo, "Läufe")
    assert start("", "Läufe", env=ascii_only).stdout == result.stdout


def test_line_ignores_nothing_else(repo, work_in):
    work_in("a*")
    repo.write("ab/file", "")
    assert "ab/" in repo.git("status", "--porcelain")


@pytest.mark.parametrize("name", ["a\nb", "a\r"])
def test_names_without_a_line(repo, work_in, name):
    with unchanged(repo), pytest.raises(meticulous.GitException, match="experiments_directory"):
        work_in(name)


@pytest.mark.parametrize("name", [".", "pkg/..", ".git", ".git/runs", "pkg/.git/x", "to-top", "to-git/x"])
def test_impossible_directories(repo, work_in, name):
    (repo.path / "pkg").mkdir()
    (repo.path / "to-top").symlink_to(".")
    (repo.path / "to-git").symlink_to(".git")
    with unchanged(repo), pytest.raises(meticulous.GitException, match="experiments_directory"):
        work_in(name)


def test_outside_of_the_work_tree(repo, work_in, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (repo.path / "out").symlink_to(tmp_path / "elsewhere")
    before = subjects(repo)
    for name in ("..", "../experiments", str(tmp_path / "a" / "b"), "out/experiments"):
        work_in(name)
    assert subjects(repo) == before
    assert (tmp_path / "elsewhere" / "experiments").is_dir()


def test_nested_repository_is_outside(repo, make_repo, work_in):
    make_repo(repo.path / "nested")
    before = subjects(repo)
    work_in("nested/experiments")
    assert subjects(repo) == before


def test_symbolic_link_is_ignored_as_the_link(repo, work_in, tmp_path):
    (tmp_path / "scratch").mkdir()
    (repo.path / "experiments").symlink_to(tmp_path / "scratch")
    repo.write(".gitignore", "experiments/\n")  # for directories only
    repo.commit()
    assert "experiments" in repo.git("ls-files")
    repo.git("rm", "-q", "--cached", "experiments")
    repo.git("commit", "-qm", "Forget the link")
    work_in()
    assert_added(repo, before="experiments/\n")
    assert repo.git("status", "--porcelain") == ""
    work_in()
    assert_added(repo, before="experiments/\n")


def test_linked_parent_inside_is_ignored_where_it_is(repo, work_in):
    (repo.path / "real").mkdir()
    (repo.path / "link").symlink_to("real")
    work_in("link/experiments")
    assert_added(repo, "real/experiments")


# --- .gitignore ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "before, added",
    [
        (b"", b"experiments\n"),
        (b"*.pyc\n", b"experiments\n"),
        (b"*.pyc", b"\nexperiments\n"),
        (b"*.pyc\r\nx\r\n", b"experiments\r\n"),
        (b"*.pyc\r\nx", b"\r\nexperiments\r\n"),
        (b"\xef\xbb\xbf*.pyc\n", b"experiments\n"),
        (b"\xef\xbb\xbf", b"\nexperiments\n"),
        (b"caf\xe9\n", b"experiments\n"),
        (b"#experiments\nxexperiments\nexperimentsx\n", b"experiments\n"),
    ],
)
@pytest.mark.parametrize("is_tracked", [True, False], ids=["tracked", "untracked"])
def test_line_fits_the_file(repo, work_in, before, added, is_tracked):
    repo.write(".gitignore", before)
    if is_tracked:
        repo.commit()
    work_in()
    assert (repo.path / ".gitignore").read_bytes() == before + added
    assert subjects(repo)[0] == SUBJECT
    assert repo.git("show", "--name-only", "--format=").split() == [".gitignore"]
    assert repo.git("status", "--porcelain") == ""


@pytest.mark.parametrize("autocrlf", ["true", "input"])
@pytest.mark.parametrize("before", [b"*.pyc\r\n", b"*.pyc\n"], ids=["crlf", "lf"])
def test_line_ends_are_converted_as_git_is_told(repo, work_in, autocrlf, before):
    repo.git("config", "core.autocrlf", autocrlf)
    repo.git("config", "core.safecrlf", "true")
    repo.write(".gitignore", before)
    work_in()
    assert (repo.path / ".gitignore").read_bytes() == before + b"experiments" + before[-2:].lstrip(b"c")
    assert repo.git("cat-file", "blob", "HEAD:.gitignore") == "*.pyc\nexperiments\n"
    assert repo.git("status", "--porcelain") == ""


@pytest.mark.parametrize("where", [".git/info/exclude", "pkg/.gitignore", "core.excludesFile", ".gitignore"])
def test_any_rule_that_ignores_is_enough(repo, work_in, tmp_path, where):
    repo.write("pkg/file", "")
    if where == "core.excludesFile":
        (tmp_path / "excludes").write_text("/pkg/experiments/\n")
        repo.git("config", "core.excludesFile", str(tmp_path / "excludes"))
    else:
        repo.write(where, "pkg\n" if where == ".gitignore" else "experiments/\n")
    repo.commit()
    before = subjects(repo)
    work_in("pkg/experiments")
    assert subjects(repo) == before


def test_line_is_not_added_again_while_a_file_below_is_tracked(repo, work_in):
    repo.write(".gitignore", "experiments\n")
    repo.write("experiments/notes", "")
    repo.git("add", "--force", ".")
    repo.git("commit", "-qm", "Track notes")
    assert work_in().message == "Track notes\n"


def test_ignore_file_that_is_ignored_itself(repo, work_in):
    repo.write(".gitignore", ".gitignore\n")
    work_in()
    assert_added(repo, before=".gitignore\n")


def test_mode_and_neighbours_in_the_tree_stay(repo, work_in):
    for name in (".gitattributes", ".gitignore.d/file", ".gitignorf", "a\t.gitignore", "dir/.gitignore", "ä"):
        repo.write(name, "")
    repo.write(".gitignore", "*.pyc\n").chmod(0o755)
    repo.commit()
    before = repo.git("ls-tree", "-r", "-z", "HEAD").split("\0")
    work_in()
    after = repo.git("ls-tree", "-r", "-z", "HEAD").split("\0")
    assert [line[:6] for line in after] == [line[:6] for line in before]
    assert [line.partition("\t")[2] for line in after] == [line.partition("\t")[2] for line in before]
    assert len(set(after) - set(before)) == 1
    assert (repo.path / ".gitignore").stat().st_mode & 0o777 == 0o755
    repo.git("fsck", "--strict")


def assert_refused(repo, result, reason=""):
    assert result.code == 1, result
    assert result.stderr.startswith("GitException: ")
    assert reason in result.stderr
    assert "should have the line experiments, but" in result.stderr
    os.rmdir(str(repo.path / "experiments"))  # what make_directory did is its caller's


def test_link_as_ignore_file_is_refused(repo, start):
    repo.write("rules", "*.pyc\n")
    (repo.path / ".gitignore").symlink_to("rules")
    repo.commit()
    start_file = repo.write("start.py", "")
    with unchanged(repo):
        assert_refused(repo, start(), "symbolic link")
        start_file.write_text("")
    with (repo.path / ".git" / "info" / "exclude").open("a") as file:
        file.write("experiments\n")  # as the message says
    assert start().code == 0


def test_directory_as_ignore_file_is_refused(repo, start):
    repo.write(".gitignore/file", "")
    repo.commit()
    repo.write("start.py", "")
    with unchanged(repo):
        assert_refused(repo, start())


@pytest.mark.parametrize("hiding", ["--assume-unchanged", "--skip-worktree"])
def test_hidden_change_of_ignore_file_is_not_committed(repo, start, hiding):
    repo.write(".gitignore", "*.pyc\n")
    repo.commit()
    repo.git("update-index", hiding, ".gitignore")
    (repo.path / ".gitignore").unlink()
    repo.write("start.py", "")
    with unchanged(repo):
        assert_refused(repo, start(), "overlook")


@pytest.fixture
def plain_user(monkeypatch):
    """Give a function that hands a folder to a user without root's rights, who runs the rest of the test."""
    is_root = os.geteuid() == 0

    def become(folder):
        monkeypatch.setenv("HOME", str(folder))
        if is_root:
            for parent, names, files in os.walk(str(folder)):
                for name in names + files + ["."]:
                    os.chown(os.path.join(parent, name), 65534, 65534)
            os.setresuid(65534, 65534, 0)

    yield become
    if is_root:
        os.setresuid(0, 0, 0)


@pytest.fixture
def open_repo(make_repo):
    """Give a Repo that every user can reach."""
    folder = tempfile.mkdtemp()
    os.chmod(folder, 0o755)
    yield make_repo(os.path.join(folder, "repo"))
    subprocess.check_call(["chmod", "-R", "u+rwx", folder])
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", [".gitignore", ".", ".git/objects", ".git/refs/heads"])
def test_what_cannot_be_written_is_refused(open_repo, work_in, plain_user, name):
    if name != ".":
        open_repo.write(".gitignore", "*.pyc\n")
    open_repo.write("experiments/1/STATUS", "")
    plain_user(open_repo.path)
    path = open_repo.path / name
    mode = path.stat().st_mode
    path.chmod(mode & ~0o222)
    try:
        with unchanged(open_repo), pytest.raises(
            meticulous.GitException, match="should have the line experiments, .*\nAdd it there"
        ):
            work_in(project=open_repo.path)
    finally:
        path.chmod(mode)
    work_in(project=open_repo.path)
    assert_added(open_repo, before="" if name == "." else "*.pyc\n")


def test_snapshot_in_a_read_only_object_store(open_repo, plain_user):
    open_repo.write(".gitignore", "experiments\n")
    open_repo.commit()
    open_repo.write("untracked", "")
    plain_user(open_repo.path)
    objects = [open_repo.path / ".git" / "objects"] + list((open_repo.path / ".git" / "objects").iterdir())
    for path in objects:
        path.chmod(0o555)
    with pytest.raises(meticulous.GitException, match="(?s)permission.*norecord=True"):
        path = str(open_repo.path / "experiments")
        meticulous._prepare_repository(str(open_repo.path), path, lambda: os.makedirs(path), True)


# --- locks, kills and races -----------------------------------------------------------------------


def branch_lock(repo):
    return ".git/" + repo.git("symbolic-ref", "HEAD").strip() + ".lock"


@pytest.mark.parametrize("find_lock", [lambda repo: ".git/index.lock", branch_lock], ids=["index", "branch"])
def test_lock_of_another_git(repo, work_in, monkeypatch, find_lock):
    monkeypatch.setattr(meticulous, "_LOCK_TRIES", 1)
    lock = repo.write(find_lock(repo), "")
    with unchanged(repo), pytest.raises(meticulous.GitException, match="(?s)line experiments, .*[.]lock"):
        try:
            work_in()
        finally:
            os.rmdir(str(repo.path / "experiments"))
    monkeypatch.setattr(meticulous, "_LOCK_TRIES", 9)
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", lambda seconds: lock.unlink())  # it is released while we wait
        work_in()
    assert_added(repo)  # outside, because subprocess sleeps too when it waits for a process


def test_lock_that_comes_after_the_commit(repo, work_in, monkeypatch):
    lock = repo.path / ".git" / "index.lock"
    run_git = meticulous._git

    def run(command, *rest):
        if command == "reset -q -- .gitignore":
            lock.write_text("")
        return run_git(command, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(meticulous, "_LOCK_TRIES", 1)
        patch.setattr(meticulous, "_git", run)
        with pytest.raises(meticulous.GitException, match="(?s)is locked: .*index[.]lock.*Remove the lock"):
            work_in()
    lock.unlink()
    work_in()
    assert_added(repo)


def test_lock_does_not_matter_where_the_line_is(repo, work_in):
    work_in()
    repo.write(".git/index.lock", "")
    assert work_in().message.strip() == SUBJECT


def die_at(step):
    """Make this process kill itself before its git command number *step*; writing to .gitignore counts too."""
    steps = iter(range(step))

    def count(function):
        def run(*arguments, **keywords):
            if next(steps, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return run

    meticulous._git = count(meticulous._git)
    meticulous._append_line = count(meticulous._append_line)


@pytest.mark.parametrize(
    "step, before", [(step, "*.pyc\n") for step in range(23)] + [(step, None) for step in range(10, 20)]
)
def test_kill_at_every_step_blocks_nobody(repo, work_in, step, before):
    if before:
        repo.write(".gitignore", before)
        repo.commit()
    child = os.fork()
    if child == 0:
        try:
            die_at(step)
            work_in()
        finally:
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert (status == signal.SIGKILL) == (step < 22), status
    head = work_in()
    assert_added(repo, before=before or "")
    assert head.sha == repo.git("rev-parse", "HEAD").strip()
    assert sorted(os.listdir(str(repo.path))) == [".git", ".gitignore", "README", "experiments"]


class Starts:
    """Real processes that wait for one another at the gate, and then all prepare the repository."""

    def __init__(self, repo, count, directories=("experiments",)):
        (repo.path / ".git" / "info" / "exclude").write_text("start.py\n")
        repo.write("start.py", "import sys\nprint(flush=True)\nsys.stdin.read()\n" + textwrap.dedent(START))
        gate, self.opener = os.pipe()
        self.scripts = [
            repo.popen(None, "", directories[number % len(directories)], name="start.py", stdin=gate)
            for number in range(count)
        ]
        os.close(gate)
        for script in self.scripts:
            script.stdout.readline()

    def release(self):
        os.close(self.opener)

    def results(self):
        return [script.result() for script in self.scripts]


@pytest.mark.slow
@pytest.mark.parametrize("before", [None, "*.pyc"], ids=["no-file", "file"])
def test_64_starts_make_one_commit(repo, before):
    if before:
        repo.write(".gitignore", before)
        repo.commit()
    starts = Starts(repo, 64)
    starts.release()
    results = starts.results()
    assert [result for result in results if result.code] == []
    assert_added(repo, before=before + "\n" if before else "")
    assert {result.stdout for result in results} == {repo.git("rev-parse", "HEAD")}
    assert sum("committed the line" in result.stderr for result in results) == 1
    assert not repo.git("status", "--porcelain")


@pytest.mark.slow
def test_starts_with_different_directories_add_all_lines(repo):
    names = ["experiments", "a/runs", "b", "c"]
    starts = Starts(repo, 16, names)
    starts.release()
    assert [result for result in starts.results() if result.code] == []
    assert sorted((repo.path / ".gitignore").read_text().split()) == sorted(names)
    assert subjects(repo).count(SUBJECT) == len(names)
    assert repo.git("status", "--porcelain") == ""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_random_kills_in_a_race(repo, start, seed):
    chance = random.Random(seed)
    starts = Starts(repo, 8)
    starts.release()
    for script in chance.sample(starts.scripts, 6):
        time.sleep(chance.random() * 0.03)  # the moments of the kills, in no order with what goes on
        script.kill_group()
    results = starts.results()
    assert {result.code for result in results} <= {0, -signal.SIGKILL}, results
    assert start().code == 0
    assert_added(repo)
    assert repo.git("status", "--porcelain") == ""
