#!/usr/bin/env python3
# meticulous 1.0.0. This one file is all of the package meticulous-lite on the Python package index: copy it
# next to your script, or `pip install meticulous-lite`. To see whether a copy was edited: --version.
# SPDX-FileCopyrightText: 2026 meticulous-lite authors
# SPDX-License-Identifier: MIT
# Its complete text is at the end. Linters and formatters leave this file as it is:
# fmt: off
# flake8: noqa
# isort: skip_file
# mypy: ignore-errors
# pylint: skip-file
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

Each run has a folder, which part II writes and part III reads:

    experiments/12/
        args.json  default_args.json  metadata.json  summary.json  STATUS  stdout  stderr
        metrics.jsonl  snapshot.patch

Needs Python 3.6 or newer and, to record, git 1.8.3 or newer. The parts and chapters of this file are in the
order of its data; each chapter uses only names from the chapters above it:

    I Ground
        Names and errors     the public names, and what can go wrong
        Files                write files completely or not at all, and assign ids
        Values               convert any value to JSON
    II Record
        Process              this process, its host and job, and who owns a folder
        Git                  which code runs here
        Code                 is it what is recorded, and a snapshot if it isn't committed
        Arguments            take arguments and defaults from an argparse parser
        Output               record what is written to sys.stdout and sys.stderr
        Exit                 determine how the program ended
        Hooks                notice the end of the process, and record it
        Record               write the folder of one attempt
        Experiment           what a training script uses
    III Read
        Text                 format single values
        Cause                find what ended a run
        Records on disk      read the folders of experiments
        Queries              filter, group, sort and compare rows; find one experiment
        Tables               format rows as CSV, JSON, Markdown, LaTeX and text
    IV Use
        Run                  record any command
        Again                copy the code of a commit, and repeat experiments
        Report               write experiments as one HTML page
        Command line         list, show and compare experiments
"""

# === Names and errors =========================================================
# The version, the public names, and the errors.

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
    from typing import IO, Any, Collection, Dict, Iterator, List, Mapping, Optional, Sequence, Union

_WINDOWS = os.name == "nt"

if getattr(globals().get("_session"), "experiments", None):
    raise ImportError("meticulous can't be reloaded while an experiment is open: finish() it first.")

# The package's import paths, for example `from meticulous.experiment import Experiment`. As attributes too,
# which Python 3.6 needs for `import meticulous.experiment as m`.
if __name__ in sys.modules and __name__ != "__main__":
    experiment = experiments = sys.modules[__name__]
    sys.modules[f"{__name__}.experiment"] = sys.modules[f"{__name__}.experiments"] = experiment


_OR_NORECORD = ", or pass norecord=True (METICULOUS_NORECORD=1) to run without a record"


class MeticulousException(Exception):
    """The base class of all errors that this module raises on purpose.

    options: the arguments of Experiment that the caller's parser has options for; the message names these.
    """

    options: "Collection[str]" = ()
    _parts: "Sequence[str]" = ()  # the names of a class's own arguments, which become attributes

    def __init__(self, *arguments: "Any") -> None:
        super().__init__(*arguments)
        vars(self).update(zip(self._parts, arguments))

    def _message(self) -> str:
        return super().__str__()

    def __str__(self) -> str:
        # The user's code may raise one, too, with any arguments.
        if not vars(self).keys() >= set(self._parts):
            return super().__str__()
        # The last line is ours: the remedy. Those above name files and values.
        text, end, remedy = self._message().rpartition("\n")
        if self.options and "norecord" not in self.options:  # a command that records nothing
            remedy = remedy.replace(_OR_NORECORD, "")
        for name in self.options if end else ():
            option = "--" + name.replace("_", "-")
            remedy = re.sub(rf"(?<![/\w]){name}(=True)?(?![/\w])", option, remedy)
        return text + end + remedy


def _join_some(texts, separator=", "):
    """Join the first five of *texts*, and "..." if there are more."""
    texts = list(texts)
    return separator.join(texts[:5] + ["..."] * (len(texts) > 5))


def _name_options(options, function, *arguments, **keywords):
    """Call *function*; an error that it raises names the *options*, because the caller's parser has them."""
    try:
        return function(*arguments, **keywords)
    except MeticulousException as error:
        error.options = options
        raise


class GitException(MeticulousException):
    """Git can't say which code runs here, or can't commit the line in .gitignore."""


class DirtyRepoException(MeticulousException):
    """Tracked files differ from the commit that is checked out.

    files: their paths relative to *work_tree*; commit: HEAD's 40 hex digits.
    """

    files: "Sequence[str]"
    commit: str
    work_tree: str
    _parts = "files", "commit", "work_tree"

    def _message(self) -> str:
        names = _join_some(map(repr, self.files))
        count = "1 tracked file" if len(self.files) == 1 else f"{len(self.files)} tracked files"
        verb = "differs" if len(self.files) == 1 else "differ"
        return (
            f"{count} in {self.work_tree} {verb} from commit {self.commit[:7]}: {names}.\n"
            "Commit or stash them, or pass allow_dirty=True (METICULOUS_ALLOW_DIRTY=1) to record a snapshot"
            f"{_OR_NORECORD}."
        )


class MismatchedArgsException(MeticulousException):
    """An experiment can't be resumed with other arguments than it was recorded with."""

    path: str
    differences: "Sequence[str]"
    _parts = "path", "differences"

    def _message(self) -> str:
        return (
            f"{self.path} was recorded with other arguments: {_join_some(self.differences, '; ')}.\n"
            "Use the recorded ones to resume, or leave out experiment_id to start a new experiment."
        )


class MismatchedCommitException(MeticulousException):
    """An experiment can't be resumed on another commit than it was recorded on."""

    path: str
    recorded: str
    current: str
    _parts = "path", "recorded", "current"

    def _message(self) -> str:
        return (
            f"{self.path} was recorded on commit {self.recorded}, but HEAD is {self.current}.\n"
            "Check out the recorded commit to resume, or leave out experiment_id to start a new experiment."
        )


class InvalidIdException(MeticulousException, ValueError):
    """An experiment id that can't be the name of a folder."""

    experiment_id: "Any"
    reason: str
    _parts = "experiment_id", "reason"

    def _message(self) -> str:
        shown = f"{self.experiment_id!r:.60}"
        return f"{shown} can't be an experiment id: {self.reason}. Use letters, digits, '-' and '_'."


class InvalidArgsException(MeticulousException, ValueError):
    """A value that can't be recorded: arguments, a summary, a description, a status."""


class FolderException(MeticulousException, OSError):
    """A file or folder that can't be used: an OSError too, its errno None where the system gave none."""

    reason: str
    path: str
    _parts = "errno", "reason", "path"

    def _message(self) -> str:
        return f"{self.path} {self.reason}"


class RunningException(MeticulousException):
    """An experiment can't be resumed while another process runs it.

    process: what the record says of that process (host, pid); since: its start, local ISO 8601.
    """

    path: str
    process: "Mapping[str, Any]"
    since: str
    _parts = "path", "process", "since"

    def _message(self) -> str:
        host, pid = self.process.get("host", "an unknown host"), self.process.get("pid", "unknown")
        return (
            f"{self.path} is still running on {host} (pid {pid}) since {self.since}.\n"
            "Wait for its end, or leave out experiment_id to start a new experiment."
        )


class QueryException(MeticulousException, ValueError):
    """A question that can't be answered: an unknown id or column, a filter that makes no sense."""


# === Files ====================================================================
# Write files completely or not at all, and assign ids, while other processes and nodes do the same.

_BLOCK = 64 * 1024
_LARGEST_PROC = 1 << 21  # bytes of a command line or an environment
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


def _build_path(directory):
    """Return the path of a new hidden folder, which the start of an experiment sweeps when it is old."""
    return os.path.join(directory, _BUILD_PREFIX + _unique_name())


def _make_absolute(path):
    """Return *path* as an absolute one, symbolic links kept."""
    try:
        return os.path.abspath(path)
    except FileNotFoundError as error:
        raise GitException("The current directory was deleted.\nChange to one that is there.") from error


def _make_encodable(text, stream):
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
        sys.stderr.write(_make_encodable(text, sys.stderr))
        sys.stderr.flush()
    except Exception:
        # stderr may be None, closed, full or a broken replacement: not a reason to disturb the program.
        pass


def _warn(text):
    """Write a message of one or two lines to stderr."""
    _say("meticulous: " + "\n".join(map(_show_controls, text.split("\n"))) + "\n")


def _explain(error):
    """Return the message of an error in a few words, without the path that an OSError names."""
    return getattr(error, "strerror", None) or str(error)


def _create_file(path, content):
    """Write *content* (bytes) to a file in a folder that no other process knows of yet."""
    with open(path, "wb") as file:
        file.write(content)


def _write_file(path, content):
    """Write *content* (bytes) to *path* so that a reader sees either the old file or the new one, complete.

    Not synced to disk: after a power cut it may be the old one. OSError names *path*.
    """
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{_unique_name()}.tmp")
    try:
        _create_file(temporary, content)
        _replace_file(temporary, path)
    except BaseException as error:
        _try(os.unlink, temporary)
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


def _try(function, *arguments):
    """Call *function*; return the exception if it fails."""
    try:
        function(*arguments)
        return None
    except Exception as error:
        return error


def _remove_folder(path):
    """Remove a folder and everything in it, as far as possible."""
    import shutil

    shutil.rmtree(path, ignore_errors=True)


def _encode_json(value):
    """Return plain JSON as bytes, as the package writes it: indented by four, ASCII."""
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
            # The size of a device, which has no end, is 0; so is that of the files of proc(5).
            content += os.read(descriptor, limit or os.fstat(descriptor).st_size or _LARGEST_PROC)
        return content
    finally:
        os.close(descriptor)


def _open_inside(folder, file, *args, **kwargs):
    """Open *file* like the builtin open(), a relative path inside of *folder*."""
    if not isinstance(file, int):
        file = os.path.join(folder, os.fsdecode(file))
    return open(file, *args, **kwargs)


def _read_if_there(path):
    """Return the content of a file, None if it is missing."""
    try:
        return _read_file(path)
    except FileNotFoundError:
        return None


def _read_text(path, limit=None):
    """Return the text of a file, or of its last *limit* bytes, its end stripped; '' if it can't be read."""
    try:
        return _read_file(path, limit).decode("utf-8", "replace").rstrip()
    except OSError:
        return ""


_decode: "Any" = None


def _parse_object(content):
    """Return the JSON object in *content* (bytes). Raises ValueError or RecursionError."""
    global _decode
    if not _decode:
        from json import JSONDecoder

        # 1.5 times as fast as json.loads(), which looks for options and white space first.
        _decode = JSONDecoder().raw_decode
    text = content.decode("utf-8").strip()
    value, end = _decode(text)
    if end < len(text):
        raise ValueError("holds more than one value")
    if not isinstance(value, dict):
        raise ValueError(f"holds a {type(value).__name__}, not an object")
    return value


def _load_mapping(path):
    """Read a JSON object; a missing one is empty. Raises FolderException if it can't be read."""
    try:
        content = _read_if_there(path)
        return {} if content is None else _parse_object(content)
    except (OSError, ValueError, RecursionError) as error:
        reason = f"can't be read ({_explain(error)}): fix it, or move it away."
        raise FolderException(getattr(error, "errno", None), reason, path) from error


def _get_part(values, name, kind):
    """Return the value *name* in the dict *values* if it is a *kind* (dict, list, str), else an empty one."""
    part = values.get(name)
    return part if isinstance(part, kind) else kind()


def _make_directories(path, undo):
    """Make the directory *path* and its parents; the ExitStack *undo* is to remove those that are new."""
    if os.path.isdir(path):
        return
    _make_directories(os.path.dirname(path), undo)
    try:
        os.mkdir(path)
        undo.callback(_try, os.rmdir, path)
    except FileExistsError:
        # Another start made it in the meantime, or it is a file (a broken link counts as one).
        if not os.path.isdir(path):
            raise FolderException(None, "is not a directory: name another, or move it.", path) from None
    except OSError as error:
        raise FolderException(error.errno, f"can't be made: {_explain(error)}.", path) from error


def _check_id(experiment_id):
    """Return *experiment_id* as the name of a folder, None if there is none. Raises InvalidIdException."""
    from operator import index

    if experiment_id is None:
        return None
    try:
        if isinstance(experiment_id, bool):
            raise TypeError
        # Not by str(), which returns "Color.RED" for a member of some enumerations.
        name = str.__str__(experiment_id) if isinstance(experiment_id, str) else "%d" % index(experiment_id)
    except TypeError:
        raise InvalidIdException(experiment_id, "it is neither a string nor an integer") from None
    if not name:
        return None
    if name.startswith((".", "-")):
        raise InvalidIdException(experiment_id, "it begins with '.' or '-'")
    if re.search(r"[\0-\x1f/\\\x7f]", name):
        raise InvalidIdException(experiment_id, "it contains a separator or a control character")
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:
        raise InvalidIdException(experiment_id, "this system can't encode it as a file name") from None
    if len(encoded) > _LONGEST_ID:
        raise InvalidIdException(experiment_id, f"it is longer than {_LONGEST_ID} bytes")
    return name


def _list_ids(directory):
    """Return the largest integer id assigned in *directory*, and the hidden names there that are ours."""
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
    """Claim the integer id *number*; return the file server's time, None if it was assigned before."""
    try:
        with open(_claim_path(directory, number), "xb") as file:  # O_CREAT | O_EXCL: one process succeeds
            return os.fstat(file.fileno()).st_mtime
    except FileExistsError:
        return None


def _claim_ids(directory, undo, own=""):
    """Yield integer ids that only the caller has claimed, the next free one first.

    A claim outlives its folder, so that no id is assigned twice, and is swept after an hour. The ExitStack
    *undo* is to remove the claims. *own* is the hidden folder that is to get an id.
    """
    from itertools import count

    while True:
        listed_at = time.monotonic()
        largest, hidden = _list_ids(directory)
        # After losing, try the next number: network file systems may answer a second listing from a cache.
        for number in count(largest + 1):
            now = _claim_id(directory, number)
            if time.monotonic() - listed_at > _HIDDEN_LIFE_S / 2:
                # This process was stopped so long that claims which it has not listed may have been swept.
                break
            if now is None:
                continue
            path = _claim_path(directory, number)
            undo.callback(_try, os.unlink, path)
            # The largest id's claim stays: nothing else remembers that id if our claim is removed again.
            kept = _CLAIM_PREFIX + b"%d" % largest, os.fsencode(os.path.basename(own))
            _sweep(os.fsencode(directory), [name for name in hidden if name not in kept], now)
            yield number


def _sweep(directory, names, now):
    """Remove up to 16 of the hidden files and folders *names*, until one is less than an hour old at *now*.

    *now* is the time of a file there, because the clock of a file server need not agree with this node's.
    """
    names = sorted(sorted(names), key=len)  # claims count up
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
# Convert any value to JSON, to the same in every run.

_ADDRESS = r" at 0x[0-9A-Fa-f]+"
_DEEPEST = 100  # levels; the limit of json depends on its version, and on how deep its caller is


def _to_json(value):
    """Return *value* as json.loads would read it: dicts, lists, strings, numbers, True, False and None.

    What has no form in JSON becomes a string that a person can read, without memory addresses and with sets
    in order. Raises InvalidArgsException for a value that contains itself or is nested too deeply, for an
    integer with more digits than Python writes, and for two keys of a mapping that are the same in JSON.
    """
    import json

    plain = _convert(value)
    try:
        return json.loads(json.dumps(plain))
    except ValueError as error:
        raise InvalidArgsException(f"A value can't be written as JSON: {error}.") from None


def _check_mapping(name, value):
    """Return a mapping, an object with fields, or None, as a dict of plain JSON."""
    plain = {} if value is None else _to_json(value)
    if not isinstance(plain, dict):
        raise InvalidArgsException(f"{name} must be a mapping, not {type(value).__name__}.")
    return plain


def _convert(value, depth=0):
    # Not isinstance(): it reads __class__, which mocks fake, and a proxy whose object is gone refuses.
    if value is None or issubclass(type(value), (str, int, float)):
        return value
    if depth == _DEEPEST:
        raise InvalidArgsException(
            f"A value refers to itself or is nested too deeply (over {_DEEPEST} levels) to be recorded."
        )
    parts = _read(_take_apart, value)
    if isinstance(parts, list):
        return [_convert(part, depth + 1) for part in parts]
    if not isinstance(parts, dict):
        return parts
    plain = {}
    keys: "Dict[str, Any]" = {}
    for key, part in parts.items():
        name = _convert_key(key)
        first = keys.setdefault(name, key)
        if first is not key:
            raise InvalidArgsException(
                f"The keys {first!r} and {key!r} are both {name!r} in JSON, so one value would be lost.\n"
                "Rename one of them."
            )
        plain[name] = _convert(part, depth + 1)
    return plain


def _convert_key(key):
    """Return the string that json.dumps makes of *key*, or a description where it refuses."""
    import json

    plain = key if type(key) is str else _to_json(key)
    if key is None or isinstance(plain, (int, float)):
        plain = json.dumps(plain)
    return plain if isinstance(plain, str) else _describe(key)


def _read(get, *arguments):
    try:
        return get(*arguments)
    except Exception as error:  # for example omegaconf's MissingMandatoryValue
        return f"<unreadable: {type(error).__name__}>"


def _is_instance(value, *names):
    """Return whether *value* is an instance of one of the classes *names*; their modules are not imported."""
    parts = (name.rpartition(".") for name in names)
    return isinstance(value, tuple(getattr(sys.modules.get(module), name, ()) for module, _, name in parts))


def _take_apart(value):
    """Return the parts of *value* in a dict or list, an array's scalar as a number, or else a description."""
    # Classes are asked and not values, whose __getattr__ may do anything; and no module is imported for them.
    kind = type(value)
    if isinstance(value, (list, tuple)):
        return list(value)
    # os has loaded _collections_abc; importing collections.abc fails if two threads do it at once (3.13):
    # test_threads_that_make_experiments_at_once_leave_nothing_behind.
    is_string = isinstance(value, (bytes, bytearray)) or _is_instance(value, "collections.UserString")
    if _is_instance(value, "_collections_abc.Sequence") and not (is_string or isinstance(value, range)):
        return [_read(value.__getitem__, index) for index in range(len(value))]
    if hasattr(kind, "tolist"):
        plain = value.tolist()  # numpy, torch, pandas; a scalar's is a number
        return plain if isinstance(plain, (list, int, float)) else _describe(value)
    if hasattr(kind, "keys") and hasattr(kind, "__getitem__"):
        return {key: _read(value.__getitem__, key) for key in kind.keys(value)}
    if _is_instance(value, "types.SimpleNamespace", "argparse.Namespace", "pydantic.main.BaseModel"):
        names = [*vars(value), *(getattr(value, "__pydantic_extra__", None) or ())]
    elif hasattr(kind, "__attrs_attrs__"):
        names = [field.name for field in kind.__attrs_attrs__]
    elif hasattr(kind, "__dataclass_fields__"):
        names = [field.name for field in sys.modules["dataclasses"].fields(value)]
    else:
        return _describe(value)
    return {name: _read(getattr, value, name) for name in names}


def _describe(value):
    """Return a string for a value without a form in JSON."""
    kind = type(value)
    try:
        if isinstance(value, (set, frozenset)):
            return _describe_set(value)
        if hasattr(kind, "isoformat"):
            return str(value.isoformat())
        if callable(value) and hasattr(value, "__qualname__"):
            # Functions, methods and classes.
            is_builtin = value.__module__ in (None, "builtins")
            return value.__qualname__ if is_builtin else f"{value.__module__}.{value.__qualname__}"
        # Under `python -bb` str() of bytes is an error.
        text = repr(value) if isinstance(value, (bytes, bytearray)) else str(value)
    except Exception:
        return f"<{kind.__module__}.{kind.__qualname__}>"  # the value's own __str__ failed
    return re.sub(_ADDRESS, "", text)


def _describe_set(values):
    """Return a set's repr, numbers and strings in order: the order of hashes changes with each run."""
    parts = [item if isinstance(item, (int, float)) else repr(item) for item in _to_json(list(values))]
    parts.sort(key=lambda part: (isinstance(part, str), part != part, part))  # NaN after the other numbers
    return "{%s}" % ", ".join(map(str, parts)) if parts else "set()"


def _differ(value, other):
    return value != other and repr(value) != repr(other)  # NaN, also in a list, is not a difference


# === Process ==================================================================
# Describe this process and its job, and determine whether the process that owns a folder still runs.

_JOB_VARIABLES = (
    "SLURM_CLUSTER_NAME SLURM_JOB_ID SLURM_JOB_UID SLURM_RESTART_COUNT SLURM_STEP_ID SLURMD_NODENAME"
)
_PLACE_VARIABLES = (
    _JOB_VARIABLES + " SLURM_JOB_NAME SLURM_JOB_PARTITION SLURM_JOB_NODELIST SLURM_ARRAY_JOB_ID"
    " SLURM_ARRAY_TASK_ID SLURM_PROCID SLURM_HET_JOB_ID SLURM_HET_JOB_OFFSET"
)
_GPUS = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "SLURM_JOB_GPUS")
# Of the environment, only what results may depend on.
_COMPARED_VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PYTHONHASHSEED")
_OUTSIDE_CONTAINERS = "pid:[4026531836]"  # the number that Linux gives to the first pid namespace
_SILENCE_S = 600  # a process whose state is unknown counts as dead after so long without a sign of life
_TIMEOUT_S = 10  # of each command of Slurm
_SLURM_ANSWER_LIFE_S = 10  # after that Slurm is asked again


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
    for name in names.split():
        value = os.environ.get(name)
        if value:
            is_number = value.isdecimal() and name.endswith(("ID", "COUNT", "OFFSET"))
            found[name.lower().replace("_", "-")] = int(value) if is_number else value
    return found


def _read_user():
    """Return the user's name as getpass.getuser() does, without the modules for terminals that it imports."""
    for name in filter(None, map(os.environ.get, ("LOGNAME", "USER", "LNAME", "USERNAME"))):
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
        **_read_variables(_JOB_VARIABLES),
    }
    return {key: value for key, value in process.items() if value not in ("", None)}


def _read_oom_counter():
    """Return the file that counts out-of-memory kills in our cgroup, and its count; {} if unknown.

    See cgroup-v1/memory.rst and cgroup-v2.rst in https://docs.kernel.org/admin-guide.
    """
    text = _read_text("/proc/self/cgroup")
    _, is_v1, group = text.partition(":memory:")
    group = (group or text.partition("::")[2]).partition("\n")[0]
    path = f"/memory{group}/memory.oom_control" if is_v1 else f"{group}/memory.events"
    kills = _read_text("/sys/fs/cgroup" + path).partition("oom_kill ")[2].split()
    return {"oom-counter": path, "oom-kills": int(kills[0])} if kills else {}


def _count_oom_kills(attempt):
    """Return how many processes of our cgroup the kernel killed since *attempt* began; None if unknown."""
    now = {**_describe_process(), **_read_oom_counter()}
    is_here = _agree(now, attempt, "host", "boot", "pid-namespace", "slurm-restart-count", "oom-counter")
    if "oom-counter" in now and is_here and isinstance(attempt.get("oom-kills"), int):
        return max(0, now["oom-kills"] - attempt["oom-kills"])  # the group may have been made anew
    return None


def _describe_place():
    """Describe where this process runs, for people: a white list, never the complete environment."""
    log_file = _read_link("/proc/self/fd/1")
    has_log = os.path.isfile(log_file)
    place = {  # of os.uname() the system, its release and the machine
        "host": _read_host() or None,
        "user": _read_user(),
        "python": sys.version.split()[0],
        "platform": " ".join(os.uname()[::2]) if hasattr(os, "uname") else sys.platform,
        # An empty string counts, because it hides all of them.
        "gpus": next((os.environ[name] for name in _GPUS if name in os.environ), None),
        "log-file": log_file if has_log else None,
        "log-size": os.path.getsize(log_file) if has_log else None,
        **_read_variables(_PLACE_VARIABLES),
    }
    return {key: value for key, value in place.items() if value is not None}


def _list_packages():
    """Return the versions of all packages that can be imported, as lines of name==version.

    From the names of *.dist-info and *.egg-info folders: nothing is opened or imported.
    """
    found: "Dict[str, str]" = {}
    for folder in sys.path:
        try:
            names = os.listdir(os.fsdecode(folder) or ".")
        except (OSError, TypeError):  # what is not a path; Python's imports ignore it, too
            continue
        for name in names:
            if name.endswith((".dist-info", ".egg-info")):
                # NAME-VERSION.dist-info, NAME-VERSION-py3.6.egg-info; an editable one may lack the version.
                parts = name.rsplit(".", 1)[0].split("-")
                if len(parts) > 1:
                    found.setdefault(*parts[:2])
    return "\n".join(f"{name}=={found[name]}" for name in sorted(found))


def _describe_command():
    """Describe how this process was started, so that the same can be started again."""
    return {
        "command-line": getattr(sys, "orig_argv", None)  # from Python 3.10 on
        or _read_text("/proc/self/cmdline").split("\0")[:-1]
        or [sys.executable, *getattr(sys, "argv", [])],
        "executable": sys.executable,
        # Linux still knows the name of a deleted directory.
        "directory": _read_link("/proc/self/cwd") or os.getcwd(),
        "environment": {name: os.environ[name] for name in _COMPARED_VARIABLES if name in os.environ},
        "packages": _list_packages(),
    }


def _measure_usage():
    """Return the CPU seconds of this process and its ended children, and the largest peak memory in bytes."""
    try:
        from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
    except ImportError:  # Windows
        return time.process_time(), 0
    own, children = getrusage(RUSAGE_SELF), getrusage(RUSAGE_CHILDREN)
    cpu = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    # ru_maxrss is in bytes on macOS, in KiB elsewhere (getrusage(2)).
    return cpu, max(own.ru_maxrss, children.ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def _agree(process, other, *keys):
    return all(process.get(key) == other.get(key) for key in keys)


def _is_running(process, scheduler=None):
    """Return whether a process that _describe_process() described runs; None if it is unknown.

    *scheduler* is a _Scheduler to ask about a process that can't be seen from here. A process that is stopped
    or frozen runs; a zombie does not. False is certain for a process of this machine, but Slurm answers it
    also for a node that it has lost contact with.
    """
    here = _describe_process()
    if _agree(process, here, "host", "boot", "pid-namespace"):
        return _is_pid_running(process)
    # Containers don't count: on many machines they are called localhost and have their image's machine-id.
    is_outside = "machine" in here and here.get("pid-namespace") == _OUTSIDE_CONTAINERS
    if is_outside and _agree(process, here, "host", "machine", "pid-namespace"):
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
    state, start, stack = _read_stat(pid if is_our_proc else "none")
    if not state:
        return "process-start" in process or _was_started_before(pid, process.get("start-epoch"))
    has_executed = stack and process.get("process-stack", stack) != stack
    return state not in "ZX" and process.get("process-start", start) == start and not has_executed


def _was_started_before(pid, epoch):
    """Return whether process *pid* began before *epoch*, as ps(1) says; True if it doesn't say (macOS)."""
    from subprocess import SubprocessError

    try:
        start = time.strptime(_run_program(f"ps -o lstart= -p {pid}").strip())
        return time.mktime(start) <= epoch + 2
    except (OSError, SubprocessError, TypeError, ValueError):
        return True


def _run_program(command):
    """Return what ps or a command of Slurm prints, in English; Slurm's times are seconds since the epoch."""
    from subprocess import DEVNULL, check_call
    from tempfile import TemporaryFile

    # These variables are defaults for options, which hide jobs or ask other clusters.
    foreign = ("SQUEUE_", "SLURM_CLUSTERS")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    environment.update(LC_ALL="C", SLURM_TIME_FORMAT="%s")
    # Not a pipe: after a timeout Python 3.6 waits for all that hold it, such as the children of a wrapper.
    with TemporaryFile() as file:
        check_call(
            command.split(), env=environment, stdin=DEVNULL, stdout=file, stderr=DEVNULL, timeout=_TIMEOUT_S
        )
        file.seek(0)
        return file.read().decode("utf-8", "replace")


class _Scheduler:
    """Ask Slurm about the jobs of this user: only if a record needs it, and at most every 10 seconds."""

    def __init__(self):
        self._answer: "Any" = None
        self._valid_until = float("-inf")
        self._lists = {}

    def recall(self, make_list, *args):
        """Return make_list(*args), made once. Not functools.lru_cache(), because readers can be pickled."""
        call = make_list, args
        if call not in self._lists:
            self._lists[call] = make_list(*args)
        return self._lists[call]

    def is_job_running(self, process):
        """Return whether the job that *process* is part of runs; None if Slurm can't tell."""
        # Many sites hide the jobs of other users. What salloc starts on a login node, without a slurmd, may
        # outlive its job.
        if _WINDOWS or "slurmd-nodename" not in process or process.get("slurm-job-uid") != os.getuid():
            return None
        if time.monotonic() > self._valid_until:
            self._answer = _ask_slurm()
            self._valid_until = time.monotonic() + _SLURM_ANSWER_LIFE_S
        cluster, jobs, steps = self._answer
        if process.get("slurm-cluster-name") != cluster:
            return None  # other clusters have the same numbers
        job, step = process.get("slurm-job-id"), process.get("slurm-step-id")
        state, restarts = jobs.get(str(job), ("GONE", 0))
        # A COMPLETING job that is requeued counts as restarted while its old processes are still being ended.
        has_restarted = restarts > process.get("slurm-restart-count", 0) and state != "COMPLETING"
        if state == "GONE" or has_restarted:
            return False
        if state == "RUNNING" and step is not None and (str(job), str(step)) not in steps:
            return False  # a step that has ended, of a job that goes on with the next
        return True if state in ("RUNNING", "SUSPENDED") else None


def _ask_slurm():
    """Return the cluster's name, {job id: (state, restarts)} of this user's jobs, and the ids of their steps.

    ("", {}, []) if Slurm does not answer.
    """
    from subprocess import SubprocessError, TimeoutExpired

    # --all: also the jobs in partitions that are hidden from this user.
    squeue = f"squeue --noheader --all --user={os.getuid()} --Format="
    try:
        cluster = "".join(re.findall(r"(?m)^ClusterName *= *(\S+)", _run_program("scontrol show config")))
        jobs = re.findall(r"(?m)^(\d+) +(\w+) +(\d+)", _run_program(squeue + "jobid,state,restartcnt"))
        # The id of a step begins with that of the array, if its job is part of one: 1230_4.0.
        steps = re.findall(r"(?m)^(\d+) .*\.(\w+)", _run_program(squeue + "jobid,stepid:50 --steps"))
        return cluster, {job: (state, int(restarts)) for job, state, restarts in jobs}, steps
    except TimeoutExpired:
        _warn(f"Slurm has not answered for {_TIMEOUT_S} s: what it knows of running jobs is left out.")
    except (OSError, SubprocessError):
        pass
    return "", {}, []


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
    return [each for each in _get_part(metadata, "attempts", list) if isinstance(each, dict)]


def _attempt_path(folder, number):
    return os.path.join(folder, f".attempt-{number}")


def _find_newest_attempt(folder):
    """Return the number of the newest attempt that was claimed; 1 if there was no other."""
    prefix = _attempt_path("", "")
    numbers = (name[len(prefix) :] for name in os.listdir(folder) if name.startswith(prefix))
    return max(map(int, filter(str.isdecimal, numbers)), default=1)


def _claim_attempt(folder, process):
    """Claim the next attempt of the experiment in *folder* for *process*; return its number.

    The claim is a rename: a hidden directory that holds the process becomes .attempt-NUMBER, which fails if
    that is there, on network file systems too. The newest claim stays, so that no number is used twice.
    Raises RunningException while the process of the newest attempt may live.
    """
    claim = _build_path(folder)
    os.mkdir(claim)
    try:
        _create_file(os.path.join(claim, "process.json"), _encode_json(process))
        now = os.stat(claim).st_mtime
        while True:
            metadata = _load_mapping(os.path.join(folder, "metadata.json"))
            newest = max(len(_get_attempts(metadata)), _find_newest_attempt(folder))
            _check_gone(folder, metadata, newest, now)
            number = newest + 1
            path = _attempt_path(folder, number)
            try:
                os.rename(claim, path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                continue  # another process was faster: look at that one
            # While this process was stopped, others may have run the experiment and removed older claims.
            if _find_newest_attempt(folder) == number:
                break
            os.rename(path, claim)
    except BaseException:
        _remove_folder(claim)
        raise
    for older in range(2, number):
        _remove_folder(_attempt_path(folder, older))
    leftovers = [name for name in os.listdir(folder) if re.fullmatch(r"\.new-\w+|\..+\.\w{16}\.tmp", name)]
    _sweep(folder, leftovers, now)
    return number


def _check_gone(folder, metadata, newest, now):
    """Raise RunningException if the *newest* attempt of the experiment in *folder* may still run.

    *now* is the file server's time, which need not agree with this node's.
    """
    attempts = _get_attempts(metadata)
    process = attempts[-1] if attempts else {}
    is_new = newest > max(1, len(attempts))  # claimed, and neither metadata nor STATUS need tell of it yet
    if is_new:
        process = _load_mapping(os.path.join(_attempt_path(folder, newest), "process.json"))
    elif not process or "end-time" in process:
        return
    # metadata.json tells the end after STATUS does: test_a_run_that_has_written_only_its_status_still_runs.
    may_live = is_new or _read_if_there(os.path.join(folder, "STATUS")) == b"RUNNING"
    is_running = _is_running(process, _Scheduler() if may_live else None)
    if is_running is None and may_live:
        # Clocks differ a bit, but a time far in the future is not a sign of life.
        sign = _last_sign_of_life(folder)
        is_running = sign is None or abs(now - sign) < _SILENCE_S
        if not is_running:
            pid, host = process.get("pid"), process.get("host")
            _warn(f"{folder} counts as abandoned: it is unknown whether pid {pid} on {host} still runs it.")
    if is_running:
        raise RunningException(folder, process, process.get("start-time", "an unknown time"))


class _Session:
    """What belongs to the open experiments of this process; a forked child begins with a new one.

    experiments: the open ones, the latest last. is_exiting: whether the process is at its end. hooks: an
    ExitStack that removes what was installed for them.
    lock: re-entrant because a signal handler may print, log and finish. summary_lock: a lock of its own, so
    that other threads can print while summary.json is written; who holds it never waits for *lock*.
    """

    def __init__(self):
        from _thread import RLock  # what threading.RLock() returns, without importing threading

        self.lock, self.summary_lock = RLock(), RLock()
        self.experiments = []
        self.hooks = None
        self.is_exiting = False
        self._holders = []
        self._held = []

    def postpone(self, signum):
        """Return whether a signal has to wait; release() sends it again."""
        if self._holders:
            self._held.append(signum)
        return bool(self._holders)

    def get_killer(self):
        """Return the signal that will end this process when it need not wait any more, None without one."""
        import signal

        return next((signum for signum in self._held if signum != signal.SIGINT), None)

    def hold(self):
        """Delay the handlers of our signals until release()."""
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

        handler: "Any" = signal.getsignal(signal.SIGINT)
        self._handler = handler if callable(handler) and _in_main_thread() else None
        if self._handler:
            # A child that a thread forks meanwhile has a session of its own, which holds nothing.
            signal.signal(signal.SIGINT, lambda *args: _session.postpone(args[0]) or handler(*args))
        # Last here and first in __exit__, so that no Ctrl-C in between leaves the session held:
        # test_ctrl_c_at_each_line_of_a_hold_leaves_nothing_held.
        _session.hold()

    def __exit__(self, *exc_info):
        import signal

        try:
            _session.release()
        finally:
            if self._handler:
                signal.signal(signal.SIGINT, self._handler)


def _in_main_thread():
    import threading

    return threading.get_ident() == threading.main_thread().ident


_session = _Session()


# === Git ======================================================================
# Ask git which code runs here, and have it ignore the experiments directory.

# These say whom git trusts, where its search upwards ends, where its programs are, and who commits.
# Every other GIT_* is dropped: GIT_DIR, which hooks get, leads elsewhere; GIT_TRACE writes into what we read.
_KEPT_VARIABLES = (
    "GIT_CONFIG_", "GIT_CEILING_DIRECTORIES", "GIT_DISCOVERY_ACROSS_FILESYSTEM", "GIT_EXEC_PATH",
    "GIT_AUTHOR_", "GIT_COMMITTER_",
)  # fmt: skip
_GIT_VARIABLES = {
    # LANGUAGE changes only git's messages. LC_ALL would change the user's clean filters too, such as `sort`.
    "LANGUAGE": "C",
    # A partial clone stays offline: the first is known from git 2.44 on, the second to all.
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_ALLOW_PROTOCOL": "",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    # trace2.* in the configuration is switched off by variables only, not by -c.
    "GIT_TRACE2": "0",
    "GIT_TRACE2_EVENT": "0",
    "GIT_TRACE2_PERF": "0",
}
# Hooks and the fsmonitor are programs that may refuse or hang, and signing may ask for a passphrase. Without
# useConfigOnly git makes up a user's name. Versions of git that don't know a setting ignore it.
_GIT_COMMAND = (
    f"git -c core.hooksPath={os.devnull} -c core.fsmonitor= -c core.safecrlf=false -c commit.gpgSign=false"
    " -c user.useConfigOnly=true"
)
_LOCK_TRIES = 200  # one every 50 ms, while another git process holds a lock
# `git reset` of another start may read HEAD, be overtaken, and then put the older .gitignore into the index:
# test_starts_with_different_directories_add_all_lines.
_FINISH_TRIES = 20


def _git(arguments, directory, stdin=b"", meanwhile=None, **variables):
    """Run a git command in *directory*; return its code, stdout (bytes) and stderr.

    arguments: a list, or a string of words without spaces; no shell is involved. A code that is not 0 is not
    an error here. The function *meanwhile* is called while git runs.
    """
    import subprocess
    from types import SimpleNamespace

    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or name.startswith(_KEPT_VARIABLES)
    }
    if isinstance(arguments, str):
        arguments = arguments.split()
    try:
        # A git killed while it holds a lock leaves the lock, which blocks everyone. So not subprocess.run,
        # which kills it at Ctrl-C, and a session of its own, for what kills our process group.
        process = subprocess.Popen(
            _GIT_COMMAND.split() + arguments, cwd=directory, env={**kept, **_GIT_VARIABLES, **variables},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise GitException(
            f"git can't be run in {directory}: {_explain(error)}.\n"
            f"Install git and put it on PATH{_OR_NORECORD}."
        ) from error
    with process:
        if meanwhile is not None:
            meanwhile()
        stdout, stderr = process.communicate(stdin)
    words = stderr.decode("utf-8", "replace")
    # Where SIGCHLD is ignored, or other code waits for all children, Popen takes every code for 0:
    # test_failure_is_seen_where_others_reap_children.
    code = process.returncode or (128 if "\nfatal: " in "\n" + words else 0)
    return SimpleNamespace(code=code, stdout=stdout, stderr=words)


def _ask_git(arguments, directory, needed=b"", *rest, **variables):
    """Run a git command that must not fail; return its stdout, which must contain *needed*."""
    for _ in range(_LOCK_TRIES):
        answer = _git(arguments, directory, *rest, **variables)
        if "File exists" not in answer.stderr:
            break
        time.sleep(0.05)
    if answer.code or needed not in answer.stdout:
        raise _explain_refusal(answer, directory)
    return answer.stdout


def _ask_word(arguments, directory, *rest, **variables):
    """Run a git command that must not fail; return the one line that it prints."""
    return os.fsdecode(_ask_git(arguments, directory, b"\n", *rest, **variables)[:-1])


# Patterns, what they mean if they match git's exit code, reason and stderr, and what to do. {} is the group.
# The first that matches counts; the last always does.
_REFUSALS = (
    (
        r"(?s)(git config --global --add safe\.directory .*\S)",
        "belongs to another user, so git doesn't read it",
        "If you trust it, run `{}`",
    ),
    (
        "not a git repository(: (?!.*null).+|(?=: ))",  # git 2.55 has a null in place of the path
        "is a work tree or submodule whose repository is not there{}",
        "Bring that back (`git worktree repair` if it was moved)",
    ),
    (
        "(?i)not a git repository",
        "is not in a git repository ({reason})",
        "Run `git init` there and commit the code, or name another project_directory",
    ),
    ("File exists", "is locked: {reason}", "Remove the lock if no git runs"),
    (
        "^0|work(?:ing)? tree",
        "is in a bare repository or inside .git, where no files are checked out",
        "Name another project_directory",
    ),
    (
        "index file (?:smaller|corrupt)|bad index|null sha1",
        "is in a repository that git can't use: {reason}",
        "Remove git's file `index` and run `git reset`, which changes no other file",
    ),
    ("", "is in a repository that git can't use: {reason}", "Repair it"),
)


def _explain_refusal(answer, directory):
    """Return a GitException that says what git's refusal means, and what to do."""
    reasons = re.findall("(?m)^(?:fatal|error): (.+)", answer.stderr)
    reason = ("; ".join(reasons) or answer.stderr.strip() or "no reason given").rstrip(".")
    for pattern, what, remedy in _REFUSALS:
        found = re.search(pattern, f"{answer.code} {reason}\n{answer.stderr}")
        if found:
            explanation = f"{what}.\n{remedy}".format(*found.groups(), reason=reason)
            return GitException(f"{directory} {explanation}{_OR_NORECORD}.")


def _is_there(folder, name):
    return os.path.lexists(os.path.join(folder, name))


def _list_parents(path):
    """Yield *path* and all directories above it, from the inside out."""
    yield path
    if os.path.dirname(path) != path:
        yield from _list_parents(os.path.dirname(path))


def _ask_top(directory):
    """Return the top of the work tree that git finds from *directory* upwards, links resolved."""
    # Up to git 2.18 a bare repository is not an error, only an empty answer.
    return os.path.realpath(_ask_word("rev-parse --show-toplevel", directory))


def _find_work_tree(project_directory):
    """Return the top of the work tree that *project_directory* is in, by a path that keeps symbolic links.

    It may be a guess, which costs no process: _prepare_repository has git confirm it.
    """
    given = _make_absolute(project_directory)
    if not os.path.isdir(given):
        raise GitException(f"There is no directory {given}.\nName another project_directory.")
    # Git's search ends at file systems, at ceilings, and at the HEAD of .git itself and of bare repositories.
    for top in _list_parents(os.path.realpath(given)):
        if _is_there(top, ".git"):
            break
        if _is_there(top, "HEAD") or os.path.ismount(top) or "GIT_CEILING_DIRECTORIES" in os.environ:
            top = _ask_top(given)
            break
    return next((folder for folder in _list_parents(given) if os.path.realpath(folder) == top), top)


def _find_git_directory(work_tree):
    path = os.path.join(work_tree, ".git")  # a file in submodules and linked work trees
    if not os.path.isdir(path):
        path = _ask_word("rev-parse --git-dir", work_tree)
    return os.path.join(work_tree, path)


def _find_shared_directory(work_tree):
    """Return the git directory that all linked work trees of a repository have in common."""
    directory = _find_git_directory(work_tree)
    common = _read_if_there(os.path.join(directory, "commondir")) or b""
    return os.path.join(directory, os.fsdecode(common.strip()))


def _parse_commit(raw):
    """Return the message of a raw commit, exactly as it was committed."""
    header, _, message = raw.partition(b"\n\n")
    encoding = header.partition(b"\nencoding ")[2].partition(b"\n")[0].decode("latin-1") or "utf-8"
    try:
        return message.decode(encoding, "surrogateescape")
    except (LookupError, ValueError):
        return message.decode("utf-8", "surrogateescape")


def _parse_tree(raw, digits):
    """Return the entries of a raw tree object: by name the object's sha."""
    entries = re.findall(rb"(?s)\d+ ([^\0]+)\0(.{%d})" % (digits // 2), raw)
    return {os.fsdecode(name): sha.hex() for name, sha in entries}


def _parse_status(output):
    """Return the paths in the output of `git status --porcelain -z -b`, each with its two letters."""
    changed = {}
    entries = iter(output.decode("utf-8", "surrogateescape").split("\0")[1:-1])
    for entry in entries:
        code = entry[:2]
        changed[entry[3:]] = code
        if "R" in code or "C" in code:
            next(entries)  # the name before renaming or copying
    return changed


def _read_objects(work_tree, names):
    """Return sha and content of each of git's objects *names*; the sha is "" if there is no such object."""
    output = _ask_git("cat-file --batch", work_tree, b"\n", os.fsencode("\n".join(names)))
    objects = []
    for _ in names:
        header, _, output = output.partition(b"\n")
        # "SHA TYPE SIZE", or "NAME missing"
        sha, _, size = header.split() if header[-1:].isdigit() else (b"", b"", b"-1")
        objects.append((sha.decode(), output[: max(int(size), 0)]))
        output = output[int(size) + 1 :]
    return objects


def _read_state(work_tree, at_once, with_untracked=False, folders=()):
    """Return HEAD of *work_tree*: sha, message, what differs from it, and the trees of *folders*.

    None if git finds another top from *work_tree*, or if HEAD moved while it was read. HEAD is read before
    the status, which compares with that commit unless HEAD moves in between; or both *at_once*.
    """
    from types import SimpleNamespace

    head: "Any" = None

    def read_head():
        nonlocal head
        # The second is the tree of this directory: the commit's exactly if git agrees that this is the top.
        names = ["HEAD", "HEAD:./", *(f"HEAD:{folder}".replace(os.sep, "/") for folder in folders)]
        (sha, commit), (tree, _), *others = _read_objects(work_tree, names)
        if not sha:
            raise GitException(
                f"{work_tree} has no commit yet.\nCommit the code (`git add`, `git commit`){_OR_NORECORD}."
            )
        if commit.startswith(f"tree {tree}\n".encode()):
            trees = {folder: _parse_tree(raw, len(sha)) for folder, (_, raw) in zip(folders, others)}
            head = SimpleNamespace(sha=sha, message=_parse_commit(commit), work_tree=work_tree, trees=trees)

    if not at_once:
        read_head()
    # -b prints a line even if nothing differs, unlike a git that failed silently. Looking for renames
    # would need contents, which a partial clone may lack. No setting hides what differs in a submodule.
    status = "-c status.renames=false status --porcelain -z -b --ignore-submodules=untracked "
    status += "-uall" if with_untracked else "-uno"
    output = _ask_git(status, work_tree, b"##", b"", read_head if at_once else None)
    if head:
        head.changed, head.snapshot, head.patch = _parse_status(output), None, b""
    return head


_IGNORE_FILE = ".gitignore"
_IGNORE_MESSAGE = "Added experiments directory to .gitignore"
_NOBODY = "-c user.name=meticulous -c user.email=meticulous@localhost "
# What is in the git directory while bisect, rebase, am, merge, cherry-pick or revert owns HEAD.
_OPERATIONS = "BISECT_LOG rebase-merge rebase-apply MERGE_HEAD CHERRY_PICK_HEAD REVERT_HEAD sequencer"


def _find_ignorable_path(work_tree, directory):
    """Return the path of *directory* (the link's, if it is one) relative to *work_tree*; None if outside."""
    parent, name = os.path.split(directory)
    top = os.path.realpath(work_tree)
    path = os.path.relpath(os.path.join(os.path.realpath(parent), name), top).replace(os.sep, "/")
    if {".", ".git"} & set(os.path.relpath(os.path.realpath(directory), top).split(os.sep)):
        problem = "is the whole work tree or inside .git"
    elif (path + "/").startswith("../"):
        return None
    elif "\n" in path or path.endswith("\r"):
        problem = "has a name that no line of .gitignore can express"
    else:
        return path
    raise GitException(f"{directory!r} {problem}.\nName another experiments_directory.")


def _escape_pattern(path):
    """Return *path* as a line of .gitignore; characters that have a meaning there are escaped."""
    if path.isidentifier():
        return path  # as usual, and without a pattern to compile
    return re.sub(r"[*?[\\]|^[#!]| (?= *$)", r"\\\g<0>", path)


def _has_line(content, line, is_link=True):
    """Return whether .gitignore's *content* has *line*, maybe with slashes around it that change nothing."""
    strip = bytes.lstrip if is_link else bytes.strip  # a slash means directories; to git a link is not one
    lines = content.replace(b"\xef\xbb\xbf", b"").splitlines()
    return os.fsencode(line) in (strip(each, b"/") for each in lines)


def _add_line(content, line):
    """Return .gitignore's *content* with *line*: where it is missing, at the end, with the usual line end."""
    if _has_line(content, line):
        return content
    end = b"\r\n" if b"\r\n" in content else b"\n"
    return content + (end if content and not content.endswith(b"\n") else b"") + os.fsencode(line) + end


def _append_line(path, line):
    """Add *line* to the file *path* if it is missing.

    Several processes that do it at once write the same bytes at the same offset.
    """
    # In place: a new file and a rename would change owner, mode and links.
    open(path, "ab").close()
    with open(path, "r+b") as file:
        content = file.read()
        file.seek(len(content))
        file.write(_add_line(content, line)[len(content) :])


def _is_ignored(work_tree, path):
    """Return whether any rule makes git ignore the directory *path*, or its line is in .gitignore already."""
    file = os.path.join(work_tree, _IGNORE_FILE)
    is_link = os.path.islink(os.path.join(work_tree, path))
    # check-ignore costs a process, and says no while a file below is tracked. git follows no link.
    content = _read_file(file) if os.path.isfile(file) else b""
    if _has_line(content, _escape_pattern(path), is_link):
        return True
    # A pattern that ends in a slash matches a directory that is not there yet only if the path ends in one,
    # too; that of a link must not. ./ because git takes a colon at the beginning for pathspec magic.
    answer = _git(["check-ignore", f"./{path}" if is_link else f"./{path}/"], work_tree)
    return bool(answer.stdout)


def _read_writable(path):
    """Return the content of the file *path*, b"" if there is none; raise OSError if it is read-only."""
    is_there = os.path.lexists(path)
    if os.path.islink(path) or not os.access(path if is_there else os.path.dirname(path), os.W_OK):
        raise FolderException(None, "is a symbolic link or can't be written.", path)
    return _read_file(path) if is_there else b""


def _hash_file(work_tree, content):
    """Store *content* as git stores .gitignore, by its settings for line ends; return the blob's sha."""
    return _ask_word(f"hash-object -w --path {_IGNORE_FILE} --stdin", work_tree, content)


def _has_moved(work_tree, head):
    return _read_objects(work_tree, ["HEAD"])[0][0] != head.sha


def _create_commit(work_tree, head, before, after):
    """Make a commit on *head* that replaces .gitignore's blob *before*; nothing refers to it yet."""
    listing = _ask_git(f"ls-tree -z --full-tree {head.sha}", work_tree)
    old, new = (b"blob %s\t.gitignore\0" % sha.encode() for sha in (before, after))
    listing = listing.replace(old, new) if before else listing + b"100644 " + new
    tree = _ask_word("mktree -z --missing", work_tree, listing)
    command = f"commit-tree {tree} -p {head.sha}"
    message = f"{_IGNORE_MESSAGE}\n".encode()
    # git refuses if no user name is configured.
    sha = _git(command, work_tree, message).stdout.decode().strip()
    sha = sha or _ask_word(_NOBODY + command, work_tree, message)
    if _ask_git(f"diff-tree -z --name-only {head.sha} {sha}", work_tree) != b".gitignore\0":
        raise OSError("more than this file would change")
    return sha


# Compare-and-swap, without a lock: HEAD moves first, and only from the commit that we have read; then the
# index; the file last. A start that is killed in between leaves our commit at HEAD and only .gitignore dirty.
# Any start that finds this does the rest, and doing it twice changes nothing (idempotent):
# test_kill_at_every_step_blocks_nobody, test_64_starts_make_one_commit.
def _commit_line(work_tree, head, line, experiments_directory):
    """Commit *line* at the end of .gitignore on top of *head*, unless another start is faster.

    Index and file are left to _finish_commit. Returns whether there is nothing to commit: the directory is in
    a repository of its own, or the line went to info/exclude.
    """
    path = os.path.join(work_tree, _IGNORE_FILE)
    try:
        if _ask_top(os.path.dirname(experiments_directory)) != os.path.realpath(work_tree):
            return True
        directory = _find_git_directory(work_tree)
        # Bisect finds nothing, or never ends, if HEAD moves by itself: test_bisect_run_finds_the_commit.
        if head.changed or any(_is_there(directory, name) for name in _OPERATIONS.split()):
            exclude = os.path.join(_find_shared_directory(work_tree), "info", "exclude")
            os.makedirs(os.path.dirname(exclude), exist_ok=True)  # `git init --template=` makes none
            _append_line(exclude, line)
            _warn(
                f"added the line {line} to {exclude}, because HEAD must stay: files differ or git is at work."
            )
            return True
        content = _read_writable(path)
        if _has_line(content, line):
            return False
        committed = _read_objects(work_tree, [f"{head.sha}:{_IGNORE_FILE}"])[0][0]
        if committed and committed != _hash_file(work_tree, content):
            raise OSError("git is told to overlook its changes (sparse, assume-unchanged)")
        sha = _create_commit(work_tree, head, committed, _hash_file(work_tree, _add_line(content, line)))
        # This locks the index, so no lock of another git will stop us half-way, after HEAD has moved.
        _ask_git("write-tree --missing-ok", work_tree)
        _ask_git(["update-ref", "-m", _IGNORE_MESSAGE, "HEAD", sha, head.sha], work_tree)
    except (OSError, GitException) as error:
        if _has_moved(work_tree, head):
            return False
        reason = str(error).splitlines()[0].rstrip(".")
        raise GitException(
            f"{path} should have the line {line}, but that can't be committed: {reason}.\n"
            f"Add it there and commit it, or add it to .git/info/exclude{_OR_NORECORD}."
        ) from error
    _warn(f"committed the line {line} to {path} ({sha[:7]}).")
    return False


def _finish_commit(work_tree, head):
    """Bring index and .gitignore to a commit of ours at HEAD; False if they differ by the user's change."""
    if head.message.strip() != _IGNORE_MESSAGE:
        return False
    path = os.path.join(work_tree, _IGNORE_FILE)
    committed, stored = _read_objects(work_tree, [f"{head.sha}:{_IGNORE_FILE}"])[0]
    line = os.fsdecode(stored.rstrip(b"\r\n").rpartition(b"\n")[2])
    if _hash_file(work_tree, _add_line(_read_writable(path), line)) != committed:
        return False
    _ask_git(f"reset -q -- {_IGNORE_FILE}", work_tree)
    _append_line(path, line)
    return True


def _differs_only_by_our_commits(work_tree, recorded_sha, head):
    """Return whether only commits of ours to .gitignore are between *recorded_sha* and *head*.

    Of snapshots, whether only those are between their parents.
    """
    if not re.fullmatch("[0-9a-f]+", recorded_sha):
        return False
    output = _git(f"rev-list --format=:%s {recorded_sha}...{head.sha}", work_tree).stdout
    commits = re.findall("commit (.+)\n:(.*)", output.decode("latin-1"))
    others = {sha for sha, subject in commits if subject != _IGNORE_MESSAGE}
    if head.snapshot and _IGNORE_FILE not in head.snapshot["files"]:
        others -= {recorded_sha, head.sha}
    output = _git(f"diff-tree -z --name-only {recorded_sha} {head.sha}", work_tree).stdout
    return not others and output == b".gitignore\0"


# === Code =====================================================================
# Prove that the files whose code runs are those of the commit, and commit a dirty work tree as a snapshot.

_LARGEST_FILE = 2**20  # bytes of an untracked file in a snapshot
_LARGEST_SUM = 20 * 2**20  # bytes of all untracked files in a snapshot
# Equal states of a work tree are the same commit, whoever makes it, and whenever.
_SNAPSHOT = """\
tree {}
parent {}
author meticulous <meticulous@localhost> 1000000000 +0000
committer meticulous <meticulous@localhost> 1000000000 +0000

Snapshot of uncommitted changes
"""


def _hash_large_file(path):
    from hashlib import sha256

    digest = sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(_LARGEST_FILE), b""):
            digest.update(block)
    return digest.hexdigest()


def _find_large_files(top, changed):
    """Return the untracked files in *changed* that are too large for a snapshot, each with its sha256.

    Raises GitException for a submodule with changes and for an untracked repository.
    """
    left_out, total = {}, 0
    for name, code in changed.items():
        path = os.path.join(top, name.encode("utf-8", "surrogateescape"))
        # A directory that is changed, and not gone, is a submodule; an untracked one a repository of its own.
        if os.path.isdir(path) and not os.path.islink(path) and "D" not in code:
            raise GitException(
                f"{os.fsdecode(path)} is a submodule with changes, or an untracked repository.\n"
                f"A snapshot can't hold it: commit it, or have git ignore it{_OR_NORECORD}."
            )
        if code == "??":
            try:
                size = os.lstat(path).st_size
                if size > _LARGEST_FILE or total + size > _LARGEST_SUM:
                    left_out[name] = _hash_large_file(path)
                else:
                    total += size
            except FileNotFoundError:
                pass  # another process has removed its temporary file since
    return left_out


def _may_overlook(index, digits):
    """Return whether the bytes of the *index* let git overlook changes; *digits* of a sha are 40 or 64.

    Read here (gitformat-index(5)), because the process of `git ls-files` takes as long as `git status` does
    in a small repository.
    """
    # Only version 2 is parsed; a sparse checkout needs a later one. A split index has most entries elsewhere.
    if index[7:8] != b"\2" or b"link" in index:
        return True
    entry = 12
    for _ in range(int.from_bytes(index[8:entry], "big")):
        flags = entry + 40 + digits // 2
        if index[flags] & 0x80:  # assume-unchanged
            return True
        entry += (index.index(0, flags + 2) - entry) // 8 * 8 + 8
    return False


def _store_work_tree(work_tree, index, files, experiments_directory, digits):
    """Store the work tree, of which *files* differ from HEAD; return the tree and what git overlooked.

    files: by name the two letters of `git status`. Git works on a copy of the *index*, in a hidden folder of
    the *experiments_directory*, which a later start sweeps if this one is killed.
    """
    hidden = _build_path(experiments_directory)
    copy = os.path.join(hidden, "index")

    def update(names, *options):
        if names:
            command = ["update-index", *options, "-z", "--stdin"]
            content = "\0".join(names).encode("utf-8", "surrogateescape")
            _ask_git(command, work_tree, b"", content, GIT_INDEX_FILE=copy)

    os.mkdir(hidden)
    try:
        content = b""
        if os.path.exists(index):  # to git a missing one is empty
            times, content = os.stat(index), _read_file(index)
            _create_file(copy, content)
            # By its time git knows which files may have changed in the same second:
            # test_edit_of_the_same_size_in_the_same_second.
            os.utime(copy, ns=(times.st_atime_ns, times.st_mtime_ns))
        # An ignored file may be in the place of a deleted one, or a symbolic link in that of its folder.
        gone = {name for name, code in files.items() if re.match("D |[^U]D", code)}
        add = "--add", "--remove", "--replace"
        update(gone, "--force-remove")
        update(files.keys() - gone, *add)
        may_overlook = _may_overlook(content, digits)
        tags = b"\0" + _ask_git("ls-files -v -z", work_tree, GIT_INDEX_FILE=copy) if may_overlook else b""
        # Lower case alone is assume-unchanged; S is skip-worktree, by which a sparse checkout omits files.
        overlooked = [
            name
            for tag, name in re.findall("\0([a-zS]) ([^\0]+)", os.fsdecode(tags))
            if tag not in "sS" or _is_there(work_tree, name)
        ]
        update(overlooked, "--no-assume-unchanged")
        update(overlooked, "--no-skip-worktree")
        update(overlooked, *add)
        return _ask_word("write-tree --missing-ok", work_tree, GIT_INDEX_FILE=copy), overlooked
    finally:
        _try(os.unlink, copy)  # not _remove_folder, because importing shutil takes longer than all of this
        _try(os.rmdir, hidden)


def _take_snapshot(work_tree, head, experiments_directory):
    """Commit the work tree as it is, on top of *head*, and have *head* describe that commit.

    The user's index, branch, stash and files stay as they are.
    """
    left_out = _find_large_files(os.fsencode(work_tree), head.changed)
    files = {name: code for name, code in head.changed.items() if name not in left_out}
    directory, digits = _find_git_directory(work_tree), len(head.sha)
    index = os.path.join(directory, "index")
    tree, overlooked = _store_work_tree(work_tree, index, files, experiments_directory, digits)
    commit = _SNAPSHOT.format(tree, head.sha).encode()
    sha = _hash_object("commit", commit, digits)
    reference = f"refs/meticulous/{sha}"
    if not _is_there(directory, reference):
        _ask_git("hash-object -t commit -w --stdin", work_tree, b"\n", commit)
        _ask_git(f"update-ref {reference} {sha}", work_tree)
    options = "-p --binary --full-index --no-ext-diff --no-textconv --ignore-submodules=none"
    head.patch = _ask_git(f"diff-tree {options} {head.sha} {tree}", work_tree)
    head.snapshot = {"head": head.sha, "files": list(files), "left-out": left_out, "complete": not left_out}
    head.sha, head.message = sha, _parse_commit(commit)
    # The trees of all other folders are the same.
    for folder in set(map(os.path.dirname, [*files, *overlooked])):
        head.trees.pop(folder, None)


def _hash_object(kind, content, digits):
    """Return git's name of an object: 40 or 64 *digits*."""
    try:
        # A tenth of the time of hashlib, which loads OpenSSL.
        from _sha1 import sha1 as digest  # type: ignore[import-not-found]
    except ImportError:
        from hashlib import sha1 as digest
    if digits == 64:
        from hashlib import sha256 as digest
    return digest(f"{kind} {len(content)}\0".encode() + content).hexdigest()


def _hash_file_or_link(path, digits):
    """Return git's name of the file *path*, without filters; "" if it can't be read."""
    try:
        content = os.fsencode(os.readlink(path)) if os.path.islink(path) else _read_file(path)
    except OSError:
        return ""
    return _hash_object("blob", content, digits)


def _compare_files(top, sha, trees, paths):
    """Return how the files *paths* differ from the commit *sha*: by path "untracked", "ignored" or "changed".

    top: of the work tree, without links; trees: the entries of folders, to which missing ones are added.
    """
    folders = sorted({os.path.dirname(path) for path in paths} - trees.keys())
    if folders:
        objects = _read_objects(top, [f"{sha}:{folder}".replace(os.sep, "/") for folder in folders])
        trees.update((folder, _parse_tree(raw, len(sha))) for folder, (_, raw) in zip(folders, objects))
    kinds: "Dict[str, str]" = {}  # what differs; usually nothing does
    filtered: "Dict[str, str]" = {}
    unknown: "Dict[str, List[str]]" = {}
    for path in paths:
        folder, name = os.path.split(path)
        expected, found = trees[folder].get(name), _hash_file_or_link(os.path.join(top, path), len(sha))
        if expected is None:
            inner = folder
            while inner and not _is_there(os.path.join(top, inner), ".git"):
                inner = os.path.dirname(inner)
            unknown.setdefault(inner, []).append(path)
        elif expected != found:
            kinds[path] = "changed"
            if found:  # git would stop at a file that is gone
                filtered[path] = expected
    if filtered:  # the bytes may differ only by a filter or line ends: ask git
        output = _git("hash-object --stdin-paths", top, os.fsencode("\n".join(filtered))).stdout
        for path, found in zip(filtered, output.decode().split()):
            if found == filtered[path]:
                del kinds[path]
    for inner, members in unknown.items():
        kinds.update(_compare_unknown(top, sha, inner, members))
    return kinds


def _compare_unknown(top, sha, inner, paths):
    """Return what _compare_files does, for files that the commit's trees lack, in the repository *inner*."""
    # The commit of a submodule, or nothing.
    commit = inner and _git(["rev-parse", "--verify", f"{sha}:{inner}"], top).stdout.decode().strip()
    if commit:
        own = [os.path.relpath(path, inner) for path in paths]
        different = _compare_files(os.path.join(top, inner), commit, {}, own)
        return {os.path.join(inner, path): kind for path, kind in different.items()}
    answer = _git("check-ignore -z --stdin", top, os.fsencode("\0".join(paths)))
    ignored = os.fsdecode(answer.stdout).split("\0")
    return {path: "ignored" if path in ignored else "untracked" for path in paths}


class _CodeProof:
    """Compares the project files whose code runs with the commit that is recorded.

    A project file is the source of a loaded module, or the main script, in the work tree, outside of the
    interpreter's own folders, site-packages and the experiments directory. Files are compared as they are at
    check(), not as they were when they were imported.
    """

    def __init__(self, work_tree, experiments_directory):
        self.inside = os.path.join(os.path.realpath(work_tree), "")
        others = (sys.prefix, sys.base_prefix, experiments_directory)
        folders = [os.path.join(os.path.realpath(other), "") for other in others]
        # An interpreter inside of the work tree, not a work tree inside of the interpreter's /usr.
        self.others = tuple(folder for folder in folders if folder.startswith(self.inside))
        self.seen, self.checked = set(), set()
        self.files = set()  # type: Any
        self.code: "Dict[str, Any]" = {"checked": 0, "untracked": [], "ignored": [], "changed": []}
        self.head: "Any" = None
        self._find_files()
        self.folders = sorted(set(map(os.path.dirname, self.files)))

    def _find_files(self):
        """Add the project files loaded since the last call, relative to the top of the work tree."""
        from functools import lru_cache

        realpath = lru_cache(None)(os.path.realpath)  # slow, but 2,000 modules are in a few hundred folders
        standard = os.path.join(os.path.dirname(os.__file__), "")
        for module in list(sys.modules.values()):
            file = getattr(module, "__dict__", {}).get("__file__")  # a lazy module would load at getattr
            if not isinstance(file, str) or file in self.seen:
                continue
            self.seen.add(file)
            # site-packages may be in there, with links into the project (an editable installation).
            if file.startswith(standard) and "-packages" not in file:
                continue
            if not os.path.isabs(file) and not os.path.exists(file.split(os.sep)[0]):
                # Up to Python 3.8 a script's is relative to a directory that it may have left. Or "<stdin>".
                file = os.path.join(*sys.path[:1], os.path.basename(file))
                if not os.path.exists(file):
                    continue
            folder, name = os.path.split(file)
            found = os.path.join(realpath(folder), name)
            for path in {found, os.path.realpath(found) if os.path.islink(found) else found}:
                is_own = path.startswith(self.inside) and not path.startswith(self.others)
                # A line break can't be in a list of paths for git.
                if is_own and not any(part in path for part in ("site-packages", "dist-packages", "\n")):
                    # A module in a zip file has a path below that file.
                    existing = next(filter(os.path.lexists, _list_parents(path)))
                    self.files.add((path if os.path.isdir(existing) else existing)[len(self.inside) :])

    def _add(self, kind, paths):
        self.code[kind] += [path for path in paths if path not in self.code[kind]]

    def keep(self, metadata):
        """Add what ran in the earlier attempts of *metadata*: a resume does not take it back."""
        for kind in ("untracked", "ignored", "changed"):
            self._add(kind, _get_part(_get_part(metadata, "code", dict), kind, list))

    def check(self):
        """Compare the files loaded since the last check; return metadata's "code". Warns of what differs."""
        self._find_files()
        files = sorted(self.files - self.checked)
        self.checked.update(files)
        different = _compare_files(self.inside[:-1], self.head.sha, self.head.trees, files)
        self.code["checked"] = len(self.checked)
        for path, kind in different.items():
            self._add(kind, [path])
        if {"untracked", "changed"} & set(different.values()):
            _warn(_describe_code({"githead-sha": self.head.sha, "code": self.code}))
        return self.code


def _describe_code(metadata):
    """Return one line on what ran and is not in the recorded commit; "" if all is, or if that is unknown."""
    code, snapshot = (_get_part(metadata, name, dict) for name in ("code", "snapshot"))
    kinds = "untracked", "changed"
    names = [f"{name!r} ({kind})" for kind in kinds for name in _get_part(code, kind, list)]
    names += [f"{name!r} (left out)" for name in _get_part(snapshot, "left-out", dict)]
    if not names:
        return ""
    return f"Not in commit {str(metadata.get('githead-sha'))[:7]}: {_join_some(names)}"


def _prepare_repository(work_tree, experiments_directory, make_directory, allow_dirty=False):
    """Check that *work_tree* is clean, make the experiments directory, have git ignore it; return HEAD.

    Its attributes: sha, message, work_tree (git's own idea of it), proof; and with *allow_dirty* snapshot and
    patch, None and b"" if nothing differs.
    """
    path = _find_ignorable_path(work_tree, experiments_directory)
    finished: "List[str]" = []
    proof = _CodeProof(work_tree, experiments_directory)
    while True:
        # Asked before HEAD is read, so that the commit is in HEAD if the line is in the file.
        is_ignored = path is None or _is_ignored(work_tree, path)
        head = _read_state(work_tree, is_ignored, allow_dirty, proof.folders)
        if head is None:
            return _prepare_repository(
                _ask_top(work_tree), experiments_directory, make_directory, allow_dirty
            )
        if _IGNORE_FILE in head.changed and finished.count(head.sha) < _FINISH_TRIES:
            # _has_moved comes last: where another start has committed since, the user has changed nothing.
            finished.append(head.sha)
            if _finish_commit(work_tree, head) or _has_moved(work_tree, head):
                continue
        if head.changed and not allow_dirty:
            raise DirtyRepoException(list(head.changed), head.sha, work_tree)
        make_directory()  # before the commit, and once more after it, which changes nothing
        if is_ignored:
            if head.changed:
                _take_snapshot(work_tree, head, experiments_directory)
            head.proof, proof.head = proof, head
            return head
        if _commit_line(work_tree, head, _escape_pattern(path), experiments_directory):
            path = None


# === Arguments ================================================================
# Take the experiment's arguments and defaults out of an argparse parser, which parses only once.

_GROUP = "meticulous"
_OPTIONS = {
    "project_directory": "a directory in the git work tree whose commit is recorded (default: this one)",
    "experiments_directory": "where the experiments' folders are, relative to the project directory",
    "experiment_id": "the experiment to start, or to resume if it is there (default: the next number)",
    "description": "what this run is for, in words",
    "norecord": "run without recording anything",
    "allow_dirty": "record uncommitted changes in a snapshot instead of refusing them",
}


def _add_argument_group(parser, defaults):
    """Add the options for Experiment's own arguments, with *defaults* in the order of the signature."""
    if "-" not in parser.prefix_chars:
        raise InvalidArgsException(
            "Experiment's options begin with '-', which is not in the parser's prefix_chars."
        )
    options = {name: "--" + name.replace("_", "-") for name in _OPTIONS}
    # A script for the package, which lacks this option, may have one of its own.
    if any(
        action.dest == "allow_dirty" or "--allow-dirty" in action.option_strings for action in parser._actions
    ):
        del options["allow_dirty"]
    taken = [option for option in options.values() if option in parser._option_string_actions]
    if taken and parser.conflict_handler != "resolve":
        raise InvalidArgsException(
            f"The parser has an option {taken[0]} of its own, which Experiment.add_argument_group adds too.\n"
            "Rename yours, or leave the group out and pass Experiment's arguments to from_parser as keywords."
        )
    group = parser.add_argument_group(_GROUP, "how this run is recorded")
    for (name, option), default in zip(options.items(), defaults):
        action = "store_true" if name in ("norecord", "allow_dirty") else "store"
        group.add_argument(option, action=action, default=default, help=_OPTIONS[name])


def _list_parsers(parser):
    """Return *parser* and the parsers of all sub-commands, nested ones too."""
    import argparse

    parsers = [parser]
    for part in parsers:  # which grows meanwhile
        for action in part._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += dict.fromkeys(action.choices.values())  # an alias is the same parser
    return parsers


def _parse_once(parser, words):
    """Return what *parser* returns, the parsers in use, and by action the values it converted and read.

    The result does not tell which sub-commands were chosen, which values are converted defaults, and what a
    sub-command's default has replaced, so three methods of each parser are wrapped meanwhile. (A user's
    parse_args would see a marker in the namespace.)
    """
    from functools import partial

    used, converted, given = {parser: True}, {}, {}

    def parse(part, original, *arguments):
        used[part] = True
        return original(*arguments)

    def convert(original, action, string):
        value = original(action, string)
        if isinstance(action.default, str) and action.default == string:
            converted[action] = value
        return value

    def read(original, action, strings):
        value = original(action, strings)
        given[action] = action.const if action.nargs == 0 else value
        return value

    parsers = _list_parsers(parser)
    try:
        for part in parsers:
            vars(part)["_parse_known_args"] = partial(parse, part, part._parse_known_args)
            vars(part)["_get_value"] = partial(convert, part._get_value)
            vars(part)["_get_values"] = partial(read, part._get_values)
        return parser.parse_args(words), list(used), converted, given
    finally:
        for part in parsers:
            for name in ("_parse_known_args", "_get_value", "_get_values"):
                vars(part).pop(name, None)


def _read_arguments(parser, words):
    """Parse *words*; return the experiment's arguments, their defaults, and Experiment's own arguments."""
    result, parsers, converted, given = _parse_once(parser, words)
    actions = [action for part in parsers for action in part._actions]
    ours = {a for a in actions if getattr(a.container, "title", None) == _GROUP and a.dest in _OPTIONS}
    dests = {action.dest for action in ours}
    for action in actions:
        if action.dest in dests and action not in ours:
            raise InvalidArgsException(
                f"An argument of the parser has dest={action.dest!r}, like one of Experiment's own options.\n"
                "Give yours another, or leave the group out and pass Experiment's arguments to from_parser."
            )
    defaults = _find_defaults(parsers, converted)
    values = _take_apart(result)
    if not isinstance(values, dict):
        if not hasattr(result, "__dict__"):
            raise InvalidArgsException(
                f"The parser's parse_args returned {result!r}, not a namespace or mapping."
            )
        # For example Tap's parse_args returns the parser itself, which holds more than arguments.
        names = {action.dest for action in actions}.union(defaults)
        values = {name: value for name, value in vars(result).items() if name in names}
    own = {name: values.pop(name) for name in dests if name in values}
    # argparse puts the defaults of a sub-command's options over what was given before it: --norecord train.
    own.update(
        (action.dest, value)
        for action, value in given.items()
        if action in ours and any(a.dest == action.dest and a.default == own.get(a.dest) for a in ours)
    )
    for name in dests:
        defaults.pop(name, None)
    return values, defaults, own


def _find_defaults(parsers, converted):
    """Return the defaults of all options of *parsers*, as argparse would return them.

    Read off the parser's actions: parsing again would run the user's types twice, and miss required options.
    """
    import argparse

    defaults = {}
    for parser in parsers:
        found: "Dict[str, Any]" = {}
        for action in parser._actions:
            # By identity: a default may be an array, which compares its elements.
            is_left_out = action.dest == argparse.SUPPRESS or action.default is argparse.SUPPRESS
            if action.option_strings and not is_left_out:
                # As in parsing, the first of several options with one destination gives the default.
                found.setdefault(action.dest, converted.get(action, _convert_default(action)))
        positionals = {action.dest for action in parser._actions if not action.option_strings}
        for name, value in parser._defaults.items():
            if name not in positionals:
                found.setdefault(name, value)
        defaults.update(found)
    return defaults


def _convert_default(action):
    """Return the default as argparse would: a string is converted if its type does nothing but convert."""
    kind, default = action.type, action.default
    path = getattr(sys.modules.get("pathlib"), "Path", str)
    if isinstance(default, str) and kind in (int, float, complex, bool, str, path):
        try:
            return kind(default)
        except ValueError:
            pass
    return default


# === Output ===================================================================
# Record what is written to sys.stdout and sys.stderr. The streams stay the same objects: their methods are
# patched, so whoever got hold of a stream before (logging handlers, `from sys import stderr`) is recorded.
#
#     print -> write -> the stream's own write, at once
#                    -> _Recorder.pending -> when a line ends -> _OutputFile of each experiment

# O_RDONLY is 0. Never through a link that somebody planted in a shared folder.
_WRITE_FLAGS = _READ_FLAGS | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)
_BAR_INTERVAL_S = 10.0  # how often a file shows a progress bar that is still running
_LONGEST_BAR = 1 << 16  # bytes; more is not a bar
_UNSAVED_LIMIT = 1 << 20  # bytes kept while they can't be written; the rest is replaced by this:
_GAP = b"\n[meticulous: output is missing here]\n"

# Token bucket: each line costs 0.1 ms, up to 40 ms can be saved; over budget, write every 10 ms. So a line at
# ordinary pace, a traceback or the report of an epoch is in the file when print returns.
_LINE_S = 0.0001
_SAVED_S = 0.04
_FLOOD_INTERVAL_S = 0.01
_WRITES_PENDING = 1000  # so many pending writes are flushed even if no line ended,
_LONGEST_PENDING = 4096  # and so is a single one of so many characters

# What a carriage return overwrote in a line. "\r\n" ends a line, and after "50%\r" the screen shows 50%.
_OVERWRITTEN = rb"(?m)^.*\r(?=[^\r\n])"
# How nested bars (tqdm, rich) move: up some lines, to the next one, and erase one (ECMA-48 CUU and EL).
_UP = rb"\x1b\[([0-9]*)A"
_MOVES = rb"(\n|\x1b\[[0-9]*A|\x1b\[2K)"


def _fold(data):
    """Return the lines that a screen shows after *data*, and the number of the one with the cursor."""
    rows, row = [b""], 0
    for part in re.split(_MOVES, data):
        up = re.fullmatch(_UP, part)
        if part == b"\n":
            row += 1
            rows[row:] = rows[row:] or [b""]
        elif part == b"\x1b[2K":
            rows[row] = b"\r"
        elif up:
            row = max(0, row - int(up.group(1) or 1))
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
        self.offset = -1  # of the descriptor, after the last write
        self.holders = 0  # how many are in the middle of writing to it
        self.is_closed = False
        self.bar = b""  # the last lines while they are a progress bar, whose next state may overwrite them
        self.bar_since = 0.0
        self.in_line = False  # did what was added end in the middle of a line?
        self.unsaved = bytearray()
        if os.fstat(self.descriptor).st_size and _read_file(path, 1) != b"\n":
            self.unsaved += b"\n"  # an earlier attempt was killed in the middle of a line

    def add(self, data, is_last=False):
        """Take bytes to be saved, but hold back a progress bar: until its end, or for _BAR_INTERVAL_S."""
        # The bar changes only in the last lines, so that a signal handler in the middle may add as well.
        lines, bar = self._split_bar(data, is_last)
        if b"\r" in lines:
            # What the file already has of this line can't be taken back, so "\r" overwrites it there as well.
            return_first = b"\r" if self.in_line and re.match(_OVERWRITTEN, lines) else b""
            lines = return_first + re.sub(_OVERWRITTEN, b"", lines)
        if self.is_closed:
            return  # a handler has finished the experiment, and saved what it found pending
        self.unsaved += lines
        self.bar = bar
        if lines:
            self.in_line = not lines.endswith(b"\n")

    def _split_bar(self, data, is_last):
        """Return the lines that are complete, and the progress bar after them."""
        data = self.bar + data
        has_moved = b"\x1b[" in data and re.search(_UP, data)
        if not has_moved and b"\r" not in data:
            return data, b""
        now = time.monotonic()
        if not self.bar:
            self.bar_since = now
        rows, row = _fold(data)
        is_due = is_last or now - self.bar_since >= _BAR_INTERVAL_S or len(self.bar) > _LONGEST_BAR
        if has_moved and not is_due:
            return b"", b"\n".join(rows) + b"\x1b[%dA" % (len(rows) - 1 - row)  # to the row of the cursor
        if has_moved:
            rows = [line.rstrip(b"\r") for line in rows]
        if is_due or b"\r" not in rows[-1]:
            return b"\n".join(rows), b""
        return b"\n".join(rows[:-1] + [b""]), rows[-1]

    def release(self):
        """Close the file if the experiment has finished, and no write to it is under way.

        Not sooner, in a signal handler: what is being written would land in the next file that gets the
        descriptor's number.
        """
        self.holders -= 1
        if self.is_closed and not self.holders:
            try:
                if _identify(self.descriptor)[:2] == self.identity[:2]:
                    os.close(self.descriptor)
            except OSError as error:  # a network file system may report only now that a write has failed
                _report_fault(self.faults, self.path, error)

    def save(self):
        """Write what was added. What can't be written now is kept for a later call, up to a limit."""
        self.holders += 1
        try:
            while self.unsaved:
                self._open_again()
                self._write()
        except OSError as error:
            if len(self.unsaved) > _UNSAVED_LIMIT:
                self.unsaved[_UNSAVED_LIMIT:] = _GAP
            _report_fault(self.faults, self.path, error)
        finally:
            self.release()

    def append_line(self, data):
        """Write a complete line at once, by one write(2), if nothing waits to be saved before it."""
        written = 0
        self.holders += 1
        try:
            # A file that got our descriptor's number since has another offset. fstat(2) costs far more.
            if not self.unsaved and os.lseek(self.descriptor, 0, os.SEEK_CUR) == self.offset:
                written = os.write(self.descriptor, data)
                self.offset += written
        except OSError as error:
            if error.errno is None:
                raise  # see _report_fault; else save() tries once more, and reports it
        finally:
            self.release()
        if written < len(data):
            self.unsaved += data[written:]
            self.save()

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
        self.offset = os.lseek(self.descriptor, 0, os.SEEK_CUR)

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
        self.add(b"", is_last=True)
        self.is_closed = True
        self.save()


def _report_fault(faults, path, error):
    """Warn that *path* can't be written, unless *faults*, the experiment's list, has an error already."""
    if error.errno is None:
        raise error  # not the system's: a signal handler raised TimeoutError, which is the program's own
    if not faults:
        faults.append(error)
        _warn(f"output is no longer recorded in {path!r}: {_explain(error)}")


def _open_to_append(path, more_flags=0):
    """Open a file for appending; the descriptor is never 0, 1 or 2, which a program may find closed."""
    descriptor = os.open(path, _WRITE_FLAGS | os.O_APPEND | more_flags, 0o666)
    if descriptor > 2:
        return descriptor
    try:
        return _open_to_append(path)
    finally:
        os.close(descriptor)


def _identify(file):
    """Return device, inode, and whether a name is left, of a path's or descriptor's file; () if closed."""
    try:
        status = os.stat(file)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        return ()
    return status.st_dev, status.st_ino, status.st_nlink > 0


class _Recorder:
    """Records what is written to one stream, in the files of the open experiments, by patching the stream."""

    def __init__(self, stream):
        self.stream: "Any" = stream
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
        """Restore what was there. Another tool's patch stays, and ours below it then only passes on."""
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
                    self.flush_after(str(text))
            return count

        # Bound, so that as an attribute of a class it is not bound again. _find_recorder reads its __self__.
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
            if self.files and getattr(write, "__self__", self) is self.stream:
                self.patch(self.stream, "write", self._wrap_write(write))
            self.flush()
            return flush_below and flush_below()

        return flush.__get__(self)

    def _is_passing_on(self, frame):
        """Return whether *frame* is below our own write or flush: TextIOWrapper passes text on to .buffer."""
        while frame is not None:  # in place: a generator here makes a print a third slower
            if frame.f_code.co_name in ("write", "flush") and frame.f_locals.get("self") is self:
                return True
            frame = frame.f_back
        return False

    def flush_after(self, text):
        """Flush if *text* ended a line or moved a progress bar, or much came without."""
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
        is_first = not self.is_flushing
        try:
            self.is_flushing = True
            _session.hold()
            while is_first and self.pending:
                self._save_pending()
        finally:
            self.is_flushing = not is_first
            _session.release()
            lock.release()

    def _save_pending(self):
        parts, files = self.pending[:], self.files[:]
        data = _encode_parts(parts)
        for file in files:
            file.add(data)
        # Not sooner: a signal handler may end the process before the files have it, or raise.
        del self.pending[: len(parts)]
        for file in files:
            file.save()
        self._set_pace(max(1, min(len(parts), data.count(b"\n"))))

    def remove(self, file):
        """Stop recording in *file*, and give the stream back if it was the last."""
        self.flush()
        if self.is_flushing:  # what a signal handler has interrupted, and may not return to
            file.add(_encode_parts(self.pending))
        self.files.remove(file)
        if not self.files:
            self.remove_patches()

    def _set_pace(self, lines):
        """Take *lines* tokens out of the bucket, and determine when the next line is to be written."""
        now = time.monotonic()
        # At most half of the bucket, so that a traceback soon after a flood is written at once.
        used = min(lines * _LINE_S, _SAVED_S / 2)
        self.used_until = min(max(self.used_until, now - _SAVED_S) + used, now + _LINE_S)
        self.due = now + _FLOOD_INTERVAL_S if self.used_until > now else 0.0


def _encode_parts(parts):
    try:
        return "".join(parts).encode("utf-8", "backslashreplace")
    except TypeError:  # there are bytes among them
        return b"".join(
            part if isinstance(part, bytes) else str(part).encode("utf-8", "backslashreplace")
            for part in parts
        )


class _StandIn:
    """Replaces a stream that refuses attributes: every attribute but the patched methods comes from it."""

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
            self.open(os.path.join(folder, "stdout"))
            self.open(os.path.join(folder, "stderr"))
        except OSError:
            self.close()
            raise

    def open(self, path):
        """Open one more file that is appended to until close(), and return it."""
        file = self._files[os.path.basename(path)] = _OutputFile(path, self.faults)
        return file

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

    def record(self, name, data, is_last=False):
        """Record *data*, bytes that a child wrote to its "stdout" or "stderr"."""
        file = self._files[name]
        file.add(data, is_last)
        file.save()

    def flush(self, is_waiting=True):
        for recorder in self._recorders.values():
            recorder.flush(is_waiting)

    def settle(self):
        """Save everything, and go on recording what atexit handlers print that were registered before us."""
        with _session.lock:
            self.flush()
            for name in self._files:
                self.record(name, b"", is_last=True)

    def forget(self):
        """In a forked child, drop what the parent writes."""
        for recorder in self._recorders.values():
            recorder.is_flushing = False
            del recorder.pending[:]
        for file in self._files.values():
            file.bar, file.unsaved, file.holders = b"", bytearray(), 0

    def close(self):
        """End this recording, and give the streams back if it was the last. Again: nothing."""
        with _session.lock:
            files, self._files = self._files, {}
            for name, file in files.items():
                recorder = self._recorders.get(name)
                if recorder:
                    recorder.remove(file)
                file.close()


# === Exit =====================================================================
# Determine how the program ended, for the experiments that are still open.
#
# the end of the script         its frame stopped at a RETURN instruction
# an exception                  sys.last_traceback goes through that frame
# sys.exit(), exit(), quit()    Python asks a SystemExit for its code when it ends the process

# Opcodes; Python 3.12 and 3.13 have another for constants. The module opcode can't be imported when a program
# ends without a file descriptor left.
_RETURNS = {function.__code__.co_code[-2] for function in (lambda value: value, lambda: None)}
_TOOL = 4  # of sys.monitoring; 0, 1, 2 and 5 are for debuggers, coverage, profilers and optimizers


class _ExitCode:
    """What is known of the exit code; all copies of this file in a process share one.

    open_copies: how many of them have open experiments. frame: the one whose end is the program's.
    asked: the STATUS for the code, once Python has asked a SystemExit for it.
    made: the instructions of *frame* that may have raised the latest SystemExit, and its STATUS.
    last_cell: the result of IPython's last cell.
    """

    def __init__(self):
        self.open_copies = 0
        self.frame = self.asked = self.made = self.last_cell = None
        self.is_launched = self.is_shell = False


_exit_code: "Any" = getattr(sys.exit, "exit_code", None) or _ExitCode()


class _Exit(SystemExit):
    """A SystemExit that notices when Python itself asks for its code, because it ends the process."""

    def __getattribute__(self, name):
        value = super().__getattribute__(name)
        if name == "code" and sys._getframe().f_back is None:
            _exit_code.asked = _format_exit(value, self.__context__)
        return value

    def __reduce__(self):
        return SystemExit, self.args


_Exit.__name__ = _Exit.__qualname__ = "SystemExit"
_Exit.__module__ = "builtins"

_EXITS: "List[Any]" = [(sys, "exit")]
if "_sitebuiltins" in sys.modules:
    _EXITS.append((sys.modules["_sitebuiltins"].Quitter, "__call__"))  # what exit() and quit() call


def _wrap_exit(owner, name):
    """Make *owner*.*name* raise an _Exit in place of a SystemExit while an experiment is open."""
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
            if _exit_code.is_launched or _exit_code.is_shell:
                _exit_code.made = (_exit_code.frame.f_lasti,), _format_exit(error.code, error.__context__)
        raise exit  # not above, where the other one would be its __context__

    vars(exit_noticed)["exit_code"] = _exit_code
    setattr(owner, name, exit_noticed)


def _is_multiprocessing_child(mark="_parent_pid"):
    """Return whether this is a child of multiprocessing; with "_inheriting", one that imports the script."""
    process = sys.modules.get("multiprocessing.process")
    return bool(process and getattr(process.current_process(), mark, None))


def _walk_frames(frame):
    """Yield *frame* and those that called it, the outermost last."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_subinterpreter():
    from importlib import import_module

    try:
        interpreters = import_module("_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters")
    except ImportError:  # before Python 3.8
        return False
    return interpreters.get_current() != interpreters.get_main()


def _is_main(frame):
    return frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__main__"


def _list_main_frames():
    """Return the frames of the main thread, the outermost last, as far as they can be seen from here."""
    import threading

    frame: "Any" = sys._getframe()
    greenlet = sys.modules.get("greenlet")
    current = greenlet and greenlet.getcurrent()
    while current and current.parent:  # the frames of a greenlet end where it began
        current = current.parent
        frame = current.gr_frame
    if not (_in_main_thread() or any(map(_is_main, _walk_frames(frame)))):
        # In a subinterpreter sys._current_frames() aborts Python 3.12 and 3.13.
        main = threading.main_thread().ident or 0
        frame = None if _is_subinterpreter() else sys._current_frames().get(main)
    return list(_walk_frames(frame))


def _is_launcher(frame):
    """Return whether the code of *frame* is part of Python or of an installed package, and not the user's."""
    path = frame.f_code.co_filename
    ours = os.path.dirname(os.__file__), os.path.dirname(sys.executable or os.__file__), "<frozen", __file__
    return path.startswith(ours) or "-packages" in path


def _find_program():
    """Note the frame whose end is the program's, if there is one, and whether a launcher or shell runs it.

    A launcher (coverage, pdb, IPython) has a main module of its own, and runs the script inside of it.
    """
    frames = _list_main_frames()
    mains = [frame for frame in frames if _is_main(frame)]
    scripts = [frame for frame in mains if frame.f_globals.get("__file__") == frame.f_code.co_filename]
    frame: "Any" = next(iter(scripts or mains[-1:] or frames[-1:]), None)
    if _is_multiprocessing_child():
        frame = next((frame for frame in frames if frame.f_code.co_name == "_bootstrap"), frame)
    elif frame is not None and _is_launcher(frame):
        # The main module is a test runner's or a notebook's: the user's code begins where it calls that.
        users = [frame for frame in frames if not _is_launcher(frame)]
        _exit_code.is_shell = bool(users)
        frame = (users or [frame])[-1]
    _exit_code.frame = frame
    _exit_code.is_launched = frame in scripts and len(mains) > 1


def _notice_calls(code, undo):
    """From Python 3.12 on, notice the exit codes that *code* itself makes: `raise SystemExit(main())`."""
    monitoring = getattr(sys, "monitoring", None)
    if monitoring is None or monitoring.get_tool(_TOOL) is not None:
        return
    # What `from sys import exit` gave to a script that imported this file later.
    plain_exit = getattr(sys.exit, "__wrapped__", None)

    def notice_call(code, offset, function, argument):
        if function is not SystemExit and function is not plain_exit:
            return monitoring.DISABLE  # at this place; so a loop costs nothing
        # The frame stops at the call (sys.exit), or 8 bytes on, after the call and its cache (raise).
        # SystemExit(0, 1) has a tuple as its code.
        if code.co_code[offset + 1] < 2:
            argument = None if argument is monitoring.MISSING else argument
            _exit_code.made = (offset, offset + 8), _format_exit(argument, sys.exc_info()[1])

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


def _format_exit(code, handled=None):
    """Return the STATUS for sys.exit(*code*), which may have been called while an exception was *handled*."""
    if code is None or (isinstance(code, int) and code == 0):
        return "SUCCESS"
    call = f"sys.exit({' '.join(repr(code).splitlines())})"
    if handled is None or isinstance(handled, SystemExit):
        return f"ERROR\n{call}"
    cause = _format_failure(handled)
    return f"{cause}\n{call} after {cause.rpartition(chr(10))[2]}"


def _format_kill(number):
    """Return the STATUS for a process that a signal ended."""
    import signal

    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"  # a real-time signal
    return f"ERROR\nkilled by {name} at {_local_time()}"


def _format_exception(error):
    """Return the traceback as Python prints it."""
    try:
        import traceback

        return "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except Exception:
        # A SyntaxError whose parts are not strings; or no descriptor is left to import traceback.
        return f"{type(error).__name__}: {_describe(error)}\n"


def _format_failure(error):
    """Return the STATUS for an exception: the traceback, and type and message as the last line."""
    if isinstance(error, SystemExit):
        return _format_exit(error.code, error.__context__)
    text = _format_exception(error).rstrip("\n")
    name, module = type(error).__qualname__, type(error).__module__
    if module not in ("builtins", "__main__"):
        name = f"{module}.{name}"
    if not text.rpartition("\n")[2].startswith(name):
        # The last line was of a longer message, a note, or the frame around an exception group.
        text += "\n" + " ".join(f"{name}: {_describe(error)}".splitlines())
    return f"ERROR\n{text}"


def _watch_cells(undo):
    """Note the result of each cell of IPython, whose own last_execution_result is gone when it ends."""
    get_shell = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = get_shell and get_shell()
    if shell and _exit_code.is_shell:

        def note(result):
            _exit_code.last_cell = result

        shell.events.register("post_run_cell", note)
        undo.callback(_try, shell.events.unregister, "post_run_cell", note)


def _describe_program_ending():
    """Return the STATUS for the end of the program."""
    code, frame = _exit_code, _exit_code.frame
    if code.is_launched and _has_returned(frame):
        return "SUCCESS"  # whatever the launcher does next
    if code.asked in (None, "SUCCESS") and code.last_cell:
        error = code.last_cell.error_in_exec or code.last_cell.error_before_exec
        return _format_failure(error) if error else "SUCCESS"
    if code.asked:
        return code.asked
    if frame is None:
        return "ERROR\nPython ran inside another program, which does not show how it ended: call finish()."
    # Python sets sys.last_traceback before it calls the excepthook. pytest and IPython set it too, but to a
    # traceback that begins where they caught the exception, deeper than the main module.
    tb: "Any" = getattr(sys, "last_traceback", None)
    # A program that embeds Python may run code twice, and an interactive shell goes on after a mistake.
    is_later_run = tb is not None and tb.tb_frame.f_globals is frame.f_globals and not hasattr(sys, "ps1")
    if _goes_through(tb, frame) or (is_later_run and tb.tb_frame.f_back is None and not code.is_shell):
        return _format_failure(sys.last_value)
    if _has_returned(frame):
        return "SUCCESS"
    if code.made and frame.f_lasti in code.made[0]:
        return code.made[1]
    place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
    if code.is_launched or code.is_shell:
        return f"ERROR\nAn exception left {place}; the program that runs it caught it, and shows what it was."
    return f"ERROR\nA SystemExit left {place}, and its code could not be seen: write sys.exit(code) instead."


def _describe_child_ending():
    """Return the STATUS for the end of a child of multiprocessing."""
    error = sys.exc_info()[1]  # before Python 3.13 this is called in a `finally`
    if error is not None:
        return _format_failure(error)
    code = _exit_code.frame.f_locals.get("exitcode", 0)
    if code == 1:
        return "ERROR\nThe child process ended with exit code 1; what it showed is in stderr."
    return _format_exit(code)


def _describe_ending():
    """Return the STATUS for the end of the process."""
    if _is_multiprocessing_child():
        return _describe_child_ending()
    status = _describe_program_ending()
    if status != "SUCCESS":
        return status
    # Python flushes stdout and stderr once more after the hooks, and exits with 120 if that fails.
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            if not getattr(stream, "closed", stream is None):
                stream.flush()
        except KeyboardInterrupt:
            pass  # the user did not want to wait; the flush itself may still succeed
        except Exception as error:
            return f"ERROR\nexit code 120: {name} can't be flushed: {error}"
    return status


# At import, because `sys.exit(main())` looks sys.exit up before main() makes an experiment.
_wrap_exit(sys, "exit")


# === Hooks ====================================================================
# Notice the end of the process, and record it.
#
# exits and exceptions          an atexit handler: the threads that Python waits for have ended then, and the
#                               excepthook, which stays the user's, has shown its traceback
# SIGTERM, SIGHUP               a handler, where the action was the default one
# SIGKILL, os._exit(), exec     nothing of ours runs; the reader finds that the process is gone


def _end_all(signum=None):
    """End all open experiments, the latest first, because the program ends or the signal *signum* came."""
    is_interrupt = isinstance(getattr(sys, "last_value", None), KeyboardInterrupt) and _goes_through(
        sys.last_traceback, _exit_code.frame
    )
    try:
        status = _format_kill(signum) if signum else _describe_ending()
    except (Exception, KeyboardInterrupt) as error:
        status = f"ERROR\nHow the program ended could not be determined: {error!r}"
    _session.is_exiting = True
    with _Hold():
        for record in reversed(_session.experiments[:]):
            record.end(status, is_exit=True)
    if is_interrupt:
        # Any exec in an atexit handler clears the mark by which Python exits with 130; this sets it again.
        try:
            exec("raise KeyboardInterrupt")
        except KeyboardInterrupt:
            pass


def _die_of(signum, frame):
    """Record that a signal ends the process, then let it end by that signal."""
    import signal

    # A handler that was set after ours may call ours as the one before it. Without us it would have found the
    # default action, and called nothing.
    if signal.getsignal(signum) is not _die_of or _session.postpone(signum):
        return
    _end_all(signum)
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


def _set_signals(undo):
    """Handle SIGTERM and SIGHUP where their action is the default one, and only in the main thread."""
    import signal

    # signal.getsignal() does not know of handlers in C, for example of a user's faulthandler.register().
    caught = int(_read_text("/proc/self/status").partition("SigCgt:")[2][:17] or "0", 16)
    for signum in (signal.SIGTERM, signal.SIGHUP):
        handler = signal.getsignal(signum)
        # Ours is left from before, if the last finish() was in a thread.
        is_default = handler is _die_of or (handler is signal.SIG_DFL and not caught >> (signum - 1) & 1)
        # It fails outside of the main thread.
        if is_default and not _try(signal.signal, signum, _die_of):
            undo.callback(_reset_signal, signum)


def _reset_signal(signum):
    import signal

    # Ours may stay: with nothing to record it does what the default action does. It has to in a thread, and
    # where faulthandler may have put the user's handler above it, of which signal.getsignal() does not know.
    if signal.getsignal(signum) is _die_of and "faulthandler" not in sys.modules:
        _try(signal.signal, signum, signal.SIG_DFL)


def _set_hooks():
    """Install what notices the end of the process; return the ExitStack that removes it."""
    import atexit
    from contextlib import ExitStack

    hooks = ExitStack()
    _exit_code.open_copies += 1
    _find_program()
    for owner, name in _EXITS:
        _wrap_exit(owner, name)
    hooks.callback(_release_exit_code)
    if _is_multiprocessing_child():
        from multiprocessing.util import Finalize

        # Before Python 3.13 such a child runs no atexit handlers.
        hooks.callback(Finalize(None, _end_all, exitpriority=0).cancel)
    elif _exit_code.frame is not None:
        _notice_calls(_exit_code.frame.f_code, hooks)
        _watch_cells(hooks)
    atexit.register(_end_all)
    hooks.callback(atexit.unregister, _end_all)
    # The first process of a container ignores a signal whose action is the default one.
    if not _WINDOWS and os.getpid() != 1:
        _set_signals(hooks)
    return hooks


def _release_exit_code():
    _exit_code.open_copies -= 1
    if not _exit_code.open_copies:
        _exit_code.__init__()
        for owner, name in _EXITS:
            wrapper = getattr(owner, name)
            if hasattr(wrapper, "exit_code"):
                setattr(owner, name, wrapper.__wrapped__)


def _register_at_fork(before, in_parent, in_child):
    """Register three functions to be called whenever this process forks."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)
    else:  # Python 3.6
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
    """Make every forked child forget its parent's experiments before anything else runs there.

    No lock is held meanwhile: other libraries lock their own in hooks like these, in another order.
    """
    import signal
    from threading import get_ident

    signals, blocked = {signal.SIGTERM, signal.SIGHUP}, {}

    def prepare():
        for record in _session.experiments[:]:
            record.capture.flush(is_waiting=False)
        # Python drops a signal that our handler catches in a child before that has come to forget().
        blocked[get_ident()] = signals - signal.pthread_sigmask(signal.SIG_BLOCK, signals)

    def unblock():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked.pop(get_ident(), ()))

    def forget():
        global _session
        parent, _session = _session, _Session()
        for record in parent.experiments:
            record.capture.forget()
        if parent.hooks:
            parent.hooks.close()
        unblock()

    _register_at_fork(prepare, unblock, forget)


_watches_forks = False


def _watch(record):
    """Register *record*: its end(status, is_exit=True) is called when this process ends, until _unwatch()."""
    global _watches_forks
    with _session.lock:
        if not (_WINDOWS or _watches_forks):
            _watch_forks()
            _watches_forks = True
        if not _session.hooks:
            _session.hooks = _set_hooks()
        _session.experiments.append(record)


def _unwatch(record):
    """Forget *record*; after the last one remove every hook that is still ours."""
    with _session.lock:
        _try(_session.experiments.remove, record)
        if not _session.experiments and _session.hooks:
            hooks, _session.hooks = _session.hooks, None
            hooks.close()


# === Record ===================================================================
# Write the folder of one attempt, from its start to its end.

_FOLDER_VARIABLE = "METICULOUS_EXPERIMENT_FOLDER"
_REPEATS_VARIABLE = "METICULOUS_REPEATS"  # the ID of the experiment that `repeat` runs again
_NOT_FINITE = r'("(?:[^"\\]|\\.)*")|(NaN)|(-?)Infinity'
_SMALLEST_BLOCK = 1024  # bytes; a file that is not empty has room for so many


def _find_differences(recorded, current):
    """Describe in words how two dicts of plain JSON differ."""
    differences = []
    missing = object()
    for name in sorted(recorded.keys() & current.keys()) + sorted(recorded.keys() ^ current.keys()):
        values = [args.get(name, missing) for args in (recorded, current)]
        if _differ(*values):
            was, now = ("not there" if value is missing else repr(value) for value in values)
            differences.append(f"{name!r} was {was}, now {now}")
    return differences


def _check_resumable(folder, args, head):
    """Raise what forbids resuming the experiment in *folder* with *args* on the commit *head*."""
    names = os.listdir(folder)  # which makes a network file system forget that it was not there
    if "args.json" not in names:
        raise FolderException(None, "has files but no args.json: take another id, or move it away.", folder)
    differences = _find_differences(_load_mapping(os.path.join(folder, "args.json")), args)
    if differences:
        raise MismatchedArgsException(folder, differences)
    recorded = str(_load_mapping(os.path.join(folder, "metadata.json")).get("githead-sha"))
    if recorded != head.sha and not _differs_only_by_our_commits(head.work_tree, recorded, head):
        raise MismatchedCommitException(folder, recorded, head.sha)


def _summarize_status(text):
    """Return a STATUS on one line: its first word, and the reason."""
    first, _, rest = text.partition("\n")
    reason = rest.strip().rpartition("\n")[2]
    return f"{first}: {reason}" if reason else first


def _close_last_attempt(folder, metadata, last_sign):
    """Return the attempts that a folder's *metadata* lists, the last one with how it ended.

    A process that was killed could not record when: *last_sign*, its last sign of life, is the end then.
    """
    only = {key: metadata[key] for key in ("start-time", "end-time", "command") if key in metadata}
    attempts = _get_attempts(metadata) or [only]
    last = attempts[-1]
    if "ended" not in last:
        status = (_read_if_there(os.path.join(folder, "STATUS")) or b"UNKNOWN").decode("utf-8", "replace")
        is_dead = status == "RUNNING"
        last["ended"] = "DEAD" if is_dead else _summarize_status(status)
        if is_dead and last_sign is not None:
            last["end-time"] = _local_time(last_sign)
            if "start-epoch" in last:
                last["duration-seconds"] = round(last_sign - last["start-epoch"], 6)
    return attempts


def _explain_refused_write(error, directory):
    """Return the FolderException for a system error during a start."""
    # os.stat() names a descriptor by its number.
    path = os.fsdecode(error.filename if isinstance(error.filename, (str, bytes)) else directory)
    if os.path.basename(path).startswith("."):  # a hidden file of ours, which says nothing to the user
        path = os.path.dirname(path)
    reason = f"can't be used: {_explain(error)}."
    if isinstance(error, PermissionError):
        reason += (
            "\nIf a group shares it, its owner may run `chmod g+ws` on it, and each member `umask 002`; "
            "or name another experiments_directory."
        )
    return FolderException(error.errno, reason, path)


def _replace_not_finite(match):
    """Return JSON for a match: null for NaN, and for infinity 1e999, which is read as such."""
    string, is_nan, sign = match.groups()
    return string or ("null" if is_nan else f"{sign}1e999")


class _Record:
    """The folder of one attempt, from its start to its end.

    attempt: what metadata.json says of it; number: which one it is; metadata: all of metadata.json.
    capture: the recording of its output. has_ended: whether end() was called in this process.
    """

    has_ended = False

    def __init__(self, head, description):
        """*head* is what _prepare_repository() returned; the times begin here."""
        self._head = head
        self._metrics: "Any" = None
        self._step: float = -1
        self._summaries = []  # what the calls that are under way are to add
        command = _to_json(getattr(sys, "argv", []))
        self.attempt = {"command": command, **_describe_process(), **_read_oom_counter()}
        self._begin()
        self.number = 1
        self.metadata = {
            "githead-sha": head.sha,
            "githead-message": head.message,
            "code": head.proof.check(),
            **({"snapshot": head.snapshot} if head.snapshot else {}),
            "description": description,
            "start-time": self.attempt["start-time"],
            "command": command,
            **_describe_command(),
            "place": _describe_place(),
            "attempts": [self.attempt],
        }
        if _REPEATS_VARIABLE in os.environ:
            self.metadata["repeats"] = os.environ[_REPEATS_VARIABLE]

    def _begin(self):
        epoch = time.time()
        self._clock, self._cpu_s = time.monotonic(), _measure_usage()[0]
        self.attempt.update({"start-time": _local_time(epoch), "start-epoch": epoch})

    def create(self, directory, name, args, default_args, undo):
        """Make the folder *name*, or the next numbered one; return False if *name* is there already.

        It is built under a hidden name. The rename is the claim (rename(2), also on NFS): it replaces an
        empty directory, and of several processes one succeeds.
        """
        hidden = _build_path(directory)
        os.mkdir(hidden)
        undo.callback(_remove_folder, hidden)
        files = {
            "args.json": _encode_json(args),
            "default_args.json": _encode_json(default_args),
            "metadata.json": _encode_json(self.metadata),
            "STATUS": b"RUNNING",
        }
        if self._head.patch:
            files["snapshot.patch"] = self._head.patch
        for file, content in files.items():
            _create_file(os.path.join(hidden, file), content)
        self.capture = _Capture(hidden)
        undo.callback(self.capture.close)
        names = [name] if name else map(str, _claim_ids(directory, undo, hidden))
        if name and re.fullmatch("[0-9]+", name) and _claim_id(directory, int(name)) is not None:
            undo.callback(_try, os.unlink, _claim_path(directory, int(name)))
        # A number may be taken by a folder that somebody made without a claim.
        if not any(self._rename(hidden, os.path.join(directory, each)) for each in names):
            self.capture.close()
            _remove_folder(hidden)
            return False
        undo.callback(_remove_folder, self.folder)
        return True

    def _rename(self, hidden, folder):
        self.folder = folder
        if _WINDOWS:  # a folder with open files can't be renamed there, and an empty one is not replaced
            self.capture.close()
            _try(os.rmdir, folder)
        try:
            os.rename(hidden, folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            return False
        if _WINDOWS:
            self.capture = _Capture(folder)
        return True

    def resume(self, args, undo):
        """Begin the next attempt in the folder that is there, if it may be resumed with *args*."""
        _check_resumable(self.folder, args, self._head)
        last_sign = _last_sign_of_life(self.folder)  # before the claim, because claiming writes to the folder
        self.number = _claim_attempt(self.folder, self.attempt)
        self._begin()  # the claim may have waited for the end of another attempt
        undo.callback(_remove_folder, _attempt_path(self.folder, self.number))
        old = _load_mapping(self.path("metadata.json"))
        attempts = _close_last_attempt(self.folder, old, last_sign)
        for key in ("end-time", "usage"):
            old.pop(key, None)
        self._head.proof.keep(old)
        if attempts[-1].get("host", self.attempt["host"]) != self.attempt["host"]:
            self._replace_streams()
        self.metadata = {
            **old,
            **self.metadata,
            "description": self.metadata["description"] or old.get("description", ""),
            "start-time": old.get("start-time", self.attempt["start-time"]),
            "attempts": attempts + [self.attempt],
        }
        self.capture = _Capture(self.folder)
        undo.callback(self.capture.close)
        for name in ("STATUS", "metadata.json"):
            content = _read_if_there(self.path(name))
            if content is not None:
                undo.callback(_try, self._write, name, content)
        # STATUS first: killed between the two, the new attempt must not look finished.
        self._write("STATUS", b"RUNNING")
        self._write("metadata.json", _encode_json(self.metadata))

    def _replace_streams(self):
        """Copy the output: a process of a node that was called dead may still write into the old files."""
        import shutil

        for name in ("stdout", "stderr", "metrics.jsonl"):
            path = self.path(name)
            copy = _build_path(self.folder)
            if os.path.isfile(path):
                shutil.copyfile(path, copy, follow_symlinks=False)  # a link is refused when it is opened
                os.replace(copy, path)

    def path(self, name):
        return os.path.join(self.folder, name)

    def _write(self, name, content):
        _write_file(self.path(name), content)

    def _load_own_metadata(self):
        """Return what metadata.json holds now. Raises OSError if the folder holds another record now."""
        found = _load_mapping(self.path("metadata.json"))
        own = _get_attempts(found)[self.number - 1 : self.number]
        if not own or not _agree(own[0], self.attempt, "start-epoch", "host", "pid"):
            raise OSError(errno.ESTALE, "it was deleted or replaced", self.folder)
        return found

    def is_open(self):
        """Return whether this process records the attempt: a forked child, which may outlive it, does not."""
        return not self.has_ended and os.getpid() == self.attempt["pid"]

    def add_summary(self, path, given):
        """Add the dict *given* to the file *path*; return False if that belongs to a later attempt."""
        with _session.summary_lock:
            parts = self._summaries
            parts.append(given)
            try:
                for _ in parts:  # what a signal handler adds in the middle of this is written here, too
                    if len(self._load_own_metadata()["attempts"]) > self.number:
                        return False
                    summary = _load_mapping(path)
                    for part in parts:
                        summary.update(part)
                    _write_file(path, _encode_json(summary))
            finally:
                if parts[0] is given:
                    del parts[:]
        return True

    def log(self, values, step, more):
        """Append a line to metrics.jsonl, by one write(2)."""
        if self._metrics is None:
            path = self.path("metrics.jsonl")
            try:
                self._open_metrics(path)
            except OSError as error:
                return _report_fault(self.capture.faults, path, error)
        try:
            fields = {"step": step, "time": time.time(), **({} if values is None else values), **more}
            if step is None:
                step = fields["step"]  # one of the names that were logged
            if type(step) is not int:
                step = self._step + 1 if step is None else _to_json(step)
                if type(step) not in (int, float) or step != step:
                    raise ValueError(f"step is {step!r}, not a number")
            fields["step"] = step
            line = self._encode(fields)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidArgsException(f"The metrics can't be written as JSON: {error}.") from None
        self._step = step
        if "N" in line or "I" in line:
            line = re.sub(_NOT_FINITE, _replace_not_finite, line)
        self._metrics.append_line(line.encode("ascii") + b"\n")

    def _open_metrics(self, path):
        from json import JSONEncoder

        self._encode = JSONEncoder(default=_to_json, check_circular=False).encode
        self._metrics = self.capture.open(path)
        steps = re.findall(rb'(?m)^\{"step": (\d+)', _read_file(path, _UNSAVED_LIMIT))
        if steps:
            self._step = int(steps[-1])  # a resumed run counts on

    def end(self, status, is_exit=False):
        """Write how the run ended: once, only in the process that began it, and without ever raising."""
        with _Hold():
            with _session.lock:
                if not self.is_open():
                    return
                self.has_ended = True
            # Without the lock, so that the prints of other threads don't wait for the disk.
            stop = self.capture.settle if is_exit else self.capture.close
            problem = _try(stop) or _try(self._write_end, status)
            if is_exit and problem is not None:
                # The files of the output may be the last descriptors that there are.
                problem = _try(self.capture.close) or _try(self._write_end, status)
            if is_exit and _session.get_killer():
                _try(self._write_end, _format_kill(_session.get_killer()))
            _unwatch(self)
            os.environ[_FOLDER_VARIABLE] = (_session.experiments or [self])[-1].folder
        # The warning of the output is enough, as long as STATUS tells of the end.
        if problem is not None and not (self.capture.faults and "end-time" in self.metadata):
            _warn(f"the end of {self.folder} can't be recorded completely: {problem}")

    def _write_end(self, status):
        """Write how and when the attempt ended. STATUS belongs to the newest attempt: maybe another."""
        _try(self._head.proof.check)  # of what was loaded since; it fails where git can't be run any more
        found = self._load_own_metadata()
        attempts = found["attempts"]
        end, duration = {"end-time": _local_time()}, round(time.monotonic() - self._clock, 6)
        self.attempt.update(end, ended=_summarize_status(status), **{"duration-seconds": duration})
        attempts[self.number - 1] = self.attempt
        if len(attempts) == self.number >= _find_newest_attempt(self.folder):
            # STATUS first: killed in between, the record tells how the run ended, though not when.
            self._write_status(status.encode("utf-8", "backslashreplace"))
            cpu_s, peak = _measure_usage()
            found = self.metadata
            found.update(end, attempts=attempts)
            found["usage"] = {
                "peak-memory-bytes": peak,
                "cpu-seconds": round(cpu_s - self._cpu_s, 6),
                "wall-seconds": duration,
                "oom-kills": _count_oom_kills(self.attempt),
            }
        self._write("metadata.json", _encode_json(_to_json(found)))

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
        with open(os.open(self.path("STATUS"), _WRITE_FLAGS), "wb", buffering=0) as file:
            # All of RUNNING at once, so that no reader sees a part of it.
            file.write(content.ljust(len("RUNNING"), b"\n"))
            file.truncate(len(content))


# === Experiment ===============================================================
# What a training script uses.

_ORIGINAL = "meticulous-original"  # in the git directory of a frozen copy: the work tree that it is a copy of
# The variables with the number of processes and with the rank, which is 0 if each of them is.
_RANKS = (
    "WORLD_SIZE RANK",  # torchrun, or by hand
    "OMPI_COMM_WORLD_SIZE OMPI_COMM_WORLD_RANK",  # Open MPI
    "PMI_SIZE PMI_RANK",  # MPICH and its relatives
    "WORLD_SIZE NODE_RANK LOCAL_RANK",  # Lightning's own launcher, which sets no RANK
    "WORLD_SIZE GROUP_RANK LOCAL_RANK",
)

_has_told_rank = False


def _find_rank():
    """Return (rank, world size, variable) if this process does one part of a run; None if it does all of it.

    SLURM_PROCID does not count: the tasks of `srun -n 8` are as often eight runs as one.
    """
    for names in map(str.split, _RANKS):
        values = [os.environ.get(name, "") for name in names]
        # Where Slurm's MpiDefault is pmi2, srun sets PMI_RANK for every program, and PMI_JOBID with it.
        is_pmi2 = "PMI_RANK" in names and "PMI_JOBID" in os.environ
        is_by_srun = is_pmi2 and values[0] == os.environ.get("SLURM_STEP_NUM_TASKS")
        if all(map(str.isdecimal, values)) and not is_by_srun:
            size, *ranks = map(int, values)
            if size > 1:
                return max(ranks), size, names[-1]
    return None


def _is_other_rank():
    """Return whether another process of the same parallel run records it; warn the first time."""
    global _has_told_rank
    rank, size, variable = _find_rank() or (0, 1, "")
    if rank > 0 and not _has_told_rank:
        _has_told_rank = True
        _warn(f"rank {rank} of {size} ({variable}) records nothing; rank 0 does.")
    return rank > 0


def _is_set(variable):
    """Return whether an environment variable is set to anything but '' and '0'."""
    return os.environ.get(variable, "") not in ("", "0")


def _check_type(name, value, kinds, noun):
    if not isinstance(value, kinds):
        raise InvalidArgsException(f"{name} must be a {noun}, not {value!r}.")


def _find_original(directory):
    """Return the absolute path of *directory*; if it is in a frozen copy, the same directory of the original.

    Raises GitException if the original was moved or deleted.
    """
    path = _make_absolute(directory)
    for top in _list_parents(path):
        marker = os.path.join(top, ".git", _ORIGINAL)
        if os.path.isfile(marker):
            original = os.fsdecode(_read_file(marker)[:-1])
            if os.path.exists(os.path.join(original, ".git")):
                return os.path.normpath(os.path.join(original, os.path.relpath(path, top)))
            raise GitException(
                f"{top} is a frozen copy of {original}, which was moved or deleted.\n"
                "Run `meticulous freeze` where the project is now, and start from the path that it prints."
            )
    return path


class Experiment:
    """A run that is being recorded in a folder of its own.

    args: the experiment's arguments, a mapping or an argparse.Namespace.
    default_args: what the arguments are unless the user says otherwise; None if unknown.
    project_directory: a directory in the git work tree whose commit is recorded ('' = the current directory).
    experiments_directory: where the folders are; relative to *project_directory*, or absolute.
    experiment_id: None for the next number; otherwise the experiment to start, or to resume if it is there.
    description: what the run is for, in words.
    norecord: touch nothing; open() uses the current directory. METICULOUS_NORECORD=1 does the same.
    allow_dirty: record a snapshot of a work tree with changes; so does METICULOUS_ALLOW_DIRTY=1.

    Raises DirtyRepoException, GitException, InvalidIdException, InvalidArgsException, RunningException,
    MismatchedArgsException, MismatchedCommitException, FolderException (an OSError); nothing half-made stays.
    """

    def __init__(
        self,
        args: "Any" = None,
        default_args: "Any" = {},  # noqa: B006 the signature is the package's; it is never changed
        project_directory: "Union[str, os.PathLike[str]]" = "",
        experiments_directory: "Union[str, os.PathLike[str]]" = "experiments",
        experiment_id: "Union[str, int, None]" = None,
        description: str = "",
        norecord: bool = False,
        allow_dirty: bool = False,
    ) -> None:
        self.norecord = norecord or _is_set("METICULOUS_NORECORD")
        self.project_directory = project_directory
        self.experiments_directory: "Any" = experiments_directory
        self.repo_directory: "Optional[str]" = None
        self.curexpdir = "."
        self.metadata: "Dict[str, Any]" = {}
        self.stdout, self.stderr = sys.stdout, sys.stderr
        self._record: "Any" = None  # stays None if nothing is recorded
        if self.norecord:
            return
        if _is_multiprocessing_child("_inheriting"):
            # A child of multiprocessing runs the script again, to find its functions.
            self.curexpdir = os.environ.get(_FOLDER_VARIABLE, ".")
            return
        _check_type("project_directory", project_directory, (str, os.PathLike), "path")
        _check_type("experiments_directory", experiments_directory, (str, os.PathLike), "path")
        _check_type("description", description or "", str, "string")
        # A repetition must not resume what it repeats.
        name = None if _REPEATS_VARIABLE in os.environ else _check_id(experiment_id)
        self.experiments_directory = os.path.abspath(
            os.path.join(_find_original(project_directory), experiments_directory)
        )
        if _is_other_rank():
            self.norecord = True
            # To resume, all ranks read one checkpoint. The number of a new folder is known to rank 0 only.
            if name:
                self.curexpdir = os.path.join(self.experiments_directory, name)
            return
        args = _check_mapping("args", args)
        if default_args is not None:
            default_args = _check_mapping("default_args", default_args)
        self.repo_directory = _find_work_tree(project_directory)
        try:
            allow_dirty = allow_dirty or _is_set("METICULOUS_ALLOW_DIRTY")
            self._start(name, args, default_args, description or "", allow_dirty)
        except MeticulousException:
            raise
        except OSError as error:
            raise _explain_refused_write(error, self.experiments_directory) from error

    @staticmethod
    def add_argument_group(
        parser: "argparse.ArgumentParser",
        project_directory: "Union[str, os.PathLike[str]]" = "",
        experiments_directory: "Union[str, os.PathLike[str]]" = "experiments",
        experiment_id: "Union[str, int, None]" = None,
        description: str = "",
        norecord: bool = False,
        allow_dirty: bool = False,
    ) -> None:
        """Add the options that determine how a run is recorded, in a group of their own, with these defaults.

        --allow-dirty is left out if the parser has an argument of that name, which is the experiment's then.
        Raises InvalidArgsException if the parser has an option of one of the other names already.
        """
        defaults = (
            project_directory, experiments_directory, experiment_id, description, norecord, allow_dirty
        )  # fmt: skip
        _add_argument_group(parser, defaults)

    @staticmethod
    def extract_meticulous_args(
        parser: "argparse.ArgumentParser", arg_list: "Optional[Sequence[str]]" = None
    ) -> "Dict[str, Any]":
        """Parse *arg_list* (default: sys.argv[1:]) and return the values of add_argument_group's options."""
        return _read_arguments(parser, arg_list)[2]

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
        Raises InvalidArgsException if an argument of the user's has the dest of one of these options.
        """
        args, defaults, own = _read_arguments(parser, arg_list)
        defaults = defaults if capture_defaults else None
        return _name_options(own, cls, args, defaults, **{**meticulous_args, **own})

    def __repr__(self) -> str:
        return f"<Experiment {self.curexpdir!r}>"

    def __getstate__(self) -> "Dict[str, Any]":
        """Return what a copy has, in this process or another: the folder, but not the recording."""
        return {**vars(self), "_record": None, "stdout": None, "stderr": None}

    def __setstate__(self, state: "Dict[str, Any]") -> None:
        vars(self).update(state, stdout=sys.stdout, stderr=sys.stderr)

    def __enter__(self) -> "Experiment":
        return self

    def __exit__(self, exc_type: "Any", exc: "Any", tb: "Any") -> bool:
        """End the record. An Exception is recorded, shown on stderr and swallowed, so that a loop goes on."""
        # Up to Python 3.7 a CancelledError is an Exception.
        passes = not isinstance(exc, Exception) or _is_instance(exc, "asyncio.CancelledError")
        if not passes:
            _say(_format_exception(exc))
        self.finish("SUCCESS" if exc is None or isinstance(exc, GeneratorExit) else _format_failure(exc))
        return not passes

    def summary(self, summary_dict: "Optional[Mapping[str, Any]]" = None, **values: "Any") -> None:
        """Merge results into summary.json; new keys win. Works after finish() and from several threads too.

        Raises InvalidArgsException for what is not a mapping, FolderException if the file can't be written.
        """
        if self._record is None:
            return
        given = _check_mapping("summary", summary_dict)
        given.update(_to_json(values))
        path = self._record.path("summary.json")
        try:
            if not self._record.add_summary(path, given):
                _warn(f"{path} belongs to a later attempt by now: this summary is left out.")
        except OSError as error:
            if getattr(error, "path", None) == path:
                raise
            raise FolderException(error.errno, f"can't be written: {_explain(error)}.", path) from error

    def log(self, values: "Optional[Mapping[str, Any]]" = None, step: "Any" = None, **more: "Any") -> None:
        """Append a step of the metrics to metrics.jsonl: log({"loss": 0.3}, step=3) or log(step=3, loss=0.3).

        step: a number, which may be one of the values; one more than the last if left out, from 0. NaN is
        stored as null. A full disk, or a file that can't be opened, is a warning.
        Raises InvalidArgsException for a step that is not a number, and for what has no form in JSON.
        """
        if not self.is_recording:
            return
        with _session.lock:
            self._record.log(values, step, more)

    def open(self, file: "Any", mode: str = "r", *args: "Any", **kwargs: "Any") -> "IO[Any]":
        """Open *file* like the builtin open(), relative paths inside the experiment's folder."""
        return _open_inside(self.curexpdir, file, mode, *args, **kwargs)

    def finish(self, status: str = "SUCCESS") -> None:
        """End the record now: 'SUCCESS', 'ERROR', or 'ERROR' and more lines, the last of them the reason.

        Does nothing if the record has ended already. Raises InvalidArgsException for another status.
        """
        if self._record is None:
            return
        if not re.match(r"(SUCCESS|ERROR)$|ERROR\n", str(status)):
            raise InvalidArgsException(
                f"{status!r} can't be a status: it is 'SUCCESS', 'ERROR', or 'ERROR\\n' and the reason."
            )
        self._record.end(status.rstrip("\n"))

    @property
    def is_recording(self) -> bool:
        """Whether this process records the experiment: a forked child, which may outlive it, does not."""
        return self._record is not None and self._record.is_open()

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
            self.repo_directory = head.work_tree
            record = _Record(head, description)
            with _Hold():
                if not record.create(directory, name, args, default_args, undo):
                    record.resume(args, undo)
                self._record, self.curexpdir, self.metadata = record, record.folder, record.metadata
                undo.callback(_unwatch, record)
                _watch(record)
                record.capture.start(record.folder)
                os.environ[_FOLDER_VARIABLE] = self.curexpdir
                undo.pop_all()


# === Text =====================================================================
# Format single values.


def _parse_time(text):
    """Convert a local ISO 8601 time to seconds since the epoch; None if it is not one."""
    from datetime import datetime

    try:
        # Not fromisoformat(), which Python 3.6 lacks. The package leaves out microseconds that are 0.
        fields: "Any" = map(int, re.split("[-T:.]", text))
        return datetime(*fields).timestamp()
    except (OSError, OverflowError, TypeError, ValueError):
        return None


def _format_duration(seconds):
    """Format a number of seconds in two units, '3h 02m'; '' for None."""
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


def _dump_json(value, **options):
    """Return valid JSON: NaN and infinity become null, and what is nested too deeply '...'."""
    import json

    try:
        return json.dumps(value, allow_nan=False, **options)
    except (ValueError, RecursionError):
        return json.dumps(_simplify(value, _DEEPEST), **options)


def _simplify(value, levels):
    if isinstance(value, (dict, list)) and not levels:
        return "..."
    if isinstance(value, dict):
        return {key: _simplify(item, levels - 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_simplify(item, levels - 1) for item in value]
    return None if isinstance(value, float) and value - value != 0 else value


def _dump_cell(value):
    """Return the string that a CSV file has for a value."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    return _dump_json(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)


def _format_value(value, digits=15):
    """Format a value for people, floats with at most so many digits."""
    return "%.*g" % (digits, value) if isinstance(value, float) else _dump_cell(value)


def _measure_width(text):
    """Return how many cells of a terminal *text* takes."""
    if len(text) == len(text.encode("utf-8", "replace")):  # all of it is ASCII
        return len(text)
    from unicodedata import category, east_asian_width

    return sum(0 if category(c) in ("Mn", "Me") else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def _cut(text, width):
    """Cut *text* to *width* cells of a terminal; '...' replaces its middle."""
    # Not its end, because paths and names differ there more often.
    # No character takes less than a cell for long, so that what is much longer need not be measured.
    if len(text) <= 4 * width and _measure_width(text) <= width:
        return text

    def keep(text, width):
        text = text[:width]
        while _measure_width(text) > width:
            text = text[:-1]
        return text

    dots = "..."[:width]
    right = (width - len(dots)) // 2
    return keep(text, width - len(dots) - right) + dots + keep(text[: -width - 1 : -1], right)[::-1]


# === Cause ====================================================================
# Find evidence of what ended a run. Without evidence the cause is unknown.

_KILL_WAIT_S = 300  # from Slurm's SIGTERM to the end of the job: KillWait, or the GraceTime of a preemption
# The words, and what Slurm writes to a job's log or calls its state. A line may say CANCELLED and a reason.
_CAUSES = (
    ("time-limit", "DUE TO TIME LIMIT|TIMEOUT"),
    ("preempted", "DUE TO PREEMPTION|DUE TO JOB REQUEUE|PREEMPTED|REQUEUED"),
    ("node-failure", "DUE TO NODE FAILURE|NODE_FAIL"),
    ("oom", "oom.kill|xceeded .*memory limit|OUT_OF_MEMORY"),
    ("cancelled", "CANCELLED"),
)


def _list_ends():
    """Return {command of Slurm: [(job or step, end, state, start, cluster)]}, for this user's jobs.

    Times are seconds since the epoch, as strings. squeue knows what `scontrol show job` knows, until minutes
    after the end, and can leave out the jobs of others.
    """
    from subprocess import SubprocessError

    commands = {
        "squeue": "--all --states=all --Format=jobid:|,endtime:|,state:|,starttime:|,cluster:|",
        "sacct": "--parsable2 --duplicates --allclusters --starttime=now-30days"
        " --format=JobIDRaw,End,State,Start,Cluster",
    }
    # Whatever ends a job, sacct calls its steps CANCELLED. A job that is preempted at once has no start.
    row = r"(?m)^(\d+|[\w.]+(?=\|\d+\|OUT_OF_ME))\|(\d{1,12})\|(\w+)[^|\n]*\|(\d{,12})[^|\n]*\|([^|\n]*)"
    ends = {}
    for command, options in commands.items():
        try:
            output = _run_program(f"{command} --user={os.getuid()} {options}")
            ends[command] = sorted(re.findall(row, output))
        except (OSError, SubprocessError):
            pass
    return ends


def _list_runs(directory):
    """Return {id: (path of its log, job, restarts of the job, size of the log then, start, local start)}."""
    try:
        names = os.listdir(directory)
    except OSError:
        return {}
    runs = {}
    for name in names:
        try:
            metadata = _load_mapping(os.path.join(directory, name, "metadata.json"))
            attempt, place = _get_attempts(metadata)[-1], metadata["place"]
            numbers = [int(place.get(key, 0)) for key in ("slurm-job-id", "slurm-restart-count", "log-size")]
            start = float(attempt["start-epoch"]), str(attempt["start-time"])
            runs[name] = (os.fspath(place.get("log-file", "")), *numbers, *start)
        except (ArithmeticError, AttributeError, LookupError, MeticulousException, TypeError, ValueError):
            pass  # odd metadata
    return runs


def _read_slurm_lines(name, step, runs):
    """Return [(line, time)] of what Slurm wrote to the job's log about the newest attempt of run *name*."""
    try:
        path, job, restarts, begin = runs[name][:4]
        # Slurm empties the log for a later start of the job, or appends to it, as the site and the job say.
        later = [run[3] for run in runs.values() if run[:2] == (path, job) and run[2] > restarts]
        with open(os.open(path, _READ_FLAGS), "rb") as file:
            end = min([file.seek(0, os.SEEK_END), *later])
            file.seek(max(0, min(begin, end), end - _BLOCK))
            text = file.read(end - file.tell()).decode("utf-8", "replace")
    except (LookupError, OSError, ValueError):  # no log, or a path with odd characters
        return []
    # A progress bar may be before it in the line. What the program says of such a message must not match.
    sender = r"(?:^(?:\d+: )?|(?<=[\r\w.%|)\]]))(?:slurmstepd|srun)[^\s:]*: error: (?:Detected \d+ )?"
    place = rf"[^\d\n]*\b{job}(?:\.{re.escape(str(step))})?\b(?!\.\w)"
    return re.findall(rf"(?im)({sender}{place}.*?(?: AT (\S+).*)?)$", text)


def _find_limit(folder, attempt, runs):
    """Return the time after which nothing can have ended *attempt*: seconds since the epoch, and local."""
    end_time, seconds = attempt.get("end-time"), attempt.get("duration-seconds")
    if end_time:
        # What Slurm did long after the end is not its cause.
        end = attempt["start-epoch"] + seconds if _is_number(seconds) else _parse_time(end_time) or 0
        return end + _KILL_WAIT_S, str(end_time)
    # Nor is what it did to the next run in the same job, unless both ran at once.
    job, silence = attempt["slurm-job-id"], _last_sign_of_life(folder) or float("inf")
    later = [times for _, of, _, _, *times in runs if of == job and times[0] > silence]
    return min(later, default=(float("inf"), "9"))


def _list_evidence(folder, attempt, kills, scheduler):
    """Yield (source, what it says) of what ended the newest *attempt* in *folder*, the earliest first."""
    job, start = attempt.get("slurm-job-id"), attempt.get("start-epoch")
    if job and _is_number(start) and not _WINDOWS:
        step, start_time = attempt.get("slurm-step-id", "batch"), str(attempt.get("start-time", ""))[:19]
        directory, name = os.path.split(os.path.abspath(folder))
        runs = scheduler.recall(_list_runs, directory)
        latest, end_time = _find_limit(folder, attempt, runs.values())
        for line, at in _read_slurm_lines(name, step, runs):
            if not at or start_time <= at <= end_time:  # all are local times of the node
                yield "job log", line
        for command, rows in scheduler.recall(_list_ends).items():
            for part, end, state, begin, cluster in rows:
                is_ours = part in (str(job), f"{job}.{step}") and cluster == attempt.get("slurm-cluster-name")
                if is_ours and int(begin or 0) <= start < int(end) + 1 <= latest:
                    yield command, state
    if kills:
        yield "memory cgroup", "oom_kill"


def _find_cause(folder, outcome, metadata, scheduler):
    """Return the message with the evidence, and a word for what ended the run in *folder*.

    The word is '' if the run ended by itself. *outcome* is its status, and the message without the evidence;
    *scheduler* is the _Scheduler of the listing.
    """
    status, message = outcome
    usage, attempt = _get_part(metadata, "usage", dict), (_get_attempts(metadata) or [{}])[-1]
    is_dead = status == "DEAD"
    kills = usage.get("oom-kills") if usage else is_dead and _count_oom_kills(attempt)
    kills = kills if _is_number(kills) else 0
    # Shells and srun return 128 and the number of the signal. Slurm sends these two.
    by_signal = re.match(r"killed by (SIG(?:TERM|KILL))?|exit code 1(37|43)$", message)
    if is_dead or (by_signal and by_signal.lastindex):
        for source, text in _list_evidence(folder, attempt, kills, scheduler):
            for cause, pattern in _CAUSES:
                for words in re.findall(pattern, text):
                    return f"{cause} ({source}: {words}); {message}", cause
    if is_dead:
        return f"killed without a trace; {message}", "unknown"
    if kills:
        note = f"processes of its cgroup that the kernel killed, out of memory: {kills}"
        message = f"{message}; {note}" if message else note
    return message, "signal" if by_signal else ""


# === Records on disk ==========================================================
# Read records: each file when an attribute first needs it, and as far as possible.

_WAIT_S = 2  # seconds until a message says that Slurm is waited for
_FRESH_S = 60  # a sign of life that is younger contradicts a scheduler
_HEADER = "expid sha start_time status status_message cause"
# A job, a task of an array, a component of a heterogeneous job, a step.
_JOB_NAMES = (
    "{slurm-job-id} {slurm-array-job-id} {slurm-array-job-id}_{slurm-array-task-id} {slurm-het-job-id}"
    " {slurm-het-job-id}+{slurm-het-job-offset} {slurm-job-id}.{slurm-step-id}"
)
_GROUPS = ["header", "args", "default_args", "metadata", "summary"]
_SLOW_S = 0.0002  # a folder that takes longer is on a network: the files of a local disk are in memory
_THREADS = 32

if TYPE_CHECKING:
    from functools import cached_property as _lazy
else:

    class _lazy:
        """functools.cached_property, which Python 3.6 lacks: computed when first needed, and settable."""

        def __init__(self, compute):
            self.compute = compute

        def __get__(self, instance, owner=None):
            if instance is None:
                return self
            value = instance.__dict__[self.compute.__name__] = self.compute(instance)
            return value


def _get_seconds(values, name):
    """Return the number *name* of *values*; None if there is none, or one that can't be a time."""
    value = values.get(name)
    return value if _is_number(value) and abs(value) < 1e12 else None


def _parse_points(text):
    """Return the rows of metrics in *text*, without torn lines and those of another tool."""
    from json import loads

    def parse(text):
        try:
            return loads("[" + text + "]")
        except (ValueError, RecursionError):
            return None

    text, numbers = text.strip(), {int, float}
    points = parse(text.replace("\n", ","))  # all at once takes half of the time
    if points is None:
        points = [point for line in text.split("\n") for point in parse(line) or ()]
    return [point for point in points if type(point) is dict and type(point.get("step")) in numbers]


class ExperimentReader:
    """A recorded experiment.

    Missing and broken files read as empty; `problems` names those that were found so far. A record that says
    RUNNING has the status DEAD if its process is gone, and RUNNING? if that is not known.
    """

    _lock = type(_session.lock)()  # so that Slurm is asked once, whatever the number of threads

    def __init__(self, curexpdir: "Union[str, os.PathLike[str]]") -> None:
        self.curexpdir: str = os.fspath(curexpdir).rstrip("/") or "/"
        self.expid: str = os.path.basename(self.curexpdir)
        self.problems: "List[str]" = []

    def __repr__(self) -> str:
        return self.curexpdir

    @_lazy
    def args(self) -> "Dict[str, Any]":
        return self._read("args.json") or {}

    @_lazy
    def default_args(self) -> "Optional[Dict[str, Any]]":
        """The recorded defaults; None where they are unknown."""

        def parse(content):
            return None if content.strip() == b"null" else _parse_object(content)

        return self._read("default_args.json", parse)

    @_lazy
    def metadata(self) -> "Dict[str, Any]":
        """The content of metadata.json, with the command as one string."""
        from shlex import quote

        metadata = self._read("metadata.json") or {}
        if isinstance(metadata.get("command"), list):
            metadata["command"] = " ".join(quote(str(word)) for word in metadata["command"])
        return metadata

    @_lazy
    def summary(self) -> "Dict[str, Any]":
        return self._read("summary.json") or {}

    @_lazy
    def status(self) -> str:
        return self._outcome[0]

    @_lazy
    def status_message(self) -> str:
        return self._explanation[0]

    @_lazy
    def cause(self) -> str:
        """What ended the run: oom, time-limit, preempted, node-failure, cancelled, signal or unknown.

        '' if it ended by itself, or may still run.
        """
        return self._explanation[1]

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
        """Seconds of work in all attempts, up to now for a running one; None where it is unknown."""
        total = None
        for attempt in self.attempts:
            seconds = _get_seconds(attempt, "duration-seconds")
            start = _get_seconds(attempt, "start-epoch") or _parse_time(attempt.get("start-time"))
            if seconds is None and start is not None:
                end = _parse_time(attempt.get("end-time"))
                if end is None and attempt is self.attempts[-1]:
                    end = time.time() if self.status == "RUNNING" else _last_sign_of_life(self.curexpdir)
                seconds = None if end is None else max(0, end - start)
            if seconds is not None:
                total = seconds + (total or 0)
        return total

    @property
    def attempts(self) -> "List[Dict[str, Any]]":
        """The attempts; that of a record without a list, one by the package, is metadata itself."""
        return _get_attempts(self.metadata) or [self.metadata]

    @property
    def jobs(self) -> "List[str]":
        """The names of the Slurm jobs that it ran in."""
        from collections import defaultdict

        names = _JOB_NAMES.format_map(defaultdict(str, _get_part(self.metadata, "place", dict)))
        return re.findall(r"(?<!\S)\d+(?:[_+.]\w+)?(?!\S)", names)  # without those that lack a part

    @property
    def sort_key(self) -> "Any":
        """The key that sorts readers by their start."""
        epoch = _get_seconds(self.attempts[0], "start-epoch") or _parse_time(self.start_time)
        return epoch or 0, self.start_time, self.expid

    @_lazy
    def metrics(self) -> "List[Dict[str, Any]]":
        """The logged rows: {"step": 3, "time": 1764150000.1, "loss": 0.3}, time in seconds since the epoch.

        Left out are rows of earlier attempts whose step is not below the first step of a later one.
        """
        rows = _parse_points(_read_text(self.curexpdir + "/metrics.jsonl"))
        for attempt in self.attempts[1:]:
            start = _get_seconds(attempt, "start-epoch") or 0
            for number, row in enumerate(rows):
                if (_get_seconds(row, "time") or 0) >= start > 0:
                    rows[:number] = [earlier for earlier in rows[:number] if earlier["step"] < row["step"]]
                    break
        return rows

    @property
    def code_warning(self) -> str:
        """What ran and is not in the recorded commit; '' if all of it is, or if that is unknown."""
        return _describe_code(self.metadata)

    def open(self, file: "Any", mode: str = "r", *args: "Any", **kwargs: "Any") -> "IO[Any]":
        """Open *file* like the builtin open(), relative paths inside the experiment's folder."""
        return _open_inside(self.curexpdir, file, mode, *args, **kwargs)

    def read_lines(self, name: str) -> "List[str]":
        """Return the lines of a text file of the folder, from its last 64 KB; [] if it can't be read."""
        text = _read_text(os.path.join(self.curexpdir, name), _BLOCK)
        return text.split("\n") if text else []

    def refresh_status(self) -> None:
        """Forget STATUS, and metadata.json with it."""
        names = "status status_message cause _outcome _explanation metadata duration"
        for name in names.split():
            self.__dict__.pop(name, None)

    def refresh_summary(self) -> None:
        """Forget summary.json."""
        self.__dict__.pop("summary", None)

    def df_vars(self, groups: "Sequence[str]" = _GROUPS[1:]) -> "Dict[str, Any]":
        """Return the header and *groups*, which are those of a table's columns."""
        header = {field: getattr(self, field) for field in _HEADER.split()}
        return {"header": header, **{group: getattr(self, group) for group in groups}}

    @_lazy
    def _scheduler(self):
        return _Scheduler()

    def _read(self, name, parse=_parse_object):
        """Return what *parse* makes of the file *name*; None, and a note, if that fails."""
        try:
            return parse(_read_file(self.curexpdir + "/" + name))
        except (OSError, ValueError, RecursionError) as error:
            is_optional = name in ("default_args.json", "summary.json")
            note = f"{name}: {_explain(error)}"
            if note not in self.problems and not (is_optional and isinstance(error, FileNotFoundError)):
                self.problems.append(note)
            return None

    def _read_status(self):
        """Return the first line of STATUS and, if there are more, the last."""

        def parse(content):
            first, _, rest = content.decode("utf-8", "replace").strip().partition("\n")
            if not first:
                raise ValueError("is empty")
            return first.strip(), rest.rpartition("\n")[2].strip()

        return self._read("STATUS", parse) or ("UNKNOWN", "")

    @_lazy
    def _outcome(self):
        """The status and its message: what STATUS says or, if the process is gone, its last sign of life."""
        seen = None
        while True:
            outcome, attempt = self._read_status(), self.attempts[-1]
            if outcome[0] != "RUNNING":
                return outcome
            # The scheduler's answer may be older than an attempt that has begun since.
            is_running = self._is_running(attempt, seen in (None, attempt))
            if is_running:
                return outcome
            if seen is not None:
                return self._describe_end(attempt, is_running)
            # It may have ended since STATUS was read, or gone on in another process: look once more.
            seen = attempt
            self.__dict__.pop("metadata", None)

    @_lazy
    def _explanation(self):
        """The message with the evidence of what ended the run, and the cause."""
        outcome, metadata = self._outcome, self.metadata  # read by many threads at once, unlike the evidence
        with self._lock:
            return _find_cause(self.curexpdir, outcome, metadata, self._scheduler)

    def _is_running(self, attempt, may_ask):
        # If STATUS says RUNNING after an attempt has ended, the next one is about to begin.
        if "host" not in attempt or "end-time" in attempt:
            return None
        from threading import Timer

        with self._lock:
            timer = Timer(_WAIT_S, _warn, ["waiting for Slurm, which is asked whether jobs still run ..."])
            try:
                timer.start()
                return _is_running(attempt, self._scheduler if may_ask else None)
            finally:
                timer.cancel()

    def _describe_end(self, attempt, is_running):
        """Return the status and the message of a process that is not known to run."""
        sign = _last_sign_of_life(self.curexpdir)
        age = _FRESH_S if sign is None else time.time() - sign
        message = "no sign of life" if sign is None else f"last sign of life {_format_duration(age)} ago"
        if isinstance(attempt.get("host"), str):
            message += f" on {attempt['host']}"
        # Slurm calls a node dead while its processes still live; only our own process table is certain.
        is_certain = age >= _FRESH_S or _agree(attempt, _describe_process(), "host", "boot", "pid-namespace")
        return "DEAD" if is_running is False and is_certain else "RUNNING?", message


def _list_folders(directory):
    """Return the paths of the experiments in *directory*. Raises FolderException."""
    try:
        with os.scandir(directory) as entries:
            return [entry.path for entry in entries if entry.name[0] != "." and _is_experiment(entry)]
    except OSError as error:
        raise FolderException(error.errno, f"can't be listed: {_explain(error)}.", directory) from error


def _is_experiment(entry):
    # Files are not experiments (an exported table, for example). Broken links are kept, to be reported.
    try:
        return not entry.is_file() or entry.name.isdigit()
    except OSError:
        return True


def _read_folders(read, folders):
    """Return [read(folder), ...], computed by several threads if files open slowly (NFS, Lustre)."""
    results, waits = [], []
    for folder in folders[:5]:
        began = time.perf_counter() - time.process_time()
        results.append(read(folder))
        waits.append(time.perf_counter() - time.process_time() - began)
    if min(waits, default=0) < _SLOW_S:
        return results + list(map(read, folders[5:]))  # threads would take four times as long
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(_THREADS) as pool:
        return results + list(pool.map(read, folders[5:]))


def _flatten(values, levels):
    """Open the dicts in a dict, *levels* deep: {'args': {'lr': 1}} becomes {'args.lr': 1}."""
    if not levels:
        return values
    flat: "Dict[str, Any]" = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            # Ten thousand rows have the same few names.
            opened, prefix = _flatten(value, levels - 1), name + "."
            flat.update({sys.intern(prefix + key): item for key, item in opened.items()})
        else:
            flat[name] = value
    return flat


def _make_row(groups, levels):
    """Return a row of a reader's groups (or None); *levels* of dicts inside of values are opened too."""
    return _flatten({group: values for group, values in groups.items() if values}, 1 + min(levels, _DEEPEST))


def _to_dataframe(rows, levels, is_flat=False, columns=None):
    """Return a DataFrame of *rows*, its columns split into 2 + *levels* levels, the rest filled with ''."""
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
        # Not from_tuples(), which needs at least one column.
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
        # Readers stay valid when the program changes its directory.
        self._directory = os.path.abspath(self.experiments_directory)
        self.refresh_experiments()

    def refresh_experiments(self) -> None:
        """List the directory again, and forget what was read."""
        scheduler, self._readers = _Scheduler(), {}
        for path in _list_folders(self._directory):
            reader = self._readers[os.path.basename(path)] = self.reader(path)
            reader._scheduler = scheduler
        self.__dict__.pop("experiments", None)

    @_lazy
    def experiments(self) -> "Dict[str, ExperimentReader]":
        """The readers by id, in the order of their start times."""
        names = list(self._readers)
        keys = _read_folders(lambda name: (self._readers[name].sort_key, name), names)
        return {name: self._readers[name] for _, name in sorted(keys)}

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

    def find(self, text: str) -> "List[ExperimentReader]":
        """Return the readers that *text* may mean: an id, the beginning of one, or -1, the latest.

        A number is only the id that it is: `path 1` must not find 12.
        """
        if text in self or text.isdigit():
            return [self[text]] if text in self else []
        if re.match("-[1-9][0-9]*$", text):
            return list(self)[int(text) :][:1] if -int(text) <= len(self) else []
        return [self[name] for name in sorted(self._readers) if name.startswith(text)]

    def find_job(self, job: str) -> "List[ExperimentReader]":
        """Return the readers of what ran as the Slurm job *job*: 1234, 1234_7, 1234+1 or 1234.0."""
        return [reader for reader in self if job in reader.jobs]

    def rows(self, normalize_json_values: int = 0) -> "List[Dict[str, Any]]":
        """Return each experiment as a flat dict, {'header.expid': '7', 'args.lr': 0.1, ...}.

        normalize_json_values: how many levels of dicts inside of values become columns of their own.
        """
        return [_make_row(reader.df_vars(), normalize_json_values) for reader in self]

    def as_dataframe(self, normalize_json_values: int = 0) -> "Any":
        """Return a pandas DataFrame, indexed by ('header', 'expid').

        Its columns have 2 + *normalize_json_values* levels: ('args', 'lr'). Raises IndexError if there is
        nothing, MeticulousException without pandas.
        """
        rows = self.rows(normalize_json_values)
        if not rows:
            raise IndexError(f"There are no experiments in {self.experiments_directory}.")
        return _to_dataframe(rows, normalize_json_values)


def _find_directory(project_directory):
    """Find the directory 'experiments' in *project_directory* or above it, up to the top of the project."""
    start = _find_original(project_directory)
    for folder in _list_parents(start):
        path = os.path.join(folder, "experiments")
        if os.path.isdir(path):
            return path
        if _is_there(folder, ".git"):
            break
    raise QueryException(f"There is no directory 'experiments' in {start} or its project: name one.")


# === Queries ==================================================================
# Filter, group, sort and compare rows, and find the one experiment that is meant.

_AXES = ("step", "time")  # all else in a row of metrics is a metric
_COMPARED = r"args\.|summary\.|metadata\.githead|header\.(status|duration)"


def _choose_groups(names):
    """Return the groups of columns to load if *names* are asked for; metadata and metrics have the most."""
    asked = [group for group in ("metadata", "metrics") if any(group in name for name in names)]
    return ["args", "default_args", "summary", *asked]


def _read_row(reader, groups=(*_GROUPS[1:], "metrics"), levels=0):
    """Return the row of an experiment, with its duration; *levels* of dicts in values are opened."""
    values = reader.df_vars(groups)
    # Of the metadata, people see only what was said of a run.
    metadata = reader.metadata
    said = {name: metadata[name] for name in ("description", "repeats") if metadata.get(name)}
    values["header"].update(said, duration=reader.duration)
    points = values.get("metrics", [])
    if "metrics" not in groups and reader.status.startswith("RUNNING") and not reader.summary:
        points = _parse_points("\n".join(reader.read_lines("metrics.jsonl")))  # what it logged last
    last = {name: value for point in points for name, value in point.items() if name not in _AXES}
    return _make_row({**values, "metrics": last}, levels)


def _take_part(rows, options):
    """Return the first rows that --head asks for, and of these the last that --tail asks for."""
    rows = rows[: options.head]
    return rows if options.tail is None else rows[-options.tail or len(rows) :]


def _load_rows(directory, groups, levels, options=None):
    """Return the rows in the order of their starts, and two dicts of lists of strings by id.

    These are the files that could not be read, and the code that ran but is not committed. With *options*,
    only what --head and --tail leave is read; of the other experiments only metadata.json.
    """
    scheduler, problems, warnings = _Scheduler(), {}, {}

    # Neither keeps the reader: with ten thousand of them, memory matters.
    def read_start(path):
        return ExperimentReader(path).sort_key, path

    def read(path):
        reader = ExperimentReader(path)
        reader._scheduler = scheduler
        row = _read_row(reader, groups, levels)
        problems.update(_list_problems([reader]))
        if reader.code_warning:
            warnings[reader.expid] = [reader.code_warning]
        return reader.sort_key, row

    folders = _list_folders(directory)
    if options:
        starts = sorted(_read_folders(read_start, folders))
        folders = [path for _, path in _take_part(starts, options)]
    return [row for _, row in sorted(_read_folders(read, folders))], problems, warnings


def _list_problems(readers):
    return {reader.expid: reader.problems for reader in readers if reader.problems}


def _find_columns(rows):
    """Return the names of all columns, by group."""
    names = {}
    for row in rows:
        names.update(row)

    def rank(name):
        group = name.partition(".")[0]
        return [*_GROUPS, group].index(group)

    return sorted(names, key=rank)


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
    """Name the columns that are near *name*."""
    from difflib import get_close_matches

    inner = [column for column in columns if column.endswith("." + name)]
    near = list(dict.fromkeys(inner + get_close_matches(name, columns, 5, 0.5)))[:5]
    return f"did you mean {', '.join(near)}?" if near else "--list-columns shows what there is."


def _choose_columns(rows, columns, prefixes):
    """Return the *columns* that begin with one of *prefixes*, in the order of the prefixes."""
    chosen = []
    for prefix in prefixes:
        matching = [column for column in columns if column.startswith(prefix)]
        chosen += matching or [_resolve_column(rows, columns, prefix)]
    return list(dict.fromkeys(chosen))


def _is_changed(row, column):
    """Return whether an argument is not the default; also if the default is unknown."""
    return "default_" + column not in row or _differ(row.get(column), row["default_" + column])


def _varies(rows, column):
    """Return whether not all *rows* have the same value."""
    return any(_differ(row.get(column), rows[0].get(column)) for row in rows)


def _is_telling(rows, column):
    """Return whether an argument varies, or differs from its default where that is known."""
    known = [row for row in rows if "default_" + column in row or len(rows) == 1]
    return _varies(rows, column) or any(_is_changed(row, column) for row in known)


def _choose_args(rows, columns, mode):
    """Return the columns with the arguments that --args asks for, or those that tell something."""
    args = [column for column in columns if column.startswith("args.")]
    if mode == "all":
        return args
    if mode == "none":
        return []
    if mode == "non-default":
        return [c for c in args if any(_is_changed(row, c) for row in rows if c in row)]
    if mode == "truncated":
        for row in rows:
            pairs = (f"{c[5:]}={_dump_cell(row[c])}" for c in args if c in row and _is_changed(row, c))
            row["args"] = _cut(" ".join(pairs), 60)
        return ["args"]
    # Those that vary come first, because not all may fit.
    told = [column for column in args if _is_telling(rows, column)]
    return sorted(told, key=lambda column: not _varies(rows, column))


def _sort_rows(rows, columns, descending):
    """Sort by *columns*; numbers come before strings, rows without a value last."""

    def rank(row, column):
        value = row.get(column + ".mean", row.get(column))  # a cell of a group is a string
        if _is_missing(value):
            return (not descending,)  # the reverse order has the largest first
        if isinstance(value, str) and value.isdecimal():  # as most ids are
            return descending, 0, float(value), value
        if isinstance(value, (int, float)):
            return descending, 0, value, ""
        return descending, 1, 0, str(value)

    return sorted(rows, key=lambda row: [rank(row, column) for column in columns], reverse=descending)


def _group_rows(rows, columns, keys, has_cells=False):
    """Return one row for each combination of values in the columns *keys*.

    Other columns of numbers give NAME.mean, NAME.std (of the sample) and NAME.count, the rest NAME.count.
    With *has_cells*, numbers give NAME too: 'mean ± std (count)'.
    """
    rows = [{column: row[column] for column in row if not _is_missing(row[column])} for row in rows]
    groups: "Dict[Any, Any]" = {}
    for row in rows:
        # As JSON, because "1" is not 1, nor true.
        group = tuple(v if _is_number(v) else _dump_json(v) for v in map(row.get, keys))
        groups.setdefault(group, []).append(row)
    others = [column for column in columns if column not in keys]
    result = []
    for members in groups.values():
        row = {key: members[0].get(key) for key in keys}
        for column in others:
            values = [member[column] for member in members if column in member]
            if values and all(map(_is_number, values)):
                mean, deviation = _mean_and_deviation(values)
                if has_cells:
                    spread = "" if _is_missing(deviation) else f"± {deviation:.2g} "
                    row[column] = f"{_format_value(mean, 5) or '-'} {spread}({len(values)})"
                row[column + ".mean"], row[column + ".std"] = mean, deviation
            row[column + ".count"] = len(values)
        result.append(row)
    return _sort_rows(result, keys, descending=False)


def _mean_and_deviation(values):
    """Return the mean and the standard deviation of a sample, None where there are too few values."""
    from statistics import mean, stdev

    results = []
    for compute in (mean, stdev):
        try:
            results.append(compute(values))
        except (ArithmeticError, AssertionError, AttributeError, ValueError):  # by the version of Python
            results.append(None)
    return results


def _list_differences(rows):
    """Return the columns that two rows differ in, with both values, and the difference of numbers."""
    differences = []
    for column in _find_columns(rows):
        first, second = values = [row.get(column) for row in rows]
        if _differ(first, second) and re.match(_COMPARED, column):
            try:
                change = float(second - first) if all(map(_is_number, values)) else None
            except OverflowError:
                change = None
            differences.append({"column": column, "values": values, "difference": change})
    return differences


def _diff_commits(readers):
    """Return git's statistics of what changed between the commits of two experiments, or why not."""
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
_FILTER_WORDS = (
    r"""(?P<string>'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")"""
    r"""|`(?P<quoted>[^`]*)`"""
    r"""|(?<![\w.])(?P<dotted>[^\W\d]\w*(?:\.\w+)+)"""
    r"""|(?P<operator>&&?|\|\|?)"""
)
# ast's names of all that a filter may use; Num, Str and NameConstant are those of Python 3.7 and older.
_CONSTANTS = ("Constant", "Num", "Str", "NameConstant")
_SYNTAX = "Name List Tuple And Or Not Invert UAdd USub Add Sub Mult Div Compare"
# ast's names of operators, and what the module operator calls them.
_OPERATORS = {"Add": "add", "Sub": "sub", "Mult": "mul", "Div": "truediv"}
_OPERATORS.update(Lt="lt", LtE="le", Gt="gt", GtE="ge")


def _filter_rows(rows, columns, text):
    """Return the rows for which the expression *text* is true. Raises QueryException."""
    try:
        tree, names = _parse_filter(text)
        resolve = lambda name: _resolve_column(rows, columns, names.get(name, name))  # noqa: E731
        evaluate = _compile_filter(tree, rows, resolve)
        return [row for row in rows if _check_truth(evaluate(row))]
    except (RecursionError, TypeError, ValueError) as error:  # QueryException is a ValueError
        odd = [f"`{c}`" for c in columns if c in text and f"`{c}`" not in text and re.search(r"[^\w.]", c)]
        hint = f"\nIn backticks it is one name: {odd[0]}." if odd else ""
        raise QueryException(f"The filter {_cut(text, 60)!r}: {error}{hint}") from None


def _parse_filter(text):
    """Return the syntax tree of a filter, and the columns that are meant by the names in it."""
    import ast
    import warnings

    if len(text) > _LONGEST_FILTER:
        raise QueryException(f"it is longer than {_LONGEST_FILTER} characters.")
    names: "Dict[str, str]" = {}

    def replace_word(match):
        if match.lastgroup == "string":
            return match.group()
        if match.lastgroup == "operator":
            return " and " if match.group()[0] == "&" else " or "
        # A column's name need not be one of Python: args.lambda.
        name = f"column_{len(names)}"
        names[name] = match.group(match.lastgroup)
        return f" {name} "

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(re.sub(_FILTER_WORDS, replace_word, text).strip(), mode="eval").body, names
    except (SyntaxError, ValueError, MemoryError):
        raise QueryException("it can't be parsed; odd names go in backticks: `args.a-b`.") from None


def _compile_filter(node, rows, resolve):
    """Return a function that computes the value of *node*, part of a filter, for a row."""
    import ast

    kind = type(getattr(node, "op", node)).__name__
    if kind in _CONSTANTS:
        constant = ast.literal_eval(node)
        if isinstance(constant, (str, int, float, type(None))):
            return lambda row: constant
        raise QueryException(f"{constant!r} is not understood.")
    if kind not in _SYNTAX.split():
        raise QueryException(f"{kind} is not understood; there are and or not in == < + - * /.")
    if kind == "Name":
        column = resolve(node.id)
        return lambda row: None if _is_missing(row.get(column)) else row[column]
    nodes: "Any" = [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)]
    parts = [_compile_filter(part, rows, resolve) for part in nodes]
    kinds = [type(operator).__name__ for operator in getattr(node, "ops", ())]  # a < b <= c has two
    for place, operator in enumerate(kinds):
        for this, other in ((place, place + 1), (place + 1, place)):
            if operator in ("Eq", "NotEq", "In", "NotIn") and isinstance(nodes[this], ast.Name):
                # For a row without values, what is not a constant is None.
                _check_types(resolve(nodes[this].id), map(parts[this], rows), parts[other]({}))
    # An iterator of the parts' values, so that `and` and `or` compute no more than they need.
    return lambda row: _combine(kind, kinds, (part(row) for part in parts))


def _check_types(column, values, constants):
    """Raise QueryException if none of a column's *values* can equal one of the constants."""
    types = {_name_type(value) for value in values} - {"nothing"}
    constants = constants if isinstance(constants, list) else [constants]
    if types and constants and not any(c is None or types & {_name_type(c), "list"} for c in constants):
        problem = f"{column} is a {min(types)}, and {constants[0]!r} a {_name_type(constants[0])}"
        hint = f": write '{constants[0]}'" if types == {"string"} and _is_number(constants[0]) else ""
        raise QueryException(f"{problem}{hint}.")


def _name_type(value):
    """Name the type of a value in words; true and false are numbers, because they equal 1 and 0."""
    names = {str: "string", list: "list", dict: "dict", type(None): "nothing"}
    return names.get(type(value), "number")


def _check_truth(value):
    if value is None or isinstance(value, bool):
        return bool(value)
    raise QueryException(f"{value!r} is neither true nor false; compare it with something.")


def _combine(kind, kinds, values):
    """Return the value of an expression of this *kind*; *kinds* are the operators of a comparison."""
    if kind in ("And", "Or"):
        return (all if kind == "And" else any)(map(_check_truth, values))
    values = list(values)
    if kind in ("Not", "Invert"):
        return not _check_truth(*values)
    if kind in ("List", "Tuple"):
        return values
    if kind == "Compare":
        return all(map(_operate, kinds, values, values[1:]))
    return _operate(kind.lstrip("U"), *[0, *values][-2:])  # a sign is a sum with 0


def _operate(kind, left, right):
    """Compare two values, or calculate with them.

    A missing value equals None and can't be ordered: the result is None then, and where arithmetic fails.
    """
    import operator

    if kind not in _OPERATORS:
        is_choice = isinstance(right, list)
        if "In" in kind or (is_choice and not isinstance(left, list)):  # == [1, 2] as in pandas
            is_true = (is_choice or None not in (left, right)) and left in right
        else:
            is_true = left == right
        return is_true != ("Not" in kind)
    if None in (left, right):
        return None
    if kind in ("Add", "Sub", "Mult", "Div") and {_name_type(left), _name_type(right)} != {"number"}:
        raise QueryException(f"{left!r} and {right!r} are not both numbers.")
    try:
        result = getattr(operator, _OPERATORS[kind])(left, right)
    except ArithmeticError:
        return None
    return None if _is_missing(result) else result


class _NothingFound(QueryException):
    """What was asked for is not there, which has an exit code of its own."""


def _get_directory(options):
    directory = getattr(options, "directory", "") or options.experiments_directory
    return directory or _find_directory(options.project_directory)


def _find_reader(options, text):
    """Return the reader of the one experiment that an ID, a path or a job means."""
    job = getattr(options, "job", "")
    if bool(text) == bool(job):  # an empty one is an unset variable
        raise QueryException("Name an experiment, by its ID or its path; for `show` by --job JOB too.")
    if (
        text
        and os.path.dirname(text)
        and any(map(os.path.exists, (text + "/STATUS", text + "/metadata.json")))
    ):
        return ExperimentReader(os.path.abspath(text))
    directory = _get_directory(options)
    experiments = Experiments(experiments_directory=directory)
    readers = experiments.find(text) if text else experiments.find_job(job)
    what = repr(text or f"job {job}")
    if not readers:
        raise _NothingFound(f"There is no experiment {what} in {directory}.")
    if len(readers) > 1:
        shown = _join_some(reader.expid for reader in readers)
        raise QueryException(f"{what} may be any of {len(readers)} experiments: {shown}.")
    return readers[0]


# === Tables ===================================================================
# Turn rows into CSV, JSON, Markdown, LaTeX, a DataFrame, or lines for people.

_TITLES = {
    "header.expid": "id",
    "header.status": "status",
    "header.start_time": "when",
    "header.duration": "took",
    "header.status_message": "message",
    "header.expid.count": "runs",
}
_COLORS = {"SUCCESS": "32", "RUNNING": "36", "ERROR": "31", "DEAD": "31", "RUNNING?": "33", "UNKNOWN": "33"}
_WIDEST_CELLS = (40, 20, 10)  # the narrower ones where otherwise not all results fit
_LONGEST_LINE = 1000
_RESULTS = ("summary.", "metrics.")
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX.update({c: "\\" + c for c in "&%$#_{}"})
# A bracket or star at the start of a line is an option of the line break before it.
_LATEX.update({c: "{" + c + "}" for c in "[]*<>|\"'`-"})


def _format_lines(rows, columns, escape, begin, separator, end):
    """Return the line of the titles, and those of the rows."""
    lines = [columns, *([_dump_cell(row.get(column)) for column in columns] for row in rows)]
    return [begin + separator.join(map(escape, cells)) + end for cells in lines]


def _format_csv(rows, columns):
    # A line with nothing in it would count as blank.
    quoted = '[,"\r\n]' if len(columns) > 1 else '[,"\r\n]|^$'

    def escape(text):
        return '"' + text.replace('"', '""') + '"' if re.search(quoted, text) else text

    return "".join(_format_lines(rows, columns, escape, "", ",", "\n"))


def _format_json(rows, names, **more):
    """Format rows in the one shape of JSON that everything here has: {"rows": [{"args.lr": 0.1}], ...}."""
    chosen = [{name: row[name] for name in names if name in row} for row in rows]
    return _dump_json({"rows": chosen, **more}, indent=2)


def _escape_markdown(text):
    return re.sub(r"[\\`*_\[\]<>&|~$]", r"\\\g<0>", _show_controls(text))


def _format_markdown(rows, columns):
    head, *lines = _format_lines(rows, columns, _escape_markdown, "| ", " | ", " |\n")
    return head + "|" + " --- |" * len(columns) + "\n" + "".join(lines)


def _format_latex(rows, columns):
    def escape(text):
        return _show_controls(text).translate(str.maketrans(_LATEX))

    head, *lines = _format_lines(rows, columns, escape, "", " & ", " \\\\\n")
    begin = "\\begin{tabular}{" + "l" * len(columns) + "}\n\\hline\n"
    return begin + head + "\\hline\n" + "".join(lines) + "\\hline\n\\end{tabular}\n"


def _split_title(column, is_flat):
    """Split a column's name into what stands above it in two lines."""
    group, _, name = column.partition(".")
    if column in _TITLES:
        return "", _TITLES[column]
    return ("", column) if is_flat or not name else ("" if group == "header" else group, name)


def _format_cell(column, value):
    # Results are measured, arguments are chosen: only the former are rounded.
    return _format_value(value, 5 if column.startswith(_RESULTS) else 15)


def _format_cells(rows, column):
    """Return the cells of a column, and whether they are numbers, whose points are aligned."""
    texts = values = [row.get(column) for row in rows]
    kinds = set(map(type, values))
    # Looked at all at once, because ten thousand strings that need nothing are the usual case.
    if kinds != {str}:
        texts = [_format_cell(column, value) for value in values]
    texts = [text[:_LONGEST_LINE] for text in texts]
    if not "".join(texts).isprintable():
        texts = [*map(_show_controls, texts)]
    is_grouped = any(column + ".mean" in row for row in rows)
    if is_grouped or kinds <= {int, float, type(None)} or "".join(texts).isdigit():
        # Padded after the point to one length.
        tails = [len(text.lstrip("-0123456789")) for text in texts]
        longest = max(tails, default=0)
        return [text + " " * (longest - tail) for text, tail in zip(texts, tails)], True
    return texts, False


def _pad(text, size, is_right):
    """Return *text* in *size* cells of a terminal."""
    text = _cut(text, size)
    fill = " " * (size - _measure_width(text))
    return fill + text if is_right else text + fill


def _fit_columns(columns, width):
    """Return the sizes of the columns that fit into *width*.

    columns: {name: (group, title, cells, whether they are numbers)}. First come id, status and one argument,
    then results, other arguments and the rest of the header. Where not all results fit, strings and titles
    are cut; times never are, nor numbers of a usual length.
    """
    firsts = ["header.expid", "header.status", "header.expid.count"]
    firsts += [name for name in columns if name.startswith("args.")][:1]

    def rank(name):
        return [name in firsts, name.startswith(_RESULTS), name.startswith("args."), True].index(True)

    widths = {
        name: (_measure_width(c[1]), max(map(_measure_width, c[2]), default=0)) for name, c in columns.items()
    }
    sizes: "Dict[str, int]"
    for most in _WIDEST_CELLS:
        left, sizes = width, {}
        for name in sorted(columns, key=rank):
            title, cell = widths[name]
            is_string = not columns[name][3] and name != "header.start_time"
            is_cut = is_string or cell > _WIDEST_CELLS[0]
            size = max(min(title, most), min(cell, most) if is_cut else cell)
            if not sizes or size <= left:
                sizes[name] = min(size, width)
                left -= size + 2
        if all(name in sizes or rank(name) > 2 for name in columns):
            break
    return sizes


def _format_table(rows, columns, width=None, is_flat=False, colors=False, messages=()):
    """Format a table for people, as a list of lines; *messages* (one a row) follow each row's last value.

    With a *width*, columns that don't fit are left out, and the last lines name them.
    """
    cells = {c: (*map(_show_controls, _split_title(c, is_flat)), *_format_cells(rows, c)) for c in columns}
    limit = width or sys.maxsize
    sizes = _fit_columns(cells, limit)
    groups, above, place, padded = "", "", 0, []
    for column in filter(sizes.__contains__, columns):
        (group, title, texts, is_numeric), size = cells[column], sizes[column]
        padded.append([_pad(text, size, is_numeric) for text in (title, *texts)])
        if group != above:
            groups = (groups + " " * bool(groups)).ljust(min(place, limit - len(group))) + group
        above, place = group, place + size + 2
    lines = ["  ".join(line).rstrip() for line in zip(*padded)]
    for number, message in enumerate(messages, 1):
        left = min(limit, _LONGEST_LINE) - _measure_width(lines[number]) - 2
        if message and left > 9:
            lines[number] += "  " + _cut(_show_controls(message[:_LONGEST_LINE]), left)
    head = [*filter(None, [groups[:width], lines[0]])]
    is_long = len(rows) > 40  # more than a terminal shows at once
    lines = head + lines[1:] + head * (width is not None and is_long)
    if colors:
        pattern = rf"(?<= )({'|'.join(map(re.escape, _COLORS))})(?= |$)"
        color = lambda match: f"\x1b[{_COLORS[match.group()]}m{match.group()}\x1b[0m"  # noqa: E731
        lines = [re.sub(pattern, color, line, count=1) for line in lines]
    omitted = [_show_controls(column) for column in columns if column not in sizes]
    if omitted:
        from textwrap import wrap

        note = f"Not shown ({len(omitted)}); `| less -S` shows all, --columns some:"
        names = wrap(_cut(", ".join(omitted), 8 * limit), limit, break_on_hyphens=False)
        lines += [_cut(text, limit) for text in (note, *names)]
    return lines


def _shorten_times(rows):
    """Shorten the times in *rows* as ls does: '11-23 09:58', and the date for another year."""
    year = time.strftime("%Y-")
    for row in rows:
        start = row["header.start_time"].replace("T", " ")
        row["header.start_time"] = start[5:16] if start.startswith(year) else start[:10]
        row["header.duration"] = "%7s" % _format_duration(row["header.duration"])


def _format_pairs(title, pairs):
    """Yield a title and lines for each name and string, the strings below each other."""
    pairs = [(_show_controls(name), text) for name, text in pairs]
    longest = max((_measure_width(name) for name, _ in pairs), default=0)
    yield _show_controls(title) + ("" if pairs else ": none")
    for name, text in pairs:
        for line in text.rstrip("\n").split("\n"):
            yield f"{name}{' ' * (longest - _measure_width(name))}  {_show_controls(line)}"
            name = ""


def _format_difference(values, difference):
    # What is not there is an empty cell in a table, but needs a sign here.
    words = " -> ".join(_format_value(value, 6) or "-" for value in values)
    return words + ("" if difference is None else "  (%+.6g)" % difference)


def _read_texts(reader, lines):
    """Return STATUS, and the last *lines* of stdout and stderr, as lists of lines."""
    texts = {name: reader.read_lines(name)[-lines:] for name in ("stdout", "stderr")}
    return {"status": reader.read_lines("STATUS"), **texts}


def _describe_experiment(reader, row, texts):
    """Yield the blocks that `show` prints, lists of lines; *texts* has those of STATUS, stdout and stderr."""
    from collections import defaultdict

    folder, took = os.path.abspath(reader.curexpdir), _format_duration(reader.duration) or "unknown"
    title = f"{reader.expid}  {reader.status}  {reader.status_message}".rstrip()
    pairs = {title: [("folder", folder), ("start", reader.start_time), ("took", took)]}
    row = _flatten(row, 1)
    for number, attempt in enumerate(_get_attempts(reader.metadata), 1):
        row.pop("metadata.attempts", None)
        # --json shows all of an attempt.
        words = "{start-time} to {end-time} on {host}, pid {pid}: {ended}"
        row[f"metadata.attempts.{number}"] = words.format_map(defaultdict(lambda: "-", attempt))
    pairs["args (* is not the default)"] = _take_group(row, "args")
    pairs["summary"], pairs["metadata"] = _take_group(row, "summary"), _take_group(row, "metadata")
    if reader.metrics:
        pairs["metrics (last, least and most at their steps)"] = _describe_metrics(reader.metrics)
    for title in pairs:
        yield [*_format_pairs(title, pairs[title])]
    lines = {
        "stdout, its end": texts["stdout"],
        "stderr, its end": texts["stderr"],
        "STATUS": texts["status"] if len(texts["status"]) > 1 else [],
        "code": [reader.code_warning],
        "could not be read": reader.problems,
    }
    for title in filter(lambda title: any(lines[title]), lines):
        # Of a progress bar, what the carriage returns left to be seen.
        seen = (line.rstrip("\r").rpartition("\r")[2] for line in lines[title])
        yield [title, *("  " + _show_controls(_cut(line, _LONGEST_LINE)) for line in seen)]


def _describe_metrics(rows):
    """Yield each metric's name, and its last, least and most value with their steps, and a curve."""
    for name in dict.fromkeys(name for row in rows for name in row if name not in _AXES):
        points = [(row["step"], row[name]) for row in rows if name in row]
        # Near the largest float, differences overflow.
        finite = [(step, value) for step, value in points if _is_number(value) and abs(value) < 1e300]
        words = [_format_value(points[-1][1], 5)]
        for choose in (min, max) if finite else ():
            step, value = choose(finite, key=lambda point: point[1])
            words.append(f"{choose.__name__} {_format_value(value, 5)} at {_format_value(step)}")
        odd = [step for step, value in points if value is None or (_is_number(value) and value - value != 0)]
        words += [f"not finite from {_format_value(step)}" for step in odd[:1]]
        words += [_draw_curve([value for _, value in finite])] if finite else []
        yield f"  {name}", "  ".join(words)


def _draw_curve(values):
    """Draw *values* as a line of characters: each shows the extreme of its part, so that a spike stays."""
    blocks = "▁▂▃▄▅▆▇█" if _make_encodable("█", sys.stdout) == "█" else "_.-~=+*#"
    low, high, mean, curve = min(values), max(values), sum(values) / len(values), ""
    size = -(-len(values) // 40)
    for start in range(0, len(values), size):
        extreme = max(values[start : start + size], key=lambda value: abs(value - mean))
        curve += blocks[int((extreme - low) / (high - low or 1) * 7.99)]
    return curve


def _take_group(row, group):
    """Yield names and values of a group; arguments that are not the default have a star."""
    for column, value in row.items():
        if column.startswith(group + "."):
            star, default = " ", ""
            if "default_" + column in row and _is_changed(row, column):
                star, default = "*", f"  (default {_format_value(row['default_' + column])})"
            if column == "metadata.packages" and isinstance(value, str):
                value = f"{len(value.splitlines())} (--json lists them)"
            yield f"{star} {column[len(group) + 1 :]}", _format_value(value) + default


def _print(options, lines, rows=(), names=None, **more):
    """Print *lines*; with --json instead the columns *names* (default: all) of *rows*, and *more*."""
    if options.json:
        lines = [_format_json(rows, names or _find_columns(rows), **more)]
    text = "".join(line + "\n" for line in lines)
    if _make_encodable("±", sys.stdout) != "±":
        text = text.replace("±", "+-")
    sys.stdout.write(_make_encodable(text, sys.stdout))


def _print_paths(paths):
    """Print *paths* a line each, as the bytes that they are, whatever the encoding of stdout."""
    text = "".join(path + "\n" for path in paths)
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(os.fsencode(text))
    except AttributeError:  # a StringIO
        sys.stdout.write(text)


# === Run ======================================================================
# Record any command: its stdout and stderr are pipes, with this process in the middle.

_LARGEST_PIPE = 1 << 20
_OPTION = r"(?:--|-?(?=[^=]+=))(?!argv\b)([A-Za-z][\w.-]*)(?:=(.*))?"


def _parse_command(words):
    """Return the arguments in a command's words: `--lr 0.1`, `--lr=0.1`, `-lr=0.1` and `lr=0.1`.

    An option without a value is True. One with several numbers (`--layers 64 32`), or given several times, is
    a list. "argv" holds all words, but None for a value that the rest tells exactly: no two commands have
    equal arguments, and only what differs is shown as different.
    """
    argv = []
    found: "Dict[Any, Any]" = {}
    last: "Any" = None  # the value before this word, True after its option; None if no other may follow
    for word in words:
        text, value = word, _parse_number(word)
        is_option_like = re.match("--|-[A-Za-z]", word)
        if is_option_like or last is None or (last is not True and str in (type(last), type(value))):
            match = re.fullmatch(_OPTION, word, re.DOTALL)
            name, text = match.groups() if match else (None, None)
            values, last = found.setdefault(name, []), True if match and text is None else None
        else:
            last = value
        if text is not None:
            value = _parse_number(text)
            values.append(value)
        # 1.0 and 1e+16 equal 1 and 10000000000000000.
        is_exact = text and str(value) == text and not re.search(r"\.0\Z|e\+", text)
        argv.append((word[: -len(text)] or None) if is_exact else word)
    args = {name: values[0] if len(values) == 1 else values or True for name, values in found.items() if name}
    return {**args, "argv": argv}


def _parse_number(text):
    """Return the number that *text* is, or *text*: a date 2026_03, a code 01234, a commit 12e5678, nan."""
    if re.fullmatch(r"[-+]?(?!0[0-9])[0-9.]+(e[-+]?[0-9]+)?", text, re.IGNORECASE):
        for kind in (int, float):
            try:
                number = kind(text)
            except ValueError:
                continue
            return number if abs(number) < float("inf") else text
    return text


def _list_inherited():
    """Return the open descriptors that we were started with; Python's own are not inherited by a command."""
    found = []
    for descriptor in range(1024):
        try:
            if os.get_inheritable(descriptor):
                found.append(descriptor)
        except OSError:
            pass
    return found


def _read_environment():
    """Return os.environ with LC_CTYPE as it was at the start: in the C locale Python sets it (PEP 538)."""
    environment = dict(os.environ)
    if sys.platform == "linux":
        environment.pop("LC_CTYPE", None)
        environment.update(re.findall(r"(?:\A|\0)(LC_CTYPE)=([^\0]*)", _read_text("/proc/self/environ")))
    return environment


def _block_signals():
    """Block all signals, so that none ends us before the record; return a function that restores them."""
    import signal

    ignored_by_python = {signal.SIGPIPE, signal.SIGXFSZ}  # what they were before is unknown
    valid_signals = getattr(signal, "valid_signals", lambda: range(1, signal.NSIG))  # new in Python 3.8
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, set(valid_signals()) - ignored_by_python)
    # If SIGCHLD is ignored, the kernel keeps no exit status; without a handler, macOS discards it.
    handler = signal.signal(signal.SIGCHLD, lambda signum, frame: None)

    def restore():
        for signum in valid_signals():
            if signum in ignored_by_python or callable(signal.getsignal(signum)):
                signal.signal(signum, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    return restore


def _wait_for_signal():
    """Return the next signal that is blocked, and whether it came to us alone, not to the command as well.

    A limit: a signal that another process sends to our whole process group (`kill -TERM -PGID`) looks like
    one that was sent to us alone, so the command gets it twice.
    """
    import signal

    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        info = signal.sigwaitinfo(blocked)
        signum, from_kernel = info.si_signo, info.si_code > 0
    except AttributeError:  # macOS doesn't tell who sent it
        signum = signal.sigwait(blocked)
        from_kernel = signal.Signals(signum).name in "SIGCHLD SIGINT SIGQUIT SIGTSTP SIGWINCH"
    # The kernel signals the whole foreground of a terminal, but only the session's leader when it hangs up.
    # SIGALRM is that of an alarm(2) set before we were started.
    is_leader = os.getsid(0) == os.getpid() and signum in (signal.SIGHUP, signal.SIGCONT)
    return signum, not from_kernel or is_leader or signum == signal.SIGALRM


def _wait_for_command(process_id, early):
    """Hand signals on until the process has ended; return its wait status.

    *early*: the signals that were pending before it began, and so did not reach it, whoever sent them.
    """
    import signal

    options = os.WNOHANG | os.WUNTRACED | os.WCONTINUED
    while True:
        ended, status = os.waitpid(process_id, options)
        # Stop too, for the shell to notice. Not for SIGSTOP: what stops the command alone continues it alone.
        if os.WIFSTOPPED(status) and os.WSTOPSIG(status) != signal.SIGSTOP:
            os.kill(os.getpid(), signal.SIGSTOP)
            signal.signal(signal.SIGCONT, signal.SIG_DFL)  # discards it, if no stop signal did so
            ended, status = os.waitpid(process_id, options)
            if not ended:  # it has not been continued by the same signal
                os.kill(process_id, signal.SIGCONT)
        if ended and (os.WIFEXITED(status) or os.WIFSIGNALED(status)):
            return status
        signum, is_ours = _wait_for_signal()
        if is_ours or signum in early:
            os.kill(process_id, signum)
        early.discard(signum)


def _write(descriptor, data):
    """Write to a stream of ours; return whether it may be read still."""
    import select

    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # another program has set our terminal so, for itself
            select.select([], [descriptor], [])
        except OSError as error:  # after a full disk or a hangup, the command and the record go on
            return not isinstance(error, BrokenPipeError)
    return True


def _pass_on(pipes, pipe, ended, experiment):
    """Record what comes from *pipe* and write it to the descriptor pipes[pipe]; at its end remove it there.

    When *ended* is closed, only what is left is passed on, because a daemon may never stop writing.
    """
    import select

    ready = [pipe]
    while ended not in ready:
        ready = select.select([pipe, ended], [], [])[0]
        if pipe in ready:
            # The last read takes all that is left. If every read took so much, all would be a tenth slower.
            data = pipe.read(_LARGEST_PIPE if ended in ready else _BLOCK)
            experiment.record_output(("", "stdout", "stderr")[pipes[pipe]], data)
            if not data or not _write(pipes[pipe], memoryview(data)):
                pipe.close()  # so that the command notices, as it would without us
                del pipes[pipe]
                return


def _start_pumps(pipes, ended, experiment):
    """Start a thread for each of *pipes*, so that a stream that is not read does not block the other."""
    from threading import Thread

    threads = [Thread(target=_pass_on, args=(pipes, pipe, ended, experiment)) for pipe in pipes]
    for thread in threads:
        thread.start()
    return threads


def _follow_command(process, inherited, early, experiment):
    """Pass on output and signals until the command has ended; return its wait status."""
    # Another process may wait for the end of a pipe that the command inherited, so our copies are closed.
    for descriptor in set(inherited) - {1, 2}:
        os.close(descriptor)
    pipes = {process.stdout: 1, process.stderr: 2}
    pipes.pop(None, None)
    ended, running = os.pipe()
    threads = _start_pumps(pipes, ended, experiment)
    process.returncode = _wait_for_command(process.pid, early)  # Popen must not wait again
    os.close(running)
    for thread in threads:
        thread.join()
    if pipes and not os.fork():  # daemons of the command hold them open
        for thread in _start_pumps(pipes, os.pipe()[0], experiment):
            thread.join()
        os._exit(0)
    return process.returncode


def _record_command(command, own):
    """Run *command* as an experiment, *own* being Experiment's arguments; return the exit code."""
    import signal
    from subprocess import PIPE, Popen

    inherited = _list_inherited()
    # No file of the record may get the number of a stream that is closed.
    while os.open(os.devnull, os.O_RDWR) <= 2:
        pass
    restore_signals = _block_signals()
    sys.argv = command  # what the record calls the command
    experiment = _name_options(own, Experiment, _parse_command(command), None, **own)
    environment = _read_environment()
    early = signal.sigpending() - {signal.SIGCHLD}
    try:
        if not experiment.is_recording:
            restore_signals()
            os.execvpe(command[0], command, environment)
        stdout, stderr = [PIPE if descriptor in inherited else None for descriptor in (1, 2)]
        process = Popen(
            command, stdout=stdout, stderr=stderr, bufsize=0, close_fds=False, env=environment,
            preexec_fn=restore_signals,
        )  # fmt: skip
    except OSError as error:
        problem = f"{command[0]} can't be run: {_explain(error)}"
        experiment.finish(f"ERROR\n{problem}")
        _warn(f"{problem}.")
        return 126
    status = _follow_command(process, inherited, early, experiment)
    if os.WIFSIGNALED(status):
        signum = os.WTERMSIG(status)
        experiment.finish(_format_kill(signum))
        return 128 + signum
    code = os.WEXITSTATUS(status)
    experiment.finish(f"ERROR\nexit code {code}" if code else "SUCCESS")
    return code


def _run(words):
    """Record a command; return its exit code."""
    import argparse
    from shutil import which

    parser = argparse.ArgumentParser(
        prog="meticulous run",
        usage="%(prog)s [options] -- COMMAND [ARGUMENT ...]",
        description="Record any command: its arguments, output, exit code or signal, memory and time."
        " The exit code is the command's, or 128 + n for a signal.",
    )
    Experiment.add_argument_group(parser)
    position = [*words, "--"].index("--")
    own, command = vars(parser.parse_args(words[:position])), words[position + 1 :]
    if not command:
        parser.error("name a command after --")
    if which(command[0]) is None:
        is_there = os.path.dirname(command[0]) and os.path.exists(command[0])
        _warn(f"{command[0]} " + ("is not executable." if is_there else "can't be found: is it on PATH?"))
        return 126 if is_there else 127
    return _record_command(command, own)


# === Again ====================================================================
# Copy the code of a commit, where it stays while a job waits, and run experiments again in such copies.

_COPIES = ".code"  # in the experiments directory
_CACHES = r"(.*/)?(__pycache__|\.\w+_cache|[^/]*\.py[co])"
_SURROUNDINGS = r"githead-sha|place\.(python|platform|host|gpus)|environment\.|packages\."
_VERDICTS = ["REPRODUCED", "DIFFERS", "FAILED", "NOTHING TO COMPARE"]  # the exit codes are 0, 1, 2 and 3
_PROBE = """
import json, runpy, sys
module = runpy.run_path(sys.argv[1])
print(json.dumps({**module["_describe_command"](), "place": module["_describe_place"]()}))
"""
_SHA256 = "[core]\n\trepositoryformatversion = 1\n[extensions]\n\tobjectFormat = sha256\n"
# Options and operands: name, value and help.
_COPY_OPTIONS = """
--link                   PATH...  link these paths of the work tree, too
--no-links               -        don't link what git ignores
"""
_FREEZE = """
commit         COMMIT  copy this commit, or that of the experiment with this ID; default: HEAD
--allow-dirty  -       copy a snapshot of uncommitted changes
--remove       -       remove the copies that no living run uses
"""
_REPEAT = """
id      ID  the experiment
--rtol  X   numbers count as equal up to this relative difference
"""


def _find_project(options):
    """Return the project's directory, the work tree and the experiments directory that the options mean."""
    project = _find_original(options.project_directory)
    try:
        directory = options.experiments_directory or _find_directory(project)
    except QueryException:
        directory = os.path.join(project, "experiments")  # that of the first experiment
    return project, _find_work_tree(project), _find_original(directory)


def _find_commit(work_tree, name):
    answer = _git(["rev-parse", "--verify", f"{name}^{{commit}}"], work_tree)
    if answer.code:
        raise QueryException(f"There is no commit {name!r} in {work_tree}, and no experiment of that ID.")
    return answer.stdout.decode().strip()


def _copy_repository(work_tree, copy, sha):
    """Make *copy* a repository in which the commit *sha* of *work_tree* is checked out, with its submodules.

    It borrows the objects. Not by `git worktree`, which git 1.8.3 lacks.
    """
    inside = os.path.abspath(_find_shared_directory(work_tree))
    # Its configuration has filters and line ends, without which the same commit gives other files.
    config = _dump_json(os.path.join(inside, "config"), ensure_ascii=False)
    files = {
        "HEAD": sha,
        "objects/info/alternates": os.path.join(inside, "objects"),
        "config": f"{_SHA256 * (len(sha) == 64)}[include]\n\tpath = {config}",
        "info/exclude": "*",  # untracked files are not changes, also with allow_dirty
        _ORIGINAL: work_tree,
    }
    own = os.path.join(copy, ".git")
    os.makedirs(os.path.join(own, "refs"))
    for name, text in files.items():
        path = os.path.join(own, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _create_file(path, os.fsencode(text + "\n"))
    for name in ("info/attributes", "shallow"):  # if they are there
        os.symlink(os.path.join(inside, name), os.path.join(own, name))
    _ask_git("reset -q --hard", copy)
    listing = os.fsdecode(_ask_git("ls-files -s -z", copy))
    for commit, path in re.findall(r"160000 (\w+) 0\t([^\0]+)", listing):
        submodule = os.path.join(work_tree, path)
        if _is_there(submodule, ".git"):
            _copy_repository(submodule, os.path.join(copy, path), commit)


def _add_ignored(work_tree, copy, directory, options):
    """Add to *copy* what git ignores in *work_tree*: Python files as copies, all else as symbolic links."""
    status = _ask_git("status --porcelain -z --ignored -unormal", work_tree)
    ignored = re.findall(r"(?<![^\0])!! ([^\0]+?)/?\0", os.fsdecode(status))
    links = [os.path.relpath(_find_original(path), work_tree) for path in options.link]
    for name in links:
        if name.startswith(os.pardir) or not os.path.exists(os.path.join(work_tree, name)):
            raise QueryException(f"There is no {name!r} in {work_tree}: --link takes paths of the work tree.")
    for name in {*ignored, *links} - {os.path.relpath(directory, work_tree)}:
        source, target = os.path.join(work_tree, name), os.path.join(copy, name)
        is_asked = name in links or not (options.no_links or re.fullmatch(_CACHES, name))
        try:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if name.endswith(".py") and os.path.isfile(source) and not os.path.lexists(target):
                _write_file(target, _read_file(source))
            elif is_asked:
                os.symlink(source, target)
        except (FileExistsError, NotADirectoryError):
            pass  # another process was faster, or this commit has a file there


def _make_copy(work_tree, directory, sha, options):
    """Return the path of the copy of the commit *sha* in the experiments *directory*, which may be new."""
    copy = os.path.join(directory, _COPIES, sha + "-without-links" * options.no_links)
    build = _build_path(directory)
    os.makedirs(os.path.dirname(copy), exist_ok=True)
    try:
        if not os.path.isdir(copy):
            _copy_repository(work_tree, build, sha)
            os.rename(build, copy)
    except OSError:
        if not os.path.isdir(copy):  # else another process was faster
            raise
    finally:
        _remove_folder(build)
    _add_ignored(work_tree, copy, directory, options)
    return copy


def _remove_copies(directory):
    """Remove the copies that no living run uses."""
    readers = Experiments(experiments_directory=directory)
    # By the commit, because a run may use a copy without being started in it.
    used = {reader.sha for reader in readers if reader.status.startswith("RUNNING")}
    copies = os.path.join(directory, _COPIES)
    for name in os.listdir(copies) if os.path.isdir(copies) else ():
        if name.partition("-")[0] not in used:
            hidden = _build_path(directory)
            os.rename(os.path.join(copies, name), hidden)  # so that no process is given a part of it
            _remove_folder(hidden)


def _freeze(options):
    """Print the path of a copy of the project, made once for each commit; returns the exit code."""
    project, work_tree, directory = _find_project(options)
    if options.remove:
        _remove_copies(directory)
        return 0
    if options.commit:
        parent = "" if os.path.dirname(options.commit) else directory  # a path, or an ID
        metadata = _load_mapping(os.path.join(parent, options.commit, "metadata.json"))
        sha = _find_commit(work_tree, metadata.get("githead-sha", options.commit))
    else:
        sha = _prepare_repository(
            work_tree, directory, lambda: os.makedirs(directory, exist_ok=True),
            options.allow_dirty or _is_set("METICULOUS_ALLOW_DIRTY"),
        ).sha  # fmt: skip
    copy = _make_copy(work_tree, directory, sha, options)
    _print_paths([os.path.normpath(os.path.join(copy, os.path.relpath(project, work_tree)))])
    return 0


def _list_values(value, name=""):
    """Yield the names and values of what is in nested dicts and lists: "loss.0", 0.3."""
    if value and isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _list_values(item, f"{name}.{key}" if name else str(key))
    elif name:
        yield name, value


def _is_close(first, second, rtol):
    """Return whether two different numbers are equal up to the relative difference *rtol*."""
    try:
        return abs(first - second) / max(abs(first), abs(second)) <= rtol
    except OverflowError:  # an int that is too large for a float
        return False


def _compare_values(values, rtol=0):
    """Return {name: "old -> new"} of what differs between two dicts, nested ones too; NaN equals NaN."""
    old, new = (dict(_list_values(value)) for value in values)
    different = {}
    for name in {**old, **new}:
        pair: "Any" = (old.get(name), new.get(name))
        first, second = pair
        if first == second or (first != first and second != second):
            continue
        if not (rtol and all(map(_is_number, pair)) and _is_close(first, second, rtol)):
            different[name] = " -> ".join(_dump_cell(value) or "-" for value in pair)
    return different


def _list_surroundings(metadata):
    """Return what may explain that a result differs."""
    packages = dict(re.findall("(?m)^(.*)==(.*)", _get_part(metadata, "packages", str)))
    values = _list_values({**metadata, "packages": packages})
    return {name: value for name, value in values if re.match(_SURROUNDINGS, name)}


def _list_missing(values, recorded, copy, directory):
    """Return the paths among *values* that are missing in the *copy* of *recorded*, except *directory*."""
    return sorted(
        repr(value)
        for value in {str(value).rpartition("=")[2] for value in values}
        if " " not in value
        and not os.path.exists(os.path.join(copy, value))
        and os.path.realpath(os.path.join(recorded, value)) != os.path.realpath(directory)
        # Not a date, a URL, or the name of a model, "facebook/opt-125m".
        and os.path.exists(os.path.join(recorded, value.partition("/")[0] or "/"))
    )


def _probe(executable, place):
    """Return what a record that *executable* began now would have as metadata; {} if it can't say."""
    from subprocess import DEVNULL, PIPE, run

    answer = run([executable, "-c", _PROBE, os.path.abspath(__file__)], stdout=PIPE, stderr=DEVNULL, **place)
    try:
        return _parse_object(answer.stdout.splitlines()[-1])
    except (IndexError, ValueError):  # it failed, or the environment prints something at its end
        return {}


def _run_again(command, stdout, place):
    """Run a command to its end, passing signals on; returns its process id."""
    from subprocess import Popen

    restore_signals = _block_signals()
    process = Popen(command, stdout=stdout, preexec_fn=restore_signals, **place)
    process.returncode = _wait_for_command(process.pid, set())
    restore_signals()
    return process.pid


def _find_repetition(directory, old, process_id):
    """Return the reader of what the process *process_id* has just recorded; None if there is nothing."""
    readers = [
        reader
        for reader in Experiments(experiments_directory=directory)
        if reader.metadata.get("repeats") == old.expid
        and process_id in (attempt.get("pid") for attempt in _get_attempts(reader.metadata))
    ]
    # A script may make several. The last, because the process id may have been another's before.
    return min(reversed(readers), key=lambda reader: reader.args != old.args, default=None)


def _prepare_repetition(old, work_tree, directory, copy):
    """Return the command that repeats *old* in *copy*, and Popen's keywords for it."""
    top, experiments = os.path.realpath(work_tree), re.escape(os.path.relpath(directory, work_tree))
    in_copy = rf"(?s)(?:{experiments}/{re.escape(_COPIES)}/[^/]+/|(?!{experiments}/|\.\./))(.*)"

    def replace(match):
        # A path in the work tree, or in a copy of it, is in the copy now, but for those of experiments.
        path = match.group()
        for parent in reversed([*_list_parents(path)]):
            name = os.path.relpath(os.path.realpath(parent) + path[len(parent) :], top)
            found = re.fullmatch(in_copy, name + "/")
            if found:
                return os.path.normpath(os.path.join(copy, found.group(1)))
        return path

    executable, folder = (_get_part(old.metadata, name, str) for name in ("executable", "directory"))
    words = [str(word) for word in _get_part(old.metadata, "command-line", list)]
    if words[1:2] in ([], ["-"]):
        raise QueryException(
            f"{old.curexpdir} can't be repeated: the record does not tell how it was started."
        )
    # At most so many characters, because _list_parents() is recursive.
    path = "(?<![^=:])/[^:]{,999}"
    texts = folder, os.environ.get("PYTHONPATH", ""), *words[1:]
    folder, modules, *words = (re.sub(path, replace, text) for text in texts)
    if not os.path.isdir(folder):
        raise QueryException(f"{old.curexpdir} ran in {folder}, which is not there.")
    if not os.access(executable, os.X_OK):
        _warn(f"{executable} is not there any more: {sys.executable} runs it.")
        executable = sys.executable
    own = {_REPEATS_VARIABLE: old.expid, "PYTHONPATH": modules, "METICULOUS_NORECORD": ""}
    return [executable, *words], {"cwd": folder, "env": {**_read_environment(), **own}}


def _repeat(options):
    """Run an experiment again and print the verdict; returns its exit code."""
    rtol = options.rtol or "0"
    if not re.fullmatch(r"[0-9]*\.?[0-9]+([eE]-?[0-9]+)?", rtol):
        raise QueryException(f"--rtol {rtol!r} is not a number from 0 on.")
    try:
        old = _find_reader(options, options.id)
    except _NothingFound as error:  # its exit code, 1, would mean DIFFERS
        raise QueryException(str(error)) from None
    options.experiments_directory = os.path.dirname(old.curexpdir)
    _, work_tree, directory = _find_project(options)
    copy = _make_copy(work_tree, directory, _find_commit(work_tree, old.sha), options)
    command, place = _prepare_repetition(old, work_tree, directory, copy)

    def explain(metadata):
        changes = _compare_values(map(_list_surroundings, (old.metadata, metadata)))
        recorded = _get_part(old.metadata, "directory", str)
        values = [*command, *dict(_list_values(old.args)).values()]
        missing = _list_missing(values, recorded, place["cwd"], directory)
        return {**changes, "not there": ", ".join(missing)} if missing else changes

    metadata = {**old.metadata, **_probe(command[0], place)}
    for item in explain(metadata).items():
        _warn(": ".join(item))
    new = _find_repetition(
        directory, old, _run_again(command, sys.stderr if options.json else None, place)
    )  # fmt: skip
    verdict, differences = "FAILED", {}
    if new and new.status == "SUCCESS":
        differences = _compare_values([old.summary, new.summary], float(rtol))
        verdict = "DIFFERS" if differences else "REPRODUCED"
        verdict = verdict if old.summary else "NOTHING TO COMPARE"
    changes = explain(new.metadata if new else metadata)
    result = f"{new.expid}: {new.status} {new.status_message}".rstrip() if new else "nothing was recorded"
    lines = [f"{verdict}  {old.expid} -> {result}"]
    for title, pairs in (("summary", differences), ("what else differs", changes)):
        if pairs:
            lines += _format_pairs(title, pairs.items())
    rows = [_read_row(reader) for reader in (old, new) if reader and options.json]
    _print(options, lines, rows, verdict=verdict, differences=differences, changes=changes)
    return _VERDICTS.index(verdict)


# === Report ===================================================================
# Write one HTML page that loads nothing: a table, curves as SVG, and the story of each run.

# The most stories and curves of runs, plots, runs in color, and points of a curve: plots have fewer pixels.
_MOST_STORIES, _MOST_PLOTS, _MOST_COLORS, _MOST_POINTS = 200, 50, 10, 500
_LONGEST_PATCH = 20000
_LAST_COLUMNS = ("header.start_time", "header.duration", "header.status_message")
# Canvas is the background of the scheme, light or dark, and a transparent grey is visible on both.
_STYLE = """
:root { color-scheme: light dark; background: Canvas }
body { margin: 0 auto; padding: 1rem 1rem 3rem; max-width: 110rem; font: 15px/1.5 system-ui, sans-serif }
h1, a, summary, figcaption, pre { overflow-wrap: anywhere; color: inherit }
h1, h2 { margin: 1.2rem 0 .4rem; font-size: 1.3rem }
h3 { margin: 1rem 0 .2rem; font-size: 1rem }
small { opacity: .75; font-size: .85rem; font-weight: normal }
td, li, pre, figcaption { unicode-bidi: isolate }
.scroll { margin: 1rem 0; width: fit-content; max-width: 100%; overflow-x: auto; border: 1px solid #8885 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; text-align: left; vertical-align: top; white-space: nowrap }
tr, details { border-top: 1px solid #8885 }
thead th { vertical-align: bottom; background: #8882 }
tbody th { position: sticky; left: 0; background: Canvas }
.number:not(:first-child) { text-align: right }
.message { min-width: 16rem; white-space: normal; overflow-wrap: anywhere }
.bad { background: #f003 }
button { all: unset; outline: revert; cursor: pointer }
button::after { content: " \\2195"; opacity: .6 }
[aria-sort=ascending] button::after { content: " \\2191"; opacity: 1 }
[aria-sort=descending] button::after { content: " \\2193"; opacity: 1 }
tr.on > *, li.on { background: linear-gradient(#8884, #8884) Canvas }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.2rem; padding: 0; list-style: none }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1rem }
figure { margin: 0; min-width: 0; break-inside: avoid }
svg { display: block; width: 100% }
svg.key { display: inline; width: 2rem; height: .7rem; margin-right: .3rem }
text { font-size: 110px; fill: currentColor; opacity: .75 }
path { fill: none; stroke: #888; stroke-width: 16; stroke-linecap: round; stroke-linejoin: round }
.grid, .grey { stroke-opacity: .45; stroke-width: 10 }
path.band { fill: #888; fill-opacity: .25; stroke: none }
.picking figure [data-run]:not(.on) { stroke-opacity: .2; fill-opacity: .05 }
path.on { stroke-width: 32; stroke-opacity: 1 }
#picked { position: fixed; bottom: 0; left: 0; margin: 0; background: CanvasText; color: Canvas }
details > * { padding: .3rem; scroll-margin-top: 3rem }
pre { margin: 0; padding: .5rem; background: #8882; white-space: pre-wrap }
@media (max-width: 40rem) { table { font-size: .85rem } th, td { padding: .2rem .35rem } }
@media print { :root, body { font-size: 9px } th, td { white-space: normal } .message { min-width: 0 } }
.c0 { stroke: #1f77b4; stroke-dasharray: none }
path.band.c0 { fill: #1f77b4 }
.c1 { stroke: #d1520f; stroke-dasharray: 70 30 }
path.band.c1 { fill: #d1520f }
.c2 { stroke: #0f8a5f; stroke-dasharray: 20 40 }
path.band.c2 { fill: #0f8a5f }
.c3 { stroke: #c0399f; stroke-dasharray: 90 40 20 40 }
path.band.c3 { fill: #c0399f }
.c4 { stroke: #7a5fd0; stroke-dasharray: 140 40 }
path.band.c4 { fill: #7a5fd0 }
.c5 { stroke: #a0702a; stroke-dasharray: 40 40 }
path.band.c5 { fill: #a0702a }
.c6 { stroke: #0a8fa3; stroke-dasharray: 90 30 20 30 20 30 }
path.band.c6 { fill: #0a8fa3 }
.c7 { stroke: #d63a5a; stroke-dasharray: 10 30 }
path.band.c7 { fill: #d63a5a }
.c8 { stroke: #6b8a1a; stroke-dasharray: 180 30 40 30 }
path.band.c8 { fill: #6b8a1a }
.c9 { stroke: #6a7280; stroke-dasharray: 50 20 10 20 }
path.band.c9 { fill: #6a7280 }
"""
_SCRIPT = """
const all = selector => [...document.querySelectorAll(selector)];
let picked;
function pick(run) {
  if (run === picked) return;
  picked = run;
  all(".on").forEach(element => element.classList.remove("on"));
  const found = run ? all(`[data-run="${run}"]`) : [];
  for (const element of found) {
    element.classList.add("on");
    if (element.matches("figure path")) element.parentNode.append(element);  // the last is in front
  }
  document.body.classList.toggle("picking", found.length > 0);
  const path = found.find(element => element.matches("figure path"));
  document.getElementById("picked").textContent = path ? path.textContent : "";
}
const offsets = [0, -2, 2, -4, 4];
function find(event) {  // lines are thin: look around the pointer too
  const run = event.target.closest("[data-run]");
  if (run || !event.target.closest("figure")) return run;
  const points = offsets.flatMap(x => offsets.map(y => [event.clientX + x, event.clientY + y]));
  return points.map(point => document.elementFromPoint(...point)).find(near => near?.matches("[data-run]"));
}
for (const type of ["pointermove", "focusin"])
  document.addEventListener(type, event => pick(find(event)?.dataset.run));
document.addEventListener("keydown", event => { if (event.key === "Escape") pick(); });
const titles = all(".runs thead th");
titles.forEach((th, column) => {
  const button = document.createElement("button");
  button.append(...th.childNodes);
  th.append(button);
  button.addEventListener("click", () => {
    const sign = th.ariaSort === "ascending" ? -1 : 1;
    titles.forEach(other => { other.ariaSort = "none"; });
    th.ariaSort = sign > 0 ? "ascending" : "descending";
    const rows = all(".runs tbody tr").map(row => {  // numbers, then strings; what is missing is last
      const text = row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      return { row, text, kind: text === "" ? 2 : isNaN(text) ? 1 : 0 };
    });
    rows.sort((a, b) => a.kind - b.kind || sign * (a.kind ? a.text.localeCompare(b.text) : a.text - b.text));
    document.querySelector(".runs tbody").append(...rows.map(item => item.row));
  });
});
"""
_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; base-uri 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{}</title><style>{}</style></head>
<body><main><h1>{}</h1><small>Written {}</small>
{}
</main><p id="picked" role="status"></p><script>{}</script></body></html>
"""


def _escape(value, longest=2000):
    """Return *value* as HTML: markup escaped, control and bidi characters made visible."""
    from html import escape

    text = str(value)
    return escape(_show_controls(text[:longest] + "..." * (len(text) > longest)))


def _can_draw(values, least):
    """Return whether all *values* are numbers above *least* and far enough from the largest float."""
    try:
        # Differences of larger ones overflow. min() may overlook a NaN, the sum can't.
        return min(values) > least and sum(map(abs, values)) < 1e300
    except (TypeError, OverflowError):
        return False


def _read_curves(reader, least, is_thinned):
    """Return {name: (steps, values, gaps)} of a run's metrics, without what can't be drawn.

    gaps: for each value how many were left out before it; the last entry is their total.
    """
    from itertools import accumulate, chain, compress

    curves: "Dict[str, Any]" = {}
    rows = [row for row in reader.metrics if abs(row["step"]) < 1e300]
    for name in [name for name in dict.fromkeys(chain.from_iterable(rows)) if name not in _AXES]:
        steps, values = ([row[key] for row in rows if name in row] for key in ("step", name))
        gaps = [0] * (len(values) + 1)
        if not _can_draw(values, least):
            is_drawn = [_can_draw([value], least) for value in values]
            counts = list(accumulate(not is_good for is_good in is_drawn))
            steps, values = list(compress(steps, is_drawn)), list(compress(values, is_drawn))
            gaps = [*compress(counts, is_drawn), counts[-1]]
        # At once, while the values are in the processor's cache: it is twice as fast.
        curves[name] = _thin(steps, values, gaps) if is_thinned else (steps, values, gaps)
    return curves


def _merge_curves(curves):
    """Return the mean, the minimum and the maximum of several runs at each step, as three curves."""
    by_step: "Dict[float, List[float]]" = {}
    for steps, values, _ in curves:
        for step, value in zip(steps, values):
            by_step.setdefault(step, []).append(value)
    steps = sorted(by_step)
    groups, gaps = [by_step[step] for step in steps], [0] * (len(steps) + 1)
    mean = lambda group: sum(group) / len(group)  # noqa: E731
    return [(steps, list(map(compute, groups)), gaps) for compute in (mean, min, max)]


def _thin(steps, values, gaps):
    """Return a curve with at most _MOST_POINTS: both ends, and the extremes of each bucket."""
    from operator import itemgetter

    count = len(values)
    if count <= _MOST_POINTS:
        return steps, values, gaps
    size = -(-count // (_MOST_POINTS // 2 - 1))
    padded = values + values[-1:] * (-count % size)
    columns = [padded[n::size] for n in range(size)]  # the first of each bucket, the second, ...
    extremes = {0, count - 1}
    for choose in (min, max):
        extremes.update(map(padded.index, map(choose, *columns), range(0, count, size)))
    choose_kept = itemgetter(*sorted(extremes))
    # A sum is a new object. Drawing is twice as fast if the kept numbers are neighbors in memory.
    steps, values = ([number + 0 for number in choose_kept(numbers)] for numbers in (steps, values))
    return steps, values, [*choose_kept(gaps), gaps[-1]]


def _find_axis(ends, least):
    """Return both ends of an axis, made to differ, and round numbers around them, at least *least* apart."""
    from math import ceil, floor, log10

    low, high = min(ends), max(ends)
    if high - low <= max(abs(low), abs(high), 1e-280) * 1e-9:
        low, high = low - (abs(low) / 10 or 1), high + (abs(high) / 10 or 1)
    power = 10.0 ** floor(log10((high - low) / 5))
    step = max(least, next(power * n for n in (1, 2, 5, 10, 20) if (high - low) / (power * n) <= 5))
    return low, high, [n * step for n in range(floor(low / step), ceil(high / step) + 1)]


def _draw_path(number, curve, frame, kind=""):
    """Return the SVG path of a curve, which begins anew after a gap; *frame* is of _draw_plot()."""
    left, x_scale, top, y_scale = frame
    steps, values, gaps = curve
    start, go_on = "M%d %dh0", "L%d %d"  # h0 makes a dot of a single point
    commands = start + go_on * (len(steps) - 1)
    if gaps[-1]:
        commands = "".join(go_on if gap == last else start for gap, last in zip(gaps, [None, *gaps[:-2]]))
    numbers = [0.0] * (2 * len(steps))
    numbers[::2] = [(step - left) * x_scale for step in steps]
    numbers[1::2] = [(top - value) * y_scale for value in values]
    color = f"c{number}" if number < _MOST_COLORS else "grey"
    return f'<path class="{color}{kind}" data-run="{number}" d="{commands % tuple(numbers)}">'


def _draw_key(number):
    path = _draw_path(number, ([1, 29], [0, 0], [0, 0]), (0, 10, 5, 10))
    return f'<svg class="key" viewBox="0 0 300 100" aria-hidden="true">{path}</path></svg>'


def _draw_axes(frame, width, height, x_ticks, y_ticks, y_names):
    """Yield lines at the ticks, and their names, in tenths of a pixel, like everything in a plot."""
    left, x_scale, top, y_scale = frame
    for tick, name in zip(y_ticks, y_names):
        y = (top - tick) * y_scale
        yield f'<path class="grid" d="M0 {y:.0f}H{width}"/>'
        yield f'<text x="-60" y="{y + 40:.0f}" text-anchor="end">{name}</text>'
    for tick in x_ticks:
        x = (tick - left) * x_scale
        yield f'<path class="grid" d="M{x:.0f} {height}v40"/>'
        yield f'<text x="{x:.0f}" y="{height + 160}" text-anchor="middle">{tick:.12g}</text>'
    yield f'<text x="{width // 2}" y="{height + 310}" text-anchor="middle">step</text>'


def _draw_plot(name, series, is_banded, is_log):
    """Return a figure with the curve *name* of each of *series*, {label: [curves of a run, ...]}."""
    from math import log10

    lines, left_out = [], 0
    for number, (label, runs) in enumerate(series.items()):
        found = [curves[name] for curves in runs if name in curves]
        left_out += sum(gaps[-1] for _, _, gaps in found)
        found = [_thin(*curve) for curve in (_merge_curves(found) if is_banded else found) if curve[0]]
        found = [(x, list(map(log10, y)) if is_log else y, gaps) for x, y, gaps in found]
        lines += [(number, label, found)] if found else []
    notes = ["log scale"] * is_log + ["mean; band: minimum to maximum"] * is_banded
    notes += [f"{left_out} values are not {'positive' if is_log else 'finite'}: left out"] * (left_out > 0)
    caption = f"<figcaption><b>{_escape(name, 200)}</b> <small>{'; '.join(notes)}</small></figcaption>"
    parts = [part for _, _, line in lines for part in line]
    if not parts:
        return f"<figure>{caption}</figure>"
    x_ends, y_ends = ([end for p in parts for end in (min(p[axis]), max(p[axis]))] for axis in (0, 1))
    low, high, x_ticks = _find_axis(x_ends, all(isinstance(end, int) for end in x_ends))
    _, _, y_ticks = _find_axis(y_ends, is_log)  # if is_log, whole powers of ten
    # A power of ten may be larger than any float.
    y_names = [
        f"1e{tick:.0f}" if is_log and abs(tick) > 4 else f"{10.0**tick if is_log else tick:.12g}"
        for tick in y_ticks
    ]
    left = 120 + 65 * max(map(len, y_names))
    width, height = 3360 - left, 1660
    frame = low, width / (high - low), y_ticks[-1], height / (y_ticks[-1] - y_ticks[0])
    x_ticks = [tick for tick in x_ticks if low <= tick <= high]
    drawing = [*_draw_axes(frame, width, height, x_ticks, y_ticks, y_names)]
    for number, label, (curve, *edges) in reversed(lines):  # those in color in front of the grey
        end = f"<title>{_escape(label)}</title></path>"
        if edges:
            outline = [low + high[::-1] for low, high in zip(*edges)]
            drawing.append(_draw_path(number, outline, frame, " band") + end)
        drawing.append(_draw_path(number, curve, frame) + end)
    return (
        f'<figure>{caption}<svg viewBox="0 0 3600 2100" role="img" aria-label="{_escape(name, 200)} over '
        f'steps"><g transform="translate({left} 80)">{"".join(drawing)}</g></svg></figure>'
    )


def _draw_plots(series, is_banded=False, is_log=False):
    """Return the plots of all metrics of *series*; '' if there are none."""
    names = list(dict.fromkeys(name for runs in series.values() for curves in runs for name in curves))
    plots = [_draw_plot(name, series, is_banded, is_log) for name in names[:_MOST_PLOTS]]
    plots += [f"<p>{len(names) - _MOST_PLOTS} more metrics are not drawn.</p>"] * (len(names) > _MOST_PLOTS)
    return f'<div class="plots">{"".join(plots)}</div>' if names else ""


def _make_cell(value, column):
    """Return the attributes and the content of a table's cell; data-value is what it is sorted by."""
    is_duration = column == "header.duration" and _is_number(value)  # a group has a string
    text = _format_duration(value) if is_duration else _format_cell(column, value)
    if column == "header.start_time":
        text = text[:16].replace("T", " ")
    if column == "header.status_message":
        return "", f'<div class="message">{_escape(text, 300)}</div>'
    attributes = f' class="number" data-value="{value!r}"' if _is_number(value) else ""
    return ' class="bad"' if value in ("ERROR", "DEAD") else attributes, _escape(text, 60)


def _make_table(rows, columns, is_flat, numbers, links):
    """Return the table; *numbers* (of curves) and *links* (to stories) have one for each row, or None."""
    head, body = "", ""
    for column in columns:
        group, title = _split_title(column, is_flat)
        kind = "number" if any(_is_number(row.get(column)) for row in rows) else ""
        head += f'<th scope="col" class="{kind}"><small>{_escape(group)}</small><br>{_escape(title, 60)}</th>'
    for row, number, link in zip(rows, numbers, links):
        (first, text), *others = (_make_cell(row.get(column), column) for column in columns)
        text = f'<a href="#{link}">{text}</a>' if link else text
        run, key = ("", "") if number is None else (f' data-run="{number}"', _draw_key(number))
        cells = "".join(f"<td{attributes}>{content}</td>" for attributes, content in others)
        body += f'<tr{run}><th scope="row"{first}>{key}{text}</th>{cells}</tr>\n'
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of the runs"><table class="runs">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _list_blocks(reader, row):
    """Return the parts of a run's story, each a title and lines: what `show` prints, and the patch."""
    patch = _read_text(os.path.join(reader.curexpdir, "snapshot.patch"))
    cut = patch[:_LONGEST_PATCH] + "\n..." * (len(patch) > _LONGEST_PATCH)
    blocks = _describe_experiment(reader, row, _read_texts(reader, 20))
    return [block for block in [*blocks, ["snapshot.patch", *cut.splitlines()]] if len(block) > 1]


def _make_story(blocks):
    """Return a run's story as HTML."""
    story = ""
    for title, *lines in blocks:
        text = "\n".join(map(_escape, lines))
        story += f"<h3>{_escape(title)}</h3><pre>\n{text}</pre>"
    return story


def _make_page(title, body):
    """Return an HTML page that may load nothing and run only our own script."""
    from base64 import b64encode
    from hashlib import sha256

    hashes = (b64encode(sha256(text.encode()).digest()).decode() for text in (_STYLE, _SCRIPT))
    title, written = _escape(title), _local_time()[:16].replace("T", " ")
    return _PAGE.format(*hashes, title, _STYLE, title, written, body, _SCRIPT)


def _name_rows(rows, over=()):
    """Return a function that names the curves of a row: by its id and the arguments that differ."""
    args = [c for c in _find_columns(rows) if c.startswith("args.") and c not in over]
    columns = [column for column in args if _varies(rows, column)]

    def name_row(row):
        label = " ".join(f"{c[5:]}={_format_value(row.get(c))}" for c in columns)
        return label if over else f"{row.get('header.expid')}  {label}".rstrip()

    return name_row


def _make_legend(series, links):
    items = [
        f'<li data-run="{number}"><a href="#{links[name]}">{_draw_key(number)}{_escape(name, 80)}</a></li>'
        for number, name in enumerate(series)
    ]
    grey = len(items) - _MOST_COLORS
    items[_MOST_COLORS:] = [f"<li>{grey} more in grey</li>"] * (grey > 0)
    return f'<h2>Curves</h2><ul class="legend">{"".join(items)}</ul>' if items else ""


def _make_report(directory, rows, table, columns, over=(), is_log=False, is_flat=False):
    """Return the page of the experiments in *directory*.

    rows: of all of them; table: the rows to show, grouped or not; over: arguments whose runs share a band.
    """
    runs = table if table[0] in rows else rows  # these are groups of runs otherwise
    name_run, name_row = _name_rows(rows), _name_rows(rows, over)
    names = [name_row(row) for row in table]
    series: "Dict[str, List[Any]]" = {name: [] for name in names}
    links: "Dict[str, str]" = {}
    stories, least = "", 0 if is_log else -1e300
    for number, row in enumerate(runs[:_MOST_STORIES]):
        name, reader = name_row(row), ExperimentReader(os.path.join(directory, row["header.expid"]))
        # As in the table, without asking Slurm again.
        for field in ("status", "status_message", "cause"):
            setattr(reader, field, row["header." + field])
        series.setdefault(name, []).append(_read_curves(reader, least, not over))
        links.setdefault(name, f"r{number}")
        reader.metrics = []  # drawn, so the story need not describe them
        title = f"{_escape(name_run(row), 120)} <small>{_escape(reader.status)}</small>"
        story = _make_story(_list_blocks(reader, row))
        stories += f'<details><summary>{title}</summary><div id="r{number}">{story}</div></details>'
    series = {name: found for name, found in series.items() if any(found)}
    # What differs and the results are seen first.
    columns = sorted(columns, key=lambda column: column in _LAST_COLUMNS)
    numbers = {name: number for number, name in enumerate(series)}
    note = f"<p>Curves and stories are of the first {_MOST_STORIES} runs.</p>" * (len(runs) > _MOST_STORIES)
    body = _make_table(table, columns, is_flat, map(numbers.get, names), map(links.get, names))
    body += _make_legend(series, links) + _draw_plots(series, bool(over), is_log)
    place = "/".join(os.path.abspath(directory).split(os.sep)[-2:])
    title = f"{len(runs)} run{'s' * (len(runs) > 1)} in {place}"
    return _make_page(title, f"{note}{body}<h2>Runs</h2>{stories}")


def _format_story(reader, extension):
    """Return the story of one run, as Markdown (".md") or HTML (".html")."""
    blocks, title = _list_blocks(reader, _read_row(reader)), f"Run {reader.expid}"
    if extension == ".html":
        plots = _draw_plots({title: [_read_curves(reader, -1e300, True)]})
        return _make_page(title, plots + _make_story(blocks))
    text = ""
    for name, *lines in [["# " + title], *blocks]:
        # Indented lines are code, whatever they hold.
        text += "## " * bool(lines) + f"{_escape_markdown(name)}\n\n"
        text += "".join(f"    {_show_controls(line)}\n" for line in lines) + "\n"
    return text


# === Command line =============================================================
# List, show and compare experiments.

_EXIT_NOTHING, _EXIT_WRONG = 1, 2
_FRONT = ["header.expid", "header.status", "header.start_time", "header.duration"]
_FORMATS: "Dict[str, Any]" = {
    ".csv": _format_csv,
    ".json": _format_json,
    ".md": _format_markdown,
    ".tex": _format_latex,
    ".pd": None,
}
# Options and operands of commands: name, value and help. N is a number, three dots mean one value or more.
_JSON = """
--json                   -           print JSON: {"rows": [{"args.lr": 0.1, ...}], ...}
"""
_COMMON = """
--project-directory      DIR         look for 'experiments' from here upwards
--experiments-directory  DIR         where the experiments are
"""
_SELECTION = """
directory                DIRECTORY   where the experiments are; default: the project's 'experiments'
--filter                 EXPRESSION  only rows where it is true: 'args.lr < 1 and args.seed == 3'
--groupby                COLUMN...   a row for each value: mean, std, count
--over                   COLUMN...   a row for all that differ only in it: mean ± std (count)
--sort                   COLUMN...   sort, largest first
--sort-reverse           COLUMN...   sort, smallest first
--head                   N           only the first N rows
--tail                   N           only the last N rows
--columns                PREFIX...   only columns whose names begin so
--args                   none|truncated|non-default|all  which arguments to show
--normalize-json-values  N           make N levels of dicts columns
--flat-cols              -           write titles as names: args.lr
"""
_OUTPUT = """
--list-columns           -           print the names of the columns
--export                 FILE        write the table to FILE.csv, .json, .md, .tex or .pd (pandas); - is CSV
--version                -           print the version, and git's hash of this very file
"""
_EPILOG = """\
commands (meticulous COMMAND --help describes each):
  show      Show everything about one experiment.
  diff      Compare two experiments: arguments, results and commits.
  report    Write experiments, their curves and stories as one HTML page.
  path      Print the path of an experiment, or of all that match a filter.
  describe  Change the description of an experiment that has ended.
  run       Record any command: run [OPTIONS] -- COMMAND [ARGUMENT ...]
  freeze    Print the path of a copy of the code, which stays as it is.
  repeat    Run an experiment again, and compare the results.

An ID is a number, or the unambiguous beginning of another name; -1 is the
latest; what has a slash in it is the path of an experiment's folder.
Columns are named header.status, args.lr, summary.loss; see --list-columns.
Exit code: 0 fine, 1 nothing found, 2 wrong use or error; of `run` the
command's; of `repeat` 0 reproduced, 1 differs, 2 failed, 3 no results.
"""


def _parse(name, words):
    """Parse the options and operands of the command *name*."""
    import argparse
    from functools import partial

    class Parser(argparse.ArgumentParser):
        def error(self, message):
            super().error(_show_controls(message))

    def count(text):
        if not text.isdecimal():
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
        return int(text)

    parser = Parser(
        prog=f"meticulous {name}".strip(),
        epilog=_EPILOG,
        # Given a width, it need not import shutil to ask the terminal.
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=27, width=79),
    )
    for line in filter(None, (_COMMON + _COMMANDS[name][1]).split("\n")):
        option, value, text = line.split(None, 2)
        kind: "Any" = {"metavar": value, "default": ""}
        if value == "-":
            kind = {"action": "store_true"}
        elif value == "N":
            kind = {"metavar": value, "type": count}
        elif value.endswith("..."):
            kind = {"metavar": value[:-3], "nargs": "+", "default": []}
        elif "|" in value:
            kind = {"choices": value.split("|")}
        elif option[0] != "-":
            kind = {"metavar": value, "nargs": "?"}
        parser.add_argument(option, help=text, **kind)
    # The package's options are spelled with underscores.
    return parser.parse_args([re.sub("^--[^=]*", lambda m: m.group().replace("_", "-"), w) for w in words])


def _path(options):
    """Print the path of an experiment, or of each one that matches a filter, for xargs."""
    if options.filter:
        options.directory = options.id
        directory = _get_directory(options)
        rows, _, _ = _load_rows(directory, _choose_groups([options.filter]), 0)
        rows = _filter_rows(rows, _find_columns(rows), options.filter) if rows else []
        paths = [os.path.join(directory, row["header.expid"]) for row in rows]
    else:
        paths = [_find_reader(options, options.id).curexpdir]
    paths = list(map(os.path.abspath, paths))
    if options.json:
        _print(options, (), [{"header.expid": os.path.basename(path), "path": path} for path in paths])
    else:
        _print_paths(paths)
    return 0 if paths else _EXIT_NOTHING


def _change_description(options):
    """Change the description of an experiment that has ended."""
    reader = _find_reader(options, options.id)
    if reader.status in ("RUNNING", "RUNNING?"):
        raise QueryException(
            f"{reader.curexpdir} is still running, and writes its metadata at the end: wait for it."
        )
    if options.text is None:
        raise QueryException("Name the new description after the ID; '' takes the old one away.")
    path = os.path.join(reader.curexpdir, "metadata.json")
    _write_file(path, _encode_json({**_load_mapping(path), "description": options.text}))


def _show(options):
    reader = _find_reader(options, options.id)
    if options.export:
        extension = _find_extension(options.export, (".md", ".html"))
        _write_output(options.export, _format_story(reader, extension))
        return
    row, texts = _read_row(reader), _read_texts(reader, 10)
    blocks = map("\n".join, _describe_experiment(reader, row, texts))
    _print(options, ["\n\n".join(blocks)], [row], problems=_list_problems([reader]), **texts)


def _diff(options):
    readers = [_find_reader(options, text) for text in (options.id, options.second)]
    readers[1]._scheduler = readers[0]._scheduler  # so that Slurm is asked once
    rows = [_read_row(reader) for reader in readers]
    differences, stat = _list_differences(rows), _diff_commits(readers)
    pairs = [(d["column"], _format_difference(d["values"], d["difference"])) for d in differences]
    names = [reader.expid for reader in readers]
    warnings = [f"{reader.expid}: {reader.code_warning}" for reader in readers if reader.code_warning]
    packages = [set(_get_part(reader.metadata, "packages", str).split("\n")) for reader in readers]
    changed = [" ".join(sorted(own - other)) or "-" for own, other in (packages, packages[::-1])]
    lines = [*_format_pairs(" -> ".join(names), pairs), ""]
    lines += map(_show_controls, [*stat.split("\n"), *warnings])
    if changed != ["-", "-"]:
        lines += ["", *_format_pairs("packages", zip(names, changed))]
    more = {"stat": stat, "packages": changed, "problems": _list_problems(readers)}
    _print(options, lines, rows, differences=differences, **more)


def _print_version(options):
    """Print the version, and the name that git has for this very file, so that an edited copy shows."""
    content = globals()["__loader__"].get_data(__file__)  # it may be in a zip file
    version = f"meticulous {__version__}, git blob {_hash_object('blob', content, 40)}"
    _print(options, [version], version=version)


def _list(options):
    if options.version:
        return _print_version(options)
    extension = options.export and _find_extension(options.export, _FORMATS, ".csv")
    levels = options.normalize_json_values or 0
    options.is_for_people = not (options.columns or options.json or options.list_columns)
    names = _list_deciding(options)
    groups = _choose_groups(names if options.is_for_people else _GROUPS + ["metrics"])
    # What filters, groups or sorts has to be read of all rows; so has every column, if columns are named.
    directory = _get_directory(options)
    opened = levels or _DEEPEST * options.is_for_people
    is_complete = (options.head, options.tail) == (None, None)
    needs_all = any([is_complete, *names, *options.columns, options.list_columns])
    rows, problems, warnings = _load_rows(directory, groups, opened, None if needs_all else options)
    rows, columns, _, _ = _arrange(rows, options)
    if not rows and 0 not in (options.tail, options.head):
        _warn(f"there are no{' such' if options.filter else ''} experiments in {directory}")
    notes = _format_problems(problems, "could not be read completely")
    notes += _format_problems(warnings, "ran code that is not in its commit")
    if options.export:
        if extension == ".pd":
            output = _to_dataframe(rows, levels, options.flat_cols, columns)
        else:
            output = _FORMATS[extension](rows, columns)
        place = _write_output(options.export, output)
        _warn(f"wrote {len(rows)} rows to {place}")
        for line in notes:
            _warn(line)
    elif options.list_columns:
        _print(options, map(_show_controls, columns), columns=columns)
    else:
        lines = [] if options.json else _format_listing(rows, columns, options) + notes
        _print(options, lines, rows, columns, problems=problems, code=warnings)
    return 0 if rows else _EXIT_NOTHING


def _list_deciding(options):
    """Return the filter, and the columns that group or sort the rows."""
    return [options.filter, *options.groupby, *options.over, *options.sort, *options.sort_reverse]


def _arrange(rows, options):
    """Filter, group, sort and cut *rows*, and choose the columns to show.

    Returns both, the rows before they were grouped, and the columns that --over means.
    """
    everything, columns = rows, _find_columns(rows)
    if not rows:
        return rows, columns, rows, []
    keys, over = (
        [_resolve_column(rows, columns, c) for c in names] for names in (options.groupby, options.over)
    )
    if options.filter:
        rows = _filter_rows(rows, list(columns), options.filter)
    runs, some = rows, rows or everything  # names are looked up also where no row is left
    if over:
        inside = tuple(column + "." for column in keys + over)
        others = [c for c in columns if c.startswith("args.") and not (c + ".").startswith(inside)]
        keys += [column for column in others if _varies(some, column)]
    if keys or over:
        everything = _group_rows(some, columns, keys, bool(over))
        rows = everything if rows else rows
        columns = list(dict.fromkeys(keys + _find_columns(everything)))
    for names, descending in ((options.sort_reverse, False), (options.sort, True)):
        names = [_resolve_column(everything, columns, name) for name in names]
        rows = _sort_rows(rows, names, descending) if names else rows
    rows = _take_part(rows, options)
    if options.is_for_people:
        columns = _choose_telling(rows, columns, options.args, keys, over)
    elif options.args:
        shown = _choose_args(rows, [c for c in columns if c not in keys], options.args)
        others = [c for c in columns if c in keys or not c.startswith(("args.", "default_args."))]
        columns = _find_columns([dict.fromkeys(others + shown)])
    if options.columns:
        columns = _choose_columns(everything, columns, options.columns)
    return rows, columns, runs, over


def _choose_telling(rows, columns, mode, keys, over):
    """Return the columns for people: what groups the rows or --args (*mode*) asks for, results and words."""
    front = [*keys, "header.expid.count"] if keys or over else _FRONT + _choose_args(rows, columns, mode)
    results = [c for c in columns if c.startswith(_RESULTS) and (not over or c + ".mean" in columns)]
    words = ["header.description", "header.repeats", "header.status_message"]
    # Not those that are empty.
    told = [c for c in results + words if any(row.get(c) not in (None, "") for row in rows)]
    return list(dict.fromkeys(front + told))  # a result may be what groups them


def _find_extension(path, known, of_stdout=""):
    """Return the extension of *path*, which must be one of *known*; *of_stdout* for '-'."""
    extension = of_stdout if path == "-" else os.path.splitext(path)[1].lower()
    if extension not in known:
        raise QueryException(f"--export {path!r}: the extension is one of {', '.join(known)}.")
    return extension


def _write_output(path, output):
    """Write *output*, a string or DataFrame, to the file *path*, or to stdout for '-'; return where it is."""
    if path == "-":
        sys.stdout.write(_make_encodable(output, sys.stdout))  # main() handles a closed pipe
        return "stdout"
    try:
        if isinstance(output, str):
            # Into the file that is there, which may be a link, a pipe, or have permissions of its own.
            with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
                file.write(output)
        else:
            output.to_pickle(path)
        return path
    except OSError as error:
        raise FolderException(error.errno, f"can't be written: {_explain(error)}.", path) from error


def _format_problems(problems, what):
    """Return the line that names the experiments with *problems*, and *what* is wrong, if there are any."""
    shown = _join_some(f"{name} ({'; '.join(notes)})" for name, notes in problems.items())
    return [_show_controls(f"{len(problems)} {what}: {shown}")] if problems else []


def _format_listing(rows, columns, options):
    """Format a table for the terminal that stdout is, or for a pipe, which has no width."""
    messages, width, environment = [], None, os.environ
    if options.is_for_people and not (options.groupby or options.over):
        messages = [row["header.status_message"] for row in rows]
        columns = [column for column in columns if column != "header.status_message"]
        _shorten_times(rows)
    colors = bool(environment.get("FORCE_COLOR"))  # https://force-color.org and https://no-color.org
    if sys.stdout.isatty():
        from shutil import get_terminal_size

        width, colors = get_terminal_size().columns, colors or environment.get("TERM") != "dumb"
    colors = colors and not environment.get("NO_COLOR")
    return _format_table(rows, columns, width, options.flat_cols, colors, messages) if rows else []


def _report(options):
    directory = _get_directory(options)
    options.is_for_people = not options.columns
    # The stories tell of the metadata.
    groups = _choose_groups([*_list_deciding(options), *options.columns, "metadata"])
    rows, _, _ = _load_rows(directory, groups, options.normalize_json_values or _DEEPEST)
    table, columns, runs, over = _arrange(rows, options)
    if not table:
        raise _NothingFound(f"There are no such experiments in {directory}.")
    page = _make_report(directory, runs, table, columns, over, options.log, options.flat_cols)
    place = _write_output(options.o or "report.html", page)
    _warn(f"wrote {len(table)} rows to {place}")


_LIMITS = f"max. {_MOST_STORIES} stories, {_MOST_PLOTS} plots, {_MOST_POINTS} points a curve"
_REPORT = f"""{_SELECTION}
--log - draw curves on a logarithmic scale
-o FILE default: report.html; - is stdout; {_LIMITS}
"""
_COMMANDS: "Dict[str, Any]" = {
    "": (_list, _JSON + _SELECTION + _OUTPUT),
    "report": (_report, _REPORT),
    "show": (
        _show,
        _JSON + "id ID the experiment\n--job JOB instead of an ID, a Slurm job: 1234, 1234_7, 1234+1, 1234.0"
        "\n--export FILE write its story to FILE.md or FILE.html",
    ),
    "diff": (_diff, _JSON + "id A one experiment\nsecond B another one"),
    "path": (
        _path,
        _JSON + "id ID the experiment; with --filter the directory"
        "\n--filter EXPRESSION all experiments for which it is true",
    ),
    "describe": (_change_description, "id ID the experiment\ntext TEXT its new description"),
    "run": (_run, None),
    "freeze": (_freeze, _FREEZE + _COPY_OPTIONS),
    "repeat": (_repeat, _JSON + _REPEAT + _COPY_OPTIONS),
}


def _command(words):
    """Run the command that *words* are; return the exit code."""
    first = words[0] if words else "-"
    name = words.pop(0) if first in _COMMANDS else ""
    if name == "run":
        return _run(words)
    if not name and first[:1] != "-" and not os.path.isdir(first):
        known = ", ".join(filter(None, _COMMANDS))
        raise QueryException(f"{first!r} is not a directory, nor one of the commands: {known}.")
    options = _parse(name, words)
    return _COMMANDS[name][0](options) or 0


def main(argv: "Optional[Sequence[str]]" = None) -> int:
    """List, show or compare experiments, as the command line does; return the exit code."""
    import gc

    stdout, collects_garbage = sys.stdout, gc.isenabled()
    sys.stdout = stdout or open(os.devnull, "w")  # noqa: SIM115 it is None after `>&-`
    gc.disable()  # All that is read stays: looking for garbage in it would take a quarter of the time.
    try:
        code = _command(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except MeticulousException as error:
        # The options of our commands, but for `run`, whose errors have theirs.
        error.options = error.options or ("project_directory", "experiments_directory", "allow_dirty")
        _warn(str(error))
        return _EXIT_NOTHING if isinstance(error, _NothingFound) else _EXIT_WRONG
    except OSError as error:
        _discard_output()
        if isinstance(error, BrokenPipeError):  # `| head` has seen enough
            return 0
        where = f"{error.filename} can't be used: " if error.filename else ""
        _warn(f"{where}{_explain(error)}.")
        return _EXIT_WRONG
    finally:
        sys.stdout = stdout
        if collects_garbage:
            gc.enable()


def _discard_output():
    """Empty the buffer of stdout, which can't be written, because Python flushes it again at its end."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):  # a StringIO
        return
    kept = os.dup(descriptor)
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), descriptor)
    sys.stdout.flush()
    os.dup2(kept, descriptor)
    os.close(kept)


if __name__ == "__main__":
    sys.exit(main())

# MIT License
#
# Copyright (c) 2026 meticulous-lite authors
#
# Permission is hereby granted, free of charge, to any person obtaining a copy
# of this software and associated documentation files (the "Software"), to deal
# in the Software without restriction, including without limitation the rights
# to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
# copies of the Software, and to permit persons to whom the Software is
# furnished to do so, subject to the following conditions:
#
# The above copyright notice and this permission notice shall be included in all
# copies or substantial portions of the Software.
#
# THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
# IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
# FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
# AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
# LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
# OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
# SOFTWARE.
