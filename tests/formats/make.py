"""Writes one small fixture of every file format, and beside them what they hold: ``python tests/formats/make.py FOLDER``.

Run it when a format gets a new version, into a new folder; those that are there stay, and must stay readable.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Subset, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1]))

import diffin
from diffin.actions.clean.decisions import FORMAT, KIND, read_decisions
from diffin.estimators.self_influence import SelfInfluence
from diffin.estimators.self_unrolled import SelfUnrolled
from diffin.evaluation import leave_one_out
from diffin.sources import Keyed
from diffin.tasks import Classification
from formats import reading

SAMPLES, STEPS, BATCH = 24, 8, 6
QUIET: dict[str, Any] = {"progress": False}


def samples(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % reading.CLASSES
    return TensorDataset(torch.randn(count, 4, generator=generator) + labels[:, None], labels)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Linear(3, reading.CLASSES))


def train(folder: Path, task: Classification, data: TensorDataset) -> diffin.Trajectory:
    """Two parameter groups, momentum, a schedule, clipping, and steps of two micro-batches."""
    first, second = (list(task.model[place].parameters()) for place in (0, 2))
    optimizer = torch.optim.SGD([{"params": first, "lr": 0.1}, {"params": second, "lr": 0.05}], momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    generator = torch.Generator().manual_seed(1)
    with diffin.Recorder(
        folder, task.model, optimizer, dataset_size=SAMPLES, total_steps=STEPS, checkpoints=2
    ) as recorder:
        for step in range(STEPS):
            indices = torch.randperm(SAMPLES, generator=generator)[:BATCH]
            for half in indices.split(BATCH // 2) if step % 2 else [indices]:
                task.losses(data[half]).mean().div(1 + step % 2).backward()
                if step % 2:
                    recorder.accumulate(half)
            recorder.clip_grad_norm_(0.5)
            optimizer.step()
            recorder.step(*([] if step % 2 else [indices]))
            scheduler.step()
            optimizer.zero_grad()
    return diffin.Trajectory.open(folder)


def write(folder: Path) -> dict[str, Any]:
    """All fixtures; what they hold, by their names."""
    data, query = samples(SAMPLES, 2), samples(6, 3)
    task = Classification(network())
    trajectory = train(folder / "run", task, data)
    found: dict[str, Any] = {"run": reading.run(trajectory)}

    def probes(name: str, estimator: Any, **options: Any) -> None:
        made = diffin.build_probes(
            task, trajectory, data, estimator=estimator, output=folder / name, **QUIET, **options
        )
        found[name] = reading.probes(made)

    probes("probes", diffin.DiffIn(batch_size=8), query=query)
    probes("probes-self", SelfInfluence(diffin.DiffIn(batch_size=8), rank=2))
    probes("probes-across", SelfUnrolled(diffin.Unrolled(propagation="segments"), rank=2))

    asked: dict[str, Any] = {"query": query, "estimator": diffin.TracIn(), "derivatives": "forward", "batch_size": 8}
    scores = diffin.score(task, trajectory, data, **asked, **QUIET)
    scores.save(folder / "scores")
    found["scores"] = found["scores-before-keys"] = reading.scores(scores)
    shutil.copytree(folder / "scores", folder / "scores-before-keys")
    manifest = folder / "scores-before-keys" / "scores.json"
    content = json.loads(manifest.read_text())
    del content["keyed"]
    manifest.write_text(json.dumps(content, indent=2) + "\n")
    replayed = diffin.score(task, trajectory, data, query=query, estimator=diffin.Replay(), **QUIET)
    replayed.save(folder / "scores-replay")
    found["scores-replay"] = reading.scores(replayed)
    keys = [f"sample-{number:02d}" for number in range(SAMPLES)]
    broken = [(inputs * (torch.nan if number == 5 else 1), label) for number, (inputs, label) in enumerate(data)]
    keyed = diffin.score(task, trajectory, Keyed(broken, keys), **asked, **QUIET)
    keyed.save(folder / "scores-keyed")
    found["scores-keyed"] = reading.scores(keyed)

    suspects = diffin.clean(task, trajectory, data, **QUIET)
    suspects.save(folder / "suspects")
    found["suspects"] = reading.suspects(suspects)
    decided = [
        {"index": 1, "given": 1, "decision": "relabel", "label": 2},
        {"index": 5, "given": 2, "decision": "drop"},
        {"index": 9, "given": 0, "decision": "keep"},
    ]
    (folder / "decisions").mkdir()
    file = folder / "decisions" / "decisions.json"
    file.write_text(json.dumps({"kind": KIND, "format": FORMAT, "samples": SAMPLES, "decisions": decided}))
    found["decisions"] = [[e["index"], e["given"], e["decision"], e.get("label")] for e in decided]
    assert reading.decisions(read_decisions(file, labels=data.tensors[1].tolist(), classes=reading.CLASSES))

    deletion = diffin.delete(task, trajectory, data, [2, 3], test=query, force=True, **QUIET)
    deletion.save(folder / "deletion")
    found["deletion"] = reading.deletion(deletion)
    selection = diffin.select(
        task, data, fractions=[0.25, 0.5], method="random", trajectory=trajectory, class_balanced=True, **QUIET
    )
    selection.save(folder / "selection")
    found["selection"] = reading.selection(selection)
    attribution = diffin.attribute(
        task,
        trajectory,
        data,
        Subset(query, range(2)),
        estimator=diffin.TracIn(),
        top=3,
        matrix=True,
        output=folder / "attribution",
        **QUIET,
    )
    found["attribution"] = reading.attribution(attribution)
    shutil.rmtree(folder / "attribution" / "directions", ignore_errors=True)
    moved = diffin.parameter_influence(task, trajectory, data, [2, 3], estimator=diffin.TracIn(), **QUIET)
    moved.save(folder / "parameter-influence" / "influence.safetensors")
    found["parameter-influence"] = reading.parameter_influence(moved)
    options: dict[str, Any] = {"samples": [0, 4], "orders": 2, "query_samples": [1], **QUIET}
    truth = leave_one_out(task, trajectory, data, query, **options)
    truth.save(folder / "truth")
    found["truth"] = reading.truth(truth)
    return found


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    found = write(folder)
    for left in folder.rglob("run.yaml"):
        left.unlink()
    (folder / "values.json").write_text(json.dumps(found, allow_nan=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
