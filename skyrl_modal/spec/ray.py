"""The Ray cluster of a run."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from skyrl_modal.declaration import Attribute, field, frozen
from skyrl_modal.errors import SpecError
from skyrl_modal.spec.duration import parse_duration
from skyrl_modal.spec.fields import at_least, check_flag, to_env
from skyrl_modal.spec.option import option
from skyrl_modal.spec.shown import Shown

#: Ports that Ray assigns to its workers by default and refuses for other uses (``ray start --help``).
RAY_WORKER_PORTS = range(10002, 20000)


def _to_start_timeout(value: float | str | timedelta) -> float:
    return parse_duration(value, name="start_timeout")


@frozen(kw_only=True)
class RaySpec(Shown):
    """The Ray cluster that runs when the command starts.

    Attributes:
        port: The head's port. If it is in use, a free port is used.
        dashboard: Whether to start Ray's dashboard, at ``Run.url``. The start then takes about three times as long. It
            requires ``ray[default]`` where Ray runs, and Ray 2.52 or later.
        num_cpus: CPUs that Ray may assign on each node; None for all (which several nodes on one machine share).
        object_store_memory: Size of the object store on each node in bytes, at least 75 MiB; None for Ray's default.
        start_timeout: Limit until every node has joined and Ray is ready: seconds, a ``timedelta``, or text such as
            ``"2m"``.
        env: Environment variables of Ray's own processes on every node.
        on_worker_loss: What to do if a node other than the first is lost. ``"fail"`` ends the command and the attempt.
            ``"wait"`` restarts the node and lets the command continue, for commands that tolerate the loss.

    Example:
        >>> RaySpec(start_timeout="2m").start_timeout
        120.0
    """

    port: int = field(default=6379, metadata=option("Port of Ray's head.", "whole", flag=None))
    dashboard: bool = field(
        default=False,
        validator=check_flag,
        metadata=option("Also start Ray's dashboard.", "flag", flag="--dashboard"),
    )
    num_cpus: int | None = field(
        default=None,
        validator=at_least(1, is_whole=True),
        metadata=option("CPUs that Ray may assign on each node.", "whole", flag=None, default="all"),
    )
    object_store_memory: int | None = field(
        default=None,
        validator=at_least(75 * 1024 * 1024, is_whole=True),
        metadata=option(
            "Size of Ray's object store on each node in bytes.", "whole", flag=None, default="Ray's own default"
        ),
    )
    start_timeout: float = field(
        default=120.0,
        converter=_to_start_timeout,
        metadata=option("Limit until every node has joined and Ray is ready.", "duration", flag=None),
    )
    env: Mapping[str, str] = field(
        factory=dict,
        converter=to_env,
        metadata=option("Variables of Ray's own processes.", "variables", flag=None, default="none"),
    )
    on_worker_loss: str = field(
        default="fail",
        metadata=option(
            "Whether a run fails if a node other than the first is lost, or waits until it has been restarted.",
            "choice",
            flag=None,
            choices=("fail", "wait"),
        ),
    )

    @on_worker_loss.validator
    def _check_on_worker_loss(self, attribute: Attribute[str], value: object) -> None:
        if value not in ("fail", "wait"):
            raise SpecError("on_worker_loss", value, 'pass "fail" or "wait"')

    @port.validator
    def _check_port(self, attribute: Attribute[int], value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not 1024 <= value <= 65535:
            raise SpecError("port", value, "pass a port from 1024 to 65535")
        if value in RAY_WORKER_PORTS:
            raise SpecError("port", value, "Ray uses 10002 to 19999 for its workers; pass a port outside of this range")
