"""The caller's own rules, which take precedence over ignore files: ``include`` and ``exclude``."""

from __future__ import annotations

import os

from skyrl_modal.dataclass import dataclass
from skyrl_modal.gitfiles.ignore_file import parse_ignore_file
from skyrl_modal.gitfiles.matcher import RuleStack

#: The sources of the rules of a stack made by ``Overrides.rules``.
EXCLUDE, INCLUDE = "exclude", "include"


@dataclass(frozen=True, slots=True)
class Overrides:
    """``exclude`` and ``include`` of one selection.

    Attributes:
        exclude: Patterns in the language of ``.gitignore``.
        include: The same; they take precedence over ``exclude``.
    """

    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()

    def rules(self, ignore_case: bool) -> RuleStack:
        """Return the patterns as rules, those of ``include`` last."""
        stack = RuleStack(ignore_case=ignore_case)
        for name, lines in ((EXCLUDE, self.exclude), (INCLUDE, self.include)):
            stack = stack.extended(parse_ignore_file(b"\n".join(map(os.fsencode, lines)), name, ignore_case), b"")
        return stack

    def parent_folder_rules(self, ignore_case: bool) -> RuleStack:
        """Return rules for the parent folders of includes that contain a slash; these are scanned even if ignored.

        An include without a slash, such as ``*.pt``, applies in every folder that is scanned in any case. It does not
        cause a scan of a whole ``.venv``.
        """
        parents: list[bytes] = []
        for line in self.include:
            parts = os.fsencode(line).strip(b"/").split(b"/")
            for depth in range(1, len(parts)):
                if parts[depth - 1] == b"**":
                    if depth > 1:
                        parents.append(b"/" + b"/".join(parts[:depth]))
                    break
                parents.append(b"/" + b"/".join(parts[:depth]))
        file = parse_ignore_file(b"\n".join(parents), INCLUDE, ignore_case)
        return RuleStack(ignore_case=ignore_case).extended(file, b"")


def matches_path(rules: RuleStack, path: str) -> bool:
    """Return whether a rule matches a file or one of its parent folders."""
    parts = os.fsencode(path).split(b"/")
    for depth, part in enumerate(parts):
        folder = b"".join(part + b"/" for part in parts[:depth])
        if rules.find_rule(folder, part, depth < len(parts) - 1) is not None:
            return True
    return False
