"""An index of regexes: of many patterns, only those whose literal beginning or end fits a text are tried."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

from skyrl_modal.gitfiles.pattern_regex import PatternRegex

#: Regexes that are compiled to one. Python compiles an alternation of this size in a few milliseconds.
MAX_ALTERNATIVES = 100


class IndexedRegex(NamedTuple):
    """A regex, and what a text must have to match it.

    Attributes:
        regex: The regex.
        prefix: The bytes with which every match begins.
        suffix: The bytes with which every match ends.
        place: The number that a search returns.
    """

    regex: PatternRegex
    prefix: bytes
    suffix: bytes
    place: int


class _Alternation:
    """Some regexes in descending order of their places, compiled at the first use."""

    def __init__(self, items: Sequence[IndexedRegex]) -> None:
        self._items = items

    @cached_property
    def _combined(self) -> re.Pattern[bytes]:
        text = "|".join(f"({item.regex.text})" for item in self._items)
        return re.compile(text.encode("latin-1"), re.DOTALL)

    @cached_property
    def _single(self) -> list[re.Pattern[bytes]]:
        return [re.compile(item.regex.text.encode("latin-1"), re.DOTALL) for item in self._items]

    def find_last(self, text: bytes) -> int:
        # The first alternative that matches is the one with the highest place.
        match = self._combined.fullmatch(text)
        return -1 if match is None else self._items[(match.lastindex or 1) - 1].place

    def find_all(self, text: bytes) -> list[int]:
        if self._combined.fullmatch(text) is None:
            return []
        matches = zip(self._items, self._single, strict=True)
        return [item.place for item, regex in matches if regex.fullmatch(text)]


class RegexIndex:
    """Finds the regexes that match a text.

    Args:
        items: The regexes in ascending order of their places.
    """

    def __init__(self, items: Sequence[IndexedRegex]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    @property
    def items(self) -> Sequence[IndexedRegex]:
        """The regexes in ascending order of their places."""
        return self._items

    @cached_property
    def _groups(self) -> tuple[list[_Alternation], list[_BySlice], list[_BySlice]]:
        """The regexes that are tried for every text, and the others by beginning and by end."""
        rest: list[IndexedRegex] = []
        by_prefix: dict[bytes, list[IndexedRegex]] = defaultdict(list)
        by_suffix: dict[bytes, list[IndexedRegex]] = defaultdict(list)
        is_small = len(self._items) <= MAX_ALTERNATIVES
        for item in self._items:
            if is_small or not (item.prefix or item.suffix):
                rest.append(item)
            elif item.prefix:
                by_prefix[item.prefix].append(item)
            else:
                by_suffix[item.suffix].append(item)
        return _alternations(rest), _by_length(by_prefix), _by_length(by_suffix)

    def _candidates(self, text: bytes) -> Iterator[list[_Alternation]]:
        rest, by_prefix, by_suffix = self._groups
        yield rest
        for length, groups in by_prefix:
            if group := groups.get(text[:length]):
                yield group
        for length, groups in by_suffix:
            if length <= len(text) and (group := groups.get(text[len(text) - length :])):
                yield group

    def find_last(self, text: bytes) -> int:
        """Return the highest place of the regexes that match, or -1."""
        if not self._items:
            return -1
        last = -1
        for group in self._candidates(text):
            last = max(last, next((place for each in group if (place := each.find_last(text)) >= 0), -1))
        return last

    def find_all(self, text: bytes) -> list[int]:
        """Return the places of all regexes that match, in ascending order."""
        if not self._items:
            return []
        return sorted(place for group in self._candidates(text) for each in group for place in each.find_all(text))


_BySlice = tuple[int, dict[bytes, list[_Alternation]]]


def _alternations(items: Sequence[IndexedRegex]) -> list[_Alternation]:
    ordered = items[::-1]
    return [
        _Alternation(ordered[start : start + MAX_ALTERNATIVES]) for start in range(0, len(ordered), MAX_ALTERNATIVES)
    ]


def _by_length(groups: dict[bytes, list[IndexedRegex]]) -> list[_BySlice]:
    lengths: dict[int, dict[bytes, list[_Alternation]]] = defaultdict(dict)
    for literal, items in groups.items():
        lengths[len(literal)][literal] = _alternations(items)
    return list(lengths.items())
