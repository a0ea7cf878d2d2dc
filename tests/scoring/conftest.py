"""A small task with random probes, and what they say of a sample by dense autodiff in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from diffin.probes import CheckpointProbes, Probe, ProbeSet, ProbeWriter
from diffin.task import Task
from diffin.tasks import Classification

STEPS = (0, 7, 20)
COUNT = 37


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def task() -> Classification:
    torch.manual_seed(0)
    return Classification(nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3)).double())


@pytest.fixture
def dataset() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(COUNT, 4, generator=generator, dtype=torch.float64)
    return TensorDataset(inputs, torch.randint(0, 3, (COUNT,), generator=generator))


@pytest.fixture
def probes(task: Classification, tmp_path: Path) -> ProbeSet:
    return random_probes(task, tmp_path / "probes")


@pytest.fixture
def make_probes() -> Callable[..., ProbeSet]:
    return random_probes


def random_probes(task: Task, path: Path, seed: int = 2, steps: tuple[int, ...] = STEPS) -> ProbeSet:
    """Two probes a checkpoint, one of second order and one of first, in random directions at random states."""
    generator = torch.Generator().manual_seed(seed)

    def noise() -> dict[str, Tensor]:
        return {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in task.model.named_parameters()}

    writer = ProbeWriter(path, [name for name, _ in task.model.named_parameters()], {"seed": seed})
    for step in steps:
        pair = (Probe(-0.5, noise(), (noise(), noise())), Probe(0.25, noise()))
        writer.write(CheckpointProbes(step, noise(), pair))
    return writer.finish(list(steps))


@pytest.fixture
def reference(
    task: Classification, probes: ProbeSet, dataset: TensorDataset
) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """Losses and terms, both (N, m): whole gradients and Hessians of every sample, written out."""

    def dense() -> tuple[np.ndarray, np.ndarray]:
        shapes = [p.shape for p in task.model.parameters()]
        losses, terms = np.zeros((COUNT, len(probes))), np.zeros((COUNT, len(probes)))
        for column, checkpoint in enumerate(probes):
            names = [name for name, _ in task.model.named_parameters()]
            theta = torch.cat([checkpoint.state[name].flatten() for name in names])
            for row in range(COUNT):
                inputs, target = dataset[row]

                def loss(flat: Tensor, inputs: Tensor = inputs, target: Tensor = target) -> Tensor:
                    pieces = torch.split(flat, [shape.numel() for shape in shapes])
                    w1, b1, w2, b2 = (piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True))
                    logits = w2 @ nn.functional.gelu(w1 @ inputs + b1) + b2
                    return torch.logsumexp(logits, 0) - logits[target]

                gradient = torch.autograd.functional.jacobian(loss, theta)
                hessian = torch.autograd.functional.hessian(loss, theta)
                losses[row, column] = loss(theta)
                for probe in checkpoint.probes:
                    flat = [torch.cat([v[n].flatten() for n in names]) for v in (probe.u, *(probe.mixed or ()))]
                    terms[row, column] += probe.weight * (gradient @ flat[0])
                    if probe.mixed is not None:
                        terms[row, column] += probe.weight * (flat[1] @ hessian @ flat[2])
        return losses, terms

    return dense
