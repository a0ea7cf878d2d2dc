"""Small models of Hugging Face, drawn at random, in float64; and sequences of different length for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import diffin
from diffin.task import Task

VOCABULARY, PAD = 13, 0


def gpt2(attention: str = "sdpa", dropout: float = 0.1, width: int = 8, layers: int = 1) -> nn.Module:
    """Its head is tied to its embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    rates = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=12, n_embd=width, n_layer=layers, n_head=2, bos_token_id=1, eos_token_id=1,
        attn_implementation=attention, **rates,
    )  # fmt: skip
    return _drawn(lambda: GPT2LMHeadModel(config))


def bert(kind: str, layers: int = 1, width: int = 8) -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=2 * width, max_position_embeddings=12, num_labels=2,
    )  # fmt: skip
    return _drawn(lambda: {"masked": BertForMaskedLM, "classifier": BertForSequenceClassification}[kind](config))


def adapted(model: nn.Module, *layers: str, **options: Any) -> nn.Module:
    """With LoRA adapters beside the layers of these names, drawn so that both factors have a gradient."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, lora_alpha=4, target_modules=list(layers), init_lora_weights=False, **options)
    return _drawn(lambda: get_peft_model(model, config))


def sequences(count: int, seed: int, shortest: int = 3, longest: int = 7) -> list[dict[str, Any]]:
    """Tokens that mostly ascend, and a label that says whether the first is odd; no token is `PAD`."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        length = int(torch.randint(shortest, longest + 1, (), generator=generator))
        tokens = torch.randint(2, VOCABULARY, (length,), generator=generator).sort().values.tolist()
        rows.append({"input_ids": tokens, "label": tokens[0] % 2})
    return rows


def padded(rows: list[dict[str, Any]], side: str = "right", to: int = 0) -> dict[str, torch.Tensor]:
    """A batch of tokens and their mask, as long as the longest, and at least ``to``."""
    length = max(to, *(len(row["input_ids"]) for row in rows))

    def filled(values: list[int], by: int) -> list[int]:
        rest = [by] * (length - len(values))
        return rest + values if side == "left" else values + rest

    return {
        "input_ids": torch.tensor([filled(row["input_ids"], PAD) for row in rows]),
        "attention_mask": torch.tensor([filled([1] * len(row["input_ids"]), 0) for row in rows]),
    }


def padded_left(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return padded(rows, "left")


def labelled(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {**padded(rows), "labels": torch.tensor([row["label"] for row in rows])}


def train(
    task: Task,
    rows: list[dict[str, Any]],
    collate: Callable[[list[Any]], Any],
    *,
    record: Path | None = None,
    weights: torch.Tensor | None = None,
    loss: Callable[[Any], torch.Tensor] | None = None,
    steps: int = 12,
) -> None:
    """AdamW with warm-up; the mean of the task's losses, each times the weight of its sample, or another ``loss``."""
    from transformers import get_linear_schedule_with_warmup

    model = task.model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.05)
    schedule = get_linear_schedule_with_warmup(optimizer, 3, steps)
    weights = torch.ones(len(rows), dtype=torch.float64) if weights is None else weights
    generator = torch.Generator().manual_seed(5)
    per_epoch = torch.arange(len(rows)).split(4)
    order = [torch.randperm(len(rows), generator=generator) for _ in range(1 + steps // len(per_epoch))]
    batches = [part for epoch in order for part in epoch.split(4)][:steps]
    recorder = None
    if record is not None:
        size = {"dataset_size": len(rows), "total_steps": steps}
        recorder = diffin.Recorder(record, model, optimizer, **size, checkpoints=3)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        for indices in batches:
            batch = collate([rows[i] for i in indices.tolist()])
            objective = (task.losses(batch) * weights[indices]).mean() if loss is None else loss(batch)
            objective.backward()
            optimizer.step()
            if recorder is not None:
                recorder.step(indices)
            schedule.step()
            optimizer.zero_grad()
    if recorder is not None:
        recorder.close()
    model.eval()


def _drawn(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().double().eval()
