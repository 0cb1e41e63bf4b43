"""Every value gets a form in JSON, the same in every run."""

import argparse
import array
import collections
import dataclasses
import datetime
import enum
import functools
import json
import math
import pathlib
import subprocess
import sys
import types
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


class Permission(enum.Flag):
    READ = 1
    WRITE = 2


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


class Config:
    """What ml_collections' ConfigDict is: a mapping by its methods, which no abstract class knows."""

    def __init__(self, **values):
        self._values = values

    def keys(self):
        return list(self._values)

    def __iter__(self):
        return iter(self.keys())

    def __getitem__(self, key):
        if self._values[key] == "???":
            raise LookupError(key)
        return self._values[key]


@dataclasses.dataclass
class Settings:
    lr: float = 0.1
    layers: list = dataclasses.field(default_factory=lambda: [64, 32])
    later: int = dataclasses.field(init=False, repr=False)


class Lost:
    """As a proxy of werkzeug or weakref whose object is gone."""

    @property
    def __class__(self):
        raise ReferenceError


class Alike:
    """As a mock with spec=int."""

    __class__ = int

    def __str__(self):
        return "alike"


class Undated:
    def isoformat(self):
        return None


Point = namedtuple("Point", "x y")
needs_packages = pytest.mark.skipif(
    not (3, 8) <= sys.version_info < (3, 15), reason="the packages are installed on Python 3.8 to 3.14"
)


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
        ({"a": {1: 2}}, {"a": {"1": 2}}),
        ({0.5: 1, None: 2, True: 3}, {"0.5": 1, "null": 2, "true": 3}),
        ({math.nan: 1, math.inf: 2}, {"NaN": 1, "Infinity": 2}),
        ({Kind.TRAIN: Kind.TRAIN, Level.HIGH: 1}, {"train": "train", "3": 1}),
        ("\ud83d\ude00", "\U0001f600"),
        (collections.deque([1, (2,)]), [1, [2]]),
        (collections.UserList([1]), [1]),
        (collections.UserString("text"), "text"),
        (collections.UserDict(a=(1,)), {"a": [1]}),
        (types.SimpleNamespace(lr=0.1), {"lr": 0.1}),
        (array.array("d", [0.5]), [0.5]),
        (Config(lr=0.1, net={"depth": 3}), {"lr": 0.1, "net": {"depth": 3}}),
        (Config(lr=0.1, path="???"), {"lr": 0.1, "path": "<unreadable: LookupError>"}),
        (Settings(), {"lr": 0.1, "layers": [64, 32], "later": "<unreadable: AttributeError>"}),
        (argparse.Namespace(keys=1, items=2), {"keys": 1, "items": 2}),
        (Point(1, 2), [1, 2]),
        (OrderedDict(b=1), {"b": 1}),
        (MappingProxyType({"a": 1}), {"a": 1}),
        (argparse.Namespace(lr=0.1), {"lr": 0.1}),
        (pathlib.PurePosixPath("a/b"), "a/b"),
        (Color.RED, "Color.RED"),
        (Permission.WRITE, "Permission.WRITE"),
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
        ({Color.RED: 1, Array(2): 3, (1, 2): 4}, {"Color.RED": 1, "2": 3, "(1, 2)": 4}),
        ({Kind.TRAIN, Level.HIGH}, "{3, 'train'}"),
        ([Lost(), 1], ["<unreadable: ReferenceError>", 1]),
        (Alike(), "alike"),
        (Undated(), "None"),
    ],
    ids=repr,
)
def test_form(value, expected):
    plain = meticulous._to_json(value)
    assert plain == expected
    assert type(plain) is type(expected)
    assert json.loads(json.dumps(plain)) == plain


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


@pytest.mark.parametrize("values", [{1: "a", "1": "b"}, {None: "a", "null": "b"}], ids=repr)
def test_keys_that_are_the_same_in_json_are_both_named(values):
    with pytest.raises(meticulous.InvalidArgsException) as caught:
        meticulous._check_mapping("args", {"net": [values]})
    first, second = values
    assert str(caught.value).startswith(f"The keys {first!r} and {second!r} ")
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.skipif(not hasattr(sys, "set_int_max_str_digits"), reason="this interpreter writes all numbers")
def test_a_number_of_thousands_of_digits_is_an_error_of_ours():
    with pytest.raises(meticulous.InvalidArgsException, match="can't be written as JSON: .*digits"):
        meticulous._check_mapping("args", {"seed": 10**5000})


def test_a_part_that_cannot_be_read_is_named_and_the_others_are_there():
    class Remote:
        def tolist(self):
            raise ConnectionError

    plain = meticulous._to_json({"a": [Remote()], "b": 1})
    assert plain == {"a": ["<unreadable: ConnectionError>"], "b": 1}


@needs_packages
def test_omegaconf():
    omegaconf = pytest.importorskip("omegaconf")
    config = omegaconf.OmegaConf.create(
        {"lr": 0.1, "layers": [64, "???", {"a": "${lr}"}], "path": "???", "other": "${missing}", 1: None}
    )
    assert meticulous._check_mapping("args", config) == {
        "lr": 0.1,
        "layers": [64, "<unreadable: MissingMandatoryValue>", {"a": 0.1}],
        "path": "<unreadable: MissingMandatoryValue>",
        "other": "<unreadable: InterpolationKeyError>",
        "1": None,
    }


@needs_packages
def test_pydantic():
    pydantic = pytest.importorskip("pydantic")

    class Net(pydantic.BaseModel):
        depth: int = 3

    class Model(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="allow")
        net: Net = Net()
        path: pathlib.PurePosixPath = pathlib.PurePosixPath("a")
        keys: str = "k"

    class Layers(pydantic.RootModel):
        root: list

        def __iter__(self):
            return iter(self.root)

    plain = meticulous._check_mapping("args", Model(more=(1, 2)))
    assert plain == {"net": {"depth": 3}, "path": "a", "keys": "k", "more": [1, 2]}
    assert meticulous._to_json(Layers(root=[1])) == {"root": [1]}


@needs_packages
def test_attrs():
    attr = pytest.importorskip("attr")

    @attr.s(slots=True)
    class Net:
        depth = attr.ib(3)
        _later = attr.ib(init=False)

    plain = meticulous._check_mapping("args", Net())
    assert plain == {"depth": 3, "_later": "<unreadable: AttributeError>"}


def test_numpy():
    numpy = pytest.importorskip("numpy", reason="numpy comes with 'pandas'")
    values = [
        numpy.float32(0.5), numpy.int64(3), numpy.bool_(True), numpy.array([[1, 2]]), numpy.dtype("float32"),
        numpy.float32, numpy.datetime64("2020-01-02"), {numpy.int64(1): numpy.float64(2)}, {numpy.float64(0.5)},
    ]  # fmt: skip
    assert meticulous._to_json(values) == [
        0.5, 3, True, [[1, 2]], "float32", "numpy.float32", "2020-01-02", {"1": 2.0}, "{0.5}",
    ]  # fmt: skip


def test_nothing_is_imported_for_a_value():
    source = (
        "import sys, argparse, collections.abc, json, meticulous\n"
        "class Thing: pass\n"
        "before = set(sys.modules)\n"
        "meticulous._to_json([Thing(), {1: {2}}, argparse.Namespace(a=Thing)])\n"
        "print(*(set(sys.modules) - before))"
    )
    output = subprocess.check_output([sys.executable, "-S", "-c", source], cwd=str(PROJECT))
    assert output.strip() == b""


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
        "numbers = {float('nan'), *map(float, range(2000))}\n"
        "print(json.dumps(meticulous._to_json([{'a', 'b', 'c', 'd'}, Thing(), lambda: 0, {Thing}, numbers])))"
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
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.floats(), inner) | st.tuples(inner),
    max_leaves=20,
)


@given(values)
def test_any_value_is_what_its_file_says(value):
    try:
        plain = meticulous._to_json(value)
    except meticulous.InvalidArgsException as error:
        assert "would be lost" in str(error)
        return
    assert json.dumps(plain) == json.dumps(meticulous._to_json(value))
    assert json.dumps(meticulous._to_json(plain)) == json.dumps(plain)
    assert repr(json.loads(json.dumps(plain))) == repr(plain)
