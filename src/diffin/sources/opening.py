"""Opening any dataset as a source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, default_collate

from diffin.errors import DatasetError
from diffin.sources.base import Collate, Source
from diffin.sources.indexed import Indexed, WithoutIndex
from diffin.sources.keyed import Keyed
from diffin.sources.kinds import is_map_style, torch_formatted
from diffin.sources.mapped import MapSource
from diffin.sources.streamed import IterableSource


def open_source(dataset: Any, *, collate: Collate | None = None, workers: int = 0) -> Source:
    """Read ``dataset`` as a :class:`Source`.

    Args:
        dataset: a map-style dataset (``__getitem__`` and ``__len__``), an iterable that can be iterated again, a
            Hugging Face dataset (given the torch format if it has none and ``collate`` is not given), an
            :class:`Indexed` of one (read without the index), or a ``torch.utils.data.DataLoader``, of which the
            dataset, the collate function and the number of workers are used, and the order, sampler and batch size
            are not. A map-style dataset may offer ``__getitems__(positions)``, to read many at once, and
            ``keys(positions)``, what samples are called; see ``docs/shards.md``.
        collate: makes a batch of a list of samples; ``None`` for the loader's own, or
            ``torch.utils.data.default_collate``.
        workers: processes that read ahead; 0 for the loader's number, or reading in this process. The samples are
            the same for any number. An iterable is read by this process.

    Raises:
        DatasetError: the dataset is empty or of a kind that cannot be read in order more than once.
    """
    if workers < 0:
        raise DatasetError(f"workers={workers}; pass 0 or more")
    if isinstance(dataset, DataLoader):
        if dataset.batch_size is None and dataset.batch_sampler is None and collate is None:
            raise DatasetError(
                "the DataLoader has batch_size=None, so its dataset may yield samples or batches; pass the dataset of "
                "single samples itself, or collate= a function that makes a batch of a list of samples"
            )
        loader_collate = dataset.collate_fn
        if isinstance(dataset.dataset, Indexed) and collate is None and loader_collate is not default_collate:
            return MapSource(dataset.dataset, WithoutIndex(loader_collate), workers or dataset.num_workers)
        return open_source(dataset.dataset, collate=collate or loader_collate, workers=workers or dataset.num_workers)
    if isinstance(dataset, Indexed):
        dataset = dataset.dataset
    if isinstance(dataset, tuple) and dataset and all(isinstance(part, torch.Tensor) for part in dataset):
        raise DatasetError("a tuple of tensors is no dataset of samples; pass torch.utils.data.TensorDataset(*tensors)")
    if isinstance(dataset, Mapping):
        raise DatasetError(
            f"a {type(dataset).__name__} with keys {', '.join(map(repr, list(dataset)[:4]))} is not a dataset of "
            "samples; pass one of its splits, or a torch.utils.data.TensorDataset of its columns"
        )
    if collate is None:
        if type(dataset) is Keyed:
            dataset = Keyed(torch_formatted(dataset.dataset), dataset.ids)
        dataset = torch_formatted(dataset)
        collate = default_collate
    if is_map_style(dataset):
        return MapSource(dataset, collate, workers)
    if isinstance(dataset, Iterator):
        raise DatasetError(
            f"a {type(dataset).__name__} can be iterated only once, and scoring reads samples more often than that; "
            "pass a list, or an object whose __iter__ starts again from the first sample"
        )
    if isinstance(dataset, Iterable) and not isinstance(dataset, (str, bytes)):
        return IterableSource(dataset, collate)
    raise DatasetError(
        f"a {type(dataset).__name__} is not a dataset: pass something with __getitem__ and __len__, an iterable, a "
        "Hugging Face dataset, or a DataLoader"
    )
