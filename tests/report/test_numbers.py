"""Numbers as the page prints them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffin.report.numbers import Unit, count, decimals_for, share, signed, significant, three_digits


@given(st.floats(min_value=1e-200, max_value=1e200))
def test_the_largest_value_has_one_to_three_digits_before_the_point(value: float) -> None:
    unit = Unit.of([value, -value / 7, math.nan])
    assert 1 - 1e-9 <= value * unit.factor < 1000 * (1 + 1e-9)
    assert unit.exponent % 3 == 0


def test_nothing_has_no_unit() -> None:
    assert Unit.of([]) == Unit.of([0.0, math.nan]) == Unit(0)
    assert Unit(0).label == ""
    assert Unit(-12).label == "\u00d710\u207b\u00b9\u00b2"


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [(1.005, 1, "+1.0"), (-2.0, 2, "\u22122.00"), (-0.001, 2, "0.00"), (math.nan, 1, "n/a")],
)
def test_signs_are_always_written(value: float, decimals: int, text: str) -> None:
    assert signed(value, decimals) == text


@pytest.mark.parametrize(("largest", "decimals"), [(0.0, 0), (999.0, 0), (12.0, 1), (1.2, 2), (0.02, 4), (1e-9, 6)])
def test_three_digits_of_the_largest_are_shown(largest: float, decimals: int) -> None:
    assert decimals_for([largest, -largest / 2]) == decimals


def test_digits() -> None:
    assert three_digits(4.9) == "4.90"
    assert three_digits(123.0) == "123"
    assert three_digits(45678.2) == "45,678"
    assert three_digits(math.inf) == "n/a"
    assert significant(-0.5) == "\u22120.5"


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0%"), (0.0001, "<0.1%"), (0.001, "0.1%"), (0.126, "13%"), (1.0, "100%")]
)
def test_what_is_not_nothing_is_not_written_as_nothing(value: float, text: str) -> None:
    assert share(value) == text


def test_counts_agree_with_their_noun() -> None:
    assert [count(n, "sample") for n in (0, 1, 5000)] == ["0 samples", "1 sample", "5,000 samples"]
