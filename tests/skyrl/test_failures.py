"""Diagnoses of failed runs by their logs: a corpus, variations of it, and properties of the search."""

from __future__ import annotations

import pytest

from skyrl_modal.findings import UNKNOWN_CAUSE
from tests.skyrl.failure_log_corpus import Case, read_cases

FAILING, OTHER = read_cases("failing.txt"), read_cases("other.txt")


def _names(cases: list[Case]) -> list[str]:
    return [case.name for case in cases]


@pytest.mark.parametrize("case", FAILING, ids=_names(FAILING))
def test_known_failure(case: Case) -> None:
    """The cause of each known failure is found, with its line and a remedy."""
    diagnosis = case.diagnose()
    assert diagnosis.code == case.code
    assert diagnosis.remedy
    assert diagnosis.evidence
    assert "{" not in diagnosis.cause.replace("{'", "")


@pytest.mark.parametrize("case", OTHER, ids=_names(OTHER))
def test_other_log(case: Case) -> None:
    """Quoted and handled errors, and failures without a rule, have no known cause."""
    assert case.diagnose().code == UNKNOWN_CAUSE
