"""The ``fedward`` command: a root that loads a room's commands only when one of them is asked for.

A command that will need slow libraries may start loading them before anything else is imported: an entry point of
the group ``fedward.early`` with the command's name is called with the remaining arguments.

Each room registers its commands as entry points of the group ``fedward.commands``; ``study.new`` is the command
``new`` below ``study``. So a hospital's installation has no server command, and none is imported before use.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import EntryPoint, entry_points
from typing import Final

import click

from fedward_common import __version__
from fedward_common.errors import FedwardError

__all__ = ["main"]

_GROUP: Final = "fedward.commands"
_EARLY: Final = "fedward.early"
_SUMMARIES: Final = {
    "client": "A hospital's side.",
    "data": "Download data sets with pinned digests.",
    "privacy": "Plan a privacy budget before anybody trains.",
    "server": "The centre's side.",
    "simulate": "Run a study over simulated hospitals.",
    "study": "Draft, compose, sign, verify and show studies.",
}


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are called or described."""

    def __init__(self, prefix: str = "", summary: str = "") -> None:
        super().__init__(name=prefix or "fedward", help=summary, no_args_is_help=True)
        self._prefix = f"{prefix}." if prefix else ""

    def _points(self) -> dict[str, EntryPoint]:
        found = {}
        for point in entry_points(group=_GROUP):
            if point.name.startswith(self._prefix):
                found[point.name.removeprefix(self._prefix)] = point
        return found

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's signature)
        return sorted({name.split(".")[0] for name in self._points()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  (click's signature)
        points = self._points()
        if cmd_name in points:
            import typer.main  # noqa: PLC0415  (only a command that runs needs it)

            return typer.main.get_command(points[cmd_name].load())
        if any(name.startswith(f"{cmd_name}.") for name in points):
            return _LazyGroup(f"{self._prefix}{cmd_name}", _SUMMARIES.get(cmd_name, ""))
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, self._summary(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def _summary(self, ctx: click.Context, name: str) -> str:
        if not self._prefix:
            return _SUMMARIES.get(name, "")
        command = self.get_command(ctx, name)
        return command.get_short_help_str() if command else ""


def main() -> None:
    """Run the command line; an error of Fedward's own is a message with a remedy and exit code 1."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    for point in entry_points(group=_EARLY, name=sys.argv[1] if len(sys.argv) > 1 else ""):
        point.load()(sys.argv[2:])
    root = click.version_option(__version__, prog_name="fedward")(_LazyGroup(summary=__doc__.split("\n\n")[0]))
    root.help = "Fedward: federated learning for hospitals."
    try:
        root(standalone_mode=True)
    except FedwardError as error:
        click.echo(f"error: {error.diagnostics()}", err=True)
        sys.exit(1)
