"""Small trainings whose influences can be known: each takes seconds, so that it can be retrained without a sample.

`case(name)` is one of `names()`; a name ending in `+flips` has a tenth of its training labels moved to another class.
`record` trains it under diffin's recorder.

    python benchmarks/accuracy/cases.py [NAME ...]     # train them and print what they are
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import models
import torch
import torch.nn.functional as F
from recipes import Recipe
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import TensorDataset

import diffin

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the data of the other benchmarks

FLIPPED = 0.1
QUERY = 400


@dataclass(frozen=True)
class Case:
    """A training, and a query about it.

    Attributes:
        architecture: what `models.build` takes.
        train: N samples, some labels perhaps wrong.
        query: other samples, labels correct.
        flipped: Bool[Tensor, "N"], which labels of `train` are wrong.
        init_seed: draws the first parameters.
        dtype: of parameters and inputs.
    """

    name: str
    architecture: str
    train: TensorDataset
    query: TensorDataset
    flipped: Tensor
    epochs: int
    batch_size: int
    recipe: Recipe
    init_seed: int
    dtype: torch.dtype

    @property
    def steps(self) -> int:
        """Of the whole training; an incomplete last batch of an epoch is dropped."""
        return self.epochs * (len(self.train) // self.batch_size)

    def build_model(self) -> nn.Module:
        """In training mode, as the first step finds it. All dtypes begin at the same values."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.init_seed)
            return models.build(self.architecture).to(self.dtype)

    def build_optimizer(self, model: nn.Module) -> tuple[torch.optim.Optimizer, LambdaLR]:
        """The optimizer, and the scheduler that steps after each of its steps."""
        return self.recipe.build(model.parameters(), self.steps)

    def batches(self, order_seed: int = 0) -> Iterator[Tensor]:
        """Indices Int64[Tensor, "batch_size"] of every step, in the order that the seed draws."""
        generator = torch.Generator().manual_seed(order_seed)
        used = len(self.train) // self.batch_size * self.batch_size
        for _ in range(self.epochs):
            yield from torch.randperm(len(self.train), generator=generator)[:used].split(self.batch_size)


def names() -> list[str]:
    """All cases, those with wrong labels after those without."""
    cnns = itertools.product(("sgd", "adamw"), ("plain", "group", "batch"), ("relu", "gelu"))
    clean = ["logistic", "mlp-sgd", "mlp-adamw", "mlp-constant", "mlp-relu"]
    clean += [f"cnn-{optimizer}-{norm}-{activation}" for optimizer, norm, activation in cnns]
    clean += ["transformer"]
    return [*clean, *(f"{name}+flips" for name in clean)]


def case(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Case:
    """The case of that name; the seed draws its samples, its wrong labels and its first parameters."""
    if name not in names():
        raise ValueError(f"no case is called {name!r}; there are {', '.join(names())}")
    base, _, flips = name.partition("+")
    family, *options = base.split("-")
    match family:
        case "logistic":
            architecture, size, epochs, batch_size = "logistic", 500, 40, 50
            recipe = Recipe("sgd", 0.5, "cosine", weight_decay=1e-2)
        case "mlp":
            architecture = "mlp-relu" if options[0] == "relu" else "mlp-gelu"
            size, epochs, batch_size = 600, 30, 32
            recipe = {
                "sgd": Recipe("sgd", 0.05, "cosine", momentum=0.9),
                "relu": Recipe("sgd", 0.05, "cosine", momentum=0.9),
                "adamw": Recipe("adamw", 3e-3, "cosine", weight_decay=1e-2),
                "constant": Recipe("sgd", 0.05, "constant", momentum=0.9),
            }[options[0]]
        case "cnn":
            architecture, size, epochs, batch_size = f"cnn-{options[1]}-{options[2]}", 2000, 12, 50
            # With normalisation, influence at a rate of 0.05 hardly agrees between two orders of the same data.
            rate = 0.05 if options[1] == "plain" else 0.01
            recipe = {
                "sgd": Recipe("sgd", rate, "cosine", momentum=0.9),
                "adamw": Recipe("adamw", 3e-3, "cosine", weight_decay=1e-2),
            }[options[0]]
        case _:
            architecture, size, epochs, batch_size = "transformer", 1500, 10, 50
            recipe = Recipe("adamw", 5e-4, "warm-up", weight_decay=1e-2)
    inputs, labels, classes = _data(family)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(inputs), generator=generator)[: size + QUERY]
    inputs, labels = inputs[chosen], labels[chosen]
    if inputs.is_floating_point():
        inputs = inputs.to(dtype)
    flipped = torch.zeros(size, dtype=torch.bool)
    given = labels[:size].clone()
    if flips:
        wrong = torch.randperm(size, generator=generator)[: int(FLIPPED * size)]
        given[wrong] = (given[wrong] + torch.randint(1, classes, (len(wrong),), generator=generator)) % classes
        flipped[wrong] = True
    return Case(
        name=name,
        architecture=architecture,
        train=TensorDataset(inputs[:size], given),
        query=TensorDataset(inputs[size:], labels[size:]),
        flipped=flipped,
        epochs=epochs,
        batch_size=batch_size,
        recipe=recipe,
        init_seed=seed,
        dtype=dtype,
    )


@cache
def _data(family: str) -> tuple[Tensor, Tensor, int]:
    """Inputs, labels and the number of classes."""
    if family == "transformer":
        from text import reviews

        return *reviews(), 2
    if family == "cnn":
        from data import dataset, fashion_mnist

        fashion = fashion_mnist()
        pictures, labels = dataset(fashion.train_images, fashion.train_labels).tensors
        return F.avg_pool2d(pictures, 2), labels, 10
    from sklearn.datasets import load_digits

    digits = load_digits()
    return torch.from_numpy(digits.data).float() / 16, torch.from_numpy(digits.target).long(), 10


def record(
    case: Case, folder: str | Path, *, order_seed: int = 0, checkpoints: int = 10
) -> tuple[nn.Module, diffin.Trajectory]:
    """Train a case under the recorder; the model comes back in evaluation mode."""
    inputs, targets = case.train.tensors
    model = case.build_model()
    optimizer, scheduler = case.build_optimizer(model)
    with diffin.Recorder(
        folder, model, optimizer, dataset_size=len(inputs), total_steps=case.steps, checkpoints=checkpoints
    ) as recorder:
        for indices in case.batches(order_seed):
            torch.autograd.backward(F.cross_entropy(model(inputs[indices]), targets[indices]))
            optimizer.step()
            recorder.step(indices)
            scheduler.step()
            optimizer.zero_grad()
    return model.eval(), diffin.Trajectory.open(folder)


def accuracy(model: nn.Module, dataset: TensorDataset) -> float:
    """The share of the samples that the model classifies as labelled."""
    inputs, targets = dataset.tensors
    with torch.inference_mode():
        return float((model(inputs).argmax(dim=1) == targets).double().mean())


def main(wanted: list[str]) -> None:
    torch.set_num_threads(1)
    print("| case | parameters | N | steps | seconds | loss, accuracy: train | query |")
    print("|---|---|---|---|---|---|---|")
    for name in wanted or names():
        studied = case(name)
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            model, _ = record(studied, Path(folder) / "run")
            seconds = time.perf_counter() - start
        parameters = sum(parameter.numel() for parameter in model.parameters())
        shown = []
        for dataset in (studied.train, studied.query):
            inputs, targets = dataset.tensors
            with torch.inference_mode():
                loss = float(F.cross_entropy(model(inputs), targets))
            shown.append(f"{loss:.4f} {accuracy(model, dataset):.3f}")
        print(
            f"| {name} | {parameters:,} | {len(studied.train)} | {studied.steps} | {seconds:.1f} | {' | '.join(shown)} |",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
