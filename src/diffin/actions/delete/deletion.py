"""A model without some samples, and what was measured about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffin import reading
from diffin.actions.delete.certificate import Certificate
from diffin.errors import DiffinError
from diffin.files import read_json, write_atomically, write_json
from diffin.parameters.influence import sample_indices
from diffin.sources import Indices
from diffin.tensor_files import save_tensors

_FORMAT = 1
_MODEL, _SAMPLES, CERTIFICATE = "model.safetensors", "samples.safetensors", "certificate.json"


def refuse_deletion(folder: Path) -> None:
    """Raise if the folder holds a deletion."""
    if (folder / CERTIFICATE).exists():
        raise DiffinError(f"{folder} holds a deletion already; pass another folder, or overwrite=True to replace it")


@dataclass(frozen=True)
class Deletion:
    """What :func:`diffin.delete` found.

    Attributes:
        state: every tensor of the new model by name, on the CPU; ``model.load_state_dict(deletion.state)``.
        samples: Int64[ndarray, "Z"], the samples that were forgotten, ascending.
        certificate: losses, accuracies, attacks and distances of the models before and after.
    """

    state: Mapping[str, Tensor]
    samples: Indices
    certificate: Certificate

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write ``model.safetensors``, a plain state dict, and beside it the samples and ``certificate.json``.

        Args:
            folder: made if absent.
            overwrite: replace a deletion that is there already.

        Raises:
            DiffinError: there is a deletion already, or the folder cannot be written.
        """
        folder = Path(folder)
        if not overwrite:
            refuse_deletion(folder)
        try:
            self._write(folder)
        except OSError as error:
            raise DiffinError(
                f"could not write the deletion to {folder} ({error}); free some space, or pass another"
            ) from error

    def _write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # First away and last back, so that a certificate never stands beside the model of another deletion.
        (folder / CERTIFICATE).unlink(missing_ok=True)
        parts = {_MODEL: self.state, _SAMPLES: {"samples": torch.from_numpy(self.samples.copy())}}
        for name, tensors in parts.items():
            with write_atomically(folder / name) as part:
                save_tensors(part, tensors)
        write_json(folder / CERTIFICATE, {"format": _FORMAT, **self.certificate.to_json()})

    @classmethod
    def open(cls, folder: str | Path) -> Deletion:
        """Read what :meth:`save` wrote.

        Raises:
            DiffinError: there is no such folder, or it holds something else.
        """
        folder = Path(folder)
        try:
            content = read_json(folder / CERTIFICATE)
            state = reading.tensors(folder / _MODEL)
            samples = sample_indices(reading.tensors(folder / _SAMPLES).get("samples"))
        except FileNotFoundError as error:
            raise DiffinError(f"{folder} holds no deletion ({error.filename} is missing); run delete again") from None
        except (OSError, ValueError) as error:
            raise DiffinError(f"{folder} holds no deletion ({error}); run delete again") from error
        if content.pop("format", None) != _FORMAT:
            raise DiffinError(f"{folder} was written by another version of diffin; run delete again")
        return cls(state, samples, Certificate.of_json(content))
