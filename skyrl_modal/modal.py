"""Building blocks for a Modal app of your own, with the names of SkyRL's script for Modal.

Most runs need no app of their own: ``Launcher`` has the exit code, the records and the ownership of a run. Use these
functions where a script defines its own functions on Modal.

Example:
    An app with one function that runs a command in the checkout::

        import modal
        from skyrl_modal.modal import create_modal_image, create_modal_volume, run_script

        app = modal.App("my_skyrl_app")
        image, volume = create_modal_image(), create_modal_volume()
        run = app.function(image=image, gpu="L4:1", volumes=volume, timeout=3600)(run_script)

        @app.local_entrypoint()
        def main(command: str = "nvidia-smi") -> None:
            run.remote(command)

The module is imported in the container too. There it needs Modal's client and the standard library only.
"""

from __future__ import annotations

import os
import posixpath
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import modal

from skyrl_modal.container.counted_text import CountedText
from skyrl_modal.container.gpus import count_gpus
from skyrl_modal.container.live_view import FunctionView, print_message
from skyrl_modal.container.stop_signals import run_with_stop_requests
from skyrl_modal.container.supervisor import Supervisor, SupervisorServices
from skyrl_modal.protocol.events import MessageEvent, StateEvent
from skyrl_modal.protocol.job import Job, Limits, RayOptions
from skyrl_modal.protocol.rank_config import ClusterTokens, RankConfig
from skyrl_modal.protocol.run_id import new_run_id

if TYPE_CHECKING:
    from skyrl_modal.snapshots.snapshot import Snapshot
    from skyrl_modal.spec.image import ImageSpec

#: Where the checkout is in the container.
REMOTE_ROOT = "/root/SkyRL"
#: Where the volume is in the container.
DATA_FOLDER = "/root/data"
#: Longest time in seconds for which Modal runs a function (https://modal.com/docs/guide/timeouts).
_MAX_FUNCTION_SECONDS = 24 * 3600.0

#: The snapshots of the images of this process. They must exist until Modal's client has read their files.
_snapshots: list[Snapshot] = []


def create_modal_image(
    spec: ImageSpec | None = None,
    *,
    checkout: str | Path | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> modal.Image:
    """Return an image with the files of the checkout at ``/root/SkyRL``.

    The files are those that git tracks or does not ignore, as they are now: later edits do not change the image.
    Symbolic links are not included, since Modal's client cannot send them (1.6).

    Args:
        spec: The base image and the layers on it; None for the published SkyRL image whose Ray the checkout pins.
        checkout: The checkout, or a folder in it; None to search it as ``Launcher`` does.
        include: Patterns of files to include although git ignores them.
        exclude: Patterns of files to leave out.

    Returns:
        The image. In a container, where it is not needed, an image without files.

    Raises:
        CheckoutNotFound: There is no checkout.
        SpecError: A pattern or a step of the image is invalid.
        SnapshotError: The files could not be copied.

    Example:
        >>> create_modal_image.__name__
        'create_modal_image'
    """
    if not modal.is_local():
        return modal.Image.debian_slim()
    # Imported here: the container has none of the dependencies of these modules.
    from skyrl_modal.backends.modal.image import build_image
    from skyrl_modal.checkout import inspect_checkout
    from skyrl_modal.checkout_search import find_checkout
    from skyrl_modal.mount import SnapshotStore, select
    from skyrl_modal.spec.image import ImageSpec
    from skyrl_modal.user_folders import cache_folder, create_user_folder
    from skyrl_modal.views.text import StderrReporter

    spec = ImageSpec() if spec is None else spec
    facts = inspect_checkout(find_checkout(checkout))
    selection = select(facts.root, include=include, exclude=exclude)
    snapshot = SnapshotStore(create_user_folder(cache_folder() / "snapshots")).take(selection)
    _snapshots.append(snapshot)
    base, warning = spec.resolved_base(facts.ray_version)
    links = sum(path.is_symlink() for path in snapshot.path.rglob("*"))
    link_warning = f"{links} symbolic links of the checkout are not included in the image" if links else None
    reporter = StderrReporter()
    for text in (*selection.warnings, *snapshot.warnings, warning, link_warning):
        if text:
            reporter.warn(text)
    registry = modal.Secret.from_name(spec.registry_secret) if spec.registry_secret else None
    image = build_image(base, spec, REMOTE_ROOT, registry, checkout=snapshot.path)
    image = image.add_local_python_source("skyrl_modal")
    return image.add_local_dir(snapshot.path, REMOTE_ROOT, ignore=lambda path: (snapshot.path / path).is_symlink())


def create_modal_volume(name: str = "skyrl-data", mount_path: str = DATA_FOLDER) -> dict[str, modal.Volume]:
    """Return a persistent volume for the parameter ``volumes`` of a function. It is created if it does not exist.

    Args:
        name: Its name on Modal.
        mount_path: Where it is in the container.

    Returns:
        The path and the volume.

    Example:
        >>> list(create_modal_volume())
        ['/root/data']
    """
    return {mount_path: modal.Volume.from_name(name, create_if_missing=True)}


def run_script(
    command: str,
    *,
    workdir: str = ".",
    ray: bool = True,
    timeout: float = _MAX_FUNCTION_SECONDS,
    grace: float = 6.0,
    env: Mapping[str, str] | None = None,
    volumes: Mapping[str, modal.Volume] | None = None,
    check: bool = True,
) -> int:
    """Run a command in the checkout, in a container on Modal.

    Decorate it with ``app.function``, or call it in a function of your own. Ray is started for the command, and all
    processes are ended after it. The output is live, and is stored in ``.skyrl_modal/runs/`` on the volume at
    ``/root/data``, if there is one. If Modal stops the function, the command is stopped with SIGINT, SIGTERM and
    SIGKILL, so that it can save its files.

    Args:
        command: A shell command.
        workdir: The folder to run it in, relative to the checkout.
        ray: Whether to start Ray.
        timeout: Seconds after which the command is stopped; the exit code is then 124.
        grace: Seconds between the first stop signal and SIGKILL.
        env: Variables for the command.
        volumes: The volumes of the function by their paths, to commit them after the command. Without it, Modal commits
            them when the function has returned.
        check: Whether to raise an exception if the exit code is not 0.

    Returns:
        The exit code of the command; 128+N if it was ended by signal N, 125 if it could not be run.

    Raises:
        subprocess.CalledProcessError: The exit code is not 0, and ``check`` is set.
        RuntimeError: It was not called in a container on Modal.
    """
    if modal.is_local():
        raise RuntimeError("run_script runs in a function on Modal: use run.remote(command), or Launcher.run")
    job = _make_job(command, workdir, ray=ray, limits=Limits(attempt_timeout=timeout, grace=grace), env=env or {})
    text = CountedText()
    services = SupervisorServices(live=FunctionView(text.write), emit=_print_message)
    supervisor = Supervisor(job, RankConfig(tokens=ClusterTokens.generate(), has_modal_runtime=True), services)
    try:
        result, stopped_by = run_with_stop_requests(supervisor.run, supervisor.request_stop)
        text.write(b"", final=True)
    finally:
        for volume in (volumes or {}).values():
            volume.commit()
    if stopped_by is not None:
        raise stopped_by
    if check and result.returncode:
        raise subprocess.CalledProcessError(result.returncode, command)
    return result.returncode


def _make_job(command: str, workdir: str, *, ray: bool, limits: Limits, env: Mapping[str, str]) -> Job:
    root = os.environ.get("SKYRL_REPO_ROOT", REMOTE_ROOT)
    data = DATA_FOLDER if os.path.isdir(DATA_FOLDER) else None
    run_id = new_run_id()
    return Job(
        run_id=run_id,
        command=command,
        workdir=posixpath.normpath(posixpath.join(root, workdir)),
        run_folder=f"{data or '/root'}/.skyrl_modal/runs/{run_id}",
        created_at=datetime.now(UTC).isoformat(),
        repo_root=root,
        data_root=data,
        env=dict(env),
        gpus_per_node=count_gpus(),
        ray=RayOptions() if ray else None,
        limits=limits,
    )


def _print_message(event: MessageEvent | StateEvent) -> None:
    if isinstance(event, MessageEvent):
        print_message(event.text, event.cause)
