"""Tests of the parts of HTML pages."""

from __future__ import annotations

import re

from skyrl_modal import ImageSpec, Launcher, RaySpec, SecretSpec, VolumeSpec
from skyrl_modal.formats.checkpoints import Checkpoint
from skyrl_modal.run.checkpoints import CheckpointList
from skyrl_modal.views.notebook import rows_to_html, table_to_html


def text_of(page: str) -> str:
    """Return the text of a page, with a space for each element."""
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


def test_only_the_last_column_is_broken() -> None:
    """Ids and times, which contain hyphens, stay on one line, and columns without a value are left out."""
    page = table_to_html(["run", "name", "command"], [["20260105-090000-1a2b3c", "", "python train.py"]])

    assert text_of(page) == "run command 20260105-090000-1a2b3c python train.py"
    assert re.search(r'<td style="[^"]*white-space:nowrap[^"]*">20260105-090000-1a2b3c</td>', page)
    assert re.search(r'<td style="[^"]*padding[^"]*">python', page)
    assert page.count("nowrap") == 1


def test_labels_are_not_broken() -> None:
    """A label with a space is on one line, although its value is long."""
    page = rows_to_html([("exit code", 7), ("log", "/x" * 200)])

    assert page.count("nowrap") == 2


def test_last_lines_are_aligned() -> None:
    """Output is shown with characters of the same width, as front ends do not do by themselves."""
    assert re.search(r'<pre style="[^"]*monospace[^"]*">a\n  b</pre>', rows_to_html([], tail="a\n  b"))


def test_declared_objects_are_tables() -> None:
    """A notebook shows the fields that are not empty, and of inner objects what differs from the default."""
    launcher = Launcher(
        gpu=["H100:8", "A100:8"],
        image=ImageSpec(pip=["numpy"]),
        ray=RaySpec(num_cpus=2),
        env={"A": "<b>"},
        timeout="2h",
    )

    text = text_of(launcher._repr_html_())

    assert text.startswith("Launcher ")
    assert "gpu H100:8, A100:8" in text
    assert "image ImageSpec(pip=(&#x27;numpy&#x27;,))" in text
    assert "ray RaySpec(num_cpus=2)" in text
    assert "env A=&lt;b&gt;" in text
    assert "timeout 7200" in text
    assert "budget" not in text
    assert "env" not in text_of(Launcher()._repr_html_())
    assert "ray none" in text_of(Launcher(ray=None)._repr_html_())  # a run without Ray, which is not the default
    for value in (ImageSpec(pip=["numpy"]), VolumeSpec(), RaySpec(), SecretSpec(name="wandb")):
        assert text_of(value._repr_html_()).startswith(type(value).__name__)


def test_checkpoints_are_a_table() -> None:
    """A list of checkpoints has a row for each, without the column of what is missing if nothing is."""
    complete = Checkpoint(step=20, path="/root/data/a/global_step_20", complete=True, bytes=4096)

    assert text_of(CheckpointList([complete])._repr_html_()) == (
        "step complete bytes path 20 yes 4,096 /root/data/a/global_step_20"
    )
