"""Rules of several ignore files to one decision: the last rule that matches, of the deepest file that has one.

A decision for a name costs about as much as two look-ups in a dict, because in each folder the rules are reduced to
what can match a single name there: the path rules whose folder this is, and the name rules. Folders with the same path
rules, which is nearly all of them, share one table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property

from skyrl_modal.gitfiles.pattern import Rule, Ruleset


class Table:
    """The rules that can match a name in one folder, in the order of their weight.

    Attributes:
        literals: The names that some rule matches by being equal, with the last such rule's place.
        suffixes: What names end with for some rule to match.
        regexes: The other rules for names, the last first.
        whole: The rules that need the whole path.
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
        # Last rule first, so that the first alternative that matches is the one that decides.
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

    def find(self, name: bytes) -> int:
        """The place of the last rule that matches a name, or -1; rules that need the whole path are left aside."""
        place = self.literals.get(name, -1)
        if name.endswith(self.suffixes):
            place = max(place, next(place for suffix, place in self._by_suffix if name.endswith(suffix)))
        if self._search is not None and (match := self._search(name)):
            place = max(place, self._places[(match.lastindex or 1) - 1])
        return place


class Here:
    """What a chain of ignore files says about the names in one kind of folder."""

    def __init__(self, rules: tuple[Rule, ...], bases: tuple[int, ...]) -> None:
        self._rules, self._bases = rules, bases

    @cached_property
    def folders(self) -> Table:
        """For names of folders."""
        return Table(self._rules)

    @cached_property
    def files(self) -> Table:
        """For names of everything else; a rule that is for folders alone keeps its place and matches nothing."""
        return Table([_NOTHING if rule.only_folders else rule for rule in self._rules])

    def rule(self, name: bytes, path: bytes, is_folder: bool) -> Rule | None:
        """The rule that decides about a path, whose last part is ``name``; both lowered where case is ignored."""
        table = self.folders if is_folder else self.files
        place = table.find(name)
        for regex, at in table.whole:
            if at > place and regex.fullmatch(path, self._bases[at]):
                place = at
        return None if place < 0 else self._rules[place]


_NOTHING = Rule(b"", "", 0, False, False)


class Chain:
    """The ignore files that are in force in a folder, the weakest first.

    A chain is immutable; a folder with ignore files of its own gets a longer one.
    """

    def __init__(self, parts: tuple[tuple[Ruleset, int], ...] = (), ignore_case: bool = False) -> None:
        self._parts = tuple((ruleset, base) for ruleset, base in parts if ruleset.rules)
        self._ignore_case = ignore_case
        self._here: dict[tuple[tuple[int, ...], ...], Here] = {}
        self._has_paths = any(rule.folder is not None for ruleset, _ in self._parts for rule in ruleset.rules)

    def __bool__(self) -> bool:
        return bool(self._parts)

    def extended(self, ruleset: Ruleset, base: bytes) -> Chain:
        """With one more ignore file, which lies in the folder ``base`` (ending in a slash, or empty)."""
        if not ruleset.rules:
            return self
        return Chain((*self._parts, (ruleset, len(base))), self._ignore_case)

    def here(self, folder: bytes) -> Here:
        """What is in force for the names in ``folder`` (ending in a slash, or empty)."""
        key: tuple[tuple[int, ...], ...] = ()
        if self._has_paths:
            if self._ignore_case:
                folder = folder.lower()
            # A list on the way is a third faster than a generator, and this is done for each folder.
            key = tuple([ruleset.active(folder[base:]) for ruleset, base in self._parts])
        found = self._here.get(key)
        if found is None:
            rules: list[Rule] = []
            bases: list[int] = []
            for number, (ruleset, base) in enumerate(self._parts):
                active = key[number] if key else ()
                for place, rule in enumerate(ruleset.rules):
                    if rule.folder is None or place in active:
                        rules.append(rule)
                        bases.append(base)
            found = self._here[key] = Here(tuple(rules), tuple(bases))
        return found

    def rule(self, folder: bytes, name: bytes, is_folder: bool) -> Rule | None:
        """The rule that decides about ``name`` in ``folder``, whatever case it is written in."""
        path = folder + name
        if self._ignore_case:
            name, path = name.lower(), path.lower()
        return self.here(folder).rule(name, path, is_folder)


class Sieve:
    """A quick test in front of the judging: most names in most folders are ones that no rule can be about.

    Attributes:
        files: Those names of files that have to be judged.
        folders: The same of folders.
    """

    def __init__(self, heres: list[Here], ignore_case: bool) -> None:
        self._ignore_case = ignore_case
        self.files = self._made([here.files for here in heres])
        self.folders = self._made([here.folders for here in heres])

    def _made(self, tables: list[Table]) -> Callable[[list[bytes]], list[bytes]]:
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
