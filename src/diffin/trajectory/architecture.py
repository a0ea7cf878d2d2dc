"""The names and the order of the parameters of a model of the transformers library, from the ``config.json`` beside it.

The model is built without memory for its tensors, by a class of the library itself: code that a folder brings along is never
imported, and no setting that would fetch anything is handed on.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

_log = logging.getLogger(__name__)

_REACHING_OUT = ("implementation", "auto_map", "quantization", "backbone", "kernel", "path", "pretrained", "custom")
_MOST_LABELS = 1_000_000
_REPEATED = ("layer", "block", "expert", "stage", "depth")


def outline(config: Mapping[str, Any], most_tensors: int) -> nn.Module | None:
    """The model that a configuration describes, on the meta device; ``None`` if it is not one of the library, or absurd.

    Args:
        config: the contents of ``config.json``.
        most_tensors: how many tensors the model has, which bounds how often anything in it is repeated.
    """
    try:
        import transformers
    except ImportError:
        return None
    names = config.get("architectures")
    kind: Any = getattr(transformers, str(names[0]), None) if isinstance(names, list) and names else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        return None
    if not _bounded(config, most_tensors):
        return None
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            settings: Any = kind.config_class
            made: nn.Module = kind(settings.from_dict(_own(config)))
    except Exception as error:  # whatever a library raises at settings of another version
        _log.info("%s could not be built from config.json: %s", kind.__name__, error)
        return None
    return made


def _own(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that describe the model, without those that point elsewhere."""
    return {
        key: _own(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if not any(word in str(key).lower() for word in _REACHING_OUT)
    }


def _bounded(config: Mapping[str, Any], most: int) -> bool:
    for key, value in config.items():
        if isinstance(value, Mapping) and not _bounded(value, most):
            return False
        values = value if isinstance(value, list) else [value]
        if "label" in str(key).lower() and any(isinstance(v, int) and v > _MOST_LABELS for v in values):
            return False  # the library names each of them
        if any(word in str(key).lower() for word in _REPEATED) and any(
            isinstance(v, int) and not isinstance(v, bool) and v > max(64, most) for v in values
        ):
            return False
    return True
