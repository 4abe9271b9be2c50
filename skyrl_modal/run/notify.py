"""The request that reports the end of runs to another program, such as a chat."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from skyrl_modal.errors import SpecError
from skyrl_modal.reporting import Reporter
from skyrl_modal.run.result import RunResult, result_to_json

_REMEDY = "pass a URL such as https://example.com/hook"
_TIMEOUT_SECONDS = 10.0
#: Attributes of a result that the request does not have, since the output may be confidential.
_NOT_SENT = ("log_tail",)


def check_url(url: str) -> None:
    """Validate a URL.

    Raises:
        SpecError: It is not an HTTP URL. The error does not contain it: such a URL often contains a token.
    """
    if not re.fullmatch(r"https?://[^\s/?#]+[^\s]*", url) or not url.isascii():
        raise SpecError("notify", "(not shown)", _REMEDY)


def describe_url(url: str) -> str:
    """Return the part of a URL that contains no token.

    Example:
        >>> describe_url("https://user:password@example.com:8080/token?x=1")
        'https://example.com:8080/...'
    """
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{re.split('[/?#]', rest)[0].rpartition('@')[2]}/..."


def payload(results: Sequence[tuple[RunResult, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the content of the request.

    Args:
        results: The results, each with facts of its run, such as its command.
    """
    runs = [
        {**facts, **{key: value for key, value in result_to_json(result).items() if key not in _NOT_SENT}}
        for result, facts in results
    ]
    texts = [f"{run['run_id'] or run['command']}: {run['state']}, exit code {run['returncode']}" for run in runs]
    return {"text": "\n".join(texts), "runs": runs}


def send(url: str, content: Mapping[str, Any], reporter: Reporter) -> None:
    """Send the end of runs. A failure is a warning: no result depends on it.

    Args:
        url: Where to send a POST request with JSON. Redirects are not followed.
        content: What ``payload`` returned.
        reporter: Receives the warning.
    """
    import http.client
    import urllib.error
    import urllib.request

    class NoRedirect(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: object) -> None:
            """Follow no redirect: the content is for the given host only."""

    data = json.dumps(content).encode()
    try:
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method="POST")  # noqa: S310  # check_url permits http and https only
        with urllib.request.build_opener(NoRedirect).open(request, timeout=_TIMEOUT_SECONDS):
            pass
    except urllib.error.HTTPError as error:
        reporter.warn(f"the end of the run was not reported: {describe_url(url)} returned status {error.code}")
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        reporter.warn(f"the end of the run was not reported: {describe_url(url)}: {reason}")
