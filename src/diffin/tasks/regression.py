"""Squared error."""

from __future__ import annotations

from torch import Tensor

from diffin.batches import Batch
from diffin.errors import TaskError
from diffin.task import Task
from diffin.tasks.supervised import call, split, widened


class Regression(Task):
    """Squared error, averaged over the output dimensions of a sample, as ``torch.nn.MSELoss`` does.

    A batch is as for :class:`~diffin.tasks.Classification`; targets have the shape of the model's output, or (B,) for an
    output of shape (B, 1).
    """

    def losses(self, batch: Batch) -> Tensor:
        inputs, targets = split(batch)
        output = widened(call(self.model, inputs))
        if tuple(d for d in output.shape[1:] if d != 1) != tuple(d for d in targets.shape[1:] if d != 1) or (
            output.numel() != targets.numel()
        ):
            raise TaskError(
                f"the model returned shape {tuple(output.shape)} for targets of shape {tuple(targets.shape)}; they must agree"
            )
        error = output.reshape(len(targets), -1) - targets.to(output.dtype).reshape(len(targets), -1)
        return error.square().mean(dim=-1)

    def predictions(self, batch: Batch) -> list[str]:
        inputs, _ = split(batch)
        return [_show(row) for row in call(self.model, inputs)]

    def labels(self, batch: Batch) -> list[str]:
        return [_show(row) for row in split(batch)[1]]


def _show(row: Tensor) -> str:
    values = [f"{x:.3g}" for x in row.flatten()[:4].tolist()]
    return ", ".join(values) + (", ..." if row.numel() > 4 else "")
