"""Problems and the files they are read from."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from diffin.errors import ProblemError
from diffin.problem import Problem, load_problem
from diffin.tasks import Classification

TASK = Classification(nn.Linear(2, 2))
DATA = TensorDataset(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))

GOOD = """
import torch
from torch import nn
from torch.utils.data import TensorDataset
from diffin.problem import Problem
from diffin.tasks import Classification

def problem():
    data = TensorDataset(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))
    return Problem(Classification(nn.Linear(2, 2)), data, data)
"""


@pytest.fixture(autouse=True)
def import_state() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("diffin_problem_") or name == "beside":
            del sys.modules[name]


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "my problem.py"
    path.write_text(text, encoding="utf-8")
    return path


class Endless:
    def __iter__(self) -> Iterator[int]:
        return iter([1])


@pytest.mark.parametrize("data", [DATA, DataLoader(DATA), [(torch.zeros(2), 0)], Endless()])
def test_every_kind_of_data_set_is_taken(data: Any) -> None:
    assert Problem(TASK, data, data).train is data


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": TASK.model}, r"task=\.\.\.\) got a Linear; the model alone.*Classification\(model\)"),
        ({"task": None}, r"got None: pass diffin\.tasks\.Classification"),
        ({"train": "data/train"}, r"train=\.\.\.\) got the path or text 'data/train'"),
        ({"train": Path("data")}, r"train=\.\.\.\) got the path or text 'data'"),
        ({"query": {"train": DATA, "test": DATA}}, r"query=\.\.\.\) got a mapping with 'train', 'test'"),
        ({"train": iter([1])}, r"got a list_iterator, which can be read only once"),
        ({"query": 3}, r"got an int"),
        ({"collate": [1]}, r"collate=\.\.\.\) got a list; pass a function"),
        ({"show": "text"}, r"show=\.\.\.\) got a str; pass a function that takes an item"),
    ],
)
def test_what_cannot_work_is_refused_with_what_to_pass(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        Problem(**{"task": TASK, "train": DATA, "query": DATA, **arguments})


def test_a_file_is_run_and_its_problem_returned(tmp_path: Path) -> None:
    assert isinstance(load_problem(_file(tmp_path, GOOD)), Problem)
    assert isinstance(load_problem(str(tmp_path / "my problem.py")), Problem)


def test_modules_beside_the_file_can_be_imported_also_later(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("VALUE = 7\n", encoding="utf-8")
    late = GOOD + "\n    \ndef show(item):\n    from beside import VALUE\n    return str(VALUE)\n"
    problem = load_problem(_file(tmp_path, late.replace("data, data)", "data, data, show=lambda item: show(item))")))
    assert problem.show is not None
    assert problem.show(None) == "7"


def test_the_file_is_not_main_and_its_classes_can_be_found_by_name(tmp_path: Path) -> None:
    text = GOOD + "\nif __name__ == '__main__':\n    raise RuntimeError('trained again')\n"
    text = text.replace("def problem", "class Own(Classification):\n    pass\n\ndef problem")
    task = load_problem(_file(tmp_path, text.replace("Problem(Classification", "Problem(Own"))).task
    assert getattr(sys.modules[type(task).__module__], type(task).__qualname__) is type(task)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", r"defines no function problem\(\)"),
        ("problem = 3", r"is an int; make it a function"),
        (GOOD + "\nproblem = problem()", r"is a Problem already"),
        ("def problem(path): ...", r"asks for path; it is called without arguments"),
        ("def problem(): return 3", r"returned an int; return diffin\.Problem"),
        ("def problem(): pass", r"returned None"),
        ("def problem(:", r"SyntaxError \(line 1\)"),
        ("import no_such_module_anywhere", r"ModuleNotFoundError \(line 1\): No module named"),
        ("raise SystemExit(2)", r"SystemExit \(line 1\): 2"),
        ("\n\ndef problem():\n    return 1 / 0", r"ZeroDivisionError \(line 4\): division by zero"),
        (GOOD.replace("(nn.Linear(2, 2)), data", "(nn.Linear(2, 2)), 'x'"), r"got the path or text 'x'"),
    ],
)
def test_a_file_that_does_not_do_is_refused_with_the_reason(tmp_path: Path, text: str, message: str) -> None:
    path = _file(tmp_path, text)
    with pytest.raises(ProblemError, match=message) as caught:
        load_problem(path)
    assert str(path) in str(caught.value)


def test_the_traceback_of_the_file_is_kept(tmp_path: Path) -> None:
    with pytest.raises(ProblemError) as caught:
        load_problem(_file(tmp_path, "def problem():\n    return 1 / 0"))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert "return 1 / 0" in "".join(traceback.format_exception(caught.value))


def test_a_file_that_fails_leaves_the_import_path_alone(tmp_path: Path) -> None:
    before = list(sys.path)
    with pytest.raises(ProblemError):
        load_problem(_file(tmp_path, "raise ValueError"))
    assert sys.path == before


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match=r"there is no file .*absent\.py"):
        load_problem(tmp_path / "absent.py")
    with pytest.raises(ProblemError, match="is a folder"):
        load_problem(tmp_path)
