"""The file that ``skyrl-modal init`` writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from skyrl_modal.backends import check_backend
from skyrl_modal.dataclass import dataclass
from skyrl_modal.errors import SpecError, StorageError
from skyrl_modal.spec.duration import parse_duration
from skyrl_modal.spec.gpu import parse_gpu
from skyrl_modal.spec.secret import SecretSpec
from skyrl_modal.spec.volume import VolumeSpec


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a setting.

    Attributes:
        key: The setting.
        text: The question.
        default: The answer if the user enters nothing.
        check: Raises SpecError for an answer that is not valid.
    """

    key: str
    text: str
    default: str
    check: Callable[[str], object]


def questions(*, is_user: bool) -> Sequence[Question]:
    """Return the questions for a new file.

    Args:
        is_user: Whether it is the user's own file. That of a checkout cannot have a backend and secrets.
    """
    of_runs = (
        Question("gpu", "GPU, such as A100-80GB:4 (none for a run without)", "L4:1", _check_gpu),
        Question("timeout", "Limit of each attempt", "24h", parse_duration),
        Question("volume", "Volume for data and checkpoints", "skyrl-data", lambda name: VolumeSpec(name=name)),
    )
    of_user = (
        Question("backend", "Backend: modal or local", "modal", check_backend),
        Question("secrets", "Secrets that every run gets, by the names of variables (or none)", "none", _check_secrets),
    )
    return of_user if is_user else of_runs


def _check_gpu(answer: str) -> None:
    if answer.lower() != "none":
        parse_gpu(answer.split(","))


def _check_secrets(answer: str) -> None:
    for name in _names(answer):
        SecretSpec(name, source="environment")


def _names(answer: str) -> list[str]:
    return [] if answer.lower() == "none" else [name.strip() for name in answer.split(",")]


def render_new(answers: Mapping[str, str], *, is_user: bool) -> str:
    """Return the content of a new file.

    Example:
        >>> print(render_new({"backend": "local", "secrets": "A, B"}, is_user=True).splitlines()[2])
        backend = "local"
    """
    if is_user:
        names = json.dumps(_names(answers["secrets"]))
        return (
            "# Settings of skyrl-modal for all checkouts of this user. `skyrl-modal config` lists all settings.\n\n"
            f"backend = {json.dumps(answers['backend'])}\n"
            f"secrets = {names}\n"
        )
    return (
        "# Settings of skyrl-modal for this checkout. `skyrl-modal config` lists all settings.\n\n"
        f"gpu = {json.dumps(answers['gpu'])}\n"
        f"timeout = {json.dumps(answers['timeout'])}\n\n"
        "[[volumes]]\n"
        f"name = {json.dumps(answers['volume'])}\n\n"
        "# Values that `--profile long` selects.\n"
        "[profile.long]\n"
        'timeout = "24h"\n'
        'resume = "auto"\n'
        "retries = 3\n"
    )


def write_new(path: Path, answers: Mapping[str, str], *, is_user: bool) -> None:
    """Write a file that does not exist yet.

    Raises:
        SpecError: An answer is not valid.
        StorageError: The file exists, or cannot be written.
    """
    for question in questions(is_user=is_user):
        try:
            question.check(answers[question.key])
        except SpecError as error:
            raise SpecError(question.key, error.value, error.remedy) from None
    if is_user:
        from skyrl_modal.user_folders import make_private_folder

        make_private_folder(path.parent, follow_links=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(render_new(answers, is_user=is_user))
    except FileExistsError:
        raise StorageError(str(path), "the file exists already. Edit it, or remove it first") from None
