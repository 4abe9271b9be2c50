"""Ctrl-C as an event."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from skyrl_modal.event_queue import EventQueue
from skyrl_modal.protocol.dataclass import dataclass

#: Reported at the first Ctrl-C.
STOPPING_MESSAGE = "Ctrl-C: stopping the run. Press Ctrl-C again to kill it."


@dataclass(frozen=True, slots=True)
class InterruptEvent:
    """Ctrl-C was pressed.

    Attributes:
        count: How often it was pressed until now.
    """

    count: int


class Interrupts:
    """Records SIGINT as events instead of raising KeyboardInterrupt.

    Attributes:
        count: How often Ctrl-C was pressed.
        is_in_callback: Whether the main thread executes code of the caller, which may block for ever. The second
            Ctrl-C and later ones then also raise KeyboardInterrupt there.
        events: A queue that receives an ``InterruptEvent`` for each. Users of this object add events of their own.
    """

    def __init__(self) -> None:
        self.count = 0
        self.is_in_callback = False
        self.events: EventQueue[object] = EventQueue()

    def record(self, *_: object) -> None:
        """Record one interrupt. Any thread may call it."""
        self.count += 1
        self.events.put(InterruptEvent(self.count))

    def handle_signal(self, *_: object) -> None:
        """Record one interrupt, as a signal handler.

        Raises:
            KeyboardInterrupt: The main thread executes code of the caller, and this is not the first interrupt.
        """
        self.record()
        if self.is_in_callback and self.count > 1:
            raise KeyboardInterrupt

    def raise_if_recorded(self) -> None:
        """Raise KeyboardInterrupt if an interrupt was recorded."""
        if self.count:
            raise KeyboardInterrupt


@contextmanager
def catch_interrupts() -> Iterator[Interrupts]:
    """Record SIGINT as events while the block runs.

    An exception could lose output between reading and writing it: it is raised only in code of the caller that does not
    return, see ``Interrupts.is_in_callback``. Only Python's default handler is replaced, and only
    in the main thread: in other threads, and where another handler is installed, signals belong to the application.
    """
    interrupts = Interrupts()
    is_replaceable = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if not is_replaceable:
        yield interrupts
        return
    signal.signal(signal.SIGINT, interrupts.handle_signal)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
