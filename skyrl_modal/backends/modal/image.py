"""The container's image on Modal."""

from __future__ import annotations

import shlex
import tomllib
from pathlib import Path, PurePosixPath

import modal

from skyrl_modal.errors import SpecError
from skyrl_modal.gitfiles.files import read_regular_file
from skyrl_modal.mount import select
from skyrl_modal.spec.copied_files import check_copied_files
from skyrl_modal.spec.image import ImageSpec
from skyrl_modal.spec.image_steps import (
    AptInstall,
    CopyFiles,
    ImageStep,
    PipInstall,
    RunCommands,
    SetEnv,
    SetWorkdir,
    UvSync,
)
from skyrl_modal.toml_tables import items, table

#: ``SKYRL_REPO_ROOT`` in the image of a run without a checkout: where SkyRL's own scripts expect it.
DEFAULT_REPO_ROOT = "/root/SkyRL"
#: The library that Modal's fast network requires (https://modal.com/docs/guide/multi-node-clusters). SkyRL's images do
#: not contain it.
RDMA_PACKAGE = "libibverbs1"
#: The virtual environment of ``UvSync``. It is outside of the checkout, whose folder is replaced when the run starts.
UV_ENVIRONMENT = "/opt/skyrl-venv"
_PACKAGE = "skyrl_modal"
#: What the container imports of this package: the import contract "inside the container".
_CONTAINER_PARTS = frozenset(
    {"__init__.py", "container", "dataclass.py", "event_queue.py", "formats", "machine.py", "ports.py", "protocol"}
)
#: Size of a pyproject.toml.
_MAX_PYPROJECT_BYTES = 4 << 20


def build_image(
    base: str,
    spec: ImageSpec,
    repo_root: str | None,
    registry: modal.Secret | None = None,
    *,
    checkout: Path | None = None,
    rdma: bool = False,
) -> modal.Image:
    """Return the definition of an image without its mounts, which are added last: a changed file rebuilds no layer.

    Args:
        base: The base image.
        spec: The layers on it.
        repo_root: Path of the checkout in the container; None for no checkout.
        registry: Credentials of the base image's registry; None for a public image.
        checkout: The folder with the selected files of the checkout, for steps that copy from it; None for no checkout.
        rdma: Whether the run uses Modal's fast network.

    Raises:
        SpecError: A file that a step copies does not exist.
    """
    image = modal.Image.from_registry(base, secret=registry, add_python=spec.python)
    # One layer, since each is a request in each run. The layer of the base is the one that other apps of the user have.
    root = shlex.quote(repo_root or DEFAULT_REPO_ROOT)
    image = image.dockerfile_commands("ENTRYPOINT []", f"ENV SKYRL_REPO_ROOT={root}")
    apt = [*spec.apt, RDMA_PACKAGE] if rdma and RDMA_PACKAGE not in spec.apt else spec.apt
    if apt:
        image = image.apt_install(*apt)
    if spec.pip:
        image = image.pip_install(*spec.pip)
    if spec.commands:
        image = image.run_commands(*spec.commands)
    for step in spec.steps:
        image = _add_step(image, step, repo_root or DEFAULT_REPO_ROOT, checkout)
    return image.env(dict(spec.env)) if spec.env else image


def add_container_code(image: modal.Image) -> modal.Image:
    """Return the image with the modules of this package that the container imports, instead of all of them.

    Modal's client reads and asks for each file of a package in each run.
    """
    return image.add_local_python_source(_PACKAGE, ignore=_is_not_for_container)


def _is_not_for_container(path: Path) -> bool:
    parts = path.parts
    if path.is_absolute():
        parts = path.relative_to(Path(__file__).resolve().parents[2]).parts
    return path.suffix != ".py" or parts[0] not in _CONTAINER_PARTS


def _add_step(image: modal.Image, step: ImageStep, repo_root: str, checkout: Path | None) -> modal.Image:
    check_copied_files(step, None if checkout is None else lambda path: (checkout / path).exists())
    match step:
        case AptInstall(packages):
            return image.apt_install(*packages)
        case PipInstall(packages, gpu=gpu):
            return image.pip_install(*packages, gpu=gpu)
        case RunCommands(commands, gpu=gpu):
            return image.run_commands(*commands, gpu=gpu)
        case SetEnv(env):
            return image.env(dict(env))
        case SetWorkdir(path):
            return image.workdir(path)
        case CopyFiles(source, target):
            return _copy_files(image, source, target, checkout)
        case UvSync():
            return _sync_environment(image, step, repo_root, checkout)


def _copy_files(image: modal.Image, source: str, target: str, checkout: Path | None) -> modal.Image:
    path = Path(source).expanduser()
    if not path.is_absolute() and checkout is not None:
        path = checkout / source
    if path.is_file():
        return image.add_local_file(path, target, copy=True)
    if checkout is not None and (path == checkout or checkout in path.parents):
        return image.add_local_dir(path, target, copy=True)  # only selected files are here
    selected = {PurePosixPath(name) for name in select(path).files}
    return image.add_local_dir(path, target, copy=True, ignore=lambda name: PurePosixPath(name) not in selected)


def _sync_environment(image: modal.Image, step: UvSync, repo_root: str, checkout: Path | None) -> modal.Image:
    """Install what uv.lock pins. The local packages have their final paths, since the environment refers to them."""
    packages = [] if checkout is None else _local_packages(checkout, step)
    names = ["pyproject.toml", "uv.lock", *packages]
    for name in names:
        image = _copy_files(image, name, f"{repo_root}/{name}", checkout)
    options = [f"--extra={extra}" for extra in step.extras] + [f"--group={group}" for group in step.groups]
    sync = shlex.join(["uv", "sync", "--frozen", "--no-install-project", *options])
    variables = {"UV_PROJECT_ENVIRONMENT": UV_ENVIRONMENT, "UV_LINK_MODE": "copy"}
    return image.env(variables).run_commands(
        "command -v uv || python -m pip install uv", f"cd {shlex.quote(repo_root)} && {sync}", gpu=step.gpu
    )


def _local_packages(checkout: Path, step: UvSync) -> list[str]:
    """Return the folders of the checkout that its pyproject.toml names as sources of packages."""
    try:
        data = tomllib.loads(read_regular_file(checkout / "pyproject.toml", max_bytes=_MAX_PYPROJECT_BYTES).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise SpecError("steps", step, f"the checkout's pyproject.toml cannot be read: {error}") from error
    uv = table(table(data, "tool"), "uv")
    sources = [item for entry in table(uv, "sources").values() for item in items(entry, entry)]
    paths = [item["path"] for item in sources if isinstance(item, dict) and isinstance(item.get("path"), str)]
    members = items(table(uv, "workspace").get("members"))
    for pattern in members:
        if isinstance(pattern, str) and not PurePosixPath(pattern).is_absolute():
            paths += [str(path.relative_to(checkout)) for path in sorted(checkout.glob(pattern)) if path.is_dir()]
    normal = [PurePosixPath(path) for path in paths]
    inside = [str(path) for path in normal if not path.is_absolute() and ".." not in path.parts]
    return [name for name in dict.fromkeys(inside) if (checkout / name).exists()]
