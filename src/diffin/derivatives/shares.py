"""What one call of a layer adds to the gradient of one of its parameters, sample by sample.

For a layer ``y = f(x; W)`` linear in W, with delta the gradient of the loss with respect to y, a linear map or a convolution
adds to the gradient of a sample's loss

    sum over positions t of  delta_t a_t'        (a_t: the part of the input that meets W at position t),

a sum of T outer products. The whole of it takes T K O multiplications, its squared norm ``sum over t, s of
(a_t . a_s)(delta_t . delta_s)`` only T^2 (K + O) (Goodfellow, "Efficient Per-Example Gradient Computations", 2015, for T = 1;
Li et al., "Large Language Models Can Be Strong Differentially Private Learners", ICLR 2022, beyond), and its product with a
direction U, ``sum over t of delta_t . U a_t``, T K O. Which is cheapest differs from layer to layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_ELEMENTS = 2**22
"""Of rows formed at once where only their norms and products are wanted."""


class Share(Protocol):
    """A part of the gradient of a parameter, for each of B samples."""

    def rows(self, samples: slice) -> Tensor:
        """That part itself. Float[Tensor, "b *shape"]"""
        ...

    def squares(self, directions: int) -> Tensor | None:
        """Its squared norm, Float64[Tensor, "B"]; ``None`` if it, and so many products, are cheaper with its rows."""
        ...

    def products(self, directions: Tensor) -> Tensor:
        """Its products with one direction or more, Float[Tensor, "r *shape"], without its rows. Float[Tensor, "B r"]"""
        ...


@dataclass(frozen=True)
class Formed:
    """A part that is known already.

    Attributes:
        whole: Float[Tensor, "B *shape"].
    """

    whole: Tensor

    def rows(self, samples: slice) -> Tensor:
        return self.whole[samples]

    def squares(self, directions: int) -> Tensor | None:
        del directions
        return squared(self.whole)

    def products(self, directions: Tensor) -> Tensor:
        return self.whole.flatten(1) @ directions.flatten(1).T


@dataclass(frozen=True)
class Outer:
    """A sum of outer products over T positions, for each of G groups of rows of the parameter.

    Attributes:
        left: Float[Tensor, "B G T O"].
        right: Float[Tensor, "B G T K"].
        shape: of the parameter: G * O rows of K entries.
    """

    left: Tensor
    right: Tensor
    shape: torch.Size

    def rows(self, samples: slice) -> Tensor:
        left, right = self.left[samples], self.right[samples]
        transposed = left.transpose(2, 3)
        whole = transposed * right if left.shape[2] == 1 else torch.matmul(transposed, right)
        return whole.reshape(-1, *self.shape)

    def squares(self, directions: int) -> Tensor | None:
        positions, out, width = *self.left.shape[2:], self.right.shape[3]
        apart = positions**2 * (out + width) + directions * positions * out * width
        if (positions + directions + 1) * out * width < apart:
            return None
        if positions == 1:
            # The exact product of two numbers, where a Gram matrix would round twice.
            return (
                (squared(self.left.flatten(0, 1)) * squared(self.right.flatten(0, 1))).view(len(self.left), -1).sum(1)
            )
        grams = [torch.matmul(side, side.transpose(2, 3)) for side in (self.left, self.right)]
        return _wide(grams[0] * grams[1]).flatten(1).sum(dim=1)

    def products(self, directions: Tensor) -> Tensor:
        count, groups, out = len(directions), self.left.shape[1], self.left.shape[3]
        total = self.left.new_zeros(len(self.left), count)
        # Group by group, and all directions in one product of matrices.
        for group, u in enumerate(directions.reshape(count, groups, out, -1).unbind(1)):
            moved = (self.right[:, group] @ u.flatten(0, 1).T).view(len(self.left), -1, count, out)
            total += torch.einsum("btro,bto->br", moved, self.left[:, group])
        return total


@dataclass(frozen=True)
class Looked:
    """What a table of rows gets from T look-ups.

    Attributes:
        indices: Int64[Tensor, "B T"], the rows looked up.
        deltas: Float[Tensor, "B T K"].
        shape: of the parameter, (V, K).
    """

    indices: Tensor
    deltas: Tensor
    shape: torch.Size

    def rows(self, samples: slice) -> Tensor:
        indices, deltas = self.indices[samples], self.deltas[samples]
        whole = deltas.new_zeros(len(indices), *self.shape)
        return whole.scatter_add_(1, indices.unsqueeze(-1).expand_as(deltas), deltas)

    def squares(self, directions: int) -> Tensor | None:
        del directions
        # One row for each pair of a sample and what it looks up, however often.
        size, length = self.indices.shape
        sample = torch.arange(size, device=self.indices.device).repeat_interleave(length)
        pairs, place = torch.unique(sample * self.shape[0] + self.indices.flatten(), return_inverse=True)
        sums = self.deltas.new_zeros(len(pairs), self.shape[1]).index_add_(0, place, self.deltas.flatten(0, 1))
        norms = squared(sums)
        return norms.new_zeros(size).index_add_(0, (pairs // self.shape[0]).to(norms.device), norms)

    def products(self, directions: Tensor) -> Tensor:
        return torch.stack([(u[self.indices] * self.deltas).flatten(1).sum(dim=1) for u in directions], dim=1)


def squared(rows: Tensor) -> Tensor:
    """Squared norms of rows. Float64[Tensor, "B"], on the host where the device has no such type (MPS)."""
    wide = rows.dtype if rows.device.type == "mps" else torch.float64
    return _wide(torch.linalg.vector_norm(rows.flatten(1), dim=1, dtype=wide)).square()


def _wide(tensor: Tensor) -> Tensor:
    return tensor.cpu().double() if tensor.device.type == "mps" else tensor.double()


def summed(shares: Sequence[Share], size: int, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Squared norms of the sum of the shares of one parameter, and its products with directions.

    Args:
        shares: one at least.
        size: B.
        directions: Float[Tensor, "r *shape"]; r may be 0.

    Returns:
        Float64[Tensor, "B"] and Float[Tensor, "B r"].
    """
    share = merged(shares)
    if len(share) == 1 and (squares := share[0].squares(len(directions))) is not None:
        return squares, share[0].products(directions) if len(directions) else directions.new_zeros(size, 0)
    found = []
    count = max(1, _ELEMENTS // max(1, directions.shape[1:].numel()))
    for start in range(0, size, count):
        rows = total([one.rows(slice(start, start + count)) for one in share])
        found.append((squared(rows), rows.flatten(1) @ directions.flatten(1).T))
    return torch.cat([squares for squares, _ in found]), torch.cat([products for _, products in found])


def merged(shares: Sequence[Share]) -> Sequence[Share]:
    """Fewer shares of the same sum: several sums of outer products are one over all their positions."""
    outer = [share for share in shares if isinstance(share, Outer)]
    if len(outer) < 2:
        return shares
    left, right = (torch.cat([getattr(one, side) for one in outer], dim=2) for side in ("left", "right"))
    others = [share for share in shares if not isinstance(share, Outer)]
    return [Outer(left, right, outer[0].shape), *others]


def total(rows: Sequence[Tensor]) -> Tensor:
    """The sum; a single one is not copied."""
    first, *others = rows
    for other in others:
        first = first + other
    return first
