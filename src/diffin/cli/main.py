"""The application and its entry point."""

from __future__ import annotations

import logging
import traceback
from typing import Annotated

import typer
from rich.logging import RichHandler

import diffin
from diffin.cli.attribute import attribute
from diffin.cli.clean import clean
from diffin.cli.commands import diagnose, report, score
from diffin.cli.delete import delete
from diffin.cli.demo import demo
from diffin.cli.evaluate import evaluate
from diffin.cli.explore import explore
from diffin.cli.filter import filter_
from diffin.cli.rerun import rerun
from diffin.cli.select import select
from diffin.cli.terminal import errors, plain
from diffin.cli.wording import Worded, as_options
from diffin.errors import DiffinError, ProblemError

app = typer.Typer(
    name="diffin",
    epilog="A training that a diffin.Recorder wrote, and a Python file that says what was trained on what: "
    "`diffin score problem.py runs/a -o scores/a`, then `diffin report scores/a --problem problem.py`.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """What training on each sample did to a model: negative influence helps, positive harms."""
    if version:
        typer.echo(f"diffin {diffin.__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


PANELS = {
    "Begin": (demo,),
    "Score": (diagnose, score, attribute, evaluate, rerun),
    "Look": (report, explore),
    "Act": (clean, delete, select, filter_),
}
for panel, commands in PANELS.items():
    for command in commands:
        app.command(command.__name__.rstrip("_"), rich_help_panel=panel)(command)


def main() -> None:
    """Entry point: a mistake of the user is one sentence and exit code 2, not a traceback."""
    handler = RichHandler(console=errors, show_path=False, show_time=False)
    handler.setFormatter(Worded("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    try:
        app()
    except DiffinError as error:
        errors.print(f"[bold red]error:[/] {plain(as_options(str(error)))}", highlight=False, soft_wrap=True)
        cause = error.__cause__
        if isinstance(error, ProblemError) and cause is not None:
            # The mistake is in the user's own file: they need to see where.
            errors.print(plain("".join(traceback.format_exception(cause))), highlight=False, soft_wrap=True)
        raise SystemExit(2) from None
