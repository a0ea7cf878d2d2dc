"""Packages of the ``report`` extra, imported when a page is written and not before."""

from __future__ import annotations

from types import ModuleType

from diffin.dependencies import required


def require(name: str) -> ModuleType:
    """Import a module of the ``report`` extra.

    Raises:
        MissingDependencyError: its package is not installed.
    """
    return required(name, "the report", "report")
