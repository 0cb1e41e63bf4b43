"""Rows are filtered, grouped and sorted, and become text that other programs read back."""

import csv
import io
import json
import pickle
import re
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import write_experiment

import meticulous
from meticulous import QueryException

ROWS = [
    {"header.expid": "1", "args.lr": 0.1, "args.name": "adam", "args.flag": True, "args.sizes": [1, 2]},
    {"header.expid": "2", "args.lr": 0.01, "args.name": "sgd", "args.flag": False},
    {"header.expid": "3", "args.lr": 1, "args.name": None, "args.flag": True, "args.mixed": "auto"},
    {"header.expid": "4", "args.lr": 0.1, "args.lambda": 5, "args.a-b": 6, "args.mixed": 0.5},
]
ROWS[0]["summary.loss"], ROWS[1]["summary.loss"], ROWS[2]["summary.loss"] = 3, float("nan"), 1.5
ROWS[3]["args.place"] = {"host": "n1"}


def choose(text, rows=ROWS):
    rows = [dict(row) for row in rows]
    return "".join(
        row["header.expid"] for row in meticulous._filter_rows(rows, meticulous._find_columns(rows), text)
    )


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("args.lr < 0.5", "124"),
        ("args_lr < 0.5", "124"),
        ("`args.lr` < 0.5", "124"),
        (" args.lr<0.5 ", "124"),
        ("args.lr == 1", "3"),
        ("args.lr != 0.1", "23"),
        ("0.01 < args.lr <= 0.1", "14"),
        ("0.01 < args.lr <= 0.1 == args.lr", "14"),
        ("args.lr in [0.1, 1]", "134"),
        ("args.lr not in (0.1, 1)", "2"),
        ("args.name in ['adam', 'x']", "1"),
        ("'a' in args.name", "1"),
        ("args.name in 'adam, sgd'", "12"),
        ("args.name not in 'adam'", "234"),
        ("args.name == 'sgd' or args.lr == 1", "23"),
        ("args.name == 'sgd' | args.lr == 1", "23"),
        ("args.lr < 0.5 & args.name == 'adam'", "1"),
        ("args.lr < 0.5 && args.name == 'adam'", "1"),
        ("args.lr < 0.5 and not args.name == 'adam'", "24"),
        ("~(args.lr < 0.5)", "3"),
        ("args.flag", "13"),
        ("not args.flag", "24"),
        ("~args.flag & args.lr < 0.05", "2"),
        ("args.flag == True", "13"),
        ("args.flag == False", "2"),
        ("args.name == None", "34"),
        ("args.name != None", "12"),
        ("args.name is None", "34"),
        ("args.name is not None", "12"),
        ("summary.loss > 0", "13"),
        ("summary.loss < 100", "13"),
        ("not summary.loss > 2", "234"),
        ("summary.loss == None", "24"),
        ("summary.loss - args.lr > 1", "1"),
        ("-args.lr < -0.5", "3"),
        ("+args.lr > 0.5", "3"),
        ("args.lr == --1", "3"),
        ("args.lr * 10 == 1", "14"),
        ("args.lr / 0 > 1", ""),
        ("1 / args.lr + 1 == 2", "3"),
        ("args.lambda == 5", "4"),
        ("`args.a-b` == 6", "4"),
        ("args_a_b == 6", "4"),
        ("args.mixed == 'auto'", "3"),
        ("args.mixed != 'auto' and args.mixed > 0.1", "4"),
        ("args.sizes == [1, 2]", "1"),
        ("2 in args.sizes", "1"),
        ("args.lr == [0.1, 1]", "134"),
        ("args.lr != [0.1, 1]", "2"),
        ("args.lr in [0.1, 'auto']", "14"),
        ("args.name == ['sgd', None]", "234"),
        ("args.lr in [args.mixed, 1]", "3"),
        ("args.name == 'sgd' or 1 / 0 > args.lr or args.lambda + 1 == 6", "24"),
        ("args.place.host == 'n1'", "4"),
        ("header.expid == '1'", "1"),
        ("header.expid in ['1', \"2\"]", "12"),
        ("args.name == 'a & b | `c` args.lr'", ""),
        ("True", "1234"),
        ("None", ""),
        ("1e-3 < args.lr < 2.5e-1", "124"),
    ],
)
def test_filter(text, ids):
    assert choose(text) == ids


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("args.lrr < 1", "no column 'args.lrr': did you mean args.lr"),
        ("lr < 1", "no column 'lr': did you mean args.lr"),
        ("`args lr` < 1", "no column 'args lr'"),
        ("args.lr < 'a'", "'<' not supported between instances of 'float' and 'str'"),
        ("args.lr == '0.1'", "args.lr is a number.*'0.1' a string"),
        ("header.expid == 1", "header.expid is a string, and 1 a number"),
        ("header.expid in [1, 2]", "header.expid is a string"),
        ("args.lr in 'abc'", "args.lr is a number"),
        ("args.lr in args.name", "requires string as left operand"),
        ("args.lr", "0.1 is neither true nor false"),
        ("args.name and True", "'adam' is neither true nor false"),
        ("args.name + 'a' == 'b'", "not both numbers"),
        ("'a' * 1000000000 == args.name", "not both numbers"),
        ("[1] * 1000000000 == args.name", "not both numbers"),
        ("9**9**9 > 1", "Pow is not understood"),
        ("1 << 99999999999 > 1", "LShift is not understood"),
        ("args.lr % 2", "Mod is not understood"),
        ("__import__('os').system('true')", "Call is not understood"),
        ("(args).lr > 1", "Attribute is not understood"),
        ("args.lr.__class__ == 1", "no column 'args.lr.__class__'"),
        ("[x for x in [1]]", "ListComp is not understood"),
        ("lambda: 1", "Lambda is not understood"),
        ("f'{args.lr}' == 1", "JoinedStr is not understood"),
        ("b'a' == args.name", "is not understood"),
        ("1j == args.lr", "is not understood"),
        ("... == args.lr", "is not understood"),
        ("(args.lr := 5)", "can't be parsed|NamedExpr"),
        ("1 if True else 2", "IfExp is not understood"),
        ("args.sizes[0] == 1", "Subscript is not understood"),
        ("{1: 2} == args.lr", "Dict is not understood"),
        ("args.lr = 1", "can't be parsed"),
        ("args.lr <", "can't be parsed"),
        ("", "can't be parsed"),
        ("'abc", "can't be parsed"),
        ("\0", "can't be parsed"),
        ("args.lr < 1; import os", "can't be parsed"),
        ("args.\N{GREEK SMALL LETTER LAMDA} > 1", "no column"),
        ("header.expid == 1", "is a string, and 1 a number: write '1'.$"),
        ("args.name in [1]", "is a string, and 1 a number: write '1'.$"),
        ("args.lr == '1'", "is a number, and '1' a string.$"),
        ("args.a-b == 6", "In backticks it is one name: `args.a-b`.$"),
        ("`args.a-b` == 'x'", "is a number, and 'x' a string.$"),
        ("1 <" * 2000 + "1", "longer than 4000"),
    ],
)
def test_filter_error(text, message):
    with pytest.raises(QueryException, match=message):
        choose(text)


@pytest.mark.parametrize("unit", ["(", "[", "-", "~", "not ", "1+", "`a`", "'", "a.b ", "True and "])
def test_a_deep_filter_is_an_error_not_a_crash(unit):
    text = (unit * 4000)[:3990] + "1"
    with pytest.raises(QueryException):
        choose(text)


@given(st.text(alphabet="args.lr_name `'\"()[]<>=!&|~+-*/10,\\\n", max_size=30) | st.text(max_size=20))
def test_any_text_is_a_filter_or_an_error(text):
    try:
        choose(text)
    except QueryException as error:
        assert str(error)


def test_a_name_that_means_several_columns_is_an_error():
    rows = [{"header.expid": "1", "args.a.b": 1, "args.a_b": 2}]
    with pytest.raises(QueryException, match="may be any of args.a.b, args.a_b"):
        choose("args_a_b == 1", rows)
    assert choose("args.a.b == 1", rows) == "1"


# --- groups and order


def test_groups_have_mean_deviation_and_count():
    rows = [
        {"args.lr": 0.1, "summary.loss": 1, "summary.note": "a"},
        {"args.lr": 0.1, "summary.loss": 2.5, "summary.note": None},
        {"args.lr": 0.1, "summary.loss": float("nan"), "summary.note": "b"},
        {"args.lr": 0.01, "summary.loss": 7, "summary.ok": True},
        {"summary.loss": 8},
    ]
    grouped = meticulous._group_rows(rows, meticulous._find_columns(rows), ["args.lr"])
    assert [row["args.lr"] for row in grouped] == [0.01, 0.1, None]
    assert grouped[0]["summary.loss.mean"] == 7
    assert grouped[0]["summary.loss.std"] is None
    assert (grouped[0]["summary.loss.count"], grouped[0]["summary.ok.count"]) == (1, 1)
    assert grouped[1]["summary.loss.mean"] == 1.75
    assert grouped[1]["summary.loss.std"] == pytest.approx(statistics.stdev([1, 2.5]))
    assert (grouped[1]["summary.loss.count"], grouped[1]["summary.note.count"]) == (2, 2)
    assert "summary.note.mean" not in grouped[1]


def test_cells_of_groups_have_mean_deviation_and_count():
    rows = [{"args.lr": 1, "summary.loss": n, "summary.up": float("inf")} for n in (1, 2.5)]
    rows[0]["summary.same"] = rows[1]["summary.same"] = 7
    rows.append({"args.lr": 2, "summary.loss": 0.1234567, "summary.note": "a"})
    grouped = meticulous._group_rows(rows, meticulous._find_columns(rows), ["args.lr"], has_cells=True)
    assert [row["summary.loss"] for row in grouped] == ["1.75 ± 1.1 (2)", "0.12346 (1)"]
    assert grouped[0]["summary.same"] == "7 ± 0 (2)"
    assert grouped[0]["summary.up"] in ("inf (2)", "- (2)")
    assert (grouped[1]["summary.note.count"], "summary.note" in grouped[1]) == (1, False)


def test_equal_texts_and_numbers_are_groups_of_their_own():
    rows = [{"args.n": 1}, {"args.n": "1"}, {"args.n": True}, {"args.n": None}, {}, {"args.n": [1]}]
    assert [row.get("args.n") for row in meticulous._group_rows(rows, ["args.n"], ["args.n"])].count(
        None
    ) == 1
    assert len(meticulous._group_rows(rows, ["args.n"], ["args.n"])) == 5


@given(st.lists(st.floats() | st.integers(), max_size=6))
def test_any_numbers_have_statistics(values):
    values = [value for value in values if value == value]
    meticulous._mean_and_deviation(values)


def test_the_mean_of_infinite_values_is_infinite():
    rows = [{"args.lr": 1, "summary.loss": float("inf")}] * 3
    grouped = meticulous._group_rows(rows, list(rows[0]), ["args.lr"], has_cells=True)
    assert (grouped[0]["summary.loss.mean"], grouped[0]["summary.loss"]) == (float("inf"), "inf (3)")


@pytest.mark.parametrize("descending", [True, False])
def test_rows_without_a_value_are_sorted_last(descending):
    rows = [{"n": n, "a": a} for n, a in enumerate([2, None, "b", float("nan"), 10, "a", True])]
    found = [row["n"] for row in meticulous._sort_rows(rows, ["a"], descending)]
    assert found == ([2, 5, 4, 0, 6, 1, 3] if descending else [6, 0, 4, 5, 2, 1, 3])


@pytest.mark.parametrize("descending", [True, False])
def test_ids_of_digits_are_sorted_as_numbers(descending):
    ids = ["abc", "10", "2", "x1", "9" * 400, "20260304050607000009", "20260304050607000008", "1"]
    rows = [{"header.expid": expid} for expid in ids]
    found = [row["header.expid"] for row in meticulous._sort_rows(rows, ["header.expid"], descending)]
    expected = ["1", "2", "10", "20260304050607000008", "20260304050607000009", "9" * 400, "abc", "x1"]
    assert found == (expected[::-1] if descending else expected)


def test_the_first_column_to_sort_by_counts_most():
    rows = [{"a": a, "b": b} for a, b in [(1, 1), (2, 1), (1, 2), (2, 2)]]
    found = [(row["a"], row["b"]) for row in meticulous._sort_rows(rows, ["a", "b"], True)]
    assert found == [(2, 2), (2, 1), (1, 2), (1, 1)]


def test_only_arguments_that_tell_something_are_shown():
    both = {"args.same": 1, "default_args.same": 1, "args.changed": 5, "default_args.changed": 4}
    both.update({"args.unknown": 1, "summary.same": 1})
    rows = [{**both, "args.differs": 1, "args.sometimes": 3}, {**both, "args.differs": 2}]
    columns = [column for column in meticulous._find_columns(rows) if not column.startswith("default_args.")]
    columns = [column for column in columns if column.startswith("args.")]
    found = [column for column in columns if meticulous._is_telling(rows, column)]
    assert found == ["args.changed", "args.differs", "args.sometimes"]
    assert meticulous._is_telling(rows[:1], "args.unknown")


# --- text


def format_table(rows, columns, *arguments, **keywords):
    return "\n".join(meticulous._format_table(rows, columns, *arguments, **keywords))


def test_numbers_are_aligned_at_their_points():
    rows = [{"summary.loss": value} for value in (1.25, 10, None, -0.5, 1e-05, 1234567.0, 0.123456789)]
    lines = meticulous._format_table(rows, ["summary.loss"])
    assert lines == [
        "summary",
        "       loss",
        " 1.25",
        "10",
        "",
        "-0.5",
        " 1e-05",
        " 1.2346e+06",
        " 0.12346",
    ]


def test_wide_and_combining_characters_line_up():
    rows = [{"args.a": a, "args.b": "|"} for a in ("ab", "漢字", "e\N{COMBINING ACUTE ACCENT}x", "é")]
    lines = meticulous._format_table(rows, ["args.a", "args.b"])
    assert lines[1:] == ["a     b", "ab    |", "漢字  |", "e\N{COMBINING ACUTE ACCENT}x    |", "é     |"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\tc\rd", "a\\nb\\tc\\rd"),
        ("\x9b0m\x7f", "\\x9b0m\\x7f"),
        ("\N{RIGHT-TO-LEFT OVERRIDE}", "\\u202e"),
        ("\ud800", "\\ud800"),
        ("back\\slash", "back\\slash"),
    ],
)
def test_control_characters_are_shown(text, shown):
    rows = [{"args.a": text, "args." + text: 1, "args.list": [text]}]
    table = format_table(rows, list(rows[0]), messages=[text])
    assert shown in table
    assert all(character.isprintable() or character == "\n" for character in table)


def test_a_table_is_cut_to_the_width_and_says_what_was_cut():
    rows = [
        {
            "header.expid": "1",
            **{f"args.a{n}": n for n in range(30)},
            **{f"summary.s{n}": n for n in range(30)},
        }
    ]
    lines = meticulous._format_table(rows, list(rows[0]), 40)
    assert all(len(line) <= 40 for line in lines)
    assert lines[1].split() == ["id", "a0", *(f"s{n}" for n in range(8))]
    lines = meticulous._format_table(rows, list(rows[0]), 80)
    note = lines.index("Not shown (42); `| less -S` shows all, --columns some:")
    shown = lines[1].split()
    assert (
        " ".join(lines[note + 1 :]).split(", ")
        == [c for c in rows[0] if c.split(".")[1] not in shown[1:]][1:]
    )
    assert all(len(line) <= 80 for line in lines)


@given(st.integers(1, 60), st.lists(st.text(max_size=30), min_size=1, max_size=4), st.text(max_size=50))
def test_no_line_is_wider_than_the_terminal(width, texts, message):
    rows = [{f"args.{text}{number}": text for number, text in enumerate(texts)}]
    lines = meticulous._format_table(rows, list(rows[0]), width, messages=[message])
    assert all(meticulous._measure_width(line) <= width for line in lines)


def test_a_message_follows_the_last_value_of_its_row():
    rows = [{"header.expid": "1", "summary.loss": 0.5}, {"header.expid": "2"}]
    lines = meticulous._format_table(rows, ["header.expid", "summary.loss"], messages=["", "ValueError: no"])
    assert lines[-1] == " 2  ValueError: no" or lines[-1].split() == ["2", "ValueError:", "no"]
    assert lines[-2].split() == ["1", "0.5"]


def test_results_are_shown_before_further_arguments_and_times():
    row = {
        "header.expid": "1",
        "header.status": "SUCCESS",
        "header.start_time": "11-23 09:58",
        "args.a": "x" * 40,
    }
    row.update({f"args.b{n}": n for n in range(20)})
    row.update({f"summary.validation_loss_{n}": 0.123456 for n in range(4)})
    for width, count in ((80, 4), (60, 3), (40, 1)):
        titles = meticulous._format_table([row], list(row), width)[1].split()
        assert titles[:3] == ["id", "status", "a"]
        assert [title for title in titles if title.startswith("va")] == [
            f"vali...s_{n}" for n in range(count)
        ]


def test_the_middle_is_cut_because_ends_differ():
    rows = [{"args.data": f"/cluster/scratch/user/data/imagenet/v{n}/train"} for n in range(2)]
    assert meticulous._format_table(rows, ["args.data"], 20)[2:] == [
        "/cluster/...v0/train",
        "/cluster/...v1/train",
    ]


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("abcdefghij", 10, "abcdefghij"),
        ("abcdefghij", 9, "abc...hij"),
        ("abcdefghij", 8, "abc...ij"),
        ("abcdefghij", 3, "..."),
        ("abcdefghij", 2, ".."),
        ("漢字漢字漢字", 9, "漢...字"),
        ("x" * 100 + "y" * 4000000, 5, "x...y"),
    ],
)
def test_a_cut(text, width, shown):
    assert meticulous._cut(text, width) == shown


def test_numbers_are_never_cut():
    rows = [{"args.a": 1, "summary.loss": loss, "summary.b": 5} for loss in (1234.5, 1.23456e-06)]
    lines = meticulous._format_table(rows, list(rows[0]), 18)
    assert [line.split() for line in lines[2:4]] == [["1", "1234.5"], ["1", "1.2346e-06"]]


def test_a_number_that_is_longer_than_any_column_is_cut():
    rows = [{"header.expid": "1", "args.a": 1, "summary.loss": 0.5, "summary.huge": 10**200 + 7}]
    lines = meticulous._format_table(rows, list(rows[0]), 80)
    assert re.match(r" *1 +1 +0\.5 +1000+\.\.\.0+7$", lines[-1])


def test_times_are_never_cut():
    row = {"header.expid": "1", "header.start_time": "11-23 09:58", "summary.b": 5}
    row.update({f"args.{name}": name * 30 for name in "ab"})
    row.update({"summary." + name * 30: 5 for name in "abc"})
    shown = [meticulous._format_table([row], list(row), width)[2] for width in range(20, 220)]
    assert all("11-2" not in line or "11-23 09:58" in line for line in shown)
    assert "11-23 09:58" not in shown[0] and "11-23 09:58" in shown[-1]


def test_the_titles_are_repeated_below_a_long_table_on_a_terminal():
    rows = [{"header.expid": str(n), "args.lr": n} for n in range(41)]
    lines = meticulous._format_table(rows, list(rows[0]), 80)
    assert lines[:2] == lines[-2:]
    assert meticulous._format_table(rows[:40], list(rows[0]), 80)[-1].split() == ["39", "39"]
    assert meticulous._format_table(rows, list(rows[0]))[-1].split() == ["40", "40"]


def test_a_narrow_last_column_has_the_complete_name_of_its_group():
    rows = [{"header.expid": "1", "summary.x": 5}]
    assert meticulous._format_table(rows, list(rows[0]), 9)[0] == "  summary"


def test_flat_titles_have_their_groups():
    rows = [{"args.lr": 1, "summary.loss": 2}]
    assert meticulous._format_table(rows, list(rows[0]), is_flat=True)[0] == "args.lr  summary.loss"


# --- other formats

HARD = [
    "plain",
    "a|b",
    "a\\|b",
    "*b* _i_ `c` ~~s~~ <i>&amp; [l](u) $m$",
    "quote \" , ; '",
    "line\nbreak",
    "漢é",
    "-1",
    "",
    "#%{}^",
]
HARD_ROWS = [{"args.a_b": text, "args.n": number / 4} for number, text in enumerate(HARD)]
HARD_COLUMNS = ["args.a_b", "args.n"]


def test_csv_is_read_back():
    text = meticulous._format_csv(HARD_ROWS, HARD_COLUMNS)
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert rows == [{"args.a_b": text, "args.n": str(number / 4)} for number, text in enumerate(HARD)]


def test_csv_has_json_for_what_it_has_no_form_for():
    rows = [{"args.a": [1, None], "args.b": {"x": float("nan")}, "args.c": None, "args.d": True}, {}]
    text = meticulous._format_csv(rows, ["args.a", "args.b", "args.c", "args.d"])
    assert list(csv.reader(io.StringIO(text)))[1:] == [
        ["[1, null]", '{"x": null}', "", "True"],
        ["", "", "", ""],
    ]


def test_csv_of_one_column_has_a_line_for_an_empty_value():
    text = meticulous._format_csv([{"a": ""}, {}, {"a": "\r"}], ["a"])
    assert list(csv.reader(io.StringIO(text, newline=""))) == [["a"], [""], [""], ["\r"]]


def test_json_is_valid_also_for_nan():
    def refuse(word):
        raise AssertionError(word)

    rows = [{"a": float("nan"), "b": [float("inf"), {"c": float("-inf")}], "d": "\ud800\x1b", "e": 2}]
    text = meticulous._format_json(rows, ["a", "b", "d", "e", "f"], problems={})
    found = json.loads(text, parse_constant=refuse)
    assert found == {
        "rows": [{"a": None, "b": [None, {"c": None}], "d": "\ud800\x1b", "e": 2}],
        "problems": {},
    }


def test_json_of_what_is_too_deep_is_cut():
    deep: "object" = 1
    for _ in range(50000):
        deep = {"a": [deep]}
    text = meticulous._format_json([{"deep": deep, "a": 1}], ["deep", "a"])
    assert json.loads(text)["rows"][0]["a"] == 1
    assert text.count('"..."') == 1
    assert len(meticulous._dump_cell(deep)) < 2000


def test_markdown_is_read_back_by_a_renderer():
    markdown_it = pytest.importorskip("markdown_it")
    text = meticulous._format_markdown(HARD_ROWS, HARD_COLUMNS)
    tokens = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    cells = []
    for token in tokens:
        if token.type == "inline":
            assert {child.type for child in token.children} <= {"text", "text_special"}, token.content
            cells.append("".join(child.content for child in token.children))
    assert cells[:2] == HARD_COLUMNS
    assert cells[2::2] == [text.replace("\n", "\\n") for text in HARD]
    assert cells[3::2] == [str(number / 4) for number in range(len(HARD))]
    assert tokens[0].type == "table_open"


TEX_NAMES = {
    r"\textbackslash{}": "\\",
    r"\textasciitilde{}": "~",
    r"\textasciicircum{}": "^",
    **{"\\" + c: c for c in "&%$#_{}"},
    **{"{" + c + "}": c for c in "[]*<>|\"'`-"},
}


def test_latex_is_escaped():
    text = meticulous._format_latex(HARD_ROWS, HARD_COLUMNS)
    lines = text.split("\n")
    assert lines[0] == r"\begin{tabular}{ll}"
    assert lines[-2] == r"\end{tabular}"
    assert lines[2] == r"args.a\_b & args.n \\"
    names = re.compile("|".join(map(re.escape, sorted(TEX_NAMES, key=len, reverse=True))))
    cells = [line[: -len(r" \\")].split(" & ")[0] for line in lines[4:-3]]
    for cell in cells:
        assert not re.search(r"[\\&%$#_{}^~]", names.sub("", cell)), cell
    assert [names.sub(lambda match: TEX_NAMES[match.group()], cell) for cell in cells] == [
        text.replace("\n", "\\n") for text in HARD
    ]


def test_a_pickle_is_a_dataframe(tmp_path):
    pandas = pytest.importorskip("pandas")
    write_experiment(tmp_path / "e", 1)
    path = tmp_path / "table.pd"
    assert meticulous.main([str(tmp_path / "e"), "--export", str(path)]) == 0
    frame = pandas.read_pickle(str(path))
    assert frame[("args", "lr")].tolist() == [0.1]
    assert meticulous.main([str(tmp_path / "e"), "--export", str(path), "--flat_cols"]) == 0
    with open(str(path), "rb") as file:
        assert "args.lr" in pickle.load(file).columns
    for words, shape in (["--filter", "args.lr > 5"], (0, 1)), (["--columns", "header.expid"], (1, 0)):
        meticulous.main([str(tmp_path / "e"), "--export", str(path), "--columns", "args.lr", *words])
        assert pandas.read_pickle(str(path)).shape == shape
