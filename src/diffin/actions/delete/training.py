"""Short trainings from a given state, for recovery and for the baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffin.batches import Batch
from diffin.errors import DiffinError
from diffin.sources import Indices, Source
from diffin.task import PerSampleLoss, Task, as_trained
from diffin.trajectory import Trajectory, randomness

Objective = Callable[[PerSampleLoss, Mapping[str, Tensor], Batch, int], Tensor]
"""What a step goes down, of (losses, parameters, the kept batch on the device, the number of the step)."""


def mean_of_losses(loss: PerSampleLoss, parameters: Mapping[str, Tensor], batch: Batch, step: int) -> Tensor:
    """The plain training objective."""
    del step
    return loss(parameters, batch).mean()


@dataclass(frozen=True)
class Recipe:
    """How to take the steps.

    Attributes:
        steps: how many.
        rate: learning rate of the first; it decays linearly, to nothing after the last.
        batch_size: samples of a step.
        seed: of the draws.
    """

    steps: int
    rate: float
    batch_size: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch_size < 1 or not self.rate > 0:
            raise DiffinError(
                f"steps={self.steps}, batch_size={self.batch_size}, rate={self.rate}; pass 0 or more steps, batches of 1 or "
                "more, and a rate above 0"
            )

    @staticmethod
    def like(trajectory: Trajectory, steps: int, *, share: float = 0.1, seed: int = 0) -> Recipe:
        """Steps with batches as recorded, at a share of the highest learning rate that was used."""
        log = trajectory.steps
        if log is None:
            rate = max(checkpoint.learning_rate for checkpoint in trajectory.checkpoints)
            return Recipe(steps, share * rate, 64, seed)
        first = log.indices(0)
        size = 64 if first is None else len(first)
        return Recipe(steps, share * float(log.learning_rates.max()), size, seed)


def train_on(
    task: Task,
    trajectory: Trajectory,
    source: Source,
    samples: Indices,
    state: Mapping[str, Tensor],
    recipe: Recipe,
    objective: Objective = mean_of_losses,
) -> dict[str, Tensor]:
    """Take steps on some samples from a state, with an optimizer of the recorded kind that begins anew.

    The model of the task is in training mode meanwhile, and read only; the random numbers of the caller are put back.

    Returns:
        Every tensor of the model by name, on the CPU.

    Raises:
        DiffinError: the parameters became infinite.
    """
    generator = np.random.default_rng(recipe.seed)
    kept = randomness.capture()
    try:
        with as_trained(task.model):
            loss = PerSampleLoss(task, state)
            point = {name: t.clone().requires_grad_() for name, t in loss.parameters.items()}
            optimizer = _optimizer(trajectory, list(point.values()), recipe.rate)
            torch.manual_seed(recipe.seed)
            for step in range(recipe.steps):
                for group in optimizer.param_groups:
                    group["lr"] = recipe.rate * (1 - step / recipe.steps)
                drawn = generator.choice(samples, min(recipe.batch_size, len(samples)), replace=False)
                optimizer.zero_grad()
                with torch.enable_grad():
                    torch.autograd.backward(objective(loss, point, loss.to_device(source.fetch(drawn)), step))
                optimizer.step()
    finally:
        randomness.restore(*kept)
    found = {name: t.detach().cpu() for name, t in {**loss.rest, **point}.items()}
    if not all(bool(torch.isfinite(t).all()) for t in found.values() if t.is_floating_point()):
        raise DiffinError(
            f"{recipe.steps} steps at rate {recipe.rate:g} made the parameters infinite; pass a smaller rate"
        )
    return found


def _optimizer(trajectory: Trajectory, parameters: list[Tensor], rate: float) -> torch.optim.Optimizer:
    """Of the recorded kind, with the constants of its first group at its last step."""
    described, log = trajectory.optimizer, trajectory.steps
    if described is None or log is None or described.kind not in ("SGD", "Adam", "AdamW"):
        return torch.optim.SGD(parameters, lr=rate)
    constants = log.constants(trajectory.total_steps - 1)[0]
    decay = constants["weight_decay"]
    if described.kind == "SGD":
        return torch.optim.SGD(parameters, lr=rate, momentum=constants["momentum"], weight_decay=decay)
    adam = torch.optim.AdamW if constants.get("decoupled_weight_decay") else torch.optim.Adam
    return adam(parameters, lr=rate, betas=constants["betas"], eps=constants["eps"], weight_decay=decay)
