"""The least that a recorder can do: the files of meticulous.py, with the same in them, by the same git calls.

It replaces files in one step, as a reader needs it. It has no regard for other processes, for how the process
ends, for repositories that are not just right, or for streams that are more than print.
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
        self.folder = os.path.abspath(f"experiments/{number}")
        os.mkdir(self.folder)
        self.describe(head)
        self.results = {}
        self.write_json("metadata.json", self.metadata)
        self.write_json("args.json", args)
        self.write_json("default_args.json", default_args)
        self.write_json("summary.json", self.results)
        self.write("STATUS", "RUNNING")
        sys.stdout = Tee(sys.stdout, os.path.join(self.folder, "stdout"))
        sys.stderr = Tee(sys.stderr, os.path.join(self.folder, "stderr"))
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
        path = os.path.join(self.folder, name)
        with open(path + ".tmp", "w") as file:
            file.write(text)
        os.replace(path + ".tmp", path)

    def write_json(self, name, value):
        self.write(name, json.dumps(value, indent=4))

    def summary(self, **values):
        self.results.update(values)
        self.write_json("summary.json", self.results)

    def finish(self):
        sys.stdout, sys.stderr = sys.stdout.stream, sys.stderr.stream
        end = {"end-time": time.strftime("%Y-%m-%dT%H:%M:%S.000000")}
        self.metadata.update(end)
        self.attempt.update(end, ended="SUCCESS")
        self.write("STATUS", "SUCCESS")
        self.write_json("metadata.json", self.metadata)
