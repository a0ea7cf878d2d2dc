"""The loss of every sample of a set at one state of a model: what is read off a model, not differentiated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffin.batches import Batch
from diffin.task import PerSampleLoss, frozen

Heed = Callable[[Batch, Any], None]
"""Takes a batch on the device, and what the model returned when it was last called for it; ``None`` if it was not."""


def losses_at(
    loss: PerSampleLoss, batches: Iterable[Batch], *, at: Mapping[str, Tensor] | None = None, heed: Heed | None = None
) -> npt.NDArray[np.float64]:
    """The losses in evaluation mode, in the order of the batches. Float64[ndarray, "N"].

    Args:
        loss: losses as a function of the parameters, at a state of the rest of the model.
        batches: of N samples in all, at least one.
        at: the parameters, and buffers if wanted; ``loss.parameters`` by default.
        heed: called with every batch after its losses were taken, for what else the outputs tell.
    """
    outputs: list[Any] = []
    model = loss.task.model
    handle = None if heed is None else model.register_forward_hook(lambda _, __, output: outputs.append(output))
    found = []
    try:
        # Not the inference mode, whose tensors cannot be differentiated later: batches may be kept by whoever reads them.
        with frozen(model), torch.no_grad():
            for batch in batches:
                batch = loss.to_device(batch)
                found.append(loss(loss.parameters if at is None else at, batch).double().cpu())
                if heed is not None:
                    heed(batch, outputs[-1] if outputs else None)
                    outputs.clear()
    finally:
        if handle is not None:
            handle.remove()
    return torch.cat(found).numpy()
