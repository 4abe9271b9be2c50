"""The selection is git's own, over random repositories: ``git ls-files --cached --others --exclude-standard``.

``SKYRL_MODAL_CASES`` sets how many cases there are in all (2,000 unless it is set); with
``SKYRL_MODAL_SEED=random`` they are other ones each time. The shards let pytest-xdist spread them.
"""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.gitfiles.agreement import disagreements
from tests.gitfiles.repositories import Templates, case

CASES = int(os.environ.get("SKYRL_MODAL_CASES", "2000"))
SEED = os.environ.get("SKYRL_MODAL_SEED", "0")
SHARDS = 20


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("shard", range(SHARDS))
def test_random_repositories(templates: Templates, shard: int) -> None:
    """In no repository do we take a file that git would not, or leave one that it would take."""

    @seed(random.random() if SEED == "random" else f"{SEED}-{shard}")
    @settings(
        max_examples=-(-CASES // SHARDS),
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def check(draw: random.Random) -> None:
        with case(draw, templates) as roots:
            assert not disagreements(roots)

    check()
