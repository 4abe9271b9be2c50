"""Many runs in one process, such as in a notebook or a training driver, need no more memory than a few."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from pathlib import Path

import pytest

from skyrl_modal import Launcher


def package_objects() -> Counter[str]:
    """Return the number of objects of the package's classes by class, including those that wait for a collection."""
    names = [f"{type(item).__module__}.{type(item).__qualname__}" for item in gc.get_objects()]
    return Counter(name for name in names if name.startswith("skyrl_modal."))


def wait_for_threads() -> None:
    """Wait for the end of the threads of the runs that have ended."""
    for thread in threading.enumerate():
        if thread.name.startswith(("skyrl-modal", "run-end")):
            thread.join()


def private_memory() -> int:
    """Return the memory of this process that it shares with no other, in KiB."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))


def test_runs_leave_no_objects(checkout: Path) -> None:
    """When a run has ended, none of its objects remains, also if Python has not searched for cycles since then."""
    launcher = Launcher(backend="local", checkout=checkout, gpu=None, ray=None)
    for _ in range(2):  # the first runs fill caches
        launcher.run("echo hello", output=lambda data: None, quiet=True, check=True)
    wait_for_threads()
    gc.collect()
    gc.disable()
    try:
        before = package_objects()
        for _ in range(4):
            launcher.run("echo hello", output=lambda data: None, quiet=True, check=True)
        wait_for_threads()
        after = package_objects()
    finally:
        gc.enable()

    assert after - before == Counter()


@pytest.mark.slow
def test_memory_of_many_runs_is_constant(checkout: Path) -> None:
    """After the first runs, 200 further ones need less than 4 KiB each: what the allocator does not return."""
    launcher = Launcher(backend="local", checkout=checkout, gpu=None, ray=None)
    for _ in range(50):
        launcher.run("true", quiet=True, check=True)
    gc.collect()
    before = private_memory()
    for _ in range(200):
        launcher.run("true", quiet=True, check=True)
    gc.collect()

    assert private_memory() - before < 200 * 4
