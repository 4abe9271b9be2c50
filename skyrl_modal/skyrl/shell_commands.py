"""The simple commands in a shell script, found without executing it.

It follows quotes, comments, command substitutions and here-documents (POSIX XCU 2). Variables are not expanded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

#: Characters of a text that are read. Larger texts are data, such as a file in a here-document.
MAX_TEXT_LENGTH = 1_000_000
#: Nested substitutions that are followed.
MAX_DEPTH = 20
SHELLS = frozenset({"sh", "bash", "dash", "zsh", "ksh"})

_ORDINARY = re.compile(r"""[^\\'"$`#\s;&|()<>]+""")
_BRACE = re.compile(r"\\.|\$?\{|\}", re.DOTALL)
_IN_DOUBLE_QUOTES = re.compile(r"""[^\\"$`]+""")
_HERE_DOCUMENT = re.compile(r"""<<(-?)[ \t]*(?:'([^'\n]+)'|"([^"\n]+)"|\\?([\w.-]+))""")


def split_commands(text: str) -> list[list[str]]:
    """Return the simple commands of a script as lists of tokens, in the order in which they end.

    Operators and redirections separate tokens and are left out; the files of redirections are tokens. The text of a
    here-document is left out, unless a shell reads it.

    Example:
        >>> split_commands("cd 'a b' && FOO=1 uv run x.py  # comment")
        [['cd', 'a b'], ['FOO=1', 'uv', 'run', 'x.py']]
        >>> split_commands('echo "$(uv run x.py)"')
        [['uv', 'run', 'x.py'], ['echo', '$()']]
    """
    splitter = _Splitter(text[:MAX_TEXT_LENGTH], 0)
    while splitter.position < len(splitter.text):
        splitter.read_until("")
        splitter.position += 1  # a closing bracket of a case, or of nothing
    return splitter.commands


class _Splitter:
    def __init__(self, text: str, depth: int) -> None:
        self.text = text
        self.position = 0
        self.commands: list[list[str]] = []
        self._depth = depth
        self._tokens: list[str] = []
        self._word: str | None = None
        self._here_documents: list[tuple[bool, str]] = []

    def read_until(self, end: str) -> None:
        """Read commands up to a character, at which the position then is; up to an unmatched bracket if it is empty."""
        while self.position < len(self.text):
            match = _ORDINARY.match(self.text, self.position)
            if match is not None:
                self._append(match[0])
                self.position = match.end()
                continue
            character = self.text[self.position]
            if character == end or (character == ")" and not end):
                break
            self._read_special(character)
        self._end_command()

    def _read_special(self, character: str) -> None:
        text, start = self.text, self.position
        self.position += 1
        match character:
            case "\\":
                if text[start + 1 : start + 2] != "\n":
                    self._append(text[start + 1 : start + 2])
                self.position += 1
            case "'":
                self._append(self._read_to("'"))
            case '"':
                self._read_double_quotes()
            case "`" | "$":
                self._read_substitution(character)
            case "(":
                self._read_nested(")")
            case "#" if self._word is None:
                end = text.find("\n", start)
                self.position = len(text) if end < 0 else end
            case "\n":
                self._end_line()
            case ";" | "|" | ")":
                self._end_command()
            case "&" if text[self.position : self.position + 1] not in (">", "<"):
                self._end_command()
            case "<" | ">" | "&":
                self._read_redirection(start)
            case _ if character.isspace():
                self._end_word()
            case _:
                self._append(character)

    def _read_redirection(self, start: int) -> None:
        self._end_word()
        match = _HERE_DOCUMENT.match(self.text, start)
        if self.text.startswith("<<<", start):
            self.position = start + 3
        elif match is not None:
            self._here_documents.append((match[1] == "-", match[2] or match[3] or match[4]))
            self.position = match.end()
        elif self.text[self.position : self.position + 1] == "&":  # a descriptor follows
            self.position += 1

    def _read_to(self, end: str) -> str:
        start = self.position
        found = self.text.find(end, start)
        self.position = len(self.text) if found < 0 else found + 1
        return self.text[start : len(self.text) if found < 0 else found]

    def _read_double_quotes(self) -> None:
        self._append("")
        while self.position < len(self.text):
            match = _IN_DOUBLE_QUOTES.match(self.text, self.position)
            if match is not None:
                self._append(match[0])
                self.position = match.end()
                continue
            character = self.text[self.position]
            self.position += 1
            if character == '"':
                return
            if character == "\\":
                following = self.text[self.position : self.position + 1]
                self._append("" if following == "\n" else following if following in '"\\$`' else f"\\{following}")
                self.position += 1
            else:
                self._read_substitution(character, quoted=True)

    def _read_substitution(self, character: str, *, quoted: bool = False) -> None:
        """Read what follows a ``$`` or a backquote."""
        following = self.text[self.position : self.position + 1]
        if character == "`":
            self._append("$()")
            self._read_nested("`")
        elif following == "(":
            self._append("$()")
            self.position += 1
            self._read_nested(")")
        elif following == "{":
            self._append("$" + self._read_braces())
        elif following == "'" and not quoted:
            self.position += 1
            self._append(self._read_to("'"))
        else:
            self._append("$")

    def _read_braces(self) -> str:
        """Read up to the bracket that closes an expansion, which can contain others."""
        start, depth = self.position, 0
        for match in _BRACE.finditer(self.text, start):
            depth += {"{": 1, "${": 1, "}": -1}.get(match[0], 0)
            if depth == 0:
                self.position = match.end()
                return self.text[start : self.position]
        self.position = len(self.text)
        return self.text[start:]

    def _read_nested(self, end: str) -> None:
        """Read the commands up to a closing bracket or backquote, and add them to those that were found."""
        if self._depth >= MAX_DEPTH:
            self._read_to(end)
            return
        nested = _Splitter(self.text, self._depth + 1)
        nested.position = self.position
        nested.read_until(end)
        self.commands += nested.commands
        self.position = nested.position + 1

    def _append(self, text: str) -> None:
        self._word = (self._word or "") + text

    def _end_word(self) -> None:
        if self._word is not None:
            self._tokens.append(self._word)
            self._word = None

    def _end_command(self) -> None:
        self._end_word()
        if self._tokens:
            self.commands.append(self._tokens)
            self._tokens = []

    def _end_line(self) -> None:
        tokens = [*self._tokens, self._word or ""]
        self._end_command()
        is_script = any(word.rpartition("/")[2] in SHELLS for word in tokens)
        for strips_tabs, end in self._here_documents:
            body = self._read_here_document(end, strips_tabs=strips_tabs)
            if is_script and self._depth < MAX_DEPTH:
                nested = _Splitter(body, self._depth + 1)
                nested.read_until("\0")
                self.commands += nested.commands
        self._here_documents.clear()

    def _read_here_document(self, end: str, *, strips_tabs: bool) -> str:
        lines: list[str] = []
        while self.position < len(self.text):
            line = self._read_to("\n")
            if (line.lstrip("\t") if strips_tabs else line) == end:
                break
            lines.append(line)
        return "\n".join(lines)


def strip_keywords(tokens: Sequence[str]) -> Sequence[str]:
    """Return a simple command without the shell's keywords and the assignments before it.

    Example:
        >>> strip_keywords(["if", "!", "A=1", "uv", "run"])
        ['uv', 'run']
    """
    for number, word in enumerate(tokens):
        if word not in _KEYWORDS and not is_assignment(word):
            return tokens[number:]
    return []


_KEYWORDS = frozenset({"if", "then", "elif", "else", "while", "until", "do", "!", "{", "}", "time", "function"})


def is_assignment(word: str) -> bool:
    """Return whether a word assigns a variable, as ``NAME=value``, ``NAME+=value`` or ``NAME[0]=value``."""
    return re.match(r"[A-Za-z_]\w*(\[[^\]]*\])?\+?=", word) is not None


def nested_texts(tokens: Sequence[str]) -> list[str]:
    """Return the tokens of a simple command that a shell executes: the argument of ``bash -c``, and those of ``eval``.

    Example:
        >>> nested_texts(["timeout", "5", "bash", "-lc", "uv run x.py"])
        ['uv run x.py']
    """
    names = [word.rpartition("/")[2] for word in tokens]
    texts = [" ".join(tokens[1:])] if names[:1] == ["eval"] else []
    for number, name in enumerate(names):
        if name in SHELLS:
            options = number + 1
            while options < len(tokens) and tokens[options].startswith(("-", "+")):
                if re.fullmatch(r"-[a-z]*c[a-z]*", tokens[options]):
                    texts += tokens[options + 1 : options + 2]
                    break
                options += 1
    return texts
