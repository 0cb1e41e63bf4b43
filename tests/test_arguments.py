"""The experiment's arguments and defaults come out of any argparse parser, which parses once."""

import argparse
import pathlib

import pytest

from meticulous import Experiment, InvalidArgsException


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
    }


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


@pytest.mark.filterwarnings("ignore:FileType is deprecated")  # from Python 3.14 on
def test_a_type_that_opens_files_is_not_called_for_a_default(parser, tmp_path):
    path = tmp_path / "made.txt"
    parser.add_argument("--log", type=argparse.FileType("w"), default=str(path))
    parser.add_argument("--other", type=argparse.FileType("r"), default="-")
    assert record(parser, "--log", "-")[1] == {"log": str(path), "other": "-"}
    assert not path.exists()


def test_the_users_types_run_once(parser):
    calls = []
    parser.add_argument("--lr", type=lambda text: calls.append(text) or float(text), default=0.1)
    record(parser, "--lr", "1")
    assert calls == ["1"]
