"""Random repositories, and git's own list of their files.

A case is drawn from an object with the methods of ``random.Random``, so that Hypothesis can shrink it, and the fuzz test
can run without Hypothesis.
"""

# ruff: noqa: E501  long lists of names and patterns are easier to read in long lines

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from tests.support.git_settings import isolated_git_settings

NAMES = [
    b"a", b"b", b"c", b"A", b"foo", b"bar", b"foobar", b"foo.py", b"x.pyc", b"lib", b"build", b"docs", b".env", b"keep",
    b"a b", b"a ", b"\xff", b"\xc3\xa9", b"n\nl", b"[a]", b"a]", b"*", b"\\", b"a\\", b"!a", b"#a", b"a-c", b"^", b" ", b"\t",
    b"x\r", b"foo\n", b"-", b"~", b"ab", b"abc", b"z", b"Z", b".a", b"a.b", b"[a", b"a[",
]  # fmt: skip
PIECES = [
    b"a", b"b", b"c", b"foo", b"bar", b"A", b"/", b"/", b"/", b"*", b"*", b"**", b"?", b"**/", b"/**", b"/**/", b"/*", b"*/",
    b"[ab]", b"[!a]", b"[^a]", b"[a-c]", b"[]a]", b"[!]]", b"[a\\-c]", b"[\\]]", b"[^/]", b"[a/]", b"[.-0]", b"[[:alpha:]]",
    b"[[:punct:]]", b"[[:space:]]", b"[![:alnum:]]", b"[[:foo:]]", b"[z-a]", b"[a", b"[A-Z]", b"[[:upper:]]", b"\\a", b"\\*",
    b"\\ ", b"\\[a]", b"\\\\", b"\\#a", b"\\!a", b"\\/", b"\\", b" ", b"  ", b"\t", b"\r", b"\xff", b"\xc3\xa9", b".", b"-",
    b"***", b"foo**/", b"//", b"!", b"#", b"\\A", b"[\\A]", b"*.py", b"*.py[cod]", b"\0", b"n?l", b"]",
    b"[a-]", b"[Z-]", b"[[:foo:]a]", b"[![:foo:]]", b"[a[:alpha:]-]", b"[[:a]", b"[a-\\c]", b"[--a]",
]  # fmt: skip
LINES = [
    b"lib/", b"!docs/lib/", b"build/", b"!build/keep", b"/*", b"!/foo/", b"*", b"!*/", b"!*.py", b"*.py[cod]", b"**/lib/",
    b".env", b"# no", b"", b"foo/**", b"!foo/**/keep", b"a/**/b", b"**/a", b"a/*", b"/a", b"a/b", b"docs/*/a", b"foo**/bar",
    b"foo*", b"*foo", b"!a", b"\\!a", b"\\#a", b"a ", b"a\\ ", b"/foo/*/", b"?", b"[!a]*", b"**/foo/bar", b"/**", b"a**", b"**a",
    b"a/", b"*.b", b"!a.b", b"**", b"**/", b"/", b"!", b"\\", b"foo**", b"[a", b"a[", b"*[a", b"**\\/a", b"a/**\\/b", b"foo**\\/bar", b"/a/", b"b/", b"!b/", b"!/a", b"foo**//",
]  # fmt: skip


def git(*arguments: str | bytes, cwd: Path, stdin: bytes = b"") -> bytes:
    """Run a git command that has to succeed, and return its output."""
    done = subprocess.run(["git", *arguments], cwd=cwd, input=stdin, capture_output=True, check=False)
    if done.returncode:
        raise AssertionError(f"git {arguments!r} in {cwd}: {done.stderr!r}")
    return done.stdout


def listed_by_git(root: Path) -> list[str]:
    """Return the existing files that ``git ls-files --cached --others --exclude-standard`` lists, sorted.

    Three kinds of entries are treated differently: tracked files that do not exist are dropped, as are paths through a
    symbolic link, and a nested repository, which git lists by its name only, is replaced by git's list of its files.
    """
    output = git("ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=root)
    base = os.fsencode(root)
    found: set[bytes] = set()
    for path in filter(None, output.split(b"\0")):
        full = os.path.join(base, path.rstrip(b"/"))
        try:
            mode = os.lstat(full).st_mode
        except OSError:
            continue
        parents = path.rstrip(b"/").split(b"/")[:-1]
        if any(os.path.islink(os.path.join(base, *parents[: depth + 1])) for depth in range(len(parents))):
            continue
        if stat.S_ISDIR(mode):
            if os.path.lexists(os.path.join(full, b".git")):
                inside = path.rstrip(b"/") + b"/"
                found.update(inside + os.fsencode(name) for name in listed_by_git(Path(os.fsdecode(full))))
            continue
        if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
            found.add(path)
    return sorted(map(os.fsdecode, found))


@attrs.frozen
class Templates:
    """Fresh repositories, created once and copied, because ``git init`` takes longer than a whole case."""

    sha1: Path
    sha256: Path

    @classmethod
    def make(cls, folder: Path) -> Templates:
        """Create the repositories."""
        made = {}
        for kind in ("sha1", "sha256"):
            git("init", "-q", "--template=", f"--object-format={kind}", str(folder / kind), cwd=folder)
            made[kind] = folder / kind / ".git"
        return cls(**made)


class Builder:
    """Builds one random worktree, with everything that influences git's list."""

    def __init__(self, random: random.Random, folder: Path, templates: Templates) -> None:
        self.random, self.folder, self.templates = random, folder, templates

    def chance(self, one_in: int) -> bool:
        """Return True with a probability of one in ``one_in``. Hypothesis shrinks to False."""
        return self.random.randrange(one_in) == one_in - 1

    def build(self) -> list[Path]:
        """Build the worktree; return the folders to select from."""
        top = self.folder / "top"
        self.names = self.random.sample(NAMES, 9)
        xdg = self.folder / "xdg" / "git" / "ignore"
        xdg.parent.mkdir(parents=True, exist_ok=True)
        xdg.write_bytes(self.patterns() if self.chance(4) else b"")
        self.ignore_case = self.chance(8)
        self.wide = self.chance(12)
        top.mkdir()
        git_dir = top / ".git"
        if self.chance(8):
            self.linked_worktree(top)
        else:
            shutil.copytree(self.template, git_dir)
        self.settings(self.folder / "main.git" if (top / ".git").is_file() else git_dir)
        folders = self.tree(top)
        self.track(top)
        self.nested(top, folders)
        self.disturb(top)
        roots = [top]
        if self.chance(3) and folders:
            below = top / os.fsdecode(self.random.choice(folders))
            if below.is_dir() and not below.is_symlink() and b"\n" not in os.fsencode(below):
                roots.append(below)
        return roots

    @property
    def template(self) -> Path:
        return self.templates.sha256 if self.wide else self.templates.sha1

    def linked_worktree(self, top: Path) -> None:
        main = self.folder / "main.git"
        shutil.copytree(self.template, main)
        own = main / "worktrees" / "w"
        own.mkdir(parents=True)
        (own / "HEAD").write_text("ref: refs/heads/w\n")
        (own / "commondir").write_text("../..\n")
        (own / "gitdir").write_text(f"{top}/.git\n")
        (top / ".git").write_text(f"gitdir: {own}\n")

    def settings(self, common: Path) -> None:
        lines = [f"\tignorecase = {'true' if self.ignore_case else 'false'}\n"]
        if self.chance(4):
            excludes = self.folder / "excludes"
            excludes.write_bytes(self.patterns())
            lines.append(f'\texcludesFile = "{excludes}" ; comment\n')
        with (common / "config").open("a") as file:
            file.write("[core]\n" + "".join(lines))
        if self.chance(3):
            (common / "info").mkdir(exist_ok=True)
            (common / "info" / "exclude").write_bytes(self.patterns())

    def patterns(self) -> bytes:
        """Return an ignore file, with many unusual patterns."""
        random = self.random
        lines = []
        for _ in range(random.randint(1, 5)):
            form = random.randrange(3)
            if form == 0:
                line = random.choice(LINES)
            elif form == 1:
                line = b"".join(random.choice(PIECES) for _ in range(random.randint(1, 4)))
            else:
                # Existing names, so that more patterns match.
                parts = [random.choice(self.names) for _ in range(random.randint(1, 3))]
                line = parts[0]
                for part in parts[1:]:
                    line += random.choice([b"/", b"/**/", b"/*/", b"**/", b"*", b"**\\/"]) + part
                line = random.choice([b"", b"", b"/", b"**/", b"*"]) + line
                line += random.choice([b"", b"", b"/", b"/**", b"*"])
            if lines and self.chance(5):
                # Equal patterns on several lines: the last one decides.
                line = random.choice(lines).removeprefix(b"!")
            if self.chance(5):
                line = b"!" + line
            lines.append(line)
        content = (b"\r\n" if self.chance(8) else b"\n").join(lines)
        if self.chance(10):
            content = b"\xef\xbb\xbf" + content
        return content + (b"" if self.chance(3) else b"\n")

    def tree(self, top: Path) -> list[bytes]:
        """Create files, links and ignore files; return the folders."""
        random = self.random
        base = os.fsencode(top)
        folders: list[bytes] = []
        taken: set[bytes] = set()
        names = self.names
        for _ in range(random.randint(3, 22)):
            parts = [random.choice(names) for _ in range(random.randint(1, 4))]
            if self.ignore_case and any(
                other != part and other.lower() == part.lower() for part in parts for other in names
            ):
                # Where case is ignored, a folder cannot contain two names that differ only in case.
                continue
            path = b"/".join(parts)
            if any(b"/".join(parts[:depth]) in taken for depth in range(1, len(parts) + 1)) or path in folders:
                continue
            for depth in range(1, len(parts)):
                folder = b"/".join(parts[:depth])
                if folder not in folders:
                    folders.append(folder)
                    os.mkdir(os.path.join(base, folder))
            taken.add(path)
            full = os.path.join(base, path)
            if self.chance(9):
                os.symlink(random.choice([b".", b"..", b"a", b"nowhere", base]), full)
            elif self.chance(14):
                os.mkdir(full)
            else:
                Path(os.fsdecode(full)).write_bytes(b"")
        for folder in [b"", *folders]:
            if not self.chance(2 if not folder else 4):
                continue
            place = Path(os.fsdecode(os.path.join(base, folder))) / ".gitignore"
            place.write_bytes(self.patterns())
            if self.chance(20):
                place.rename(place.with_name("elsewhere"))
                place.symlink_to("elsewhere")
        return folders

    def track(self, top: Path) -> None:
        """Add some files to the index, ignored or not."""
        files = [
            os.path.relpath(os.path.join(folder, name), os.fsencode(top))
            for folder, folders, names in os.walk(os.fsencode(top))
            for name in (*names, *(link for link in folders if os.path.islink(os.path.join(folder, link))))
            if b".git" not in folder.split(b"/") and name != b".git"
        ]
        chosen = [path for path in sorted(files) if self.chance(3)]
        if not chosen:
            return
        version = self.random.choice(["2", "2", "4"])
        split = ["--split-index"] if self.chance(6) else []
        stdin = b"".join(path + b"\0" for path in chosen)
        # --info-only: listing files needs no objects.
        common = ("update-index", "--index-version", version, "--add", "--info-only", "-z", "--stdin")
        if split and len(chosen) > 1:
            half = len(chosen) // 2
            head = b"".join(path + b"\0" for path in chosen[:half])
            git("update-index", *split, "--add", "--info-only", "-z", "--stdin", cwd=top, stdin=head)
            tail = b"".join(path + b"\0" for path in chosen[half:])
            git("update-index", "--add", "--info-only", "-z", "--stdin", cwd=top, stdin=tail)
            git("update-index", "--force-remove", "-z", "--stdin", cwd=top, stdin=chosen[0] + b"\0")
        else:
            git(*common, cwd=top, stdin=stdin)

    def nested(self, top: Path, folders: list[bytes]) -> None:
        """Create a nested clone or a submodule, with its own ignore rules."""
        if not folders or not self.chance(4):
            return
        place = top / os.fsdecode(self.random.choice(folders))
        if place.is_symlink() or not place.is_dir():
            return
        if self.chance(2):
            shutil.copytree(self.template, place / ".git")
            inner = place / ".git"
        else:
            inner = self.folder / "modules"
            shutil.copytree(self.template, inner)
            (place / ".git").write_text(f"gitdir: {inner}\n")
        if self.chance(3):
            (inner / "info").mkdir(exist_ok=True)
            (inner / "info" / "exclude").write_bytes(self.patterns())
        if self.ignore_case:
            with (inner / "config").open("a") as file:
                file.write("[core]\n\tignorecase = true\n")
        if self.chance(2):
            inside = os.fsencode(place.relative_to(top))
            tracked = git("ls-files", "-z", "--", place.relative_to(top), cwd=top)
            if not tracked:
                object_id = "1" * (64 if self.wide else 40)
                entry = f"160000 {object_id} 0\t".encode() + inside + b"\0"
                git("update-index", "-z", "--index-info", cwd=top, stdin=entry)

    def disturb(self, top: Path) -> None:
        """Remove some files, or replace them by folders."""
        for folder, _, names in os.walk(os.fsencode(top)):
            if b".git" in folder.split(b"/"):
                continue
            for name in sorted(names):
                if name in (b".git", b".gitignore") or not self.chance(25):
                    continue
                full = os.path.join(folder, name)
                os.unlink(full)
                if self.chance(2):
                    os.mkdir(full)
                    Path(os.fsdecode(full), "inside").touch()


@contextmanager
def case(random: random.Random, templates: Templates) -> Iterator[list[Path]]:
    """Create one worktree, which is removed at the end of the block."""
    with tempfile.TemporaryDirectory(dir=templates.sha1.parent.parent) as name, isolated_git_settings(Path(name)):
        yield Builder(random, Path(name), templates).build()


def describe(root: Path) -> str:
    """Return the content of the ignore files, for the report of a disagreement."""
    lines = []
    for folder, _, names in os.walk(root.parent if root.name == "top" else root):
        for name in names:
            if name in (".gitignore", "exclude", "excludes", "ignore"):
                path = os.path.join(folder, name)
                lines.append(f"{path}: {Path(path).read_bytes()!r}" if os.path.exists(path) else path)
    return "\n".join(lines)
