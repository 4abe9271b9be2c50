"""Records the rollouts that SkyRL's trainers train on. Loaded by ``instrumentation.py``, by its path.

``RayPPOTrainer.postprocess_generator_output`` receives what the generator has returned for a step, with the ids of the
prompts, in ``train/trainer.py`` and, by inheritance, in ``train/fully_async_trainer.py`` (SkyRL 0.3 and August 2026).
"""

from __future__ import annotations

import time

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

#: Tokens of a prompt or response. Of a longer one, the first and the last half of so many are decoded.
MAX_TOKENS = 8192
#: Seconds of this thread's CPU time in a step after which no further rollouts are decoded.
MAX_SECONDS = 1.0
#: Pieces of a response: turns of the model and of its environment.
_MAX_PIECES = 100
#: The role of what the model has not generated, as in ``formats.rollout``.
_ENVIRONMENT = "environment"


class RolloutRecorder:
    """Records rollouts.

    Args:
        writer: The module ``rollout_writer``.
    """

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def read_trainer(self, trainer: Any, generator_output: Any, uids: Any, *_: Any, **__: Any) -> None:
        """Record the rollouts of a step.

        Args:
            trainer: The trainer.
            generator_output: What the generator has returned.
            uids: The ids of the prompts.
        """
        step = int(trainer.global_step)
        file = self._writer.open_file(step)
        if file is None:
            return
        trajectories = list(_trajectories(generator_output))
        groups = [str(uids[begin]) for begin, _ in trajectories]
        rewards = [_total(generator_output["rewards"][end]) for _, end in trajectories]
        chosen = self._writer.choose(groups, rewards, self._writer.samples_per_step(), step)
        decoder = _Decoder(getattr(trainer, "tokenizer", None))
        file.append(
            "train",
            step,
            self._records(decoder, generator_output, [(*trajectories[i], groups[i], rewards[i]) for i in chosen]),
        )

    def _records(
        self, decoder: _Decoder, output: Any, chosen: Sequence[tuple[int, int, str, float | None]]
    ) -> Iterator[dict[str, Any]]:
        deadline = time.thread_time() + MAX_SECONDS
        reasons = output.get("stop_reasons")
        for begin, end, group, reward in chosen:
            if time.thread_time() > deadline:
                return
            decoder.is_cut = False
            prompts = output["prompt_token_ids"]
            response = list(decoder.turns(output, begin, end))
            yield {
                "prompt": decoder.decode(prompts[begin]),
                "response": response[0]["content"] if len(response) == 1 else response,
                "reward": reward,
                "group": group,
                "stop_reason": reasons[end] if reasons else None,
                "cut": decoder.is_cut,
            }


def _trajectories(output: Any) -> Iterator[tuple[int, int]]:
    """Yield the first and the last position of each trajectory. With step-wise training, each turn has a position."""
    ends = output.get("is_last_step")
    begin = 0
    for position in range(len(output["response_ids"])):
        if not ends or ends[position]:
            yield begin, position
            begin = position + 1


def _total(reward: Any) -> float | None:
    """Return the reward of a response, which may be a list with one for each token."""
    try:
        return float(sum(reward)) if hasattr(reward, "__len__") else float(reward)
    except (TypeError, ValueError, OverflowError):
        return None


class _Decoder:
    """Turns tokens into texts.

    Args:
        tokenizer: The trainer's tokenizer; None for none.

    Attributes:
        is_cut: Whether tokens were left out.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.is_cut = False
        self._tokenizer = tokenizer
        self._last: tuple[Any, str] = (None, "")

    def decode(self, tokens: Any) -> str:
        """Return the text of tokens. The members of a group have the same prompt, which is decoded once."""
        self.is_cut = self.is_cut or len(tokens) > MAX_TOKENS
        if self._last[0] is None or self._last[0] != tokens:
            self._last = (tokens, "".join(piece["content"] for piece in self._pieces(list(tokens), None)))
        return self._last[1]

    def turns(self, output: Any, begin: int, end: int) -> Iterator[dict[str, str]]:
        """Yield the pieces of a trajectory: what the model has generated, and what its environment has answered."""
        prompts, responses, masks = output["prompt_token_ids"], output["response_ids"], output.get("loss_masks")
        for position in range(begin, min(end, begin + _MAX_PIECES) + 1):
            if position > begin:  # with step-wise training, the response or the next prompt contains the answer
                before, prompt = [*prompts[position - 1], *responses[position - 1]], list(prompts[position])
                answer = prompt[len(before) :] if prompt[: len(before)] == before else prompt
                if answer:
                    text = "".join(each["content"] for each in self._pieces(answer, None))
                    yield {"role": _ENVIRONMENT, "content": text}
            yield from self._pieces(list(responses[position]), masks[position] if masks else None)

    def _pieces(self, tokens: list[int], mask: Any) -> Iterator[dict[str, str]]:
        """Yield the texts of tokens: where the mask changes, another one begins.

        A mask that is zero everywhere is that of a response which is not trained on, such as one that is too long.
        """
        size, half = len(tokens), MAX_TOKENS // 2
        flags = [True] * size if mask is None or len(mask) != size else [bool(each) for each in mask]
        flags = flags if any(flags) else [True] * size
        is_long = size > MAX_TOKENS
        self.is_cut = self.is_cut or is_long
        count = 0
        for start, stop in [(0, half), (size - half, size)] if is_long else [(0, size)]:
            first = start
            while first < stop:
                last = first + 1
                count += 1
                while last < stop and (flags[last] == flags[first] or count > _MAX_PIECES):
                    last += 1
                text = self._to_text(tokens[first:last])
                if is_long and last == half:
                    text += f"\n[{size - 2 * half:,} tokens are left out]\n"
                yield {"role": "assistant" if flags[first] else _ENVIRONMENT, "content": text}
                first = last

    def _to_text(self, tokens: list[int]) -> str:
        if self._tokenizer is None:
            return f"[tokens] {' '.join(map(str, tokens))}"
        return str(self._tokenizer.decode(tokens))
