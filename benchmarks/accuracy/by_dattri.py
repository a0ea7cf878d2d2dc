"""dattri: influence functions with an explicit Hessian, conjugate gradients and Arnoldi; TracIn, TRAK and DVEmb."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from question import FEW, Question, Scores
from torch import Tensor
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

Asked = Iterator[tuple[dict[str, Any], Callable[[], Scores]]]

DAMPINGS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)
LARGE = 20_000
"""Parameters from which conjugate gradients are cut short."""

DIMENSION = 512
TINY = 5_000
"""Parameters up to which a Hessian is made in full, and single query samples are asked about where each costs a solution."""


def tracin(question: Question) -> Asked:
    """First order at every checkpoint, with inner products or cosines of gradients."""
    from dattri.algorithm.tracin import TracInAttributor

    def ask(cosine: bool) -> Scores:
        method = TracInAttributor(
            _task(question, question.checkpoints),
            weight_list=torch.tensor([checkpoint["learning_rate"] for checkpoint in question.checkpoints]),
            normalized_grad=cosine,
            projector_kwargs={"proj_type": "identity"},  # it projects to 512 dimensions unless told otherwise
        )
        # It takes the gradients of the query anew for every batch, so batches are large and single queries few.
        with torch.no_grad():
            effects = method.attribute(
                DataLoader(question.train, 500), _query(question, each=question.parameters <= TINY)
            )
        return _split(effects, question.first_order_scale)

    for cosine in (False, True):
        settings = {"checkpoints": len(question.checkpoints), "cosine": cosine}
        yield settings, lambda cosine=cosine: ask(cosine)


def explicit(question: Question) -> Asked:
    """The Hessian in full."""
    from dattri.algorithm.influence_function import IFAttributorExplicit

    if question.parameters > TINY:
        raise ValueError(f"a Hessian of {question.parameters:,} parameters is not made in full")
    for damping in DAMPINGS:
        method = IFAttributorExplicit(_task(question), regularization=damping)
        yield {"damping": damping}, lambda method=method: _influence(question, method)


def conjugate_gradients(question: Question) -> Asked:
    """The inverse Hessian times the query's gradient, solved for."""
    from dattri.algorithm.influence_function import IFAttributorCG

    for damping in DAMPINGS:
        # It does not stop when it has converged, and what it gives long afterwards is noise without bound. So: about as
        # many as the damping asks for, and fewer where a product with the Hessian is dear.
        iterations = 20 if damping >= 0.1 or question.parameters > LARGE else 50 if damping >= 0.01 else 100
        if question.parameters > TINY:
            iterations = min(iterations, 50)
        method = IFAttributorCG(_task(question), max_iter=iterations, regularization=damping)
        yield {"damping": damping, "iterations": iterations}, lambda method=method: _influence(question, method)


def arnoldi(question: Question) -> Asked:
    """The inverse Hessian on its leading eigenvectors."""
    from dattri.algorithm.influence_function import IFAttributorArnoldi

    for damping in (1e-3, 1e-2, 1e-1):
        method = IFAttributorArnoldi(_task(question), proj_dim=50, max_iter=100, regularization=damping)
        yield {"damping": damping, "rank": 50}, lambda method=method: _influence(question, method)


def _influence(question: Question, method: Any) -> Scores:
    whole = DataLoader(
        question.train, len(question)
    )  # with several batches it would add up the inverses of their Hessians
    each = question.parameters <= TINY
    with torch.no_grad():  # or it keeps the graph of every product with the Hessian: gigabytes for a small CNN
        method.cache(whole)
        effects = method.attribute(whole, _query(question, each=each))
    return _split(effects, 1 / len(question))


def trak(question: Question) -> Asked:
    """TRAK at the final state. The query's loss is the target itself, so no chain rule is needed afterwards."""
    from dattri.algorithm.trak import TRAKAttributor

    def margin(parameters: dict[str, Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
        likelihood = -_mean_loss(parameters, (data[0].unsqueeze(0), data[1].unsqueeze(0)))
        return likelihood - torch.log1p(-likelihood.exp())

    model = question.model()

    def _mean_loss(parameters: dict[str, Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(model, parameters, (data[0],)), data[1])

    from dattri.task import AttributionTask

    def probability(parameters: dict[str, Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
        return (-_mean_loss(parameters, (data[0].unsqueeze(0), data[1].unsqueeze(0)))).exp()

    def ask(damping: float) -> Scores:
        task = AttributionTask(margin, model, [question.final["state"]], target_func=_mean_loss)
        method = TRAKAttributor(task, probability, projector_kwargs={"proj_dim": DIMENSION}, regularization=0.0)
        state, _ = task.get_param(ckpt_idx=0)
        gradients = method.grad_loss_func(state, (question.inputs[:100], question.targets[:100]))
        square = float((gradients / method.norm_scaler).square().sum(dim=1).nanmean())
        method.regularization = damping * square * len(question) / DIMENSION
        with torch.no_grad():
            method.cache(DataLoader(question.train, 100))
            return _split(-method.attribute(_query(question)))

    for damping in (1e-2, 1e-1, 1.0, 10.0):  # in units of the mean eigenvalue of the projected kernel
        settings = {"damping": damping, "dimension": DIMENSION}
        yield settings, lambda damping=damping: ask(damping)


def dvemb(question: Question) -> Asked:
    """Data value embeddings: every step is taken again, and its gradients are kept, in full or projected.

    The method is of plain SGD. Momentum b is as if the learning rate were divided by 1 - b, which the method's own
    recursion does not always survive; so the learning rate as it is comes second.
    """
    from dattri.algorithm.dvemb import DVEmbAttributor

    model = question.model(question.replay["state"])
    dimension = None if question.parameters <= TINY else 1024
    method = DVEmbAttributor(_task(question, model=model), proj_dim=dimension)
    _take_again(question, model, method)
    rates = method.learning_rates

    def ask(factor: float) -> Scores:
        scaled = {epoch: [factor * rate for rate in of_epoch] for epoch, of_epoch in rates.items()}
        with torch.no_grad():
            method.cache(learning_rates=scaled, memory_saving=False)
            scores = method.attribute(_query(question))
        missing = torch.zeros(len(question) - len(scores), scores.shape[1], dtype=scores.dtype)
        return _split(torch.cat([scores, missing]))

    momentum = question.replay["recipe"]["momentum"]
    for factor in (1 / (1 - momentum), 1.0) if momentum else (1.0,):
        settings = {"dimension": dimension or question.parameters, "learning_rate_times": round(factor, 6)}
        yield settings, lambda factor=factor: ask(factor)


def _take_again(question: Question, model: Any, method: Any) -> None:
    """Every step of the training; the gradients of its samples go to the method before it is taken."""
    optimizer, scheduler = question.optimizer(model)
    indices = question.replay["indices"]
    per_epoch = len(question) // indices.shape[1]
    for step, batch in enumerate(indices):
        inputs, targets = question.inputs[batch], question.targets[batch]
        with torch.no_grad():
            model.eval()
            method.cache_gradients(step // per_epoch, (inputs, targets), batch, scheduler.get_last_lr()[0])
            model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        scheduler.step()
    model.eval()
    reached = model.state_dict()
    if not all(torch.allclose(reached[name], value, atol=1e-3) for name, value in question.final["state"].items()):
        raise RuntimeError("the training, taken again, does not end in the final state")


def _task(question: Question, checkpoints: list[dict[str, Any]] | None = None, *, model: Any = None) -> Any:
    """The mean loss of a group of samples; a batch is a batch of groups, of one sample each for training."""
    from dattri.task import AttributionTask

    model = question.model() if model is None else model
    shape = question.inputs.shape[1:]

    def loss(parameters: dict[str, Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = data
        logits = functional_call(model, parameters, (inputs.reshape(-1, *shape),))
        return F.cross_entropy(logits, targets.reshape(-1))

    states = [checkpoint["state"] for checkpoint in checkpoints or [question.final]]
    return AttributionTask(loss, model, states)


def _query(question: Question, *, each: bool = True) -> DataLoader[tuple[Tensor, ...]]:
    """All query samples as one group; and each of the first few, repeated to a group as large."""
    inputs, targets = question.query_inputs, question.query_targets
    groups = [(inputs, targets)]
    if each:
        size = len(targets)
        groups += [(inputs[i].expand(size, *inputs.shape[1:]), targets[i].expand(size)) for i in range(FEW)]
    stacked = TensorDataset(*(torch.stack(parts) for parts in zip(*groups, strict=True)))
    return DataLoader(stacked, len(groups))


def _split(effects: Tensor, scale: float = 1.0) -> Scores:
    """From dattri's Float[Tensor, "N groups"], where positive helps."""
    signed = -scale * effects.detach()
    return signed[:, 0], signed[:, 1:].T if signed.shape[1] > 1 else None
