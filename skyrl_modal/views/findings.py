"""Findings as text and HTML."""

from __future__ import annotations

from typing import TYPE_CHECKING

from skyrl_modal.views.text import escape_controls

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from skyrl_modal.findings import Finding

#: Severities, the most serious one first.
_ORDER = ("error", "warning", "note")


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings sorted by their severity, the errors first; those of equal severity keep their order."""
    return sorted(findings, key=lambda finding: _ORDER.index(finding.severity))


def finding_rows(findings: Iterable[Finding]) -> list[tuple[str, str]]:
    """Return findings as label and value pairs for ``format_rows``: grouped by severity, with code and remedy.

    Example:
        >>> from skyrl_modal.findings import Finding, Severity
        >>> from skyrl_modal.views.text import format_rows
        >>> found = Finding(code="log-path", severity=Severity.WARNING, message="logs are lost", remedy="Pass x=1.")
        >>> print(format_rows(finding_rows([found])))
         warning  logs are lost [log-path]
                  Pass x=1.
    """
    return [
        (str(finding.severity), "\n".join(filter(None, (f"{finding.message} [{finding.code}]", finding.remedy))))
        for finding in by_severity(findings)
    ]


def findings_to_html(findings: Sequence[Finding]) -> str:
    """Return findings as a part of an HTML page, without scripts and styles; empty if there are none.

    Example:
        >>> from skyrl_modal.findings import Finding, Severity
        >>> findings_to_html([Finding(code="x", severity=Severity.NOTE, message="1 < 2")])
        '<ul class="findings"><li class="note"><strong>note</strong> 1 &lt; 2 <code>x</code></li></ul>'
    """
    items = "".join(_to_html(finding) for finding in by_severity(findings))
    return f'<ul class="findings">{items}</ul>' if items else ""


def _to_html(finding: Finding) -> str:
    import html  # imported here, since only notebooks and pages need it

    def escape(text: str) -> str:
        return html.escape(escape_controls(text))

    parts = [f"<strong>{finding.severity}</strong> {escape(finding.message)} <code>{escape(finding.code)}</code>"]
    if finding.remedy:
        parts.append(escape(finding.remedy))
    parts += [f"<code>{escape(override)}</code>" for override in finding.overrides]
    return f'<li class="{finding.severity}">{"<br>".join(parts)}</li>'
