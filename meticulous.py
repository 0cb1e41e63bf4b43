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

if getattr(globals().get("_session"), "experiments", None):
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

_BLOCK = 64 * 1024
# Without O_NONBLOCK, opening a named pipe in place of a file would wait forever (fifo(7)).
_READ_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_CLAIM_PREFIX = b".claim-"
_BUILD_PREFIX = ".new-"  # a hidden folder that becomes an experiment, or an attempt, by rename
_HIDDEN_LIFE_S = 3600  # longer than any start takes
_LONGEST_ID = 200  # bytes, because names of hidden files are longer than the id


def _local_time(timestamp=None):
    """Format seconds since the epoch (default: now) as local ISO 8601 with microseconds."""
    timestamp = time.time() if timestamp is None else timestamp
    seconds, microseconds = divmod(int(timestamp * 1000000), 1000000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(seconds)) + f".{microseconds:06d}"


def _unique_name():
    """Return a name that no other process on any node makes."""
    return os.urandom(8).hex()


def _encodable(text, stream):
    """Escape the characters of *text* that the encoding of *stream* lacks."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _show_controls(text):
    """Escape control characters and others that can't be printed, so that a terminal never obeys them."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _say(text):
    """Write *text* to stderr, if that works."""
    try:
        sys.stderr.write(_encodable(text, sys.stderr))
        sys.stderr.flush()
    except Exception:
        # stderr may be None, closed, full or a broken replacement: not a reason to disturb the program.
        pass


def _warn(text):
    """Write a message of one or two lines to stderr."""
    _say("meticulous: " + "\n".join(map(_show_controls, text.split("\n"))) + "\n")


def _explain(error):
    """Return the message of an OSError in a few words."""
    return error.strerror or str(error)


def _create_file(path, content):
    """Write *content* (bytes) to a file in a folder that no other process knows of yet."""
    with open(path, "wb") as file:
        file.write(content)


def _write_file(path, content):
    """Put *content* (bytes) at *path* so that a reader sees either the old file or the new one, complete.

    Not synced to disk: after a power cut it may be the old one. OSError names *path*.
    """
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{_unique_name()}.tmp")
    try:
        _create_file(temporary, content)
        _replace_file(temporary, path)
    except BaseException as error:
        _remove_file(temporary)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, path) from error
        raise


def _replace_file(source, target):
    for _ in range(100 if _WINDOWS else 0):
        try:
            return os.replace(source, target)
        except PermissionError:  # there, a reader that has the file open forbids it
            time.sleep(0.01)
    return os.replace(source, target)


def _remove_file(path):
    """Remove the file *path* if it is there."""
    try:
        os.unlink(path)
    except OSError:
        pass


def _remove_folder(path):
    """Remove a folder and everything in it, as far as possible."""
    import shutil

    shutil.rmtree(path, ignore_errors=True)


def _to_bytes(value):
    """Write plain JSON as the package does: indented by four, ASCII."""
    import json

    return json.dumps(value, indent=4).encode("ascii")


def _read_file(path, limit=None):
    """Return the content of a file, or its last *limit* bytes. Raises OSError."""
    descriptor = os.open(path, _READ_FLAGS)
    try:
        if limit is not None:
            os.lseek(descriptor, max(0, os.fstat(descriptor).st_size - limit), os.SEEK_SET)
        content = os.read(descriptor, _BLOCK)
        if len(content) == _BLOCK:
            content += os.read(descriptor, os.fstat(descriptor).st_size)  # 0 for a device, which has no end
        return content
    finally:
        os.close(descriptor)


def _read_if_there(path):
    """Return the content of a file, None if it is missing."""
    try:
        return _read_file(path)
    except FileNotFoundError:
        return None


def _load_mapping(path):
    """Read a JSON object; a missing one is empty. Raises FolderException if it is something else."""
    import json

    try:
        content = _read_if_there(path)
        value = {} if content is None else json.loads(content.decode("utf-8"))
    except OSError as error:
        raise FolderException(path, f"can't be read: {_explain(error)}.", error.errno) from error
    except (ValueError, RecursionError) as error:
        raise FolderException(path, f"can't be read ({error}): fix it, or move it away.") from error
    if not isinstance(value, dict):
        raise FolderException(path, "does not hold a JSON object: fix it, or move it away.")
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
        raise InvalidIdException(experiment_id, "it is neither a string nor an integer")
    name = str(experiment_id)
    if name.startswith((".", "-")):
        raise InvalidIdException(experiment_id, "it begins with '.' or '-'")
    if any(ord(character) < 32 or character in "/\\\x7f" for character in name):
        raise InvalidIdException(experiment_id, "it contains a separator or a control character")
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:
        raise InvalidIdException(experiment_id, "this system can't encode it as a file name") from None
    if len(encoded) > _LONGEST_ID:
        raise InvalidIdException(experiment_id, f"it is longer than {_LONGEST_ID} bytes")
    return name


def _list_ids(directory):
    """Return the largest integer id given out in *directory*, and the hidden names there that are ours."""
    from itertools import filterfalse

    # As bytes, because only bytes.isdigit means ASCII digits; and in C, because there may be 100,000.
    names = os.listdir(os.fsencode(directory))
    ours = (_CLAIM_PREFIX, os.fsencode(_BUILD_PREFIX))
    hidden = [name for name in filterfalse(bytes.isdigit, names) if name.startswith(ours)]
    claimed = [name.replace(_CLAIM_PREFIX, b"") for name in hidden]
    return max(map(int, filter(bytes.isdigit, names + claimed)), default=0), hidden


def _claim_path(directory, number):
    return os.path.join(os.fsencode(directory), _CLAIM_PREFIX + b"%d" % number)


def _claim_id(directory, number):
    """Claim the integer id *number*; return whether it was not given out before."""
    try:
        os.close(os.open(_claim_path(directory, number), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        return True
    except FileExistsError:
        return False


def _claim_ids(directory, undo):
    """Yield integer ids that only the caller has claimed, the next free one first.

    A claim outlives its folder, so that no id is given out twice, and is swept after an hour. The ExitStack
    *undo* is to give them back.
    """
    listed_at = time.monotonic()
    largest, hidden = _list_ids(directory)
    number = largest
    while True:
        number += 1
        # After losing, try the next number: network file systems may answer a second listing from a cache.
        if not _claim_id(directory, number):
            continue
        if time.monotonic() - listed_at > _HIDDEN_LIFE_S / 2:
            # This process was stopped so long that claims it has not listed may have been swept already.
            listed_at = time.monotonic()
            largest, hidden = _list_ids(directory)
            number = largest
            continue
        path = _claim_path(directory, number)
        undo.callback(_remove_file, path)
        # The memory of the largest id that was given out, should this one be given back.
        memory = os.path.basename(_claim_path(directory, largest))
        _sweep(os.fsencode(directory), [name for name in hidden if name != memory], os.stat(path).st_mtime)
        yield number


def _sweep(directory, names, now):
    """Remove some of the hidden files and folders *names* that are an hour old at *now*, the oldest first.

    *now* is the time of a file there, because the clock of a file server need not agree with this node's.
    """
    names = sorted(names, key=lambda name: (len(name), name))  # claims count up
    # From a random one on, because the first ones may belong to another user in a sticky directory.
    start = int.from_bytes(os.urandom(4), "big") % max(1, len(names))
    for name in (names[start:] + names[:start])[:16]:
        path = os.path.join(directory, name)
        try:
            if now - os.lstat(path).st_mtime < _HIDDEN_LIFE_S:
                return
            os.unlink(path)
        except OSError:
            if os.path.isdir(path):
                _remove_folder(path)


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


def _check_mapping(name, value):
    import json

    plain = _to_json(value)
    try:
        plain = json.loads(json.dumps(plain))
    except (ValueError, RecursionError) as error:  # a number of thousands of digits
        raise InvalidArgsException(f"{name} can't be written as JSON: {error}.") from None
    if not isinstance(plain, dict):
        raise InvalidArgsException(f"{name} must be a mapping, not {type(value).__name__}.")
    return plain


# === Process ==================================================================
# Who am I, who lives, and who owns an experiment's folder.

_JOB = ("SLURM_CLUSTER_NAME", "SLURM_JOB_ID", "SLURM_JOB_UID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID",
        "SLURMD_NODENAME")  # fmt: skip
_TASK = ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_PROCID", "SLURM_HET_JOB_ID")
_NODES = ("SLURM_JOB_NAME", "SLURM_JOB_PARTITION", "SLURM_JOB_NODELIST")
_GPUS = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "SLURM_JOB_GPUS")
_RANKS = (
    ("RANK", "WORLD_SIZE"),  # torchrun, or by hand
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI
    ("PMI_RANK", "PMI_SIZE"),  # MPICH and its relatives
)
# Of the environment, only what results may depend on.
_COMPARED_VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PYTHONHASHSEED")
_OUTSIDE_CONTAINERS = "pid:[4026531836]"  # the number that Linux gives to the first pid namespace
_SILENCE_S = 600  # an owner that can't be asked is given up after so long without a sign of life
_SLURM_TIMEOUT_S = 10
_SLURM_ANSWER_LIFE_S = 10


def _read_text(path):
    """Read a small file of the system; '' if it is missing, as on macOS."""
    try:
        return _read_file(path).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def _read_link(path):
    """Read a symbolic link of the system; '' if it is missing."""
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _read_stat(pid):
    """Return state, start and stack of a process, as in proc(5); ("", None, None) without /proc.

    The start is in clock ticks since the boot. The stack (part of its address) moves with an exec, which
    keeps pid and start; it is 0 for those who may not trace the process.
    """
    # The program's name, in parentheses, may itself contain spaces and parentheses.
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
        # Only its beginning, because machine-id(5) asks to keep it confidential.
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
    """Describe where this process runs, for people: a white list, never the complete environment."""
    log_file = _read_link("/proc/self/fd/1")
    place = {
        "host": _read_host() or None,
        "user": _read_user(),
        "python": sys.version.split()[0],
        "platform": " ".join(os.uname()[i] for i in (0, 2, 4)) if hasattr(os, "uname") else sys.platform,
        # An empty string counts, because it hides all of them.
        "gpus": next((os.environ[name] for name in _GPUS if name in os.environ), None),
        "log-file": log_file if os.path.isfile(log_file) else None,
        **_read_variables(_JOB + _TASK + _NODES),
    }
    return {key: value for key, value in place.items() if value is not None}


def _list_packages():
    """Return the versions of all packages that can be imported, as lines of name==version.

    From the names of *.dist-info and *.egg-info folders: nothing is opened or imported.
    """
    found: "Dict[str, str]" = {}
    for folder in sys.path:
        try:
            names = "\n".join(os.listdir(folder or "."))
        except OSError:
            continue
        for name, version in re.findall(
            r"(?m)^([^-\n]+)-([^-\n]+?)(?:-py[0-9.]+)?\.(?:dist|egg)-info$", names
        ):
            found.setdefault(name, version)
    return "\n".join(f"{name}=={found[name]}" for name in sorted(found))


def _describe_command():
    """Describe how this process was started, so that the same can be started again."""
    words = getattr(sys, "orig_argv", None)  # from Python 3.10 on
    if words is None:
        words = _read_text("/proc/self/cmdline").split("\0")[:-1] or [
            sys.executable,
            *getattr(sys, "argv", []),
        ]
    return {
        "command-line": words,
        "executable": sys.executable,
        "directory": os.getcwd(),
        "environment": {name: os.environ[name] for name in _COMPARED_VARIABLES if name in os.environ},
        "packages": _list_packages(),
    }


def _measure_usage():
    """Return the CPU seconds of this process and its ended children so far, and the peak memory in bytes."""
    try:
        from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
    except ImportError:  # Windows
        return time.process_time(), 0
    own, children = getrusage(RUSAGE_SELF), getrusage(RUSAGE_CHILDREN)
    cpu = sum((own.ru_utime, own.ru_stime, children.ru_utime, children.ru_stime))
    # ru_maxrss is in bytes on macOS, in KiB elsewhere (getrusage(2)).
    return cpu, own.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _find_rank():
    """Return (rank, world size, variable) if this process does one part of a run; None if it does all of it.

    SLURM_PROCID does not count: the tasks of `srun -n 8` are as often eight runs as one.
    """
    get = os.environ.get
    for variable, size_variable in _RANKS:
        rank, size = get(variable, ""), get(size_variable, "")
        if rank.isdecimal() and size.isdecimal() and int(size) > 1:
            # Where Slurm's MpiDefault is pmi2, srun sets PMI_RANK for every program, and PMI_JOBID with it.
            is_by_srun = "PMI_JOBID" in os.environ and size == get("SLURM_STEP_NUM_TASKS")
            if not (variable == "PMI_RANK" and is_by_srun):
                return int(rank), int(size), variable
    # Lightning's own launcher sets no RANK. Of its processes one is the first of the first node.
    node, local, size = get("NODE_RANK", get("GROUP_RANK", "")), get("LOCAL_RANK", ""), get("WORLD_SIZE", "")
    if "RANK" not in os.environ and all(map(str.isdecimal, (node, local, size))) and int(size) > 1:
        return int(node) or int(local), int(size), "LOCAL_RANK"
    return None


def _agree(process, other, *keys):
    return all(process.get(key) == other.get(key) for key in keys)


def _is_running(process, scheduler=None):
    """Return whether a process that _describe_process() described runs; None if it is unknown.

    *scheduler* is a _Scheduler to ask about a process that can't be seen from here. A process that is stopped
    or frozen runs; a zombie does not. False is certain for a process of this machine; Slurm says it, too, of
    a node that it lost contact with.
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
        if not _agree(process, here, "slurm-restart-count"):
            return False
        if "slurm-step-id" not in process:
            return None  # the job runs, as we do, which says nothing of its other processes
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
        return "process-start" in process or _was_started_before(pid, process.get("start-epoch"))
    has_executed = stack and process.get("process-stack", stack) != stack
    return state not in "ZX" and process.get("process-start", start) == start and not has_executed


def _was_started_before(pid, epoch):
    """Return whether process *pid* began before *epoch*, as ps(1) says; True if it doesn't say (macOS)."""
    from subprocess import DEVNULL, SubprocessError, check_output

    try:
        command = ["ps", "-o", "lstart=", "-p", str(pid)]
        answer = check_output(command, env=dict(os.environ, LC_ALL="C"), stderr=DEVNULL, timeout=5)
        return time.mktime(time.strptime(answer.decode().strip())) <= epoch + 2
    except (OSError, SubprocessError, TypeError, ValueError):
        return True


class _Scheduler:
    """Ask Slurm about the jobs of this user: once for a complete listing, and only if a record needs it."""

    def __init__(self):
        self._cluster, self._jobs, self._steps, self._valid_until = "", {}, [], float("-inf")

    def is_job_running(self, process):
        """Return whether the job that *process* is part of runs; None if Slurm can't tell."""
        # Many sites hide the jobs of other users. What salloc starts on a login node, without a slurmd, may
        # outlive its job.
        if _WINDOWS or "slurmd-nodename" not in process or process.get("slurm-job-uid") != os.getuid():
            return None
        if time.monotonic() > self._valid_until:
            self._cluster, self._jobs, self._steps = _ask_slurm()
            self._valid_until = time.monotonic() + _SLURM_ANSWER_LIFE_S
        if process.get("slurm-cluster-name") != self._cluster:
            return None  # other clusters have the same numbers
        job, step = process.get("slurm-job-id"), process.get("slurm-step-id")
        state, restarts = self._jobs.get(str(job), ("GONE", 0))
        # A COMPLETING job that is requeued counts as restarted while its old processes are still being ended.
        has_restarted = restarts > process.get("slurm-restart-count", 0) and state != "COMPLETING"
        if state == "GONE" or has_restarted:
            return False
        if state == "RUNNING" and step is not None and (str(job), str(step)) not in self._steps:
            return False  # a step that has ended, of a job that goes on with the next
        return True if state in ("RUNNING", "SUSPENDED") else None


def _ask_slurm():
    """Return the cluster's name, {job id: (state, restarts)} of this user's jobs, and the ids of their steps.

    ("", {}, []) if Slurm does not answer.
    """
    from functools import partial
    from subprocess import DEVNULL, SubprocessError, TimeoutExpired, check_output

    # These variables are defaults for options, which hide jobs or ask other clusters.
    foreign = ("SQUEUE_", "SLURM_CLUSTERS")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    ask = partial(check_output, env=environment, stderr=DEVNULL, timeout=_SLURM_TIMEOUT_S, errors="replace")
    # --all: also the jobs in partitions that are hidden from this user.
    squeue = ["squeue", "--noheader", "--all", f"--user={os.getuid()}"]
    try:
        cluster = "".join(re.findall(r"(?m)^ClusterName *= *(\S+)", ask(["scontrol", "show", "config"])))
        jobs = re.findall(r"(?m)^(\d+) +(\w+) +(\d+)", ask(squeue + ["--Format=jobid,state,restartcnt"]))
        # The id of a step begins with that of the array, if its job is part of one: 1230_4.0.
        steps = re.findall(r"(?m)^(\d+) .*\.(\w+)", ask(squeue + ["--steps", "--Format=jobid,stepid:50"]))
    except TimeoutExpired:
        _warn(f"Slurm has not answered for {_SLURM_TIMEOUT_S} s: what it knows of running jobs is left out.")
        return "", {}, []
    except (OSError, SubprocessError):
        return "", {}, []
    return cluster, {job: (state, int(restarts)) for job, state, restarts in jobs}, steps


def _last_sign_of_life(folder):
    """Return when an experiment's process last wrote to *folder*, in seconds since the epoch, or None."""
    ours = r"stdout|stderr|STATUS|summary\.json|metadata\.json|metrics\.jsonl|\.attempt-[0-9]+"
    try:
        with os.scandir(folder) as files:
            times = [file.stat().st_mtime for file in files if re.fullmatch(ours, file.name)]
    except OSError:
        return None
    return max(times, default=None)


def _get_attempts(metadata):
    """Return the list of attempts in *metadata*; [] if the package wrote it, which knows of one only."""
    attempts = metadata.get("attempts")
    is_list = isinstance(attempts, list) and all(isinstance(attempt, dict) for attempt in attempts)
    return attempts if is_list else []


def _attempt_path(folder, number):
    return os.path.join(folder, f".attempt-{number}")


def _find_newest_attempt(folder):
    """Return the number of the newest attempt that was claimed; 1 if there was no other."""
    names = (name for name in os.listdir(folder) if re.fullmatch(r"\.attempt-[0-9]+", name))
    return max((int(name[9:]) for name in names), default=1)


def _claim_attempt(folder, process):
    """Claim the next attempt of the experiment in *folder* for *process*; return its number.

    The claim is a rename: a hidden directory that holds the process becomes .attempt-NUMBER, which fails if
    that is there, on network file systems too. The newest claim stays, so that no number is used twice.
    Raises RunningException while the process of the newest attempt may live.
    """
    claim = os.path.join(folder, _BUILD_PREFIX + _unique_name())
    os.mkdir(claim)
    try:
        _create_file(os.path.join(claim, "process.json"), _to_bytes(process))
        while True:
            metadata = _load_mapping(os.path.join(folder, "metadata.json"))
            attempts = len(_get_attempts(metadata))
            newest = max(attempts, _find_newest_attempt(folder))
            _check_gone(folder, metadata, newest, os.stat(claim).st_mtime)
            try:
                os.rename(claim, _attempt_path(folder, newest + 1))
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                continue  # another process was faster: look at that one
            # While this process was stopped, others may have run the experiment and removed older claims.
            if _find_newest_attempt(folder) == newest + 1:
                break
            os.rename(_attempt_path(folder, newest + 1), claim)
    except BaseException:
        _remove_folder(claim)
        raise
    for number in range(2, newest + 1):
        _remove_folder(_attempt_path(folder, number))
    leftovers = [name for name in os.listdir(folder) if re.fullmatch(r"\.new-\w+|\..+\.\w{16}\.tmp", name)]
    _sweep(folder, leftovers, os.stat(_attempt_path(folder, newest + 1)).st_mtime)
    return newest + 1


def _check_gone(folder, metadata, newest, now):
    """Raise RunningException if the *newest* attempt of the experiment in *folder* may still run.

    *now* is the file server's time, which need not agree with this node's.
    """
    attempts = _get_attempts(metadata)
    process = attempts[-1] if attempts else {}
    if newest > max(1, len(attempts)):  # claimed, and metadata does not tell of it yet
        process = _load_mapping(os.path.join(_attempt_path(folder, newest), "process.json"))
    elif not process or "end-time" in process or _read_if_there(os.path.join(folder, "STATUS")) != b"RUNNING":
        return
    is_running = _is_running(process, _Scheduler())
    if is_running is None:
        # Clocks differ a bit, but a time far in the future is not a sign of life.
        sign = _last_sign_of_life(folder)
        is_running = sign is None or abs(now - sign) < _SILENCE_S
        if not is_running:
            name = f"pid {process.get('pid')} on {process.get('host')}"
            _warn(f"{folder} counts as abandoned: it is unknown whether {name} still runs it.")
    if is_running:
        raise RunningException(folder, process, process.get("start-time", "an unknown time"))


class _Session:
    """What belongs to the open experiments of this process; a forked child begins with a new one.

    experiments: the open ones, the latest last. is_exiting: whether the process is at its end. hooks: an
    ExitStack that removes what was installed for them.
    lock: the one lock of this module, re-entrant because a signal handler may print, log and finish.
    """

    def __init__(self):
        from _thread import RLock  # what threading.RLock() returns, without importing threading

        self.lock = RLock()
        self.experiments = []
        self.hooks = None
        self.is_exiting = False
        self._holders = []
        self._held = []

    def is_holding(self, signum):
        """Return whether a signal has to wait; it is sent again when it need not any more."""
        if self._holders:
            self._held.append(signum)
        return bool(self._holders)

    def get_killer(self):
        """Return the signal that will end this process when it need not wait any more, None without one."""
        import signal

        return next((signum for signum in self._held if signum != signal.SIGINT), None)

    def hold(self):
        """Have the handlers of our signals wait until release()."""
        self._holders.append(None)

    def release(self):
        del self._holders[-1:]  # in a child that was forked in between there are none
        while self._held and not self._holders:
            import signal
            from _thread import interrupt_main

            signum = self._held.pop()
            if signum != signal.SIGINT:
                os.kill(os.getpid(), signum)
            elif not self.is_exiting:  # else it ends already, as the Ctrl-C is meant to do
                interrupt_main()  # on Windows os.kill would end the process


class _Hold:
    """Hold SIGTERM, SIGHUP and Ctrl-C until the end of a block, so that it is not left half done."""

    def __enter__(self):
        import signal

        _session.hold()
        handler: "Any" = signal.getsignal(signal.SIGINT)
        self._handler = handler if callable(handler) and _in_main_thread() else None
        if self._handler:
            # A child that a thread forks meanwhile has a session of its own, which holds nothing.
            signal.signal(signal.SIGINT, lambda *args: _session.is_holding(args[0]) or handler(*args))

    def __exit__(self, *exc_info):
        import signal

        if self._handler:
            signal.signal(signal.SIGINT, self._handler)
        _session.release()


def _in_main_thread():
    import threading

    return threading.get_ident() == threading.main_thread().ident


_session = _Session()


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
            is_plain = not os.path.isfile(config) or b"worktree" not in _read_file(config).lower()
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
    content = _read_file(file) if os.path.isfile(file) and not os.path.islink(file) else b""
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


def _prepare_repository(work_tree, experiments_directory, make_directory, allow_dirty=False):
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


def _differs_only_by_our_commits(work_tree, recorded, head):
    return False


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
# Record what is written to sys.stdout and sys.stderr. The streams stay the same objects: their methods are
# patched, so whoever got hold of a stream before (logging handlers, `from sys import stderr`) is recorded.
#
#     print -> write -> the stream's own write, at once
#                    -> _Recorder.pending -> when a line ends -> _OutputFile of each experiment

# Never through a link that somebody planted in a shared folder; O_NONBLOCK: see _READ_FLAGS.
_APPEND = os.O_WRONLY | os.O_APPEND
for _flag in ("O_BINARY", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"):
    _APPEND |= getattr(os, _flag, 0)
_BAR_INTERVAL_S = 10.0  # how often a file shows a progress bar that is still running
_LONGEST_BAR = 1 << 16  # bytes; more is not a bar
_UNSAVED_LIMIT = 1 << 20  # bytes kept while they can't be written; the rest is replaced by this:
_GAP = b"\n[meticulous: output is missing here]\n"

# Token bucket: each line costs 0.1 ms, up to 40 ms can be saved; over budget, write every 10 ms. So a line at
# ordinary pace, a traceback or the report of an epoch is in the file when print returns.
_LINE_S = 0.0001
_SAVED_S = 0.04
_FLOOD_INTERVAL_S = 0.01
_WRITES_PENDING = 1000  # so many are written even if no line ended,
_LONGEST_PENDING = 4096  # and anything that has so many characters

# What a carriage return overwrote in a line. "\r\n" ends a line, and after "50%\r" the screen shows 50%.
_OVERWRITTEN = rb"(?m)^.*\r(?=[^\r\n])"
# How nested bars (tqdm, rich) move: to the next line, up some lines, and erase a line (ECMA-48 CUU and EL).
_MOVES = rb"(\n|\x1b\[[0-9]*A|\x1b\[2K)"


def _fold(data):
    """Return the lines that a screen shows after *data*, and the number of the one with the cursor."""
    rows, row = [b""], 0
    for part in re.split(_MOVES, data):
        if part == b"\n":
            row += 1
            rows[row:] = rows[row:] or [b""]
        elif part == b"\x1b[2K":
            rows[row] = b"\r"
        elif part.startswith(b"\x1b[") and re.fullmatch(_MOVES, part):
            row = max(0, row - int(part[2:-1] or 1))
        elif part:
            rows[row] = re.sub(_OVERWRITTEN, b"\r", rows[row] + part)
    return rows, row


class _OutputFile:
    """A file that output is appended to: `add` bytes, `save` them; `close`. Only the constructor fails.

    *faults* is a list that the files of one experiment share, so that a full disk is reported once.
    """

    def __init__(self, path, faults):
        self.path = path
        self.faults = faults
        self.descriptor = _open_to_append(path, os.O_CREAT)
        self.identity = _identify(self.descriptor)
        self.holders = 0  # how many are in the middle of something with it
        self.is_leaving = False  # was it closed meanwhile?
        self.bar = b""  # the last lines while they are a progress bar, whose next state may overwrite them
        self.bar_since = 0.0
        self.has_moved = False  # has the cursor moved up since the bar was last saved?
        self.in_line = False  # did what was added end in the middle of a line?
        self.unsaved = bytearray()
        if os.fstat(self.descriptor).st_size and _read_file(path, 1) != b"\n":
            self.unsaved += b"\n"  # an earlier attempt was killed in the middle of a line

    def add(self, data):
        """Take bytes to be saved, but hold back a progress bar until it is complete or was long unseen."""
        if self.bar or b"\r" in data or b"\x1b[" in data:
            data = self._hold_bar(self.bar + data)
        self._add_lines(data)

    def _hold_bar(self, data):
        now = time.monotonic()
        if not self.bar:
            self.bar_since = now
        self.has_moved = self.has_moved or re.search(rb"\x1b\[[0-9]*A", data) is not None
        is_due = now - self.bar_since >= _BAR_INTERVAL_S or len(self.bar) > _LONGEST_BAR
        if self.has_moved:
            rows, row = _fold(data)
            self.has_moved = not is_due
            if is_due:
                self.bar = b""
                return b"\n".join(line.rstrip(b"\r") for line in rows)
            self.bar = b"\n".join(rows) + b"\x1b[%dA" % (len(rows) - 1 - row) * (row < len(rows) - 1)
            return b""
        start = data.rfind(b"\n") + 1
        if b"\r" not in data[start:] or is_due:
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

    def release_bar(self):
        """Add what was held back."""
        data, self.bar = self.bar, b""
        self._add_lines(b"\n".join(_fold(data)[0]))

    def hold(self):
        """Keep the file open until release(), because a signal handler may finish the experiment meanwhile.

        Without this, what is being written would land in the next file that gets the descriptor's number.
        """
        self.holders += 1

    def release(self):
        self.holders -= 1
        if self.is_leaving:
            self.close()

    def save(self):
        """Write what was added. What can't be written now is kept for a later call, up to a limit."""
        self.hold()
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
        finally:
            self.release()

    def append_line(self, data):
        """Write a complete line at once, by one write(2), if nothing waits to be saved before it."""
        written = 0
        self.hold()
        try:
            status = os.fstat(self.descriptor)
            if not self.unsaved and (status.st_dev, status.st_ino, status.st_nlink > 0) == self.identity:
                written = os.write(self.descriptor, data)
        except OSError:
            pass  # save() tries once more, and reports it
        finally:
            self.release()
        if written < len(data):
            self.unsaved += data[written:]
            self.save()

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
        record of a later experiment that got our id, or of a later attempt on another node.
        """
        if _identify(self.descriptor) != self.identity:
            if _identify(self.path) != self.identity:
                raise OSError(errno.ESTALE, "another file is in its place")
            self.descriptor = _open_to_append(self.path)

    def close(self):
        """Save what was added and close the file, unless the program has closed it and opened another."""
        self.is_leaving = self.holders > 0
        if self.is_leaving:
            return
        self.release_bar()
        self.save()
        try:
            found = _identify(self.descriptor)
            if found and found[:2] == self.identity[:2]:
                os.close(self.descriptor)
        except OSError as error:  # a network file system may report only now that a write has failed
            self._report(error)


def _open_to_append(path, more_flags=0):
    """Open a file for appending; the descriptor is never 0, 1 or 2, which a program may find closed."""
    descriptor = os.open(path, _APPEND | more_flags, 0o666)
    if descriptor <= 2:
        import fcntl

        low, descriptor = descriptor, fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
        os.close(low)
    return descriptor


def _identify(file):
    """Return what tells a path's or descriptor's file from others, and if it has a name; None if closed."""
    try:
        status = os.stat(file)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        return None
    return status.st_dev, status.st_ino, status.st_nlink > 0


class _Recorder:
    """Records what is written to one stream, in the files of the open experiments, by patching the stream."""

    def __init__(self, stream):
        self.stream = stream
        self.files = []
        self.pending = []  # str, and the bytes that were written to .buffer
        self.is_flushing = False
        self.due = 0.0  # when the next line is to be written
        self.used_until = 0.0
        self.patches = []
        self.patch(stream, "write", self._wrap_write(stream.write))
        self.patch(stream, "flush", self._wrap_flush(getattr(stream, "flush", None)))
        try:
            self.patch(stream.buffer, "write", self._wrap_write_bytes(stream.buffer.write))
        except Exception:
            pass  # no buffer, as in io.StringIO, or one that can't be patched

    def patch(self, owner, name, new):
        self.patches.append((owner, name, new, vars(owner).get(name)))
        setattr(owner, name, new)

    def remove_patches(self):
        """Put back what was there. Another tool's patch stays, and ours below it then only passes on."""
        for owner, name, new, before in self.patches:
            if vars(owner).get(name) is new:
                delattr(owner, name) if before is None else setattr(owner, name, before)

    def _wrap_write(self, write_below):
        """Return a `write` for text that also records."""
        # print calls it twice: a method, or a search for the newline each time, would cost a fifth more.
        files, append, monotonic = self.files, self.pending.append, time.monotonic

        def write(self, text):
            count = write_below(text)
            if files:
                append(text)
                if monotonic() >= self.due:
                    self.flush_line(str(text))
            return count

        # Bound, so that it stays as it is as an attribute of a class, as the stream's own methods do.
        return write.__get__(self)

    def _wrap_write_bytes(self, write_below):
        """Return a `write` for bytes that also records, unless they are text that is recorded already."""

        def write(self, data):
            count = write_below(data)
            if self.files and not self._is_passing_on(sys._getframe().f_back):
                self.pending.append(bytes(data)[: count or 0])  # a raw stream may take only a part
                if time.monotonic() >= self.due:
                    self.flush()
            return count

        return write.__get__(self)

    def _wrap_flush(self, flush_below):
        def flush(self):
            # Whoever patched the stream before us may put back what was below: IPython does for each cell.
            write = self.stream.write
            if self.files and getattr(write, "__self__", None) is self.stream:
                self.patch(self.stream, "write", self._wrap_write(write))
            self.flush()
            return flush_below and flush_below()

        return flush.__get__(self)

    def _is_passing_on(self, frame):
        """Return whether *frame* is below our own write or flush: TextIOWrapper passes text on to .buffer."""
        while frame is not None:
            if frame.f_code.co_name in ("write", "flush") and frame.f_locals.get("self") is self:
                return True
            frame = frame.f_back
        return False

    def remove_file(self, file):
        """Record in *file* no more; after the last one, give the stream back."""
        self.flush()
        self.files.remove(file)
        if not self.files:
            self.remove_patches()

    def flush_line(self, text):
        """Flush if *text* ended a line or moved a progress bar, or much has come without."""
        if (
            "\n" in text
            or "\r" in text
            or len(self.pending) >= _WRITES_PENDING
            or len(text) > _LONGEST_PENDING
        ):
            self.flush()

    def flush(self, is_waiting=True):
        """Write what is pending. In a signal handler that interrupted a flush, leave it to that one."""
        # At exit, a daemon thread that is stopped for good may have the lock; at a fork, one that is slow.
        lock = _session.lock
        if not lock.acquire(is_waiting and not _session.is_exiting):
            return
        try:
            if not self.is_flushing:
                self._flush_pending()
        finally:
            lock.release()

    def _flush_pending(self):
        files = self.files[:]
        try:
            self.is_flushing = True
            _session.hold()
            for file in files:
                file.hold()
            while self.pending:
                self._save_pending(files)
        finally:
            self.is_flushing = False
            for file in files:
                file.release()
            _session.release()

    def _save_pending(self, files):
        parts = self.pending[:]
        data = _encode_parts(parts)
        del self.pending[: len(parts)]  # not sooner: the above is long enough for a signal that ends us
        for file in files:
            file.add(data)
            file.save()
        self._set_pace(max(1, min(len(parts), data.count(b"\n"))))

    def _set_pace(self, lines):
        """Take *lines* tokens out of the bucket, and determine when the next line is to be written."""
        now = time.monotonic()
        # Not more for what a flood has left, so that a traceback soon after it finds something saved.
        used = min(lines * _LINE_S, _SAVED_S / 2)
        self.used_until = min(max(self.used_until, now - _SAVED_S) + used, now + _LINE_S)
        self.due = now + _FLOOD_INTERVAL_S if self.used_until > now else 0.0

    def forget(self):
        """In a forked child, drop what the parent writes."""
        self.is_flushing = False
        del self.pending[:]
        for file in self.files:
            file.bar, file.unsaved, file.holders = b"", bytearray(), 0


def _encode_parts(parts):
    try:
        return "".join(parts).encode("utf-8", "backslashreplace")
    except TypeError:  # there are bytes among them
        return b"".join(
            part if isinstance(part, bytes) else str(part).encode("utf-8", "backslashreplace")
            for part in parts
        )


class _StandIn:
    """Replaces a stream that refuses attributes: all but the methods that are patched is the stream's."""

    def __init__(self, stream):
        self.replaced = stream

    def __getattr__(self, name):
        return getattr(self.replaced, name)

    def writelines(self, lines):
        for line in lines:
            self.write(line)


def _find_recorder(name):
    """Return the recorder of sys.stdout or sys.stderr, made if need be; None where there is no stream."""
    stream: "Any" = getattr(sys, name)
    if not hasattr(stream, "write"):
        return None
    recorder = getattr(stream.write, "__self__", None)
    if isinstance(recorder, _Recorder):
        if recorder.files:
            return recorder
        recorder.remove_patches()  # of an experiment that ended below another tool's patch
    try:
        return _Recorder(stream)
    except Exception:  # with __slots__, or of a class written in C
        stand_in = _StandIn(stream)
        recorder = _Recorder(stand_in)
        recorder.patch(sys, name, stand_in)
        return recorder


class _Capture:
    """The recording of one experiment's output in *folder*, from start() until close().

    Raises OSError if the files can't be opened.
    """

    def __init__(self, folder):
        self.faults: "List[OSError]" = []
        self._recorders: "Dict[str, Any]" = {}
        self._files: "Dict[str, Any]" = {}
        try:
            for name in ("stdout", "stderr"):
                self._files[name] = _OutputFile(os.path.join(folder, name), self.faults)
        except OSError:
            self.close()
            raise

    def start(self, folder):
        """Record from now on; the files are in *folder* by now."""
        with _session.lock:
            for name, file in self._files.items():
                file.path = os.path.join(folder, name)
                recorder = _find_recorder(name)
                if recorder:
                    recorder.flush()
                    recorder.files.append(file)
                    self._recorders[name] = recorder

    def record(self, name, data):
        """Record *data*, bytes that a child wrote to its "stdout" or "stderr"."""
        file = self._files[name]
        file.add(data)
        file.save()

    def flush(self, is_waiting=True):
        for recorder in self._recorders.values():
            recorder.flush(is_waiting)

    def settle(self):
        """Save everything, and go on recording what atexit handlers print that were registered before us."""
        with _session.lock:
            self.flush()
            for file in self._files.values():
                file.release_bar()
                file.save()

    def forget(self):
        for recorder in self._recorders.values():
            recorder.forget()

    def close(self):
        """End this recording, and give the streams back if it was the last. Again: nothing."""
        with _session.lock:
            files, self._files = self._files, {}
            for name, file in files.items():
                if name in self._recorders:
                    self._recorders[name].remove_file(file)
                file.close()


# === Ending ===================================================================
# Record how the process ends, for the experiments that are still open.
#
# the end of the script         its frame stopped at a RETURN instruction
# an exception                  sys.last_traceback goes through that frame
# sys.exit(), exit(), quit()    Python asks a SystemExit for its code when it ends the process
# SIGTERM, SIGHUP               a handler, where the action was the default one
# SIGKILL, os._exit(), exec     nothing of ours runs; the reader finds that the process is gone
#
# The first three are looked at in an atexit handler: the threads that Python waits for have ended then, and
# the excepthook, which stays the user's, has shown its traceback.

# Opcodes; Python 3.12 and 3.13 have another for constants. The module opcode can't be imported when a program
# ends without a file descriptor left.
_RETURNS = {function.__code__.co_code[-2] for function in (lambda value: value, lambda: None)}
_TOOL = 4  # of sys.monitoring; 0, 1, 2 and 5 are for debuggers, coverage, profilers and optimizers


class _ExitCode:
    """What is known of the exit code; all copies of this file in a process share one.

    open_copies: how many of them have open experiments. asked: the STATUS for the code, once Python has asked
    a SystemExit for it. raised: (instruction of *frame*, the same) of the latest sys.exit(). called: the same of
    the latest SystemExit that *frame* itself made. frame: the one whose end is the program's.
    """

    def __init__(self):
        self.open_copies = 0
        self.frame = self.asked = self.raised = self.called = None
        self.is_launched = self.is_shell = False


_exit_code: "Any" = getattr(sys.exit, "exit_code", None) or _ExitCode()


class _Exit(SystemExit):
    """A SystemExit that notices when Python itself asks for its code, because it ends the process."""

    def __getattribute__(self, name):
        value = super().__getattribute__(name)
        if name == "code" and sys._getframe().f_back is None:
            _exit_code.asked = _exit_text(value, self.__context__)
        return value

    def __reduce__(self):
        return SystemExit, self.args


_Exit.__name__ = _Exit.__qualname__ = "SystemExit"
_Exit.__module__ = "builtins"


def _wrap_exit(owner, name):
    """Have the function *owner*.*name* raise an _Exit in place of a SystemExit while an experiment is open."""
    import functools

    original = getattr(owner, name)
    if hasattr(original, "exit_code"):
        return  # wrapped already, perhaps by another copy of this file

    @functools.wraps(original)
    def exit_noticed(*args, **kwargs):
        try:
            return original(*args, **kwargs)
        except SystemExit as error:
            # A thread ends without a traceback only if the type *is* SystemExit.
            if not _exit_code.open_copies or type(error) is not SystemExit or not _in_main_thread():
                raise
            exit = _Exit(*error.args)
            if _exit_code.is_launched:
                _exit_code.raised = _exit_code.frame.f_lasti, _exit_text(error.code, error.__context__)
        raise exit  # not above, where the other one would be its __context__

    vars(exit_noticed)["exit_code"] = _exit_code
    setattr(owner, name, exit_noticed)


def _unwrap_exit(owner, name):
    wrapper = getattr(owner, name)
    if hasattr(wrapper, "exit_code") and not _exit_code.open_copies:
        setattr(owner, name, wrapper.__wrapped__)


def _is_multiprocessing_child():
    process = sys.modules.get("multiprocessing.process")
    return process is not None and process.current_process()._parent_pid is not None


def _list_frames(frame):
    """Return *frame* and those that called it, the outermost last."""
    frames: "List[Any]" = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


def _is_subinterpreter():
    try:
        import _interpreters as interpreters  # Python 3.13
    except ImportError:
        try:
            import _xxsubinterpreters as interpreters  # Python 3.8
        except ImportError:
            return False
    return interpreters.get_current() != interpreters.get_main()


def _list_main_frames():
    """Return the frames of the main thread, the outermost last, as far as they can be seen from here."""
    import threading

    greenlet = sys.modules.get("greenlet")
    if not _in_main_thread():
        # In a subinterpreter sys._current_frames() aborts Python 3.12 and 3.13.
        main = threading.main_thread().ident or 0
        return [] if _is_subinterpreter() else _list_frames(sys._current_frames().get(main))
    if greenlet is None or greenlet.getcurrent().parent is None:
        return _list_frames(sys._getframe())
    main = greenlet.getcurrent()
    while main.parent is not None:  # the frames of a greenlet end where it began
        main = main.parent
    return _list_frames(main.gr_frame)


def _is_launcher(frame):
    """Return whether the code of *frame* is part of Python or of an installed package, and not the user's."""
    path = frame.f_code.co_filename
    ours = os.path.dirname(os.__file__), os.path.dirname(sys.executable or os.__file__), "<frozen", __file__
    return path.startswith(ours) or "-packages" in path


def _find_program():
    """Determine the frame whose end is the program's: the script's module, or None, and who runs it.

    A launcher (coverage, pdb, IPython) has a main module of its own, and runs the script inside of it.
    """
    frames = _list_main_frames()
    modules = [frame for frame in frames if frame.f_code.co_name == "<module>"]
    mains = [frame for frame in modules if frame.f_globals.get("__name__") == "__main__"]
    scripts = [frame for frame in mains if frame.f_globals.get("__file__") == frame.f_code.co_filename]
    frame = next(iter(scripts or mains[-1:] or frames[-1:]), None)
    if _is_multiprocessing_child():
        frame = next((frame for frame in frames if frame.f_code.co_name == "_bootstrap"), frame)
    elif frame is not None and _is_launcher(frame):
        # The main module is a test runner's or a notebook's: the user's code begins where it calls that.
        users = [frame for frame in frames if not _is_launcher(frame)]
        _exit_code.is_shell = bool(users)
        frame = (users or [frame])[-1]
    _exit_code.frame = frame
    _exit_code.is_launched = frame in scripts and frame.f_back is not None


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
        # 8 bytes on are the call and its cache. SystemExit(0, 1) has a code of its own.
        if code.co_code[offset + 1] < 2:
            argument = None if argument is monitoring.MISSING else argument
            _exit_code.called = (offset, offset + 8), _exit_text(argument, sys.exc_info()[1])

    events = monitoring.events
    monitoring.use_tool_id(_TOOL, "meticulous")
    undo.callback(monitoring.free_tool_id, _TOOL)
    monitoring.register_callback(_TOOL, events.CALL, notice_call)
    undo.callback(monitoring.register_callback, _TOOL, events.CALL, None)
    monitoring.set_local_events(_TOOL, code, events.CALL)
    undo.callback(monitoring.set_local_events, _TOOL, code, events.NO_EVENTS)


def _has_returned(frame):
    """Return whether the code of *frame* ran to its end; not if an exception or a SystemExit left it."""
    return frame.f_lasti >= 0 and frame.f_code.co_code[frame.f_lasti] in _RETURNS


def _goes_through(tb, frame):
    while tb is not None and tb.tb_frame is not frame:
        tb = tb.tb_next
    return tb is not None


def _exit_text(code, handled=None):
    """Return the STATUS for sys.exit(*code*), which may have been called while an exception was *handled*."""
    if code is None or (isinstance(code, int) and code == 0):
        return "SUCCESS"
    call = f"sys.exit({' '.join(repr(code).splitlines())})"
    if handled is None or isinstance(handled, SystemExit):
        return f"ERROR\n{call}"
    cause = _exception_text(type(handled), handled, handled.__traceback__)
    return f"{cause}\n{call} after {cause.rpartition(chr(10))[2]}"


def _kill_text(number):
    """Return the STATUS for a process that a signal ended."""
    import signal

    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"  # a real-time signal
    return f"ERROR\nkilled by {name} at {_local_time()}"


def _format_exception(exc_type, exc, tb):
    """Return the traceback as Python prints it."""
    try:
        import traceback

        return "".join(traceback.format_exception(exc_type, exc, tb))
    except Exception:
        # A SyntaxError whose parts are not strings; or no descriptor is left to import traceback.
        return f"{exc_type.__name__}: {_describe(exc)}\n"


def _exception_text(exc_type, exc, tb):
    """Return the STATUS for an exception: the traceback, and type and message as the last line."""
    if isinstance(exc, SystemExit):
        return _exit_text(exc.code, exc.__context__)
    text = _format_exception(exc_type, exc, tb).rstrip("\n")
    name = exc_type.__qualname__
    if exc_type.__module__ not in ("builtins", "__main__"):
        name = f"{exc_type.__module__}.{name}"
    if not text.rpartition("\n")[2].startswith(name):
        # The last line was of a longer message, a note, or the frame around an exception group.
        text += "\n" + " ".join(f"{name}: {_describe(exc)}".splitlines())
    return f"ERROR\n{text}"


def _describe_last_cell():
    """Return the STATUS of an IPython shell or notebook, whose last cell counts; None elsewhere."""
    get_shell = getattr(sys.modules.get("IPython"), "get_ipython", None)
    result = getattr(get_shell and get_shell(), "last_execution_result", None)
    if result is None or not _exit_code.is_shell:
        return None
    error = result.error_in_exec or result.error_before_exec
    return "SUCCESS" if error is None else _exception_text(type(error), error, error.__traceback__)


def _describe_program_ending():
    """Return the STATUS for the end of the program."""
    code, frame = _exit_code, _exit_code.frame
    if frame is not None and code.is_launched and _has_returned(frame):
        return "SUCCESS"  # whatever the launcher does next
    status = code.asked or _describe_last_cell()
    if status or frame is None:
        return (
            status
            or "ERROR\nPython ran inside another program, which does not show how it ended: call finish()."
        )
    # Python sets it before it calls the excepthook. Others (pytest, IPython) set it too, but to one that
    # begins where they caught the exception, deeper than the main module.
    tb = getattr(sys, "last_traceback", None)
    # A program that embeds Python may run code twice, and an interactive shell goes on after a mistake.
    is_later_run = tb is not None and tb.tb_frame.f_globals is frame.f_globals and not hasattr(sys, "ps1")
    if _goes_through(tb, frame) or (is_later_run and tb.tb_frame.f_back is None and not code.is_shell):
        return _exception_text(sys.last_type, sys.last_value, tb)
    if _has_returned(frame):
        return "SUCCESS"
    for instructions, status in filter(
        None, [code.raised and ((code.raised[0],), code.raised[1]), code.called]
    ):
        if frame.f_lasti in instructions:
            return status
    place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
    return f"ERROR\nA SystemExit left {place}, and its code could not be seen: write sys.exit(code) instead."


def _describe_ending():
    """Return the STATUS for the end of the process."""
    status = _describe_program_ending()
    if status != "SUCCESS":
        return status
    # Python flushes them once more, after the hooks, and exits with 120 if that fails.
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            if stream is not None and not getattr(stream, "closed", False):
                stream.flush()
        except KeyboardInterrupt:
            pass  # of a user who does not want to wait for it, which need not mean that it fails
        except Exception as error:
            return f"ERROR\nexit code 120: {name} can't be flushed: {error}"
    return status


def _describe_child_ending():
    """Return the STATUS for the end of a child of multiprocessing."""
    exc_type, exc, tb = sys.exc_info()  # before Python 3.13 this is called in a `finally`
    if exc is not None:
        return _exception_text(exc_type, exc, tb)
    code = _exit_code.frame.f_locals.get("exitcode", 0)
    if code == 1:
        return "ERROR\nThe child process ended with exit code 1; what it showed is in stderr."
    return _exit_text(code)


# At import, because `sys.exit(main())` looks sys.exit up before main() makes an experiment.
_wrap_exit(sys, "exit")


def _end_all(describe, *arguments):
    """End every open experiment of this process, the latest first, with the status that *describe* returns."""
    is_interrupt = isinstance(getattr(sys, "last_value", None), KeyboardInterrupt) and _goes_through(
        sys.last_traceback, _exit_code.frame
    )
    try:
        status = describe(*arguments)
    except (Exception, KeyboardInterrupt) as error:
        status = f"ERROR\nHow the program ended could not be determined: {error!r}"
    _session.is_exiting = True
    with _Hold():
        for experiment in reversed(_session.experiments[:]):
            experiment._end(status, is_exit=True)
    if is_interrupt:
        # Any exec in an atexit handler clears the mark by which Python exits with 130; this sets it again.
        try:
            exec("raise KeyboardInterrupt")
        except KeyboardInterrupt:
            pass


def _die_of(signum, frame):
    """Record that a signal kills the process, and let it."""
    import signal

    # Another handler that was set later may call the one before it, which was to do nothing.
    if signal.getsignal(signum) is not _die_of or _session.is_holding(signum):
        return
    _end_all(_kill_text, signum)
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


def _has_default_action(signum, status):
    """Return whether a signal has no handler in Python or in C; *status* is as in proc(5)."""
    import signal

    handler = signal.getsignal(signum)
    if handler is not signal.SIG_DFL:
        return handler is _die_of  # left from before, because the last finish() was in a thread
    # signal.getsignal() does not know of handlers in C, for example of a user's faulthandler.register().
    caught = status.partition("SigCgt:")[2].split()[:1]
    return not caught or not int(caught[0], 16) >> (signum - 1) & 1


def _set_signals(undo):
    import signal

    status = _read_text("/proc/self/status")
    for signum in (signal.SIGTERM, signal.SIGHUP):
        if _has_default_action(signum, status):
            try:
                signal.signal(signum, _die_of)
            except ValueError:
                return  # not in the main thread
            undo.callback(_reset_signal, signum)


def _reset_signal(signum):
    import signal

    try:
        if signal.getsignal(signum) is _die_of:
            signal.signal(signum, signal.SIG_DFL)
    except ValueError:
        pass  # in a thread: ours stays, and with nothing to record it does what the default action does


def _set_hooks():
    """Install what notices the end of the process; return the ExitStack that removes it."""
    import atexit
    from contextlib import ExitStack

    hooks = ExitStack()
    _exit_code.open_copies += 1
    _find_program()
    exits = [(sys, "exit")]
    if "_sitebuiltins" in sys.modules:
        exits.append((sys.modules["_sitebuiltins"].Quitter, "__call__"))  # of the builtins exit and quit
    for owner, name in exits:
        _wrap_exit(owner, name)
        hooks.callback(_unwrap_exit, owner, name)
    hooks.callback(_forget_exit_code)
    if _is_multiprocessing_child():
        from multiprocessing.util import Finalize

        # Before Python 3.13 such a child runs no atexit handlers.
        hooks.callback(Finalize(None, _end_all, [_describe_child_ending], exitpriority=0).cancel)
        atexit.register(_end_all, _describe_child_ending)
    else:
        atexit.register(_end_all, _describe_ending)
        if _exit_code.frame is not None:
            _notice_calls(_exit_code.frame.f_code, hooks)
    hooks.callback(atexit.unregister, _end_all)
    # The first process of a container ignores a signal whose action is the default one.
    if not _WINDOWS and os.getpid() != 1:
        _set_signals(hooks)
    return hooks


def _forget_exit_code():
    _exit_code.open_copies -= 1
    if not _exit_code.open_copies:
        vars(_exit_code).update(vars(_ExitCode()))


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


def _watch_forks():
    """Have every forked child forget its parent's experiments before anything else runs there.

    No lock is held meanwhile: other libraries lock their own in hooks like these, in another order.
    """
    import signal
    from threading import get_ident

    masks = {}

    def prepare():
        if _session.experiments:
            for experiment in _session.experiments[:]:
                experiment._flush()
            # Python drops a signal that our handler catches in a child before that has come to forget().
            masks[get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGHUP))

    def unblock():
        if get_ident() in masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, masks.pop(get_ident()))

    def forget():
        global _session
        parent, _session = _session, _Session()
        for experiment in parent.experiments:
            experiment._forget()
        if parent.hooks is not None:
            parent.hooks.close()
        unblock()

    _register_at_fork(prepare, unblock, forget)


_watches_forks: "List[bool]" = []


def _watch(experiment):
    """Have experiment._end(status, is_exit=True) called when this process ends, unless _unwatch() comes first."""
    with _session.lock:
        if not _watches_forks:
            _watch_forks()
            _watches_forks.append(True)
        if _session.hooks is None:
            _session.hooks = _set_hooks()
        _session.experiments.append(experiment)


def _unwatch(experiment):
    """Forget *experiment*; after the last one remove every hook that is still ours."""
    with _session.lock:
        if experiment in _session.experiments:
            _session.experiments.remove(experiment)
        if not _session.experiments and _session.hooks is not None:
            hooks, _session.hooks = _session.hooks, None
            hooks.close()


def _is_reimported_main():
    """Return whether this is a child of multiprocessing that imports the parent's main module again."""
    process = sys.modules.get("multiprocessing.process")
    return process is not None and getattr(process.current_process(), "_inheriting", False)


# === Experiment ===============================================================
# What a training script uses.

_FOLDER_VARIABLE = "METICULOUS_EXPERIMENT_FOLDER"
_SMALLEST_BLOCK = 1024  # bytes; a file that is not empty has room for so many

_told_ranks: "List[int]" = []


def _is_other_rank():
    """Return whether another process of the same parallel run records it; the first time, say so on stderr."""
    rank = _find_rank()
    if rank is None or rank[0] == 0:
        return False
    if not _told_ranks:
        _told_ranks.append(rank[0])
        _warn(f"rank {rank[0]} of {rank[1]} ({rank[2]}) records nothing; rank 0 does.")
    return True


def _is_set(variable):
    """Return whether an environment variable is set to something else than '' and 0."""
    return os.environ.get(variable, "") not in ("", "0")


def _check_directory(name, path):
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidArgsException(f"{name} must be a path, not {path!r}.")


def _check_description(description):
    if description is not None and not isinstance(description, str):
        raise InvalidArgsException(f"The description must be a string, not {description!r}.")
    return description or ""


def _find_differences(recorded, current):
    """Describe in words how two dicts of plain JSON differ."""
    differences = []
    in_both = recorded.keys() & current.keys()
    for name in sorted(in_both) + sorted(recorded.keys() ^ current.keys()):
        was, now = (repr(args[name]) if name in args else "not there" for args in (recorded, current))
        # By their texts too, because NaN differs from itself.
        if was != now and ("not there" in (was, now) or recorded[name] != current[name]):
            differences.append(f"{name!r} was {was}, now {now}")
    return differences


def _check_resumable(folder, args, work_tree, head):
    """Raise what forbids resuming the experiment in *folder* with *args* on the commit *head*."""
    names = os.listdir(folder)  # which makes a network file system forget that it was not there
    if "args.json" not in names:
        raise FolderException(folder, "has files but no args.json: take another id, or move it away.")
    differences = _find_differences(_load_mapping(os.path.join(folder, "args.json")), args)
    if differences:
        raise MismatchedArgsException(folder, differences)
    recorded = str(_load_mapping(os.path.join(folder, "metadata.json")).get("githead-sha"))
    if recorded != head.sha and not _differs_only_by_our_commits(work_tree, recorded, head):
        raise MismatchedCommitException(folder, recorded, head.sha)


def _summarize_status(text):
    """Return a STATUS on one line: its first word, and the reason."""
    first, _, rest = text.partition("\n")
    reason = rest.strip().rpartition("\n")[2]
    return f"{first}: {reason}" if reason else first


def _list_attempts(folder, metadata):
    """Return the attempts that a folder's *metadata* lists, each with how it ended."""
    only = {key: metadata[key] for key in ("start-time", "end-time", "command") if key in metadata}
    attempts = _get_attempts(metadata) or [only]
    if "ended" not in attempts[-1]:
        status = (_read_if_there(os.path.join(folder, "STATUS")) or b"UNKNOWN").decode("utf-8", "replace")
        attempts[-1]["ended"] = "DEAD" if status == "RUNNING" else _summarize_status(status)
    return attempts


def _explain_refused_write(error, directory):
    """Return the FolderException for a system error during a start."""
    path = os.fsdecode(error.filename or directory)
    if os.path.basename(path).startswith("."):  # a hidden file of ours, which says nothing to the user
        path = os.path.dirname(path)
    reason = f"can't be used: {_explain(error)}."
    if error.errno in (errno.EACCES, errno.EPERM):
        reason += (
            "\nIf a group shares it, its owner may run `chmod g+ws` on it, and each member `umask 002`; "
            "or name another --experiments-directory."
        )
    return FolderException(path, reason, error.errno)


def _try(function, *arguments):
    """Call *function*; return the exception if it fails."""
    try:
        function(*arguments)
        return None
    except Exception as error:
        return error


class _Record:
    """The folder of one attempt, from its start to its end.

    folder, number (of the attempt), metadata (what metadata.json holds), capture (of the output).
    """

    def __init__(self, start, description):
        """*start* is what metadata.json says of the code; the times begin here."""
        self._clock = time.monotonic()
        epoch, command = time.time(), _to_json(getattr(sys, "argv", []))
        self.attempt = {"start-time": _local_time(epoch), "start-epoch": epoch, "command": command}
        self.attempt.update(_describe_process())
        self.number = 1
        self.metadata = {
            **start,
            "description": description,
            "start-time": self.attempt["start-time"],
            "command": command,
            "place": _describe_place(),
            "attempts": [self.attempt],
        }

    def create(self, directory, name, args, default_args, undo):
        """Make the folder *name*, or the next numbered one; return False if *name* is there already.

        It is built under a hidden name. The rename is the claim: it replaces an empty directory, and of several
        processes one succeeds (rename(2), also on NFS).
        """
        from contextlib import ExitStack

        with ExitStack() as discard:
            hidden = os.path.join(directory, _BUILD_PREFIX + _unique_name())
            os.mkdir(hidden)
            discard.callback(_remove_folder, hidden)
            files = {"args.json": args, "default_args.json": default_args, "metadata.json": self.metadata}
            for file, content in files.items():
                _create_file(os.path.join(hidden, file), _to_bytes(content))
            _create_file(os.path.join(hidden, "STATUS"), b"RUNNING")
            self.capture = _Capture(hidden)
            discard.callback(self.capture.close)
            if name is None:
                numbers = _claim_ids(directory, discard)
                while not self._rename(hidden, os.path.join(directory, str(next(numbers)))):
                    pass  # a folder that somebody made without a claim
            else:
                if re.fullmatch("[0-9]+", name) and _claim_id(directory, int(name)):
                    discard.callback(_remove_file, _claim_path(directory, int(name)))
                if not self._rename(hidden, os.path.join(directory, name)):
                    return False
            discard.callback(_remove_folder, self.folder)
            undo.push(discard.pop_all())
        return True

    def _rename(self, hidden, folder):
        self.folder = folder
        if _WINDOWS:  # a folder with open files can't be renamed there, and an empty one is not replaced
            self.capture.close()
            _remove_directory(folder)
        try:
            os.rename(hidden, folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            return False
        if _WINDOWS:
            self.capture = _Capture(folder)
        return True

    def resume(self, undo):
        """Begin the next attempt in the folder that is there. Raises RunningException."""
        path = os.path.join(self.folder, "metadata.json")
        self.number = _claim_attempt(self.folder, self.attempt)
        undo.callback(_remove_folder, _attempt_path(self.folder, self.number))
        old = _load_mapping(path)
        attempts = _list_attempts(self.folder, old)
        if attempts[-1].get("host", self.attempt["host"]) != self.attempt["host"]:
            self._replace_streams()
        self.metadata = {
            **{key: value for key, value in old.items() if key not in ("end-time", "usage")},
            **self.metadata,
            "description": self.metadata["description"] or old.get("description", ""),
            "start-time": old.get("start-time", self.attempt["start-time"]),
            "attempts": attempts + [self.attempt],
        }
        self.capture = _Capture(self.folder)
        undo.callback(self.capture.close)
        undo.callback(self._restore, {name: self._read(name) for name in ("STATUS", "metadata.json")})
        # Before metadata tells of a new attempt: killed in between, it must not look as ended as the old one.
        self._write("STATUS", b"RUNNING")
        self._write("metadata.json", _to_bytes(self.metadata))

    def _replace_streams(self):
        """Copy the files of output, so that a process of a node that was called dead writes into ours no more."""
        import shutil

        for name in ("stdout", "stderr"):
            path, copy = (
                os.path.join(self.folder, name),
                os.path.join(self.folder, f".{name}.{_unique_name()}.tmp"),
            )
            if os.path.isfile(path):
                shutil.copyfile(path, copy)
                os.replace(copy, path)

    def _read(self, name):
        return _read_if_there(os.path.join(self.folder, name))

    def _write(self, name, content):
        _write_file(os.path.join(self.folder, name), content)

    def _restore(self, contents):
        for name, content in contents.items():
            try:
                if content is not None and content != self._read(name):
                    self._write(name, content)
            except OSError:
                pass  # the error that made us restore it tells more

    def load_own_metadata(self):
        """Return what metadata.json holds now. Raises OSError if the folder is another by now."""
        found = _load_mapping(os.path.join(self.folder, "metadata.json"))
        own = _get_attempts(found)[self.number - 1 : self.number]
        if not own or not _agree(own[0], self.attempt, "start-epoch", "host", "pid"):
            raise OSError(errno.ESTALE, "it was deleted or replaced", self.folder)
        return found

    def write_end(self, status):
        """Write how the attempt ended, and when. STATUS belongs to the newest attempt, which may be another."""
        found = self.load_own_metadata()
        attempts = found["attempts"]
        is_newest = len(attempts) == self.number >= _find_newest_attempt(self.folder)
        if is_newest:
            # STATUS first: killed in between, the record tells how the run ended, though not when.
            self._write_status(status.encode("utf-8", "backslashreplace"))
        end = {"end-time": _local_time()}
        self.attempt.update(end)
        self.attempt["duration-seconds"] = round(time.monotonic() - self._clock, 6)
        self.attempt["ended"] = _summarize_status(status)
        attempts[self.number - 1] = self.attempt
        if is_newest:
            self.metadata.update(end, attempts=attempts)
            found = self.metadata
        self._write("metadata.json", _to_bytes(_to_json(found)))

    def _write_status(self, content):
        try:
            return self._write("STATUS", content)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
        # Into the file that is there, which has room for a block on a full disk, too.
        if len(content) > _SMALLEST_BLOCK:
            tail = content[-_SMALLEST_BLOCK // 2 :].decode("utf-8", "ignore")
            content = f"ERROR\n...{tail}".encode("utf-8")
        with open(os.path.join(self.folder, "STATUS"), "r+b", buffering=0) as file:
            # All of RUNNING at once, so that no reader sees a part of it.
            file.write(content.ljust(len("RUNNING"), b"\n"))
            file.truncate(len(content))


class Experiment:
    """A run that is being recorded in a folder of its own.

    args: the experiment's arguments, a mapping or an argparse.Namespace.
    default_args: what the arguments are unless the user says otherwise; None if unknown.
    project_directory: a directory in the git work tree whose commit is recorded ('' = the current directory).
    experiments_directory: where the folders are; relative to *project_directory*, or absolute.
    experiment_id: None for the next number; otherwise the experiment to start, or to resume if it is there.
    description: what the run is for, in words.
    norecord: touch nothing at all; files are opened in the current directory. METICULOUS_NORECORD=1 does the same.
    allow_dirty: record a snapshot of a work tree with changes; so does METICULOUS_ALLOW_DIRTY=1.

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
        allow_dirty: bool = False,
    ) -> None:
        self.norecord = norecord or _is_set("METICULOUS_NORECORD") or _is_other_rank()
        self.project_directory = project_directory
        self.experiments_directory = experiments_directory
        self.repo_directory: "Optional[str]" = None
        self.curexpdir = "."
        self.metadata: "Dict[str, Any]" = {}
        self.stdout, self.stderr = sys.stdout, sys.stderr
        self._record: "Any" = None  # stays None if nothing is recorded
        self._ended = True
        if self.norecord:
            return
        if _is_reimported_main():
            # A child of multiprocessing runs the script again, to find its functions.
            self.curexpdir = os.environ.get(_FOLDER_VARIABLE, ".")
            return
        _check_directory("project_directory", project_directory)
        _check_directory("experiments_directory", experiments_directory)
        name, description = _check_id(experiment_id), _check_description(description)
        args = _check_mapping("args", {} if args is None else args)
        if default_args is not None:
            default_args = _check_mapping("default_args", default_args)
        self.repo_directory = _find_work_tree(project_directory)
        self.experiments_directory = os.path.abspath(os.path.join(project_directory, experiments_directory))
        try:
            self._start(
                name, args, default_args, description, allow_dirty or _is_set("METICULOUS_ALLOW_DIRTY")
            )
        except OSError as error:
            if isinstance(error, MeticulousException):
                raise
            raise _explain_refused_write(error, self.experiments_directory) from error

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

    def __getstate__(self) -> "Dict[str, Any]":
        """Return what a copy has, in this process or another: the folder, but not the recording."""
        state = {**vars(self), "_record": None, "_ended": True}
        return {name: value for name, value in state.items() if name not in ("stdout", "stderr")}

    def __setstate__(self, state: "Dict[str, Any]") -> None:
        vars(self).update(state, stdout=sys.stdout, stderr=sys.stderr)

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
            _say(_format_exception(exc_type, exc, tb))
        self._end(_exception_text(exc_type, exc, tb))
        return not passes

    def summary(self, summary_dict: "Optional[Mapping[str, Any]]" = None, **values: "Any") -> None:
        """Merge results into summary.json; new keys win. Works after finish() and from several threads too.

        Raises InvalidArgsException for what is not a mapping, FolderException if the file can't be written.
        """
        if self._record is None:
            return
        given = _check_mapping("summary", {} if summary_dict is None else summary_dict)
        given.update(_check_mapping("summary", values))
        path = os.path.join(self.curexpdir, "summary.json")
        with _session.lock:
            # What a signal handler adds in the middle of this is written here, too.
            self._given.append(given)
            is_outermost = len(self._given) == 1
            try:
                written = 0
                while written < len(self._given):
                    written = len(self._given)
                    if (
                        self.is_recording
                        and len(self._record.load_own_metadata()["attempts"]) > self._record.number
                    ):
                        _warn(f"{path} belongs to a later attempt by now: this summary is left out.")
                        return
                    summary = _load_mapping(path)
                    for part in self._given[:written]:
                        summary.update(part)
                    _write_file(path, _to_bytes(summary))
            except OSError as error:
                if getattr(error, "path", None) == path:
                    raise
                raise FolderException(path, f"can't be written: {_explain(error)}.", error.errno) from error
            finally:
                if is_outermost:
                    del self._given[:]

    def open(self, file: "Any", mode: str = "r", *args: "Any", **kwargs: "Any") -> "IO[Any]":
        """Open *file* like the builtin open(), relative paths inside the experiment's folder."""
        if not isinstance(file, int):
            folder = os.fsencode(self.curexpdir) if isinstance(os.fspath(file), bytes) else self.curexpdir
            file = os.path.join(folder, file)
        return open(file, mode, *args, **kwargs)  # the builtin: a method's name is not a name in here

    def finish(self, status: str = "SUCCESS") -> None:
        """End the record now: 'SUCCESS', 'ERROR', or 'ERROR' and more lines, the last of them the reason.

        Does nothing if the record has ended already. Raises InvalidArgsException for another status.
        """
        if self._record is None:
            return
        if status != "SUCCESS" and str(status).partition("\n")[0] != "ERROR":
            raise InvalidArgsException(
                f"{status!r} can't be a status: it is 'SUCCESS', 'ERROR', or 'ERROR\\n' and the reason."
            )
        self._end(status.rstrip("\n"))

    @property
    def is_recording(self) -> bool:
        """Whether this process records the experiment: a forked child, which may outlive it, does not."""
        return not self._ended and os.getpid() == self._record.attempt["pid"]

    def record_output(self, name: str, data: bytes) -> None:
        """Record *data*, which a child process wrote to its 'stdout' or 'stderr'."""
        self._record.capture.record(name, data)

    def _start(self, name, args, default_args, description, allow_dirty):
        from contextlib import ExitStack

        directory = self.experiments_directory
        with ExitStack() as undo:
            head = _prepare_repository(
                self.repo_directory, directory, lambda: _make_directories(directory, undo), allow_dirty
            )
            record = _Record({"githead-sha": head.sha, "githead-message": head.message}, description)
            with _Hold():
                if not record.create(directory, name, args, default_args, undo):
                    _check_resumable(record.folder, args, self.repo_directory, head)
                    record.resume(undo)
                self._record, self._ended, self._given = record, False, []
                self.curexpdir, self.metadata = record.folder, record.metadata
                undo.callback(_unwatch, self)
                _watch(self)
                record.capture.start(record.folder)
                os.environ[_FOLDER_VARIABLE] = self.curexpdir
                undo.pop_all()

    def _end(self, status, is_exit=False):
        """Write how the run ended: once, only in the process that began it, and without ever raising."""
        if not self.is_recording:
            return
        with _Hold(), _session.lock:
            self._ended = True
            capture = self._record.capture
            problem = _try(capture.settle if is_exit else capture.close)
            problem = problem or _try(self._record.write_end, status)
            if is_exit and _session.get_held():
                _try(self._record.write_end, _kill_text(_session.get_held()))
            _unwatch(self)
            os.environ[_FOLDER_VARIABLE] = (_session.experiments or [self])[-1].curexpdir
        # The warning of the output is enough, as long as STATUS tells of the end.
        if problem is not None and not (capture.faults and "end-time" in self.metadata):
            _warn(f"the end of {self.curexpdir} can't be recorded completely: {problem}")

    def _flush(self):
        self._record.capture.flush()

    def _forget(self):
        self._record.capture.forget()


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
        signal = ""
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
        if not experiment.is_recording:
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
    pump = _Pump(experiment._record.capture, process)
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


def _parse_listing(words):
    commands = "".join(f"  {name:6}{help}\n" for name, (_, help) in _COMMANDS.items() if name)
    parser = _make_parser(
        "",
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

    content = _read_file(__file__)
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


_COMMANDS = {
    "": (_list, "List experiments: what differs, and what came of it."),
    "show": (_show, "Show everything about one experiment."),
    "diff": (_diff, "Compare two experiments: arguments, results and commits."),
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
