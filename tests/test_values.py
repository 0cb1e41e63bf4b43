"""Every value gets a form in JSON, the same in every run."""

import argparse
import datetime
import enum
import functools
import json
import pathlib
import subprocess
import sys
import uuid
from collections import OrderedDict, namedtuple
from types import MappingProxyType

import pytest
from conftest import PROJECT
from hypothesis import given
from hypothesis import strategies as st

import meticulous


class Color(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    HIGH = 3


class Kind(str, enum.Enum):
    TRAIN = "train"


class Plain:
    def method(self):
        pass


class Broken:
    def __str__(self):
        raise RuntimeError("no text for you")


class Array:
    """What numpy's and torch's arrays and scalars have in common."""

    dtype = "float32"

    def __init__(self, value):
        self.value = value

    def tolist(self):
        return self.value


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    "value, expected",
    [
        (None, None),
        (True, True),
        (3, 3),
        (0.5, 0.5),
        ("text", "text"),
        ("\udcff", "\udcff"),
        ([1, (2, "b")], [1, [2, "b"]]),
        ({"a": {1: 2}}, {"a": {1: 2}}),
        (Point(1, 2), [1, 2]),
        (OrderedDict(b=1), {"b": 1}),
        (MappingProxyType({"a": 1}), {"a": 1}),
        (argparse.Namespace(lr=0.1), {"lr": 0.1}),
        (pathlib.PurePosixPath("a/b"), "a/b"),
        (Color.RED, "Color.RED"),
        (Level.HIGH, 3),
        (Kind.TRAIN, "train"),
        (datetime.date(2020, 1, 2), "2020-01-02"),
        (datetime.datetime(2020, 1, 2, 3, 4), "2020-01-02T03:04:00"),
        ({3, 1, 2}, "{1, 2, 3}"),
        ({"b", "a"}, "{'a', 'b'}"),
        ({"b", 10, 9}, "{9, 10, 'b'}"),
        (set(), "set()"),
        (frozenset([pathlib.PurePosixPath("x")]), "{'x'}"),
        (len, "len"),
        (int, "int"),
        (Plain, "test_values.Plain"),
        (Plain.method, "test_values.Plain.method"),
        (Plain(), "<test_values.Plain object>"),
        (Broken(), "<test_values.Broken>"),
        (functools.partial(Plain.method, 1), "functools.partial(<function Plain.method>, 1)"),
        (b"bytes", "b'bytes'"),
        (1 + 2j, "(1+2j)"),
        (range(3), "range(0, 3)"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Array(0.25), 0.25),
        (Array([1, [2.5]]), [1, [2.5]]),
        ({Color.RED: 1, Array(2): 3, (1, 2): 4}, {"Color.RED": 1, 2: 3, "(1, 2)": 4}),
    ],
    ids=repr,
)
def test_form(value, expected):
    plain = meticulous._to_json(value)
    assert plain == expected
    assert type(plain) is type(expected)
    json.dumps(plain)


def test_nan_and_infinity_stay_numbers():
    assert json.dumps(meticulous._to_json([float("nan"), float("inf")])) == "[NaN, Infinity]"


def test_subclasses_of_numbers_become_plain_numbers():
    class Metric(float):
        def __repr__(self):
            return "Metric!"

    assert type(meticulous._to_json(Metric(0.5))) is float


def test_a_value_that_contains_itself_is_an_error():
    loop = {}
    loop["self"] = [loop]
    with pytest.raises(meticulous.InvalidArgsException, match="refers to itself"):
        meticulous._to_json(loop)


def test_the_same_value_twice_is_no_loop():
    part = [1]
    assert meticulous._to_json([part, part]) == [[1], [1]]


def test_too_deep_is_an_error_of_ours():
    deep = []
    for _ in range(100000):
        deep = [deep]
    with pytest.raises(meticulous.InvalidArgsException, match="nested too deeply"):
        meticulous._to_json(deep)


def test_the_same_text_in_every_run():
    source = (
        "import json, meticulous\n"
        "class Thing: pass\n"
        "print(json.dumps(meticulous._to_json([{'a', 'b', 'c', 'd'}, Thing(), lambda: 0, {Thing}])))"
    )
    texts = {
        subprocess.check_output(
            [sys.executable, "-c", source], cwd=str(PROJECT), env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."}
        )
        for seed in "1234"
    }
    assert len(texts) == 1
    assert b"0x" not in texts.pop()


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.frozensets(st.text() | st.integers()),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text() | st.integers() | st.none(), inner) | st.tuples(inner)
    ),
    max_leaves=20,
)


@given(values)
def test_any_value_can_be_stored_and_is_stable(value):
    plain = meticulous._to_json(value)
    assert json.dumps(plain) == json.dumps(meticulous._to_json(value))
    assert json.dumps(meticulous._to_json(plain)) == json.dumps(plain)
