"""Ctrl-C, and the signals that end a process, as events."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from skyrl_modal.event_queue import EventQueue
from skyrl_modal.protocol.dataclass import dataclass

#: Reported at the first Ctrl-C.
STOPPING_MESSAGE = "Ctrl-C: stopping the run. Press Ctrl-C again to kill it."
#: Signals that end a process unless it handles them: of ``kill`` and of job schedulers, and of a terminal that closes.
_ENDING_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


@dataclass(frozen=True, slots=True)
class InterruptEvent:
    """Ctrl-C was pressed, or this process received a signal that ends it.

    Attributes:
        count: How often this has happened until now.
        signal_name: The name of a signal other than that of Ctrl-C; empty for Ctrl-C.
    """

    count: int
    signal_name: str = ""

    @property
    def message(self) -> str:
        """What is reported at the first one.

        Example:
            >>> InterruptEvent(1, "SIGTERM").message
            'SIGTERM: stopping the run. This process exits when the run has ended.'
        """
        if not self.signal_name:
            return STOPPING_MESSAGE
        return f"{self.signal_name}: stopping the run. This process exits when the run has ended."


class Interrupts:
    """Records SIGINT as events instead of raising KeyboardInterrupt, and SIGTERM and SIGHUP instead of exiting.

    Attributes:
        count: How often Ctrl-C was pressed, or another of these signals arrived.
        ending_signal: The first of the other signals; None if there was none.
        is_in_callback: Whether the main thread executes code of the caller, which may block for ever. The second
            Ctrl-C and later ones then also raise KeyboardInterrupt there.
        events: A queue that receives an ``InterruptEvent`` for each. Users of this object add events of their own.
    """

    def __init__(self) -> None:
        self.count = 0
        self.ending_signal: signal.Signals | None = None
        self.is_in_callback = False
        self.events: EventQueue[object] = EventQueue()

    def record(self, signal_name: str = "") -> None:
        """Record one interrupt. Any thread may call it."""
        self.count += 1
        self.events.put(InterruptEvent(self.count, signal_name))

    def handle_signal(self, number: int, *_: object) -> None:
        """Record one interrupt, as a signal handler.

        Raises:
            KeyboardInterrupt: The main thread executes code of the caller, and this is not the first interrupt.
        """
        if number == signal.SIGINT:
            self.record()
        else:
            self.ending_signal = self.ending_signal or signal.Signals(number)
            self.record(self.ending_signal.name)
        if self.is_in_callback and self.count > 1:
            raise KeyboardInterrupt

    def raise_if_recorded(self) -> None:
        """Raise KeyboardInterrupt if an interrupt was recorded."""
        if self.count:
            raise KeyboardInterrupt


@contextmanager
def catch_interrupts() -> Iterator[Interrupts]:
    """Record SIGINT, SIGTERM and SIGHUP as events while the block runs.

    An exception could lose output between reading and writing it: it is raised only in code of the caller that does not
    return, see ``Interrupts.is_in_callback``. Only Python's default handlers are replaced, and only
    in the main thread: in other threads, and where another handler is installed, signals belong to the application.
    If SIGTERM or SIGHUP arrived, the process ends by this signal when the block has ended.
    """
    interrupts = Interrupts()
    replaced: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        defaults = {signal.SIGINT: signal.default_int_handler, **dict.fromkeys(_ENDING_SIGNALS, signal.SIG_DFL)}
        replaced = {number: handler for number, handler in defaults.items() if signal.getsignal(number) is handler}
    for number in replaced:
        signal.signal(number, interrupts.handle_signal)
    try:
        yield interrupts
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
        if interrupts.ending_signal is not None:
            os.kill(os.getpid(), interrupts.ending_signal)
