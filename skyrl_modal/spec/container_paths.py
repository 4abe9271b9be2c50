"""Paths in the container at which nothing can be mounted, since the run needs what is there."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from skyrl_modal.errors import SpecError
from skyrl_modal.spec.fields import container_path, is_below

#: The folder with the records of runs, on the first writable volume.
RECORDS_FOLDER = ".skyrl_modal"
#: Folders that nothing may replace, neither as a whole nor in part, with what is there.
_RESERVED_TREES: Mapping[str, str] = {
    "/proc": "the kernel's information about processes",
    "/sys": "the kernel's information about devices",
    "/dev": "devices, and the memory that Ray shares between processes",
    "/boot": "the system",
    "/etc": "the system's configuration",
    "/bin": "the system's programs",
    "/sbin": "the system's programs",
    "/lib": "the system's libraries",
    "/lib32": "the system's libraries",
    "/lib64": "the system's libraries",
    "/libx32": "the system's libraries",
    "/usr/bin": "the system's programs",
    "/usr/sbin": "the system's programs",
    "/usr/lib": "the system's libraries",
    "/usr/lib32": "the system's libraries",
    "/usr/lib64": "the system's libraries",
    "/usr/libexec": "the system's programs",
    "/usr/local/bin": "installed programs",
    "/usr/local/sbin": "installed programs",
    "/usr/local/lib": "Python and its packages",
    "/usr/local/cuda": "the CUDA libraries",
    "/run": "sockets and locks of running programs",
    "/var/run": "sockets and locks of running programs",
    "/tmp/ray": "the files of the run's Ray",
    "/root/skyrl_modal": "this package",
    "/root/.skyrl_modal": "the records of runs without a writable volume",
    # The published SkyRL images are made from anyscale/ray: its Python and its Ray are there.
    "/home/ray/anaconda3": "Python and Ray of the SkyRL images",
    "/home/ray/.local": "programs of the SkyRL images, such as uv",
    # Modal's client and the targets of volumes (client 1.6.4).
    "/__modal": "Modal's own files",
    "/__skyrl_modal": "the archives of the run's files",
    "/pkg": "Modal's own files",
}
#: Folders that may not be replaced as a whole. A new folder inside is possible.
_RESERVED_FOLDERS: Mapping[str, str] = {
    "/tmp": "temporary files of the run and of its Ray",
    "/opt": "installed programs",
    "/var/lib": "the state of installed programs",
}

#: What to do about a mount point that is refused.
REMEDY = 'pass a folder of its own, such as "/root/data" or "/mnt/data"'


def mount_point(value: object, name: str) -> str:
    """Validate and normalize a path in the container at which a folder or a volume is to appear.

    Args:
        value: The path.
        name: The field that an error names.

    Raises:
        SpecError: It is no absolute path below ``/``, or something that the run needs would be replaced or hidden.

    Example:
        >>> mount_point("/root/data/", "mount_path")
        '/root/data'
    """
    path = container_path(value, name)
    needed = find_needed(path)
    if needed is not None:
        raise SpecError(name, value, f"the run needs {needed}; {REMEDY}")
    return path


def find_needed(path: str) -> str | None:
    """Return what the run needs at, above or below a normalized path; None if a folder may be mounted there.

    Example:
        >>> find_needed("/usr/lib/python3")
        "the system's libraries in /usr/lib"
        >>> find_needed("/root")
        'this package in /root/skyrl_modal'
    """
    for folder, content in _RESERVED_FOLDERS.items():
        if is_below(folder, path):
            return f"{content} in {folder}"
    for folder, content in _RESERVED_TREES.items():
        if is_below(path, folder) or is_below(folder, path):
            return f"{content} in {folder}"
    return None


def find_nested(paths: Collection[str]) -> tuple[str, str] | None:
    """Return one of several normalized paths and another one that contains it; None if none contains another.

    Example:
        >>> find_nested(["/a/b", "/c", "/a"])
        ('/a/b', '/a')
    """
    return next(((path, other) for path in paths for other in paths if path != other and is_below(path, other)), None)
