"""Keys and tokens in selected files are found, whatever the names of the files."""

from __future__ import annotations

import base64
import os
import random
import re
import string
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_modal.gitfiles import result_cache, secret_patterns, secret_search
from skyrl_modal.gitfiles.secret_patterns import find_secrets, is_random
from skyrl_modal.gitfiles.secret_search import SearchResult, search_files
from skyrl_modal.mount import select
from tests.gitfiles.trees import has_warning, make

_RANDOM = random.Random("the keys of the tests")
_LETTERS = string.ascii_letters + string.digits


def key(length: int, alphabet: str = _LETTERS) -> str:
    """Return random text that looks like a key, with a digit and letters of both cases where possible."""
    while True:
        value = "".join(_RANDOM.choices(alphabet, k=length))
        if is_random(value.encode()):
            return value


#: Parts of texts with keys.
FRAGMENTS = [
    *(
        b"hf_",
        b"sk-",
        b"ghp_",
        b"AKIA",
        b"=",
        b": '",
        b'"',
        b" ",
        b"\n",
        b"\\n",
        b"API_KEY=",
        b"token: ",
        b"-",
        b"x" * 19,
    ),
    *("".join(_RANDOM.choices(_LETTERS, k=length)).encode() for length in (1, 3, 8, 17, 19, 20, 21, 34, 40)),
]
HEX = "0123456789abcdef"
BLOCK = base64.b64encode(_RANDOM.randbytes(48)).decode()
# Every key is random and was never valid.
KEYS = {
    "a private key": [
        f"-----BEGIN RSA PRIVATE KEY-----\n{BLOCK}\n",
        f"-----BEGIN PRIVATE KEY-----\r\n{BLOCK}",
        f"-----BEGIN OPENSSH PRIVATE KEY-----\n{BLOCK}",
        f"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,{BLOCK[:16]}\n\n{BLOCK}",
        f'{{"private_key": "-----BEGIN PRIVATE KEY-----\\n{BLOCK}\\n"}}',
        f"key = '-----BEGIN EC PRIVATE KEY-----'\n      '{BLOCK}'",
        f"-----BEGIN PGP PRIVATE KEY BLOCK-----\nVersion: 1\n\n{BLOCK}",
        "PuTTY-User-Key-File-3: ssh-ed25519",
    ],
    "an AWS access key": [f"AKIA{key(16, 'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567')}"],
    "an AWS secret key": [
        f"aws_secret_access_key = {key(40, _LETTERS + '/+')}",
        f'AWS_SECRET_ACCESS_KEY="{key(40, _LETTERS + "/+")}"',
    ],
    "a GitHub token": [f"ghp_{key(36)}", f"gho_{key(36)}", f"ghs_{key(36)}", f"github_pat_{key(22)}_{key(59)}"],
    "a GitLab token": [f"glpat-{key(20)}", f"glrt-{key(20)}"],
    "a Hugging Face token": [f"hf_{key(34)}", f"login(token='hf_{key(34)}')", f"HF_TOKEN=hf_{key(34)} python train.py"],
    "a Weights & Biases key": [
        f"export WANDB_API_KEY={key(40, HEX)}",
        f'wandb.login(key="{key(40, HEX)}")',
        f"machine api.wandb.ai\n  login user\n  password {key(40, HEX)}",
        f"os.environ['WANDB_API_KEY'] = '{key(40, HEX)}'",
        f"wandb_v1_{key(50)}",
    ],
    "an OpenAI or Anthropic key": [f"sk-proj-{key(48)}", f"sk-ant-api03-{key(80)}", f"OPENAI_API_KEY: sk-{key(48)}"],
    "a Google key": [f"AIza{key(35)}", f"GOCSPX-{key(28)}"],
    "a Slack token": [f"xoxb-{key(12, string.digits + 'ab')}-{key(24)}"],
    "a Modal token": [f"ak-{key(22)}", f"as-{key(22)}"],
    "an npm token": [f"npm_{key(36)}", f"//registry.example.com/:_authToken={key(30)}"],
    "a PyPI token": [f"pypi-AgEIcHlwaS5vcmc{key(60)}"],
    "a Stripe key": [f"sk_live_{key(24)}"],
    "a key of a model service": [f"gsk_{key(52)}", f"nvapi-{key(60)}"],
    "a URL with a password": [f"postgres://user:{key(16)}@db.example.com/x"],
    "a value that looks like a key": [
        f"export MY_SERVICE_API_KEY={key(32)}",
        f'API_KEY = "{key(24)}"',
        f"api_key: {key(32)}",
        f'os.environ["TAVILY_API_KEY"] = "{key(28)}"',
        f'os.environ.setdefault("SERPER_API_KEY", "{key(40, HEX)}")',
        f"++trainer.judge.api_key={key(32)}",
        f"curl -H 'Authorization-Token: Bearer {key(40)}'",
        f"python main.py --api-key {key(32)}",
        f"DB_PASSWORD='{key(24)}'",
    ],
}
HARMLESS = [
    "export WANDB_API_KEY=<your_key_here>",
    "export HF_TOKEN=hf_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "OPENAI_API_KEY=sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    'api_key = os.environ["OPENAI_API_KEY"]',
    "export ANTHROPIC_API_KEY=$ANTHROPIC_API_KEY",
    "tokenizer, qwen3_enable_thinking=self.qwen3_enable_thinking, qwen3_acc_thinking=True",
    "aws_access_key_id = AKIAIOSFODNN7EXAMPLE\naws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "-----BEGIN CERTIFICATE-----\nMIIBszCCAVmgAwIBAgIUQX2hVn8=",
    "-----BEGIN PUBLIC KEY-----\nMIIBszCCAVmgAwIBAgIUQX2hVn8=",
    "if '-----BEGIN RSA PRIVATE KEY-----' in text: raise ValueError",
    f'hash = "sha256:{key(64, HEX)}"',
    f"commit = {key(40, HEX)}",
    f"record.py,sha256=ak-{key(40)},1234",
    "sk-toggleable__content-estimator-doc-link-2024-fitted-label-arrow",
    "git clone https://user:password@example.com/repository",
    "postgres://user:${PASSWORD_OF_DATABASE}@db/x",
    "max_tokens_per_microbatch_v2_2048: per_device_train_batch_size_16",
    "('gss_krb5_cfx_keydata', 'gss_krb5_lucid_context_v1')",
    "class PBKDF2SHA1PasswordHasher(PBKDF2PasswordHasher): ...",
    "secret_name: my-app-secret-2024-production-eu",
    "password = 'correcthorsebatterystaple99'",
    "API_KEY=0123456789abcdef0123456789abcdef",
]


@pytest.mark.parametrize(
    ("kind", "text"), [(kind, text) for kind, texts in KEYS.items() for text in texts], ids=lambda value: value[:30]
)
def test_keys_are_found(kind: str, text: str) -> None:
    """Each format of a key is found between other lines, with its kind and its line."""
    content = f"#!/bin/bash\nset -e\n{text}\npython train.py\n".encode()
    found = list(find_secrets(content))
    assert kind in [name for _, name in found]
    assert all(content.count(b"\n", 0, offset) >= 2 for offset, _ in found)


@pytest.mark.parametrize("text", HARMLESS, ids=lambda text: text[:30])
def test_harmless_text_is_not_reported(text: str) -> None:
    """Placeholders, names of variables, digests and public certificates are no keys."""
    assert list(find_secrets(text.encode())) == []


NAMES = ["run.sh", "config/train.yaml", "notes", "main.py", "README.md", "examples/a.ipynb", ".env.example"]


@pytest.mark.parametrize("name", NAMES)
def test_file_and_line_are_reported(tmp_path: Path, no_settings: Path, name: str) -> None:
    """A key in a file with a harmless name causes a warning with file and line, without the value."""
    secret = "hf_" + key(34)
    selection = select(make(tmp_path / "r", {name: f"echo\n\nexport HF_TOKEN={secret}\n", "other.py": "x = 1\n"}))
    assert has_warning(selection, f"{name}:3 contains a Hugging Face token", f'exclude=["/{name}"]')
    assert secret not in str(selection)
    assert secret not in repr(selection._secret_search)


@pytest.mark.parametrize("problem", ["binary", "large", "link", "fifo", "device", "removed", "unreadable"])
def test_other_files_are_not_searched(tmp_path: Path, no_settings: Path, problem: str) -> None:
    """Binary and large files are not searched; links, pipes and devices are not opened."""
    text = f"HF_TOKEN=hf_{key(34)}\n"
    root = make(tmp_path / "r", {"a.py": "x = 1\n", "b.txt": text})
    path = root / "b.txt"
    files = ["a.py", "b.txt"]
    status = [os.lstat(root / name) for name in files]
    if problem == "binary":
        path.write_bytes(b"\0" + text.encode())
    elif problem == "large":
        path.write_text(text + "#" * (1 << 20))
        status[1] = os.lstat(path)
    else:
        # Another program replaces the file after the selection.
        path.unlink()
        if problem == "link":
            (tmp_path / "elsewhere").write_text(text)
            path.symlink_to(tmp_path / "elsewhere")
        elif problem == "fifo":
            os.mkfifo(path)
        elif problem == "device":
            path.symlink_to("/dev/zero")
        elif problem == "unreadable":
            path.mkdir()
    assert search_files(root, files, status).found == ()


def search(root: Path, cache: Path, **options: float) -> SearchResult:
    """Search all files of a folder."""
    files = select(root).files
    return search_files(root, files, [os.lstat(root / name) for name in files], cache, **options)


def searched_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that receives the paths of the files that are searched."""
    searched: list[str] = []
    original = secret_search._search_file
    monkeypatch.setattr(
        secret_search, "_search_file", lambda root, path: (searched.append(path), original(root, path))[1]
    )
    return searched


@pytest.fixture
def old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_settings: Path) -> Path:
    """A folder whose files count as not recently changed."""
    monkeypatch.setattr(result_cache, "SETTLING_NS", -1_000_000_000)
    return make(tmp_path / "r", {"a.py": "x = 'aaaaaaaaaaaaa'\n", "b.sh": f"export HF_TOKEN=hf_{key(34)}\n"})


def test_unchanged_files_are_not_searched_again(
    tmp_path: Path, old_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file without keys is searched once until it changes; a file with keys is always reported."""
    cache = tmp_path / "cache" / "searches"
    searched = searched_files(monkeypatch)
    results = [search(old_files, cache) for _ in range(2)]
    assert [[secret.path for secret in result.found] for result in results] == [["b.sh"], ["b.sh"]]
    assert searched == ["a.py", "b.sh", "b.sh"]
    assert (cache.stat().st_mode & 0o777, [path.stat().st_mode & 0o777 for path in cache.iterdir()]) == (0o700, [0o600])
    (old_files / "a.py").write_text(f"HF_TOKEN = 'hf_{key(34)}'\n")
    assert [secret.path for secret in search(old_files, cache).found] == ["a.py", "b.sh"]


def test_recent_files_are_searched_again(tmp_path: Path, no_settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that changed shortly before the search is searched again: its times may not show a further change."""
    root = make(tmp_path / "r", {"a.py": "x = 'aaaaaaaaaaaaa'\n"})
    searched = searched_files(monkeypatch)
    for _ in range(2):
        search(root, tmp_path / "cache")
    assert searched == ["a.py", "a.py"]


@pytest.mark.parametrize("damage", ["empty", "other", "truncated", "link", "fifo", "folder", "file", "read only"])
def test_damaged_cache_is_ignored(tmp_path: Path, old_files: Path, damage: str) -> None:
    """A damaged cache, or one that cannot be written, does not change what is found."""
    cache = tmp_path / "cache"
    search(old_files, cache)
    [path] = cache.iterdir()
    content = path.read_bytes()
    path.unlink()
    if damage == "empty":
        path.touch()
    elif damage == "other":
        path.write_bytes(b"\xff" * 100)
    elif damage == "truncated":
        path.write_bytes(content[:-3])
    elif damage == "link":
        path.symlink_to("/dev/zero")
    elif damage == "fifo":
        os.mkfifo(path)
    elif damage == "folder":
        path.mkdir()
    elif damage == "file":
        cache.rmdir()
        cache.touch()
    else:
        cache.chmod(0o500)
    assert [secret.path for secret in search(old_files, cache).found] == ["b.sh"]


def test_time_limit_is_noted(tmp_path: Path, no_settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the time limit the search ends, and a note has the number of files that were not searched."""
    root = make(tmp_path / "r", {f"{number}.py": "x = 'aaaaaaaaaaaaa'\n" for number in range(5)})
    assert search(root, tmp_path / "cache", cpu_seconds=-1).unsearched == 5
    assert select(root).notes == ()
    monkeypatch.setattr(secret_search, "SEARCH_TIMEOUT_SECONDS", -1)
    selection = select(root)
    assert selection.notes == (f"5 files of {root} were not searched for keys within the time limit",)
    assert selection.warnings == ()


def test_many_findings_are_counted(tmp_path: Path, no_settings: Path) -> None:
    """Of many files with keys the first twenty are named, and of many lines of a file the first one."""
    line = f"HF_TOKEN=hf_{key(34)}\n"
    selection = select(make(tmp_path / "r", {f"{number:02}.sh": line * 3 for number in range(25)}))
    assert has_warning(selection, "00.sh:1", "(and 2 more lines)")
    assert has_warning(selection, "5 more files contain keys")
    assert len(selection.warnings) == 21


@given(st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=25), max_size=12))
def test_candidates_are_all_long_runs(parts: list[bytes]) -> None:
    """The search for the shortest candidate finds the same keys as a regular expression for all of them."""
    text = b"".join(parts)
    expected = list(find_secrets(text))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            secret_patterns,
            "_candidates",
            lambda text: [(match.start(), match[0]) for match in re.finditer(rb"[A-Za-z0-9_-]{20,}", text)],
        )
        assert list(find_secrets(text)) == expected


WORST = {
    "words": b"aB3xY7kQ9mZ2pL5tR8wN1c " * 45_000,
    "letters": b"a" * (1 << 20),
    "headers": b"-----BEGIN RSA PRIVATE KEY-----" * 30_000,
    "escapes": (b"-----BEGIN PRIVATE KEY-----" + b"\\n" * 100) * 4_000,
    "values": b"API_KEY=aB3xY7kQ9mZ2pL5tR8wN1c " * 30_000,
    "names": b"token" * 200_000,
    "urls": b"://user:" * 130_000,
    "aws": b"aws_secret_access_key=" * 45_000,
    "wandb": b"wandb key 0123456789abcdef0123456789abcdef01234567 " * 20_000,
    "underscores": b"_" * (1 << 20),
    "Proc-Type": b"-----BEGIN PRIVATE KEY-----\nProc-Type:" + b"Proc-Type: \n" * 80_000,
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", WORST)
def test_search_time_is_linear(name: str) -> None:
    """Text that was made to be slow to search is searched in seconds: a few microseconds for each word."""
    list(find_secrets(WORST[name]))


def test_sources_of_this_package_contain_no_keys() -> None:
    """No file of this repository, in which examples and tests use secrets, is reported."""
    root = Path(__file__).resolve().parents[2]
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("git lists no files here")
    files = [name for name in listed.stdout.split("\0") if name and (root / name).is_file()]
    files.remove("tests/gitfiles/test_secret_search.py")
    result = search_files(root, files, [os.lstat(root / name) for name in files], cpu_seconds=60)
    assert [str(secret) for secret in result.found] == []
