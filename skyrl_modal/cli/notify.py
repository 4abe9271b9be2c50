"""The option ``--notify``, which reports the end of runs to a URL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from skyrl_modal.cli.own_settings import read_own_setting
from skyrl_modal.errors import SpecError
from skyrl_modal.views.text import StderrReporter

if TYPE_CHECKING:
    from skyrl_modal.protocol.job import Job
    from skyrl_modal.run.result import RunResult

VARIABLE = "SKYRL_MODAL_NOTIFY"

notify_option = click.option(
    "--notify", metavar="URL", help=f"Send the result to this URL at the end, as JSON. Default: ${VARIABLE}, else none."
)


def find_notify_url(given: str | None) -> str | None:
    """Return the URL of the option, the environment, or the user's own file; None for none.

    Raises:
        SpecError: It is not valid. The error names its source, and does not contain it.
    """
    url, source = given, "--notify"
    if url is None:
        value, source = read_own_setting("notify", VARIABLE)
        url = None if value is None else str(value)
    if url is not None:
        from skyrl_modal.run.notify import check_url  # imported here, since most runs are not reported

        try:
            check_url(url)
        except SpecError as error:
            raise error.located(source) from None
    return url


def report_results(url: str | None, results: Sequence[tuple[RunResult, Mapping[str, Any]]]) -> None:
    """Send results to a URL, if there is one.

    Args:
        url: The URL.
        results: The results, each with facts of its run.
    """
    if url is None:
        return
    from skyrl_modal.run.notify import payload, send

    send(url, payload(results), StderrReporter())


def facts_of(job: Job) -> Mapping[str, Any]:
    """Return the facts of a run that are sent with its result."""
    return {"command": job.command, "name": job.name, "tags": list(job.tags)}
