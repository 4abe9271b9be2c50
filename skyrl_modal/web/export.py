"""Runs as one HTML file: the page with their data, which it shows without a server and without a network."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from skyrl_modal.errors import SkyRLModalError, StorageError, translate_system_errors
from skyrl_modal.protocol.codec import encode
from skyrl_modal.run.index import IndexRecord
from skyrl_modal.web.api import checkpoints_of, keys_of, phases_of
from skyrl_modal.web.assets_folder import read_asset
from skyrl_modal.web.details import diagnose, run_details
from skyrl_modal.web.downsampling import sample
from skyrl_modal.web.observed_run import ObservedRun
from skyrl_modal.web.redaction import Redaction
from skyrl_modal.web.rollouts import rollouts_of
from skyrl_modal.web.run_list import summary_of

#: Points of all curves of a run for each axis, of one curve, curves, lines, and rollouts of a run that are exported.
_POINTS, _MAX_POINTS, _MAX_KEYS, _LINES, _ROLLOUTS = 60_000, 1_000, 500, 2_000, 200
#: Significant digits of a number of a curve.
_DIGITS = 6


def export_runs(records: Sequence[IndexRecord], path: Path) -> int:
    """Write an HTML file with runs. Return its size in bytes.

    Args:
        records: The runs.
        path: The file. An existing one is replaced when the new one is complete.

    Raises:
        SkyRLModalError: A run cannot be read now.
        StorageError: The file cannot be written.
    """
    content = render(records).encode()
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StorageError(str(path), error.strerror or str(error)) from error
    return len(content)


def render(records: Sequence[IndexRecord]) -> str:
    """Return the HTML of a file with runs."""
    answers: dict[str, Any] = {}
    series: list[dict[str, Any]] = []
    summaries = []
    for record in records:
        observed = ObservedRun(record)
        if observed.run.unavailable_reason is not None:
            raise SkyRLModalError(f"run {observed.run.id}: {observed.run.unavailable_reason}")
        with translate_system_errors():
            summaries.append(_add_run(answers, series, observed, _redaction(record)))
    answers["/api/info"] = {
        "version": version("skyrl-modal"),
        "allow_actions": False,
        "read_only_reason": "an exported file",
        "export": True,
        "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    answers["/api/runs"] = {
        "total": len(summaries),
        "runs": summaries,
        **{name: [] for name in ("states", "tags", "scripts", "unavailable")},
    }
    answers["/api/series"] = {"series": series}
    return _page(json.dumps(answers, allow_nan=False))


def _redaction(record: IndexRecord) -> Redaction:
    """Return what removes the secrets of a run, and the paths of its declaration."""
    folders = {}
    checkout = record.spec.get("checkout")
    if isinstance(checkout, str):
        folders[checkout] = "(checkout)"
    mounts = record.spec.get("mounts")
    for mount in mounts if isinstance(mounts, list) else []:
        path = mount.get("local_path") if isinstance(mount, dict) else None
        if isinstance(path, str):
            folders[path] = f"(folder of {mount.get('remote_path', 'a mount')})"
    folder = record.handle.get("run_folder")
    if record.backend == "local" and isinstance(folder, str):
        folders[folder] = record.job.run_folder
    return Redaction(record.job.secret_names, folders)


def _add_run(
    answers: dict[str, Any], series: list[dict[str, Any]], observed: ObservedRun, redaction: Redaction
) -> dict[str, Any]:
    """Add the answers about a run. Return its summary. What cannot be read is left out, as for a run without it."""
    root = f"/api/runs/{quote(observed.run.id, safe='')}"
    summary: dict[str, Any] = redaction.apply(summary_of(observed.run))
    diagnose(observed)
    details = redaction.apply(run_details(observed, summary))
    details["files"]["log_path"] = ""
    keys = _or_empty(lambda: keys_of(observed), {"keys": [], "last": {}, "steps": None})
    answers[root] = {**details, "summary": summary}
    answers[f"{root}/keys"] = redaction.apply(keys)
    answers[f"{root}/phases"] = redaction.apply(_or_empty(lambda: _phases(observed), None))
    rollouts = _or_empty(lambda: rollouts_of(observed, step=None, source="", order="", offset=0, limit=_ROLLOUTS), None)
    answers[f"{root}/rollouts"] = redaction.apply(rollouts)
    answers[f"{root}/checkpoints"] = redaction.apply(_or_empty(lambda: checkpoints_of(observed), {"checkpoints": []}))
    answers[f"{root}/log"] = _log(observed, redaction)
    names = keys["keys"][:_MAX_KEYS]
    points = min(max(_POINTS // max(len(names), 1), 50), _MAX_POINTS)
    for name in names:
        series += [_curve(observed, name, axis, points, redaction) for axis in ("step", "time")]
    return summary


def _or_empty(read: Callable[[], Any], default: Any) -> Any:
    """Return an answer as plain data; the default if there is nothing to read."""
    try:
        return json.loads(json.dumps(read()))
    except FileNotFoundError:
        return default


def _phases(observed: ObservedRun) -> dict[str, Any]:
    """Return the seconds of each phase of the newest steps."""
    phases = phases_of(observed)
    values = {name: seconds[-_MAX_POINTS:] for name, seconds in phases["values"].items()}
    return {**phases, "steps": phases["steps"][-_MAX_POINTS:], "values": values}


def _log(observed: ObservedRun, redaction: Redaction) -> dict[str, Any]:
    """Return the last lines of the output."""
    index = observed.log()
    lines = [encode(line) for line in index.lines(index.total - _LINES + 1, index.total)]
    for line, text in zip(lines, redaction.lines(line["text"] for line in lines), strict=True):
        line["text"] = text
    first, last = (lines[0]["n"], lines[-1]["n"]) if lines else (None, None)
    return {"first": first, "last": last, "total": index.total, "lines": lines, "matches": None}


def _curve(observed: ObservedRun, key: str, axis: str, points: int, redaction: Redaction) -> dict[str, Any]:
    found = sample(observed.metrics().curve(key), points, by_time=axis == "time")
    y, low, high = ([_rounded(value) for value in values] for values in (found.y, found.low, found.high))
    x = [round(value, 3) for value in found.x]
    return {
        "run": observed.run.id,
        "key": redaction.text(key),
        "by": axis,
        "x": x,
        "low": low,
        "high": high,
        "y": y,
        "count": found.count,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")


def _page(data: str) -> str:
    """Return the page with its styles, scripts and data inline, and a policy that permits nothing else."""
    page = read_asset("index.html").decode()
    styles = [read_asset(name).decode() for name in ("uplot.css", "app.css")]
    scripts = [read_asset(name).decode() for name in ("uplot.js", "app.js")]
    policy = (
        f"default-src 'none'; script-src {_hashes(scripts)}; style-src {_hashes(styles)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    icon = base64.b64encode(read_asset("icon.svg")).decode()
    head = [f'<meta http-equiv="Content-Security-Policy" content="{policy}">']
    head.append(f'<link rel="icon" href="data:image/svg+xml;base64,{icon}">')
    head += [f"<style>{style}</style>" for style in styles]
    escaped = data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    end = [f'<script type="application/json" id="data">{escaped}</script>']
    end.append(f"<!-- uPlot:\n{read_asset('uplot-LICENSE').decode()}-->")  # its license requires its text
    end += [f"<script>{script}</script>" for script in scripts]
    lines = [line for line in page.splitlines() if '"/assets/' not in line]
    page = "\n".join(lines) + "\n"
    page = page.replace("<title>", "\n".join(head) + "\n<title>", 1)
    before, _, after = page.rpartition("</body>")
    return f"{before}{chr(10).join(end)}\n</body>{after}"


def _hashes(texts: Sequence[str]) -> str:
    """Return the sources of a content security policy that permit these inline texts only."""
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
