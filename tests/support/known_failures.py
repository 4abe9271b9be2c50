"""Tests that are known to fail in a mode of the loopback, with the reason: `{mode: {test: reason}}`.

An entry is removed with the change that makes its test pass. `nox -s modes` runs the modes. Tests that select a mode
themselves are under "every mode".
"""

from __future__ import annotations

MODAL = "tests/backends/modal"

KNOWN_FAILURES: dict[str, dict[str, str]] = {
    "every mode": {},
}
