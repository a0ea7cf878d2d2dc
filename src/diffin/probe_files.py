"""The files of a set of probes: their names, and writing them so that a killed process leaves none by halves."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from diffin import checked, reading
from diffin.errors import ProbeError
from diffin.files import check_regular, read_json, write_atomically
from diffin.tensor_files import save_tensors

FORMAT_VERSION = 1
INDEX = "probes.json"
_RUN = re.compile(r"[0-9a-f]{16}")
_KINDS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)
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
        return reading.tensors(path)
    except ProbeError:  # which is a ValueError
        raise
    except FileNotFoundError:
        raise ProbeError(f"{path} is missing; build the probes again") from None
    except (OSError, ValueError) as error:
        raise ProbeError(f"{path} cannot be read ({error}); build the probes again") from error


def save(path: Path, tensors: Mapping[str, Tensor]) -> str:
    with writing(path.parent), write_atomically(path) as part:
        save_tensors(part, tensors)
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


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a set of probes, every entry of the type that it should be.

    Raises:
        FileNotFoundError: there is none.
        ProbeError: it is of another format.
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
    index = read_json(folder / INDEX)
    if index.get("format") != FORMAT_VERSION:
        raise ProbeError(f"{folder} has probe format {index.get('format')!r}; this version reads {FORMAT_VERSION}")
    if not _RUN.fullmatch(checked.text(index, "run")):
        raise ValueError(f"'run' is {index['run'][:40]!r}, and names no run")
    checked.text(index, "digest")
    checked.mapping(index, "metadata")
    checked.each(index, "parameters", checked.text)
    steps = [_check_entry(entry) for entry in checked.each(index, "checkpoints", checked.mapping)]
    if not steps or any(after <= before for before, after in pairwise(steps)):
        raise ValueError(f"the steps of its checkpoints, {steps[:5]}, do not ascend")
    if len({("self" in entry, "end" in entry) for entry in index["checkpoints"]}) > 1:
        raise ValueError("it has probes of several kinds")
    return index


def _check_entry(entry: Mapping[str, Any]) -> int:
    """Check what the index says of a checkpoint; its step."""
    weights = checked.each(entry, "weights", checked.real)
    digests = checked.each(entry, "digests", checked.text)
    if len(digests) != len(weights) + 1:
        raise ValueError(f"it has {len(digests)} digests for {len(weights)} probes and a state")
    if "end" in entry:
        checked.text(entry, "end")
    for content in checked.each(entry, "self", checked.mapping) if "self" in entry else ():
        checked.values(content, "rates", checked.real)
        checked.flag(content, "drift")
        checked.each(content, "values", checked.real)
        if checked.entry(content, "curvature") is not None:
            checked.each(content, "curvature", checked.whole)
    if len(entry.get("self", weights)) != len(weights):
        raise ValueError("it has other weights than probes")
    return checked.whole(entry, "step")


def check_directions(vectors: Iterable[Mapping[str, Tensor]], state: Mapping[str, Tensor]) -> None:
    """Refuse directions that are none of the parameters in a state.

    Args:
        vectors: by names of parameters; each one direction, or several, stacked: as many for every parameter.
        state: tensors by name.

    Raises:
        ProbeError: they are of other shapes, or not of floating point.
    """
    for vector in vectors:
        stacks = set()
        for name, tensor in vector.items():
            own = state.get(name)
            before = None if own is None else tensor.ndim - own.ndim
            if own is None or before not in (0, 1) or tensor.shape[before:] != own.shape:
                raise ProbeError(f"a direction of {name!r} has another shape than it; build the probes again")
            if tensor.dtype not in _KINDS:
                raise ProbeError(f"a direction of {name!r} is of {tensor.dtype}; build the probes again")
            stacks.add(tuple(tensor.shape[:before]))
        if len(stacks) > 1:
            raise ProbeError("parameters have different numbers of directions; build the probes again")


def digest_of(path: Path) -> str:
    check_regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
