"""Whose buffers an optimizer's numbered places hold is told only where there is one answer."""

from __future__ import annotations

from itertools import pairwise, permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from diffin.errors import TrajectoryError
from diffin.trajectory.naming import Named, Shape, matched_groups

KNOWN = nn.Linear(1, 1)


def match(
    order: list[tuple[str, Shape]], places: list[list[int]], shapes: dict[int, Shape], *, alike: bool = False
) -> list[dict[int, str]]:
    constants = [{"weight_decay": 0.0 if alike else float(number)} for number in range(len(places))]
    return matched_groups(places, shapes, Named(KNOWN, "", False, tuple(order), True, {}), constants, None, Path("x"))


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 2)), min_size=1, max_size=6))
def test_groups_are_matched_if_and_only_if_one_dealing_in_order_fits(dealt: list[tuple[int, int]]) -> None:
    order = [(f"p{number}", (size,)) for number, (_, size) in enumerate(dealt)]
    groups = [[entry for entry, (group, _) in zip(order, dealt, strict=True) if group == own] for own in (0, 1)]
    groups = [group for group in groups if group]
    flat = [entry for group in groups for entry in group]
    shapes = {place: shape for place, (_, shape) in enumerate(flat)}
    ends = [sum(len(group) for group in groups[:number]) for number in range(len(groups) + 1)]
    places = [list(range(start, stop)) for start, stop in pairwise(ends)]

    def in_order(names: tuple[str, ...]) -> bool:
        return all(list(part) == sorted(part) for part in (names[p[0] : p[-1] + 1] for p in places))

    by_name = dict(order)
    fitting = [
        names
        for names in permutations(by_name)
        if in_order(names) and all(by_name[name] == shapes[place] for place, name in enumerate(names))
    ]
    if len(fitting) == 1:
        found = match(order, places, shapes)
        assert [name for group in found for name in group.values()] == [name for name, _ in flat]
    else:
        with pytest.raises(TrajectoryError, match="cannot be told"):
            match(order, places, shapes)


def test_without_buffers_it_matters_only_if_groups_differ() -> None:
    order: list[tuple[str, Shape]] = [("a", (2,)), ("b", (2,))]
    assert match(order, [[0], [1]], {}, alike=True) == [{0: "a"}, {1: "b"}]
    assert match(order, [[0, 1]], {}) == [{0: "a", 1: "b"}]
    with pytest.raises(TrajectoryError, match="cannot be told"):
        match(order, [[0], [1]], {})


def test_other_parameters_than_were_trained_are_refused() -> None:
    with pytest.raises(TrajectoryError, match="which of 1 parameters the 2 places"):
        match([("a", (2,))], [[0, 1]], {0: (2,), 1: (2,)})
    with pytest.raises(TrajectoryError, match="cannot be told"):
        match([("a", (2,)), ("b", (3,))], [[0, 1]], {0: (3,), 1: (2,)})
