"""kronfluence, asked about classifiers. It runs in the environment of the other libraries."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset


class Kronfluence:
    """A model and data that kronfluence scores, for one strategy: `identity`, `ekfac`, ...

    Scores are gradients of every training sample times the *sum* of those of the query, as it has them: positive helps.
    """

    def __init__(
        self, model: nn.Module, train: Dataset[Any], query: Dataset[Any], *, strategy: str, batch_size: int, folder: str
    ) -> None:
        from kronfluence.analyzer import Analyzer, prepare_model
        from kronfluence.task import Task

        class CrossEntropy(Task):
            def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
                logits = model(batch[0])
                targets = batch[1]
                if sample:
                    targets = torch.multinomial(torch.softmax(logits.detach(), dim=-1), 1).flatten()
                return F.cross_entropy(logits, targets, reduction="sum")

            def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
                return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")

        task = CrossEntropy()
        self.train, self.query = train, query
        self.strategy, self.batch_size = strategy, batch_size
        self.analyzer = Analyzer(
            "bench",
            prepare_model(model, task),
            task,
            cpu=True,
            disable_tqdm=True,
            disable_model_save=True,
            output_dir=folder,
        )

    def fit(self) -> None:
        """The factors of the curvature."""
        from kronfluence.arguments import FactorArguments

        self.analyzer.fit_all_factors(
            factors_name=self.strategy,
            dataset=self.train,
            per_device_batch_size=self.batch_size,
            factor_args=FactorArguments(strategy=self.strategy),
            overwrite_output_dir=True,
        )

    def scores(self, damping: float | None = None) -> Tensor:
        """Float[Tensor, "N"]; without damping, kronfluence takes a tenth of the mean eigenvalue."""
        return self._pairwise(self.query, damping, aggregate=True).flatten()

    def pairwise(self, query: Dataset[Any], damping: float | None = None) -> Tensor:
        """Float[Tensor, "Q N"], one row for each of these query samples."""
        return self._pairwise(query, damping, aggregate=False)

    def own(self) -> Tensor:
        """Float[Tensor, "N"]: every training sample's score on itself."""
        from kronfluence.arguments import ScoreArguments

        self.analyzer.compute_self_scores(
            scores_name="own",
            factors_name=self.strategy,
            train_dataset=self.train,
            per_device_train_batch_size=self.batch_size,
            score_args=ScoreArguments(),
            overwrite_output_dir=True,
        )
        scores: Tensor = self.analyzer.load_self_scores("own")["all_modules"]
        return scores

    def _pairwise(self, query: Dataset[Any], damping: float | None, *, aggregate: bool) -> Tensor:
        from kronfluence.arguments import ScoreArguments

        self.analyzer.compute_pairwise_scores(
            scores_name="bench",
            factors_name=self.strategy,
            query_dataset=query,
            train_dataset=self.train,
            per_device_query_batch_size=self.batch_size,
            per_device_train_batch_size=self.batch_size,
            score_args=ScoreArguments(aggregate_query_gradients=aggregate, damping_factor=damping),
            overwrite_output_dir=True,
        )
        scores: Tensor = self.analyzer.load_pairwise_scores("bench")["all_modules"]
        return scores
