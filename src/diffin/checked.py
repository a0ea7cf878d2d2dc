"""Entries of JSON files that anyone may have written: each of the type it should be, or a ValueError says which is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

MOST = 1 << 53
"""More samples, steps or bytes than anything has; whole numbers beyond are not exact in JSON everywhere."""

_SHOWN = 80


def entry(content: Mapping[str, Any], name: str) -> Any:
    """An entry that must be there."""
    if name not in content:
        raise ValueError(f"{name!r} is missing")
    return content[name]


def whole(content: Mapping[str, Any], name: str, least: int = 0) -> int:
    """A whole number from ``least`` to :data:`MOST`."""
    value = entry(content, name)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST:
        raise _wrong(name, value, f"a whole number of at least {least}")
    return value


def real(content: Mapping[str, Any], name: str) -> float:
    """A finite number."""
    value = entry(content, name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(name, value, "a number")
    # No whole number that large is meant, and some are beyond what a float holds.
    if isinstance(value, int) and abs(value) > MOST:
        raise _wrong(name, value, "a number of usual size")
    if not math.isfinite(value):
        raise _wrong(name, value, "finite")
    return float(value)


def flag(content: Mapping[str, Any], name: str) -> bool:
    value = entry(content, name)
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    return value


def text(content: Mapping[str, Any], name: str) -> str:
    value = entry(content, name)
    if not isinstance(value, str):
        raise _wrong(name, value, "text")
    return value


def mapping(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = entry(content, name)
    if not isinstance(value, dict):
        raise _wrong(name, value, "an object")
    return value


def listed(content: Mapping[str, Any], name: str) -> list[Any]:
    value = entry(content, name)
    if not isinstance(value, list):
        raise _wrong(name, value, "a list")
    return value


def each(content: Mapping[str, Any], name: str, read: Callable[[Mapping[str, Any], str], T]) -> tuple[T, ...]:
    """The entries of a list, each read by a function of this module."""
    return tuple([read({name: value}, name) for value in listed(content, name)])


def values(content: Mapping[str, Any], name: str, read: Callable[[Mapping[str, Any], str], T]) -> dict[str, T]:
    """An object, each of its values read by a function of this module."""
    return {key: read({name: value}, name) for key, value in mapping(content, name).items()}


def optional(content: Mapping[str, Any], name: str, read: Callable[[Mapping[str, Any], str], T]) -> T | None:
    """An entry that may be null."""
    return None if entry(content, name) is None else read(content, name)


def _wrong(name: str, value: Any, wanted: str) -> ValueError:
    try:
        shown = repr(value)
    except ValueError:  # too many digits to write down
        shown = "a number beyond all bounds"
    return ValueError(f"{name!r} is {shown[:_SHOWN]}, and should be {wanted}")
