"""Hostile inputs: arbitrary bytes, JSON of any form, and valid content with changes."""

from __future__ import annotations

import json
import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

#: The number of inputs of each test. `SKYRL_MODAL_CASES` raises it.
CASES = int(os.environ.get("SKYRL_MODAL_CASES", "50"))
fuzz_settings = settings(
    max_examples=CASES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

NUMBERS = [0, -1, 2**31, 2**63, 10**400, 1e308, float("nan"), float("inf"), True]
TEXTS = [
    "",
    "\0",
    "\ud800",
    "\x1b]0;title\x07",
    "../../etc/passwd",
    "/etc/passwd",
    "a" * 5000,
    "succeeded",
    "٣",
    "²",
    "\n",
]
#: Content that parsers typically do not expect.
HOSTILE = [
    b"",
    b"null",
    b"[]",
    b"{}",
    b"1",
    b'"text"',
    b"\xff\xfe",
    b"\xef\xbb\xbf{}",
    b"NaN",
    b"1e999",
    b"1" * 5000,
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"\0" * 100,
    b"{" + b'"schema_version": 1,' * 1000,
    json.dumps({"schema_version": 10**400}).encode(),
]

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from(NUMBERS)
    | st.sampled_from(TEXTS)
    | st.integers()
    | st.floats()
    | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
any_bytes = st.sampled_from(HOSTILE) | st.binary(max_size=200) | json_values.map(json.dumps).map(str.encode)


@st.composite
def changed_json(draw: st.DrawFn, valid: Any) -> Any:
    """Return JSON data in which some values are replaced, removed or added."""
    if isinstance(valid, dict):
        result = {}
        for name, value in valid.items():
            kind = draw(st.integers(0, 9))
            if kind == 0:
                continue
            result[name] = draw(json_values) if kind == 1 else draw(changed_json(value))
        if draw(st.integers(0, 9)) == 0:
            result[draw(st.text(max_size=5))] = draw(json_values)
        return result
    if isinstance(valid, list) and valid:
        return [draw(changed_json(item)) for item in valid for _ in range(draw(st.integers(0, 2)))]
    return draw(json_values) if draw(st.integers(0, 9)) == 0 else valid


@st.composite
def changed_bytes(draw: st.DrawFn, valid: bytes) -> bytes:
    """Return bytes in which some parts are replaced, removed, repeated or inserted."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 5))):
        position = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 12))
        kind = draw(st.sampled_from(["replace", "remove", "insert", "repeat", "truncate", "number"]))
        if kind == "replace":
            data[position : position + length] = draw(st.binary(min_size=length, max_size=length))
        elif kind == "remove":
            del data[position : position + length]
        elif kind == "insert":
            data[position:position] = draw(st.binary(max_size=12))
        elif kind == "repeat":
            data[position:position] = data[position : position + length] * draw(st.integers(1, 5))
        elif kind == "truncate":
            del data[position:]
        else:
            data[position : position + 4] = draw(
                st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"])
            )
    return bytes(data)
