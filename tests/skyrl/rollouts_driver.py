"""A program for SkyRL's real trainer, generator and environment, with an engine and a tokenizer without a model.

It is executed with the packages of SkyRL, in a folder with ``skyrl/`` and ``skyrl-gym/``. It prints what the trainer
has returned, and the CPU time of a large step without and with the hook: medians of five.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import typing

import typing_extensions

if sys.version_info < (3, 12):  # pydantic refuses the other one, which SkyRL's modules import
    typing.TypedDict = typing_extensions.TypedDict
sys.path[:0] = [os.getcwd(), os.path.join(os.getcwd(), "skyrl-gym")]

from skyrl.train.config import SkyRLTrainConfig  # noqa: E402  # found by what is above
from skyrl.train.generators.skyrl_gym_generator import SkyRLGymGenerator  # noqa: E402
from skyrl.train.generators.utils import prepare_generator_input  # noqa: E402
from skyrl.train.trainer import RayPPOTrainer  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={name: number for number, name in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    fast.chat_template = TEMPLATE
    return fast


class Engine:
    """Answers wrong at first, and right when it is asked again; each second trajectory remains wrong."""

    model_name = "none"

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer

    async def generate(self, input_batch: dict, model: str | None = None) -> dict:
        """Return a response to each prompt."""
        texts = []
        for session, tokens in zip(input_batch["session_ids"], input_batch["prompt_token_ids"], strict=True):
            turns = self._tokenizer.decode(tokens).count("<|im_start|>assistant")
            is_right = turns > 1 and str(session).endswith("0")
            texts.append(f"turn {turns}: #### {3 if is_right else 4}")
        ids = [
            [*self._tokenizer.encode(text, add_special_tokens=False), self._tokenizer.eos_token_id] for text in texts
        ]
        return {
            "responses": texts,
            "response_ids": ids,
            "stop_reasons": ["stop"] * len(ids),
            "response_logprobs": None,
        }

    async def finish_session(self, session: object) -> None:
        """Do nothing."""


class Dataset:
    """Prompts."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> str:
        return "unused"

    def collate_fn(self, batch: list) -> list:
        """Return the batch."""
        return batch


def main() -> None:
    """Train no model: generate, and pass the output to the trainer."""
    is_step_wise = sys.argv[1:] == ["step-wise"]
    config = SkyRLTrainConfig()
    config.trainer.train_batch_size = config.trainer.eval_batch_size = 2
    config.trainer.resume_mode, config.trainer.epochs, config.trainer.seed = "none", 1, 1
    config.generator.n_samples_per_prompt, config.generator.batched = 2, False
    config.generator.max_turns, config.generator.max_input_length = 2, 4096
    config.generator.step_wise_trajectories = is_step_wise
    config.generator.sampling_params.logprobs = None
    config.trainer.enable_ray_gpu_monitor = config.generator.inference_engine.enable_ray_prometheus_stats = False
    tokenizer = make_tokenizer()
    generator = SkyRLGymGenerator(config.generator, config.environment.skyrl_gym, Engine(tokenizer), tokenizer)
    trainer = RayPPOTrainer(
        cfg=config,
        tracker=None,
        tokenizer=tokenizer,
        train_dataset=Dataset(),
        eval_dataset=None,
        inference_engine_client=None,
        generator=generator,
    )
    prompts = [
        {
            "prompt": [{"role": "user", "content": f"question {number}"}],
            "env_class": "gsm8k_multi_turn",
            "env_extras": {"reward_spec": {"ground_truth": "3"}, "extra_info": {"max_turns": 2}},
            "uid": f"uid-{number}",
        }
        for number in range(2)
    ]
    for step in (1, 2):
        trainer.global_step = step
        batch, uids = prepare_generator_input(prompts, 2, {}, "gsm8k_multi_turn", "train", step)
        output = asyncio.run(trainer.generate(batch))
        if is_step_wise:
            uids = [each.instance_id for each in output["trajectory_ids"]]
        output, uids = trainer.postprocess_generator_output(output, uids)
        rewards = [sum(each) for each in output["rewards"]]
        print("STEP", json.dumps({"step": step, "uids": uids, "rewards": rewards}), flush=True)
    print("SECONDS", json.dumps(seconds_of_large_steps(trainer, tokenizer)), flush=True)


def seconds_of_large_steps(trainer: RayPPOTrainer, tokenizer: PreTrainedTokenizerFast) -> list[float]:
    """Return the CPU time of the trainer's function for 1,024 responses of 2,000 tokens, without and with the hook."""
    trainer.cfg.generator.step_wise_trajectories = False
    prompt, response = tokenizer.encode("question " * 50), tokenizer.encode("answer " * 285)[:2000]
    wrapped = RayPPOTrainer.postprocess_generator_output
    found = []
    for function in (getattr(wrapped, "_skyrl_modal_original", wrapped), wrapped):
        times = []
        for step in range(3, 8):
            output = {
                "prompt_token_ids": [list(prompt) for _ in range(1024)],
                "response_ids": [list(response) for _ in range(1024)],
                "rewards": [float(number % 2) for number in range(1024)],
                "loss_masks": [[1] * len(response) for _ in range(1024)],
                "stop_reasons": ["stop"] * 1024,
                "rollout_metrics": None,
            }
            trainer.global_step = step
            begin = time.process_time()
            function(trainer, output, [f"uid-{number // 8}" for number in range(1024)])
            times.append(time.process_time() - begin)
        found.append(sorted(times)[2])
    return found


if __name__ == "__main__":
    main()
