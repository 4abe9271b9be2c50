"""A line of a log: its prefixes, its level and its message."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime

from skyrl_modal.dataclass import dataclass

#: Escape sequences of a terminal: colours, and titles.
_ESCAPES = re.compile(r"\x1b(?:\[[0-9;:?]{0,24}[@-~]|\][^\x07\x1b]{0,200}(?:\x07|\x1b\\)?|[()][A-Z0-9])")
#: The process, as Ray and vLLM print it: ``(Worker pid=12, ip=10.0.0.2) ``, ``(raylet) ``, ``(EngineCore_0 pid=12) ``.
_PROCESS = re.compile(
    r"\((?:[^()]{0,150} )?pid=\d+(?:, ip=[0-9A-Fa-f.:]{2,45})?\) ?|\((?:raylet|gcs_server|autoscaler)[^()]{0,60}\) ?"
)
#: The rank, as torch prints it: ``[rank3]: ``, or a stage of vLLM; and what C++ prints about an exception.
_RANK = re.compile(r"\[(?:default)?(?:rank)?\d+\]: ?|\[Stage-\d+\] | {2}what\(\): {1,2}")
#: A progress bar of tqdm, after which another process has written to the same line.
_PROGRESS_BAR = re.compile(r"[^\[]{0,250}\[\d+:\d[^\]]{0,60}(?:s/it|it/s)[^\]]{0,100}\](?= ?\S)")
_TIME = r"(?P<time>\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?)"
_LEVEL = r"(?P<level>TRACE|DEBUG|INFO|SUCCESS|NOTICE|WARNING|WARN|ERROR|CRITICAL|FATAL)"
_HEADERS = tuple(
    re.compile(pattern)
    for pattern in (
        rf"{_TIME} \| {_LEVEL} *\| [^|]{{1,200}}? - ",  # loguru
        rf"\[{_TIME} (?P<letter>[DIWEFC]) \d+ \d+\] (?:\([^()]{{1,40}}\) )?[\w./]{{1,100}}:\d+: ",  # C++ code of Ray
        rf"{_LEVEL} (?P<day>\d\d-\d\d \d\d:\d\d:\d\d)(?:\.\d+)? \[[^\]]{{1,150}}\] ",  # vLLM
        r"\[(?P<letter>[IWEF])(?:(?P<glog>\d{3,4} \d\d:\d\d:\d\d)\.\d+ )?[\w./]{1,100}:\d+\] ?",  # torch
        rf"{_TIME}\s+{_LEVEL} [\w./]{{1,100}}:\d+ -- ",  # Python code of Ray
        rf"{_TIME}(?: - [\w. ]{{1,100}})? - {_LEVEL} - ",  # logging
        rf"\[{_TIME}\]\s?\[{_LEVEL}\]\s?(?:\[[^\]]{{1,150}}\]\s?){{0,3}}",  # DeepSpeed, Megatron, Hydra
        rf"{_TIME}\s+\[?{_LEVEL}\]?:?\s+",
        rf"\[{_LEVEL}\]:? ",
        rf"{_LEVEL}:\s{{4,8}}",  # uvicorn
        rf"{_LEVEL}:[A-Za-z_][\w.]{{0,100}}:",  # logging without configuration
    )
)
#: The border of a group of exceptions, and the mark before an error of uv.
_GROUP_BORDER = re.compile(r" {0,40}\| | {0,2}\u00d7 ")
_UNNAMED = (_RANK, _GROUP_BORDER, _PROGRESS_BAR)
_LETTERS = {"D": "DEBUG", "I": "INFO", "W": "WARNING", "E": "ERROR", "F": "FATAL", "C": "CRITICAL"}
_HARMLESS = frozenset(("TRACE", "DEBUG", "INFO", "SUCCESS", "NOTICE", "WARNING", "WARN"))
_MAX_PREFIXES = 6


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of a log.

    Attributes:
        text: The line without escape sequences.
        process: The prefix of its process; empty if it has none.
        message: What follows the prefixes.
        level: Its level; empty if it has none.
        time: When it was written; None if it does not show that.
    """

    text: str
    process: str
    message: str
    level: str
    time: datetime | None

    @property
    def is_harmless(self) -> bool:
        """Whether it is logged as a warning or less."""
        return self.level in _HARMLESS

    @property
    def is_indented(self) -> bool:
        """Whether its message begins with a space, as a line of code in a traceback."""
        return self.message[:1] in (" ", "\t", "")


def without_escapes(text: str) -> str:
    r"""Return a text without the escape sequences of a terminal.

    Example:
        >>> without_escapes("\x1b[31mfailed\x1b[0m")
        'failed'
    """
    return _ESCAPES.sub("", text) if "\x1b" in text else text


def parse_line(raw: bytes, year: int = 2000) -> LogLine:
    r"""Return the parts of a line.

    Args:
        raw: The line, without its end.
        year: The year, for times that have none.

    Example:
        >>> line = parse_line(b"\x1b[36m(Worker pid=7)\x1b[0m ERROR 11-26 10:03:46 [core.py:700] ValueError: 3")
        >>> line.process, line.level, line.message
        ('(Worker pid=7)', 'ERROR', 'ValueError: 3')
    """
    text = without_escapes(raw.decode("utf-8", "replace"))
    rest, process, level = text, "", ""
    time: datetime | None = None
    for _ in range(_MAX_PREFIXES):
        if (match := _PROCESS.match(rest)) is not None:
            process = process or match[0].strip()
        elif (match := _first_match(_UNNAMED, rest)) is not None:
            pass
        else:
            match = _first_match(_HEADERS, rest)
            if match is None:
                break
            values = match.groupdict()
            level = values.get("level") or _LETTERS[values["letter"]]
            time = _parse_time(values, year) or time
        rest = rest[match.end() :]
    return LogLine(text, process, rest, level, time)


def _first_match(patterns: Iterable[re.Pattern[str]], text: str) -> re.Match[str] | None:
    return next((match for pattern in patterns if (match := pattern.match(text)) is not None), None)


def _parse_time(values: dict[str, str | None], year: int) -> datetime | None:
    try:
        if text := values.get("time"):
            return datetime.fromisoformat(text.replace(",", "."))
        if text := values.get("day"):
            return datetime.strptime(f"{year}-{text}", "%Y-%m-%d %H:%M:%S")
        if text := values.get("glog"):
            return datetime.strptime(f"{year}{text.rjust(13, '0')}", "%Y%m%d %H:%M:%S")
    except ValueError:  # no such day or hour
        return None
    return None
