"""Configuration of Sphinx for ``nox -s docs``."""

from __future__ import annotations

import ast
import pkgutil
import re
from importlib import import_module
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import skyrl_modal

project = "skyrl-modal"
author = "The skyrl-modal authors"
html_show_copyright = False
release = installed_version("skyrl-modal")
version = ".".join(release.split(".")[:2])

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build", "generated"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_title = f"skyrl-modal {release}"

myst_heading_anchors = 3
# The button of a block with prompts copies the commands without prompts and output.
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True
copybutton_remove_prompts = True
copybutton_line_continuation_character = "\\"
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


def import_names_of_annotations() -> None:
    """Import what modules of the package import for type checkers only, so that autodoc can resolve annotations."""
    names = [module.name for module in pkgutil.walk_packages(skyrl_modal.__path__, "skyrl_modal.")]
    for name in names:
        if name.endswith(("__main__", "ray_probe")):  # programs
            continue
        module = import_module(name)
        for node in ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8")).body:
            # With `else`, the names have other values at run time, which have to remain.
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not node.orelse:
                exec(compile(ast.Module(node.body, []), str(module.__file__), "exec"), vars(module))  # noqa: S102


def setup(app: Any) -> None:
    """Register with Sphinx."""
    import_names_of_annotations()
    app.connect("autodoc-process-signature", shorten_signature)
