"""Threads that wait for files and for backends, with a limit. The process can exit while they wait."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class DaemonThreads:
    """A limited number of threads. Those of ``concurrent.futures`` are waited for when the process exits.

    Args:
        count: Number of threads.
        seconds: Seconds after which a caller does not wait any longer. The thread continues.
    """

    def __init__(self, count: int, seconds: float) -> None:
        self._tasks: queue.SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._seconds = seconds
        for number in range(count):
            threading.Thread(target=self._work, name=f"skyrl-modal-ui-{number}", daemon=True).start()

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in one of the threads.

        Raises:
            TimeoutError: It takes too long.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._tasks.put((future, lambda: function(*arguments)))
        return await asyncio.wait_for(future, self._seconds)

    def _work(self) -> None:
        while True:
            future, call = self._tasks.get()
            if future.cancelled():  # its caller does not wait any longer
                continue
            try:
                result, error = call(), None
            except BaseException as raised:
                result, error = None, raised
            loop = future.get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(_finish, future, result, error)
            del future, call, result, error


def _finish(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
