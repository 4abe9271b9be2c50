"""The awaitable twins."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_modal import CommandFailed, Launcher

Make = Callable[..., Launcher]


def test_runs_can_be_awaited_side_by_side(launcher: Make) -> None:
    made, outputs = launcher(), [io.BytesIO(), io.BytesIO()]

    async def both() -> list[int]:
        results = await asyncio.gather(
            *(made.arun(f"echo {n}; exit {n}", output=outputs[n], quiet=True) for n in range(2))
        )
        return [result.returncode for result in results]

    assert asyncio.run(both()) == [0, 1]
    assert [output.getvalue() for output in outputs] == [b"0\n", b"1\n"]


def test_check_raises_there_too(launcher: Make) -> None:
    with pytest.raises(CommandFailed, match="exit code 3"):
        asyncio.run(launcher().arun("exit 3", check=True, quiet=True))


def test_a_cancelled_task_cancels_its_run_and_lets_it_save(launcher: Make, tmp_path: Path) -> None:
    made = launcher()

    async def cancel_when_up() -> None:
        up, loop = asyncio.Event(), asyncio.get_running_loop()
        task = asyncio.create_task(
            made.arun(
                "trap 'echo yes > /root/data/saved; exit 0' INT TERM; echo up; sleep 600 & wait",
                output=lambda _: loop.call_soon_threadsafe(up.set),
                quiet=True,
            )
        )
        await up.wait()
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancel_when_up())

    assert made.pull("/root/data/saved", tmp_path / "saved").read_text() == "yes\n"


def test_submit_can_be_awaited(launcher: Make) -> None:
    run = asyncio.run(launcher().asubmit("exit 4"))

    assert run.wait(60).returncode == 4
