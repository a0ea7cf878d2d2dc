"""The files of a set of probes: their names, and writing them so that a killed process leaves none by halves."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffin.errors import ProbeError
from diffin.files import write_atomically

INDEX = "probes.json"
OWN_FILE = re.compile(
    r"probes\.json|(state|probe|carried)-\d{8,}(-\d{3,})?\.(safetensors|json)|end-[0-9a-f]{16}\.safetensors|.*\.part|\.tmp\w+"
)
LEFT_BEHIND = re.compile(r".*\.part|\.tmp\w+")
"""What a process that was killed while it wrote leaves; safetensors, too, writes beside the file first."""


def file_names(step: int, probes: int) -> list[str]:
    return [state_name(step), *(probe_name(step, number) for number in range(probes))]


def state_name(step: int) -> str:
    return f"state-{step:08d}.safetensors"


def probe_name(step: int, number: int) -> str:
    return f"probe-{step:08d}-{number:03d}.safetensors"


def entry_name(step: int) -> str:
    return f"probe-{step:08d}.json"


def carried_name(step: int) -> str:
    return f"carried-{step:08d}.safetensors"


def end_name(run: str) -> str:
    return f"end-{run}.safetensors"


def load(path: Path, digest: str | None) -> dict[str, Tensor]:
    """Read what :func:`save` wrote.

    Args:
        path: the file.
        digest: of its bytes; ``None`` where they were checked before.

    Raises:
        ProbeError: it is missing, truncated or of other bytes.
    """
    try:
        if digest is not None and digest_of(path) != digest:
            raise ProbeError(f"{path} is damaged: it is not what was written; build the probes again")
        return load_file(str(path))
    except FileNotFoundError:
        raise ProbeError(f"{path} is missing; build the probes again") from None
    except (OSError, SafetensorError) as error:
        raise ProbeError(f"{path} cannot be read ({error}); build the probes again") from error


def save(path: Path, tensors: Mapping[str, Tensor]) -> str:
    # A contiguous copy each: safetensors refuses tensors that share memory, as tied weights do.
    own = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
    with writing(path.parent), write_atomically(path) as part:
        save_file(own, str(part))
        return digest_of(part)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what a full or failing disk raises into an error that says what is safe."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ProbeError(
            f"could not write to {folder} ({error}); free some space, and build again: what is complete is kept"
        ) from error


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
