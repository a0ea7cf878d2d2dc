"""Cross-entropy over classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffin.batches import Batch
from diffin.errors import TaskError
from diffin.task import Task
from diffin.tasks.supervised import call, split, widened


class Classification(Task):
    """Cross-entropy of a model that returns logits.

    A batch is ``(inputs, targets)``, or a mapping with ``labels`` (or ``label``, ``targets``, ``target``). Inputs that
    are a mapping are passed as keyword arguments, a tuple or list as positional ones; an output with ``.logits``
    (Hugging Face) is unpacked. Targets are class numbers of shape (B,) or class probabilities of shape (B, C).

    Args:
        model: returns logits of shape (B, C).
        label_smoothing: as in training.
        class_weights: Float[Tensor, "C"]; a sample's loss is multiplied by its class's weight. (PyTorch's mean divides by
            the sum of the weights, not the number of samples: the same up to a factor that differs between batches.)
        class_names: what to call the classes on a page.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(model)
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self.class_names = list(class_names) if class_names is not None else None

    def losses(self, batch: Batch) -> Tensor:
        inputs, targets = split(batch)
        logits = widened(call(self.model, inputs))
        if logits.ndim != 2:
            raise TaskError(
                f"the model returned shape {tuple(logits.shape)}; Classification needs logits of shape (B, classes)"
            )
        weights = None if self.class_weights is None else self.class_weights.to(logits)
        if targets.is_floating_point():
            targets = targets.to(logits.dtype)
        return F.cross_entropy(logits, targets, weight=weights, reduction="none", label_smoothing=self.label_smoothing)

    def predictions(self, batch: Batch) -> list[str]:
        inputs, _ = split(batch)
        probability, label = torch.softmax(call(self.model, inputs).float(), dim=-1).max(dim=-1)
        return [f"{self._name(k)} ({p:.0%})" for k, p in zip(label.tolist(), probability.tolist(), strict=True)]

    def labels(self, batch: Batch) -> list[str]:
        _, targets = split(batch)
        classes = targets.argmax(dim=-1) if targets.is_floating_point() else targets
        return [self._name(k) for k in classes.tolist()]

    def _name(self, label: int) -> str:
        return self.class_names[label] if self.class_names is not None else str(label)
