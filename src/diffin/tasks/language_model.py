"""Cross-entropy over the tokens of a sequence."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from diffin.batches import Batch
from diffin.errors import TaskError
from diffin.task import Task
from diffin.tasks.supervised import call, widened

Kind = Literal["causal", "masked"]
Reduction = Literal["mean", "sum"]


class LanguageModel(Task):
    r"""Cross-entropy of a model that predicts tokens; a sample is a sequence.

    A batch is a mapping with ``input_ids`` (B, T), usually ``attention_mask``, and ``labels`` (B, T) as Hugging Face has
    them: a token where one is to be predicted, ``ignore_index`` elsewhere. Everything but the labels is passed to the model
    as keyword arguments. A tensor of tokens, or a pair ``(tokens, labels)``, does for a model that takes a tensor.

    ``causal`` predicts each token from those before it: labels are shifted here, and where the batch has none, they are
    the tokens that the attention mask does not hide. Rows may be padded on either side: a model that takes ``position_ids``
    is given them counted from the first token of each row, so that the loss does not depend on how long the other
    sequences of a batch are. ``masked`` predicts tokens in their own place, and needs labels.

    The loss of a sample with n predicted tokens is

        mean:  1/n sum_t -log p(token_t)            sum:  1/divisor sum_t -log p(token_t)

    and 0 without any. ``mean`` is what Hugging Face's models compute of one sequence alone. Of a *batch* they compute the
    mean over all of its tokens, which is not a mean over its samples: a sequence then counts by its length, over a total
    that depends on its batch. So

    - where all sequences have as many tokens (text cut into blocks), the two agree, and there is nothing to do;
    - a loop that takes ``task.losses(batch).mean()`` trains on exactly what is studied here, and can be repeated by
      ``Replay`` and ``Unrolled(propagation="steps")``;
    - a training that took Hugging Face's own loss of sequences of different length (``output.loss``, ``Trainer``) cannot be
      repeated: ``Replay`` refuses it, and ``Unrolled`` goes by segments. ``reduction="sum"`` with ``divisor=`` the mean
      number of predicted tokens of a sample weighs the samples as that training did, up to how the totals of the
      batches differ. Without the divisor, the curvature would be too large by it.

    Losses that a model adds by itself (routers of a mixture of experts) are left out. Mask tokens once, before training:
    a collate function that draws them anew gives a sample another loss at every reading.

    Args:
        model: returns logits of shape (B, T, V), or something with ``.logits``.
        kind: ``"causal"`` or ``"masked"``.
        reduction: ``"mean"`` over the predicted tokens of a sample, or ``"sum"``.
        divisor: with ``"sum"``, a constant that it is divided by.
        ignore_index: what labels are where nothing is predicted.
        tokenizer: to show samples in words: something with ``decode(tokens, skip_special_tokens=True)``.

    Raises:
        TaskError: an argument is not one of these.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        kind: Kind = "causal",
        reduction: Reduction = "mean",
        divisor: float = 1.0,
        ignore_index: int = -100,
        tokenizer: Any = None,
    ) -> None:
        super().__init__(model)
        if kind not in ("causal", "masked"):
            raise TaskError(f"LanguageModel(kind={kind!r}): pass 'causal' or 'masked'")
        if reduction not in ("mean", "sum"):
            raise TaskError(
                f"LanguageModel(reduction={reduction!r}): pass 'mean' or 'sum', over the tokens of a sample"
            )
        if not divisor > 0 or (reduction == "mean" and divisor != 1):
            raise TaskError(
                f"LanguageModel(divisor={divisor!r}): pass a positive number, and only with reduction='sum'"
            )
        self.kind, self.reduction, self.divisor = kind, reduction, float(divisor)
        self.ignore_index = ignore_index
        self.tokenizer = tokenizer
        # A cache of keys and values is of no use to one pass, and substituted parameters must not meet an older one.
        self._no_cache = {"use_cache": False} if hasattr(getattr(self.model, "config", None), "use_cache") else {}
        self._takes_positions = "position_ids" in _arguments(self.model)

    def losses(self, batch: Batch) -> Tensor:
        inputs, labels = self._split(batch)
        logits = call(self.model, {**inputs, **self._no_cache} if isinstance(inputs, Mapping) else inputs)
        if logits.ndim != 3 or logits.shape[:2] != labels.shape:
            raise TaskError(
                f"the model returned shape {tuple(logits.shape)} for labels of shape {tuple(labels.shape)}; LanguageModel "
                "needs logits of shape (B, T, vocabulary), one for every label (prompt tuning adds some: write a Task)"
            )
        predicted = labels != self.ignore_index
        if self.kind == "causal":
            logits, labels, predicted = logits[:, :-1], labels[:, 1:], predicted[:, 1:]
            mask = _mask(batch)
            if mask is not None:
                # The first token after padding is predicted from nothing, as is that of a row without padding.
                predicted = predicted & (mask[:, :-1] != 0)
        # Padding, and what is not masked, is most of some batches: it is left out before the vocabulary is widened.
        losses = F.cross_entropy(widened(logits[predicted]), labels[predicted], reduction="none")
        by_token = losses.new_zeros(labels.shape).index_put(predicted.nonzero(as_tuple=True), losses)
        total = by_token.sum(dim=1)
        return total / (predicted.sum(dim=1).clamp(min=1) if self.reduction == "mean" else self.divisor)

    def predictions(self, batch: Batch) -> list[str]:
        """The perplexity of every sample, or its loss where that is no mean."""
        losses = self.losses(batch).detach()
        if self.reduction == "sum":
            return [f"loss {loss:.3g}" for loss in losses.tolist()]
        return [f"perplexity {perplexity:.3g}" for perplexity in losses.exp().tolist()]

    def labels(self, batch: Batch) -> list[str] | None:
        """The predicted tokens in words, where there is a tokenizer."""
        if self.tokenizer is None:
            return None
        _, labels = self._split(batch)
        rows = [row[row != self.ignore_index].tolist() for row in labels]
        return [str(self.tokenizer.decode(row, skip_special_tokens=True)) for row in rows]

    def _split(self, batch: Batch) -> tuple[Any, Tensor]:
        """What the model is called with, and a label for every token, not shifted yet."""
        if isinstance(batch, Mapping):
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            labels, mask = batch.get("labels"), _mask(batch)
            if labels is None:
                labels = self._own_labels(batch, mask)
            if self.kind == "causal" and mask is not None and self._takes_positions and "position_ids" not in batch:
                inputs["position_ids"] = _positions(mask)
            return inputs, labels
        parts = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
        if len(parts) in (1, 2) and all(isinstance(part, Tensor) for part in parts):
            if len(parts) == 1:
                self._refuse_without_labels()
            return parts[0], parts[-1]
        raise TaskError(
            f"a batch must be a mapping with input_ids, a tensor of tokens or (tokens, labels), and is a "
            f"{type(batch).__name__}; pass collate= a function that makes one of them, or write a Task"
        )

    def _own_labels(self, batch: Mapping[str, Any], mask: Tensor | None) -> Tensor:
        self._refuse_without_labels()
        tokens = batch.get("input_ids")
        if not isinstance(tokens, Tensor):
            raise TaskError(
                f"the batch has keys {sorted(map(str, batch))} and no tensor input_ids or labels; pass collate= a function "
                "that makes tensors of the tokens, such as transformers.DataCollatorWithPadding(tokenizer)"
            )
        return tokens if mask is None else tokens.masked_fill(mask == 0, self.ignore_index)

    def _refuse_without_labels(self) -> None:
        if self.kind == "masked":
            raise TaskError(
                "LanguageModel(kind='masked') needs labels: the tokens that were masked, and ignore_index elsewhere; mask "
                "the data set once, before training"
            )


def _mask(batch: Batch) -> Tensor | None:
    """Int64[Tensor, "B T"], 0 where a batch is padded; ``None`` where it does not say so token by token."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask if isinstance(mask, Tensor) and mask.ndim == 2 else None


def _positions(mask: Tensor) -> Tensor:
    """Int64[Tensor, "B T"], counted from the first token of each row."""
    # For every row, even where all are alike: a layer that is called for all samples at once cannot tell them apart.
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def _arguments(model: nn.Module) -> Iterable[str]:
    """What the model can be called with by name; an adapter's wrapper (peft) is asked for what it wraps."""
    inner = getattr(model, "get_base_model", None)
    return inspect.signature((inner() if callable(inner) else model).forward).parameters
