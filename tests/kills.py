"""Kill recording processes at random moments, and look at what they leave: `python tests/kills.py [COUNT [SEED]]`.

The moments are uniform over the measured life of a process, and a fifth of them over its start, before STATUS.
Afterwards every folder must be readable, every file whole, and the next start must succeed.
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
    for step in range(20):
        print("step", step)
        experiment.summary({"step": step, "text": "x" * 2000})
    with experiment.open("model", "w") as file:
        file.write("weights")
"""


class Ground:
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

    def measure_life(self):
        """Return the seconds of a start, until STATUS is there, and of a whole life."""
        count = len(self.list_folders())
        begin = time.monotonic()
        process = self.start()
        started = None
        while process.poll() is None:
            if started is None and any((path / "STATUS").exists() for path in self.list_folders()[count:]):
                started = time.monotonic() - begin
        process.communicate()
        life = time.monotonic() - begin
        return started or life / 2, life

    def kill_one(self, moment):
        """Start a process and kill it *moment* seconds later; say whether it had begun, and whether it lived."""
        before = {path.name for path in self.list_folders()}
        process = self.start()
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.kill()
        _, stderr = process.communicate()
        assert process.returncode in (0, -9), stderr.decode()
        new = [path for path in self.list_folders() if path.name not in before]
        return any((path / "STATUS").exists() for path in new), process.returncode == -9


def check_folder(path):
    """Hold a folder to what is promised: each file that is there is whole."""
    for name in ("args", "default_args", "metadata", "summary"):
        file = path / (name + ".json")
        if file.exists():
            assert isinstance(json.loads(file.read_text()), dict), file
    status = path / "STATUS"
    if status.exists():
        assert status.read_text() in ("RUNNING", "SUCCESS"), status.read_text()
        for name in ("args", "default_args", "metadata", "summary"):
            assert (path / (name + ".json")).exists(), (path, name)


def check_all(ground):
    """Hold all folders to what is promised, and read them as a user does; return how many there are of a status."""
    folders = ground.list_folders()
    for path in folders:
        check_folder(path)
    command = [sys.executable, "meticulous.py", "experiments", "--json"]
    text = subprocess.check_output(
        command, cwd=str(ground.folder), env=ground.environment, stderr=subprocess.STDOUT
    )
    rows = json.loads(text.decode())["rows"]
    assert len(rows) == len(folders)
    counts = {}
    for row in rows:
        counts[row["header.status"]] = counts.get(row["header.status"], 0) + 1
    assert set(counts) <= {"DEAD", "SUCCESS", "UNKNOWN"}, counts
    return counts


def kill_many(folder, count, seed):
    """Kill *count* processes in a new repository in *folder*; return a line that says what happened."""
    moments = random.Random(seed)
    ground = Ground(folder)
    started, life = sorted(ground.measure_life() for _ in range(3))[1]
    killed = early = 0
    while killed < count or early < count / 5:
        in_start = early < count / 5 and moments.random() < 0.3
        has_begun, was_killed = ground.kill_one(moments.uniform(0, started if in_start else life))
        killed += was_killed
        early += was_killed and not has_begun
    counts = check_all(ground)
    ground.run()
    words = ", ".join(f"{number} {status}" for status, number in sorted(counts.items()))
    return f"seed {seed}: {killed} killed in a life of {life * 1000:.0f} ms, {early} before STATUS; folders: {words}"


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
