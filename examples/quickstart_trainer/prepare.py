"""Write a dataset of word problems in the row format of SkyRL's GSM8K dataset script.

Each problem describes a start number and one to three changes to it as text; only the answer in `reward_spec` depends
on the operations. The problems are generated here, so that the quickstart needs no access to a dataset hub.

    python prepare.py --output-dir /root/data/quickstart/my_run/dataset
"""

from __future__ import annotations

import argparse
import json
import os
import random
from pathlib import Path
from typing import Any

TRAIN_ROWS = 512
VALIDATION_ROWS = 128
LARGEST_RESULT = 2000

INSTRUCTION = 'Let\'s think step by step and output the final answer after "####".'
NAMES = ("Ada", "Bo", "Chen", "Dara", "Emil", "Fatou", "Goran", "Hana", "Ines", "Jun", "Kofi", "Lena")
ITEMS = ("marbles", "stamps", "apples", "shells", "pencils", "stickers", "beads", "coins", "buttons", "cards")
# Each operation has several wordings. Tokens such as "another" and "each" occur with several operations.
WORDINGS = {
    "+": (
        "Then {name} buys another {n} {items}.",
        "A neighbour brings along {n} extra {items}.",
        "{name} finds {n} more {items} under the bed.",
        "{n} {items} arrive in the mail and are added to the rest.",
        "On {name}'s birthday the total grows by {n}.",
    ),
    "-": (
        "Then {name} gives away {n} {items} to another child.",
        "{name} loses {n} {items} on the way home.",
        "{n} {items} turn out to be broken and are thrown out.",
        "{name} sells {n} of the {items} at the market.",
        "During the week the total drops by {n}.",
    ),
    "*": (
        "A year later {name} has {n} times as many {items}.",
        "{name} cuts each of the {items} into {n} pieces and counts the pieces as {items}.",
        "Another {n} friends join in, so that all in all it is decided to multiply the count by {n}.",
        "A machine turns every single one into {n} {items}.",
        "The collection becomes {n} times its size.",
    ),
    "/": (
        "{name} shares the {items} equally among {n} children, {name} being one of them.",
        "The {items} are split into {n} equal piles and {name} keeps a single pile.",
        "{name} puts the {items} in bags, each with {n} {items}, and counts the bags as {items}.",
        "Only one in every {n} {items} is kept.",
        "{name} divides the {items} by {n} and takes one part.",
    ),
}


def story(rng: random.Random) -> tuple[str, int]:
    """Generate one problem, and return its text and its answer."""
    name, items = rng.choice(NAMES), rng.choice(ITEMS)
    total = rng.randint(6, 60)
    sentences = [f"{name} has {total} {items}."]
    for _ in range(rng.randint(1, 3)):
        operands = {
            "+": range(2, 50),
            "-": range(2, total - 1),
            "*": range(2, min(9, LARGEST_RESULT // total) + 1),
            "/": [n for n in range(2, 10) if total % n == 0 and total > n],
        }
        operation = rng.choice([op for op, choices in operands.items() if choices])
        n = rng.choice(operands[operation])
        total = {"+": total + n, "-": total - n, "*": total * n, "/": total // n}[operation]
        sentences.append(rng.choice(WORDINGS[operation]).format(name=name, items=items, n=n))
    sentences.append(f"How many {items} does {name} have now?")
    return " ".join(sentences), total


def rows(count: int, split: str, seed: int) -> list[dict[str, Any]]:
    """Generate `count` rows. Equal arguments return equal rows."""
    rng = random.Random(f"{split}-{seed}")
    problems = [story(rng) for _ in range(count)]
    return [
        {
            "data_source": "skyrl_modal/quickstart",
            "prompt": [{"role": "user", "content": f"{question} {INSTRUCTION}"}],
            "env_class": "gsm8k",
            "reward_spec": {"method": "rule", "ground_truth": str(answer)},
            "extra_info": {"split": split, "index": index},
        }
        for index, (question, answer) in enumerate(problems)
    ]


def write(path: Path, content: list[dict[str, Any]]) -> None:
    """Write rows as JSON lines, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    partial.replace(path)


def main() -> None:
    """Write the training and the validation set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for split, count in (("train", TRAIN_ROWS), ("validation", VALIDATION_ROWS)):
        write(args.output_dir / f"{split}.jsonl", rows(count, split, args.seed))
        print(f"wrote {count} problems to {args.output_dir / f'{split}.jsonl'}", flush=True)


if __name__ == "__main__":
    main()
