"""Secrets are masked however the stream is divided into chunks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from skyrl_modal.container.masking import MASK, Masker

LETTERS = st.text("ab", min_size=4, max_size=7)


def test_output_without_secrets_is_unchanged() -> None:
    """Without secrets, each chunk is returned itself."""
    masker = Masker([])
    chunk = b"anything"

    assert masker.feed(chunk) is chunk
    assert masker.flush() == b""


def test_short_values_are_not_masked() -> None:
    """A value that would occur in any output is not masked."""
    assert Masker(["1", ""]).feed(b"step 1 of 11") == b"step 1 of 11"


@given(st.lists(LETTERS, min_size=1, max_size=3), st.binary(max_size=60).map(lambda b: bytes(97 + c % 3 for c in b)),
       st.lists(st.integers(0, 60)))  # fmt: skip
def test_chunks_do_not_matter(values: list[str], data: bytes, cuts: list[int]) -> None:
    """No value is in the output, and it is the same however the stream is divided into chunks."""
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
