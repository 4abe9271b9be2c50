"""Modal's limits: running time of a function, and size of a cluster."""

from __future__ import annotations

import math

from skyrl_modal.errors import SpecError
from skyrl_modal.protocol.job import Job
from skyrl_modal.spec.run_spec import RunSpec

#: Longest time for which Modal runs a function (https://modal.com/docs/guide/timeouts).
MAX_FUNCTION_SECONDS = 24 * 3600
#: Time beyond the attempts until Modal stops the container: for the start of Ray, saving and committing.
CONTAINER_MARGIN_SECONDS = 300
#: GPUs of a whole host, by type. Modal accepts clusters of these types with whole hosts only
#: (https://modal.com/docs/guide/multi-node-clusters).
GPUS_PER_HOST = {"H100": 8, "H100!": 8, "H200": 8, "B200": 8, "B200+": 8}
#: Nodes of Modal's largest cluster (https://modal.com/docs/guide/multi-node-clusters).
MAX_CLUSTER_NODES = 32


def requested_seconds(job: Job) -> float:
    """Return how long a container may need: all attempts with their grace periods, and the margin.

    The number of attempts of a run with ``resume`` has no limit, as long as each of them reaches a new step.

    Example:
        >>> from skyrl_modal.protocol.job import Limits
        >>> limits = Limits(attempt_timeout=3600, grace=6, retries=1)
        >>> job = Job(run_id="r", command="true", workdir="/", run_folder="/r", created_at="", limits=limits)
        >>> requested_seconds(job)
        7512.0
    """
    limits = job.limits
    if job.resume is not None:
        return math.inf
    return float((limits.attempt_timeout + limits.grace) * (limits.retries + 1) + CONTAINER_MARGIN_SECONDS)


def container_timeout(job: Job) -> float:
    """Return the timeout in seconds that is registered with Modal."""
    return min(float(MAX_FUNCTION_SECONDS), requested_seconds(job))


def total_time_limit(job: Job) -> float | None:
    """Return the seconds after which the supervisor ends the run, so that it still can save before Modal stops it.

    Returns:
        None if all attempts together end before Modal's limit.
    """
    if requested_seconds(job) <= MAX_FUNCTION_SECONDS:
        return None
    return MAX_FUNCTION_SECONDS - CONTAINER_MARGIN_SECONDS - job.limits.grace


def check_timeout(timeout: float) -> None:
    """Check the timeout of one attempt.

    Raises:
        SpecError: It is longer than Modal's limit.
    """
    if timeout > MAX_FUNCTION_SECONDS:
        remedy = "Modal stops a function after 24 h. Let the command save its state, and start another run to continue"
        raise SpecError("timeout", timeout, remedy)


def check_cluster(spec: RunSpec) -> list[str]:
    """Check the GPUs and the number of nodes of a cluster.

    Returns:
        Warnings about GPU types for which it is not known how many GPUs each node of a cluster must have.

    Raises:
        SpecError: Modal has no such clusters.
    """
    if not spec.gpu_requests:
        remedy = (
            "Modal's clusters consist of containers that use all GPUs of their hosts. Request for example H100:8, or "
            "use the backend local, where nodes may have no GPU"
        )
        raise SpecError("gpu", None, remedy)
    warnings = []
    for request in spec.gpu_requests:
        required = GPUS_PER_HOST.get(request.name)
        if required is None:
            warnings.append(
                f"it is not known how many GPUs of type {request.name} each node of a cluster must have on Modal, so "
                f"that Modal may refuse {request} with nodes={spec.nodes}"
            )
        elif request.count != required:
            remedy = (
                f"with {spec.nodes} nodes, each one uses all GPUs of its host. Request {request.name}:{required}, or "
                "one node"
            )
            raise SpecError("gpu", str(request), remedy)
    if spec.nodes > MAX_CLUSTER_NODES:
        raise SpecError("nodes", spec.nodes, f"Modal's clusters have up to {MAX_CLUSTER_NODES} nodes")
    return warnings
