"""The logs that are kept in a run's folder: names of their files, and which lines of Ray's logs explain nothing.

They are in ``logs/RANK/``: the messages of the rank's supervisor, and a folder for each start of an attempt, which is
called ``ATTEMPT``, or ``ATTEMPT.START`` if an attempt was started again in another container.
"""

from __future__ import annotations

import os
import posixpath
import re

from skyrl_modal.dataclass import dataclass

#: Folders of a start: logs of Ray, and what the machine reports. Those of SkyRL have the names of their own folders.
RAY_LOGS = "ray"
MACHINE_LOGS = "machine"
#: What ``ray start`` printed.
RAY_START_LOG = f"{RAY_LOGS}/start.log"
#: Counters of the memory's control group, as lines of JSON; kernel messages about GPUs and memory; ``nvidia-smi``.
MEMORY_LOG = f"{MACHINE_LOGS}/memory.jsonl"
KERNEL_LOG = f"{MACHINE_LOGS}/kernel.log"
#: In the first line of the counters: the command was killed before they were read.
KILLED_KEY = "was_killed"
GPU_LOG = f"{MACHINE_LOGS}/nvidia-smi.txt"
#: Stacks of Python processes of a stalled attempt.
STACKS_LOG = f"{MACHINE_LOGS}/stacks.txt"

# The patterns are compiled when they are needed: every run imports this module.
_START_FOLDER = r"([0-9]{1,9})(?:\.([0-9]{1,9}))?"
#: Folders of logs in /tmp: SkyRL's default ``skyrl-logs`` (``trainer.log_path``, skyrl/train/config/config.py), and the
#: names that SkyRL's own scripts give, such as ``skyrl-logs-NAME`` and ``skyrl-serve-logs``.
_SKYRL_FOLDER = r"(?s)skyrl-logs(-.*)?|skyrl-.+-logs"
# Ray repeats its internal state every minute. The raylet marks each line; the other processes begin with a line of
# their log, followed by lines without a time. Seen in Ray 2.60.
_STATE_FILE = r"debug_state\w*\.txt"
_STATE_LINE = rb"^[^\n]*\[state-dump\][^\n]*(?:\n|\Z)"
_STATE_BLOCK = (
    rb"^\[\d{4}-\d\d-\d\d [^\n]*(?:Debug state|Event stats):[ \t]*(?:\n|\Z)(?:(?!\[\d{4}-\d\d-\d\d )[^\n]*(?:\n|\Z))*"
)


@dataclass(frozen=True, slots=True)
class KeptLogPath:
    """Where a kept log is.

    Attributes:
        rank: The rank.
        attempt: Number of the attempt, from 1; None for the messages of the supervisor.
        start: Number of the start of this attempt, from 1: it is started again if its container was preempted.
        name: The path in the folder of the start, such as ``ray/raylet.out``.
    """

    rank: int
    attempt: int | None
    start: int
    name: str


def start_folder_name(attempt: int, start: int) -> str:
    """Return the name of the folder of a start.

    Example:
        >>> start_folder_name(2, 1), start_folder_name(2, 3)
        ('2', '2.3')
    """
    return str(attempt) if start == 1 else f"{attempt}.{start}"


def parse_start_folder(name: str) -> tuple[int, int] | None:
    """Return attempt and start from the name of a folder; None if it is not the folder of a start.

    Example:
        >>> parse_start_folder("2.3"), parse_start_folder("supervisor.log")
        ((2, 3), None)
    """
    match = re.fullmatch(_START_FOLDER, name)
    return None if match is None else (int(match[1]), int(match[2] or 1))


def parse_log_path(path: str) -> KeptLogPath | None:
    """Return what a path in the folder of logs means; None if it is not the path of a log.

    Example:
        >>> parse_log_path("0/1/ray/raylet.out")
        KeptLogPath(rank=0, attempt=1, start=1, name='ray/raylet.out')
        >>> parse_log_path("1/supervisor.log")
        KeptLogPath(rank=1, attempt=None, start=1, name='supervisor.log')
    """
    rank, _, rest = path.partition("/")
    if not (rank.isascii() and rank.isdigit() and len(rank) <= 9 and rest):
        return None
    folder, _, name = rest.partition("/")
    start = parse_start_folder(folder)
    if start is None or not name:
        return KeptLogPath(int(rank), None, 1, rest)
    return KeptLogPath(int(rank), *start, name)


def is_skyrl_log_folder(name: str) -> bool:
    """Return whether a folder in /tmp has logs of SkyRL.

    Example:
        >>> is_skyrl_log_folder("skyrl-logs"), is_skyrl_log_folder("skyrl_lora_sync")
        (True, False)
    """
    return re.fullmatch(_SKYRL_FOLDER, name) is not None


def has_log_folders() -> bool:
    """Return whether this container's folder for temporary files may have logs of SkyRL or Ray."""
    try:
        names = os.listdir(os.environ.get("TMPDIR", "/tmp"))
    except OSError:
        return False
    return any(name == "ray" or name.startswith("skyrl-") for name in names)


def is_state_file(name: str) -> bool:
    """Return whether a file of Ray contains dumps of its internal state only."""
    return re.fullmatch(_STATE_FILE, posixpath.basename(name)) is not None


def without_state_dumps(content: bytes) -> bytes:
    r"""Return the content of a log of Ray without the dumps of its internal state.

    Example:
        >>> without_state_dumps(b"[2026-01-01 00:00:00,000 I] started\n[state-dump] NodeManager:\n")
        b'[2026-01-01 00:00:00,000 I] started\n'
    """
    return re.sub(_STATE_BLOCK, b"", re.sub(_STATE_LINE, b"", content, flags=re.MULTILINE), flags=re.MULTILINE)
