"""Configuration of Sphinx for ``nox -s docs``."""

from __future__ import annotations

import re
from importlib.metadata import version as installed_version
from typing import Any

project = "skyrl-modal"
author = "The skyrl-modal authors"
release = installed_version("skyrl-modal")
version = ".".join(release.split(".")[:2])

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "generated"]
html_theme = "furo"
html_title = f"skyrl-modal {release}"

myst_heading_anchors = 3
# Show the section Attributes of a docstring as fields of its class, since attributes are not documented elsewhere.
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
maximum_signature_line_length = 88

# Types of other packages are not linked, so that the build needs no network. An unresolved name of this package is an
# error.
nitpick_ignore_regex = [(r"py:.*", r"(?!skyrl_modal\.).*")]


def shorten_signature(
    app: Any, what: str, name: str, obj: object, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Show defaults that attrs creates for each instance as dots."""
    if signature is not None:
        signature = re.sub(r"= ?NOTHING", "=...", signature)
    return signature, returns


def setup(app: Any) -> None:
    """Register with Sphinx."""
    app.connect("autodoc-process-signature", shorten_signature)
