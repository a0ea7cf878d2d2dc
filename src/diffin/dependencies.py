"""Packages of the extras, imported when they are used and not before."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from diffin.errors import MissingDependencyError


def required(name: str, what: str, extra: str) -> ModuleType:
    """Import a module that comes with an extra.

    Args:
        name: of the module.
        what: needs it, for the message.
        extra: that brings it.

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
            f'{what} needs {package}, which is not installed: run pip install "diffin[{extra}]"'
        ) from error
