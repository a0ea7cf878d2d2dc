"""Contrastive losses: every pair of a batch is told from every other, so that losses are coupled.

With s_ij the scaled similarity of picture i and text j, and w_i how often pair i counts,

    CLIP      sum over i of  w_i / 2 ( log sum_j w_j exp s_ij  +  log sum_j w_j exp s_ji  -  2 s_ii )
    SigLIP    sum over i of  w_i l_ii  +  sum over i != j of  w_i w_j l_ij,      l_ij = log(1 + exp(-y_ij s_ij)),

y = 1 on the diagonal and -1 elsewhere. Both are B times the objective that the models are trained with where w = 1
(Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021; Zhai et al., "Sigmoid Loss for
Language Image Pre-Training", 2023), and a pair of weight 0 is neither a positive nor a negative. Their derivatives with
respect to w_z at w = 1, what pair z adds to the losses of the batch, are

    CLIP      l_z + 1/2 sum over i of ( p_i(z) + q_i(z) ),       l_z its own loss,
    SigLIP    l_zz + sum over j != z of ( l_zj + l_jz ),

with p_i(z) the probability of text z for picture i, and q_i(z) that of picture z for text i.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffin.batches import Batch
from diffin.errors import TaskError
from diffin.task import Outcome, Task
from diffin.tasks.supervised import widened

IMAGE_KEYS = ("pixel_values", "images", "image")
TEXT_KEYS = ("input_ids", "texts", "text")
_IMAGE_OUTPUTS = ("image_embeds", "image_features")
_TEXT_OUTPUTS = ("text_embeds", "text_features")


class Contrastive(Task):
    """The loss of CLIP or SigLIP of a model with a tower for pictures and one for texts.

    A batch is ``(images, texts)``, or a mapping with the names of the model's arguments. The model returns normalised
    features of both, as Hugging Face's ``CLIPModel`` and ``SiglipModel``, the models of ``open_clip``, and
    :class:`TwoTowers` do: a tuple ``(images, texts, scale[, bias])``, or something with ``image_embeds`` and
    ``text_embeds``, or ``image_features`` and ``text_features``. ``logit_scale`` is taken from there, else the exponential of
    the model's own; ``logit_bias`` likewise, without the exponential.

    The loss column of scores holds a pair's own loss: for CLIP the mean over its picture among the texts and its text among
    the pictures, for SigLIP its own term and half of those that it shares with others. Their mean is the training objective.
    A pair with a feature that is not finite has no loss, and is left out of the losses of others.

    Args:
        model: the two towers.
        loss: ``"clip"`` or ``"siglip"``.
        group_size: how many pairs are told from each other at once. It should be the batch size of the training, that of all
            devices together where features are gathered, since a loss among fewer is another one. A group has to fit into
            memory.
        autocast: ``torch.bfloat16`` for a model that was trained under ``torch.autocast``; the losses are taken in float64 of
            what it returns.
        seed: draws which pairs are taken together when a dataset is scored, and when curvature is measured.

    Raises:
        TaskError: an argument is none of these.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: Literal["clip", "siglip"] = "clip",
        group_size: int = 256,
        autocast: torch.dtype | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model)
        if loss not in _OUTCOMES:
            raise TaskError(f"loss={loss!r}; pass 'clip' or 'siglip'")
        if not isinstance(group_size, int) or group_size < 2:
            raise TaskError(f"group_size={group_size!r}; pass how many pairs a batch of the training had, 2 or more")
        if autocast not in (None, torch.bfloat16):
            raise TaskError(
                f"autocast={autocast}; pass torch.bfloat16, or None: gradients in float16 vanish without a scaler, and are "
                "better taken in what the parameters are stored in"
            )
        if not isinstance(seed, int) or seed < 0:
            raise TaskError(f"seed={seed!r}; pass 0 or more")
        self.loss = loss
        self.group_size, self.group_seed, self.autocast = group_size, seed, autocast
        self._similarities = _Similarities()
        self._arguments = list(inspect.signature(self.model.forward).parameters)

    @property
    def boundary(self) -> nn.Module:
        return self._similarities

    def losses(self, batch: Batch) -> Tensor:
        return self.outcome(batch).losses

    def outcome(self, batch: Batch) -> Outcome:
        with self._precision():
            output = self._called(batch)
        return _OUTCOMES[self.loss](self._similarities(*self._features(output)))

    def similarities(self, batch: Batch) -> Tensor:
        """Scaled similarities of every picture (row) with every text (column). Float64[Tensor, "B B"]"""
        with self._precision():
            output = self._called(batch)
        scaled: Tensor = self._similarities(*self._features(output))
        return scaled

    def predictions(self, batch: Batch) -> list[str]:
        """At which place its own text comes, among the texts of the batch, for each picture."""
        similarities = self.similarities(batch)
        places = 1 + (similarities > similarities.diagonal()[:, None]).sum(dim=1)
        return [f"own text at place {place} of {len(places)}" for place in places.tolist()]

    def _precision(self) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return nullcontext()
        # Without its cache, which would hand weights from one derivative's call to another's.
        return torch.autocast(self.device.type, dtype=self.autocast, cache_enabled=False)

    def _called(self, batch: Batch) -> Any:
        if isinstance(batch, Mapping):
            known = {name: batch[name] for name in self._arguments if isinstance(batch.get(name), Tensor)}
            if len(known) >= 2:
                return self.model(**known)
            images, texts = (next((batch[k] for k in keys if k in batch), None) for keys in (IMAGE_KEYS, TEXT_KEYS))
            if images is None or texts is None:
                raise TaskError(
                    f"the batch has keys {sorted(map(str, batch))}; name them as the arguments of the model "
                    f"({', '.join(self._arguments[:4])}), or pass pairs of images and texts"
                )
        elif isinstance(batch, (tuple, list)) and len(batch) == 2:
            images, texts = batch
        else:
            length = f" of length {len(batch)}" if isinstance(batch, (tuple, list)) else ""
            raise TaskError(
                f"a batch must be (images, texts) or a mapping, and is a {type(batch).__name__}{length}; if the dataset also "
                "yields indices, score it without them"
            )
        if "pixel_values" in self._arguments:
            named = dict(images) if isinstance(images, Mapping) else {"pixel_values": images}
            return self.model(**named, **(texts if isinstance(texts, Mapping) else {"input_ids": texts}))
        return self.model(images, texts)

    def _features(self, output: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Features of pictures and texts, the scale of their products, and what is added to them."""
        if isinstance(output, Mapping):
            images, texts = (
                next((output[name] for name in names if output.get(name) is not None), None)
                for names in (_IMAGE_OUTPUTS, _TEXT_OUTPUTS)
            )
            scale, bias = output.get("logit_scale"), output.get("logit_bias")
        else:
            given = output if isinstance(output, (tuple, list)) else ()
            images, texts, scale, bias = (*given, None, None, None, None)[:4]
        own = getattr(self.model, "logit_scale", None)
        if scale is None and isinstance(own, Tensor):
            scale = own.exp()
        if bias is None:
            bias = getattr(self.model, "logit_bias", None)
        if not (isinstance(images, Tensor) and isinstance(texts, Tensor) and isinstance(scale, Tensor)):
            raise TaskError(
                f"the model returned {type(output).__name__}; return (images, texts, scale), or image_features, "
                "text_features and logit_scale by name, or use diffin.tasks.TwoTowers"
            )
        if images.ndim != 2 or images.shape != texts.shape:
            raise TaskError(
                f"the features of the images have shape {tuple(images.shape)} and those of the texts {tuple(texts.shape)}; "
                "both must be (B, width), one text for each image"
            )
        return images, texts, scale, bias


class TwoTowers(nn.Module):
    """Two towers of any kind, with features of length 1 and a learned temperature.

    ``forward(images, texts)`` returns ``(images, texts, scale)``, and the bias last if there is one.

    Args:
        image_tower: makes features of images, Float[Tensor, "B width"].
        text_tower: makes features of texts, as many.
        scale: what similarities are multiplied with at first, ``1 / temperature``; its logarithm is learned.
        bias: what is added to them at first, learned; ``None`` for none. SigLIP begins with scale 10 and bias -10.
    """

    def __init__(
        self, image_tower: nn.Module, text_tower: nn.Module, *, scale: float = 1 / 0.07, bias: float | None = None
    ) -> None:
        super().__init__()
        if not scale > 0:
            raise TaskError(f"scale={scale}; pass what similarities are multiplied with at first, above 0")
        self.image_tower, self.text_tower = image_tower, text_tower
        self.logit_scale = nn.Parameter(torch.tensor(scale).log())
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))

    def forward(self, images: Any, texts: Any) -> tuple[Tensor, ...]:
        features = _unit(self.image_tower(images)), _unit(self.text_tower(texts)), self.logit_scale.exp()
        return features if self.logit_bias is None else (*features, self.logit_bias)


def _unit(features: Tensor) -> Tensor:
    # The smallest number is there for a row of zeros; a clamp would be a kink.
    tiny = torch.finfo(features.dtype).tiny
    return features * torch.rsqrt(features.square().sum(dim=-1, keepdim=True) + tiny)


class _Similarities(nn.Module):
    """Float64[Tensor, "B B"]: pictures by texts, scaled. A module, so that losses can be cut where the model ends."""

    def forward(self, images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        # In the precision of the losses: under autocast the product would be rounded to 8 bits.
        device = images.device.type
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            wide = torch.promote_types(images.dtype, torch.float32)
            images, texts, scale = (widened(tensor.to(wide)) for tensor in (images, texts, scale))
            scaled = images @ texts.T * scale
            return scaled if bias is None else scaled + widened(bias.to(wide))


@dataclass(frozen=True)
class _Pairs(Outcome):
    """What the similarities of a batch say, those of pairs that are not finite left out.

    Attributes:
        similarities: Float[Tensor, "B B"], zero in rows and columns of pairs that are not finite.
        usable: Bool[Tensor, "B"].
    """

    similarities: Tensor
    usable: Tensor

    def weighted(self, weights: Tensor) -> Tensor:
        weights = weights.to(self.similarities.dtype)
        total = self._weighted(torch.where(self.usable, weights, 0))
        return torch.where((~self.usable & (weights != 0)).any(), torch.nan, total)

    def _weighted(self, weights: Tensor) -> Tensor:
        raise NotImplementedError

    def _with_gaps(self, values: Tensor) -> Tensor:
        return torch.where(self.usable, values, torch.nan)


def _finite(similarities: Tensor) -> tuple[Tensor, Tensor]:
    """Similarities without those of pairs that are not finite, and which pairs are."""
    usable = torch.isfinite(similarities.detach().diagonal())
    return torch.where(usable[:, None] & usable[None, :], similarities, 0), usable


class _Clip(_Pairs):
    """Cross-entropy of every picture among the texts, and of every text among the pictures."""

    def __init__(self, similarities: Tensor) -> None:
        cleaned, usable = _finite(similarities)
        there = usable.to(cleaned.dtype)
        rows, columns = _log_sums(cleaned, there), _log_sums(cleaned.T, there)
        own = (rows + columns) / 2 - cleaned.diagonal()
        super().__init__(torch.where(usable, own, torch.nan), cleaned, usable)

    def _weighted(self, weights: Tensor) -> Tensor:
        rows, columns = _log_sums(self.similarities, weights), _log_sums(self.similarities.T, weights)
        return (weights * ((rows + columns) / 2 - self.similarities.diagonal())).sum()

    def effects(self) -> Tensor:
        there = self.usable.to(self.similarities.dtype)
        shared = [
            (there[:, None] * torch.exp(scaled - _log_sums(scaled, there)[:, None])).sum(dim=0)
            for scaled in (self.similarities, self.similarities.T)
        ]
        return self._with_gaps(self.losses + (shared[0] + shared[1]) / 2)


class _Siglip(_Pairs):
    """The cross-entropy of every picture and text that they belong together, or not."""

    def __init__(self, similarities: Tensor) -> None:
        cleaned, usable = _finite(similarities)
        rows, columns, _ = _pair_losses(cleaned, usable.to(cleaned.dtype))
        super().__init__(torch.where(usable, (rows + columns) / 2, torch.nan), cleaned, usable)

    def _weighted(self, weights: Tensor) -> Tensor:
        rows, _, own = _pair_losses(self.similarities, weights)
        return (weights * (rows + (1 - weights) * own)).sum()

    def effects(self) -> Tensor:
        rows, columns, own = _pair_losses(self.similarities, self.usable.to(self.similarities.dtype))
        return self._with_gaps(rows + columns - own)


_OUTCOMES = {"clip": _Clip, "siglip": _Siglip}


def _log_sums(scaled: Tensor, weights: Tensor) -> Tensor:
    """``log sum_j w_j exp s_ij`` of every row; 0 where no weight is left. Float[Tensor, "B"]"""
    masked = scaled.masked_fill(weights == 0, -torch.inf)
    highest = masked.detach().amax(dim=1, keepdim=True)
    highest = torch.where(torch.isfinite(highest), highest, 0)
    total = (weights * torch.exp(masked - highest)).sum(dim=1)
    return torch.log(torch.where(total > 0, total, 1)) + highest.squeeze(1)


def _pair_losses(scaled: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``sum_j w_j l_ij``, ``sum_j w_j l_ji`` and ``l_ii`` of every pair i. Float[Tensor, "B"] each"""
    signs = 1 - 2 * torch.eye(len(scaled), dtype=scaled.dtype, device=scaled.device)  # -y
    losses = torch.logaddexp(signs * scaled, torch.zeros_like(scaled))
    return losses @ weights, weights @ losses, losses.diagonal()
