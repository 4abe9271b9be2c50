"""What a caller says about files that are to go or to stay: ``include`` and ``exclude``."""

from __future__ import annotations

import os

from attrs import frozen

from skyrl_modal.gitfiles.matcher import Chain
from skyrl_modal.gitfiles.pattern import parse


@frozen
class UserRules:
    """``exclude`` and ``include`` of one selection.

    Attributes:
        exclude: Lines in the language of ``.gitignore``.
        include: The same; they win over ``exclude``.
    """

    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()

    def chain(self, ignore_case: bool) -> Chain:
        """The lines as rules, those of ``include`` last, where they win."""
        chain = Chain(ignore_case=ignore_case)
        for name, lines in (("exclude", self.exclude), ("include", self.include)):
            chain = chain.extended(parse(b"\n".join(map(os.fsencode, lines)), name, ignore_case), b"")
        return chain

    def reaching(self, ignore_case: bool) -> Chain:
        """Rules for the folders that an include with a slash leads through, so that they are entered even if ignored.

        An include without one, such as ``*.pt``, holds in every folder that is entered anyway: it does not send the
        walk through all of a ``.venv``.
        """
        ways: list[bytes] = []
        for line in self.include:
            parts = os.fsencode(line).strip(b"/").split(b"/")
            for depth in range(1, len(parts)):
                if parts[depth - 1] == b"**":
                    if depth > 1:
                        ways.append(b"/" + b"/".join(parts[:depth]))
                    break
                ways.append(b"/" + b"/".join(parts[:depth]))
        return Chain(ignore_case=ignore_case).extended(parse(b"\n".join(ways), "include", ignore_case), b"")


def matches(chain: Chain, path: str) -> bool:
    """Whether a rule speaks of a file or of a folder on the way to it."""
    parts = os.fsencode(path).split(b"/")
    for depth, part in enumerate(parts):
        folder = b"".join(part + b"/" for part in parts[:depth])
        if chain.rule(folder, part, depth < len(parts) - 1) is not None:
            return True
    return False
