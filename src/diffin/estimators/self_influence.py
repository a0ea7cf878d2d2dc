"""Self-influence: what training on a sample did to its own loss, as probes.

The influence of z on a query V with the gradient of the query replaced by that of the sample, at m checkpoints T_m of a run
of T steps on N samples, E the learning rates of the step after the checkpoint by parameter:

    TracIn    I(z, z)  =  -(T / m) sum over t in T_m of (1 / N) < g_z, E g_z >
    Diff-In   I(z, z)  =  -sum over t in T_m of (t / (N m)) ( < E g_z, H_B E g_z > + < E g_z, H_z E g_B > ),

the second being Eq. 12 of Tan et al., "Understanding Data Influence with Differential Approximation" (TPAMI 2026, arXiv
2508.14648). No product of H_B is taken for a sample: with the r eigenpairs of S = E^1/2 H_B E^1/2 of largest magnitude,

    < E g_z, H_B E g_z >  =  < E^1/2 g_z, S E^1/2 g_z >  ~=  sum over i of  lambda_i (D_{E^1/2 w_i} l_z)^2,

r directional derivatives. S rather than H_B, so that parameters which hardly move take up no rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from diffin import vectors
from diffin.derivatives.gradient import SampleSet, mean_gradient
from diffin.derivatives.hessian import hessian_vector_product
from diffin.derivatives.lanczos import lanczos
from diffin.errors import DiffinError
from diffin.estimators.base import LocalEstimator, Moment
from diffin.estimators.diffin import DiffIn
from diffin.estimators.tracin import TracIn, first_order_weight
from diffin.probes import CheckpointProbes, Probe
from diffin.self_probes import SelfProbe
from diffin.trajectory import Checkpoint
from diffin.vectors import Vector


@dataclass(frozen=True)
class SelfInfluence(LocalEstimator):
    """Builds the probes of self-influence.

    Attributes:
        of: the estimator whose query becomes the sample itself.
        rank: r, how many eigenpairs stand for the curvature of a proxy batch (`DiffIn`).
        exact: build probes for the exact mode, which takes a product with H_B for every sample.
    """

    of: DiffIn | TracIn
    rank: int = 5
    exact: bool = False

    name: ClassVar[str] = "self-influence"
    needs_query: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.of, DiffIn | TracIn):
            raise DiffinError(
                f"estimator={self.of!r}: squares of gradients answer for diffin.DiffIn() and diffin.TracIn(); pass one"
            )
        check_rank(self.rank, "eigenpairs of the curvature")

    def describe(self) -> dict[str, Any]:
        settings = {key: value for key, value in self.of.describe().items() if key != "name"}
        curvature = {"exact": True} if self.exact else {"rank": self.rank}
        return {"name": self.name, "of": self.of.name, **settings, **(curvature if isinstance(self.of, DiffIn) else {})}

    def probes(self, at: Moment) -> tuple[Probe, ...]:
        del at
        return ()  # none asks about a query

    def at_checkpoint(self, at: Moment, checkpoint: Checkpoint) -> CheckpointProbes:
        found = self._diffin(self.of, at) if isinstance(self.of, DiffIn) else (self._tracin(at),)
        return CheckpointProbes(checkpoint.step, checkpoint.state, (), found)

    def _tracin(self, at: Moment) -> SelfProbe:
        return SelfProbe(first_order_weight(at), at.learning_rates)

    def _diffin(self, of: DiffIn, at: Moment) -> tuple[SelfProbe, ...]:
        weight = of.weight(at, "Eq. 12")
        found = []
        for number in range(of.batches):
            key = (of.seed, at.step, number)
            batch = at.draw(of.batch_size, *key)
            drift = at.rated(mean_gradient(at.loss, batch).gradient)
            if self.exact:
                found.append(SelfProbe(weight, at.learning_rates, drift, curvature=(of.batch_size or 0, *key)))
            else:
                found.append(SelfProbe(weight, at.learning_rates, drift, self._squares(of, at, batch, key)))
        return tuple(found)

    def _squares(
        self, of: DiffIn, at: Moment, batch: SampleSet, key: tuple[int, ...]
    ) -> tuple[tuple[float, Vector], ...]:
        roots = {name: sqrt(rate) for name, rate in at.learning_rates.items()}

        def product(vector: Vector) -> Vector:
            rated = vectors.scale(vector, roots)
            return vectors.scale(hessian_vector_product(at.loss, batch, rated, method=of.hessian), roots)

        # Enough products for the pairs of largest magnitude to have converged.
        spectrum = lanczos(product, _random_like(at.loss.parameters, key), 2 * self.rank + 10)
        largest = np.argsort(-np.abs(spectrum.values), kind="stable")[: self.rank]
        coordinates = np.eye(len(spectrum.values))
        return tuple(
            (float(spectrum.values[i]), vectors.scale(spectrum.vector(coordinates[i]), roots))
            for i in largest.tolist()
            if spectrum.values[i]
        )


def check_rank(rank: object, what: str) -> None:
    """Refuse what is not a number of something.

    Raises:
        DiffinError: saying what to pass.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise DiffinError(f"rank={rank!r}: pass the number of {what}, 1 or more")


def _random_like(parameters: Vector, key: tuple[int, ...]) -> Vector:
    """A vector in no particular direction, the same on every machine."""
    generator = np.random.default_rng(key)

    def noise(tensor: Tensor) -> Tensor:
        return torch.from_numpy(generator.standard_normal(tuple(tensor.shape))).to(tensor)

    return {name: noise(tensor) for name, tensor in parameters.items()}
