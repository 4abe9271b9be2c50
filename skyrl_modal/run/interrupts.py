"""Ctrl-C, and the signals that end a process, as events."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from skyrl_modal.dataclass import dataclass
from skyrl_modal.event_queue import EventQueue

#: Reported at the first Ctrl-C.
STOPPING_MESSAGE = "Ctrl-C: stopping the run. Press Ctrl-C again to kill it."
#: Seconds after the second Ctrl-C in which one call of the caller's code, such as the sink, has to return, and in which
#: all of them have to end.
CALLBACK_TIMEOUT = 0.5
MAX_CALLBACKS_SECONDS = 5.0
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
        callback: The number of the call of the caller's code that the main thread executes; None for none.
        events: A queue that receives an ``InterruptEvent`` for each. Users of this object add events of their own.
    """

    def __init__(self) -> None:
        self.count = 0
        self.ending_signal: signal.Signals | None = None
        self.callback: int | None = None
        self.events: EventQueue[object] = EventQueue()
        self._handled: signal.Signals | None = None
        self._is_interrupting = False
        self._callbacks = 0

    def begin_callback(self) -> None:
        """Note that the main thread calls code of the caller, which may block for ever."""
        self._callbacks += 1
        self.callback = self._callbacks

    def end_callback(self) -> None:
        """Note that the code of the caller has returned or failed."""
        self.callback = None

    def interrupt_callback(self, is_ended: threading.Event) -> None:
        """Raise KeyboardInterrupt in code of the caller that does not return. Call it in another thread.

        Code that returns is not interrupted for some seconds, so that the end of the run is reported.

        Args:
            is_ended: Set when the caller's code is not called any more.
        """
        if self._handled is None:  # signals belong to the application
            return
        deadline = time.monotonic() + MAX_CALLBACKS_SECONDS
        while True:
            callback = self.callback
            if is_ended.wait(CALLBACK_TIMEOUT):
                return
            is_blocked = callback is not None and callback == self.callback
            if is_blocked or time.monotonic() >= deadline:
                self._is_interrupting = True
                signal.pthread_kill(threading.main_thread().ident or 0, self._handled)

    def install(self) -> dict[signal.Signals, Any]:
        """Replace Python's default handlers of the signals. Return those that were replaced."""
        defaults = {signal.SIGINT: signal.default_int_handler, **dict.fromkeys(_ENDING_SIGNALS, signal.SIG_DFL)}
        replaced = {number: handler for number, handler in defaults.items() if signal.getsignal(number) is handler}
        for number in replaced:
            signal.signal(number, self.handle_signal)
        self._handled = next(iter(replaced), None)
        return replaced

    def record(self, signal_name: str = "") -> None:
        """Record one interrupt. Any thread may call it."""
        self.count += 1
        self.events.put(InterruptEvent(self.count, signal_name))

    def handle_signal(self, number: int, *_: object) -> None:
        """Record one interrupt, as a signal handler.

        Raises:
            KeyboardInterrupt: The main thread executes code of the caller that ``interrupt_callback`` interrupts.
        """
        if self._is_interrupting:
            self._is_interrupting = False
            if self.callback is not None:
                raise KeyboardInterrupt
            return
        if number == signal.SIGINT:
            self.record()
        else:
            self.ending_signal = self.ending_signal or signal.Signals(number)
            self.record(self.ending_signal.name)

    def raise_if_recorded(self) -> None:
        """Raise KeyboardInterrupt if an interrupt was recorded."""
        if self.count:
            raise KeyboardInterrupt


@contextmanager
def catch_interrupts() -> Iterator[Interrupts]:
    """Record SIGINT, SIGTERM and SIGHUP as events while the block runs.

    An exception could lose output between reading and writing it: it is raised only in code of the caller that does not
    return, see ``Interrupts.interrupt_callback``. Only Python's default handlers are replaced, and only
    in the main thread: in other threads, and where another handler is installed, signals belong to the application.
    If SIGTERM or SIGHUP arrived, the process ends by this signal when the block has ended.
    """
    interrupts = Interrupts()
    replaced: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        replaced = interrupts.install()
    try:
        yield interrupts
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
        if interrupts.ending_signal is not None:
            os.kill(os.getpid(), interrupts.ending_signal)
