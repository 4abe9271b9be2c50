"""The paths that git tracks, according to git's index."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from skyrl_modal.gitfiles.files import read_regular_file
from skyrl_modal.gitfiles.git_command import GitCommandError, GitProcess, run_git
from skyrl_modal.gitfiles.index_format import (
    GITLINK,
    HEADER,
    WORD,
    Entry,
    IndexReadError,
    find_entry_below,
    is_plain,
    parse_index,
)

#: Number of lookups in the raw bytes before the index is parsed.
RAW_LOOKUPS = 100
# A longer list of names is not searched in the raw bytes, but only its folder.
_FEW_NAMES = 8
#: Size of an index. The one of a million files has about 100 MB.
MAX_INDEX_BYTES = 512 << 20
#: Size of all ignore files that a sparse checkout leaves out of the worktree.
MAX_IGNORE_FILE_BYTES = 64 << 20


class Index:
    """Answers questions about tracked paths, and parses the index only where a question needs it.

    In most checkouts no tracked file is ignored, and the paths in question do not occur in the index file. A search in
    its raw bytes shows this without creating an object for each entry. The forms that are not parsed here (version 4,
    split, sparse, SHA-256) are listed by git.

    Args:
        git_dir: The repository; None for an empty index.
        worktree: The top folder of the worktree.
        sha256: Whether the repository uses SHA-256.
        ignore_case: Whether ``core.ignorecase`` is set.
        on_damage: Called with the error if the index cannot be read. The paths then count as not tracked.
        blocks_git: Returns why no git process can be started in the repository; empty if nothing is wrong.
    """

    def __init__(
        self,
        git_dir: Path | None,
        worktree: Path,
        *,
        sha256: bool,
        ignore_case: bool,
        on_damage: Callable[[IndexReadError], None],
        blocks_git: Callable[[], str],
    ) -> None:
        self._git_dir, self._worktree, self._sha256 = git_dir, worktree, sha256
        self._ignore_case, self._on_damage, self._blocks_git = ignore_case, on_damage, blocks_git
        self._is_damaged = False
        self._lookups_left = 0 if ignore_case else RAW_LOOKUPS

    @cached_property
    def is_readable(self) -> bool:
        """Whether the index can be read, as far as this shows without parsing a plain one."""
        if self._raw is None:
            len(self._modes)
        len(self.absent_ignore_files)
        return not self._is_damaged

    def tracks_file(self, path: bytes) -> bool:
        """Return whether a file is tracked at this path (from the top of the worktree)."""
        return self._occurs_in_file(path) and self._folded(path) in self._modes

    def find_tracked_files(self, folder: bytes, names: Sequence[bytes]) -> frozenset[bytes]:
        """Return those names of files in a folder that are tracked.

        Args:
            folder: The folder from the top of the worktree, ending in a slash, or empty.
            names: The names.
        """
        if len(names) <= _FEW_NAMES:
            return frozenset(name for name in names if self.tracks_file(folder + name))
        if not self._occurs_in_file(folder) or not self._has_below(self._folded(folder)):
            return frozenset()
        modes = self._modes
        return frozenset([name for name in names if self._folded(folder + name) in modes])

    def tracks_folder(self, path: bytes) -> bool:
        """Return whether this folder (without a slash at its end) is a submodule or contains a tracked path."""
        if not self._occurs_in_file(path):
            return False
        path = self._folded(path)
        return self._modes.get(path) == GITLINK or self._has_below(path + b"/")

    def shows_folder(self, path: bytes) -> bool:
        """Return whether this folder contains a tracked path, as far as this shows without parsing the index."""
        return not self._ignore_case and bool(self._raw) and find_entry_below(self._raw or b"", path + b"/")

    def is_submodule(self, path: bytes) -> bool:
        """Return whether this folder is tracked as a submodule."""
        return self._occurs_in_file(path) and self._modes.get(self._folded(path)) == GITLINK

    @property
    def submodules(self) -> list[bytes]:
        """The paths that are tracked as submodules."""
        raw = self._raw
        if raw is not None and WORD.pack(GITLINK) not in raw:
            return []
        return [path for path, mode in self._modes.items() if mode == GITLINK]

    @cached_property
    def absent_ignore_files(self) -> dict[bytes, bytes]:
        """The ``.gitignore`` files that a sparse checkout leaves out of the worktree, by path, with their content.

        git reads them from the objects in the index.
        """
        raw = self._raw
        if raw is not None and (not raw or HEADER.unpack_from(raw)[1] == 2):
            # Version 2 has no flag for files that are left out.
            return {}
        absent = {
            entry.path: entry.object_id
            for entry in self._entries
            if entry.skipped and entry.path.rpartition(b"/")[2] == b".gitignore" and entry.mode & 0o170000 == 0o100000
        }
        if not absent or self._git_dir is None:
            return {}
        try:
            self._check_git()
            return dict(zip(absent, _read_objects(self._git_dir, self._worktree, list(absent.values())), strict=True))
        except IndexReadError as error:
            self._report(error)
            return {}

    def _check_git(self) -> None:
        if reason := self._blocks_git():
            raise IndexReadError(f"git is needed for it, but {reason}")

    def _folded(self, path: bytes) -> bytes:
        return path.lower() if self._ignore_case else path

    def _occurs_in_file(self, path: bytes) -> bool:
        """Return False if the path does not occur in the index file. Only the first lookups search the raw bytes."""
        if self._lookups_left <= 0 or self._raw is None:
            return True
        self._lookups_left -= 1
        return path in self._raw

    def _has_below(self, prefix: bytes) -> bool:
        paths = self._sorted
        place = bisect_left(paths, prefix)
        return place < len(paths) and paths[place].startswith(prefix)

    def _report(self, error: IndexReadError) -> None:
        self._is_damaged = True
        self._on_damage(error)

    @cached_property
    def _raw(self) -> bytes | None:
        """The content of the file, if it contains each path in full; None if git has to list the entries."""
        if self._git_dir is None:
            return b""
        try:
            data = read_regular_file(self._git_dir / "index", max_bytes=MAX_INDEX_BYTES)
            return data if not self._sha256 and is_plain(data) else None
        except FileNotFoundError:
            pass
        except OSError as error:
            self._report(IndexReadError(str(error.strerror)))
        except IndexReadError as error:
            self._report(error)
        return b""

    @cached_property
    def _entries(self) -> list[Entry]:
        try:
            if self._raw:
                return parse_index(self._raw)
            if self._raw is None and self._git_dir is not None:
                self._check_git()
                return _list_entries(self._git_dir, self._worktree)
        except IndexReadError as error:
            self._report(error)
        return []

    @cached_property
    def _modes(self) -> dict[bytes, int]:
        if self._ignore_case:
            return {path.lower(): mode & 0o170000 for path, mode, _, _ in self._entries}
        return {path: mode & 0o170000 for path, mode, _, _ in self._entries}

    @cached_property
    def _sorted(self) -> list[bytes]:
        return sorted(self._modes)


def _list_entries(git_dir: Path, worktree: Path) -> list[Entry]:
    """Return the entries of an index of any form, as git lists them."""
    try:
        output = run_git(git_dir, worktree, "ls-files", "--stage", "-z", "-t", "--full-name")
    except GitCommandError as error:
        raise IndexReadError(f"only git can read its format: {error}") from error
    return parse_ls_files(output)


def parse_ls_files(output: bytes) -> list[Entry]:
    r"""Parse the output of ``git ls-files --stage -z -t``.

    Its format is documented in git-ls-files(1): a tag (``S`` for an entry that a sparse checkout leaves out), the mode,
    the object, the stage, a tab and the path, then a NUL. Seen with git 2.39.

    Raises:
        IndexReadError: The output has another format.

    Example:
        >>> parse_ls_files(b"S 100644 0aff 0\ta/b\0")
        [Entry(path=b'a/b', mode=33188, object_id=b'\n\xff', skipped=True)]
    """
    entries = []
    try:
        for record in output.split(b"\0")[:-1]:
            facts, _, path = record.partition(b"\t")
            tag, mode, object_id, _ = facts.split(b" ")
            entries.append(Entry(path, int(mode, 8), bytes.fromhex(object_id.decode()), tag == b"S"))
    except ValueError as error:
        raise IndexReadError(f"the output of `git ls-files` has an unknown format ({error})") from error
    return entries


def _read_objects(git_dir: Path, worktree: Path, object_ids: list[bytes]) -> list[bytes]:
    """Return the contents of objects."""
    names = "".join(f"{object_id.hex()}\n" for object_id in object_ids).encode()
    command = ("cat-file", "--batch")
    try:
        output = GitProcess(git_dir, worktree, command, stdin=names, max_output=MAX_IGNORE_FILE_BYTES).read_stdout()
    except GitCommandError as error:
        raise IndexReadError(f"only git can read ignore files that are not checked out: {error}") from error
    return parse_cat_file(output)


def parse_cat_file(output: bytes) -> list[bytes]:
    r"""Parse the output of ``git cat-file --batch``.

    Its format is documented in git-cat-file(1), "Batch output": the object, its type, its size, a newline, the content
    and a newline; or the object and ``missing``. Seen with git 2.39.

    Raises:
        IndexReadError: An object is missing, for example in a partial clone, or the output has another format.

    Example:
        >>> parse_cat_file(b"0aff blob 3\n*.o\n")
        [b'*.o']
    """
    contents = []
    position = 0
    while position < len(output):
        end = output.find(b"\n", position)
        facts = output[position:end].split(b" ")
        if end < 0 or len(facts) != 3 or not facts[2].isdigit():
            raise IndexReadError(f"the object {facts[0].decode('ascii', 'replace')} is not in the repository")
        position = end + 1 + int(facts[2][:20]) + 1
        contents.append(output[end + 1 : position - 1])
    return contents
