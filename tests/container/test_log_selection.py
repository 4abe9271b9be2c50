"""What is kept of a log that exceeds its limit: its beginning, its lines with errors, and its end."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_modal.container.bounded_log import BoundedLog
from skyrl_modal.container.log_selection import LogLimits, LogParts, error_lines, has_errors

LIMITS = LogLimits(file=4000, head=500, errors=1200, tail=800)
#: What the notes between the parts need at most.
NOTES = 300

LINES = st.lists(
    st.one_of(
        st.integers(0, 99_999).map(b"step %d: loss 0.3\n".__mod__),
        st.integers(0, 99_999).map(b"ValueError: value %d is wrong\n".__mod__),
        st.binary(max_size=3000),
        st.sampled_from([b"\n", b"\r", b"x" * 900, b"Traceback (most recent call last):\n  File\nKeyError: 1\n"]),
    ),
    max_size=60,
)


@given(LINES)
def test_limits_are_never_exceeded(pieces: list[bytes]) -> None:
    """Whatever is appended in whatever pieces: the result is small, begins as the log began and ends as it ended."""
    parts, seen, content = LogParts(), dict[bytes, int](), b"".join(pieces)
    for piece in pieces:
        parts = LogParts(parts.head, parts.first_errors, parts.last_errors, parts.omitted, parts.tail + piece)
        if len(parts.render()) > LIMITS.file:
            parts = parts.shortened(LIMITS, seen)
            assert len(parts.render()) <= LIMITS.head + LIMITS.errors + LIMITS.tail + NOTES
            assert len(parts.first_errors) + len(parts.last_errors) <= LIMITS.errors

    assert content.startswith(parts.head)
    assert content.endswith(parts.tail)
    if parts.omitted:
        assert parts.omitted == len(content) - len(parts.head) - len(parts.tail)
    else:
        assert parts.render() == content


@given(st.integers(0, 400), st.integers(0, 400), st.integers(1, 100))
def test_an_error_is_kept_wherever_it_is(before: int, after: int, piece: int) -> None:
    """One line with an error is kept, wherever it is among other lines and however the log is divided."""
    error = b"(EngineCore pid=7) RuntimeError: CUDA out of memory\n"
    content = b"".join(
        [
            *(b"line %d is about nothing\n" % number for number in range(before)),
            error,
            *(b"line %d is about nothing\n" % number for number in range(after)),
        ]
    )
    parts, seen = LogParts(), dict[bytes, int]()
    for start in range(0, len(content), 37 * piece):
        part = content[start : start + 37 * piece]
        parts = LogParts(parts.head, parts.first_errors, parts.last_errors, parts.omitted, parts.tail + part)
        if len(parts.render()) > LIMITS.file:
            parts = parts.shortened(LIMITS, seen)

    assert parts.render().count(error) == 1


def test_tracebacks_are_kept_as_a_whole() -> None:
    """A traceback is kept with its frames and its exception, also if each line has a prefix; the lines around not."""
    prefix = b"(WorkerDict pid=12) "
    lines = [b"Traceback (most recent call last):", b'  File "a.py", line 1', b"    x()", b"KeyError: 'x'"]
    trace = b"".join(prefix + line + b"\n" for line in lines)

    found = list(error_lines(b"step 1\n" + trace + b"step 2\n" + b"\n".join(lines) + b"\nstep 3\n", {}))

    assert found == [trace, b"\n".join(lines) + b"\n"]


def test_repeated_errors_leave_room_for_others() -> None:
    """Of lines that differ in their numbers only, ten are kept, so that they do not displace the cause."""
    content = b"".join(b"ERROR retry %d failed\n" % number for number in range(5000)) + b"OSError: disk\n"

    found = list(error_lines(content, {}))

    assert found == [*(b"ERROR retry %d failed\n" % number for number in range(10)), b"OSError: disk\n"]


def test_states_of_progress_bars_are_lines() -> None:
    """A carriage return ends a line, so that an error is found without a thousand states of a progress bar."""
    bar = b"".join(b"%d %%\r" % number for number in range(1000))

    assert list(error_lines(bar + b"AssertionError: no\r" + bar, {})) == [b"AssertionError: no\n"]


def test_errors_of_rays_programs_have_a_letter() -> None:
    """Ray's own programs mark errors by the letter E or F after the time."""
    line = b"[2026-11-26 21:35:12,000 E 9 9] (gcs_server) gcs.cc:1: it ended\n"

    assert has_errors(line)
    assert not has_errors(line.replace(b" E ", b" I "))
    assert list(error_lines(b"a\n" + line + b"b\n", {})) == [line]


def test_kept_log_is_complete_while_it_grows(tmp_path: Path) -> None:
    """Below the limit a log is unchanged; above it the notes state what is left out, and its size is the file's."""
    log = BoundedLog(tmp_path / "ray" / "x.log", LIMITS)
    for number in range(200):
        log.append(b"line %d\n" % number)
    assert log.path.read_bytes() == b"".join(b"line %d\n" % number for number in range(200))

    log.append(b"ImportError: libcuda.so.1\n")
    for number in range(200, 2000):
        log.append(b"line %d\n" % number)

    content = log.path.read_bytes()
    assert log.size == len(content) <= LIMITS.file
    assert content.startswith(b"line 0\n")
    assert b"bytes are omitted here; those of its lines with errors: <==\nImportError: libcuda.so.1\n" in content
    assert content.endswith(b"line 1999\n")
    assert log.path.stat().st_mode & 0o777 == 0o600


def test_link_in_place_of_a_kept_log(tmp_path: Path) -> None:
    """A link that the command puts in place of a kept log is not followed, and what was lost is counted later."""
    log = BoundedLog(tmp_path / "x.log", LIMITS)
    log.append(b"first\n")
    (tmp_path / "other").write_text("unchanged")
    log.path.unlink()
    log.path.symlink_to(tmp_path / "other")

    with pytest.raises(OSError, match="symbolic link"):
        log.append(b"second\n")
    log.path.unlink()
    log.append(b"third\n")

    assert (tmp_path / "other").read_text() == "unchanged"
    assert log.path.read_bytes() == b"==> 7 bytes could not be written here <==\nthird\n"
