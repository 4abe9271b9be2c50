"""Search of the selected files for keys and tokens, within a time limit."""

from __future__ import annotations

import os
import stat
import sys
import time
from array import array
from collections.abc import Sequence
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from skyrl_modal.dataclass import dataclass, field
from skyrl_modal.gitfiles.files import read_regular_file
from skyrl_modal.gitfiles.result_cache import ResultCache, has_settled

#: To be increased when the patterns of ``secret_patterns`` change, so that cached results are not used.
PATTERNS_VERSION = 1

#: Larger files are not searched. Scripts and configurations with keys are far smaller.
MAX_SEARCHED_BYTES = 1 << 20
#: Processor time of one search. The processor time, since the result should not depend on other programs' load.
SEARCH_CPU_SECONDS = 0.3
#: Time of one search, for a file system that answers slowly.
SEARCH_TIMEOUT_SECONDS = 2.0
_SHORTEST_FILE = 16
# A file with a NUL byte in its beginning is binary, as for git (buffer_is_binary in xdiff-interface.c).
_BINARY_TEST_BYTES = 8000
# Formats of archives, images, sound, models and data, in which a key would be compressed or encoded.
_BINARY_SUFFIXES = frozenset(
    {
        *("7z", "arrow", "avi", "bin", "bmp", "bz2", "ckpt", "class", "dll", "dylib", "exe", "feather", "flac", "gif"),
        *("gz", "h5", "ico", "jar", "jpeg", "jpg", "mkv", "mov", "mp3", "mp4", "npy", "npz", "o", "ogg", "onnx", "otf"),
        *("parquet", "pdf", "png", "pt", "pth", "pyc", "pyd", "rar", "safetensors", "so", "tar", "tgz", "tif", "tiff"),
        *("ttf", "wav", "webm", "webp", "whl", "woff", "woff2", "xz", "zip", "zst"),
    }
)
# Scripts and settings are searched first: users write keys into them.
_FIRST_SUFFIXES = frozenset(
    {"bash", "cfg", "conf", "env", "fish", "ini", "ipynb", "json", "py", "sh", "toml", "txt", "yaml", "yml", "zsh"}
)

# What changes with the content of a file.
_FACTS = attrgetter("st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")


class FoundSecret(NamedTuple):
    """A key or a token in a file. It does not contain the value.

    Attributes:
        path: The file, below the root.
        line: The number of the line, from 1.
        kind: What it is, such as ``"a GitHub token"``.
        others: The number of further lines of the file with keys.
    """

    path: str
    line: int
    kind: str
    others: int = 0


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The result of a search.

    Attributes:
        found: The first key of each file that contains one, sorted by path.
        unsearched: The number of files that were not searched, because the time limit was reached.
    """

    found: tuple[FoundSecret, ...] = field(repr=False)
    unsearched: int = 0


def search_files(
    root: Path,
    files: Sequence[str],
    status: Sequence[os.stat_result | None],
    cache: Path | None = None,
    *,
    cpu_seconds: float = SEARCH_CPU_SECONDS,
) -> SearchResult:
    """Search text files of at most 1 MiB for keys and tokens.

    Args:
        root: The root of the selection.
        files: The selected files.
        status: The status of each file; None for one that was removed.
        cache: A folder for the list of files without keys, which are not searched again until they change; None to
            search all files. It need not exist. Problems with it only cost time.
        cpu_seconds: The limit of the processor time.
    """
    clean = _CleanFiles(ResultCache(cache), root)
    states = [state for state in status if state is not None]
    names = files if len(states) == len(files) else [name for name, state in zip(files, status, strict=True) if state]
    keys = list(map(hash, map(_FACTS, states)))
    candidates = []
    if not clean.known.issuperset(keys):
        for path, key, state in zip(names, keys, states, strict=True):
            suffix = path.rpartition(".")[2].lower()
            if key not in clean.known and _is_searched(state) and suffix not in _BINARY_SUFFIXES:
                candidates.append((suffix not in _FIRST_SUFFIXES, path, key, state))
    candidates.sort(key=lambda item: item[:2])
    cpu_limit, limit = time.thread_time() + cpu_seconds, time.monotonic() + SEARCH_TIMEOUT_SECONDS
    now = time.time_ns()
    found, searched = [], 0
    for _, path, key, state in candidates:
        if time.thread_time() > cpu_limit or time.monotonic() > limit:
            break
        searched += 1
        secret = _search_file(root, path)
        if secret is not None:
            found.append(secret)
        elif has_settled(state, now):
            clean.add(key)
    clean.save(keys)
    return SearchResult(tuple(sorted(found, key=lambda secret: secret.path)), len(candidates) - searched)


def _is_searched(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and _SHORTEST_FILE <= status.st_size <= MAX_SEARCHED_BYTES


def _search_file(root: Path, path: str) -> FoundSecret | None:
    try:
        text = read_regular_file(f"{root}/{path}", follow_link=False)
    except OSError:
        # Another warning reports that the file cannot be read.
        return None
    if text.find(b"\0", 0, _BINARY_TEST_BYTES) >= 0:
        return None
    from skyrl_modal.gitfiles.secret_patterns import find_secrets  # imported here: most files are in the cache

    found = list(find_secrets(text[:MAX_SEARCHED_BYTES]))
    if not found:
        return None
    offset, kind = found[0]
    lines = {text.count(b"\n", 0, position) for position, _ in found[:100]}
    return FoundSecret(path, text.count(b"\n", 0, offset) + 1, kind, len(lines) - 1)


class _CleanFiles:
    """The files of one root that contained no key, each by a hash of its inode, size and times.

    Attributes:
        known: The hashes that were stored.
    """

    def __init__(self, cache: ResultCache, root: Path) -> None:
        self._cache = cache
        # hash() of integers depends on the version of Python.
        self._name = f"files without keys {PATTERNS_VERSION} {sys.implementation.cache_tag} in {root}"
        self._new = array("q")
        known = array("q")
        with suppress(ValueError):
            known.frombytes(cache.load(self._name) or b"")
        self.known = frozenset(known)

    def add(self, key: int) -> None:
        self._new.append(key)

    def save(self, keys: Sequence[int]) -> None:
        """Store the hashes of the files without keys, if there are new ones, or half of the stored ones are unused."""
        if self._new or len(self.known) > 2 * len(keys):
            used = array("q", [key for key in keys if key in self.known])
            self._cache.save(self._name, (used + self._new).tobytes())
