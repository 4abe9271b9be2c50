"""Warnings about a selection, each with a remedy."""

from __future__ import annotations

import os
import re
import stat
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from skyrl_modal.gitfiles.decision import Exclusion, FolderContext, RuleSource
from skyrl_modal.gitfiles.report import format_size, largest_files
from skyrl_modal.gitfiles.secret_search import FoundSecret

#: Limits above which a selection causes a warning. They are about ten times the size of a SkyRL checkout.
MAX_BYTES, MAX_FILES, MAX_UNTRACKED_BYTES = 500_000_000, 50_000, 50_000_000
_PRIVATE = re.compile(
    r"(?:^|/)(?:id_(?:rsa|dsa|ecdsa|ed25519)|\.netrc|\.pypirc|\.git-credentials|\.modal\.toml|\.htpasswd"
    r"|[^/]*\.(?:p12|pfx|ppk)|\.aws/credentials|\.kube/config|\.docker/config\.json|\.cache/huggingface/(?:token|stored_tokens))$"
)
# The ends of all paths that match. Nearly no other path has one of them, and they are compared in less time.
_PRIVATE_ENDINGS = (
    *("id_rsa", "id_dsa", "id_ecdsa", "id_ed25519", ".netrc", ".pypirc", ".git-credentials", ".modal.toml"),
    *(".htpasswd", ".p12", ".pfx", ".ppk", "/credentials", "/config", "/config.json", "/token", "/stored_tokens"),
)
# Paths that begin with a folder and this character follow the paths in the folder.
_AFTER_SLASH = chr(ord("/") + 1)
#: More files with keys are counted only.
MAX_FILES_WITH_KEYS = 20

Status = Sequence["os.stat_result | None"]


def find_warnings(
    root: Path,
    files: Sequence[str],
    status: Status,
    exclusions: Sequence[Exclusion],
    worktrees: Sequence[FolderContext],
    secrets: Sequence[FoundSecret],
) -> list[str]:
    """Return the warnings about a selection.

    Args:
        root: The root of the selection.
        files: The selected files.
        status: The status of each file; None for one that was removed.
        exclusions: The excluded paths.
        worktrees: The top folders of the worktrees, the one of the root first.
        secrets: The keys and tokens that the files contain.
    """
    sizes = [0 if known is None else known.st_size for known in status]
    return [
        *_excluded_modules(root, exclusions),
        *_private_names(files),
        *_secrets(secrets),
        *_large_selection(files, sizes),
        *_large_untracked_folders(files, sizes, worktrees),
        *_problem_files(root, files, status),
        *_empty_submodules(root, worktrees),
    ]


def find_env_files(exclusions: Sequence[Exclusion]) -> tuple[Exclusion, ...]:
    """Return the ``.env`` files that an ignore file excludes; those that ``exclude`` names are left out."""
    return tuple(
        exclusion
        for exclusion in exclusions
        if exclusion.by is not RuleSource.EXCLUDE and exclusion.path.rpartition("/")[2] == ".env"
    )


def _excluded_modules(root: Path, exclusions: Sequence[Exclusion]) -> Iterator[str]:
    """Warn about folders such as lib/ or build/ that contain Python modules and that no tool has created."""
    for path, reason, by in exclusions:
        name = path.rstrip("/").rpartition("/")[2]
        if not path.endswith("/") or not name.isidentifier() or name == "__pycache__" or by is RuleSource.EXCLUDE:
            continue
        try:
            with os.scandir(root / path) as entries:
                names = {entry.name for entry in entries}
        except OSError:
            # Python cannot import from a folder that cannot be listed.
            continue
        if "pyvenv.cfg" not in names and any(name.endswith(".py") for name in names):
            yield (
                f"{path} is excluded ({reason}), but contains Python modules. If the command imports them, pass "
                f'include=["/{path}"], or put "!/{path}" in .skyrlignore'
            )


def _private_names(files: Sequence[str]) -> Iterator[str]:
    text = "\0".join(files) + "\0"
    if not any(f"{ending}\0" in text for ending in _PRIVATE_ENDINGS):
        return
    for path in files:
        if path.endswith(_PRIVATE_ENDINGS) and _PRIVATE.search(path):
            yield (
                f'{path} has the name of a private key or of a login and is included: pass exclude=["/{path}"], '
                "and pass secrets by secrets=[...]"
            )


def _secrets(secrets: Sequence[FoundSecret]) -> Iterator[str]:
    for secret in secrets[:MAX_FILES_WITH_KEYS]:
        others = f" (and {secret.others} more lines)" if secret.others else ""
        yield (
            f"{secret.path}:{secret.line} contains {secret.kind}{others} and is included: remove the value and pass it "
            f'by secrets=[...], or pass exclude=["/{secret.path}"]'
        )
    if len(secrets) > MAX_FILES_WITH_KEYS:
        yield f"{len(secrets) - MAX_FILES_WITH_KEYS:,} more files contain keys or tokens"


def _large_selection(files: Sequence[str], sizes: Sequence[int]) -> Iterator[str]:
    total = sum(sizes)
    if total <= MAX_BYTES and len(files) <= MAX_FILES:
        return
    largest = ", ".join(f"{path} ({format_size(size)})" for size, path in largest_files(files, sizes))
    yield (
        f"{len(files):,} files ({format_size(total)}) are selected. Largest: {largest}. Name files that the run does "
        "not need in exclude=[...] or .skyrlignore, and put data on a volume"
    )


def _large_untracked_folders(
    files: Sequence[str], sizes: Sequence[int], worktrees: Sequence[FolderContext]
) -> Iterator[str]:
    """Warn about large folders without tracked files, such as data/ or checkpoints/ beside the source code."""
    outer = worktrees[0].repository
    if sum(sizes) < MAX_UNTRACKED_BYTES or outer.git_dir is None or (index := outer.readable_index) is None:
        return
    prefix = worktrees[0].path_in_worktree
    nested = {os.fsdecode(top.path_in_root) for top in worktrees[1:]}

    def is_left_out(folder: str) -> bool:
        path = prefix + os.fsencode(folder[:-1])
        return folder not in nested and not index.shows_folder(path) and not index.tracks_folder(path)

    found = list(_find_large_folders(files, sizes, nested, is_left_out))
    for size, folder in sorted(found, key=lambda item: -item[0]):
        yield (
            f"{folder} is included ({format_size(size)}), and git tracks no file in it. If the run does not need "
            f'it, pass exclude=["/{folder}"]'
        )


def _find_large_folders(
    files: Sequence[str], sizes: Sequence[int], skipped: Collection[str], test: Callable[[str], bool]
) -> Iterator[tuple[int, str]]:
    """Yield size and path of each large folder that passes a test, but not of folders in it.

    Args:
        files: The paths of all files, sorted, so that the files of a folder follow each other.
        sizes: The size of each.
        skipped: Folders that are not entered, with a slash at their ends.
        test: Called with the path of a folder and a slash.
    """
    totals = [0, *accumulate(sizes)]
    pending = [("", 0, len(files))]
    while pending:
        parent, begin, end = pending.pop()
        while begin < end:
            name, slash, _ = files[begin][len(parent) :].partition("/")
            if not slash:
                begin += 1
                continue
            folder = f"{parent}{name}/"
            first, begin = begin, bisect_left(files, f"{parent}{name}{_AFTER_SLASH}", begin, end)
            size = totals[begin] - totals[first]
            if size < MAX_UNTRACKED_BYTES:
                continue
            if test(folder):
                yield size, folder
            elif folder not in skipped:
                pending.append((folder, first, begin))


def _problem_files(root: Path, files: Sequence[str], status: Status) -> Iterator[str]:
    """Warn about files that were removed or are unreadable, links that lead nowhere in the run, and unusual names."""
    inside = os.fspath(root) + "/"
    modes = [0 if known is None else known.st_mode for known in status]
    unusual = {mode for mode in set(modes) if stat.S_ISLNK(mode) or mode & 0o444 != 0o444}
    if not unusual and "".join(files).isprintable():
        return
    for path, known, mode in zip(files, status, modes, strict=True):
        if mode not in unusual and path.isprintable():
            continue
        if known is None:
            yield f"{path} was removed after the selection and will not be copied: select again"
        elif stat.S_ISLNK(known.st_mode):
            yield from _link_problems(path, inside)
        elif known.st_mode & 0o444 != 0o444 and not os.access(inside + path, os.R_OK):
            yield f"{path} cannot be read and will not be copied: run `chmod u+r {path}`, or name it in exclude=[...]"
        if not path.isprintable():
            try:
                path.encode()
            except UnicodeEncodeError:
                problem = "is not UTF-8"
            else:
                problem = "contains control characters"
            remedy = "some programs cannot handle it. Rename it, or name it in exclude=[...]"
            yield f"the name of {path!r} {problem}: {remedy}"


def _link_problems(path: str, inside: str) -> Iterator[str]:
    full = inside + path
    try:
        target = os.readlink(full)
    except OSError:
        # It is no longer a link.
        return
    destination = os.path.normpath(os.path.join(os.path.dirname(full), target))
    if os.path.isabs(target) or not (destination + "/").startswith(inside):
        yield f"{path} is a link to {target}, outside of the root, and leads nowhere in the run: copy its target"
    elif not os.path.exists(full):
        yield f"{path} is a link to {target}, which does not exist: remove it, or name it in exclude=[...]"


def _empty_submodules(root: Path, worktrees: Sequence[FolderContext]) -> Iterator[str]:
    for top in worktrees:
        index = top.repository.readable_index
        for submodule in [] if index is None else index.submodules:
            if not submodule.startswith(top.path_in_worktree):
                continue
            path = os.fsdecode(top.path_in_root + submodule[len(top.path_in_worktree) :])
            try:
                empty = not os.listdir(root / path)
            except OSError:
                # The folder is absent, so `git status` reports the submodule as deleted.
                continue
            if empty:
                yield f"the submodule {path} is not checked out: run `git submodule update --init {path}`"
