"""A run is on disk, complete, numbered and tied to a commit; bad input gets a clear error and loses nothing."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import PROJECT

TRAIN = """
    import argparse, sys
    from meticulous import Experiment

    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--layers", type=int, nargs="*", default=[8])
    Experiment.add_argument_group(parser)
    experiment = Experiment.from_parser(parser)
    print("training")
    print("careful", file=sys.stderr)
    with experiment.open("model.txt", "w") as file:
        file.write("weights")
    experiment.summary({"loss": 0.5})
    experiment.summary(loss=0.3, accuracy=0.9)
"""
START = "from meticulous import Experiment\nexperiment = Experiment("

FILL_DISK = """\
try:
    with experiment.open("ballast", "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 512)
except OSError:
    pass
"""


def load(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def read(folder):
    """Read a whole folder, hidden files and all, as name -> bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def script(arguments="", body=""):
    return f"{START}{arguments})\n{body}\n"


def fails(repo, source, error, *words, **keywords):
    """Run a script that ends with our *error*; its message has all *words* in one or two lines."""
    result = repo.run(source, **keywords)
    assert result.code == 1 and "meticulous." + error in result.stderr, result
    message = result.stderr[result.stderr.rindex("meticulous." + error) :].partition(": ")[2]
    assert len(message.strip().splitlines()) <= 2
    for word in words:
        assert word in message
    assert "During handling" not in result.stderr
    return message


class TestRecord:
    def test_a_whole_record(self, repo):
        result = repo.run(TRAIN, "--lr", "0.5", "--description", "first try")
        assert (result.code, result.stdout) == (0, "training\n"), result
        folder = repo.experiment(1)
        assert set(read(folder)) == {
            "args.json", "default_args.json", "metadata.json", "summary.json", "STATUS", "stdout", "stderr", "model.txt",
        }  # fmt: skip
        assert load(folder, "args") == {"lr": 0.5, "layers": [8]}
        assert load(folder, "default_args") == {"lr": 0.1, "layers": [8]}
        assert load(folder, "summary") == {"loss": 0.3, "accuracy": 0.9}
        assert (folder / "STATUS").read_bytes() == b"SUCCESS"
        assert (folder / "stdout").read_bytes() == b"training\n"
        assert (folder / "stderr").read_bytes() == b"careful\n"
        metadata = load(folder, "metadata")
        assert metadata["githead-sha"] == repo.git("rev-parse", "HEAD").strip()
        assert metadata["githead-message"] == "Added experiments directory to .gitignore\n"
        assert metadata["description"] == "first try"
        assert metadata["command"] == [
            str(repo.path / "script.py"),
            "--lr",
            "0.5",
            "--description",
            "first try",
        ]
        for name in ("start-time", "end-time"):
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}", metadata[name])
        (attempt,) = metadata["attempts"]
        assert attempt["ended"] == "SUCCESS"
        assert attempt["start-time"] == metadata["start-time"]
        assert attempt["end-time"] == metadata["end-time"]
        assert attempt["host"] == os.uname().nodename
        assert attempt["pid"] > 0

    def test_json_is_indented_by_four_and_ascii(self, repo):
        repo.run(script("{'größe': [1]}"))
        text = (repo.experiment(1) / "args.json").read_bytes()
        assert text == b'{\n    "gr\\u00f6\\u00dfe": [\n        1\n    ]\n}'

    def test_the_commit_is_told_once(self, repo):
        assert "committed" in repo.run(TRAIN).stderr
        result = repo.run(None)
        assert result.stderr == "careful\n"
        assert repo.git("status", "--porcelain") == ""

    def test_while_it_runs(self, repo):
        process = repo.popen(script("", "print('up', flush=True)\ninput()"), stdin=-1)
        assert process.stdout.readline() == b"up\n"
        folder = repo.experiment(1)
        assert (folder / "STATUS").read_bytes() == b"RUNNING"
        assert "end-time" not in load(folder, "metadata")
        assert not (folder / "summary.json").exists()
        process.stdin.write(b"\n")
        assert process.result().code == 0
        assert (folder / "STATUS").read_bytes() == b"SUCCESS"

    def test_defaults_of_the_constructor(self, repo):
        repo.run(script())
        assert load(repo.experiment(1), "args") == {}
        assert load(repo.experiment(1), "default_args") == {}

    def test_a_command_that_json_has_no_form_for(self, repo):
        result = repo.run("import pathlib, sys\nsys.argv = [pathlib.Path('train.py'), 3]\n" + script())
        assert (result.code, load(repo.experiment(1), "metadata")["command"]) == (0, ["train.py", 3]), result

    def test_a_namespace_and_no_defaults(self, repo):
        repo.run("import argparse\n" + script("argparse.Namespace(lr=1), None"))
        assert load(repo.experiment(1), "args") == {"lr": 1}
        assert load(repo.experiment(1), "default_args") is None

    def test_attributes(self, repo):
        (repo.path / "sub").mkdir()
        body = """
            import os
            os.chdir("/")
            print(experiment.curexpdir, experiment.repo_directory, experiment.experiments_directory, sep="|")
            print(repr(experiment.project_directory), experiment.norecord, experiment.metadata["description"])
            print(experiment.stdout is sys.stdout, experiment.stderr is sys.stderr)
            experiment.open("here", "w").close()
        """
        source = (
            "import sys\n"
            + script("project_directory='sub', description='d'", "")
            + body.replace(" " * 12, "")
        )
        result = repo.run(source)
        folder = repo.path / "sub" / "experiments"
        assert result.stdout.splitlines() == [
            f"{folder / '1'}|{repo.path}|{folder}",
            "'sub' False d",
            "True True",
        ], result
        assert (folder / "1" / "here").exists()
        assert (repo.path / ".gitignore").read_text() == "sub/experiments\n"

    def test_symbolic_links_are_kept(self, repo, tmp_path):
        link = tmp_path / "link"
        link.symlink_to(repo.path)
        result = repo.run(
            script(
                f"project_directory={str(link)!r}", "print(experiment.curexpdir, experiment.repo_directory)"
            )
        )
        assert result.stdout == f"{link}/experiments/1 {link}\n", result

    def test_an_absolute_directory_outside_needs_no_gitignore(self, repo, tmp_path):
        result = repo.run(script(f"experiments_directory={str(tmp_path / 'out')!r}"))
        assert result.stderr == ""
        assert (tmp_path / "out" / "1" / "STATUS").exists()
        assert not (repo.path / ".gitignore").exists()

    def test_nested_and_successive_experiments(self, repo):
        body = """
            print("a")
            inner = Experiment({"inner": 1})
            print("b")
            inner.finish()
            print("c")
            experiment.finish()
            print("d")
            Experiment({"last": 1})
            print("e")
        """
        result = repo.run(script() + body.replace(" " * 12, ""))
        assert result.stdout.split() == list("abcde"), result
        outputs = [(repo.experiment(number) / "stdout").read_text().split() for number in (1, 2, 3)]
        assert outputs == [list("abc"), ["b"], ["e"]]
        assert [(repo.experiment(number) / "STATUS").read_text() for number in (1, 2, 3)] == ["SUCCESS"] * 3

    def test_a_logging_handler_made_in_one_experiment_is_recorded_by_the_next(self, repo):
        body = """
            import logging, sys
            logging.basicConfig(format="%(message)s")
            logging.warning("first")
            experiment.finish()
            logging.warning("between")
            second = Experiment()
            logging.warning("second")
            print("as ever", file=sys.stderr)
            second.finish()
            assert sys.stderr is sys.__stderr__
        """
        result = repo.run(script() + body.replace(" " * 12, ""))
        assert result.code == 0 and result.stderr.endswith("first\nbetween\nsecond\nas ever\n"), result
        outputs = [(repo.experiment(number) / "stderr").read_text() for number in (1, 2)]
        assert outputs == ["first\n", "second\nas ever\n"]

    def test_the_next_experiment_takes_a_stream_as_it_is_by_then(self, repo):
        body = """
import contextlib, sys
experiment.finish()
plain = sys.stdout.write
sys.stdout.write = lambda text: plain(text.upper())
second = Experiment()
print("inside")
with contextlib.redirect_stdout(sys.__stdout__):
    with Experiment(): print("inner")
    assert sys.stdout is sys.__stdout__
    print("past the second")
"""
        result = repo.run(script("", body))
        assert (result.code, result.stdout) == (0, "INSIDE\nINNER\nPAST THE SECOND\n"), result
        outputs = [(repo.experiment(number) / "stdout").read_text() for number in (1, 2, 3)]
        assert outputs == ["", "inside\ninner\npast the second\n", "inner\n"]

    def test_one_hundred_in_a_loop(self, repo):
        source = "from meticulous import Experiment\nfor n in range(100):\n    with Experiment({'n': n}): print(n)\n"
        assert repo.run(source).code == 0
        assert [load(repo.experiment(n + 1), "args")["n"] for n in range(100)] == list(range(100))


class TestImport:
    @pytest.mark.parametrize(
        "line",
        [
            "from meticulous.experiment import Experiment, DirtyRepoException",
            "from meticulous.experiments import Experiments",
            "import meticulous.experiment as m; m.Experiment",
            "import meticulous, meticulous.experiments; meticulous.experiments.Experiments",
            "import meticulous.experiment; import meticulous; assert meticulous.experiment.Experiment",
        ],
    )
    def test_the_packages_import_paths(self, repo, line):
        result = repo.run(line)
        assert (result.code, result.stderr) == (0, "")

    def test_importing_changes_nothing_but_the_aliases(self, repo):
        source = """
            import argparse, atexit, errno, json, signal, sys, time
            before = dict(vars(sys)), dict(sys.modules), signal.getsignal(signal.SIGTERM), sys.stdout
            import meticulous
            changed = [name for name in before[0] if vars(sys)[name] is not before[0][name]]
            print(changed, sorted(set(sys.modules) - set(before[1])))
        """
        assert repo.run(source).stdout == (
            "['exit'] ['meticulous', 'meticulous.experiment', 'meticulous.experiments']\n"
        )


class TestNorecord:
    def test_nothing_is_touched_and_no_git_is_needed(self, tmp_path, make_repo):
        repo = make_repo(tmp_path / "repo")
        shutil.rmtree(str(repo.path / ".git"))
        repo.write(
            "script.py",
            script("norecord=True", "")
            + "import sys\n"
            + "print(experiment.curexpdir, experiment.metadata, experiment.stdout is sys.__stdout__, experiment.norecord)\n"
            + "experiment.summary(loss=1)\n"
            + "experiment.open('made.txt', 'w').close()\n"
            + "experiment.finish()\n",
        )
        result = repo.run(None, env={"PATH": ""}, python=sys.executable)
        assert (result.code, result.stdout, result.stderr) == (0, ". {} True True\n", "")
        assert sorted(path.name for path in repo.path.iterdir()) == ["README", "made.txt", "script.py"]

    def test_exceptions_in_the_block_are_shown_and_swallowed_all_the_same(self, repo):
        result = repo.run(
            "from meticulous import Experiment\nwith Experiment(norecord=True): 1 / 0\nprint('on')"
        )
        assert (result.code, result.stdout) == (0, "on\n")
        assert result.stderr.count("ZeroDivisionError") == 1

    def test_an_exception_in_the_block_is_not_shown_on_stdout_where_there_is_no_stderr(self, repo):
        body = "import sys\nsys.stderr = None\nwith experiment: 1 / 0\nprint('on')"
        result = repo.run(script("norecord=True", body))
        assert (result.code, result.stdout) == (0, "on\n")


class TestBlock:
    def run(self, repo, line):
        source = f"import asyncio\nfrom meticulous import Experiment\nwith Experiment() as e:\n    {line}\nprint('on')\n"
        result = repo.run(source)
        return result, (repo.experiment(1) / "STATUS").read_text()

    def test_success(self, repo):
        result, status = self.run(repo, "pass")
        assert (result.code, result.stdout, status) == (0, "on\n", "SUCCESS")

    def test_an_exception_that_cannot_be_formatted(self, repo):
        result, status = self.run(repo, "raise SyntaxError('x', ('f', 1, 'abc', 'text'))")
        assert (result.code, result.stdout) == (0, "on\n"), result
        assert status.startswith("ERROR\n") and "SyntaxError: x" in status.splitlines()[-1]
        assert "SyntaxError: x" in result.stderr

    def test_an_exception_that_stderr_has_no_characters_for(self, repo):
        error = "\N{GREEK SMALL LETTER OMEGA}"
        result = repo.run(
            f"""
            import io, sys
            from meticulous import Experiment
            sys.stderr = io.TextIOWrapper(sys.stderr.buffer, "ascii", line_buffering=True)
            with Experiment():
                raise ValueError({error!r})
            """
        )
        assert result.code == 0 and result.stderr.endswith("ValueError: \\u03c9\n"), result
        assert "Traceback" in result.stderr

    def test_an_exception_is_recorded_shown_and_swallowed(self, repo):
        result, status = self.run(repo, "raise ValueError('bad')")
        assert (result.code, result.stdout) == (0, "on\n")
        assert status.startswith("ERROR\nTraceback (most recent call last)")
        assert status.rstrip().endswith("\nValueError: bad")
        assert result.stderr.count("ValueError: bad") == 1
        assert (repo.experiment(1) / "stderr").read_text().endswith("ValueError: bad\n")
        assert load(repo.experiment(1), "metadata")["attempts"][0]["ended"] == "ERROR: ValueError: bad"

    @pytest.mark.parametrize(
        "line, code, reason",
        [
            ("raise KeyboardInterrupt", -signal.SIGINT, "KeyboardInterrupt"),
            ("raise SystemExit(3)", 3, "sys.exit(3)"),
            ("raise SystemExit('text')", 1, "sys.exit('text')"),
            ("raise asyncio.CancelledError", 1, "CancelledError"),
        ],
    )
    def test_what_ends_the_program_passes_through(self, repo, line, code, reason):
        result, status = self.run(repo, line)
        assert result.code in (code, 1 if code < 0 else code), result  # 3.6 and 3.7 exit with 1 after Ctrl-C
        assert result.stdout == ""
        assert status.startswith("ERROR\n")
        assert status.rstrip().splitlines()[-1].endswith(reason)

    @pytest.mark.parametrize("line", ["raise SystemExit", "raise SystemExit(0)", "import sys; sys.exit()"])
    def test_a_good_exit_is_a_success(self, repo, line):
        result, status = self.run(repo, line)
        assert (result.code, result.stdout, status) == (0, "", "SUCCESS")

    def test_a_generator_that_is_closed_late(self, repo):
        source = """
            from meticulous import Experiment
            def steps():
                with Experiment():
                    yield 1
            generator = steps()
            next(generator)
            generator.close()
            print("on")
        """
        assert repo.run(source).stdout == "on\n"
        assert (repo.experiment(1) / "STATUS").read_text() == "SUCCESS"

    def test_a_coroutine_that_is_cancelled(self, repo):
        source = """
            import asyncio
            from meticulous import Experiment
            async def train():
                with Experiment():
                    await asyncio.sleep(60)
            async def main():
                task = asyncio.ensure_future(train())
                await asyncio.sleep(0)
                task.cancel()
                try:
                    await task
                except asyncio.CancelledError:
                    print("cancelled")
            asyncio.get_event_loop_policy().new_event_loop().run_until_complete(main())
        """
        result = repo.run(source, options=["-W", "ignore"])
        assert result.stdout == "cancelled\n", result
        status = (repo.experiment(1) / "STATUS").read_text()
        assert status.startswith("ERROR\n") and "CancelledError" in status.splitlines()[-1]


class TestFinish:
    @pytest.mark.parametrize(
        "call, status",
        [
            ("finish()", "SUCCESS"),
            ("finish('SUCCESS')", "SUCCESS"),
            ("finish('ERROR')", "ERROR"),
            ("finish('ERROR\\nloss is NaN')", "ERROR\nloss is NaN"),
            ("finish(); experiment.finish('ERROR')", "SUCCESS"),
        ],
    )
    def test_status(self, repo, call, status):
        assert repo.run(script("", f"experiment.{call}")).code == 0
        assert (repo.experiment(1) / "STATUS").read_text() == status

    @pytest.mark.parametrize("status", ["'RUNNING'", "'FAILED'", "None", "'SUCCESS\\nx'", "'ERRORS'"])
    def test_others_are_refused_and_the_run_goes_on(self, repo, status):
        body = f"try:\n    experiment.finish({status})\nexcept ValueError as error:\n    print(error)"
        result = repo.run(script("", body))
        assert "can't be a status" in result.stdout
        assert (repo.experiment(1) / "STATUS").read_text() == "SUCCESS"

    def test_summary_works_afterwards(self, repo):
        assert repo.run(script("", "experiment.finish()\nexperiment.summary({'a': 1}, b=2)")).code == 0
        assert load(repo.experiment(1), "summary") == {"a": 1, "b": 2}


class TestSummary:
    def test_many_threads(self, repo):
        body = """
import threading
def add(n):
    for step in range(10):
        experiment.summary({"key-%d-%d" % (n, step): step})
threads = [threading.Thread(target=add, args=(n,)) for n in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
        assert repo.run(script("", body)).code == 0
        assert len(load(repo.experiment(1), "summary")) == 80

    def test_what_is_no_mapping_is_refused(self, repo):
        fails(repo, script("", "experiment.summary([1])"), "InvalidArgsException", "summary", "list")

    def test_a_broken_file_is_not_overwritten(self, repo):
        body = "experiment.open('summary.json', 'w').write('{')\nexperiment.summary(a=1)"
        fails(repo, script("", body), "FolderException", str(repo.experiment(1) / "summary.json"))
        assert (repo.experiment(1) / "summary.json").read_text() == "{"

    def test_a_record_that_the_system_does_not_let_read_says_why_with_its_errno(self, repo):
        folder = repo.experiment("x")
        assert repo.run(script("experiment_id='x'")).code == 0
        (folder / "args.json").unlink()
        (folder / "args.json").mkdir()
        result = repo.run(
            """
            import meticulous
            try:
                meticulous.Experiment(experiment_id="x")
            except OSError as error:
                print(error.errno, error)
            """
        )
        words = f"{errno.EISDIR} {folder / 'args.json'} can't be read (Is a directory)"
        assert result.stdout == words + ": fix it, or move it away.\n", result


class TestBadInput:
    def test_a_dirty_repo_names_the_files_and_makes_nothing(self, repo):
        repo.write("model.py", "a = 1\n")
        repo.write("script.py", script())
        repo.commit()
        repo.write("model.py", "a = 2\n")
        message = fails(repo, None, "DirtyRepoException", "'model.py'", str(repo.path), "norecord=True")
        assert "1 tracked file" in message
        assert not (repo.path / "experiments").exists()
        assert not (repo.path / ".gitignore").exists()

    @pytest.mark.parametrize("given", ["a/b", ".", "..", "a\\0b", "a\\nb", "x" * 300])
    def test_bad_ids(self, repo, given):
        fails(repo, script(f"experiment_id='{given}'"), "InvalidIdException", "can't be an experiment id")
        assert not (repo.path / "experiments").exists()

    def test_arguments_that_refer_to_themselves(self, repo):
        fails(
            repo, "loop = []\nloop.append(loop)\n" + script("{'a': loop}"), "InvalidArgsException", "itself"
        )
        assert sorted(path.name for path in repo.path.iterdir()) == [".git", "README", "script.py"]

    @pytest.mark.parametrize("given", ["5", "'text'", "[('a', 1)]"])
    def test_arguments_that_are_no_mapping(self, repo, given):
        fails(repo, script(given), "InvalidArgsException", "args must be a mapping")

    def test_a_description_that_is_no_text(self, repo):
        fails(repo, script("description=5"), "InvalidArgsException", "description", "5")

    @pytest.mark.parametrize("name", ["project_directory", "experiments_directory"])
    def test_a_directory_that_is_no_path(self, repo, name):
        fails(repo, script(f"{name}=None"), "InvalidArgsException", f"{name} must be a path, not None")
        assert not (repo.path / "experiments").exists()

    def test_an_experiments_directory_that_is_a_file(self, repo):
        repo.write("experiments", "precious")
        fails(repo, script(), "FolderException", str(repo.path / "experiments"))
        assert (repo.path / "experiments").read_text() == "precious"

    def test_a_project_directory_that_is_not_there(self, repo):
        fails(repo, script("project_directory='gone'"), "GitException", str(repo.path / "gone"))

    def test_a_current_directory_that_was_deleted(self, repo, tmp_path):
        source = "import os, sys\nos.mkdir(sys.argv[1])\nos.chdir(sys.argv[1])\nos.rmdir(sys.argv[1])\n"
        arguments = f"project_directory={str(repo.path)!r}"
        result = repo.run(source + script(arguments), tmp_path / "gone")
        assert result.code == 0, result
        assert load(repo.experiment(1), "metadata")["directory"].startswith(str(tmp_path / "gone"))
        repo.write("script.py", source + script())
        message = "current directory was deleted"
        result = repo.run(None, tmp_path / "gone")
        assert result.code == 1 and message in result.stderr and "During" not in result.stderr, result

    def test_no_permission_to_write(self, repo):
        if not os.path.isdir("/sys/kernel"):
            pytest.skip("needs Linux's /sys, where not even root can make a directory")
        target = "/sys/kernel/experiments"
        fails(repo, script(f"experiments_directory={target!r}"), "FolderException", target, "ermi")

    def test_folders_with_other_files_are_not_touched(self, repo):
        folder = repo.experiment("mine")
        folder.mkdir(parents=True)
        (folder / "notes.txt").write_text("precious")
        fails(repo, script("experiment_id='mine'"), "FolderException", str(folder), "no args.json")
        assert read(folder) == {"notes.txt": b"precious"}

    def test_a_file_of_the_ids_name(self, repo):
        repo.write("experiments/mine", "precious")
        repo.write(".gitignore", "experiments\n")
        fails(repo, script("experiment_id='mine'"), "FolderException", str(repo.experiment("mine")))
        assert repo.experiment("mine").read_text() == "precious"


class TestResume:
    RUN = START + "{'lr': 0.1}, experiment_id='mine')\nprint('hello')\n"

    def test_the_record_goes_on(self, repo):
        repo.run(self.RUN + "experiment.summary(a=1, b=1)\n1 / 0\n")
        folder = repo.experiment("mine")
        first = load(folder, "metadata")
        repo.run(None)
        repo.run(None)
        metadata = load(folder, "metadata")
        assert metadata["start-time"] == first["start-time"]
        assert metadata["end-time"] > first["end-time"]
        assert len(metadata["attempts"]) == 3
        assert metadata["attempts"][0] == first["attempts"][0]
        assert metadata["attempts"][0]["ended"] == "ERROR: ZeroDivisionError: division by zero"
        assert (folder / "stdout").read_text() == "hello\n" * 3
        assert load(folder, "summary") == {"a": 1, "b": 1}

    def test_the_summary_is_merged(self, repo):
        repo.run(
            self.RUN
            + "import os\nexperiment.summary({'run' + str(len(experiment.metadata['attempts'])): 1})\n"
        )
        repo.run(None)
        assert load(repo.experiment("mine"), "summary") == {"run1": 1, "run2": 1}

    def test_the_description_is_the_new_one_if_given(self, repo):
        source = "import sys\n" + START + "experiment_id='mine', description=' '.join(sys.argv[1:]))"
        repo.run(source, "first")
        repo.run(None)
        assert load(repo.experiment("mine"), "metadata")["description"] == "first"
        repo.run(None, "second")
        assert load(repo.experiment("mine"), "metadata")["description"] == "second"

    def test_end_time_is_absent_while_it_runs_again(self, repo):
        repo.run(self.RUN + "input()\n", stdin=-1)
        process = repo.popen(None, stdin=-1)
        assert process.stdout.readline() == b"hello\n"
        metadata = load(repo.experiment("mine"), "metadata")
        assert "end-time" not in metadata
        assert (repo.experiment("mine") / "STATUS").read_text() == "RUNNING"
        process.result()

    def test_other_arguments(self, repo):
        source = "import sys\n" + START + "{'lr': float(sys.argv[1])}, experiment_id='mine')"
        repo.run(source, "0.1")
        before = read(repo.experiment("mine"))
        result = repo.run(None, "0.01")
        assert "MismatchedArgsException" in result.stderr
        assert "'lr' was 0.1, now 0.01" in result.stderr
        assert read(repo.experiment("mine")) == before

    def test_changed_arguments_are_named_before_others(self, repo):
        source = "import sys, json\n" + START + "json.loads(sys.argv[1]), experiment_id='mine')"
        repo.run(source, json.dumps({**dict.fromkeys("abcdef", 1), "z": 1}))
        result = repo.run(None, json.dumps({"z": 2}))
        assert "other arguments: 'z' was 1, now 2; 'a' was 1, now not there;" in result.stderr

    def test_another_commit(self, repo):
        repo.run(self.RUN)
        before = read(repo.experiment("mine"))
        repo.write("README", "changed")
        repo.commit()
        fails(
            repo, None, "MismatchedCommitException", load(repo.experiment("mine"), "metadata")["githead-sha"]
        )
        assert read(repo.experiment("mine")) == before

    @pytest.mark.parametrize(
        "value",
        ["(1, 2)", "float('nan')", "{1: [float('nan')]}", "__import__('pathlib').Path('a')", "{'b', 'a'}"],
    )
    def test_values_that_json_changes_are_no_mismatch(self, repo, value):
        source = START + "{'value': %s}, experiment_id=0)" % value
        assert repo.run(source).code == 0
        result = repo.run(None)
        assert result.code == 0, result
        assert len(load(repo.experiment(0), "metadata")["attempts"]) == 2

    def test_by_the_number_that_was_given(self, repo):
        repo.run(TRAIN)
        assert repo.run(None, "--experiment-id", "1").code == 0
        assert len(load(repo.experiment(1), "metadata")["attempts"]) == 2
        repo.run(None)
        assert repo.experiment(2).exists()

    def test_a_folder_of_the_package(self, repo):
        repo.write("script.py", self.RUN)
        repo.write(".gitignore", "experiments\n")
        repo.commit()
        folder = repo.experiment("mine")
        folder.mkdir(parents=True)
        sha = repo.git("rev-parse", "HEAD").strip()
        files = {
            "args.json": {"lr": 0.1},
            "default_args.json": {},
            "summary.json": {"a": 1},
            "metadata.json": {
                "githead-sha": sha, "githead-message": "m", "description": "d", "command": ["x.py"],
                "start-time": "2020-01-01T00:00:00.000001", "end-time": "2020-01-01T00:00:01.000001",
            },
        }  # fmt: skip
        for name, value in files.items():
            (folder / name).write_text(json.dumps(value, indent=4))
        for name, text in {"STATUS": "SUCCESS", "stdout": "old\n", "stderr": ""}.items():
            (folder / name).write_text(text)
        assert repo.run(None).code == 0
        metadata = load(folder, "metadata")
        assert metadata["start-time"] == "2020-01-01T00:00:00.000001"
        assert metadata["attempts"][0] == {
            "start-time": "2020-01-01T00:00:00.000001", "end-time": "2020-01-01T00:00:01.000001",
            "command": ["x.py"], "ended": "SUCCESS",
        }  # fmt: skip
        assert (folder / "stdout").read_text() == "old\nhello\n"

    def test_an_empty_folder_is_taken_over(self, repo):
        repo.experiment("mine").mkdir(parents=True)
        assert repo.run(self.RUN).code == 0
        assert (repo.experiment("mine") / "STATUS").read_text() == "SUCCESS"

    @pytest.mark.parametrize("step", ["metadata.json", "default_args.json", "args.json", "STATUS", "rename"])
    def test_a_start_that_is_killed_leaves_no_folder_and_blocks_nobody(self, repo, step):
        killer = """
            import os, meticulous
            def die_after(function):
                def call(path, content):
                    function(path, content)
                    if os.path.basename(path) == os.environ["DIE_AT"]:
                        os.kill(os.getpid(), 9)
                return call
            meticulous._create_file = die_after(meticulous._create_file)
            if os.environ["DIE_AT"] == "rename":
                os.rename = lambda source, target: os.kill(os.getpid(), 9)
            meticulous.Experiment({"lr": 9}, experiment_id="mine")
        """
        assert repo.run(killer, env={"DIE_AT": step}, name="killer.py").code == -9
        assert not repo.experiment("mine").exists()
        assert repo.run(START + "{'lr': 1}, experiment_id='mine')").code == 0
        assert load(repo.experiment("mine"), "args") == {"lr": 1}
        assert (repo.experiment("mine") / "STATUS").read_text() == "SUCCESS"

    def test_one_that_runs_is_refused(self, repo):
        process = repo.popen(self.RUN + "input()\n", stdin=-1)
        assert process.stdout.readline() == b"hello\n"
        message = fails(repo, None, "RunningException", str(repo.experiment("mine")), "is still running on")
        assert f"(pid {process.pid}) since 20" in message
        process.result()
        assert repo.run(None, stdin=-1).code == 1  # EOFError at input(), but it could start

    def test_a_killed_one_goes_on_without_asking(self, repo):
        source = (
            self.RUN + "import os\nif len(experiment.metadata['attempts']) == 1: os.kill(os.getpid(), 9)\n"
        )
        assert repo.run(source).code == -9
        assert (repo.experiment("mine") / "STATUS").read_text() == "RUNNING"
        result = repo.run(None)
        assert (result.code, result.stderr) == (0, "")
        attempts = load(repo.experiment("mine"), "metadata")["attempts"]
        assert [attempt["ended"] for attempt in attempts] == ["DEAD", "SUCCESS"]
        assert sorted(name for name in read(repo.experiment("mine")) if name.startswith(".")) == []


class TestRaces:
    def start_all(self, repo, source, count, *arguments, name="racer.py"):
        """Start processes that have imported everything and wait; let them go at once; return the results."""
        source = (
            "import sys\nimport meticulous\nfrom meticulous import Experiment\nsys.stdin.readline()\n"
            + source
        )
        repo.write(name, source)
        repo.commit()
        racers = [repo.popen(None, number, *arguments, name=name, stdin=-1) for number in range(count)]
        for racer in racers:
            racer.stdin.write(b"\n")
        return [racer.result(120) for racer in racers]

    @pytest.mark.slow
    def test_64_first_starts_in_a_fresh_repo(self, repo):
        results = self.start_all(repo, "Experiment()", 64)
        assert [result.code for result in results] == [0] * 64, [r for r in results if r.code][:1]
        assert sum("committed" in result.stderr for result in results) == 1
        assert repo.git("rev-list", "--count", "HEAD").strip() == "3"
        assert (repo.path / ".gitignore").read_text() == "experiments\n"
        assert repo.git("status", "--porcelain") == ""
        shas = {load(repo.experiment(number), "metadata")["githead-sha"] for number in range(1, 65)}
        assert shas == {repo.git("rev-parse", "HEAD").strip()}

    @pytest.mark.slow
    def test_64_times_10_ids(self, repo):
        results = self.start_all(repo, "for _ in range(10):\n    Experiment().finish()", 64)
        assert [result.code for result in results] == [0] * 64, [r for r in results if r.code][:1]
        names = [path.name for path in (repo.path / "experiments").iterdir() if not path.name.startswith(".")]
        assert sorted(map(int, names)) == list(range(1, 641))

    @pytest.mark.slow
    def test_explicit_ids_in_between(self, repo):
        source = "for n in range(5):\n    Experiment(experiment_id=int(sys.argv[1]) * 5 + n + 1 if int(sys.argv[1]) % 2 else None).finish()"
        results = self.start_all(repo, source, 16)
        errors = [result.stderr.strip().splitlines()[-2:] for result in results if result.code]
        # An explicit id may be taken already: then it is resumed, or refused while that one runs.
        assert all("is still running on" in " ".join(lines) for lines in errors), errors
        for path in (repo.path / "experiments").iterdir():
            if not path.name.startswith("."):
                assert (path / "STATUS").read_text() == "SUCCESS"

    def test_of_many_that_want_the_same_new_id_one_gets_it(self, repo):
        results = self.start_all(
            repo, "e = Experiment(experiment_id='same')\nprint('mine', flush=True)\nsys.stdin.readline()", 12
        )
        winners = [result for result in results if "mine" in result.stdout]
        losers = [result for result in results if "mine" not in result.stdout]
        strange = [result for result in losers if "RunningException" not in result.stderr]
        assert strange == []
        attempts = load(repo.experiment("same"), "metadata")["attempts"]
        assert len(attempts) == len(winners) >= 1
        times = [(attempt["start-time"], attempt["end-time"]) for attempt in attempts]
        assert all(before[1] <= after[0] for before, after in zip(times, times[1:]))

    def test_a_run_that_has_written_only_its_status_still_runs(self, repo):
        source = """
            import os, sys
            from meticulous import Experiment
            replace = os.replace

            def wait_after_status(source, target):
                replace(source, target)
                if target.endswith("STATUS"):
                    print("ended", flush=True)
                    sys.stdin.readline()

            experiment = Experiment(experiment_id="same")
            if sys.argv[1:] == ["wait"]:
                os.replace = wait_after_status
        """
        first = repo.popen(source, "wait", stdin=-1)
        assert first.stdout.readline() == b"ended\n"
        assert (repo.experiment("same") / "STATUS").read_text() == "SUCCESS"
        second = repo.run(None)
        assert "RunningException" in second.stderr, second
        first.stdin.write(b"\n")
        assert first.result().code == 0
        assert repo.run(None).code == 0
        attempts = load(repo.experiment("same"), "metadata")["attempts"]
        assert [attempt["ended"] for attempt in attempts] == ["SUCCESS", "SUCCESS"]


class TestChildren:
    def test_a_script_that_spawn_imports_again_gets_the_parents_folder(self, repo):
        source = """
            import multiprocessing
            from meticulous import Experiment
            experiment = Experiment({"a": 1})
            def work(n):
                experiment.summary(child=n)
                experiment.finish("ERROR")
                with experiment.open("worker-%d" % n, "w") as file:
                    file.write(experiment.curexpdir)
                return experiment.metadata
            if __name__ == "__main__":
                with multiprocessing.get_context("spawn").Pool(2) as pool:
                    print(pool.map(work, range(3)))
        """
        result = repo.run(source)
        assert (result.code, result.stdout) == (0, "[{}, {}, {}]\n"), result
        assert sorted(path.name for path in (repo.path / "experiments").iterdir() if path.name[0] != ".") == [
            "1"
        ]
        folder = repo.experiment(1)
        assert (folder / "STATUS").read_text() == "SUCCESS"
        assert (folder / "worker-2").read_text() == str(folder)
        assert not (folder / "summary.json").exists()

    def test_a_forked_child_writes_no_status(self, repo):
        body = """
import os, sys
if os.fork() == 0:
    experiment.finish("ERROR")
    sys.exit(0)
os.wait()
print((experiment.open("STATUS").read()), flush=True)
"""
        result = repo.run(script("", body), options=["-W", "ignore"])
        assert result.stdout == "RUNNING\n", result
        assert (repo.experiment(1) / "STATUS").read_text() == "SUCCESS"

    def test_a_forked_child_adds_to_the_summary_after_its_parent_has_ended(self, repo):
        body = """
import os
reading, writing = os.pipe()
if os.fork() == 0:
    os.close(writing)
    os.read(reading, 1)
    experiment.summary(loss=1)
    os._exit(0)
experiment.finish()
os.close(writing)
os.wait()
"""
        result = repo.run(script("", body), options=["-W", "ignore"])
        assert (result.code, "Traceback" in result.stderr) == (0, False), result
        assert load(repo.experiment(1), "summary") == {"loss": 1}


class TestFaults:
    @pytest.fixture
    def small_disk(self, tmp_path):
        if os.getuid() != 0:
            pytest.skip("mounting needs root")
        disk = tmp_path / "disk"
        disk.mkdir()
        assert os.system(f"mount -t tmpfs -o size=64k tmpfs {disk}") == 0
        yield disk
        os.system(f"umount {disk}")

    def test_a_full_disk_at_start_leaves_no_folder(self, repo, small_disk):
        (small_disk / "ballast").write_bytes(b"x" * 60000)
        try:
            with open(str(small_disk / "more"), "wb", buffering=0) as file:
                while file.write(b"x" * 512):
                    pass
        except OSError:
            pass
        result = repo.run(script(f"experiments_directory={str(small_disk)!r}"))
        assert result.code == 1
        assert "FolderException" in result.stderr and str(small_disk) in result.stderr.splitlines()[-1]
        assert "No space left" in result.stderr.splitlines()[-1]
        assert sorted(path.name for path in small_disk.iterdir() if path.name[0] != ".") == [
            "ballast",
            "more",
        ]

    @pytest.mark.parametrize(
        ("end", "status"),
        [
            ("", "SUCCESS"),
            ("experiment.finish('ERROR')", "ERROR"),
            ("sys.exit('x' * 9999)", "ERROR\n..." + 510 * "x" + "')"),
            ("sys.exit('\N{LATIN SMALL LETTER U WITH DIAERESIS}' * 600)", "ERROR\n..." + 255 * "\xfc" + "')"),
        ],
        ids=["success", "no reason", "long reason", "wide reason"],
    )
    def test_a_full_disk_at_the_end_leaves_room_for_the_status(self, repo, small_disk, end, status):
        body = f"""
import sys
experiment.summary(a=1)
{FILL_DISK}
try:
    experiment.summary(b=2)
except OSError as error:
    print(error.errno, error)
print("done")
"""
        result = repo.run(script(f"experiments_directory={str(small_disk)!r}", body + end))
        folder = small_disk / "1"
        assert result.code == (1 if "exit" in end else 0)
        assert result.stdout.startswith("28 ") and str(folder / "summary.json") in result.stdout
        assert result.stdout.endswith("done\n")
        assert result.stderr.count("meticulous: ") == 1 and "Traceback" not in result.stderr
        assert load(folder, "summary") == {"a": 1}
        assert (folder / "STATUS").read_text() == status
        assert "end-time" not in load(folder, "metadata")

    def test_a_planted_link_for_the_status_is_not_written_on_a_full_disk(self, repo, small_disk, tmp_path):
        target = tmp_path / "profile"
        target.write_text("mine")
        body = f"""
import os
os.unlink(experiment.curexpdir + "/STATUS")
os.symlink({str(target)!r}, experiment.curexpdir + "/STATUS")
{FILL_DISK}
"""
        result = repo.run(script(f"experiments_directory={str(small_disk)!r}", body))
        assert result.code == 0 and "can't be recorded completely" in result.stderr, result
        assert target.read_text() == "mine"

    @pytest.mark.parametrize(
        ("limit", "number"),
        [("RLIMIT_FSIZE, (9, 9)", 27), ("RLIMIT_NOFILE, (3, 3)", 24)],
        ids=["EFBIG", "EMFILE"],
    )
    def test_writes_that_fail_at_the_end_change_nothing_for_the_program(self, repo, limit, number):
        body = f"""
import resource, sys
experiment.summary(a=1)
before = resource.getrlimit(resource.{limit.split(",")[0]})
resource.setrlimit(resource.{limit[:-3]} before[1]))
try:
    experiment.summary(b="x" * 100)
except OSError as error:
    print(error.errno, error)
print("done")
sys.exit(3)
"""
        result = repo.run(script("", body))
        assert result.code == 3, result
        assert result.stdout.startswith(f"{number} {repo.experiment(1) / 'summary.json'} "), result
        assert result.stdout.endswith("done\n")
        warnings = [line for line in result.stderr.splitlines() if "commit" not in line]
        # One that output is lost, if there is any to be written, and one that the end is.
        assert len(warnings) == (2 if number == 27 else 1), result
        assert warnings[-1].startswith("meticulous: the end of "), result
        assert load(repo.experiment(1), "summary") == {"a": 1}
        assert (repo.experiment(1) / "STATUS").read_text() in ("RUNNING", "ERROR\nsys.exit(3)")
        assert [name for name in read(repo.experiment(1)) if name.endswith(".tmp")] == []

    @pytest.mark.parametrize(
        "end, status", [("experiment.finish()", "SUCCESS"), ("", "SUCCESS"), ("1 / 0", "ERROR")]
    )
    def test_a_program_that_ends_without_a_free_descriptor(self, repo, end, status):
        body = """
import os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
leaked = []
try:
    while True:
        leaked.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
"""
        result = repo.run(script("", body + end))
        record = repo.experiment(1)
        assert (record / "STATUS").read_text().startswith(status), result
        assert "end-time" in load(record, "metadata")
        assert "can't be recorded" not in result.stderr

    def test_a_deleted_folder_is_a_warning(self, repo):
        body = "import shutil\nprint('a')\nshutil.rmtree(experiment.curexpdir)\nprint('b')"
        result = repo.run(script("", body))
        assert (result.code, result.stdout) == (0, "a\nb\n")
        assert "meticulous: " in result.stderr and "Traceback" not in result.stderr

    def test_a_deleted_folder_leaves_no_descriptor_open(self, repo):
        body = """
import os, shutil
counts = set()
for _ in range(5):
    experiment = Experiment()
    print("a")
    shutil.rmtree(experiment.curexpdir)
    experiment.finish()
    counts.add(len(os.listdir("/dev/fd")))
print(len(counts))
"""
        result = repo.run(script("", body.replace("for", "experiment.finish()\nfor", 1)))
        assert result.stdout.endswith("\n1\n"), result


class TestRanks:
    def test_other_ranks_record_nothing_and_say_so_once(self, repo):
        source = script() + "Experiment()\nprint(experiment.norecord)\n"
        result = repo.run(source, env={"RANK": "1", "WORLD_SIZE": "2"})
        assert (result.code, result.stdout) == (0, "True\n"), result
        assert result.stderr.count("meticulous: ") == 1
        assert not (repo.path / "experiments").exists()
        assert repo.run(None, env={"RANK": "0", "WORLD_SIZE": "2"}).stdout == "False\n"
        assert repo.experiment(2).exists()

    def test_the_folder_of_a_named_experiment_is_the_same_for_all_ranks(self, repo):
        source = script("experiment_id='best'") + "print(experiment.curexpdir)\n"
        for rank in ("0", "1"):
            result = repo.run(source, env={"RANK": rank, "WORLD_SIZE": "2"})
            assert (result.code, result.stdout) == (0, f"{repo.experiment('best')}\n"), result
        assert len(load(repo.experiment("best"), "metadata")["attempts"]) == 1


class TestOneOwner:
    """What a review of the contract found: whoever ends or goes on writes its own record and no other."""

    def test_a_deleted_folder_that_another_start_made_anew_is_not_written(self, repo):
        body = """
            import shutil, subprocess, sys
            if len(sys.argv) == 1:
                shutil.rmtree(experiment.curexpdir)
                second = subprocess.Popen([sys.executable, __file__, "second"], stdin=-1, stdout=-1)
                second.stdout.readline()
                try:
                    experiment.summary(old=1)
                except OSError as error:
                    print(error)
                experiment.finish("ERROR\\nold")
                second.communicate(b"go")
            else:
                print("up", flush=True)
                sys.stdin.readline()
        """
        result = repo.run(script("experiment_id='best'") + body.replace(" " * 12, ""))
        assert result.code == 0, result
        folder = repo.experiment("best")
        assert f"{folder / 'summary.json'} can't be written" in result.stdout
        assert (folder / "STATUS").read_text() == "SUCCESS"
        assert not (folder / "summary.json").exists()
        assert len(load(folder, "metadata")["attempts"]) == 1

    def test_an_interrupt_before_the_hooks_are_set_leaves_nothing(self, repo):
        source = """
            import sys, meticulous
            def interrupt():
                raise KeyboardInterrupt
            before, meticulous._set_hooks = sys.stdout, interrupt
            try:
                meticulous.Experiment()
            except KeyboardInterrupt:
                print(sys.stdout is before)
        """
        assert repo.run(source).stdout == "True\n"
        assert not (repo.path / "experiments").exists()

    def test_a_failed_start_gives_its_id_back(self, repo):
        source = """
            import meticulous
            def fail(folder):
                raise OSError(28, "No space left on device", folder)
            capture, meticulous._Capture = meticulous._Capture, fail
            for name in (None, 5):
                try:
                    meticulous.Experiment(experiment_id=name)
                except OSError as error:
                    print(error.errno)
            meticulous._Capture = capture
            print(meticulous.Experiment().curexpdir[-2:])
        """
        assert repo.run(source).stdout.split() == ["28", "28", "/1"]

    def test_exec_ends_the_run(self, repo):
        source = """
            import os, sys
            from meticulous import Experiment, ExperimentReader
            if len(sys.argv) == 1:
                experiment = Experiment()
                os.execv(sys.executable, [sys.executable, __file__, experiment.curexpdir])
            print(ExperimentReader(sys.argv[1]).status)
            Experiment(experiment_id=1)
        """
        result = repo.run(source)
        assert (result.code, result.stdout) == (0, "DEAD\n"), result
        attempts = load(repo.experiment(1), "metadata")["attempts"]
        assert [attempt["ended"] for attempt in attempts] == ["DEAD", "SUCCESS"]

    def test_the_folder_of_a_spawned_child_is_that_of_the_open_experiment(self, repo):
        source = """
            import multiprocessing
            from meticulous import Experiment
            experiment = Experiment()
            def work(n):
                return experiment.curexpdir[-2:]
            if __name__ == "__main__":
                with Experiment():
                    pass
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    print(pool.map(work, [0]))
        """
        assert repo.run(source).stdout == "['/1']\n"


# Killed the first time, resumed the second: the same script, because another one would be another commit.
TWICE = script(
    "experiment_id='7'",
    """\
import os, signal
if os.environ.get("KILL"):
    os.kill(os.getpid(), signal.SIGKILL)
print("second")
experiment.log(loss=1)
experiment.summary(loss=1)
""",
)


def leave_killed(repo):
    """Return the folder of an experiment that was killed."""
    assert repo.run(TWICE, env={"KILL": "1"}).code == -signal.SIGKILL
    return repo.experiment(7)


class TestSharedFolders:
    """Somebody else may write in a group's folder: no file of the user's is written or read through it."""

    @pytest.mark.parametrize("is_there", [True, False], ids=["a file", "nothing"])
    @pytest.mark.parametrize("name", ["stdout", "stderr"])
    def test_a_planted_link_for_output_is_refused(self, repo, tmp_path, name, is_there):
        folder, target = leave_killed(repo), tmp_path / "profile"
        if is_there:
            target.write_text("export A=1\n")
        (folder / name).unlink()
        (folder / name).symlink_to(target)
        before = read(folder) if is_there else None
        fails(repo, TWICE, "FolderException", str(folder / name))
        assert target.exists() is is_there
        if is_there:
            assert target.read_text() == "export A=1\n" and read(folder) == before

    def test_a_planted_link_for_output_is_not_copied_for_another_host(self, repo, tmp_path):
        folder, secret = leave_killed(repo), tmp_path / "secret"
        secret.write_text("secret")
        metadata = load(folder, "metadata")
        metadata["attempts"][0].update({"host": "elsewhere", "end-time": metadata["start-time"]})
        (folder / "metadata.json").write_text(json.dumps(metadata))
        (folder / "stdout").unlink()
        (folder / "stdout").symlink_to(secret)
        fails(repo, TWICE, "FolderException", str(folder / "stdout"))
        assert (folder / "stdout").is_symlink()

    def test_a_planted_link_for_metrics_costs_them_and_nothing_else(self, repo, tmp_path):
        folder, target = leave_killed(repo), tmp_path / "profile"
        (folder / "metrics.jsonl").symlink_to(target)
        result = repo.run(TWICE)
        assert result.code == 0 and not target.exists(), result
        assert result.stderr.count("meticulous: ") == 1 and "metrics.jsonl" in result.stderr
        assert load(folder, "summary") == {"loss": 1}

    @pytest.mark.parametrize("name", ["STATUS", "summary.json", "metadata.json"])
    def test_a_planted_link_for_what_is_replaced_is_replaced(self, repo, tmp_path, name):
        folder, target = leave_killed(repo), tmp_path / "profile"
        content = (folder / name).read_bytes() if (folder / name).exists() else b"{}"
        target.write_bytes(content)
        if (folder / name).exists():
            (folder / name).unlink()
        (folder / name).symlink_to(target)
        assert repo.run(TWICE).code == 0
        assert target.read_bytes() == content and not (folder / name).is_symlink()
        assert (folder / "STATUS").read_text() == "SUCCESS"

    @pytest.mark.parametrize("name", ["stdout", "STATUS", "args.json", "metadata.json"])
    def test_a_named_pipe_does_not_hang_a_start(self, repo, name):
        folder = leave_killed(repo)
        (folder / name).unlink()
        os.mkfifo(str(folder / name))
        result = repo.run(TWICE, timeout=20)
        if name == "STATUS":
            assert result.code == 0 and (folder / "STATUS").read_text() == "SUCCESS"
        else:
            assert result.code == 1 and "FolderException" in result.stderr and name in result.stderr, result

    @pytest.mark.parametrize("name", ["args.json", "metadata.json", "summary.json"])
    def test_deeply_nested_json_is_named(self, repo, name):
        folder = leave_killed(repo)
        (folder / name).write_text("[" * 1000000)
        fails(repo, TWICE, "FolderException", str(folder / name), "fix it, or move it away")

    def test_a_planted_link_for_an_attempt_is_an_error(self, repo, tmp_path):
        folder = leave_killed(repo)
        (folder / ".attempt-2").symlink_to(tmp_path / "nowhere")
        fails(repo, TWICE, "RunningException", str(folder))
        assert not (tmp_path / "nowhere").exists()

    @pytest.mark.parametrize("name", ["1", "7", ".claim-1"])
    def test_a_planted_link_for_a_new_folder_or_claim_is_left_alone(self, repo, tmp_path, name):
        target = tmp_path / "target"
        target.mkdir()
        repo.experiment(name).parent.mkdir()
        repo.experiment(name).symlink_to(target)
        result = repo.run(script("experiment_id='7'" if name == "7" else ""))
        assert os.listdir(str(target)) == []
        if name == "7":
            assert result.code == 1 and "FolderException" in result.stderr, result
        else:
            assert result.code == 0 and (repo.experiment(2) / "STATUS").read_text() == "SUCCESS"

    @pytest.mark.parametrize("is_new", [True, False], ids=["a new experiment", "a resumed one"])
    def test_a_member_of_a_group_who_may_not_write_learns_what_to_do(self, repo, is_new):
        """A colleague made the directory under umask 022."""
        folder = leave_killed(repo)
        place = repo.path / "experiments" if is_new else folder
        wrapper = {}
        if os.getuid() == 0:  # without the capability that lets root write everywhere
            if not shutil.which("setpriv"):
                pytest.skip("needs setpriv")
            options = ["--bounding-set", "-dac_override,-dac_read_search", sys.executable]
            wrapper = {"python": "setpriv", "options": options}
        place.chmod(0o555)
        try:
            source = script() if is_new else TWICE
            message = fails(repo, source, "FolderException", "chmod g+ws", "umask 002", **wrapper)
            assert message.startswith(str(place) + " "), message
        finally:
            place.chmod(0o755)


class TestTogether:
    def test_two_hosts_of_a_requeued_job_do_not_both_own_the_record(self, repo):
        """Slurm calls a node dead whose processes live, and starts the job again on another one."""
        hosts = ["unshare", "--uts", "sh", "-c", 'hostname "$0"; exec "$@"']
        if not shutil.which("unshare") or subprocess.call(hosts[:2] + ["true"], stderr=subprocess.DEVNULL):
            pytest.skip("can't make namespaces here")
        source = script(
            "experiment_id='7'",
            """\
import sys
experiment.summary(by=sys.argv[1])
print("begun", flush=True)
sys.stdin.readline()
experiment.summary(by=sys.argv[1])
print("ending", sys.argv[1])
""",
        ).replace("Experiment(", "Experiment({}, ")
        slurm = {"SLURM_JOB_ID": "7", "SLURM_CLUSTER_NAME": "c", "SLURMD_NODENAME": "n"}
        scripts = []
        for host, count in (("n1", None), ("n2", "1")):
            env = {**slurm, "SLURM_RESTART_COUNT": count}
            options = [*hosts[1:], host, sys.executable]
            scripts.append(repo.popen(source, host, python=hosts[0], options=options, env=env, stdin=-1))
            assert scripts[-1].stdout.readline() == b"begun\n", scripts[-1].result()
        folder, (old, new) = repo.experiment(7), scripts
        old.stdin.write(b"\n")
        result = old.result()
        assert result.code == 0 and "later attempt" in result.stderr, result
        assert (folder / "STATUS").read_text() == "RUNNING"
        assert load(folder, "summary") == {"by": "n2"}
        new.stdin.write(b"\n")
        assert new.result().code == 0
        metadata = load(folder, "metadata")
        assert [attempt["host"] for attempt in metadata["attempts"]] == ["n1", "n2"]
        assert [attempt["ended"] for attempt in metadata["attempts"]] == ["SUCCESS", "SUCCESS"]
        assert (folder / "STATUS").read_text() == "SUCCESS"
        assert (folder / "stdout").read_text() == "begun\nbegun\nending n2\n"

    def test_a_summary_after_finish_is_left_out_once_another_attempt_has_begun(self, repo):
        source = """
            import sys
            from meticulous import Experiment
            experiment = Experiment(experiment_id="7")
            experiment.finish()
            experiment.summary(by=sys.argv[1])
            print("finished", flush=True)
            if sys.stdin.readline():
                experiment.summary(by="the first again")
        """
        first = repo.popen(source, "first", stdin=-1)
        assert first.stdout.readline() == b"finished\n"
        assert repo.run(None, "second").code == 0
        first.stdin.write(b"\n")
        result = first.result()
        assert result.code == 0 and "later attempt" in result.stderr, result
        assert load(repo.experiment(7), "summary") == {"by": "second"}

    def test_odd_entries_of_sys_path_are_no_reason_to_fail(self, repo):
        source = "import sys\nfrom meticulous import Experiment\nsys.path += [b'.', None, 99]\nExperiment()"
        result = repo.run(source)
        assert (result.code, result.stderr.count("Error")) == (0, 0), result

    def test_a_summary_in_a_signal_handler_during_a_summary_loses_nothing(self, repo):
        body = """\
import os, signal
signal.signal(signal.SIGUSR1, lambda *_: experiment.summary(b=2))
replace = os.replace
def interrupted(*paths):
    os.replace = replace
    os.kill(os.getpid(), signal.SIGUSR1)
    replace(*paths)
os.replace = interrupted
experiment.summary(a=1)
"""
        assert repo.run(script(body=body)).code == 0
        assert load(repo.experiment(1), "summary") == {"a": 1, "b": 2}

    @pytest.mark.parametrize("call", ["summary(a=1)", "finish()"])
    def test_other_threads_print_and_log_while_a_file_is_written(self, repo, call):
        body = f"""\
import os, threading
replace, in_call, go_on = os.replace, threading.Event(), threading.Event()
def slow(*paths):
    in_call.set()
    assert go_on.wait(20)
    replace(*paths)
os.replace = slow
thread = threading.Thread(target=lambda: experiment.{call})
thread.start()
in_call.wait()
print("hello")
experiment.log(loss=1)
go_on.set()
thread.join()
"""
        result = repo.run(script(body=body))
        assert (result.code, result.stdout) == (0, "hello\n") and "Traceback" not in result.stderr

    @pytest.mark.parametrize("call", ["summary(a=1)", "finish()"])
    def test_a_child_forked_during_a_call_of_another_thread_is_free(self, repo, call):
        """The locks that the thread holds, and the signals that it lets wait, are not the child's."""
        body = f"""\
import os, signal, sys, threading
from_parent = []
replace, in_call, go_on = os.replace, threading.Event(), threading.Event()
def slow(*paths):
    in_call.set()
    go_on.wait()
    replace(*paths)
os.replace = slow
thread = threading.Thread(target=lambda: experiment.{call})
thread.start()
in_call.wait()
codes = []
for signum in (signal.SIGTERM, signal.SIGINT, None):
    pid = os.fork()
    if pid == 0:
        os.replace = replace
        try:
            if signum:
                os.kill(os.getpid(), signum)
                signal.pause()
            print("child")
            experiment.summary(child=1)
            with Experiment() as other:
                other.summary(child=1)
        except KeyboardInterrupt:
            os._exit(77)
        os._exit(0)
    codes.append(os.waitpid(pid, 0)[1])
go_on.set()
thread.join()
print(codes, file=sys.__stderr__)
"""
        result = repo.run(script(body=body), timeout=20)  # Python 3.12 prints a warning of the fork
        assert result.code == 0 and result.stderr.endswith(f"\n[{int(signal.SIGTERM)}, {77 << 8}, 0]\n"), (
            result
        )
        assert (repo.experiment(1) / "STATUS").read_text() == "SUCCESS"
        assert load(repo.experiment(2), "summary") == {"child": 1}

    def test_a_thread_that_forks_while_the_main_thread_ends_frees_ctrl_c(self, repo):
        body = """\
import os, signal, sys, threading
replace, in_call, go_on = os.replace, threading.Event(), threading.Event()
def slow(*paths):
    in_call.set()
    go_on.wait()
    replace(*paths)
os.replace = slow
codes = []
def work():
    in_call.wait()
    pid = os.fork()
    if pid == 0:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()
        except KeyboardInterrupt:
            os._exit(77)
        os._exit(1)
    codes.append(os.waitpid(pid, 0)[1])
    go_on.set()
threading.Thread(target=work).start()
experiment.finish()
print(codes)
"""
        result = repo.run(script(body=body), timeout=20)
        assert (result.code, result.stdout) == (0, f"[{77 << 8}]\n"), result

    def test_threads_that_make_experiments_at_once_leave_nothing_behind(self, repo):
        source = """\
import signal, sys, threading
import meticulous
before = [sys.exit, sys.stdout.write, sys.stderr.write, signal.getsignal(signal.SIGTERM)]
def work(name):
    for i in range(5):
        with meticulous.Experiment(experiment_id="%s%d" % (name, i)) as experiment:
            print(name, i)
            experiment.summary(i=i)
threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
for thread in threads: thread.start()
for thread in threads: thread.join()
after = [sys.exit, sys.stdout.write, sys.stderr.write, signal.getsignal(signal.SIGTERM)]
print(before[1:] == after[1:], after[0] is before[0] or after[0].__name__)
"""
        result = repo.run(source)
        assert result.code == 0 and result.stderr.count("\n") == 1, result  # of .gitignore
        assert result.stdout.splitlines()[-1].startswith("True"), result
        for name in (f"{thread}{i}" for thread in "abcd" for i in range(5)):
            folder = repo.experiment(name)
            assert (folder / "STATUS").read_text() == "SUCCESS"
            # Each records what all threads print while it is open.
            assert f"{name[0]} {name[1]}\n" in (folder / "stdout").read_text()


class TestTakeover:
    @pytest.mark.parametrize("name", [".hidden", ".git"])
    def test_a_users_hidden_files_are_files(self, repo, name):
        repo.experiment("q").mkdir(parents=True)
        (repo.experiment("q") / name).write_text("mine")
        fails(repo, script("experiment_id='q'"), "FolderException", "no args.json")
        assert read(repo.experiment("q")) == {name: b"mine"}

    def test_a_record_that_lost_its_status_is_no_killed_start(self, repo):
        body = (
            "experiment.summary(acc=0.9)\nimport os\nos.remove(experiment.curexpdir + '/STATUS')\nos._exit(0)"
        )
        repo.run(script("{'a': 1}, experiment_id='q'", body))
        assert "MismatchedArgsException" in repo.run(script("{'a': 2}, experiment_id='q'")).stderr
        assert load(repo.experiment("q"), "summary") == {"acc": 0.9}


class TestCopies:
    @pytest.mark.parametrize("duplicate", ["copy.deepcopy(one)", "pickle.loads(pickle.dumps(one))"])
    def test_a_copy_of_an_experiment_arrives_inert(self, repo, duplicate):
        body = f"""\
import copy, pickle, sys
one = experiment
with {duplicate} as other:
    assert other.curexpdir == one.curexpdir and other.stdout is sys.stdout
    other.log(loss=1)
    other.summary(loss=1)
    with other.open("file", "w") as file:
        file.write("x")
print(one.is_recording, other.is_recording)
"""
        result = repo.run(script("{'lr': 1}", body))
        assert (result.code, result.stdout) == (0, "True False\n"), result
        folder = repo.experiment(1)
        assert not (folder / "summary.json").exists() and not (folder / "metrics.jsonl").exists()
        assert (folder / "file").exists() and (folder / "STATUS").read_text() == "SUCCESS"

    def test_a_reload_with_an_open_experiment_is_refused_and_changes_nothing(self, repo):
        source = """
            import importlib, sys, meticulous
            importlib.reload(meticulous)
            experiment = meticulous.Experiment()
            try:
                importlib.reload(meticulous)
            except ImportError as error:
                print(error)
            print("b")
            sys.exit(0)
        """
        result = repo.run(source)
        assert (result.code, result.stderr.count("\n")) == (0, 1), result
        assert "can't be reloaded" in result.stdout
        assert (repo.experiment(1) / "STATUS").read_text() == "SUCCESS"

    @pytest.mark.parametrize("code", ["0", "3"])
    def test_two_copies_of_the_file_in_one_process(self, repo, code):
        (repo.path / "vendored.py").write_bytes((PROJECT / "meticulous.py").read_bytes())
        repo.commit("Vendor", "vendored.py")
        source = """
            import sys, meticulous, vendored
            first, second = meticulous.Experiment(), vendored.Experiment()
            sys.exit(int(sys.argv[1]))
        """
        assert repo.run(source, code).code == int(code)
        statuses = {(repo.experiment(number) / "STATUS").read_text() for number in (1, 2)}
        assert statuses == {"SUCCESS" if code == "0" else "ERROR\nsys.exit(3)"}


def test_a_block_goes_on_when_stderr_is_full(repo):
    source = """
        import sys
        from meticulous import Experiment
        for n in range(2):
            with Experiment():
                raise ValueError("x")
        sys.exit(4)
    """
    with open("/dev/full", "wb") as full:
        assert repo.run(source, stderr=full).code in (4, 120)  # 120: Python could not flush stderr
    for number in (1, 2):
        assert (repo.experiment(number) / "STATUS").read_text().endswith("ValueError: x")
