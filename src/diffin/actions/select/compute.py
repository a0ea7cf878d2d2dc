"""From a training set, and mostly a training, to the part of it that is worth keeping."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from diffin.actions.checks import check_run, end_of
from diffin.actions.select.asking import Pool
from diffin.actions.select.evidence import Evidence, Fit, Reading, Whole, labels_of
from diffin.actions.select.iterated import Iterated, iterate
from diffin.actions.select.methods import HAVE_A_CUT, NEED_QUERY, NEED_TRAINING, Method, Wanted, check_method, rule_of
from diffin.actions.select.rounds import differences
from diffin.actions.select.selection import MANIFEST, TABLE, Cost, Kept, Selection, ascending
from diffin.actions.select.shares import chosen, class_weights, count
from diffin.errors import DatasetError, DiffinError, ScoringError
from diffin.files import read_json, write_json
from diffin.sample import Sample
from diffin.sources import Collate, Indices, Source, open_source
from diffin.task import Task, refuse_coupled
from diffin.trajectory import Trajectory

_QUESTION = "question.json"
_EVIDENCE, _ROUNDS, _WHOLE = "evidence", "rounds", "whole"


def select(
    task: Task,
    train_dataset: Any,
    *,
    fractions: float | Sequence[float],
    method: Method = "iterated",
    trajectory: Trajectory | None = None,
    query: Any = None,
    fit: Fit | None = None,
    seed: int = 0,
    class_balanced: bool | None = None,
    settings: Iterated | None = None,
    cut: float | None = None,
    output: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
    workers: int = 0,
    collate: Collate | None = None,
) -> Selection:
    """Choose a part of a training set to train on.

    ``"iterated"`` trains on a random subset, asks of every sample of the set whether training on it would help there, swaps,
    and goes on: see :class:`Iterated`. It was above a random choice where scores of one training were below, and costs
    ``rounds`` trainings for each share, and as much again or more to ask. The others go by one training on all of the data:

    - ``"influence"`` keeps what helps the query most by :class:`diffin.Unrolled`; ``"stratified"`` spreads over the range of
      that influence without its harmful end; ``"diverse"`` trades it for distance between what is kept;
    - ``"moso"`` keeps what lowers the training risk, ``"self-influence"`` what depends most on its own presence;
    - ``"ccs"`` spreads over the range of difficulty without its hardest end, ``"moderate"`` keeps what lies at the median
      distance to the centre of its class, ``"k-center"`` covers the features of the last layer;
    - ``"el2n"``, ``"grand"``, ``"forgetting"`` and ``"aum"`` keep the hardest samples;
    - ``"random"`` is what to compare with.

    Args:
        task: model and loss; the model is read, never written.
        train_dataset: the N samples to select from: map-style, or anything :func:`diffin.sources.open_source` reads that
            knows its length.
        fractions: shares of the samples to keep, one or several.
        method: see above.
        trajectory: a recorded training on all of the data; without one, ``fit`` makes it where it is needed. Not for
            ``"iterated"``, which trains on subsets.
        query: for ``"influence"``, ``"stratified"`` and ``"diverse"`` the samples whose mean loss is asked about. For
            ``"iterated"`` it judges the subsets of the rounds: the best one is kept, be it the random one it began with.
        fit: ``fit(indices, folder, seed)`` trains a *new* model on those samples of the training set (Int64[ndarray, "n"],
            ascending) and records it with :class:`diffin.Recorder` into the folder, with positions in the whole set as sample
            indices and its size as ``dataset_size``. ``"iterated"`` needs it.
        seed: of everything that is drawn.
        class_balanced: keep the proportions of the classes; ``None`` to do so where samples have class numbers.
        settings: of ``"iterated"``.
        cut: of ``"stratified"`` and ``"ccs"``: the share of hardest samples that is dropped first; ``None`` for 0.3 where a
            tenth is kept, falling to 0 where half is. Where labels are wrong, more than their share.
        output: a folder for the selection and what it went by. A selection that was killed, at any moment and however, goes
            on with the round, or the scores, that it was at.
        resume: ``False`` to replace what ``output`` holds.
        progress: show the phases, with the time left.
        workers: processes that read the data.
        collate: makes a batch of a list of samples; ``None`` for the default.

    Returns:
        Positions and weights at every share, and what they cost.

    Raises:
        DiffinError: an argument is missing or makes no sense; and see :func:`diffin.score`.
        DatasetError: the length of the training set is not known, or is not that of the run.
        TaskError: the method is about classes, and the task is not.
        ScoringError: ``output`` holds another selection, a damaged one, or cannot be written.
    """
    method = check_method(method)
    if method not in ("influence", "moso", "random"):
        refuse_coupled(task, f"selection by {method}")
    if seed < 0:
        raise DiffinError(f"seed={seed}: pass 0 or more")
    shares = ascending(fractions)
    train = open_source(train_dataset, collate=collate, workers=workers)
    asked = None if query is None else open_source(query, collate=collate, workers=workers)
    _check(task, method, train, asked, trajectory, fit, settings)
    _check_cut(cut, method)
    settings = (settings or Iterated()) if method == "iterated" else None
    folder = None if output is None else Path(output)
    question = {**_question(method, train, asked, seed, class_balanced, settings), "cut": cut}
    # None for a training that `fit` makes, too.
    question["trajectory"] = end_of(trajectory) if trajectory is not None and method in NEED_TRAINING else None
    if folder is not None:
        there = _prepared(folder, question, shares, resume)
        if there is not None:
            return there
    start = time.perf_counter()
    labels = None if class_balanced is False else labels_of(train)
    if class_balanced and labels is None:
        raise DiffinError("class_balanced=True: the samples have no class numbers; pass class_balanced=None")
    looking = Cost(scoring_seconds=time.perf_counter() - start)
    if settings is not None:
        assert fit is not None  # _check has refused by now
        assert train.length is not None
        pool = Pool(task, train, asked, labels, np.arange(train.length, dtype=np.int64), fit)
        kept, cost, more = _iterated(pool, settings, shares, seed, folder, progress)
        details = {**question, **more}
    else:
        inside = None if folder is None else folder / _EVIDENCE
        assert train.length is not None
        whole = Whole(trajectory, fit, train.length, seed, None if inside is None else inside / _WHOLE)
        known = Evidence(task, train_dataset, query, whole, Reading(collate, workers, progress), inside)
        kept, cost = _by_rule(method, known, labels, [Wanted(share, seed, cut) for share in shares])
        details = question
    selection = Selection(method, train.length or 0, kept, cost + looking, details)
    if folder is not None:
        selection.save(folder)
    return selection


def _iterated(
    pool: Pool, settings: Iterated, shares: Sequence[float], seed: int, folder: Path | None, progress: bool
) -> tuple[tuple[Kept, ...], Cost, dict[str, Any]]:
    kept, cost, losses = [], Cost(), {}
    for share in shares:
        place = None if folder is None else folder / _ROUNDS / f"{share:g}"
        standing = iterate(pool, settings, share, seed, place, progress)
        kept.append(Kept(share, standing.subset, class_weights(standing.subset, pool.labels)))
        cost += standing.cost
        losses[f"{share:g}"] = list(standing.losses)
    return tuple(kept), cost, {"held_out_loss": losses}


def _by_rule(
    method: Method, known: Evidence, labels: Indices | None, wanted: Sequence[Wanted]
) -> tuple[tuple[Kept, ...], Cost]:
    start, size = time.perf_counter(), known.whole.size
    kept = []
    for one in wanted:
        rule, most = rule_of(method, known, one), count(one.fraction, size)
        subset = chosen(rule, labels, np.arange(size, dtype=np.int64), most)
        kept.append(Kept(one.fraction, subset, class_weights(subset, labels)))
    trained = known.whole.seconds
    return tuple(kept), Cost(int(known.whole.asked), trained, time.perf_counter() - start - trained)


def _check(
    task: Task,
    method: Method,
    train: Source,
    query: Source | None,
    trajectory: Trajectory | None,
    fit: Fit | None,
    settings: Iterated | None,
) -> None:
    check_run(task, trajectory, train)
    if train.length is None:
        raise DatasetError(
            "the training set does not know its length; pass a map-style dataset, with __getitem__ and __len__"
        )
    if method == "iterated" and fit is None:
        raise DiffinError(
            "method='iterated' trains on subsets: pass fit= a function (indices, folder, seed) that trains a new model on "
            "those samples and records it, or choose another method"
        )
    if method == "iterated" and trajectory is not None:
        raise DiffinError(
            "trajectory=: method='iterated' goes by no training but those on subsets that it makes itself, and one on all of "
            "the data has learned the labels it would have to doubt; leave it out, or choose another method"
        )
    if settings is not None and not isinstance(settings, Iterated):
        raise DiffinError(f"settings={settings!r}: pass diffin.actions.select.Iterated(...), or None")
    if method != "iterated" and settings is not None:
        raise DiffinError(f"settings={settings!r} are of method='iterated'; leave them out for {method!r}")
    if method in NEED_TRAINING and trajectory is None and fit is None:
        raise DiffinError(
            f"method={method!r} goes by a training on all of the data: pass trajectory=diffin.Trajectory.open(folder), or "
            "fit= a function that trains and records"
        )
    asks = method in NEED_QUERY or (settings is not None and settings.about == "query")
    if asks and query is None:
        name = "about='query'" if method == "iterated" else f"method={method!r}"
        raise DatasetError(f"query=None, and {name} asks about a query; pass query=, e.g. a clean validation set")
    if query is not None and query.length is None and method == "iterated":
        raise DatasetError("the query does not know its length; pass a map-style dataset")


def _check_cut(cut: float | None, method: Method) -> None:
    if cut is None:
        return
    if method not in HAVE_A_CUT:
        raise DiffinError(f"cut={cut} is of {' and '.join(HAVE_A_CUT)}; leave it out for method={method!r}")
    if not 0 <= cut < 1:
        raise DiffinError(f"cut={cut}: pass the share of hardest samples to drop first, 0 or more and less than 1")


def _question(
    method: Method,
    train: Source,
    query: Source | None,
    seed: int,
    class_balanced: bool | None,
    settings: Iterated | None,
) -> dict[str, Any]:
    """What a selection is of, apart from its shares, as JSON gives it back."""
    described = None
    if settings is not None:
        described = {**asdict(settings), "estimator": settings.estimator.describe()}
    question = {
        "method": method,
        "seed": seed,
        "class_balanced": class_balanced,
        "settings": described,
        "samples": train.length,
        "train": Sample.of(train).digest(),
        "query": None if query is None else Sample.of(query).digest(),
    }
    plain: dict[str, Any] = json.loads(json.dumps(question))
    return plain


def _prepared(folder: Path, question: dict[str, Any], shares: Sequence[float], resume: bool) -> Selection | None:
    """Make the folder ready; the selection in it, if it is whole and the one that is asked for."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ScoringError(f"could not write the selection to {folder} ({error}); pass another output") from error
    path = folder / _QUESTION
    if not resume:
        for name in (_EVIDENCE, _ROUNDS):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in (_QUESTION, MANIFEST, TABLE):
            (folder / name).unlink(missing_ok=True)
    if path.is_file():
        try:
            there = read_json(path)
        except (OSError, ValueError) as error:
            raise ScoringError(f"{path} is damaged ({error}); select again with resume=False") from error
        if any(there.get(name) != value for name, value in question.items()):
            raise ScoringError(
                f"output={str(folder)!r} holds another selection: {differences(there, question)}. Pass another output, or "
                "resume=False to replace it"
            )
        if (folder / MANIFEST).is_file():
            selection = Selection.open(folder)
            # Other shares of the same question go on from what is there.
            if selection.fractions == tuple(shares):
                return selection
    write_json(path, question)
    return None
