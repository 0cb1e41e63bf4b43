"""Measure what recording costs: `python tests/bench [--rows ab] [--write]` prints a Markdown table.

A figure is the ratio of two commands that were measured in turn, in one run: the median over the rounds, and the
quartiles in parentheses. CPU time is that of the finished process and its children. Commands run without PYTHON*
variables and with cached bytecode; each tracker has its own environment.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

SCRIPTS = Path(__file__).resolve().parent / "scripts"
PROJECT = SCRIPTS.parent.parent.parent
BEGIN, END = "<!-- benchmark: begin -->\n", "<!-- benchmark: end -->"
PEERS = ("sacred", "dvclive")
LOGGERS = {
    "tensorboardX": "tensorboardX's SummaryWriter",
    "dvclive": "dvclive",
    "sacred": "sacred's log_scalar",
    "lightning": "Lightning's CSVLogger",
}
DOC = "one trivial experiment"
MOST_CALLS = 24


class Bench:
    """A folder with environments and repositories, and the lines of the table so far."""

    def __init__(self, folder, python, rounds):
        self.folder = folder
        self.python = python
        self.rounds = rounds
        self.versions = {}
        self.lines = []
        self.pythons = {"": self.make_environment("bare", "--without-pip")}
        (folder / ".gitconfig").write_text("[user]\n\tname = Bench\n\temail = bench@example.com\n")
        self.modules = folder / "modules"
        self.modules.mkdir()
        for path in (PROJECT / "meticulous.py", SCRIPTS / "floor.py"):
            shutil.copy(str(path), str(self.modules))

    def make_environment(self, name, *options):
        environment = self.folder / name
        subprocess.check_call([self.python, "-m", "venv", *options, str(environment)])
        return str(environment / "bin" / "python")

    def install_peer(self, name):
        """Return the version of a peer, which is installed at its first use; None if that fails."""
        if name not in self.versions:
            python = self.make_environment(name)
            install = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", name]
            done = subprocess.call(install, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0
            listing = json.loads(subprocess.check_output([python, "-m", "pip", "list", "--format=json"]))
            found = [package["version"] for package in listing if package["name"] == name]
            self.versions[name] = found[0] if done and found else None
            self.pythons[name] = python
        return self.versions[name]

    def make_repo(self, name, files=20):
        """Make a repository with the scripts and *files* files in all, ready to record in."""
        repo = self.folder / name
        (repo / "data").mkdir(parents=True)
        for path in SCRIPTS.glob("*.py"):
            shutil.copy(str(path), str(repo))
        for number in range(files - len(list(repo.glob("*.py"))) - 1):
            (repo / "data" / f"{number}.txt").write_text(f"{number}\n")
        (repo / ".gitignore").write_text("__pycache__\nexperiments\n")
        self.git(repo, "init", "--quiet")
        self.git(repo, "add", "--all")
        self.git(
            repo, "-c", "user.name=B", "-c", "user.email=b@example.com", "commit", "--quiet", "-m", "All"
        )
        # While the index is as old as its files, git reads all of them each time (git's "racy" entries).
        time.sleep(1.1)
        self.git(repo, "status", "--short")
        (repo / "experiments").mkdir()
        return repo

    def git(self, repo, *arguments):
        subprocess.check_call(
            ["git", *arguments], cwd=str(repo), env=self.environment(), stdout=subprocess.DEVNULL
        )

    def environment(self):
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "GIT_"))}
        return dict(kept, PYTHONPATH=str(self.modules), HOME=str(self.folder), GIT_CONFIG_NOSYSTEM="1")

    def command(self, script, *arguments, peer=""):
        return [self.pythons[peer], script, *map(str, arguments)]

    def start(self, command, repo, **keywords):
        keywords = dict(
            {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL},
            **keywords,
        )
        return subprocess.Popen(command, cwd=str(repo), env=self.environment(), **keywords)

    def measure(self, command, repo):
        """Run *command* and return its (CPU, wall) seconds."""
        errors = self.folder / "errors"
        with errors.open("w") as file:
            began = time.perf_counter()
            process = self.start(command, repo, stderr=file)
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - began
        process.returncode = status
        if status:
            raise SystemExit(f"{command} in {repo} failed:\n{errors.read_text()}")
        return usage.ru_utime + usage.ru_stime, wall

    def compare(self, commands, rounds=None, times=1):
        """Measure {name: (command, repo)} in turn; return {name: [(CPU, wall) of each round]}."""
        samples = {name: [] for name in commands}
        for name in commands:
            self.measure(*commands[name])  # writes the bytecode
        for number in range(rounds or self.rounds):
            names = list(commands)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                runs = [self.measure(*commands[name]) for _ in range(times)]
                samples[name].append(tuple(map(sum, zip(*runs))))
        return samples

    def add(self, row, what, against, ratios, goal=None):
        """Add a line to the table from lists of (CPU, wall) ratios."""
        cpu, wall = zip(*ratios)
        verdict = judge(statistics.median(cpu), goal)
        self.add_line(
            row,
            what,
            against,
            format_spread(cpu),
            format_spread(wall),
            f"≤ {goal:.2f}" if goal else "",
            verdict,
        )

    def add_line(self, *cells):
        self.lines.append("| " + " | ".join(cells) + " |")
        print(self.lines[-1], file=sys.stderr, flush=True)


def judge(value, goal):
    if goal is None:
        return ""
    return "met" if value <= goal * 1.005 else f"missed by {100 * (value / goal - 1):.0f} %"


def format_spread(values):
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return f"{statistics.median(values):.2f} ({low:.2f}–{high:.2f})"


def divide(samples, over):
    return [(cpu / base_cpu, wall / base_wall) for (cpu, wall), (base_cpu, base_wall) in zip(samples, over)]


def subtract(samples, less):
    return [(cpu - less_cpu, wall - less_wall) for (cpu, wall), (less_cpu, less_wall) in zip(samples, less)]


def bench_a(bench):
    """One trivial experiment: the complete process."""
    for files in (20, 20000):
        # One repository for all, because git's time differs by up to a tenth between two equal repositories.
        repo = bench.make_repo(f"a-{files}", files)
        names = ("plain", "floor", "import", "ours")
        commands = {name: (bench.command(f"trivial_{name}.py"), repo) for name in names}
        samples = bench.compare(commands, times=5)
        what = f"{DOC}, {files:,} files"
        bench.add(
            "a", what, "the files and git calls by hand", divide(samples["ours"], samples["floor"]), 1.08
        )
        bench.add("a", what, "the script without it", divide(samples["ours"], samples["plain"]))
        ratios = divide(samples["import"], samples["floor"])
        bench.add("a", "by hand, and this file imported", "the files and git calls by hand", ratios)
    for peer in PEERS:
        if bench.install_peer(peer):
            repos = {name: bench.make_repo(f"a-{peer}-{name}") for name in ("plain", peer)}
            commands = {
                "plain": (bench.command("trivial_plain.py"), repos["plain"]),
                peer: (bench.command(f"trivial_{peer}.py", peer=peer), repos[peer]),
            }
            samples = bench.compare(commands, rounds=5)
            bench.add(
                "a",
                f"{peer} {bench.versions[peer]}: the same",
                "the script without it",
                divide(samples[peer], samples["plain"]),
            )


def bench_b(bench):
    """Import."""
    repo = bench.make_repo("b")
    samples = bench.compare(
        {name: (bench.command(f"import_{name}.py"), repo) for name in ("plain", "ours")}, times=5
    )
    bench.add("b", "import", "argparse and json alone", divide(samples["ours"], samples["plain"]), 1.25)


def bench_c(bench):
    """A million lines through the tee."""
    goal = 2.75 if "3.6." in platform_python(bench.python) else 2.0
    commands = {
        name: (bench.command(f"lines_{name}.py"), bench.make_repo(f"c-{name}")) for name in ("plain", "ours")
    }
    if bench.install_peer("sacred"):
        commands["sacred"] = (bench.command("lines_sacred.py", peer="sacred"), bench.make_repo("c-sacred"))
    samples = bench.compare(commands, rounds=7)
    bench.add(
        "c", "1,000,000 lines printed", "without capture", divide(samples["ours"], samples["plain"]), goal
    )
    if "sacred" in commands:
        what = f"sacred {bench.versions['sacred']} (mode sys): the same"
        bench.add("c", what, "without capture", divide(samples["sacred"], samples["plain"]))


def bench_d(bench):
    """Start among many experiments."""
    repo = bench.make_repo("d")
    counts = (10, 1000, 10000, 100000)
    with (repo / ".gitignore").open("a") as file:
        file.write("".join(f"experiments-{count}\n" for count in counts))
    bench.git(
        repo, "-c", "user.name=B", "-c", "user.email=b@example.com", "commit", "--quiet", "-am", "Ignore"
    )
    commands = {}
    for count in counts:
        directory = repo / f"experiments-{count}"
        directory.mkdir()
        for number in range(1, count + 1):
            (directory / str(number)).mkdir()
        for name in ("ours", "list"):
            commands[name, count] = (bench.command(f"start_{name}.py", directory.name), repo)
    samples = bench.compare(commands, times=5)
    for count in counts[1:]:
        what = f"start among {count:,} experiments"
        bench.add("d", what, "among 10", divide(samples["ours", count], samples["ours", 10]))
    growth = {name: subtract(samples[name, counts[-1]], samples[name, 10]) for name in ("ours", "list")}
    bench.add(
        "d",
        "what 100,000 experiments add to a start",
        "to listing their names",
        divide(growth["ours"], growth["list"]),
        1.2,
    )


def count_experiments(bench, name, repo):
    """Make 10 experiments in each of 64 processes at the same time; return (experiments, failed processes)."""
    read_end, write_end = os.pipe()
    command = bench.command(f"many_{name}.py", peer="" if name == "ours" else name)
    processes = [bench.start(command, repo, stdin=read_end) for _ in range(64)]
    os.close(read_end)
    time.sleep(5)  # until all have imported what they need
    os.close(write_end)
    failed = sum(process.wait() != 0 for process in processes)
    folders = [path for path in (repo / "experiments").iterdir() if path.name.isdigit()]
    ended = {"ours": ("STATUS", "SUCCESS"), "sacred": ("run.json", '"COMPLETED"')}[name]
    complete = [
        path for path in folders if (path / ended[0]).exists() and ended[1] in (path / ended[0]).read_text()
    ]
    return len(complete), failed


def bench_e(bench):
    """Races."""
    what = "64 processes, 10 experiments each"
    made, failed = count_experiments(bench, "ours", bench.make_repo("e-ours"))
    verdict = "met" if (made, failed) == (640, 0) else "missed"
    bench.add_line(
        "e", what, "640 experiments, no error", f"{made} experiments, {failed} errors", "", "640, 0", verdict
    )
    if bench.install_peer("sacred"):
        made, failed = count_experiments(bench, "sacred", bench.make_repo("e-sacred"))
        what = f"sacred {bench.versions['sacred']}: the same"
        bench.add_line(
            "e", what, "640 experiments, no error", f"{made} experiments, {failed} errors", "", "", ""
        )


def multiply_experiment(folder, count):
    """Copy a finished experiment until there are *count*, with different arguments and results."""
    texts = {path.name: path.read_text() for path in folder.iterdir()}
    for number in range(2, count + 1):
        copy = folder.parent / str(number)
        copy.mkdir()
        changed = dict(texts)
        for name, key, value in (("args.json", "lr", number / 7), ("summary.json", "loss", 7 / number)):
            changed[name] = json.dumps(dict(json.loads(texts[name]), **{key: value}), indent=4)
        for name, text in changed.items():
            (copy / name).write_text(text)


def bench_f(bench):
    """Listing."""
    for count in (1000, 10000):
        repo = bench.make_repo(f"f-{count}")
        bench.measure(bench.command("trivial_ours.py"), repo)
        multiply_experiment(repo / "experiments" / "1", count)
        commands = {"ours": (bench.command("command.py", "experiments"), repo)}
        commands["load"] = (bench.command("table_load.py", "experiments"), repo)
        samples = bench.compare(commands, rounds=9)
        bench.add(
            "f",
            f"table of {count:,} experiments",
            "a loop that loads their files",
            divide(samples["ours"], samples["load"]),
            1.0,
        )


def bench_g(bench):
    """Recording a command."""
    repo = bench.make_repo("g")
    lines = bench.command("lines_plain.py")
    commands = {
        "run": (bench.command("command.py", "run", "--", *lines), repo),
        "tee": (["sh", "-c", '"$@" | tee lines.txt', "sh", *lines], repo),
    }
    samples = bench.compare(commands, rounds=7)
    bench.add(
        "g",
        "`run` of a command that prints 1,000,000 lines",
        "`command \\| tee file`",
        divide(samples["run"], samples["tee"]),
        1.3,
    )


def bench_h(bench):
    """Peak memory."""
    repos = {name: bench.make_repo(f"h-{name}") for name in ("plain", "ours", *PEERS)}
    peaks = {}
    for number in range(6):
        for name, repo in repos.items():
            peer = name if name in PEERS else ""
            if peer and not bench.install_peer(peer):
                continue
            report = bench.folder / "peak"
            bench.measure(bench.command("memory.py", report, f"trivial_{name}.py", peer=peer), repo)
            if number:  # the first one writes the bytecode
                peaks.setdefault(name, []).append(int(report.read_text()))
    for name in ("ours", *PEERS):
        what = f"peak memory of {DOC}" if name == "ours" else f"{name} {bench.versions[name]}: the same"
        ratios = [peak / base for peak, base in zip(peaks[name], peaks["plain"])]
        bench.add_line("h", what, "the script without it", format_spread(ratios) + " (memory)", "", "", "")


def bench_i(bench):
    """Files and bytes."""
    repo = bench.make_repo("i")
    bench.measure(bench.command("trivial_ours.py"), repo)
    paths = [path for path in (repo / "experiments").rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in paths)
    hidden = sum(path.name.startswith(".") for path in paths)
    text = f"{len(paths) - hidden} files and {hidden} hidden for an hour, {size:,} bytes"
    bench.add_line("i", f"on disk of {DOC}", "", text, "", "", "")


def count_calls(bench, name, repo):
    """Count the system calls that name a path in the experiments directory, those of git left out."""
    trace = bench.folder / "trace"
    command = ["strace", "-f", "-e", "trace=%file", "-o", str(trace), *bench.command(f"trivial_{name}.py")]
    bench.measure(command, repo)
    calls = [line.split(None, 1) for line in trace.read_text().splitlines()]
    git = {pid for pid, call in calls if re.match(r'execve\("[^"]*git"', call)}
    return sum(pid not in git and bool(re.search(r'[/"]experiments[/"]', call)) for pid, call in calls)


def bench_j(bench):
    """Calls to the file system: each is a round trip on a network file system."""
    if not shutil.which("strace"):
        raise SystemExit("Row j needs strace.")
    repo = bench.make_repo("j")
    bench.measure(bench.command("trivial_ours.py"), repo)  # the first start also looks at .gitignore
    calls = {name: count_calls(bench, name, repo) for name in ("ours", "floor")}
    bench.add_line(
        "j",
        f"file system calls of {DOC}",
        f"{calls['floor']} by hand",
        f"{calls['ours']} calls",
        "",
        f"≤ {MOST_CALLS}",
        judge(calls["ours"], MOST_CALLS),
    )


def bench_k(bench):
    """The proof of what ran, and a dirty start."""
    proofless = bench.folder / "proofless"
    shutil.copytree(str(bench.modules), str(proofless))
    with (proofless / "meticulous.py").open("a") as file:
        file.write("\n_CodeProof.check = lambda self: self.code\n")
    with_path = f"import sys; sys.path.insert(0, {str(proofless)!r}); sys.argv[0] = 'start_ours.py'; "
    run = "exec(compile(open('start_ours.py').read(), 'start_ours.py', 'exec'))"
    for files in (20, 20000):
        repo = bench.make_repo(f"k-{files}", files)
        ours = bench.command("start_ours.py", "experiments")
        commands = {
            "ours": (
                [ours[0], "-c", "import sys; sys.argv[0] = 'start_ours.py'; " + run, "experiments"],
                repo,
            ),
            "without": ([ours[0], "-c", with_path + run, "experiments"], repo),
        }
        samples = bench.compare(commands, times=5)
        ratios = divide(samples["ours"], samples["without"])
        bench.add("k", f"start with proof, {files:,} files", "without", ratios, 1.03)
        dirty = bench.make_repo(f"k-dirty-{files}", files)
        (dirty / "data" / "0.txt").write_text("changed\n")
        start = bench.command("start_dirty.py", "experiments")
        commands = {"dirty": (start, dirty), "clean": (start, repo), "status": (["git", "status"], dirty)}
        samples = bench.compare(commands, times=5)
        ratios = divide(subtract(samples["dirty"], samples["clean"]), samples["status"])
        bench.add("k", f"what a dirty start adds, {files:,} files", "one git status", ratios, 5)


def bench_l(bench):
    """The report."""
    repo = bench.make_repo("l")
    bench.measure(bench.command("trivial_ours.py"), repo)
    experiments = repo / "experiments"
    multiply_experiment(experiments / "1", 100)
    random = Random(1)
    for number in range(1, 101):
        rows = [
            {"step": step, "time": 1764150000 + step / 7, **{name: random.random() for name in "abcde"}}
            for step in range(1000)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (experiments / str(number) / "metrics.jsonl").write_text(lines)
    commands = {
        "report": (bench.command("command.py", "report", "experiments"), repo),
        "load": (bench.command("metrics_load.py", "experiments"), repo),
    }
    samples = bench.compare(commands, rounds=9)
    size = (repo / "report.html").stat().st_size
    what = f"report of 100 experiments with 5 curves of 1,000 points, {size / 1e6:.1f} MB"
    ratios = divide(samples["report"], samples["load"])
    bench.add("l", what, "a loop that loads their metrics", ratios, 1.5)


def bench_m(bench):
    """Logging metrics."""
    commands = {
        name: (bench.command(f"log_{name}.py"), bench.make_repo(f"m-{name}"))
        for name in ("ours", "floor", "start")
    }
    samples = bench.compare(commands, rounds=9)
    ratios = divide(*(subtract(samples[name], samples["start"]) for name in ("ours", "floor")))
    bench.add("m", "100,000 `log` calls of 3 values", "`json.dumps` and one write by hand", ratios, 1.3)
    for peer in LOGGERS:
        if bench.install_peer(peer):
            commands[peer] = (bench.command(f"log_{peer}.py", peer=peer), bench.make_repo(f"m-{peer}"))
            samples = bench.compare({name: commands[name] for name in ("ours", peer)}, rounds=3)
            what = f"the same by {LOGGERS[peer]} {bench.versions[peer]}"
            bench.add("m", what, "`log`: 5 or more is our goal", divide(samples[peer], samples["ours"]))


def bench_n(bench):
    """Reading metrics."""
    repo = bench.make_repo("n")
    (repo / "experiments" / "1").mkdir()
    bench.measure(bench.command("points_make.py"), repo)
    names = ("ours", "load")
    samples = bench.compare(
        {name: (bench.command(f"points_{name}.py", "experiments/1"), repo) for name in names}, rounds=7
    )
    ratios = divide(samples["ours"], samples["load"])
    bench.add("n", "1,000,000 points read", "`json.loads` of the joined lines", ratios, 1.2)


def bench_o(bench):
    """Listing where each open takes 0.3 ms."""
    library = bench.folder / "slow_open.so"
    compiler = shutil.which("cc")
    if not compiler:
        raise SystemExit("Row o needs a C compiler.")
    source = str(SCRIPTS.parent / "slow_open.c")
    subprocess.check_call([compiler, "-shared", "-fPIC", "-o", str(library), source, "-ldl"])
    repo = bench.make_repo("o")
    bench.measure(bench.command("trivial_ours.py"), repo)
    multiply_experiment(repo / "experiments" / "1", 2000)
    slow = ["env", f"LD_PRELOAD={library}"]
    commands = {
        "threads": (slow + bench.command("command.py", "experiments"), repo),
        "row": (slow + bench.command("table_row.py", "experiments"), repo),
    }
    samples = bench.compare(commands, rounds=5)
    wall = [row / threads for (_, row), (_, threads) in zip(samples["row"], samples["threads"])]
    what, against = "table of 2,000 experiments where an open takes 0.3 ms", "one thread: times faster"
    verdict = "met" if statistics.median(wall) >= 5 else "missed"
    bench.add_line("o", what, against, "", format_spread(wall), "≥ 5", verdict)


def platform_python(python):
    return (
        subprocess.check_output([python, "-c", "import platform; print(platform.python_version())"])
        .decode()
        .strip()
    )


def make_table(bench):
    git = subprocess.check_output(["git", "--version"]).decode().split()[2]
    about = f"Python {platform_python(bench.python)}, git {git}, {platform.system()}, {os.cpu_count()} cores"
    head = ["| | What | against | CPU | wall | goal | |", "|---|---|---|---|---|---|---|"]
    return (
        "\n".join(head + bench.lines + ["", f"{about}; {bench.rounds} rounds at most, median (quartiles)."])
        + "\n"
    )


def write_table(table):
    path = PROJECT / "README.md"
    before, begin, rest = path.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{path} lacks a line {BEGIN.strip()} and then a line {END}.")
    path.write_text(before + begin + table + end + after, "utf-8")


def main():
    rows = {
        name[len("bench_") :]: function for name, function in globals().items() if name.startswith("bench_")
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", default="".join(rows), help="letters of the rows to measure (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--python", default=sys.executable, help="the interpreter to measure with")
    parser.add_argument("--write", action="store_true", help="write the table into README.md")
    options = parser.parse_args()
    if not set(options.rows) <= set(rows):
        parser.error(f"--rows takes letters of {''.join(rows)}")
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        bench = Bench(folder, options.python, options.rounds)
        for row in options.rows:
            rows[row](bench)
    finally:
        shutil.rmtree(str(folder), ignore_errors=True)
    table = make_table(bench)
    print(table)
    if options.write:
        write_table(table)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
