"""A diagnosis as text, HTML and JSON."""

from __future__ import annotations

import html
import json
from typing import TYPE_CHECKING

from skyrl_modal.views.text import escape_controls

if TYPE_CHECKING:
    from skyrl_modal.findings import Diagnosis, Evidence

#: Characters of a line of evidence in a text.
_MAX_TEXT = 300


def format_diagnosis(diagnosis: Diagnosis) -> str:
    """Return a diagnosis as lines of text. Control characters are escaped.

    Example:
        >>> from skyrl_modal.findings import Diagnosis, Evidence
        >>> found = Evidence(file="output.log", line=7, text="ValueError: 3")
        >>> result = Diagnosis(code="x", cause="A value is wrong.", remedy="Correct it.", evidence=(found,))
        >>> print(format_diagnosis(result))
        cause: A value is wrong.
          output.log:7: ValueError: 3
        remedy: Correct it.
    """
    lines = [f"cause: {escape_controls(diagnosis.cause)}"]
    lines += [f"  {_format_evidence(evidence)}" for evidence in diagnosis.evidence]
    if diagnosis.remedy:
        lines.append(f"remedy: {escape_controls(diagnosis.remedy)}")
    return "\n".join(lines)


def _format_evidence(evidence: Evidence) -> str:
    text = evidence.text if len(evidence.text) <= _MAX_TEXT else f"{evidence.text[:_MAX_TEXT]}…"
    return escape_controls(f"{evidence.place}: {text}")


def diagnosis_to_json(diagnosis: Diagnosis | None) -> str:
    """Return a diagnosis as JSON; ``null`` for a run that has none.

    Example:
        >>> from skyrl_modal.findings import Diagnosis
        >>> diagnosis_to_json(None)
        'null'
        >>> json.loads(diagnosis_to_json(Diagnosis(code="x", cause="A value is wrong.")))["code"]
        'x'
    """
    if diagnosis is None:
        return "null"
    evidence = [
        {"file": each.file, "line": each.line, "text": each.text, "rank": each.rank, "attempt": each.attempt}
        for each in diagnosis.evidence
    ]
    values = {
        "code": diagnosis.code,
        "cause": diagnosis.cause,
        "remedy": diagnosis.remedy,
        "evidence": evidence,
    }
    return json.dumps(values, indent=2)


def diagnosis_to_html(diagnosis: Diagnosis) -> str:
    """Return a diagnosis as a part of an HTML page, without scripts and styles.

    Example:
        >>> from skyrl_modal.findings import Diagnosis
        >>> diagnosis_to_html(Diagnosis(code="x", cause="1 < 2"))
        '<section class="diagnosis"><p><strong>1 &lt; 2</strong></p></section>'
    """
    parts = [f"<p><strong>{_escape_html(diagnosis.cause)}</strong></p>"]
    if diagnosis.evidence:
        items = "".join(
            f"<li><code>{_escape_html(each.place)}</code> <samp>{_escape_html(each.text)}</samp></li>"
            for each in diagnosis.evidence
        )
        parts.append(f"<ul>{items}</ul>")
    if diagnosis.remedy:
        parts.append(f"<p>{_escape_html(diagnosis.remedy)}</p>")
    return f'<section class="diagnosis">{"".join(parts)}</section>'


def _escape_html(text: str) -> str:
    return html.escape(escape_controls(text))
