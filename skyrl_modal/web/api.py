"""What the JSON API answers. docs/web.md lists the addresses."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from skyrl_modal.errors import SpecError
from skyrl_modal.protocol.codec import encode
from skyrl_modal.web.downsampling import sample
from skyrl_modal.web.observed_run import ObservedRun
from skyrl_modal.web.plain import plain
from skyrl_modal.web.rollouts import rollouts_of
from skyrl_modal.web.run_list import SORT_KEYS, ListFilter, parse_moment
from skyrl_modal.web.runs import Runs

#: Number of runs, lines, rollouts and points that are returned, unless it is requested, and at most.
_RUNS, _MAX_RUNS = 100, 1000
_LINES, _MAX_LINES = 500, 2000
_ROLLOUTS, _MAX_ROLLOUTS = 20, 200
_POINTS, _MAX_POINTS = 1500, 20_000
#: Curves that are returned at most.
_MAX_CURVES = 200
#: Seconds that an answer waits for the diagnosis of a failed run.
_DIAGNOSIS_SECONDS = 1.5
#: The beginning of the keys of times by phase.
TIMING = "timing/"


class Parameters:
    """The parameters of a request.

    Args:
        path: Those in the path.
        query: The others, which can be repeated.
    """

    def __init__(self, path: Mapping[str, str], query: Iterable[tuple[str, str]]) -> None:
        self._path = path
        self._query: dict[str, list[str]] = {}
        for name, value in query:
            self._query.setdefault(name, []).append(value)

    @property
    def run_id(self) -> str:
        """The run in the path."""
        return self._path["run_id"]

    def all(self, name: str) -> list[str]:
        """Return all values that are not empty."""
        return [value for value in self._query.get(name, ()) if value]

    def text(self, name: str) -> str:
        """Return the last value; empty if there is none."""
        return (self.all(name) or [""])[-1]

    def whole(self, name: str, default: int | None, maximum: int = 2**53) -> int | None:
        """Return a whole number that is not negative; the default if there is none.

        Raises:
            SpecError: It is none.
        """
        text = self.text(name)
        if not text:
            return default
        if not text.isascii() or not text.isdigit() or len(text) > 16:
            raise SpecError(name, text[:50], "pass a whole number from 0 on")
        return min(int(text), maximum)

    def number(self, name: str, default: float) -> float:
        """Return a number; the default if there is none.

        Raises:
            SpecError: It is none.
        """
        text = self.text(name)
        try:
            value = float(text) if text else default
        except ValueError:
            value = math.nan
        if math.isnan(value):
            raise SpecError(name, text[:50], "pass a number")
        return value


class Api:
    """The answers.

    Args:
        runs: The runs.
    """

    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    async def runs(self, parameters: Parameters) -> Any:
        """Return a part of the list of runs."""
        since, until = parameters.text("since"), parameters.text("until")
        sort, order = parameters.text("sort") or "created", parameters.text("order") or "desc"
        if sort not in SORT_KEYS:
            raise SpecError("sort", sort, f"pass one of {', '.join(SORT_KEYS)}")
        if order not in ("asc", "desc"):
            raise SpecError("order", order, "pass asc or desc")
        wanted = ListFilter(
            sort=sort,
            is_descending=order == "desc",
            search=parameters.text("search"),
            states=parameters.all("state"),
            tags=parameters.all("tag"),
            scripts=parameters.all("script"),
            since=parse_moment("since", since) if since else None,
            until=parse_moment("until", until, is_end=True) if until else None,
        )
        limit, offset = parameters.whole("limit", _RUNS, _MAX_RUNS), parameters.whole("offset", 0)
        is_complete = await self._runs.list_soon()
        return self._runs.list.page(wanted, limit=limit or 0, offset=offset or 0, is_complete=is_complete)

    async def details(self, parameters: Parameters) -> Any:
        """Return what is shown about a run beside its metrics and its log."""
        observed = await self._runs.observed(parameters.run_id)
        summary = await self._runs.summary(observed)
        return await self._runs.details(observed, summary, _DIAGNOSIS_SECONDS)

    async def keys(self, parameters: Parameters) -> Any:
        """Return the names of the metrics of a run, and their last values."""
        observed = await self._runs.observed(parameters.run_id)
        return await self._runs.call(observed, lambda: keys_of(observed))

    async def series(self, parameters: Parameters) -> Any:
        """Return curves, with fewer points than values. The text is JSON."""
        run_ids, keys = dict.fromkeys(parameters.all("run")), dict.fromkeys(parameters.all("key"))
        if len(run_ids) * len(keys) > _MAX_CURVES:
            raise SpecError("key", len(keys), f"request {_MAX_CURVES} curves at most")
        axis = parameters.text("x") or "step"
        if axis not in ("step", "time"):
            raise SpecError("x", axis, "pass step or time")
        points = max(parameters.whole("points", _POINTS, _MAX_POINTS) or 0, 2)
        begin, end = parameters.number("from", -math.inf), parameters.number("to", math.inf)
        observed = [await self._runs.observed(run_id) for run_id in run_ids]
        found = await self._runs.call_all(
            observed, lambda one: [curve_json(one, key, axis, points, begin, end) for key in keys]
        )
        return '{"series": [' + ", ".join(text for texts in found for text in texts) + "]}"

    async def phases(self, parameters: Parameters) -> Any:
        """Return the seconds of each phase of each step."""
        observed = await self._runs.observed(parameters.run_id)
        return await self._runs.call(observed, lambda: phases_of(observed))

    async def rollouts(self, parameters: Parameters) -> Any:
        """Return rollouts."""
        observed = await self._runs.observed(parameters.run_id)
        step, offset = parameters.whole("step", None), parameters.whole("offset", 0) or 0
        limit = parameters.whole("limit", _ROLLOUTS, _MAX_ROLLOUTS) or _ROLLOUTS
        source, order = parameters.text("source"), parameters.text("order")
        read = partial(rollouts_of, observed, step=step, source=source, order=order, offset=offset, limit=limit)
        return await self._runs.call(observed, read)

    async def checkpoints(self, parameters: Parameters) -> Any:
        """Return the checkpoints in the folders of a run."""
        observed = await self._runs.observed(parameters.run_id)
        return await self._runs.call(observed, lambda: checkpoints_of(observed))

    async def log(self, parameters: Parameters) -> Any:
        """Return lines of the output of a run, or of its kept logs."""
        observed = await self._runs.observed(parameters.run_id)
        limit = parameters.whole("limit", _LINES, _MAX_LINES) or _LINES
        before = parameters.whole("before", None)
        rank, attempt = parameters.whole("rank", None), parameters.whole("attempt", None)
        search = parameters.text("search")[:1000]
        return await self._runs.call(observed, lambda: log_of(observed, rank, attempt, search, before, limit))

    async def cancel(self, parameters: Parameters) -> Any:
        """Stop a run, with its grace period."""
        observed = await self._runs.observed(parameters.run_id)
        await self._runs.call(observed, observed.run.cancel)
        return {"requested": True}


def keys_of(observed: ObservedRun) -> dict[str, Any]:
    """Return the names of the metrics of a run, their last values, and its first and last step."""
    columns = observed.metrics()
    return {
        "keys": columns.names(),
        "last": {key: _finite(value) for key, value in columns.last_values().items()},
        "steps": columns.step_range(),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def curve_json(observed: ObservedRun, key: str, axis: str, points: int, begin: float, end: float) -> str:
    """Return a curve as JSON. It is kept until a row is added."""
    columns = observed.metrics()
    wanted = (columns.version, key, axis, points, begin, end)
    text = observed.sampled.get(wanted)
    if text is None:
        sampled = sample(columns.curve(key), points, by_time=axis == "time", begin=begin, end=end)
        values = {
            "run": observed.run.id,
            "key": key,
            "x": sampled.x,
            "low": sampled.low,
            "high": sampled.high,
            "y": sampled.y,
            "count": sampled.count,
        }
        text = json.dumps(values, allow_nan=False)
        observed.keep_sampled(wanted, text)
    return text


def phases_of(observed: ObservedRun) -> dict[str, Any]:
    """Return the seconds of each phase of the newest steps."""
    columns = observed.metrics()
    keys = [key for key in columns.names() if key.startswith(TIMING)]
    curves = {key: columns.curve(key) for key in keys}
    steps = sorted({step for curve in curves.values() for step in curve.steps})[-_MAX_POINTS:]
    values = {key: dict(zip(curve.steps, curve.values, strict=True)) for key, curve in curves.items()}
    seconds = {key: [_finite(found.get(step, math.nan)) for step in steps] for key, found in values.items()}
    return {"phases": keys, "steps": steps, "values": seconds}


def checkpoints_of(observed: ObservedRun) -> dict[str, Any]:
    """Return the checkpoints in the folders of a run."""
    found = [plain(encode(item)) for item in observed.run.checkpoints()]
    return {"checkpoints": found, "folders": plain(list(observed.run.job.checkpoint_folders))}


def log_of(
    observed: ObservedRun, rank: int | None, attempt: int | None, search: str, before: int | None, limit: int
) -> dict[str, Any]:
    """Return lines of the output, or of the kept logs of a rank or an attempt."""
    is_kept = rank is not None or attempt is not None
    index = observed.kept_log(rank, attempt) if is_kept else observed.log()
    total = index.total
    if search:
        found = index.search(search, before=before, limit=limit)
        lines, matches, searched_from = list(found.lines), found.matches, found.searched_from
    else:
        last = total if before is None else min(before - 1, total)
        lines, matches, searched_from = index.lines(last - limit + 1, last), None, None
    return {
        "first": lines[0].n if lines else None,
        "last": lines[-1].n if lines else None,
        "total": total,
        "lines": [encode(line) for line in lines],
        "matches": matches,
        "searched_from": searched_from,
    }
