"""The change of the parameters by training on a set of samples, to first order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffin import reading, vectors
from diffin.derivatives.composite import differentiable_statistics
from diffin.derivatives.gradient import SampleSet, mean_gradient
from diffin.errors import DatasetError, DiffinError
from diffin.files import parse_json, write_atomically
from diffin.sources import Collate, Indices, open_source
from diffin.task import PerSampleLoss, Task, frozen
from diffin.tensor_files import save_tensors
from diffin.vectors import Vector

_FORMAT = 1
_KEY = "parameter_influence"


@dataclass(frozen=True)
class ParameterInfluence:
    """What training on a set Z of samples did to the model: theta(with Z) - theta(without Z), to first order.

    It is the sum over z in Z of d theta_T / d w_z, w_z the weight of the loss of z in training. Removing Z moves the
    parameters by minus the vector. All tensors are on the CPU.

    Attributes:
        vector: the change of the parameters, by name.
        buffers: that of running statistics, where the estimator follows them; empty otherwise.
        state: every tensor of the model at the end of the training, by name: the one with Z.
        samples: Int64[ndarray, "Z"], indices into the training set, ascending.
        metadata: the estimator and the run, JSON-able.
    """

    vector: Vector
    buffers: Vector
    state: Mapping[str, Tensor]
    samples: Indices
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def norm(self) -> float:
        """The length of the vector."""
        return vectors.norm(self.vector)

    def on(
        self, task: Task, query: Any, *, batch_size: int = 256, collate: Collate | None = None, workers: int = 0
    ) -> float:
        """What training on the set did to the mean loss of a query, by the inner product with its gradient at the end.

        Negative helps, positive harms. For `InverseHessian`, `Replay` and `Unrolled` it is the sum of the influence that
        :func:`diffin.score` gives to the samples. `TracIn` and `DiffIn` take the gradient of the query at every checkpoint
        when they score, and here there is only the last.

        Args:
            task: model and loss.
            query: the samples whose mean loss is asked about.
            batch_size: samples per gradient pass.
            collate: makes a batch of a list of samples; ``None`` for the default.
            workers: processes that read the data.

        Raises:
            DerivativeError: a loss of the query is not finite, or there is none.
            TrajectoryError: the state does not fit the model.
        """
        if query is None:
            raise DatasetError("query=None: pass the samples whose loss is asked about, e.g. a validation set")
        source = open_source(query, collate=collate, workers=workers)
        samples = SampleSet(lambda: (batch for _, batch in source.batches(batch_size)), "the query set")
        with frozen(task.model):
            loss = PerSampleLoss(task, self.state)
            point = {**loss.parameters, **{name: loss.rest[name] for name in self.buffers}}
            with differentiable_statistics():
                gradient = mean_gradient(loss, samples, at=point).gradient
        return vectors.dot(vectors.like({**self.vector, **self.buffers}, self._moved(gradient)), gradient)

    def _moved(self, gradient: Vector) -> Vector:
        moved = {name: t for name, t in gradient.items() if name in self.vector or name in self.buffers}
        if len(moved) < len(self.vector) + len(self.buffers):
            missing = next(name for name in (*self.vector, *self.buffers) if name not in moved)
            raise DiffinError(
                f"the model of the task has no trainable parameter {missing!r}, which was studied; build the task with the "
                "model that was trained"
            )
        return moved

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, its description in the metadata as JSON. It takes the place of another one."""
        path = Path(path)
        parts = {"vector": self.vector, "buffers": self.buffers, "state": self.state}
        tensors = {f"{part}/{n}": t for part, v in parts.items() for n, t in v.items()}
        tensors["samples"] = torch.from_numpy(self.samples.copy())
        described = json.dumps({"format": _FORMAT, **self.metadata})
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(path) as part:
            save_tensors(part, tensors, {_KEY: described})

    @classmethod
    def open(cls, path: str | Path) -> ParameterInfluence:
        """Read what :meth:`save` wrote.

        Raises:
            DiffinError: there is no such file, or it holds something else.
        """
        try:
            tensors, described = reading.described_tensors(Path(path))
            metadata = parse_json(described.get(_KEY, "null"))
            if not isinstance(metadata, dict):
                raise ValueError("nothing says what it holds")
            found = metadata.pop("format", None)
            samples = sample_indices(tensors.pop("samples", None))
        except FileNotFoundError:
            raise DiffinError(f"{path} does not exist; write it with ParameterInfluence.save") from None
        except (OSError, ValueError) as error:
            raise DiffinError(f"{path} holds no parameter influence ({error}); compute and save it again") from error
        if found != _FORMAT:
            raise DiffinError(f"{path} has format {found!r}; this version reads {_FORMAT}")
        parts: dict[str, Vector] = {"vector": {}, "buffers": {}, "state": {}}
        for full_name, tensor in tensors.items():
            part, _, name = full_name.partition("/")
            parts.setdefault(part, {})[name] = tensor
        state = parts["state"]
        moved = (*parts["vector"].items(), *parts["buffers"].items())
        if len(parts) > 3 or any(name not in state or tensor.shape != state[name].shape for name, tensor in moved):
            raise DiffinError(f"{path} holds no parameter influence of the state in it; compute and save it again")
        return cls(parts["vector"], parts["buffers"], parts["state"], samples, metadata)


def sample_indices(stored: Tensor | None) -> Indices:
    """Int64[ndarray, "Z"], the indices of samples that a file of tensors holds.

    Raises:
        ValueError: it holds none, or something else.
    """
    if stored is None or stored.dtype != torch.int64 or stored.ndim != 1 or bool((stored < 0).any()):
        raise ValueError("it does not hold the indices of samples")
    found: Indices = stored.numpy()
    return found
