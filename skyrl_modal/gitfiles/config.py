"""What of git's configuration decides which files git takes, read without git.

git itself is not asked, because it refuses to work in a checkout that belongs to somebody else ("dubious ownership"),
which is what a checkout in a container or on a shared disk is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from attrs import define, field

_SECTION = re.compile(rb'\[\s*([A-Za-z0-9.-]+)(?:\s+"((?:[^"\\\n]|\\.)*)")?\s*\]')
_KEY = re.compile(rb"([A-Za-z][A-Za-z0-9-]*)[ \t]*(=?)[ \t]*")
_ESCAPES = {b"n": b"\n", b"t": b"\t", b"b": b"\b"}
# git gives up at this depth too.
_MAX_INCLUDES = 10


@define
class GitConfig:
    """The last value of each key that was read, and what could not be read.

    Attributes:
        values: By key in small letters, such as ``core.excludesfile``; a key without a value is None.
        problems: Sentences about files that could not be read or understood.
    """

    values: dict[str, bytes | None] = field(factory=dict)
    problems: list[str] = field(factory=list)

    def flag(self, key: str) -> bool:
        """Whether a boolean key is set to true."""
        if key not in self.values:
            return False
        value = self.values[key]
        if value is None:
            return True
        word = value.lower()
        return word in (b"true", b"yes", b"on") or (word.lstrip(b"+-").isdigit() and int(word) != 0)

    def read(self, path: Path, git_dir: Path | None, branch: str | None, depth: int = 0) -> None:
        """Reads one file and those that it includes; an absent one is passed over."""
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            self.problems.append(f"{path} cannot be read ({error.strerror}): git's settings in it are not in force")
            return
        try:
            for key, value in entries(content):
                self._take(key, value, path, git_dir, branch, depth)
        except ValueError as error:
            self.problems.append(f"{path} is not a git configuration ({error}): what follows there is not in force")

    def _take(
        self, key: str, value: bytes | None, path: Path, git_dir: Path | None, branch: str | None, depth: int
    ) -> None:
        included = key == "include.path" or (
            key.startswith("includeif.")
            and key.endswith(".path")
            and _condition_holds(key.removeprefix("includeif.").removesuffix(".path"), path, git_dir, branch)
        )
        if included and value and depth < _MAX_INCLUDES:
            self.read(path.parent / expanded(value), git_dir, branch, depth + 1)
        else:
            self.values[key] = value


def entries(content: bytes) -> Iterator[tuple[str, bytes | None]]:
    r"""The keys and values of a configuration file in their order.

    Raises:
        ValueError: It is not one; the text names the line.

    Example:
        >>> list(entries(b'[core]\n  excludesFile = "~/a b" ; mine\n[x "Y"]\n  flag\n'))
        [('core.excludesfile', b'~/a b'), ('x.Y.flag', None)]
    """
    content = content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
    section = ""
    position = 0
    while position < len(content):
        byte = content[position : position + 1]
        if byte.isspace():
            position += 1
        elif byte in (b"#", b";"):
            newline = content.find(b"\n", position)
            position = len(content) if newline < 0 else newline
        elif byte == b"[":
            if not (match := _SECTION.match(content, position)):
                raise ValueError(f"line {_line(content, position)}: a section that does not end")
            section = match[1].decode("latin-1").lower()
            if match[2] is not None:
                section += "." + re.sub(rb"\\(.)", rb"\1", match[2]).decode("utf-8", "surrogateescape")
            position = match.end()
        else:
            match = _KEY.match(content, position)
            if not match or not section:
                raise ValueError(f"line {_line(content, position)}: neither a section nor a key")
            key = f"{section}.{match[1].decode('latin-1').lower()}"
            position = match.end()
            if match[2]:
                value, position = _value(content, position)
                yield key, value
            else:
                yield key, None


def _line(content: bytes, position: int) -> int:
    return content.count(b"\n", 0, position) + 1


def _value(content: bytes, position: int) -> tuple[bytes, int]:
    """A value and where it ends; blanks at its end do not belong to it, unless quotes protect them."""
    value = b""
    kept = 0
    quoted = False
    while True:
        byte = content[position : position + 1]
        position += 1
        if byte in (b"", b"\n"):
            if quoted:
                raise ValueError(f"line {_line(content, position - 1)}: a quote that does not end")
            return value[:kept], position
        if not quoted and byte in (b"#", b";"):
            newline = content.find(b"\n", position)
            return value[:kept], len(content) if newline < 0 else newline
        if byte == b'"':
            quoted = not quoted
            kept = len(value)
        elif byte == b"\\":
            escaped = content[position : position + 1]
            position += 1
            if escaped != b"\n":
                value += _ESCAPES.get(escaped, escaped)
                kept = len(value)
        else:
            value += byte
            if quoted or not byte.isspace():
                kept = len(value)


def expanded(value: bytes) -> Path:
    """A path as git writes it, with ``~`` resolved, where that user is known."""
    path = Path(os.fsdecode(value))
    try:
        return path.expanduser() if value[:1] == b"~" else path
    except RuntimeError:
        return path


def _condition_holds(condition: str, path: Path, git_dir: Path | None, branch: str | None) -> bool:
    # Here, because only a configuration with conditions needs it.
    from skyrl_modal.gitfiles.matcher import Chain
    from skyrl_modal.gitfiles.pattern import parse

    kind, _, pattern = condition.partition(":")
    if kind == "onbranch":
        subject = branch
    elif kind in ("gitdir", "gitdir/i"):
        subject = None if git_dir is None else os.path.realpath(git_dir).lstrip("/")
        if pattern.startswith("~"):
            pattern = os.path.realpath(expanded(os.fsencode(pattern))) + ("/" if pattern.endswith("/") else "")
        elif pattern.startswith("./"):
            pattern = f"{path.resolve().parent}{pattern[1:]}"
        elif not pattern.startswith("/"):
            pattern = f"**/{pattern}"
    else:
        return False
    if subject is None:
        return False
    if pattern.endswith("/"):
        pattern += "**"
    ignore_case = kind.endswith("/i")
    ruleset = parse(b"/" + os.fsencode(pattern.lstrip("/")), condition, ignore_case)
    folder, _, name = os.fsencode(subject).rpartition(b"/")
    chain = Chain(((ruleset, 0),), ignore_case)
    return chain.rule(folder + b"/" if folder else b"", name, False) is not None


def settings(git_dir: Path | None, common_dir: Path | None) -> GitConfig:
    """The configuration that git would have in a repository, or outside of any.

    Args:
        git_dir: The repository's own folder; for a linked worktree the one in ``.git/worktrees``.
        common_dir: The folder that its worktrees share.
    """
    config = GitConfig()
    branch = _branch(git_dir) if git_dir is not None else None
    for path in _outer_files():
        config.read(path, git_dir, branch)
    if git_dir is not None and common_dir is not None:
        config.read(common_dir / "config", git_dir, branch)
        if config.flag("extensions.worktreeconfig"):
            config.read(git_dir / "config.worktree", git_dir, branch)
    count = os.environ.get("GIT_CONFIG_COUNT", "")
    for number in range(int(count) if count.isdigit() else 0):
        key, value = os.environ.get(f"GIT_CONFIG_KEY_{number}"), os.environ.get(f"GIT_CONFIG_VALUE_{number}")
        if key and value is not None:
            config.values[key.lower()] = os.fsencode(value)
    return config


def _outer_files() -> Iterator[Path]:
    environ = os.environ
    if environ.get("GIT_CONFIG_NOSYSTEM", "0").lower() not in ("1", "true", "yes", "on"):
        if "GIT_CONFIG_SYSTEM" in environ:
            yield Path(environ["GIT_CONFIG_SYSTEM"])
        else:
            # Where git looks is fixed when it is built: the system's own, Homebrew's on either kind of Mac.
            yield from map(Path, ("/etc/gitconfig", "/opt/homebrew/etc/gitconfig", "/usr/local/etc/gitconfig"))
    if "GIT_CONFIG_GLOBAL" in environ:
        yield Path(environ["GIT_CONFIG_GLOBAL"])
        return
    if (folder := user_folder()) is not None:
        yield folder / "config"
    if home := environ.get("HOME"):
        yield Path(home) / ".gitconfig"


def user_folder() -> Path | None:
    """Where git keeps a user's files, by the XDG rules."""
    if xdg := os.environ.get("XDG_CONFIG_HOME"):
        return Path(xdg) / "git"
    home = os.environ.get("HOME")
    return Path(home) / ".config" / "git" if home else None


def excludes_file(config: GitConfig, top: Path) -> Path | None:
    """The user's own ignore file: ``core.excludesFile``, or git's default for it."""
    value = config.values.get("core.excludesfile")
    if value is not None:
        # An empty value is how the default is turned off.
        return top / expanded(value) if value else None
    folder = user_folder()
    return None if folder is None else folder / "ignore"


def _branch(git_dir: Path) -> str | None:
    try:
        head = (git_dir / "HEAD").read_text("utf-8", "surrogateescape").strip()
    except OSError:
        return None
    return head.removeprefix("ref: refs/heads/") if head.startswith("ref: refs/heads/") else None
