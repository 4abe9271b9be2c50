"""Combination of the rules of several ignore files: the last matching rule of the deepest ignore file decides.

In each folder the rules are reduced to those that can match a single name there: the path rules of this folder, and the
name rules. A decision then costs about as much as two look-ups in a dict. Folders with the same path rules, which are
nearly all folders, share one table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property

from skyrl_modal.gitfiles.ignore_file import IgnoreFile
from skyrl_modal.gitfiles.pattern import Rule


class NameTable:
    """The rules that can match a name in one folder, in ascending order of precedence.

    Attributes:
        literals: The names that a rule matches by equality, with the position of the last such rule.
        suffixes: The ends of names that a rule matches.
        regexes: The regexes of the other rules for names, the last rule first.
        whole: The rules that match the whole path.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self.literals: dict[bytes, int] = {}
        suffixes: dict[bytes, int] = {}
        regexes: list[tuple[str, int]] = []
        self.whole: list[tuple[re.Pattern[bytes], int]] = []
        for place, rule in enumerate(rules):
            if rule.literal is not None:
                self.literals[rule.literal] = place
            elif rule.suffix is not None:
                suffixes[rule.suffix] = place
            elif rule.regex is not None:
                regexes.append((rule.regex, place))
            elif rule.whole is not None:
                self.whole.append((re.compile(rule.whole.encode("latin-1"), re.DOTALL), place))
        # The last rule comes first, so that the first alternative that matches is the one that decides.
        regexes.reverse()
        self.whole.reverse()
        self._by_suffix = sorted(suffixes.items(), key=lambda item: -item[1])
        self.suffixes = tuple(suffixes)
        self._places = [place for _, place in regexes]
        self.regexes = [regex for regex, _ in regexes]

    @cached_property
    def _search(self) -> Callable[[bytes], re.Match[bytes] | None] | None:
        combined = "|".join(f"({regex})" for regex in self.regexes).encode("latin-1")
        return re.compile(combined, re.DOTALL).fullmatch if combined else None

    def find_last_match(self, name: bytes) -> int:
        """Return the position of the last rule that matches a name, or -1. Rules for whole paths are not considered."""
        place = self.literals.get(name, -1)
        if name.endswith(self.suffixes):
            place = max(place, next(place for suffix, place in self._by_suffix if name.endswith(suffix)))
        if self._search is not None and (match := self._search(name)):
            place = max(place, self._places[(match.lastindex or 1) - 1])
        return place


class FolderRules:
    """The rules of a stack of ignore files for the names in one group of folders."""

    def __init__(self, rules: tuple[Rule, ...], bases: tuple[int, ...]) -> None:
        self._rules, self._bases = rules, bases

    @cached_property
    def for_folders(self) -> NameTable:
        """The rules for names of folders."""
        return NameTable(self._rules)

    @cached_property
    def for_files(self) -> NameTable:
        """The rules for all other names. A rule for folders only keeps its position and matches nothing."""
        return NameTable([_NO_MATCH if rule.only_folders else rule for rule in self._rules])

    def find_rule(self, name: bytes, path: bytes, is_folder: bool) -> Rule | None:
        """Return the rule that decides about a path whose last part is ``name``.

        Where case is ignored, both arguments must be lowered.
        """
        table = self.for_folders if is_folder else self.for_files
        place = table.find_last_match(name)
        for regex, at in table.whole:
            if at > place and regex.fullmatch(path, self._bases[at]):
                place = at
        return None if place < 0 else self._rules[place]


_NO_MATCH = Rule(b"", "", 0, False, False)


class RuleStack:
    """The ignore files that apply in a folder, in ascending order of precedence.

    A stack is immutable; a folder with an ignore file of its own gets a longer one.

    Args:
        parts: Ignore files, each with the length of the path of its folder.
        ignore_case: Whether ``core.ignorecase`` is set.
    """

    def __init__(self, parts: tuple[tuple[IgnoreFile, int], ...] = (), ignore_case: bool = False) -> None:
        self._parts = tuple((file, base) for file, base in parts if file.rules)
        self._ignore_case = ignore_case
        self._cache: dict[tuple[tuple[int, ...], ...], FolderRules] = {}
        self._has_paths = any(rule.folder is not None for file, _ in self._parts for rule in file.rules)

    def __bool__(self) -> bool:
        return bool(self._parts)

    def extended(self, file: IgnoreFile, base: bytes) -> RuleStack:
        """Return the stack with one more ignore file.

        Args:
            file: The ignore file, which takes precedence over the others.
            base: Its folder, ending in a slash, or empty.
        """
        if not file.rules:
            return self
        return RuleStack((*self._parts, (file, len(base))), self._ignore_case)

    def rules_in(self, folder: bytes) -> FolderRules:
        """Return the rules for the names in a folder, which ends in a slash or is empty."""
        key: tuple[tuple[int, ...], ...] = ()
        if self._has_paths:
            if self._ignore_case:
                folder = folder.lower()
            # A list comprehension is a third faster than a generator here, and this is done for each folder.
            key = tuple([file.active_path_rules(folder[base:]) for file, base in self._parts])
        rules = self._cache.get(key)
        if rules is None:
            rules = self._cache[key] = self._reduced(key)
        return rules

    def _reduced(self, key: tuple[tuple[int, ...], ...]) -> FolderRules:
        rules: list[Rule] = []
        bases: list[int] = []
        for number, (file, base) in enumerate(self._parts):
            active = key[number] if key else ()
            chosen = [rule for place, rule in enumerate(file.rules) if rule.folder is None or place in active]
            rules += chosen
            bases += [base] * len(chosen)
        return FolderRules(tuple(rules), tuple(bases))

    def find_rule(self, folder: bytes, name: bytes, is_folder: bool) -> Rule | None:
        """Return the rule that decides about ``name`` in ``folder``, in any case of letters."""
        path = folder + name
        if self._ignore_case:
            name, path = name.lower(), path.lower()
        return self.rules_in(folder).find_rule(name, path, is_folder)


class NamePrefilter:
    """A quick test that finds the names for which a decision is needed. No rule can match most names of most folders.

    Attributes:
        files: Returns the names of files that a rule may match.
        folders: Returns the names of folders that a rule may match.
    """

    def __init__(self, rules: list[FolderRules], ignore_case: bool) -> None:
        self._ignore_case = ignore_case
        self.files = self._filter([folder_rules.for_files for folder_rules in rules])
        self.folders = self._filter([folder_rules.for_folders for folder_rules in rules])

    def _filter(self, tables: list[NameTable]) -> Callable[[list[bytes]], list[bytes]]:
        literals = frozenset({b".git"}.union(*(table.literals for table in tables)))
        suffixes = tuple({suffix for table in tables for suffix in table.suffixes})
        regexes = [regex for table in tables for regex in table.regexes]
        if b"" in suffixes or any(table.whole for table in tables):
            return list
        search = re.compile("|".join(regexes).encode("latin-1"), re.DOTALL).fullmatch if regexes else None
        if self._ignore_case:
            return lambda names: [
                name
                for name in names
                if (low := name.lower()) in literals or low.endswith(suffixes) or (search is not None and search(low))
            ]
        if search is not None:
            return lambda names: [
                name for name in names if name in literals or name.endswith(suffixes) or search(name) is not None
            ]
        return lambda names: [name for name in names if name in literals or name.endswith(suffixes)]
