"""What a rule about a failure is."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

from skyrl_modal.dataclass import dataclass
from skyrl_modal.protocol.state import FailureCause

#: The name of the command's output, and of the launcher's own record, among the logs.
OUTPUT_LOG, RESULT_RECORD = "output.log", "result.json"
#: An exception of Python, with its modules and, from Ray, the type of its cause.
EXCEPTION = r"(?:[A-Za-z_][\w.]{0,150}(?:\([\w.]{0,80}\))?: )?"


class Weight(IntEnum):
    """How directly a line shows the cause. A lower weight takes precedence, wherever the lines are."""

    #: It is certain: the result itself states it, and other lines are its consequences.
    CERTAIN = -1
    #: It is a cause.
    ROOT = 0
    #: It is a cause, unless an earlier failure explains it, for example one of another rank or of an earlier attempt.
    POSSIBLE_CONSEQUENCE = 1
    #: It is seen after many different failures.
    CONSEQUENCE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureRule:
    """A known failure: the lines that show it, further conditions, and what to do.

    Attributes:
        code: A stable identifier.
        cause: What happened. ``{name}`` is replaced by the group of this name in the pattern.
        remedy: What to do about it, with groups as well.
        terms: Texts one of which every matching line contains, as they are written in the log. Only lines with one of
            them are compared with the pattern. None for a rule about the result alone.
        pattern: Regular expression for the beginning of a message, after the prefixes of Ray, loguru, vLLM and others.
        context: Regular expression that has to be found in the traceback before the line; empty for none.
        files: Patterns of ``fnmatch`` for the names of logs in which it counts.
        any_level: Whether a line counts that is logged as a warning or less.
        returncodes: Exit codes of the run with which it counts; empty for all.
        run_causes: Causes of the result with which it counts; empty for all.
        weight: How directly it shows the cause.
        source: Where the text was read.
        versions: The versions in which it was read.
    """

    code: str
    cause: str
    remedy: str
    terms: tuple[str, ...] = ()
    pattern: str = ""
    context: str = ""
    files: tuple[str, ...] = ("*",)
    any_level: bool = False
    returncodes: frozenset[int] = frozenset()
    run_causes: frozenset[FailureCause] = frozenset()
    weight: Weight = Weight.ROOT
    source: str = ""
    versions: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSource:
    """A log to search.

    Attributes:
        name: The name of the log.
        chunks: Its content, in pieces that may end anywhere.
        rank: The rank that has written it.
        attempt: Number of the attempt, from 1; None if it is not known.
    """

    name: str
    chunks: Iterable[bytes]
    rank: int = 0
    attempt: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureFacts:
    """What the result of a run shows.

    Attributes:
        returncode: Its exit code.
        cause: Its cause; None if it is not known.
        detail: Its description.
    """

    returncode: int
    cause: FailureCause | None = None
    detail: str = ""
