"""The ``headgate`` command: one module for each subcommand, loaded when it is called."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version

import click

COMMANDS = {
    "run": "Send a file of requests through a rate-limited API.",
    "sim": "Run a rate-limited API server and judge its callers.",
    "keys": "List the keys of a store.",
    "top": "Watch a key: rates, who waits, who holds, what blocks.",
    "pause": "Let nothing go on a key.",
    "resume": "Let calls go again.",
    "set": "Change limits and shares of a key while it is in use.",
    "forget": "Start a key anew.",
    "mediator": "Submit requests to Celery workers through object storage.",
}
_NAMES = {"set": "set_limits"}
"""Of a command's module and function, where they are not the command's: ``set`` is a built-in."""


class _Lazy(click.Group):
    """Loads a command's module only when it is called, so that --help is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        name = _NAMES.get(cmd_name, cmd_name)
        command: click.Command = getattr(import_module(f"headgate.cli.{name}"), name)
        # Docstrings with a backslash are raw; click wants the character by which lines stay as they are.
        command.help = (command.help or "").replace("\\b\n", "\b\n")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("headgate"), prog_name="headgate")
def main() -> None:
    """Rate limits, from the caller's side."""
