"""Paths below HOME in a command, which are on a volume with one of the two homes that containers have."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence

from skyrl_modal.findings import Finding, Severity
from skyrl_modal.protocol.job import Job
from skyrl_modal.spec.fields import is_below

#: HOME in a container on Modal: that of root, as which Modal runs, and that of the user of SkyRL's images, which are
#: made from anyscale/ray. Users of Modal have recorded both.
HOMES = ("/root", "/home/ray")
#: A path below HOME. ``~`` counts at the beginning of a word only.
_HOME_PATH = re.compile(r"(?:\$HOME\b|\$\{HOME\}|(?<![\w/.$~-])~(?=/))((?:/[\w.+@%,-]+)+)")
_MAX_PATHS = 3


def find_home_paths(job: Job, texts: Sequence[tuple[str, str]]) -> Iterator[Finding]:
    """Yield a finding for each text with paths that are on a volume with only one value of HOME.

    Args:
        job: The run.
        texts: The command and the scripts that it names: what each is called, and its text.
    """
    if not job.image or "HOME" in job.env:  # on this machine, HOME is the user's own
        return
    for where, text in texts:
        found: dict[str, tuple[str, str]] = {}
        for match in _HOME_PATH.finditer(text):
            paths = [posixpath.normpath(f"{home}{match[1]}") for home in HOMES]
            on_volume = [any(is_below(path, folder) for folder in job.storage_paths) for path in paths]
            if any(on_volume) and not all(on_volume):
                index = on_volume.index(True)
                found[match[0]] = (HOMES[index], paths[index])
        if found:
            yield _finding(where, found)


def _finding(where: str, found: dict[str, tuple[str, str]]) -> Finding:
    home, path = next(iter(found.values()))
    names = ", ".join(list(found)[:_MAX_PATHS])
    if len(found) > _MAX_PATHS:
        names += f" and {len(found) - _MAX_PATHS} more"
    return Finding(
        code="home-path",
        severity=Severity.WARNING,
        message=f"{where} uses {names}, which is on a volume only if HOME is {home}. An image may define another HOME: "
        f"{' or '.join(HOMES)}",
        remedy=f'Write {path}, or pass env={{"HOME": "{home}"}}.',
    )
