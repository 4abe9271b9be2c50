"""What is missing until the command may start. Pure functions on the state of the cluster."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from skyrl_modal.container.events import ClusterNode, ClusterNodes
from skyrl_modal.container.failures import Failure
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.messages import Hello
from skyrl_modal.protocol.rank_config import RankConfig, node_name
from skyrl_modal.protocol.state import FailureCause

#: Seconds in which the other ranks have to join a run without Ray, which has no ``start_timeout``.
JOIN_TIMEOUT = 120.0


def start_timeout(job: Job) -> float:
    """Return the seconds in which all ranks have to join and Ray has to be ready."""
    return JOIN_TIMEOUT if job.ray is None else job.ray.start_timeout


def missing_gpus(job: Job, config: RankConfig, hellos: Iterable[Hello] = ()) -> Failure | None:
    """Return the failure of a node with fewer GPUs than requested, before its Ray or the command is started.

    Args:
        job: The run.
        config: Rank 0 of the cluster.
        hellos: What the other ranks have sent.
    """
    requested = job.gpus_per_node
    if not requested or (job.ray is None and not config.has_modal_runtime):
        return None  # on this machine, only Ray needs the requested number
    ranks = [(config.rank, config.gpus, config.gpu_problem)]
    ranks += [(hello.rank, hello.gpus, hello.gpu_problem) for hello in hellos]
    too_few = [item for item in ranks if item[1] is not None and item[1] < requested]
    if not too_few:
        return None
    rank, counted, problem = min(too_few)
    reason = f" ({problem})" if problem else ""
    return Failure(
        FailureCause.GPUS_MISSING,
        f"{config.rank_label(rank)} has {counted} of the {requested} requested GPUs{reason}",
        rank=rank,
        is_of_machine=config.has_modal_runtime,
    )


def missing_resources(job: Job, config: RankConfig, nodes: Sequence[ClusterNode]) -> dict[int, str]:
    """Return what Ray's nodes lack compared with the request, by rank. Empty if nothing is missing.

    Args:
        job: The run. Without Ray, nothing is missing.
        config: The cluster.
        nodes: The nodes that Ray reports.
    """
    if job.ray is None:
        return {}
    requested = {"GPU": job.gpus_per_node, "CPU": job.ray.num_cpus}
    reported = {node.name: node.resources for node in nodes}
    missing = {}
    for rank in range(config.nodes):
        resources = reported.get(node_name(rank))
        if resources is None:
            missing[rank] = "its Ray node is not up"
            continue
        too_few = [
            f"{resources.get(name, 0):g} of {amount:g} {name}s"
            for name, amount in requested.items()
            if amount and resources.get(name, 0) < amount
        ]
        if too_few:
            missing[rank] = f"its Ray node has {' and '.join(too_few)}"
    return missing


def not_connected_ranks(config: RankConfig, connected: Collection[int]) -> set[int]:
    """Return the ranks other than 0 that are not connected to rank 0."""
    return set(range(1, config.nodes)) - set(connected)


def incomplete_cluster(job: Job, config: RankConfig, nodes: Sequence[ClusterNode]) -> Failure | None:
    """Return the failure of a cluster with all of its nodes that lacks requested resources; None if it may be ready."""
    missing = missing_resources(job, config, nodes)
    if not missing or len(nodes) < config.nodes:
        return None
    return Failure(
        FailureCause.GPUS_MISSING,
        f"the cluster has fewer resources than requested: {_describe(config, missing)}",
        rank=min(missing),
    )


def start_timeout_exceeded(
    job: Job, config: RankConfig, *, connected: Collection[int], nodes: Sequence[ClusterNode], log_tail: str
) -> Failure:
    """Return the failure of a cluster that was not ready in time.

    Args:
        job: The run.
        config: The cluster.
        connected: The ranks that are connected to rank 0.
        nodes: The nodes that Ray reports.
        log_tail: The last lines of Ray's logs on rank 0; empty without Ray.
    """
    limit = f"within {start_timeout(job):g} s"
    if config.nodes == 1:
        return Failure(FailureCause.RAY_NOT_READY, f"Ray was not ready {limit}", log_tail)
    missing = missing_resources(job, config, nodes)
    missing.update(dict.fromkeys(not_connected_ranks(config, connected), "it has not joined"))
    cause = FailureCause.RANK_LOST if job.ray is None else FailureCause.RAY_NOT_READY
    summary = f"the cluster was not ready {limit}: {_describe(config, missing)}"
    # Usually rank 0 lacks nothing itself, and waits for the others.
    return Failure(cause, summary, log_tail, rank=max(missing, default=None))


def ready_messages(job: Job, cluster: ClusterNodes, head_address: str, seconds: float) -> list[str]:
    """Return the messages about a Ray that is ready.

    Args:
        job: The run.
        cluster: The nodes that Ray reports.
        head_address: HOST:PORT of the head.
        seconds: Duration of the start.
    """
    preferred = None if job.ray is None else job.ray.port
    in_use = "" if head_address.endswith(f":{preferred}") else f" (port {preferred} is in use)"
    messages = [f"Ray {cluster.version} at {head_address}{in_use}, ready after {seconds:.1f} s"]
    pinned = None if job.checkout is None else job.checkout.ray_version
    if pinned and pinned != cluster.version:
        messages.append(
            f"the checkout pins ray=={pinned}. A driver with that version, for example one that `uv run` starts, is "
            "refused by this Ray with `Version mismatch`. On Modal, choose the image with ImageSpec(base=...); on this "
            "machine, install that version"
        )
    if job.nodes > 1:
        for node in sorted(cluster.nodes, key=lambda node: node.name):
            amounts = ((name, node.resources.get(name)) for name in ("CPU", "GPU"))
            resources = ", ".join(f"{amount:g} {name}s" for name, amount in amounts if amount is not None)
            messages.append(f"{node.name} at {node.address}: {resources}, node id {node.id}")
    return messages


def _describe(config: RankConfig, missing: Mapping[int, str]) -> str:
    return "; ".join(f"{config.rank_label(rank)}: {what}" for rank, what in sorted(missing.items()))
