"""Faults to plant: each is a wrong idea of git that somebody has had. ``test_mutants.py`` shows that none survives."""

# ruff: noqa: E501  patterns, trees and faults are read best a line each

from __future__ import annotations

import attrs


@attrs.frozen
class Mutant:
    """One fault.

    Attributes:
        name: What the fault believes.
        module: In which module of ``skyrl_modal.mount``.
        before: The text of the module that it replaces, which stands there once.
        after: What it puts there.
    """

    name: str
    module: str
    before: str
    after: str


MUTANTS = [
    # Lines of an ignore file.
    Mutant("a BOM belongs to the first pattern", "gitignore", 'content.removeprefix(b"\\xef\\xbb\\xbf")', "content"),
    Mutant("a lone CR ends a line", "gitignore", 'content.split(b"\\n")', 'content.replace(b"\\r", b"\\n").split(b"\\n")'),
    Mutant("a CR at the end of a line stays", "gitignore", '.removesuffix(b"\\r")', ""),
    Mutant("a NUL does not end a pattern", "gitignore", '.split(b"\\0")[0]', '.replace(b"\\0", b"")'),
    Mutant("tabs are trimmed like blanks", "gitignore", "yield lineno, pattern", 'yield lineno, pattern.rstrip(b"\\t") or b"#"'),
    Mutant("blanks are not trimmed", "gitignore", "else line[:start]", "else line"),
    Mutant("a protected blank is trimmed", "gitignore", "            start = None\n            if byte == 0x5C:", "            start = None\n            if False:"),
    Mutant("any line with # is a comment", "gitignore", 'line[:1] == b"#"', 'b"#" in line'),
    # Their patterns.
    Mutant("! negates nothing", "gitignore", 'negated = line[:1] == b"!"', "negated = False"),
    Mutant("foo/ matches files as well", "gitignore", "        pattern = pattern[:-1]\n", "        pattern = pattern[:-1]\n        only_folders = False\n"),
    Mutant("foo/ is bound to its folder", "gitignore", 'has_slash = b"/" in pattern', 'has_slash = b"/" in pattern or only_folders'),
    Mutant("a/b holds in every folder", "gitignore", "    if not has_slash:\n", "    if b'/' not in line.strip(b'/!'):\n"),
    Mutant("? is one character", "gitignore", '            return "?"', '            return "[!\\x80-\\xff]"'),
    Mutant("* stops at nothing", "gitignore", '            return "*"', '            return "**/*"'),
    Mutant("[!a] does not negate", "brackets", 'text[position] in b"!^"', "False"),
    Mutant("[^a] is taken literally", "brackets", 'text[position] in b"!^"', 'text[position] in b"!"'),
    Mutant("[] closes at once", "brackets", "    while True:\n        if not byte:", "    while byte != 0x5D:\n        if not byte:"),
    Mutant("a backslash in [...] is a byte", "brackets", "if byte == 0x5C:\n            position += 1\n            byte = text[position]\n            if not byte:", "if False:\n            if not byte:"),
    Mutant("a range is its ends", "brackets", "set(range(previous, byte + 1))", "{previous, byte}"),
    Mutant("- is a range at the end too", "brackets", " and text[position + 1] != 0x5D:", ":"),
    Mutant("[[:class:]] is no class", "brackets", "byte == 0x5B and text[position + 1] == 0x3A", "False"),
    Mutant("an unknown class is empty", "brackets", "    if found is None:\n        raise", "    if found is None:\n        return frozenset()\n        raise"),
    Mutant("punctuation has no _ [ or !", "brackets", '_GRAPHIC - _DIGITS - _LOWER - _UPPER', '_GRAPHIC - _DIGITS - _LOWER - _UPPER - frozenset(b"_[]!*#")'),
    Mutant("a [ without ] is literal", "gitignore", "position, members = bracket(pattern, position, ignore_case)", "position, members = bracket(pattern, position, ignore_case) if b']' in pattern[position:] else (position + 1, frozenset(b'['))"),
    Mutant("a backslash at the end is literal", "gitignore", 'raise NeverMatches("a backslash at its end protects nothing")', 'yield _Token("byte", 0x5C)\n                return'),
    Mutant("a backslash stays before a letter", "gitignore", "            byte = pattern[position]\n            if ignore_case and", "            yield _Token('byte', 0x5C)\n            byte = pattern[position]\n            if ignore_case and"),
    Mutant("** is * everywhere", "gitignore", "            if not deep:", "            if True:"),
    Mutant("**/ matches at least one folder", "gitignore", "replace(\"(.*[/])?\", \"(?:.*[/])?\")", "replace(\"(.*[/])?\", \"(?:.*[/])\")"),
    Mutant("a/** matches a itself", "gitignore", "folder, name = [*tokens, _SLASH], [_STAR]", "folder, name = tokens[:-2] or [*tokens, _SLASH], [_STAR] if len(tokens) < 3 else tokens[-3:-2]"),
    Mutant("foo**/bar begins with a folder", "gitignore", "(first == start or pattern[first - 1] == 0x2F)", "(first == 0 or pattern[first - 1] == 0x2F)"),
    Mutant("foo**//bar matches nothing", "gitignore", "    if deep_at and (", "    if False and ("),
    Mutant("**\\/a matches a at the top", "gitignore", "yield from (_STAR, _SLASH, _STARSTAR)", "yield _STARSTAR"),
    Mutant("no newline in a name for **", "gitignore", "re.compile(rule.folder, re.DOTALL)", "re.compile(rule.folder)"),
    # The order of decision.
    Mutant("the first rule wins", "matcher", "        for place, rule in enumerate(rules):\n            if", "        for place, rule in reversed(list(enumerate(rules))):\n            if"),
    Mutant("a literal wins over a later pattern", "matcher", "        if name.endswith(self.suffixes):", "        if place < 0 and name.endswith(self.suffixes):"),
    Mutant("the first [...] of a file wins", "matcher", "        regexes.reverse()\n", ""),
    Mutant("a/b needs its whole folder's path", "matcher", "ruleset.active(folder[base:])", "ruleset.active(folder)"),
    Mutant("the outer ignore file wins", "matcher", "(*self._parts, (ruleset, len(base)))", "((ruleset, len(base)), *self._parts)"),
    Mutant("info/exclude is weaker than excludesFile", "repository", "        for path in files:", "        for path in reversed(files):"),
    Mutant("a file may be re-included below an ignored folder", "walk", "return Verdict(False, against, Mode.TRACKED if enter else None)", "return Verdict(False, against, Mode.NORMAL)"),
    Mutant("an ignored folder is entered for nothing tracked", "walk", "enter = reached or index.tracks_folder(inside + name)", "enter = False"),
    Mutant("a tracked file may be ignored", "walk", "tracked = index.tracks_file(inside + name)", "tracked = False"),
    Mutant("what lies in an ignored folder with tracked files goes", "walk", "Mode.TRACKED if enter else None", "Mode.NORMAL if enter else None"),
    Mutant("links to folders are followed", "walk", "elif entry.is_dir(follow_symlinks=False):", "elif entry.is_dir():"),
    Mutant("a linked .gitignore is followed", "walk", "os.O_RDONLY | os.O_CLOEXEC | _NOFOLLOW), \"rb\"", "os.O_RDONLY | os.O_CLOEXEC), \"rb\""),
    Mutant("a nested repository is a folder like any other", "walk", "if has_git and folder.at", "if False and folder.at"),
    Mutant("a submodule is never ignored, nor its repository asked", "walk", "if index.is_submodule(inside + name):", "if False:"),
    Mutant("a nested repository with files tracked outside is one", "walk", "(outer is not None and outer.tracks_folder(inside) and not outer.is_submodule(inside))", "False"),
    Mutant("nested rules are those of the outer repository", "walk", "git=repository.chain)\n        self.found.tops", "git=folder.git)\n        self.found.tops"),
    Mutant("the ignore files above the root do not count", "walk", "folder = evolve(folder, git=self._git_chain(folder, _lies_in(folder.path, _GITIGNORE)))", "pass"),
    Mutant("an ignored root is like any other", "walk", "folder = evolve(folder, mode=Mode.TRACKED, reason=reason)", "pass"),
    Mutant("the root is the top", "walk", "prefix=folder.prefix + name + b\"/\")", "prefix=b\"\")"),
    # Git's own files.
    Mutant("case is never ignored", "repository", 'self.config.flag("core.ignorecase")', "False"),
    Mutant("excludesFile is not read", "repository", "files = [excludes_file(self.config, self.top)]", "files: list[Path | None] = []"),
    Mutant("the user's own ignore file is not read", "gitconfig", 'return None if folder is None else folder / "ignore"', "return None"),
    Mutant("info/exclude is the worktree's own", "repository", 'self._common_dir / "info" / "exclude"', 'self.git_dir / "info" / "exclude"'),
    Mutant("an index of version 4 has whole names", "index", "if version == 4:\n            cut, position", "if version == 5:\n            cut, position"),
    Mutant("a split index is whole", "index", "if link is None or not any(link[:hash_size]):", "if True:"),
    Mutant("a split index deletes nothing", "index", "if number not in deleted]", "]"),
    Mutant("SHA-256 is as short as SHA-1", "repository", "32 if wide else 20", "20"),
    Mutant("a linked worktree shares the index", "repository", 'Index(self.git_dir / "index"', 'Index(self._common_dir / "index"'),
]  # fmt: skip
