"""How the documentation is built: ``nox -s docs``."""

from __future__ import annotations

import re
from importlib.metadata import version as installed_version
from typing import Any

project = "skyrl-modal"
author = "The skyrl-modal authors"
release = installed_version("skyrl-modal")
version = ".".join(release.split(".")[:2])

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"skyrl-modal {release}"

myst_heading_anchors = 3
# The section Attributes of a docstring, as fields of its class: the attributes are documented nowhere else.
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
maximum_signature_line_length = 88

# Types of others are not linked: the build asks no server. A name of ours that leads nowhere is an error.
nitpick_ignore_regex = [(r"py:.*", r"(?!skyrl_modal\.).*")]


def shorten_signature(
    app: Any, what: str, name: str, obj: object, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Write attrs' defaults that are made anew for each instance as dots."""
    if signature is not None:
        signature = re.sub(r"= ?NOTHING", "=...", signature)
    return signature, returns


def setup(app: Any) -> None:
    """Register with Sphinx."""
    app.connect("autodoc-process-signature", shorten_signature)
