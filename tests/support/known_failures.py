"""Tests that are known to fail in a mode of the loopback, with the reason: `{mode: {test: reason}}`.

An entry is removed with the change that makes its test pass. `nox -s modes` runs the modes.
"""

from __future__ import annotations

KNOWN_FAILURES: dict[str, dict[str, str]] = {
    "recorded": {
        "tests/backends/modal/test_outages.py::test_modals_messages_are_reported_as_such": (
            "issue 13, item 12: lines about containers are in the app's log, which is not read"
        ),
        "tests/backends/modal/test_cluster.py::test_dead_container_takes_one_attempt": (
            "issue 13, item 13: a cluster is started again by a retry policy only"
        ),
    },
}
