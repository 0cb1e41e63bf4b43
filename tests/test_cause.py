"""Real kills, by the kernel and by people, and real lines of Slurm: the cause is shown, or that it is unknown."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from records import PROCESS, START, write_experiment

import meticulous

TRAIN = """
import os, sys, time
from meticulous import Experiment

experiment = Experiment({})
print("started", flush=True)
"""
EAT = "memory = bytearray(300_000_000)\n"
WORKER = f"""
if not os.fork():
    {EAT}
os.wait()
"""
# Not one long sleep: Python sleeps on if a signal comes just before the system call.
WAIT = TRAIN + "while True:\n    time.sleep(1)\n"
KILLED_ONE = "processes of its cgroup that the kernel killed, out of memory: 1"
AT = "CANCELLED AT 2099-11-26T15:56:00"
LIMIT = f"slurmstepd: error: *** JOB 1234 ON n1 {AT} DUE TO TIME LIMIT ***"
OLD_OOM = "slurmstepd: error: Detected 1 oom-kill event(s) in step 1234.batch cgroup. Some of your processes may have"
# What Slurm 22.05 writes, as seen in tests/slurm/test_causes.py; the last of each kind is that of older releases.
LOGS = [
    (LIMIT, "time-limit"),
    (f"slurmstepd-n1: error: *** JOB 1234 ON n1 {AT} DUE TO PREEMPTION ***", "preempted"),
    (f"slurmstepd-n1: error: *** JOB 1234 ON n1 {AT} DUE TO JOB REQUEUE ***", "preempted"),
    (
        f"slurmstepd: error: *** JOB 1234 ON n1 {AT} DUE TO NODE FAILURE, SEE SLURMCTLD LOG ***",
        "node-failure",
    ),
    (f"slurmstepd: error: *** JOB 1234 ON n1 {AT} ***", "cancelled"),
    ("slurmstepd: error: Detected 1 oom_kill event in StepId=1234.batch. Some of the step tasks", "oom"),
    (OLD_OOM, "oom"),
    ("slurmstepd: error: Job 1234 exceeded memory limit (300 > 100), being killed", "oom"),
    (f"{OLD_OOM}\nslurmstepd: error: *** JOB 1234 ON n1 {AT} ***", "oom"),
    # Of workers that were killed before slurmstepd tells at the end of the step.
    (f"{LIMIT}\n{OLD_OOM}", "time-limit"),
    (LIMIT.replace("1234", "12345"), "unknown"),
    (f"slurmstepd: error: *** STEP 1234.7 ON n1 {AT} DUE TO TIME LIMIT ***", "unknown"),
    ("epoch 3: Detected 1 oom_kill event of job 1234, CANCELLED", "unknown"),
    # After a progress bar, which has no newline.
    (f"\r 50%|####     | 5/10 [00:10<00:10]{LIMIT}", "time-limit"),
    # What the program writes about another job, about an earlier start, or in its own words.
    (LIMIT.replace("1234", "99") + " as seen by job 1234", "unknown"),
    (LIMIT.replace("2099", "2001"), "unknown"),
    (f"the last log ended with: {LIMIT}", "unknown"),
    ("srun finished sample 1234: TIMEOUT", "unknown"),
]


@pytest.fixture
def small_cgroup():
    """Return the file that takes a pid, so that it may use 100 MB; it needs root and version 1 of cgroups."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = "".join(line.split(":", 2)[2] for line in lines if line.split(":")[1] == "memory")
    folder = Path(f"/sys/fs/cgroup/memory{own}/meticulous-{os.getpid()}")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("no cgroup of version 1 can be made here")
    (folder / "memory.limit_in_bytes").write_text("100000000")
    yield folder / "cgroup.procs"
    folder.rmdir()


def run_in(repo, procs, command, source="", prefix=""):
    """Run a shell command in a cgroup and return what it prints."""
    repo.write("train.py", source)
    repo.commit()
    script = f'{prefix}echo $$ > {procs}\npython() {{ "{sys.executable}" "$@"; }}\n{command}'
    shell = ["bash", "-c", script]
    return subprocess.run(
        shell, cwd=str(repo.path), env=repo.environment(), stdout=subprocess.PIPE, timeout=60
    ).stdout.decode()


def find(repo, experiment_id="1"):
    reader = meticulous.Experiments(experiments_directory=str(repo.path / "experiments"))[experiment_id]
    return reader.status, reader.cause, reader.status_message


def test_reader_in_the_cgroup_of_a_killed_run_finds_that_it_was_out_of_memory(repo, small_cgroup):
    shown = run_in(repo, small_cgroup, "python train.py || python -m meticulous show -1", TRAIN + EAT)
    assert "1  DEAD  oom (memory cgroup: oom_kill); last sign of life" in shown


def test_reader_outside_of_the_cgroup_does_not_guess(repo, small_cgroup):
    run_in(repo, small_cgroup, "python train.py", TRAIN + EAT)
    status, cause, message = find(repo)
    assert (status, cause) == ("DEAD", "unknown")
    assert message.startswith("killed without a trace; last sign of life")


def test_kill_in_the_cgroup_of_the_reader_alone_is_not_the_cause(repo, small_cgroup):
    repo.popen(TRAIN + "os.kill(os.getpid(), 9)").wait()
    shown = run_in(repo, small_cgroup, "python train.py; python -m meticulous show -1", EAT)
    assert "1  DEAD  killed without a trace" in shown


def test_kill_of_an_earlier_run_is_not_the_cause_of_the_next(repo, small_cgroup):
    repo.write("wait.py", WAIT + "")
    command = 'python train.py; timeout -s KILL 3 "$BASH" -c \'exec "$0" wait.py\' ' + sys.executable
    shown = run_in(repo, small_cgroup, command + "; python -m meticulous show -1", TRAIN + EAT)
    assert "2  DEAD  killed without a trace" in shown


def test_kill_of_a_command_is_found_by_run(repo, small_cgroup):
    run_in(repo, small_cgroup, f'python -m meticulous run -- {sys.executable} -c "{EAT.strip()}"')
    status, cause, message = find(repo)
    assert (status, cause) == ("ERROR", "oom")
    assert message.startswith("oom (memory cgroup: oom_kill); killed by SIGKILL at ")
    assert json.loads((repo.experiment(1) / "metadata.json").read_text())["usage"]["oom-kills"] == 1


def test_kill_inside_of_a_shell_is_found_by_its_exit_code(repo, small_cgroup):
    run_in(repo, small_cgroup, f"python -m meticulous run -- sh -c '{sys.executable} train.py; exit $?'", EAT)
    assert find(repo)[1:] == ("oom", "oom (memory cgroup: oom_kill); exit code 137")


def test_worker_that_was_killed_during_a_success_is_named(repo, small_cgroup):
    run_in(repo, small_cgroup, "python train.py; python train.py", TRAIN + WORKER)
    assert find(repo, "1") == find(repo, "2") == ("SUCCESS", "", KILLED_ONE)


def test_worker_that_was_killed_before_an_error_is_named(repo, small_cgroup):
    run_in(repo, small_cgroup, "python train.py", TRAIN + WORKER + "raise RuntimeError('a worker is gone')\n")
    assert find(repo) == ("ERROR", "", f"RuntimeError: a worker is gone; {KILLED_ONE}")


def test_counter_of_cgroups_version_2(repo):
    """The kernel here counts by version 1, so the two files that Linux documents are mounted in its place."""
    if os.name == "nt" or os.getuid():
        pytest.skip("mounting needs root")
    fake = repo.path.parent
    (fake / "cgroup").write_text("0::/job_7/step_batch\n")
    folder = fake / "fs" / "job_7" / "step_batch"
    folder.mkdir(parents=True)
    (folder / "memory.events").write_text("low 0\nhigh 0\nmax 9\noom 3\noom_kill 2\noom_group_kill 0\n")
    repo.write("train.py", TRAIN + f"open({str(folder / 'memory.events')!r}, 'w').write('oom_kill 3\\n')\n")
    repo.commit()
    script = f"mount --bind {fake}/cgroup /proc/$$/cgroup && mount --bind {fake}/fs /sys/fs/cgroup"
    script = f"{script} && exec {sys.executable} train.py"
    command = ["unshare", "--mount", "sh", "-c", script]
    if subprocess.call(command, cwd=str(repo.path), env=repo.environment()):
        pytest.skip("nothing can be mounted here")
    assert find(repo) == ("SUCCESS", "", KILLED_ONE)


def test_good_run_and_an_error_have_no_cause(repo):
    repo.run(TRAIN)
    repo.run(TRAIN + "raise ValueError(1)\n")
    assert find(repo) == ("SUCCESS", "", "")
    assert find(repo, "2") == ("ERROR", "", "ValueError: 1")


@pytest.mark.parametrize(
    "name, cause", [("SIGTERM", "signal"), ("SIGKILL", "unknown"), ("SIGSEGV", "unknown")]
)
def test_signal_of_a_person_has_no_other_cause(repo, name, cause):
    script = repo.popen(WAIT)
    assert script.stdout.readline() == b"started\n"
    script.send_signal(getattr(signal, name))
    script.result()
    assert find(repo)[1] == cause


def leave_a_job(repo, before="", after=""):
    """Kill a run in a job of which only the log is left: a line before its start, one after."""
    path = repo.path.parent / "job.log"
    path.write_text(before)
    job = {"SLURM_JOB_ID": 1234, "SLURM_CLUSTER_NAME": "gone", "SLURMD_NODENAME": "n1"}
    with open(str(path), "ab") as output:
        script = repo.popen(WAIT, stdout=output, env=job)
        while b"started\n" not in path.read_bytes():
            assert script.poll() is None
        script.kill()
        script.wait()
        output.write(after.encode())
    return path


@pytest.mark.parametrize("lines, cause", LOGS, ids=[f"{cause}-{n}" for n, (_, cause) in enumerate(LOGS)])
def test_lines_of_slurm_in_the_log_of_the_job(repo, lines, cause):
    leave_a_job(repo, after=lines + "\n")
    status, found, message = find(repo)
    assert (status, found, "(job log: " in message) == ("DEAD", cause, cause != "unknown")


def test_line_of_an_earlier_start_of_the_job_is_not_the_cause(repo):
    leave_a_job(repo, before=LIMIT + "\n")
    assert find(repo)[1] == "unknown"


def test_line_about_the_next_run_of_the_same_job_is_not_the_cause(repo):
    """A loop in a batch script: the first run was killed, and the job reached its limit during the second."""
    log = leave_a_job(repo)
    with open(str(log), "ab") as output:
        repo.run(TRAIN, stdout=output, env={"SLURM_JOB_ID": 1234, "SLURM_CLUSTER_NAME": "gone"})
        output.write(f"{LIMIT}\n".encode())
    assert find(repo)[:2] == ("DEAD", "unknown")


def test_line_about_two_runs_at_once_is_the_cause_of_both(repo):
    log = leave_a_job(repo)
    with open(str(log), "ab") as output:
        repo.run(TRAIN, stdout=output, env={"SLURM_JOB_ID": 1234, "SLURM_CLUSTER_NAME": "gone"})
        output.write(f"{LIMIT}\n".encode())
    os.utime(str(repo.experiment(1) / "stdout"))  # the first printed after the second began
    assert find(repo)[:2] == ("DEAD", "time-limit")


@pytest.mark.parametrize("mode", ["ab", "wb"], ids=["append", "truncate"])
def test_line_of_a_later_start_of_the_job_is_not_the_cause(repo, mode):
    log = leave_a_job(repo)
    job = {"SLURM_JOB_ID": 1234, "SLURM_CLUSTER_NAME": "gone", "SLURM_RESTART_COUNT": 1}
    with open(str(log), mode) as output:
        repo.run(TRAIN, stdout=output, env=job)
        output.write(f"{LIMIT}\n".encode())
    assert find(repo)[:2] == ("DEAD", "unknown")


def test_line_after_the_end_is_not_the_cause(repo):
    """The job went on without the run, which a person ended."""
    log = repo.path.parent / "job.log"
    with open(str(log), "wb") as output:
        script = repo.popen(WAIT, stdout=output, env={"SLURM_JOB_ID": 1234, "SLURM_CLUSTER_NAME": "gone"})
        while b"started\n" not in log.read_bytes():
            assert script.poll() is None
        script.terminate()
        script.wait()
        output.write(f"{LIMIT}\n".encode())
    assert find(repo)[:2] == ("ERROR", "signal")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Return a function that puts a shell script in the place of Slurm's commands."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)

    def replace(script):
        for name in ("scontrol", "squeue", "sacct"):
            (programs / name).write_text(f"#!/bin/sh\n{script}\n")
            (programs / name).chmod(0o755)

    return replace


def test_slurm_that_does_not_answer_is_asked_once_and_given_up(repo, tmp_path, monkeypatch, slurm):
    slurm(f'echo "${{0##*/}}" >> {tmp_path}/asked\nexec sleep 600')
    leave_a_job(repo)
    leave_a_job(repo)
    monkeypatch.setattr(meticulous, "_TIMEOUT_S", 1)
    rows = meticulous.Experiments(experiments_directory=str(repo.path / "experiments")).rows()
    assert [row["header.cause"] for row in rows] == ["unknown", "unknown"]
    assert sorted((tmp_path / "asked").read_text().split()) == ["sacct", "squeue"]


@pytest.mark.parametrize("words", [["experiments"], ["report", "-o", "r.html"], ["diff", "1", "2"]], ids=str)
def test_slurm_is_asked_once_by_each_command(tmp_path, monkeypatch, slurm, words):
    monkeypatch.chdir(tmp_path)
    slurm(f'echo "${{0##*/}} $*" >> {tmp_path}/asked\necho "ClusterName = a"')
    job = {"slurm-job-id": 7, "slurm-cluster-name": "a", "slurmd-nodename": "n", "slurm-job-uid": os.getuid()}
    attempt = {**PROCESS, **job, "start-time": START, "start-epoch": 1.0}
    for name in "12":
        folder = write_experiment(tmp_path / "experiments", name, status="RUNNING", attempts=[attempt])
        for file in folder.iterdir():
            os.utime(str(file), (2, 2))
    assert meticulous.main(words) == 0
    asked = (tmp_path / "asked").read_text().splitlines()
    assert any("sacct" in line for line in asked) and len(asked) == len(set(asked)) == 5


def test_child_of_a_wrapper_around_slurm_is_not_waited_for(repo, tmp_path, monkeypatch, slurm):
    slurm(f"sleep 60 & echo $! >> {tmp_path}/pids\nwait")
    leave_a_job(repo)
    monkeypatch.setattr(meticulous, "_TIMEOUT_S", 1)
    assert find(repo)[1] == "unknown"
    pids = (tmp_path / "pids").read_text().split()
    for pid in pids:
        os.kill(int(pid), signal.SIGKILL)  # fails if it has ended, because it was waited for
    assert len(pids) == 2


def test_variables_that_hide_jobs_from_squeue_are_not_passed_on(slurm, monkeypatch):
    monkeypatch.setenv("SQUEUE_PARTITION", "gpu")
    slurm(f'[ -z "$SQUEUE_PARTITION" ] && echo "7|{END + 9:.0f}|TIMEOUT|1|a"')
    evidence = meticulous._list_evidence(os.path.abspath("1"), ATTEMPT, None, meticulous._Scheduler())
    assert list(evidence) == [("squeue", "TIMEOUT"), ("sacct", "TIMEOUT")]


@pytest.mark.parametrize("row", ["7|" + "9" * 5000 + "|TIMEOUT|1|a", "7|9|TIMEOUT|" + "1" * 5000 + "|a"])
def test_numbers_that_are_no_times_are_left_out(slurm, row):
    slurm(f"echo '{row}'")
    assert not list(meticulous._list_evidence("1", ATTEMPT, None, meticulous._Scheduler()))


def test_directory_that_is_renamed_while_it_is_read(repo):
    leave_a_job(repo)
    reader = meticulous.ExperimentReader(str(repo.experiment(1)))
    assert reader.status == "DEAD"
    (repo.path / "experiments").rename(repo.path / "old")
    assert reader.cause == "unknown"


@pytest.mark.parametrize("kills", ["x", None, [], 5], ids=str)
def test_odd_counters_and_a_cgroup_that_was_made_anew_are_no_evidence(tmp_path, monkeypatch, kills):
    """*kills*: the count at the start, now it is 3."""
    monkeypatch.setattr(meticulous, "_read_oom_counter", lambda: {"oom-counter": "/c", "oom-kills": 3})
    attempt = {**meticulous._describe_process(), "oom-counter": "/c", "oom-kills": kills, "process-start": 1}
    attempt.update({"start-time": START, "start-epoch": 1.0})
    write_experiment(tmp_path, "1", status="RUNNING", attempts=[attempt])
    usage = {"oom-kills": None if kills == 5 else kills}
    write_experiment(tmp_path, "2", status="ERROR\nexit code 137", attempts=[attempt], usage=usage)
    rows = meticulous.Experiments(experiments_directory=str(tmp_path)).rows()
    assert [row["header.cause"] for row in rows] == ["unknown", "signal"]


END = meticulous._parse_time("2026-01-02T10:00:00")
ATTEMPT = {"slurm-job-id": 7, "slurm-step-id": 0, "slurm-cluster-name": "a", "start-epoch": END - 90.5}


def ask_sacct(slurm, attempt, *rows):
    """Return the states that tell of *attempt*; rows have the seconds from END to the end and the start."""
    lines = []
    for name, end, state, begin, cluster in rows:
        begin, end = (f"{END + time:.0f}" if isinstance(time, int) else time for time in (begin, end))
        lines.append("|".join((name, end, state, begin, cluster)))
    slurm('[ "${0##*/}" = sacct ] && cat <<ROWS\n' + "\n".join(lines) + "\nROWS")
    return list(meticulous._list_evidence(os.path.abspath("1"), attempt, None, meticulous._Scheduler()))


@pytest.mark.parametrize(
    "rows, states",
    [
        (
            [
                ("7", 9, "PREEMPTED", "None", "a"),
                ("7.batch", 8, "CANCELLED", -99, "a"),
                ("7", 99, "TIMEOUT", 9, "a"),
            ],
            ["PREEMPTED"],
        ),
        ([("7", 99, "TIMEOUT", 9, "a")], []),
        ([("7", "Unknown", "COMPLETING", -99, "a"), ("7.0", 9, "CANCELLED", -99, "a")], []),
        (
            [
                ("7", 9, "FAILED", -99, "a"),
                ("7.0", 9, "OUT_OF_MEMORY", -99, "a"),
                ("7.1", 9, "OUT_OF_MEMORY", -99, "a"),
            ],
            ["FAILED", "OUT_OF_MEMORY"],
        ),
        ([("7", 9, "CANCELLED by 0", -99, "a")], ["CANCELLED"]),
        ([("7", 9, "TIMEOUT", -99, "b"), ("77", 9, "TIMEOUT", -99, "a")], []),
    ],
    ids=["no-start", "later-start", "completing", "step", "by-a-user", "other-cluster-and-job"],
)
def test_rows_of_sacct(slurm, rows, states):
    """As a real slurmdbd gives them, see tests/slurm."""
    assert ask_sacct(slurm, ATTEMPT, *rows) == [("sacct", state) for state in states]


def test_end_of_the_job_long_after_that_of_the_run_is_not_the_cause(slurm):
    """A person ended the run, and the job went on."""
    row = ("7", 9000, "TIMEOUT", -99, "a")
    assert ask_sacct(slurm, ATTEMPT, row) == [("sacct", "TIMEOUT")]
    assert ask_sacct(slurm, {**ATTEMPT, "end-time": meticulous._local_time(END)}, row) == []


@pytest.mark.parametrize(
    "place",
    [
        {"log-file": "FIFO"},
        {"log-file": "/"},
        {"log-file": "a\0b"},
        {"log-file": "a\ud800b"},
        {"log-file": "/etc/passwd", "log-size": float("inf")},
        {"log-file": "/etc/passwd", "log-size": -1},
        {"log-file": ["/etc/passwd"]},
        "odd",
    ],
    ids=str,
)
@pytest.mark.parametrize("step", [0, "([", None])
def test_odd_metadata_stops_neither_the_listing_nor_its_neighbours(tmp_path, capsys, place, step):
    os.mkfifo(str(tmp_path / "fifo"))
    if isinstance(place, dict):
        log = str(tmp_path / "fifo") if place["log-file"] == "FIFO" else place["log-file"]
        place = {"slurm-job-id": 5, **place, "log-file": log}
    attempt = {**PROCESS, "start-time": START, "start-epoch": 1.0, "slurm-job-id": 5, "slurm-step-id": step}
    for name in "12":
        write_experiment(
            tmp_path / "runs",
            name,
            status="ERROR\nkilled by SIGKILL at noon",
            attempts=[attempt],
            place=place,
        )
    assert meticulous.main([str(tmp_path / "runs")]) == 0
    assert capsys.readouterr().out.count("killed by SIGKILL at noon") == 2
