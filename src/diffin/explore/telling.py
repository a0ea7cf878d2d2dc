"""Labels, predictions and texts of all samples, read in the background; of those in sight, at once."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffin.batches import Batch, to_device
from diffin.explore.columns import MOST_CATEGORIES, Category, Numbers, Table, Texts
from diffin.explore.samples import words_of
from diffin.problem import Problem
from diffin.report.reading import read_batches
from diffin.sources import Indices, open_source
from diffin.task import PerSampleLoss, Task
from diffin.tasks import Classification
from diffin.tasks.supervised import call, split

logger = logging.getLogger(__name__)

_BATCH = 64


class Teller:
    """Fills the columns ``label``, ``predicted`` and ``confidence`` of a table.

    Classes are those of a :class:`diffin.tasks.Classification`. Of another task, what it says of labels and predictions
    becomes a category while there are few different ones, and is shown only if there are many.

    Args:
        problem: what was scored.
        state: parameters and buffers of the final model, by name; without them there are no predictions.
        table: to be filled. A column ``label`` that is there already stays as it is.

    Attributes:
        classes: names of the classes; grows if the task has none.
        total: how many samples there are to be read in the background, over all passes; ``done`` of them have been.
        trouble: why there are no labels or predictions, if so.

    Raises:
        TrajectoryError: ``state`` does not fit the model.
    """

    def __init__(self, problem: Problem, state: Mapping[str, Tensor] | None, table: Table) -> None:
        self._problem, self._table, self._task = problem, table, problem.task
        self.trouble = ""
        self.predicts = state is not None
        if state is not None:
            PerSampleLoss(problem.task, state)  # refuses a state of another model with a sentence
            self._task = _trained(problem.task, state)
        self.of_classes = isinstance(problem.task, Classification)
        self._told = np.zeros(table.size, dtype=bool)
        self._places: dict[str, int] = {}
        self._words: dict[str, list[str | None]] = {}
        self.classes = _class_names(problem.task, table)
        self.done, self.total = 0, table.size
        for name, title in (("label", "label"), *((("predicted", "prediction"),) if self.predicts else ())):
            if name not in table.categories:
                codes = np.full(table.size, -1, dtype=np.int32)
                table.categories[name] = Category(title, codes, self.classes)
        if self.of_classes and self.predicts:
            table.numbers["confidence"] = Numbers("confidence", np.full(table.size, np.nan), "model", large_first=False)

    def tell(self, indices: Sequence[int]) -> None:
        """Find out about some samples now."""
        wanted = [index for index in indices if not self._told[index]]
        if wanted and not self.trouble:
            with self._trying():
                for part, batch in read_batches(self._problem.train, wanted, self._problem.collate):
                    self._take(np.asarray(part), batch)

    def everything(self) -> Iterator[None]:
        """Find out about all samples, a batch at a time, then read their texts if they are texts."""
        if not self.trouble:
            with self._trying():
                source = open_source(self._problem.train, collate=self._problem.collate)
                for part, batch in source.batches(_BATCH):
                    part = part[part < self._table.size]
                    if not self._told[part].all():
                        self._take(part, batch)
                    self.done = int(part[-1]) + 1 if len(part) else self.done
                    yield
        for name in ("confidence",):
            if name in self._table.numbers:
                self._table.numbers[name].changed()
        self.done = self._table.size
        yield from self._texts()

    def said(self, name: str, row: int) -> str | None:
        """The ``label`` or the ``predicted`` of a sample in words; ``None`` while it is not known, or if there is none."""
        category = self._table.categories.get(name)
        if category is not None and category.codes[row] >= 0:
            return category.name(row)
        words = self._words.get(name)
        return None if words is None else words[row]

    def _texts(self) -> Iterator[None]:
        problem, table = self._problem, self._table
        texts: Texts | None = None
        pending: list[str | None] = []
        with self._trying():
            for part, items in open_source(problem.train, collate=list).batches(_BATCH):
                words = dict(zip(part.tolist(), (words_of(item, problem.show) for item in items), strict=True))
                if texts is None:
                    if not any(words.values()):
                        return  # samples without words
                    texts = table.texts["text"] = Texts()
                    self.total += table.size
                start = texts.count + len(pending)
                # Samples that cannot be read are in no batch.
                pending += [words.get(row) for row in range(start, min(int(part[-1]) + 1, table.size))]
                if len(pending) >= 4096:
                    texts.extend(pending)
                    pending = []
                self.done = table.size + texts.count + len(pending)
                yield
        if texts is not None and pending:
            texts.extend(pending)
        self.done = self.total

    def _take(self, part: Indices, batch: Batch) -> None:
        task = self._task
        batch = to_device(batch, task.device)
        with torch.no_grad():
            if self.of_classes:
                self._take_classes(part, batch)
            else:
                self._take_words("label", part, task.labels(batch))
                if self.predicts:
                    self._take_words("predicted", part, task.predictions(batch))
        self._told[part] = True

    def _take_classes(self, part: Indices, batch: Batch) -> None:
        table = self._table
        inputs, targets = split(batch)
        classes = (targets.argmax(dim=-1) if targets.is_floating_point() else targets).cpu().numpy()
        highest = int(classes.max())
        probability = predicted = None
        if self.predicts:
            logits = call(self._task.model, inputs).float().softmax(dim=-1)
            probability, predicted = (found.cpu().numpy() for found in logits.max(dim=-1))
            highest = max(highest, logits.shape[1] - 1)
        self.classes.extend(str(code) for code in range(len(self.classes), highest + 1))
        codes = table.categories["label"].codes
        codes[part] = np.where(codes[part] >= 0, codes[part], classes)
        if predicted is not None:
            table.categories["predicted"].codes[part] = predicted
            table.numbers["confidence"].values[part] = probability

    def _take_words(self, name: str, part: Indices, words: Sequence[str] | None) -> None:
        if words is None:
            self._table.categories.pop(name, None)
            return
        if len(words) != len(part):
            raise ValueError(f"the task gave {len(words)} descriptions of {len(part)} samples; return one string each")
        kept = self._words.setdefault(name, [None] * self._table.size)
        category = self._table.categories.get(name)
        for row, word in zip(part.tolist(), map(str, words), strict=True):
            kept[row] = word
            if category is None:
                continue
            if word not in self._places and len(self._places) >= MOST_CATEGORIES:
                category = self._table.categories.pop(name, None) and None
                continue
            place = self._places.setdefault(word, len(self._places))
            if place == len(self.classes):
                self.classes.append(word)
            category.codes[row] = place

    def _trying(self) -> _Trying:
        return _Trying(self)


class _Trying:
    """Whatever the user's data, collate function or task may raise: the scores are worth showing without it."""

    def __init__(self, teller: Teller) -> None:
        self._teller = teller

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if not isinstance(error, Exception):
            return False
        self._teller.trouble = f"Labels and predictions could not be taken: {type(error).__name__}: {error}"
        logger.warning("%s", self._teller.trouble)
        return True


def _trained(task: Task, state: Mapping[str, Tensor]) -> Task:
    """A copy of the task whose model is at ``state``; the model itself may be trained on meanwhile."""
    task = copy.deepcopy(task)
    with torch.no_grad():
        for name, tensor in (*task.model.named_parameters(), *task.model.named_buffers()):
            if name in state:
                tensor.copy_(state[name])
    task.model.eval()
    return task


def _class_names(task: Task, table: Table) -> list[str]:
    if "label" in table.categories:
        return table.categories["label"].names
    return list(task.class_names or ()) if isinstance(task, Classification) else []
