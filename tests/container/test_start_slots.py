"""Slots to start Ray."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from skyrl_modal.container.start_slots import claim_start_slots


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    """Return a descriptor of an empty folder."""
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def claim_all(folder: int) -> contextlib.ExitStack:
    """Claim all slots."""
    claims = contextlib.ExitStack()
    while (claim := claim_start_slots(folder, 1)) is not None:
        claims.enter_context(claim)
    return claims


def test_start_slots_are_limited(folder: int) -> None:
    """No slot is free after all were claimed, and a run with more nodes than slots gets all of them."""
    with claim_all(folder):
        assert claim_start_slots(folder, 1) is None
        assert claim_start_slots(folder, 1000) is None

    with claim_start_slots(folder, 1000) or contextlib.nullcontext():
        assert claim_start_slots(folder, 1) is None


def test_a_failed_claim_keeps_no_slot(folder: int) -> None:
    """A run that needs more slots than are free claims none of them."""
    first = claim_start_slots(folder, 1)
    assert first is not None
    with first:
        assert claim_start_slots(folder, 1000) is None

    claim = claim_start_slots(folder, 1000)

    assert claim is not None
    claim.close()


def test_slots_of_a_killed_process_are_free(folder: int, tmp_path: Path) -> None:
    """The slots of a process that was killed are free, and its files remain for the next one."""
    program = (
        "import os, signal, sys\nfrom skyrl_modal.container.start_slots import claim_start_slots\n"
        "claim = claim_start_slots(os.open(sys.argv[1], os.O_RDONLY), 1000)\n"
        "assert claim is not None\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False).returncode == -9

    claim = claim_start_slots(folder, 1000)

    assert claim is not None
    claim.close()


def test_abstract_sockets_do_not_block_a_start(folder: int) -> None:
    """Names of abstract sockets, which every local process can hold, have no effect on the slots."""
    with contextlib.ExitStack() as stack:
        for number in range(max(2, os.cpu_count() or 1) if sys.platform == "linux" else 0):
            name = stack.enter_context(socket.socket(socket.AF_UNIX))
            name.bind(f"\0skyrl_modal-ray-start-{number}")

        claim = claim_start_slots(folder, 1)

    assert claim is not None
    claim.close()


def test_slots_are_private_files(folder: int, tmp_path: Path) -> None:
    """Other users cannot open the file of a slot, whatever the umask."""
    before = os.umask(0)
    try:
        claim_all(folder).close()
    finally:
        os.umask(before)

    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


@pytest.mark.parametrize("obstacle", ["folder", "link", "removed", "none"])
def test_start_without_usable_slots(folder: int, tmp_path: Path, obstacle: str) -> None:
    """If the files of the slots cannot be used, the number of starts is not limited."""
    if obstacle == "folder":
        (tmp_path / "slot-0").mkdir()
    elif obstacle == "link":
        (tmp_path / "slot-0").symlink_to("/dev/null")
    elif obstacle == "removed":
        tmp_path.rmdir()

    claim = claim_start_slots(None if obstacle == "none" else folder, 1000)

    assert claim is not None
    claim.close()
