"""The rule for destinations, without files."""

from __future__ import annotations

import pytest

from skyrl_modal.errors import SpecError
from skyrl_modal.transfers.destinations import Source, destination_paths

FILE = Source("up/a", "a", is_folder=False)
FOLDER = Source("up/ck", "ck", is_folder=True)
CONTENTS = Source("up/ck", "ck", is_folder=True, is_contents=True)


@pytest.mark.parametrize(
    ("source", "destination", "exists", "expected"),
    [
        (FILE, "/x", False, "/x"),
        (FILE, "/x", True, "/x/a"),
        (FILE, "/x/", False, "/x/a"),
        (FILE, "/y/a", True, "/y/a/a"),
        (FILE, ".", True, "./a"),
        (FILE, "/", True, "/a"),
        (FOLDER, "/x", False, "/x"),
        (FOLDER, "/x", True, "/x/ck"),
        (FOLDER, "/x/", True, "/x/ck"),
        (FOLDER, "/y/ck", True, "/y/ck"),
        (FOLDER, "/y/ck/", True, "/y/ck/ck"),
        (FOLDER, "..", True, "../ck"),
        (CONTENTS, "/x", False, "/x"),
        (CONTENTS, "/x/", True, "/x"),
    ],
)
def test_path_of_one_copy(source: Source, destination: str, exists: bool, expected: str) -> None:
    """The table of docs/data.md."""
    assert destination_paths([source], destination, exists=exists, is_several=False) == [expected]


def test_several_sources_are_copied_into_a_folder() -> None:
    """With several sources, the destination is a folder, whether or not it exists. Equal names are refused."""
    for exists in (False, True):
        assert destination_paths([FILE, FOLDER], "/x", exists=exists, is_several=True) == ["/x/a", "/x/ck"]
    with pytest.raises(SpecError, match="would replace that of up/a"):
        destination_paths([FILE, Source("other/a", "a", is_folder=True)], "/x", exists=True, is_several=True)
