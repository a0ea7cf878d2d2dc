"""A problem: what was trained on what, and the question asked of it. The command line reads it from a Python file."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from diffin.errors import ProblemError
from diffin.sources import Indices
from diffin.task import Task

_EXAMPLE = "def problem(): return diffin.Problem(task=Classification(model), train=train_dataset, query=val_dataset)"


@dataclass(frozen=True)
class Problem:
    """Everything that a scoring run needs besides the trajectory.

    Attributes:
        task: the model and its loss per sample.
        train: the data set whose samples are scored: map-style, iterable, Hugging Face, or a ``DataLoader``.
        query: the data set whose mean loss is asked about, usually validation data; ``None`` for an estimator that asks
            about the training risk.
        collate: makes a batch of a list of items; ``None`` for PyTorch's default.
        show: what the page shows of an item of ``train``: returns a picture (PIL image, array or tensor), a string, or
            a mapping of column names to values. ``None`` to guess from the item.
        fit: ``fit(indices, folder, seed)`` trains a new model on those samples of ``train`` (Int64[ndarray, "n"], ascending)
            and records it into the folder, with the positions in ``train`` as sample indices. Selection by iterating asks
            for it; nothing else does.

    Raises:
        ProblemError: an argument is of a type that cannot work.
    """

    task: Task
    train: Any
    query: Any = None
    collate: Callable[[list[Any]], Any] | None = None
    show: Callable[[Any], Any] | None = None
    fit: Callable[[Indices, Path, int], object] | None = None

    def __post_init__(self) -> None:
        _check_task(self.task)
        _check_dataset("train", self.train)
        if self.query is not None:
            _check_dataset("query", self.query)
        _check_function("collate", self.collate, "a list of items and returns a batch")
        _check_function("show", self.show, "an item and returns what to show of it")
        _check_function("fit", self.fit, "indices, a folder and a seed, and records a training")


def load_problem(path: str | Path) -> Problem:
    """Run a problem file and return the :class:`Problem` that its function ``problem()`` makes.

    The file is executed as a module of its own (not as ``__main__``). As with ``python file.py``, its folder comes
    first on the import path and stays there, since data sets often import lazily.

    Args:
        path: a Python file that defines ``problem() -> diffin.Problem``.

    Raises:
        ProblemError: there is no such file, it fails, or it does not define what it must; an exception raised inside is
            chained, with its traceback.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise ProblemError(f"{path} is a folder; pass the Python file in it that defines problem()")
    if not path.is_file():
        raise ProblemError(f"there is no file {path}; pass a Python file that holds `{_EXAMPLE}`")
    module = _execute(path.resolve())
    function = getattr(module, "problem", None)
    if function is None:
        raise ProblemError(f"{path} defines no function problem(); add `{_EXAMPLE}`")
    if isinstance(function, Problem):
        raise ProblemError(f"problem in {path} is a Problem already; make it a function that returns it: `{_EXAMPLE}`")
    if not callable(function):
        raise ProblemError(
            f"problem in {path} is {_kind(function)}; make it a function without arguments: `{_EXAMPLE}`"
        )
    required = _required_arguments(function)
    if required:
        raise ProblemError(
            f"problem() in {path} asks for {', '.join(required)}; it is called without arguments: give them defaults"
        )
    try:
        result = function()
    except (Exception, SystemExit) as error:
        raise ProblemError(f"problem() in {path} failed with {_told(error, path)}") from error
    if not isinstance(result, Problem):
        raise ProblemError(
            f"problem() in {path} returned {_kind(result)}; return diffin.Problem(task=..., train=..., query=...)"
        )
    return result


def _check_task(task: Any) -> None:
    if isinstance(task, Task):
        return
    why = "; the model alone does not say what its loss is" if isinstance(task, nn.Module) else ""
    raise ProblemError(
        f"Problem(task=...) got {_kind(task)}{why}: pass diffin.tasks.Classification(model), or a Task of your own"
    )


def _check_function(name: str, function: Any, takes: str) -> None:
    if function is not None and not callable(function):
        raise ProblemError(f"Problem({name}=...) got {_kind(function)}; pass a function that takes {takes}, or None")


def _check_dataset(name: str, dataset: Any) -> None:
    if isinstance(dataset, (str, bytes, Path)):
        raise ProblemError(
            f"Problem({name}=...) got the path or text {str(dataset)!r}; load it and pass the data set itself"
        )
    if isinstance(dataset, Mapping):
        splits = ", ".join(repr(str(key)) for key in list(dataset)[:5])
        raise ProblemError(f"Problem({name}=...) got a mapping with {splits or 'no keys'}; pass one of its splits")
    if isinstance(dataset, Iterator):
        raise ProblemError(
            f"Problem({name}=...) got {_kind(dataset)}, which can be read only once; pass something that starts "
            "anew each time it is iterated: a Dataset, a DataLoader, a list, or an object with __iter__"
        )
    if not hasattr(dataset, "__getitem__") and not hasattr(dataset, "__iter__"):
        raise ProblemError(
            f"Problem({name}=...) got {_kind(dataset)}, which has neither __getitem__ nor __iter__; pass a Dataset, an "
            "iterable, a Hugging Face data set or a DataLoader"
        )


def _execute(path: Path) -> ModuleType:
    # The name tells problem files of one stem apart; it stays registered so that classes of the file can be pickled.
    name = f"diffin_problem_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = spec_from_file_location(name, path, loader=SourceFileLoader(name, str(path)))
    if spec is None or spec.loader is None:
        raise ProblemError(f"{path} cannot be read as Python; pass a .py file that holds `{_EXAMPLE}`")
    module = module_from_spec(spec)
    folder = str(path.parent)
    added = folder not in sys.path
    if added:
        sys.path.insert(0, folder)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        if added:
            sys.path.remove(folder)
        raise ProblemError(f"{path} failed with {_told(error, path)}") from error
    return module


def _required_arguments(function: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # Some callables have no signature to look at; calling them will tell.
        return []
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]


def _told(error: BaseException, path: Path) -> str:
    """The exception in one line, with the last line of the problem file that it passed through."""
    line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
    traceback = error.__traceback__
    while traceback is not None:
        if Path(traceback.tb_frame.f_code.co_filename) == path.resolve():
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    where = f" (line {line})" if line is not None else ""
    return f"{type(error).__name__}{where}: {error}" if str(error) else f"{type(error).__name__}{where}"


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
