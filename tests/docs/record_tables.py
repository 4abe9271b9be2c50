"""Writes the tables of ``docs/records.md`` and ``docs/exit-codes.md`` from the records and enums of the package.

.. code-block:: bash

    python -m tests.docs.record_tables
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from enum import StrEnum
from pathlib import Path

from skyrl_modal.protocol import job, result, resume, state, status, usage

DOCS = Path(__file__).resolve().parents[2] / "docs"
#: The records of each file, the outer one first.
RECORDS: dict[str, tuple[type, ...]] = {
    "job.json": (
        job.Job,
        job.Mount,
        job.Volume,
        job.Bucket,
        job.RayOptions,
        job.Limits,
        job.NodeRate,
        job.CheckoutFacts,
        resume.ResumeRecord,
        resume.ResumeTarget,
    ),
    "state.json": (status.StatusRecord, status.AttemptHistory),
    "result.json": (result.RunResultRecord, result.OutputRecord, result.StreamDigest, result.UnsavedFolder),
    "usage.json": (usage.UsageRecord, usage.ContainerUsage),
}
ENUMS: dict[str, type[StrEnum]] = {"causes": state.FailureCause, "stop reasons": state.StopReason}
COMMAND = "python -m tests.docs.record_tables"


def attributes_of(cls: type) -> dict[str, str]:
    """Return the description of each attribute in a class's docstring."""
    section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")[2].split("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def comments_of(cls: type) -> dict[str, str]:
    """Return the ``#:`` comment above each value of an enum."""
    lines = inspect.getsource(cls).splitlines()
    comments: dict[str, str] = {}
    comment: list[str] = []
    for line in map(str.strip, lines):
        if line.startswith("#:"):
            comment.append(line[2:].strip())
        else:
            if match := re.match(r'[A-Z_]+ = "(\w+)"$', line):
                comments[match[1]] = " ".join(comment)
            comment = []
    return comments


def _cell(text: str) -> str:
    return text.replace("``", "`").replace("|", "\\|")


def _rows(cls: type) -> Iterator[str]:
    texts = attributes_of(cls)
    for field in fields(cls):
        kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
        always = "yes" if field.default is MISSING and field.default_factory is MISSING else ""
        yield f"| `{field.name}` | `{_cell(kind)}` | {always} | {_cell(texts[field.name])} |"


def record_tables() -> str:
    """Return the tables of all records."""
    parts = []
    for file, classes in RECORDS.items():
        parts.append(f"### `{file}`\n")
        for cls in classes:
            summary = _cell((cls.__doc__ or "").strip().splitlines()[0])
            parts.append(f"**`{cls.__name__}`**: {summary}\n")
            if attributes_of(cls):
                parts += ["| field | type | always | meaning |", "|---|---|---|---|", *_rows(cls), ""]
    return "\n".join(parts)


def enum_table(cls: type[StrEnum]) -> str:
    """Return the table of the values of an enum."""
    rows = [f"| `{value}` | {_cell(text)} |" for value, text in comments_of(cls).items() if value != "unknown"]
    return "\n".join(["| value | meaning |", "|---|---|", *rows, "| `unknown` | A value of a later version. |", ""])


def render(page: Path, parts: dict[str, str]) -> str:
    """Return a page with its generated parts."""
    text = page.read_text(encoding="utf-8")
    for name, content in parts.items():
        begin, end = f"<!-- {name}: written by `{COMMAND}` -->\n", f"<!-- end of {name} -->\n"
        before, found, rest = text.partition(begin)
        assert found, f"{page.name} has no part {name}"
        text = f"{before}{begin}\n{content}\n{end}{rest.partition(end)[2]}"
    return text


def pages() -> dict[Path, str]:
    """Return the content of each page with generated parts."""
    return {
        DOCS / "records.md": render(DOCS / "records.md", {"records": record_tables()}),
        DOCS / "exit-codes.md": render(DOCS / "exit-codes.md", {name: enum_table(cls) for name, cls in ENUMS.items()}),
    }


if __name__ == "__main__":
    for path, content in pages().items():
        path.write_text(content, encoding="utf-8")
