"""The Ray cluster of a run."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from attrs import Attribute, field, frozen

from skyrl_modal.errors import SpecError
from skyrl_modal.spec.duration import parse_duration
from skyrl_modal.spec.fields import at_least, to_env


def _start_timeout(value: float | str | timedelta) -> float:
    return parse_duration(value, name="start_timeout")


#: Ports that Ray gives its workers by default, and refuses for anything else (ray start --help).
RAY_WORKER_PORTS = range(10002, 20000)


@frozen(kw_only=True)
class RaySpec:
    """The Ray cluster that is up when the command starts.

    Attributes:
        port: The head's port; where it is taken, a free one is used.
        dashboard: Whether Ray's dashboard runs, at ``Run.url``; it makes the start about three times as long, and needs
            ``ray[default]`` where Ray runs.
        num_cpus: CPUs that Ray may hand out on each node; None: all (which several nodes on one machine share).
        object_store_memory: Bytes of the object store on each node; None: Ray's default. At least 75 MiB.
        start_timeout: Seconds until every node must be there with Ray ready, a ``timedelta``, or text such as ``"2m"``.
        env: Variables for Ray's own processes, on every node before it starts.
        on_worker_loss: What becomes of the command where a node other than the first is lost: ``"fail"`` ends it and
            the attempt at once; ``"wait"`` lets it go on, for commands that survive it, and starts the node again.

    Example:
        >>> RaySpec(start_timeout="2m").start_timeout
        120.0
    """

    port: int = field(default=6379)
    dashboard: bool = False
    num_cpus: int | None = field(default=None, validator=at_least(1))
    object_store_memory: int | None = field(default=None, validator=at_least(75 * 1024 * 1024))
    start_timeout: float = field(default=120.0, converter=_start_timeout)
    env: Mapping[str, str] = field(factory=dict, converter=to_env)
    on_worker_loss: str = field(default="fail")

    @on_worker_loss.validator
    def _check_on_worker_loss(self, attribute: Attribute[str], value: object) -> None:
        if value not in ("fail", "wait"):
            raise SpecError("on_worker_loss", value, 'give "fail" or "wait"')

    @port.validator
    def _check_port(self, attribute: Attribute[int], value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not 1024 <= value <= 65535:
            raise SpecError("port", value, "give a port from 1024 to 65535")
        if value in RAY_WORKER_PORTS:
            raise SpecError("port", value, "Ray keeps 10002 to 19999 for its workers: give one outside of these")
