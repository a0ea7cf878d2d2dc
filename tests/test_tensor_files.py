"""What is written is what it was, and may be read by whoever may read other files."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from diffin.tensor_files import save_tensors


def test_tensors_come_back_whatever_they_share(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    wave = torch.tensor([1 + 2j, 3 - 1j])
    tensors = {
        "base": base,
        "tied": base,
        "part": base[1:],
        "turned": base.T,
        "conjugate": wave.conj(),
        "none": base[:0],
    }
    save_tensors(tmp_path / "a.safetensors", tensors, {"format": "1"})
    found = load_file(tmp_path / "a.safetensors")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor), name
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "1"}


def test_the_rights_are_those_of_any_new_file(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2)})
    (tmp_path / "b.txt").write_text("b")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "b.txt").stat().st_mode
