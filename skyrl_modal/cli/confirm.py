"""The question before a run that costs more per hour than the user has configured. By default, none is asked."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

import click

from skyrl_modal.cli.own_settings import read_own_setting
from skyrl_modal.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from skyrl_modal.launcher import Launcher

KEY, VARIABLE = "confirm_above", "SKYRL_MODAL_CONFIRM_ABOVE"


def confirm_cost(launcher: Launcher, command: str | Sequence[str], *, is_confirmed: bool, parallel: int = 1) -> None:
    """Ask whether to start runs that cost more than the configured US dollars per hour.

    Args:
        launcher: The launcher.
        command: The command, or one of several.
        is_confirmed: Whether ``--yes`` was passed.
        parallel: Number of runs at the same time.

    Raises:
        SpecError: The configured value is invalid. Or the answer was no, or there is no terminal.
    """
    limit = find_limit()
    if limit is None or is_confirmed:
        return
    plan = launcher.plan(command)
    per_hour = plan.cost.per_hour
    if per_hour is not None and per_hour * parallel <= limit:
        return
    from skyrl_modal.views.money import format_money  # imported here: most runs are not confirmed

    cost = "an unknown amount" if per_hour is None else format_money(per_hour * parallel)
    text = f"{plan.cost}" if parallel == 1 else f"{parallel} runs at the same time, each {plan.cost}"
    if not (sys.stdin is not None and sys.stdin.isatty() and sys.stderr is not None and sys.stderr.isatty()):
        remedy = f"this costs {cost} per hour ({text}), and there is no terminal to ask on. Pass --yes to start it"
        raise SpecError(KEY, limit, remedy)
    if not click.confirm(f"This costs {cost} per hour ({text}). Start it?", err=True):
        raise SpecError(KEY, limit, f"not started: {cost} per hour is above this limit")


def find_limit() -> float | None:
    """Return the configured US dollars per hour; None for none.

    Raises:
        SpecError: It is no number of at least 0.
    """
    value, source = read_own_setting(KEY, VARIABLE)
    if value is None:
        return None
    try:
        limit = float(str(value))
    except ValueError:
        limit = math.nan
    if isinstance(value, bool) or not 0 <= limit < math.inf:
        equals = "=" if source.startswith("$") else " = "
        raise SpecError(KEY, value, "pass US dollars per hour, such as 10", source=f"{source}{equals}{value}")
    return limit
