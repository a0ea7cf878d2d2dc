"""What a run of the command line was: written next to its output, enough to repeat it."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from diffin.errors import DiffinError
from diffin.files import write_atomically

FILE_NAME = "run.yaml"
OUTPUT = "output"
_PACKAGES = ("diffin", "torch", "numpy", "pyarrow", "safetensors")
_MANIFESTS = ("trajectory.json", "scores.json")
_LARGEST = 64 * 2**20


@dataclass(frozen=True)
class Run:
    """A run of the command line, as its ``run.yaml`` says.

    Attributes:
        command: the subcommand.
        arguments: plain values by argument name, defaults included.
        folder: where it was called.
        environment: as :func:`environment` found it.
        inputs: digests of the files that it was given, by path, as :func:`digests` found them.
    """

    command: str
    arguments: Mapping[str, Any]
    folder: Path
    environment: Mapping[str, Any]
    inputs: Mapping[str, str]


def environment() -> dict[str, Any]:
    """Versions, machine, and the git revision of the working folder if it is in a repository."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "git": _git_revision(),
    }


def write_run_file(folder: Path, command: str, arguments: Mapping[str, Any]) -> Path:
    """Write ``run.yaml``: the command, its arguments (seeds among them), digests of its files, and :func:`environment`.

    Args:
        folder: the output of the run, made if absent.
        command: the subcommand, e.g. ``"score"``.
        arguments: paths and plain values by argument name, defaults included.
    """
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    plain = {name: _plain(value) for name, value in arguments.items()}
    content = {
        "command": command,
        "arguments": plain,
        "inputs": digests(plain),
        "command_line": sys.argv,
        "folder": str(Path.cwd()),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(),
    }
    with write_atomically(folder / FILE_NAME) as part:
        part.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return folder / FILE_NAME


def read_run_file(path: Path) -> Run:
    """Read ``run.yaml``, or that of a folder.

    Raises:
        DiffinError: there is none, or it is not one of ours.
    """
    import yaml

    path = path / FILE_NAME if path.is_dir() else path
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        command, arguments = content["command"], content["arguments"]
        known, inputs = content.get("environment") or {}, content.get("inputs") or {}
        if not (isinstance(command, str) and all(isinstance(part, dict) for part in (arguments, known, inputs))):
            raise TypeError("an entry is of another kind")
        return Run(command, arguments, Path(content["folder"]), known, inputs)
    except FileNotFoundError:
        raise DiffinError(f"there is no {path}; pass the run.yaml beside the output of a command") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise DiffinError(f"{path} is not what a command of diffin leaves ({error}); pass its {FILE_NAME}") from None


def digests(arguments: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the files that arguments name, by path; of a recorded run or a folder of scores, of its manifest.

    Files of more than 64 MiB are left out, and so is the output.

    Args:
        arguments: plain values by argument name; paths are relative to the working folder.
    """
    found = {}
    for text in _texts(value for name, value in arguments.items() if name != OUTPUT):
        path = Path(text)
        try:
            file = next((path / name for name in _MANIFESTS if (path / name).is_file()), path)
            if file.is_file() and file.stat().st_size <= _LARGEST:
                found[text] = hashlib.sha256(file.read_bytes()).hexdigest()
        except (OSError, ValueError):  # A text that is no path, such as a long list of samples.
            continue
    return found


def differences(run: Run) -> list[str]:
    """What is not now as it was then, in words; called in the folder of the run.

    Args:
        run: the run.
    """
    now, then = environment(), dict(run.environment)
    packages = dict(then.pop("packages", None) or {})
    pairs = [(name, version, now["packages"].get(name)) for name, version in packages.items()]
    pairs += [(name, value, now[name]) for name, value in then.items() if name in now]
    found = [
        f"{name}: {before or 'none'} then, {today or 'none'} now" for name, before, today in pairs if before != today
    ]
    inputs = digests(run.arguments)
    for path, digest in run.inputs.items():
        if path not in inputs:
            found.append(f"{path} is not there any more")
        elif inputs[path] != digest:
            found.append(f"{path} has other contents")
    return found


def _texts(values: Iterator[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, list):
            yield from _texts(iter(value))
        elif isinstance(value, str) and value:
            yield value


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
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
