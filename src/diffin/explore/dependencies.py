"""Packages of the ``explore`` extra, imported when a page is served and not before."""

from __future__ import annotations

from types import ModuleType

from diffin.dependencies import required


def require(name: str) -> ModuleType:
    """Import a module of the ``explore`` extra.

    Raises:
        MissingDependencyError: its package is not installed.
    """
    return required(name, "exploring", "explore")
