"""What a container has in addition to the image: the folders of Modal's runtime, and uv as in the images of SkyRL."""

from __future__ import annotations

from pathlib import Path

RAY_HOME = "/home/ray"
#: The folders of the runtime's dependencies, each with a module that the command should not be able to import.
FOLDERS = ("/pkg", "/__modal/deps")
MODULE = "modal_runtime_dependency"
SITE = "/__modal/site"
SITECUSTOMIZE = f"import sys\nsys.path[:0] = {list(FOLDERS)!r}\n"
#: The variable, by `Mode.runtime_paths`.
PYTHONPATH = {"PYTHONPATH": "/root:/pkg", "sitecustomize": f"{SITE}:/root"}
#: Output of nvidia-smi if the driver is not initialized. Its exit code is 9.
DRIVER_FAILURE = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest "
    "NVIDIA driver is installed and running."
)


def stage(folder: Path, root: Path, python: Path) -> None:
    """Create the folders. `folder` has the container's files, `root` the files of its root folder."""
    for number, _ in enumerate(FOLDERS):
        (folder / f"runtime-{number}").mkdir()
        (folder / f"runtime-{number}" / f"{MODULE}.py").touch()
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(SITECUSTOMIZE)
    programs = root / RAY_HOME.strip("/") / ".local" / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    uv = python.parent / "uv"
    if uv.exists():
        (programs / "uv").symlink_to(uv)


def binds(folder: Path) -> list[str]:
    """Return bubblewrap's options that make the folders visible."""
    arguments = ["--ro-bind", str(folder / "site"), SITE]
    for number, path in enumerate(FOLDERS):
        arguments += ["--ro-bind", str(folder / f"runtime-{number}"), path]
    return arguments
