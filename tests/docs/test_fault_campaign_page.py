"""Tests of the page that is generated from the output of the fault campaign."""

from __future__ import annotations

import pytest

from tests.docs.fault_campaign_page import PAGE, render

OUTPUT = """\
seed 7, 2 runs
    12 s    1/2     0  none, local: succeeded
    34 s    2/2     1  none, modal: failed

seed 7
             runs  failed  succeeded  violations
none, local     1                  1
none, modal     1       1
together        2       1          1           0
"""


def test_page_contains_table_and_facts() -> None:
    """The page has the table, the seed, the number of runs and the duration."""
    page = render(OUTPUT)

    assert "(2 runs, seed 7) took 34 s" in page
    assert "none, modal     1       1\ntogether        2" in page


@pytest.mark.parametrize(
    "output",
    [
        "",
        OUTPUT.partition("\n\n")[0],
        OUTPUT.replace("2/2", "1/3"),
        OUTPUT.replace("    34 s", "    VIOLATION\n    34 s"),
    ],
)
def test_incomplete_or_failed_campaign_is_refused(output: str) -> None:
    """A campaign that was interrupted, or found a violation, raises ValueError."""
    with pytest.raises(ValueError, match="campaign"):
        render(output)


def test_committed_page_is_generated() -> None:
    """The committed page has the form of a generated one."""
    assert PAGE.read_text(encoding="utf-8").startswith(render(OUTPUT).splitlines()[0])
