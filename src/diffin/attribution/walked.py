"""Directions of many queries by one walk back through the training, which carries the adjoints of all."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from diffin import stacks
from diffin.attribution.queries import Queries
from diffin.estimators import Unrolled, stepwise
from diffin.estimators.base import Built, Carried, Run
from diffin.probes import CheckpointProbes, Probe
from diffin.progress import Phase
from diffin.rerun import Adjoint


def build(
    estimator: Unrolled, run: Run, queries: Queries, built: Built, bar: Phase
) -> Iterator[tuple[CheckpointProbes, Carried]]:
    """The probes of every block of steps, with the directions of all queries stacked; what is carried are the adjoints."""
    assert estimator.hessian != "auto"  # it is `resolved` that is asked

    def unpack(carried: dict[str, Tensor]) -> list[Adjoint]:
        return [Adjoint.unpacked(one) for one in stacks.unstacked(carried)]

    for block in stepwise.walk(run, queries.sets(), built, bar, estimator.states, estimator.hessian, unpack):
        probe = Probe(1 / run.dataset_size, stacks.stacked(block.directions))
        carried = stacks.stacked([adjoint.packed() for adjoint in block.adjoints])
        yield CheckpointProbes(block.step, block.state, (probe,)), carried
