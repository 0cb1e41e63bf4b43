"""The report is one HTML page that loads nothing and shows whatever was recorded, as it was recorded."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from records import write_experiment

import meticulous

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&\u202eevil\x1b[31m"
KEY = "M10 50h0L290 50"  # the line before the name of a run


def write_metrics(folder, rows):
    """Write metrics.jsonl as Experiment.log() does."""
    lines = [json.dumps({"time": 1764150000.5, **row}).replace("Infinity", "1e999") for row in rows]
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))


def make_losses(count, factor=1.0):
    return [{"step": step, "loss": factor / (step + 1)} for step in range(count)]


class Page(HTMLParser):
    """The parsed page: its elements as (tag, attributes), and its text."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.text, self.html = [], "", html
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def find(self, tag, **wanted):
        """List the attributes of the elements *tag* that have all of *wanted*."""
        found = [attributes for name, attributes in self.elements if name == tag]
        return [a for a in found if all(a.get(key.rstrip("_")) == value for key, value in wanted.items())]

    def curves(self):
        return [a for a in self.find("path") if "data-run" in a and a["d"] != KEY]


@pytest.fixture
def report(tmp_path, monkeypatch):
    """Give a function that runs `meticulous report` on tmp_path / "experiments" and parses the page."""
    monkeypatch.chdir(str(tmp_path))

    def run(*words):
        assert meticulous.main(["report", *words]) == 0
        return Page((tmp_path / "report.html").read_text("utf-8"))

    return run


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "experiments"


def test_every_element_of_the_page_is_known_and_none_names_an_address(directory, report):
    write_metrics(write_experiment(directory, 1), make_losses(5))
    page = report()
    assert not {"img", "link", "iframe", "object", "base", "form"} & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        assert not {"src", "style", "onclick"} & set(attributes)
        assert attributes.get("href", "#").startswith("#")


def test_the_policy_forbids_everything_but_the_page_s_own_style_and_script(directory, report):
    write_experiment(directory, 1)
    page = report()
    policy = page.find("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert policy.startswith("default-src 'none'")
    for tag in ("style", "script"):
        content = re.search(f"<{tag}>(.*?)</{tag}>", page.html, re.DOTALL).group(1)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_hostile_values_are_text_and_control_characters_are_visible(directory, report):
    folder = write_experiment(
        directory, 1, {HOSTILE: HOSTILE}, {HOSTILE: HOSTILE}, "ERROR\nTraceback\n" + HOSTILE,
        description=HOSTILE, attempts=[{"host": HOSTILE}],
    )  # fmt: skip
    (folder / "stdout").write_text(HOSTILE)
    (folder / "snapshot.patch").write_text("+" + HOSTILE)
    write_metrics(folder, [{"step": 0, HOSTILE: 1.0}])
    page = report()
    assert page.find("img") == [] and len(page.find("script")) == 1
    assert "\u202e" not in page.html and "\x1b" not in page.html
    assert page.text.count("<img src=x onerror=alert(1)>\"'&\\u202eevil\\x1b[31m") >= 8


def test_an_argument_named_like_the_message_keeps_its_name(directory, report):
    write_experiment(directory, 1, args={"my_status_message": 1})
    write_experiment(directory, 2, args={"my_status_message": 2}, status="ERROR\nreason")
    text = report().text
    assert "my_status_message" in text and "message" in text.replace("my_status_message", "")


def test_a_hostile_id_is_text(directory, report):
    write_experiment(directory, "<b>&x")
    page = report()
    assert page.find("b") == [] and "<b>&x" in page.text


def test_no_variable_of_the_environment_is_in_it(directory, report, monkeypatch):
    monkeypatch.setenv("API_TOKEN", "sesame-4711")
    write_metrics(write_experiment(directory, 1), make_losses(3))
    assert "sesame-4711" not in report().html


def test_one_run_without_metrics_has_no_plots(directory, report):
    write_experiment(directory, 1)
    page = report()
    assert page.find("figure") == [] and len(page.find("details")) == 1


def test_of_3000_runs_the_first_200_have_stories_and_a_line_says_so(directory, report):
    for number in range(1, 3001):
        folder = directory / str(number)
        folder.mkdir(parents=True)
        (folder / "args.json").write_text('{"lr": %d}' % number)
        (folder / "STATUS").write_text("SUCCESS")
    page = report()
    assert len(page.find("tr")) == 3001 and len(page.find("details")) == 200
    assert "Curves and stories are of the first 200 runs." in page.text


def test_a_run_has_one_color_and_one_dash_in_all_plots(directory, report):
    for number in (1, 2):
        rows = [{"step": step, "loss": number, "accuracy": number} for step in range(3)]
        write_metrics(write_experiment(directory, number, {"lr": number}), rows)
    classes = {(a["data-run"], a["class"].strip()) for a in report().curves()}
    assert classes == {("0", "c0"), ("1", "c1")}


def test_ten_runs_are_in_color_and_the_rest_in_grey_behind_them(directory, report):
    for number in range(1, 13):
        write_metrics(write_experiment(directory, number), make_losses(3))
    page = report("--sort_reverse", "header.expid")
    assert [a["class"].strip() for a in page.curves()] == ["grey"] * 2 + [f"c{n}" for n in range(9, -1, -1)]
    assert "2 more in grey" in page.text


def test_a_curve_of_100000_points_is_cut_to_500_and_keeps_its_spike(directory, report):
    rows = make_losses(100000)
    rows[70001]["loss"] = 50.0
    write_metrics(write_experiment(directory, 1), rows)
    page = report()
    (curve,) = page.curves()
    points = re.findall(r"[ML](\d+) (\d+)", curve["d"])
    assert 400 < len(points) <= 500
    spike = [int(x) for x, y in points if int(y) < 20]
    width = int(points[-1][0])
    assert len(spike) == 1 and abs(spike[0] / width - 0.7) < 0.005


@pytest.mark.parametrize(
    "low, high, ticks",
    [
        (0, 9.7, [0, 2, 4, 6, 8, 10]),
        (-0.3, 0.1, [-0.3, -0.2, -0.1, 0, 0.1]),
        (1e-7, 4e-7, [1e-7, 2e-7, 3e-7, 4e-7]),
        (-1e300, 1e300, [-1e300, -5e299, 0, 5e299, 1e300]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(low, high, ticks):
    assert meticulous._find_axis([high, low], 0) == (low, high, pytest.approx(ticks))


@pytest.mark.parametrize(
    "values",
    [
        [1],
        [0, 0],
        [1e308, -1e308],
        [5e-324, 0],
        [None, 2, None],
        ["x", True, 3],
        [10**400, 1],
        [1e-300, 1e299],
    ],
    ids=str,
)
@pytest.mark.parametrize("words", [[], ["--log"]], ids=["linear", "log"])
def test_any_values_can_be_drawn(directory, report, values, words):
    rows = [{"step": step, "loss": value} for step, value in enumerate(values)]
    write_metrics(write_experiment(directory, 1), rows)
    assert report(*words).find("h2")


def test_gaps_are_left_out_and_counted(directory, report):
    rows = [{"step": step, "loss": value} for step, value in enumerate([1, None, float("inf"), 2, 3])]
    write_metrics(write_experiment(directory, 1), rows)
    page = report()
    assert page.curves()[0]["d"].count("M") == 2
    assert "2 values are not finite: left out" in page.text


def test_a_logarithmic_scale_has_powers_of_ten_and_counts_what_it_can_t_show(directory, report):
    rows = [{"step": step, "loss": value} for step, value in enumerate([0.001, 0, 10])]
    write_metrics(write_experiment(directory, 1), rows)
    page = report("--log")
    names = re.findall(r'text-anchor="end">([^<]*)<', page.html)
    assert sorted(names, key=float) == ["0.001", "0.01", "0.1", "1", "10"]
    assert "1 values are not positive: left out" in page.text


def test_seeds_of_one_setting_are_a_band(directory):
    for number, (lr, seed) in enumerate([(0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1)], 1):
        folder = write_experiment(directory, number, {"lr": lr, "seed": seed})
        write_metrics(folder, make_losses(10, factor=lr + seed))
    rows = meticulous.Experiments(experiments_directory=str(directory)).rows()
    table = [{"args.lr": 0.1, "summary.loss": "0.5 \u00b1 0 (2)"}, {"args.lr": 0.2, "summary.loss": "0.5"}]
    html = meticulous._make_report(str(directory), rows, table, ["args.lr", "summary.loss"], ["args.seed"])
    page = Page(html)
    assert [a["class"].strip() for a in page.curves()] == ["c1 band", "c1", "c0 band", "c0"]
    assert [a["data-run"] for a in page.find("tr") if a] == ["0", "1"]
    assert "mean; band: minimum to maximum" in page.text and "4 runs in" in page.text


def test_the_table_s_options_choose_its_rows_and_columns(directory, report):
    for number in range(1, 6):
        write_experiment(directory, number, {"lr": number}, {"loss": number, "time": 1})
    chosen = ("--columns", "header.expid", "args", "--flat-cols")
    page = report("--filter", "args.lr > 2", "--sort", "args.lr", "--tail", "2", *chosen)
    assert re.findall("<summary>(.) ", page.html) == ["4", "3"]
    titles = re.findall("<th scope=.col.*?</th>", page.html)
    assert [re.sub("<.*?>", "", title) for title in titles] == ["id", "args.lr"]


def test_a_story_has_the_traceback_the_attempts_the_commit_and_the_patch(directory, report):
    status = "ERROR\nTraceback (most recent call last):\nValueError: no such thing"
    folder = write_experiment(directory, 1, {"lr": 0.5}, status=status, default_args={"lr": 0.1})
    (folder / "snapshot.patch").write_text("--- a/train.py\n+++ b/train.py\n")
    (folder / "stdout").write_text("10%\r100%\n")
    text = report().text
    for part in ("0.5  (default 0.1)", "Traceback", "pid 7: ERROR", "Tune it", "+++ b/train.py"):
        assert part in text
    assert "10%" not in text.replace("100%", "")


def test_no_experiments_is_an_error_and_writes_nothing(directory, tmp_path, monkeypatch, capsys):
    directory.mkdir()
    monkeypatch.chdir(str(tmp_path))
    assert meticulous.main(["report"]) == 1
    assert "no such experiments" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_100_runs_with_five_curves_of_1000_points_are_under_5_mb(directory, report):
    for number in range(1, 101):
        rows = [
            {
                "step": step,
                **{
                    name: (step * number * prime) % 1009 / 7
                    for name, prime in zip("abcde", (3, 7, 11, 13, 17))
                },
            }
            for step in range(1000)
        ]
        write_metrics(write_experiment(directory, number), rows)
    assert len(report().html) < 5000000


def test_one_run_s_story_is_markdown_with_all_that_was_recorded_indented(directory):
    folder = write_experiment(directory, 1, {"a|b": "<x>"}, status="ERROR\nTraceback\nlast")
    (folder / "stdout").write_text("```\n# not a title\n")
    text = meticulous._format_story(meticulous.ExperimentReader(str(folder)), ".md")
    assert text.startswith("# Run 1\n") and "a|b  <x>" in text
    assert "\n      ```\n      # not a title\n" in text
    assert all(
        line[:4] in ("", "    ") or line.startswith(("# Run 1", "## ", "1  ERROR"))
        for line in text.split("\n")
    )


def test_a_hostile_message_is_text_in_markdown_too(directory):
    folder = write_experiment(directory, 1, status="ERROR\n" + HOSTILE)
    text = meticulous._format_story(meticulous.ExperimentReader(str(folder)), ".md")
    outside = "".join(line for line in text.split("\n") if not line.startswith("    "))
    assert "\\<img" in outside and "/script><img" not in outside and "\u202e" not in text


def test_one_run_s_story_is_a_page(directory):
    folder = write_experiment(directory, 1)
    write_metrics(folder, make_losses(5))
    page = Page(meticulous._format_story(meticulous.ExperimentReader(str(folder)), ".html"))
    assert page.find("h1") and len(page.find("figure")) == 1 and page.find("details") == []
