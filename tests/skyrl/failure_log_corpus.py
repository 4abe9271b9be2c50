r"""Reads the corpus of logs of failed runs: ``failure_logs/*.txt``.

The logs were written for this corpus, in the formats of SkyRL, Ray, vLLM, torch, uv and others. A case begins with
``##### NAME``, followed by ``code: CODE``, optionally ``returncode: N``, the output, and further logs, each after
``--- rank=R attempt=A name=NAME``. ``\e`` is an escape character, and ``\r`` a carriage return.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from skyrl_modal.findings import Diagnosis
from skyrl_modal.protocol.state import FailureCause
from skyrl_modal.skyrl.failures.diagnosis import diagnose
from skyrl_modal.skyrl.failures.rule import OUTPUT_LOG, FailureFacts, LogSource

FOLDER = Path(__file__).with_name("failure_logs")
_LOG = re.compile(r"--- rank=(\d+) attempt=(\d+) name=(\S+)")


@dataclass(frozen=True)
class Case:
    """A failed run: its name, its logs as (rank, attempt, name, content), and the code of the expected diagnosis."""

    name: str
    code: str
    returncode: int
    logs: tuple[tuple[int, int, str, bytes], ...]

    def diagnose(self) -> Diagnosis:
        """Return the diagnosis of its logs."""
        sources = [
            LogSource(name=name, chunks=[content], rank=rank, attempt=attempt)
            for rank, attempt, name, content in self.logs
        ]
        return diagnose(sources, FailureFacts(returncode=self.returncode, cause=FailureCause.COMMAND_FAILED), year=2026)


def read_cases(name: str) -> list[Case]:
    """Return the cases in a file of the corpus."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    return [_parse(part) for part in text.split("##### ")[1:]]


def _parse(text: str) -> Case:
    title, code, *lines = text.split("\n")
    returncode = 1
    if lines[0].startswith("returncode: "):
        returncode = int(lines.pop(0).removeprefix("returncode: "))
    logs: list[tuple[int, int, str, list[str]]] = [(0, 1, OUTPUT_LOG, [])]
    for line in lines:
        match = _LOG.fullmatch(line)
        if match is not None:
            logs.append((int(match[1]), int(match[2]), match[3], []))
        else:
            logs[-1][3].append(line.replace("\\e", "\x1b").replace("\\r", "\r"))
    contents = tuple((rank, attempt, name, "\n".join(part).encode()) for rank, attempt, name, part in logs)
    return Case(title, code.removeprefix("code: "), returncode, contents)
