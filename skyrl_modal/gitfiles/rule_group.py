"""Look-up of the rule that matches a name, among the rules of one ignore file that apply in the same folders.

A look-up costs about as much as two look-ups in a dict, whatever the number of rules without wildcards.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType

from skyrl_modal.gitfiles.pattern import Rule
from skyrl_modal.gitfiles.regex_index import IndexedRegex, RegexIndex

# `bytes.endswith` compares with each suffix; above this number a dict for each length is quicker.
_MAX_COMPARED_SUFFIXES = 50
_SMALL = 500
_NO_NAMES: Mapping[bytes, int] = MappingProxyType({})


class NameTable:
    """The rules that can match a name, each with its line number in the ignore file.

    Args:
        rules: The rules in ascending order.
        names: Further rules, which are literal names.

    Attributes:
        literals: The names that a rule matches by equality, with the line number of the last such rule.
        suffixes: The ends of names that a rule matches, likewise.
        regexes: The other rules for names.
        whole: The rules that match the whole path.
        size: The number of different patterns.
    """

    def __init__(self, rules: Iterable[Rule], names: Mapping[bytes, int]) -> None:
        self.literals = dict(names)
        self.suffixes: dict[bytes, int] = {}
        regexes: list[IndexedRegex] = []
        whole: list[IndexedRegex] = []
        for rule in rules:
            place = rule.lineno
            if rule.literal is not None:
                self.literals[rule.literal] = max(place, names.get(rule.literal, -1))
            elif rule.suffixes is not None:
                self.suffixes.update(dict.fromkeys(rule.suffixes, place))
            elif rule.regex is not None:
                regexes.append(IndexedRegex(rule.regex, rule.prefix, rule.ending, place))
            elif rule.whole is not None:
                whole.append(IndexedRegex(rule.whole, rule.prefix, rule.ending, place))
        self.regexes, self.whole = RegexIndex(regexes), RegexIndex(whole)
        self._compared = tuple(self.suffixes) if len(self.suffixes) <= _MAX_COMPARED_SUFFIXES else None
        self.size = len(self.literals) + len(self.suffixes) + len(regexes)

    @property
    def is_empty(self) -> bool:
        """Whether no rule matches a name or path."""
        return not self.size and not self.whole

    @property
    def is_small(self) -> bool:
        """Whether the patterns can be combined with those of other tables in little time."""
        return self.size <= _SMALL

    @cached_property
    def _suffixes_by_length(self) -> list[tuple[int, dict[bytes, int]]]:
        lengths: dict[int, dict[bytes, int]] = defaultdict(dict)
        for suffix, place in self.suffixes.items():
            lengths[len(suffix)][suffix] = place
        return list(lengths.items())

    def find_last_match(self, name: bytes) -> int:
        """Return the line number of the last rule that matches a name, or -1. Rules for whole paths do not count."""
        place = self.literals.get(name, -1)
        if self._compared is None or name.endswith(self._compared):
            size = len(name)
            for length, suffixes in self._suffixes_by_length:
                if length <= size:
                    place = max(place, suffixes.get(name[size - length :], -1))
        return max(place, self.regexes.find_last(name)) if self.regexes else place


class RuleGroup:
    """The rules of an ignore file that apply to the names in one group of folders.

    Args:
        rules: The rules in ascending order.
        names: Further rules, which are literal names, each with its line number.
    """

    def __init__(self, rules: Sequence[Rule], names: Mapping[bytes, int] = _NO_NAMES) -> None:
        self._rules, self._names = rules, names

    def __bool__(self) -> bool:
        return bool(self._rules or self._names)

    @cached_property
    def for_folders(self) -> NameTable:
        """The rules for names of folders."""
        return NameTable(self._rules, self._names)

    @cached_property
    def for_files(self) -> NameTable:
        """The rules for all other names."""
        return NameTable([rule for rule in self._rules if not rule.only_folders], self._names)

    @cached_property
    def negated_for_files(self) -> NameTable:
        """The rules for names that are not folders, only those that begin with ``!``."""
        return NameTable([rule for rule in self._rules if rule.negated and not rule.only_folders], _NO_NAMES)
