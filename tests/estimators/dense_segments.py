"""The recursion of `Unrolled` by segments in matrices over all parameters, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

import diffin
from cases import Dense
from diffin.task import PerSampleLoss, Task, frozen

Scored = tuple[Task, diffin.Trajectory, TensorDataset, TensorDataset]
"""Task, trajectory, training set and query."""


def stability_limit(beta: float, kappa: float, nesterov: bool) -> float:
    """The largest eta times curvature at which a step of SGD on a quadratic does not grow.

    The roots of z^2 - (1 + beta - kappa h) z + beta, and of z^2 - (1 + beta)(1 - h) z + beta (1 - h), reach -1 there.
    """
    return 2 * (1 + beta) / (1 + 2 * beta) if nesterov else 2 * (1 + beta) / kappa


class DenseSegments:
    """The terms of every sample: states and pushes as matrices over all parameters, segment after segment.

    The state is (x, y), derivatives of parameters and momentum buffer. A step takes it to T (x, y) + B s for a push s
    in the gradient of the loss; what T and B are is written out from ``torch.optim``, with the Hessian and
    preconditioner of the checkpoint.
    """

    def __init__(self, of: Scored, parameters: Any = None) -> None:
        self.task, self.trajectory, train, query = of
        self.train, self.query, self.patterns = train.tensors, query.tensors, parameters
        self.size = len(train)

    def at(self, checkpoint: Any) -> Dense:
        return Dense(PerSampleLoss(self.task, checkpoint.state, self.patterns))

    def terms(self) -> np.ndarray:
        with frozen(self.task.model):
            dense = self.at(self.trajectory.final or self.trajectory.checkpoints[-1])
            count = len(dense.theta)
            ahead = torch.cat([dense.gradient(self.query), torch.zeros(count, dtype=torch.float64)])
            steps = [c.step for c in self.trajectory.checkpoints]
            columns = []
            for checkpoint in reversed(self.trajectory.checkpoints):
                # A step belongs to the nearest checkpoint, and to the later of two.
                mine = [
                    t for t in range(self.trajectory.total_steps)
                    if min(steps, key=lambda s: (abs(s - t), -s)) == checkpoint.step
                ]  # fmt: skip
                dense = self.at(checkpoint)
                hessian = dense.hessian(self.train)
                direction = torch.zeros(count, dtype=torch.float64)
                for transfer, push in reversed([self.step(dense, hessian, checkpoint, t, mine) for t in mine]):
                    direction += push.T @ ahead
                    ahead = transfer.T @ ahead
                gradients = torch.stack([dense.gradient(dense.sample(self.train, z)) for z in range(self.size)])
                columns.append(gradients @ direction / self.size)
        return torch.stack(columns[::-1], dim=1).numpy()

    def entries(self, dense: Dense, value: Callable[[str], Any]) -> Tensor:
        return dense.flatten({n: torch.full(shape, 1.0).double() * value(n) for n, shape in dense._shapes.items()})

    def step(self, dense: Dense, hessian: Tensor, checkpoint: Any, t: int, mine: list[int]) -> tuple[Tensor, Tensor]:
        log, optimizer = self.trajectory.steps, self.trajectory.optimizer
        count = len(dense.theta)
        eye = torch.eye(count, dtype=torch.float64)
        if log is not None and log.skipped[t]:
            return torch.eye(2 * count, dtype=torch.float64), torch.zeros(2 * count, count, dtype=torch.float64)
        if log is None or optimizer is None:
            rate, coefficient, beta, kappa, a, b = checkpoint.learning_rate, 1.0, 0.0, 1.0, 1.0, 0.0
            root, coupled, decoupled = torch.ones(count).double(), torch.zeros(count).double(), None
            limit, faster = 2.0, rate
        else:
            rates = log.learning_rates[mine[0] : mine[-1] + 1].mean(axis=0)
            lead = int(rates.argmax())
            taken = int((~log.skipped[:t]).sum())
            ratio = {n: rates[i] / rates[lead] for i, g in enumerate(optimizer.groups) for n in g.names}
            own = {n: c for g, c in zip(optimizer.groups, log.constants(checkpoint.step), strict=True) for n in g.names}
            constants, rate = log.constants(t)[lead], float(log.learning_rates[t, lead])
            coefficient = float(log.clip_coefficients[t])
            beside = optimizer.kind == "AdamW"
            decay = self.entries(dense, lambda n: own[n]["weight_decay"])
            scale = self.entries(dense, lambda n: ratio[n])
            decoupled = rate * scale * decay if beside else None
            coupled = torch.zeros_like(decay) if beside else decay
            faster, nesterov = rate, False
            if optimizer.kind == "SGD":
                beta, nesterov = constants["momentum"], constants["nesterov"]
                kappa = 1.0 if taken == 0 else 1 - constants["dampening"]
                # Without momentum a step is rate times gradient; Nesterov's adds beta times the buffer to the gradient.
                a, b = (1.0, beta) if nesterov else (0.0, 1.0)
            else:
                beta, kappa, a, b = constants["betas"][0], 1 - constants["betas"][0], 0.0, 1.0
                faster = rate / (1 - beta ** (taken + 1))
                scale = scale * self.preconditioner(dense, checkpoint, own)
            root = scale.sqrt()
            limit = stability_limit(beta, kappa, nesterov)
        # The guard: curvature, decay included, is cut to [0, half of what the clipped step could stand].
        values, vectors = torch.linalg.eigh(root[:, None] * (hessian + torch.diag(coupled)) * root)
        cut = vectors @ torch.diag(values.clamp(0.0, limit / 2 / (faster * coefficient))) @ vectors.T
        # Clipping comes before decay is added: what was cut down with the rest is put back.
        curved = coefficient * cut + (1 - coefficient) * torch.diag(root**2 * coupled)
        upon, behind = torch.diag(root), torch.diag(torch.where(root > 0, 1 / root, 0.0))
        curved, shrink = upon @ curved @ behind, eye if decoupled is None else torch.diag(1 - decoupled)
        # In the parameters' own coordinates, g' = inner x + c s, and a step of x is -rate R^2 (a g' + b y).
        inner = behind @ behind @ curved
        moved = faster * upon @ upon
        rows = [
            torch.cat([shrink - (a + b * kappa) * moved @ inner, -b * beta * moved], 1),
            torch.cat([kappa * inner, beta * eye], 1),
        ]
        push = torch.cat([-(a + b * kappa) * coefficient * moved, kappa * coefficient * eye])
        return torch.cat(rows), push

    def preconditioner(self, dense: Dense, checkpoint: Any, own: dict[str, Any]) -> Tensor:
        mean = dense.unflatten(dense.gradient(self.train))
        found = {}
        for name, gradient in mean.items():
            kept, constants = checkpoint.optimizer_state.get(name, {}), own[name]
            square = gradient.square()
            if "exp_avg_sq" in kept:
                key = "max_exp_avg_sq" if constants["amsgrad"] else "exp_avg_sq"
                square = kept[key] / (1 - constants["betas"][1] ** int(kept["step"]))
            found[name] = torch.where(square > 0, 1 / (square.sqrt() + constants["eps"]), 0.0)
        return dense.flatten(found)
