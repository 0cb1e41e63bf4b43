"""A private Slurm of one machine, on loopback, without systemd: `with Cluster() as cluster: ...`, as root.

It has accounting (slurmdbd and MariaDB), preemption and, where cgroups of version 1 can be made, memory limits.

`python cluster.py install` installs what is missing of the Debian packages.
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PACKAGES = {
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server",
    "srun": "slurm-client",
    "mpirun.openmpi": "openmpi-bin",
    "mpirun.mpich": "mpich",
}
# The daemons are in /usr/sbin, which is not in everybody's PATH.
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
CONFIGURATION = """\
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/{tracking}
TaskPlugin=task/{limits}
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
JobCompType=jobcomp/none
KillWait=3
MinJobAge=7200
SlurmdTimeout=10
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={accounting_port}
AccountingStoragePass={folder}/munge.socket
MaxArraySize=1001
FirstJobId={first_job}
NodeName={host} NodeAddr=127.0.0.1 Port={node_port} CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=DEFAULT Nodes=ALL DefMemPerCPU=100 MaxTime=INFINITE State=UP
PartitionName=main Default=YES PriorityTier=10 PreemptMode=OFF
# What main needs is taken from these: their jobs are cancelled, or requeued.
PartitionName=cheap PriorityTier=1 PreemptMode=CANCEL
PartitionName=spot PriorityTier=1 PreemptMode=REQUEUE
"""
ACCOUNTING = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={accounting_port}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm
"""


def install():
    """Install the packages whose commands are missing."""
    missing = [package for command, package in PACKAGES.items() if not shutil.which(command, path=PATH)]
    if missing:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        apt = ["apt-get", "--quiet", "--yes", "--option", "DPkg::Lock::Timeout=300"]
        subprocess.check_call(apt + ["update"], env=environment)
        subprocess.check_call(apt + ["install", "--no-install-recommends"] + missing, env=environment)


def find_free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_until(is_so, what, timeout_s=60):
    """Ask again and again until *is_so* gives something true, and return that."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = is_so()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s} s in vain for {what}")
        time.sleep(0.05)


def can_connect(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def stop_daemon(daemon):
    daemon.terminate()
    try:
        daemon.wait(timeout=30)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


class Cluster:
    """Slurm's daemons as children of this process, with all their files in a new folder."""

    def __init__(self, cpus=64, name="meticulous"):
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.configuration = self.folder / "slurm.conf"
        self.daemons = []
        self.cpus, self.name = cpus, name
        # As on real clusters, so that nothing of a job survives it. Needs version 1 of cgroups.
        self.has_cgroups = os.access("/sys/fs/cgroup/freezer", os.W_OK)
        self.limits_memory = os.access("/sys/fs/cgroup/memory", os.W_OK)

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error):
        self.stop()

    def environment(self):
        """Give the variables that make Slurm's commands ask this cluster."""
        return {"PATH": PATH, "SLURM_CONF": str(self.configuration)}

    def ask(self, *command):
        """Run a command of Slurm and return what it prints."""
        return subprocess.check_output(command, env={**os.environ, **self.environment()}).decode().strip()

    def submit(self, *arguments, script=None, directory, environment):
        """Submit a batch script, a file's name or text, and return the job's id."""
        command = ["sbatch", "--parsable", *arguments]
        text = f"#!/bin/bash\n{script}\n".encode()
        environment = {**self.environment(), **environment}
        output = subprocess.check_output(command, input=text, cwd=str(directory), env=environment)
        return output.decode().strip()

    def state(self, job):
        """Give the state of a job and how often it was started again: "RUNNING 0"."""
        words = self.ask("squeue", "--noheader", "--states=all", f"--jobs={job}", "--Format=state,restartcnt")
        return " ".join(words.split())

    def start(self):
        assert os.getuid() == 0, "Slurm's daemons start jobs for others, which only root may do."
        for name in ("state", "spool"):
            (self.folder / name).mkdir(mode=0o700)
        ports = dict(zip(("controller", "node", "accounting", "database"), find_free_ports(4)))
        self.write_configuration(ports)
        self.start_munge()
        self.start_accounting(ports)
        self.start_daemon("slurmctld", "-D", "-f", str(self.configuration))
        self.start_node()

    def start_node(self):
        self.start_daemon("slurmd", "-D", "-f", str(self.configuration))
        wait_until(self.is_ready, "the node to be idle")

    def write_configuration(self, ports):
        text = CONFIGURATION.format(
            name=self.name,
            host=os.uname().nodename.split(".")[0],
            folder=self.folder,
            cpus=self.cpus,
            memory=100 * self.cpus,
            # Another cluster on this machine has its jobs in the same tree of cgroups, by their ids.
            first_job=random.randrange(1000, 10**6),
            controller_port=ports["controller"],
            node_port=ports["node"],
            accounting_port=ports["accounting"],
            tracking="cgroup" if self.has_cgroups else "linuxproc",
            limits="cgroup" if self.limits_memory else "none",
        )
        self.configuration.write_text(text)
        limit = "yes" if self.limits_memory else "no"
        cgroup = f"CgroupAutomount=no\nConstrainCores=no\nConstrainRAMSpace={limit}\n"
        (self.folder / "cgroup.conf").write_text(cgroup)

    def start_accounting(self, ports):
        """Start MariaDB and slurmdbd."""
        password = os.urandom(8).hex()
        options = ["--no-defaults", "--user=root", f"--datadir={self.folder}/database"]
        command = ["mariadb-install-db", "--skip-test-db", *options]
        subprocess.check_output(command, stderr=subprocess.STDOUT, env={**os.environ, "PATH": PATH})
        (self.folder / "user.sql").write_text(
            f"CREATE USER 'slurm'@'127.0.0.1' IDENTIFIED BY '{password}';\n"
            "GRANT ALL ON slurm.* TO 'slurm'@'127.0.0.1';\n"
        )
        files = {"socket": "mariadb.socket", "pid-file": "mariadb.pid", "init-file": "user.sql"}
        options += [f"--{option}={self.folder}/{name}" for option, name in files.items()]
        options += ["--bind-address=127.0.0.1", f"--port={ports['database']}", "--skip-name-resolve"]
        self.start_daemon("mariadbd", *options)
        wait_until(lambda: can_connect(ports["database"]), "MariaDB")
        configuration = self.folder / "slurmdbd.conf"
        configuration.touch(mode=0o600)
        configuration.write_text(
            ACCOUNTING.format(
                folder=self.folder,
                password=password,
                accounting_port=ports["accounting"],
                database_port=ports["database"],
            )
        )
        self.start_daemon("slurmdbd", "-D")
        wait_until(lambda: can_connect(ports["accounting"]), "slurmdbd")
        self.ask("sacctmgr", "--immediate", "add", "cluster", self.name)

    def start_munge(self):
        key, socket = self.folder / "munge.key", self.folder / "munge.socket"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        options = [f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "log", "pid", "seed")]
        options += [f"--socket={socket}", "--origin=127.0.0.1"]
        # --force: it is run as root, and below /tmp.
        self.start_daemon("munged", "--foreground", "--force", *options)
        wait_until(socket.exists, "munge")

    def start_daemon(self, *command):
        with open(str(self.folder / (command[0] + ".log")), "wb") as log:
            daemon = subprocess.Popen(
                command,
                env={**os.environ, **self.environment()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.daemons.append(daemon)

    def is_ready(self):
        for daemon in self.daemons:
            if daemon.poll() is not None:
                raise AssertionError(f"{daemon.args[0]} ended:\n{self.read_logs()}")
        try:
            return self.ask("sinfo", "--noheader", "--format=%T") == "idle"
        except subprocess.CalledProcessError:
            return False

    def read_logs(self):
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs)

    def stop(self):
        """End all jobs and daemons, and remove the folder."""
        try:
            if (self.folder / "slurmd.log").exists():
                self.ask("scancel", "--user=root")
                wait_until(lambda: not self.ask("squeue", "--noheader"), "all jobs to end")
        finally:
            for daemon in reversed(self.daemons):
                stop_daemon(daemon)
            shutil.rmtree(str(self.folder))

    def kill_node(self):
        """Kill slurmd, the jobs and what supervises them at once, as a power cut does."""
        slurmd = self.daemons.pop()
        others = {daemon.pid for daemon in self.daemons}
        for pid in {slurmd.pid, *self.list_processes()} - others:
            os.kill(pid, signal.SIGKILL)
        slurmd.wait()

    def list_processes(self):
        """List the processes that belong to this cluster: its daemons, and what runs in its jobs."""
        mark = f"SLURM_CONF={self.configuration}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found


if __name__ == "__main__":
    assert sys.argv[1:] == ["install"], __doc__
    install()
