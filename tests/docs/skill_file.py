"""Writes ``docs/generated/SKILL.md``, which explains the command line and the library to coding agents.

.. code-block:: bash

    python -m tests.docs.skill_file

The commands, options, methods and states are read from the code. The rules before them are written here.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import click

from skyrl_modal import Launcher, Run, RunResult
from skyrl_modal.cli.base import LauncherCommand
from skyrl_modal.cli.commands import cli
from skyrl_modal.config.settings import all_settings
from skyrl_modal.protocol.state import RunState

PAGE = Path(__file__).parents[2] / "docs" / "generated" / "SKILL.md"
_HEADER = """\
---
name: skyrl-modal
description: Run, watch, resume and diagnose SkyRL trainings on Modal GPUs or on this machine with skyrl-modal. Use it
  when a task mentions SkyRL runs, checkpoints, metrics, cost, or a failed training.
---

<!-- Written by `python -m tests.docs.skill_file` from the code. -->

# skyrl-modal

skyrl-modal runs a shell command from a SkyRL checkout in a Modal GPU container, or on this machine at the same paths
(checkout `/root/SkyRL`, volume `/root/data`), and returns the command's own exit code.

## Rules

1. Before a run that costs money: `skyrl-modal plan --json COMMAND`. Do not start it while a finding has the severity
   `error`. `fixed_command` is the command with the arguments that remove findings; `run --fix` uses it.
2. Set a limit: `--budget DOLLARS` and `--timeout`. Ask the user for the budget.
3. Trainings that take hours: `--resume auto --retries 3`, with `trainer.ckpt_path` below `/root/data`.
4. Use `submit`, not `run`, for what takes longer than your own session; it prints the id of the run. `run` ends with
   its caller.
5. Follow with `skyrl-modal ps --json`, `metrics --json RUN`, `logs --tail 50 RUN`. RUN is an id, the beginning of one,
   a name or `latest`.
6. After a failure: `skyrl-modal why --json RUN` first. It has the cause, the lines of the logs and the remedy. Do not
   guess from the end of the output.
7. Never write the value of a secret into a command: `--secret NAME` passes the variable, and masks it.
8. Do not pass `--yes` unless the user has agreed to the cost. Do not cancel or remove anything that you did not start.
9. Try a command on this machine first: `--backend local` (`--no-ray` if it needs no Ray).

## Exit codes

| code | meaning |
|---|---|
| the command's own; 128+N | it ran and ended so; killed by signal N |
| 124 | ended at a limit: `timed_out`, `over_budget` |
| 125 | refused or failed before the command, or the result is unknown; the reason is on standard error |
| 130, 141 | Ctrl-C; the reader of the output closed it |
| 2 | wrong usage; `plan --check` exits with 1 for a finding that is an error |
"""


def render() -> str:
    """Return the content of the file."""
    states = ", ".join(f"`{state}`" for state in RunState if state is not RunState.UNKNOWN)
    parts = [_HEADER, f"\nStates of a run: {states}.\n", "\n## Commands\n", _commands(), "\n## Settings\n", _settings()]
    parts += ["\n## Python\n", _python()]
    return "\n".join(parts)


def _summary(text: str | None) -> str:
    """Return the first sentence of a docstring in one line."""
    paragraph = (text or "").strip().split("\n\n")[0]
    return " ".join(paragraph.split()).split(". ")[0].rstrip(".") + "."


def _commands() -> str:
    lines = []
    for name, command in sorted(cli.commands.items()):
        arguments = [part.make_metavar(click.Context(command)) for part in command.params if _is_argument(part)]
        kept = [part for part in command.params if isinstance(part, click.Option) and not part.hidden]
        options = [f"`{part.opts[0]}`" for part in kept if part.opts[0] != "--help"]
        usage = " ".join([f"`skyrl-modal {name}", *arguments]) + "`"
        more = " and the settings below" if isinstance(command, LauncherCommand) and not command.settings else ""
        lines.append(f"- {usage}: {_summary(command.help)} Options: {', '.join(options) or 'none'}{more}.")
    return "\n".join(lines) + "\n"


def _is_argument(part: click.Parameter) -> bool:
    return isinstance(part, click.Argument)


def _settings() -> str:
    lines = ["Options of `run`, `submit`, `map` and `plan`, fields of `Launcher`, and keys of `skyrl-modal.toml`:", ""]
    for key, setting in all_settings(Launcher).items():
        flag = f" (`{setting.flag}`)" if setting.flag else ""
        lines.append(f"- `{key}`{flag}: {' '.join(setting.option.help.split())} Default: {setting.default_text}.")
    return "\n".join(lines) + "\n"


def _python() -> str:
    lines = ["```python", "from skyrl_modal import Launcher, Run, runs", "", 'launcher = Launcher(backend="local")']
    lines += ['result = launcher.run("true", quiet=True)', "assert result.returncode == 0", "```", ""]
    for cls in (Launcher, Run, RunResult):
        for name, member in sorted(vars(cls).items()):
            function = member.__func__ if isinstance(member, classmethod) else member
            function = function.fget if isinstance(function, property) else function
            documentation = inspect.getdoc(function) if callable(function) else None
            if not name.startswith("_") and documentation:
                call = "" if isinstance(member, property) else "()"
                lines.append(f"- `{cls.__name__}.{name}{call}`: {_summary(documentation)}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
