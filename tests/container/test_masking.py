"""Secrets are masked however the stream is divided into chunks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from skyrl_modal.container import masking
from skyrl_modal.container.masking import MASK, Masker, SecretMask, secret_forms

#: Few letters, so that values overlap with themselves and with each other.
VALUES = st.lists(st.text("ab", min_size=4, max_size=9) | st.text("abé\n", min_size=4, max_size=24), max_size=4)
STREAMS = st.lists(st.sampled_from([b"a", b"b", b"ab", b"abab", b"x", b"\n", b"\xc3\xa9", b"\xff"]), max_size=60)
CUTS = st.lists(st.integers(0, 120), max_size=20)
KEY = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqh\n  kiG9w0BAQEFAASC\n\tshort\n-----END KEY-----\n"


def mask_slowly(values: Sequence[str], data: bytes) -> bytes:
    """Mask every byte that is part of a value, by comparing at every position."""
    forms = set().union(*map(secret_forms, values)) if values else set()
    masked = [False] * len(data)
    for form in forms:
        for start in range(len(data)):
            if data.startswith(form, start):
                masked[start : start + len(form)] = [True] * len(form)
    output = b""
    for position, byte in enumerate(data):
        if not masked[position]:
            output += bytes([byte])
        elif position == 0 or not masked[position - 1]:
            output += MASK
    return output


def mask_in_chunks(values: Sequence[str], data: bytes, cuts: Sequence[int]) -> bytes:
    """Mask a stream that is divided at some positions."""
    masker = Masker(values)
    positions = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return b"".join(masker.feed(data[start:end]) for start, end in pairwise(positions)) + masker.flush()


@given(VALUES, STREAMS.map(b"".join), CUTS)
@example(["abab"], b"xababab", [3, 5])
@example(["baaab", "baaa"], b"baaabaaab", [4, 5])
def test_masked_bytes_are_exactly_those_of_values(values: list[str], data: bytes, cuts: list[int]) -> None:
    """Every byte that is part of a value is masked and no other one, however the stream is divided into chunks."""
    assert mask_in_chunks(values, data, cuts) == mask_slowly(values, data)


@pytest.mark.parametrize("short", [0, 32])
@pytest.mark.parametrize("sparse", [0, 1 << 30])
def test_all_algorithms_mask_the_same(monkeypatch: pytest.MonkeyPatch, short: int, sparse: int) -> None:
    """The algorithms for long and short values, and for few and many masks, have the same result."""
    monkeypatch.setattr(masking, "_SHORT_LENGTH", short)
    monkeypatch.setattr(masking, "_SPARSE_BYTES", sparse)

    test_masked_bytes_are_exactly_those_of_values()


@given(VALUES.filter(bool), st.lists(st.sampled_from("ab\n \\n"), max_size=40).map("".join))
def test_no_value_remains_in_a_text(values: list[str], text: str) -> None:
    """Nothing between two masks contains a value."""
    parts = SecretMask(values).mask_text(text).encode().split(MASK)

    assert not any(form in part for form in set().union(*map(secret_forms, values)) for part in parts)


def test_output_without_secrets_is_unchanged() -> None:
    """Without secrets, each chunk is returned itself."""
    masker = Masker([])
    chunk = b"anything"

    assert masker.feed(chunk) is chunk
    assert masker.flush() == b""


def test_short_values_are_not_masked() -> None:
    """A value that would occur in any output is not masked."""
    assert Masker(["1", ""]).feed(b"step 1 of 11") == b"step 1 of 11"


def test_all_byte_values_can_surround_a_mask() -> None:
    """Binary output that contains every byte value is otherwise unchanged."""
    every = bytes(range(256))
    data = (every + b"s3cret") * 3

    assert mask_in_chunks(["s3cret"], data, [100, 258]) == (every + MASK) * 3


@pytest.mark.parametrize(
    "text",
    [
        KEY,
        KEY.replace("\n", "\r\n"),
        KEY.replace("\n", "\n    "),
        "\n".join(line.strip() for line in KEY.splitlines()),
        json.dumps({"key": KEY}),
        json.dumps({"key": KEY.replace("\n", "\r\n")}, indent=2),
        repr({"key": KEY}),
        repr(KEY.encode()),
        "\n".join(f"> {line}" for line in KEY.splitlines()),
        KEY.strip(),
    ],
)
def test_lines_of_a_value_are_masked(text: str) -> None:
    """No line of at least 8 characters remains, with other line ends, indentation or escapes."""
    masked = mask_in_chunks([KEY], text.encode(), range(0, 200, 7)).decode()

    assert not [line for line in KEY.split() if len(line) >= 8 and line in masked]


@pytest.mark.parametrize("value", ['pa"ss\\word', "pässwörd", "tab\tinside", 'it\'s "both" ways', "line\u2028end"])
@pytest.mark.parametrize("write", [str, json.dumps, repr, lambda value: json.dumps(value, ensure_ascii=False)])
def test_escaped_values_are_masked(value: str, write: Callable[[str], str]) -> None:
    """A value is masked as it is, and as JSON and repr escape it."""
    text = write(value)

    assert SecretMask([value]).mask_text(f"<{text.strip(chr(34) + chr(39))}>") == "<********>"


def test_escaped_part_of_a_string_is_masked() -> None:
    """A value with a quote is masked in the representation of a string that has both kinds of quotes."""
    text = repr('a "b" to it\'s-a-key')

    assert SecretMask(["it's-a-key"]).mask_text(text) == "'a \"b\" to ********'"


def test_a_masker_can_be_used_again() -> None:
    """After flush, the end of the last stream has no effect on the next one."""
    masker = Masker(["s3cret"])

    assert masker.feed(b"s3c") + masker.flush() == b"s3c"
    assert masker.feed(b"ret") + masker.flush() == b"ret"
    assert masker.feed(b"s3cret") + masker.flush() == MASK
    assert masker.feed(b"s3cret") + masker.flush() == MASK


@pytest.mark.timeout(60)
def test_long_repetitive_values_take_linear_time() -> None:
    """A long value beside a short one, both of one letter, mask 1 MB in pieces of 100 bytes without long delays."""
    masker = Masker(["a" * 3300 + "b", "aaac", "a" * 1600 + "b" + "a" * 1600])
    output = b"".join(masker.feed(b"a" * 100) for _ in range(10_000)) + masker.flush()

    assert output == b"a" * 1_000_000
