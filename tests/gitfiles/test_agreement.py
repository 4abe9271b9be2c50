"""Comparison of selections with ``git ls-files --cached --others --exclude-standard`` in random repositories.

``SKYRL_MODAL_CASES`` sets the number of cases (1,000 if it is not set). With ``SKYRL_MODAL_SEED=random`` they differ in
each run. The shards are distributed by pytest-xdist.
"""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.gitfiles.agreement import disagreements
from tests.gitfiles.repositories import Templates, case

CASES = int(os.environ.get("SKYRL_MODAL_CASES", "1000"))
SEED = os.environ.get("SKYRL_MODAL_SEED", "0")
SHARDS = 20


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("shard", range(SHARDS))
def test_random_repositories(templates: Templates, shard: int) -> None:
    """A selection contains exactly the files that git lists."""

    @seed(random.random() if SEED == "random" else f"{SEED}-{shard}")
    @settings(
        max_examples=-(-CASES // SHARDS),
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def check(draw: random.Random) -> None:
        with case(draw, templates) as roots:
            assert not disagreements(roots)

    check()
