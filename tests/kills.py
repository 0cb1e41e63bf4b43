"""Kill recording processes at random moments, and check what they leave: `python tests/kills.py [COUNT [SEED]]`.

Three of four are killed after STATUS is written: their folder is watched for. The others are killed while they start.
Afterwards all folders must be readable and all files complete, and the next start must succeed.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
VICTIM = """
import sys
from meticulous import Experiment

with Experiment({"lr": 0.1}, {}) as experiment:
    for step in range(100):
        print("step", step)
        experiment.summary({"step": step, "text": "x" * 2000})
    with experiment.open("model", "w") as file:
        file.write("weights")
"""


class Project:
    """A git repository with a script that records itself."""

    def __init__(self, folder):
        self.folder = Path(str(folder))
        self.environment = {
            name: text for name, text in os.environ.items() if not name.startswith(("GIT_", "PYTHON"))
        }
        self.environment.update(HOME=str(self.folder), GIT_CONFIG_NOSYSTEM="1")
        shutil.copy(str(PROJECT / "meticulous.py"), str(self.folder))
        (self.folder / "victim.py").write_text(VICTIM)
        (self.folder / ".gitignore").write_text("__pycache__\nexperiments\n")
        identity = ["-c", "user.name=Test", "-c", "user.email=test@example.com"]
        for command in (
            ["init", "--quiet"],
            ["add", "--all"],
            identity + ["commit", "--quiet", "-m", "First"],
        ):
            subprocess.check_call(["git"] + command, cwd=str(self.folder), env=self.environment)
        self.run()  # writes the bytecode

    def start(self):
        command = [sys.executable, "victim.py"]
        return subprocess.Popen(
            command,
            cwd=str(self.folder),
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def run(self):
        process = self.start()
        _, stderr = process.communicate()
        assert process.returncode == 0, stderr.decode()

    def list_folders(self):
        return [path for path in (self.folder / "experiments").iterdir() if not path.name.startswith(".")]

    def list_names(self):
        return {path.name for path in self.list_folders()}

    def has_recorded(self, before):
        """Return whether an experiment that is not among the names *before* has a STATUS."""
        new = [path for path in self.list_folders() if path.name not in before]
        return any((path / "STATUS").exists() for path in new)

    def wait_for_record(self, process, before):
        """Wait until *process* has written its STATUS, or has ended."""
        while process.poll() is None and not self.has_recorded(before):
            time.sleep(0.0005)

    def measure_life(self):
        """Return the seconds until STATUS is written, and from then to the end."""
        before = self.list_names()
        begin = time.monotonic()
        process = self.start()
        self.wait_for_record(process, before)
        recorded = time.monotonic()
        process.communicate()
        return recorded - begin, time.monotonic() - recorded

    def kill_one(self, delay, waits):
        """Start a process and kill it after *delay* seconds, counted from its STATUS if *waits*.

        Returns whether STATUS was written, and whether the process was killed (it may have ended before).
        """
        before = self.list_names()
        process = self.start()
        if waits:
            self.wait_for_record(process, before)
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.kill()
        _, stderr = process.communicate()
        assert process.returncode in (0, -9), stderr.decode()
        return self.has_recorded(before), process.returncode == -9


def check_folder(path):
    """Check that a folder has all the files of a start, and that each file is complete."""
    for name in ("args", "default_args", "metadata", "summary"):
        file = path / (name + ".json")
        if name != "summary" or file.exists():
            assert isinstance(json.loads(file.read_text()), dict), file
    status = (path / "STATUS").read_text()
    assert status in ("RUNNING", "SUCCESS"), (path, status)


def check_all(project):
    """Check all folders, and list them as a user does; return how many there are of each status."""
    folders = project.list_folders()
    for path in folders:
        check_folder(path)
    command = [sys.executable, "meticulous.py", "experiments", "--json"]
    text = subprocess.check_output(
        command, cwd=str(project.folder), env=project.environment, stderr=subprocess.STDOUT
    )
    rows = json.loads(text.decode())["rows"]
    assert len(rows) == len(folders)
    counts = {}
    for row in rows:
        counts[row["header.status"]] = counts.get(row["header.status"], 0) + 1
    assert set(counts) <= {"DEAD", "SUCCESS"}, counts
    return counts


def kill_many(folder, count, seed):
    """Kill *count* processes in a new repository in *folder*; return a line that says what happened."""
    moments = random.Random(seed)
    project = Project(folder)
    start, rest = sorted(project.measure_life() for _ in range(3))[1]
    killed = late = 0
    while killed < count or late < 0.75 * killed:
        waits = late < 0.75 * (killed + 1)
        was_late, was_killed = project.kill_one(moments.uniform(0, rest if waits else start), waits)
        killed += was_killed
        late += was_killed and was_late
    counts = check_all(project)
    project.run()
    words = ", ".join(f"{number} {status}" for status, number in sorted(counts.items()))
    return (
        f"seed {seed}: {killed} killed, {late} of them after STATUS (written after {start * 1000:.0f} ms, "
        f"{rest * 1000:.0f} ms before the end); folders: {words}"
    )


def main(count="500", seed=None):
    folder = tempfile.mkdtemp()
    seed = int(seed) if seed else random.randrange(10**6)
    print(f"seed {seed}", flush=True)
    try:
        print(kill_many(folder, int(count), seed))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
