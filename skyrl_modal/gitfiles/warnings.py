"""What may be wrong with a selection, said before it costs anything, each with what to do about it."""

from __future__ import annotations

import heapq
import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from skyrl_modal.gitfiles.walk import Folder

_MB = 1 << 20
# Above these a selection is worth a second look: it is sent, or copied, and the checkouts known are a tenth of it.
MANY_BYTES, MANY_FILES, MANY_UNTRACKED = 500 * _MB, 50_000, 50 * _MB
_SHOWN = 10
_PRIVATE = re.compile(
    r"(?:^|/)(?:id_(?:rsa|dsa|ecdsa|ed25519)|\.netrc|\.pypirc|\.git-credentials|\.modal\.toml|\.htpasswd"
    r"|[^/]*\.(?:p12|pfx|ppk)|\.aws/credentials|\.kube/config|\.docker/config\.json|\.cache/huggingface/(?:token|stored_tokens))$"
)
# Names that a public certificate or a word list may have as well: what is in them decides.
_SUSPECT = re.compile(
    r"(?:^|/)[^/]*(?:\.pem|\.key|secret|credential|token|service[-_]?account|api[-_]?key|\.npmrc)[^/]*$", re.I
)
_SECRET = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY-----|\"private_key\"\s*:|\bhf_[A-Za-z0-9]{30,}|\bgh[pousr]_[A-Za-z0-9]{30,}"
    rb"|\bgithub_pat_[A-Za-z0-9_]{30,}|\bsk-[A-Za-z0-9_-]{30,}|\bAKIA[0-9A-Z]{16}\b|\bxox[abpr]-[A-Za-z0-9-]{20,}"
    rb"|\bak-[A-Za-z0-9]{20,}|\bas-[A-Za-z0-9]{20,}|_authToken\s*="
)
_PEEK = 65536

Status = Sequence["os.stat_result | None"]


def find(
    root: Path, files: Sequence[str], status: Status, excluded: Mapping[str, str], tops: Sequence[Folder]
) -> list[str]:
    """The warnings about a selection.

    Args:
        root: What it is a selection of.
        files: What goes.
        status: The status of each of them; None for one that is gone.
        excluded: What stays, with the reason.
        tops: The folders at which a worktree begins, the root's own first.
    """
    return [
        *_ignored_env(excluded),
        *_ignored_modules(root, excluded),
        *_secrets(root, files, status),
        *_too_much(files, status),
        *_untracked_weight(files, status, tops),
        *_single_files(root, files, status),
        *_empty_submodules(root, tops),
    ]


def _ignored_env(excluded: Mapping[str, str]) -> Iterator[str]:
    for path, reason in excluded.items():
        if (path == ".env" or path.endswith("/.env")) and not reason.startswith("exclude:"):
            yield (
                f"{path} stays behind ({reason}), but SkyRL's workers take their variables from it, and miss them in "
                f'silence: give include=["/{path}"], or name the variables in secrets=[...]'
            )


def _ignored_modules(root: Path, excluded: Mapping[str, str]) -> Iterator[str]:
    """Folders such as lib/ or build/ that Python could import from, and that no tool makes."""
    for path, reason in excluded.items():
        name = path.rstrip("/").rpartition("/")[2]
        if not path.endswith("/") or not name.isidentifier() or name == "__pycache__" or reason.startswith("exclude:"):
            continue
        try:
            with os.scandir(root / path) as entries:
                names = {entry.name for entry in entries}
        except OSError:
            # It cannot be looked into, and so is not imported from either.
            continue
        if "pyvenv.cfg" not in names and any(name.endswith(".py") for name in names):
            yield (
                f"{path} stays behind ({reason}), but has Python modules in it: if the command imports them, give "
                f'include=["/{path}"] or put "!/{path}" in .skyrlignore'
            )


def _secrets(root: Path, files: Sequence[str], status: Status) -> Iterator[str]:
    for path, known in zip(files, status, strict=True):
        if _PRIVATE.search(path):
            what = "is named as a private key or a login is"
        elif _SUSPECT.search(path) and known is not None and stat.S_ISREG(known.st_mode) and _holds_secret(root / path):
            what = "holds what looks like a private key or a token"
        else:
            continue
        yield f'{path} {what} and would go: give exclude=["/{path}"], and hand secrets over by secrets=[...]'


def _holds_secret(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return _SECRET.search(file.read(_PEEK)) is not None
    except OSError:
        # Told as unreadable by another warning.
        return False


def _too_much(files: Sequence[str], status: Status) -> Iterator[str]:
    total = sum(known.st_size for known in status if known is not None)
    if total <= MANY_BYTES and len(files) <= MANY_FILES:
        return
    sizes = [0 if known is None else known.st_size for known in status]
    largest = ", ".join(f"{path} ({megabytes(size)})" for size, path in _largest(files, sizes))
    yield (
        f"{megabytes(total)} in {len(files):,} files would go; the largest: {largest}. Name what the run does not need "
        "in exclude=[...] or .skyrlignore, and put data on a volume"
    )


def _untracked_weight(files: Sequence[str], status: Status, tops: Sequence[Folder]) -> Iterator[str]:
    """Heavy folders without anything that git tracks, such as data/ or checkpoints/ next to the source."""
    outer = tops[0].repository
    total = sum(known.st_size for known in status if known is not None)
    if total < MANY_UNTRACKED or outer.git_dir is None or (index := outer.readable_index) is None:
        return
    prefix = tops[0].in_repository
    own = [os.fsdecode(top.at) for top in tops[1:]]
    known_folders: dict[str, bool] = {}

    def holds_tracked(folder: str) -> bool:
        if folder not in known_folders:
            known_folders[folder] = index.tracks_folder(prefix + os.fsencode(folder)) or f"{folder}/" in own
        return known_folders[folder]

    weights: dict[str, int] = defaultdict(int)
    for path, known in zip(files, status, strict=True):
        if known is None:
            continue
        parts = path.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            if f"{folder}/" in own:
                break
            if not holds_tracked(folder):
                weights[folder] += known.st_size
                break
    for folder, weight in sorted(weights.items(), key=lambda item: -item[1]):
        if weight >= MANY_UNTRACKED:
            yield (
                f"{folder}/ would go with {megabytes(weight)}, and git tracks nothing in it: if the run does not "
                f'need it, give exclude=["/{folder}/"]'
            )


def _single_files(root: Path, files: Sequence[str], status: Status) -> Iterator[str]:
    """Files that are gone or unreadable, links that lead nowhere in the run, names that not every place can hold."""
    inside = os.fspath(root) + "/"
    for path, known in zip(files, status, strict=True):
        if known is None:
            yield f"{path} vanished after it was selected: it is not in what goes; select again"
        elif stat.S_ISLNK(known.st_mode):
            yield from _link(path, inside)
        elif known.st_mode & 0o444 != 0o444 and not os.access(inside + path, os.R_OK):
            yield f"{path} cannot be read, and will be missing: `chmod u+r` it, or name it in exclude=[...]"
        if not path.isprintable():
            try:
                path.encode()
            except UnicodeEncodeError:
                problem = "is not UTF-8"
            else:
                problem = "has control characters in it"
            yield f"the name of {path!r} {problem}: Modal may not carry it; rename it, or name it in exclude=[...]"


def _link(path: str, inside: str) -> Iterator[str]:
    full = inside + path
    try:
        target = os.readlink(full)
    except OSError:
        # Not a link any more, by now.
        return
    lands = os.path.normpath(os.path.join(os.path.dirname(full), target))
    if os.path.isabs(target) or not (lands + "/").startswith(inside):
        yield f"{path} is a link to {target}, outside of the root, and leads nowhere in the run: copy what is there"
    elif not os.path.exists(full):
        yield f"{path} is a link to {target}, which is not there: remove it, or name it in exclude=[...]"


def _empty_submodules(root: Path, tops: Sequence[Folder]) -> Iterator[str]:
    for top in tops:
        index = top.repository.readable_index
        for submodule in [] if index is None else index.submodules:
            if not submodule.startswith(top.in_repository):
                continue
            path = os.fsdecode(top.at + submodule[len(top.in_repository) :])
            try:
                empty = not os.listdir(root / path)
            except OSError:
                # Removed, or never there: git's status tells, and nothing of it can go.
                continue
            if empty:
                yield f"the submodule {path} is not checked out: `git submodule update --init {path}`"


def megabytes(size: int) -> str:
    """A size as a person reads it.

    Example:
        >>> megabytes(2_500_000), megabytes(900)
        ('2.4 MB', '0.9 kB')
    """
    if size >= _MB * 1024:
        return f"{size / _MB / 1024:,.1f} GB"
    return f"{size / _MB:,.1f} MB" if size >= _MB / 10 else f"{size / 1024:,.1f} kB"


def table(
    root: Path, files: Sequence[str], sizes: Sequence[int], excluded: Mapping[str, str], warnings: Sequence[str]
) -> str:
    """A selection as a person reads it: the total, the largest, what stays by the rule that says so, the warnings."""
    lines = [f"{len(files):,} files, {megabytes(sum(sizes))}, from {root}"]
    largest = _largest(files, sizes)
    if largest:
        lines += ["", "largest"]
        lines += [f"{megabytes(size):>12}  {_printable(path)}" for size, path in largest]
    by_reason: dict[str, list[str]] = defaultdict(list)
    for path, reason in excluded.items():
        by_reason[reason].append(path)
    if by_reason:
        lines += ["", "left out, by rule"]
        for reason, paths in sorted(by_reason.items(), key=lambda item: -len(item[1])):
            more = f" and {len(paths) - 2:,} more" if len(paths) > 2 else ""
            lines.append(f"{len(paths):>12,}  {reason}  ({', '.join(map(_printable, paths[:2]))}{more})")
    if warnings:
        lines += ["", "warnings", *(f"  - {_printable(warning)}" for warning in warnings)]
    return "\n".join(lines)


def _largest(files: Sequence[str], sizes: Sequence[int]) -> list[tuple[int, str]]:
    return heapq.nsmallest(_SHOWN, zip(sizes, files, strict=True), key=lambda item: (-item[0], item[1]))


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode() if text.isprintable() else ascii(text)[1:-1]
