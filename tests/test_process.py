"""Who runs here, is it alive, and who owns a folder: real processes are killed, stopped and hidden."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback

import pytest
from conftest import SEND_AT_LINE

import meticulous

fcntl = pytest.importorskip("fcntl")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
root = pytest.mark.skipif(os.getuid() != 0, reason="needs root")

DESCRIBE = "import json, sys, meticulous; print(json.dumps(meticulous._describe_process()), flush=True)\n"
JUDGE = "import json, sys, meticulous; print(meticulous._is_running(json.loads(sys.argv[1])))\n"
JUDGE_AS_NOBODY = JUDGE.replace(
    "; print", "; import os; os.setgroups([]); os.setgid(65534); os.setuid(65534); print"
)


@pytest.fixture
def start(module_folder):
    """Give a function that starts a real interpreter on a piece of source; whatever still runs is killed."""
    processes = []

    def start(source, *arguments, before=(), env=None):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment.update(env or {}, PYTHONPATH=str(module_folder))
        command = [*before, sys.executable, "-c", source, *arguments]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, universal_newlines=True)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def start_described(start):
    """Give a function that starts a process that waits, and returns it with what it says of itself."""

    def start_described(**keywords):
        process = start(DESCRIBE + "sys.stdin.read()", **keywords)
        return process, json.loads(process.stdout.readline())

    return start_described


@pytest.fixture
def unshare():
    """Give a function that puts new namespaces before a command; skip where that can't be."""

    def unshare(*options):
        words = ["unshare", "--fork", *options]
        if not shutil.which("unshare") or subprocess.call(words + ["true"], stderr=subprocess.DEVNULL):
            pytest.skip("can't make namespaces here")
        return words

    return unshare


def describe_here():
    """Describe this process as a system without /proc does."""
    described = meticulous._describe_process()
    return {key: value for key, value in described.items() if not key.startswith("process-")}


def describe_elsewhere(**changes):
    """Describe a process that nobody here can ask about."""
    elsewhere = {"host": "elsewhere", "machine": "0", "boot": "b", "pid-namespace": "pid:[1]", "pid": 4}
    return {**elsewhere, **{key.replace("_", "-"): value for key, value in changes.items()}}


# --- the process and its place ---


def test_description_is_json_and_the_same_each_time():
    described = meticulous._describe_process()
    assert json.loads(json.dumps(described)) == described == meticulous._describe_process()
    assert described["pid"] == os.getpid()


@linux
def test_name_with_spaces_and_parentheses_does_not_hide_the_start(start):
    process = start("open('/proc/self/comm', 'w').write('a) R 1 (b 2'); " + DESCRIBE + "sys.stdin.read()")
    described = json.loads(process.stdout.readline())
    assert described["process-start"] > meticulous._describe_process()["process-start"]
    assert meticulous._is_running(described) is True


def test_place_says_where(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    place = meticulous._describe_place()
    assert place["host"] == meticulous._describe_process()["host"]
    assert place["python"] == sys.version.split()[0].rstrip("+")
    assert place["user"] and place["platform"]
    assert place["gpus"] == "0,1"


def test_place_holds_nothing_of_the_environment_that_is_not_on_the_list(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1234")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "1230")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    monkeypatch.setenv("SLURM_JOB_PARTITION", "0815")
    monkeypatch.setenv("SLURM_JWT", "secret")
    monkeypatch.setenv("SLURM_HET_JOB_OFFSET", "1")
    place = meticulous._describe_place()
    expected = {"slurm-job-id": 1234, "slurm-array-job-id": 1230, "slurm-array-task-id": 4}
    expected["slurm-het-job-offset"] = 1
    assert {key: place[key] for key in place if key.startswith("slurm")} == {
        "slurm-job-partition": "0815", **expected
    }  # fmt: skip
    assert "secret" not in json.dumps(place)


@linux
@pytest.mark.parametrize("target", ["file", "deleted", "pipe"])
def test_log_file_is_named_only_while_it_is_a_file(start, tmp_path, target):
    log = tmp_path / "slurm-1.out"
    source = "import json, os, sys, meticulous\n"
    if target != "pipe":
        source += "os.dup2(os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY), 1)\n"
    if target == "deleted":
        source += "os.unlink(sys.argv[1])\n"
    source += "open(sys.argv[1] + '.place', 'w').write(json.dumps(meticulous._describe_place()))"
    assert start(source, str(log)).wait() == 0
    place = json.loads((tmp_path / "slurm-1.out.place").read_text())
    assert place.get("log-file") == (str(log) if target == "file" else None)


RANKS = {
    "torchrun": ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "TORCHELASTIC_RUN_ID": "none"}, (3, 8)),
    "by-hand": ({"RANK": "0", "WORLD_SIZE": "2", "SLURM_PROCID": "0"}, (0, 2)),
    "open-mpi": ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4"}, (1, 4)),
    "mpich": ({"PMI_RANK": "1", "PMI_SIZE": "4"}, (1, 4)),
    "mpich-in-a-step": ({"PMI_RANK": "1", "PMI_SIZE": "4", "SLURM_STEP_NUM_TASKS": "1"}, (1, 4)),
    "srun": ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_STEP_ID": "0"}, None),
    "srun-pmi2": (
        {"PMI_RANK": "3", "PMI_SIZE": "8", "PMI_JOBID": "7.0", "SLURM_STEP_NUM_TASKS": "8"},
        None,
    ),
    "alone": ({"RANK": "0", "WORLD_SIZE": "1"}, None),
    "no-size": ({"RANK": "3"}, None),
    "no-number": ({"RANK": "first", "WORLD_SIZE": "8"}, None),
    "nothing": ({}, None),
    # Lightning's own launcher, on one node and on two; GROUP_RANK is torchrun's name for the node's rank.
    "lightning": ({"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2"}, (1, 2)),
    "lightning-first": ({"LOCAL_RANK": "0", "NODE_RANK": "0", "WORLD_SIZE": "2"}, (0, 2)),
    "lightning-second-node": ({"LOCAL_RANK": "0", "NODE_RANK": "1", "WORLD_SIZE": "4"}, (1, 4)),
    "lightning-group-rank": ({"LOCAL_RANK": "0", "GROUP_RANK": "1", "WORLD_SIZE": "4"}, (1, 4)),
    "local-rank-alone": ({"LOCAL_RANK": "1"}, None),
}


@pytest.mark.parametrize("case", RANKS)
def test_rank(monkeypatch, case):
    variables, expected = RANKS[case]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    rank = meticulous._find_rank()
    assert (rank and rank[:2]) == expected


# --- is it alive ---


def test_living_process_runs(start_described):
    assert meticulous._is_running(start_described()[1]) is True


def test_stopped_process_runs(start_described):
    process, described = start_described()
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    assert meticulous._is_running(described) is True


@linux
def test_zombie_is_gone(start_described):
    process, described = start_described()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert meticulous._is_running(described) is False


def test_killed_process_is_gone(start_described):
    process, described = start_described()
    process.kill()
    process.wait()
    assert meticulous._is_running(described) is False


@linux
def test_another_process_with_the_same_pid_does_not_fool(start_described):
    described = start_described()[1]
    assert meticulous._is_running({**described, "process-start": described["process-start"] - 1}) is False


def test_without_a_start_the_pid_is_all_there_is(start_described):
    process, described = start_described()
    described.pop("process-start", None)
    assert meticulous._is_running(described) is True
    process.kill()
    process.wait()
    assert meticulous._is_running(described) is False


@root
def test_process_of_another_user_runs(start_described, start):
    described = start_described()[1]
    judge = start(JUDGE_AS_NOBODY, json.dumps(described))
    assert judge.stdout.read() == "True\n"


@linux
@root
def test_process_that_a_hidden_proc_does_not_show_runs(start_described, start, unshare):
    described = start_described()[1]
    mount = 'mount -t proc -o hidepid=2 proc /proc && exec "$@"'
    judge = start(
        JUDGE_AS_NOBODY + "print(os.path.exists(sys.argv[2]))",
        json.dumps(described),
        f"/proc/{described['pid']}",
        before=[*unshare("--mount"), "sh", "-c", mount, "sh"],
    )
    assert judge.stdout.read() == "True\nFalse\n"


@linux
@pytest.mark.parametrize("options", [["--pid", "--mount-proc"], ["--pid"]], ids=["own-proc", "outer-proc"])
def test_container_and_host_know_nothing_of_each_other(start_described, start, unshare, options):
    outside = start_described()[1]
    inside = start_described(before=unshare(*options))[1]
    assert inside["pid"] < 100, "it is the only process there"
    assert meticulous._is_running(inside) is None
    judge = start(JUDGE, json.dumps(outside), before=unshare(*options))
    assert judge.stdout.read() == "None\n"


@linux
def test_container_with_the_proc_of_its_host_does_not_look_there(start, unshare):
    source = DESCRIBE + "print(meticulous._is_running(meticulous._describe_process()))"
    process = start(source, before=unshare("--pid"))
    assert process.stdout.read().endswith("\nTrue\n")


@linux
def test_process_of_an_earlier_boot_is_gone_only_if_the_machine_is_surely_this_one():
    described = {**meticulous._describe_process(), "boot": "before"}
    is_sure = "machine" in described and described["pid-namespace"] == meticulous._OUTSIDE_CONTAINERS
    assert meticulous._is_running(described) is (False if is_sure else None)
    assert meticulous._is_running({**described, "machine": "another"}) is None
    assert meticulous._is_running({**described, "host": "another"}) is None
    assert meticulous._is_running({**described, "pid-namespace": "pid:[1]"}) is None


@pytest.mark.parametrize("pid", [0, -1, 2**70, "12", None, [1]], ids=repr)
def test_pid_that_is_none_says_nothing(pid):
    assert meticulous._is_running({**meticulous._describe_process(), "pid": pid}) is None
    assert meticulous._is_running({}) is None


def test_pid_that_was_used_again_is_told_by_ps_where_there_is_no_proc(start_described, monkeypatch):
    """As on macOS: the process of that pid began long after the recorded one."""
    process = start_described()[0]
    described = {**describe_here(), "pid": process.pid, "start-epoch": time.time()}
    monkeypatch.setattr(meticulous, "_read_stat", lambda pid: ("", None, None))
    assert meticulous._is_running(described) is True
    assert meticulous._is_running({**described, "start-epoch": time.time() - 3600}) is False
    for unknown in ({"start-epoch": None}, {"pid": os.getpid(), "start-epoch": time.time() + 3600}):
        assert meticulous._is_running({**described, **unknown}) is True
    monkeypatch.setenv("PATH", "")
    assert meticulous._is_running({**described, "start-epoch": time.time() - 3600}) is True


# --- the scheduler ---

SLURM = {
    "slurmd-nodename": "n1",
    "slurm-cluster-name": "ours",
    "slurm-job-id": 7,
    "slurm-job-uid": os.getuid(),
}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Give a function that sets what Slurm's commands answer; calls of squeue are in the file `asked`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    def write(name, body):
        path = folder / name
        path.write_text("#!/bin/sh\n" + body)
        path.chmod(0o755)

    def answer(jobs="", code=0, cluster="ours", body="", steps=""):
        write(
            "scontrol", f"echo 'Configuration data as of today'; echo 'ClusterName             = {cluster}'\n"
        )
        write(
            "squeue",
            f"""{body}
            case "$*" in *--steps*) printf "{steps}"; exit {code};; esac
            echo "$@" "$SQUEUE_STATES" >>"{tmp_path}/asked"; printf "{jobs}"; exit {code}
            """,
        )

    answer()
    return answer


JOBS = {
    "running": ("7 RUNNING 0", True),
    "suspended": ("7 SUSPENDED 0", True),
    "over": ("8 RUNNING 0", False),
    "requeued": ("7 PENDING 1", False),
    "running-again": ("7 RUNNING 1", False),
    "ending": ("7 COMPLETING 1", None),
    "strange": ("7 RESIZING 0", None),
    "never-started": ("7 PENDING 0", None),
}


@pytest.mark.parametrize("case", JOBS)
def test_scheduler_knows_what_became_of_a_job(slurm, case):
    jobs, expected = JOBS[case]
    slurm("77 RUNNING 0\\n" + jobs + "\\n")
    assert meticulous._is_running(describe_elsewhere(**SLURM), meticulous._Scheduler()) is expected


# What `squeue --steps` of Slurm 22.05 answered while two tasks of the array 1, the jobs 1 and 3, and job 7 ran.
STEPS = """\
1                   1_4.0                                             \\n
1                   1_4.batch                                         \\n
7                   7.1                                               \\n
7                   7.batch                                           \\n
3                   1_3.0                                             \\n
""".replace("\n", "")


@pytest.mark.parametrize(
    "job, step, expected",
    [(7, 1, True), (7, 0, False), (7, None, True), (1, 0, True), (1, 1, False), (3, 0, True)],
)
def test_step_that_has_ended_is_told_from_the_one_that_runs(slurm, job, step, expected):
    slurm("1 RUNNING 0\\n7 RUNNING 0\\n3 RUNNING 0\\n", steps=STEPS)
    process = {**describe_elsewhere(**SLURM), "slurm-job-id": job}
    if step is not None:
        process["slurm-step-id"] = step
    assert meticulous._is_running(process, meticulous._Scheduler()) is expected


@pytest.mark.parametrize("step, expected", [(0, False), (1, True)], ids=["earlier", "living"])
def test_retry_on_another_node_of_the_same_job_is_told_from_a_living_one(slurm, monkeypatch, step, expected):
    slurm("7 RUNNING 0\\n", steps=STEPS)
    for name, value in {"JOB_ID": "7", "CLUSTER_NAME": "ours", "STEP_ID": "1"}.items():
        monkeypatch.setenv("SLURM_" + name, value)
    process = {**describe_elsewhere(**SLURM), "slurm-step-id": step}
    assert meticulous._is_running(process, meticulous._Scheduler()) is expected


@pytest.mark.parametrize(
    "change",
    [
        {"slurm-cluster-name": "theirs"},
        {"slurm-job-uid": os.getuid() + 1},
        {"slurmd-nodename": None},
    ],
    ids=["another-cluster", "another-user", "started-by-salloc"],
)
def test_job_that_would_not_be_listed_is_not_declared_over(slurm, change):
    process = {key: value for key, value in {**describe_elsewhere(**SLURM), **change}.items() if value}
    assert meticulous._is_running(process, meticulous._Scheduler()) is None


def test_scheduler_is_asked_once_and_without_the_defaults_of_the_user(slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("SQUEUE_STATES", "PENDING")
    scheduler = meticulous._Scheduler()
    meticulous._is_running(meticulous._describe_process(), scheduler)
    assert not (tmp_path / "asked").exists()
    for job in range(5):
        assert (
            meticulous._is_running(describe_elsewhere(**{**SLURM, "slurm-job-id": job}), scheduler) is False
        )
    asked = (tmp_path / "asked").read_text()
    assert asked.count("\n") == 1
    assert "PENDING" not in asked


def test_scheduler_is_asked_again_when_its_answer_is_old(slurm, monkeypatch):
    scheduler = meticulous._Scheduler()
    monkeypatch.setattr(meticulous, "_SLURM_ANSWER_LIFE_S", -1)
    slurm("7 RUNNING 0")
    assert meticulous._is_running(describe_elsewhere(**SLURM), scheduler) is True
    slurm("8 RUNNING 0")
    assert meticulous._is_running(describe_elsewhere(**SLURM), scheduler) is False


def test_scheduler_that_fails_says_nothing(slurm):
    slurm(code=1)
    assert meticulous._is_running(describe_elsewhere(**SLURM), meticulous._Scheduler()) is None


def test_scheduler_that_is_not_there_says_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert meticulous._is_running(describe_elsewhere(**SLURM), meticulous._Scheduler()) is None


def test_scheduler_that_hangs_does_not_hang_us(slurm, monkeypatch, capsys):
    monkeypatch.setattr(meticulous, "_TIMEOUT_S", 0.2)
    slurm(body="sleep 2 & exec sleep 2")
    scheduler = meticulous._Scheduler()
    for _ in range(2):
        assert meticulous._is_running(describe_elsewhere(**SLURM), scheduler) is None
    warning = capsys.readouterr().err
    assert warning.startswith("meticulous: Slurm has not answered for 0.2 s:") and warning.count("\n") == 1


def test_process_of_our_own_job_is_gone_after_a_restart(slurm, monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "ours")
    assert meticulous._is_running(describe_elsewhere(**SLURM), meticulous._Scheduler()) is None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert meticulous._is_running(describe_elsewhere(**SLURM)) is False
    assert meticulous._is_running(describe_elsewhere(slurm_restart_count=2, **SLURM)) is None
    assert not (tmp_path / "asked").exists(), "our own job runs, as we know without asking"


# --- one owner ---


def claim(folder):
    return meticulous._claim_attempt(str(folder), meticulous._describe_process())


def write_record(folder, *attempts, status="RUNNING"):
    """Write what the package and our file would find of an experiment with these attempts."""
    (folder / "metadata.json").write_text(json.dumps({"attempts": attempts}))
    (folder / "STATUS").write_text(status)


def write_claim(folder, number, process):
    path = folder / f".attempt-{number}"
    path.mkdir()
    (path / "process.json").write_text(process if isinstance(process, str) else json.dumps(process))


def make_old(folder, age_s):
    for path in folder.iterdir():
        os.utime(str(path), (time.time() - age_s,) * 2)


def list_names(folder):
    return sorted(os.listdir(str(folder)))


@pytest.fixture
def dead(start_described):
    """Return the description of a process that was killed."""
    process, described = start_described()
    process.kill()
    process.wait()
    return described


def test_attempts_are_counted_on(tmp_path):
    write_record(tmp_path, {}, {}, status="SUCCESS")
    assert claim(tmp_path) == 3
    assert list_names(tmp_path) == [".attempt-3", "STATUS", "metadata.json"]


@pytest.mark.parametrize("metadata", ["{}", '{"attempts": null}', '{"attempts": [1]}'], ids=repr)
def test_metadata_without_attempts_tells_of_one(tmp_path, metadata):
    """The package writes no attempts; its runs are the first."""
    (tmp_path / "metadata.json").write_text(metadata)
    assert claim(tmp_path) == 2


@pytest.mark.parametrize("metadata", ["", "[]", "\xff", "[" * 100000], ids=["empty", "list", "bytes", "deep"])
def test_a_folder_with_broken_metadata_is_not_taken(tmp_path, metadata):
    (tmp_path / "metadata.json").write_bytes(metadata.encode("latin-1"))
    with pytest.raises(meticulous.FolderException, match="metadata.json .*fix it"):
        claim(tmp_path)
    assert list_names(tmp_path) == ["metadata.json"]


def test_living_owner_is_named(tmp_path, start_described):
    process, described = start_described()
    write_record(tmp_path, {**described, "start-time": "2020-02-02T02:02:02.000000"})
    make_old(tmp_path, 86400)
    with pytest.raises(meticulous.RunningException) as caught:
        claim(tmp_path)
    text = f"is still running on {described['host']} (pid {process.pid}) since 2020-02-02T02:02:02.000000"
    assert text in str(caught.value)
    assert list_names(tmp_path) == ["STATUS", "metadata.json"]


def test_living_owner_whose_attempt_is_not_in_metadata_yet_is_seen(tmp_path, start_described, dead):
    write_record(tmp_path, dead)
    write_claim(tmp_path, 2, start_described()[1])
    with pytest.raises(meticulous.RunningException):
        claim(tmp_path)


def test_unknown_owner_whose_attempt_is_told_of_nowhere_yet_is_seen(tmp_path):
    write_record(tmp_path, {}, status="SUCCESS")
    write_claim(tmp_path, 2, describe_elsewhere())
    with pytest.raises(meticulous.RunningException):
        claim(tmp_path)


def test_second_attempt_in_the_same_process_is_refused(tmp_path):
    write_record(tmp_path, {}, status="SUCCESS")
    claim(tmp_path)
    with pytest.raises(meticulous.RunningException):
        claim(tmp_path)


def test_dead_owner_is_followed_without_asking(tmp_path, dead, capsys):
    write_record(tmp_path, dead)
    assert claim(tmp_path) == 2
    assert list_names(tmp_path) == [".attempt-2", "STATUS", "metadata.json"]
    assert capsys.readouterr() == ("", "")


def test_owner_that_died_before_metadata_told_of_it_is_followed(tmp_path, dead):
    write_record(tmp_path, dead)
    write_claim(tmp_path, 2, dead)
    assert claim(tmp_path) == 3
    assert list_names(tmp_path) == [".attempt-3", "STATUS", "metadata.json"]


def test_owner_that_has_written_only_its_status_is_seen(tmp_path, start_described, dead):
    write_record(tmp_path, start_described()[1], status="SUCCESS")
    with pytest.raises(meticulous.RunningException):
        claim(tmp_path)
    for number, gone in enumerate((dead, describe_elsewhere()), 2):
        write_record(tmp_path, *[gone] * (number - 1), status="SUCCESS")
        assert claim(tmp_path) == number


def test_stopped_owner_is_alive(tmp_path, start_described):
    process, described = start_described()
    write_record(tmp_path, described)
    make_old(tmp_path, 86400)
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    with pytest.raises(meticulous.RunningException):
        claim(tmp_path)


def test_unknown_owner_is_refused_while_there_are_signs_of_life(tmp_path):
    write_record(tmp_path, describe_elsewhere())
    (tmp_path / "stdout").write_text("")
    make_old(tmp_path, 86400)
    (tmp_path / "stdout").write_text("step 1")
    with pytest.raises(meticulous.RunningException, match="on elsewhere .pid 4"):
        claim(tmp_path)


@pytest.mark.parametrize("age_s", [700, -86400], ids=["silent", "from-the-future"])
def test_unknown_owner_is_followed_with_a_warning(tmp_path, capsys, age_s):
    write_record(tmp_path, describe_elsewhere())
    make_old(tmp_path, age_s)
    assert claim(tmp_path) == 2
    warning = capsys.readouterr().err
    assert warning.startswith(f"meticulous: {tmp_path} ") and "pid 4 on elsewhere" in warning
    assert warning.count("\n") == 1


@pytest.mark.parametrize("offset_s", [-900, 900], ids=["behind", "ahead"])
def test_clock_of_this_node_does_not_decide_who_is_silent(tmp_path, monkeypatch, offset_s):
    """Only the file server's clock dates files: here it is the kernel's, and this process has another."""
    write_record(tmp_path, describe_elsewhere())
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + offset_s)
    with pytest.raises(meticulous.RunningException):
        claim(tmp_path)


@pytest.mark.parametrize("content", ["", "null", "[1]", "{"], ids=repr)
def test_broken_claim_is_named(tmp_path, content):
    """A claim gets its name when it is complete, so that nobody but a user can have written this."""
    write_record(tmp_path, {}, status="SUCCESS")
    write_claim(tmp_path, 2, content)
    with pytest.raises(meticulous.FolderException, match="process.json .*fix it, or move it away"):
        claim(tmp_path)


HOLD = """
import os, signal, sys, meticulous
names, signum = {"__enter__", "__exit__", "hold", "release", "_in_main_thread"}, signal.SIGINT
wanted = line = caught = 0
while line >= wanted:
    wanted, line = wanted + 1, 0
    try:
        sys.settrace(trace)
        with meticulous._Hold():
            pass
        for _ in range(10):  # Python handles a signal at a jump back
            pass
    except KeyboardInterrupt:
        caught += 1
    sys.settrace(None)
    assert not meticulous._session._holders, wanted
assert caught == wanted - 1 > 10, (caught, wanted)
"""


def test_ctrl_c_at_each_line_of_a_hold_leaves_nothing_held():
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(meticulous.__file__)}
    subprocess.check_call([sys.executable, "-c", SEND_AT_LINE + HOLD], env=environment)


def test_scheduler_recalls_by_what_it_was_asked():
    asked = []

    def ask(name):
        asked.append(name)
        return name

    scheduler = meticulous._Scheduler()
    assert [scheduler.recall(ask, name) for name in "abab"] == ["a", "b", "a", "b"]
    assert asked == ["a", "b"]


def test_last_sign_of_life_is_the_newest_of_our_files(tmp_path):
    assert meticulous._last_sign_of_life(str(tmp_path)) is None
    assert meticulous._last_sign_of_life(str(tmp_path / "nowhere")) is None
    for number, name in enumerate(["stdout", "stderr", "STATUS", "summary.json", "metadata.json", "notes"]):
        (tmp_path / name).write_text("")
        os.utime(str(tmp_path / name), (1000 + number,) * 2)
    assert meticulous._last_sign_of_life(str(tmp_path)) == 1004


def test_folder_that_vanished_is_an_error(tmp_path):
    with pytest.raises(OSError, match="nowhere") as caught:
        claim(tmp_path / "nowhere")
    assert caught.value.errno == errno.ENOENT


def test_claim_that_came_too_late_is_given_up(tmp_path, monkeypatch):
    """While this process looked, another one ran attempt 2 and 3, and removed the older claim."""
    write_record(tmp_path, {}, status="SUCCESS")
    check = meticulous._check_gone

    def check_late(*arguments):
        check(*arguments)
        if not (tmp_path / ".attempt-3").exists():
            write_claim(tmp_path, 3, meticulous._describe_process())
            write_record(tmp_path, {}, {}, {"end-time": "t"}, status="SUCCESS")

    monkeypatch.setattr(meticulous, "_check_gone", check_late)
    assert claim(tmp_path) == 4
    assert list_names(tmp_path) == [".attempt-4", "STATUS", "metadata.json"]


def test_what_killed_attempts_left_is_swept_after_an_hour(tmp_path, dead):
    write_record(tmp_path, dead)
    for name in (".STATUS.0123456789abcdef.tmp", ".summary.json.0123456789abcdef.tmp", ".mine.tmp.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / ".new-0123456789abcdef").mkdir()
    (tmp_path / ".new-0123456789abcdef" / "process.json").write_text("{}")
    make_old(tmp_path, 7200)
    (tmp_path / ".metadata.json.fedcba9876543210.tmp").write_text("of a living child")
    for _ in range(40):
        claim(tmp_path)
        write_record(tmp_path, dead, dead, status="SUCCESS")
        shutil.rmtree(str(next(tmp_path.glob(".attempt-*"))))
    living = ".metadata.json.fedcba9876543210.tmp"
    assert list_names(tmp_path) == sorted([living, ".mine.tmp.txt", "STATUS", "metadata.json"])


RACER = """
import sys, meticulous
for line in sys.stdin:
    try:
        print(meticulous._claim_attempt(line.strip(), meticulous._describe_process()), flush=True)
    except meticulous.RunningException as error:
        print("refused", flush=True)
"""


def test_one_of_two_that_come_at_the_same_moment_wins(tmp_path, start, dead):
    racers = [start(RACER), start(RACER)]
    for round_number in range(50):
        folder = tmp_path / str(round_number)
        folder.mkdir()
        write_record(folder, dead)
        for racer in racers:
            racer.stdin.write(f"{folder}\n")
        for racer in random.sample(racers, 2):
            racer.stdin.flush()
        answers = sorted(racer.stdout.readline().strip() for racer in racers)
        assert answers == ["2", "refused"]


def own_again_and_again(folder):
    """Run attempts without end, and leave a file if anybody else runs one at the same time."""
    process = meticulous._describe_process()
    path = os.path.join(folder, "metadata.json")
    while True:
        try:
            number = meticulous._claim_attempt(folder, process)
        except meticulous.RunningException:
            continue
        with open(folder + ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                open(folder + ".two-owners", "w").close()
            attempts = [{}] * (number - 1) + [process]
            meticulous._write_file(path, meticulous._encode_json({"attempts": attempts}))
        attempts[-1] = {**process, "end-time": "now"}
        meticulous._write_file(path, meticulous._encode_json({"attempts": attempts}))


def fork_owner(folder):
    pid = os.fork()
    if pid == 0:
        try:
            own_again_and_again(folder)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    return pid


def test_owners_killed_at_random_moments_block_nobody(tmp_path):
    seed = random.randrange(10**9)
    print("seed", seed)
    chance = random.Random(seed)
    folder = tmp_path / "folder"
    folder.mkdir()
    write_record(folder, {})
    for _ in range(40):
        pids = [fork_owner(str(folder)) for _ in range(3)]
        time.sleep(chance.uniform(0.001, 0.03))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        number = claim(folder)
        write_record(folder, *[{"end-time": "now"}] * number)
        hidden = [name for name in list_names(folder) if not name.endswith(".tmp") and ".new-" not in name]
        assert hidden == [f".attempt-{number}", "STATUS", "metadata.json"]
    assert not (tmp_path / "folder.two-owners").exists()
    assert number > 80, "they did work"
