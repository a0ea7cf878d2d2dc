"""Tiny models of the transformers library in float64, and data for them that a test can count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
)

SAMPLES = 22


class Sentences(Dataset[dict[str, Tensor]]):
    """Made of a few tokens; the class is whether the first half weighs more than the second. Notes what it is asked for."""

    def __init__(self, count: int = SAMPLES, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(0, 16, (count, 6), generator=generator)
        self.labels = (self.tokens[:, :3].sum(dim=1) > self.tokens[:, 3:].sum(dim=1)).long()
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.asked.append(int(index))
        return {"input_ids": self.tokens[index], "labels": self.labels[index]}


class Texts(Dataset[dict[str, Tensor]]):
    """Tokens to predict, padded to a length of six; between three and six of them, or six of each."""

    def __init__(self, *, ragged: bool, count: int = SAMPLES) -> None:
        generator = torch.Generator().manual_seed(1)
        self.tokens = torch.randint(1, 16, (count, 6), generator=generator)
        lengths = torch.randint(3, 7, (count, 1), generator=generator) if ragged else torch.full((count, 1), 6)
        self.mask = (torch.arange(6) < lengths).long()

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens, mask = self.tokens[index], self.mask[index]
        return {"input_ids": tokens, "attention_mask": mask, "labels": tokens.masked_fill(mask == 0, -100)}


def classifier(dropout: float = 0.0) -> BertForSequenceClassification:
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=16,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=8,
        num_labels=2,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        attn_implementation="eager",
        initializer_range=0.2,
    )
    return BertForSequenceClassification(config).double()


def language_model() -> GPT2LMHeadModel:
    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=16,
        n_positions=8,
        n_embd=8,
        n_layer=1,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        attn_implementation="eager",
        initializer_range=0.2,
    )
    return GPT2LMHeadModel(config).double()


def arguments(folder: Path, **settings: Any) -> TrainingArguments:
    usual = {
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 3,
        "learning_rate": 0.05,
        "warmup_steps": 3,
        "max_grad_norm": 0.8,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 5,
    }
    return TrainingArguments(output_dir=str(folder), **{**usual, **settings})


def trainer(model: Any, args: TrainingArguments, data: Any, *callbacks: Any, **more: Any) -> Trainer:
    return Trainer(model, args, train_dataset=data, callbacks=list(callbacks), **more)
