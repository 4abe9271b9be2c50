"""Fixtures of the tests of snapshots."""

from __future__ import annotations

from tests.support.git_settings import no_settings

__all__ = ["no_settings"]
