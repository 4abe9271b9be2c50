"""Git's index: what a search in its bytes shows is what its entries show."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from skyrl_modal.gitfiles.index_format import find_entry_below, parse_index

_NAMES = st.lists(st.sampled_from([b"a", b"b", b"ab", b"a-b"]), min_size=1, max_size=4).map(b"/".join)
_FIXED_PARTS = st.binary(min_size=20, max_size=20)


def encode(entries: list[tuple[bytes, bytes]]) -> bytes:
    """Return an index, version 2, of paths with the ids of their contents."""
    data = struct.pack(">4sLL", b"DIRC", 2, len(entries))
    for path, object_id in entries:
        entry = struct.pack(">24xL12x20sH", 0o100644, object_id, len(path)) + path
        data += entry.ljust((len(entry) + 8) // 8 * 8, b"\0")
    return data


@given(st.lists(st.tuples(_NAMES, _FIXED_PARTS), max_size=8), _NAMES)
def test_entries_below_a_folder(entries: list[tuple[bytes, bytes]], folder: bytes) -> None:
    """A place that is found is an entry of the index, and one of two entries is always found."""
    data = encode(entries)
    below = [entry.path for entry in parse_index(data) if entry.path.startswith(folder + b"/")]
    if len(entries) <= 2:
        assert find_entry_below(data, folder + b"/") == bool(below)
    else:
        assert below or not find_entry_below(data, folder + b"/")


def test_other_places_do_not_count() -> None:
    """The path of a folder inside of another path, or after the entries, is not an entry in that folder."""
    assert not find_entry_below(encode([(b"xxxxxxxx/data/a", bytes(20))]), b"data/")
    assert not find_entry_below(encode([(b"a", bytes(20))]) + b"TREE" + bytes(60) + b"data/x\0", b"data/")
