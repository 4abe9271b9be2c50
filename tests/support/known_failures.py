"""Tests that are known to fail in a mode of the loopback, with the reason: `{mode: {test: reason}}`.

An entry is removed with the change that makes its test pass. `nox -s modes` runs the modes. Tests that select a mode
themselves are under "every mode".
"""

from __future__ import annotations

MODAL = "tests/backends/modal"

KNOWN_FAILURES: dict[str, dict[str, str]] = {
    "every mode": {
        f"{MODAL}/test_outages.py::test_modals_messages_are_reported_as_such": (
            "issue 13, item 12: lines about containers are in the app's log, which is not read"
        ),
        f"{MODAL}/test_modes.py::test_wait_for_capacity_is_reported": (
            "issue 13, item 12: the reason for waiting is in the app's log, which is not read"
        ),
    },
}
