"""Writes the page about known failures, ``docs/troubleshooting.md``, from the rules that diagnose them.

.. code-block:: bash

    python -m tests.docs.troubleshooting_page
"""

from __future__ import annotations

import re
from pathlib import Path

from skyrl_modal.skyrl.failures.catalog import GROUPS, RULES
from skyrl_modal.skyrl.failures.rule import FailureRule

PAGE = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
_HEADER = """\
# Troubleshooting

<!-- Written by `python -m tests.docs.troubleshooting_page` from skyrl_modal/skyrl/failures/. -->

The last lines of the output are seldom the cause of a failure: they show what the first process saw of it. After a run
that failed, the launcher therefore searches its output and its [kept logs](kept-logs.md) for known failures, over all
ranks and attempts, and prints the earliest root cause:

```console
$ skyrl-modal run --gpu A10 'bash examples/train/gsm8k/run_gsm8k.sh'
...
[skyrl-modal] failed, exit code 1 after 95.2 s; log: ...
[skyrl-modal] cause: A GPU is out of memory.
[skyrl-modal]   rank 1, skyrl-logs/infra-1.log:212: torch.OutOfMemoryError: CUDA out of memory. Tried to ...
[skyrl-modal] remedy: In vLLM: reduce generator.inference_engine.gpu_memory_utilization. ...
[skyrl-modal] skyrl-modal why 20261126-100000-ab12cd shows more
$ skyrl-modal why --json 20261126-100000-ab12cd
```

In Python, `result.diagnosis` is a {class}`~skyrl_modal.findings.Diagnosis`; None for a run that succeeded. It is read
from the logs when it is first accessed. It never changes the exit code, the state or the `cause` of the result.

What counts is a line that begins with the text of an error, after the prefixes of Ray, loguru, vLLM, torch and others.
These do not count: texts in a prompt, a configuration or the source code of a traceback, commands that `set -x` prints,
responses of the model that SkyRL prints as an example, output of tests, warnings, errors that a warning announces as
retried, and errors after which two more training steps were completed. If one error leads to others, the root cause is
chosen, then the earliest: by attempt, by the times in the logs, by rank.

If no rule describes a failure, the code is `unknown`, and the evidence has the most informative lines of each log.

Of an output of more than 256 MiB, the first 64 MiB and the last 192 MiB are searched.
"""


def render() -> str:
    """Return the page."""
    parts = [_HEADER]
    for heading, rules in GROUPS:
        rows = [f"| {_cell(rule.cause)} | {_cell(rule.remedy)} | `{rule.code}` | {_origin(rule)} |" for rule in rules]
        table = "\n".join(["| what happened | what to do | code | seen in |", "|---|---|---|---|", *rows])
        parts.append(f"## {heading}\n\n{table}\n")
    return "\n".join(parts)


def _origin(rule: FailureRule) -> str:
    return _cell(rule.versions or rule.source)


def _cell(text: str) -> str:
    """Return a text as a cell of a table: values of a failure become ``…``."""
    plain = re.sub(r"\{\w+\}", "…", text)
    return re.sub(r"[*_|<>]", lambda match: "\\" + match[0], plain)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(f"{PAGE}: {len(RULES)} rules")
