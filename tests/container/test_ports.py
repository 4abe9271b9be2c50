"""Claims of ports and of slots to start Ray."""

from __future__ import annotations

import contextlib
import socket
import sys

import pytest

from skyrl_modal.container.ports import claim_port, claim_start_slots, free_port, is_port_free

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets exist on Linux only")


@linux_only
def test_port_is_claimed_once() -> None:
    """A second run gets another port than one that was claimed, until the claim is closed."""
    preferred = free_port()

    first, first_claim = claim_port(preferred)
    second, second_claim = claim_port(preferred)
    assert first_claim is not None
    assert second_claim is not None
    first_claim.close()
    third, third_claim = claim_port(preferred)
    assert third_claim is not None

    assert (first, third) == (preferred, preferred)
    assert second != preferred
    second_claim.close()
    third_claim.close()


def test_port_in_use_is_not_claimed() -> None:
    """Another port is claimed if a program listens on the preferred one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        preferred = listener.getsockname()[1]
        assert not is_port_free(preferred)

        port, claim = claim_port(preferred)

    assert port != preferred
    if claim is not None:
        claim.close()


@linux_only
def test_start_slots_are_limited() -> None:
    """No slot is free after all were claimed, and a run with more nodes than slots gets all of them."""
    with contextlib.ExitStack() as claims:
        while (slots := claim_start_slots(1)) is not None:
            for slot in slots:
                claims.enter_context(slot)
        assert claim_start_slots(1000) is None
