"""Tests that every code block is executed or marked, and the execution of those for shells."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from skyrl_modal import Launcher
from tests.docs.page_blocks import LANGUAGES, PAGES, ROOT, Block, blocks_of

#: The ids that the pages show as examples. The tests replace them by that of a run.
EXAMPLE_RUN = re.compile(r"\b\d{8}-\d{6}-[0-9a-f]{6}\b|\bRUN_ID\b")
#: A script of SkyRL in short: it passes its arguments on to a trainer.
SCRIPT = 'exec python3 -m skyrl.train.entrypoints.main_base trainer.ckpt_path="$HOME/ckpts" "$@"\n'
#: A trainer in short: it logs two steps.
TRAINER = """
import pathlib, sys
from skyrl_modal import log_metrics

for step in (1, 2):
    log_metrics({"reward/avg_raw_reward": step / 2, "policy/final_loss": 1 / step}, step=step)
print("arguments", *sys.argv[1:])
"""
#: Fields that a configuration file and the launcher have in the same form.
FIELDS = ("timeout", "env", "secrets")
#: What runs of the pages have where an option does not state it.
USER_FILE = 'backend = "local"\nray = false\ngpu = "none"\n'


def executed_blocks(page: Path) -> list[Block]:
    """Return the blocks for a shell of a page that are not marked."""
    return [block for block in blocks_of(page, "bash") if block.reason is None]


def test_every_block_is_executed_or_marked() -> None:
    """Each block has a language, which states what the tests do with it, and each mark has a reason."""
    count = 0
    for page in PAGES:
        for block in blocks_of(page):
            if not block.language.startswith("{"):
                assert block.language in LANGUAGES, f"{page.name}:{block.line}: {block.language!r}"
                assert block.reason is None or block.language == "bash", (
                    f"{page.name}:{block.line}: is not executed anyway"
                )
                assert block.reason is None or len(block.reason) > 10, f"{page.name}:{block.line}: has no reason"
                count += 1
        marks = len(re.findall(r"^<!-- not executed", page.read_text(encoding="utf-8"), re.MULTILINE))
        assert marks == sum(block.reason is not None for block in blocks_of(page)), (
            f"{page.name}: a mark without a block"
        )
    assert count > 80


def test_console_blocks_are_transcripts() -> None:
    """Each transcript has a prompt, by which the copy button recognizes the commands."""
    for page in PAGES:
        for block in blocks_of(page, "console"):
            assert block.text.startswith("$ "), f"{page.name}:{block.line}"
        for block in blocks_of(page, "bash"):
            assert not block.text.startswith("$ "), f"{page.name}:{block.line}: the language of a transcript is console"


def test_json_and_toml_blocks_are_valid() -> None:
    """Blocks of JSON and TOML can be parsed."""
    for page in PAGES:
        for block in blocks_of(page, "json"):
            assert json.loads(block.text)
        for block in blocks_of(page, "toml"):
            assert tomllib.loads(block.text)


@pytest.mark.parametrize(
    "block",
    [
        block
        for page in PAGES
        for block in blocks_of(page, "toml")
        if re.match(r"# (skyrl-modal|config)\.toml", block.text)
    ],
    ids=lambda block: f"{block.page.name}:{block.line}",
)
def test_configuration_files_on_pages_are_accepted(
    block: Block, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each configuration file on a page sets what it shows."""
    folder = checkout.parent / "config"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))
    monkeypatch.chdir(checkout)
    is_user_file = block.text.startswith("# config.toml")
    file = folder / "skyrl_modal" / "config.toml" if is_user_file else checkout / "skyrl-modal.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(block.text)

    launcher = Launcher.from_config(backend="local")

    values = {name: value for name, value in tomllib.loads(block.text).items() if name in FIELDS}
    for name, value in values.items():
        assert getattr(launcher, name) == getattr(Launcher(**{name: value}), name)


@pytest.fixture
def home(tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a home folder with a configuration, a checkout with a script, and files that the pages name."""
    for name, text in {
        "SkyRL/examples/train/gsm8k/run_gsm8k.sh": SCRIPT,
        "SkyRL/skyrl/train/__init__.py": "",
        "SkyRL/skyrl/train/entrypoints/__init__.py": "",
        "SkyRL/skyrl/train/entrypoints/main_base.py": TRAINER,
        "SkyRL/train.py": TRAINER,
        "SkyRL/skyrl-gym/tests/test_environment.py": "def test_environment():\n    pass\n",
        "SkyRL/gsm8k/README.md": "a dataset\n",
        "SkyRL/dataset/train.jsonl": "{}\n",
        "config/skyrl_modal/config.toml": USER_FILE,
        "data/skyrl_modal/volumes/skyrl-data/ckpts/global_step_10/data.pt": "",
        "data/skyrl_modal/volumes/skyrl-data/ppo/metrics.jsonl": '{"step": 1, "reward": 0.5}\n',
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for name in ("CONFIG", "DATA", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for name in ("WANDB_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, "not-a-real-key")
    return tmp_path


def script_of(page: Path, run_id: str) -> str:
    """Return the blocks of a page as a program that ends at the first command with an unexpected exit code."""
    lines = ["set -eo pipefail"]
    for block in executed_blocks(page):
        for line in EXAMPLE_RUN.sub(run_id, block.text).splitlines():
            code = re.search(r"# exits with (\d+)$", line)
            lines.append(f"( {line.split('  #')[0]} ) || test $? = {code[1]}" if code else line)
    return "\n".join(lines) + "\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if executed_blocks(page) and page.name != "getting-started.md"],
    ids=lambda page: page.name,
)
def test_shell_blocks_of_a_page_run_in_order(page: Path, home: Path) -> None:
    """The blocks for a shell of a page run one after the other in a checkout in which a run was made before."""
    checkout = home / "SkyRL"
    first = ["skyrl-modal", "submit", "--name", "earlier", "bash examples/train/gsm8k/run_gsm8k.sh"]
    run_id = subprocess.run(first, cwd=checkout, check=True, capture_output=True, text=True).stdout.strip()
    subprocess.run(["skyrl-modal", "wait", run_id], cwd=checkout, check=True, capture_output=True)

    done = subprocess.run(
        ["bash", "-xc", script_of(page, run_id)],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_first_five_minutes(home: Path) -> None:
    """The commands of the first page run one after the other, from a clone of the repository, with Ray."""
    (home / "config" / "skyrl_modal" / "config.toml").unlink()
    page = ROOT / "docs" / "getting-started.md"

    done = subprocess.run(
        ["bash", "-xc", script_of(page, "")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^both:  mean reward 0\.0\d+ -> 0\.9\d+$", done.stdout, re.MULTILINE)
    assert done.stdout.count("reward/avg_raw_reward  (step 60:") == 2  # the plots of both runs
    assert len(list((home / "skyrl-results").glob("*/checkpoints/ckpts/global_step_60/policy"))) == 1
    assert (home / "skyrl-results" / "global_step_60" / "policy").is_dir()
    assert re.search(
        r"^\S+ +faster +succeeded +0 ",
        subprocess.run(["skyrl-modal", "ps"], check=True, capture_output=True, text=True).stdout,
        re.MULTILINE,
    )
    assert "stopped with exit code 130" in done.stdout
