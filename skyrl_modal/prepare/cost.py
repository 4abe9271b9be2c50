"""The cost of a plan: what its nodes cost per hour, and at most."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from skyrl_modal.dataclass import dataclass
from skyrl_modal.findings import Finding, Severity
from skyrl_modal.protocol.job import Job, NodeRate
from skyrl_modal.views.money import format_money

if TYPE_CHECKING:
    from skyrl_modal.backends import FindRates, NodeRates
    from skyrl_modal.spec.run_spec import RunSpec

GIVEN = "the rate that the run declares"
#: A budget for less than this number of seconds is probably a mistake: Ray alone needs a part of it to start.
_SHORT_BUDGET_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanCost:
    """What a run costs, as far as it is known before it starts.

    Attributes:
        per_hour: US dollars per hour of all nodes, with the most expensive of the requested GPU types; None if no rate
            is known.
        at_most: US dollars for all attempts at their timeouts, or ``budget`` if that is less; None if there is no
            limit. Attempts that the platform interrupted are not counted by ``retries``, and cost more than this.
        source: Where the rates are from, with their date; empty for a run that costs nothing.
        choices: Each requested GPU type with its US dollars per hour of all nodes; empty for a declared rate.
        notes: What the rates do not include.
    """

    per_hour: float | None
    at_most: float | None
    source: str = ""
    choices: tuple[tuple[str, float | None], ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.per_hour == 0:
            return "$0"
        hourly = format_money(self.per_hour)
        if len(self.choices) > 1:
            hourly = " or ".join(f"{format_money(cost)} ({gpu})" for gpu, cost in self.choices)
        limit = "no limit" if self.at_most is None else f"at most {format_money(self.at_most)} without preemptions"
        return "; ".join([f"{hourly} per hour, {limit}", *filter(None, [self.source, *self.notes])])


#: The cost of a run on a machine of one's own.
NO_COST = PlanCost(per_hour=0.0, at_most=0.0)


def find_rates(spec: RunSpec, find: FindRates | None) -> NodeRates | None:
    """Return what one node of a run costs; None if the run costs nothing.

    Args:
        spec: What the user declared.
        find: What finds the rate if none is declared; None if the backend has no rates.
    """
    if spec.rate is not None:
        from skyrl_modal.backends.base import GpuChoice, NodeRates  # imported here, since most runs declare no rate

        return NodeRates((GpuChoice("", spec.rate),), GIVEN)
    return None if find is None else find(spec)


def node_rate(rates: NodeRates | None) -> NodeRate | None:
    """Return the rate for the job of a run; None if it is not known, or if the run costs nothing."""
    if rates is None or not rates.per_hour:
        return None
    return NodeRate(per_hour=rates.per_hour, source="; ".join([rates.source, *rates.notes]))


def plan_cost(job: Job, spec: RunSpec, rates: NodeRates | None) -> PlanCost:
    """Return the cost of a plan.

    Args:
        job: The run.
        spec: What the user declared.
        rates: What one node costs; None if the run costs nothing.
    """
    if rates is None or rates.per_hour == 0:
        return NO_COST
    choices = tuple(
        (choice.gpu, None if choice.per_hour is None else choice.per_hour * job.nodes)
        for choice in rates.choices
        if choice.gpu
    )
    per_hour = None if rates.per_hour is None else rates.per_hour * job.nodes
    limits = job.limits
    at_most = None
    # With ``resume``, an attempt that made progress is repeated without using a retry.
    if per_hour is not None and spec.resume is None:
        at_most = per_hour * limits.attempt_timeout * (limits.retries + 1) / 3600
    if per_hour is not None and limits.budget is not None:
        at_most = limits.budget if at_most is None else min(at_most, limits.budget)
    return PlanCost(per_hour=per_hour, at_most=at_most, source=rates.source, choices=choices, notes=rates.notes)


def find_budget_problems(budget: float | None, cost: PlanCost) -> Iterator[Finding]:
    """Yield a finding about a budget that has no effect, or is used up in a moment.

    Example:
        >>> [finding.code for finding in find_budget_problems(5.0, NO_COST)]
        ['budget-without-rate']
    """
    if budget is None:
        return
    if not cost.per_hour:
        reason = "the run costs nothing" if cost.per_hour == 0 else "; ".join(cost.notes) or "its rate is not known"
        yield Finding(
            code="budget-without-rate",
            severity=Severity.WARNING,
            message=f"budget={budget:g} has no effect: {reason}",
            remedy="Pass rate=, in US dollars per hour and node, or omit budget.",
        )
    elif budget < cost.per_hour * _SHORT_BUDGET_SECONDS / 3600:
        seconds = budget / cost.per_hour * 3600
        yield Finding(
            code="budget-short",
            severity=Severity.WARNING,
            message=f"budget={budget:g} is used up after {seconds:.1f} s at {format_money(cost.per_hour)} per hour",
            remedy="Increase budget.",
        )
