"""The experiment's arguments and defaults come out of any argparse parser, which parses once."""

import argparse
import copy
import inspect
import pathlib
import pickle
import sys

import pytest
from conftest import PROJECT, launch

import meticulous
from meticulous import Experiment, InvalidArgsException, _to_json


def record(parser, *words, **keywords):
    """Start an experiment from the parser and return what it would record: args, default_args, its keywords."""

    class Recorder(Experiment):
        def __init__(self, args=None, default_args=None, **keywords):
            self.recorded = args, default_args, keywords

    return Recorder.from_parser(parser, list(words), **keywords).recorded


@pytest.fixture
def parser():
    return argparse.ArgumentParser()


def test_arguments_and_defaults(parser):
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--name", default="net")
    assert record(parser, "--lr", "0.5")[:2] == ({"lr": 0.5, "name": "net"}, {"lr": 0.1, "name": "net"})


def test_without_defaults(parser):
    parser.add_argument("--lr", type=float, default=0.1)
    assert record(parser, capture_defaults=False)[:2] == ({"lr": 0.1}, None)


def test_own_arguments_are_taken_out_and_win_over_keywords(parser):
    parser.add_argument("--lr", type=float)
    Experiment.add_argument_group(parser, experiments_directory="runs")
    args, defaults, keywords = record(parser, "--description", "words", description="less", norecord=True)
    assert args == {"lr": None}
    assert defaults == {"lr": None}
    assert keywords == {
        "project_directory": "",
        "experiments_directory": "runs",
        "experiment_id": None,
        "description": "words",
        "norecord": False,
        "allow_dirty": False,
    }


def test_keywords_reach_the_experiment_without_a_group(parser):
    assert record(parser, experiment_id="a")[2] == {"experiment_id": "a"}


def test_extract_gives_own_arguments_alone(parser):
    parser.add_argument("--lr")
    Experiment.add_argument_group(parser)
    own = Experiment.extract_meticulous_args(parser, ["--lr", "1", "--norecord", "--experiment-id", "7"])
    assert own == {
        "project_directory": "",
        "experiments_directory": "experiments",
        "experiment_id": "7",
        "description": "",
        "norecord": True,
        "allow_dirty": False,
    }
    assert isinstance(inspect.getattr_static(Experiment, "extract_meticulous_args"), staticmethod)


def test_a_users_own_description_is_an_argument_like_any_other(parser):
    parser.add_argument("--description", default="mine")
    args, defaults, keywords = record(parser, "--description", "text")
    assert (args, defaults, keywords) == ({"description": "text"}, {"description": "mine"}, {})


def test_a_group_beside_a_users_own_description_is_a_clear_error_and_adds_nothing(parser):
    parser.add_argument("--description")
    with pytest.raises(InvalidArgsException, match="--description of its own"):
        Experiment.add_argument_group(parser)
    assert record(parser)[0] == {"description": None}
    assert "--norecord" not in parser.format_help()


def name_own(parser, *words, **keywords):
    """Return the message of the error that the parser's own arguments make, with a group."""
    with pytest.raises(InvalidArgsException) as caught:
        record(parser, *words, **keywords)
    assert len(str(caught.value).splitlines()) == 2
    return str(caught.value)


NAMES = ["project_directory", "experiments_directory", "experiment_id", "description", "norecord"]


@pytest.mark.parametrize("name", NAMES)
def test_an_argument_with_a_dest_of_ours_is_an_error_before_and_after_the_group(name):
    for add_group_first in (False, True):
        parser = argparse.ArgumentParser()
        steps = [
            lambda parser=parser: parser.add_argument("-x", dest=name),
            lambda parser=parser: Experiment.add_argument_group(parser),
        ]
        for step in reversed(steps) if add_group_first else steps:
            step()
        assert f"dest={name!r}" in name_own(parser, "-x", "1")
        with pytest.raises(InvalidArgsException, match="dest="):
            Experiment.extract_meticulous_args(parser, [])


def test_a_positional_with_a_dest_of_ours_is_an_error(parser):
    Experiment.add_argument_group(parser)
    parser.add_argument("experiment_id")
    assert "dest='experiment_id'" in name_own(parser, "7")


def test_a_sub_commands_argument_with_a_dest_of_ours_is_an_error(parser):
    Experiment.add_argument_group(parser)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("train").add_argument("-d", dest="description")
    commands.add_parser("test")
    assert "dest='description'" in name_own(parser, "train")
    assert record(parser, "test")[0] == {"command": "test"}


def test_a_group_copied_from_a_parent_parser(parser):
    Experiment.add_argument_group(parser)
    child = argparse.ArgumentParser(parents=[parser], add_help=False)
    child.add_argument("--lr", default=1)
    args, defaults, keywords = record(child, "--norecord")
    assert (args, defaults, keywords["norecord"]) == ({"lr": 1}, {"lr": 1}, True)


def test_allow_dirty_is_the_last_option_of_the_group(parser):
    Experiment.add_argument_group(parser, allow_dirty=True)
    assert record(parser)[2]["allow_dirty"] is True
    *_, last = parser._actions
    assert last.option_strings == ["--allow-dirty"]


@pytest.mark.parametrize(
    "option, dest", [("--allow-dirty", None), ("--allow_dirty", None), ("--allow-dirty", "dirty")]
)
def test_a_users_own_allow_dirty_is_an_argument_like_any_other(parser, option, dest):
    parser.add_argument(option, action="store_true", dest=dest)
    Experiment.add_argument_group(parser)
    args, defaults, keywords = record(parser, option)
    name = dest or "allow_dirty"
    assert (args, defaults) == ({name: True}, {name: False})
    assert sorted(keywords) == sorted(NAMES)


def test_own_resume_is_an_argument_like_any_other(parser):
    parser.add_argument("--resume", action="store_true")
    Experiment.add_argument_group(parser)
    assert record(parser, "--resume")[0] == {"resume": True}


def test_required_options_have_the_default_none(parser):
    parser.add_argument("--data", required=True)
    assert record(parser, "--data", "x")[:2] == ({"data": "x"}, {"data": None})


def test_positionals_have_no_default(parser):
    parser.add_argument("data")
    parser.add_argument("more", nargs="?", default="x")
    parser.add_argument("--lr", default=1)
    assert record(parser, "d")[:2] == ({"data": "d", "more": "x", "lr": 1}, {"lr": 1})


def test_suppressed_defaults_are_left_out(parser):
    parser.add_argument("--lr", default=argparse.SUPPRESS)
    assert record(parser)[:2] == ({}, {})
    assert record(parser, "--lr", "1")[:2] == ({"lr": "1"}, {})


def test_an_option_without_a_destination_has_no_default(parser):
    parser.add_argument("--list-models", action="help", dest=argparse.SUPPRESS, default=None)
    assert record(parser)[:2] == ({}, {})


def test_set_defaults_counts(parser):
    parser.add_argument("--lr", default=1)
    parser.set_defaults(lr=2, mode="train")
    assert record(parser)[:2] == ({"lr": 2, "mode": "train"}, {"lr": 2, "mode": "train"})


def test_exclusive_groups(parser):
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--fast", action="store_true")
    group.add_argument("--slow", action="store_true")
    assert record(parser, "--slow")[:2] == ({"fast": False, "slow": True}, {"fast": False, "slow": False})


def test_two_options_with_one_destination(parser):
    parser.add_argument("--on", dest="switch", action="store_true", default=True)
    parser.add_argument("--off", dest="switch", action="store_false", default=False)
    assert record(parser)[:2] == ({"switch": True}, {"switch": True})


def add_commands(parser, **keywords):
    commands = parser.add_subparsers(**keywords)
    train = commands.add_parser("train", aliases=["t"])
    train.add_argument("--lr", type=float, default="0.1")
    train.set_defaults(action="training")
    commands.add_parser("test").add_argument("--split", default="dev")
    return train


@pytest.mark.parametrize("name", ["train", "t"])
def test_the_chosen_sub_commands_defaults_are_included(parser, name):
    parser.add_argument("--seed", type=int, default=0)
    add_commands(parser, dest="command")
    args, defaults, _ = record(parser, name, "--lr", "1")
    assert args == {"seed": 0, "command": name, "lr": 1.0, "action": "training"}
    assert defaults == {"seed": 0, "lr": 0.1, "action": "training"}


def test_a_sub_command_without_dest(parser):
    add_commands(parser)
    assert record(parser, "test")[:2] == ({"split": "dev"}, {"split": "dev"})


def test_no_sub_command_chosen(parser):
    add_commands(parser, dest="command")
    assert record(parser)[:2] == ({"command": None}, {})


def test_sub_commands_inside_one_another_and_a_group_on_the_inner_one(parser):
    train = add_commands(parser, dest="command")
    fast = train.add_subparsers(dest="speed").add_parser("fast")
    fast.add_argument("--steps", type=int, default=3)
    Experiment.add_argument_group(fast)
    args, defaults, keywords = record(parser, "train", "fast", "--description", "d")
    assert args == {"command": "train", "speed": "fast", "lr": 0.1, "steps": 3, "action": "training"}
    assert defaults == {"lr": 0.1, "steps": 3, "action": "training"}
    assert keywords["description"] == "d"


@pytest.mark.parametrize(
    "kind, text, value",
    [
        (int, "3", 3),
        (float, "0.5", 0.5),
        (complex, "1j", 1j),
        (bool, "False", True),
        (str, "a", "a"),
        (pathlib.Path, "a/b", pathlib.Path("a/b")),
        (int, "three", "three"),
    ],
)
def test_text_defaults_are_converted_where_the_type_only_converts(parser, kind, text, value):
    parser.add_argument("--option", type=kind, default=text)
    (action,) = [action for action in parser._actions if action.dest == "option"]
    assert record(parser, "--option", "1")[1] == {"option": value}
    assert action.default == text


def test_the_chosen_sub_command_is_known_where_values_are_the_same(parser):
    commands = parser.add_subparsers()
    for name in ("train", "test"):
        commands.add_parser(name).add_argument(
            "--lr", type=float, default="0.1" if name == "train" else "0.2"
        )
    for name, lr in (("train", 0.1), ("test", 0.2)):
        assert record(parser, name, "--lr", "5")[:2] == ({"lr": 5.0}, {"lr": lr})


def test_the_chosen_sub_command_is_known_where_a_dest_is_used_twice(parser):
    commands = parser.add_subparsers(dest="command")
    train = commands.add_parser("train")
    Experiment.add_argument_group(train)
    inner = train.add_subparsers(dest="command").add_parser("fast")
    inner.add_argument("--steps", default=3)
    commands.add_parser("fast").add_argument("--other", default=4)
    args, defaults, keywords = record(parser, "train", "--norecord", "fast")
    assert (args, defaults, keywords["norecord"]) == ({"command": "fast", "steps": 3}, {"steps": 3}, True)


def test_the_parser_is_as_before(parser):
    train = add_commands(parser)
    Experiment.add_argument_group(parser)
    before = [dict(vars(part), _defaults=dict(part._defaults)) for part in (parser, train)]
    with pytest.raises(SystemExit):
        record(parser, "train", "--lr", "much")
    record(parser, "train")
    assert [vars(part) for part in (parser, train)] == before
    assert vars(parser.parse_args(["test"])).keys() == {*NAMES, "allow_dirty", "split"}


def test_a_parse_args_that_knows_all_its_arguments(parser):
    class Parser(argparse.ArgumentParser):
        def parse_args(self, *arguments):
            values = vars(super().parse_args(*arguments))
            assert values.keys() == {"lr", "action"}
            return values

    parser = Parser()
    parser.add_subparsers(parser_class=argparse.ArgumentParser).add_parser("train").add_argument("--lr")
    parser.set_defaults(action="a")
    assert record(parser, "train", "--lr", "1")[:2] == (
        {"lr": "1", "action": "a"},
        {"lr": None, "action": "a"},
    )


def to_bool(text):
    return {"yes": True, "no": False}[text]


@pytest.mark.parametrize("words", [[], ["--flag", "yes"]], ids=["left out", "given"])
def test_a_string_default_that_a_users_type_converts_is_no_change(parser, words):
    parser.add_argument("--flag", type=to_bool, default="yes")
    parser.add_argument("--other", type=to_bool, default="no")
    assert record(parser, *words)[:2] == ({"flag": True, "other": False},) * 2
    assert record(parser, "--flag", "no")[:2] == (
        {"flag": False, "other": False},
        {"flag": "yes", "other": False},
    )


@pytest.mark.parametrize(
    "words, description, norecord",
    [
        (["--norecord", "train"], "", True),
        (["train", "--norecord"], "", True),
        (["--description", "a", "train", "--description", "b"], "b", False),
        (["--description", "a", "train"], "a", False),
        (["train"], "", False),
    ],
)
def test_options_before_a_sub_command_with_the_same_group_count(parser, words, description, norecord):
    Experiment.add_argument_group(parser)
    Experiment.add_argument_group(parser.add_subparsers().add_parser("train"))
    keywords = record(parser, *words)[2]
    assert (keywords["description"], keywords["norecord"]) == (description, norecord)


def test_a_sub_commands_string_default_that_a_users_type_converts_is_no_change(parser):
    parser.add_subparsers().add_parser("train").add_argument("--flag", type=to_bool, default="yes")
    assert record(parser, "train")[:2] == ({"flag": True}, {"flag": True})


@pytest.mark.filterwarnings("ignore:FileType is deprecated")
def test_the_standard_stream_of_a_file_type_is_no_change(parser):
    parser.add_argument("--log", type=argparse.FileType("w"), default="-")
    args, defaults, _ = record(parser)
    assert args == {"log": sys.stdout}
    assert _to_json(args) == _to_json(defaults)


def test_a_default_that_is_an_array(parser):
    class Array:
        def __eq__(self, other):
            raise ValueError("The truth value of an array is ambiguous.")

    default = Array()
    parser.add_argument("--weights", default=default)
    assert record(parser, "--weights", "1")[1]["weights"] is default


def test_a_parser_that_returns_itself():
    class Parser(argparse.ArgumentParser):
        """What typed-argument-parser does."""

        def parse_args(self, args=None, namespace=None):
            vars(self).update(vars(super().parse_args(args, namespace)))
            return self

    parser = Parser()
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--gone", default=argparse.SUPPRESS)
    parser.set_defaults(mode="train")
    Experiment.add_argument_group(parser)
    args, defaults, keywords = record(parser, "--lr", "1", "--description", "words")
    assert (args, defaults) == ({"lr": 1.0, "mode": "train"}, {"lr": 0.1, "mode": "train"})
    assert keywords["description"] == "words"


@pytest.mark.skipif(
    not (3, 8) <= sys.version_info < (3, 15), reason="the package is installed on Python 3.8 to 3.14"
)
def test_tap():
    from typing import List

    tap = pytest.importorskip("tap")

    class Arguments(tap.Tap):
        data: str
        lr: float = 0.1
        layers: List[int] = [64, 32]
        fast: bool = False

    parser = Arguments()
    Experiment.add_argument_group(parser)
    args, defaults, keywords = record(parser, "--data", "x", "--lr", "1", "--experiment-id", "a")
    assert args == {"data": "x", "lr": 1.0, "layers": [64, 32], "fast": False}
    assert defaults == {"data": None, "lr": 0.1, "layers": [64, 32], "fast": False}
    assert (keywords["experiment_id"], parser.lr) == ("a", 1.0)
    assert parser.as_dict().keys() >= args.keys()


def test_a_mapping_that_refuses_a_part(parser):
    class Lazy(dict):
        def __getitem__(self, name):
            raise LookupError(name)

    parser.add_argument("--lr", default=1)
    parse = parser.parse_args
    parser.parse_args = lambda words: Lazy(vars(parse(words)))
    assert record(parser)[0] == {"lr": "<unreadable: LookupError>"}


@pytest.mark.parametrize("result", [None, ("namespace", [])], ids=str)
def test_a_parse_args_that_returns_no_arguments_is_an_error(parser, result):
    parser.parse_args = lambda words: result
    with pytest.raises(InvalidArgsException, match="parse_args returned "):
        record(parser)


def test_an_argument_named_like_a_method_of_mappings(parser):
    parser.add_argument("--keys", default="all")
    assert record(parser)[0] == {"keys": "all"}


def test_fifty_thousand_arguments(parser):
    for number in range(50000):
        parser._add_action(argparse._StoreAction([f"--a{number}"], f"a{number}", default="1", type=int))
    Experiment.add_argument_group(parser)
    args, defaults, _ = record(parser, "--a7", "2")
    assert len(args) == len(defaults) == 50000
    assert (args["a7"], defaults["a7"]) == (2, 1)
    assert len(_to_json(args)) == 50000


@pytest.mark.filterwarnings("ignore:FileType is deprecated")  # from Python 3.14 on
def test_a_type_that_opens_files_is_not_called_for_a_default(parser, tmp_path):
    path = tmp_path / "made.txt"
    parser.add_argument("--log", type=argparse.FileType("w"), default=str(path))
    assert record(parser, "--log", "-")[1] == {"log": str(path)}
    assert not path.exists()


def test_the_users_types_run_once(parser):
    calls = []
    parser.add_argument("--lr", type=lambda text: calls.append(text) or float(text), default=0.1)
    record(parser, "--lr", "1")
    assert calls == ["1"]


# --- what messages call these arguments -----------------------------------------------------------

GROUP = "meticulous.Experiment.add_argument_group(parser)\n"
OWN_ALLOW_DIRTY = "parser.add_argument('--allow-dirty')\n"


@pytest.fixture
def refuse(repo):
    """Give a function that has a script refused with these lines about its parser; return the last line."""

    def run(lines, *words, **keywords):
        source = "import argparse, meticulous\nparser = argparse.ArgumentParser()\n" + lines
        result = repo.run(source, *words, **keywords)
        assert result.code == 1, result
        return result.stderr.splitlines()[-1]

    repo.write(".gitignore", "experiments\n")
    repo.write("README", "1")
    repo.commit()
    return run


@pytest.mark.parametrize(
    "lines, dirty, norecord",
    [
        ("meticulous.Experiment()", "allow_dirty=True", "norecord=True"),
        ("meticulous.Experiment.from_parser(parser)", "allow_dirty=True", "norecord=True"),
        (GROUP + "meticulous.Experiment.from_parser(parser)", "--allow-dirty", "--norecord"),
        (
            OWN_ALLOW_DIRTY + GROUP + "meticulous.Experiment.from_parser(parser)",
            "allow_dirty=True",
            "--norecord",
        ),
    ],
    ids=["no parser", "no group", "group", "an --allow-dirty of its own"],
)
def test_refused_dirty_start_names_the_means_of_its_caller(repo, refuse, lines, dirty, norecord):
    repo.write("README", "2")
    assert refuse(lines) == (
        f"Commit or stash them, or pass {dirty} (METICULOUS_ALLOW_DIRTY=1) to record a snapshot,"
        f" or pass {norecord} (METICULOUS_NORECORD=1) to run without a record."
    )


@pytest.mark.parametrize(
    "lines, name",
    [("", "experiment_id"), (GROUP, "--experiment-id")],
    ids=["no group", "group"],
)
def test_refused_resume_names_the_means_of_its_caller(refuse, lines, name):
    lines += "parser.add_argument('lr')\nmeticulous.Experiment.from_parser(parser, {})"
    if name == "experiment_id":
        lines = lines.replace("{}", "[parser.parse_args().lr], experiment_id='7'")
    else:
        lines = lines.replace("{}", "['--experiment-id', '7', parser.parse_args().lr]")
    with pytest.raises(AssertionError, match="code 0"):
        refuse(lines, "0.1")
    assert f"leave out {name} to start" in refuse(lines, "0.2")


def test_refused_place_names_the_means_of_its_caller(tmp_path, refuse):
    end = "meticulous.Experiment.from_parser(parser)"
    for lines, name in ((end, "project_directory"), (GROUP + end, "--project-directory")):
        assert f"name another {name}, or pass" in refuse(lines, cwd=tmp_path)


def test_path_of_that_name_is_not_rewritten(repo, refuse):
    repo.write("norecord=True/experiment_id", "1")
    repo.commit()
    lines = GROUP + "meticulous.Experiment.from_parser(parser)"
    words = ["--experiments-directory", "norecord=True/experiment_id", "--experiment-id", "7"]
    assert refuse(lines, *words).count("norecord=True/experiment_id is not a directory") == 1


def test_commands_name_their_options(repo, refuse):
    command = [sys.executable, str(PROJECT / "meticulous.py")]
    repo.write("README", "2")
    for words, has_record in ((["freeze"], False), (["run", "--", "true"], True)):
        error = launch(command + words, cwd=repo.path, env=repo.environment()).result().stderr
        assert "--allow-dirty (METICULOUS_ALLOW_DIRTY=1) to record a snapshot" in error
        assert ("--norecord" in error) == has_record and "=True" not in error
    words, env = command + ["freeze"], repo.environment({"METICULOUS_ALLOW_DIRTY": "1"})
    assert launch(words, cwd=repo.path, env=env).result().code == 0


def test_names_of_the_users_are_shown_as_they_are():
    names = ["norecord", "allow_dirty.py"]
    error = meticulous.DirtyRepoException(names, "0" * 40, "/norecord")
    error.options = ("norecord", "allow_dirty")
    first, remedy = str(error).split("\n")
    assert first == f"2 tracked files in /norecord differ from commit 0000000: {', '.join(map(repr, names))}."
    assert "--allow-dirty" in remedy and "--norecord" in remedy


@pytest.mark.parametrize("name", meticulous.__all__)
def test_an_exception_of_the_users_own_has_any_text(name):
    kind = getattr(meticulous, name)
    if isinstance(kind, type) and issubclass(kind, Exception):
        assert str(kind("any text")) == "any text"
        assert str(kind()) == ""


def test_a_copy_of_an_exception_names_the_same_options():
    error = meticulous.FolderException(13, "can't be used.\nName another experiments_directory.", "/runs")
    error.options = ("experiments_directory",)
    copies = [copy.copy(error), pickle.loads(pickle.dumps(error))]
    assert [(str(copied), copied.errno) for copied in copies] == [(str(error), 13)] * 2
    assert "--experiments-directory" in str(error)
