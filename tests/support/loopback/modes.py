"""Modes: how the control plane behaves where records of Modal's servers differ, or describe a rare event.

Users of Modal have recorded how its servers behave (docs/modal-assumptions.md lists every statement). What several of
them have seen, or what Modal documents, is the default. Everything else is a field of `Mode`. Times are in seconds, and
shorter than Modal's, so that tests end soon: a minute on Modal is about two seconds here.

A mode is an argument of `LoopbackModal`, or the name of a member of `MODES` in the variable SKYRL_MODAL_LOOPBACK_MODE,
which `pytest --loopback-mode NAME` sets.
"""

from __future__ import annotations

import os

import attrs

VARIABLE = "SKYRL_MODAL_LOOPBACK_MODE"
#: Seconds of the loopback for one second on Modal, in the modes below. 30 s of grace become 1 s: enough for Python.
SCALE = 1 / 30


@attrs.frozen(kw_only=True)
class Mode:
    """The behaviour of Modal's servers.

    Attributes:
        replacement_delay: Seconds between a preemption's signal and the creation of the new container. The old one may
            still run then. None: the new container is created when the old one has exited.
        platform_grace: Seconds between SIGINT and SIGKILL at a preemption or a stop of the app. None: as the arguments
            of `LoopbackModal` define.
        read_only_mounts: Whether mounted files cannot be changed.
        skip_reload: Whether the reply to a commit lets the client skip its reload, which fails if a file is open.
        reload_pause: Seconds for which a volume looks empty while it is reloaded.
        pidfd_open: Whether the kernel of containers has the system call; else it fails with ENOSYS.
        home: HOME of containers: Modal runs as root, but the images of SkyRL define /home/ray.
        runtime_paths: What puts the runtime's dependencies on sys.path: "PYTHONPATH" or "sitecustomize".
        detached_remote_continues: Whether the blocking call of a detached app continues after its client disconnected.
        commits_fail_once: Whether each commit fails once and succeeds when it is repeated a second later.
        commit_seconds: Duration of a commit.
        capacity_wait: Seconds that each container waits for a worker.
        cluster_restarts: Whether a cluster is started again if a container died, also without a retry policy.
        clusters_allowed: Whether the workspace may use clusters.
        driver_failures: For each function, the number of its first containers whose GPU driver does not initialize.
        volume_links: Whether the mount path of a volume is a symbolic link to /__modal/volumes/ID.
        log_retention: Seconds after which a log that is replayed from its beginning lacks an entry; None: never.
        rates: What the request for the workspace's rates gets: "named" (recorded names), "odd" (other names),
            "refused", or "silent" (no reply).
        spend_limit: "exceeded" refuses new work; "disabled" refuses nearly everything; empty: no limit.
    """

    replacement_delay: float | None = None
    platform_grace: float | None = None
    read_only_mounts: bool = False
    skip_reload: bool = True
    reload_pause: float = 0.0
    pidfd_open: bool = True
    home: str = "/root"
    runtime_paths: str = attrs.field(
        default="PYTHONPATH", validator=attrs.validators.in_(("PYTHONPATH", "sitecustomize"))
    )
    detached_remote_continues: bool = False
    commits_fail_once: bool = False
    commit_seconds: float = 0.0
    capacity_wait: float = 0.0
    cluster_restarts: bool = False
    clusters_allowed: bool = True
    driver_failures: int = 0
    volume_links: bool = True
    log_retention: float | None = None
    rates: str = attrs.field(default="named", validator=attrs.validators.in_(("named", "odd", "refused", "silent")))
    spend_limit: str = attrs.field(default="", validator=attrs.validators.in_(("", "exceeded", "disabled")))

    @classmethod
    def named(cls, name: str) -> Mode:
        """Return a member of `MODES`.

        Raises:
            ValueError: There is no mode of this name.
        """
        if name not in MODES:
            raise ValueError(f"there is no mode {name!r}; the modes are {', '.join(MODES)}")
        return MODES[name]

    @classmethod
    def from_environment(cls) -> Mode:
        """Return the mode that the environment names, else the default."""
        return cls.named(os.environ.get(VARIABLE) or "recorded")


MODES = {
    "recorded": Mode(),
    "overlap": Mode(replacement_delay=0.8),
    "late_replacement": Mode(replacement_delay=96 * SCALE),
    "short_grace": Mode(platform_grace=3.0),
    "read_only_mounts": Mode(read_only_mounts=True),
    "reload_after_commit": Mode(skip_reload=False, reload_pause=0.2),
    "no_pidfd": Mode(pidfd_open=False),
    "home_ray": Mode(home="/home/ray"),
    "sitecustomize": Mode(runtime_paths="sitecustomize"),
    "detached_continues": Mode(detached_remote_continues=True),
    "commits_fail_once": Mode(commits_fail_once=True),
    "slow_commits": Mode(commit_seconds=1.0),
    "capacity_wait": Mode(capacity_wait=3.0),
    "cluster_restarts": Mode(cluster_restarts=True),
    "driver_fails_once": Mode(driver_failures=1),
    "direct_volumes": Mode(volume_links=False),
    "short_retention": Mode(log_retention=60 * SCALE),
    # Modes in which no run can succeed. They are for tests of the errors.
    "spend_limit": Mode(spend_limit="exceeded"),
    "disabled": Mode(spend_limit="disabled"),
    "no_clusters": Mode(clusters_allowed=False),
}
#: The modes in which the contract suite has to pass.
SUITE_MODES = tuple(name for name in MODES if name not in ("spend_limit", "disabled", "no_clusters"))
