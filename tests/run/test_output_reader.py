"""Tests of reading the output of a run, and of the logs of a rank."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_modal.backends import output_tail
from skyrl_modal.backends.output_tail import find_tail, last_lines_of
from skyrl_modal.protocol.events import MessageEvent, MessageLevel, OutputEvent
from skyrl_modal.protocol.kept_logs import is_state_file, without_state_dumps
from skyrl_modal.run.log_lines import decode_lines
from skyrl_modal.run.output_reader import OutputReader
from tests.run.memory_backend import SUCCESS, MemoryExecution

OUTPUT = st.lists(st.sampled_from([b"\n", b"a", b"\r", b"\xff", b"long word"]), max_size=40).map(b"".join)


@given(OUTPUT, st.integers(-1, 12), st.integers(1, 9), st.integers(1, 9))
def test_tail_is_the_end_of_all_lines(content: bytes, count: int, first: int, block: int) -> None:
    """The last lines are found whatever the size of the blocks in which they are searched."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output_tail, "FIRST_BLOCK", first)
        begin = find_tail(lambda start, end: content[start:end], len(content), count, block)
    lines = content.splitlines(keepends=True) if b"\r" not in content else content.replace(b"\r", b"r").splitlines(True)

    assert len(content) - begin == len(b"".join(lines[-count:] if count > 0 else []))
    assert content[begin:] == last_lines_of(content, count)


@given(OUTPUT, st.integers(0, 12), st.lists(st.integers(0, 80), max_size=5))
def test_followed_output_is_complete(content: bytes, tail: int, cuts: list[int]) -> None:
    """Existing lines and live output are joined without a gap or a repetition, however the events are divided."""
    bounds = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    pieces = [content[start:end] for start, end in itertools.pairwise(bounds)]
    execution = MemoryExecution([*map(OutputEvent, pieces), SUCCESS], {"id": "memory"})
    reader = OutputReader("memory", execution, pytest.fail)

    assert b"".join(reader.read(follow=True)) == content
    assert b"".join(reader.read(follow=True, tail=tail)) == last_lines_of(content, tail)


def test_missing_output_is_a_warning() -> None:
    """A warning of the backend, such as a gap in the output, reaches the reader of a followed log."""
    warnings: list[str] = []
    message = MessageEvent("the output is incomplete", MessageLevel.WARNING)
    events = [OutputEvent(b"one\n"), MessageEvent("not important"), message, SUCCESS]
    reader = OutputReader("memory", MemoryExecution(events, {"id": "memory"}), warnings.append)

    assert (list(reader.read(follow=True)), warnings) == ([b"one\n"], [message.text])


@given(OUTPUT)
def test_lines_end_at_newlines_only(content: bytes) -> None:
    """Lines are what is between newlines; carriage returns and other line ends are part of a line."""
    text = content.decode("utf-8", "replace")

    assert list(decode_lines([content])) == text.removesuffix("\n").split("\n") * bool(text)


def test_state_dumps_of_ray_are_left_out() -> None:
    """Blocks of Ray's internal state are left out; log lines and traces of errors remain."""
    start = b"[2026-11-26 21:35:10,689 I 9 9] (gcs_server) grpc_server.cc:144: started, listening on port 1.\n"
    trace = b"*** SIGSEGV received at time=1 ***\n    @ 0x7f  raise\n"
    end = b"[2026-11-26 21:35:12,000 E 9 9] (gcs_server) logging.cc:1: ended\n" + trace
    dump = (
        b"[2026-11-26 21:35:10,810 I 9 9] (gcs_server) gcs_server.cc:1307: Gcs Debug state:\n\nGcsNodeManager: \n"
        b"- RegisterNode request count: 0\n\n[runtime env manager] ID to URIs table:\n\n"
    )
    line = b"[2026-11-26 21:35:22,696 I 85 85] (raylet) node_manager.cc:492: [state-dump] NodeManager:\n"

    assert without_state_dumps(start + dump + end) == start + end
    marked = line + b"[state-dump] Node ID: 1\n[state-dump] " + b"\n"
    assert without_state_dumps(start + marked + end) == start + end
    assert without_state_dumps(trace) == trace
    assert is_state_file("session/debug_state_gcs.txt")
    assert not is_state_file("raylet.out")
