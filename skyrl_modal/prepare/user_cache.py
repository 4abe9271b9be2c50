"""The user's cache of results that depend only on files."""

from __future__ import annotations

from skyrl_modal.errors import StorageError
from skyrl_modal.gitfiles.result_cache import NO_CACHE, ResultCache
from skyrl_modal.user_folders import cache_folder


def result_cache() -> ResultCache:
    """Return the user's cache; one that stores nothing without a home folder."""
    try:
        return ResultCache(cache_folder() / "results")
    except StorageError:
        return NO_CACHE
