"""Files with rollouts are read whatever they contain, with limited memory."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Iterator

import pytest

from skyrl_modal.formats.chat_text import Message, split_chat
from skyrl_modal.formats.rollout import MAX_TEXT, Rollout, make_rollout
from skyrl_modal.formats.rollout_files import (
    MAX_LINE_BYTES,
    LineReader,
    find_eval,
    read_eval,
    read_other,
    read_recorded,
)
from skyrl_modal.formats.rollout_selection import RolloutSelection

#: A conversation of three turns in the templates of Qwen, Llama 3, Gemma and DeepSeek.
TEMPLATES = [
    "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n",
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe short.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n1+1?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n2<|eot_id|>",
    "<|system|>\nBe short.<|user|>\n1+1?<|assistant|>\n2",
]
CONVERSATION = (Message("system", "Be short."), Message("user", "1+1?"), Message("assistant", "2"))


@pytest.mark.parametrize("text", TEMPLATES)
def test_templates_become_messages(text: str) -> None:
    """A text with the marks of a template is divided into messages."""
    assert split_chat(text, "user") == CONVERSATION


def test_other_templates() -> None:
    """Gemma, DeepSeek and Mistral have no system role, and other names."""
    expected = (Message("user", "1+1?"), Message("assistant", "2"))
    assert split_chat("<bos><start_of_turn>user\n1+1?<end_of_turn>\n<start_of_turn>model\n2", "user") == expected
    assert (
        split_chat("<\uff5cUser\uff5c>1+1?<\uff5cAssistant\uff5c>2<\uff5cend\u2581of\u2581sentence\uff5c>", "")
        == expected
    )
    assert split_chat("<s>[INST] 1+1?[/INST] 2</s>", "user") == expected


def eval_line(**fields: object) -> bytes:
    """Return a line of a dumped evaluation."""
    row = {"input_prompt": TEMPLATES[0][:-13], "output_response": "2<|im_end|>", "score": 1.0, "stop_reason": "stop"}
    return json.dumps({**row, "env_class": "gsm8k", "env_extras": {}, "data_source": "gsm8k", **fields}).encode()


def test_dumped_evaluation() -> None:
    """A row of SkyRL's file has all fields; rewards for each token are added."""
    rollout = read_eval(eval_line(score=[0.0, 0.25, 0.5]), 20, "eval/gsm8k")

    assert rollout is not None
    assert (rollout.step, rollout.reward, rollout.stop_reason, rollout.source) == (20, 0.75, "stop", "eval/gsm8k")
    assert rollout.prompt_messages == CONVERSATION[:2]
    assert rollout.response_messages == CONVERSATION[2:]
    assert rollout.response == "2<|im_end|>"
    same, other = read_eval(eval_line(), 20, "a"), read_eval(eval_line(input_prompt="x"), 20, "a")
    assert same is not None
    assert other is not None
    assert same.group == rollout.group != other.group


def test_paths_of_evaluations() -> None:
    """Only the files with rollouts of one data source are taken."""
    assert find_eval("a/dumped_evals/global_step_3_evals/openai_gsm8k.jsonl") == (3, "eval/openai_gsm8k")
    assert find_eval("eval_only/unknown.jsonl") == (0, "eval/unknown")
    for name in ("global_step_3_evals/aggregated_results.jsonl", "global_step_x_evals/a.jsonl", "a.jsonl", ""):
        assert find_eval(name) is None


@pytest.mark.parametrize(
    ("fields", "reward"),
    [
        ({"score": float("nan")}, math.nan),
        ({"score": float("inf")}, math.inf),
        ({"score": "1"}, None),
        ({"score": None}, None),
        ({"score": [1, "x"]}, None),
        ({"score": []}, None),
        ({"score": 10**400}, None),
        ({"score": {"a": 1}}, None),
        ({"score": True}, 1.0),
        ({"stop_reason": ["x"], "score": 0}, 0.0),
    ],
)
def test_wrong_types_of_rewards(fields: dict[str, object], reward: float | None) -> None:
    """A reward that is no number is not known; the rollout remains."""
    rollout = read_eval(eval_line(**fields), 1, "eval/a")

    assert rollout is not None
    assert rollout.reward == reward or (reward != reward and rollout.reward != rollout.reward)
    json.dumps(rollout.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"[]", b"null", b"{", b"\xff\xfe", b'{"output_response": 3}', b'{"input_prompt": "x"}', b"[" * 200_000),
        *(b'{"output_response": "a", "input_prompt": 7}', b'{"step": 1e999, "response": {}}', b"9" * 9999),
    ],
)
def test_lines_that_are_no_rollout(line: bytes) -> None:
    """They are skipped by each reader."""
    assert read_eval(line, 1, "eval/a") is None
    assert read_recorded(line) is None
    assert read_other(line, 0) is None


def test_invalid_characters_are_replaced() -> None:
    """Bytes that are not UTF-8, and halves of surrogate pairs, do not reach the texts."""
    line = eval_line(stop_reason="\ud800").replace(b"gsm8k", b"\xff").replace(b'"2<', b'"\\udfff\xc3<')
    rollout = read_eval(line, 1, "eval/a")

    assert rollout is not None
    assert rollout.response == "?\ufffd<|im_end|>"
    assert rollout.stop_reason == "?"
    f"{rollout}".encode()


def test_long_texts_are_cut_in_the_middle() -> None:
    """Of a line of 10 MB the beginning and the end are kept."""
    rollout = read_eval(eval_line(output_response="a" * 5_000_000 + "b" * 5_000_000), 1, "eval/a")

    assert rollout is not None
    assert rollout.truncated
    assert len(rollout.response) < MAX_TEXT + 100
    assert (rollout.response[0], rollout.response[-1]) == ("a", "b")
    assert "9,737,856 characters are left out" in rollout.response


def test_lines_of_pieces() -> None:
    """Lines are the same however the file is divided; a line that is too long is counted, with little memory."""
    text = b"one\n\ntwo\n  \nthree"
    for size in range(1, len(text) + 1):
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        assert list(LineReader().lines(pieces)) == [b"one", b"two", b"three"]

    def long_file() -> Iterator[bytes]:
        for _ in range(2 * MAX_LINE_BYTES >> 20):
            yield b"x" * (1 << 20)
        yield b"\nshort\n"

    reader = LineReader()
    tracemalloc.start()
    assert list(reader.lines(long_file())) == [b"short"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reader.skipped == 1
    assert peak < 2 * MAX_LINE_BYTES


def test_multi_turn_response_of_pieces() -> None:
    """What the environment answered is divided by its template, or has the role of the pieces."""
    pieces = [
        {"role": "assistant", "content": "<search>x</search><|im_end|>"},
        {"role": "environment", "content": "\n<|im_start|>user\nfound<|im_end|>\n<|im_start|>assistant\n"},
        {"role": "assistant", "content": "done<|im_end|>"},
    ]
    line = json.dumps({"step": 2, "source": "train", "group": "u", "prompt": "p", "response": pieces, "reward": 1})
    rollout = read_recorded(line.encode())

    assert rollout is not None
    assert [(each.role, each.content) for each in rollout.response_messages] == [
        ("assistant", "<search>x</search>"),
        ("user", "found"),
        ("assistant", "done"),
    ]
    plain = make_rollout(
        step=1,
        prompt=[{"role": "user", "content": [{"type": "text", "text": "see"}, {"type": "image_url"}]}],
        response=[{"role": "assistant", "content": "a"}, {"role": "environment", "content": "b"}],
        reward=None,
        stop_reason=None,
        source="train",
        group=None,
    )
    assert plain is not None
    assert plain.response == "[assistant]\na\n[environment]\nb"
    assert plain.prompt == "see[no text]"
    assert f"{plain}" == "step 1  reward not known  train\n[user]\nsee[no text]\n[assistant]\na\n[environment]\nb"


def test_files_of_other_programs() -> None:
    """Common names of fields, conversations and the files of tinker_cookbook are understood."""
    simple = read_other(b'{"global_step": 3, "question": "q", "completion": "a", "score": 0.5, "uid": 7}', 9)
    assert simple is not None
    assert (simple.step, simple.prompt, simple.response, simple.reward, simple.group) == (3, "q", "a", 0.5, "7")
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "tool", "content": "t"}]
    stored = read_other(json.dumps({"idx": 1, "example_id": "e", "turns": turns, "reward": 1.0}).encode(), 4)
    assert stored is not None
    assert (stored.step, stored.group) == (4, "e")
    assert stored.prompt == "q"
    assert [each.role for each in stored.response_messages] == ["assistant", "tool"]
    summary = {"split": "train", "iteration": 5, "group_idx": 2, "traj_idx": 0, "total_reward": 0.25}
    found = read_other(json.dumps({**summary, "steps": [{"logs": {"problem": "p", "n": 1}}]}).encode(), 0)
    assert found is not None
    assert (found.step, found.group, found.reward, found.response) == (5, "train-2", 0.25, "problem: p")


def rollouts(*rewards: float | None) -> list[Rollout]:
    """Return rollouts with these rewards."""
    return [Rollout(step=1, prompt="p", response=f"{number}", reward=each) for number, each in enumerate(rewards)]


def test_best_and_worst() -> None:
    """The extremes are sorted from the outside; what has no reward is none of them, and nothing is returned twice."""
    given = rollouts(1.0, math.nan, None, 3.0, 2.0, 3.0, -math.inf)

    def select(**arguments: int) -> list[str]:
        selection = RolloutSelection(**arguments)
        for each in given:
            selection.add(each)
        return [each.response for each in selection.result()]

    assert select(best=3) == ["3", "5", "4"]
    assert select(worst=2) == ["6", "0"]
    assert select(best=4, worst=2) == ["3", "5", "4", "0", "6"]
    assert select(best=0) == []
    assert select(step=2) == []
    assert len(select()) == 7


def test_groups_are_together() -> None:
    """Members of a group follow one another; steps and sources are sorted."""
    selection = RolloutSelection()
    for step, source, group in [(2, "train", "a"), (1, "train", "a"), (1, "train", "b"), (1, "eval/x", "c")]:
        for _ in range(2):
            selection.add(Rollout(step=step, prompt="p", response="r", source=source, group=group))
    selection.add(Rollout(step=1, prompt="p", response="last", group="a"))

    found = [(each.step, each.source, each.group) for each in selection.result()]
    assert (
        found == [(1, "eval/x", "c")] * 2 + [(1, "train", "a")] * 3 + [(1, "train", "b")] * 2 + [(2, "train", "a")] * 2
    )
