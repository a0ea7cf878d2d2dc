"""Any loss, given as a function."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from diffin.batches import Batch
from diffin.task import Task


class FunctionTask(Task):
    """A task from a function ``(model, batch) -> losses`` of shape (B,).

    Args:
        model: the module whose parameters are studied.
        function: returns one loss per sample; call the ``model`` it is given, not one it has captured.
    """

    def __init__(self, model: nn.Module, function: Callable[[nn.Module, Batch], Tensor]) -> None:
        super().__init__(model)
        self._function = function

    def losses(self, batch: Batch) -> Tensor:
        return self._function(self.model, batch)
