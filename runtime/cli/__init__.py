"""The command line. Each command is loaded when it is asked for, so that ``--help`` is instant."""

from __future__ import annotations

import os
import sys
import traceback
from importlib import import_module
from typing import Any, NoReturn

import click

from unibrain_rt import __version__

# name → (module, one-line help). Those of export and benchmarks may need more libraries; only names are known here.
COMMANDS = {
    "decode": ("unibrain_rt.cli.decode", "Decode scans into images and captions."),
    "info": ("unibrain_rt.cli.info", "Show what a bundle holds."),
    "doctor": ("unibrain_rt.cli.doctor", "Tell what works on this machine, and what does not."),
    "build": ("unibrain_rt.cli.build", "Compile a bundle's graphs for a GPU engine."),
    "verify": ("unibrain_rt.cli.verify", "Compare a bundle's graphs with recorded reference outputs."),
    "export": ("unibrain_rt.export.bundles.cli", "Turn a published checkpoint into a bundle."),
    "fit": ("unibrain_rt.export.subjects.cli", "Fit a subject from scans, stimuli and captions."),
    "subjects": ("unibrain_rt.export.subjects.import_cli", "Bring in subjects that were fitted elsewhere."),
    "evaluate": ("unibrain_rt.benchmarks.quality.cli", "Score decodes of test scans and write a report."),
    "export-features": (
        "unibrain_rt.export.judges.cli",
        "Turn a judge's weights into a feature network.",
    ),
    "phantom": ("unibrain_rt.benchmarks.experiments.cli", "Train the phantom and make its bundle."),
    "bench": ("unibrain_rt.benchmarks.bench.cli", "Measure where the time of a decode goes."),
}
_EXTRAS = {
    "export": "export",
    "fit": "export",
    "subjects": "export",
    "evaluate": "export",
    "export-features": "export",
    "phantom": "export",
}


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
            _raise_not_installed(cmd_name, error)
        command: click.Command = module.command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise click.Abort from error  # click would print an empty line first
        except ModuleNotFoundError as error:  # of a command that loads what is large only when it runs
            _raise_not_installed(ctx.invoked_subcommand, error)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _raise_not_installed(command: str | None, error: ModuleNotFoundError) -> NoReturn:
    """Say what to install for a command; raise the error itself where that is not what is wrong."""
    extra = _EXTRAS.get(command or "")
    if extra is None or (error.name or "").startswith("unibrain_rt"):
        raise error
    problem = f"{command} needs {error.name}, which is not installed"
    raise click.ClickException(f'{problem}; run: pip install "unibrain-rt[{extra}]"') from error


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
        # No arguments at all are a question, not a mistake.
        code: Any = group.main(args=arguments or ["--help"], prog_name="unibrain-rt", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx is not None else "unibrain-rt"
        complain(f"{error.format_message().rstrip('.')} (see {where} --help)")
        code = 2
    except click.ClickException as error:
        complain(error.format_message())
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        complain("interrupted")
        code = 130
    except BrokenPipeError:
        # Whoever read the output has seen enough. The interpreter would complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception as error:
        code = getattr(error, "exit_code", 1)
        if debug:
            traceback.print_exc()
        elif hasattr(error, "exit_code"):
            complain(str(error))
        else:
            complain(f"unexpected {type(error).__name__}: {error} (unibrain-rt --debug … shows a traceback)")
    sys.exit(code if isinstance(code, int) else 0)


def complain(problem: str) -> None:
    """Say on stderr, in one line, what is wrong."""
    from unibrain_rt.errors import one_line

    click.echo(f"unibrain-rt: {one_line(problem, 400)}", err=True)
