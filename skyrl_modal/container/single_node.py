"""The node of a run on one node without Ray. It is a module of its own, since it needs nothing of a cluster's code."""

from __future__ import annotations

from collections.abc import Mapping, Set
from types import MappingProxyType

from skyrl_modal.container.environment import claim_master_port
from skyrl_modal.container.events import Event
from skyrl_modal.container.failures import Failure, raise_if
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.rank_config import RankConfig


class SingleNode:
    """The only node of a run without Ray, with the interface of ``RayCluster``.

    Args:
        job: The run.
        config: Its only rank.
        env: The command's environment, without the variables of the cluster.

    Attributes:
        env: The command's environment.
        url: None: there is no dashboard.
        is_started: True: the command can start.
        ray_exit: None: there is no Ray that could exit.
        children: No processes: none was started here.
        processes: No processes of Ray.
        disconnected_ranks: No ranks: there are no others.
        steps: No steps of other ranks.
    """

    url: str | None = None
    is_started: bool = True
    ray_exit: Failure | None = None
    children: Set[int] = frozenset()
    processes: Set[int] = frozenset()
    disconnected_ranks: Set[int] = frozenset()
    steps: Mapping[int, tuple[int, float]] = MappingProxyType({})

    def __init__(self, job: Job, config: RankConfig, env: dict[str, str]) -> None:
        self._job = job
        self._config = config
        port, self._port_claim = claim_master_port(config)
        self.env = {**env, "MASTER_ADDR": config.addresses[0], "MASTER_PORT": str(port)}

    def start(self, attempt: int) -> None:
        """Return: there is nothing to wait for."""

    def check_gpus(self) -> None:
        """Raise StartError if this container has fewer GPUs than requested."""
        if self._config.has_modal_runtime:
            from skyrl_modal.container.cluster_readiness import missing_gpus  # imported here: not used locally

            raise_if(missing_gpus(self._job, self._config))

    def is_outdated(self, event: Event) -> bool:
        """Return False: there is no Ray that was stopped before."""
        return False

    def failure_of(self, event: Event) -> Failure | None:
        """Return None: no event of a cluster arrives."""

    def read_stacks(self) -> dict[int, str]:
        """Return no stacks: there are no other ranks."""
        return {}

    def end_attempt(self) -> None:
        """Return: there is nothing that the next attempt cannot use."""

    def end(self, *, is_failed: bool) -> None:
        """Release the port of the run."""
        if self._port_claim is not None:
            self._port_claim.close()
