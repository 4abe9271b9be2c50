"""Rates of runs on Modal: what one node costs for an hour, by the workspace's rates or by a table of public rates.

Nothing here needs Modal's client: a plan uses the rates that an earlier run has fetched (``stored_node_rates``), else
the table. ``rate_request`` fetches them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from skyrl_modal.backends.base import GpuChoice, NodeRates
from skyrl_modal.backends.modal.rate_store import load_rates
from skyrl_modal.backends.modal.rate_table import DEFAULT_CPU, DEFAULT_MEMORY, RATE_TABLE, TABLE_DATE
from skyrl_modal.dataclass import dataclass
from skyrl_modal.spec.gpu import GpuRequest
from skyrl_modal.spec.run_spec import RunSpec

CPU, MEMORY = "CPU", "memory"
#: Types that Modal accepts, and whose rate has another name. "A100" has 40 GB. "H100" may be given an H200, and "B200+"
#: a B300, at the price of what was requested (https://modal.com/docs/guide/gpu).
_OTHER_NAMES = {"A10": "A10G", "A100": "A10040GB", "RTXPRO6000": "RTX6000"}
#: Parts of the names of rates that are no part of the resource's name.
_FILLERS = frozenset(("cost", "price", "rate", "usd", "per", "physical"))
_HOUR, _SECOND = frozenset(("hour", "hr", "h")), frozenset(("second", "sec", "s"))
_CORE, _MEMORY_PARTS, _GIB = frozenset(("core", "cores")), frozenset(("mem", "memory")), frozenset(("gib", "gb"))


@dataclass(frozen=True, slots=True)
class WorkspaceRates:
    """The rates of a workspace by Modal's names.

    Attributes:
        values: US dollars, as Modal returned them.
        fetched_at: When: seconds since the epoch.
    """

    values: Mapping[str, float]
    fetched_at: float

    @property
    def date(self) -> str:
        """The day on which they were fetched, in UTC."""
        return datetime.fromtimestamp(self.fetched_at, UTC).date().isoformat()


def stored_node_rates(spec: RunSpec) -> NodeRates:
    """Return the rate of a run by the rates that are stored on this machine, else by the table, without a request."""
    stored = load_rates()
    return node_rates(spec, None if stored is None else WorkspaceRates(*stored))


def node_rates(spec: RunSpec, workspace: WorkspaceRates | None) -> NodeRates:
    """Return what one node of a run costs.

    CPU and memory count as requested, else with Modal's minimum: what a container uses beyond that is charged too, and
    is not known before.

    Args:
        spec: The run.
        workspace: The rates of the workspace; None to use the table.
    """
    table = normalized_rates(RATE_TABLE)
    known = {} if workspace is None else normalized_rates(workspace.values)
    missing: list[str] = []

    def rate_of(resource: str, label: str) -> float | None:
        if resource in known:
            return known[resource]
        if workspace is not None and label not in missing:
            missing.append(label)
        return table.get(resource)

    cpu, memory = rate_of(CPU, "CPU cores") or 0.0, rate_of(MEMORY, "memory") or 0.0
    rest = cpu * (spec.cpu or DEFAULT_CPU) + memory * (spec.memory or DEFAULT_MEMORY) / 1024
    choices = []
    for request in spec.gpu_requests:
        gpu = rate_of(resource_of_gpu(request), request.name)
        choices.append(GpuChoice(str(request), None if gpu is None else gpu * request.count + rest))
    used = f"public rates of {TABLE_DATE}"
    if workspace is None:
        return NodeRates(tuple(choices) or (GpuChoice("", rest),), used, tuple(_notes(spec, choices)))
    source = f"your workspace's rates of {workspace.date}"
    if missing:
        source += f"; {used} for {', '.join(missing)}"
    return NodeRates(tuple(choices) or (GpuChoice("", rest),), source, tuple(_notes(spec, choices)))


def _notes(spec: RunSpec, choices: Iterable[GpuChoice]) -> Iterable[str]:
    unknown = [choice.gpu for choice in choices if choice.per_hour is None]
    if unknown:
        yield f"no rate is known for {', '.join(unknown)}"
    if spec.region is not None:
        yield "without Modal's factor for a chosen region, which is not known"


def normalized_rates(values: Mapping[str, object]) -> dict[str, float]:
    """Return rates in US dollars per hour by resource: a GPU type in capital letters and digits, ``CPU`` or ``memory``.

    The names are those that Modal has been seen to use, and similar ones. Other rates are left out: those of sandboxes
    and storage, those without a unit of time, and values that are no rates.

    Example:
        >>> normalized_rates({"gpu_hour_cost_a100_80gb": "2.50", "cpu_hour_cost": "0.0473", "mem_gib_hour_cost": 0.008})
        {'A10080GB': 2.5, 'CPU': 0.0473, 'memory': 0.008}
        >>> normalized_rates({"cpu_hour_cost_sandbox": "0.1419", "GPU (H100) per second": "0.001"})
        {'H100': 3.6}
    """
    result = {}
    for name, value in values.items():
        found = _parse_name(name)
        if found is None:
            continue
        resource, factor = found
        try:
            rate = float(str(value)) * factor
        except ValueError:
            continue
        if math.isfinite(rate) and rate >= 0:
            result[resource] = round(rate, 9)
    return result


def _parse_name(name: str) -> tuple[str, float] | None:
    """Return the resource of a rate, and the factor that makes it one for an hour; None for another rate."""
    parts = [part for part in re.split(r"[^a-z0-9]+", name.lower()) if part and part not in _FILLERS]
    units = [part for part in parts if part in _HOUR | _SECOND]
    if len(units) != 1:
        return None
    factor = 1.0 if units[0] in _HOUR else 3600.0
    rest = [part for part in parts if part not in units]
    if "cpu" in rest and set(rest) <= {"cpu"} | _CORE:
        return CPU, factor
    if set(rest) & _MEMORY_PARTS and set(rest) <= _MEMORY_PARTS | _GIB:
        return MEMORY, factor
    if "gpu" in rest and len(rest) > 1:
        return "".join(part for part in rest if part != "gpu").upper(), factor
    return None


def resource_of_gpu(request: GpuRequest) -> str:
    """Return the name of the rate of a GPU type, as ``normalized_rates`` has it.

    Example:
        >>> [resource_of_gpu(GpuRequest(name)) for name in ("A100-80GB", "H100!", "RTX-PRO-6000", "A100")]
        ['A10080GB', 'H100', 'RTX6000', 'A10040GB']
    """
    name = re.sub(r"[^A-Z0-9]", "", request.name.upper())
    return _OTHER_NAMES.get(name, name)
