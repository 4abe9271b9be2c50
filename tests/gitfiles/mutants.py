"""Faults to plant: each is a wrong assumption about git. ``test_mutants.py`` shows that none survives."""

# ruff: noqa: E501  a table of faults is easier to read with one fault per line

from __future__ import annotations

import attrs


@attrs.frozen
class Mutant:
    """One fault.

    Attributes:
        name: The wrong assumption.
        module: The name of a module of ``skyrl_modal.gitfiles``.
        before: The text of the module that is replaced; it occurs there once.
        after: The new text.
    """

    name: str
    module: str
    before: str
    after: str


MUTANTS = [
    # Lines of an ignore file.
    Mutant("a BOM belongs to the first pattern", "ignore_file", 'content.removeprefix(b"\\xef\\xbb\\xbf")', "content"),
    Mutant("a lone CR ends a line", "ignore_file", '.split(b"\\n"), 1)', '.replace(b"\\r", b"\\n").split(b"\\n"), 1)'),
    Mutant("a CR at the end of a line stays", "ignore_file", '.removesuffix(b"\\r")', ""),
    Mutant("a NUL does not end a pattern", "ignore_file", '.split(b"\\0", 1)[0]', '.replace(b"\\0", b"")'),
    Mutant("tabs are trimmed like blanks", "ignore_file", "compile_rule(pattern, source", 'compile_rule(pattern.rstrip(b"\\t") or b"#", source'),
    Mutant("blanks are not trimmed", "ignore_file", "else line[:start]", "else line"),
    Mutant("a protected blank is trimmed", "ignore_file", "            start = None\n            if byte == 0x5C:", "            start = None\n            if False:"),
    Mutant("any line with # is a comment", "ignore_file", 'line[:1] == b"#"', 'b"#" in line'),
    # Their patterns.
    Mutant("! negates nothing", "pattern", 'negated = line[:1] == b"!"', "negated = False"),
    Mutant("foo/ matches files as well", "pattern", "        pattern = pattern[:-1]\n", "        pattern = pattern[:-1]\n        only_folders = False\n"),
    Mutant("foo/ is bound to its folder", "pattern", 'has_slash = b"/" in pattern', 'has_slash = b"/" in pattern or only_folders'),
    Mutant("/a holds in every folder", "pattern", 'has_slash = b"/" in pattern', 'pattern = pattern.removeprefix(b"/")\n    has_slash = b"/" in pattern'),
    Mutant("? is one character", "pattern", '            return "?"', '            return "[!\\x80-\\xff]"'),
    Mutant("* stops at nothing", "pattern", '            return "*"', '            return "**/*"'),
    Mutant("[!a] does not negate", "character_class", 'text[position] in b"!^"', "False"),
    Mutant("[^a] is taken literally", "character_class", 'text[position] in b"!^"', 'text[position] in b"!"'),
    Mutant("[] closes at once", "character_class", "    while True:\n        if not byte:", "    while byte != 0x5D:\n        if not byte:"),
    Mutant("a backslash in [...] is a byte", "character_class", "if byte == 0x5C:\n            position += 1\n            byte = text[position]\n            if not byte:", "if False:\n            if not byte:"),
    Mutant("a range is its ends", "character_class", "set(range(previous, byte + 1))", "{previous, byte}"),
    Mutant("- is a range at the end too", "character_class", " and text[position + 1] != 0x5D:", ":"),
    Mutant("[[:class:]] is no class", "character_class", "byte == 0x5B and text[position + 1] == 0x3A", "False"),
    Mutant("an unknown class is empty", "character_class", "    if members is None:\n        raise", "    if members is None:\n        return frozenset()\n        raise"),
    Mutant("punctuation has no _ [ or !", "character_class", '_GRAPHIC - _DIGITS - _LOWER - _UPPER', '_GRAPHIC - _DIGITS - _LOWER - _UPPER - frozenset(b"_[]!*#")'),
    Mutant("a [ without ] is literal", "pattern", "position, members = parse_bracket(terminated, position, ignore_case)", "position, members = parse_bracket(terminated, position, ignore_case) if b']' in pattern[position:] else (position + 1, frozenset(b'['))"),
    Mutant("a backslash at the end is literal", "pattern", 'raise PatternNeverMatches("a backslash at its end protects nothing")', 'yield _Token(_TokenKind.BYTE, 0x5C)\n                return'),
    Mutant("a backslash stays before a letter", "pattern", "            byte = pattern[position]\n            if ignore_case and", "            yield _Token(_TokenKind.BYTE, 0x5C)\n            byte = pattern[position]\n            if ignore_case and"),
    Mutant("** is * everywhere", "pattern", "    if not deep:", "    if True:"),
    Mutant("**/ matches at least one folder", "pattern_regex", 'result += f"(?:.*[/])?{part}"', 'result += f"(?:.*[/]){part}"'),
    Mutant("**/ in the middle matches at least one folder", "pattern_regex", "(?>{part}|.*?(?<=[/]){part})", "(?>.*?[/]{part})"),
    Mutant("**/ in the middle matches at most one folder", "pattern_regex", "(?>{part}|.*?(?<=[/]){part})", "(?>{part}|[^/]*[/]{part})"),
    Mutant("the last part after a star is found at its first position", "pattern_regex", "for between in others[:-1])", "for between in others)"),
    Mutant("a/** matches a itself", "pattern", "folder, name = [*tokens, _SLASH], [_STAR]", "folder, name = tokens[:-2] or [*tokens, _SLASH], [_STAR] if len(tokens) < 3 else tokens[-3:-2]"),
    Mutant("foo**/bar begins with a folder", "pattern", "(first == start or pattern[first - 1] == 0x2F)", "(first == 0 or pattern[first - 1] == 0x2F)"),
    Mutant("foo**//bar matches nothing", "pattern", "    if deep_at and (", "    if False and ("),
    Mutant("**\\/a matches a at the top", "pattern", "return (_STAR, _SLASH, _STARSTAR)", "return (_STARSTAR,)"),
    Mutant("no newline in a name for **", "regex_index", 're.compile(text.encode("latin-1"), re.DOTALL)', 're.compile(text.encode("latin-1"))'),
    # The order of decision.
    Mutant("the first rule wins", "rule_group", "        for rule in rules:\n            place", "        for rule in reversed(list(rules)):\n            place"),
    Mutant("the first of equal names wins", "ignore_file", "names[line] = lineno", "names.setdefault(line, lineno)"),
    Mutant("a name wins over an equal later rule", "rule_group", "max(place, names.get(rule.literal, -1))", "names.get(rule.literal, place)"),
    Mutant("a later rule for a name wins over any equal name", "rule_group", "max(place, names.get(rule.literal, -1))", "place"),
    Mutant("a literal wins over a later pattern", "rule_group", "        if self._compared is None or", "        if place < 0 and"),
    Mutant("the first [...] of a file wins", "regex_index", "ordered = items[::-1]", "ordered = items"),
    Mutant("a/b needs its whole folder's path", "matcher", "file.find_groups(folder[base:])", "file.find_groups(folder)"),
    Mutant("the outer ignore file wins", "matcher", "(*self._parts, (file, len(base)))", "((file, len(base)), *self._parts)"),
    Mutant("info/exclude is weaker than excludesFile", "repository", "        for path in files:", "        for path in reversed(files):"),
    Mutant("a file may be re-included below an ignored folder", "walk", "return Decision(False, against, by, FolderMode.TRACKED_ONLY if scanned else None)", "return Decision(False, against, by, FolderMode.NORMAL)"),
    Mutant("an ignored folder is scanned for nothing tracked", "walk", "scanned = leads_to_include or index.tracks_folder(inside + name)", "scanned = False"),
    Mutant("a tracked file may be ignored", "walk", "if index.tracks_file(inside + name):", "if False:"),
    Mutant("a tracked file that matches a rule of its folder is ignored", "walk", "_without(names, index.find_tracked_files(folder.path_in_worktree, names))", "list(names)"),
    Mutant("a pattern that begins with ! decides about nothing", "name_filter", "self._filter([*negated, *strong_files])", "self._filter(strong_files)"),
    Mutant("*.[oa] matches its first letter only", "pattern", "tuple(map(bytes, product(*choices)))", "(bytes(next(product(*choices))),)"),
    Mutant("all files of an ignored folder with tracked files are included", "walk", "FolderMode.TRACKED_ONLY if scanned else None", "FolderMode.NORMAL if scanned else None"),
    Mutant("links to folders are followed", "walk", "elif entry.is_dir(follow_symlinks=False):", "elif entry.is_dir():"),
    Mutant("a linked .gitignore is followed", "walk", "read_regular_file(path, follow_link=False, ", "read_regular_file(path, "),
    Mutant("a nested repository is an ordinary folder", "walk", "if has_git and folder.path_in_root", "if False and folder.path_in_root"),
    Mutant("a submodule can be ignored", "walk", "if index.is_submodule(inside + name):", "if False:"),
    Mutant("a nested repository with files tracked outside is one", "walk", "(outer is not None and outer.tracks_folder(inside) and not outer.is_submodule(inside))", "False"),
    Mutant("nested rules are those of the outer repository", "walk", "            git_rules=repository.general_rules,\n", "            git_rules=folder.git_rules,\n"),
    Mutant("the ignore files above the root do not count", "walk", "folder = folder._replace(git_rules=self._git_rules(folder, _contains(folder.path, _GITIGNORE)))", "pass"),
    Mutant("an ignored root is an ordinary folder", "walk", "folder = folder._replace(mode=FolderMode.TRACKED_ONLY, reason=reason, by=RuleSource.GIT)", "pass"),
    Mutant("the root is the top", "walk", "path_to_root = folder.root_in_worktree + name + b\"/\"", "path_to_root = b\"\""),
    # Git's own files.
    Mutant("case is never ignored", "repository", 'self.config.flag("core.ignorecase")', "False"),
    Mutant("excludesFile is not read", "repository", "files = [excludes_file(self.config, self.top)]", "files: list[Path | None] = []"),
    Mutant("the user's own ignore file is not read", "config", 'return None if folder is None else folder / "ignore"', "return None"),
    Mutant("info/exclude is the worktree's own", "repository", 'self.common_dir / "info" / "exclude"', 'self.git_dir / "info" / "exclude"'),
    Mutant("an index of version 4 has whole names", "index_format", "in (2, 3) and", "in (2, 3, 4) and"),
    Mutant("a split index is whole", "index_format", 'b"link" not in data and ', ""),
    Mutant("SHA-256 is as short as SHA-1", "index", "data if not self._sha256 and is_plain(data) else None", "data if is_plain(data) else None"),
    Mutant("a path in git's list ends at a blank", "index", "entries.append(Entry(path, int", "entries.append(Entry(path.split(b' ')[0], int"),
    Mutant("a linked worktree shares the index", "repository", "            self.git_dir,\n            self.top,\n", "            self.common_dir,\n            self.top,\n"),
]  # fmt: skip
