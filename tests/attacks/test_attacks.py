"""Some members of every attack; ``nox -s attack`` tries all of them."""

from __future__ import annotations

import pytest

from tests.attacks.attack import Attack
from tests.attacks.campaign import ATTACKS, PAGE, skip_reason, table, try_member

#: Members of each attack that are tried here.
EACH = 3


def samples(attack: type[Attack]) -> list[str]:
    """Return some members of an attack, from the first to the last."""
    members = attack().members()
    return [members[number * (len(members) - 1) // (EACH - 1)] for number in range(min(EACH, len(members)))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "member"),
    [
        pytest.param(attack, member, id=f"{attack.__name__}-{member}")
        for attack in ATTACKS
        for member in dict.fromkeys(samples(attack))
    ],
)
def test_promise_is_kept(attack: type[Attack], member: str) -> None:
    """The promise of an attack is kept for this member."""
    if reason := skip_reason(attack):
        pytest.skip(reason)
    assert try_member(attack, member) == ""


def test_page_contains_all_attacks() -> None:
    """The committed table has a row for each attack, with its number of members, and all promises were kept."""
    rows = [(attack, len(members), len(members)) for attack in ATTACKS for members in [attack().members()]]
    assert PAGE.read_text(encoding="utf-8").partition("\n")[2].strip() == table(rows)
