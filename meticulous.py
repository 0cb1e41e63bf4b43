#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 the meticulous-lite authors
# SPDX-License-Identifier: MIT
# This file is the whole of meticulous-lite: copy it next to your script, or `pip install meticulous-lite`.
"""Record experiments: one folder per run, tied to a git commit, with nothing to install but this file.

Record, in the training script:

    import argparse
    from meticulous import Experiment

    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.1)
    Experiment.add_argument_group(parser)
    experiment = Experiment.from_parser(parser)
    args = parser.parse_args()
    ...
    experiment.summary(loss=0.3)

Read, in a shell or in Python:

    python meticulous.py experiments
    python meticulous.py show -1
    python meticulous.py diff 3 4
    python meticulous.py experiments --filter 'args.lr < 0.1' --sort summary.loss
    Experiments(experiments_directory="experiments").rows()

Each run has a folder, which is the whole interface between the part that writes and the part that reads:

    experiments/12/
        args.json  default_args.json  metadata.json  summary.json  STATUS  stdout  stderr

Needs Python 3.6 or newer and, to record, the git command from 1.8.3 on. The chapters of this file, in the
order of its data; each uses only names from the chapters above it:

    I Ground
        Names and errors     what the file is called and what can go wrong
        Files                write files completely or not at all, and give out ids
        Values               give every value a form in JSON
    II Record
        Process              who am I, who lives, who owns a folder
        Git                  which code runs here
        Arguments            take arguments and defaults out of an argparse parser
        Output               record what is written to sys.stdout and sys.stderr
        Ending               record how the process ends
        Experiment           what a training script uses
    III Read
        Text                 turn single values into text
        Records on disk      read the records of experiments
        Queries              filter, group, sort and compare rows
        Tables               turn rows into CSV, JSON, Markdown, LaTeX and lines for people
    IV Use
        Run                  record any command
        Report               write experiments as one HTML page
        Command line         list, show and compare experiments
"""

# === Names and errors =========================================================
# What the file is called, which names are public, and what can go wrong, in words.

import errno
import os
import re
import sys
import time

__version__ = "1.0.0"
__all__ = [
    "DirtyRepoException",
    "Experiment",
    "ExperimentReader",
    "Experiments",
    "FolderException",
    "GitException",
    "InvalidArgsException",
    "InvalidIdException",
    "MeticulousException",
    "MismatchedArgsException",
    "MismatchedCommitException",
    "QueryException",
    "RunningException",
    "main",
]

# The typing module costs as much as all of this file's other imports, so only type checkers read it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import IO, Any, Dict, Iterator, List, Mapping, Optional, Sequence, Union

_WINDOWS = os.name == "nt"

if globals().get("_watched"):
    raise ImportError("meticulous can't be reloaded while an experiment is open: finish() it first.")

# The package's import paths, for example `from meticulous.experiment import Experiment`. As attributes too,
# which Python 3.6 needs for `import meticulous.experiment as m`.
if __name__ in sys.modules and __name__ != "__main__":
    experiment = experiments = sys.modules[__name__]
    sys.modules[f"{__name__}.experiment"] = sys.modules[f"{__name__}.experiments"] = experiment


class MeticulousException(Exception):
    """The base class of all errors that this module raises on purpose."""


class GitException(MeticulousException):
    """Git can't say which code runs here, or can't commit the line in .gitignore."""


class DirtyRepoException(MeticulousException):
    """Tracked files differ from the commit that is checked out.

    files: their paths relative to *work_tree*; commit: HEAD's 40 hex digits.
    """

    def __init__(self, files: "Sequence[str]", commit: str, work_tree: str) -> None:
        super().__init__(files, commit, work_tree)
        self.files, self.commit, self.work_tree = files, commit, work_tree

    def __str__(self) -> str:
        names = ", ".join(map(repr, self.files[:5])) + (", ..." if len(self.files) > 5 else "")
        count = "1 tracked file" if len(self.files) == 1 else f"{len(self.files)} tracked files"
        verb = "differs" if len(self.files) == 1 else "differ"
        return (
            f"{count} in {self.work_tree} {verb} from commit {self.commit[:7]}: {names}.\n"
            "Commit or stash the changes, or pass --norecord to run without a record."
        )


class MismatchedArgsException(MeticulousException):
    """An experiment can't be resumed with other arguments than it was recorded with."""

    def __init__(self, path: str, differences: "Sequence[str]") -> None:
        super().__init__(path, differences)
        self.path, self.differences = path, differences

    def __str__(self) -> str:
        shown = "; ".join(self.differences[:5]) + ("; ..." if len(self.differences) > 5 else "")
        return (
            f"{self.path} was recorded with other arguments: {shown}.\n"
            "Use the recorded ones to resume, or leave out --experiment-id to start a new experiment."
        )


class MismatchedCommitException(MeticulousException):
    """An experiment can't be resumed on another commit than it was recorded on."""

    def __init__(self, path: str, recorded: str, current: str) -> None:
        super().__init__(path, recorded, current)
        self.path, self.recorded, self.current = path, recorded, current

    def __str__(self) -> str:
        return (
            f"{self.path} was recorded on commit {self.recorded}, but HEAD is {self.current}.\n"
            "Check out the recorded commit to resume, or leave out --experiment-id to start a new experiment."
        )


class InvalidIdException(MeticulousException, ValueError):
    """An experiment id that can't be the name of a folder."""

    def __init__(self, experiment_id: "Any", reason: str) -> None:
        super().__init__(experiment_id, reason)
        self.experiment_id, self.reason = experiment_id, reason

    def __str__(self) -> str:
        shown = repr(self.experiment_id)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return f"{shown} can't be an experiment id: {self.reason}. Use letters, digits, '-' and '_'."


class InvalidArgsException(MeticulousException, ValueError):
    """A value that can't be recorded: arguments, a summary, a description, a status."""


class FolderException(MeticulousException, OSError):
    """A file or folder that can't be used: an OSError too, with its errno where the system gave one."""

    def __init__(self, path: str, reason: str, code: "Optional[int]" = None) -> None:
        super().__init__(code, reason, path)
        self.path, self.reason = path, reason

    def __reduce__(self) -> "Any":
        return type(self), (self.path, self.reason, self.errno)

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"


class RunningException(MeticulousException):
    """An experiment can't be resumed while another process runs it.

    process: what the record says of that process (host, pid); since: its start, local ISO 8601.
    """

    def __init__(self, path: str, process: "Mapping[str, Any]", since: str) -> None:
        super().__init__(path, process, since)
        self.path, self.process, self.since = path, process, since

    def __str__(self) -> str:
        host, pid = self.process.get("host", "an unknown host"), self.process.get("pid", "unknown")
        return (
            f"{self.path} is still running on {host} (pid {pid}) since {self.since}.\n"
            "Wait for its end, or leave out --experiment-id to start a new experiment."
        )


class QueryException(MeticulousException, ValueError):
    """A question that can't be answered: an unknown id or column, a filter that makes no sense."""


# === Files ====================================================================
# Write files completely or not at all, and give out ids, while other processes and nodes do the same.

_CLAIM_PREFIX = b".claim-"
_CLAIM_LIFE_S = 3600
_LONGEST_NAME = 255  # bytes, on all usual file systems
_LONGEST_ID = 200  # bytes, because names of hidden files are longer than the id


def _local_time(timestamp=None):
    """Format seconds since the epoch (default: now) as local ISO 8601 with microseconds."""
    timestamp = time.time() if timestamp is None else timestamp
    seconds, microseconds = divmod(int(timestamp * 1000000), 1000000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(seconds)) + f".{microseconds:06d}"


def _unique_name():
    """Make a name that no other process on any node makes."""
    return os.urandom(8).hex()


def _encodable(text, stream):
    """Put escapes into *text* for what the encoding of *stream* lacks."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _say(text):
    """Write *text* to stderr, if that works."""
    try:
        sys.stderr.write(_encodable(text, sys.stderr))
        sys.stderr.flush()
    except Exception:
        # stderr may be None, closed, full or somebody's broken stand-in: no reason to disturb the program.
        pass


def _warn(text):
    """Say one line on stderr."""
    _say(f"meticulous: {text}\n")


def _explain(error):
    """Put an OSError into a few words."""
    return error.strerror or str(error)


def _write_file(path, content):
    """Put *content* (bytes) at *path* so that any reader sees the old file or the new one, whole.

    Not synced to disk: after a power cut it may be the old one. OSError names *path*.
    """
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{_unique_name()}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException as error:
        _remove_file(temporary)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, path) from error
        raise


def _remove_file(path):
    """Remove the file *path* if it is there."""
    try:
        os.unlink(path)
    except OSError:
        pass


def _write_json(path, value):
    import json

    _write_file(path, json.dumps(value, indent=4).encode("ascii"))


def _read_bytes(path):
    with open(path, "rb", buffering=0) as file:
        return file.read()


def _read_json(path):
    import json

    return json.loads(_read_bytes(path).decode("utf-8"))


def _load_mapping(path):
    """Read a JSON object; one that is missing is empty. Raises FolderException if it is something else."""
    try:
        value = _read_json(path)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise FolderException(path, f"can't be read: {_explain(error)}.", error.errno) from error
    except ValueError as error:
        raise FolderException(path, f"can't be read ({error}): mend it, or move it away.") from error
    if not isinstance(value, dict):
        raise FolderException(path, "holds no JSON object: mend it, or move it away.")
    return value


def _remove_directory(path):
    """Remove a directory if it is empty."""
    try:
        os.rmdir(path)
    except OSError:
        pass


def _make_directories(path, undo):
    """Make the directory *path* and its parents; the ExitStack *undo* is to remove those that are new."""
    if os.path.isdir(path):
        return
    _make_directories(os.path.dirname(path), undo)
    try:
        os.mkdir(path)
    except FileExistsError:
        # Another start made it in the meantime, or it is a file (a broken link counts as one).
        if not os.path.isdir(path):
            raise FolderException(path, "is not a directory: name another, or move it.") from None
    except OSError as error:
        raise FolderException(path, f"can't be made: {_explain(error)}.", error.errno) from error
    else:
        undo.callback(_remove_directory, path)


def _check_id(experiment_id):
    """Return *experiment_id* as the name of a folder, None if there is none. Raises InvalidIdException."""
    if experiment_id is None or experiment_id == "":
        return None
    if isinstance(experiment_id, bool) or not (
        isinstance(experiment_id, str) or hasattr(type(experiment_id), "__index__")
    ):
        raise InvalidIdException(experiment_id, "it is neither a text nor an integer")
    name = str(experiment_id)
    if name.startswith((".", "-")):
        raise InvalidIdException(experiment_id, "it begins with '.' or '-'")
    if any(ord(character) < 32 or character in "/\\\x7f" for character in name):
        raise InvalidIdException(experiment_id, "it has a separator or a control character in it")
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:
        raise InvalidIdException(experiment_id, "this system can't encode it as a file name") from None
    if len(encoded) > _LONGEST_ID:
        raise InvalidIdException(experiment_id, f"it is longer than {_LONGEST_ID} bytes")
    return name


def _list_ids(directory):
    """List what integer ids were given out in *directory*: the largest, and those with a claim."""
    from itertools import filterfalse, repeat

    # As bytes, because only bytes.isdigit means ASCII digits. A loop over 100,000 names, or int(), would
    # take half as long as to list them; filled up with zeros, numbers have the order of texts.
    names = os.listdir(os.fsencode(directory))
    largest = max(map(bytes.zfill, names, repeat(_LONGEST_NAME)), default=b"0")
    if not largest.isdigit():  # a letter comes behind the digits, while a dot, for what is hidden, does not
        largest = max(filter(bytes.isdigit, names), key=int, default=b"0")
    others = filterfalse(bytes.isdigit, names)
    claimed = [name[len(_CLAIM_PREFIX) :] for name in others if name.startswith(_CLAIM_PREFIX)]
    claims = [int(number) for number in claimed if number.isdigit()]
    return max(int(largest), *claims, 0), claims


def _claim_path(directory, number):
    return os.path.join(os.fsencode(directory), _CLAIM_PREFIX + b"%d" % number)


def _claim_id(directory, number):
    """Claim the integer id *number*; False if it was given out before."""
    try:
        os.close(os.open(_claim_path(directory, number), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        return True
    except FileExistsError:
        return False


def _new_ids(directory):
    """Yield integer ids that only the caller has claimed, the next free one first.

    A claim outlives its folder, so that no id is given out twice, and is swept after an hour.
    """
    listed_at = time.time()
    number, claims = _list_ids(directory)
    while True:
        number += 1
        # After losing, try the next number: network file systems may answer a second listing from a cache.
        if not _claim_id(directory, number):
            continue
        if time.time() - listed_at > _CLAIM_LIFE_S / 2:
            # This process slept so long that claims it has not listed may have been swept again.
            listed_at = time.time()
            number, claims = _list_ids(directory)
            continue
        _sweep_claims(directory, number, claims)
        yield number


def _claim_explicit_id(directory, number):
    """Have *number* count as given out, though it was asked for; True if it did not before."""
    if not _claim_id(directory, number):
        return False
    _sweep_claims(directory, number, _list_ids(directory)[1])
    return True


def _sweep_claims(directory, newest, claims):
    """Remove up to 100 claims, lowest first, so much older than *newest* that no start wants them.

    The claim on the highest id stays: it is the memory of what was given out.
    """
    # The file system's clock dates both files, so it need not agree with this node's.
    now = os.stat(_claim_path(directory, newest)).st_mtime
    for number in sorted({newest, *claims})[:-1][:100]:
        path = _claim_path(directory, number)
        try:
            if now - os.stat(path).st_mtime < _CLAIM_LIFE_S:
                return
        except OSError:
            continue
        _remove_file(path)


# === Values ===================================================================
# Give every value a form in JSON, the same in every run.

_ADDRESS = r" at 0x[0-9A-Fa-f]+"


def _to_json(value):
    """Turn *value* into what JSON can hold: dicts, lists, texts, numbers, True, False and None.

    What has no form in JSON becomes text that a person can read, without memory addresses and with sets in
    order. Raises InvalidArgsException for a value that contains itself or is nested too deeply.
    """
    try:
        return _convert(value, ())
    except RecursionError:
        raise InvalidArgsException("A value is nested too deeply to be recorded: flatten it.") from None


def _convert(value, parents):
    if value is None or isinstance(value, bool):
        return value
    # Plain types instead of their subclasses, whose own repr json might write (IntEnum, numpy.float64).
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if id(value) in parents:
        raise InvalidArgsException(f"A {type(value).__name__} refers to itself: JSON can't hold that.")
    parts = _take_apart(value)
    if isinstance(parts, dict):
        return {_convert_key(key): _convert(item, parents + (id(value),)) for key, item in parts.items()}
    if isinstance(parts, list):
        return [_convert(item, parents + (id(value),)) for item in parts]
    return parts if isinstance(parts, (str, int, float)) else _describe(value)


def _is_instance(value, module, name):
    """Say whether *value* is an instance of a class in a module that may not be imported."""
    return isinstance(value, getattr(sys.modules.get(module), name, ()))


def _convert_key(key):
    plain = _convert(key, ())
    return plain if key is None or isinstance(plain, (str, int, float)) else _describe(key)


def _take_apart(value):
    """Return the parts of *value* in a dict or list, an array's scalar as a number, None without parts."""
    from collections.abc import Mapping
    from types import SimpleNamespace

    # Classes are asked and not values, whose __getattr__ may do anything; and no module is imported for them.
    kind = type(value)
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, SimpleNamespace) or _is_instance(value, "argparse", "Namespace"):
        return vars(value)
    if hasattr(kind, "__dataclass_fields__"):
        return {
            field.name: getattr(value, field.name, None) for field in sys.modules["dataclasses"].fields(value)
        }
    if hasattr(kind, "tolist") and hasattr(kind, "dtype"):
        return value.tolist()  # numpy and torch; a scalar's is a number
    return None


def _describe(value):
    """Put a value without a form in JSON into words."""
    kind = type(value)
    try:
        if isinstance(value, (set, frozenset)):
            return _describe_set(value)
        if _is_instance(value, "enum", "Enum") and value.name is not None:
            return f"{kind.__name__}.{value.name}"
        if hasattr(kind, "__fspath__"):
            return os.fsdecode(value)
        if hasattr(kind, "isoformat"):
            return value.isoformat()
        if callable(value) and hasattr(value, "__qualname__"):
            # Functions, methods and classes.
            is_builtin = value.__module__ in (None, "builtins")
            return value.__qualname__ if is_builtin else f"{value.__module__}.{value.__qualname__}"
        # Under `python -bb` str() of bytes is an error.
        text = repr(value) if isinstance(value, (bytes, bytearray)) else str(value)
    except InvalidArgsException:
        raise
    except Exception:
        return f"<{kind.__module__}.{kind.__qualname__}>"  # somebody's __str__ failed
    return re.sub(_ADDRESS, "", text)


def _describe_set(values):
    """Write a set like Python does, numbers and texts in order: the order of hashes changes with each run."""
    plain = [_convert(value, ()) for value in values]
    numbers = sorted(value for value in plain if isinstance(value, (int, float)))
    others = sorted(repr(value) for value in plain if not isinstance(value, (int, float)))
    return "{%s}" % ", ".join([repr(number) for number in numbers] + others) if plain else "set()"


# === Process ==================================================================
# Who am I, who lives, and who owns an experiment's folder.

_JOB = ("SLURM_CLUSTER_NAME", "SLURM_JOB_ID", "SLURM_JOB_UID", "SLURM_RESTART_COUNT", "SLURMD_NODENAME")
_TASK = ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_STEP_ID", "SLURM_PROCID")
_NODES = ("SLURM_JOB_NAME", "SLURM_JOB_PARTITION", "SLURM_JOB_NODELIST")
_GPUS = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "SLURM_JOB_GPUS")
_RANKS = (
    ("RANK", "WORLD_SIZE"),  # torchrun, or by hand
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI
    ("PMI_RANK", "PMI_SIZE"),  # MPICH and its relatives
)


def _read_text(path):
    """Read a small file of the system; '' if it is not there, as on macOS."""
    try:
        return _read_bytes(path).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def _read_link(path):
    """Read a symbolic link of the system; '' if it is not there."""
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _read_stat(pid):
    """Return state, start and stack of a process, as in proc(5); ("", None, None) without /proc.

    The start is in clock ticks since the boot. The stack, of whose address this is only a part, is at another
    place after an exec, which keeps pid and start; it is 0 for those who may not trace the process.
    """
    # The program's name, in parentheses, may itself hold spaces and parentheses.
    fields = _read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if len(fields) < 26:
        return "", None, None
    return fields[0], int(fields[19]), (int(fields[25]) >> 4) % 65536


def _read_variables(names):
    """Return the environment variables that are set, named like "slurm-job-id"; ids and counts as numbers."""
    found = {}
    for name in names:
        value = os.environ.get(name)
        if value:
            is_number = value.isdecimal() and name.endswith(("ID", "COUNT"))
            found[name.lower().replace("_", "-")] = int(value) if is_number else value
    return found


def _read_user():
    """Return the user's name as getpass.getuser() does, without the modules for terminals that it imports."""
    names = map(os.environ.get, ("LOGNAME", "USER", "LNAME", "USERNAME"))
    name = next(filter(None, names), None)
    if name:
        return name
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):
        return None  # in containers a user may have a number and no name


def _read_host():
    return os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")


def _describe_process():
    """Describe this process, as plain JSON, so that no other is ever taken for it."""
    _, start, stack = _read_stat("self")
    process = {
        "host": _read_host(),
        # Only its beginning, because machine-id(5) asks not to show it around.
        "machine": _read_text("/etc/machine-id")[:8],
        "boot": _read_text("/proc/sys/kernel/random/boot_id"),
        "pid-namespace": _read_link("/proc/self/ns/pid"),
        "pid": os.getpid(),
        "process-start": start,
        "process-stack": stack,
        **_read_variables(_JOB),
    }
    return {key: value for key, value in process.items() if value not in ("", None)}


def _describe_place():
    """Describe where this process runs, for people: a white list, never the whole environment."""
    log_file = _read_link("/proc/self/fd/1")
    place = {
        "host": _read_host() or None,
        "user": _read_user(),
        "python": sys.version.split()[0],
        "platform": " ".join(os.uname()[i] for i in (0, 2, 4)) if hasattr(os, "uname") else sys.platform,
        # An empty text counts, because it hides all of them.
        "gpus": next((os.environ[name] for name in _GPUS if name in os.environ), None),
        "log-file": log_file if os.path.isfile(log_file) else None,
        **_read_variables(_JOB + _TASK + _NODES),
    }
    return {key: value for key, value in place.items() if value is not None}


def _register_at_fork(before, in_parent, in_child):
    """Have three functions called whenever this process forks."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)
    elif hasattr(os, "fork"):  # Python 3.6
        original = os.fork

        def fork():
            child = None
            before()
            try:
                child = original()
                return child
            finally:
                (in_child if child == 0 else in_parent)()

        os.fork = fork


def _rank():
    """Return (rank, world size, variable) if this process does one part of a run; None if it does all of it.

    SLURM_PROCID does not count: the tasks of `srun -n 8` are as often eight runs as one.
    """
    for variable, size_variable in _RANKS:
        rank, size = os.environ.get(variable, ""), os.environ.get(size_variable, "")
        if rank.isdecimal() and size.isdecimal() and int(size) > 1:
            # Where Slurm's MpiDefault is pmi2, srun sets PMI_RANK for every program, and PMI_JOBID with it.
            is_by_srun = "PMI_JOBID" in os.environ and size == os.environ.get("SLURM_STEP_NUM_TASKS")
            if not (variable == "PMI_RANK" and is_by_srun):
                return int(rank), int(size), variable
    return None


_OUTSIDE_CONTAINERS = "pid:[4026531836]"  # the number that Linux gives to the first pid namespace
_SILENCE_S = 600  # an owner whom nobody can ask is given up after so long without a sign of life
_SLURM_TIMEOUT_S = 10
_SLURM_ANSWER_LIFE_S = 10


def _agree(process, other, *keys):
    return all(process.get(key) == other.get(key) for key in keys)


def _is_running(process, scheduler=None):
    """Tell whether a process that _describe_process() described runs: True, False, or None if nobody knows.

    *scheduler* is a _Scheduler to ask about a process that can't be seen from here. False is certain.
    A process that is stopped or frozen runs; a zombie does not.
    """
    here = _describe_process()
    if _agree(process, here, "host", "boot", "pid-namespace"):
        return _is_pid_running(process)
    # Containers don't count: on many machines they are called localhost and have their image's machine-id.
    is_contained = "machine" not in here or here.get("pid-namespace") != _OUTSIDE_CONTAINERS
    if not is_contained and _agree(process, here, "host", "machine", "pid-namespace"):
        return False  # the machine was started again since
    if "slurm-job-id" in here and _agree(process, here, "slurm-job-id", "slurm-cluster-name"):
        # Slurm ends the processes of a job before it starts the job again.
        return None if _agree(process, here, "slurm-restart-count") else False
    return scheduler.is_job_running(process) if scheduler else None


def _is_pid_running(process):
    pid = process.get("pid")
    # On Windows os.kill ends the process, whatever the signal; pids below 1 mean groups of processes.
    if _WINDOWS or not isinstance(pid, int) or not 0 < pid < 2**31:
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is there, and another user's
    # Below `unshare --pid` /proc may still be the outer namespace's, with other processes at the same pids.
    is_our_proc = _read_link("/proc/self") == str(os.getpid())
    state, start, stack = _read_stat(pid) if is_our_proc else ("", None, None)
    if not state:
        return True
    has_executed = stack and process.get("process-stack", stack) != stack
    return state not in "ZX" and process.get("process-start", start) == start and not has_executed


class _Scheduler:
    """Ask Slurm about the jobs of this user: once for a whole listing, and only if a record needs it."""

    def __init__(self):
        self._cluster, self._jobs, self._valid_until = "", {}, float("-inf")

    def is_job_running(self, process):
        """Tell whether the job that *process* is part of runs: True, False, or None if Slurm can't tell."""
        # Many sites hide the jobs of other users. What salloc starts on a login node, without a slurmd, may
        # outlive its job.
        if _WINDOWS or "slurmd-nodename" not in process or process.get("slurm-job-uid") != os.getuid():
            return None
        if time.monotonic() > self._valid_until:
            self._cluster, self._jobs = _ask_slurm()
            self._valid_until = time.monotonic() + _SLURM_ANSWER_LIFE_S
        if process.get("slurm-cluster-name") != self._cluster:
            return None  # other clusters have the same numbers
        state, restarts = self._jobs.get(str(process.get("slurm-job-id")), ("GONE", 0))
        # A COMPLETING job that is requeued counts as restarted while its old processes are still being ended.
        has_restarted = restarts > process.get("slurm-restart-count", 0) and state != "COMPLETING"
        if state == "GONE" or has_restarted:
            return False
        return True if state in ("RUNNING", "SUSPENDED") else None


def _ask_slurm():
    """Return the cluster's name and {job id: (state, restarts)} of this user's jobs; ("", {}) if it fails."""
    from functools import partial
    from subprocess import DEVNULL, SubprocessError, check_output

    # These variables are defaults for options, which hide jobs or ask other clusters.
    foreign = ("SQUEUE_", "SLURM_CLUSTERS")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    ask = partial(check_output, env=environment, stderr=DEVNULL, timeout=_SLURM_TIMEOUT_S, errors="replace")
    # --all: also the jobs in partitions that are hidden from this user.
    squeue = ["squeue", "--noheader", "--all", f"--user={os.getuid()}", "--Format=jobid,state,restartcnt"]
    try:
        cluster = re.search(r"^ClusterName *= *(\S+)", ask(["scontrol", "show", "config"]), re.MULTILINE)
        jobs = re.findall(r"^(\d+) +(\w+) +(\d+)", ask(squeue), re.MULTILINE)
    except (OSError, SubprocessError):
        return "", {}
    return cluster.group(1) if cluster else "", {job: (state, int(restarts)) for job, state, restarts in jobs}


def _last_sign_of_life(folder):
    """Return when an experiment's process last wrote to *folder*, in seconds since the epoch, or None."""
    ours = r"stdout|stderr|STATUS|summary\.json|metadata\.json|\.owner-[0-9]+"
    try:
        with os.scandir(folder) as files:
            times = [file.stat().st_mtime for file in files if re.fullmatch(ours, file.name)]
    except OSError:
        return None
    return max(times, default=None)


def _owner_path(folder, number):
    return os.path.join(folder, f".owner-{number}")


def _get_attempts(metadata):
    """Give the list of attempts in *metadata*; [] if the package wrote it, which knows of one only."""
    attempts = metadata.get("attempts")
    is_list = isinstance(attempts, list) and all(isinstance(attempt, dict) for attempt in attempts)
    return attempts if is_list else []


def _count_attempts(folder):
    return len(_get_attempts(_load_mapping(os.path.join(folder, "metadata.json"))))


def _take_ownership(folder, process):
    """Make *process* the one owner of the experiment in *folder*; returns the number of its attempt.

    The owner of attempt 2 is whoever makes the file .owner-2, which nobody does while the process in .owner-1
    may live: that raises RunningException. No file is ever taken away from another owner.
    """
    while True:
        attempts = _count_attempts(folder)
        owners = _read_owners(folder)
        for owner in owners.values():
            _check_gone(folder, owner)
        number = 1 + max([attempts, *owners])
        path = _owner_path(folder, number)
        if _claim_attempt(path, process):
            # While this process slept, others may have run the experiment and removed their files.
            if _count_attempts(folder) == attempts:
                return number
            _remove_file(path)
        time.sleep(0.01)


def _read_owners(folder):
    """Return {number: process} of the .owner-NUMBER files in *folder*; {} for a process in a broken file."""
    owners = {}
    for name in os.listdir(folder):
        prefix, _, number = name.rpartition("-")
        if prefix != ".owner" or not number.isdecimal():
            continue
        try:
            owners[int(number)] = dict(_read_json(os.path.join(folder, name)))
        except FileNotFoundError:
            pass  # released since it was listed
        except (OSError, ValueError, TypeError):
            owners[int(number)] = {}
    return owners


def _check_gone(folder, owner):
    """Raise RunningException if *owner* may still run the experiment in *folder*."""
    is_running = _is_running(owner, _Scheduler())
    if is_running is None:
        # Clocks differ a bit, but a time far in the future is no sign of life.
        sign = _last_sign_of_life(folder)
        is_running = sign is None or abs(time.time() - sign) < _SILENCE_S
        if not is_running:
            name = f"pid {owner.get('pid')} on {owner.get('host')}"
            _warn(f"{folder} counts as abandoned, though nobody can tell whether {name} still runs it.")
    if is_running:
        raise RunningException(folder, owner, owner.get("since", "an unknown time"))


def _claim_attempt(path, process):
    """Make the file *path*, which holds *process*; False if another process has made it."""
    temporary = f"{path}.{_unique_name()}.tmp"
    _write_json(temporary, {**process, "since": _local_time()})
    try:
        # A link never is without its content, at whatever moment this process is killed.
        os.link(temporary, path)
    except FileExistsError:
        # A network file system that lost the answer and asked again says so to the winner, too.
        return os.stat(temporary).st_nlink == 2
    except OSError:  # this file system has no links
        try:
            open(path, "x").close()
        except FileExistsError:
            return False
        os.replace(temporary, path)
    finally:
        _remove_file(temporary)
    return True


def _release_ownership(folder, number):
    """Give up attempt *number*, once its end is recorded, and what killed ones before it have left."""
    for earlier in range(1, number + 1):
        _remove_file(_owner_path(folder, earlier))


# === Git ======================================================================
# Ask git which code runs here, and have it ignore the experiments directory.

# Whom git trusts, where its search upwards ends, where its own programs are, and whose name a commit gets.
# Every other GIT_* is dropped: GIT_DIR, which hooks get, leads elsewhere; GIT_TRACE writes into what we read.
_KEPT_VARIABLES = (
    "GIT_CONFIG_", "GIT_CEILING_DIRECTORIES", "GIT_DISCOVERY_ACROSS_FILESYSTEM", "GIT_EXEC_PATH",
    "GIT_AUTHOR_", "GIT_COMMITTER_",
)  # fmt: skip
# trace2.* in the configuration is switched off by variables only, not by -c.
_GIT_VARIABLES = dict.fromkeys(
    ("GIT_OPTIONAL_LOCKS", "GIT_TERMINAL_PROMPT", "GIT_TRACE2", "GIT_TRACE2_EVENT", "GIT_TRACE2_PERF"), "0"
)
# Hooks and the fsmonitor are programs that may refuse or hang, and signing may ask for a passphrase. Without
# useConfigOnly git makes up a user's name. Versions of git that don't know a setting take no notice of it.
_GIT_COMMAND = [
    "git", "-c", f"core.hooksPath={os.devnull}", "-c", "core.fsmonitor=", "-c", "core.safecrlf=false",
    "-c", "commit.gpgSign=false", "-c", "user.useConfigOnly=true",
]  # fmt: skip


def _git(arguments, directory, stdin=b"", meanwhile=None):
    """Run a git command in *directory*; return its code, stdout (bytes) and stderr. "git said no" is fine.

    The function *meanwhile* is called while it runs.
    """
    import subprocess
    from types import SimpleNamespace

    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or name.startswith(_KEPT_VARIABLES)
    }
    try:
        # A git killed while it holds a lock leaves the lock, which blocks everyone. So not subprocess.run,
        # which kills it at Ctrl-C, and a session of its own, for what kills our process group.
        process = subprocess.Popen(
            _GIT_COMMAND + arguments, cwd=directory, env=dict(kept, LC_ALL="C", **_GIT_VARIABLES),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise GitException(
            f"git can't be run in {directory}: {_explain(error)}.\n"
            "Install git and put it on PATH, or pass --norecord to run without a record."
        ) from error
    with process:
        if meanwhile is not None:
            meanwhile()
        stdout, stderr = process.communicate(stdin)
    return SimpleNamespace(code=process.returncode, stdout=stdout, stderr=stderr.decode("utf-8", "replace"))


def _ask_git(arguments, directory, stdin=b"", meanwhile=None):
    """Run a git command that has no reason to say no; return its stdout."""
    answer = _git(arguments, directory, stdin, meanwhile)
    if answer.code:
        raise _explain_refusal(answer, directory)
    return answer.stdout


def _find_reason(answer):
    """Give the line of git's stderr that says why it refused."""
    fatal = re.search("fatal: (.+)", answer.stderr)
    reason = fatal.group(1) if fatal else answer.stderr.strip()
    return reason.rstrip(".") or "no reason given"


def _explain_refusal(answer, directory):
    """Make the GitException that says what git's refusal means, and what to do."""
    reason = _find_reason(answer)
    trust = re.search(r"git config --global --add safe\.directory .+", answer.stderr)
    if trust:
        what = "belongs to another user, so git doesn't read it"
        remedy = f"If you trust it, run `{trust.group()}`"
    elif "not a git repository" in reason.lower():
        what = f"is in no git repository ({reason})"
        remedy = "Run `git init` there and commit the code, or name another --project-directory"
    elif not answer.code or "work tree" in reason:
        what = "is in a bare repository or inside .git, where no files are checked out"
        remedy = "Name another --project-directory"
    else:
        what, remedy = f"is in a repository that git can't use: {reason}", "Mend it"
    return GitException(f"{directory} {what}.\n{remedy}, or pass --norecord to run without a record.")


def _list_parents(path):
    """Give *path* and all directories above it, from the inside out."""
    yield path
    if os.path.dirname(path) != path:
        yield from _list_parents(os.path.dirname(path))


def _is_top(directory):
    """Say whether *directory* looks like the top of a work tree."""
    path = os.path.join(directory, ".git")
    # A file in submodules and linked work trees. HEAD may be a symbolic link to a branch without a commit.
    return os.path.isfile(path) or os.path.lexists(os.path.join(path, "HEAD"))


def _find_top(directory):
    """Search *directory* and above for the top of a work tree; None if only git can say."""
    if os.environ.get("GIT_CEILING_DIRECTORIES"):
        return None
    for folder in _list_parents(directory):
        if _is_top(folder):
            config = os.path.join(folder, ".git", "config")
            # core.worktree may put the work tree elsewhere.
            is_plain = not os.path.isfile(config) or b"worktree" not in _read_bytes(config).lower()
            return folder if is_plain else None
        # git may not search across file systems; HEAD is in .git itself and in bare repositories.
        if os.path.ismount(folder) or os.path.lexists(os.path.join(folder, "HEAD")):
            return None
    return None


def _find_work_tree(project_directory):
    """Find the top of the work tree that *project_directory* is in, by a path that keeps symbolic links."""
    try:
        given = os.path.abspath(project_directory)
    except FileNotFoundError as error:
        raise GitException("The current directory was deleted.\nChange to one that is there.") from error
    if not os.path.isdir(given):
        raise GitException(f"There is no directory {given}.\nName another --project-directory.")
    top = _find_top(os.path.realpath(given))
    if top is None:
        answer = _git(["rev-parse", "--show-toplevel"], given)
        if answer.code or not answer.stdout.strip():  # up to git 2.18 a bare repository is no error
            raise _explain_refusal(answer, given)
        top = os.path.realpath(os.fsdecode(answer.stdout[:-1]))
    return next((folder for folder in _list_parents(given) if os.path.realpath(folder) == top), top)


def _parse_commit(raw):
    """Take the message out of a raw commit, exactly as it was committed."""
    header, _, message = raw.partition(b"\n\n")
    encoding = header.partition(b"\nencoding ")[2].partition(b"\n")[0].decode("ascii", "replace")
    try:
        return message.decode(encoding or "utf-8", "surrogateescape")
    except (LookupError, ValueError):
        return message.decode("utf-8", "surrogateescape")


def _parse_status(output):
    """List the paths in the output of `git status --porcelain -z`."""
    paths = []
    entries = iter(output.split(b"\0"))
    for entry in entries:
        if entry and not entry.startswith(b"##"):  # git 1.8 obeys status.branch here
            paths.append(entry[3:].decode("utf-8", "surrogateescape"))
        if b"R" in entry[:2] or b"C" in entry[:2]:
            next(entries, None)  # the name before renaming or copying
    return paths


def _read_state(work_tree, at_once=False):
    """Read HEAD of *work_tree* (its sha and message), and the list of tracked files that differ from it.

    HEAD first, so that status compares with that commit unless HEAD has moved since; or both *at_once*.
    """
    from types import SimpleNamespace

    answers = []

    def read_head():
        answers.append(_ask_git(["cat-file", "--batch"], work_tree, b"HEAD\n"))

    if not at_once:
        read_head()
    status = ["status", "--porcelain", "-z", "-uno"]
    changed = _parse_status(_ask_git(status, work_tree, meanwhile=read_head if at_once else None))
    first, _, raw = answers[0].partition(b"\n")
    if b" commit " not in first:
        raise GitException(
            f"{work_tree} has no commit yet.\n"
            "Commit the code (`git add`, `git commit`), or pass --norecord to run without a record."
        )
    sha, _, size = first.decode().split()
    return SimpleNamespace(sha=sha, message=_parse_commit(raw[: int(size)])), changed


_IGNORE_FILE = ".gitignore"
_IGNORE_MESSAGE = "Added experiments directory to .gitignore"
_LOCK_PATIENCE_S = 10  # how long another git process may hold a lock
_NOBODY = ["-c", "user.name=meticulous", "-c", "user.email=meticulous@localhost"]


def _find_ignorable_path(work_tree, directory):
    """Give *directory*, a symbolic link where it is, relative to *work_tree*; None if it is outside."""
    parent, target = os.path.realpath(os.path.dirname(directory)), os.path.realpath(directory)
    top = next(filter(_is_top, _list_parents(parent)), None)
    path = os.path.join(parent, os.path.basename(directory))
    if target == os.path.realpath(work_tree):
        problem = "is the whole work tree"
    elif ".git" in target.split(os.sep):
        problem = "is inside .git"
    elif top is None or not os.path.samefile(top, work_tree):  # outside, or in a submodule
        return None
    elif "\n" in path or path.endswith("\r"):
        problem = "has a name that no line of .gitignore can say"
    else:
        return os.path.relpath(path, top).replace(os.sep, "/")
    raise GitException(f"{directory!r} {problem}.\nName another --experiments-directory.")


def _escape_pattern(path):
    """Turn *path* into a line of .gitignore: itself, but for what means something else there."""
    escaped = "".join("\\" + character if character in "*?[\\" else character for character in path)
    text = escaped.rstrip(" ")
    return ("\\" if text.startswith(("#", "!")) else "") + text + "\\ " * (len(escaped) - len(text))


def _has_line(content, line, is_link=True):
    """Say whether .gitignore's *content* has *line*, maybe with slashes around it that change nothing."""
    ends = (b"",) if is_link else (b"", b"/")  # a slash here means directories, and a link is none to git
    forms = {start + os.fsencode(line) + end for start in (b"", b"/") for end in ends}
    lines = content[3 if content.startswith(b"\xef\xbb\xbf") else 0 :].split(b"\n")
    return any((found[:-1] if found.endswith(b"\r") else found) in forms for found in lines)


def _add_line(content, line):
    """Put *line* at the end of .gitignore's *content*, with the line end that is used there."""
    end = b"\r\n" if b"\r\n" in content else b"\n"
    return content + (end if content and not content.endswith(b"\n") else b"") + os.fsencode(line) + end


def _is_ignored(work_tree, path):
    """Say whether any rule makes git ignore the directory *path*, or its line is in .gitignore already."""
    file = os.path.join(work_tree, _IGNORE_FILE)
    is_link = os.path.islink(os.path.join(work_tree, path))
    # check-ignore costs a process, and says no while a file below is tracked. git follows no link here.
    content = _read_bytes(file) if os.path.isfile(file) and not os.path.islink(file) else b""
    if _has_line(content, _escape_pattern(path), is_link):
        return True
    # A pattern with a slash at its end matches what is not there yet only if asked with one, and a link only
    # can be asked without. ./ because a name may begin with a colon, which is magic.
    answer = _git(["check-ignore", f"./{path}" if is_link else f"./{path}/"], work_tree)
    if answer.code > 1:
        raise _explain_refusal(answer, work_tree)
    return bool(answer.stdout)


def _read_writable(path):
    """Read the file *path*, b"" if there is none; OSError if it could not be written."""
    if os.path.islink(path):
        raise OSError("it is a symbolic link")
    if not os.path.exists(path) and os.access(os.path.dirname(path), os.W_OK):
        return b""
    with open(path, "r+b") as file:
        return file.read()


def _hash_file(work_tree, content):
    """Store *content* as git stores .gitignore, by its settings for line ends; give the name of the blob."""
    command = ["hash-object", "-w", "--path", _IGNORE_FILE, "--stdin"]
    return _ask_git(command, work_tree, content).decode().strip()


def _find_blob(work_tree, revision):
    """Give the name of the blob that is .gitignore in *revision* ("" is the index); "" if there is none."""
    answer = _git(["rev-parse", "-q", "--verify", f"{revision}:{_IGNORE_FILE}"], work_tree)
    return answer.stdout.decode().strip()


def _has_moved(work_tree, head):
    return _ask_git(["rev-parse", "HEAD"], work_tree).decode().strip() != head.sha


def _create_commit(work_tree, head, content):
    """Make a commit that differs from *head* in .gitignore only; nothing refers to it yet."""
    listing = _ask_git(["ls-tree", "-z", head.sha], work_tree)
    ours = re.compile(rb"(?:^|(?<=\0))(\d+) blob \w+\t\.gitignore\0")
    found = ours.search(listing)
    mode = found.group(1) if found else b"100644"
    entry = b"%s blob %s\t.gitignore\0" % (mode, _hash_file(work_tree, content).encode())
    tree = _ask_git(["mktree", "-z", "--missing"], work_tree, ours.sub(b"", listing) + entry)
    command = ["commit-tree", tree.decode().strip(), "-p", head.sha, "-m", _IGNORE_MESSAGE]
    answer = _git(command, work_tree)
    # git refuses if no user name is configured.
    stdout = _ask_git(_NOBODY + command, work_tree) if answer.code else answer.stdout
    return stdout.decode().strip()


def _run_when_unlocked(arguments, work_tree, stdin=b"", lock=""):
    """Run a git command once neither its own lock nor the file *lock* is in the way; OSError if one stays."""
    end = time.monotonic() + _LOCK_PATIENCE_S
    while os.path.lexists(lock) and time.monotonic() < end:
        time.sleep(0.05)
    if os.path.lexists(lock):
        raise OSError(f"{lock} is in the way (remove it if no git runs)")
    answer = _git(arguments, work_tree, stdin)
    while "File exists" in answer.stderr and time.monotonic() < end:
        time.sleep(0.05)
        answer = _git(arguments, work_tree, stdin)
    if answer.code:
        raise OSError(_find_reason(answer))


def _update_files(work_tree, sha, content):
    """Bring index and file to the commit *sha*, which has *content* as .gitignore."""
    path = os.path.join(work_tree, _IGNORE_FILE)
    entry = _ask_git(["ls-tree", "-z", sha, "--", _IGNORE_FILE], work_tree)
    try:
        _run_when_unlocked(["update-index", "-z", "--index-info"], work_tree, entry)
        # In place, which keeps owner, mode and links. Only what is missing, and at its place: no matter how
        # many do it at once.
        with open(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+b") as file:
            there = file.read()
            if content.startswith(there):
                file.seek(len(there))
                file.write(content[len(there) :])
    except OSError as error:
        raise GitException(
            f"{_IGNORE_FILE} is committed in {work_tree}, but not yet updated there: {_explain(error)}.\n"
            "Remove what is in the way; the next start does the rest."
        ) from error


def _commit_line(work_tree, head, line):
    """Commit *line* at the end of .gitignore on top of *head*; do nothing if another start is faster."""
    path = os.path.join(work_tree, _IGNORE_FILE)
    try:
        content = _read_writable(path)
        if _has_line(content, line):
            return
        committed = _find_blob(work_tree, head.sha)
        if committed and committed != _hash_file(work_tree, content):
            raise OSError("git is told to overlook its changes (sparse, assume-unchanged)")
        content = _add_line(content, line)
        sha = _create_commit(work_tree, head, content)
        # A lock of the index would stop us half-way, between HEAD and the index.
        directory = os.fsdecode(_ask_git(["rev-parse", "--git-dir"], work_tree)[:-1])
        lock = os.path.join(work_tree, directory, "index.lock")
        _run_when_unlocked(["update-ref", "-m", _IGNORE_MESSAGE, "HEAD", sha, head.sha], work_tree, lock=lock)
    except (OSError, GitException) as error:
        if _has_moved(work_tree, head):
            return
        reason = str(error).splitlines()[0].rstrip(".")
        raise GitException(
            f"{path} should name the experiments directory, but that can't be committed: {reason}.\n"
            f"Add this line to it and commit it, add it to .git/info/exclude, or pass --norecord: {line}"
        ) from error
    _update_files(work_tree, sha, content)
    _warn(f"committed the line {line} to {path} ({sha[:7]}).")


def _finish_commit(work_tree, head):
    """Do the rest of a commit of ours; False if it is the user's change that makes .gitignore differ."""
    if head.message.strip() != _IGNORE_MESSAGE:
        return False
    committed, before, staged = (_find_blob(work_tree, name) for name in (head.sha, head.sha + "^", ""))
    try:
        content = _read_writable(os.path.join(work_tree, _IGNORE_FILE))
    except OSError:
        return False
    if _hash_file(work_tree, content) != committed:
        lines = _git(["cat-file", "blob", committed], work_tree).stdout.rstrip(b"\r\n")
        content = _add_line(content, os.fsdecode(lines.rpartition(b"\n")[2]))
    elif staged == committed:
        return not _read_state(work_tree)[1]  # another start was faster; or it's the file's mode
    if staged not in (before, committed) or _hash_file(work_tree, content) != committed:
        return False
    _update_files(work_tree, head.sha, content)
    return True


def _prepare_repository(work_tree, experiments_directory, make_directory):
    """Check that *work_tree* is clean, make the experiments directory, have git ignore it; return HEAD."""
    path = _find_ignorable_path(work_tree, experiments_directory)
    while True:
        # Asked before HEAD is read, so that the commit is in HEAD if the line is in the file.
        is_ignored = path is None or _is_ignored(work_tree, path)
        head, changed = _read_state(work_tree, at_once=is_ignored)
        # HEAD is asked for last: what the next commit brings is no change of the user's.
        if changed == [_IGNORE_FILE] and (_finish_commit(work_tree, head) or _has_moved(work_tree, head)):
            continue
        if changed:
            raise DirtyRepoException(changed, head.sha, work_tree)
        make_directory()  # before the commit, and once more after it, which changes nothing
        if is_ignored:
            return head
        _commit_line(work_tree, head, _escape_pattern(path))


# === Arguments ================================================================
# Take the experiment's arguments and defaults out of an argparse parser, which parses only once.

_GROUP = "meticulous"
_OPTIONS = {
    "project_directory": "a directory in the git work tree whose commit is recorded (default: this one)",
    "experiments_directory": "where the experiments' folders are, relative to the project directory",
    "experiment_id": "the experiment to start, or to resume if it is there (default: the next number)",
    "description": "what this run is for, in words",
    "norecord": "run without recording anything",
}


def _add_argument_group(parser, defaults):
    """Add the options for Experiment's own arguments, with *defaults* in the order of the signature."""
    options = {name: "--" + name.replace("_", "-") for name in _OPTIONS}
    if "-" not in parser.prefix_chars:
        raise InvalidArgsException(
            "Experiment's options begin with '-', which is not in the parser's prefix_chars."
        )
    taken = [option for option in options.values() if option in parser._option_string_actions]
    if taken and parser.conflict_handler != "resolve":
        raise InvalidArgsException(
            f"The parser has an option {taken[0]} of its own, which Experiment.add_argument_group adds too.\n"
            "Rename yours, or leave the group out and pass Experiment's arguments to from_parser as keywords."
        )
    group = parser.add_argument_group(_GROUP, "how this run is recorded")
    for (name, text), default in zip(_OPTIONS.items(), defaults):
        action = "store_true" if name == "norecord" else "store"
        group.add_argument(options[name], action=action, default=default, help=text)


def _active_parsers(parser, values):
    """List *parser* and the parsers of the sub-commands that parsing went into."""
    import argparse

    active = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in _chosen_parsers(action, values):
                active += _active_parsers(subparser, values)
    return active


def _split_arguments(parser, namespace):
    """Split what was parsed into the experiment's arguments and Experiment's own."""
    values = dict(vars(namespace))
    groups = [group for active in _active_parsers(parser, values) for group in active._action_groups]
    dests = [action.dest for group in groups if group.title == _GROUP for action in group._group_actions]
    own = {name: values.pop(name) for name in _OPTIONS if name in dests and name in values}
    return values, own


def _find_defaults(parser, values):
    """List the defaults of all options of *parser*, and of the sub-commands chosen in *values*.

    Read off the parser's actions: parsing again would run the user's types twice, and miss required options.
    """
    import argparse

    defaults = {}
    for active in _active_parsers(parser, values):
        found: "Dict[str, Any]" = {}
        for action in active._actions:
            if action.option_strings and action.default is not argparse.SUPPRESS:
                # As in parsing, the first of several options with one destination gives the default.
                found.setdefault(action.dest, _convert_default(action))
        positionals = {action.dest for action in active._actions if not action.option_strings}
        for name, value in active._defaults.items():
            if name not in positionals:
                found.setdefault(name, value)
        defaults.update(found)
    return defaults


def _chosen_parsers(action, values):
    """List the one parser of a sub-command action that parsing went into, if any."""
    import argparse

    if action.dest is not argparse.SUPPRESS:
        return [parser for name, parser in action.choices.items() if name == values.get(action.dest)]
    # Without a destination parsing doesn't tell the name; all that the chosen one sets is there.
    fitting = [
        subparser
        for subparser in action.choices.values()
        if all(part.dest in values for part in subparser._actions if part.default is not argparse.SUPPRESS)
        and all(name in values and values[name] is value for name, value in subparser._defaults.items())
    ]
    return sorted(fitting, key=lambda subparser: len(subparser._actions))[-1:]


def _convert_default(action):
    """Return the default as argparse would: a text goes through `type`, if that does nothing but convert."""
    kind, default = action.type, action.default
    pure_path = getattr(sys.modules.get("pathlib"), "PurePath", ())
    is_path = isinstance(kind, type) and issubclass(kind, pure_path)
    if not isinstance(default, str) or not (is_path or kind in (int, float, complex, bool, str)):
        return default
    try:
        return kind(default)
    except ValueError:
        return default


# === Output ===================================================================
# Record what is written to sys.stdout and sys.stderr.

_APPEND = os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0)
_BAR_INTERVAL_S = 10.0  # how often a file shows a progress bar that is still running
_UNSAVED_LIMIT = 1 << 20  # bytes kept while they can't be written; of the rest there is only this:
_GAP = b"\n[meticulous: output is missing here]\n"

# A line is written when it ends, and uses up time. Who uses it faster than it goes by is a flood, which is
# written in intervals; what was not used is saved up for a traceback or the report of an epoch.
_LINE_S = 0.0001
_SAVED_UP_S = 0.04
_FLOOD_INTERVAL_S = 0.01
_WRITES_PENDING = 1000  # so many are written even if no line ended

# What a carriage return overwrote in a line. "\r\n" ends a line, and after "50%\r" the screen shows 50%.
_OVERWRITTEN = rb"(?m)^.*\r(?=[^\r\n])"

_output_lock: "Any" = None  # made for the first experiment; reentrant, because a signal handler may print


class _OutputFile:
    """A file that output is appended to: `add` bytes, `save` them; `close`. Only the constructor fails.

    *faults* is a list that the files of one experiment share, so that a full disk is reported once.
    """

    def __init__(self, path, faults):
        self.path = path
        self.faults = faults
        self.descriptor = os.open(path, _APPEND | os.O_CREAT, 0o666)
        self.identity = _identify(self.descriptor)
        self.bar = b""  # the last line while it is a progress bar, whose next state may overwrite it
        self.bar_since = 0.0
        self.in_line = False  # did what was added end in the middle of a line?
        self.unsaved = bytearray()

    def add(self, data):
        """Take bytes to be saved, but hold back a progress bar until it is complete or was long unseen."""
        if self.bar or b"\r" in data:
            data = self._hold_bar(self.bar + data)
        self._add_lines(data)

    def _hold_bar(self, data):
        now = time.monotonic()
        if not self.bar:
            self.bar_since = now
        start = data.rfind(b"\n") + 1
        if b"\r" not in data[start:] or now - self.bar_since >= _BAR_INTERVAL_S:
            start = len(data)
        self.bar = re.sub(_OVERWRITTEN, b"\r", data[start:])
        return data[:start]

    def _add_lines(self, data):
        if b"\r" in data:
            # What the file already has of this line can't be taken back, so "\r" overwrites it there as well.
            return_first = b"\r" if self.in_line and re.match(_OVERWRITTEN, data) else b""
            data = return_first + re.sub(_OVERWRITTEN, b"", data)
        if data:
            self.in_line = not data.endswith(b"\n")
            self.unsaved += data

    def save(self):
        """Write what was added. What can't be written now is kept for a later call, up to a limit."""
        try:
            while self.unsaved:
                self._open_again()
                self._write()
        except OSError as error:
            if error.errno is None:
                raise  # not the system's: a signal handler raised TimeoutError, which is the program's own
            if len(self.unsaved) > _UNSAVED_LIMIT:
                self.unsaved[_UNSAVED_LIMIT:] = _GAP
            self._report(error)

    def _report(self, error):
        if not self.faults:
            self.faults.append(error)
            _warn(f"output is no longer recorded in {self.path!r}: {_explain(error)}")

    def _write(self):
        # Taken before it is written: a signal handler runs right after os.write, and if it raises or ends
        # the process, the same text must not be written again.
        data, self.unsaved = self.unsaved, bytearray()
        try:
            written = os.write(self.descriptor, data)
        except OSError:
            self.unsaved = data
            raise
        self.unsaved = data[written:]

    def _open_again(self):
        """Open the file again if the program has closed all descriptors; fail if the file is gone.

        Without this we would write into a file of the program's that got our number since, or into the
        record of a later experiment that got our id.
        """
        if _identify(self.descriptor) != self.identity:
            if _identify(self.path) != self.identity:
                raise OSError(errno.ESTALE, "another file is in its place")
            self.descriptor = os.open(self.path, _APPEND)

    def close(self):
        """Save what was added and close the file."""
        self._add_lines(self.bar)
        self.save()
        try:
            _close(self.descriptor, self.identity)
        except OSError as error:  # a network file system may tell only now that a write has failed
            self._report(error)


def _identify(file):
    """Tell which file a path or descriptor leads to, and if it is in a folder still; None if it is closed."""
    try:
        status = os.stat(file)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        return None
    return status.st_dev, status.st_ino, status.st_nlink > 0


def _close(descriptor, identity):
    """Close a descriptor, unless the program has closed it, and perhaps opened another file since."""
    found = _identify(descriptor)
    if found and found[:2] == identity[:2]:
        os.close(descriptor)


class _Recorder:
    """What went through a tee and is in no file yet, and the files of the experiments that run."""

    def __init__(self):
        self.files = []
        self.pending = []  # str, and the bytes that were written to .buffer
        self.is_flushing = False
        self.due = 0.0  # when the next line is to be written
        self.used_until = 0.0

    def wrap_write(self, write_below):
        """Return a `write` for text that also records."""
        # print calls it twice: a method, or a search for the newline each time, would cost a fifth more.
        files, append, monotonic = self.files, self.pending.append, time.monotonic

        def write(text):
            count = write_below(text)
            if files:
                append(text)
                if monotonic() >= self.due:
                    self.flush_line(str(text))
            return count

        return write

    def wrap_write_bytes(self, write_below):
        """Return a `write` for bytes that also records; a raw stream may take only a part of them."""

        def write(data):
            count = write_below(data)
            if self.files:
                self.pending.append(bytes(data)[:count])
                if time.monotonic() >= self.due:
                    self.flush()
            return count

        return write

    def flush_line(self, text):
        """Flush if *text* ended a line or moved a progress bar, or much has come without."""
        if "\n" in text or "\r" in text or len(self.pending) >= _WRITES_PENDING:
            self.flush()

    def flush(self, is_closing=False):
        """Write what is pending."""
        with _output_lock:
            # We may be in a signal handler that interrupted this very function in this thread. What it
            # printed is written below when it returns; but if it ends the experiment, that is too late.
            if self.is_flushing and not is_closing:
                return
            self.is_flushing = True
            try:
                while self.pending:
                    self._save_pending()
            finally:
                self.is_flushing = False

    def _save_pending(self):
        parts = self.pending[:]
        data = _to_bytes(parts)
        del self.pending[: len(parts)]  # not sooner: the above is long enough for a signal that ends us
        files = self.files[:]
        for file in files:
            file.add(data)
        for file in files:
            file.save()
        self._set_pace(max(1, min(len(parts), data.count(b"\n"))))

    def _set_pace(self, lines):
        """Decide when the next line is to be written."""
        now = time.monotonic()
        # Not more for what a flood has left, so that a traceback soon after it finds something saved up.
        used = min(lines * _LINE_S, _SAVED_UP_S / 2)
        self.used_until = min(max(self.used_until, now - _SAVED_UP_S) + used, now + _LINE_S)
        self.due = now + _FLOOD_INTERVAL_S if self.used_until > now else 0.0


def _to_bytes(parts):
    try:
        return "".join(parts).encode("utf-8", "backslashreplace")
    except TypeError:  # there are bytes among them
        return b"".join(
            part if isinstance(part, bytes) else str(part).encode("utf-8", "backslashreplace")
            for part in parts
        )


_recorders: "List[Any]" = []  # one for each file of an experiment that runs
_latest_tees: "Dict[str, Any]" = {}  # weak references, by the names in sys


class _Tee:
    """A stream that records what is written to it. In all else it is the stream below."""

    __slots__ = ("write", "buffer", "_stream", "_recorder", "__weakref__")

    def __init__(self, stream, recorder, wrap_write):
        self._stream = stream
        self._recorder = recorder
        self.write = wrap_write(stream.write)

    def __getattr__(self, name):
        value = getattr(self._stream, name)
        if name == "buffer":  # asked for the first time: the slot is still empty
            value = self.buffer = _Tee(value, self._recorder, self._recorder.wrap_write_bytes)
        return value

    def __setattr__(self, name, value):
        if name in _Tee.__slots__:
            object.__setattr__(self, name, value)
        else:
            setattr(self._stream, name, value)

    def __delattr__(self, name):
        delattr(self._stream, name)

    @property  # type: ignore[misc]
    def __class__(self):  # isinstance(sys.stdout, io.TextIOWrapper) says what it said before
        return type(self._stream)

    def __reduce_ex__(self, protocol):
        return self._stream.__reduce_ex__(protocol)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        return self._stream.__exit__(*exc_info)

    def writelines(self, lines):
        for line in lines:
            self.write(line)

    def flush(self):
        self._recorder.flush()
        return self._stream.flush()

    def detach(self):
        return _Tee(self._stream.detach(), self._recorder, self._recorder.wrap_write_bytes)


class _Capture:
    """The recording of one experiment's output, from now until `close`.

    stdout, stderr: streams that record and go on working after `close`; None where there was none.
    Raises OSError if the files can't be opened.
    """

    def __init__(self, folder):
        self.faults: "List[OSError]" = []
        self._files = {
            name: _OutputFile(os.path.join(folder, name), self.faults) for name in ("stdout", "stderr")
        }
        _make_lock()
        with _output_lock:
            self.stdout, self.stderr = [_start_recording(name, file) for name, file in self._files.items()]

    def record(self, name, data):
        """Record *data*, bytes that a child wrote to its "stdout" or "stderr"."""
        file = self._files[name]
        file.add(data)
        file.save()

    def close(self):
        """End this recording, and give the streams back if it was the last. Again: nothing."""
        with _output_lock:
            files, self._files = self._files, {}
            for name, file in files.items():
                tee = getattr(self, name)
                if tee is not None:
                    _stop_recording(name, file, tee)
                file.close()


def _get_tee(name, stream):
    """Give a tee on *stream*: the latest again if it is idle, for a logging handler may still write to it."""
    from _weakref import ref  # weakref itself, which has it from there, would make a start slower

    tee = _latest_tees[name]() if name in _latest_tees else None
    if tee is not None and tee._stream is stream and not tee._recorder.files:
        tee.write = tee._recorder.wrap_write(stream.write)  # which may be another since
        return tee
    recorder = _Recorder()
    tee = _Tee(stream, recorder, recorder.wrap_write)
    _latest_tees[name] = ref(tee)
    return tee


def _start_recording(name, file):
    """Have what is written to sys.stdout or sys.stderr recorded in *file*; returns the tee that does it."""
    tee = getattr(sys, name)
    if tee is None:  # pythonw, a daemon
        return None
    if type(tee) is not _Tee:
        tee = _get_tee(name, tee)
        setattr(sys, name, tee)
    tee._recorder.flush()
    tee._recorder.files.append(file)
    _recorders.append(tee._recorder)
    return tee


def _stop_recording(name, file, tee):
    tee._recorder.flush(is_closing=True)
    tee._recorder.files.remove(file)
    _recorders.remove(tee._recorder)
    # If another tool has put its own stream there, ours may be below it: then it only passes on.
    if not tee._recorder.files and getattr(sys, name) is tee:
        setattr(sys, name, tee._stream)


def _make_lock():
    """Make the lock, and see to it that parent and child do not both write what was printed before a fork."""
    global _output_lock
    from threading import RLock

    if _output_lock is not None:
        return
    lock = _output_lock = RLock()

    def prepare():
        lock.acquire()  # else the child could inherit it from a thread that it does not have
        for recorder in _recorders:
            recorder.flush()

    def forget():
        for recorder in _recorders:
            del recorder.pending[:]
            for file in recorder.files:
                file.bar, file.unsaved = b"", bytearray()
        lock.release()

    _register_at_fork(prepare, lock.release, forget)


# === Ending ===================================================================
# Record how the process ends.

# Opcodes; Python 3.12 and 3.13 have another for constants. The module opcode can't be imported when a program
# ends without a file descriptor left.
_RETURNS = {function.__code__.co_code[-2] for function in (lambda value: value, lambda: None)}
_TOOL = 4  # of sys.monitoring; 0, 1, 2 and 5 are for debuggers, coverage, profilers and optimizers

_exit_wrappers: "Dict[Any, Any]" = globals().get("_exit_wrappers", {})  # also after a reload
_asked_codes: "List[Any]" = []  # the exit code, once Python has asked for it
_called_exits: "List[Any]" = []  # (offset, exit code) of the latest exit that the main module itself called


class _Exit(SystemExit):
    """A SystemExit that notices when Python itself asks for its code, because it ends the process."""

    def __getattribute__(self, name):
        value = super().__getattribute__(name)
        if name == "code" and sys._getframe().f_back is None:
            _asked_codes.append(value)
        return value

    def __reduce__(self):
        return SystemExit, self.args


_Exit.__name__ = _Exit.__qualname__ = "SystemExit"
_Exit.__module__ = "builtins"


def _wrap_exit(owner, name):
    """Have the function *owner*.*name* raise an _Exit where it raises a SystemExit."""
    import functools

    global _asked_codes

    original = getattr(owner, name)
    if hasattr(original, "_asked_codes"):
        # Wrapped already, perhaps by another copy of this file: Python asks only one exception for its code.
        _asked_codes = original._asked_codes
        return

    @functools.wraps(original)
    def exit_noticed(*args, **kwargs):
        try:
            return original(*args, **kwargs)
        except SystemExit as error:
            # A thread ends without a traceback only if the type *is* SystemExit.
            if type(error) is not SystemExit or not _in_main_thread():
                raise
            codes = error.args
        raise _Exit(*codes)  # not above, where the other one would be its __context__

    vars(exit_noticed)["_asked_codes"] = _asked_codes
    _exit_wrappers[owner, name] = exit_noticed
    setattr(owner, name, exit_noticed)


def _unwrap_exit(owner, name):
    wrapper = _exit_wrappers.pop((owner, name), None)
    if wrapper is not None and getattr(owner, name) is wrapper:
        setattr(owner, name, wrapper.__wrapped__)


def _in_main_thread():
    import threading

    return threading.get_ident() == threading.main_thread().ident


def _is_multiprocessing_child():
    process = sys.modules.get("multiprocessing.process")
    return process is not None and process.current_process()._parent_pid is not None


def _find_main_frame():
    """Find the frame whose end is the program's: the main module's, or the outermost; None without any."""
    import threading

    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    frames: "List[Any]" = []
    while frame is not None:
        frames.insert(0, frame)
        frame = frame.f_back
    if _is_multiprocessing_child():
        mains = [frame for frame in frames[::-1] if frame.f_code.co_name == "_bootstrap"]
    else:
        mains = [frame for frame in frames if frame.f_globals.get("__name__") == "__main__"]
    return next(iter(mains + frames), None)


def _notice_calls(code, undo):
    """From Python 3.12 on, notice the exit codes that *code* itself makes: `raise SystemExit(main())`."""
    monitoring = getattr(sys, "monitoring", None)
    if monitoring is None or monitoring.get_tool(_TOOL) is not None:
        return
    # The second is what `from sys import exit` gave to a script that imported this file later.
    exits = (SystemExit, getattr(sys.exit, "__wrapped__", None))

    def notice_call(code, offset, function, argument):
        if not any(function is exit for exit in exits):
            return monitoring.DISABLE  # at this place; so a loop costs nothing
        _called_exits[:] = [(offset, None if argument is monitoring.MISSING else argument)]

    events = monitoring.events
    monitoring.use_tool_id(_TOOL, "meticulous")
    undo.callback(monitoring.free_tool_id, _TOOL)
    monitoring.register_callback(_TOOL, events.CALL, notice_call)
    undo.callback(monitoring.register_callback, _TOOL, events.CALL, None)
    monitoring.set_local_events(_TOOL, code, events.CALL)
    undo.callback(monitoring.set_local_events, _TOOL, code, events.NO_EVENTS)


def _has_returned(frame):
    """Say whether the code of *frame* ran to its end; it did not if an exception or a SystemExit left it."""
    return frame.f_lasti >= 0 and frame.f_code.co_code[frame.f_lasti] in _RETURNS


def _goes_through(tb, frame):
    while tb is not None and tb.tb_frame is not frame:
        tb = tb.tb_next
    return tb is not None


def _find_called_exit(frame):
    """List the exit code, if what *frame* did last was to call an exit, or to raise one it had just made."""
    # 8 bytes on are the call and its cache, from Python 3.12 on. SystemExit(0, 1) has a code of its own.
    arguments = frame.f_code.co_code[1:]
    return [code for at, code in _called_exits if frame.f_lasti - at in (0, 8) and arguments[at] < 2]


def _exit_text(code):
    if code is None or (isinstance(code, int) and code == 0):
        return "SUCCESS"
    return f"ERROR\nsys.exit({' '.join(repr(code).splitlines())})"


def _kill_text(number):
    import signal

    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"  # a real-time signal
    return f"ERROR\nkilled by {name} at {_local_time()}"


def _format_exception(exc_type, exc, tb):
    """Give the traceback as Python prints it."""
    try:
        if "traceback" in sys.modules:
            return "".join(sys.modules["traceback"].format_exception(exc_type, exc, tb))
        # Its import takes as long as ours, and may fail at the end, when no file descriptor is left. Up to
        # Python 3.12 the hook does without it, from 3.13 on it has been imported when an exception gets here.
        import io

        stderr, sys.stderr = sys.stderr, io.StringIO()
        try:
            sys.__excepthook__(exc_type, exc, tb)
            return sys.stderr.getvalue()
        finally:
            sys.stderr = stderr
    except Exception:
        return f"{exc_type.__name__}: {_describe(exc)}\n"  # a SyntaxError, say, whose parts are no texts


def _exception_text(exc_type, exc, tb):
    """Give the STATUS for an exception: the traceback as Python prints it, type and message the last line."""
    if isinstance(exc, SystemExit):
        return _exit_text(exc.code)
    text = _format_exception(exc_type, exc, tb).rstrip("\n")
    name = exc_type.__qualname__
    if exc_type.__module__ not in ("builtins", "__main__"):
        name = f"{exc_type.__module__}.{name}"
    if not text.rpartition("\n")[2].startswith(name):
        # The last line was of a longer message, a note, or the frame around an exception group.
        text += "\n" + " ".join(f"{name}: {_describe(exc)}".splitlines())
    return f"ERROR\n{text}"


def _describe_main_ending(frame):
    """Say how the main module, which runs in *frame*, ended, as the text of STATUS."""
    if _asked_codes:
        return _exit_text(_asked_codes[-1])
    if frame is None:
        return "ERROR\nPython ran inside another program, which does not show how it ended: call finish()."
    if _has_returned(frame):
        return "SUCCESS"
    # Python sets it before it calls the excepthook. Others (pytest, IPython) set it too, but to one that
    # begins where they caught the exception, deeper than the main module.
    tb = getattr(sys, "last_traceback", None)
    if _goes_through(tb, frame):
        return _exception_text(sys.last_type, sys.last_value, tb)
    for code in _find_called_exit(frame):
        return _exit_text(code)
    place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
    return f"ERROR\nA SystemExit left {place}, and its code could not be seen: write sys.exit(code) instead."


def _describe_ending(frame):
    """Say how the program ended, the same way; *frame* is its main module's."""
    status = _describe_main_ending(frame)
    if status != "SUCCESS":
        return status
    # Python flushes them once more, after the hooks, and exits with 120 if that fails.
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            if stream is not None and not getattr(stream, "closed", False):
                stream.flush()
        except KeyboardInterrupt:
            pass  # somebody is tired of waiting for it, which need not mean that it fails
        except Exception as error:
            return f"ERROR\nexit code 120: {name} can't be flushed: {error}"
    return status


def _describe_child_ending(frame):
    """Say how a child of multiprocessing, whose end is that of *frame*, ended, as the text of STATUS."""
    exc_type, exc, tb = sys.exc_info()  # before Python 3.13 this is called in a `finally`
    if exc is not None:
        return _exception_text(exc_type, exc, tb)
    code = frame.f_locals.get("exitcode", 0)
    if code == 1:
        return "ERROR\nThe child process ended with exit code 1; what it showed is in stderr."
    return _exit_text(code)


# At import, because `sys.exit(main())` looks sys.exit up before main() makes an experiment.
_wrap_exit(sys, "exit")


_STACKS_FILE = ".signals"

_watched: "List[Any]" = []  # the open experiments, the latest last
_watches_forks = False
_hooks: "Any" = None  # an ExitStack that takes every hook away again, while anything is watched
_signal_holds: "List[Any]" = []
_held_signals: "List[int]" = []


class _SignalHold:
    """Have SIGTERM and SIGHUP wait for the end of a block, so that it is not left half done."""

    def __enter__(self):
        _signal_holds.append(self)

    def __exit__(self, *exc_info):
        _signal_holds.remove(self)
        while _held_signals and not _signal_holds:
            os.kill(os.getpid(), _held_signals.pop())


def _end_watched(describe, subject):
    """End every open experiment of this process, the latest first, with the status describe(subject)."""
    try:
        status = describe(subject)
    except (Exception, KeyboardInterrupt) as error:
        status = f"ERROR\nHow the program ended could not be found out: {error!r}"
    with _SignalHold():
        for experiment in reversed(_watched[:]):
            experiment._end(status)


def _die_of(signum, frame):
    """Record that a signal kills the process, and let it."""
    import faulthandler
    import signal

    if hasattr(faulthandler, "unregister"):
        faulthandler.unregister(signum)  # the first stacks are the ones that tell
    if _signal_holds:
        _held_signals.append(signum)
        return
    _end_watched(_kill_text, signum)
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


def _has_default_action(signum, status):
    """Say whether nobody has set a handler for a signal, in Python or in C; *status* is as in proc(5)."""
    import signal

    handler = signal.getsignal(signum)
    if handler is not signal.SIG_DFL:
        return handler is _die_of  # left from before, because the last finish() was in a thread
    # signal.getsignal() does not know of handlers of C, for example of a user's faulthandler.register().
    caught = status.partition("SigCgt:")[2].split()[:1]
    return not caught or not int(caught[0], 16) >> (signum - 1) & 1


def _set_signals(folder, undo):
    import signal

    status = _read_text("/proc/self/status")
    signums = [signum for signum in (signal.SIGTERM, signal.SIGHUP) if _has_default_action(signum, status)]
    for signum in signums:
        try:
            signal.signal(signum, _die_of)
        except ValueError:
            return  # not in the main thread
        undo.callback(_put_signal_back, signum)
    if signal.SIGTERM in signums:
        _set_stacks(folder, undo)


def _put_signal_back(signum):
    import signal

    handler = signal.getsignal(signum)
    try:
        # Also if it is no longer ours: faulthandler has just put back what C had when it was.
        signal.signal(signum, signal.SIG_DFL if handler is _die_of else handler)
    except ValueError:
        pass  # in a thread: ours stays, and with nothing to record it does what the default action does


def _set_stacks(folder, undo):
    """Have the stacks of all threads written as soon as SIGTERM comes, and then _die_of() called."""
    import faulthandler
    import signal

    # Walking the frames of running code can crash. It did for 15 % of the signals on Python 3.13; on 3.11 for
    # 37 % with another busy thread, and for 0.1 % without the others'; up to 3.10 and from 3.14 on never.
    if sys.version_info[:2] == (3, 13):
        return
    all_threads = not (3, 11) <= sys.version_info < (3, 14)
    path = os.path.join(folder, _STACKS_FILE)
    _remove_file(path)
    try:
        descriptor = os.open(path, _APPEND | os.O_CREAT, 0o666)
    except OSError:
        return
    # After signal.signal(): each replaces the handler of C, but only faulthandler calls the one before it.
    faulthandler.register(signal.SIGTERM, file=descriptor, all_threads=all_threads, chain=True)
    undo.callback(_remove_stacks, path, descriptor, _identify(descriptor), os.getpid())


def _remove_stacks(path, descriptor, identity, process_id):
    import faulthandler
    import signal

    faulthandler.unregister(signal.SIGTERM)
    _close(descriptor, identity)
    if os.getpid() == process_id:
        _remove_file(path)


def _set_hooks(folder):
    global _hooks
    import atexit
    from contextlib import ExitStack

    _hooks, frame = ExitStack(), _find_main_frame()
    exits = [(sys, "exit")]
    if "_sitebuiltins" in sys.modules:
        exits.append((sys.modules["_sitebuiltins"].Quitter, "__call__"))  # of the builtins exit and quit
    for owner, name in exits:
        _wrap_exit(owner, name)
        _hooks.callback(_unwrap_exit, owner, name)
    if _is_multiprocessing_child():
        from multiprocessing.util import Finalize

        # Before Python 3.13 such a child runs no atexit handlers.
        _hooks.callback(Finalize(None, _end_watched, [_describe_child_ending, frame], exitpriority=0).cancel)
        atexit.register(_end_watched, _describe_child_ending, frame)
    else:
        atexit.register(_end_watched, _describe_ending, frame)
        if frame is not None:
            _notice_calls(frame.f_code, _hooks)
    _hooks.callback(atexit.unregister, _end_watched)
    # The first process of a container ignores a signal whose action is the default one.
    if not _WINDOWS and os.getpid() != 1:
        _set_signals(folder, _hooks)


def _take_hooks_away():
    global _hooks

    hooks, _hooks = _hooks, None
    if hooks is not None:
        hooks.close()


def _watch_forks():
    """Have every forked child forget its parent's experiments before anything else runs there."""
    import signal
    from threading import get_ident

    masks = {}

    def block_signals():
        # Python drops a signal that our handler catches in a child before that has come to forget_parent().
        if _hooks is not None:
            masks[get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGHUP))

    def unblock_signals():
        if get_ident() in masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, masks.pop(get_ident()))

    def forget_parent():
        del _watched[:]
        _take_hooks_away()
        unblock_signals()

    _register_at_fork(block_signals, unblock_signals, forget_parent)


def _watch(experiment):
    """Have experiment._end(status) called when this process ends, unless _unwatch() comes first."""
    global _watches_forks

    if not _watches_forks:
        _watch_forks()
        _watches_forks = True
    if _hooks is None:
        _set_hooks(experiment.curexpdir)
    _watched.append(experiment)


def _unwatch(experiment):
    """Forget *experiment*; after the last one take away every hook that is still ours."""
    if experiment in _watched:
        _watched.remove(experiment)
    if not _watched:
        _take_hooks_away()


def _is_reimported_main():
    """Say whether this is a child of multiprocessing that imports the parent's main module again."""
    process = sys.modules.get("multiprocessing.process")
    return process is not None and getattr(process.current_process(), "_inheriting", False)


# === Experiment ===============================================================
# What a training script uses.

_OUR_HIDDEN_FILE = r"\.owner-\d+|\.signals|\..+\.[0-9a-f]{16}\.tmp"
# Everything that a start has written when it is killed before STATUS says RUNNING.
_START_FILES = {"metadata.json", "default_args.json", "summary.json", "args.json", "stdout", "stderr"}


def _check_mapping(name, value):
    """Return a mapping (or an argparse.Namespace) as a dict of plain JSON, which can be written."""
    import json

    plain = _to_json(value)
    try:
        json.dumps(plain)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits
        raise InvalidArgsException(f"{name} can't be written as JSON: {error}.") from None
    if not isinstance(plain, dict):
        raise InvalidArgsException(f"{name} must be a mapping, not {type(value).__name__}.")
    return plain


def _check_directory(name, path):
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidArgsException(f"{name} must be a path, not {path!r}.")


def _check_description(description):
    if description is not None and not isinstance(description, str):
        raise InvalidArgsException(f"The description must be a text, not {description!r}.")
    return description or ""


def _read_if_there(path):
    try:
        return _read_bytes(path)
    except FileNotFoundError:
        return None


def _has_run(folder):
    """Say whether the files in *folder* tell more than the start of a first attempt."""
    metadata = _load_mapping(os.path.join(folder, "metadata.json"))
    if metadata and ("end-time" in metadata or len(_get_attempts(metadata)) != 1):
        return True
    start = {"summary.json": b"{}", "stdout": b"", "stderr": b""}
    return any(_read_if_there(os.path.join(folder, name)) not in (None, text) for name, text in start.items())


def _is_killed_start(folder):
    """Say whether *folder* holds nothing, or only what a start that was killed leaves.

    Raises FolderException if it can't be resumed either: a file, or other files and no args.json.
    """
    try:
        names = os.listdir(folder)
    except NotADirectoryError:
        reason = "is no folder: take another id, or move it away."
        raise FolderException(folder, reason, errno.ENOTDIR) from None
    contents = {name for name in names if not re.fullmatch(_OUR_HIDDEN_FILE, name)}
    is_owned = any(name.startswith(".owner-") for name in names)
    if not contents or (contents <= _START_FILES and is_owned and not _has_run(folder)):
        return True
    if "args.json" not in contents:
        raise FolderException(folder, "has files but no args.json: take another id, or move it away.")
    return False


def _restore_file(path, content):
    try:
        if content is None:
            _remove_file(path)
        elif content != _read_if_there(path):
            _write_file(path, content)
    except OSError:
        pass  # The error that made us restore it says more.


def _discard_start(folder):
    for name in _START_FILES | {"STATUS"}:
        _remove_file(os.path.join(folder, name))


def _find_differences(recorded, current):
    """Say in words how two dicts of plain JSON differ."""
    import json

    current = json.loads(json.dumps(current))  # keys are texts then, as in the file
    differences = []
    in_both = recorded.keys() & current.keys()
    for name in sorted(in_both) + sorted(recorded.keys() ^ current.keys()):
        was, now = (repr(args[name]) if name in args else "not there" for args in (recorded, current))
        # By their texts too, because NaN differs from itself.
        if was != now and ("not there" in (was, now) or recorded[name] != current[name]):
            differences.append(f"{name!r} was {was}, now {now}")
    return differences


def _check_unchanged(folder, args, sha):
    """Raise what forbids to resume the experiment in *folder* with *args* on the commit *sha*."""
    differences = _find_differences(_load_mapping(os.path.join(folder, "args.json")), args)
    if differences:
        raise MismatchedArgsException(folder, differences)
    recorded = _load_mapping(os.path.join(folder, "metadata.json")).get("githead-sha")
    if recorded != sha:
        raise MismatchedCommitException(folder, str(recorded), sha)


def _summarize_status(text):
    """Put a STATUS text on one line: its first word, and the reason."""
    first, _, rest = text.partition("\n")
    reason = rest.strip().rpartition("\n")[2]
    return f"{first}: {reason}" if reason else first


def _list_attempts(folder, metadata):
    """List the attempts that a folder's *metadata* tells of, each with how it ended."""
    only = {key: metadata[key] for key in ("start-time", "end-time", "command") if key in metadata}
    attempts = _get_attempts(metadata) or [only]
    if "ended" not in attempts[-1]:
        status = (_read_if_there(os.path.join(folder, "STATUS")) or b"UNKNOWN").decode("utf-8", "replace")
        attempts[-1]["ended"] = "DEAD" if status == "RUNNING" else _summarize_status(status)
    return attempts


_SMALLEST_BLOCK = 1024  # bytes; a file that holds one has room for so many


class _Attempt:
    """One start of an experiment, from entering its folder to writing its end.

    folder: the experiment's; is_new: False if it is resumed; metadata: what metadata.json holds. What has to
    be taken back if the start fails is pushed on the ExitStack *undo*.
    """

    def __init__(self, directory, name, undo):
        self.process = _describe_process()
        self.is_new = self._enter_folder(directory, name, undo)

    def _enter_folder(self, directory, name, undo):
        """Get the folder *name*, or the next numbered one, for this process alone; True if it is new."""
        if name is None:
            for number in _new_ids(directory):
                undo.callback(_remove_file, _claim_path(directory, number))
                if self._enter_new_folder(os.path.join(directory, str(number)), undo):
                    return True
        if self._enter_new_folder(os.path.join(directory, name), undo):
            if re.fullmatch("[0-9]+", name) and _claim_explicit_id(directory, int(name)):
                undo.callback(_remove_file, _claim_path(directory, int(name)))
            return True
        is_new = _is_killed_start(self.folder)
        self._own(undo)
        # Looked at again, because before it was ours another process may have used it and gone.
        is_new = is_new and _is_killed_start(self.folder)
        if is_new:
            undo.callback(_discard_start, self.folder)
        return is_new

    def _enter_new_folder(self, folder, undo):
        self.folder = folder
        try:
            os.mkdir(folder)
        except FileExistsError:
            return False
        undo.callback(_remove_directory, folder)
        try:
            self._own(undo)
        except RunningException:
            # Between mkdir and here, a process that asked for this very id took the empty folder over.
            return False
        if self.number > 1:
            # It did, and has even gone again.
            _release_ownership(folder, self.number)
            return False
        undo.callback(_discard_start, folder)
        return True

    def _own(self, undo):
        self.number = _take_ownership(self.folder, self.process)
        undo.callback(_release_ownership, self.folder, self.number)
        self._claim = _read_if_there(_owner_path(self.folder, self.number))

    def check_owned(self):
        """Raise OSError if this is another folder by now: deleted, and perhaps made anew by another start."""
        if _read_if_there(_owner_path(self.folder, self.number)) != self._claim:
            raise OSError(errno.ESTALE, "it was deleted or replaced", self.folder)

    def release(self):
        self.check_owned()
        _release_ownership(self.folder, self.number)

    def describe(self, head, description):
        """Set the metadata of this attempt, after what the folder tells of earlier ones."""
        old = {} if self.is_new else _load_mapping(os.path.join(self.folder, "metadata.json"))
        attempts = [] if self.is_new else _list_attempts(self.folder, old)
        now, command = _local_time(), _to_json(getattr(sys, "argv", []))
        self.metadata = {
            **{key: value for key, value in old.items() if key != "end-time"},
            "githead-sha": head.sha,
            "githead-message": head.message,
            "description": description or old.get("description", ""),
            "start-time": old.get("start-time", now),
            "command": command,
            "place": _describe_place(),
            "attempts": attempts + [{"start-time": now, "command": command, **self.process}],
        }

    def write_start(self, args, default_args, undo):
        """Write the files of a start; a folder without STATUS is a start that was killed."""
        if self.is_new:
            parts = {"metadata": self.metadata, "default_args": default_args, "summary": {}, "args": args}
            for name, content in parts.items():
                _write_json(os.path.join(self.folder, f"{name}.json"), content)
            return
        for name in ("metadata.json", "STATUS"):
            path = os.path.join(self.folder, name)
            undo.callback(_restore_file, path, _read_if_there(path))
        # Before metadata tells of a new attempt: killed in between, it must not look as ended as the old one.
        self.write_status("RUNNING")
        _write_json(os.path.join(self.folder, "metadata.json"), self.metadata)

    def write_status(self, status):
        _write_file(os.path.join(self.folder, "STATUS"), status.encode("utf-8", "backslashreplace"))

    def _overwrite_status(self, status):
        """Write STATUS into the file that is there, which has room for a block on a full disk, too."""
        content = status.encode("utf-8", "backslashreplace")
        if len(content) > _SMALLEST_BLOCK:
            tail = content[-_SMALLEST_BLOCK // 2 :].decode("utf-8", "ignore")
            content = f"ERROR\n...{tail}".encode("utf-8")
        with open(os.path.join(self.folder, "STATUS"), "r+b", buffering=0) as file:
            # All of RUNNING at once, so that no reader sees a part of it.
            file.write(content.ljust(len("RUNNING"), b"\n"))
            file.truncate(len(content))

    def write_end(self, status):
        """Write how the attempt ended, and when."""
        self.check_owned()
        # STATUS first: killed in between, the record tells how the run ended, though not when.
        try:
            self.write_status(status)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._overwrite_status(status)
        end = {"end-time": _local_time()}
        self.metadata.update(end)
        self.metadata["attempts"][-1].update(end, ended=_summarize_status(status))
        _write_json(os.path.join(self.folder, "metadata.json"), _to_json(self.metadata))


_FOLDER_VARIABLE = "METICULOUS_EXPERIMENT_FOLDER"

_told_ranks: "List[int]" = []


def _is_other_rank():
    """Say whether another process of the same parallel run records it; the first time also on stderr."""
    rank = _rank()
    if rank is None or rank[0] == 0:
        return False
    if not _told_ranks:
        _told_ranks.append(rank[0])
        _warn(f"rank {rank[0]} of {rank[1]} ({rank[2]}) records nothing; rank 0 does.")
    return True


class Experiment:
    """A run that is being recorded in a folder of its own.

    args: the experiment's arguments, a mapping or an argparse.Namespace.
    default_args: what the arguments are unless the user says otherwise; None if unknown.
    project_directory: a directory in the git work tree whose commit is recorded ('' = the current directory).
    experiments_directory: where the folders are; relative to *project_directory*, or absolute.
    experiment_id: None for the next number; otherwise the experiment to start, or to resume if it is there.
    description: what the run is for, in words.
    norecord: touch nothing at all; files are opened in the current directory.

    Raises DirtyRepoException, GitException, InvalidIdException, InvalidArgsException, RunningException,
    MismatchedArgsException, MismatchedCommitException, FolderException (an OSError); nothing half-made stays.
    """

    def __init__(
        self,
        args: "Any" = None,
        default_args: "Any" = {},  # noqa: B006 the signature is the package's; it is never changed
        project_directory: str = "",
        experiments_directory: str = "experiments",
        experiment_id: "Union[str, int, None]" = None,
        description: str = "",
        norecord: bool = False,
    ) -> None:
        self.norecord = norecord or _is_other_rank()
        self.project_directory = project_directory
        self.experiments_directory = experiments_directory
        self.repo_directory: "Optional[str]" = None
        self.curexpdir = "."
        self.metadata: "Dict[str, Any]" = {}
        self.stdout, self.stderr = sys.stdout, sys.stderr
        self._attempt: "Any" = None  # stays None if nothing is recorded
        self._ended = True
        if self.norecord:
            return
        if _is_reimported_main():
            # A child of multiprocessing runs the script again, to find its functions.
            self.curexpdir = os.environ.get(_FOLDER_VARIABLE, ".")
            return
        _check_directory("project_directory", project_directory)
        _check_directory("experiments_directory", experiments_directory)
        self._start(
            _check_id(experiment_id),
            _check_mapping("args", {} if args is None else args),
            None if default_args is None else _check_mapping("default_args", default_args),
            _check_description(description),
        )

    @staticmethod
    def add_argument_group(
        parser: "argparse.ArgumentParser",
        project_directory: str = "",
        experiments_directory: str = "experiments",
        experiment_id: "Optional[str]" = None,
        description: str = "",
        norecord: bool = False,
    ) -> None:
        """Add the options that say how a run is recorded, in a group of their own, with these defaults.

        Raises InvalidArgsException if the parser has an option of one of these names already.
        """
        defaults = (project_directory, experiments_directory, experiment_id, description, norecord)
        _add_argument_group(parser, defaults)

    @classmethod
    def extract_meticulous_args(
        cls, parser: "argparse.ArgumentParser", arg_list: "Optional[Sequence[str]]" = None
    ) -> "Dict[str, Any]":
        """Parse *arg_list* (default: sys.argv[1:]) and give only what add_argument_group's options say."""
        return _split_arguments(parser, parser.parse_args(arg_list))[1]

    @classmethod
    def from_parser(
        cls,
        parser: "argparse.ArgumentParser",
        arg_list: "Optional[Sequence[str]]" = None,
        capture_defaults: bool = True,
        **meticulous_args: "Any",
    ) -> "Experiment":
        """Parse *arg_list* (default: sys.argv[1:]) and start an experiment with what was parsed.

        The options of add_argument_group win over the keywords, which are those of the constructor. With
        *capture_defaults* the defaults of the parser and of the chosen sub-commands are recorded too.
        """
        args, own = _split_arguments(parser, parser.parse_args(arg_list))
        found = _find_defaults(parser, args) if capture_defaults else None
        defaults = found and {name: value for name, value in found.items() if name not in own}
        return cls(args, defaults, **{**meticulous_args, **own})

    def __repr__(self) -> str:
        return f"<Experiment {self.curexpdir!r}>"

    def __enter__(self) -> "Experiment":
        return self

    def __exit__(self, exc_type: "Any", exc: "Any", tb: "Any") -> bool:
        """End the record. An Exception is recorded, shown on stderr and swallowed, so that a loop goes on."""
        if exc_type is None or issubclass(exc_type, GeneratorExit):
            self.finish()
            return False
        # Up to Python 3.7 a CancelledError is an Exception.
        passes = not isinstance(exc, Exception) or _is_instance(exc, "asyncio", "CancelledError")
        if not passes:
            import traceback  # noqa: F401 is to be there for this:

            _say(_format_exception(exc_type, exc, tb))
        self._end(_exception_text(exc_type, exc, tb))
        return not passes

    def summary(self, summary_dict: "Optional[Mapping[str, Any]]" = None, **values: "Any") -> None:
        """Merge results into summary.json; new keys win. Works after finish() and from several threads too.

        Raises InvalidArgsException for what is not a mapping, FolderException if the file can't be written.
        """
        if self._attempt is None:
            return
        given = _check_mapping("summary", {} if summary_dict is None else summary_dict)
        given.update(_check_mapping("summary", values))
        path = os.path.join(self.curexpdir, "summary.json")
        with self._lock:
            summary = {**_load_mapping(path), **given}
            try:
                if self._is_open():
                    self._attempt.check_owned()
                _write_json(path, summary)
            except OSError as error:
                raise FolderException(path, f"can't be written: {_explain(error)}.", error.errno) from error

    def open(self, file: "Any", mode: str = "r", *args: "Any", **kwargs: "Any") -> "IO[Any]":
        """Open *file* like the builtin open(), relative paths inside the experiment's folder."""
        if not isinstance(file, int):
            folder = os.fsencode(self.curexpdir) if isinstance(os.fspath(file), bytes) else self.curexpdir
            file = os.path.join(folder, file)
        return open(file, mode, *args, **kwargs)  # the builtin: a method's name is no name in here

    def finish(self, status: str = "SUCCESS") -> None:
        """End the record now: 'SUCCESS', 'ERROR', or 'ERROR' and more lines, the last of them the reason.

        Does nothing if the record has ended already. Raises InvalidArgsException for another status.
        """
        if self._attempt is None:
            return
        if status != "SUCCESS" and str(status).partition("\n")[0] != "ERROR":
            raise InvalidArgsException(
                f"{status!r} can't be a status: it is 'SUCCESS', 'ERROR', or 'ERROR\\n' and the reason."
            )
        self._end(status.rstrip("\n"))

    def _start(self, name, args, default_args, description):
        from contextlib import ExitStack
        from functools import partial
        from threading import RLock

        self._lock = RLock()
        self.repo_directory = _find_work_tree(self.project_directory)
        directory = os.path.abspath(os.path.join(self.project_directory, self.experiments_directory))
        self.experiments_directory = directory
        with ExitStack() as undo:
            try:
                make_directory = partial(_make_directories, directory, undo)
                head = _prepare_repository(self.repo_directory, directory, make_directory)
                attempt = _Attempt(directory, name, undo)
                if not attempt.is_new:
                    _check_unchanged(attempt.folder, args, head.sha)
                attempt.describe(head, description)
                attempt.write_start(args, default_args, undo)
                capture = _Capture(attempt.folder)
                undo.callback(capture.close)
                attempt.write_status("RUNNING")
            except OSError as error:
                if isinstance(error, MeticulousException):
                    raise
                path = os.fsdecode(error.filename or directory)
                raise FolderException(path, f"can't be used: {_explain(error)}.", error.errno) from error
            self._attempt, self._capture, self._ended = attempt, capture, False
            self.curexpdir, self.metadata = attempt.folder, attempt.metadata
            self.stdout, self.stderr = capture.stdout, capture.stderr
            undo.callback(_unwatch, self)
            _watch(self)
            undo.pop_all()
        os.environ[_FOLDER_VARIABLE] = self.curexpdir

    def _is_open(self):
        """Say whether this process records the experiment: a forked child, which may outlive it, does not."""
        return not self._ended and os.getpid() == self._attempt.process["pid"]

    def _end(self, status):
        """Write how the run ended: once, only in the process that began it, and without ever raising."""
        if not self._is_open():
            return
        problem = None
        with _SignalHold():
            for step in (self._capture.close, lambda: self._attempt.write_end(status), self._attempt.release):
                try:
                    step()
                except Exception as error:
                    problem = problem or error
            self._ended = True
            _unwatch(self)
            os.environ[_FOLDER_VARIABLE] = (_watched or [self])[-1].curexpdir
        # The tee's warning is enough, as long as STATUS tells of the end.
        if problem is not None and not (self._capture.faults and "end-time" in self.metadata):
            _warn(f"the end of {self.curexpdir} can't be recorded whole: {problem}")


# === Text =====================================================================
# Turn single values into text.

# Of dicts in dicts: far fewer than Python's limit of 1000 calls in calls, and more than anybody looks at.
_DEEPEST = 99


def _seconds_between(start, end):
    """Count the seconds from one ISO 8601 time to another; None if one of them is none."""
    from datetime import datetime

    try:
        if sys.version_info >= (3, 7):
            return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
        # The package leaves microseconds out when they are 0.
        times = [datetime.strptime((text + ".000000")[:26], "%Y-%m-%dT%H:%M:%S.%f") for text in (start, end)]
        return (times[1] - times[0]).total_seconds()
    except (TypeError, ValueError):
        return None


def _format_duration(seconds):
    """Put a number of seconds into two units, '3h 02m'; '' for None."""
    if seconds is None:
        return ""
    seconds = int(seconds)
    if seconds >= 86400:
        return "%dd %02dh" % divmod(seconds // 3600, 24)
    if seconds >= 3600:
        return "%dh %02dm" % divmod(seconds // 60, 60)
    return "%dm %02ds" % divmod(seconds, 60) if seconds >= 60 else f"{seconds}s"


def _is_missing(value):
    return value is None or value != value


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _dump_json(value, indent=None):
    """Write valid JSON: NaN and infinity, which it lacks, become null, and what is too deep '...'."""
    import json

    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except (ValueError, RecursionError):
        return json.dumps(_simplify(value, _DEEPEST), indent=indent)


def _simplify(value, levels):
    if isinstance(value, (dict, list)) and not levels:
        return "..."
    if isinstance(value, dict):
        return {key: _simplify(item, levels - 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_simplify(item, levels - 1) for item in value]
    return None if isinstance(value, float) and value - value != 0 else value


def _dump_cell(value):
    """Put a value into the text that a CSV file has for it."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    return _dump_json(value) if isinstance(value, (dict, list)) else str(value)


def _show_controls(text):
    """Make control characters and what else can't be printed visible, so that a terminal never obeys them."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _format_value(value, digits=15):
    """Put a value into a text for people, floats with so many digits."""
    if isinstance(value, float):
        return "%.*g" % (digits, value)
    return _show_controls(_dump_cell(value))


def _is_ascii(text):
    return len(text) == len(text.encode("utf-8", "replace"))


def _width(text):
    """Count the cells of a terminal that *text* takes."""
    if _is_ascii(text):
        return len(text)
    from unicodedata import category, east_asian_width

    return sum(0 if category(c) in ("Mn", "Me") else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def _cut(text, width):
    """Cut *text* to *width* cells of a terminal, with '...' in the place of what was cut."""
    if _width(text) <= width:
        return text
    end = "..."[:width]
    text = text[: width - len(end)]
    while _width(text) > width - len(end):
        text = text[:-1]
    return text + end


# === Records on disk ==========================================================
# Read records: each file when an attribute first needs it, and as far as possible.

_USUAL_READ = 64 * 1024
_LONGEST_READ = 10 * 1024 * 1024
# Without O_NONBLOCK, a named pipe in the place of a file would make every listing wait for ever.
_READ_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_HEADER = ("expid", "sha", "start_time", "status", "status_message")
_GROUPS = ["header", "args", "default_args", "metadata", "summary"]


class _lazy:
    """An attribute that is computed when first asked for, and kept; it can be set like any other."""

    def __init__(self, compute):
        self.compute = compute

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, instance, owner=None):
        if instance is None:
            return self
        value = instance.__dict__[self.name] = self.compute(instance)
        return value


def _read_bounded(path):
    """Read a file of at most 10 MB. Raises OSError, or ValueError if it is larger."""
    descriptor = os.open(path, _READ_FLAGS)
    try:
        content = os.read(descriptor, _USUAL_READ)
        if len(content) == _USUAL_READ:
            content += os.read(descriptor, _LONGEST_READ)
    finally:
        os.close(descriptor)
    if len(content) > _LONGEST_READ:
        raise ValueError("larger than 10 MB")
    return content


def _read_tail(path, lines):
    """Read the last *lines* lines of a text file, from its last 64 KB; [] if it can't be read."""
    try:
        with open(os.open(path, _READ_FLAGS), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _USUAL_READ))
            text = file.read(_USUAL_READ).decode("utf-8", "replace")
    except OSError:
        return []
    return text.rstrip("\n").split("\n")[-lines:] if text else []


def _describe_signal(path):
    """Say where SIGTERM met a process, by what faulthandler wrote to the file *path*; '' if it is empty."""
    text = "\n".join(_read_tail(path, 1000))
    # "Stack" where only the interrupted thread's is written.
    found = re.search(r'^(?:Current thread|Stack) .*\n *File "(.*)", line (\d+) in (.*)', text, re.MULTILINE)
    if found:
        return "SIGTERM in {2}, {0} line {1}".format(*found.groups())
    return "SIGTERM" if text else ""


class _Shared:
    """What the readers of one listing share."""

    def __init__(self):
        from json import JSONDecoder

        self.scheduler = _Scheduler()
        # Half again as fast as json.loads(), which looks for options, UTF-16 and white space first.
        self.parse = JSONDecoder().raw_decode

    def __reduce__(self):
        # For copies of readers, and other processes; a JSON parser can't be pickled.
        return _Shared, ()


class ExperimentReader:
    """A recorded experiment.

    What is missing or broken reads as empty, and `problems` says so, of the files that were read so far. A
    record that says RUNNING has the status DEAD if its process is gone, and RUNNING? if nobody can tell.
    """

    def __init__(self, curexpdir: "Union[str, os.PathLike[str]]") -> None:
        self.curexpdir: str = os.fspath(curexpdir).rstrip("/") or "/"
        self.expid: str = os.path.basename(self.curexpdir)
        self.problems: "List[str]" = []

    def __repr__(self) -> str:
        return self.curexpdir

    @_lazy
    def args(self) -> "Dict[str, Any]":
        return self._read_dict("args.json")

    @_lazy
    def default_args(self) -> "Optional[Dict[str, Any]]":
        """The recorded defaults; None where they are unknown."""
        return self._read_dict("default_args.json")

    @_lazy
    def metadata(self) -> "Dict[str, Any]":
        """What metadata.json says; the command is one text."""
        metadata = self._read_dict("metadata.json")
        if isinstance(metadata.get("command"), list):
            metadata["command"] = " ".join(map(str, metadata["command"]))
        return metadata

    @_lazy
    def summary(self) -> "Dict[str, Any]":
        return self._read_dict("summary.json")

    @_lazy
    def status(self) -> str:
        return self._outcome[0]

    @_lazy
    def status_message(self) -> str:
        return self._outcome[1]

    @_lazy
    def sha(self) -> "Optional[str]":
        return self.metadata.get("githead-sha")

    @_lazy
    def start_time(self) -> str:
        """The recorded start, or the time of the folder where there is none."""
        start = self.metadata.get("start-time")
        if isinstance(start, str):
            return start
        try:
            return _local_time(os.stat(self.curexpdir).st_ctime)
        except OSError:
            return ""

    @_lazy
    def duration(self) -> "Optional[float]":
        """Seconds of work in all attempts, up to now for a running one; None where nobody knows."""
        attempts = self._list_attempts()
        ends = [attempt.get("end-time") for attempt in attempts]
        if not ends[-1]:
            sign = time.time() if self.status == "RUNNING" else _last_sign_of_life(self.curexpdir)
            ends[-1] = None if sign is None else _local_time(sign)
        starts = [attempt.get("start-time") for attempt in attempts]
        seconds = [value for value in map(_seconds_between, starts, ends) if value is not None]
        return sum(seconds) if seconds else None

    @_lazy
    def metrics(self) -> "List[Dict[str, Any]]":
        import json

        try:
            with open(self.curexpdir + "/metrics.jsonl", encoding="utf-8") as file:
                return json.loads("[" + ",".join(file.read().splitlines()) + "]")
        except (OSError, ValueError):
            return []

    def open(self, file: "Any", mode: str = "r", *args: "Any", **kwargs: "Any") -> "IO[Any]":
        """Open *file* like the builtin open(), relative paths inside the experiment's folder."""
        import builtins

        return builtins.open(os.path.join(self.curexpdir, file), mode, *args, **kwargs)

    def refresh_status(self) -> None:
        """Forget STATUS, and metadata.json with it."""
        for name in ("status", "status_message", "_outcome", "metadata", "duration"):
            self.__dict__.pop(name, None)

    def refresh_summary(self) -> None:
        """Forget summary.json."""
        self.__dict__.pop("summary", None)

    def df_vars(self) -> "Dict[str, Any]":
        """Give everything there is, in the groups that a table's columns have."""
        header = {field: getattr(self, field) for field in _HEADER}
        return {"header": header, **{group: getattr(self, group) for group in _GROUPS[1:]}}

    @_lazy
    def _shared(self):
        return _Shared()

    def _note(self, name, error):
        note = f"{name}: {_explain(error) if isinstance(error, OSError) else error}"
        if note not in self.problems:
            self.problems.append(note)

    def _read(self, name):
        """Read the file *name*; None, and a note, if it can't be read."""
        try:
            return _read_bounded(self.curexpdir + "/" + name)
        except (OSError, ValueError) as error:
            is_optional = name in ("default_args.json", "summary.json")
            if not (is_optional and isinstance(error, FileNotFoundError)):
                self._note(name, error)
            return None

    def _read_dict(self, name):
        """Read a JSON object; empty, and a note, if there is none."""
        content = self._read(name)
        if content is None:
            return {}
        try:
            text = content.decode("utf-8").strip()
            value, end = self._shared.parse(text)
            if end < len(text):
                raise ValueError("holds more than one value")
            if isinstance(value, dict) or (value is None and name == "default_args.json"):
                return value
            self._note(name, f"holds a {type(value).__name__}, not an object")
        except (ValueError, RecursionError) as error:
            self._note(name, error)
        return {}

    def _read_status(self):
        """Give the first line of STATUS and, if there are more, the last."""
        content = self._read("STATUS")
        lines = (content or b"").decode("utf-8", "replace").strip().split("\n")
        if content is not None and not lines[0]:
            self._note("STATUS", "is empty")
        return lines[0].strip() or "UNKNOWN", lines[-1].strip() if len(lines) > 1 else ""

    @_lazy
    def _outcome(self):
        """The status and its message: what STATUS says or, of a process that is gone, what became of it."""
        outcome = self._read_status()
        if outcome[0] != "RUNNING":
            return outcome
        attempt = self._list_attempts()[-1]
        if self._is_running(attempt, self._shared.scheduler):
            return outcome
        # Since they were read it may have ended, or gone on in another process, for which the scheduler's
        # answer may be too old.
        self.__dict__.pop("metadata", None)
        outcome, latest = self._read_status(), self._list_attempts()[-1]
        if outcome[0] != "RUNNING":
            return outcome
        is_running = self._is_running(latest, self._shared.scheduler if latest == attempt else None)
        return outcome if is_running else self._describe_end(latest, is_running is False)

    def _describe_end(self, attempt, is_certain):
        """Give the status and the message of a process that is not known to run."""
        signal = _describe_signal(os.path.join(self.curexpdir, _STACKS_FILE))
        sign = _last_sign_of_life(self.curexpdir)
        age = "" if sign is None else _format_duration(time.time() - sign)
        message = f"last sign of life {age} ago" if age else "no sign of life"
        if isinstance(attempt.get("host"), str):
            message += f" on {attempt['host']}"
        return "DEAD" if is_certain or signal else "RUNNING?", signal or message

    def _is_running(self, attempt, scheduler):
        # If STATUS says RUNNING after an attempt has ended, the next one is about to begin.
        return _is_running(attempt, scheduler) if "host" in attempt and "end-time" not in attempt else None

    def _list_attempts(self):
        """List the attempts; that of a record without a list, one by the package, is metadata itself."""
        return _get_attempts(self.metadata) or [self.metadata]


def _list_folders(directory):
    """List the names of the experiments in *directory*. Raises FolderException."""
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries if entry.name[0] != "." and _is_experiment(entry)]
    except OSError as error:
        raise FolderException(directory, f"can't be listed: {_explain(error)}.", error.errno) from error


def _is_experiment(entry):
    # Files beside the experiments, an exported table say, are none; links that lead nowhere are worth a note.
    try:
        return not entry.is_file() or entry.name.isdigit()
    except OSError:
        return True


def _flatten(values, levels):
    """Open the dicts in a dict, *levels* deep: {'args': {'lr': 1}} becomes {'args.lr': 1}."""
    if not levels:
        return values
    flat: "Dict[str, Any]" = {}
    for name, value in values.items():
        if isinstance(value, dict):
            # Ten thousand rows have the same few names.
            opened, prefix = _flatten(value, levels - 1), name + "."
            flat.update({sys.intern(prefix + key): item for key, item in opened.items()})
        else:
            flat[name] = value
    return flat


def _make_row(groups, levels):
    """Make a row of a reader's groups (or None); *levels* of dicts inside of values are opened too."""
    return _flatten({group: values for group, values in groups.items() if values}, 1 + min(levels, _DEEPEST))


def _to_dataframe(rows, levels, is_flat=False, columns=None):
    """Make a DataFrame of *rows*, its columns split into 2 + *levels* levels, the rest filled with ''."""
    from importlib import import_module

    try:
        pandas = import_module("pandas")
    except ImportError as error:
        text = "A DataFrame needs pandas, which is not here; rows() needs nothing."
        raise MeticulousException(text) from error
    frame = pandas.DataFrame(rows, columns=columns)
    if "header.expid" in frame:
        frame.index = pandas.Index(frame.pop("header.expid"), name=("header", "expid"))
    if not is_flat:
        names = [(name.split(".", levels + 1) + [""] * (levels + 1))[: levels + 2] for name in frame.columns]
        # Not from_tuples(), for which there has to be a column.
        frame.columns = pandas.MultiIndex.from_arrays(list(zip(*names)) or [()] * (levels + 2))
    return frame


class Experiments:
    """The experiments of a directory; iterates over their readers, by start time.

    experiments_directory: relative to the current directory; None is 'experiments' in *project_directory*.
    reader: what makes a reader of a folder's path.

    Raises FolderException if the directory can't be listed.
    """

    def __init__(
        self,
        project_directory: str = "",
        experiments_directory: "Optional[str]" = None,
        reader: "Any" = ExperimentReader,
    ) -> None:
        self.project_directory = project_directory
        self.experiments_directory = experiments_directory or os.path.join(project_directory, "experiments")
        self.reader = reader
        self.refresh_experiments()

    def refresh_experiments(self) -> None:
        """List the directory again, and forget what was read."""
        self._readers, shared = {}, _Shared()
        prefix = os.path.join(self.experiments_directory, "")
        for name in _list_folders(self.experiments_directory):
            reader = self._readers[name] = self.reader(prefix + name)
            reader._shared = shared
        self.__dict__.pop("experiments", None)

    @_lazy
    def experiments(self) -> "Dict[str, ExperimentReader]":
        """The readers by id, in the order of their start times."""
        return dict(sorted(self._readers.items(), key=lambda item: (item[1].start_time, item[0])))

    def __getitem__(self, experiment_id: str) -> ExperimentReader:
        return self._readers[str(experiment_id)]

    def __contains__(self, experiment_id: object) -> bool:
        return str(experiment_id) in self._readers

    def __len__(self) -> int:
        return len(self._readers)

    def __iter__(self) -> "Iterator[ExperimentReader]":
        return iter(self.experiments.values())

    def __repr__(self) -> str:
        return f"<Experiments in {self.experiments_directory!r}>"

    def rows(self, normalize_json_values: int = 0) -> "List[Dict[str, Any]]":
        """Give each experiment as a flat dict, {'header.expid': '7', 'args.lr': 0.1, ...}.

        normalize_json_values: how many levels of dicts inside of values become columns of their own.
        """
        return [_make_row(reader.df_vars(), normalize_json_values) for reader in self]

    def as_dataframe(self, normalize_json_values: int = 0) -> "Any":
        """Give a pandas DataFrame, indexed by ('header', 'expid').

        Its columns have 2 + *normalize_json_values* levels: ('args', 'lr'). Raises IndexError if there is
        nothing, MeticulousException without pandas.
        """
        rows = self.rows(normalize_json_values)
        if not rows:
            raise IndexError(f"There are no experiments in {self.experiments_directory}.")
        return _to_dataframe(rows, normalize_json_values)


def _find_directory(project_directory):
    """Find the directory 'experiments' in *project_directory* or above it, up to the top of the project."""
    start = folder = os.path.abspath(project_directory)
    while not os.path.isdir(os.path.join(folder, "experiments")):
        parent = os.path.dirname(folder)
        if parent == folder or os.path.exists(os.path.join(folder, ".git")):
            raise QueryException(f"There is no directory 'experiments' in {start} or its project: name one.")
        folder = parent
    return os.path.join(folder, "experiments")


def _find_experiment(directory, text):
    """List the names that *text* may mean: an id, the beginning of ids, or -1, the latest."""
    names = _list_folders(directory)
    if text in names:
        return [text]
    if re.match("-[1-9][0-9]*$", text):
        by_time = list(Experiments(experiments_directory=directory).experiments)
        return by_time[int(text) :][:1] if -int(text) <= len(by_time) else []
    return sorted(name for name in names if name.startswith(text))


def _find_job(directory, job):
    """List the names of the experiments that ran as the Slurm job *job*, 1234 or 1234_7."""
    names = []
    for reader in Experiments(experiments_directory=directory):
        place = reader.metadata.get("place")
        if isinstance(place, dict):
            array = place.get("slurm-array-job-id")
            task = f"{array}_{place.get('slurm-array-task-id')}"
            if job in (str(place.get("slurm-job-id")), str(array), task):
                names.append(reader.expid)
    return names


def _list_problems(readers):
    return {reader.expid: reader.problems for reader in readers if reader.problems}


# === Queries ==================================================================
# Filter, group, sort and compare rows.

_COMPARED = r"args\.|summary\.|metadata\.githead|header\.(status|duration)"


def _read_row(reader, groups=_GROUPS, levels=0):
    """Make the row of an experiment, with its duration; no file is opened for other *groups*."""
    values = {}
    if "header" in groups:
        values["header"] = {field: getattr(reader, field) for field in (*_HEADER, "duration")}
    values.update((group, getattr(reader, group)) for group in _GROUPS[1:] if group in groups)
    return _make_row(values, levels)


def _load_rows(directory, names, levels):
    """Read the rows of a directory by start time, and what could not be read, by experiment.

    names: what the needed columns' names begin with; no file is opened for others.
    """
    groups = set()
    for name in names:
        # All for a name that can't be: the error is to name what may have been meant.
        groups.update([g for g in _GROUPS if g.startswith(name) or name.startswith(g)] or _GROUPS)
    found = []
    # Not in the order of time, for which all would have to be read before the first is done with.
    for reader in Experiments(experiments_directory=directory)._readers.values():
        row = _read_row(reader, groups, levels)
        found.append((reader.start_time, reader.expid, row, reader.problems))
        # The row has it all; with ten thousand readers, memory matters.
        reader.__dict__.clear()
    found.sort(key=lambda item: item[:2])
    return [row for _, _, row, _ in found], {name: problems for _, name, _, problems in found if problems}


def _find_columns(rows):
    """List the names of all columns, by group."""
    names = {}
    for row in rows:
        names.update(row)
    ranks = {group: rank for rank, group in enumerate(_GROUPS)}
    return sorted(names, key=lambda name: ranks.get(name.partition(".")[0], len(ranks)))


def _resolve_column(rows, columns, name):
    """Find the column that is meant by *name*, 'args.lr' or 'args_lr', also inside of a dict."""
    found = _match_column(columns, name)
    if found is None:
        opened = [_flatten(row, _DEEPEST) for row in rows]
        inner = _find_columns(opened)
        found = _match_column(inner, name)
        if found is None:
            raise QueryException(f"There is no column {name!r}: {_suggest(name, inner)}")
        columns.append(found)
        for row, values in zip(rows, opened):
            row[found] = values.get(found)
    return found


def _match_column(columns, name):
    if name in columns:
        return name
    found = [column for column in columns if re.sub(r"\W", "_", column) == name]
    if len(found) > 1:
        raise QueryException(f"{name!r} may be any of {', '.join(found)}: write it with dots.")
    return found[0] if found else None


def _suggest(name, columns):
    """Say which columns are near *name*."""
    from difflib import get_close_matches

    near = [column for column in columns if column.endswith("." + name)]
    near += [column for column in get_close_matches(name, columns, 5, 0.5) if column not in near]
    return f"did you mean {', '.join(near[:5])}?" if near else "--list_columns shows what there is."


def _choose_columns(rows, columns, prefixes):
    """List the *columns* that begin with one of *prefixes*, in the order of the prefixes."""
    chosen = {}
    for prefix in prefixes:
        matching = [column for column in columns if column.startswith(prefix)]
        chosen.update(dict.fromkeys(matching or [_resolve_column(rows, columns, prefix)]))
    return list(chosen)


def _is_changed(row, column):
    """Tell whether an argument is not the default; also if nobody knows."""
    return "default_" + column not in row or row.get(column) != row["default_" + column]


def _is_telling(rows, column):
    """Tell whether an argument differs between rows or, where it is known, from the default."""
    values = [row.get(column) for row in rows]
    if not values or values.count(values[0]) < len(values):
        return True
    defaults = [row["default_" + column] for row in rows if "default_" + column in row]
    return defaults.count(values[0]) < len(defaults) or (len(rows) == 1 and not defaults)


def _choose_args(rows, columns, mode):
    """List *columns* with the arguments that --args asks for."""
    args = [column for column in columns if column.startswith("args.")]
    columns = [column for column in columns if not column.startswith("default_args.")]
    if mode == "all" or not args:
        return columns
    if mode == "non-default":
        equal = {c for c in args if not any(_is_changed(row, c) for row in rows if c in row)}
        return [column for column in columns if column not in equal]
    position = columns.index(args[0])
    columns = [column for column in columns if column not in args]
    if mode == "truncated":
        for row in rows:
            pairs = (f"{c[5:]}={_dump_cell(row[c])}" for c in args if c in row and _is_changed(row, c))
            row["args"] = _cut(" ".join(pairs), 60)
        columns.insert(position, "args")
    return columns


def _sort_rows(rows, columns, descending):
    """Sort by *columns*; numbers come before texts, rows without a value last."""
    for column in reversed(columns):
        present = [row for row in rows if not _is_missing(row.get(column))]
        missing = [row for row in rows if _is_missing(row.get(column))]
        present.sort(key=lambda row: _sort_key(row[column]), reverse=descending)  # noqa: B023
        rows = present + missing
    return rows


def _sort_key(value):
    if isinstance(value, str) and value.isdecimal():
        return 0, float(value), value  # as it is shown, like a number: most ids are such texts
    return (0, value, "") if isinstance(value, (int, float)) else (1, 0, str(value))


def _group_rows(rows, columns, keys):
    """Make one row for each combination of values in the columns *keys*.

    Other columns of numbers give NAME.mean, NAME.std (of the sample) and NAME.count, the rest NAME.count.
    """
    groups: "Dict[Any, Any]" = {}
    for row in rows:
        groups.setdefault(tuple(_group_key(row.get(key)) for key in keys), []).append(row)
    others = [column for column in columns if column not in keys]
    numeric = {c for c in others if all(_is_number(row[c]) for row in rows if not _is_missing(row.get(c)))}
    result = []
    for members in groups.values():
        row = {key: members[0].get(key) for key in keys}
        for column in others:
            values = [member[column] for member in members if not _is_missing(member.get(column))]
            if column in numeric:
                row[column + ".mean"], row[column + ".std"] = _mean_and_deviation(values)
            row[column + ".count"] = len(values)
        result.append(row)
    return _sort_rows(result, keys, descending=False)


def _group_key(value):
    if _is_missing(value):
        return None
    return value if _is_number(value) else _dump_json(value)


def _mean_and_deviation(values):
    """Give the mean and the standard deviation of a sample, None where there are too few values."""
    from math import fsum, sqrt

    try:
        mean = fsum(values) / len(values)
        squares = fsum((value - mean) ** 2 for value in values)
        return mean, sqrt(squares / (len(values) - 1)) if len(values) > 1 else None
    except (OverflowError, ValueError, ZeroDivisionError):
        return None, None


def _list_differences(rows):
    """List the columns that two rows differ in, with both values, and the difference of numbers."""
    differences = []
    for column in _find_columns(rows):
        first, second = values = [row.get(column) for row in rows]
        if first != second and re.match(_COMPARED, column):
            try:
                change = float(second - first) if _is_number(first) and _is_number(second) else None
            except OverflowError:
                change = None
            differences.append({"column": column, "values": values, "difference": change})
    return differences


def _diff_commits(readers):
    """Give git's statistics of what changed between the commits of two experiments, or why there is none."""
    shas = [str(reader.sha) for reader in readers]
    if not all(re.fullmatch("[0-9a-f]{40,64}", sha) for sha in shas):
        return "The commits are not known."
    if shas[0] == shas[1]:
        return f"Both on commit {shas[0][:7]}."
    directory = os.path.dirname(os.path.abspath(readers[0].curexpdir))
    try:
        answer = _git(["diff", "--stat", "--no-color", *shas, "--"], directory)
    except GitException as error:
        return str(error)
    text = answer.stdout.decode("utf-8", "replace") if answer.code == 0 else answer.stderr
    return f"git diff --stat {shas[0][:7]} {shas[1][:7]}\n{text.rstrip()}"


_LONGEST_FILTER = 4000
_LARGEST_NUMBER = 10**300
_FILTER_WORDS = (
    r"""(?P<text>'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")"""
    r"""|`(?P<quoted>[^`]*)`"""
    r"""|(?<![\w.])(?P<dotted>[^\W\d]\w*(?:\.\w+)+)"""
    r"""|(?P<operator>&&?|\|\|?)"""
)
_OPERATORS = {
    "Add": lambda left, right: left + right,
    "Sub": lambda left, right: left - right,
    "Mult": lambda left, right: left * right,
    "Div": lambda left, right: left / right,
    "Lt": lambda left, right: left < right,
    "LtE": lambda left, right: left <= right,
    "Gt": lambda left, right: left > right,
    "GtE": lambda left, right: left >= right,
}


def _filter_rows(rows, columns, text):
    """List the rows for which the expression *text* is true. Raises QueryException."""
    try:
        matches = _Filter(rows, columns).compile(text)
        return [row for row in rows if _truth(matches(row))]
    except QueryException as error:
        odd = [f"`{c}`" for c in columns if c in text and f"`{c}`" not in text and re.search(r"[^\w.]", c)]
        hint = f" In backticks it is one name: {odd[0]}." if odd else ""
        raise QueryException(f"The filter {_cut(text, 60)!r}: {error}{hint}") from None
    except RecursionError:
        raise QueryException(f"The filter {_cut(text, 60)!r} is too deep.") from None


class _Filter:
    """Turns the text of a filter into a function of a row; its methods for ast's nodes are all the syntax."""

    def __init__(self, rows, columns):
        self.rows, self.columns = rows, columns
        self.names = {}

    def compile(self, text):
        import ast
        import warnings

        if len(text) > _LONGEST_FILTER:
            raise QueryException(f"it is longer than {_LONGEST_FILTER} characters.")
        source = re.sub(_FILTER_WORDS, self._replace_word, text).strip()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(source, mode="eval")
        except (SyntaxError, ValueError, MemoryError):
            raise QueryException("it can't be parsed; odd names go in backticks: `args.a-b`.") from None
        return self._compile(tree.body)

    def _replace_word(self, match):
        """Put a Python name in the place of a column's, which need not be one: args.lambda."""
        if match.group("text"):
            return match.group()
        if match.group("operator"):
            return " and " if match.group()[0] == "&" else " or "
        name = f"column_{len(self.names)}_"
        self.names[name] = match.group("quoted") or match.group("dotted") or ""
        return f" {name} "

    def _compile(self, node):
        kind = type(node).__name__
        method = getattr(self, "_compile_" + kind, None)
        if method is None:
            raise QueryException(f"{kind} is not understood; there are and or not in == < + - * /.")
        return method(node)

    def _compile_Name(self, node):
        column = node.column = _resolve_column(self.rows, self.columns, self.names.get(node.id, node.id))
        return lambda row: None if _is_missing(row.get(column)) else row[column]

    def _compile_Constant(self, node):
        import ast

        value = ast.literal_eval(node)
        if not isinstance(value, (str, int, float, type(None))):
            raise QueryException(f"{value!r} is not understood.")
        return lambda row: value

    # Up to Python 3.7.
    _compile_Num = _compile_Str = _compile_NameConstant = _compile_Constant

    def _compile_List(self, node):
        items = [self._compile(item) for item in node.elts]
        return lambda row: [item(row) for item in items]

    _compile_Tuple = _compile_List

    def _compile_BoolOp(self, node):
        parts = [self._compile(value) for value in node.values]
        decide = all if type(node.op).__name__ == "And" else any
        return lambda row: decide(_truth(part(row)) for part in parts)

    def _compile_UnaryOp(self, node):
        operand = self._compile(node.operand)
        if type(node.op).__name__ in ("Not", "Invert"):
            return lambda row: not _truth(operand(row))
        sign = -1 if type(node.op).__name__ == "USub" else 1
        return lambda row: _calculate("Mult", sign, operand(row))

    def _compile_BinOp(self, node):
        kind = type(node.op).__name__
        if kind not in _OPERATORS:
            raise QueryException(f"the operator {kind} is not understood; there are + - * /.")
        left, right = self._compile(node.left), self._compile(node.right)
        return lambda row: _calculate(kind, left(row), right(row))

    def _compile_Compare(self, node):
        nodes = [node.left] + node.comparators
        kinds = [type(operator).__name__ for operator in node.ops]
        operands = [self._compile(operand) for operand in nodes]
        for kind, left, right in zip(kinds, nodes, nodes[1:]):
            if kind in ("Eq", "NotEq", "In", "NotIn"):
                self._check_types(left, right)
                self._check_types(right, left)
        steps = list(zip(kinds, operands, operands[1:]))
        return lambda row: all(_compare(kind, left(row), right(row)) for kind, left, right in steps)

    def _check_types(self, node, other):
        """Raise QueryException if *node* is a column and *other* a constant that no value of it can equal."""
        import ast

        try:
            column, constants = node.column, ast.literal_eval(other)
        except (AttributeError, ValueError):
            return
        kinds = {_type(row.get(column)) for row in self.rows} - {"nothing"}
        for constant in constants if isinstance(constants, (list, tuple)) else [constants]:
            if kinds and constant is not None and not kinds & {_type(constant), "list"}:
                problem = f"{column} is a {min(kinds)}, and {constant!r} a {_type(constant)}"
                hint = f": write '{constant}'" if kinds == {"text"} and _is_number(constant) else ""
                raise QueryException(f"{problem}{hint}.")


def _type(value):
    """Name the type of a value in words; true and false are numbers, because they equal 1 and 0."""
    if _is_missing(value):
        return "nothing"
    if isinstance(value, str):
        return "text"
    return type(value).__name__ if isinstance(value, (list, dict)) else "number"


def _truth(value):
    if value is None or isinstance(value, bool):
        return bool(value)
    raise QueryException(f"{value!r} is neither true nor false; compare it with something.")


def _calculate(kind, left, right):
    """Calculate with two numbers; None if one is missing, and where there is no result."""
    if left is None or right is None:
        return None
    if _type(left) != "number" or _type(right) != "number":
        raise QueryException(f"{left!r} and {right!r} are not both numbers.")
    try:
        result = _OPERATORS[kind](left, right)
    except (ZeroDivisionError, OverflowError):
        return None
    if isinstance(result, int) and abs(result) > _LARGEST_NUMBER:
        raise QueryException("its numbers grow too large.")
    return None if _is_missing(result) else result


def _compare(kind, left, right):
    """Compare two values; what is missing is equal to None, and neither smaller nor larger than anything."""
    if kind in ("Eq", "Is", "NotEq", "IsNot"):
        return (left == right) == (kind in ("Eq", "Is"))
    if kind in ("In", "NotIn"):
        if isinstance(right, str) and left is None:
            right = None
        is_text_in_text = isinstance(left, str) and isinstance(right, str)
        if not (is_text_in_text or isinstance(right, list) or right is None):
            raise QueryException(f"{right!r} is neither a list nor a text.")
        return (right is not None and left in right) == (kind == "In")
    if left is None or right is None:
        return False
    if _type(left) != _type(right) or _type(left) not in ("number", "text"):
        raise QueryException(f"{left!r} and {right!r} can't be put in an order.")
    return _OPERATORS[kind](left, right)


# === Tables ===================================================================
# Turn rows into CSV, JSON, Markdown, LaTeX, a DataFrame, or lines for people.

_TITLES = {
    "header.expid": "id",
    "header.status": "status",
    "header.start_time": "when",
    "header.duration": "took",
    "header.expid.count": "runs",
}
_COLORS = {"SUCCESS": "32", "RUNNING": "36", "ERROR": "31", "DEAD": "31", "RUNNING?": "33", "UNKNOWN": "33"}
_WIDEST_CELL = 40
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX.update((c, "\\" + c) for c in "&%$#_{}")
# A bracket or star at the start of a line is an option of the line break before it.
_LATEX.update((c, "{" + c + "}") for c in "[]*<>|\"'`-")


def _format_csv(rows, columns):
    import csv
    import io

    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_dump_cell(row.get(column)) for column in columns] for row in rows)
    return file.getvalue()


def _format_json(rows, names, **more):
    """Format rows in the one shape of JSON that everything here has: {"rows": [{"args.lr": 0.1}], ...}."""
    chosen = [{name: row[name] for name in names if name in row} for row in rows]
    return _dump_json({"rows": chosen, **more}, 2)


def _format_markdown(rows, columns):
    def format_line(values):
        texts = [re.sub(r"[\\`*_\[\]<>&|~$]", r"\\\g<0>", _show_controls(_dump_cell(v))) for v in values]
        return "| " + " | ".join(texts) + " |\n"

    head = format_line(columns) + "|" + " --- |" * len(columns) + "\n"
    return head + "".join(format_line(map(row.get, columns)) for row in rows)


def _format_latex(rows, columns):
    def format_line(values):
        texts = [_show_controls(_dump_cell(v)).translate(str.maketrans(_LATEX)) for v in values]
        return " & ".join(texts) + r" \\" + "\n"

    head = "\\begin{tabular}{" + "l" * len(columns) + "}\n\\hline\n" + format_line(columns) + "\\hline\n"
    return head + "".join(format_line(map(row.get, columns)) for row in rows) + "\\hline\n\\end{tabular}\n"


_FORMATS: "Dict[str, Any]" = {
    "csv": _format_csv,
    "json": _format_json,
    "md": _format_markdown,
    "tex": _format_latex,
    "pd": None,
}


def _find_ending(path):
    return os.path.splitext(path)[1][1:].lower()


def _export(path, rows, columns, levels, is_flat):
    """Write a table to the file *path*, in the format that its ending says."""
    format_rows = _FORMATS[_find_ending(path)]
    try:
        if format_rows:
            _write_file(path, format_rows(rows, columns).encode("utf-8", "backslashreplace"))
        else:
            _to_dataframe(rows, levels, is_flat, columns).to_pickle(path)
    except OSError as error:
        raise FolderException(path, f"can't be written: {_explain(error)}.", error.errno) from error


def _split_title(column, is_flat):
    """Split a column's name into what stands above it in two lines."""
    group, _, name = column.partition(".")
    if column in _TITLES:
        return "", _TITLES[column]
    return ("", column) if is_flat or not name else ("" if group == "header" else group, name)


def _format_column(rows, column, titles):
    """Format a column as texts of one width, its two titles first, numbers with their points aligned."""
    texts = values = [row.get(column) for row in rows]
    kinds = set(map(type, values))
    # Looked at all at once, because ten thousand texts that need nothing are the usual case.
    if kinds != {str} or not "".join(values).isprintable():
        # Results are measured, arguments are chosen: only the former are rounded.
        digits = 5 if column.startswith("summary.") else 15
        texts = [_format_value(value, digits) for value in values]
    is_numeric = kinds <= {int, float, type(None)} or "".join(texts).isdigit()
    if is_numeric:
        # Filled up behind the point to one length.
        tails = [len(text.lstrip("-0123456789")) for text in texts]
        longest = max(tails, default=0)
        texts = [text + " " * (longest - tail) for text, tail in zip(texts, tails)]
    texts = [titles[0], _show_controls(titles[1]), *texts]
    measure = len if _is_ascii("".join(texts)) else _width
    if max(map(measure, texts)) > _WIDEST_CELL:
        texts = [_cut(text, _WIDEST_CELL) for text in texts]
    widths = list(map(measure, texts))
    widest = max(widths)
    fills = [" " * (widest - width) for width in widths]
    if not is_numeric:
        return [text + fill for text, fill in zip(texts, fills)]
    return [texts[0] + fills[0]] + [fill + text for text, fill in zip(texts[1:], fills[1:])]


def _fit_columns(columns, widths, width, has_messages):
    """Choose what fits into *width*: the header's columns, then in turn arguments, results and the rest."""
    from itertools import chain, zip_longest

    groups: "Dict[str, List[str]]" = {}
    for column in columns:
        groups.setdefault(column.partition(".")[0], []).append(column)
    chosen = groups.pop("header", [])
    left = width - sum(widths[column] + 2 for column in chosen) + 2
    if has_messages:
        left -= left // 3
    for column in chain(*zip_longest(*groups.values())):
        if column is not None and (widths[column] + 2 <= left or not chosen):
            chosen.append(column)
            left -= widths[column] + 2
    return [column for column in columns if column in chosen]


def _format_table(rows, columns, width=None, is_flat=False, colors=False, messages=()):
    """Format a table for people, as a list of lines; *messages* (one a row) follow each row's last value.

    With a *width*, columns that don't fit are left out, and the last line says which.
    """
    cells, above = {}, ""
    for column in columns:
        group, title = _split_title(column, is_flat)
        cells[column] = _format_column(rows, column, ["" if group == above else _show_controls(group), title])
        above = group
    widths = {column: _width(texts[0]) for column, texts in cells.items()}
    shown = _fit_columns(columns, widths, width, any(messages)) if width else columns
    lines = ["  ".join(line).rstrip() for line in zip(*(cells[column] for column in shown))]
    for number, message in enumerate(messages, 2):
        if message:
            lines[number] += "  " + _show_controls(message)
    if width:
        lines = [_cut(line, width) for line in lines]
    if colors:
        words = "|".join(map(re.escape, _COLORS))
        lines = [re.sub(rf"(?<= )({words})(?= |$)", _color_status, line, count=1) for line in lines]
    omitted = [_show_controls(column) for column in columns if column not in shown]
    if omitted:
        lines.append(_cut(f"Not shown ({len(omitted)}), for want of width: {', '.join(omitted)}", width))
    return lines if lines[0] else lines[1:]


def _color_status(match):
    return f"\x1b[{_COLORS[match.group()]}m{match.group()}\x1b[0m"


def _shorten_times(rows):
    """Put the times in *rows* into short words, with the year only if it is not this one in all of them."""
    year = time.strftime("%Y-")
    start = len(year) if all(row["header.start_time"].startswith(year) for row in rows) else 0
    for row in rows:
        row["header.start_time"] = row["header.start_time"][start:16].replace("T", " ")
        row["header.duration"] = "%7s" % _format_duration(row["header.duration"])


def _format_pairs(title, pairs):
    """Yield a title and a line for each name and text, the texts below each other."""
    pairs = [(_show_controls(name), _show_controls(text)) for name, text in pairs]
    longest = max((_width(name) for name, _ in pairs), default=0)
    yield _show_controls(title) + ("" if pairs else ": none")
    for name, text in pairs:
        yield f"{name}{' ' * (longest - _width(name))}  {text}"


def _format_difference(values, difference):
    # What is not there has no text of its own in a table, but needs one here.
    first, second = (_format_value(value, 6) or "-" for value in values)
    return f"{first} -> {second}" + ("" if difference is None else "  (%+.6g)" % difference)


def _describe_attempt(attempt):
    """Put an attempt into words; --json shows all of it."""
    keys = ("start-time", "end-time", "host", "pid", "ended")
    return "{} to {} on {}, pid {}: {}".format(*(attempt.get(key, "-") for key in keys))


def _format_experiment(reader, row, texts):
    """Yield the lines that `show` prints; *texts* are the lines of STATUS, stdout and stderr."""
    folder, took = os.path.abspath(reader.curexpdir), _format_duration(reader.duration) or "unknown"
    title = f"{reader.expid}  {reader.status}  {reader.status_message}".rstrip()
    yield from _format_pairs(title, [("folder", folder), ("start", reader.start_time), ("took", took)])
    yield from _format_group(row, "args", " (* is not the default)")
    yield from _format_group(row, "summary")
    attempts = _get_attempts(reader.metadata)
    if attempts:
        row = {**row, "metadata.attempts": dict(enumerate(map(_describe_attempt, attempts), 1))}
    yield from _format_group(row, "metadata")
    status = texts["status"] if len(texts["status"]) > 1 else []
    titles = ("stdout, its end", "stderr, its end", "STATUS", "could not be read")
    for title, lines in zip(titles, (texts["stdout"], texts["stderr"], status, reader.problems)):
        if any(lines):
            yield from ("", title)
            # A progress bar: what the carriage returns left to be seen.
            yield from ("  " + _show_controls(line.rstrip("\r").rpartition("\r")[2]) for line in lines)


def _take_lines(value):
    """List what gets a line of its own: the values of a dict, the dicts in a list, and all else as it is."""
    if isinstance(value, dict) and value:
        return [(f".{key}", item) for key, item in value.items()]
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return [(f".{number}", item) for number, item in enumerate(value, 1)]
    return [("", value)]


def _format_group(row, group, title=""):
    """Yield the values of a group; arguments that are not the default have a star."""
    pairs = []
    for column in row:
        if column.startswith(group + "."):
            star, default = " ", ""
            if "default_" + column in row and _is_changed(row, column):
                star, default = "*", f"  (default {_format_value(row['default_' + column])})"
            for suffix, value in _take_lines(row[column]):
                pairs.append((f"{star} {column[len(group) + 1 :]}{suffix}", _format_value(value) + default))
    yield ""
    yield from _format_pairs(group + title, pairs)


# === Run ======================================================================
# Record any command: its stdout and stderr are pipes, with this process in the middle.

_CHUNK = 1 << 16
_LARGEST_PIPE = 1 << 20
_FORWARDED = ("SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2")


def _parse_command(words):
    """Take `--name value` and `--name=value` out of a command's words; an option without a value is True."""
    args = {}
    for word, following in zip(words, words[1:] + ["--"]):
        match = re.match(r"--([A-Za-z][^=]*)(?:=(.*))?\Z", word, re.DOTALL)
        if match:
            name, value = match.groups()
            if value is None and not re.match("--|-[A-Za-z]", following):
                value = following
            args[name] = True if value is None else _parse_number(value)
    return args


def _parse_number(text):
    """Give the number that *text* is, or *text*: a date 2026_03, a code 01234, a commit 12e5678, nan."""
    if re.fullmatch(r"[-+]?(?!0[0-9])[0-9.]+(e[-+]?[0-9]+)?", text, re.IGNORECASE):
        for kind in (int, float):
            try:
                number = kind(text)
            except ValueError:
                continue
            return number if abs(number) < float("inf") else text
    return text


class _Pump:
    """Passes on what comes out of a process's pipes: to this process's own streams, and to a record."""

    def __init__(self, capture, process):
        import selectors
        import signal

        self._capture = capture
        self._selector = selectors.DefaultSelector()
        self._selector.register(process.stdout, selectors.EVENT_READ, ("stdout", 1))
        self._selector.register(process.stderr, selectors.EVENT_READ, ("stderr", 2))
        # Every signal that Python has a handler for, SIGCHLD above all, writes a byte into this pipe.
        self._wake_reader, wake_writer = os.pipe()
        os.set_blocking(wake_writer, False)
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)
        signal.set_wakeup_fd(wake_writer)
        self._selector.register(self._wake_reader, selectors.EVENT_READ, None)

    def is_open(self):
        return len(self._selector.get_map()) > 1

    def pass_on(self, timeout_s=None):
        """Wait for output or a signal, and pass on a chunk; returns what came: "output", "signal" or None."""
        came = None
        for key, _ in self._selector.select(timeout_s):
            if key.data is None:
                os.read(self._wake_reader, _CHUNK)
                return "signal"
            came = "output"
            self._pass_chunk(key.fileobj, *key.data)
        return came

    def _pass_chunk(self, source, name, target):
        import select

        data = source.read(_CHUNK)
        self._capture.record(name, data)
        try:
            view = memoryview(data)
            while view:
                try:
                    view = view[os.write(target, view) :]
                except BlockingIOError:  # another program has set our terminal so, for itself
                    select.select([], [target], [])
        except OSError:
            data = b""  # nobody reads our output any more: the command is to notice, as it would without us
        if not data:
            self._selector.unregister(source)
            source.close()


def _forward_signals(process_ids):
    """Hand signals on to the process in *process_ids*; returns a list of those that find none there."""
    import signal

    early: "List[int]" = []

    def forward(signum, frame):
        if not process_ids:
            early.append(signum)
        # Ctrl-C at a terminal reaches the command by itself: it would get it twice.
        elif signum not in (signal.SIGINT, signal.SIGQUIT) or not _is_in_foreground():
            os.kill(process_ids[0], signum)

    for signum in [getattr(signal, name) for name in _FORWARDED]:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, forward)
    return early


def _is_in_foreground():
    for descriptor in (0, 1, 2):
        try:
            return os.tcgetpgrp(descriptor) == os.getpgrp()
        except OSError:
            pass  # not a terminal, or not ours
    return False


def _wait_for_command(process, pump):
    """Pass on output until *process* has ended; returns its wait status and resource usage."""
    while True:
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            process.returncode = status  # Popen must not wait again
            return status, usage
        while pump.pass_on() != "signal":
            pass


def _serve_daemons(pump):
    """Go on passing output on in a process of its own, while daemons of the command hold the pipes open."""
    # First what the command has left in the pipes, and no more: a daemon may never stop writing.
    for _ in range(_LARGEST_PIPE // _CHUNK):
        if not (pump.is_open() and pump.pass_on(timeout_s=0)):
            break
    if not pump.is_open() or os.fork():
        return
    try:
        while pump.is_open():
            pump.pass_on()
    finally:
        os._exit(0)


def _describe_exit(status):
    """Put a wait status into a STATUS text and a shell's exit code."""
    if os.WIFSIGNALED(status):
        return _kill_text(os.WTERMSIG(status)), 128 + os.WTERMSIG(status)
    code = os.WEXITSTATUS(status)
    return (f"ERROR\nexit code {code}" if code else "SUCCESS"), code


def _describe_usage(usage, wall_s):
    scale = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    return {
        "peak-memory-bytes": usage.ru_maxrss * scale,
        "cpu-seconds": round(usage.ru_utime + usage.ru_stime, 6),
        "wall-seconds": round(wall_s, 6),
    }


def _record_command(command, own):
    """Run *command* as an experiment, *own* being Experiment's arguments; returns the exit code."""
    import signal
    from subprocess import PIPE, Popen

    process_ids: "List[int]" = []
    early = _forward_signals(process_ids)
    sys.argv = command  # what the record calls the command
    experiment = Experiment(_parse_command(command[1:]), None, **own)
    start = time.monotonic()
    try:
        if experiment._attempt is None:
            # What Python ignores, the program that it becomes would ignore too.
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            os.execvp(command[0], command)
        process = Popen(command, stdout=PIPE, stderr=PIPE, bufsize=0)
    except OSError as error:
        problem = f"{command[0]} can't be run: {_explain(error)}"
        experiment.finish(f"ERROR\n{problem}")
        _warn(f"{problem}.")
        return 126
    pump = _Pump(experiment._capture, process)
    process_ids.append(process.pid)
    for signum in early:
        os.kill(process.pid, signum)
    status, usage = _wait_for_command(process, pump)
    del process_ids[:]
    _serve_daemons(pump)
    experiment.metadata["usage"] = _describe_usage(usage, time.monotonic() - start)
    text, code = _describe_exit(status)
    experiment.finish(text)
    return code


def _run(words):
    """Record a command; returns its exit code."""
    import argparse
    from shutil import which

    parser = argparse.ArgumentParser(
        prog="meticulous run",
        usage="%(prog)s [options] -- COMMAND [ARGUMENT ...]",
        description="Record any command: its arguments, output, exit code or signal, memory and time.",
        epilog="The exit code is the command's, or 128 + n for a signal.",
    )
    Experiment.add_argument_group(parser)
    position = words.index("--") if "--" in words else len(words)
    own, command = vars(parser.parse_args(words[:position])), words[position + 1 :]
    if not command:
        parser.error("name a command, behind --")
    if which(command[0]) is None:
        is_there = os.path.dirname(command[0]) and os.path.exists(command[0])
        _warn(f"{command[0]} " + ("is not executable." if is_there else "can't be found: is it on PATH?"))
        return 126 if is_there else 127
    return _record_command(command, own)


# === Report ===================================================================
# Write one HTML page that loads nothing: a table, curves as SVG, and the story of each run.

# The most stories and curves of runs, the most plots, and the most runs that have a color.
_MOST_STORIES, _MOST_PLOTS, _MOST_COLORS = 200, 50, 10
_MOST_POINTS = 500  # of a curve: more than a plot has pixels
_PLOT_WIDTH, _PLOT_HEIGHT = 360, 210
_LONGEST_PATCH = 20000
_LAST_COLUMNS = ("header.start_time", "header.duration")  # what differs and the results are seen first
_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"})
_STYLE = """
:root {
  color-scheme: light dark;
  --back: #fff; --bar: #f2f4f6; --line: #d9dce1; --quiet: #5b616b; --text: #1a1c20; --bad: #b3243f;
}
@media (prefers-color-scheme: dark) {
  :root { --back: #15171c; --bar: #20242b; --line: #363b44; --quiet: #a3a9b3; }
  :root { --text: #e6e8eb; --bad: #ff8095 }
}
body { margin: 0 auto; padding: 1rem 1rem 3rem; max-width: 110rem; font: 15px/1.5 system-ui, sans-serif }
body { background: var(--back); color: var(--text) }
h1 { margin: 0; font-size: 1.5rem; overflow-wrap: anywhere }
h2 { margin: 2rem 0 .5rem; font-size: 1.15rem }
h3 { margin: 1rem 0 .2rem; font-size: 1rem }
p { margin: .3rem 0 }
a { color: inherit }
small, .quiet { color: var(--quiet); font-size: .85rem; font-weight: normal }
.bad { color: var(--bad) }
td, li, pre, figcaption { unicode-bidi: isolate }
:focus-visible { outline: 2px solid #1f77b4; outline-offset: 2px }
.scroll { margin: 1rem 0; width: fit-content; max-width: 100%; overflow-x: auto }
.scroll { border: 1px solid var(--line) }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; text-align: left; vertical-align: top; white-space: nowrap }
tr { border-top: 1px solid var(--line) }
thead { background: var(--bar) }
thead th { vertical-align: bottom }
thead small { display: block }
tbody th { position: sticky; left: 0; background: var(--back) }
.number:not(:first-child) { text-align: right }
.message { width: max-content; max-width: 30rem; white-space: normal; overflow-wrap: anywhere }
button { all: unset; cursor: pointer }
button::after { content: " \\2195"; color: var(--quiet) }
[aria-sort=ascending] button::after { content: " \\2191"; color: inherit }
[aria-sort=descending] button::after { content: " \\2193"; color: inherit }
tr.on > *, li.on { background: var(--bar) }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.2rem; padding: 0; list-style: none }
.legend a { overflow-wrap: anywhere; text-decoration: none }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1rem }
figure { margin: 0; min-width: 0; break-inside: avoid }
figcaption { font-weight: 600; overflow-wrap: anywhere }
svg { display: block; width: 100%; height: auto }
svg.key { display: inline; width: 30px; height: 10px }
text { font: 11px system-ui, sans-serif; fill: var(--quiet) }
path { fill: none; stroke: #888; stroke-width: 1.6; stroke-linecap: round; stroke-linejoin: round }
path { vector-effect: non-scaling-stroke }
.grid { stroke: var(--line); stroke-width: 1 }
path.band { fill-opacity: .25; stroke: none }
.grey { stroke-opacity: .45 }
.grey.band { fill: #888 }
.picking figure [data-run]:not(.on) { stroke-opacity: .2; fill-opacity: .05 }
path.on { stroke-width: 3.2; stroke-opacity: 1 }
#picked { position: fixed; bottom: 0; left: 0; margin: 0; padding: .3rem 1rem }
#picked { background: var(--text); color: var(--back) }
#picked:empty { display: none }
details { border-top: 1px solid var(--line) }
summary { padding: .3rem 0; cursor: pointer; overflow-wrap: anywhere }
details div { padding: 0 0 1rem 1rem; scroll-margin-top: 3rem }
pre { margin: 0; padding: .5rem; background: var(--bar); font-size: .85rem }
pre { white-space: pre-wrap; overflow-wrap: anywhere }
@media (max-width: 40rem) {
  table { font-size: .85rem }
  th, td { padding: .2rem .35rem }
  th svg.key { width: 16px }
}
@media print {
  :root { font-size: 9px }
  body { font-size: 1rem }
  th svg.key { width: 16px }
  .scroll { border: 0 }
  th, td { padding: 0 .5rem; white-space: normal }
  .message { width: auto }
  .plots { grid-template-columns: 1fr 1fr }
  #picked { display: none }
}
"""
_DASHES = ("none", "7 3", "2 4", "9 4 2 4", "14 4", "4 4", "9 3 2 3 2 3", "1 3", "18 3 4 3", "5 2 1 2")
_PALETTE = "1f77b4 d1520f 0f8a5f c0399f 7a5fd0 a0702a 0a8fa3 d63a5a 6b8a1a 6a7280"
_STYLE += "\n".join(
    f".c{number} {{ stroke: #{color}; stroke-dasharray: {dash} }} .band.c{number} {{ fill: #{color} }}"
    for number, (color, dash) in enumerate(zip(_PALETTE.split(), _DASHES))
)
_SCRIPT = """
"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
let picked;
function pick(run) {
  if (run === picked) return;
  picked = run;
  all(".on").forEach(element => element.classList.remove("on"));
  const found = run === undefined ? [] : all(`[data-run="${run}"]`);
  for (const element of found) {
    element.classList.add("on");
    if (element.matches("figure path")) element.parentNode.append(element);  // the last is in front
  }
  document.body.classList.toggle("picking", found.length > 0);
  const title = found.map(element => element.querySelector("title")).find(Boolean);
  document.getElementById("picked").textContent = title ? title.textContent : "";
}
function find(event) {  // lines are thin: look around the pointer too
  const run = event.target.closest("[data-run]");
  if (run || !event.target.closest("figure")) return run;
  for (const r of [2, 4, 6]) for (let angle = 0; angle < 6.2; angle += 0.7854) {
    const [x, y] = [event.clientX + r * Math.cos(angle), event.clientY + r * Math.sin(angle)];
    const near = document.elementFromPoint(x, y);
    if (near && near.matches("[data-run]")) return near;
  }
}
const follow = event => pick(find(event)?.dataset.run);
document.addEventListener("pointermove", follow);
document.addEventListener("focusin", follow);
document.addEventListener("keydown", event => { if (event.key === "Escape") pick(); });
all(".runs thead th").forEach((th, column) => {
  const button = document.createElement("button");
  button.append(...th.childNodes);
  th.append(button);
  th.setAttribute("aria-sort", "none");
  button.addEventListener("click", () => {
    const sign = th.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    all(".runs thead th").forEach(other => other.setAttribute("aria-sort", "none"));
    th.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const rows = all(".runs tbody tr").map(row => {  // numbers, then strings; what is missing is last
      const text = row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      return { row, text, kind: text === "" ? 2 : isNaN(text) ? 1 : 0 };
    });
    rows.sort((a, b) => a.kind - b.kind || sign * (a.kind ? a.text.localeCompare(b.text) : a.text - b.text));
    document.querySelector(".runs tbody").append(...rows.map(item => item.row));
  });
});
"""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; base-uri 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{}</title><style>{}</style></head><body><main>
{}
</main><p id="picked" role="status"></p><script>{}</script></body></html>
"""


def _escape(value, longest=2000):
    """Return *value* as HTML: markup escaped, control and bidi characters made visible."""
    return _cut(_show_controls(str(value)), longest).translate(_HTML)


def _keep_drawable(values):
    """Return *values* with None in the place of what can't be drawn."""
    # Near the largest float, differences overflow. The fast way is nearly always taken; min() and max()
    # overlook a NaN, sum() doesn't.
    if values and set(map(type, values)) <= {int, float} and -1e300 < min(values) <= max(values) < 1e300:
        total = sum(values)
        if total == total:
            return values
    return [value if _is_number(value) and abs(value) < 1e300 else None for value in values]


def _select_drawable(values, is_log=False):
    if not is_log and None not in values:
        return values
    return [value for value in values if value is not None and (value > 0 or not is_log)]


def _read_curves(reader):
    """Return {name: (steps, values)} of the metrics of a run; a value that can't be drawn is None."""
    from itertools import chain

    rows, curves = getattr(reader, "metrics", []), {}
    steps = _keep_drawable([row.get("step") for row in rows])
    if None in steps:
        steps = list(range(len(rows)))
    for name in dict.fromkeys(chain.from_iterable(rows)):
        points = [(step, row[name]) for step, row in zip(steps, rows) if name in row]
        its_steps, values = zip(*points)
        values = _keep_drawable(values)
        if name not in ("step", "time") and _select_drawable(values):
            curves[name] = its_steps, values
    return curves


def _merge_curves(curves):
    """Return the steps of several runs' curves, and at each the mean, the minimum and the maximum."""
    by_step: "Dict[float, List[float]]" = {}
    for steps, values in curves:
        for step, value in zip(steps, values):
            if value is not None:
                by_step.setdefault(step, []).append(value)
    groups = [by_step[step] for step in sorted(by_step)]
    return sorted(by_step), [sum(g) / len(g) for g in groups], list(map(min, groups)), list(map(max, groups))


def _thin(values):
    """Return the positions to draw: of each bucket the extremes and the first gap, and both ends."""
    if len(values) <= _MOST_POINTS:
        return range(len(values))
    positions, size = [0], -(-len(values) // (_MOST_POINTS // 2 - 1))
    for start in range(0, len(values), size):
        bucket = values[start : start + size]
        if None in bucket:
            drawn = _select_drawable(bucket)
            chosen = {None, min(drawn, default=None), max(drawn, default=None)}
            positions += sorted(start + bucket.index(value) for value in chosen)
        else:
            low, high = bucket.index(min(bucket)), bucket.index(max(bucket))
            positions += (start + low, start + high) if low < high else (start + high, start + low)
    return positions + [len(values) - 1]


def _widen(low, high):
    """Return *low* and *high*, made to differ."""
    is_one = high - low <= max(abs(low), abs(high), 1e-280) * 1e-9
    pad = (abs(low) / 10 or 1) if is_one else 0
    return low - pad, high + pad


def _find_ticks(low, high, most, least=0):
    """Return round numbers that reach from *low* to *high*, about *most*, at least *least* apart."""
    from math import ceil, floor, log10

    power = 10.0 ** floor(log10((high - low) / most))
    step = max(least, next(power * n for n in (1, 2, 5, 10, 20) if (high - low) / (power * n) <= most))
    return [n * step for n in range(floor(low / step), ceil(high / step) + 1)]


def _name_tick(tick, is_log=False):
    if is_log and abs(tick) > 4:
        return f"1e{tick:.0f}"  # which may be larger than any float
    return _format_value(10.0**tick if is_log else tick, 12)


def _draw_path(points, frame):
    """Return the data of an SVG path, in tenths of a pixel; it begins anew after a gap."""
    left, x_scale, top, y_scale = frame
    x_scale, y_scale, before, commands = 10 * x_scale, 10 * y_scale, None, []
    for _, y in points:
        if y is not None:
            # h0 makes a dot of a single point.
            commands.append("M%d %dh0" if before is None else "L%d %d")
        before = y
    numbers = [n for x, y in points if y is not None for n in ((x - left) * x_scale, (top - y) * y_scale)]
    return "".join(commands) % tuple(numbers)


def _draw_line(number, data, kind="", title=""):
    color = f"c{number}" if number < _MOST_COLORS else "grey"
    return f'<path class="{color} {kind}" data-run="{number}" d="{data}">{title}</path>'


def _draw_key(number):
    return f'<svg class="key" aria-hidden="true">{_draw_line(number, "M1 5H29")}</svg> '


def _choose_lines(found, is_banded, is_log):
    """Return lists of points: a curve or, of several runs, their mean and both edges of their band."""
    from math import log10

    steps, *lines = _merge_curves(found) if is_banded else found[0]
    if is_log:
        lines = [[None if y is None or y <= 0 else log10(y) for y in line] for line in lines]
    return [[(steps[n], line[n]) for n in _thin(line)] for line in lines]


def _draw_axes(frame, width, height, x_ticks, y_ticks, is_log):
    """Yield the axes: lines at the ticks, and their numbers; *frame* is what _draw_path() takes."""
    left, x_scale, top, y_scale = frame
    for tick in y_ticks:
        y = (top - tick) * y_scale
        yield f'<path class="grid" d="M0 {y:.1f}H{width:.1f}"/>'
        text = _name_tick(tick, is_log)
        yield f'<text x="-6" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    for tick in x_ticks:
        x = (tick - left) * x_scale
        yield f'<path class="grid" d="M{x:.1f} {height}v4"/>'
        yield f'<text x="{x:.1f}" y="{height + 16}" text-anchor="middle">{_name_tick(tick)}</text>'
    yield f'<text x="{width / 2:.1f}" y="{height + 31}" text-anchor="middle">step</text>'


def _draw_curves(series, lines, frame):
    """Yield the paths of *lines*, {label: [points, ...]}; those in color in front of the grey."""
    for number, label in reversed(list(enumerate(series))):
        if label in lines:
            curve, *edges = lines[label]
            title = f"<title>{_escape(label)}</title>"
            if edges:
                low, high = ([point for point in edge if point[1] is not None] for edge in edges)
                yield _draw_line(number, _draw_path(high + low[::-1], frame), "band", title)
            yield _draw_line(number, _draw_path(curve, frame), "", title)


def _draw_plot(name, series, is_banded, is_log):
    """Return a figure with the curve *name* of each of *series*, {label: [curves of a run, ...]}."""
    from math import log10

    found = {label: [curves[name] for curves in runs if name in curves] for label, runs in series.items()}
    lines = {label: _choose_lines(curves, is_banded, is_log) for label, curves in found.items() if curves}
    curves = [curve for runs in found.values() for curve in runs]
    drawn = [_select_drawable(values, is_log) for _, values in curves]
    gaps = sum(len(values) for _, values in curves) - sum(map(len, drawn))
    notes = ["log scale"] * is_log + ["mean; band: minimum to maximum"] * is_banded
    notes += [f"{gaps} values not {'positive' if is_log else 'finite'}: left out"] * (gaps > 0)
    caption = f"<figcaption>{_escape(name, 200)} <small>{'; '.join(notes)}</small></figcaption>"
    if not any(drawn):
        return f"<figure>{caption}</figure>"
    first, last = (choose(choose(steps) for steps, _ in curves) for choose in (min, max))
    x_low, x_high = _widen(first, last)
    least = int(isinstance(first, int) and isinstance(last, int))
    x_ticks = [x for x in _find_ticks(x_low, x_high, 4, least) if x_low <= x <= x_high]
    ends = [end for values in drawn if values for end in (min(values), max(values))]
    ends = [log10(end) for end in ends] if is_log else ends
    low, high = _widen(min(ends), max(ends))
    y_ticks = _find_ticks(low, high, 5, is_log)  # if is_log, whole powers of ten
    left = 12 + 6.5 * max(len(_name_tick(y, is_log)) for y in y_ticks)
    width, height = _PLOT_WIDTH - left - 24, _PLOT_HEIGHT - 44
    frame = x_low, width / (x_high - x_low), y_ticks[-1], height / (y_ticks[-1] - y_ticks[0])
    axes = "".join(_draw_axes(frame, width, height, x_ticks, y_ticks, is_log))
    return (
        f'<figure>{caption}<svg viewBox="0 0 {_PLOT_WIDTH} {_PLOT_HEIGHT}" role="img" '
        f'aria-label="{_escape(name, 200)} over steps, {len(lines)} curves">'
        f'<g transform="translate({left:.1f} 8)">{axes}<g transform="scale(.1)">'
        f"{''.join(_draw_curves(series, lines, frame))}</g></g></svg></figure>"
    )


def _draw_plots(series, is_banded, is_log):
    """Return the plots of all metrics of *series*; '' if there are none."""
    names = list(dict.fromkeys(name for runs in series.values() for curves in runs for name in curves))
    figures = [_draw_plot(name, series, is_banded, is_log) for name in names[:_MOST_PLOTS]]
    more = f"<p>{len(names) - _MOST_PLOTS} more metrics are not drawn.</p>" if names[_MOST_PLOTS:] else ""
    return f'<div class="plots">{"".join(figures)}</div>{more}' if names else ""


def _make_legend(series, links):
    items = "".join(
        f'<li data-run="{number}"><a href="#{links[label]}">{_draw_key(number)}{_escape(label, 80)}</a></li>'
        for number, label in enumerate(list(series)[:_MOST_COLORS])
    )
    others = len(series) - _MOST_COLORS
    return f'<ul class="legend">{items}' + (f"<li>{others} more in grey</li>" if others > 0 else "") + "</ul>"


def _make_cell(value, column):
    """Return the attributes and the content of a table's cell; data-value is what it is sorted by."""
    if column == "header.status_message":
        return "", f'<div class="message">{_escape(value, 300)}</div>'
    text = _format_value(value, 5 if column.startswith(("summary.", "metrics.")) else 15)
    if column == "header.start_time":
        text = value[:16].replace("T", " ")
    elif column == "header.duration":
        text = _format_duration(value)
    attributes = f' class="number" data-value="{value!r}"' if _is_number(value) else ""
    return ' class="bad"' if value in ("ERROR", "DEAD") else attributes, _escape(text, 60)


def _make_table_row(row, columns, number, link):
    """Return a row of the table, with the *number* of its curves (or None) and a *link* to its story."""
    (first, text), *others = (_make_cell(row.get(column), column) for column in columns)
    text = f'<a href="#{link}">{text}</a>' if link else text
    run, key = ("", "") if number is None else (f' data-run="{number}"', _draw_key(number))
    cells = "".join(f"<td{attributes}>{content}</td>" for attributes, content in others)
    return f'<tr{run}><th scope="row"{first}>{key}{text}</th>{cells}</tr>\n'


def _make_table(rows, columns, names, series, links):
    """Return the table of *rows*, which *names* connect with their curves and stories."""
    head = ""
    for column in columns:
        group, title = _split_title(column, False)
        title = title.replace("status_message", "message")
        kind = "number" if any(_is_number(row.get(column)) for row in rows) else ""
        head += f'<th scope="col" class="{kind}"><small>{_escape(group)}</small> {_escape(title, 60)}</th>'
    numbers = {name: number for number, name in enumerate(series)}
    body = [_make_table_row(row, columns, numbers.get(n), links.get(n)) for row, n in zip(rows, names)]
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of the runs"><table class="runs">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _list_blocks(reader, row):
    """Return the blocks of a run's story, lists of a title and lines: what `show` prints, and the patch."""
    names = {"status": "STATUS", "stdout": "stdout", "stderr": "stderr"}
    blocks: "List[List[str]]" = [[]]
    texts = {key: _read_tail(os.path.join(reader.curexpdir, name), 20) for key, name in names.items()}
    for line in _format_experiment(reader, row, texts):
        if line:  # all that was recorded is indented or escaped, so that an empty line is always ours
            blocks[-1].append(line)
        else:
            blocks.append([])
    try:
        patch = _read_bounded(os.path.join(reader.curexpdir, "snapshot.patch"))
        text = patch[:_LONGEST_PATCH].decode("utf-8", "replace")
        blocks.append(["snapshot.patch", *text.split("\n"), *["..."] * (len(patch) > _LONGEST_PATCH)])
    except (OSError, ValueError):
        pass
    return [block for block in blocks if len(block) > 1]


def _make_story(blocks):
    """Return a run's story as HTML."""
    texts = ["\n".join(map(_escape, lines)) for _, *lines in blocks]
    return "".join(f"<h3>{_escape(block[0])}</h3><pre>\n{text}</pre>" for block, text in zip(blocks, texts))


def _make_page(title, body):
    """Return an HTML page that may load nothing and run only our own script."""
    from base64 import b64encode
    from hashlib import sha256

    hashes = (b64encode(sha256(text.encode()).digest()).decode() for text in (_STYLE, _SCRIPT))
    written = f'<p class="quiet">Written {_local_time(time.time())[:16].replace("T", " ")}</p>'
    body = f"<h1>{_escape(title)}</h1>{written}{body}"
    return _PAGE.format(*hashes, _escape(title), _STYLE, body, _SCRIPT)


def _name_rows(rows, over):
    """Return a function that names the curves of a row: by its id and the arguments that differ."""
    columns = [c for c in _find_columns(rows) if c.startswith("args.") and c not in over]
    columns = [c for c in columns if len({_dump_cell(row.get(c)) for row in rows}) > 1]

    def name_row(row):
        label = " ".join(f"{c[5:]}={_format_value(row.get(c))}" for c in columns)
        return label if over else f"{row.get('header.expid')}  {label}".rstrip()

    return name_row


def _make_report(directory, rows, table, columns, over=(), is_log=False):
    """Return the page of the experiments in *directory*.

    rows: of all of them; table: the rows to show, grouped or not; over: arguments whose runs share a band.
    """
    runs = table if "header.expid" in table[0] else rows
    experiments = Experiments(experiments_directory=directory)
    name_run = _name_rows(rows, ())
    name_row = _name_rows(rows, over) if over else name_run
    names = [name_row(row) for row in table]
    links: "Dict[str, str]" = {}
    series: "Dict[str, List[Any]]" = {name: [] for name in names}
    stories = []
    for number, row in enumerate(runs[:_MOST_STORIES]):
        if row["header.expid"] not in experiments:
            continue  # deleted since the rows were read
        name, reader = name_row(row), experiments[row["header.expid"]]
        curves = _read_curves(reader)
        series.setdefault(name, []).append(curves)
        links.setdefault(name, f"r{number}")
        title = f"{_escape(name_run(row), 120)} <small>{_escape(reader.status)}</small>"
        story = _make_story(_list_blocks(reader, row))
        stories.append(f'<details><summary>{title}</summary><div id="r{number}">{story}</div></details>')
    series = {name: found for name, found in series.items() if any(found)}
    last = [column for column in _LAST_COLUMNS if column in columns]
    if len(last) == 2 and any(row.get("header.status_message") for row in table):
        last.append("header.status_message")
    columns = [column for column in columns if column not in last] + last
    title = f"{len(runs)} run{'s' * (len(runs) > 1)} in " + "/".join(
        os.path.abspath(directory).split(os.sep)[-2:]
    )
    body, plots = _make_table(table, columns, names, series, links), _draw_plots(series, bool(over), is_log)
    if len(runs) > _MOST_STORIES:
        body = f"<p>Curves and stories are of the first {_MOST_STORIES} runs.</p>{body}"
    if plots:
        body += f"<h2>Curves</h2>{_make_legend(series, links)}{plots}"
    return _make_page(title, body + "<h2>Runs</h2>" + "".join(stories))


def _format_story(reader, extension):
    """Return the story of one run, as Markdown ("md") or HTML."""
    blocks, title = _list_blocks(reader, _read_row(reader)), f"Run {reader.expid}"
    if extension == "html":
        plots = _draw_plots({title: [_read_curves(reader)]}, is_banded=False, is_log=False)
        return _make_page(title, plots + _make_story(blocks))
    text = ""
    for name, *lines in [["# " + title], *blocks]:
        name = re.sub(r"[\\`*_\[\]<>&]", r"\\\g<0>", _show_controls(name))
        inside = "\n".join(map(_show_controls, lines))
        fence = "`" * (2 + max(map(len, re.findall("`+", inside)), default=1))  # longer than any inside
        text += f"## {name}\n\n{fence}\n{inside}\n{fence}\n\n" if lines else f"{name}\n\n"
    return text


# === Command line =============================================================
# List, show and compare experiments.

_FOUND, _NOTHING_FOUND, _WRONG = 0, 1, 2
_TAIL_LINES = 10
_FRONT = ["header.expid", "header.status", "header.start_time", "header.duration"]


class _NothingFound(QueryException):
    """What was asked for is not there, which has an exit code of its own."""


def _print(lines):
    sys.stdout.write(_encodable("".join(line + "\n" for line in lines), sys.stdout))


def _make_parser(name, epilog):
    import argparse
    from functools import partial

    parser = argparse.ArgumentParser(
        prog=f"meticulous {name}".strip(),
        description=_COMMANDS[name][1],
        epilog=epilog,
        # Given a width, it need not import shutil to ask the terminal.
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=27, width=79),
    )
    add = parser.add_argument
    add("--json", action="store_true", help='print JSON: {"rows": [{"args.lr": 0.1, ...}], ...}')
    add("--project-directory", metavar="DIR", default="", help="look for 'experiments' from here upwards")
    return parser


def _read_named(name, words, *ids):
    """Parse the options of a command on single experiments; returns them, and the readers of *ids*."""
    parser = _make_parser(name, "An ID may be shortened as long as it is unambiguous; -1 is the latest.")
    parser.add_argument("--experiments-directory", metavar="DIR", help="where the experiments are")
    if name == "show":
        parser.add_argument("--job", metavar="JOB", help="instead of an ID, a Slurm job: 1234 or 1234_7")
    for metavar in ids:
        parser.add_argument(metavar, nargs="?" if name == "show" else None)
    options = parser.parse_args(words)
    directory = options.experiments_directory or _find_directory(options.project_directory)
    job = getattr(options, "job", None)
    return options, [_read_one(directory, getattr(options, metavar), job) for metavar in ids]


def _read_one(directory, text, job):
    """Find the one experiment that an ID or a job means."""
    if bool(text) == bool(job):  # an empty one is an unset variable of a shell
        raise QueryException("Name one experiment, by its ID or by --job.")
    names = _find_experiment(directory, text) if text else _find_job(directory, job)
    if not names:
        what = repr(text) if text else f"of job {job}"
        raise _NothingFound(f"There is no experiment {what} in {directory}.")
    if len(names) > 1:
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise QueryException(f"{text or job!r} may be any of {len(names)} experiments: {shown}.")
    return ExperimentReader(os.path.join(directory, names[0]))


def _path(words):
    options, (reader,) = _read_named("path", words, "ID")
    path = os.path.abspath(reader.curexpdir)
    row = {"header.expid": reader.expid, "path": path}
    _print([_format_json([row], row) if options.json else path])
    return _FOUND


def _show(words):
    options, (reader,) = _read_named("show", words, "ID")
    row = _read_row(reader)
    texts = {"status": (reader._read("STATUS") or b"").decode("utf-8", "replace").rstrip().split("\n")}
    for name in ("stdout", "stderr"):
        texts[name] = _read_tail(os.path.join(reader.curexpdir, name), _TAIL_LINES)
    if options.json:
        _print([_format_json([row], row, problems=_list_problems([reader]), **texts)])
    else:
        _print(_format_experiment(reader, row, texts))
    return _FOUND


def _diff(words):
    options, readers = _read_named("diff", words, "A", "B")
    rows = [_read_row(reader) for reader in readers]
    differences, stat = _list_differences(rows), _diff_commits(readers)
    if options.json:
        more = {"differences": differences, "stat": stat, "problems": _list_problems(readers)}
        _print([_format_json(rows, _find_columns(rows), **more)])
    else:
        pairs = [(d["column"], _format_difference(d["values"], d["difference"])) for d in differences]
        _print([*_format_pairs("differences", pairs), "", *map(_show_controls, stat.split("\n"))])
    return _FOUND


def _parse_listing(words, name=""):
    commands = "".join(f"  {name:7}{help}\n" for name, (_, help) in _COMMANDS.items() if name)
    parser = _make_parser(
        name,
        f"commands (meticulous COMMAND --help tells more):\n{commands}\n"
        "Columns are named header.status, args.lr, summary.loss; see --list_columns.\n"
        "Exit code: 0 fine, 1 nothing found, 2 wrong use or error.",
    )
    add = parser.add_argument
    # fmt: off
    add("experiments_directory", metavar="DIRECTORY", nargs="?", help="default: the project's 'experiments'")
    add("--filter", metavar="EXPRESSION", help="only rows where it is true: 'args.lr < 1 and args.seed == 3'")
    add("--groupby", metavar="COLUMN", nargs="+", default=[], help="a row for each value: mean, std, count")
    add("--sort", metavar="COLUMN", nargs="+", default=[], help="sort, largest first")
    add("--sort_reverse", metavar="COLUMN", nargs="+", default=[], help="sort, smallest first")
    add("--tail", metavar="N", type=int, help="only the last N rows")
    add("--columns", metavar="PREFIX", nargs="+", help="only columns whose names begin so")
    add("--args", choices=["none", "truncated", "non-default", "all"], help="which arguments to show")
    add("--list_columns", action="store_true", help="print the names of the columns")
    add("--normalize_json_values", metavar="N", type=int, default=0, help="make N levels of dicts columns")
    add("--flat_cols", action="store_true", help="write titles as names: args.lr")
    add("--export", metavar="FILE", help="write FILE.csv, .json, .md, .tex, or .pd (a pickle; needs pandas)")
    add("--version", action="store_true", help="print the version, and git's hash of this very file")
    # fmt: on
    if name == "report":
        add(
            "-o",
            "--output",
            metavar="FILE",
            default="report.html",
            help="default: report.html; it has curves and stories "
            f"of {_MOST_STORIES} runs at most, {_MOST_PLOTS} metrics, {_MOST_POINTS} points a curve",
        )
        add("--log", action="store_true", help="draw curves on a logarithmic scale")
    options = parser.parse_args(words)
    if options.export and _find_ending(options.export) not in _FORMATS:
        parser.error(f"--export {options.export!r}: the ending is one of .{', .'.join(_FORMATS)}")
    if (options.tail or 0) < 0 or options.normalize_json_values < 0:
        parser.error("--tail and --normalize_json_values take no negative numbers")
    options.is_for_people = not (options.columns or options.export or options.json or options.list_columns)
    return options


def _describe_version():
    """Give the version, and the name that git has for this very file, so that an edited copy shows."""
    from hashlib import sha1

    content = _read_bytes(__file__)
    sha = sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return f"meticulous {__version__}, git blob {sha}"


def _list(words):
    import gc

    options = _parse_listing(words)
    if options.version:
        _print([_describe_version()])
        return _FOUND
    directory = options.experiments_directory or _find_directory(options.project_directory)
    gc.disable()  # All that is loaded stays: looking for garbage in it would take a tenth of the time.
    try:
        rows, problems = _load_rows(directory, _list_needs(options), options.normalize_json_values)
    finally:
        gc.enable()
    columns = _find_columns(rows)
    if options.filter and rows:
        rows = _filter_rows(rows, columns, options.filter)
    if rows:
        rows, columns = _arrange(rows, columns, options)
    else:
        _warn(f"there are no{' such' if options.filter else ''} experiments in {directory}")
    _write_listing(rows, columns, problems, options)
    return _FOUND if rows else _NOTHING_FOUND


def _list_needs(options):
    """List what the names of the needed columns begin with."""
    names = options.columns
    if options.is_for_people:
        names = ["header", "args", "default_args", "summary"]
    if not names:
        return _GROUPS
    in_filter = [group for group in _GROUPS if group in (options.filter or "")]
    defaults = ["default_args"] if options.args else []
    return names + options.sort + options.sort_reverse + options.groupby + in_filter + defaults


def _arrange(rows, columns, options):
    """Group, sort and cut *rows*, and choose the columns to show: both."""
    keys = [_resolve_column(rows, columns, name) for name in options.groupby]
    if keys:
        rows = _group_rows(rows, columns, keys)
        columns = keys + [column for column in _find_columns(rows) if column not in keys]
    for names, descending in ((options.sort_reverse, False), (options.sort, True)):
        rows = _sort_rows(rows, [_resolve_column(rows, columns, name) for name in names], descending)
    if options.tail is not None:
        rows = rows[max(0, len(rows) - options.tail) :]
    if options.args:
        columns = keys + [c for c in _choose_args(rows, columns, options.args) if c not in keys]
    if options.columns:
        columns = _choose_columns(rows, columns, options.columns)
    elif options.is_for_people and keys:
        columns = [c for c in columns if c in keys or c == "header.expid.count" or c.startswith("summary.")]
    elif options.is_for_people:
        shown = [c for c in columns if c.startswith("args") and (options.args or _is_telling(rows, c))]
        columns = _FRONT + shown + [c for c in columns if c.startswith("summary.")]
    return rows, columns


def _write_listing(rows, columns, problems, options):
    if options.export:
        _export(options.export, rows, columns, options.normalize_json_values, options.flat_cols)
        _warn(f"wrote {len(rows)} rows to {options.export}")
    elif options.list_columns:
        _print([_format_json([], columns, columns=columns)] if options.json else map(_show_controls, columns))
    elif options.json:
        _print([_format_json(rows, columns, problems=problems)])
    else:
        _print(_format_listing(rows, columns, problems, options))


def _format_listing(rows, columns, problems, options):
    """Format a table for the terminal that stdout is, or for a pipe, which has no width and no colors."""
    messages, width, colors = [], None, False
    if options.is_for_people and not options.groupby:
        messages = [row["header.status_message"] for row in rows]
        _shorten_times(rows)
    if sys.stdout.isatty():
        from shutil import get_terminal_size

        width, colors = get_terminal_size().columns, not os.environ.get("NO_COLOR")
    lines = _format_table(rows, columns, width, options.flat_cols, colors, messages) if rows else []
    if problems:
        shown = [f"{name} ({'; '.join(notes)})" for name, notes in list(problems.items())[:5]]
        more = ", ..." if len(problems) > 5 else "."
        lines.append(_show_controls(f"{len(problems)} could not be read whole: {', '.join(shown)}{more}"))
    return lines


def _report(words):
    import gc

    options = _parse_listing(words, "report")
    directory = options.experiments_directory or _find_directory(options.project_directory)
    rows, _ = _load_rows(directory, _GROUPS, options.normalize_json_values)
    columns = _find_columns(rows)
    if options.filter and rows:
        rows = _filter_rows(rows, columns, options.filter)
    if not rows:
        raise _NothingFound(f"There are no such experiments in {directory}.")
    over = [_resolve_column(rows, columns, name) for name in getattr(options, "over", None) or []]
    table, columns = _arrange(rows, columns, options)
    gc.disable()  # As in _list().
    page = _make_report(directory, rows, table, columns, over, options.log)
    _write_file(options.output, page.encode("utf-8", "backslashreplace"))
    _warn(f"wrote {len(table)} rows to {options.output}")
    return _FOUND


_COMMANDS = {
    "": (_list, "List experiments: what differs, and what came of it."),
    "show": (_show, "Show everything about one experiment."),
    "diff": (_diff, "Compare two experiments: arguments, results and commits."),
    "report": (_report, "Write experiments, their curves and stories as one HTML page."),
    "path": (_path, "Print the path of an experiment's folder."),
    "run": (_run, "Record any command: run [OPTIONS] -- COMMAND [ARGUMENT ...]"),
}


def main(argv: "Optional[Sequence[str]]" = None) -> int:
    """List, show or compare experiments, as the command line does; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words.pop(0) if words and words[0] in _COMMANDS else ""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 it is None after `>&-`
    try:
        code = _COMMANDS[name][0](words)
        sys.stdout.flush()
        return code
    except MeticulousException as error:
        _warn(str(error))
        return _NOTHING_FOUND if isinstance(error, _NothingFound) else _WRONG
    except OSError as error:
        # A full disk, or `| head` has seen enough. At its end Python flushes again, and that must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return _FOUND
        _warn(f"{_explain(error)}.")
        return _WRONG


if __name__ == "__main__":
    sys.exit(main())
