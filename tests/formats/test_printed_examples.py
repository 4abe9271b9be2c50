"""The examples that SkyRL prints are found in the output of a run."""

from __future__ import annotations

import pytest

from skyrl_modal.formats.printed_examples import ExampleReader
from skyrl_modal.formats.rollout import Rollout

HEADER = "2026-11-27 17:52:14.813 | INFO     | skyrl.train.trainer:train:400 - "
#: What ``pretty_print_example`` of SkyRL 0.4.0 has printed through loguru with colors.
EXAMPLE = (
    "\x1b[32m2026-11-27 17:52:14.813\x1b[0m | \x1b[1mINFO    \x1b[0m | \x1b[36mtl\x1b[0m:\x1b[36mpretty_print_example"
    "\x1b[0m:\x1b[36m88\x1b[0m - \x1b[1mExample:\n"
    "  Input: \x1b[36m[{'role': 'system', 'content': 's'}, "
    "{'role': 'user', 'content': 'q STEP\\nmore'}]\x1b[0m\x1b[1m\n"
    "  Output (Total Reward: 0.2500):\n"
    "\x1b[32mthink\x1b[0m\x1b[1m\n\x1b[32m\x1b[0m\x1b[1m\n\x1b[32m#### STEP\x1b[0m\x1b[1m\x1b[0m\n"
)


def example(step: int | str) -> str:
    """Return the lines of an example."""
    return EXAMPLE.replace("STEP", str(step))


def steps_of(*texts: str, worker: str = "") -> list[tuple[int, str, str]]:
    """Return step, source and last line of the response of each example."""
    lines = "".join(texts).splitlines(keepends=True)
    data = "".join(worker + line for line in lines).encode()
    return [(each.step, each.source, each.response.splitlines()[-1]) for each in read(data)]


def read(data: bytes) -> list[Rollout]:
    """Return the examples of an output, which arrives in small pieces."""
    reader = ExampleReader()
    reader.read(data[start : start + 7] for start in range(0, len(data), 7))
    return reader.rollouts


def test_example_has_all_fields() -> None:
    """Prompt, reward and response are read; the tracker's line has the step."""
    [found] = read((example("x") + f"{HEADER}Step 4: \n{{'a': '1'}}\n").encode())

    assert (found.step, found.reward, found.source) == (4, 0.25, "printed")
    assert [(each.role, each.content) for each in found.prompt_messages] == [("system", "s"), ("user", "q x\nmore")]
    assert found.response == "think\n\n#### x"


@pytest.mark.parametrize(
    "worker", ["", "\x1b[36m(skyrl_entrypoint pid=191)\x1b[0m ", "(skyrl_entrypoint pid=1, ip=1.2.3.4) "]
)
def test_steps_and_evaluations(worker: str) -> None:
    """The console tracker's lines have the steps, and evaluations are marked, with Ray's prefix and without."""
    evaluation = [f"{HEADER}Started: 'eval'\n", example("e"), f"{HEADER}Finished: 'eval', time cost: 1.00s\n"]
    log = [f"{HEADER}Step {{}}: \n{{{{'a': '1'}}}}\n".format(step) for step in range(4)]

    found = steps_of(*evaluation, log[0], example(1), log[1], example(2), *evaluation, log[2], worker=worker)

    assert found[:3] == [(0, "printed/eval", "#### e"), (1, "printed", "#### 1"), (2, "printed", "#### 2")]
    assert found[3:] == [(2, "printed/eval", "#### e")]


def test_progress_bar_without_steps() -> None:
    """With another tracker, the progress bar has the steps, also after a resumed attempt."""

    def bar(step: int) -> str:
        return f"Training Batches Processed:  12%|#         | {step}/60 [00:10<01:00, 1.0s/it]\r"

    found = steps_of(bar(0), example("1"), bar(1), bar(1), example("2"), bar(2), example("3"), bar(3))
    assert [step for step, _, _ in found] == [1, 2, 3]
    resumed = steps_of(bar(0), example("1"), bar(1), example("2"), bar(2), bar(1), example("again"), bar(2))
    assert resumed == [(1, "printed", "#### 1"), (2, "printed", "#### again")]
    assert [step for step, _, _ in steps_of(bar(7), example("8"))] == [8]


def test_resumed_attempt_replaces_steps() -> None:
    """Steps that are trained again have the example of the later attempt."""
    log = [f"{HEADER}Step {step}: \n" for step in range(5)]
    found = steps_of(*(example(step) + log[step] for step in (1, 2, 3)), example("again") + log[2])
    assert found == [(1, "printed", "#### 1"), (2, "printed", "#### again")]


def test_fully_asynchronous_training() -> None:
    """Its examples have neither a prompt nor a reward."""
    [found] = read(f"{HEADER}Example generated: first\nsecond\n{HEADER}Step 3: \n".encode())
    assert (found.step, found.prompt, found.response, found.reward) == (3, "", "first\nsecond", None)


@pytest.mark.parametrize(
    "text",
    [
        f"{HEADER}Example:\n{HEADER}Example:\n  Output (Total Reward: 1.0000):\n",
        f"{HEADER}Example:\n  Input: x\n",
        "  Output (Total Reward: 1.0000):\nx\n",
        f"{HEADER}Step 99999999999999999999: \n",
        "(" * 100_000,
        "\x1b[" * 100_000,
        "Training Batches Processed: " * 10_000,
    ],
)
def test_other_output(text: str) -> None:
    """Parts of an example are none."""
    assert read(text.encode()) == []


def test_prompt_that_is_no_literal() -> None:
    """A prompt that cannot be parsed is a text, and a large response is cut."""
    text = (
        f"{HEADER}Example:\n  Input: [{{'role': {'(' * 5000}\n  Output (Total Reward: N/A):\n\xff{'y' * 10_000_000}\n"
    )
    reader = ExampleReader()
    reader.read([text.encode("latin-1")])
    [found] = reader.rollouts
    assert found.prompt.startswith("[{'role': (((")
    assert found.reward is None
    assert found.response.startswith("\ufffdyyy")
    assert found.truncated
