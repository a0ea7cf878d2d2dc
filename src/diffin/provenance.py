"""What a run of the command line was: written next to its output, enough to repeat it."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from diffin.files import write_atomically

FILE_NAME = "run.yaml"
_PACKAGES = ("diffin", "torch", "numpy", "pyarrow", "safetensors")


def environment() -> dict[str, Any]:
    """Versions, machine, and the git revision of the working folder if it is in a repository."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "git": _git_revision(),
    }


def write_run_file(folder: Path, command: str, arguments: Mapping[str, Any]) -> Path:
    """Write ``run.yaml``: the command, its arguments (seeds among them), and :func:`environment`.

    Args:
        folder: the output of the run, made if absent.
        command: the subcommand, e.g. ``"score"``.
        arguments: paths and plain values by argument name, defaults included.
    """
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "command": command,
        "arguments": {name: _plain(value) for name, value in arguments.items()},
        "command_line": sys.argv,
        "folder": str(Path.cwd()),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(),
    }
    with write_atomically(folder / FILE_NAME) as part:
        part.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return folder / FILE_NAME


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def read_command(folder: Path) -> str | None:
    """The subcommand that wrote the folder's ``run.yaml``; ``None`` if there is no such file, or not one of ours."""
    import yaml

    try:
        content = yaml.safe_load((folder / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    command = content.get("command") if isinstance(content, dict) else None
    return command if isinstance(command, str) else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
