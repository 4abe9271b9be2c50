"""Recognition of keys and tokens in text.

The formats of most services have a prefix that occurs nowhere else. A value without such a prefix counts only if the
text before it names a key, as in ``API_KEY=...``, and if it looks random. Values in examples and tests, such as
``hf_xxxx`` and ``your-api-key``, are not random and are not reported.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from math import log2

# Every format that has a prefix, with its service. Each has at least 20 characters.
_FORMATS = [
    ("a GitHub token", rb"gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,}"),
    ("a GitLab token", rb"gl(?:pat|dt|rt|cbt|ptt|ft|soat|agent)-[A-Za-z0-9_-]{20,}"),
    ("a Hugging Face token", rb"hf_[A-Za-z0-9]{30,}|api_org_[A-Za-z0-9]{30,}"),
    ("a Weights & Biases key", rb"wandb_v1_[A-Za-z0-9_]{40,}"),
    ("an OpenAI or Anthropic key", rb"sk-[A-Za-z0-9_-]{30,}"),
    ("a Google key", rb"AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])|GOCSPX-[A-Za-z0-9_-]{28}"),
    ("a Slack token", rb"xox[abeoprs]-[A-Za-z0-9-]{20,}|xapp-[A-Za-z0-9-]{30,}"),
    ("a Modal token", rb"a[ks]-[A-Za-z0-9]{20,}"),
    ("an AWS access key", rb"(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"),
    ("an npm token", rb"npm_[A-Za-z0-9]{36}"),
    ("a PyPI token", rb"pypi-[A-Za-z0-9_-]{50,}"),
    ("a Stripe key", rb"[sr]k_live_[A-Za-z0-9]{20,}"),
    (
        "a key of a model service",
        rb"gsk_[A-Za-z0-9]{40,}|nvapi-[A-Za-z0-9_-]{50,}|xai-[A-Za-z0-9]{60,}|r8_[A-Za-z0-9]{37}",
    ),
    ("a private key", rb"AGE-SECRET-KEY-1[A-Z0-9]{50,}"),
]
# A letter before the prefix can belong to an escape such as "\n".
_PREFIXED = re.compile(rb"[nrt]?(?:%s)" % b"|".join(b"(%s)" % pattern for _, pattern in _FORMATS))
#: The first three characters of the formats: a fast test that excludes most candidates.
_PREFIXES = frozenset(
    b"AGE AIz AKI ASI GOC ak- api as- gho ghp ghr ghs ghu git gla glc gld glf glp glr gls gsk hf_ npm nva pyp r8_ rk_ "
    b"sk- sk_ wan xai xap xox".split()
)
# Characters of candidates. All others separate candidates, also "=", "/" and ".".
_CANDIDATE_BYTES = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
# A run of these characters is found by a search for the shortest one, several times faster than by an expression.
_MARKED = bytes(120 if byte in _CANDIDATE_BYTES else 32 for byte in range(256))
_SHORTEST_CANDIDATE = b"x" * 20

_PRIVATE_KEY = re.compile(
    rb"-----BEGIN (?:[A-Z0-9]{1,16} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    # Line ends and quotes, also escaped, and headers of encrypted keys; then at least 16 characters of the key.
    rb"(?:[\s\"'+,#]|\\[nr]){0,64}+(?:(?:Proc-Type|DEK-Info|Version|Comment|Hash):[^\n\\]{0,200}(?:[\s\"'+,#]|\\[nr]){0,64}+){0,4}"
    rb"[A-Za-z0-9+/]{16}"
)
_PUTTY_KEY = re.compile(rb"PuTTY-User-Key-File-[23]: [a-z0-9-]{4}")
_AWS_SECRET = re.compile(
    rb"aws_?secret_?(?:access_?)?key[\"'\]]{0,3}[ \t]{0,4}[=:,][ \t]{0,4}[\"']?([A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])",
    re.I,
)
_AUTH_TOKEN = re.compile(rb":_authToken[ \t]{0,4}=[ \t]{0,4}\"?([A-Za-z0-9_./+-]{16,})")
_LOGIN_IN_URL = re.compile(rb"://[^\s/:@\"'<>${}]{1,64}:([^\s/:@\"'<>${}\\()]{8,128})@[a-zA-Z0-9]")
# The text before a value without a prefix of its own.
_KEY_NAME = re.compile(
    rb"(?:api_?-?key|access_?-?key|private_?-?key|auth_?-?key|secret|token|passw(?:or)?d|credential|login\(key|[A-Z]_KEY)"
    rb"[A-Za-z0-9_]{0,20}"
    # NAME=, "NAME": and ["NAME"] =, or "NAME", " as in setdefault(), or --name VALUE.
    rb"(?:[\"'\]]{0,3}[ \t]{0,4}(?:=|:|=>|:=)[ \t]{0,4}[bfru]?|[\"'],[ \t]{0,4}(?=[\"'])|[ \t]{1,4})"
    rb"[\"']?(?:Bearer )?\Z",
    re.I,
)
# Each name contains one of these: a fast test.
_NAME_PARTS = (b"key", b"token", b"secret", b"pass", b"credential", b"login")
_BEFORE_VALUE = frozenset(b"=:\"' ,(\t")
_WANDB_NAME = re.compile(
    rb"wandb[^\n]{0,80}(?:key|login|password)[^\n]{0,20}\Z|wandb\.ai\s[^\0]{0,80}password\s+\Z", re.I
)
_WANDB_KEY = re.compile(rb"[0-9a-f]{40}")
_CONTEXT = 120
_PLACEHOLDER = re.compile(
    rb"xxx|\*\*\*|\.\.\.|example|placeholder|change_?-?me|replace|redacted|dummy|sample|fake|insert|your[_-]|[_-]here|"
    rb"12345678|abcdef|0000000",
    re.I,
)
# Prose, or the parts of identifiers that are joined by "-" and "_", such as "per-device-train-batch-size".
_LONG_LETTERS = re.compile(rb"[a-z]{9}|[A-Z]{12}")
# Parts of identifiers in camel case or between underscores.
_LETTERS = re.compile(rb"[A-Za-z][a-z]{3,}")
_DIGEST_NAME = re.compile(rb"sha(?:1|224|256|384|512)[-=:]\Z", re.I)
_MIN_ENTROPY = 3.4
_MIN_HEX_ENTROPY = 3.0
_HEX = re.compile(rb"[0-9a-fA-F]+")


def find_secrets(text: bytes) -> Iterator[tuple[int, str]]:
    """Yield the offset and a description of each key or token in a text, sorted by offset. The value is not returned.

    Args:
        text: The content of a file.

    Example:
        >>> list(find_secrets(b"export OPENAI_API_KEY=" + b"q7Hn2vXkT9sLw4ZyB8dRc6Jm"))
        [(22, 'a value that looks like a key')]
    """
    found: dict[int, str] = {}
    if b"PRIVATE KEY" in text:
        found.update((match.start(), "a private key") for match in _PRIVATE_KEY.finditer(text))
    if b"PuTTY-User-Key-File" in text:
        found.update((match.start(), "a private key") for match in _PUTTY_KEY.finditer(text))
    if b"_authToken" in text:
        found.update((match.start(1), "an npm token") for match in _AUTH_TOKEN.finditer(text) if is_random(match[1]))
    if b"://" in text:
        for match in _LOGIN_IN_URL.finditer(text):
            if is_random(match[1]):
                found[match.start(1)] = "a URL with a password"
    if b"aws" in text or b"AWS" in text:
        found.update((m.start(1), "an AWS secret key") for m in _AWS_SECRET.finditer(text) if is_random(m[1]))
    for offset, candidate in _candidates(text):
        kind = _kind_of(text, offset, candidate)
        if kind is not None:
            found.setdefault(offset, kind)
    yield from sorted(found.items())


def _candidates(text: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the offset and the characters of the long runs of letters, digits, "_" and "-" that can be a key.

    These have a known prefix, or have a digit and follow a character such as "=". Nearly all others are identifiers.
    """
    marked = text.translate(_MARKED)
    start = marked.find(_SHORTEST_CANDIDATE)
    while start >= 0:
        end = marked.find(b" ", start + len(_SHORTEST_CANDIDATE))
        if end < 0:
            end = len(text)
        candidate = text[start:end]
        if (
            (start > 0 and text[start - 1] in _BEFORE_VALUE and candidate.translate(None, b"0123456789") != candidate)
            or candidate[:3] in _PREFIXES
            or candidate[1:4] in _PREFIXES
        ):
            yield start, candidate
        start = marked.find(_SHORTEST_CANDIDATE, end)


def _kind_of(text: bytes, offset: int, candidate: bytes) -> str | None:
    has_prefix = candidate[:3] in _PREFIXES or candidate[1:4] in _PREFIXES
    if has_prefix and (match := _PREFIXED.match(candidate)) is not None and match.lastindex is not None:
        if _DIGEST_NAME.search(text, max(0, offset - 8), offset):
            return None
        kind = _FORMATS[match.lastindex - 1][0]
        return kind if _is_valid(kind, match[match.lastindex]) else None
    if offset == 0 or text[offset - 1] not in _BEFORE_VALUE:
        return None
    before = text[max(0, offset - _CONTEXT) : offset]
    lower = before.lower()
    if not any(name in lower for name in _NAME_PARTS) or not is_random(candidate):
        return None
    if _WANDB_KEY.fullmatch(candidate) and _WANDB_NAME.search(before):
        return "a Weights & Biases key"
    line = before[before.rfind(b"\n") + 1 :]
    return "a value that looks like a key" if _KEY_NAME.search(line) else None


def _is_valid(kind: str, token: bytes) -> bool:
    """Return whether a token with a known prefix is not a placeholder."""
    if kind == "an AWS access key":
        return not token.endswith(b"EXAMPLE") and len(set(token)) >= 8
    if kind in ("an OpenAI or Anthropic key", "a Modal token"):
        # Their prefixes also occur in prose.
        return is_random(token)
    return len(set(token)) >= 12 and _PLACEHOLDER.search(token) is None


def is_random(value: bytes) -> bool:
    """Return whether a value looks like a generated key: letters and digits, without prose and repetitions."""
    digits = sum(48 <= byte <= 57 for byte in value)
    if not 0 < digits < len(value) or len(set(value)) < 8:
        return False
    is_hex = _HEX.fullmatch(value.replace(b"-", b"")) is not None
    if _PLACEHOLDER.search(value) or (not is_hex and _is_identifier(value, digits)):
        return False
    total = len(value)
    entropy = -sum(count / total * log2(count / total) for count in Counter(value).values())
    return entropy >= (_MIN_HEX_ENTROPY if is_hex else min(_MIN_ENTROPY, log2(total) - 0.6))


def _is_identifier(value: bytes, digits: int) -> bool:
    if _LONG_LETTERS.search(value):
        return True
    if value.count(b"_") + value.count(b"-") >= 2 and not any(65 <= byte <= 90 for byte in value):
        return True
    letters = sum(len(run) for run in _LETTERS.findall(value))
    return letters >= len(value) / 2 and digits < 0.15 * len(value)
