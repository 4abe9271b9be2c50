"""The cause of a failure: the earliest root cause in all logs of a run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime

from skyrl_modal.findings import UNKNOWN_CAUSE, Diagnosis, Evidence
from skyrl_modal.skyrl.failures.catalog import RULES
from skyrl_modal.skyrl.failures.informative_lines import find_informative_lines, find_last_exception
from skyrl_modal.skyrl.failures.log_scan import Hit, ScannedLog, is_output, scan_log
from skyrl_modal.skyrl.failures.rule import RESULT_RECORD, FailureFacts, FailureRule, LogSource

#: Number of lines of evidence.
MAX_EVIDENCE = 6
#: Number of training steps after which a failure that was seen before them counts as handled.
_STEPS_AFTER_RECOVERY = 2
#: Bytes of output between a root cause and an error of the program's own code that the root cause explains.
_SAME_FAILURE_BYTES = 16 << 10
#: Characters of a captured value.
_MAX_VALUE = 200
#: Errors that a mistake in the program's own code raises, and the loss of an engine or a rank seldom does.
_OWN_ERRORS = frozenset(
    (
        "ArithmeticError",
        "AttributeError",
        "IndentationError",
        "IndexError",
        "KeyError",
        "NameError",
        "NotImplementedError",
        "RecursionError",
        "SyntaxError",
        "TypeError",
        "UnboundLocalError",
        "ZeroDivisionError",
    )
)


def diagnose(
    sources: Iterable[LogSource], facts: FailureFacts, *, year: int = 2000, rules: Sequence[FailureRule] = RULES
) -> Diagnosis:
    """Return why a run failed.

    Args:
        sources: Its logs. Each is read once.
        facts: What its result shows.
        year: The year in which it started, for times in its logs that have no year.
        rules: The known failures.
    """
    applicable = [rule for rule in rules if _applies(rule, facts)]
    detail = LogSource(name=RESULT_RECORD, chunks=[facts.detail.encode("utf-8", "replace")])
    textual = [rule for rule in applicable if rule.terms]
    logs = [scan_log(source, textual, year) for source in (detail, *sources)]
    hits = _without_recovered(logs)
    hits += _own_hits(applicable, logs, facts)
    if hits:
        priority = {rule.code: number for number, rule in reversed(list(enumerate(rules)))}
        chosen = min(hits, key=lambda hit: (*_order(hit), priority[hit.rule.code]))
        if not _is_explained_otherwise(chosen, logs):
            return _diagnosis_of(chosen, hits)
    return Diagnosis(
        code=UNKNOWN_CAUSE,
        cause="The cause is not known: no rule describes this failure.",
        evidence=find_informative_lines(logs[1:]),
    )


def _applies(rule: FailureRule, facts: FailureFacts) -> bool:
    """Return whether the result of a run permits a rule."""
    if rule.run_causes and facts.cause not in rule.run_causes:
        return False
    return not rule.returncodes or facts.returncode in rule.returncodes


def _without_recovered(logs: Sequence[ScannedLog]) -> list[Hit]:
    """Return the hits of failures after which training did not continue."""
    output_ends = [end for log in logs if is_output(log.source) for end in log.step_ends]
    hits = []
    for log in logs:
        for hit in log.hits:
            if is_output(log.source):
                later = sum(offset > hit.offset for offset, _ in output_ends)
            else:
                later = sum(_is_later(time, hit.time) for _, time in output_ends)
            if later < _STEPS_AFTER_RECOVERY:
                hits.append(hit)
    return hits


def _is_later(time: datetime | None, other: datetime | None) -> bool:
    return time is not None and other is not None and time.replace(tzinfo=None) > other.replace(tzinfo=None)


def _own_hits(rules: Sequence[FailureRule], logs: Sequence[ScannedLog], facts: FailureFacts) -> list[Hit]:
    """Return a hit for each rule about the result alone."""
    source = logs[0].source
    text = (facts.detail.splitlines() or [f"exit code {facts.returncode}"])[0]
    return [
        Hit(rule=rule, source=source, line=1, offset=0, text=text, values={}, time=None)
        for rule in rules
        if not rule.terms
    ]


def _order(hit: Hit) -> tuple[object, ...]:
    """Return the sort key: root causes first, then by attempt, time, kind of log, rank and position."""
    time = datetime.max if hit.time is None else hit.time.replace(tzinfo=None)
    is_late = is_output(hit.source) or hit.source.name == RESULT_RECORD
    return hit.rule.weight, hit.source.attempt or 1, time, is_late, hit.source.rank, hit.source.name, hit.offset


def _is_explained_otherwise(hit: Hit, logs: Sequence[ScannedLog]) -> bool:
    """Return whether the output ended with an error of the program's own code, long after the hit.

    The hit is then an error that the program has handled.
    """
    if not is_output(hit.source):
        return False
    log = next(log for log in logs if log.source is hit.source)
    last = find_last_exception(log)
    if last is None or last.offset - hit.offset < _SAME_FAILURE_BYTES:
        return False
    return last.type.rpartition(".")[2] in _OWN_ERRORS


def _diagnosis_of(chosen: Hit, hits: Sequence[Hit]) -> Diagnosis:
    """Return the diagnosis of a hit, with further lines that show the same failure in other logs."""
    others = sorted((hit for hit in hits if hit.rule.code == chosen.rule.code or hit.rule.weight > 0), key=_order)
    lines = {(hit.source.rank, hit.source.attempt, hit.source.name, hit.rule.code): hit for hit in reversed(others)}
    further = [hit for hit in sorted(lines.values(), key=_order) if hit.rule.terms and hit is not chosen]
    values = {name: _shortened(value) for name, value in chosen.values.items()}
    return Diagnosis(
        code=chosen.rule.code,
        cause=_filled(chosen.rule.cause, values),
        remedy=_filled(chosen.rule.remedy, values),
        evidence=tuple(_to_evidence(hit) for hit in (chosen, *further)[:MAX_EVIDENCE]),
    )


def _to_evidence(hit: Hit) -> Evidence:
    source = hit.source
    return Evidence(file=source.name, line=hit.line, text=hit.text, rank=source.rank, attempt=source.attempt)


def _shortened(value: str) -> str:
    return value if len(value) <= _MAX_VALUE else f"{value[:_MAX_VALUE]}…"


def _filled(text: str, values: dict[str, str]) -> str:
    """Replace ``{name}`` by values. A value is not searched for further names."""
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1]) or "?", text)
