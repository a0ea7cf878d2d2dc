"""Where things lie in the folder of a trajectory, and its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from diffin import checked
from diffin.errors import TrajectoryError
from diffin.files import read_json, write_json
from diffin.trajectory.optimizers import OptimizerDescription

FORMAT = "diffin-trajectory"
FORMAT_VERSION = 2
MANIFEST = "trajectory.json"


@dataclass(frozen=True)
class Manifest:
    """What holds for the whole training.

    Attributes:
        dataset_size: samples in the training set.
        planned_steps: ``total_steps`` of the recorder; ``None`` if it was unknown.
        complete: whether the recording was closed at the end of the training.
        optimizer: see :class:`OptimizerDescription`.
        shapes: of every parameter of the model, by name.
        schedule: which checkpoints were asked for.
        environment: what a replay must find again: device, mixed precision, determinism, versions.
        resumed_at: the steps at which the recording went on after an interruption.
    """

    dataset_size: int
    planned_steps: int | None
    complete: bool
    optimizer: OptimizerDescription
    shapes: Mapping[str, tuple[int, ...]]
    schedule: Mapping[str, Any]
    environment: Mapping[str, Any]
    resumed_at: tuple[int, ...] = field(default=())

    def marked(self, *, complete: bool) -> Manifest:
        return replace(self, complete=complete)


class Store:
    """The folder of a trajectory. Names in it are made here and never taken from a file's contents."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest_path = self.path / MANIFEST
        self.steps = self.path / "steps"
        self.checkpoints = self.path / "checkpoints"

    def is_empty(self) -> bool:
        return not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir()))

    def create(self) -> None:
        self.steps.mkdir(parents=True, exist_ok=True)
        self.checkpoints.mkdir(parents=True, exist_ok=True)

    def size_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    def write_manifest(self, manifest: Manifest) -> None:
        value = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            **asdict(manifest),
            "optimizer": manifest.optimizer.to_json(),
        }
        write_json(self.manifest_path, value)

    def read_manifest(self) -> Manifest:
        """Read the manifest.

        Raises:
            TrajectoryError: there is none, it is damaged, or of another version.
        """
        path = self.manifest_path
        try:
            value = read_json(path)
        except FileNotFoundError:
            found = "holds no recorded trajectory" if self.path.is_dir() else "does not exist"
            raise TrajectoryError(
                f"{self.path} {found} ({MANIFEST} is missing), nor checkpoints that a trainer saved (checkpoint-*/ with "
                "trainer_state.json, or .ckpt): pass the path given to diffin.Recorder, or use "
                "Trajectory.from_checkpoints for files that something else wrote"
            ) from None
        except (OSError, ValueError) as error:
            raise TrajectoryError(f"{path} is damaged or unreadable ({error}); restore it from a copy") from None
        if value.get("format") != FORMAT or value.get("version") != FORMAT_VERSION:
            raise TrajectoryError(
                f"{path} has format {value.get('format')!r} version {value.get('version')!r}; this version of "
                f"diffin reads {FORMAT!r} version {FORMAT_VERSION}: read it with the version that wrote it"
            )
        try:
            shapes = checked.mapping(value, "shapes")
            return Manifest(
                dataset_size=checked.whole(value, "dataset_size", 1),
                planned_steps=checked.optional(value, "planned_steps", checked.whole),
                complete=checked.flag(value, "complete"),
                optimizer=OptimizerDescription.from_json(checked.mapping(value, "optimizer")),
                shapes={name: checked.each(shapes, name, checked.whole) for name in shapes},
                schedule=checked.mapping(value, "schedule"),
                environment=_environment(checked.mapping(value, "environment")),
                resumed_at=checked.each(value, "resumed_at", checked.whole),
            )
        except ValueError as error:
            raise TrajectoryError(f"{path} is damaged ({error}); restore it from a copy") from None


def _environment(value: dict[str, Any]) -> dict[str, Any]:
    """What a replay looks at, of the types it takes it for."""
    checked.whole({"world_size": 1, **value}, "world_size")
    checked.each({"obstacles": [], **value}, "obstacles", checked.text)
    return value


def shapes(parameters: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in parameters.items()}
