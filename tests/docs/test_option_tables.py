"""Tests of what is generated from the settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.option_tables import CONFIG_PAGE, PAGE, SCHEMA_FILE, pages


@pytest.mark.parametrize("path", [PAGE, CONFIG_PAGE, SCHEMA_FILE], ids=lambda path: path.name)
def test_committed_file_is_generated(path: Path) -> None:
    """The committed file is what its script writes."""
    assert path.read_text(encoding="utf-8") == pages()[path]
