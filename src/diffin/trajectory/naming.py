"""Names for what other libraries saved: tensors of a model, and the numbered places of an optimizer's state dict."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from diffin.errors import TrajectoryError
from diffin.task import unwrapped
from diffin.trajectory.foreign import parameter_shapes, without_prefixes

Shape = tuple[int, ...]

_MOST_WAYS = 1_000_000


@dataclass(frozen=True)
class Named:
    """How the tensors of a file are called in the model.

    Attributes:
        model: the model; ``None`` where it is not known, and names stay as they are.
        prefix: what the file puts before all names of the model.
        adapter: whether the file holds an adapter (peft) only; the rest is the model's own.
        order: the trained parameters with their shapes, in the order of the model, as far as that is known.
        ordered: whether it is.
        shapes: of all parameters; empty where the model is not known.
    """

    model: nn.Module | None
    prefix: str
    adapter: bool
    order: tuple[tuple[str, Shape], ...]
    ordered: bool
    shapes: dict[str, Shape]

    def renamed(self, tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
        """The tensors of a file under the names of the model.

        Raises:
            TrajectoryError: a parameter of the model is missing.
        """
        if self.model is None:
            return without_prefixes(dict(tensors))
        known = _aliases(self.model)
        saved = {_saved_name(name) if self.adapter else name: name for name in known}
        found: dict[str, Tensor] = {}
        for name, tensor in without_prefixes(dict(tensors)).items():
            own = saved.get(name.removeprefix(self.prefix)) if name.startswith(self.prefix) else None
            if own is not None:
                found[known[own]] = tensor
        if self.adapter:
            found = {**_kept(self.model), **found}
        missing = [name for name in self.shapes if name not in found]
        if missing:
            raise TrajectoryError(
                f"{path} lacks {len(missing)} of the {len(self.shapes)} parameters of the model, {missing[0]!r} first: pass "
                "the model that was trained"
            )
        return found


def named(tensors: Mapping[str, Tensor], model: nn.Module | None, path: Path) -> Named:
    """Find how the tensors of a file are called in the model.

    Raises:
        TrajectoryError: they are of another model.
    """
    tensors = without_prefixes(dict(tensors))
    if model is None:
        shapes = parameter_shapes(tensors)
        return Named(None, "", False, tuple(shapes.items()), path.suffix == ".ckpt", {})
    model = unwrapped(model)
    parameters = dict(model.named_parameters())
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    trained = tuple((name, shapes[name]) for name, p in parameters.items() if p.requires_grad)
    adapter = any(".lora_" in name for name in tensors) or _is_adapter(model)
    last = _saved_name(trained[-1][0]) if adapter and trained else next(reversed(parameters), "")
    aliases = _aliases(model)
    last_names = {last, *(alias for alias, own in aliases.items() if own == last)}
    candidates = [
        key[: len(key) - len(name)] for key in tensors for name in last_names if key == name or key.endswith("." + name)
    ]
    made = [
        Named(model, prefix, adapter, trained, True, shapes) for prefix in dict.fromkeys(sorted(candidates, key=len))
    ]
    fitting = []
    for candidate in made:
        try:
            found = candidate.renamed(tensors, path)
        except TrajectoryError:
            continue
        if all(tuple(found[name].shape) == shape for name, shape in shapes.items()):
            fitting.append(candidate)
    if len(fitting) > 1 and fitting[0].prefix:
        raise TrajectoryError(
            f"{path} holds more than one model that fits, under {', '.join(repr(one.prefix) for one in fitting)}: pass the "
            "whole model that was trained"
        )
    if not fitting:
        raise TrajectoryError(
            f"{path} does not hold the parameters of the given model (it has {', '.join(list(tensors)[:3])}, and the model "
            f"{', '.join(list(parameters)[:3])}): pass the model that was trained"
        )
    return fitting[0]


def matched_groups(
    places: Sequence[Sequence[int]],
    shapes: Mapping[int, Shape],
    names: Named,
    constants: Sequence[Mapping[str, Any]],
    decays: Callable[[nn.Module], list[str]] | None,
    path: Path,
) -> list[dict[int, str]]:
    """The names of the parameters at the numbered places of an optimizer's state dict, group by group.

    Places are numbered group by group, each in the order in which the loop listed its parameters, which is nearly always that
    of the model. Shapes say whether it is.

    Args:
        places: of each group.
        shapes: of the parameters at those places that have a buffer.
        names: of the model.
        constants: of each group.
        decays: which parameters belong to the first of two groups, in the order of the model, by a rule of the library.
        path: for messages.

    Raises:
        TrajectoryError: more than one answer fits, or none.
    """
    count = sum(len(group) for group in places)
    if len({place for group in places for place in group}) != count:
        raise TrajectoryError(f"{path} has a parameter in two groups of its optimizer: it is damaged")
    order, found = list(names.order), None
    if len(order) == count:
        if not shapes and all(dict(constant) == dict(constants[0]) for constant in constants):
            # Nothing is kept for any of them, and all are treated alike: it does not matter which is which.
            found = _dealt(order, places)
        elif names.ordered:
            found = _by_rule(order, places, shapes, names, decays) or _by_order(order, places, shapes)
        elif len(shapes) == count:
            found = _by_shape(order, places, shapes)
    if found is not None:
        return found
    raise TrajectoryError(
        f"{path}: it cannot be told which of {len(order)} parameters the {count} places of the optimizer in "
        f"{len(places)} groups belong to. Pass the model that was trained: diffin.Trajectory.open(folder, model=model), with "
        "requires_grad as in training"
    )


def _by_rule(
    order: list[tuple[str, Shape]],
    places: Sequence[Sequence[int]],
    shapes: Mapping[int, Shape],
    names: Named,
    decays: Callable[[nn.Module], list[str]] | None,
) -> list[dict[int, str]] | None:
    """Two groups, dealt by the rule of a library."""
    if len(places) != 2 or decays is None or names.model is None:
        return None
    first = set(decays(names.model))
    dealt = [entry for entry in order if entry[0] in first]
    if len(dealt) != len(places[0]):
        return None
    found = _dealt([*dealt, *(entry for entry in order if entry[0] not in first)], places)
    own = dict(order)
    right = all(shapes.get(place, own[name]) == own[name] for group in found for place, name in group.items())
    return found if right else None


def _by_order(
    order: list[tuple[str, Shape]], places: Sequence[Sequence[int]], shapes: Mapping[int, Shape]
) -> list[dict[int, str]] | None:
    """The one way to deal the parameters, in their order, to groups whose places have their shapes; ``None`` if not one."""
    if len(places) > 1 and len(shapes) < len(order):
        return None  # without all shapes many ways fit
    if math.prod(len(group) + 1 for group in places) > _MOST_WAYS:
        return None
    # How many ways lead here (two stand for more), by how many places of each group are taken, and from where.
    ways: dict[tuple[int, ...], int] = {(0,) * len(places): 1}
    back: list[dict[tuple[int, ...], int]] = []
    for _, shape in order:
        after: dict[tuple[int, ...], int] = {}
        taken: dict[tuple[int, ...], int] = {}
        for state, count in ways.items():
            for number, group in enumerate(places):
                if state[number] < len(group) and shapes.get(group[state[number]], shape) == shape:
                    at = (*state[:number], state[number] + 1, *state[number + 1 :])
                    after[at] = min(2, after.get(at, 0) + count)
                    taken[at] = number
        ways = after
        back.append(taken)
    end = tuple(len(group) for group in places)
    if ways.get(end) != 1:
        return None
    found: list[dict[int, str]] = [{} for _ in places]
    for (name, _), taken in zip(reversed(order), reversed(back), strict=True):
        number = taken[end]
        end = (*end[:number], end[number] - 1, *end[number + 1 :])
        found[number][places[number][end[number]]] = name
    return [dict(reversed(group.items())) for group in found]


def _by_shape(
    order: list[tuple[str, Shape]], places: Sequence[Sequence[int]], shapes: Mapping[int, Shape]
) -> list[dict[int, str]] | None:
    """Where every parameter has a shape of its own."""
    by_shape = {shape: name for name, shape in order}
    if len(by_shape) < len(order) or set(shapes.values()) != set(by_shape):
        return None
    return [{place: by_shape[shapes[place]] for place in group} for group in places]


def _dealt(order: list[tuple[str, Shape]], places: Sequence[Sequence[int]]) -> list[dict[int, str]]:
    names = iter(name for name, _ in order)
    return [{place: next(names) for place in group} for group in places]


def _aliases(model: nn.Module) -> dict[str, str]:
    """Every name of every tensor of the model, with the one that ``named_parameters`` uses."""
    own = {id(t): name for name, t in (*model.named_buffers(), *model.named_parameters())}
    return {
        alias: own[id(t)]
        for alias, t in (
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        )
    }


def _is_adapter(model: nn.Module) -> bool:
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def _saved_name(name: str) -> str:
    """What peft calls a parameter of its default adapter in a file."""
    return name.replace(".modules_to_save.default", "").replace(".default", "")


def _kept(model: nn.Module) -> dict[str, Tensor]:
    """What an adapter leaves as it is: the frozen parameters."""
    return {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
