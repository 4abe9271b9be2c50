"""The causes of failures in logs with other prefixes, colours, numbers and lines in between, and of any size."""

from __future__ import annotations

import re
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from skyrl_modal.findings import UNKNOWN_CAUSE, Diagnosis
from skyrl_modal.protocol.state import FailureCause
from skyrl_modal.skyrl.failures.catalog import RULES
from skyrl_modal.skyrl.failures.diagnosis import diagnose
from skyrl_modal.skyrl.failures.log_scan import BLOCK
from skyrl_modal.skyrl.failures.rule import OUTPUT_LOG, FailureFacts, LogSource
from tests.skyrl.failure_log_corpus import Case, read_cases

# The error of each of these cases is in the output alone.
SINGLE = [case for case in read_cases("failing.txt") if len(case.logs) == 1]
OTHER = [case for case in read_cases("other.txt") if len(case.logs) == 1]
PLAIN = [case for case in SINGLE if b"(" not in case.logs[0][3] and b"pytest" not in case.logs[0][3]]
NOISE = st.lists(
    st.sampled_from(
        [
            b"(Worker pid=77) INFO 11-26 10:03:40 [loggers.py:122] Engine 000: Avg prompt throughput: 3.1 tokens/s",
            b"\x1b[36m(skyrl_entrypoint pid=78)\x1b[0m step 3 of 60",
            b"Training Batches Processed:   3%|#| 2/60 [00:40<19:20, 20.0s/it]\r",
            b"(raylet) [2026-11-26 10:03:40,589 I 8 8] (raylet) worker_pool.cc:5: 2 workers",
            b"{'reward/avg_raw_reward': '0.51'}",
            b"",
        ]
    ),
    max_size=8,
)


def _diagnose(*chunks: bytes, returncode: int = 1) -> Diagnosis:
    source = LogSource(name=OUTPUT_LOG, chunks=chunks, attempt=1)
    return diagnose([source], FailureFacts(returncode=returncode, cause=FailureCause.COMMAND_FAILED), year=2026)


def _with_output(case: Case, content: bytes) -> Case:
    return replace(case, logs=((0, 1, OUTPUT_LOG, content),))


@settings(deadline=None, max_examples=60)
@given(case=st.sampled_from(SINGLE), noise=NOISE, after=NOISE)
def test_lines_before_and_after(case: Case, noise: list[bytes], after: list[bytes]) -> None:
    """Lines before and after an error change nothing."""
    content = b"\n".join([*noise, case.logs[0][3], *after])
    assert _with_output(case, content).diagnose().code == case.code


@settings(deadline=None, max_examples=60)
@given(case=st.sampled_from(PLAIN), pid=st.integers(1, 4194304), colour=st.booleans(), noise=NOISE)
def test_prefixes_of_ray(case: Case, pid: int, colour: bool, noise: list[bytes]) -> None:
    """An error is found behind the prefix of a process, in colours, with lines of other processes in between."""
    prefix = b"(skyrl_entrypoint pid=%d, ip=10.0.0.7)" % pid
    prefix = b"\x1b[36m%s\x1b[0m " % prefix if colour else prefix + b" "
    lines = [prefix + line for line in case.logs[0][3].splitlines()]
    for number, line in enumerate(noise):
        if b"\r" not in line:
            lines.insert(min(len(lines), 2 * number), line)
    assert _with_output(case, b"\n".join(lines)).diagnose().code == case.code


@settings(deadline=None, max_examples=50)
@given(case=st.sampled_from(SINGLE), digit=st.integers(1, 9))
def test_other_numbers(case: Case, digit: int) -> None:
    """Process ids and sizes do not matter."""
    content = re.sub(rb"(?<=pid=)\d+|(?<=allocate )\d+", b"%d" % digit, case.logs[0][3])
    assert _with_output(case, content).diagnose().code == case.code


@settings(deadline=None, max_examples=50)
@given(case=st.sampled_from([*SINGLE, *OTHER]), size=st.integers(1, 4000))
def test_chunks_end_anywhere(case: Case, size: int) -> None:
    """The result does not depend on where the pieces of a log end."""
    content = case.logs[0][3]
    chunks = [content[start : start + size] for start in range(0, len(content), size)]
    assert _diagnose(*chunks, returncode=case.returncode) == _with_output(case, content).diagnose()


@settings(deadline=None, max_examples=60)
@given(text=st.binary(max_size=3000), term=st.sampled_from([term for rule in RULES for term in rule.terms]))
def test_any_bytes(text: bytes, term: str) -> None:
    """Any content has a diagnosis, whose texts have no line ends."""
    diagnosis = _diagnose(text, term.encode(), b" ", text)
    assert diagnosis.cause
    assert not any("\n" in line.text for line in diagnosis.evidence)


def test_large_log() -> None:
    """An error between blocks of a large log is found, with its line."""
    line = b"(Worker pid=3) reward 0.5, 1024 tokens\n"
    before = line * (3 * BLOCK // len(line))
    error = b"OSError: [Errno 28] No space left on device\n"
    diagnosis = _diagnose(before, error, before)
    assert diagnosis.code == "disk-full"
    assert diagnosis.evidence[0].line == before.count(b"\n") + 1


def test_long_line() -> None:
    """A text in a line of several blocks is not an error, and the line after it is one."""
    long = b"x" * (2 * BLOCK) + b" OSError: [Errno 28] No space left on device " + b"y" * BLOCK
    assert _diagnose(long).code == UNKNOWN_CAUSE
    assert _diagnose(long, b"\nOSError: [Errno 28] No space left on device").code == "disk-full"


def test_control_characters_are_kept_apart() -> None:
    """A colour is removed, and other control characters are escaped where a diagnosis is shown."""
    from skyrl_modal.views.diagnosis import diagnosis_to_html, format_diagnosis

    diagnosis = _diagnose(b"\x1b[31mOSError: [Errno 28] No space left on device: '<b>\x1b]0;title\x07\x9b2J'\x1b[0m")
    assert diagnosis.code == "disk-full"
    for text in (format_diagnosis(diagnosis), diagnosis_to_html(diagnosis)):
        assert "\x1b" not in text
        assert "\x07" not in text
    assert "<b>" not in diagnosis_to_html(diagnosis)
