"""Environment variables of the command and of Ray's processes."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from skyrl_modal.machine import RayInstallation, append_to_path, complete_path, visible_gpu_count
from skyrl_modal.protocol.job import Job, RayOptions
from skyrl_modal.protocol.rank_config import ClusterTokens, RankConfig
from skyrl_modal.protocol.tracker_variables import tracker_variables, wandb_variables

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    import socket
    from pathlib import Path

#: Defaults for workers that start with `uv run`, as SkyRL's do. docs/uv.md has the reasons and their sources.
UV_DEFAULTS = {
    # The first environment of a node may take longer than the 60 s after which Ray ends the worker and starts another.
    "RAY_worker_register_timeout_seconds": "600",
    "UV_LOCK_TIMEOUT": "600",
    # uv searches for the project beside the script, and the worker's script is part of Ray.
    "UV_PROJECT": ".",
}
#: Programs of SkyRL's images, such as uv. They are installed for the user ray, while a container on Modal runs as root.
IMAGE_PROGRAMS = "/home/ray/.local/bin"
#: The folder with the hook that each Python process of the run loads: see ``skyrl_modal/formats/hook/``.
HOOK_FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "formats", "hook")
#: The variable with the path of the file to which Python processes append their stacks (``container.stacks``).
STACKS_VARIABLE = "SKYRL_MODAL_STACKS"
#: The variable with the names of the secrets, whose values the hook masks in rollouts.
SECRETS_VARIABLE = "SKYRL_MODAL_SECRETS"
#: Ray's settings of token authentication, of Ray 2.52 and later.
_RAY_AUTH_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def run_environment(job: Job, config: RankConfig) -> dict[str, str]:
    """Return the environment of the command and of Ray's processes: this process's own, and the variables of the run.

    RAY_ADDRESS, MASTER_ADDR, MASTER_PORT and Ray's token are not included, since they depend on the cluster.
    """
    env = {**os.environ, **job.env, **config.env}
    declared = {*job.env, *job.secret_names}
    path = env.get("PATH", os.defpath)
    if "PATH" in declared:
        path = complete_path(path, base=os.environ.get("PATH"), needs_ray=job.ray is not None)
    env["PATH"] = append_to_path(path, [IMAGE_PROGRAMS]) if config.has_modal_runtime else path
    if config.has_modal_runtime and "PYTHONPATH" not in job.env and "PYTHONPATH" in env:
        kept = remove_runtime_folders(env.pop("PYTHONPATH"))
        env |= {"PYTHONPATH": kept} if kept else {}
    env["PYTHONPATH"] = with_hook(env.get("PYTHONPATH"))
    gpus = gpus_per_node(job, config)
    env.update(
        SKYRL_MODAL_RUN_FOLDER=job.run_folder,
        # Attempts with the same number are ordered by it: one that a preemption interrupts is started again.
        SKYRL_MODAL_STARTED_AT=f"{time.time():.3f}",
        SKYRL_RUN_ID=job.run_id,
        NUM_NODES=str(job.nodes),
        NUM_GPUS=str(visible_gpu_count(env) if gpus is None else gpus),
        NODE_RANK=str(config.rank),
        PYTHONUNBUFFERED="1",
    )
    for name, root in (("SKYRL_REPO_ROOT", job.repo_root), ("SKYRL_DATA", job.data_root)):
        if root is not None:
            env[name] = root
        elif name not in declared:
            env.pop(name, None)
    env.pop(SECRETS_VARIABLE, None)  # that of a run in which this one was started
    if job.secret_names:
        env[SECRETS_VARIABLE] = ",".join(job.secret_names)
    if job.limits.stall is not None:
        env[STACKS_VARIABLE] = stacks_path(job, config)
    if job.ray is not None:
        env.pop("RAY_ADDRESS", None)  # the address of a Ray of the caller, which the run must not use
    return {**_tracker_defaults(job, env), **env}


def _tracker_defaults(job: Job, env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of trackers. Each applies unless it is defined; those of W&B's run belong together."""
    defaults = {} if job.run_folder_volume is None else tracker_variables(job.run_folder)
    if job.continues_wandb_run and "WANDB_RUN_ID" not in env:
        defaults |= wandb_variables(job.run_id)
    return defaults


def with_hook(python_path: str | None) -> str:
    """Return a PYTHONPATH that begins with the folder of the hook.

    An empty value has no entries, while an empty entry beside others would be the current folder.

    Example:
        >>> with_hook("/opt/mine") == f"{HOOK_FOLDER}:/opt/mine"
        True
        >>> with_hook("") == HOOK_FOLDER
        True
    """
    entries = python_path.split(os.pathsep) if python_path else []
    return os.pathsep.join([HOOK_FOLDER, *(entry for entry in entries if entry != HOOK_FOLDER)])


def stacks_path(job: Job, config: RankConfig) -> str:
    """Return the path of the file to which the Python processes of a rank append their stacks."""
    name = f".tmp-skyrl-modal-{job.run_id}-{config.rank}.stacks"  # not listed as a file that the run has lost
    return os.path.join(os.environ.get("TMPDIR", "/tmp"), name)


def claim_master_port(config: RankConfig) -> tuple[int, socket.socket | None]:
    """Return the port for MASTER_PORT, and the claim to close at the end; None if there is nothing to close."""
    if config.master_port is not None:
        return config.master_port, None
    from skyrl_modal.ports import MASTER_PORT, claim_port  # imported here, since the import of socket takes time

    return claim_port(MASTER_PORT)


def replaced_variables(job: Job, env: Mapping[str, str]) -> list[str]:
    """Return the names of variables that this process has with other values than the run, sorted.

    A variable that the caller declares is not among them, since it is refused if the run sets it. An image may set one,
    and a secret that Modal stores may contain one.

    Args:
        job: The run.
        env: The result of ``run_environment``.
    """
    names = {"SKYRL_RUN_ID", "SKYRL_ATTEMPT", "NUM_NODES", "NUM_GPUS", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"}
    names |= {"SKYRL_MODAL_RUN_FOLDER", "SKYRL_MODAL_STARTED_AT"}
    names |= {"SKYRL_DATA", "SKYRL_REPO_ROOT"} - {"SKYRL_REPO_ROOT" if job.repo_root is None else ""}
    if job.ray is not None:
        names |= {"RAY_ADDRESS", *_RAY_AUTH_VARIABLES}
    return sorted(name for name in names & os.environ.keys() if os.environ[name] != env.get(name))


def remove_runtime_folders(python_path: str) -> str:
    """Return a PYTHONPATH without the folders of Modal's runtime, which would hide packages of the image.

    The variables that Modal documents (MODAL_TASK_ID and others) are inherited: the command may use Modal itself.
    The runtime's own value is ``/root:/pkg``, and its packages are in ``/pkg`` and ``/__modal`` (recorded by users of
    Modal in 2025 and 2026). ``/root`` is removed only together with them, since an image may also name it.

    Example:
        >>> remove_runtime_folders("/root:/pkg:/opt/mine")
        '/opt/mine'
    """
    entries = python_path.split(os.pathsep)
    others = [entry for entry in entries if not f"{entry}/".startswith(("/pkg/", "/__modal/"))]
    if len(others) < len(entries) and "/root" in others:
        others.remove("/root")
    return os.pathsep.join(others)


def secret_values(job: Job, config: RankConfig, env: Mapping[str, str]) -> list[str]:
    """Return the values that must not be in anything that is kept or shown: those of the secrets, and the run's tokens.

    Args:
        job: The run.
        config: This rank.
        env: The command's environment.
    """
    names = (*job.secret_names, "RAY_AUTH_TOKEN")
    # Without Ray, and on one node, the tokens are used nowhere, and searching for them would only take time.
    tokens = [config.tokens.ranks] if config.nodes > 1 else []
    tokens += [] if job.ray is None else [config.tokens.ray]
    return [*(env[name] for name in names if name in env), *tokens]


def gpus_per_node(job: Job, config: RankConfig) -> int | None:
    """Return the number of GPUs of a node: as requested, else as counted there; None if neither is known."""
    return config.gpus if job.gpus_per_node is None else job.gpus_per_node


def ray_environment(env: Mapping[str, str], options: RayOptions, config: RankConfig) -> dict[str, str]:
    """Return the environment of Ray's processes: the command's, RaySpec's, and defaults for workers that use uv.

    No variable that the command's environment contains is replaced by a default.
    """
    offline = {"UV_OFFLINE": "1"} if config.has_no_internet else {}
    python_path = with_hook(options.env.get("PYTHONPATH", env.get("PYTHONPATH")))
    own = {**options.env, "PYTHONPATH": python_path}
    return {**UV_DEFAULTS, **offline, **_spill_folder(config), **env, **own}


def ray_session_folder(config: RankConfig) -> Path:
    """Return Ray's temporary folder on this rank."""
    from pathlib import Path  # imported here: a run without Ray does not need it

    return Path(config.ray_folder or Path(os.environ.get("TMPDIR", "/tmp")) / "ray")


def _spill_folder(config: RankConfig) -> dict[str, str]:
    """Return where Ray writes objects for which there is no memory, if it is not in Ray's temporary folder.

    A temporary folder that was chosen for its sockets can be in memory. A link leads to the run's folder anyway.
    """
    if config.ray_folder is None or os.path.islink(config.ray_folder):
        return {}
    return {"RAY_object_spilling_directory": os.path.join(os.environ.get("TMPDIR", "/tmp"), "ray-objects")}


def with_ray_token(env: Mapping[str, str], ray: RayInstallation, tokens: ClusterTokens) -> dict[str, str]:
    """Return an environment with the run's own Ray token, for head, ranks, probe and command.

    A token of the user's is removed: since Ray 2.59, ``ray start`` enables authentication by itself if it finds one,
    and clients without it are refused. An older Ray has no authentication, so the variables are only removed.
    """
    result = {name: value for name, value in env.items() if name not in _RAY_AUTH_VARIABLES}
    if ray.has_token_authentication and tokens.ray:
        result.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=tokens.ray)
    return result
