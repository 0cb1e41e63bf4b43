"""Real jobs on a real Slurm: whatever ends one, the record and what a reader says of it are true.

What README.md says in "On a cluster" is taken from there: its scripts, its commands and its table.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter

import pytest
from cluster import PATH, Cluster, wait_until
from conftest import PROJECT, Repo

import meticulous

pytestmark = pytest.mark.slurm

README = (PROJECT / "README.md").read_text("utf-8").partition("\n## On a cluster\n")[2].partition("\n## ")[0]
# It works until something ends it, and when Slurm starts it again, its work is done.
TRAIN = """
import argparse, os, time
from meticulous import Experiment

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
parser.add_argument("--seed", type=int)
Experiment.add_argument_group(parser)
experiment = Experiment.from_parser(parser)
attempt = os.environ.get("SLURM_RESTART_COUNT", "0")
memory = bytearray(int(os.environ.get("MEMORY", 0)))
print("attempt", attempt, "of task", os.environ.get("SLURM_ARRAY_TASK_ID"), flush=True)
if attempt == "0":
    time.sleep(float(os.environ["WORK_S"]))
"""
LAUNCHES = ["python train.py", "exec python train.py", "srun python train.py"]
# The options of sbatch, and how the job ends.
EVENTS = {
    "scancel": ("--requeue", "CANCELLED 0"),
    "time limit": ("--time=1", "TIMEOUT 0"),
    "scontrol requeue": ("--requeue --open-mode=append", "COMPLETED 1"),
    "preemption": ("--partition=cheap", "PREEMPTED 0"),
    "preemption by requeue": ("--partition=spot", "COMPLETED 1"),
    "memory limit": ("--mem=100", "(OUT_OF_MEMORY|FAILED) 0"),
    "node failure": ("--no-requeue", "NODE_FAIL 0"),
}
# What a reader has, and of which launches and events that can't tell the cause.
SOURCES = {
    "log squeue sacct": "nothing",
    "log": "srun|node|preemption by requeue",
    "squeue": "requeue|srun.*memory",
    "sacct": "nothing",
    "log squeue sacct, no accounting": "srun.*(requeue|memory)|preemption by requeue",
    "squeue sacct, controller stopped": "nothing",
    "no evidence": "",
}
READ = """
import json, meticulous
rows = meticulous.Experiments().rows()
print(json.dumps({row["header.expid"]: [row["header.cause"], row["header.status_message"]] for row in rows}))
"""


def read_script(name):
    """Give the batch script that README.md shows as the file *name*."""
    return re.search(rf"<!-- file: {re.escape(name)} -->\n```sh\n(.*?)^```$", README, re.M | re.S).group(1)


def find_command(pattern):
    """Give the one command between backticks in README.md that begins with *pattern*."""
    commands = {match for match in re.findall("`([^`\n]+)`", README) if re.match(pattern, match)}
    assert len(commands) == 1, commands
    return commands.pop()


def read_table():
    """Give what README.md's table says: {event: {launch: text}}, and the cause."""
    head, _, *rows = [re.split(r" *\| *", line)[1:-1] for line in README.splitlines() if line.startswith("|")]
    titles = [title.strip("`") for title in head[1:]]
    return {row[0].strip("`"): dict(zip(titles, row[1:])) for row in rows}


def name_cell(launch, event):
    return f"{launch}-{event}".replace(" ", "_")


TABLE = read_table()
CELLS = [(launch, event) for event in EVENTS for launch in LAUNCHES]


class Project(Repo):
    """A repository with meticulous.py and a job to submit, where `python` is the one under test."""

    def __init__(self, path, module_folder, cluster):
        self.cluster = cluster
        self.programs = path.parent / (path.name + "-bin")
        super().__init__(path, module_folder)
        self.write(".gitignore", "__pycache__\n")
        self.write("train.py", TRAIN)
        for name in ("job.sh", "array.sh"):
            self.write(name, read_script(name))
        shutil.copy(str(PROJECT / "meticulous.py"), str(path))
        self.commit("Add a job")
        self.programs.mkdir()
        (self.programs / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (self.programs / "python").chmod(0o755)

    def environment(self, changes=None):
        """Give the environment of a shell on this cluster."""
        path = os.pathsep.join([str(self.programs), PATH])
        changes = {"PATH": path, "PYTHONPATH": None, **(changes or {})}
        return super().environment({**self.cluster.environment(), **changes})

    def submit(self, script, *options, work_s=600):
        """Submit a batch script, the text of one or a file's name, and return the job's id."""
        environment = self.environment({"WORK_S": work_s})
        if script.endswith(".sh"):
            return self.cluster.submit(*options, script, directory=self.path, environment=environment)
        options = (f"--output={self.path}-%j_%a.log", *options)
        return self.cluster.submit(*options, script=script, directory=self.path, environment=environment)

    def run_job(self, script, *options):
        """Submit a job that has little to do, wait for its end, and return its id."""
        job = self.submit(script, *options, work_s=0)
        wait_until(lambda: not self.cluster.ask("squeue", "--noheader", f"--jobs={job}"), "the job's end")
        return job

    def ask(self, command):
        """Run a shell command and return what it prints."""
        command = ["/bin/sh", "-c", command]
        return subprocess.check_output(command, cwd=str(self.path), env=self.environment()).decode()

    def read(self, experiment_id, name):
        return (self.experiment(experiment_id) / name).read_text()

    def readers(self):
        return meticulous.Experiments(experiments_directory=str(self.path / "experiments"))

    def status(self, experiment_id):
        """Say what a reader says."""
        return self.readers()[experiment_id].status

    def status_from_container(self, experiment_id):
        """Say what a reader says that sees no process of this machine, so that it has to ask Slurm."""
        source = "import meticulous, sys; print(meticulous.Experiments()[sys.argv[1]].status)"
        return self.ask(f"unshare --fork --pid python -c '{source}' {experiment_id}").strip()

    def read_causes(self, source):
        """Give {id: [cause, message]} as a reader finds them that has one of SOURCES."""
        place = self.path.parent / source
        shutil.copytree(str(self.path), str(place / "project"), symlinks=True)
        (place / "programs").mkdir()
        for command in {"squeue", "sacct"}.intersection(re.split(r"\W+", source)):
            (place / "programs" / command).symlink_to(shutil.which(command))
        environment = self.environment({"PATH": place / "programs"})
        if "no accounting" in source:
            configuration = re.sub("(?m)^AccountingStorage.*", "", self.cluster.configuration.read_text())
            (place / "slurm.conf").write_text(configuration)
            environment["SLURM_CONF"] = str(place / "slurm.conf")
        if "log" not in source:
            for path in place.glob("project/experiments/*/metadata.json"):
                metadata = json.loads(path.read_text())
                metadata["place"].pop("log-file", None)
                path.write_text(json.dumps(metadata))
        controller = next(daemon for daemon in self.cluster.daemons if daemon.args[0] == "slurmctld")
        if "controller stopped" in source:
            controller.send_signal(signal.SIGSTOP)
        try:
            command = [sys.executable, "-c", READ]
            answer = subprocess.check_output(command, cwd=str(place / "project"), env=environment)
        finally:
            controller.send_signal(signal.SIGCONT)
        return json.loads(answer.decode())

    def wait_for_start(self, experiment_id):
        path = self.experiment(experiment_id) / "stdout"
        wait_until(lambda: path.exists() and path.read_text(), f"the start of {experiment_id}")


@pytest.fixture(scope="module")
def cluster():
    with Cluster() as cluster:
        yield cluster
    wait_until(lambda: not cluster.list_processes(), "the last process of a job to end")


@pytest.fixture
def project(cluster, module_folder, tmp_path):
    return Project(tmp_path / "project", module_folder, cluster)


@pytest.fixture(scope="module", autouse=True)
def cells(cluster, module_folder, tmp_path_factory):
    """Give a project with a job for each cell of the table, and the jobs; and job.sh with a time limit.

    They are started, and ended, before all else, because the shortest time limit is a minute. Of the cells,
    a failure of the node comes after all else.
    """
    project = Project(tmp_path_factory.mktemp("cells") / "project", module_folder, cluster)
    jobs = start_cells(project, [event for event in EVENTS if event != "node failure"])
    jobs["job.sh"] = project.submit("job.sh", "--time=1")
    project.wait_for_start("job-" + jobs["job.sh"])
    cluster.ask("scancel", *(jobs[launch, "scancel"] for launch in LAUNCHES))
    cluster.ask("scontrol", "requeue", ",".join(jobs[launch, "scontrol requeue"] for launch in LAUNCHES))
    # All that is not main's.
    project.submit("true", f"--ntasks={cluster.cpus - len(LAUNCHES) - 1}")
    return project, jobs


def start_cells(project, events):
    """Start a job for each launch and event; return {(launch, event): job}."""
    jobs = {}
    for event in events:
        for launch in LAUNCHES:
            script = f"{launch} --experiment-id {name_cell(launch, event)}-${{SLURM_RESTART_COUNT:-0}}"
            if event == "memory limit":
                script = f"export MEMORY=900000000\n{script}"
            jobs[launch, event] = project.submit(script, *EVENTS[event][0].split())
    for launch, event in jobs:
        path = project.experiment(name_cell(launch, event) + "-0")
        wait_until(path.exists, f"the start of {path}")
        if event != "memory limit":
            project.wait_for_start(path.name)
            assert project.status(path.name) == "RUNNING"
    return jobs


def test_the_readme_tells_of_every_launch_and_event():
    assert list(TABLE) == [event for event in EVENTS if event != "preemption by requeue"]
    assert all(list(cells) == [*LAUNCHES, "cause as shown"] for cells in TABLE.values())


def test_two_hundred_tasks_of_an_array_in_a_fresh_repository(project):
    job = project.run_job("array.sh", "--array=0-199", f"--output={project.path}-%j_%a.log")
    readers = project.readers().experiments
    assert sorted(map(int, readers)) == list(range(1, 201))
    assert Counter(reader.status for reader in readers.values()) == {"SUCCESS": 200}
    subjects = project.git("log", "--format=%s").splitlines()
    assert subjects == ["Added experiments directory to .gitignore", "Add a job", "First commit"]
    assert project.git("status", "--porcelain") == ""
    places = [reader.metadata["place"] for reader in readers.values()]
    assert {place["slurm-array-job-id"] for place in places} == {int(job)}
    assert {place["slurm-array-task-id"] for place in places} == set(range(200))
    assert len({place["slurm-job-id"] for place in places}) == 200
    for reader, place in zip(readers.values(), places):
        task = place["slurm-array-task-id"]
        assert project.read(reader.expid, "stdout") == f"attempt 0 of task {task}\n"
        assert place["log-file"] == f"{project.path}-{place['slurm-job-id']}_{task}.log"


def test_array_of_the_readme_differs_in_its_arguments_and_a_task_is_found_by_its_job(project):
    """The tasks' numbers have different lengths, so that 0.1 and 0.10 would be the same argument."""
    job = project.run_job("array.sh", "--array=1,7,10,100")
    readers = project.readers().experiments
    assert len({json.dumps(reader.args) for reader in readers.values()}) == 4
    command = find_command(r"python meticulous\.py show --job ").replace("1234", job)
    assert f"{job}_7" in command
    shown = json.loads(project.ask(command + " --json"))
    task = [name for name in readers if "of task 7\n" in project.read(name, "stdout")]
    assert [row["header.expid"] for row in shown["rows"]] == task
    assert "of task 7\n" in project.ask(command)


def test_eight_independent_tasks_are_eight_experiments(project):
    project.run_job("srun --ntasks=8 python train.py", "--ntasks=8")
    readers = project.readers().experiments
    assert sorted(readers) == list("12345678")
    assert sorted(reader.metadata["place"]["slurm-procid"] for reader in readers.values()) == list(range(8))


@pytest.mark.parametrize(
    "launcher",
    ["mpirun.openmpi --allow-run-as-root", "mpirun.mpich"],
    ids=["open-mpi", "mpich"],
)
def test_of_the_ranks_of_mpirun_the_first_records(project, launcher):
    check_ranks(project, f"{launcher} -n 4 python train.py", 4)


def test_ranks_of_srun_may_be_set_by_hand(project):
    check_ranks(project, find_command("srun .*RANK="), 8)


def check_ranks(project, script, count):
    project.run_job(script, f"--ntasks={count}", f"--output={project.path}.log")
    log = project.path.with_suffix(".log").read_text()
    assert list(project.readers().experiments) == ["1"], log
    assert project.status("1") == "SUCCESS"
    for rank in range(1, count):
        assert log.count(f"rank {rank} of {count}") == 1, log
    assert log.count("attempt 0") == count, log


def test_tasks_of_srun_with_pmi2_are_experiments_of_their_own(project):
    project.run_job("srun --mpi=pmi2 python train.py", "--ntasks=2")
    assert sorted(project.readers().experiments) == ["1", "2"]


def test_requeued_job_goes_on_with_its_record(project):
    launches = {launch: f"{launch} --experiment-id job-$SLURM_JOB_ID" for launch in LAUNCHES}
    jobs = {launch: project.submit(script, "--requeue") for launch, script in launches.items()}
    jobs["job.sh"] = project.submit("job.sh")
    for job in jobs.values():
        project.wait_for_start("job-" + job)
        project.cluster.ask("scontrol", "requeue", job)
    for launch, job in jobs.items():
        wait_until(lambda job=job: project.cluster.state(job) == "COMPLETED 1", "the second attempt")
        assert project.status("job-" + job) == "SUCCESS"
        assert project.read("job-" + job, "stdout") == "attempt 0 of task None\nattempt 1 of task None\n"
        first, second = json.loads(project.read("job-" + job, "metadata.json"))["attempts"]
        assert "slurm-restart-count" not in first and second["slurm-restart-count"] == 1
        assert first["slurm-job-id"] == second["slurm-job-id"] == int(job)
        assert ("DEAD" if launch == "python train.py" else "killed by SIGTERM") in first["ended"]
        assert second["ended"] == "SUCCESS"
    log = (project.path / f"slurm-{jobs['job.sh']}.out").read_text()
    assert "attempt 0" in log and "attempt 1" in log


def test_job_that_waited_runs_the_code_of_its_submission(project):
    """Also when it is requeued, so that it goes on with its record."""
    submit = re.search(r"^sbatch (.*\bjob\.sh)$", (PROJECT / "README.md").read_text("utf-8"), re.M).group(1)
    job = project.ask(f"WORK_S=600 sbatch --parsable --hold {submit}").strip()
    submitted = project.git("rev-parse", "HEAD").strip()
    project.write("train.py", "raise SystemExit('edited while the job waited')")
    project.commit("Edit")
    project.cluster.ask("scontrol", "release", job)
    project.wait_for_start("job-" + job)
    project.write("train.py", "raise SystemExit('edited while the job ran')")
    project.cluster.ask("scontrol", "requeue", job)
    wait_until(lambda: project.cluster.state(job) == "COMPLETED 1", "the second attempt")
    assert project.status("job-" + job) == "SUCCESS"
    metadata = json.loads(project.read("job-" + job, "metadata.json"))
    assert metadata["githead-sha"] == submitted and len(metadata["attempts"]) == 2
    assert metadata["directory"] == str(project.path / "experiments" / ".code" / submitted)


def test_reader_that_sees_no_process_asks_slurm(project):
    scripts = {name: f"python train.py --experiment-id {name}" for name in ("a", "b")}
    ids = {name: project.submit(script, "--requeue") for name, script in scripts.items()}
    for name in ids:
        project.wait_for_start(name)
        assert project.status_from_container(name) == "RUNNING"
    project.cluster.ask("scancel", ids["a"])
    project.cluster.ask("scontrol", "requeuehold", ids["b"])
    wait_until(lambda: project.cluster.state(ids["a"]) == "CANCELLED 0", "the end of the job")
    wait_until(lambda: project.cluster.state(ids["b"]) == "PENDING 1", "the job to wait again")
    # Slurm gives up a node that it lost contact with, so a sign of life that is seconds old contradicts it.
    assert [project.status_from_container(name) for name in ids] == ["RUNNING?", "RUNNING?"]
    for name in ids:
        for path in project.experiment(name).iterdir():
            os.utime(str(path), (0, path.stat().st_mtime - 100))
    assert [project.status_from_container(name) for name in ids] == ["DEAD", "DEAD"]


def test_signal_of_the_readmes_script_comes_before_the_time_limit(cells):
    """At the limit itself the job's state would become TIMEOUT."""
    project, jobs = cells
    going_on = ("RUNNING", "COMPLETING")
    is_over = lambda: not project.cluster.state(jobs["job.sh"]).startswith(going_on)  # noqa: E731
    wait_until(is_over, "the end of job.sh", timeout_s=120)
    assert project.cluster.state(jobs["job.sh"]) == "FAILED 0"
    assert "killed by SIGTERM at " in project.read("job-" + jobs["job.sh"], "STATUS")


def test_reader_in_the_batch_script_finds_that_the_run_was_out_of_memory(project):
    """Before Slurm writes or knows anything of it."""
    command = re.search(r"`(python train\.py \|\| .*)`", README).group(1)
    job = project.run_job(f"export MEMORY=900000000\n{command}", "--mem=100")
    shown = project.path.with_name(f"project-{job}_4294967294.log").read_text()
    assert "1  DEAD  oom (memory cgroup: oom_kill); last sign of life" in shown, shown


@pytest.fixture(scope="module")
def causes(cells):
    """Give {source: {id: [cause, message]}} of all cells, each at its end."""
    project, jobs = cells

    def wait_for(events):
        for launch, event in CELLS:
            if event in events:
                is_over = lambda: re.fullmatch(EVENTS[event][1], project.cluster.state(jobs[launch, event]))  # noqa: B023, E731
                wait_until(is_over, f"{event} of {launch}", timeout_s=240)

    wait_for(set(EVENTS) - {"node failure"})
    jobs.update(start_cells(project, ["node failure"]))
    project.cluster.kill_node()
    wait_for(["node failure"])
    project.cluster.start_node()
    return {source: project.read_causes(source) for source in SOURCES}


@pytest.mark.parametrize("launch, event", CELLS, ids=[name_cell(*cell) for cell in CELLS])
def test_record_of_an_ended_job_is_what_the_readme_says(cells, causes, launch, event):
    project, _ = cells
    experiment_id = name_cell(launch, event) + "-0"
    lines = project.read(experiment_id, "STATUS").split("\n")
    metadata = json.loads(project.read(experiment_id, "metadata.json"))
    row = TABLE[event if event in TABLE else "preemption"]
    for source, found in causes.items():
        print(f"{launch} | {event} | {lines[0]}, {lines[-1]} | {source} | {found[experiment_id]}")
    assert project.status(experiment_id) == re.match(r"\w+", row[launch]).group()
    if "SIGTERM" in row[launch]:
        assert lines[0] == "ERROR" and lines[-1].startswith("killed by SIGTERM at ")
        assert metadata["end-time"] >= metadata["start-time"]
    else:
        # Slurm ends the batch script with SIGTERM, which ends bash, and then Python with SIGKILL.
        assert lines == ["RUNNING"] and "end-time" not in metadata
    if "requeue" in event:
        assert project.status(name_cell(launch, event) + "-1") == "SUCCESS"
    for source, not_told in SOURCES.items():
        is_told = not re.search(not_told, f"{launch} {event}")
        other = "signal" if "SIGTERM" in row[launch] else "unknown"
        cause = row["cause as shown"].strip("`") if is_told else other
        assert (source, causes[source][experiment_id][0]) == (source, cause)


def test_all_that_were_preempted_are_started_again(cells, causes):
    project, _ = cells
    loop = re.search(r"^```sh\n(python meticulous.py path --filter .*?)^```$", README, re.M | re.S).group(1)
    for job in re.findall("Submitted batch job ([0-9]+)", project.ask(f"export WORK_S=0\n{loop}")):
        is_over = lambda job=job: project.cluster.state(job).startswith(("COMPLETED", "FAILED"))  # noqa: E731
        wait_until(is_over, "the end of the job")
    again = {
        reader.metadata["repeats"]: reader.status
        for reader in project.readers()
        if "repeats" in reader.metadata
    }
    preempted = [name for name, (cause, _) in causes["log squeue sacct"].items() if cause == "preempted"]
    assert len(preempted) == 9 and again == dict.fromkeys(preempted, "SUCCESS")
