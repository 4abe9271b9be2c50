"""The search for the SkyRL checkout. It is a module of its own, which loads nothing that reads git's files."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from skyrl_modal.errors import CheckoutNotFound


def find_checkout(given: str | Path | None = None) -> Path:
    """Find the checkout: a folder, or the nearest one above it, that contains ``skyrl-gym/``.

    The search begins at the argument or at ``$SKYRL_REPO_ROOT``, if one of them is set; it is an error if neither that
    folder nor one above it is a checkout. Otherwise it begins at the working directory, then at the folder of the
    script that was started.

    Args:
        given: The checkout, or a folder in it; None to search.

    Returns:
        The root of the checkout, absolute.

    Raises:
        CheckoutNotFound: None of the folders is in a checkout.
    """
    places: list[tuple[str, Path]] = []
    variable = os.environ.get("SKYRL_REPO_ROOT")
    if given is not None:
        places.append(("checkout=", Path(given)))
    elif variable:
        places.append(("$SKYRL_REPO_ROOT", Path(variable)))
    else:
        with contextlib.suppress(FileNotFoundError):  # it does not exist any more
            places.append(("the working directory", Path.cwd()))
        script = getattr(sys.modules.get("__main__"), "__file__", None)
        if script:
            places.append(("the calling script", Path(script).parent))
    absolute = [(why, place.expanduser().absolute()) for why, place in places]
    for _, place in absolute:
        for folder in (place, *place.parents):
            if (folder / "skyrl-gym").is_dir():
                return folder
    raise CheckoutNotFound(absolute)
