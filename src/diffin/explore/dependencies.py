"""Packages of the ``explore`` extra, imported when a page is served and not before."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from diffin.errors import MissingDependencyError


def require(name: str) -> ModuleType:
    """Import a module of the ``explore`` extra.

    Raises:
        MissingDependencyError: its package is not installed.
    """
    package = name.partition(".")[0]
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingDependencyError(
            f'exploring needs {package}, which is not installed: run pip install "diffin[explore]"'
        ) from error
