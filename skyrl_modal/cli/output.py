"""What the commands write to standard output and standard error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence

import click

from skyrl_modal.errors import StorageError
from skyrl_modal.views.colors import RED, color_override, has_colors, paint, paint_labels
from skyrl_modal.views.standard_streams import discard_standard_output
from skyrl_modal.views.text import escape_controls, format_columns
from skyrl_modal.views.wrapping import wrap_for


def print_line(text: object = "") -> None:
    """Print a line on standard output.

    Raises:
        BrokenPipeError: The reader has closed the pipe.
        StorageError: It cannot be written to, for example since its disk is full.
    """
    with _output_errors():
        click.echo(text)


def write_output(data: bytes) -> None:
    """Write output of a command to standard output, unchanged and immediately, with the errors of ``print_line``."""
    if sys.stdout is not None:
        with _output_errors():
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()


@contextlib.contextmanager
def _output_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_standard_output()
        raise StorageError("standard output", error.strerror or str(error)) from error


def print_text(text: str, *, has_labels: bool = False) -> None:
    """Print lines on standard output; on a terminal so that no word is broken.

    Args:
        text: The lines.
        has_labels: Whether the text is a plan, whose findings have labels with colors.
    """
    shown = text if sys.stdout is None else wrap_for(sys.stdout, text)
    print_line(paint_labels(shown) if has_labels and has_colors(sys.stdout) else shown)


def print_rows(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on a terminal, and plain columns without headings to a pipe or a file."""
    if sys.stdout is not None and sys.stdout.isatty():
        from skyrl_modal.views.table import print_table  # imported here, since a pipe needs no table

        print_table(headings, rows)
    elif rows:
        print_line(format_columns(rows))


def print_error(text: str) -> None:
    """Print an error on standard error. If that fails, the exit code is all that remains."""
    with contextlib.suppress(OSError, ValueError):
        line = wrap_for(sys.stderr, f"skyrl-modal: {escape_controls(text, multiline=True)}")
        if has_colors(sys.stderr):
            line = f"{paint('skyrl-modal:', RED)}{line.removeprefix('skyrl-modal:')}"
        click.echo(line, err=True, color=color_override())
