"""Metrics over steps: one line for each step, that no kill and no resume makes wrong."""

import json
import shutil
import sys

import pytest
from conftest import launch

from meticulous import ExperimentReader

START = (
    "import math, os, sys\nfrom meticulous import Experiment\nexperiment = Experiment(experiment_id='mine')\n"
)


def read_rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def show(repo, *words):
    return repo.run(None, *words, name="../module/meticulous.py")


def test_steps_count_on_and_values_are_valid_json(repo):
    source = START + (
        "experiment.log(loss=0.5)\nexperiment.log({'loss': 0.25, 'acc.top 1': 1})\n"
        "experiment.log({'loss': math.nan, 'up': math.inf, 'down': -math.inf, 'text': 'NaN'}, step=7)\nexperiment.log(loss=1)\n"
    )
    result = repo.run(source)
    assert result.code == 0, result
    rows = read_rows(repo.experiment("mine"))
    assert [row.pop("step") for row in rows] == [0, 1, 7, 8]
    assert all(row.pop("time") > 1.7e9 for row in rows)
    infinity = float("inf")
    assert rows == [
        {"loss": 0.5},
        {"loss": 0.25, "acc.top 1": 1},
        {"loss": None, "up": infinity, "down": -infinity, "text": "NaN"},
        {"loss": 1},
    ]
    text = (repo.experiment("mine") / "metrics.jsonl").read_text()
    assert '"loss": null' in text and '"down": -1e999' in text


def test_a_killed_run_loses_nothing_that_was_logged(repo):
    result = repo.run(
        START + "for step in range(50): experiment.log(loss=step, step=step)\nos.kill(os.getpid(), 9)"
    )
    assert result.code == -9
    assert [row["loss"] for row in ExperimentReader(str(repo.experiment("mine"))).metrics] == list(range(50))


def test_a_resumed_run_takes_back_later_steps(repo):
    source = START + (
        "first = len(experiment.metadata['attempts']) == 1\n"
        "for step in range(0 if first else 3, 6): experiment.log({'loss': step if first else -step}, step=step)\n"
        "if first:\n    experiment.open('metrics.jsonl', 'a').write('{\"step\": 6, \"ti')\n    os.kill(os.getpid(), 9)\n"
    )
    assert repo.run(source).code == -9
    assert repo.run(None).code == 0
    rows = ExperimentReader(str(repo.experiment("mine"))).metrics
    assert [(row["step"], row["loss"]) for row in rows] == [(0, 0), (1, 1), (2, 2), (3, -3), (4, -4), (5, -5)]


def test_a_resumed_run_counts_on(repo):
    assert repo.run(START + "experiment.log(loss=1)\nexperiment.log(loss=2)").code == 0
    assert repo.run(None).code == 0
    assert [row["step"] for row in read_rows(repo.experiment("mine"))] == [0, 1, 2, 3]


def test_a_forked_child_and_norecord_log_nothing(repo):
    source = START + (
        "if not os.fork():\n    experiment.log(loss=1)\n    os._exit(0)\nos.wait()\n"
        "Experiment(norecord=True).log(loss=1)\nexperiment.log(loss=2)\n"
    )
    assert repo.run(source).code == 0
    assert [row["loss"] for row in read_rows(repo.experiment("mine"))] == [2]
    assert not (repo.path / "metrics.jsonl").exists()


def test_threads_log_complete_lines(repo):
    source = START + (
        "import threading\ndef work():\n    for step in range(200): experiment.log(loss=step, text='x' * 50)\n"
        "threads = [threading.Thread(target=work) for _ in range(4)]\n"
        "for thread in threads: thread.start()\nfor thread in threads: thread.join()\n"
    )
    assert repo.run(source).code == 0
    assert sorted(row["step"] for row in read_rows(repo.experiment("mine"))) == list(range(800))


@pytest.mark.parametrize(
    "values",
    [
        "{(1, 2): 3}",
        "circle",
        "Ambiguous()",
        "step='7'",
        "step=[1]",
        "step=True",
        "step=math.nan",
        "{'step': 'x'}",
    ],
)
def test_what_json_has_no_form_for_is_an_error_of_ours_and_no_step(repo, values):
    source = START + (
        "circle = {}\ncircle['circle'] = circle\n"
        "class Ambiguous:\n    def __bool__(self): raise ValueError('as an array of numpy')\n"
        f"try:\n    experiment.log({values})\nexcept Exception as error:\n    print(type(error).__name__)\n"
        "experiment.log(loss=1)\n"
    )
    result = repo.run(source)
    assert (result.code, result.stdout) == (0, "InvalidArgsException\n"), result
    assert [row["step"] for row in read_rows(repo.experiment("mine"))] == [0]


def test_a_step_among_the_values_counts(repo):
    source = START + (
        "experiment.log({'step': 3, 'loss': 1})\nexperiment.log(loss=1)\n"
        "experiment.log({'step': 3, 'loss': 1}, step=9)\nexperiment.log({'step': None})\n"
    )
    assert repo.run(source).code == 0
    assert [row["step"] for row in read_rows(repo.experiment("mine"))] == [3, 4, 9, 10]


def test_closed_descriptors_are_opened_again_and_new_files_left_alone(repo):
    source = START + (
        "experiment.log(loss=1)\nos.closerange(3, 100)\n"
        "others = [os.open('other', os.O_WRONLY | os.O_CREAT) for _ in range(30)]\n"
        "experiment.log(loss=2)\nos.closerange(3, 100)\nexperiment.log(loss=3)\n"
    )
    result = repo.run(source)
    assert result.code == 0 and "output is" not in result.stderr, result
    assert [row["loss"] for row in read_rows(repo.experiment("mine"))] == [1, 2, 3]
    assert (repo.path / "other").read_bytes() == b""


def test_lines_that_another_process_appends_are_kept(repo):
    source = START + (
        "for step in range(3):\n    experiment.log(loss=step)\n"
        "    with experiment.open('metrics.jsonl', 'a') as file:\n        file.write('{\"step\": 9}\\n')\n"
    )
    assert repo.run(source).code == 0
    assert [row.get("loss") for row in read_rows(repo.experiment("mine"))] == [0, None, 1, None, 2, None]


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_each_line_is_one_write(repo, tmp_path):
    source = START + "for step in range(50): experiment.log(loss=step)\n"
    repo.write("script.py", source)
    repo.commit()
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-e", "trace=write", "-o", trace, sys.executable, repo.path / "script.py"]
    assert launch(command, cwd=repo.path, env=repo.environment()).result().code == 0
    assert trace.read_text().count('"{\\"step\\": ') == 50


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_show_prints_extremes_and_a_curve_that_keeps_a_spike(repo, module_folder, encoding):
    source = START + (
        "for step in range(100): experiment.log(loss=9 if step == 42 else 1, bad=math.nan if step > 7 else 0)\n"
    )
    assert repo.run(source).code == 0
    env = {"PYTHONIOENCODING": encoding}
    result = repo.run(
        "import sys, meticulous; sys.exit(meticulous.main(['show', 'mine']))", name="show.py", env=env
    )
    line = next(line for line in result.stdout.splitlines() if line.startswith("  loss"))
    assert "min 1 at 0  max 9 at 42" in line
    assert line.count("█" if encoding == "utf-8" else "#") == 1
    assert "not finite from 8" in result.stdout


def test_columns_have_the_last_value(repo):
    assert (
        repo.run(
            START + "experiment.log(loss=1)\nexperiment.log(loss=2, acc=3)\nexperiment.log(loss=0.5)"
        ).code
        == 0
    )
    source = "import sys, meticulous; sys.exit(meticulous.main(['--columns', 'metrics', '--export', '-']))"
    result = repo.run(source, name="table.py")
    assert result.stdout == "metrics.loss,metrics.acc\n0.5,3\n", result
