"""Tests of reading secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from skyrl_modal import SpecError
from skyrl_modal.prepare.secret_values import read_secret_values


def test_environment_takes_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment takes precedence over .env files, and the first folder over the second."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".env").write_text(f"A={name}\nB={name}\n{name.upper()}='$A {name}'\n")
    monkeypatch.setenv("A", "environment")

    values = read_secret_values(["A", "B", "SECOND"], [tmp_path / "first", tmp_path / "second"])

    assert values == {"A": "environment", "B": "first", "SECOND": "$A second"}


def test_missing_secret_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable without a value raises SpecError, which contains no value of another."""
    (tmp_path / ".env").write_text("A=hunter2\n")
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)

    with pytest.raises(SpecError) as caught:
        read_secret_values(["A", "NO_SUCH_KEY"], [tmp_path, tmp_path / "none"])

    assert (caught.value.field, caught.value.value) == ("secrets", "NO_SUCH_KEY")
    assert str(tmp_path / ".env") in caught.value.remedy
    assert "hunter2" not in str(caught.value)
