"""Each process of a run is killed by SIGKILL. The expected ends are those of tests/support/kill_table.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.kill_runner import KillEnvironment
from tests.support.kill_table import CELLS, Cell, Finding, Phase, Target, parse, render

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KillEnvironment]:
    """Yield an environment for runs whose processes are killed."""
    environment = KillEnvironment(tmp_path_factory.mktemp("kills"))
    yield environment
    environment.close()


def marked(cell: Cell) -> object:
    """Return a parameter of a test: cells with Ray, and most of those with two nodes, are slow."""
    is_slow = cell.ray or (cell.nodes > 1 and not (cell.rank and cell.phase is Phase.COMMAND))
    marks = [pytest.mark.ray] * cell.ray + [pytest.mark.slow] * is_slow
    return pytest.param(cell, id=str(cell), marks=marks)


@pytest.mark.parametrize("cell", [marked(cell) for cell in CELLS])
def test_killed_process(cell: Cell, environment: KillEnvironment) -> None:
    """The run ends as in the table, for its caller and for other processes, and nothing of it remains."""
    assert environment.run(cell).violations == ()


def test_every_process_has_a_row() -> None:
    """The table has each kind of process, with and without Ray as far as it exists."""
    assert {cell.target for cell in CELLS} == set(Target)
    assert {(cell.nodes, cell.ray) for cell in CELLS} == {(1, False), (1, True), (2, False), (2, True)}


def test_no_incomplete_run_has_exit_code_0() -> None:
    """Exit code 0 is expected only where the command itself ends with it."""
    for cell in CELLS:
        for ending in cell.expected:
            assert (ending.returncode == 0) == (ending.state == "succeeded")


def test_page_contains_what_was_seen() -> None:
    """The page is made from the output of the program, and an output with a violation is refused."""
    cell = CELLS[0]
    output = f"     1 s    1/2  {cell}: not started, 0.2 s\n     2 s    2/2  {cell}: not started, 0.7 s\n"

    assert list(parse(output)) == [Finding(cell, "not started", 0.2), Finding(cell, "not started", 0.7)]
    assert "| caller | not started, 0.7 s |" in render(parse(output))
    with pytest.raises(ValueError, match="violations"):
        list(parse(output + "    VIOLATION process 1 is left\n"))
