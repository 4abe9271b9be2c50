"""Following a run that belongs to this process: its output to a sink, Ctrl-C to the run, its end to a result."""

from __future__ import annotations

import codecs
import contextvars
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

from skyrl_modal.errors import SpecError
from skyrl_modal.event_queue import Events
from skyrl_modal.run.handle import TAIL_BYTES, Reporter, Run, RunResult, RunState

Output = Callable[[bytes], object] | IO[bytes] | None
"""Where a command's output goes: a callable, a binary file, or None for standard output."""

#: What is said at the first Ctrl-C.
STOPPING = "Ctrl-C: stopping the run; once more ends it at once"
#: Events that may wait between the reader and the sink: memory stays flat where the sink is slow.
_AHEAD = 64
#: Lines of ours that are remembered, to say nothing twice.
_TOLD = 200


class Interrupts:
    """Ctrl-C as events instead of an exception out of nowhere.

    Attributes:
        count: How often it was pressed.
        events: The queue that gets ``("interrupt", count)`` at each press.
    """

    def __init__(self) -> None:
        self.count = 0
        self.events: Events[tuple[str, Any]] = Events()

    def press(self, *_: object) -> None:
        """Take one press; a handler of SIGINT."""
        self.count += 1
        self.events.put(("interrupt", self.count))

    def raise_if_pressed(self) -> None:
        """Raise KeyboardInterrupt where it was pressed already."""
        if self.count:
            raise KeyboardInterrupt


@contextmanager
def catch_interrupts() -> Iterator[Interrupts]:
    """Turn Ctrl-C into events for as long as the block runs.

    An exception could lose a piece of the output between its reading and its writing. Only Python's own handler is
    replaced, and only in the main thread: elsewhere signals are not this library's to take.
    """
    interrupts = Interrupts()
    mine = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if not mine:
        yield interrupts
        return
    signal.signal(signal.SIGINT, interrupts.press)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def sink_for(output: Output) -> Callable[[bytes], object]:
    """What takes the bytes of the output.

    Raises:
        SpecError: ``output`` is neither a callable nor a file open for bytes.
    """
    if output is None:
        return _Stdout().write
    if callable(output):
        return output
    write = getattr(output, "write", None)
    if write is None or isinstance(getattr(output, "encoding", None), str):
        raise SpecError("output", output, 'give a callable that takes bytes, or a file opened with "wb"')

    def write_all(data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = write(view)
            view = view[len(view) if written is None else written :]
        flush = getattr(output, "flush", None)
        if flush is not None:
            flush()

    return write_all


class _Stdout:
    """Standard output as it is at the moment: bytes where it takes them, else text, as in a notebook."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def write(self, data: bytes) -> None:
        stream = sys.stdout
        if stream is None:
            return
        binary = getattr(stream, "buffer", None)
        if binary is not None:
            stream.flush()
            binary.write(data)
            binary.flush()
        else:
            stream.write(self._decoder.decode(data))
            stream.flush()


def tell_end(result: RunResult, reporter: Reporter, told: Iterable[str] = ()) -> None:
    """Say how a run ended, and where its output is; before that why it failed, where that was not told yet.

    Args:
        result: How it ended.
        reporter: Gets our lines.
        told: What was told, in lines.
    """
    known = list(told)
    if result.state in (RunState.FAILED, RunState.LOST):
        for line in result.detail.splitlines():
            if not any(line in one for one in known):
                reporter.line(line)
    ending = f"{result.state}, exit code {result.returncode} after {result.duration:.1f} s"
    reporter.line(f"{ending}; log: {result.log_path}")


def follow(run: Run, output: Output, reporter: Reporter, interrupts: Interrupts) -> RunResult:
    """Follow a run to its end.

    Args:
        run: A run that this process started.
        output: Where the output goes.
        reporter: Gets our own lines.
        interrupts: Ctrl-C: the first press ends the run gently, a second one at once.

    Raises:
        Exception: What the sink raised. The run has been ended before.
    """
    sink: Callable[[bytes], object] | None = sink_for(output)
    events, room = interrupts.events, threading.BoundedSemaphore(_AHEAD)

    def read() -> None:
        try:
            for event in run.events():
                room.acquire()
                events.put(("event", event))
        except BaseException as error:  # it is raised where the run is followed
            events.put(("broken", error))
        else:
            events.put(("end", None))

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(read,), name=f"follow-{run.id}", daemon=True).start()
    record: Mapping[str, Any] = {}
    tail, failure = b"", None
    told: deque[str] = deque(maxlen=_TOLD)
    while True:
        kind, value = events.next()
        if kind == "end":
            break
        if kind == "broken":
            run.cancel()
            raise value
        if kind == "interrupt":
            if value == 1:
                reporter.line(STOPPING)
            run.cancel(now=value > 1)
            continue
        what, content = value
        if what == "output":
            tail = (tail + content)[-TAIL_BYTES:] if len(content) < TAIL_BYTES else content[-TAIL_BYTES:]
            if sink is not None:
                try:
                    sink(content)
                except Exception as error:
                    # Nobody takes the output any more: the run ends, as its caller would at a broken pipe.
                    failure, sink = error, None
                    run.cancel()
        elif what == "line":
            told.extend(content.splitlines())
            reporter.line(content)
        elif what == "handle":
            run.remember()
        elif what == "result":
            record = content
        room.release()
    result = run.to_result(record, tail)
    tell_end(result, reporter, [*told, *tail.decode("utf-8", "replace").splitlines()])
    if failure is not None:
        raise failure
    return result
