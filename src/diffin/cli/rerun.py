"""``diffin rerun``: what a command did, once more, and whether it comes out the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import chdir
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from diffin.cli.engines import UNREAD
from diffin.cli.terminal import console, errors, plain
from diffin.errors import DiffinError
from diffin.provenance import FILE_NAME, OUTPUT, Run, differences, read_run_file

_RESULTS = (".parquet", ".safetensors")
_ELSEWHERE = ("apply", "source", "label_column", "hard_link", "subset")
_DIFFERENT = 1


def rerun(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help=f"{FILE_NAME} that a command left, or the folder that it is in.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder for the new output; the old one with -rerun at its end by default."
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(help="Folder that paths of the file are relative to; the one where it was called by default."),
    ] = None,
) -> None:
    """Repeat a command from the `run.yaml` that it left, and compare.

    Example: `diffin rerun scores/a -o scores/again`. Says what is different now (versions, git revision, problem file,
    recorded run), gives the command the same arguments, and compares the new tables and tensors with the old, byte by byte.
    Ends with code 1 where they differ. Of `clean`, `select` and `filter`, what was written outside of the output (`--apply`,
    `--subset`) is not written again. It runs the problem file that is named there: repeat files of people you trust.
    """
    run = read_run_file(file)
    old = (file if file.is_dir() else file.parent).resolve()
    new = (old.with_name(f"{old.name}-rerun") if output is None else output).resolve()
    if new == old:
        raise DiffinError(f"--output {output}: that is the output to compare with; pass another folder")
    where = _folder(run, folder)
    group = context.find_root().command
    command = group.commands.get(run.command) if isinstance(group, TyperGroup) else None
    if command is None:
        raise DiffinError(f"{file} is of `diffin {run.command}`, which this version does not have")
    with chdir(where):
        for different in differences(run):
            errors.print(f"[yellow]Other than then:[/] {plain(different)}", highlight=False, soft_wrap=True)
        given = command_line(command.params, run.arguments, str(new))
        console.print(f"diffin {run.command} {' '.join(given)}", soft_wrap=True, markup=False, highlight=False)
        code = _call(command, given, f"diffin {run.command}")
    if code not in (0, UNREAD):
        raise typer.Exit(code)
    same, differing = compare(old, new)
    if differing:
        errors.print(f"[bold red]{len(differing)} of {len(same) + len(differing)} files of results differ:[/]")
        for name in differing:
            errors.print(f"  {plain(name)}", highlight=False, soft_wrap=True)
        raise typer.Exit(_DIFFERENT)
    if same:
        console.print(f"{len(same)} files of results, the same byte by byte -> {new}", soft_wrap=True)
    else:
        console.print(f"There are no results in {old} to compare with -> {new}", soft_wrap=True)
    raise typer.Exit(code)


def command_line(parameters: list[Any], arguments: Mapping[str, Any], output: str) -> list[str]:
    """What to type after the command for these arguments.

    Args:
        parameters: of the command, as typer knows them.
        arguments: plain values by name.
        output: in the place of that among them.

    Raises:
        DiffinError: the command has no such argument.
    """
    options: list[str] = []
    positional: list[str] = []
    known = {parameter.name: parameter for parameter in parameters}
    for name, value in {**arguments, OUTPUT: output}.items():
        if name not in known:
            raise DiffinError(
                f"the command has no argument {name!r} in this version; repeat with the version of the file"
            )
        if value is None or name in _ELSEWHERE:
            continue
        parameter = known[name]
        values = [str(entry) for entry in value] if isinstance(value, list) else [str(value)]
        if parameter.param_type_name == "argument":
            positional += values
        elif parameter.is_flag:
            names = parameter.opts if value else parameter.secondary_opts
            options += names[:1]
        else:
            # With "=", so that a value may begin with a dash.
            long = next(option for option in parameter.opts if option.startswith("--"))
            options += [f"{long}={entry}" for entry in values]
    return [*options, "--", *positional] if positional else options


def compare(old: Path, new: Path) -> tuple[list[str], list[str]]:
    """Files of results in two folders, at any depth: those of equal bytes, and those that differ or are in one only."""
    there, now = ({str(path.relative_to(folder)): path for path in _results(folder)} for folder in (old, new))
    if not there:
        return [], []
    same = [name for name in there if name in now and _equal(there[name], now[name])]
    return same, sorted((there.keys() | now.keys()) - set(same))


def _results(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.suffix in _RESULTS and path.is_file())


def _equal(one: Path, other: Path) -> bool:
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as first, other.open("rb") as second:
        while block := first.read(2**20):
            if block != second.read(2**20):
                return False
    return True


def _folder(run: Run, folder: Path | None) -> Path:
    where = run.folder if folder is None else folder
    if not where.is_dir():
        raise DiffinError(
            f"the command was called in {where}, which is not there; say with --folder where the problem file is now"
        )
    return where


def _call(command: Any, given: list[str], name: str) -> int:
    try:
        command.main(args=given, prog_name=name)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 2
    return 0
