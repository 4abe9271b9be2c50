"""Lines of a log by their numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from skyrl_modal.web.log_lines import MAX_CHARACTERS, BytesSource, LogIndex

MIB = 1 << 20


def index_of(content: bytes) -> LogIndex:
    """Return the index of some output."""
    index = LogIndex(BytesSource(content))
    index.update()
    return index


@given(st.lists(st.sampled_from([b"", b"a", b"needle 1", b"x" * 300_000, b"NEEDLE" * 3]), max_size=20), st.booleans())
def test_lines_are_those_of_the_output(lines: list[bytes], ends: bool) -> None:
    """Each line is found by its number, in outputs of several blocks, and with a last line that has not ended."""
    content = b"\n".join(lines) + (b"\n" if ends and lines else b"")
    expected = [line.decode()[:MAX_CHARACTERS] for line in content.split(b"\n")]
    if content.endswith(b"\n") or not content:
        expected.pop()

    index = index_of(content)

    assert index.total == len(expected)
    assert [line.text for line in index.lines(1, index.total)] == expected
    assert [line.text for line in index.lines(3, 5)] == expected[2:5]
    matches = [number for number, text in enumerate(expected, 1) if "needle" in text.lower()]
    found = index.search("Needle", limit=3)
    assert [line.n for line in found.lines] == matches[-3:]
    assert found.matches == len(matches)
    assert [line.n for line in index.search("needle", before=4, limit=100).lines] == [n for n in matches if n < 4]


def test_long_line_is_cut() -> None:
    """Of a line of 10 MB, the beginning is returned, and the lines around it are complete."""
    index = index_of(b"first\n" + b"y" * (10 * MIB) + b"end\nlast\n")

    first, long, last = index.lines(1, 3)

    assert (first.text, last.text, long.text, long.cut) == ("first", "last", "y" * MAX_CHARACTERS, True)
    assert index.search("end").lines[0].n == 2


def test_progress_bar_is_its_last_state() -> None:
    """A line that was overwritten is what a terminal would show."""
    index = index_of(b"start\n" + b"".join(b"\r%d%%" % number for number in range(100_000)) + b"\nlast\r\n")

    assert [line.text for line in index.lines(1, 3)] == ["start", "99999%", "last"]


def test_text_has_no_control_characters() -> None:
    """Colors are removed, other controls are escaped, and invalid UTF-8 is replaced."""
    [line] = index_of(b"\x1b[31mred\x1b[0m \x07 \xff <script> \xe2\x80\xae").lines(1, 1)

    assert line.text == "red \\x07 \ufffd <script> \\u202e"


def test_log_that_grows_and_is_replaced() -> None:
    """Lines that are added are found, and a smaller log is read again."""
    source = BytesSource(b"one\ntw")
    index = LogIndex(source)
    index.update()
    assert index.total == 2

    source._content = b"one\ntwo\n" + b"z\n" * MIB
    index.update()
    assert (index.total, index.lines(2, 2)[0].text) == (MIB + 2, "two")

    source._content = b"other\n"
    index.update()
    assert [line.text for line in index.lines(1, 9)] == ["other"]
