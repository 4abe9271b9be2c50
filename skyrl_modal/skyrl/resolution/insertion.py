"""The positions in a shell command at which arguments can be appended to one of its parts."""

from __future__ import annotations

import re

#: A quoted text, a substitution, an escaped character, a comment, or a redirection, in which no part ends.
_OPAQUE = re.compile(
    r"""'[^']*'|"(?:\\.|[^"\\])*"|\$\([^()]*\)|`[^`]*`|\\.|(?:(?<=\s)|^)\#[^\n]*|\d*[<>]+[&|]?|&>+""", re.DOTALL
)
_END_OF_PART = re.compile(r"[;&|\n()]")
#: Programs that start no trainer, and keywords after which nothing can be appended.
_OTHER_PROGRAMS = re.compile(r"\s*(?:cd|export|set|echo|mkdir|source|ulimit|done|fi|esac|\}|for|if|while|function)\b")


def insertion_points(command: str) -> list[int]:
    """Return the ends of the parts of a command that may start a program, the last one first.

    Whether arguments that are inserted there reach a program has to be found out: the shell's grammar is followed only
    as far as quotes, comments, redirections and operators are concerned.

    Example:
        >>> command = "cd x && bash 'a;b.sh' 2>&1 | tee log"
        >>> [command[:point] for point in insertion_points(command)]
        ["cd x && bash 'a;b.sh' 2>&1 | tee log", "cd x && bash 'a;b.sh' 2>&1"]
    """
    points: list[int] = []
    begin = position = end = 0
    while position <= len(command):
        opaque = _OPAQUE.match(command, position)
        if opaque is not None:
            position = opaque.end()
            end = end if opaque[0].startswith("#") else position
            continue
        if position == len(command) or _END_OF_PART.match(command, position):
            if command[begin:end].strip() and not _OTHER_PROGRAMS.match(command[begin:end]):
                points.append(end)
            begin = position + 1
        elif not command[position].isspace():
            end = position + 1
        position += 1
    return points[::-1]
