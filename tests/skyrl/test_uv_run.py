"""The search for calls of ``uv run`` in shell scripts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_modal.skyrl.shell_commands import split_commands
from skyrl_modal.skyrl.uv_run import calls_uv_run

CALLS = [
    "uv run x.py",
    "uv \\\n  run x.py",
    "/root/.local/bin/uv run x.py",
    '"uv" run x.py',
    "exec uv run x.py",
    "A=1 uv run x.py",
    "time uv run x.py",
    "env A=1 uv run x.py",
    "nohup uv run x.py > log 2>&1 &",
    "S=$(uv run x.py)",
    'echo "$(uv run x.py)"',
    "`uv run x.py`",
    "uv --offline run x.py",
    "uv --directory d run x.py",
    "uv run --with pylatexenc x.py",
    "uv run --env-file .env x.py",
    'DRIVER=(uv run --isolated\n  --extra fsdp); "${DRIVER[@]}" x.py',
    'UV="uv run"; $UV x.py',
    "bash -c 'uv run x.py'",
    'timeout 5 bash -lc "cd x && uv run y.py"',
    "eval 'uv run x.py'",
    "if uv run x.py; then true; fi",
    "for i in 1 2; do uv run x.py; done",
    "a && uv run x.py",
    "a 2>&1 | tee log; uv run x.py",
    "! uv run x.py",
    "( uv run x.py )",
    "f() { uv run x.py; }; f",
    "case $x in a) uv run x.py;; esac",
    "bash <<EOF\nuv run x.py\nEOF",
    "cat <<EOF > f\nit's\nEOF\nuv run x.py",
    "echo ${#a} $# \"it's\" # it's\nuv run x.py",
    ': "${A:="$HOME/${B}_1"}"\nuv run x.py',
]
OTHERS = [
    "echo uv run x.py",
    "echo 'to run: uv run x.py'",
    "# uv run x.py",
    "python x.py # uv run y.py",
    "uv sync",
    "uv pip install x",
    "uvx ruff",
    "uv tool run x",
    "uv run --no-project x.py",
    "uv run --script x.py",
    "uv run --with ray==2.60 x.py",
    "cat <<'EOF' > f\nuv run x.py\nEOF",
    "grep 'uv run' x",
    "my-uv run",
    "uv runner",
    "python uv.py run",
]


@pytest.mark.parametrize("text", CALLS)
def test_call_is_found(text: str) -> None:
    """A call with the versions of the project is found in all forms in which a shell accepts it."""
    assert calls_uv_run(text)


@pytest.mark.parametrize("text", OTHERS)
def test_other_text_is_no_call(text: str) -> None:
    """Text that only mentions ``uv run``, and a run with other versions, are no calls."""
    assert not calls_uv_run(text)


@given(st.text(alphabet="uv run'\"\\$(){}`<>&|;#\nEOF", max_size=200))
def test_any_text_is_read(text: str) -> None:
    """No text is an error, and the size of the tokens is bounded: a substitution is a token ``$()``."""
    tokens = [token for command in split_commands(text) for token in command]

    assert sum(map(len, tokens)) <= 3 * len(text)
    calls_uv_run(f"uv {text}")


@pytest.mark.parametrize("part", ["(", "$(", "'", '"', "`", "${", "<<A\n", '"$(', "bash -c '", "x", "#", "\\"])
def test_long_text_is_read_in_linear_time(part: str) -> None:
    """A large or deeply nested text is read within the time limit of a test, and without an error."""
    calls_uv_run("uv " + part * 200_000)
