"""Tests of the page that is generated from the rules about failures."""

from __future__ import annotations

from skyrl_modal.skyrl.failures.catalog import RULES
from tests.docs.troubleshooting_page import PAGE, render


def test_committed_page_is_generated() -> None:
    """The committed page is what its script writes."""
    assert PAGE.read_text(encoding="utf-8") == render()


def test_rules_are_described() -> None:
    """Each rule has a code of its own, a cause, a remedy and a source."""
    assert len({rule.code for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert all((rule.cause, rule.remedy, rule.source)), rule.code
