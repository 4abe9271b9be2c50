"""Claims of ports."""

from __future__ import annotations

import socket
import sys

import pytest

from skyrl_modal import ports
from skyrl_modal.ports import claim_port, free_port, is_port_free

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
def test_ports_claimed_by_another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that holds the names of all ports delays a run by a bounded number of tries."""
    tried: list[str] = []
    monkeypatch.setattr(ports, "_claim_name", tried.append)

    port, claim = claim_port(free_port())

    assert is_port_free(port)
    assert claim is None
    assert len(tried) == 16
