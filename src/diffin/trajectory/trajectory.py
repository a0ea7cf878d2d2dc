"""What training left behind, read back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from diffin.errors import TrajectoryError
from diffin.trajectory import foreign, hugging_face, lightning, states
from diffin.trajectory.checkpoints import Checkpoint
from diffin.trajectory.finished import Assembled, assemble
from diffin.trajectory.optimizers import OptimizerDescription
from diffin.trajectory.steps import StepLog
from diffin.trajectory.store import Manifest, Store


class Trajectory:
    """A recorded training, or foreign checkpoints of one.

    Make one with :meth:`open` or :meth:`from_checkpoints`.

    Attributes:
        path: the folder of a recording; ``None`` for checkpoints that something else wrote.
        dataset_size: samples in the training set; ``None`` if foreign checkpoints came without it.
        total_steps: steps taken; of foreign checkpoints, those that are known of.
        complete: whether the recording was closed at the end of the training.
        optimizer: what it was trained with; ``None`` for foreign checkpoints.
        checkpoints: the states that the schedule chose and that a recorded step follows, ascending.
        stored: every state on disk, the initial, the final and those at which training resumed included; for replays.
        initial: the state before the first step, if stored.
        final: the state after the last step, if training was complete.
        steps: what each step used; ``None`` for foreign checkpoints.
    """

    path: Path | None
    dataset_size: int | None
    total_steps: int
    complete: bool
    optimizer: OptimizerDescription | None
    checkpoints: tuple[Checkpoint, ...]
    stored: tuple[Checkpoint, ...]
    initial: Checkpoint | None
    final: Checkpoint | None
    steps: StepLog | None

    def __init__(self, path: Path | None, dataset_size: int | None, total_steps: int, *, complete: bool) -> None:
        self.path = path
        self.dataset_size = dataset_size
        self.total_steps = total_steps
        self.complete = complete
        self.optimizer = None
        self.checkpoints = self.stored = ()
        self.initial = self.final = None
        self.steps = None
        self._store: Store | None = None
        self._manifest: Manifest | None = None

    @classmethod
    def open(
        cls, path: str | Path, *, model: nn.Module | None = None, max_grad_norm: float | None = None
    ) -> Trajectory:
        """Open what a :class:`~diffin.Recorder` wrote, whether it was closed or killed. Nothing is changed.

        The folder may also be one that a trainer saved its checkpoints in, with nothing recorded: the output folder of
        Hugging Face's ``Trainer`` (``checkpoint-*/``), or a folder of Lightning's ``.ckpt`` files. No code in it is run. Such
        a training cannot be repeated; states, learning rates and the optimizer's buffers are what was saved, and between what
        was saved and logged learning rates are taken to be linear.

        Args:
            path: the folder, or one checkpoint.
            model: the model that was trained, for checkpoints of a trainer: it says which parameter each of the optimizer's
                buffers belongs to. Not needed for models of the transformers library, or where shapes tell. A recording
                does not need it.
            max_grad_norm: what Hugging Face's ``Trainer`` clipped to, which its checkpoints do not say; its default, 1, is
                assumed.

        Raises:
            TrajectoryError: there is no trajectory, or a file of it is damaged.
        """
        store = Store(path)
        if not store.manifest_path.exists() and (saved := _saved_by_a_trainer(store.path, model, max_grad_norm)):
            return cls._of_finished(saved)
        if max_grad_norm is not None:
            raise TrajectoryError(
                f"max_grad_norm={max_grad_norm}: {path} is a recording, which knows its own; leave it out"
            )
        manifest = store.read_manifest()
        groups = manifest.optimizer.groups
        try:
            log = StepLog(store.steps, len(groups), manifest.dataset_size)
            found = states.stored(store.checkpoints)
        except OSError as error:
            raise TrajectoryError(f"{store.path} cannot be read: {error}") from error
        trajectory = cls(store.path, manifest.dataset_size, len(log), complete=manifest.complete)
        trajectory.optimizer = manifest.optimizer
        trajectory.steps = log
        trajectory._store, trajectory._manifest = store, manifest
        stored, chosen = [], []
        for state in found:
            if state.step > len(log):  # Its steps were lost, e.g. with a removed segment: nothing says what led to it.
                continue
            rates = tuple(log.learning_rates[state.step].tolist()) if state.step < len(log) else None
            checkpoint = Checkpoint(state.step, rates, state, groups, manifest.shapes)
            stored.append(checkpoint)
            if state.chosen and rates is not None:
                chosen.append(checkpoint)
        trajectory.stored, trajectory.checkpoints = tuple(stored), tuple(chosen)
        by_step = {checkpoint.step: checkpoint for checkpoint in stored}
        trajectory.initial = by_step.get(0)
        trajectory.final = by_step.get(len(log)) if manifest.complete else None
        return trajectory

    @classmethod
    def from_checkpoints(
        cls,
        paths: Sequence[str | Path],
        steps: Sequence[int],
        learning_rates: Sequence[float],
        *,
        dataset_size: int | None = None,
    ) -> Trajectory:
        """A trajectory of checkpoints that something else wrote.

        Args:
            paths: ``.pt``/``.pth`` files (read with ``weights_only=True``) or ``.safetensors``, each a state dict,
                alone or under the key ``"model"``, ``"state_dict"`` or ``"model_state_dict"``.
            steps: optimizer steps taken before each, ascending.
            learning_rates: of the step after each, for all parameters.
            dataset_size: samples in the training set, if it cannot be told from the data.

        Raises:
            TrajectoryError: an argument or a file is not what it should be.
        """
        if dataset_size is not None and (isinstance(dataset_size, bool) or dataset_size < 1):
            raise TrajectoryError(f"dataset_size={dataset_size!r} must be a whole number of at least 1, or None")
        checkpoints = foreign.checkpoints(paths, steps, learning_rates)
        trajectory = cls(None, dataset_size, checkpoints[-1].step + 1, complete=False)
        trajectory.checkpoints = trajectory.stored = checkpoints
        return trajectory

    @classmethod
    def _of_finished(cls, found: Assembled) -> Trajectory:
        trajectory = cls(None, None, found.total_steps, complete=False)
        trajectory.optimizer, trajectory.steps = found.optimizer, found.steps
        trajectory.checkpoints, trajectory.stored, trajectory.final = found.checkpoints, found.stored, found.final
        return trajectory

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        if self._store is not None:
            return self._store.size_bytes()
        files = [file for c in self.stored for file in (c.path.rglob("*") if c.path.is_dir() else [c.path])]
        return sum(file.stat().st_size for file in files if file.is_file())

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the recorded model's parameters, by name."""
        if self._manifest is not None:
            return dict(self._manifest.shapes)
        return {name: tuple(tensor.shape) for name, tensor in self.checkpoints[0].parameters.items()}

    def replay_obstacles(self) -> list[str]:
        """Why the training cannot be repeated step by step from what is stored, one sentence each; empty if it can.

        What no recording can see is not listed: data transforms must give the same sample twice, and the model's code
        and the libraries must be those of the training.
        """
        if self.steps is None or self.optimizer is None or self._manifest is None:
            return [
                "The checkpoints were not recorded by diffin.Recorder: batches, optimizer and random states are "
                "unknown."
            ]
        obstacles = []
        if not self.complete:
            obstacles.append(
                f"The recording was not closed: the state after its last step, {self.total_steps}, is unknown; go on with it "
                "by resume='latest', and close it."
            )
        if self.initial is None:
            obstacles.append("The state before the first step is missing.")
        if not self.optimizer.supported:
            obstacles.append(
                f"The optimizer {self.optimizer.kind} is not one whose steps are known (torch.optim.SGD, Adam, AdamW, "
                "not their subclasses)."
            )
        missing = self.steps.steps_without_indices()
        if len(missing):
            obstacles.append(
                f"The samples of {len(missing)} of {self.total_steps} steps are unknown, step {missing[0]} first: pass "
                "indices to recorder.step."
            )
        environment = self._manifest.environment
        if environment.get("world_size", 1) > 1:
            obstacles.append(
                f"Training ran in {environment['world_size']} processes; only the batches of the recording one are "
                "known."
            )
        if environment.get("device") != "cpu" and not environment.get("deterministic_algorithms"):
            obstacles.append(
                f"Training ran on {environment.get('device')} without torch.use_deterministic_algorithms(True), so "
                "the same steps may give other numbers."
            )
        obstacles.extend(map(str, environment.get("obstacles", ())))
        if environment.get("grad_scaler"):
            obstacles.append("Gradients were scaled for mixed precision, and autocast regions are not recorded.")
        return obstacles

    def __repr__(self) -> str:
        of = "foreign checkpoints" if self.path is None else f"{str(self.path)!r}"
        return f"Trajectory({of}, total_steps={self.total_steps}, checkpoints={[c.step for c in self.checkpoints]})"


def _saved_by_a_trainer(path: Path, model: nn.Module | None, max_grad_norm: float | None) -> Assembled | None:
    try:
        if folders := hugging_face.folders(path):
            return assemble(hugging_face.training(folders, model, max_grad_norm))
        if files := lightning.files(path):
            return assemble(lightning.training(files, model, max_grad_norm))
    except TrajectoryError:
        raise
    except OSError as error:
        raise TrajectoryError(f"{path} cannot be read: {error}") from error
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise TrajectoryError(
            f"{path} holds checkpoints that are damaged, or not as a trainer writes them ({type(error).__name__}: {error})"
        ) from error
    return None
