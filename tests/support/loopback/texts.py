"""Texts of Modal's servers, as users have recorded them in public logs and issues. Assumed ones are marked."""

from __future__ import annotations

CANCELLED = "Function call was cancelled by user or a failure."
PREEMPTED = "Runner interrupted due to worker preemption. Your Function will be restarted with the same input."
RUNNER_TERMINATED = "Runner terminated."
COMMIT_FAILED = "failed to publish commit"
OPEN_FILES = "there are open files preventing the operation"
SPEND_LIMIT = "Workspace loopback has exceeded its spend limit"
DISABLED = "workspace loopback is disabled"

CLIENT_DISCONNECTED = (
    "Stopping app - local client disconnected. Use `modal run --detach` to keep apps running even if your local "
    "client disconnects."
)
ENTRYPOINT_COMPLETED = "Stopping app - local entrypoint completed."
STOPPED_FROM_CLI = "Stopping app - user stopped from CLI."
STOPPED_FROM_DASHBOARD = "Stopping app - user stopped from dashboard."

#: Assumed: users have recorded that there are such lines, but not their texts.
IMAGE_PULL = "Loading image {image_id}."
CONTAINER_ENDED = "Container {container_id} ended."
CLUSTERS_REFUSED = "Clustered functions are in beta and not enabled for workspace loopback."


def local_exception(exception: str) -> str:
    """Return the line of an app whose local entrypoint raised an exception."""
    return f"Stopping app - uncaught exception raised locally: {exception}."


def remote_exception(exception: str) -> str:
    """Return the line of an app whose local entrypoint raised an exception of a function."""
    return f"Stopping app - uncaught exception raised in remote container: {exception}."


def waiting_for_worker(function: str, function_id: str, worker: str) -> str:
    """Return the line of a function whose containers wait for a worker, for example "GPU_L40S" or "CPU"."""
    return (
        f"Function `{function}` (`{function_id}`) is waiting to be scheduled on a {worker} worker. "
        "We are actively working on acquiring more capacity for your workload."
    )
