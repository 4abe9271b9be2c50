"""The option `pytest --loopback-mode NAME`, and the tests that are known to fail in a mode.

tests/conftest.py imports the hooks. The modes are in tests/support/loopback/modes.py. This module does not import it,
since most tests need no loopback.
"""

from __future__ import annotations

import os

import pytest

from tests.support.known_failures import KNOWN_FAILURES

#: Read by tests/support/loopback/modes.py.
VARIABLE = "SKYRL_MODAL_LOOPBACK_MODE"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    text = "how the stand-in for Modal's servers behaves: a name in tests/support/loopback/modes.py"
    parser.addoption("--loopback-mode", metavar="NAME", default=None, help=text)


def pytest_configure(config: pytest.Config) -> None:
    """Select the mode for this process and all that it starts."""
    mode = config.getoption("--loopback-mode")
    if mode:
        os.environ[VARIABLE] = mode


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a test that is known to fail in the mode. A test that passes again fails, so that its entry is removed."""
    mode = os.environ.get(VARIABLE) or "recorded"
    known = KNOWN_FAILURES["every mode"] | KNOWN_FAILURES.get(mode, {})
    reason = known.get(item.nodeid)
    if reason is not None:
        item.add_marker(pytest.mark.xfail(reason=reason, strict=mode == "recorded"))
