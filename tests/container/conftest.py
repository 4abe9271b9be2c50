"""Fixtures of the tests of the container's code."""

from __future__ import annotations

from tests.support.archives import code, new_container, store

__all__ = ["code", "new_container", "store"]
