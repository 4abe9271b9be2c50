"""Tests of the awaitable methods."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import pytest

from skyrl_modal import CommandFailed
from tests.conftest import MakeLauncher


def test_concurrent_runs(launcher: MakeLauncher) -> None:
    """Several runs can be awaited at the same time."""
    made, outputs = launcher(), [io.BytesIO(), io.BytesIO()]

    async def run_both() -> list[int]:
        results = await asyncio.gather(
            *(made.arun(f"echo {n}; exit {n}", output=outputs[n], quiet=True) for n in range(2))
        )
        return [result.returncode for result in results]

    assert asyncio.run(run_both()) == [0, 1]
    assert [output.getvalue() for output in outputs] == [b"0\n", b"1\n"]


def test_check_raises(launcher: MakeLauncher) -> None:
    """With check=True, a failure raises CommandFailed."""
    with pytest.raises(CommandFailed) as caught:
        asyncio.run(launcher().arun("exit 3", check=True, quiet=True))

    assert caught.value.returncode == 3


def test_cancelled_task_cancels_its_run(launcher: MakeLauncher, tmp_path: Path) -> None:
    """A cancelled task stops its run with the grace period, and waits for its end."""
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


def test_submit(launcher: MakeLauncher) -> None:
    """asubmit returns the handle of a run that continues."""
    run = asyncio.run(launcher().asubmit("exit 4"))

    assert run.wait(60).returncode == 4
