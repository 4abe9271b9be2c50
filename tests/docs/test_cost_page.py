"""Tests of the table of rates in the documentation."""

from __future__ import annotations

from tests.docs.cost_page import PAGE, render


def test_committed_table_is_generated() -> None:
    """The committed table is what its script writes."""
    assert PAGE.read_text(encoding="utf-8") == render()
