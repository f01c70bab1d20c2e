"""The command line. Each command is loaded when it is asked for, so that ``--help`` is instant."""

from __future__ import annotations

import sys
import traceback
from importlib import import_module
from typing import Any

import click

from unibrain_rt import __version__

# name → (module, one-line help). The export commands' modules need torch; only their names are known here.
COMMANDS = {
    "decode": ("unibrain_rt.cli.decode", "Decode scans into images and captions."),
    "info": ("unibrain_rt.cli.info", "Show what a bundle holds."),
    "verify": ("unibrain_rt.cli.verify", "Compare a bundle's graphs with recorded reference outputs."),
    "export": ("unibrain_rt.export.cli", "Turn a published checkpoint into a bundle."),
    "phantom": ("unibrain_rt.export.phantom.cli", "Train the phantom and make its bundle."),
}
_EXTRAS = {"export": "export", "phantom": "export"}


class LazyGroup(click.Group):
    """A click group that knows its commands' names and help without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        try:
            module = import_module(COMMANDS[cmd_name][0])
        except ModuleNotFoundError as error:
            extra = _EXTRAS.get(cmd_name)
            if extra is None or (error.name or "").startswith("unibrain_rt"):
                raise
            raise click.ClickException(
                f"{cmd_name} needs {error.name}, which is not installed; "
                f'run: pip install "unibrain-rt[{extra}]"'
            ) from error
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="unibrain-rt")
@click.option("--debug", is_flag=True, help="Show a traceback where a command fails.")
def group(debug: bool) -> None:
    """Decode what a brain saw: an image and its caption from one fMRI scan."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``unibrain-rt``: every failure ends in one line on stderr and its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    try:
        code: Any = group.main(args=arguments, prog_name="unibrain-rt", standalone_mode=False)
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.UsageError as error:
        error.show()
        code = 2
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("unibrain-rt: interrupted", err=True)
        code = 130
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if debug:
            traceback.print_exc()
        elif code is not None:
            click.echo(f"unibrain-rt: {error}", err=True)
        else:
            reason = str(error).splitlines()[0] if str(error) else ""
            click.echo(
                f"unibrain-rt: unexpected {type(error).__name__}: {reason} (run with --debug for a traceback)",
                err=True,
            )
        code = 1 if code is None else code
    sys.exit(code if isinstance(code, int) else 0)
