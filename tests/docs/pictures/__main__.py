"""Makes the pictures: ``python -m tests.docs.pictures``, or some kinds of them: ``... terminals notebook ui pages``."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.docs.pictures.browser import draw_notebook, draw_pages, draw_ui
from tests.docs.pictures.sandbox import ROOT, Sandbox
from tests.docs.pictures.terminals import draw_terminals

KINDS = {"terminals": draw_terminals, "notebook": draw_notebook, "ui": draw_ui, "pages": draw_pages}


def main() -> None:
    """Parse the command line and make the pictures."""
    parser = argparse.ArgumentParser(prog="pictures", description=__doc__)
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], help="default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures", help="default: docs/pictures")
    parser.add_argument("--home", type=Path, help="a folder for the account, which is kept; default: a temporary one")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pictures-") as name:
        sandbox = Sandbox(arguments.home or Path(name))
        for kind in arguments.kinds or KINDS:
            KINDS[kind](sandbox, arguments.out)


if __name__ == "__main__":
    main()
