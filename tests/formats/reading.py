"""What each format holds, as JSON: told of what was in memory when it was written, and of what is read back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from diffin import Attribution, Deletion, ParameterInfluence, ProbeSet, Scores, Selection, Suspects, Trajectory
from diffin.actions.clean.decisions import Decision, read_decisions
from diffin.evaluation.truth import Truth
from diffin.probes import CheckpointProbes
from diffin.trajectory.checkpoints import Checkpoint

CLASSES = 3


def _plain(value: Any) -> Any:
    """Tensors and arrays as nested lists, NaN as null, bytes as a digest."""
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and value != value else value


def _checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    random, numbers = checkpoint.rng_state
    return {
        "step": checkpoint.step,
        "rates": checkpoint.group_learning_rates,
        "state": checkpoint.state,
        "parameters": sorted(checkpoint.parameters),
        "optimizer": checkpoint.optimizer_state,
        "random": {name: state.numpy().tobytes() for name, state in random.items()},
        "numbers": numbers,
    }


def run(found: Trajectory) -> Any:
    steps = found.steps
    assert steps is not None
    assert found.optimizer is not None
    return _plain(
        {
            "size": found.dataset_size,
            "complete": found.complete,
            "optimizer": found.optimizer.to_json(),
            "shapes": found.parameter_shapes,
            "obstacles": found.replay_obstacles(),
            "checkpoints": [checkpoint.step for checkpoint in found.checkpoints],
            "stored": [_checkpoint(checkpoint) for checkpoint in found.stored],
            "steps": [
                {
                    "rates": steps.learning_rates[step],
                    "indices": steps.indices(step),
                    "micro_batches": steps.micro_batches(step),
                    "randomness": steps.randomness(step),
                    "constants": steps.constants(step),
                    "clip": steps.clip_coefficient(step),
                    "clipping": None if (c := steps.clipping(step)) is None else [c.max_norm, c.norm_type],
                    "division": None if (d := steps.division(step)) is None else [d.divisors, d.items],
                }
                for step in range(len(steps))
            ],
            "items": steps.items_per_sample(),
            "unknown": steps.steps_without_indices(),
        }
    )


def probes(found: ProbeSet) -> Any:
    return _plain(
        {
            "steps": found.steps,
            "counts": found.counts,
            "parameters": found.parameters,
            "metadata": found.metadata,
            "digest": found.digest,
            "of_self": found.of_self,
            "checkpoints": [_probes_at(checkpoint) for checkpoint in found],
        }
    )


def _probes_at(checkpoint: CheckpointProbes) -> dict[str, Any]:
    contents = []
    for probe in (*checkpoint.probes, *checkpoint.self_probes):
        content: dict[str, Any] = {"weight": probe.weight, "tensors": probe.tensors()}
        if hasattr(probe, "to_json"):
            content["entry"] = probe.to_json()
        if hasattr(probe, "end"):
            content["end"] = probe.end.tensors()
        contents.append(content)
    return {"step": checkpoint.step, "state": checkpoint.state, "probes": contents}


def scores(found: Scores) -> Any:
    return _plain(
        {
            "influence": found.influence,
            "standard_error": found.standard_error,
            "loss": found.loss,
            "terms": found.terms,
            "failed": found.failed,
            "keys": found.keys,
            "failures": found.failures,
            "steps": found.steps,
            "columns": found.table.column_names,
        }
    )


def suspects(found: Suspects) -> Any:
    names = ("index", "given", "suggested", "probability", "suggestion_probability", "signals", "confusion", "details")
    return _plain({name: getattr(found, name) for name in names} | {"noise_rate": found.noise_rate})


def decisions(found: list[Decision]) -> Any:
    return [[one.index, one.given, one.verdict, one.label] for one in found]


def deletion(found: Deletion) -> Any:
    content = {"state": found.state, "samples": found.samples, "certificate": found.certificate.to_json()}
    return _plain(content)


def selection(found: Selection) -> Any:
    kept = [[one.fraction, one.indices, one.weights] for one in found.kept]
    return _plain(
        {"method": found.method, "size": found.size, "kept": kept, "cost": vars(found.cost), "details": found.details}
    )


def attribution(found: Attribution) -> Any:
    names = ("proponents", "proponent_influence", "opponents", "opponent_influence", "queries", "grouped", "samples")
    return _plain({name: getattr(found, name) for name in names} | {"matrix": [list(part) for part in found.matrix()]})


def parameter_influence(found: ParameterInfluence) -> Any:
    names = ("vector", "buffers", "state", "samples", "metadata", "norm")
    return _plain({name: getattr(found, name) for name in names})


def truth(found: Truth) -> Any:
    names = ("kind", "groups", "replicas", "order_seeds", "weight", "kept_weight", "per_query", "queries", "metadata")
    return _plain({name: getattr(found, name) for name in names} | {"influence": found.influence})


Reader = Callable[[Path], Any]

READERS: dict[str, Reader] = {
    "run": lambda path: run(Trajectory.open(path)),
    "probes": lambda path: probes(ProbeSet.open(path)),
    "probes-self": lambda path: probes(ProbeSet.open(path)),
    "probes-across": lambda path: probes(ProbeSet.open(path)),
    "scores": lambda path: scores(Scores.open(path)),
    "scores-replay": lambda path: scores(Scores.open(path)),
    "scores-keyed": lambda path: scores(Scores.open(path)),
    "scores-before-keys": lambda path: scores(Scores.open(path)),
    "suspects": lambda path: suspects(Suspects.open(path)),
    "decisions": lambda path: decisions(
        read_decisions(path / "decisions.json", labels=[number % CLASSES for number in range(24)], classes=CLASSES)
    ),
    "deletion": lambda path: deletion(Deletion.open(path)),
    "selection": lambda path: selection(Selection.open(path)),
    "attribution": lambda path: attribution(Attribution.open(path)),
    "parameter-influence": lambda path: parameter_influence(ParameterInfluence.open(path / "influence.safetensors")),
    "truth": lambda path: truth(Truth.open(path)),
}
"""By the name of a format: opens the folder of a fixture, looks at all that is in it, and tells it as JSON."""
