"""Tests of commands that are longer than an argument may be: no difference is visible to them."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from collections.abc import Sequence

import pytest

from skyrl_modal.container.process import MAX_ARGUMENT_BYTES, open_shell_command, shell_argv

PADDING = "#" + "x" * MAX_ARGUMENT_BYTES


def run(argv: Sequence[str], stdin: int) -> tuple[int, bytes]:
    """Return the exit status and the output of a program."""
    done = subprocess.run(argv, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return done.returncode % 256, done.stdout


def run_long(command: str) -> tuple[int, bytes]:
    """Run a command after a comment that is longer than an argument."""
    with open_shell_command(f"{PADDING}\n{command}") as (argv, stdin):
        return run(argv, stdin)


def run_short(command: str) -> tuple[int, bytes]:
    """Run a command after a short comment, as the argument of the shell."""
    return run(shell_argv(f"#\n{command}"), subprocess.DEVNULL)


@pytest.mark.parametrize(
    "command",
    [
        'echo "$0 $# $- [$*]"',
        'echo "[${BASH_SOURCE[0]-unset}] ${#BASH_SOURCE[@]} ${FUNCNAME-none}"',
        'f() { echo "${BASH_SOURCE[0]} ${FUNCNAME[*]} ${BASH_LINENO[*]}"; }\nf',
        "echo $LINENO\n\necho $LINENO",
        "return 3; echo after $?",
        "exit 7",
        "false",
        "echo $?",
        "set -e\nfalse\necho no",
        "set -euo pipefail\necho $UNDEFINED\necho no",
        "set -e\nf() { false; echo no; }\nf",
        "echo a\nno-such-command\necho $?",
        "cat <<EOF\nhello $0\nEOF\necho after",
        "cat <<EOF\nhello",
        "echo a \\\n",
        "echo a\\",
        "echo a\n\n\n",
        "exec echo hi",
        "exec 3>/dev/null; echo ok >&3; echo $?",
        'read x; echo "$? [$x]"; cat',
        "grep flags /proc/self/fdinfo/0; readlink /proc/self/fd/0; ls /proc/self/fd | tr '\\n' ' '",
        'trap "echo bye \\$?" EXIT; exit 4',
        'trap "echo error in \\$LINENO" ERR; false; true',
        "kill -9 $$",
        "kill -TERM $$; echo no",
        "shopt -s expand_aliases\nalias foo='echo bar'\nfoo",
        "echo 'a\"b' \"c'd\" $'x\\ty' `echo back` \\$x",
        "caller; echo $?",
        "(exit 9)",
        "echo é世界",
        "a=(1 2\n3)\necho ${a[2]} $LINENO",
        "echo ${Z?missing}\necho no",
        "set -a; export -p | grep -c BASH_EXECUTION_STRING; echo ${#BASH_EXECUTION_STRING[@]}",
        'sleep 0.01 & wait; echo "$? $BASHPID" | grep -c "$$"',
    ],
)
def test_long_command_runs_like_a_short_one(command: str) -> None:
    """Exit code and output do not depend on the length of the command."""
    assert run_long(command) == run_short(command)


@pytest.mark.parametrize("command", ["echo a\nif true; then\n echo b\n", "echo a\n)\necho b", "echo a; )"])
def test_syntax_error_of_a_long_command(command: str) -> None:
    """A syntax error has the same code and line, and the same commands run before it."""
    code, output = run_long(command)
    expected_code, expected = run_short(command)

    assert (code, output.replace(b": eval: line", b": -c: line")) == (expected_code, expected)


def test_bytes_of_a_long_command() -> None:
    """Every byte of a command arrives, except for null bytes."""
    numbers = random.Random(7)
    for size in (10, 1000, 50_000):
        body = bytes(numbers.choices([byte for byte in range(1, 256) if byte not in b"'"], k=size))
        command = os.fsdecode(b"printf %s '" + body + b"'")
        assert run_long(command) == run_short(command)


def test_limit_of_an_argument() -> None:
    """The longest command that Linux permits as an argument is one; a longer one is not."""
    for size, is_argument in ((MAX_ARGUMENT_BYTES - 1, True), (MAX_ARGUMENT_BYTES, False)):
        command = "exit 3 #".ljust(size, "x")
        with open_shell_command(command) as (argv, stdin):
            assert (argv[-1] == command) is is_argument
            assert run(argv, stdin) == (3, b"")


def test_command_of_ten_megabytes() -> None:
    """A command of 10 MB runs, and its text arrives completely."""
    body = "0123456789" * 1_000_000
    with open_shell_command(f"printf %s {body} | sha256sum; exit 5") as (argv, stdin):
        code, output = run(argv, stdin)

    assert (code, output.split()[0].decode()) == (5, hashlib.sha256(body.encode()).hexdigest())


def test_long_command_of_sh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without bash, sh executes the command the same way."""
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "bash" not in str(path) and access(path, mode))
    for command in ('echo "$0 $#"; cat; exit 7', "echo a\\", "cat <<EOF\nx\nEOF", "set -e\nfalse\necho no", "set"):
        code, output = run_long(command)
        assert (code, without_ids(output)) == (run_short(command)[0], without_ids(run_short(command)[1]))


def without_ids(output: bytes) -> list[bytes]:
    """Return the lines of the output that do not differ between two processes."""
    return [line for line in output.splitlines() if not line.startswith((b"_=", b"PPID="))]
