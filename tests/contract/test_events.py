"""What a program that embeds the launcher receives while a run continues."""

from __future__ import annotations

import logging

import pytest

from skyrl_modal import Run, RunState
from skyrl_modal.protocol.events import MessageEvent, ResultEvent, RunEvent, StateEvent
from tests.conftest import MakeLauncher


class Received(list[tuple[Run, RunEvent]]):
    """Stores what ``on_event`` receives."""

    def __call__(self, run: Run, event: RunEvent) -> None:
        self.append((run, event))

    def states(self, run_id: str) -> list[tuple[RunState, int]]:
        """Return the states of a run, each with the number of the attempt."""
        events = [event for run, event in self if run.id == run_id]
        return [(event.state, event.attempt) for event in events if isinstance(event, StateEvent)]


def test_states_attempts_and_result_are_received(launcher: MakeLauncher) -> None:
    """Each start of the command is a change of state with its number, and the result is the last event."""
    received = Received()

    result = launcher(retries=1).run('[ "$SKYRL_ATTEMPT" = 2 ]', on_event=received, quiet=True)

    assert result.attempts == 2
    assert received.states(result.run_id)[-2:] == [(RunState.RUNNING, 1), (RunState.RUNNING, 2)]
    run, last = received[-1]
    assert isinstance(last, ResultEvent)
    assert (run.id, last.record.returncode) == (result.run_id, 0)


def test_events_of_several_commands_name_their_run(launcher: MakeLauncher) -> None:
    """With ``map``, each event comes with the run that it belongs to."""
    received = Received()

    results = launcher().map(["true", "exit 3"], on_event=received, quiet=True)

    for result in results:
        assert received.states(result.run_id)[-1] == (RunState.RUNNING, 1)
    ends = {run.id: event.record.returncode for run, event in received if isinstance(event, ResultEvent)}
    assert ends == {result.run_id: result.returncode for result in results}


@pytest.mark.parametrize("backend", ["local"], indirect=True)
def test_exception_of_the_callback_stops_the_run(launcher: MakeLauncher) -> None:
    """The run does not continue without its owner: it is stopped, and the exception is raised."""

    def fail(run: Run, event: RunEvent) -> None:
        if isinstance(event, StateEvent) and event.state is RunState.RUNNING:
            raise LookupError("from the driver")

    with pytest.raises(LookupError, match="from the driver"):
        launcher(grace=1).run("sleep 100", on_event=fail, quiet=True)


@pytest.mark.parametrize("backend", ["local"], indirect=True)
def test_messages_are_logged(launcher: MakeLauncher, caplog: pytest.LogCaptureFixture) -> None:
    """The launcher's messages are records of the logger "skyrl_modal", also of a quiet run."""
    received = Received()
    with caplog.at_level(logging.INFO, logger="skyrl_modal"):
        result = launcher().run("true", on_event=received, quiet=True)

    messages = [record.getMessage() for record in caplog.records if record.name == "skyrl_modal"]
    assert any(f"run {result.run_id}" in message for message in messages)
    assert all(event.text in messages for _, event in received if isinstance(event, MessageEvent))
    assert any("succeeded, exit code 0" in message for message in messages)
