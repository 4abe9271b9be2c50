"""Quick tests that find the names for which a decision is needed. No rule can match most names of most folders."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from skyrl_modal.gitfiles.matcher import FolderRules
from skyrl_modal.gitfiles.rule_group import NameTable

#: The names of files that change the rules of their folder, and of git's own folder. Each filter returns them.
SPECIAL_NAMES = frozenset((b".git", b".gitignore", b".skyrlignore"))
# The number of tables whose patterns are combined. A deeper stack of ignore files uses the tables one by one.
_MAX_COMBINED = 20

NameFilter = Callable[[list[bytes]], list[bytes]]
"""Returns some of the names, in their order."""


class NameFilters:
    """The filters for the names in folders that have the same rules.

    Args:
        weak: The rules that exclude files which git does not track: those of git, and those for caches.
        strong: The rules that decide about tracked files as well.
        ignore_case: Whether names are matched in lower case.

    Attributes:
        files: Returns the names of files that a rule may match.
        folders: Returns the names of folders that a rule may match.
        exceptions: Returns those of the names from ``files`` for which more than one kind of rule may decide. All
            others are excluded unless git tracks them.
    """

    def __init__(self, weak: Sequence[FolderRules], strong: Sequence[FolderRules], *, ignore_case: bool) -> None:
        self._ignore_case = ignore_case
        weak_files = [table for rules in weak for table in rules.tables(for_folders=False)]
        strong_files = [table for rules in strong for table in rules.tables(for_folders=False)]
        self.files = self._filter([*weak_files, *strong_files])
        self.folders = self._filter([table for rules in (*weak, *strong) for table in rules.tables(for_folders=True)])
        if any(table.whole for table in weak_files):
            # `files` returns all names, also those that no rule matches.
            self.exceptions: NameFilter = list
        else:
            negated = [table for rules in weak for table in rules.negated_tables()]
            self.exceptions = self._filter([*negated, *strong_files])

    def _filter(self, tables: list[NameTable]) -> NameFilter:
        tables = [table for table in tables if not table.is_empty]
        if any(b"" in table.suffixes or table.whole for table in tables):
            return list
        large = [table for table in tables if not table.is_small]
        small = [table for table in tables if table.is_small]
        if len(small) > _MAX_COMBINED:
            large, small = tables, []
        literals = SPECIAL_NAMES.union(*(table.literals for table in small))
        suffixes = tuple({suffix for table in small for suffix in table.suffixes})
        beginnings, match = _regex_tests(small)
        if not large and not self._ignore_case:
            return lambda names: [
                name
                for name in names
                if name in literals
                or name.endswith(suffixes)
                or (name.startswith(beginnings) and match(name) is not None)
            ]
        return lambda names: [
            name
            for name in names
            if (low := name.lower() if self._ignore_case else name) in literals
            or low.endswith(suffixes)
            or (low.startswith(beginnings) and match(low) is not None)
            or any(table.find_last_match(low) >= 0 for table in large)
        ]


def _regex_tests(tables: Sequence[NameTable]) -> tuple[tuple[bytes, ...], Callable[[bytes], object]]:
    """Return the beginnings of all names that match a regex of the tables, and the test itself."""
    items = [item for table in tables for item in table.regexes.items]
    if not items:
        return (), lambda _: None
    text = "|".join(item.regex.text for item in items)
    match = re.compile(text.encode("latin-1"), re.DOTALL).fullmatch
    return tuple({item.prefix for item in items}), match
