"""The least that a recorder can do: write the same files as meticulous.py, with the same git calls.

The folder and each changed file get their names by one rename, so that a reader sees them only complete: 16 calls
on paths in the experiments directory. Other processes, how the process ends, unusual repositories and streams are
ignored.
"""

import atexit
import json
import os
import pwd
import subprocess
import sys
import time


def read(path):
    with open(path) as file:
        return file.read()


class Tee:
    def __init__(self, stream, path):
        self.stream = stream
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        self.file.write(text)
        return self.stream.write(text)


class Recorder:
    def __init__(self, args, default_args):
        git = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            for command in (["git", "cat-file", "--batch"], ["git", "status", "--porcelain", "-z", "-uno"])
        ]
        head = git[0].communicate(b"HEAD\n")[0].decode()
        if git[1].communicate()[0]:
            sys.exit("The work tree has changes.")
        if "experiments" not in read(".gitignore").split("\n"):
            sys.exit("The experiments are not ignored.")
        number = 1 + max((int(name) for name in os.listdir("experiments") if name.isdigit()), default=0)
        os.close(os.open(f"experiments/.claim-{number}", os.O_CREAT | os.O_EXCL))
        folder = os.path.abspath(f"experiments/{number}")
        self.folder = os.path.abspath(f"experiments/.new-{number}")
        os.mkdir(self.folder)
        self.describe(head)
        self.results = {}
        self.write("metadata.json", json.dumps(self.metadata, indent=4))
        self.write("args.json", json.dumps(args, indent=4))
        self.write("default_args.json", json.dumps(default_args, indent=4))
        self.write("STATUS", "RUNNING")
        sys.stdout = Tee(sys.stdout, os.path.join(self.folder, "stdout"))
        sys.stderr = Tee(sys.stderr, os.path.join(self.folder, "stderr"))
        os.rename(self.folder, folder)
        self.folder = folder
        atexit.register(self.finish)

    def describe(self, head):
        start = {"start-time": time.strftime("%Y-%m-%dT%H:%M:%S.000000"), "command": sys.argv}
        system, host, release, _, machine = os.uname()
        self.attempt = {
            **start,
            "host": host,
            "machine": read("/etc/machine-id")[:8],
            "boot": read("/proc/sys/kernel/random/boot_id").strip(),
            "pid-namespace": os.readlink("/proc/self/ns/pid"),
            "pid": os.getpid(),
            "process-start": int(read("/proc/self/stat").split()[21]),
        }
        self.metadata = {
            "githead-sha": head.split()[0],
            "githead-message": head.partition("\n\n")[2][:-1],
            "description": "",
            **start,
            "place": {
                "host": host,
                "user": pwd.getpwuid(os.getuid()).pw_name,
                "python": "{}.{}.{}".format(*sys.version_info),
                "platform": f"{system} {release} {machine}",
            },
            "attempts": [self.attempt],
        }

    def write(self, name, text):
        with open(os.path.join(self.folder, name), "w") as file:
            file.write(text)

    def replace(self, name, text):
        self.write(name + ".tmp", text)
        path = os.path.join(self.folder, name)
        os.replace(path + ".tmp", path)

    def summary(self, **values):
        self.results.update(values)
        self.replace("summary.json", json.dumps(self.results, indent=4))

    def finish(self):
        sys.stdout, sys.stderr = sys.stdout.stream, sys.stderr.stream
        end = {"end-time": time.strftime("%Y-%m-%dT%H:%M:%S.000000")}
        self.metadata.update(end)
        self.attempt.update(end, ended="SUCCESS")
        self.replace("STATUS", "SUCCESS")
        self.replace("metadata.json", json.dumps(self.metadata, indent=4))
