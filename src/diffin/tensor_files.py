"""Tensors written as safetensors files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors of any device, layout in memory and sharing, to be read by whoever may read other files made here.

    The file is neither whole nor absent while it is written: see :func:`diffin.files.write_atomically`.
    """
    path.touch()
    mode = path.stat().st_mode & 0o777
    save_file(_independent(tensors), str(path), None if metadata is None else dict(metadata))
    # safetensors takes the rights of everybody else away, whatever the umask says.
    path.chmod(mode)


def _independent(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors of which no two share memory, as safetensors demands; copied only where needed."""
    result: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().to("cpu").contiguous()
        storage = own.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != own.nbytes or own.is_conj() or own.is_neg():
            own = own.clone().resolve_conj().resolve_neg()
            storage = own.untyped_storage()
        seen.add(storage.data_ptr())
        result[name] = own
    return result
