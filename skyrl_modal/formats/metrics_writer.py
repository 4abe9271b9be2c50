"""Append metrics to a file of this process in the run's folder. Used by the hook, and by ``skyrl_modal.log_metrics``.

It runs in the processes of the command, on Python 3.9 and later, and is loaded by its path there: it imports nothing of
this package. docs/metrics.md describes the format.
"""

from __future__ import annotations

import binascii
import contextlib
import json
import os
import stat
import struct
import threading
import time

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeVar

    T = TypeVar("T", bound="PartFile")

#: Variables that ``container/environment.py`` and the supervisor set.
RUN_FOLDER, STARTED_AT, ATTEMPT, RANK = "SKYRL_MODAL_RUN_FOLDER", "SKYRL_MODAL_STARTED_AT", "SKYRL_ATTEMPT", "NODE_RANK"
#: The folder in the run's folder, and the record in it that contains the number of the attempt.
METRICS_FOLDER, STATUS_FILE = "metrics", "state.json"
#: Size of a file from which another one is begun. On Modal, a file that has changed is downloaded from its beginning.
PART_BYTES = 4 << 20
#: Number of files of one process at most: 2 GiB.
MAX_PARTS = 512
#: Limits of one row. Keys beyond them are left out.
MAX_KEYS, MAX_KEY_LENGTH = 10_000, 500
#: Tables of keys in one file. A program that logs other keys at each step begins a new file.
MAX_TABLES = 1_000
MAX_STEP = 2**53
#: Seconds in which nothing is tried after a file could not be opened or written.
RETRY_INTERVAL = 2.0
#: Replaced descriptors after which nothing more is recorded: a file system that does not identify its files.
_MAX_REPLACED = 20
_NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


class PartFile:
    """The files of one process in a folder of a run's folder. Each begins a new one when it is large.

    Args:
        run_folder: The run's folder.
        attempt: Number of the attempt.
        started_at: When the container started, in seconds since the epoch.
        rank: The rank of this node.
    """

    #: The name of the folder.
    FOLDER = ""

    def __init__(self, run_folder: str, *, attempt: int, started_at: float, rank: int) -> None:
        self.pid = os.getpid()
        self._folder = os.path.join(run_folder, self.FOLDER)
        self._name = f"{attempt}-{round(started_at * 1000)}-{rank}-{os.urandom(6).hex()}"
        self._lock = threading.RLock()  # a signal handler may log while its thread logs
        self._part = 0
        self._descriptor: int | None = None
        self._identity = (0, 0)
        self._size = 0
        self._replaced = 0
        self._retry_at = 0.0
        self.begin_file()

    @classmethod
    def of_environment(cls: type[T], env: Mapping[str, str]) -> T | None:
        """Return the file of this process; None outside of a run."""
        folder = env.get(RUN_FOLDER)
        if not folder:
            return None
        attempt = max(_to_int(env.get(ATTEMPT)), _recorded_attempt(folder), 1)
        started_at = float(env.get(STARTED_AT) or 0)
        return cls(folder, attempt=attempt, started_at=started_at, rank=_to_int(env.get(RANK)))

    def write(self, make_lines: Callable[[], bytes], *, is_full: bool = False) -> bool:
        """Append lines, and return whether that was done: not for a moment after an error.

        Args:
            make_lines: Returns the lines. It is called when the file is open.
            is_full: Whether to begin a new file.

        Raises:
            OSError: They cannot be written.
        """
        if time.monotonic() < self._retry_at:
            return False
        with self._lock:
            try:
                self._write(make_lines, is_full)
            except OSError:
                self._retry_at = time.monotonic() + RETRY_INTERVAL
                raise
        return True

    def _write(self, make_lines: Callable[[], bytes], is_full: bool) -> None:
        descriptor = self._descriptor
        if descriptor is not None and not self._is_own_file(descriptor):
            descriptor = self._descriptor = None
        if descriptor is None or self._size > PART_BYTES or is_full:
            descriptor = self._open()
        data = make_lines()
        # One call: other threads and forks cannot write in between, and only the end of the line can be missing.
        written = os.write(descriptor, data)
        if written < len(data):  # the disk is full
            self._descriptor = None  # a new file is begun, unless this one is as before
            os.ftruncate(descriptor, self._size)
            self._descriptor = descriptor
            raise OSError("the line was written in part")
        self._size += written

    def _open(self) -> int:
        """Begin the next file, and return its descriptor."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
        if self._part >= MAX_PARTS or self._replaced > _MAX_REPLACED:
            raise OSError("this process has logged too much")
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._folder, 0o700)
        path = os.path.join(self._folder, f"{self._name}-{self._part}.jsonl")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        status = os.fstat(descriptor)
        self._part += 1
        self._descriptor, self._identity = descriptor, (status.st_dev, status.st_ino)
        self._size = 0
        self.begin_file()
        return descriptor

    def begin_file(self) -> None:
        """Prepare for an empty file."""

    def _is_own_file(self, descriptor: int) -> bool:
        """Return whether a descriptor is still that of the file, and the file still exists.

        A program that becomes a daemon closes all descriptors, and the number may be that of another file afterwards.
        """
        try:
            status = os.fstat(descriptor)
        except OSError:
            return False
        is_same = stat.S_ISREG(status.st_mode) and (status.st_dev, status.st_ino) == self._identity
        if is_same and status.st_nlink:
            return True
        if is_same:
            os.close(descriptor)  # the file was removed
        self._replaced += 1
        return False


class MetricsFile(PartFile):
    """The files with the metrics of one process."""

    FOLDER = METRICS_FOLDER
    _tables: dict[tuple[str, ...], int]

    def append(self, source: str, step: int, metrics: Mapping[str, float]) -> None:
        """Write a row.

        Args:
            source: What logs it.
            step: The step.
            metrics: Numbers by their keys.

        Raises:
            OSError: It cannot be written.
        """
        keys, values = tuple(metrics), list(metrics.values())
        try:
            text = json.dumps(values, separators=(",", ":"), allow_nan=False)
        except ValueError:
            finite = [value if _is_finite(value) else _NOT_FINITE[repr(float(value))] for value in values]
            text = json.dumps(finite, separators=(",", ":"))
        packed = binascii.b2a_base64(struct.pack(f"<{len(values)}d", *values), newline=False).decode("ascii")
        row = f'"step":{step},"time":{time.time():.6f},"f64":"{packed}","values":{text}'
        with self._lock:
            if self.write(lambda: self._lines(source, keys, row), is_full=len(self._tables) >= MAX_TABLES):
                self._tables.setdefault((source, *keys), len(self._tables))

    def _lines(self, source: str, keys: tuple[str, ...], row: str) -> bytes:
        """Return the line of a row, and before it that of its table if the file does not have it."""
        table = self._tables.get((source, *keys))
        line = ""
        if table is None:
            table = len(self._tables)
            line = json.dumps({"table": table, "source": source, "keys": keys}, separators=(",", ":")) + "\n"
        return f'{line}{{"table":{table},{row}}}\n'.encode("ascii")

    def begin_file(self) -> None:
        """Forget the tables of the last file."""
        self._tables = {}


#: The file of this process; None before the first row, and outside of a run.
_file: MetricsFile | None = None


def append_row(source: str, step: int, metrics: Mapping[str, float]) -> None:
    """Write a row to the file of this process; do nothing outside of a run.

    Raises:
        OSError: It cannot be written.
        ValueError: A variable of the run is not as the run has set it.
    """
    global _file  # noqa: PLW0603  # the state of this process
    if metrics:
        if _file is None or _file.pid != os.getpid():  # a fork has the descriptor and the lock of its parent
            _file = MetricsFile.of_environment(os.environ)
        if _file is not None:
            _file.append(source, step, metrics)


def to_number(value: object) -> float | int | None:
    """Return a number for a number, a boolean, or a scalar of numpy, torch and similar; None for anything else."""
    if type(value) is float:
        return value
    if isinstance(value, (str, bytes, dict, list, tuple)):
        return None
    item = getattr(value, "item", None)  # float() of an array or tensor may print a warning
    if item is not None:
        value = item()
    if isinstance(value, (bool, int)) and abs(value) <= MAX_STEP:
        return int(value)
    if isinstance(value, (str, bytes)) or not hasattr(type(value), "__float__"):
        return None
    return float(value)  # type: ignore[arg-type]  # checked above


def numbers_of(data: Mapping[object, object]) -> dict[str, float]:
    """Return the numbers of a mapping by their keys. Other values, and what exceeds the limits, are left out."""
    numbers: dict[str, float] = {}
    for key, value in data.items():
        name = key if type(key) is str else str(key)
        if len(name) > MAX_KEY_LENGTH:
            continue
        try:
            number = to_number(value)
        except Exception:  # noqa: S112  # an array with several elements, or any other object of the program
            continue
        if number is not None:
            numbers[name] = number
            if len(numbers) >= MAX_KEYS:
                break
    return numbers


def to_step(value: object) -> int | None:
    """Return a step as an int; None for anything but a whole number from 0 on."""
    number = to_number(value)
    if number is None or isinstance(value, bool) or not 0 <= number <= MAX_STEP or number != int(number):
        return None
    return int(number)


def log_metrics(metrics: Mapping[str, float], *, step: int) -> None:
    """Record metrics of a step of this run, for ``Run.metrics``.

    It can be called in any Python process of a run. Outside of a run, the arguments are checked and nothing is written.
    A row that cannot be written, for example since the disk is full, is left out.

    Args:
        metrics: Numbers by their names. Scalars of numpy and torch are numbers too.
        step: The step, from 0 on. Several calls with the same step are one row.

    Raises:
        TypeError: An argument, a name or a value has another type.
        ValueError: The step is negative, or a name is empty or has more than 500 characters.

    Example:
        >>> from skyrl_modal import log_metrics
        >>> log_metrics({"reward": 0.5, "loss": 1.25}, step=3)
    """
    if not hasattr(metrics, "items"):
        raise TypeError(f"metrics has to be a mapping from names to numbers, not {type(metrics).__name__}")
    number = None
    if not isinstance(step, (str, bytes, bool)):
        number = _number_or_none(step)
    if number is None or number != int(number):
        raise TypeError(f"step has to be a whole number, not {step!r}")
    if not 0 <= number <= MAX_STEP:
        raise ValueError(f"step has to be from 0 to 2**53, not {step!r}")
    if len(metrics) > MAX_KEYS:
        raise ValueError(f"metrics may have {MAX_KEYS:,} names, and has {len(metrics):,}")
    numbers: dict[str, float] = {}
    for name, value in metrics.items():
        if not isinstance(name, str):
            raise TypeError(f"a name in metrics has to be a str, not {name!r}")
        if not 0 < len(name) <= MAX_KEY_LENGTH:
            raise ValueError(f"a name in metrics has to have 1 to {MAX_KEY_LENGTH} characters, not {len(name)}")
        found = _number_or_none(value)
        if found is None:
            raise TypeError(f"the value of {name!r} has to be a number, not {type(value).__name__}")
        numbers[name] = found
    try:
        append_row("log_metrics", int(number), numbers)
    except (OSError, ValueError):  # as documented, the program continues without the row
        return


def _number_or_none(value: object) -> float | None:
    try:
        return to_number(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # numpy and torch, for several elements
        return None


def _is_finite(value: float) -> bool:
    return value - value == 0


def _to_int(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0


def _recorded_attempt(folder: str) -> int:
    """Return the attempt in the run's folder; 0 if it is not known.

    Ray continues in the next attempt if it has not failed, and its processes have the variables of the first one.
    """
    try:
        with open(os.path.join(folder, STATUS_FILE), "rb") as file:
            return int(json.loads(file.read(65_536))["attempt"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
