"""Secrets are masked wherever the stream is cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from skyrl_modal.container.masking import MASK, Masker

LETTERS = st.text("ab", min_size=4, max_size=7)


def test_the_output_of_a_run_without_secrets_is_passed_on_as_it_is() -> None:
    masker = Masker([])
    chunk = b"anything"

    assert masker.feed(chunk) is chunk
    assert masker.flush() == b""


def test_a_short_value_is_left_alone() -> None:
    assert Masker(["1", ""]).feed(b"step 1 of 11") == b"step 1 of 11"


@given(st.lists(LETTERS, min_size=1, max_size=3), st.binary(max_size=60).map(lambda b: bytes(97 + c % 3 for c in b)),
       st.lists(st.integers(0, 60)))  # fmt: skip
def test_no_value_gets_through_and_cuts_do_not_matter(values: list[str], data: bytes, cuts: list[int]) -> None:
    whole = Masker(values)
    expected = whole.feed(data) + whole.flush()
    pieces, masker, start = [], Masker(values), 0
    for cut in sorted(min(cut, len(data)) for cut in cuts):
        pieces.append(masker.feed(data[start:cut]))
        start = cut
    pieces += [masker.feed(data[start:]), masker.flush()]

    assert b"".join(pieces) == expected
    assert not any(value.encode() in part for value in values for part in expected.split(MASK))
    if not any(value.encode() in data for value in values):
        assert expected == data
