"""The loss of a sequence is what its model says of it alone, however its batch is padded; and language models can be
recorded, repeated and scored, with every back end."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import diffin
from cases import Dense, random_direction
from diffin.batches import select
from diffin.derivatives import Difference, Forward, Ghost, SampleSet, choose, hessian_vector_product
from diffin.derivatives.selfcheck import TOLERANCE
from diffin.errors import TaskError, TrajectoryError
from diffin.loss_checks import check_losses
from diffin.probes import Probe
from diffin.rerun import Rerun
from diffin.sources import open_source
from diffin.task import PerSampleLoss, Task, frozen
from diffin.tasks import Classification, LanguageModel

pytest.importorskip("transformers")
pytest.importorskip("peft")

from small_language_models import VOCABULARY, adapted, bert, gpt2, labelled, padded, padded_left, sequences, train

ROWS = sequences(8, seed=0)


def masked(rows: list[dict[str, Any]], side: str = "right") -> dict[str, Tensor]:
    """Every third token is to be found, and is shown as token 1."""
    batch = padded(rows, side)
    chosen = (torch.arange(batch["input_ids"].shape[1]) % 3 == 0) & (batch["attention_mask"] == 1)
    labels = batch["input_ids"].masked_fill(~chosen, -100)
    return {**batch, "input_ids": batch["input_ids"].masked_fill(chosen, 1), "labels": labels}


def own_loss(model: nn.Module, batch: dict[str, Tensor]) -> float:
    """What Hugging Face computes of the only sequence of a batch, labels where there are none being the tokens."""
    with torch.no_grad():
        return float(model(**{"labels": batch["input_ids"], **batch}).loss)


@pytest.mark.parametrize("side", ["left", "right"])
def test_causal_losses_are_those_of_the_model_one_sequence_at_a_time(side: str) -> None:
    model = gpt2()
    with torch.no_grad():
        losses = LanguageModel(model).losses(padded(ROWS, side))
    # The model's own loss is taken in float32.
    assert losses.tolist() == pytest.approx([own_loss(model, padded([row])) for row in ROWS], rel=1e-6)
    assert losses.dtype == torch.float64


def test_given_labels_say_which_tokens_are_predicted() -> None:
    model = gpt2()
    rows = [{**row, "labels": [-100, -100, *row["input_ids"][2:]]} for row in ROWS]
    batch = padded(rows)
    batch["labels"] = torch.nn.utils.rnn.pad_sequence([torch.tensor(row["labels"]) for row in rows], True, -100)
    with torch.no_grad():
        losses = LanguageModel(model).losses(batch)
    alone = [own_loss(model, {**padded([row]), "labels": torch.tensor([row["labels"]])}) for row in rows]
    assert losses.tolist() == pytest.approx(alone, rel=1e-6)


def test_masked_losses_are_those_of_the_model_one_sequence_at_a_time() -> None:
    model = bert("masked")
    with torch.no_grad():
        losses = LanguageModel(model, kind="masked").losses(masked(ROWS))
    assert losses.tolist() == pytest.approx([own_loss(model, masked([row])) for row in ROWS], rel=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_losses_and_gradients_do_not_depend_on_padding(side: str, attention: str) -> None:
    task = LanguageModel(gpt2(attention))
    loss = PerSampleLoss(task)
    dense = Dense(loss)
    for row in ROWS[:3]:
        short, long = padded([row]), padded([row], side, to=11)
        torch.testing.assert_close(
            task.losses(long), task.losses({"input_ids": short["input_ids"]}), rtol=1e-12, atol=0
        )
        torch.testing.assert_close(dense.gradient(long), dense.gradient(short), rtol=1e-10, atol=1e-14)


def test_the_sum_is_over_tokens_and_divided_by_a_constant() -> None:
    model, batch = gpt2(), padded(ROWS)
    predicted = torch.tensor([len(row["input_ids"]) - 1.0 for row in ROWS], dtype=torch.float64)
    with torch.no_grad():
        mean = LanguageModel(model).losses(batch)
        total = LanguageModel(model, reduction="sum").losses(batch)
        scaled = LanguageModel(model, reduction="sum", divisor=4.0).losses(batch)
        own = model(**batch, labels=batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)).loss
    torch.testing.assert_close(total, mean * predicted)
    torch.testing.assert_close(scaled, total / 4)
    # What Hugging Face computes of a batch is no mean over its samples.
    assert float(total.sum() / predicted.sum()) == pytest.approx(float(own), rel=1e-6)
    assert float(mean.mean()) != pytest.approx(float(own), rel=1e-3)


def test_a_sequence_without_a_predicted_token_has_no_loss() -> None:
    batch = padded([{"input_ids": [5]}, ROWS[0]])
    model = gpt2()
    losses = LanguageModel(model).losses(batch)
    assert float(losses[0].detach()) == 0
    first, both = (
        torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for loss in (losses[0], losses.sum())
    )
    assert all(not g.any() for g in first)
    assert all(torch.isfinite(g).all() for g in both)


class Bigram(nn.Module):
    """A model that takes a tensor and returns one."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, VOCABULARY, dtype=torch.float64)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(tokens)


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: [t], lambda t: (t, t), lambda t: {"tokens": t, "labels": t}])
def test_a_model_of_tensors_takes_tensors(wrap: Any) -> None:
    tokens = torch.randint(VOCABULARY, (4, 6), generator=torch.Generator().manual_seed(0))
    task = LanguageModel(Bigram())
    check_losses(task, wrap(tokens))
    wanted = [F.cross_entropy(task.model(row[:-1]), row[1:]) for row in tokens]
    torch.testing.assert_close(task.losses(wrap(tokens)), torch.stack(wanted))


@pytest.mark.parametrize(
    ("use", "advice"),
    [
        (lambda: LanguageModel(gpt2(), kind="seq2seq"), "'causal' or 'masked'"),
        (lambda: LanguageModel(gpt2(), reduction="none"), "'mean' or 'sum'"),
        (lambda: LanguageModel(gpt2(), divisor=3.0), "only with reduction='sum'"),
        (lambda: LanguageModel(gpt2(), reduction="sum", divisor=0.0), "a positive number"),
        (lambda: LanguageModel(bert("masked"), kind="masked").losses(padded(ROWS)), "needs labels"),
        (lambda: LanguageModel(Bigram(), kind="masked").losses(torch.ones(2, 3).long()), "needs labels"),
        (lambda: LanguageModel(gpt2()).losses({"input_ids": [[1, 2]]}), "DataCollatorWithPadding"),
        (lambda: LanguageModel(gpt2()).losses("a text"), "is a str"),
        (lambda: LanguageModel(bert("classifier")).losses(padded(ROWS)), "one for every label"),
    ],
)
def test_what_cannot_work_is_refused_with_advice(use: Any, advice: str) -> None:
    with pytest.raises(TaskError, match=advice):
        use()


def test_samples_are_shown_in_words() -> None:
    tokenizer = SimpleNamespace(decode=lambda tokens, skip_special_tokens: " ".join(map(str, tokens)))
    task = LanguageModel(gpt2(), tokenizer=tokenizer)
    batch = padded(ROWS[:2], "left")
    assert task.labels(batch) == [" ".join(map(str, row["input_ids"])) for row in ROWS[:2]]
    assert LanguageModel(gpt2()).labels(batch) is None
    shown = [f"perplexity {perplexity:.3g}" for perplexity in task.losses(batch).exp().tolist()]
    assert task.predictions(batch) == shown
    assert LanguageModel(gpt2(), reduction="sum").predictions(batch)[0].startswith("loss ")


def test_rows_of_a_dataset_go_through_a_tokenizer_s_collator() -> None:
    datasets = pytest.importorskip("datasets")
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import BatchEncoding, DataCollatorWithPadding, PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({str(n): n for n in range(VOCABULARY)}, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", padding_side="right")
    source = open_source(datasets.Dataset.from_list(ROWS), collate=DataCollatorWithPadding(tokenizer))
    _, batch = next(source.batches(4))
    assert isinstance(batch, BatchEncoding)
    assert isinstance(select(batch, slice(0, 2)), BatchEncoding)
    classified = Classification(bert("classifier"))
    check_losses(classified, batch)
    torch.testing.assert_close(classified.losses(batch), classified.losses(labelled(ROWS[:4])))
    tokenizer.padding_side = "left"
    _, batch = next(source.batches(4))
    del batch["labels"]
    task = LanguageModel(gpt2(), tokenizer=tokenizer)
    check_losses(task, batch)
    torch.testing.assert_close(task.losses(batch), task.losses(padded(ROWS[:4])))
    # The collator's padding token is token 0, so it is not among the labels.
    assert task.labels(batch)[0].split() == [str(t) for t in ROWS[0]["input_ids"]]


MODELS = {
    "tied gpt2": lambda: (LanguageModel(gpt2()), padded_left(ROWS[:5])),
    "tied gpt2, eager attention": lambda: (LanguageModel(gpt2("eager")), padded(ROWS[:5])),
    "masked bert": lambda: (LanguageModel(bert("masked"), kind="masked"), masked(ROWS[:5])),
    "bert classifier": lambda: (Classification(bert("classifier")), labelled(ROWS[:5])),
    "gpt2 with adapters": lambda: (
        LanguageModel(adapted(gpt2(), "c_attn", fan_in_fan_out=True)),
        padded_left(ROWS[:5]),
    ),
    "bert classifier with adapters": lambda: (
        Classification(adapted(bert("classifier"), "query", "value", modules_to_save=["classifier"])),
        labelled(ROWS[:5]),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_back_end_measures_what_plain_differentiation_says(name: str) -> None:
    task, batch = MODELS[name]()
    check_losses(task, batch)
    with frozen(task.model):
        loss = PerSampleLoss(task)
        dense = Dense(loss)
        directions = [random_direction(loss, seed) for seed in range(3)]
        for direction in directions:
            _without_padding(task.model, direction)
        u, v, d = directions
        flat_u, flat_v, flat_d = map(dense.flatten, directions)
        alone = [dense.sample(batch, index) for index in range(len(batch["input_ids"]))]
        first = torch.stack([dense.gradient(one) @ flat_u for one in alone])
        curved = [_twice_differentiated(dense, one, flat_v) for one in [*alone, batch]]
        second = first + torch.stack([product @ flat_d for product in curved[:-1]])
        for backend, tolerance in ((Difference(1e-5), 1e-5), (Ghost(1e-4), 1e-10), (Forward(), 1e-10)):
            for probe, wanted in ((Probe(1.0, u), first), (Probe(1.0, u, (v, d)), second)):
                found = backend.prepare(loss, probe)(batch).derivatives
                mixed = probe.mixed is not None and backend.name != "forward"
                error = float((found - wanted).norm() / wanted.norm())
                assert error < (1e-4 if mixed else tolerance), (backend.name, error)
        product = hessian_vector_product(loss, SampleSet(lambda: [batch], "the batch"), v)
        torch.testing.assert_close(dense.flatten(product), curved[-1], rtol=1e-9, atol=1e-12)


def _twice_differentiated(dense: Dense, batch: Any, v: Tensor) -> Tensor:
    """The Hessian of the mean loss, times v; a whole one of these models takes minutes."""
    with sdpa_kernel(SDPBackend.MATH):
        product: Tensor = torch.autograd.functional.hvp(dense.mean_loss(batch), dense.theta, v)[1]
    return product


def _without_padding(model: nn.Module, direction: dict[str, Tensor]) -> None:
    """Training never moves the embedding of padding, whose gradient PyTorch leaves out."""
    names = {id(p): name for name, p in model.named_parameters()}
    for module in model.modules():
        if (
            isinstance(module, nn.Embedding)
            and module.padding_idx is not None
            and names[id(module.weight)] in direction
        ):
            direction[names[id(module.weight)]][module.padding_idx] = 0


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_replay_of_a_recorded_language_model_is_what_retraining_says(tmp_path: Path, attention: str) -> None:
    rows, query = sequences(12, seed=1), sequences(6, seed=2)
    task = LanguageModel(gpt2(attention, layers=2))
    train(task, rows, padded_left, record=tmp_path / "run")
    trajectory = diffin.Trajectory.open(tmp_path / "run")
    untrained = LanguageModel(gpt2(attention, layers=2))
    found = diffin.score(
        untrained,
        trajectory,
        rows,
        query=query,
        estimator=diffin.Replay(saturation=0.0),
        collate=padded_left,
        progress=False,
    ).influence

    def retrained(sample: int, change: float) -> float:
        weights = torch.ones(len(rows), dtype=torch.float64)
        weights[sample] += change
        again = LanguageModel(gpt2(attention, layers=2))
        train(again, rows, padded_left, weights=weights)
        with torch.no_grad():
            return float(again.losses(padded(query)).mean())

    for sample in (0, 3, 7):
        wanted = (retrained(sample, 1e-4) - retrained(sample, -1e-4)) / 2e-4
        assert found[sample] == pytest.approx(wanted, rel=1e-3), sample


RECORDED = {
    "gpt2": lambda: (LanguageModel(gpt2(width=32, layers=2).float()), padded_left),
    "bert classifier": lambda: (Classification(bert("classifier", width=32, layers=2).float()), labelled),
    "gpt2 with adapters": lambda: (
        LanguageModel(adapted(gpt2(), "c_attn", fan_in_fan_out=True, lora_dropout=0.1).float()),
        padded,
    ),
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_models_are_repeated_and_scored_alike_by_all_back_ends(tmp_path: Path, name: str) -> None:
    rows, query = sequences(12, seed=1), sequences(6, seed=2)
    task, collate = RECORDED[name]()
    train(task, rows, collate, record=tmp_path / "run")
    task, _ = RECORDED[name]()
    trajectory = diffin.Trajectory.open(tmp_path / "run")
    source = open_source(rows, collate=collate)
    rerun = Rerun(task, trajectory, source)
    assert rerun.draws
    assert rerun.repeat(trajectory.stored[0], trajectory.stored[-1]) < 1e-4
    unrolled = diffin.Unrolled(states=3)
    assert unrolled.resolved(task, trajectory, source).propagation == "steps"
    probes = diffin.build_probes(
        task, trajectory, rows, query=query, estimator=unrolled, collate=collate, progress=False
    )
    checked = choose(task, probes, collate(rows), every=True).report
    assert checked.reference == "reverse"
    for entry in checked.back_ends:
        assert entry.failure is None, entry
        assert entry.error is not None
        assert entry.error < (TOLERANCE if entry.name == "difference" else 1e-5), entry


def test_first_order_scores_of_adapters_are_their_dense_gradient_products(tmp_path: Path) -> None:
    rows, query = sequences(12, seed=1), sequences(6, seed=2)

    def build() -> Task:
        return LanguageModel(adapted(gpt2(), "c_attn", fan_in_fan_out=True))

    task = build()
    train(task, rows, padded, record=tmp_path / "run")
    trajectory, task = diffin.Trajectory.open(tmp_path / "run"), build()
    scores = diffin.score(
        task,
        trajectory,
        rows,
        query=query,
        estimator=diffin.TracIn(),
        collate=padded,
        progress=False,
        derivatives="ghost",
    )
    wanted = torch.zeros(len(rows), dtype=torch.float64)
    for checkpoint in trajectory.checkpoints:
        loss = PerSampleLoss(task, checkpoint.state)
        assert all("lora_" in name for name in loss.names)
        assert len(loss.names) == 2
        with frozen(task.model):
            dense = Dense(loss)
            asked = dense.gradient(padded(query))
            products = torch.stack([dense.gradient(padded([row])) @ asked for row in rows])
        share = trajectory.total_steps / len(trajectory.checkpoints) / len(rows)
        wanted -= share * float(checkpoint.learning_rate) * products
    torch.testing.assert_close(torch.from_numpy(scores.influence), wanted, rtol=1e-8, atol=0)


def test_a_training_on_the_mean_over_the_tokens_of_a_batch_is_not_repeated(tmp_path: Path) -> None:
    rows = sequences(12, seed=1)
    task = LanguageModel(gpt2(dropout=0.0))

    def over_tokens(batch: dict[str, Tensor]) -> Tensor:
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return task.model(**batch, labels=labels).loss

    train(task, rows, padded, record=tmp_path / "run", loss=over_tokens)
    rerun = Rerun(task, diffin.Trajectory.open(tmp_path / "run"), open_source(rows, collate=padded))
    with pytest.raises(TrajectoryError, match="not the mean of the task's losses"):
        rerun.check_repeatable()


def test_blocks_of_equal_length_are_trained_on_alike_by_both_means(tmp_path: Path) -> None:
    rows = sequences(12, seed=1, shortest=6, longest=6)
    task = LanguageModel(gpt2(dropout=0.0).float())
    train(task, rows, padded, record=tmp_path / "run", loss=lambda b: task.model(**b, labels=b["input_ids"]).loss)
    trajectory = diffin.Trajectory.open(tmp_path / "run")
    rerun = Rerun(task, trajectory, open_source(rows, collate=padded))
    assert rerun.repeat(trajectory.stored[0], trajectory.stored[-1]) < 1e-4
