"""The page about checks lists the codes of the rules, as the labels define them."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

from skyrl_modal.skyrl import rules
from tests.docs.test_docs import ROOT

RULES = Path(rules.__path__[0])


def test_codes_are_documented() -> None:
    """Page, labels and rules have the same codes, each with the severity that its rule uses."""
    page = (ROOT / "docs/checks.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| (\w+) \|", page, re.MULTILINE))
    labels = tomllib.loads((ROOT / "tests/skyrl/labels.toml").read_text(encoding="utf-8"))["codes"]
    used = {
        keyword.value.value
        for path in RULES.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding"
        for keyword in node.keywords
        if keyword.arg == "code" and isinstance(keyword.value, ast.Constant)
    }

    assert rows == {code: text.partition(":")[0] for code, text in labels.items()}
    assert used <= set(rows)
    assert set(rows) - used == {"ckpt-path", "export-path"}  # their function receives the code
